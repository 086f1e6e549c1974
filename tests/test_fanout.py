"""The fanout program: against an interpreter of our own, and the interpreter against the kernel."""

from __future__ import annotations

import ipaddress
import random
import socket
import struct
import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gazer.capture.fanout import fanout_program, packed, unused_group
from gazer.capture.live import LiveSource
from gazer.capture.testing import read_all, read_one
from gazer.errors import InputError
from tests.oracle import build

pytest_plugins = ["tests.netns"]

SEED = 0xC0FFEE11
WIRE = build.query("example.com.", "A", id=7)
AD_OFF, NET_OFF = 0xFFFFF000, 0xFFF00000


class Short(Exception):
    """A load beyond the end: the kernel's program then returns 0."""


def interpret(program, data, *, protocol=0, pkttype=0, network=0):
    """Classic BPF as the kernel runs it for fanout (linux/filter.h)."""
    a = x = pc = 0
    memory = [0] * 16

    def load(at, size):
        at &= 0xFFFFFFFF
        if at == AD_OFF:
            return protocol
        if at == AD_OFF + 4:
            return pkttype
        if at >= NET_OFF:
            at = at - NET_OFF + network
        if at + size > len(data):
            raise Short
        return int.from_bytes(data[at : at + size], "big")

    try:
        while True:
            code, jt, jf, k = program[pc]
            pc += 1
            kind = code & 7
            if kind == 0:
                size = {0x00: 4, 0x08: 2, 0x10: 1}[code & 0x18]
                mode = code & 0xE0
                if mode in (0x20, 0x40):
                    a = load(k if mode == 0x20 else x + k, size)
                else:
                    a = {0x00: k, 0x60: memory[k & 15]}[mode]
            elif kind == 1:
                x = {0x00: k, 0x60: memory[k & 15]}[code & 0xE0]
            elif kind == 2:
                memory[k] = a
            elif kind == 3:
                memory[k] = x
            elif kind == 4:
                by = x if code & 8 else k
                a = {0x00: a + by, 0x20: a * by, 0xA0: a ^ by, 0x70: a >> (by & 31)}[code & 0xF0]
                a &= 0xFFFFFFFF
            elif kind == 5:
                if code & 0xF0 == 0:
                    pc += k
                else:
                    assert code & 0xF0 == 0x10
                    pc += jt if a == k else jf
            elif kind == 6:
                return a if code & 0x18 == 0x10 else k
            elif code & 0xF8:
                a = x
            else:
                x = a
    except Short:
        return 0


def received(frame):
    """What the kernel hands to the program for an Ethernet frame that came in: the link header and
    the outermost tag, where Linux knows it as one, are gone."""
    ethertype = int.from_bytes(frame[12:14], "big")
    if ethertype in (0x8100, 0x88A8):
        return {"data": frame[18:], "protocol": int.from_bytes(frame[16:18], "big")}
    return {"data": frame[14:], "protocol": ethertype}


def sent(frame):
    return {"data": frame, "protocol": int.from_bytes(frame[12:14], "big"), "pkttype": 4,
            "network": 14}


def choice(frame, linktype=1, way=received, seed=SEED):
    return interpret(fanout_program(linktype, seed), **way(frame))


def host(number, family=4):
    return str(ipaddress.ip_address(number)) if family == 4 else str(
        ipaddress.IPv6Address((0x20010DB8 << 96) + number))


def pair(a, b, **more):
    return build.udp(a, 4000, b, 53, WIRE, **more)


v4 = st.integers(1, 2**32 - 1).map(host)
v6 = st.integers(1, 2**96).map(lambda n: host(n, 6))
pairs = st.one_of(st.tuples(v4, v4), st.tuples(v6, v6))
tags = st.lists(st.tuples(st.integers(0, 4095), st.sampled_from([0x8100, 0x88A8, 0x9100])),
                max_size=3)


@given(pairs, tags, tags)
def test_both_directions_behind_any_tags(hosts, out, back):
    a, b = hosts
    there = build.frame(pair(a, b), vlan=[t for t, _ in out], tpids=[p for _, p in out])
    here = build.frame(pair(b, a), vlan=[t for t, _ in back], tpids=[p for _, p in back])
    chosen = choice(there)
    assert chosen == choice(here) == choice(there, way=sent) == choice(here, way=sent)
    assert chosen != choice(there, seed=SEED ^ 1)
    # Linux cooked: what this machine sends is found by its network header.
    cooked = build.frame(pair(a, b))
    assert choice(cooked, 113) == choice(cooked, 113, sent) == chosen
    # Raw IP has no link header, whichever way.
    raw = {"data": pair(a, b), "protocol": 0x0800 if ":" not in a else 0x86DD}
    program = fanout_program(101, SEED)
    assert interpret(program, **raw) == interpret(program, **raw, pkttype=4) == chosen


def test_ports_and_pieces_do_not_matter():
    whole = build.frame(pair("192.0.2.1", "198.51.100.7"))
    later = build.frame(build.ipv4("192.0.2.1", "198.51.100.7", 17, b"x" * 30, offset=1480))
    option = build.frame(build.ipv4("198.51.100.7", "192.0.2.1", 6, b"", options=b"\x01" * 8))
    assert choice(whole) == choice(later) == choice(option) != 0


@pytest.mark.parametrize("frame", [
    build.frame(b"\0" * 28, ethertype=0x0806),
    build.frame(b"\0\0\x11\xff" + pair("192.0.2.1", "192.0.2.2"), ethertype=0x8847),
    build.frame(build.pppoe(pair("192.0.2.1", "192.0.2.2")), ethertype=0x8864),
    build.frame(pair("192.0.2.1", "192.0.2.2"))[:33],
    build.frame(pair("2001:db8::1", "2001:db8::2"))[:53],
    build.frame(pair("192.0.2.1", "192.0.2.2"), vlan=[1, 2, 3, 4, 5]),
    build.frame(b"", ethertype=0x8100),
])
def test_what_has_no_addresses_goes_to_the_first(frame):
    for linktype in (1, 113, 101):
        for way in (received, sent):
            if linktype == 1 or way is received:
                assert choice(frame, linktype, way) == 0


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("sockets", [2, 3])
@pytest.mark.parametrize("clients", ["one network", "everywhere"])
def test_it_spreads(family, sockets, clients):
    """Clients of one resolver: neighbours too, of which only some bits differ."""
    n, rng = 1000, random.Random(sockets * family)
    numbers = range(0x0A000000, 0x0A000000 + n) if clients == "one network" else [
        rng.getrandbits(32) or 1 for _ in range(n)]
    program = fanout_program(1, SEED)
    count = Counter(
        interpret(program, **received(build.frame(pair(host(i, family), host(53, family)))))
        % sockets for i in numbers)
    assert len(count) == sockets
    for got in count.values():
        assert abs(got - n / sockets) < 6 * (n / sockets) ** 0.5, count


def test_it_is_small():
    for linktype in (1, 113, 101):
        program = fanout_program(linktype, SEED)
        assert len(program) < 120 and len(packed(program)) == 8 * len(program)
        assert all(0 <= jt < 256 and 0 <= jf < 256 for _, jt, jf, _ in program)


# --- the kernel ----------------------------------------------------------------------------------


def group_of(lab, count, interface="gz0", seed=SEED, **options):
    """That many sources in one group, in the order in which they joined."""
    group = lab.inside(unused_group)
    sources = []
    for _ in range(count):
        source = LiveSource(interface, **{
            "snaplen": 2000, "buffer_bytes": 4 << 20, "promiscuous": True, "wait_ms": 10,
            "filter_of": lambda t: "", "fanout": (group, seed), **options})
        lab.inside(source.open)
        sources.append(source)
    return sources


def frames_for_all(rng):
    made = []
    for i in range(200):
        family = rng.choice([4, 6])
        a, b = (host(rng.getrandbits(31) + 1, family) for _ in "ab")
        tpids = [rng.choice([0x8100, 0x88A8, 0x9100]) for _ in range(rng.randrange(4))]
        vlan = [rng.randrange(1, 4095) for _ in tpids]
        for x, y in ((a, b), (b, a)):
            made.append(build.frame(pair(x, y), vlan=vlan, tpids=tpids))
        if family == 4:
            made.append(build.frame(
                build.ipv4(a, b, 17, b"y" * 20, offset=8 * i, more=True), vlan=vlan, tpids=tpids))
    made.append(build.frame(b"\0" * 46, ethertype=0x0806))
    made.append(build.frame(b"\x45" + b"\0" * 3))
    return made


@pytest.mark.parametrize("way", [received, sent])
@pytest.mark.parametrize("count", [2, 3])
def test_the_kernel_chooses_as_predicted(lab, count, way):
    lab.veth()
    frames = frames_for_all(random.Random(count))
    sources = group_of(lab, count)
    assert lab.send(frames, where="far" if way is received else "sensor") == len(frames)
    expected = [[] for _ in sources]
    for frame in frames:
        expected[choice(frame, way=way) % count].append(frame)
    for source, wanted in zip(sources, expected, strict=True):
        source.drain()
        got = [f[0] for f in read_all(source)[0]]
        assert [f[:40] for f in got] == [f[:40] for f in wanted]    # (padded on the way)
        assert len(wanted) > 50
        assert source.stats()[:2] == (len(wanted), 0)
        source.close()


def test_any_interface_too(lab):
    """Cooked: sent by this machine, by an ordinary socket, and received."""
    lab.veth()
    lab.addresses(ipv6=False)
    sources = group_of(lab, 2, "any", filter_of=lambda t: "udp port 5300")

    def speak():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            for i in range(2, 60):
                s.sendto(b"", (f"127.0.0.{i}", 5300))

    lab.inside(speak)
    lab.send([build.frame(build.udp(f"127.0.0.{i}", 5300, "127.0.0.1", 9, b""))
              for i in range(2, 60)])
    for index, source in enumerate(sources):
        source.drain()
        frames = [f[0][16:] for f in read_all(source)[0]]
        ends = [{f[15], f[19]} - {1} for f in frames]
        assert len(ends) > 20
        for f in frames:
            assert choice(build.frame(f)) % 2 == index
        counts = Counter(min(e) for e in ends)
        assert set(counts.values()) == {2}, "both directions, in the same place"
        source.close()


def test_nothing_is_seen_twice_while_sockets_join(lab):
    """Under a flood: each frame is in at most one ring, and none without its filter."""


    lab.veth()
    stop = threading.Event()
    frames = [build.frame(struct.pack("!I", 0) + pair(host(i), host(53))[4:]) for i in range(9, 99)]
    serial = [0]

    def run():
        while not stop.is_set():
            serial[0] += 1
            # The IP id tells each frame from all others.
            mark = struct.pack("!H", serial[0] & 0xFFFF)
            lab.send([f[:14] + b"\x45\0\0\x39" + mark + f[20:] for f in frames])

    lab.send([])
    thread = threading.Thread(target=run)
    thread.start()
    try:
        sources = group_of(lab, 3, buffer_bytes=32 << 20)
        until = serial[0] + 50
        while serial[0] < until and serial[0] < 60_000:
            read_one(sources[0])
    finally:
        stop.set()
        thread.join()
    seen = Counter()
    for source in sources:
        source.drain()
        seen.update(f[0] for f in read_all(source)[0])
        source.close()
    assert seen and max(seen.values()) == 1


def test_a_group_that_somebody_else_has(lab):
    """Of another kind: told, and nothing is left open."""
    lab.veth()

    def other():
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        made.bind(("gz0", 3))
        made.setsockopt(263, 18, 77)    # PACKET_FANOUT, by hash
        return made

    held = lab.inside(other)
    source = LiveSource("gz0", snaplen=99, buffer_bytes=1 << 20, promiscuous=False,
                        filter_of=lambda t: "", fanout=(77, SEED))
    with pytest.raises(InputError, match=r"gz0: can't join fanout group 77: .*another program"):
        lab.inside(source.open)
    held.close()
    lab.inside(source.open)
    source.close()


def test_unused_groups_are_unused(lab):
    lab.veth()
    group = lab.inside(unused_group)
    assert 0 <= group <= 0xFFFF
    source = LiveSource("gz0", snaplen=99, buffer_bytes=1 << 20, promiscuous=False,
                        filter_of=lambda t: "", fanout=(group, SEED))
    lab.inside(source.open)
    assert lab.inside(unused_group) != group
    source.close()
