"""The headers of encapsulations; see tunnel.pxd.

    MPLS    RFC 3032    label 20, class 3, bottom 1, TTL 8; behind the bottom label no header says
                        what follows: 4 and 6 as the first four bits are IP, 0 is a pseudowire's
                        control word (RFC 4385), behind which Ethernet stands (RFC 4448)
    PPPoE   RFC 2516    version 4, type 4, code 8 (0: session data), session 16, length 16
    GRE     RFC 2784    flags 13, version 3, protocol 16; then, each if its flag is set: checksum
            RFC 2890    and reserved (32), key (32), sequence (32); RFC 1701's routing is not read
            RFC 2637    version 1: the key is length 16, call 16; acknowledgement (32); PPP
    ERSPAN  draft-foschiano-erspan: in GRE with protocol 0x88BE, type I without a sequence number
                        and without a header, type II with both; type III has protocol 0x22EB
            II          version 4 (1), VLAN 12, class 3, encapsulation 2, truncated 1, session 10,
                        reserved 12, index 20
            III         version 4 (2), ... session 10, timestamp 32, group 16, ... optional 1 (the
                        last bit: 8 more octets follow)
    VXLAN   RFC 7348    flags 8 (0x08: the VNI is valid), reserved 24, VNI 24, reserved 8
    Geneve  RFC 8926    version 2, length of options 6 (in 4 octets), flags 8, protocol 16, VNI 24,
                        reserved 8, options

A flag, version or protocol that we do not open makes a tunnel CLOSED, since then we can't say what
it is; where GRE's protocol has said that it is ERSPAN, another version than its own is BROKEN.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from gazer.cursor cimport (
    Cursor, cursor_has, cursor_left, cursor_skip, cursor_take, cursor_u8, cursor_u16,
    cursor_u32)
from gazer.packet cimport (
    ERSPAN, GENEVE, GRE, MAX_EXTENSIONS, MPLS, PPPOE, TCP, UDP, VXLAN)

cdef enum:
    GRE_CHECKSUM = 0x8000
    GRE_ROUTING = 0x4000
    GRE_KEY = 0x2000
    GRE_SEQUENCE = 0x1000
    GRE_ACKNOWLEDGEMENT = 0x0080    # version 1 only
    GRE_ERSPAN_2 = 0x88BE
    GRE_ERSPAN_3 = 0x22EB
    PPP_IPV4 = 0x0021
    PPP_IPV6 = 0x0057
    VXLAN_VALID = 0x08


cdef int mpls_open(Cursor* c, Inner* inner) noexcept nogil:
    """Behind MPLS's EtherType: the stack of labels."""
    cdef uint32_t label
    cdef int _
    for _ in range(MAX_LABELS):
        label = cursor_u32(c)
        if c.failed:
            return BROKEN
        if label & 0x100:
            inner.kind = MPLS
            inner.has_id = True
            inner.id = label >> 12
            return OPEN if cursor_has(c, 1) else BROKEN
    return BROKEN


cdef int mpls_inside(Cursor* c, Inner* inner) noexcept nogil:
    """Behind the bottom label, where there is an octet."""
    cdef uint8_t first = cursor_u8(c) >> 4
    c.pos -= 1
    inner.next = NOTHING
    if first == 4:
        inner.next = IPV4
    elif first == 6:
        inner.next = IPV6
    elif first == 0:
        if not cursor_skip(c, 4):
            return BROKEN
        inner.next = ETHERNET
    return OPEN


cdef int pppoe_open(Cursor* c, Inner* inner) noexcept nogil:
    """Behind PPPoE's EtherType."""
    cdef uint16_t kind = cursor_u16(c)
    inner.kind = PPPOE
    inner.has_id = True
    inner.id = cursor_u16(c)
    inner.length = cursor_u16(c)
    inner.next = PPP
    if c.failed:
        return BROKEN
    return OPEN if kind == 0x1100 else CLOSED


cdef int ppp_inside(Cursor* c, bint framed) noexcept nogil:
    """Behind PPP's protocol field (RFC 1661, section 2: one byte if its low bit is set), which may
    follow address and control (RFC 1662).  Returns Next; the cursor has failed if it breaks off."""
    cdef const uint8_t* p
    cdef uint16_t protocol
    if framed and cursor_left(c) >= 2:
        p = cursor_take(c, 2)
        if not (p[0] == 0xFF and p[1] == 0x03):     # they may be compressed away
            c.pos -= 2
    protocol = cursor_u8(c)
    if not protocol & 1:
        protocol = (protocol << 8) | cursor_u8(c)
    return IPV4 if protocol == PPP_IPV4 else IPV6 if protocol == PPP_IPV6 else NOTHING


cdef int erspan_open(Cursor* c, uint16_t protocol, Inner* inner) noexcept nogil:
    """Behind a GRE header: ERSPAN's own, of type II or III."""
    cdef const uint8_t* p = cursor_take(c, 8)
    if p == NULL or p[0] >> 4 != (1 if protocol == GRE_ERSPAN_2 else 2):
        return BROKEN
    inner.has_id = True
    inner.id = (p[2] & 3) << 8 | p[3]
    if protocol == GRE_ERSPAN_3:
        p = cursor_take(c, 4)
        if p == NULL or (p[3] & 1 and not cursor_skip(c, 8)):
            return BROKEN
    return OPEN


cdef int gre_open(Cursor* c, Inner* inner) noexcept nogil:
    """Behind an IP header: GRE, and ERSPAN in it."""
    cdef uint16_t flags = cursor_u16(c)
    cdef uint16_t protocol = cursor_u16(c)
    cdef uint32_t version = flags & 7
    inner.kind = GRE
    if c.failed:
        return BROKEN
    if flags & GRE_ROUTING or version > 1:
        return CLOSED
    inner.next = ETHERTYPE
    inner.ethertype = protocol
    if version == 1:
        if protocol != ETHERTYPE_PPP:
            return CLOSED
        inner.next = PPP_FRAMED
    elif protocol == GRE_ERSPAN_2 or protocol == GRE_ERSPAN_3:
        inner.kind = ERSPAN
        inner.next = ETHERNET
    elif protocol == ETHERTYPE_ETHERNET:
        inner.next = ETHERNET
    elif protocol == ETHERTYPE_PPP:
        inner.next = PPP_FRAMED
    elif protocol not in (
            ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_MPLS, ETHERTYPE_MPLS_UPSTREAM, ETHERTYPE_VLAN,
            ETHERTYPE_QINQ, ETHERTYPE_QINQ_OLD):
        return CLOSED
    if flags & GRE_CHECKSUM:
        cursor_skip(c, 4)
    if flags & GRE_KEY:
        inner.has_id = True
        inner.id = cursor_u32(c)
    if flags & GRE_SEQUENCE:
        cursor_skip(c, 4)
    if version == 1:
        if flags & GRE_KEY:
            inner.length = inner.id >> 16
            inner.id &= 0xFFFF
        if flags & GRE_ACKNOWLEDGEMENT:
            cursor_skip(c, 4)
    if c.failed:
        return BROKEN
    if version == 1 and not flags & GRE_SEQUENCE:
        return CLOSED               # an acknowledgement alone
    if inner.kind == ERSPAN:
        inner.has_id = False        # GRE's key is not what tells mirrors apart
        inner.id = 0
        if protocol == GRE_ERSPAN_3 or flags & GRE_SEQUENCE:
            return erspan_open(c, protocol, inner)
    return OPEN


cdef int vxlan_open(Cursor* c, Inner* inner) noexcept nogil:
    """Behind a UDP header."""
    cdef const uint8_t* p = cursor_take(c, 8)
    if p == NULL:
        return BROKEN
    if not p[0] & VXLAN_VALID:
        return CLOSED
    inner.kind = VXLAN
    inner.has_id = True
    inner.id = (<uint32_t>p[4] << 16) | (p[5] << 8) | p[6]
    inner.next = ETHERNET
    return OPEN


cdef int geneve_open(Cursor* c, Inner* inner) noexcept nogil:
    """Behind a UDP header."""
    cdef uint16_t protocol
    cdef const uint8_t* p = cursor_take(c, 8)
    if p == NULL:
        return BROKEN
    protocol = (p[2] << 8) | p[3]
    if p[0] >> 6:
        return CLOSED
    inner.kind = GENEVE
    inner.has_id = True
    inner.id = (<uint32_t>p[4] << 16) | (p[5] << 8) | p[6]
    if protocol == ETHERTYPE_ETHERNET:
        inner.next = ETHERNET
    elif protocol == ETHERTYPE_IPV4:
        inner.next = IPV4
    elif protocol == ETHERTYPE_IPV6:
        inner.next = IPV6
    else:
        return CLOSED
    return OPEN if cursor_skip(c, (p[0] & 0x3F) * 4) else BROKEN


cdef int ports_behind(Cursor* c, bint v6, int protocol, Ports* ports) noexcept nogil:
    """The ports of what this protocol number announces, in IPv6 behind extension headers.  Returns
    UDP or TCP, or -1 if there are none, or not enough octets to tell.

    For datagrams that are there in part: lengths mean nothing.  Of fragments only the first has
    ports."""
    cdef const uint8_t* p
    cdef int _
    if v6:
        for _ in range(MAX_EXTENSIONS):
            if protocol == FRAGMENT_HEADER:
                p = cursor_take(c, 8)
                if p == NULL or (((p[2] << 8) | p[3]) & 0xFFF8):
                    return -1
                protocol = p[0]
            elif is_extension(<uint8_t>protocol):
                protocol = extension_skip(c, <uint8_t>protocol)
                if protocol < 0:
                    return -1
            else:
                break
    if protocol != UDP and protocol != TCP:
        return -1
    ports.source = cursor_u16(c)
    ports.destination = cursor_u16(c)
    return -1 if c.failed else protocol


cdef int icmp_quotes(Cursor* c, bint v6, Ports* ports) noexcept nogil:
    """Behind an IP header that announced ICMP: the ports of the packet that it quotes, if it is an
    error; as ports_behind.

    RFC 792, RFC 4443: type, code, checksum, 4 octets by type, then as much of the packet as fits.
    """
    cdef const uint8_t* p = cursor_take(c, 8)
    cdef uint32_t header
    if p == NULL:
        return -1
    if v6:
        if not 1 <= p[0] <= 4:
            return -1
        p = cursor_take(c, 40)
        if p == NULL or p[0] >> 4 != 6:
            return -1
        return ports_behind(c, True, p[6], ports)
    if p[0] not in (3, 4, 5, 11, 12):
        return -1
    p = cursor_take(c, 20)
    if p == NULL or p[0] >> 4 != 4:
        return -1
    header = (p[0] & 15) * 4
    if header < 20 or not cursor_skip(c, header - 20) or ((p[6] & 0x1F) | p[7]):
        return -1
    return ports_behind(c, False, p[9], ports)
