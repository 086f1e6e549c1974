"""The merge: hand-made event rings with known keys in, blocks out, in one order."""

import ctypes
import mmap
import os
import struct
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gazer.counters import SINK, Slot, ledger_bytes, ledger_create
from gazer.ring import Ring, ring_bytes
from gazer.sinks.merge import Block, Merge
from gazer.testing import HEADER, MARK_END, OFFSETS, Writer, event_entry

SMALLEST = 4096
TEXT, JSON, MSGPACK, MSGPACK_TIME = range(4)


class Site:
    """A merge over `lanes` rings into blocks of these formats."""

    def __init__(self, lanes=1, formats=(TEXT,), capacity=1 << 16, ring=SMALLEST, bells=None,
                 bell=-1, buffers=None):
        self.buffers = buffers or [bytearray(ring_bytes(ring)) for _ in range(lanes)]
        for buffer in self.buffers:
            Ring(buffer, create=ring).release()
        self.writers = [Writer(Ring(buffer), bell) for buffer in self.buffers]
        self.ledger = bytearray(ledger_bytes(1))
        ledger_create(self.ledger)
        self.formats, self.capacity = formats, capacity
        self.bells, self.bell = bells or [-1] * lanes, bell
        self.begin()

    def begin(self):
        """A sink; the one before has been killed."""
        self.slot = Slot(self.ledger, 0)
        self.blocks = [Block(format=form, capacity=self.capacity) for form in self.formats]
        self.merge = Merge(
            rings=[Ring(buffer) for buffer in self.buffers], bells=self.bells,
            bell=self.bell, slot=self.slot, blocks=self.blocks)

    def heir(self):
        self.begin()
        return self

    def put(self, lane, clock, sequence, *parts, **how):
        """An event, committed."""
        return self.writers[lane].write(event_entry(clock, sequence, parts, **how))

    def publish(self, lane, mark=None):
        self.writers[lane].publish()
        if mark is not None:
            self.writers[lane].mark(*mark)

    def flush(self, block=0):
        """What a sink does with its blocks; returns this one's."""
        done = self.merge.mark()
        data = self.take(block)
        self.merge.settle(done)
        self.slot.publish()
        self.merge.give_back()
        return data

    def end(self):
        for lane in range(len(self.writers)):
            self.publish(lane, (MARK_END, 0))

    def take(self, block=0):
        """What stands in the block, which is emptied."""
        data = bytes(self.blocks[block].data())
        self.blocks[block].clear()
        return data

    @property
    def counted(self):
        return self.slot.read(SINK)["events"]


def line(*key):
    return (" ".join(map(str, key)) + "\n").encode()


# --- order ---------------------------------------------------------------------------------------


def test_one_lane_is_passed_on_as_it_is():
    site = Site()
    for i in range(5):
        assert site.put(0, 100, i, line(i))
    site.publish(0)
    assert site.merge.run() == "idle"
    assert site.take() == b"0\n1\n2\n3\n4\n"
    site.end()
    assert site.merge.run() == "end"
    assert site.take() == b""
    assert site.counted == 5


def test_a_worker_that_changes_an_event_under_the_sink_s_hands_changes_nothing():
    """Its header was looked at when the event was found, and is not read again: a worker that was
    taken over could give a length that fits and put another one in its place."""
    site = Site(2)
    site.put(0, 5, 1, b"0123456789\n")
    site.publish(0)
    site.publish(1, (1, 0))
    assert site.merge.run() == "idle"       # found, and waiting for what the other lane may bring
    where = site.buffers[0].index(struct.pack("<4I", 11, 0, 0, 0))
    struct.pack_into("<4I", site.buffers[0], where, 4, 0, 0, 0)
    site.publish(1, (9, 0))
    assert site.merge.run() == "idle"
    assert site.take() == b"0123456789\n"


def test_the_least_key_goes_first_by_clock_then_by_sequence():
    site = Site(3)
    for lane, keys in enumerate([[(1, 9), (5, 1)], [(1, 10), (4, 90)], [(2, 2), (5, 0), (5, 2)]]):
        for key in keys:
            site.put(lane, *key, line(*key))
    site.end()
    assert site.merge.run() == "end"
    assert site.take() == b"1 9\n1 10\n2 2\n4 90\n5 0\n5 1\n5 2\n"


def test_events_of_one_key_keep_the_order_of_their_ring():
    """A transaction and its records share clock and sequence; only their order tells them apart."""
    site = Site(2)
    site.put(0, 1, 1, b"x\n")
    for i in range(4):
        site.put(1, 2, 2, line(i))
    site.put(0, 2, 3, b"y\n")
    site.end()
    assert site.merge.run() == "end"
    assert site.take() == b"x\n0\n1\n2\n3\ny\n"


def test_keys_beyond_63_bits_are_unsigned():
    site = Site(2)
    site.put(0, (1 << 63) + 1, 1, b"last")
    site.put(1, (1 << 63) - 1, (1 << 63) + 5, b"first ")
    site.put(1, 1 << 63, 0, b"second ")
    site.end()
    assert site.merge.run() == "end"
    assert site.take() == b"first second last"


def test_a_lane_without_entries_holds_the_others_up_until_its_watermark_passes():
    site = Site(2)
    site.put(0, 10, 5, b"a")
    site.put(0, 11, 6, b"b")
    site.publish(0, (11, 7))
    assert site.merge.run() == "idle"
    assert site.take() == b""           # lane 1 may still bring (0, 0)
    site.publish(1, (10, 4))
    assert site.merge.run() == "idle"
    assert site.take() == b""           # ... (10, 4)
    site.publish(1, (10, 6))
    assert site.merge.run() == "idle"
    assert site.take() == b"a"          # (10, 6) or later: before b, it may be
    site.publish(1, (11, 6))
    site.merge.run()
    site.publish(1, (11, 7))
    assert site.merge.run() == "idle"
    assert site.take() == b"b"
    assert site.counted == 2


def test_a_lane_is_held_up_by_the_key_of_its_own_last_event_as_by_a_watermark():
    """Lane 1's entry (7, 1) tells as much as a watermark: later ones are not before it."""
    site = Site(2)
    site.put(1, 7, 1, b"one ")
    site.publish(1)
    site.put(0, 6, 9, b"zero ")
    site.put(0, 7, 0, b"nought ")
    site.put(0, 7, 2, b"two ")
    site.publish(0, (7, 3))
    assert site.merge.run() == "idle"
    assert site.take() == b"zero nought one "
    site.end()
    assert site.merge.run() == "end"
    assert site.take() == b"two "


def test_an_older_watermark_beside_newer_entries_changes_nothing():
    site = Site(2)
    for lane in range(2):
        site.publish(lane, (5, 5))
        for i in range(3):
            site.put(lane, 6 + i, 2 * i + lane, line(6 + i, lane))
        site.publish(lane)
    assert site.merge.run() == "idle"
    assert site.take() == b"6 0\n6 1\n7 0\n7 1\n8 0\n"     # lane 0 may bring another (8, 4)
    site.end()
    assert site.merge.run() == "end"
    assert site.take() == b"8 1\n"


def test_all_lanes_must_be_at_their_end():
    site = Site(3)
    site.publish(0, (MARK_END, 1))
    site.publish(2, (MARK_END, 1))
    assert site.merge.run() == "idle"
    site.put(1, 3, 3, b"late")
    site.publish(1, (MARK_END, 4))
    assert site.merge.run() == "end"
    assert site.take() == b"late"
    assert site.merge.run() == "end"


KEYS = st.tuples(st.integers(0, 6), st.integers(0, 30))


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 16))
def test_any_lanes_come_out_sorted(data, lanes):
    """Random keys, nondecreasing in each lane, published in random steps with watermarks that are
    true; whatever comes out is a prefix of the sorted whole, and at the end it is the whole."""
    site = Site(lanes, capacity=data.draw(st.sampled_from([40, 200, 1 << 16])))
    # A key belongs to one frame and so to one lane; a lane may have it several times.
    owners = data.draw(st.dictionaries(KEYS, st.tuples(st.integers(0, lanes - 1),
                                                       st.integers(1, 3)), max_size=60))
    waiting = [[] for _ in range(lanes)]
    for key in sorted(owners):
        lane, times = owners[key]
        waiting[lane] += [(key, i) for i in range(times)]
    whole = [line(*key, i) for key in sorted(owners) for i in range(owners[key][1])]
    out, marks = [], [(0, 0)] * lanes

    def run():
        while (state := site.merge.run()) == "full":
            out.extend(site.take().splitlines(keepends=True))
        out.extend(site.take().splitlines(keepends=True))
        assert out == whole[: len(out)]
        return state

    for _ in range(data.draw(st.integers(0, 12))):
        lane = data.draw(st.integers(0, lanes - 1))
        for _ in range(data.draw(st.integers(0, 8))):
            if waiting[lane]:
                (key, i) = waiting[lane][0]
                if not site.put(lane, *key, line(*key, i)):
                    break
                waiting[lane].pop(0)
        # A true watermark: at most the key of what is still to come.
        limit = waiting[lane][0][0] if waiting[lane] else (7, 0)
        mark = data.draw(st.none() | KEYS)
        if mark is not None:
            mark = marks[lane] = max(marks[lane], min(mark, limit))
        site.publish(lane, mark)
        assert run() == "idle"
    while any(waiting):
        for lane in range(lanes):
            while waiting[lane] and site.put(lane, *waiting[lane][0][0],
                                             line(*waiting[lane][0][0], waiting[lane][0][1])):
                waiting[lane].pop(0)
            site.publish(lane, (MARK_END, 0) if not waiting[lane] else None)
        run()
    site.end()
    assert run() == "end"
    assert out == whole
    assert site.counted == len(whole)


# --- blocks --------------------------------------------------------------------------------------


def test_each_output_gets_its_own_format():
    site = Site(formats=(MSGPACK, TEXT, JSON, TEXT, MSGPACK_TIME))
    site.put(0, 1, 1, b"text1 ", b"json1 ", b"pack1 ", b"ext1 ")
    site.put(0, 1, 2, b"text2", b"json2", b"pack2", b"ext2")
    site.end()
    assert site.merge.run() == "end"
    assert [site.take(i) for i in range(5)] == [
        b"pack1 pack2", b"text1 text2", b"json1 json2", b"text1 text2", b"ext1 ext2"]


def test_formats_that_are_not_in_use_have_no_length():
    site = Site(formats=(MSGPACK, TEXT))
    site.put(0, 1, 1, b"", b"", b"\x93\x01")
    site.put(0, 1, 2, b"", b"", b"\x93\x02")
    site.end()
    assert site.merge.run() == "end"
    assert site.take(0) == b"\x93\x01\x93\x02"
    assert site.take(1) == b""
    assert site.counted == 2


def test_without_outputs_events_are_merged_and_counted_all_the_same():
    site = Site(formats=())
    site.put(0, 1, 1, b"x")
    site.end()
    assert site.merge.run() == "end"
    assert site.counted == 1


@pytest.mark.parametrize("capacity", [6, 7, 11, 12, 13, 600])
def test_a_full_block_is_written_and_nothing_is_lost_or_repeated(capacity):
    site = Site(2, capacity=capacity, ring=1 << 16)
    for i in range(100):
        assert site.put(i % 2, 1, i, b"%05d\n" % i)
    site.end()
    out, blocks = b"", 0
    while (state := site.merge.run()) == "full":
        assert site.blocks[0].events * 6 == site.blocks[0].used
        # Asked again with a block that was not written, it stays as it is.
        assert site.merge.run() == "full"
        out += site.take()
        blocks += 1
    assert state == "end"
    out += site.take()
    assert out == b"".join(b"%05d\n" % i for i in range(100))
    assert blocks == (100 - 1) // (capacity // 6)
    assert site.counted == 100


def test_if_one_block_is_full_none_gets_the_event():
    """Else an output that has room would get it again after the other's block was written."""
    site = Site(formats=(TEXT, JSON), capacity=10)
    site.put(0, 1, 1, b"123456", b"1")
    site.put(0, 1, 2, b"abcdef", b"a")
    site.end()
    assert site.merge.run() == "full"
    assert [block.events for block in site.blocks] == [1, 1]
    assert (site.take(0), site.take(1)) == (b"123456", b"1")
    assert site.merge.run() == "end"
    assert (site.take(0), site.take(1)) == (b"abcdef", b"a")


def test_rings_are_released_as_their_events_are_settled():
    """The smallest ring carries any amount; nothing waits in it once it has been settled."""
    site = Site(2, capacity=1 << 16)
    out = []
    for i in range(2000):
        lane = i % 2
        while not site.put(lane, i, i, line(i)):
            pytest.fail("no room in a ring whose events have all been settled")
        site.publish(lane, (i, i + 1))
        site.publish(1 - lane, (i, i + 1))
        assert site.merge.run() == "idle"
        out.append(site.flush())
    assert b"".join(out) == b"".join(line(i) for i in range(2000))


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [(5, 5), (MARK_END, 0)])
@pytest.mark.parametrize(
    "lengths", [(6, 0, 0, 0), (0, 0, 0, 6), (0xFFFFFFFF, 0, 0, 0), (0xFFFFFFFF,) * 4,
                (0x80000000, 0x80000000, 0, 0), (3, 3, 3, 3)])
def test_parts_beyond_their_entry_are_corrupt(lengths, mark):
    """Entries are rounded up to 8 bytes: 5 bytes stand in the entry, 8 in the ring."""
    site = Site()
    site.put(0, 1, 1, b"good")
    site.put(0, 1, 2, b"12345", lengths=lengths)
    site.publish(0, mark)
    for _ in range(3):
        assert site.merge.run() == "corrupt"
    assert site.take() == b"good"
    assert site.counted == 1


@pytest.mark.parametrize("size", [0, 8, 16, 40])
def test_an_entry_shorter_than_its_header_is_corrupt(size):
    site = Site()
    site.put(0, 1, 1, b"good")
    site.writers[0].write(b"\0" * size)
    site.put(0, 1, 3, b"never")
    site.end()
    for _ in range(3):
        assert site.merge.run() == "corrupt"
    assert site.take() == b"good"


def test_a_damaged_ring_whose_worker_is_done_is_not_taken_for_its_end():
    site = Site(2)
    for lane in range(2):
        site.put(lane, 1 + lane, lane, line(lane))
        site.put(lane, 3 + lane, lane, line(3 + lane))
    first = site.writers[1].tail // 2
    struct.pack_into("<I", site.buffers[1], HEADER + first, 3)      # an entry of 3 bytes
    site.end()
    assert site.merge.run() == "corrupt"
    assert site.take() == b"0\n1\n"
    assert site.merge.run() == "corrupt"


def test_an_event_that_claims_the_clock_s_end_is_corrupt():
    site = Site()
    site.put(0, MARK_END, 1, b"x")
    site.publish(0, (5, 5))
    assert site.merge.run() == "corrupt"


def test_an_event_larger_than_an_empty_block_is_corrupt_not_an_endless_full():
    site = Site(formats=(TEXT, JSON), capacity=10)
    site.put(0, 1, 1, b"fits", b"fits")
    site.put(0, 1, 2, b"does not fit", b"x")
    site.end()
    assert site.merge.run() == "full"
    assert (site.take(0), site.take(1)) == (b"fits", b"fits")
    assert site.merge.run() == "corrupt"


def test_nothing_is_read_beyond_a_ring_s_end():
    """The ring ends at an unreadable page, with entries that would lead there."""
    page = mmap.PAGESIZE
    size = ring_bytes(SMALLEST)
    pages = -(-size // page)
    memory = mmap.mmap(-1, (pages + 1) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + pages * page), page, 0) == 0
    view = memoryview(memory)[pages * page - size : pages * page]
    for payload in [b"", b"\0" * 8, event_entry(1, 1, [b"123"], lengths=(100, 0, 0, 0)),
                    event_entry(1, 1, [], lengths=(0xFFFFFFFF, 0, 0, 0))]:
        Ring(view, create=SMALLEST).release()
        position = SMALLEST - (len(payload) + 15) // 8 * 8
        struct.pack_into("<Q", view, OFFSETS["head"], position)
        struct.pack_into("<Q", view, OFFSETS["tail"], position)
        writer = Writer(Ring(view))
        assert writer.write(payload) and writer.publish()
        assert writer.tail == SMALLEST
        ledger = bytearray(ledger_bytes(1))
        ledger_create(ledger)
        merge = Merge(rings=[Ring(view)], bells=[-1], bell=-1, slot=Slot(ledger, 0),
                      blocks=[Block(format=TEXT, capacity=1 << 16)])
        assert merge.run() == "corrupt"


# --- waiting -------------------------------------------------------------------------------------


@pytest.fixture
def bell():
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def waited(site):
    """Seconds that one wait(), of up to 90 ms, takes."""
    started = time.monotonic()
    site.merge.wait(90)
    return time.monotonic() - started


def test_wait_returns_at_once_for_what_came_after_the_last_look(bell):
    site = Site(2, bell=bell)
    assert site.merge.run() == "idle"
    assert waited(site) > 0.08
    site.put(0, 1, 1, b"x")
    site.publish(0)
    assert waited(site) < 0.08
    assert site.merge.run() == "idle"
    site.publish(1, (0, 1))                 # a watermark alone is news as well
    assert waited(site) < 0.08
    assert site.merge.run() == "idle"
    assert waited(site) > 0.08


def test_entries_that_can_t_go_on_yet_do_not_keep_the_sink_awake(bell):
    """Lane 0 has brought nothing; that the others have is no reason to look again and again."""
    site = Site(3, bell=bell)
    for lane in (1, 2):
        for i in range(10):
            site.put(lane, 1 + i, lane, b"x")
        site.publish(lane, (20, 0))
    assert site.merge.run() == "idle"
    assert waited(site) > 0.08
    site.publish(0, (5, 0))
    assert waited(site) < 0.08
    assert site.merge.run() == "idle"
    assert site.take() == b"x" * 8
    assert waited(site) > 0.08


@pytest.mark.parametrize("ring, doze", [(4 << 20, True), (1 << 19, False)])
def test_after_much_work_the_next_is_let_gather_for_a_while(bell, ring, doze):
    """For 4 ms with rings of 4 MiB, and nobody rings for what comes meanwhile.  A small ring might
    be full by then."""
    site = Site(bell=bell, ring=ring)
    clock = 0

    def burst(events):
        nonlocal clock
        for _ in range(events):
            clock += 1
            site.put(0, clock, 0, b"x")
        site.publish(0)
        assert site.merge.run() == "idle" and len(site.take()) == events

    burst(63)
    assert waited(site) > 0.08              # that was not much
    burst(64)
    took = waited(site)
    assert 0.003 < took < 0.08 if doze else took > 0.08
    site.put(0, clock + 1, 0, b"x")
    site.publish(0)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(bell)
    assert waited(site) < 0.08              # it is there
    assert site.merge.run() == "idle" and site.take() == b"x"
    assert waited(site) > 0.08


def test_news_end_a_wait_for_ever(bell):
    site = Site(2, bell=bell)
    done = threading.Event()

    def wait():
        site.merge.wait(-1)                 # no time-out that could hide a lost wake-up
        done.set()

    def waits():
        done.clear()
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        return not done.wait(0.05)

    assert site.merge.run() == "idle"
    assert waits()
    site.put(0, 1, 1, b"x")
    site.publish(0)
    assert done.wait(10)
    assert site.merge.run() == "idle"
    assert waits()
    site.publish(1, (1, 2))
    site.writers[1].wake()                  # as a worker does, once a turn
    assert done.wait(10)
    assert site.merge.run() == "idle"
    assert site.take() == b"x"


def test_workers_waiting_for_room_are_rung(bell):
    site = Site(bells=[bell])
    while site.put(0, 1, 1, b"x" * 100):
        pass
    site.publish(0, (1, 2))
    assert site.writers[0].says_it_sleeps(200)
    assert site.merge.run() == "full"
    site.flush()
    assert os.eventfd_read(bell) == 1
    assert not site.writers[0].says_it_sleeps(200)


@pytest.mark.parametrize("count", [0, 65])
def test_a_number_of_rings_that_can_t_be_is_refused(count):
    with pytest.raises(ValueError, match="1 to 64"):
        Site(count)


def test_release_lets_go_of_all_memory():
    buffer = bytearray(ring_bytes(SMALLEST))
    Ring(buffer, create=SMALLEST).release()
    ledger = bytearray(ledger_bytes(1))
    ledger_create(ledger)
    merge = Merge(rings=[Ring(buffer)], bells=[-1], bell=-1, slot=Slot(ledger, 0), blocks=[])
    merge.release()
    buffer.extend(b"x")
    ledger.extend(b"x")
