"""Packets → transactions → events, in the order in which they became due.

The rules are those of the sensor's specification: matching, the sensor clock, the order of events.
Where they leave room, this is how they are read here:

- The sensor clock follows every frame of the capture, DNS or not. All its comparisons are with the
  clock, not with the frame before: forward by more than a day, or back by more than 1 s, re-bases
  it and counts one jump; back by at most 1 s leaves it standing.
- A query has timed out for the frame whose clock is exactly query + timeout, hence before that
  frame's events. A duplicate is one strictly within the window, counted from the answer (not from
  later duplicates).
- The question that a reply must repeat is the whole question section, in order.
- A reply with a question never answers a query without one. One without a question answers the
  oldest that waits under the key; where none waits it is a duplicate of any answered under the key
  in the window, else no_query. A waiting transaction goes before an answered one.
- A no_query is no answered transaction: its second copy is a no_query again.
- At the limit the oldest leaves before the new query's record events, at that query's frame.
- An entry of `query` or `reply` is there for each record that could be read; a message without
  records has the empty list, since the message was there. `rcode` (full detail) is the reply's.
- A message whose header or questions can't be read gives nothing and is counted.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import message as dns
from .capture import NS, BrokenCapture, Frame, Packet, read

TX, RECORD = "dns-gazer.dns.tx", "dns-gazer.dns.record"
DAY = 86400 * NS


@dataclass(frozen=True)
class Timestamp:
    """A point in time, printed as seconds with six decimals, truncated."""

    ns: int

    def __str__(self) -> str:
        return f"{self.ns // NS}.{self.ns % NS // 1000:06d}"

    def __float__(self) -> float:
        return float(str(self))


@dataclass(frozen=True)
class Latency:
    """A span, printed as seconds with nine decimals."""

    ns: int

    def __str__(self) -> str:
        return f"{self.ns // NS}.{self.ns % NS:09d}"

    def __float__(self) -> float:
        return self.ns / NS


@dataclass(frozen=True)
class Event:
    """`due` is the key of the order: clock, sequence (frame number), index within the frame."""

    due: tuple[int, int, int]
    tag: str
    ts_ns: int
    record: dict[str, Any]

    @property
    def time_s(self) -> int:
        return self.ts_ns // NS


@dataclass
class Clock:
    """The sensor clock. `jumps` counts the re-bases."""

    now: int | None = None
    shift: int = 0
    jumps: int = 0

    def advance(self, ts_ns: int) -> int:
        if self.now is None:
            self.now = ts_ns
        step = ts_ns + self.shift - self.now
        if step > DAY or step < -NS:
            self.shift = self.now - ts_ns
            self.jumps += 1
        elif step > 0:
            self.now += step
        return self.now


@dataclass
class Seen:
    """A message on the wire: who, when and what."""

    frame: Frame
    packet: Packet
    message: dns.Message
    clock: int

    @property
    def ends(self) -> tuple[str, int, str, int]:
        """Client address and port, server address and port: QR alone says who is who."""
        p = self.packet
        if self.message.is_reply:
            return p.dst, p.dport, p.src, p.sport
        return p.src, p.sport, p.dst, p.dport

    @property
    def key(self) -> tuple[Any, ...]:
        return (*self.ends, "udp", self.packet.vlan, self.message.id)


@dataclass
class Pending:
    """A query, from when it is seen until it is answered, times out or is pushed out."""

    query: Seen
    retransmits: int = 0
    waits: bool = True


@dataclass(frozen=True)
class Answered:
    clock: int
    key: tuple[Any, ...]
    question: tuple[Any, ...]


@dataclass
class Reading:
    """All that a capture must give. `events` in order; `counts` by what happened to each frame and
    message; `broken` is why the file ends early."""

    events: list[Event] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    clock_jumps: int = 0
    broken: str | None = None


@dataclass
class Rules:
    ports: tuple[int, ...] = (53,)
    timeout: float = 60.0
    duplicate_window: float = 5.0
    max_pending: int | None = None
    records: bool = False
    detail: str = "classic"
    sensor: str = "sensor-1"


class Oracle:
    """Feed it frames in order, then finish it."""

    def __init__(self, rules: Rules) -> None:
        if rules.detail not in ("classic", "full"):
            raise ValueError(f"detail: {rules.detail}")
        self.rules = rules
        self.reading = Reading()
        self.clock = Clock()
        self.timeout = round(rules.timeout * NS)
        self.window = round(rules.duplicate_window * NS)
        # Both in order of clock, since the clock never goes back; `opened` also holds those that
        # wait no more, until they come to its head.
        self.opened: deque[Pending] = deque()
        self.answered: deque[Answered] = deque()
        self.waiting_at: defaultdict[Any, list[Pending]] = defaultdict(list)  # by key, oldest first
        self.answered_at: defaultdict[Any, list[Answered]] = defaultdict(list)
        self.waiting = 0

    def feed(self, frame: Frame) -> None:
        counts = self.reading.counts
        now = self.clock.advance(frame.ts_ns)
        self._expire(now)
        counts["frames"] += 1
        if frame.packet is None:
            counts[f"frame: {frame.reason}"] += 1
            return
        counts["messages"] += 1
        message = dns.read(frame.packet.payload)
        if message is None:
            counts["malformed: no event"] += 1
            return
        if message.fault:
            counts[f"malformed: {message.fault}"] += 1
        seen = Seen(frame, frame.packet, message, now)
        if message.is_reply:
            counts["replies"] += 1
            self._reply(seen)
        else:
            counts["queries"] += 1
            self._query(seen)
        if self.rules.records:
            for record in message.records:
                self._emit(seen, now, RECORD, self._record_event(seen, record))

    def finish(self) -> Reading:
        while pending := self._oldest():
            self._close(pending)
            self._no_reply(pending, pending.query.clock, pending.query.frame.number)
        self.reading.clock_jumps = self.clock.jumps
        return self.reading

    # ------------------------------------------------------------------------------ matching

    def _expire(self, now: int) -> None:
        while (pending := self._oldest()) and pending.query.clock + self.timeout <= now:
            self._close(pending)
            self._no_reply(pending, pending.query.clock + self.timeout, pending.query.frame.number)
        while self.answered and self.answered[0].clock + self.window <= now:
            done = self.answered.popleft()
            self.answered_at[done.key].remove(done)

    def _oldest(self) -> Pending | None:
        while self.opened and not self.opened[0].waits:
            self.opened.popleft()
        return self.opened[0] if self.opened else None

    def _close(self, pending: Pending) -> None:
        pending.waits = False
        self.waiting_at[pending.query.key].remove(pending)
        self.waiting -= 1

    def _query(self, seen: Seen) -> None:
        for pending in self.waiting_at[seen.key]:
            if pending.query.message.question == seen.message.question:
                pending.retransmits += 1
                self.reading.counts["repeated"] += 1
                return
        if self.rules.max_pending is not None and self.waiting >= self.rules.max_pending:
            oldest = self._oldest()
            assert oldest is not None
            self._close(oldest)
            self.reading.counts["evicted"] += 1
            self._no_reply(oldest, seen.clock, seen.frame.number)
        self.reading.counts["opened"] += 1
        pending = Pending(seen)
        self.opened.append(pending)
        self.waiting_at[seen.key].append(pending)
        self.waiting += 1

    def _reply(self, seen: Seen) -> None:
        question = seen.message.question
        for pending in self.waiting_at[seen.key]:
            asked = pending.query.message.question
            if question in ((), asked):
                self._close(pending)
                done = Answered(seen.clock, seen.key, asked)
                self.answered.append(done)
                self.answered_at[seen.key].append(done)
                self.reading.counts["matched"] += 1
                self._emit(seen, seen.clock, TX, self._tx("success", pending, seen))
                return
        for done in self.answered_at[seen.key]:
            if question in ((), done.question):
                self.reading.counts["duplicates"] += 1
                return
        self.reading.counts["no_query"] += 1
        self._emit(seen, seen.clock, TX, self._tx("no_query", None, seen))

    def _no_reply(self, pending: Pending, clock: int, number: int) -> None:
        self.reading.counts["no_reply"] += 1
        record = self._tx("no_reply", pending, None)
        due = (clock, number, self._index(number))
        self.reading.events.append(Event(due, TX, pending.query.frame.ts_ns, record))

    def _emit(self, seen: Seen, clock: int, tag: str, record: dict[str, Any]) -> None:
        due = (clock, seen.frame.number, self._index(seen.frame.number))
        self.reading.events.append(Event(due, tag, seen.frame.ts_ns, record))

    def _index(self, number: int) -> int:
        last = self.reading.events[-1].due if self.reading.events else (0, 0, 0)
        return last[2] + 1 if last[1] == number else 0


    # ------------------------------------------------------------------------------ records

    def _tx(self, status: str, pending: Pending | None, reply: Seen | None) -> dict[str, Any]:
        query = pending.query if pending else None
        seen = query or reply
        assert seen is not None
        client, client_port, server, server_port = seen.ends
        out: dict[str, Any] = {
            "client_addr": client, "client_port": client_port, "server_addr": server,
            "server_port": server_port, "status": status, "tx_id": seen.message.id,
        }
        for what, side in (("query", query), ("reply", reply)):
            if side is not None:
                out[what] = [self._entry(record) for record in side.message.records]
                out[f"{what}_ts"] = Timestamp(side.frame.ts_ns)
        if self.rules.detail == "classic":
            return out
        for what, side in (("query", query), ("reply", reply)):
            if side is not None:
                out[f"{what}_ts_ns"] = side.frame.ts_ns
                out[f"{what}_size"] = side.packet.length
        out |= {"proto": "udp", "sensor": self.rules.sensor, "opcode": seen.message.opcode,
                "flags": (reply or seen).message.flag_text}
        if pending is not None:
            out["retransmits"] = pending.retransmits
        if reply is not None:
            out["rcode"] = reply.message.rcode
        if query is not None and reply is not None:
            latency = reply.frame.ts_ns - query.frame.ts_ns
            if latency >= 0:
                out["latency"] = Latency(latency)
        if seen.packet.vlan:
            out["vlan"] = list(seen.packet.vlan)
        return out

    def _entry(self, record: dns.Record) -> dict[str, Any]:
        out: dict[str, Any] = {"name": record.name, "section": record.section, "type": record.type}
        if record.data is not None:
            out["data"] = record.data
        if self.rules.detail == "full" and record.rdtype != dns.OPT:
            out["class"] = record.class_text
            if record.ttl is not None:
                out["ttl"] = record.ttl
        return out

    def _record_event(self, seen: Seen, record: dns.Record) -> dict[str, Any]:
        client, client_port, server, server_port = seen.ends
        out = self._entry(record) | {
            "client_addr": client, "client_port": client_port, "server_addr": server,
            "server_port": server_port, "tx_id": seen.message.id,
            "msg_type": "reply" if seen.message.is_reply else "query",
        }
        if self.rules.detail == "full":
            out |= {"flags": seen.message.flag_text, "opcode": seen.message.opcode, "proto": "udp",
                    "sensor": self.rules.sensor, "ts": Timestamp(seen.frame.ts_ns),
                    "ts_ns": seen.frame.ts_ns}
            if seen.message.is_reply:
                out["rcode"] = seen.message.rcode
            if seen.packet.vlan:
                out["vlan_path"] = ".".join(map(str, seen.packet.vlan))
        return out


def expected(paths: str | Path | Iterable[str | Path], rules: Rules | None = None,
             **changes: Any) -> Reading:
    """What the capture must give: `expected(path, records=True, timeout=5)` or with Rules."""
    rules = rules or Rules(**changes)
    oracle = Oracle(rules)
    broken = None
    try:
        for frame in read(paths, rules.ports):
            oracle.feed(frame)
    except BrokenCapture as why:
        broken = str(why)
    reading = oracle.finish()
    reading.broken = broken
    return reading
