"""TCP streams against the model in plain Python: after each segment the same items and counts, and
every link and sum of the tables in order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gazer.workers import stream_door
from tests.oracle import build
from tests.stream_model import ACK, FIN, RST, SYN, Model, Segment

CLIENT, SERVER = (b"\xc0\0\2\1", 4000), (b"\xc6\x33\x64\x35", 53)
PAIRS = [
    (CLIENT, SERVER, b""),
    (CLIENT, SERVER, b"\0\x64"),
    ((b"\xc0\0\2\1", 53), (b"\xc0\0\2\2", 53), b""),
    ((bytes(15) + b"\1", 4000), (bytes(15) + b"\2", 53), b"\x80\0\0\x2a" * 8),
    ((bytes(15) + b"\2", 4000), (bytes(15) + b"\1", 53), b""),
    (CLIENT, CLIENT, b""),
]


class Both:
    """The model and gazer's own, side by side."""

    def __init__(self, **limits: int) -> None:
        self.model = Model(**limits)
        self.door = stream_door.Connections(**limits)

    def compare(self, ours: list[dict], theirs: list[tuple]) -> None:
        fields = ("what", "serial", "direction", "source", "destination", "scope", "wire", "idle",
                  "clock", "number", "time")
        assert [tuple(i[f] for f in fields) for i in ours] == theirs
        self.door.check()
        totals = self.door.counts
        assert totals == self.model.totals()
        assert totals["octets"] == sum(totals["octets_" + k] for k in (
            "framed", "old", "skipped", "buffered"))

    def feed(self, segment: Segment, clock: int) -> None:
        self.compare(self.door.feed(segment, clock), self.model.feed(segment, clock))

    def finish(self) -> None:
        self.compare(self.door.finish(), self.model.finish())
        totals = self.door.counts
        assert totals["live"] == totals["octets_buffered"] == 0
        assert self.door.figures["chunks"] == 0


def message(dice: random.Random, size: int) -> bytes:
    """A message with its length; some are plausible, some not even headers."""
    kind = dice.random()
    if kind < 0.1:
        wire = dice.randbytes(dice.randrange(30))
    elif kind < 0.3:
        wire = build.header(dice.randrange(65536), 0x8400, (0, 1, 0, 0)) + build.labels(
            "x" * dice.randrange(1, 20)) + b"\0\1\0\1\0\0\0\0\0\4abcd"
    else:
        wire = build.header(dice.randrange(65536), dice.choice([0x100, 0x8180, 0x2800, 0x3000]),
                            (1, 0, 0, 0)) + build.question(
            build.labels(f"q{dice.randrange(100)}", "example")) + bytes(dice.randrange(size))
    return len(wire).to_bytes(2, "big") + wire


def conversation(dice: random.Random, pair: tuple, size: int) -> list[Segment]:
    """Segments of one connection, more or less as hosts send them."""
    client, server, scope = pair
    at = [dice.choice([0, 1, dice.getrandbits(32), 2**32 - 5, 2**32 - 300]) for _ in range(2)]
    ends = (client, server)
    found: list[Segment] = []

    def send(d: int, payload: bytes = b"", flags: int = ACK, missing: int = 0) -> None:
        found.append(Segment(ends[d], ends[1 - d], at[d] % 2**32, payload, flags,
                             at[1 - d] % 2**32, missing, scope))
        at[d] += len(payload) + missing + (flags & SYN != 0) + (flags & FIN != 0)

    if dice.random() < 0.8:
        send(0, dice.choice([b"", b"", b"", b"\0\x10da"]), SYN)
        send(1, b"", SYN | ACK)
    for _ in range(dice.randrange(1, 5)):
        d = dice.randrange(2)
        octets = b"".join(message(dice, size) for _ in range(dice.randrange(1, 5)))
        while octets:
            n = min(len(octets), dice.choice([1, 2, 3, 10, 40, 500, 1500]))
            missing = dice.randrange(min(n, 9)) if dice.random() < 0.05 else 0
            send(d, octets[:n - missing], missing=missing)
            octets = octets[n:]
            if dice.random() < 0.4:
                send(1 - d)
    for d in range(2):
        if dice.random() < 0.5:
            send(d, b"", dice.choice([FIN, FIN | ACK, RST, RST | ACK]))
    return found


def disturb(dice: random.Random, segments: list[Segment]) -> list[Segment]:
    """Lost, repeated, reordered, overlapping with other octets, and numbers that lie."""
    found: list[Segment] = []
    for s in segments:
        roll = dice.random()
        if roll < 0.1:
            continue
        if roll < 0.2:
            k = dice.randrange(1 + len(s.payload))
            n = dice.randrange(1 + 40)
            s2 = Segment(s.source, s.destination, (s.sequence + k - n) % 2**32,
                         dice.randbytes(n) + s.payload[k:] + dice.randbytes(dice.randrange(9)),
                         s.flags, s.acknowledgement, 0, s.scope)
            found.append(s2)
        found.append(s)
        if roll > 0.9:
            found.append(s)
        if roll > 0.97:
            found.append(Segment(
                s.source, s.destination,
                (s.sequence + dice.choice([-70000, -1, 1, 1 << 20, 1 << 30, 1 << 31])) % 2**32,
                dice.randbytes(dice.choice([0, 0, 1, 20])),
                dice.choice([0, ACK, FIN, SYN, SYN | ACK, RST, SYN | FIN]),
                (s.acknowledgement + dice.choice([0, 0, 1, 1000, 1 << 31])) % 2**32, 0, s.scope))
    for _ in range(len(found) // 6):
        i, j = dice.randrange(len(found)), dice.randrange(-4, 5)
        found.insert(max(0, i + j), found.pop(i))
    return found


def run(seed: int, *, pairs: int, size: int = 60, **limits: int) -> Both:
    dice = random.Random(seed)
    both = Both(**limits)
    waiting = [disturb(dice, [s for _ in range(dice.randrange(1, 3))
                              for s in conversation(dice, dice.choice(PAIRS), size)])
               for _ in range(pairs)]
    clock = number = 0
    while any(waiting):
        queue = dice.choice([w for w in waiting if w])
        for _ in range(dice.randrange(1, 8)):
            if not queue:
                break
            s = queue.pop(0)
            number += 1
            clock += dice.choice([0, 1, 1, 5] if dice.random() < 0.99 else [50])
            both.feed(Segment(**{**s.__dict__, "number": number, "time": -number}), clock)
    both.finish()
    return both


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 8), st.sampled_from([3, 60, 1000]))
def test_streams_do_what_the_model_does(seed, pairs, max_streams, timeout):
    run(seed, pairs=pairs, max_streams=max_streams, timeout=timeout)


@pytest.mark.parametrize("seed", range(5))
def test_long_runs(seed):
    both = run(seed, pairs=(60, 30)[seed % 2], max_streams=5, timeout=60,
               size=(60, 1500)[seed % 2])
    counts = both.door.counts
    assert min(counts.values()) >= 0
    for what in ("evicted", "timed_out", "gaps", "broken_messages", "resyncs", "octets_old"):
        assert counts[what] > 2, what
