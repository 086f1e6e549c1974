"""Outputs that are files, pipes or standard output: whole blocks of whole events.

A file is appended to, never overwritten.  What can go wrong, and what happens then:

- The disk is full (ENOSPC, EDQUOT): the output waits until there is room, and says so at once and
  every 30 s.  If it is told to give up, it takes back the part of a block that was written, so that
  the file ends with a whole event.
- The reader has gone (EPIPE, as with `| head`): ClosedError; the run ends quietly.
- Anything else (no permission, read-only, I/O error): OutputError.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable

from gazer.errors import OutputError

REMIND = 30.0       # seconds between two lines about a full disk
RETRY = 0.2         # seconds between two tries to write to it
FULL = (errno.ENOSPC, errno.EDQUOT)


class ClosedError(Exception):
    """Nobody reads this output any more."""


class GaveUpError(Exception):
    """The output was waiting for room and has been told to stop; the block is not written."""


class FileOutput:
    """One output.  `notice` takes a line for the operator; `quitting` says when to give up;
    `waits` is told when the output begins and ceases to wait."""

    def __init__(
        self,
        path: str,
        *,
        notice: Callable[[str], None],
        quitting: Callable[[], bool],
        waits: Callable[[bool], None],
    ) -> None:
        self.name = "standard output" if path == "-" else path
        self._notice = notice
        self._quitting = quitting
        self._waits = waits
        try:
            self._fd = os.dup(1) if path == "-" else os.open(
                path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, 0o640
            )
            self._regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
        except (OSError, ValueError) as error:
            raise self._failed("open", error) from None

    def write(self, block: memoryview) -> None:
        """Write the whole block, however long that takes.

        Raises ClosedError, GaveUpError or OutputError; the block counts as not written then.
        """
        start = os.fstat(self._fd).st_size if self._regular else 0
        done = 0
        while done < len(block):
            try:
                done += os.write(self._fd, block[done:])
            except BrokenPipeError:
                raise ClosedError from None
            except OSError as error:
                if error.errno not in FULL:
                    self._take_back(start)
                    raise self._failed("write to", error) from None
                self._wait_for_room(error, start)

    def _wait_for_room(self, error: OSError, start: int) -> None:
        self._waits(True)
        self._notice(f"can't write to {self.name}: {error.strerror}; waiting for room")
        reminded = time.monotonic()
        while not self._room():
            if self._quitting():
                self._take_back(start)
                raise GaveUpError
            if time.monotonic() - reminded >= REMIND:
                reminded = time.monotonic()
                self._notice(f"still waiting for room to write to {self.name}")
            time.sleep(RETRY)
            self._waits(True)
        self._waits(False)
        self._notice(f"there is room again to write to {self.name}")

    def _room(self) -> bool:
        """True if the file can grow.  Asked of the file system, as a byte written to try is lost
        if the next one fails."""
        there = os.fstatvfs(self._fd)
        return there.f_bavail > 0 if os.geteuid() else there.f_bfree > 0

    def _take_back(self, start: int) -> None:
        if self._regular:
            os.ftruncate(self._fd, start)

    def _failed(self, verb: str, error: Exception) -> OutputError:
        why = getattr(error, "strerror", None) or str(error)
        return OutputError(f"can't {verb} {self.name}: {why}")

    def close(self) -> None:
        """Close it; a file system may find only now that it could not write."""
        try:
            os.close(self._fd)
        except OSError as error:
            raise self._failed("write to", error) from None
