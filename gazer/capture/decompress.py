"""gzip and zstd, decompressed by a thread through a pipe.

The thread (a `Pump`) reads the compressed descriptor and writes to a pipe whose other end a Source
reads like any file.  Rules:

- Nothing is ever held whole: input comes in pieces of INPUT bytes, output goes out in pieces of at
  most OUTPUT (a gzip piece) or a few blocks (zstd, 128 KiB each by RFC 8878, section 3.1.1.2.4), so
  a bomb costs time in proportion to what is read of it, and no memory.
- A zstd window may take 128 MiB (what `zstd --long` needs; 8 MiB is what decoders must support by
  section 3.1.1.1.2).
- The stream is whole or it is not: a stream that ends in the middle, a wrong check sum or bytes
  that don't belong to it are a one-line text in `Pump.error`, set before the pipe is closed.
- The pump ends when its input does, or when the pipe's reader is gone: it polls both, so it does
  not hang where the input gives nothing.

zstd's library does not say whether a stream ended at the end of a frame, and gives out all that a
piece of input holds.  So `unzstd` walks frames and blocks by their headers (RFC 8878, section
3.1.1) and hands them over one block at a time; the library still does, and checks, all the rest.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import threading
import zlib
from collections.abc import Iterator

from gazer.errors import InputError

INPUT = 64 * 1024
OUTPUT = 256 * 1024
PIPE = 1024 * 1024          # what an unprivileged process may have; less is only slower
ZSTD_WINDOW = 128 * 1024 * 1024

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTD_SKIPPABLE = {bytes([n, 0x2A, 0x4D, 0x18]) for n in range(0x50, 0x60)}


class Damaged(Exception):
    """The compressed stream is not whole."""


class ReaderGone(Exception):
    """Nobody reads what comes out."""


class Compressed:
    """The compressed bytes: those already read, then the descriptor's."""

    def __init__(self, fd: int, first: bytes, out: int) -> None:
        self.offset = 0                 # bytes given so far
        self._fd = fd
        self._held = first              # from _at on, still to be given
        self._at = 0
        self._ended = False
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._poll.register(out, 0)     # POLLERR comes unasked: the pipe has no reader

    def more(self) -> bytes:
        """The next bytes, however many; b"" at the end."""
        if self._at == len(self._held):
            self._held, self._at = self._read(), 0
        return self.exactly(len(self._held) - self._at)

    def exactly(self, n: int) -> bytes:
        """The next n bytes, fewer only at the end."""
        if n > len(self._held) - self._at:
            parts = [self._held[self._at :]]
            have = len(parts[0])
            while have < n and (data := self._read()):
                parts.append(data)
                have += len(data)
            self._held, self._at = b"".join(parts), 0
        data = self._held[self._at : self._at + n]
        self._at += len(data)
        self.offset += len(data)
        return data

    def back(self, n: int) -> None:
        """The last n of the bytes just given were not needed after all."""
        self._at -= n
        self.offset -= n

    def _read(self) -> bytes:
        while not self._ended:
            if any(fd != self._fd for fd, _ in self._poll.poll()):
                raise ReaderGone
            try:
                data = os.read(self._fd, INPUT)
            except BlockingIOError:
                continue
            self._ended = not data
            return data
        return b""


def gunzip(source: Compressed) -> Iterator[bytes]:
    """All members of a gzip stream (RFC 1952, section 2.2).  Zeros after the last are padding."""
    members = 0
    while True:
        head = source.exactly(2)
        if members and not head.strip(b"\0"):
            while head:
                head = source.more()
                if head.strip(b"\0"):
                    raise Damaged(f"has bytes that are not gzip before byte {source.offset}")
            return
        if head == GZIP_MAGIC[:1]:
            raise Damaged(f"is cut off at byte {source.offset}")
        if head != GZIP_MAGIC:
            at = source.offset - len(head)
            raise Damaged(f"has bytes that are not gzip at byte {at}")
        source.back(2)
        inflate = zlib.decompressobj(wbits=31)
        while not inflate.eof:
            data = inflate.unconsumed_tail or source.more()
            try:
                piece = inflate.decompress(data, OUTPUT)
            except zlib.error as e:
                why = str(e).rpartition(": ")[2]
                raise Damaged(f"is broken before byte {source.offset}: {why}") from None
            if not data and not piece and not inflate.eof:
                raise Damaged(f"is cut off at byte {source.offset}")
            if piece:
                yield piece
        source.back(len(inflate.unused_data))
        members += 1


def unzstd(source: Compressed) -> Iterator[bytes]:
    """All frames of a zstd stream (RFC 8878, section 3.1)."""
    import zstandard  # here, as few captures need it

    def part(n: int) -> bytes:
        data = source.exactly(n)
        if len(data) < n:
            raise Damaged(f"is cut off at byte {source.offset}")
        return data

    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
    while True:
        start = source.offset
        magic = source.exactly(4)
        if not magic:
            return
        if magic in ZSTD_SKIPPABLE:
            left = int.from_bytes(part(4), "little")
            while left:
                left -= len(part(min(left, INPUT)))
            continue
        if len(magic) == 4 and magic != ZSTD_MAGIC:
            raise Damaged(f"has bytes that are not zstd at byte {start}")
        source.back(4)
        # Frame header: which fields follow its first byte, and how long they are.
        head = part(5)
        descriptor = head[4]
        single = descriptor >> 5 & 1
        size = (single, 2, 4, 8)[descriptor >> 6]
        head += part((1 - single) + (0, 1, 2, 4)[descriptor & 3] + size)
        frame = decompressor.decompressobj()
        try:
            yield from _pieces(frame.decompress(head))
            last = False
            while not last:
                head = part(3)
                block = int.from_bytes(head, "little")
                last = bool(block & 1)
                # Type 1 is one byte, repeated.
                data = head + part(1 if block >> 1 & 3 == 1 else block >> 3)
                if last and descriptor & 4:
                    data += part(4)     # check sum
                yield from _pieces(frame.decompress(data))
        except zstandard.ZstdError as e:
            why = str(e).rpartition(": ")[2]
            if "too much memory" in why:
                why = f"its window is over {ZSTD_WINDOW >> 20} MiB"
            raise Damaged(f"is broken before byte {source.offset}: {why}") from None
        if not frame.eof:
            raise Damaged(f"is broken before byte {source.offset}: a frame without an end")


def _pieces(data: bytes) -> Iterator[bytes]:
    if data:
        yield data


FORMATS = {"gzip": gunzip, "zstd": unzstd}


class Pump(threading.Thread):
    """Decompresses `fd`, which it owns, into a pipe; `output` is the end to read from, which the
    reader owns.  Starts at once.  `error`, where not None once the pipe is at its end, says what
    is wrong with the stream.  Raises OSError or InputError if there are no more descriptors or
    threads."""

    def __init__(self, fd: int, kind: str, first: bytes) -> None:
        super().__init__(name=f"{kind}-pump", daemon=True)
        self.kind = kind
        self.error: str | None = None
        self._fd = fd
        try:
            self.output, self._write = os.pipe()
        except OSError:
            os.close(fd)
            raise
        with contextlib.suppress(OSError):      # the user's pipes have taken all they may
            fcntl.fcntl(self._write, fcntl.F_SETPIPE_SZ, PIPE)
        self._source = Compressed(fd, first, self._write)
        try:
            self.start()
        except RuntimeError as e:       # no more threads
            for end in (fd, self.output, self._write):
                os.close(end)
            raise InputError(f"can't decompress: {e}") from None

    @property
    def taken(self) -> int:
        """Bytes of the compressed stream that have been used so far."""
        return self._source.offset

    def run(self) -> None:
        try:
            for piece in FORMATS[self.kind](self._source):
                view = memoryview(piece)
                while view:
                    view = view[os.write(self._write, view) :]
        except (ReaderGone, BrokenPipeError):
            pass
        except Damaged as e:
            self.error = f"the {self.kind} stream {e}"
        except (OSError, MemoryError) as e:
            why = e.strerror if isinstance(e, OSError) else "out of memory"
            self.error = f"can't be read at byte {self._source.offset}: {why}"
        except BaseException as e:      # else the pipe's end would look like the file's
            self.error = f"the {self.kind} stream can't be read: {e!r}"
            raise
        finally:
            os.close(self._write)
            os.close(self._fd)
