"""Tunnels: headers that break off or can't be right, more levels than are opened, lengths within
that point beyond, and replies from another network.

Each header as octets, what it carries behind it:

    MPLS     label 20 bits, class 3, bottom 1, TTL 8
    PPPoE    0x11, code 0, session 2, length 2; PPP protocol 2
    GRE      flags and version 2, protocol 2; checksum 4, key 4, sequence 4 as the flags say
    VXLAN    flags 0x08, reserved 3, VNI 3, reserved 1
    Geneve   version and option length, flags, protocol 2, VNI 3, reserved 1; options
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from tests.hostile.bombs import A, Case, Place, Ran, query, ran, reply, statuses, then
from tests.oracle import build

QUERY = query()
OUTER = ("203.0.113.1", "203.0.113.2")
FLAG_I = b"\x08\0\0\0"
IPV4, IPV6, ETHERNET = 0x0800, 0x86DD, 0x6558
GRE, IP_IN_IP, SIX = 47, 4, 41


def ip(place: Place, wire: bytes = QUERY) -> bytes:
    if wire[2] & 0x80:
        return build.udp("192.0.2.53", 53, place.client, 4000, wire)
    return build.udp(place.client, 4000, "192.0.2.53", 53, wire)


def v4(protocol: int, payload: bytes) -> bytes:
    return build.ipv4(*OUTER, protocol, payload)


def udp(port: int, payload: bytes) -> bytes:
    return build.udp(OUTER[0], 50_000, OUTER[1], port, payload)


def label(number: int, bottom: bool) -> bytes:
    return struct.pack("!I", number << 12 | bottom << 8 | 64)


def vxlan(inner: bytes, *, flags: bytes = FLAG_I, vni: int = 42) -> bytes:
    return udp(4789, flags + struct.pack("!I", vni << 8) + inner)


def geneve(inner: bytes, *, first: bytes = b"\0\0", protocol: int = ETHERNET,
           options: bytes = b"") -> bytes:
    return udp(6081, first + struct.pack("!HI", protocol, 42 << 8) + options + inner)


def gre(inner: bytes, *, flags: int = 0, protocol: int = IPV4, more: bytes = b"") -> bytes:
    return v4(GRE, struct.pack("!HH", flags, protocol) + more + inner)


def mpls(inner: bytes, *labels: int) -> bytes:
    stack = b"".join(label(n, i == len(labels) - 1) for i, n in enumerate(labels))
    return build.frame(stack + inner, ethertype=0x8847)


# What each level puts around an IP packet: an IP packet again.
LEVELS: dict[str, Callable[[bytes], bytes]] = {
    "VXLAN": lambda inner: vxlan(build.frame(inner)),
    "Geneve": lambda inner: geneve(build.frame(inner)),
    "GRE": gre,
    "GRE with Ethernet": lambda inner: gre(build.frame(inner), protocol=ETHERNET),
    "GRE with checksum, key and sequence": lambda inner: gre(
        inner, flags=0xB000, more=bytes(12)),
    "GRE with MPLS": lambda inner: gre(label(7, True) + inner, protocol=0x8847),
    "ERSPAN I": lambda inner: gre(build.frame(inner), protocol=0x88BE),
    "ERSPAN II": lambda inner: gre(
        struct.pack("!HHI", 0x1001, 7, 0) + build.frame(inner), flags=0x1000, protocol=0x88BE,
        more=bytes(4)),
    "ERSPAN III": lambda inner: gre(
        struct.pack("!HHIHH", 0x2001, 7, 0, 0, 0) + build.frame(inner), flags=0x1000,
        protocol=0x22EB, more=bytes(4)),
    "IP in IP": lambda inner: v4(IP_IN_IP, inner),
}


def plain(name: str, frame: Callable[[Place], bytes], word: str) -> Case:
    return Case(name, lambda place: [frame(place)], [word])


GOOD = [plain(f"{name}: a good query", lambda place, put=put: build.frame(put(ip(place))), "ok")
        for name, put in LEVELS.items()] + [
    plain("MPLS: a good query", lambda place: mpls(ip(place), 16, 17), "ok"),
    plain("MPLS: a pseudowire", lambda place: mpls(bytes(4) + build.frame(ip(place)), 16), "ok"),
    plain("PPPoE: a good query", lambda place: build.frame(
        build.pppoe(ip(place)), ethertype=0x8864), "ok"),
    plain("IPv6 in IPv4", lambda place: build.frame(v4(SIX, build.udp(
        "2001:db8::1", 4000, "2001:db8::53", 53, QUERY))), "ok"),
]


def nested(put: Callable[[bytes], bytes], depth: int) -> Callable[[Place], bytes]:
    def make(place: Place) -> bytes:
        packet = ip(place)
        for _ in range(depth):
            packet = put(packet)
        return build.frame(packet)

    return make


ONE_LEVEL = {name: put for name, put in LEVELS.items() if name != "GRE with MPLS"}
DEPTHS = [
    case for name, put in ONE_LEVEL.items() for case in (
        plain(f"{name}: four times over", nested(put, 4), "ok"),
        plain(f"{name}: five times over", nested(put, 5), "tunnel_depth"),
        plain(f"{name}: 200 times over", nested(put, 200), "tunnel_depth"))
] + [
    plain("each kind in the other", lambda place: build.frame(
        vxlan(build.frame(v4(IP_IN_IP, gre(geneve(build.frame(v4(IP_IN_IP, ip(place))))))))),
        "tunnel_depth"),
    plain("MPLS in GRE in MPLS in VXLAN, all of one level", lambda place: build.frame(
        vxlan(mpls(gre(label(9, True) + ip(place), protocol=0x8847), 16))), "ok"),
]

BROKEN = [
    *(plain(f"VXLAN: {n} octets of its header", lambda place, n=n: build.frame(
        udp(4789, (FLAG_I + bytes(4))[:n])), "tunnel_header") for n in (0, 1, 7)),
    plain("VXLAN: without its flag", lambda place: build.frame(
        vxlan(build.frame(ip(place)), flags=bytes(4))), "other_port"),
    plain("VXLAN: nothing in it", lambda place: build.frame(vxlan(b"")), "link_header"),
    plain("VXLAN: half an Ethernet header in it", lambda place: build.frame(vxlan(bytes(13))),
          "link_header"),
    *(plain(f"Geneve: {n} octets of its header", lambda place, n=n: build.frame(
        udp(6081, (b"\0\0\x65\x58" + bytes(4))[:n])), "tunnel_header") for n in (0, 1, 7)),
    plain("Geneve: options longer than the packet", lambda place: build.frame(
        geneve(bytes(8), first=b"\x3f\0")), "tunnel_header"),
    plain("Geneve: 252 octets of options", lambda place: build.frame(
        geneve(build.frame(ip(place)), first=b"\x3f\0", options=b"\xff" * 252)), "ok"),
    plain("Geneve: another protocol", lambda place: build.frame(
        geneve(bytes(60), protocol=0x0806)), "other_port"),
    *(plain(f"GRE: {n} octets of its header", lambda place, n=n: build.frame(
        v4(GRE, b"\xb0\0\x08\0" + bytes(12))[:20 + n][:2] + (20 + n).to_bytes(2, "big")
        + v4(GRE, b"\xb0\0\x08\0" + bytes(12))[4:20 + n]), "tunnel_header")
      for n in (0, 1, 3, 4, 8, 15)),
    plain("GRE: version 7", lambda place: build.frame(gre(ip(place), flags=7)),
          "other_transport"),
    plain("GRE: routing", lambda place: build.frame(gre(ip(place), flags=0x4000)),
          "other_transport"),
    plain("GRE: another protocol", lambda place: build.frame(gre(bytes(40), protocol=0x0806)),
          "other_transport"),
    plain("ERSPAN II: half its header", lambda place: build.frame(gre(
        b"\x10\1\0\7", flags=0x1000, protocol=0x88BE, more=bytes(4))), "tunnel_header"),
    plain("ERSPAN III: half its header", lambda place: build.frame(gre(
        b"\x20\1\0\7\0\0", flags=0x1000, protocol=0x22EB, more=bytes(4))), "tunnel_header"),
    plain("ERSPAN III: its further header breaks off", lambda place: build.frame(gre(
        struct.pack("!HHIHH", 0x2001, 7, 0, 0, 1) + bytes(4), flags=0x1000, protocol=0x22EB,
        more=bytes(4))), "tunnel_header"),
    plain("MPLS: a label that breaks off", lambda place: build.frame(
        b"\0\1\1", ethertype=0x8847), "tunnel_header"),
    plain("MPLS: no bottom", lambda place: build.frame(
        label(16, False) * 3, ethertype=0x8847), "tunnel_header"),
    plain("MPLS: 16 labels", lambda place: mpls(ip(place), *range(16, 32)), "ok"),
    plain("MPLS: 17 labels", lambda place: mpls(ip(place), *range(16, 33)), "tunnel_header"),
    plain("MPLS: 300 labels", lambda place: mpls(ip(place), *range(16, 316)), "tunnel_header"),
    plain("MPLS: neither IP nor a pseudowire", lambda place: mpls(b"\x20" + bytes(40), 16),
          "other_protocol"),
    plain("PPPoE: half its header", lambda place: build.frame(b"\x11\0\0", ethertype=0x8864),
          "tunnel_header"),
    plain("IP in IP: nothing in it", lambda place: build.frame(v4(IP_IN_IP, b"")), "ip_header"),
    plain("IP in IP: an inner length beyond the outer one", lambda place: build.frame(
        v4(IP_IN_IP, ip(place)[:2] + b"\xff\xff" + ip(place)[4:])), "ip_length"),
    plain("VXLAN: an inner length beyond the outer one", lambda place: build.frame(
        vxlan(build.frame(ip(place)[:2] + b"\xff\xff" + ip(place)[4:]))), "ip_length"),
    plain("VXLAN: 9 tags outside, 8 inside", lambda place: build.frame(
        vxlan(build.frame(ip(place), vlan=range(8))), vlan=range(9)), "too_many_tags"),
    plain("VXLAN: 8 tags outside, 8 inside", lambda place: build.frame(
        vxlan(build.frame(ip(place), vlan=range(8))), vlan=range(8)), "ok"),
]


def over(vni: int, place: Place, wire: bytes, *, tags=()) -> bytes:
    return build.frame(vxlan(build.frame(ip(place, wire), vlan=tags), vni=vni))


FORGED = reply(build.record(b"\xc0\x0c", 1, bytes((203, 0, 113, 66))))


def real(events) -> None:
    assert events[1]["reply"][-1]["data"] == "192.0.2.80"


NETWORKS = [
    Case(f"forged: a reply {name}", lambda place, forged=forged: [
        over(42, place, QUERY), forged(place), over(42, place, reply(A))], ["ok"] * 3,
        then(statuses("no_query", "success"), real))
    for name, forged in {
        "from another VNI": lambda place: over(43, place, FORGED),
        "from outside of the tunnel": lambda place: place.answer(FORGED),
        "from another VLAN within the VNI": lambda place: over(42, place, FORGED, tags=[7]),
    }.items()
]


def error(place: Place, quoted: bytes, kind: int = 3) -> bytes:
    return build.frame(build.ipv4("192.0.2.99", place.client, 1,
                                  struct.pack("!BBHI", kind, 3, 0, 0) + quoted))


ICMP = [
    plain("ICMP: an error that quotes a query", lambda place: error(place, ip(place)[:28]),
          "icmp_error"),
    plain("ICMP: an error that quotes less than the ports", lambda place: error(
        place, ip(place)[:22]), "other_transport"),
    plain("ICMP: an error that quotes an error", lambda place: error(
        place, error(place, ip(place)[:28])[14:]), "other_transport"),
    plain("ICMP: an error that quotes nothing", lambda place: error(place, b""),
          "other_transport"),
    plain("ICMP: an echo that quotes a query", lambda place: error(place, ip(place), kind=8),
          "other_transport"),
    Case("ICMP: an error takes no transaction", lambda place: [
        place.ask(QUERY), error(place, ip(place)), place.answer(reply(A))],
        ["ok", "icmp_error", "ok"], statuses("success")),
]

CASES = [*GOOD, *DEPTHS, *BROKEN, *NETWORKS, *ICMP]
run = ran(CASES)


@pytest.mark.parametrize("one", CASES, ids=str)
def test_tunnels(run: Ran, one: Case) -> None:
    run.check(one)


def test_every_frame_is_in_one_counter(run: Ran) -> None:
    run.account()
