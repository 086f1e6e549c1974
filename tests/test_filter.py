"""Filters: the user's, and the text for the kernel.  The oracle is libpcap itself."""

from __future__ import annotations

import functools
import random
import struct
from pathlib import Path

import pytest

from gazer.capture.bpf import kernel_filter
from gazer.capture.doors import passes, program_length
from gazer.capture.files import open_source
from gazer.capture.filter import Filter, filter_problem
from gazer.capture.testing import read_all
from gazer.config import ENCAPSULATIONS, Capture, Tunnels
from gazer.errors import ConfigError
from gazer.workers import doors
from tests.oracle import build

CAPTURES = Path(__file__).parent / "captures"
QUERY = build.query("example.com.", "A", id=7)
V4, V6 = ("192.0.2.1", "198.51.100.53"), ("2001:db8::1", "2001:db8::53")
P4 = build.udp(V4[0], 4000, V4[1], 53, QUERY)
P6 = build.udp(V6[0], 4000, V6[1], 53, QUERY)
# libpcap knows PPP with its address and control octets only, and our own AF_INET6 (10) only.
PPP = functools.partial(build.ppp, hdlc=True)
LINUX = functools.partial(build.null, inet6=10)
LOOP = functools.partial(build.null, inet6=10, byteorder=">")
MAX_INSTRUCTIONS = 4096     # BPF_MAXINSNS in linux/bpf_common.h


# --- the user's ----------------------------------------------------------------------------------


@pytest.mark.parametrize("expression, frame, yes", [
    ("", build.frame(P4), True),
    ("  ", build.frame(P4), True),
    ("udp port 53", build.frame(P4), True),
    ("udp port 53", build.frame(P6), True),
    ("tcp port 53", build.frame(P4), False),
    ("host 192.0.2.1", build.frame(P4), True),
    ("host 192.0.2.1", build.frame(P6), False),
    ("port 53", build.frame(P4, vlan=[7]), False),          # the frame as it is on the wire
    ("vlan 7 and port 53", build.frame(P4, vlan=[7]), True),
    ("less 100", build.frame(P4), True),
    ("port 53", build.frame(P4)[:20], False),               # too short to tell
    ("port 53", b"", False),
])
def test_frames_that_pass(expression, frame, yes):
    assert passes(Filter(expression), frame) is yes


def test_lengths_are_those_of_the_frame():
    assert passes(Filter("greater 500"), build.frame(P4), length=500)
    assert not passes(Filter("greater 501"), build.frame(P4), length=500)


def test_a_filter_for_each_link_type():
    filter = Filter("host 192.0.2.1")
    assert program_length(filter, 1) > 0 and program_length(filter, 101) == 0
    for linktype, frame in ((1, build.frame(P4)), (101, P4), (12, P4), (14, P4), (228, P4),
                            (113, build.sll(P4)), (276, build.sll2(P4)), (9, PPP(P4)),
                            (0, LINUX(P4)), (108, LOOP(P4))):
        assert passes(filter, frame, linktype), linktype
        assert passes(filter, build.frame(P4))              # they don't mix
    assert not passes(filter, P6, 101)
    assert program_length(filter, 101) > 0
    assert filter.complaints() == []


def test_link_types_that_an_expression_does_not_fit():
    filter = Filter("vlan 7")
    for _ in range(3):
        assert not passes(filter, P4, 101)
        assert not passes(filter, PPP(P4), 9)
        assert passes(filter, build.frame(P4, vlan=[7]))
    assert filter.complaints() == [
        "capture.filter does not fit frames of link type 101, so none of them passes: "
        "no VLAN support for Raw IP",
        "capture.filter does not fit frames of link type 9, so none of them passes: "
        "no VLAN support for PPP",
    ]
    assert not passes(filter, P4, 101)
    assert filter.complaints() == []                        # once


def test_a_file_of_ever_new_link_types_costs_no_compilation_each():
    filter = Filter("port 53")
    for linktype in range(1000, 1200):
        assert not passes(filter, build.frame(P4), linktype)
    complaints = filter.complaints()
    assert len(complaints) == 63 + 1                        # and Ethernet, which fits
    assert complaints[-1] == (
        "capture.filter: frames of more than 64 link types; those of further ones do not pass")
    assert passes(filter, build.frame(P4)) and not passes(filter, P4, 1199)
    assert filter.complaints() == []


@pytest.mark.parametrize("expression, words", [
    ("prot 53", "can't parse filter expression: syntax error"),
    ("port 53 and", "can't parse filter expression: syntax error"),
    ("port 53) or (port 54", "can't parse filter expression: syntax error"),
    ("(" * 4096, "can't parse filter expression: syntax error"),
    ("port 65536", "illegal port number 65536 > 65535"),
    ("ip and not ip", "expression rejects all packets"),
    ("ether host 1", "illegal link layer address"),
    ("port 53\0 or port 54", "a NUL has no place in it"),
])
def test_what_is_no_filter(expression, words):
    problem = filter_problem(expression)
    assert problem == f"capture.filter: {words}" and len(problem.splitlines()) == 1
    with pytest.raises(ConfigError):
        Filter(expression)


def test_no_filter_is_no_problem():
    assert filter_problem("") is None
    assert filter_problem("udp port 53 and not net 10.0.0.0/8") is None


# --- the kernel's --------------------------------------------------------------------------------


def kernel(linktype=1, *, filter="", ports=(53,), mdns=False, llmnr=False, **tunnels) -> Filter:
    """The text, ready for frames; it has to compile for its own link type only."""
    return Filter(kernel_filter(
        Capture(filter=filter, ports=ports, mdns=mdns, llmnr=llmnr), Tunnels(**tunnels), linktype))


def frames_of(name):
    source = open_source(str(CAPTURES / name), snaplen=262144, stdin_fd=0, stopped=lambda: False)
    try:
        frames, result, error = read_all(source)
    finally:
        source.close()
    assert result == "end", error
    return frames


@pytest.mark.parametrize("name", sorted(p.name for p in CAPTURES.glob("*.pcap*")
                                        if p.suffix in (".pcap", ".pcapng")))
def test_whatever_we_read_of_real_traffic_passes(name):
    filters: dict[int, Filter] = {}
    ours = others = stopped = 0
    for data, _, length, _, linktype, _ in frames_of(name):
        filter = filters.setdefault(linktype, kernel(linktype))
        yes = passes(filter, data, linktype, length=length)
        if doors.packet(data, linktype, length)["fate"] in ("dns", "fragment"):
            ours += 1
            assert yes, data.hex()
        else:
            others += 1
            stopped += not yes
    assert ours


def gre(packet, ethertype=0x0800):
    return struct.pack("!HH", 0, ethertype) + packet


def v4(protocol, payload, **more):
    return build.ipv4(*V4, protocol, payload, **more)


def v6(protocol, payload, **more):
    return build.ipv6(*V6, protocol, payload, **more)


def mpls(packet):
    return struct.pack("!I", 42 << 12 | 1 << 8 | 64) + packet


def fragment6(protocol=17, offset=8, more=0):
    return v6(protocol, b"x" * 8, extensions=[(44, struct.pack("!HI", offset | more, 9))])


VXLAN = struct.pack("!II", 0x08000000, 42 << 8) + build.frame(P4)
GENEVE = struct.pack("!BBHI", 0, 0, 0x6558, 42 << 8) + build.frame(P4)
BOTH = [P4, P6]

# What must pass, each by which encapsulation (None: always), as what follows the tags of a frame.
PASS = {
    "DNS": (None, BOTH, None),
    "a reply": (None, [build.udp(V4[1], 53, V4[0], 4000, QUERY),
                       build.udp(V6[1], 53, V6[0], 4000, QUERY)], None),
    "TCP": (None, [build.tcp(V4[0], 4000, V4[1], 53, b"x"),
                   build.tcp(V6[1], 53, V6[0], 4000)], None),
    "options": (None, [build.udp(V4[0], 4000, V4[1], 53, QUERY, options=b"\1" * 12)], None),
    "extension headers": (None, [build.udp(V6[0], 4000, V6[1], 53, QUERY, extensions=[(kind, b"")])
                                 for kind in (0, 43, 60, 135, 139, 140)], None),
    "AH": (None, [build.udp(V6[0], 4000, V6[1], 53, QUERY, extensions=[(51, bytes(10))])], None),
    "first pieces": (None, [v4(17, P4[20:60], more=True), v4(6, b"x" * 40, more=True),
                            fragment6(offset=0, more=1)], None),
    "later pieces": (None, [v4(17, b"x" * 8, offset=8, more=True), v4(17, b"x", offset=65528),
                            v4(6, b"x", offset=8), fragment6(), fragment6(6)], None),
    "MPLS": ("mpls", [mpls(P4)], 0x8847),
    "MPLS multicast": ("mpls", [mpls(P6)], 0x8848),
    "PPPoE": ("pppoe", [build.pppoe(P4), build.pppoe(P6)], 0x8864),
    "GRE": ("gre", [v4(47, gre(P4)), v6(47, gre(P6, 0x86DD))], None),
    "ERSPAN": ("erspan", [v4(47, gre(build.frame(P4), 0x88BE))], None),
    "VXLAN": ("vxlan", [build.udp(V4[0], 5, V4[1], 4789, VXLAN),
                        build.udp(V6[0], 5, V6[1], 4789, VXLAN)], None),
    "Geneve": ("geneve", [build.udp(V4[0], 5, V4[1], 6081, GENEVE),
                          build.udp(V6[0], 5, V6[1], 6081, GENEVE)], None),
    "IP in IP": ("ip", [v4(4, P4), v4(41, P6), v6(4, P4), v6(41, P6)], None),
    "pieces of GRE": ("gre", [v4(47, b"x" * 8, offset=8), fragment6(47)], None),
    "pieces of IP in IP": ("ip", [v4(4, b"x" * 8, offset=8), v4(41, b"x" * 8, offset=8)], None),
    "a piece of VXLAN": ("vxlan", [v4(17, b"x" * 8, offset=8)], None),
}

STOP = {
    "ARP": ([b"\0\1" * 14], 0x0806),
    "other ports": ([build.udp(V4[0], 4000, V4[1], 54, QUERY), build.tcp(V6[0], 1, V6[1], 2),
                     build.udp(V6[0], 4000, V6[1], 54, QUERY)], None),
    "ICMP": ([v4(1, b"\x08\0" + bytes(30)), v6(58, b"\x80\0" + bytes(30)),
              v4(1, b"\x03\x03" + bytes(6) + P4)], None),
    "a piece of ICMP": ([v4(1, bytes(16), offset=8)], None),
    "SCTP": ([v4(132, struct.pack("!HH", 53, 53) + bytes(8))], None),
    "ESP": ([v6(50, bytes(30)), v4(50, bytes(30))], None),
    "mDNS and LLMNR": ([build.udp(V4[0], 5353, "224.0.0.251", 5353, QUERY),
                        build.udp(V6[0], 4000, "ff02::1:3", 5355, QUERY)], None),
}


@pytest.mark.parametrize("tags", [(), (5,), (5, 6)])
@pytest.mark.parametrize("name", PASS)
def test_what_passes(name, tags):
    kind, packets, ethertype = PASS[name]
    opened, closed = kernel(), kernel(decode=tuple(e for e in ENCAPSULATIONS if e != kind))
    alone = kernel(decode=(kind,) if kind else ())
    for packet in packets:
        for tpids in ([0x8100] * len(tags), [0x88A8, 0x8100][:len(tags)], [0x9100] * len(tags)):
            frame = build.frame(packet, vlan=tags, tpids=tpids, ethertype=ethertype)
            assert passes(opened, frame) and passes(alone, frame)
            # GRE and ERSPAN can't be told apart, nor can a piece of VXLAN from one of DNS.
            if kind in ("mpls", "pppoe", "vxlan", "geneve") and "piece" not in name:
                assert not passes(closed, frame)
            if kind == "ip" and "piece" not in name:
                assert not passes(closed, frame)


@pytest.mark.parametrize("tags", [(), (5,), (5, 6)])
@pytest.mark.parametrize("name", STOP)
def test_what_does_not_pass(name, tags):
    packets, ethertype = STOP[name]
    for packet in packets:
        assert not passes(kernel(), build.frame(packet, vlan=tags, ethertype=ethertype))


def test_more_tags_than_can_be_told_pass_whatever_they_hold():
    for packet in (P4, v4(1, bytes(8))):
        assert passes(kernel(), build.frame(packet, vlan=[1, 2, 3]))
        assert passes(kernel(), build.frame(packet, vlan=[1] * 16))


def test_mdns_and_llmnr_pass_if_they_are_on():
    mdns = build.frame(build.udp(V4[0], 5353, "224.0.0.251", 5353, QUERY))
    llmnr = build.frame(build.udp(V6[0], 4000, "ff02::1:3", 5355, QUERY), vlan=[9])
    assert [passes(kernel(mdns=True), f) for f in (mdns, llmnr)] == [True, False]
    assert [passes(kernel(llmnr=True), f) for f in (mdns, llmnr)] == [False, True]


def test_the_ports_are_those_that_were_asked_for():
    ports = (53, 54, 55, 1000, 65535)
    for port in range(50, 60):
        frame = build.frame(build.udp(V4[0], port, V4[1], 4000, QUERY), vlan=[5])
        assert passes(kernel(ports=ports), frame) is (port in ports)
    text = kernel_filter(Capture(ports=ports), Tunnels(vxlan_ports=(56,), geneve_ports=(80,)))
    assert "(portrange 53-56 or port 80 or port 1000 or port 65535)" in text
    vxlan = build.udp(V4[0], 5, V4[1], 8472, VXLAN)
    assert passes(kernel(vxlan_ports=(4789, 8472)), build.frame(vxlan))
    assert not passes(kernel(), build.frame(vxlan))


@pytest.mark.parametrize("linktype, wrap", [
    (113, build.sll), (276, build.sll2), (101, bytes), (0, LINUX), (9, PPP), (108, LOOP)])
def test_link_types(linktype, wrap):
    filter = kernel(linktype)
    assert passes(filter, wrap(P4), linktype)
    assert passes(filter, wrap(v4(17, b"x" * 8, offset=8)), linktype)
    assert not passes(filter, wrap(v4(1, b"x" * 8)), linktype)
    assert passes(filter, wrap(P6), linktype)
    assert passes(filter, wrap(fragment6()), linktype)
    if linktype in (113, 276):
        assert passes(filter, wrap(P4, vlan=[5]), linktype)
        assert not passes(filter, wrap(v6(58, bytes(8))), linktype)
    assert filter.complaints() == []


def test_the_longest_lists_of_ports_stay_within_the_kernels_limit():
    chosen = random.Random(1).sample(range(2, 65536, 2), 96)    # no two are neighbours
    filter = kernel(ports=tuple(chosen[:64]), mdns=True, llmnr=True,
                    vxlan_ports=tuple(chosen[64:80]), geneve_ports=tuple(chosen[80:]))
    assert 0 < program_length(filter) < MAX_INSTRUCTIONS // 2
    for port in chosen[:64]:
        for tags in ([], [1], [1, 2]):
            assert passes(filter, build.frame(
                build.udp(V6[0], 1, V6[1], port, QUERY), vlan=tags))
    assert not passes(filter, build.frame(build.udp(V4[0], 1, V4[1], 3, QUERY)))


def test_the_users_filter_tells_of_the_outer_headers():
    filter = kernel(filter="src net 192.0.2.0/24")
    inside = build.udp("10.0.0.1", 4000, "10.0.0.2", 53, QUERY)
    assert passes(filter, build.frame(P4))
    assert passes(filter, build.frame(v4(4, inside)))
    assert not passes(filter, build.frame(inside))
    assert not passes(filter, build.frame(build.ipv4("10.0.0.1", "10.0.0.2", 4, P4)))
    assert not passes(filter, build.frame(v4(1, bytes(8))))
    assert passes(filter, build.frame(v4(17, b"x" * 8, offset=8)))      # later pieces, too
    # "or" in it does not reach beyond its brackets.
    either = kernel(filter="src host 192.0.2.1 or icmp")
    assert not passes(either, build.frame(v4(1, bytes(8))))


def test_a_users_filter_that_moves_offsets_stands_alone():
    for expression in ("vlan 5", "VLAN and port 53", "mpls 7", "pppoes", "geneve 9"):
        text = kernel_filter(Capture(filter=f" {expression} "), Tunnels())
        assert text == expression
    tagged = build.frame(P4, vlan=[5])
    assert passes(kernel(filter="vlan 5"), tagged)
    assert not passes(kernel(filter="vlan 6"), tagged)
    assert kernel_filter(Capture(filter="host vlan5.example"), Tunnels()).startswith(
        "(host vlan5.example) and (")
