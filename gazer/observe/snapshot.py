"""All that can be known of a running sensor at one moment, and whether its account adds up.

Each slot of the ledger is read at one of its commits. The slots are read against the stream, the
sink first and capture last: what was in flight between two processes then shows as a difference of
their counters that is never negative. Such differences are named (`Standing.in_flight`); all other
balances hold at every commit, but for one case. A worker that waits for the sink commits in the
middle of a frame, and what it has in hand is then counted in part. So while one waits, a sum that
does not hold is no proof of anything.

Rates are differences of two snapshots over the monotonic time between them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import psutil

from gazer import counters
from gazer.config.kinds import printable
from gazer.counters import Slot
from gazer.observe.find import topology_of
from gazer.observe.table import GAUGES
from gazer.ring import Ring
from gazer.summary import Account

TRIES = 4           # looks at a balance before it counts as broken
BETWEEN = 0.05      # seconds between them

# What Account.in_flight tells apart; the others are events on their way to an output.
IN_FLIGHT = {
    "kernel": "frames in the kernel's buffers",
    "capture": "frames in the hand of capture",
    "frames": "frames on their way to workers",
    "events": "events on their way to the sink",
}



@dataclass(frozen=True, slots=True)
class Process:
    """One process of the sensor.

    state: as it says itself, "missing" where there is none, "absent" where none is meant to be.
    silent: seconds since its last sign of life; waited: for which it has waited for room
    downstream or for its outputs; starts: processes that have had this place.
    age: seconds that it has lived.  cpu: seconds of CPU time.  resident, shared: bytes of memory.
    These are known of a process with a name: /proc may hide one that runs (hidepid).
    """

    role: str
    index: int
    pid: int
    name: str
    state: str
    silent: float = 0.0
    starts: int = 1
    age: float = 0.0
    cpu: float = 0.0
    resident: int = 0
    shared: int = 0
    waited: float = 0.0

    @property
    def label(self) -> str:
        """As in "worker 2": the number where there may be several."""
        return f"{self.role} {self.index}" if self.role in ("capture", "worker") else self.role


@dataclass(frozen=True, slots=True)
class Fill:
    """How full a ring is, in bytes.  capture: the process that fills a frame ring."""

    kind: str
    worker: int
    filled: int
    capacity: int
    capture: int = 0

    @property
    def share(self) -> float:
        return self.filled / self.capacity


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether the account adds up just now: what is in flight, and the sums that do not hold.

    waiting: a worker waited for the sink meanwhile, so that sums may be open.
    """

    in_flight: Mapping[str, int]
    broken: tuple[str, ...]
    waiting: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The sensor at one moment; `time` is monotonic, `wall` the time of day.  names: of the
    outputs, as far as they are known."""

    time: float
    wall: float
    run: Mapping[str, int]
    account: Account
    captures: tuple[Mapping[str, int], ...]     # counters of each
    workers: tuple[Mapping[str, int], ...]
    supervisor: Mapping[str, int]
    processes: tuple[Process, ...]
    rings: tuple[Fill, ...]
    names: tuple[str, ...] = ()

    def output(self, number: int) -> str:
        """As in "output /var/log/dns.log"; without a name, its number."""
        name = self.names[number] if number < len(self.names) else ""
        return f"output {name or number}"

    def blocked(self, number: int) -> float:
        """For how many seconds this output has had work and taken nothing; 0: it moves."""
        since = self.account.outputs[number]["blocked_since"]
        return max(0.0, self.time - since / 1e9) if since else 0.0

    def standing(self) -> Standing:
        """What is in flight, and what does not add up."""
        waiting = any(p.role == "worker" and p.state == "waiting" for p in self.processes)
        return standing(self.account, captures=len(self.captures), waiting=waiting)

    def dropped(self) -> dict[str, int]:
        """Frames and events that were lost, by where."""
        c = self.account.capture
        return {
            "kernel": c["kernel_dropped"] + c["kernel_lost"],
            "interface": c["interface_dropped"],
            "ring": c["ring_dropped"],
            "output": sum(output["dropped"] for output in self.account.outputs),
            "spool": sum(
                output["spool_dropped"] + output["spool_damaged"]
                for output in self.account.outputs),
        }


def standing(account: Account, *, captures: int = 1, waiting: bool = False) -> Standing:
    """The balances of a sensor that runs, with so many capture processes."""
    w = account.workers
    flying = account.in_flight()
    broken = [*account.imbalances(running=True)]
    if flying["capture"] > captures:        # each has one frame in hand at most
        broken.append(f"frames in hand: {flying['capture']}, of {captures} capture processes")
    return Standing(
        {IN_FLIGHT.get(name, f"events on their way to {name}"): n for name, n in flying.items()}
        | {
            "pieces of datagrams waiting": account.capture["waiting_pieces"],
            "queries waiting for replies": w["pending"],
            "zone transfers under way": w["transferring"],
            "octets of streams waiting": w["octets_buffered"],
        },
        tuple(broken), waiting,
    )  # fmt: skip


class Observer:
    """Takes snapshots of one sensor.

    attach: gives the memory of a segment by its name, as Sensor.attach does.
    supervisor: its pid.  `close` before the memory is let go of.
    """

    def __init__(self, attach: Callable[[str], memoryview], supervisor: int) -> None:
        ledger = attach("ledger")
        self.topology = topology_of(ledger)
        self._supervisor = supervisor
        self._slots = {n: Slot(ledger, n) for n in range(self.topology.processes)}
        self.run = self._slots[0].run()
        self._names = tuple(map(printable, self._slots[0].output_names()))
        self._seen: dict[int, psutil.Process] = {}
        top = self.topology
        frames = [(c, w) for w in range(top.workers) for c in range(top.captures)]
        self._rings = [
            *(("frames", c, w, Ring(attach(top.frames(c, w)))) for c, w in frames),
            *(("events", 0, w, Ring(attach(top.events(w)))) for w in range(top.workers)),
        ]

    def close(self) -> None:
        for *_, ring in self._rings:
            ring.release()
        for slot in self._slots.values():
            slot.release()

    def snapshot(self) -> Snapshot:
        """The sensor as it is now."""
        top = self.topology
        numbers = [top.sink, *map(top.worker, range(top.workers)), *range(top.captures),
                   top.observer, top.supervisor]
        seen = {number: self._slots[number].seen() for number in numbers}
        processes = tuple(self._processes(seen))
        self._seen = {p.pid: self._seen[p.pid] for p in processes if p.name}
        snapshot = Snapshot(
            time=time.monotonic(),
            wall=time.time(),
            run=self.run,
            account=Account.read(seen, top, self.run["outputs"]),
            captures=tuple(seen[i].read(counters.CAPTURE) for i in range(top.captures)),
            workers=tuple(
                seen[top.worker(i)].read(counters.WORKER) for i in range(top.workers)),
            supervisor=seen[top.supervisor].read(counters.SUPERVISOR),
            processes=processes,
            rings=tuple(Fill(kind, worker, ring.filled, ring.capacity, capture)
                        for kind, capture, worker, ring in self._rings),
            names=self._names,
        )
        for slot in seen.values():
            slot.release()
        return snapshot

    def settled(self) -> tuple[Snapshot, Standing]:
        """A snapshot and its standing.  A sum that does not hold is looked at again first: this
        many times in a row it is wrong by mistake, not by chance."""
        for left in reversed(range(TRIES)):
            snapshot = self.snapshot()
            found = snapshot.standing()
            if not found.broken or not left:
                break
            time.sleep(BETWEEN)
        return snapshot, found

    def _processes(self, seen: Mapping[int, Slot]) -> Iterator[Process]:
        top = self.topology
        yield self._process("supervisor", 0, self._supervisor, None)
        for i in range(top.captures):
            yield self._process("capture", i, seen[i].pid, seen[i])
        for i in range(top.workers):
            slot = seen[top.worker(i)]
            yield self._process("worker", i, slot.pid, slot)
        yield self._process("sink", 0, seen[top.sink].pid, seen[top.sink])
        if seen[top.observer].starts:
            yield self._process("metrics", 0, seen[top.observer].pid, seen[top.observer])

    def _process(self, role: str, index: int, pid: int, slot: Slot | None) -> Process:
        """What the system knows of it, beside what it says itself."""
        starts = slot.starts if slot else 1
        silent = waited = 0.0
        if slot and slot.heartbeat:
            silent = max(0.0, (time.monotonic_ns() - slot.heartbeat) / 1e9)
        if slot and slot.waiting_since:
            waited = max(0.0, (time.monotonic_ns() - slot.waiting_since) / 1e9)
        state = slot.state if slot else "running"
        missing = Process(role, index, pid, "", "missing", silent, starts)
        try:
            # Known ones are kept: psutil looks up anew when a process began each time.
            if pid not in self._seen:
                self._seen[pid] = psutil.Process(pid)
            process = self._seen[pid]
            with process.oneshot():
                ours = role == "supervisor" or process.ppid() == self._supervisor
                if pid and ours and process.status() != psutil.STATUS_ZOMBIE:
                    times, memory = process.cpu_times(), process.memory_info()
                    return Process(
                        role, index, pid, process.name(), state, silent, starts, _age(pid),
                        times.user + times.system, memory.rss, memory.shared, waited,
                    )
                return missing
        except psutil.ZombieProcess:
            return missing
        except (psutil.Error, OSError):
            # Gone; or hidden, as all others are from the one that serves metrics if /proc hides
            # what one may not trace.
            return replace(missing, state=state, waited=waited) if _lives(pid) else missing


def _age(pid: int) -> float:
    """For how many seconds the process has lived, whatever was done to the time of day."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        began = int(file.read().rpartition(b")")[2].split()[19])
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK"))


def _lives(pid: int) -> bool:
    """Whether there is such a process, seen or not."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def growth(old: Mapping[str, int], new: Mapping[str, int], names: Sequence[str] = ()) -> dict[
        str, int]:
    """By how much each counter grew; a gauge is what it is, and nothing goes back."""
    return {
        name: new[name] if name in GAUGES else max(0, new[name] - old.get(name, 0))
        for name in names or new
    }


def parts(values: Mapping[str, int], prefix: str) -> dict[str, int]:
    """Of counters that are one for each of something ("fate.dns"): those above zero, by what."""
    return {
        name.removeprefix(prefix): n for name, n in values.items() if name.startswith(prefix) and n
    }


def quantile(buckets: Mapping[float, int], q: float) -> float | None:
    """The q-th quantile of a histogram, upper bound -> how many; None of nothing.

    Between two bounds all values count as spread evenly: the answer is as exact as the buckets.
    """
    total = sum(buckets.values())
    if not total:
        return None
    wanted, below, lower = q * total, 0, 0.0
    for bound, n in sorted(buckets.items()):
        if n and below + n >= wanted:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (wanted - below) / n
        below += n
        lower = bound
    return lower


