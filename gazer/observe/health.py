"""`gazer health`: is the sensor well?  One line says why not.

What is looked at, the worst first:

    process   each that is meant to run runs, and is a child of the supervisor
    interface none is waited for
    hang      none has been without a sign of life for longer than `silent`
    blocked   none has waited for room downstream or for its outputs for longer than `blocked`, and
              no output has had work for so long and taken nothing
    account   the balances hold (looked at several times before they count as broken)
    servers   each server of a fluentd output takes something
    spool     each can be written and read; none takes more than four fifths of what it may
    restart   none has been started again within the last `restart`
    drops     nothing was dropped while we looked, for `window`

The defaults are below.  A sensor that drops for a moment under a burst is well again at the next
look: who wants to know of each drop looks at the counters, or at metrics.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from gazer.observe.snapshot import Observer, Snapshot, Standing

# Processes beat several times a second (100 ms naps); the supervisor kills at 10 s by default.
SILENT = 5.0        # seconds
# A disk that is full for less than this may well be somebody's log rotation.
BLOCKED = 30.0
# Long enough that a check each minute sees every restart.
RESTART = 60.0
# Two looks this far apart tell whether something is being dropped.
WINDOW = 1.0
SPOOL = 0.8         # share of spool.max_bytes: there is still time to do something


@dataclass(frozen=True, slots=True)
class Limits:
    """Thresholds in seconds; `restart` and `window` 0: not looked at."""

    silent: float = SILENT
    blocked: float = BLOCKED
    restart: float = RESTART
    window: float = WINDOW


def examine(observer: Observer, limits: Limits) -> list[str]:
    """What is wrong with the sensor, the worst first; nothing if it is well."""
    first = observer.snapshot()
    if limits.window:
        time.sleep(limits.window)
    last, standing = observer.settled()
    return [*complaints(first, last, standing, limits)]


def complaints(
    first: Snapshot, last: Snapshot, standing: Standing, limits: Limits
) -> Iterator[str]:
    """The same, of two snapshots."""
    for p in last.processes:
        if p.state == "missing":
            yield f"{p.label} is missing"
    for number, one in enumerate(last.captures):
        if one["absent"]:
            yield f"capture {number} waits for its interface"
    for p in last.processes:
        if p.waited > limits.blocked:
            yield f"{p.label} has been blocked for {p.waited:.0f} s"
        elif p.state in ("starting", "running") and p.silent > limits.silent:
            yield f"{p.label} has shown no sign of life for {p.silent:.0f} s"
    for number, seconds in enumerate(map(last.blocked, range(len(last.account.outputs)))):
        if seconds > limits.blocked:
            yield f"{last.output(number)} has taken nothing for {seconds:.0f} s"
    if standing.broken and not standing.waiting:
        more = len(standing.broken) - 1
        yield f"the account does not add up: {standing.broken[0]}" + (
            f" (and {more} more)" if more else "")
    for number, output in enumerate(last.account.outputs):
        up, servers = output["servers_up"], output["servers"]
        if up < servers:
            yield f"output {number}: {servers - up} of {servers} servers not connected"
        if output["spool_failing"]:
            yield f"output {number}: its spool can't be written or read"
        if output["spool_bytes"] > SPOOL * output["spool_limit"]:
            share = output["spool_bytes"] / max(1, output["spool_limit"])
            yield f"output {number}: its spool is {share:.0%} full"
    for p in last.processes:
        if p.name and p.starts > 1 and p.age < limits.restart:
            yield f"{p.label} was started again {p.age:.0f} s ago"
    before = first.dropped()
    for where, n in last.dropped().items():
        if limits.window and n > before[where]:
            what = "events" if where in ("output", "spool") else "frames"
            whose = {"kernel": "kernel's buffer", "interface": "interface", "ring": "rings",
                     "output": "outputs", "spool": "spools"}[where]
            yield (
                f"{n - before[where]} {what} dropped in {last.time - first.time:.1f} s "
                f"({whose})"
            )
