"""A path, or "-" for standard input, as a Source.

What a file is, its first bytes tell; never its name.  Classic pcap goes to libpcap, pcapng to our
own reader, and gzip and zstd through a decompressor's pipe to one of those.  Bytes that were read
to find out are handed on, so pipes and FIFOs work as files do.

Whatever can be known before the first frame is an InputError here; what breaks later is the
Source's `error`.
"""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable

from gazer.capture.decompress import GZIP_MAGIC, ZSTD_MAGIC, ZSTD_SKIPPABLE, Pump
from gazer.capture.pcapng import PcapngSource
from gazer.capture.source import FileSource, PcapSource
from gazer.errors import InputError

HEADER = 24         # of a classic pcap file; enough to tell all others
POLL_MS = 100       # how late a stop may be seen while a pipe has not begun

PCAP_MAGICS = {     # both byte orders of: microseconds, nanoseconds, and Kuznetsov's patch
    bytes.fromhex(magic) for magic in (
        "a1b2c3d4", "d4c3b2a1", "a1b23c4d", "4d3cb2a1", "a1b2cd34", "34cdb2a1",
    )
}
PCAPNG_MAGIC = b"\x0a\x0d\x0d\x0a"

# What else people hand to a packet tool, and what to do then.
FOREIGN = (
    (b"BZh", "bzip2; decompress it into a pipe and read that with -"),
    (b"\xfd7zXZ\0", "xz; decompress it into a pipe and read that with -"),
    (b"\x04\x22\x4d\x18", "lz4; decompress it into a pipe and read that with -"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"snoop\0\0\0", "a snoop capture; convert it with editcap"),
    (b"\x7fELF", "a program"),
)


def open_source(
    path: str,
    *,
    snaplen: int,
    stdin_fd: int = 0,
    stopped: Callable[[], bool] | None = None,
) -> FileSource:
    """Open a capture file.

    path: a file, a FIFO, or "-" for the descriptor `stdin_fd` (which stays open and the caller's).
    snaplen: frames are cut to this many bytes.
    stopped: asked about ten times a second while a pipe has not given its first bytes; when it
        says True, the opening ends with an InputError.
    Raises InputError, one line.
    """
    name = path if path.isprintable() else ascii(path)
    fd = _open(path, name, stdin_fd)
    pump = source = None
    try:
        first = _peek(fd, name, stopped)
        if not first:
            raise InputError(f"{name}: empty file, not a capture")
        kind = _kind(first)
        if kind in ("gzip", "zstd"):
            compressed, fd = fd, -1
            pump = Pump(compressed, kind, first)
            fd = pump.output
            first = _peek(fd, name, stopped)
            if len(first) < HEADER and pump.error is not None:
                raise InputError(f"{name}: {pump.error}")
            if not first:
                raise InputError(f"{name}: empty {kind} file, not a capture")
            inner = _kind(first)
            if inner in ("gzip", "zstd"):
                raise InputError(
                    f"{name}: compressed twice ({inner} in {kind}); decompress it once first"
                )
            kind = inner
        if kind is None:
            raise InputError(f"{name}: {_foreign(first)}")
        taken, fd = fd, -1      # the source's from here on
        make = PcapSource if kind == "pcap" else PcapngSource
        source = make(taken, name, snaplen, first, pump)
        return source
    except OSError as e:
        raise InputError(f"{name}: {e.strerror}") from None
    finally:
        if fd >= 0:
            os.close(fd)
        if pump is not None and source is None:
            pump.join()     # its pipe has lost its reader, so it ends


def _open(path: str, name: str, stdin_fd: int) -> int:
    try:
        if path == "-":
            fd = os.dup(stdin_fd)
        else:
            # A FIFO without a writer would hold up open(); poll() can wait for one instead.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except PermissionError:
        raise InputError(f"{name}: no permission to read it") from None
    except OSError as e:
        raise InputError(f"{name}: {e.strerror}") from None
    except ValueError:      # a zero byte in it
        raise InputError(f"{name}: not the name of a file") from None
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise InputError(f"{name}: a directory, not a capture file")
    if os.isatty(fd):
        os.close(fd)
        raise InputError(f"{name}: a terminal; give it a capture file or a pipe")
    return fd


def _peek(fd: int, name: str, stopped: Callable[[], bool] | None) -> bytes:
    """The first HEADER bytes, fewer only where the input ends before."""
    first = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while len(first) < HEADER:
        if not poll.poll(POLL_MS):
            if stopped is not None and stopped():
                raise InputError(f"{name}: stopped before it had begun")
            continue
        try:
            data = os.read(fd, HEADER - len(first))
        except BlockingIOError:
            continue
        if not data:
            break
        first += data
    return first


def _kind(first: bytes) -> str | None:
    magic = first[:4]
    if magic in PCAP_MAGICS:
        return "pcap"
    if magic == PCAPNG_MAGIC:
        return "pcapng"
    if first.startswith(GZIP_MAGIC):
        return "gzip"
    if magic == ZSTD_MAGIC or magic in ZSTD_SKIPPABLE:
        return "zstd"
    return None


def _foreign(first: bytes) -> str:
    for magic, what in FOREIGN:
        if first.startswith(magic):
            return f"not a pcap or pcapng file; it looks like {what}"
    return f"not a pcap or pcapng file (first bytes {first[:4].hex(' ')})"
