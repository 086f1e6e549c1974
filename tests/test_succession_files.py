"""An output that its successor can't open just then: it alone waits, as it would have without the
death of the sink, and then stands where it stood."""

from __future__ import annotations

import errno
import gzip
import os
import time

import pytest

from gazer.config import Rotation
from gazer.errors import OutputError
from gazer.sinks import files, rotation
from gazer.sinks.files import FileOutput
from gazer.sinks.rotation import RotatingOutput
from tests.conftest import eventually
from tests.test_succession_sink import Kill, Sinks

OLD, TORN, NEW = b"old 1\nold 2\n", b"new 1\nne", b"new 1\nnew 2\n"
FREEZE = 1_800_000_000
TROUBLE = [errno.EROFS, errno.EACCES, errno.EIO, errno.ENOSPC]


class Disk:
    """Where files can't be opened, for a while."""

    def __init__(self, monkeypatch):
        self.error = 0
        self.left = 0       # so many tries until it is well again; 0: for ever
        for module in (files, rotation):
            monkeypatch.setattr(module, "opened", self.opened)
        monkeypatch.setattr(files, "AGAIN", 0.01)
        monkeypatch.setattr(files, "RETRY", 0.005)

    def opened(self, path, flags, mode, *, new=False, _real=files.opened):
        if self.error:
            self.left -= 1
            if self.left == 0:
                self.error = 0
            raise OSError(self.error or errno.EIO, os.strerror(self.error or errno.EIO))
        return _real(path, flags, mode, new=new)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.fixture(params=[FileOutput, RotatingOutput])
def make(request, tmp_path):
    said = []

    def made(place, lasting=True):
        more = {"rotation": Rotation(size=1 << 20)} if request.param is RotatingOutput else {}
        return request.param(
            str(tmp_path / "out"), lines=True, notice=said.append, giving_up=lambda: False,
            waits=lambda _: None, lasting=lasting, place=place, **more)

    made.said = said
    made.path = tmp_path / "out"
    return made


def died(make):
    """A sink that was killed within a block, of which a part is there; its place."""
    first = make((0, 0, 0))
    first.write(memoryview(OLD))
    place = (*first.place, first.in_hand(len(NEW)))
    with make.path.open("ab") as file:
        file.write(TORN)
    first.close()
    return place


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("moved", [False, True])
def test_it_is_tried_again_and_each_event_stands_there_once(make, disk, trouble, moved):
    place = died(make)
    disk.error = trouble
    heir = make(place)
    assert heir.place == place[:2]          # for one that comes after it
    assert heir.in_hand(3) == place[2]      # and that may have as much to take back
    line, = make.said
    assert os.strerror(trouble) in line and line.endswith("; trying again")
    if moved:
        make.path.rename(make.path.with_name("out.1"))
    disk.left = 3
    heir.write(memoryview(NEW))
    assert heir.place[0] == files._file(make.path.stat()) and heir.cuttable
    assert heir.place[1] == len(NEW) + (0 if moved else len(OLD))
    heir.close()
    assert make.said[1:] == [f"writing to {make.path} again"]
    if moved:
        assert make.path.with_name("out.1").read_bytes() == OLD
    assert make.path.read_bytes() == (b"" if moved else OLD) + NEW


def test_one_that_is_asked_to_open_it_again_meanwhile(make, disk):
    place = died(make)
    disk.error = errno.EROFS
    heir = make(place)
    disk.error = 0
    heir.wanted = True
    heir.reopen()
    assert make.path.read_bytes() == OLD
    heir.write(memoryview(NEW))
    heir.close()
    assert make.path.read_bytes() == OLD + NEW


def test_its_own_successor_takes_the_part_back(make, disk):
    place = died(make)
    disk.error = errno.EROFS
    heir = make(place)
    then = (*heir.place, heir.in_hand(1))
    heir.close()
    disk.error = 0
    last = make(then)
    last.write(memoryview(NEW))
    last.close()
    assert make.path.read_bytes() == OLD + NEW


def test_what_was_being_written_is_not_compressed_before_it_was_taken_back(tmp_path, disk):
    """The file of an hour that is over by then: its part of a block goes, and then it is closed."""
    said, now = [], [FREEZE]

    def make(place):
        return RotatingOutput(
            str(tmp_path / "dns-%H.log"), rotation=Rotation(compress="gzip"), lines=True,
            notice=said.append, giving_up=lambda: False, waits=lambda _: None, lasting=True,
            place=place, clock=lambda: now[0])

    make.path = tmp_path / f"dns-{time.strftime('%H', time.gmtime(FREEZE))}.log"
    place = died(make)
    now[0] += 3600
    disk.error = errno.ENOSPC
    heir = make(place)
    assert heir._keeper._thread is None         # nobody to compress it
    assert make.path.exists()
    disk.error = 0
    heir.write(memoryview(NEW))
    eventually(lambda: not make.path.exists())
    heir.close()
    assert gzip.decompress(make.path.with_name(f"{make.path.name}.gz").read_bytes()) == OLD
    assert (tmp_path / time.strftime("dns-%H.log", time.gmtime(now[0]))).read_bytes() == NEW


@pytest.mark.parametrize("lasting", [True, False])
def test_at_the_start_it_is_an_error(make, disk, lasting):
    disk.error = errno.EROFS
    with pytest.raises(OutputError, match="Read-only"):
        make((0, 0, 0), lasting)


def test_the_others_go_on_meanwhile(tmp_path):
    """A whole sink over rings: where its file was, there is a folder when the next one begins."""
    ill, well = tmp_path / "ill", tmp_path / "well"
    sinks = Sinks([str(ill), str(well)])
    sinks.fill()
    assert not sinks.run(Kill("half written", 3))
    ill.rename(tmp_path / "ill.1")
    ill.mkdir()
    sinks.fill(end=False)
    pid = sinks.start()
    eventually(lambda: well.read_bytes() == sinks.whole())
    ill.rmdir()
    sinks.fill(1)
    _, status = os.waitpid(pid, 0)
    assert status == 0
    assert (tmp_path / "ill.1").read_bytes() + ill.read_bytes() == sinks.whole()
    assert well.read_bytes() == sinks.whole()
    assert sinks.balance() == [0, 0]
