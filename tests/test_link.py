"""Fluentd outputs from the sink's loop: a window of tasks, what is settled when, and the account of
a spool over several sinks.  The Forwarder is one that does what the test says."""

from __future__ import annotations

import os
from collections import deque
from types import SimpleNamespace

import msgpack
import pytest

from gazer.counters import SINK, Slot, ledger_bytes, ledger_create
from gazer.errors import OutputError
from gazer.event import TAG_STATS, TAGS
from gazer.ring import Ring, ring_bytes
from gazer.sinks import outputs as outputs_module
from gazer.sinks.files import FileOutput, GaveUpError
from gazer.sinks.link import Link
from gazer.sinks.merge import Merge
from gazer.sinks.outputs import Outputs
from gazer.sinks.tasks import Answer
from gazer.sinks.threads import Hand
from gazer.testing import MARK_END, Writer, event_entry
from tests.conftest import eventually, whole_lines
from tests.test_merge import MSGPACK, TEXT, line

COUNTS = dict.fromkeys((
    "delivered", "dropped", "damaged", "found", "there", "spool_bytes", "resent", "rejected",
    "unacknowledged", "servers", "servers_up", "spool_failing"), 0)


class Forwarder:
    """Holds its tasks until the test answers them."""

    def __init__(self, window=3, **counts):
        self.name, self.window, self.progress, self.wanted = "fluentd at x", window, 0.0, False
        self.said, self.why = 0.0, ""
        self.tasks: deque = deque()
        self.answers: deque[Answer] = deque()
        self.came: list[tuple[str, int]] = []
        self.told = COUNTS | counts
        self.ended: float | None = None

    def give(self, *tasks):
        self.tasks.extend(tasks)
        assert len(self.tasks) <= self.window

    def take(self):
        return self.answers.popleft() if self.answers else None

    def answer(self, *, spooled=0, dropped=0, failure=None):
        """The oldest task: `spooled` and `dropped` of its events are, the rest is acknowledged."""
        task = self.tasks.popleft()
        answer = Answer(task, failure)
        total = sum(n for _, _, n in task.parts)
        assert total == task.events + task.stats
        answer.spooled, answer.dropped = spooled, dropped
        answer.events = 0 if failure else total - spooled - dropped
        answer.bytes = task.size
        for tag, data, _ in task.parts:
            unpacker = msgpack.Unpacker()
            unpacker.feed(data)
            self.came += [(tag, record["n"]) for _, record in unpacker if "n" in record]
        self.answers.append(answer)
        return task

    def end(self, patience=0.0):
        self.ended = patience
        while self.tasks:
            self.answer(failure=GaveUpError())

    def join(self, timeout):
        return self.ended is not None

    def counts(self):
        return dict(self.told)


class Spool:
    def __init__(self, last=0, before=(0, 0), lost=0):
        self.upto, self.dropped = last, lost
        self.account = SimpleNamespace(before=before)

    def last(self, run):
        assert run == 77
        return self.upto

    def lost(self, run):
        assert run == 77
        return self.dropped


class Sink:
    """With one lane, a fluentd output, and a file beside it if there is a path."""

    def __init__(self, forwarder, path=None, *, live=True, limit=200, queue=1000, ring=1 << 16,
                 spool=None, ledger=None, memory=None, flush_after=0.0):
        self.memory = memory or bytearray(ring_bytes(ring))
        if memory is None:
            self.writer = Writer(Ring(self.memory, create=ring))
        self.ledger = ledger or bytearray(ledger_bytes(1))
        if ledger is None:
            ledger_create(self.ledger)
        self.slot = Slot(self.ledger, 0)
        self.bell = os.eventfd(0, os.EFD_NONBLOCK)
        self.said: list[str] = []
        self.faults: list[str] = []
        self.forwarder = forwarder
        self.link = Link(forwarder, spool=spool, capacity=4000, limit=limit, queue=queue,
                         flush_after=flush_after, most=1 << 20, run=77)
        files: list[FileOutput | Link] = [self.link]
        if path is not None:
            files.append(FileOutput(str(path), lines=True, notice=self.said.append, lasting=live,
                                    giving_up=lambda: False, waits=lambda _: None))
        self.outputs = Outputs(
            files=files, forms=[MSGPACK, TEXT][: len(files)], lines=[False, True][: len(files)],
            slot=self.slot, capacity=4000, notice=self.said.append, fault=self.faults.append,
            hand=(lambda perform: Hand(perform, self.bell)) if live else None)
        self.merge = Merge(rings=[Ring(self.memory)], bells=[-1], bell=self.bell, slot=self.slot,
                           blocks=self.outputs.blocks)
        self.outputs.attach(self.merge)
        self.put = 0

    def events(self, count, tag=0, size=0):
        for number in range(self.put, self.put + count):
            packed = msgpack.packb([TAGS[tag], 5, {"n": number, "x": "y" * size}])
            assert self.writer.write(
                event_entry(1 + number, number, [line(number), b"", packed], tag=tag))
        self.put += count
        self.writer.publish()
        self.writer.mark(self.put + 1, 0)

    def task(self, count=1, **how):
        """These events as a task of their own."""
        self.events(count, **how)
        self.merge.run()
        self.outputs.flush()

    def counted(self, *names):
        found = self.slot.read_output(0)
        return tuple(found[name] for name in names) if names else found

    @property
    def settled(self):
        return self.slot.read(SINK)["settled"]


def test_a_window_of_tasks_is_in_hand_and_the_rest_waits():
    forwarder = Forwarder(window=3)
    sink = Sink(forwarder)
    for _ in range(5):
        sink.task()
    assert [t.upto for t in forwarder.tasks] == [1, 2, 3]
    forwarder.answer()
    sink.outputs.turn()
    assert [t.upto for t in forwarder.tasks] == [2, 3, 4]
    while forwarder.tasks:
        forwarder.answer()
        sink.outputs.turn()
    assert forwarder.came == [(TAGS[0], n) for n in range(5)]
    assert sink.counted("events", "dropped", "done") == (5, 0, 5)


def test_events_stay_in_the_ring_until_their_task_is_answered():
    forwarder = Forwarder()
    sink = Sink(forwarder)
    for _ in range(3):
        sink.task(2)
    assert sink.settled == 0
    forwarder.answer()
    sink.outputs.turn()
    assert sink.settled == 2
    forwarder.answer(spooled=2)         # the spool is as good
    forwarder.answer(dropped=1)         # and what was given up will not come again
    sink.outputs.turn()
    assert sink.settled == 6
    assert sink.counted("events", "spooled", "dropped") == (3, 2, 1)


def test_each_tag_is_a_part_and_a_small_task_frees_its_block_at_once():
    forwarder = Forwarder()
    sink = Sink(forwarder, limit=1000)
    block = sink.outputs.blocks[0]
    sink.events(1, tag=0)
    sink.task(1, tag=1)
    assert [(tag, n) for tag, _, n in forwarder.tasks[0].parts] == [(TAGS[0], 1), (TAGS[1], 1)]
    assert sink.outputs.blocks[0] is block and block.events == 0
    sink.task(1, size=800)              # most of a block is not copied
    assert sink.outputs.blocks[0] is not block
    forwarder.answer()
    forwarder.answer()
    sink.outputs.turn()
    assert forwarder.came == [(TAGS[0], 0), (TAGS[1], 1), (TAGS[0], 2)]
    assert block in sink.outputs.all[0].spare and block.used == 0


def test_over_files_tasks_are_handed_over_in_bunches_and_at_rest():
    forwarder = Forwarder(window=20)
    sink = Sink(forwarder, live=False)
    assert not forwarder.ringing            # answers wait until somebody waits for them
    for handed in (0, 0, 0, 4, 4, 4, 4, 8):
        sink.task()
        assert len(forwarder.tasks) == handed
    sink.task()
    sink.outputs.turn()                     # there is nothing to merge
    assert len(forwarder.tasks) == 9


def test_blocks_are_used_again_and_let_go_of_when_they_are_not_needed(monkeypatch):
    forwarder = Forwarder(window=20)
    sink = Sink(forwarder)
    output = sink.outputs.all[0]
    monkeypatch.setattr(output, "thin", lambda: None)
    for _ in range(20):
        sink.task(1, size=150)
    seen = {output.block, *(task.block for task in forwarder.tasks)}
    assert len(seen) == 21 and not output.spare
    for _ in range(20):
        forwarder.answer()
    sink.outputs.turn()
    assert {output.block, *output.spare} == seen
    last = output.spare[-1]
    sink.task(1, size=150)
    assert output.block is last             # the one that was used last
    monkeypatch.undo()
    left = []
    for _ in range(20):
        output.thin()
        left.append(len(output.spare))
    assert left[:3] == [19, 16, 14]         # one was needed; then an eighth of the rest each time
    assert left[-1] == 4                    # down to a few
    output.spare.clear()
    sink.task(1, size=150)                  # none is there: a new one
    assert output.block not in seen


def test_a_block_that_has_held_other_tags_in_turn_is_not_kept():
    forwarder = Forwarder()
    sink = Sink(forwarder, limit=4000)
    output = sink.outputs.all[0]
    rounds = ((0, 3500, True), (1, 7000, True), (0, 7000, True), (2, 10500, False))
    for tag, touched, kept in rounds:
        block = output.block
        sink.task(1, tag=tag, size=3475 - len(msgpack.packb({"n": sink.put, "x": ""})))
        forwarder.answer()
        sink.outputs.turn()
        assert block.touched == pytest.approx(touched, abs=100)
        assert (block in output.spare) is kept
        if kept:
            output.block, output.spare = block, []
            sink.merge.swap(0, block)


def test_what_the_queue_has_no_room_for_is_dropped_for_this_output_alone(tmp_path):
    forwarder = Forwarder(window=1)
    sink = Sink(forwarder, tmp_path / "out", queue=300)
    for _ in range(10):
        sink.task(1, size=100)          # one in hand, three wait
    lost, = sink.counted("dropped")
    assert lost == 6
    assert [text for text in sink.said if "does not keep up" in text]

    def all_written():
        """the file has them all"""
        sink.outputs.turn()
        return (tmp_path / "out").read_bytes().count(b"\n") == 10

    eventually(all_written)
    assert sink.settled < 10            # the four in the queue
    while sink.counted("events")[0] < 4:
        forwarder.answer()
        sink.outputs.turn()

    def both_are_through():
        """the sink has heard so of the file, too"""
        sink.outputs.turn()
        return sink.settled == 10

    eventually(both_are_through)
    assert any("keeps up again: 6 events were dropped" in text for text in sink.said)
    assert whole_lines((tmp_path / "out").read_bytes()) == [str(n) for n in range(10)]


def test_the_stats_event_goes_under_its_own_tag_without_it_in_the_entry():
    forwarder = Forwarder()
    sink = Sink(forwarder)
    through = []
    sink.task()
    event = msgpack.packb([TAG_STATS, 5, {"balanced": True}])
    sink.outputs.put([event], lambda: through.append(1))
    (tag, data, count), = forwarder.tasks[1].parts
    assert (tag, msgpack.unpackb(data), count) == (TAG_STATS, [5, {"balanced": True}], 1)
    forwarder.answer()
    sink.outputs.turn()
    assert not through
    forwarder.answer(spooled=1)
    sink.outputs.turn()
    assert through and sink.counted("events", "spooled", "stats") == (1, 1, 1)


def test_a_hang_up_is_one_more_task_and_no_event():
    forwarder = Forwarder()
    sink = Sink(forwarder)
    sink.outputs.reopen()
    (task,) = forwarder.tasks
    assert task.reopen and not task.parts and forwarder.wanted
    forwarder.answer()
    sink.outputs.turn()
    assert sink.counted("events", "dropped") == (0, 0) and not forwarder.tasks


def test_an_event_leaves_its_block_when_it_has_waited_and_there_is_room_in_the_window():
    forwarder = Forwarder(window=1)
    sink = Sink(forwarder, flush_after=10.0)
    sink.events(1)
    sink.merge.run()
    assert [sink.outputs.due(now) for now in (100.0, 105.0, 109.9, 110.0)] == [
        False, False, False, True]
    sink.outputs.flush(all_=False)
    sink.events(1)
    sink.merge.run()
    assert not sink.outputs.due(200.0)
    assert not sink.outputs.due(300.0)      # due, but nobody would begin with it
    forwarder.answer()
    sink.outputs.turn()
    assert sink.outputs.due(300.0)
    assert sink.outputs.nap == 100


# --- the end -------------------------------------------------------------------------------------


def test_over_files_the_run_waits_for_its_queue_and_for_the_last_answer():
    forwarder = Forwarder(window=1)
    sink = Sink(forwarder, live=False, queue=1)
    naps = []

    def nap(ms):
        naps.append(ms)
        forwarder.answer()

    class Napping:
        def __getattr__(self, name):
            return nap if name == "nap" else getattr(sink.merge, name)

    sink.outputs._merge = Napping()
    for _ in range(4):
        sink.task()
    assert len(naps) == 2 and sink.counted("events") == (2,)    # one in hand, one waits
    assert not sink.said
    sink.outputs.drain(5.0)
    assert sink.counted("events", "dropped") == (4, 0)
    assert [n for _, n in forwarder.came] == [0, 1, 2, 3]


def test_an_interrupted_run_over_files_counts_what_was_not_delivered(monkeypatch):
    monkeypatch.setattr(outputs_module, "GIVE_UP", 0.05)
    forwarder = Forwarder(window=2)
    sink = Sink(forwarder, live=False, queue=1000)
    for _ in range(4):
        sink.task()
    forwarder.answer()
    sink.outputs.turn()
    sink.slot.ask(drain=True)
    sink.outputs.drain(5.0)
    assert forwarder.ended == 0.0
    assert sink.counted("events", "dropped") == (1, 3)
    assert sink.faults == ["interrupted while fluentd at x took nothing: the rest is not delivered"]


def test_an_error_ends_the_run_over_files():
    forwarder = Forwarder()
    sink = Sink(forwarder, live=False)
    sink.task()
    sink.outputs.turn()
    forwarder.answer(failure=OutputError("rejected"))
    with pytest.raises(OutputError, match="rejected"):
        sink.outputs.turn()
    assert sink.counted("events", "dropped") == (0, 1)


def test_a_live_run_that_stops_gives_an_output_up_that_answers_nothing():
    forwarder = Forwarder()
    sink = Sink(forwarder)
    for _ in range(5):
        sink.task()
    forwarder.answer()
    sink.outputs.turn()
    sink.slot.ask(drain=True)
    sink.outputs.drain(0.05)
    assert sink.counted("events", "dropped") == (1, 4)
    assert len(sink.faults) == 1
    sink.task()                             # nothing more goes there
    assert not forwarder.tasks and sink.counted("dropped") == (5,)
    sink.outputs.close()


# --- the account of a spool ----------------------------------------------------------------------


def balanced(sink, there):
    c = sink.counted()
    return (c["spool_found"] + c["spooled"]
            == c["delivered"] + c["spool_dropped"] + c["spool_damaged"] + there)


def test_the_ledger_goes_on_counting_where_the_sink_before_stood():
    first = Sink(Forwarder(found=30, there=30), spool=Spool())
    assert first.counted("spool_found") == (30,)        # of an earlier run
    first.task(2)
    first.forwarder.answer(spooled=2)
    first.forwarder.told |= {"delivered": 20, "damaged": 4, "dropped": 1, "there": 7, "resent": 3}
    first.outputs.turn()
    first.link.account(first.slot, 0, now=True)
    first.slot.publish()
    assert balanced(first, 7)
    heir = Sink(Forwarder(found=7, there=7), spool=Spool(2), ledger=first.ledger,
                memory=first.memory)
    assert heir.counted("delivered", "spool_damaged", "spool_found", "resent") == (20, 4, 30, 3)
    heir.forwarder.told |= {"delivered": 7, "there": 0, "resent": 1}
    heir.link.account(heir.slot, 0, now=True)
    heir.slot.publish()
    assert heir.counted("delivered", "resent", "spool_limit") == (27, 4, 1 << 20)
    assert balanced(heir, 0)


@pytest.mark.parametrize(("last", "found"), [
    (6, 6),         # all that was appended without a commit is there
    (6, 4),         # ... and some of it was delivered, without a commit
    (6, 8),         # ... and a stats event, and what was delivered and is there once more
    (2, 2), (2, 0), (0, 2),
])
def test_what_the_spool_has_without_a_commit_is_not_merged_again(last, found):
    """Two events are committed as spooled; then the sink is killed."""
    first = Sink(Forwarder(), spool=Spool())
    first.task(2)
    first.forwarder.answer(spooled=2)
    first.outputs.turn()
    first.task(4)
    heir = Sink(Forwarder(found=found, there=found), spool=Spool(last), ledger=first.ledger,
                memory=first.memory)
    first.writer.mark(MARK_END, 0)
    while heir.merge.run() == "full":
        heir.outputs.flush()
    heir.outputs.flush()
    while heir.forwarder.tasks:
        heir.forwarder.answer()
        heir.outputs.turn()
    heir.outputs.turn()
    heir.slot.publish()
    assert [n for _, n in heir.forwarder.came] == list(range(max(last, 2), 6))
    c = heir.counted()
    assert c["events"] + c["spooled"] == 6 and c["dropped"] == 0
    assert c["spooled"] == max(last, 2)
    assert balanced(heir, found)


def test_what_was_lost_ahead_of_the_spool_without_a_commit_is_no_delivery():
    """Of ten events the first two are committed: one spooled, one dropped.  Then one was rejected,
    three had no room in the queue, one was acknowledged, and the last two are spooled."""
    first = Sink(Forwarder(), spool=Spool())
    first.task(2)
    first.forwarder.answer(spooled=1, dropped=1)
    first.outputs.turn()
    first.slot.publish()
    first.task(8)
    heir = Sink(Forwarder(found=3, there=3), spool=Spool(9, lost=5), ledger=first.ledger,
                memory=first.memory)
    assert heir.forwarder.handed_on == 4    # three spooled, one acknowledged
    c = heir.counted()
    assert (c["done"], c["dropped"], c["events"] + c["spooled"]) == (9, 5, 4)
    assert balanced(heir, 3)


def test_what_the_spool_lost_without_a_commit_is_no_delivery():
    """By the ledger one event of a hundred was dropped; the spool knows of seventy, and of nine
    that could not be read."""
    first = Sink(Forwarder(found=100, there=100), spool=Spool())
    first.forwarder.told |= {"delivered": 5, "dropped": 1, "damaged": 2, "there": 92}
    first.link.account(first.slot, 0, now=True)
    first.slot.publish()
    heir = Sink(Forwarder(found=14, there=14), spool=Spool(0, (70, 9)), ledger=first.ledger,
                memory=first.memory)
    assert heir.counted("spool_found", "delivered", "spool_dropped", "spool_damaged") == (
        100, 7, 70, 9)
    heir.forwarder.told |= {"dropped": 4, "delivered": 3, "there": 7}
    heir.link.account(heir.slot, 0, now=True)
    heir.slot.publish()
    assert heir.counted("delivered", "spool_dropped", "spool_damaged") == (10, 74, 9)
    assert balanced(heir, 7)
    # A spool whose position was lost knows less than the ledger, which then counts.
    last = Sink(Forwarder(found=7, there=7), spool=Spool(0, (1, 0)), ledger=first.ledger,
                memory=first.memory)
    assert last.counted("delivered", "spool_dropped", "spool_damaged") == (10, 74, 9)


def test_counts_of_the_thread_are_looked_at_some_times_a_second():
    sink = Sink(Forwarder())
    sink.link.account(sink.slot, 0, now=True)
    sink.forwarder.told["unacknowledged"] = 5
    assert not sink.link.account(sink.slot, 0)
    eventually(lambda: sink.link.account(sink.slot, 0), 5.0)
    assert sink.slot.own_output(0)["unacknowledged"] == 5
