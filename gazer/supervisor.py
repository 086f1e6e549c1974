"""The supervisor: the process that starts all others, watches them, and cleans up behind them.

`run` is what the command lines call.  What it consists of stands in gazer/service:

    run       one run: shared memory, processes, signals, summary
    live      ... over interfaces: restarts, hangs, deadlines, reload
    running   a child as the supervisor sees it;  watch: who hangs, who dies too often
    reload    what of a configuration can change in place;  cpus: who may run where
    rights    whom children are, and what that user may write
    daemon    `-d`;  notify: what a service manager is told;  log: lines for the operator
"""

from __future__ import annotations

import contextlib
import os

from gazer.config import Config
from gazer.errors import ConfigError, GazerError
from gazer.segment import sweep
from gazer.service.cpus import cpu_problems
from gazer.service.daemon import Launch, launch
from gazer.service.live import LiveRun
from gazer.service.log import say
from gazer.service.rights import (
    exposed_secrets,
    identity_of,
    remover,
    rights_problems,
    tls_problems,
)
from gazer.service.run import Run
from gazer.system import find_title

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable


def run(
    config: Config,
    *,
    pid_file: str | None = None,
    daemon: bool = False,
    read_again: Callable[[], Config] | None = None,
) -> int:
    """Run the pipeline over what is configured.  Returns the exit code.

    daemon: in the background; the caller's process ends as soon as that is up.  read_again: gives
    the configuration anew when SIGHUP asks for it.

    Raises GazerError for what keeps it from starting.
    """
    _hold_standard_descriptors()
    find_title()
    if config.capture.filter:
        from gazer.capture.filter import filter_problem  # here: it loads libpcap

        if problem := filter_problem(config.capture.filter):
            raise ConfigError(problem)
    problems = [*cpu_problems(config)]
    problems += rights_problems(config) if config.capture.interfaces else tls_problems(config)
    if problems:
        raise ConfigError("\n".join(problems))
    for line in exposed_secrets(config):
        say(line)
    started = launch() if daemon else None
    try:
        code = _run(config, pid_file, started, read_again)
    except GazerError as error:
        if started is not None:
            started.ended(error.exit_code)
        raise
    if started is not None:
        started.ended(code)
    return code


def _run(
    config: Config,
    pid_file: str | None,
    started: Launch | None,
    read_again: Callable[[], Config] | None,
) -> int:
    with contextlib.ExitStack() as stack:
        holder = None
        if pid_file is not None:
            from gazer.pidfile import PidFile

            holder = stack.enter_context(PidFile(pid_file))
        identity = identity_of(config)[0] if config.capture.interfaces else None
        for name in sweep(identity):
            say(f"removed shared memory that a dead run left: {name}")
        if config.capture.interfaces:
            if holder is not None:
                holder.unlink = remover(identity)
            return LiveRun(
                config, stack, main_of=_main_of, pid_file=holder, launch=started,
                identity=identity, read_again=read_again,
            ).run()  # fmt: skip
        return Run(config, stack, main_of=_main_of, pid_file=holder, launch=started).run()


def _hold_standard_descriptors() -> None:
    """Where we were started with standard descriptors closed, see that nothing of ours gets their
    numbers: events would be written to what is no output.  Using them stays an error."""
    for fd, useless in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, useless)    # gets the lowest free number, so this one
            os.set_inheritable(fd, True)


def _main_of(role: str):  # type: ignore[no-untyped-def]
    """The main function of a role; its modules are imported in the child alone."""
    if role == "capture":
        from gazer.capture.process import main
    elif role == "worker":
        from gazer.workers.process import main
    elif role == "metrics":
        from gazer.observe.process import main
    else:
        from gazer.sinks.process import main
    return main
