"""Outputs of a live run: opened again, out of room, without a reader; whole lines all the same."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import subprocess
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest

from gazer.counters import Slot, ledger_bytes, ledger_create
from gazer.ring import Ring, ring_bytes
from gazer.sinks import output as of_output
from gazer.sinks.files import ClosedError, FileOutput, GaveUpError
from gazer.sinks.merge import Merge
from gazer.sinks.outputs import Outputs
from gazer.sinks.process import pump
from gazer.sinks.threads import Hand
from gazer.testing import MARK_END, Writer, event_entry
from tests.conftest import bound_by_permissions, eventually, whole_lines
from tests.test_merge import TEXT, line


class Sink:
    """A live sink in this process, with one lane."""

    def __init__(self, *paths, queue=1 << 20, capacity=4000, ring=1 << 20):
        memory = self.memory = bytearray(ring_bytes(ring))
        self.writer = Writer(Ring(memory, create=ring))
        ledger = bytearray(ledger_bytes(1))
        ledger_create(ledger)
        self.slot = Slot(ledger, 0)
        self.said = []
        self.stop = False
        self.bell = os.eventfd(0, os.EFD_NONBLOCK)
        self.files = [
            FileOutput(str(path), lines=True, notice=self.said.append, lasting=True,
                       giving_up=lambda: self.stop, waits=lambda _: None)
            for path in paths]
        self.outputs = Outputs(
            files=self.files, forms=[TEXT] * len(paths), lines=[True] * len(paths),
            slot=self.slot, capacity=capacity, notice=self.said.append, fault=self.said.append,
            hand=partial(Hand, bell=self.bell), queue=queue)
        self.merge = Merge(rings=[Ring(memory)], bells=[-1], bell=self.bell, slot=self.slot,
                           blocks=self.outputs.blocks)
        self.outputs.attach(self.merge)
        self.put = 0

    def events(self, count, text=line):
        for number in range(self.put, self.put + count):
            assert self.writer.write(event_entry(1 + number, number, [text(number)]))
        self.put += count
        self.writer.publish()
        self.writer.mark(self.put + 1, 0)

    def turn(self):
        self.outputs.flush(all_=self.merge.run() == "full")
        self.merge.nap(5)

    def until(self, what, seconds=20.0):
        deadline = time.monotonic() + seconds
        while not what():
            self.turn()
            assert time.monotonic() < deadline, what.__doc__

    def counted(self, number=0):
        return self.slot.read_output(number)

    def written(self):
        """everything is written or dropped"""
        return all(self.counted(i)["events"] + self.counted(i)["dropped"]
                   == self.put + self.counted(i)["stats"] for i in range(len(self.files)))

    def heard(self, text):
        self.until(lambda: any(text in one for one in self.said))

    def close(self):
        self.stop = True
        while self.merge.run() == "full":
            self.outputs.flush()
        self.outputs.flush()
        self.outputs.drain(5)
        self.outputs.close()
        os.close(self.bell)


def numbers(data):
    return [int(text.split()[0]) for text in whole_lines(data)]


# ---------------------------------------------------------------------------------- opened again


def test_a_renamed_file_is_let_go_of_and_the_sequence_is_complete(tmp_path):
    path = tmp_path / "out"
    sink = Sink(path)
    for generation in range(1, 6):
        sink.events(500)
        sink.turn()                             # some are on their way
        path.rename(tmp_path / f"out.{generation}")
        sink.outputs.reopen()
        sink.events(500)
        sink.until(path.exists)
    sink.until(sink.written)
    parts = [(tmp_path / f"out.{i}").read_bytes() for i in range(1, 6)] + [path.read_bytes()]
    assert b"".join(parts) == b"".join(line(i) for i in range(5000))
    assert all(whole_lines(part) for part in parts[1:])
    sink.close()


def test_it_happens_at_once_while_there_is_nothing_to_write(tmp_path):
    path = tmp_path / "out"
    sink = Sink(path)
    path.rename(tmp_path / "old")
    sink.outputs.reopen()
    sink.until(path.exists)
    fds = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
           if os.path.exists(f"/proc/self/fd/{fd}")}
    assert str(tmp_path / "old") not in fds     # and whoever compresses it has all of it
    sink.close()


def test_it_happens_while_there_is_always_something_to_write(tmp_path):
    """So does the stats event: a sink that is never idle neither keeps a rotated file nor is
    silent about its counters."""
    path = tmp_path / "out"
    sink = Sink(path)
    sink.events(3000)
    sink.writer.mark(MARK_END, 0)
    states, told, merge = [], [], sink.merge

    class Merge_:
        def run(self):
            if not states:
                path.rename(tmp_path / "old")
                sink.slot.ask_reload()
            states.append(merge.run())
            return states[-1]

        def __getattr__(self, name):
            return getattr(merge, name)

    class Stats:
        def due(self):
            return len(states) == 2

        def write(self, *, last=False):
            told.append((len(states), last))

    pump(SimpleNamespace(slot=sink.slot), Merge_(), sink.outputs, Stats(), 5.0)
    assert set(states[:-1]) == {"full"} and states[-1] == "end" and len(states) > 3
    assert told == [(2, False), (len(states), True)]
    parts = [(tmp_path / "old").read_bytes(), path.read_bytes()]
    assert numbers(b"".join(parts)) == list(range(3000)) and parts[1]
    sink.close()


def test_what_it_makes_is_not_for_everyone_to_read(tmp_path):
    path = tmp_path / "out"
    before = os.umask(0)
    try:
        sink = Sink(path)
        modes = [stat.S_IMODE(path.stat().st_mode)]
        path.rename(tmp_path / "old")
        sink.outputs.reopen()
        sink.until(path.exists)
        modes.append(stat.S_IMODE(path.stat().st_mode))
    finally:
        os.umask(before)
    assert modes == [0o640, 0o640]
    sink.close()


def test_if_it_can_t_be_opened_again_the_old_one_goes_on(tmp_path):
    path = tmp_path / "out"
    sink = Sink(path)
    path.rename(tmp_path / "old")
    path.mkdir()
    sink.outputs.reopen()
    sink.events(100)
    sink.until(sink.written)
    assert (tmp_path / "old").read_bytes() == b"".join(line(i) for i in range(100))
    (said,) = sink.said
    assert said == (f"can't open {path}: Is a directory; still writing to the file that was open")
    sink.close()


def test_standard_output_and_a_fifo_are_not_harmed(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    sink = Sink("/dev/stdout", fifo)
    for _ in range(3):
        sink.outputs.reopen()
        sink.events(10, lambda number: b"")     # nothing to see on our own standard output
        sink.until(sink.written)
    sink.events(10, lambda number: b"\n")
    sink.until(sink.written)
    assert os.read(fd, 100) == b"\n" * 10
    assert sink.said == []
    sink.close()
    os.close(fd)


# ------------------------------------------------------------------------------------- full disks


def long(number):
    return b"%d %s\n" % (number, b"x" * 100)


def test_a_full_disk_is_told_counted_and_over_when_there_is_room(disk, tmp_path):
    path, other = disk / "out", tmp_path / "other"
    sink = Sink(path, other, queue=20_000)
    while not any("does not keep up" in text for text in sink.said):
        sink.events(50, long)
        sink.until(lambda: sink.counted(1)["events"] == sink.put)
    assert sink.said[0] == f"waiting for room to write to {path}: no space left on device"
    dropped = sink.counted()["dropped"]
    assert dropped > 0 == sink.counted(1)["dropped"]
    for _ in range(20):
        sink.events(50, long)
        sink.until(lambda: sink.counted(1)["events"] == sink.put)
    assert sink.counted()["dropped"] > dropped
    assert len(sink.said) == 2                  # no line for each of them
    subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
    sink.until(sink.written)
    assert f"there is room again: writing to {path}" in sink.said
    sink.heard(f"{path} keeps up again: ")
    sink.events(50, long)
    sink.until(sink.written)
    have = numbers(path.read_bytes())
    assert have == sorted(set(have)) and have[-50:] == list(range(sink.put - 50, sink.put))
    assert len(have) == sink.counted()["events"]
    assert sink.counted()["dropped"] == sink.put - len(have)
    assert numbers(other.read_bytes()) == list(range(sink.put))
    sink.close()


def test_a_stop_while_the_disk_is_full_leaves_whole_lines(disk):
    path = disk / "out"
    sink = Sink(path)
    while not sink.said:
        sink.events(50, long)
        sink.turn()
    sink.close()
    have = numbers(path.read_bytes())
    assert have == list(range(len(have)))
    assert sink.counted()["events"] == len(have)
    assert sink.written()
    assert any("interrupted while" in text for text in sink.said)


def test_a_file_moved_away_while_its_disk_is_full_ends_with_a_whole_line(disk, tmp_path):
    """The block that waits goes into the new file as a whole."""
    path, elsewhere = disk / "out", tmp_path / "elsewhere"
    sink = Sink(path)
    while not sink.said:
        sink.events(50, long)
        sink.turn()
    path.rename(disk / "old")
    path.symlink_to(elsewhere)
    sink.outputs.reopen()
    sink.until(sink.written)
    old, new = numbers((disk / "old").read_bytes()), numbers(elsewhere.read_bytes())
    assert old + new == list(range(sink.put))
    assert old and new
    sink.close()


# ------------------------------------------------------------------------------- readers that leave


def test_a_fifo_is_waited_for_without_holding_up_the_start(tmp_path):
    fifo, path = tmp_path / "fifo", tmp_path / "out"
    os.mkfifo(fifo)
    sink = Sink(fifo, path)
    assert sink.said == [f"waiting for someone to read {fifo}"]
    sink.events(100)
    sink.until(lambda: sink.counted(1)["events"] == 100)
    assert sink.counted(0) | {"blocked_since": 0} == dict.fromkeys(sink.counted(0), 0)
    fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    sink.until(sink.written)
    assert os.read(fd, 10_000) == path.read_bytes()
    os.close(fd)
    sink.close()


@pytest.mark.parametrize("why", ["nobody reads it", "who reads it does not go on"])
def test_one_output_of_two_that_takes_nothing_is_told_and_in_the_ledger(
        tmp_path, monkeypatch, why):
    """The sink is not blocked; each line comes again, though the output itself says nothing."""
    monkeypatch.setattr(of_output, "STILL", 1.5)
    monkeypatch.setattr(of_output, "REMIND", 0.5)
    fifo, path = tmp_path / "fifo", tmp_path / "out"
    os.mkfifo(fifo)
    fd = -1
    if why != "nobody reads it":
        fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(fd, b"\n" * 4096)
    sink = Sink(fifo, path)
    before = time.monotonic_ns()
    sink.events(100)

    def blocked():
        """the ledger says since when"""
        return sink.counted(0)["blocked_since"]

    sink.until(blocked)
    since = blocked()
    assert before - 1e6 <= since <= time.monotonic_ns() - 0.9e9
    line = f"{fifo} has taken nothing for 2 s: {why}"
    sink.until(lambda: sum("has taken nothing" in text for text in sink.said) >= 3)
    assert line in sink.said
    assert blocked() == since and sink.counted(1)["blocked_since"] == 0
    assert sink.slot.state != "waiting" and sink.counted(1)["events"] == 100
    data = b""
    fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK) if fd < 0 else fd

    def moves():
        """it has taken all, and the ledger says so"""
        nonlocal data
        with contextlib.suppress(BlockingIOError):
            data += os.read(fd, 1 << 16)
        return sink.written() and not blocked()

    sink.until(moves)
    sink.heard(f"{fifo} goes on after ")
    count = len(sink.said)
    sink.events(1)
    sink.until(moves)
    assert len(sink.said) == count
    os.close(fd)
    sink.close()


def test_a_successor_does_not_say_what_its_predecessor_saw(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    sink = Sink(fifo)
    sink.events(1)
    sink.until(lambda: sink.counted()["blocked_since"])
    sink.outputs.attach(sink.merge)
    assert sink.counted()["blocked_since"] == 0
    sink.close()


def test_a_fifo_s_next_reader_gets_whole_lines(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    sink = Sink(fifo)
    sink.events(100)
    sink.until(sink.written)
    os.close(fd)                # what it left unread is its loss
    sink.events(100)
    sink.heard(f"nobody reads {fifo} any more")
    fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    sink.heard(f"writing to {fifo} again")
    sink.until(sink.written)
    assert numbers(os.read(fd, 10_000)) == list(range(100, 200))
    assert sink.counted()["dropped"] == 0
    os.close(fd)
    sink.close()


def test_a_reader_of_standard_output_that_leaves_ends_that_output(tmp_path):
    read, write = os.pipe()
    before = os.dup(1)
    try:
        os.dup2(write, 1)
        sink = Sink("-", tmp_path / "out")
    finally:
        os.dup2(before, 1)
        os.close(before)
        os.close(write)
    os.close(read)
    sink.events(100)
    sink.heard("nobody reads standard output any more; the other outputs go on")
    sink.events(100)
    sink.until(sink.written)
    assert (sink.counted(0)["dropped"], sink.counted(1)["events"]) == (200, 200)
    sink.files[1]._write = lambda block: (_ for _ in ()).throw(ClosedError(0))
    sink.events(1)
    with pytest.raises(ClosedError):
        sink.until(lambda: False)
    os.close(sink.bell)


def test_another_error_is_told_once_and_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr("gazer.sinks.files.AGAIN", 0.05)
    monkeypatch.setattr("gazer.sinks.files.RETRY", 0.01)
    path = tmp_path / "out"
    sink = Sink(path)
    fails = 5
    real = FileOutput._write_all

    def failing(self, block, start):
        nonlocal fails
        if fails:
            fails -= 1
            os.write(self._fd, block[:7])
            self._take_back(start, 7)
            raise self._failed("write to", OSError(5, "Input/output error"))
        real(self, block, start)

    monkeypatch.setattr(FileOutput, "_write_all", failing)
    sink.events(100)
    sink.until(sink.written)
    assert path.read_bytes() == b"".join(line(i) for i in range(100))
    assert sink.said == [f"can't write to {path}: Input/output error; trying again",
                         f"writing to {path} again"]
    sink.close()


@pytest.mark.parametrize("beginning, why", [
    ("missing", "there is no folder"), ("read-only", "may not be made in")])
def test_what_can_t_be_opened_at_the_start_is_an_error(gazer, tmp_path, beginning, why):
    """A typo must not run for a year."""
    path = tmp_path / "no" / "out"
    if beginning == "read-only":
        path.parent.mkdir()
        path.parent.chmod(0o500)
    done = gazer("run", "-i", "lo", "-c", config_for(tmp_path, path), command="gazer",
                 **bound_by_permissions())
    assert done.code == 2       # the configuration can't be: seen before anything is opened
    assert done.stderr.startswith(f"gazer: outputs[0].path: {path}: {why} {path.parent}")
    assert len(done.stderr.splitlines()) == 1


def config_for(folder, path):
    config = folder / "sensor.yaml"
    config.write_text(f"outputs: [{{type: text, path: {path}}}]\nmetrics: {{listen: ''}}\n"
                      "workers: 1\n")
    return config


# --------------------------------------------------------------------------------- one write stuck


def test_a_frame_that_fills_a_ring_does_not_wait_for_an_output_that_stands_still(tmp_path):
    """Its worker waits for room until it has all there is, or else would wait for a reader that
    may never come; and capture would drop frames meanwhile."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    sink = Sink(fifo, ring=1 << 16)
    ring = Ring(sink.memory)
    sink.events(250)
    held = ring.filled
    merge, waits = sink.merge, []

    class Merge_:
        def wait(self, milliseconds):
            waits.append(ring.filled)
            assert len(waits) < 100, "it gives nothing back"
            if len(waits) == 5:         # as a worker does (ring_producer_sleeps)
                struct.pack_into("<Q", sink.memory, 640, 1)
            if waits[-1] == 0:
                sink.stop = True
                sink.slot.ask(quit=True)
            merge.wait(milliseconds)

        def __getattr__(self, name):
            return getattr(merge, name)

    pump(SimpleNamespace(slot=sink.slot), Merge_(), sink.outputs, None, 5.0)
    assert (1 << 16) // 8 < held < (1 << 16) * 3 // 8
    assert waits[:5] == [held] * 5 and waits[-1] == 0
    assert sink.counted()["dropped"] == 250
    sink.close()


def test_a_write_that_never_returns_is_given_up_by_a_stop(tmp_path):
    """A dead file server: the thread can't be told anything, so it is left behind."""
    sink = Sink(tmp_path / "out", tmp_path / "other")
    over = threading.Event()
    hand = sink.outputs.all[0].hand
    sink.files[0]._write = lambda block: over.wait()
    sink.events(100)
    sink.until(lambda: sink.counted(1)["events"] == 100)
    assert sink.counted(0)["events"] == 0
    sink.slot.ask(drain=True)
    sink.outputs.drain(0.2)
    assert sink.written()
    assert sink.counted(0)["dropped"] == 100
    assert [text for text in sink.said if "interrupted" in text]
    over.set()
    hand.end()
    hand._thread.join()
    os.close(sink.bell)


def test_a_stop_waits_for_who_goes_on_reading(tmp_path):
    """Slowly, but it moves: nothing is lost, however long it takes in all."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    sink = Sink(fifo)
    sink.events(2000, long)
    data = b""
    over = False

    def reader():
        nonlocal data
        while not over or not data.endswith(b"\n"):
            with contextlib.suppress(BlockingIOError):
                data += os.read(fd, 8000)
            time.sleep(0.02)

    sink.until(lambda: sink.outputs.all[0].stuck(0.05))
    thread = threading.Thread(target=reader)
    thread.start()
    sink.slot.ask(drain=True)
    while sink.merge.run() == "full":
        sink.outputs.flush()
    sink.outputs.flush()
    sink.outputs.drain(1.0)
    assert sink.counted()["events"] == 2000

    def all_read():
        return data.count(b"\n") == 2000

    eventually(all_read)
    over = True
    thread.join()
    assert numbers(data) == list(range(2000))
    os.close(fd)
    sink.outputs.close()
    os.close(sink.bell)


def test_giving_up_is_an_answer_not_an_exception(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    output = FileOutput(str(fifo), lines=True, notice=lambda _: None, giving_up=lambda: True,
                        waits=lambda _: None, lasting=True)
    with pytest.raises(GaveUpError):
        output.write(memoryview(b"x\n"))
