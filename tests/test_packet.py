"""From frame to packet: each header by hand, then mutated frames, against the oracle's reading."""

from __future__ import annotations

import ipaddress
import random
import struct
from pathlib import Path

import pytest

from gazer.workers import doors
from tests.oracle import build, capture, packets
from tests.oracle.rules import Rules

CAPTURES = Path(__file__).parent / "captures"
QUERY = build.query("example.com.", "A", id=7)
V4 = ("192.0.2.1", 4000, "198.51.100.53", 53)
V6 = ("2001:db8::1", 4000, "2001:db8::53", 53)
P4, P6 = build.udp(*V4, QUERY), build.udp(*V6, QUERY)

def layer_of(level: packets.Level) -> dict:
    found: dict = {"type": level.kind, "vlan": level.vlan}
    if level.id is not None:
        found["id"] = level.id
    if level.ends is not None:
        found["src"], found["dst"] = level.ends
    return found


MAX_SCOPE = 32      # octets; the oracle knows no such limit


def scope_of(scope: tuple[tuple[int, ...], tuple[int, ...]]) -> bytes:
    vids, vnis = scope
    return (b"".join(struct.pack("!H", vid) for vid in vids)
            + b"".join(struct.pack("!I", 0x80000000 | vni) for vni in vnis))


def agree(frame: bytes, linktype: int = 1, length: int | None = None, **rules) -> str:
    """Both readings of the frame are one; the fate."""
    wire = len(frame) if length is None else length
    got = doors.packet(frame, linktype, wire, **rules)
    named = {"tunnels" if name == "decode" else name: value for name, value in rules.items()}
    try:
        want = capture.decode(frame, linktype, cut=len(frame) < wire, rules=Rules(**named))
    except packets.Piece as piece:
        if len(scope_of(piece.key[4])) > MAX_SCOPE:
            assert got == {"fate": "too_many_tags"}, frame.hex()
            return "too_many_tags"
        assert got["fate"] == "fragment", (str(piece), frame.hex())
        found = got["piece"]
        assert (found["src"], found["dst"]) == piece.key[1], frame.hex()
        assert (found["id"], found["offset"], found["more"], found["payload"], found["cut"]) == (
            piece.key[2], piece.offset, piece.more, piece.payload, piece.cut), frame.hex()
        return "fragment"
    except capture.Undecoded as why:
        assert got["fate"] == why.fate, (str(why), frame.hex())
        return got["fate"]
    if len(scope_of(want.scope)) > MAX_SCOPE:
        assert got == {"fate": "too_many_tags"}, frame.hex()
        return "too_many_tags"
    expected = {
        "fate": "dns", "protocol": want.protocol, "transport": 17 if want.tcp is None else 6,
        "vlan": want.vlan, "layers": [layer_of(level) for level in want.levels],
        "scope": scope_of(want.scope), "cut": want.cut,
        "src": str(ipaddress.ip_address(want.src)), "sport": want.sport,
        "dst": str(ipaddress.ip_address(want.dst)), "dport": want.dport,
        "payload": want.payload, "length": want.length,
    }
    if want.tcp is not None:
        expected["tcp"] = {"seq": want.tcp.sequence, "ack": want.tcp.acknowledgement,
                           "flags": want.tcp.flags}
    assert got == expected, frame.hex()
    return "dns"


def pppoe_ethertype(packet: bytes) -> bytes:
    return build.frame(build.pppoe(packet), ethertype=0x8864)


LINKS = {
    "ethernet": (1, build.frame),
    "pppoe": (1, pppoe_ethertype),
    "pppoe, link type 51": (51, build.pppoe),
    "ppp": (9, build.ppp),
    "ppp with address and control": (9, lambda p: build.ppp(p, hdlc=True)),
    "ppp hdlc": (50, lambda p: build.ppp(p, hdlc=True)),
    "ppp hdlc, compressed": (50, build.ppp),
    "ppp, protocol in one octet": (9, lambda p: build.ppp(p)[1:]),
    "cooked": (113, build.sll),
    "cooked 2": (276, build.sll2),
    "null, little": (0, build.null),
    "null, big": (0, lambda p: build.null(p, byteorder=">")),
    "null, Linux's family": (0, lambda p: build.null(p, inet6=10)),
    "null, FreeBSD's": (0, lambda p: build.null(p, inet6=28)),
    "null, macOS's, big": (0, lambda p: build.null(p, byteorder=">", inet6=30)),
    "loop": (108, lambda p: build.null(p, byteorder=">")),
    "raw": (101, bytes), "raw 12": (12, bytes), "raw 14": (14, bytes),
}


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("packet", [P4, P6], ids=["v4", "v6"])
def test_link_types(name, packet):
    linktype, wrap = LINKS[name]
    frame = wrap(packet)
    assert agree(frame, linktype) == "dns"
    found = doors.packet(frame, linktype)
    assert found["payload"] == QUERY
    assert (found["sport"], found["dport"]) == (4000, 53)
    for cut in range(len(frame)):           # not one octet is read beyond the frame's end
        agree(frame[:cut], linktype)
        agree(frame[:cut], linktype, len(frame))


def test_link_types_of_one_version():
    assert agree(P4, 228) == "dns" and agree(P6, 229) == "dns"
    assert agree(P6, 228) == "ip_header" and agree(P4, 229) == "ip_header"
    assert agree(P4, 147) == "link_type"


@pytest.mark.parametrize("head, linktype", [
    ("02001234", 0), ("00000003", 0), ("0002", 0), ("02000000", 108), ("0a000001", 0)])
def test_address_families_that_are_none(head, linktype):
    assert agree(bytes.fromhex(head) + P4, linktype) in ("other_protocol", "link_header")


@pytest.mark.parametrize("count", range(18))
@pytest.mark.parametrize("wrap", [build.frame, build.sll, build.sll2])
def test_tags(count, wrap):
    linktype = {build.frame: 1, build.sll: 113, build.sll2: 276}[wrap]
    vlan = [(i << 13 | 0x1000 | i + 100) & 0xFFFF for i in range(count)]   # priority and DEI set
    fate = agree(wrap(P4, vlan=vlan), linktype)
    assert fate == ("dns" if count <= 16 else "too_many_tags")
    if count <= 16:
        assert doors.packet(wrap(P4, vlan=vlan), linktype)["vlan"] == tuple(
            i + 100 for i in range(count))


def test_tags_of_all_kinds():
    frame = build.frame(P6, vlan=[0x3001, 2, 4095], tpids=[0x88A8, 0x9100, 0x8100])
    assert agree(frame) == "dns"
    assert doors.packet(frame)["vlan"] == (1, 2, 4095)
    assert agree(build.frame(build.pppoe(P4), vlan=[5], ethertype=0x8864)) == "dns"


def test_pppoe_that_is_no_session_data_or_lies():
    assert agree(build.frame(build.pppoe(P4, code=9), ethertype=0x8864)) == "other_protocol"
    whole = build.pppoe(P4)
    short = whole[:4] + struct.pack("!H", len(P4) - 1) + whole[6:]
    assert agree(build.frame(short, ethertype=0x8864)) == "ip_length"
    padded = build.frame(whole, ethertype=0x8864, trailer=b"x" * 9)
    assert doors.packet(padded)["payload"] == QUERY
    assert agree(build.frame(b"\x11\0\0\1\0\4\xc0\x21\1\2", ethertype=0x8864)) == "other_protocol"


def test_what_is_not_dns():
    assert agree(build.frame(b"\0\1" * 14, ethertype=0x0806)) == "other_protocol"
    assert agree(build.frame(build.udp("1.1.1.1", 1, "2.2.2.2", 2, b""))) == "other_port"
    assert agree(build.frame(build.tcp("1.1.1.1", 1, "2.2.2.2", 2))) == "other_port"
    assert agree(build.frame(build.ipv4("1.1.1.1", "2.2.2.2", 1, b"ping"))) == "other_transport"
    assert agree(build.frame(build.ipv6("::1", "::2", 58, b"ping"))) == "other_transport"


def test_mdns_and_llmnr_have_ports_of_their_own_where_they_are_on():
    for port, name in ((5353, "mdns"), (5355, "llmnr")):
        frame = build.frame(build.udp("192.0.2.1", port, "224.0.0.251", 4000, QUERY))
        assert agree(frame) == agree(frame, **{"mdns llmnr".replace(name, "").strip(): True})
        assert agree(frame) == "other_port"
        assert agree(frame, **{name: True}) == "dns"
        assert doors.packet(frame, **{name: True})["protocol"] == name
        both = build.frame(build.udp("192.0.2.1", port, "192.0.2.2", 53, QUERY))
        assert doors.packet(both, **{name: True})["protocol"] == "dns"
        segment = build.frame(build.tcp("192.0.2.1", port, "192.0.2.2", 1))
        assert agree(segment, **{name: True}) == "dns"


def segment(payload=b"", *, options=b"", words=None, source=4000, to=53, family=4) -> bytes:
    """A frame with one TCP segment; `words` is the data offset where it is to lie."""
    size = 5 + len(options) // 4 if words is None else words
    body = struct.pack("!HHIIBBHHH", source, to, 0xFEDCBA98, 0x01234567, size << 4, 0x1A, 9, 0, 0)
    ends = ("192.0.2.1", "192.0.2.2") if family == 4 else ("::1", "::2")
    make = build.ipv4 if family == 4 else build.ipv6
    return build.frame(make(*ends, 6, body + options + payload), trailer=b"padding")


@pytest.mark.parametrize("family", [4, 6])
def test_tcp_segments(family):
    for options in (b"", b"\1" * 4, b"\1" * 40):
        for payload in (b"", b"x", QUERY):
            frame = segment(payload, options=options, family=family)
            assert agree(frame) == "dns"
            found = doors.packet(frame)
            assert found["payload"] == payload
            assert found["tcp"] == {"seq": 0xFEDCBA98, "ack": 0x01234567, "flags": 0x1A}
    frame = segment(QUERY, options=b"\1" * 12, family=family)
    for cut in range(len(frame)):
        agree(frame[:cut])
        agree(frame[:cut], length=len(frame))


def test_tcp_headers_that_lie():
    assert agree(segment(words=4)) == agree(segment(words=0)) == "tcp_header"
    assert agree(segment(b"x" * 8, words=7)) == "dns"       # no payload is left
    assert agree(segment(b"x" * 7, words=7)) == "tcp_header"
    assert agree(segment(words=3, to=80)) == "other_port"
    for size in range(20):
        body = struct.pack("!HHIIBBHHH", 4000, 53, 1, 2, 0x50, 2, 9, 0, 0)[:size]
        frame = build.frame(build.ipv4("192.0.2.1", "192.0.2.2", 6, body))
        assert agree(frame) == ("tcp_header" if size >= 4 else "transport_header")
    # The options are cut by the snaplen: what follows them is on the wire, not in the frame.
    frame = segment(b"q" * 30, options=b"\1" * 20)[:-7]
    found = doors.packet(frame[:-40], length=len(frame))
    assert (found["payload"], found["length"], found["cut"]) == (b"", 30, True)
    assert agree(frame[:-40], length=len(frame)) == "dns"
    assert agree(frame[:-50], length=len(frame)) == "dns"
    assert agree(frame[:-51], length=len(frame)) == "tcp_header"


def quoting(packet: bytes, kind: int, family: int = 4) -> bytes:
    head = bytes([kind, 1, 0, 0, 0, 0, 0, 0])
    make, number = (build.ipv4, 1) if family == 4 else (build.ipv6, 58)
    ends = ("192.0.2.9", "192.0.2.1") if family == 4 else ("2001:db8::9", "2001:db8::1")
    return build.frame(make(*ends, number, head + packet))


def test_icmp_errors_that_quote_dns():
    tcp4 = build.tcp("192.0.2.1", 53, "192.0.2.2", 4000)
    tcp6 = build.tcp("::1", 4000, "::2", 53)
    chain6 = build.udp(*V6, QUERY, extensions=[(60, b""), (44, bytes(6))])
    other = build.udp("192.0.2.1", 4000, "192.0.2.2", 80, QUERY)
    for kind in range(256):
        fate = "icmp_error" if kind in (3, 4, 5, 11, 12) else "other_transport"
        assert agree(quoting(P4, kind)) == agree(quoting(tcp4[:24], kind)) == fate
        fate = "icmp_error" if kind in (1, 2, 3, 4) else "other_transport"
        assert agree(quoting(P6, kind, 6)) == agree(quoting(tcp6[:44], kind, 6)) == fate
        assert agree(quoting(chain6, kind, 6)) == fate
    assert agree(quoting(P4[:24], 3)) == "icmp_error"
    assert agree(quoting(P4[:23], 3)) == "other_transport"
    assert agree(quoting(other, 3)) == "other_transport"
    assert agree(quoting(P6, 3)) == agree(quoting(P4, 3, 6)) == "other_transport"
    assert agree(quoting(build.udp(*V4, QUERY, options=b"\1" * 40), 3)) == "icmp_error"
    mdns = build.udp("192.0.2.1", 5353, "224.0.0.251", 5353, QUERY)
    assert agree(quoting(mdns, 3)) == "other_transport"
    assert agree(quoting(mdns, 3), mdns=True) == "icmp_error"
    for words, fate in ((0x2000, "icmp_error"), (0x2001, "other_transport"),
                        (0x0100, "other_transport")):
        piece = P4[:6] + struct.pack("!H", words) + P4[8:]
        assert agree(quoting(piece, 3)) == fate
    for frame in (quoting(P4, 3), quoting(chain6, 1, 6)):
        for cut in range(len(frame)):
            agree(frame[:cut])
            agree(frame[:cut], length=len(frame))


def test_which_fragments_may_become_ours():
    def v4(protocol: int, **rules) -> str:
        return agree(build.frame(build.ipv4(
            "192.0.2.1", "192.0.2.2", protocol, bytes(16), more=True)), **rules)

    def v6(protocol: int, **rules) -> str:
        return agree(build.frame(build.ipv6("::1", "::2", protocol, bytes(16), extensions=[
            (44, struct.pack("!HI", 1, 7))])), **rules)

    held = {n for n in range(256) if v4(n) == "fragment"}
    assert held == {4, 6, 17, 41, 47}
    assert {n for n in range(256) if v6(n) == "fragment"} == held | {
        0, 43, 51, 60, 135, 139, 140}
    for decode, extra in (((), set()), (("gre",), {47}), (("erspan",), {47}), (("ip",), {4, 41}),
                          (("vxlan", "geneve", "mpls", "pppoe"), set())):
        assert {n for n in held if v4(n, decode=decode) == "fragment"} == {6, 17} | extra
        assert {n for n in held if v6(n, decode=decode) == "fragment"} == {6, 17} | extra


def test_the_ports_are_those_that_were_asked_for():
    packet = build.frame(build.udp("1.1.1.1", 5353, "2.2.2.2", 64000, QUERY))
    assert doors.packet(packet)["fate"] == "other_port"
    assert doors.packet(packet, ports=[5353])["fate"] == "dns"
    assert doors.packet(packet, ports=[1, 64000, 65535])["fate"] == "dns"
    assert doors.packet(packet, ports=[63999, 64001, 5352])["fate"] == "other_port"
    with pytest.raises(ValueError, match="not a port: 65536"):
        doors.packet(packet, ports=[65536])


def test_ipv4_options_and_padding():
    for size in (0, 1, 4, 39, 40):
        packet = build.udp(*V4, QUERY, options=b"\1" * size)
        assert agree(build.frame(packet, trailer=b"\0" * 20)) == "dns"
        assert doors.packet(build.frame(packet, trailer=b"\0" * 20))["payload"] == QUERY


@pytest.mark.parametrize("at, value, fate", [
    (0, 0x55, "ip_header"), (0, 0x44, "ip_header"), (0, 0x4F, "ip_length"),
    (3, 19, "ip_length"), (3, 20, "transport_header"), (3, 27, "transport_header"),
    (3, 28, "udp_length"), (2, 0xFF, "ip_length"),
    (6, 0x20, "fragment"), (7, 1, "fragment"), (6, 0x80, "dns"), (6, 0x40, "dns"),
    (24, 0xFF, "udp_length"), (25, 7, "udp_length"), (25, 0, "udp_length"),
])
def test_ipv4_and_udp_headers_that_lie(at, value, fate):
    packet = bytearray(P4)
    if at == 3 or at == 25:
        packet[at - 1] = 0
    packet[at] = value
    assert agree(build.frame(bytes(packet))) == fate


def test_udp_shorter_than_ip_gives_udp_the_last_word():
    frame = build.frame(build.udp(*V4, QUERY + b"tail", length=8 + len(QUERY)))
    assert agree(frame) == "dns"
    assert doors.packet(frame)["payload"] == QUERY
    assert agree(build.frame(build.udp(*V4, b"", length=8))) == "dns"
    assert agree(build.frame(build.udp(*V4, QUERY, length=9 + len(QUERY)))) == "udp_length"


def test_a_snaplen_cuts_and_lengths_may_point_beyond():
    for packet in (P4, P6, build.udp(*V6, QUERY, extensions=[(60, b"")])):
        frame = build.frame(packet)
        for size in range(len(frame) - len(QUERY), len(frame)):
            found = doors.packet(frame[:size], length=len(frame))
            assert agree(frame[:size], length=len(frame)) == "dns"
            assert found["cut"] and found["length"] == len(QUERY)
            assert found["payload"] == QUERY[:len(QUERY) - (len(frame) - size)]
            assert doors.packet(frame[:size])["fate"] == "ip_length"   # not cut: it lies
    # Cut, but UDP's length goes beyond even what IP says.
    frame = build.frame(build.udp(*V4, QUERY, length=500))
    assert agree(frame[:-5], length=len(frame)) == "udp_length"


EXTENSIONS = [0, 43, 51, 60, 135, 139, 140]


@pytest.mark.parametrize("kind", EXTENSIONS)
@pytest.mark.parametrize("size", [0, 6, 14, 22, 200])
def test_ipv6_extension_headers(kind, size):
    frame = build.frame(build.udp(*V6, QUERY, extensions=[(kind, bytes(size))]))
    assert agree(frame) == "dns"
    assert doors.packet(frame)["payload"] == QUERY
    for cut in range(54, len(frame)):
        agree(frame[:cut])
        agree(frame[:cut], length=len(frame))


def test_ipv6_fragments_and_atomic_ones():
    def fragment(words: int) -> str:
        return agree(build.frame(build.udp(
            *V6, QUERY, extensions=[(44, struct.pack("!HI", words, 77))])))

    assert fragment(0) == "dns"
    assert fragment(6) == "dns"             # reserved bits
    assert all(fragment(words) == "fragment" for words in (1, 8, 0xFFF9))


@pytest.mark.parametrize("count, fate", [(1, "dns"), (16, "dns"), (17, "ip_extension"),
                                         (1000, "ip_extension")])
def test_ipv6_chains(count, fate):
    for kind in (60, 44):
        chain = [(kind, b"\0\0\0\0\0\0")] * count
        assert agree(build.frame(build.udp(*V6, QUERY, extensions=chain))) == fate


def test_ipv6_headers_that_lie():
    assert agree(build.frame(build.ipv6("::1", "::2", 17, b"", length=8))) == "ip_length"
    none = build.ipv6("::1", "::2", 17, bytes(8), length=0)
    assert agree(build.frame(none)) == "transport_header"
    long = build.ipv6("::1", "::2", 60, b"\x11\xff" + bytes(6))     # 2048 octets that are not there
    assert agree(build.frame(long)) == "ip_extension"
    assert agree(build.frame(long), length=4000) == "ip_extension"
    assert agree(build.frame(b"\x45" + P6[1:], ethertype=0x86DD)) == "ip_header"
    assert agree(build.frame(build.ipv6("::1", "::2", 59, b""))) == "other_transport"


def test_the_longest_headers_end_below_64_kb():
    chain = [(60, bytes(2046))] * 16
    packet = build.ipv6("::1", "::2", 17, build.datagram("::1", 1, "::2", 53, QUERY),
                        extensions=chain)
    assert agree(build.frame(packet)) == "dns"
    # Offsets in a Packet are 16 bits wide: not even these headers pass that.
    assert doors.packet(build.frame(packet, vlan=[1] * 16))["payload"] == QUERY


def seeds() -> list[tuple[bytes, int, int]]:
    """(frame, link type, length) of the captures that ship, a few of each kind."""
    found = []
    for path in sorted(CAPTURES.glob("*.pcap*")):
        try:
            everything = [(octets, linktype, length)
                          for _, length, linktype, octets in capture.records(path)]
        except capture.BrokenCapture:
            continue
        found += everything[:: max(1, len(everything) // 25)]
    return found


def test_real_frames_mutated():
    """The headers of real frames with octets changed, cut and doubled: the same reading of all."""
    known = seeds()
    assert len(known) > 200
    dice = random.Random(20151011)
    fates: dict[str, int] = {}
    for _ in range(12_000):
        frame, linktype, length = dice.choice(known)
        changed = bytearray(frame)
        for _ in range(dice.choice((0, 1, 1, 2, 4))):
            if not changed:
                break
            at = dice.randrange(min(len(changed), dice.choice((16, 44, 70, 100))))
            what = dice.randrange(4)
            if what == 0:
                changed[at] = dice.randrange(256)
            elif what == 1:
                changed[at] ^= 1 << dice.randrange(8)
            elif what == 2:
                changed[at] = dice.choice(
                    (0, 1, 4, 6, 17, 41, 43, 44, 47, 51, 58, 60, 53, 0x45, 0x60, 0x81, 255))
            else:
                del changed[at:at + dice.randrange(1, 9)]
        if dice.random() < 0.2:
            del changed[dice.randrange(len(changed) + 1):]
        on_wire = max(length if dice.random() < 0.3 else 0, len(changed))
        fate = agree(bytes(changed), linktype, on_wire)
        fates[fate] = fates.get(fate, 0) + 1
    assert fates["dns"] > 1000 and len(fates) >= 9, fates


def test_a_flow_has_one_hash_in_both_directions_and_others_another():
    dice = random.Random(5)
    seen = set()
    for _ in range(500):
        if dice.random() < 0.5:
            a, b = (str(ipaddress.IPv4Address(dice.getrandbits(32))) for _ in "ab")
        else:
            a, b = (str(ipaddress.IPv6Address(dice.getrandbits(128))) for _ in "ab")
        port = dice.randrange(65536)
        there = build.frame(build.udp(a, port, b, 53, b""), vlan=[dice.randrange(4096)])
        back = build.frame(build.udp(b, 53, a, port, b"x" * 9))
        assert doors.flow(there, 11) == doors.flow(back, 11)
        assert doors.flow(there, 11) != doors.flow(there, 12)
        seen.add(doors.flow(there, 11))
    assert len(seen) == 500


@pytest.mark.parametrize("subnet", ["10.0.0.{}", "2001:db8::{}"])
def test_flows_of_one_subnet_spread_over_the_workers(subnet):
    """Clients that differ in one octet, and ports in a row, as real networks have them."""
    server = subnet.format(253)
    for workers in (2, 3, 8):
        shares = [0] * workers
        for host in range(1, 101):
            for port in range(40000, 40080):
                packet = build.frame(build.udp(subnet.format(host), port, server, 53, b""))
                shares[(doors.flow(packet, 3) >> 32) * workers >> 32] += 1
        assert min(shares) > 0.88 * sum(shares) / workers, shares
