"""PcapSource: classic pcap through libpcap."""

import os
import struct
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gazer.capture.source import PcapSource
from gazer.capture.testing import count_all, read_all, read_one
from gazer.errors import InputError
from tests.capture_writers import NANO, pcap

BAD_TIME = 1
MAGIC_BYTES = 4


def descriptor(content):
    """A descriptor at the begin of an unnamed file with this content."""
    fd = os.memfd_create("test")
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def source(content, snaplen=65535, name="t.pcap"):
    fd = descriptor(content)
    return PcapSource(fd, name, snaplen, os.read(fd, 24))


def read(content, **how):
    s = source(content, **how)
    frames, result, error = read_all(s)
    assert s.frames == len(frames)
    s.close()
    assert s.error == error
    return frames, result, error


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("nano", [False, True])
def test_byte_orders_and_units(order, nano):
    scale = 1 if nano else 1000
    records = [
        (0, 0, b""),
        (1444531212, 628222, b"one"),
        (2**31 - 1, NANO // scale - 1, b"two", 1500),
        (2**31, 1, b"libpcap says 1901"),
        (2**32 - 1, NANO // scale - 1, b"2106"),
    ]
    frames, result, error = read(pcap(records, order, nano))
    assert (result, error) == ("end", None)
    assert frames == [
        (r[2], len(r[2]), r[3] if len(r) > 3 else len(r[2]), r[0] * NANO + r[1] * scale, 1, 0)
        for r in records
    ]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("nano", [False, True])
@pytest.mark.parametrize("seconds", [5, 2**32 - 1])
@pytest.mark.parametrize("beyond", [0, 1, 2**31, 2**32 - 1])
def test_a_fraction_of_a_second_or_more_is_flagged_and_kept(order, nano, seconds, beyond):
    scale = 1 if nano else 1000
    fraction = max(beyond, NANO // scale + beyond if beyond < 2 else beyond)
    frames, result, _ = read(pcap([(seconds, fraction, b"x")], order, nano))
    assert result == "end"
    assert frames == [(b"x", 1, 1, seconds * NANO + fraction * scale, 1, BAD_TIME)]


@pytest.mark.parametrize("order", "<>")
def test_the_patched_format_of_old(order):
    records = [(7, 9, b"abc"), (8, 9, b"defg")]
    frames, result, _ = read(pcap(records, order, patched=True))
    assert result == "end"
    assert [(f[0], f[3]) for f in frames] == [(b"abc", 7 * NANO + 9000), (b"defg", 8 * NANO + 9000)]


@pytest.mark.parametrize(
    ("linktype", "seen"),
    [(0, 0), (1, 1), (9, 9), (12, 101), (14, 101), (50, 50), (51, 51), (101, 101), (108, 108),
     (113, 113), (228, 228), (229, 229), (276, 276), (0x10000001, 1)],
)  # fmt: skip
def test_link_types(linktype, seen):
    frames, _, _ = read(pcap([(0, 0, b"x")], linktype=linktype))
    assert frames[0][4] == seen


def test_snaplen_cuts_frames():
    frames, _, _ = read(pcap([(0, 0, b"abcdef"), (0, 0, b"ab")]), snaplen=4)
    assert [f[:3] for f in frames] == [(b"abcd", 4, 6), (b"ab", 2, 2)]


def test_a_frame_beyond_the_files_own_snaplen_is_cut_to_it():
    frames, result, _ = read(pcap([(0, 0, bytes(100)), (1, 0, b"next")], snaplen=40))
    assert result == "end"
    assert [f[1] for f in frames] == [40, 4]


def test_frames_of_all_sizes_across_the_buffers():
    records = [(n, n, bytes([n & 255]) * (n * 7919 % 70000)) for n in range(300)]
    frames, result, _ = read(pcap(records, snaplen=262144), snaplen=262144)
    assert result == "end"
    assert [f[0] for f in frames] == [r[2] for r in records]
    assert [f[3] for f in frames] == [n * NANO + n * 1000 for n in range(300)]


def test_no_frames():
    assert read(pcap([])) == ([], "end", None)


def test_the_end_stays_the_end():
    s = source(pcap([(0, 0, b"x")]))
    assert [read_one(s)[0] for _ in range(4)] == ["frame", "end", "end", "end"]
    s.close()
    s.close()
    assert read_one(s) == ("end", None)


def test_closed_before_the_end():
    s = source(pcap([(0, 0, b"x")] * 1000))
    assert read_one(s)[0] == "frame"
    s.close()
    assert read_one(s) == ("end", None)
    assert s.error is None


@pytest.mark.parametrize("patched", [False, True])
def test_cut_at_every_byte(patched):
    records = [(1, 2, b"abc"), (3, 4, b""), (5, 6, b"defghij")]
    whole = pcap(records, patched=patched)
    header = 24 if patched else 16
    ends = [24]
    for r in records:
        ends.append(ends[-1] + header + len(r[2]))
    everything = read(whole)[0]
    assert len(everything) == 3
    for n in range(MAGIC_BYTES, len(whole)):
        if n < 24:
            with pytest.raises(InputError, match=r"^t\.pcap: truncated dump file"):
                source(whole[:n])
            continue
        frames, result, error = read(whole[:n])
        complete = sum(e <= n for e in ends) - 1
        assert frames == everything[:complete]
        if n in ends:
            assert (result, error) == ("end", None)
        else:
            assert result == "broken"
            assert error.startswith(
                f"t.pcap: cut off in frame {complete + 1} (byte offset {ends[complete]}): "
            )
            assert "\n" not in error


def test_cut_in_a_later_batch_says_where():
    content = pcap([(n, 0, bytes(200)) for n in range(5000)])
    frames, result, error = read(content[:-1])
    assert (len(frames), result) == (4999, "broken")
    assert error.startswith(f"t.pcap: cut off in frame 5000 (byte offset {24 + 4999 * 216}): ")


@pytest.mark.parametrize("caplen", [262145, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("order", "<>")
def test_a_length_that_cannot_be(order, caplen):
    good = pcap([(1, 0, b"good")] * 9, order)
    bad = struct.pack(order + "IIII", 1, 1, caplen, caplen)
    frames, result, error = read(good + bad + bytes(300_000))
    assert (len(frames), result) == (9, "broken")
    assert error.startswith(f"t.pcap: broken in frame 10 (byte offset {len(good)}): ")
    assert str(caplen) in error


@pytest.mark.parametrize("version", [(1, 0), (3, 0), (2, 5), (9, 9)])
def test_unknown_versions(version):
    with pytest.raises(InputError, match=r"^t\.pcap: .*(version|archaic)") as e:
        source(pcap([], version=version))
    assert "\n" not in str(e.value)


def test_read_error():
    fd = os.open("/proc/self/mem", os.O_RDONLY)     # reads at offset 0 fail with EIO
    s = PcapSource(fd, "t.pcap", 100, pcap([(0, 0, b"one")]))
    frames, result, error = read_all(s)
    assert (len(frames), result) == (1, "broken")
    assert error == "t.pcap: can't be read after frame 1 (byte offset 43): Input/output error"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutations_never_crash(data):
    order = data.draw(st.sampled_from("<>"))
    records = [(n, n, bytes([n]) * (n * 5 % 40)) for n in range(12)]
    content = bytearray(pcap(records, order, snaplen=data.draw(st.sampled_from([0, 10, 65535]))))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        frames, result, error = read(bytes(content))
    except InputError as e:
        assert str(e).startswith("t.pcap: ")
        return
    assert result in ("end", "broken")
    assert (error is None) == (result == "end")
    assert sum(f[1] for f in frames) + 24 <= len(content)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary())),
    st.sampled_from("<>"),
    st.booleans(),
    st.integers(1, 30),
)
@example([(2**32 - 1, 2**32 - 1, b"x")], "<", False, 1)
def test_any_records(records, order, nano, snaplen):
    scale = 1 if nano else 1000
    frames, result, _ = read(pcap(records, order, nano), snaplen=snaplen)
    assert result == "end"
    assert frames == [
        (d[:snaplen], min(len(d), snaplen), len(d), s * NANO + f * scale, 1,
         BAD_TIME if f * scale >= NANO else 0)
        for s, f, d in records
    ]  # fmt: skip


def test_counting_makes_no_objects():
    s = source(pcap([(0, 0, bytes(60))] * 1000))
    assert count_all(s) == (1000, 60000, "end")


def test_no_trace_of_python_libpcap_at_run_time():
    """It stands in build-system.requires only."""
    code = (
        "import sys, gazer.capture.source, gazer.capture.pcapng\n"
        "sys.exit(any(m.startswith('pylibpcap') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
