"""A capture file → its frames, each with its UDP packet on a DNS port or the reason why not.

Formats: pcap in both byte orders with µs or ns, pcapng (any number of sections and interfaces, each
with its own link type and time resolution), plain, gzip or zstd. Several files are one stream: the
frame number runs on.

Rules
- What a snaplen cut off is missing, not wrong: lengths may point beyond the captured octets of a
  cut frame. In a whole frame they may not, and the frame is not decoded ("bad length").
- Whatever comes behind the length that IP gives is padding. UDP's own length counts for the
  payload.
- At most 16 VLAN tags, and 16 IPv6 extension headers; more of them are no traffic to follow.
- A VLAN tag is the 12 bits of its VID; priority and DEI may differ by direction, so they do not
  count. A priority tag (VID 0) is a tag like any other.
- Any IP fragment is a fragment, the first one too; an IPv6 atomic fragment (offset 0, no more to
  come: RFC 6946) is whole, hence a packet.
- A frame with no timestamp (pcapng simple packet block) has the time of the frame before it.
- Seconds in pcap files are unsigned: they reach to 2106.
"""

from __future__ import annotations

import gzip
import io
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NS = 1_000_000_000


class BrokenCapture(Exception):
    """The file is no capture, or breaks off; what came before stands."""


@dataclass(frozen=True)
class Packet:
    """A UDP datagram with a DNS port. `length` is the payload's on the wire."""

    src: str
    sport: int
    dst: str
    dport: int
    vlan: tuple[int, ...]
    payload: bytes
    length: int

    @property
    def cut(self) -> bool:
        return len(self.payload) < self.length


@dataclass(frozen=True)
class Frame:
    """`number` counts from 1 over all files; either `packet` or `reason` is there."""

    number: int
    ts_ns: int
    caplen: int
    length: int
    packet: Packet | None
    reason: str | None


class Undecoded(Exception):
    """Carries the reason, in words."""


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


def read(paths: str | Path | Iterable[str | Path], ports: Iterable[int] = (53,)) -> Iterator[Frame]:
    """Every frame of the files, in order; raises BrokenCapture behind the last readable one."""
    if isinstance(paths, str | Path):
        paths = [paths]
    wanted, number = frozenset(ports), 0
    for path in paths:
        data = _load(path)
        if data[:4] == b"\x0a\x0d\x0d\x0a":
            records = _pcapng(data)
        elif data[:4] in (b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4",
                          b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d"):
            records = _pcap(data)
        else:
            raise BrokenCapture(f"{path}: not a capture file")
        try:
            for ts_ns, length, linktype, octets in records:
                number += 1
                packet, reason = None, None
                try:
                    packet = decode(octets, linktype, cut=len(octets) < length, ports=wanted)
                except Undecoded as why:
                    reason = str(why)
                yield Frame(number, ts_ns, len(octets), length, packet, reason)
        except struct.error as error:
            raise BrokenCapture(f"pcapng: a block shorter than its fields: {error}") from None


# ----------------------------------------------------------------------------- the link layer


def _take(data: bytes, size: int, what: str) -> tuple[bytes, bytes]:
    if len(data) < size:
        raise Undecoded(f"too short: {what}")
    return data[:size], data[size:]


def decode(data: bytes, linktype: int, *, cut: bool, ports: frozenset[int]) -> Packet:
    """The UDP packet in a frame; raises Undecoded with the reason."""
    vlan: tuple[int, ...] = ()
    if linktype == 1:
        head, rest = _take(data, 14, "ethernet")
        version, rest, vlan = _ethertype(int.from_bytes(head[12:14], "big"), rest)
    elif linktype == 113:
        head, rest = _take(data, 16, "cooked")
        version, rest, vlan = _ethertype(int.from_bytes(head[14:16], "big"), rest)
    elif linktype == 276:
        head, rest = _take(data, 20, "cooked v2")
        version, rest, vlan = _ethertype(int.from_bytes(head[0:2], "big"), rest)
    elif linktype in (0, 108):
        head, rest = _take(data, 4, "null")
        # NULL has the byte order of the machine that captured, which the file does not tell.
        families = {int.from_bytes(head, "big")}
        if linktype == 0:
            families.add(int.from_bytes(head, "little"))
        if families & {2}:
            version = 4
        elif families & {10, 24, 28, 30}:
            version = 6
        else:
            raise Undecoded("not ip: address family")
    elif linktype in (12, 14, 101, 228, 229):
        _take(data, 1, "ip")
        version, rest = data[0] >> 4, data
        if version != {228: 4, 229: 6}.get(linktype, version):
            raise Undecoded("bad ip header")
    elif linktype in (9, 50):
        version, rest = _ppp(data[2:] if data[:2] == b"\xff\x03" else data)
    elif linktype == 51:
        version, rest = _pppoe(data)
    else:
        raise Undecoded(f"link type {linktype}")
    if version == 4:
        return _ipv4(rest, vlan, cut, ports)
    if version == 6:
        return _ipv6(rest, vlan, cut, ports)
    raise Undecoded("bad ip header")


def _ethertype(kind: int, data: bytes) -> tuple[int, bytes, tuple[int, ...]]:
    vlan: list[int] = []
    while kind in (0x8100, 0x88A8, 0x9100):
        tag, data = _take(data, 4, "vlan tag")
        tci, kind = struct.unpack("!HH", tag)
        vlan.append(tci & 0x0FFF)
        if len(vlan) > 16:
            raise Undecoded("too many vlan tags")
    if kind == 0x0800:
        return 4, data, tuple(vlan)
    if kind == 0x86DD:
        return 6, data, tuple(vlan)
    if kind == 0x8864:
        version, data = _pppoe(data)
        return version, data, tuple(vlan)
    raise Undecoded(f"not ip: ethertype {kind:#06x}")


def _pppoe(data: bytes) -> tuple[int, bytes]:
    head, data = _take(data, 6, "pppoe")
    if head[0] != 0x11 or head[1] != 0:
        raise Undecoded("pppoe that is no session data")
    return _ppp(data[: int.from_bytes(head[4:6], "big")])


def _ppp(data: bytes) -> tuple[int, bytes]:
    _take(data, 1, "ppp")
    # RFC 1661, 6.5: a protocol number may be compressed to one octet, which is then odd.
    size = 1 if data[0] & 1 else 2
    head, data = _take(data, size, "ppp")
    protocol = int.from_bytes(head, "big")
    if protocol == 0x21:
        return 4, data
    if protocol == 0x57:
        return 6, data
    raise Undecoded(f"not ip: ppp protocol {protocol:#06x}")


# ---------------------------------------------------------------------------------- IP and UDP


def _ipv4(data: bytes, vlan: tuple[int, ...], cut: bool, ports: frozenset[int]) -> Packet:
    _take(data, 20, "ipv4")
    size = (data[0] & 15) * 4
    if data[0] >> 4 != 4 or size < 20:
        raise Undecoded("bad ip header")
    total, _, words = struct.unpack_from("!HHH", data, 2)
    if total < size:
        raise Undecoded("bad length")
    if total > len(data) and not cut:
        raise Undecoded("bad length")
    if words & 0x3FFF:  # more to come, or not the first
        raise Undecoded("fragment")
    _take(data, size, "ipv4 options")
    src = socket.inet_ntop(socket.AF_INET, data[12:16])
    dst = socket.inet_ntop(socket.AF_INET, data[16:20])
    return _transport(data[9], data[size:total], total - size, (src, dst), vlan, ports)


def _ipv6(data: bytes, vlan: tuple[int, ...], cut: bool, ports: frozenset[int]) -> Packet:
    _take(data, 40, "ipv6")
    if data[0] >> 4 != 6:
        raise Undecoded("bad ip header")
    length = int.from_bytes(data[4:6], "big")
    if length > len(data) - 40 and not cut:
        raise Undecoded("bad length")
    src = socket.inet_ntop(socket.AF_INET6, data[8:24])
    dst = socket.inet_ntop(socket.AF_INET6, data[24:40])
    kind, body = data[6], data[40 : 40 + length]
    headers = 0
    while kind in (0, 43, 44, 51, 60, 135, 139, 140):
        headers += 1
        if headers > 16:
            raise Undecoded("too many extension headers")
        if length < 8:
            raise Undecoded("bad length")
        _take(body, 8, "ipv6 extension header")
        following = body[0]
        if kind == 44:
            size = 8
            if int.from_bytes(body[2:4], "big") & 0xFFF9:
                raise Undecoded("fragment")
        elif kind == 51:
            size = (body[1] + 2) * 4
        else:
            size = (body[1] + 1) * 8
        if size > length:
            raise Undecoded("bad length")
        _, body = _take(body, size, "ipv6 extension header")
        length -= size
        kind = following
    return _transport(kind, body, length, (src, dst), vlan, ports)


def _transport(protocol: int, data: bytes, length: int, ends: tuple[str, str],
               vlan: tuple[int, ...], ports: frozenset[int]) -> Packet:
    """`length` is what IP says there is; `data` what of it was captured."""
    if protocol == 6:
        raise Undecoded("tcp")
    if protocol != 17:
        raise Undecoded(f"not udp: protocol {protocol}")
    if length < 8:
        raise Undecoded("bad length")
    head, data = _take(data, 8, "udp")
    sport, dport, size, _ = struct.unpack("!4H", head)
    if sport not in ports and dport not in ports:
        raise Undecoded("other ports")
    if not 8 <= size <= length:
        raise Undecoded("bad length")
    return Packet(ends[0], sport, ends[1], dport, vlan, data[: size - 8], size - 8)
