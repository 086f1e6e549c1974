"""Real DNS, seen live: what real clients and a real resolver said to each other is what is in the
log, each transaction once.  The oracle is the client: dnspython, kdig and dnsperf."""

from __future__ import annotations

import itertools
import json
import socket
from collections import Counter

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.query
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import pytest

from tests.conftest import eventually
from tests.netns import SENSOR, V4, V6
from tests.resolver import JSON, account, as_json, events, of, program, stats, stop, written

pytest_plugins = ["tests.resolver"]

QUESTIONS = [
    ("www.zone.test", "A"), ("WwW.zOnE.tEsT", "AAAA"), ("zone.test", "MX"), ("zone.test", "SOA"),
    ("zone.test", "NS"), ("zone.test", "CAA"), ("_dns._udp.zone.test", "SRV"),
    ("text.zone.test", "TXT"), ("alias.zone.test", "A"), ("80.2.0.192.in-addr.zone.test", "PTR"),
    ("n.zone.test", "NAPTR"), ("s.zone.test", "HTTPS"), ("huge.zone.test", "TXT"),
    ("www.zone.test", "ANY"), ("www.zone.test", "LOC"), ("no\\.such\\032name.zone.test", "A"),
    ("x.refused.test", "A"),
]
EDNS: list[dict[str, object]] = [
    {},
    {"use_edns": 0, "payload": 1232},
    {"use_edns": 0, "payload": 4096, "ednsflags": dns.flags.DO, "options": [
        dns.edns.GenericOption(dns.edns.OptionType.COOKIE, bytes(range(8))),
        dns.edns.ECSOption("198.51.100.0", 24)]},
    {"use_edns": 1, "payload": 1232},
]


def records(message: dns.message.Message) -> list[Counter]:
    """Answer, authority, additional: each as a bag, since dnspython puts records into sets."""
    return [Counter((rrset.name.labels, rrset.rdtype, rrset.rdclass, rrset.ttl, rdata.to_wire())
                    for rrset in section for rdata in rrset)
            for section in (message.answer, message.authority, message.additional)]


def logged(entries: list[dict]) -> list[Counter]:
    """The same, of an event's `query` or `reply`."""
    found: dict[str, Counter] = {name: Counter() for name in ("answer", "authority", "additional")}
    for entry in entries:
        if entry["section"] == "question" or entry["type"] == "OPT":
            continue
        kind = dns.rdatatype.from_text(entry["type"])
        class_ = dns.rdataclass.from_text(entry["class"])
        wire = dns.rdata.from_text(class_, kind, entry["data"]).to_wire()
        name = dns.name.from_text(entry["name"]).labels
        found[entry["section"]][name, kind, class_, entry["ttl"], wire] += 1
    return list(found.values())


def compare(event: dict, query: dns.message.Message, reply: dns.message.Message) -> None:
    """The event tells what the client sent and got."""
    assert event["status"] == "success"
    assert event["rcode"] == dns.rcode.to_text(reply.rcode())
    assert event["opcode"] == dns.opcode.to_text(reply.opcode())
    assert event["flags"] == dns.flags.to_text(reply.flags & ~dns.flags.QR).lower()
    assert logged(event["query"]) == records(query)
    assert logged(event["reply"]) == records(reply)
    for side, message in (("query", query), ("reply", reply)):
        (question,) = [e for e in event[side] if e["section"] == "question"]
        (rrset,) = message.question
        assert dns.name.from_text(question["name"]).labels == rrset.name.labels
        assert question["type"] == dns.rdatatype.to_text(rrset.rdtype)
        assert question["class"] == dns.rdataclass.to_text(rrset.rdclass)
        edns = event.get("edns", {}).get(side)
        assert (edns is not None) == (message.edns >= 0)
        if edns:
            assert edns["version"] == message.edns
            assert edns["udp_size"] == message.payload
            assert edns["do"] == bool(message.ednsflags & dns.flags.DO)
    assert event["query_size"] == len(query.to_wire())
    assert 0 < event["latency"] < 10 and "malformed" not in event and "lossy" not in event


def identity(event: dict) -> tuple:
    return event["client_addr"], event["client_port"], event["tx_id"], event["proto"]


def test_what_dnspython_asks_and_is_told(sensor, resolver):
    """Every kind of question, over both transports and both families, with and without EDNS; and a
    zone where nobody answers."""
    live = sensor.configured(**JSON, outputs=as_json(sensor.out),
                             transactions={"timeout": "1s"})
    expected: dict[tuple, tuple] = {}
    unanswered = set()

    def ask() -> None:
        ports = itertools.count(20000)
        for (mine, server), proto, edns in itertools.product(
                ((V4[SENSOR], resolver.v4), (V6[SENSOR], resolver.v6)), ("udp", "tcp"), EDNS):
            # UDP: a flow for each; TCP: one connection for all, everything asked at once.
            queries = {}
            for name, kind in QUESTIONS:
                query = dns.message.make_query(name, kind, **edns)
                query.id = len(queries) + 1
                query.flags |= dns.flags.CD
                queries[query.id] = query
            if proto == "udp":
                for query in queries.values():
                    port = next(ports)
                    reply = dns.query.udp(query, server, 5, source=mine, source_port=port)
                    expected[mine, port, query.id, proto] = query, reply
                continue
            port = next(ports)
            with socket.create_connection((server, 53), 5, (mine, port)) as connection:
                for query in queries.values():
                    dns.query.send_tcp(connection, query)
                for _ in queries:
                    reply, _ = dns.query.receive_tcp(connection)
                    expected[mine, port, reply.id, proto] = queries[reply.id], reply
        for proto in ("udp", "tcp"):
            port = next(ports)
            query = dns.message.make_query("www.silent.test", "A")
            with pytest.raises((dns.exception.Timeout, EOFError)):
                getattr(dns.query, proto)(query, resolver.v4, 0.2, source=V4[SENSOR],
                                          source_port=port)
            unanswered.add((V4[SENSOR], port, query.id, proto))

    resolver.lab.inside(ask)

    def all_there() -> bool:
        """all transactions are logged"""
        return len(events(sensor.out.read_bytes())) >= len(expected) + len(unanswered)

    eventually(all_there)
    assert account(live).capture["kernel_dropped"] == 0
    stop(live)
    found = events(sensor.out.read_bytes())
    assert Counter(map(identity, found)) == Counter([*expected, *unanswered])
    for event in found:
        if (who := identity(event)) in expected:
            compare(event, *expected[who])
        else:
            assert event["status"] == "no_reply" and "reply" not in event
    # It was not all the same: each of these came up.
    rcodes = Counter(event.get("rcode") for event in found)
    assert {"NOERROR", "NXDOMAIN", "REFUSED", "BADVERS", None} <= set(rcodes)
    assert any("tc" in event["flags"].split() for event in found)
    in_pieces = {":" in event["client_addr"] for event in found
                 if event["proto"] == "udp" and event.get("reply_size", 0) > 1500}
    assert in_pieces == {True, False}


def test_what_kdig_asks_and_is_told(sensor, resolver):
    """A client and an encoding (RFC 8427) that share nothing with us; it comes back over TCP for
    what was truncated."""
    kdig = program("kdig", "knot-dnsutils")
    live = sensor.configured(**JSON, outputs=as_json(sensor.out))
    count = 0
    expected = []
    for port, (server, mine, *options) in enumerate([
            (resolver.v4, V4[SENSOR], "+noedns"), (resolver.v6, V6[SENSOR], "+edns", "+dnssec"),
            (resolver.v4, V4[SENSOR], "+tcp"), (resolver.v6, V6[SENSOR], "+tcp", "+nsid"),
            (resolver.v4, V4[SENSOR], "+noedns", "+ignore")], 30000):
        for name, kind in (("www.zone.test", "A"), ("no.zone.test", "A"), ("x.refused.test", "A"),
                           ("huge.zone.test", "TXT"), ("alias.zone.test", "AAAA")):
            done = resolver.lab.run([kdig, f"@{server}", "-b", mine, name, kind, "+json", "+noidn",
                                     *options])
            assert done.returncode == 0, (done.stdout, done.stderr, port)
            said = json.loads(done.stdout)
            expected.append((said, mine))
            # kdig shows the last answer; a truncated one before that is a transaction as well.
            again = name.startswith("huge") and "+noedns" in options and "+ignore" not in options
            count += 1 + again

    def all_there() -> bool:
        """all transactions are logged"""
        return len(events(sensor.out.read_bytes())) >= count

    eventually(all_there)
    account(live)
    stop(live)
    found = events(sensor.out.read_bytes())
    assert len(found) == count
    for said, mine in expected:
        matching = [event for event in found
                    if event["tx_id"] == said["ID"] and event["client_addr"] == mine
                    and event["reply"][0]["name"] == said["QNAME"]
                    and event["reply_size"] == said["msgLength"]]
        assert len(matching) == 1, (said, matching)
        (event,) = matching
        assert event["rcode"] == dns.rcode.to_text(said["RCODE"])
        assert event["flags"].split() == [
            flag.lower() for flag in ("AA", "TC", "RD", "RA", "AD", "CD") if said[flag]]
        answers = Counter((dns.name.from_text(name).labels, kind, data) for name, kind, data in (
            (r["NAME"], r["TYPE"], r["RDATAHEX"].lower()) for r in said.get("answerRRs", [])))
        assert Counter((labels, int(kind), wire.hex()) for (labels, kind, _, _, wire), n
                       in logged(event["reply"])[0].items() for _ in range(n)) == answers


@pytest.mark.parametrize("mode", ["udp", "tcp"])
def test_as_many_transactions_as_dnsperf_completed(sensor, resolver, gazer, mode):
    live = sensor.configured(**JSON, outputs=as_json(sensor.out))
    load = resolver.load(4000, 1.5, "-m", mode, "-e", "-D",
                         server=resolver.v6 if mode == "udp" else resolver.v4)
    # It adds up while it runs, too.
    while load.process.poll() is None:
        account(live)
    load.end()
    assert load.lost == 0 and load.sent > 1000
    written(live, load.sent)
    said = stats(gazer, live)
    assert said["workers"]["success"] == load.sent and said["capture"]["kernel_dropped"] == 0
    assert said["outputs"][0]["events"] == load.sent
    stop(live)
    found = of(load, events(sensor.out.read_bytes()))
    assert sorted(found) == sorted(load.completed)
    assert {event["status"] for event in found.values()} == {"success"}
    assert Counter(event["rcode"] for event in found.values()) == Counter(load.rcodes)
    assert {event["proto"] for event in found.values()} == {mode}
    assert all(event["edns"]["query"]["do"] for event in found.values())
