"""The quarantine: a capture file of frames that have killed a worker twice.

It is a classic pcap file with nanoseconds, which every tool reads.  Such a file has one link type
for all its frames; a frame of another one goes to a second file, whose name has the link type's
number behind it.  (pcapng could hold them all; but libpcap refuses to read that, and so do tcpdump
and whatever else is at hand when something is wrong.)

What is there is never changed, only added to, up to LIMIT: whoever knows a frame that kills can
send it again and again, and must not fill the disk with it.  A frame that is the last one already
is not added again: its worker may have been killed between keeping it and skipping it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct

from gazer.errors import OutputError

MAGIC = 0xA1B23C4D      # with nanoseconds, in this machine's byte order
SNAPLEN = 262144
MODE = 0o640
LIMIT = 64 << 20        # bytes of one file
HEADER = struct.Struct("=IHHiIII")
RECORD = struct.Struct("=IIII")
NS = 1_000_000_000


def keep(path: str, time: int, linktype: int, length: int, data: bytes) -> str:
    """Add a frame: its time in ns since 1970, its link type, its length on the wire, its bytes.

    Returns the path of the file that has it.  Raises OutputError.
    """
    seconds, fraction = divmod(time, NS)
    record = RECORD.pack(seconds & 0xFFFFFFFF, fraction, len(data), max(length, len(data))) + data
    for name in (path, f"{path}.{linktype}"):
        try:
            if _append(name, linktype, record):
                return name
        except OSError as error:
            raise OutputError(f"can't keep it in {name}: {error.strerror}") from None
    raise OutputError(f"can't keep it in {path} nor beside it: they are other files")


def _append(name: str, linktype: int, record: bytes) -> bool:
    """Add the record to the file, which is made if there is none.  False: it is another file."""
    header = HEADER.pack(MAGIC, 2, 4, 0, 0, SNAPLEN, linktype)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(name, flags, MODE)
    with contextlib.closing(open(fd, "r+b", buffering=0)) as file:
        there = os.fstat(fd)
        if not stat.S_ISREG(there.st_mode):
            return False
        size = there.st_size
        if size:
            magic, major, _, _, _, _, link = HEADER.unpack(
                file.read(HEADER.size).ljust(HEADER.size, b"\0"))
            if (magic, major, link) != (MAGIC, 2, linktype):
                return False
            if size >= HEADER.size + len(record):
                file.seek(size - len(record))
                if file.read(len(record)) == record:
                    return True
        more = record if size else header + record
        if size + len(more) > LIMIT:
            raise OSError(errno.EFBIG, f"it has {LIMIT >> 20} MiB already")
        file.seek(size)
        try:
            written = file.write(more)
            if written != len(more):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(size)     # no half of a frame stays
            raise
        return True
