"""What `gazer stats`, `gazer health` and `gazer top` do: their arguments, then the right module.

Each command imports what it needs when it runs: `gazer run` passes by here, and needs none of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from gazer.errors import GazerError, ProcessError
from gazer.observe import health

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from gazer.observe.find import Sensor
    from gazer.observe.snapshot import Observer


def add(commands: argparse._SubParsersAction[Any], say: Callable[[str], None]) -> None:
    """Add the three commands.  say: writes to standard output."""
    stats = _command(commands, "stats", "show the counters of the running sensor, and whether they "
                                        "add up")
    stats.add_argument("--json", action="store_true", help="as one JSON object")
    stats.set_defaults(command=lambda arguments: _stats(arguments, say))
    top = _command(commands, "top", "watch the running sensor: rates, latency, drops, top names")
    top.add_argument("--once", action="store_true", help="print one screen as text and end")
    top.add_argument("--interval", metavar="SECONDS", type=seconds(0.1, 60.0), default=1.0,
                     help="between two screens (default: 1)")
    top.set_defaults(command=lambda arguments: _top(arguments, say))
    well = _command(commands, "health", "tell whether the running sensor is well: exit code 0, or "
                                        "1 and the reason")
    for name, default, what in (
        ("silent", health.SILENT, "a process may show no sign of life for so long"),
        ("blocked", health.BLOCKED, "... while it waits for an output or for room"),
        ("restart", health.RESTART, "a process started again less than this ago is no good sign"),
        ("window", health.WINDOW, "look for drops for so long; 0: don't"),
    ):
        well.add_argument(f"--{name}", metavar="SECONDS", type=seconds(0.0, 86400.0),
                          default=default, help=f"{what} (default: {default:g})")
    well.set_defaults(command=lambda arguments: _health(arguments, say))


def _command(commands: argparse._SubParsersAction[Any], name: str,
             summary: str) -> argparse.ArgumentParser:
    sub: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary.capitalize()}.", allow_abbrev=False)
    which = sub.add_mutually_exclusive_group()
    which.add_argument("--pid", type=int, metavar="PID",
                       help="the sensor that this process belongs to; without this and --pid-file "
                            "the only one on this machine")
    which.add_argument("--pid-file", metavar="FILE",
                       help="the sensor that holds this pid file")
    return sub


def seconds(least: float, most: float) -> Callable[[str], float]:
    """A kind of argument: a number of seconds within bounds."""
    def read(text: str) -> float:
        value = float(text)
        if not least <= value <= most:      # NaN is not, either
            raise ValueError
        return value

    read.__name__ = f"number of seconds from {least:g} to {most:g}"     # argparse shows it
    return read


@contextlib.contextmanager
def _observed(arguments: argparse.Namespace) -> Iterator[tuple[Sensor, Observer]]:
    from gazer.observe.find import find
    from gazer.observe.snapshot import Observer

    with find(arguments.pid, arguments.pid_file) as sensor:
        observer = Observer(sensor.attach, sensor.pid)
        try:
            yield sensor, observer
        finally:
            observer.close()


def _stats(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    from gazer.observe.stats import document, report

    with _observed(arguments) as (sensor, observer):
        snapshot, standing = observer.settled()
        say((document(sensor.pid, snapshot, standing) if arguments.json else
             "\n".join(report(sensor.pid, snapshot, standing))) + "\n")
    return 0


def _health(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    limits = health.Limits(arguments.silent, arguments.blocked, arguments.restart,
                           arguments.window)
    try:
        with _observed(arguments) as (sensor, observer):
            wrong = health.examine(observer, limits)
            pid = sensor.pid
    except ProcessError as error:
        wrong, pid = [str(error)], 0
    if wrong:
        say(f"not well: {'; '.join(wrong)}\n")
        return GazerError.exit_code
    say(f"well: sensor {pid}\n")
    return 0


def _top(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    from gazer.observe.top import live, once

    with _observed(arguments) as (sensor, observer):
        if arguments.once:
            say("\n".join(once(sensor, observer, arguments.interval)) + "\n")
        else:
            live(sensor, observer, arguments.interval)
    return 0
