"""The Forwarder against receivers that do what they should, and all that they should not."""

import random
import select
import socket
import threading
import time

import pytest

from gazer.config.forward import Server
from gazer.errors import OutputError
from gazer.sinks import delivery, forward, servers
from gazer.sinks.files import GaveUpError
from gazer.sinks.fluentd import Forwarder
from tests.forwarding import SECOND, TX, Sink, Task, entries, quick
from tests.receiver import ACK, CLOSE, GARBAGE, LOSE, TWICE, WRONG, Receiver, late


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick(monkeypatch)


def nowhere():
    """An address where nobody is."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return f"127.0.0.1:{sock.getsockname()[1]}"


# --- all is well ---------------------------------------------------------------------------------


def test_tasks_are_answered_in_order_when_they_are_acknowledged():
    with Receiver() as receiver, Sink(receiver, window=4) as sink:
        sink.feed(50, 7)
        answers = sink.settle()
        assert [a.task.upto for a in answers] == [*range(7, 351, 7)]
        assert {(a.events, a.dropped, a.spooled, a.failure) for a in answers} == {(7, 0, 0, None)}
        assert all(a.bytes == sum(len(p[1]) for p in a.task.parts) for a in answers)
        counts = sink.counts()
        assert (counts["acked"], counts["acked_events"]) == (50, 350)
        assert (counts["resent"], counts["wrong_acks"], counts["unacknowledged"]) == (0, 0, 0)
        assert (counts["servers"], counts["servers_up"], counts["connects"]) == (1, 1, 1)
    assert receiver.numbers == [*range(350)]
    assert not sink.notices and not sink.faults


def test_one_chunk_for_each_tag_and_nothing_for_a_gap():
    with Receiver() as receiver, Sink(receiver) as sink:
        sink.give(3, tags=("a.tx", "a.record"))
        sink.put(Task(upto=99))
        sink.put(Task([("empty", b"", 0)], upto=100))
        sink.give(2)
        answers = sink.settle()
    assert [a.task.upto for a in answers] == [6, 99, 100, 8]
    assert [a.events for a in answers] == [6, 0, 0, 2]
    assert [(m.tag, len(m.entries)) for m in receiver.messages] \
        == [("a.tx", 3), ("a.record", 3), (TX, 2)]
    assert len({m.chunk for m in receiver.messages}) == 3


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_compression(how):
    with Receiver() as receiver, Sink(receiver, compress=how) as sink:
        sink.give(100, 1)
        answers = sink.settle()
        assert 0 < answers[0].bytes < len(answers[0].task.parts[0][1])
    assert receiver.numbers == [*range(101)]
    assert {m.option["compressed"] for m in receiver.messages} == {how}


def test_the_window_is_filled_and_never_more():
    with Receiver(plan=lambda _: LOSE) as receiver, Sink(receiver, window=5) as sink:
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


def test_an_idle_output_sleeps(monkeypatch):
    rounds = []
    real = Forwarder._poll
    monkeypatch.setattr(Forwarder, "_poll",
                        lambda self, timeout: (rounds.append(timeout), real(self, timeout))[1])
    with Receiver() as receiver, Sink(receiver) as sink:
        sink.give(1)
        sink.settle()
        time.sleep(0.1)
        before = len(rounds)
        time.sleep(1)
        assert len(rounds) - before <= 1
        assert rounds[-1] > 10          # until a heartbeat


def test_an_output_whose_server_is_away_does_not_spin(monkeypatch):
    monkeypatch.setattr(servers, "FIRST", 5.0)
    monkeypatch.setattr(servers, "MOST", 5.0)
    monkeypatch.setattr(servers.random, "uniform", lambda low, high: high)
    rounds = []
    real = Forwarder._poll
    monkeypatch.setattr(Forwarder, "_poll",
                        lambda self, timeout: (rounds.append(timeout), real(self, timeout))[1])
    with Sink(nowhere()) as sink:
        sink.give(1)
        time.sleep(1)
        assert len(rounds) < 10


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
    assert {m.chunk for m in first.messages} == {m.chunk for m in second.messages}


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
        assert any("no MessagePack" in line for line in sink.notices)
        assert any("is back" in line for line in sink.notices)
    assert {*receiver.numbers} == {*range(5)}


def test_what_a_connection_had_goes_again_in_order_with_the_same_ids():
    plans = {2: CLOSE}
    with Receiver(plan=lambda m: plans.pop(m.first, ACK)) as receiver, Sink(receiver) as sink:
        sink.give(*[1] * 10)
        sink.settle()
    first = [m for m in receiver.messages if m.connection == 1]
    second = [m for m in receiver.messages if m.connection == 2]
    assert [m.numbers[0] for m in second] == [*range(2, 10)]
    assert {m.chunk for m in first[2:]} <= {m.chunk for m in second}
    assert [a.events for a in sink.answers] == [1] * 10


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


# --- several servers -----------------------------------------------------------------------------


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


def test_hup_connects_anew_and_sends_nothing_twice():
    with Receiver(plan=lambda _: late(0.1)) as receiver, Sink(receiver) as sink:
        sink.give(1, 1, 1)
        sink.wait(lambda: len(receiver.messages) == 3)
        sink.forwarder.wanted = True
        sink.put(Task(upto=3, reopen=True))
        sink.give(1, 1)
        sink.settle()
        assert not sink.forwarder.wanted
        assert [a.task.reopen for a in sink.answers] == [False] * 3 + [True] + [False] * 2
        assert sink.counts()["connects"] == 2
    assert receiver.numbers == [0, 1, 2, 3, 4]
    assert [m.connection for m in receiver.messages] == [1, 1, 1, 2, 2]


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


# --- away, denied, given up ----------------------------------------------------------------------


def test_over_files_the_run_waits_for_a_receiver_and_says_so(monkeypatch):
    monkeypatch.setattr(servers, "REMIND", 0.3)
    monkeypatch.setattr(delivery, "REMIND", 0.3)
    with Receiver() as receiver:
        receiver.refuse()
        with Sink(receiver, live=False) as sink:
            sink.give(3, 4)
            sink.wait(lambda: len(sink.notices) >= 3)
            assert "Connection refused" in sink.notices[0]
            assert "7 events wait" in sink.notices[-1]
            assert len(sink.notices) < 6
            receiver.listen()
            sink.settle()
            assert "is back after" in sink.notices[-1]
    assert receiver.numbers == [*range(7)]


def test_credentials_that_are_rejected_end_a_run_over_files():
    with Receiver(shared_key="right") as receiver, \
            Sink(receiver, shared_key="wrong", live=False) as sink:
        sink.give(3)
        sink.settle()
        [fault] = sink.faults
        assert "shared_key mismatch" in fault and receiver.address in fault
        assert isinstance(sink.answers[0].failure, OutputError)
        assert str(sink.answers[0].failure) == fault
        assert sink.total("events") == sink.total("dropped") == 0
        sink.give(2)        # what comes after
        sink.settle()
        assert isinstance(sink.answers[1].failure, OutputError)
    assert receiver.messages == []


def test_credentials_that_are_rejected_by_one_of_two_are_told():
    a, b = Receiver(shared_key="other"), Receiver(shared_key="right")
    with a, b, Sink(a, b, shared_key="right", live=False) as sink:
        sink.feed(10, 1)
        sink.settle()
        sink.wait(lambda: any("does not accept" in line for line in sink.notices))
        assert not sink.faults
    assert b.numbers == [*range(10)]


def test_credentials_that_are_rejected_are_tried_again_live():
    with Receiver(shared_key="right") as receiver, Sink(receiver, shared_key="wrong") as sink:
        sink.give(3)
        sink.wait(lambda: len(receiver.pings) > 3)
        assert sum("shared_key mismatch" in line for line in sink.notices) == 1
        receiver.shared_key = "wrong"
        sink.settle()
        assert not sink.faults
    assert receiver.numbers == [0, 1, 2]


def test_the_end_waits_for_acks():
    with Receiver(plan=lambda _: late(0.3)) as receiver, Sink(receiver) as sink:
        sink.give(1, 1, 1)
        sink.end(patience=5)
        assert sink.total("events") == 3
    assert receiver.acked == {0, 1, 2}


def test_what_is_unacknowledged_at_the_end_is_given_up_and_said_to_be():
    with Receiver(plan=lambda m: LOSE if m.first == 5 else ACK) as receiver, \
            Sink(receiver, ack_timeout_ns=60 * SECOND) as sink:
        sink.give(5, 1, 1)
        sink.wait(lambda: len(receiver.messages) == 3)
        before = time.monotonic()
        sink.end(patience=0.3)
        assert 0.2 < time.monotonic() - before < 3
    assert [a.events for a in sink.answers] == [5, 0, 1]
    assert [type(a.failure) for a in sink.answers] == [type(None), GaveUpError, type(None)]
    assert sink.total("dropped") == sink.total("spooled") == 0


def test_the_end_can_be_made_to_come_sooner():
    with Sink(nowhere()) as sink:
        sink.give(1)
        sink.forwarder.end(60)
        assert not sink.forwarder.finished.wait(0.2)
        sink.end(0)
    assert isinstance(sink.answers[0].failure, GaveUpError)


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


def test_a_mistake_of_ours_is_an_answer_and_not_a_silent_thread(monkeypatch):
    with Receiver() as receiver, Sink(receiver) as sink:
        monkeypatch.setattr(forward, "message", lambda *_, **__: 1 / 0)
        sink.give(1, 1)
        sink.settle()
        sink.give(1)
        sink.settle()
        assert {type(a.failure) for a in sink.answers} == {ZeroDivisionError}
        sink.end()


def test_parts_may_change_once_they_are_answered():
    """An ack from the connection before comes while the same chunk is half written again."""
    with Receiver() as receiver, Sink(receiver, ack_timeout_ns=SECOND) as sink:
        size = 6 << 20
        block = bytearray(entries([0], size))
        plans = [CLOSE]
        receiver.plan = lambda m: plans.pop() if plans else ACK
        sink.put(Task([(TX, memoryview(block), 1)], upto=1))
        sink.wait(lambda: len(receiver.messages) == 1)
        chunk = receiver.messages[0].chunk
        receiver.stalled.set()
        sink.wait(lambda: receiver.connections == 2)
        sink.wait(lambda: sink.counts()["unacknowledged"] == 1)
        [again] = [*receiver._open.values()]
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
