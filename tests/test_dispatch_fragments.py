"""Dispatch of what came in pieces and in tunnels: joined in any order, and all accounted for."""

from __future__ import annotations

import itertools
import random
import struct

import pytest

from gazer.capture.filter import Filter
from gazer.capture.fragments import Fragments
from gazer.counters import CAPTURE

from .oracle import build, capture, wraps
from .oracle.fragments import Fragments as Model
from .oracle.rules import Rules
from .test_dispatch import CLIENT, NOW, SECOND, SERVER, Site

A, B = "10.0.0.1", "10.0.0.2"
A6, B6 = "2001:db8::1", "2001:db8::53"
BIG = bytes(range(256)) * 2
# The oracle's words for what becomes of a piece -> the counters.
WHY = {"joined": "joined", "foreign": "foreign", "duplicate": "duplicate_pieces",
       "overlapping": "overlapping", "bad": "bad_pieces", "expired": "expired_pieces",
       "evicted": "evicted_pieces", "waiting": "waiting_pieces"}


def account(site):
    """The pieces' account, which must add up at any moment."""
    counted = site.slot.read(CAPTURE)
    why = {name: counted[counter] for name, counter in WHY.items()}
    assert counted["fate.fragment"] == sum(why.values())
    fates = sum(value for name, value in counted.items() if name.startswith("fate."))
    assert counted["frames"] == fates + counted["delivered"] + counted["ring_dropped"]
    return {name: value for name, value in why.items() if value}, counted


def datagram(payload=BIG, port=4000, family=4):
    ends = (CLIENT, SERVER) if family == 4 else (A6, B6)
    return build.udp(ends[0], port, ends[1], 53, payload)


def plain(packet):
    return build.frame(packet, vlan=(5,))


def vxlan(packet):
    return build.frame(build.udp(A, 9, B, 4789, wraps.vxlan(build.frame(packet, vlan=(6,)), 42)))


def gre(packet):
    kind = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
    return build.frame(wraps.ip(A, B, 47, wraps.gre(packet, kind, key=1)))


@pytest.mark.parametrize("wrap", [plain, vxlan, gre])
@pytest.mark.parametrize("family", [4, 6])
def test_pieces_in_every_order(wrap, family):
    """The last to come stands for all, with its own number and time."""
    packet = datagram(family=family)
    pieces = [wrap(p) for p in wraps.pieces(packet, 176, ident=9)]
    assert len(pieces) == 3
    for order in itertools.permutations(range(3)):
        site = Site(capacity=8192)
        site.run([(pieces[i], NOW + n) for n, i in enumerate(order)])
        (entry,) = site.entries()
        assert (entry["sequence"], entry["clock"], entry["time"]) == (3, NOW + 2, NOW + 2)
        assert (entry["source_port"], entry["destination_port"]) == (4000, 53)
        assert entry["frame"].endswith(packet[40 if family == 6 else 20:])
        # Its head is the first piece's.
        head = pieces[0].index(packet[8:40] if family == 6 else packet[12:20])
        assert entry["frame"].startswith(pieces[0][:head])
        why, counted = account(site)
        assert why == {"joined": 2} and counted["datagrams"] == 1
        assert counted["tunnelled"] == (wrap is not plain)


def test_it_goes_where_its_flow_goes():
    """Whole or in pieces, inside a tunnel or not: one worker."""
    for port in range(4000, 4040):
        packet = datagram(port=port)
        frames = [plain(packet), vxlan(packet), gre(packet)]
        for i, wrap in enumerate((plain, vxlan, gre)):
            frames += [wrap(p) for p in wraps.pieces(packet, 96, ident=i)]
        frames += [build.frame(p) for p in wraps.pieces(
            build.udp(A, 9, B, 4789, wraps.vxlan(build.frame(packet), 1)), 200)]
        site = Site(4)
        site.run([(frame, NOW) for frame in frames])
        assert sorted(len(site.entries(worker)) for worker in range(4)) == [0, 0, 0, 7]


def test_a_tunnel_in_pieces_with_pieces_in_it():
    """One frame may complete both."""
    inner = [build.frame(p) for p in wraps.pieces(datagram(), 264, ident=1)]
    outer = [wraps.pieces(build.udp(A, 9, B, 4789, wraps.vxlan(frame, 3)), 128, ident=10 + i)
             for i, frame in enumerate(inner)]
    frames = [build.frame(piece) for pieces in outer for piece in pieces]
    dice = random.Random(3)
    for _ in range(40):
        dice.shuffle(frames)
        site = Site(capacity=8192)
        site.run([(frame, NOW) for frame in frames])
        (entry,) = site.entries()
        assert entry["sequence"] == len(frames)
        assert entry["frame"].endswith(BIG)
        why, counted = account(site)
        # The frame that completes an outer datagram, but not the inner one, is a piece of that.
        assert why == {"joined": len(frames) - 1} and counted["datagrams"] == 3


def test_extension_headers_behind_the_fragment_header():
    body = build.ipv6(A6, B6, 17, build.datagram(A6, 4000, B6, 53, BIG), extensions=[
        (60, bytes(14)), (0, bytes(6))])[40:]
    whole = build.ipv6(A6, B6, 60, body)
    site = Site(capacity=8192)
    site.run([(build.frame(p), NOW) for p in reversed(wraps.pieces(whole, 8))])
    (entry,) = site.entries()
    assert entry["source_port"] == 4000 and entry["frame"].endswith(BIG)


def test_foreign_pieces_cost_nothing():
    other = build.udp(CLIENT, 4000, SERVER, 443, BIG)
    site = Site(capacity=4096)
    frames = [build.frame(p) for p in wraps.pieces(other, 64)]
    site.run([(frame, NOW) for frame in frames])
    assert account(site)[0] == {"foreign": len(frames)}


def test_a_joined_datagram_is_cut_to_snaplen_like_any_frame():
    packet = datagram()
    fragments = Fragments(max_datagrams=4, max_bytes=1 << 20, timeout=SECOND, seed=1, snaplen=300)
    site = Site(capacity=4096, fragments=fragments)
    site.run([(build.frame(p), NOW) for p in wraps.pieces(packet, 176)])
    (entry,) = site.entries()
    assert entry["frame"] == build.frame(packet)[:14] + entry["frame"][14:34] + packet[20:286]
    assert account(site)[1]["snapped"] == 1


def test_what_comes_of_a_datagram_is_the_last_frame_s_fate():
    for protocol, body, fate in ((17, build.datagram(CLIENT, 1, SERVER, 53, BIG, length=9999),
                                  "udp_length"),
                                 (47, b"\0\0\x12\x34" + BIG, "other_transport"),
                                 (6, struct.pack("!HHIIBB", 1, 53, 0, 0, 0, 0) + BIG,
                                  "tcp_header")):
        site = Site(capacity=4096)
        pieces = wraps.pieces(build.ipv4(CLIENT, SERVER, protocol, body), 264)
        site.run([(build.frame(p), NOW) for p in pieces])
        why, counted = account(site)
        assert why == {"joined": len(pieces) - 1} and counted[f"fate.{fate}"] == 1


def test_pieces_expire_by_the_clock_and_the_ledger_knows_at_once():
    first, *_ = wraps.pieces(datagram(), 176)
    site = Site(capacity=4096)
    site.run([(build.frame(first), NOW)])
    assert account(site)[0] == {"waiting": 1}
    site.run([(b"", NOW + 30 * SECOND - 1)])
    assert account(site)[0] == {"waiting": 1}
    site.run([(b"", NOW + 30 * SECOND)])
    assert account(site)[0] == {"expired": 1}


def test_a_full_ring_drops_a_joined_datagram_as_a_whole():
    site = Site(capacity=4096, live=True)
    frames = [build.frame(p) for i in range(20) for p in wraps.pieces(datagram(), 264, ident=i)]
    site.run([(frame, NOW) for frame in frames])
    kept = len(site.entries())
    why, counted = account(site)
    assert 0 < kept < 20 and counted["ring_dropped"] == 20 - kept
    assert why == {"joined": len(frames) - 20} and counted["datagrams"] == 20


def test_a_filter_leaves_frames_out_but_not_their_time():
    site = Site(capacity=4096, filter=Filter("vlan 5"))
    frames = [plain(datagram()), build.frame(datagram()), plain(datagram())]
    site.run([(frame, NOW + i * SECOND) for i, frame in enumerate(frames)])
    assert [(e["sequence"], e["clock"]) for e in site.entries()] == [
        (1, NOW), (3, NOW + 2 * SECOND)]
    assert account(site)[1]["fate.filtered"] == 1
    site.run([(build.frame(datagram()), NOW + 9 * SECOND)])
    assert site.readers[0].watermark == (NOW + 9 * SECOND, 5)


def test_anything_in_any_order_against_the_oracle():
    """Pieces of every size of many datagrams, in tunnels and not, doubled, lost, changed, late:
    the same entries, fates and account as by the oracle's reading, at every step."""
    for seed in range(60):
        dice = random.Random(seed)
        frames = []
        for number in range(dice.randrange(1, 7)):
            family = dice.choice((4, 6))
            packet = datagram(dice.randbytes(dice.choice((3, 40, 100))), 4000 + number, family)
            if dice.random() < 0.2:
                packet = build.udp(A, 1, B, dice.choice((80, 53)), bytes(50))
            wrap = dice.choice((plain, vxlan, gre, build.frame))
            size = dice.choice((8, 16, 24, 64))
            pieces = wraps.pieces(packet, size, ident=dice.randrange(3))
            if dice.random() < 0.3:     # the tunnel's datagram in pieces as well
                wrap = vxlan if wrap in (plain, build.frame) else wrap
                whole = [wrap(p)[14:] for p in pieces]
                frames += [build.frame(q) for i, p in enumerate(whole)
                           for q in wraps.pieces(p, 40, ident=100 + i)]
            else:
                frames += [wrap(p) for p in pieces]
        frames += [dice.choice(frames) for _ in range(dice.randrange(4))]
        frames = [f for f in frames if dice.random() > 0.03]
        if dice.random() < 0.7:
            dice.shuffle(frames)
        for _ in range(dice.randrange(3)):
            i = dice.randrange(len(frames))
            at = dice.randrange(len(frames[i]))
            frames[i] = frames[i][:at] + bytes([frames[i][at] ^ 1 << dice.randrange(8)]) + (
                frames[i][at + 1:])
        check_against_the_oracle(frames, dice)


def check_against_the_oracle(frames, dice):
    site = Site(capacity=1 << 16)
    rules, model, now = Rules(), Model(30 * SECOND), NOW
    fates: dict[str, int] = {}
    for number, frame in enumerate(frames, 1):
        now += dice.choice((0, 1, SECOND, 29 * SECOND) if dice.random() < 0.1 else (0, 1))
        model.expire(now)
        site.run([(frame, now)])
        entries = site.entries()
        try:
            packet = capture._packet(frame, 1, False, rules, model, now)
        except capture.Undecoded as why:
            fates[why.fate] = fates.get(why.fate, 0) + 1
            assert not entries, (number, why)
        else:
            (entry,) = entries
            assert entry["sequence"] == number
            assert (entry["source_port"], entry["destination_port"]) == (packet.sport, packet.dport)
            assert packet.payload in entry["frame"]
        why, counted = account(site)
        assert {name: counted[f"fate.{name}"] for name in fates} == fates
        assert why == {name: n for name, n in model.counts.items() if n}
        assert counted["datagrams"] == model.datagrams


@pytest.mark.parametrize("family", [4, 6])
def test_what_a_mirror_leaves_behind_is_not_joined_with_the_next_datagram(family):
    """Each piece is seen twice, and the id comes again: the copy of the last piece has the right
    place and length for the next datagram, and only the checksum knows that it is not its own."""
    one, two = datagram(b"1" * 512, family=family), datagram(b"2" * 512, family=family)
    first, second = ([plain(p) for p in wraps.pieces(d, 256, ident=7)] for d in (one, two))
    a, b, c = first
    site = Site(capacity=16384, fragments=Fragments(
        max_datagrams=4, max_bytes=1 << 20, timeout=30 * SECOND, seed=1, copies=SECOND))
    site.run([(f, NOW) for f in (a, a, b, b, c, c)])
    site.run([(f, NOW + SECOND) for f in second])
    assert [entry["frame"][-512:] for entry in site.entries()] == [b"1" * 512, b"2" * 512]
    why, counted = account(site)
    assert counted["datagrams"] == 2 and why == {"joined": 4, "duplicate": 3}
    # ... and a piece that comes within that time of another one begins nothing.
    site.run([(a, NOW + 2 * SECOND - 1)])
    assert account(site)[0] == {"joined": 4, "duplicate": 4}
    site.run([(a, NOW + 2 * SECOND)])
    assert account(site)[0] == {"joined": 4, "duplicate": 4, "waiting": 1}


@pytest.mark.parametrize("family", [4, 6])
def test_pieces_of_two_datagrams_are_taken_apart_by_their_checksum(family):
    one, two = datagram(b"1" * 496, family=family), datagram(b"2" * 496, family=family)
    stale = plain(wraps.pieces(one, 256, ident=7)[-1])
    first, last = (plain(p) for p in wraps.pieces(two, 256, ident=7))
    site = Site(capacity=16384)
    site.run([(stale, NOW), (first, NOW + 1), (last, NOW + 2)])
    (entry,) = site.entries()
    assert entry["frame"].endswith(b"2" * 496) and entry["sequence"] == 3
    why, counted = account(site)
    assert why == {"joined": 1, "overlapping": 1} and counted["datagrams"] == 1


def test_a_datagram_without_a_checksum_is_believed():
    packet = bytearray(datagram(BIG))
    packet[26:28] = b"\0\0"
    site = Site(capacity=16384)
    site.run([(plain(p), NOW) for p in wraps.pieces(bytes(packet), 256, ident=7)])
    assert len(site.entries()) == 1
