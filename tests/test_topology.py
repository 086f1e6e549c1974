"""From a configuration to processes and rings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gazer.config import MAX_WORKERS, Capture, Config, Metrics, Ring
from gazer.counters import ledger_bytes
from gazer.ring import ring_bytes
from gazer.segment import OURS
from gazer.topology import Topology
from gazer.workers.sample import SAMPLES_BYTES


def live(interfaces, processes, workers, **more):
    capture = Capture(interfaces=interfaces, processes=processes)
    return Topology.of(replace(Config(), workers=workers, capture=capture, **more))


@pytest.mark.parametrize("workers", [1, 2, 7, MAX_WORKERS])
def test_the_processes_of_a_run_over_files(workers):
    topology = Topology.of(replace(Config(), workers=workers))
    parts = topology.parts()
    # Whoever takes stands before whoever gives.
    assert [p.role for p in parts] == ["sink", *["worker"] * workers, "capture"]
    assert (parts[0].number, parts[-1].number) == (topology.sink, 0)


@pytest.mark.parametrize(("interfaces", "processes", "workers"), [
    (("eth0",), 1, 1), (("eth0",), 3, 2), (("a", "b"), 2, 7), (("any",), 1, MAX_WORKERS)])
def test_the_processes_of_a_live_run(interfaces, processes, workers):
    topology = live(interfaces, processes, workers)
    parts = topology.parts()
    captures = [p for p in parts if p.role == "capture"]
    assert [p.role for p in parts] == [
        "sink", *["worker"] * workers, "metrics", *["capture"] * len(captures)]
    assert [p.interface for p in captures] == [n for n in interfaces for _ in range(processes)]
    # Slots and bells are numbered without a gap, each once.
    assert sorted([*(p.number for p in parts), topology.supervisor]) == [*range(topology.processes)]
    for role in ("worker", "capture"):
        assert [p.index for p in parts if p.role == role] == [
            *range(sum(p.role == role for p in parts))]
    assert [p.number for p in parts if p.role == "worker"] == [
        topology.worker(i) for i in range(workers)]
    # `ps` shows 15 bytes of a name: they must tell the processes apart.
    assert len({p.name.encode()[:15] for p in parts}) == len(parts)


def test_metrics_are_served_live_and_where_an_address_is_given():
    assert Topology.of(Config()).metrics is False
    assert live(("eth0",), 1, 1, metrics=Metrics(listen="")).metrics is False


def test_auto_is_what_the_configuration_makes_of_it():
    config = Config()
    assert Topology.of(config).workers == config.worker_count() >= 1


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("size", [64 << 10, 4 << 20])
def test_the_shared_memory(workers, size):
    topology = Topology.of(replace(Config(), workers=workers, ring=Ring(size=size)))
    segments = topology.segments()
    assert segments.pop("ledger") == ledger_bytes(topology.processes)
    assert set(segments) == {f"{kind}{i}" for kind in ("frames", "events") for i in range(workers)}
    assert set(segments.values()) == {ring_bytes(size)}
    assert topology.shared_bytes() == sum(topology.segments().values())


def test_each_pair_of_capture_and_worker_has_a_ring():
    topology = live(("a", "b"), 2, 3)
    frames = [topology.frames(c, w) for c in range(4) for w in range(3)]
    assert len(set(frames)) == 12
    assert set(topology.segments()) == {
        "ledger", *frames, *(topology.events(i) for i in range(3)),
        *(topology.samples(i) for i in range(3))}
    assert topology.segments()["samples2"] == SAMPLES_BYTES
    assert all(OURS.fullmatch(f"gazer-0123abcd-{name}") for name in topology.segments())
