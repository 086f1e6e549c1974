"""Succession of a sink with a fluentd output: it is killed at each step of its protocol, and
another one goes on.

The steps of a task, and of a record of the spool, in the order in which they are passed:

    handed on ─▶ chunk queued ─▶ half written ─▶ written ─▶ acknowledged ─▶ settled ─▶ answer taken
              ─▶ settled positions in the slot ─▶ committed ─▶ rings given back

    spooling began ─▶ append begins ─▶ appended (each chunk of a task) ─▶ answer taken ─▶ as above
                      read ─▶ written ─▶ acknowledged ─▶ position about to be written ─▶ written
                      to go straight again ─▶ gone straight again ─▶ as above, beside what is read
                      sync begins ─▶ synced

A kill leaves the rings, the ledger, the spool and what the kernel has of the socket.  What the dead
one was through with has arrived, stands in the spool or is counted (World.died); its successor
delivers all the rest, and no more than the window comes in another chunk.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import pytest

from gazer.config.forward import SpoolSettings
from gazer.sinks import fluentd
from gazer.sinks.connection import Connection
from gazer.sinks.delivery import Delivery
from gazer.sinks.fluentd import Forwarder
from gazer.sinks.spool import Spool
from tests.chaos import sinks
from tests.chaos.sinks import SECOND, World
from tests.forwarding import quick
from tests.receiver import ACK, Receiver, late
from tests.test_succession_sink import Kill, Taps

pytest_plugins = ["tests.chaos.memory"]

# What is passed before and after which call.
CALLS = [
    (Forwarder, "give", "about to be handed on", "handed on"),
    (Connection, "queue", None, "queued"),
    (Connection, "_write_plain", "nothing written", "written"),
    (Delivery, "_acked", "acknowledged", "settled by its ack"),
    (Forwarder, "take", None, "answer taken"),
    (Forwarder, "_begin_spooling", "spooling begins", "spooling began"),
    (Forwarder, "_go_straight", "to go straight again", "gone straight again"),
    (Spool, "append", "append begins", "appended"),
    (Spool, "next", None, "read"),
    (Spool, "ack", "position not written", "position written"),
    (Spool, "sync", "sync begins", "synced"),
]
DIRECT = [
    "about to be handed on", "handed on", "queued", "nothing written", "half written", "written",
    "acknowledged", "settled by its ack", "answer taken", "settled, not committed",
    "committed, heads not stored", "heads stored",
]
SPOOLING = ["spooling begins", "spooling began", "append begins", "appended"]
SPOOLED = [
    *SPOOLING, "read",
    "position not written", "position written", "sync begins", "synced",
    "to go straight again", "gone straight again",
]
AFTER = (0, 1, 3)       # passed so often before the kill
AWAY = 0.12             # seconds
OLD = 3000              # events of a backlog


class Ahead(Kill):
    """Only when new events go ahead of a backlog, or have done so."""

    forwarder = None
    begun = False

    def __call__(self, point):
        it = self.forwarder
        if it is not None and it._reading and not it._spooling:
            self.begun = True
        if self.begun:
            super().__call__(point)


class Mortal(World):
    """Its sinks have a `doom`."""

    doom = Kill()

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.settings = replace(self.settings, spool=SpoolSettings(fsync_ns=SECOND // 20))

    def _run(self):
        """In the sink's own process, in which nothing has to be put back."""
        for owner, name, before, after in CALLS:
            tap(self.doom, owner, name, before, after)
        if isinstance(self.doom, Ahead):
            loop = Forwarder._loop

            def looping(forwarder):
                self.doom.forwarder = forwarder
                loop(forwarder)

            Forwarder._loop = looping
        merge = sinks.Merge
        sinks.Merge = lambda **more: Taps(merge(**more), self.doom)
        super()._run()

    def live(self, doom, *, away=None, backlog=None):
        """One that is fed until it is killed there.  `away`: a receiver that is not there at first,
        and comes and goes; `backlog`: ... that comes when there is something in the spool, and goes
        for a kill that needs it when new events go ahead of that."""
        self.doom = doom
        told = len(self.said)
        if backlog is not None:
            backlog.refuse()
        begun, gone = time.monotonic(), False
        self.begin()
        if backlog is not None:
            self.feed(OLD)
            self.wait(lambda: self.output()["done"] == self.put)
            backlog.listen()
        while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            passed = time.monotonic() - begun
            assert passed < 20, (doom.point, self.output(), self.said[-5:])
            goes = away is not None and passed % (2 * AWAY) < AWAY
            if backlog is not None and doom.point in SPOOLING:
                goes = any("go straight" in line for line in self.said[told:])
            if gone is not goes:
                gone = goes
                receiver = away or backlog
                (receiver.refuse if gone else receiver.listen)()
            self.feed(5)
            time.sleep(0.004)
        if gone:
            receiver.listen()
        self.died()


def tap(doom, owner, name, before, after):
    real = getattr(owner, name)

    def tapped(self, *args, **kwargs):
        if before:
            doom(before)
        if name == "_write_plain" and doom.point == "half written":
            doom.left -= 1
            if doom.left < 0:
                first = self._unsent[0] if len(self._unsent) == 1 else self._unsent[1]
                self.socket.sendmsg([self._unsent[0], first[: len(first) // 2]])
                os.kill(os.getpid(), signal.SIGKILL)
        result = real(self, *args, **kwargs)
        if after and not (name in ("take", "next") and result is None):
            doom(after)
        return result

    setattr(owner, name, tapped)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick(monkeypatch)
    monkeypatch.setattr(fluentd, "SLOW", 0.1)
    monkeypatch.setattr(fluentd, "AHEAD", 0.005)


def follow(world, receiver, point, *, away=None):
    """One sink after the other dies there, and then one lives."""
    before = world.repeats()
    for after in AFTER[: 1 if "spooling" in point else None]:   # that is passed once
        world.live(Kill(point, after), away=away)
        before = bounded(world, before)
    world.doom = Kill()
    world.feed(100)
    assert world.finish() == 0
    assert receiver.acked == {*range(world.put)}
    bounded(world, before)


def bounded(world, before):
    """What came in another chunk since then is what one sink had in hand."""
    now = world.repeats()
    assert sum((now - before).values()) <= world.most_in_hand
    return now


@pytest.mark.parametrize("spool", [False, True], ids=["memory", "spool"])
@pytest.mark.parametrize("point", DIRECT)
def test_killed_while_chunks_are_sent_directly(memory, point, spool):
    with Receiver(plan=lambda _: late(0.01)) as receiver, \
            Mortal(memory, [receiver], spool=spool, beside=True) as world:
        follow(world, receiver, point)


@pytest.mark.parametrize("point", SPOOLED + DIRECT[4:9])
def test_killed_while_chunks_go_through_the_spool(memory, point):
    """The receiver is away when a sink begins, and comes back."""
    with Receiver(plan=lambda _: late(0.01)) as receiver, \
            Mortal(memory, [receiver], spool=True, beside=True) as world:
        follow(world, receiver, point, away=receiver)


@pytest.mark.parametrize("point", DIRECT[:4] + DIRECT[5:] + SPOOLED[:-2] + SPOOLED[-1:])
def test_killed_while_new_events_go_ahead_of_a_backlog(memory, point):
    """The receiver takes a chunk each 5 ms."""
    def plan(message):
        time.sleep(0.005 * bool(message.entries))
        return ACK

    with Receiver(plan=plan) as receiver, \
            Mortal(memory, [receiver], spool=True, beside=True, ack_timeout_ns=5 * SECOND) as world:
        before = world.repeats()
        for after in AFTER[: 1 if point in SPOOLED[:2] + SPOOLED[-1:] else None]:
            world.live(Ahead(point, after), backlog=receiver)
            before = bounded(world, before)
        receiver.plan = lambda _: ACK
        world.doom = Kill()
        world.feed(100)
        assert world.finish() == 0
        assert receiver.acked == {*range(world.put)}
        bounded(world, before)
