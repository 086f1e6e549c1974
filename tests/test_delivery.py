"""Acknowledgements lost, late, wrong and doubled; chunks that no server takes; the window."""

import random
import select
import socket
import threading
import time
import zlib
from collections import Counter

import pytest

from gazer.config.forward import Server
from gazer.sinks import delivery, forward, servers
from tests.forwarding import SECOND, TX, Sink, Task, entries, quick
from tests.receiver import ACK, CLOSE, GARBAGE, LOSE, TWICE, WRONG, Receiver, late


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick(monkeypatch)


# --- the window ----------------------------------------------------------------------------------


def test_the_window_is_filled_and_never_more():
    with Receiver(plan=lambda _: LOSE) as receiver, \
            Sink(receiver, window=5, ack_timeout_ns=SECOND // 2) as sink:
        sink.give(1, 1, 1, 1, 1)
        sink.forwarder.give(Task([(TX, entries([5]), 1)], upto=6))
        sink.wait(lambda: len(receiver.messages) == 5)
        assert sink.counts()["unacknowledged"] == 5
        time.sleep(0.1)
        assert len(receiver.messages) == 5
        sink.given += 1
        receiver.plan = lambda _: ACK
        sink.settle()
    assert {*receiver.numbers} == {*range(6)}


def test_no_more_octets_are_under_way_than_stated(monkeypatch):
    monkeypatch.setattr(delivery, "MOST_FLYING", 100_000)
    with Receiver(plan=lambda _: late(0.2)) as receiver, Sink(receiver, window=32) as sink:
        sink.give(1, 1, 1, 1, size=30_000)
        sink.give(1, size=400_000)      # more than that by itself: goes alone
        sink.wait(lambda: len(receiver.messages) == 3)
        assert 90_000 < sink.counts()["unacknowledged_bytes"] < 100_000
        sink.settle()
    assert receiver.numbers == [*range(5)]


def test_a_distant_server_does_not_limit_the_rate():
    """40 chunks, each acknowledged after 0.1 s, take much less than 4 s."""
    with Receiver(plan=lambda _: late(0.1)) as receiver, Sink(receiver, window=20) as sink:
        before = time.monotonic()
        sink.feed(40, 10)
        sink.settle()
        assert time.monotonic() - before < 2
    assert receiver.numbers == [*range(400)]


# --- acknowledgements that are not as they should be ---------------------------------------------


def test_a_lost_ack_is_found_by_those_behind_it_and_costs_no_connection(monkeypatch):
    monkeypatch.setattr(delivery, "GRACE_ONE", 0.3)
    lost = []

    def plan(message):
        if message.first == 3 and not lost:
            lost.append(message.chunk)
            return LOSE
        return ACK

    with Receiver(plan=plan) as receiver, Sink(receiver, ack_timeout_ns=60 * SECOND) as sink:
        sink.give(1, 1, 1, 1, 1, 1)
        sink.settle()
        assert sink.counts()["connects"] == 1
        assert sink.counts()["resent"] == 1
    assert [m.chunk for m in receiver.messages].count(lost[0]) == 2
    assert sorted(receiver.numbers) == [0, 1, 2, 3, 3, 4, 5]


def test_a_server_that_acknowledges_nothing_has_failed():
    first, second = Receiver(plan=lambda _: LOSE), Receiver()
    with first, second, Sink(Server(first.address), Server(second.address, standby=True),
                             ack_timeout_ns=SECOND // 3) as sink:
        sink.give(2, 2, 2)
        sink.settle()
        assert any("without acknowledgement" in line for line in sink.notices)
        assert sink.counts()["resent"] >= 3
    assert second.acked == {*range(6)}
    # Beside these the second one has had an empty chunk, behind the one that waited in vain; and
    # so has the first, if it was quick to be up again: to show that it is well.
    assert {m.chunk for m in first.messages if m.entries} == {
        m.chunk for m in second.messages if m.entries}


def test_acks_that_come_late_count(monkeypatch):
    """The chunk is under way a second time, and nobody will ever acknowledge that."""
    monkeypatch.setattr(delivery, "GRACE_ONE", 0.3)
    plans = [late(0.5)]
    with Receiver(plan=lambda m: ACK if m.first != 0 else plans.pop() if plans else LOSE) \
            as receiver, Sink(receiver, ack_timeout_ns=60 * SECOND) as sink:
        sink.give(1, 1)
        sink.wait(lambda: sum(m.first == 0 for m in receiver.messages) == 2)
        assert not sink.answers
        sink.settle(5)
        assert [a.events for a in sink.answers] == [1, 1]
        assert sink.counts()["unacknowledged"] == 0
    assert len({m.chunk for m in receiver.messages if m.first == 0}) == 1


def test_an_ack_counts_from_whom_the_chunk_is_not_expected_any_more(monkeypatch):
    """It is late with one server, and has gone to another that never acknowledges it."""
    monkeypatch.setattr(delivery, "GRACE_ONE", 0.3)
    a = Receiver(plan=lambda m: late(0.6) if m.first == 0 else ACK)
    b = Receiver(plan=lambda m: LOSE if m.first == 0 else ACK)
    with a, b, Sink(a, b, ack_timeout_ns=60 * SECOND) as sink:
        sink.wait(lambda: sink.counts()["servers_up"] == 2)
        [one, two] = sink.forwarder._delivery.servers.all
        two.share = 1e9         # all of it to the first
        sink.give(1, 1)
        sink.wait(lambda: a.numbers == [0, 1])
        one.share = 2e9         # all of it to the second
        sink.give(1, 1)
        sink.wait(lambda: 0 in b.numbers)
        assert not sink.answers
        sink.settle(3)
        assert sink.total("events") == 4 and sink.counts()["unacknowledged"] == 0


def test_wrong_and_duplicate_acks_do_nothing_but_count():
    plans = {0: TWICE, 1: WRONG, 2: TWICE}
    with Receiver(plan=lambda m: plans.pop(m.first, ACK)) as receiver, \
            Sink(receiver, ack_timeout_ns=SECOND // 2) as sink:
        sink.give(1, 1, 1)
        sink.settle()
        assert sink.total("events") == 3
        assert sink.counts()["wrong_acks"] == 3
        assert sink.counts()["acked_events"] == 3
    assert {*receiver.numbers} == {0, 1, 2}


def test_garbage_ends_the_connection_and_not_the_output():
    plans = {1: GARBAGE}
    with Receiver(plan=lambda m: plans.pop(m.first, ACK)) as receiver, Sink(receiver) as sink:
        sink.feed(5, 1)
        sink.settle()
        assert sink.counts()["connects"] == 2
        assert sink.forwarder._delivery.servers.all[0].tries == 0       # no backoff is left
        assert any("no MessagePack" in line for line in sink.notices)
        assert any("is back" in line for line in sink.notices)
    assert {*receiver.numbers} == {*range(5)}


def test_what_a_connection_had_goes_again_in_order_with_the_same_ids():
    """Ahead of what waits behind the window."""
    plans = {2: CLOSE}
    with Receiver(plan=lambda m: plans.pop(m.first, ACK)) as receiver, \
            Sink(receiver, window=4) as sink:
        sink.give(1, 1, 1, 1, tags=("a", "b", "c"))
        sink.settle()
    first = [m for m in receiver.messages if m.connection == 1]
    second = [m for m in receiver.messages if m.connection == 2]
    assert [m.first for m in second] == [*range(2, 12)]
    assert {m.chunk for m in first[2:]} <= {m.chunk for m in second}
    assert len(receiver.messages) <= 12 + 4
    assert [a.events for a in sink.answers] == [3] * 4


# --- chunks that a server does not take ----------------------------------------------------------


def test_a_chunk_beyond_the_servers_limit_is_halved_until_it_fits(monkeypatch):
    monkeypatch.setattr(delivery, "GRACE", 0.05)
    monkeypatch.setattr(delivery, "GRACE_ONE", 0.1)
    with Receiver(limit=20_000) as receiver, Sink(receiver) as sink:
        sink.give(64, size=1000)        # 64 KiB
        sink.feed(8, 1)
        sink.settle()
        assert sink.total("events") == 72 and sink.total("dropped") == 0
        assert sink.counts()["rejected"] == 0
        assert sink.counts()["connects"] == 1
        assert sum("chunk_size_limit" in line for line in sink.notices) == 1
    assert sorted(receiver.numbers) == [*range(72)]
    # Never resent for ever: 3 times 64, 2 x 32, and all 16 fit.
    assert [len(m.entries) for m in receiver.dropped] == [64] * 3 + [32] * 6


def test_all_chunks_are_beyond_the_servers_limit(monkeypatch):
    """Whatever is under way, and more behind it: there is nothing whose acknowledgement could tell
    that the server is well."""
    monkeypatch.setattr(delivery, "GRACE", 0.05)
    with Receiver(limit=20_000) as receiver, \
            Sink(receiver, window=2, ack_timeout_ns=SECOND // 3) as sink:
        sink.feed(8, 32, size=1000)
        sink.settle()
        assert sink.total("events") == 256 and sink.counts()["rejected"] == 0
        assert any("chunk_size_limit" in line for line in sink.notices)
    assert sorted(receiver.numbers) == [*range(256)]
    assert max(Counter(m.chunk for m in receiver.dropped).values()) <= 8


@pytest.mark.parametrize("how", ["", "gzip"])
def test_an_event_beyond_the_limit_is_rejected_and_told(how, monkeypatch):
    monkeypatch.setattr(delivery, "GRACE", 0.05)
    monkeypatch.setattr(delivery, "GRACE_ONE", 0.1)
    with Receiver(limit=20_000) as receiver, Sink(receiver, compress=how) as sink:
        noise = random.Random(1).randbytes(30_000).hex()
        big = forward.msgpack.packb([0, {"n": 1, "pad": noise}])
        sink.put(Task([(TX, entries([0]) + big + entries([2, 3]), 4)], upto=4))
        sink.next = 4
        sink.feed(8, 1)
        sink.settle()
        assert sink.answers[0].events == 3 and sink.answers[0].dropped == 1
        assert sink.counts()["rejected"] == 1
        assert any("does not take an event of" in line and "chunk_size_limit" in line
                   for line in sink.notices)
    assert sorted(receiver.numbers) == [0, *range(2, 12)]


@pytest.mark.parametrize("events", [8, 1])
def test_the_last_chunk_of_all_is_found_to_be_refused(events, monkeypatch):
    """Nothing comes behind it: an empty chunk shows that the server lives."""
    monkeypatch.setattr(delivery, "GRACE", 0.05)
    monkeypatch.setattr(delivery, "GRACE_ONE", 0.1)
    with Receiver(limit=4000) as receiver, Sink(receiver, ack_timeout_ns=SECOND // 5) as sink:
        sink.give(events, size=9000 // events)
        sink.settle(20)
        assert sink.total("dropped") == (1 if events == 1 else 0)
        assert sink.total("events") == (0 if events == 1 else 8)
    assert sorted(receiver.numbers) == ([] if events == 1 else [*range(8)])
    assert len(receiver.dropped) < 30


@pytest.mark.parametrize("more", [0, 30])
def test_a_receiver_that_closes_on_what_is_too_large(more):
    with Receiver(close_above=4000) as receiver, Sink(receiver) as sink:
        sink.give(8, size=1000)
        sink.feed(more, 1)
        sink.give(1, size=5000)
        sink.settle(30)
        assert sink.total("events") == 8 + more
        assert sink.answers[-1].dropped == 1
        assert sink.counts()["rejected"] == 1
    assert {*receiver.numbers} == {*range(8 + more)}
    assert len(receiver.dropped) < 40


def test_nothing_is_dropped_for_a_server_that_is_down_or_takes_nothing():
    with Receiver(plan=lambda _: CLOSE) as receiver, \
            Sink(receiver, ack_timeout_ns=SECOND // 5) as sink:
        sink.give(1, 4)
        sink.wait(lambda: len(receiver.messages) > 20)
        receiver.plan = lambda _: LOSE
        sink.wait(lambda: len(receiver.messages) > 26, 20)
        assert not sink.answers and sink.counts()["rejected"] == 0
        receiver.plan = lambda _: ACK
        sink.settle()
        assert sink.total("events") == 5
    # Not in pieces either.
    assert {len(m.entries) for m in receiver.messages} <= {0, 1, 4}


def test_a_chunk_beyond_the_limit_of_a_server_that_takes_one_for_a_connection():
    """Nothing is ever behind it on its connection."""
    with Receiver(limit=4000, shared_key="k", keepalive=False) as receiver, \
            Sink(receiver, shared_key="k", ack_timeout_ns=SECOND // 5) as sink:
        sink.give(4, size=1500)
        sink.settle(20)
        assert sink.total("events") == 4 and sink.total("dropped") == 0
    assert sorted(receiver.numbers) == [0, 1, 2, 3]
    assert len(receiver.dropped) < 8


@pytest.mark.parametrize("error", [ImportError("no zstandard"), zlib.error("bad")])
def test_a_chunk_that_can_not_be_divided_is_rejected_as_a_whole(error, monkeypatch):
    """What an earlier run put into a spool may be compressed by what this one has not."""
    monkeypatch.setattr(delivery, "GRACE", 0.05)

    def broken(*_):
        raise error

    monkeypatch.setattr(forward, "decompress", broken)
    with Receiver(limit=4000) as receiver, Sink(receiver) as sink:
        sink.give(4, size=1500)
        sink.feed(5, 1)
        sink.settle()
        assert sink.answers[0].dropped == 4 == sink.counts()["rejected"]
        assert sink.total("events") == 5
    assert receiver.numbers == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("events", [1, 4])
def test_nothing_is_dropped_for_a_server_that_has_no_room_for_events(events):
    """A fluentd whose buffer is full ends the connection of whoever sends events, and acknowledges
    an empty chunk."""
    full = True
    with Receiver(plan=lambda m: CLOSE if full and m.entries else ACK) as receiver, \
            Sink(receiver) as sink:
        sink.give(*[events] * 3)
        sink.wait(lambda: sum(not m.entries for m in receiver.messages) > 9)
        assert sink.counts()["rejected"] == 0
        full = False
        sink.settle()
        assert sink.total("events") == 3 * events and sink.total("dropped") == 0
    assert receiver.acked == {*range(3 * events)}


def test_a_server_that_acknowledges_only_empty_chunks_is_still_failing(monkeypatch):
    """It is not asked anew at once, again and again, nor said to be back."""
    monkeypatch.setattr(servers, "MOST", 60.0)
    monkeypatch.setattr(servers.random, "uniform", lambda _, most: most)
    with Receiver(plan=lambda m: CLOSE if m.entries else ACK) as receiver, Sink(receiver) as sink:
        sink.give(1)
        sink.wait(lambda: sum(not m.entries for m in receiver.messages) > 1)
        assert sink.forwarder._delivery.servers.all[0].tries >= 4
        assert not any("is back" in line for line in sink.notices)


# --- connections ---------------------------------------------------------------------------------


def test_a_connection_for_one_chunk_is_used_for_one():
    with Receiver(shared_key="k", keepalive=False) as receiver, \
            Sink(receiver, shared_key="k") as sink:
        sink.give(1, 1, 1, 1)
        sink.settle()
    assert [m.connection for m in receiver.messages] == [1, 2, 3, 4]


def test_heartbeats_until_a_receiver_takes_them_for_a_mistake(monkeypatch):
    monkeypatch.setattr(delivery, "HEARTBEAT", 0.05)
    with Receiver() as receiver, Sink(receiver) as sink:
        sink.give(1)
        sink.settle()
        sink.wait(lambda: receiver.heartbeats >= 3)
        assert receiver.connections == 1
        real = Receiver._talk

        def touchy(self, sock, number):
            if select.select([sock], [], [], 5)[0] and sock.recv(1, socket.MSG_PEEK) == b"\xc0":
                return
            real(self, sock, number)

        monkeypatch.setattr(Receiver, "_talk", touchy)
        receiver.hang_up()
        sink.wait(lambda: receiver.connections == 3)        # one died of it
        time.sleep(0.2)
        assert receiver.connections == 3
        sink.give(1)
        sink.settle()
    assert not sink.notices     # nothing that the operator could do about


def test_the_thread_rests_while_a_server_that_failed_is_silent(monkeypatch):
    """Beyond the moment at which the next line about it would be due."""
    monkeypatch.setattr(delivery, "REMIND", 0.2)
    plans = [CLOSE]
    with Receiver(plan=lambda _: plans.pop() if plans else LOSE) as receiver, \
            Sink(receiver, ack_timeout_ns=10 * SECOND) as sink:
        sink.give(1)
        sink.wait(lambda: len(receiver.messages) == 2)
        sink.pause(0.3)
        assert sink.counts()["servers_up"] == 1
        assert sink.turns(monkeypatch) < 50


def test_old_chunks_expire_if_they_are_to():
    with Receiver() as receiver:
        receiver.refuse()
        with Sink(receiver, expire_ns=SECOND // 4) as sink:
            sink.give(3)
            sink.settle()
            assert (sink.answers[0].dropped, sink.answers[0].events) == (3, 0)
            receiver.listen()
            sink.give(2)
            sink.settle()
            assert sink.answers[1].events == 2
            assert sink.counts()["expired"] == 3
    assert receiver.numbers == [3, 4]


def test_one_that_is_older_than_those_ahead_of_it_expires():
    """As one out of a spool is that had to be sent again, behind new ones."""
    with Receiver() as receiver:
        receiver.refuse()
        with Sink(receiver, expire_ns=60 * SECOND) as sink:
            sink.give(1, 1, 1)
            ready = sink.forwarder._delivery.ready
            sink.wait(lambda: len(ready) == 3)
            ready[1].born -= 100
            receiver.listen()
            sink.settle()
            assert [(a.events, a.dropped) for a in sink.answers] == [(1, 0), (0, 1), (1, 0)]
            assert sink.counts()["expired"] == 1
    assert receiver.numbers == [0, 2]


def test_parts_may_change_once_they_are_answered():
    """An ack from the connection before comes while the same chunk is half written again."""
    with Receiver() as receiver, Sink(receiver, ack_timeout_ns=60 * SECOND) as sink:
        size = 20 << 20
        block = bytearray(entries([0], size))
        plans = [CLOSE]
        receiver.plan = lambda m: plans.pop() if plans else ACK
        sink.put(Task([(TX, memoryview(block), 1)], upto=1))
        sink.wait(lambda: len(receiver.messages) == 1)
        chunk = receiver.messages[0].chunk
        receiver.stalled.set()
        sink.wait(lambda: 2 in receiver._open)
        sink.wait(lambda: sink.counts()["unacknowledged"] == 1)
        again = receiver._open[2]
        again.sendall(forward.msgpack.packb({"ack": chunk}))
        sink.settle()
        block[:] = b"z" * len(block)
        receiver.stalled.clear()
        sink.wait(lambda: len(receiver.messages) == 2)
    assert receiver.numbers == [0, 0]
    assert receiver.messages[1].entries[0][1]["pad"] == "x" * size


def test_a_flapping_receiver_gets_every_event():
    """Two servers go away and come back, lose and spoil acks, for 3 s; each event arrives, and what
    comes twice has the same chunk's id."""
    dice = random.Random(5)
    plan = lambda _: dice.choices(      # noqa: E731
        [ACK, LOSE, TWICE, WRONG, GARBAGE, CLOSE, late(0.05)], [80, 3, 3, 3, 1, 3, 7])[0]
    a, b = Receiver(plan=plan), Receiver(plan=plan)
    with a, b, Sink(a, b, window=8, ack_timeout_ns=SECOND // 4) as sink:
        over = threading.Event()

        def flap():
            while not over.wait(dice.uniform(0.05, 0.3)):
                one = dice.choice((a, b))
                one.refuse()
                over.wait(dice.uniform(0.01, 0.2))
                one.listen()

        flapping = threading.Thread(target=flap)
        flapping.start()
        end = time.monotonic() + 3
        try:
            while time.monotonic() < end:
                sink.feed(5, 20)
                time.sleep(0.01)
        finally:
            over.set()
            flapping.join()
        a.plan = b.plan = lambda _: ACK
        sink.settle(30)
        counts = sink.counts()
        assert sink.total("events") == sink.next > 1000
        assert counts["rejected"] == counts["expired"] == 0
    assert a.acked | b.acked == {*range(sink.next)}
    by_chunk = {}
    for message in a.messages + b.messages:
        assert by_chunk.setdefault(message.chunk, message.numbers) == message.numbers
