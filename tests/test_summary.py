"""The account of a run: each balance notices what does not add up, and each line says what it must.

The figures of whole runs are in test_pipeline.py; here the ledger is written by hand.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from gazer import counters
from gazer.config import Config, Events, Output, OutputKind
from gazer.summary import Account, summary

CONFIG = replace(Config(), outputs=(Output(OutputKind.TEXT, "/x/out"),
                                    Output(OutputKind.MSGPACK, "-")))


def account(**changes: int) -> Account:
    """A run in which everything happened, and which adds up; `changes` by "kind__counter"."""
    capture = dict.fromkeys(counters.CAPTURE, 0) | {
        "frames": 120, "delivered": 100, "fate.other_port": 7, "fate.other_protocol": 3,
        "fate.tcp": 8, "ring_dropped": 2, "bytes": 9999,
    }
    workers = dict.fromkeys(counters.WORKER, 0) | {
        "frames": 100, "queries": 55, "replies": 41, "discarded.short_header": 4,
        "opened": 50, "repeated": 5, "success": 38, "no_reply": 9, "evicted": 3,
        "duplicates": 1, "no_query": 2, "transactions": 52, "records": 200,
    }
    sink = {"events": 252, "writes": 3}
    outputs = [{"events": 252, "bytes": 50_000, "dropped": 0},
               {"events": 250, "bytes": 40_000, "dropped": 2}]
    parts = {"capture": capture, "workers": workers, "sink": sink,
             "out0": outputs[0], "out1": outputs[1]}
    for path, value in changes.items():
        kind, name = path.split("__")
        name = name.replace("_of_", ".")
        assert name in parts[kind], name
        parts[kind][name] = value
    return Account(capture=capture, workers=workers, sink=sink, outputs=tuple(outputs))


def told(config: Config = CONFIG, *, broken: bool = False, **changes: int) -> str:
    return "\n".join(summary(account(**changes), config, broken=broken))


def test_it_adds_up():
    assert list(account().imbalances()) == []
    assert "add up" not in told()


@pytest.mark.parametrize("change", [
    {"capture__frames": 121}, {"capture__delivered": 99}, {"capture__fate_of_other_port": 6},
    {"capture__fate_of_tcp": 9}, {"capture__ring_dropped": 0}, {"workers__frames": 101},
    {"workers__queries": 54}, {"workers__replies": 42}, {"workers__discarded_of_short_header": 5},
    {"workers__opened": 49}, {"workers__repeated": 4}, {"workers__success": 37},
    {"workers__no_reply": 10}, {"workers__evicted": 2}, {"workers__pending": 1},
    {"workers__duplicates": 0}, {"workers__no_query": 3}, {"workers__transactions": 51},
    {"workers__records": 199}, {"sink__events": 251}, {"out0__events": 251},
    {"out1__dropped": 1},
], ids=lambda change: next(iter(change)))
def test_any_counter_that_is_off_by_one_is_found(change):
    assert list(account(**change).imbalances())
    assert "the account does not add up: " in told(**change)


def test_every_fate_and_anomaly_is_in_the_balance():
    """A reason that someone adds later must not be forgotten here."""
    for name in counters.CAPTURE:
        if name.startswith("fate."):
            one = account()
            one.capture[name] += 1
            assert list(one.imbalances()), name
            one.capture["frames"] += 1
            assert not list(one.imbalances()), name
    for name in counters.WORKER:
        if name.startswith("discarded."):
            one = account()
            one.workers[name] += 1
            assert list(one.imbalances()), name


def test_a_run_that_broke_off_does_not_pretend():
    text = told(broken=True, sink__events=10)
    assert "add up" not in text
    assert "not in this account" in text


def test_the_lines():
    text = told(replace(CONFIG, events=Events(records=True)))
    assert "120 frames read: 100 DNS, 10 not DNS (" in text
    assert "100 messages: 55 queries (5 repeated), 41 replies (1 duplicate" in text
    assert "4 unreadable (short_header 4)" in text
    assert "52 transactions: 38 success, 12 no_reply, 2 no_query; 200 records" in text
    assert "252 events written to /x/out\n" in text
    assert "250 events written to standard output, 2 NOT written" in text
    assert "records" not in told()


@pytest.mark.parametrize("change, line", [
    ({"capture__clock_jumps": 1}, "time jumped once"),
    ({"capture__clock_jumps": 3}, "time jumped 3 times"),
    ({"capture__fate.fragment": 1, "capture__frames": 121},
     "DNS in 8 TCP segments and 1 IP fragment was not read"),
    ({"capture__bad_time": 4}, "4 frames have an impossible timestamp"),
    ({"capture__snapped": 5}, "5 frames were cut"),
    ({"workers__negative_latency": 6}, "6 replies are older than their query"),
    ({"workers__answered_forgotten": 7}, "limit reached: 7 answered transactions"),
    ({"workers__omitted": 8}, "limit reached: 8 records left out"),
])
def test_remarks(change, line):
    assert line in told(**change)
    assert line not in told()


def test_evicted_queries_are_a_limit():
    assert "limit reached: 3 queries left early as no_reply" in told()
