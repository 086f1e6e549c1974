"""A capture in every form a file can have, and what tests of opening and decompressing share."""

import gzip
import os
import threading

import pytest
import zstandard

from gazer.capture.files import open_source
from gazer.capture.testing import read_all
from gazer.errors import InputError
from tests.capture_writers import NANO, enhanced, interface, pcap, section

RECORDS = [(n, n, bytes([n % 256]) * (n % 300)) for n in range(2000)]
PCAP = pcap(RECORDS)
PCAPNG = section() + interface() + b"".join(
    enhanced(d, s * 10**6 + f) for s, f, d in RECORDS
)  # fmt: skip
FRAMES = [(d, len(d), len(d), s * NANO + f * 1000, 1, 0) for s, f, d in RECORDS]


def zstd(data, **how):
    return zstandard.ZstdCompressor(**how).compress(data)


def many(compress, data, size):
    return b"".join(compress(data[n : n + size]) for n in range(0, len(data), size))


def skippable(n, size):
    return (0x184D2A50 + n).to_bytes(4, "little") + size.to_bytes(4, "little") + bytes(size)


def streaming_zstd(data):
    """No content size in the header, with a check sum, in small pieces."""
    c = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compressobj()
    parts = [c.compress(data[n : n + 999]) + c.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
             for n in range(0, len(data), 999)]  # fmt: skip
    return b"".join(parts) + c.flush()


FORMS = {
    "plain": lambda d: d,
    "gzip": gzip.compress,
    "gzip, stored": lambda d: gzip.compress(d, 0),
    "gzip, members": lambda d: many(gzip.compress, d, 777),
    "gzip, an empty member": lambda d: gzip.compress(b"") + gzip.compress(d) + gzip.compress(b""),
    "gzip, padded": lambda d: gzip.compress(d) + bytes(100_001),
    "zstd": zstd,
    "zstd, check sum": lambda d: zstd(d, write_checksum=True),
    "zstd, streamed": streaming_zstd,
    "zstd, frames": lambda d: many(zstd, d, 777),
    "zstd, skippable": lambda d: skippable(0, 70_000) + zstd(d) + skippable(15, 0),
    "zstd, an empty frame": lambda d: zstd(b"") + zstd(d) + zstd(b""),
}


@pytest.fixture(autouse=True)
def nothing_left_open():
    """Every test closes what it opens: descriptors and threads."""
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert [t for t in threading.enumerate() if t.name.endswith("-pump")] == []
    assert sorted(os.listdir("/proc/self/fd")) == before


def written(tmp_path, content, name="x.cap"):
    path = tmp_path / name
    path.write_bytes(content)
    return str(path)


def read(path, **how):
    s = open_source(path, snaplen=65535, **how)
    frames, result, error = read_all(s)
    s.close()
    return frames, result, error


def refused(path, **how):
    """The text of the InputError, without the file's name."""
    with pytest.raises(InputError) as e:
        open_source(path, snaplen=65535, **how)
    assert str(e.value).startswith(f"{path}: ")
    assert "\n" not in str(e.value)
    return str(e.value).removeprefix(f"{path}: ")


class Feeder(threading.Thread):
    """Writes to a descriptor in pieces, then closes it."""

    def __init__(self, fd, content, piece):
        super().__init__()
        self.fd, self.content, self.piece = fd, content, piece
        self.start()

    def run(self):
        try:
            for n in range(0, len(self.content), self.piece):
                os.write(self.fd, self.content[n : n + self.piece])
        except BrokenPipeError:
            pass
        finally:
            os.close(self.fd)
