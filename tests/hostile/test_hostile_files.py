"""Capture files with every length field wrong, of both formats.

Each case is a file: its own good pair, then what is wrong, then another pair, which is reached or
not. Behind each stands a good file. All of them are read in one run, which names the broken ones,
ends with exit code 1 and has lost nothing else.

    pcap      file header    magic 4, version 2+2, zone 4, accuracy 4, snaplen 4, link type 4
              record         seconds 4, fraction 4, captured length 4, length 4, octets
    pcapng    block          type 4, length 4, body, length 4 again
              section (0x0a0d0d0a)   byte order 4, version 2+2, section length 8, options
              interface (1)          link type 2, reserved 2, snaplen 4, options
              enhanced packet (6)    interface 4, time 8, captured length 4, length 4, octets,
                                     options
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.capture_writers import block, enhanced, interface, obsolete, pcap, section, simple
from tests.hostile.bombs import GOOD, TX, Place, Ran, figures

T = 1_767_225_600
MIB = 1 << 20
HEADER = pcap([])


def le(*numbers: int) -> bytes:
    """Words of 32 bits."""
    return struct.pack(f"<{len(numbers)}I", *(n & 0xFFFFFFFF for n in numbers))


def record(frame: bytes, caplen: int | None = None, length: int | None = None) -> bytes:
    return le(T, 0, len(frame) if caplen is None else caplen,
              len(frame) if length is None else length) + frame


@dataclasses.dataclass(frozen=True)
class File:
    """`make` gets the frames of two good pairs and makes the file. `frames`: how many of it are
    read; `broken`: what is said of it, None if nothing is wrong with it."""

    name: str
    make: Callable[[list[bytes], list[bytes]], bytes]
    frames: int
    broken: str | None
    second: bool = False        # the pair behind the fault is reached

    def __str__(self) -> str:
        return self.name


CUT, BROKEN, NOT = "cut off", "broken", "not a pcap or pcapng file"


def whole(frames: list[bytes]) -> bytes:
    return b"".join(record(frame) for frame in frames)


def in_pcap(name: str, wrong: bytes, broken: str | None, frames: int = 2,
            second: bool = False) -> File:
    """The first pair, something wrong, the second pair."""
    return File(f"pcap: {name}", lambda a, b: HEADER + whole(a) + wrong + whole(b), frames, broken,
                second)


def with_header(name: str, header: bytes, broken: str | None, frames: int = 4,
                second: bool = True) -> File:
    return File(f"pcap: {name}", lambda a, b: header + whole(a) + whole(b), frames, broken, second)


def pcap_cut(name: str, size: int, broken: str | None, frames: int) -> File:
    """The first pair, and of the second one's records only so many octets."""
    return File(f"pcap: {name}", lambda a, b: HEADER + whole(a) + whole(b)[:size], frames, broken)


PCAP = [
    in_pcap("captured length of 2^32 - 1", le(T, 0, 0xFFFFFFFF, 60), BROKEN),
    in_pcap("captured length of 2^31", le(T, 0, 1 << 31, 60), BROKEN),
    in_pcap("captured length of 16 MiB and one", le(T, 0, 16 * MIB + 1, 60), BROKEN),
    in_pcap("captured length beyond the file", le(T, 0, 1_000_000, 1_000_000), CUT),
    in_pcap("captured length of nothing", le(T, 0, 0, 0), None, 5, True),
    in_pcap("captured length of nothing, length of 2^32 - 1", le(T, 0, 0, 0xFFFFFFFF), None, 5,
            True),
    File("pcap: length of nothing", lambda a, b: HEADER + b"".join(
        record(frame, length=0) for frame in a) + whole(b), 4, None, True),
    File("pcap: length of 2^32 - 1", lambda a, b: HEADER + whole(a) + b"".join(
        record(frame, length=0xFFFFFFFF) for frame in b), 4, None, True),
    *(pcap_cut(f"the last record header ends after {n} octets", n, CUT, 2) for n in range(1, 16)),
    pcap_cut("the last record ends after its header", 16, CUT, 2),
    pcap_cut("the last record ends in its frame", 16 + 20, CUT, 2),
    with_header("snaplen of nothing", HEADER[:16] + le(0) + HEADER[20:], None),
    with_header("snaplen of 2^32 - 1", HEADER[:16] + le(-1) + HEADER[20:], None),
    with_header("snaplen of 2^31 - 1", HEADER[:16] + le((1 << 31) - 1) + HEADER[20:], None),
    with_header("version 1.0", HEADER[:4] + struct.pack("<HH", 1, 0) + HEADER[8:], "archaic", 0,
                False),
    with_header("version 65535.65535", HEADER[:4] + b"\xff" * 4 + HEADER[8:],
                "unsupported pcap savefile version", 0, False),
    with_header("magic of nothing", bytes(4) + HEADER[4:], NOT, 0, False),
    *(File(f"pcap: a file of {n} octets", lambda a, b, n=n: HEADER[:n], 0,
           "empty file" if n == 0 else NOT if n < 4 else "truncated dump file")
      for n in (0, 1, 3, 4, 8, 16, 23)),
    File("pcap: a file header and no more", lambda a, b: HEADER, 0, None),
]

# ---------------------------------------------------------------------------------------- pcapng

NG = section() + interface(tsresol=9)


def packets(frames: list[bytes]) -> bytes:
    return b"".join(enhanced(frame, T * 10**9) for frame in frames)


def in_pcapng(name: str, wrong: bytes, broken: str | None, frames: int = 2,
              second: bool = False) -> File:
    return File(f"pcapng: {name}", lambda a, b: NG + packets(a) + wrong + packets(b), frames,
                broken, second)


def body(caplen: int, length: int, octets: int, number: int = 0) -> bytes:
    return le(number, 0, 0, caplen, length) + bytes(octets)


LENGTHS = {
    "nothing": 0, "one": 1, "8": 8, "11": 11, "13, not a multiple of 4": 13, "2^32 - 1": 0xFFFFFFFF,
    "2^32 - 4": 0xFFFFFFFC, "2^31": 1 << 31, "16 MiB and more": 16 * MIB + 4,
}
BLOCKS = {
    "section": 0x0A0D0D0A, "interface": 1, "obsolete packet": 2, "simple packet": 3,
    "name resolution": 4, "statistics": 5, "enhanced packet": 6, "unknown": 0x0BAD,
}
REST = {0x0A0D0D0A: le(0x1A2B3C4D)}     # a section's byte order stands before anything is believed

PCAPNG = [
    *(in_pcapng(f"{kind}: a block length of {what}",
                le(number, length) + REST.get(number, b"") + bytes(40),
                f"{BROKEN}|{CUT}") for kind, number in BLOCKS.items()
      for what, length in LENGTHS.items()),
    *(in_pcapng(f"{kind}: its two lengths differ", block("<", number, bytes(32), trailer=12),
                BROKEN) for kind, number in BLOCKS.items() if number != 0x0A0D0D0A),
    in_pcapng("section: its two lengths differ", block(
        "<", 0x0A0D0D0A, le(0x1A2B3C4D, 1, 0, 0), trailer=12), BROKEN),
    in_pcapng("section: a byte order of nothing", block("<", 0x0A0D0D0A, bytes(16)), BROKEN),
    in_pcapng("section: nothing behind the byte order", block(
        "<", 0x0A0D0D0A, le(0x1A2B3C4D)), BROKEN),
    in_pcapng("section: version 9", section(version=(9, 0)), BROKEN),
    in_pcapng("section: an option longer than the block", section(
        options=struct.pack("<HH", 2, 65535)) + interface(tsresol=9), None, 4, True),
    in_pcapng("interface: a body of 4 octets", block("<", 1, bytes(4)), BROKEN),
    in_pcapng("interface: an option longer than the block", interface(
        options=struct.pack("<HH", 9, 65535)), BROKEN),
    in_pcapng("interface: an option with another one as its value", interface(
        options=b"\x09\0\1\0"), None, 4, True),
    in_pcapng("interface: an option whose value isn't there", block(
        "<", 1, bytes(8) + b"\x09\0\1\0"), BROKEN),
    in_pcapng("interface: if_tsresol of 2 octets", interface(
        options=struct.pack("<HHH2x", 9, 2, 6)), BROKEN),
    in_pcapng("interface: if_tsoffset of 4 octets", interface(
        options=struct.pack("<HHI", 14, 4, 6)), BROKEN),
    in_pcapng("enhanced packet: captured length beyond the block", block(
        "<", 6, body(100, 100, 60)), BROKEN),
    in_pcapng("enhanced packet: captured length of 2^32 - 1", block(
        "<", 6, body(0xFFFFFFFF, 60, 60)), BROKEN),
    in_pcapng("enhanced packet: captured length of 2^32 - 3, which pads to 0", block(
        "<", 6, body(0xFFFFFFFD, 60, 60)), BROKEN),
    in_pcapng("enhanced packet: captured length of nothing", block("<", 6, body(0, 0, 0)), None, 5,
              True),
    in_pcapng("enhanced packet: a body of 16 octets", block("<", 6, bytes(16)), BROKEN),
    in_pcapng("enhanced packet: an interface that there isn't", block(
        "<", 6, body(4, 4, 4, number=1)), BROKEN),
    in_pcapng("enhanced packet: interface 2^32 - 1", block(
        "<", 6, body(4, 4, 4, number=0xFFFFFFFF)), BROKEN),
    in_pcapng("obsolete packet: captured length beyond the block", block(
        "<", 2, body(100, 100, 60)), BROKEN),
    in_pcapng("simple packet: length of 2^32 - 1, without snaplen", simple(
        bytes(8), length=0xFFFFFFFF), BROKEN),
    in_pcapng("simple packet: no length", block("<", 3, b""), BROKEN),
    in_pcapng("10,000 interfaces", interface() * 10_000, None, 4, True),
    in_pcapng("65,536 interfaces more", interface() * 65_536, BROKEN),
    File("pcapng: packets before any section", lambda a, b: packets(a), 0, NOT),
    File("pcapng: packets before any interface", lambda a, b: section() + packets(a), 0, BROKEN),
    File("pcapng: length of nothing", lambda a, b: NG + b"".join(
        enhanced(frame, T * 10**9, length=0) for frame in a) + packets(b), 4, None, True),
    File("pcapng: an option behind the packet, longer than the block", lambda a, b: NG + b"".join(
        enhanced(frame, T * 10**9, options=b"\1\0\xff\xff") for frame in a) + packets(b), 4, None,
        True),
    File("pcapng: obsolete packets", lambda a, b: NG + b"".join(
        obsolete(frame, T * 10**9) for frame in a) + packets(b), 4, None, True),
    *(File(f"pcapng: a file of {n} octets", lambda a, b, n=n: section()[:n], 0,
           NOT if n < 4 else f"{CUT}|{NOT}") for n in (3, 4, 8, 12, 27)),
    *(File(f"pcapng: the last block ends after {n} octets", lambda a, b, n=n: NG + packets(a)
           + packets(b)[:n], 2, CUT) for n in (1, 7, 8, 11, 12, 27, 28, 60)),
]

CASES = [*PCAP, *PCAPNG]


class Files(Ran):
    """All cases, a good file behind each."""

    def __init__(self, folder: Path) -> None:
        self.places = {}
        paths = []
        for number, one in enumerate(CASES):
            first, second, behind = (Place(3 * number + i) for i in range(3))
            path, good = folder / f"bad{number}", folder / f"good{number}.pcap"
            path.write_bytes(one.make(first.good(), second.good()))
            good.write_bytes(HEADER + whole(behind.good()))
            self.places[one.name] = (path, first, second, behind)
            paths += [path, good]
        self.run(paths, folder, {}, 60.0, code=1)
        self.paired = {event["client_addr"]: event for event in self.events
                       if event["tag"].endswith(TX) and event["status"] == "success"}

    def has(self, place: Place) -> bool:
        event = self.paired.get(place.client)
        if event is None:
            return False
        assert event["tx_id"] == GOOD
        assert event["reply"][-1]["data"] == place.good_data
        return True


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("one", CASES, ids=str)
def test_files(files: Files, one: File) -> None:
    path, first, second, behind = files.places[one.name]
    said = [line for line in files.stderr.splitlines() if f"{path}: " in line]
    if one.broken is None:
        assert said == []
    else:
        assert len(said) == 1
        assert any(words in said[0] for words in one.broken.split("|")), said
    assert files.has(first) == (one.frames >= 2)
    assert files.has(second) == one.second
    assert files.has(behind)


def test_every_frame_is_in_one_counter(files: Files) -> None:
    frames = sum(one.frames for one in CASES) + 2 * len(CASES)
    empty = sum(1 for one in CASES if one.frames == 5)      # a frame of nothing
    found = figures(files.stderr)
    assert found["frames"] == frames
    assert (found["DNS"], found["link_header"]) == (frames - empty, empty)
    assert found["messages"] == frames - empty


def test_nothing_but_good_pairs_came_out(files: Files) -> None:
    assert {event["status"] for event in files.events if event["tag"].endswith(TX)} == {"success"}
    assert len(files.paired) == len([e for e in files.events if e["tag"].endswith(TX)])


def test_a_length_costs_no_memory(files: Files) -> None:
    """Sixteen megabytes promised are not sixteen megabytes taken."""
    assert files.peaks["gazer:capture"] < 64 * MIB
