"""What a TCP stream's segments come to: each rule as a few segments that a reader can follow.

Numbers are relative: 0 is the first octet behind a direction's SYN.
"""

from __future__ import annotations

import random

import pytest

from gazer.workers import stream_door
from tests.oracle import build
from tests.stream_model import ACK, FIN, RST, SYN, Segment

CLIENT, SERVER = (b"\xc0\0\2\1", 4000), (b"\xc6\x33\x64\x35", 53)
FIRST = {"c": 1000, "s": 5000}      # sequence number of octet 0


def query(name: str = "www", id: int = 1, pad: int = 0) -> bytes:
    return build.header(id) + build.question(build.labels(name, "example")) + bytes(pad)


def framed(*messages: bytes) -> bytes:
    return b"".join(len(m).to_bytes(2, "big") + m for m in messages)


A, B, C = (query(name, id) for id, name in enumerate(("a", "bb", "ccc"), 1))
AB, ABC = framed(A, B), framed(A, B, C)
END_A, END_B, END_C = len(framed(A)), len(AB), len(ABC)


class Talk:
    """One connection; what its segments come to: pairs of "c" or "s" (who sent it) and a message,
    "gap" or "end"."""

    def __init__(self, *, shake: bool = True, first: dict[str, int] | None = None, **limits: int):
        self.door = stream_door.Connections(**limits)
        self.first = first or FIRST
        self.clock = 0
        self.items: list[dict] = []
        if shake:
            assert self.c(-1, flags=SYN) == [] and self.s(-1, flags=SYN | ACK, ack=0) == []

    def segment(self, who: str, at: int, payload: bytes = b"", flags: int = ACK,
                ack: int | None = None, missing: int = 0, port: int = 4000) -> list[tuple]:
        client = (CLIENT[0], port)
        ends = (client, SERVER) if who == "c" else (SERVER, client)
        other = "s" if who == "c" else "c"
        if ack is None:
            flags &= ~ACK
        return self.told(self.door.feed(Segment(
            *ends, (self.first[who] + at) % 2**32, payload, flags,
            (self.first[other] + (ack or 0)) % 2**32, missing), self.clock))

    def told(self, items: list[dict]) -> list[tuple]:
        self.door.check()
        self.items = items
        return [("c" if i["direction"] == 0 else "s",
                 i["wire"] if i["what"] == "message" else i["what"]) for i in items]

    def c(self, at: int, payload: bytes = b"", **more) -> list[tuple]:
        return self.segment("c", at, payload, **more)

    def s(self, at: int, payload: bytes = b"", **more) -> list[tuple]:
        return self.segment("s", at, payload, **more)

    def finish(self) -> list[tuple]:
        found = self.told(self.door.finish())
        assert self.door.counts["octets_buffered"] == 0
        return found

    def count(self, what: str) -> int:
        return self.door.counts[what]


# --- framing -------------------------------------------------------------------------------------


def test_a_whole_conversation():
    t = Talk()
    assert t.c(0, framed(A), ack=0) == [("c", A)]
    assert t.s(0, framed(B), ack=END_A) == [("s", B)]
    assert t.c(END_A, flags=FIN | ACK, ack=len(framed(B))) == [("c", "end")]
    assert t.s(len(framed(B)), flags=FIN | ACK, ack=END_A + 1) == [("s", "end")]
    assert t.finish() == []
    assert t.count("opened") == 1 and t.count("gaps") == t.count("resyncs") == 0


@pytest.mark.parametrize("split", range(1, END_C))
def test_three_messages_split_anywhere(split):
    t = Talk()
    found = t.c(0, ABC[:split]) + t.c(split, ABC[split:])
    assert found == [("c", A), ("c", B), ("c", C)]
    assert t.count("octets_framed") == END_C


@pytest.mark.parametrize("split", range(1, END_C))
def test_the_two_parts_may_come_the_other_way_round(split):
    t = Talk()
    assert t.c(split, ABC[split:]) == []
    assert t.c(0, ABC[:split]) == [("c", A), ("c", B), ("c", C)]


def test_octet_by_octet():
    t = Talk()
    found = [item for i in range(END_C) for item in t.c(i, ABC[i:i + 1])]
    assert found == [("c", A), ("c", B), ("c", C)]


def test_octet_by_octet_from_the_back():
    t = Talk()
    found = [item for i in reversed(range(END_B)) for item in t.c(i, AB[i:i + 1])]
    assert found == [("c", A), ("c", B)]


def test_the_largest_message_and_the_smallest():
    big = query(pad=65535 - len(query()))
    octets = framed(big, b"", big, b"x")
    t = Talk()
    found = [item for i in range(0, len(octets), 1400) for item in t.c(i, octets[i:i + 1400])]
    assert [wire for _, wire in found] == [big, b"", big, b"x"]
    assert t.door.figures["chunks"] == 0


def test_one_segment_full_of_empty_messages():
    t = Talk()
    assert t.c(0, bytes(60000)) == [("c", b"")] * 30000


def test_data_in_the_syn():
    t = Talk(shake=False)
    assert t.c(-1, framed(A), flags=SYN) == [("c", A)]
    assert t.c(END_A, framed(B)) == [("c", B)]


def test_answers_out_of_order_come_as_they_are_sent():
    t = Talk()
    assert t.c(0, ABC) == [("c", A), ("c", B), ("c", C)]
    assert t.s(0, framed(C, A, B)) == [("s", C), ("s", A), ("s", B)]


def test_numbers_wrap():
    t = Talk(first={"c": 2**32 - 5, "s": 0})
    assert t.c(20, ABC[20:]) == []
    assert t.c(0, ABC[:20]) == [("c", A), ("c", B), ("c", C)]


# --- sent again, overlapping ---------------------------------------------------------------------


def test_sent_again_is_old():
    t = Talk()
    assert t.c(0, ABC) and t.c(0, ABC) == [] and t.c(END_A, framed(B)) == []
    assert t.count("octets_old") == END_C + END_B - END_A


def test_sent_again_with_more():
    t = Talk()
    assert t.c(0, framed(A)) == [("c", A)]
    assert t.c(0, ABC) == [("c", B), ("c", C)]


def test_the_first_octet_received_wins():
    t = Talk()
    assert t.c(5, ABC[5:]) == []                # kept
    assert t.c(0, b"\0\x1f\xff\xff\xff" + bytes(len(ABC) - 5))[0][1] != A
    t = Talk()
    assert t.c(5, ABC[5:]) == []
    assert t.c(0, ABC[:5] + bytes(len(ABC) - 5)) == [("c", A), ("c", B), ("c", C)]
    assert t.count("octets_old") == END_C - 5


def test_first_wins_in_the_unfinished_message_too():
    t = Talk()
    t.c(0, ABC[:20])
    assert t.c(0, b"\xff" * 20 + ABC[20:]) == [("c", A), ("c", B), ("c", C)]


# --- holes ---------------------------------------------------------------------------------------


def test_a_hole_waits_until_it_is_filled():
    t = Talk()
    assert t.c(0, ABC[:10]) == [] and t.c(END_A, ABC[END_A:]) == []
    assert t.s(0, ack=10) == []                 # not acknowledged
    assert t.count("octets_buffered") == END_C - END_A + 10
    assert t.c(10, ABC[10:END_A]) == [("c", A), ("c", B), ("c", C)]
    assert t.count("gaps") == 0


def test_a_hole_is_given_up_when_it_was_acknowledged():
    t = Talk()
    assert t.c(0, ABC[:10]) == [] and t.c(END_A, ABC[END_A:]) == []
    assert t.s(0, ack=END_A - 1) == []
    assert t.s(0, ack=END_A) == [("c", "gap"), ("c", B), ("c", C)]
    assert t.count("gaps") == t.count("broken_messages") == 1 and t.count("resyncs") == 0


def test_payload_first_then_its_acknowledgement():
    t = Talk()
    t.c(0, ABC[:10])
    t.c(END_A, ABC[END_A:])
    assert t.s(0, framed(A), ack=END_C) == [("s", A), ("c", "gap"), ("c", B), ("c", C)]


def test_acknowledged_but_never_seen_and_nothing_behind_is_no_hole_yet():
    t = Talk()
    t.c(0, ABC[:10])
    assert t.s(0, ack=END_C) == [] and t.count("gaps") == 0
    assert t.c(END_B, ABC[END_B:]) == []
    assert t.s(0, ack=END_C) == [("c", "gap"), ("c", C)]


def test_a_hole_that_touches_a_length_puts_out_of_step():
    t = Talk()
    t.c(0, ABC[:END_A + 1])                     # A, and one octet of B's length
    assert t.c(END_B, ABC[END_B:], ack=0) == []
    assert t.s(0, ack=END_C) == [("c", "gap"), ("c", C)]
    assert t.count("resyncs") == 1


def test_a_hole_that_ends_inside_the_message_loses_just_that():
    """What is left of B would be taken for a message if B's length were forgotten."""
    inner = framed(query("inner"))
    b = query("outer") + inner + bytes(9)
    octets = framed(A, b, C)
    t = Talk()
    assert t.c(0, octets[:END_A + 4]) == [("c", A)]
    t.c(END_A + 2 + len(query("outer")), octets[END_A + 2 + len(query("outer")):])
    assert t.s(0, ack=len(octets)) == [("c", "gap"), ("c", C)]
    assert t.count("resyncs") == 0


def test_two_holes_in_one_message():
    octets = framed(query(pad=300), B)
    t = Talk()
    t.c(0, octets[:50])
    t.c(100, octets[100:150])
    t.c(200, octets[200:])
    assert t.s(0, ack=200) == [("c", "gap"), ("c", "gap"), ("c", B)]
    assert t.count("gaps") == 2 and t.count("broken_messages") == 1


def test_a_hole_reaching_beyond_the_message():
    t = Talk()
    t.c(0, ABC[:10])
    t.c(END_A + 5, ABC[END_A + 5:])
    assert t.s(0, ack=END_C) == [("c", "gap"), ("c", C)]
    assert t.count("resyncs") == 1 and t.count("octets_skipped") == 10 + END_B - END_A - 5


def test_what_snaplen_cut_is_a_hole():
    t = Talk()
    assert t.c(0, ABC[:30], missing=END_B - 30) == [("c", A)]
    assert t.c(END_B, ABC[END_B:]) == []
    assert t.s(0, ack=END_C) == [("c", "gap"), ("c", C)]


# --- mid-stream ----------------------------------------------------------------------------------


def test_capture_that_starts_at_a_message():
    t = Talk(shake=False)
    assert t.c(0, ABC) == [("c", A), ("c", B), ("c", C)]
    assert t.s(0, framed(A)) == [("s", A)]
    assert t.count("resyncs") == 2 and t.count("opened") == 1


@pytest.mark.parametrize("start", range(1, END_A))
@pytest.mark.parametrize("step", [1, 7, END_C])
def test_capture_that_starts_within_a_message(start, step):
    t = Talk(shake=False)
    found = [i for at in range(start, END_C, step) for i in t.c(at, ABC[at:at + step])]
    assert found == [("c", B), ("c", C)]
    assert t.count("octets_skipped") == END_A - start


def test_a_bare_acknowledgement_begins_nothing():
    t = Talk(shake=False)
    assert t.c(0, ack=0) == [] and t.count("opened") == t.count("live") == 0


# --- SYN -----------------------------------------------------------------------------------------


def test_the_same_syn_again_changes_nothing():
    t = Talk()
    t.c(0, ABC[:10])
    assert t.c(-1, flags=SYN) == [] and t.s(-1, flags=SYN | ACK, ack=0) == []
    assert t.c(10, ABC[10:]) == [("c", A), ("c", B), ("c", C)]


def test_another_syn_ends_the_connection_and_begins_one():
    t = Talk()
    t.c(0, ABC[:10])
    t.c(END_A, framed(B))
    before = t.door.counts["opened"]
    assert t.c(99999, flags=SYN) == [("c", "gap"), ("c", B), ("c", "end"), ("s", "end")]
    assert {i["serial"] for i in t.items} == {1} and t.count("opened") == before + 1
    assert t.c(100000, framed(C)) == [("c", C)] and t.items[0]["serial"] == 2


def test_another_syn_ack_restarts_its_direction_alone():
    t = Talk()
    t.c(0, ABC[:10])
    assert t.s(777, flags=SYN | ACK, ack=0) == [("s", "end")]
    assert t.s(778, framed(A)) == [("s", A)]
    assert t.c(10, ABC[10:]) == [("c", A), ("c", B), ("c", C)]
    assert t.items[0]["serial"] == 1


def test_any_syn_restarts_what_was_picked_up_midway():
    t = Talk(shake=False)
    assert t.c(0, framed(A)) == [("c", A)]
    assert t.c(-1, flags=SYN) == [("c", "end")] and t.count("opened") == 2
    assert t.c(0, framed(A)) == [("c", A)]


def test_a_syn_behind_its_answer_ends_nothing():
    t = Talk(shake=False)
    assert t.s(-1, flags=SYN | ACK, ack=0) == [] and t.c(-1, flags=SYN) == []
    assert t.s(0, framed(A)) == [("s", A)] and t.c(0, framed(A)) == [("c", A)]
    assert t.count("opened") == 1


# --- FIN, RST, what comes late -------------------------------------------------------------------


def test_a_fin_waits_for_what_is_missing():
    t = Talk()
    assert t.c(END_A, ABC[END_A:], flags=FIN) == []
    assert t.c(0, framed(A)) == [("c", A), ("c", B), ("c", C), ("c", "end")]


def test_a_fin_breaks_an_unfinished_message_off():
    t = Talk()
    assert t.c(0, ABC[:END_A + 9], flags=FIN) == [("c", A), ("c", "end")]
    assert t.count("broken_messages") == 1 and t.count("octets_skipped") == 9


def test_octets_behind_a_fin_are_skipped():
    t = Talk()
    assert t.c(END_B, framed(C)) == []
    assert t.c(END_B, flags=FIN) == []
    assert t.c(END_B, framed(C)) == []
    assert t.c(0, ABC) == [("c", A), ("c", B), ("c", "end")]
    assert t.count("octets_skipped") == 3 * len(framed(C)) and t.count("octets_old") == 0


def test_a_hole_ends_at_the_fin():
    t = Talk()
    t.c(END_B, framed(C))
    t.c(END_A, flags=FIN)
    assert t.s(0, ack=END_C) == [("c", "gap"), ("c", "end")]


def test_what_comes_after_the_end_is_old():
    t = Talk()
    assert t.c(0, framed(A), flags=FIN) == [("c", A), ("c", "end")]
    assert t.s(0, framed(B), flags=FIN) == [("s", B), ("s", "end")]
    assert t.c(0, framed(A), flags=FIN) == [] and t.c(END_A + 1, framed(C)) == []
    assert t.count("octets_old") == END_A + len(framed(C))
    assert t.finish() == [] and t.count("opened") == 1


def test_a_fin_below_next_is_ignored():
    t = Talk()
    t.c(0, framed(A))
    assert t.c(5, flags=FIN) == [] and t.c(END_A, framed(B)) == [("c", B)]


@pytest.mark.parametrize("at, counts", [
    (-65535, True), (-65536, False), (0, True), (1 << 20, True), ((1 << 20) + 1, False)])
def test_a_rst_counts_within_its_window(at, counts):
    t = Talk()
    t.c(0, framed(A))
    t.c(END_A + 3, ABC[END_A + 3:])
    ends = [("c", "gap"), ("c", C), ("c", "end"), ("s", "end")]
    assert t.c(END_A + at, b"sorry", flags=RST, ack=END_C) == (ends if counts else [])
    assert (t.count("octets_buffered") == 0) == counts
    assert t.s(0, framed(A)) == ([] if counts else [("s", A)])


def test_a_rst_of_an_unseen_direction_counts():
    t = Talk(shake=False)
    t.c(-1, flags=SYN)
    assert t.s(123456789, flags=RST | ACK, ack=0) == [("c", "end")]
    assert t.c(0, framed(A)) == []


def test_end_of_input_hands_on_what_was_kept():
    t = Talk()
    t.c(0, ABC[:10])
    t.c(END_A, framed(B))
    t.clock = 7
    t.s(0, framed(A)[:9])
    assert t.finish() == [("c", "gap"), ("c", B), ("c", "end"), ("s", "end")]
    assert all(i["idle"] and i["clock"] == 307 for i in t.items)


def test_connections_end_in_the_order_of_their_last_segments():
    t = Talk(shake=False)
    for port in (4001, 4002, 4003, 4001):
        t.segment("c", 0, framed(A), port=port)
    t.finish()
    assert [i["source"][1] for i in t.items] == [4002, 4003, 4001]


# --- time, and who leaves ------------------------------------------------------------------------


@pytest.mark.parametrize("age", [299, 300, 301])
def test_idle_timeout(age):
    t = Talk()
    t.c(0, ABC[:10])
    t.c(END_A, framed(B))
    assert t.door.due == 300
    t.clock = age
    found = t.c(10, ABC[10:END_A])
    if age < 300:
        assert found == [("c", A), ("c", B)] and t.count("timed_out") == 0
    else:
        assert found == [("c", "gap"), ("c", B), ("c", "end"), ("s", "end")]
        assert t.items[0]["clock"] == 300 and t.items[0]["idle"]
        assert t.count("timed_out") == 1 and t.count("opened") == 2


def test_expire_without_a_segment():
    t = Talk()
    t.c(0, ABC[:10])
    assert t.told(t.door.expire(299)) == []
    assert t.told(t.door.expire(300)) == [("c", "end"), ("s", "end")]
    assert t.door.due == 2**64 - 1 and t.count("live") == 0


def test_the_least_recently_used_leaves():
    t = Talk(shake=False, max_streams=2)
    t.segment("c", 0, ABC[:10], port=4001)
    t.segment("c", 0, ABC[:10], port=4002)
    t.segment("c", 10, ABC[10:20], port=4001)
    assert t.segment("c", 0, framed(A), port=4003) == [("c", "end"), ("c", A)]
    assert [(i["source"][1], i["own"]) for i in t.items] == [(4002, False), (4003, True)]
    assert t.count("evicted") == 1 and t.count("live") == 2


def test_scope_and_family_tell_connections_apart():
    door = stream_door.Connections()
    ends = [(CLIENT, SERVER, b""), (CLIENT, SERVER, b"\0\x0a"),
            ((CLIENT[0] + bytes(12), 4000), (SERVER[0] + bytes(12), 53), b"")]
    for i, (a, b, scope) in enumerate(ends):
        door.feed(Segment(a, b, 0, framed(A)[:5], scope=scope), i)
    assert door.counts["live"] == 3
    for i, (a, b, scope) in enumerate(ends):
        items = door.feed(Segment(a, b, 5, framed(A)[5:], scope=scope), 9)
        assert [(i["wire"], i["scope"], i["source"]) for i in items] == [(A, scope, a)]
        assert items[0]["serial"] == i + 1


def test_both_ends_the_same():
    """From port 53 to port 53 of the same host: one direction is all that can be told."""
    door = stream_door.Connections()
    assert [i["wire"] for i in door.feed(Segment(SERVER, SERVER, 0, framed(A)), 0)] == [A]


# --- nothing false comes out ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_of_a_torn_stream_only_true_messages_come(seed):
    dice = random.Random(seed)
    # Ids and padding that make no flags of a header.
    true = [query(f"host-{i}", 0x7878 + i // 8 * 256 + i % 8)
            + b"\xff" * dice.choice([0, 3, 200, 2000]) for i in range(25)]
    octets = framed(*true)
    begins = {sum(len(m) + 2 for m in true[:i]) for i in range(len(true))}
    assert {i for i in range(len(octets))
            if stream_door.judge(octets[i:i + 300]) == "plausible"} == begins
    pieces, at = [], 0
    while at < len(octets):
        n = dice.choice([1, 30, 300, 1400])
        if dice.random() < 0.85:
            pieces.append((at, octets[at:at + n]))
        at += n
    for i in range(len(pieces)):
        j = min(len(pieces) - 1, i + dice.randrange(4))
        pieces[i], pieces[j] = pieces[j], pieces[i]
    t = Talk(shake=seed % 2 == 0)
    found = []
    for i, (at, payload) in enumerate(pieces):
        found += t.c(at, payload)
        if i % 9 == 8:
            found += t.s(0, ack=at)
    found += t.finish()
    messages = [m for who, m in found if who == "c" and isinstance(m, bytes)]
    assert [m for m in true if m in messages] == messages and len(messages) > 2
    assert t.count("gaps") == sum(m == "gap" for _, m in found) > 0
