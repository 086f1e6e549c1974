"""Outputs of a live run that stand still: what waits for them, where, and what a kill leaves of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time

import pytest

from gazer.counters import SINK, Slot
from tests.conftest import eventually
from tests.test_merge import line
from tests.test_succession_sink import BLOCK, Drain, Kill, Sinks


@pytest.fixture
def bell():
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


class Turns:
    """A live sink in this process, turn by turn."""

    def __init__(self, sinks, bell, queue):
        self.slot, self.merge, self.outputs = sinks.begin(Kill(), bell, queue)

    def until(self, what, seconds=10):
        deadline = time.monotonic() + seconds
        while not what():
            held = self.outputs.held()
            self.outputs.flush(all_=not held and self.merge.run() == "full")
            self.merge.nap(1)
            assert time.monotonic() < deadline, what.__doc__

    def output(self, number):
        return self.slot.read_output(number)


def stuck_pair(tmp_path, ring=1 << 14):
    """A file, and a FIFO whose reader does not read."""
    path, fifo = tmp_path / "out", tmp_path / "fifo"
    os.mkfifo(fifo)
    fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    fcntl.fcntl(fd, 1031, 4096)             # F_SETPIPE_SZ
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, b"x")
    return path, fd, Sinks([str(path), str(fifo)], ring=ring)


def test_one_stuck_output_stops_neither_the_others_nor_the_rings(tmp_path, bell):
    path, fd, sinks = stuck_pair(tmp_path)
    turns = Turns(sinks, bell, queue=10 * BLOCK)
    for _ in range(40):                     # ten times what the rings hold
        sinks.fill(100, end=False)

        def written():
            """the file has all that the rings were given"""
            return path.exists() and path.read_bytes() == sinks.whole()

        turns.until(written)
    lost = turns.output(1)["dropped"]
    assert 0 < lost <= sinks.put
    assert turns.output(1)["events"] == 0
    told = [text for text in sinks.said if "does not keep up" in text]
    assert len(told) == 1 and "the other outputs go on" in told[0]

    # It was in no queue of ten blocks and no block in hand: the rest is still to be written.
    waiting = sinks.put - lost
    assert 10 * BLOCK // 2 <= sum(len(line(i)) for i in range(waiting)) <= 13 * BLOCK
    data = b""

    def caught_up():
        """the FIFO has got what waited for it"""
        nonlocal data
        with contextlib.suppress(BlockingIOError):
            data += os.read(fd, 1 << 20)
        output = turns.output(1)
        return output["events"] + output["dropped"] == sinks.put

    turns.until(caught_up)
    turns.until(lambda: any("keeps up again" in text for text in sinks.said))
    caught_up()
    numbers = [int(text) for text in data.lstrip(b"x").split()]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == turns.output(1)["events"]
    assert turns.output(1)["dropped"] >= lost
    turns.outputs.close()
    os.close(fd)


def test_what_waits_for_a_stuck_output_is_in_the_rings_while_they_have_room(tmp_path):
    """Killed with a queue full of blocks: nothing is lost."""
    path, fd, sinks = stuck_pair(tmp_path, ring=1 << 16)
    sinks.fill()
    pid = sinks.start()

    def written():
        """the file has all there is, and that is committed"""
        done = Slot(sinks.ledger, 0).read_output(0)["done"]
        return done == sinks.put and path.read_bytes() == sinks.whole()

    eventually(written)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    ledger = Slot(sinks.ledger, 0)
    assert ledger.read_output(1)["done"] == ledger.read(SINK)["settled"] == 0
    drain = Drain(sinks.paths[1])
    assert sinks.run()
    data = drain.end().lstrip(b"x")
    os.close(fd)
    assert path.read_bytes() == sinks.whole()
    assert data.lstrip(b"\n") == sinks.whole()
    assert sinks.balance() == [0, 0]


def test_what_the_rings_did_not_wait_for_is_lost_with_the_sink_and_counted(tmp_path, bell):
    path, fd, sinks = stuck_pair(tmp_path)
    turns = Turns(sinks, bell, queue=1 << 20)
    for _ in range(10):
        sinks.fill(100, end=False)
        turns.until(lambda: path.exists() and path.read_bytes() == sinks.whole())
    assert turns.output(1)["dropped"] == turns.output(1)["events"] == 0
    settled = turns.slot.read(SINK)["settled"]
    assert 500 < settled <= sinks.put
    sinks.fill(10)
    os.close(fd)
    os.unlink(sinks.paths[1])
    sinks.paths[1] = str(tmp_path / "other")        # a successor, as if this one were dead
    assert sinks.run()
    assert path.read_bytes() == sinks.whole()
    assert sinks.balance() == [0, settled]
    rest = (tmp_path / "other").read_bytes().lstrip(b"\n")
    assert rest == b"".join(line(i) for i in range(settled, sinks.put))


def test_while_nothing_can_go_on_the_sink_is_shown_as_waiting(tmp_path, bell):
    _, fd, sinks = stuck_pair(tmp_path)
    sinks.paths = sinks.paths[1:]
    turns = Turns(sinks, bell, queue=10 * BLOCK)
    sinks.fill(100, end=False)
    turns.until(lambda: turns.slot.state == "waiting")
    before = turns.slot.heartbeat
    turns.until(lambda: turns.slot.heartbeat > before)      # and it does not hang
    data = b""

    def goes_on():
        nonlocal data
        with contextlib.suppress(BlockingIOError):
            data += os.read(fd, 1 << 16)
        return turns.slot.state == "running" and data.count(b"\n") == 100

    turns.until(goes_on)
    turns.outputs.close()
    os.close(fd)
