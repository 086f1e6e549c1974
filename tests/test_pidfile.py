"""gazer.pidfile: one holder at a time, by its lock; nothing else is overwritten or removed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gazer.errors import OutputError, ProcessError
from gazer.pidfile import PidFile

ROOT = Path(__file__).resolve().parent.parent

HOLD = """
import sys
from gazer.pidfile import PidFile
with PidFile(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "gazer.pid")


def holder(path: str) -> subprocess.Popen[str]:
    """Another process that holds `path` until its stdin ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, path],
        cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    return process


def test_it_is_there_while_held_and_gone_after(path):
    with PidFile(path):
        assert Path(path).read_text() == f"{os.getpid()}\n"
        assert Path(path).stat().st_mode & 0o777 == 0o644 & ~_umask()
    assert not os.path.exists(path)


def test_it_goes_when_the_run_fails(path):
    with pytest.raises(RuntimeError), PidFile(path):
        raise RuntimeError
    assert not os.path.exists(path)


def test_a_second_instance_is_refused_in_one_line(path):
    with holder(path) as first:
        with pytest.raises(ProcessError) as caught, PidFile(path):
            pass
        assert caught.value.exit_code == 1
        assert str(caught.value) == (
            f"pid file {path}: another instance is running (pid {first.pid}); "
            "stop it first, or give this one a file of its own"
        )
        # The one that was refused has not removed it.
        assert Path(path).read_text() == f"{first.pid}\n"
        first.communicate()
    assert not os.path.exists(path)
    with PidFile(path):
        pass


def test_what_a_killed_one_left_is_taken_over(path):
    with holder(path) as first:
        first.send_signal(signal.SIGKILL)
    assert Path(path).read_text() == f"{first.pid}\n"
    with PidFile(path):
        assert Path(path).read_text() == f"{os.getpid()}\n"
    assert not os.path.exists(path)


@pytest.mark.parametrize("left", ["", "1\n", "ours\n", "  4194304  \n\n", "9" * 32])
def test_the_lock_decides_not_the_number(path, left):
    # Pid 1 is alive, and is not us: its number alone must not keep us out.
    Path(path).write_text(left.replace("ours", str(os.getpid())))
    with PidFile(path):
        assert Path(path).read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("content", ["root:x:0:0\n", "12 34\n", "-5\n", "9" * 33, "\0"])
def test_another_file_is_left_as_it_is(path, content):
    Path(path).write_text(content)
    with pytest.raises(OutputError, match="holds something else than a pid"), PidFile(path):
        pass
    assert Path(path).read_text() == content


def test_only_a_plain_file_will_do(path, tmp_path):
    target = tmp_path / "target"
    target.write_text("1\n")
    os.symlink(target, path)
    with pytest.raises(OutputError, match="is a link"), PidFile(path):
        pass
    assert target.read_text() == "1\n"
    os.unlink(path)
    os.mkfifo(path)
    with pytest.raises(OutputError, match="is not a plain file"), PidFile(path):
        pass
    with pytest.raises(OutputError, match="Is a directory"), PidFile(str(tmp_path)):
        pass
    with pytest.raises(OutputError) as caught, PidFile(str(tmp_path / "no\n" / "x")):
        pass
    assert str(caught.value) == f"pid file {tmp_path}/no\\n/x: No such file or directory"


def test_a_full_disk_is_told_and_nothing_stays_locked(path, monkeypatch):
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: 0)
    with pytest.raises(OutputError, match="No space left on device"), PidFile(path):
        pass
    monkeypatch.undo()
    with PidFile(path):
        pass


def test_a_file_that_is_no_longer_ours_stays(path):
    with PidFile(path):
        os.unlink(path)
        Path(path).write_text("77\n")
    assert Path(path).read_text() == "77\n"
    with PidFile(path):
        os.unlink(path)
    assert not os.path.exists(path)


def test_a_file_that_changes_between_open_and_lock_is_opened_again(path, monkeypatch):
    """The holder ends, removing its file, just after we opened that file."""
    Path(path).write_text("1\n")
    real = fcntl.flock
    removed = []

    def flock(fd, how):
        if not removed:
            removed.append(os.fstat(fd).st_ino)
            # Keep the inode in use, so that the new file cannot get its number again.
            os.rename(path, path + ".old")
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with PidFile(path):
        assert removed != [os.stat(path).st_ino]
        assert Path(path).read_text() == f"{os.getpid()}\n"
        assert Path(path + ".old").read_text() == "1\n"


def test_a_fork_of_the_holder_does_not_remove_it(path):
    with PidFile(path) as held:
        child = os.fork()
        if child == 0:
            held.__exit__(None, None, None)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert Path(path).read_text() == f"{os.getpid()}\n"


def test_children_do_not_inherit_the_lock(path):
    with PidFile(path) as held:
        assert not os.get_inheritable(held._fd)
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with PidFile(path):
            pass
    finally:
        child.kill()
        child.wait()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# --- looking --------------------------------------------------------------------------------------


def test_who_looks_is_told_what_who_takes_it_is(path):
    assert PidFile(path).refusal() is None      # not there
    assert not os.path.exists(path)
    Path(path).write_text("1234567\n")          # its process is dead
    assert PidFile(path).refusal() is None
    with holder(path) as first:
        assert PidFile(path).refusal() == (
            f"pid file {path}: another instance is running (pid {first.pid}); "
            "stop it first, or give this one a file of its own"
        )
        first.communicate()
    for make in (
        lambda: os.symlink("elsewhere", path),
        lambda: os.mkfifo(path),
        lambda: Path(path).write_text("a letter\n"),
    ):
        make()
        with pytest.raises(OutputError) as caught, PidFile(path):
            pass
        assert PidFile(path).refusal() == str(caught.value)
        os.unlink(path)


def test_who_takes_it_is_not_kept_away_by_who_looks(path, monkeypatch):
    """A look has the lock for microseconds: it is over at the next try."""
    Path(path).touch()
    looking = os.open(path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda seconds: os.close(looking))
    with PidFile(path):
        assert PidFile(path).refusal() is not None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(looking)
