"""A run over interfaces: a service, whose processes are started again when they die or hang.

What is different from a run over files (`run`):

- **A child that dies** is started again once it has been reaped, never before: two processes with
  one slot and one end of a ring would ruin both.  The successor goes on from the slot's last commit
  (ARCHITECTURE.md, "Succession").  A capture process whose interface has gone says so by its exit
  code, and that is no death.  An end that nobody asked for is one whatever its exit code (a process
  that was taken over may end in order).  Too many deaths of one process end the service with exit
  code 1.
- **A child that hangs** is killed, and then has died.  `watch` has the judgements.
- **Until all processes are up** a child that reports an error ends the run, since that is a mistake
  to be told to whoever starts the service: a file that can't be written, a capability that is
  missing.  Later the same is a death like any other.
- **A stop has a deadline** (`service.shutdown_timeout`), and a fault on the way is no reason for an
  exit code of 1 a year later, unless it comes while stopping.
- **Rights**: the supervisor keeps what it takes to start, stop and capture; children become
  `service.user` (gazer.privileges).
- **SIGHUP** reads the configuration again (`reload`) and has outputs opened again.
"""

from __future__ import annotations

import contextlib
import signal

from gazer.child import EXIT_INTERFACE
from gazer.config.kinds import show_duration
from gazer.counters import SUPERVISOR
from gazer.errors import GazerError, ProcessError
from gazer.privileges import limit_supervisor
from gazer.service.log import say
from gazer.service.reload import merged
from gazer.service.run import STANDARD_OUTPUT, Run
from gazer.service.running import Running
from gazer.service.watch import FEW, PAUSE, ROUND, SECOND, STARTING, Deaths
from gazer.topology import Part

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from gazer.config import Config


class LiveRun(Run):
    """One service.  `read_again` gives the configuration as it is now; None: there is no file."""

    def __init__(
        self, *args: Any, read_again: Callable[[], Config] | None = None, **named: Any
    ) -> None:
        super().__init__(*args, **named)
        self._read_again = read_again
        self._deaths: dict[int, Deaths] = {}        # by the number of the process
        self._starts: dict[int, tuple[int, Part]] = {}      # when who is to be started again
        self._deadline: int | None = None           # of a stop; all times by the running clock
        self._gave_up = False

    def _give_up_rights(self) -> None:
        # What would be imported later: root is bound by the modes of files then, and in months the
        # program on the disk may have become another one.
        import psutil  # noqa: F401

        import gazer.summary  # noqa: F401

        limit_supervisor()
        self._confined = True

    # --- up ------------------------------------------------------------------------------------

    def _await_ready(self) -> bool:
        while not self._all_ready():
            if not self._watch():
                return False
            if self._stops:
                return True         # it ends before it was up; what it has read is finished
        say(f"started: {1 + len(self._children)} processes are up")      # with this one
        self._is_up()
        return True

    def _all_ready(self) -> bool:
        """Who serves metrics is not waited for: the service is one without it."""
        needed = sum(part.role != "metrics" for part in self._topology.parts())
        children = self._children.values()
        return sum(c.ready for c in children if c.part.role != "metrics") == needed

    def _state(self) -> str:
        blocked = [c.part.name for c in self._children.values() if c.blocked]
        if blocked:
            return f"blocked: {', '.join(blocked)}"
        return f"capturing on {', '.join(dict.fromkeys(self._topology.interfaces))}"

    # --- rounds --------------------------------------------------------------------------------

    def _round(self) -> int | None:
        return min(ROUND, self._notifier.pace or ROUND, *self._until_starts())

    def _until_starts(self) -> list[int]:
        return [max(0, when - self._clock.time) for when, _ in self._starts.values()]

    def _watch(self) -> bool:
        if not super()._watch():
            return False
        now = self._clock.time
        self._slots[self._topology.supervisor].heartbeat_now()
        for number, (when, part) in list(self._starts.items()):
            if now >= when:
                del self._starts[number]
                if not self._start_again(part, now):
                    return False
        for child in self._children.values():
            self._look_at(child, now)
        if self._up and not self._stops:
            self._notifier.status(self._state())
        if self._deadline is not None and now >= self._deadline:
            self._give_up()
            return False
        return True

    def _start_again(self, part: Part, now: int) -> bool:
        """False if that can't be, and has not been possible too often."""
        try:
            self._start_one(part)
        except ProcessError as error:       # the machine has no room for a process just now
            say(str(error))
            if self._too_many_deaths(part, now):
                return False
            self._starts[part.number] = now + SECOND, part
        return True

    def _look_at(self, child: Running, now: int) -> None:
        """Is it blocked, or does it hang?"""
        slot = self._slots[child.part.number]
        begun = slot.pid == child.pid               # else the slot is its predecessor's still
        waits = begun and slot.state == "waiting"
        silence = child.pulse.silence(slot.heartbeat if begun else 0, now)
        limit = self._config.service.hang_timeout_ns
        self._look_whether_blocked(child, waits, now, limit)
        if not child.ready:
            limit = max(limit, STARTING)
        if silence < limit or child.hangs or (waits and not _is_stopped(child.pid)):
            return
        child.hangs = True
        self._count("hangs")
        say(f"{child.part.name} has shown no sign of life for {show_duration(limit)}; it is killed")
        child.process.kill()

    def _look_whether_blocked(self, child: Running, waits: bool, now: int, limit: int) -> None:
        """Only the sink waits for what is not ours: its outputs."""
        if not waits:
            child.waits_since = None
            if child.blocked:
                child.blocked = False
                say(f"{child.part.name} goes on")
        elif child.waits_since is None:
            child.waits_since = now
        elif child.part.role == "sink" and not child.blocked and now - child.waits_since >= limit:
            child.blocked = True
            say(f"{child.part.name} is blocked: an output has taken nothing for "
                f"{show_duration(limit)}")

    def _count(self, name: str) -> None:
        slot = self._slots[self._topology.supervisor]
        slot.add(SUPERVISOR[name], 1)
        slot.publish()

    # --- deaths --------------------------------------------------------------------------------

    def _faulty(self) -> None:
        if self._stops or not self._up:
            self._exit_code = 1

    def _pass_on(self, child: Running, text: str) -> None:
        """A child that was taken over can't fill the log, year in, year out."""
        if child.talk.allows(self._clock.time):
            super()._pass_on(child, text)
        elif not child.hushed:
            child.hushed = True
            say(f"{child.part.name} says too much: some of it is left out from here on")

    def _failed(self) -> bool:
        return self._up or super()._failed()

    def _ended(self, child: Running) -> bool:
        self._reap(child)
        part, now = child.part, self._clock.time
        if self._stops and (child.exitcode == 0 or part.role == "metrics"):
            return part.role != "sink"
        if child.replaced:
            pass
        elif child.exitcode == EXIT_INTERFACE and part.role == "capture":
            self._count("interface_gone")
        else:
            say(f"{part.name} (pid {child.pid}) {child.death()}")
            if self._too_many_deaths(part, now):
                return False
        self._count(f"restarts.{part.role}")
        self._starts[part.number] = max(now, child.started + PAUSE), part
        return True

    def _too_many_deaths(self, part: Part, now: int) -> bool:
        if not self._deaths.setdefault(part.number, Deaths()).too_many(now):
            return False
        say(f"{part.name} died {FEW} times within a minute; the service ends")
        self._exit_code = 1
        self._broken = True
        return True

    # --- signals -------------------------------------------------------------------------------

    def _obey(self, number: int, when: int) -> bool:
        if number == signal.SIGHUP:
            if not self._stops:
                self._reload()
            return True
        return super()._obey(number, when)

    def _asked_to_stop(self) -> bool:
        if not super()._asked_to_stop():
            return False
        self._deadline = self._clock.time + self._config.service.shutdown_timeout_ns
        return True

    def _give_up(self) -> None:
        """The stop has taken too long."""
        left = ", ".join(sorted(c.part.name for c in self._children.values()))
        limit = show_duration(self._config.service.shutdown_timeout_ns)
        say(f"not finished within {limit} (service.shutdown_timeout): {left or 'a start'} given up")
        self._exit_code = 1
        self._broken = self._gave_up = True

    def _reload(self) -> None:
        if self._up:        # else its end would be taken for the end of the start
            self._notifier.reloading()
        self._slots[self._topology.supervisor].ask_reload()
        self._count("reloads")
        if self._read_again is None:
            say(f"{self._again()}; there is no configuration file to read again")
        else:
            try:
                self._take(self._read_again())
            except (GazerError, OSError) as error:      # a folder that it lies in has gone, say
                for line in str(error).splitlines():
                    say(f"the configuration stays as it was: {line}")
        if self._up:
            self._notifier.ready(self._state())

    def _take(self, new: Config) -> None:
        """Let what can change in place change, and name the rest."""
        new_config, changed, kept = merged(self._config, new)
        self._config = new_config
        if "metrics.listen" in changed:
            for child in self._children.values():
                if child.part.role == "metrics":
                    child.replaced = True
                    child.process.kill()
        if changed:
            say(f"the configuration was read again; changed: {', '.join(changed)}")
        if kept:
            say(f"the configuration was read again; needs a restart: {', '.join(kept)}")
        if not (changed or kept):
            say(f"the configuration was read again and has not changed; {self._again()}")

    def _again(self) -> str:
        """What becomes of the outputs: only what has a path or an address can be opened again."""
        outputs = self._config.outputs
        kept = sum(output.path in STANDARD_OUTPUT for output in outputs)
        if kept == len(outputs):
            return "standard output stays as it is"
        return "outputs are opened again" + (", but for standard output" if kept else "")

    # --- account -------------------------------------------------------------------------------

    def _say_counters(self) -> None:
        super()._say_counters()
        self._say_restarts()

    def _say_summary(self) -> None:
        if self._gave_up:
            self._say_lost()
        super()._say_summary()
        self._say_restarts()

    def _say_restarts(self) -> None:
        counts = self._slots[self._topology.supervisor].read(SUPERVISOR)
        restarts = {
            name.partition(".")[2]: n for name, n in counts.items()
            if name.startswith("restarts.") and n
        }  # fmt: skip
        if restarts:
            each = ", ".join(f"{role} {n}" for role, n in restarts.items())
            say(f"processes started again: {each}; of these {counts['hangs']} hung, "
                f"{counts['interface_gone']} lost their interface")

    def _say_lost(self) -> None:
        """What the ledger knows of what was on its way when the stop was given up."""
        account = self._account()
        capture, workers, sink = account.capture, account.workers, account.sink
        made = workers["transactions"] + workers["records"]
        frames = capture["delivered"] - workers["frames"]
        say(f"lost: {max(0, frames)} frames that no worker had looked at, "
            f"{workers['pending']} queries waiting for their reply, "
            f"{max(0, made - sink['events'])} events that were not merged")


def _is_stopped(pid: int) -> bool:
    """By SIGSTOP or the like: then even what it waits for would not move it."""
    import psutil  # here: it takes its time to import

    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    return False
