"""Decompression through a pipe: streams that are cut, broken, or bombs."""

import gzip
import os
import struct
import subprocess
import sys
import textwrap
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gazer.capture.decompress import ZSTD_WINDOW
from gazer.errors import InputError
from tests.capture_forms import (
    FORMS,
    FRAMES,
    PCAP,
    nothing_left_open,  # noqa: F401  (a fixture for every test here)
    read,
    refused,
    written,
    zstd,
)
from tests.capture_writers import enhanced, interface, section


@pytest.mark.parametrize("form", [f for f in FORMS if f not in ("plain", "gzip, padded")])
def test_a_compressed_stream_cut_at_every_byte(tmp_path, form):
    """A cut between two members is whole gzip and whole zstd; then the capture is cut."""
    content = FORMS[form](PCAP[:1200])
    whole = read(written(tmp_path, content))[0]
    assert len(whole) == len(read(written(tmp_path, PCAP[:1200]))[0]) > 20
    step = len(content) // 3000 + 1     # a skippable frame is long, and all the same
    for n in range(1, len(content), step):
        path = written(tmp_path, content[:n])
        try:
            frames, result, error = read(path)
        except InputError as e:
            assert any(w in str(e) for w in ("cut off", "truncated", "empty", "not a pcap"))
            continue
        assert frames == whole[: len(frames)]
        # Cut within what comes after the capture (an empty member, a skippable frame) it may be
        # whole, but PCAP[:1200] is not.
        assert result == "broken"
        assert "cut off" in error


def test_a_cut_is_told_by_the_stream_that_has_it(tmp_path):
    path = written(tmp_path, gzip.compress(PCAP)[:-20])
    frames, result, error = read(path)
    assert (frames, result) == (FRAMES[: len(frames)], "broken")
    size = os.path.getsize(path)
    assert error == (
        f"{path}: the gzip stream is cut off at byte {size} (after frame {len(frames)})"
    )
    path = written(tmp_path, zstd(PCAP)[:-20])
    frames, result, error = read(path)
    assert error == (
        f"{path}: the zstd stream is cut off at byte {os.path.getsize(path)} "
        f"(after frame {len(frames)})"
    )


@pytest.mark.parametrize("form", ["gzip", "zstd, check sum"])
def test_a_wrong_check_sum(tmp_path, form):
    content = bytearray(FORMS[form](PCAP))
    content[-8 if form == "gzip" else -1] ^= 1
    frames, result, error = read(written(tmp_path, bytes(content)))
    # Frames from before the sum was known are given; then the doubt is told.
    assert frames == FRAMES[: len(frames)]
    assert len(frames) > 1000
    assert result == "broken"
    assert "incorrect data check" in error or "checksum" in error


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_something_else_after_the_stream(tmp_path, form):
    path = written(tmp_path, FORMS[form](PCAP) + b"something else")
    frames, result, error = read(path)
    assert (frames, result) == (FRAMES, "broken")
    assert error.startswith(f"{path}: the {form} stream has bytes that are not {form} at byte ")


def test_padding_with_something_in_it(tmp_path):
    path = written(tmp_path, gzip.compress(PCAP) + bytes(100_000) + b"x")
    frames, result, error = read(path)
    assert (frames, result) == (FRAMES, "broken")
    assert "has bytes that are not gzip before byte" in error


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_broken_streams_never_crash(tmp_path_factory, data):
    form = data.draw(st.sampled_from([f for f in FORMS if f != "plain"]))
    content = bytearray(FORMS[form](PCAP[:5000]))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = written(tmp_path_factory.getbasetemp(), bytes(content))
    try:
        _, result, error = read(path)
    except InputError as e:
        assert str(e).startswith(f"{path}: ")
        return
    assert result == "broken"       # 5000 bytes end in the middle of a frame
    assert error.startswith(f"{path}: ")
    assert "\n" not in error


def in_memory(code, *arguments):
    """Run it in a process of its own; the growth of its peak memory from `begin()` on, in MiB."""
    prelude = """
        import resource, sys
        from gazer.capture.files import open_source
        from gazer.capture.testing import read_all, count_all
        def peak():
            for line in open("/proc/self/status"):
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) / 1024
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code), *arguments],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return done.stdout.split()


def gzip_bomb(header, size):
    c = zlib.compressobj(9, wbits=31)
    out = [c.compress(header)]
    zeros = bytes(2**20)
    out += [c.compress(zeros) for _ in range(size >> 20)]
    return b"".join(out) + c.flush()


def zstd_bomb(header, size):
    """By hand: the header as a raw block, then nothing but RLE blocks of 128 KiB, four bytes each:
    32,000 : 1, where a real compressor gets to about 10,000 : 1."""
    block = (128 * 1024 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    head = b"\x28\xb5\x2f\xfd" + b"\0" + bytes([(17 - 10) << 3])
    first = (len(header) << 3).to_bytes(3, "little") + header
    return head + first + block * (size // (128 * 1024)) + (1).to_bytes(3, "little")


BOMB = 2**28


@pytest.mark.parametrize("bomb", [gzip_bomb, zstd_bomb])
def test_bombs_take_no_memory(tmp_path, bomb):
    """256 MiB of zeros in a valid file, in a block of a type that is skipped."""
    head = section() + interface() + enhanced(b"x") + struct.pack("<II", 4711, BOMB + 8)
    content = bomb(head, BOMB)
    assert len(content) < BOMB / 500
    path = written(tmp_path, content)
    frames, result, error, grown = in_memory(
        """
        before = peak()
        s = open_source(sys.argv[1], snaplen=65535)
        frames, _, result = count_all(s)
        error = s.error.replace(" ", "_")
        s.close()
        print(frames, result, error, peak() - before)
        """,
        path,
    )
    assert (frames, result) == ("1", "broken")
    assert error.endswith(f"the_block's_length_is_{BOMB + 8}_at_its_begin_and_0_at_its_end")
    assert float(grown) < 16


def test_a_zstd_window_beyond_the_limit(tmp_path):
    how = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    c = zstandard.ZstdCompressor(compression_params=how).compressobj()
    path = written(tmp_path, c.compress(PCAP) + c.flush())
    assert refused(path) == (
        f"the zstd stream is broken before byte 6: its window is over {ZSTD_WINDOW >> 20} MiB"
    )
    how = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    c = zstandard.ZstdCompressor(compression_params=how).compressobj()
    assert read(written(tmp_path, c.compress(PCAP) + c.flush())) == (FRAMES, "end", None)
