"""What carries a message: lengths of IP and UDP that lie, payloads of hardly anything, ids used
again, and replies that somebody forged.

The frames of a lie, octet by octet (an Ethernet header of 14 before them):

    IPv4   0 version, IHL   2 total length   9 protocol   12 source   16 destination   20 UDP
    IPv6   0 version        4 payload length 6 next header 8 source   24 destination   40 UDP
    UDP    0 source port    2 destination    4 length     6 checksum  8 payload
"""

from __future__ import annotations

import pytest

from tests.hostile.bombs import A, Case, Place, Ran, case, query, ran, reply, shows, statuses, then
from tests.oracle import build

SECOND = 10**9
UDP = 17
MESSAGE = query()                   # 29 octets


def patched(frame: bytes, at: int, octets: bytes) -> bytes:
    """These octets at this place of the IP packet."""
    at += 14
    return frame[:at] + octets + frame[at + len(octets):]


def v4(name: str, at: int, octets: bytes, word: str) -> Case:
    return Case(name, lambda place: [patched(place.ask(MESSAGE), at, octets)], [word])


def v6(name: str, at: int, octets: bytes, word: str) -> Case:
    return Case(name, lambda place: [patched(six(place), at, octets)], [word])


def six(place: Place, extensions=()) -> bytes:
    return build.frame(build.udp(f"2001:db8::{place.number + 1:x}", 4000, "2001:db8::53", 53,
                                 MESSAGE, extensions=extensions))


def two(value: int) -> bytes:
    return value.to_bytes(2, "big")


def cut(name: str, octets: int, word: str) -> Case:
    """The frame ends after so many octets of its IP packet; so does what the file says of it."""
    return Case(name, lambda place: [place.ask(MESSAGE)[:14 + octets]], [word])


# The packet has 20 + 8 + 29 = 57 octets.
LENGTHS = [
    v4("IPv4: total length of zero (as offloading leaves it)", 2, two(0), "ip_length"),
    v4("IPv4: total length of 19", 2, two(19), "ip_length"),
    v4("IPv4: total length of its header alone", 2, two(20), "transport_header"),
    v4("IPv4: total length that ends in the UDP header", 2, two(27), "transport_header"),
    v4("IPv4: total length that ends before the UDP datagram", 2, two(40), "udp_length"),
    v4("IPv4: total length of one too many", 2, two(58), "ip_length"),
    v4("IPv4: total length of 65,535", 2, two(65535), "ip_length"),
    v4("IPv4: a header of 16 octets", 0, b"\x44", "ip_header"),
    v4("IPv4: a header of 0 octets", 0, b"\x40", "ip_header"),
    v4("IPv4: version 5", 0, b"\x55", "ip_header"),
    v4("IPv4: version 6 under IPv4's EtherType", 0, b"\x65", "ip_header"),
    v4("UDP: length of zero", 24, two(0), "udp_length"),
    v4("UDP: length of 7", 24, two(7), "udp_length"),
    v4("UDP: length of its header alone", 24, two(8), "unreadable short_header"),
    v4("UDP: length of 8 + 11", 24, two(19), "unreadable short_header"),
    v4("UDP: length that ends in the question", 24, two(30), "unreadable truncated"),
    v4("UDP: length of one too many", 24, two(38), "udp_length"),
    v4("UDP: length of 65,535", 24, two(65535), "udp_length"),
    v4("UDP: port 0 asks", 20, two(0), "ok"),
    v4("UDP: a checksum that is wrong", 26, two(1), "ok"),
    v4("UDP: both ports 53", 20, two(53), "ok"),
    cut("IPv4: nothing behind Ethernet", 0, "ip_header"),
    cut("IPv4: one octet", 1, "ip_header"),
    cut("IPv4: all but one octet of the header", 19, "ip_header"),
    v6("IPv6: payload length of zero", 4, two(0), "transport_header"),
    v6("IPv6: payload length of 7", 4, two(7), "transport_header"),
    v6("IPv6: payload length of one too many", 4, two(38), "ip_length"),
    v6("IPv6: payload length of 65,535", 4, two(65535), "ip_length"),
    v6("IPv6: version 4 under IPv6's EtherType", 0, b"\x45", "ip_header"),
    v6("IPv6: next header none", 6, b"\x3b", "other_transport"),
    Case("IPv6: an extension longer than the packet", lambda place: [
        patched(six(place, [(60, b"")]), 41, b"\xff")], ["ip_extension"]),
    Case("IPv6: 17 extension headers", lambda place: [six(place, [(60, b"")] * 17)],
         ["ip_extension"]),
    Case("IPv6: 300 extension headers", lambda place: [six(place, [(60, b"")] * 300)],
         ["ip_extension"]),
    Case("IPv6: 16 extension headers", lambda place: [six(place, [(60, b"")] * 16)], ["ok"]),
    Case("Ethernet: nothing behind the EtherType's first octet", lambda place: [
        place.ask(MESSAGE)[:13]], ["link_header"]),
    Case("Ethernet: an empty frame", lambda place: [b""], ["link_header"]),
    Case("Ethernet: 17 tags", lambda place: [build.frame(
        build.udp(place.client, 4000, "192.0.2.53", 53, MESSAGE), vlan=range(17))],
        ["too_many_tags"]),
    Case("Ethernet: 16 tags", lambda place: [build.frame(
        build.udp(place.client, 4000, "192.0.2.53", 53, MESSAGE), vlan=range(16))], ["ok"]),
    Case("Ethernet: a tag that breaks off", lambda place: [
        build.frame(b"\x45", vlan=[1])[:16]], ["link_header"]),
]

PAYLOADS = [
    case("a payload of 0 octets", b"", "unreadable short_header"),
    case("a payload of 1 octet", b"\0", "unreadable short_header"),
    case("a payload of 11 octets", MESSAGE[:11], "unreadable short_header"),
    case("a payload of 12 octets, with a question promised", MESSAGE[:12], "unreadable counts"),
    case("a payload of 12 octets, with nothing promised", build.header(7, 0x0100, (0, 0, 0, 0)),
         "ok", shows(status="no_reply", query_size=12)),
    case("a reply of 12 octets, with nothing promised", build.header(7, 0x8183, (0, 0, 0, 0)),
         "ok", shows(status="no_query", rcode="NXDOMAIN")),
    case("a payload of 65,507 octets", query(rest=build.record(
        b"\0", 65280, bytes(65_507 - 29 - 11)), counts=(1, 0, 0, 1)), "ok"),
    Case("a frame longer than any datagram", lambda place: [
        place.ask(MESSAGE) + bytes(100_000)], ["ok"]),
]


def other(name: str) -> bytes:
    return build.labels(name, "example")


def answered_by(*expected: tuple[str, str | None]):
    """(question, answer) of the successful transactions; all others are replies to nothing."""
    def check(events) -> None:
        paired = [(e["query"][0]["name"], e["reply"][-1].get("data")) for e in events
                  if e["status"] == "success"]
        assert paired == list(expected)

    return check


REAL = reply(A)                                                         # 192.0.2.80
FORGED = reply(build.record(b"\xc0\x0c", 1, bytes((203, 0, 113, 66))))

IDS = [
    Case("one id for two questions, answered in turn", lambda place: [
        place.ask(query(other("a"))), place.ask(query(other("b"))),
        place.answer(reply(A, question=other("b"))), place.answer(reply(A, question=other("a")))],
        ["ok"] * 4,
        answered_by(("b.example.", "192.0.2.80"), ("a.example.", "192.0.2.80"))),
    Case("one id for two types of one name", lambda place: [
        place.ask(query(qtype=1)), place.ask(query(qtype=28)),
        place.answer(reply(qtype=28)), place.answer(reply(A))],
        ["ok"] * 4, answered_by(("www.example.", None), ("www.example.", "192.0.2.80"))),
    Case("one id again, the first question never answered", lambda place: [
        place.ask(query(other("a"))), place.ask(query(other("b"))),
        place.answer(reply(A, question=other("b")))],
        ["ok"] * 3, statuses("success", "no_reply")),
    Case("the same question twice, one reply", lambda place: [
        place.ask(query()), place.ask(query()), place.answer(REAL)],
        ["ok"] * 3, then(statuses("success"), shows(retransmits=1))),
    Case("the same question in another case is the same", lambda place: [
        place.ask(query(other("A"))), place.answer(reply(A, question=other("a")))],
        ["ok"] * 2, answered_by(("A.example.", "192.0.2.80"))),
    Case("the same id on two ports", lambda place: [
        place.ask(query(), port=4001), place.ask(query(), port=4002),
        place.answer(FORGED, port=4002), place.answer(REAL, port=4001)],
        ["ok"] * 4, statuses("success", "success")),
    Case("200 questions under one id", lambda place: [
        *(place.ask(query(other(f"n{i}"))) for i in range(200)),
        place.answer(reply(A, question=other("n199")))],
        ["ok"] * 201, lambda events: oldest_left(events)),
]


def oldest_left(events) -> None:
    """64 questions may wait under one key; the newest is still there for its reply."""
    assert len(events) == 200
    assert [e["query"][0]["name"] for e in events if e["status"] == "success"] == ["n199.example."]


def forged(name: str, frame) -> Case:
    """Query, forged reply, real reply: the forged one is a reply to nothing, and takes nothing."""
    return Case(f"forged: {name}", lambda place: [
        place.ask(query()), frame(place), place.answer(REAL)], ["ok"] * 3,
        then(statuses("no_query", "success"), answered_by(("www.example.", "192.0.2.80"))))


REPLIES = [
    forged("to another port", lambda place: place.answer(FORGED, port=4001)),
    forged("from another server", lambda place: place.answer(FORGED, server="192.0.2.54")),
    forged("from another port of the server", lambda place: build.frame(
        build.udp("192.0.2.53", 5300, place.client, 53, FORGED))),
    forged("with another id", lambda place: place.answer(FORGED[:1] + b"\x08" + FORGED[2:])),
    forged("for another name", lambda place: place.answer(
        reply(A, question=build.labels("wwx", "example")))),
    forged("for another type", lambda place: place.answer(reply(A, qtype=28))),
    forged("for another class", lambda place: place.answer(
        FORGED[:27] + b"\0\3" + FORGED[29:])),
    forged("with two questions, one of them right", lambda place: place.answer(
        query(rest=query()[12:] + A, flags=0x8180, counts=(2, 1, 0, 0)))),
    forged("by another VLAN", lambda place: build.frame(
        build.udp("192.0.2.53", 53, place.client, 4000, FORGED), vlan=[66])),
    Case("forged: a reply that can't be read", lambda place: [
        place.ask(query()), place.answer(FORGED[:20]), place.answer(REAL)],
        ["ok", "unreadable truncated", "ok"], statuses("success")),
    Case("forged: 500 ids tried", lambda place: [
        place.ask(query(ident=0x1234)),
        *(place.answer(i.to_bytes(2, "big") + FORGED[2:]) for i in range(500)),
        place.answer(reply(A, ident=0x1234))], ["ok"] * 502,
        answered_by(("www.example.", "192.0.2.80"))),
    Case("a reply before its query", lambda place: [
        place.answer(REAL), place.ask(query())], ["ok"] * 2, statuses("no_query", "no_reply")),
    Case("a reply before and after its query", lambda place: [
        place.answer(FORGED), place.ask(query()), place.answer(REAL)], ["ok"] * 3,
        then(statuses("no_query", "success"), answered_by(("www.example.", "192.0.2.80")))),
    Case("a reply long after: at the timeout", lambda place: [
        place.ask(query()), (60 * SECOND, place.answer(REAL))], ["ok"] * 2,
        statuses("no_reply", "no_query")),
    Case("a reply just before the timeout", lambda place: [
        place.ask(query()), (60 * SECOND - 1, place.answer(REAL))], ["ok"] * 2,
        statuses("success")),
    Case("a second reply, within the window", lambda place: [
        place.ask(query()), place.answer(REAL), (4 * SECOND, place.answer(FORGED))], ["ok"] * 3,
        then(statuses("success"), answered_by(("www.example.", "192.0.2.80")))),
    Case("a second reply, long after", lambda place: [
        place.ask(query()), place.answer(REAL), (3600 * SECOND, place.answer(FORGED))],
        ["ok"] * 3, statuses("success", "no_query")),
]

CASES = [*LENGTHS, *PAYLOADS, *IDS, *REPLIES]
run = ran(CASES)


@pytest.mark.parametrize("one", CASES, ids=str)
def test_transport(run: Ran, one: Case) -> None:
    run.check(one)


def test_every_frame_is_in_one_counter(run: Ran) -> None:
    run.account()
