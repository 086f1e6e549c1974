"""The program that spreads frames over several sockets (PACKET_FANOUT_CBPF, packet(7)).

The kernel runs it for each frame that comes to a fanout group; what it returns, modulo the number
of sockets, says which of them gets the frame.  It looks at nothing but the two outermost IP
addresses, behind up to three VLAN tags, and mixes their XOR:

- both directions of a pair of hosts go to the same socket, as XOR is the same both ways;
- so do all pieces of a datagram: ports, which only the first piece shows, don't come into it;
- a secret seed keeps strangers from choosing addresses that all meet on one socket.

What has no IP header there (ARP, MPLS, PPPoE), or is too short, goes to the first socket.  So a
tunnel's two ends are one pair of hosts, however many are inside: capture on several sockets does
not help where all traffic comes through one tunnel, nor behind MPLS.

It is modulo the number of sockets: when one leaves or joins (a capture process that died and its
successor), most pairs of hosts move to another socket, once each.

Where a frame's octets stand for this program depends on its way.  A received frame's data begins
behind its link header, the outermost VLAN tag taken out of it, and `protocol` says what follows.
A frame that this machine sends begins with its link header; and where that is of no known length
(Linux cooked: any interface) its IP header is known only as "the network header".  Offsets from
the start reach everything; those from the network header only what is in the packet's first
buffer, which is true for headers that this machine made.

Instructions are (code, jt, jf, k) of linux/filter.h.
"""

from __future__ import annotations

import socket
import struct

Instruction = tuple[int, int, int, int]

# linux/bpf_common.h
LD_W, LD_H, LD_W_X, LD_H_X, LD_B_X, LD_M = 0x20, 0x28, 0x40, 0x48, 0x50, 0x60
LDX, LDX_M, ST, STX, TAX, TXA = 0x01, 0x61, 0x02, 0x03, 0x07, 0x87
ADD, MUL, XOR, XOR_X, RSH = 0x04, 0x24, 0xA4, 0xAC, 0x74
JA, JEQ, RET, RET_A = 0x05, 0x15, 0x06, 0x16

# linux/filter.h: what is known of a frame beside its octets
PROTOCOL, PKTTYPE, IFINDEX, NETWORK = 0xFFFFF000, 0xFFFFF004, 0xFFFFF008, 0xFFF00000
OUTGOING = 4        # PACKET_OUTGOING of linux/if_packet.h

ETHERNET = 1
COOKED = (113, 276)
TAGS = (0x8100, 0x88A8, 0x9100)
MAX_TAGS = 3
MIX = 0x9E3779B1    # odd, half its bits set: each bit of a product depends on all below it

SOL_PACKET, PACKET_FANOUT = 263, 18
CBPF, UNIQUE = 6, 0x2000


class _Assembler:
    """Instructions whose jumps go to labels further on."""

    def __init__(self) -> None:
        self._made: list[tuple[int, str, str, int]] = []
        self._labels: dict[str, int] = {}

    def __call__(self, code: int, k: int = 0, yes: str = "", no: str = "") -> None:
        self._made.append((code, yes, no, k))

    def label(self, name: str) -> None:
        self._labels[name] = len(self._made)

    def program(self) -> list[Instruction]:
        made = []
        for at, (code, yes, no, k) in enumerate(self._made, 1):
            to_yes, to_no = (self._labels[name] - at if name else 0 for name in (yes, no))
            made.append((code, 0, 0, to_yes) if code == JA else (code, to_yes, to_no, k))
        return made


def fanout_program(linktype: int, seed: int) -> list[Instruction]:
    """For sockets on an interface of this link type; all of one group need the same seed."""
    put = _Assembler()
    # X: where the IP header stands, or a VLAN tag's two octets before the next protocol;
    # A: which of them it is.
    put(LD_W, PKTTYPE)
    put(JEQ, OUTGOING, "sent", "received")
    put.label("sent")
    if linktype == ETHERNET:
        put(LDX, 14)
        put(LD_H, 12)
        put(JA, yes="tag 0")
    elif linktype in COOKED:    # here the tags are not in front of the network header
        put(LDX, NETWORK)
        put(LD_B_X, 0)
        put(RSH, 4)
        put(JEQ, 4, "ipv4")
        put(JEQ, 6, "ipv6", "other")
    put.label("received")       # and what has no link header at all
    put(LDX, 0)
    put(LD_W, PROTOCOL)
    for i in range(MAX_TAGS):
        put.label(f"tag {i}")
        for type_ in TAGS[:-1]:
            put(JEQ, type_, f"step {i}")
        put(JEQ, TAGS[-1], f"step {i}", "family")
        put.label(f"step {i}")
        put(LD_H_X, 2)
        put(ST, 0)
        put(TXA)
        put(ADD, 4)
        put(TAX)
        put(LD_M, 0)
    put.label("family")
    put(JEQ, 0x0800, "ipv4")
    put(JEQ, 0x86DD, "ipv6", "other")
    put.label("ipv4")
    _xor(put, range(12, 20, 4))
    put(JA, yes="mix")
    put.label("ipv6")
    _xor(put, range(8, 40, 4))
    put.label("mix")
    put(XOR, seed & 0xFFFFFFFF)
    for shift in (16, 15):
        put(MUL, MIX)
        put(TAX)
        put(RSH, shift)
        put(XOR_X)
    put(RET_A)
    put.label("other")
    put(RET, 0)
    return put.program()


def _xor(put: _Assembler, offsets: range) -> None:
    """A: the XOR of the words at these offsets from X."""
    put(STX, 1)
    for i, offset in enumerate(offsets):
        if i:
            put(ST, 0)
            put(LDX_M, 1)
        put(LD_W_X, offset)
        if i:
            put(LDX_M, 0)
            put(XOR_X)


def packed(program: list[Instruction]) -> bytes:
    """As an array of struct sock_filter."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def unused_group() -> int:
    """The id of a fanout group that nobody in this network namespace uses, for all the sockets of
    one run.  Needs CAP_NET_RAW; raises OSError.

    The kernel looks for one (PACKET_FANOUT_FLAG_UNIQUEID) and keeps it until the socket is closed;
    so there is a moment for somebody else to take it, who would have to ask for this very number.
    """
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as probe:
        # A group needs a socket that receives: this one does so what no interface ever has.
        probe.bind(("lo", NO_PROTOCOL))
        probe.setsockopt(SOL_PACKET, PACKET_FANOUT, (CBPF | UNIQUE) << 16)
        return probe.getsockopt(SOL_PACKET, PACKET_FANOUT) & 0xFFFF


NO_PROTOCOL = 0x0011    # ETH_P_TR_802_2 of linux/if_ether.h: Token Ring, which Linux no longer has
