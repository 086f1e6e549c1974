"""A disk that is full, broken, unreadable or gone, as the spool's modules meet it."""

import errno
import os

from gazer.sinks import position, segments, spool

MODES = ("well", "full", "gone", "no syncs", "no descriptors")


class Disk:
    """`mode`: full: nothing is appended (or half of it), and the position, which has its room, is
    written; gone: nothing is written, read or synced; no syncs: a sync fails now and then; no
    descriptors: no segment can be opened.  `bad`: places that can't be read any more."""

    def __init__(self, dice):
        self.dice = dice
        self.mode = "well"
        self.bad = 0.0          # how likely a page is
        self.damages = 0
        self._pages = {}        # inode, page -> whether it is
        self._fresh = set()     # those that only memory has, where nothing is bad

    def install(self, patch):
        patch.setattr(spool, "write", self._append)
        patch.setattr(position, "write", self._keep)
        patch.setattr(spool, "sync_file", self._sync_file)
        patch.setattr(spool, "sync_folder", self._sync)
        patch.setattr(segments, "os", _Os(pread=self._pread))
        patch.setattr(position, "os", _Os(fdatasync=self._sync))
        patch.setattr(spool, "open_segment", self._open)

    def _append(self, fd, buffers, offset):
        if self.mode == "full":
            if self.dice.random() < 0.5:
                os.pwrite(fd, bytes(buffers[0])[: self.dice.randint(1, 50)], offset)
            raise OSError(errno.ENOSPC, "No space left on device")
        self._must_be_there()
        size = segments.write(fd, buffers, offset)
        inode = os.fstat(fd).st_ino
        self._fresh |= {(inode, page) for page in pages(offset, size)}
        return size

    def _keep(self, fd, buffers, offset):
        self._must_be_there()
        return segments.write(fd, buffers, offset)

    def _sync(self, *_):
        self._must_be_there()
        if self.mode == "no syncs" and self.dice.random() < 0.7:
            raise OSError(errno.EIO, "Input/output error")

    def _sync_file(self, path):
        self._sync()
        if os.path.exists(path):
            inode = os.stat(path).st_ino
            self._fresh = {where for where in self._fresh if where[0] != inode}

    def _must_be_there(self):
        if self.mode == "gone":
            raise OSError(errno.EIO, "Input/output error")

    def _pread(self, fd, size, offset):
        self._must_be_there()
        if self.bad:
            inode = os.fstat(fd).st_ino
            for page in pages(offset, size):
                if (inode, page) not in self._fresh and self._pages.setdefault(
                        (inode, page), self.dice.random() < self.bad):
                    self.damages += 1
                    raise OSError(errno.EIO, "Input/output error")
        return os.pread(fd, size, offset)

    def _open(self, path):
        if self.mode == "no descriptors":
            raise OSError(errno.EMFILE, "Too many open files")
        if self.mode == "gone":
            return -1
        return segments.open_segment(path)


def pages(offset, size):
    return range(offset // segments.PAGE, (offset + max(size, 1) - 1) // segments.PAGE + 1)


class _Os:
    def __init__(self, **calls):
        self.__dict__.update(calls)

    def __getattr__(self, name):
        return getattr(os, name)

