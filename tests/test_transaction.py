"""The tables of waiting and of answered transactions, against a model in plain Python."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gazer.workers import doors
from tests.oracle import build

KEYS = [("192.0.2.1", 4000, "198.51.100.53", 53, 1, ()),
        ("192.0.2.1", 4000, "198.51.100.53", 53, 2, ()),
        ("192.0.2.1", 4001, "198.51.100.53", 53, 1, ()),
        ("192.0.2.1", 4000, "198.51.100.53", 53, 1, (100,)),
        ("192.0.2.1", 4000, "198.51.100.53", 53, 1, (100, 200)),
        ("198.51.100.53", 53, "192.0.2.1", 4000, 1, ()),
        ("::1", 4000, "::2", 53, 1, ()),
        ("::1", 4000, "::2", 53, 1, tuple(range(1, 17)))]


def question(number: int, pad: int = 0) -> bytes:
    """A query; `pad` octets more behind its question."""
    counts = (1, 0, 0, 0)
    return build.header(1, 0x100, counts) + build.question(
        build.labels(f"q{number}", "example")) + b"\x5a" * pad


REPLY_WITHOUT = build.header(1, 0x8105, (0, 0, 0, 0))


class Model:
    """What the table must do: a list of (key, question number, wire, sequence), oldest first."""

    def __init__(self, **limits: int) -> None:
        self.table = doors.Table(**limits)
        self.max_pending = limits["max_pending"]
        self.waiting: list[tuple] = []
        self.sequence = 0

    def check(self) -> None:
        figures = self.table.figures
        assert self.table.order() == [w[3] for w in self.waiting]
        assert figures["pending"] == len(self.waiting) <= self.max_pending
        assert figures["cells_used"] == sum(cells(w[0], w[2]) for w in self.waiting)
        assert figures["touched"] <= figures["max_cells"] + 1

    def find(self, key: tuple, number: int | None) -> tuple | None:
        for one in self.waiting:
            if one[0] == key and (number is None or one[1] == number):
                return one
        return None

    def remove(self, one: tuple) -> None:
        index = self.table.find(one[0], question(one[1]))
        assert self.table.sequence(index) == one[3]
        assert self.table.query(index) == one[2]
        self.table.remove(index)
        self.waiting.remove(one)

    def add(self, key: tuple, number: int, pad: int) -> None:
        wire = question(number, pad)
        while not self.table.has_room(len(wire)):
            assert self.waiting, "an empty table takes any query"
            index = self.table.oldest()
            oldest = self.waiting.pop(0)
            assert self.table.sequence(index) == oldest[3]
            assert self.table.query(index) == oldest[2]
            self.table.remove(index)
        self.sequence += 1
        self.table.add(key, wire, self.sequence)
        self.waiting.append((key, number, wire, self.sequence))


def cells(key: tuple, wire: bytes) -> int:
    beyond = len(wire) - (64 - (8 if "." in key[0] else 32) - 2 * len(key[5]))
    return 1 + max(0, -(-beyond // 124))


operations = st.lists(st.tuples(
    st.sampled_from(["add", "add", "add", "find", "bare", "remove", "oldest"]),
    st.integers(0, len(KEYS) - 1), st.integers(0, 3),
    st.sampled_from([0, 0, 0, 0, 30, 31, 32, 33, 154, 155, 156, 157, 600, 9000])), max_size=60)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 8), st.sampled_from([0, 70_000, 10**6]), operations)
def test_the_table_does_what_a_list_does(max_pending, max_bytes, steps):
    model = Model(max_pending=max_pending, max_bytes=max_bytes)
    for what, which, number, pad in steps:
        key = KEYS[which]
        if what == "add":
            if model.find(key, number) is None:
                model.add(key, number, pad)
        elif what == "oldest":
            if model.waiting:
                model.remove(model.waiting[0])
        else:
            want = model.find(key, None if what == "bare" else number)
            wire = REPLY_WITHOUT if what == "bare" else question(number)
            index = model.table.find(key, wire)
            assert (model.table.sequence(index) if index else None) == (want[3] if want else None)
            if what == "remove" and want:
                model.remove(want)
        model.check()
    while model.waiting:
        model.remove(model.waiting[0])
    model.check()
    assert model.table.figures["cells_used"] == 0 and model.table.oldest() == 0


@pytest.mark.parametrize("size", [29, 56, 57, 180, 181, 12345, 65534, 65535])
@pytest.mark.parametrize("key", [KEYS[0], KEYS[7]])
def test_queries_of_any_size_come_back_whole(key, size):
    """In a table with the least of memory: one of 65535 octets fits even there."""
    model = Model(max_pending=3, max_bytes=0)
    dice = random.Random(size)
    for number in range(5):
        wire = question(number)
        wire += dice.randbytes(max(0, size - len(wire)))
        while not model.table.has_room(len(wire)):
            model.table.remove(model.table.oldest())
        model.table.add(key, wire, number)
        index = model.table.find(key, question(number))
        assert model.table.query(index) == wire
    assert model.table.figures["touched"] <= model.table.figures["max_cells"] + 1
    while model.table.oldest():
        model.table.remove(model.table.oldest())
    assert model.table.figures["cells_used"] == 0


def test_thousands_wait_and_are_all_found():
    """Beyond 4096 buckets the table grows; each is still found, and memory is as stated."""
    table = doors.Table(max_pending=20_000, max_bytes=20_000 * 256)
    wires = [question(i) for i in range(12_000)]
    for i, wire in enumerate(wires):
        table.add(("10.0.0.1", i % 60_000, "10.0.0.2", 53, i & 0xFFFF, ()), wire, i)
    figures = table.figures
    assert figures["pending"] == 12_000 and figures["buckets"] >= 8192
    assert figures["bytes"] <= 12_001 * 128 + 4 * 16384     # one cell each, and the buckets
    order = list(range(12_000))
    random.Random(1).shuffle(order)
    for i in order:
        index = table.find(("10.0.0.1", i, "10.0.0.2", 53, i, ()), wires[i])
        assert table.sequence(index) == i
        table.remove(index)
    assert table.figures["cells_used"] == 0
    # What was given back is used again: nothing new is touched.
    for i, wire in enumerate(wires):
        table.add(("10.0.0.1", i, "10.0.0.2", 53, i, ()), wire, i)
    assert table.figures["touched"] == figures["touched"]


def test_a_question_is_compared_and_not_only_its_hash():
    table = doors.Table(max_pending=8, max_bytes=0)
    upper = build.header(1, 0x100) + build.question(b"\2Q1\7EXAMPLE\0")
    table.add(KEYS[0], upper, 1)
    assert table.sequence(table.find(KEYS[0], question(1))) == 1
    assert table.find(KEYS[0], question(2)) == 0
    two = build.header(1, 0x100, (2, 0, 0, 0)) + question(1)[12:] + question(1)[12:]
    assert table.find(KEYS[0], two) == 0


def test_messages_without_question():
    table = doors.Table(max_pending=8, max_bytes=0)
    bare_query = build.header(1, 0x100, (0, 0, 0, 0))
    table.add(KEYS[0], question(1), 1)
    assert table.find(KEYS[0], bare_query) == 0             # a query repeats only its like
    assert table.sequence(table.find(KEYS[0], REPLY_WITHOUT)) == 1
    table.add(KEYS[0], bare_query, 2)
    assert table.sequence(table.find(KEYS[0], bare_query)) == 2
    assert table.sequence(table.find(KEYS[0], REPLY_WITHOUT)) == 1      # the oldest
    assert table.find(KEYS[1], REPLY_WITHOUT) == 0
    table.remove(table.find(KEYS[0], question(1)))
    assert table.sequence(table.find(KEYS[0], REPLY_WITHOUT)) == 2


# --- the answered ones ---------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 40), st.lists(st.tuples(
    st.sampled_from(["remember", "ask", "ask"]), st.integers(0, 3), st.integers(0, 4),
    st.sampled_from([0, 0, 1, 2, 5, 13, 41])), max_size=60))
def test_what_was_answered_is_remembered_for_the_window(window, steps):
    """With room for all: exactly those answered less than `window` ago are remembered."""
    table = doors.Table(max_pending=1000, max_bytes=0, window=window)
    answered: dict[tuple, int] = {}
    clock = 1000
    for what, which, number, passed in steps:
        clock += passed
        if what == "remember":
            table.remember(KEYS[which], number, clock)
            answered[which, number] = clock
        else:
            want = (which, number) in answered and clock - answered[which, number] < window
            assert table.remembered(KEYS[which], number, clock) == want
    assert table.figures["forgotten"] == 0


def test_a_window_of_nothing_remembers_nothing():
    table = doors.Table(max_pending=10, max_bytes=0, window=0)
    table.remember(KEYS[0], 1, 5)
    assert not table.remembered(KEYS[0], 1, 5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40))
def test_what_is_forgotten_early_is_counted(seed, limit):
    """With too little room some are forgotten, but then `forgotten` says so: never silently."""
    dice = random.Random(seed)
    table = doors.Table(max_pending=limit, max_bytes=0, window=100)
    answered: dict[int, int] = {}
    clock = 0
    for number in range(400):
        clock += dice.choice((0, 0, 1, 3, 30))
        table.remember(KEYS[0], number, clock)
        answered[number] = clock
        asked = dice.randrange(max(0, number - 60), number + 1)
        if clock - answered[asked] < 100 and not table.remembered(KEYS[0], asked, clock):
            assert table.figures["forgotten"] > 0
        if clock - answered[asked] >= 100:
            assert not table.remembered(KEYS[0], asked, clock)
        assert table.remembered(KEYS[0], number, clock)     # the latest always


def test_the_answered_table_is_bounded():
    table = doors.Table(max_pending=5000, max_bytes=0, window=10**9)
    for number in range(50_000):
        table.remember(KEYS[number % 8], number, number)
    assert table.figures["answered_bytes"] <= 2 * 16 * 16384
    assert table.figures["forgotten"] >= 30_000
    assert table.remembered(KEYS[49_999 % 8], 49_999, 50_000)


def test_many_answers_under_one_key_are_no_long_walk():
    """60,000 answers under one key: each look at them costs as one among others does.  Compared as
    CPU time of the same calls, so that a slow machine changes nothing; a walk of the row would be
    a thousand times more."""
    from time import process_time

    def cost(keys: list[tuple]) -> float:
        table = doors.Table(max_pending=100_000, max_bytes=0, window=10**9)
        start = process_time()
        for number in range(60_000):
            table.remember(keys[number % len(keys)], number, 1)
        spent = process_time() - start
        assert all(table.remembered(keys[n % len(keys)], n, 2) for n in range(0, 60_000, 97))
        return spent

    many = [("10.0.0.1", port, "10.0.0.2", 53, port, ()) for port in range(5000)]
    assert cost(KEYS[:1]) < 5 * cost(many) + 0.5


def test_a_question_answered_again_takes_no_second_place():
    """Else the table grows, and forgets, for nothing."""
    table = doors.Table(max_pending=16, max_bytes=0, window=1000)
    table.remember(KEYS[0], 7, 0)
    for clock in range(100):
        table.remember(KEYS[0], 8, clock)
    assert table.figures["forgotten"] == 0
    assert table.remembered(KEYS[0], 7, 100)


def test_after_a_burst_the_answered_table_is_small_again():
    """A large table is cleared at a cost that few answers would have to pay over and over."""
    table = doors.Table(max_pending=1 << 20, max_bytes=0, window=10)
    for number in range(50_000):
        table.remember(KEYS[0], number, 0)
    large = table.figures["answered_bytes"]
    for clock in range(20, 120, 20):
        table.remember(KEYS[0], 1, clock)
        assert table.remembered(KEYS[0], 1, clock)
    assert table.figures["answered_bytes"] == 2 * 4096 * 16 < large

