"""From frame to packet; see packet.pxd.

Link types (their LINKTYPE_ numbers, as pcap files have them): Ethernet (1) with any stack of
802.1Q (0x8100), 802.1ad (0x88a8) and the older 0x9100 tags, and PPPoE sessions (RFC 2516); PPPoE
without Ethernet before it (51); Linux cooked v1 (113) and v2 (276); BSD null (0) and loop (108);
raw IP (101, and 12 and 14 as BSDs write it), IPv4 (228), IPv6 (229); PPP (9) and PPP in HDLC-like
framing (50, RFC 1662).

IPv4 (RFC 791) with options; IPv6 (RFC 8200) with hop-by-hop, routing, destination, AH (RFC 4302),
mobility, HIP and shim6 headers.  A fragment header with neither offset nor more-fragments is an
"atomic" fragment (RFC 6946): a whole datagram.  Checksums are not verified: capture on the sending
host sees them before the network card has filled them in.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from gazer.cursor cimport (
    Cursor, cursor_has, cursor_left, cursor_over, cursor_skip, cursor_take, cursor_u8, cursor_u16,
    cursor_u32)

FATES = (
    "dns",
    "other_port",
    "other_transport",
    "other_protocol",
    "icmp_error",
    "filtered",
    "fragment",
    "link_type",
    "link_header",
    "too_many_tags",
    "tunnel_header",
    "tunnel_depth",
    "ip_header",
    "ip_length",
    "ip_extension",
    "transport_header",
    "udp_length",
    "tcp_header",
)

ENCAPSULATIONS = ("mpls", "pppoe", "gre", "erspan", "vxlan", "geneve", "ip")
PROTOCOLS_OF_DNS = ("dns", "mdns", "llmnr")

assert len(FATES) == FATES_COUNT and len(ENCAPSULATIONS) == ENCAPSULATIONS_COUNT
assert len(PROTOCOLS_OF_DNS) == PROTOCOLS

cdef enum:
    ETHERTYPE_IPV4 = 0x0800
    ETHERTYPE_IPV6 = 0x86DD
    ETHERTYPE_VLAN = 0x8100
    ETHERTYPE_QINQ = 0x88A8
    ETHERTYPE_QINQ_OLD = 0x9100
    ETHERTYPE_PPPOE_SESSION = 0x8864
    PPP_IPV4 = 0x0021
    PPP_IPV6 = 0x0057

cdef enum Family:
    NOT_IP = 0
    IPV4 = 4
    IPV6 = 6
    ANY_IP = 46         # by the version in the header

cdef class Ports:
    def __init__(self, ports):
        memset(self.bits, 0, sizeof(self.bits))
        for port in ports:
            if not 0 < port < 65536:
                raise ValueError(f"not a port: {port}")
            self.bits[port >> 6] |= <uint64_t>1 << (port & 63)


cdef int after_ppp(Cursor* c, int* family) noexcept nogil:
    """Behind a PPP protocol field (RFC 1661, section 2: one byte if its low bit is set)."""
    cdef uint16_t protocol = cursor_u8(c)
    if not protocol & 1:
        protocol = (protocol << 8) | cursor_u8(c)
    if c.failed:
        return LINK_HEADER
    family[0] = IPV4 if protocol == PPP_IPV4 else IPV6 if protocol == PPP_IPV6 else NOT_IP
    return DNS


cdef int after_pppoe(Cursor* c, int* family) noexcept nogil:
    """Behind PPPoE's EtherType (RFC 2516, section 4): version and type, code (0: session data),
    session id, length of what follows."""
    cdef uint16_t kind = cursor_u16(c), length
    cursor_skip(c, 2)
    length = cursor_u16(c)
    if c.failed:
        return LINK_HEADER
    if kind != 0x1100:
        family[0] = NOT_IP
        return DNS
    if length < cursor_left(c):
        c.end = c.pos + length      # what follows is the link's padding
    return after_ppp(c, family)


cdef int after_ethertype(Cursor* c, uint16_t ethertype, Packet* packet, int* family) noexcept nogil:
    """Behind an EtherType: VLAN tags, then PPPoE or IP."""
    while (ethertype == ETHERTYPE_VLAN or ethertype == ETHERTYPE_QINQ
           or ethertype == ETHERTYPE_QINQ_OLD):
        if packet.tags == MAX_TAGS:
            return TAGS
        if packet.tags == 0:
            packet.tags_offset = <uint16_t>c.pos
        packet.tags += 1
        cursor_skip(c, 2)
        ethertype = cursor_u16(c)
        if c.failed:
            return LINK_HEADER
    if ethertype == ETHERTYPE_IPV4:
        family[0] = IPV4
    elif ethertype == ETHERTYPE_IPV6:
        family[0] = IPV6
    elif ethertype == ETHERTYPE_PPPOE_SESSION:
        return after_pppoe(c, family)
    else:
        family[0] = NOT_IP
    return DNS


cdef int link_decode(Cursor* c, int linktype, Packet* packet, int* family) noexcept nogil:
    """Step over the link header; `family` is what stands behind it."""
    cdef const uint8_t* p
    cdef uint32_t value
    if linktype == 1:
        cursor_skip(c, 12)
        value = cursor_u16(c)
        return LINK_HEADER if c.failed else after_ethertype(c, <uint16_t>value, packet, family)
    if linktype == 276:                     # protocol first, 20 bytes in all
        value = cursor_u16(c)
        if not cursor_skip(c, 18):
            return LINK_HEADER
        return after_ethertype(c, <uint16_t>value, packet, family)
    if linktype == 113:                     # 14 bytes, then the protocol
        cursor_skip(c, 14)
        value = cursor_u16(c)
        return LINK_HEADER if c.failed else after_ethertype(c, <uint16_t>value, packet, family)
    if linktype == 101 or linktype == 12 or linktype == 14:
        family[0] = ANY_IP
        return DNS
    if linktype == 228:
        family[0] = IPV4
        return DNS
    if linktype == 229:
        family[0] = IPV6
        return DNS
    if linktype == 0 or linktype == 108:
        # An address family, in the byte order of the host that captured; 108: in network order.
        # AF_INET is 2 everywhere; AF_INET6 is 10, 24, 28 or 30.
        value = cursor_u32(c)
        if c.failed:
            return LINK_HEADER
        if linktype == 0 and value & 0x00FFFFFF == 0:
            value >>= 24
        if value == 2:
            family[0] = IPV4
        elif value == 10 or value == 24 or value == 28 or value == 30:
            family[0] = IPV6
        else:
            family[0] = NOT_IP
        return DNS
    if linktype == 51:
        return after_pppoe(c, family)
    if linktype == 9 or linktype == 50:
        p = cursor_take(c, 2)
        if p == NULL:
            return LINK_HEADER
        if not (p[0] == 0xFF and p[1] == 0x03):     # address and control may be compressed away
            c.pos -= 2
        return after_ppp(c, family)
    return LINK_TYPE


cdef int ipv4_decode(Cursor* c, bint snapped, Packet* packet, uint32_t* beyond) noexcept nogil:
    """Step over the IPv4 header.  `beyond` is how much of the datagram the frame lacks."""
    cdef uint32_t start = c.pos, header, total, fragment
    cdef const uint8_t* p = cursor_take(c, 20)
    if p == NULL or p[0] >> 4 != 4:
        return IP_HEADER
    header = (p[0] & 15) * 4
    if header < 20 or not cursor_skip(c, header - 20):
        return IP_HEADER
    total = (p[2] << 8) | p[3]
    if total < header:
        return IP_LENGTH
    fragment = ((p[6] << 8) | p[7]) & 0x3FFF    # more-fragments, or an offset
    if total > c.end - start:
        if not snapped:
            return IP_LENGTH
        beyond[0] = total - (c.end - start)
    else:
        c.end = start + total                   # what follows is the link's padding
    packet.family = 4
    packet.transport = p[9]
    packet.addresses_offset = <uint16_t>(start + 12)
    return FRAGMENT if fragment else DNS


cdef int ipv6_decode(Cursor* c, bint snapped, Packet* packet, uint32_t* beyond) noexcept nogil:
    """Step over the IPv6 header and its extension headers."""
    cdef uint32_t start = c.pos, length, size
    cdef uint8_t next_header
    cdef int _
    cdef const uint8_t* p = cursor_take(c, 40)
    if p == NULL or p[0] >> 4 != 6:
        return IP_HEADER
    length = (p[4] << 8) | p[5]
    if length > c.end - c.pos:
        if not snapped:
            return IP_LENGTH
        beyond[0] = length - (c.end - c.pos)
    else:
        c.end = c.pos + length
    packet.family = 6
    packet.addresses_offset = <uint16_t>(start + 8)
    next_header = p[6]
    for _ in range(MAX_EXTENSIONS + 1):
        if next_header in (0, 43, 60, 135, 139, 140):
            size = 0        # 8-byte units, without the first
            p = cursor_take(c, 2)
            if p != NULL:
                size = p[1] * 8 + 6
        elif next_header == 51:
            size = 0        # 4-byte units, less two (RFC 4302, section 2.2)
            p = cursor_take(c, 2)
            if p != NULL:
                size = (p[1] + 2) * 4 - 2
        elif next_header == 44:
            p = cursor_take(c, 8)
            if p == NULL:
                return IP_EXTENSION
            if ((p[2] << 8) | p[3]) & 0xFFF9:
                packet.transport = p[0]
                return FRAGMENT
            next_header = p[0]
            continue
        else:
            packet.transport = next_header
            return DNS
        if p == NULL or not cursor_skip(c, size):
            return IP_EXTENSION
        next_header = p[0]
    return IP_EXTENSION


cdef int packet_decode(const uint8_t* frame, uint32_t caplen, uint32_t length, int linktype,
                       const uint64_t* ports, Packet* packet) noexcept nogil:
    """Decode frame[0:caplen], of `length` bytes on the wire.  Returns a Fate; the packet is whole
    only if that is DNS."""
    # Offsets are 16 bits wide: nothing before the payload may stand farther in than that.
    cdef Cursor c = cursor_over(frame, 0, caplen)
    cdef bint snapped = caplen < length
    cdef uint32_t beyond = 0, size, room
    cdef int family = NOT_IP
    cdef int fate
    memset(packet, 0, sizeof(Packet))
    fate = link_decode(&c, linktype, packet, &family)
    if fate != DNS:
        return fate
    if family == NOT_IP:
        return OTHER_PROTOCOL
    if family == ANY_IP:
        if not cursor_has(&c, 1):
            return IP_HEADER
        family = cursor_u8(&c) >> 4
        c.pos -= 1
    if family == IPV4:
        fate = ipv4_decode(&c, snapped, packet, &beyond)
    elif family == IPV6:
        fate = ipv6_decode(&c, snapped, packet, &beyond)
    else:
        return IP_HEADER
    if fate != DNS:
        return fate
    if packet.transport != UDP:
        if packet.transport != 6:
            return OTHER_TRANSPORT
        packet.source_port = cursor_u16(&c)
        packet.destination_port = cursor_u16(&c)
        if is_ours(ports, packet.source_port) or is_ours(ports, packet.destination_port):
            return TCP_HEADER
        return TRANSPORT_HEADER if c.failed else OTHER_PORT
    packet.source_port = cursor_u16(&c)
    packet.destination_port = cursor_u16(&c)
    if c.failed:
        return TRANSPORT_HEADER
    if not (is_ours(ports, packet.source_port) or is_ours(ports, packet.destination_port)):
        return OTHER_PORT
    size = cursor_u16(&c)
    cursor_skip(&c, 2)
    if c.failed:
        return TRANSPORT_HEADER
    if size < 8:
        return UDP_LENGTH
    size -= 8
    room = cursor_left(&c)
    if size > room:
        if size > room + beyond:
            return UDP_LENGTH
        packet.cut = True
    packet.wire_payload = <uint16_t>size
    packet.payload_length = size if size < room else room
    if c.pos > 0xFFFF:
        return IP_EXTENSION
    packet.payload_offset = <uint16_t>c.pos
    return DNS


cdef extern from "mix.h" nogil:
    uint64_t fold_multiply(uint64_t a, uint64_t b)


cdef uint64_t flow_hash(const uint8_t* frame, const Packet* packet, uint64_t seed) noexcept nogil:
    """A hash of the 5-tuple that is the same in both directions.

    Each endpoint is hashed by itself, then both in the order of their hashes; adding or xoring the
    fields would put whole subnets on one worker.  The seed is secret, so that a stranger can't
    choose flows that all meet on one worker.
    """
    cdef uint64_t a, b, low
    cdef uint64_t[4] words
    cdef uint32_t[2] v4
    cdef const uint8_t* addresses = frame + packet.addresses_offset
    if packet.family == 4:
        memcpy(v4, addresses, 8)
        a = fold_multiply((<uint64_t>v4[0] << 16 | packet.source_port) ^ seed,
                          0x9E3779B97F4A7C15ULL)
        b = fold_multiply((<uint64_t>v4[1] << 16 | packet.destination_port) ^ seed,
                          0x9E3779B97F4A7C15ULL)
    else:
        memcpy(words, addresses, 32)
        a = fold_multiply(words[0] ^ seed, words[1] ^ 0xD6E8FEB86659FD93ULL)
        a = fold_multiply(a ^ packet.source_port, 0x9E3779B97F4A7C15ULL ^ seed)
        b = fold_multiply(words[2] ^ seed, words[3] ^ 0xD6E8FEB86659FD93ULL)
        b = fold_multiply(b ^ packet.destination_port, 0x9E3779B97F4A7C15ULL ^ seed)
    low = a if a < b else b
    return fold_multiply(low ^ 0xE7037ED1A0B428DBULL, (a ^ b ^ low) ^ seed ^ packet.transport)
