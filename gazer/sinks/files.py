"""Outputs that are files, pipes or standard output: whole blocks of whole events.

A file is appended to, never overwritten.  Where lines are written behind a line that someone left
incomplete, they begin on a line of their own.  What can go wrong, and what happens then:

- The disk is full (ENOSPC, EDQUOT): the output waits until there is room, and says so at once and
  every 30 s.  Whether there is room is found out by writing: what a file system says of itself
  knows nothing of quotas and reserves.  If the output is told to give up, it takes back the part of
  a block that was written, so that the file ends with a whole event.
- The reader of standard output has gone (`| head`): ClosedError; nothing is wrong.
- Anything else (no permission, read-only, I/O error, another pipe without reader): OutputError.
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
FULL = (errno.ENOSPC, errno.EDQUOT)


class ClosedError(Exception):
    """Nobody reads this output any more.  `taken`: bytes of the block that went out before."""

    def __init__(self, taken: int = 0) -> None:
        super().__init__(taken)
        self.taken = taken


class GaveUpError(Exception):
    """The output was waiting for room and has been told to stop; the block is not written."""


class FileOutput:
    """One output.  `lines`: it holds lines of text.  `notice` takes a line for the operator;
    `giving_up` says when to wait no longer; `waits` is told when the output begins and ceases to
    wait."""

    def __init__(
        self,
        path: str,
        *,
        lines: bool,
        notice: Callable[[str], None],
        giving_up: Callable[[], bool],
        waits: Callable[[bool], None],
    ) -> None:
        self.name = "standard output" if path == "-" else path
        self._standard = path in ("-", "/dev/stdout", "/dev/fd/1")
        self._notice = notice
        self._giving_up = giving_up
        self._waits = waits
        self._waiting = False
        self._full = False          # the operator has been told that there is no room
        self._told = -REMIND        # when
        try:
            self._fd = os.dup(1) if path == "-" else self._open(path)
            self._regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
            flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
            self._appends = bool(flags & os.O_APPEND)
            if flags & os.O_ACCMODE == os.O_RDONLY:
                raise OSError(errno.EBADF, "it is closed, or open for reading only")
        except (OSError, ValueError) as error:
            raise self._failed("open", error) from None
        self._torn = lines and self._regular and self._appends and self._ends_in_a_line()

    def _open(self, path: str) -> int:
        """Open it; a FIFO waits for its reader, as long as we are not told to give up.

        Its descriptor stays non-blocking, so that a reader that stands still can't hold us either.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        told = False
        while True:
            try:
                return os.open(path, flags, 0o640)
            except OSError as error:
                if error.errno != errno.ENXIO or not stat.S_ISFIFO(os.stat(path).st_mode):
                    raise
            if not told:
                told = True
                self._notice(f"waiting for someone to read {path}")
            if self._giving_up():
                raise OSError(errno.ENXIO, "nobody reads it")
            self._waits(True)
            self._waiting = True
            time.sleep(RETRY)

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
        start = self._end()
        if self._torn:
            self._write_all(memoryview(b"\n"), start)
            self._torn = False
            start += 1
        self._write_all(block, start)
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
                done += os.write(self._fd, block[done:])
            except BrokenPipeError as error:
                if self._standard:
                    raise ClosedError(done) from None
                raise self._failed("write to", error) from None
            except BlockingIOError:     # standard output may be someone's non-blocking pipe
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
        """Close it; a file system may find only now that it could not write."""
        try:
            os.close(self._fd)
        except OSError as error:
            raise self._failed("write to", error) from None
