"""From a Config to the processes and rings that it takes.  Starts nothing.

    capture ──frame ring 0──▶ worker 0 ──event ring 0──▶ sink
            ──frame ring 1──▶ worker 1 ──event ring 1──▶

Slots of the ledger and bells are numbered the same: capture 0, the sink 1, worker i is 2 + i.
"""

from __future__ import annotations

from dataclasses import dataclass

from gazer.config import Config
from gazer.counters import ledger_bytes
from gazer.ring import ring_bytes

CAPTURE = 0
SINK = 1
FIRST_WORKER = 2


@dataclass(frozen=True, slots=True)
class Part:
    """A process: its role, the number of its ledger slot and bell, and the name that `ps` shows."""

    role: str
    number: int
    name: str
    worker: int = -1


@dataclass(frozen=True, slots=True)
class Topology:
    """What a run is made of."""

    workers: int
    ring_capacity: int

    @classmethod
    def of(cls, config: Config) -> Topology:
        return cls(config.worker_count(), config.ring.size)

    def parts(self) -> list[Part]:
        """The processes, in the order in which they start: consumers before producers."""
        return [
            Part("sink", SINK, "gazer:sink"),
            *(
                Part("worker", FIRST_WORKER + i, f"gazer:worker{i}", i)
                for i in range(self.workers)
            ),
            Part("capture", CAPTURE, "gazer:capture"),
        ]

    def segments(self) -> dict[str, int]:
        """Name and bytes of each shared segment."""
        size = ring_bytes(self.ring_capacity)
        rings = {f"{kind}{i}": size for i in range(self.workers) for kind in ("frames", "events")}
        return {"ledger": ledger_bytes(self.workers + 2), **rings}

    def shared_bytes(self) -> int:
        """Shared memory in all."""
        return sum(self.segments().values())
