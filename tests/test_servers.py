"""Who gets the next chunk, who is left out, and when a server is tried again."""

import os
import threading
import time

import pytest

from gazer.config.forward import Forward, Server
from gazer.sinks import delivery, servers
from gazer.sinks.chunks import Chunk
from gazer.sinks.connection import READY
from gazer.sinks.servers import BACKLOG, Servers
from tests.forwarding import SECOND, Sink, quick
from tests.receiver import ACK, CLOSE, Receiver


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
    with a, b, Sink(a, b, window=16, ack_timeout_ns=SECOND) as sink:
        sink.wait(lambda: sink.counts()["servers_up"] == 2)
        a.stalled.set()
        for _ in range(60):
            sink.wait(lambda: sink.given - len(sink.answers) < 16, 20)
            sink.give(1, size=300_000)
        sink.settle(20)
        a.stalled.clear()
    assert {*a.numbers, *b.numbers} == {*range(60)}


@pytest.mark.parametrize("standby", [False, True])
def test_a_server_that_stays_frozen_is_asked_with_empty_chunks(standby):
    """What it was sent would wait for ack_timeout each time that it is tried, and all behind it."""
    a, b = Receiver(), Receiver()
    with a, b, Sink(Server(a.address), Server(b.address, standby=standby), window=8,
                    ack_timeout_ns=SECOND) as sink:
        sink.wait(lambda: sink.counts()["servers_up"] == 2 - standby)
        sink.give(1)
        sink.settle()
        a.stalled.set()
        sink.feed(9, 1)
        sink.wait(lambda: any("without acknowledgement" in line for line in sink.notices))
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            sink.feed(1, 1)
        assert sink.next > 1000
        a.stalled.clear()
        before = len(a.acked)
        sink.wait(lambda: len(a.acked) > before and not sink.feed(5, 1), 20)
        sink.settle()
    assert a.acked | b.acked == {*range(sink.next)}


def test_a_server_that_comes_and_goes_is_told_of_now_and_then(monkeypatch):
    """It acknowledges one chunk for a connection: not a line for each."""
    monkeypatch.setattr(delivery, "REMIND", 1.0)
    with Receiver() as receiver, Sink(receiver) as sink:
        begun = time.monotonic()
        while time.monotonic() < begun + 2:
            receiver.plan = lambda m: CLOSE if m.entries else ACK
            sink.give(1)
            sink.pause(0.03)
            receiver.plan = lambda _: ACK
            sink.settle()
        took = time.monotonic() - begun
        assert sink.counts()["failures"] > 6 * delivery.FLAPS / 2
        assert 2 <= len(sink.notices) <= 2 * delivery.FLAPS * (took + 1)
        back = [i for i, line in enumerate(sink.notices) if "is back" in line]
        assert all("is back" not in sink.notices[i - 1] for i in back)
    assert receiver.acked == {*range(sink.next)}


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


class Link:
    """A connection that is up, as far as a server looks at it."""

    state, keepalive = READY, True

    def __init__(self, queued=0, written=0):
        self.queued, self.written = queued, written


def test_a_server_that_does_not_take_what_it_has_gets_no_more():
    a, b, c = (group := of(Server("a"), Server("b"), Server("c", standby=True))).all
    a.connection, b.connection, c.connection = Link(), Link(), Link()
    b.share = 100.0
    assert group.choose() is a
    a.connection.queued = BACKLOG
    assert group.choose() is b
    b.connection.queued = BACKLOG
    assert group.choose() is None       # they are up: it is not for the one on standby
    b.connection.written = 1
    assert group.choose() is b


def flying(*, end, queued):
    [server] = of(Server("a")).all
    server.connection = Link(queued=end)
    chunk = Chunk(None, "t", b"", 1, (1,))
    chunk.end, chunk.queued = end, queued
    server.flying[chunk.id] = chunk
    server.moved = queued
    return server


def test_an_ack_is_late_from_when_the_chunk_was_written():
    server = flying(end=100, queued=50.0)
    server.connection.written = 100
    assert server.overdue(60.0, 10.0) == 10.0       # seen to be written now
    assert server.overdue(69.0, 10.0) == 1.0
    server.acked = 65.0                             # the one before
    assert server.overdue(70.0, 10.0) == 5.0


def test_a_slow_line_has_longer_and_one_that_trickles_not_for_ever():
    server = flying(end=100, queued=50.0)
    assert server.overdue(59.0, 10.0) == 1.0        # nothing moves
    server.connection.written = 10
    assert server.overdue(59.5, 10.0) == 10.0
    for i in range(11, 90):                         # an octet now and then
        server.connection.written = i
        server.overdue(59.5 + i - 10, 10.0)
        if server.overdue(59.5 + i - 10, 10.0) <= 0:
            break
    assert 59.5 + i - 10 == pytest.approx(90.0, abs=1.0)
