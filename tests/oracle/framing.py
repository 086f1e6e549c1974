"""The octets of one direction of a TCP connection, in order and with holes → DNS messages.

RFC 1035 4.2.2, RFC 7766 8: two octets of length, then the message. A direction in step knows where
a length stands; out of step it looks for the first offset at which a plausible message begins.

Rules, and what was decided where they leave room
- A hole that begins behind a length and ends no later than that message loses the message alone,
  also if a part of it was lost before. Any other puts the direction out of step.
- Octets out of step that cannot be decided yet are skipped when a hole or the end follows.
- An offset is decided by the first octet that decides it: field by field, as they arrive.
- A name may not use pointers and must end, with type and class, within the length.
"""

from __future__ import annotations

import struct
from collections import Counter

CLASSES = (1, 3, 4, 254, 255)
OPCODES = (0, 2, 4, 5, 6)


class More(Exception):
    """The octets so far do not decide it."""


class Framing:
    """`feed` octets, tell of a `hole`, and of the `end`; `counts` has octets by what became of
    them (framed, skipped), lost messages and resyncs. What waits is `buffered`."""

    def __init__(self, in_step: bool, counts: Counter[str]) -> None:
        self.in_step = in_step
        self.counts = counts
        self.held = b""
        self.lost = 0  # octets still to come of a message of which a part is missing

    @property
    def buffered(self) -> int:
        return len(self.held)

    def feed(self, octets: bytes) -> list[bytes]:
        messages: list[bytes] = []
        self.held += octets
        while True:
            if self.lost:
                gone = min(self.lost, len(self.held))
                self._skip(gone)
                self.lost -= gone
            if not self.in_step:
                self._search()
            if not self.in_step or self.lost or len(self.held) < 2:
                return messages
            size = 2 + int.from_bytes(self.held[:2], "big")
            if len(self.held) < size:
                return messages
            messages.append(self.held[2:size])
            self.held = self.held[size:]
            self.counts["framed"] += size

    def hole(self, size: int) -> None:
        if self.in_step:
            left = self.lost
            if not left and len(self.held) >= 2:
                left = 2 + int.from_bytes(self.held[:2], "big") - len(self.held)
                self.counts["lost messages"] += 1
            elif not left and self.held:
                self.counts["lost messages"] += 1
            self.in_step = size <= left
            self.lost = left - size if self.in_step else 0
        self._skip(len(self.held))

    def end(self) -> None:
        if self.in_step and self.held:
            self.counts["lost messages"] += 1
        self._skip(len(self.held))

    def _skip(self, size: int) -> None:
        self.counts["skipped"] += size
        self.held = self.held[size:]

    def _search(self) -> None:
        for at in range(len(self.held)):
            try:
                if plausible(self.held[at:]):
                    self._skip(at)
                    self.in_step = True
                    self.counts["resyncs"] += 1
                    return
            except More:
                self._skip(at)
                return
        self._skip(len(self.held))


def plausible(octets: bytes) -> bool:
    """Whether a message with its length may begin here; raises More where that is still open."""
    size = 2 + _u16(octets, 0)
    if size < 14:
        return False
    flags = _u8(octets, 4) << 8
    if flags >> 11 & 15 not in OPCODES:
        return False
    flags |= _u8(octets, 5)
    if flags & 0x0040:
        return False
    questions = _u16(octets, 6)
    if questions == 1:
        at = _name(octets, size, 4)
        return at > 0 and _u16(octets, at + 2) in CLASSES
    if questions or not flags & 0x8000 or flags >> 11 & 15:
        return False
    if _u16(octets, 8) == 0:
        return False
    at = _name(octets, size, 10)
    if not at or _u16(octets, at + 2) not in CLASSES:
        return False
    return at + 10 + _u16(octets, at + 8) <= size


def _name(octets: bytes, size: int, behind: int) -> int:
    """Where the name at the first question or record ends; 0 if there is none that leaves so many
    octets `behind` it within the message."""
    at = 14
    while True:
        if at + 1 + behind > size:
            return 0
        label = _u8(octets, at)
        if label > 63:
            return 0
        at += label + 1
        if at - 14 > 255:
            return 0
        if label == 0:
            return at


def _u8(octets: bytes, at: int) -> int:
    if at >= len(octets):
        raise More
    return octets[at]


def _u16(octets: bytes, at: int) -> int:
    if at + 2 > len(octets):
        raise More
    return int(struct.unpack_from("!H", octets, at)[0])
