"""Pieces of datagrams as frames, and a model of what becomes of them, in plain Python and by single
octets; for test_fragments."""

from __future__ import annotations

import random
import struct
from collections import OrderedDict
from dataclasses import dataclass, field

from gazer.capture.doors import SIZES, Table
from tests.oracle import build

SECOND = 10**9
SRC, DST = "192.0.2.1", "198.51.100.53"
SRC6, DST6 = "2001:db8::1", "2001:db8::53"
REASONS = ("joined", "foreign", "duplicate", "overlapping", "bad", "expired", "evicted", "waiting")


# --- pieces, as frames and as what they say ------------------------------------------------------


def v4(octets: bytes, offset=0, more=True, id=7, src=SRC, dst=DST, protocol=17, options=b""):
    return build.frame(build.ipv4(
        src, dst, protocol, octets, options=options, ident=id, offset=offset, more=more))


def v6(octets: bytes, offset=0, more=True, id=7, src=SRC6, dst=DST6, protocol=17, before=()):
    fields = struct.pack("!HI", offset | more, id)
    return build.frame(build.ipv6(
        src, dst, protocol, octets, extensions=[*before, (44, fields)]))


def read(frame: bytes) -> dict:
    """What the headers of a piece say; Ethernet, and hop-by-hop options before the fragment header
    where there are any."""
    at = 14
    if frame[12:14] == b"\x08\x00":
        word = int.from_bytes(frame[at + 6:at + 8], "big")
        size = (frame[at] & 15) * 4
        end = at + int.from_bytes(frame[at + 2:at + 4], "big")
        return {
            "family": 4, "protocol": frame[at + 9], "more": bool(word & 0x2000),
            "id": int.from_bytes(frame[at + 4:at + 6], "big"), "offset": (word & 0x1FFF) * 8,
            "addresses_offset": at + 12, "head_length": at + size, "payload_offset": at + size,
            "payload_length": end - at - size,
        }
    end = at + 40 + int.from_bytes(frame[at + 4:at + 6], "big")
    kind, here = frame[at + 6], at + 40
    while kind != 44:
        kind, here = frame[here], here + 8 * (frame[here + 1] + 1)
    word, id = struct.unpack("!HI", frame[here + 2:here + 8])
    return {
        "family": 6, "protocol": frame[here], "more": bool(word & 1), "id": id,
        "offset": word & 0xFFF8, "addresses_offset": at + 8, "head_length": here,
        "payload_offset": here + 8, "payload_length": end - here - 8,
    }


def give(table: Table, frame: bytes, clock: int = 0, **more):
    return table.add(frame, read(frame), clock, **more)


def payload(whole: dict) -> bytes:
    return whole["frame"][whole["head_length"]:]


def told(table: Table) -> dict:
    """The counts that are not zero; and the balance, by the way."""
    return {name: n for name, n in table.counts.items() if n}


def handed_in(table: Table) -> int:
    """How many pieces the counts account for."""
    counts = table.counts
    return sum(counts[name] for name in REASONS) + counts["datagrams"]


def cut(octets: bytes, *sizes: int, make=v4, **more) -> list[bytes]:
    """A datagram's payload as frames with pieces of these sizes and of what is left."""
    at, frames = 0, []
    for size in sizes:
        frames.append(make(octets[at:at + size], at, True, **more))
        at += size
    return [*frames, make(octets[at:], at, False, **more)]


def some(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


# --- the model -----------------------------------------------------------------------------------


@dataclass
class Waiting:
    since: int
    state: str = "waiting"
    octets: dict = field(default_factory=dict)
    total: int | None = None
    frames: int = 0
    head: bytes = b""
    protocol: int = 0

    @property
    def cells(self) -> int:
        pages = len({at // SIZES["page"] for at in self.octets})
        return 1 + pages + more_head(len(self.head))


def more_head(length: int) -> int:
    return max(0, -(-(length - SIZES["first_head"]) // SIZES["more_head"]))


class Model:
    """The rules for fragments, as they are written; an OrderedDict, the least recently used first.

    Every octet that is there is a key of a dict."""

    def __init__(self, max_datagrams, max_cells, timeout):
        self.limits = (max_datagrams, max_cells)
        self.timeout = timeout
        self.table: OrderedDict[tuple, Waiting] = OrderedDict()
        self.counts = dict.fromkeys(("datagrams", *REASONS), 0)

    def leave(self, key, count):
        self.counts[count] += self.table[key].frames
        del self.table[key]

    def add(self, frame, clock, scope=b"", levels=0, foreign=False):
        piece = read(frame)
        for key in [k for k, w in self.table.items() if clock - w.since >= self.timeout]:
            self.leave(key, "expired")
        whole = self.take(piece, frame, clock, scope, levels, foreign)
        self.counts["waiting"] = sum(w.frames for w in self.table.values())
        return whole

    def take(self, piece, frame, clock, scope, levels, foreign):
        at = piece["payload_offset"]
        octets = frame[at:at + piece["payload_length"]]
        start = piece["offset"]
        end = start + len(octets)
        header = piece["head_length"] - 14 if piece["family"] == 4 else 0
        if not octets or (piece["more"] and len(octets) % 8) or end + header > 65535:
            self.counts["bad"] += 1
            return None
        ends = frame[piece["addresses_offset"]:][:8 if piece["family"] == 4 else 32]
        key = (piece["family"], ends, piece["id"], scope, levels,
               piece["protocol"] if piece["family"] == 4 else None)
        new = dict(enumerate(octets, start))
        if key in self.table:
            self.table.move_to_end(key)
            known = self.table[key]
            if known.state != "waiting":
                self.counts[known.state] += 1
                return None
            last = not piece["more"]
            if ((known.total is not None and (end > known.total or (last and end != known.total)))
                    or (last and end <= max(known.octets))):
                self.give_up(known, "overlapping")
                return None
            if new.items() <= known.octets.items():
                if last:
                    known.total = end
                if len(known.octets) == known.total:
                    return self.whole(key, 0)
                self.counts["duplicate"] += 1
                return None
            if new.keys() & known.octets.keys():
                self.give_up(known, "overlapping")
                return None
        else:
            while len(self.table) >= self.limits[0]:
                self.leave(next(iter(self.table)), "evicted")
            self.room(1)
            known = self.table[key] = Waiting(clock)
        if foreign and start == 0:
            self.give_up(known, "foreign")
            return None
        head = frame[:piece["head_length"]] if start == 0 else known.head
        later = Waiting(0, octets=known.octets | new, head=head).cells
        self.room(later - known.cells)
        known.octets.update(new)
        known.frames += 1
        if start == 0:
            known.head, known.protocol = head, piece["protocol"]
        if not piece["more"]:
            known.total = end
        if len(known.octets) != known.total:
            return None
        return self.whole(key, 1)

    def whole(self, key, kept):
        """`kept`: the piece that made it whole is among those it keeps."""
        known = self.table.pop(key)
        self.counts["datagrams"] += 1
        self.counts["joined"] += known.frames - kept
        return known.head + bytes(known.octets[i] for i in range(known.total)), known.protocol

    def give_up(self, known, state):
        self.counts[state] += known.frames + 1
        known.state, known.frames, known.octets, known.head = state, 0, {}, b""

    def room(self, cells):
        while self.cells + cells > self.limits[1]:
            self.leave(next(iter(self.table)), "evicted")

    @property
    def cells(self):
        return sum(w.cells for w in self.table.values())


class Both:
    """Table and model side by side."""

    def __init__(self, **limits):
        limits.setdefault("max_datagrams", 64)
        limits.setdefault("timeout", 30 * SECOND)
        self.table = Table(**limits)
        self.model = Model(limits["max_datagrams"], self.table.max_cells, limits["timeout"])
        self.given = 0

    def give(self, frame, clock=0, **more):
        want = self.model.add(frame, clock, **more)
        got = give(self.table, frame, clock, **more)
        self.given += 1
        assert (got and (got["frame"], got["protocol"])) == want
        assert self.table.counts == self.model.counts
        assert (self.table.known, self.table.cells) == (len(self.model.table), self.model.cells)
        assert handed_in(self.table) == self.given
        return got
