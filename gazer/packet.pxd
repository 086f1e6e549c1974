"""From frame to packet: link layer, tunnels, IP, UDP and TCP.  No I/O.

A `Packet` says where things stand in its frame; it copies nothing.  What can't be decoded is not
guessed at: `packet_decode` returns why, one of `Fate`, and capture counts it under that.

A frame may hold packets within packets.  Each level of encapsulation is a `Layer`, the outermost
first; Packet tells of the innermost packet:

    Ethernet | VLAN 100 | IPv4 | UDP 4789 | VXLAN 42 | Ethernet | VLAN 7 | IPv4 | UDP 53 | DNS
               `------ layers[0]: vxlan, id 42, ------'            `tags'  `--- Packet ---'
                       tags 1 (VLAN 100), IPv4 addresses

Encapsulation.  A frame is walked from the outside to the inside: a link layer, IP, a transport;
where that is a tunnel that `Rules` opens, its level is noted and the walk begins anew behind its
header (tunnel.pyx).  It ends, since each level takes octets, their number is limited, and tags and
extension headers are.

    link layer ──▶ IP ──▶ UDP or TCP of our ports: the packet
    ▲  │   ▲               │
    │  └───┘ MPLS, PPPoE   └─▶ GRE, ERSPAN, VXLAN, Geneve, IP in IP ──┐
    └─────────────────────────────────────────────────────────────────┘

Lengths.  Each header that has one bounds what is inside; a length beyond what is around it is
wrong, but for a frame that the capture cut (snaplen): `beyond` is how many octets may be missing at
the end of what is being read, and it shrinks on the way in as headers say more exactly how much.

Fragments.  A piece of a datagram is no packet yet: packet_decode fills a `Fragment` and leaves in
Packet and layers what is known up to there; when the datagram is whole, packet_resume goes on.
Only pieces that may become ours are told of as such: UDP, TCP, what carries a tunnel that is
opened, and IPv6 extension headers, behind which all of them may stand.

ICMP errors quote the packet that they are about; those that quote one of our ports have a fate of
their own, so that nobody takes them for queries nor misses them in the count.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:          # Fate
    # What becomes of a frame at capture; the names, in this order, are gazer.packet.FATES.
    DNS = 0             # of one of our ports: delivered to a worker
    OTHER_PORT          # UDP or TCP between ports that are not ours: not DNS
    OTHER_TRANSPORT     # IP that carries neither UDP nor TCP: not DNS
    OTHER_PROTOCOL      # not IP at all (ARP, LLDP, ...): not DNS
    ICMP_ERROR          # an ICMP error that quotes a packet of one of our ports: not DNS
    FILTERED            # capture.filter leaves it out: not looked at
    FRAGMENT            # a piece of an IP datagram: held, or given up (see capture/fragments)
    LINK_TYPE           # a link type we do not know
    LINK_HEADER         # the frame is shorter than its link header
    TAGS                # more VLAN tags than MAX_TAGS
    TUNNEL_HEADER       # a tunnel's header that breaks off or can't be right
    TUNNEL_DEPTH        # more levels of encapsulation than tunnels.max_depth
    IP_HEADER           # no valid IPv4 or IPv6 header
    IP_LENGTH           # the IP length goes beyond the frame, or is shorter than the header
    IP_EXTENSION        # a chain of IPv6 extension headers that breaks off or never ends
    TRANSPORT_HEADER    # shorter than the ports, or than a UDP header
    UDP_LENGTH          # the UDP length goes beyond its datagram, or is shorter than the header
    TCP_HEADER          # a TCP header that breaks off or can't be right
    FATES_COUNT

cdef enum:          # Protocol: which of the DNS protocols a port belongs to
    PROTOCOL_DNS = 0
    PROTOCOL_MDNS       # RFC 6762
    PROTOCOL_LLMNR      # RFC 4795
    PROTOCOLS

cdef enum:          # Encapsulation; the names, in this order, are gazer.packet.ENCAPSULATIONS
    MPLS = 0            # RFC 3032
    PPPOE               # RFC 2516
    GRE                 # RFC 2784, 2890, 2637
    ERSPAN              # draft-foschiano-erspan: types I, II, III
    VXLAN               # RFC 7348
    GENEVE              # RFC 8926
    IP_IN_IP            # RFC 2003, 4213, 2473
    ENCAPSULATIONS_COUNT

cdef enum:
    MAX_TAGS = 16       # of 802.1Q/802.1ad, all levels together; real networks stack two or three
    MAX_TUNNELS = 8     # levels, at most; tunnels.max_depth may be less
    # Octets of what tells networks apart (flow.pxd): sixteen VLAN tags of the innermost link layer,
    # or eight VNIs, or fewer of both.
    MAX_SCOPE = 32
    MAX_EXTENSIONS = 16  # of IPv6; hosts send one or two
    TCP = 6
    UDP = 17
    MDNS_PORT = 5353
    LLMNR_PORT = 5355

cdef enum:          # TcpFlag
    TCP_FIN = 1
    TCP_SYN = 2
    TCP_RST = 4
    TCP_ACK = 16


cdef struct Layer:
    # One level of encapsulation.
    uint8_t kind                # Encapsulation
    uint8_t family              # of the IP that carries it: 4 or 6; 0: none does (MPLS, PPPoE)
    uint8_t tags                # VLAN tags read since the level before
    uint8_t has_id
    uint32_t id                 # VNI, GRE key, session id, or bottom label
    uint16_t tags_offset        # in the frame: the first tag's TCI; the next one is 4 bytes on
    uint16_t addresses_offset   # in the frame: source, then destination


cdef struct Packet:
    uint8_t family              # 4 or 6
    uint8_t transport           # IP protocol number: UDP or TCP
    uint8_t protocol            # Protocol
    uint8_t tags                # VLAN tags of the innermost link layer
    uint8_t layers              # levels of encapsulation around it
    uint8_t cut                 # the payload is shorter than on the wire (snaplen)
    uint8_t tcp_flags
    uint8_t extensions          # of IPv6, fragment headers included
    uint16_t source_port
    uint16_t destination_port
    uint16_t tags_offset        # in the frame: the first tag's TCI; the next one is 4 bytes on
    uint16_t addresses_offset   # in the frame: the source address, then the destination's
    uint16_t payload_offset     # in the frame
    uint16_t wire_payload       # bytes of payload on the wire
    uint32_t payload_length     # bytes of payload in the frame
    uint32_t tcp_sequence
    uint32_t tcp_acknowledgement


cdef struct Fragment:
    # What packet_decode knows of a piece of an IP datagram (fate FRAGMENT), beside its Packet,
    # which has the family, the addresses, the tags and the levels.
    uint8_t family
    uint8_t protocol            # of what was cut up: IPv4's, or the fragment header's next header
    bint more                   # it is not the last piece
    bint cut                    # the capture lacks a part of it
    uint32_t id
    uint32_t offset             # of this piece in the payload, octets
    uint16_t addresses_offset   # in the frame: source, then destination
    uint16_t head_length        # to the end of IPv4's header, or to IPv6's fragment header
    uint32_t payload_offset     # in the frame
    uint32_t payload_length     # octets of it in the frame


cdef struct Rules:
    # What is ours, and what is opened to find it.  One bit for each port, one for each kind.
    uint64_t ports[1024]        # UDP and TCP ports that carry DNS
    uint64_t vxlan_ports[1024]  # UDP ports to which VXLAN, and Geneve, is sent
    uint64_t geneve_ports[1024]
    uint32_t decode             # 1 << Encapsulation
    uint8_t max_depth           # levels; at most MAX_TUNNELS
    bint mdns
    bint llmnr


cdef class Decoding:
    # The Rules, from Python.
    cdef Rules rules


cdef inline bint has_port(const uint64_t* ports, uint16_t port) noexcept nogil:
    return (ports[port >> 6] >> (port & 63)) & 1


cdef inline int protocol_of(const Rules* rules, uint16_t a, uint16_t b) noexcept nogil:
    """The Protocol that these two ports belong to; -1 if they are not ours."""
    if has_port(rules.ports, a) or has_port(rules.ports, b):
        return PROTOCOL_DNS
    if rules.mdns and (a == MDNS_PORT or b == MDNS_PORT):
        return PROTOCOL_MDNS
    if rules.llmnr and (a == LLMNR_PORT or b == LLMNR_PORT):
        return PROTOCOL_LLMNR
    return -1


cdef inline int tunnel_of(const Rules* rules, uint16_t destination) noexcept nogil:
    """The Encapsulation that is sent to this UDP port; -1 if none that is opened."""
    if (rules.decode >> VXLAN) & 1 and has_port(rules.vxlan_ports, destination):
        return VXLAN
    if (rules.decode >> GENEVE) & 1 and has_port(rules.geneve_ports, destination):
        return GENEVE
    return -1


cdef inline int bounded(int fate, const Packet* packet, const Layer* layers) noexcept nogil:
    """The fate, or TAGS if the packet's scope would take more than MAX_SCOPE."""
    cdef uint32_t scope = 2 * packet.tags
    cdef int i
    if packet.layers == 0:
        return fate
    for i in range(packet.layers):
        if layers[i].kind == VXLAN or layers[i].kind == GENEVE:
            scope += 4
    return TAGS if scope > MAX_SCOPE and (fate == DNS or fate == FRAGMENT) else fate


# `layers` has room for MAX_TUNNELS.
cdef int packet_decode(const uint8_t* frame, uint32_t caplen, uint32_t length, int linktype,
                       const Rules* rules, Packet* packet, Layer* layers,
                       Fragment* piece) noexcept nogil
cdef int packet_resume(const uint8_t* frame, uint32_t start, uint32_t caplen, uint32_t length,
                       uint8_t protocol, const Rules* rules, Packet* packet, Layer* layers,
                       Fragment* piece) noexcept nogil
