"""A capture process dies, at each point of the protocol, and another one goes on.

The dispatcher runs in a forked child over shared memory, with the kernel's counters as a test says;
a door kills it at the n-th pass of a named point.  What it had read and not committed is gone, as
with a socket; everything else is there once, and accounted for.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import time
from types import SimpleNamespace

import pytest

from gazer.capture.dispatch import Dispatcher
from gazer.capture.fragments import Fragments
from gazer.capture.process import follow
from gazer.counters import CAPTURE, Slot, ledger_bytes, ledger_create
from gazer.errors import InputError
from gazer.ring import Ring, ring_bytes
from gazer.summary import PIECES
from gazer.testing import POINTS, FakeSource, Reader, die_at, frame_entry

from .oracle import build

NOW = 1_700_000_000_000_000_000
SERVER = "192.0.2.53"
WORKERS = 2
CAPTURE_INDEX = 3
FIRST = CAPTURE_INDEX << 56


def query(n: int, payload: bytes = b"") -> bytes:
    return build.frame(build.udp(f"198.51.100.{n % 250}", 1024 + n, SERVER, 53,
                                 payload or n.to_bytes(4, "big") * 3))


def piece(n: int) -> bytes:
    """The first piece of a datagram whose others never come."""
    whole = build.udp("198.51.100.9", 5000, SERVER, 53, bytes(64))
    header = bytearray(whole[:20])
    header[2:4] = (20 + 24).to_bytes(2, "big")
    header[4:6] = n.to_bytes(2, "big")
    header[6:8] = (0x2000).to_bytes(2, "big")
    return build.frame(bytes(header) + whole[20:44])


OTHER = build.frame(build.udp("198.51.100.7", 4000, SERVER, 80, b"x"))


class Shared:
    """The memory that outlives a process: the ledger and the rings, with their readers."""

    def __init__(self, capacity: int = 1 << 16) -> None:
        self.ledger = mmap.mmap(-1, ledger_bytes(1))
        ledger_create(self.ledger, live=1)
        self.rings = [mmap.mmap(-1, ring_bytes(capacity)) for _ in range(WORKERS)]
        for ring in self.rings:
            Ring(ring, create=capacity).release()
        self.readers = [Reader(Ring(ring)) for ring in self.rings]
        self.slot = Slot(self.ledger, 0)

    def dispatcher(self) -> Dispatcher:
        slot = Slot(self.ledger, 0)
        slot.open(os.getpid())
        return Dispatcher(
            rings=[Ring(ring) for ring in self.rings], bells=[-1] * WORKERS, bell=-1, slot=slot,
            ports=[53], seed=7, live=True, capture=CAPTURE_INDEX, start=NOW,
            fragments=Fragments(max_datagrams=64, max_bytes=1 << 20, timeout=1 << 62, seed=7))

    def entries(self) -> list[dict]:
        return [frame_entry(entry) for reader in self.readers for entry in reader.drain()]

    @property
    def counters(self) -> dict[str, int]:
        return self.slot.read(CAPTURE)


def run(dispatcher: Dispatcher, turns, received: int = 0, dropped: int = 0) -> None:
    """Each turn is frames that come together, and what the kernel has counted by then."""
    for frames, more_dropped in turns:
        received += len(frames) + more_dropped
        dropped += more_dropped
        dispatcher.kernel(received, dropped, 0)
        assert dispatcher.run(FakeSource([(f, NOW) for f in frames], "idle")) == "idle"


def in_child(work) -> int | None:
    """The signal that the child died of, None if it came to its end."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(9)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    assert os.WEXITSTATUS(status) == 0
    return None


def balanced(counted: dict[str, int], buffered: int = 0) -> None:
    fates = sum(n for name, n in counted.items() if name.startswith("fate."))
    assert counted["frames"] == counted["delivered"] + counted["ring_dropped"] + fates
    assert counted["fate.fragment"] == counted["joined"] + sum(counted[name] for name in PIECES)
    assert counted["kernel_received"] == (
        counted["kernel_dropped"] + counted["frames"] + counted["kernel_lost"] + buffered)


# What the first process gets, and its successor: frames with and without DNS, pieces, drops.
BEFORE = [
    ([query(0), OTHER, query(1), piece(1), piece(1)], 0),
    ([query(2), query(3), query(4), OTHER], 5),
    ([piece(2), query(5)], 0),
]
AFTER = [([query(6), query(7), piece(3)], 2), ([OTHER, query(8)], 0)]
PASSES = [(point, n) for point, each in (
    ("commit", 1), ("tail", WORKERS), ("mark", WORKERS), ("wake", WORKERS), ("shown", 1))
    for n in range(each * len(BEFORE))]


def test_all_points_are_named():
    assert {point for point, _ in PASSES} == set(POINTS)


@pytest.mark.parametrize("drained", [False, True], ids=["", "drained"])
@pytest.mark.parametrize("point, passes", PASSES)
def test_death_at_each_point(point, passes, drained):
    """`drained`: the workers have taken what they could see before the successor begins."""
    shared = Shared()

    def first():
        dispatcher = shared.dispatcher()
        die_at(dispatcher, point, passes)
        run(dispatcher, BEFORE)

    assert in_child(first) == signal.SIGKILL
    seen = shared.entries() if drained else []
    marks = [reader.watermark for reader in shared.readers]
    committed = shared.counters
    # By what the counters say: the turns that were committed, and that these are all of a turn.
    turns = passes // (1 if point in ("commit", "shown") else WORKERS) + (point != "commit")
    assert committed["frames"] == sum(len(frames) for frames, _ in BEFORE[:turns])
    assert committed["kernel_dropped"] == sum(n for _, n in BEFORE[:turns])
    balanced(committed)

    dispatcher = shared.dispatcher()
    assert shared.slot.starts == 2
    taken_over = shared.counters
    balanced(taken_over)
    assert taken_over["lost_pieces"] == committed["waiting_pieces"]
    assert taken_over["waiting_pieces"] == 0
    for reader, mark in zip(shared.readers, marks, strict=True):
        assert reader.loss >= NOW               # its workers know
        assert reader.watermark >= mark
        assert reader.watermark[1] == FIRST + committed["frames"] + 1
    run(dispatcher, AFTER)      # with a socket whose counters begin at 0
    dispatcher.end()

    counted = shared.counters
    balanced(counted)
    assert counted["kernel_dropped"] == committed["kernel_dropped"] + 2
    assert counted["duplicate_pieces"] == (turns > 0)
    entries = sorted(seen + shared.entries(), key=lambda e: e["sequence"])
    read = [f for frames, _ in BEFORE[:turns] for f in frames]
    read += [f for frames, _ in AFTER for f in frames]
    assert [(e["sequence"], e["frame"]) for e in entries] == [
        (FIRST + n, f) for n, f in enumerate(read, 1) if f != OTHER and f[20:22] != b"\x20\x00"]
    assert counted["frames"] == len(read) and counted["delivered"] == len(entries)
    clocks = [e["clock"] for e in entries]
    assert clocks == sorted(clocks)


def test_what_the_socket_still_held_is_counted_as_lost():
    shared = Shared()

    def first():
        dispatcher = shared.dispatcher()
        run(dispatcher, BEFORE[:1])
        dispatcher.kernel(5 + 30, 10, 0)        # 20 more stand in the buffer
        dispatcher.idle()
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(first) == signal.SIGKILL
    balanced(shared.counters, buffered=20)
    shared.dispatcher()
    assert shared.counters["kernel_lost"] == 20
    balanced(shared.counters)


def test_time_has_gone_on_meanwhile():
    shared = Shared()

    def first():
        run(shared.dispatcher(), BEFORE[:1])
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(first) == signal.SIGKILL
    died = time.monotonic_ns()
    time.sleep(0.05)
    dispatcher = shared.dispatcher()
    assert all(reader.watermark[0] < NOW + 50_000_000 for reader in shared.readers)
    dispatcher.idle()
    passed = shared.readers[0].watermark[0] - NOW
    assert 50_000_000 <= passed <= time.monotonic_ns() - died + 10_000_000_000


def test_a_frame_in_hand_that_waited_for_room_is_counted_as_dropped():
    """While a run drains, capture waits for room; who is killed then has one frame in hand."""
    shared = Shared(capacity=4096)
    frames = [query(n, b"x" * 200) for n in range(40)]

    def first():
        dispatcher = shared.dispatcher()
        dispatcher.wait_for_room()
        die_at(dispatcher, "shown", 0)
        dispatcher.run(FakeSource([(f, NOW) for f in frames]))

    assert in_child(first) == signal.SIGKILL
    counted = shared.counters
    assert counted["waits"] == 1
    assert counted["frames"] == counted["delivered"] + 1
    seen = shared.entries()
    dispatcher = shared.dispatcher()
    counted = shared.counters
    assert counted["ring_dropped"] == 1
    balanced(counted)
    dispatcher.run(FakeSource([(query(99), NOW)]))
    (entry,) = shared.entries()
    assert entry["sequence"] == FIRST + len(seen) + 2


def test_a_small_ring_that_is_full_is_shown_before_a_frame_is_dropped():
    """Else its worker would sleep while frames that it could have made room for are dropped."""
    shared = Shared(capacity=4096)

    def first():
        dispatcher = shared.dispatcher()
        die_at(dispatcher, "shown", 0)
        dispatcher.run(FakeSource([(query(n, b"x" * 200), NOW) for n in range(100)]))

    assert in_child(first) == signal.SIGKILL
    # It can still get room: what follows may have its number.
    assert shared.readers[0].watermark[1] == FIRST + shared.counters["frames"] < FIRST + 100
    assert len(shared.entries()) == shared.counters["delivered"] > 5


def test_an_interface_that_has_gone_leaves_nothing_unaccounted():
    """The process ends by itself; its successor knows that the operator has been told."""
    shared = Shared()

    def first():
        dispatcher = shared.dispatcher()
        assert not dispatcher.absent
        run(dispatcher, BEFORE[:1])
        dispatcher.kernel(5 + 3, 0, 0)
        dispatcher.interface_gone()
        dispatcher.release()

    assert in_child(first) is None
    assert shared.counters["kernel_lost"] == 3
    dispatcher = shared.dispatcher()
    assert dispatcher.absent
    balanced(shared.counters)
    dispatcher.listening()
    run(dispatcher, AFTER)
    balanced(shared.counters)
    assert shared.counters["kernel_lost"] == 3
    assert not shared.dispatcher().absent


@pytest.mark.parametrize("gone", [False, True], ids=["died", "interface gone"])
def test_what_nobody_heard_is_marked_as_lost_to_its_end(gone):
    """A process that hung for a while before it was killed; an interface that was away: replies to
    the queries of that time are still to come."""
    shared = Shared()

    def first():
        dispatcher = shared.dispatcher()
        run(dispatcher, BEFORE[:1])
        if gone:
            dispatcher.interface_gone()

    assert in_child(first) is None
    dispatcher = shared.dispatcher()
    began = [reader.loss for reader in shared.readers]
    time.sleep(0.05)
    dispatcher.listening()
    ended = [reader.loss for reader in shared.readers]
    for loss, last in zip(began, ended, strict=True):
        assert last - loss >= 50_000_000
    dispatcher.listening()      # the same socket: nothing new was lost
    assert [reader.loss for reader in shared.readers] == ended
    run(dispatcher, AFTER)
    balanced(shared.counters)


def test_the_first_to_listen_has_lost_nothing():
    shared = Shared()
    shared.dispatcher().listening()
    assert [reader.loss for reader in shared.readers] == [0] * WORKERS


def test_what_a_socket_counted_before_it_broke_is_committed():
    """The process ends with an error; what stood in the buffer is lost, and counted."""
    shared = Shared()
    broken = SimpleNamespace(
        run=lambda source: "broken", kernel=(dispatcher := shared.dispatcher()).kernel,
        idle=dispatcher.idle)
    source = SimpleNamespace(stats=lambda: (30, 10, 0), gone=False, error="lo: no good")
    boot = SimpleNamespace(part=SimpleNamespace(index=0),
                           config=SimpleNamespace(capture=SimpleNamespace(processes=1)))
    child = SimpleNamespace(slot=SimpleNamespace(draining=False), boot=boot)
    with pytest.raises(InputError, match="no good"):
        follow(child, broken, source)
    assert shared.counters["kernel_received"] == 30
    shared.dispatcher()
    counted = shared.counters
    assert counted["kernel_dropped"] == 10 and counted["kernel_lost"] == 20
    balanced(counted)


@pytest.mark.parametrize("seed", range(6))
def test_many_generations(seed):
    """Each dies somewhere; the workers take now and then what they see."""
    rng = random.Random(seed)
    shared = Shared(capacity=8192)
    n = 0
    seen: list[dict] = []
    lost = dropped = 0
    for _ in range(25):
        turns = []
        for _ in range(rng.randrange(1, 5)):
            frames = []
            for _ in range(rng.randrange(12)):
                n += 1
                frames.append(rng.choice([query(n % 60000), query(n % 60000), OTHER, piece(n)]))
            turns.append((frames, rng.choice([0, 0, 3])))
        passes = rng.randrange(8)
        point = rng.choice(sorted(POINTS))
        held = rng.randrange(5)

        def live(turns=turns, point=point, passes=passes, held=held):
            dispatcher = shared.dispatcher()
            die_at(dispatcher, point, passes)
            run(dispatcher, turns)
            received = sum(len(f) + d for f, d in turns)
            dispatcher.kernel(received + held, sum(d for _, d in turns), 0)
            dispatcher.idle()
            os.kill(os.getpid(), signal.SIGKILL)

        assert in_child(live) == signal.SIGKILL
        counted = shared.counters
        balanced(counted, buffered=counted["kernel_received"] - counted["kernel_dropped"]
                 - counted["frames"] - counted["kernel_lost"])
        assert counted["kernel_lost"] >= lost and counted["kernel_dropped"] >= dropped
        lost, dropped = counted["kernel_lost"], counted["kernel_dropped"]
        if rng.random() < 0.5:
            seen += shared.entries()
    shared.dispatcher().end()
    seen += shared.entries()
    counted = shared.counters
    balanced(counted)
    assert shared.slot.starts == 26
    assert len(seen) == counted["delivered"]
    numbers = [e["sequence"] for e in seen]
    assert len(set(numbers)) == len(numbers)
    assert max(numbers) <= FIRST + counted["frames"]
