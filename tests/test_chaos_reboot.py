"""The host goes down under a fluentd output: all that was not synced may be there or not.

The output's thread, its spool and a receiver that flaps, over the recording layer of
test_spool_crash.py.  The rings and the ledger are gone with the host, so the rest of a sink would
add nothing.  What was appended ahead of the last sync that returned is acknowledged by the receiver
or still in the spool; the loss is what is newer, that is, `fsync` at most.
"""

from __future__ import annotations

import random
import time

import msgpack
import pytest

from gazer.sinks import fluentd
from gazer.sinks.spool import Spool
from tests.forwarding import SECOND, Sink, quick
from tests.receiver import ACK, CLOSE, LOSE, Receiver
from tests.spools import system, without_syncs
from tests.test_spool_crash import Disk

pytest_plugins = ["tests.chaos.memory"]

SEGMENT = 3000
FSYNC = SECOND // 33


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick(monkeypatch)
    monkeypatch.setattr(fluentd, "SLOW", 0.1)


def numbers(payload):
    entries = msgpack.Unpacker()
    entries.feed(payload)
    return [entry[1]["n"] for entry in entries]


class Promising(Spool):
    """`kept`: what was appended, in order; `promised`: how much of that a sync has saved."""

    def __init__(self, *args, **more):
        self.kept, self.promised = [], 0
        super().__init__(*args, **more)

    def append(self, payload, **more):
        done = super().append(payload, **more)
        if done:
            self.kept += numbers(payload)
        return done

    def sync(self):
        before = len(self.kept)
        super().sync()
        self.promised = max(self.promised, before)


def opened(folder, kind=Spool):
    return kind(str(folder), max_bytes=1 << 20, segment_bytes=SEGMENT, notice=[].append)


def live_through(memory, seed):
    """Moments: what was promised, the disk's log, what was acknowledged."""
    dice = random.Random(seed)
    folder = memory / "spool"
    folder.mkdir()
    disk = Disk(folder)
    moments = []
    receiver = Receiver(plan=lambda _: dice.choices([ACK, LOSE, CLOSE], [85, 5, 10])[0])
    with receiver, system(disk.functions()):
        spool = opened(folder, Promising)
        with Sink(receiver, spool=spool, window=3, fsync_ns=FSYNC,
                  ack_timeout_ns=SECOND // 5) as sink:
            for turn in range(60):
                if turn % 10 == 3:
                    receiver.refuse()
                elif turn % 10 == 8:
                    receiver.listen()
                sink.feed(2, 5)
                pause = time.monotonic() + dice.uniform(0, 0.03)
                sink.wait(lambda: time.monotonic() > pause)     # noqa: B023
                promised = spool.kept[:spool.promised]
                syncs, at, kept = len(disk.synced), len(disk.log), len(spool.kept)
                moments.append((promised, syncs, at, receiver.acked, kept))

            def synced():
                """no more than `fsync` is not on the disk"""
                return spool.promised == len(spool.kept)

            sink.wait(synced, 2.0)
    return disk, spool.kept, moments


def after(memory, disk, syncs, at, chance):
    """A folder that the host may find when it comes up again."""
    all_syncs, disk.synced = disk.synced, disk.synced[:syncs]
    saved = disk.left(at)
    disk.synced = all_syncs
    likely = chance.choice((0.0, 0.2, 0.5, 0.8, 1.0))
    disk.make([disk.log[i] for i in range(at) if saved[i] or chance.random() < likely],
              memory / "after")
    return memory / "after"


@pytest.mark.parametrize("seed", [1, 2])
def test_a_host_that_goes_down(memory, seed):
    disk, kept, moments = live_through(memory, seed)
    chance = random.Random(seed)
    waited = lost = 0
    with without_syncs():
        for promised, syncs, at, acked, count in moments:
            for _ in range(5):
                spool = opened(after(memory, disk, syncs, at, chance))
                given = []
                while (record := spool.next()) is not None:
                    given += numbers(record.payload)
                counts = spool.counts()
                spool.close()
                assert {*given} <= {*kept[:count]}              # nothing is invented
                assert not {*promised} - acked - {*given}       # what was synced is there
                assert counts["damaged"] <= count - len(promised)
                waited += len({*promised} & {*given} - acked)
                lost += len({*kept[:count]} - acked - {*given})
    assert waited > 100 and lost > 0        # else this has shown nothing


@pytest.mark.parametrize("seed", [3])
def test_the_next_start_delivers_what_the_disk_has(memory, seed):
    disk, kept, moments = live_through(memory, seed)
    chance = random.Random(seed)
    for promised, syncs, at, acked, count in chance.sample(moments, 8):
        spool = opened(after(memory, disk, syncs, at, chance))
        with Receiver() as receiver, Sink(receiver, spool=spool, first=1000, run=2) as sink:
            sink.give(5)
            sink.wait(lambda: sink.spool.empty and not sink.counts()["spooling"])
            sink.settle()
        assert {*promised} - acked <= {*receiver.numbers} - {*range(1000, 1005)}
        assert {*receiver.numbers} <= {*kept[:count], *range(1000, 1005)}
        assert len(receiver.numbers) == len({*receiver.numbers})
