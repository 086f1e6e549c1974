"""What the sensor wrote, read once per file: names, whole lines, and the stats events.

A file that is still being written may yet be cut by the successor of a sink that was killed.  So
files are read when they have been moved away and let go of, and in the end.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from tests.soak.traffic import NAME, TCP, kind

STATS = b"dns-gazer.stats"


class Written:
    """One output, all its files together.  breach: takes a line for each rule that is broken."""

    def __init__(self, name: str, breach: Callable[[str], None]) -> None:
        self.name = name
        self.events = 0             # all lines
        self.stats: list[dict[str, object]] = []
        self.twice = 0
        self.bytes = 0
        self._seen = bytearray()    # a bit for each name
        self._breach = breach

    def read(self, path: Path) -> None:
        """A file that nobody writes to any more."""
        last = b""
        with path.open("rb") as file:
            for last in file:
                self.bytes += len(last)
                self._take(last, path)
        if last and not last.endswith(b"\n"):
            self._breach(f"{path.name} ends in half a line: {last[-80:]!r}")

    def _take(self, line: bytes, path: Path) -> None:
        self.events += 1
        if STATS in line:
            self._take_stats(line)
            return
        found = NAME.search(line)
        if found is None:
            self._breach(f"{path.name}: a line without a name: {line[:200]!r}")
        elif self._mark(int(found[1])):
            self.twice += 1
            self._breach(f"{path.name}: twice: {line[:300].decode(errors='replace')}")

    def _take_stats(self, line: bytes) -> None:
        event = json.loads(line.split(b"\t")[2] if b"\t" in line else line)
        self.stats.append(event)
        if not event["balanced"]:
            self._breach(f"a stats event of {self.name} says that it does not add up: {event}")

    def _mark(self, n: int) -> bool:
        """Whether it was there already."""
        at, bit = n >> 3, 1 << (n & 7)
        if at >= len(self._seen):
            self._seen.extend(bytes(at + 1 - len(self._seen) + 65536))
        before = self._seen[at] & bit
        self._seen[at] |= bit
        return bool(before)

    def missing(self, sent: range) -> int:
        """Exchanges of these numbers without an event.  Not those over TCP: of a message that was
        cut in two by a loss only octets are counted."""
        seen = self._seen
        return sum(
            1 for n in sent
            if kind(n) != TCP and (n >> 3 >= len(seen) or not seen[n >> 3] & 1 << (n & 7)))

    def intervals(self) -> Counter[str]:
        """Check that each begins where one ends; all counters of all of them.  Of two that begin at
        the same time the later one tells of the first one, too (gazer/sinks/stats.py)."""
        chain = {str(event["interval_start"]): event for event in self.stats}
        whole = [*chain.values()]
        for before, after in pairwise(whole):
            if before["interval_end"] != after["interval_start"]:
                self._breach(f"{self.name}: no stats event from {before['interval_end']} to "
                             f"{after['interval_start']}")
        if not whole or "last" not in whole[-1]:
            self._breach(f"{self.name}: no last stats event")
        sums: Counter[str] = Counter()
        for event in whole:
            sums.update({name: n for name, n in event.items() if type(n) is int})
        return sums
