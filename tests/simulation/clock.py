"""Time that passes when nothing else is to be done, and what happens in it."""

import heapq
import itertools


class Clock:
    """Stands where a module has `time`.  It never stands still: nor does a real one."""

    TICK = 1e-6
    EPOCH = 1.7e9

    def __init__(self):
        self.now = 1000.0
        self._coming = []
        self._order = itertools.count()

    def monotonic(self):
        self.now += self.TICK
        return self.now

    def time(self):
        return self.EPOCH + self.monotonic()

    def time_ns(self):
        return int(self.time() * 1e9)

    def at(self, seconds, what, *args):
        """Do that so many seconds from now."""
        heapq.heappush(self._coming, (self.now + seconds, next(self._order), what, args))

    @property
    def next(self):
        return self._coming[0][0] if self._coming else float("inf")

    def happen(self):
        """All that is due; how much that was."""
        n = 0
        while self._coming and self._coming[0][0] <= self.now:
            _, _, what, args = heapq.heappop(self._coming)
            what(*args)
            n += 1
        return n
