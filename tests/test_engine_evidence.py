"""What a worker says of the weight of its events: `lossy`, latencies, response codes."""

from __future__ import annotations

import json
import random

import pytest

from tests.oracle import build
from tests.test_engine import CLIENT, NS, SERVER, START, Run, ask, tell
from tests.test_engine_streams import AXFR, Connection, soa


def evidence(steps, **changes) -> tuple[Run, list[tuple[str, bool]]]:
    """Frames (seconds, frame) and losses (seconds, None) in their order; status and `lossy`.

    The worker looks after each.
    """
    run = Run([], end=False, timeout=10, **changes)
    events = []
    for seconds, frame in steps:
        if frame is None:
            run.feed.lose(START + round(seconds * NS))
        else:
            run.put(seconds, frame)
        run.turn(run.clock or START)
        events += run.take()
    run.finish()
    run.taken = len(events) + len(run.events)
    lines = [build_line(texts[0]) for _, _, _, texts in [*events, *run.events]]
    return run, [(line["status"], line.get("lossy", False)) for line in lines]


def build_line(text: bytes) -> dict:
    line = json.loads(text.decode().split("\t")[2])
    assert line.get("lossy", True) is True      # never false
    return line


@pytest.mark.parametrize("lost, lossy", [(-1, False), (0, True), (5, True), (9.9, True)])
def test_a_query_without_reply(lost, lossy):
    """Lossy if something was lost at the query's time or later: it may have been the reply."""
    steps = sorted([(0, ask()), (lost, None), (11, tell(id=9))], key=lambda step: step[0])
    _, seen = evidence(steps, detail="full")
    assert seen[0] == ("no_reply", lossy)


@pytest.mark.parametrize("at, lossy", [(0, True), (10, True), (10.000000001, False), (60, False)])
def test_a_reply_without_query(at, lossy):
    """Lossy if something was lost within the timeout before it: it may have been the query."""
    _, seen = evidence([(0, None), (at, tell())], detail="full")
    assert seen == [("no_query", lossy)]


def test_what_is_whole_is_never_lossy():
    run, seen = evidence([(0, None), (0, ask()), (1, tell()), (2, ask(id=2)), (3, None)],
                         detail="full")
    assert seen == [("success", False), ("no_reply", True)]
    assert run.counts["lossy"] == 1


def test_nothing_was_lost():
    run, seen = evidence([(0, ask()), (20, tell()), (21, tell(id=7))], detail="full")
    assert seen == [("no_reply", False), ("no_query", False), ("no_query", False)]
    assert run.counts["lossy"] == 0


def test_classic_events_are_counted_only():
    run, seen = evidence([(0, None), (0, ask()), (1, tell(id=7))])
    assert seen == [("no_query", False), ("no_reply", False)] and run.counts["lossy"] == 2


def test_zone_transfers_are_judged_when_they_end():
    c = Connection()
    c.reply(build.reply(AXFR, soa(1)))
    late = c.reply(build.reply(AXFR, soa(1)))
    *first, _ = c.frames
    steps = [(i / 10, frame) for i, frame in enumerate(first)] + [(5, None), (6, late)]
    _, seen = evidence(steps, detail="full")
    assert seen == [("no_query", True)]


def test_latencies_by_powers_of_two():
    """Each bound belongs to its own bucket, and one nanosecond more to the next."""
    bounds = [64_000 << i for i in range(20)]
    rng = random.Random(1)
    latencies = [0, 1, *bounds, *(b + 1 for b in bounds), 59 * NS,
                 *(round(2 ** rng.uniform(5, 36)) % (59 * NS) for _ in range(40))]
    run = Run([], end=False)
    for i, latency in enumerate(latencies):
        for time, frame in ((0, ask(id=i + 1)), (latency, tell(id=i + 1))):
            run.sequence += 1
            at = START + i * 100 * NS + time
            run.clock = at
            run.fates.append(run.feed.put(frame, run.sequence, at, at))
    run.finish()
    assert run.counts["success"] == len(latencies)
    names = [*(f"latency.le.{bound // 1000}" for bound in bounds), "latency.le.inf"]
    assert [name for name in run.counts if name.startswith("latency.le.")] == names
    for name, low, high in zip(names, [-1, *bounds], [*bounds, 1 << 62], strict=True):
        assert run.counts[name] == sum(low < one <= high for one in latencies), name
    assert run.counts["latency.sum_us"] == sum(one // 1000 for one in latencies)


def test_a_reply_that_is_older_than_its_query_has_no_latency():
    run = Run([], end=False)
    for time, frame in ((5, ask()), (4, tell())):
        run.sequence += 1
        run.clock = START + 5 * NS
        run.fates.append(run.feed.put(frame, run.sequence, run.clock, START + time * NS))
    run.finish()
    assert run.counts["negative_latency"] == run.counts["success"] == run.counts["rcode.0"] == 1
    assert run.counts["latency.sum_us"] == 0
    assert not any(n for name, n in run.counts.items() if name.startswith("latency.le."))


@pytest.mark.parametrize("detail", ["classic", "full"])
@pytest.mark.parametrize("low, high, name", [
    (0, 0, "0"), (3, 0, "3"), (15, 0, "15"), (0, 1, "other"), (7, 1, "other"), (5, 255, "other")])
def test_response_codes(low, high, name, detail):
    """With the upper bits of EDNS."""
    query = build.query("example.com.", "A", id=1)
    opt = b"\0\0\x29\x04\xd0" + bytes([high, 0, 0, 0, 0, 0]) if high else b""
    reply = (build.header(1, 0x8180 | low, (1, 0, 0, bool(high))) + query[12:] + opt)
    frame = build.frame(build.udp(SERVER, 53, CLIENT, 4000, reply))
    run = Run([(0, ask()), (1, frame)], detail=detail)
    assert run.statuses == ["success"]
    rcodes = {k: n for k, n in run.counts.items() if k.startswith("rcode.") and n}
    assert rcodes == {f"rcode.{name}": 1}
