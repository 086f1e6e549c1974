"""Kills and reboots: what a spool has promised is kept.

Three ways.  A copy of the folder at each moment between (and within) the writes of a process, which
is what a kill leaves.  A process that is killed for real, a hundred times.  And a host that goes
down: everything that was not synced may be there or not, each by itself, folder entries too.
"""

import itertools
import os
import random
import shutil
import signal
import struct
import tempfile
import time
from pathlib import Path

import pytest

from gazer.sinks.spool import Spool
from tests.spools import (
    Open,
    Wrapped,
    account,
    append,
    genuine,
    read_all,
    system,
    without_syncs,
)

WINDOW = 4


@pytest.fixture
def memory(tmp_path):
    """A folder in memory, since thousands of spools are made."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
    else:
        with tempfile.TemporaryDirectory(prefix="spool-", dir="/dev/shm") as folder:
            yield Path(folder)


class Truth:
    """What was asked of a spool, and what it has answered."""

    def __init__(self):
        self.begun = []         # append was called
        self.done = []          # and has returned
        self.acking = set()     # ack was called
        self.acked = set()      # and has returned
        self.dropped = 0        # drop=oldest counts so many
        self.there = []         # neither acknowledged nor dropped

    def copy(self):
        other = Truth()
        other.begun, other.done = self.begun[:], self.done[:]
        other.acking, other.acked = set(self.acking), set(self.acked)
        other.dropped, other.there = self.dropped, self.there[:]
        return other


def work(spool, truth, steps, seed=1, *, sync=True):
    """Appends, reads, acknowledges in any order, syncs, loses its connection."""
    chance = random.Random(seed)
    out = []
    for n in range(steps):
        truth.begun.append(n)
        if append(spool, n, chance.choice([0, 20, 90])):
            truth.done.append(n)
            truth.there.append(n)
        else:
            truth.begun.pop()
        dropped = spool.counts()["dropped_records"]
        del truth.there[:dropped - truth.dropped]
        truth.dropped = dropped
        while chance.random() < 0.6 and len(out) < WINDOW:
            record = spool.next()
            if record is None:
                break
            out.append(record)
        while out and chance.random() < 0.5:
            record = out.pop(chance.randrange(len(out)))
            truth.acking.add(genuine(record))
            if spool.ack(record):
                truth.acked.add(genuine(record))
                truth.there.remove(genuine(record))
        if chance.random() < 0.1:
            spool.rewind()
            out.clear()
        if sync and chance.random() < 0.2:
            spool.sync()


# --- a kill between any two writes ---------------------------------------------------------------


def check_kill(folder, truth):
    opened = Open(folder)
    with opened as spool:
        given = read_all(spool, ack=False)
        counts = account(spool)
        assert counts["damaged_records"] == 0 and counts["torn"] <= 1
        assert not {*truth.done} - truth.acking - {*given}                  # nothing is lost
        assert {*given} <= {*truth.begun}                                   # or invented
        assert not {*given} & truth.acked                                   # or comes again
        assert spool.last(7) >= max(truth.done, default=0)
    with Open(folder) as spool:                                             # and it goes on
        assert append(spool, 999)
        records = [spool.next() for _ in range(len(given) + 1)]
        for record in records[:-1]:
            spool.ack(record)
        spool.sync()
    with Open(folder) as spool:
        assert read_all(spool) == [999]
        assert account(spool)["damaged_records"] == 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("segment_bytes", [100, 400])
def test_a_kill_at_every_write(memory, segment_bytes, seed):
    folder = memory / "spool"
    truth = Truth()
    moments = []

    def moment():
        place = memory / f"at-{len(moments)}"
        shutil.copytree(folder, place)
        moments.append((place, truth.copy()))

    def pwritev(fd, buffers, offset):
        data = b"".join(buffers)
        half = 0
        if not os.readlink(f"/proc/self/fd/{fd}").endswith("position"):
            half = os.pwrite(fd, data[:len(data) // 2], offset)
            moment()
        os.pwrite(fd, data[half:], offset + half)   # a kill never cuts a write within a page
        moment()
        return len(data)

    def unlink(path):
        os.unlink(path)
        moment()

    with system(Wrapped(pwritev=pwritev, unlink=unlink, fsync=lambda fd: None,
                        fdatasync=lambda fd: None)):
        spool = Open(folder, segment_bytes=segment_bytes).spool
        work(spool, truth, 30, seed)
        spool.close()
    assert len(moments) > 80
    with without_syncs():
        for place, then in moments:
            check_kill(place, then)


# --- a process that is killed --------------------------------------------------------------------


def child(folder, pipe, first, seed):
    """Append and acknowledge until it is killed; say so after each.  It begins with all that is
    left, as the sink does."""
    spool = Spool(folder, max_bytes=1 << 22, segment_bytes=3000, notice=lambda line: None)
    chance = random.Random(seed)
    out = []
    n = first
    while True:
        append(spool, n, chance.choice([0, 100, 1000]))
        os.write(pipe, struct.pack("<cI", b"a", n))
        n += 1
        while len(out) < WINDOW and (record := spool.next()) is not None:
            out.append(record)
        while out and chance.random() < 0.6:
            record = out.pop(chance.randrange(len(out)))
            spool.ack(record)
            os.write(pipe, struct.pack("<cI", b"k", genuine(record)))
        if chance.random() < 0.05:
            spool.sync()


def test_a_hundred_real_kills(memory):
    folder = str(memory / "spool")
    chance = random.Random(5)
    appended, acked, first = [], set(), 0
    killed_at_work = 0
    for kill in range(100):
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(ours)
                os.sched_yield()
                child(folder, theirs, first, kill)
            finally:
                os._exit(9)
        os.close(theirs)
        try:
            said = os.read(ours, 5)             # it works: from now on at any moment
            time.sleep(chance.random() * 0.01)
            os.kill(pid, signal.SIGKILL)
            while part := os.read(ours, 1 << 16):
                said += part
        finally:
            os.close(ours)
            _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "the child failed"
        killed_at_work += len(said) > 50
        for what, n in struct.iter_unpack("<cI", said[:len(said) // 5 * 5]):
            if what == b"a":
                appended.append(n)
            else:
                acked.add(n)
        # What came after the last word: one append or one acknowledgement.
        with without_syncs(), Open(folder, max_bytes=1 << 22) as spool:
            given = read_all(spool, ack=False)
            lost = {*appended} - acked - {*given}
            assert len(lost) <= 1, "an acknowledgement may have been under way, no more"
            acked |= lost
            new = [n for n in given if n > (appended[-1] if appended else -1)]
            assert len(new) <= 1 and new in ([], [first_after(appended)])
            appended += new
            assert not {*given} & acked                 # nothing comes again
            assert given == sorted(given)
            assert account(spool)["damaged_records"] == 0
            assert spool.last(7) >= (appended[-1] if appended else 0)
        first = first_after(appended)
    assert killed_at_work > 50 and len(appended) > 1000


def first_after(appended):
    return appended[-1] + 1 if appended else 0


# --- a host that goes down -----------------------------------------------------------------------


class Disk:
    """Records what is asked of a file system; what of it a crash may leave.

    An fsync of a file saves what was written to it, and not its name; an fsync of the folder saves
    names, and not what is in the files.  What is saved by neither may be there or not, in any
    combination, and of a write either half.
    """

    def __init__(self, folder):
        self.folder = str(folder)
        self.log = []           # [kind, file, ...]
        self.files = {}         # name -> file, a number
        self.named = {}         # descriptor -> file
        self.names = itertools.count()
        self.synced = []        # of each sync: (place in the log, what it saves)
        self.promises = [(0, Truth())]

    def functions(self):
        return Wrapped(open=self.open, close=self.close, pwritev=self.pwritev,
                       ftruncate=self.ftruncate, unlink=self.unlink, fsync=self.sync,
                       fdatasync=self.sync)

    def open(self, path, flags, mode=0o777):
        name = os.path.relpath(path, self.folder)
        new = flags & os.O_CREAT and not os.path.lexists(path)
        fd = os.open(path, flags, mode)
        if os.path.isdir(path):
            self.named[fd] = "folder" if name == "." else "elsewhere"
            return fd
        if new:
            self.files[name] = next(self.names)
            self.log.append(("create", self.files[name], name))
        elif flags & os.O_TRUNC:
            self.log.append(("cut", self.files[name], 0))
        self.named[fd] = self.files[name]
        return fd

    def close(self, fd):
        self.named.pop(fd, None)
        os.close(fd)

    def pwritev(self, fd, buffers, offset):
        data = b"".join(buffers)
        half = len(data) // 2
        self.log.append(("write", self.named[fd], offset, data[:half]))
        self.log.append(("write", self.named[fd], offset + half, data[half:]))
        return os.pwrite(fd, data, offset)

    def ftruncate(self, fd, size):
        self.log.append(("cut", self.named[fd], size))
        os.ftruncate(fd, size)

    def unlink(self, path):
        name = os.path.relpath(path, self.folder)
        self.log.append(("unlink", self.files.pop(name), name))
        os.unlink(path)

    def sync(self, fd):
        self.synced.append((len(self.log), self.named[fd]))

    def left(self, at):
        """The log up to `at`: for each entry, whether it is on the disk for certain."""
        saved = [False] * at
        for moment, what in self.synced:
            if moment > at:
                break
            for i in range(moment):
                names = self.log[i][0] in ("create", "unlink")
                if names if what == "folder" else not names and self.log[i][1] == what:
                    saved[i] = True
        return saved

    def make(self, entries, place):
        """The folder that these entries of the log make."""
        contents, names = {}, {}
        for kind, file, *rest in entries:
            data = contents.setdefault(file, bytearray())
            if kind == "create":
                names[rest[0]] = file
            elif kind == "unlink":
                if names.get(rest[0]) == file:
                    del names[rest[0]]
            elif kind == "cut":
                data[rest[0]:] = bytes(max(0, rest[0] - len(data)))
            else:
                offset, octets = rest
                data.extend(bytes(max(0, offset + len(octets) - len(data))))
                data[offset:offset + len(octets)] = octets
        shutil.rmtree(place, ignore_errors=True)
        os.mkdir(place)
        for name, file in names.items():
            with open(os.path.join(place, name), "wb") as out:
                out.write(contents[file])


def check_reboot(place, promised, then, *, drops=False):
    """`promised`: what the last sync has; `then`: what was asked until the host went down."""
    with Open(place) as spool:
        given = read_all(spool, ack=False)
        damaged = account(spool)["damaged_records"]
        assert {*given} <= {*then.begun}                            # nothing is invented
        there = [n for n in then.there if n not in then.acking]
        lost = {*promised.done} & {*there} - {*given}               # what was synced is there
        if drops:       # but for what a drop is just removing: the oldest, a segment of it
            assert lost == {*there[:len(lost)]} and len(lost) <= 4
        else:
            assert not lost
            assert damaged <= len({*then.begun} - {*promised.done})     # nor called lost
        assert not {*given} & promised.acked                        # and stays acknowledged
    # The next start finds the same, and goes on.
    with Open(place) as spool:
        assert append(spool, 999)
        assert read_all(spool) == [*given, 999]
        assert account(spool)["damaged_records"] == 0


@pytest.mark.parametrize(("seed", "max_bytes"), [(1, 1 << 20), (2, 1 << 20), (3, 14_500)])
def test_a_host_that_goes_down(memory, seed, max_bytes):
    folder = memory / "spool"
    folder.mkdir()
    disk = Disk(folder)
    truth = Truth()
    chance = random.Random(seed)
    moments = {}            # place in the log -> (promised, then)

    class Watched(Spool):
        def sync(self):
            before = truth.copy()
            super().sync()
            watched["promised"] = before

    watched = {"promised": Truth()}
    original = disk.functions()

    def noting(function):
        def noted(*args):
            result = function(*args)
            moments[len(disk.log), len(disk.synced)] = (watched["promised"], truth.copy())
            return result
        return noted

    for name in ("pwritev", "ftruncate", "unlink", "fsync", "fdatasync", "open"):
        setattr(original, name, noting(getattr(original, name)))
    with system(original):
        spool = Watched(str(folder), max_bytes=max_bytes, segment_bytes=400,
                        notice=lambda line: None)
        work(spool, truth, 25, seed)
        spool.close()
    states = whole = 0
    with without_syncs():
        for (at, syncs), (promised, then) in moments.items():
            all_syncs, disk.synced = disk.synced, disk.synced[:syncs]
            saved = disk.left(at)
            disk.synced = all_syncs
            open_ = [i for i in range(at) if not saved[i]]
            if len(open_) <= 5:
                choices = itertools.product([False, True], repeat=len(open_))
                whole += 1
            else:
                choices = [[chance.random() < p for _ in open_]
                           for p in (0.1, 0.5, 0.5, 0.5, 0.9, 0.9)]
                choices += [[False] * len(open_), [True] * len(open_)]
            for choice in choices:
                taken = {i for i, yes in zip(open_, choice, strict=True) if yes}
                disk.make([disk.log[i] for i in range(at) if saved[i] or i in taken],
                          memory / "after")
                check_reboot(memory / "after", promised, then, drops=max_bytes < 1 << 20)
                states += 1
    assert states > 500 and whole > 20


def test_the_disk_of_these_tests_forgets(memory):
    """Else the test above would show nothing."""
    folder = memory / "spool"
    folder.mkdir()
    disk = Disk(folder)
    with system(disk.functions()), Open(folder) as spool:
        begun = len(disk.log)
        append(spool, 1)
        at = len(disk.log)
        appended = [entry[0] for entry in disk.log[begun:at]]
        unsynced = [disk.log[i] for i in range(at) if not disk.left(at)[i]]
    assert appended == ["create", "write", "write"] and unsynced == disk.log[begun:at]
    disk.synced = [(at, "folder"), (at, disk.log[begun][1])]
    assert all(disk.left(at)[begun:])
    disk.make(disk.log[:begun], memory / "after")
    with Open(memory / "after") as spool:
        assert spool.next() is None
