"""The oracle's reading: records against dnspython, frames against tshark, file formats."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from pathlib import Path

import dns.exception
import dns.name
import dns.rdata
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.oracle import build, capture, events, message
from tests.oracle.parts import Level

NS = 1_000_000_000
T0 = 1_700_000_000 * NS
CLIENT, SERVER = "198.51.100.7", "192.0.2.53"
V6 = ("2001:db8::7", 4000, "2001:db8::53", 53)
CAPTURES = Path(__file__).parent / "captures"
A = build.query("a.example.", id=1)
RA = build.reply(A, "a.example. 60 IN A 192.0.2.1")


def ask(wire: bytes) -> bytes:
    return build.frame(build.udp(CLIENT, 4000, SERVER, 53, wire))


def tell(wire: bytes) -> bytes:
    return build.frame(build.udp(SERVER, 53, CLIENT, 4000, wire))


# --------------------------------------------------------------------------- against dnspython

ZONE = [
    "A 192.0.2.1", "AAAA 2001:db8::1", "AAAA ::ffff:192.0.2.1", "AAAA ::", "AAAA 1:0:0:2::3",
    "NS ns.example.", "CNAME .", "PTR host.example.", "DNAME other.example.",
    "SOA ns.example. host\\.master.example. 4294967295 7200 3600 1209600 60", "MX 10 mail.example.",
    'TXT "plain"', r'TXT "" "two words" "q\"b\\" "\000\127\200\255;"', "SRV 1 2 443 www.example.",
    r'NAPTR 100 50 "s" "http+I2L+I2C+I2R" "!^.*$!\\1!" _http._tcp.example.',
    'CAA 0 issue "ca.example; account=1"', 'CAA 128 iodef ""', "RP mbox.example. txt.example.",
    "DS 12345 8 2 " + "ab" * 32, "DNSKEY 257 3 8 " + "QUJD" * 40,
    "RRSIG A 8 2 3600 20380119031408 19700101000000 12345 example. " + "QUJD" * 40,
    "RRSIG TYPE65280 253 2 0 21060207062815 20240229235959 0 . QQ==",
    "NSEC next.example. A NS SOA MX TXT AAAA RRSIG NSEC DNSKEY TYPE1234 CAA TYPE65280", "NSEC .",
    "NSEC3 1 1 12 aabbccdd 2vptu5timamqttgl4luu9kg21e0aor3s A RRSIG", "NSEC3 1 0 0 - 04 A",
    "TLSA 3 1 1 " + "0f" * 32, "SSHFP 4 2 " + "1f" * 32, "SVCB 0 alias.example.",
    r'HTTPS 1 . alpn="h2,h3" port=8443 ipv4hint=192.0.2.1,192.0.2.2 ipv6hint=2001:db8::1',
    "HTTPS 16 . mandatory=alpn,port alpn=h2 no-default-alpn port=53",
    "SVCB 1 a.example. key7=/q{?dns}",
    r'SVCB 1 . alpn="a\\,b\\\\c,\"d\200" key65280="x y\"\\\001"', "SVCB 1 . key65280",
    r"TYPE65280 \# 4 c0a80001", r"TYPE65280 \# 0",
    "LOC 42 21 54.000 N 71 6 18.000 W -24.00m 30.00m 10000.00m 10.00m",
]


def normal(rdtype: int, text: str) -> str:
    """dnspython's text in the oracle's normal form: no spaces inside base64 and hex."""
    fixed = {"DS": 3, "DNSKEY": 3, "RRSIG": 8, "TLSA": 3, "SSHFP": 2}.get(
        dns.rdatatype.to_text(rdtype))
    if fixed is None:
        return text
    parts = text.split()
    return " ".join(parts[:fixed]) + " " + "".join(parts[fixed:])


def in_a_message(rdtype: int, wire: bytes) -> message.Message:
    read = message.read(build.header(1, 0x8000, (0, 1, 0, 0)) + build.record(b"\0", rdtype, wire))
    assert read is not None
    return read


@pytest.mark.parametrize("line", ZONE)
def test_records_as_dnspython_has_them(line):
    rdtype, text = line.split(None, 1)
    rdata = dns.rdata.from_text("IN", rdtype, text)
    read = in_a_message(rdata.rdtype, rdata.to_wire())
    assert read.fault is None
    want = rdata.to_text().rstrip()
    if rdtype == "LOC":  # dnspython leaves out what is default, but only all of it
        want = " ".join(want.split()[: len(read.records[0].data.split())])
    assert read.records[0].data == normal(rdata.rdtype, want)


def test_empty_rdata_of_an_update_is_shown_and_of_others_a_fault():
    def read(rdclass: int) -> message.Message | None:
        return message.read(build.header(1, 0x2800, (0, 0, 1, 0)) +
                            build.record(b"\0", 1, b"", rdclass=rdclass))

    assert [r.data for r in read(255).records] == ["\\# 0"]
    assert [r.data for r in read(254).records] == ["\\# 0"]
    assert read(1).fault and not read(254).fault and not read(255).fault


def test_loc_of_no_known_form_is_generic():
    for octets in (b"\0\xaa" + bytes(14), b"\0\3" + bytes(14), b"\1abc", b"\1" + bytes(15)):
        read = in_a_message(29, octets)
        assert [r.data for r in read.records] == [f"\\# {len(octets)} {octets.hex()}"]


MISFITS = [
    (1, b"\1\2\3\4\5"), (28, bytes(15)), (16, b""), (16, b"\4abc"), (15, b"\0\1"),
    (6, b"\0\0" * 8), (257, b"\0\0x"), (257, b"\0\5ab"), (47, b"\0\0\0"), (47, b"\0\1\1\1\0\1\1"),
    (47, b"\0\0\x21" + b"\1" * 33), (50, b"\1\0\0\0\0\0"), (65, b"\0\1\0\0\3\0\1\0"),
    (65, b"\0\1\0\0\4\0\0"), (65, b"\0\1\0\0\4\0\4\1\2\3\4\0\3\0\2\0\1"),
    (65, b"\0\1\0\0\2\0\1\0"), (65, b"\0\1\0\0\1\0\1\0"), (65, b"\0\1\0\0\0\0\2\0\0"),
    (43, b"\0\1\2"), (46, bytes(17)), (48, b"\1\0\3\x0d"), (257, b"\0\3a-b"),
    (29, bytes(15)), (41, b"\0\3\0\x09"),
]


# dnspython shows an empty key and any tag, and takes a message's OPT from its own parser.
LENIENT = [(48, b"\1\0\3\x0d"), (257, b"\0\3a-b"), (41, b"\0\3\0\x09")]


@pytest.mark.parametrize("rdtype, wire", MISFITS)
def test_rdata_that_does_not_fit_its_type_is_a_fault(rdtype, wire):
    read = in_a_message(rdtype, wire)
    assert [r.data for r in read.records] == [f"\\# {len(wire)} {wire.hex()}".rstrip()]
    assert read.fault.startswith("rdata: ")
    if (rdtype, wire) not in LENIENT:
        with pytest.raises((dns.exception.DNSException, ValueError)):
            dns.rdata.from_wire("IN", rdtype, wire, 0, len(wire))


pieces = st.one_of(
    st.binary(min_size=1, max_size=63).map(lambda b: bytes([len(b)]) + b),
    st.integers(0, 400).map(lambda at: struct.pack("!H", 0xC000 | at)),
    st.just(b"\0"), st.binary(max_size=3))


@given(st.lists(pieces, max_size=12).map(b"".join), st.integers(0, 200))
def test_names_as_dnspython_reads_them(data, at):
    """Where dnspython reads a name, so does the oracle, the same labels and the same end."""
    at %= len(data) + 1
    try:
        name, used = dns.name.from_wire(data, at)
    except dns.exception.DNSException:
        return
    reader = message.Reader(data, at, len(data))
    assert reader.name() == name.labels[:-1]
    assert reader.at == at + used


@given(st.sampled_from([1, 2, 6, 15, 16, 28, 33, 35, 43, 44, 46, 47, 48, 50, 52, 64, 65, 257, 41]),
       st.binary(max_size=60))
def test_any_rdata_ends_in_data_or_a_fault(rdtype, wire):
    read = in_a_message(rdtype, wire)
    assert len(read.records) == 1
    assert not read.fault or read.records[0].data.startswith("\\# ")
    try:
        want = dns.rdata.from_wire("IN", rdtype, wire, 0, len(wire))
    except (dns.exception.DNSException, ValueError):
        return
    if rdtype in (1, 28, 16, 43, 44, 48, 52) and not read.fault:
        assert read.records[0].data == normal(rdtype, want.to_text())


# ------------------------------------------------------------------------------------- captures


WRAPS = {
    "ethernet": (1, build.frame), "trailer": (1, lambda p: build.frame(p, trailer=b"\x55" * 9)),
    "sll": (113, build.sll), "sll2": (276, build.sll2), "raw": (101, lambda p: p),
    "null": (0, build.null), "null be": (0, lambda p: build.null(p, byteorder=">", inet6=30)),
    "loop": (108, lambda p: build.null(p, byteorder=">")), "ppp": (9, build.ppp),
    "ppp hdlc": (50, lambda p: build.ppp(p, hdlc=True)), "pppoe": (51, build.pppoe),
    "pppoe in ethernet": (1, lambda p: build.frame(build.pppoe(p), ethertype=0x8864)),
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_every_link_type(tmp_path, wrap):
    linktype, around = WRAPS[wrap]
    path = tmp_path / "c.pcap"
    build.write_pcap(path, [(T0, around(build.udp(CLIENT, 4000, SERVER, 53, A))),
                            (T0 + 1, around(build.udp(*V6, A)))], linktype=linktype)
    four, six = capture.read(path)
    levels = (Level("pppoe", 1),) if "pppoe" in wrap else ()
    assert four.packet == capture.Packet(CLIENT, 4000, SERVER, 53, (), A, len(A), levels)
    assert six.packet == capture.Packet(*V6, (), A, len(A), levels)


@pytest.mark.parametrize("wrap", ["ethernet", "sll", "sll2"])
def test_tags(tmp_path, wrap):
    linktype, around = WRAPS[wrap]
    build.write_pcap(tmp_path / "c.pcap", [(T0, around(build.udp(*V6, A), vlan=(0x6064, 200, 0)))],
                     linktype=linktype)
    (frame,) = capture.read(tmp_path / "c.pcap")
    assert frame.packet.vlan == (100, 200, 0)


def test_tags_of_all_kinds(tmp_path):
    data = build.frame(build.udp(*V6, A), vlan=(1, 2, 3), tpids=(0x9100, 0x88A8, 0x8100))
    build.write_pcap(tmp_path / "c.pcap", [(T0, data)])
    (frame,) = capture.read(tmp_path / "c.pcap")
    assert frame.packet.vlan == (1, 2, 3)


def test_ip_options_and_extension_headers(tmp_path):
    chain = [(0, b"\1\4\0\0\0\0"), (60, b"\1\4"), (43, b"\0\0"), (51, bytes(10)), (44, bytes(6)),
             (60, b"\1\x0c" + bytes(12))]
    build.write_pcap(tmp_path / "c.pcap", [
        (T0, build.frame(build.udp(CLIENT, 4000, SERVER, 53, A, options=b"\x07\x04\x04"))),
        (T0, build.frame(build.udp(*V6, A, extensions=chain)))])
    assert [frame.packet.payload for frame in capture.read(tmp_path / "c.pcap")] == [A, A]


def test_the_reason_for_each_frame_that_is_not_dns(tmp_path):
    good = build.datagram(CLIENT, 4000, SERVER, 53, A)
    eth = build.frame
    cases = [
        ("not udp: protocol 1", "other_transport", eth(build.ipv4(CLIENT, SERVER, 1, bytes(8)))),
        ("other ports", "other_port", eth(build.udp(CLIENT, 4000, SERVER, 5353, A))),
        ("other ports", "other_port", eth(build.tcp(CLIENT, 4000, SERVER, 443, A))),
        ("fragment", "fragment", eth(build.ipv4(CLIENT, SERVER, 17, good, more=True))),
        ("fragment", "fragment", eth(build.ipv4(CLIENT, SERVER, 17, good, offset=8))),
        ("fragment", "fragment",
         eth(build.ipv6(*V6[::2], 17, good, extensions=[(44, b"\0\1" + bytes(4))]))),
        ("not udp: protocol 1", "other_transport",
         eth(build.ipv4(CLIENT, SERVER, 1, good, more=True))),
        ("not ip: ethertype 0x0806", "other_protocol", eth(bytes(28), ethertype=0x0806)),
        ("bad length", "ip_length", eth(build.ipv4(CLIENT, SERVER, 17, good, total=999))),
        ("bad length", "udp_length", eth(build.udp(CLIENT, 4000, SERVER, 53, A, length=7))),
        ("bad ip header", "ip_header", eth(b"\x44" + bytes(30), ethertype=0x0800)),
        ("too short: udp", "transport_header",
         eth(build.ipv4(CLIENT, SERVER, 17, good))[:40], 400),
        ("too short: tcp", "tcp_header", eth(build.tcp(CLIENT, 4000, SERVER, 53))[:53], 400),
        ("bad tcp header", "tcp_header",
         eth(build.ipv4(CLIENT, SERVER, 6, build.tcp(CLIENT, 1, SERVER, 53)[20:32] + b"\x40"
                        + bytes(7)))),
        ("too short: ethernet", "link_header", b"\0" * 13),
        ("not ip: ppp protocol 0xc021", "other_protocol",
         eth(b"\x11\0\0\1\0\2\xc0\x21", ethertype=0x8864)),
        ("too many vlan tags", "too_many_tags", eth(b"", vlan=[1] * 17, ethertype=0x0800)),
    ]
    build.write_pcap(tmp_path / "c.pcap", [(T0, *case[2:]) for case in cases])
    found = [(frame.reason, frame.fate) for frame in capture.read(tmp_path / "c.pcap")]
    assert found == [case[:2] for case in cases]


def test_a_frame_that_a_snaplen_cut(tmp_path):
    reply = build.reply(A, "a.example. 60 IN A 192.0.2.1", "a.example. 60 IN A 192.0.2.2")
    whole = tell(reply)
    build.write_pcap(tmp_path / "c.pcap", [(T0, whole[:-3], len(whole))])
    (frame,) = capture.read(tmp_path / "c.pcap")
    assert frame.packet.cut
    assert frame.packet.length == len(reply)
    reading = events.expected(tmp_path / "c.pcap")
    assert [e.get("data") for e in reading.events[0].record["reply"]] == [None, "192.0.2.1"]


@pytest.mark.parametrize("suffix", [".pcap", ".pcap.gz", ".pcap.zst"])
@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("nanoseconds", [False, True])
def test_pcap_in_all_its_forms(tmp_path, suffix, byteorder, nanoseconds):
    path = tmp_path / f"c{suffix}"
    build.write_pcap(path, [(T0 + 123456789, ask(A))], byteorder=byteorder, nanoseconds=nanoseconds)
    (frame,) = capture.read(path)
    assert frame.ts_ns == T0 + (123456789 if nanoseconds else 123456000)
    assert frame.packet.payload == A


@pytest.mark.parametrize("byteorder", "<>")
def test_pcapng_with_interfaces_that_differ(tmp_path, byteorder):
    packet = build.udp(CLIENT, 4000, SERVER, 53, A)
    interfaces = [build.Interface(tsresol=None),
                  build.Interface(build.RAW, 9000, 9, tsoffset=-3600),
                  build.Interface(build.SLL, 0, 0x80 | 10, tsoffset=1000),
                  build.Interface(tsresol=0)]
    at = T0 + 123456789
    frames = [build.frame(packet), packet, build.sll(packet), build.frame(packet)]
    data = build.pcapng([(at, f, None, n) for n, f in enumerate(frames)], interfaces,
                        byteorder=byteorder)
    other = build.pcapng([(at, build.frame(packet))], byteorder="<" if byteorder == ">" else ">")
    (tmp_path / "c.pcapng").write_bytes(data + other)
    read = list(capture.read(tmp_path / "c.pcapng"))
    assert [f.packet.payload for f in read] == [A] * 5
    assert [f.ts_ns - T0 for f in read] == [
        123456000, 123456789, 126 * NS // 1024, 0, 123456789]
    assert [f.number for f in read] == [1, 2, 3, 4, 5]


def test_several_files_are_one_stream(tmp_path):
    build.write_pcap(tmp_path / "1.pcap", [(T0, ask(A))])
    build.write_pcapng(tmp_path / "2.pcapng", [(T0 + NS, tell(RA))])
    reading = events.expected([tmp_path / "1.pcap", tmp_path / "2.pcapng"])
    assert [e.record["status"] for e in reading.events] == ["success"]


@pytest.mark.parametrize("make", [build.pcap, build.pcapng])
def test_a_file_cut_off_gives_what_came_before(tmp_path, make):
    data = make([(T0, ask(A)), (T0 + 1, tell(RA))])
    path = tmp_path / "c"
    path.write_bytes(data[:-5])
    reading = events.expected(path)
    assert [e.record["status"] for e in reading.events] == ["no_reply"]
    assert "cut off" in reading.broken
    path.write_bytes(b"#!/bin/sh\n" * 9)
    assert "not a capture" in events.expected(path).broken


# --------------------------------------------------------------------------------------- tshark


def tame(name: str) -> str:
    """A name as tshark prints it, for those that need no escapes."""
    return "<Root>" if name == "." else name[:-1]


FIELDS = [
    "frame.number", "frame.time_epoch", "ip.src", "ip.dst", "ipv6.src", "ipv6.dst", "udp.srcport",
    "udp.dstport", "tcp.srcport", "tcp.dstport", "vlan.id", "ieee8021ad.id", "vxlan.vni", "dns.id",
    "dns.flags.response", "dns.count.answers", "dns.count.prerequisites", "dns.qry.name",
    "dns.qry.type", "dns.resp.name", "dns.resp.type", "dns.a", "dns.aaaa"]


def tshark(path: Path) -> dict[int, dict[str, list[str]]]:
    """The fields of each frame with DNS, as lists: of all messages in it, one after the other."""
    command = ["tshark", "-n", "-r", str(path), "-T", "json", "-o", "ip.defragment:TRUE",
               "-o", "tcp.reassemble_out_of_order:TRUE", "-Y", "dns"]
    for field in FIELDS:
        command += ["-e", field]
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    layers = [item["_source"]["layers"] for item in json.loads(done.stdout)]
    return {int(layer["frame.number"][0]): layer for layer in layers}


class Listener(events.Oracle):
    """An oracle that keeps the messages it reads, by the number of their frame."""

    def __init__(self, path: Path) -> None:
        super().__init__(events.Rules())
        self.messages: dict[int, list[tuple]] = {}
        self.frames = {}
        for frame in capture.read(path):
            self.frames[frame.number] = frame
            self.feed(frame)
        self.reading = self.finish()

    def _message(self, moment, packet, payload, length, direction):
        found = self.messages.setdefault(moment.number, [])
        found.append((packet, payload, message.read(payload)))
        super()._message(moment, packet, payload, length, direction)


def innermost(layer: dict[str, list[str]], packet: capture.Packet) -> tuple[str, int, str, int]:
    """What tshark has as addresses and ports of the innermost packet."""
    family = "ipv6" if ":" in packet.src else "ip"
    return (layer[f"{family}.src"][-1], int(layer[f"{packet.transport}.srcport"][-1]),
            layer[f"{family}.dst"][-1], int(layer[f"{packet.transport}.dstport"][-1]))


def hold_against_tshark(path: Path) -> int:
    """All messages of all frames, those of streams and of joined datagrams too."""
    theirs, listener = tshark(path), Listener(path)
    frames = listener.frames
    # What tshark takes for DNS beyond ours: what an ICMP error quotes, and a segment or a fragment
    # of which the capture has only the beginning.
    beyond = [frames[number] for number in theirs if number not in listener.messages]
    assert all(f.fate == "icmp_error" or f.caplen < f.length for f in beyond)
    compared = 0
    for number, found in listener.messages.items():
        if any(read is None or read.fault for _, _, read in found):
            continue
        frame, layer, packet = frames[number], theirs[number], found[-1][0]
        stamp = layer["frame.time_epoch"][0]
        seconds, _, fraction = stamp.partition(".")
        assert int(seconds) * NS + int(fraction.ljust(9, "0")) == frame.ts_ns
        assert innermost(layer, packet) == (packet.src, packet.sport, packet.dst, packet.dport)
        # 802.1ad tags have a field of their own; they are the outer ones.
        tags = layer.get("ieee8021ad.id", []) + layer.get("vlan.id", [])
        assert [int(tag) for tag in tags] == packet.vlans
        assert [int(vni) for vni in layer.get("vxlan.vni", [])] == [lv.id for lv in packet.levels]
        hold_messages_against(layer, [read for _, _, read in found])
        compared += len(found)
    return compared


def hold_messages_against(layer: dict[str, list[str]], found: list[message.Message]) -> None:
    assert [int(id, 16) for id in layer["dns.id"]] == [read.id for read in found]
    replies = [text in ("1", "True") for text in layer["dns.flags.response"]]
    assert replies == [read.is_reply for read in found]
    counts = layer.get("dns.count.answers", []) + layer.get("dns.count.prerequisites", [])
    assert sum(map(int, counts)) == sum(len(read.answers) for read in found)
    everything = [record for read in found for record in read.records]
    for part, records in (("qry", [r for r in everything if r.place == 0]),
                          ("resp", [r for r in everything if r.place])):
        types = [int(number) for number in layer.get(f"dns.{part}.type", [])]
        # In its field for types tshark also lists those of NSEC, NSEC3 and CSYNC bitmaps.
        if not {47, 50, 62} & {r.rdtype for r in records}:
            assert types == [r.rdtype for r in records]
        # tshark takes the owner of an SRV record apart and has no such field for it.
        names = [r.name for r in records if part == "qry" or r.rdtype != 33]
        if all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names):
            assert layer.get(f"dns.{part}.name", []) == [tame(name) for name in names]
    for field, rdtype in (("dns.a", 1), ("dns.aaaa", 28)):
        data = [r.data for r in everything if r.rdtype == rdtype and r.data]
        assert layer.get(field, []) == [text for text in data if text != "\\# 0"]


needs_tshark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")


@needs_tshark
def test_tshark_reads_the_same_from_packets_made_by_hand(tmp_path):
    packets, at = [], T0
    for number, line in enumerate(ZONE):
        rdtype, data = line.split(None, 1)
        query = build.query(f"n{number}.example.", rdtype, id=number + 1, edns=1232)
        reply = build.reply(query, f"n{number}.example. 300 IN {rdtype} {data}",
                            additional=["x.example. 60 IN A 192.0.2.9"])
        ends = (CLIENT, 4000, SERVER, 53) if number % 2 else V6
        tags = (0x6064, 200)[: number % 3]
        back = ends[2:] + ends[:2]
        packets.append((at, build.frame(build.udp(*ends, query), vlan=tags)))
        packets.append((at + 123456, build.frame(build.udp(*back, reply), vlan=tags)))
        at += NS
    build.write_pcap(tmp_path / "c.pcap", packets, nanoseconds=True)
    assert hold_against_tshark(tmp_path / "c.pcap") == len(packets)


# How many messages are compared: all that can be read as a whole.
COMPARED = {
    "any-sll1.pcap": 19, "any-sll2.pcap": 19, "authoritative.pcap": 128, "captured.pcap": 2,
    "fragments.pcap": 16, "lossy.pcap": 29, "mixed.pcapng": 194, "names.pcap": 50,
    "ns-timestamps.pcap": 90, "raw-ip.pcap": 10, "recursion.pcap": 354, "resolver.pcap": 405,
    "snaplen.pcap": 55, "tcp.pcap": 195, "transfers.pcap": 33, "types.pcap": 112, "vlan.pcap": 20,
    "vxlan.pcap": 10,
}


@needs_tshark
@pytest.mark.parametrize("name", COMPARED)
def test_tshark_reads_the_same_from_the_captures_that_ship(name):
    assert hold_against_tshark(CAPTURES / name) == COMPARED[name]
