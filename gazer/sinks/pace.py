"""How long servers take for an acknowledgement.

What would be a stall on a fast line is the time that a chunk needs on a slow one: a second for a
MiB at 8 Mbit/s.
"""

from __future__ import annotations

PERIOD = 30.0   # seconds for which one counts, at least; twice that at most


class Pace:
    """The longest of late."""

    def __init__(self) -> None:
        self._now = self._before = self._turned = 0.0

    def took(self, seconds: float, now: float) -> None:
        """So long nothing was acknowledged, though what now is was under way."""
        if now - self._turned >= PERIOD:
            old = now - self._turned >= 2 * PERIOD
            self._before, self._now, self._turned = 0.0 if old else self._now, 0.0, now
        self._now = max(self._now, seconds)

    @property
    def longest(self) -> float:
        """Seconds; 0.0: there were none."""
        return max(self._now, self._before)
