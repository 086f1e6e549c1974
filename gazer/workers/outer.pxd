"""The outer identity: what a packet travelled in, for events to show.

Only the scope (flow.pxd) is part of keys.  The rest is not: GRE keys, ERSPAN sessions, MPLS labels
and the tunnels' endpoints may differ between a query and its reply.

    Outer    number of VLAN ids | VIDs (2 each), of all levels, the outermost first
             number of levels   | for each: kind, family, has id, id (4), source, destination
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from gazer.packet cimport Layer, Packet

cdef enum:
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


cdef bint outer_of(const uint8_t* frame, uint32_t caplen, const Packet* packet,
                   const Layer* layers, Outer* outer) noexcept nogil
cdef uint32_t outer_length(const uint8_t* outer) noexcept nogil
cdef uint32_t outer_tags(const uint8_t* outer) noexcept nogil
cdef uint16_t outer_tag(const uint8_t* outer, uint32_t i) noexcept nogil
cdef uint32_t outer_levels(const uint8_t* outer, uint32_t* at) noexcept nogil
cdef void outer_level(const uint8_t* outer, uint32_t* at, Level* level) noexcept nogil
