"""Files that follow one another: when, under which names, and never one over the other."""

from __future__ import annotations

import calendar
import fcntl
import gzip
import os
import shutil
import stat
import time
from pathlib import Path

import pytest

from gazer.config import Output, OutputKind, Rotation
from gazer.config.patterns import Names
from gazer.errors import OutputError
from gazer.privileges import Identity, become
from gazer.sinks import files as writing
from gazer.sinks import rotation as module
from gazer.sinks.files import FileOutput
from gazer.sinks.process import file_output
from gazer.sinks.rotation import BACK, Period, RotatingOutput
from gazer.system import rename_new
from tests.conftest import GID, UID, eventually
from tests.forked import forked

NOON = calendar.timegm((2026, 11, 23, 12, 0, 0))
HOUR = 3600
LINE = b"123456789\n"


class Files:
    """An output over a folder, and a clock to turn."""

    def __init__(self, folder, path="dns.log", *, now=NOON, lasting=True, place=(0, 0, 0),
                 interval=0, **keys):
        self.folder = folder
        self.path = str(folder / path)
        self.now = now
        self.said = []
        self.file = RotatingOutput(
            self.path, rotation=Rotation(interval_ns=interval * 10**9, **keys), lines=True,
            notice=self.said.append, giving_up=lambda: False, waits=lambda _: None,
            lasting=lasting, place=place, clock=lambda: self.now)

    def block(self, lines=1):
        """What the sink does with a block."""
        data = memoryview(LINE * lines)
        for _ in range(2):
            if self.file.due(len(data)):
                self.file.reopen()
        assert not self.file.due(len(data))
        self.file.write(data)

    def idle(self):
        """What the sink does when there is nothing."""
        if self.file.due(0):
            self.file.reopen()
            return True
        return False

    def sizes(self):
        return {name: (self.folder / name).stat().st_size // 10
                for name in sorted(os.listdir(self.folder))}


@pytest.fixture
def files(tmp_path):
    made = []

    def make(path="dns.log", **keys):
        made.append(Files(tmp_path, path, **keys))
        return made[-1]

    yield make
    for one in made:
        one.file.close()


# ------------------------------------------------------------------------------------------- when


def test_by_size_a_file_is_full_ahead_of_the_block_that_is_too_much(files):
    sink = files(size=100)
    for _ in range(25):
        sink.block()
    assert sink.sizes() == {"dns.log": 5, "dns.log.20261123T120000Z": 10,
                            "dns.log.20261123T120000Z.1": 10}
    sink.block(30)      # never divided
    sink.now += 1
    sink.block(1)
    assert sink.sizes() == {"dns.log": 1, "dns.log.20261123T120000Z": 10,
                            "dns.log.20261123T120000Z.1": 10, "dns.log.20261123T120000Z.2": 5,
                            "dns.log.20261123T120001Z": 30}


def test_with_conversions_a_full_file_is_followed_by_a_number(files):
    sink = files("dns-%H.log", size=100)
    for _ in range(25):
        sink.block()
    sink.now += HOUR
    for _ in range(15):
        sink.block()
    assert sink.sizes() == {"dns-12.log": 10, "dns-12.log.1": 10, "dns-12.log.2": 5,
                            "dns-13.log": 10, "dns-13.log.1": 5}


def test_numbers_go_on_behind_the_greatest_there_is(files, tmp_path):
    for name in ("dns-12.log.gz", "dns-12.log.7.zst", "dns-12.log.99.bz2", "dns-11.log.500"):
        (tmp_path / name).write_bytes(b"theirs")
    sink = files("dns-%H.log", size=100)
    for _ in range(15):
        sink.block()
    assert {"dns-12.log.8": 10, "dns-12.log.9": 5}.items() <= sink.sizes().items()
    assert (tmp_path / "dns-12.log.gz").read_bytes() == b"theirs"
    assert "dns-12.log" not in sink.sizes()


def test_by_time_the_name_is_that_of_the_closing(files):
    sink = files(interval=600, now=NOON + 100)
    sink.block()
    sink.now = NOON + 599.9
    sink.block()
    sink.now = NOON + 601.5
    sink.block()
    assert sink.sizes() == {"dns.log": 1, "dns.log.20261123T121001Z": 2}


def test_idle_it_is_closed_when_its_time_is_over(files, tmp_path):
    """By its own name the next file is begun at once: someone may be reading that path."""
    sink = files(interval=600)
    sink.block()
    sink.now += 599
    assert not sink.idle()
    sink.now += 1
    assert sink.idle() and not sink.idle()
    assert sink.sizes() == {"dns.log": 0, "dns.log.20261123T121000Z": 1}
    sink.now += 6000            # there is nothing in it, so it is not closed
    assert not sink.idle()
    sink.block()
    assert sink.sizes() == {"dns.log": 1, "dns.log.20261123T121000Z": 1}


def test_idle_with_conversions_the_next_file_comes_with_the_next_event(files):
    sink = files("dns-%H.log")
    sink.block()
    sink.now += HOUR
    assert sink.idle() and not sink.idle()
    assert not any("dns-" in os.readlink(f"/proc/self/fd/{fd}")
                   for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}"))
    sink.now += 5 * HOUR
    assert not sink.idle()
    assert sink.sizes() == {"dns-12.log": 1}
    sink.block()
    assert sink.sizes() == {"dns-12.log": 1, "dns-18.log": 1}
    assert sink.file.cuttable


def test_an_interval_coarser_than_the_name_and_one_that_is_finer(files):
    coarse = files("c-%H%M.log", interval=HOUR, now=NOON + 1234)
    fine = files("f-%H.log", interval=600, now=NOON + 1234)
    for minutes in range(0, 60, 5):
        for sink in (coarse, fine):
            sink.now = NOON + 1234 + 60 * minutes
            sink.block()
    assert coarse.sizes() == {"c-1200.log": 8, "c-1300.log": 4, "f-12.log": 2, "f-12.log.1": 2,
                              "f-12.log.2": 2, "f-12.log.3": 2, "f-13.log": 2, "f-13.log.1": 2}


def test_a_month_has_one_file(files):
    sink = files("%Y%m")
    for day in range(40):
        sink.now = NOON + day * 86400
        sink.block()
        sink.idle()
    assert sink.sizes() == {"202611": 8, "202612": 31, "202701": 1}


@pytest.mark.parametrize("path", ["dns-%H%M.log", "dns.log"])
def test_a_clock_that_is_set_back(files, path):
    """A little: nothing happens.  Much: a new file, once, whose name may have been used."""
    sink = files(path, interval=60)
    sink.block()
    sink.now -= BACK
    sink.block()
    assert len(sink.sizes()) == 1
    sink.now = NOON + 60
    sink.block()                # 12:01
    assert len(sink.sizes()) == 2
    sink.now = NOON - 30        # 11:59, which ends where it began
    sink.block()
    assert len(sink.sizes()) == 3
    sink.now = NOON
    sink.block()
    sink.now = NOON + 59
    sink.block()                # 12:00 for the second time
    sizes = sink.sizes()
    assert sum(sizes.values()) == 6
    assert sizes == ({"dns-1159.log": 1, "dns-1200.log": 2, "dns-1200.log.1": 2, "dns-1201.log": 1}
                     if "%" in path else
                     {"dns.log": 2, "dns.log.20261123T115930Z": 1, "dns.log.20261123T120000Z": 1,
                      "dns.log.20261123T120100Z": 2})


def test_a_clock_that_flutters_around_an_end_makes_no_crowd_of_files(files):
    sink = files("dns-%H%M%S.log", interval=1)
    for step in range(200):
        sink.now = NOON + 1 + (0.4 if step % 2 else -0.4)
        sink.block()
    assert len(sink.sizes()) == 2


def test_the_end_of_a_period_is_where_it_belongs():
    for interval, path, unit in ((HOUR, "a", HOUR), (0, "%d", 86400), (0, "%M", 60), (7, "%d", 7)):
        period = Period(Names(path), interval)
        for begin in (NOON + 0.5, NOON + 12345.678):
            period.begin(begin)
            end = begin // unit * unit + unit
            assert not period.over(begin) and not period.over(end - 0.001)
            assert period.over(end) and period.over(end + 1e7)
    for moment in (0, NOON, 1e12):
        period = Period(Names("a"), 0)
        period.begin(NOON)
        assert not period.over(moment)


# ----------------------------------------------------------------------------------------- a start


@pytest.mark.parametrize("path", ["dns.log", "dns-%H.log"])
def test_a_start_goes_on_with_the_file_of_this_time(files, path):
    first = files(path, interval=HOUR, size=1000)
    first.block(3)
    first.file.close()
    (name,) = first.sizes()
    os.utime(first.folder / name, (NOON, NOON))
    again = files(path, interval=HOUR, size=1000, now=NOON + 1800)
    again.block(2)
    assert again.sizes() == {name: 5}


@pytest.mark.parametrize(("path", "left"), [
    ("dns.log", {"dns.log": 1, "dns.log.20261123T130000Z": 3}),
    ("dns-%H.log", {"dns-12.log": 3, "dns-13.log": 1}),
    ("dns-%d.log", {"dns-23.log": 3, "dns-23.log.1": 1})])
def test_a_start_closes_what_is_of_another_time(files, tmp_path, path, left):
    name = min(left, key=len)
    (tmp_path / name).write_bytes(LINE * 3)
    os.utime(tmp_path / name, (NOON, NOON))
    sink = files(path, interval=HOUR, now=NOON + HOUR)
    sink.block()
    assert sink.sizes() == left


def test_a_start_goes_on_with_nothing_that_is_compressed_or_full(files, tmp_path):
    for name in ("a-12", "a-12.1", "a-12.1.gz", "b-12", "b-12.1"):
        (tmp_path / name).write_bytes(LINE * (9 if name.startswith("a") else 10))
        os.utime(tmp_path / name, (NOON, NOON))
    one, other = files("a-%H", size=100), files("b-%H", size=100)
    one.block()
    other.block()
    sizes = one.sizes()
    assert (sizes["a-12"], sizes["a-12.1"], sizes["a-12.2"]) == (9, 9, 1)
    assert (sizes["b-12"], sizes["b-12.1"], sizes["b-12.2"]) == (10, 10, 1)


def test_two_of_us_never_share_a_file(files):
    """With conversions each has a number; a path by itself can belong to one only."""
    one, other = files("a-%H"), files("a-%H")
    for sink in (one, other, one, other):
        sink.block()
    assert one.sizes() == {"a-12": 2, "a-12.1": 2}
    files("dns.log", size=100)
    with pytest.raises(OutputError, match="another process has it in hand"):
        files("dns.log", size=100)


@pytest.mark.parametrize("kind", ["fifo", "link", "folder"])
def test_only_a_plain_file_can_be_begun_anew(files, tmp_path, kind):
    path = tmp_path / "dns.log"
    {"fifo": lambda: os.mkfifo(path), "link": lambda: path.symlink_to(tmp_path / "x"),
     "folder": path.mkdir}[kind]()
    with pytest.raises(OutputError, match="can't open"):
        files(size=100)
    assert os.listdir(tmp_path) == ["dns.log"]


def test_the_mode_is_the_configured_one_whatever_the_umask(files, tmp_path):
    before = os.umask(0o077)
    try:
        one, other = files("a-%H", mode=0o664, size=100), files(size=100)
        for sink in (one, other):
            sink.block(10)
            sink.block()
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in one.sizes()}
    assert modes == {"a-12": 0o664, "a-12.1": 0o664, "dns.log": 0o640,
                     "dns.log.20261123T120000Z": 0o640}


def test_the_mode_of_a_file_that_is_there_is_not_touched(files, tmp_path):
    (tmp_path / "dns.log").write_bytes(b"")
    os.chmod(tmp_path / "dns.log", 0o600)
    files(size=100, mode=0o644).block()
    assert stat.S_IMODE((tmp_path / "dns.log").stat().st_mode) == 0o600


def test_what_an_output_is_made_of(tmp_path):
    """One file for good, of the mode that was asked for; or files that follow one another."""
    def made(name, rotate=None):
        file = file_output(
            Output(OutputKind.TEXT, str(tmp_path / name), rotation=rotate), lines=True,
            notice=print, giving_up=lambda: False, waits=lambda _: None)
        file.close()
        return type(file)

    before = os.umask(0o027)
    try:
        assert made("a") is made("b%%") is made("c", Rotation(mode=0o666)) is FileOutput
        assert made("d%Y") is made("e", Rotation(size=1 << 20)) is RotatingOutput
        (tmp_path / "link").symlink_to("goal")
        assert made("link", Rotation(mode=0o666)) is FileOutput
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert modes.pop(f"d{time.gmtime().tm_year}") == 0o640
    assert modes == {"a": 0o640, "b%": 0o640, "c": 0o666, "e": 0o640, "goal": 0o640, "link": 0o640}


# --------------------------------------------------------------------------------------------- HUP


def hup(sink):
    sink.file.wanted = True
    sink.file.reopen()


@pytest.mark.parametrize("path", ["dns.log", "dns-%H.log"])
def test_hup_opens_what_was_moved_away_and_nothing_else(files, tmp_path, path):
    sink = files(path, size=100)
    sink.block(3)
    hup(sink)
    sink.block(3)
    (name,) = sink.sizes()
    (tmp_path / name).rename(tmp_path / "moved")
    sink.block(3)               # still there
    hup(sink)
    sink.block(2)
    assert sink.sizes() == {name: 2, "moved": 9}
    with (tmp_path / "moved").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)        # and let go of


def test_a_file_that_was_moved_without_hup_is_not_moved_again(files, tmp_path):
    sink = files(size=100)
    sink.block(10)
    (tmp_path / "dns.log").rename(tmp_path / "moved")
    (tmp_path / "dns.log").write_bytes(LINE * 2)        # someone's
    sink.block(1)
    assert sink.sizes() == {"dns.log": 3, "moved": 10}


def test_hup_while_there_is_no_file(files):
    sink = files("dns-%H.log")
    sink.block()
    sink.now += HOUR
    assert sink.idle()
    hup(sink)
    sink.block()
    assert sink.sizes() == {"dns-12.log": 1, "dns-13.log": 1}


# ------------------------------------------------------------------------------- what can go wrong


@pytest.mark.parametrize("path", ["dns.log", "dns-%H.log"])
def test_where_no_new_file_can_be_made_the_old_one_goes_on(files, tmp_path, path, monkeypatch):
    sink = files(path, size=100)
    sink.block(10)
    real = module.opened

    def refused(name, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "opened", refused)
    for _ in range(5):
        data = memoryview(LINE)
        if sink.file.due(10):
            sink.file.reopen()
        sink.file.write(data)
    (name,) = sink.sizes()
    assert sink.sizes() == {name: 15}
    (text,) = sink.said
    assert text == (f"can't begin a new file for {sink.path}: No space left on device; still "
                    f"writing to {name}")
    monkeypatch.setattr(module, "opened", real)
    sink.block()                # not yet: it is tried each 2 s
    assert sink.sizes() == {name: 16}
    sink.file._retry = 0
    sink.block()
    assert sorted(sink.sizes().values()) == [1, 16]


@pytest.mark.parametrize("path", ["dns.log", "dns-%Y.log"])
def test_after_an_error_the_same_file_goes_on(files, path, monkeypatch):
    sink = files(path, size=100, now=time.time())
    sink.block(5)
    failing = [OSError(5, "Input/output error")] * 2

    class Os:
        def __getattr__(self, name):
            return getattr(os, name)

        def write(self, fd, data):
            if failing:
                raise failing.pop()
            return os.write(fd, data)

    monkeypatch.setattr(writing, "AGAIN", 0.01)
    monkeypatch.setattr(writing, "RETRY", 0.01)
    monkeypatch.setattr(writing, "os", Os())
    sink.block(3)
    (name,) = sink.sizes()
    assert sink.sizes() == {name: 8} and not failing
    assert sink.said == [
        f"can't write to {sink.path}: Input/output error; trying again",
        f"writing to {sink.path} again"]
    sink.block(3)
    assert sorted(sink.sizes().values()) == [3, 8]


def test_a_folder_that_is_away_when_the_next_file_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "AGAIN", 0.01)
    where, away = tmp_path / "log", tmp_path / "away"
    where.mkdir()
    sink = Files(where, "dns-%H.log")
    sink.block()
    sink.now += HOUR
    assert sink.idle()
    where.rename(away)
    tries = []

    def asked():
        tries.append(1)
        if len(tries) == 3:
            away.rename(where)
        return False

    sink.file._giving_up = asked
    monkeypatch.setattr(writing, "RETRY", 0.01)
    sink.block()
    assert sink.sizes() == {"dns-12.log": 1, "dns-13.log": 1}
    assert all("No such file or directory" in text for text in sink.said[:-1])
    assert sink.said[-1] == f"writing to {sink.path} again"
    sink.file.close()


def test_a_file_system_that_has_no_locks(files, monkeypatch):
    def refused(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refused)
    sink = files("dns-%H.log", size=100, compress="gzip")
    sink.block(10)
    sink.block()
    eventually(lambda: sink.said)
    assert sink.sizes() == {"dns-12.log": 10, "dns-12.log.1": 1}
    assert sink.said[0].endswith("Operation not supported (files are locked for it)")


@pytest.mark.parametrize("path", ["dns.log", "dns-%H.log"])
def test_a_disk_that_is_full_while_new_files_are_begun(disk, path, monkeypatch):
    """It waits, nothing is torn or lost, and what retention takes away is room again."""
    monkeypatch.setattr(writing, "RETRY", 0.01)
    give_up, said = [], []
    file = RotatingOutput(
        str(disk / path), rotation=Rotation(size=8192), lines=True, notice=said.append,
        giving_up=lambda: bool(give_up), waits=lambda _: None, lasting=True)
    lines = iter(range(10**6))
    written = []

    def removes(_):
        """Someone makes room: the oldest file goes."""
        files = sorted(disk.iterdir(), key=lambda f: f.stat().st_mtime_ns)
        gone.append(files[0].read_bytes())
        files[0].unlink()

    gone = []
    file._waits = removes
    for _ in range(60):
        block = b"".join(b"%d %0200d\n" % (next(lines), 0) for _ in range(20))
        if file.due(len(block)):
            file.reopen()
        file.write(memoryview(block))
        written.append(block)
    file.close()
    left = sorted(disk.iterdir(), key=lambda f: int(f.read_bytes().split()[0]))
    whole = b"".join(gone + [f.read_bytes() for f in left])
    assert any("waiting for room" in text for text in said) and len(gone) > 5
    assert whole == b"".join(written)
    assert all(f.read_bytes().endswith(b"\n") for f in left)


# --------------------------------------------------------------------------------- a run over files


def test_over_files_too(files):
    sink = files("dns-%H.log", lasting=False, size=100, compress="gzip")
    for _ in range(25):
        sink.file.write(memoryview(LINE))
    sink.now += HOUR
    for _ in range(5):
        sink.file.write(memoryview(LINE))
    sink.file.close()       # what was closed is compressed by now, what the next start goes on with
    assert sorted(sink.sizes()) == ["dns-12.log.1.gz", "dns-12.log.2.gz", "dns-12.log.gz",
                                    "dns-13.log"]
    assert gzip.decompress((sink.folder / "dns-12.log.2.gz").read_bytes()) == LINE * 5


def test_live_the_file_that_was_written_is_not_compressed_at_the_end(files):
    sink = files("dns-%H.log", size=100, compress="gzip")
    sink.block(5)
    started = time.monotonic()
    sink.file.close()
    assert time.monotonic() - started < 2
    assert sink.sizes() == {"dns-12.log": 5}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_all_of_it_as_service_user_without_any_rights(tmp_path):
    """Renames, compresses and removes, and may lower its thread's priority."""
    folder = Path("/var/tmp") / f"gazer-rotation-{os.getpid()}"
    folder.mkdir(mode=0o700)
    os.chown(folder, UID, GID)
    try:
        def work(say, fd):
            become(Identity(UID, GID, (GID,), "somebody"))
            sink = Files(folder, size=100, compress="gzip", keep_bytes=1000)
            for _ in range(25):
                sink.block()
            eventually(lambda: sum(name.endswith(".gz") for name in sink.sizes()) == 2)
            sink.file.close()
            say(sorted(sink.sizes()))

        done = forked(work)
        assert done.code == 0, done
        assert done.said == [["dns.log", "dns.log.20261123T120000Z.1.gz",
                              "dns.log.20261123T120000Z.gz"]]
    finally:
        shutil.rmtree(folder)


def test_a_rename_never_takes_the_place_of_another_file(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    with pytest.raises(FileExistsError):
        rename_new(str(old), str(new))
    new.unlink()
    new.symlink_to("nowhere")       # a link to nothing is there as well
    with pytest.raises(FileExistsError):
        rename_new(str(old), str(new))
    new.unlink()
    rename_new(str(old), str(new))
    assert new.read_bytes() == b"old"
    with pytest.raises(FileNotFoundError):
        rename_new(str(old), str(new))


def test_a_file_system_that_can_not_rename_so_is_looked_at_first(tmp_path):
    """EINVAL is also what a folder gets that is to move into itself."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(OSError, match="Invalid argument"):
        rename_new(str(tmp_path / "a"), str(tmp_path / "a" / "c"))
    with pytest.raises(FileExistsError):
        rename_new(str(tmp_path / "a"), str(tmp_path / "a" / "b"))
