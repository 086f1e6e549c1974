"""Who gets the next chunk, who is left out, and when a server is tried again."""

import os
import threading

import pytest

from gazer.config.forward import Forward, Server
from gazer.sinks import servers
from gazer.sinks.servers import Servers
from tests.forwarding import SECOND, Sink, quick
from tests.receiver import Receiver


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick(monkeypatch)


def test_servers_share_by_weight():
    a, b = Receiver(), Receiver()
    with a, b, Sink(Server(a.address, 30), Server(b.address, 10), window=4) as sink:
        sink.wait(lambda: sink.counts()["servers_up"] == 2)
        sink.feed(80, 1)
        sink.settle()
    assert 55 <= len(a.messages) <= 65 and len(a.messages) + len(b.messages) == 80


def test_standby_works_only_while_no_other_does():
    a, b, c = Receiver(), Receiver(), Receiver()
    with a, b, c, Sink(Server(a.address), Server(b.address, standby=True),
                       Server(c.address, weight=0)) as sink:
        sink.feed(5, 1)
        sink.settle()
        assert not b.messages and b.connections == 0 and c.connections == 0
        assert sink.counts()["servers"] == 1
        a.refuse()
        sink.feed(10, 1)
        sink.settle()
        assert {*b.numbers, *c.numbers} == {*range(5, 15)}
        a.listen()
        sink.wait(lambda: sink.counts()["servers_up"] == 1)
        before = len(b.messages) + len(c.messages)
        sink.feed(5, 1)
        sink.settle()
        assert len(b.messages) + len(c.messages) == before
    assert {*a.numbers} == {*range(5), *range(15, 20)}


def test_a_server_that_returns_does_not_get_everything():
    a, b = Receiver(), Receiver()
    with a, b, Sink(a, b, window=4) as sink:
        a.refuse()
        sink.feed(40, 1)
        sink.settle()
        a.listen()
        sink.wait(lambda: sink.counts()["servers_up"] == 2)
        sink.feed(40, 1)
        sink.settle()
    assert 15 <= len(a.messages) <= 25


def test_a_frozen_server_does_not_hold_up_the_other():
    """It reads nothing; what it has goes to the other after ack_timeout, all else at once."""
    a, b = Receiver(), Receiver()
    with a, b, Sink(a, b, window=16) as sink:
        sink.wait(lambda: sink.counts()["servers_up"] == 2)
        a.stalled.set()
        for _ in range(60):
            sink.wait(lambda: sink.given - len(sink.answers) < 16, 20)
            sink.give(1, size=300_000)
        sink.settle(20)
        a.stalled.clear()
    assert {*a.numbers, *b.numbers} == {*range(60)}


def test_a_slow_reader_loses_and_doubles_nothing():
    with Receiver() as receiver, Sink(receiver, window=16, ack_timeout_ns=5 * SECOND) as sink:
        over = threading.Event()

        def stutter():
            while not over.wait(0.02):
                receiver.stalled.set()
                over.wait(0.1)
                receiver.stalled.clear()

        thread = threading.Thread(target=stutter)
        thread.start()
        try:
            sink.feed(80, 10, size=30_000)
            sink.settle(20)
        finally:
            over.set()
            thread.join()
        assert sink.counts()["resent"] == 0
    assert receiver.numbers == [*range(800)]


# --- by themselves -------------------------------------------------------------------------------


def of(*settings):
    return Servers(Forward(servers=settings), os.eventfd(0))


def test_backoff_doubles_to_its_limit_and_is_shared_out_at_random(monkeypatch):
    monkeypatch.undo()
    [server] = of(Server("127.0.0.1:1")).all
    waits = [[] for _ in range(12)]
    for _ in range(300):
        server.tries = 0
        for wait in waits:
            server.failed(1000.0)
            wait.append(server.retry - 1000.0)
    for i, wait in enumerate(waits):
        most = min(30.0, 0.5 * 2 ** i)
        assert 0 <= min(wait) < most * 0.1 and most * 0.9 < max(wait) <= most
        assert most * 0.4 < sum(wait) / len(wait) < most * 0.6


def test_a_server_that_has_failed_a_thousand_times():
    [server] = of(Server("127.0.0.1:1")).all
    for _ in range(3000):
        server.failed(0.0)
    assert server.retry <= servers.MOST


def test_who_is_to_be_connected():
    a, b, c = (group := of(Server("a"), Server("b", standby=True), Server("c", weight=0))).all
    assert group.wanted() == [a] and group.proper() == [a] and not group.hopeless()
    a.failed(0.0)
    assert group.wanted() == [a, b, c] and group.hopeless()
    a.tries = 0
    assert group.wanted() == [a]
    spares = of(Server("b", standby=True), Server("c", weight=0))
    assert spares.wanted() == spares.proper() == spares.all and not spares.hopeless()
