"""A sink that rotates is killed at each of its steps, and another one goes on: all files together
hold each event once, and in order.

Every call of the operating system by the modules that write, rename and compress is a step
(tests/stepwise.py); the rings and the ledger outlive the sink (tests/test_succession_sink.py).
"""

from __future__ import annotations

import functools
import gzip
import os
import random
import re
import signal
from types import SimpleNamespace

import pytest

from gazer.config import Rotation
from gazer.config.patterns import Names
from gazer.counters import Slot
from gazer.ring import Ring
from gazer.sinks import compress, files, rotation
from gazer.sinks.merge import Merge
from gazer.sinks.outputs import Outputs
from gazer.sinks.process import pump
from gazer.sinks.rotation import RotatingOutput
from gazer.sinks.threads import Hand
from tests.conftest import eventually
from tests.stepwise import stepwise
from tests.test_merge import TEXT
from tests.test_succession_sink import BLOCK, Kill, Sinks

LIMIT = 3 * BLOCK
PATHS = ["dns.log", "dns-%Y%m%d-%H.log", "dns-%H%M%S.log"]
WRITERS = (files, rotation)


class Rotating(Sinks):
    """Sinks with one output that rotates."""

    def __init__(self, folder, path, **keys):
        super().__init__([str(folder / path)], ring=1 << 18)    # holds all: nothing is given up
        self.folder = folder
        self.rotation = Rotation(**{"size": LIMIT, **keys})

    def begin(self, kill, bell, queue=1 << 20):
        slot = Slot(self.ledger, 0)
        slot.open(os.getpid())
        outputs = Outputs(
            files=[RotatingOutput(path, rotation=self.rotation, lines=True,
                                  notice=self.said.append, lasting=True, giving_up=lambda: False,
                                  waits=lambda _: None, place=slot.output_place(number))
                   for number, path in enumerate(self.paths)],
            forms=[TEXT] * len(self.paths), lines=[True] * len(self.paths), slot=slot,
            capacity=BLOCK, notice=self.said.append, fault=self.said.append,
            hand=functools.partial(Hand, bell=bell), queue=queue)
        merge = Merge(rings=[Ring(memory) for memory in self.rings], bells=[-1] * self.lanes,
                      bell=bell, slot=slot, blocks=outputs.blocks)
        outputs.attach(merge)
        return slot, merge, outputs

    def steps(self, *modules, at=None, after=False):
        """A sink in a process of its own that is killed at this step; True if it came to its end,
        and how many steps there were."""
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 9
            try:
                with stepwise(*modules, at=at, after=after) as steps:
                    bell = os.eventfd(0, os.EFD_NONBLOCK)
                    slot, merge, outputs = self.begin(None, bell)
                    pump(SimpleNamespace(slot=slot), merge, outputs, None, 5.0)
                    outputs.close()
                os.write(theirs, str(steps.done).encode())
                code = 0
            finally:
                os._exit(code)
        os.close(theirs)
        _, status = os.waitpid(pid, 0)
        with os.fdopen(ours, "rb") as file:
            done = int(file.read() or 0)
        assert status in (0, signal.SIGKILL), f"the sink failed: {status}"
        return status == 0, done

    def contents(self):
        """All files, in the order in which they were written."""
        names = Names(self.paths[0])
        found = []
        for entry in os.listdir(self.folder):
            parsed = names.parse(entry)
            assert parsed is not None or entry == names.literal, f"{entry} is nobody's"
            assert parsed is None or not parsed.part, f"{entry} was left behind"
            data = (self.folder / entry).read_bytes()
            if entry.endswith(".gz"):
                data = gzip.decompress(data)
            key = (2, "", 0) if parsed is None else (1, parsed.base, parsed.number)
            found.append((key, entry, data))
        assert len({key for key, _, _ in found}) == len(found), "one file twice"
        return [(entry, data) for _, entry, data in sorted(found)]

    def complete(self):
        contents = self.contents()
        assert b"".join(data for _, data in contents) == self.whole()
        for _, data in contents:
            assert data.endswith(b"\n") or not data
            assert len(data) <= LIMIT
        assert self.balance() == [0]
        return contents


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_each_step_of_a_rotation(tmp_path, path, after):
    """The first of them each by itself, then some by chance."""
    def sinks(number):
        folder = tmp_path / str(number)
        folder.mkdir()
        made = Rotating(folder, path)
        made.fill(600)
        return made

    whole = sinks("whole")
    ended, steps = whole.steps(*WRITERS)
    assert ended and len(whole.complete()) >= len(whole.whole()) // LIMIT
    chosen = random.Random(path)
    first = 24          # opens the first file, writes three blocks, opens the second, ...
    for number in [*range(first), *chosen.sample(range(first, steps), 12)]:
        one = sinks(number)
        assert not one.steps(*WRITERS, at=number, after=after)[0]
        assert one.steps(*WRITERS)[0]
        one.complete()


@pytest.mark.parametrize("path", PATHS)
def test_killed_again_and_again_while_it_compresses(tmp_path, path):
    """And in between a HUP without need: nothing is closed by it."""
    chosen = random.Random(path)
    sinks = Rotating(tmp_path, path, compress="gzip")
    sinks.fill(1500)
    kills = 0
    while not sinks.steps(*WRITERS, compress, at=chosen.randrange(40),
                          after=chosen.random() < 0.5)[0]:
        kills += 1
        assert kills < 200
    assert kills > 5
    # What they all left is compressed by the next one.
    last = RotatingOutput(sinks.paths[0], rotation=sinks.rotation, lines=True, notice=print,
                          giving_up=lambda: False, waits=lambda _: None)
    last.close()
    contents = sinks.complete()
    # What is empty is not, nor what the last one holds open.
    assert len([entry for entry, data in contents if data and not entry.endswith(".gz")]) <= 2


@pytest.mark.parametrize("path", ["dns-%H%M%S.log", "dns.log"])
def test_the_last_block_is_cut_from_the_right_file_when_its_time_is_over(tmp_path, path):
    """Killed within a block, and the successor's first act would be another file."""
    sinks = Rotating(tmp_path, path, interval_ns=10**9)
    sinks.fill(200)
    half = []

    class Half:
        """Writes a half of the third block, then dies."""

        def __getattr__(self, name):
            return getattr(os, name)

        def write(self, fd, data):
            if re.match(rb"\d", bytes(data[:1])):
                half.append(fd)
                if len(half) == 3:
                    os.write(fd, bytes(data[: len(data) // 2 - 1]))      # within a line
                    os.kill(os.getpid(), signal.SIGKILL)
            return os.write(fd, data)

    pid = os.fork()
    if pid == 0:
        try:
            files.os = Half()
            slot, merge, outputs = sinks.begin(None, os.eventfd(0, os.EFD_NONBLOCK))
            pump(SimpleNamespace(slot=slot), merge, outputs, None, 5.0)
        finally:
            os._exit(9)
    _, status = os.waitpid(pid, 0)
    assert status == signal.SIGKILL
    (torn,) = [f for f in tmp_path.iterdir() if f.read_bytes()[-1:] not in (b"", b"\n")]
    size = torn.stat().st_size
    for name in os.listdir(tmp_path):       # a while ago
        os.utime(tmp_path / name, (1_700_000_000, 1_700_000_000))
    inode = torn.stat().st_ino
    if "%" in path:
        old = tmp_path / "dns-000000.log"   # of another time than the successor's, surely
        torn.rename(old)
    assert sinks.steps()[0]
    contents = sinks.complete()
    (cut,) = [name for name, _ in contents if (tmp_path / name).stat().st_ino == inode]
    assert (tmp_path / cut).stat().st_size < size
    assert cut != path and len(contents) > 1


def test_a_compressed_file_that_came_to_the_inode_is_not_cut(tmp_path):
    sinks = Rotating(tmp_path, "dns-%Y%m%d.log")
    sinks.fill()
    other = tmp_path / "dns-20200101.log.gz"
    other.write_bytes(b"x" * 1000)
    about = other.stat()
    slot = Slot(sinks.ledger, 0)
    slot.open(os.getpid())
    slot.place_output(0, files._file(about), 10)
    slot.publish()
    assert sinks.steps()[0]
    assert other.stat().st_size == 1000
    other.unlink()
    sinks.complete()


def test_hup_and_rotation_together(tmp_path):
    """Moved away by hand now and then, each time followed by HUP: the sequence is complete."""
    away = tmp_path / "away"
    away.mkdir()
    where = tmp_path / "here"
    where.mkdir()
    sinks = Rotating(where, "dns.log", compress="gzip")
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    slot, merge, outputs = sinks.begin(None, bell)
    for generation in range(8):
        sinks.fill(200, end=False)

        def written():
            outputs.flush(all_=merge.run() == "full")
            return slot.read_output(0)["events"] == sinks.put

        eventually(written)
        (where / "dns.log").rename(away / f"moved{generation}")
        outputs.reopen()
        eventually(lambda: (outputs.turn(), (where / "dns.log").exists())[1])
    outputs.drain(5)
    outputs.close()
    os.close(bell)
    parts = [data for _, data in sinks.contents()]
    parts += [path.read_bytes() for path in away.iterdir()]
    parts = [part for part in parts if part]
    assert len(parts) > 12
    parts.sort(key=lambda part: int(part.split()[0]))
    assert b"".join(parts) == sinks.whole()


def test_a_file_that_hup_opened_is_committed_ahead_of_what_is_written_to_it(tmp_path):
    """Also without rotation: else a successor could not take back the first block in it."""
    path = tmp_path / "out"
    sinks = Sinks([str(path)])
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    _, _, outputs = sinks.begin(Kill(), bell)
    path.rename(tmp_path / "moved")
    outputs.reopen()
    outputs.drain(5)
    place = Slot(sinks.ledger, 0).output_place(0)
    assert place == (files._file(path.stat()), 0, 0)
    outputs.close()
    os.close(bell)
