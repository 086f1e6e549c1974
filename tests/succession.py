"""A worker's world in one process: shared memory, frames that are fed to it, a sink that takes its
events; and what a kill at some point would leave of it.

A kill leaves the shared memory as it is at that moment, and nothing else.  So the tests copy it at
each step that the worker tells of (gazer/workers/mortal.pyx) and let a successor go on from each
copy.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from dataclasses import dataclass, field

from gazer import counters
from gazer.ring import Ring, ring_bytes
from gazer.summary import Account
from gazer.workers import doors, mortal
from gazer.workers.encode import Encoder
from gazer.workers.engine import Engine
from gazer.workers.sample import Samples
from gazer.workers.stream import Streams
from gazer.workers.transaction import Transactions
from gazer.workers.transfer import Transfers

NS = 10**9
START = 1444531212 * NS
WORKER = 1
# An eventfd that never runs empty: nobody sleeps in here.
BELL = os.eventfd(0x7FFFFFFF, os.EFD_SEMAPHORE | os.EFD_NONBLOCK)


@dataclass(frozen=True)
class Step:
    """What capture does next: a frame of a lane (seconds, frame), or without one a watermark.

    clock None: nothing will follow in this lane.
    """

    lane: int
    clock: float | None
    frame: bytes | None = None


@dataclass(frozen=True)
class Limits:
    """Of the worker."""

    lanes: int = 1
    frames: int = 1 << 15           # bytes of each frame ring
    events: int = 1 << 14           # ... of the event ring
    records: bool = False
    timeout: float = 10
    window: float = 0
    max_pending: int = 1000
    max_streams: int = 100
    run: int | None = None          # when it began: events have ids


@dataclass
class Moment:
    """The world at one moment: everything that outlives the worker."""

    step: str
    memory: list[bytes]
    fed: int
    numbers: list[int]
    delivered: int
    events: list[tuple[int, int, bytes]]


@dataclass
class World:
    """Runs `script` through a worker."""

    script: list[Step]
    limits: Limits = field(default_factory=Limits)
    slow_sink: bool = False         # takes events only when the worker waits for room
    samples: Samples | None = None
    stride: int = 1                 # of the moments, one in so many is kept
    told: int = 0

    def __post_init__(self) -> None:
        sizes = [self.limits.frames] * self.limits.lanes + [self.limits.events]
        self.memory = [bytearray(ring_bytes(size)) for size in sizes]
        for buffer, size in zip(self.memory, sizes, strict=True):
            Ring(buffer, create=size).release()
        ledger = bytearray(counters.ledger_bytes(3))
        counters.ledger_create(ledger)
        self.memory.append(ledger)
        self.pool: dict[bytes, bytes] = {}
        self.fed = self.delivered = 0
        self.numbers = [0] * self.limits.lanes
        self.events: list[tuple[int, int, bytes]] = []
        self.moments: list[Moment] = []

    @classmethod
    def at(cls, before: World, moment: Moment, **changes) -> World:
        """The world as it was at that moment."""
        world = cls.__new__(cls)
        world.script, world.limits = before.script, before.limits
        world.slow_sink = changes.get("slow_sink", before.slow_sink)
        world.memory = [bytearray(part) for part in moment.memory]
        world.fed, world.delivered = moment.fed, moment.delivered
        world.numbers = list(moment.numbers)
        world.events = list(moment.events)
        world.moments, world.pool, world.samples = [], {}, None
        world.stride, world.told = changes.get("stride", 1), 0
        return world

    # --- what is around the worker ---------------------------------------------------------------

    def rings(self) -> list[Ring]:
        return [Ring(part) for part in self.memory[: self.limits.lanes + 1]]

    def feed(self) -> bool:
        """Do the script's next steps, up to a watermark or the end of a lane; False: it is over."""
        while self.fed < len(self.script):
            frame = self.script[self.fed].frame
            self.feed_one()
            if frame is None:
                return True
        return False

    def feed_one(self) -> bool:
        """Do the script's next step; False: there is no room for it, or it is over."""
        if self.fed == len(self.script):
            return False
        step = self.script[self.fed]
        at = None if step.clock is None else START + round(step.clock * NS)
        port = doors.FrameRing(self.rings()[step.lane])
        if step.frame is not None:
            assert at is not None
            number = step.lane << 56 | self.numbers[step.lane] + 1
            try:
                self.delivered += port.put(step.frame, number, at, at) == "dns"
            except BufferError:
                return False
            self.numbers[step.lane] += 1
        # A frame is published by the watermark behind it: its own key, and one more.
        port.mark(at, step.lane << 56 | self.numbers[step.lane] + 1)
        self.fed += 1
        return True

    def share(self) -> None:
        """From now on forked processes have the same memory."""
        for i, part in enumerate(self.memory):
            place = mmap.mmap(-1, len(part))
            place[:] = bytes(part)
            self.memory[i] = place

    def take(self) -> None:
        """The sink takes what it is shown."""
        for clock, sequence, _, texts in doors.EventRing(self.rings()[-1]).take():
            self.events.append((clock, sequence, texts[0]))

    def tell(self, step: str) -> None:
        """The worker is at this step."""
        if step == "waiting" and self.slow_sink:
            self.take()
        self.told += 1
        if self.told % self.stride:
            return
        parts = [self.pool.setdefault(part, part) for part in map(bytes, self.memory)]
        self.moments.append(Moment(
            step, parts, self.fed, list(self.numbers), self.delivered, list(self.events)))

    # --- the worker ------------------------------------------------------------------------------

    def engine(self, kind: type[Engine] = Engine) -> Engine:
        limits = self.limits
        slot = (mortal.MortalSlot if kind is mortal.MortalEngine else counters.Slot)(
            self.memory[limits.lanes + 1], WORKER)
        slot.open(4711)
        *frames, events = self.rings()
        return kind(
            frame_rings=frames, event_ring=events, bell=BELL, capture_bells=[-1] * limits.lanes,
            sink_bell=-1, slot=slot, samples=self.samples,
            table=Transactions(max_pending=limits.max_pending, max_bytes=1 << 20,
                               window=round(limits.window * NS), seed=0x5EED),
            transfers=Transfers(max_transfers=10, max_bytes=1 << 20, budget=262144, seed=0x5EED),
            streams=Streams(max_streams=limits.max_streams, max_bytes=1 << 20,
                            max_bytes_each=1 << 18, timeout=300 * NS, seed=0x5EED),
            encoder=Encoder(full=True, formats=[0], max_size=16384, sensor="s",
                            run=limits.run),
            records=limits.records, timeout=round(limits.timeout * NS))

    def run(self, *, watched: bool = False) -> World:
        """A worker goes on from here to the end.  `watched`: what each step leaves is kept."""
        kind = mortal.MortalEngine
        mortal.listen(self.tell if watched else self.drain)
        try:
            engine = self.engine(kind)
            while True:
                state = engine.run()
                assert state != "corrupt"
                if not self.slow_sink:
                    self.take()
                if state == "end":
                    break
                self.feed()
        finally:
            mortal.listen(None)
        self.take()
        return self

    def drain(self, step: str) -> None:
        if step == "waiting":
            self.take()

    # --- the account -----------------------------------------------------------------------------

    def slot(self) -> counters.Slot:
        return counters.Slot(self.memory[self.limits.lanes + 1], WORKER)

    def blame(self, in_hand: int, suspect: int) -> None:
        """Say that the worker died over this frame, and the one before it over that one."""
        start = (WORKER + 1) * (len(self.memory[-1]) // 4)
        struct.pack_into("<2Q", self.memory[-1], start + 8 * 3, in_hand, suspect)

    def counts(self) -> dict[str, int]:
        return self.slot().read(counters.WORKER)

    def lines(self) -> list[dict]:
        return [json.loads(text.decode().split("\t")[2]) for _, _, text in self.events]

    def imbalances(self) -> list[str]:
        capture = dict.fromkeys(counters.CAPTURE, 0)
        capture["frames"] = capture["delivered"] = self.delivered
        sink = {**dict.fromkeys(counters.SINK, 0), "events": len(self.events)}
        return list(Account(capture, self.counts(), sink, ()).imbalances())
