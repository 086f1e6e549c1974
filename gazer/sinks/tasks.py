"""What an output is given to do, and what it answers.

Whoever does the work (a thread of threads.py, the Forwarder of a fluentd output) has three methods:
`give(task)`, `take()`, the next answer or None, and `end()`.  Tasks are answered in their order.
Every exception becomes part of an answer: a thread of an output never dies of one.
"""

from __future__ import annotations

from gazer.event import TAG_STATS
from gazer.sinks.files import ClosedError, FileOutput

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Sequence

    from gazer.sinks.merge import Block

    # A tag, the entries `[time, record]` of the events that have it, and how many they are.
    Part = tuple[str, bytes | memoryview, int]


class Task:
    """One piece of an output's work: a block to write, events that had no room, or a file to open.

    data: the block of a file, or `parts`: those of a fluentd output.  Both are good until the task
    is answered.  events: of them from the rings.  stats: events about the sensor.  upto: how many
    merged events the output is through with when this is done.  size: bytes in all.
    """

    __slots__ = ("block", "data", "events", "parts", "reopen", "size", "stats", "upto")

    def __init__(self, upto: int, data: memoryview | None = None, events: int = 0, *,
                 parts: Sequence[Part] = (), block: Block | None = None, stats: int = 0,
                 reopen: bool = False) -> None:
        self.upto = upto
        self.data = data
        self.parts = parts
        self.block = block
        self.events = events
        self.stats = stats
        self.reopen = reopen
        self.size = sum(len(part[1]) for part in parts) + len(data or b"")

    @property
    def gap(self) -> bool:
        """It only says how far the output is: what stood here had no room."""
        return self.data is None and not self.parts and not self.reopen

    def let_go(self) -> None:
        """Of the block's memory."""
        self.data = None
        self.parts = ()


class Answer:
    """What came of a task: events and bytes that went out (of a fluentd output: acknowledged by a
    server), events that stand in the spool, events that were dropped (a server rejects them, they
    expired, or a full spool refused them), and what went wrong.  What is none of these did not go
    out either."""

    __slots__ = ("bytes", "dropped", "events", "failure", "spooled", "task")

    def __init__(self, task: Task, failure: Exception | None = None) -> None:
        self.task = task
        self.failure = failure
        self.events = self.bytes = self.spooled = self.dropped = 0


def perform(file: FileOutput, lines: bool, task: Task) -> Answer:
    """Do a file's task."""
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


def untagged(event: bytes) -> bytes:
    """`[tag, time, record]` of a stats event as `[time, record]`, see merge.pyx."""
    return b"\x92" + event[2 + len(TAG_STATS):]
