"""The stats event: its fields, its forms, its intervals; and what a live run makes of it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import time
from datetime import UTC, datetime

import msgpack
import pytest

from gazer import counters
from gazer.config import MAX_OUTPUTS
from gazer.event import STATS, TAG_STATS
from gazer.sinks.stats import COUNTED, GAUGES, Interval, encoded
from tests.conftest import eventually, whole_lines

from .sensor import frames

pytest_plugins = ["tests.sensor"]

SECOND = 10**9
T0 = 1_700_000_000 * SECOND
FIELDS = {field.name: field for field in STATS}


def counts(n, outputs=1):
    """Counters that are all different, and grow with n."""
    names = [*Interval.names(outputs), *GAUGES]
    return {name: n * (i + 1) for i, name in enumerate(names)}


# --- intervals -----------------------------------------------------------------------------------


def test_the_first_interval_begins_with_the_run_and_the_next_ones_follow():
    interval = Interval("s", 1, T0, Interval("s", 1, 0, []).words())
    first = interval.end(T0 + 60 * SECOND, counts(10), balanced=True, last=False)
    second = interval.end(T0 + 121 * SECOND, counts(12), balanced=False, last=True)
    assert (first["interval_start"], first["interval_end"]) == (T0 / SECOND, T0 / SECOND + 60)
    assert (second["interval_start"], second["interval_end"]) == (
        T0 / SECOND + 60, T0 / SECOND + 121)
    assert {name: first[name] for name in COUNTED} == {name: counts(10)[name] for name in COUNTED}
    assert {name: second[name] for name in COUNTED} == {name: counts(2)[name] for name in COUNTED}
    assert [e["pending"] for e in (first, second)] == [counts(10)["pending"], counts(12)["pending"]]
    assert [e["balanced"] for e in (first, second)] == [True, False]
    assert [e.get("last") for e in (first, second)] == [None, True]


def test_a_successor_goes_on_with_the_interval_that_was_under_way():
    interval = Interval("s", 2, T0, [])
    interval.end(T0 + SECOND, counts(5, 2), balanced=True, last=False)
    words = interval.words()
    assert len(words) == Interval.words_of(2)
    heir = Interval("s", 2, T0, words)
    assert heir.end(T0 + 3 * SECOND, counts(9, 2), balanced=True, last=False) == interval.end(
        T0 + 3 * SECOND, counts(9, 2), balanced=True, last=False)


def test_the_ledger_has_room_for_the_words_of_all_outputs():
    assert Interval.words_of(MAX_OUTPUTS) <= counters.KEPT


# --- forms ---------------------------------------------------------------------------------------


def event(**how):
    interval = Interval("sensör \"1\"", 2, T0 + 123_456_789, [])
    return interval.end(T0 + 60 * SECOND + 987_654_321, counts(10, 2), balanced=True,
                        **{"last": False, **how})


def test_its_fields_are_those_that_are_described():
    for last in (True, False):
        have = {name for name in event(last=last) if not name.startswith("output")}
        described = {name for name in FIELDS if not name.startswith("output")}
        assert have == described - (set() if last else {"last"})
    assert {name for name in event() if name.startswith("output")} == {
        f"output{n}_{what}" for n in range(2) for what in (
            "delivered", "dropped", "spool_dropped", "spooled", "written")}
    types = {"integer": int, "boolean": bool, "string": str, "float, seconds": float}
    for name, value in event(last=True).items():
        field = FIELDS[name if name in FIELDS else "outputN_" + name.partition("_")[2]]
        assert type(value) is types[field.type], name
    assert [f.name for f in STATS] == sorted(f.name for f in STATS)


def test_text_and_json():
    made = event()
    text = encoded(made, T0 + 60 * SECOND + 987_654_321, 0).decode()
    when, tag, fields = text.removesuffix("\n").split("\t")
    expected = datetime.fromtimestamp(T0 / SECOND + 60, UTC)
    assert datetime.fromisoformat(when) == expected
    assert (tag, json.loads(fields)) == (TAG_STATS, made)
    assert list(json.loads(fields)) == sorted(made)
    assert '"interval_start": 1700000000.123456,' in fields        # cut off, with six decimals
    (line,) = whole_lines(encoded(made, T0 + 60 * SECOND + 987_654_321, 1))
    whole = json.loads(line)
    assert line.startswith('{"tag": "dns-gazer.stats", "time": "2023-11-14T22:14:20.987654Z", "bal')
    assert whole == {"tag": TAG_STATS, "time": "2023-11-14T22:14:20.987654Z", **made}


def test_msgpack():
    made, time_ = event(), T0 + 60 * SECOND + 987_654_321
    assert msgpack.unpackb(encoded(made, time_, 2)) == [TAG_STATS, time_ // SECOND, made]
    tag, at, fields = msgpack.unpackb(encoded(made, time_, 3))
    assert (tag, fields) == (TAG_STATS, made)
    assert (at.code, at.data) == (
        0, (time_ // SECOND).to_bytes(4, "big") + (987_654_321).to_bytes(4, "big"))
    _, at, _ = msgpack.unpackb(encoded(made, 2**40 * SECOND, 3))    # EventTime ends in 2106
    assert at.data == b"\xff" * 4 + bytes(4)


# --- live ----------------------------------------------------------------------------------------


def stats_of(path):
    lines = whole_lines(path.read_bytes()) if path.exists() else []
    return [json.loads(line.split("\t")[2]) for line in lines if TAG_STATS in line]


def start(sensor, **service):
    return sensor.configured(service={"stats_interval": "1s", **service})


def test_a_live_run_tells_of_itself(sensor):
    """Every second and at the end; all intervals together are the run, and nothing is missing."""
    live = start(sensor)
    sensor.send(frames(1, 2, 3))

    def told_twice():
        """there are two stats events"""
        return len(stats_of(sensor.out)) >= 2

    eventually(told_twice)
    sensor.send(frames(4, 5))
    live.signal(signal.SIGTERM)
    done = live.wait()
    assert done.code == 0, done.stderr
    events = stats_of(sensor.out)
    lines = whole_lines(sensor.out.read_bytes())
    assert TAG_STATS in lines[-1] and events[-1]["last"] is True
    assert not any("last" in one for one in events[:-1])
    assert all(one["balanced"] for one in events)
    for before, after in itertools.pairwise(events):
        assert before["interval_end"] == after["interval_start"]
    total = {name: sum(one[name] for one in events)
             for name in ("frames", "queries", "replies", "messages", "success", "no_reply",
                          "restarts", "kernel_dropped", "ring_dropped")}
    assert total == {"frames": 10, "queries": 5, "replies": 5, "messages": 10, "success": 5,
                     "no_reply": 0, "restarts": 0, "kernel_dropped": 0, "ring_dropped": 0}
    # The last event can't count itself.
    assert sum(one["output0_written"] for one in events) == len(lines) - 1
    assert f"{len(lines)} events written to {sensor.out}" in done.stderr


def test_a_killed_sink_s_successor_goes_on(sensor):
    """Under load, again and again: each event once and in order, no interval missing."""
    live = start(sensor)
    for round_ in range(4):         # five deaths within a minute end a service
        sensor.send(frames(*range(round_ * 200, round_ * 200 + 100)))
        os.kill(live.part("gazer:sink").pid, signal.SIGKILL)
        sensor.send(frames(*range(round_ * 200 + 100, round_ * 200 + 200)))

        def back(wanted=(round_ + 1) * 200):
            """the successor has written all"""
            return sum(TAG_STATS not in line for line in sensor.lines()) >= wanted

        eventually(back, 20)
    live.signal(signal.SIGTERM)
    done = live.wait()
    assert "add up" not in done.stderr
    lines = [line for line in whole_lines(sensor.out.read_bytes()) if TAG_STATS not in line]
    ids = [json.loads(line.split("\t")[2])["tx_id"] for line in lines]
    assert ids == list(range(len(ids))) and len(ids) == 800
    events = stats_of(sensor.out)
    for before, after in itertools.pairwise(events):
        assert before["interval_end"] == after["interval_start"]
    assert sum(one["success"] for one in events) == 800
    assert sum(one["restarts"] for one in events) == 4
    assert all(one["balanced"] for one in events)


def test_an_interval_that_an_output_never_had_is_told_by_the_successor(sensor):
    """However many of its stats events wait for an output, when the sink is killed: what comes
    next tells of all that time."""
    fifo = sensor.folder / "fifo"
    os.mkfifo(fifo)
    live = sensor.configured(
        service={"stats_interval": "1s"},
        outputs=[{"type": "text", "path": str(fifo)}, {"type": "text", "path": str(sensor.out)}])

    def told(n):
        eventually(lambda: len(stats_of(sensor.out)) >= n)

    told(2)
    os.kill(live.part("gazer:sink").pid, signal.SIGKILL)
    told(3)
    fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    text = b""

    def read():
        """the FIFO has a stats event"""
        nonlocal text
        with contextlib.suppress(BlockingIOError):
            text += os.read(fd, 65536)
        return b"\n" in text and TAG_STATS.encode() in text

    eventually(read)
    live.signal(signal.SIGTERM)
    assert live.wait().code == 0
    os.close(fd)
    line = next(one for one in text.decode().splitlines() if TAG_STATS in one)
    first = stats_of(sensor.out)[0]["interval_start"]
    assert json.loads(line.split("\t")[2])["interval_start"] == first


def test_hup_lets_a_rotated_file_go(sensor):
    live = start(sensor)
    sensor.send(frames(*range(100)))
    sensor.await_lines(100)
    old = sensor.folder / "out.1"
    sensor.out.rename(old)
    sensor.send(frames(*range(100, 200)))
    live.signal(signal.SIGHUP)
    eventually(sensor.out.exists)
    sensor.send(frames(*range(200, 300)))
    live.signal(signal.SIGTERM)
    assert live.wait().code == 0
    lines = whole_lines(old.read_bytes()) + whole_lines(sensor.out.read_bytes())
    ids = [json.loads(line.split("\t")[2])["tx_id"] for line in lines if TAG_STATS not in line]
    assert ids == list(range(300))


@pytest.mark.parametrize("what", ["nobody reads it", "stdout is a pipe that stands still"])
def test_an_output_that_stands_still_is_no_reason_to_stop(sensor, what):
    """The file beside it has all, the sensor is not restarted, and a stop ends it in time."""
    fifo = sensor.folder / "fifo"
    os.mkfifo(fifo)
    fd = -1
    if what != "nobody reads it":
        fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    live = sensor.configured(
        service={"stats_interval": "1s", "hang_timeout": "1s", "shutdown_timeout": "6s"},
        outputs=[{"type": "text", "path": str(fifo)}, {"type": "text", "path": str(sensor.out)}])
    for n in range(10):
        sensor.send(frames(*range(n * 100, n * 100 + 100)))
        time.sleep(0.2)

    def all_there():
        """the file has all"""
        return sum(TAG_STATS not in line for line in sensor.lines()) == 1000

    eventually(all_there)
    assert live.process.poll() is None
    began = time.monotonic()
    live.signal(signal.SIGTERM)
    done = live.wait()
    assert time.monotonic() - began < 6
    assert f"interrupted while {fifo} had no room" in done.stderr
    assert "restart" not in done.stderr and "killed" not in done.stderr, done.stderr
    assert sum(one["restarts"] for one in stats_of(sensor.out)) == 0
    if fd >= 0:
        os.close(fd)


def test_a_run_over_files_has_none(gazer, tmp_path):
    from tests.conftest import CAPTURES

    done = gazer.configured({"service": {"stats_interval": "1s"}}, "-r",
                            CAPTURES / "resolver.pcap")
    assert done.code == 0
    assert TAG_STATS.encode() not in done.stdout


