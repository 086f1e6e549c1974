"""A spool that was cut, flipped, mixed up: what it hits is lost and counted, all else is given."""

import errno
import os
import shutil
import struct
import tempfile
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gazer.errors import OutputError
from gazer.sinks.position import Quarantine
from gazer.sinks.segments import (
    HEAD_SIZE,
    Head,
    pack_head,
    pack_record,
    parse_head,
    preamble,
    read_header,
)
from tests.spools import (
    Open,
    Wrapped,
    account,
    append,
    disk,
    events_of,
    payload_of,
    read_all,
    system,
    without_syncs,
)

COUNT = 7
ACKED = {0, 4}


@pytest.fixture(autouse=True)
def quiet():
    with without_syncs():
        yield


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A spool of seven records in three segments, the first and the fifth acknowledged.

    Where each record stands is known from the files' sizes, not from their content.
    """
    folder = tmp_path_factory.mktemp("small")
    places = {}
    with Open(folder, segment_bytes=350) as spool:
        for n in range(COUNT):
            sizes = {e.name: e.stat().st_size for e in os.scandir(folder) if ".seg" in e.name}
            append(spool, n, 0)
            for entry in os.scandir(folder):
                before = sizes.get(entry.name, HEAD_SIZE)
                if ".seg" in entry.name and entry.stat().st_size > before:
                    places[n] = (entry.name, before, entry.stat().st_size)
        for n, record in enumerate([spool.next() for _ in range(COUNT)]):
            if n in ACKED:
                spool.ack(record)
    assert len({name for name, _, _ in places.values()}) == 3
    return folder, places


class Copy:
    """The small spool in a place of its own, restored for each case."""

    def __init__(self, small, folder):
        self.source, self.places = small
        self.folder = str(folder / "copy")
        self.content = {name: (self.source / name).read_bytes() for name in os.listdir(self.source)}
        self.segments = sorted(name for name in self.content if ".seg" in name)

    def put(self, changed=()):
        shutil.rmtree(self.folder, ignore_errors=True)
        os.mkdir(self.folder)
        for name, data in (self.content | dict(changed)).items():
            if data is not None:
                with open(os.path.join(self.folder, name), "wb") as file:
                    file.write(data)

    def check(self, hit, *, again=True):
        """Open it: all but `hit` are given, `hit` is counted, and the next start counts it not."""
        hit = {*hit} - ACKED
        opened = Open(self.folder)
        with opened as spool:
            left = read_all(spool, ack=False)
            assert left == [n for n in range(COUNT) if n not in hit | ACKED]
            counts = account(spool)
            assert counts["found_records"] == COUNT - len(ACKED)
            assert counts["damaged_records"] == len(hit)
            assert counts["damaged"] == sum(map(events_of, hit))
            assert bool(hit) <= len(opened.told) <= 2
            assert disk(self.folder) == counts["bytes"]
        if again:
            with Open(self.folder) as spool:
                counts = account(spool)
                assert counts["found_records"] == COUNT - len(ACKED) - len(hit)
                assert read_all(spool) == left
                counts = account(spool)
                assert counts["damaged_records"] == 0 and spool.empty
                assert append(spool, 99)
                assert read_all(spool) == [99]

    def read(self):
        return {path.name: path.read_bytes() for path in sorted(Path(self.folder).iterdir())}

    def kept(self):
        return b"".join(data for name, data in self.read().items() if name.startswith("damaged"))


@pytest.fixture
def copy(small, tmp_path):
    memory = Path("/dev/shm")               # thousands of them are made
    if not os.access(memory, os.W_OK):
        yield Copy(small, tmp_path)
    else:
        with tempfile.TemporaryDirectory(prefix="spool-", dir=memory) as folder:
            yield Copy(small, Path(folder))


def test_an_undamaged_one(copy):
    copy.put()
    copy.check(set())
    assert copy.kept() == b""


@pytest.mark.parametrize("segment", range(3))
def test_each_flipped_bit_costs_the_record_it_hits(copy, segment):
    name = copy.segments[segment]
    data = bytearray(copy.content[name])
    for at in range(len(data)):
        hit = {n for n, (where, start, end) in copy.places.items()
               if where == name and start <= at < end}
        assert len(hit) == (at >= HEAD_SIZE)
        for bit in range(8):
            data[at] ^= 1 << bit
            copy.put([(name, data)])
            copy.check(hit, again=bit == at % 8)
            for n in hit - ACKED:
                _, start, end = copy.places[n]
                assert copy.kept() == data[start:end]
            data[at] ^= 1 << bit


@pytest.mark.parametrize("segment", range(3))
def test_each_cut_costs_what_stood_behind_it(copy, segment):
    name = copy.segments[segment]
    data = copy.content[name]
    for at in range(len(data)):
        copy.put([(name, data[:at])])
        copy.check({n for n, (where, _, end) in copy.places.items() if where == name and end > at})


def test_each_flipped_bit_of_the_position_costs_nothing(copy):
    """Two places say the same after a close; what is not used is zeros."""
    data = bytearray(copy.content["position"])
    newest = max(range(0, 12288, 4096), key=lambda at: data[at + 16:at + 24])    # its sequence
    for at in range(len(data)):
        place, within = at - at % 4096, at % 4096
        bits = range(8) if place == newest else [at % 8]
        for bit in bits if within < 92 or at % 97 == 0 else ():
            data[at] ^= 1 << bit
            copy.put([("position", data)])
            copy.check(set(), again=bit == at % 8)
            data[at] ^= 1 << bit


def test_each_cut_of_the_position(copy):
    """What is left may be from before the acknowledgement, or nothing: then that comes again."""
    data = copy.content["position"]
    for at in [*range(130), *range(4090, 4230), *range(8190, 8330)]:
        copy.put([("position", data[:at])])
        with Open(copy.folder) as spool:
            given = read_all(spool, ack=False)
            assert {*range(COUNT)} - ACKED <= {*given} <= {*range(COUNT)}
            assert account(spool)["damaged_records"] == 0


def test_a_lost_position(copy):
    """All comes again, as far as it is there; no number comes twice."""
    for data in (None, b"", b"\xff" * 12288):
        copy.put([("position", data)])
        opened = Open(copy.folder)
        with opened as spool:
            assert "sent again" in opened.told[0]
            assert append(spool, COUNT) and spool.last(7) == COUNT
            assert read_all(spool) == [*range(COUNT + 1)]
            assert account(spool)["damaged_records"] == 0
        with Open(copy.folder) as spool:
            assert spool.empty


def test_a_lost_position_and_missing_segments(copy):
    copy.put([("position", None), (copy.segments[0], None)])
    first = min(n for n, place in copy.places.items() if place[0] == copy.segments[1])
    with Open(copy.folder) as spool:
        assert read_all(spool) == [*range(first, COUNT)]
        assert account(spool)["damaged_records"] == 0       # they may all have been delivered


def test_a_position_of_another_spool_is_not_believed(copy, tmp_path):
    with Open(tmp_path / "other") as spool:
        for n in range(50):
            append(spool, n)
        read_all(spool)
    copy.put([("position", (tmp_path / "other" / "position").read_bytes())])
    with Open(copy.folder) as spool:
        assert read_all(spool) == [*range(COUNT)]


@pytest.mark.parametrize("gone", [{0}, {1}, {2}, {0, 1}, {0, 2}, {1, 2}, {0, 1, 2}])
def test_segments_that_are_gone(copy, gone):
    names = {copy.segments[i] for i in gone}
    copy.put([(name, None) for name in names])
    copy.check({n for n, place in copy.places.items() if place[0] in names})


@pytest.mark.parametrize("size", [0, 10, 300])
def test_segments_of_nothing_but_zeros(copy, size):
    """What some file systems leave of data that was not synced."""
    for name in copy.segments:
        copy.put([(name, bytes(size))])
        copy.check({n for n, place in copy.places.items() if place[0] == name})


def test_a_segment_that_is_cut_while_it_is_read(copy):
    copy.put()
    with Open(copy.folder) as spool:
        assert spool.next().number == 2
        for name in copy.segments[:2]:
            os.truncate(os.path.join(copy.folder, name), HEAD_SIZE)
        left = read_all(spool)
        assert left == [n for n, place in copy.places.items() if place[0] == copy.segments[2]]
        assert account(spool)["damaged_records"] == COUNT - len(ACKED) - 1 - len(left)


def test_a_segment_that_is_taken_away_while_it_is_written(tmp_path):
    with Open(tmp_path, segment_bytes=4000) as spool:
        for n in range(3):
            append(spool, n)
        for name in os.listdir(tmp_path):
            if ".seg" in name:
                os.unlink(tmp_path / name)
        assert spool.next() is None and spool.empty
        append(spool, 3)
        assert read_all(spool) == [3]
        assert account(spool)["damaged_records"] == 3


def test_damage_is_counted_once_though_it_is_read_again(copy):
    name, start, _ = copy.places[3]
    data = bytearray(copy.content[name])
    data[start + 20] ^= 1                       # of its head
    other, _, end = copy.places[6]
    rest = bytearray(copy.content[other])
    rest[end - 1] ^= 1                          # of its payload
    copy.put([(name, data), (other, rest)])
    opened = Open(copy.folder)
    with opened as spool:
        for _ in range(3):
            assert read_all(spool, ack=False) == [1, 2, 5]
            spool.rewind()
            counts = account(spool)
            assert counts["damaged"] == events_of(3) + events_of(6)
        assert [spool.next().events for _ in range(3)] == [2, 3, 1]
    assert len(opened.told) == 2        # at once, and at the end
    for _ in range(2):
        with Open(copy.folder) as spool:
            assert account(spool)["found_records"] == 3
            assert read_all(spool, ack=False) == [1, 2, 5]
            assert account(spool)["damaged_records"] == 0


# The last two are what file systems say of damage to their own structures.
TROUBLE = [errno.EIO, errno.ENODATA, errno.EUCLEAN, errno.EBADMSG]


@pytest.mark.parametrize("trouble", TROUBLE)
def test_a_disk_that_cannot_be_read(copy, trouble):
    """Pages that can't be read cost the records in them; nothing raises, and it ends."""
    copy.put()
    bad = copy.places[3]

    def pread(fd, size, offset):
        path = os.readlink(f"/proc/self/fd/{fd}")
        if path.endswith(bad[0]) and offset < bad[2] and offset + size > bad[1]:
            raise OSError(trouble, os.strerror(trouble))
        return os.pread(fd, size, offset)

    nothing = {"fsync": lambda fd: None, "fdatasync": lambda fd: None}
    with system(Wrapped(pread=pread, **nothing)), Open(copy.folder) as spool:
        left = read_all(spool)
        same = {n for n, place in copy.places.items() if place[0] == bad[0]}
        assert {*range(COUNT)} - ACKED - same <= {*left} <= {*range(COUNT)} - ACKED - {3}
        assert account(spool)["damaged_records"] == COUNT - len(ACKED) - len(left)


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("which", [0, -1])
@pytest.mark.parametrize("since", ["the start", "later"])
def test_a_segment_that_cannot_be_opened(copy, trouble, which, since):
    """It costs what is in it, at the start and at every one after it."""
    copy.put()
    bad = sorted({place[0] for place in copy.places.values()})[which]
    ill = since == "the start"

    def opened(path, flags, *more, **keys):
        if ill and str(path).endswith(bad):
            raise OSError(trouble, os.strerror(trouble))
        return os.open(path, flags, *more, **keys)

    nothing = {"fsync": lambda fd: None, "fdatasync": lambda fd: None}
    same = {n for n, place in copy.places.items() if place[0] == bad}
    with system(Wrapped(open=opened, **nothing)):
        with Open(copy.folder) as spool:
            ill = True
            left = read_all(spool)
            assert {*left} == {*range(COUNT)} - ACKED - same
            assert account(spool)["damaged_records"] == COUNT - len(ACKED) - len(left)
        with Open(copy.folder) as spool:
            assert spool.empty and account(spool)["damaged_records"] == 0


@pytest.mark.parametrize("trouble", [errno.ESTALE, errno.EACCES, errno.EMFILE])
def test_what_may_be_over_soon_costs_nothing(copy, trouble):
    """It is told to the reader, who tries again."""
    copy.put()
    ill = False

    def opened(path, flags, *more, **keys):
        if ill and str(path).endswith(".seg"):
            raise OSError(trouble, os.strerror(trouble))
        return os.open(path, flags, *more, **keys)

    with system(Wrapped(open=opened)), Open(copy.folder) as spool:
        ill = True
        for _ in range(3):
            with pytest.raises(OSError):
                spool.next()
        ill = False
        assert read_all(spool) == sorted({*range(COUNT)} - ACKED)
        assert account(spool)["damaged"] == 0


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("place", range(3))
def test_a_place_of_the_position_that_cannot_be_read(tmp_path, trouble, place):
    """What was delivered and removed is not taken for lost, though an older place says less."""
    def pread(fd, size, offset):
        if (os.readlink(f"/proc/self/fd/{fd}").endswith("position")
                and offset <= place * 4096 < offset + size):
            raise OSError(trouble, os.strerror(trouble))
        return os.pread(fd, size, offset)

    spool = Open(tmp_path).spool
    for n in range(40):
        append(spool, n)
        if n % 8 == 7:
            spool.sync()
    for _ in range(30):
        spool.ack(spool.next())
        spool.sync()
    spool._let_go()         # it is killed: a close would have said it twice
    with system(Wrapped(pread=pread)), Open(tmp_path) as spool:
        assert account(spool)["damaged"] == 0
        left = read_all(spool)
        assert left == [*range(left[0], 40)] and left[0] <= 30
        assert account(spool)["damaged"] == 0


# --- what strangers write ------------------------------------------------------------------------


def forged(marker, number, before):
    payload = memoryview(payload_of(77))
    return pack_record(marker, number, before, payload, tag=b"dns.tx", events=1,
                       chunk=b"forged", compressed="", run=7, upto=1, lost=0) + payload.tobytes()


@pytest.mark.parametrize("known", [False, True])
def test_a_record_in_a_payload_is_not_given(tmp_path, known):
    """It would be if its writer knew the marker, which differs from spool to spool."""
    with Open(tmp_path, segment_bytes=1000) as spool:
        append(spool, 1)
        segment, = (name for name in os.listdir(tmp_path) if ".seg" in name)
        start = os.path.getsize(tmp_path / segment)
        marker = parse_head((tmp_path / segment).read_bytes()).marker if known else bytes(8)
        spool.append(forged(marker, 2, events_of(1)), tag=b"t", events=1, chunk=b"c")
        append(spool, 3)
    with open(tmp_path / segment, "r+b") as file:
        file.seek(start)
        file.write(b"\xff" * 8)
    with Open(tmp_path) as spool:
        given = []
        while (record := spool.next()) is not None:
            given.append(record.chunk)
        assert given == [b"chunk-1", *([b"forged"] if known else []), b"chunk-3"]


def test_markers_differ(tmp_path):
    markers = set()
    for i in range(5):
        with Open(tmp_path / str(i)) as spool:
            append(spool, 1)
            head = (tmp_path / str(i) / "spool-00000000000000000001.seg").read_bytes()
            markers.add(parse_head(head).marker)
    assert len(markers) == 5


# --- versions ------------------------------------------------------------------------------------


def newer(kind, size):
    data = struct.pack("<8sHH", kind, 2, size)
    return data + zlib.crc32(data).to_bytes(4, "little") + os.urandom(200)


@pytest.mark.parametrize("name", ["position", "segment"])
def test_a_newer_version_is_refused_and_left_as_it_is(copy, name):
    name = copy.segments[1] if name == "segment" else name
    kind = b"GZSPOOLP" if name == "position" else b"GZSPOOLS"
    copy.put([(name, newer(kind, 500))])
    before = copy.read()
    for _ in range(2):
        with pytest.raises(OutputError, match="is of format 2, this version of gazer knows"):
            Open(copy.folder)
    assert before == copy.read()


def test_the_format_is_the_one_that_is_described():
    """Written down once more: another layout needs another version."""
    head = pack_head(told := Head(b"MARKERxx", 1, 2, 3, 4, 5, 6))
    assert len(head) == HEAD_SIZE == 80 and parse_head(head) == told
    assert head[:12] == b"GZSPOOLS\x01\x00\x50\x00"
    assert head[16:72] == b"MARKERxx" + struct.pack("<6Q", 1, 2, 3, 4, 5, 6)
    assert head[72:] == struct.pack("<II", zlib.crc32(head[:72]), 0)
    assert preamble(b"GZSPOOLP", 9)[:12] == b"GZSPOOLP\x01\x00\x09\x00"
    record = pack_record(b"MARKERxx", 1, 2, memoryview(b"payload"), tag=b"tag", events=6,
                         chunk=b"chunk", compressed="gzip", run=3, upto=4, lost=5)
    assert record[:64] == struct.pack("<8s5QIIIHBB", b"MARKERxx", 1, 2, 3, 4, 5, 6, 7,
                                      zlib.crc32(b"payload"), 3, 5, 4)
    assert record[68:] == b"tagchunkgzip"
    assert record[64:68] == zlib.crc32(record[:64] + record[68:]).to_bytes(4, "little")


# --- the quarantine ------------------------------------------------------------------------------


def damage_all(folder):
    for name in os.listdir(folder):
        if ".seg" in name:
            with open(os.path.join(folder, name), "r+b") as file:
                size = file.seek(0, 2)
                for at in range(HEAD_SIZE + 10, size, 1000):
                    file.seek(at)
                    file.write(b"!!!!")


def test_the_quarantine_is_bounded_in_number_and_size(tmp_path):
    limit = 1 << 20
    with Open(tmp_path, max_bytes=limit, segment_bytes=20_000) as spool:
        for n in range(700):
            append(spool, n, 1000)
    damage_all(tmp_path)
    opened = Open(tmp_path, max_bytes=limit)
    with opened as spool:
        read_all(spool)
        counts = account(spool)
        assert counts["damaged_records"] > 200
        kept = [e.stat().st_size for e in os.scandir(tmp_path) if e.name.startswith("damaged")]
        assert 0 < len(kept) <= Quarantine.FILES and sum(kept) <= limit // 8
        spool.sync()
        assert disk(tmp_path) == spool.bytes == sum(kept) + 12288
    assert len(opened.told) == 2        # at once, and at the end


def test_the_quarantine_never_takes_room_from_the_spool(tmp_path):
    with Open(tmp_path, max_bytes=40_000, segment_bytes=4_000) as spool:
        for n in range(100):
            append(spool, n, 300)
    damage_all(tmp_path)
    with Open(tmp_path, max_bytes=40_000) as spool:
        read_all(spool)
        for n in range(100):
            append(spool, n, 300)
            assert disk(tmp_path) <= 40_000
        account(spool)
    with Open(tmp_path, max_bytes=16_000) as spool:
        assert disk(tmp_path) <= 16_000
        account(spool)


# --- anything at all -----------------------------------------------------------------------------
EDIT = st.tuples(st.sampled_from(["flip", "cut", "remove", "insert", "zero", "copy", "swap"]),
                 st.integers(0, 3), st.integers(0, 12288), st.integers(1, 300))


@settings(max_examples=250, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(edits=st.lists(EDIT, min_size=1, max_size=6), room=st.sampled_from([14_000, 1 << 20]))
@example(edits=[("cut", 3, 0, 1), ("copy", 1, 0, 145), ("flip", 2, 72, 1)], room=14_000)
@example(edits=[*[("insert", 0, 0, 282)] * 3, ("swap", 0, 0, 1)], room=14_000)
def test_nothing_raises_and_nothing_is_invented(copy, edits, room):
    files = {name: bytearray(copy.content[name]) for name in [*copy.segments, "position"]}
    names = [*files]
    for how, which, at, size in edits:
        data = files[names[which]]
        at %= len(data) + 1
        other = files[names[(which + 1) % 4]]
        if how == "flip" and data:
            data[at % len(data)] ^= size & 255 or 1
        elif how == "cut":
            del data[at:]
        elif how == "remove":
            del data[at:at + size]
        elif how == "insert":
            data[at:at] = os.urandom(size)
        elif how == "zero":
            data[at:at + size] = bytes(size)
        elif how == "copy":
            data[at:at] = other[at:at + size]
        elif how == "swap":
            data[:], other[:] = bytes(other), bytes(data)
    copy.put(files.items())
    before = None
    for _ in range(3):
        opened = Open(copy.folder, max_bytes=room)
        with opened as spool:
            left = read_all(spool, ack=False)       # genuine, in order, none twice
            assert set(left) <= {*range(COUNT)}
            assert before in (None, left)           # the next start finds the same
            before = left
            assert len(opened.told) <= 8
            counts = spool.counts()
            assert min(counts.values()) >= 0
            assert counts["found_records"] + counts["spooled_records"] == sum(
                counts[k + "_records"] for k in ("delivered", "dropped", "damaged", "there"))
            assert counts["there_records"] == len(left)
            assert disk(copy.folder) <= max(room, 14_000)
    with Open(copy.folder) as spool:
        assert read_all(spool) == left and spool.empty
        append(spool, 50)
        assert read_all(spool) == [50]


def test_a_record_is_not_read_beyond_its_segment(tmp_path):
    """A length is believed only with its CRC, and within the file."""
    path = tmp_path / "x"
    record = forged(b"MARKERxx", 1, 0)
    path.write_bytes(record)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert read_header(fd, 0, len(record), b"MARKERxx").number == 1
        for size in range(len(record)):
            assert read_header(fd, 0, size, b"MARKERxx") is None
        os.truncate(path, 30)
        assert read_header(fd, 0, len(record), b"MARKERxx") is None
    finally:
        os.close(fd)


# --- files that no spool has ---------------------------------------------------------------------


@pytest.mark.parametrize("number", [(1 << 63), (1 << 64) - 1, 10**20 - 1])
@pytest.mark.parametrize("data", [b"", bytes(3000)])
def test_a_number_that_no_record_can_have_is_no_segment(copy, number, data):
    """It does not end the start, nor the appending."""
    name = f"spool-{number:020}.seg"
    copy.put({name: data})
    os.rename(os.path.join(copy.folder, name), os.path.join(copy.folder, "aside"))
    with Open(copy.folder) as spool:
        found = account(spool)
    os.rename(os.path.join(copy.folder, "aside"), os.path.join(copy.folder, name))
    with Open(copy.folder) as spool:
        assert account(spool) == found
        assert append(spool, 99)
        assert read_all(spool) == [*sorted({*range(COUNT)} - ACKED), 99]
    assert copy.read()[name] == data        # and is left alone


@pytest.mark.parametrize("which", [0, -1])
def test_a_segment_that_is_larger_than_any(copy, which):
    """A size that a file system made up: what is behind all records is not searched to its end."""
    copy.put()
    path = os.path.join(copy.folder, copy.segments[which])
    os.truncate(path, 1 << 42)
    begun = time.monotonic()
    opened = Open(copy.folder, max_bytes=1 << 50)
    with opened as spool:
        assert read_all(spool) == sorted({*range(COUNT)} - ACKED)
        assert account(spool)["damaged"] == 0
    assert time.monotonic() - begun < 10
