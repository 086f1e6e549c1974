"""Encapsulation: each kind by hand, against tshark and the oracle; then cut, nested, lied about."""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from gazer.packet import ENCAPSULATIONS
from gazer.workers import doors
from tests.oracle import build, wraps
from tests.test_packet import QUERY, agree

INNER = build.udp("10.1.0.1", 4000, "10.1.0.53", 53, QUERY)
INNER6 = build.udp("2001:db8:1::1", 4000, "2001:db8:1::53", 53, QUERY)
SEGMENT = build.tcp("10.1.0.1", 4000, "10.1.0.53", 53, b"\0\7message")
BACK = build.udp("10.1.0.53", 53, "10.1.0.1", 4000, QUERY)
A, B = "192.0.2.1", "198.51.100.2"
A6, B6 = "2001:db8::1", "2001:db8::2"


def over_ip(protocol, payload, v6=False):
    return build.frame(wraps.ip(*((A6, B6) if v6 else (A, B)), protocol, payload))


def over_udp(port, payload, v6=False):
    ends = (A6, 50000, B6) if v6 else (A, 50000, B)
    return build.frame(build.udp(*ends, port, payload))


def ethernet(packet, **more):
    return build.frame(packet, **more)


def ppp(packet):
    return b"\xff\x03" + struct.pack("!H", 0x21 if packet[0] >> 4 == 4 else 0x57) + packet


def ethertype(packet):
    return 0x0800 if packet[0] >> 4 == 4 else 0x86DD


# name -> (frame of an inner packet, the levels it must have: (type, id))
KINDS = {
    "mpls": (lambda p: build.frame(wraps.mpls(p, (16, 17, 1000)), ethertype=0x8847),
             [("mpls", 1000)]),
    "mpls, upstream": (lambda p: build.frame(wraps.mpls(p, (77,)), ethertype=0x8848),
                       [("mpls", 77)]),
    "mpls, pseudowire": (lambda p: build.frame(
        wraps.mpls(ethernet(p, vlan=(5,)), (99,), control_word=True), ethertype=0x8847),
        [("mpls", 99)]),
    "pppoe": (lambda p: build.frame(build.pppoe(p, session=513), vlan=(8,), ethertype=0x8864),
              [("pppoe", 513)]),
    "gre": (lambda p: over_ip(47, wraps.gre(p, ethertype(p))), [("gre", None)]),
    "gre, all fields": (lambda p: over_ip(47, wraps.gre(
        p, ethertype(p), key=0xDEADBEEF, sequence=9, checksum=True), v6=True),
        [("gre", 0xDEADBEEF)]),
    "gre, ethernet": (lambda p: over_ip(47, wraps.gre(ethernet(p, vlan=(7, 8)), 0x6558, key=3)),
                      [("gre", 3)]),
    "gre, tagged": (lambda p: over_ip(47, wraps.gre(
        struct.pack("!HH", 0x3007, ethertype(p)) + p, 0x8100)), [("gre", None)]),
    "gre, mpls": (lambda p: over_ip(47, wraps.gre(wraps.mpls(p, (20, 21)), 0x8847)),
                  [("gre", None), ("mpls", 21)]),
    "gre, ppp": (lambda p: over_ip(47, wraps.gre(
        ppp(p), 0x880B, version=1, key=0x1234, sequence=1, acknowledgement=2)), [("gre", 0x1234)]),
    "erspan I": (lambda p: over_ip(47, wraps.erspan(ethernet(p), 1)), [("erspan", None)]),
    "erspan II": (lambda p: over_ip(47, wraps.erspan(ethernet(p, vlan=(6,)), 2, session=0x3FF)),
                  [("erspan", 0x3FF)]),
    "erspan III": (lambda p: over_ip(47, wraps.erspan(ethernet(p), 3, session=0x201)),
                   [("erspan", 0x201)]),
    "erspan III, subheader": (lambda p: over_ip(47, wraps.erspan(
        ethernet(p), 3, session=1, subheader=True), v6=True), [("erspan", 1)]),
    "vxlan": (lambda p: over_udp(4789, wraps.vxlan(ethernet(p, vlan=(9,)), 0xABCDEF)),
              [("vxlan", 0xABCDEF)]),
    "vxlan over v6": (lambda p: over_udp(4789, wraps.vxlan(ethernet(p), 42), v6=True),
                      [("vxlan", 42)]),
    "geneve": (lambda p: over_udp(6081, wraps.geneve(ethernet(p), 4711)), [("geneve", 4711)]),
    "geneve, options": (lambda p: over_udp(6081, wraps.geneve(
        p, 1, protocol=ethertype(p), options=b"\1\2\3\1abcd" * 3)), [("geneve", 1)]),
    "ip": (lambda p: over_ip(4 if p[0] >> 4 == 4 else 41, p), [("ip", None)]),
    "ip over v6": (lambda p: over_ip(4 if p[0] >> 4 == 4 else 41, p, v6=True), [("ip", None)]),
    "vxlan in gre in vlan": (lambda p: build.frame(wraps.ip(A, B, 47, wraps.gre(
        build.udp(A6, 1, B6, 4789, wraps.vxlan(ethernet(p, vlan=(12,)), 2)), 0x86DD)), vlan=(11,)),
        [("gre", None), ("vxlan", 2)]),
}
PACKETS = {"v4": INNER, "v6": INNER6, "tcp": SEGMENT}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packet", PACKETS)
def test_each_kind_and_every_cut(kind, packet):
    wrap, levels = KINDS[kind]
    frame = wrap(PACKETS[packet])
    assert agree(frame) == "dns"
    found = doors.packet(frame)
    assert [(layer["type"], layer.get("id")) for layer in found["layers"]] == levels
    assert (found["sport"], found["dport"]) == (4000, 53)
    assert found["payload"] == (b"\0\7message" if packet == "tcp" else QUERY)
    assert found["src"] == ("2001:db8:1::1" if packet == "v6" else "10.1.0.1")
    for cut in range(len(frame)):       # behind the frame stands a page that can't be read
        agree(frame[:cut])
        agree(frame[:cut], length=len(frame))
    assert agree(frame + b"padding") == "dns"


@pytest.mark.parametrize("kind", KINDS)
def test_every_octet_of_every_header_lied_about(kind):
    """Lengths and all else, to the ends of their ranges and a little off."""
    frame = KINDS[kind][0](INNER)
    fates = set()
    for at in range(len(frame) - len(QUERY)):
        for value in {0, 1, 0x45, 0x60, 0x7F, 0x80, 0xFF, frame[at] ^ 1, frame[at] ^ 0x10,
                      (frame[at] + 1) & 255, (frame[at] - 1) & 255}:
            lie = frame[:at] + bytes([value]) + frame[at + 1:]
            fates.add(agree(lie))
            fates.add(agree(lie[:-9], length=len(frame)))
    assert {"dns", "ip_header", "ip_length", "udp_length"} <= fates


@pytest.mark.parametrize("kind", KINDS)
def test_both_directions_of_an_inner_flow_have_one_hash(kind):
    wrap = KINDS[kind][0]
    there, back = doors.flow(wrap(INNER), 5), doors.flow(wrap(BACK), 5)
    assert there == back == doors.flow(build.frame(INNER), 5)
    assert doors.flow(wrap(INNER6), 5) != there


# --- tshark --------------------------------------------------------------------------------------

FIELDS = {      # what tshark calls the ids
    "mpls": "mpls.label", "pppoe": "pppoe.session_id", "gre": "gre.key", "erspan": "erspan.spanid",
    "vxlan": "vxlan.vni", "geneve": "geneve.vni"}
ADDRESSES = ("ip.src", "ip.dst", "ipv6.src", "ipv6.dst")


@pytest.fixture(scope="module")
def dissected(tmp_path_factory):
    """kind, packet -> tshark's fields, each a list from the outside."""
    if not shutil.which("tshark"):
        pytest.skip("tshark is not installed")
    path = Path(tmp_path_factory.mktemp("tunnels")) / "all.pcap"
    names = [(kind, packet) for kind in KINDS for packet in ("v4", "v6")]
    build.write_pcap(path, [(10**18 + i, KINDS[kind][0](PACKETS[packet]))
                            for i, (kind, packet) in enumerate(names)])
    wanted = ["frame.protocols", "udp.dstport", "dns.id", "vlan.id", "gre.key.call_id",
              *FIELDS.values(), *ADDRESSES]
    out = subprocess.run(
        ["tshark", "-r", str(path), "-n", "-T", "json", "-d", "mpls.label==99,pwethcw",
         *(x for f in wanted for x in ("-e", f))],
        capture_output=True, check=False, text=True)
    rows = json.loads(out.stdout)
    assert len(rows) == len(names), out.stderr
    return {name: row["_source"]["layers"] for name, row in zip(names, rows, strict=True)}


# tshark does not look behind a VLAN tag in GRE.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gre, tagged"])
@pytest.mark.parametrize("packet", ["v4", "v6"])
def test_tshark_sees_the_same(dissected, kind, packet):
    seen = dissected[kind, packet]
    found = doors.packet(KINDS[kind][0](PACKETS[packet]))
    assert seen["udp.dstport"][-1] == "53"
    assert int(seen["dns.id"][-1], 0) == 7
    for layer in found["layers"]:
        if "id" not in layer or kind == "gre, ppp":     # there tshark has no field for the whole
            continue
        assert layer["id"] in [int(x, 0) for x in seen[FIELDS[layer["type"]]]]
    vids = [vid for layer in found["layers"] for vid in layer["vlan"]] + list(found["vlan"])
    assert [int(x) for x in seen.get("vlan.id", [])] == vids
    outer = [(layer["src"], layer["dst"]) for layer in found["layers"] if "src" in layer]
    ends = [*outer, (found["src"], found["dst"])]
    for family, version in (("ip", "."), ("ipv6", ":")):
        assert list(zip(seen.get(f"{family}.src", []), seen.get(f"{family}.dst", []),
                        strict=True)) == [pair for pair in ends if version in pair[0]]


# --- what is opened, and what is not -------------------------------------------------------------

CLOSED = {"mpls": "other_protocol", "pppoe": "other_protocol", "gre": "other_transport",
          "erspan": "other_transport", "vxlan": "other_port", "geneve": "other_port",
          "ip": "other_transport"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_in_the_list_counts_as_without_it(kind):
    wrap, levels = KINDS[kind]
    frame = wrap(INNER)
    needed = {name for name, _ in levels}
    assert agree(frame, decode=tuple(needed)) == "dns"
    for name in ENCAPSULATIONS:
        rest = tuple(n for n in ENCAPSULATIONS if n != name)
        assert agree(frame, decode=rest) == (CLOSED[name] if name in needed else "dns")
    assert agree(frame, decode=()) == CLOSED[levels[0][0]]


@pytest.mark.parametrize("frame, fate", [
    (over_udp(4789, wraps.vxlan(ethernet(INNER), 1, flags=0xF7)), "other_port"),
    (over_udp(4789, wraps.vxlan(ethernet(INNER), 1)[:7]), "tunnel_header"),
    (over_udp(4789, wraps.vxlan(b"", 1)), "link_header"),
    (over_udp(4789, wraps.vxlan(ethernet(bytes(28), ethertype=0x0806), 1)), "other_protocol"),
    (over_udp(6081, b"\x40" + wraps.geneve(ethernet(INNER), 1)[1:]), "other_port"),
    (over_udp(6081, wraps.geneve(ethernet(INNER), 1, protocol=0x8847)), "other_port"),
    (over_udp(6081, b"\x3f" + wraps.geneve(INNER, 1, protocol=0x0800)[1:]), "tunnel_header"),
    (over_ip(47, wraps.gre(INNER, 0x1234)), "other_transport"),
    (over_ip(47, wraps.gre(INNER, 0x0800, version=2)), "other_transport"),
    (over_ip(47, b"\x40\0" + wraps.gre(INNER, 0x0800)[2:]), "other_transport"),
    (over_ip(47, wraps.gre(ppp(INNER), 0x880B, version=1, key=1)), "other_transport"),
    (over_ip(47, wraps.gre(b"\xff\x03\xc0\x21\1\1\0\4", 0x880B, version=1, key=1, sequence=1)),
     "other_protocol"),
    (over_ip(47, b"\0\0\x08"), "tunnel_header"),
    (over_ip(47, wraps.gre(b"", 0x0800, key=1)[:7]), "tunnel_header"),
    (over_ip(47, wraps.gre(b"\x20" + bytes(7) + ethernet(INNER), 0x88BE, sequence=1)),
     "tunnel_header"),
    (over_ip(47, wraps.gre(b"\x10" + bytes(11) + ethernet(INNER), 0x22EB, sequence=1)),
     "tunnel_header"),
    (build.frame(wraps.mpls(b"\x55" + INNER[1:]), ethertype=0x8847), "other_protocol"),
    (build.frame(wraps.mpls(b""), ethertype=0x8847), "tunnel_header"),
    (build.frame(wraps.mpls(INNER, range(16)), ethertype=0x8847), "dns"),
    (build.frame(wraps.mpls(INNER, range(17)), ethertype=0x8847), "tunnel_header"),
    (build.frame(wraps.mpls(b"\0\0\0"), ethertype=0x8847), "tunnel_header"),
    (build.frame(build.pppoe(INNER)[:5], ethertype=0x8864), "tunnel_header"),
    (build.frame(build.pppoe(INNER)[:7], ethertype=0x8864), "tunnel_header"),
])
def test_headers_that_are_not_opened_or_break_off(frame, fate):
    assert agree(frame) == fate


def test_ports_of_tunnels():
    frame = over_udp(8472, wraps.vxlan(ethernet(INNER), 1))
    assert agree(frame) == "other_port"
    assert agree(frame, vxlan_ports=(8472, 1)) == "dns"
    assert agree(over_udp(4789, wraps.vxlan(ethernet(INNER), 1)), vxlan_ports=()) == "other_port"
    other = over_udp(7000, wraps.geneve(ethernet(INNER), 1))
    assert agree(other, geneve_ports=(7000,)) == "dns"
    # Sent *to* the port: what comes from it is another's.
    back = build.frame(build.udp(A, 4789, B, 50000, wraps.vxlan(ethernet(INNER), 1)))
    assert agree(back) == "other_port"
    # A port of ours says DNS before anything else.
    ours = build.frame(build.udp(A, 53, B, 4789, QUERY))
    assert agree(ours) == "dns" and doors.packet(ours)["layers"] == []


# --- depth, tags, scope --------------------------------------------------------------------------

def nested(levels: int, tags=True) -> bytes:
    packet = INNER
    for i in range(levels):
        inner = ethernet(packet, vlan=(i + 1,) if tags else ())
        packet = build.udp(A, 1, B, 4789, wraps.vxlan(inner, i + 100))
    return build.frame(packet, vlan=(levels + 1,) if tags else ())


@pytest.mark.parametrize("limit", range(1, 9))
@pytest.mark.parametrize("tags", [False, True])
def test_depth_exactly_at_the_limit(limit, tags):
    frame = nested(limit, tags)
    assert agree(nested(limit + 1, tags), max_depth=limit) == "tunnel_depth"
    if limit == 8 and tags:     # one octet pair of scope too many
        assert agree(frame, max_depth=limit) == "too_many_tags"
        return
    assert agree(frame, max_depth=limit) == "dns"
    found = doors.packet(frame, max_depth=limit)
    assert [layer["id"] for layer in found["layers"]] == list(range(99 + limit, 99, -1))
    assert [layer["vlan"] for layer in found["layers"]] == [
        (i,) if tags else () for i in range(limit + 1, 1, -1)]
    assert found["vlan"] == ((1,) if tags else ())
    assert found["scope"] == (b"\0\1" if tags else b"") + b"".join(
        struct.pack("!I", 0x80000000 | i) for i in range(99 + limit, 99, -1))


def test_each_kind_counts_a_level():
    for wrap, levels in KINDS.values():
        for limit in range(1, 4):
            assert agree(wrap(INNER), max_depth=limit) == (
                "dns" if len(levels) <= limit else "tunnel_depth")


@pytest.mark.parametrize("limit", [0, 9])
def test_a_depth_that_can_t_be_is_refused(limit):
    with pytest.raises(ValueError, match="max_depth is 1 to 8"):
        doors.packet(b"", max_depth=limit)


@pytest.mark.parametrize("outer", range(18))
def test_tags_of_all_levels_together(outer):
    """16 in all; the innermost link layer's and the VNIs are at most 32 octets of scope."""
    for inner in (15 - outer, 16 - outer, 17 - outer):
        if inner < 0:
            continue
        carried = build.udp(A, 1, B, 4789, wraps.vxlan(
            ethernet(INNER, vlan=range(100, 100 + inner)), 1))
        frame = build.frame(carried, vlan=range(200, 200 + outer))
        fits = outer + inner <= 16 and 2 * inner + 4 <= 32
        assert agree(frame) == ("dns" if fits else "too_many_tags")


def test_only_vlans_and_vnis_are_the_scope():
    """Keys, sessions, labels and outer addresses may differ by direction."""
    for kind, (wrap, levels) in KINDS.items():
        found = doors.packet(wrap(INNER))
        vnis = [id for name, id in levels if name in ("vxlan", "geneve")]
        assert len(found["scope"]) == 2 * len(found["vlan"]) + 4 * len(vnis), kind


# --- all of it mixed -----------------------------------------------------------------------------

def test_nested_at_random_and_mutated():
    """Up to five levels of any kinds, octets changed, doubled, left out: one reading of all."""
    dice = random.Random(20210607)
    makers = [
        lambda p: wraps.ip(A, B, 47, wraps.gre(p, ethertype(p), key=dice.choice((None, 5)))),
        lambda p: wraps.ip(A6, B6, 47, wraps.gre(ethernet(p, vlan=(3,)), 0x6558)),
        lambda p: wraps.ip(A, B, 47, wraps.gre(wraps.mpls(p), 0x8847)),
        lambda p: wraps.ip(A, B, 47, wraps.erspan(ethernet(p), dice.choice((1, 2, 3)))),
        lambda p: wraps.ip(A, B, 47, wraps.gre(ppp(p), 0x880B, version=1, key=1, sequence=2)),
        lambda p: build.udp(A, 9, B, 4789, wraps.vxlan(ethernet(p, vlan=(4, 5)), 7)),
        lambda p: build.udp(A6, 9, B6, 6081, wraps.geneve(ethernet(p), 8, options=bytes(4))),
        lambda p: wraps.ip_in_ip(*dice.choice(((A, B), (A6, B6))), p),
        lambda p: wraps.ip(A6, B6, 47, wraps.gre(
            struct.pack("!HH", 9, 0x8864) + build.pppoe(p), 0x8100)),
        lambda p: build.ipv6(A6, B6, 41 if p[0] >> 4 == 6 else 4, p, extensions=[
            (60, b""), (44, struct.pack("!HI", dice.choice((0, 0, 1, 8)), 5))]),
    ]
    fates: dict[str, int] = {}
    for _ in range(8000):
        packet = dice.choice((INNER, INNER6, SEGMENT))
        for _ in range(dice.randrange(1, 6)):
            packet = dice.choice(makers)(packet)
        frame = bytearray(build.frame(packet))
        for _ in range(dice.choice((0, 1, 1, 2))):
            at = dice.randrange(len(frame))
            what = dice.randrange(3)
            if what == 0:
                frame[at] = dice.choice((0, 1, 4, 6, 17, 41, 44, 47, 0x45, 0x60, 0x81, 0x88, 255))
            elif what == 1:
                frame[at] ^= 1 << dice.randrange(8)
            else:
                del frame[at:at + dice.randrange(1, 9)]
        whole = len(frame)
        if dice.random() < 0.2:
            del frame[dice.randrange(len(frame)):]
        fate = agree(bytes(frame), length=dice.choice((len(frame), whole)))
        fates[fate] = fates.get(fate, 0) + 1
    assert fates["dns"] > 1500 and len(fates) >= 12, fates
