"""What a spool has beside its segments: the position, and the quarantine.

`position` says which records are done with: all ahead of the head, and ranges behind it.  It also
says how far the spool goes, so that a record that was lost at its end is missed.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import zlib
from bisect import bisect_left, bisect_right
from typing import NamedTuple

from gazer.sinks.account import Tally
from gazer.sinks.segments import (
    MODE,
    PLAIN,
    PREAMBLE,
    UNREADABLE,
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


class Range(NamedTuple):
    """Records from `first` up to `end`, and the events before each of the two."""

    first: int
    end: int
    before: int
    end_before: int


class Done:
    """Which records behind the head are done with, acknowledged or lost, as ranges in order that
    do not touch.  Between two of them is a record that was read and is not acknowledged, so there
    are no more of them than a reader's window has records."""

    def __init__(self) -> None:
        self.ranges: list[Range] = []

    def add(self, new: Range) -> None:
        ranges = self.ranges
        start = bisect_left(ranges, new.first, key=_end)            # the first that touches it
        stop = bisect_right(ranges, new.end, lo=start, key=_first)  # behind the last one
        if start < stop:
            low, high = ranges[start], ranges[stop - 1]
            if low.first < new.first:
                new = new._replace(first=low.first, before=low.before)
            if high.end > new.end:
                new = new._replace(end=high.end, end_before=high.end_before)
        ranges[start:stop] = [new]

    def find(self, number: int) -> Range | None:
        """The range that has this record."""
        at = bisect_right(self.ranges, number, key=_end)
        if at < len(self.ranges) and self.ranges[at].first <= number:
            return self.ranges[at]
        return None

    def missing(self, within: Range) -> Tally:
        """What of a range is not done with."""
        tally = Tally()
        at, before = within.first, within.before
        for done in self.ranges:
            if done.first >= within.end or at >= within.end:
                break
            if done.end > at:
                if done.first > at:
                    tally.add(done.first - at, done.before - before)
                at, before = done.end, done.end_before
        if at < within.end:
            tally.add(within.end - at, within.end_before - before)
        return tally

    def forget(self, end: int) -> Range | None:
        """All below `end`.  Returns the range that reaches it, if there is one."""
        last = None
        while self.ranges and self.ranges[0].first <= end:
            last = self.ranges.pop(0)
        return last if last is not None and last.end > end else None


def _first(done: Range) -> int:
    return done.first


def _end(done: Range) -> int:
    return done.end


class State(NamedTuple):
    """What `position` says."""

    marker: bytes
    head: int               # the first record that is not acknowledged
    head_before: int
    tail: int               # the number of the next record
    tail_before: int
    run: int                # of the last record, and how far that run had come
    upto: int
    lost: int
    owner: int = 0          # the run that wrote this, and the events that it has lost of the spool:
    dropped: int = 0        # ... by a policy
    damaged: int = 0        # ... since they could not be read
    done: tuple[Range, ...] = ()    # behind `head`


class Position:
    """The file that says how far the spool was acknowledged.

    It has three places of 4 KiB; the sound one with the highest sequence counts.  One is known to
    be on the disk and is not touched, one is written at each acknowledgement, and while that is
    being synced the third is written.  So there is always one that no crash can tear, and an
    acknowledgement waits for no disk.
    """

    PLACE = 4096
    STATE = struct.Struct("<Q8s10QI")
    RANGE = struct.Struct("<4Q")
    MAX_DONE = 120      # what stands in further ones comes again after a restart

    def __init__(self, path: str) -> None:
        """OutputError: it is of a newer version, or no plain file."""
        self.path = path
        self.fd = open_plain(path, os.O_RDWR | os.O_CREAT)
        self.state: State | None = None     # None: there is none that is sound
        self.damaged = False                # a place is not sound, or can't be read
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
            try:
                data = os.pread(self.fd, self.PLACE, place * self.PLACE)
            except OSError as error:
                if error.errno not in UNREADABLE:
                    raise
                self.damaged = True         # and not as empty as `read` would have it
                continue
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
        sequence, *fields, ranges = self.STATE.unpack_from(data, PREAMBLE.size)
        end = size + ranges * self.RANGE.size
        seal = zlib.crc32(data[:end]).to_bytes(4, "little")
        if ranges > self.MAX_DONE or data[end:end + 4] != seal:
            return None
        return sequence, State(*fields)._replace(
            done=tuple(Range(*done) for done in self.RANGE.iter_unpack(data[size:end])))

    def write(self, state: State) -> None:
        """Into the place that may be written.  OSError."""
        self._sequence += 1
        done = state.done[:self.MAX_DONE]
        data = preamble(POSITION, PREAMBLE.size + self.STATE.size) + self.STATE.pack(
            self._sequence, *state[:-1], len(done))
        if done:
            data += b"".join(self.RANGE.pack(*one) for one in done)
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
