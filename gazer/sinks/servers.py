"""The servers of a fluentd output: which are up, who is to have the next chunk, when to try again.

- **Balancing**: the next chunk goes to the server that has had least for its weight.  One that
  comes back, or is new, starts where the others stand.  A server with weight 0, or on standby, has
  work only while no other is up.  One whose connection does not take what it has been given is
  left out while others do.
- **Health** is what a server does, not what it says: it is up from the end of the handshake until
  its connection ends or an acknowledgement is late.  One that was late is frozen, perhaps, and
  would accept connections all the same: while others are up it is sent an empty chunk, and nothing
  else before it has acknowledged that.
- **Backoff**: 0.5 s, doubled with each failure up to 30 s, of which a random share is waited ("full
  jitter": when a server comes back, a hundred sensors do not come back at one moment).  Only an
  acknowledgement of events ends it: a server that accepts connections and nothing else is still
  failing.
"""

from __future__ import annotations

import random

from gazer.sinks.connection import CLOSED, READY, Connection

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from gazer.config.forward import Forward
    from gazer.config.forward import Server as Settings
    from gazer.sinks.chunks import Chunk

FIRST = 0.5             # seconds: the first backoff
MOST = 30.0             # ... the longest
REMIND = 30.0           # ... between two lines about a server that is not up
STEADY = 2.0            # ... for which a server that has nothing to do must be up to be back
BACKLOG = 1 << 20       # octets not taken by the kernel with which a server counts as slow


class Server:
    """One of them, with its connection and the chunks that it has not acknowledged, in the order
    in which they were sent."""

    def __init__(self, settings: Settings, forward: Forward, waker: int) -> None:
        self.address = settings.address
        self.spare = settings.standby or settings.weight == 0
        self.weight = max(settings.weight, 1)
        self.connection = Connection(settings.address, forward, waker=waker)
        self.flying: dict[bytes, Chunk] = {}
        self.share = 0.0            # octets sent, by weight
        self.tries = 0              # failures since it last acknowledged events
        self.retry = 0.0            # when to connect
        self.acked = 0.0            # when it last acknowledged anything, and
        self.took = 0.0             # ... events
        self.began = 0.0            # when this connection was up
        self.written = 0            # octets of it, when we last looked, and
        self.moved = 0.0            # when they last grew
        self.beat = 0.0             # when something was last sent
        self.scares = 0             # connections in a row that did not live through a heartbeat
        self.beating = False        # nothing but a heartbeat was sent since
        self.retiring = False       # to be connected anew when all is acknowledged
        self.emptying = False       # to be given nothing before all is acknowledged
        self.late = False           # it has acknowledged nothing since it was late
        self.empties = False        # it is known to acknowledge empty chunks
        self.denied = False
        self.why = ""
        self.since = 0.0            # when it ceased to be up; or 0
        self.told = -REMIND         # when the operator was told that it is not
        self.lines = 0              # ... how often of late

    @property
    def up(self) -> bool:
        return self.connection.state == READY

    @property
    def backlog(self) -> int:
        """Octets that it was given and that the kernel did not take yet."""
        return self.connection.queued - self.connection.written

    @property
    def trial(self) -> bool:
        """It is to show with an empty chunk that it is well, if others are.  A server that is not
        known to acknowledge these gets others now and then."""
        return self.late and (self.empties or bool(self.tries % 4))

    def free(self) -> bool:
        """It may be given one more chunk."""
        if not self.up or self.retiring or (self.emptying and self.flying):
            return False
        return not self.flying or (
            self.connection.keepalive and not next(reversed(self.flying.values())).aside)

    def failed(self, now: float) -> None:
        """Its connection is over; wait."""
        self.connection.close()
        self.flying = {}
        self.retiring = self.emptying = False
        self.tries += 1
        self.retry = now + random.uniform(0, min(MOST, FIRST * 2 ** min(self.tries - 1, 16)))

    def overdue(self, now: float, limit: float) -> float:
        """Seconds until the oldest chunk is late; it is when that is not positive.

        It has `limit` from when it was written or the one before was acknowledged.  While it is
        being written, each octet that moves gives it as long again, but never more than four times
        that: a line may be slow, and a server that takes an octet now and then is frozen.
        """
        oldest = next(iter(self.flying.values()))
        if self.connection.written >= oldest.end:
            if not oldest.sent:
                oldest.sent = now
            return max(oldest.sent, self.acked) + limit - now
        if self.connection.written != self.written:
            self.written, self.moved = self.connection.written, now
        start = max(oldest.queued, self.acked)
        return min(max(start, self.moved) + limit, start + 4 * limit) - now


class Servers:
    """All of them."""

    def __init__(self, forward: Forward, waker: int) -> None:
        self.all = [Server(settings, forward, waker) for settings in forward.servers]

    def proper(self) -> list[Server]:
        """Those that are to be up: without the ones on standby, if there are others."""
        return [server for server in self.all if not server.spare] or self.all

    def up(self) -> list[Server]:
        return [server for server in self.all if server.up]

    def hopeless(self) -> bool:
        """None is up, and each that should be has failed since it was last of use."""
        return not any(server.up for server in self.all) and all(
            server.tries for server in self.proper())

    def denied(self) -> bool:
        """None of them accepts us."""
        return all(server.denied for server in self.all)

    def choose(self) -> Server | None:
        """Who is to have the next chunk."""
        if len(self.all) == 1:
            server = self.all[0]
            return server if server.backlog < BACKLOG and server.free() else None
        well = [server for server in self.all if server.up and not server.trial] or self.all
        proper = any(server.up and not server.spare for server in well)
        able = [server for server in well if server.free() and server.backlog < BACKLOG
                and not (server.spare and proper)]
        return min(able, key=lambda server: server.share, default=None)

    def trials(self) -> list[Server]:
        """Those that are to have an empty chunk now."""
        if len(self.all) == 1 or not any(server.up and not server.trial for server in self.all):
            return []
        return [server for server in self.all
                if server.up and server.trial and not server.flying and not server.retiring]

    def joined(self, server: Server, now: float) -> None:
        """It is up."""
        others = [other.share for other in self.all if other.up and other is not server]
        server.share = max(server.share, min(others, default=0.0))
        server.began = server.beat = server.moved = now
        server.written = 0
        server.denied = server.beating = False

    def wanted(self) -> list[Server]:
        """Those that are to be connected: spare ones only while no other is up or may soon be."""
        needed = not any((server.up and not server.late) or server.tries == 0
                         for server in self.all if not server.spare)
        return [server for server in self.all if needed or not server.spare
                or server.connection.state not in (CLOSED, READY)]

    def close(self) -> None:
        for server in self.all:
            server.connection.close()

