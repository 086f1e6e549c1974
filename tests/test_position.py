"""The position of a spool: its three places, and the ranges that are done with."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gazer.sinks.position import Done, Position, Range, State
from tests.spools import Wrapped, system

MARKER = b"MARKERxx"


def state(head, *done):
    return State(MARKER, head, head * 10, 9999, 99990, 7, 8, 6, 5, head * 3, head * 2, done)


def events(number):
    """The events before a record, in these tests."""
    return number * 10 + number % 3


def span(first, end):
    return Range(first, end, events(first), events(end))


# --- ranges --------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 6)), max_size=25),
       st.integers(1, 50), st.integers(1, 50), st.integers(1, 50))
def test_ranges_are_a_set_of_numbers(added, number, other, forgotten):
    done, oracle = Done(), set()
    for first, length in added:
        done.add(span(first, first + length))
        oracle |= {*range(first, first + length)}
        assert {n for r in done.ranges for n in range(r.first, r.end)} == oracle
        assert all(a.end < b.first for a, b in zip(done.ranges, done.ranges[1:], strict=False))
        assert all(r == span(r.first, r.end) for r in done.ranges)
    found = done.find(number)
    assert (found is not None) == (number in oracle)
    assert found is None or found in done.ranges
    low, high = sorted((number, other))
    missing = done.missing(span(low, high))
    left = {*range(low, high)} - oracle
    assert missing.records == len(left)
    assert missing.events == sum(events(n + 1) - events(n) for n in left)
    reached = done.forget(forgotten)
    assert (reached.end if reached else forgotten) == next(
        n for n in range(forgotten, 100) if n not in oracle)
    rest = {n for r in done.ranges for n in range(r.first, r.end)}
    assert rest == {n for n in oracle if n > (reached.end if reached else forgotten)}


# --- places --------------------------------------------------------------------------------------


def test_the_newest_counts_and_the_file_has_its_size_at_once(tmp_path):
    path = str(tmp_path / "position")
    position = Position(path)
    assert position.state is None and os.path.getsize(path) == 3 * Position.PLACE
    for head in range(1, 20):
        position.write(state(head, span(head + 1, head + 2)))
        if head % 3 == 0:
            position.sync(position.turn())
        again = Position(path)
        assert again.state == state(head, span(head + 1, head + 2)) and not again.damaged
        again.close()
    position.close()


def test_what_is_on_the_disk_is_never_written_to(tmp_path):
    """Not while the next is being synced, nor after a sync that failed."""
    places = []

    def pwritev(fd, buffers, offset):
        places.append(offset // Position.PLACE)
        return os.pwritev(fd, buffers, offset)

    def fail(fd):
        raise OSError(5, "broken")

    position = Position(str(tmp_path / "position"))
    durable = None
    with system(Wrapped(pwritev=pwritev)):
        for round_ in range(30):
            position.write(state(round_))
            position.write(state(round_))
            assert places[-1] != durable
            written = places[-1]
            turned = position.turn()
            assert turned == written
            position.write(state(round_))           # while it is being synced
            assert places[-1] not in (durable, written)
            if round_ % 4 == 3:
                with system(Wrapped(pwritev=pwritev, fdatasync=fail)), pytest.raises(OSError):
                    position.sync(turned)
            else:
                position.sync(turned)
                durable = written
    position.close()
    assert {*places} == {0, 1, 2}


def test_more_ranges_than_there_is_room_for(tmp_path):
    position = Position(str(tmp_path / "position"))
    ranges = [span(n, n + 1) for n in range(10, 1000, 2)]
    position.write(state(9, *ranges))
    position.close()
    again = Position(str(tmp_path / "position"))
    assert again.state == state(9, *ranges[:Position.MAX_DONE])
    again.close()


def test_no_descriptor_is_left_when_it_cannot_be_read(tmp_path):
    before = len(os.listdir("/proc/self/fd"))

    def fail(fd):
        raise OSError(5, "broken")

    with system(Wrapped(fdatasync=fail)), pytest.raises(OSError):
        Position(str(tmp_path / "position"))
    assert len(os.listdir("/proc/self/fd")) == before
