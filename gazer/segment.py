"""Shared-memory segments: made by the supervisor, inherited by its children, without a name.

A segment is a `multiprocessing.shared_memory.SharedMemory` with four rules on top:

- Its pages are reserved when it is made.  Without that, a full /dev/shm (64 MB in many containers)
  is a SIGBUS at some later first touch; with it, one clear error at start.
- Its name is removed as soon as it is mapped.  Children are forked and have the mapping already;
  the memory goes when the last of them does, however they die, kill -9 included.  Who looks from
  outside opens /proc/PID/fd/N of the supervisor, which shows the name that it had.
- While it has a name its maker holds an exclusive flock on it.  A pid is no proof of death, a lock
  that can be taken is: `sweep` removes what was killed in just that moment, and never what a live
  one is making.
- Nothing registers with multiprocessing's resource tracker.  It is one more process at each start,
  and there is nothing left for it to do.

Names are `gazer-TOKEN-PART`: one token for all the segments of one run.

Where children are another user, a segment is given to that user while it has its name: accounts of
shared memory show it as theirs, and whoever may look into a child (root) sees whose it is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import sys
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory

from gazer.errors import SharedMemoryError

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from gazer.privileges import Identity

PREFIX = "gazer-"
# Exactly what a run calls its segments: /dev/shm is everyone's, and other files may begin the same.
OURS = re.compile(PREFIX + r"[0-9a-f]{8}-(ledger|(frames[0-9]{1,4}|(events|samples)[0-9]{1,2}))")
FOLDER = "/dev/shm"     # where Linux keeps what shm_open makes


def new_token() -> str:
    """The part of the name that all segments of one run share."""
    return os.urandom(4).hex()


class Segment:
    """A shared-memory segment.  `buf` is its memory; release what was made of it before close()."""

    def __init__(self, shm: SharedMemory) -> None:
        self._shm = shm
        self.name = shm.name        # which it had for a moment
        self.size = shm.size

    @classmethod
    def create(cls, name: str, size: int, *, owner: Identity | None = None) -> Segment:
        """Make the segment, reserve its pages and take its name away.  It starts as zeros.

        `owner`: the user that it is to belong to, if that is another one; takes CAP_CHOWN.
        """
        path = f"{FOLDER}/{name}"
        try:
            lock_fd = _create_locked(path)
        except OSError as error:
            raise SharedMemoryError(
                f"can't make shared memory {path}: {error.strerror}"
            ) from None
        try:
            os.posix_fallocate(lock_fd, 0, size)
            made = cls(_map(name))
            if owner is not None:
                _give(lock_fd, owner)
            return made
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                raise SharedMemoryError(
                    f"no room in {FOLDER} for {size >> 10} KiB more of shared memory; make it "
                    "larger (mount -o remount,size=..., docker --shm-size) or ring.size smaller"
                ) from None
            raise SharedMemoryError(
                f"can't reserve {size} bytes of shared memory: {error.strerror}"
            ) from None
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            os.close(lock_fd)

    @property
    def buf(self) -> memoryview:
        memory = self._shm.buf
        assert memory is not None   # only after close()
        return memory

    def fileno(self) -> int:
        """A descriptor of it, for who is to map it and is no fork."""
        return int(self._shm._fd)       # type: ignore[attr-defined]

    def close(self) -> None:
        """Let go of the memory, in its maker or in a fork of it; the others keep it."""
        self._shm.close()


class _Memory(SharedMemory):
    """SharedMemory whose constructor removes nothing, and tells no resource tracker.

    Where it can't map the memory it calls unlink(), which tells the tracker.
    """

    def unlink(self) -> None:
        """Nothing; Segment.create removes the name."""


def _create_locked(path: str) -> int:
    """Make the file and lock it; returns its descriptor.

    A sweep may come between the two and take the file for a dead owner's.  Then it is nameless by
    the time that we have the lock, and, nothing being in it yet, is simply made again.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)      # a sweep holds it for a moment only
            if os.fstat(fd).st_nlink:
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _give(fd: int, owner: Identity) -> None:
    """Make it that user's, if it is not."""
    there = os.fstat(fd)
    if (there.st_uid, there.st_gid) == (owner.uid, owner.gid):
        return
    try:
        os.fchown(fd, owner.uid, owner.gid)
    except OSError as error:
        raise SharedMemoryError(
            f"can't give shared memory to user {owner.name}: {error.strerror}"
        ) from None


def _map(name: str) -> SharedMemory:
    """Map a segment that exists, and tell no resource tracker of it."""
    if sys.version_info >= (3, 13):
        return _Memory(name, track=False)
    register = resource_tracker.register
    resource_tracker.register = lambda *_: None
    try:
        return _Memory(name)
    finally:
        resource_tracker.register = register


def sweep(owner: Identity | None = None) -> list[str]:
    """Remove the segments whose maker was killed while they had a name; return their names.

    Ours, and those of the user that they are made for (`owner`); never another user's.
    """
    users = {os.geteuid()} if owner is None else {os.geteuid(), owner.uid}
    swept = []
    for name in sorted(os.listdir(FOLDER)) if os.path.isdir(FOLDER) else []:
        if not OURS.fullmatch(name):
            continue
        path = f"{FOLDER}/{name}"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue    # gone already, or another user's
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = os.fstat(fd)
            # Another sweep may have been faster, and the name be a new file's by now.
            if there.st_nlink and stat.S_ISREG(there.st_mode) and there.st_uid in users:
                os.unlink(path)
                swept.append(name)
        except OSError:
            pass        # its owner lives
        finally:
            os.close(fd)
    return swept
