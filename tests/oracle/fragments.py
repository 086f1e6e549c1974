"""Pieces of IP datagrams → whole datagrams.

Rules, and what was decided where they leave room
- A piece is bad, and discarded alone, if it is empty, not a multiple of 8 octets while more are to
  come, ends beyond what IP can name, or was cut by the capture. That is looked at first: it says
  nothing of its datagram, not even that it began.
- A datagram that contradicts itself is given up with all its pieces (RFC 5722), one whose first
  piece shows ports that are not ours as well; either way later pieces go the same way until the
  timeout, which runs from the first good piece.
- A contradiction is looked for before the ports are: octets beyond the last piece's end, a second
  end, and a range that is held in part, or as a whole with other octets. A range that is held as a
  whole, be it by several pieces, with the same octets is a duplicate; if it says the end for the
  first time the end is taken from it.
- A UDP datagram that is whole and whose checksum (if it has one) is wrong was made of pieces of
  two: all but the last to come have contradicted one another, and that one begins anew (but for
  one that came in a joined datagram itself).
- For less than `copies` after a datagram was joined, further pieces of it are duplicates: a mirror
  shows them twice.
- A datagram is gone at exactly its timeout.
- The joined datagram has the headers of its first piece, and nothing of it is cut.

`counts` has, for each frame with the fate `fragment`, one word of: joined, foreign, duplicate,
overlapping, bad, expired, waiting; limits are not modelled. `datagrams` counts those joined.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .parts import Packet, Piece, Undecoded


@dataclass
class Datagram:
    begun: int
    octets: dict[int, int] = field(default_factory=dict)  # by offset
    end: int | None = None
    first: Piece | None = None
    pieces: int = 0
    given_up: str = ""  # overlapping or foreign


class Fragments:
    """The datagrams that wait for their pieces. Times are nanoseconds of the sensor clock."""

    def __init__(self, timeout: int, copies: int = 0) -> None:
        self.timeout = timeout
        self.copies = copies
        self.joined: dict[object, int] = {}  # when
        self.waiting: dict[object, Datagram] = {}
        self.counts: Counter[str] = Counter()
        self.datagrams = 0

    def expire(self, now: int) -> None:
        for key, datagram in list(self.waiting.items()):
            if datagram.begun + self.timeout <= now:
                self._discard(datagram, "expired")
                del self.waiting[key]

    def take(self, piece: Piece, now: int, nested: bool = False) -> Packet:
        """The datagram's packet if this piece completes it; else raises Undecoded. `nested`: the
        piece itself came in a datagram that was joined."""
        end = piece.offset + len(piece.payload)
        if (piece.cut or not piece.payload or end > piece.limit
                or (piece.more and len(piece.payload) % 8)):
            raise self._fragment("bad")
        if piece.key not in self.waiting and self.joined.get(piece.key, -self.copies
                                                             ) + self.copies > now:
            raise self._fragment("duplicate")
        datagram = self.waiting.setdefault(piece.key, Datagram(now))
        if datagram.given_up:
            raise self._fragment(datagram.given_up)
        given_up = self._verdict(datagram, piece, end)
        if given_up in ("overlapping", "foreign"):
            datagram.given_up = given_up
            self._discard(datagram, given_up)
            raise self._fragment(given_up)
        if not piece.more:
            datagram.end = end
        if given_up != "duplicate":
            datagram.pieces += 1
            datagram.octets |= enumerate(piece.payload, piece.offset)
            if piece.offset == 0:
                datagram.first = piece
        if datagram.end is None or len(datagram.octets) < datagram.end:
            if given_up == "duplicate":
                raise self._fragment("duplicate")
            self._waiting()
            raise Undecoded("fragment", "fragment")
        del self.waiting[piece.key]
        kept = datagram.pieces - (given_up != "duplicate")
        assert datagram.first is not None
        whole = bytes(datagram.octets[at] for at in range(datagram.end))
        if not datagram.first.checks(whole):
            self.counts["overlapping"] += kept
            if nested:
                raise self._fragment("overlapping")
            return self.take(piece, now)
        self.counts["joined"] += kept
        self.joined[piece.key] = now
        self.datagrams += 1
        self._waiting()
        return datagram.first.resume(whole)

    def _verdict(self, datagram: Datagram, piece: Piece, end: int) -> str:
        held = datagram.octets
        if datagram.end is not None and (end > datagram.end
                                         or (not piece.more and end != datagram.end)):
            return "overlapping"
        if not piece.more and any(at >= end for at in held):
            return "overlapping"
        there = [at in held for at in range(piece.offset, end)]
        if all(there):
            same = all(held[at] == octet for at, octet in enumerate(piece.payload, piece.offset))
            return "duplicate" if same else "overlapping"
        if any(there):
            return "overlapping"
        return "foreign" if piece.foreign else ""

    def _discard(self, datagram: Datagram, why: str) -> None:
        """The pieces that it held."""
        self.counts[why] += datagram.pieces
        datagram.octets.clear()
        datagram.pieces = 0
        self._waiting()

    def _fragment(self, why: str) -> Undecoded:
        self.counts[why] += 1
        self._waiting()
        return Undecoded("fragment", "fragment")

    def _waiting(self) -> None:
        self.counts["waiting"] = sum(datagram.pieces for datagram in self.waiting.values())
