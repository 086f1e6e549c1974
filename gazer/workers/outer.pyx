"""What a packet travelled in; see outer.pxd.  Frames are read by a cursor; an Outer is ours."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from gazer.cursor cimport Cursor, cursor_over, cursor_take, cursor_u16
from gazer.packet cimport ENCAPSULATIONS_COUNT, MAX_TAGS, MAX_TUNNELS, Layer, Packet

from gazer.packet import ENCAPSULATIONS

cdef const char* NAMES[ENCAPSULATIONS_COUNT]
_kept = [name.encode() for name in ENCAPSULATIONS]     # the bytes that NAMES points into
cdef int _i
for _i in range(ENCAPSULATIONS_COUNT):
    NAMES[_i] = _kept[_i]

assert MAX_OUTER == 2 + 2 * MAX_TAGS + MAX_TUNNELS * (LEVEL + 32)


cdef uint32_t put_tags(const uint8_t* frame, uint32_t caplen, uint32_t offset, uint32_t n,
                       uint8_t* to) noexcept nogil:
    """The VLAN ids of n tags (priority and DEI may differ by direction) as two octets each."""
    cdef Cursor c = cursor_over(frame, offset, caplen)
    cdef uint16_t tag
    cdef uint32_t i
    for i in range(n):
        tag = cursor_u16(&c) & 0xFFF
        cursor_u16(&c)
        to[2 * i] = <uint8_t>(tag >> 8)
        to[2 * i + 1] = <uint8_t>tag
    return 2 * n


cdef bint outer_of(const uint8_t* frame, uint32_t caplen, const Packet* packet,
                   const Layer* layers, Outer* outer) noexcept nogil:
    """Write the outer identity of a packet that came in a tunnel; False if it can't be right."""
    cdef uint8_t* to = outer.bytes
    cdef uint32_t n = 1, tags = packet.tags, i, size
    cdef Cursor c
    cdef const uint8_t* addresses
    outer.length = 0
    if packet.layers > MAX_TUNNELS:
        return False
    for i in range(packet.layers):
        if layers[i].kind >= ENCAPSULATIONS_COUNT:
            return False
        tags += layers[i].tags
    if tags > MAX_TAGS:
        return False
    to[0] = <uint8_t>tags
    for i in range(packet.layers):
        n += put_tags(frame, caplen, layers[i].tags_offset, layers[i].tags, to + n)
    n += put_tags(frame, caplen, packet.tags_offset, packet.tags, to + n)
    to[n] = packet.layers
    n += 1
    for i in range(packet.layers):
        to[n] = layers[i].kind
        to[n + 1] = layers[i].family
        to[n + 2] = layers[i].has_id
        memcpy(to + n + 3, &layers[i].id, 4)
        n += LEVEL
        size = 0 if layers[i].family == 0 else 8 if layers[i].family == 4 else 32
        c = cursor_over(frame, layers[i].addresses_offset, caplen)
        addresses = cursor_take(&c, size)
        if addresses == NULL:
            return False
        memcpy(to + n, addresses, size)
        n += size
    outer.length = n
    return True


cdef uint32_t outer_length(const uint8_t* outer) noexcept nogil:
    """How many octets it has."""
    cdef uint32_t at, _
    cdef Level level
    for _ in range(outer_levels(outer, &at)):
        outer_level(outer, &at, &level)
    return at


cdef uint32_t outer_tags(const uint8_t* outer) noexcept nogil:
    """How many VLAN ids there are."""
    return outer[0]


cdef uint16_t outer_tag(const uint8_t* outer, uint32_t i) noexcept nogil:
    return (<uint16_t>outer[1 + 2 * i] << 8) | outer[2 + 2 * i]


cdef uint32_t outer_levels(const uint8_t* outer, uint32_t* at) noexcept nogil:
    """How many levels there are; `at` is where outer_level finds the first."""
    at[0] = 2 + 2 * <uint32_t>outer[0]
    return outer[at[0] - 1]


cdef void outer_level(const uint8_t* outer, uint32_t* at, Level* level) noexcept nogil:
    """Read the level at `at`, which moves on to the next one."""
    cdef const uint8_t* p = outer + at[0]
    level.kind = p[0]
    level.family = p[1]
    level.has_id = p[2]
    memcpy(&level.id, p + 3, 4)
    level.addresses = p + LEVEL
    at[0] += LEVEL + (0 if p[1] == 0 else 8 if p[1] == 4 else 32)


cdef const char* level_name(int kind) noexcept nogil:
    """The name of an Encapsulation."""
    return NAMES[kind]
