"""Clocks: time that jumps back or ahead, the end of 32 bits, fractions of more than a second.

Each case is records of a classic capture file, (seconds, fraction, frame), all in one file of their
own, since what a clock does to one case it does to all that come behind. A good pair stands at the
end, in the time of its last frame.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.capture_writers import enhanced, interface, section
from tests.hostile.bombs import GOOD, A, Event, Place, Ran, query, reply, statuses, then
from tests.oracle import build

T = 1_767_225_600           # the first second of 2026
DAY = 86_400
END = 0xFFFFFFFF            # 2106-02-07 06:28:15, the last second that the file can say
PLACE = Place(1)
ASK, ANSWER = PLACE.ask(query()), PLACE.answer(reply(A))


def other(ident: int) -> bytes:
    return PLACE.ask(query(ident=ident))


def answered(ident: int) -> bytes:
    return PLACE.answer(reply(A, ident=ident))


def latency(*expected: float | None) -> Callable[[list[Event]], None]:
    def check(events: list[Event]) -> None:
        assert [e.get("latency") for e in events] == list(expected)

    return check


def times(*expected: float) -> Callable[[list[Event]], None]:
    def check(events: list[Event]) -> None:
        assert [e["query_ts"] for e in events] == list(expected)

    return check


@dataclasses.dataclass(frozen=True)
class Clock:
    name: str
    records: list[tuple[int, int, bytes]]
    says: Callable[[list[Event]], None]
    told: tuple[str, ...] = ()          # lines of the summary

    def __str__(self) -> str:
        return self.name


JUMPED = "the capture's time jumped once"
BAD = "1 frame has an impossible timestamp"

CLOCKS = [
    Clock("back a day, within a pair", [(T, 0, ASK), (T - DAY, 0, ANSWER)],
          then(statuses("success"), latency(None)),
          (JUMPED, "1 reply is older than its query: no latency there")),
    Clock("back a day, and ahead again", [
        (T, 0, other(1)), (T - DAY, 0, other(2)), (T, 1, answered(1)), (T, 2, answered(2))],
        then(statuses("success", "success"), latency(0.000001, DAY + 0.000002)),
        ("the capture's time jumped ",)),
    Clock("back a microsecond", [(T, 5, ASK), (T, 4, ANSWER)],
          then(statuses("success"), latency(None)), ("older than its query",)),
    Clock("back to 1970", [(T, 0, ASK), (0, 0, ANSWER)],
          then(statuses("success"), latency(None)), (JUMPED,)),
    Clock("ahead to 2106, and waiting there", [(T, 0, ASK), (END, 999_999, ANSWER)],
          statuses("success"), (JUMPED,)),
    Clock("2106 throughout", [(END, 0, ASK), (END, 999_999, ANSWER)],
          then(statuses("success"), latency(0.999999), times(4294967295.0))),
    Clock("2038 and beyond", [(0x7FFFFFFF, 999_999, ASK), (0x80000000, 0, ANSWER)],
          then(statuses("success"), latency(0.000001), times(2147483647.999999))),
    Clock("the end of 32 bits, and 1970 again", [(END, 0, ASK), (0, 0, ANSWER)],
          statuses("success"), (JUMPED,)),
    Clock("a million microseconds", [(T, 0, ASK), (T, 1_000_000, ANSWER)],
          statuses("success"), (BAD,)),
    # They are added to the seconds, for want of anything better: 71 minutes, 34 seconds.
    Clock("microseconds beyond a million", [(T, 0, ASK), (T, 0xFFFFFFFF, ANSWER)],
          statuses("no_reply", "no_query"), (BAD,)),
    Clock("microseconds beyond a million at the end of time", [
        (END, 0, ASK), (END, 0xFFFFFFFF, ANSWER)], statuses("no_reply", "no_query"), (BAD,)),
    Clock("to and fro, 1,000 times", [
        *((T + (i & 1) * DAY * 2, 0, other(i)) for i in range(1_000)),
        *((T + (i & 1) * DAY * 2, 1, answered(i)) for i in range(1_000))],
        statuses(*["success"] * 1_000), ("the capture's time jumped 1999 times",)),
    Clock("ahead 59 minutes: all that waits is due", [
        (T, 0, ASK), (T + 3540, 0, PLACE.ask(query(ident=8))), (T + 3540, 1, ANSWER)],
        statuses("no_reply", "no_query", "no_reply")),
]


def good(clock: Clock) -> list[tuple[int, int, bytes]]:
    seconds, fraction, _ = clock.records[-1]
    return [(seconds, fraction % 1_000_000, frame) for frame in PLACE.good()]


class One(Ran):
    """One file, and what came of it."""

    def __init__(self, folder: Path, content: bytes) -> None:
        path = folder / "clock.pcap"
        path.write_bytes(content)
        self.run([path], folder, {}, 30.0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, One]:
    made = {}
    for clock in CLOCKS:
        records = [*clock.records, *good(clock)]
        content = build.pcap([]) + b"".join(
            struct.pack("<IIII", seconds, fraction, len(frame), len(frame)) + frame
            for seconds, fraction, frame in records)
        made[clock.name] = One(tmp_path_factory.mktemp("clock"), content)
    return made


@pytest.mark.parametrize("clock", CLOCKS, ids=str)
def test_clocks(runs: dict[str, One], clock: Clock) -> None:
    run = runs[clock.name]
    events = run.transactions(PLACE.client)
    paired = [event for event in events if event["tx_id"] == GOOD]
    assert [event["status"] for event in paired] == ["success"]
    assert paired[0]["reply"][-1]["data"] == PLACE.good_data
    clock.says([event for event in events if event["tx_id"] != GOOD])
    assert f"{len(clock.records) + 2} frames read: {len(clock.records) + 2} DNS" in run.stderr
    for line in clock.told:
        assert line in run.stderr


NG = section() + interface(tsresol=9)
UNITS = {
    # Units of 2^-n or 10^-n seconds, and offsets in seconds, all of them the writer's choice.
    "a time of 64 bits set": NG + enhanced(ASK, 2**64 - 1) + enhanced(ANSWER, 2**64 - 1),
    "seconds as unit, beyond the year 9999": section() + interface(tsresol=0)
        + enhanced(ASK, 2**63) + enhanced(ANSWER, 2**63),
    "10^-127 seconds as unit": section() + interface(tsresol=127) + enhanced(ASK, 2**63)
        + enhanced(ANSWER, 2**63),
    "2^-127 seconds as unit": section() + interface(tsresol=255) + enhanced(ASK, 2**63)
        + enhanced(ANSWER, 2**63),
    "an offset that runs over": section() + interface(tsresol=9, tsoffset=2**63 - 1)
        + enhanced(ASK, 2**63) + enhanced(ANSWER, 2**63),
    "an offset before all times": section() + interface(tsresol=9, tsoffset=-2**63)
        + enhanced(ASK, 0) + enhanced(ANSWER, 1),
}


@pytest.mark.parametrize("name", UNITS)
def test_units_of_pcapng(name: str, tmp_path: Path) -> None:
    """Whatever the time comes to: both frames are there, and a good pair behind them pairs."""
    behind = interface(tsresol=9) + b"".join(
        enhanced(frame, T * 10**9 + i, id=1) for i, frame in enumerate(PLACE.good()))
    run = One(tmp_path, UNITS[name] + behind)
    assert "4 frames read: 4 DNS" in run.stderr
    assert [event["status"] for event in run.transactions(PLACE.client)] == ["success"] * 2
