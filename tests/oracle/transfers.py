"""Zone transfers: one event of many messages (RFC 5936, RFC 1995).

Rules, and what was decided where they leave room
- What a transfer is of is the query's type; without a query that of its own question; without
  either (picked up in the middle) the second record tells, as of an IXFR, but one SOA and nothing
  else may as well be an AXFR's last message: that ends it, and it is not complete.
- Only answer records count. An AXFR ends at its second SOA. An IXFR's second record tells whether
  it comes as an AXFR; else SOAs come in turn where deletions and additions begin, and it ends where
  one with the first one's serial stands in a deletion's place. Of a first message that has one SOA
  and nothing else an IXFR has all (the zone has not changed).
- A transfer whose first record is no SOA ends with the first message whose last answer is one, and
  is not complete; its first message may be that.
- Records behind the closing one, in its message, belong to it; the message is its last.
- A continuation with an rcode ends it and is part of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import message as dns

if TYPE_CHECKING:
    from .events import Pending, Seen
    from .streams import Direction

SOA, IXFR, AXFR = 6, 251, 252


class Transfer:
    """`done` once its closing record was seen or nothing more can come; `complete` says which."""

    def __init__(self, pending: Pending | None, first: Seen, direction: Direction) -> None:
        self.pending = pending
        self.direction = direction
        self.messages: list[Seen] = []
        asked = (pending.query if pending else first).message.question
        self.question = asked
        self.rdtype = asked[0][1] if asked else 0
        self.turn = "first"  # what stands next: first, second, then those of the style
        self.serial = ""
        self.complete = self.done = False
        self.add(first)

    @property
    def last(self) -> Seen:
        return self.messages[-1]

    @property
    def answers(self) -> list[dns.Record]:
        return [record for seen in self.messages for record in seen.message.answers]

    def continues(self, seen: Seen) -> bool:
        """Whether this reply is its next message."""
        return (seen.direction is self.direction and seen.message.id == self.last.message.id
                and seen.message.question in ((), self.question))

    def add(self, seen: Seen) -> None:
        self.messages.append(seen)
        if seen.message.rcode != "NOERROR":
            self.done = True
            return
        for record in seen.message.answers:
            if not self.done:
                self._record(record)
        if self.turn == "open end":
            self.done = seen.message.answers[-1:] != [] and (
                seen.message.answers[-1].rdtype == SOA)
        elif (self.rdtype != AXFR and len(self.messages) == 1 and len(self.answers) == 1
              and self.turn == "second"):
            self.done = True
            self.complete = self.rdtype == IXFR

    def _record(self, record: dns.Record) -> None:
        soa = record.rdtype == SOA
        if self.turn == "first":
            self.turn = ("zone" if self.rdtype == AXFR else "second") if soa else "open end"
            self.serial = _serial(record)
        elif self.turn == "second" and not soa:
            self.turn = "zone"
        elif self.turn in ("second", "deletion") and soa:
            self.turn = "addition"
            self.complete = self.done = _serial(record) == self.serial
        elif self.turn == "addition" and soa:
            self.turn = "deletion"
        elif self.turn == "zone" and soa:
            self.complete = self.done = True


def _serial(record: dns.Record) -> str:
    """Of a SOA, as it is shown: master, mailbox, serial, ...; of one that can't be read nothing."""
    parts = (record.data or "").split(" ")
    return parts[2] if record.rdtype == SOA and len(parts) == 7 else ""


def begins(seen: Seen, asked: tuple[tuple[object, int, int], ...]) -> bool:
    """Whether this reply is a transfer's first message; `asked` is the query's question, or its
    own."""
    m = seen.message
    return (seen.direction is not None and m.rcode == "NOERROR" and bool(m.answers)
            and bool(asked) and asked[0][1] in (IXFR, AXFR))


def picks_up(seen: Seen) -> bool:
    """Whether this reply, which matches nothing, is of a transfer that began unseen."""
    m = seen.message
    return (seen.direction is not None and m.rcode == "NOERROR" and m.opcode == "QUERY"
            and not m.question and bool(m.answers))
