"""Hand-made frames, messages and capture files, for tests.

The parts nest as the headers do, innermost first:

    query = build.query("example.com.", "A", id=7)
    reply = build.reply(query, "example.com. 60 IN A 192.0.2.1")
    packet = build.udp("198.51.100.1", 4000, "192.0.2.53", 53, query)     # IP packet, v4 or v6
    frame = build.frame(packet, vlan=(100, 200))                          # Ethernet
    build.write_pcap(path, [(ts_ns, frame), (ts_ns, frame, 1500)])        # length on the wire
    build.write_pcapng(path, [(ts_ns, frame, None, 1)], [Interface(), Interface(tsresol=6)])

A path that ends in `.gz` or `.zst` is compressed. Lengths and checksums are right unless a test
asks for something else. Times are integer nanoseconds since 1970.
"""

from __future__ import annotations

import gzip
import ipaddress
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

# Link types (https://www.tcpdump.org/linktypes.html)
NULL, ETHERNET, PPP, PPP_HDLC, PPP_ETHER = 0, 1, 9, 50, 51
RAW, LOOP, SLL, IPV4, IPV6, SLL2 = 101, 108, 113, 228, 229, 276

MAC_A, MAC_B = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")

Entry = tuple[int, bytes] | tuple[int, bytes, int | None] | tuple[int, bytes, int | None, int]


# ------------------------------------------------------------------------------- DNS messages


def query(name: str, rdtype: str = "A", *, id: int = 1, rdclass: str = "IN", rd: bool = True,
          edns: int | None = None, do: bool = False) -> bytes:
    """A query's wire form; `edns` is the UDP size to offer (None: no OPT record)."""
    message = dns.message.make_query(name, rdtype, rdclass, id=id)
    if not rd:
        message.flags &= ~dns.flags.RD
    if edns is not None:
        message.use_edns(0, payload=edns, ednsflags=dns.flags.DO if do else 0)
    return message.to_wire()


def reply(wire: bytes, *answers: str, authority: Sequence[str] = (), additional: Sequence[str] = (),
          rcode: str = "NOERROR", flags: str = "QR RD RA") -> bytes:
    """The reply to the query `wire`; records as zone-file lines (`name ttl class type data`)."""
    message = dns.message.make_response(dns.message.from_wire(wire))
    message.flags = dns.flags.from_text(flags)
    message.set_rcode(dns.rcode.from_text(rcode))
    for section, lines in ((message.answer, answers), (message.authority, authority),
                           (message.additional, additional)):
        for line in lines:
            name, ttl, rdclass, rdtype, data = line.split(None, 4)
            section.append(dns.rrset.from_text(name, int(ttl), rdclass, rdtype, data))
    return message.to_wire(max_size=65535)


def header(id: int = 1, flags: int = 0x0100, counts: Sequence[int] = (1, 0, 0, 0)) -> bytes:
    """The twelve octets that start a message, for messages put together by hand."""
    return struct.pack("!6H", id, flags, *counts)


def labels(*parts: bytes | str) -> bytes:
    """A name's wire form from its labels, uncompressed: labels("www", "example", "com")."""
    octets = [p.encode("ascii") if isinstance(p, str) else p for p in parts]
    return b"".join(bytes([len(p)]) + p for p in octets) + b"\0"


def question(name: bytes, rdtype: int = 1, rdclass: int = 1) -> bytes:
    return name + struct.pack("!2H", rdtype, rdclass)


def record(name: bytes, rdtype: int, data: bytes, *, ttl: int = 60, rdclass: int = 1,
           rdlength: int | None = None) -> bytes:
    length = len(data) if rdlength is None else rdlength
    return name + struct.pack("!2HIH", rdtype, rdclass, ttl, length) + data


# --------------------------------------------------------------------------------- IP packets


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def ipv4(src: str, dst: str, protocol: int, payload: bytes, *, options: bytes = b"",
         ident: int = 0, offset: int = 0, more: bool = False, total: int | None = None) -> bytes:
    """`offset` in octets; `options` is padded to four octets; `total` overrides the length."""
    options += b"\0" * (-len(options) % 4)
    size = 20 + len(options)
    words = (0x4000 if not offset and not more else 0) | (0x2000 if more else 0) | offset // 8
    head = struct.pack("!BBHHHBBH4s4s", 0x40 | size // 4, 0,
                       size + len(payload) if total is None else total, ident, words, 64, protocol,
                       0, ipaddress.IPv4Address(src).packed, ipaddress.IPv4Address(dst).packed)
    head += options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ipv6(src: str, dst: str, protocol: int, payload: bytes, *,
         extensions: Sequence[tuple[int, bytes]] = (), length: int | None = None) -> bytes:
    """`extensions` are (type, what follows "next header" and "length"), padded to eight octets.

    Type 44 is the fragment header, whose second octet is reserved; type 51 (AH) counts in four
    octets. Both are written as their RFCs say.
    """
    chain = [kind for kind, _ in extensions] + [protocol]
    body = b""
    for following, (kind, content) in zip(chain[1:], extensions, strict=True):
        content += b"\0" * (-(len(content) + 2) % 8)
        if kind == 44:
            size = 0
        elif kind == 51:
            size = (len(content) + 2) // 4 - 2
        else:
            size = (len(content) + 2) // 8 - 1
        body += bytes([following, size]) + content
    body += payload
    return struct.pack("!IHBB16s16s", 0x60000000, len(body) if length is None else length,
                       chain[0], 64, ipaddress.IPv6Address(src).packed,
                       ipaddress.IPv6Address(dst).packed) + body


def datagram(src: str, sport: int, dst: str, dport: int, payload: bytes, *,
             length: int | None = None) -> bytes:
    """UDP header and payload, the checksum over the pseudo header of src and dst included."""
    a, b = ipaddress.ip_address(src).packed, ipaddress.ip_address(dst).packed
    size = 8 + len(payload) if length is None else length
    plain = struct.pack("!4H", sport, dport, size, 0) + payload
    pseudo = a + b + (struct.pack("!BBH", 0, 17, size) if len(a) == 4
                      else struct.pack("!IHBB", size, 0, 0, 17))
    return plain[:6] + struct.pack("!H", checksum(pseudo + plain) or 0xFFFF) + plain[8:]


def udp(src: str, sport: int, dst: str, dport: int, payload: bytes, *, options: bytes = b"",
        extensions: Sequence[tuple[int, bytes]] = (), length: int | None = None) -> bytes:
    """A whole IP packet; the addresses say which version. `length` overrides UDP's."""
    body = datagram(src, sport, dst, dport, payload, length=length)
    if ipaddress.ip_address(src).version == 4:
        return ipv4(src, dst, 17, body, options=options)
    return ipv6(src, dst, 17, body, extensions=extensions)


def tcp(src: str, sport: int, dst: str, dport: int, payload: bytes = b"", *, seq: int = 0,
        ack: int = 0, flags: int = 0x18) -> bytes:
    """A whole IP packet with one TCP segment (no options, checksum left at zero)."""
    body = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 0x50, flags, 65535, 0, 0) + payload
    if ipaddress.ip_address(src).version == 4:
        return ipv4(src, dst, 6, body)
    return ipv6(src, dst, 6, body)


# -------------------------------------------------------------------------------- link layers


def _ethertype(packet: bytes) -> int:
    return 0x0800 if packet[0] >> 4 == 4 else 0x86DD


def _tagged(packet: bytes, vlan: Sequence[int], tpids: Sequence[int] | None,
            ethertype: int) -> tuple[int, bytes]:
    """The first EtherType and what follows it, for a stack of tags, outermost first."""
    if tpids is None:
        tpids = [0x8100] * len(vlan)
    types = [*tpids, ethertype]
    rest = b"".join(struct.pack("!2H", tci, following)
                    for tci, following in zip(vlan, types[1:], strict=True))
    return types[0], rest + packet


def frame(packet: bytes, *, vlan: Sequence[int] = (), tpids: Sequence[int] | None = None,
          ethertype: int | None = None, trailer: bytes = b"") -> bytes:
    """Ethernet II; `vlan` are the tags' TCI values, outermost first; `tpids` one EtherType each."""
    first, rest = _tagged(packet, vlan, tpids,
                          _ethertype(packet) if ethertype is None else ethertype)
    return MAC_B + MAC_A + struct.pack("!H", first) + rest + trailer


def pppoe(packet: bytes, *, session: int = 1, code: int = 0) -> bytes:
    """A PPPoE session packet (RFC 2516): `build.frame(build.pppoe(p), ethertype=0x8864)`."""
    inner = struct.pack("!H", 0x0021 if packet[0] >> 4 == 4 else 0x0057) + packet
    return struct.pack("!BBHH", 0x11, code, session, len(inner)) + inner


def ppp(packet: bytes, *, hdlc: bool = False) -> bytes:
    """PPP (RFC 1661), with address and control octets (RFC 1662) when `hdlc`."""
    inner = struct.pack("!H", 0x0021 if packet[0] >> 4 == 4 else 0x0057) + packet
    return (b"\xff\x03" if hdlc else b"") + inner


def sll(packet: bytes, *, vlan: Sequence[int] = ()) -> bytes:
    """Linux cooked v1."""
    first, rest = _tagged(packet, vlan, None, _ethertype(packet))
    return struct.pack("!HHH8sH", 0, 1, 6, MAC_A + b"\0\0", first) + rest


def sll2(packet: bytes, *, vlan: Sequence[int] = ()) -> bytes:
    """Linux cooked v2."""
    first, rest = _tagged(packet, vlan, None, _ethertype(packet))
    return struct.pack("!HHIHBB8s", first, 0, 2, 1, 0, 6, MAC_A + b"\0\0") + rest


def null(packet: bytes, *, byteorder: str = "<", inet6: int = 24) -> bytes:
    """BSD loopback: the family in the writer's byte order (`>` with link type LOOP)."""
    return struct.pack(f"{byteorder}I", 2 if packet[0] >> 4 == 4 else inet6) + packet


# ------------------------------------------------------------------------------ capture files


def _store(path: str | Path, data: bytes) -> None:
    path = Path(path)
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    elif path.suffix == ".zst":
        import zstandard

        data = zstandard.ZstdCompressor().compress(data)
    path.write_bytes(data)


def _fields(entry: Entry) -> tuple[int, bytes, int, int]:
    ts_ns, data = entry[0], entry[1]
    length = entry[2] if len(entry) > 2 and entry[2] is not None else len(data)
    return ts_ns, data, length, entry[3] if len(entry) > 3 else 0


def pcap(packets: Iterable[Entry], *, linktype: int = ETHERNET, byteorder: str = "<",
         nanoseconds: bool = False, snaplen: int = 262144) -> bytes:
    """A classic pcap file's octets."""
    magic, unit = (0xA1B23C4D, 1) if nanoseconds else (0xA1B2C3D4, 1000)
    parts = [struct.pack(f"{byteorder}IHHiIII", magic, 2, 4, 0, 0, snaplen, linktype)]
    for entry in packets:
        ts_ns, data, length, _ = _fields(entry)
        seconds, rest = divmod(ts_ns, 1_000_000_000)
        parts.append(struct.pack(f"{byteorder}4I", seconds, rest // unit, len(data), length) + data)
    return b"".join(parts)


def write_pcap(path: str | Path, packets: Iterable[Entry], *, linktype: int = ETHERNET,
               byteorder: str = "<", nanoseconds: bool = False, snaplen: int = 262144) -> None:
    """Writes (ts_ns, octets[, length on the wire]) entries; see `pcap`."""
    _store(path, pcap(packets, linktype=linktype, byteorder=byteorder, nanoseconds=nanoseconds,
                      snaplen=snaplen))


@dataclass(frozen=True)
class Interface:
    """One interface of a pcapng section. `tsresol` is the option's octet: 6 is µs, 9 is ns,
    0x80 | n is 2^-n seconds; None leaves the option out (µs). `tsoffset` is in seconds."""

    linktype: int = ETHERNET
    snaplen: int = 0
    tsresol: int | None = 9
    tsoffset: int = 0

    def ticks(self, ts_ns: int) -> int:
        resol = 6 if self.tsresol is None else self.tsresol
        per_second = 1 << (resol & 0x7F) if resol & 0x80 else 10**resol
        return (ts_ns - self.tsoffset * 1_000_000_000) * per_second // 1_000_000_000


def _block(byteorder: str, kind: int, body: bytes) -> bytes:
    body += b"\0" * (-len(body) % 4)
    size = len(body) + 12
    return struct.pack(f"{byteorder}2I", kind, size) + body + struct.pack(f"{byteorder}I", size)


def pcapng(packets: Iterable[Entry], interfaces: Sequence[Interface] = (Interface(),), *,
           byteorder: str = "<") -> bytes:
    """A pcapng section's octets: header, the interfaces, one enhanced packet block each.

    Two results joined are a file of two sections.
    """
    o = byteorder
    parts = [_block(o, 0x0A0D0D0A, struct.pack(f"{o}IHHq", 0x1A2B3C4D, 1, 0, -1))]
    for interface in interfaces:
        body = struct.pack(f"{o}HHI", interface.linktype, 0, interface.snaplen)
        options = b""
        if interface.tsresol is not None:
            options += struct.pack(f"{o}HHB3x", 9, 1, interface.tsresol)
        if interface.tsoffset:
            options += struct.pack(f"{o}HHq", 14, 8, interface.tsoffset)
        if options:
            options += struct.pack(f"{o}HH", 0, 0)
        parts.append(_block(o, 1, body + options))
    for entry in packets:
        ts_ns, data, length, number = _fields(entry)
        ticks = interfaces[number].ticks(ts_ns)
        parts.append(_block(o, 6, struct.pack(f"{o}5I", number, ticks >> 32, ticks & 0xFFFFFFFF,
                                              len(data), length) + data))
    return b"".join(parts)


def write_pcapng(path: str | Path, packets: Iterable[Entry],
                 interfaces: Sequence[Interface] = (Interface(),), *,
                 byteorder: str = "<") -> None:
    """Writes (ts_ns, octets[, length on the wire[, interface number]]) entries; see `pcapng`."""
    _store(path, pcapng(packets, interfaces, byteorder=byteorder))
