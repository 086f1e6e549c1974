"""Receivers whose acknowledgements are late, lost or wrong, or that refuse what is large, before a
whole sink: with a spool and without, everything arrives in the end or was counted."""

from __future__ import annotations

import random

import pytest

from gazer.sinks import delivery, fluentd
from tests.chaos.sinks import World, everything, file_has
from tests.forwarding import quick
from tests.receiver import ACK, CLOSE, GARBAGE, LOSE, TWICE, WRONG, Receiver, late

pytest_plugins = ["tests.chaos.memory"]
pytestmark = pytest.mark.parametrize("spool", [False, True], ids=["memory", "spool"])


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick(monkeypatch)
    monkeypatch.setattr(fluentd, "SLOW", 0.1)
    monkeypatch.setattr(delivery, "GRACE", 0.05)
    monkeypatch.setattr(delivery, "GRACE_ONE", 0.1)


def spoiled(seed, actions):
    """Each chunk is spoiled at its first coming by one of these, or by none."""
    dice, seen = random.Random(seed), set()

    def plan(message):
        if message.chunk in seen or dice.random() < 0.6:
            return ACK
        seen.add(message.chunk)
        return dice.choice(actions)

    return plan


@pytest.mark.parametrize("actions", [
    [late(0.2)], [LOSE], [TWICE, late(0.02)], [GARBAGE, CLOSE],
    [LOSE, WRONG, TWICE, GARBAGE, CLOSE, late(0.1)],
], ids=["late", "lost", "twice", "broken", "all"])
def test_acks_that_are_not_as_they_should_be(memory, spool, actions):
    with Receiver(plan=spoiled(5, actions)) as receiver, World(
            memory, [receiver], spool=spool, beside=True) as world:
        world.begin()
        world.feed_for(0.3, 1000)
        file_has(world)
        everything(world, [receiver])


@pytest.mark.parametrize("how", ["limit", "close_above"])
def test_chunks_above_a_size_are_refused(memory, spool, how):
    """As fluentd does (no ack) and fluent-bit (closes): halves, until they fit."""
    with Receiver(**{how: 1000}) as receiver, World(
            memory, [receiver], spool=spool, beside=True) as world:
        for _ in range(3):      # at once, so that chunks are full
            world.feed(300)
            world.begin() if not world.pid else file_has(world)
        everything(world, [receiver])
        assert receiver.dropped and max(m.size for m in receiver.messages) <= 1000


def test_events_above_a_size_are_dropped_and_counted(memory, spool):
    """Those alone."""
    with Receiver(limit=400) as receiver, World(
            memory, [receiver], spool=spool, beside=True) as world:
        world.begin()
        world.feed(20)
        world.pad = 600
        world.feed(1)
        world.pad = 0
        world.feed(20)
        file_has(world)
        assert world.finish() == 1
        assert {*range(41)} - world.acked == {20}
        assert world.output()["rejected"] == 1
