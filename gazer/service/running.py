"""A child as the supervisor sees it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator

from gazer.service.watch import Pulse, Talk
from gazer.topology import Part

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

READ = 65536        # bytes: what a pipe holds
READS = 16          # at one time: a child that never ends its report must not keep us
LONGEST = 8192      # bytes of a report; what a child has to say is bounded, whoever it works for


class Running:
    """A child that has been started: its process, and the pipe that its reports come through."""

    def __init__(self, part: Part, process: BaseProcess, reports: int, now: int) -> None:
        assert process.pid is not None
        self.part = part
        self.process = process
        self.pid = process.pid
        self.reports = reports
        self.exitcode: int | None = None
        self.ready = False
        self.pulse = Pulse(now)     # by the running clock, as the following
        self.talk = Talk(now)
        self.started = now
        self.waits_since: int | None = None
        self.blocked = False        # ... for so long that the operator has been told
        self.hangs = False          # it was killed since it showed no sign of life
        self.hushed = False         # it has said too much, and the operator knows
        self.replaced = False       # it was killed to be started anew
        self._heard = b""

    def hear(self) -> Iterator[tuple[str, str]]:
        """The reports that have come, as (kind, text)."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(READS):
                data = os.read(self.reports, READ)
                if not data:
                    break
                self._heard += data
        *lines, rest = self._heard.split(b"\n")
        self._heard = rest[:LONGEST]
        for line in lines:
            kind, _, text = line[:LONGEST].decode(errors="surrogateescape").partition(" ")
            yield kind, text

    def has_ended(self, seconds: float) -> bool:
        """Wait for its end at most so long.  (Process.join() with a time imports half of the
        library.)"""
        poll = select.poll()
        poll.register(self.process.sentinel, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def reap(self) -> None:
        """It has ended: nothing of it stays, in the kernel or here."""
        self.process.join()
        self.exitcode = self.process.exitcode
        self.process.close()
        os.close(self.reports)

    def death(self) -> str:
        """How it ended, in words that follow its name."""
        code = self.exitcode or 0
        if code >= 0:
            return f"died with exit code {code}"
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
