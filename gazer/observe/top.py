"""`gazer top`: a screen of what the sensor does just now, anew each second.

`screen` makes the lines of one screen out of two snapshots and the samples between them; it draws
nothing and asks nobody, so `--once` prints what `live` shows. It fills 80 columns and as many rows
as there are, at least 24; a smaller terminal shows its upper left part.

Rates are those between the two snapshots. Names, clients and types are counted over the last
WINDOW samples, of which each worker takes at most one in a millisecond: shares, not sums.
"""

from __future__ import annotations

import contextlib
import curses
import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType

from gazer.config.kinds import printable
from gazer.errors import ProcessError, UsageError
from gazer.observe import health
from gazer.observe.find import Sensor
from gazer.observe.metrics import latencies
from gazer.observe.snapshot import Observer, Process, Snapshot, growth, quantile
from gazer.observe.stats import clock, size, span

COLUMNS, ROWS = 79, 24     # the last column of a terminal stays empty
WINDOW = 10_000     # samples
LISTS = (("names", 31), ("clients", 20), ("types", 11), ("rcodes", 13))     # and their columns


@dataclass(slots=True)
class Asked:
    """What was asked of late: the last samples, and for each list how often each thing came."""

    counts: dict[str, Counter[str]] = field(
        default_factory=lambda: {name: Counter() for name, _ in LISTS})
    _kept: deque[tuple[str, ...]] = field(default_factory=deque)

    def add(self, name: str, client: str, type: str, rcode: str) -> None:
        one = (name or "(none)", client, type or "(none)", rcode or "(none)")
        self._count(one, 1)
        self._kept.append(one)
        if len(self._kept) > WINDOW:
            self._count(self._kept.popleft(), -1)

    def _count(self, one: tuple[str, ...], n: int) -> None:
        for (what, _), value in zip(LISTS, one, strict=True):
            self.counts[what][value] += n
            if not self.counts[what][value]:
                del self.counts[what][value]

    def total(self) -> int:
        return len(self._kept)


class Sampler:
    """Reads the workers' samples, where there are any: a live sensor has them."""

    def __init__(self, sensor: Sensor, workers: int) -> None:
        names = [f"samples{worker}" for worker in range(workers)]
        self._buffers = [sensor.attach(name) for name in names if sensor.has(name)]
        self._read = [0] * len(self._buffers)

    def into(self, asked: Asked) -> None:
        """Add what is new."""
        if not self._buffers:
            return
        from gazer.workers.sample import read_samples

        for worker, buffer in enumerate(self._buffers):
            for one in read_samples(buffer, self._read[worker]):
                self._read[worker] = max(self._read[worker], one.number)
                asked.add(one.name, one.client, one.type, one.rcode)

    def close(self) -> None:
        for buffer in self._buffers:
            buffer.release()


# --- the screen -----------------------------------------------------------------------------------


def screen(pid: int, old: Snapshot, new: Snapshot, asked: Asked, *, columns: int = COLUMNS,
           rows: int = ROWS) -> list[str]:
    """The lines of one screen."""
    columns, rows = max(columns, COLUMNS), max(rows, ROWS)
    elapsed = max(new.time - old.time, 0.001)
    head = [
        *_title(pid, old, new, columns), "", *_rates(old, new, elapsed), "",
        *_losses(old, new, elapsed), "", *_links(new),
    ]  # fmt: skip
    left = rows - len(head) - 1     # the last row is for what keys do
    lists = min(11, max(5, left - len(new.processes) - 2)) if asked.total() else 0
    processes = [*_processes(old, new, elapsed, left - lists - bool(lists))]
    lines = head + processes
    if lists:
        lines += ["", *_lists(asked, lists)]
    return [line[:columns].rstrip() for line in lines[: rows - 1]]


def _title(pid: int, old: Snapshot, new: Snapshot, columns: int) -> Iterator[str]:
    run = new.run
    left = f"gazer {pid}, {'live' if run['live'] else 'reading files'}, up "
    left += span(new.wall - run["started"] / 1e9)
    right = clock(new.wall)
    yield f"{left:<{columns - len(right)}}{right}"
    found = [*health.complaints(old, new, new.standing(), health.Limits())]
    yield f"NOT WELL: {'; '.join(found)}" if found else "well; the account adds up"


def _rates(old: Snapshot, new: Snapshot, elapsed: float) -> Iterator[str]:
    c = growth(old.account.capture, new.account.capture)
    w = growth(old.account.workers, new.account.workers)
    written = sum(
        after["events"] + after["delivered"] - before["events"] - before["delivered"]
        for before, after in zip(old.account.outputs, new.account.outputs, strict=True)
    )
    shown = {
        "frames": c["frames"], "messages": w["datagrams"] + w["stream_messages"],
        "queries": w["queries"], "replies": w["replies"], "success": w["success"],
        "no_reply": w["no_reply"] + w["evicted"], "no_query": w["no_query"],
        "written": max(0, written),
    }  # fmt: skip
    yield "      " + "".join(f"{name:>9}" for name in shown)
    yield "/s    " + "".join(f"{short(n / elapsed):>9}" for n in shown.values())
    buckets: Counter[float] = Counter()
    for before, after in zip(old.workers, new.workers, strict=True):
        buckets.update(latencies(growth(before, after)))
    pending, limit = new.account.workers["pending"], new.run["max_pending"]
    line = "latency   " + "   ".join(
        f"p{q * 100:g} {duration(quantile(buckets, q))}" for q in (0.5, 0.9, 0.99))
    yield f"{line:<48}pending {pending} of {limit} ({pending / max(limit, 1):.0%})"


def _losses(old: Snapshot, new: Snapshot, elapsed: float) -> Iterator[str]:
    before, after = old.dropped(), new.dropped()
    yield "dropped by    " + "".join(f"{name:>13}" for name in after)
    yield "/s            " + "".join(
        f"{short(max(0, n - before[name]) / elapsed):>13}" for name, n in after.items())
    yield "in all        " + "".join(f"{n:>13}" for n in after.values())


def _links(new: Snapshot) -> Iterator[str]:
    """The fluentd outputs: servers, and what waits; and each output that takes nothing."""
    found = [(i, o) for i, o in enumerate(new.account.outputs) if o["servers"] or new.blocked(i)]
    for number, o in found:
        if new.blocked(number):
            name = new.output(number).removeprefix("output ")
            # The end of a path tells more than its beginning.
            name = name if len(name) <= 24 else f"~{name[-23:]}"
            yield (f"output {number:<5}TAKES NOTHING for {span(new.blocked(number))}: "
                   f"{name}, {new.standing().in_flight[f'events on their way to output {number}']}"
                   " wait")
        if not o["servers"]:
            continue
        line = f"output {number:<5}{o['servers_up']} of {o['servers']} servers up"
        line += f", {o['unacknowledged']} chunks under way"
        if o["spool_limit"]:
            share = o["spool_bytes"] / o["spool_limit"]
            line += f", spool {share:.0%}, {o['spool_events']} events"
        yield line
    if found:
        yield ""


def _processes(old: Snapshot, new: Snapshot, elapsed: float, rows: int) -> Iterator[str]:
    """The processes, and how full the rings are that each of them reads."""
    yield f"{'process':<12}{'pid':>8} {'state':<9}{'cpu':>6}{'memory':>10}   rings it reads"
    before = {(p.role, p.index, p.pid): p.cpu for p in old.processes}
    shown = list(new.processes)
    hidden = max(0, len(shown) - (rows - 1))
    workers = sorted((p for p in shown if p.role == "worker"), key=lambda p: p.cpu)
    if hidden and len(workers) == 1:
        hidden = 0          # the line that tells of it would take its room
    elif hidden:
        # The workers that do the most stand for the others.
        hidden += 1
        for p in workers[:hidden]:
            shown.remove(p)
        hidden = len(new.processes) - len(shown)
    for p in shown:
        used = (p.cpu - before.get((p.role, p.index, p.pid), p.cpu)) / elapsed
        memory = size(p.resident - p.shared) if p.resident else ""
        yield (f"{p.label:<12}{p.pid:>8} {p.state:<9}{max(used, 0):>6.0%}{memory:>10}   "
               f"{_gauge(new, p)}").rstrip()
    if hidden:
        yield f"and {hidden} workers more"


def _gauge(snapshot: Snapshot, p: Process) -> str:
    """The fullest of the rings that a process reads, as a bar."""
    if p.role == "worker":
        rings = [r for r in snapshot.rings if r.kind == "frames" and r.worker == p.index]
    elif p.role == "sink":
        rings = [r for r in snapshot.rings if r.kind == "events"]
    else:
        return ""
    share = max((r.share for r in rings), default=0.0)
    return f"{'#' * round(20 * share):.<20} {share:>4.0%}"


def _lists(asked: Asked, rows: int) -> Iterator[str]:
    """What came most often, list beside list."""
    total = asked.total()
    tables = []
    for what, width in LISTS:
        cells = [what]
        for value, n in asked.counts[what].most_common(rows - 1):
            cells.append(f"{n / total:>4.0%} {_cut(printable(value), width - 5)}")
        tables.append([f"{cell:<{width}}" for cell in cells])
    for i in range(max(map(len, tables))):
        yield " ".join(
            table[i] if i < len(table) else " " * width
            for table, (_, width) in zip(tables, LISTS, strict=True)
        ).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "~"


def short(value: float) -> str:
    """A rate in at most five characters and a unit."""
    for unit in ("", "k", "M"):
        if value < 999.5 or unit == "M":
            break
        value /= 1000
    return f"{value:.0f}{unit}" if value >= 99.95 or not unit else f"{value:.1f}{unit}"


def duration(seconds: float | None) -> str:
    """A latency for reading; "-" if there was none."""
    if seconds is None:
        return "-"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


# --- showing it -----------------------------------------------------------------------------------


class Feed:
    """One sensor, looked at again and again."""

    def __init__(self, sensor: Sensor, observer: Observer) -> None:
        self.sensor = sensor
        self._observer = observer
        self._sampler = Sampler(sensor, observer.topology.workers)
        self._asked = Asked()
        self._sampler.into(self._asked)
        self._old = self._new = observer.snapshot()

    def next(self) -> None:
        """Look again.  ProcessError if the sensor has ended."""
        self._old, self._new = self._new, self._observer.snapshot()
        self._sampler.into(self._asked)
        if self._new.processes[0].state == "missing":
            raise ProcessError(f"the sensor (pid {self.sensor.pid}) has ended")

    def lines(self, columns: int = COLUMNS, rows: int = ROWS) -> list[str]:
        return screen(self.sensor.pid, self._old, self._new, self._asked,
                      columns=columns, rows=rows)

    def close(self) -> None:
        self._sampler.close()


def once(sensor: Sensor, observer: Observer, interval: float) -> list[str]:
    """One screen, of what happens during the interval."""
    with contextlib.closing(Feed(sensor, observer)) as feed:
        time.sleep(interval)
        feed.next()
        return feed.lines()


def live(sensor: Sensor, observer: Observer, interval: float) -> None:
    """Show screens until q is pressed.  However it ends, the terminal is as it was."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("gazer top needs a terminal; --once prints one screen as text")
    with contextlib.closing(Feed(sensor, observer)) as feed:
        _ends_in_order()
        try:
            curses.setupterm()
        except curses.error as error:
            raise UsageError(
                f"the terminal (TERM={printable(os.environ.get('TERM', ''))}) can't be used: "
                f"{error}; --once prints one screen as text"
            ) from None
        with contextlib.suppress(KeyboardInterrupt):
            curses.wrapper(lambda window: _loop(window, feed, interval))


def _ends_in_order() -> None:
    """A signal that would end us in the middle of a screen ends us as Ctrl-C does."""
    def leave(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


def _loop(window: curses.window, feed: Feed, interval: float) -> None:
    with contextlib.suppress(curses.error):     # some terminals can't hide it
        curses.curs_set(0)
    with contextlib.suppress(curses.error):     # else text is white on black everywhere
        curses.use_default_colors()
    due = time.monotonic() + min(interval, 0.5)
    while True:
        rows, columns = window.getmaxyx()
        _draw(window, feed.lines(columns - 1, rows))
        while (left := due - time.monotonic()) > 0:
            window.timeout(max(1, int(left * 1000)))
            key = window.getch()
            if key in (ord("q"), ord("Q")):
                return
            if key == curses.KEY_RESIZE:
                break
        else:
            feed.next()
            due = time.monotonic() + interval


def _draw(window: curses.window, lines: Sequence[str]) -> None:
    rows, columns = window.getmaxyx()
    window.erase()
    keys = "q quits"
    for row, line in enumerate([*lines[: rows - 1], *[""] * (rows - 1 - len(lines)), keys]):
        style = curses.A_REVERSE if row == 0 else curses.A_NORMAL
        if line.startswith(("NOT WELL", keys)):
            style = curses.A_BOLD
        # The last column: writing into the lower right corner would scroll.
        with contextlib.suppress(curses.error):
            window.addnstr(row, 0, line, max(1, columns - 1), style)
    window.refresh()
