"""What is in a spool's folder, at the start: which segments, from which record to which.

    survey = Survey(folder, position_state, ...)

It reads the heads of all segments and walks the last one, whose records say how far the spool goes;
nothing else is read, so damage within the others shows when they are read (spool.py).  What one
place does not tell any more, another one does:

    a segment's head is damaged         its name has the number, its first sound record the events
    the last records are damaged        the position has the tail of the last sync or ack
    the position is lost                each segment's head has it as of when that was made
    the marker                          stands in the position and in each segment's head
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re

from gazer.config.kinds import printable
from gazer.errors import OutputError
from gazer.sinks.position import State
from gazer.sinks.segments import (
    HEAD_SIZE,
    LARGEST,
    LAST,
    SEGMENT,
    Head,
    Header,
    Segment,
    find,
    open_plain,
    open_segment,
    parse_head,
    read,
    refuse_newer,
)

NAME = re.compile(r"spool-([0-9]{20})\.seg")
EVER = 1 << 64


def segment_name(first: int) -> str:
    return f"spool-{first:020}.seg"


class Survey:
    """Two steps, since a position is made only in a folder whose segments are not of a newer
    version: `Survey(folder, names)`, and `conclude` with the position's state."""

    def __init__(self, folder: str, names: list[str]) -> None:
        """OutputError, OSError."""
        self.segments: list[Segment] = []
        self.heads: list[Head | None] = []      # None: it is not sound
        self.marker = b""
        self.head = self.tail = 1
        self.head_before = self.tail_before = 0
        self.runs: list[tuple[int, int, int]] = []  # run, upto and lost, the newest last
        self.lost = False                       # there is no position for what is here
        self.torn: Segment | None = None        # the last one, when no record of it got through
        for name in sorted(names):
            match = NAME.fullmatch(name)
            if match and int(match[1]) < LAST:
                self._look(os.path.join(folder, name), int(match[1]))

    def _look(self, path: str, first: int) -> None:
        data, size = b"", 0
        fd = open_segment(path)
        if fd >= 0:
            try:
                data = read(fd, HEAD_SIZE, 0)
                size = min(os.fstat(fd).st_size, LARGEST)
            finally:
                os.close(fd)
        refuse_newer(path, data, SEGMENT)
        head = parse_head(data)
        if head is not None and head.first != first:
            head = None                         # a copy, or renamed
        segment = Segment(path, first, head.before if head else 0, head.marker if head else b"")
        segment.size = segment.taken = size
        self.segments.append(segment)
        self.heads.append(head)

    def conclude(self, state: State | None, marker: bytes) -> State | None:
        """Where everything stands; `marker` is for a spool that has none.  Returns the state, or
        None if it is of another spool: that would have us throw away what is here."""
        sound = [head for head in self.heads if head is not None]
        if state is not None and sound and all(head.marker != state.marker for head in sound):
            state = None
        self.lost = state is None and bool(self.segments)
        if state is not None:
            marker = state.marker
        elif sound:
            marker = sound[0].marker
        self.marker = marker
        for segment in self.segments:
            segment.marker = segment.marker or marker
        self.runs = [(head.run, head.upto, head.lost) for head in sound]
        self._find_tail(state)
        self._bound()
        if state is not None:
            self._agree(state)
            self.head, self.head_before = state.head, state.head_before
        else:
            self._find_head(sound)
        return state

    def _find_tail(self, state: State | None) -> None:
        tail, before = (state.tail, state.tail_before) if state is not None else (1, 0)
        runs = [] if state is None else [(state.run, state.upto, state.lost)]
        for segment, head in zip(reversed(self.segments), reversed(self.heads), strict=True):
            last = last_record(segment)
            if last is not None and last.number >= tail:
                tail, before = last.number + 1, last.before + last.events
                runs.append((last.run, last.upto, last.lost))
            elif last is not None:
                runs.insert(0, (last.run, last.upto, last.lost))
            elif head is not None and head.first > tail:
                tail, before = head.first, head.before
            if last is not None or head is not None:
                break
        if self.segments:
            tail = max(tail, self.segments[-1].first)
            if self.segments[-1].first == tail:
                self.torn = self.segments.pop()
                self.heads.pop()
        self.runs += runs
        self.tail, self.tail_before = tail, before

    def _bound(self) -> None:
        """Each segment ends where the next one begins."""
        end, before = self.tail, self.tail_before
        for segment, head in zip(reversed(self.segments), reversed(self.heads), strict=True):
            segment.end, segment.end_before = end, before
            if head is None:
                segment.before = events_before(segment, segment.first)
            segment.before = min(segment.before, before)
            end, before = segment.first, segment.before

    def _agree(self, state: State) -> None:
        """What a damaged segment's neighbours say of the events before it can't be against what the
        position knows for sure."""
        known = [(state.head, state.head_before)]
        for done in state.done:
            known += (done.first, done.before), (done.end, done.end_before)

        def bounded(number: int | None, before: int) -> int:
            if number is None:
                return before
            before = max(before, max((b for n, b in known if n <= number), default=0))
            return min(before, min((b for n, b in known if n >= number), default=before))

        for segment in self.segments:
            segment.before = bounded(segment.first, segment.before)
            segment.end_before = bounded(segment.end, segment.end_before)

    def _find_head(self, heads: list[Head]) -> None:
        self.head, self.head_before = self.tail, self.tail_before
        told = max((head.acknowledged for head in heads), default=0)
        for segment in self.segments:
            if segment.end is not None and segment.end > told:
                self.head = max(told, segment.first)
                self.head_before = events_before(segment, self.head)
                break

    def front(self) -> tuple[int, int]:
        """The first record at or behind `head` whose segment is there, and the events before it."""
        for segment in self.segments:
            if segment.end is not None and segment.end > self.head:
                if segment.first > self.head:
                    return segment.first, segment.before
                return self.head, self.head_before
        return self.tail, self.tail_before


def last_record(segment: Segment) -> Header | None:
    fd = open_segment(segment.path)
    if fd < 0:
        return None
    try:
        last = None
        offset, low = HEAD_SIZE, segment.first
        while found := find(fd, offset, segment.size, segment.marker, low, EVER):
            at, last = found
            offset, low = at + last.end, last.number + 1
        return last
    finally:
        os.close(fd)


def events_before(segment: Segment, number: int) -> int:
    """The events before a record of a segment, or before the next one that can be read."""
    end = segment.end
    assert end is not None
    fd = open_segment(segment.path)
    if fd < 0:
        return segment.end_before
    try:
        offset, low = HEAD_SIZE, segment.first
        while found := find(fd, offset, segment.size, segment.marker, low, end):
            at, header = found
            if header.number >= number:
                return header.before
            offset, low = at + header.end, header.number + 1
        return segment.end_before
    finally:
        os.close(fd)


def make_folder(folder: str) -> None:
    """With those above it, and so that they are there after a reboot."""
    missing = []
    path = os.path.abspath(folder)
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        raise OutputError(f"spool: {printable(path)} is no folder")
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another sensor was faster
            os.mkdir(path, 0o750)
        sync_folder(os.path.dirname(path))


def hold(folder: str) -> int:
    """Make the folder, if need be, and lock it: the lock ends with the descriptor or the process.
    OutputError: it is in use."""
    make_folder(folder)
    fd = open_plain(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if not isinstance(error, BlockingIOError):
            raise
        raise OutputError(
            f"spool: {printable(folder)} is in use: another output or another sensor holds it; "
            "each needs a folder of its own") from None
    return fd


def sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: str) -> None:
    """By its name: no descriptor is kept for this, and Linux syncs files, not descriptors."""
    try:
        fd = open_plain(path, os.O_RDONLY)
    except (FileNotFoundError, OutputError):
        return                          # dropped in the meantime, or taken away
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


def shrink(path: str) -> int:
    """A segment to its head, or to nothing if that is not sound.  Returns what that leaves."""
    try:
        fd = open_plain(path, os.O_RDWR)
    except (OSError, OutputError):
        return 0                        # told where it matters: at the next append
    try:
        size = HEAD_SIZE if parse_head(read(fd, HEAD_SIZE, 0)) is not None else 0
        os.ftruncate(fd, size)
        return size
    except OSError:
        return min(os.fstat(fd).st_size, LARGEST)
    finally:
        os.close(fd)


def remove(path: str) -> None:
    # One that stays is removed at the next start: all in it is behind the position.
    with contextlib.suppress(OSError):
        os.unlink(path)
