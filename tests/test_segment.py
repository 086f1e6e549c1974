"""Shared segments: made whole, found by name, gone when they should be and not before."""

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


OWNER = """
    import sys
    from gazer.segment import Segment
    s = Segment.create(sys.argv[1], 100_000)
    print("ready", flush=True)
    sys.stdin.read()
    s.close()
"""


@pytest.fixture
def name():
    name = new_name()
    yield name
    if exists(name):
        os.unlink(f"{FOLDER}/{name}")


@pytest.fixture
def owner(name):
    """A live process that owns the segment `name`."""
    process = python(OWNER, name)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    yield process
    if process.returncode is None:
        process.kill()
        process.communicate()


# --- making --------------------------------------------------------------------------------------


def test_a_new_segment_is_zeroed_reserved_and_ours_alone(name):
    size = 300_000
    made = Segment.create(name, size)
    assert (made.name, made.size, len(made.buf)) == (name, size, size)
    assert bytes(made.buf) == bytes(size)
    stat = os.stat(f"{FOLDER}/{name}")
    assert stat.st_blocks * 512 >= size
    assert stat.st_mode & 0o777 == 0o600
    made.close()
    assert not exists(name)


def test_pages_are_reserved_before_any_is_touched(name):
    """Without this a full /dev/shm kills some process at some later time (SIGBUS)."""
    made = Segment.create(name, 8 << 20)
    assert os.stat(f"{FOLDER}/{name}").st_blocks * 512 >= 8 << 20
    made.close()


def test_a_name_is_not_taken_twice(name):
    made = Segment.create(name, 4096)
    made.buf[0] = 7
    with pytest.raises(SharedMemoryError, match="File exists"):
        Segment.create(name, 4096)
    assert exists(name) and made.buf[0] == 7
    made.close()


def test_what_an_attached_process_writes_the_owner_sees(name):
    made = Segment.create(name, 4096)
    other = Segment.attach(name)
    other.buf[100] = 42
    assert made.buf[100] == 42
    other.close()
    assert exists(name)
    made.close()


def test_names_gone_before_their_owner_closes_are_no_error(name, capfd):
    code = """
        import os, sys
        from gazer.segment import Segment
        s = Segment.create(sys.argv[1], 4096)
        os.unlink("/dev/shm/" + sys.argv[1])
        s.close()
        s.close()
    """
    process = python(code, name)
    assert process.communicate() == ("", "")
    assert process.returncode == 0


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
    if os.geteuid() != 0:
        pytest.skip("needs root, for a mount namespace")
    command = ["unshare", "--mount", "sh", "-c",
               'mount -t tmpfs -o size=256k tmpfs /dev/shm || exit 77; exec "$@"', "sh",
               sys.executable, "-c", textwrap.dedent(code), name]
    try:
        done = subprocess.run(command, capture_output=True, text=True,
                              cwd=Path(segment.__file__).parents[1])
    except FileNotFoundError:
        pytest.skip("needs unshare (util-linux)")
    if done.returncode == 77 or done.stderr.startswith("unshare: "):
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.stderr == ""
    error, during, after = done.stdout.splitlines()
    assert one_line(error)
    assert "no room in /dev/shm for 200 KiB more" in error
    assert "mount -o remount,size=" in error and "ring.size smaller" in error
    assert during == str([f"{name}a"])
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


# --- attaching -----------------------------------------------------------------------------------


def test_what_is_not_there_is_one_line(name):
    with pytest.raises(SharedMemoryError, match=f"{name} is gone"):
        Segment.attach(name)


def test_an_empty_segment_is_one_line_and_stays(name):
    Path(FOLDER, name).touch()
    with pytest.raises(SharedMemoryError, match="can't attach"):
        Segment.attach(name)
    assert exists(name)


def test_unrelated_processes_that_attach_and_exit_leave_a_live_segment_alone(name):
    """A hundred processes, each way of ending; before 3.13 their trackers would have removed it."""
    code = """
        import os, sys
        from gazer.segment import Segment
        for i in range(int(sys.argv[2])):
            if os.fork() == 0:
                s = Segment.attach(sys.argv[1])
                s.buf[i] = 1
                if i % 3 == 0:
                    s.close()
                if i % 3 != 1:
                    sys.exit(0)         # as an interpreter ends, with or without close()
                os._exit(0)
            os.wait()
        s = Segment.attach(sys.argv[1])
        s.close()
    """
    made = Segment.create(name, 4096)
    for _ in range(10):
        process = python(code, name, 9)
        assert process.communicate() == ("", "")
        assert process.returncode == 0
        assert exists(name)
    assert bytes(made.buf[:10]) == b"\1" * 9 + b"\0"
    Segment.attach(name).close()
    made.close()
    assert not exists(name)


def test_an_attach_that_fails_leaves_a_live_segment_alone(name):
    """multiprocessing's own constructor unlinks what it can't map."""
    made = Segment.create(name, 64 << 20)
    process = python("""
        import resource, sys
        from gazer.errors import SharedMemoryError
        from gazer.segment import Segment
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20),) * 2)
        try:
            Segment.attach(sys.argv[1])
        except SharedMemoryError as error:
            print(error)
    """, name)
    out, err = process.communicate()
    assert err == ""
    assert "can't attach" in out and "Cannot allocate memory" in out
    assert exists(name)
    made.close()


def test_descriptors_and_mappings_are_given_back(name):
    def in_use():
        maps = Path("/proc/self/maps").read_text().count(PREFIX)
        return len(os.listdir("/proc/self/fd")), maps

    Segment.create(name, 4096).close()
    before = in_use()
    for _ in range(50):
        made = Segment.create(name, 4096)
        Segment.attach(name).close()
        made.close()
    with pytest.raises(SharedMemoryError):
        Segment.create("gazer-no/such/folder", 4096)
    assert in_use() == before


# --- sweeping ------------------------------------------------------------------------------------


def test_sweep_leaves_what_a_live_process_holds(owner, name):
    assert name not in sweep()
    assert exists(name)
    owner.communicate()                 # the end of its input ends it
    assert owner.returncode == 0
    assert not exists(name)


def test_sweep_removes_what_a_dead_process_left(name):
    process = python(OWNER, name, start_new_session=True)
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert exists(name)
    assert name in sweep()
    assert not exists(name)
    assert name not in sweep()


def test_an_attached_process_does_not_keep_a_dead_owner_s_segment(name):
    """A child that outlives its owner for a moment must not make the sweep miss the segment."""
    process = python(OWNER, name, start_new_session=True)
    assert process.stdout.readline() == "ready\n"
    attached = Segment.attach(name)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert name in sweep()
    attached.close()


def test_a_forked_child_that_forgot_its_owner_s_segments_holds_none_of_them(name):
    """It shares the owner's lock until it forgets; then the owner's life alone counts."""
    process = python("""
        import os, signal, sys
        from gazer.segment import Segment
        s = Segment.create(sys.argv[1], 100_000)
        if os.fork() == 0:
            s.forget()
            print("forgot", flush=True)
            os.read(0, 1)
            os._exit(0)
        signal.pause()
    """, name)
    assert process.stdout.readline() == "forgot\n"
    assert exists(name) and name not in sweep()
    process.kill()
    process.wait()
    assert name in sweep()                  # while the child still lives
    process.communicate()                   # the end of its input ends it


def test_no_resource_tracker_is_started(owner, name):
    """It would be one more process at each start, for what `sweep` does."""
    assert exists(name)
    assert psutil.Process(owner.pid).children() == []


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
    path = f"{FOLDER}/{name}"
    real, swept = segment.fcntl.flock, []

    def flock(fd, how):
        if how == segment.fcntl.LOCK_EX and len(swept) < 3:     # the owner's, not the sweep's
            swept.append(name in sweep())
        return real(fd, how)

    monkeypatch.setattr(segment.fcntl, "flock", flock)
    made = Segment.create(name, 4096)
    assert swept == [True, True, True]
    assert os.stat(path).st_size == 4096
    made.buf[0] = 1
    other = Segment.attach(name)
    assert other.buf[0] == 1
    other.close()
    assert name not in sweep()
    made.close()
    assert not exists(name)


def test_a_slow_sweep_does_not_take_what_was_made_meanwhile(name, monkeypatch):
    """It lists and opens a dead one's segment; by the time that it locks, the name is another's."""
    path = Path(FOLDER, name)
    path.touch()
    real, made = segment.fcntl.flock, []

    def flock(fd, how):
        if how & segment.fcntl.LOCK_NB and not made and os.path.samestat(
                os.fstat(fd), os.stat(path)):
            path.unlink()                       # by another sweep, a little faster
            made.append(None)
            made[0] = Segment.create(name, 4096)
        return real(fd, how)

    monkeypatch.setattr(segment.fcntl, "flock", flock)
    assert name not in sweep()
    assert made and exists(name)
    made[0].close()


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
            try:
                assert exists(name)
                Segment.attach(name).close()
                assert exists(name)
            finally:
                made.close()
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
