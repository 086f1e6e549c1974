"""Datagrams in pieces: against a model in plain Python that keeps single octets, then each class of
piece as packets, the limits at their edges, and bombs."""

from __future__ import annotations

import ipaddress
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gazer.capture.doors import SIZES, Table
from tests.fragment_model import (
    DST,
    DST6,
    SECOND,
    SRC,
    Both,
    cut,
    give,
    handed_in,
    more_head,
    payload,
    read,
    some,
    told,
    v4,
    v6,
)

# --- any order -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [v4, v6])
@pytest.mark.parametrize("sizes", [(8,), (1480,), (8, 8), (1024, 1024), (512, 8, 1000), (8,) * 4,
                                   (1400, 16, 1016, 2048)])
def test_every_order_of_one_datagram(make, sizes):
    octets = some(sum(sizes) + 13)
    frames = cut(octets, *sizes, make=make)
    for order in itertools.permutations(frames):
        table = Table()
        *before, whole = [give(table, frame) for frame in order]
        assert before == [None] * len(sizes)
        assert payload(whole) == octets and whole["protocol"] == 17
        assert whole["frame"][:whole["head_length"]] == frames[0][:read(frames[0])["head_length"]]
        assert whole["length"] == len(whole["frame"])
        assert told(table) == {"datagrams": 1, "joined": len(sizes)}
        assert (table.known, table.cells) == (0, 0)


def test_every_order_of_several_datagrams():
    one, two, three = some(40, 1), some(40, 2), some(11, 3)
    frames = [*cut(one, 8, 16), *cut(two, 24, id=8), *cut(three, 8, make=v6)]
    for order in itertools.permutations(frames):
        table = Table()
        wholes = [payload(w) for w in (give(table, frame) for frame in order) if w]
        assert sorted(wholes) == sorted([one, two, three])
        assert told(table) == {"datagrams": 3, "joined": 4}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_larger_datagrams_in_any_order(data):
    both = Both()
    frames, whole = [], set()
    for id in range(data.draw(st.integers(1, 3))):
        length = data.draw(st.integers(1, 65515))
        octets = some(length, id)
        sizes, left = [], (length - 1) // 8 * 8
        while left and len(sizes) < 12:
            size = 8 * data.draw(st.one_of(st.integers(1, 300), st.integers(1, 8000)))
            sizes.append(min(size, left))
            left -= sizes[-1]
        frames += cut(octets, *sizes, id=id)
        whole.add(octets)
    got = {payload(w) for w in map(both.give, data.draw(st.permutations(frames))) if w}
    # The frames of three datagrams may be more than fit: then the model has said which leave.
    assert got == whole or both.table.counts["evicted"]


# Pieces that meet: few ids, places, contents and moments.
PIECE = st.tuples(
    st.integers(0, 2),                              # id
    st.integers(0, 5).map(lambda n: 8 * n),         # offset
    st.integers(0, 33),                             # length
    st.booleans(),                                  # more
    st.sampled_from([b"a", b"a", b"a", b"b"]),      # contents
    st.sampled_from([v4, v4, v6]),
    st.integers(0, 9).map(lambda n: n == 0),        # foreign
    st.sampled_from([0, 0, 0, 1, 4, 10]),           # time since the piece before
)


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECE, max_size=40), st.integers(1, 4))
def test_whatever_comes(pieces, max_datagrams):
    both = Both(max_datagrams=max_datagrams, timeout=10)
    clock = 1000
    for id, offset, length, more, octet, make, foreign, passed in pieces:
        clock += passed
        both.give(make(octet * length, offset, more, id=id), clock, foreign=foreign)


FAR = st.tuples(
    st.integers(0, 5), st.integers(0, 8191).map(lambda n: 8 * n),
    st.sampled_from([8, 1024, 1480, 9000, 30000]), st.booleans(), st.integers(0, 40))


@settings(max_examples=60, deadline=None)
@given(st.lists(FAR, max_size=30))
def test_whatever_comes_with_little_memory(pieces):
    both = Both(max_datagrams=4)
    for id, offset, length, more, options in pieces:
        both.give(v4(bytes(length), offset, more, id=id, options=b"\1" * options))


# --- who belongs together ------------------------------------------------------------------------


def test_what_tells_datagrams_apart():
    first, last = v4(b"abcdefgh", 0), v4(b"i", 8, False)
    table = Table()
    assert give(table, first) is None
    for other in (
        v4(b"i", 8, False, id=8), v4(b"i", 8, False, src="192.0.2.2"),
        v4(b"i", 8, False, dst="192.0.2.2"), v4(b"i", 8, False, src=DST, dst=SRC),
        v4(b"i", 8, False, protocol=47),
    ):
        assert give(table, other) is None
    for scope in (b"\0\x07", b"\0\0", b"\0\0\0\0", b"\x80\0\0\1", b"\0\x07\x80\0\0\1"):
        assert give(table, last, scope=scope) is None
    assert give(table, last, levels=1) is None
    assert table.known == 12
    assert payload(give(table, last)) == b"abcdefghi"


def test_what_tells_datagrams_of_ipv6_apart():
    table = Table()
    give(table, v6(b"abcdefgh", 0, id=0x12345678))
    for other in (v6(b"i", 8, False, id=0x02345678), v6(b"i", 8, False, id=0x12345678, src=DST6)):
        assert give(table, other) is None
    # The next header is that of the first piece, and no part of the key (RFC 8200, section 4.5).
    whole = give(table, v6(b"i", 8, False, id=0x12345678, protocol=60))
    assert payload(whole) == b"abcdefghi" and whole["protocol"] == 17


def test_the_longest_scope():
    scope = bytes(range(32))
    table = Table()
    assert give(table, v4(b"abcdefgh"), scope=scope, levels=8) is None
    assert give(table, v4(b"i", 8, False), scope=scope[:-1] + b"x", levels=8) is None
    assert payload(give(table, v4(b"i", 8, False), scope=scope, levels=8)) == b"abcdefghi"
    assert give(table, v4(b"i", 8, False), scope=scope + b"x", levels=8) is None
    assert give(table, v4(b"i", 8, False), scope=scope, levels=9) is None
    assert told(table) == {"datagrams": 1, "joined": 1, "waiting": 1, "bad": 2}


def test_the_head_and_what_is_known_are_those_of_the_first_piece():
    """The pieces may have come by different ways: other options, other tags before them."""
    for order in ((0, 1), (1, 0)):
        frames = [v4(b"abcdefgh", options=b"\1" * 8), v4(b"i", 8, False)]
        marks = [100, 200]
        table = Table()
        _, whole = [give(table, frames[i], levels=3, mark=marks[i]) for i in order]
        assert whole["frame"] == frames[0][:42] + b"abcdefghi"
        assert (whole["mark"], whole["layers"], whole["levels"]) == (100, [100] * 3, 3)


@pytest.mark.parametrize("more", [-1, 0, 1, SIZES["more_head"], SIZES["more_head"] + 1, 33000])
def test_a_long_head(more):
    """IPv6 extension headers before the fragment header; they may be 2 KiB each."""
    size = SIZES["first_head"] + more
    head = v6(b"")[:14] + some(size - 14)
    piece = read(v6(b"abcdefgh")) | {
        "head_length": size, "payload_offset": size + 8, "addresses_offset": 22}
    last = piece | {"offset": 8, "more": False, "payload_length": 3}
    table = Table()
    assert table.add(head + bytes(8) + b"abcdefgh", piece) is None
    assert table.cells == 2 + more_head(size)
    whole = table.add(head + bytes(8) + b"ijk", last)
    assert whole["frame"] == head + b"abcdefghijk" and table.cells == 0


def test_a_joined_datagram_may_hold_a_piece():
    """As of a tunnel whose packets were cut up, and then its own."""
    inner = cut(b"0123456789abcdef-last", 16, id=99)
    table = Table(max_datagrams=8)
    found = []
    for frame in inner:
        for part in cut(frame[14:], 16, 8, id=frame[14 + 6], protocol=4):
            whole = give(table, part, mark=5)
            if whole:
                # The inner header stands where the outer payload begins.
                at = whole["head_length"]
                says = read(frame)
                says |= {key: says[key] - 14 + at for key in (
                    "addresses_offset", "head_length", "payload_offset")}
                found.append(table.again(says))
    assert found[0] is None
    assert payload(found[1]) == b"0123456789abcdef-last"
    # outer link and IP header, inner IP header, then the payload
    assert found[1]["frame"][:34][12:14] == b"\x08\0" and found[1]["head_length"] == 54
    assert found[1]["mark"] == 5
    # Six frames: two made a datagram whole of which one was a piece again; it counts as that.
    assert told(table) == {"datagrams": 3, "joined": 5}


# --- what a piece can be -------------------------------------------------------------------------

HELD = [v4(b"A" * 16, 16), v4(b"B" * 16, 48)]                           # 16..32, 48..64
LAST = [*HELD, v4(b"C" * 5, 80, False)]                                 # and 80..85, the end

OVERLAPS = {
    "the head": (HELD, v4(b"x" * 16, 8)),
    "the tail": (HELD, v4(b"x" * 16, 24)),
    "inside, other octets": (HELD, v4(b"A" * 7 + b"x", 16)),
    "all of it, other octets": (HELD, v4(b"A" * 15 + b"x", 16)),
    "around": (HELD, v4(b"A" * 32, 8)),
    "around, the same octets": (HELD, v4(b"x" * 8 + b"A" * 16, 8)),
    "two of them": (HELD, v4(b"A" * 48, 16)),
    "by one block, the same octets": (HELD, v4(b"A" * 8 + b"x" * 8, 24)),
    "a second end, farther": (LAST, v4(b"x" * 8, 88, False)),
    "a second end, nearer": (LAST, v4(b"x" * 8, 64, False)),
    "a second end, within what is there": (LAST, v4(b"x", 40, False)),
    "an end before what is there": (HELD, v4(b"x" * 8, 32, False)),
    "an end within what is there": (HELD, v4(b"x", 48, False)),
    "octets beyond the end": (LAST, v4(b"x" * 8, 88)),
    "octets across the end": (LAST, v4(b"C" * 5 + bytes(3), 80)),
    "the last block, longer": (LAST, v4(b"C" * 6, 80, False)),
    "the last block, shorter": (LAST, v4(b"C" * 3, 80, False)),
    "the same octets, said to be the last ones": (LAST, v4(b"B" * 16, 48, False)),
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_overlaps(name):
    before, frame = OVERLAPS[name]
    both = Both()
    for each in before:
        both.give(each)
    assert both.give(frame) is None
    assert told(both.table) == {"overlapping": len(before) + 1}
    assert (both.table.known, both.table.cells) == (1, 1)       # remembered, nothing kept
    # Whatever comes of it later is discarded, until its timeout: then it begins anew.
    for each in (*before, v4(b"x" * 8)):
        assert both.give(each, 30 * SECOND - 1) is None
    assert told(both.table) == {"overlapping": 2 * len(before) + 2}
    for each in cut(b"good" * 10, 16):
        whole = both.give(each, 30 * SECOND)
    assert payload(whole) == b"good" * 10


DUPLICATES = {
    "a whole piece": v4(b"A" * 16, 16),
    "a part of one": v4(b"A" * 8, 24),
    "the last one": v4(b"C" * 5, 80, False),
    "by another way, with other options": v4(b"B" * 16, 48, options=b"\1" * 4),
}


@pytest.mark.parametrize("name", DUPLICATES)
def test_duplicates(name):
    both = Both()
    for frame in (*LAST, DUPLICATES[name], DUPLICATES[name]):
        both.give(frame)
    assert told(both.table) == {"duplicate": 2, "waiting": 3}
    for frame in (v4(b"0" * 16, 0), v4(b"1" * 16, 32)):
        assert both.give(frame) is None
    assert payload(both.give(v4(b"2" * 16, 64))) == (
        b"0" * 16 + b"A" * 16 + b"1" * 16 + b"B" * 16 + b"2" * 16 + b"C" * 5)
    assert told(both.table) == {"datagrams": 1, "joined": 5, "duplicate": 2}


def test_a_duplicate_that_says_where_the_end_is():
    both = Both()
    for frame in (v4(b"a" * 8, 8), v4(b"b" * 16, 16)):
        both.give(frame)
    both.give(v4(b"b" * 8, 24, False))          # to 32, as far as what is there
    assert told(both.table) == {"duplicate": 1, "waiting": 2}
    both.give(v4(b"b" * 8, 24))
    assert payload(both.give(v4(b"0" * 8))) == b"0" * 8 + b"a" * 8 + b"b" * 16
    assert told(both.table) == {"datagrams": 1, "joined": 2, "duplicate": 2}
    for frame in (v4(b"a" * 8), v4(b"b" * 16, 8)):
        assert both.give(frame) is None
    assert payload(both.give(v4(b"b" * 8, 16, False))) == b"a" * 8 + b"b" * 16
    assert told(both.table) == {"datagrams": 2, "joined": 4, "duplicate": 2}


def test_a_duplicate_over_two_pieces():
    both = Both()
    for frame in (v4(b"a" * 8, 0), v4(b"b" * 8, 8), v4(b"a" * 8 + b"b" * 8, 0)):
        both.give(frame)
    assert told(both.table) == {"duplicate": 1, "waiting": 2}


BAD = {
    "no octet": v4(b"", 8),
    "no octet, the last one": v4(b"", 8, False),
    "not the last one, and no multiple of 8": v4(b"x" * 12, 8),
    "seven octets": v4(b"x" * 7, 8),
    "ends beyond a datagram": v4(b"x" * 8, 65512, False),
    "ends beyond a datagram by its header": v4(b"x" * 8, 65504, False, options=b"\1" * 4),
    "at the farthest offset": v4(b"x", 65528, False),
    "IPv6, no octet": v6(b"", 8),
    "IPv6, not the last one": v6(b"x" * 9, 8),
    "IPv6, ends at 65,536": v6(b"x" * 8, 65528, False),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pieces(name):
    both = Both()
    both.give(v4(b"abcdefgh"))
    both.give(v6(b"abcdefgh"))
    assert both.give(BAD[name]) is None
    assert told(both.table) == {"bad": 1, "waiting": 2}     # it alone is discarded
    assert payload(both.give(v4(b"i", 8, False))) == b"abcdefghi"
    assert payload(both.give(v6(b"i", 8, False))) == b"abcdefghi"


@pytest.mark.parametrize("make, length", [(v4, 65515), (v6, 65535)])
def test_the_largest_datagram(make, length):
    octets = some(length)
    both = Both()
    for frame in cut(octets, 32768, make=make):
        whole = both.give(frame)
    assert payload(whole) == octets


def test_a_piece_that_the_capture_lacks_a_part_of():
    frame = v4(b"abcdefgh" * 4)
    table = Table()
    assert table.add(frame, read(frame) | {"cut": True}) is None
    assert table.add(frame[:-8], read(frame)) is None       # nor is it read beyond the frame
    assert table.add(frame[:33], read(frame)) is None
    assert table.add(frame[:20], read(frame)) is None
    assert told(table) == {"bad": 4} and table.known == 0
    for key, value in (("addresses_offset", 60000), ("head_length", 60000),
                       ("payload_offset", 2**32 - 1), ("payload_length", 2**32 - 1),
                       ("offset", 2**32 - 8), ("offset", 4)):
        assert table.add(frame, read(frame) | {key: value}) is None
    assert told(table) == {"bad": 10} and table.known == 0


def test_datagrams_that_are_not_ours():
    both = Both()
    both.give(v4(b"x" * 8, 8))
    both.give(v4(b"x" * 8, 16))
    assert told(both.table) == {"waiting": 2}
    both.give(v4(b"\x30\x39\x30\x3a" * 2, 0), foreign=True)
    assert told(both.table) == {"foreign": 3} and both.table.cells == 1
    both.give(v4(b"x" * 8, 24, False), 30 * SECOND - 1)
    assert told(both.table) == {"foreign": 4}
    both.give(v4(b"x" * 8, 24, False), 30 * SECOND)
    assert told(both.table) == {"foreign": 4, "waiting": 1}
    # One whose first piece comes first is remembered as well; only that piece shows ports.
    now = 30 * SECOND
    both.give(v4(b"x" * 8, id=9), now, foreign=True)
    both.give(v4(b"x" * 8, 8, id=9), now)
    both.give(v4(b"x" * 8, 8, id=10), now, foreign=True)
    assert told(both.table) == {"foreign": 6, "waiting": 2}
    # What contradicts itself is not ours by any ports.
    both.give(v4(b"x" * 16, 0, id=10), now, foreign=True)
    assert told(both.table) == {"foreign": 6, "waiting": 1, "overlapping": 2}


# --- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [0, 1])
def test_a_datagram_waits_for_its_timeout(late):
    both = Both(timeout=100)
    start = 5
    for age, offset in ((0, 8), (60, 16), (99, 24)):
        both.give(v4(b"x" * 8, offset, offset < 24), start + age)
    whole = both.give(v4(b"x" * 8), start + 99 + late)
    if late:    # its age counts from the first piece seen, however many came since
        assert whole is None and told(both.table) == {"expired": 3, "waiting": 1}
    else:
        assert payload(whole) == b"x" * 32


def test_what_is_too_old_leaves_whoever_comes():
    table = Table(timeout=100)
    for id in range(5):
        give(table, v4(b"x" * 8, id=id), 10 * id)
    give(table, v4(b"", id=99), 120)            # a bad piece does, too: 0, 10 and 20 are over
    assert told(table) == {"bad": 1, "expired": 3, "waiting": 2}
    table.expire(129)
    assert told(table) == {"bad": 1, "expired": 3, "waiting": 2}
    table.expire(130)
    assert told(table) == {"bad": 1, "expired": 4, "waiting": 1}
    table.expire(2**63)
    assert told(table) == {"bad": 1, "expired": 5}
    assert (table.known, table.cells) == (0, 0)


def test_the_least_recently_used_leaves():
    both = Both(max_datagrams=3)
    for id in (1, 2, 3):
        both.give(v4(b"x" * 8, 8, id=id))
    assert both.table.known == 3 and told(both.table) == {"waiting": 3}
    both.give(v4(b"x" * 8, 16, id=1))                   # a use: 2 is the one to go now
    both.give(v4(b"x" * 8, 8, id=2))                    # so is a duplicate: 3 is
    both.give(v4(b"", 8, id=3))                         # a bad piece is none
    both.give(v4(b"x" * 8, 8, id=4))
    assert told(both.table) == {"duplicate": 1, "bad": 1, "evicted": 1, "waiting": 4}
    both.give(v4(b"x" * 8, 8, id=3))                    # gone: it begins anew, 1 goes with two
    assert told(both.table) == {"duplicate": 1, "bad": 1, "evicted": 3, "waiting": 3}
    both.give(v4(b"y" * 8, 8, id=2))                    # given up: it stays known, and is used
    both.give(v4(b"x" * 8, 8, id=5))
    assert told(both.table) == {
        "duplicate": 1, "bad": 1, "evicted": 4, "overlapping": 2, "waiting": 2}
    for id in (3, 5, 6):
        both.give(v4(b"x" * 8, 24, id=id))
    both.give(v4(b"x" * 8, 32, id=2))                   # its fault has been forgotten
    assert told(both.table)["overlapping"] == 2


def test_one_datagram_at_a_time():
    both = Both(max_datagrams=1)
    for frame in (v4(b"x" * 8), v4(b"y" * 8, id=8), *cut(b"z" * 16, 8, id=9)):
        whole = both.give(frame)
    assert payload(whole) == b"z" * 16
    assert told(both.table) == {"datagrams": 1, "joined": 1, "evicted": 2}


def test_the_limit_of_memory_to_the_cell():
    both = Both(max_datagrams=1000)
    room = both.table.max_cells
    for id in range(room // 2):                         # two cells each
        both.give(v4(b"x" * 8, id=id))
    left = room - both.table.cells
    assert left in (0, 1) and "evicted" not in told(both.table)
    both.give(v4(b"x" * 8, 4096, id=0))                 # one more page
    both.give(v4(b"x" * 8, 8192, id=0))
    assert told(both.table)["evicted"] == 1             # of id 1: 0 has just been used
    both.give(v4(b"y" * 8, id=1))
    assert "overlapping" not in told(both.table)
    for id in range(1000, 1000 + room):
        both.give(v4(b"x" * 8, id=id))
        assert both.table.cells <= room


def test_one_of_any_size_has_room_in_the_least_memory():
    """The largest payload and the largest head, where everything else is small."""
    head = some(65527)
    table = Table(max_bytes=SIZES["least"])
    says = read(v6(b"")) | {"head_length": 65527, "payload_offset": 65527}
    octets = some(65535)
    for start in range(0, 65535, 4096):
        part = octets[start:start + 4096]
        whole = table.add(head + part, says | {
            "offset": start, "more": start + 4096 < 65535, "payload_length": len(part)})
    assert whole["frame"] == head + octets
    with pytest.raises(ValueError, match="max_bytes: at least"):
        Table(max_bytes=SIZES["least"] - 1)
    with pytest.raises(ValueError, match="max_datagrams"):
        Table(max_datagrams=0)


@pytest.mark.parametrize("snaplen", [20, 34, 35, 49, 50, 60])
def test_a_joined_datagram_is_cut_to_the_snaplen(snaplen):
    table = Table(snaplen=snaplen)
    frames = cut(b"0123456789abcdef", 8)
    for frame in frames:
        whole = give(table, frame)
    assert whole["frame"] == (frames[0][:34] + b"0123456789abcdef")[:snaplen]
    assert whole["length"] == 50


# --- bombs ---------------------------------------------------------------------------------------


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def one_offset_65504(n):
    return v4(b"x" * 8, 65504, id=n & 0xFFFF, src=str(ipaddress.IPv4Address(n >> 16)))


BOMBS = {
    "one piece of ever new datagrams": lambda n: v4(
        b"x" * 8, 0, id=n & 0xFFFF, src=str(ipaddress.IPv4Address(n))),
    "... at the farthest offset": lambda n: one_offset_65504(n * 7919),
    "... of IPv6": lambda n: v6(b"x" * 8, 8, id=n),
    "... of 1480 octets": lambda n: v4(bytes(1480), 1480, id=n & 0xFFFF),
    "8 octets in each KiB of one datagram, then of the next": lambda n: v4(
        b"x" * 8, n % 64 * 1024, id=n // 64 & 0xFFFF),
    "every other block of one datagram": lambda n: v4(b"x" * 8, n % 4095 * 16, id=n // 4095),
    "one piece for ever": lambda n: v4(b"x" * 8, 8),
    "one id for ever": lambda n: v4(bytes([n & 255]) * 8, 8),
    "nothing for ever": lambda n: v4(b"", 8),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name):
    limit = 1 << 20
    table = Table(max_datagrams=4096, max_bytes=limit, timeout=30 * SECOND)
    frames = [BOMBS[name](n) for n in range(6000)]
    says = [read(frame) for frame in frames]
    before, most, clock = resident(), 0, 0
    for turn in range(4):
        for frame, piece in zip(frames, says, strict=True):
            clock += 1_000_000          # a thousand a second: those of one turn are seen again
            assert table.add(frame, piece, clock) is None
            most = max(most, table.bytes)
        if turn == 0:
            assert handed_in(table) == 6000
    assert most <= limit
    assert resident() - before <= limit + (1 << 18)
    assert handed_in(table) == 24000
    assert table.largest_bucket <= 16
    # A good one behind the bomb is whole all the same.
    for frame in cut(b"good" * 100, 200, id=1, src="203.0.113.9"):
        whole = give(table, frame, clock)
    assert payload(whole) == b"good" * 100


def test_seeds_are_used():
    """Nobody outside can choose ids that meet in one bucket: another seed spreads them again."""
    chosen = []
    for seed in (1, 2):
        table = Table(max_datagrams=4096, max_bytes=8 << 20, seed=seed)
        alone = table.largest_bucket
        picked = []
        for n in range(3000):
            frame = v4(b"x" * 8, id=n)
            give(table, frame)
            if table.largest_bucket > alone:
                alone = table.largest_bucket
                picked.append(n)
        chosen.append(picked)
    assert chosen[0] != chosen[1]


def test_time_for_a_piece_is_bounded():
    """The slowest of many thousand pieces, however full the table is; the bound is a hundred times
    what the work takes, for a machine that is busy."""
    table = Table(max_datagrams=4096, max_bytes=8 << 20, timeout=SECOND)
    frames = [v4(bytes(8), n % 64 * 1024, id=n // 64) for n in range(40 * 64)]
    large = v4(bytes(65000), 0, id=60000)
    spent = []
    for turn in range(6):
        for n, frame in enumerate(frames):
            give(table, frame, turn * 600_000_000 + n)
            spent.append(table.nanoseconds)
        give(table, large, turn * 600_000_000 + len(frames))
        spent.append(table.nanoseconds)
    spent.sort()
    assert spent[len(spent) // 2] < 20_000
    assert spent[-20] < 2_000_000
