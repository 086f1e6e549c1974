"""Receivers that are down, frozen, slow or flapping, before a whole sink: with a spool and without,
everything arrives in the end or was counted, and a file beside the output never waits."""

from __future__ import annotations

import pytest

from gazer.sinks import fluentd
from tests.chaos.receivers import Apart, Cutting, Slow
from tests.chaos.sinks import SECOND, World, everything, file_has
from tests.forwarding import quick
from tests.receiver import Receiver

pytest_plugins = ["tests.chaos.memory"]
pytestmark = pytest.mark.parametrize("spool", [False, True], ids=["memory", "spool"])


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick(monkeypatch)
    monkeypatch.setattr(fluentd, "SLOW", 0.1)


def test_down(memory, spool):
    with Receiver() as receiver, World(memory, [receiver], spool=spool, beside=True) as world:
        world.begin()
        world.feed_for(0.1, 1000)
        for _ in range(3):
            receiver.refuse()
            world.feed_for(0.2, 1000)
            file_has(world)
            receiver.listen()
            world.feed_for(0.1, 500)
        everything(world, [receiver])
        assert (world.output()["spooled"] > 0) == spool


def test_frozen(memory, spool):
    """While the kernel goes on taking what is sent to it: that a write succeeds proves nothing."""
    receiver = Apart(memory / "log")
    with World(memory, [receiver], spool=spool, beside=True, ack_timeout_ns=SECOND) as world:
        world.begin()
        world.feed_for(0.1, 500)
        for seconds in (0.2, 1.2):      # less and more than the sink waits for an ack
            receiver.freeze()
            world.feed_for(seconds, 1000)
            file_has(world)
            before = world.output()
            assert before["events"] + before["spooled"] <= world.put
            if spool:       # what the frozen one has not acknowledged is on the disk
                world.wait(lambda: world.output()["done"] == world.put)
            receiver.thaw()
            world.feed_for(0.1, 200)
        assert world.finish() == 0
        assert receiver.numbers == {*range(world.put)}
    receiver.end()


def test_slow(memory, spool):
    """It reads 40 KB a second, of ten times that."""
    with Slow(pace=40_000) as receiver, World(
            memory, [receiver], spool=spool, beside=True, pad=300, limit=8000,
            ack_timeout_ns=SECOND) as world:
        world.begin()
        world.feed_for(1.0, 1000)
        file_has(world)
        assert len(receiver.numbers) < 400
        assert (world.output()["spooled"] > 0) == spool
        receiver.pace = 0
        everything(world, [receiver])


def test_closing_in_the_middle_of_a_chunk(memory, spool):
    with Cutting(least=200, most=6000) as receiver, World(
            memory, [receiver], spool=spool, beside=True) as world:
        world.begin()
        world.feed_for(1.0, 2000)
        file_has(world)
        assert receiver.cut > 5
        receiver.well = True
        everything(world, [receiver])


def test_nobody_comes_back(memory, spool):
    """Without a spool, what the end finds undelivered is dropped and counted; with one it is all
    there for the next start."""
    with Receiver() as receiver, World(memory, [receiver], spool=spool, beside=True) as world:
        world.begin()
        world.feed_for(0.2, 300)
        world.wait(lambda: world.output()["done"] == world.put)
        first = world.put
        receiver.refuse()
        world.feed_for(0.3, 1000)
        file_has(world)
        dropped = world.stop()
        assert (dropped == 0) == spool
        left, _ = world.spooled()
        assert {*left} == ({*range(world.put)} - receiver.acked if spool else set())
        assert receiver.acked == {*range(first)}
