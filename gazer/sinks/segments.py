"""Segments: the files a spool's records stand in, and how these are found again behind damage.

A segment, `spool-NNNNNNNNNNNNNNNNNNNN.seg` with its first record's number, is its head and then
records, one behind the other; all numbers are little-endian.

    segment   0  "GZSPOOLS"   8  version   10  length of the head   12  CRC-32 of octets 0..11
             16  marker      24  first     32  before   40  acknowledged   48  run   56  upto
             64  lost        72  CRC-32 of octets 0..71    76  zeros                (80 in all)

    record    0  marker       8  number    16  before   24  run            32  upto   40  lost
             48  events      52  length    56  CRC-32 of the payload
             60  length of the tag (2), of the chunk's id (1), of `compressed` (1)
             64  CRC-32 of octets 0..63 and of what stands between 68 and the payload
             68  tag, chunk's id, compressed, payload

`number` counts the records of a spool from 1 for ever, `before` is the events of all records before
this one.  So what is missing between any two records that can be read is known to the event, though
nothing of it can be read; and a segment's head tells what the one before it had.  `upto` and `lost`
are the appender's: how many events of its run it is through with, and how many of these it lost.

Rules
- The first 16 octets of a segment, and of each place in `position`, are the same in all versions:
  a newer version is recognised by its sound head, and not by a flipped bit.
- A record's head has a CRC of its own.  Damage to a payload therefore costs that record alone;
  damage to a head makes us search for the next marker.
- The marker is eight random octets, made with the spool.  What is in a payload is chosen by
  strangers (DNS names); with a fixed marker they could write a whole record into it, which a
  search behind damage would find.  This marker they cannot know.
- Nothing is mapped: a mapped file that somebody cuts is a SIGBUS.  pread comes up short, and that
  is damage like any other.  Pages that can't be read (UNREADABLE) count as zeros, and a segment
  that can't be opened for such a reason as a segment of zeros.

CRC-32 is zlib's: 3.3 GB/s on the machine where 256 KiB go into tmpfs at 2.4 GB/s; Adler-32 is no
faster and weak, SHA-1 takes twice as long, and nobody is to be kept from forging files that only we
can write.

Our own files, and not a library's: those for Python build on SQLite (diskcache, litequeue,
persist-queue) or on files of pickles (persist-queue, queuelib).  SQLite writes all data twice, its
file does not get smaller by itself, and one damaged page can cost the database, where we owe all
the other records; persist-queue's users tell of both its kinds unreadable, after a hard reset and
after Ctrl-C (its issues 56 and 58).  None counts what damage costs, or bounds the disk.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import zlib
from typing import NamedTuple

from gazer.config.kinds import printable
from gazer.errors import OutputError

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Sequence

    Buffer = bytes | bytearray | memoryview

VERSION = 1
MODE = 0o640
SEGMENT = b"GZSPOOLS"

PREAMBLE = struct.Struct("<8sHHI")
HEAD = struct.Struct("<8s6Q")               # of a segment, between preamble and CRC
SEAL = struct.Struct("<II")
RECORD = struct.Struct("<8s5QIIIHBBI")
HEAD_SIZE = PREAMBLE.size + HEAD.size + SEAL.size
PLAIN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK    # a FIFO put in our way must not stop us

MAX_PAYLOAD = 64 << 20      # a chunk has at most 8 MiB, and one event at most 256 KiB more
LARGEST = 72 << 20          # segment: of one such record.  More of a file nobody has written here
LAST = 1 << 63              # no record has this number: there is none that a spool could come to
AHEAD = 512                 # read at once of a record: its head, and mostly all names
WINDOW = 1 << 20            # read at once in a search
PAGE = 4096
# Of a disk; of a file system's own structures (ext4 and XFS).  It will be the same at each try, so
# it must cost what is hit and not the run.  (ESTALE is none: a file server comes back.)
UNREADABLE = (errno.EIO, errno.EREMOTEIO, errno.ENODATA, errno.EILSEQ, errno.EUCLEAN,
              errno.EBADMSG)


class Record(NamedTuple):
    """What was appended."""

    number: int
    tag: bytes
    events: int
    chunk: bytes
    compressed: str
    payload: bytes


class Header(NamedTuple):
    """A record's head."""

    number: int
    before: int
    run: int
    upto: int
    lost: int
    events: int
    length: int             # of the payload
    crc: int
    tag: bytes
    chunk: bytes
    compressed: str
    size: int               # of the head with its names

    @property
    def end(self) -> int:
        """Octets of the whole record."""
        return self.size + self.length


class Head(NamedTuple):
    """A segment's head."""

    marker: bytes
    first: int              # number of its first record
    before: int             # events of all records before that
    acknowledged: int       # the first record that was not, when the segment was made
    run: int                # of the last record before it
    upto: int
    lost: int


# --- octets ---------------------------------------------------------------------------------------


def preamble(kind: bytes, size: int) -> bytes:
    start = PREAMBLE.pack(kind, VERSION, size, 0)[:12]
    return start + zlib.crc32(start).to_bytes(4, "little")


def version_of(data: bytes, kind: bytes) -> int:
    """The version that stands in a sound preamble; 0: there is none."""
    if len(data) < PREAMBLE.size:
        return 0
    magic, version, _, crc = PREAMBLE.unpack_from(data)
    if magic != kind or crc != zlib.crc32(data[:12]):
        return 0
    return int(version)


def refuse_newer(path: str, data: bytes, kind: bytes) -> None:
    version = version_of(data, kind)
    if version > VERSION:
        raise OutputError(
            f"spool: {printable(path)} is of format {version}, this version of gazer knows formats "
            f"up to {VERSION}: start the newer one, or choose another folder")


def pack_head(head: Head) -> bytes:
    data = preamble(SEGMENT, HEAD_SIZE) + HEAD.pack(*head)
    return data + SEAL.pack(zlib.crc32(data), 0)


def parse_head(data: bytes) -> Head | None:
    """None: it is not sound."""
    if version_of(data, SEGMENT) != VERSION or len(data) < HEAD_SIZE:
        return None
    body = data[:HEAD_SIZE - SEAL.size]
    if data[len(body):HEAD_SIZE] != SEAL.pack(zlib.crc32(body), 0):
        return None
    return Head(*HEAD.unpack_from(data, PREAMBLE.size))


def pack_record(marker: bytes, number: int, before: int, payload: memoryview, *, tag: bytes,
                events: int, chunk: bytes, compressed: str, run: int, upto: int,
                lost: int) -> bytes:
    """The head of a record.  ValueError: something does not fit."""
    how = compressed.encode("ascii")
    names = tag + chunk + how
    if payload.nbytes > MAX_PAYLOAD:
        raise ValueError(f"a record may have {MAX_PAYLOAD} octets")
    try:
        head = RECORD.pack(marker, number, before, run, upto, lost, events, payload.nbytes,
                           zlib.crc32(payload), len(tag), len(chunk), len(how), 0)[:-4]
    except struct.error as error:
        raise ValueError(f"no record can hold it: {error}") from None
    return head + zlib.crc32(names, zlib.crc32(head)).to_bytes(4, "little") + names


def read_header(fd: int, offset: int, size: int, marker: bytes) -> Header | None:
    """The head of the record at `offset`; None: there is none, or not the whole record is within
    `size`."""
    data = read(fd, min(AHEAD, size - offset), offset)
    if len(data) < RECORD.size:
        return None
    found, number, before, run, upto, lost, events, length, crc, tag, chunk, how, own = \
        RECORD.unpack_from(data)
    start = RECORD.size + tag + chunk + how
    if found != marker or length > MAX_PAYLOAD or offset + start + length > size:
        return None
    if start > len(data):
        data = read(fd, start, offset)
    names = data[RECORD.size:start]
    if zlib.crc32(names, zlib.crc32(data[:RECORD.size - 4])) != own or len(data) < start:
        return None
    return Header(number, before, run, upto, lost, events, length, crc, names[:tag],
                  names[tag:tag + chunk], names[tag + chunk:].decode("ascii", "replace"), start)


def find(fd: int, offset: int, size: int, marker: bytes, low: int, high: int
         ) -> tuple[int, Header] | None:
    """The first record at or behind `offset` that has a sound head and a number from `low` up to
    `high`; None: there is none up to `size`."""
    header = read_header(fd, offset, size, marker)
    if header is not None and low <= header.number < high:
        return offset, header
    offset += 1
    while offset < size:
        window = read(fd, min(WINDOW, size - offset), offset)
        at = window.find(marker)
        while at >= 0:
            header = read_header(fd, offset + at, size, marker)
            if header is not None and low <= header.number < high:
                return offset + at, header
            at = window.find(marker, at + 1)
        if len(window) < min(WINDOW, size - offset):
            break                               # the file has become shorter
        if offset + len(window) >= size:
            break
        offset += len(window) - len(marker) + 1
    return None


def read(fd: int, size: int, offset: int) -> bytes:
    """At most `size` octets; less at the end of the file.  What the disk can't read is zeros."""
    if size <= 0:
        return b""
    try:
        data = os.pread(fd, size, offset)
        if len(data) == size:
            return data
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        data = b""
    parts = [data]
    have = len(data)
    while have < size:
        n = min(PAGE - (offset + have) % PAGE, size - have)
        try:
            part = os.pread(fd, n, offset + have)
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            part = bytes(n)
        if not part:
            break
        parts.append(part)
        have += len(part)
    return b"".join(parts)


def write(fd: int, buffers: Sequence[Buffer], offset: int) -> int:
    """All of it, or OSError.  Returns how much that was."""
    total = sum(len(b) for b in buffers)
    done = os.pwritev(fd, buffers, offset)
    while done < total:
        rest = []
        skip = done
        for buffer in buffers:
            if skip < len(buffer):
                rest.append(memoryview(buffer)[skip:])
            skip = max(0, skip - len(buffer))
        n = os.pwritev(fd, rest, offset + done)
        if n == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done += n
    return total


def open_plain(path: str, flags: int) -> int:
    """A descriptor of a plain file, never of a link, a FIFO or a device.  OutputError, OSError."""
    try:
        fd = os.open(path, flags | PLAIN, MODE)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OutputError(f"spool: {printable(path)} is a link; it must be a file") from None
        if error.errno in (errno.EISDIR, errno.ENXIO):
            raise OutputError(f"spool: {printable(path)} is no plain file") from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OutputError(f"spool: {printable(path)} is no plain file")
    return fd


def open_segment(path: str) -> int:
    """For reading; -1: it has gone, or its disk can't give it.  OutputError: it is no plain file.
    OSError: it is there, and we may not, or have no descriptors left."""
    try:
        return open_plain(path, os.O_RDONLY)
    except OSError as error:
        if error.errno != errno.ENOENT and error.errno not in UNREADABLE:
            raise
        return -1


# --- a segment, as the spool knows it -------------------------------------------------------------


class Segment:
    """A file of records; `end` and `end_before` are the next one's `first` and `before`, and None
    while it is written."""

    __slots__ = ("before", "dirty", "end", "end_before", "first", "marker", "path", "size", "taken")

    def __init__(self, path: str, first: int, before: int, marker: bytes) -> None:
        self.path = path
        self.first = first
        self.before = before
        self.marker = marker
        self.end: int | None = None
        self.end_before = before
        self.size = 0           # up to here it may be read
        self.taken = 0          # octets on the disk
        self.dirty = False      # something was written since it was last synced
