"""What a packet travelled in: scope, which tells networks apart, and the outer identity, which events
show.

Scope is part of every key: the VLAN ids of the innermost link layer and the VNIs of all VXLAN and
Geneve levels.  The rest of the outer identity is not: GRE keys, ERSPAN sessions, MPLS labels and
the tunnels' endpoints may differ between a query and its reply.

    scope    VID (2 octets, top bits clear) ...   0x80 VNI (4 octets) ...
    Outer    for packets that came in a tunnel:
             number of VLAN ids | VIDs (2 each), of all levels, the outermost first
             number of levels   | for each: kind, family, has id, id (4), source, destination
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from gazer.packet cimport Layer, Packet

cdef enum:
    MAX_SCOPE = 32          # octets; packet_decode refuses what would need more
    LEVEL = 7               # octets of a level, before its addresses
    MAX_OUTER = 346         # 2 + 2 * MAX_TAGS + MAX_TUNNELS * (LEVEL + 32)


cdef struct Outer:
    uint32_t length                 # octets used; 0: no tunnel
    uint8_t[MAX_OUTER] bytes


cdef struct Level:
    # One level, read back from an Outer.
    uint8_t kind                    # Encapsulation
    uint8_t family                  # 4, 6, or 0: no addresses
    bint has_id
    uint32_t id
    const uint8_t* addresses        # source, then destination


cdef int scope_of(const uint8_t* frame, uint32_t caplen, const Packet* packet, const Layer* layers,
                  uint8_t* scope) noexcept nogil
cdef bint outer_of(const uint8_t* frame, uint32_t caplen, const Packet* packet,
                   const Layer* layers, Outer* outer) noexcept nogil
cdef uint32_t outer_length(const uint8_t* outer) noexcept nogil
cdef uint32_t outer_tags(const uint8_t* outer) noexcept nogil
cdef uint16_t outer_tag(const uint8_t* outer, uint32_t i) noexcept nogil
cdef uint32_t outer_levels(const uint8_t* outer, uint32_t* at) noexcept nogil
cdef void outer_level(const uint8_t* outer, uint32_t* at, Level* level) noexcept nogil
