"""Outputs that are files, pipes or standard output: whole blocks of whole events.

A file is appended to, never overwritten.  Where lines are written behind a line that someone left
incomplete, they begin on a line of their own.  What can go wrong, and what happens then:

- The disk is full (ENOSPC, EDQUOT): the output waits until there is room, and says so at once and
  every 30 s.  Whether there is room is found out by writing: what a file system says of itself
  knows nothing of quotas and reserves.  If the output is told to give up, it takes back the part of
  a block that was written, so that the file ends with a whole event.
- The reader of standard output has gone (`| head`): ClosedError; nothing is wrong.
- Anything else (no permission, read-only, I/O error, another pipe without reader): OutputError.

An output of a live run is *lasting*: it is never over while the sensor runs, but for the reader of
standard output.  A FIFO waits for its next reader, and whatever else went wrong is told, at once
and every 30 s, and tried again.  It may then be stuck for long; so it is written from a thread of
its own (threads.py).  `wanted` asks for the file to be opened again: that is done between two
blocks, and where one waits for room its part is taken back first, so that it stands whole in the
new file.

`place` is for a successor, which takes a file back to where the last block that counted ends.  A
file is known by device and inode: its size alone could be another file's, after a rotation.  It
takes back what its predecessor can have written, and that is no more than the block it had in hand,
whose length was committed ahead of the write; without one it takes back nothing.  Where more stands
there, somebody else writes to the file: a line says so, and all of it stays, though a part of our
block may be in there, which then comes twice; so it is with a file that may only be appended to.
(Who first appends while we have a block in hand and die, and less than that block, is taken for
us.)  Never is more than MOST_CUT cut, as `place` stands in shared memory, which a worker that was
taken over can write, and what was logged must not go with it.  If we died between the renaming and
the opening again, it is the renamed file that is taken back: it is looked for beside the path,
under a name that begins as the path's does.  One that has gone elsewhere keeps what was written
since the last commit, a block at most, which then is in the new file as well.  Where a successor
can't open the file, which is an error at the start of a run, that output alone waits, as above.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import stat
import time

from gazer.errors import OutputError

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable

REMIND = 30.0       # seconds between two lines about a full disk
RETRY = 0.2         # seconds between two tries to write to it
AGAIN = 2.0         # seconds between two tries where something else is wrong
FULL = (errno.ENOSPC, errno.EDQUOT)
WORD = (1 << 64) - 1
MIX = 0x9E3779B97F4A7C15    # spreads the device's number over the word
MOST_CUT = 2 << 20          # bytes that a successor takes back at most; no block is larger
TORN_PIPE = (0, 1)          # the place of a pipe while a block is being written to it


class ClosedError(Exception):
    """Nobody reads this output any more.  `taken`: bytes of the block that went out before."""

    def __init__(self, taken: int = 0) -> None:
        super().__init__(taken)
        self.taken = taken


class GaveUpError(Exception):
    """The output was waiting for room and has been told to stop; the block is not written."""


class _MovedError(Exception):
    """The block was taken back; it is to be written to the file that is opened now."""


class FileOutput:
    """One output.  `lines`: it holds lines of text.  `notice` takes a line for the operator;
    `giving_up` says when to wait no longer; `waits` is told when the output begins and ceases to
    wait.  `lasting`: see above.  `place`: where a predecessor's last block ended, and how long the
    one is that it had in hand.  `mode`: of a file that is made, exactly; None: 0640 less what the
    umask takes."""

    rotates = False     # `due` is to be asked

    def __init__(
        self,
        path: str,
        *,
        lines: bool,
        notice: Callable[[str], None],
        giving_up: Callable[[], bool],
        waits: Callable[[bool], None],
        lasting: bool = False,
        place: tuple[int, int, int] = (0, 0, 0),
        mode: int | None = None,
    ) -> None:
        self.name = "standard output" if path == "-" else path
        self.progress = time.monotonic()    # when it last took something, or was asked to
        self.wanted = False                 # someone wants it to be opened again
        self.said = -REMIND                 # when it last told the operator something
        self.why = ""                       # what it waits for, if it knows
        self._path = path
        self._lines = lines
        self._standard = path in ("-", "/dev/stdout", "/dev/fd/1")
        self._tell = notice
        self._giving_up = giving_up
        self._waits = waits
        self._lasting = lasting
        self._mode = mode
        self._waiting = False
        self._full = False          # the operator has been told that there is no room
        self._told = -REMIND        # when
        self._failing = False       # ... that it can't be written
        self._failing_told = -REMIND
        self._fd = -1
        self._torn = False
        self._left = place          # until it is open
        try:
            fd = os.dup(1) if path == "-" else self._open(wait=not lasting)
            if fd >= 0:
                self._take(fd)
        except (OSError, ValueError) as error:
            failed = self._failed("open", error)
            if not (lasting and place[0]):
                raise failed from None
            self._tell_failing(f"{failed}; trying again")   # `write` does
            return
        if fd < 0:
            self._notice(f"waiting for someone to read {path}")
        elif place[:2] == TORN_PIPE and lines and not self._regular:
            self._torn = True       # at worst an empty line

    def _notice(self, text: str) -> None:
        self.said = time.monotonic()
        self._tell(text)

    def _take(self, fd: int) -> None:
        """Write to this descriptor from here on; first what a dead sink left is taken back."""
        try:
            about = os.fstat(fd)
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
            if flags & os.O_ACCMODE == os.O_RDONLY:
                raise OSError(errno.EBADF, "it is closed, or open for reading only")
        except OSError:
            os.close(fd)
            raise
        place, self._left = self._left, (0, 0, 0)
        self._fd = fd
        self._regular = stat.S_ISREG(about.st_mode)
        self._appends = bool(flags & os.O_APPEND)
        self._file = _file(about)
        self._alone = True          # nobody else writes to this file, as far as we have seen
        if self._regular and place[0] == self._file:
            self._alone = self._cut(fd, about, place)
        self._at = self._end()
        self._torn = (
            self._lines and self._regular and self._appends and self._ends_in_a_line()
        )
        if self._lasting and place[0] not in (0, self._file):
            self._take_back_moved(place)

    def _cut(self, fd: int, about: os.stat_result, place: tuple[int, int, int]) -> bool:
        """Take back what our predecessor may have written of the block that it had in hand; False:
        that can't be, or there is more, so somebody else has written there too."""
        _, end, hand = place
        if about.st_size - end > min(hand, MOST_CUT):
            twice = " and up to a block of events may be in it twice" if hand else ""
            self._notice(f"somebody else has written to {self.name} too: it stays as it is{twice}")
            return False
        if about.st_size > end:
            try:
                os.ftruncate(fd, end)
            except OSError as error:    # chattr +a: one that may only be appended to
                self._notice(f"can't take back a part of {self.name}: {error.strerror}; up to a "
                             "block of events may be in it twice")
                return False
            os.lseek(fd, end, os.SEEK_SET)      # else what does not append leaves a hole
        return True

    def _take_back_moved(self, place: tuple[int, int, int]) -> None:
        """Cut the file of this place, which has another name now; if it is still near."""
        folder, name = os.path.split(os.path.realpath(self._path))
        with contextlib.suppress(OSError):
            for entry in os.listdir(folder):
                path = os.path.join(folder, entry)
                if not self._near(entry, name) or _file(os.lstat(path)) != place[0]:
                    continue
                fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    about = os.fstat(fd)
                    if _file(about) == place[0]:
                        self._cut(fd, about, place)
                finally:
                    os.close(fd)
                return

    def _near(self, entry: str, name: str) -> bool:
        """An entry of the folder may be a file that was `name` once."""
        return entry.startswith(name)

    @property
    def place(self) -> tuple[int, int]:
        """Which file this is (0: one that can't be cut, or that others write to as well), and where
        our last block ends."""
        if self._fd < 0:
            return self._left[:2] if self._left[0] else (0, 0)
        return (self._file, self._at) if self._alone and self._file else (0, 0)

    @property
    def cuttable(self) -> bool:
        """A successor can take back what of a block was written."""
        return self.place[0] != 0

    def in_hand(self, size: int) -> int:
        """What a block of so many bytes may take, behind `place`: where it goes on behind a line
        that someone left incomplete, a line end more."""
        return max(size + self._torn, self._left[2])

    def _open(self, *, wait: bool = True) -> int:
        """Open it; a FIFO waits for its reader, as long as we are not told to give up; or, without
        `wait`, is not opened: -1.

        Its descriptor stays non-blocking, so that a reader that stands still can't hold us either.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        told = False
        while True:
            try:
                return opened(self._path, flags, self._mode)
            except OSError as error:
                if error.errno != errno.ENXIO or not stat.S_ISFIFO(os.stat(self._path).st_mode):
                    raise
            if not wait:
                return -1
            if not told:
                told = True
                self._notice(f"waiting for someone to read {self._path}")
            if self._giving_up():
                raise OSError(errno.ENXIO, "nobody reads it")
            self._waits(True)
            self._waiting = True
            time.sleep(RETRY)

    def due(self, size: int) -> bool:
        """`reopen` is wanted ahead of a block of so many bytes (0: none comes just now).  Asked
        while nothing is being written, and only where `rotates`; see rotation.py."""
        return False

    def reopen(self) -> None:
        """Open the path again: whatever has that name now is written from here on.  If that can't
        be, all stays as it is."""
        self.wanted = False
        if self._standard:
            return
        old = self._fd
        try:
            fd = self._open(wait=False)
            if fd < 0:
                return
            self._take(fd)
        except OSError as error:
            still = "" if old < 0 else "; still writing to the file that was open"
            self._notice(f"{self._failed('open', error)}{still}")
            return
        if old >= 0:
            try:
                os.close(old)
            except OSError as error:
                self._notice(str(self._failed("write to", error)))

    def _ends_in_a_line(self) -> bool:
        """The file ends within a line (we were killed, or another program was)."""
        try:
            size = os.fstat(self._fd).st_size
            fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False    # we may write it and not read it
        try:
            return size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        except OSError:
            return False
        finally:
            os.close(fd)

    def write(self, block: memoryview) -> None:
        """Write the whole block, however long that takes.

        Raises ClosedError, GaveUpError or OutputError; the block counts as not written then.
        """
        if not self._lasting:
            self._write(block)
            return
        self.progress = time.monotonic()
        while True:
            try:
                if self._fd < 0:
                    self._open_some_time()
                self._write(block)
                break
            except _MovedError:
                if self._fd >= 0:
                    self.reopen()
            except OutputError as error:
                self._fail(error)
        if self._failing:
            self._failing = False
            self._notice(f"writing to {self.name} again")

    def _open_some_time(self) -> None:
        """Lasting only: open it, as soon as it can be."""
        while True:
            try:
                self.wanted = False
                fd = self._open(wait=False)
                if fd >= 0:
                    self._take(fd)
                    self.why = ""
                    return
            except OSError as error:
                raise self._failed("open", error) from None
            self.why = "nobody reads it"
            self._pause(RETRY)

    def _lose_reader(self) -> None:
        """Lasting only: the reader of a FIFO has gone.  What it left unread goes with it."""
        self._tell_failing(f"nobody reads {self.name} any more: waiting for someone who does")
        self._let_go()

    def _fail(self, error: OutputError) -> None:
        """Lasting only: tell what is wrong, and let some time go by."""
        self._tell_failing(f"{error}; trying again")
        deadline = time.monotonic() + AGAIN
        while time.monotonic() < deadline and not self.wanted:
            self._pause(RETRY)
        if not self._standard:
            with contextlib.suppress(OutputError):
                self._let_go()

    def _tell_failing(self, text: str) -> None:
        now = time.monotonic()
        if now - self._failing_told >= REMIND:
            self._failing_told = now
            self._failing = True
            self._notice(text)

    def _pause(self, seconds: float) -> None:
        if self._giving_up():
            raise GaveUpError
        time.sleep(seconds)

    def _write(self, block: memoryview) -> None:
        start = self._end()
        if start > self._at:
            self._alone = False
        if self._torn:
            self._write_all(memoryview(b"\n"), start)
            self._torn = False
            start += 1
        self._write_all(block, start)
        if self._lasting and self._regular:     # nobody succeeds the sink of a run over files
            self._at = os.lseek(self._fd, 0, os.SEEK_CUR)   # O_APPEND moves it to our end
        if self._waiting:
            self._waiting = False
            self._waits(False)
        if self._full:
            self._full = False
            self._notice(f"there is room again: writing to {self.name}")

    def _write_all(self, block: memoryview, start: int) -> None:
        done = 0
        while done < len(block):
            try:
                done += os.write(self._fd, block[done:] if done else block)
                if self._lasting:
                    self.progress = time.monotonic()
                    self.why = ""
            except BrokenPipeError as error:
                if self._standard:
                    raise ClosedError(done) from None
                if self._lasting:
                    self._lose_reader()
                    raise _MovedError from None
                raise self._failed("write to", error) from None
            except BlockingIOError:     # standard output may be someone's non-blocking pipe
                self.why = "who reads it does not go on"
                self._check(start, done)
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll(RETRY * 1000)
            except OSError as error:
                if error.errno not in FULL:
                    self._take_back(start, done)
                    raise self._failed("write to", error) from None
                self._tell_full(error)
                self._check(start, done)
                if self.wanted and self._regular and not self._standard:
                    self._take_back(start, done)
                    raise _MovedError from None
                time.sleep(RETRY)

    def _tell_full(self, error: OSError) -> None:
        """At once when it begins, then now and then, however often it comes and goes."""
        now = time.monotonic()
        if now - self._told >= REMIND:
            self._told = now
            still = "still " if self._full else ""
            why = error.strerror.lower() if error.strerror else error
            self._full = True
            self._notice(f"{still}waiting for room to write to {self.name}: {why}")

    def _check(self, start: int = 0, done: int = 0) -> None:
        """Ahead of each wait: go on waiting?"""
        self._waits(True)
        self._waiting = True
        if self._giving_up():
            self._take_back(start, done)
            raise GaveUpError

    def _end(self) -> int:
        """Where the next write begins, if this is a file."""
        if not self._regular:
            return 0
        return os.fstat(self._fd).st_size if self._appends else os.lseek(self._fd, 0, os.SEEK_CUR)

    def _take_back(self, start: int, done: int) -> None:
        """Take back the `done` bytes written since `start`, unless others write to the file too:
        what stands behind ours, or a file that was cut meanwhile, is not ours to change."""
        if self._regular and done:
            with contextlib.suppress(OSError):
                if os.fstat(self._fd).st_size == start + done:
                    os.ftruncate(self._fd, start)
                    if not self._appends:
                        os.lseek(self._fd, start, os.SEEK_SET)

    def _failed(self, verb: str, error: Exception) -> OutputError:
        why = getattr(error, "strerror", None) or str(error)
        return OutputError(f"can't {verb} {self.name}: {why}")

    def close(self) -> None:
        """The end of this output."""
        self._let_go()

    def _let_go(self) -> None:
        """Close it; a file system may find only now that it could not write."""
        fd, self._fd = self._fd, -1
        try:
            if fd >= 0:
                os.close(fd)
        except OSError as error:
            raise self._failed("write to", error) from None


def opened(path: str, flags: int, mode: int | None, *, new: bool = False) -> int:
    """Open a file; if it is not there, make it, with exactly this mode, or (None) with 0640 less
    what the umask takes.  `new`: FileExistsError if it is there."""
    if mode is None:
        return os.open(path, flags | os.O_CREAT | (os.O_EXCL if new else 0), 0o640)
    if not new:
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags)
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if new:
            raise
        return os.open(path, flags | os.O_CREAT, mode)      # a link to nothing; or made just now
    try:
        os.fchmod(fd, mode)
    except OSError:
        os.close(fd)
        raise
    return fd


def _file(about: os.stat_result) -> int:
    """Which file this is: a word of device and inode; 0 for what is no regular file."""
    regular = stat.S_ISREG(about.st_mode)
    return (about.st_dev * MIX ^ about.st_ino) & WORD if regular else 0
