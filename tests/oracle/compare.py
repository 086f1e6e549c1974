"""Events as gazer's text output must have them, and what differs between two outputs.

A line is the time in UTC to the second, a tab, the tag, a tab and the record as JSON: keys sorted,
`", "` and `": "` between, timestamps as numbers with six decimals (truncated), latencies with nine.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .events import Event, Latency, Timestamp, expected

_encode = json.JSONEncoder(ensure_ascii=False).encode


def to_json(value: Any) -> str:
    """JSON in gazer's layout; Timestamp and Latency are raw numbers."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_json(k)}: {to_json(value[k])}" for k in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(to_json(item) for item in value) + "]"
    if isinstance(value, Timestamp | Latency | _Number):
        return str(value)
    return _encode(value)


def line(event: Event) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(event.time_s))
    return f"{stamp}\t{event.tag}\t{to_json(event.record)}"


def plain(value: Any) -> Any:
    """A record in plain Python values, floats for times: what a msgpack or JSON reader gets."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, Timestamp | Latency):
        return float(value)
    return value


def expected_lines(path: str | Path | Iterable[str | Path], records: bool = False,
                   timeout: float = 60.0, detail: str = "classic", **rules: Any) -> list[str]:
    """The text output for a capture file (or several, in order), line by line, without newlines.

    Further keywords are those of events.Rules: ports, duplicate_window, max_pending, sensor.
    """
    reading = expected(path, records=records, timeout=timeout, detail=detail, **rules)
    return [line(event) for event in reading.events]


def expected_msgpack(path: str | Path | Iterable[str | Path],
                     **rules: Any) -> list[tuple[int, str, dict[str, Any]]]:
    """(time, tag, record) for each event, as a reader of the msgpack output has them."""
    return [(e.time_s, e.tag, plain(e.record)) for e in expected(path, **rules).events]


# --------------------------------------------------------------------------------- comparison


def loosely(data: str) -> str:
    """An OPT's data, reduced to what both sides must agree on: UDP size and DO."""
    fields = dict(re.findall(r"([A-Z]+)=(\S*)", data))
    do = "DO" in re.split(r"[,|+]", fields.get("FLAGS", ""))
    return f"FLAGS={'DO' if do else ''} UDPSIZE={fields.get('UDPSIZE', '?')}"


def _simplify(value: Any, leave_out: frozenset[str]) -> Any:
    if isinstance(value, dict):
        out = {k: _simplify(v, leave_out) for k, v in value.items() if k not in leave_out}
        if out.get("type") == "OPT" and isinstance(out.get("data"), str):
            out["data"] = loosely(out["data"])
        return out
    if isinstance(value, list):
        return [_simplify(item, leave_out) for item in value]
    return value


class _Number(str):
    """A number as it stands in the text, so that 1.50 and 1.5 differ."""

    def __repr__(self) -> str:
        return str(self)


def _parse(text: str, overlook: frozenset[str]) -> tuple[str, str, Any, bool]:
    """Time, tag, the record as it is compared, and whether its text is in the one layout."""
    parts = text.split("\t")
    if len(parts) != 3:
        raise ValueError("not three fields parted by tabs")
    record = json.loads(parts[2], parse_float=_Number, parse_int=_Number, parse_constant=_Number)
    return parts[0], parts[1], _simplify(record, overlook), to_json(record) == parts[2]


def _where(want: Any, got: Any, path: str = "") -> list[str]:
    """Each place where the two differ."""
    out: list[str] = []
    if isinstance(want, dict) and isinstance(got, dict):
        for key in sorted(want.keys() | got.keys()):
            if key not in got:
                out.append(f"{path}.{key}: expected {want[key]!r}, absent")
            elif key not in want:
                out.append(f"{path}.{key}: not expected, is {got[key]!r}")
            else:
                out += _where(want[key], got[key], f"{path}.{key}")
    elif isinstance(want, list) and isinstance(got, list):
        if len(want) != len(got):
            out.append(f"{path}: {len(want)} items expected, are {len(got)}")
        for at, (a, b) in enumerate(zip(want, got, strict=False)):
            out += _where(a, b, f"{path}[{at}]")
    elif type(want) is not type(got) or want != got:
        out.append(f"{path}: expected {want!r}, is {got!r}")
    return out


def _differences(want: str, got: str, overlook: frozenset[str]) -> list[str]:
    if want == got:
        return []
    try:
        time_a, tag_a, record_a, _ = _parse(want, overlook)
        time_b, tag_b, record_b, neat = _parse(got, overlook)
    except ValueError as error:
        return [f"not a line of text output: {error}"]
    out = _where([time_a, tag_a], [time_b, tag_b], "line") + _where(record_a, record_b)
    if not out and not neat:
        out = ["the same values, in another layout (order of keys, spaces, escapes)"]
    return out


def diff(expected: Sequence[str], actual: Sequence[str], *, leave_out: Iterable[str] = (),
         limit: int = 5) -> str:
    """"" when the two outputs agree, else a short report of the first `limit` differences.

    Compared line by line, to the letter, except that of an OPT's data only UDP size and DO count
    and that keys in `leave_out` are overlooked wherever they stand (full detail: edns, malformed).
    """
    overlook = frozenset(leave_out)
    report: list[str] = []
    found = 0
    for number, (want, got) in enumerate(zip(expected, actual, strict=False), 1):
        places = _differences(want, got, overlook)
        if not places:
            continue
        found += 1
        if found <= limit:
            report.append(f"line {number}:")
            report += [f"    {place}" for place in places[:8]]
            report += [f"    expected: {want[:400]}", f"    actual:   {got[:400]}"]
    if found > limit:
        report.append(f"({found} lines differ in all)")
    if len(expected) != len(actual):
        shorter = min(len(expected), len(actual))
        longer, what = (actual, "surplus") if len(expected) == shorter else (expected, "missing")
        report.append(f"{len(expected)} lines expected, are {len(actual)}")
        report.append(f"    first {what} past the end: {longer[shorter][:400]}")
    return "\n".join(report)
