"""The ring in one process: layout, edges, damage; test_ring_processes has it between two."""

import ctypes
import mmap
import os
import struct
from collections import deque
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gazer.errors import SharedMemoryError
from gazer.ring import Ring, ring_bytes
from gazer.testing import DATA, HEADER, OFFSETS, PADDING, Reader, Writer

SMALLEST = 4096
QUARTER = SMALLEST // 4
LARGEST = QUARTER - 8           # payload of the largest entry
ROUND = 1 << 64


def word(buffer, name, value=None):
    """Read or write a word of the ring's header."""
    if value is not None:
        struct.pack_into("<Q", buffer, OFFSETS[name], value % ROUND)
    return struct.unpack_from("<Q", buffer, OFFSETS[name])[0]


def make(capacity=SMALLEST, *, position=0):
    """(buffer, writer, reader) of a new ring whose head and tail stand at `position`."""
    buffer = bytearray(ring_bytes(capacity))
    Ring(buffer, create=capacity).release()
    word(buffer, "head", position)
    word(buffer, "tail", position)
    return buffer, Writer(Ring(buffer)), Reader(Ring(buffer))


def at_guard_page(size):
    """Memory that ends where an unreadable page begins: who reads on is killed."""
    page = mmap.PAGESIZE
    pages = -(-size // page)
    memory = mmap.mmap(-1, (pages + 1) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start + pages * page), page, 0) == 0
    return memoryview(memory)[pages * page - size : pages * page]


# --- layout and attaching ------------------------------------------------------------------------


def test_layout_is_the_documented_one():
    assert OFFSETS == {
        "magic": 0, "version": 8, "capacity": 16, "tail": 128, "mark_sequence": 256,
        "mark_clock": 264, "head": 384, "consumer_waits": 512, "producer_waits": 640,
    }
    assert HEADER == 1024
    buffer, writer, _ = make()
    assert buffer[:8] == b"GAZRRING"
    assert struct.unpack_from("<I", buffer, 8) == (1,)
    assert writer.write(b"abc") and writer.publish()
    assert struct.unpack_from("<II3s", buffer, HEADER) == (11, DATA, b"abc")
    assert (word(buffer, "tail"), word(buffer, "head")) == (16, 0)


def test_positions_of_the_two_sides_are_two_cache_lines_apart():
    ours = [OFFSETS[n] for n in ("tail", "mark_clock", "head", "consumer_waits", "producer_waits")]
    assert all(b - a >= 120 for a, b in pairwise(ours))


@pytest.mark.parametrize("capacity", [0, 1, 8, 2048, 4095, 4097, 6144, 12288, -4096])
def test_a_capacity_that_is_no_power_of_two_or_too_small_is_refused(capacity):
    with pytest.raises(SharedMemoryError, match="power of two from 4096"):
        Ring(bytearray(65536), create=capacity)


def test_a_segment_that_is_too_small_is_refused():
    with pytest.raises(SharedMemoryError, match="larger than its segment"):
        Ring(bytearray(ring_bytes(SMALLEST) - 1), create=SMALLEST)
    with pytest.raises(SharedMemoryError, match="larger than its segment"):
        Ring(bytearray(ring_bytes(SMALLEST)), create=1 << 70)
    Ring(bytearray(ring_bytes(SMALLEST)), create=SMALLEST)


@pytest.mark.parametrize("size", [1, 8, 100, HEADER - 1])
def test_a_segment_without_room_for_a_header_is_no_ring(size):
    buffer, _, _ = make()
    with pytest.raises(SharedMemoryError, match="magic"):
        Ring(bytearray(buffer[:size]))


@pytest.mark.parametrize(
    ("offset", "layout", "value", "message"),
    [
        (0, "<Q", 0, "magic"),
        (0, "<Q", int.from_bytes(b"GZLEDGER", "little"), "magic"),
        (8, "<I", 0, "layout 0, this program knows 1"),
        (8, "<I", 2, "layout 2, this program knows 1"),
        (16, "<Q", 0, "power of two"),
        (16, "<Q", 4104, "power of two"),
        (16, "<Q", 8192, "larger than its segment"),
        (16, "<Q", 1 << 63, "larger than its segment"),
        (16, "<Q", ROUND - 1024, "power of two"),       # + the header's 1024 it would be 0
        (128, "<Q", 4, "damaged"),
        (384, "<Q", 1, "damaged"),
    ],
)
def test_attaching_to_something_else_is_refused(offset, layout, value, message):
    buffer, _, _ = make()
    struct.pack_into(layout, buffer, offset, value)
    with pytest.raises(SharedMemoryError, match=message):
        Ring(buffer)


def test_create_clears_what_stood_in_the_memory():
    buffer = bytearray(b"\xff" * ring_bytes(SMALLEST))
    ring = Ring(buffer, create=SMALLEST)
    assert (ring.filled, ring.capacity) == (0, SMALLEST)
    assert Reader(ring).watermark == (0, 0)


def test_release_lets_go_of_the_memory():
    buffer = bytearray(ring_bytes(SMALLEST))
    ring = Ring(buffer, create=SMALLEST)
    with pytest.raises(BufferError):
        buffer.extend(b"x")
    ring.release()
    buffer.extend(b"x")


# --- claim, commit, publish, poll, release -------------------------------------------------------


def test_what_is_not_published_is_not_seen():
    _, writer, reader = make()
    assert writer.claim(10)
    assert reader.poll() is None
    writer.fill(b"0123456789")
    writer.commit(10)
    assert reader.poll() is None
    assert writer.publish() is True
    assert writer.publish() is False        # nothing new
    assert reader.poll() == b"0123456789"
    assert reader.poll() is None
    assert not reader.corrupt


def test_commit_may_be_for_less_than_was_claimed():
    _, writer, reader = make()
    for size in range(200):
        assert writer.claim(500)
        writer.fill(bytes([size]) * size)
        writer.commit(size)
        assert writer.tail % 8 == 0
        writer.publish()
        assert reader.poll() == bytes([size]) * size
        reader.release()
    assert reader.head == writer.tail


def test_a_claim_alone_takes_nothing():
    _, writer, reader = make()
    for _ in range(1000):
        assert writer.claim(LARGEST)
    writer.publish()
    assert reader.poll() is None
    assert writer.write(b"x") and writer.publish()
    assert reader.poll() == b"x"


def test_entries_of_every_length_in_place_and_whole():
    _, writer, reader = make()
    for size in range(LARGEST + 1):
        data = bytes((size + i) & 255 for i in range(size))
        assert writer.write(data), size
        writer.publish()
        assert reader.poll() == data
        reader.release()


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 500, LARGEST - 1, LARGEST])
def test_every_position_at_which_a_ring_may_wrap(size):
    need = (size + 15) // 8 * 8
    data = bytes(range(256)) * 4
    data = data[:size]
    for position in range(0, SMALLEST, 8):
        buffer, writer, reader = make(position=position)
        for _ in range(3):                      # before, across and behind the end
            assert writer.write(data)
        writer.publish()
        for _ in range(3):
            offset, length = reader.poll_where()
            assert length == size
            assert offset - 8 + need <= SMALLEST    # never around the corner
            assert bytes(buffer[HEADER + offset : HEADER + offset + size]) == data
        assert reader.poll() is None and not reader.corrupt
        reader.release()
        assert reader.head == writer.tail


def test_padding_exactly_before_the_end():
    """The smallest padding is one entry's header, in the last 8 bytes."""
    buffer, writer, reader = make(position=SMALLEST - 8)
    assert writer.write(b"x" * 8) and writer.publish()
    assert struct.unpack_from("<II", buffer, HEADER + SMALLEST - 8) == (8, PADDING)
    assert reader.poll_where() == (8, 8)
    assert writer.tail == SMALLEST + 16


def test_an_entry_exactly_up_to_the_end_needs_no_padding():
    buffer, writer, reader = make(position=SMALLEST - 24)
    assert writer.write(b"x" * 16) and writer.write(b"y") and writer.publish()
    assert struct.unpack_from("<II", buffer, HEADER + SMALLEST - 24) == (24, DATA)
    assert writer.tail == SMALLEST + 16
    assert [reader.poll(), reader.poll()] == [b"x" * 16, b"y"]


def test_an_empty_entry_in_the_last_eight_bytes():
    _, writer, reader = make(position=SMALLEST - 8)
    assert writer.write(b"") and writer.publish()
    assert reader.poll() == b""
    assert writer.tail == SMALLEST


def test_padding_published_before_its_entry_is_no_entry():
    _, writer, reader = make(position=SMALLEST - 8)
    assert writer.claim(100)
    writer.publish()                # of the padding alone
    assert reader.poll() is None and not reader.corrupt
    writer.fill(b"z" * 100)
    writer.commit(100)
    writer.publish()
    assert reader.poll() == b"z" * 100


def test_full_to_the_last_byte_then_one_release_makes_room():
    buffer, writer, reader = make()
    for i in range(SMALLEST // 16):
        assert writer.write(bytes([i]) * 8)
    writer.publish()
    assert not writer.claim(0)
    assert Ring(buffer).filled == SMALLEST
    assert reader.poll() == b"\0" * 8
    assert not writer.claim(0)          # polled is still readable, so not free
    reader.release()
    assert not writer.claim(9)
    assert writer.claim(8)
    writer.fill(b"new data")
    writer.commit(8)
    writer.publish()
    assert reader.drain() == [bytes([i]) * 8 for i in range(1, SMALLEST // 16)] + [b"new data"]


def test_what_was_polled_stays_until_it_is_released():
    buffer, writer, reader = make()
    while writer.write(b"old " * 8):
        pass
    writer.publish()
    places = []
    while (place := reader.poll_where()) is not None:
        places.append(place)
    assert not writer.claim(32)
    assert all(bytes(buffer[HEADER + at : HEADER + at + n]) == b"old " * 8 for at, n in places)


def test_the_largest_entry_fits_an_empty_ring_at_every_position():
    for position in range(0, SMALLEST, 8):
        _, writer, _ = make(position=position)
        assert writer.write(b"x" * LARGEST)


@pytest.mark.parametrize(
    "position",
    [
        (1 << 32) - 8, 1 << 32, (1 << 32) + 4088, (1 << 63) - 16, 1 << 63,
        ROUND - SMALLEST, ROUND - 1024, ROUND - 24, ROUND - 8,
    ],
)
def test_positions_beyond_32_bits_and_around_the_end_of_64(position):
    _, writer, reader = make(position=position)
    expected = deque()
    for i in range(2000):
        data = bytes([i & 255]) * (i * 37 % (LARGEST + 1))
        while not writer.write(data):
            writer.publish()
            assert reader.poll() == expected.popleft()
            reader.release()
        expected.append(data)
    writer.publish()
    assert reader.drain() == list(expected)
    assert not reader.corrupt
    assert reader.head == writer.tail
    assert (writer.tail - position) % ROUND > 100 * SMALLEST


def test_either_end_may_be_taken_up_again():
    buffer, writer, reader = make()
    writer.write(b"one")
    writer.write(b"two")
    writer.publish()
    writer.write(b"never published")
    assert reader.poll() == b"one"
    reader.release()
    assert reader.poll() == b"two"      # polled, not released
    writer, reader = Writer(Ring(buffer)), Reader(Ring(buffer))
    writer.write(b"three")
    writer.publish()
    assert reader.drain() == [b"two", b"three"]


def test_watermark():
    _, writer, reader = make()
    assert reader.watermark == (0, 0)
    writer.mark(5, 7)
    assert reader.watermark == (5, 7)
    writer.mark(ROUND - 1, 8)
    assert reader.watermark == (ROUND - 1, 8)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, LARGEST), st.integers(0, LARGEST)),
        st.tuples(st.just("write"), st.integers(0, 40), st.integers(0, 40)),
        st.tuples(st.just("publish")),
        st.tuples(st.just("poll"), st.integers(1, 12)),
        st.tuples(st.just("release")),
        st.tuples(st.just("reattach")),
    ),
    max_size=120,
)


@settings(max_examples=300, deadline=None)
@given(
    STEPS,
    st.sampled_from([0, SMALLEST - 8, (1 << 32) - 2048, ROUND - SMALLEST]),
    st.integers(0, SMALLEST // 8 - 1),
)
def test_against_a_deque(steps, base, offset):
    buffer, writer, reader = make(position=base + offset * 8)
    committed, published, polled = deque(), deque(), []
    number = 0
    for what, *numbers in steps:
        if what == "write":
            claimed, used = max(numbers), min(numbers)
            if writer.claim(claimed):
                data = (number.to_bytes(4, "little") * (used // 4 + 1))[:used]
                writer.fill(data)
                writer.commit(used)
                committed.append(data)
                number += 1
            else:
                # Only a ring that holds more than half of its capacity may refuse.
                assert writer.tail - word(buffer, "head") > SMALLEST // 2
        elif what == "publish":
            assert writer.publish() or not committed
            published.extend(committed)
            committed.clear()
        elif what == "poll":
            for _ in range(numbers[0]):
                data = reader.poll()
                assert data == (published.popleft() if published else None)
                if data is not None:
                    polled.append(data)
        elif what == "release":
            reader.release()
            polled.clear()
        else:
            # Who comes anew sees what was published and not released; the rest never was.
            writer.publish()
            published.extend(committed)
            committed.clear()
            published.extendleft(reversed(polled))
            polled.clear()
            writer, reader = Writer(Ring(buffer)), Reader(Ring(buffer))
        assert not reader.corrupt
        assert (word(buffer, "tail") - word(buffer, "head")) % ROUND <= SMALLEST
    writer.publish()
    assert reader.drain() == list(published + committed)


# --- damage: the other side is not trusted to be whole -------------------------------------------


def damaged(length, *, kind=DATA, filled=64, position=0):
    """A reader of a ring that ends at an unreadable page, with one entry of this length."""
    buffer = at_guard_page(ring_bytes(SMALLEST))
    Ring(buffer, create=SMALLEST).release()
    word(buffer, "head", position)
    word(buffer, "tail", position + filled)
    struct.pack_into("<II", buffer, HEADER + position % SMALLEST, length, kind)
    return Reader(Ring(buffer))


@pytest.mark.parametrize("kind", [DATA, PADDING, 0, 77])
@pytest.mark.parametrize("length", [0, 1, 7, 65, 72, 4096, 4097, 1 << 31, (1 << 32) - 1])
def test_an_impossible_length_is_corrupt(length, kind):
    reader = damaged(length, kind=kind)
    for _ in range(3):      # and stays so
        assert reader.poll() is None
        assert reader.corrupt
        reader.release()
        assert reader.head == 0


@pytest.mark.parametrize("length", [9, 16, 24, 1024, 4096])
def test_a_length_beyond_the_end_of_the_ring_is_corrupt(length):
    reader = damaged(length, filled=SMALLEST, position=SMALLEST - 8)
    assert reader.poll() is None
    assert reader.corrupt


def test_an_entry_of_an_unknown_kind_is_stepped_over():
    """Kinds that a later version may bring are no damage; nor can they hold up a reader."""
    reader = damaged(64, kind=77)
    assert reader.poll() is None
    assert not reader.corrupt
    assert reader.head == 64


@pytest.mark.parametrize("ahead", [SMALLEST + 8, 4, 12, 1 << 40, -8, 1 << 63])
def test_an_impossible_tail_is_corrupt(ahead):
    buffer = at_guard_page(ring_bytes(SMALLEST))
    Ring(buffer, create=SMALLEST).release()
    reader = Reader(Ring(buffer))
    word(buffer, "tail", ahead)
    for _ in range(3):
        assert reader.poll() is None
        assert reader.corrupt


@settings(max_examples=200, deadline=None)
@given(st.integers(0), st.integers(0, SMALLEST // 8), st.integers(0, 511))
def test_a_ring_of_noise_ends_and_reads_nothing_outside(seed, filled, offset):
    random = Random(seed)
    buffer = at_guard_page(ring_bytes(SMALLEST))
    Ring(buffer, create=SMALLEST).release()
    buffer[HEADER:] = random.randbytes(SMALLEST)
    for at in range(0, SMALLEST, 8):        # lengths that often pass
        if random.random() < 0.8:
            length, kind = random.randrange(8, 64), random.choice([DATA, PADDING])
            struct.pack_into("<II", buffer, HEADER + at, length, kind)
    word(buffer, "head", offset * 8)
    word(buffer, "tail", offset * 8 + filled * 8)
    reader = Reader(Ring(buffer))
    for _ in range(SMALLEST // 8 + 1):
        if reader.poll() is None:
            break
    else:
        pytest.fail("more entries than a ring can hold")
    assert reader.head - offset * 8 <= filled * 8


@pytest.mark.parametrize("head", [8, SMALLEST, 1 << 63, -SMALLEST - 8])
def test_a_producer_believes_no_head_that_would_have_it_write_outside(head):
    buffer = at_guard_page(ring_bytes(SMALLEST))
    Ring(buffer, create=SMALLEST).release()
    writer = Writer(Ring(buffer))
    word(buffer, "head", head)
    for _ in range(100):
        writer.write(b"x" * 900)        # room or not, it stays in the ring
    assert bytes(buffer[:8]) == b"GAZRRING"


# --- sleeping and waking, one step at a time -----------------------------------------------------


@pytest.fixture
def bell():
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def rung(bell):
    try:
        return os.eventfd_read(bell)
    except BlockingIOError:
        return 0


def test_a_publication_rings_only_for_a_consumer_that_sleeps(bell):
    buffer, _, reader = make()
    writer = Writer(Ring(buffer), bell)
    writer.write(b"1")
    writer.publish()
    assert rung(bell) == 0
    assert reader.poll() == b"1"
    assert reader.says_it_sleeps()
    writer.write(b"2")
    assert rung(bell) == 0                  # committed is not published
    writer.publish()
    assert (rung(bell), writer.rung) == (1, 1)
    writer.write(b"3")
    writer.publish()
    assert rung(bell) == 0                  # once is enough
    reader.awake()
    assert reader.drain() == [b"2", b"3"]


def test_a_consumer_does_not_sleep_over_what_came_meanwhile(bell):
    buffer, _, reader = make()
    writer = Writer(Ring(buffer), bell)
    assert reader.poll() is None
    writer.write(b"x")
    writer.publish()
    assert not reader.says_it_sleeps()
    assert reader.sleep(bell, -1) is False  # so this returns at once
    assert reader.poll() == b"x"


def test_who_is_awake_again_is_not_rung(bell):
    buffer, _, reader = make()
    writer = Writer(Ring(buffer), bell)
    assert reader.says_it_sleeps()
    reader.awake()
    writer.write(b"x")
    writer.publish()
    assert rung(bell) == 0


def test_a_watermark_alone_rings_only_when_asked(bell):
    buffer, _, reader = make()
    writer = Writer(Ring(buffer), bell)
    assert reader.says_it_sleeps()
    writer.mark(1, 2)
    assert rung(bell) == 0
    writer.wake()
    assert rung(bell) == 1


def test_a_release_rings_only_for_a_producer_that_waits(bell):
    buffer, writer, _ = make()
    reader = Reader(Ring(buffer), bell)
    while writer.write(b"x" * 24):
        pass
    writer.publish()
    assert reader.poll() is not None
    reader.release()
    assert rung(bell) == 0
    assert writer.write(b"x" * 24)
    writer.publish()
    assert writer.says_it_sleeps(24)
    reader.release()                        # nothing new to release
    assert rung(bell) == 0
    reader.poll()
    assert rung(bell) == 0
    reader.release()
    assert rung(bell) == 1
    writer.awake()
    assert writer.claim(24)


def test_a_producer_does_not_wait_where_there_is_room(bell):
    _, writer, reader = make()
    assert not writer.says_it_sleeps(LARGEST)
    while writer.write(b"x" * 8):
        pass
    writer.publish()
    reader.drain()
    assert writer.sleep(8, bell, -1) is False


def test_sleeping_counts_the_padding_that_the_entry_will_need():
    """Room for the entry alone is not enough where it does not fit before the end."""
    _, writer, reader = make()
    for _ in range(SMALLEST // 32):
        assert writer.write(b"x" * 24)
    writer.publish()
    for _ in range(15):
        reader.poll()
    reader.release()
    for _ in range(14):
        assert writer.write(b"y" * 24)
    # 32 bytes are free, and the position is 448 bytes behind the start.
    assert not writer.says_it_sleeps(24)
    assert writer.says_it_sleeps(25)
    for position in range(SMALLEST - 64, SMALLEST, 8):
        _, writer, reader = make(position=position)
        # Fill it until 64 bytes do not fit; then the two must agree on every size.
        while writer.write(b"x" * 40):
            pass
        writer.publish()
        reader.poll()
        reader.release()
        for size in range(0, LARGEST, 8):
            assert writer.says_it_sleeps(size) != writer.claim(size), (position, size)


def test_a_time_out_ends_a_sleep(bell):
    _, writer, reader = make()
    assert reader.sleep(bell, 1) is False
    while writer.write(b"x" * 8):
        pass
    writer.publish()
    assert writer.sleep(8, bell, 1) is False
