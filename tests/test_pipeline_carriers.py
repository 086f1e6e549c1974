"""Whole outputs against the oracle's where TCP, fragments, tunnels and multicast carry the DNS:
recorded traffic with segments lost, repeated and swapped, and exchanges built by hand."""

from __future__ import annotations

import random
from pathlib import Path

import dns.name
import dns.rdata
import pytest

from tests.capture_writers import pcap
from tests.conftest import CAPTURES
from tests.oracle import build, capture, compare, events, wraps
from tests.test_pipeline import OVERLOOK, assert_accounted, lines

NS = 1_000_000_000
T0 = 1_700_000_000 * NS
CLIENT, SERVER = ("198.51.100.7", 4000), ("192.0.2.53", 53)
CLIENT6, SERVER6 = ("2001:db8::7", 4000), ("2001:db8::53", 53)
OUTER, OUTER6 = ("203.0.113.1", "203.0.113.2"), ("2001:db8:a::1", "2001:db8:a::2")
TEXT = {"outputs": [{"type": "text", "path": "-"}]}


def hold(gazer, path: Path, *, workers: tuple[int, ...] = (1, 3), settings: dict | None = None,
         **rules) -> events.Reading:
    """Full detail with records, with one worker and several, is what the oracle reads."""
    want = events.expected(path, records=True, detail="full", **rules)
    assert [e.due for e in want.events] == sorted(e.due for e in want.events)
    for count in workers:
        config = TEXT | {"workers": count, "events": {"detail": "full", "records": True},
                         **(settings or {})}
        done = gazer.configured(config, "-r", path)
        assert done.code == 0, done.stderr
        assert compare.diff(lines(want), done.lines, leave_out=OVERLOOK) == ""
        assert_accounted(done.stderr, want)
    return want


def write(path: Path, frames: list[bytes], step: int = NS // 1000) -> Path:
    build.write_pcap(path, [(T0 + at * step, frame) for at, frame in enumerate(frames)],
                     nanoseconds=True)
    return path


# --------------------------------------------------------------------------- battered captures


def battered(names: tuple[str, ...], seed: int, often: float) -> list[tuple[int, bytes, int]]:
    """(time, octets, length) of the captures' frames, one after the other: some lost, some twice,
    some late by a few frames. Time goes on as it did; between two captures connections age."""
    dice = random.Random(seed)
    out: list[tuple[int, bytes, int]] = []
    for name in names:
        records = [(ts, octets, length) for ts, length, _, octets in
                   capture.records(CAPTURES / name)]
        begin = out[-1][0] + 400 * NS if out else T0
        times = [begin + ts - records[0][0] for ts, _, _ in records]
        order: list[tuple[float, int]] = []
        for at in range(len(records)):
            what = dice.random() / often
            if what < 1:            # lost
                continue
            order.append((at + dice.uniform(1, 6) if what < 2 else at, at))
            if 2 <= what < 3:       # twice
                order.append((at + dice.uniform(0.1, 6), at))
        order.sort()
        latest = begin
        for _, at in order:
            latest = max(latest, times[at])
            out.append((latest, records[at][1], records[at][2]))
    return out


def write_battered(path: Path, names: tuple[str, ...], seed: int, often: float) -> Path:
    path.write_bytes(pcap([(ts // NS, ts % NS, octets, length)
                           for ts, octets, length in battered(names, seed, often)], nano=True))
    return path


BATTERED = ("tcp.pcap", "transfers.pcap", "vlan.pcap", "resolver.pcap", "fragments.pcap",
            "vxlan.pcap", "tcp.pcap", "snaplen.pcap", "transfers.pcap")


@pytest.mark.parametrize("seed, often", [(1, 0.01), (2, 0.03), (3, 0.1), (4, 0.25)])
def test_captures_with_frames_lost_repeated_and_late(gazer, tmp_path, seed, often):
    path = write_battered(tmp_path / "battered.pcap", BATTERED, seed, often)
    want = hold(gazer, path)
    assert want.streams["gaps"] and want.streams["old"] and want.streams["timed out"] > 15
    assert want.counts["matched"] > 200
    assert want.pieces["joined"]


# ------------------------------------------------------------------------------------- tunnels


def exchanges(client=CLIENT, server=SERVER) -> list[bytes]:
    """IP packets: a question by UDP, its answer; a question by TCP, its answer in two segments."""
    query = build.query("inner.example.", id=77)
    reply = build.reply(query, "inner.example. 60 IN A 192.0.2.80")
    large = build.query("inner.example.", "TXT", id=78)
    text = build.reply(large, *(f'inner.example. 60 IN TXT "{"x" * 200}{n}"' for n in range(5)))
    talk = wraps.Talk(client, server)
    return [build.udp(*client, *server, query), build.udp(*server, *client, reply),
            *talk.opening(), *talk.says(0, wraps.framed(large)),
            *talk.says(1, wraps.framed(text), size=700), *talk.closing()]


def by_direction(packet: bytes, ends: tuple[str, str], client) -> tuple[str, str]:
    """The outer ends in the packet's direction."""
    at, size = (12, 4) if packet[0] >> 4 == 4 else (8, 16)
    here = build.ipaddress.ip_address(packet[at : at + size])
    return ends if str(here) == client[0] else ends[::-1]


def tunnel(kind: str, packet: bytes, ends: tuple[str, str], number: int) -> bytes:
    """A whole frame around the IP packet, in one kind of tunnel with the number for an id."""
    frame = build.frame(packet, vlan=(number,))
    ethertype = 0x0800 if packet[0] >> 4 == 4 else 0x86DD

    def over(protocol: int, payload: bytes) -> bytes:
        return build.frame(wraps.ip(*ends, protocol, payload), vlan=(7,))

    def udp(port: int, payload: bytes) -> bytes:
        return build.frame(build.udp(ends[0], 50000 + number, ends[1], port, payload), vlan=(7, 8))

    ppp = build.ppp(packet)
    return {
        "mpls": lambda: build.frame(wraps.mpls(packet, (16, number)), ethertype=0x8847),
        "mpls multicast": lambda: build.frame(wraps.mpls(packet, (number,)), ethertype=0x8848),
        "pseudowire": lambda: build.frame(wraps.mpls(frame, (9, 8, number), control_word=True),
                                          ethertype=0x8847, vlan=(7,)),
        "pppoe": lambda: build.frame(build.pppoe(packet, session=number), ethertype=0x8864),
        "gre": lambda: over(47, wraps.gre(packet, ethertype)),
        "gre with all": lambda: over(47, wraps.gre(packet, ethertype, key=number, sequence=3,
                                                   checksum=True)),
        "gre ethernet": lambda: over(47, wraps.gre(frame, 0x6558, key=number)),
        "gre tagged": lambda: over(47, wraps.gre(frame[14:], 0x8100)),
        "gre mpls": lambda: over(47, wraps.gre(wraps.mpls(packet, (number,)), 0x8847)),
        "gre ppp": lambda: over(47, wraps.gre(b"\xff\x03" + ppp, 0x880B, key=1)),
        "pptp": lambda: over(47, wraps.gre(ppp, 0x880B, key=number, sequence=1, version=1,
                                           acknowledgement=2)),
        "erspan 1": lambda: over(47, wraps.erspan(frame, 1)),
        "erspan 2": lambda: over(47, wraps.erspan(frame, 2, number)),
        "erspan 3": lambda: over(47, wraps.erspan(frame, 3, number)),
        "erspan 3 long": lambda: over(47, wraps.erspan(frame, 3, number, subheader=True)),
        "vxlan": lambda: udp(4789, wraps.vxlan(frame, number)),
        "geneve": lambda: udp(6081, wraps.geneve(frame, number, options=bytes(8))),
        "geneve ip": lambda: udp(6081, wraps.geneve(packet, number, protocol=ethertype)),
        "ip in ip": lambda: build.frame(wraps.ip_in_ip(*ends, packet), vlan=(7,)),
    }[kind]()


KINDS = ("mpls", "mpls multicast", "pseudowire", "pppoe", "gre", "gre with all", "gre ethernet",
         "gre tagged", "gre mpls", "gre ppp", "pptp", "erspan 1", "erspan 2", "erspan 3",
         "erspan 3 long", "vxlan", "geneve", "geneve ip", "ip in ip")


def test_every_encapsulation_around_the_same_exchange(gazer, tmp_path):
    """IPv4 and IPv6 in each, over IPv4 and IPv6; each with ports of its own."""
    frames, number = [], 100
    for kind in KINDS:
        for ends in (OUTER, OUTER6):
            for address, server in ((CLIENT[0], SERVER), (CLIENT6[0], SERVER6)):
                number += 1
                client = (address, 10_000 + number)
                frames += [tunnel(kind, packet, by_direction(packet, ends, client), number)
                           for packet in exchanges(client, server)]
    want = hold(gazer, write(tmp_path / "tunnels.pcap", frames))
    assert want.counts["matched"] == len(KINDS) * 4 * 2
    assert want.fates == {"dns": len(frames)}


def test_tunnels_within_tunnels_and_their_fragments(gazer, tmp_path):
    """Two kinds in each other; every frame's outermost IP packet in pieces; the depth's limit."""
    frames, number = [], 0
    for inside in ("vxlan", "gre", "ip in ip", "erspan 2", "geneve"):
        for outside in ("vxlan", "gre ethernet", "ip in ip", "pseudowire", "pppoe", "gre mpls"):
            number += 1
            client = (CLIENT[0], 10_000 + number)
            for at, packet in enumerate(exchanges(client)):
                ends = by_direction(packet, OUTER, client)
                inner = tunnel(inside, packet, ends, number)
                while inner[12:14] == b"\x81\x00":      # only what is behind the tags
                    inner = inner[:12] + inner[16:]
                ends6 = by_direction(packet, OUTER6, client)
                frame = tunnel(outside, inner[14:], ends6, number + 100)
                head = 18 if frame[16:18] == b"\x86\xdd" else 0
                if head and frame[12:14] == b"\x81\x00":
                    frames += [frame[:head] + piece for piece in
                               wraps.pieces(frame[head:], 96, ident=number << 16 | at)]
                else:
                    frames.append(frame)
    path = write(tmp_path / "nested.pcap", frames)
    want = hold(gazer, path)
    assert want.counts["matched"] == 60
    assert want.pieces["joined"] > 100
    shallow = hold(gazer, path, workers=(2,), settings={"tunnels": {"max_depth": 1}}, max_depth=1)
    assert shallow.counts["matched"] == 0 and shallow.fates["tunnel_depth"] > 300


@pytest.mark.parametrize("decode", [[], ["gre", "pppoe", "ip"], ["erspan", "vxlan"]])
def test_only_the_tunnels_that_are_to_be_opened(gazer, tmp_path, decode):
    frames = [tunnel(kind, packet, by_direction(packet, OUTER, CLIENT), 50)
              for kind in KINDS for packet in exchanges()]
    want = hold(gazer, write(tmp_path / "tunnels.pcap", frames), workers=(2,),
                settings={"tunnels": {"decode": decode}}, tunnels=tuple(decode))
    assert len(want.fates) > 2 if decode else "dns" not in want.fates


def test_networks_are_told_apart_by_tags_and_vnis(gazer, tmp_path):
    """The same exchange in several, the frames of all interleaved; GRE keys differ by direction."""
    packets = exchanges()
    frames = []
    for at, packet in enumerate(packets):
        ends = by_direction(packet, OUTER, CLIENT)
        frames += [build.frame(packet), build.frame(packet, vlan=(1,)),
                   build.frame(packet, vlan=(1, 2))]
        frames += [build.frame(build.udp(ends[0], 9, ends[1], 4789, wraps.vxlan(
            build.frame(packet), vni))) for vni in (1, 2)]
        frames.append(build.frame(wraps.ip(*ends, 47, wraps.gre(
            build.frame(packet, vlan=(5,)), 0x6558, key=at))))
    want = hold(gazer, write(tmp_path / "networks.pcap", frames))
    assert want.counts["matched"] == 12


def test_fragments_of_all_orders_and_of_hostile_ones(gazer, tmp_path):
    dice = random.Random(9)
    frames = []
    for ident in range(120):
        client, server = (CLIENT6, SERVER6) if ident % 3 else (CLIENT, SERVER)
        if ident % 11 == 5:
            server = (server[0], 443)
        client = (client[0], 5000 + ident)
        query = build.query(f"f{ident}.example.", "TXT", id=ident)
        reply = build.reply(query, *(f'f{ident}.example. 60 IN TXT "{"y" * 250}"'
                                     for _ in range(ident % 4 + 1)))
        packet = build.udp(*server, *client, reply)
        parts = wraps.pieces(packet, dice.choice((64, 200, 504)), ident)
        if ident % 2:
            dice.shuffle(parts)
        what = ident % 7
        if what == 1:
            parts.insert(dice.randrange(len(parts)), dice.choice(parts))
        elif what == 2 and len(parts) > 2:
            parts.pop(dice.randrange(len(parts)))
        elif what == 3:         # other octets for what was seen
            changed = bytearray(dice.choice(parts))
            changed[-1] ^= 1
            parts.insert(dice.randrange(len(parts)), bytes(changed))
        elif what == 4:         # no multiple of eight
            parts.insert(0, wraps.pieces(packet, 61, ident)[0])
        frames += [build.frame(build.udp(*client, *server, query)), *map(build.frame, parts)]
    want = hold(gazer, write(tmp_path / "pieces.pcap", frames, step=NS // 5))
    assert {"joined", "foreign", "duplicate", "overlapping", "bad", "expired"} <= set(+want.pieces)
    assert want.counts["matched"] > 50


def test_icmp_errors_about_dns(gazer, tmp_path):
    query, query6 = (build.udp(*c, *s, build.query("q.example.")) for c, s in (
        (CLIENT, SERVER), (CLIENT6, SERVER6)))
    web = build.udp(*CLIENT, SERVER[0], 443, b"x")
    frames = [build.frame(query), build.frame(query6)]
    for kind in range(256):
        for quoted in (query[:28], query, web[:28], query[:22], b""):
            frames.append(build.frame(build.ipv4(SERVER[0], CLIENT[0], 1,
                                                 bytes([kind, 1]) + bytes(6) + quoted)))
        for quoted in (query6, query6[:48], query[:28]):
            frames.append(build.frame(build.ipv6(SERVER6[0], CLIENT6[0], 58,
                                                 bytes([kind, 1]) + bytes(6) + quoted)))
    want = hold(gazer, write(tmp_path / "icmp.pcap", frames), workers=(1,))
    assert want.fates["icmp_error"] == 5 * 2 + 4 * 2


# ----------------------------------------------------------------------------------- multicast


def mdns_question(name: str, *, unicast: bool = False, id: int = 0) -> bytes:
    return build.header(id, 0, (1, 0, 0, 0)) + build.question(
        build.labels(*name.split("."), "local"), 255, 0x8001 if unicast else 1)


def mdns_answer(name: str, address: bytes, *, flush: bool = False, id: int = 0,
                asked: bytes = b"") -> bytes:
    labels = build.labels(*name.split("."), "local")
    return (build.header(id, 0x8400, (bool(asked), 1, 0, 0)) + asked[12:]
            + build.record(labels, 1, address, rdclass=0x8001 if flush else 1, ttl=120))


def multicast(at: float, source, destination, wire: bytes) -> tuple[int, bytes]:
    return T0 + round(at * NS), build.frame(build.udp(*source, *destination, wire))


def test_mdns_and_llmnr(gazer, tmp_path):
    host, first, second = "192.0.2.10", "192.0.2.20", "192.0.2.21"
    group, group6 = ("224.0.0.251", 5353), ("ff02::fb", 5353)
    llmnr, llmnr6 = ("224.0.0.252", 5355), ("ff02::1:3", 5355)
    one = mdns_question("printer", id=9)            # a one-shot query: answered to its port
    told = mdns_answer("printer", b"\1\2\3\4", id=9, asked=one)
    ask = build.query("pc.", id=300)
    tell, other = (build.reply(ask, f"pc. 30 IN A 192.0.2.{n}") for n in (20, 21))
    ask6 = build.query("pc6.", "AAAA", id=301)
    tell6 = build.reply(ask6, "pc6. 30 IN AAAA 2001:db8::20")
    both = (host, 5353), (first, 5353)
    entries = [
        multicast(0, both[0], group, mdns_question("printer", unicast=True)),
        multicast(0.01, both[1], group, mdns_answer("printer", b"\1\2\3\4", flush=True)),
        multicast(0.02, both[1], both[0], mdns_answer("printer", b"\1\2\3\4", flush=True)),
        multicast(0.03, ("fe80::1", 5353), group6, mdns_question("printer")),
        multicast(1, (host, 4000), group, one),
        multicast(1.1, (first, 5353), (host, 4000), told),
        multicast(1.2, (second, 5353), (host, 4000), told),
        multicast(1.3, (second, 5353), (host, 4000), told),
        multicast(1.4, (first, 5353), (host, 4000), told),
        multicast(6.2, (second, 5353), (host, 4000), told),  # the window is over
        multicast(7, (host, 4001), (first, 5353), one),      # to a host, not to the group
        multicast(7.1, (second, 5353), (host, 4001), told),
        multicast(7.2, (first, 5353), (host, 4001), told),
        multicast(8, (host, 4002), llmnr, ask),
        multicast(8.1, (first, 5355), (host, 4002), tell),
        multicast(8.2, (second, 5355), (host, 4002), other),
        multicast(8.3, ("fe80::2", 4003), llmnr6, ask6),
        multicast(8.4, ("fe80::3", 5355), ("fe80::2", 4003), tell6),
        multicast(9, (host, 4004), llmnr, ask),
        multicast(10, (host, 4005), ("224.0.0.253", 5353), one),
        multicast(10.1, (first, 5353), (host, 4005), told),
        multicast(11, CLIENT, SERVER, build.query("plain.example.")),
        multicast(12, (host, 5353), SERVER, build.query("plain.example.")),
    ]
    path = tmp_path / "multicast.pcap"
    build.write_pcap(path, entries, nanoseconds=True)
    on = {"mdns": True, "llmnr": True}
    want = hold(gazer, path, settings={"capture": on}, **on)
    assert {event.tag for event in want.events} == {
        f"dns-gazer.{p}.{k}" for p in ("dns", "mdns", "llmnr") for k in ("tx", "record")}
    statuses = [event.record["status"] for event in want.events if event.tag.endswith("tx")]
    assert {s: statuses.count(s) for s in set(statuses)} == {
        "one_way": 4, "success": 4, "further_reply": 2, "no_query": 3, "no_reply": 4}
    off = hold(gazer, path)
    assert off.fates == {"dns": 2, "other_port": len(entries) - 2}
    mdns = hold(gazer, path, workers=(2,), settings={"capture": {"mdns": True}}, mdns=True)
    assert not any("llmnr" in event.tag for event in mdns.events)


# ------------------------------------------------------------------------- opcodes and transfers


def test_updates_notifies_and_stateful_operations(gazer, tmp_path):
    zone = build.question(build.labels("example"), 6)
    update = build.header(5, 0x2800, (1, 1, 2, 0)) + zone + build.record(
        build.labels("old", "example"), 255, b"", rdclass=255, ttl=0) + build.record(
        build.labels("new", "example"), 1, bytes(4)) + build.record(
        build.labels("new", "example"), 1, b"", rdclass=255, ttl=0)
    done = build.header(5, 0xA800, (1, 0, 0, 0)) + zone
    notify = build.header(6, 0x2400, (1, 1, 0, 0)) + zone + build.record(
        build.labels("example"), 6, b"\0\0" + bytes(20))
    heard = build.header(6, 0xA400, (1, 0, 0, 0)) + zone
    keepalive = build.header(7, 0x3000, (0, 0, 0, 0)) + bytes.fromhex("0001000800003a9800003a98")
    alive = build.header(7, 0xB000, (0, 0, 0, 0)) + bytes.fromhex("0001000800003a9800003a98")
    push = build.header(0, 0x3000, (0, 0, 0, 0)) + bytes.fromhex("00410003aabbcc00030000f0010001ff")
    broken = build.header(8, 0x3000, (0, 0, 0, 0)) + bytes.fromhex("000300020000000300ff00")
    odd = build.header(9, 0x3000, (1, 0, 0, 0)) + zone
    refused = build.header(9, 0xB00B, (0, 0, 0, 0))
    talk = wraps.Talk(CLIENT, SERVER)
    packets = [*talk.opening(), *talk.says(0, wraps.framed(update, notify, keepalive)),
               *talk.says(1, wraps.framed(heard, push, alive, done)),
               *talk.says(0, wraps.framed(broken, odd, push)),
               *talk.says(1, wraps.framed(refused)), *talk.closing()]
    for one in (update, done, notify, heard, push, broken):
        ends = (*SERVER, *CLIENT) if one[2] & 0x80 else (*CLIENT, *SERVER)
        packets.append(build.udp(*ends, one))
    want = hold(gazer, write(tmp_path / "opcodes.pcap", [build.frame(p) for p in packets]))
    assert {e.record["section"] for e in want.events if "section" in e.record} == {
        "question", "answer", "zone", "prerequisite", "update"}
    assert any("PUSH aabbcc, PADDING" in str(e.record.get("dso")) for e in want.events)


def soa(serial: int) -> str:
    return f"z. 60 IN SOA ns.z. h.z. {serial} 2 3 4 5"


def message_of(query: bytes, *records: str, question: bool = True, rcode: int = 0) -> bytes:
    """A reply to the query with these answers; without its question nothing is compressed."""
    if question:
        wire = bytearray(build.reply(query, *records))
    else:
        wire = bytearray(query[:2] + build.header(0, 0x8400, (0, len(records), 0, 0))[2:])
        for line in records:
            name, ttl, rdclass, rdtype, data = line.split(None, 4)
            rdata = dns.rdata.from_text(rdclass, rdtype, data)
            wire += build.record(dns.name.from_text(name).to_wire(), rdata.rdtype, rdata.to_wire(),
                                 ttl=int(ttl))
    wire[3] = wire[3] & 0xF0 | rcode
    return bytes(wire)


def test_zone_transfers_of_all_endings(gazer, tmp_path):
    names = [f"h{n}.z. 60 IN A 192.0.2.{n}" for n in range(9)]
    axfr, ixfr = (build.query("z.", kind, id=n) for kind, n in (("AXFR", 1), ("IXFR", 2)))
    loose = [message_of(axfr, "z. 60 IN NS ns.z.", question=False),
             message_of(axfr, "z. 60 IN MX 1 m.z.", soa(5), question=False)]
    step = [soa(7), soa(5), names[0], soa(6), names[1], soa(6), names[1], soa(7), names[2], soa(7)]
    answers = {
        "whole": (axfr, [message_of(axfr, soa(5), *names, soa(5))]),
        "many": (axfr, [message_of(axfr, soa(5)), *(message_of(axfr, n) for n in names),
                        message_of(axfr, soa(5))]),
        "without question": (axfr, [message_of(axfr, soa(5), *names), *loose]),
        "unchanged": (ixfr, [message_of(ixfr, soa(5))]),
        "incremental": (ixfr, [message_of(ixfr, *step)]),
        "incremental, one by one": (ixfr, [message_of(ixfr, *step[:2]),
                                           *(message_of(ixfr, one) for one in step[2:])]),
        "as axfr": (ixfr, [message_of(ixfr, soa(5), *names), message_of(ixfr, soa(5))]),
        "refused": (axfr, [message_of(axfr, rcode=5)]),
        "broken off": (axfr, [message_of(axfr, soa(5), *names), message_of(axfr, rcode=2)]),
        "fin": (axfr, [message_of(axfr, soa(5), *names)]),
        "in the middle": (None, [message_of(axfr, *names), *loose]),
        "never heard": (None, [message_of(axfr, soa(5), *names[:2]), message_of(axfr, soa(5))]),
    }
    entries, at, port = [], T0, 5000
    for name, (query, replies) in answers.items():
        port += 1
        talk = wraps.Talk((CLIENT[0], port), SERVER)
        packets = talk.opening()
        if query:
            packets += talk.says(0, wraps.framed(query))
        packets += talk.says(1, wraps.framed(*replies), size=300)
        if name == "fin":
            packets += talk.closing()
        entries += [(at + n * NS // 100, build.frame(p)) for n, p in enumerate(packets)]
        at += 2 * NS
    # A gap, a reset, a new SYN, silence: each amidst a transfer.
    for ending in ("gap", "rst", "syn", "silence"):
        port += 1
        talk = wraps.Talk((CLIENT[0], port), SERVER)
        packets = [*talk.opening(), *talk.says(0, wraps.framed(axfr)),
                   *talk.says(1, wraps.framed(message_of(axfr, soa(5), *names)))]
        rest = list(talk.says(1, wraps.framed(*(message_of(axfr, n) for n in names)), size=100))
        if ending == "gap":
            packets += rest[:4] + rest[5:]
        elif ending == "rst":
            packets += [*rest[:2], talk.segment(0, flags=wraps.RST)]
        elif ending == "syn":
            packets += [*rest[:2],
                        *wraps.Talk((CLIENT[0], port), SERVER, (90_000, 80_000)).opening()]
        entries += [(at + n * NS // 100, build.frame(p)) for n, p in enumerate(packets)]
        at += 2 * NS
    entries.append((at + 70 * NS, build.frame(build.udp(*CLIENT, *SERVER, build.query("late.")))))
    path = tmp_path / "transfers.pcap"
    build.write_pcap(path, entries, nanoseconds=True)
    want = hold(gazer, path)
    found = [event.record for event in want.events if "complete" in event.record]
    assert sum(one["complete"] for one in found) == 8
    assert sum(not one["complete"] for one in found) == 7
