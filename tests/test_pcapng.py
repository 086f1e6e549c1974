"""PcapngSource: our own reader of pcapng."""

import os
import shutil
import struct
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gazer.capture.pcapng import PcapngSource
from gazer.capture.testing import read_all, read_one
from tests.capture_writers import (
    NANO,
    block,
    enhanced,
    interface,
    obsolete,
    option,
    pad,
    pcap,
    section,
    simple,
)

BAD_TIME = 1
NO_TIME = 2
MOST = 2**63 - 1
LEAST = -(2**63)
LARGEST = 16 * 2**20


def source(content, snaplen=65535):
    fd = os.memfd_create("test")
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return PcapngSource(fd, "t.pcapng", snaplen)


def read(content, **how):
    s = source(content, **how)
    frames, result, error = read_all(s)
    assert s.frames == len(frames)
    s.close()
    assert s.error == error
    assert (error is None) == (result == "end")
    return frames, result, error


def frames_of(content, **how):
    frames, result, error = read(content, **how)
    assert (result, error) == ("end", None)
    return frames


def breaks(content, text, frames=0):
    """It gives so many frames, then breaks with this text after the file's name."""
    got, result, error = read(content)
    assert (len(got), result) == (frames, "broken")
    assert error == f"t.pcapng: {text}"


@pytest.mark.parametrize("order", "<>")
def test_the_three_blocks_of_packets(order):
    content = (
        section(order)
        + interface(order)
        + enhanced(b"enhanced", 1_000_001, order, length=99)
        + simple(b"simple", order=order)
        + obsolete(b"obsolete", 2**32 + 5, order, length=77)
    )
    assert frames_of(content) == [
        (b"enhanced", 8, 99, 1_000_001_000, 1, 0),
        (b"simple", 6, 6, 1_000_001_000, 1, NO_TIME),
        (b"obsolete", 8, 77, (2**32 + 5) * 1000, 1, 0),
    ]


def test_a_simple_block_at_the_begin_has_no_time():
    assert frames_of(section() + interface() + simple(b"abc")) == [(b"abc", 3, 3, 0, 1, NO_TIME)]


def test_a_simple_block_is_cut_to_its_interfaces_snaplen():
    content = section() + interface(snaplen=5) + simple(b"12345", length=1000)
    assert frames_of(content)[0][:3] == (b"12345", 5, 1000)


@pytest.mark.parametrize("order", "<>")
def test_interfaces_differ(order):
    content = (
        section(order)
        + interface(order, linktype=1, tsresol=6)
        + interface(order, linktype=113, tsresol=9, snaplen=64)
        + interface(order, linktype=12, tsresol=3, tsoffset=1_000_000)
        + interface(order, linktype=228, tsresol=128 + 10, tsoffset=-1)
        + b"".join(enhanced(bytes([n]), 5000, order, id=n) for n in (3, 1, 0, 2))
    )
    assert [(f[0], f[3], f[4]) for f in frames_of(content)] == [
        (b"\3", 5000 * NANO // 1024 - NANO, 228),
        (b"\1", 5000, 113),
        (b"\0", 5_000_000, 1),
        (b"\2", 1_000_005 * NANO, 101),
    ]


def test_sections_have_their_own_byte_order_and_interfaces():
    content = (
        section("<") + interface("<", 1) + interface("<", 113) + enhanced(b"a", 1, "<", id=1)
        + section(">") + interface(">", 276, tsresol=9) + enhanced(b"b", 2, ">")
        + section(">", (1, 2))
        + section("<") + interface("<", 228) + enhanced(b"c", 3, "<")
    )  # fmt: skip
    assert [(f[0], f[3], f[4]) for f in frames_of(content)] == [
        (b"a", 1000, 113), (b"b", 2, 276), (b"c", 3000, 228),
    ]  # fmt: skip
    breaks(
        section() + interface() + section() + enhanced(b"x"),
        "broken in frame 1 (byte offset 76, enhanced packet block): "
        "a packet of interface 0, and the section describes 0",
    )


@pytest.mark.parametrize("offset", [None, 0, 1_700_000_000, -5, MOST, LEAST])
def test_every_resolution(offset):
    counts = [0, 1, 999_999_999, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
    for resolution in range(256):
        content = section() + interface(tsresol=resolution, tsoffset=offset)
        content += b"".join(enhanced(b"", n) for n in counts)
        per_second = 2 ** (resolution & 127) if resolution & 128 else 10**resolution
        for n, frame in zip(counts, frames_of(content), strict=True):
            time = n * NANO // per_second + (offset or 0) * NANO
            shown = max(LEAST, min(MOST, time))
            assert (frame[3], frame[5]) == (shown, 0 if shown == time else BAD_TIME)


def test_options_of_all_kinds_are_stepped_over():
    odd = option("<", 2, b"eth0") + option("<", 3, b"x" * 65535) + option("<", 2988, b"")
    content = (
        section(options=option("<", 1, b"a comment"))
        + interface(tsresol=9, options=odd)
        # After the end of options nothing counts.
        + interface(options=option("<", 0, b"") + b"\xff" * 16)
        + enhanced(b"abc", 5, options=option("<", 1, b"hm"))
        + enhanced(b"abc", 5, id=1, options=b"\xff" * 8)
    )
    assert [f[3] for f in frames_of(content)] == [5, 5000]


@pytest.mark.parametrize("order", "<>")
def test_unknown_blocks_are_skipped_whatever_their_length(order):
    content = section(order) + interface(order)
    for kind, size in [(0, 0), (4, 4), (5, 8), (0xBAD, 300_000), (2**32 - 1, 0), (10, 1_000_000)]:
        content += block(order, kind, b"\x0a\x0d\x0d\x0a" * (size // 4)) + enhanced(b"x", 1, order)
    content += block(order, 0xBAD, bytes(LARGEST + 40)) + enhanced(b"last", 1, order)
    assert [f[0] for f in frames_of(content)] == [b"x"] * 6 + [b"last"]


def test_a_file_full_of_nothing_does_not_hold_next():
    s = source(section() + interface() + block("<", 99, b"") * 500_000 + enhanced(b"x"))
    assert read_one(s) == ("idle", None)
    frames, result, _ = read_all(s)
    assert (len(frames), result) == (1, "end")


def test_a_large_packet_block():
    data = os.urandom(LARGEST - 12 - 20)
    content = section() + interface() + enhanced(data) + enhanced(b"x")
    frames = frames_of(content, snaplen=2**32 - 1)
    assert frames[0][0] == data
    assert frames[1][0] == b"x"
    breaks(
        section() + interface() + enhanced(data + b"more") + enhanced(b"x"),
        "broken in frame 1 (byte offset 48, enhanced packet block): "
        "a block of 16777220 bytes; more than 16777216 can't be",
    )


def test_snaplen_cuts_frames():
    frames = frames_of(section() + interface() + enhanced(b"abcdef") + simple(b"xy"), snaplen=4)
    assert [f[:3] for f in frames] == [(b"abcd", 4, 6), (b"xy", 2, 2)]


HEAD = section() + interface() + enhanced(b"ok")     # 28 + 20 + 36 bytes
AT = len(HEAD)


@pytest.mark.parametrize("length", [0, 1, 4, 8, 11, 13, 14, 15, 35, 37, 2**32 - 1])
@pytest.mark.parametrize("kind", [1, 2, 3, 6, 0x0A0D0D0A, 4711])
def test_lengths_that_no_block_can_have(kind, length):
    body = struct.pack("<I", 0x1A2B3C4D) + bytes(20)
    for trailer in (length, 36):
        got, result, error = read(HEAD + block("<", kind, body, length, trailer) + bytes(64))
        assert (len(got), result) == (1, "broken")
        assert f"(byte offset {AT}, " in error
        assert error.endswith(f": {length} is no length of a block")


@pytest.mark.parametrize("kind", [1, 2, 3, 6, 0x0A0D0D0A, 4711])
@pytest.mark.parametrize("length", [12, 16, 20, 24, 28, 32, 40, 44, 65536, 2**24, 2**32 - 4])
def test_lengths_that_are_not_the_blocks(kind, length):
    """A length that leads elsewhere never goes through, as the one at the end is not there."""
    body = struct.pack("<IHHII", 0x1A2B3C4D, 1, 0, 1, 1) + b"\1\1\1\1\1\1\1\1"
    got, result, error = read(HEAD + block("<", kind, body, length, 36) + b"\1" * 100)
    assert (len(got), result) == (1, "broken")
    assert f"(byte offset {AT}, " in error


@pytest.mark.parametrize("kind", [1, 6, 4711])
@pytest.mark.parametrize("trailer", [0, 12, 28, 36, 2**32 - 1])
def test_the_length_at_the_end_differs(kind, trailer):
    got, result, error = read(HEAD + block("<", kind, bytes(20), None, trailer) + enhanced(b"x"))
    assert (len(got), result) == (1, "broken")
    assert error.endswith(f": the block's length is 32 at its begin and {trailer} at its end")


@pytest.mark.parametrize(
    ("kind", "least"), [(1, 8), (2, 20), (3, 4), (6, 20), (0x0A0D0D0A, 16)]
)
def test_bodies_too_short(kind, least):
    for size in range(0, least, 4):
        body = (struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + bytes(4))[:size]
        content = HEAD + block("<", kind, body)
        got, result, error = read(content)
        assert (len(got), result) == (1, "broken")
        if kind == 0x0A0D0D0A and size == 0:    # the block's own end stands where the order should
            assert "no byte order" in error
        else:
            assert error.endswith(f": a block of {size + 12} bytes is too short for its kind")


def test_what_breaks_says_what_and_where():
    after = f"after frame 1 (byte offset {AT}, "
    within = f"in frame 2 (byte offset {AT}, "
    breaks(interface(), "broken after frame 0 (byte offset 0, block): "
           "it does not begin with a section header")  # fmt: skip
    breaks(HEAD + section(byte_order=0x1A2B3C4E), f"broken {after}section header): "
           "no byte order in the section header (4e3c2b1a)", 1)  # fmt: skip
    breaks(HEAD + section(version=(2, 7)), f"broken {after}section header): "
           "pcapng version 2.7 is not known", 1)  # fmt: skip
    breaks(HEAD + enhanced(b"x", id=1), f"broken {within}enhanced packet block): "
           "a packet of interface 1, and the section describes 1", 1)  # fmt: skip
    breaks(HEAD + obsolete(b"x", id=65535), f"broken {within}packet block): "
           "a packet of interface 65535, and the section describes 1", 1)  # fmt: skip
    breaks(section() + simple(b"x"), "broken in frame 1 (byte offset 28, simple packet block): "
           "a packet of interface 0, and the section describes 0")  # fmt: skip
    breaks(HEAD + enhanced(b"abcd", caplen=5), f"broken {within}enhanced packet block): "
           "a packet of 5 bytes where its block has 4", 1)  # fmt: skip
    breaks(HEAD + enhanced(b"abcd", caplen=2**32 - 1), f"broken {within}enhanced packet block): "
           "a packet of 4294967295 bytes where its block has 4", 1)  # fmt: skip
    breaks(HEAD + simple(b"abcd", length=5), f"broken {within}simple packet block): "
           "a packet of 5 bytes where its block has 4", 1)  # fmt: skip
    breaks(HEAD + interface(options=option("<", 9, b"")), f"broken {after}interface description): "
           "option 9 has 0 bytes", 1)  # fmt: skip
    breaks(HEAD + interface(options=option("<", 9, b"12")), f"broken {after}interface description):"
           " option 9 has 2 bytes", 1)  # fmt: skip
    breaks(HEAD + interface(options=option("<", 14, b"1234567")), f"broken {after}"
           "interface description): option 14 has 7 bytes", 1)  # fmt: skip
    long = block("<", 1, struct.pack("<HHIHHI", 1, 0, 0, 2, 5, 0))
    breaks(HEAD + long, f"broken {after}interface description): "
           "an option of 5 bytes where its block has 4", 1)  # fmt: skip
    breaks(HEAD + block("<", 4711, bytes(100))[:50], f"cut off {after}block of type 0x1267): "
           "of 112 bytes 50 are there", 1)  # fmt: skip


def test_as_many_interfaces_as_can_be_and_one_more():
    most = section() + interface() * 65535 + interface(linktype=113)
    assert frames_of(most + enhanced(b"x", id=65535))[0][4] == 113
    got, result, error = read(most + interface() + enhanced(b"x"))
    assert (got, result) == ([], "broken")
    assert error.endswith("more than 65536 interfaces in a section")
    # A new section begins anew.
    assert len(frames_of(most + most + enhanced(b"x", id=65535))) == 1


def small_file():
    return [
        section("<"), interface("<", tsresol=9), enhanced(b"one", 1), block("<", 99, b"skipped!"),
        simple(b"two"), section(">"), interface(">"), obsolete(b"three", 3, ">"),
    ]  # fmt: skip


def test_cut_at_every_byte():
    blocks = small_file()
    whole = b"".join(blocks)
    everything = frames_of(whole)
    assert len(everything) == 3
    ends, frames = {0: 0}, 0
    for n, b in enumerate(blocks):
        frames += n in (2, 4, 7)
        ends[max(ends) + len(b)] = frames
    for n in range(len(whole) + 1):
        got, result, error = read(whole[:n])
        begin = max(e for e in ends if e <= n)
        assert got == everything[: ends[begin]]
        assert result == ("end" if n in ends else "broken")
        if n not in ends:
            assert error.startswith("t.pcapng: cut off ")
            assert f" (byte offset {begin}, " in error


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_mutations_never_crash(data):
    content = bytearray(b"".join(small_file()))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.sampled_from([0, 1, 4, 12, 127, 128, 255]) | st.integers(0, 255))
    frames, _, error = read(bytes(content))
    assert sum(f[1] for f in frames) < len(content)
    assert error is None or "\n" not in error


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_anything_after_a_section_never_crashes(data, described):
    read(section() + (interface() if described else b"") + data)


BLOCKS = st.one_of(
    st.tuples(st.just("enhanced"), st.binary(max_size=60), st.integers(0, 2**64 - 1)),
    st.tuples(st.just("obsolete"), st.binary(max_size=60), st.integers(0, 2**64 - 1)),
    st.tuples(st.just("other"), st.binary(max_size=60), st.integers(10, 2**31)),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(BLOCKS), st.sampled_from("<>"))
def test_any_sequence_of_blocks(blocks, order):
    content, expected = section(order) + interface(order), []
    for kind, data, n in blocks:
        if kind == "other":
            content += block(order, n, pad(data))
            continue
        content += (enhanced if kind == "enhanced" else obsolete)(data, n, order)
        time = min(n * 1000, MOST)
        flags = BAD_TIME if n * 1000 > MOST else 0
        expected.append((data, len(data), len(data), time, 1, flags))
    assert frames_of(content) == expected


# What others write and read.


def tool(name):
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def shark(path):
    """(time_ns, caplen, length) of each frame as tshark reads it."""
    lines = subprocess.run(
        [tool("tshark"), "-n", "-r", path, "-T", "fields", "-e", "frame.time_epoch", "-e",
         "frame.cap_len", "-e", "frame.len"],
        check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    frames = []
    for line in lines:
        time, caplen, length = line.split("\t")
        seconds, _, fraction = time.partition(".")
        frames.append((int(seconds) * NANO + int(fraction.ljust(9, "0")), int(caplen), int(length)))
    return frames


def test_as_editcap_writes_it(tmp_path):
    plain = tmp_path / "t.pcap"
    plain.write_bytes(pcap([(n, n, bytes(n), n + 5) for n in range(100)], nano=True))
    ng = tmp_path / "t.pcapng"
    subprocess.run([tool("editcap"), "-F", "pcapng", plain, ng], check=True)
    assert frames_of(ng.read_bytes()) == [
        (bytes(n), n, n + 5, n * NANO + n, 1, 0) for n in range(100)
    ]


def test_as_mergecap_writes_it(tmp_path):
    """Several interfaces of different link types, which libpcap refuses."""
    paths = []
    for n, linktype in enumerate([1, 113, 101]):
        paths.append(tmp_path / f"{n}.pcap")
        paths[n].write_bytes(
            pcap([(i, n, bytes([n]) * 60) for i in range(5)], linktype=linktype, nano=n == 1)
        )
    ng = tmp_path / "t.pcapng"
    subprocess.run([tool("mergecap"), "-F", "pcapng", "-w", ng, *paths], check=True)
    frames = frames_of(ng.read_bytes())
    assert [(f[3], f[4], f[0][:1]) for f in frames] == [
        (i * NANO + n * (1 if n == 1 else 1000), linktype, bytes([n]))
        for i in range(5)
        for n, linktype in enumerate([1, 113, 101])
    ]


@pytest.mark.parametrize("order", "<>")
def test_as_tshark_reads_it(tmp_path, order):
    content = (
        section(order)
        + interface(order, 1, tsresol=3)
        + interface(order, 113, tsresol=9, snaplen=64, tsoffset=1_600_000_000)
        + interface(order, 101, tsresol=128 + 20, options=option(order, 2, b"eth0"))
    )
    for n in range(30):
        content += enhanced(bytes(n), n * 123_456_789, order, id=n % 3, length=n + n % 4)
        content += obsolete(bytes(n), n * 7_654_321, order, id=n % 3) + block(order, 4711, b"1234")
    path = tmp_path / "t.pcapng"
    path.write_bytes(content)
    expected = shark(path)
    assert len(expected) == 60
    assert [(f[3], f[1], f[2]) for f in frames_of(content)] == expected
