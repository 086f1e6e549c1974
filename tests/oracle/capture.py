"""A capture file → its frames, each with the UDP or TCP packet in it or the reason why not.

Formats: pcap in both byte orders with µs or ns, pcapng (any number of sections and interfaces, each
with its own link type and time resolution), plain, gzip or zstd. Several files are one stream: the
frame number, the sensor clock and the fragments that wait run on.

Rules
- The sensor clock follows every frame of the capture, DNS or not. All its comparisons are with the
  clock, not with the frame before: forward by more than a day, or back by more than 1 s, re-bases
  it and counts one jump; back by at most 1 s leaves it standing.
- A frame that completes an IP datagram has that datagram's packet; all other pieces of it have the
  fate `fragment` (fragments.py). What is around the packet is what was around the first piece.
- A frame with no timestamp (pcapng simple packet block) has the time of the frame before it.
- Seconds in pcap files are unsigned: they reach to 2106.

`Undecoded` carries the reason in words; `Frame.fate` is the name that the sensor's account has.
"""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .fragments import Fragments
from .packets import Reader
from .parts import Packet, Piece, Undecoded, Window
from .rules import Rules

__all__ = ["BrokenCapture", "Clock", "Frame", "Packet", "Piece", "Undecoded", "decode", "read"]

NS = 1_000_000_000
DAY = 86400 * NS


class BrokenCapture(Exception):
    """The file is no capture, or breaks off; what came before stands."""


@dataclass(frozen=True)
class Frame:
    """`number` counts from 1 over all files, `clock` is the sensor clock; either `packet` or
    `reason` is there."""

    number: int
    ts_ns: int
    caplen: int
    length: int
    packet: Packet | None
    reason: str | None
    fate: str
    clock: int


@dataclass
class Clock:
    """The sensor clock. `jumps` counts the re-bases."""

    now: int | None = None
    shift: int = 0
    jumps: int = 0

    def advance(self, ts_ns: int) -> int:
        if self.now is None:
            self.now = ts_ns
        step = ts_ns + self.shift - self.now
        if step > DAY or step < -NS:
            self.shift = self.now - ts_ns
            self.jumps += 1
        elif step > 0:
            self.now += step
        return self.now


# ---------------------------------------------------------------------------------- the files


def _load(path: str | Path) -> bytes:
    data = Path(path).read_bytes()
    if data[:2] == b"\x1f\x8b":
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            return _until_broken(stream)
    if data[:4] == b"\x28\xb5\x2f\xfd":
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
        return _until_broken(reader)
    return data


def _until_broken(stream: Any) -> bytes:
    """All that can be decompressed: a cut archive yields what came before the cut."""
    parts = []
    try:
        while part := stream.read(4096):
            parts.append(part)
    except EOFError:
        pass
    return b"".join(parts)


def _pcap(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(ts_ns, length, link type, octets) of each record."""
    if len(data) < 24:
        raise BrokenCapture("pcap: shorter than its header")
    for order in "<>":
        magic = struct.unpack_from(f"{order}I", data)[0]
        if magic in (0xA1B2C3D4, 0xA1B23C4D):
            break
    unit = 1 if magic == 0xA1B23C4D else 1000
    linktype = struct.unpack_from(f"{order}I", data, 20)[0] & 0x03FFFFFF
    at = 24
    while at < len(data):
        if at + 16 > len(data):
            raise BrokenCapture("pcap: cut off in a packet header")
        seconds, fraction, caplen, length = struct.unpack_from(f"{order}4I", data, at)
        at += 16
        if at + caplen > len(data):
            raise BrokenCapture("pcap: cut off in a packet")
        yield seconds * NS + fraction * unit, length, linktype, data[at : at + caplen]
        at += caplen


def _options(body: bytes, order: str) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(body):
        code, size = struct.unpack_from(f"{order}HH", body, at)
        if code == 0:
            break
        found.setdefault(code, body[at + 4 : at + 4 + size])
        at += 4 + size + (-size % 4)
    return found


def _pcapng(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    at, last, order = 0, 0, "<"
    interfaces: list[tuple[int, int, int, int]] = []  # link type, ticks a second, offset, snaplen
    while at < len(data):
        if at + 12 > len(data):
            raise BrokenCapture("pcapng: cut off in a block header")
        if data[at : at + 4] == b"\x0a\x0d\x0d\x0a":
            order = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}.get(
                data[at + 8 : at + 12], "")
            if not order:
                raise BrokenCapture("pcapng: no byte order magic")
            interfaces = []
        kind, size = struct.unpack_from(f"{order}2I", data, at)
        if size < 12 or size % 4 or at + size > len(data):
            raise BrokenCapture("pcapng: cut off in a block, or a bad block length")
        body = data[at + 8 : at + size - 4]
        at += size
        if kind == 1:
            linktype, _, snaplen = struct.unpack_from(f"{order}HHI", body)
            options = _options(body[8:], order)
            resol = options.get(9, b"\x06")[0]
            ticks = 1 << (resol & 0x7F) if resol & 0x80 else 10**resol
            offset = struct.unpack(f"{order}q", options.get(14, bytes(8)))[0]
            interfaces.append((linktype, ticks, offset, snaplen))
        elif kind in (6, 2):
            if kind == 6:
                number, high, low, caplen, length = struct.unpack_from(f"{order}5I", body)
            else:  # the obsolete packet block: 16 bits of interface, 16 of drops
                number, _, high, low, caplen, length = struct.unpack_from(f"{order}HH4I", body)
            if number >= len(interfaces) or 20 + caplen > len(body):
                raise BrokenCapture("pcapng: a packet of no interface, or longer than its block")
            linktype, ticks, offset, _ = interfaces[number]
            last = ((high << 32) | low) * NS // ticks + offset * NS
            yield last, length, linktype, body[20 : 20 + caplen]
        elif kind == 3:
            if not interfaces:
                raise BrokenCapture("pcapng: a packet of no interface")
            length = struct.unpack_from(f"{order}I", body)[0]
            linktype, _, _, snaplen = interfaces[0]
            caplen = min(length, snaplen or length, len(body) - 4)
            yield last, length, linktype, body[4 : 4 + caplen]


def records(path: str | Path) -> Iterator[tuple[int, int, int, bytes]]:
    """(ts_ns, length, link type, octets) of each record of a file."""
    data = _load(path)
    if data[:4] == b"\x0a\x0d\x0d\x0a":
        found = _pcapng(data)
    elif data[:4] in (b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4",
                      b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d"):
        found = _pcap(data)
    else:
        raise BrokenCapture(f"{path}: not a capture file")
    try:
        yield from found
    except struct.error as error:
        raise BrokenCapture(f"pcapng: a block shorter than its fields: {error}") from None


def read(paths: str | Path | Iterable[str | Path], rules: Rules | None = None, *,
         clock: Clock | None = None, fragments: Fragments | None = None) -> Iterator[Frame]:
    """Every frame of the files, in order; raises BrokenCapture behind the last readable one.

    A `clock` and `fragments` of the caller's show, afterwards, what was counted."""
    if isinstance(paths, str | Path):
        paths = [paths]
    rules, number = rules or Rules(), 0
    clock = clock or Clock()
    fragments = fragments or Fragments(
        round(rules.fragments_timeout * NS), round(rules.fragments_copies * NS))
    for path in paths:
        for ts_ns, length, linktype, octets in records(path):
            number += 1
            now = clock.advance(ts_ns)
            fragments.expire(now)
            packet, reason, fate = None, None, "dns"
            try:
                packet = _packet(octets, linktype, len(octets) < length, rules, fragments, now)
            except Undecoded as why:
                reason, fate = str(why), why.fate
            yield Frame(number, ts_ns, len(octets), length, packet, reason, fate, now)


def _packet(octets: bytes, linktype: int, cut: bool, rules: Rules, fragments: Fragments,
            now: int) -> Packet:
    """A piece may complete a datagram, in which there may be a piece of another one."""
    try:
        return decode(octets, linktype, cut=cut, rules=rules)
    except Piece as piece:
        nested = False
        while True:
            try:
                return fragments.take(piece, now, nested)
            except Piece as within:
                piece, nested = within, True


# ----------------------------------------------------------------------------- the link layer


def decode(data: bytes, linktype: int, *, cut: bool, ports: Iterable[int] = (53,),
           rules: Rules | None = None) -> Packet:
    """The packet in a frame; raises Undecoded with the reason, of which Piece is one."""
    reader = Reader(rules or Rules(ports=tuple(ports)))
    w = Window(data, len(data) + (1 << 16 if cut else 0))
    if linktype == 1:
        return reader.ethernet(w)
    if linktype == 113:
        head, rest = w.take(16, "cooked", "link_header")
        return reader.ethertype(int.from_bytes(head[14:16], "big"), rest)
    if linktype == 276:
        head, rest = w.take(20, "cooked v2", "link_header")
        return reader.ethertype(int.from_bytes(head[0:2], "big"), rest)
    if linktype in (0, 108):
        head, rest = w.take(4, "null", "link_header")
        # NULL has the byte order of the machine that captured, which the file does not tell.
        families = {int.from_bytes(head, "big")}
        if linktype == 0:
            families.add(int.from_bytes(head, "little"))
        if families & {2}:
            return reader.ipv4(rest)
        if families & {10, 24, 28, 30}:
            return reader.ipv6(rest)
        raise Undecoded("not ip: address family", "other_protocol")
    if linktype in (12, 14, 101, 228, 229):
        w.take(1, "ip", "ip_header")
        version = data[0] >> 4
        if version not in {228: (4,), 229: (6,)}.get(linktype, (4, 6)):
            raise Undecoded("bad ip header", "ip_header")
        return reader.ipv4(w) if version == 4 else reader.ipv6(w)
    if linktype in (9, 50):
        if data[:2] == b"\xff\x03":
            w = Window(data[2:], w.length - 2)
        return reader.ppp(w, "link_header")
    if linktype == 51:
        if "pppoe" not in reader.rules.tunnels:
            raise Undecoded("pppoe that is not opened", "other_protocol")
        return reader.pppoe(w)
    raise Undecoded(f"link type {linktype}", "link_type")
