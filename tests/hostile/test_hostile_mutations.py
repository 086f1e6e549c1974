"""Real messages, changed at random, forty thousand of them: decoded and encoded.

The messages come from the recorded captures.  None may end the process (they stand before an
unreadable page, events between canaries), whatever comes out is valid in both formats, and where
the oracle reads the message, it has the same records in the same words.
"""

from __future__ import annotations

import json
import random
import struct
from collections import Counter
from pathlib import Path

import msgpack
import pytest

from gazer.workers import doors
from tests.oracle import build, capture, compare, message

CAPTURES = Path(__file__).parent.parent / "captures"
ENDS = {"client": "192.0.2.1", "client_port": 4000, "server": "192.0.2.2", "server_port": 53,
        "ident": 1}
OPT = 41
# Types of class IN alone, in class NONE or ANY: an update may name them, see the oracle.
ONLY_IN = message._ONLY_IN
PLAIN = dict(zip(message.UPDATE_SECTIONS, message.SECTIONS, strict=True))


@pytest.fixture(scope="module")
def corpus() -> list[bytes]:
    """The messages of the captures, each once, those that tell of more types oftener."""
    found: dict[bytes, int] = {}
    for path in sorted(CAPTURES.glob("*.pcap*")):
        for frame in capture.read(path):
            if frame.packet and len(frame.packet.payload) >= 12:
                wire = frame.packet.payload
                found.setdefault(wire[2:], len(found))
    wires = [b"\0\1" + rest for rest in found]
    assert len(wires) > 300
    kinds: dict[frozenset, list[bytes]] = {}
    for wire in wires:
        read = message.read(wire)
        if read:
            kinds.setdefault(frozenset(r.rdtype for r in read.records), []).append(wire)
    return [wire for same in kinds.values() for wire in same[:12]]


def mutated(dice: random.Random, corpus: list[bytes]) -> bytes:
    wire = bytearray(dice.choice(corpus))
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        if not wire:
            break
        what, at = dice.randrange(9), dice.randrange(len(wire))
        if what == 0:
            wire[at] = dice.randrange(256)
        elif what == 1:
            wire[at] ^= 1 << dice.randrange(8)
        elif what == 2:
            wire[at] = dice.choice((0, 1, 63, 64, 127, 128, 191, 192, 254, 255))
        elif what == 3:
            wire[at:at + 2] = struct.pack("!H", 0xC000 | dice.randrange(len(wire) + 4))
        elif what == 4:
            del wire[at:at + dice.randrange(1, 12)]
        elif what == 5:
            wire[at:at] = dice.randbytes(dice.randrange(1, 12))
        elif what == 6:
            start = dice.randrange(len(wire))
            wire[at:at] = wire[start:start + dice.randrange(1, 40)]
        elif what == 7 and len(wire) >= 12:
            wire[4 + 2 * dice.randrange(4) + 1] = dice.choice((0, 1, 2, 9, 255))
        else:
            other = dice.choice(corpus)
            wire[at:] = other[dice.randrange(len(other)):]
    return bytes(wire[:65535])


class Both:
    """Writers of both levels of detail, for queries and replies."""

    def __init__(self) -> None:
        self.writers = [doors.Writer(full=full, formats=[0, 2], max_size=16384)
                        for full in (False, True)]

    def check(self, wire: bytes, deep: bool) -> None:
        """Encode it as a reply to itself: tx in both details, and now and then its records."""
        for number, writer in enumerate(self.writers):
            (out,), _ = writer.events(query=wire, reply=wire, reply_time=1, **ENDS)
            self.same(out)
            if deep and number:
                events, _ = writer.events(reply=wire, **ENDS, records=True)
                for one in events:
                    self.same(one)

    def same(self, out: dict[int, bytes]) -> None:
        assert len(out[0]) <= 16384 and len(out[2]) <= 16384
        line = out[0].decode("ascii")
        _, tag, body = line.split("\t")
        assert body.endswith("}\n") and "\n" not in body[:-1]
        assert [tag, 0, json.loads(body)] == msgpack.unpackb(out[2])


def agree(found: dict, read: message.Message | None, wire: bytes) -> bool:
    """What gazer and the oracle make of the message is one; True if records were compared."""
    assert found["readable"] == (read is not None), wire.hex()
    if read is None:
        assert found["anomaly"] not in ("ok", "trailing", "bad_rdata")
        return False
    assert found["omitted"] == 0
    opt = any(r.rdtype == OPT and r.section != "question" for r in read.records)
    # The decoder tells sections by number; an UPDATE's names for them are the encoder's.
    words = [(PLAIN.get(r.section, r.section), r.name, r.rdtype, r.rdclass, r.ttl, r.data)
             for r in read.records]
    got = found["records"]
    if opt:     # its text is ours alone: what both must agree on is size and flag
        words, got = ([(*r[:5], compare.loosely(r[5])) if r[2] == OPT and r[5] else r
                       for r in rows] for rows in (words, got))
    assert got == words, wire.hex()
    if read.fault is None:
        # Bytes behind the last record, and what an option holds, are no matter to the oracle.
        assert found["anomaly"] in {"ok", "trailing"} | ({"bad_rdata"} if opt else set())
    elif read.fault.startswith("dso: "):
        assert found["anomaly"] == "truncated"
    elif read.fault.startswith("rdata: "):
        assert found["anomaly"] == "bad_rdata", (read.fault, wire.hex())
    elif not (opt and found["anomaly"] == "bad_rdata"):
        assert found["anomaly"] in {
            "cut off": ("truncated", "counts"), "name too long": ("name_too_long",),
            "pointer not backwards": ("pointer_loop",), "label type": ("bad_label",),
            "rdata beyond the end": ("rdlength",)}[read.fault], (read.fault, wire.hex())
    return True


def test_unchanged_messages_are_read_as_the_oracle_does(corpus):
    reader = doors.Reader(1 << 20)
    compared = sum(agree(reader.read(wire), message.read(wire), wire) for wire in corpus)
    assert compared > 0.95 * len(corpus)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_messages(corpus, seed):
    """10,000 of each seed, all decoded; a third is encoded, and half is read by the oracle too."""
    dice = random.Random(seed)
    reader, both = doors.Reader(1 << 20), Both()
    anomalies: Counter[str] = Counter()
    compared = 0
    for number in range(10_000):
        wire = mutated(dice, corpus)
        found = reader.read(wire, number % 50 == 49)
        anomalies[found["anomaly"]] += 1
        if number % 50 == 49:
            continue
        if found["readable"] and number % 3 == 0:
            both.check(wire, number % 30 == 0)
        if number % 2 == 0:
            compared += agree(found, message.read(wire), wire)
    assert compared > 2400
    assert len(anomalies) >= 10, anomalies      # every kind but one is met


def test_any_bytes_at_all():
    dice = random.Random(77)
    reader, both = doors.Reader(1 << 20), Both()
    for _ in range(3000):
        body = dice.randbytes(dice.choice((0, 5, 40, 300)))
        counts = tuple(dice.choice((0, 0, 1, 3)) for _ in range(4))
        wire = build.header(1, dice.randrange(65536), counts) + body
        if agree(reader.read(wire), message.read(wire), wire):
            both.check(wire, True)


def test_every_type_with_any_rdata(corpus):
    """Each type number that has a form, and some that have none, over octets that nearly fit."""
    dice = random.Random(99)
    reader, both = doors.Reader(1 << 20), Both()
    pieces = [b"\0", b"\1a\0", b"\xc0\x0c", b"\xc0\x1d", bytes(4), b"\0\1", b"\3abc", b"\xff" * 8,
              b"\0\1\x40", b"\0\3\0\2\1\xbb", b"\0\1\0\3\2h2", b"\4\"\\,\xff"]
    for number in range(15_000):
        rdtype = number % 70 if number % 3 else dice.choice(
            (99, 104, 107, 108, 249, 250, 256, 257, 258, 261, 262, 32768, 32769, 65280))
        rdata = b"".join(dice.choice(pieces) for _ in range(dice.randrange(7)))
        rdclass = dice.choice((1, 1, 1, 1, 3, 254, 255))
        wire = (build.header(1, 0x8180, (1, 2, 0, 0)) + build.question(build.labels("www", "x"))
                + build.record(b"\xc0\x0c", rdtype, rdata, rdclass=rdclass)
                + build.record(b"\xc0\x0c", 1, bytes(4)))
        agree(reader.read(wire), message.read(wire), wire)
        if number % 10 == 0:
            both.check(wire, False)
