"""Who hangs and who dies too often: the supervisor's judgements, as pure functions of time.

**The running clock.**  A supervisor that was stopped or suspended itself (SIGSTOP of the group, a
virtual machine that is frozen) finds all heartbeats old when it goes on; nobody has hanged.  So it
counts only time in which it came round its own loop: each round counts what has passed since the
one before, but no more than a ROUND.  After a stop the children have another round to move.

**Hanging** is not an old heartbeat either but one that has not *changed* for so long on that clock:
no two clocks are compared.  A process that says that it waits (for an output that takes nothing) is
left alone, however long that takes, unless it is stopped.

**Dying too often** is FEW deaths within WHILE: something is wrong that a new start does not cure,
and who watches the service from outside shall act.

**Saying too much** is more than LINES at once and one a SECOND from then on.
"""

from __future__ import annotations

from collections import deque

MS = 1_000_000
SECOND = 1_000_000_000

ROUND = 500 * MS                # the supervisor looks at its children at least so often
STARTING = 10 * SECOND          # a process has at least so long for its start
FEW = 5
WHILE = 60 * SECOND
LINES = 100
PAUSE = 200 * MS                # between two starts of the same process


class RunningClock:
    """The time in which the supervisor ran, in ns."""

    def __init__(self, now: int) -> None:
        self._last = now
        self.time = 0

    def round(self, now: int) -> int:
        """The supervisor comes round its loop, at `now` of any steady clock."""
        self.time += min(max(0, now - self._last), ROUND)
        self._last = now
        return self.time


class Pulse:
    """One process's signs of life, since it was started at `now` of the running clock."""

    def __init__(self, now: int) -> None:
        self._beat: int | None = None
        self._since = now

    def silence(self, beat: int, now: int) -> int:
        """For how long the heartbeat has been the same, in ns."""
        if beat != self._beat:
            self._beat = beat
            self._since = now
        return now - self._since


class Deaths:
    """When one process of the service died, by the running clock."""

    def __init__(self) -> None:
        self._times: deque[int] = deque(maxlen=FEW)

    def too_many(self, now: int) -> bool:
        """One more now; whether that was one too many."""
        self._times.append(now)
        return len(self._times) == FEW and now - self._times[0] < WHILE


class Talk:
    """How much one process, started at `now` of the running clock, has to say."""

    def __init__(self, now: int) -> None:
        self._room = LINES * SECOND     # a line takes a SECOND of it
        self._last = now

    def allows(self, now: int) -> bool:
        """One more line now; whether it is not one too many."""
        self._room = min(self._room + now - self._last, LINES * SECOND)
        self._last = now
        if self._room < SECOND:
            return False
        self._room -= SECOND
        return True
