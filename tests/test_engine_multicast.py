"""mDNS and LLMNR: who asked everybody, and who replied.  Each run is held against the oracle's."""

from __future__ import annotations

import pytest

from tests.oracle import build
from tests.test_engine import CLIENT, run

GROUP = {("mdns", 4): "224.0.0.251", ("mdns", 6): "ff02::fb",
         ("llmnr", 4): "224.0.0.252", ("llmnr", 6): "ff02::1:3"}
PORT = {"mdns": 5353, "llmnr": 5355}
HOSTS = {4: (CLIENT, "192.0.2.7", "192.0.2.8"), 6: ("fe80::1", "fe80::7", "fe80::8")}
QUERY = build.query("printer.local.", "A", id=9, rd=False)
REPLY = build.reply(QUERY, "printer.local. 60 IN A 192.0.2.7")


def udp(*ends, vlan=()) -> bytes:
    return build.frame(build.udp(*ends), vlan=vlan)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["mdns", "llmnr"])
def test_a_query_to_the_group_and_its_replies(tmp_path, protocol, family):
    """The first reply answers; another host's is a further reply; the same again a duplicate."""
    port, group = PORT[protocol], GROUP[protocol, family]
    asker, one, two = HOSTS[family]
    frames = [udp(asker, 50000, group, port, QUERY), udp(one, port, asker, 50000, REPLY),
              udp(two, port, asker, 50000, REPLY), udp(one, port, asker, 50000, REPLY),
              udp(two, port, asker, 50000, REPLY)]
    done = run(tmp_path, [(i / 10, f) for i, f in enumerate(frames)], detail="full",
               **{protocol: True})
    assert [(e["status"], e["server_addr"]) for e in done.seen] == [
        ("success", one), ("further_reply", two)]
    assert all(f"\tdns-gazer.{protocol}.tx\t" in line for line in done.lines)
    assert done.counts["duplicates"] == 2 and done.counts["further"] == 1
    off = run(tmp_path, [(i / 10, f) for i, f in enumerate(frames)])
    assert off.seen == [] and off.fates == ["other_port"] * 5


def test_nobody_answers(tmp_path):
    done = run(tmp_path, [(0, udp(CLIENT, 50000, "224.0.0.252", 5355, QUERY))], llmnr=True)
    assert [(e["status"], e["server_addr"]) for e in done.seen] == [("no_reply", "224.0.0.252")]


def test_a_unicast_query_is_answered_by_whom_it_asked(tmp_path):
    frames = [udp(CLIENT, 50000, "192.0.2.7", 5355, QUERY),
              udp("192.0.2.8", 5355, CLIENT, 50000, REPLY),
              udp("192.0.2.7", 5355, CLIENT, 50000, REPLY)]
    done = run(tmp_path, [(i / 10, f) for i, f in enumerate(frames)], llmnr=True)
    assert [(e["status"], e["server_addr"]) for e in done.seen] == [
        ("no_query", "192.0.2.8"), ("success", "192.0.2.7")]


def test_hosts_that_talk_mdns_to_all(tmp_path):
    """Between the mDNS ports nothing is matched: each message is an event, and none is noise."""
    announcement = build.header(0, 0x8400, (0, 1, 0, 0)) + build.record(
        build.labels("printer", "local"), 1, bytes([192, 0, 2, 7]), rdclass=0x8001)
    question = build.header(0, 0, (1, 0, 0, 0)) + build.question(
        build.labels("printer", "local"), 1, 0x8001)
    frames = [udp(CLIENT, 5353, "224.0.0.251", 5353, question),
              udp("192.0.2.7", 5353, "224.0.0.251", 5353, announcement),
              udp("192.0.2.7", 5353, CLIENT, 5353, announcement)]
    done = run(tmp_path, [(i / 10, f) for i, f in enumerate(frames)], mdns=True, detail="full",
               records=True)
    assert [(e["status"], "query" in e, "reply" in e) for e in done.seen if "status" in e] == [
        ("one_way", True, False), ("one_way", False, True), ("one_way", False, True)]
    assert done.counts["one_way_queries"] == 1 and done.counts["one_way_replies"] == 2
    assert done.seen[0]["query"][0]["unicast"] is True
    assert done.seen[2]["reply"][0] == {
        "class": "IN", "data": "192.0.2.7", "flush": True, "name": "printer.local.",
        "section": "answer", "ttl": 60, "type": "A"}


def test_dns_from_an_mdns_port_is_dns(tmp_path):
    """A resolver may take 5353 as its own port; 53 at the other end decides."""
    frames = [udp(CLIENT, 5353, "198.51.100.53", 53, QUERY),
              udp("198.51.100.53", 53, CLIENT, 5353, REPLY)]
    done = run(tmp_path, [(i / 10, f) for i, f in enumerate(frames)], mdns=True)
    assert done.statuses == ["success"] and "\tdns-gazer.dns.tx\t" in done.lines[0]


def test_vlans_are_apart(tmp_path):
    frames = [udp(CLIENT, 50000, "224.0.0.252", 5355, QUERY, vlan=(10,)),
              udp("192.0.2.7", 5355, CLIENT, 50000, REPLY, vlan=(20,))]
    done = run(tmp_path, [(i / 10, f) for i, f in enumerate(frames)], llmnr=True)
    assert done.statuses == ["no_query", "no_reply"]


def test_dso_without_id_expects_no_reply(tmp_path):
    """RFC 8490, section 5.4: a unidirectional message; with an id it is a request."""
    keepalive = bytes.fromhex("0001000800003a9800003a98")
    from tests.test_engine_streams import Connection, timed

    c = Connection()
    c.query(build.header(0, 0x3000, (0, 0, 0, 0)) + keepalive)
    c.query(build.header(4, 0x3000, (0, 0, 0, 0)) + keepalive)
    c.reply(build.header(4, 0xB000, (0, 0, 0, 0)) + keepalive)
    done = run(tmp_path, timed(c.frames), detail="full")
    assert done.statuses == ["one_way", "success"]
    assert done.seen[1]["dso"] == {"query": "KEEPALIVE 00003a9800003a98",
                                   "reply": "KEEPALIVE 00003a9800003a98"}


def test_a_zone_transfer_is_dns_whatever_came_meanwhile(tmp_path):
    """The top bit of a class is a flag in mDNS alone, also for a query that is decoded late."""
    from tests.test_engine_streams import Connection, soa

    query = build.header(7, 0, (1, 0, 0, 0)) + build.question(
        build.labels("example", "com"), 252, 0x8001)
    plain = build.query("example.com.", "AXFR", id=7)
    part = build.reply(plain, soa(1))
    part = part[:12] + query[12:] + part[len(plain):]
    c = Connection()
    c.query(query)
    c.reply(part)
    frames = [*c.frames, udp(CLIENT, 5353, "224.0.0.251", 5353, QUERY), c.reply(part)]
    done = run(tmp_path, [(i / 10, f) for i, f in enumerate(frames)], mdns=True, detail="full")
    assert done.statuses == ["one_way", "success"]
    assert done.seen[1]["query"] == done.seen[1]["reply"][:1] == [
        {"class": "CLASS32769", "name": "example.com.", "section": "question", "type": "AXFR"}]
