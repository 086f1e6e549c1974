"""All outputs of the sink: who has had which events, and what to do with one that does not keep up.

The merge copies each event into the *block* of every output (merge.pyx).  A flush makes a *task* of
each block and puts it into its output's queue.  Each output works through its own queue:

- **In a run over files** at once and in the sink's own loop: what an output waits for, all wait
  for, and a file waits for its reader.
- **In a live run** in a thread of its own (threads.py).  Nothing waits for it: it may be behind by
  QUEUE bytes in full blocks.  What is beyond that is dropped, for this output alone, and counted
  at once.

**What the rings keep.**  An event stays in its ring until every output has written or dropped it;
`done` is how many an output is through with, in their order, and the least of these is settled
(merge.pyx).  All of it is committed by the sink's loop, an output's place in its file together
with its `done`.  So a successor goes on exactly where each output stands, and nothing that waits in
a queue is lost with a sink that is killed.

What waits is not to take more than three eighths of a ring.  Then the sink merges no more for a
while (`held`), and the outputs catch up.  It does not wait for one that has stood still for BRIEF,
nor when a ring is half full: capture would soon lose frames because an output is slow.  Then the
rings give up the oldest of what waits.  Whoever is behind by so much still has it in its queue, and
writes it some time; if the sink is killed before that, it is lost, and the successor counts it as
dropped.

A rotating output is a FileOutput that says when it is `due` for a new file (rotation.py).  A
sending output goes where FileOutput does now: what it needs is `write`, `reopen`, `place`,
`cuttable`, `wanted`, `progress`, `close` and the exceptions of files.py.  An output that spools has
no limit by QUEUE; that is the `room` of its Output.
"""

from __future__ import annotations

import time
from collections import deque
from functools import partial

from gazer.errors import OutputError
from gazer.sinks.files import TORN_PIPE, ClosedError, FileOutput, GaveUpError
from gazer.sinks.merge import Block, Merge

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gazer.counters import Slot
    from gazer.sinks.threads import Hand

BLOCK = 256 * 1024          # bytes written at once; fits a core's cache
QUEUE = 16 * 1024 * 1024    # bytes of blocks that may wait for an output of a live run
SPARE = 4                   # empty blocks kept for each output
REMIND = 30.0               # seconds between two lines about events that are dropped
BRIEF = 0.25                # seconds for which the others wait for an output that stands still
STUCK = 1.0                 # seconds without progress after which an output counts as stuck
LAST = 0.5                  # ... that the last write may take when all is to end at once


class Task:
    """One piece of an output's work: a block to write, events that had no room, or a file to open.

    events: of them from the rings.  stats: events about the sensor.  upto: how many merged events
    the output is through with when this is done.
    """

    __slots__ = ("block", "data", "events", "reopen", "stats", "upto")

    def __init__(self, upto: int, data: memoryview | None = None, events: int = 0, *,
                 block: Block | None = None, stats: int = 0, reopen: bool = False) -> None:
        self.upto = upto
        self.data = data
        self.block = block
        self.events = events
        self.stats = stats
        self.reopen = reopen


class Answer:
    """What came of a task: bytes and events that went out, and what went wrong."""

    __slots__ = ("bytes", "events", "failure", "task")

    def __init__(self, task: Task, failure: Exception | None = None) -> None:
        self.task = task
        self.failure = failure
        self.events = self.bytes = 0


def perform(file: FileOutput, lines: bool, task: Task) -> Answer:
    """Do a task; every exception becomes part of the answer."""
    answer = Answer(task)
    try:
        if task.reopen:
            file.reopen()
        elif task.data is not None:
            file.write(task.data)
            answer.events, answer.bytes = task.events + task.stats, len(task.data)
    except ClosedError as why:
        answer.failure = why
        answer.bytes = why.taken
        if lines and task.data is not None:     # an event is a line
            answer.events = bytes(task.data[: why.taken]).count(b"\n")
    except Exception as error:
        answer.failure = error
    return answer


class Output:
    """One output: its file, its block, and what waits for it."""

    def __init__(self, number: int, file: FileOutput, block: Block, lines: bool, room: int) -> None:
        self.number = number
        self.file = file
        self.block = block
        self.lines = lines
        self.rotates = getattr(file, "rotates", False)
        self.room = room                # blocks that may wait
        self.queue: deque[Task] = deque()
        self.waiting = 0                # ... that do
        self.spare: list[Block] = []
        self.hand: Hand | None = None
        self.busy: Task | None = None   # what its thread does
        self.done = 0                   # merged events that it is through with
        self.ended = False              # takes no more
        self.lost = 0                   # dropped since it ceased to keep up
        self.told = -REMIND

    @property
    def idle(self) -> bool:
        return self.busy is None and not self.queue

    def stuck(self, seconds: float) -> bool:
        """It has work, and has not moved for so long."""
        return self.busy is not None and time.monotonic() - self.file.progress > seconds


class Outputs:
    """All outputs, from the sink's loop.  `hand` makes the thread of an output of a live run.

    An output that has ended (its reader has gone, or it gave up waiting for room) takes no more;
    what would have gone there is counted as dropped.  The others go on.
    """

    def __init__(
        self,
        *,
        files: Sequence[FileOutput],
        forms: Sequence[int],
        lines: Sequence[bool],
        slot: Slot,
        capacity: int = BLOCK,
        notice: Callable[[str], None],
        fault: Callable[[str], None],
        hand: Callable[[Callable[[Task], Answer]], Hand] | None = None,
        queue: int = QUEUE,
    ) -> None:
        self._slot = slot
        self._notice = notice
        self._fault = fault
        self.live = hand is not None
        self._forms = forms
        self._capacity = capacity
        self._closed = False        # a reader of standard output has gone
        self._failure: OutputError | None = None
        self._moved = False         # there is something to commit
        self._stuck = False         # all outputs are
        self._merge: Merge | None = None
        self._through: Callable[[], None] | None = None     # for the stats event under way
        self.all = [
            Output(i, file, Block(format=forms[i], capacity=capacity), lines[i],
                   max(2, queue // capacity))
            for i, file in enumerate(files)
        ]
        self.rotate = any(output.rotates for output in self.all)
        for output in self.all:
            if hand is not None:
                output.hand = hand(partial(perform, output.file, output.lines))

    @property
    def blocks(self) -> list[Block]:
        return [output.block for output in self.all]

    def attach(self, merge: Merge) -> None:
        """Take from this merge, which appends to our blocks.  A successor goes on from there."""
        self._merge = merge
        for output in self.all:
            ahead = self._slot.resume_output(output.number)
            merge.skip(output.number, ahead)
            output.done = merge.merged + ahead
            if self.live:
                self._place(output)
        self._slot.publish()

    def held(self) -> bool:
        """Live only: nothing more is to be merged just now, so that the outputs catch up."""
        merge = self._merge
        assert merge is not None
        return (merge.pressed and not merge.crowded
                and not any(output.stuck(BRIEF) for output in self.all))

    def ready(self) -> bool:
        """There is something to write, and someone to write it."""
        return any(output.block.events and output.idle for output in self.all)

    # --- from blocks to tasks ------------------------------------------------------------------

    def flush(self, *, all_: bool = True) -> None:
        """Put what is in the blocks on its way; without `all_`, of the outputs that are idle.

        Raises ClosedError if nobody reads any output any more, OutputError when one can't be
        written and all others are.
        """
        if not self.live:
            self._write_now()
            return
        merge = self._merge
        assert merge is not None
        upto = merge.mark()
        for output in self.all:
            if output.block.events and (all_ or output.idle):
                self._seal(output, upto)
            elif output.idle and not output.block.events:
                output.done = max(output.done, upto)
                self._slot.add_output(output.number, 0, 0, 0, done=output.done)
                self._moved = True
        self.turn()

    def put(self, events: Sequence[bytes], through: Callable[[], None]) -> None:
        """An event about the sensor, as each output's form has it, behind all that was merged.
        `through` is called, ahead of the commit, when all outputs are through with it."""
        assert self._merge is not None
        self.flush()
        upto = self._merge.merged
        self._through = through
        for output in self.all:
            self._queue(output, Task(upto, data=memoryview(events[output.number]), stats=1))
        self.turn()

    def reopen(self) -> None:
        """Open all files again, each as soon as the block in hand is written."""
        for output in self.all:
            if not self.live:
                output.file.reopen()
            elif not output.ended:
                output.file.wanted = True
                output.queue.appendleft(Task(output.done, reopen=True))
        self.turn()

    def _write_now(self) -> None:
        """In a run over files: write all blocks, however long that takes."""
        merge = self._merge
        assert merge is not None
        upto = merge.merged
        for output in self.all:
            block = output.block
            events = block.events
            if not events:
                continue
            if output.ended:
                self._slot.add_output(output.number, 0, 0, events, 0, upto)
            else:
                answer = perform(output.file, output.lines, Task(upto, block.data(), events))
                self._slot.add_output(output.number, answer.events, answer.bytes,
                                      events - answer.events, 0, upto)
                if answer.failure is not None:
                    self._end(output, answer.failure)
            block.clear()
            output.done = upto
        merge.settle_all()
        if self._closed or self._failure is not None:
            self._raise()

    def _seal(self, output: Output, upto: int) -> None:
        block = output.block
        task = Task(upto, data=block.data(), block=block, events=block.events)
        if not output.ended and output.waiting < output.room:
            output.block = output.spare.pop() if output.spare else Block(
                format=self._forms[output.number], capacity=self._capacity)
            assert self._merge is not None
            self._merge.swap(output.number, output.block)
        self._queue(output, task)
        if output.block is block:       # dropped
            task.data = None
            block.clear()

    def _queue(self, output: Output, task: Task) -> None:
        if output.ended:
            self._drop(output, task)
            output.done = max(output.done, task.upto)
            self._count(output, done=output.done)
        elif output.waiting < output.room:
            output.waiting += 1
            output.queue.append(task)
        else:
            self._drop(output, task)
            self._tell_dropped(output, task.events + task.stats)
            last = output.queue[-1] if output.queue else None
            if last is not None and last.data is None and not last.reopen:
                last.upto = task.upto           # one gap for all that had no room
            else:
                output.queue.append(Task(task.upto))

    # --- what becomes of tasks -----------------------------------------------------------------

    def turn(self) -> None:
        """Live only: take what the threads have done, commit it, and give them more to do."""
        self._take()
        self._settle()
        for output in self.all:
            self._hand_on(output)
        self._watch()
        self._raise()

    def _take(self) -> None:
        for output in self.all:
            if output.busy is not None:
                assert output.hand is not None
                answer = output.hand.take()
                if answer is not None:
                    output.busy = None
                    self._account(output, answer)
            self._skip_gaps(output)
            if output.lost and output.idle and not output.ended:
                self._notice(f"{output.file.name} keeps up again: {_events(output.lost)} dropped")
                output.lost = 0

    def _skip_gaps(self, output: Output) -> None:
        while (output.busy is None and output.queue and not output.queue[0].reopen
               and output.queue[0].data is None):
            self._count(output, done=max(output.done, output.queue.popleft().upto))

    def turn_files(self) -> None:
        """In a run over files: close what is to be closed while there is nothing to write."""
        for output in self.all:
            if output.rotates and not output.ended and output.file.due(0):
                output.file.reopen()

    def _next(self, output: Output) -> Task | None:
        """What its thread is to do now.  A new file is a task of its own, committed before anything
        is written to it: so a successor knows in which file the last block is."""
        task = output.queue[0] if output.queue else None
        if output.ended or (task is not None and task.reopen):
            return output.queue.popleft() if output.queue else None
        size = 0 if task is None or task.data is None else len(task.data)
        if output.rotates and output.file.due(size):
            return Task(output.done, reopen=True)
        return output.queue.popleft() if output.queue else None

    def _hand_on(self, output: Output) -> None:
        if output.busy is not None:
            return
        task = output.busy = self._next(output)
        if task is None:
            return
        assert output.hand is not None
        output.file.progress = time.monotonic()
        if not task.reopen:
            output.waiting -= 1
            if not output.file.cuttable:
                # A successor must know that a line may be torn.
                self._slot.place_output(output.number, *TORN_PIPE)
                self._slot.publish()
        output.hand.give(task)

    def _account(self, output: Output, answer: Answer) -> None:
        task = answer.task
        failure = answer.failure
        self._place(output)
        if not task.reopen:
            self._count(
                output, events=answer.events, bytes_=answer.bytes,
                dropped=task.events + task.stats - answer.events, stats=task.stats,
                done=max(output.done, task.upto),
            )
        if failure is not None:
            self._end(output, failure)
        block = task.block
        if block is not None and block is not output.block:
            task.data = None
            block.clear()
            if len(output.spare) < SPARE:
                output.spare.append(block)

    def _end(self, output: Output, failure: Exception) -> None:
        """It takes no more: what waits for it is dropped."""
        output.ended = True
        name = output.file.name
        if isinstance(failure, ClosedError):
            self._closed = True
            if not all(o.ended for o in self.all):
                self._notice(f"nobody reads {name} any more; the other outputs go on")
        elif isinstance(failure, GaveUpError):
            self._fault(f"interrupted while {name} had no room: the rest is not written to it")
        elif isinstance(failure, OutputError):
            self._failure = self._failure or failure
        else:
            raise failure
        for task in output.queue:
            if task.data is not None:
                self._drop(output, task)
            output.done = max(output.done, task.upto)
        output.queue.clear()
        output.waiting = 0
        self._count(output, done=output.done)

    def _drop(self, output: Output, task: Task) -> None:
        self._count(output, dropped=task.events + task.stats, stats=task.stats)

    def _count(self, output: Output, *, events: int = 0, bytes_: int = 0, dropped: int = 0,
               stats: int = 0, done: int | None = None) -> None:
        if done is not None:
            output.done = done
        self._slot.add_output(output.number, events, bytes_, dropped, stats, done)
        self._moved = True

    def _place(self, output: Output) -> None:
        self._slot.place_output(output.number, *output.file.place)
        self._moved = True      # committed ahead of what is written there

    def _settle(self) -> None:
        """Commit, and give back to the rings what no output needs any more."""
        merge = self._merge
        assert merge is not None
        if not self._moved and not merge.pressed:
            return
        self._moved = False
        if self._through is not None and not any(
            task.stats for o in self.all for task in (*o.queue, *([o.busy] if o.busy else ()))
        ):
            self._through()
            self._through = None
        merge.settle(min((o.done for o in self.all), default=merge.merged))
        if merge.pressed and not self.held():
            merge.make_room()       # the rings wait no longer for who is behind by so much
        self._slot.publish()
        merge.give_back()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed and all(output.ended for output in self.all):
            raise ClosedError

    def _watch(self) -> None:
        """Say that the sink is blocked when nothing can go on."""
        open_ = [output for output in self.all if not output.ended]
        stuck = bool(open_) and all(output.stuck(STUCK) for output in open_)
        if stuck != self._stuck:
            self._stuck = stuck
            self._slot.waits(stuck)

    def _tell_dropped(self, output: Output, events: int) -> None:
        output.lost += events
        now = time.monotonic()
        if now - output.told >= REMIND:
            output.told = now
            self._notice(f"{output.file.name} does not keep up: {_events(output.lost)} dropped, "
                         "and more will be; the other outputs go on")

    # --- the end -------------------------------------------------------------------------------

    def drain(self, patience: float) -> None:
        """The last tasks: wait for them.  An output that does not move for `patience` seconds, once
        the run is to stop, is given up; all are when it is to end at once."""
        merge = self._merge
        assert merge is not None
        if not self.live:
            return
        self.turn()
        while any(not output.idle for output in self.all):
            merge.nap(100)
            self.turn()
            quitting = self._slot.quitting
            for output in self.all:
                if not output.ended and output.stuck(LAST if quitting else patience) and (
                    quitting or self._slot.draining
                ):
                    self._abandon(output)
        self._settle()

    def _abandon(self, output: Output) -> None:
        """Its thread is stuck in a write for good.  It ends with the process."""
        task = output.busy
        output.busy = None
        output.hand = None
        if task is not None and not task.reopen:
            self._drop(output, task)
            output.done = max(output.done, task.upto)
        self._end(output, GaveUpError())

    def close(self) -> None:
        for output in self.all:
            if output.hand is not None:
                output.hand.end()
                output.file.close()
            elif not self.live:
                output.file.close()


def _events(n: int) -> str:
    return f"{n} event{'' if n == 1 else 's'} {'was' if n == 1 else 'were'}"
