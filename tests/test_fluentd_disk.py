"""The Forwarder and the disk under its spool: full, slow, broken, and well again."""

import errno
import os
import threading
import time

import pytest

from gazer.sinks import backlog, fluentd
from tests.forwarding import SECOND, TX, Task, balance, drained, entries, quick, spooling
from tests.receiver import LOSE, Receiver, late

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick(monkeypatch)
    monkeypatch.setattr(fluentd, "SLOW", 0.2)


@pytest.fixture
def make(tmp_path):
    return spooling(tmp_path / "spool")


def test_a_full_disk_keeps_the_tasks_here_and_the_servers_get_them(make, monkeypatch):
    monkeypatch.setattr(backlog, "AGAIN", 0.1)
    with Receiver() as receiver:
        receiver.refuse()
        with make(receiver) as sink:
            tries = []

            def append(*_, **__):
                tries.append(time.monotonic())
                raise OSError(errno.ENOSPC, "No space left on device")

            monkeypatch.setattr(sink.spool, "append", append)
            sink.give(1, 1, 1)
            sink.wait(lambda: len(tries) >= 3)
            assert not sink.answers
            line, = (line for line in sink.notices if "No space left" in line)
            assert f"its spool {sink.spool.folder}: No space left on device; " in line
            assert sink.counts()["spool_failing"] == 1
            assert tries[2] - tries[0] > 0.15
            receiver.listen()
            sink.settle()
            assert sink.total("events") == 3 and sink.total("spooled") == 0
            assert sink.counts()["spool_failing"] == 0      # nothing is to go there any more
    assert receiver.numbers == [0, 1, 2]


def test_a_disk_that_has_room_again(make, monkeypatch):
    monkeypatch.setattr(backlog, "AGAIN", 0.1)
    with Receiver() as receiver:
        receiver.refuse()
        with make(receiver) as sink:
            real, full = sink.spool.append, [1, 1, 1]

            def append(payload, **more):
                if full:
                    full.pop()
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(payload, **more)

            monkeypatch.setattr(sink.spool, "append", append)
            sink.give(1, 1, 1)
            sink.settle()
            assert sink.total("spooled") == 3
            assert "its spool is written again" in sink.notices[-1]
            assert sink.counts()["spool_failing"] == 0
            receiver.listen()
            sink.wait(drained(sink))
    assert receiver.numbers == [0, 1, 2]


@pytest.mark.parametrize("back", [False, True])
def test_a_disk_that_is_full_between_two_chunks_of_a_task(make, monkeypatch, back):
    """What stands in the spool by then is not put there again, nor sent beside it: whether the disk
    has room again first, or the receiver is back."""
    monkeypatch.setattr(backlog, "AGAIN", 0.1)
    with Receiver() as receiver:
        receiver.refuse()
        with make(receiver) as sink:
            real, calls = sink.spool.append, []

            def append(payload, **more):
                calls.append(more["chunk"])
                if len(calls) in (2, 3) or (back and len(calls) > 1):
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(payload, **more)

            monkeypatch.setattr(sink.spool, "append", append)
            sink.give(2, 3, tags=("a", "b"))
            sink.wait(lambda: len(calls) >= 2)
            if back:
                receiver.listen()
            sink.settle()
            assert sink.total("spooled") + sink.total("events") == 10
            assert sink.total("dropped") == 0
            if not back:
                receiver.listen()
            sink.wait(drained(sink))
            assert balance(sink)["spooled"] == sink.total("spooled")
    assert sorted(receiver.numbers) == [*range(10)]
    assert len({m.chunk for m in receiver.messages}) == len(receiver.messages) == 4


def test_what_waits_to_be_sent_again_goes_into_the_spool_and_not_beside_it(make, monkeypatch):
    """It was under way while the disk was full, and its connection ended."""
    monkeypatch.setattr(backlog, "AGAIN", 0.1)
    with Receiver(plan=lambda _: LOSE) as receiver, \
            make(receiver, ack_timeout_ns=10 * SECOND) as sink:
        real, full = sink.spool.append, [1]

        def append(payload, **more):
            if full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(payload, **more)

        monkeypatch.setattr(sink.spool, "append", append)
        sink.give(1, 1)
        sink.wait(lambda: any("No space left" in line for line in sink.notices))
        assert receiver.numbers == [0, 1]
        receiver.plan = lambda _: late(0.2)
        receiver.refuse()
        sink.wait(lambda: sink.counts()["unacknowledged"] == 0)
        full.clear()
        sink.settle()
        assert sink.total("spooled") == 2
        receiver.listen()
        sink.wait(drained(sink))
        assert balance(sink)["delivered"] == 2
    assert receiver.numbers == [0, 1, 0, 1]


def test_a_slow_disk_holds_up_neither_sending_nor_appending(make):
    hanging, began = threading.Event(), threading.Event()
    with Receiver() as receiver:
        receiver.refuse()
        with make(receiver) as sink:
            real = sink.spool.sync

            def sync():
                began.set()
                assert hanging.wait(20)
                real()

            sink.spool.sync = sync
            sink.give(1)
            assert began.wait(5)
            sink.feed(50, 1)
            sink.settle()
            receiver.listen()
            sink.wait(lambda: len({*receiver.numbers}) == 51)
            hanging.set()


def test_a_sync_that_fails_is_told_and_tried_again(make):
    with Receiver() as receiver:
        receiver.refuse()
        with make(receiver) as sink:
            real, fails = sink.spool.sync, [1]

            def sync():
                if fails:
                    fails.pop()
                    raise OSError(errno.EIO, "Input/output error")
                real()

            sink.spool.sync = sync
            sink.give(1)
            sink.wait(lambda: any("Input/output" in line for line in sink.notices))
            sink.wait(lambda: not sink.counts()["spool_failing"])
            sink.wait(lambda: not sink.spool._dirty)        # though nothing new has come
            sink.give(1)
            sink.settle()
            receiver.listen()
            sink.wait(drained(sink))
    assert receiver.numbers == [0, 1]


def test_a_sync_that_failed_is_tried_again_though_nothing_more_comes(make):
    with Receiver() as receiver:
        receiver.refuse()
        with make(receiver, fsync_ns=SECOND // 50) as sink:
            real, tries = sink.spool.sync, []

            def sync():
                tries.append(1)
                if len(tries) < 3:
                    raise OSError(errno.EIO, "Input/output error")
                real()

            sink.spool.sync = sync
            sink.give(1)
            sink.wait(lambda: len(tries) >= 3, 3)
            sink.give(1)
            sink.settle()
            assert not any("written again" in line for line in sink.notices)


def test_a_spool_that_cannot_be_read_for_a_while(make, monkeypatch):
    """No descriptor left, or no right: told, and tried again; it is not the end of the sink."""
    monkeypatch.setattr(backlog, "AGAIN", 0.1)
    with Receiver() as receiver:
        receiver.refuse()
        with make(receiver) as sink:
            real, tries, flags = sink.spool.next, [], []

            def next_():
                tries.append(time.monotonic())
                flags.append(sink.counts()["spool_failing"])
                if len(tries) <= 3:
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                return real()

            monkeypatch.setattr(sink.spool, "next", next_)
            sink.give(1, 1, 1)
            sink.settle()
            receiver.listen()
            sink.wait(lambda: len(tries) > 2)
            sink.give(1)            # goes behind them meanwhile
            sink.settle()
            sink.wait(drained(sink))
            assert tries[2] - tries[0] > 0.15
            assert sum("Too many open files" in line for line in sink.notices) == 1
            assert balance(sink)["delivered"] == 4
            assert flags[:5] == [0, 1, 1, 1, 0] and not sink.counts()["spool_failing"]
    assert receiver.numbers == [0, 1, 2, 3]


@pytest.mark.parametrize("damaged", [False, True])
def test_what_was_delivered_leaves_the_disk_though_nothing_new_comes(make, tmp_path, damaged):
    """And its acknowledgements are forced to it: a host that goes down would send all again."""
    with Receiver() as receiver:
        receiver.refuse()
        with make(receiver, fsync_ns=SECOND // 50) as sink:
            sink.feed(30, 1, size=100_000)
            sink.settle()
            sink.wait(lambda: not sink.spool._dirty)    # the last append is synced
            assert sink.counts()["spool_bytes"] > 2 * MIB
            if damaged:
                for segment in (tmp_path / "spool").glob("*.seg"):
                    os.truncate(segment, 100)
            receiver.listen()
            sink.wait(drained(sink))
            sink.wait(lambda: sink.counts()["spool_bytes"] < MIB // 8)
            sink.wait(lambda: not [*(tmp_path / "spool").glob("*.seg")])
            assert balance(sink)["damaged" if damaged else "delivered"] == 30
            sink.wait(lambda: not sink.spool._unsynced)


@pytest.mark.parametrize("call", ["append", "next"])
def test_what_a_spool_did_before_it_failed_is_forced_to_the_disk(make, monkeypatch, call):
    """It made room for a record that it then can't write; it passed over damage, and then has no
    descriptor for what comes behind."""
    monkeypatch.setattr(backlog, "AGAIN", 30.0)
    with Receiver() as receiver:
        receiver.refuse()
        with make(receiver, fsync_ns=SECOND // 50) as sink:
            sink.give(1)
            sink.settle()
            sink.wait(lambda: not sink.spool._dirty)
            tries = []

            def fails(*_, **__):
                with sink.spool._lock:
                    sink.spool._keep_position()
                tries.append(1)
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

            with monkeypatch.context() as patched:
                patched.setattr(sink.spool, call, fails)
                if call == "append":
                    sink.give(1)
                else:
                    receiver.listen()
                sink.wait(lambda: tries)
                sink.wait(lambda: not sink.spool._unsynced, 3)
            sink.forwarder._again = sink.forwarder._backlog.retry = 0.0
            if call == "append":
                receiver.listen()


def test_a_spool_is_let_go_of_though_it_cannot_be_synced(make, monkeypatch):
    """The next one may be in the same process."""
    with Receiver() as receiver:
        receiver.refuse()
        with make(receiver) as sink:
            sink.give(1)
            sink.settle()
            with monkeypatch.context() as patched:
                def sync_file(_):
                    raise OSError(errno.EIO, "Input/output error")

                patched.setattr("gazer.sinks.spool.sync_file", sync_file)
                sink.end()
        receiver.listen()
        with make(receiver) as sink:
            sink.wait(drained(sink))
    assert receiver.numbers == [0]


def test_what_a_start_dropped_is_forced_to_the_disk(make, tmp_path):
    """There is less room than before, and nothing comes or goes."""
    with Receiver() as receiver:
        receiver.refuse()
        with make(receiver) as sink:
            sink.feed(30, 1, size=100_000)
            sink.settle()
        with make(receiver, max_bytes=2 * MIB, fsync_ns=SECOND // 50) as sink:
            assert sink.counts()["dropped"] > 0
            sink.wait(lambda: not sink.spool._unsynced, 3)


def test_a_block_whose_events_the_spool_takes_only_later_may_be_used_again(make, monkeypatch):
    """The chunk was given to another connection meanwhile, and is still being written there."""
    monkeypatch.setattr(backlog, "AGAIN", 0.2)
    with Receiver() as receiver, make(receiver, ack_timeout_ns=10 * SECOND) as sink:
        sink.wait(lambda: sink.counts()["servers_up"] == 1)
        receiver.stalled.set()
        real, fails = sink.spool.append, True

        def append(*args, **more):
            if fails:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **more)

        sink.spool.append = append
        size = 8 << 20
        block = bytearray(entries([0], size))
        sink.put(Task([(TX, memoryview(block), 1)], upto=1))
        sink.wait(lambda: any("No space left" in line for line in sink.notices))
        receiver.hang_up()
        sink.wait(lambda: sink.counts()["resent"] == 1 and sink.counts()["unacknowledged"] == 1)
        fails = False
        sink.settle()
        assert sink.total("spooled") == 1
        block[:] = b"z" * len(block)
        receiver.stalled.clear()
        sink.wait(drained(sink))
    assert {*receiver.numbers} == {0}
    assert receiver.messages[-1].entries[0][1]["pad"] == "x" * size
