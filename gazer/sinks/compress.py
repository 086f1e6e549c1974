"""Compression of one closed file: the whole of it stands under its new name, or nothing does.

    NAME ──read──▶ NAME.gz.part ──fsync──▶ renamed to NAME.gz ──fsync of the folder──▶ NAME removed

Killed anywhere, the next try finds either NAME alone, with a part that is thrown away and made
again; or NAME and a whole NAME.gz, which is compared with it, octet by octet, before NAME goes.  A
NAME.gz of other content is not ours to replace: the compressed file then has the next free number.
The machine may go down as well: NAME is removed only when NAME.gz and its name are on the disk.

The file is locked (flock) from its first byte to its removal.  Whoever writes a file holds such a
lock, so one that is being written, by this process or another, is never taken (`Busy`), and one
that is being compressed is never written to.  A writer that locks nothing would show in the file's
size or time, looked at once more at the end: then the result is thrown away.  So it is when the
name is another file's by then: who moved this one away has it, and an output may write to the new
one.

Both libraries work without the GIL, on pieces of PIECE octets.  gzip has level 6: a tenth smaller
than 3 for twice the time, in which nobody waits.  zstd has level 3, its own default, which is as
small and several times as fast.  Files carry no name and no time inside, so the same events give
the same file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import zlib

from gazer.config.patterns import ENDINGS, PART
from gazer.system import rename_new

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

PIECE = 1 << 18
GZIP_LEVEL = 6
ZSTD_LEVEL = 3
GZIP = 31           # of zlib: a window of 32 KiB, gzip's header and trailer
UNLOCKABLE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class Busy(Exception):
    """Someone writes to this file, or has it in hand."""


class Stopped(Exception):
    """The work was broken off; nothing of it is left."""


def lock(fd: int, path: str) -> None:
    """Hold this file, of that name, alone; until fd is closed.  Busy: someone else does.

    OSError: it can't be locked here, or has gone.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(path) from None
    _there(os.fstat(fd), path)


def _there(ours: os.stat_result, path: str) -> None:
    """This file has that name; FileNotFoundError: not any more."""
    there = os.lstat(path)
    if (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def taken(path: str) -> int:
    """A plain file, open and locked."""
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a plain file", path)
        lock(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def compress(
    path: str, how: str, spare: Callable[[], str], stop: Callable[[], bool] = lambda: False
) -> str:
    """Put a compressed file in the place of `path`; how it is called.

    `spare`: a name for it, without its ending, should the usual one belong to something else;
    another one each time it is asked, or OSError.
    `stop`: asked between two pieces.  Busy, Stopped, OSError: all is as it was before.
    """
    fd = taken(path)
    try:
        before = os.fstat(fd)
        target = path + ENDINGS[how]
        part = target + PART
        for ending in ENDINGS.values():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + ending + PART)     # of a try that was killed: we hold the lock
        made = _made(fd, path, stop)
        if made:
            target = made
        else:
            _make(fd, before, part, how, stop)
            try:
                _unchanged(fd, before, path)
                while True:
                    try:
                        rename_new(part, target)
                        break
                    except FileExistsError:
                        target = spare() + ENDINGS[how]
            except BaseException:
                _remove(part)
                raise
        sync(target)
        sync(os.path.dirname(path) or ".")
        _unchanged(fd, before, path)
        os.unlink(path)
        return target
    finally:
        with contextlib.suppress(OSError):      # who wrote it, and we, are the last to want it
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def _made(fd: int, path: str, stop: Callable[[], bool]) -> str:
    """A whole compressed file of this one, of a try that was killed ahead of its last step."""
    for how, ending in ENDINGS.items():
        if os.path.lexists(path + ending) and same(fd, path + ending, how, stop):
            return path + ending
    return ""


def _make(fd: int, about: os.stat_result, part: str, how: str, stop: Callable[[], bool]) -> None:
    out = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            press = _compressor(how)
            for piece in _pieces(fd, stop):
                _write(out, press.compress(piece))
            _write(out, press.flush())
            os.fchmod(out, stat.S_IMODE(about.st_mode))
            os.utime(out, ns=(about.st_atime_ns, about.st_mtime_ns))    # its age is its events'
            os.fsync(out)
        finally:
            os.close(out)
    except BaseException:
        _remove(part)
        raise


def same(fd: int, compressed: str, how: str, stop: Callable[[], bool] = lambda: False) -> bool:
    """Whether this file, decompressed, is octet by octet what stands in `fd`."""
    other = os.open(compressed, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    at = 0
    try:
        if not stat.S_ISREG(os.fstat(other).st_mode):
            return False
        for piece in _expanded(other, how, stop):
            if os.pread(fd, len(piece), at) != piece:
                return False
            at += len(piece)
    except ValueError:
        return False
    finally:
        os.close(other)
    return at == os.fstat(fd).st_size


def _expanded(fd: int, how: str, stop: Callable[[], bool]) -> Iterator[bytes]:
    """A compressed file's content in pieces; ValueError: it is not whole, or something else."""
    if how == "gzip":
        inflate = zlib.decompressobj(GZIP)
        try:
            for piece in _pieces(fd, stop):
                while piece and not inflate.eof:
                    yield inflate.decompress(piece, PIECE)
                    piece = inflate.unconsumed_tail
                if piece or inflate.unused_data:
                    raise ValueError("something follows")
            while rest := inflate.decompress(b"", PIECE):
                yield rest
        except zlib.error as error:
            raise ValueError(str(error)) from None
        if not inflate.eof:
            raise ValueError("cut off")
        return
    try:
        import zstandard
    except ImportError:
        raise ValueError("it can't be read here") from None
    try:
        expand = zstandard.ZstdDecompressor().decompressobj()
        for piece in _pieces(fd, stop, 512):      # of four octets it can make 128 KiB
            if expand.eof:
                raise ValueError("something follows")
            yield expand.decompress(piece)
        if not expand.eof:
            raise ValueError("cut off")
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None


def _compressor(how: str) -> Any:
    if how == "gzip":
        return zlib.compressobj(GZIP_LEVEL, wbits=GZIP)
    import zstandard

    return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True).compressobj()


def _pieces(fd: int, stop: Callable[[], bool], size: int = 0) -> Iterator[bytes]:
    at = 0
    while piece := os.pread(fd, size or PIECE, at):
        if stop():
            raise Stopped
        yield piece
        at += len(piece)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


def _unchanged(fd: int, before: os.stat_result, path: str) -> None:
    now = os.fstat(fd)
    if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise Busy(path)
    _there(now, path)


def sync(path: str) -> None:
    """What stands under this name is on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
