"""What an output reads from its spool: record after record, each a chunk for the servers.

While new tasks go into the spool as well it is all that is sent.  *Beside* new tasks it has what
they leave of the window, but no more than half of it, and less on a slow line (below); and a record
ahead of them for each half window of tasks, since these may fill the window for hours without ever
being too much.

On a slow line each record under way holds up what is new.  What takes long is not always that: a
receiver may be far away, or acknowledge only what it has passed on, and then many under way cost
nothing.  So it begins with one, whose acknowledgement tells how long its server takes for one that
has nothing of the backlog ahead of it.  When as many as there may be took hardly longer, there may
be twice as many; half as many, when one takes LONG more.  Each PERIOD it begins anew, since lines
change.
"""

from __future__ import annotations

import time

from gazer.sinks.chunks import Chunk, Work
from gazer.sinks.delivery import ASIDE

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from gazer.sinks.delivery import Delivery
    from gazer.sinks.spool import Spool
    from gazer.sinks.syncing import Syncing

AGAIN = 1.0     # seconds between two tries to read a spool, or to write to it
LONG = 1.0      # ... that an acknowledgement may take for what is under way ahead of it
PERIOD = 30.0   # ... for which it counts how long one takes
SKIPS = 256     # records that are over already, read at one go


class Backlog:
    """Reads `spool`, which tells `syncing` what there is to sync; `delivery` has the chunks.
    `failed` is told why it can't be read; it is tried again after AGAIN seconds."""

    def __init__(self, spool: Spool, syncing: Syncing, delivery: Delivery, *, window: int,
                 failed: Callable[[OSError], None]) -> None:
        self.all_read = False
        self.unreadable = False     # for now
        self.retry = 0.0            # when to read it again; or 0
        self.hurry = False          # there is more to read at once
        self.records = 0            # read, and not over
        self._half = max(window // 2, 1)
        self._room = 1              # records that may be under way beside new tasks
        self._room_since = 0.0
        self._quick = 0             # acknowledgements since then that took hardly longer than least
        self._least: dict[Any, float] = {}  # seconds that one took, the least: of each server
        self._began = 0.0           # since when that counts
        self._tasks = 0             # that were answered since the last record was read
        self._spool = spool
        self._syncing = syncing
        self._delivery = delivery
        self._failed = failed

    def task_answered(self) -> None:
        self._tasks += 1

    def begin_beside(self, now: float) -> None:
        """From now on there are new tasks beside it."""
        self._began = now
        self._least.clear()
        self._make_room(1, now)

    def beside(self) -> Chunk | None:
        """The next record, beside new tasks: if it may have a place in the window that they leave
        free."""
        return self.next() if self._under_way() < self._room else None

    def ahead(self) -> None:
        """Send one ahead of new tasks, when it is its turn."""
        if (self._tasks >= self._half and not self._under_way()
                and len(self._delivery.aside) < ASIDE and (chunk := self.next()) is not None):
            self._delivery.ready.appendleft(chunk)

    def _under_way(self) -> int:
        """Records that hold up others.  A doubtful one does not: it waits for something behind it
        to be acknowledged, and there may be nothing but further records."""
        if not self.records:
            return 0
        doubtful = {
            chunk.work for chunk in self._delivery.known.values()
            if (chunk.aside or chunk.waits or chunk.refused) and chunk.wanted
        }
        return self.records - sum(work is not None and work.record is not None for work in doubtful)

    def next(self) -> Chunk | None:
        """The next record that is to be sent; None: that was all, or not now (`hurry`, `retry`)."""
        if self.retry:
            return None
        self._tasks = 0
        delivery = self._delivery
        for _ in range(SKIPS):
            try:
                record = self._spool.next()
            except OSError as error:
                self._syncing.mark()    # what it passed over before that
                self.retry = time.monotonic() + AGAIN
                self.unreadable = True
                self._failed(error)
                return None
            self.unreadable = False
            self._syncing.mark()        # what it passed over, or is acknowledged below
            if record is None:
                self.all_read = True
                return None
            id_ = bytes(record.chunk)
            work = Work(record=record)
            self.records += 1
            chunk = delivery.known.get(id_)
            if chunk is not None and chunk.work is None:    # under way
                chunk.work, chunk.payload = work, record.payload
                work.left = 1
                continue
            chunk = Chunk(
                work, bytes(record.tag).decode(), record.payload, record.events,
                delivery.number(), id_=id_, compressed=record.compressed,
            )
            if delivery.expired(chunk):
                delivery.counts["expired"] += chunk.events
                self._over(work, chunk.events)
                continue
            delivery.known[id_] = chunk
            return chunk
        self.hurry = True
        return None

    def settled(self, chunk: Chunk, *, delivered: bool) -> None:
        """A chunk of a record is over; or one that stands in the spool and was not read yet."""
        work = chunk.work
        if work is None:
            # At once: it may be long until it is read, and we may be killed.
            self._spool.ack_unread(chunk.place, chunk.events)
            self._syncing.mark()
            return
        work.left -= 1
        if delivered:
            self._took(chunk, time.monotonic())
        else:
            work.lost += chunk.events
        if not work.left:
            self._over(work, work.lost)

    def _took(self, chunk: Chunk, now: float) -> None:
        if chunk.queued < self._room_since:
            return      # it had more, or less, ahead of it than the next ones have
        if now - self._began >= PERIOD:
            self.begin_beside(now)
            return
        seconds = now - chunk.queued
        least = self._least[chunk.server] = min(self._least.get(chunk.server, seconds), seconds)
        more = seconds - least
        self._quick = self._quick + 1 if more <= LONG / 2 else 0
        if more > LONG:
            self._make_room(self._room // 2, now)
        elif self._quick >= self._room:
            self._make_room(2 * self._room, now)

    def _make_room(self, records: int, now: float) -> None:
        self._room = max(min(records, self._half), 1)
        self._room_since = now
        self._quick = 0

    def _over(self, work: Work, lost: int) -> None:
        self.records -= 1
        self._spool.ack(work.record, lost)
        self._syncing.mark()
