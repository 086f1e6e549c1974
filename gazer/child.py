"""What is the same in every process that the supervisor starts.

A child is forked from the supervisor, which has no threads: it needs no interpreter and no module
of its own but those of its part, which is most of what a start costs.  It keeps its Boot, and lets
go of all else that the supervisor holds (see `Run._forget`): of the shared memory, which it has
inherited and which has no name, it keeps only what it needs.

It tells the supervisor what the operator should know through `report`, one line at a time; only the
supervisor writes to stderr.

Signals are the supervisor's business: a terminal or an init system sends them to the whole group,
and the children must live on to finish what has been read.
"""

from __future__ import annotations

import contextlib
import os
import signal

from gazer.config import Config
from gazer.counters import Slot
from gazer.errors import GazerError
from gazer.ring import Ring
from gazer.segment import Segment
from gazer.system import die_with_parent, set_name, set_title
from gazer.topology import Part

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable

    from gazer.privileges import Identity

# What a child reports: a kind and a line of text.
READY = "ready"         # it has what it needs from outside
NOTICE = "notice"       # for the operator; the run goes on
FAULT = "fault"         # for the operator; the run goes on, but it will end with exit code 1
ERROR = "error"         # the child can't go on
CLOSED = "closed"       # the reader of the only output has gone: end quietly

# How a child ends: the exit codes that the supervisor tells apart.
EXIT_DONE = 0           # its work is over
EXIT_ERROR = 1          # it can't go on, and has reported why
EXIT_INTERFACE = 3      # capture: the interface has gone; a fresh process is to wait for it

UMASK_OF_SINK = 0o027

# What the supervisor alone acts on.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Boot:
    """All that a child needs to begin.

    part: what it is.  segments: the run's shared memory, by name, of which it keeps what is its
    own.  bells: eventfds, by process number.  stdin: the descriptor that "-" means as input.  seed:
    secret of the hashes.  supervisor: its pid.  reports: the descriptor to write reports to.  cpus:
    where it may run; empty: anywhere.  confined: it gives up its rights, and is `identity` if that
    is not None.
    """

    __slots__ = (
        "bells", "config", "confined", "cpus", "identity", "part", "reports", "seed", "segments",
        "stdin", "supervisor",
    )  # fmt: skip

    def __init__(
        self,
        *,
        part: Part,
        config: Config,
        segments: dict[str, Segment],
        bells: tuple[int, ...],
        stdin: int,
        seed: int,
        supervisor: int,
        reports: int,
        cpus: tuple[int, ...] = (),
        confined: bool = False,
        identity: Identity | None = None,
    ) -> None:
        self.part = part
        self.config = config
        self.segments = segments
        self.bells = bells
        self.stdin = stdin
        self.seed = seed
        self.supervisor = supervisor
        self.reports = reports
        self.cpus = cpus
        self.confined = confined
        self.identity = identity

    @property
    def bell(self) -> int:
        """This process's own bell."""
        return self.bells[self.part.number]


class Child:
    """One process of the pipeline, from its side: its segments, its slot, its reports."""

    def __init__(self, boot: Boot) -> None:
        self.boot = boot
        self.slot = Slot(self.attach("ledger"), boot.part.number)
        self.slot.open(os.getpid())

    def attach(self, name: str) -> memoryview:
        """The memory of one of the run's segments."""
        return self.boot.segments[name].buf

    def ring(self, name: str) -> Ring:
        """A new view of one of the run's rings."""
        return Ring(self.attach(name))

    def report(self, kind: str, text: str = "") -> None:
        if kind == READY:
            self.slot.waits(False)      # it runs, whether there is anything to do or not
        report(self.boot, kind, text)

    def close(self) -> None:
        """Let go of the shared memory; every view of it has been released."""
        self.slot.release()
        for segment in self.boot.segments.values():
            segment.close()


def report(boot: Boot, kind: str, text: str = "") -> None:
    """Tell the supervisor one thing in one line; if it has gone, there is nobody to tell."""
    line = f"{kind} {' '.join(text.splitlines())}\n".encode(errors="surrogateescape")
    with contextlib.suppress(OSError):
        while line:
            line = line[os.write(boot.reports, line) :]


def _pin(boot: Boot) -> None:
    """Run where it is configured; a CPU may have gone since the service began."""
    try:
        os.sched_setaffinity(0, boot.cpus)
    except OSError as error:
        cpus = ", ".join(map(str, boot.cpus))
        report(boot, NOTICE, f"{boot.part.name} can't be kept on CPU {cpus}: {error.strerror}")


def _confine(boot: Boot) -> None:
    """Be the service's user, with no rights but the one that opens a capture socket.

    What it makes is its own: but for the files of events, which the user's group may read, and so
    rotate and ship.
    """
    from gazer.privileges import CAP_NET_RAW, UMASK, become

    role = boot.part.role
    become(
        boot.identity,
        keep=(CAP_NET_RAW,) if role == "capture" else (),
        parent=boot.supervisor,
        umask=UMASK_OF_SINK if role == "sink" else UMASK,
    )


def run(boot: Boot, work: Callable[[Child], None]) -> None:
    """The body of every child: `work`, between the setting-up and the errors."""
    die_with_parent(boot.supervisor)
    set_name(boot.part.name)
    set_title(boot.part.title)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    try:
        if boot.cpus:
            _pin(boot)
        if boot.confined:
            _confine(boot)
        child = Child(boot)
        work(child)
    except GazerError as error:
        report(boot, ERROR, str(error))
        os._exit(EXIT_ERROR)    # an interpreter that ends in order would miss its views' release
    except Exception as error:      # a mistake of ours: where it is, in one line like all others
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
        report(boot, ERROR, f"{boot.part.name}: internal error, please report it: {error!r}"
                            f" at {where}")
        os._exit(EXIT_ERROR)
    child.close()
