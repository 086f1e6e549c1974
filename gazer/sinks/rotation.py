"""Outputs whose file is closed for a new one: when it is large, when its time is over.

What files are called stands in gazer/config/patterns.py.  In short: where the path has conversions
a file has its final name from the start, else the one that is written has the path's own name and
is renamed when it is closed.

When.  *Time* is that of the machine, by UTC, when a block is written; events in it are as much
older as they took to get here.  A file whose time is over is closed within a second or so, also if
no event comes: who collects closed files need not wait for traffic.  The next file is then made
when there is something to write into it, if it has a name of its own.  *Size* is looked at ahead
of each block, and a block is never divided.  So every file holds whole events.

A clock that is set back by up to a minute changes nothing: the file goes on until its end comes
again.  Set back by more, a new file is begun; its name may have been used, and then it gets a
number.  Nothing is ever overwritten or renamed over: new names are made with O_EXCL and
RENAME_NOREPLACE.  A number is one more than the greatest there is, compressed files included.

The file that is written is locked (flock).  That keeps who compresses away from it, and another
gazer with the same path as well, which would otherwise rename our file.

A start goes on with the file that is there: the one of that name; with conversions, the last one of
this very time that is neither compressed nor full.  One whose time was over before the start is
closed first.

A new file is a step of its own (`due`, then `reopen`, as for a HUP), after which the sink commits
the file's place, and only then writes to it.  So a successor knows in which file the last block
stands, and cuts that one, however the names have changed meanwhile.  Killed between two steps:

    renamed, no new file yet        the file of the commit is found by its inode, there is nothing
                                    behind the committed end; the path's file is made
    the new file is made            it is empty, and goes on
    closed, not yet compressed      the keeper finds it

What goes wrong with a new file (no room for it, no permission) never costs events: the old one goes
on, which is told, at once and every 30 s, and it is tried again each 2 s.

HUP opens the path again as for other outputs: a file that is still there under its name stays open;
one that was moved away by hand is let go of, and belongs to whoever moved it.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
import time

from gazer.config.patterns import Names
from gazer.sinks.compress import UNLOCKABLE, Busy, lock
from gazer.sinks.files import AGAIN, REMIND, FileOutput, opened
from gazer.sinks.keeper import Keeper
from gazer.system import rename_new

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from gazer.config import Rotation

BACK = 60.0         # seconds by which the clock may go back without a new file
TRIES = 100         # of a name that another process takes in the same moment
FLAGS = (os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK | os.O_NOFOLLOW)


class Period:
    """The time of one file.  `interval`: its length in seconds; 0: as long as the name stays."""

    def __init__(self, names: Names, interval: int) -> None:
        self._names = names
        self._interval = interval
        self._unit = interval or names.unit
        self._key: object = None
        self._from, self._to = -math.inf, math.inf

    def key(self, now: float) -> object:
        """Equal for two moments of the same file."""
        if self._interval:
            return now // self._interval
        return self._names.at(now) if self._names.timed else 0

    def name(self, now: float) -> str:
        """What a file of that time is called, where names have conversions: after its beginning."""
        return self._names.at(now // self._interval * self._interval if self._interval else now)

    def begin(self, now: float) -> None:
        """The file that is written is of this time."""
        self._key = self.key(now)
        self._bound(now)

    def _bound(self, now: float) -> None:
        if self._unit:
            self._from = now // self._unit * self._unit
            self._to = self._from + self._unit

    def over(self, now: float) -> bool:
        """It is time for another file."""
        if self._from - BACK <= now < self._to:
            return False
        if self.key(now) != self._key:
            return True
        self._bound(now)        # another day of the same month
        return False


class RotatingOutput(FileOutput):
    """A FileOutput, of `path` with its conversions, that begins new files as `rotation` says."""

    rotates = True

    def __init__(self, path: str, *, rotation: Rotation, notice: Callable[[str], None],
                 giving_up: Callable[[], bool], lasting: bool = False,
                 clock: Callable[[], float] = time.time, **rest: Any) -> None:
        names = Names(path)
        self._names = names
        self._limit = rotation.size
        self._clock = clock
        self._period = Period(names, rotation.interval_ns // 1_000_000_000)
        self._rests = False         # its file is closed, and the next one has to wait for events
        self._empty_handed = False  # no block is behind the turn that is due
        self._found = 0.0           # when the file that was opened was last written
        self._retry = -math.inf
        self._turn_told = -math.inf
        self._keeper: Keeper | None = None
        super().__init__(names.path if not names.timed else path, notice=notice,
                         giving_up=giving_up, lasting=lasting, mode=rotation.mode, **rest)
        self.name = path
        now = clock()
        if self._fd >= 0 and self._at > 0 and not names.timed and (
                self._period.key(self._found) != self._period.key(now)):
            self._turn_over()
        if Keeper.wanted(rotation):
            self._keeper = Keeper(names, rotation, label=path, notice=notice)
            if self._fd >= 0:
                self._keeper.start()

    # --- when ----------------------------------------------------------------------------------

    def due(self, size: int) -> bool:
        if self._rests:
            return size > 0
        if self._fd < 0 or time.monotonic() < self._retry:
            return False
        now = self._clock()
        over = self._period.over(now)
        if over and not self._at and not self._names.timed:
            self._period.begin(now)     # nothing in it yet: it is as good as new
            over = False
        full = 0 < self._limit < self._at + size and bool(size and self._at)
        self._empty_handed = not size
        return over or full

    def reopen(self) -> None:
        """Open whatever is to be written now: because of HUP, or because `due` said so."""
        if self.wanted:
            self.wanted = False
            if not self._rests and not self._is_there():
                super().reopen()
        elif self._rests or self._fd < 0:
            self._rests = False     # whatever comes of it: `write` knows how to wait
            super().reopen()
        elif self._empty_handed and self._names.timed:
            self._rests = True
            self._close_old(self._fd)
            self._fd = -1
        else:
            self._turn_over()

    def write(self, block: memoryview) -> None:
        if not self._lasting and self.due(len(block)):
            self.reopen()
        if self._fd < 0 and not self._lasting:
            raise self._failed("write to", OSError(errno.ENOENT, "it could not be opened"))
        super().write(block)

    def _write(self, block: memoryview) -> None:
        super()._write(block)
        if not self._lasting:
            self._at = os.lseek(self._fd, 0, os.SEEK_CUR)

    # --- how -----------------------------------------------------------------------------------

    def _take(self, fd: int) -> None:
        super()._take(fd)
        if self._keeper is not None:
            self._keeper.start()        # a successor could not open it until now

    def _turn_over(self) -> None:
        """Close the file and begin the next one; if that can't be, all stays as it is."""
        old, path = self._fd, self._path
        now = self._clock()
        aside = ""
        try:
            if self._names.timed:
                fd, new = self._begin(now)
            else:
                if self._is_there():
                    aside = self._set_aside(now)
                try:
                    fd, new = self._go_on(), path
                except OSError:
                    if aside:
                        with contextlib.suppress(OSError):
                            rename_new(aside, path)
                    raise
            self._take(fd)
        except OSError as error:
            self._retry = time.monotonic() + AGAIN
            if time.monotonic() - self._turn_told >= REMIND:
                self._turn_told = time.monotonic()
                self._notice(f"{self._failed('begin a new file for', error)}; "
                             f"still writing to {os.path.basename(path)}")
            return
        self._path = new
        self._period.begin(now)
        self._close_old(old)

    def _close_old(self, fd: int) -> None:
        try:
            os.close(fd)
        except OSError as error:
            self._notice(str(self._failed("write to", error)))
        if self._keeper is not None:
            self._keeper.wake()

    def _open(self, *, wait: bool = True) -> int:
        """At the start, after HUP or a failure: go on with the file that is there, or make it."""
        now = self._clock()
        if self._names.timed:
            fd, self._path = self._begin(now, on=True)
        else:
            fd = self._go_on()
        self._found = os.fstat(fd).st_mtime
        self._period.begin(now)
        return fd

    def _go_on(self) -> int:
        """The file of the path that has no conversions."""
        for _ in range(TRIES):
            fd = opened(self._path, FLAGS, self._mode)
            with contextlib.suppress(FileNotFoundError):    # renamed by another process just now
                return self._held(fd, self._path)
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    def _begin(self, now: float, *, on: bool = False) -> tuple[int, str]:
        """A new file with conversions in its name, and its path; `on`: or the last one of this
        time, if it can be gone on with."""
        base = self._period.name(now)
        last, open_ = self._last(base)
        for _ in range(TRIES):
            number = last + 1
            if on and last >= 0 and open_:
                on, number = False, last
            path = os.path.join(self._names.folder, f"{base}.{number}" if number else base)
            try:
                if number > last:
                    return self._held(opened(path, FLAGS, self._mode, new=True), path), path
                fd = self._held(os.open(path, FLAGS), path)
                if self._of_now(os.fstat(fd), now):
                    return fd, path
                os.close(fd)
            except FileExistsError:
                last = number
            except OSError as error:
                if number > last and error.errno not in (errno.EBUSY, errno.ENOENT):
                    raise
                last = max(last, number)    # someone has it in hand, or it can't be written
        raise OSError(errno.EEXIST, f"no free name after {base}")

    def _of_now(self, about: os.stat_result, now: float) -> bool:
        """A file that is there has room, and is of this very time."""
        if not about.st_size:
            return True
        return (self._period.key(about.st_mtime) == self._period.key(now)
                and (not self._limit or about.st_size < self._limit))

    def _last(self, base: str) -> tuple[int, bool]:
        """The greatest number of the files of this name (0: the one without; -1: there is none);
        whether it is one that can be written to."""
        last, endings = -1, {""}
        for entry in os.listdir(self._names.folder):
            name = self._names.parse(entry)
            if name is None or name.base != base or name.number < last:
                continue
            if name.number > last:
                last, endings = name.number, set()
            endings.add(name.ending)
        return last, endings == {""}

    def _set_aside(self, now: float) -> str:
        """Give the file the name of one that was closed."""
        base = self._names.at(now)
        last, _ = self._last(base)
        for number in range(last + 1, last + 1 + TRIES):
            path = os.path.join(self._names.folder, f"{base}.{number}" if number else base)
            with contextlib.suppress(FileExistsError):
                rename_new(self._path, path)
                return path
        raise OSError(errno.EEXIST, f"no free name after {base}")

    def _held(self, fd: int, path: str) -> int:
        """This descriptor, locked."""
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "only plain files can follow one another")
            try:
                lock(fd, path)
            except Busy:
                raise OSError(errno.EBUSY, "another process has it in hand") from None
            except OSError as error:
                if error.errno not in UNLOCKABLE:
                    raise
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _is_there(self) -> bool:
        """The path still is the file that is open."""
        if self._fd < 0:
            return False
        ours = os.fstat(self._fd)
        try:
            there = os.lstat(self._path)
        except OSError:
            return False
        return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)

    def _near(self, entry: str, name: str) -> bool:
        parsed = self._names.parse(entry)
        if parsed is None:
            return super()._near(entry, name)
        return not parsed.ending and not parsed.part

    def close(self) -> None:
        """The end.  Over files what was closed is compressed first; live the next start does it.

        The last file stays as it is, and locked until then: the next start may go on with it.
        """
        if self._keeper is not None:
            self._keeper.end(finish=not self._lasting, giving_up=self._giving_up)
        super().close()
