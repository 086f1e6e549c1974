"""The two small things beside a spool's segments: its position, and its quarantine."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import zlib
from typing import NamedTuple

from gazer.sinks.segments import (
    MODE,
    PLAIN,
    PREAMBLE,
    VERSION,
    WINDOW,
    open_plain,
    preamble,
    read,
    refuse_newer,
    version_of,
    write,
)

POSITION = b"GZSPOOLP"
DAMAGED = re.compile(r"damaged-\d+-\d+")



class Gap(NamedTuple):
    """Records that are known to be unreadable, and are counted already."""

    first: int
    records: int
    events: int


class State(NamedTuple):
    """What `position` says."""

    marker: bytes
    head: int               # the first record that is not acknowledged
    head_before: int
    tail: int               # the number of the next record
    tail_before: int
    run: int                # of the last record, and what was appended in it
    upto: int
    gaps: tuple[Gap, ...] = ()      # behind `head`


class Position:
    """The file that says how far the spool was acknowledged.

    It has three places of 4 KiB; the sound one with the highest sequence counts.  One is known to
    be on the disk and is not touched, one is written at each acknowledgement, and while that is
    being synced the third is written.  So there is always one that no crash can tear, and an
    acknowledgement waits for no disk.
    """

    PLACE = 4096
    STATE = struct.Struct("<Q8s6QI")
    GAP = struct.Struct("<3Q")
    # More are counted again at the next start.  A gap stands between records that were read and not
    # acknowledged, and of those there are as many as the output's window.
    MAX_GAPS = 128

    def __init__(self, path: str) -> None:
        """OutputError: it is of a newer version, or no plain file."""
        self.path = path
        self.fd = open_plain(path, os.O_RDWR | os.O_CREAT)
        self.state: State | None = None     # None: there is none that is sound
        self.damaged = False                # a place is there that is not sound
        self._sequence = 0
        self._durable = 0
        try:
            # What a killed process wrote counts from now on: let it be on the disk before the next
            # place is written.
            os.fdatasync(self.fd)
            self._load()
            # All three places from the beginning: an acknowledgement must not need room on a disk
            # that is full, since it is what makes room.
            size = os.fstat(self.fd).st_size
            if size < 3 * self.PLACE:
                write(self.fd, [bytes(3 * self.PLACE - size)], size)
            os.ftruncate(self.fd, 3 * self.PLACE)
        except BaseException:
            os.close(self.fd)
            raise
        self._place = (self._durable + 1) % 3

    def _load(self) -> None:
        for place in range(3):
            data = read(self.fd, self.PLACE, place * self.PLACE)
            if not data.strip(b"\0"):
                continue
            refuse_newer(self.path, data, POSITION)
            found = self._parse(data)
            if found is None:
                self.damaged = True
            elif found[0] > self._sequence:
                self._sequence, self.state = found
                self._durable = place

    def _parse(self, data: bytes) -> tuple[int, State] | None:
        size = PREAMBLE.size + self.STATE.size
        if version_of(data, POSITION) != VERSION or len(data) < size:
            return None
        sequence, *fields, gaps = self.STATE.unpack_from(data, PREAMBLE.size)
        end = size + gaps * self.GAP.size
        seal = zlib.crc32(data[:end]).to_bytes(4, "little")
        if gaps > self.MAX_GAPS or data[end:end + 4] != seal:
            return None
        return sequence, State(*fields)._replace(
            gaps=tuple(Gap(*gap) for gap in self.GAP.iter_unpack(data[size:end])))

    def write(self, state: State) -> None:
        """Into the place that may be written.  OSError."""
        self._sequence += 1
        gaps = state.gaps[:self.MAX_GAPS]
        data = preamble(POSITION, PREAMBLE.size + self.STATE.size) + self.STATE.pack(
            self._sequence, *state[:7], len(gaps))
        if gaps:
            data += b"".join(self.GAP.pack(*gap) for gap in gaps)
        write(self.fd, [data + zlib.crc32(data).to_bytes(4, "little")], self._place * self.PLACE)

    def turn(self) -> int:
        """Write elsewhere from now on; returns the place that is to be synced."""
        written = self._place
        self._place = 3 - written - self._durable
        return written

    def sync(self, place: int) -> None:
        os.fdatasync(self.fd)
        self._durable = place

    def close(self) -> None:
        os.close(self.fd)


class Quarantine:
    """Copies of what could not be read, for whoever wants to look: at most FILES, of LIMIT octets
    together and an eighth of what the spool may take.  The first are kept, since they show how it
    began; what finds no room is only counted."""

    FILES = 16
    LIMIT = 16 << 20

    def __init__(self, folder: str, names: list[str], room: int) -> None:
        self.folder = folder
        self.limit = min(self.LIMIT, room // 8)
        self.bytes = 0
        self.files = 0
        for name in sorted(names):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                size = os.lstat(path).st_size
                if self.files >= self.FILES or self.bytes + size > self.limit:
                    os.unlink(path)             # the spool was given less room
                else:
                    self.bytes += size
                    self.files += 1

    def keep(self, fd: int, name: str, offset: int, end: int, room: int) -> None:
        """Copy octets of a segment; never raises.  `room`: how much the spool may still take."""
        size = min(end - offset, self.limit - self.bytes, room)
        if size <= 0 or self.files >= self.FILES:
            return
        path = os.path.join(self.folder, name)
        try:
            copy = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | PLAIN, MODE)
        except OSError:
            return                              # mostly: it was kept by the run before
        done = 0
        try:
            while done < size:
                data = read(fd, min(WINDOW, size - done), offset + done)
                if not data:
                    break
                done += write(copy, [data], done)
        except OSError:
            done = 0
        finally:
            os.close(copy)
        if done:
            self.bytes += done
            self.files += 1
        else:
            with contextlib.suppress(OSError):
                os.unlink(path)
