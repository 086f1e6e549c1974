"""The Forwarder against receivers that do what they should, and all that they should not."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gazer.errors import OutputError
from gazer.sinks import delivery, forward, servers
from gazer.sinks.files import GaveUpError
from gazer.sinks.fluentd import Forwarder
from tests.conftest import eventually
from tests.forwarding import SECOND, TX, Sink, Task, quick
from tests.receiver import ACK, LOSE, Receiver, late


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


# --- away, denied, given up ----------------------------------------------------------------------


def test_over_files_the_run_waits_for_a_receiver_and_says_so(monkeypatch):
    monkeypatch.setattr(servers, "REMIND", 0.3)
    monkeypatch.setattr(delivery, "REMIND", 0.3)
    with Receiver() as receiver:
        receiver.refuse()
        with Sink(receiver, live=False) as sink:
            sink.give(3, 4)
            sink.wait(lambda: len(sink.notices) >= 3)
            name = f"central: {receiver.address}"
            assert sink.notices[0].startswith(f"{name}: Connection refused; it is tried again")
            assert "0 events" not in sink.notices[0]
            assert sink.notices[-1].startswith(
                f"{name}: Connection refused; it is tried again, for ")     # how long by now
            assert sink.notices[-1].endswith("7 events wait")
            assert len(sink.notices) < 6
            receiver.listen()
            sink.settle()
            assert sink.notices[-1].startswith(f"{name} is back after ")
    assert receiver.numbers == [*range(7)]


@pytest.mark.parametrize(("waits", "told"), [(0, ""), (1, "1 event waits"), (2, "2 events wait")])
def test_what_waits_is_told_when_anything_does(waits, told):
    with Receiver(shared_key="right") as receiver, \
            Sink(receiver, shared_key="right") as sink:
        receiver.refuse()
        receiver.hang_up()
        if waits:
            sink.give(waits)
        sink.wait(lambda: sink.forwarder._waiting() == told)
        sink.wait(lambda: sink.notices)
        assert "0 event" not in sink.notices[0]
        receiver.listen()
        sink.settle()


def test_credentials_that_are_rejected_end_a_run_over_files():
    with Receiver(shared_key="right") as receiver, \
            Sink(receiver, shared_key="wrong", live=False) as sink:
        sink.give(3)
        sink.settle()
        [fault] = sink.faults
        assert "shared_key mismatch" in fault and receiver.address in fault
        assert not sink.notices         # least of all that it is tried again
        assert isinstance(sink.answers[0].failure, OutputError)
        assert str(sink.answers[0].failure) == fault
        assert sink.total("events") == sink.total("dropped") == 0
        sink.give(2)        # what comes after
        sink.settle()
        assert isinstance(sink.answers[1].failure, OutputError)
        pings = len(receiver.pings)
        time.sleep(0.3)
        assert len(receiver.pings) == pings         # that was it
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


def test_a_mistake_of_ours_is_an_answer_and_not_a_silent_thread(monkeypatch):
    with Receiver() as receiver, Sink(receiver) as sink:
        monkeypatch.setattr(forward, "message", lambda *_, **__: 1 / 0)
        sink.give(1, 1)
        sink.settle()
        sink.give(1)
        sink.settle()
        assert {type(a.failure) for a in sink.answers} == {ZeroDivisionError}
        sink.end()


# --- HUP -----------------------------------------------------------------------------------------


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


# --- a receiver that is a process ----------------------------------------------------------------


class Process:
    """tests.receiver as a program, whose log outlives it."""

    def __init__(self, log, port=0, unix=""):
        self.log = log
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.receiver", "--port", str(port), "--unix", unix,
             "--log", str(log)],
            stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
        self.address = self._process.stdout.readline().strip()
        self.port = 0 if unix else int(self.address.rpartition(":")[2])

    @property
    def numbers(self):
        return {int(line) for line in self.log.read_text().splitlines()}

    def kill(self, number):
        self._process.send_signal(number)
        if number == signal.SIGSTOP:    # which is when all its threads have stopped
            tasks = f"/proc/{self._process.pid}/task"
            eventually(lambda: all(
                Path(tasks, task, "stat").read_text().rpartition(")")[2].split()[0] == "T"
                for task in os.listdir(tasks)))

    def end(self):
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(20) == 0
        self._process.stdout.close()

    def die(self):
        self._process.kill()
        self._process.wait(20)
        self._process.stdout.close()


def test_a_receiver_that_is_killed_and_one_that_is_frozen(tmp_path):
    log = tmp_path / "log"
    process = Process(log)
    with Sink(process.address, ack_timeout_ns=SECOND // 2) as sink:
        sink.feed(20, 10)
        sink.give(10, 10, 10)
        process.die()
        process = Process(log, process.port)
        sink.settle()
        process.kill(signal.SIGSTOP)
        sink.give(10, 10)
        sink.wait(lambda: any("without acknowledgement" in line or "no answer" in line
                              for line in sink.notices))
        assert sink.given - len(sink.answers) == 2
        process.kill(signal.SIGCONT)
        sink.settle(20)
        assert sink.total("events") == 250
    process.end()
    assert process.numbers == {*range(250)}
