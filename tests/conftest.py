"""What the tests of the whole share: the real commands, run as processes, each with a deadline.

After every run, whatever came of it: no traceback on stderr, no account that does not add up, and
no shared memory left of a run that has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import yaml

from tests.parallel import (
    pytest_collection_finish,
    pytest_collection_modifyitems,
    pytest_xdist_auto_num_workers,
    pytest_xdist_make_scheduler,
)

__all__ = [             # hooks, of pytest's
    "pytest_collection_finish", "pytest_collection_modifyitems", "pytest_xdist_auto_num_workers",
    "pytest_xdist_make_scheduler"]

if TYPE_CHECKING:
    from tests.observed import Terminal

pytest.register_assert_rewrite("tests.chaos", "tests.netns", "tests.resolver", "tests.sensor")

CAPTURES = Path(__file__).parent / "captures"
CAPTURE_FILES = sorted(p.name for p in CAPTURES.iterdir() if ".pcap" in p.name)
SHARED_MEMORY = Path("/dev/shm")
SWEPT = "removed shared memory that a dead run left: "
UID, GID = 61234, 61235         # of a user whom nobody knows
DEADLINE = 60.0     # seconds; a run takes half of one, on an idle machine

COMMANDS = {
    "dns-gazer": [sys.executable, "-c", "from gazer.compat import main; raise SystemExit(main())"],
    "gazer": [sys.executable, "-m", "gazer"],
    "stub": [sys.executable, "-m", "tests.service_stub"],
    "bash": ["bash"],
}


# `nohup make test &` ignores these, and so would all that is started here, for which they mean
# something.  A handler is nothing that a new program inherits.
for ignored in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(ignored) == signal.SIG_IGN:
        signal.signal(ignored, lambda *_: None)


def eventually(what: Callable[[], object], seconds: float = 10.0) -> object:
    """The first true answer of `what`, asked again and again; fails the test after the deadline."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what.__doc__ or what}")
        time.sleep(0.01)
    return answer


def ownerless() -> set[str]:
    """Segments of runs that are dead: whoever lives holds a lock on its own."""
    found = set()
    for path in SHARED_MEMORY.glob("gazer-*"):
        try:
            fd = os.open(path, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.add(path.name)
        except OSError:
            pass
        finally:
            os.close(fd)
    return found


def bound_by_permissions() -> dict[str, object]:
    """Options for a command that must obey the modes of files, though root may run the tests."""
    if os.geteuid() != 0:
        return {}
    libc = ctypes.CDLL(None)

    def drop() -> None:
        for capability in (1, 2):       # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            libc.prctl(24, capability, 0, 0, 0)     # PR_CAPBSET_DROP; exec takes it from there

    return {"preexec_fn": drop}


class Done:
    """A command that has ended."""

    def __init__(self, code: int, stdout: bytes, stderr: str) -> None:
        self.code = code
        self.stdout = stdout
        # Of other runs on this machine that someone killed; each start sweeps.
        self.stderr = stderr = re.sub(rf"gazer: {SWEPT}.*\n", "", stderr)
        assert "Traceback" not in stderr, stderr
        assert "add up" not in stderr, stderr
        assert "internal error" not in stderr, stderr

    @property
    def lines(self) -> list[str]:
        """Standard output as lines; the last one is complete."""
        return whole_lines(self.stdout)

    @property
    def said(self) -> list[str]:
        return self.stderr.splitlines()


def whole_lines(data: bytes) -> list[str]:
    assert data == b"" or data.endswith(b"\n"), f"half a line: {data[-80:]!r}"
    return data.decode("utf-8").split("\n")[:-1]


class Live:
    """A command that runs."""

    def __init__(self, process: subprocess.Popen[bytes], stderr: Path) -> None:
        self.process = process
        self.pid = process.pid
        self._stderr = stderr

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(errors="surrogateescape")

    def says(self, text: str, seconds: float = 20.0) -> None:
        """Wait until stderr has the text."""
        def has_said() -> bool:
            return text in self.stderr

        has_said.__doc__ = f"stderr has {text!r}"
        eventually(has_said, seconds)

    def parts(self) -> dict[str, psutil.Process]:
        """The processes by their name: gazer:sink, gazer:worker0, gazer:capture."""
        found = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess, OSError):
                    found[Path(f"/proc/{child.pid}/comm").read_text().strip()] = child
        return found

    def part(self, name: str) -> psutil.Process:
        """Wait until this process runs."""
        found = eventually(lambda: self.parts().get(name), 20.0)
        assert isinstance(found, psutil.Process)
        return found

    def segments(self) -> set[str]:
        """The shared memory that the supervisor holds, by the names that it had for a moment."""
        maps = Path(f"/proc/{self.pid}/maps").read_text()
        return set(re.findall(rf"{SHARED_MEMORY}/(gazer-\S+) \(deleted\)", maps))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = DEADLINE) -> Done:
        """Wait for its end.  What it wrote to standard output is in `stdout` if that is a pipe."""
        try:
            out, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"still running after {seconds} s; stderr: {self.stderr}")
        return Done(self.process.returncode, out or b"", self.stderr)


class Runner:
    """Runs the commands of one test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._live: list[Live] = []

    def start(self, *args: object, command: str = "dns-gazer", prefix: Sequence[str] = (),
              **options: object) -> Live:
        """Start it, in a session of its own, with a pipe as standard output unless told else.

        prefix: a command that becomes this one: tests.netns.Lab.argv([]).
        """
        stderr = self._folder / f"stderr{len(self._live)}"
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.PIPE)
        with stderr.open("wb") as errors:
            process = subprocess.Popen(  # type: ignore[call-overload]
                [*prefix, *COMMANDS[command], *map(str, args)], stderr=errors,
                start_new_session=True, **options,
            )
        live = Live(process, stderr)
        self._live.append(live)
        return live

    def __call__(self, *args: object, command: str = "dns-gazer", seconds: float = DEADLINE,
                 **options: object) -> Done:
        """Run it to its end."""
        return self.start(*args, command=command, **options).wait(seconds)

    def configured(self, config: dict[str, object], *args: object, seconds: float = DEADLINE,
                   **options: object) -> Done:
        """`gazer run` with this configuration."""
        path = self._folder / "sensor.yaml"
        path.write_text(yaml.safe_dump(config))
        return self("run", "-c", path, *args, command="gazer", seconds=seconds, **options)

    def end(self) -> None:
        for live in self._live:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(live.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                live.process.kill()
            live.process.wait()
            if live.process.stdout:
                live.process.stdout.close()


@pytest.fixture
def gazer(tmp_path: Path) -> Iterator[Runner]:
    """Runs dns-gazer and gazer; leaves no process, and finds out who leaves shared memory."""
    before = ownerless()
    folder = tmp_path / "run"
    folder.mkdir()
    runner = Runner(folder)
    try:
        yield runner
        if left := ownerless() - before:
            time.sleep(0.1)         # somebody else's had a name for a moment, and no lock yet
            left &= ownerless()
        assert not left, f"left in {SHARED_MEMORY}: {sorted(left)}"
    finally:
        runner.end()


class Fifo:
    """A FIFO that a test writes a capture to, piece by piece."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        # Both ways: opening does not wait for a reader, and there is a writer until close().
        self._fd = os.open(path, os.O_RDWR)

    def write(self, data: bytes) -> None:
        """Blocks while the pipe is full."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def close(self) -> None:
        """The reader finds the end."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@pytest.fixture
def ordinary() -> dict[str, object]:
    """Options for a command that is to be an ordinary user's."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else")
    options: dict[str, object] = {"user": UID, "group": GID, "extra_groups": []}
    try:
        subprocess.run([sys.executable, "-c", "import gazer.supervisor, psutil, yaml"], check=True,
                       capture_output=True, **options)  # type: ignore[call-overload]
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this Python can't be run by other users")
    return options


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Fifo]:
    made = Fifo(tmp_path / "fifo")
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def standing(gazer: Runner, fifo: Fifo) -> Live:
    """A run that has read half a capture and waits for more: every figure of it stands still."""
    from gazer.errors import GazerError
    from gazer.observe.find import find
    from gazer.observe.snapshot import Observer

    live = gazer.start("-r", fifo.path, "-t", fifo.path.with_name("out"), "--workers", 2)
    fifo.write((CAPTURES / "resolver.pcap").read_bytes()[:40_000])

    def read() -> bool:
        """all that was fed is written"""
        try:
            with find(live.pid) as found:
                observer = Observer(found.attach, found.pid)
                account = observer.snapshot().account
                observer.close()
        except GazerError:
            return False
        return account.workers["success"] == account.outputs[0]["events"] == 109

    eventually(read, 20.0)
    return live


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Starts commands in terminals of their own."""
    from tests.observed import Terminal

    made = []

    def start(*args: object, **options: object) -> Terminal:
        made.append(Terminal(*args, **options))     # type: ignore[arg-type]
        return made[-1]

    yield start
    for one in made:
        one.close()


@contextlib.contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """A file system of its own with room for so many KiB; skips where none can be mounted."""
    where = folder / "disk"
    where.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", where],
                             capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 64 KiB."""
    with small_disk(tmp_path, 64) as where:
        yield where
