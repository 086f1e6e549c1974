"""Shared segments: made whole, without a name, and gone when the last process that has them is."""

import errno
import os
import secrets
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import psutil
import pytest

from gazer import segment
from gazer.errors import SharedMemoryError
from gazer.segment import FOLDER, PREFIX, Segment, new_token, sweep


def new_name():
    return f"{PREFIX}{new_token()}-ledger"


def exists(name):
    return os.path.exists(f"{FOLDER}/{name}")


def python(code, *arguments, **how):
    """Run `code` in an unrelated process, which imports the same gazer."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=Path(segment.__file__).parents[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        stdin=subprocess.PIPE, text=True, **how)


def with_little_shared_memory(code, *arguments):
    """Run `code` to its end in a mount namespace with a /dev/shm of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for a mount namespace")
    command = ["unshare", "--mount", "sh", "-c",
               'mount -t tmpfs -o size=256k tmpfs /dev/shm || exit 77; exec "$@"', "sh",
               sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30,
                              cwd=Path(segment.__file__).parents[1])
    except FileNotFoundError:
        pytest.skip("needs unshare (util-linux)")
    if done.returncode == 77 or done.stderr.startswith("unshare: "):
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    return done


# It is stopped while its segment has a name still: between the making and the mapping.
MAKER = """
    import sys
    from gazer import segment
    def halt(name):
        print("named", flush=True)
        sys.stdin.read()
        return real(name)
    real, segment._map = segment._map, halt
    s = segment.Segment.create(sys.argv[1], 100_000)
    s.close()
"""


@pytest.fixture
def name():
    name = new_name()
    yield name
    if exists(name):
        os.unlink(f"{FOLDER}/{name}")


@pytest.fixture
def maker(name):
    """A live process in the midst of making the segment `name`."""
    process = python(MAKER, name, start_new_session=True)
    assert process.stdout.readline() == "named\n", process.stderr.read()
    yield process
    if process.returncode is None:
        process.kill()
        process.communicate()


# --- making --------------------------------------------------------------------------------------


def test_a_new_segment_is_zeroed_reserved_ours_alone_and_nameless(name):
    size = 300_000
    made = Segment.create(name, size)
    assert (made.name, made.size, len(made.buf)) == (name, size, size)
    assert bytes(made.buf) == bytes(size)
    stat = os.stat(made.fileno())
    assert stat.st_blocks * 512 >= size
    assert stat.st_mode & 0o777 == 0o600
    assert stat.st_nlink == 0 and not exists(name)
    # Who looks from outside finds it by the name that it had.
    assert os.readlink(f"/proc/self/fd/{made.fileno()}") == f"{FOLDER}/{name} (deleted)"
    made.close()


def test_pages_are_reserved_before_any_is_touched(name):
    """Without this a full /dev/shm kills some process at some later time (SIGBUS)."""
    made = Segment.create(name, 8 << 20)
    assert os.stat(made.fileno()).st_blocks * 512 >= 8 << 20
    made.close()


def test_a_name_is_not_taken_twice(name, maker):
    with pytest.raises(SharedMemoryError, match="File exists"):
        Segment.create(name, 4096)
    assert exists(name)


def test_a_fork_shares_it_and_outlives_its_maker(name):
    """Any fork: the maker may be dead, and nothing has to find anything."""
    process = python("""
        import os, signal, sys
        from gazer.segment import Segment
        s = Segment.create(sys.argv[1], 100_000)
        if os.fork() == 0:
            while s.buf[0] == 0:
                pass
            s.buf[1] = 7
            os._exit(0)
        middle = os.fork()
        if middle == 0:
            s.buf[0] = 1
            os.kill(os.getpid(), signal.SIGKILL)
        os.wait(), os.wait()
        print(bytes(s.buf[:3]))
        s.close()
    """, name)
    assert process.communicate() == ("b'\\x01\\x07\\x00'\n", "")


def test_what_a_fork_lets_go_of_the_others_keep(name):
    process = python("""
        import os, sys
        from gazer.segment import Segment
        s = Segment.create(sys.argv[1], 100_000)
        s.buf[9] = 9
        if os.fork() == 0:
            s.close()
            print("gazer-" in open("/proc/self/maps").read(), flush=True)
            os._exit(0)
        os.wait()
        print(s.buf[9], "gazer-" in open("/proc/self/maps").read())
    """, name)
    assert process.communicate() == ("False\n9 True\n", "")


def test_a_killed_family_leaves_nothing(name):
    """In a mount namespace with a /dev/shm of its own: nobody else's pages come and go there."""
    code = """
        import os, signal, sys, time
        from gazer.segment import FOLDER, Segment
        free = os.statvfs(FOLDER).f_bfree
        heard, told = os.pipe()
        family = os.fork()
        if family == 0:
            s = Segment.create(sys.argv[1], 100 << 10)
            os.setpgid(0, 0)
            os.fork()
            os.write(told, b".")
            signal.pause()
        while len(os.read(heard, 1)) + len(os.read(heard, 1)) < 2:
            pass
        print(os.statvfs(FOLDER).f_bfree < free)
        os.killpg(family, signal.SIGKILL)
        os.waitpid(family, 0)
        while os.statvfs(FOLDER).f_bfree < free:
            time.sleep(0.01)
        print(os.listdir(FOLDER))
    """
    done = with_little_shared_memory(code, name)
    assert (done.stdout, done.stderr) == ("True\n[]\n", "")


def test_tokens_differ():
    assert len({new_token() for _ in range(100)}) == 100


# --- no room -------------------------------------------------------------------------------------


def one_line(error):
    return "\n" not in error and len(error) < 250


@pytest.mark.parametrize("size", [1 << 50, 1 << 60])
def test_more_than_the_machine_has_is_one_line_that_says_what_to_do(name, size):
    process = python("""
        import sys
        from gazer.errors import SharedMemoryError
        from gazer.segment import Segment
        try:
            Segment.create(sys.argv[1], int(sys.argv[2]))
        except SharedMemoryError as error:
            print(error)
    """, name, size)
    out, err = process.communicate()
    assert err == ""
    assert one_line(out.strip())
    assert "ring.size smaller" in out and f"{size >> 10} KiB" in out and FOLDER in out
    assert not exists(name)


def test_a_full_dev_shm_is_an_error_at_once_and_leaves_nothing(name):
    """In a mount namespace with a /dev/shm of 256 KiB."""
    code = """
        import os, sys
        from gazer.errors import SharedMemoryError
        from gazer.segment import Segment
        first = Segment.create(sys.argv[1] + "a", 100 << 10)
        try:
            Segment.create(sys.argv[1] + "b", 200 << 10)
        except SharedMemoryError as error:
            print(error)
        print(sorted(os.listdir("/dev/shm")))
        for i in range(0, first.size, 4096):
            first.buf[i] = 1
        again = Segment.create(sys.argv[1] + "c", 100 << 10)    # what failed gave its pages back
        again.close()
        first.close()
        print(os.listdir("/dev/shm"))
    """
    done = with_little_shared_memory(code, name)
    assert done.stderr == ""
    error, during, after = done.stdout.splitlines()
    assert one_line(error)
    assert "no room in /dev/shm for 200 KiB more" in error
    assert "mount -o remount,size=" in error and "ring.size smaller" in error
    assert during == "[]"
    assert after == "[]"


def test_a_limit_on_file_size_is_an_error_and_leaves_nothing(name):
    process = python("""
        import resource, sys
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        from gazer.errors import SharedMemoryError
        from gazer.segment import Segment
        try:
            Segment.create(sys.argv[1], 1 << 20)
        except SharedMemoryError as error:
            print(error)
    """, name)
    out, err = process.communicate()
    assert err == ""
    assert out == "can't reserve 1048576 bytes of shared memory: File too large\n"
    assert not exists(name)


def test_descriptors_and_mappings_are_given_back(name):
    def in_use():
        maps = Path("/proc/self/maps").read_text().count(PREFIX)
        return len(os.listdir("/proc/self/fd")), maps

    Segment.create(name, 4096).close()
    before = in_use()
    for _ in range(50):
        made = Segment.create(name, 4096)
        made.close()
    with pytest.raises(SharedMemoryError):
        Segment.create("gazer-no/such/folder", 4096)
    assert in_use() == before


# --- sweeping ------------------------------------------------------------------------------------


def test_sweep_leaves_what_a_live_process_is_making(maker, name):
    assert name not in sweep()
    assert exists(name)
    _, err = maker.communicate()      # the end of its input lets it go on
    assert (maker.returncode, err) == (0, "")
    assert not exists(name)


def test_sweep_removes_what_was_killed_in_the_making(maker, name):
    os.killpg(maker.pid, signal.SIGKILL)
    maker.communicate()
    assert exists(name)
    assert name in sweep()
    assert not exists(name)
    assert name not in sweep()


def test_no_resource_tracker_is_started(maker, name):
    """It would be one more process at each start, with nothing to do."""
    assert exists(name)
    assert psutil.Process(maker.pid).children() == []


def test_sweep_leaves_other_names_and_other_things_alone(name):
    foreign = f"{FOLDER}/other-{secrets.token_hex(4)}"
    folder = f"{FOLDER}/{name}"
    Path(foreign).touch()
    os.mkdir(folder)
    try:
        assert name not in sweep()
        assert os.path.exists(foreign) and os.path.isdir(folder)
    finally:
        os.unlink(foreign)
        os.rmdir(folder)


def test_sweep_follows_no_link(name, tmp_path):
    target = tmp_path / "precious"
    target.write_text("data")
    os.symlink(target, f"{FOLDER}/{name}")
    assert name not in sweep()
    assert target.read_text() == "data"


def test_a_sweep_between_making_and_locking_costs_the_owner_nothing(name, monkeypatch):
    """Another gazer starts at the very moment at which our segment has a name and no lock yet."""
    real, swept = segment.fcntl.flock, []

    def flock(fd, how):
        if how == segment.fcntl.LOCK_EX and len(swept) < 3:     # the owner's, not the sweep's
            swept.append(name in sweep())
        return real(fd, how)

    monkeypatch.setattr(segment.fcntl, "flock", flock)
    made = Segment.create(name, 4096)
    assert swept == [True, True, True]
    assert os.stat(made.fileno()).st_size == 4096
    made.buf[0] = 1
    made.close()
    assert not exists(name)


def test_a_slow_sweep_does_not_take_what_was_made_meanwhile(name, monkeypatch):
    """It lists and opens a dead one's segment; by the time that it locks, the name is another's."""
    path = Path(FOLDER, name)
    path.touch()
    real, others = segment.fcntl.flock, []

    def flock(fd, how):
        if how & segment.fcntl.LOCK_NB and not others and os.path.samestat(
                os.fstat(fd), os.stat(path)):
            path.unlink()                       # by another sweep, a little faster
            others.append(segment._create_locked(str(path)))
        return real(fd, how)

    monkeypatch.setattr(segment.fcntl, "flock", flock)
    assert name not in sweep()
    assert others and exists(name)
    os.close(others[0])


def test_many_sweeps_beside_many_starts(monkeypatch):
    """Two threads and another process sweep without a pause while segments are made."""
    prefix = f"{PREFIX}{new_token()}-"      # so that no other gazer's are swept meanwhile
    monkeypatch.setattr(segment, "PREFIX", prefix)
    stop = threading.Event()

    def sweeping():
        while not stop.is_set():
            sweep()

    threads = [threading.Thread(target=sweeping) for _ in range(2)]
    process = python("""
        import sys
        from gazer import segment
        segment.PREFIX = sys.argv[1]
        print("ready", flush=True)
        while True:
            segment.sweep()
    """, prefix)
    assert process.stdout.readline() == "ready\n"
    for thread in threads:
        thread.start()
    try:
        for i in range(300):
            name = f"{prefix}{i}"
            made = Segment.create(name, 4096)
            assert os.stat(made.fileno()).st_size == 4096
            made.buf[4095] = 1
            made.close()
            assert not exists(name)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        process.kill()
        process.communicate()


def test_errors_of_the_system_are_named():
    with pytest.raises(SharedMemoryError, match=os.strerror(errno.ENAMETOOLONG)):
        Segment.create(PREFIX + "x" * 300, 4096)


@pytest.mark.parametrize("theirs", [
    "gazer-notes.txt", "gazer-0123abcd-test", "gazer-0123abcd-ledger.bak", "gazer-0123abcg-ledger",
])
def test_a_sweep_leaves_alone_what_only_begins_like_ours(theirs):
    """/dev/shm is everyone's: a capture or an output may lie there under any name."""
    path = Path(FOLDER, theirs)
    path.write_bytes(b"precious")
    try:
        assert theirs not in sweep()
        assert path.read_bytes() == b"precious"
    finally:
        path.unlink()
