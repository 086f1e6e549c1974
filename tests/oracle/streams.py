"""TCP segments → what happens in the directions of connections: messages, gaps and ends.

A connection is two ends in one scope. Each direction has its own sequence numbers, which become
positions from the direction's first octet on; positions do not wrap.

Rules, and what was decided where they leave room
- Whoever sent the connection's first segment is its first direction; where both directions hand on
  what they keep, or end, at once, the sender of the segment in hand goes first, and where none is
  in hand, the first one.
- A message has the time and number of the segment in hand when it is handed on: also of one that
  acknowledges, resets, or begins anew. A connection that is given up for its age, or at the end of
  the input, hands on at (its last segment's clock + timeout, that segment's number), with that
  segment's time.
- The tags and tunnels of a message are those of its direction's latest segment with payload.
- A direction of which nothing was seen is begun by any SYN. A plain SYN begins a new connection
  where its direction was picked up without SYN, or began with another number; a SYN with ACK begins
  its direction anew.
- FIN and RST of an unknown connection make it known, and end there what they end.
- Every segment of a known connection keeps it alive, empty ones and unbelievable RSTs too. The
  payload of an RST is no part of the stream (RFC 1122 4.2.2.12), nor is what stands behind a FIN.
- An acknowledgement is applied when it arrives, and is not remembered: if what follows the hole
  comes later, the next acknowledgement gives it up. (A capture that mixes up the order a little
  loses nothing then.)
- The first FIN says where its direction ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from .capture import Frame
from .framing import Framing
from .parts import Packet, Segment

GAP, END = "gap", "end"
BACK, AHEAD = 65535, 1 << 20  # how far an RST may be from what is expected


@dataclass(frozen=True)
class Moment:
    """When something happens: `clock` and `number` are its place in the order."""

    clock: int
    number: int
    ts_ns: int


class Direction:
    """Octets that one end sends."""

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts
        self.first: int | None = None  # sequence number that a SYN gave the first octet
        self.base: int | None = None  # the sequence number of position 0
        self.at = 0  # the position that is expected next
        self.kept: dict[int, int] = {}
        self.fin: int | None = None
        self.ended = False
        self.packet: Packet | None = None  # the latest with payload
        self.framing = Framing(True, counts)

    def begin(self, sequence: int, in_step: bool) -> None:
        self.base = sequence
        self.first = sequence if in_step else None
        self.framing = Framing(in_step, self.counts)

    def position(self, sequence: int) -> int:
        assert self.base is not None
        ahead = (sequence - self.base - self.at) % (1 << 32)
        return self.at + (ahead - (1 << 32) if ahead >= 1 << 31 else ahead)

    def take(self, sequence: int, payload: bytes) -> None:
        for at, octet in enumerate(payload, self.position(sequence)):
            if at < self.at or at in self.kept:
                self.counts["old"] += 1
            else:
                self.kept[at] = octet

    def advance(self, acknowledged: int = 0) -> Iterator[bytes | str]:
        """All that can be read now; holes up to this position are given up."""
        while not self.ended and self.base is not None:
            yield from self._consume()
            if self.fin is not None and self.at >= self.fin:
                yield from self._end()
            elif self.kept and min(self.kept) <= acknowledged:
                yield self._gap()
            else:
                return

    def finish(self) -> Iterator[bytes | str]:
        """The connection ends without this direction's FIN."""
        yield from self.advance()
        while self.kept and not self.ended:
            yield self._gap()
            yield from self.advance()
        if not self.ended:
            yield from self._end()

    def _consume(self) -> Iterator[bytes]:
        run = bytearray()
        while self.at in self.kept and (self.fin is None or self.at < self.fin):
            run.append(self.kept.pop(self.at))
            self.at += 1
        yield from self.framing.feed(bytes(run))

    def _gap(self) -> str:
        there = min(self.kept)
        self.framing.hole(there - self.at)
        self.at = there
        self.counts["gaps"] += 1
        return GAP

    def _end(self) -> Iterator[str]:
        self.counts["skipped"] += len(self.kept)
        self.kept.clear()
        self.framing.end()
        self.ended = True
        yield END


class Connection:
    """`directions` in the order in which they were first seen."""

    def __init__(self, ends: tuple[tuple[str, int], tuple[str, int]],
                 counts: Counter[str]) -> None:
        self.ends = ends
        self.counts = counts
        self.directions = [Direction(counts), Direction(counts)]
        self.last = Moment(0, 0, 0)


Item = tuple[Moment, Direction, bytes | str]


class Streams:
    """The connections, the one whose last segment is the oldest first. `timeout` in ns."""

    def __init__(self, timeout: int) -> None:
        self.timeout = timeout
        self.known: dict[object, Connection] = {}
        self.counts: Counter[str] = Counter()

    @property
    def buffered(self) -> int:
        return sum(len(d.kept) + d.framing.buffered
                   for c in self.known.values() for d in c.directions)

    def due(self) -> tuple[int, int] | None:
        """Clock and number at which the next connection is given up for its age."""
        for connection in self.known.values():
            return connection.last.clock + self.timeout, connection.last.number
        return None

    def give_up(self, at_end: bool) -> Iterator[Item]:
        """The connection that is due."""
        key, connection = next(iter(self.known.items()))
        del self.known[key]
        if not at_end:
            self.counts["timed out"] += 1
        last = connection.last
        moment = Moment(last.clock + self.timeout, last.number, last.ts_ns)
        yield from self._finish(connection.directions, moment)

    def segment(self, frame: Frame) -> Iterator[Item]:
        """What this segment lets happen, in order."""
        packet = frame.packet
        assert packet is not None and packet.tcp is not None
        tcp, moment = packet.tcp, Moment(frame.clock, frame.number, frame.ts_ns)
        self.counts["segments"] += 1
        self.counts["octets"] += len(packet.payload)
        source, destination = (packet.src, packet.sport), (packet.dst, packet.dport)
        key = (packet.scope, frozenset((source, destination)))
        connection = self.known.pop(key, None)
        if connection is None:
            if not (packet.length or tcp.syn or tcp.fin or tcp.rst):
                return
            connection = self._open(source, destination)
        mine = connection.directions[connection.ends.index(source)]
        if tcp.syn and not tcp.ack and not tcp.rst and self._begins_anew(mine, packet):
            yield from self._finish(_from(connection, mine), moment)
            connection = self._open(source, destination)
            mine = connection.directions[0]
        self.known[key] = connection
        connection.last = moment
        if tcp.rst:
            self.counts["skipped"] += len(packet.payload)
            if _believable(mine, _from(connection, mine)[1], tcp):
                yield from self._finish(_from(connection, mine), moment)
            return
        if tcp.syn and self._begins_anew(mine, packet):
            yield from self._finish([mine], moment)
            number = connection.directions.index(mine)
            mine = connection.directions[number] = Direction(self.counts)
        other = _from(connection, mine)[1]
        for item in self._take(mine, packet):
            yield moment, mine, item
        if tcp.ack and other.base is not None and not other.ended:
            for item in other.advance(other.position(tcp.acknowledgement)):
                yield moment, other, item

    def _take(self, mine: Direction, packet: Packet) -> Iterator[bytes | str]:
        tcp = packet.tcp
        assert tcp is not None
        sequence = (tcp.sequence + tcp.syn) % (1 << 32)
        if mine.base is None and not mine.ended:
            if tcp.syn:
                mine.begin(sequence, in_step=True)
            elif packet.length or tcp.fin:
                mine.begin(sequence, in_step=False)
        if packet.payload:
            mine.packet = packet
        if mine.ended or mine.base is None:
            self.counts["old"] += len(packet.payload)
            return
        mine.take(sequence, packet.payload)
        if tcp.fin and mine.fin is None:
            mine.fin = mine.position((sequence + packet.length) % (1 << 32))
        yield from mine.advance()

    def _open(self, source: tuple[str, int], destination: tuple[str, int]) -> Connection:
        self.counts["opened"] += 1
        return Connection((source, destination), self.counts)

    def _begins_anew(self, mine: Direction, packet: Packet) -> bool:
        """Whether this SYN is another one than the direction began with."""
        assert packet.tcp is not None
        if mine.base is None:
            return mine.ended
        return mine.first != (packet.tcp.sequence + 1) % (1 << 32)

    def _finish(self, directions: list[Direction], moment: Moment) -> Iterator[Item]:
        for direction in directions:
            for item in direction.finish():
                yield moment, direction, item


def _from(connection: Connection, mine: Direction) -> list[Direction]:
    """Both directions, this one first."""
    return sorted(connection.directions, key=lambda direction: direction is not mine)


def _believable(mine: Direction, other: Direction, tcp: Segment) -> bool:
    """A RST must stand where its direction is; in one not seen yet, it must acknowledge where the
    other direction is."""
    if mine.base is not None:
        return -BACK <= mine.position(tcp.sequence) - mine.at <= AHEAD
    if other.base is None or other.ended:
        return True
    return tcp.ack and -BACK <= other.position(tcp.acknowledgement) - other.at <= AHEAD
