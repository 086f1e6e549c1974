"""From frame to packet: link layer, IP, UDP; and the hash of the flow.  Pure, no I/O.

A `Packet` says where things stand in its frame; it copies nothing.  What can't be decoded is not
guessed at: `packet_decode` returns why, one of `Fate`, and capture counts it under that.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:          # Fate
    # What becomes of a frame at capture; the names, in this order, are gazer.packet.FATES.
    DNS = 0             # a DNS message in UDP: delivered to a worker
    OTHER_PORT          # UDP or TCP between ports that are not ours: not DNS
    OTHER_TRANSPORT     # IP that carries neither UDP nor TCP: not DNS
    OTHER_PROTOCOL      # not IP at all (ARP, LLDP, ...): not DNS
    TCP                 # a TCP segment of one of our ports: not reassembled yet
    FRAGMENT            # a part of an IP datagram: not reassembled yet
    LINK_TYPE           # a link type we do not know
    LINK_HEADER         # the frame is shorter than its link header
    TAGS                # more VLAN tags than MAX_TAGS
    IP_HEADER           # no valid IPv4 or IPv6 header
    IP_LENGTH           # the IP length goes beyond the frame, or is shorter than the header
    IP_EXTENSION        # a chain of IPv6 extension headers that breaks off or never ends
    TRANSPORT_HEADER          # shorter than the ports, or than a UDP header
    UDP_LENGTH          # the UDP length goes beyond its datagram, or is shorter than the header
    FATES_COUNT

cdef enum:
    MAX_TAGS = 16       # of 802.1Q/802.1ad; real networks stack two or three
    MAX_EXTENSIONS = 16  # of IPv6; hosts send one or two
    UDP = 17


cdef struct Packet:
    uint8_t family              # 4 or 6
    uint8_t transport           # IP protocol number: UDP
    uint8_t tags                # how many VLAN tags
    uint8_t cut                 # the payload is shorter than on the wire (snaplen)
    uint16_t source_port
    uint16_t destination_port
    uint16_t tags_offset        # in the frame: the first tag's TCI; the next one is 4 bytes on
    uint16_t addresses_offset   # in the frame: the source address, then the destination's
    uint16_t payload_offset     # in the frame
    uint16_t wire_payload       # bytes of payload on the wire
    uint32_t payload_length     # bytes of payload in the frame


cdef class Ports:
    # Which UDP and TCP ports carry DNS: one bit each.
    cdef uint64_t bits[1024]


cdef inline bint is_ours(const uint64_t* ports, uint16_t port) noexcept nogil:
    return (ports[port >> 6] >> (port & 63)) & 1


cdef int packet_decode(const uint8_t* frame, uint32_t caplen, uint32_t length, int linktype,
                       const uint64_t* ports, Packet* packet) noexcept nogil
cdef uint64_t flow_hash(const uint8_t* frame, const Packet* packet, uint64_t seed) noexcept nogil
