"""Target: one frame, decoded through all its tunnels.

    octet 0     bits 0-3  link type: see LINKTYPES
                bits 4-6  tunnels.max_depth, less 1
                bit 7     mDNS and LLMNR are on
    octet 1     tunnels.decode: one bit for each kind
    octet 2     octets that the capture lacks at the end, times 16 beyond 127
    then        the frame

Checked: what is found lies in the frame, all levels and tags keep to their limits, the hash of a
flow is that of its other direction, and a piece of a datagram can be decoded on from its payload.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from gazer.flow cimport flow_hash
from gazer.packet cimport (
    DNS, FATES_COUNT, FRAGMENT, ENCAPSULATIONS_COUNT, MAX_TAGS, MAX_TUNNELS, PROTOCOLS, TCP, UDP,
    Decoding, Fragment, Layer, Packet, Rules, packet_decode,
    packet_resume)

from gazer.packet import FATES

cdef int[16] LINKTYPES = [1, 1, 1, 1, 101, 228, 229, 113, 276, 0, 108, 9, 50, 51, 12, 147]
cdef Decoding DECODING = Decoding((53, 5300))


cdef const char* bounds(const Packet* p, const Layer* layers, uint32_t caplen,
                        const Rules* rules) noexcept nogil:
    cdef uint32_t i, tags = p.tags
    cdef const Layer* level
    if p.layers > rules.max_depth or p.layers > MAX_TUNNELS:
        return b"more levels than max_depth"
    if p.tags and <uint32_t>p.tags_offset + 4 * p.tags - 2 > caplen:
        return b"tags beyond the frame"
    for i in range(p.layers):
        level = &layers[i]
        tags += level.tags
        if level.kind >= ENCAPSULATIONS_COUNT or not rules.decode >> level.kind & 1:
            return b"a level of a kind that is not opened"
        if level.tags and <uint32_t>level.tags_offset + 4 * level.tags - 2 > caplen:
            return b"a level's tags beyond the frame"
        if level.family and (
                <uint32_t>level.addresses_offset + (8 if level.family == 4 else 32) > caplen):
            return b"a level's addresses beyond the frame"
    if tags > MAX_TAGS:
        return b"more tags than there may be"
    return NULL


cdef const char* ours(const uint8_t* frame, uint32_t caplen, const Packet* p) noexcept nogil:
    cdef Packet turned
    cdef uint8_t[32] ends
    cdef uint32_t half = 4 if p.family == 4 else 16
    cdef uint64_t hash = flow_hash(frame, p, 7)
    if p.family != 4 and p.family != 6:
        return b"a packet of no family"
    if p.transport != UDP and p.transport != TCP:
        return b"a packet of no transport"
    if p.protocol >= PROTOCOLS:
        return b"a packet of no protocol"
    if <uint32_t>p.addresses_offset + 2 * half > caplen:
        return b"addresses beyond the frame"
    if p.payload_offset > caplen or p.payload_length > caplen - p.payload_offset:
        return b"payload beyond the frame"
    if p.payload_length > p.wire_payload or p.cut != (p.payload_length < p.wire_payload):
        return b"a payload is longer than on the wire, or is cut and is not"
    memcpy(ends, frame + p.addresses_offset + half, half)
    memcpy(ends + half, frame + p.addresses_offset, half)
    turned = p[0]
    turned.addresses_offset = 0
    turned.source_port = p.destination_port
    turned.destination_port = p.source_port
    if flow_hash(ends, &turned, 7) != hash:
        return b"a flow's two directions have two hashes"
    return NULL


cdef const char* one_input(const uint8_t* data, size_t size) noexcept nogil:
    cdef Packet p
    cdef Layer[MAX_TUNNELS] layers
    cdef Fragment f
    cdef Rules* rules = &DECODING.rules
    cdef const uint8_t* frame = data + 3
    cdef uint32_t caplen, length, head, _
    cdef int fate
    cdef const char* failed
    if size < 3 or size > 65536:
        return NULL
    rules.max_depth = 1 + (data[0] >> 4 & 7)
    rules.mdns = rules.llmnr = data[0] >> 7
    rules.decode = data[1]
    caplen = <uint32_t>size - 3
    length = caplen + (data[2] if data[2] < 128 else (data[2] - 127) * 16)
    # What it does not set must not be looked at: it is set to what can't be.
    memset(&p, 0xa5, sizeof(p))
    memset(layers, 0xa5, sizeof(layers))
    memset(&f, 0xa5, sizeof(f))
    fate = packet_decode(frame, caplen, length, LINKTYPES[data[0] & 15], rules, &p, layers, &f)
    for _ in range(16):         # a piece may turn out to hold a piece
        if fate < 0 or fate >= FATES_COUNT:
            return b"no fate"
        if fate == DNS:
            failed = bounds(&p, layers, caplen, rules)
            return failed if failed != NULL else ours(frame, caplen, &p)
        if fate != FRAGMENT:
            return NULL
        failed = bounds(&p, layers, caplen, rules)
        if failed != NULL:
            return failed
        if f.payload_offset > caplen or f.payload_length > caplen - f.payload_offset:
            return b"a piece's payload beyond the frame"
        if f.head_length > caplen or f.head_length > f.payload_offset:
            return b"a piece's head beyond the frame"
        if <uint32_t>f.addresses_offset + (8 if f.family == 4 else 32) > caplen:
            return b"a piece's addresses beyond the frame"
        head = f.payload_offset
        fate = packet_resume(frame, head, caplen, length, f.protocol, rules, &p, layers, &f)
    return b"pieces within pieces without end"


def address():
    """The C function, for the driver."""
    return <size_t>&one_input


def run(bytes data):
    """One input, from Python: (None or which check failed, the frame's fate by the defaults)."""
    cdef Packet p
    cdef Layer[MAX_TUNNELS] layers
    cdef Fragment f
    cdef Decoding decoding = Decoding((53, 5300))
    cdef const uint8_t* wire = data
    failed = one_input(data, len(data))
    fate = None
    if len(data) >= 3:
        fate = FATES[packet_decode(wire + 3, len(data) - 3, len(data) - 3,
                                   LINKTYPES[wire[0] & 15], &decoding.rules, &p, layers, &f)]
    return (None if failed == NULL else failed.decode()), fate
