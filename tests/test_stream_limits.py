"""TCP streams at their limits: room that ends, floods and bombs, with memory and time."""

from __future__ import annotations

import random

import pytest

from gazer.workers import stream_door
from tests.stream_model import ACK, FIN, RST, SYN, Model, Segment
from tests.test_stream import ABC, CLIENT, END_A, END_B, END_C, SERVER, A, B, C, Talk, framed, query
from tests.test_stream_model import PAIRS, conversation, disturb

CHUNK, ROOM, MOST_RUNS = stream_door.CHUNK_SIZE, stream_door.CHUNK_ROOM, stream_door.MOST_RUNS


# --- the room of one connection ------------------------------------------------------------------


def test_room_ends_behind_a_hole():
    """Four chunks: three are kept, the segment that needs two more gives the hole up."""
    octets = framed(*(query(f"q{i}", pad=100) for i in range(40)))
    true = [m for _, m in Talk().c(0, octets)]
    t = Talk(max_bytes_each=4 * CHUNK)
    assert t.c(200, octets[200:200 + 3 * ROOM]) == []
    found = t.c(200 + 3 * ROOM, octets[200 + 3 * ROOM:200 + 5 * ROOM])
    assert found[0] == ("c", "gap") and t.count("gaps") == t.count("crowded") == 1
    assert [m for m in true if m in [m for _, m in found]] == [m for _, m in found[1:]]
    assert t.door.figures["chunks"] <= 4 * CHUNK


def test_no_room_between_a_hole_and_what_is_kept():
    """What does not fit stands in the hole itself: the hole that is given up ends with it."""
    t = Talk(max_bytes_each=CHUNK)
    assert t.c(END_B, framed(C)) == []
    assert t.c(END_A, framed(B)) == [("c", "gap"), ("c", B), ("c", C)]


def test_no_room_for_the_message_under_way():
    """It is broken off; the next one is read."""
    big = query(pad=10 * ROOM)
    octets = framed(big, B)
    t = Talk(max_bytes_each=4 * CHUNK)
    found = [item for i in range(0, len(octets), 300) for item in t.c(i, octets[i:i + 300])]
    assert found == [("c", B)]
    assert t.count("broken_messages") == 1 and t.count("gaps") == t.count("resyncs") == 0
    assert t.count("crowded") == 1


def test_no_room_for_the_message_under_way_while_a_hole_follows():
    big = query(pad=3 * ROOM)
    octets = framed(big, B)
    t = Talk(max_bytes_each=2 * CHUNK)
    assert t.c(len(framed(big)) - 50, octets[len(framed(big)) - 50:]) == []
    assert t.c(0, octets[:ROOM]) == []
    assert t.c(ROOM, octets[ROOM:2 * ROOM]) == [("c", "gap"), ("c", B)]
    assert t.count("broken_messages") == t.count("gaps") == 1


def test_no_room_at_all():
    """Whole messages are handed on in place; nothing else can be."""
    t = Talk(max_bytes_each=0, max_bytes=0)
    assert t.c(0, ABC + b"\0") == [("c", A), ("c", B), ("c", C)]
    assert t.c(END_C + 1, b"\x1d" + A) == []
    assert t.c(END_C + 2 + len(A), framed(B)) == [("c", B)]
    assert t.c(END_C + 500, framed(C)) == [("c", "gap"), ("c", C)]
    assert t.door.figures["chunks_touched"] == 0


@pytest.mark.parametrize("order", ["up", "down"])
def test_so_many_runs_and_no_more(order):
    """One octet at every other number: the model counts the runs."""
    door, model = stream_door.Connections(), Model(max_runs=MOST_RUNS)
    numbers = list(range(1, 6 * MOST_RUNS, 2))
    if order == "down":
        numbers.reverse()
    octets = framed(*[query()] * 20)
    feed = [Segment(CLIENT, SERVER, 2**32 - 100, b"", SYN)] + [
        Segment(CLIENT, SERVER, (n - 99) % 2**32, octets[n:n + 1]) for n in numbers]
    for s in feed:
        items = door.feed(s, 0)
        assert [(i["what"], i["wire"]) for i in items] == [
            (i[0], i[6]) for i in model.feed(s, 0)]
        assert door.counts == model.totals()
        door.check()
    assert door.counts["gaps"] == {"up": 2 * MOST_RUNS, "down": 1}[order]
    assert door.figures["chunks_touched"] == (MOST_RUNS + 1) * CHUNK     # and the message under way


def test_one_segment_over_all_runs():
    octets = framed(*[query()] * 20)
    t = Talk()
    for n in range(1, 2 * MOST_RUNS, 2):
        t.c(n, octets[n:n + 1])
    assert t.c(0, octets) == [("c", query())] * 20
    assert t.count("octets_old") == MOST_RUNS and t.door.figures["chunks"] == 0


def test_a_hole_filled_octet_by_octet_leaves_full_chunks():
    octets = framed(query(pad=4000))
    t = Talk()
    numbers = list(range(1, 1 + 3000))
    for start in range(0, 3000, 50):        # 25 runs of one octet each, then what is between them
        part = numbers[start:start + 50]
        for n in part[::2] + part[1::2]:
            t.c(n, octets[n:n + 1])
    assert t.door.figures["chunks"] <= (3000 // ROOM + 2) * CHUNK


# --- the room of all -----------------------------------------------------------------------------


def test_who_holds_something_leaves_first():
    """Of those that hold something, the one longest without a segment; the others give no room."""
    t = Talk(shake=False, max_bytes=5 * CHUNK)
    for port in (4001, 4002, 4003):
        t.segment("c", 0, framed(A), port=port)         # hold nothing
    for port in (4004, 4005, 4006):
        t.segment("c", 0, framed(A) + ABC[:10], port=port)
    t.segment("c", END_A + 10, b"", port=4004)
    found = t.segment("c", 0, ABC[:20] + bytes(ROOM), port=4007)
    assert found == [("c", "end")] and t.items[0]["source"][1] == 4005
    assert t.count("live") == 6 and t.count("evicted") == 1


def test_the_connection_itself_is_not_pushed_out_by_its_own_segment():
    t = Talk(max_bytes=2 * CHUNK)
    assert t.c(0, framed(A) + ABC[:10]) == [("c", A)]
    assert t.c(END_A + 10, ABC[10:]) == [("c", A), ("c", B), ("c", C)]
    assert t.count("evicted") == 0


@pytest.mark.parametrize("seed", range(24))
def test_any_traffic_with_hardly_any_room(seed):
    """Links, sums and limits hold after each segment; check() looks at all of them."""
    dice = random.Random(seed)
    door = stream_door.Connections(
        max_streams=dice.choice([1, 2, 5]), max_bytes=CHUNK * dice.choice([0, 1, 3, 8, 30]),
        max_bytes_each=CHUNK * dice.choice([0, 1, 2, 4, 10]), timeout=dice.choice([3, 1000]))
    waiting = [disturb(dice, conversation(dice, dice.choice(PAIRS), 1500)) for _ in range(6)]
    clock = 0
    while any(waiting):
        queue = dice.choice([w for w in waiting if w])
        for _ in range(dice.randrange(1, 8)):
            if queue:
                clock += dice.randrange(2)
                door.feed(queue.pop(0), clock)
                door.check()
    door.finish()
    assert door.figures["chunks"] == door.counts["octets_buffered"] == door.counts["live"] == 0


@pytest.mark.parametrize("seed", range(10))
def test_little_room_brings_nothing_false(seed):
    dice = random.Random(seed)
    true = [query(f"host-{i}", 0x7878 + i // 8 * 256 + i % 8)
            + b"\xff" * dice.choice([0, 3, 200, 2000]) for i in range(40)]
    octets = framed(*true)
    t = Talk(max_bytes_each=CHUNK * dice.choice([1, 3, 6]), max_bytes=CHUNK * 10)
    parts, at = [], 0
    while at < len(octets):
        n = dice.choice([1, 30, 300, 1400])
        parts.append((at, octets[at:at + n]))
        at += n
    for i in range(len(parts)):
        j = min(len(parts) - 1, i + dice.choice([0, 0, 0, 1, 5]))
        parts[i], parts[j] = parts[j], parts[i]
    found = [m for at, payload in parts for _, m in t.c(at, payload)]
    messages = [m for m in found + [m for _, m in t.finish()] if isinstance(m, bytes)]
    assert [m for m in true if m in messages] == messages and len(messages) > 2


# --- bombs ---------------------------------------------------------------------------------------


def pace(segments: list[Segment], **limits: int) -> tuple[stream_door.Connections, float]:
    """The door that took them, and CPU ns for each segment."""
    door = stream_door.Connections(**limits)
    spent, _, most = door.time(segments)
    door.check()
    assert most < 50_000_000                # for a hundred of them, whichever
    return door, spent / len(segments)


def good_pair(door: stream_door.Connections) -> None:
    """A conversation after the bomb comes through."""
    a, b = (b"\x0a\0\0\1", 5001), SERVER
    found = []
    for s in (Segment(a, b, 9, b"", SYN), Segment(b, a, 99, b"", SYN | ACK, 10),
              Segment(a, b, 10, framed(A)[:7], ACK, 100),
              Segment(a, b, 17, framed(A)[7:], ACK, 100),
              Segment(b, a, 100, framed(B), ACK, 10 + END_A)):
        found += [i["wire"] for i in door.feed(s, 0) if i["serial"] == door.counts["opened"]]
    assert found == [A, B]


def test_bomb_of_single_octets():
    """100,000 octets, each at every other number: each gives up one hole."""
    door, ns = pace([Segment(CLIENT, SERVER, 1000, b"", SYN)] + [
        Segment(CLIENT, SERVER, 1002 + 2 * i, b"x") for i in range(100_000)])
    assert door.figures["chunks_touched"] <= (MOST_RUNS + 1) * CHUNK and ns < 20_000
    good_pair(door)


@pytest.mark.parametrize("size", [1, 20, 500])
def test_bomb_of_windows_full_of_holes(size):
    """64 KiB windows with every other piece missing, then the pieces between, again and again."""
    dice = random.Random(size)
    segments = [Segment(CLIENT, SERVER, 2**32 - 1, b"", SYN)]
    for window in range(0, 300_000, 65536):
        numbers = list(range(window, window + 65536, size))[:6000]
        rest = numbers[::2]
        dice.shuffle(rest)
        segments += [Segment(CLIENT, SERVER, n, b"\xff" * size) for n in numbers[1::2] + rest]
    door, ns = pace(segments, max_bytes_each=256 * 1024)
    assert door.figures["chunks_touched"] <= 256 * 1024 and ns < 20_000
    good_pair(door)


def test_bomb_of_half_open_connections():
    """150,000 forged SYNs: so many cells as max_streams says, no chunk; who talks last stays."""
    flood = [Segment((i.to_bytes(4, "big"), i % 65536), SERVER, i, b"", SYN)
             for i in range(150_000)]
    door, ns = pace(flood, max_streams=65_536)
    figures = door.figures
    assert figures["cells_touched"] == 65_536 * figures["connection"] <= 65_536 * 192
    assert figures["chunks_touched"] == 0 and figures["buckets"] <= 4 * 2 * 65_536
    assert door.counts["live"] == 65_536 and ns < 20_000
    good_pair(door)


def test_a_flood_leaves_who_goes_on_talking():
    t = Talk(max_streams=100)
    octets = framed(query(pad=3000))
    for i in range(30):
        assert t.c(i * 100, octets[i * 100:i * 100 + 100]) == []
        for k in range(90):
            t.door.feed(Segment((bytes([10, i, 0, k]), 9), SERVER, 5, b"", SYN), 0)
    assert t.c(3000, octets[3000:]) == [("c", query(pad=3000))]


def test_bomb_of_rst_and_fin():
    flood = [Segment((i.to_bytes(4, "big"), 9), SERVER, i, b"", (RST, FIN)[i % 2])
             for i in range(20_000)]
    door, ns = pace(flood, max_streams=100)
    assert door.counts["live"] == 100 and door.counts["evicted"] == 0 and ns < 20_000
    good_pair(door)


def test_the_same_acknowledgement_for_ever():
    segments = [Segment(CLIENT, SERVER, 1000, b"", SYN)]
    segments += [Segment(CLIENT, SERVER, 1003 + 2 * i, b"x") for i in range(MOST_RUNS)]
    segments += [Segment(SERVER, CLIENT, 1, b"", ACK, 1002)] * 100_000
    door, ns = pace(segments)
    assert door.counts["gaps"] == 0 and ns < 5_000
    good_pair(door)


@pytest.mark.parametrize("octets", [
    # Nearly messages: each offset is walked as far as can be.
    b"\x01" * 60_000, (b"\0\1" * 6 + b"\1a" * 120) * 230, b"\0\xff\0\0\1\0\0\1\0\1\0\0\0\0" * 4200,
    b"\0\0\1\0\0\1" * 10_000, b"\x3f" * 60_000, bytes(range(256)) * 234])
@pytest.mark.parametrize("step", [1, 1400, 60_000])
def test_bomb_against_the_search(octets, step):
    """A search through 60 KB that never ends: time for each octet is bounded, however they come."""
    segments = [Segment(CLIENT, SERVER, at, octets[at:at + step])
                for at in range(0, len(octets), step)]
    door = stream_door.Connections()
    spent, _, _ = door.time(segments)
    assert spent < len(octets) * 20_000
    assert door.figures["chunks_touched"] <= 140 * CHUNK
    good_pair(door)


def test_bomb_of_unfinished_messages():
    """Connections that each leave 1400 octets of a message of 64 KiB: max_bytes holds."""
    flood = [Segment((i.to_bytes(4, "big"), 9), SERVER, 0, b"\xff\xfe" + query() + bytes(1300))
             for i in range(5_000)]
    door, ns = pace(flood, max_bytes=1 << 20)
    figures = door.figures
    assert figures["chunks"] <= figures["chunks_touched"] <= 1 << 20 and ns < 20_000
    assert door.counts["evicted"] == 5_000 - door.counts["live"]
    good_pair(door)
