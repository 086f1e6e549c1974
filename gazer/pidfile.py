"""A pid file that at most one living process holds.

The lock (flock) decides, not the number in the file: a pid can be taken over by a stranger, while
the kernel drops a lock with its holder, however that one died. So a file left by a dead process
is simply taken over, and a file that someone holds refuses a second instance.

    with PidFile("/run/gazer.pid"):     # ProcessError: another instance holds it
        ...                             # OutputError: it can't be made, or isn't a pid file

Rules
- The lock belongs to the open file, which a fork shares: a forked child calls `forget`, or it holds
  the lock on after its parent's death.
- Opening and locking are two steps, and between them another may remove the file: after locking,
  the path must still lead to the file that was locked, or it all starts again.
- A file that holds anything but a number is not ours to overwrite.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from types import TracebackType

from gazer.config.kinds import printable
from gazer.errors import OutputError, ProcessError

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable

# Each further try means that another instance ended within the last microseconds.
_TRIES = 100
# Digits of the largest pid (2**22 on Linux) with a newline, and room for blanks.
_LONGEST = 32
# Who only looks (`refusal`) has the lock too, shared, for microseconds.
_GLANCES = 5
_GLANCE = 0.01      # seconds

_LINK = "is a link; a pid file must be a file"
_NO_FILE = "is not a plain file"


class PidFile:
    """Holds `path` with this process's pid in it, from `with` to its end."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.unlink: Callable[[str], None] = os.unlink      # how the file is removed at the end
        self._fd = -1
        self._pid = 0

    def __enter__(self) -> PidFile:
        try:
            self._fd = self._locked()
            self._write()
        except OSError as error:
            self._close()
            raise self._failed(error.strerror or str(error)) from None
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A fork of the holder must not take the file away from it.
        if self._fd >= 0 and self._pid == os.getpid() and self._is_at_path(self._fd):
            # The folder may no longer be ours; a file without its lock does no harm.
            with contextlib.suppress(OSError):
                self.unlink(self.path)
        self._close()

    def refusal(self) -> str | None:
        """Why it would be refused just now for what stands at the path, in one line; None: it would
        not be.  Nothing is made or changed."""
        try:
            mode = os.stat(self.path, follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                return str(self._failed(_LINK))
            if not stat.S_ISREG(mode):
                return str(self._failed(_NO_FILE))
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:     # it is not there, or not to be read
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            self._refuse_other_content(fd)
        except BlockingIOError:
            return str(self._held(fd))
        except OutputError as error:
            return str(error)
        except OSError:     # a file system without locks
            return None
        finally:
            os.close(fd)
        return None

    def forget(self) -> None:
        """In a fork of the holder: let go of the file, and leave it to the holder."""
        self._close()

    def _locked(self) -> int:
        """The file, open and locked, made if need be."""
        # O_NONBLOCK: opening a FIFO must not wait. O_NOFOLLOW: in a folder that others may write
        # to, a link could point us at any file.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        for _ in range(_TRIES):
            try:
                fd = os.open(self.path, flags, 0o644)
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise self._failed(_LINK) from None
                raise
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise self._failed(_NO_FILE)
                if not _lock(fd):
                    raise self._held(fd)
                if self._is_at_path(fd):
                    self._refuse_other_content(fd)
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
        raise self._failed("appears and disappears without end")

    def _write(self) -> None:
        pid = os.getpid()
        text = f"{pid}\n".encode()
        # The number first, then the cut: whoever reads a file taken over never finds it empty.
        if os.pwrite(self._fd, text, 0) != len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(self._fd, len(text))
        self._pid = pid

    def _is_at_path(self, fd: int) -> bool:
        mine = os.fstat(fd)
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return False
        return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)

    def _refuse_other_content(self, fd: int) -> None:
        found = os.pread(fd, _LONGEST + 1, 0)
        if len(found) > _LONGEST or not (found.strip() or b"0").isdigit():
            raise self._failed("holds something else than a pid and is left as it is")

    def _held(self, fd: int) -> ProcessError:
        holder = os.pread(fd, _LONGEST, 0).strip()
        who = f" (pid {int(holder)})" if holder.isdigit() else ""
        return ProcessError(
            f"pid file {printable(self.path)}: another instance is running{who}; "
            "stop it first, or give this one a file of its own"
        )

    def _failed(self, why: str) -> OutputError:
        return OutputError(f"pid file {printable(self.path)}: {why}")

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _lock(fd: int) -> bool:
    """Whether the lock is ours now: nobody has it, or somebody who only looked."""
    for _ in range(_GLANCES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(_GLANCE)
    return False
