"""Compression of a closed file: whole under its new name, or not at all, whenever it is killed."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import io
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gazer.config.patterns import ENDINGS
from gazer.sinks import compress as module
from gazer.sinks.compress import Busy, Stopped, compress, same
from gazer.system import rename_new
from tests.stepwise import killed

try:
    import zstandard
except ImportError:
    zstandard = None

HOWS = ["gzip", pytest.param("zstd", marks=pytest.mark.skipif(
    zstandard is None, reason="the Python package zstandard is not there"))]
TEXT = b"".join(b"%d\texample.com\n" % i for i in range(2000))


def unpacked(path) -> bytes:
    """By other programs' code than ours."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(data)
    return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()


def no_spare() -> str:
    raise AssertionError("no other name was wanted")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(module, "PIECE", 5000)


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "dns-11.log"
    made.write_bytes(TEXT)
    return made


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("size", [1, 4999, 5000, 5001, 1_000_003])
def test_it_is_what_it_was(tmp_path, how, size):
    path = tmp_path / "a"
    data = random.Random(size).randbytes(size)
    path.write_bytes(data)
    os.chmod(path, 0o604)
    os.utime(path, ns=(1, 1234567890123456789))
    done = compress(str(path), how, no_spare)
    assert done == f"{path}{ENDINGS[how]}"
    assert os.listdir(tmp_path) == [os.path.basename(done)]
    assert unpacked(tmp_path / os.path.basename(done)) == data
    about = os.stat(done)
    assert (stat.S_IMODE(about.st_mode), about.st_mtime_ns) == (0o604, 1234567890123456789)


@pytest.mark.parametrize(("how", "program"), [("gzip", "gzip"), ("zstd", "zstd")])
def test_other_programs_take_it(path, how, program):
    if how == "zstd" and zstandard is None:
        pytest.skip("the Python package zstandard is not there")
    try:
        subprocess.run([program, "--version"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip(f"the program {program} is not there")
    done = compress(str(path), how, no_spare)
    assert subprocess.run([program, "-t", done], check=False).returncode == 0
    assert subprocess.run([program, "-dc", done], check=True, capture_output=True).stdout == TEXT


def test_the_same_events_give_the_same_file(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(TEXT)
        os.utime(tmp_path / name, (len(name), ord(name)))
        compress(str(tmp_path / name), "gzip", no_spare)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_each_step(tmp_path, how, after):
    """At every moment the events are there as a whole; and the next try leaves them there once."""
    path = tmp_path / "dns-11.log"
    target = tmp_path / f"dns-11.log{ENDINGS[how]}"
    step = kills = 0
    lost_part = done_again = False
    while True:
        with contextlib.suppress(FileNotFoundError):
            target.unlink()
        path.write_bytes(TEXT)
        if not killed(lambda: compress(str(path), how, no_spare), module, at=step, after=after):
            break
        kills += 1
        left = set(os.listdir(tmp_path))
        if path.exists():
            assert path.read_bytes() == TEXT
            lost_part |= target.name + ".part" in left
        if target.exists():
            done_again |= path.exists()
            assert unpacked(target) == TEXT
        assert path.exists() or target.exists()
        if path.exists():
            compress(str(path), how, no_spare)
        assert os.listdir(tmp_path) == [target.name]
        assert unpacked(target) == TEXT
        step += 1
    assert kills > 12 and lost_part and done_again


def test_everything_is_on_the_disk_ahead_of_the_removal(path, monkeypatch):
    """As the calls come: file, its name, and only then the end of the other one."""
    calls = []

    class Os:
        def __getattr__(self, name):
            return getattr(os, name)

        def fsync(self, fd):
            calls.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))))
            os.fsync(fd)

        def unlink(self, path):
            os.unlink(path)
            calls.append(("unlink", os.path.basename(path)))

    def rename(old, new):
        calls.append(("rename", os.path.basename(new)))
        os.rename(old, new)

    monkeypatch.setattr(module, "os", Os())
    monkeypatch.setattr(module, "rename_new", rename)
    compress(str(path), "gzip", no_spare)
    assert calls == [
        ("fsync", "dns-11.log.gz.part"), ("rename", "dns-11.log.gz"), ("fsync", "dns-11.log.gz"),
        ("fsync", path.parent.name), ("unlink", "dns-11.log")]


def test_what_is_written_to_or_in_hand_is_left_alone(path):
    with path.open("ab") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(Busy):
            compress(str(path), "gzip", no_spare)
    assert os.listdir(path.parent) == [path.name]
    assert compress(str(path), "gzip", no_spare)


@pytest.mark.parametrize("when", [1, 3, 7])
def test_someone_who_locks_nothing_and_writes_is_noticed(path, when):
    """What it wrote is not lost with the file."""
    asked = []

    def stop():
        asked.append(1)
        if len(asked) == when:
            with path.open("ab") as writer:
                writer.write(b"more\n")
        return False

    with pytest.raises(Busy):
        compress(str(path), "gzip", no_spare, stop)
    assert (os.listdir(path.parent), path.read_bytes()) == ([path.name], TEXT + b"more\n")


@pytest.mark.parametrize("moment", ["while it is read", "at the end"])
@pytest.mark.parametrize("another", [True, False])
def test_another_file_that_has_its_name_by_then_stays(path, monkeypatch, moment, another):
    """It was moved away meanwhile, and an output has begun a new one."""
    done = []

    def move():
        if not done:
            done.append(path.rename(path.with_name("away")))
            if another:
                path.write_bytes(b"new\n")
        return False

    def rename(old, new):
        rename_new(old, new)
        move()

    if moment == "at the end":
        monkeypatch.setattr(module, "rename_new", rename)
    with pytest.raises(FileNotFoundError):
        compress(str(path), "gzip", no_spare, move if moment == "while it is read" else bool)
    assert done[0].read_bytes() == TEXT
    assert path.exists() is another and (not another or path.read_bytes() == b"new\n")
    if moment == "while it is read":
        assert len(os.listdir(path.parent)) == 1 + another      # nor is there another copy of it


def test_what_is_written_in_the_last_moment_is_not_lost(path, monkeypatch):
    """By someone who locks nothing, when the compressed file is there already."""
    real = module.sync

    def sync(name):
        real(name)
        if not name.endswith(".gz"):
            with path.open("ab") as writer:
                writer.write(b"more\n")

    monkeypatch.setattr(module, "sync", sync)
    with pytest.raises(Busy):
        compress(str(path), "gzip", no_spare)
    assert path.read_bytes() == TEXT + b"more\n"
    monkeypatch.setattr(module, "sync", real)
    assert compress(str(path), "gzip", lambda: f"{path}.1") == f"{path}.1.gz"
    assert unpacked(path.with_name("dns-11.log.1.gz")) == TEXT + b"more\n"


def test_broken_off_it_leaves_nothing(path):
    asked = []
    with pytest.raises(Stopped):
        compress(str(path), "gzip", no_spare, lambda: bool(asked.append(1)) or len(asked) > 2)
    assert (os.listdir(path.parent), path.read_bytes()) == ([path.name], TEXT)


@pytest.mark.parametrize("theirs", [
    b"", b"no gzip at all", gzip.compress(TEXT)[:-1], gzip.compress(TEXT[:-1]),
    gzip.compress(TEXT + b"x"), gzip.compress(TEXT) + b"x", gzip.compress(bytes(1 << 22))])
def test_a_name_that_belongs_to_something_else_is_not_taken(path, theirs):
    other = path.with_name("dns-11.log.gz")
    other.write_bytes(theirs)
    done = compress(str(path), "gzip", lambda: f"{path}.7")
    assert done == f"{path}.7.gz"
    assert sorted(os.listdir(path.parent)) == ["dns-11.log.7.gz", "dns-11.log.gz"]
    assert other.read_bytes() == theirs
    assert unpacked(path.with_name("dns-11.log.7.gz")) == TEXT


@pytest.mark.parametrize("how", HOWS)
def test_two_contents_are_compared_to_the_last_octet(path, how):
    other = path.with_name("other")
    for text in (TEXT, TEXT[:-1], TEXT + b"x", b"x" + TEXT[1:], TEXT[:-1] + b"x"):
        other.write_bytes(text)
        done = compress(str(other), how, no_spare)
        with path.open("rb") as file:
            assert same(file.fileno(), done, how) is (text == TEXT)
            whole = Path(done).read_bytes()
            for cut in range(0, len(whole), 97):
                Path(done).write_bytes(whole[:cut])
                assert not same(file.fileno(), done, how)
        os.unlink(done)


@pytest.mark.skipif(zstandard is None, reason="the Python package zstandard is not there")
def test_compressed_by_the_other_means_before_is_compressed_enough(path):
    """The setting was changed between the death and the start."""
    path.with_name("dns-11.log.zst").write_bytes(zstandard.ZstdCompressor().compress(TEXT))
    assert compress(str(path), "gzip", no_spare) == f"{path}.zst"
    assert os.listdir(path.parent) == ["dns-11.log.zst"]


def test_what_can_t_be_read_for_lack_of_the_package_is_left_alone(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    path.with_name("dns-11.log.zst").write_bytes(b"whatever")
    assert compress(str(path), "gzip", no_spare) == f"{path}.gz"
    assert sorted(os.listdir(path.parent)) == ["dns-11.log.gz", "dns-11.log.zst"]


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "nothing"])
def test_only_a_plain_file_is_touched(tmp_path, kind):
    path, goal = tmp_path / "a", tmp_path / "goal"
    goal.write_bytes(TEXT)
    {"link": lambda: path.symlink_to(goal), "fifo": lambda: os.mkfifo(path),
     "folder": path.mkdir, "nothing": lambda: None}[kind]()
    with pytest.raises(OSError, match=str(path)):
        compress(str(path), "gzip", no_spare)
    assert goal.read_bytes() == TEXT
    assert set(os.listdir(tmp_path)) <= {"a", "goal"}


def test_a_link_in_the_place_of_the_part_is_not_followed(path, tmp_path_factory):
    goal = tmp_path_factory.mktemp("x") / "goal"
    goal.write_bytes(b"precious")
    path.with_name("dns-11.log.gz.part").symlink_to(goal)
    compress(str(path), "gzip", no_spare)
    assert goal.read_bytes() == b"precious"
    assert os.listdir(path.parent) == ["dns-11.log.gz"]
