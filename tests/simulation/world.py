"""One sink after the other over one spool and one ledger, in a world of dice; what must hold.

    World(seed, folder).run()       # AssertionError, with what it was like, if anything does not

The sink's loop is a few lines here (`_sink`), since what is looked at is the Forwarder, the spool
and Link; they are real, and so are Connection and the ledger.  The Forwarder's own loop runs in our
thread: wherever it would wait in poll(2), the world goes on instead.  Threads are none: a turn of
the one that syncs is taken now and then, between any two steps of the other one.
"""

import itertools
import mmap
import os
import random
import threading
from types import SimpleNamespace

import msgpack
import pytest

from gazer.config.forward import Forward, SpoolSettings
from gazer.config.forward import Server as ServerSettings
from gazer.counters import Slot, ledger_bytes, ledger_create
from gazer.errors import OutputError
from gazer.sinks import (
    account,
    backlog,
    chunks,
    connection,
    delivery,
    fluentd,
    forward,
    link,
    servers,
    syncing,
)
from gazer.sinks.connection import Connection
from gazer.sinks.delivery import ASIDE, Delivery
from gazer.sinks.fluentd import Forwarder
from gazer.sinks.link import Link
from gazer.sinks.spool import Spool
from tests.forwarding import TX, Task, entries
from tests.simulation.clock import Clock
from tests.simulation.disk import MODES, Disk
from tests.simulation.network import BASE, KEY, Mood, Net

SECOND = 10**9
TAGS = (TX, "dns-gazer.dns.record")
READABLE, WRITABLE = 1, 4       # POLLIN, POLLOUT
ACK_TIMEOUT = 3.0
KINDS = ("well", "away", "hang", "frozen", "late", "twice", "deny", "odd", "full", "limit",
         "limit", "close_above", "close_above", "closing", "no empties")
TAME = 7            # of these, for which nothing is dropped
QUIET = 0.9         # seconds that an acknowledgement may be late without a doubt
LONGEST = 900.0     # seconds in which all must be over once all is well
IDLE = 300          # turns without anything moving, and
RATE = 30           # ... a second
NEVER = 1e9


class Killed(BaseException):
    """The sink was killed here."""


class Thread:
    """The loop is called, and a turn of the one that syncs is."""

    def __init__(self, **_):
        pass

    def start(self):
        pass

    def join(self, _=None):
        pass


class Event(threading.Event):
    """Nobody waits for it: whose turn it is, the world says."""

    def wait(self, _=None):
        return self.is_set()


class Simulated(Forwarder):
    """Whose loop is called, and which waits by asking the world."""

    world = None

    def _poll(self, timeout):
        return self.world.poll(timeout)

    def _settled(self, chunk, delivered):
        self.world.settled(chunk, delivered)
        super()._settled(chunk, delivered)

    def sync(self):
        """A turn of the thread."""
        if self._syncing.marked:
            self._syncing.turn()


class World:
    """tame: nothing happens for which an event may be dropped, so none is."""

    def __init__(self, seed, folder):
        self.seed = seed
        dice = self.dice = random.Random(seed)
        self.folder = os.path.join(str(folder), f"spool-{seed}")
        self.clock = Clock()
        self.disk = Disk(dice)
        self.tame = dice.random() < 0.3
        count = dice.choice([1, 1, 2, 3])
        keepalive = dice.random() < 0.7
        key = not keepalive or dice.random() < 0.3
        self.net = Net(self.clock, dice, count, key=key, keepalive=keepalive,
                       room=dice.choice([500, 5000, 1 << 20]))
        self.most = dice.choice([1 << 30] if self.tame else [1 << 30, 20_000, 60_000])
        self.drop = dice.choice(["oldest", "newest"])
        self.segment = dice.choice([600, 4000, 50_000])
        self.killing = dice.choice([0.0, 0.0, 0.0005, 0.003])
        self.stopping = dice.random() < 0.3
        self.damaging = not self.tame and dice.random() < 0.2
        self.settings = Forward(
            servers=tuple(
                ServerSettings(f"127.0.0.1:{BASE + i}", weight=dice.choice([60, 60, 20, 0]),
                               standby=dice.random() < 0.2) for i in range(count)),
            compress=dice.choice(["none", "none", "gzip"]).replace("none", ""),
            shared_key=KEY if key else "", window=dice.choice([1, 2, 4, 8]),
            ack_timeout_ns=int(ACK_TIMEOUT * SECOND), connect_timeout_ns=3 * SECOND,
            expire_ns=0 if self.tame or dice.random() < 0.7 else dice.choice([4, 20]) * SECOND,
            spool=SpoolSettings(fsync_ns=SECOND // 2))
        self.spooled = dice.random() < 0.85
        self.total = dice.choice([60, 300, 900] if self.most > 1 << 20 else [300, 900])
        self.largest = dice.choice([3, 12])
        self.ahead = dice.choice([0.05, fluentd.AHEAD, NEVER])      # seconds of spooling
        self.pad = dice.choice([10, 200, 2000] if self.most > 1 << 20 else [500, 2000])
        self.lasting = dice.choice([2.0, 20.0, 100.0])   # seconds at most, of a mood
        self.kind = dice.choice(KINDS)                  # of which there is most
        self.length = dice.choice([10.0, 60.0, 200.0])   # seconds until all is well
        self.well = False

        self.put = self.next = 0    # events that were captured, and given on
        self.first = 0              # ... of earlier runs of the sensor
        self.run_number = 1
        self.turns = self.kills = self.stops = 0
        self.beside = 0             # events that were sent while there was more in the spool
        self.parted = False         # they were to be
        self.gone = 0               # events that earlier runs counted as lost
        self.had = set()            # those of tasks that servers have, as the Forwarder says, and
        self.lost = set()           # ... that were rejected, too old, or refused by a full spool
        self.forwarder = self.spool = self.slot = None
        self.said = []
        self.ledger()

    # --- what happens by itself ----------------------------------------------------------------

    def begin(self):
        """Let the world's wheels turn."""
        dice = self.dice
        self.clock.at(self.length, self.calm)
        self.clock.at(0.0, self.capture)
        for host in self.net.hosts:
            self.clock.at(dice.uniform(0, 2), self.change, host)
        if self.spooled:
            self.clock.at(dice.uniform(0, 10), self.change_disk)

    def capture(self):
        left = self.total - self.put
        if self.well:
            self.well_since = self.clock.now    # there was more to come
        self.put += min(left, self.dice.randint(1, self.largest * 4))
        if left > 0:        # evenly, until all is well or a little longer
            pace = 2 * self.length * 2 * self.largest / self.total
            self.clock.at(self.dice.uniform(0, 2 * pace if self.well else pace), self.capture)

    def calm(self):
        """From now on all is well."""
        self.well = True
        self.well_since = self.clock.now
        self.disk.mode, self.disk.bad = "well", 0.0
        for host in self.net.hosts:
            host.set(Mood())

    def change(self, host):
        if self.well:
            return
        dice = self.dice
        mood = Mood()
        kind = dice.choice(KINDS[:TAME] if self.tame else KINDS)
        if dice.random() < 0.6 and (not self.tame or self.kind in KINDS[:TAME]):
            kind = self.kind
        if kind == "away":
            mood.reach = "refuse"
        elif kind == "hang":
            mood.reach = "hang"
        elif kind == "frozen":
            mood.frozen = True
        elif kind == "late":
            mood.actions = {"late": 3, "ack": 1}
            mood.late = QUIET if self.tame else dice.choice([QUIET, 2 * ACK_TIMEOUT])
        elif kind == "twice":
            mood.actions = {"twice": 1, "ack": 1}
        elif kind == "deny":
            mood.deny = True
        elif kind == "full":
            mood.full = True
        elif kind == "limit":
            mood.limit = dice.choice([130, 200, 800])
        elif kind == "close_above":
            mood.close_above = dice.choice([130, 200, 800])
        elif kind == "closing":
            mood.actions = {"ack and close": 1, "ack": 2}
        elif kind == "odd":
            mood.actions = {name: dice.random() ** 3 for name in (
                "ack", "lose", "twice", "wrong", "close", "garbage", "late", "ack and close")}
            mood.late = 2 * ACK_TIMEOUT
        elif kind == "no empties":
            mood.empties = False
            mood.limit = dice.choice([0, 200, 400])
        if dice.random() < 0.2:
            mood.slow = dice.choice([200, 3000])
        host.set(mood)
        self.clock.at(dice.uniform(0.1, self.lasting), self.change, host)

    def change_disk(self):
        if self.well:
            return
        modes = [*MODES] + ["well"] * 3
        self.disk.mode = self.dice.choice(modes)
        self.disk.bad = 0.02 if self.damaging and self.disk.mode == "well" else 0.0
        self.clock.at(self.dice.uniform(0.1, 12), self.change_disk)

    # --- lives of the sink ---------------------------------------------------------------------

    def run(self):
        with pytest.MonkeyPatch.context() as patch:
            for module in (account, backlog, chunks, connection, delivery, fluentd, forward, link):
                patch.setattr(module, "time", self.clock)
            patch.setattr(connection, "socket", self.net)
            patch.setattr(servers, "random", self.dice)
            for module in (fluentd, syncing):
                patch.setattr(module, "threading", SimpleNamespace(Thread=Thread, Event=Event))
            patch.setattr(fluentd, "AHEAD", self.ahead)
            patch.setattr(fluentd, "AHEAD_MOST", max(self.ahead, fluentd.AHEAD_MOST))
            self.disk.install(patch)
            self.watch(patch)
            for owner, name in ((Spool, "append"), (Spool, "next"), (Spool, "ack"), (Spool, "sync"),
                                (Connection, "queue"), (Connection, "_write_plain"),
                                (Delivery, "_acked"), (Forwarder, "_begin_spooling"),
                                (Forwarder, "_go_straight")):
                self.tap(patch, owner, name)
            self.begin()
            try:
                while self.live():
                    pass
                self.judge()
            except Exception as error:
                raise AssertionError(
                    f"seed {self.seed}: {error!r}", self.story(), self.said[-12:]) from error

    def watch(self, patch):
        """Which chunks do not come from the spool."""
        real = Delivery._fly

        def flies(itself, server, chunk, now):
            if chunk.work is not None:
                task = chunk.work.record is None
                (self.net.straight.add if task else self.net.straight.discard)(chunk.id)
            real(itself, server, chunk, now)
            if task_beside(self.forwarder, chunk):
                self.beside += chunk.events

        patch.setattr(Delivery, "_fly", flies)
        go = Forwarder._go_straight

        def goes(itself, now):
            self.parted |= not itself._backlog.all_read
            go(itself, now)

        patch.setattr(Forwarder, "_go_straight", goes)

    def tap(self, patch, owner, name):
        """The sink may die ahead of this step or behind it, and another thread may sync."""
        real = getattr(owner, name)

        def tapped(itself, *args, **more):
            self.step(owner is Spool and name != "sync")
            before = itself.account.refused.events if name == "append" else 0
            result = real(itself, *args, **more)
            if name == "append" and itself.account.refused.events > before:
                self.lost.update(numbers(args[0], more["compressed"]))
            self.step(owner is Spool and name != "sync")
            return result

        patch.setattr(owner, name, tapped)

    def step(self, syncs):
        if self.forwarder is None or self.well:
            return
        if self.dice.random() < self.killing:
            raise Killed
        if syncs and self.dice.random() < 0.05:
            self.forwarder.sync()

    def ledger(self):
        """A run of the sensor begins."""
        self.memory = mmap.mmap(-1, ledger_bytes(1))
        ledger_create(self.memory)

    def live(self):
        """One sink, until it is killed or has ended; False: that was all."""
        self.forwarder = None
        try:
            if self.spooled:
                self.spool = Spool(self.folder, max_bytes=self.most, drop=self.drop,
                                   segment_bytes=self.segment, notice=self.said.append,
                                   run=self.run_number)
        except OutputError as error:
            assert not self.well, error
            self.clock.now = max(self.clock.now + 0.2, self.clock.next)
            self.clock.happen()
            return True
        forwarder = Simulated(
            self.settings, spool=self.spool, bell=os.eventfd(0, os.EFD_NONBLOCK),
            notice=self.said.append, fault=self.said.append, live=True, name="central",
            run=self.run_number)
        forwarder.world = self
        self.begun = SimpleNamespace(moves=0, turns=self.turns, now=self.clock.now)
        self.link = Link(forwarder, spool=self.spool, capacity=0, limit=0, queue=0, flush_after=0.0,
                         run=self.run_number)
        self.slot = Slot(self.memory, 0)
        self.slot.open(os.getpid())
        self.link.begin(self.slot, 0)
        self.next = self.first + self.slot.resume_output(0)
        self.slot.publish()
        self.given = []             # tasks without an answer, oldest first
        self.ended = self.drained = False
        self.forwarder = forwarder
        try:
            forwarder._loop()
            forwarder._delivery.stop()
            self.sink()
            forwarder._syncing.close()
            self.link.account(self.slot, 0, now=True)
            self.slot.publish()
        except Killed:
            self.die()
            return True
        finally:
            self.forwarder = None
            os.close(forwarder._waker)
            os.close(forwarder._bell)
            for server in forwarder._delivery.servers.all:
                server.connection.close()
        self.stops += 1
        return self.over()

    def die(self):
        self.kills += 1
        if self.spool is not None:
            self.spool._let_go()

    def over(self):
        """A run of the sensor has ended in order."""
        assert not self.given, "tasks without an answer"
        output = Slot(self.memory, 0).read_output(0)
        assert output["done"] == self.next - self.first
        self.balance(output)
        if self.drained:
            return False
        self.gone += output["dropped"] + output["spool_dropped"] + output["spool_damaged"]
        self.first = self.next
        self.run_number += 1
        self.ledger()
        return True

    # --- the sink's loop -----------------------------------------------------------------------

    def poll(self, timeout):
        """What the Forwarder waits in: the world goes on."""
        forwarder, dice = self.forwarder, self.dice
        self.turns += 1
        self.check()
        if dice.random() < 0.7:
            self.sink()
        self.step(False)
        if self.spool is not None and dice.random() < 0.1:
            forwarder.sync()
        ready = self.ready()
        if not ready and timeout > 0 and not forwarder._given:
            self.sink()
            while not ready and not forwarder._given:
                until = self.clock.now + (int(timeout * 1000) + 1) / 1000
                self.clock.now = max(self.clock.now, min(until, self.clock.next))
                timeout = until - self.clock.now
                self.net.moves += self.clock.happen()
                self.sink()
                ready = self.ready()
                if timeout < 0.001:
                    break
        else:
            self.clock.now += 1e-4
            self.clock.happen()
        if ready and dice.random() < 0.3:
            ready = dice.sample(ready, dice.randint(1, len(ready)))
        return ready

    def ready(self):
        return [server for server in self.forwarder._delivery.servers.all
                if (c := server.connection).mask and c.socket is not None
                and c.socket.ready(c.mask, READABLE, WRITABLE)]

    def sink(self):
        """Take answers, commit, give more; as outputs.py does."""
        forwarder, dice, slot = self.forwarder, self.dice, self.slot
        self.link.account(slot, 0)
        while (answer := forwarder.take()) is not None:
            task = self.given.pop(0)
            assert answer.task is task
            for part in task.parts:
                part[1][:] = bytes(b ^ 0x5A for b in part[1])      # another block stands there now
            if not task.reopen:
                dropped = task.events - answer.events - answer.spooled
                assert answer.failure is None or self.ended
                assert dropped == answer.dropped or answer.failure is not None
                slot.add_output(0, answer.events, answer.bytes, dropped, 0, task.upto,
                                answer.spooled)
            self.net.moves += 1
        if dice.random() < 0.7:
            slot.publish()
        while (len(self.given) < forwarder.window and self.next < self.put and not self.ended):
            self.give()
        if not self.ended and dice.random() < 0.002:
            task = Task(reopen=True)
            self.given.append(task)
            forwarder.give(task)
        stops = self.stopping and not self.well and dice.random() < 0.002
        if not self.ended and (stops or self.finished()):
            self.ended, self.drained = True, not stops
            forwarder.end(dice.choice([0.0, 2.0]) if stops else 5.0)

    def give(self):
        dice = self.dice
        n = min(self.put - self.next, dice.randint(1, self.largest))
        first, self.next = self.next, self.next + n
        split = dice.randint(0, n) if dice.random() < 0.5 else n
        both = range(first, first + split), range(first + split, self.next)
        parts = [(tag, memoryview(bytearray(entries(part, dice.randint(1, self.pad)))), len(part))
                 for tag, part in zip(TAGS, both, strict=True) if part]
        task = Task(parts, upto=self.next - self.first)
        self.given.append(task)
        self.forwarder.give(task)
        self.net.moves += 1

    def finished(self):
        delivery = self.forwarder._delivery
        return (self.well and self.next == self.total and not self.given and not delivery.flying
                and (self.spool is None or self.spool.empty))

    # --- what must hold ------------------------------------------------------------------------

    def check(self):
        """At each turn."""
        forwarder, begun = self.forwarder, self.begun
        delivery = forwarder._delivery
        if self.net.moves != begun.moves:
            self.begun = SimpleNamespace(
                moves=self.net.moves, turns=self.turns, now=self.clock.now)
        allowed = IDLE + RATE * (self.clock.now - begun.now)
        assert self.turns - begun.turns < allowed, "it goes round and round"
        if self.well:
            assert self.clock.now - self.well_since < LONGEST, "it does not come to an end"
        flying = [c for s in delivery.servers.all for c in s.flying.values()]
        assert delivery.flying == len(flying), "flying"
        assert delivery.flying_bytes == sum(c.size for c in flying), "flying_bytes"
        assert delivery.flying <= self.settings.window + 2 * len(self.net.hosts), "the window"
        held = {c.id for c in itertools.chain(flying, delivery.ready, delivery.aside)}
        for chunk in delivery.known.values():
            assert chunk.id in held or any(
                delivery.known.get(part.id) is part for part in chunk.parts), "known"
        spool = self.spool
        for work in forwarder._works:
            assert work.left == len([*work.leaves()]), "left"
        assert len(delivery.aside) <= ASIDE + 2 * self.largest * self.settings.window, "aside"
        assert forwarder._backlog.records == len({
            id(c.work) for c in delivery.known.values() if c.work is not None and c.work.record
        }), "records"
        if spool is not None and not self.ended:
            assert len(spool._out) <= self.settings.window + 2 * ASIDE + 8, "read and not acked"
            if spool._dirty or spool._made or spool._unsynced:
                assert forwarder._syncing.marked, "nobody syncs"

    def settled(self, chunk, delivered):
        found = numbers(chunk.payload, chunk.compressed)
        assert not delivered or self.net.acked.issuperset(found), "nobody acknowledged that"
        if chunk.work is not None and chunk.work.answer is not None:
            (self.had if delivered else self.lost).update(found)


    def balance(self, output):
        put = output["done"]
        assert output["events"] + output["spooled"] + output["dropped"] == put, output
        assert output["spool_found"] + output["spooled"] == (
            output["delivered"] + output["spool_dropped"] + output["spool_damaged"]
            + output["spool_events"]), output

    def judge(self):
        """All is over."""
        output = Slot(self.memory, 0).read_output(0)
        gone = self.gone + output["dropped"] + output["spool_dropped"] + output["spool_damaged"]
        missing = {*range(self.total)} - self.net.acked
        assert output["spool_events"] == 0
        assert len(missing) <= gone, f"missing {sorted(missing)}, counted {gone}"
        if self.tame and self.stops == 1:
            assert gone == 0, "events were dropped"
        if not self.kills and self.stops == 1:
            assert (output["events"], output["dropped"]) == (len(self.had), len(self.lost)), output
        chunks_of = {}
        for host in self.net.hosts:
            for message in host.messages:
                plain = chunks_of.setdefault(message.chunk, message.plain)
                assert plain == message.plain, "one chunk, two contents"
        if (self.tame and self.stops == 1 and len(self.net.hosts) == 1 and self.net.keepalive):
            self.in_order()

    def in_order(self):
        """Where nobody loses or closes, each event comes in order when it comes first: those of the
        spool, and those that went ahead of it."""
        seen, last = set(), {}
        for message in self.net.hosts[0].messages:
            way = message.tag, self.parted and message.straight
            for n in message.numbers:
                if n not in seen:
                    seen.add(n)
                    assert n > last.get(way, -1), f"{n} came late"
                    last[way] = n

    def story(self):
        output = Slot(self.memory, 0).read_output(0)
        return {
            "now": self.clock.now, "well": self.well, "put": self.put, "next": self.next,
            "kills": self.kills, "stops": self.stops, "tame": self.tame, "turns": self.turns,
            "ahead": self.ahead, "beside": self.beside,
            "output": {k: v for k, v in output.items() if v}, "gone": self.gone,
            "counts": self.forwarder and {k: v for k, v in self.forwarder.counts().items() if v},
            "settings": (self.settings.window, self.settings.compress, self.most, self.drop,
                         self.settings.expire_ns, len(self.net.hosts), self.net.keepalive),
        }


def task_beside(forwarder, chunk):
    """It is no record of the spool, and there are some."""
    return (forwarder is not None and forwarder._reading and not forwarder._spooling
            and chunk.work is not None and chunk.work.record is None)


def numbers(payload, compressed):
    unpacker = msgpack.Unpacker()
    unpacker.feed(forward.decompress(payload, compressed))
    return [record["n"] for _, record in unpacker]


def quiet_folder():
    """Where files cost least."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
