"""Inputs for the fuzz targets to begin with, made from the real traffic in tests/captures.

Each target's docstring has the form of its inputs.  scripts/fuzz.py calls `make`; nothing of this
is kept, since what is new to a target ends up in tests/corpora.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CAPTURES = ROOT / "tests" / "captures"
ETHERNET, RAW, SLL, SLL2 = 1, 101, 113, 276


def frames(path: Path) -> Iterator[tuple[int, int, int, bytes]]:
    """(link type, time in ns, length on the wire, octets) of a little-endian pcap."""
    data = path.read_bytes()
    magic, _, _, _, _, _, linktype = struct.unpack_from("<IHHiIII", data)
    assert magic in (0xA1B2C3D4, 0xA1B23C4D), path
    unit = 1 if magic == 0xA1B23C4D else 1000
    at = 24
    while at + 16 <= len(data):
        seconds, fraction, caplen, length = struct.unpack_from("<IIII", data, at)
        yield linktype, seconds * 10**9 + fraction * unit, length, data[at + 16:at + 16 + caplen]
        at += 16 + caplen


def pcaps() -> list[Path]:
    return sorted(CAPTURES.glob("*.pcap"))


def datagram(linktype: int, frame: bytes) -> tuple[int, bytes] | None:
    """(client's port, UDP payload) of a plain frame with port 53: enough for seeds."""
    at = {ETHERNET: 14, RAW: 0, SLL: 16, SLL2: 20}[linktype]
    while linktype == ETHERNET and frame[at - 2:at] in (b"\x81\0", b"\x88\xa8"):
        at += 4
    if frame[at] >> 4 == 4:
        protocol, end = frame[at + 9], at + 4 * (frame[at] & 15)
        if struct.unpack_from("!H", frame, at + 6)[0] & 0x3FFF:
            return None
    else:
        protocol, end = frame[at + 6], at + 40
    if protocol != 17 or len(frame) < end + 8:
        return None
    source, destination = struct.unpack_from("!HH", frame, end)
    if 53 not in (source, destination):
        return None
    return source if destination == 53 else destination, frame[end + 8:]


def messages() -> Iterator[bytes]:
    """Each message over UDP alone, and each query with the reply to it."""
    waiting: dict[tuple[int, bytes], bytes] = {}
    for path in pcaps():
        for linktype, _, _, frame in frames(path):
            try:
                found = datagram(linktype, frame)
            except (IndexError, struct.error):
                continue
            if found is None:
                continue
            port, wire = found
            yield b"\0" + wire
            yield b"\x08" + wire
            yield b"\x0b" + wire
            if len(wire) < 12:
                continue
            if wire[2] & 0x80:
                query = waiting.get((port, wire[:2]), b"")
                yield b"\x0c" + len(query).to_bytes(2, "big") + query + wire
            else:
                waiting[port, wire[:2]] = wire


def _pcapng(picked: list[tuple[int, int, int, bytes]], order: str) -> bytes:
    def block(kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        length = struct.pack(order + "I", len(body) + 12)
        return struct.pack(order + "I", kind) + length + body + length

    out = block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
    options = (struct.pack(order + "HHB3xHHqI", 9, 1, 9, 14, 8, -3600, 0),
               struct.pack(order + "HHB3xI", 9, 1, 0x80 | 20, 0), b"")
    for option in options:
        out += block(1, struct.pack(order + "HHI", picked[0][0], 0, 96) + option)
    out += block(5, bytes(8))       # statistics: of no use here
    for n, (_, time, length, data) in enumerate(picked):
        stamp = (time >> 32, time & 0xFFFFFFFF)
        head = struct.pack(order + "IIIII", n % 3, *stamp, len(data), length)
        if n == 3:
            out += block(2, struct.pack(order + "HHIIII", 0, 9, *stamp, len(data), length) + data)
        elif n == 4:
            out += block(3, struct.pack(order + "I", len(data[:96])) + data[:96])
        else:
            out += block(6, head + data)
    return out


def captures() -> Iterator[bytes]:
    for path in pcaps():
        picked = list(frames(path))[:6]
        if not picked:
            continue
        linktype = picked[0][0]
        for order, magic in (("<", 0xA1B2C3D4), (">", 0xA1B23C4D), ("<", 0xA1B2CD34)):
            out = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, linktype)
            for _, time, length, data in picked:
                out += struct.pack(order + "IIII", time // 10**9, time % 10**6, len(data), length)
                out += bytes(8 if magic == 0xA1B2CD34 else 0) + data
            yield b"\0" + out
            yield b"\2" + out[:-7]
        for order in "<>":
            yield b"\1" + _pcapng(picked, order)
            yield b"\3" + _pcapng(picked, order) + _pcapng(picked[:2], ">")
    yield b"\1" + (CAPTURES / "mixed.pcapng").read_bytes()[:12000]


SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {"captures": captures, "message": messages}


def make(target: str, folder: Path) -> int:
    """Write the target's seeds, each once; returns how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for seed in SEEDS[target]():
        (folder / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    return len(list(folder.iterdir()))
