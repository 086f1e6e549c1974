#!/usr/bin/env python3
"""Build captured.pcap, the capture of the README's example.

The exchange is the one that the documentation of the original tool prints: one query for
bf-pro-front.cloudapp.net. and its reply. That page gives addresses, ports, id, names, data and
both times; the capture itself was never published. This program builds the two frames again,
packet by packet, so captured.pcap is built and not recorded. What the page does not tell is
chosen here and marked with "chosen" below.

    python3 make_captured.py [FILE]     # default: captured.pcap beside this program

Standard library only; the same bytes on each run.
"""

from __future__ import annotations

import socket
import struct
import sys
from pathlib import Path

CLIENT = ("10.139.96.169", 53684)
SERVER = ("210.196.3.183", 53)
DNS_ID = 23904
NAME = "bf-pro-front.cloudapp.net."
ADDRESS = "23.100.102.231"
QUERY_TIME = (1444531212, 628222)
REPLY_TIME = (1444531212, 643494)

TTL = 60  # chosen: seconds, of the answer
CLIENT_HOPS = 64  # chosen: IP TTL as a Linux client sends it
SERVER_HOPS = 55  # chosen: a server some hops away
CLIENT_MAC = bytes.fromhex("020000000001")  # chosen: locally administered
GATEWAY_MAC = bytes.fromhex("0200000000fe")  # chosen

QR, RD, RA = 0x8000, 0x0100, 0x0080
TYPE_A, CLASS_IN = 1, 1
ETHERTYPE_IPV4, PROTO_UDP = 0x0800, 17
LINKTYPE_ETHERNET, SNAPLEN = 1, 65535


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) over ``data``."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def wire_name(name: str) -> bytes:
    """``name`` as labels (RFC 1035 section 3.1), without compression."""
    labels = name.rstrip(".").encode("ascii").split(b".")
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def dns_query() -> bytes:
    header = struct.pack("!6H", DNS_ID, RD, 1, 0, 0, 0)
    return header + wire_name(NAME) + struct.pack("!2H", TYPE_A, CLASS_IN)


def dns_reply() -> bytes:
    header = struct.pack("!6H", DNS_ID, QR | RD | RA, 1, 1, 0, 0)
    question = wire_name(NAME) + struct.pack("!2H", TYPE_A, CLASS_IN)
    owner = struct.pack("!H", 0xC000 | len(header))  # a pointer to the question's name
    data = socket.inet_aton(ADDRESS)
    answer = owner + struct.pack("!2HIH", TYPE_A, CLASS_IN, TTL, len(data)) + data
    return header + question + answer


def udp(source: tuple[str, int], target: tuple[str, int], payload: bytes) -> bytes:
    """A UDP datagram with its checksum over the pseudo header (RFC 768)."""
    length = 8 + len(payload)
    pseudo = struct.pack(
        "!4s4sBBH", socket.inet_aton(source[0]), socket.inet_aton(target[0]), 0, PROTO_UDP, length
    )
    head = struct.pack("!3H", source[1], target[1], length)
    # A sum of zero is sent as all ones: zero on the wire means "no checksum".
    value = checksum(pseudo + head + b"\0\0" + payload) or 0xFFFF
    return head + struct.pack("!H", value) + payload


def ipv4(source: str, target: str, ident: int, hops: int, payload: bytes) -> bytes:
    """An IPv4 packet without options (RFC 791)."""
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    fixed = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(payload), ident, 0, hops, PROTO_UDP)
    value = checksum(fixed + b"\0\0" + addresses)
    return fixed + struct.pack("!H", value) + addresses + payload


def frames() -> list[tuple[tuple[int, int], bytes]]:
    """Both frames with their times (seconds, microseconds)."""
    ethertype = struct.pack("!H", ETHERTYPE_IPV4)
    query = ipv4(CLIENT[0], SERVER[0], 0x1F2A, CLIENT_HOPS, udp(CLIENT, SERVER, dns_query()))
    reply = ipv4(SERVER[0], CLIENT[0], 0x6C31, SERVER_HOPS, udp(SERVER, CLIENT, dns_reply()))
    return [
        (QUERY_TIME, GATEWAY_MAC + CLIENT_MAC + ethertype + query),
        (REPLY_TIME, CLIENT_MAC + GATEWAY_MAC + ethertype + reply),
    ]


def capture() -> bytes:
    """The whole file: classic pcap, little endian, microseconds."""
    parts = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, SNAPLEN, LINKTYPE_ETHERNET)]
    for (seconds, micros), frame in frames():
        parts.append(struct.pack("<4I", seconds, micros, len(frame), len(frame)))
        parts.append(frame)
    return b"".join(parts)


def main(argv: list[str]) -> int:
    target = Path(argv[1]) if len(argv) > 1 else Path(__file__).with_name("captured.pcap")
    target.write_bytes(capture())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
