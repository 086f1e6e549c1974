"""From chunks to acknowledgements: what is under way, what has to be sent again, what no one takes.

- **The window**: `window` chunks, and at most MOST_FLYING octets, are unacknowledged at once, over
  all servers.  So that is the most that is ever sent twice.
- **A server** that acknowledges late, or whose connection ends, has failed (servers.py).  What it
  had goes to the next one, as the same chunks with the same ids, ahead of what is newer.
- **Acknowledgements** settle a chunk wherever it is by then: late ones count, those that come twice
  or name nothing that was sent are counted as wrong and do nothing.  Ids can't be guessed.
- **Refused chunks.**  Fluentd drops a chunk beyond its chunk_size_limit and acknowledges nothing,
  though it goes on with the next one.  So a chunk is refused when a later one on its connection was
  acknowledged GRACE seconds ago (fluentd's acknowledgements come in order).  After REFUSALS it is
  halved, and so on down to one event; that is dropped, counted as `rejected`, and told.  Two cases
  need more care, since nothing that comes behind the chunk may be acknowledged:

  - It waited in vain, or was refused before: it may be the last one, or all behind it may be too
    large as well.  So it is sent again with an empty chunk behind it, whose acknowledgement is then
    the later one.
  - It ends its connection, as other receivers than fluentd do with what is too large.  After DEATHS
    of these (or when it waited in vain, where each connection is for one chunk) it is tried
    *aside*: alone, when its server has acknowledged something else since (an empty chunk, if there
    is nothing).  A connection that ends then has refused it.  Under load a server is let run empty
    for that.  No more than ASIDE chunks wait so before what comes behind them waits, too.

  A server that is down, flapping or frozen acknowledges nothing, so nothing is dropped for its
  sake.  Nor for that of a fluentd whose buffer is full: it ends the connection over any events, and
  acknowledges empty chunks.  So these prove that a server lives, but neither that it is back nor
  that it takes events: a single event that ends connections is dropped only when other events were
  acknowledged since it was first refused.  Without any other traffic it is tried for ever.
"""

from __future__ import annotations

import time
from collections import deque

from gazer.sinks import forward
from gazer.sinks.chunks import Chunk
from gazer.sinks.connection import CLOSED, DeniedError, ProtocolError, reason
from gazer.sinks.pace import Pace
from gazer.sinks.servers import REMIND, STEADY, Server, Servers

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable

    from gazer.config.forward import Forward

MOST_FLYING = 16 << 20  # octets that are unacknowledged at once, but for a chunk that is larger
HEARTBEAT = 15.0        # seconds without anything sent
GRACE = 1.0             # ... for an acknowledgement that others have overtaken
GRACE_ONE = 5.0         # ... of a single event, which might be dropped for it
REFUSALS = 3
DEATHS = 2
ASIDE = 8               # chunks that are to be tried alone, while others are read from a spool
FLAPS = 3               # lines in REMIND seconds about a server that comes and goes
SCARES = 2              # connections in a row that ended behind a heartbeat; then there are no more


class Delivery:
    """All chunks that are to be sent.  `settled(chunk, delivered)` is called once for each that is
    over, but for those that were divided; `more()` gives a further chunk when all that was added is
    under way; `waiting()` says in words what waits, "" for nothing; `denied(text)` is called when
    no server accepts us, and says whether that is the end."""

    def __init__(
        self, settings: Forward, waker: int, *, name: str,
        notice: Callable[[str], None],
        settled: Callable[[Chunk, bool], None],
        more: Callable[[], Chunk | None],
        waiting: Callable[[], str],
        denied: Callable[[str], bool],
    ) -> None:
        self.name = name
        self.servers = Servers(settings, waker)
        self.known: dict[bytes, Chunk] = {}     # all that an acknowledgement can settle
        self.ready: deque[Chunk] = deque()      # to be sent, in order
        self.aside: deque[Chunk] = deque()      # to be tried alone
        self.flying = self.flying_bytes = 0
        self.acked_at = time.monotonic()
        self.waits_since = 0.0                  # there is something without acknowledgement; or 0
        self.pace = Pace()                      # of acknowledgements
        self.stopped = False                    # nothing is connected any more
        self.counts = dict.fromkeys(
            ("acked", "acked_events", "resent", "connects", "failures", "rejected", "expired",
             "wrong_acks"), 0)
        self._settings = settings
        self._notice = notice
        self._settled = settled
        self._more = more
        self._waiting = waiting
        self._denied = denied
        self._limit = settings.ack_timeout_ns / 1e9
        self._numbers = 0
        self._tag = ""              # of what was sent last
        self._rejected_told = self._halved_told = -REMIND
        self._rejected_untold = 0

    def number(self) -> tuple[int, ...]:
        """Of the next chunk."""
        self._numbers += 1
        return (self._numbers,)

    def add(self, chunk: Chunk) -> None:
        """Send it when it is its turn."""
        self.known[chunk.id] = chunk
        self.ready.append(chunk)

    def withdraw(self) -> None:
        """Send none of those that wait, but for what was read from a spool, which is not read
        again.  What is under way may change from here on."""
        for waiting in (self.ready, self.aside):
            waits = [*waiting]
            waiting.clear()
            for chunk in waits:
                if chunk.work is not None and chunk.work.record is not None:
                    waiting.append(chunk)
                else:
                    self.forget(chunk)
        for server in self.servers.all:
            server.connection.own()

    def stop(self) -> None:
        """Let go of everything."""
        self.stopped = True
        self.servers.close()
        for server in self.servers.all:
            server.flying.clear()
        self.flying = self.flying_bytes = 0
        self.known.clear()
        self.ready.clear()
        self.aside.clear()

    def reopen(self) -> None:
        """Connect anew: where something is under way, when that is acknowledged."""
        for server in self.servers.all:
            server.retry = 0.0
            server.retiring = server.up
            if not server.up:
                server.connection.close()

    # --- connections ---------------------------------------------------------------------------

    def serve(self, server: Server) -> None:
        """Go on with its connection."""
        was_up = server.up
        try:
            acks = server.connection.turn()
            if server.up and not was_up:
                self.counts["connects"] += 1
                self.servers.joined(server, time.monotonic())
            for chunk in acks:
                self._acked(server, chunk)
            if server.connection.failure is not None:
                raise server.connection.failure
        except (OSError, ProtocolError) as error:
            self._failed(server, error)

    def _failed(self, server: Server, error: Exception, *, late: bool = False) -> None:
        """Its connection is over: what it had is sent again."""
        now = time.monotonic()
        chunks = [*server.flying.values()]
        quiet = server.up and not chunks and isinstance(error, ConnectionError)
        if quiet and server.beating and now - server.beat < STEADY:
            server.scares += 1      # some receivers take a heartbeat for a mistake
        server.denied = isinstance(error, DeniedError)
        server.late = server.late or late
        server.failed(now)
        if quiet and server.acked > server.began:
            server.tries, server.retry = 0, now     # a receiver that lets go of idle connections
        for chunk in chunks:
            self._landed(chunk)
        if chunks:
            self._blame(chunks[0], server, late)
        for chunk in chunks:
            self._again(chunk)
        if not quiet:
            self.counts["failures"] += 1
        if server.denied and self.servers.denied() and self._denied(
                f"{self._who(server)}: {reason(error)}"):
            return          # has been told, and nothing is tried again
        if not quiet:
            self._tell(server, reason(error), now)

    def look(self, now: float) -> None:
        """What time alone brings."""
        if self.stopped:
            return
        for server in self.servers.all:
            if server.retiring and not server.flying:
                server.connection.close()
                server.retiring = False
                server.retry = now
            elif server.up:
                self._look_at(server, now)
            elif server.connection.state != CLOSED and now >= server.connection.deadline:
                try:
                    server.connection.late()
                except OSError as error:
                    self._failed(server, error)
            elif server.since and now - server.told >= REMIND:
                self._tell(server, server.why, now)
        for server in self.servers.wanted():
            if server.connection.state == CLOSED and now >= server.retry and not self.stopped:
                try:
                    server.connection.begin()
                except (OSError, RuntimeError) as error:    # no more descriptors, or threads
                    self._failed(server, OSError(str(error)))
                else:
                    self.serve(server)
        self._expire()

    def _look_at(self, server: Server, now: float) -> None:
        if not server.flying:
            if server.since and now - server.began >= STEADY:
                self._back(server, now)
            if server.scares < SCARES and now - server.beat >= HEARTBEAT:
                if server.beating:
                    server.scares = 0       # it has survived the one before
                server.beat, server.beating = now, True
                server.connection.queue([forward.HEARTBEAT])
                self._write({server})
            return
        if server.overdue(now, self._limit) <= 0:
            many = len(server.flying)
            self._failed(server, TimeoutError(
                f"{many} chunk{'' if many == 1 else 's'} without acknowledgement for "
                f"{self._limit:g} s"), late=True)
            return
        for chunk in [*server.flying.values()]:
            if not chunk.overtaken:
                break
            if now < self._refused_at(chunk):
                continue
            del server.flying[chunk.id]
            self._landed(chunk)
            if chunk.end > server.connection.written:
                server.connection.own()     # as in _acked
            self._refused(chunk, server)
            self._again(chunk)

    def due(self, now: float) -> float:
        """When `look` has something to do."""
        when = [now + 3600.0]
        if self.stopped:
            return when[0]
        for server in self.servers.wanted():
            if not server.up:
                when.append(server.retry if server.connection.state == CLOSED
                            else server.connection.deadline)
        for server in self.servers.all:
            if not server.up:
                if server.since:
                    when.append(server.told + REMIND)
                continue
            if server.flying:
                when.append(now + server.overdue(now, self._limit))
                for chunk in server.flying.values():
                    if not chunk.overtaken:
                        break
                    when.append(self._refused_at(chunk))
            else:
                if server.since:
                    when.append(server.began + STEADY)
                if server.scares < SCARES:
                    when.append(server.beat + HEARTBEAT)
        if self._settings.expire_ns and self.ready:
            oldest = min(chunk.born for chunk in self.ready)
            when.append(now + oldest + self._settings.expire_ns / 1e9 - time.time())
        return min(when)

    def _write(self, queued: set[Server]) -> None:
        """Write what these have got in their queues."""
        while queued:
            server = queued.pop()
            try:
                server.connection.write()
            except OSError as error:
                for chunk in server.connection.last():
                    self._acked(server, chunk)
                self._failed(server, error)

    # --- lines for the operator ----------------------------------------------------------------

    def _tell(self, server: Server, why: str, now: float) -> None:
        """A line when a server ceases to be up, and each REMIND seconds; no more of them for one
        that comes and goes."""
        news = server.denied and why != server.why
        server.why = why
        first = not server.since
        lasts = f", for {now - server.since:.0f} s by now" if server.since else ""
        server.since = server.since or now
        if now - server.told >= REMIND:
            server.lines = 0
        elif not news and not (first and server.lines < FLAPS):
            return
        server.lines += 1
        server.told = now
        waiting = "" if self.servers.up() else self._waiting()
        self._notice(f"{self._who(server)}: {why}; it is tried again{lasts}"
                     f"{waiting and f'; {waiting}'}")

    def _who(self, server: Server) -> str:
        """The output, and which of its servers, unless its name is that of the only one."""
        named = self.name.endswith(f" {server.address}")
        return self.name if named else f"{self.name}: {server.address}"

    def _back(self, server: Server, now: float) -> None:
        if server.told >= server.since:
            self._notice(f"{self._who(server)} is back after {now - server.since:.1f} s")
        server.since = 0.0
        server.why = ""

    # --- chunks --------------------------------------------------------------------------------

    def send(self, now: float) -> None:
        """Send as much as the window allows: several chunks with one call, if there are."""
        queued: set[Server] = set()
        if self.aside or any(server.emptying for server in self.servers.all):
            self._make_way()
        for idle in self.servers.trials():
            self._fly(idle, Chunk(None, self._tag, b"", 0, self.number()), now)
            queued.add(idle)
        while self.flying < self._settings.window:
            server = self.servers.choose()
            if server is None:
                if not queued:
                    break
                self._write(queued)     # there may be room then
                continue
            chunk = self._next(server)
            if chunk is None:
                break
            if self.flying and self.flying_bytes + chunk.size > MOST_FLYING:
                if chunk.tested:
                    chunk.tested = False
                    self.aside.appendleft(chunk)
                    server.emptying = True
                else:
                    self._again(chunk)
                break
            self._fly(server, chunk, now)
            queued.add(server)
            suspect = chunk.waits or chunk.refused
            if suspect and not chunk.aside and server.free():
                self._fly(server, self._probe(chunk), now)
        if queued:
            self._write(queued)
        waits = self.flying_bytes or self.ready or self.aside   # empty chunks have no octets
        self.waits_since = (self.waits_since or now) if waits else 0.0

    def _make_way(self) -> None:
        """Let a server that lives run empty, so that what is aside gets its turn under load."""
        while self.aside and not self.aside[0].wanted:
            self.aside.popleft()
        servers = self.servers.all
        if not self.aside:
            for server in servers:
                server.emptying = False
        elif not any(server.emptying for server in servers):
            able = [server for server in servers if server.up and not server.retiring
                    and server.acked > self.aside[0].queued]
            if able:
                min(able, key=lambda server: len(server.flying)).emptying = True

    def _next(self, server: Server) -> Chunk | None:
        """What this server is to have."""
        while self.aside and not self.aside[0].wanted:
            self.aside.popleft()
        while self.ready and not (server.emptying and self.aside):
            chunk = self.ready.popleft()
            if chunk.wanted:
                return chunk
        server.emptying = False
        if self.aside and not server.flying and server.acked > self.aside[0].queued:
            chunk = self.aside.popleft()
            chunk.tested = True
            return chunk
        chunk_ = self._more() if len(self.aside) < ASIDE else None
        if chunk_ is None and self.aside and not server.flying:
            # By turns, as there are servers that do not acknowledge empty chunks.
            return self._probe(self.aside[0]) if server.tries % 2 else self.aside.popleft()
        return chunk_

    def _probe(self, chunk: Chunk) -> Chunk:
        """An empty chunk, like this one."""
        return Chunk(None, chunk.tag, b"", 0, self.number())

    def _fly(self, server: Server, chunk: Chunk, now: float) -> None:
        connection = server.connection
        self.known[chunk.id] = chunk
        self._tag = chunk.tag
        self.flying += 1
        self.flying_bytes += chunk.size
        self.counts["resent"] += chunk.tries > 0
        chunk.tries += 1
        chunk.queued, chunk.sent, chunk.overtaken = now, 0.0, 0.0
        chunk.server = server
        buffers = forward.message(chunk.tag, chunk.payload, events=chunk.events, chunk=chunk.id,
                                  compressed=chunk.compressed)
        if not server.flying:
            server.moved, server.written = now, connection.written
        server.flying[chunk.id] = chunk
        server.share += max(chunk.size, 1) / server.weight
        server.beat, server.beating = now, False
        chunk.end = connection.queued + len(buffers[0]) + chunk.size + len(buffers[2])
        connection.queue(buffers)

    def _landed(self, chunk: Chunk) -> None:
        """It is no longer under way."""
        self.flying -= 1
        self.flying_bytes -= chunk.size

    def _acked(self, server: Server, id_: bytes) -> None:
        now = time.monotonic()
        chunk = server.flying.pop(id_, None)
        if chunk is not None:
            self._landed(chunk)
            if chunk.end > server.connection.written:
                server.connection.own()     # an old acknowledgement of what is sent again
            for other in server.flying.values():
                if other.end > chunk.end:
                    break
                other.overtaken = other.overtaken or now
        else:
            chunk = self.known.get(id_)
            if chunk is None or chunk.settled:
                self.counts["wrong_acks"] += 1
                return
        server.acked = now
        server.late = False
        server.empties = server.empties or not chunk.events
        if chunk.events:
            if self.waits_since:
                # Not what others have waited for, or this one elsewhere.
                since = max(self.acked_at, self.waits_since, chunk.queued)
                self.pace.took(now - since, now)
            server.took = self.acked_at = now
            server.tries = 0
            if server.since:
                self._back(server, now)
        self.settle(chunk, delivered=True)
        if not server.connection.keepalive and not server.flying:
            server.retiring = True

    def settle(self, chunk: Chunk, *, delivered: bool) -> None:
        """Its events are with a server; or with nobody, and counted."""
        if chunk.parts:
            for part in chunk.parts:
                if not part.settled:
                    self.settle(part, delivered=delivered)
            return
        chunk.settled = True
        self.forget(chunk)
        for server in self.servers.all:     # it may be under way a second time
            if server.flying.pop(chunk.id, None) is not None:
                self._landed(chunk)
                server.connection.own()
        if delivered and chunk.events:
            self.counts["acked"] += 1
            self.counts["acked_events"] += chunk.events
        self._settled(chunk, delivered)

    def forget(self, chunk: Chunk) -> None:
        """No acknowledgement is of interest any more; nor of what it is a part of, when that holds
        for all parts.  (One that was read from the spool again is no part of anything.)"""
        self.known.pop(chunk.id, None)
        parent = chunk.parent
        while parent is not None and not any(
                self.known.get(part.id) is part for part in parent.parts):
            self.known.pop(parent.id, None)
            parent = parent.parent

    def _again(self, chunk: Chunk) -> None:
        """Send it, unless it is settled, or nobody's."""
        if chunk.settled or chunk.parts:
            return
        if chunk.work is None:
            self.counts["resent"] += chunk.tries > 0 and chunk.events > 0   # as another Chunk
            self.forget(chunk)
        elif chunk.aside:
            self.aside.append(chunk)
        elif not self.ready or chunk.number < self.ready[0].number:
            self.ready.appendleft(chunk)
        else:
            self.ready = deque(sorted([*self.ready, chunk], key=lambda c: c.number))

    # --- what no server takes ------------------------------------------------------------------

    def _blame(self, chunk: Chunk, server: Server, late: bool) -> None:
        """The connection ended, or was given up, while this was the first one unacknowledged."""
        if chunk.tested:
            chunk.tested = False
            self._refused(chunk, server, ended=True)
        elif late:
            chunk.waits += 1
            # Where a connection is for one chunk no other can be acknowledged behind it.
            chunk.aside = chunk.aside or not server.connection.keepalive
        else:
            chunk.deaths += 1
            chunk.aside = chunk.deaths >= DEATHS

    def _refused_at(self, chunk: Chunk) -> float:
        """When one that was overtaken is refused."""
        return chunk.overtaken + min(GRACE if chunk.events > 1 else GRACE_ONE, self._limit)

    def _refused(self, chunk: Chunk, server: Server, *, ended: bool = False) -> None:
        """Not acknowledged, although the server is well; `ended`: its connection was, over it."""
        now = time.monotonic()
        chunk.refused += 1
        chunk.doubted = chunk.doubted or now
        if chunk.refused < REFUSALS or chunk.work is None:
            return
        try:
            parts = chunk.divide(chunk.events // 2)
        except Exception:       # one event; or it is compressed by what this run has not got
            if not ended or server.took > chunk.doubted:
                self._reject(chunk, server, now)
            return
        for part in parts:
            part.waits = 1      # suspect, too
            self.known[part.id] = part
            self._again(part)
        if now - self._halved_told >= REMIND:
            self._halved_told = now
            self._notice(
                f"{self._who(server)} does not acknowledge a chunk of {chunk.size} "
                "octets though it does others: it is sent in halves (see chunk_size here, "
                "chunk_size_limit there)")

    def _reject(self, chunk: Chunk, server: Server, now: float) -> None:
        self.counts["rejected"] += chunk.events
        self._rejected_untold += chunk.events
        self.settle(chunk, delivered=False)
        if now - self._rejected_told >= REMIND:
            self._rejected_told = now
            self._notice(
                f"{self._who(server)} does not take an event of {chunk.size} octets, as "
                f"its chunk_size_limit may say: {self._rejected_untold} dropped")
            self._rejected_untold = 0

    def _expire(self) -> None:
        """Drop what is too old, if the configuration wants that.  (What was read from a spool is
        older than what stands ahead of it.)"""
        if not self._settings.expire_ns:
            return
        for waiting in (self.ready, self.aside):
            for chunk in [chunk for chunk in waiting if self.expired(chunk)]:
                waiting.remove(chunk)
                if chunk.wanted:
                    self.counts["expired"] += chunk.events
                    self.settle(chunk, delivered=False)

    def expired(self, chunk: Chunk) -> bool:
        limit = self._settings.expire_ns
        return bool(limit) and chunk.born < time.time() - limit / 1e9
