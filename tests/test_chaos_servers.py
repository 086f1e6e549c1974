"""Several servers before a whole sink, of which one dies, freezes, or both do: with a spool and
without, all that was captured arrives."""

from __future__ import annotations

import time

import pytest

from gazer.config.forward import Server
from gazer.sinks import fluentd
from tests.chaos.receivers import Apart
from tests.chaos.sinks import World, everything, file_has
from tests.forwarding import quick
from tests.receiver import Receiver

pytest_plugins = ["tests.chaos.memory"]
pytestmark = pytest.mark.parametrize("spool", [False, True], ids=["memory", "spool"])


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick(monkeypatch)
    monkeypatch.setattr(fluentd, "SLOW", 0.1)


def test_of_two_servers_one_dies(memory, spool):
    """And comes back; and then the other one."""
    with Receiver() as a, Receiver() as b, World(
            memory, [a, b], spool=spool, beside=True) as world:
        world.begin()
        world.feed_for(0.2, 500)
        for who in (a, b):
            who.refuse()
            world.feed_for(0.3, 1000)
            file_has(world)
            who.listen()
            world.feed_for(0.2, 500)
        everything(world, [a, b])
        assert a.numbers and b.numbers


def test_of_two_servers_one_freezes(memory, spool):
    apart = Apart(memory / "log")
    with Receiver() as b, World(memory, [apart, b], spool=spool, beside=True) as world:
        world.begin()
        world.feed_for(0.2, 500)
        apart.freeze()
        world.feed_for(1.0, 1000)
        file_has(world)
        world.wait(lambda: world.output()["done"] == world.put, 5.0)    # the other one has it all
        apart.thaw()
        assert world.finish() == 0
        assert {*apart.numbers, *b.numbers} == {*range(world.put)}
    apart.end()


def test_standby_takes_over(memory, spool):
    with Receiver() as a, Receiver() as b, World(
            memory, [a, b], servers=[Server(a.address), Server(b.address, standby=True)],
            spool=spool, beside=True) as world:
        world.begin()
        world.feed_for(0.2, 300)
        world.wait(lambda: world.output()["done"] == world.put)
        assert not b.messages
        a.refuse()
        world.feed_for(0.5, 500)
        file_has(world)
        world.wait(world.delivered)
        assert b.messages and a.acked | b.acked == {*range(world.put)}
        a.listen()
        everything(world, [a, b])


def test_both_die(memory, spool):
    with Receiver() as a, Receiver() as b, World(
            memory, [a, b], spool=spool, beside=True) as world:
        world.begin()
        world.feed_for(0.2, 300)
        a.refuse()
        world.feed_for(0.1, 300)
        b.refuse()
        world.feed_for(0.5, 1000)
        file_has(world)
        time.sleep(0.2)
        assert (world.output()["done"] == world.put) == spool
        b.listen()
        world.feed_for(0.1, 300)
        a.listen()
        everything(world, [a, b])
