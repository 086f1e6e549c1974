"""Hand-made tunnels, fragments and TCP connections, for tests; what they wrap is made by build.py.

    inner = build.frame(build.udp(...))
    outer = build.frame(build.udp(a, 50000, b, 4789, wraps.vxlan(inner, vni=42)))
    for piece in wraps.pieces(packet, 512): ...
    talk = wraps.Talk(("198.51.100.7", 4000), ("192.0.2.53", 53))
    frames = [*talk.opening(), *talk.says(0, wraps.framed(query)), *talk.closing()]
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator, Sequence

from . import build

End = tuple[str, int]


# ------------------------------------------------------------------------------------- tunnels


def ip(src: str, dst: str, protocol: int, payload: bytes) -> bytes:
    """An IP packet of the addresses' family."""
    if ipaddress.ip_address(src).version == 4:
        return build.ipv4(src, dst, protocol, payload)
    return build.ipv6(src, dst, protocol, payload)


def ip_in_ip(src: str, dst: str, packet: bytes) -> bytes:
    return ip(src, dst, 4 if packet[0] >> 4 == 4 else 41, packet)


def mpls(inner: bytes, labels: Sequence[int] = (16,), *, control_word: bool = False) -> bytes:
    """What follows EtherType 0x8847: `inner` is an IP packet, or with a control word a frame."""
    stack = b"".join(struct.pack("!I", label << 12 | (at == len(labels) - 1) << 8 | 64)
                     for at, label in enumerate(labels))
    return stack + (bytes(4) if control_word else b"") + inner


def gre(inner: bytes, protocol: int, *, key: int | None = None, sequence: int | None = None,
        checksum: bool = False, version: int = 0, acknowledgement: int | None = None) -> bytes:
    """RFC 2784 and 2890; version 1 is RFC 2637's, whose key is the call id alone."""
    flags = (0x8000 * checksum | 0x2000 * (key is not None) | 0x1000 * (sequence is not None)
             | 0x0080 * (acknowledgement is not None) | version)
    if version == 1 and key is not None:
        key |= len(inner) << 16
    out = struct.pack("!HH", flags, protocol) + bytes(4 * checksum)
    for number in (key, sequence, acknowledgement):
        if number is not None:
            out += struct.pack("!I", number)
    return out + inner


def erspan(frame: bytes, type: int = 2, session: int = 7, *, subheader: bool = False) -> bytes:
    """A GRE payload with its GRE header."""
    if type == 1:
        return gre(frame, 0x88BE)
    if type == 2:
        return gre(struct.pack("!HHI", 0x1000, session, 9) + frame, 0x88BE, sequence=5)
    head = struct.pack("!HHIHH", 0x2000, session, 123456, 0, int(subheader))
    return gre(head + bytes(8 * subheader) + frame, 0x22EB, sequence=5)


def vxlan(frame: bytes, vni: int, *, flags: int = 0x08) -> bytes:
    return struct.pack("!B3xI", flags, vni << 8) + frame


def geneve(inner: bytes, vni: int, *, protocol: int = 0x6558, options: bytes = b"") -> bytes:
    return struct.pack("!BBHI", len(options) // 4, 0, protocol, vni << 8) + options + inner


# ----------------------------------------------------------------------------------- fragments


def pieces(packet: bytes, size: int, ident: int = 1) -> list[bytes]:
    """An IP packet (without options) as fragments with `size` octets of payload each."""
    if packet[0] >> 4 == 4:
        src, dst = (str(ipaddress.IPv4Address(packet[at : at + 4])) for at in (12, 16))
        body = packet[20:]
        return [build.ipv4(src, dst, packet[9], body[at : at + size], ident=ident, offset=at,
                           more=at + size < len(body)) for at in range(0, len(body), size)]
    src, dst = (str(ipaddress.IPv6Address(packet[at : at + 16])) for at in (8, 24))
    body = packet[40:]
    return [build.ipv6(src, dst, packet[6], body[at : at + size], extensions=[
        (44, struct.pack("!HI", at | (at + size < len(body)), ident))])
        for at in range(0, len(body), size)]


# ----------------------------------------------------------------------------- TCP connections


FIN, SYN, RST, ACK = 1, 2, 4, 16


def framed(*messages: bytes) -> bytes:
    """As they stand in a stream."""
    return b"".join(struct.pack("!H", len(message)) + message for message in messages)


class Talk:
    """Both sides of a connection, 0 (the client) and 1; each call gives IP packets in order."""

    def __init__(self, client: End, server: End, starts: tuple[int, int] = (1000, 900)) -> None:
        self.ends = (client, server)
        self.next = list(starts)

    def segment(self, side: int, payload: bytes = b"", flags: int = ACK, *, back: int = 0,
                ack: int | None = None) -> bytes:
        """`back`: so many octets before what is next; that is then no progress."""
        sequence = (self.next[side] - back) % (1 << 32)
        if not back:
            step = len(payload) + bool(flags & SYN) + bool(flags & FIN)
            self.next[side] = (self.next[side] + step) % (1 << 32)
        return build.tcp(*self.ends[side], *self.ends[1 - side], payload, seq=sequence,
                         ack=(self.next[1 - side] if ack is None else ack) if flags & ACK else 0,
                         flags=flags)

    def opening(self) -> list[bytes]:
        return [self.segment(0, flags=SYN), self.segment(1, flags=SYN | ACK), self.segment(0)]

    def says(self, side: int, octets: bytes, size: int = 1460) -> Iterator[bytes]:
        """In segments of `size` octets, each of them acknowledged."""
        for at in range(0, len(octets), size):
            yield self.segment(side, octets[at : at + size])
            yield self.segment(1 - side)

    def closing(self) -> list[bytes]:
        return [self.segment(0, flags=FIN | ACK), self.segment(1, flags=FIN | ACK),
                self.segment(0)]
