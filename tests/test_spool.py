"""The spool: order, acknowledgements, room, a full disk, settings that change."""

import errno
import os
import stat
import subprocess
import threading
import time

import pytest

from gazer.errors import OutputError
from gazer.sinks.segments import MAX_PAYLOAD
from gazer.sinks.spool import Spool
from tests.spools import (
    Open,
    Wrapped,
    account,
    append,
    disk,
    events_of,
    genuine,
    read_all,
    system,
    without_syncs,
)


def segments_in(folder):
    return sorted(n for n in os.listdir(folder) if n.endswith(".seg"))


# --- order and acknowledgements ------------------------------------------------------------------


def test_what_is_appended_is_given_in_order(tmp_path):
    with Open(tmp_path) as spool:
        assert spool.empty and spool.next() is None
        for n in range(20):
            assert append(spool, n)
            assert spool.last(7) == n
        assert len(segments_in(tmp_path)) > 3
        assert read_all(spool, ack=False) == list(range(20))
        assert not spool.empty and spool.events == sum(map(events_of, range(20)))
        assert account(spool)["there_records"] == 20


def test_reading_follows_writing(tmp_path):
    with Open(tmp_path) as spool:
        for n in range(30):
            append(spool, n)
            record = spool.next()
            assert genuine(record) == n and spool.next() is None
            if n % 3:
                spool.ack(record)
        spool.rewind()
        assert read_all(spool) == list(range(0, 30, 3))
        assert spool.empty


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_payloads_of_any_buffer_and_size(tmp_path, kind):
    sizes = [0, 1, 511, 512, 513, 4096, 70_000]
    with Open(tmp_path) as spool:
        for size in sizes:
            spool.append(kind(bytes(size)), tag=b"t" * (size % 1000), events=size, chunk=b"c" * 255,
                         compressed="zstd", run=2**64 - 1, upto=2**64 - 1)
    with Open(tmp_path) as spool:
        for size in sizes:
            record = spool.next()
            assert (record.payload, record.tag, record.chunk, record.compressed) == (
                bytes(size), b"t" * (size % 1000), b"c" * 255, "zstd")
        assert spool.last(2**64 - 1) == 2**64 - 1


def test_what_no_record_can_hold_is_refused_and_leaves_nothing(tmp_path):
    fine = {"tag": b"t", "events": 1, "chunk": b"c"}
    with Open(tmp_path) as spool:
        for wrong in ({"tag": b"t" * 65536}, {"chunk": b"c" * 256}, {"events": -1},
                      {"events": 2**32}, {"upto": -1}, {"compressed": "é"}):
            with pytest.raises(ValueError):
                spool.append(b"x", **(fine | wrong))
        with pytest.raises(ValueError):
            spool.append(bytes(MAX_PAYLOAD + 1), **fine)
        assert spool.empty and not segments_in(tmp_path)


def test_acks_in_any_order(tmp_path):
    with Open(tmp_path) as spool:
        for n in range(9):
            append(spool, n)
        records = [spool.next() for _ in range(9)]
        for n in (4, 0, 8, 1, 2):
            assert spool.ack(records[n])
            assert not spool.ack(records[n])
        account(spool)
        spool.rewind()
        assert not spool.ack(records[4])
        assert spool.ack(records[3])            # late, from before the rewind
        assert read_all(spool) == [5, 6, 7]
        assert spool.empty and account(spool)["delivered_records"] == 9


def test_what_was_acknowledged_is_gone_and_the_rest_is_there_at_the_next_start(tmp_path):
    with Open(tmp_path) as spool:
        for n in range(12):
            append(spool, n)
        records = [spool.next() for _ in range(12)]
        for n in (0, 1, 2, 3, 4, 7):
            spool.ack(records[n])
    with Open(tmp_path) as spool:
        counts = account(spool)
        assert counts["found_records"] == 6 and counts["damaged_records"] == 0
        assert counts["found"] == sum(map(events_of, (5, 6, 8, 9, 10, 11)))
        assert spool.last(7) == 11 and spool.last(8) == 0
        append(spool, 12)
        assert read_all(spool) == [5, 6, 8, 9, 10, 11, 12]


def test_segments_behind_the_position_are_removed(tmp_path):
    with Open(tmp_path) as spool:
        for n in range(20):
            append(spool, n)
        for _ in range(19):
            spool.ack(spool.next())
        spool.sync()
        assert len(segments_in(tmp_path)) == 1
        spool.ack(spool.next())
        spool.sync()
        assert not segments_in(tmp_path) and spool.empty
        assert append(spool, 20)
        assert read_all(spool) == [20]
    with Open(tmp_path) as spool:
        assert spool.empty and spool.last(7) == 20      # though no segment tells it
        assert account(spool)["found_records"] == 0


def test_files_can_be_read_by_the_group_and_by_nobody_else(tmp_path):
    old = os.umask(0o022)
    try:
        with Open(tmp_path / "a" / "b") as spool:
            append(spool, 1)
        for name in os.listdir(tmp_path / "a" / "b"):
            assert stat.S_IMODE((tmp_path / "a" / "b" / name).stat().st_mode) == 0o640, name
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o750
    finally:
        os.umask(old)


# --- who may open it -----------------------------------------------------------------------------


def test_two_openers_are_refused_until_the_first_lets_go(tmp_path):
    with Open(tmp_path) as spool:
        append(spool, 1)
        with pytest.raises(OutputError, match="in use"):
            Open(tmp_path)
        assert read_all(spool, ack=False) == [1]
    with Open(tmp_path) as spool:
        assert read_all(spool) == [1]


@pytest.mark.parametrize("name", ["lock", "position", "spool-00000000000000000001.seg"])
@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path, name, kind):
    other = tmp_path / "other"
    other.write_text("precious")
    folder = tmp_path / "spool"
    folder.mkdir()
    {"link": lambda p: p.symlink_to(other), "fifo": os.mkfifo, "folder": os.mkdir}[kind](
        folder / name)
    with pytest.raises(OutputError, match=name):
        Open(folder)
    assert other.read_text() == "precious"


def test_a_folder_that_cannot_be_one(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="spool: "):
            Open(path)


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "spool-1.seg").write_text("not a name of ours")
    with Open(tmp_path) as spool:
        for n in range(9):
            append(spool, n)
        assert read_all(spool) == list(range(9))
    assert (tmp_path / "notes.txt").exists() and (tmp_path / "spool-1.seg").exists()


# --- room ----------------------------------------------------------------------------------------


def test_the_oldest_are_dropped_and_counted(tmp_path):
    limit = 20_000
    with Open(tmp_path, max_bytes=limit, segment_bytes=2000) as spool:
        for n in range(200):
            assert append(spool, n, 100)
            assert disk(tmp_path) <= limit and spool.bytes <= limit
            counts = account(spool)
        assert counts["dropped_records"] > 100 and counts["refused_records"] == 0
        left = read_all(spool, ack=False)
        assert left == list(range(200 - len(left), 200))
        assert counts["dropped"] == sum(map(events_of, range(200 - len(left))))
        assert spool.bytes > limit - 2500       # no more than a segment goes at once


def test_the_newest_are_refused_and_counted(tmp_path):
    limit = 20_000
    with Open(tmp_path, max_bytes=limit, segment_bytes=2000, drop="newest") as spool:
        taken = [n for n in range(200) if append(spool, n, 100)]
        assert taken == list(range(len(taken))) and 30 < len(taken) < 100
        counts = account(spool)
        assert counts["refused_records"] == 200 - len(taken) and counts["dropped_records"] == 0
        assert counts["refused"] == sum(map(events_of, range(len(taken), 200)))
        assert disk(tmp_path) <= limit
        for _ in range(20):
            spool.ack(spool.next())
        assert append(spool, 200, 100)          # what is done with goes, also before a sync
        assert read_all(spool) == [*taken[20:], 200]
        account(spool)


def test_what_is_on_its_way_can_be_dropped(tmp_path):
    with Open(tmp_path, max_bytes=20_000, segment_bytes=1000) as spool:
        for n in range(20):
            append(spool, n, 100)
        records = [spool.next() for _ in range(10)]
        assert spool.ack(records[1]) and spool.ack(records[2])
        n = 20
        while spool.counts()["dropped_records"] < 10:
            append(spool, n, 100)
            n += 1
            account(spool)
        assert not any(spool.ack(record) for record in records)
        counts = account(spool)
        assert counts["delivered_records"] == 2
        assert read_all(spool, ack=False) == list(range(counts["dropped_records"] + 2, n))
        spool.rewind()
        read_all(spool)
        assert spool.empty
        account(spool)


def test_a_record_larger_than_the_spool_is_refused_and_nothing_goes_for_it(tmp_path):
    with Open(tmp_path, max_bytes=20_000, segment_bytes=1000) as spool:
        append(spool, 1)
        assert not append(spool, 2, 8_000)
        assert account(spool)["refused_records"] == 1
        assert append(spool, 3, 7_000)
        assert read_all(spool) == [1, 3]


@pytest.mark.parametrize("drop", ["oldest", "newest"])
def test_a_start_with_less_room(tmp_path, drop):
    with Open(tmp_path, max_bytes=100_000, segment_bytes=2000) as spool:
        for n in range(300):
            append(spool, n, 100)
        assert account(spool)["dropped_records"] == 0
    opened = Open(tmp_path, max_bytes=30_000, segment_bytes=2000, drop=drop)
    with opened as spool:
        counts = account(spool)
        assert counts["found_records"] == 300
        if drop == "oldest":
            assert disk(tmp_path) <= 30_000 and counts["dropped_records"] > 100
            assert len(opened.told) == 1 and f"{counts['dropped']} events" in opened.told[0]
        else:
            assert counts["dropped_records"] == 0 and not append(spool, 300)
        left = read_all(spool)
        assert left == list(range(counts["dropped_records"], 300))
        assert append(spool, 301)
        account(spool)


# --- the disk ------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(path)],
                          capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("segment_bytes", [4000, 60_000])
def test_a_full_disk(small_disk, segment_bytes):
    """Of another than max_bytes: nothing of a record stays, and what was there is delivered."""
    folder = small_disk / "spool"
    with Open(folder, segment_bytes=segment_bytes) as spool:
        n = 0
        with pytest.raises(OSError) as caught:
            while True:
                assert append(spool, n, 1000)
                n += 1
        assert caught.value.errno == errno.ENOSPC and n > 50
        for _ in range(3):
            with pytest.raises(OSError):
                append(spool, n, 1000)
        before = account(spool)
        assert before["there_records"] == n and spool.last(7) == n - 1
        assert len(segments_in(folder)) * 2 < n
        for i in range(n * 2 // 3):
            record = spool.next()
            assert genuine(record) == i
            spool.ack(record)
        spool.sync()                            # room again, though the disk was full
        for i in range(n, n + 10):
            assert append(spool, i, 1000)
        account(spool)
        assert read_all(spool, ack=False) == list(range(n * 2 // 3, n + 10))
    with Open(folder) as spool:
        assert read_all(spool) == list(range(n * 2 // 3, n + 10))
        counts = account(spool)
        assert counts["damaged_records"] == counts["torn"] == 0


@pytest.mark.parametrize("cut_back", [True, False])
def test_an_append_that_fails_half_way(tmp_path, cut_back):
    """Also where it can't be cut back: then it is no record, at the next start either."""
    fail = False

    def half(fd, buffers, offset):
        if not fail:
            return os.pwritev(fd, buffers, offset)
        data = b"".join(buffers)
        if len(data) < 20:
            raise OSError(errno.EIO, "broken")
        return os.pwrite(fd, data[:len(data) // 2], offset)

    def stuck(fd, size):
        raise OSError(errno.EIO, "broken")

    extra = {} if cut_back else {"ftruncate": stuck, "unlink": lambda path: None}
    opened = Open(tmp_path, segment_bytes=1000)
    with system(Wrapped(pwritev=half, **extra)), opened as spool:
        for n in range(3):
            append(spool, n)
        for _ in range(3):
            fail = True
            with pytest.raises(OSError):
                append(spool, 3)
            fail = False
            spool.sync()
        assert append(spool, 3) and append(spool, 4)
        assert read_all(spool, ack=False) == [0, 1, 2, 3, 4]
        assert account(spool)["damaged_records"] == 0
    opened = Open(tmp_path)
    with opened as spool:
        assert read_all(spool) == [0, 1, 2, 3, 4]
        counts = account(spool)
        assert counts["damaged_records"] == 0 and counts["torn"] == (0 if cut_back else 1)


def test_a_sync_that_fails_is_tried_again(tmp_path):
    with Open(tmp_path) as spool:
        append(spool, 1)
        calls = []

        def broken(fd):
            calls.append(fd)
            raise OSError(errno.EIO, "broken")

        with system(Wrapped(fdatasync=broken)):
            for _ in range(3):
                with pytest.raises(OSError):
                    spool.sync()
        assert len(calls) == 3
        done = []
        with system(Wrapped(fdatasync=lambda fd: done.append(os.readlink(f"/proc/self/fd/{fd}")))):
            spool.sync()
            spool.sync()
        assert [os.path.basename(path) for path in done] == [*segments_in(tmp_path), "position"]


def test_a_slow_sync_holds_up_nothing(tmp_path):
    begun, go_on = threading.Event(), threading.Event()

    def slow(fd):
        begun.set()
        assert go_on.wait(30)
        os.fdatasync(fd)

    with Open(tmp_path, segment_bytes=1000) as spool:
        append(spool, 0)
        with system(Wrapped(fdatasync=slow)):
            thread = threading.Thread(target=spool.sync)
            thread.start()
            assert begun.wait(30)
            for n in range(1, 200):
                assert append(spool, n)
            assert read_all(spool) == list(range(200))
            assert thread.is_alive()
            go_on.set()
            thread.join()
        account(spool)
    with Open(tmp_path) as spool:
        assert spool.empty and account(spool)["found_records"] == 0


def test_what_is_acknowledged_during_a_sync_is_removed_by_the_next(tmp_path):
    """Its position is not on the disk yet."""
    with Open(tmp_path) as spool:
        for n in range(9):
            append(spool, n)
        spool.ack(spool.next())
        before = segments_in(tmp_path)

        def meanwhile(fd):
            if os.readlink(f"/proc/self/fd/{fd}").endswith("position"):
                assert not spool.empty and read_all(spool)
            os.fdatasync(fd)

        with system(Wrapped(fdatasync=meanwhile)):
            spool.sync()
        assert spool.empty and segments_in(tmp_path) == before
        spool.sync()
        assert not segments_in(tmp_path)


def test_syncs_beside_everything_else(tmp_path):
    """A thread that syncs as fast as it can, while segments come and go."""
    failures, done = [], threading.Event()

    def syncing(spool):
        try:
            while not done.is_set():
                spool.sync()
        except BaseException as error:
            failures.append(error)

    with without_syncs(), Open(tmp_path, segment_bytes=300, max_bytes=30_000) as spool:
        thread = threading.Thread(target=syncing, args=(spool,))
        thread.start()
        given, until = [], time.monotonic() + 1.5
        n = 0
        while n <= 500 or (time.monotonic() < until and n < 20_000):
            append(spool, n)
            n += 1
            if n % 3 == 0:
                for _ in range(n % 11):
                    if (record := spool.next()) is not None and spool.ack(record):
                        given.append(genuine(record))
        done.set()
        thread.join()
        given += read_all(spool)
        counts = account(spool)
        assert not failures and n > 500
        assert given == sorted(set(given)) and len(given) + counts["dropped_records"] == n
        assert disk(tmp_path) <= 30_000


def test_close_is_final(tmp_path):
    opened = Open(tmp_path)
    append(opened.spool, 1)
    opened.spool.close()
    opened.spool.close()
    opened.spool.sync()
    with pytest.raises(ValueError):
        append(opened.spool, 2)


@pytest.mark.parametrize("killed", [False, True])
def test_what_is_lost_in_a_run_is_known_to_all_its_processes(tmp_path, killed):
    """Dropped by the spool or by whoever acknowledges, and damaged; another run begins anew."""
    def opened(run):
        return Spool(str(tmp_path), max_bytes=30_000, segment_bytes=2000, notice=[].append,
                     run=run)

    def end(spool):
        if killed:
            spool._let_go()
        else:
            spool.close()

    spool = opened(7)
    assert spool.account.gone == (0, 0)
    record = None
    for n in range(120):
        append(spool, n, 300)
        record = record or spool.next()
    dropped = account(spool)["dropped"]
    assert dropped > 0 and not spool.ack(record, 1)         # it was dropped, all of it
    record = spool.next()
    assert spool.ack(record, 1) and account(spool)["dropped"] == dropped + 1
    assert account(spool)["delivered"] == record.events - 1
    victim = sorted(tmp_path.glob("*.seg"))[3]
    os.truncate(victim, 100)
    read_all(spool)
    damaged = account(spool)["damaged"]
    assert damaged > 0 and spool.account.gone == (dropped + 1, damaged)
    end(spool)
    for _ in range(2):
        spool = opened(7)
        assert spool.account.gone == (dropped + 1, damaged)
        assert account(spool)["dropped"] == account(spool)["damaged"] == 0
        end(spool)
    spool = opened(8)
    assert spool.account.gone == (0, 0)
    end(spool)
    spool = opened(7)
    assert spool.account.gone == (0, 0)         # that was another one, long ago
    spool.close()


def test_a_folder_that_somebody_makes_in_the_same_moment(tmp_path):
    """Two sensors that start together, with spools in a folder that is not there yet."""
    def mkdir(path, mode):
        os.mkdir(path, mode)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)

    with system(Wrapped(mkdir=mkdir)), Open(tmp_path / "a" / "b") as spool:
        assert append(spool, 1)


def test_what_may_not_be_opened_is_told_by_its_name(tmp_path):
    """Somebody has run it as root before, most likely."""
    with Open(tmp_path) as spool:
        append(spool, 1)
    name, = (path.name for path in tmp_path.glob("*.seg"))

    def opened(path, *more):
        if path.endswith(".seg"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return os.open(path, *more)

    with system(Wrapped(open=opened)), pytest.raises(
            OutputError, match=f"^spool: {tmp_path}/{name}: Permission denied$"):
        Open(tmp_path)


def test_no_descriptor_is_left(tmp_path):
    before = os.listdir("/proc/self/fd")
    with Open(tmp_path, max_bytes=20_000) as spool:
        for n in range(400):
            append(spool, n)
        spool.next()
        assert len(os.listdir("/proc/self/fd")) - len(before) <= 4
    with pytest.raises(OutputError):
        (tmp_path / "spool-00000000000099999999.seg").mkdir()
        Open(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def deleted():
    """Files that are open and have no name: they still take room."""
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return [path for link in links if os.path.lexists(link)
            and (path := os.readlink(link)).endswith("(deleted)") and ".seg" in path]


def test_a_segment_that_is_removed_is_let_go_of(tmp_path):
    with Open(tmp_path, max_bytes=30_000, segment_bytes=2000) as spool:
        for n in range(20):
            append(spool, n, 300)
        records = [spool.next() for _ in range(3)]
        while not spool.counts()["dropped_records"]:
            append(spool, 30, 300)
        assert not deleted()
        while (record := spool.next()) is not None:
            records.append(record)
        for record in records:
            spool.ack(record)
        assert spool.empty
        spool.sync()
        assert not deleted() and not segments_in(tmp_path)


def test_memory_does_not_grow_with_the_segment(tmp_path):
    """No segment is read whole: what `next` asks the kernel for is a record at most."""
    asked = []

    def pread(fd, size, offset):
        asked.append(size)
        return os.pread(fd, size, offset)

    with without_syncs(), Open(tmp_path, max_bytes=1 << 26, segment_bytes=1 << 23) as spool:
        for n in range(100):
            append(spool, n, 50_000)
        with system(Wrapped(pread=pread)):
            assert read_all(spool) == list(range(100))
        assert len(segments_in(tmp_path)) == 1 and max(asked) < 51_000


def test_wrong_policy():
    with pytest.raises(ValueError):
        Spool("x", max_bytes=1 << 20, drop="random", notice=print)
