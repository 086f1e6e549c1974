"""All outputs of the sink: who has had which events, and what to do with one that does not keep up.

The merge copies each event into the *block* of every output (merge.pyx).  A flush makes a *task* of
each block and puts it into its output's queue.  Each output works through its own queue:

- **In a run over files** at once and in the sink's own loop: what an output waits for, all wait
  for, and a file waits for its reader.
- **In a live run** in a thread of its own (threads.py).  Nothing waits for it: it may be behind by
  QUEUE bytes in full blocks.  What is beyond that is dropped, for this output alone, and counted
  at once.
- **A fluentd output** (link.py) has its thread in both, and has up to `window` tasks in hand: a
  server is sent more before it has acknowledged what it has.  Over files the run waits for it where
  its queue is full, and at the end for the last acknowledgement.

**Memory** of an output is what waits: of a file QUEUE and four spare blocks of BLOCK (or the
largest event); of a fluentd output `queue` (16 MiB) and `window` tasks (16; twice as many with a
spool) of `chunk_size` (1 MiB), whatever the mixture of tags: 32 MiB by default, 48 with a spool.
A task of a fluentd output that is less than half a block is copied, so what waits takes no more
than twice its bytes; there are at most TASKS of them.  Its empty blocks are used
again, and are let go of in the seconds after a burst (Output.thin).

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

A rotating output is a FileOutput that says when it is `due` for a new file (rotation.py).

A fluentd output is through with a task when all of it was acknowledged, stands in the spool or was
given up.  A sink that is killed so repeats at most what was in hand.  What the spool has is not
repeated: the spool knows up to which event that is, though no commit says so (Link.begin).
"""

from __future__ import annotations

import time
from collections import deque
from functools import partial

from gazer.errors import OutputError
from gazer.event import TAG_STATS
from gazer.sinks.files import TORN_PIPE, ClosedError, FileOutput, GaveUpError
from gazer.sinks.link import Link
from gazer.sinks.merge import Block, Merge
from gazer.sinks.output import REMIND, Output
from gazer.sinks.tasks import Answer, Task, perform, untagged

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gazer.counters import Slot
    from gazer.sinks.fluentd import Forwarder
    from gazer.sinks.threads import Hand

BLOCK = 256 * 1024          # bytes written at once; fits a core's cache
QUEUE = 16 * 1024 * 1024    # bytes of blocks that may wait for an output of a live run
BUNCH = 4                   # tasks of a run over files that are handed over together
BRIEF = 0.25                # seconds for which the others wait for an output that stands still
STUCK = 1.0                 # seconds without progress after which an output counts as stuck
LAST = 0.5                  # ... that the last write may take when all is to end at once
GIVE_UP = 1.0               # ... after which an interrupted run over files waits no longer
JOIN = 5.0                  # seconds for a Forwarder to let go of what it has
NAP_MS = 100


class Outputs:
    """All outputs, from the sink's loop.  `files`: a FileOutput or a Link for each; `hand` makes
    the thread of a file in a live run.

    An output that has ended (its reader has gone, or it gave up waiting for room) takes no more;
    what would have gone there is counted as dropped.  The others go on.
    """

    def __init__(
        self,
        *,
        files: Sequence[FileOutput | Link],
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
        self.threaded = self.live or any(isinstance(file, Link) for file in files)
        self._closed = False        # a reader of standard output has gone
        self._failure: OutputError | None = None
        self._moved = False         # there is something to commit
        self._stuck = False         # all outputs are
        self._merge: Merge | None = None
        self._through: Callable[[], None] | None = None     # for the stats event under way
        self.all = [
            Output(i, file, forms[i], lines[i], capacity=file.capacity, room=file.queue)
            if isinstance(file, Link) else
            Output(i, file, forms[i], lines[i], capacity=capacity, room=max(2, queue // capacity))
            for i, file in enumerate(files)
        ]
        # How long the loop may sleep, in ms, so that events leave their block in time.
        self.nap = max(1, min([NAP_MS, *(int(1000 * o.flush_after) for o in self.all)]))
        self.rotate = any(output.rotates for output in self.all)
        for output in self.all:
            if hand is not None and output.file is not None:
                output.hand = hand(partial(perform, output.file, output.lines))
        if not self.live:
            self._listen(False)

    @property
    def blocks(self) -> list[Block]:
        return [output.block for output in self.all]

    def attach(self, merge: Merge) -> None:
        """Take from this merge, which appends to our blocks.  A successor goes on from there."""
        self._merge = merge
        for output in self.all:
            if output.link is not None:
                output.link.begin(self._slot, output.number)
            ahead = self._slot.resume_output(output.number)
            merge.skip(output.number, ahead)
            output.done = merge.merged + ahead
            self._slot.set_output(output.number, {"blocked_since": 0})
            if self.live:
                self._place(output)
        self._slot.publish()

    def held(self) -> bool:
        """Live only: nothing more is to be merged just now, so that the outputs catch up."""
        merge = self._merge
        assert merge is not None
        return (merge.pressed and not merge.crowded
                and not any(output.stuck(BRIEF) for output in self.all))

    def due(self, now: float) -> bool:
        """Something has stood in a block for as long as it may, and can be written."""
        found = False
        for output in self.all:
            if not output.block.events:
                output.since = 0.0
            elif not output.since:
                output.since = now
            elif now - output.since >= output.flush_after and output.free:
                found = True
        return found

    # --- from blocks to tasks ------------------------------------------------------------------

    def flush(self, *, all_: bool = True) -> None:
        """Put what is in the blocks on its way; without `all_`, of the outputs that would begin
        with it at once.

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
            if output.block.events and (all_ or output.free):
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
            event = events[output.number]
            self._queue(output, Task(upto, data=memoryview(event), stats=1)
                        if output.link is None else
                        Task(upto, parts=[(TAG_STATS, untagged(event), 1)], stats=1))
        self.turn()

    def reopen(self) -> None:
        """Live only: open all files again, each as soon as the block in hand is written; a fluentd
        output connects anew."""
        for output in self.all:
            if not output.ended:
                output.target.wanted = True
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
            elif output.file is None:
                if output.full:
                    self._wait_for(output, Output.has_room)
                self._seal(output, upto)
                continue
            else:
                answer = perform(output.file, output.lines, Task(upto, block.data(), events))
                self._slot.add_output(output.number, answer.events, answer.bytes,
                                      events - answer.events, 0, upto)
                if answer.failure is not None:
                    self._end(output, answer.failure)
            block.clear()
            output.since = 0.0
            output.done = upto
        merge.settle_all()
        if any(len(output.queue) >= BUNCH for output in self.all):
            self._go_on()
        self._raise()

    def _wait_for(self, output: Output, what: Callable[[Output], bool]) -> None:
        """In a run over files: until it is so, or the output has ended.  An interrupted run waits
        as long as there is progress."""
        merge = self._merge
        assert merge is not None
        self._listen(True)
        self._go_on()
        while not what(output) and not output.ended:
            self._slot.waits(True)
            merge.nap(NAP_MS)
            self._go_on()
            if self._slot.draining and output.stuck(LAST if self._slot.quitting else GIVE_UP):
                self._end(output, GaveUpError())
                self._abandon(output)
        self._slot.waits(False)
        self._listen(False)

    def _listen(self, does: bool) -> None:
        """In a run over files answers need nobody's attention, unless somebody waits for them."""
        for output in self.all:
            if output.link is not None:
                output.link.forwarder.ringing = does

    def _seal(self, output: Output, upto: int) -> None:
        block = output.block
        task = output.task(upto)
        output.since = 0.0
        if task.block is not None and not output.ended and not output.full:
            output.block = output.next()
            assert self._merge is not None
            self._merge.swap(output.number, output.block)
        self._queue(output, task)
        if output.block is block:       # dropped, or copied
            if task.block is not None:
                task.let_go()
            block.clear()

    def _queue(self, output: Output, task: Task) -> None:
        if output.ended:
            self._drop(output, task)
            output.done = max(output.done, task.upto)
            self._count(output, done=output.done)
        elif not output.full:
            output.waiting += output.weight(task)
            output.queue.append(task)
        else:
            self._drop(output, task)
            self._tell_dropped(output, task.events + task.stats)
            last = output.queue[-1] if output.queue else None
            if last is not None and last.gap:
                last.upto = task.upto           # one gap for all that had no room
            else:
                output.queue.append(Task(task.upto))

    # --- what becomes of tasks -----------------------------------------------------------------

    def turn(self) -> None:
        """Where there are threads: take what they have done, commit it, and give them more."""
        self._go_on()
        self._raise()

    def _go_on(self) -> None:
        self._take()
        self._watch()
        self._settle()
        for output in self.all:
            if output.hand is not None:
                self._hand_on(output)

    def _take(self) -> None:
        for output in self.all:
            if output.link is not None:     # ahead of the answers, see Account.imbalances
                self._look_at(output)
            while output.busy:
                assert output.hand is not None
                answer = output.hand.take()
                if answer is None:
                    break
                output.busy.popleft()
                self._account(output, answer)
            self._skip_gaps(output)
            if output.lost and output.free and not output.ended:
                self._notice(f"{output.name} keeps up again: {_events(output.lost)} dropped")
                output.lost = 0

    def _look_at(self, output: Output) -> None:
        if output.link is not None and output.link.account(self._slot, output.number):
            self._moved = True
            output.thin()

    def _skip_gaps(self, output: Output) -> None:
        while not output.busy and output.queue and output.queue[0].gap:
            self._count(output, done=max(output.done, output.queue.popleft().upto))

    def turn_files(self) -> None:
        """In a run over files: close what is to be closed while there is nothing to write."""
        for output in self.all:
            file = output.file
            if file is not None and output.rotates and not output.ended and file.due(0):
                file.reopen()

    def _next(self, output: Output) -> Task | None:
        """What its thread is to do now.  A new file is a task of its own, committed before anything
        is written to it: so a successor knows in which file the last block is."""
        task = output.queue[0] if output.queue else None
        if task is not None and task.gap:
            return None
        if output.ended or (task is not None and task.reopen):
            return output.queue.popleft() if output.queue else None
        size = 0 if task is None or task.data is None else len(task.data)
        if output.rotates and output.file is not None and output.file.due(size):
            return Task(output.done, reopen=True)
        return output.queue.popleft() if output.queue else None

    def _hand_on(self, output: Output) -> None:
        assert output.hand is not None
        bunch = []
        while len(output.busy) < output.window:
            task = self._next(output)
            if task is None:
                break
            if not output.busy:
                output.target.progress = time.monotonic()
            output.busy.append(task)
            if not task.reopen:
                output.waiting -= output.weight(task)
                file = output.file
                if file is not None and task.data is not None:
                    # A successor must know that a line may be torn, and what may be taken back.
                    place = ((*file.place, file.in_hand(len(task.data))) if file.cuttable
                             else TORN_PIPE)
                    self._slot.place_output(output.number, *place)
                    self._slot.publish()
            bunch.append(task)
        if bunch:
            output.hand.give(*bunch)

    def _account(self, output: Output, answer: Answer) -> None:
        task = answer.task
        failure = answer.failure
        self._place(output)
        if not task.reopen:
            self._count(
                output, events=answer.events, bytes_=answer.bytes,
                dropped=task.events + task.stats - answer.events - answer.spooled,
                stats=task.stats, done=max(output.done, task.upto), spooled=answer.spooled,
            )
        if failure is not None and not output.ended:
            self._end(output, failure)
        block = task.block
        if block is not None and block is not output.block:
            task.let_go()
            output.keep(block)

    def _end(self, output: Output, failure: Exception) -> None:
        """It takes no more: what waits for it is dropped."""
        output.ended = True
        name = output.name
        if isinstance(failure, ClosedError):
            self._closed = True
            if not all(o.ended for o in self.all):
                self._notice(f"nobody reads {name} any more; the other outputs go on")
        elif isinstance(failure, GaveUpError) and output.link is not None:
            self._fault(f"interrupted while {name} took nothing: the rest is not delivered")
        elif isinstance(failure, GaveUpError):
            self._fault(f"interrupted while {name} had no room: the rest is not written to it")
        elif isinstance(failure, OutputError):
            self._failure = self._failure or failure
        else:
            raise failure
        # What a Forwarder has in hand it answers still, and knows what of it was acknowledged.
        self._lose(output, output.queue if output.link is not None else output.busy)
        self._lose(output, output.queue)
        output.waiting = 0
        self._count(output, done=output.done)

    def _lose(self, output: Output, tasks: deque[Task]) -> None:
        """Drop all of these."""
        for task in tasks:
            if not task.gap and not task.reopen:
                self._drop(output, task)
            output.done = max(output.done, task.upto)
        tasks.clear()

    def _drop(self, output: Output, task: Task) -> None:
        self._count(output, dropped=task.events + task.stats, stats=task.stats)

    def _count(self, output: Output, *, events: int = 0, bytes_: int = 0, dropped: int = 0,
               stats: int = 0, done: int | None = None, spooled: int = 0) -> None:
        if done is not None:
            output.done = done
        self._slot.add_output(output.number, events, bytes_, dropped, stats, done, spooled)
        self._moved = True

    def _place(self, output: Output) -> None:
        if output.file is not None:
            self._slot.place_output(output.number, *output.file.place)
            self._moved = True      # committed ahead of what is written there

    def _settle(self) -> None:
        """Commit, and give back to the rings what no output needs any more."""
        merge = self._merge
        assert merge is not None
        if not self._moved and not merge.pressed:
            return
        self._moved = False
        if not self.live:
            self._slot.publish()    # the rings have been given back, there is no successor
            return
        if self._through is not None and not any(
            task.stats for o in self.all for task in (*o.queue, *o.busy)
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
        """Say which outputs take nothing, and that the sink is blocked when nothing can go on."""
        now = time.monotonic()
        stuck = None
        for output in self.all:
            if output.look(now, STUCK, self._notice):
                self._slot.set_output(
                    output.number, {"blocked_since": int(1e9 * output.stands)})
                self._moved = True
            if not output.ended:
                stuck = stuck is not False and bool(output.stands)
        stuck = bool(stuck)
        if self.live and stuck != self._stuck:
            self._stuck = stuck
            self._slot.waits(stuck)

    def _tell_dropped(self, output: Output, events: int) -> None:
        output.lost += events
        now = time.monotonic()
        if now - output.told >= REMIND:
            output.told = now
            self._notice(f"{output.name} does not keep up: {_events(output.lost)} dropped, "
                         "and more will be; the other outputs go on")

    # --- the end -------------------------------------------------------------------------------

    def drain(self, patience: float) -> None:
        """The last tasks: wait for them.  An output that does not move for `patience` seconds, once
        the run is to stop, is given up; all are when it is to end at once."""
        merge = self._merge
        assert merge is not None
        if not self.threaded:
            return
        if not self.live:
            for output in self.all:
                if output.link is not None:
                    self._wait_for(output, Output.is_idle)
            self._sum_up()
            self._raise()
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
        self._sum_up()

    def _sum_up(self) -> None:
        """The last commit: what all outputs have done."""
        for output in self.all:
            if output.link is not None:
                output.link.account(self._slot, output.number, now=True)
        self._moved = True
        self._settle()

    def _abandon(self, output: Output) -> None:
        """A thread that is stuck in a write for good ends with the process.  A Forwarder is told to
        answer for what it has in hand."""
        merge = self._merge
        assert merge is not None
        if output.link is None:
            output.hand = None
            self._end(output, GaveUpError())
            return
        output.link.forwarder.end(0.0)
        deadline = time.monotonic() + JOIN
        while output.busy and time.monotonic() < deadline:
            merge.nap(NAP_MS)
            self._take()
        if not output.ended and not output.idle:
            self._end(output, GaveUpError())
        output.ended = True
        self._lose(output, output.busy)

    def close(self) -> None:
        """Let go of files and servers.  What is on its way out of a spool may still arrive, or it
        comes once more with the next start."""
        links = [output.link for output in self.all if output.link is not None]
        for link in links:
            link.forwarder.end(LAST)
        deadline = time.monotonic() + STUCK
        for output in self.all:
            if output.link is not None:
                self._join(output.link.forwarder, deadline)
                output.link.forwarder.end(0.0)
                self._join(output.link.forwarder, deadline + JOIN)
                output.link.account(self._slot, output.number, now=True)
                continue
            if output.hand is not None:
                output.hand.end()
            if output.file is not None and (output.hand is not None or not self.live):
                output.file.close()
        if links:
            self._slot.publish()

    def _join(self, forwarder: Forwarder, deadline: float) -> None:
        while not forwarder.join(NAP_MS / 1000) and time.monotonic() < deadline:
            self._slot.heartbeat_now()


def _events(n: int) -> str:
    return f"{n} event{'' if n == 1 else 's'} {'was' if n == 1 else 'were'}"
