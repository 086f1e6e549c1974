"""How many records are under way beside new tasks, on lines of all kinds: in a time of our own."""

from collections import deque
from itertools import count
from types import SimpleNamespace

import pytest

from gazer.sinks import backlog
from gazer.sinks.backlog import LONG, PERIOD, Backlog
from gazer.sinks.forward import chunk_id

WINDOW = 32
HALF = WINDOW // 2


class Line:
    """Records one after the other, `each` seconds for one, and `away` for an acknowledgement;
    every second one goes to a server that is as fast, but acknowledges later by `other`."""

    def __init__(self, monkeypatch, *, each=0.0, away=0.0, other=0.0):
        self.each, self.away, self.other = each, away, other
        self.now = self.free = 1000.0
        self.sent = 0
        self.flying = []            # chunks, and when they are acknowledged; the first one first
        self.most = self.acked = 0
        monkeypatch.setattr(backlog, "time", SimpleNamespace(monotonic=lambda: self.now))
        record = SimpleNamespace(tag=b"tag", payload=b"", events=1, compressed="")
        numbers = count()
        self.backlog = Backlog(
            SimpleNamespace(next=lambda: SimpleNamespace(**{**vars(record), "chunk": chunk_id()}),
                            ack=lambda *_: None),
            SimpleNamespace(mark=lambda: None),
            SimpleNamespace(known={}, ready=deque(), aside=deque(), expired=lambda _: False,
                            number=lambda: (next(numbers),)),
            window=WINDOW, failed=[].append)

    def send(self, chunk):
        chunk.queued = self.now
        self.free = max(self.free, self.now) + self.each
        chunk.server = self.sent % 2
        self.sent += 1
        self.flying.append((chunk, self.free + self.away + chunk.server * self.other))
        self.flying.sort(key=lambda flying: flying[1])

    def go_on(self, seconds):
        """`most`: records under way meanwhile; `acked`: how many were acknowledged."""
        end = self.now + seconds
        self.most = self.acked = 0
        while self.now < end:
            while (chunk := self.backlog.beside()) is not None:
                self.send(chunk)
            self.most = max(self.most, len(self.flying))
            chunk, self.now = self.flying.pop(0)
            self.backlog.settled(chunk, delivered=True)
            self.acked += 1


@pytest.fixture
def line(monkeypatch):
    def made(**more):
        line = Line(monkeypatch, **more)
        line.backlog.begin_beside(line.now)
        return line

    return made


def test_a_fast_line(line):
    fast = line(each=0.001, away=0.02)
    fast.go_on(2)
    assert fast.most == HALF and fast.acked > 1000


@pytest.mark.parametrize("away", [0.7, 1.5, 5.0])
def test_a_receiver_that_is_far_away_or_acknowledges_late_is_not_slow(line, away):
    far = line(away=away)
    far.go_on(4 * PERIOD)
    assert far.most == HALF
    assert far.acked > 4 * PERIOD / away * HALF / 3


def test_one_of_two_that_acknowledges_late_is_not_slow_either(line):
    both = line(away=0.01, other=2.0)
    both.go_on(4 * PERIOD)
    assert both.most == HALF
    assert both.acked > 4 * PERIOD / 2.0 * HALF * 2 / 3     # half of them are there at once


@pytest.mark.parametrize("each", [0.05, 0.3, 0.9, 1.0, 4.0])
def test_on_a_slow_line_nothing_new_waits_for_more_than_one_or_two(line, each):
    slow = line(each=each, away=0.1)
    slow.go_on(100)
    assert slow.acked > 80 / each           # and none of it is left unused
    assert slow.most <= max(2, 2 + LONG / each)


def test_what_was_under_way_while_there_was_nothing_new_does_not_count(line):
    slow = line(each=1.0)
    for _ in range(WINDOW):
        slow.send(slow.backlog.next())
    slow.backlog.begin_beside(slow.now)
    slow.go_on(WINDOW + 1)
    slow.go_on(60)
    assert slow.most <= 3


def test_a_line_that_becomes_slower_little_by_little(line):
    slower = line(each=0.02)
    for step in range(50):
        slower.each = 0.02 * (1 + step)
        slower.go_on(5)
    slower.go_on(PERIOD)
    slower.go_on(60)
    assert slower.each > 0.9 and slower.most <= 3


def test_a_line_that_is_fast_again(line):
    again = line(each=4.0)
    again.go_on(20)
    assert again.most <= 2
    again.each = 0.01
    again.go_on(5)
    assert again.most == HALF


def test_a_moment_in_which_nothing_moves(line):
    well = line(away=0.7)
    well.go_on(10)
    well.free = well.now + 20
    well.go_on(30)
    well.go_on(10)
    assert well.most == HALF
