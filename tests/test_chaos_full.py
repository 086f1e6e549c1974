"""kill -9 of the sink while its spool, or the disk of that, is full: what was spooled stays, what
was not is taken from the rings again, what was dropped is counted, and the next sink starts on a
disk that has no room for one octet more.

As in test_chaos_kill.py, with the spool on a file system of its own.
"""

from __future__ import annotations

import random
import subprocess

import pytest

from gazer.sinks import backlog, fluentd, link
from tests.chaos.sinks import LEAST, LIMIT, SECOND, World, file_has
from tests.conftest import eventually, small_disk
from tests.forwarding import quick
from tests.receiver import Receiver

pytest_plugins = ["tests.chaos.memory"]

KIB = 160           # of the disk; a segment takes 128, a task 2
KILLS = 12          # while it is full
EACH = 60           # events between two kills


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick(monkeypatch)
    monkeypatch.setattr(fluentd, "SLOW", 0.1)
    monkeypatch.setattr(backlog, "AGAIN", 0.02)


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path, KIB) as where:
        yield where


def fill(world):
    """Feed it until its spool has no room."""
    world.begin()
    while not any("No space left" in line for line in world.said):
        world.feed_for(0.02, 100)
        assert world.put < 20_000


@pytest.mark.parametrize("first", ["room", "receiver"])
def test_a_sink_that_is_killed_while_the_disk_of_its_spool_is_full(memory, disk, first):
    """Again and again; then there is room, or the receiver is back."""
    chance = random.Random(first)
    with Receiver() as receiver, World(
            memory, [receiver], spool=True, beside=True, ack_timeout_ns=SECOND // 4) as world:
        world.spool = str(disk / "spool")
        receiver.refuse()
        fill(world)
        kept = 0
        for _ in range(KILLS):
            world.feed_for(chance.uniform(0.01, 0.06), EACH)
            world.kill()
            spooled, upto = world.spooled()
            assert {*range(kept)} <= {*range(upto)} <= {*spooled}
            # Of a task that had room for one of its two chunks, the other comes again with it.
            assert len(spooled) - len({*spooled}) <= world.kills * LIMIT // LEAST
            kept = upto
            world.begin()
            file_has(world)
        assert 0 < kept < world.put - KILLS * EACH // 2     # so it was full all the time
        if first == "room":
            subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
            eventually(lambda: world.output()["done"] == world.put)
            world.kill()
            spooled, upto = world.spooled()
            assert {*spooled} == {*range(world.put)} and upto == world.put
        receiver.listen()
        assert world.finish() == 0
        assert {*receiver.numbers} == {*range(world.put)}
        assert sum(world.repeats().values()) <= world.repeated


@pytest.mark.parametrize("look", [0.0, 60.0], ids=["at once", "late"])
def test_what_a_full_spool_dropped_is_no_delivery_for_the_successor(memory, monkeypatch, look):
    """Though no commit says so: the sink looks at what its spool dropped some times a second."""
    monkeypatch.setattr(link, "LOOK", look)
    with Receiver() as receiver, World(
            memory, [receiver], spool=True, most=256 << 10, ack_timeout_ns=SECOND // 4) as world:
        receiver.refuse()
        for _ in range(5):
            world.begin()
            world.feed_for(0.3, 3000)
            eventually(lambda: world.output()["done"] == world.put)
            world.kill()
        world.begin()
        eventually(lambda: world.output()["spool_dropped"] == world.gone)
        before = world.output()
        assert before["delivered"] == before["spool_found"] == 0
        assert before["spool_dropped"] > world.put // 2
        world.kill()
        monkeypatch.setattr(link, "LOOK", 0.0)
        receiver.listen()
        dropped = world.finish()
        assert len({*range(world.put)} - {*receiver.numbers}) <= dropped == before["spool_dropped"]
