"""From a configuration to processes and rings."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gazer.counters import ledger_bytes
from gazer.ring import ring_bytes

from gazer.config import MAX_WORKERS, Config, Ring
from gazer.topology import CAPTURE, FIRST_WORKER, SINK, Topology


@pytest.mark.parametrize("workers", [1, 2, 7, MAX_WORKERS])
def test_the_processes(workers):
    parts = Topology.of(replace(Config(), workers=workers)).parts()
    # Whoever takes stands before whoever gives.
    assert [p.role for p in parts] == ["sink", *["worker"] * workers, "capture"]
    # Slots and bells are numbered without a gap, each once.
    assert sorted(p.number for p in parts) == list(range(workers + 2))
    assert parts[0].number == SINK
    assert parts[-1].number == CAPTURE
    for i, part in enumerate(parts[1:-1]):
        assert (part.worker, part.number) == (i, FIRST_WORKER + i)
    # `ps` shows 15 bytes of a name: they must tell the processes apart.
    assert len({p.name.encode()[:15] for p in parts}) == len(parts)


def test_auto_is_what_the_configuration_makes_of_it():
    config = Config()
    assert Topology.of(config).workers == config.worker_count() >= 1


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("size", [64 << 10, 4 << 20])
def test_the_shared_memory(workers, size):
    topology = Topology.of(replace(Config(), workers=workers, ring=Ring(size=size)))
    segments = topology.segments()
    assert segments.pop("ledger") == ledger_bytes(workers + 2)
    assert set(segments) == {f"{kind}{i}" for kind in ("frames", "events") for i in range(workers)}
    assert set(segments.values()) == {ring_bytes(size)}
    assert topology.shared_bytes() == sum(topology.segments().values())
