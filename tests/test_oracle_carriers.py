"""The oracle's rules for what carries messages: streams, fragments, tunnels, transfers, multicast;
one tiny capture each, and dnspython where it can tell."""

from __future__ import annotations

from collections import Counter

import dns.message
import dns.rdatatype
import dns.xfr
import dns.zone
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import CAPTURES
from tests.oracle import build, capture, events, transfers, wraps
from tests.oracle.fragments import Fragments
from tests.oracle.framing import Framing, More, plausible
from tests.oracle.packets import Reader
from tests.oracle.parts import Level
from tests.oracle.wraps import ACK, FIN, RST, SYN, Talk, framed
from tests.test_oracle_reading import Listener

NS = 1_000_000_000
T0 = 1_700_000_000 * NS
CLIENT, SERVER = ("198.51.100.7", 4000), ("192.0.2.53", 53)
A = build.query("a.example.", id=1)
B = build.query("b.example.", id=2)
C = build.query("c.example.", "TXT", id=3)
RA, RB = build.reply(A, "a.example. 60 IN A 192.0.2.1"), build.reply(B)
RC = build.reply(C, f'c.example. 60 IN TXT "{"z" * 200}"')


def run(tmp_path, packets, **rules) -> events.Reading:
    """`packets` are IP packets, or (seconds after T0, packet); without a time a millisecond on."""
    entries, at = [], 0.0
    for packet in packets:
        at, packet = packet if isinstance(packet, tuple) else (at + 0.001, packet)
        entries.append((T0 + round(at * NS), build.frame(packet)))
    build.write_pcap(tmp_path / "c.pcap", entries, nanoseconds=True)
    reading = events.expected(tmp_path / "c.pcap", **rules)
    s = reading.streams
    assert s["octets"] == s["framed"] + s["old"] + s["skipped"]
    return reading


def asked(reading: events.Reading) -> list[str]:
    """status and name of each transaction."""
    return [f'{e.record["status"]} {(e.record.get("query") or e.record["reply"])[0]["name"]}'
            for e in reading.events if "status" in e.record]


# ------------------------------------------------------------------------------------- framing


@given(st.lists(st.integers(1, 9), max_size=40))
def test_any_split_gives_the_same_messages(sizes):
    octets = framed(A, b"", RC, b"x", B)
    framing, out, at = Framing(True, Counter()), [], 0
    for size in [*sizes, len(octets)]:
        out += framing.feed(octets[at : at + size])
        at += size
    assert out == [A, b"", RC, b"x", B]
    assert framing.counts["framed"] == len(octets)


@pytest.mark.parametrize("begin, end, left", [
    (2, 2 + len(A), [B, RC]),               # all behind the length: the message alone
    (20, 21, [B, RC]), (20, 2 + len(A), [B, RC]),
    (1, 5, [B, RC]), (0, 3, [B, RC]),       # a length is touched: found again at the next one
    (20, 3 + len(A), [RC]),                 # beyond its end
])
def test_a_hole_loses_what_it_touches(begin, end, left):
    octets, counts = framed(A, B, RC), Counter()
    framing = Framing(True, counts)
    got = framing.feed(octets[:begin])
    framing.hole(end - begin)
    got += framing.feed(octets[end:])
    framing.end()
    assert got == left
    assert counts["framed"] + counts["skipped"] + end - begin == len(octets)


def test_a_second_hole_in_a_message_that_is_lost():
    octets, counts = framed(RC, A), Counter()
    framing = Framing(True, counts)
    framing.feed(octets[:10])
    framing.hole(5)
    framing.feed(octets[15:20])
    framing.hole(3)
    assert framing.feed(octets[23:]) == [A]
    assert counts["lost messages"] == 1 and not counts["resyncs"]


@pytest.mark.parametrize("message, yes", [
    (A, True), (RA, True), (A[:11], False), (build.header(1, 0x0140) + A[12:], False),
    (build.header(1, 0x1900) + A[12:], False), (build.header(1, 0x2800) + A[12:], True),
    (build.header(1, 0, (2, 0, 0, 0)) + A[12:] * 2, False),
    (build.header(1, 0, (0, 0, 0, 0)), False), (build.header(1, 0x8000, (0, 0, 0, 0)), False),
    (build.header() + build.question(b"\xc0\x0c"), False),
    (build.header() + build.question(b"\0", 1, 2), False),
    (build.header() + build.question(build.labels(*[b"x" * 63] * 3, b"x" * 61), 1, 255), True),
    (build.header() + build.question(build.labels(*[b"x" * 63] * 3, b"x" * 62), 1, 255), False),
    (build.header() + build.question(b"\0")[:-1], False),
    (build.header(1, 0x8400, (0, 1, 0, 0)) + build.record(b"\1a\0", 1, bytes(4)), True),
    (build.header(1, 0x0400, (0, 1, 0, 0)) + build.record(b"\1a\0", 1, bytes(4)), False),
    (build.header(1, 0xA400, (0, 1, 0, 0)) + build.record(b"\1a\0", 1, bytes(4)), False),
    (build.header(1, 0x8400, (0, 1, 0, 0)) + build.record(b"\1a\0", 1, bytes(4), rdlength=5),
     False),
    (build.header(1, 0x8400, (0, 1, 0, 0)) + build.record(b"\xc0\x0c", 1, bytes(4)), False),
])
def test_what_is_plausible_and_when_that_is_known(message, yes):
    """Whatever comes behind makes no difference, and once decided it stays so."""
    octets = framed(message) + bytes(300)
    assert plausible(octets) == yes
    for size in range(len(octets)):
        try:
            assert plausible(octets[:size]) == yes
        except More:
            assert size < 2 + 12 + 255 + 12


# ------------------------------------------------------------------------------------- streams


def test_every_order_of_segments_gives_the_same(tmp_path):
    talk = Talk(CLIENT, SERVER, (2**32 - 20, 2**32 - 700))       # both wrap
    start = talk.opening()
    ask = [talk.segment(0, framed(A, B, C)[at : at + 20]) for at in range(0, 96, 20)]
    tell = [talk.segment(1, framed(RB, RC, RA)[at : at + 100]) for at in range(0, 400, 100)]
    want = run(tmp_path, [*start, *ask, *tell, *talk.closing()])
    assert asked(want) == ["success b.example.", "success c.example.", "success a.example."]
    assert want.streams["gaps"] == 0
    mixed = [*start, *reversed(ask), *reversed(tell), *ask, *tell, *talk.closing()]
    again = run(tmp_path, mixed)
    assert sorted(asked(again)) == sorted(asked(want))
    assert again.streams["old"] == want.streams["octets"] == again.streams["octets"] // 2


def test_the_first_octet_received_wins(tmp_path):
    talk = Talk(CLIENT, SERVER)
    wire = framed(A)
    start, late = talk.opening(), talk.segment(0, wire[:10])
    first, other = talk.segment(0, wire[10:]), framed(B)[10:]
    reading = run(tmp_path, [*start, first, talk.segment(0, other, back=len(other)), late])
    assert asked(reading) == ["no_reply a.example."]
    assert reading.streams["old"] == len(other)


def test_data_in_the_syn_and_a_syn_again(tmp_path):
    talk = Talk(CLIENT, SERVER)
    syn = talk.segment(0, framed(A), SYN)
    other = Talk(CLIENT, SERVER, (5000, 6000))
    reading = run(tmp_path, [syn, syn, *other.opening(), *other.says(0, framed(B))])
    assert asked(reading) == ["no_reply a.example.", "no_reply b.example."]
    assert reading.streams["opened"] == 2


def test_a_hole_is_given_up_when_it_is_acknowledged(tmp_path):
    talk = Talk(CLIENT, SERVER)
    start = talk.opening()
    lost, kept = talk.segment(0, framed(A)), talk.segment(0, framed(B))
    early = talk.segment(1, ack=1001 + len(framed(A)) - 1)
    full = talk.segment(1, ack=1001 + len(framed(A)))
    waits = run(tmp_path, [*start, kept, early, (70, build.udp(*CLIENT, SERVER[0], 80, b""))],
                streams_timeout=61)
    assert waits.streams["gaps"] == 1 and waits.streams["timed out"] == 1
    assert [e.due[:2] for e in waits.events] == [(T0 + 121_005_000_000, 5)]
    given_up = run(tmp_path, [*start, kept, full])
    assert given_up.streams["gaps"] == 1
    assert [e.due[:2] for e in given_up.events] == [(T0 + 60_005_000_000, 5)]
    # Acknowledged before anything follows it, it is no hole yet; what comes too late is old.
    assert run(tmp_path, [*start, full]).streams["gaps"] == 0
    assert asked(run(tmp_path, [*start, full, kept, lost])) == [
        "no_reply a.example.", "no_reply b.example."]
    assert run(tmp_path, [*start, full, kept, full, lost]).streams["gaps"] == 1
    late = run(tmp_path, [*start, kept, full, lost])
    assert asked(late) == ["no_reply b.example."]
    assert late.streams["old"] == len(framed(A))


def test_picked_up_in_the_middle(tmp_path):
    talk = Talk(CLIENT, SERVER)
    wire = framed(C, A, B)
    middle = [talk.segment(0, wire[at : at + 9]) for at in range(0, len(wire), 9)][2:]
    reading = run(tmp_path, [talk.segment(1), *middle])
    assert asked(reading) == ["no_reply a.example.", "no_reply b.example."]
    assert reading.streams["resyncs"] == 1
    assert reading.streams["skipped"] == len(framed(C)) - 18


def test_fin_and_rst_end_and_are_remembered(tmp_path):
    talk = Talk(CLIENT, SERVER)
    start, data = talk.opening(), talk.segment(0, framed(A))
    end = talk.closing()
    reading = run(tmp_path, [*start, *end[:1], data, *end[1:], data, data])
    assert asked(reading) == ["no_reply a.example."]        # the FIN waited for its octets
    assert reading.streams["old"] == 2 * len(framed(A))
    late = run(tmp_path, [*start, data, *end, (310, data)])
    assert late.streams["opened"] == 2                      # forgotten by then, and out of step
    assert late.streams["timed out"] == 1
    wild = Talk(CLIENT, SERVER)
    start = wild.opening()
    rst = build.tcp(*CLIENT, *SERVER, seq=1001 + (1 << 20) + 1, flags=RST)
    fair = build.tcp(*CLIENT, *SERVER, seq=1001 + (1 << 20), flags=RST)
    data = wild.segment(0, framed(A))
    assert asked(run(tmp_path, [*start, rst, data])) == ["no_reply a.example."]
    assert asked(run(tmp_path, [*start, fair, data])) == []


def test_only_its_own_direction_is_begun_anew_by_a_syn_with_ack(tmp_path):
    talk = Talk(CLIENT, SERVER)
    start = talk.opening()
    other = build.tcp(*SERVER, *CLIENT, seq=70_000, ack=1001, flags=SYN | ACK)
    answer = build.tcp(*SERVER, *CLIENT, framed(RA), seq=70_001, ack=1001, flags=ACK)
    reading = run(tmp_path, [*start, other, talk.segment(0, framed(A)), answer])
    assert asked(reading) == ["success a.example."]
    assert reading.streams["opened"] == 1


def test_what_creates_a_connection(tmp_path):
    for flags, opened in ((ACK, 0), (FIN | ACK, 1), (RST, 1), (SYN, 1)):
        reading = run(tmp_path, [build.tcp(*CLIENT, *SERVER, flags=flags)])
        assert reading.streams["opened"] == opened


def test_a_snaplen_makes_holes(tmp_path):
    talk = Talk(CLIENT, SERVER)
    frames = [build.frame(p) for p in [*talk.opening(), *talk.says(0, framed(C, A))]]
    entries = [(T0 + at, frame[:70], len(frame)) for at, frame in enumerate(frames)]
    more = build.frame(talk.segment(0, framed(B)))
    build.write_pcap(tmp_path / "c.pcap", [*entries, (T0 + NS, more)], nanoseconds=True)
    reading = events.expected(tmp_path / "c.pcap")
    # The hole passes A's end, which nobody can know: a question is found behind it.
    assert asked(reading) == ["no_reply b.example."]
    assert reading.streams["gaps"] == 1 and reading.streams["resyncs"] == 1


# ----------------------------------------------------------------------------------- transfers


@pytest.mark.parametrize("name", ["tcp.pcap", "transfers.pcap"])
def test_transfers_are_what_dnspython_makes_of_them(name):
    """Complete where dnspython's own state machine says so, with the records that its parser has;
    an AXFR loads as a zone."""
    listener = Listener(CAPTURES / name)
    by_id: dict[int, list[dns.message.Message]] = {}
    zones = 0
    for found in listener.messages.values():
        for packet, payload, read in found:
            if packet.tcp and read.is_reply:
                by_id.setdefault(read.id, []).append(payload)
    full = events.expected(CAPTURES / name, detail="full")
    done = [e.record for e in full.events if "complete" in e.record]
    assert len(done) in (2, 6)
    for record in done:
        wires = by_id[record["tx_id"]]
        parsed = [dns.message.from_wire(w, one_rr_per_rrset=True, xfr=True, multi=True,
                                        continue_on_error=True) for w in wires]
        assert record["messages"] == len(wires)
        assert record["records"] == sum(len(m.answer) for m in parsed)
        assert record["bytes"] == sum(map(len, wires))
        assert record["complete"] is True
        origin = parsed[0].question[0].name
        rdtype = parsed[0].question[0].rdtype
        if rdtype == dns.rdatatype.AXFR:
            zone = dns.zone.Zone(origin, relativize=False)
            with dns.xfr.Inbound(zone, rdtype) as inbound:
                assert [inbound.process_message(m) for m in parsed] == (
                    [False] * (len(parsed) - 1) + [True])
            zones += 1
    assert zones


def soa(serial: int) -> transfers.dns.Record:
    return transfers.dns.Record(1, "answer", (), 6, 1, 60, f"ns. h. {serial} 1 2 3 4")


def address() -> transfers.dns.Record:
    return transfers.dns.Record(1, "answer", (), 1, 1, 60, "192.0.2.1")


S7, S5, S6, X = soa(7), soa(5), soa(6), address()


@pytest.mark.parametrize("rdtype, messages, ends, complete", [
    (252, [[S7, X, S7]], 1, True), (252, [[S7], [X], [X, X], [S7]], 4, True),
    (252, [[S7, S7]], 1, True), (252, [[S7], [X]], 0, False), (252, [[X], [X, S7]], 2, False),
    (252, [[X, S7]], 1, False), (251, [[S7]], 1, True), (251, [[S7, X], [S7]], 2, True),
    (251, [[S7, S5, X, S7, X, S7]], 1, True), (251, [[S7, S5, S7, S7]], 1, True),
    (251, [[S7, S5], [X, S6], [X], [S6, X, S7, X], [S7]], 5, True),
    (251, [[S7, S5, X, S7, X]], 0, False), (251, [[S7, S7]], 1, True),
])
def test_where_a_transfer_ends(rdtype, messages, ends, complete):
    transfer = None
    for number, records in enumerate(messages, 1):
        question = transfers.dns.Record(0, "question", (), rdtype, 1)
        read = transfers.dns.Message(1, 0x8400, (question, *records), None)
        seen = events.Seen(events.Moment(0, number, 0), None, read, 1, None)
        if transfer is None:
            transfer = transfers.Transfer(None, seen, None)
        else:
            transfer.add(seen)
        assert transfer.done == (number == ends)
    assert transfer.complete == complete


def test_a_transfer_that_falls_silent_is_due_after_its_last_message(tmp_path):
    query = build.query("z.", "AXFR", id=4)
    first = build.reply(query, "z. 60 IN SOA n. h. 1 2 3 4 5")
    more = build.reply(query, "z. 60 IN NS n.")
    talk = Talk(CLIENT, SERVER)
    packets = [*talk.opening(), *talk.says(0, framed(query)), *talk.says(1, framed(first)),
               (30, talk.segment(1, framed(more))), (91, build.udp(*CLIENT, *SERVER, A))]
    reading = run(tmp_path, packets, detail="full")
    event = reading.events[0]
    assert event.due[:2] == (T0 + 90 * NS, 8) and event.ts_ns == T0 + 30 * NS
    assert (event.record["complete"], event.record["messages"]) == (False, 2)
    assert [r["type"] for r in event.record["reply"]] == ["AXFR", "SOA", "NS"]
    assert event.record["reply_size"] == event.record["bytes"] == len(first) + len(more)
    assert event.record["latency"].ns == 30 * NS - 4_000_000


# ----------------------------------------------------------------------------------- fragments


PACKET = build.udp(*SERVER, *CLIENT, RC)
P1, P2, P3 = wraps.pieces(PACKET, 88)


def fate(tmp_path, packets, **rules) -> tuple[dict[str, int], int]:
    """What became of the pieces, and how many messages were read."""
    reading = run(tmp_path, packets, **rules)
    return dict(+reading.pieces), reading.counts["messages"]


def altered(piece: bytes) -> bytes:
    return piece[:-1] + bytes([piece[-1] ^ 1])


@pytest.mark.parametrize("packets, counts, messages", [
    ([P1, P2, P3], {"joined": 2}, 1), ([P3, P2, P1], {"joined": 2}, 1),
    ([P1, P1, P2, P3], {"joined": 2, "duplicate": 1}, 1),
    ([P1, P2, P3, P3], {"joined": 2, "duplicate": 1}, 1),
    ([(0, P1), (0, P2), (0, P3), (1, P3)], {"joined": 2, "waiting": 1}, 1),
    ([P1, P2, P1, altered(P1), P3, P2], {"duplicate": 1, "overlapping": 5}, 0),
    ([P1, wraps.pieces(PACKET, 104)[1], P2, P3], {"overlapping": 4}, 0),
    ([P3, wraps.pieces(PACKET + b"x", 88)[2]], {"overlapping": 2}, 0),
    ([wraps.pieces(PACKET, 61)[0], P1, P2, P3], {"bad": 1, "joined": 2}, 1),
    ([build.ipv4("192.0.2.1", "192.0.2.2", 17, bytes(64), offset=65480)], {"bad": 1}, 0),
    ([build.ipv4("192.0.2.1", "192.0.2.2", 17, b"", offset=8)], {"bad": 1}, 0),
    ([(0, P1), (29.999999999, P2), (29.999999999, P3)], {"joined": 2}, 1),
    ([(0, P1), (30, P2), (30, P3)], {"expired": 1, "waiting": 2}, 0),
    ([(0, P1), (1, altered(P1)), (30, P1), (30, P2), (30, P3)], {"overlapping": 2, "joined": 2}, 1),
    (wraps.pieces(build.udp("192.0.2.1", 443, "192.0.2.2", 8000, bytes(100)), 16),
     {"foreign": 7}, 0),
    (wraps.pieces(build.udp("192.0.2.1", 443, "192.0.2.2", 8000, bytes(100)), 16)[::-1],
     {"foreign": 7}, 0),
    (wraps.pieces(build.udp("2001:db8::1", 53, "2001:db8::2", 8000, RC), 96), {"joined": 2}, 1),
])
def test_pieces(tmp_path, packets, counts, messages):
    assert fate(tmp_path, packets) == (counts, messages)


def test_pieces_of_other_datagrams_do_not_mix(tmp_path):
    other = wraps.pieces(PACKET, 88, ident=2)
    assert fate(tmp_path, [P1, other[1], other[2]]) == ({"waiting": 3}, 0)
    inside = [wraps.ip_in_ip("192.0.2.1", "192.0.2.2", piece) for piece in (P2, P3)]
    assert fate(tmp_path, [P1, *inside]) == ({"waiting": 3}, 0)
    assert fate(tmp_path, [wraps.ip_in_ip(f"192.0.2.{n}", "192.0.2.9", piece)
                           for n, piece in enumerate((P1, P2, P3))]) == ({"joined": 2}, 1)


def test_pieces_of_pieces(tmp_path):
    """A datagram in pieces, each in a tunnel whose packets are in pieces too."""
    outer = [wraps.ip_in_ip("2001:db8::1", "2001:db8::2", piece) for piece in (P1, P2, P3)]
    all_of_it = [one for n, packet in enumerate(outer) for one in wraps.pieces(packet, 48, n)]
    assert fate(tmp_path, all_of_it) == ({"joined": len(all_of_it) - 1}, 1)


# ------------------------------------------------------------------------------------- tunnels


@pytest.mark.parametrize("frame, level", [
    (build.frame(wraps.mpls(PACKET, (3, 99)), ethertype=0x8847), Level("mpls", 99)),
    (build.frame(build.pppoe(PACKET, session=9), ethertype=0x8864, vlan=(4,)),
     Level("pppoe", 9, None, (4,))),
    (build.frame(wraps.ip("192.0.2.1", "192.0.2.2", 47, wraps.gre(PACKET, 0x0800, key=2**31))),
     Level("gre", 2**31, ("192.0.2.1", "192.0.2.2"))),
    (build.frame(wraps.ip("::1", "::2", 47, wraps.erspan(build.frame(PACKET), 2, 1023))),
     Level("erspan", 1023, ("::1", "::2"))),
    (build.frame(wraps.ip("::1", "::2", 47, wraps.erspan(build.frame(PACKET), 1))),
     Level("erspan", None, ("::1", "::2"))),
    (build.frame(build.udp("::1", 9, "::2", 6081, wraps.geneve(PACKET, 7, protocol=0x0800))),
     Level("geneve", 7, ("::1", "::2"))),
    (build.frame(wraps.ip_in_ip("::1", "::2", PACKET)), Level("ip", None, ("::1", "::2"))),
])
def test_levels(frame, level):
    packet = capture.decode(frame, 1, cut=False)
    assert packet.levels == (level,)
    assert (packet.payload, packet.vlan, packet.vlans) == (RC, (), list(level.vlan))


@pytest.mark.parametrize("frame, fate", [
    (build.frame(wraps.mpls(PACKET, [5] * 17), ethertype=0x8847), "tunnel_header"),
    (build.frame(wraps.mpls(b"\x10" + bytes(30)), ethertype=0x8847), "other_protocol"),
    (build.frame(wraps.ip("::1", "::2", 47, wraps.gre(PACKET, 0x0800, version=2))),
     "other_transport"),
    (build.frame(wraps.ip("::1", "::2", 47, b"\0\0\x88")), "tunnel_header"),
    (build.frame(build.udp("::1", 9, "::2", 4789, wraps.vxlan(build.frame(PACKET), 1, flags=0))),
     "other_port"),
    (build.frame(build.udp("::1", 9, "::2", 4789, bytes(7))), "tunnel_header"),
    (build.frame(build.udp("::1", 4789, "::2", 9, bytes(7))), "other_port"),
    (build.frame(build.udp("::1", 9, "::2", 4789, wraps.vxlan(bytes(13), 1))), "link_header"),
    (build.frame(wraps.ip_in_ip("::1", "::2", wraps.ip_in_ip("::1", "::2", wraps.ip_in_ip(
        "::1", "::2", wraps.ip_in_ip("::1", "::2", wraps.ip_in_ip("::1", "::2", PACKET)))))),
     "tunnel_depth"),
    (build.frame(build.udp("::1", 9, "::2", 4789, wraps.vxlan(
        build.frame(PACKET, vlan=[1] * 9), 1)), vlan=[2] * 8), "too_many_tags"),
])
def test_what_is_not_opened(frame, fate):
    with pytest.raises(capture.Undecoded) as why:
        capture.decode(frame, 1, cut=False)
    assert why.value.fate == fate


@given(st.binary(max_size=120), st.sampled_from([0x0800, 0x86DD, 0x8847, 0x8864, 0x8100]),
       st.booleans())
def test_any_octets_are_a_packet_or_a_reason(data, ethertype, cut):
    for read in (lambda w: Reader(events.Rules()).ethertype(ethertype, w),
                 lambda w: Reader(events.Rules(), family=6).transport(data[:1] and data[0], w)):
        try:
            packet = read(capture.Window(data, len(data) + cut * 1000))
        except capture.Undecoded as why:
            assert why.fate in FATES
            continue
        assert len(packet.payload) <= packet.length


FATES = {"other_port", "other_transport", "other_protocol", "icmp_error", "fragment",
         "link_header", "too_many_tags", "tunnel_header", "tunnel_depth", "ip_header", "ip_length",
         "ip_extension", "transport_header", "udp_length", "tcp_header"}


def test_pieces_wait_in_bounded_time():
    fragments = Fragments(30)
    with pytest.raises(capture.Piece) as piece:
        capture.decode(build.frame(P1), 1, cut=False)
    with pytest.raises(capture.Undecoded):
        fragments.take(piece.value, 100)
    fragments.expire(129)
    assert fragments.counts["waiting"] == 1
    fragments.expire(130)
    assert fragments.counts["waiting"] == 0 and fragments.counts["expired"] == 1
