"""The supervisor: makes the shared memory, starts the processes, waits, cleans up.

It is the only parent and the only one that writes to stderr.  It parses nothing that comes from the
network.  Signals only set a flag (and wake it); the loop in `_watch` does what they ask:

- the first SIGINT or SIGTERM drains: capture stops, what has been read is finished;
- the second one quits: everything is killed.

A run ends when the sink has ended.  A child that dies before that ends the run with an error: a
file can be read again.  Whatever happens, no child and no shared segment is left behind.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType

from gazer.child import CLOSED, ERROR, FAULT, Boot, Inherited
from gazer.config import Config
from gazer.counters import Slot, ledger_create
from gazer.errors import ProcessError
from gazer.ring import Ring
from gazer.segment import PREFIX, Segment, new_token, sweep
from gazer.summary import Account, summary
from gazer.topology import FIRST_WORKER, SINK, Part, Topology

REAP = 5.0      # seconds that a child which has reported its end may take to end


def run(config: Config, *, pid_file: str | None = None) -> int:
    """Run the pipeline over the configured capture files.  Returns the exit code.

    Raises GazerError for what keeps it from starting.
    """
    with contextlib.ExitStack() as stack:
        if pid_file is not None:
            from gazer.pidfile import PidFile

            stack.enter_context(PidFile(pid_file))
        for name in sweep():
            say(f"removed shared memory that a dead run left: {name}")
        return Supervisor(config, stack).run()


def say(text: str) -> None:
    """One line for the operator.  A stderr that is gone is no reason to stop."""
    with contextlib.suppress(OSError, ValueError):
        print(f"gazer: {text}", file=sys.stderr, flush=True)


class Supervisor:
    """One run.  `stack` undoes what is made here."""

    def __init__(self, config: Config, stack: contextlib.ExitStack) -> None:
        self._config = config
        self._topology = Topology.of(config)
        self._stack = stack
        self._token = new_token()
        self._children: dict[Part, BaseProcess] = {}
        self._reports: dict[Connection, Part] = {}
        self._signals = 0
        self._exit_code = 0
        self._quiet = False
        self._slots: dict[int, Slot] = {}

    def run(self) -> int:
        self._make_shared_memory()
        bells = tuple(
            self._descriptor(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            for _ in range(self._topology.workers + FIRST_WORKER)
        )
        with self._signals_caught() as woken:
            try:
                self._start(bells)
                self._watch(woken)
            finally:
                self._end_children()
        account = Account.read(self._slots, self._topology, len(self._config.outputs))
        if not self._quiet:
            for line in summary(account, self._config):
                say(line)
        return self._exit_code

    # --- setting up ----------------------------------------------------------------------------

    def _make_shared_memory(self) -> None:
        for part, size in self._topology.segments().items():
            segment = Segment.create(f"{PREFIX}{self._token}-{part}", size)
            self._stack.callback(segment.close)
            if part == "ledger":
                ledger_create(segment.buf)
                for number in range(self._topology.workers + FIRST_WORKER):
                    slot = self._slots[number] = Slot(segment.buf, number)
                    self._stack.callback(slot.release)
            else:
                Ring(segment.buf, create=self._topology.ring_capacity).release()

    def _descriptor(self, fd: int) -> Inherited:
        self._stack.callback(os.close, fd)
        return Inherited(fd)

    def _start(self, bells: tuple[int, ...]) -> None:
        context = multiprocessing.get_context("spawn")
        seed = secrets.randbits(64)
        stdin = -1
        if "-" in self._config.capture.files:
            stdin = self._descriptor(os.dup(0))
        for part in self._topology.parts():
            ours, theirs = context.Pipe(duplex=False)
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
            child = context.Process(target=_target(part.role), args=(boot,), name=part.name)
            self._reports[ours] = part
            try:
                child.start()
            except OSError as error:
                raise ProcessError(f"can't start {part.name}: {error.strerror}") from None
            finally:
                theirs.close()
            self._children[part] = child

    @contextlib.contextmanager
    def _signals_caught(self) -> Iterator[int]:
        """Signals wake a pipe and are counted; yields the end of it to wait for."""
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        old_wake = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        old = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield woken
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(old_wake)
            os.close(woken)
            os.close(wake)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    # --- watching ------------------------------------------------------------------------------

    def _watch(self, woken: int) -> None:
        """Until the sink has ended, or something went wrong."""
        seen = 0
        while True:
            sentinels = {child.sentinel: part for part, child in self._children.items()}
            ready = wait([woken, *self._reports, *sentinels])
            if woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(woken, 1024)
            while seen < self._signals:
                seen += 1
                if not self._asked_to_stop(seen):
                    return
            for connection in [c for c in ready if isinstance(c, Connection)]:
                if not self._hear(connection):
                    return
            for sentinel, part in sentinels.items():
                if sentinel in ready and not self._ended(part):
                    return

    def _asked_to_stop(self, times: int) -> bool:
        self._exit_code = 1
        if times == 1:
            self._slots[SINK].ask(drain=True)
            say("stopping: what has been read is finished; once more to stop at once")
            return True
        self._slots[SINK].ask(quit=True)
        if times == 2:
            say("stopping at once")
            # An output that waits for room gives up by itself, and leaves no half event.
            return self._slots[SINK].state == "waiting"
        return False

    def _hear(self, connection: Connection) -> bool:
        """Take one report.  False if the run is over."""
        try:
            kind, text = connection.recv()
        except (EOFError, OSError):
            del self._reports[connection]
            connection.close()
            return True
        if kind == CLOSED:
            self._quiet = True
            return False
        say(text)
        if kind in (FAULT, ERROR):
            self._exit_code = 1
        return bool(kind != ERROR)

    def _ended(self, part: Part) -> bool:
        """A child has ended.  False if the run is over."""
        child = self._children.pop(part)
        child.join()
        for connection in [c for c, p in self._reports.items() if p == part]:
            while connection in self._reports and connection.poll():
                if not self._hear(connection):
                    return False
        if child.exitcode:
            self._exit_code = 1
            say(f"{part.name} {_death(child.exitcode)}; the run is over")
            return False
        return part.role != "sink"

    def _end_children(self) -> None:
        """Whoever still lives when the run is over is killed, and reaped."""
        deadline = time.monotonic() + (REAP if self._exit_code == 0 and not self._quiet else 0)
        for child in self._children.values():
            child.join(max(0.0, deadline - time.monotonic()))
            if child.exitcode is None:
                child.kill()
                child.join()
        for connection in self._reports:
            connection.close()


def _target(role: str):  # type: ignore[no-untyped-def]
    """The function that a process of this role runs; imported by the child, not here."""
    return {"capture": _capture, "worker": _worker, "sink": _sink}[role]


def _capture(boot: Boot) -> None:
    from gazer.capture.process import main

    main(boot)


def _worker(boot: Boot) -> None:
    from gazer.workers.process import main

    main(boot)


def _sink(boot: Boot) -> None:
    from gazer.sinks.process import main

    main(boot)


def _death(exitcode: int) -> str:
    if exitcode < 0:
        try:
            return f"was killed by {signal.Signals(-exitcode).name}"
        except ValueError:
            return f"was killed by signal {-exitcode}"
    return f"died with exit code {exitcode}"
