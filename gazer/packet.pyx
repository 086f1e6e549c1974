"""From frame to packet; see packet.pxd.

Link types (their LINKTYPE_ numbers, as pcap files have them): Ethernet (1) with any stack of
802.1Q (0x8100), 802.1ad (0x88a8) and the older 0x9100 tags; PPPoE without Ethernet before it (51);
Linux cooked v1 (113) and v2 (276); BSD null (0) and loop (108); raw IP (101, and 12 and 14 as BSDs
write it), IPv4 (228), IPv6 (229); PPP (9) and PPP in HDLC-like framing (50, RFC 1662).

IPv4 (RFC 791) with options; IPv6 (RFC 8200) with hop-by-hop, routing, destination, AH (RFC 4302),
mobility, HIP and shim6 headers.  A fragment header with neither offset nor more-fragments is an
"atomic" fragment (RFC 6946): a whole datagram.  Checksums are not verified: capture on the sending
host sees them before the network card has filled them in.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from gazer.cursor cimport (
    Cursor, cursor_has, cursor_left, cursor_over, cursor_skip, cursor_take, cursor_u8, cursor_u16,
    cursor_u32)
from gazer.tunnel cimport (
    ANY_IP, BROKEN, ETHERNET, ETHERTYPE, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_MPLS,
    ETHERTYPE_MPLS_UPSTREAM, ETHERTYPE_PPPOE_SESSION, ETHERTYPE_QINQ, ETHERTYPE_QINQ_OLD,
    ETHERTYPE_VLAN, FRAGMENT_HEADER, ICMP, ICMP_6, IPV4, IPV6, NO_LENGTH, NOTHING, OPEN, PPP,
    PPP_FRAMED, PROTOCOL_GRE, PROTOCOL_IPV4, PROTOCOL_IPV6, Inner, Ports, extension_skip,
    geneve_open, gre_open, icmp_quotes, is_extension, mpls_inside, mpls_open, ppp_inside,
    pppoe_open, vxlan_open)

FATES = (
    "dns", "other_port", "other_transport", "other_protocol", "icmp_error", "filtered", "fragment",
    "link_type", "link_header", "too_many_tags", "tunnel_header", "tunnel_depth", "ip_header",
    "ip_length", "ip_extension", "transport_header", "udp_length", "tcp_header")
ENCAPSULATIONS = ("mpls", "pppoe", "gre", "erspan", "vxlan", "geneve", "ip")
PROTOCOLS_OF_DNS = ("dns", "mdns", "llmnr")

assert len(FATES) == FATES_COUNT and len(PROTOCOLS_OF_DNS) == PROTOCOLS
assert len(ENCAPSULATIONS) == ENCAPSULATIONS_COUNT

cdef enum:
    GO_ON = -1              # no fate yet
    # Where a level may begin: offsets are 16 bits wide, and the link layer behind, with all its
    # tags, takes less than the rest.
    FARTHEST = 0xFF00
    UNKNOWN = 0xFFFFFFFF    # `beyond` of a frame that was cut: its own length may be wrong

cdef struct Walk:
    # Where decoding stands.
    Cursor c                # its end is that of the innermost thing that has a length
    uint32_t beyond         # octets of that which the frame may lack
    int next                # Next: what stands at the cursor
    uint16_t ethertype
    uint8_t all_tags        # VLAN tags of all levels
    Packet* packet
    Layer* layers
    Fragment* piece
    const Rules* rules


cdef set_ports(uint64_t* bits, ports):
    for port in ports:
        if not 0 < port < 65536:
            raise ValueError(f"not a port: {port}")
        bits[port >> 6] |= <uint64_t>1 << (port & 63)


cdef class Decoding:
    """The rules of decoding: `ports` carry DNS; `decode` names what is opened (ENCAPSULATIONS)."""

    def __init__(self, ports=(53,), *, bint mdns=False, bint llmnr=False, decode=ENCAPSULATIONS,
                 int max_depth=4, vxlan_ports=(4789,), geneve_ports=(6081,)):
        memset(&self.rules, 0, sizeof(Rules))
        set_ports(self.rules.ports, ports)
        set_ports(self.rules.vxlan_ports, vxlan_ports)
        set_ports(self.rules.geneve_ports, geneve_ports)
        if not 0 < max_depth <= MAX_TUNNELS:
            raise ValueError(f"max_depth is 1 to {MAX_TUNNELS}")
        self.rules.max_depth = <uint8_t>max_depth
        self.rules.mdns, self.rules.llmnr = mdns, llmnr
        for name in decode:
            self.rules.decode |= 1 << <uint32_t>ENCAPSULATIONS.index(name)


cdef inline bint opens(const Walk* w, int kind) noexcept nogil:
    return (w.rules.decode >> kind) & 1


cdef inline bint bound(Walk* w, uint32_t length) noexcept nogil:
    """What is being read from here on has this length; what follows is padding of what is around.
    False if it goes beyond that."""
    cdef uint32_t room = cursor_left(&w.c)
    if length <= room:
        w.c.end = w.c.pos + length
        w.beyond = 0
        return True
    if length - room > w.beyond:
        return False
    w.beyond = length - room
    return True


cdef inline bint ip_bound(Walk* w, uint32_t length) noexcept nogil:
    """The same for IP, whose length counts in a frame that was cut, whatever is around it."""
    if w.beyond != 0:
        w.beyond = UNKNOWN
    return bound(w, length)


cdef inline void clear(Inner* inner) noexcept nogil:
    memset(inner, 0, sizeof(Inner))
    inner.length = NO_LENGTH


cdef int enter(Walk* w, const Inner* inner, bint in_ip) noexcept nogil:
    """A level of encapsulation, whose header has been read."""
    cdef Packet* packet = w.packet
    cdef Layer* layer
    cdef uint32_t room
    if packet.layers >= w.rules.max_depth:
        return TUNNEL_DEPTH
    if w.c.pos > FARTHEST:
        return TUNNEL_HEADER
    layer = &w.layers[packet.layers]
    layer.kind = inner.kind
    layer.family = packet.family if in_ip else 0
    layer.addresses_offset = packet.addresses_offset if in_ip else 0
    layer.tags = packet.tags
    layer.tags_offset = packet.tags_offset
    layer.has_id = inner.has_id
    layer.id = inner.id
    packet.layers += 1
    packet.tags = 0
    packet.tags_offset = 0
    w.next = inner.next
    w.ethertype = inner.ethertype
    if inner.length != NO_LENGTH:
        room = cursor_left(&w.c)
        if inner.length <= room:
            bound(w, inner.length)
        elif w.beyond > inner.length - room:    # too long: what is inside says it better
            w.beyond = inner.length - room
    return GO_ON


# --- link layers ---------------------------------------------------------------------------------

cdef int pppoe_decode(Walk* w) noexcept nogil:
    cdef Inner inner
    cdef int opening
    if not opens(w, PPPOE):
        return OTHER_PROTOCOL
    clear(&inner)
    opening = pppoe_open(&w.c, &inner)
    if opening != OPEN:
        return TUNNEL_HEADER if opening == BROKEN else OTHER_PROTOCOL
    return enter(w, &inner, False)


cdef int mpls_decode(Walk* w) noexcept nogil:
    cdef Inner inner
    cdef int fate
    if not opens(w, MPLS):
        return OTHER_PROTOCOL
    clear(&inner)
    if mpls_open(&w.c, &inner) != OPEN:
        return TUNNEL_HEADER
    fate = enter(w, &inner, False)
    if fate != GO_ON:
        return fate
    if mpls_inside(&w.c, &inner) != OPEN:
        return TUNNEL_HEADER
    w.next = inner.next
    return GO_ON


cdef int ethertype_decode(Walk* w) noexcept nogil:
    """Behind an EtherType: VLAN tags, then IP, or a level of encapsulation."""
    cdef Packet* packet = w.packet
    while (w.ethertype == ETHERTYPE_VLAN or w.ethertype == ETHERTYPE_QINQ
           or w.ethertype == ETHERTYPE_QINQ_OLD):
        if w.all_tags == MAX_TAGS:
            return TAGS
        if packet.tags == 0:
            packet.tags_offset = <uint16_t>w.c.pos
        packet.tags += 1
        w.all_tags += 1
        cursor_skip(&w.c, 2)
        w.ethertype = cursor_u16(&w.c)
        if w.c.failed:
            return LINK_HEADER
    if w.ethertype == ETHERTYPE_IPV4:
        w.next = IPV4
    elif w.ethertype == ETHERTYPE_IPV6:
        w.next = IPV6
    elif w.ethertype == ETHERTYPE_PPPOE_SESSION:
        return pppoe_decode(w)
    elif w.ethertype == ETHERTYPE_MPLS or w.ethertype == ETHERTYPE_MPLS_UPSTREAM:
        return mpls_decode(w)
    else:
        return OTHER_PROTOCOL
    return GO_ON


cdef inline int link_layer(Walk* w) noexcept nogil:
    """On to an IP header: w.next is IPV4 or IPV6, or the fate is there."""
    cdef int fate
    while True:
        if w.next == ETHERNET:
            cursor_skip(&w.c, 12)
            w.ethertype = cursor_u16(&w.c)
            if w.c.failed:
                return LINK_HEADER
            fate = ethertype_decode(w)
        elif w.next == ETHERTYPE:
            fate = ethertype_decode(w)
        elif w.next == IPV4 or w.next == IPV6:
            return GO_ON
        elif w.next == ANY_IP:
            if not cursor_has(&w.c, 1):
                return IP_HEADER
            fate = cursor_u8(&w.c) >> 4
            w.c.pos -= 1
            if fate != 4 and fate != 6:
                return IP_HEADER
            w.next = IPV4 if fate == 4 else IPV6
            return GO_ON
        elif w.next == PPP or w.next == PPP_FRAMED:
            fate = GO_ON
            w.next = ppp_inside(&w.c, w.next == PPP_FRAMED)
            if w.c.failed:      # within a tunnel it belongs to that one's header
                return TUNNEL_HEADER if w.packet.layers else LINK_HEADER
        else:
            return OTHER_PROTOCOL
        if fate != GO_ON:
            return fate


cdef int rare_link(Walk* w, int linktype) noexcept nogil:
    """Step into a frame whose link type is not Ethernet."""
    cdef uint32_t value
    if linktype == 276:                     # protocol first, 20 bytes in all
        w.ethertype = cursor_u16(&w.c)
        w.next = ETHERTYPE
        return GO_ON if cursor_skip(&w.c, 18) else LINK_HEADER
    if linktype == 113:                     # 14 bytes, then the protocol
        cursor_skip(&w.c, 14)
        w.ethertype = cursor_u16(&w.c)
        w.next = ETHERTYPE
        return LINK_HEADER if w.c.failed else GO_ON
    if linktype == 101 or linktype == 12 or linktype == 14:
        w.next = ANY_IP
    elif linktype == 228:
        w.next = IPV4
    elif linktype == 229:
        w.next = IPV6
    elif linktype == 0 or linktype == 108:
        # An address family, in the byte order of the host that captured; 108: in network order.
        # AF_INET is 2 everywhere; AF_INET6 is 10, 24, 28 or 30.
        value = cursor_u32(&w.c)
        if w.c.failed:
            return LINK_HEADER
        if linktype == 0 and value & 0x00FFFFFF == 0:
            value >>= 24
        if value == 2:
            w.next = IPV4
        elif value == 10 or value == 24 or value == 28 or value == 30:
            w.next = IPV6
        else:
            return OTHER_PROTOCOL
    elif linktype == 51:
        return pppoe_decode(w)
    elif linktype == 9 or linktype == 50:
        w.next = PPP_FRAMED
    else:
        return LINK_TYPE
    return GO_ON


# --- IP ------------------------------------------------------------------------------------------

cdef bint may_be_ours(const Walk* w, uint8_t protocol) noexcept nogil:
    """Can a datagram of this IP protocol become a packet?"""
    if protocol == UDP or protocol == TCP:
        return True
    if protocol == PROTOCOL_GRE:
        return opens(w, GRE) or opens(w, ERSPAN)
    if protocol == PROTOCOL_IPV4 or protocol == PROTOCOL_IPV6:
        return opens(w, IP_IN_IP)
    return w.packet.family == 6 and is_extension(protocol)


cdef int piece_found(Walk* w, uint8_t protocol, uint32_t head, uint32_t id, uint32_t offset,
                     bint more) noexcept nogil:
    cdef Fragment* f = w.piece
    if not may_be_ours(w, protocol):
        return OTHER_TRANSPORT
    if head > 0xFFFF:
        return IP_EXTENSION
    f.family = w.packet.family
    f.protocol = protocol
    f.more = more
    f.cut = w.beyond != 0
    f.id = id
    f.offset = offset
    f.addresses_offset = w.packet.addresses_offset
    f.head_length = <uint16_t>head
    f.payload_offset = w.c.pos
    f.payload_length = cursor_left(&w.c)
    return FRAGMENT


cdef inline int ipv4_decode(Walk* w) noexcept nogil:
    """Step over the IPv4 header."""
    cdef Packet* packet = w.packet
    cdef uint32_t start = w.c.pos, header, total, words
    cdef const uint8_t* p = cursor_take(&w.c, 20)
    if p == NULL or p[0] >> 4 != 4:
        return IP_HEADER
    header = (p[0] & 15) * 4
    if header < 20:
        return IP_HEADER
    total = (p[2] << 8) | p[3]
    if total < header or not ip_bound(w, total - 20):
        return IP_LENGTH
    if not cursor_skip(&w.c, header - 20):
        return IP_HEADER
    packet.family = 4
    packet.transport = p[9]
    packet.addresses_offset = <uint16_t>(start + 12)
    words = (p[6] << 8) | p[7]
    if words & 0x3FFF:                          # more-fragments, or an offset
        return piece_found(w, p[9], w.c.pos, (p[4] << 8) | p[5], (words & 0x1FFF) * 8,
                           (words & 0x2000) != 0)
    return GO_ON


cdef int extensions_decode(Walk* w, uint8_t next_header) noexcept nogil:
    """Step over IPv6's extension headers."""
    cdef Packet* packet = w.packet
    cdef const uint8_t* p
    cdef uint32_t words
    cdef int following
    while next_header == FRAGMENT_HEADER or is_extension(next_header):
        if packet.extensions == MAX_EXTENSIONS:
            return IP_EXTENSION
        packet.extensions += 1
        if next_header == FRAGMENT_HEADER:
            p = cursor_take(&w.c, 8)
            if p == NULL:
                return IP_EXTENSION
            words = (p[2] << 8) | p[3]
            if words & 0xFFF9:
                return piece_found(
                    w, p[0], w.c.pos - 8,
                    (<uint32_t>p[4] << 24) | (<uint32_t>p[5] << 16) | (p[6] << 8) | p[7],
                    words & 0xFFF8, words & 1)
            next_header = p[0]
        else:
            following = extension_skip(&w.c, next_header)
            if following < 0:
                return IP_EXTENSION
            next_header = <uint8_t>following
    packet.transport = next_header
    return GO_ON


cdef inline int ipv6_decode(Walk* w) noexcept nogil:
    """Step over the IPv6 header and its extension headers."""
    cdef Packet* packet = w.packet
    cdef uint32_t start = w.c.pos
    cdef const uint8_t* p = cursor_take(&w.c, 40)
    if p == NULL or p[0] >> 4 != 6:
        return IP_HEADER
    if not ip_bound(w, (p[4] << 8) | p[5]):
        return IP_LENGTH
    packet.family = 6
    packet.addresses_offset = <uint16_t>(start + 8)
    packet.extensions = 0
    return extensions_decode(w, p[6])


# --- what IP carries -----------------------------------------------------------------------------

cdef int udp_tunnel(Walk* w) noexcept nogil:
    """UDP between ports that are not ours: perhaps to a tunnel's."""
    cdef uint16_t size
    cdef Inner inner
    cdef int kind = tunnel_of(w.rules, w.packet.destination_port), opening
    if kind < 0:
        return OTHER_PORT if cursor_has(&w.c, 4) else TRANSPORT_HEADER
    size = cursor_u16(&w.c)
    cursor_skip(&w.c, 2)
    if w.c.failed:
        return TRANSPORT_HEADER
    if size < 8 or not bound(w, size - 8):
        return UDP_LENGTH
    clear(&inner)
    opening = vxlan_open(&w.c, &inner) if kind == VXLAN else geneve_open(&w.c, &inner)
    if opening != OPEN:
        return TUNNEL_HEADER if opening == BROKEN else OTHER_PORT
    return enter(w, &inner, True)


cdef inline int payload_found(Walk* w) noexcept nogil:
    """All that is left is payload."""
    cdef Packet* packet = w.packet
    packet.payload_length = cursor_left(&w.c)
    packet.wire_payload = <uint16_t>(packet.payload_length + w.beyond)
    packet.cut = w.beyond != 0
    if w.c.pos > 0xFFFF:
        return IP_EXTENSION
    packet.payload_offset = <uint16_t>w.c.pos
    return DNS


cdef inline int udp_decode(Walk* w) noexcept nogil:
    cdef Packet* packet = w.packet
    cdef uint32_t size
    cdef int protocol
    packet.source_port = cursor_u16(&w.c)
    packet.destination_port = cursor_u16(&w.c)
    if w.c.failed:
        return TRANSPORT_HEADER
    protocol = protocol_of(w.rules, packet.source_port, packet.destination_port)
    if protocol < 0:
        return udp_tunnel(w)
    packet.protocol = <uint8_t>protocol
    size = cursor_u16(&w.c)
    cursor_skip(&w.c, 2)
    if w.c.failed:
        return TRANSPORT_HEADER
    if size < 8 or not bound(w, size - 8):
        return UDP_LENGTH
    return payload_found(w)


cdef int tcp_decode(Walk* w) noexcept nogil:
    """RFC 9293, section 3.1."""
    cdef Packet* packet = w.packet
    cdef const uint8_t* p
    cdef uint32_t header, missing
    cdef int protocol
    packet.source_port = cursor_u16(&w.c)
    packet.destination_port = cursor_u16(&w.c)
    if w.c.failed:
        return TRANSPORT_HEADER
    protocol = protocol_of(w.rules, packet.source_port, packet.destination_port)
    if protocol < 0:
        return OTHER_PORT
    packet.protocol = <uint8_t>protocol
    packet.tcp_sequence = cursor_u32(&w.c)
    packet.tcp_acknowledgement = cursor_u32(&w.c)
    p = cursor_take(&w.c, 8)
    if p == NULL:
        return TCP_HEADER
    packet.tcp_flags = p[1]
    header = (p[0] >> 4) * 4
    if header < 20:
        return TCP_HEADER
    header -= 20
    if header > cursor_left(&w.c):
        missing = header - cursor_left(&w.c)
        if missing > w.beyond:
            return TCP_HEADER
        w.beyond -= missing                     # the options are cut: no payload is there
        w.c.pos = w.c.end
    else:
        cursor_skip(&w.c, header)
    return payload_found(w)


cdef int other_decode(Walk* w) noexcept nogil:
    """IP that carries neither UDP nor TCP: a tunnel, or ICMP."""
    cdef Packet* packet = w.packet
    cdef Inner inner
    cdef Ports ports
    cdef int opening
    if packet.transport == (ICMP if packet.family == 4 else ICMP_6):
        if (icmp_quotes(&w.c, packet.family == 6, &ports) >= 0
                and protocol_of(w.rules, ports.source, ports.destination) >= 0):
            return ICMP_ERROR
        return OTHER_TRANSPORT
    if not may_be_ours(w, packet.transport):
        return OTHER_TRANSPORT
    clear(&inner)
    if packet.transport == PROTOCOL_GRE:
        if cursor_left(&w.c) < 4:
            return TUNNEL_HEADER
        opening = gre_open(&w.c, &inner)
        if not opens(w, inner.kind):
            return OTHER_TRANSPORT
        if opening != OPEN:
            return TUNNEL_HEADER if opening == BROKEN else OTHER_TRANSPORT
    else:
        inner.kind = IP_IN_IP
        inner.next = IPV4 if packet.transport == PROTOCOL_IPV4 else IPV6
    return enter(w, &inner, True)


cdef inline int transport_decode(Walk* w) noexcept nogil:
    if w.packet.transport == UDP:
        return udp_decode(w)
    if w.packet.transport == TCP:
        return tcp_decode(w)
    return other_decode(w)


# --- the walk ------------------------------------------------------------------------------------

cdef inline int walk(Walk* w) noexcept nogil:
    cdef int fate
    while True:
        fate = link_layer(w)
        if fate != GO_ON:
            return fate
        fate = ipv4_decode(w) if w.next == IPV4 else ipv6_decode(w)
        if fate != GO_ON:
            return fate
        fate = transport_decode(w)
        if fate != GO_ON:
            return fate


cdef inline bint plain_decode(Cursor* c, const Rules* rules, Packet* packet) noexcept nogil:
    """Nearly every frame at one look: Ethernet, IPv4 without options and in one piece, UDP, a port
    of DNS, all of it there.  False: anything else, of which nothing has been noted."""
    cdef const uint8_t* p = cursor_take(c, 42)
    cdef uint32_t total, size
    cdef uint16_t source, destination
    if p == NULL or p[12] != 8 or p[13] != 0 or p[14] != 0x45 or p[23] != UDP:
        return False
    total = (p[16] << 8) | p[17]
    size = (p[38] << 8) | p[39]
    source = (p[34] << 8) | p[35]
    destination = (p[36] << 8) | p[37]
    if ((p[20] & 0x3F) | p[21] or total > cursor_left(c) + 28 or size < 8 or size + 20 > total
            or not (has_port(rules.ports, source) or has_port(rules.ports, destination))):
        return False
    packet.family = 4
    packet.transport = UDP
    packet.source_port = source
    packet.destination_port = destination
    packet.addresses_offset = 26
    packet.payload_offset = 42
    packet.wire_payload = <uint16_t>(size - 8)
    packet.payload_length = size - 8
    return True


cdef int packet_decode(const uint8_t* frame, uint32_t caplen, uint32_t length, int linktype,
                       const Rules* rules, Packet* packet, Layer* layers,
                       Fragment* piece) noexcept nogil:
    """Decode frame[0:caplen], of `length` bytes on the wire.  Returns a Fate; packet and layers are
    whole only if that is DNS; the piece is there if it is FRAGMENT."""
    cdef Walk w
    cdef int fate
    memset(packet, 0, sizeof(Packet))
    w.c = cursor_over(frame, 0, caplen)
    if linktype == 1 and plain_decode(&w.c, rules, packet):
        return DNS
    w.c = cursor_over(frame, 0, caplen)
    w.beyond = UNKNOWN if caplen < length else 0
    w.next = ETHERNET
    w.ethertype = 0
    w.all_tags = 0
    w.packet = packet
    w.layers = layers
    w.piece = piece
    w.rules = rules
    if linktype != 1:
        fate = rare_link(&w, linktype)
        if fate != GO_ON:
            return fate
    return bounded(walk(&w), packet, layers)


cdef int packet_resume(const uint8_t* frame, uint32_t start, uint32_t caplen, uint32_t length,
                       uint8_t protocol, const Rules* rules, Packet* packet, Layer* layers,
                       Fragment* piece) noexcept nogil:
    """Go on behind the IP header of a datagram that came in pieces: its payload is
    frame[start:caplen]; what is before it, and packet and layers, are of its first piece.
    `length` is that of the frame before it was cut.  Returns a Fate, as packet_decode does."""
    cdef Walk w
    cdef int fate = GO_ON, i
    w.c = cursor_over(frame, start, caplen)
    w.beyond = length - caplen
    w.next = NOTHING
    w.ethertype = 0
    w.all_tags = packet.tags
    for i in range(packet.layers):
        w.all_tags += layers[i].tags
    w.packet = packet
    w.layers = layers
    w.piece = piece
    w.rules = rules
    packet.transport = protocol
    if packet.family == 6:
        fate = extensions_decode(&w, protocol)
    if fate == GO_ON:
        fate = transport_decode(&w)
    return bounded(walk(&w) if fate == GO_ON else fate, packet, layers)
