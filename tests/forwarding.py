"""Drives a Forwarder as the sink's loop does: tasks in, answers out, lines kept."""

import os
import select
import time

import msgpack

from gazer.config.forward import Forward, Server, SpoolSettings
from gazer.sinks import servers
from gazer.sinks.fluentd import Forwarder
from gazer.sinks.spool import Spool

SECOND = 10**9
TX = "dns-gazer.dns.tx"


class Task:
    """What the Forwarder knows of the sink's tasks."""

    def __init__(self, parts=(), upto=0, *, reopen=False):
        self.parts = parts
        self.upto = upto
        self.reopen = reopen
        self.events = sum(part[2] for part in parts)
        self.stats = 0


def entries(numbers, size=10):
    return b"".join(
        msgpack.packb([msgpack.ExtType(0, bytes(8)), {"n": n, "pad": "x" * size}])
        for n in numbers)


class Sink:
    """`to`: receivers, addresses or Server; the numbers of events go up from 0."""

    def __init__(self, *to, spool=None, live=True, run=1, first=0, fsync_ns=SECOND // 2,
                 **settings):
        settings.setdefault("ack_timeout_ns", 3 * SECOND)
        settings.setdefault("connect_timeout_ns", 3 * SECOND)
        settings.setdefault("window", 32)
        self.bell = os.eventfd(0, os.EFD_NONBLOCK)
        self.notices, self.faults = [], []
        self.given = self.answered = 0
        self.next = first
        self.answers = []
        self.spool = spool
        self.forwarder = Forwarder(
            Forward(servers=tuple(
                s if isinstance(s, Server) else Server(getattr(s, "address", s)) for s in to
            ), spool=SpoolSettings(fsync_ns=fsync_ns), **settings),
            spool=spool, bell=self.bell, notice=self.notices.append, fault=self.faults.append,
            live=live, name="central", run=run,
        )

    def numbers(self, count):
        first = self.next
        self.next += count
        return range(first, first + count)

    def give(self, *counts, size=10, tags=(TX,)):
        """A task for each count, with so many events for each tag."""
        for count in counts:
            self.put(Task([(tag, memoryview(entries(self.numbers(count), size)), count)
                           for tag in tags], upto=self.next))

    def put(self, task):
        assert self.given - len(self.answers) < self.forwarder.window, "more than it may have"
        self.given += 1
        self.forwarder.give(task)

    def feed(self, count, each, **more):
        """So many tasks, as the window has room."""
        for _ in range(count):
            self.wait(lambda: self.given - len(self.answers) < self.forwarder.window, 30)
            self.give(each, **more)

    def wait(self, until, seconds=10.0):
        """Take answers until that is so."""
        end = time.monotonic() + seconds
        while True:
            while (answer := self.forwarder.take()) is not None:
                self.answers.append(answer)
            if until():
                return
            left = end - time.monotonic()
            assert left > 0, (self.forwarder.counts(), self.notices)
            if select.select([self.bell], [], [], min(left, 0.02))[0]:
                os.eventfd_read(self.bell)

    def settle(self, seconds=10.0):
        """Wait until all is answered."""
        self.wait(lambda: len(self.answers) == self.given, seconds)
        return self.answers

    def pause(self, seconds):
        """Let things happen."""
        over = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() > over)

    def turns(self, monkeypatch):
        """How often the thread goes round in half a second."""
        real, turns = Forwarder._poll, []

        def poll(self, timeout):
            turns.append(timeout)
            return real(self, timeout)

        with monkeypatch.context() as patched:
            patched.setattr(Forwarder, "_poll", poll)
            self.pause(0.5)
        return len(turns)

    def counts(self):
        return self.forwarder.counts()

    def total(self, what):
        return sum(getattr(answer, what) for answer in self.answers)

    def end(self, patience=0.0, seconds=10.0):
        self.forwarder.end(patience)
        self.wait(self.forwarder.finished.is_set, seconds)
        self.wait(lambda: len(self.answers) == self.given, 1)
        assert self.forwarder.join(5)
        os.close(self.bell)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            self.forwarder.end(0)
            self.forwarder.join(5)
        elif not self.forwarder.finished.is_set():
            self.end()


def quick(monkeypatch):
    """Short backoffs, so that tests are too."""
    monkeypatch.setattr(servers, "FIRST", 0.02)
    monkeypatch.setattr(servers, "MOST", 0.1)


# --- with a spool --------------------------------------------------------------------------------


def spooling(folder):
    """What opens the spool (again), and a sink with it."""

    def opened(*to, max_bytes=64 << 20, drop="oldest", **more):
        spool = Spool(str(folder), max_bytes=max_bytes, drop=drop, segment_bytes=1 << 20,
                      notice=[].append)
        return Sink(*to, spool=spool, **more)

    return opened


def balance(sink):
    counts = sink.counts()
    assert counts["found"] + counts["spooled"] == (
        counts["delivered"] + counts["dropped"] + counts["damaged"] + counts["there"]), counts
    return counts


def drained(sink):
    return lambda: sink.spool.empty and not sink.counts()["unacknowledged"]
