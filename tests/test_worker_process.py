"""A worker process around its engine: what it makes of the configuration, what it gives up, and
what it says of a frame that it skips."""

from __future__ import annotations

import mmap
import os
import signal
import struct
from dataclasses import replace

import pytest

from gazer import counters
from gazer.child import Boot
from gazer.config import Capture, Config, Service
from gazer.config import Ring as RingSection
from gazer.ring import Ring
from gazer.topology import Topology
from gazer.workers import doors, process
from gazer.workers.sample import read_samples
from tests.succession import START
from tests.test_engine import ask, tell

CAPACITY = 1 << 21


class Place:
    """A live run's shared memory, and one worker of it in a process of its own."""

    def __init__(self, tmp_path, interfaces=("a", "b"), quarantine="") -> None:
        self.config = replace(
            Config(), workers=1, ring=RingSection(size=CAPACITY),
            capture=replace(Capture(), interfaces=interfaces),
            service=replace(Service(), quarantine=quarantine))
        self.topology = Topology.of(self.config)
        self.memory = {name: mmap.mmap(-1, size) for name, size in self.topology.segments().items()}
        counters.ledger_create(self.memory["ledger"])
        self.number = self.topology.worker(0)
        for name in self.memory:
            if name.startswith(("frames", "events")):
                Ring(self.memory[name], create=CAPACITY).release()
        self.read, self.write = os.pipe()
        self.bells = tuple(os.eventfd(0, os.EFD_NONBLOCK) for _ in range(self.topology.observer))
        part = next(p for p in self.topology.parts() if p.role == "worker")
        self.boot = Boot(part=part, config=self.config, segments={}, bells=self.bells, stdin=0,
                         seed=7, supervisor=os.getpid(), reports=self.write,
                         confined=bool(interfaces))
        self.lanes = [doors.FrameRing(self.ring(self.topology.frames(c, 0)))
                      for c in range(self.topology.captures)]
        self.sink = doors.EventRing(self.ring(self.topology.events(0)))

    # What the process asks of its Child:

    def attach(self, name: str):
        return memoryview(self.memory[name])

    def ring(self, name: str) -> Ring:
        return Ring(self.memory[name])

    def report(self, kind: str, text: str = "") -> None:
        os.write(self.write, f"{kind} {text}\n".encode())

    @property
    def slot(self) -> counters.Slot:
        return counters.Slot(self.memory["ledger"], self.number)

    def work(self, before=lambda: None) -> tuple[int, list[str]]:
        """How the process ends, and what it reports besides that it is ready."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                before()
                child = self
                child.slot.open(os.getpid())
                process.work(child)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        os.set_blocking(self.read, False)
        try:
            said = os.read(self.read, 65536).decode().splitlines()
        except BlockingIOError:
            said = []
        assert "ready " in said
        said.remove("ready ")
        return os.waitstatus_to_exitcode(status), said


def ledger_slot(place: Place) -> int:
    """Where the worker's slot begins."""
    return len(place.memory["ledger"]) // (place.topology.processes + 1) * (place.number + 1)


def frames(place: Place) -> None:
    place.lanes[0].put(ask(), 1, START, START)
    place.lanes[-1].put(tell(), (len(place.lanes) - 1) << 56 | 1, START + 5, START + 5)
    for lane in place.lanes:
        lane.mark()


@pytest.mark.parametrize("interfaces", [("a", "b"), ("a",), ()])
def test_it_takes_the_frames_of_all_capture_processes(tmp_path, interfaces):
    """Confined in a live run, which nobody notices; and there it leaves samples."""
    place = Place(tmp_path, interfaces)
    frames(place)
    code, said = place.work()
    assert (code, said) == (0, [])
    (event,) = place.sink.take()
    assert b'"status": "success"' in event[3][0] and place.sink.mark[0] is None
    assert place.slot.read(counters.WORKER)["frames"] == 2
    if interfaces:
        assert [one.name for one in read_samples(place.memory["samples0"])] == ["example.com."]
    else:
        assert "samples0" not in place.memory


def test_a_confined_worker_opens_no_file(tmp_path):
    place = Place(tmp_path)
    frames(place)
    engine = process.Engine

    class Taken(engine):
        def run(self):
            open(tmp_path / "made", "w").close()
            return "end"

    def before():
        process.Engine = Taken

    code, _ = place.work(before)
    assert code == -signal.SIGSYS and not (tmp_path / "made").exists()


@pytest.mark.parametrize("kept", [True, False, None])
def test_a_frame_that_killed_twice(tmp_path, kept):
    """It is told of, kept if there is a place for it, and skipped."""
    path = tmp_path / "q.pcap"
    if kept is False:
        path.mkdir()
    place = Place(tmp_path, quarantine="" if kept is None else str(path))
    frames(place)
    words = ledger_slot(place)
    struct.pack_into("<2Q", place.memory["ledger"], words + 24, 1 << 56 | 1, 1 << 56 | 1)
    code, said = place.work()
    assert code == 0 and len(said) == 1
    text = "notice gazer:worker0 skips a frame that it has died of twice"
    if kept:
        assert said == [f"{text}; it is kept in {path}"]
        assert path.read_bytes().endswith(tell())
    elif kept is None:
        assert said == [text]
    else:
        assert said[0].startswith(f"{text}; can't keep it in {path}: ")
    counts = place.slot.read(counters.WORKER)
    assert (counts["frames"], counts["quarantined"], counts["no_reply"]) == (1, 1, 1)
    (event,) = place.sink.take()
    assert b'"status": "no_reply"' in event[3][0]
