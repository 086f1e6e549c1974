"""The supervisor's judgements as functions of time; what of a configuration changes in place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gazer.config import Config, Metrics, Service, from_mapping
from gazer.service.cpus import cpu_problems, cpus_of
from gazer.service.reload import IN_PLACE, changed, merged
from gazer.service.watch import (
    FEW,
    LINES,
    ROUND,
    SECOND,
    WHILE,
    Deaths,
    Pulse,
    RunningClock,
    Talk,
)
from gazer.topology import Topology

MS = 1_000_000


def test_the_running_clock_counts_rounds_and_not_what_lay_between_them():
    clock = RunningClock(1000)
    assert clock.round(1000 + 300 * MS) == 300 * MS
    assert clock.round(1000 + 800 * MS) == 800 * MS
    assert clock.round(1000 + 3600 * SECOND) == 800 * MS + ROUND    # it was stopped for an hour
    assert clock.round(1000) == 800 * MS + ROUND                    # no clock of ours goes back
    assert clock.round(1000 + 5 * MS) == 805 * MS + ROUND


def test_silence_is_a_heartbeat_that_does_not_change():
    pulse = Pulse(100)
    assert pulse.silence(0, 300) == 0           # the first look
    assert pulse.silence(0, 900) == 600         # it has not begun
    assert pulse.silence(7, 1000) == 0
    assert pulse.silence(7, 1500) == 500
    assert pulse.silence(6, 1600) == 0          # whatever its clock is worth, it moves
    assert pulse.silence(6, 1700) == 100


def test_one_line_a_second_may_always_be_said_and_some_at_once():
    talk = Talk(500)
    assert [talk.allows(500) for _ in range(LINES + 3)] == [True] * LINES + [False] * 3
    assert [talk.allows(500 + SECOND - 1), talk.allows(500 + SECOND)] == [False, True]
    assert [talk.allows(500 + n * SECOND) for n in range(2, 500)] == [True] * 498
    much_later = 10_000 * SECOND        # what was not said does not pile up
    assert [talk.allows(much_later) for _ in range(LINES + 1)] == [True] * LINES + [False]


def test_five_deaths_are_too_many_within_a_minute_only():
    deaths = Deaths()
    assert [deaths.too_many(n) for n in range(FEW)] == [False] * (FEW - 1) + [True]
    deaths = Deaths()
    apart = WHILE // (FEW - 1)
    assert not any(deaths.too_many(n * apart) for n in range(50))
    deaths = Deaths()
    assert [deaths.too_many(n * (apart - 1)) for n in range(FEW)][-1]


def test_changed_keys_have_the_names_of_the_file():
    old = Config()
    assert [*changed(old, Config())] == []
    new = from_mapping({
        "sensor": {"id": "x"}, "capture": {"ports": [53, 5300]}, "workers": 3,
        "transactions": {"timeout": "30s"}, "service": {"hang_timeout": "5s"},
        "outputs": [{"type": "text", "path": "x"}],
    })
    assert [*changed(old, new)] == [
        "sensor.id", "capture.ports", "workers", "transactions.timeout", "service.hang_timeout",
        "outputs"]


def test_what_changes_in_place_and_nothing_else():
    old = Config()
    service = Service(hang_timeout_ns=5 * SECOND, shutdown_timeout_ns=7 * SECOND,
                      stats_interval_ns=9 * SECOND)
    new = replace(old, service=service, metrics=Metrics("127.0.0.1:1"), workers=3)
    result, now, restart = merged(old, new)
    assert sorted(now) == sorted(IN_PLACE)
    assert restart == ["workers", "service.stats_interval"]
    assert result == replace(
        old, metrics=Metrics("127.0.0.1:1"),
        service=replace(service, stats_interval_ns=old.service.stats_interval_ns))


@pytest.mark.parametrize("before, after", [("", "127.0.0.1:1"), ("127.0.0.1:1", "")])
def test_metrics_can_not_begin_or_end_in_place(before, after):
    old, new = Config(metrics=Metrics(before)), Config(metrics=Metrics(after))
    assert merged(old, new) == (old, [], ["metrics.listen"])


def test_cpus_of_each_process():
    config = from_mapping({
        "capture": {"interfaces": ["a", "b"]}, "workers": 3,
        "service": {"capture_cpus": [4], "worker_cpus": [1, 2], "sink_cpus": [5, 6]}})
    where = {part.name: cpus_of(config, part) for part in Topology.of(config).parts()}
    assert where == {
        "gazer:sink": (5, 6), "gazer:worker0": (1,), "gazer:worker1": (2,), "gazer:worker2": (2,),
        "gazer:capture0": (4,), "gazer:capture1": (4,), "gazer:metrics": ()}
    assert {cpus_of(Config(), part) for part in Topology.of(config).parts()} == {()}


def test_cpus_that_are_not_ours(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 5, 7, 8})
    config = Config(service=Service(worker_cpus=(1, 6), sink_cpus=(9,)))
    assert [*cpu_problems(config)] == [
        "service.worker_cpus[1]: there is no CPU 6 for gazer here; it may use 0-2, 5, 7-8",
        "service.sink_cpus[0]: there is no CPU 9 for gazer here; it may use 0-2, 5, 7-8"]


def test_titles():
    config = from_mapping({"capture": {"interfaces": ["eth0", "any"], "processes": 2},
                           "workers": 1})
    assert [part.title for part in Topology.of(config).parts()] == [
        "gazer: sink", "gazer: worker 0", "gazer: metrics", "gazer: capture eth0 0",
        "gazer: capture eth0 1", "gazer: capture any 2", "gazer: capture any 3"]
    assert [part.title for part in Topology.of(Config()).parts()][-1] == "gazer: capture"
