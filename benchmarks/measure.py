"""One run of a command, measured: wall, CPU in all and of each process, peak memory of the tree.

How
- CPU in all: what the kernel accounts to the command and all it waited for (wait4), plus the
  same of descendants that outlived it (we are their subreaper). Exact.
- CPU of each process: its POSIX CPU clock (clock_getcpuclockid(3)), read every few milliseconds;
  the last reading counts. What no reading saw (mostly a process's last milliseconds and those that
  ended unseen) is the difference to the whole.
- A process's role is its title (/proc/PID/comm): `gazer:capture`, `gazer:worker0`, `gazer:sink`.
- Memory: PSS over all processes at one moment, the largest of these sums. Shared memory counts as
  what is allocated in /dev/shm, if that is more than what the processes have touched of it.

Rules
- Time and memory are measured in different runs: reading PSS walks page tables under the lock that
  page faults need, and costs what is to be measured.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import psutil

CPU_EVERY = 0.004
TREE_EVERY = 0.030
MEMORY_EVERY = 0.020
GRACE = 3.0  # seconds for descendants that outlive the command
MB = 1e6

_PR_SET_CHILD_SUBREAPER = 36
_ROLLUP = re.compile(rb"^(Pss|Pss_Shmem):\s+(\d+) kB", re.MULTILINE)
_MAPPED = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)\s+(/dev/shm/.*)$", re.MULTILINE)
# How a status stands in text, in JSON without blanks and in msgpack (two short strings).
_MARKS = {
    status: (
        b'"status": "%s"' % status.encode(),
        b'"status":"%s"' % status.encode(),
        b"\xa6status" + bytes((0xA0 | len(status),)) + status.encode(),
    )
    for status in ("success", "no_reply", "no_query")
}
_HAS_CHILDREN = os.path.exists(f"/proc/self/task/{os.getpid()}/children")


class Failed(Exception):
    """The command did not do its work; the text is one line for the operator."""


@dataclasses.dataclass
class Run:
    wall: float = 0.0
    cpu: float = 0.0
    roles: dict[str, float] = dataclasses.field(default_factory=dict)  # CPU seconds
    peak: float = 0.0  # bytes; 0 where memory was not measured
    peak_roles: dict[str, float] = dataclasses.field(default_factory=dict)  # without shared memory
    peak_shared: float = 0.0
    left_behind: int = 0  # processes that had to be killed after the command's end
    output: Output | None = None
    stdout: bytes = b""
    stderr: str = ""


@dataclasses.dataclass
class Output:
    """What came out on a stream, counted as it passed."""

    size: int = 0
    lines: int = 0
    success: int = 0
    no_reply: int = 0
    no_query: int = 0
    digest: str = ""

    def read(self, stream: IO[bytes]) -> None:
        digest = hashlib.sha256()
        rest = b""
        while block := stream.read(1 << 20):
            digest.update(block)
            self.size += len(block)
            # Cut at a line's end, which no mark contains, so that none is cut in two.
            block = rest + block
            end = block.rfind(b"\n") + 1
            whole, rest = block[:end], block[end:]
            self._count(whole)
        self._count(rest)
        self.digest = digest.hexdigest()

    def _count(self, text: bytes) -> None:
        self.lines += text.count(b"\n")
        for status, marks in _MARKS.items():
            number = sum(text.count(mark) for mark in marks)
            setattr(self, status, getattr(self, status) + number)


def _descendants(pid: int) -> list[int]:
    if not _HAS_CHILDREN:
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children(recursive=True)]
        return []
    found: list[int] = []
    todo = [pid]
    while todo:
        parent = todo.pop()
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children") as file:
                    children = [int(child) for child in file.read().split()]
                found += children
                todo += children
    return found


def _role(pid: int) -> str:
    try:
        comm = Path(f"/proc/{pid}/comm").read_text().strip()
        if comm.startswith("python"):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"resource_tracker" in command:
                return "resource tracker"
    except OSError:
        return ""
    return comm


def cpu_clock(pid: int) -> int:
    """The id of a process's CPU clock, as clock_getcpuclockid(3) makes it on Linux."""
    return (~pid << 3) | 2


class Tree:
    """The processes of one run: who they are and what they have used."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.roles: dict[int, str] = {root: "command"}
        self.cpu: dict[int, float] = {}
        self.gone: set[int] = set()

    def look(self) -> None:
        """Find new processes; read the title of those that have not set theirs yet."""
        for pid in _descendants(self.root):
            role = self.roles.get(pid, "")
            if not role.startswith("gazer:"):
                self.roles[pid] = _role(pid) or role

    def read_cpu(self) -> None:
        for pid in self.roles:
            if pid not in self.gone:
                try:
                    self.cpu[pid] = time.clock_gettime(cpu_clock(pid))
                except OSError:
                    self.gone.add(pid)

    def read_memory(self) -> tuple[float, dict[str, float], float]:
        """The sum of PSS in bytes, the part of each role without shared memory, the shared."""
        private: dict[str, float] = {}
        touched = 0.0
        segments: dict[str, float] = {}
        for pid, role in self.roles.items():
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_bytes()
                maps = Path(f"/proc/{pid}/maps").read_text()
            except OSError:
                continue
            values = {name: int(value) * 1024 for name, value in _ROLLUP.findall(rollup)}
            shared = values.get(b"Pss_Shmem", 0)
            touched += shared
            private[role] = private.get(role, 0.0) + values.get(b"Pss", 0) - shared
            for start, end, inode, path in _MAPPED.findall(maps):
                if inode not in segments:
                    try:
                        segments[inode] = os.stat(path).st_blocks * 512
                    except OSError:  # unlinked already: at most what is mapped of it
                        segments[inode] = int(end, 16) - int(start, 16)
        shared = max(touched, sum(segments.values()))
        return sum(private.values()) + shared, private, shared


@contextlib.contextmanager
def _subreaper() -> Iterator[None]:
    """Orphans among the descendants become ours; afterwards no more, since who calls may have
    others, which are not to stay with it."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def run(
    command: Sequence[str],
    *,
    feed: Sequence[str] | None = None,
    memory: bool = False,
    count_output: bool = False,
    keep_stdout: bool = False,
) -> Run:
    """Run a command and measure it; `feed` is a command that writes its standard input.

    Raises Failed where the command cannot be started or ends with another code than 0.
    """
    result = Run()
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as kept, _subreaper():
        feeder = subprocess.Popen(feed, stdout=subprocess.PIPE) if feed else None
        began = time.perf_counter()
        try:
            process = subprocess.Popen(
                command,
                stdin=feeder.stdout if feeder else subprocess.DEVNULL,
                stdout=subprocess.PIPE if count_output else kept,
                stderr=errors,
            )
        except OSError as error:
            if feeder:
                feeder.kill()
                feeder.wait()
            raise Failed(f"{command[0]}: cannot be started: {error.strerror}") from error
        if feeder and feeder.stdout:
            feeder.stdout.close()
        reader = None
        if count_output:
            assert process.stdout is not None
            result.output = Output()
            reader = threading.Thread(
                target=result.output.read, args=(process.stdout,), daemon=True
            )
            reader.start()
        tree = Tree(process.pid)
        try:
            code = _watch(process.pid, tree, result, memory, began)
        except BaseException:
            _end(process.pid, tree)
            raise
        finally:
            if feeder:
                try:
                    feeder.wait(GRACE)
                except subprocess.TimeoutExpired:
                    feeder.kill()
                    feeder.wait()
        process.returncode = code  # it is reaped: subprocess must not wait for it
        if reader:
            reader.join()
            assert process.stdout is not None
            process.stdout.close()
        errors.seek(0)
        result.stderr = errors.read().decode(errors="replace")
        if keep_stdout:
            kept.seek(0)
            result.stdout = kept.read()
    if code:
        lines = result.stderr.strip().splitlines() or ["(nothing on standard error)"]
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise Failed(f"`{' '.join(command)}` {how}: {lines[-1]}")
    if feeder and feeder.returncode:
        raise Failed(f"`{' '.join(command)}` did not read its input to the end")
    for pid, used in tree.cpu.items():
        role = tree.roles[pid]
        result.roles[role] = result.roles.get(role, 0.0) + used
    return result


def _watch(root: int, tree: Tree, result: Run, memory: bool, began: float) -> int:
    """Sample until the command has ended; its exit code (negative: a signal)."""
    descriptor = os.pidfd_open(root)
    next_look = next_memory = 0.0
    try:
        while True:
            now = time.perf_counter()
            if now >= next_look:
                tree.look()
                next_look = now + (TREE_EVERY if now - began < 2 else 5 * TREE_EVERY)
            if memory and now >= next_memory:
                total, private, shared = tree.read_memory()
                if total > result.peak:
                    result.peak, result.peak_roles, result.peak_shared = total, private, shared
                next_memory = time.perf_counter() + MEMORY_EVERY
            tree.read_cpu()
            if select.select([descriptor], [], [], CPU_EVERY)[0]:
                break
        tree.read_cpu()
    finally:
        os.close(descriptor)
    _, status, usage = os.wait4(root, 0)
    result.wall = time.perf_counter() - began
    result.cpu = usage.ru_utime + usage.ru_stime
    result.cpu += _reap(tree, result)
    return os.waitstatus_to_exitcode(status)


def _reap(tree: Tree, result: Run) -> float:
    """Wait for descendants that outlived the command; their CPU seconds."""
    cpu = 0.0
    until = time.monotonic() + GRACE
    waiting = set(tree.roles) - {tree.root}
    while waiting:
        for pid in list(waiting):
            try:
                done, _, usage = os.wait4(pid, os.WNOHANG)
            except ChildProcessError:  # its own parent has waited for it
                waiting.discard(pid)
                continue
            if done:
                cpu += usage.ru_utime + usage.ru_stime
                waiting.discard(pid)
        if waiting and time.monotonic() > until:
            for pid in waiting:
                os.kill(pid, signal.SIGKILL)
                os.wait4(pid, 0)
            result.left_behind = len(waiting)
            break
        if waiting:
            time.sleep(0.002)
    return cpu


def _end(root: int, tree: Tree) -> None:
    """After an interrupt: nothing that was started here goes on. Each is asked to end first, for
    then it can clean up after itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(root, signal.SIGTERM)
    until = time.monotonic() + GRACE
    with contextlib.suppress(ChildProcessError):
        while not os.waitpid(root, os.WNOHANG)[0]:
            if time.monotonic() > until:
                os.kill(root, signal.SIGKILL)
                os.waitpid(root, 0)
                break
            time.sleep(0.01)
    _reap(tree, Run())


def machine() -> dict[str, str | int | float]:
    """Where the figures come from."""
    model = ""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = found[1] if found else ""
    return {
        "cpu": model or os.uname().machine,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": os.uname().release,
        "python": sys.version.split()[0],
        "load": round(os.getloadavg()[0], 2),
    }
