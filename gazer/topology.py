"""From a Config to the processes and rings that it takes.  Starts nothing.

    capture 0 ──frame ring (0, 0)──▶ worker 0 ──event ring 0──▶ sink
              ──frame ring (0, 1)──▶ worker 1 ──event ring 1──▶
    capture 1 ──frame ring (1, 0)──▶ worker 0
              ──frame ring (1, 1)──▶ worker 1

A run over files has one capture process; a live one has `capture.processes` for each interface.
There is one frame ring for each pair of capture process and worker.

Slots of the ledger and bells are numbered the same: first the capture processes, then the sink,
the workers, the process that serves metrics (whether there is one or not), the supervisor.
"""

from __future__ import annotations

from dataclasses import dataclass

from gazer.config import Config
from gazer.counters import ledger_bytes
from gazer.ring import ring_bytes
from gazer.workers.sample import SAMPLES_BYTES


@dataclass(frozen=True, slots=True)
class Part:
    """A process: its role, the number of its ledger slot and bell, its name (comm).

    index: which of its role.  interface: what a capture process of a live run watches.
    """

    role: str
    number: int
    name: str
    index: int = 0
    interface: str = ""

    @property
    def title(self) -> str:
        """What `ps` shows as its command line: "gazer: worker 2", "gazer: capture eth0"."""
        name = self.name.removeprefix("gazer:")
        which = name.removeprefix(self.role)
        words = ["gazer:", self.role]
        if self.interface:
            words.append(self.interface)
        return " ".join([*words, which] if which else words)


@dataclass(frozen=True, slots=True)
class Topology:
    """What a run is made of."""

    captures: int
    workers: int
    ring_capacity: int
    interfaces: tuple[str, ...] = ()    # of each capture process; none for files
    metrics: bool = False

    @classmethod
    def of(cls, config: Config) -> Topology:
        interfaces = tuple(
            name for name in config.capture.interfaces for _ in range(config.capture.processes)
        )
        return cls(
            max(1, len(interfaces)), config.worker_count(), config.ring.size, interfaces,
            bool(interfaces and config.metrics.listen),
        )

    @property
    def sink(self) -> int:
        """The sink's number."""
        return self.captures

    def worker(self, index: int) -> int:
        """A worker's number."""
        return self.captures + 1 + index

    @property
    def observer(self) -> int:
        """The number of the process that serves metrics."""
        return self.captures + 1 + self.workers

    @property
    def supervisor(self) -> int:
        """The supervisor's number."""
        return self.observer + 1

    @property
    def processes(self) -> int:
        """Slots and bells in all."""
        return self.supervisor + 1

    def parts(self) -> list[Part]:
        """The processes, in the order in which they start: consumers before producers."""
        several = self.captures > 1
        return [
            Part("sink", self.sink, "gazer:sink"),
            *(Part("worker", self.worker(i), f"gazer:worker{i}", i) for i in range(self.workers)),
            *([Part("metrics", self.observer, "gazer:metrics")] if self.metrics else []),
            *(
                Part("capture", i, f"gazer:capture{i}" if several else "gazer:capture", i,
                     self.interfaces[i] if self.interfaces else "")
                for i in range(self.captures)
            ),
        ]  # fmt: skip

    def frames(self, capture: int, worker: int) -> str:
        """The name of the frame ring between these two."""
        return f"frames{capture * self.workers + worker}"

    def events(self, worker: int) -> str:
        """The name of a worker's event ring."""
        return f"events{worker}"

    def samples(self, worker: int) -> str:
        """The name of a worker's samples (of a live run), which are no ring."""
        return f"samples{worker}"

    def segments(self) -> dict[str, int]:
        """Name and bytes of each shared segment."""
        size = ring_bytes(self.ring_capacity)
        frames = {
            self.frames(c, w): size for c in range(self.captures) for w in range(self.workers)
        }
        events = {self.events(w): size for w in range(self.workers)}
        samples = {self.samples(w): SAMPLES_BYTES for w in range(self.workers) if self.interfaces}
        return {"ledger": ledger_bytes(self.processes), **frames, **events, **samples}

    def shared_with(self, part: Part) -> set[str]:
        """The segments that a process needs.  Who serves metrics looks at all of them."""
        names = set(self.segments())
        if part.role == "capture":
            other = {self.frames(part.index, w) for w in range(self.workers)}
        elif part.role == "worker":
            other = {self.frames(c, part.index) for c in range(self.captures)}
            other |= {self.events(part.index), f"samples{part.index}"}
        elif part.role == "sink":
            other = {self.events(w) for w in range(self.workers)}
        else:
            other = names
        return names & ({"ledger"} | other)

    def shared_bytes(self) -> int:
        """Shared memory in all."""
        return sum(self.segments().values())
