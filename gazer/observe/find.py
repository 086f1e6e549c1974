"""Find a running sensor on this machine, and open what it shares, for reading only.

A sensor's segments may have lost their names, but its supervisor holds each of them open: the link
/proc/PID/fd/N says which one, and opening that link opens the segment itself. So who looks needs
the right to see into the supervisor, which its user has if the supervisor has no capabilities, and
root always; and whoever looks can change nothing.

Several processes may hold the same segments: the supervisor, its children, and for a moment another
who looks. The supervisor is the one whose children have the ledger's slots.

Rules
- A segment is mapped with PROT_READ and its descriptor closed at once, so that we are not taken for
  a part of the sensor.
- What a ledger says of its own size is checked against the segment before it is believed.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pwd
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from gazer.config.kinds import printable
from gazer.counters import MAX_OUTPUTS, Slot, ledger_bytes
from gazer.errors import ProcessError, SharedMemoryError, UsageError
from gazer.segment import FOLDER, PREFIX
from gazer.topology import Topology

PROC = Path("/proc")
_LINK = re.compile(rf"{FOLDER}/{PREFIX}([0-9a-f]{{8}})-([a-z]+[0-9]*)(?: \(deleted\))?")
_TITLE = "gazer:"   # how the names of a sensor's processes begin, for all to see


class Sensor:
    """A running sensor: its supervisor's pid, and its segments."""

    def __init__(self, pid: int, segments: dict[str, str]) -> None:
        self.pid = pid
        self._segments = segments               # name -> path below /proc
        self._maps: list[mmap.mmap] = []

    def __enter__(self) -> Sensor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def has(self, name: str) -> bool:
        """Whether there is such a segment."""
        return name in self._segments

    def attach(self, name: str) -> memoryview:
        """The memory of one segment, to be read only."""
        if name not in self._segments:
            raise SharedMemoryError(f"the sensor (pid {self.pid}) has no segment {name}")
        try:
            # Anybody may give a name like ours to a FIFO and hold that open: nothing waits for it.
            fd = os.open(self._segments[name],
                         os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except PermissionError:
            raise _forbidden(self.pid) from None
        except OSError:
            raise ProcessError(f"the sensor (pid {self.pid}) has just ended") from None
        try:
            memory = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise SharedMemoryError(f"can't map the sensor's {name}: {error}") from None
        finally:
            os.close(fd)
        self._maps.append(memory)
        return memoryview(memory)

    def close(self) -> None:
        """Let go of the memory; what still looks at it keeps it until it is gone itself."""
        for memory in self._maps:
            with contextlib.suppress(BufferError):
                memory.close()
        self._maps.clear()


def topology_of(ledger: memoryview) -> Topology:
    """What the run is made of, as its ledger says; SharedMemoryError if that can't be."""
    head = Slot(ledger, 0)
    run = head.run()
    head.release()
    # Which interfaces they are the ledger does not know; but that there are some.
    interfaces = ("",) * min(run["captures"], 64) if run["live"] else ()
    topology = Topology(run["captures"], run["workers"], 0, interfaces)
    if not 0 < topology.captures <= 64 or not 0 < topology.workers <= 1024:
        raise SharedMemoryError("a damaged ledger: its numbers of processes can't be")
    if run["outputs"] > MAX_OUTPUTS:
        raise SharedMemoryError("a damaged ledger: its number of outputs can't be")
    if len(ledger) < ledger_bytes(topology.processes):
        raise SharedMemoryError("a damaged ledger: it is smaller than it says")
    return topology


def find(pid: int | None = None, pid_file: str | None = None) -> Sensor:
    """The running sensor: the one with this process, the one of the pid file, or the only one.

    ProcessError if there is none, or none that may be looked at; UsageError if there are several.
    """
    if pid is None and pid_file is not None:
        pid = _pid_in(pid_file)
    if pid is not None:
        return _sensor_of(pid)
    found, hidden = _all()
    if len(found) == 1:
        return found[0]
    if found:
        pids = ", ".join(str(sensor.pid) for sensor in found)
        raise UsageError(f"several sensors run here, with the pids {pids}: name one with --pid")
    if hidden:
        raise _forbidden(hidden[0])
    raise ProcessError("no sensor runs on this machine")


def _pid_in(path: str) -> int:
    """The process that holds a pid file."""
    shown = printable(path)
    try:
        with open(path, "rb") as file:
            text = file.read(33).strip()
    except OSError as error:
        raise ProcessError(f"pid file {shown}: {error.strerror}") from None
    if not text.isdigit() or len(text) > 10:
        raise ProcessError(f"pid file {shown}: does not hold a pid")
    if not (PROC / str(int(text))).exists():
        raise ProcessError(f"pid file {shown}: no process has the pid {int(text)} any more")
    return int(text)


def _sensor_of(pid: int) -> Sensor:
    """The sensor that a process belongs to."""
    if not (PROC / str(pid)).exists():
        raise ProcessError(f"no process has the pid {pid}")
    for one in (pid, _parent(pid)):     # a child need not hold what it has mapped
        try:
            for token, segments in _held(one).items():
                holders = {one: segments}
                with contextlib.suppress(OSError):
                    holders[_parent(one)] = _held(_parent(one)).get(token, {})
                if sensor := _family(holders):
                    return sensor
        except PermissionError:
            raise ProcessError(f"process {pid} may not be looked into: do this as root") from None
        except OSError:
            continue
    raise ProcessError(f"process {pid} is not a sensor's")


def _all() -> tuple[list[Sensor], list[int]]:
    """The sensors that may be looked at, and the supervisors of those that may not."""
    families: dict[str, dict[int, dict[str, str]]] = {}
    hidden: set[int] = set()
    for entry in PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        pid = int(entry.name)
        try:
            for token, segments in _held(pid).items():
                families.setdefault(token, {})[pid] = segments
        except PermissionError:
            if _looks_like_ours(pid):
                parent = _parent(pid)
                hidden.add(parent if _looks_like_ours(parent) else pid)
        except OSError:     # it has just ended
            continue
    found = [sensor for holders in families.values() if (sensor := _family(holders))]
    return sorted(found, key=lambda sensor: sensor.pid), sorted(hidden)


def _family(holders: dict[int, dict[str, str]]) -> Sensor | None:
    """The sensor whose segments these processes hold: the one with its supervisor's pid."""
    for pid, segments in holders.items():
        if "ledger" not in segments:
            continue
        sensor = Sensor(pid, segments)
        with sensor, contextlib.suppress(ProcessError, SharedMemoryError):
            # Children that have just been forked hold the segments, and no slot yet; and one who
            # holds them alone is the supervisor of children that are not there just now.
            children = {*holders, *_pids(sensor.attach("ledger"))}
            if len(holders) == 1 or pid in map(_parent, children):
                return Sensor(pid, segments)
    return None


def _pids(ledger: memoryview) -> Iterator[int]:
    """The processes that have the ledger's slots."""
    for number in range(topology_of(ledger).processes):
        slot = Slot(ledger, number)
        pid = slot.pid
        slot.release()
        if pid:
            yield pid


def _held(pid: int) -> dict[str, dict[str, str]]:
    """The segments that a process holds: token -> name -> path.  OSError if it can't be seen."""
    found: dict[str, dict[str, str]] = {}
    folder = f"{PROC}/{pid}/fd"
    for fd in os.listdir(folder):
        try:
            match = _LINK.fullmatch(os.readlink(f"{folder}/{fd}"))
        except FileNotFoundError:   # closed meanwhile
            continue
        if match:
            found.setdefault(match[1], {})[match[2]] = f"{folder}/{fd}"
    return found


def _parent(pid: int) -> int:
    """The parent's pid, 0 if there is none to be seen."""
    try:
        text = (PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return 0
    return int(text.rpartition(b")")[2].split()[1])


def _looks_like_ours(pid: int) -> bool:
    """By what everyone may see of a process: a name that only a sensor's have."""
    for name in ("comm", "cmdline"):
        with contextlib.suppress(OSError):
            if (PROC / str(pid) / name).read_bytes().startswith(_TITLE.encode()):
                return True
    return False


def _forbidden(pid: int) -> ProcessError:
    who = "root"
    with contextlib.suppress(OSError, KeyError):
        owner = (PROC / str(pid)).stat().st_uid
        if owner not in (0, os.geteuid()):
            who = f"{pwd.getpwuid(owner).pw_name} or root"
    return ProcessError(f"a sensor runs (pid {pid}) that you may not look into: do this as {who}")
