"""Memory and descriptors of the sensor's processes, over time.

Memory is PSS of what a process made itself (Pss_Anon).  Shared memory has one size from the first
moment, and of that and of libraries the share of each moves with every start and death of another.

A process is warm WARM seconds after its start: tables and rings have then been touched as far as
this load touches them.  From there on the least PSS of its life's last third may not be more than
ALLOWED above the most of its first third: a leak is in both, noise (pages that are shared with one
process more or less, a table that breathes) is not.  And it has to grow on the way to the middle
third and from there on, too: the first burst that meets an output which stands still fills its
queue (16 MiB), and malloc keeps most of that, so a sink may make one step in its life, at any time.

The least number of descriptors of the last third may not be above the most of the first (a sink
has one less while its receiver is away), and neither may a successor's be above its predecessors'
in the end.  (The first life is no measure for that: successors inherit a few pipes of whoever lives
when they are made.)
"""

from __future__ import annotations

import contextlib
import os
import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

WARM = 15.0             # seconds
SETTLED = 6.0
LIFE = 40.0             # a life shorter than this tells nothing of growth
ALLOWED = 2 << 20       # bytes


@dataclass
class Life:
    """One process: (time, PSS in bytes, descriptors)."""

    name: str
    pid: int
    born: float
    samples: list[tuple[float, int, int]] = field(default_factory=list)

    def warm(self, since: float = WARM) -> list[tuple[float, int, int]]:
        return [sample for sample in self.samples if sample[0] - self.born >= since]

    def growth(self) -> Iterator[str]:
        """What has grown."""
        warm = self.warm()
        if warm and warm[-1][0] - self.born >= LIFE and len(warm) >= 6:
            thirds = _thirds(warm)
            before, after = max(s[1] for s in thirds[0]), min(s[1] for s in thirds[2])
            first, middle, last = (statistics.median(s[1] for s in third) for third in thirds)
            if after > before + ALLOWED and min(middle - first, last - middle) > ALLOWED:
                yield f"memory from {before >> 10} to {after >> 10} KiB"
        settled = self.warm(SETTLED)
        if len(settled) >= 9:
            thirds = _thirds(settled)
            before, after = max(s[2] for s in thirds[0]), min(s[2] for s in thirds[2])
            if after > before:
                yield f"descriptors from {before} to {after}"


def _thirds(samples: list[tuple[float, int, int]]) -> list[list[tuple[float, int, int]]]:
    third = len(samples) // 3
    return [samples[:third], samples[third:-third], samples[-third:]]


class Watch:
    """All processes that there were.  `sample` is called every few seconds."""

    def __init__(self) -> None:
        self.lives: dict[int, Life] = {}

    def sample(self, processes: dict[str, int]) -> None:
        now = time.monotonic()
        for name, pid in processes.items():
            with contextlib.suppress(OSError):
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                found = re.search(r"^Pss_Anon:\s+(\d+) kB", rollup, re.MULTILINE)
                descriptors = len(os.listdir(f"/proc/{pid}/fd"))
                if found is None:       # it has just ended
                    continue
                life = self.lives.setdefault(pid, Life(name, pid, now))
                life.samples.append((now, int(found[1]) << 10, descriptors))

    def total(self, processes: dict[str, int]) -> tuple[int, int]:
        """PSS in bytes and descriptors of these together, when last looked at."""
        last = [self.lives[pid].samples[-1] for pid in processes.values() if pid in self.lives]
        return sum(s[1] for s in last), sum(s[2] for s in last)

    def growth(self) -> Iterator[str]:
        """Who has grown, and in what."""
        for life in self.lives.values():
            for what in life.growth():
                yield f"{life.name} (pid {life.pid}): {what}"
        for name, lives in self.by_name().items():
            least = [min(s[2] for s in life.warm()) for life in lives[1:] if life.warm()]
            if len(least) >= 4 and min(least[-2:]) > max(least[:2]):
                yield f"{name}: descriptors from one successor to the next: {least}"

    def by_name(self) -> dict[str, list[Life]]:
        found: dict[str, list[Life]] = {}
        for life in self.lives.values():
            found.setdefault(life.name, []).append(life)
        return found

    def table(self) -> Iterator[str]:
        """Each process: lives, the longest one, memory and descriptors when warm."""
        for name, lives in sorted(self.by_name().items()):
            longest = max(lives, key=lambda life: life.samples[-1][0] - life.born)
            warm = longest.warm() or longest.samples[-1:]
            sizes = [s[1] >> 10 for s in warm]
            yield (
                f"  {name:16}{len(lives):4} lives, the longest "
                f"{longest.samples[-1][0] - longest.born:6.0f} s: "
                f"{sizes[0]:7} .. {sizes[-1]:7} KiB (median {statistics.median(sizes):.0f}), "
                f"descriptors {min(s[2] for s in warm)}..{max(s[2] for s in warm)}"
            )
