"""Link-layer payload → the packet within: IP, through any encapsulation, to UDP or TCP ports.

Each level of encapsulation is a `Level`; a `Packet` is the innermost. What can't be read, or is not
ours, is an `Undecoded` with the reason in words and the name of the frame's fate; a piece of an IP
datagram is a `Piece`, which knows how reading goes on once the datagram is whole.

Rules, and what was decided where they leave room
- What a snaplen cut off is missing, not wrong: lengths may point beyond the captured octets where
  the window that is being read is cut at its end. Elsewhere they may not ("bad length"). A window
  is what the header around it says there is; one that ends within the captured octets is not cut,
  whatever was cut behind it.
- Whatever comes behind the length that IP gives is padding. UDP's own length counts for the
  payload; TCP's payload ends where IP's length says.
- VLAN tags: at most 16 of all levels together; the 12 bits of the VID, since priority and DEI may
  differ by direction. A priority tag (VID 0) is a tag like any other.
- A tunnel's own header that breaks off or is invalid has the fate tunnel_header; the Ethernet
  header and the tags inside a tunnel are a link layer like any other (link_header), PPP's protocol
  field belongs to its tunnel.
- PPPoE (RFC 2516 4): version and type 1, code 0, else it is no session data: other_protocol.
- MPLS (RFC 3032): at most 16 labels, else tunnel_header; nothing behind the bottom one likewise.
- GRE (RFC 2784, 2890): versions above 1, and source routes (RFC 1701), are not opened. Version 1
  is PPTP's (RFC 2637): its id is the call id alone, since the key's other half is a length; without
  S it has no payload. PPP in it may have address and control octets.
- A tunnel whose version is not the one known is not opened (Geneve, GRE); an ERSPAN header of the
  wrong version is invalid, since its GRE protocol said which it is.
- The depth is looked at when a level has been read and is entered.
- The payload of a tunnel that is of no known protocol counts as its carrier did without the tunnel:
  other_transport for GRE, other_port for Geneve, other_protocol for MPLS, PPPoE and PPP.
- ICMP errors: RFC 792, RFC 4443. The quoted packet has the family of its ICMP; its lengths are not
  looked at, since it is quoted in part.
- An IPv6 fragment header with offset 0 and no more to come is a whole datagram (RFC 6946).
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass, field, replace

from .parts import Level, Packet, Piece, Segment, Undecoded, Window, scope_of
from .rules import Rules

TAGS = (0x8100, 0x88A8, 0x9100)
EXTENSIONS = (0, 43, 44, 51, 60, 135, 139, 140)
ICMP_ERRORS = {1: (3, 4, 5, 11, 12), 58: (1, 2, 3, 4)}
MAX_TAGS = MAX_EXTENSIONS = MAX_LABELS = 16


@dataclass(frozen=True)
class Reader:
    """Reads on from any header, knowing what is around it; entering a level makes a new one."""

    rules: Rules
    levels: tuple[Level, ...] = ()
    vlan: tuple[int, ...] = ()
    ends: tuple[str, str] = field(default=("", ""))
    carrier: bool = False  # `ends` are those of an IP header read since the level before
    family: int = 0
    extensions: int = 0

    # ------------------------------------------------------------------------ link layers

    def ethernet(self, w: Window) -> Packet:
        head, w = w.take(14, "ethernet", "link_header")
        return self.ethertype(int.from_bytes(head[12:14], "big"), w)

    def ethertype(self, kind: int, w: Window) -> Packet:
        vlan = list(self.vlan)
        before = sum(len(level.vlan) for level in self.levels)
        while kind in TAGS:
            if before + len(vlan) == MAX_TAGS:
                raise Undecoded("too many vlan tags", "too_many_tags")
            tag, w = w.take(4, "vlan tag", "link_header")
            tci, kind = struct.unpack("!HH", tag)
            vlan.append(tci & 0x0FFF)
        here = replace(self, vlan=tuple(vlan))
        if kind == 0x0800:
            return here.ipv4(w)
        if kind == 0x86DD:
            return here.ipv6(w)
        if kind in (0x8847, 0x8848) and "mpls" in self.rules.tunnels:
            return here.mpls(w)
        if kind == 0x8864 and "pppoe" in self.rules.tunnels:
            return here.pppoe(w)
        raise Undecoded(f"not ip: ethertype {kind:#06x}", "other_protocol")

    def ppp(self, w: Window, fate: str) -> Packet:
        """RFC 1661 6.5: a protocol number may be compressed to one octet, which is then odd."""
        w.take(1, "ppp", fate)
        head, w = w.take(1 if w.data[0] & 1 else 2, "ppp", fate)
        protocol = int.from_bytes(head, "big")
        if protocol == 0x21:
            return self.ipv4(w)
        if protocol == 0x57:
            return self.ipv6(w)
        raise Undecoded(f"not ip: ppp protocol {protocol:#06x}", "other_protocol")

    def enter(self, kind: str, id: int | None = None) -> Reader:
        """Behind the header of a level."""
        if len(self.levels) == self.rules.max_depth:
            raise Undecoded("too many levels", "tunnel_depth")
        level = Level(kind, id, self.ends if self.carrier else None, self.vlan)
        return Reader(self.rules, (*self.levels, level))

    # ------------------------------------------------------------------------ tunnels

    def mpls(self, w: Window) -> Packet:
        for _ in range(MAX_LABELS):
            entry, w = w.take(4, "mpls", "tunnel_header")
            if entry[2] & 1:
                break
        else:
            raise Undecoded("mpls: too many labels", "tunnel_header")
        w.take(1, "behind mpls", "tunnel_header")
        inner = self.enter("mpls", int.from_bytes(entry[:3], "big") >> 4)
        nibble = w.data[0] >> 4
        if nibble == 4:
            return inner.ipv4(w)
        if nibble == 6:
            return inner.ipv6(w)
        if nibble == 0:  # a pseudowire's control word, RFC 4385
            return inner.ethernet(w.take(4, "control word", "tunnel_header")[1])
        raise Undecoded("not ip: behind mpls", "other_protocol")

    def pppoe(self, w: Window) -> Packet:
        head, w = w.take(6, "pppoe", "tunnel_header")
        if head[0] != 0x11 or head[1] != 0:
            raise Undecoded("pppoe that is no session data", "other_protocol")
        session, size = struct.unpack("!HH", head[2:])
        return self.enter("pppoe", session).ppp(w.until(size), "tunnel_header")

    def gre(self, w: Window) -> Packet:
        head, w = w.take(4, "gre", "tunnel_header")
        flags, protocol = struct.unpack("!HH", head)
        checksum, routing, key, sequence = (bool(flags & bit)
                                            for bit in (0x8000, 0x4000, 0x2000, 0x1000))
        version = flags & 7
        erspan = protocol in (0x88BE, 0x22EB)
        wanted = "erspan" if erspan else "gre"
        known = ((version == 0 and (erspan or protocol in (0x0800, 0x86DD, 0x6558, 0x8847, 0x8848,
                                                           0x880B, *TAGS)))
                 or (version == 1 and protocol == 0x880B))
        if not known or routing or wanted not in self.rules.tunnels:
            raise Undecoded("not udp: gre that is not opened", "other_transport")
        if checksum:
            _, w = w.take(4, "gre checksum", "tunnel_header")
        id = None
        if key:
            octets, w = w.take(4, "gre key", "tunnel_header")
            id = int.from_bytes(octets, "big")
        if sequence:
            _, w = w.take(4, "gre sequence number", "tunnel_header")
        if version == 1:
            if flags & 0x0080:
                _, w = w.take(4, "gre acknowledgement", "tunnel_header")
            if not sequence:
                raise Undecoded("not udp: gre without payload", "other_transport")
            if id is not None:
                w, id = w.until(id >> 16), id & 0xFFFF
        if protocol == 0x88BE and not sequence:  # type I
            return self.enter("erspan").ethernet(w)
        if erspan:
            return self.erspan(w, 2 if protocol == 0x88BE else 3)
        inner = self.enter("gre", id)
        if protocol == 0x6558:
            return inner.ethernet(w)
        if protocol == 0x880B:
            return inner.ppp(Window(w.data[2:], w.length - 2) if w.data[:2] == b"\xff\x03" else w,
                             "tunnel_header")
        return inner.ethertype(protocol, w)

    def erspan(self, w: Window, type: int) -> Packet:
        head, w = w.take(8 if type == 2 else 12, "erspan", "tunnel_header")
        if head[0] >> 4 != type - 1:
            raise Undecoded("erspan: version", "tunnel_header")
        if type == 3 and head[11] & 1:
            _, w = w.take(8, "erspan subheader", "tunnel_header")
        return self.enter("erspan", int.from_bytes(head[2:4], "big") & 0x3FF).ethernet(w)

    def vxlan(self, w: Window) -> Packet:
        head, w = w.take(8, "vxlan", "tunnel_header")
        if not head[0] & 0x08:
            raise Undecoded("other ports: vxlan without vni", "other_port")
        return self.enter("vxlan", int.from_bytes(head[4:7], "big")).ethernet(w)

    def geneve(self, w: Window) -> Packet:
        head, w = w.take(8, "geneve", "tunnel_header")
        protocol = int.from_bytes(head[2:4], "big")
        if head[0] >> 6 or protocol not in (0x6558, 0x0800, 0x86DD):
            raise Undecoded("other ports: geneve that is not opened", "other_port")
        _, w = w.take((head[0] & 0x3F) * 4, "geneve options", "tunnel_header")
        inner = self.enter("geneve", int.from_bytes(head[4:7], "big"))
        return inner.ethernet(w) if protocol == 0x6558 else inner.ethertype(protocol, w)

    # ------------------------------------------------------------------------ ip

    def ipv4(self, w: Window) -> Packet:
        head = w.take(20, "ipv4", "ip_header")[0]
        size = (head[0] & 15) * 4
        if head[0] >> 4 != 4 or size < 20:
            raise Undecoded("bad ip header", "ip_header")
        total, ident, words = struct.unpack_from("!HHH", head, 2)
        if total < size or (total > len(w.data) and not w.cut):
            raise Undecoded("bad length", "ip_length")
        w.take(size, "ipv4 options", "ip_header")
        body = Window(w.data[size:total], total - size)
        ends = (socket.inet_ntop(socket.AF_INET, head[12:16]),
                socket.inet_ntop(socket.AF_INET, head[16:20]))
        here = replace(self, ends=ends, carrier=True, family=4)
        if words & 0x3FFF:  # more to come, or not the first
            offset = (words & 0x1FFF) * 8
            raise here.piece(head[9], body, ident, offset, bool(words & 0x2000), 65535 - size)
        return here.transport(head[9], body)

    def ipv6(self, w: Window) -> Packet:
        head, w = w.take(40, "ipv6", "ip_header")
        if head[0] >> 4 != 6:
            raise Undecoded("bad ip header", "ip_header")
        length = int.from_bytes(head[4:6], "big")
        if length > len(w.data) and not w.cut:
            raise Undecoded("bad length", "ip_length")
        ends = (socket.inet_ntop(socket.AF_INET6, head[8:24]),
                socket.inet_ntop(socket.AF_INET6, head[24:40]))
        here = replace(self, ends=ends, carrier=True, family=6, extensions=0)
        return here.transport(head[6], Window(w.data[:length], length))

    def transport(self, kind: int, w: Window) -> Packet:
        """What IP carries; in IPv6 the extension headers first."""
        headers = self.extensions
        while self.family == 6 and kind in EXTENSIONS:
            headers += 1
            if headers > MAX_EXTENSIONS:
                raise Undecoded("too many extension headers", "ip_extension")
            following, size, head = _extension(kind, w)
            rest = Window(w.data[size:], w.length - size)
            if kind == 44:
                words, ident = struct.unpack_from("!HI", head, 2)
                if words & 0xFFF9:
                    here = replace(self, extensions=headers)
                    raise here.piece(following, rest, ident, words & 0xFFF8, bool(words & 1), 65535)
            kind, w = following, rest
        if kind in (6, 17):
            return self.ported(kind, w)
        if kind == 47:
            if {"gre", "erspan"} & set(self.rules.tunnels):
                return self.gre(w)
        elif kind in (4, 41) and "ip" in self.rules.tunnels:
            inner = self.enter("ip")
            return inner.ipv4(w) if kind == 4 else inner.ipv6(w)
        elif kind == (1 if self.family == 4 else 58) and self.quotes_ours(kind, w.data):
            raise Undecoded("icmp error about dns", "icmp_error")
        raise Undecoded(f"not udp: protocol {kind}", "other_transport")

    def ported(self, kind: int, w: Window) -> Packet:
        """UDP or TCP."""
        if w.length < (8 if kind == 17 else 4):
            raise Undecoded("bad length", "transport_header")
        head = w.take(8 if kind == 17 else 4, "udp" if kind == 17 else "tcp", "transport_header")[0]
        sport, dport = struct.unpack_from("!HH", head)
        protocol = self.rules.protocol(sport, dport)
        opens = None
        if kind == 17 and protocol is None:
            if dport in self.rules.vxlan_ports and "vxlan" in self.rules.tunnels:
                opens = self.vxlan
            elif dport in self.rules.geneve_ports and "geneve" in self.rules.tunnels:
                opens = self.geneve
        if protocol is None and opens is None:
            raise Undecoded("other ports", "other_port")
        segment = None
        if kind == 17:
            size = int.from_bytes(head[4:6], "big")
            if not 8 <= size <= w.length:
                raise Undecoded("bad length", "udp_length")
            body = Window(w.data[8:size], size - 8)
        else:
            head = w.take(20, "tcp", "tcp_header")[0]
            size = (head[12] >> 4) * 4
            if not 20 <= size <= w.length:
                raise Undecoded("bad tcp header", "tcp_header")
            body = Window(w.data[size:], w.length - size)
            sequence, acknowledgement = struct.unpack_from("!II", head, 4)
            segment = Segment(sequence, acknowledgement, head[13])
        if opens is not None:
            return opens(body)
        assert protocol is not None
        return Packet(self.ends[0], sport, self.ends[1], dport, self.vlan, body.data, body.length,
                      self.levels, protocol, segment)

    def quotes_ours(self, icmp: int, data: bytes) -> bool:
        """Whether this ICMP message is an error that quotes a packet with a port of ours."""
        if len(data) < 8 or data[0] not in ICMP_ERRORS[icmp]:
            return False
        quoted = data[8:]
        if icmp == 1:
            if len(quoted) < 20 or quoted[0] >> 4 != 4 or (quoted[0] & 15) < 5:
                return False
            if int.from_bytes(quoted[6:8], "big") & 0x1FFF:
                return False
            kind, quoted = quoted[9], quoted[(quoted[0] & 15) * 4 :]
        else:
            if len(quoted) < 40 or quoted[0] >> 4 != 6:
                return False
            chain = _behind_extensions(quoted[6], quoted[40:])
            if chain is None:
                return False
            kind, quoted = chain
        if kind not in (6, 17) or len(quoted) < 4:
            return False
        return self.rules.protocol(*struct.unpack_from("!HH", quoted)) is not None

    # ------------------------------------------------------------------------ fragments

    def piece(self, kind: int, w: Window, ident: int, offset: int, more: bool,
              limit: int) -> Undecoded:
        """`kind` is IPv4's protocol, or the fragment header's next header."""
        ours = {6, 17}
        if {"gre", "erspan"} & set(self.rules.tunnels):
            ours.add(47)
        if "ip" in self.rules.tunnels:
            ours |= {4, 41}
        if self.family == 6:
            ours |= set(EXTENSIONS) - {44}
        if kind not in ours:
            return Undecoded(f"not udp: protocol {kind}", "other_transport")
        key = (self.family, self.ends, ident, kind if self.family == 4 else None,
               scope_of(self.levels, self.vlan), len(self.levels))
        return Piece(key, offset, more, w.data, w.cut, limit,
                     offset == 0 and self.shows_foreign_ports(kind, w.data),
                     lambda whole: self.transport(kind, Window(whole, len(whole))),
                     lambda whole: kind != 17 or _udp_checks(self.ends, whole))

    def shows_foreign_ports(self, kind: int, data: bytes) -> bool:
        if self.family == 6:
            chain = _behind_extensions(kind, data)
            if chain is None:
                return False
            kind, data = chain
        if kind not in (6, 17) or len(data) < 4:
            return False
        sport, dport = struct.unpack_from("!HH", data)
        if self.rules.protocol(sport, dport):
            return False
        rules = self.rules
        return not (kind == 17 and (
            (dport in rules.vxlan_ports and "vxlan" in rules.tunnels)
            or (dport in rules.geneve_ports and "geneve" in rules.tunnels)))


def _extension(kind: int, w: Window) -> tuple[int, int, bytes]:
    """(next header, size, the header's octets) of the extension header that the window is at."""
    if w.length < 8:
        raise Undecoded("bad length", "ip_extension")
    head = w.take(8, "ipv6 extension header", "ip_extension")[0]
    size = 8 if kind == 44 else (head[1] + 2) * 4 if kind == 51 else (head[1] + 1) * 8
    if size > w.length:
        raise Undecoded("bad length", "ip_extension")
    return head[0], size, w.take(size, "ipv6 extension header", "ip_extension")[0]


def _behind_extensions(kind: int, data: bytes) -> tuple[int, bytes] | None:
    """(protocol, what follows) behind a chain of IPv6 headers; None where it can't be told, or
    where a fragment header says that this is not the first piece."""
    for _ in range(MAX_EXTENSIONS + 1):
        if kind not in EXTENSIONS:
            return kind, data
        try:
            following, size, head = _extension(kind, Window(data, len(data)))
        except Undecoded:
            return None
        if kind == 44 and int.from_bytes(head[2:4], "big") & 0xFFF8:
            return None
        kind, data = following, data[size:]
    return None


def _udp_checks(ends: tuple[str, str], whole: bytes) -> bool:
    """Whether a datagram's checksum is right (RFC 768); without one, or with a length that can't
    be, there is nothing to go by."""
    if len(whole) < 8:
        return True
    size, said = struct.unpack_from("!HH", whole, 4)
    if said == 0 or not 8 <= size <= len(whole):
        return True
    packed = b"".join(ipaddress.ip_address(end).packed for end in ends)
    octets = packed + struct.pack("!HH", 17, size) + whole[:size] + bytes(size % 2)
    return sum(struct.unpack(f"!{len(octets) // 2}H", octets)) % 0xFFFF == 0
