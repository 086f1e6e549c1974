"""`gazer stats`: the counters of a running sensor, for reading or as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gazer.observe.snapshot import Process, Snapshot, Standing
from gazer.observe.table import ELSEWHERE

COLUMNS = 80
NAME = 24           # columns of a counter's name; two counters stand side by side
_FAMILIES = ("fate.", "discarded.", "malformed.", "rcode.", "latency.")


def report(pid: int, snapshot: Snapshot, standing: Standing) -> Iterator[str]:
    """The lines of `gazer stats`.  Of a family's counters ("fate.dns") those above zero."""
    run, account = snapshot.run, snapshot.account
    since = snapshot.wall - run["started"] / 1e9
    yield (
        f"sensor {pid}, {'live' if run['live'] else 'reading files'} for {span(since)}: "
        f"{count(run['captures'], 'capture process', 'capture processes')}, "
        f"{count(run['workers'], 'worker')}, {count(run['outputs'], 'output')}"
    )
    yield from _section("processes", _processes(snapshot.processes))
    yield from _section("rings", _rings(snapshot))
    yield from _section("capture", pairs(_shown(account.capture)))
    yield from _section("workers", pairs(_shown(account.workers)))
    yield from _section("sink", pairs(account.sink))
    for number, output in enumerate(account.outputs):
        name = snapshot.names[number] if number < len(snapshot.names) else ""
        yield from _section(f"output {number}" + (f": {name}" if name else ""),
                            pairs(_of_output(output) | _blocked(snapshot, number)))
    if any(snapshot.supervisor.values()):
        yield from _section("supervisor", pairs(snapshot.supervisor))
    yield from _section("in flight", (
        f"{n:>13}  {what}" for what, n in standing.in_flight.items() if n))
    if not standing.broken:
        yield from _section("account", ["it adds up"])
    elif standing.waiting:
        yield from _section("account", [
            "open: a worker waits for the sink, and has a message in hand", *standing.broken])
    else:
        yield from _section("account", ["it does NOT add up:", *standing.broken])


def document(pid: int, snapshot: Snapshot, standing: Standing) -> str:
    """The same as one JSON object, with the counters of each process."""
    account = snapshot.account
    tree: dict[str, Any] = {
        "pid": pid,
        "time": snapshot.wall,
        "run": dict(snapshot.run),
        "account": {
            "capture": dict(account.capture),
            "workers": dict(account.workers),
            "sink": dict(account.sink),
            "outputs": [
                {name: n for name, n in one.items() if name not in ELSEWHERE}
                | _blocked(snapshot, number)
                | {"name": snapshot.names[number] if number < len(snapshot.names) else ""}
                for number, one in enumerate(account.outputs)
            ],
        },
        "supervisor": dict(snapshot.supervisor),
        "captures": [dict(one) for one in snapshot.captures],
        "workers": [dict(one) for one in snapshot.workers],
        "processes": [
            {
                "role": p.role, "index": p.index, "pid": p.pid, "name": p.name, "state": p.state,
                "silent_seconds": round(p.silent, 3), "starts": p.starts,
                "age_seconds": round(p.age, 3), "cpu_seconds": round(p.cpu, 3),
                "resident_bytes": p.resident, "shared_bytes": p.shared,
            }
            for p in snapshot.processes
        ],
        "rings": [
            {
                "kind": r.kind, "worker": r.worker, "filled_bytes": r.filled,
                "capacity_bytes": r.capacity,
                **({"capture": r.capture} if r.kind == "frames" else {}),
            }
            for r in snapshot.rings
        ],
        "in_flight": dict(standing.in_flight),
        "balances": {
            "hold": not standing.broken, "broken": list(standing.broken),
            "open": bool(standing.broken) and standing.waiting,
        },
    }  # fmt: skip
    return json.dumps(tree, indent=1)


def pairs(values: Mapping[str, int]) -> Iterator[str]:
    """Counters side by side, down the first column and then down the second."""
    cells = [f"{name:<{NAME}}{n:>13}" for name, n in values.items()]
    half = (len(cells) + 1) // 2
    for i in range(half):
        right = cells[half + i] if half + i < len(cells) else ""
        yield f"{cells[i]}    {right}".rstrip()


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    found = list(lines)
    if found:
        yield ""
        yield title
        yield from (f"  {line}" for line in found)


def _shown(values: Mapping[str, int]) -> dict[str, int]:
    return {name: n for name, n in values.items() if n or not name.startswith(_FAMILIES)}


def _of_output(output: Mapping[str, int]) -> dict[str, int]:
    """Those of fluentd outputs only for these."""
    if output["servers"]:
        return {name: n for name, n in output.items() if name not in ELSEWHERE}
    return {name: output[name] for name in ("events", "bytes", "dropped", "stats", "done")}


def _blocked(snapshot: Snapshot, number: int) -> dict[str, int]:
    return {"blocked_seconds": int(snapshot.blocked(number))}


def _processes(processes: Iterable[Process]) -> Iterator[str]:
    yield f"{'':<12}{'pid':>8}  {'state':<9}{'silent':>8}{'starts':>7}{'cpu':>9}{'memory':>10}"
    for p in processes:
        silent = "" if p.role == "supervisor" else f"{p.silent:.1f} s"
        yield (
            f"{p.label:<12}{p.pid:>8}  {p.state:<9}{silent:>8}{p.starts:>7}"
            f"{p.cpu:>7.1f} s{size(p.resident - p.shared):>10}"
        )


def _rings(snapshot: Snapshot) -> Iterator[str]:
    for r in snapshot.rings:
        ends = (
            f"capture {r.capture} > worker {r.worker}" if r.kind == "frames"
            else f"worker {r.worker} > sink"
        )
        yield f"{ends:<24}{size(r.filled):>10} of {size(r.capacity)} ({r.share:.0%})"


def size(n: float) -> str:
    """Bytes, in four digits at most."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if unit == "B" or n >= 100 else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"


def span(seconds: float) -> str:
    """A length of time, in its two largest units."""
    left = max(0, int(seconds))
    found: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        n, left = divmod(left, length)
        if n or found or unit == "s":
            found.append(f"{n} {unit}")
    return " ".join(found[:2])


def count(n: int, one: str, many: str | None = None) -> str:
    """"1 worker", "2 workers"."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def clock(wall: float) -> str:
    """A time of day, here."""
    return time.strftime("%H:%M:%S", time.localtime(wall))
