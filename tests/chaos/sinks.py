"""A whole sink with a fluentd output: one process after the other over the same rings and ledger.

    world = World(folder, [receiver], spool=True)
    world.begin()                       # a sink, in a process of its own
    world.feed_for(0.05, most=300)      # events, as a worker would
    world.kill()                        # and what it left is looked at
    world.finish()                      # another sink delivers the rest; the account

What a kill leaves is the rings, the ledger and the spool; the test has all three, and what the
receivers have had.
"""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import time
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import msgpack

from gazer.config.forward import Forward, Server
from gazer.counters import SINK, Slot, ledger_bytes, ledger_create
from gazer.event import TAGS
from gazer.ring import Ring, ring_bytes
from gazer.sinks.files import FileOutput
from gazer.sinks.fluentd import Forwarder
from gazer.sinks.link import Link
from gazer.sinks.merge import Merge
from gazer.sinks.outputs import Outputs
from gazer.sinks.process import pump
from gazer.sinks.spool import Spool
from gazer.sinks.threads import Hand
from gazer.testing import MARK_END, Writer, event_entry
from tests.conftest import eventually
from tests.receiver import Receiver
from tests.test_merge import MSGPACK, TEXT, line

SECOND = 10**9
RUN = 7
WINDOW = 4
LIMIT = 2000            # octets of a task
LEAST = 35              # ... of an entry
MIB = 1 << 20


def event_id(n):
    return f"chaos:{RUN:x}:0:{n + 1}:0"


def packed(n, pad=0):
    record = {"n": n, "event_id": event_id(n), "pad": "x" * pad}
    return msgpack.packb([TAGS[tag_of(n)], 5, record])


def tag_of(n):
    """Two tags, so that a task has two chunks, of which one may be acknowledged alone."""
    return int(n % 3 == 0)


class World:
    """`receivers`: whom the sink sends to, as `servers` if that is given.  `beside`: there is a
    text output, too.  `most`: what the spool may take."""

    def __init__(self, folder, receivers, *, servers=(), spool=False, beside=False, ring=1 << 22,
                 pad=0, limit=LIMIT, window=WINDOW, most=64 * MIB, **settings):
        self.folder = Path(folder)
        self.receivers = [*receivers]
        self.spool = str(self.folder / "spool") if spool else ""
        self.beside = self.folder / "beside" if beside else None
        self.pad, self.limit, self.most = pad, limit, most
        settings.setdefault("ack_timeout_ns", SECOND // 2)
        settings.setdefault("connect_timeout_ns", SECOND)
        self.settings = Forward(
            servers=tuple(servers) or tuple(Server(r.address) for r in receivers), window=window,
            **settings)
        self.memory = mmap.mmap(-1, ring_bytes(ring))
        self.ledger = mmap.mmap(-1, ledger_bytes(1))
        ledger_create(self.ledger)
        self.bell = os.eventfd(0, os.EFD_NONBLOCK)
        self.writer = Writer(Ring(self.memory, create=ring), self.bell)
        self.put = 0
        self.pid = 0
        self.kills = self.at_work = self.repeated = self.gone = 0

    def close(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.bell)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # --- the sink ------------------------------------------------------------------------------

    def begin(self):
        self.pid = os.fork()
        if self.pid == 0:
            code = 9
            try:
                # Else a connection that a receiver closes would be held open by us.
                os.closerange(3, self.bell)
                os.closerange(self.bell + 1, 1 << 16)
                self._run()
                code = 0
            except BaseException as error:
                self._say(f"FAILED: {error!r}")
            finally:
                os._exit(code)

    def _say(self, text):
        with (self.folder / "said").open("a") as file:
            file.write(text + "\n")

    @property
    def said(self):
        path = self.folder / "said"
        return path.read_text().splitlines() if path.exists() else []

    def _run(self):
        slot = Slot(self.ledger, 0)
        slot.open(os.getpid())
        spool = None
        if self.spool:
            spool = Spool(self.spool, max_bytes=self.most, segment_bytes=MIB // 8,
                          notice=self._say, run=RUN)
        forwarder = Forwarder(self.settings, spool=spool, bell=self.bell, notice=self._say,
                              fault=self._say, live=True, name="central", run=RUN)
        files = [Link(forwarder, spool=spool, capacity=max(4000, self.limit), limit=self.limit,
                      queue=16 * MIB, flush_after=0.005, most=self.most, run=RUN)]
        if self.beside:
            files.append(FileOutput(str(self.beside), lines=True, notice=self._say, lasting=True,
                                    giving_up=lambda: False, waits=lambda _: None,
                                    place=slot.output_place(1)))
        outputs = Outputs(
            files=files, forms=[MSGPACK, TEXT][: len(files)], lines=[False, True][: len(files)],
            slot=slot, capacity=4000, notice=self._say, fault=self._say,
            hand=partial(Hand, bell=self.bell))
        merge = Merge(rings=[Ring(self.memory)], bells=[-1], bell=self.bell, slot=slot,
                      blocks=outputs.blocks)
        outputs.attach(merge)
        pump(SimpleNamespace(slot=slot), merge, outputs, None, 0.3)
        outputs.close()

    def feed(self, most):
        """As many events as there is room for, and no more than `most`; how many."""
        begun = self.put
        while self.put < begun + most:
            n = self.put
            if not self.writer.write(event_entry(
                    1 + n, n, [line(n), b"", packed(n, self.pad)], tag=tag_of(n))):
                break
            self.put += 1
        if self.put > begun:
            self.writer.publish()
            self.writer.mark(self.put + 1, 0)
            self.writer.wake()
        return self.put - begun

    def feed_for(self, seconds, most):
        """For so long, evenly; the events that had room."""
        begun, put = time.monotonic(), self.put
        while (passed := time.monotonic() - begun) < seconds:
            self.feed(int(most * passed / seconds) - (self.put - put))
            time.sleep(0.001)
        return self.put - put

    def wait(self, what, seconds=20.0):
        end = time.monotonic() + seconds
        while not what():
            done, _ = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.pid = 0
                raise AssertionError(("the sink has ended", self.said))
            assert time.monotonic() < end, (what.__doc__, self.put, self.output(), self.said[-9:])
            time.sleep(0.002)

    # --- what there is -------------------------------------------------------------------------

    def output(self, number=0):
        return Slot(self.ledger, 0).read_output(number)

    @property
    def acked(self):
        """All that a receiver has acknowledged."""
        return set().union(*(r.acked for r in self.receivers))

    def spooled(self):
        """What is to be read in the spool now, and up to which event it has this run's.  Of a copy,
        since who opens a spool writes to it."""
        found, upto = [], 0
        if self.spool and os.path.isdir(self.spool):
            copy = self.folder / "copy"
            shutil.copytree(self.spool, copy)
            spool = Spool(str(copy), max_bytes=1 << 40, segment_bytes=MIB // 8,
                          notice=[].append, run=RUN)
            self.gone = sum(spool.account.gone)
            try:
                while (record := spool.next()) is not None:
                    entries = msgpack.Unpacker()
                    entries.feed(record.payload)
                    found += [entry[1]["n"] for entry in entries]
                assert spool.counts()["damaged"] == 0
                upto = spool.last(RUN)
            finally:
                spool.close()
                shutil.rmtree(copy)
        return found, upto

    @property
    def most_in_hand(self):
        """Events that may have been sent and not been settled by a commit."""
        behind = max(self.settings.window, 16) if self.spool else 0
        return (self.settings.window + behind) * (self.limit // LEAST)

    # --- kills ---------------------------------------------------------------------------------

    def kill(self):
        """Kill the sink; what it leaves."""
        os.kill(self.pid, signal.SIGKILL)
        self.died()

    def died(self):
        """The sink was killed: all it was through with is acknowledged, spooled, or counted."""
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        assert os.WIFSIGNALED(status), self.said
        self.kills += 1
        eventually(self._taken)
        output, settled = self.output(), Slot(self.ledger, 0).read(SINK)["settled"]
        spooled, upto = self.spooled()
        done = output["done"]
        assert settled <= self.put and done <= self.put
        missing = {*range(done)} - self.acked - {*spooled}
        # What the spool dropped a successor hears from the spool.
        gone = output["dropped"] + max(output["spool_dropped"] + output["spool_damaged"], self.gone)
        assert len(missing) <= gone, (sorted(missing)[:10], output)
        assert output["events"] + output["spooled"] + output["dropped"] >= done
        # A successor takes what is neither settled nor known to stand in the spool.
        again = {n for n in (*(n for r in self.receivers for n in r.numbers), *spooled)
                 if n >= max(done, upto)}
        assert len(again) <= self.most_in_hand, (len(again), output)
        self.repeated += len(again)
        self.at_work += done < self.put

    def _taken(self):
        """receivers have read what a dead sink had given the kernel"""
        return not any(r.open for r in self.receivers if isinstance(r, Receiver))

    # --- the end -------------------------------------------------------------------------------

    def finish(self, seconds=30.0):
        """The sink that runs (or another one) delivers everything, and ends; the account, of which
        the number of events that were dropped and counted."""
        if not self.pid:
            self.begin()
        self.wait(self.delivered, seconds)
        return self.stop()

    def delivered(self):
        """nothing waits any more"""
        output = self.output()      # whose `delivered` may be some tenths of a second old
        return output["done"] == self.put and output["spool_found"] + output["spooled"] == (
            output["delivered"] + output["spool_dropped"] + output["spool_damaged"])

    def stop(self, seconds=20.0):
        """The sink ends as in a run that is told to."""
        Slot(self.ledger, 0).ask(drain=True)
        self.writer.mark(MARK_END, 0)
        self.writer.wake()
        end = time.monotonic() + seconds
        while not (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            assert time.monotonic() < end, (self.output(), self.said[-9:])
            time.sleep(0.002)
        self.pid = 0
        assert ended[1] == 0, (ended, self.said)
        return self.account()

    def account(self):
        """captured = delivered + spooled + counted drops, by the ledger; and what the ledger takes
        for delivered, receivers have acknowledged."""
        output, sink = self.output(), Slot(self.ledger, 0).read(SINK)
        assert sink["events"] == sink["settled"] == output["done"] == self.put
        assert output["events"] + output["spooled"] + output["dropped"] == self.put, output
        assert output["spool_found"] + output["spooled"] == (
            output["delivered"] + output["spool_dropped"] + output["spool_damaged"]
            + output["spool_events"]), output
        left, _ = self.spooled()
        assert len(left) == len({*left}) == output["spool_events"]
        gone = output["dropped"] + output["spool_dropped"] + output["spool_damaged"]
        missing = {*range(self.put)} - self.acked - {*left}
        assert len(missing) <= gone, (sorted(missing)[:10], gone, output)
        if not self.kills:      # then the ledger knows it to the event
            assert len(missing) == gone, (len(missing), output)
        if self.beside:
            wrote = [int(n) for n in self.beside.read_text().splitlines()]
            assert wrote == sorted({*wrote})
            assert self.put - len(wrote) == self.output(1)["dropped"]
        return gone

    def repeats(self):
        """How often events came again in another chunk, which only a killed sink's successor may
        do; all that came twice is known by its event_id, and one chunk is always the same."""
        chunks, ids = {}, defaultdict(set)
        by_id = {}
        for receiver in self.receivers:
            for message in getattr(receiver, "messages", ()):
                assert chunks.setdefault(message.chunk, message.plain) == message.plain
                for _, record in message.entries:
                    assert record["event_id"] == event_id(record["n"])
                    assert by_id.setdefault(record["event_id"], record) == record
                    ids[record["n"]].add(message.chunk)
        return Counter({n: len(chunks) - 1 for n, chunks in ids.items()})


def file_has(world):
    """The text output has everything, whatever becomes of the other one."""
    def it() -> bool:
        """the file beside it has all that was captured"""
        return world.output(1)["done"] == world.put

    world.wait(it, 3.0)     # most often it has at once; the machine may be busy


def everything(world, receivers):
    """It all arrived, and nothing in two chunks."""
    assert world.finish() == 0
    assert set().union(*({*r.numbers} for r in receivers)) == {*range(world.put)}
    assert not any(world.repeats().values())
