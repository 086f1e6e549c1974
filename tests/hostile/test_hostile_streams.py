"""TCP bombs: half-open connections, holes, lengths that promise, segments of an octet, forged ends;
against tables so small that every limit is reached.

`place.stream()` is a connection from the outside; each call makes one segment. The good pair behind
each bomb comes over UDP and, on another connection of the same client, over TCP.
"""

from __future__ import annotations

import struct

import pytest

from tests.hostile.bombs import (
    PORT,
    SERVER,
    WWW,
    A,
    Case,
    Place,
    Ran,
    Stream,
    at_rest,
    framed,
    query,
    ran,
    reply,
    shows,
    statuses,
)
from tests.oracle import build

KIB, MIB = 1 << 10, 1 << 20
SECOND = 10**9
CONFIG = {
    "streams": {"max_streams": 256, "max_bytes_each": "128KiB", "max_bytes": "2MiB",
                "max_transfers": 64},
    "transactions": {"max_pending": 2_000},
}
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16

QUERY, REPLY = query(), reply(A)
PAIR = ("ok", "ok")


def tcp(name: str, frames, segments: int, messages=(), says=None) -> Case:
    return Case(name, frames, ["segment"] * segments, says, messages, tcp=True)


def talk(place: Place, *parts) -> list[bytes]:
    """An open connection, and then what each part makes of it: a list of segments each."""
    stream = place.stream()
    frames = stream.open()
    for part in parts:
        made = part(stream)
        frames += [made] if isinstance(made, bytes) else made
    return frames


def octets(server: bool, data: bytes, size: int = 1):
    """The data in segments of this size."""
    return lambda stream: [stream.segment(server, data[at:at + size])
                           for at in range(0, len(data), size)]


def ask(stream: Stream) -> bytes:
    return stream.ask(QUERY)


def answer(stream: Stream) -> bytes:
    return stream.answer(REPLY)


def paired(events) -> None:
    assert [event["status"] for event in events] == ["success"]
    assert events[0]["proto"] == "tcp"
    assert [r.get("data") for r in events[0]["reply"]] == [None, "192.0.2.80"]


LARGE = reply(build.record(b"\xc0\x0c", 65280, bytes(65_535 - 29 - 12)))        # 65,535 octets
assert len(LARGE) == 65_535

SPLITS = [
    tcp("every octet a segment of its own", lambda place: talk(
        place, octets(False, framed(QUERY)), octets(True, framed(REPLY))),
        3 + 2 + len(QUERY) + 2 + len(REPLY), PAIR, paired),
    tcp("every octet a segment, each sent twice", lambda place: talk(
        place, *(part for i in range(len(framed(QUERY))) for part in [
            lambda s, i=i: s.segment(False, framed(QUERY)[i:i + 1]),
            lambda s, i=i: s.segment(False, framed(QUERY)[i:i + 1], seq=s.next[0] - 1)]),
        answer), 3 + 2 * len(framed(QUERY)) + 1, PAIR, paired),
    tcp("every octet a segment, in reverse", lambda place: talk(
        place, lambda s: [s.segment(False, framed(QUERY)[i:i + 1], seq=s.next[0] + i)
                          for i in reversed(range(len(framed(QUERY))))],
        lambda s: (s.next.__setitem__(0, s.next[0] + len(framed(QUERY))), answer(s))[1]),
        3 + len(framed(QUERY)) + 1, PAIR, paired),
    tcp("sequence numbers that wrap within a message", lambda place: wrapped(place),
        3 + 2 + 2, PAIR, paired),
    tcp("a message of 65,535 octets", lambda place: talk(
        place, ask, octets(True, framed(LARGE), 1_400)),
        3 + 1 + -(-len(framed(LARGE)) // 1_400), PAIR,
        lambda events: shows(status="success", reply_size=65_535)(events)),
    tcp("a query in the SYN", lambda place: syn_data(place), 3, PAIR, paired),
    tcp("700 messages of no octets", lambda place: talk(
        place, lambda s: s.segment(False, bytes(1_400)), ask, answer),
        3 + 3, ["unreadable short_header"] * 700 + [*PAIR], paired),
    tcp("messages of 1 to 11 octets", lambda place: talk(
        place, lambda s: s.segment(False, b"".join(framed(QUERY[:n]) for n in range(1, 12))),
        ask, answer), 3 + 3, ["unreadable short_header"] * 11 + [*PAIR], paired),
    tcp("1,000 queries in flight on one connection, answered last first", lambda place: talk(
        place,
        lambda s: [s.ask(*(query(ident=10 * n + i) for i in range(10))) for n in range(100)],
        lambda s: [s.answer(*(reply(A, ident=10 * n + i) for i in reversed(range(10))))
                   for n in reversed(range(100))]),
        3 + 200, ["ok"] * 2_000, statuses(*["success"] * 1_000)),
]


def wrapped(place: Place) -> list[bytes]:
    stream = Stream(place.client, PORT, SERVER, first=0xFFFFFFF0, answering=0xFFFFFFFE)
    data, back = framed(QUERY), framed(REPLY)
    return [*stream.open(), stream.segment(False, data[:20]), stream.segment(False, data[20:]),
            stream.segment(True, back[:1]), stream.segment(True, back[1:])]


def syn_data(place: Place) -> list[bytes]:
    stream = place.stream()
    syn = stream.segment(False, framed(QUERY), flags=SYN)
    return [syn, stream.segment(True, flags=SYN | ACK), answer(stream)]


EVIL = query(build.labels("bad", "example"))        # as long as QUERY
assert len(EVIL) == len(QUERY)

OVERLAPS = [
    tcp("sent again with other octets: the first ones count", lambda place: talk(
        place, lambda s: s.segment(False, framed(QUERY)[:-1]),
        lambda s: s.segment(False, framed(EVIL), seq=s.next[0] - len(QUERY) - 1),
        lambda s: (s.next.__setitem__(0, s.next[0] + 1), answer(s))[1]),
        3 + 3, PAIR, paired),
    tcp("ahead with other octets: what is kept counts", lambda place: talk(
        place,
        lambda s: s.segment(False, framed(QUERY)[10:], seq=s.next[0] + 10),
        lambda s: s.segment(False, framed(EVIL)[8:], seq=s.next[0] + 8),
        lambda s: s.segment(False, framed(QUERY)[:10]),
        lambda s: (s.next.__setitem__(0, s.next[0] + len(QUERY) - 8), answer(s))[1]),
        3 + 4, PAIR, paired),
    # It is kept until the stream ends, and is a message of its own then.
    tcp("a forged segment far ahead", lambda place: talk(
        place, lambda s: s.segment(False, framed(EVIL), seq=s.next[0] + 0x40000000),
        ask, answer), 3 + 3, ("ok", "ok", "ok"), statuses("success", "no_reply")),
    tcp("a forged segment far behind", lambda place: talk(
        place, lambda s: s.segment(False, framed(EVIL), seq=s.next[0] - 0x40000000),
        ask, answer), 3 + 3, PAIR, paired),
    tcp("a forged RST far from the window", lambda place: talk(
        place, lambda s: s.segment(False, framed(QUERY)[:9]),
        lambda s: s.segment(False, flags=RST, seq=s.next[0] + 0x20000000),
        lambda s: s.segment(False, framed(QUERY)[9:]), answer), 3 + 4, PAIR, paired),
    tcp("1,000 forged RSTs", lambda place: talk(
        place, lambda s: s.segment(False, framed(QUERY)[:9]),
        lambda s: [s.segment(bool(i & 1), flags=RST, seq=s.next[i & 1] + (i + 2 << 21))
                   for i in range(1_000)],
        lambda s: s.segment(False, framed(QUERY)[9:]), answer), 3 + 1_003, PAIR, paired),
]
ENDS = [
    tcp("a RST within a message", lambda place: talk(
        place, lambda s: s.segment(False, framed(QUERY)[:20]),
        lambda s: s.segment(True, flags=RST)), 3 + 2, (), statuses()),
    tcp("a FIN within a message", lambda place: talk(
        place, lambda s: s.segment(False, framed(QUERY)[:20], flags=FIN | ACK)), 3 + 1, (),
        statuses()),
    tcp("a new SYN within a message", lambda place: [
        *talk(place, lambda s: s.segment(False, framed(EVIL)[:20])),
        *(again := Stream(place.client, PORT, SERVER, first=900_000, answering=7)).open(),
        ask(again), answer(again)], 4 + 3 + 2, PAIR, paired),
    tcp("data behind the FIN", lambda place: talk(
        place, ask, answer, Stream.close,
        lambda s: s.segment(False, framed(EVIL), seq=s.next[0] + 100)),
        3 + 2 + 3 + 1, PAIR, paired),
    tcp("everything sent again behind the FINs", lambda place: [
        *(first := talk(place, ask, answer, Stream.close)), *first[3:]],
        8 + 5, PAIR, paired),
    # A RST ends the connection, whatever else the segment says.
    tcp("all flags at once", lambda place: talk(
        place, lambda s: s.segment(False, framed(EVIL), flags=0x3F)), 4, (), statuses()),
    tcp("no flags at all", lambda place: talk(
        place, lambda s: s.segment(False, framed(QUERY), flags=0), answer), 5, PAIR, paired),
]


def many(number: int, *frames):
    """So many connections of one client, each with these segments of its client or server."""
    def make(place: Place) -> list[bytes]:
        made = []
        for i in range(number):
            stream = place.stream(port=10_000 + i)
            for server, data, flags, ahead in frames:
                at = stream.next[server] + ahead if ahead else None
                made.append(stream.segment(server, data, flags=flags, seq=at))
        return made

    return make


PROMISE = b"\xff\xff" + QUERY           # 65,535 octets are promised, 29 come

BOMBS = [
    tcp("3,000 half-open connections", many(3_000, (False, b"", SYN, 0)), 3_000, (), statuses()),
    tcp("3,000 SYN|ACKs to nothing", many(3_000, (True, b"", SYN | ACK, 0)), 3_000, (),
        statuses()),
    tcp("3,000 RSTs to nothing", many(3_000, (True, b"", RST, 0)), 3_000, (), statuses()),
    tcp("3,000 FINs to nothing", many(3_000, (False, b"", FIN | ACK, 0)), 3_000, (), statuses()),
    tcp("1,000 ACKs without anything", many(1_000, (False, b"", ACK, 0)), 1_000, (), statuses()),
    tcp("1,000 connections that promise 65,535 octets", many(
        1_000, (False, b"", SYN, 0), (False, PROMISE, PSH | ACK, 0)), 2_000, (), statuses()),
    tcp("1,000 connections with 1,400 octets behind a hole", many(
        1_000, (False, b"", SYN, 0), (False, b"\xff" * 1_400, PSH | ACK, 5)), 2_000, (),
        statuses()),
    tcp("each second octet of 8,000, as a segment", lambda place: talk(
        place, lambda s: [s.segment(False, b"\xff", seq=s.next[0] + 1 + 2 * i)
                          for i in range(4_000)]), 4_003, (), statuses()),
    tcp("each second octet of 8,000, from the end", lambda place: talk(
        place, lambda s: [s.segment(False, b"\xff", seq=s.next[0] + 1 + 2 * i)
                          for i in reversed(range(4_000))]), 4_003, (), statuses()),
    tcp("one octet at random places, again and again", lambda place: talk(
        place, lambda s: [s.segment(False, b"\xff", seq=s.next[0] + 1 + i * 40_503 % 60_000)
                          for i in range(4_000)]), 4_003, (), statuses()),
    tcp("a megabyte behind a hole", lambda place: talk(
        place, lambda s: [s.segment(False, b"\xff" * 1_400, seq=s.next[0] + 1 + 1_400 * i)
                          for i in range(750)]), 753, (), statuses()),
    # ff ff is a length: seven messages of 65,535 octets, and one that breaks off.
    tcp("half a megabyte of ff", lambda place: talk(
        place, octets(False, b"\xff" * 524_288, 1_400)), 3 + 375,
        ["unreadable pointer_loop"] * 7, statuses()),
    tcp("half a megabyte of ff, picked up in the middle", lambda place: talk(
        place, octets(False, b"\xff" * 524_288, 1_400))[3:], 375, (), statuses()),
    tcp("half a megabyte of zeroes, as no messages", lambda place: talk(
        place, octets(False, bytes(52_428 * 2), 1_400)), 3 + 75,
        ["unreadable short_header"] * 52_428, statuses()),
    # Picked up in the middle; every offset looks like a beginning, and its name never ends.
    tcp("out of step: almost a message at each offset", lambda place: [
        (stream := place.stream()).segment(False, NEARLY * 100), stream.segment(False, NEARLY)],
        2, (), statuses()),
    tcp("one tuple, 2,000 times opened anew", lambda place: [
        Stream(place.client, PORT, SERVER, first=i * 77_777).segment(False, flags=SYN)
        for i in range(2_000)], 2_000, (), statuses()),
]
NEARLY = struct.pack("!H6H", 600, 7, 0x0100, 1, 0, 0, 0) + b"\3abc" * 60

# A zone transfer (RFC 5936) begins with the SOA and ends with it; between, anything goes.
AXFR = query(qtype=252)
SOA = build.record(b"\xc0\x0c", 6, WWW + b"\xc0\x0c" + bytes(20))
BEGUN = reply(SOA, A, qtype=252)
MORE = build.header(7, 0x8400, (0, 1, 0, 0)) + build.record(WWW, 1, bytes(4))


def incomplete(number: int, messages: int):
    """So many events for as many transfers, each with what came of it."""
    def check(events) -> None:
        assert [(e["status"], e["complete"], e["messages"]) for e in events] == [
            ("success", False, messages)] * number

    return check


def after_a_hole(events) -> None:
    assert [(e["status"], e["complete"], e["messages"]) for e in events] == [
        ("success", False, 1), ("no_query", False, 1)]


TRANSFERS = [
    tcp("a zone transfer of 2,000 messages that never ends", lambda place: talk(
        place, lambda s: s.ask(AXFR), lambda s: s.answer(BEGUN),
        lambda s: [s.answer(*[MORE] * 20) for _ in range(100)]),
        3 + 2 + 100, ["ok"] * 2_002, incomplete(1, 2_001)),
    tcp("500 zone transfers begun", many(
        500, (False, framed(AXFR), PSH | ACK, 0), (True, framed(BEGUN), PSH | ACK, 0)),
        1_000, ["ok"] * 1_000, incomplete(500, 1)),
    # What comes behind the hole has no question and no transfer to belong to: one of its own.
    tcp("a hole in a zone transfer", lambda place: talk(
        place, lambda s: s.ask(AXFR), lambda s: s.answer(BEGUN),
        lambda s: s.segment(True, framed(MORE), seq=s.next[1] + 50),
        lambda s: s.segment(False, flags=ACK, ack=s.next[1] + 50 + len(framed(MORE)))),
        3 + 2 + 2, ["ok"] * 3, after_a_hole),
]

HEADERS = [
    Case(name, lambda place, at=at, value=value: [patch(place.stream().ask(QUERY), at, value)],
         [word], tcp=True)
    for name, at, value, word in (
        ("a data offset of 4 words", 12, b"\x40", "tcp_header"),
        ("a data offset of nothing", 12, b"\0", "tcp_header"),
        ("a data offset beyond the segment", 12, b"\xf0", "tcp_header"),
    )
] + [
    Case(f"a TCP header of {size} octets", lambda place, size=size: [build.frame(build.ipv4(
        place.client, SERVER, 6, struct.pack("!HHIIBBHHH", PORT, 53, 1, 0, 0x50, 2, 0, 0, 0)[
            :size]))], [word], tcp=True)
    for size, word in ((0, "transport_header"), (3, "transport_header"), (4, "tcp_header"),
                       (19, "tcp_header"))
]


def patch(frame: bytes, at: int, octet: bytes) -> bytes:
    """An octet of the TCP header."""
    at += 14 + 20
    return frame[:at] + octet + frame[at + 1:]


CASES = [*SPLITS, *OVERLAPS, *ENDS, *HEADERS, *TRANSFERS, *BOMBS]
run = ran(CASES, CONFIG)


@pytest.mark.parametrize("one", CASES, ids=str)
def test_streams(run: Ran, one: Case) -> None:
    run.check(one)


def test_every_frame_is_in_one_counter(run: Ran) -> None:
    run.account()


def test_the_limits_were_reached_and_told(run: Ran) -> None:
    assert "TCP connections were forgotten early (streams.max_streams, max_bytes)" in run.stderr
    assert "in TCP streams" in run.stderr


def test_memory_is_that_of_the_limits(run: Ran, tmp_path) -> None:
    """Beside what the same processes have before anything has come."""
    still = at_rest(tmp_path, CONFIG)
    for worker in ("gazer:worker0", "gazer:worker1"):
        assert run.peaks[worker] - still[worker] < 6 * MIB
    assert run.peaks["gazer:capture"] - still["gazer:capture"] < 2 * MIB
