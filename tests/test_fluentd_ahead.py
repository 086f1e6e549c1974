"""What is new goes ahead of what the spool holds, and neither waits for ever."""

import errno
import time
from contextlib import contextmanager

import pytest

from gazer.sinks import backlog as reading
from gazer.sinks import delivery, fluentd
from gazer.sinks.spool import Spool
from tests.forwarding import SECOND, balance, drained, quick, spooling
from tests.receiver import ACK, LOSE, Receiver

OLD = 400


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick(monkeypatch)
    monkeypatch.setattr(fluentd, "AHEAD", 0.1)


@pytest.fixture
def make(tmp_path):
    return spooling(tmp_path / "spool")


class Slow:
    """A plan: so many seconds for each chunk."""

    def __init__(self, seconds=0.01):
        self.seconds = seconds

    def __call__(self, message):
        if message.entries:
            time.sleep(self.seconds)
        return ACK


def backlog(sink, receiver):
    """OLD events, one to a chunk; the receiver is back."""
    sink.feed(OLD, 1)
    sink.settle()
    assert balance(sink)["there"] == OLD
    receiver.listen()


def straight(sink):
    """New events go ahead of it."""
    sink.wait(lambda: not sink.counts()["spooling"])
    assert balance(sink)["there"] > OLD / 2


@contextmanager
def both(make, seconds=0.01, *, window=4, limit=0):
    """A receiver that takes so long for each chunk, and a sink that sends it both."""
    with Receiver(plan=Slow(seconds), limit=limit) as receiver:
        receiver.refuse()
        with make(receiver, window=window) as sink:
            backlog(sink, receiver)
            straight(sink)
            yield receiver, sink


def test_new_events_do_not_wait_for_a_long_backlog(make):
    with both(make) as (receiver, sink):
        for _ in range(5):
            before = time.monotonic()
            sink.give(1)
            sink.settle()
            assert time.monotonic() - before < OLD * 0.01 / 4
        assert (sink.total("events"), sink.total("spooled")) == (5, OLD)
        assert sink.spool.events > OLD / 4
        sink.wait(drained(sink))
        assert balance(sink)["delivered"] == OLD
        assert sink.counts()["resent"] == 0
        sink.wait(lambda: "read to the end" in sink.notices[-1])
        assert sink.notices[-2].startswith(
            "central: new events go straight to its servers again; ")
    # Each of both is in order, and the new ones came among the old ones.
    old = [n for n in receiver.numbers if n < OLD]
    new = [n for n in receiver.numbers if n >= OLD]
    assert old == [*range(OLD)] and new == [*range(OLD, OLD + 5)]
    assert receiver.numbers.index(OLD + 4) < OLD * 3 / 4


def test_a_backlog_goes_on_beside_as_many_new_events_as_there_is_room_for(make):
    with both(make, 0.005) as (receiver, sink):
        while sink.spool.events:        # half of what the receiver takes
            sink.give(1)
            sink.pause(0.01)
        sink.settle()
        assert sink.total("spooled") == OLD
        sink.wait(drained(sink))
        balance(sink)
    assert sorted(receiver.numbers) == [*range(sink.next)]


@pytest.mark.parametrize("window", [1, 4])
def test_a_backlog_goes_on_beside_new_events_that_fill_the_window(make, window):
    """They are as many as the receiver takes, and never too many."""
    with both(make, 0.002, window=window) as (receiver, sink):
        end = time.monotonic() + 30
        while sink.spool.events:
            assert time.monotonic() < end, sink.spool.events
            sink.wait(lambda: sink.given - len(sink.answers) < 8)
            sink.give(1)
        sink.settle()
        assert sink.total("spooled") == OLD
        balance(sink)
    last = receiver.numbers.index(OLD - 1)
    among = receiver.numbers[receiver.numbers.index(OLD) : last]
    new = sum(n >= OLD for n in among)
    assert new >= (len(among) - new) * max(window // 2, 1) / 2     # and it does not hold them up
    assert sorted(receiver.numbers) == [*range(sink.next)]


def test_half_of_the_window_is_left_to_what_is_new(make):
    with both(make, window=8) as (receiver, sink):
        sink.wait(lambda: sink.counts()["unacknowledged"] == 4)     # it was 8
        receiver.plan = lambda _: LOSE
        sink.give(1, 1)
        sink.wait(lambda: {OLD, OLD + 1} <= {*receiver.numbers})
        assert sink.counts()["unacknowledged"] == 6
        receiver.plan = Slow(0)
        receiver.hang_up()
        sink.settle()
        sink.wait(drained(sink), 20)
    assert receiver.acked == {*range(OLD + 2)}


def test_a_slow_line_is_none_that_stands_still(make, monkeypatch):
    """Acknowledgements come further apart than what would be a stall elsewhere."""
    monkeypatch.setattr(fluentd, "SLOW", 0.3)
    monkeypatch.setattr(reading, "LONG", 0.3)
    with both(make, 0.45, window=8) as (receiver, sink):
        spooled = sink.total("spooled")
        sink.wait(lambda: sink.counts()["unacknowledged"] == 1, 20)     # it was 8
        for _ in range(3):
            old = len(receiver.numbers)
            sink.give(1)
            sink.settle()
            assert len(receiver.numbers) - old <= 4     # it itself, one under way, one ahead
            sink.pause(0.7)
        assert sink.total("spooled") == spooled
        receiver.plan = Slow(0.005)
        sink.wait(lambda: sink.counts()["unacknowledged"] == 4, 20)
        receiver.plan = Slow(0)
        sink.wait(drained(sink), 20)


@pytest.mark.parametrize(("limits", "empties"), [
    ({"close_above": 3000}, ACK), ({"limit": 3000}, LOSE),
])
def test_a_record_that_is_not_taken_holds_up_no_other(make, monkeypatch, limits, empties):
    """There is room for one only, and nothing new whose acknowledgement would tell about it."""
    monkeypatch.setattr(delivery, "GRACE_ONE", 0.1)
    slow = Slow(0.01)

    def plan(message):
        return slow(message) if message.entries else empties

    with Receiver(plan=plan, **limits) as receiver:
        receiver.refuse()
        with make(receiver, window=3, ack_timeout_ns=SECOND // 2) as sink:
            sink.feed(OLD // 2, 1)
            sink.give(1, size=5000)
            sink.feed(OLD // 8, 1)
            sink.settle()
            receiver.listen()
            sink.wait(lambda: not sink.counts()["spooling"])
            assert sink.spool.events > OLD / 8 + 1
            sink.wait(drained(sink))
            assert sink.counts()["rejected"] == 1
            balance(sink)
    assert receiver.acked == {*range(sink.next)} - {OLD // 2}


def test_one_that_is_not_taken_does_not_make_a_line_slow(make):
    """Nothing was acknowledged for long; but the first one that could be was, at once."""
    with Receiver(limit=3000) as receiver, make(receiver, ack_timeout_ns=60 * SECOND) as sink:
        sink.give(1, size=5000)
        sink.settle()
        assert sink.total("spooled") == 1
        sink.give(1)
        sink.settle()
        sink.wait(lambda: sink.counts()["acked"] == 1)
        assert sink.forwarder._delivery.pace.longest < fluentd.SLOW
        receiver.limit = 0
        receiver.hang_up()
        sink.wait(drained(sink))


def test_a_server_that_takes_over_is_not_slow(make):
    with Receiver() as frozen, Receiver() as well, \
            make(frozen, well, ack_timeout_ns=2 * SECOND) as sink:
        sink.wait(lambda: sink.counts()["servers_up"] == 2)
        frozen.stalled.set()
        sink.give(1)
        sink.settle()
        sink.wait(drained(sink))
        assert well.numbers == [0] and sink.total("spooled") == 1
        assert sink.forwarder._delivery.pace.longest < fluentd.SLOW
        frozen.stalled.clear()


def test_more_new_events_than_the_receiver_takes_go_into_the_spool_again(make):
    """For longer each time; and what is old gets on all the same."""
    with both(make, 0.02) as (receiver, sink):
        begun, pauses = [], []
        real = sink.forwarder._begin_spooling

        def begin(now):
            real(now)
            begun.append({n for n in receiver.numbers if n < OLD})
            pauses.append(sink.forwarder._ahead)

        sink.forwarder._begin_spooling = begin
        end = time.monotonic() + 20
        while len(begun) < 3:
            assert time.monotonic() < end
            sink.feed(1, 1)
            sink.wait(lambda: True)
            time.sleep(0.001)
        assert pauses == [0.2, 0.4, 0.8]
        assert len(begun[0]) < len(begun[1]) < len(begun[2])
        receiver.plan = Slow(0)
        sink.settle()
        sink.wait(drained(sink), 60)
        balance(sink)
        sink.wait(lambda: sink.forwarder._ahead == 0.1)
        assert sink.counts()["resent"] == 0
    assert sorted(receiver.numbers) == [*range(sink.next)]


def test_a_receiver_that_goes_again_while_both_are_sent(make):
    """What is new then stands behind what is old, and nothing comes twice that was acknowledged."""
    with both(make) as (receiver, sink):
        receiver.refuse()
        sink.give(1, 1, 1)
        sink.settle()
        assert sink.total("spooled") == OLD + 3
        receiver.plan = Slow(0)
        receiver.listen()
        sink.wait(drained(sink))
        assert sum(m.first == OLD for m in receiver.messages) == 1
    assert receiver.acked == {*range(OLD + 3)}
    assert receiver.numbers[-3:] == [OLD, OLD + 1, OLD + 2]


def test_a_sink_that_ends_while_both_are_sent(make):
    with Receiver(plan=Slow()) as receiver:
        receiver.refuse()
        with make(receiver, window=4) as sink:
            backlog(sink, receiver)
            straight(sink)
            receiver.plan = lambda _: LOSE
            sink.give(1, 1)
            sink.wait(lambda: sink.counts()["unacknowledged"] == 4)
            sink.end(patience=0.1)
            assert sink.total("spooled") == OLD + 2
            assert sink.spool.last(1) == OLD + 2
        receiver.plan = Slow(0)
        with make(receiver, window=4, first=OLD + 2) as sink:
            sink.wait(drained(sink))
    assert receiver.acked == {*range(OLD + 2)}


def test_a_spool_that_cannot_be_read_holds_up_nothing_new(make, monkeypatch):
    """No descriptors are left, or somebody has taken the right to read it."""
    with Receiver() as receiver:
        receiver.refuse()
        with make(receiver) as sink:
            sink.feed(OLD, 1)
            sink.settle()

            def fails(self):
                raise OSError(errno.EMFILE, "Too many open files")

            with monkeypatch.context() as patched:
                patched.setattr(Spool, "next", fails)
                receiver.listen()
                sink.wait(lambda: not sink.counts()["spooling"])
                sink.give(1, 1)
                sink.settle()
                assert sink.total("events") == 2 and balance(sink)["there"] == OLD
                assert sink.counts()["spool_failing"] == 1
                assert any("Too many open files" in line for line in sink.notices)
            sink.wait(drained(sink))
            assert balance(sink)["delivered"] == OLD
    assert receiver.numbers == [OLD, OLD + 1, *range(OLD)]


def test_a_spool_that_cannot_be_written_holds_up_nothing_new(make, monkeypatch):
    """Its disk is full, and the backlog long."""
    with Receiver(plan=Slow()) as receiver:
        receiver.refuse()
        with make(receiver, window=4) as sink:
            sink.feed(OLD, 1)
            sink.settle()

            def fails(self, *_, **more):
                raise OSError(errno.ENOSPC, "No space left on device")

            monkeypatch.setattr(Spool, "append", fails)
            sink.give(1, 1)
            sink.wait(lambda: any("No space left" in line for line in sink.notices))
            assert not [a for a in sink.answers if a.task.upto > OLD]
            receiver.listen()
            sink.settle()
            assert sink.total("events") == 2 and sink.spool.events > OLD / 2
            sink.wait(lambda: sink.counts()["spool_failing"] == 0)
            sink.wait(drained(sink))
            balance(sink)
    assert receiver.acked == {*range(OLD + 2)}


def test_a_short_backlog_of_a_long_outage_comes_first(make):
    with Receiver(plan=Slow()) as receiver:
        receiver.refuse()
        with make(receiver, window=4) as sink:
            sink.feed(10, 1)
            sink.pause(0.3)         # longer than AHEAD
            receiver.listen()
            while sink.counts()["spooling"]:
                sink.give(1)
                sink.pause(0.02)
            sink.settle()
    assert receiver.numbers[:10] == [*range(10)]


def test_what_the_receiver_does_not_take_holds_up_nothing_new(make):
    """All behind it is acknowledged, and the backlog is, too."""
    with both(make, limit=3000) as (receiver, sink):
        sink.give(40, size=100)
        before = time.monotonic()
        while not sink.total("events"):
            sink.wait(lambda: sink.given - len(sink.answers) < sink.forwarder.window, 2)
            sink.give(1)
            if sink.total("spooled") > OLD:
                break
        assert time.monotonic() - before < 2
        receiver.plan = Slow(0)
        sink.settle()
        sink.wait(drained(sink), 30)
        balance(sink)
    assert receiver.acked == {*range(sink.next)}


def test_a_full_disk_and_more_than_the_receiver_takes(make, monkeypatch):
    """Both take turns."""
    with both(make) as (receiver, sink):

        def fails(self, *_, **more):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(Spool, "append", fails)
            before, end = balance(sink)["there"], time.monotonic() + 2.5
            while time.monotonic() < end:
                sink.wait(lambda: sink.given - len(sink.answers) < sink.forwarder.window, 1)
                sink.give(1)
            assert sink.total("events") > 50 and balance(sink)["there"] < before - 50
            assert sink.counts()["spool_failing"] == 1
        receiver.plan = Slow(0)
        sink.settle()
        sink.wait(drained(sink))


def test_what_was_too_much_long_ago_does_not_count(make, monkeypatch):
    monkeypatch.setattr(fluentd, "AHEAD_MOST", 2.0)
    with both(make, 0.02) as (receiver, sink):
        for pause, ahead in (0, 0.2), (0, 0.4), (2.2, 0.1):
            sink.wait(lambda: not sink.counts()["spooling"])
            sink.pause(pause)
            while not sink.counts()["spooling"]:
                sink.feed(1, 1)
                time.sleep(0.001)
            assert sink.forwarder._ahead == ahead
        receiver.plan = Slow(0)
        sink.settle()
        sink.wait(drained(sink))


def test_acknowledged_before_they_were_read(make):
    """They are over at once, since the backlog ahead of them may be long."""
    with Receiver() as receiver:
        with make(receiver, ack_timeout_ns=60 * SECOND) as sink:
            receiver.stalled.set()
            sink.give(*[1] * 12)
            sink.wait(lambda: sink.total("spooled") == 12)
            sink.forwarder._backlog.retry = time.monotonic() + 60      # none is read meanwhile
            receiver.stalled.clear()
            sink.wait(lambda: sink.spool.empty)
            assert balance(sink)["delivered"] == 12
            sink.forwarder._backlog.retry = 0.0
        with make(receiver, first=12) as sink:
            sink.give(1)
            sink.settle()
    assert receiver.numbers == [*range(13)]


def test_a_sink_that_ends_when_new_events_were_too_many_again_and_again(make, monkeypatch):
    """No more comes twice than was under way, whatever was acknowledged out of order by then."""
    monkeypatch.setattr(fluentd, "AHEAD_MOST", 0.2)
    with Receiver(plan=Slow()) as receiver:
        receiver.refuse()
        with make(receiver, window=4) as sink:
            backlog(sink, receiver)
            begun = []
            real = sink.forwarder._begin_spooling
            sink.forwarder._begin_spooling = lambda now: (begun.append(now), real(now))
            end = time.monotonic() + 20
            while len(begun) < 5:
                assert time.monotonic() < end
                sink.feed(1, 1)
                time.sleep(0.001)
            sink.settle()
            sink.end()
        receiver.plan = Slow(0)
        with make(receiver, window=4, first=sink.next) as after:
            after.wait(drained(after), 30)
            balance(after)
    assert {*receiver.numbers} == {*range(sink.next)}
    assert len(receiver.numbers) - sink.next <= 4
