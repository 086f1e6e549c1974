"""One run: its shared memory, its processes from start to end, its signals, its summary.

The supervisor is the only parent and the only one that writes to the log.  It parses nothing that
comes from the network.  Signals only set a flag (and wake it); the loop in `_watch` does what they
ask.  What stands here is a run over capture files:

- the first SIGINT, SIGTERM or SIGHUP drains: capture stops, what has been read is finished; an
  output that waits for room gives up;
- the second one quits: capture and workers are killed, the sink ends after the write in hand; what
  follows the first within half a second is the first: timeout(1) signals us and then our group, and
  a wrapper passes on the SIGINT that the terminal has given to both;
- SIGUSR1 writes the counters to the log.

It ends when the sink has ended.  A child that dies before that ends the run with an error: a file
can be read again.  What is different over interfaces is in `live`.  Whatever happens, no child and
no shared segment is left behind.

Children are forked, not spawned: a spawned one costs an interpreter and 100 ms of CPU.  What makes
forking safe is a rule: this process has no threads, and starts none.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from types import FrameType

from gazer.child import CLOSED, ERROR, FAULT, READY, Boot
from gazer.config import Config
from gazer.counters import CAPTURE, Slot, ledger_create
from gazer.errors import ProcessError
from gazer.observe.progress import Progress, progress_for
from gazer.ring import Ring
from gazer.segment import PREFIX, Segment, new_token
from gazer.service import log
from gazer.service.cpus import cpus_of
from gazer.service.daemon import Launch
from gazer.service.log import say
from gazer.service.notify import Notifier
from gazer.service.running import Running
from gazer.service.watch import RunningClock
from gazer.system import set_name, set_title
from gazer.topology import Part, Topology

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from gazer.pidfile import PidFile
    from gazer.privileges import Identity
    from gazer.summary import Account

    MainOf = Callable[[str], Callable[[Boot], None]]

REAP = 5.0          # seconds that a child may take to end when the sink has ended
PROGRESS = 500_000_000      # ns between two lines of progress, where a terminal shows them
SAME = 500_000_000  # ns after the first signal to stop in which another one is the same
LAST_WRITE = 1.0    # seconds that the sink may take to finish a write when all is to end at once
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
STANDARD_INPUT = ("-", "/dev/stdin", "/dev/fd/0")
STANDARD_OUTPUT = ("-", "/dev/stdout", "/dev/fd/1")


class Run:
    """One run.  `stack` undoes what is made here; `main_of` gives the main function of a role."""

    def __init__(
        self,
        config: Config,
        stack: contextlib.ExitStack,
        *,
        main_of: MainOf,
        pid_file: PidFile | None = None,
        launch: Launch | None = None,
        identity: Identity | None = None,
    ) -> None:
        self._config = config
        self._topology = Topology.of(config)
        self._stack = stack
        self._main_of = main_of
        self._pid_file = pid_file
        self._launch = launch
        self._identity = identity   # whom the children of a service are; None: whoever we are
        self._confined = False
        self._writes_stdout = any(o.path in STANDARD_OUTPUT for o in config.outputs)
        self._notifier = Notifier(os.environ)
        self._clock = RunningClock(time.monotonic_ns())
        self._segments: dict[str, Segment] = {}
        self._children: dict[int, Running] = {}     # by the descriptor of their reports
        self._signals: list[tuple[int, int]] = []   # that are to be obeyed yet, and when each came
        self._stops = 0             # times that an end was asked for
        self._stopped = 0           # when it was for the first time, by CLOCK_MONOTONIC
        self._exit_code = 0
        self._quiet = False
        self._fault = ""            # what was told last of something that went wrong
        self._broken = False        # it ends before its time: what is in hand is lost
        self._up = False            # all processes have what they need
        self._slots: dict[int, Slot] = {}
        self._progress: Progress | None = None      # of a long read, on a terminal
        self._bells: tuple[int, ...] = ()
        self._stdin = -1
        self._seed = int.from_bytes(os.urandom(8), "little")
        self._woken = self._wake = -1

    def run(self) -> int:
        set_name("gazer")
        set_title("gazer: supervisor")
        self._stack.callback(self._notifier.close)
        self._catch_signals()
        self._make_shared_memory()
        self._bells = tuple(
            self._descriptor(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            for _ in range(self._topology.observer + self._topology.metrics)    # a child each
        )
        self._prepare_progress()
        try:
            if reading := self._start():
                while self._watch():
                    pass
        finally:
            self._end_children()
            if self._progress is not None:
                self._progress.clear()
        if reading and not self._quiet:
            self._say_summary()
        return self._exit_code

    def _account(self) -> Account:
        from gazer.summary import Account

        return Account.read(self._slots, self._topology, len(self._config.outputs))

    def _say_summary(self) -> None:
        from gazer.summary import summary

        account = self._account()
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
        self._signals.append((number, time.monotonic_ns()))

    def _make_shared_memory(self) -> None:
        token = new_token()
        sizes = self._topology.segments()
        _allow_descriptors(4 * len(sizes) + 16 * self._topology.processes)
        for part, size in sizes.items():
            segment = self._segments[part] = Segment.create(
                f"{PREFIX}{token}-{part}", size, owner=self._identity)
            self._stack.callback(segment.close)
            if part == "ledger":
                ledger_create(
                    segment.buf,
                    [output.name for output in self._config.outputs],
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
            elif part.startswith(("frames", "events")):
                Ring(segment.buf, create=self._topology.ring_capacity).release()
        self._slots[self._topology.supervisor].open(os.getpid())

    def _descriptor(self, fd: int) -> int:
        self._stack.callback(os.close, fd)
        return fd

    def _start(self) -> bool:
        """Start all processes.  False if the run is over before anything is read."""
        if self._takes_stdin():
            with contextlib.suppress(OSError):      # closed by whoever started us
                self._stdin = self._descriptor(os.dup(0))
        self._give_up_rights()
        gc.freeze()     # what is here now stays in pages that all share
        self._stack.callback(gc.unfreeze)
        for part in self._topology.parts():
            if part.role == "capture":
                # Nothing is read before it is known that it can be written.
                while not self._sink_is_ready():
                    if not self._watch():
                        return False
            self._start_one(part)
        return self._await_ready()

    def _give_up_rights(self) -> None:
        """Ahead of the first child.  A run over files does what its user may do, and has an end."""

    def _takes_stdin(self) -> bool:
        """A daemon lets go of it where it can, and no service has a use for it."""
        files = self._config.capture.files
        return any(path in STANDARD_INPUT for path in files) or not (
            self._topology.interfaces or self._launch
        )

    def _await_ready(self) -> bool:
        """Go on until the run is up.  False if it is over before."""
        self._is_up()
        return True

    def _is_up(self) -> None:
        """All processes have what they need: who waits for that may know."""
        self._up = True
        self._slots[self._topology.supervisor].waits(False)
        self._notifier.ready(self._state())
        if self._launch is not None:
            self._launch.ready(keep_stdout=self._writes_stdout)

    def _state(self) -> str:
        """What the service manager shows."""
        return "reading capture files"

    def _start_one(self, part: Part) -> None:
        try:
            ours, theirs = os.pipe2(os.O_CLOEXEC)
        except OSError as error:
            raise ProcessError(f"can't start {part.name}: {error.strerror}") from None
        os.set_blocking(ours, False)
        boot = Boot(
            part=part,
            config=self._config,
            segments=self._segments,
            bells=self._bells,
            stdin=self._stdin,
            seed=self._seed,
            supervisor=os.getpid(),
            reports=theirs,
            cpus=cpus_of(self._config, part),
            confined=self._confined,
            identity=self._identity,
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
        self._children[ours] = Running(part, process, ours, self._clock.time)

    def _begin(self, boot: Boot, ours: int) -> None:
        """In the child: let go of what is the supervisor's, and become the part."""
        os.close(ours)
        self._forget(boot)
        if boot.part.role != "capture" or boot.stdin < 0:
            log.close_standard(0)
            if boot.stdin >= 0:
                os.close(boot.stdin)
        self._main_of(boot.part.role)(boot)

    def _forget(self, boot: Boot) -> None:
        """In a child: close what only the supervisor, or another child, needs.

        Descriptors that are not ours stay: `-r <(zcat FILE)` names one of them.
        """
        signal.set_wakeup_fd(-1)
        for slot in self._slots.values():
            slot.release()
        own = self._topology.shared_with(boot.part)
        for name, segment in self._segments.items():
            if name not in own:
                segment.close()
        boot.segments = {name: self._segments[name] for name in own}
        for fd in (self._woken, self._wake, *self._children):
            os.close(fd)
        self._notifier.close()
        if self._pid_file is not None:
            self._pid_file.forget()
        if self._launch is not None:
            self._launch.forget()
            writes = boot.part.role == "sink" and self._writes_stdout
            log.close_standard(*((2,) if writes else (1, 2)))

    # --- watching ------------------------------------------------------------------------------

    def _sink_is_ready(self) -> bool:
        return any(c.ready for c in self._children.values() if c.part.role == "sink")

    def _round(self) -> int | None:
        """The longest time until the next round, in ns; None: until something happens."""
        if self._progress is not None:
            return min(PROGRESS, self._notifier.pace or PROGRESS)
        return self._notifier.pace

    def _prepare_progress(self) -> None:
        """Show how far a read of files has come, where there is somebody to see it."""
        if self._topology.interfaces:
            return
        outputs = [output.path for output in self._config.outputs]
        self._progress = progress_for(2, self._config.capture.files, outputs)
        if self._progress is not None:
            log.call_before(self._progress.clear)
            self._stack.callback(log.call_before, None)

    def _show_progress(self) -> None:
        if self._progress is not None:
            seen = self._slots[0].read(CAPTURE)
            self._progress.update(seen["input_bytes"], seen["frames"])

    def _watch(self) -> bool:
        """Wait for what comes next and do what it asks.  False when the run is over."""
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        for fd, child in self._children.items():
            poll.register(fd, select.POLLIN)
            poll.register(child.process.sentinel, select.POLLIN)
        wait = self._round()
        ready = {fd for fd, _ in poll.poll(None if wait is None else wait // 1_000_000)}
        now = time.monotonic_ns()
        self._clock.round(now)
        self._notifier.alive(now)
        self._show_progress()
        if self._woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken, 1024)
        while self._signals:
            if not self._obey(*self._signals.pop(0)):
                return False
        for fd, child in list(self._children.items()):
            # Whether it has ended is looked at first: its reports are then all there.
            ended = child.process.sentinel in ready
            if (ended or fd in ready) and not self._hear(child):
                return False
            if ended and not self._ended(child):
                return False
        return True

    def _obey(self, number: int, when: int) -> bool:
        """Do what a signal asks.  False if the run is over."""
        if number == signal.SIGUSR1:
            self._say_counters()
            return True
        if self._stops and when - self._stopped < SAME:
            return True
        self._stopped = when
        return self._asked_to_stop()

    def _say_counters(self) -> None:
        from gazer.summary import summary

        for line in summary(self._account(), self._config, running=True):
            say(line)

    def _asked_to_stop(self) -> bool:
        self._stops += 1
        if self._stops == 1:
            self._slots[self._topology.sink].ask(drain=True)
            self._notifier.stopping("stopping", self._config.service.shutdown_timeout_ns)
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
            elif kind == CLOSED:
                if child.part.role == "sink":
                    self._quiet = self._broken = True
                    return False
            else:
                if kind != ERROR or text != self._fault:    # why it ends may have been told
                    self._pass_on(child, text)
                if kind == FAULT:
                    self._fault = text
                    self._faulty()
                if kind == ERROR and not self._failed():
                    return False
        return True

    def _pass_on(self, child: Running, text: str) -> None:
        """To the log, what a child has to say."""
        say(text)

    def _faulty(self) -> None:
        """Something went wrong, and the run goes on."""
        self._exit_code = 1

    def _failed(self) -> bool:
        """A child can't go on, and has said why.  False if the run is over."""
        self._exit_code = 1
        self._broken = True
        return False

    def _ended(self, child: Running) -> bool:
        """A child has ended.  False if the run is over."""
        self._reap(child)
        if child.exitcode:
            self._exit_code = 1
            self._broken = True
            say(f"{child.part.name} {child.death()}; the run is over")
            return False
        return child.part.role != "sink"

    # --- ending --------------------------------------------------------------------------------

    def _end_children(self) -> None:
        """Whoever still lives when the run is over is killed, and reaped.

        The run is over either because the sink has ended well, and then the others are ending too,
        or because something went wrong.  Then the sink may finish the write in hand, so that a file
        ends with a whole event.  Who serves metrics has nothing to finish.
        """
        sinks = [c for c in self._children.values() if c.part.role == "sink"]
        for child in self._children.values():
            if child.part.role == "metrics":
                child.replaced = True
                child.process.kill()
        if sinks or self._broken:
            self._slots[self._topology.sink].ask(quit=True)
            for child in self._children.values():
                if child not in sinks:
                    child.process.kill()
            self._await(sinks, 0.0 if self._quiet else LAST_WRITE)
        else:
            self._await(list(self._children.values()), REAP)
        for child in list(self._children.values()):
            if not child.has_ended(0.0):
                child.process.kill()
            if child in sinks or not self._broken:
                self._hear(child)       # its last words; what the killed ones say is no news
            self._reap(child)
            if child.exitcode and not (self._broken or sinks or child.replaced):
                self._exit_code = 1
                say(f"{child.part.name} {child.death()}")

    def _await(self, children: list[Running], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for child in children:
            child.has_ended(max(0.0, deadline - time.monotonic()))

    def _reap(self, child: Running) -> None:
        child.reap()
        del self._children[child.reports]


def _allow_descriptors(number: int) -> None:
    """As many as this run takes, where the limit is a soft one: each segment takes two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = 256 + number
    if hard != resource.RLIM_INFINITY:
        want = min(want, hard)
    if soft != resource.RLIM_INFINITY and soft < want:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (want, hard))
