"""mDNS and LLMNR, where anybody on the link may answer: floods of announcements, a thousand
responders to one question, and replies to what nobody asked.

    mDNS     224.0.0.251 port 5353; both ports 5353 say that nobody waits for a reply
    LLMNR    224.0.0.252 port 5355; the replies come from each responder's own address
"""

from __future__ import annotations

import pytest

from tests.hostile.bombs import A, Case, Place, Ran, query, ran, reply, statuses
from tests.oracle import build

MDNS, LLMNR = ("224.0.0.251", 5353), ("224.0.0.252", 5355)
CONFIG = {"capture": {"mdns": True, "llmnr": True}}
QUERY, REPLY = query(), reply(A)
FORGED = reply(build.record(b"\xc0\x0c", 1, bytes((203, 0, 113, 66))))


def asked(place: Place, group: tuple[str, int], wire: bytes = QUERY, *, port: int = 4000) -> bytes:
    return build.frame(build.udp(place.client, port, *group, wire))


def by(place: Place, responder: int, group: tuple[str, int], wire: bytes = REPLY) -> bytes:
    """A reply from a host of the link's own."""
    address = f"10.77.{responder >> 8}.{responder & 255}"
    return build.frame(build.udp(address, group[1], place.client, 4000, wire))


def announced(place: Place, wire: bytes) -> bytes:
    return build.frame(build.udp(place.client, 5353, MDNS[0], 5353, wire))


CASES = [
    Case("2,000 announcements", lambda place: [announced(place, REPLY) for _ in range(2_000)],
         ["ok"] * 2_000, statuses()),
    Case("2,000 questions that nobody need answer", lambda place: [
        announced(place, query(ident=0)) for _ in range(2_000)], ["ok"] * 2_000,
        statuses(*["one_way"] * 2_000)),
    Case("LLMNR: 1,000 responders to one question", lambda place: [
        asked(place, LLMNR), *(by(place, i, LLMNR) for i in range(1_000))], ["ok"] * 1_001,
        statuses("success", *["further_reply"] * 999)),
    Case("LLMNR: one responder 1,000 times", lambda place: [
        asked(place, LLMNR), *(by(place, 1, LLMNR) for i in range(1_000))], ["ok"] * 1_001,
        statuses("success")),
    Case("LLMNR: a reply for another name", lambda place: [
        asked(place, LLMNR),
        by(place, 1, LLMNR, reply(A, question=build.labels("wpad", "example"))),
        by(place, 2, LLMNR)], ["ok"] * 3, statuses("no_query", "success")),
    Case("LLMNR: a reply with another id", lambda place: [
        asked(place, LLMNR), by(place, 1, LLMNR, FORGED[:1] + b"\x08" + FORGED[2:]),
        by(place, 2, LLMNR)], ["ok"] * 3, statuses("no_query", "success")),
    Case("mDNS: a question with a port of its own, and 500 replies", lambda place: [
        asked(place, MDNS), *(by(place, i, MDNS) for i in range(500))], ["ok"] * 501,
        statuses("success", *["further_reply"] * 499)),
    Case("an mDNS reply to an LLMNR question", lambda place: [
        asked(place, LLMNR), by(place, 1, MDNS), by(place, 1, LLMNR)], ["ok"] * 3,
        statuses("no_query", "success")),
    *(Case(f"mDNS: a payload of {size} octets", lambda place, size=size: [
        announced(place, QUERY[:size])], ["unreadable short_header"], statuses())
      for size in (0, 1, 11)),
    Case("mDNS: all bits set", lambda place: [announced(place, b"\xff" * 1_400)],
         ["unreadable pointer_loop"], statuses()),
    Case("mDNS: a question that breaks off", lambda place: [announced(place, QUERY[:-1])],
         ["unreadable truncated"], statuses()),
]
run = ran(CASES, CONFIG)


@pytest.mark.parametrize("one", CASES, ids=str)
def test_multicast(run: Ran, one: Case) -> None:
    run.check(one)


def test_every_frame_is_in_one_counter(run: Ran) -> None:
    run.account()


def test_announcements_have_tags_of_their_own(run: Ran) -> None:
    assert {event["tag"] for event in run.events} == {
        f"dns-gazer.{protocol}.{kind}" for protocol in ("dns", "mdns", "llmnr")
        for kind in ("tx", "record")}
