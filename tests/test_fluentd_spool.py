"""The Forwarder with a spool: what goes in comes out, and nothing is lost in between."""

import random
import time

import pytest

from gazer.sinks import backlog, delivery, fluentd, servers
from gazer.sinks.spool import Spool
from tests.forwarding import SECOND, TX, Task, balance, drained, entries, quick, spooling
from tests.receiver import ACK, CLOSE, LOSE, TWICE, Receiver, late

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick(monkeypatch)
    monkeypatch.setattr(fluentd, "SLOW", 0.2)


@pytest.fixture
def make(tmp_path):
    return spooling(tmp_path / "spool")


def test_while_all_is_well_nothing_is_spooled(make, monkeypatch):
    monkeypatch.setattr(fluentd, "SLOW", 20.0)      # whatever else this machine does
    monkeypatch.setattr(fluentd, "BRIEF", 20.0)
    with Receiver() as receiver, make(receiver) as sink:
        sink.feed(100, 5)
        sink.settle()
        assert sink.total("events") == 500 and sink.total("spooled") == 0
        assert balance(sink)["spooled"] == 0
    assert receiver.numbers == [*range(500)]


def test_as_many_tasks_as_there_may_be_after_a_pause_are_nothing_slow(make, monkeypatch):
    """Nothing was answered in the pause, as there was nothing to answer."""
    monkeypatch.setattr(fluentd, "SLOW", 2.0)
    monkeypatch.setattr(fluentd, "BRIEF", 20.0)
    with Receiver(plan=lambda _: late(0.1)) as receiver, make(receiver, window=4) as sink:
        sink.give(1)
        sink.settle()
        sink.pause(2.2)
        sink.give(*[1] * sink.forwarder.window)
        sink.wait(lambda: len(sink.answers) > 1)
        assert sink.total("spooled") == 0
        sink.settle()
        assert sink.total("spooled") == 0
    assert receiver.numbers == [*range(sink.next)]


def test_events_go_to_disk_while_no_server_can_be_had_and_on_in_order_when_one_can(make):
    with Receiver() as receiver:
        receiver.refuse()
        with make(receiver) as sink:
            sink.feed(200, 5)
            sink.settle()
            assert sink.total("spooled") == 1000
            assert balance(sink)["there"] == 1000
            sink.wait(lambda: any("go into the spool" in line for line in sink.notices))
            line, = (line for line in sink.notices if "go into the spool" in line)
            assert line.startswith("central: no server is connected; ") and "until one is" in line
            receiver.listen()
            sink.wait(drained(sink))
            assert balance(sink)["delivered"] == 1000
            assert sink.counts()["resent"] == 0
            sink.wait(lambda: not sink.counts()["spooling"])
            sink.give(5)
            sink.settle()
            assert sink.total("spooled") == 1000 and sink.total("events") == 5
    assert receiver.numbers == [*range(1005)]


def test_what_is_under_way_when_spooling_begins_is_not_sent_again(make):
    with Receiver(plan=lambda _: late(0.6)) as receiver, \
            make(receiver, window=4, ack_timeout_ns=10 * SECOND) as sink:
        sink.give(1, 1, 1, 1, 1, 1)
        sink.settle()
        assert sink.total("spooled") == 6           # answered long before the first ack
        assert not receiver.acked
        sink.wait(drained(sink))
        assert balance(sink)["delivered"] == 6
        assert sink.counts()["resent"] == 0
    assert receiver.numbers == [0, 1, 2, 3, 4, 5]


def test_a_backlog_from_before_is_told_and_when_it_is_over(make):
    """So is one that a sink that died has left: its successor begins like that, too."""
    with Receiver() as receiver:
        receiver.refuse()
        with make(receiver) as sink:
            sink.feed(3, 5)
            sink.settle()
            sink.wait(lambda: sink.counts()["spooling"])
            assert not any("from before" in line for line in sink.notices)
        receiver.listen()
        with make(receiver, first=15) as sink:
            sink.wait(lambda: not sink.counts()["spooling"])
            sink.give(5)
            sink.settle()
            sink.wait(lambda: len(sink.notices) >= 2)
            assert sink.notices == [
                "central: 15 events in the spool from before: they are sent first",
                "central: its spool is read to the end; events go straight to its servers"]
        with make(receiver, first=20) as sink:      # nothing is left
            sink.give(5)
            sink.settle()
            assert not sink.notices
    assert receiver.numbers == [*range(25)]


def test_servers_that_are_connected_and_slow_do_not_keep_up(make):
    with Receiver(plan=lambda _: late(0.6)) as receiver, \
            make(receiver, window=4, ack_timeout_ns=10 * SECOND) as sink:
        sink.wait(lambda: sink.counts()["servers_up"] == 1)
        sink.give(1, 1, 1, 1, 1, 1)
        sink.settle()
        sink.wait(lambda: sink.notices)
        line = sink.notices[0]
        assert line.startswith("central: its servers do not keep up; ") and "until they do" in line
        sink.wait(drained(sink))


def test_a_block_that_was_answered_may_be_used_again(make):
    """It is still being written to the socket: a copy is."""
    with Receiver() as receiver, make(receiver, ack_timeout_ns=10 * SECOND) as sink:
        sink.wait(lambda: sink.counts()["servers_up"] == 1)
        receiver.stalled.set()
        size = 8 << 20
        block = bytearray(entries([0], size))
        sink.put(Task([(TX, memoryview(block), 1)], upto=1))
        sink.settle()
        assert sink.total("spooled") == 1
        block[:] = b"z" * len(block)
        receiver.stalled.clear()
        sink.wait(drained(sink))
    assert receiver.numbers == [0]
    assert receiver.messages[0].entries[0][1]["pad"] == "x" * size


def test_a_server_that_dies_with_what_was_spooled(make):
    """What it had is read from the spool, under the same ids."""
    with Receiver(plan=lambda _: LOSE) as receiver, \
            make(receiver, window=3, ack_timeout_ns=10 * SECOND) as sink:
        sink.give(1, 1, 1, 1, 1)
        sink.settle()
        assert sink.total("spooled") == 5
        receiver.plan = lambda _: ACK
        receiver.hang_up()
        sink.wait(drained(sink))
        assert balance(sink)["delivered"] == 5
        assert sink.counts()["resent"] == 3
    ids = {}
    for message in receiver.messages:
        assert ids.setdefault(message.first, message.chunk) == message.chunk
    assert [m.first for m in receiver.messages if m.connection == 2] == [0, 1, 2, 3, 4]


def test_what_was_read_when_spooling_ended_is_sent_when_it_begins_again(make):
    """It is not read a second time: the connection that it was under way on ends in between."""
    with Receiver(plan=lambda m: LOSE if m.first == 2 else ACK) as receiver:
        receiver.refuse()
        with make(receiver, ack_timeout_ns=10 * SECOND) as sink:
            sink.give(1, 1, 1)
            sink.settle()
            receiver.listen()
            sink.wait(lambda: not sink.counts()["spooling"])
            assert balance(sink)["there"] == 1
            receiver.refuse()
            receiver.plan = lambda _: ACK
            sink.give(1)
            sink.settle()
            assert balance(sink)["there"] == 2
            receiver.listen()
            sink.wait(drained(sink))
            assert balance(sink)["delivered"] == 4
    assert [m.first for m in receiver.messages] == [0, 1, 2, 2, 3]


def test_a_chunk_that_is_to_be_tried_alone_does_not_wait_for_the_whole_spool(make):
    """Two connections ended while it was the first one unacknowledged."""
    seen = []

    def plan(message):
        seen.append(message.first)
        if message.first == 0 and seen.count(0) <= 2:
            return CLOSE
        return late(0.01)

    with Receiver(plan=plan) as receiver:
        receiver.refuse()
        with make(receiver, window=3) as sink:
            sink.feed(200, 1)
            sink.settle()
            receiver.listen()
            sink.wait(drained(sink))
    assert {*receiver.acked} == {*range(200)}
    again = [i for i, n in enumerate(seen) if n == 0]
    assert len(again) == 3 and again[2] < 30


def test_a_chunk_that_is_to_be_tried_alone_gets_its_turn_with_several_servers(make):
    """None of which is idle ever, as long as there is anything in the spool."""
    seen, dice = [], random.Random(3)

    def plan(message):
        seen.append(message.first)
        if message.first == 0 and seen.count(0) <= 2:
            return CLOSE
        return late(dice.uniform(0.005, 0.05))

    with Receiver(plan=plan) as a, Receiver(plan=plan) as b:
        a.refuse()
        b.refuse()
        with make(a, b, window=16) as sink:
            sink.feed(800, 1)
            sink.settle()
            a.listen()
            b.listen()
            sink.wait(drained(sink))
    assert a.acked | b.acked == {*range(800)}
    again = [i for i, n in enumerate(seen) if n == 0]
    assert len(again) == 3 and again[2] < 100


def test_what_is_to_be_tried_alone_does_not_become_ever_more(make):
    """A server that ends each connection over the first chunk of it: the rest of the spool stays
    there."""
    with Receiver(plan=lambda _: CLOSE) as receiver:
        receiver.refuse()
        with make(receiver, window=3) as sink:
            sink.feed(100, 1)
            sink.settle()
            receiver.listen()
            sink.wait(lambda: len(receiver.messages) > 80, 20)
            assert len(sink.forwarder._delivery.aside) <= delivery.ASIDE + 3
            assert sink.counts()["rejected"] == 0
            receiver.plan = lambda _: ACK
            sink.wait(drained(sink))
            assert balance(sink)["delivered"] == 100
    assert receiver.acked == {*range(100)}


def test_a_server_that_is_slower_than_the_events_makes_them_wait_on_disk(make):
    """No event waits for it: they are answered at the speed of the disk, while it drains."""
    def plan(_):
        time.sleep(0.02)
        return ACK

    with Receiver(plan=plan) as receiver, make(receiver, window=4) as sink:
        before = time.monotonic()
        sink.feed(150, 1)
        sink.settle()
        assert time.monotonic() - before < 2        # 150 x 0.02 s = 3 s
        assert sink.total("spooled") > 50
        sink.wait(drained(sink), 20)
        sink.wait(lambda: not sink.counts()["spooling"])
    assert receiver.numbers == [*range(150)]


def test_the_next_start_goes_on_where_the_last_ack_stood(make):
    with Receiver(plan=lambda m: ACK if (m.first or 0) < 40 else LOSE) as receiver, \
            make(receiver, window=8, ack_timeout_ns=60 * SECOND) as sink:
        sink.feed(100, 1)
        sink.settle()
        sink.wait(lambda: {*range(40)} <= receiver.acked)
        spooled, acked = sink.total("spooled"), sink.total("events")
        assert spooled + acked == 100
    with Receiver() as second, make(second, first=100, run=2) as sink:
        assert sink.counts()["found"] <= 100 - 40
        sink.give(1)
        sink.wait(drained(sink))
        sink.settle()
        balance(sink)
    assert {*receiver.acked} | {*second.numbers} == {*range(101)}
    again = {m.chunk for m in receiver.messages} & {m.chunk for m in second.messages}
    assert len(again) <= 8          # no more than the window
    assert second.numbers == sorted(second.numbers)


def test_the_end_puts_what_is_unanswered_into_the_spool(make, monkeypatch):
    monkeypatch.setattr(fluentd, "SLOW", 60.0)
    with Receiver(plan=lambda _: LOSE) as receiver:
        sink = make(receiver, ack_timeout_ns=60 * SECOND)
        sink.give(2, 3)
        sink.wait(lambda: len(receiver.messages) == 2)
        assert not sink.answers
        sink.end(patience=0.2)
        assert [(a.spooled, a.failure) for a in sink.answers] == [(2, None), (3, None)]
    with Receiver() as second, make(second, first=5) as sink:
        assert sink.spool.last(1) == 5
        sink.wait(drained(sink))
    assert second.numbers == [*range(5)]
    assert [m.chunk for m in second.messages] == [m.chunk for m in receiver.messages]


def test_the_end_does_not_wait_for_what_is_in_the_spool(make):
    def plan(_):
        time.sleep(0.05)
        return ACK

    with Receiver(plan=plan) as receiver:
        receiver.refuse()
        with make(receiver, window=2) as sink:
            sink.feed(100, 1)
            sink.settle()
            receiver.listen()
            sink.wait(lambda: len(receiver.messages) >= 2)
            before = time.monotonic()
            sink.end(patience=10)
            assert time.monotonic() - before < 2
            assert len(receiver.messages) < 60
            assert sink.counts()["there"] >= 100 - len(receiver.messages)


def test_how_far_a_successor_need_not_go_back_stands_with_a_tasks_last_chunk(make):
    with Receiver() as receiver:
        receiver.refuse()
        with make(receiver, run=7) as sink:
            upto = []
            real = sink.spool.append

            def append(payload, **more):
                upto.append(more["upto"])
                return real(payload, **more)

            sink.spool.append = append
            sink.give(2, 3, tags=("a", "b", "c"))
            sink.settle()
            assert upto == [0, 0, 6, 0, 0, 15]
            assert sink.spool.last(7) == 15 and sink.spool.last(6) == 0


def test_how_many_events_were_lost_up_to_there_stands_with_it(make):
    """Of a task's three chunks the spool refuses one, and of the next one all; the one behind them
    says so, and what was lost ahead of them: it had no room in the sink's queue."""
    with Receiver() as receiver:
        receiver.refuse()
        with make(receiver, run=7) as sink:
            real, calls = sink.spool.append, []

            def append(payload, **more):
                calls.append(more["lost"])
                return len(calls) in (1, 3, 7) and real(payload, **more)

            sink.spool.append = append
            sink.forwarder.handed_on = 50           # what sinks before this one have counted
            for upto, tags in ((109, "abc"), (112, "abc"), (113, "a")):
                sink.put(Task([(tag, entries([0]), 1) for tag in tags], upto=upto))
            sink.settle()
            assert calls[2] == 109 - 50 - 2 and calls[6] == 113 - 50 - 3
            assert sink.spool.last(7) == 113 and sink.spool.lost(7) == 60
            assert sink.total("dropped") == 4


def test_a_full_spool_refuses_the_newest_and_says_so_in_the_answer(make):
    with Receiver() as receiver:
        receiver.refuse()
        with make(receiver, max_bytes=MIB, drop="newest") as sink:
            sink.feed(60, 1, size=40_000)
            sink.settle()
            kept, dropped = sink.total("spooled"), sink.total("dropped")
            assert kept + dropped == 60 and 10 < kept < 30
            receiver.listen()
            sink.wait(drained(sink))
            balance(sink)
    assert receiver.numbers == [*range(kept)]


def test_a_full_spool_drops_the_oldest(make):
    with Receiver() as receiver:
        receiver.refuse()
        with make(receiver, max_bytes=MIB) as sink:
            sink.feed(60, 1, size=40_000)
            sink.settle()
            assert sink.total("spooled") == 60
            dropped = balance(sink)["dropped"]
            assert 30 < dropped < 55
            receiver.listen()
            sink.wait(drained(sink))
            assert balance(sink)["delivered"] == 60 - dropped
    assert receiver.numbers == [*range(dropped, 60)]


def test_an_event_out_of_the_spool_that_no_server_takes(make, monkeypatch):
    monkeypatch.setattr(delivery, "GRACE", 0.05)
    monkeypatch.setattr(delivery, "GRACE_ONE", 0.1)
    with Receiver(limit=20_000) as receiver:
        receiver.refuse()
        with make(receiver) as sink:
            sink.put(Task([(TX, entries([0, 1]) + entries([2], 30_000) + entries([3]), 4)], 4))
            sink.next = 4
            sink.feed(5, 1)
            sink.settle()
            receiver.listen()
            sink.wait(drained(sink))
            counts = balance(sink)
            assert (counts["rejected"], counts["dropped"], counts["delivered"]) == (1, 1, 8)
    assert sorted(receiver.numbers) == [0, 1, 3, 4, 5, 6, 7, 8]


def test_old_records_expire_by_the_age_in_their_ids(make):
    with Receiver() as receiver:
        receiver.refuse()
        with make(receiver) as sink:
            sink.feed(600, 1)
            sink.settle()
        time.sleep(0.3)
        receiver.listen()
        with make(receiver, first=600, expire_ns=SECOND // 4) as sink:
            sink.wait(drained(sink))
            assert sink.counts()["expired"] == 600 == balance(sink)["dropped"]
            sink.give(1)
            sink.settle()
            sink.wait(drained(sink))
    assert receiver.numbers == [600]


def test_compressed_chunks_come_out_as_they_went_in(make):
    with Receiver() as receiver:
        receiver.refuse()
        with make(receiver, compress="zstd") as sink:
            sink.feed(20, 20)
            sink.settle()
        receiver.listen()
        with make(receiver, compress="") as sink:
            sink.wait(drained(sink))
    assert receiver.numbers == [*range(400)]
    assert {m.option["compressed"] for m in receiver.messages} == {"zstd"}


# --- the thread sleeps while there is nothing to do ----------------------------------------------


def test_it_rests_while_what_was_spooled_waits_for_its_ack(make, monkeypatch):
    """And nothing else is to be done: spooling is over, and there are no tasks."""
    with Receiver(plan=lambda m: LOSE if m.first == 2 else ACK) as receiver:
        receiver.refuse()
        with make(receiver, ack_timeout_ns=10 * SECOND) as sink:
            sink.give(1, 1, 1)
            sink.settle()
            receiver.listen()
            sink.wait(lambda: not sink.counts()["spooling"])
            sink.pause(0.3)
            assert sink.turns(monkeypatch) < 50
            receiver.hang_up()
            receiver.plan = lambda _: ACK
            sink.wait(drained(sink))


def test_it_rests_when_the_server_leaves_while_old_records_are_passed_over(make, monkeypatch):
    with Receiver() as receiver:
        receiver.refuse()
        with make(receiver) as sink:
            sink.feed(600, 1)
            sink.settle()
        time.sleep(0.1)
        receiver.listen()
        real, reads = Spool.next, []

        def following(self):
            reads.append(self)
            if len(reads) == backlog.SKIPS // 2:
                receiver.refuse()
            return real(self)

        monkeypatch.setattr(Spool, "next", following)
        monkeypatch.setattr(servers, "FIRST", 60.0)
        monkeypatch.setattr(servers, "MOST", 60.0)
        with make(receiver, first=600, expire_ns=SECOND // 20) as sink:
            sink.wait(lambda: len(reads) >= backlog.SKIPS)
            sink.pause(0.1)
            assert sink.turns(monkeypatch) < 50
            assert 0 < sink.counts()["expired"] < 600


# --- all of it together --------------------------------------------------------------------------


def test_every_event_arrives_whatever_becomes_of_receiver_and_sink(make):
    """A receiver that comes and goes and spoils acks, a sink that ends and begins again: captured =
    acknowledged + spooled, and in the end all of it has arrived."""
    dice = random.Random(11)
    plan = lambda _: dice.choices(      # noqa: E731
        [ACK, LOSE, TWICE, CLOSE, late(0.05)], [80, 3, 3, 3, 11])[0]
    with Receiver(plan=plan) as receiver:
        first = 0
        for run in range(4):
            with make(receiver, window=6, first=first, run=run + 1,
                      ack_timeout_ns=SECOND // 4) as sink:
                for _ in range(5):
                    sink.feed(dice.randrange(1, 8), 10)
                    sink.pause(0.05)
                    if dice.random() < 0.5:
                        receiver.refuse()
                        sink.feed(dice.randrange(1, 8), 10)
                        sink.pause(0.1)
                        receiver.listen()
                sink.end(patience=dice.choice((0.0, 0.3)))
                assert sink.total("events") + sink.total("spooled") == sink.next - first
                balance(sink)
                first = sink.next
        receiver.plan = lambda _: ACK
        with make(receiver, first=first) as sink:
            sink.wait(drained(sink))
    assert {*receiver.numbers} == {*range(first)} and first > 300
    by_chunk = {}
    for message in receiver.messages:
        assert by_chunk.setdefault(message.chunk, message.numbers) == message.numbers
