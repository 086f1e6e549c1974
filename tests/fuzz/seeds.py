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


LINKS = {ETHERNET: 0, RAW: 4, SLL: 7, SLL2: 8}      # as in packet.pyx


def _ethernet(kind: int, *rest: bytes) -> bytes:
    return bytes(12) + kind.to_bytes(2, "big") + b"".join(rest)


def _ipv4(protocol: int, payload: bytes, fragment: int = 0) -> bytes:
    return struct.pack("!BBHHHBBH8s", 0x45, 0, 20 + len(payload), 7, fragment, 64, protocol, 0,
                       bytes([10, 0, 0, 1, 10, 0, 0, 2])) + payload


def _ipv6(following: int, payload: bytes) -> bytes:
    return struct.pack("!IHBB31xB", 6 << 28, len(payload), following, 64, 1) + payload


def _udp(source: int, destination: int, payload: bytes) -> bytes:
    return struct.pack("!HHHH", source, destination, 8 + len(payload), 0) + payload


def tunnelled() -> Iterator[bytes]:
    """One DNS packet in each encapsulation, and a stack of several."""
    dns = _udp(4000, 53, bytes(12))
    tcp = struct.pack("!HHIIBBHHH", 4000, 53, 1, 2, 0x50, 24, 9, 0, 0) + b"\0\x0c" + bytes(12)
    for inner4 in (_ipv4(17, dns), _ipv4(6, tcp)):
        inner = _ethernet(0x0800, inner4)
        yield inner
        yield _ethernet(0x86DD, _ipv6(17, dns))
        yield _ethernet(0x88A8, b"\0\x07\x81\0\0\x08\x08\0", inner4)
        yield _ethernet(0x8847, b"\0\0\x10\x40\0\0\x21\x40", inner4)
        yield _ethernet(0x8847, b"\0\0\x11\x40", bytes(4), inner)
        yield _ethernet(0x8864, struct.pack("!BBHHH", 0x11, 0, 9, 2 + len(inner4), 0x21), inner4)
        for head, body in (
            (b"\0\0\x08\0", inner4), (b"\xb0\0\x65\x58" + bytes(12), inner),
            (b"\0\0\x88\xbe", inner),
            (b"\x10\0\x88\xbe" + bytes(4) + b"\x10\0\0\x07" + bytes(4), inner),
            (b"\x10\0\x22\xeb" + bytes(4) + b"\x20\0\0\x07" + bytes(7) + b"\1" + bytes(8), inner),
            (b"\x30\x81\x88\x0b" + struct.pack("!HHII", 4 + len(inner4), 9, 1, 2)
             + b"\xff\3\0\x21", inner4)):
            yield _ethernet(0x0800, _ipv4(47, head + body))
        yield _ethernet(0x0800, _ipv4(17, _udp(9, 4789, b"\x08\0\0\0\0\0\x2a\0" + inner)))
        yield _ethernet(0x0800, _ipv4(17, _udp(
            9, 6081, b"\1\0\x65\x58\0\0\x2a\0" + bytes(4) + inner)))
        yield _ethernet(0x86DD, _ipv6(4, _ipv4(4, inner4)))
        yield _ethernet(0x0800, _ipv4(1, b"\3\3" + bytes(6) + inner4))
        yield _ethernet(0x86DD, _ipv6(0, b"\x3c" + bytes(7) + b"\x2c" + bytes(7) + b"\x11\0\0\1"
                                      + bytes(4) + dns))


def packets() -> Iterator[bytes]:
    for frame in tunnelled():
        yield bytes([0x30, 0x7F, 0]) + frame
        yield bytes([0xF0, 0x7F, 1]) + frame
    for path in pcaps():
        for linktype, _, _, frame in frames(path):
            yield bytes([0x30 | LINKS[linktype], 0x7F, 0]) + frame[:200]


def streams() -> Iterator[bytes]:
    """Queries and replies over TCP, whole, in parts, and with a part that comes late."""
    tiny = b"\0\x11" + struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + b"\0\0\1\0\1"
    answer = tiny[:4] + b"\x81\x80" + tiny[6:]

    def segment(who: int, flags: int, octets: bytes = b"", ahead: int = 0) -> bytes:
        return bytes([who, flags, ahead & 255, 0, len(octets)]) + octets

    for who in (0, 8, 16, 2):
        hello = segment(who, 2) + segment(who | 1, 18)
        end = segment(who, 17) + segment(who | 1, 17) + segment(who | 1, 4)
        yield hello + segment(who, 24, tiny * 3) + segment(who | 1, 24, answer * 2) + end
        yield hello + b"".join(segment(who, 24, tiny[i:i + 1]) for i in range(len(tiny))) + end
        yield hello + segment(who, 24, tiny[9:], 9) + segment(who, 24, tiny[:9], -128 + 100) + end
        yield segment(who, 24, answer * 9) + segment(who | 0xC0, 24, tiny) + end


def fragments() -> Iterator[bytes]:
    for who in (0, 8, 64):
        first, middle = bytes([who | 16, 0, 4, 0]), bytes([who | 16, 4, 4, 0])
        last = bytes([who, 8, 2, 3])
        yield first + middle + last
        yield last + first + first + middle
        yield first + bytes([who | 48, 2, 4, 0]) + last
        yield bytes([who | 16, 0, 4, 32]) + last + bytes([who | 16, 4, 4, 0x18])
        yield bytes([who, 31, 255, 64]) + b"".join(bytes([who | 16, n, 255, 64]) for n in range(31))


def engine() -> Iterator[bytes]:
    """Queries with their replies over all that carries them, and what a client does besides."""
    def frame(what: int, content: bytes = b"", more: int = 0) -> bytes:
        return bytes([what, more, 0, 0]) + len(content).to_bytes(2, "big") + content

    pairs = []
    for seed in messages():
        if seed[0] == 0x0C:
            length = int.from_bytes(seed[1:3], "big")
            pairs.append((seed[3:3 + length], seed[3 + length:]))
    for number, (query, reply) in enumerate(pair for pair in pairs[::9] if len(pair[1]) < 1400):
        start = bytes([number & 3])
        six = 8 if number & 4 else 0
        yield start + frame(six, query) + frame(six | 1, reply) + frame(six | 1, reply)
        yield start + frame(16, query) + frame(16, query) + frame(0xC0, query)
        yield start + frame(5, reply) + frame(6, query) + frame(1, reply)
        framed = [len(wire).to_bytes(2, "big") + wire for wire in (query, reply)]
        yield start + b"".join((
            frame(2, more=2), frame(3, more=18), frame(2, framed[0], 24), frame(3, framed[1], 24),
            frame(3, framed[1][:9], 24), frame(2, more=17), frame(3, more=4)))
        datagram = _udp(4000, 53, query)
        yield start + frame(7, datagram[:16], 0x80) + frame(7, datagram[16:], 2)
    for tunnel in tunnelled():
        yield b"\1" + frame(4, tunnel) + frame(4, tunnel)
    for path in ("transfers.pcap", "tcp.pcap", "vlan.pcap", "fragments.pcap"):
        every = [data for _, _, _, data in frames(CAPTURES / path) if len(data) <= 1500]
        for at in range(0, len(every), 7):
            yield b"\3" + b"".join(frame(4, data) for data in every[at:at + 7])


SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "captures": captures, "engine": engine, "fragments": fragments, "message": messages,
    "packet": packets, "streams": streams}


def make(target: str, folder: Path) -> int:
    """Write the target's seeds, each once; returns how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for seed in SEEDS[target]():
        (folder / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    return len(list(folder.iterdir()))
