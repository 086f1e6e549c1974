"""What is the same in every process that the supervisor starts.

A child gets a Boot, pickled by multiprocessing's `spawn`: what it is, the configuration, and the
names and descriptors by which it finds the others.  It tells the supervisor what the operator
should know through `report`, one line at a time; only the supervisor writes to stderr.

SIGINT and SIGTERM are the supervisor's business: a terminal or an init system sends them to the
whole group, and the children must live on to finish what has been read.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd

from gazer.config import Config
from gazer.counters import Slot
from gazer.errors import GazerError
from gazer.ring import Ring
from gazer.segment import Segment
from gazer.system import die_with_parent, set_name
from gazer.topology import Part

# What a child reports: a kind and a line of text.
NOTICE = "notice"       # for the operator; the run goes on
FAULT = "fault"         # for the operator; the run goes on, but it will end with exit code 1
ERROR = "error"         # the child can't go on
CLOSED = "closed"       # an output's reader has gone: end quietly


class Inherited(int):
    """A file descriptor that a spawned child gets, under a number of its own."""

    def __reduce__(self) -> tuple[Callable[..., int], tuple[object]]:
        return _arrive, (DupFd(int(self)),)


def _arrive(dup: object) -> int:
    return int(dup.detach())  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Boot:
    """All that a child needs to begin."""

    part: Part
    config: Config
    token: str              # of the names of the shared segments
    bells: tuple[int, ...]  # eventfds, by process number
    stdin: int              # the descriptor that "-" means as input
    seed: int               # secret of the hashes
    supervisor: int         # its pid
    reports: Connection

    @property
    def bell(self) -> int:
        """This process's own bell."""
        return self.bells[self.part.number]


class Child:
    """One process of the pipeline, from its side: its segments, its slot, its reports."""

    def __init__(self, boot: Boot) -> None:
        self.boot = boot
        self._segments: list[Segment] = []
        self.slot = Slot(self.attach("ledger"), boot.part.number)
        self.slot.open(os.getpid())

    def attach(self, name: str) -> memoryview:
        """The memory of one of the run's segments."""
        segment = Segment.attach(f"gazer-{self.boot.token}-{name}")
        self._segments.append(segment)
        return segment.buf

    def ring(self, name: str) -> Ring:
        """A new view of one of the run's rings."""
        return Ring(self.attach(name))

    def report(self, kind: str, text: str = "") -> None:
        """Tell the supervisor; if it has gone, there is nobody to tell."""
        with contextlib.suppress(OSError):
            self.boot.reports.send((kind, text))

    def close(self) -> None:
        """Let go of the shared memory; every view of it has been released."""
        self.slot.release()
        for segment in self._segments:
            segment.close()


def run(boot: Boot, work: Callable[[Child], None]) -> None:
    """The body of every child: `work`, between the setting-up and the errors."""
    die_with_parent(boot.supervisor)
    set_name(boot.part.name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = Child(boot)
    try:
        work(child)
    except GazerError as error:
        child.report(ERROR, str(error))
        raise SystemExit(1) from None
    child.close()
