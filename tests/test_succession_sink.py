"""Succession of the sink: it is killed at each point of its protocol, and another one goes on.

The events stand in rings and a ledger that outlive it; what its outputs hold in the end is compared
with what there is to be written.  A file holds each event once.  A pipe holds each once but for one
block that was under way, which it may have twice.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
import random
import signal
import struct
import threading
import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gazer.counters import SINK, Slot, ledger_bytes, ledger_create
from gazer.errors import SharedMemoryError
from gazer.ring import Ring, ring_bytes
from gazer.sinks import files
from gazer.sinks.files import MOST_CUT, FileOutput
from gazer.sinks.merge import Merge
from gazer.sinks.outputs import BLOCK as BLOCK_OF_SINK
from gazer.sinks.outputs import Outputs
from gazer.sinks.process import pump
from gazer.sinks.threads import Hand
from gazer.testing import MARK_END, Writer, event_entry
from tests.conftest import eventually
from tests.spools import Wrapped
from tests.test_merge import TEXT, Site, line

SLOT = ledger_bytes(1) // 2             # the ledger's head is as large as a slot
LANES = 256 + 8 * 440                   # the first lane's position, of the first bank

# --- the merge -----------------------------------------------------------------------------------


def test_what_is_not_settled_stays_in_its_ring():
    site = Site(2, ring=1 << 14)
    for i in range(20):
        site.put(i % 2, i, i, line(i))
    site.end()
    filled = [Ring(buffer).filled for buffer in site.buffers]
    assert site.merge.run() == "end"
    assert site.merge.mark() == 20
    assert not site.merge.settle(19)
    site.merge.give_back()
    assert [Ring(buffer).filled for buffer in site.buffers] == filled
    assert site.merge.settle(20)
    assert [Ring(buffer).filled for buffer in site.buffers] == filled     # not committed yet
    site.merge.give_back()
    assert [Ring(buffer).filled for buffer in site.buffers] == [0, 0]


def test_a_lane_asks_for_a_flush_before_its_producer_has_to_wait():
    """Of a ring only an eighth (and an entry) is taken between two flushes; what is settled late
    may take three eighths more, and then the merge says that it is pressed."""
    site = Site(ring=1 << 16)
    number = flushes = 0
    out = b""
    while not site.merge.pressed:
        while site.put(0, 1, number, line(number)):
            number += 1
        site.publish(0, (1, number))
        if site.merge.run() == "full":
            site.merge.mark()
            flushes += 1
            out += site.take()
    assert flushes == 3
    assert site.merge.settle(site.merge.merged)
    site.slot.publish()
    site.merge.give_back()
    assert not site.merge.pressed
    assert site.put(0, 1, number, b"x" * ((1 << 14) - 100))
    assert out == b"".join(line(i) for i in range(out.count(b"\n")))


def test_an_entry_in_hand_that_found_no_room_is_not_settled():
    """It was polled, and it stands in no block yet."""
    site = Site(capacity=8)
    site.put(0, 1, 1, b"12345\n")
    site.put(0, 1, 2, b"abcde\n")
    site.publish(0, (1, 3))
    assert site.merge.run() == "full"
    assert site.flush() == b"12345\n"
    heir = site.heir()
    assert heir.merge.run() == "idle"
    assert heir.take() == b"abcde\n"


def test_more_marks_than_are_kept_settle_what_is_certain():
    site = Site(ring=1 << 16)
    marks = []
    for i in range(300):
        site.put(0, i, i, line(i))
        site.publish(0, (i, i + 1))
        assert site.merge.run() == "idle"
        marks.append(site.merge.mark())
    assert marks == list(range(1, 301))
    site.take()
    for done in (1, 60, 201, 299, 300):
        site.merge.settle(done)
        site.slot.publish()
        assert done - 8 < site.slot.read(SINK)["settled"] <= done
    assert site.slot.read(SINK)["settled"] == 300


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_successor_goes_on_where_the_last_commit_was(data):
    """Killed at any time, any number of times: each output has each event once, and in order, if it
    says how many it had, though the rings' own heads may be behind what was committed."""
    lanes, outputs = data.draw(st.integers(1, 3)), 2
    site = Site(lanes, formats=(TEXT,) * outputs, capacity=64, ring=1 << 13)
    out = [b""] * outputs
    for i in range(60):
        site.put(i % lanes, i, i, line(i))
    site.end()
    for turn in range(100):
        state = site.merge.run()
        done = site.merge.mark()
        for number in range(outputs):
            if turn > 30 or data.draw(st.booleans()):
                out[number] += site.take(number)
        had = [written.count(b"\n") for written in out]
        site.merge.settle(min(had))
        if data.draw(st.booleans()):
            site.slot.publish()
            if data.draw(st.booleans()):
                site.merge.give_back()
        if state == "end" and min(had) == done == 60:
            break
        if turn < 30 and data.draw(st.integers(0, 4)) == 0:
            site = site.heir()
            for number in range(outputs):
                site.merge.skip(number, had[number] - site.merge.merged)
    assert out == [b"".join(line(i) for i in range(60))] * outputs


@pytest.mark.parametrize("position", [4, 1 << 20, (1 << 64) - 8])
def test_a_committed_position_that_is_not_in_the_ring_is_refused(position):
    site = Site()
    struct.pack_into("<Q", site.ledger, SLOT + LANES, position)     # while nothing was committed
    with pytest.raises(SharedMemoryError, match="not in its ring"):
        site.heir()


# --- the whole sink ------------------------------------------------------------------------------

BLOCK = 120         # bytes: some ten events
EVENTS = 300
TORN = b"\n"


def shared(size):
    return mmap.mmap(-1, size)


class Kill:
    """Kills this process when a point is passed for the `after`-th time."""

    def __init__(self, point=None, after=0):
        self.point, self.left = point, after

    def __call__(self, point):
        if point == self.point:
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)


class Taps:
    """A merge that passes points."""

    def __init__(self, merge, kill):
        self._merge, self._kill = merge, kill

    def __getattr__(self, name):
        return getattr(self._merge, name)

    def settle(self, done):
        settled = self._merge.settle(done)
        self._kill("settled, not committed")
        return settled

    def give_back(self):
        self._kill("committed, heads not stored")
        self._merge.give_back()
        self._kill("heads stored")


class Dying(FileOutput):
    """An output that passes points."""

    def __init__(self, kill, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._kill = kill

    def _write(self, block):
        self._kill("nothing written")
        if self._kill.point == "half written":
            self._kill.left -= 1
            if self._kill.left < 0:
                os.write(self._fd, block[: len(block) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
        super()._write(block)
        self._kill("written, not committed")


POINTS = ["nothing written", "half written", "written, not committed", "settled, not committed",
          "committed, heads not stored", "heads stored"]


class Sinks:
    """One sink after the other over the same rings and ledger."""

    def __init__(self, paths, *, ring=1 << 16, lanes=2):
        self.paths, self.ring, self.lanes = paths, ring, lanes
        self.rings = [shared(ring_bytes(ring)) for _ in range(lanes)]
        for memory in self.rings:
            Ring(memory, create=ring).release()
        self.writers = [Writer(Ring(memory)) for memory in self.rings]
        self.ledger = shared(ledger_bytes(1))
        ledger_create(self.ledger)
        self.put = 0
        self.said = []

    def fill(self, count=EVENTS, *, end=True):
        for number in range(self.put, self.put + count):
            assert self.writers[number % self.lanes].write(
                event_entry(1 + number, number, [line(number)]))
        self.put += count
        for writer in self.writers:
            writer.publish()
            writer.mark(MARK_END if end else self.put + 1, 0)

    def whole(self):
        return b"".join(line(i) for i in range(self.put))

    def begin(self, kill, bell, queue=1 << 20):
        """The parts of a sink."""
        slot = Slot(self.ledger, 0)
        slot.open(os.getpid())
        outputs = Outputs(
            files=[Dying(kill, path, lines=True, notice=self.said.append, lasting=True,
                         giving_up=lambda: False, waits=lambda _: None,
                         place=slot.output_place(number))
                   for number, path in enumerate(self.paths)],
            forms=[TEXT] * len(self.paths), lines=[True] * len(self.paths), slot=slot,
            capacity=BLOCK, notice=self.said.append, fault=self.said.append,
            hand=functools.partial(Hand, bell=bell), queue=queue)
        merge = Taps(Merge(rings=[Ring(memory) for memory in self.rings], bells=[-1] * self.lanes,
                           bell=bell, slot=slot, blocks=outputs.blocks), kill)
        outputs.attach(merge)
        return slot, merge, outputs

    def run(self, kill=None):
        """A sink in a process of its own; True if it came to the end, False if it was killed."""
        _, status = os.waitpid(self.start(kill), 0)
        assert status in (0, signal.SIGKILL), f"the sink failed: {status}"
        return status == 0

    def start(self, kill=None):
        """Its pid."""
        pid = os.fork()
        if pid == 0:
            code = 9
            try:
                bell = os.eventfd(0, os.EFD_NONBLOCK)
                slot, merge, outputs = self.begin(kill or Kill(), bell)
                pump(SimpleNamespace(slot=slot), merge, outputs, None, 5.0)
                outputs.close()
                code = 0
            finally:
                os._exit(code)
        return pid

    def balance(self):
        """The account closes: nothing lost, nothing counted twice."""
        slot = Slot(self.ledger, 0)
        sink = slot.read(SINK)
        assert (sink["events"], sink["settled"]) == (self.put, self.put)
        for number in range(len(self.paths)):
            output = slot.read_output(number)
            assert output["events"] + output["dropped"] == self.put + output["stats"]
            assert output["done"] == self.put
        assert [Ring(memory).filled for memory in self.rings] == [0] * self.lanes
        return [slot.read_output(number)["dropped"] for number in range(len(self.paths))]


@pytest.mark.parametrize("after", [0, 1, 2, 7])
@pytest.mark.parametrize("point", POINTS)
def test_files_are_what_an_undisturbed_sink_makes_of_them(tmp_path, point, after):
    """Killed between two outputs, too: with three of them the points come by turns."""
    paths = [tmp_path / f"out{i}" for i in range(3)]
    sinks = Sinks(list(map(str, paths)))
    sinks.fill()
    assert not sinks.run(Kill(point, after))
    assert sinks.run()
    for path in paths:
        assert path.read_bytes() == sinks.whole()
    assert sinks.balance() == [0, 0, 0]


def test_killed_again_and_again(tmp_path):
    chosen = random.Random(5)
    paths = [tmp_path / f"out{i}" for i in range(2)]
    sinks = Sinks(list(map(str, paths)))
    sinks.fill(800)
    kills = 0
    while not sinks.run(Kill(chosen.choice(POINTS), chosen.randrange(6))):
        kills += 1
    assert kills > 5
    for path in paths:
        assert path.read_bytes() == sinks.whole()
    assert sinks.balance() == [0, 0]


def test_a_file_that_was_there_before_keeps_what_it_had(tmp_path):
    path = tmp_path / "out"
    path.write_bytes(b"from before\n")
    sinks = Sinks([str(path)])
    sinks.fill()
    assert not sinks.run(Kill("half written", 0))
    assert sinks.run()
    assert path.read_bytes() == b"from before\n" + sinks.whole()


def test_another_file_of_that_name_is_not_cut(tmp_path):
    """Rotated in between: the sizes say nothing then."""
    path = tmp_path / "out"
    sinks = Sinks([str(path)])
    sinks.fill()
    assert not sinks.run(Kill("half written", 3))
    path.rename(tmp_path / "old")
    path.write_bytes(b"someone else's\n" * 1000)
    assert sinks.run()
    old, new = (tmp_path / "old").read_bytes(), path.read_bytes()
    assert new.startswith(b"someone else's\n" * 1000)
    ours = new[len(b"someone else's\n") * 1000 :]
    # It is not known by this name: the block that was half written stands in both.
    assert sinks.whole().endswith(ours)
    assert 0 < len(old) + len(ours) - len(sinks.whole()) <= BLOCK


@pytest.mark.parametrize(("more", "hand", "cut"), [
    (MOST_CUT, MOST_CUT, True), (MOST_CUT + 1, MOST_CUT + 1, False), (99, 99, True),
    (100, 99, False), (1, 0, False), (0, 0, True), (0, 99, True)])
@pytest.mark.parametrize("moved", [False, True])
def test_no_more_than_the_block_in_hand_is_cut(tmp_path, more, hand, cut, moved):
    """Nor more than any block: what is committed may be anything, if it comes from a worker that
    was taken over."""
    path = now = tmp_path / "out"
    path.write_bytes(b"kept\n")
    said = []

    def output(place):
        return FileOutput(str(path), lines=True, notice=said.append, giving_up=lambda: False,
                          waits=lambda _: None, lasting=True, place=place)

    first = output((0, 0, 0))
    place = (*first.place, hand)
    with path.open("ab") as file:
        file.write(bytes(more))
    if moved:
        now = path.rename(tmp_path / "out.1")
    heir = output(place)
    assert heir.cuttable is (cut or moved)      # else: it is not alone
    heir.close()
    first.close()
    assert now.stat().st_size == 5 + (0 if cut else more)
    twice = " and up to a block of events may be in it twice" if hand else ""
    assert said == ([] if cut else [
        f"somebody else has written to {path} too: it stays as it is{twice}"])


def test_a_file_that_may_only_be_appended_to_does_not_end_its_successors(tmp_path, monkeypatch):
    """chattr +a: what the dead sink had in hand stays, and comes again behind it."""
    path = tmp_path / "out"

    def forbidden(fd, size):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(files, "os", Wrapped(ftruncate=forbidden))
    sinks = Sinks([str(path)])
    sinks.fill()
    assert not sinks.run(Kill("half written", 3))
    assert sinks.run()
    lines = path.read_bytes().split(b"\n")
    assert {*lines} >= {*sinks.whole().split(b"\n")}
    assert 0 < path.stat().st_size - len(sinks.whole()) <= BLOCK + 1
    assert sinks.balance() == [0]


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("point", POINTS)
def test_what_was_appended_while_the_sink_was_idle_is_not_cut(tmp_path, point, torn):
    """Killed while there is nothing to do, or at any point behind that, and somebody else has
    written: their lines stay.  `torn`: without a line end."""
    path = tmp_path / "out"
    sinks = Sinks([str(path)])
    sinks.fill(50, end=False)
    pid = sinks.start()
    eventually(lambda: Slot(sinks.ledger, 0).read_output(0)["done"] == 50)
    eventually(lambda: Slot(sinks.ledger, 0).output_place(0)[2] == 0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    theirs = b"theirs" + b"\n" * (not torn)
    with path.open("ab") as file:
        file.write(theirs)
    sinks.fill()
    assert not sinks.run(Kill(point, 2))
    assert sinks.run()
    data = path.read_bytes()
    assert data.count(theirs) == 1
    rest = data.replace(b"theirs\n", b"")
    if point in ("half written", "written, not committed", "settled, not committed"):
        # It is not cut any more, since others write to it: lines stand twice, none is lost.
        assert {line for line in rest.split(b"\n") if line} >= set(sinks.whole().split())
        assert len(rest) - len(sinks.whole()) <= 2 * BLOCK
    else:
        assert rest == sinks.whole()
    assert sinks.balance() == [0]


def test_the_line_end_ahead_of_a_block_is_taken_back_too(tmp_path):
    """A file that ended within a line, and a block that was written whole: one octet more."""
    path = tmp_path / "out"
    path.write_bytes(b"torn")
    sinks = Sinks([str(path)])
    sinks.fill()
    assert not sinks.run(Kill("written, not committed"))
    assert path.stat().st_size > 4
    assert sinks.run()
    assert path.read_bytes() == b"torn\n" + sinks.whole()


def test_the_largest_block_can_be_cut():
    assert max(BLOCK_OF_SINK, (1 << 20) + 1024) <= MOST_CUT     # see open_outputs


@pytest.mark.parametrize("point", POINTS)
def test_a_file_that_was_rotated_before_the_death_is_cut(tmp_path, point):
    """By the name that rotation gave it; files beside it that are not meant are left alone."""
    path, moved, older = (tmp_path / name for name in ("out", "out.1", "out.2"))
    older.write_bytes(b"older\n" * 1000)
    os.mkfifo(tmp_path / "out.fifo")
    (tmp_path / "out.link").symlink_to(older)
    sinks = Sinks([str(path)])
    sinks.fill()
    assert not sinks.run(Kill(point, 3))
    path.rename(moved)
    assert sinks.run()
    first, second = moved.read_bytes(), path.read_bytes()
    assert first.endswith(b"\n") and second
    assert first + second == sinks.whole()
    assert older.read_bytes() == b"older\n" * 1000
    assert sinks.balance() == [0]


def test_what_others_wrote_into_the_file_is_not_cut(tmp_path):
    path = tmp_path / "out"
    sinks = Sinks([str(path)])
    sinks.fill()
    kill = Kill("nothing written", 5)
    theirs = b"theirs\n"

    class Disturbing(Kill):
        def __call__(self, point):
            if point == "nothing written" and kill.left == 3:
                with path.open("ab") as file:
                    file.write(theirs)
            kill(point)

    assert not sinks.run(Disturbing())
    with path.open("ab") as file:
        file.write(theirs)
    assert sinks.run()
    data = path.read_bytes()
    assert data.count(theirs) == 2
    assert data.replace(theirs, b"") == sinks.whole()


def test_a_shell_s_redirection_is_cut_as_well(tmp_path):
    """Not opened for appending, and its offset is shared with whoever made it."""
    path = tmp_path / "out"
    before = os.dup(1)
    try:
        with path.open("wb") as file:
            os.dup2(file.fileno(), 1)
        sinks = Sinks(["-"])
        sinks.fill()
        ended = sinks.run(Kill("half written", 4)), sinks.run()
    finally:
        os.dup2(before, 1)
        os.close(before)
    assert ended == (False, True)
    assert path.read_bytes() == sinks.whole()


class Drain(threading.Thread):
    """Reads a FIFO as long as anyone writes to it, and then waits for the next one."""

    def __init__(self, path):
        super().__init__(daemon=True)
        # Both ways, so that it never finds the end.
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self.data = b""
        self.over = threading.Event()
        self.start()

    def run(self):
        while not self.over.wait(0.001):
            with contextlib.suppress(BlockingIOError):
                while piece := os.read(self.fd, 1 << 16):
                    self.data += piece

    def end(self):
        time.sleep(0.02)
        self.over.set()
        self.join()
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.fd, 1 << 16):
                self.data += piece
        os.close(self.fd)
        return self.data


@pytest.mark.parametrize("after", [0, 5])
@pytest.mark.parametrize("point", POINTS)
def test_a_pipe_repeats_at_most_one_block(tmp_path, point, after):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    drain = Drain(path)
    sinks = Sinks([str(path)])
    sinks.fill()
    assert not sinks.run(Kill(point, after))
    assert sinks.run()
    data = drain.end()
    # What was torn ends with a line end of its own, so that the next line is whole.
    lines = data.split(b"\n")
    numbers = [int(text) for text in lines if text]
    kept = sorted(set(numbers) & set(range(EVENTS)))
    assert kept == list(range(EVENTS))
    assert len(data) - len(sinks.whole()) <= BLOCK + len(TORN)
    if point in ("settled, not committed", "committed, heads not stored", "heads stored",
                 "nothing written"):
        assert len(numbers) - EVENTS <= BLOCK // 2
    assert sinks.balance() == [0]


# --- a worker that is dead -----------------------------------------------------------------------


def test_a_dead_worker_s_lane_stands_until_its_successor_moves_on():
    site = Site(2)
    site.put(0, 4, 1, b"4 ")
    site.put(0, 6, 3, b"6 ")
    site.publish(0, (20, 0))
    site.put(1, 5, 2, b"5 ")
    site.put(1, 7, 9, b"never published")
    site.writers[1] = None                      # it died ahead of its publication
    assert site.merge.run() == "idle"
    assert site.flush() == b""
    heir = site.writers[1] = Writer(Ring(site.buffers[1]))
    site.put(1, 5, 2, b"5 ")
    site.publish(1, (5, 3))
    assert heir.tail > 0
    assert site.merge.run() == "idle"
    assert site.flush() == b"4 5 "              # (5, 3) or later may still come
    site.put(1, 8, 9, b"8 ")
    site.publish(1, (9, 0))
    assert site.merge.run() == "idle"
    assert site.flush() == b"6 8 "
    site.end()
    assert site.merge.run() == "end"


def test_settling_all_is_marking_settling_committing_and_giving_back():
    site = Site(2)
    for i in range(10):
        site.put(i % 2, i, i, line(i))
    site.end()
    while site.merge.run() == "full":
        site.take()
        site.merge.settle_all()
    site.merge.settle_all()
    assert site.slot.read(SINK)["settled"] == 10
    assert [Ring(buffer).filled for buffer in site.buffers] == [0, 0]
    assert site.heir().merge.run() == "end"
    assert site.take() == b""
