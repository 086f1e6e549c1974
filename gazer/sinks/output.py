"""One output of the sink: its file or its link, the block that the merge fills, and what waits."""

from __future__ import annotations

import time
from collections import deque

from gazer.sinks.link import Link
from gazer.sinks.merge import Block
from gazer.sinks.tasks import Task

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable

    from gazer.sinks.files import FileOutput
    from gazer.sinks.fluentd import Forwarder
    from gazer.sinks.threads import Hand

SPARE = 4                   # empty blocks that are kept when it has little to do
TASKS = 4096                # that may wait for one output, however small they are
FLUSH_AFTER = 0.2           # seconds that an event stays in a block while there is nothing to do
REMIND = 30.0               # seconds between two lines about events that are dropped
STILL = 5.0                 # seconds without progress that are worth a line


class Output:
    """One output: its file or its link, its block, and what waits for it."""

    def __init__(self, number: int, to: FileOutput | Link, form: int, lines: bool, *,
                 capacity: int, room: int) -> None:
        self.number = number
        self.link = to if isinstance(to, Link) else None
        self.file = None if isinstance(to, Link) else to
        self.target: FileOutput | Forwarder = to.forwarder if isinstance(to, Link) else to
        self.form = form
        self.lines = lines
        self.capacity = capacity
        self.block = self.empty()
        self.rotates = getattr(self.file, "rotates", False)
        self.room = room                # what may wait: blocks of a file, or bytes
        self.queue: deque[Task] = deque()
        self.waiting = 0                # ... what does
        self.spare: list[Block] = []    # empty blocks; the one used last is taken first
        self.unused = 0                 # so many of them were not needed since `thin`
        self.hand: Hand | Forwarder | None = self.link.forwarder if self.link else None
        self.window = self.link.forwarder.window if self.link else 1
        self.busy: deque[Task] = deque()    # what its thread has in hand
        self.done = 0                   # merged events that it is through with
        self.ended = False              # takes no more
        self.lost = 0                   # dropped since it ceased to keep up
        self.told = -REMIND
        self.since = 0.0                # when something was seen in the block
        self.stands = 0.0               # since when it takes nothing; 0: it moves
        self.stands_told = -REMIND      # ... when the operator was told; -REMIND: not yet
        self.flush_after = self.link.flush_after if self.link else FLUSH_AFTER

    @property
    def name(self) -> str:
        return self.target.name

    @property
    def idle(self) -> bool:
        """Nothing is on its way to it."""
        return not self.busy and not self.queue

    @property
    def free(self) -> bool:
        """It would begin with a task at once."""
        return not self.queue and len(self.busy) < self.window

    @property
    def full(self) -> bool:
        return self.waiting >= self.room or len(self.queue) >= TASKS

    def has_room(self) -> bool:
        """For several tasks: each wait for room costs more than a task."""
        return 4 * self.waiting <= 3 * self.room and len(self.queue) < TASKS // 2

    def is_idle(self) -> bool:
        return self.idle

    def stuck(self, seconds: float) -> bool:
        """It has work, and has not moved for so long."""
        return bool(self.busy) and time.monotonic() - self.target.progress > seconds

    def look(self, now: float, seconds: float, notice: Callable[[str], None]) -> bool:
        """Notice that it has been stuck for `seconds`, or moves again, and tell it where the output
        itself says nothing; True if `stands` has changed."""
        before, since = self.stands, self.target.progress
        stuck = bool(self.busy) and now - since > seconds and not self.ended
        self.stands = since if stuck else 0.0
        own = now - self.target.said
        if stuck and now - since >= STILL:
            if now - self.stands_told >= REMIND and own >= REMIND + STILL:
                self.stands_told = now
                why = f": {self.target.why}" if self.target.why else ""
                notice(f"{self.name} has taken nothing for {now - since:.0f} s{why}")
        elif self.stands_told >= 0 and not stuck:
            self.stands_told = -REMIND
            if own >= STILL and not self.ended:
                notice(f"{self.name} goes on after {now - before:.0f} s")
        return self.stands != before

    def empty(self) -> Block:
        if self.link is None:
            return Block(format=self.form, capacity=self.capacity)
        return Block(format=self.form, capacity=self.capacity, limit=self.link.limit, tagged=True)

    def next(self) -> Block:
        """An empty block.  A new one costs the kernel more than to fill it costs us."""
        if not self.spare:
            return self.empty()
        block = self.spare.pop()
        self.unused = min(self.unused, len(self.spare))
        return block

    def keep(self, block: Block) -> None:
        """It is empty again."""
        block.clear()
        room = len(self.spare) < SPARE if self.link is None else block.touched <= 2 * self.capacity
        if room:
            self.spare.append(block)

    def thin(self) -> None:
        """Let go of some of the empty blocks that were not needed since this was last called, ten
        times a second: all are gone some seconds after a burst, and none within one."""
        del self.spare[:min((self.unused + 7) // 8, max(0, len(self.spare) - SPARE))]
        self.unused = len(self.spare)

    def weight(self, task: Task) -> int:
        """What a task that waits takes of `room`."""
        return 1 if self.link is None else task.size

    def task(self, upto: int) -> Task:
        """What stands in the block, as a task."""
        block = self.block
        if self.link is None:
            return Task(upto, data=block.data(), block=block, events=block.events)
        parts = block.parts()
        if 2 * block.used >= self.link.limit:
            return Task(upto, parts=parts, block=block, events=block.events)
        return Task(upto, parts=[(tag, bytes(data), n) for tag, data, n in parts],
                    events=block.events)
