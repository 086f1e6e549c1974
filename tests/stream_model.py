"""What TCP streams must do, in plain Python, octet by octet: the rules once more, with none of the
chunks, runs and lists of gazer's own, and without its limits of memory.

Positions are sequence numbers that do not wrap: the number's distance from `next`, below 2**31 in
either direction, is added to `next`'s own position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

FIN, SYN, RST, ACK = 1, 2, 4, 16
WRAP = 1 << 32
CLASSES = (1, 3, 4, 254, 255)

End = tuple[bytes, int]         # address, port


@dataclasses.dataclass(frozen=True)
class Segment:
    source: End
    destination: End
    sequence: int
    payload: bytes = b""
    flags: int = ACK
    acknowledgement: int = 0
    missing: int = 0            # octets of the payload that the capture lacks
    scope: bytes = b""
    number: int = 0
    time: int = 0


class Refused(Exception):
    pass


class Undecided(Exception):
    pass


def judge(octets: bytes) -> None:
    """Raises unless a message plausibly begins here."""
    if len(octets) < 2:
        raise Undecided
    end = 2 + int.from_bytes(octets[:2], "big")
    at = 2

    def read(n: int) -> bytes:
        nonlocal at
        if at + n > end:
            raise Refused
        if at + n > len(octets):
            raise Undecided
        at += n
        return octets[at - n:at]

    def require(condition: bool) -> None:
        if not condition:
            raise Refused

    def number(n: int = 2) -> int:
        return int.from_bytes(read(n), "big")

    require(end >= 2 + 12)
    number()
    flags = number()
    opcode = flags >> 11 & 15
    require(not flags & 0x40 and opcode in (0, 2, 4, 5, 6))
    questions = number()
    require(questions <= 1)
    if questions == 0:
        require(flags & 0x8000 != 0 and opcode == 0)
    answers = int.from_bytes(read(6)[:2], "big")
    require(questions == 1 or answers >= 1)
    name = 0
    while True:
        label = number(1)
        name += 1 + label
        require(label <= 63 and name <= 255)
        if label == 0:
            break
        read(label)
    require(int.from_bytes(read(4)[2:], "big") in CLASSES)
    if questions == 0:
        require(int.from_bytes(read(6)[4:], "big") <= end - at)


class Direction:
    def __init__(self) -> None:
        self.state = "unseen"
        self.first: int | None = None       # sequence number
        self.next = 0                       # position
        self.fin: int | None = None
        self.kept: dict[int, int] = {}      # position -> octet, behind holes
        self.unread = bytearray()           # in order, no whole message yet
        self.skip = 0
        self.out_of_step = False

    def begin(self, sequence: int, *, known: bool) -> None:
        self.__init__()                     # type: ignore[misc]
        self.state = "open"
        self.next = sequence % WRAP + WRAP
        self.first = sequence % WRAP if known else None
        self.out_of_step = not known

    def position(self, sequence: int) -> int:
        distance = (sequence - self.next) % WRAP
        return self.next + (distance if distance < WRAP // 2 else distance - WRAP)

    def runs(self) -> int:
        return sum(p - 1 not in self.kept for p in self.kept)


class Connection:
    def __init__(self, serial: int, key: tuple) -> None:
        self.serial = serial
        self.key = key              # the two ends, direction 0's sender first, and the scope
        self.directions = [Direction(), Direction()]
        self.clock = self.number = self.time = 0

    @property
    def is_open(self) -> bool:
        return any(r.state == "open" for r in self.directions)


def item(what: str, c: Connection, d: int, message: bytes | None = None) -> tuple:
    return what, c.serial, d, c.key[d], c.key[1 - d], c.key[2], message


class Model:
    """Items are tuples: what, serial, direction, source, destination, scope, message (or None),
    idle, clock, number, time."""

    def __init__(self, *, max_streams: int = 1000, timeout: int = 300, max_runs: int = 64) -> None:
        self.max_streams, self.timeout, self.max_runs = max_streams, timeout, max_runs
        self.connections: dict[tuple, Connection] = {}      # by last segment
        self.serial = 0
        self.counts = dict.fromkeys((
            "opened", "evicted", "timed_out", "gaps", "broken_messages", "crowded", "resyncs",
            "messages", "octets", "octets_framed", "octets_old", "octets_skipped"), 0)

    def feed(self, s: Segment, clock: int) -> list[tuple]:
        return self.expire(clock) + [
            (*item, False, clock, s.number, s.time) for item in self._segment(s, clock)]

    def expire(self, clock: int) -> list[tuple]:
        return [(*item, True, c.clock + self.timeout, c.number, c.time)
                for c, item in self._idle(clock)]

    def finish(self) -> list[tuple]:
        found = []
        for key, c in list(self.connections.items()):
            found += [(*item, True, c.clock + self.timeout, c.number, c.time)
                      for item in self._end(c, (0, 1))]
            del self.connections[key]
        return found

    def totals(self) -> dict[str, int]:
        buffered = sum(len(r.unread) + len(r.kept)
                       for c in self.connections.values() for r in c.directions)
        return {**self.counts, "octets_buffered": buffered, "live": len(self.connections)}

    # --- connections ---

    def _idle(self, clock: int) -> Iterator[tuple[Connection, tuple]]:
        for key, c in list(self.connections.items()):
            if clock - c.clock >= self.timeout:
                self.counts["timed_out"] += c.is_open
                for item in self._end(c, (0, 1)):
                    yield c, item
                del self.connections[key]

    def _new(self, key: tuple) -> Connection:
        self.serial += 1
        self.counts["opened"] += 1
        return Connection(self.serial, key)

    def _segment(self, s: Segment, clock: int) -> Iterator[tuple]:
        ends = (s.source, s.destination)
        d = int((s.source[1], s.source[0]) < (s.destination[1], s.destination[0]))
        key = (*(reversed(ends) if d else ends), s.scope)
        if key not in self.connections:
            if not s.payload and not s.flags & (SYN | FIN | RST):
                return
            if len(self.connections) >= self.max_streams:
                oldest, c = next(iter(self.connections.items()))
                self.counts["evicted"] += c.is_open
                yield from self._end(c, (0, 1))
                del self.connections[oldest]
            self.connections[key] = self._new(key)
        c = self.connections[key] = self.connections.pop(key)
        c.clock, c.number, c.time = clock, s.number, s.time
        self.counts["octets"] += len(s.payload)
        r = c.directions[d]

        if s.flags & RST:
            self.counts["octets_skipped"] += len(s.payload)
            o = c.directions[1 - d]
            distance = 0
            if r.state != "unseen":
                distance = (s.sequence - r.next + (1 << 31)) % WRAP - (1 << 31)
            elif o.state == "open":
                if not s.flags & ACK:
                    return
                distance = (s.acknowledgement - o.next + (1 << 31)) % WRAP - (1 << 31)
            if not -65535 <= distance <= 1 << 20:
                return
            yield from self._end(c, (0, 1))
            c.directions[0].state = c.directions[1].state = "ended"
            return

        start = s.sequence
        if s.flags & SYN:
            start += 1
            if r.state != "unseen" and r.first != start % WRAP:
                if s.flags & ACK:
                    yield from self._end(c, (d,))
                    c.directions[d] = Direction()
                else:
                    yield from self._end(c, (0, 1))
                    renewed = self._new(key)
                    renewed.clock, renewed.number, renewed.time = clock, s.number, s.time
                    c = self.connections[key] = renewed
                r = c.directions[d]
            if r.state == "unseen":
                r.begin(start, known=True)
        elif r.state == "unseen" and (s.payload or s.flags & FIN):
            r.begin(start, known=False)

        yield from self._payload(c, d, start, s.payload)
        if r.state == "open" and s.flags & FIN and r.fin is None:
            fin = r.position(start + len(s.payload) + s.missing)
            if fin >= r.next:
                r.fin = fin
                yield from self._consume(c, d)
        other = c.directions[1 - d]
        if s.flags & ACK:
            while (other.state == "open" and other.kept
                    and (s.acknowledgement - min(other.kept)) % WRAP < WRAP // 2):
                yield from self._give_up(c, 1 - d, min(other.kept))

    def _end(self, c: Connection, sides: tuple[int, ...]) -> Iterator[tuple]:
        for d in sides:
            r = c.directions[d]
            while r.state == "open" and r.kept:
                yield from self._give_up(c, d, min(r.kept))
            if r.state == "open":
                yield self._close(c, d)

    def _close(self, c: Connection, d: int) -> tuple:
        r = c.directions[d]
        self._lose(r)
        self.counts["octets_skipped"] += len(r.kept)
        first, position = r.first, r.next
        c.directions[d].__init__()          # type: ignore[misc]
        r.state, r.first, r.next = "ended", first, position
        return item("end", c, d)

    # --- octets ---

    def _payload(self, c: Connection, d: int, start: int, payload: bytes) -> Iterator[tuple]:
        r = c.directions[d]
        if r.state != "open":
            self.counts["octets_old"] += len(payload)
            return
        at, fin = r.position(start), r.fin
        for p, octet in enumerate(payload, at):
            if p < r.next:
                self.counts["octets_old"] += 1
                continue
            if fin is not None and p >= fin:
                self.counts["octets_skipped"] += 1
                continue
            while (p != r.next and p not in r.kept and p - 1 not in r.kept
                    and r.runs() == self.max_runs):
                self.counts["crowded"] += 1
                yield from self._give_up(c, d, min(p, min(r.kept)))
            if p in r.kept:
                self.counts["octets_old"] += 1
                continue
            r.kept[p] = octet
            yield from self._consume(c, d)

    def _consume(self, c: Connection, d: int) -> Iterator[tuple]:
        r = c.directions[d]
        while r.next != r.fin and r.next in r.kept:
            r.unread.append(r.kept.pop(r.next))
            r.next += 1
            yield from self._read(c, d)
        if r.next == r.fin:
            yield self._close(c, d)

    def _read(self, c: Connection, d: int) -> Iterator[tuple]:
        r = c.directions[d]
        while r.unread:
            if r.skip:
                r.skip -= 1
                del r.unread[0]
                self.counts["octets_skipped"] += 1
                continue
            if r.out_of_step:
                try:
                    judge(bytes(r.unread))
                except Undecided:
                    return
                except Refused:
                    del r.unread[0]
                    self.counts["octets_skipped"] += 1
                    continue
                r.out_of_step = False
                self.counts["resyncs"] += 1
            length = 2 + int.from_bytes(r.unread[:2], "big")
            if len(r.unread) < 2 or len(r.unread) < length:
                return
            message = bytes(r.unread[2:length])
            del r.unread[:length]
            self.counts["messages"] += 1
            self.counts["octets_framed"] += length
            yield item("message", c, d, message)

    def _lose(self, r: Direction) -> int:
        """Skip the unread; returns how much of its message is to come."""
        n, left = len(r.unread), r.skip
        if n and not r.out_of_step:
            self.counts["broken_messages"] += 1
            if n >= 2:
                left = 2 + int.from_bytes(r.unread[:2], "big") - n
        self.counts["octets_skipped"] += n
        r.unread.clear()
        return left

    def _give_up(self, c: Connection, d: int, to: int) -> Iterator[tuple]:
        r = c.directions[d]
        self.counts["gaps"] += 1
        if r.fin is not None:
            to = min(to, r.fin)
        left = self._lose(r)
        hole = to - r.next
        r.next = to
        r.skip = max(0, left - hole)
        r.out_of_step |= hole > left
        yield item("gap", c, d)
        yield from self._consume(c, d)
