"""A thread for each output of a live run: whatever the output waits for, the sink goes on.

The thread does one piece of work at a time and then waits to be given the next one, which is when
the sink has committed the one before.  So a sink that is killed has at most one block for each
output that was written and is not known to be.  All that is shared by both stands in `Hand`, and
each word of it is written by one side: `work` by the sink, `answer` by the thread.
"""

from __future__ import annotations

import os
import threading
from queue import SimpleQueue

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable

    from gazer.sinks.tasks import Answer, Task


class Hand:
    """Does an output's work in a thread.  `perform` is what it does with a task; `bell` is rung
    when that is done."""

    def __init__(self, perform: Callable[[Task], Answer], bell: int) -> None:
        self._perform = perform
        self._bell = bell
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._answer: Answer | None = None
        # A thread that is stuck in a write must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def give(self, task: Task) -> None:
        """Begin with this task; the one before has been answered and taken."""
        self._tasks.put(task)

    def take(self) -> Answer | None:
        """The answer to the task in hand, once."""
        answer = self._answer
        if answer is not None:
            self._answer = None
        return answer

    def end(self) -> None:
        """No more tasks will come."""
        self._tasks.put(None)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._answer = self._perform(task)
            os.eventfd_write(self._bell, 1)
