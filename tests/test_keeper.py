"""What becomes of closed files: only an output's own are touched, never the one that is written."""

from __future__ import annotations

import gzip
import os
import threading
import time

import pytest

from gazer.config import Rotation
from gazer.config.patterns import Names
from gazer.sinks import compress as compression
from gazer.sinks import keeper as module
from gazer.sinks.keeper import Keeper
from tests.conftest import eventually

NOW = 1_800_000_000
HOUR = 3600


class Folder:
    """Files of some age, and a keeper that looks after some of them."""

    def __init__(self, folder, path="dns-%H.log", **keys):
        self.folder = folder
        self.said = []
        self.now = NOW
        if "keep_age" in keys:
            keys["keep_age_ns"] = keys.pop("keep_age") * 10**9
        self.keeper = Keeper(Names(str(folder / path)), Rotation(**keys), label=path,
                             notice=self.said.append, clock=lambda: self.now)

    def put(self, name, age=0, size=100):
        path = self.folder / name
        path.write_bytes(b"x" * size)
        os.utime(path, (NOW - age, NOW - age))
        return path

    def names(self):
        return sorted(os.listdir(self.folder))


# --------------------------------------------------------------------------------------- retention


def test_what_is_old_goes(tmp_path):
    folder = Folder(tmp_path, keep_age=10 * HOUR)
    for name, age in (("dns-01.log", 11), ("dns-02.log.gz", 11), ("dns-03.log.7.zst", 11),
                      ("dns-04.log", 9), ("dns-05.log.gz", 9)):
        folder.put(name, age * HOUR)
    folder.put("dns-06.log", 10 * HOUR)         # to the second: not yet
    folder.keeper.tidy()
    assert folder.names() == ["dns-04.log", "dns-05.log.gz", "dns-06.log"]
    folder.now += 1
    folder.keeper.tidy()
    assert folder.names() == ["dns-04.log", "dns-05.log.gz"]
    assert not folder.said


def test_the_oldest_of_what_is_too_much_goes(tmp_path):
    folder = Folder(tmp_path, keep_bytes=450)
    for hour in range(10):      # written in another order than the names'
        folder.put(f"dns-{hour:02}.log" + ".gz" * (hour % 2), age=(hour * 7 % 10) * HOUR)
    folder.keeper.tidy()
    kept = sorted(range(10), key=lambda hour: hour * 7 % 10)[:4]
    assert folder.names() == sorted(f"dns-{h:02}.log" + ".gz" * (h % 2) for h in kept)


def test_the_file_that_is_written_counts_and_stays(tmp_path):
    folder = Folder(tmp_path, keep_bytes=450)
    current = folder.put("dns-01.log", 100 * HOUR, size=400)
    folder.put("dns-02.log", 2 * HOUR)
    folder.put("dns-03.log", 1 * HOUR)
    fd = compression.taken(str(current))
    folder.keeper.tidy()
    assert folder.names() == ["dns-01.log"]
    os.close(fd)
    plain = Folder(tmp_path, path="dns.log", keep_bytes=450, keep_age=HOUR)
    plain.put("dns.log", 100 * HOUR, size=400)
    plain.put("dns.log.20260101T000000Z", HOUR // 2)
    plain.keeper.tidy()
    assert plain.names() == ["dns-01.log", "dns.log"]


SOMEBODY_ELSE_S = ["dns-1.log", "dns-011.log", "dns-01.log.bak", "dns-01.log.gz.asc", "xdns-01.log",
                   "dns-01.log.0", "dns-01", "other.log", "dns-01.log.1.2", ".dns-01.log"]


@pytest.mark.parametrize("how", ["none", "gzip"])
def test_nothing_but_its_own_names_is_touched(tmp_path, how):
    folder = Folder(tmp_path, keep_age=HOUR, keep_bytes=1, compress=how)
    for name in SOMEBODY_ELSE_S:
        folder.put(name, 1000 * HOUR)
    for kind, name in ((os.mkfifo, "dns-02.log"), (os.mkdir, "dns-03.log")):
        kind(tmp_path / name)
    (tmp_path / "dns-04.log").symlink_to(tmp_path / "other.log")
    (tmp_path / "dns-05.log.gz").symlink_to(tmp_path / "other.log")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "dns-01.log").write_bytes(b"x")
    os.utime(tmp_path / "deeper" / "dns-01.log", (0, 0))
    before = folder.names()
    folder.put("dns-06.log", 1000 * HOUR)
    folder.keeper.tidy()
    assert folder.names() == before
    assert os.listdir(tmp_path / "deeper") == ["dns-01.log"]
    assert not folder.said


def test_what_can_t_be_removed_is_told_once_and_the_others_go(tmp_path, monkeypatch):
    folder = Folder(tmp_path, keep_age=HOUR)
    for name in ("dns-01.log.gz", "dns-02.log"):
        folder.put(name, 9 * HOUR)
    real = os.unlink

    def refused(path):
        if str(path).endswith("01.log.gz"):
            raise PermissionError(1, "Operation not permitted")
        real(path)

    monkeypatch.setattr(os, "unlink", refused)
    for _ in range(3):
        folder.keeper.tidy()
    assert folder.names() == ["dns-01.log.gz"]
    assert folder.said == [f"can't remove {tmp_path}/dns-01.log.gz: Operation not permitted"]


# -------------------------------------------------------------------------------------- compression


def content(path):
    return gzip.decompress(path.read_bytes())


def test_all_closed_files_are_compressed_and_keep_their_age(tmp_path):
    folder = Folder(tmp_path, compress="gzip")
    for hour in range(3):
        folder.put(f"dns-{hour:02}.log", hour * HOUR, size=hour * 1000)
    folder.put("dns-04.log.1")
    current = folder.put("dns-05.log")
    fd = compression.taken(str(current))
    folder.keeper.tidy()
    # An empty one has nothing to compress.
    assert folder.names() == ["dns-00.log", "dns-01.log.gz", "dns-02.log.gz", "dns-04.log.1.gz",
                              "dns-05.log"]
    assert content(tmp_path / "dns-02.log.gz") == b"x" * 2000
    assert os.stat(tmp_path / "dns-02.log.gz").st_mtime == NOW - 2 * HOUR
    os.close(fd)
    folder.keeper.tidy()
    assert "dns-05.log.gz" in folder.names()


def test_parts_of_what_is_no_more_are_removed(tmp_path):
    folder = Folder(tmp_path, compress="gzip")
    folder.put("dns-01.log.gz.part")
    folder.put("dns-02.log.gz.part")
    folder.put("dns-02.log")
    folder.put("dns-03.log.part")               # of nobody we know
    folder.keeper.tidy()
    assert folder.names() == ["dns-02.log.gz", "dns-03.log.part"]


def test_a_compressed_name_that_is_taken_is_left_and_another_found(tmp_path):
    folder = Folder(tmp_path, compress="gzip")
    folder.put("dns-01.log")
    folder.put("dns-01.log.gz", size=7)
    folder.put("dns-01.log.1.zst", size=8)
    folder.keeper.tidy()
    assert folder.names() == ["dns-01.log.1.zst", "dns-01.log.2.gz", "dns-01.log.gz"]
    assert (tmp_path / "dns-01.log.gz").stat().st_size == 7
    assert content(tmp_path / "dns-01.log.2.gz") == b"x" * 100


def test_one_that_fails_is_told_once_and_keeps_no_other(tmp_path, monkeypatch):
    folder = Folder(tmp_path, compress="gzip")
    folder.put("dns-01.log", HOUR)
    folder.put("dns-02.log")
    real = module.compress

    def fails(path, *rest):
        if path.endswith("01.log"):
            raise OSError(28, "No space left on device")
        return real(path, *rest)

    monkeypatch.setattr(module, "compress", fails)
    for _ in range(3):
        folder.keeper.tidy()
    assert folder.names() == ["dns-01.log", "dns-02.log.gz"]
    (text,) = folder.said
    assert text.startswith(f"can't compress {tmp_path}/dns-01.log: No space left on device; trying")


def test_being_behind_is_told_and_when_it_is_over(tmp_path):
    folder = Folder(tmp_path, compress="gzip")
    for hour in range(20):
        folder.put(f"dns-{hour:02}.log", HOUR * hour)
    folder.keeper.tidy()
    assert folder.said == [
        "20 closed files of dns-%H.log wait to be compressed: that is slower than new ones are "
        "begun",
        "the closed files of dns-%H.log are compressed again as they come"]


def test_too_much_does_not_wait_for_the_compression_of_a_large_file(tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "PIECE", 1000)
    folder = Folder(tmp_path, compress="gzip", keep_bytes=1_000_000)
    folder.put("dns-01.log", HOUR, size=500_000)
    seen = []
    real = folder.keeper._broken_off

    def between():
        if not seen:
            folder.put("dns-00.log.gz", 5 * HOUR, size=600_000)
            folder.keeper.wake()
        stop = real()
        seen.append((tmp_path / "dns-00.log.gz").exists())
        return stop

    monkeypatch.setattr(folder.keeper, "_broken_off", between)
    folder.keeper.tidy()
    assert len(seen) > 100 and not any(seen)
    assert folder.names() == ["dns-01.log.gz"]


# --------------------------------------------------------------------------------------- the thread


def test_it_wakes_when_a_file_was_closed(tmp_path):
    folder = Folder(tmp_path, compress="gzip")
    folder.keeper.start()
    folder.put("dns-01.log")
    folder.keeper.wake()
    eventually(lambda: folder.names() == ["dns-01.log.gz"])
    folder.keeper.end(finish=False)
    assert not folder.keeper._thread.is_alive()


def test_it_is_of_the_lowest_priority_and_the_others_are_not(tmp_path, monkeypatch):
    folder = Folder(tmp_path, compress="gzip")
    seen = []
    monkeypatch.setattr(folder.keeper, "tidy", lambda: seen.append(
        os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
    folder.keeper.start()
    folder.keeper.end(finish=True)
    assert set(seen) == {19}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) < 19


def test_at_the_end_it_finishes_or_breaks_off(tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "PIECE", 100)
    for finish in (True, False):
        folder = Folder(tmp_path, compress="gzip")
        path = folder.put("dns-01.log", size=300_000)
        entered = threading.Event()
        real = folder.keeper._broken_off

        def slow(real=real, entered=entered):
            entered.set()
            time.sleep(0.0001)
            return real()

        monkeypatch.setattr(folder.keeper, "_broken_off", slow)
        folder.keeper.start()
        assert entered.wait(5)
        folder.keeper.end(finish=finish)
        assert not folder.keeper._thread.is_alive()
        assert folder.names() == (["dns-01.log.gz"] if finish else ["dns-01.log"])
        (tmp_path / folder.names()[0]).unlink()
        assert not path.exists()


def test_finishing_ends_when_it_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "PIECE", 10)
    folder = Folder(tmp_path, compress="gzip")
    folder.put("dns-01.log", size=1_000_000)
    folder.keeper.start()
    folder.keeper.end(finish=True, giving_up=lambda: True)
    assert not folder.keeper._thread.is_alive()
    assert folder.names() == ["dns-01.log"]


def test_a_folder_that_has_gone_is_told_and_looked_for_again(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "EACH", 0.02)
    where = tmp_path / "x"
    where.mkdir()
    folder = Folder(where, compress="gzip")
    where.rename(tmp_path / "y")
    folder.keeper.start()
    eventually(lambda: folder.said)
    (tmp_path / "y").rename(where)
    folder.put("dns-01.log")
    eventually(lambda: folder.names() == ["dns-01.log.gz"])
    folder.keeper.end(finish=False)
    assert folder.said == [
        "can't look after the closed files of dns-%H.log: No such file or directory"]


# ------------------------------------------------------------------- names that others have taken


def test_names_that_are_taken_by_what_is_no_file_end_the_search(tmp_path):
    """A folder of the compressed file's name, and of the next one's: no round without an end."""
    folder = Folder(tmp_path, compress="gzip")
    folder.put("dns-01.log")
    for name in ("dns-01.log.gz", "dns-01.log.1.gz", "dns-01.log.2.gz"):
        (tmp_path / name).mkdir()
    os.symlink("nowhere", tmp_path / "dns-01.log.3.gz")
    thread = threading.Thread(target=folder.keeper.tidy, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert not folder.said
    assert "dns-01.log" not in folder.names()
    assert gzip.decompress((tmp_path / "dns-01.log.4.gz").read_bytes()) == b"x" * 100


def test_no_free_name_is_told_and_leaves_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TRIES", 3)
    folder = Folder(tmp_path, compress="gzip")
    folder.put("dns-01.log")
    for name in ("dns-01.log.gz", "dns-01.log.1.gz", "dns-01.log.2.gz"):
        (tmp_path / name).mkdir()
    thread = threading.Thread(target=folder.keeper.tidy, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert "dns-01.log" in folder.names() and len(folder.names()) == 4
    line, = folder.said
    assert "no free name" in line and "trying again" in line
