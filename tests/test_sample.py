"""Samples of what is being asked: what a worker writes, and what a reader sees of it meanwhile."""

from __future__ import annotations

import os
import struct

import pytest

from gazer.errors import SharedMemoryError
from gazer.workers.sample import SAMPLES_BYTES, Samples, read_samples, samples_written
from tests.oracle import build
from tests.succession import NS, START, Limits, Step, World
from tests.test_engine import CLIENT, ask, bare, tell

HEAD, ENTRY, CAPACITY = 64, 320, 1024


def sampled(script: list[Step], buffer=None) -> tuple[list, bytearray]:
    """What a reader sees when a worker has gone through this."""
    buffer = bytearray(SAMPLES_BYTES) if buffer is None else buffer
    world = World([*script, Step(0, None)], Limits(frames=1 << 19, events=1 << 22, timeout=1000))
    world.samples = Samples(buffer)
    world.run()
    return read_samples(memoryview(bytes(buffer))), buffer


def test_layout():
    assert SAMPLES_BYTES == HEAD + CAPACITY * ENTRY


def test_what_a_sample_tells():
    six = {"client": "2001:db8::1", "server": "2001:db8::53"}
    seen, _ = sampled([
        Step(0, 0, ask("a.example.", "MX")), Step(0, 1, tell("a.example.", "MX")),
        Step(0, 2, tell("b.example.", id=2, **six)), Step(0, 3, ask("c.example.", "TYPE777", id=3)),
        Step(0, 4, bare(True, id=9))])
    assert [one[2:] for one in seen] == [
        ("a.example.", "MX", CLIENT, "NOERROR", "success"),
        ("b.example.", "A", "2001:db8::1", "NOERROR", "no_query"),
        ("", "", CLIENT, "REFUSED", "no_query"),
        ("c.example.", "TYPE777", CLIENT, "", "no_reply")]
    assert [one.number for one in seen] == [1, 2, 3, 4]
    assert [one.clock - START for one in seen[:3]] == [1 * NS, 2 * NS, 4 * NS]


def test_at_most_one_each_millisecond():
    replies = [Step(0, t, tell(id=i)) for i, t in enumerate(
        [0, 0.0005, 0.000999, 0.001, 0.0011, 0.0021, 0.002101])]
    seen, _ = sampled(replies)
    assert [one.clock - START for one in seen] == [0, 1_000_000, 2_100_000]


def test_the_last_ones_are_kept():
    seen, buffer = sampled([Step(0, i / 100, tell(f"n{i}.example.", id=i)) for i in range(1100)])
    assert [one.number for one in seen] == [*range(77, 1101)]
    assert [one.name for one in seen] == [f"n{i}.example." for i in range(76, 1100)]
    assert samples_written(buffer) == 1100
    assert [one.number for one in read_samples(buffer, 1098)] == [1099, 1100]
    assert read_samples(buffer, 1100) == read_samples(buffer, 1 << 63) == []


def test_a_long_name_is_cut():
    name = b"".join(b"\x3f" + bytes([i]) * 63 for i in (1, 2, 3)) + b"\0"
    wire = build.header(1, 0x8180, (1, 0, 0, 0)) + build.question(name)
    frame = build.frame(build.udp("198.51.100.53", 53, CLIENT, 4000, wire))
    (seen,), _ = sampled([Step(0, 0, frame)])
    assert seen.name == ("\\001" * 63 + "." + "\\002" * 63)[:272]


def test_a_successor_goes_on():
    seen, buffer = sampled([Step(0, 0, tell("a.example."))])
    more, _ = sampled([Step(0, 5, tell("b.example."))], buffer)
    assert [(one.number, one.name) for one in more] == [(1, "a.example."), (2, "b.example.")]
    assert more[0] == seen[0]


def test_an_entry_that_is_being_written_is_no_sample():
    """What a kill within a sample leaves; and the successor writes over it."""
    _, buffer = sampled([Step(0, i, tell(f"n{i}.example.", id=i)) for i in range(3)])
    at = HEAD + ENTRY
    struct.pack_into("<Q", buffer, at, 3)           # number 2 is under way
    assert [one.number for one in read_samples(buffer)] == [1, 3]
    struct.pack_into("<Q", buffer, at, 2 * (2 + CAPACITY))      # a newer one has taken its place
    assert [one.number for one in read_samples(buffer)] == [1, 3]
    struct.pack_into("<Q", buffer, HEAD + 3 * ENTRY, 7)         # number 4, which was never counted
    more, _ = sampled([Step(0, 9, tell("n9.example."))], buffer)
    assert [one.number for one in more] == [1, 3, 4]


def test_what_is_no_segment_of_samples():
    assert read_samples(bytes(SAMPLES_BYTES)) == []     # no worker has begun
    for short in (0, 64, SAMPLES_BYTES - 1):
        with pytest.raises(SharedMemoryError):
            read_samples(bytes(short) or b"x")
        with pytest.raises(SharedMemoryError):
            Samples(bytearray(short or 1))
    buffer = bytearray(SAMPLES_BYTES)
    Samples(buffer).release()
    struct.pack_into("<I", buffer, 8, 99)
    with pytest.raises(SharedMemoryError, match="layout 99"):
        read_samples(buffer)


def test_garbage_is_no_crash():
    """The reader is another process: what it finds may be anything."""
    buffer = bytearray(SAMPLES_BYTES)
    Samples(buffer).release()
    struct.pack_into("<Q", buffer, 16, 1024)
    buffer[HEAD:] = os.urandom(SAMPLES_BYTES - HEAD)
    for n in range(1024):
        struct.pack_into("<Q", buffer, HEAD + n * ENTRY, 2 * (n + 1))
    assert [one.number for one in read_samples(buffer)] == [*range(1, 1025)]
