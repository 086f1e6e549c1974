"""Names: pointers, lengths, label types, and octets that break logs.

Where a name stands: a question's is at offset 12; the first answer's behind the question
www.example. at 29 (see bombs.AT_RECORDS).
"""

from __future__ import annotations

import pytest

from tests.hostile.bombs import AT_RECORDS, WWW, Case, Ran, case, names, query, ran, reply
from tests.oracle import build
from tests.wire import name_text

LOOP, LONG, LABEL, CUT = "pointer_loop", "name_too_long", "bad_label", "truncated"


def pointer(to: int) -> bytes:
    return (0xC000 | to).to_bytes(2, "big")


def answer(owner: bytes, *more: bytes, counts=None) -> bytes:
    """A reply whose first answer has this owner."""
    return reply(build.record(owner, 1, bytes(4)), *more, counts=counts)


def both(name: str, at_12: bytes, at_29: bytes, anomaly: str) -> list[Case]:
    """The same fault in a question, which no event can do without, and in an answer."""
    return [
        case(f"{name}, in the question", query(at_12), f"unreadable {anomaly}"),
        case(f"{name}, in an answer", answer(at_29), f"malformed {anomaly}",
             names("www.example.", of="reply")),
    ]


POINTERS = [
    #                                      at 12                   at 29
    *both("a pointer to itself",           pointer(12),            pointer(29),            LOOP),
    *both("a label and back to it",        b"\1a" + pointer(12),   b"\1a" + pointer(29),   LOOP),
    *both("two pointers to one another",   pointer(14) + pointer(12),
                                           pointer(31) + pointer(29),                      LOOP),
    *both("forward, to a good name",       pointer(20) + bytes(6) + WWW,
                                           pointer(43) + bytes(12) + WWW,                  LOOP),
    *both("past the end of the message",   pointer(0x3FFF),        pointer(0x3FFF),        LOOP),
    *both("to the second octet of itself", pointer(13),            pointer(30),            LOOP),
    # The header's octets as a name: id 0x0007 begins with a zero, which is the root.
    case("into the header, at the id", query(pointer(0)), "ok", names(".")),
    # 00 01 at 4 are QDCOUNT: at 5 stands a label of one octet, 00, then the zero of ANCOUNT.
    case("into the header, at the counts", query(pointer(5)), "ok", names("\\000.")),
    # At 2 stand the flags 01 00: a label of one octet, 00; then 00.
    case("into the header, from an answer", reply(build.record(pointer(3), 1, bytes(4)),
                                                  flags=0x8100), "ok",
         names("www.example.", ".", of="reply")),
    case("a pointer that breaks off", query()[:12] + b"\xc0", f"unreadable {CUT}"),
    case("into the middle of a label", reply(build.record(pointer(13), 1, bytes(4))),
         f"malformed {LABEL}", names("www.example.", of="reply")),
]

# Each of the `steps` pointers points at the one before it: one name, all of them to follow.
def chain(steps: int) -> bytes:
    first = AT_RECORDS + 12          # behind owner, type, class, TTL and length of the record
    rdata = pointer(12) + b"".join(pointer(first + 2 * i) for i in range(steps - 1))
    return build.record(pointer(12), 65280, rdata)


def end_of_chain(steps: int) -> int:
    return AT_RECORDS + 12 + 2 * (steps - 1)


def steps(count: int) -> bytes:
    """A record for each step, its owner a label and a pointer to the step before."""
    wire, at, before = b"", AT_RECORDS, 12
    for i in range(count):
        record = build.record(b"\1" + bytes([97 + i % 26]) + pointer(before), 1, bytes(4))
        before, at = at, at + len(record)
        wire += record
    return reply(wire, counts=(1, count, 0, 0))


def only(*anomalies: str, records: int):
    def check(events):
        assert len(events) == 1
        assert len(events[0]["reply"]) == records
    return check


LONGEST = build.labels("a" * 63, "b" * 63, "c" * 63, "d" * 61)      # 255 octets
MANY = reply(build.record(LONGEST, 1, bytes(4)),
             build.record(pointer(AT_RECORDS), 1, bytes(4)) * 4_000, counts=(1, 4_001, 0, 0))

STAIRCASES = [
    case("a name by way of 127 pointers", reply(chain(126), build.record(
        pointer(end_of_chain(126)), 1, bytes(4))), "ok",
        names("www.example.", "www.example.", "www.example.", of="reply")),
    case("a name by way of 129 pointers", reply(chain(129), build.record(
        pointer(end_of_chain(129)), 1, bytes(4))), f"malformed {LOOP}",
        only(records=2)),
    # www.example. has 13 octets, each step adds two: the 121st has 255.
    case("steps up to a name of 255 octets", steps(121), "ok", only(records=122)),
    case("steps beyond 255 octets", steps(122), f"malformed {LONG}", only(records=122)),
    case("steps by the thousand", steps(2_000), f"malformed {LONG}", only(records=122)),
    case("7,000 pointers under 100 names", reply(
        chain(7_000), build.record(pointer(end_of_chain(7_000)), 1, bytes(4)) * 100,
        counts=(1, 101, 0, 0)), f"malformed {LOOP}", only(records=2)),
    case("4,000 names of 255 octets", MANY, "ok",
         lambda events: many_names(events, 1 + 1 + 4_000)),
]


def many_names(events, records: int) -> None:
    """The event is bounded, and says how much of the message it lacks."""
    assert len(events) == 1
    assert len(events[0]["reply"]) + events[0]["omitted"] == records
    assert 200 < len(events[0]["reply"]) < 1_000


MAX = [b"a" * 63, b"b" * 63, b"c" * 63]
LENGTHS = [
    case("255 octets", query(build.labels(*MAX, "d" * 61)), "ok",
         names(name_text([*MAX, b"d" * 61]))),
    *both("256 octets", build.labels(*MAX, "d" * 62), build.labels(*MAX, "d" * 62), LONG),
    case("127 labels of one octet", query(build.labels(*["x"] * 127)), "ok", names("x." * 127)),
    case("127 labels of one octet, each \\000", query(b"\1\0" * 127 + b"\0"), "ok",
         names("\\000." * 127)),
    *both("128 labels of one octet", b"\1x" * 128 + b"\0", b"\1x" * 128 + b"\0", LONG),
    case("256 octets by way of a pointer", reply(
        build.record(build.labels(*MAX, "d" * 50)[:-1] + pointer(12), 1, bytes(4))),
        f"malformed {LONG}", names("www.example.", of="reply")),
    case("255 octets by way of a pointer", reply(
        build.record(build.labels(*MAX, "d" * 49)[:-1] + pointer(12), 1, bytes(4))),
        "ok", names("www.example.", name_text([*MAX, b"d" * 49]) + "www.example.", of="reply")),
    case("a label longer than the message", query()[:12] + b"\x3fabc", f"unreadable {CUT}"),
    case("no root label", query()[:12] + b"\3www\7example", f"unreadable {CUT}"),
    case("the root", query(b"\0"), "ok", names(".")),
]

TYPES = [kind for name, octets in {
    "a label of 64 octets": b"\x40" + b"x" * 64,
    "an extended label (RFC 6891)": b"\x41" + b"\x20" + b"x" * 4,
    "label type 10": b"\x80" + b"x",
    "the last octet before pointers": b"\xbf" + b"x",
    "a reserved label behind a good one": b"\1a\x40" + b"x" * 64,
}.items() for kind in both(name, octets + b"\0", octets + b"\0", LABEL)]

# What stands in a label, and breaks whoever writes it down as it is.
OCTETS = {
    "a dot": b"a.b",
    "nothing but a dot": b".",
    "NUL": b"a\0b",
    "a backslash": b"a\\b",
    "a backslash at the end": b"a\\",
    "an escape that looks like ours": b"\\000",
    "a quote": b'a"b',
    "a newline": b"a\nb",
    "carriage return and newline": b"\r\n",
    "a tab, which parts a text line": b"a\tb",
    "escape, as terminals read it": b"\x1b[2J\x1b]0;x\x07",
    "DEL": b"\x7f",
    "a space": b"a b",
    "0xff": b"\xff\xff",
    "UTF-8 that breaks off": b"\xc3",
    "UTF-8 that is too long": b"\xc0\xaf",
    "a surrogate in UTF-8": b"\xed\xa0\x80",
    "U+2028, a line's end in JavaScript": "\u2028".encode(),
    "U+202E, right to left": "\u202egro.example".encode(),
    "a JSON fragment": b'"}], "status": "success", "x": [{"y":"',
    "the end of an object": b'"}\n{"tag":"forged"}',
    "msgpack's never-used octet": b"\xc1\xc1",
    "a format": b"%s%n{}${jndi:ldap://x}",
    "markup": b"<script>alert(1)</script>&amp;",
    "a zone file's comment": b"a;b (\n",
    "upper and lower case": b"WwW",
    "all the lowest octets": bytes(range(48)),
    "all the highest octets": bytes(range(208, 256)),
}


def data_is(text: str):
    def check(events) -> None:
        assert len(events) == 1
        assert [r.get("data") for r in events[0]["reply"]] == [None, text]

    return check


LABELS = [
    case(f"a label with {name}", query(build.labels(octets, b"example")), "ok",
         names(name_text([octets, b"example"])))
    for name, octets in OCTETS.items()
] + [
    case(f"a CNAME to a label with {name}", reply(
        build.record(pointer(12), 5, build.labels(octets))), "ok",
        data_is(name_text([octets])))
    for name, octets in OCTETS.items()
]


CASES = [*POINTERS, *STAIRCASES, *LENGTHS, *TYPES, *LABELS]
run = ran(CASES)


@pytest.mark.parametrize("one", CASES, ids=str)
def test_names(run: Ran, one: Case) -> None:
    run.check(one)


def test_every_frame_is_in_one_counter(run: Ran) -> None:
    run.account()
