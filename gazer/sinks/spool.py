"""A queue of chunks on disk, for an output whose receiver is away or slow.

    spool = Spool("/var/spool/gazer/central", max_bytes=1 << 30, notice=print)
    spool.append(payload, tag=b"dns.tx", events=812, chunk=b"...")      # behind all others
    record = spool.next()       # the first that was not read yet; None: that was all
    spool.ack(record)           # a receiver has it
    spool.rewind()              # the connection is gone: read what was not acknowledged again
    spool.sync()                # from another thread: to the disk with it

Records are numbered; `head` is the first that is not acknowledged, `tail` the next to be appended.
They stand in segments of 8 MiB: segments.py has the format, and how records are found again behind
damage; survey.py what a start makes of a folder; position.py the file that has `head`.  A segment
is written from its beginning to its end and never again.  A start begins a new one, and nothing is
repaired in place, so that looking at a spool can't make it worse.  A segment whose records are all
behind `head` is removed.

What survives
- A process that is killed: all that `append` has returned for, as it is with the kernel then.
  `ack` writes the position at once, too: what was acknowledged does not come again.  (It has room
  for 120 ranges that were acknowledged behind records that were not.)
- A host that goes down: what was appended and acknowledged before the last `sync` that returned
  began.  A segment's data goes to the disk first, then the folder's entries, then the position, and
  only then segments behind it are removed.
- Damage: all records but those it hits.  Numbers and sums of events in each record's head tell what
  is missing, to the event, and the position where the last one was.  It is found when it is read: a
  start takes as long with 100 GiB as with one.  What can't be read is copied to `damaged-*`, within
  bounds, told in a line, and counted once: the position remembers it for the next start.  A disk
  that takes nothing is taken for gone: it may come back, and nothing is given up until then.
- A lost or damaged position: everything; what was acknowledged comes again, if it is still there.

The account, in records and in events, of each process that opens the spool:

    found + spooled = delivered + dropped + damaged + still there

`found` is what should be there at the start by the numbers, less what an earlier process counted as
damaged.  `refused`, which drop=newest did not take, is beside it.  What is dropped while it is on
its way to a receiver counts as dropped, whatever becomes of it.  What was dropped or damaged in one
run is kept over its processes (`gone`).  Two things can't be known.  Octets behind the last record,
with no number missing, are an append that was cut off (`torn`): its events are still with whoever
appends.  And when a host goes down just after a segment was removed to make room, the position on
its disk may be from before; then these records count as damaged.

Limits
- max_bytes bounds the octets of all files here: segments, quarantine (an eighth of it at most, and
  16 MiB), position.  drop=oldest removes whole segments, the oldest first, whether read or not;
  drop=newest refuses.  A segment takes at most an eighth of max_bytes (or is one large record), so
  no more than that goes at once.  With less max_bytes than is there at a start, drop=oldest drops
  down to it, and drop=newest refuses until it was drained to it.
- Memory: the record that is read, and some hundred octets for each that is read and not
  acknowledged and for each segment.  Four descriptors.
- One thread appends, reads and acknowledges; `sync` is called from another.  No lock is held during
  a sync; what a file system then holds up by itself (ext4: a full journal) is held up here, too.
- After a sync that failed Linux takes the pages for written: `sync` raises, which is all it can do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import zlib

from gazer.config.kinds import printable
from gazer.errors import OutputError
from gazer.sinks.account import Account
from gazer.sinks.position import DAMAGED, Done, Position, Quarantine, Range, State
from gazer.sinks.segments import (
    HEAD_SIZE,
    LAST,
    Head,
    Header,
    Record,
    Segment,
    find,
    open_plain,
    open_segment,
    pack_head,
    pack_record,
    read,
    write,
)
from gazer.sinks.survey import (
    Survey,
    hold,
    remove,
    segment_name,
    shrink,
    sync_file,
    sync_folder,
)

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable

SEGMENT_BYTES = 8 << 20
RUNS = 8                # whose `last` is known; only the newest is asked for


class Spool:
    """See the module."""

    def __init__(self, folder: str, *, max_bytes: int, drop: str = "oldest",
                 segment_bytes: int = SEGMENT_BYTES, notice: Callable[[str], None],
                 run: int = 0) -> None:
        """`run`: see `gone`.  OutputError: it can't be used, is in use, or of a newer version."""
        if drop not in ("oldest", "newest"):
            raise ValueError(f"drop is oldest or newest, not {drop!r}")
        self.folder = folder
        self._max_bytes = max_bytes
        self._newest = drop == "newest"
        self._segment_bytes = min(segment_bytes, max_bytes // 8)

        self._lock = threading.Lock()       # everything that `sync` looks at
        self._syncing = threading.Lock()    # one sync at a time
        self._run = run
        self._closed = False
        self._segments: list[Segment] = []
        self._writer: Segment | None = None     # the last of them, while it is written
        self._writer_fd = -1
        self._dirty: list[Segment] = []
        self._made = False                  # an entry of the folder is not synced
        self._unsynced = False              # nor is the position

        self._head = self._tail = 1
        self._head_before = self._tail_before = 0
        self._done = Done()                 # behind head
        self._out: dict[int, tuple[int, int]] = {}  # read, not acknowledged: place, events before
        self._runs: dict[int, tuple[int, int]] = {}

        self._reading: Segment | None = None
        self._fd = -1
        self._offset = 0                    # of what is read next
        self._low = 0                       # the least number that may stand there
        self._expect = 1                    # the number that is wanted next
        self._expect_before = 0

        self.bytes = 0                      # on the disk
        self._stub = 0                      # ... of a segment without records, see _bury
        self.account = Account(folder, notice)

        self._lock_fd = -1
        self._position: Position | None = None
        try:
            self._open()
        except OSError as error:
            self._let_go()
            where = printable(error.filename or folder)
            raise OutputError(f"spool: {where}: {error.strerror or error}") from None
        except BaseException:
            self._let_go()
            raise

    # --- the start -----------------------------------------------------------------------------

    def _open(self) -> None:
        self._lock_fd = hold(self.folder)
        names = os.listdir(self.folder)
        survey = Survey(self.folder, names)
        self._position = position = Position(os.path.join(self.folder, "position"))
        self._quarantine = Quarantine(
            self.folder, [name for name in names if DAMAGED.fullmatch(name)], self._max_bytes)
        state = survey.conclude(position.state, os.urandom(8))
        self._marker, self._segments = survey.marker, survey.segments
        self._tail, self._tail_before = survey.tail, survey.tail_before
        self._head, self._head_before = survey.head, survey.head_before
        for run, upto, lost in survey.runs:
            self._note_run(run, upto, lost)
        front, before = survey.front()
        if state is None or position.damaged:
            self._head, self._head_before = front, before   # what is missing we have removed
        if state is not None:
            if state.owner == self._run:
                self.account.before = state.dropped, state.damaged
            for done in state.done:
                self._done.add(done)
            self._pass(self._head, self._head_before)
        self.account.find(self._done.missing(
            Range(self._head, self._tail, self._head_before, self._tail_before)))
        if front > self._head:
            self._lose(Range(self._head, front, self._head_before, before)) # removed by a hand
        self._expect, self._expect_before = self._head, self._head_before

        position.write(self._state())
        position.sync(position.turn())
        sync_folder(self.folder)
        self._remove_dead(self._head)
        self.bytes = (sum(segment.taken for segment in self._segments)
                      + self._quarantine.bytes + 3 * Position.PLACE)
        if survey.torn is not None:
            self._bury(survey.torn)
        self.account.tell()
        if survey.lost:
            self.account.say("what was delivered is not known any more; all is sent again")
        if not self._newest:
            self._make_room(0)
            if dropped := self.account.dropped.events:
                self.account.say(f"over {self._max_bytes} bytes: {dropped} events were dropped")

    def _bury(self, segment: Segment) -> None:
        """A segment whose first append was cut off.  Its name and its head stay until the next
        append: they tell further starts where the one before it ends."""
        if segment.size > HEAD_SIZE:
            self._fd = open_plain(segment.path, os.O_RDONLY)
            self._reading, self._offset = segment, HEAD_SIZE
            self._low = segment.end = segment.first
            self._leave(segment)
        self._stub = shrink(segment.path)
        self.bytes += self._stub

    def _note_run(self, run: int, upto: int, lost: int) -> None:
        self._runs[run] = max((upto, lost), self._runs.pop(run, (0, 0)))    # the newest stands last
        while len(self._runs) > RUNS:
            del self._runs[next(iter(self._runs))]

    def _newest_run(self) -> tuple[int, int, int]:
        run = next(reversed(self._runs), 0)
        return run, *self._runs.get(run, (0, 0))

    # --- writing -------------------------------------------------------------------------------

    def append(self, payload: bytes | memoryview, *, tag: bytes, events: int, chunk: bytes,
               compressed: str = "", run: int = 0, upto: int = 0, lost: int = 0) -> bool:
        """Behind all others.  When this returns True a kill can't undo it, and after the next
        `sync` nothing can.  False: drop=newest, and there is no room, or it is larger than the
        spool.  OSError (a full disk): nothing of it stays; try again.  ValueError: it is no
        record, or the spool is closed."""
        if self._closed:
            raise ValueError("the spool is closed")
        view = memoryview(payload).cast("B")
        head = pack_record(self._marker, self._tail, self._tail_before, view, tag=tag,
                           events=events, chunk=chunk, compressed=compressed, run=run, upto=upto,
                           lost=lost)
        size = len(head) + len(view)
        if self._writer is not None and self._writer.size + size > self._segment_bytes:
            with self._lock:
                self._seal()
        if not self._make_room(size + HEAD_SIZE):
            self.account.refused.add(1, events)
            return False
        if self._writer is None:
            self._write_first([head, view])
        else:
            self._write_more(self._writer, [head, view])
        with self._lock:
            self._tail += 1
            self._tail_before += events
            self._note_run(run, upto, lost)
            self.account.append(events)
        return True

    def _write_first(self, buffers: list[bytes | memoryview]) -> None:
        """With a segment of its own."""
        path = os.path.join(self.folder, segment_name(self._tail))
        start = pack_head(Head(self._marker, self._tail, self._tail_before, self._head,
                               *self._newest_run()))
        # O_TRUNC: what is there by this name can only be a first record that did not get through.
        fd = open_plain(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            size = write(fd, [start, *buffers], 0)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        segment = Segment(path, self._tail, self._tail_before, self._marker)
        segment.size = segment.taken = size
        with self._lock:
            self._segments.append(segment)
            self._writer, self._writer_fd = segment, fd
            self._soil(segment)
            self._made = True
            self.bytes += size - self._stub
            self._stub = 0

    def _write_more(self, segment: Segment, buffers: list[bytes | memoryview]) -> None:
        try:
            size = write(self._writer_fd, buffers, segment.size)
        except BaseException:
            try:
                os.ftruncate(self._writer_fd, segment.size)
            except OSError:             # then nothing more is written behind it
                with self._lock:
                    there = os.fstat(self._writer_fd).st_size
                    self.bytes += there - segment.taken
                    segment.taken = there
                    self._seal()
            raise
        with self._lock:
            segment.size += size
            segment.taken += size
            self.bytes += size
            self._soil(segment)

    def _soil(self, segment: Segment) -> None:
        if not segment.dirty:
            segment.dirty = True
            self._dirty.append(segment)

    def _seal(self) -> None:
        """Nothing more is written to this segment.  (The lock is held.)"""
        if self._writer is not None:
            self._writer.end, self._writer.end_before = self._tail, self._tail_before
            os.close(self._writer_fd)
            self._writer, self._writer_fd = None, -1

    def _make_room(self, size: int) -> bool:
        """Room for so many octets; what has to go for it, goes."""
        if size + 3 * Position.PLACE > self._max_bytes:
            return False
        while self.bytes + size > self._max_bytes:
            first = next(iter(self._segments), None)    # `sync` may take the last one away
            if first is None:
                return False
            if self._newest and (first.end or LAST) > self._head:
                return False
            self._drop(first)
        return True

    def _drop(self, segment: Segment) -> None:
        """The first segment, with what is in it."""
        with self._lock:
            if segment is self._writer:
                self._seal()
            if self._segments[:1] != [segment]:
                return                  # `sync` was faster
            end, before = segment.end, segment.end_before
            assert end is not None
            if end > self._head:
                self.account.drop(
                    self._done.missing(Range(self._head, end, self._head_before, before)))
                self._out = {n: where for n, where in self._out.items() if n >= end}
                self._pass(end, before)
                self._keep_position()
            del self._segments[0]
            self.bytes -= segment.taken
        if segment is self._reading:
            self._stop_reading()        # else its room stays taken
        remove(segment.path)

    # --- reading -------------------------------------------------------------------------------

    def next(self) -> Record | None:
        """The next in order that was not read yet.  OSError: out of descriptors, or of rights."""
        self.account.tell()
        while True:
            if (segment := self._reading) is None:
                if not self._start_reading():
                    return None
                continue
            limit, before = (self._tail, self._tail_before) if segment.end is None else (
                segment.end, segment.end_before)
            if self._expect >= limit:
                if segment.end is None:
                    return None
                self._leave(segment)
                continue
            found = find(self._fd, self._offset, segment.size, segment.marker, self._low, limit)
            if found is None:
                self._prove()
                self._keep(segment, self._offset, segment.size)
                self._offset = segment.size
                self._missing(limit, before)
                continue
            at, header = found
            if at > self._offset:
                self._prove()
                self._keep(segment, self._offset, at)
            self._offset, self._low = at + header.end, header.number + 1
            if header.number > self._expect:
                self._missing(header.number, header.before)
            if header.number < self._expect:
                continue
            record = self._record(segment, at, header)
            if record is not None:
                return record

    def _record(self, segment: Segment, at: int, header: Header) -> Record | None:
        number = header.number
        here = Range(number, number + 1, header.before, header.before + header.events)
        done = self._done.find(number) or here
        if done is not here:
            self._expect, self._expect_before = done.end, done.end_before
            return None
        payload = read(self._fd, header.length, at + header.size)
        if len(payload) != header.length or zlib.crc32(payload) != header.crc:
            self._prove()
            self._expect, self._expect_before = here.end, here.end_before
            self._keep(segment, at, at + header.end)
            with self._lock:
                self._lose(here)
            self.account.tell()
            return None
        self._expect, self._expect_before = here.end, here.end_before
        self._out[number] = at, header.before
        return Record(number, header.tag, header.events, header.chunk, header.compressed, payload)

    def _start_reading(self) -> bool:
        """Open the segment that has the record wanted next."""
        while True:
            with self._lock:
                segment = next((s for s in self._segments
                                if s.end is None or s.end > self._expect), None)
            if segment is None or self._expect >= self._tail:
                return False
            try:
                self._fd = open_segment(segment.path)
            except OutputError:
                self._fd = -1
            if self._fd < 0:
                self._prove()
                with self._lock:
                    if segment is self._writer:
                        self._seal()        # somebody took it away, and what is in it
                assert segment.end is not None
                self._missing(segment.end, segment.end_before)
                continue
            self._reading = segment
            self._offset, self._low = HEAD_SIZE, segment.first
            if (where := self._out.get(self._expect)) is not None:
                self._offset, self._low = where[0], self._expect
            return True

    def _leave(self, segment: Segment) -> None:
        """There is nothing more in a segment that is not written any more."""
        if self._low == segment.end and segment.size > self._offset:
            self.account.torn += 1
            self._keep(segment, self._offset, segment.size)
            name = os.path.basename(segment.path)
            self.account.say(f"{segment.size - self._offset} bytes at the end of {name} are no "
                             "whole record; none is known to be missing")
        self._stop_reading()

    def _stop_reading(self) -> None:
        if self._reading is not None:
            os.close(self._fd)
            self._reading, self._fd = None, -1

    def ack(self, record: Record, lost: int = 0) -> bool:
        """A receiver has it, but for `lost` of its events, which are dropped.  False: that was
        known, or it was dropped in the meantime."""
        where = self._out.get(record.number)
        return where is not None and self._over(record.number, where[1], record.events, lost)

    def ack_unread(self, place: tuple[int, int], events: int) -> bool:
        """As `ack`, of one that was under way when it was appended at this `end`: it need not have
        been read, and is not from then on."""
        number, before = place
        if number < self._head or self._done.find(number) is not None:
            return False
        return self._over(number, before, events, 0)

    def _over(self, number: int, before: int, events: int, lost: int) -> bool:
        self._out.pop(number, None)
        with self._lock:
            self._done.add(Range(number, number + 1, before, before + events))
            self.account.deliver(events, lost)
            self._pass(self._head, self._head_before)
            self._keep_position()
        if self._reading is not None and (self._reading.end or LAST) <= self._head:
            self._leave(self._reading)  # else its room stays taken
        return True

    def rewind(self) -> None:
        """Read again what was read and not acknowledged."""
        self._stop_reading()
        self._expect, self._expect_before = self._head, self._head_before

    def _pass(self, number: int, before: int) -> None:
        """Everything up to this number is done with: the head goes there, and on over all behind it
        that is.  (The lock is held.)"""
        done = self._done.forget(number)
        self._head, self._head_before = (number, before) if done is None else (
            done.end, done.end_before)
        if self._expect < self._head:   # dropped, or acknowledged after a rewind
            self._expect, self._expect_before = self._head, self._head_before
        if self._head == self._tail:
            self._seal()                # so that it can be removed

    # --- damage --------------------------------------------------------------------------------

    def _prove(self) -> None:
        """It takes other things: what can't be read is damaged.  OSError: it has gone, for now."""
        self._unsynced = True
        try:
            self.sync()
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
                self._stop_reading()        # that segment is looked through again
                raise

    def _missing(self, end: int, before: int) -> None:
        """The records from the expected one up to `end` can't be read."""
        gone = Range(self._expect, end, self._expect_before, before)
        self._expect, self._expect_before = end, before
        with self._lock:
            self._lose(gone)            # which may move both further
        self.account.tell()

    def _lose(self, gone: Range) -> None:
        """Count records that can't be read, unless they were counted.  (The lock is held.)"""
        self.account.lose(self._done.missing(gone))
        self._out = {n: at for n, at in self._out.items() if not gone.first <= n < gone.end}
        self._done.add(gone)
        self._pass(self._head, self._head_before)
        self._keep_position()

    def _keep(self, segment: Segment, offset: int, end: int) -> None:
        before = self._quarantine.bytes
        self._quarantine.keep(self._fd, f"damaged-{segment.first}-{offset}", offset, end,
                              self._max_bytes - self.bytes)
        with self._lock:
            self.bytes += self._quarantine.bytes - before

    # --- the disk ------------------------------------------------------------------------------

    def _state(self) -> State:
        return State(self._marker, self._head, self._head_before, self._tail, self._tail_before,
                     *self._newest_run(), self._run, *self.account.gone,
                     tuple(self._done.ranges[:Position.MAX_DONE]))

    def _keep_position(self) -> None:
        """Write it where a kill can't undo it.  (The lock is held.)"""
        self._unsynced = True
        if self._position is not None:
            with contextlib.suppress(OSError):      # `sync` tries again, and says so
                self._position.write(self._state())

    def sync(self) -> None:
        """Everything to the disk.  OSError: it could not be; the next one tries again."""
        with self._syncing:
            with self._lock:
                if self._closed or not (self._dirty or self._made or self._unsynced):
                    return
                assert self._position is not None
                self._position.write(self._state())
                place, head = self._position.turn(), self._head
                dirty, made = self._dirty, self._made
                self._dirty, self._made, self._unsynced = [], False, False
                for segment in dirty:
                    segment.dirty = False
            try:
                for segment in dirty:
                    sync_file(segment.path)
                if made:
                    sync_folder(self.folder)
                self._position.sync(place)
            except BaseException:
                with self._lock:
                    for segment in dirty:
                        self._soil(segment)
                    self._made, self._unsynced = self._made or made, True
                raise
            self._remove_dead(head)

    def _remove_dead(self, head: int) -> None:
        """Segments whose records are all behind a head that is on the disk."""
        with self._lock:
            n = next((i for i, segment in enumerate(self._segments)
                      if (segment.end or LAST) > head), len(self._segments))
            dead, self._segments = self._segments[:n], self._segments[n:]
            self.bytes -= sum(segment.taken for segment in dead)
        for segment in dead:
            remove(segment.path)

    def close(self) -> None:
        """Sync and let go of it.  What is not acknowledged is there at the next start."""
        if self._closed:
            return
        self.account.tell(last=True)
        with self._lock:
            self._seal()
        try:
            self.sync()
            # Once more: then damage to one of the places costs nothing.
            with self._lock:
                self._unsynced = True
            self.sync()
        except OSError as error:
            self.account.say(f"it can't be synced: {error.strerror}")
        with self._syncing, self._lock:
            self._closed = True
        self._let_go()

    def _let_go(self) -> None:
        self._stop_reading()
        if self._writer_fd >= 0:
            os.close(self._writer_fd)
            self._writer, self._writer_fd = None, -1
        if self._position is not None:
            self._position.close()
            self._position = None
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # --- what there is -------------------------------------------------------------------------

    @property
    def empty(self) -> bool:
        """All is acknowledged, dropped or damaged."""
        return self._head == self._tail

    @property
    def end(self) -> tuple[int, int]:
        """Where the next record will stand: its number, and the events ahead of it."""
        return self._tail, self._tail_before

    @property
    def events(self) -> int:
        """Those that are there: appended, and neither acknowledged, dropped nor known damaged."""
        return self.account.there.events

    def last(self, run: int) -> int:
        """The greatest `upto` that was appended in this run; 0: none, or it is long ago."""
        return self._runs.get(run, (0, 0))[0]

    def lost(self, run: int) -> int:
        return self._runs.get(run, (0, 0))[1]       # what was appended with that

    def counts(self) -> dict[str, int]:
        """Of this process: events by name, records as `<name>_records`; `bytes`, `torn` places."""
        with self._lock:
            return {"bytes": self.bytes} | self.account.counts()
