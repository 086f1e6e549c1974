"""Shared-memory segments: made by the supervisor, attached by name, swept when their owner is dead.

A segment is a `multiprocessing.shared_memory.SharedMemory` with three rules on top:

- Its pages are reserved when it is made.  Without that, a full /dev/shm (64 MB in many containers)
  is a SIGBUS at some later first touch; with it, one clear error at start.
- Its owner holds an exclusive flock on it.  A pid is no proof of death, a lock that can be taken
  is: `sweep` removes what a killed family left behind, and never what a live one holds.
- Nothing registers with multiprocessing's resource tracker.  It is one more process at each start
  and does what `sweep` does; and before Python 3.13 the tracker of any process that merely looked
  (a `gazer stats`) would remove a live segment.

Names are `gazer-TOKEN-PART`: one token for all the segments of one run.

Where children are another user, a segment is given to that user once it is made, locked and mapped:
up to then nobody but its maker could put something else under its name.  Whoever owns it may attach
to it by name; the maker still removes it, as /dev/shm is root's own folder.
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

    def __init__(self, shm: SharedMemory, lock_fd: int | None) -> None:
        self._shm = shm
        self._lock_fd = lock_fd
        self.name = shm.name
        self.size = shm.size

    @classmethod
    def create(cls, name: str, size: int, *, owner: Identity | None = None) -> Segment:
        """Make the segment, lock it and reserve its pages.  It starts as zeros.

        `owner`: the user that is to attach to it, if that is another one; takes CAP_CHOWN.
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
            shm = _map(name)
            if owner is not None:
                _give(lock_fd, owner)
        except BaseException as error:
            os.unlink(path)
            os.close(lock_fd)
            if not isinstance(error, OSError):
                raise
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                raise SharedMemoryError(
                    f"no room in {FOLDER} for {size >> 10} KiB more of shared memory; make it "
                    "larger (mount -o remount,size=..., docker --shm-size) or ring.size smaller"
                ) from None
            raise SharedMemoryError(
                f"can't reserve {size} bytes of shared memory: {error.strerror}"
            ) from None
        return cls(shm, lock_fd)

    @classmethod
    def attach(cls, name: str) -> Segment:
        """Attach to a segment that another process made."""
        try:
            return cls(_map(name), None)
        except FileNotFoundError:
            raise SharedMemoryError(f"shared memory {name} is gone") from None
        except (OSError, ValueError) as error:
            raise SharedMemoryError(f"can't attach to shared memory {name}: {error}") from None

    @property
    def buf(self) -> memoryview:
        memory = self._shm.buf
        assert memory is not None   # only after close()
        return memory

    def close(self) -> None:
        """Let go of the memory; the owner removes the name as well."""
        self._shm.close()
        if self._lock_fd is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{FOLDER}/{self.name}")
            os.close(self._lock_fd)
            self._lock_fd = None

    def forget(self) -> None:
        """In a fork of the owner: let go of the memory, and leave it to the owner."""
        self._shm.close()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


class _Memory(SharedMemory):
    """SharedMemory whose constructor removes nothing.

    Where it can't map the memory it calls unlink(): an attach that fails would remove a segment
    that others use.
    """

    def unlink(self) -> None:
        """Nothing; Segment.close removes the name."""


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
    """Remove the segments whose maker is dead; return their names.

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
