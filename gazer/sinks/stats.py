"""The stats event: what a live run has seen and lost since the last one, in its own log.

Who reads the log later must be able to tell "nothing was there" from "nobody looked".  So every
`service.stats_interval`, and once at the end, an event `dns-gazer.stats` goes to all outputs, its
fields as gazer/event.py lists them: the ledger's counters less what they were at the event before.

What they were then is kept in the ledger itself (`words`, in the order of COUNTED, then two of each
output), committed together with the outputs' places.  A successor so goes on with the interval that
was under way.  If it died while some outputs had the event and others had not, the interval is told
once more, as part of a longer one: `interval_start` says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from gazer.event import STATS, TAG_STATS

SECOND = 1_000_000_000
GAUGES = ("pending",)                   # as they are now, not since the last event
SETTERS = ("balanced", "interval_end", "interval_start", "last", "sensor")     # no counters

# The counters of an event, in the order in which they are kept.
COUNTED = tuple(
    f.name for f in STATS
    if f.name not in (*GAUGES, *SETTERS) and not f.name.startswith("outputN_")
)  # fmt: skip
PER_OUTPUT = tuple(
    f.name.removeprefix("outputN_") for f in STATS if f.name.startswith("outputN_")
)

TEXT, JSON, MSGPACK, MSGPACK_TIME = range(4)    # forms, as in gazer/entry.pxd


class Interval:
    """The interval that is under way.  `start`: when it began, ns since 1970; `base`: the counters
    at that time."""

    def __init__(self, sensor: str, outputs: int, start: int, kept: Sequence[int]) -> None:
        self._sensor = sensor
        self._outputs = outputs
        if kept and kept[0]:
            start, *values = kept
            self._base = dict(zip(self.names(outputs), values, strict=True))
        else:
            self._base = {}
        self._start = start

    @staticmethod
    def names(outputs: int) -> list[str]:
        """The counters that are kept, in their order."""
        return [*COUNTED, *(f"output{i}_{name}" for i in range(outputs) for name in PER_OUTPUT)]

    @staticmethod
    def words_of(outputs: int) -> int:
        """How many words words() gives."""
        return 1 + len(Interval.names(outputs))

    def words(self) -> list[int]:
        """What a successor needs."""
        return [self._start, *(self._base.get(name, 0) for name in self.names(self._outputs))]

    def end(self, now: int, counted: Mapping[str, int], *, balanced: bool,
            last: bool) -> dict[str, object]:
        """The event of the interval that ends now; another one begins."""
        event: dict[str, object] = {
            name: counted[name] - self._base.get(name, 0) for name in self.names(self._outputs)
        }
        event |= {name: counted[name] for name in GAUGES}
        event["balanced"] = balanced
        event["interval_start"] = _seconds(self._start)
        event["interval_end"] = _seconds(now)
        event["sensor"] = self._sensor
        if last:
            event["last"] = True
        self._start = now
        self._base = dict(counted)
        return dict(sorted(event.items()))


def _seconds(ns: int) -> float:
    """With microseconds, cut off, as in all events."""
    return ns // 1000 / 1_000_000


def encoded(event: Mapping[str, object], time: int, form: int) -> bytes:
    """The event in this form; `time`: ns since 1970."""
    if form in (TEXT, JSON):
        # json shows a float by its own rules, all events have six decimals.
        fields = ", ".join(f"{json.dumps(name)}: {_shown(value)}" for name, value in event.items())
        when = datetime.fromtimestamp(time // SECOND, UTC)
        if form == TEXT:
            return f"{when:%Y-%m-%dT%H:%M:%S}+00:00\t{TAG_STATS}\t{{{fields}}}\n".encode()
        micro = f"{when:%Y-%m-%dT%H:%M:%S}.{time % SECOND // 1000:06d}Z"
        return f'{{"tag": "{TAG_STATS}", "time": "{micro}", {fields}}}\n'.encode()
    import msgpack  # type: ignore[import-untyped]

    at: object = time // SECOND
    if form == MSGPACK_TIME:
        second = min(time // SECOND, 0xFFFFFFFF)
        at = msgpack.ExtType(0, second.to_bytes(4, "big") + (time % SECOND).to_bytes(4, "big"))
    return bytes(msgpack.packb([TAG_STATS, at, dict(event)]))


def _shown(value: object) -> str:
    return f"{value:.6f}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
