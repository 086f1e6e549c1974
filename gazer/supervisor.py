"""The supervisor: makes the shared memory, starts the processes, waits, cleans up.

It is the only parent and the only one that writes to stderr.  It parses nothing that comes from the
network.  Signals only set a flag (and wake it); the loop in `_watch` does what they ask:

- the first SIGINT, SIGTERM or SIGHUP drains: capture stops, what has been read is finished; an
  output that waits for room gives up;
- the second one quits: capture and workers are killed, the sink ends after the write in hand.

A run ends when the sink has ended.  A child that dies before that ends the run with an error: a
file can be read again.  Whatever happens, no child and no shared segment is left behind.

Children are forked, not spawned: a spawned one costs an interpreter and 100 ms of CPU.  What makes
forking safe is a rule: this process has no threads, and starts none.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType

from gazer.child import CLOSED, ERROR, FAULT, READY, Boot
from gazer.config import Config
from gazer.counters import Slot, ledger_create
from gazer.errors import ConfigError, ProcessError
from gazer.ring import Ring
from gazer.segment import PREFIX, Segment, new_token, sweep
from gazer.topology import Part, Topology

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from gazer.pidfile import PidFile

REAP = 5.0          # seconds that a child may take to end when the sink has ended
LAST_WRITE = 1.0    # seconds that the sink may take to finish a write when all is to end at once
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(config: Config, *, pid_file: str | None = None) -> int:
    """Run the pipeline over the configured capture files.  Returns the exit code.

    Raises GazerError for what keeps it from starting.
    """
    _hold_standard_descriptors()
    if config.capture.filter:
        from gazer.capture.filter import filter_problem  # here: it loads libpcap

        if problem := filter_problem(config.capture.filter):
            raise ConfigError(problem)
    with contextlib.ExitStack() as stack:
        holder = None
        if pid_file is not None:
            from gazer.pidfile import PidFile

            holder = stack.enter_context(PidFile(pid_file))
        for name in sweep():
            say(f"removed shared memory that a dead run left: {name}")
        return Supervisor(config, stack, holder).run()


def _hold_standard_descriptors() -> None:
    """Where we were started with standard descriptors closed, see that nothing of ours gets their
    numbers: events would be written to what is no output.  Using them stays an error."""
    for fd, useless in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, useless)    # gets the lowest free number, so this one
            os.set_inheritable(fd, True)


def say(text: str) -> None:
    """One line for the operator.  A stderr that is gone is no reason to stop."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(f"gazer: {text}", file=sys.stderr, flush=True)


class Running:
    """A child that has been started: its process, and the pipe that its reports come through."""

    def __init__(self, part: Part, process: BaseProcess, reports: int) -> None:
        self.part = part
        self.process = process
        self.reports = reports
        self.ready = False
        self._heard = b""

    def hear(self) -> Iterator[tuple[str, str]]:
        """The reports that have come, as (kind, text)."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.reports, 65536):
                self._heard += data
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            kind, _, text = line.decode(errors="surrogateescape").partition(" ")
            yield kind, text


class Supervisor:
    """One run.  `stack` undoes what is made here."""

    def __init__(
        self, config: Config, stack: contextlib.ExitStack, pid_file: PidFile | None
    ) -> None:
        self._config = config
        self._topology = Topology.of(config)
        self._stack = stack
        self._pid_file = pid_file
        self._token = new_token()
        self._segments: list[Segment] = []
        self._children: dict[int, Running] = {}     # by the descriptor of their reports
        self._signals = 0
        self._seen = 0              # of the signals: those obeyed
        self._exit_code = 0
        self._quiet = False
        self._broken = False        # it ends before its time: what is in hand is lost
        self._slots: dict[int, Slot] = {}
        self._woken = self._wake = -1

    def run(self) -> int:
        self._catch_signals()
        self._make_shared_memory()
        bells = tuple(
            self._descriptor(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            for _ in range(self._topology.observer)     # those that wait for rings
        )
        try:
            if reading := self._start(bells):
                while self._watch():
                    pass
        finally:
            self._end_children()
        if reading and not self._quiet:
            self._say_summary()
        return self._exit_code

    def _say_summary(self) -> None:
        from gazer.summary import Account, summary

        account = Account.read(self._slots, self._topology, len(self._config.outputs))
        if self._exit_code and not account.capture["frames"]:
            return                  # nothing was read, and a line has said why
        for line in summary(account, self._config, broken=self._broken):
            say(line)
        if not self._broken and any(account.imbalances()):
            self._exit_code = 1     # something is lost, and only we can have lost it

    # --- setting up ----------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        """From here to the end of the run signals wake a pipe and are counted.

        One that our parent has had ignored (nohup, a job in the background) stays ignored.
        """
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stack.callback(os.close, self._woken)
        self._stack.callback(os.close, self._wake)
        self._stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(
            self._wake, warn_on_full_buffer=False))
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._stack.callback(signal.signal, number,
                                     signal.signal(number, self._on_signal))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _make_shared_memory(self) -> None:
        for part, size in self._topology.segments().items():
            segment = Segment.create(f"{PREFIX}{self._token}-{part}", size)
            self._segments.append(segment)
            self._stack.callback(segment.close)
            if part == "ledger":
                ledger_create(
                    segment.buf,
                    captures=self._topology.captures,
                    workers=self._topology.workers,
                    outputs=len(self._config.outputs),
                    live=bool(self._topology.interfaces),
                    started=time.time_ns(),
                    max_pending=self._config.transactions.max_pending,
                )
                for number in range(self._topology.processes):
                    slot = self._slots[number] = Slot(segment.buf, number)
                    self._stack.callback(slot.release)
            else:
                Ring(segment.buf, create=self._topology.ring_capacity).release()

    def _descriptor(self, fd: int) -> int:
        self._stack.callback(os.close, fd)
        return fd

    def _start(self, bells: tuple[int, ...]) -> bool:
        """Start all processes.  False if the run is over before anything is read."""
        seed = int.from_bytes(os.urandom(8), "little")
        try:
            stdin = self._descriptor(os.dup(0))
        except OSError:     # closed by whoever started us
            stdin = -1
        gc.freeze()     # what is here now stays in pages that all share
        self._stack.callback(gc.unfreeze)
        for part in self._topology.parts():
            if part.role == "capture":
                # Nothing is read before it is known that it can be written.
                while not self._running(self._topology.sink).ready:
                    if not self._watch():
                        return False
            self._start_one(part, bells, stdin, seed)
        return True

    def _start_one(self, part: Part, bells: tuple[int, ...], stdin: int, seed: int) -> None:
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(ours, False)
        boot = Boot(
            part=part,
            config=self._config,
            token=self._token,
            bells=bells,
            stdin=stdin,
            seed=seed,
            supervisor=os.getpid(),
            reports=theirs,
        )
        context = multiprocessing.get_context("fork")
        process = context.Process(target=self._begin, args=(boot, ours), name=part.name)
        try:
            process.start()
        except OSError as error:
            os.close(ours)
            raise ProcessError(f"can't start {part.name}: {error.strerror}") from None
        finally:
            os.close(theirs)
        self._children[ours] = Running(part, process, ours)

    def _begin(self, boot: Boot, ours: int) -> None:
        """In the child: let go of what is the supervisor's, and become the part."""
        os.close(ours)
        self._forget()
        if boot.part.role == "capture" and boot.stdin >= 0:
            os.dup2(boot.stdin, 0)      # multiprocessing has put /dev/null there
        _main_of(boot.part.role)(boot)

    def _forget(self) -> None:
        """In a child: close what only the supervisor needs.

        Descriptors that are not ours stay: `-r <(zcat FILE)` names one of them.
        """
        signal.set_wakeup_fd(-1)
        for slot in self._slots.values():
            slot.release()
        for segment in self._segments:
            segment.forget()
        for fd in (self._woken, self._wake, *self._children):
            os.close(fd)
        if self._pid_file is not None:
            self._pid_file.forget()

    # --- watching ------------------------------------------------------------------------------

    def _running(self, number: int) -> Running:
        return next(c for c in self._children.values() if c.part.number == number)

    def _watch(self) -> bool:
        """Wait for what comes next and do what it asks.  False when the run is over."""
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        for fd, child in self._children.items():
            poll.register(fd, select.POLLIN)
            poll.register(child.process.sentinel, select.POLLIN)
        ready = {fd for fd, _ in poll.poll()}
        if self._woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken, 1024)
        while self._seen < self._signals:
            self._seen += 1
            if not self._asked_to_stop():
                return False
        for fd, child in list(self._children.items()):
            # Whether it has ended is looked at first: its reports are then all there.
            ended = child.process.sentinel in ready
            if (ended or fd in ready) and not self._hear(child):
                return False
            if ended and not self._ended(child):
                return False
        return True

    def _asked_to_stop(self) -> bool:
        if self._seen == 1:
            self._slots[self._topology.sink].ask(drain=True)
            say("stopping: what has been read is finished; once more to stop at once")
            return True
        self._exit_code = 1
        self._broken = True
        say("stopped at once: what had been read is not finished")
        return False

    def _hear(self, child: Running) -> bool:
        """Take a child's reports.  False if the run is over."""
        for kind, text in child.hear():
            if kind == READY:
                child.ready = True
                continue
            if kind == CLOSED:
                self._quiet = self._broken = True
                return False
            say(text)
            if kind in (FAULT, ERROR):
                self._exit_code = 1
            if kind == ERROR:
                self._broken = True
                return False
        return True

    def _ended(self, child: Running) -> bool:
        """A child has ended.  False if the run is over."""
        self._reap(child)
        code = child.process.exitcode
        if code:
            self._exit_code = 1
            self._broken = True
            say(f"{child.part.name} {_death(code)}; the run is over")
            return False
        return child.part.role != "sink"

    def _end_children(self) -> None:
        """Whoever still lives when the run is over is killed, and reaped.

        The run is over either because the sink has ended well, and then the others are ending too,
        or because something went wrong.  Then the sink may finish the write in hand, so that a file
        ends with a whole event.
        """
        sinks = [c for c in self._children.values() if c.part.role == "sink"]
        if sinks or self._broken:
            self._slots[self._topology.sink].ask(quit=True)
            for child in self._children.values():
                if child not in sinks:
                    child.process.kill()
            self._await(sinks, 0.0 if self._quiet else LAST_WRITE)
        else:
            self._await(list(self._children.values()), REAP)
        for child in list(self._children.values()):
            if not _has_ended(child, 0.0):
                child.process.kill()
            if child in sinks or not self._broken:
                self._hear(child)       # its last words; what the killed ones say is no news
            self._reap(child)
            if child.process.exitcode and not self._broken and not sinks:
                self._exit_code = 1
                say(f"{child.part.name} {_death(child.process.exitcode)}")

    def _await(self, children: list[Running], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for child in children:
            _has_ended(child, max(0.0, deadline - time.monotonic()))

    def _reap(self, child: Running) -> None:
        child.process.join()
        del self._children[child.reports]
        os.close(child.reports)


def _has_ended(child: Running, seconds: float) -> bool:
    """Wait for it at most so long.  (Process.join() with a time imports half of the library.)"""
    poll = select.poll()
    poll.register(child.process.sentinel, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _main_of(role: str):  # type: ignore[no-untyped-def]
    """The main function of a role; its modules are imported in the child alone."""
    if role == "capture":
        from gazer.capture.process import main
    elif role == "worker":
        from gazer.workers.process import main
    else:
        from gazer.sinks.process import main
    return main


def _death(exitcode: int) -> str:
    if exitcode < 0:
        try:
            return f"was killed by {signal.Signals(-exitcode).name}"
        except ValueError:
            return f"was killed by signal {-exitcode}"
    return f"died with exit code {exitcode}"
