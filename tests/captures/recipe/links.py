#!/usr/bin/env python3
"""Links that a bare kernel may lack: a pair of VLAN switches, and a point-to-point IP link.

    links.py vlan TRUNK_A TRUNK_B ID[.ID]:PORT_A:PORT_B...
    links.py tun  NAME_A NAME_B

``vlan`` joins access ports through a trunk. A frame that enters PORT_A leaves TRUNK_A with the
tags given (one: 802.1Q; two: an 802.1ad tag around an 802.1Q tag), crosses the wire to TRUNK_B,
loses its tags there and leaves PORT_B; the other way likewise. So what passes the trunk is real
traffic with real tags, also on a kernel built without 802.1Q devices.

``tun`` makes two tun devices and carries packets from one to the other; their link layer is raw
IP. The caller moves the devices into their namespaces once the line "ready" is printed.

Both print "ready" and run until they are killed. For the recording of test captures only.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import socket
import struct
import sys
from collections.abc import Callable

ETH_P_ALL = 0x0003
TPID_8021Q, TPID_8021AD = 0x8100, 0x88A8
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_AUXDATA = 263, 1, 8
PACKET_MR_PROMISC, PACKET_OUTGOING = 1, 4
TP_STATUS_VLAN_VALID = 0x10
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata of linux/if_packet.h
MAX_FRAME = 65536


def open_port(name: str) -> socket.socket:
    """A packet socket on device ``name`` that sees each frame, with the tag the kernel took off."""
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    port.bind((name, ETH_P_ALL))
    membership = struct.pack("=iHH8s", socket.if_nametoindex(name), PACKET_MR_PROMISC, 0, b"")
    port.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, membership)
    port.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    return port


def receive(port: socket.socket) -> bytes | None:
    """The next frame as it was on the wire; None for our own transmissions."""
    frame, ancillary, _flags, address = port.recvmsg(MAX_FRAME, socket.CMSG_SPACE(AUXDATA.size))
    if address[2] == PACKET_OUTGOING:
        return None
    for level, kind, data in ancillary:
        if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
            status, _len, _snaplen, _mac, _net, tci, tpid = AUXDATA.unpack(data[: AUXDATA.size])
            if status & TP_STATUS_VLAN_VALID:
                frame = frame[:12] + struct.pack("!HH", tpid or TPID_8021Q, tci) + frame[12:]
    return frame


def tag_bytes(ids: list[int]) -> bytes:
    """The tags of a frame in the order of the wire, outermost first."""
    outer = TPID_8021AD if len(ids) > 1 else TPID_8021Q
    tpids = [outer] + [TPID_8021Q] * (len(ids) - 1)
    return b"".join(struct.pack("!HH", tpid, vid) for tpid, vid in zip(tpids, ids, strict=True))


def add_switch(loop: selectors.BaseSelector, trunk_name: str, access: dict[bytes, str]) -> None:
    """One switch: frames of an access port go to the trunk tagged, and back without their tag."""
    trunk = open_port(trunk_name)
    ports = {tags: open_port(name) for tags, name in access.items()}

    def from_port(port: socket.socket, tags: bytes) -> Callable[[], None]:
        def forward() -> None:
            frame = receive(port)
            if frame is not None:
                trunk.send(frame[:12] + tags + frame[12:])

        return forward

    def from_trunk() -> None:
        frame = receive(trunk)
        if frame is None:
            return
        for tags, port in ports.items():
            if frame[12 : 12 + len(tags)] == tags:
                port.send(frame[:12] + frame[12 + len(tags) :])

    for tags, port in ports.items():
        loop.register(port, selectors.EVENT_READ, from_port(port, tags))
    loop.register(trunk, selectors.EVENT_READ, from_trunk)


def vlan(loop: selectors.BaseSelector, trunk_a: str, trunk_b: str, *links: str) -> None:
    side_a, side_b = {}, {}
    for link in links:
        ids, port_a, port_b = link.split(":")
        tags = tag_bytes([int(vid) for vid in ids.split(".")])
        side_a[tags], side_b[tags] = port_a, port_b
    add_switch(loop, trunk_a, side_a)
    add_switch(loop, trunk_b, side_b)


def open_tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("=16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return device


def tun(loop: selectors.BaseSelector, name_a: str, name_b: str) -> None:
    ends = open_tun(name_a), open_tun(name_b)

    def carry(source: int, target: int) -> Callable[[], None]:
        def forward() -> None:
            packet = os.read(source, MAX_FRAME)
            try:
                os.write(target, packet)
            except OSError:  # the other end is not up yet: a real wire loses it too
                return

        return forward

    loop.register(ends[0], selectors.EVENT_READ, carry(ends[0], ends[1]))
    loop.register(ends[1], selectors.EVENT_READ, carry(ends[1], ends[0]))


def main(argv: list[str]) -> int:
    kinds = {"vlan": vlan, "tun": tun}
    if len(argv) < 4 or argv[1] not in kinds:
        print(__doc__, file=sys.stderr)
        return 2
    loop = selectors.DefaultSelector()
    kinds[argv[1]](loop, *argv[2:])
    print("ready", flush=True)
    while True:
        for key, _events in loop.select():
            key.data()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
