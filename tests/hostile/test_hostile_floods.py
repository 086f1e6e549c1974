"""Floods of queries and bombs of fragments, against tables so small that every limit is reached.

A piece of a datagram is `piece(payload, offset, more)`: IPv4 with the same addresses and id unless
a case says otherwise; `whole` is a UDP datagram as the pieces carry it.
"""

from __future__ import annotations

import struct

import pytest

from benchmarks import flood
from tests.hostile.bombs import (
    SERVER,
    STEP,
    A,
    Case,
    Place,
    Ran,
    at_rest,
    names,
    query,
    ran,
    reply,
    shows,
    statuses,
)
from tests.oracle import build

SECOND = 10**9
MIB = 1 << 20
PENDING = 1_000
CONFIG = {
    "transactions": {"max_pending": PENDING, "max_pending_bytes": "1MiB"},
    "fragments": {"max_datagrams": 64, "max_bytes": "1MiB", "timeout": "30s"},
}

# ------------------------------------------------------------------------------- query floods

FORGED = 10_000
FORGED_FRAMES = [frame for _, _, frame in flood.forged(flood.Parameters(forged=FORGED))]


def inside(place: Place):
    """A forged query after the other; after every 50 a real one, answered 20 forged ones later."""
    due: list[tuple[int, bytes]] = []
    for number, frame in enumerate(FORGED_FRAMES):
        yield frame
        if number % 50 == 0:
            yield place.ask(query(ident=number // 50))
            due.append((number + 20, place.answer(reply(A, ident=number // 50))))
        if due and due[0][0] == number:
            yield due.pop(0)[1]


def all_paired(number: int):
    def check(events) -> None:
        assert [event["status"] for event in events] == ["success"] * number
        assert {event["reply"][-1]["data"] for event in events} == {"192.0.2.80"}

    return check


def one_left(number: int):
    """All of one key stand in one chain: at most 64 of them wait, the newest among them."""
    def check(events) -> None:
        assert len(events) == number
        last = [e for e in events if e["status"] == "success"]
        assert [e["query"][0]["name"] for e in last] == [f"n{number - 1}.example."]

    return check


QUERIES = [
    Case("10,000 forged queries, and 200 real pairs inside", inside,
         ["ok"] * (FORGED + 2 * FORGED // 50), all_paired(FORGED // 50)),
    Case("2,000 questions under one id, the last one answered", lambda place: [
        *(place.ask(query(build.labels(f"n{i}", "example"))) for i in range(2_000)),
        place.answer(reply(A, question=build.labels("n1999", "example")))],
        ["ok"] * 2_001, one_left(2_000)),
    Case("one question 2,000 times", lambda place: [
        *(place.ask(query()) for _ in range(2_000)), place.answer(reply(A))],
        ["ok"] * 2_001, shows(status="success", retransmits=1_999)),
    Case("2,000 replies to nothing", lambda place: [
        place.answer(reply(A, ident=1000 + i)) for i in range(2_000)],
        ["ok"] * 2_000, statuses(*["no_query"] * 2_000)),
    Case("2,000 replies to one query", lambda place: [
        place.ask(query()), *(place.answer(reply(A)) for _ in range(2_000))],
        ["ok"] * 2_001, statuses("success")),
    Case("300 queries of 60,000 octets", lambda place: [
        place.ask(query(ident=i, rest=build.record(b"\0", 65280, bytes(60_000)),
                        counts=(1, 0, 0, 1))) for i in range(300)],
        ["ok"] * 300, statuses(*["no_reply"] * 300)),
]

# ------------------------------------------------------------------------------ fragment bombs

UDP = 17


def whole(place: Place, wire: bytes) -> bytes:
    """The UDP datagram of a message, as pieces carry it; 8 octets of header first."""
    if wire[2] & 0x80:
        return build.datagram(SERVER, 53, place.client, 4000, wire)
    return build.datagram(place.client, 4000, SERVER, 53, wire)


def piece(place: Place, payload: bytes, offset: int, more: bool, *, ident: int = 1,
          back: bool = False, protocol: int = UDP) -> bytes:
    ends = (SERVER, place.client) if back else (place.client, SERVER)
    return build.frame(build.ipv4(*ends, protocol, payload, ident=ident, offset=offset, more=more))


def cut(place: Place, wire: bytes, size: int, *, ident: int = 1) -> list[bytes]:
    """A message in pieces of this size, in order."""
    data = whole(place, wire)
    return [piece(place, data[at:at + size], at, at + size < len(data), ident=ident,
                  back=bool(wire[2] & 0x80)) for at in range(0, len(data), size)]


def joined(pieces: int, word: str = "ok") -> list[str]:
    return ["fragment joined"] * (pieces - 1) + [word]


LARGE = query(rest=build.record(b"\0", 65280, bytes(1_000)), counts=(1, 0, 0, 1))
LARGE_PIECES = -(-(8 + len(LARGE)) // 80)
HUGE = query(rest=build.record(b"\0", 65280, bytes(60_000)), counts=(1, 0, 0, 1))
HUGE_PIECES = -(-(8 + len(HUGE)) // 8)
EVIL = build.datagram("10.0.0.1", 4000, SERVER, 53, query(build.labels("evil", "example")))


def without(frames: list[bytes], at: int) -> list[bytes]:
    return frames[:at] + frames[at + 1:]


PIECES = [
    Case("pieces in order", lambda place: cut(place, LARGE, 80), joined(LARGE_PIECES), names(
        "www.example.", ".")),
    Case("pieces in reverse", lambda place: cut(place, LARGE, 80)[::-1], joined(LARGE_PIECES),
         names("www.example.", ".")),
    Case("each piece three times", lambda place: [
        *(frame for frame in cut(place, LARGE, 80)[:-1] for _ in range(3)),
        cut(place, LARGE, 80)[-1]],
        ["fragment joined", "fragment duplicate", "fragment duplicate"] * (LARGE_PIECES - 1)
        + ["ok"], names("www.example.", ".")),
    Case("60,000 octets in pieces of 8, in order", lambda place: cut(place, HUGE, 8),
         joined(HUGE_PIECES), names("www.example.", ".")),
    Case("60,000 octets in pieces of 8, in reverse", lambda place: cut(place, HUGE, 8)[::-1],
         joined(HUGE_PIECES), names("www.example.", ".")),
    Case("60,000 octets in pieces of 8, first the even ones", lambda place: [
        *cut(place, HUGE, 8)[::2], *cut(place, HUGE, 8)[1::2]],
        joined(HUGE_PIECES), names("www.example.", ".")),
    Case("a hole that nothing fills", lambda place: without(cut(place, LARGE, 80), 5),
         ["fragment evicted"] * (LARGE_PIECES - 1), statuses()),
    Case("no first piece", lambda place: cut(place, LARGE, 80)[1:],
         ["fragment evicted"] * (LARGE_PIECES - 1), statuses()),
    Case("no last piece", lambda place: cut(place, LARGE, 80)[:-1],
         ["fragment evicted"] * (LARGE_PIECES - 1), statuses()),
    # 0 to 79, then 72 to 151: eight octets twice (teardrop).
    Case("an overlap of eight octets", lambda place: [
        piece(place, whole(place, LARGE)[:80], 0, True),
        piece(place, whole(place, LARGE)[72:152], 72, True),
        *cut(place, LARGE, 80)[2:]],
        ["fragment overlapping"] * LARGE_PIECES, statuses()),
    Case("a piece within another", lambda place: [
        piece(place, whole(place, LARGE)[:80], 0, True),
        piece(place, b"evil" * 4, 24, True),
        *cut(place, LARGE, 80)[1:]], ["fragment overlapping"] * (LARGE_PIECES + 1), statuses()),
    Case("the first piece again, with another message in it", lambda place: [
        cut(place, LARGE, 80)[0], piece(place, EVIL.ljust(80, b"\0"), 0, True),
        *cut(place, LARGE, 80)[1:]], ["fragment overlapping"] * (LARGE_PIECES + 1), statuses()),
    Case("the first piece again, to other ports", lambda place: [
        piece(place, struct.pack("!4H", 4000, 53, 64, 0), 0, True),
        piece(place, struct.pack("!4H", 4000, 80, 64, 0), 0, True),
        piece(place, bytes(48), 8, False)], ["fragment overlapping"] * 3, statuses()),
    Case("two ends", lambda place: [
        piece(place, bytes(80), 160, False), piece(place, bytes(80), 240, False),
        cut(place, LARGE, 80)[0]], ["fragment overlapping"] * 3, statuses()),
    Case("octets beyond the end", lambda place: [
        piece(place, bytes(80), 160, False), piece(place, bytes(80), 320, True),
        cut(place, LARGE, 80)[0]], ["fragment overlapping"] * 3, statuses()),
    Case("beyond 65,535 octets (ping of death)", lambda place: [
        piece(place, bytes(80), 65_528, False)], ["fragment bad"], statuses()),
    Case("a piece of no octets", lambda place: [
        piece(place, b"", 80, True), piece(place, b"", 80, False)], ["fragment bad"] * 2,
        statuses()),
    Case("a piece of 81 octets that isn't the last", lambda place: [
        piece(place, bytes(81), 80, True)], ["fragment bad"], statuses()),
    Case("a piece of which the capture has a part only", lambda place: [
        (STEP, cut(place, LARGE, 80)[0][:60], 114), *cut(place, LARGE, 80)[1:]],
        ["fragment bad"] + ["fragment evicted"] * (LARGE_PIECES - 1), statuses()),
    Case("a piece whose IP length goes beyond the frame", lambda place: [
        cut(place, LARGE, 80)[0][:60]], ["ip_length"], statuses()),
    Case("a bad piece among good ones", lambda place: [
        cut(place, LARGE, 80)[0], piece(place, bytes(81), 80, True),
        *cut(place, LARGE, 80)[1:]],
        ["fragment joined", "fragment bad", *joined(LARGE_PIECES - 1)],
        names("www.example.", ".")),
    Case("one piece, which is all", lambda place: [
        piece(place, whole(place, query()), 0, False)], ["ok"], names("www.example.")),
    Case("the first piece too small for its UDP header's length", lambda place: cut(
        place, LARGE, 8), joined(-(-(8 + len(LARGE)) // 8)), names("www.example.", ".")),
    Case("a datagram to another port", lambda place: [
        piece(place, struct.pack("!4H", 4000, 80, 100, 0) + bytes(72), 0, True),
        piece(place, bytes(20), 80, False)], ["fragment foreign"] * 2, statuses()),
    Case("pieces of ICMP", lambda place: [
        piece(place, bytes(80), 0, True, protocol=1)], ["other_transport"], statuses()),
    Case("a joined datagram whose UDP length lies", lambda place: [
        piece(place, struct.pack("!4H", 4000, 53, 200, 0) + bytes(72), 0, True),
        piece(place, bytes(20), 80, False)], ["fragment joined", "udp_length"], statuses()),
    # Two datagrams of one id, from two clients: theirs are two keys.
    Case("one id, two sources, interleaved", lambda place: [
        frame for pair in zip(cut(place, LARGE, 80), [build.frame(build.ipv4(
            "10.99.0.1", SERVER, UDP, build.datagram("10.99.0.1", 4000, SERVER, 53, LARGE)[
                at:at + 80], ident=1, offset=at, more=at + 80 < 8 + len(LARGE)))
            for at in range(0, 8 + len(LARGE), 80)], strict=True) for frame in pair],
        ["fragment joined"] * (2 * LARGE_PIECES - 2) + ["ok"] * 2, names("www.example.", ".")),
    Case("500 first pieces", lambda place: [
        piece(place, whole(place, LARGE)[:80], 0, True, ident=i) for i in range(500)],
        ["fragment evicted"] * 500, statuses()),
    Case("500 last pieces", lambda place: [
        piece(place, bytes(1_400), 64_000, False, ident=i) for i in range(500)],
        ["fragment evicted"] * 500, statuses()),
    Case("100 datagrams of 60,000 octets, each without its end", lambda place: [
        piece(place, whole(place, HUGE)[at:at + 6_000], at, True, ident=i)
        for at in range(0, 60_000, 6_000) for i in range(100)],
        ["fragment evicted"] * 936 + ["fragment expired"] * 64, statuses()),
    Case("nothing for 31 s", lambda place: [(31 * SECOND, place.ask(query()))], ["ok"]),
]


def six(place: Place, content: bytes, kind: int = UDP, extensions=()) -> bytes:
    return build.frame(build.ipv6(f"2001:db8::{place.number + 1:x}", "2001:db8::53", kind, content,
                                  extensions=extensions))


def six_piece(place: Place, payload: bytes, offset: int, more: bool, *, ident: int = 1,
              before=()) -> bytes:
    return six(place, payload, extensions=[*before, (44, struct.pack("!HI", offset | more, ident))])


def six_whole(place: Place, wire: bytes) -> bytes:
    return build.datagram(f"2001:db8::{place.number + 1:x}", 4000, "2001:db8::53", 53, wire)


SIXES = [
    Case("IPv6: an atomic fragment", lambda place: [
        six_piece(place, six_whole(place, query()), 0, False)], ["ok"]),
    Case("IPv6: two pieces, the last one first", lambda place: [
        six_piece(place, six_whole(place, query())[16:], 16, False),
        six_piece(place, six_whole(place, query())[:16], 0, True)], joined(2)),
    Case("IPv6: an overlap (RFC 5722)", lambda place: [
        six_piece(place, six_whole(place, query())[:16], 0, True),
        six_piece(place, six_whole(place, query())[8:], 8, False)],
        ["fragment overlapping"] * 2),
    Case("IPv6: an overlap, and a new datagram of the same id after the timeout", lambda place: [
        six_piece(place, six_whole(place, query())[:16], 0, True),
        six_piece(place, six_whole(place, query())[8:], 8, False),
        six_piece(place, six_whole(place, query())[16:], 16, False),
        (31 * SECOND, six_piece(place, six_whole(place, query())[:16], 0, True)),
        six_piece(place, six_whole(place, query())[16:], 16, False)],
        ["fragment overlapping"] * 3 + joined(2)),
    Case("IPv6: half a fragment header", lambda place: [six(place, b"\x11\0\0\1", 44)],
         ["ip_extension"]),
    Case("IPv6: two fragment headers", lambda place: [
        six_piece(place, six_whole(place, query()), 0, False,
                  before=[(44, struct.pack("!HI", 0, 9))])], ["ok"]),
    Case("IPv6: a piece of no octets", lambda place: [six_piece(place, b"", 0, True)],
         ["fragment bad"]),
]

# At the end, so that what went before has been pushed out: 31 s, and then all that waits is gone.
LAST = [
    Case("a piece that comes at its timeout", lambda place: [
        cut(place, query(), 24)[0], (30 * SECOND, cut(place, query(), 24)[1])],
        ["fragment expired"] * 2, statuses()),
    Case("a piece that comes just in time", lambda place: [
        cut(place, query(), 24)[0], (30 * SECOND - 1, cut(place, query(), 24)[1])],
        joined(2), names("www.example.")),
    Case("a piece that waits when the input ends", lambda place: [cut(place, query(), 24)[0]],
         ["fragment waiting"], statuses()),
]

CASES = [*QUERIES, *PIECES, *SIXES, *LAST]
run = ran(CASES, CONFIG)


@pytest.mark.parametrize("one", CASES, ids=str)
def test_floods(run: Ran, one: Case) -> None:
    run.check(one)


def test_every_frame_is_in_one_counter(run: Ran) -> None:
    run.account()


def test_the_limits_were_reached_and_told(run: Ran) -> None:
    said = [line for line in run.stderr.splitlines() if "limit reached" in line]
    assert [what for what in ("left early as no_reply", "thrown away unjoined")
            if not any(what in line for line in said)] == []


def test_memory_is_that_of_the_limits(run: Ran, tmp_path) -> None:
    """Beside what the same processes have before anything has come."""
    still = at_rest(tmp_path, CONFIG)
    assert run.peaks["gazer:capture"] - still["gazer:capture"] < 4 * MIB
    for worker in ("gazer:worker0", "gazer:worker1"):
        assert run.peaks[worker] - still[worker] < 6 * MIB
    assert run.peaks["gazer:sink"] - still["gazer:sink"] < 2 * MIB
