"""Packets → messages → transactions → events, in the order in which they became due.

The rules are those of the sensor's specification: matching, transfers, the order of events.
Where they leave room, this is how they are read here:

- A query has timed out for the frame whose clock is exactly query + timeout, hence before that
  frame's events. A duplicate is one strictly within the window, counted from the answer (not from
  later duplicates).
- The question that a reply must repeat is the question section, in order; of more than 16 questions
  the first 16 and their number. An mDNS question is compared without its unicast-response bit.
- A reply with a question never answers a query without one. One without a question answers the
  oldest that waits under the key; where none waits it is a duplicate if a reply without question
  answered under the key in the window, else no_query. A waiting transaction goes before an answered
  one. A query without question repeats one without question.
- At most 64 wait under one key: then the oldest of them leaves as it would at the table's limit.
- A no_query is no answered transaction: its second copy is a no_query again.
- At the limit the oldest leaves before the new query's record events, at that query's frame.
- A message whose header or questions can't be read gives nothing and is counted.
- A reply that continues an open transfer is looked for no query; else one that answers, repeats an
  answer, begins a transfer or has no query, looked for in this order.
- Multicast DNS and LLMNR: what waits under the responder goes before what waits under the group,
  what was answered under the responder (a duplicate) before what was answered under the group (a
  further reply, whose own copies are duplicates within the window).
- What is one_way never waits: it has no `retransmits`, and its copies are events too. A DSO query
  with id 0 is, whatever its counts.
- What waits for a time (queries, transfers, connections) is due in the order of clock and number.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import fields
from . import message as dns
from .capture import NS, BrokenCapture, Clock, Frame, Packet, read
from .fields import Latency, Timestamp
from .fragments import Fragments
from .rules import Rules
from .streams import END, GAP, Direction, Item, Moment, Streams
from .transfers import Transfer, begins, picks_up

__all__ = ["Clock", "Event", "Latency", "Oracle", "Reading", "Rules", "Timestamp", "expected"]

TX, RECORD = "dns-gazer.dns.tx", "dns-gazer.dns.record"
MAX_UNDER_KEY = 64
GROUPS = {"mdns": {4: "224.0.0.251", 6: "ff02::fb"}, "llmnr": {4: "224.0.0.252", 6: "ff02::1:3"}}


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


@dataclass(frozen=True)
class Seen:
    """A message: when, in which packet (of TCP the latest of its direction), and what."""

    moment: Moment
    packet: Packet
    message: dns.Message
    length: int
    direction: Direction | None

    @property
    def ts_ns(self) -> int:
        return self.moment.ts_ns

    @property
    def ends(self) -> tuple[str, int, str, int]:
        """Client address and port, server address and port: QR alone says who is who."""
        p = self.packet
        if self.message.is_reply:
            return p.dst, p.dport, p.src, p.sport
        return p.src, p.sport, p.dst, p.dport

    @property
    def key(self) -> tuple[Any, ...]:
        return self.key_at(self.ends[2])

    @property
    def group_key(self) -> tuple[Any, ...] | None:
        """Of a multicast protocol's reply: where its query stands if it went to the group."""
        group = GROUPS.get(self.packet.protocol, {}).get(6 if ":" in self.packet.src else 4)
        return None if group is None else self.key_at(group)

    def key_at(self, server: str) -> tuple[Any, ...]:
        client, client_port, _, server_port = self.ends
        p = self.packet
        return (client, client_port, server, server_port, p.transport, p.scope, self.message.id)

    @property
    def one_way(self) -> bool:
        p, m = self.packet, self.message
        if p.protocol == "mdns" and p.sport == p.dport == 5353:
            return True
        return m.opcode == "DSO" and not m.is_reply and m.id == 0


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
    bare: bool  # by a reply without question


@dataclass
class Reading:
    """All that a capture must give. `events` in order; `counts` by what happened to each frame and
    message, `fates` of the frames, `pieces` of datagrams, `streams`: segments and their octets;
    `broken` is why the file ends early."""

    events: list[Event] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    fates: Counter[str] = field(default_factory=Counter)
    pieces: Counter[str] = field(default_factory=Counter)
    streams: Counter[str] = field(default_factory=Counter)
    clock_jumps: int = 0
    broken: str | None = None


class Oracle:
    """Feed it frames in order, then finish it."""

    def __init__(self, rules: Rules) -> None:
        if rules.detail not in ("classic", "full"):
            raise ValueError(f"detail: {rules.detail}")
        self.rules = rules
        self.reading = Reading()
        self.timeout = round(rules.timeout * NS)
        self.window = round(rules.duplicate_window * NS)
        self.streams = Streams(round(rules.streams_timeout * NS))
        self.transfers: list[Transfer] = []
        # Both in order of clock, since the clock never goes back; `opened` also holds those that
        # wait no more, until they come to its head.
        self.opened: deque[Pending] = deque()
        self.answered: deque[Answered] = deque()
        self.waiting_at: defaultdict[Any, list[Pending]] = defaultdict(list)  # by key, oldest first
        self.answered_at: defaultdict[Any, list[Answered]] = defaultdict(list)
        self.waiting = 0

    def feed(self, frame: Frame) -> None:
        counts = self.reading.counts
        self._expire(frame.clock)
        counts["frames"] += 1
        self.reading.fates[frame.fate] += 1
        packet = frame.packet
        if packet is None:
            counts[f"frame: {frame.reason}"] += 1
        elif packet.tcp is None:
            counts["datagrams"] += 1
            moment = Moment(frame.clock, frame.number, frame.ts_ns)
            self._message(moment, packet, packet.payload, packet.length, None)
        else:
            counts["segments"] += 1
            for item in self.streams.segment(frame):
                self._item(item)

    def finish(self) -> Reading:
        self._expire(None)
        self.reading.streams = self.streams.counts
        return self.reading

    def _item(self, item: Item) -> None:
        """What happens in a direction of a connection."""
        moment, direction, what = item
        if isinstance(what, bytes):
            assert direction.packet is not None
            self.reading.counts["stream messages"] += 1
            self._message(moment, direction.packet, what, len(what), direction)
            return
        assert what in (GAP, END)
        for transfer in [t for t in self.transfers if t.direction is direction]:
            self._end_transfer(transfer, moment.clock, moment.number)

    def _message(self, moment: Moment, packet: Packet, payload: bytes, length: int,
                 direction: Direction | None) -> None:
        counts = self.reading.counts
        counts["messages"] += 1
        message = dns.read(payload, packet.protocol)
        if message is None:
            counts["malformed: no event"] += 1
            return
        if message.fault:
            counts[f"malformed: {message.fault}"] += 1
        seen = Seen(moment, packet, message, length, direction)
        counts["replies" if message.is_reply else "queries"] += 1
        if seen.one_way:
            self._one_way(seen)
        elif message.is_reply:
            self._reply(seen)
        else:
            self._query(seen)
        if self.rules.records:
            for record in message.records:
                self._emit(seen, "record", fields.record(self.rules, seen, record))

    # ------------------------------------------------------------------------------ time

    def _expire(self, now: int | None) -> None:
        """All that is due by `now`, or (None) all that waits, in the order of its keys."""
        while True:
            due = []
            if pending := self._oldest():
                moment = pending.query.moment
                due.append((moment.clock + self.timeout, moment.number, 0))
            for transfer in self.transfers:
                moment = transfer.last.moment
                due.append((moment.clock + self.timeout, moment.number, 1))
            if stream := self.streams.due():
                due.append((*stream, 2))
            if not due or (now is not None and min(due)[0] > now):
                break
            clock, number, kind = min(due)
            self._forget(clock)
            if kind == 0:
                assert pending is not None
                self._close(pending)
                self._no_reply(pending, clock, number)
            elif kind == 1:
                self._end_transfer(next(t for t in self.transfers
                                        if t.last.moment.number == number), clock, number)
            else:
                for item in self.streams.give_up(at_end=now is None):
                    self._item(item)
        if now is not None:
            self._forget(now)

    def _forget(self, now: int) -> None:
        """Answered transactions of which a reply is a duplicate no more."""
        while self.answered and self.answered[0].clock + self.window <= now:
            done = self.answered.popleft()
            self.answered_at[done.key].remove(done)

    # ------------------------------------------------------------------------------ matching

    def _oldest(self) -> Pending | None:
        while self.opened and not self.opened[0].waits:
            self.opened.popleft()
        return self.opened[0] if self.opened else None

    def _close(self, pending: Pending) -> None:
        pending.waits = False
        self.waiting_at[pending.query.key].remove(pending)
        self.waiting -= 1

    def _one_way(self, seen: Seen) -> None:
        reply = seen.message.is_reply
        self.reading.counts["one way replies" if reply else "one way queries"] += 1
        self._tx(seen, "one_way", None, None if reply else seen, seen if reply else None)

    def _query(self, seen: Seen) -> None:
        for pending in self.waiting_at[seen.key]:
            if pending.query.message.question == seen.message.question:
                pending.retransmits += 1
                self.reading.counts["repeated"] += 1
                return
        if len(self.waiting_at[seen.key]) >= MAX_UNDER_KEY:
            self._evict(self.waiting_at[seen.key][0], seen)
        if self.rules.max_pending is not None and self.waiting >= self.rules.max_pending:
            oldest = self._oldest()
            assert oldest is not None
            self._evict(oldest, seen)
        self.reading.counts["opened"] += 1
        pending = Pending(seen)
        self.opened.append(pending)
        self.waiting_at[seen.key].append(pending)
        self.waiting += 1

    def _evict(self, pending: Pending, seen: Seen) -> None:
        self._close(pending)
        self.reading.counts["evicted"] += 1
        self._no_reply(pending, seen.moment.clock, seen.moment.number)

    def _reply(self, seen: Seen) -> None:
        counts, question = self.reading.counts, seen.message.question
        for transfer in self.transfers:
            if transfer.continues(seen):
                counts["continuations"] += 1
                transfer.add(seen)
                self._end_if_done(transfer)
                return
        keys = [key for key in (seen.key, seen.group_key) if key is not None]
        if pending := self._asked(keys, question):
            self._close(pending)
            asked = pending.query.message.question
            for key in {seen.key, pending.query.key}:
                self._remember(seen, key, asked, question == ())
            counts["matched"] += 1
            if begins(seen, asked):
                self._begin_transfer(pending, seen)
            else:
                self._tx(seen, "success", pending, pending.query, seen)
        elif self._answered(keys[0], question):
            counts["duplicates"] += 1
        elif len(keys) > 1 and self._answered(keys[1], question):
            counts["further"] += 1
            self._remember(seen, seen.key, question, question == ())
            self._tx(seen, "further_reply", None, None, seen)
        else:
            counts["no_query"] += 1
            if begins(seen, question) or picks_up(seen):
                self._begin_transfer(None, seen)
            else:
                self._tx(seen, "no_query", None, None, seen)

    def _asked(self, keys: list[Any], question: tuple[Any, ...]) -> Pending | None:
        for key in keys:
            for pending in self.waiting_at[key]:
                if question in ((), pending.query.message.question):
                    return pending
        return None

    def _answered(self, key: Any, question: tuple[Any, ...]) -> bool:
        return any((question == () and done.bare) or question == done.question
                   for done in self.answered_at[key])

    def _remember(self, seen: Seen, key: Any, question: tuple[Any, ...], bare: bool) -> None:
        done = Answered(seen.moment.clock, key, question, bare)
        self.answered.append(done)
        self.answered_at[key].append(done)

    # ------------------------------------------------------------------------------ transfers

    def _begin_transfer(self, pending: Pending | None, seen: Seen) -> None:
        assert seen.direction is not None
        transfer = Transfer(pending, seen, seen.direction)
        self.reading.counts["transfers"] += 1
        self.transfers.append(transfer)
        self._end_if_done(transfer)

    def _end_if_done(self, transfer: Transfer) -> None:
        if transfer.done:
            moment = transfer.last.moment
            self._end_transfer(transfer, moment.clock, moment.number)

    def _end_transfer(self, transfer: Transfer, clock: int, number: int) -> None:
        self.transfers.remove(transfer)
        self.reading.counts["incomplete"] += not transfer.complete
        pending = transfer.pending
        record = fields.transaction(
            self.rules, "success" if pending else "no_query", pending,
            pending.query if pending else None, transfer.last, transfer)
        self._event(clock, number, transfer.last, "tx", record)

    # ------------------------------------------------------------------------------ events

    def _no_reply(self, pending: Pending, clock: int, number: int) -> None:
        self.reading.counts["no_reply"] += 1
        record = fields.transaction(self.rules, "no_reply", pending, pending.query, None)
        self._event(clock, number, pending.query, "tx", record)

    def _tx(self, seen: Seen, status: str, pending: Pending | None, query: Seen | None,
            reply: Seen | None) -> None:
        self._emit(seen, "tx", fields.transaction(self.rules, status, pending, query, reply))

    def _emit(self, seen: Seen, kind: str, record: dict[str, Any]) -> None:
        self._event(seen.moment.clock, seen.moment.number, seen, kind, record)

    def _event(self, clock: int, number: int, seen: Seen, kind: str,
               record: dict[str, Any]) -> None:
        """`seen` says of which protocol, and has the event's time."""
        last = self.reading.events[-1].due if self.reading.events else (0, 0, 0)
        due = (clock, number, last[2] + 1 if last[1] == number else 0)
        tag = f"dns-gazer.{seen.packet.protocol}.{kind}"
        self.reading.events.append(Event(due, tag, seen.ts_ns, record))


def expected(paths: str | Path | Iterable[str | Path], rules: Rules | None = None,
             **changes: Any) -> Reading:
    """What the capture must give: `expected(path, records=True, timeout=5)` or with Rules."""
    rules = rules or Rules(**changes)
    oracle, clock = Oracle(rules), Clock()
    fragments = Fragments(
        round(rules.fragments_timeout * NS), round(rules.fragments_copies * NS))
    broken = None
    try:
        for frame in read(paths, rules, clock=clock, fragments=fragments):
            oracle.feed(frame)
    except BrokenCapture as why:
        broken = str(why)
    reading = oracle.finish()
    reading.clock_jumps = clock.jumps
    reading.pieces = fragments.counts
    reading.counts["joined datagrams"] = fragments.datagrams
    reading.broken = broken
    return reading
