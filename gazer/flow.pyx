"""Which flow and which network a packet belongs to; see flow.pxd.

A flow is a 5-tuple without direction.  The same five may exist in several networks that one mirror
shows side by side; the scope tells those apart.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from gazer.cursor cimport Cursor, cursor_over, cursor_skip, cursor_u16
from gazer.packet cimport (
    GENEVE, LLMNR_PORT, MAX_SCOPE, MDNS_PORT, PROTOCOL_DNS, PROTOCOL_MDNS, VXLAN, Layer, Packet)


cdef uint32_t packet_scope(const uint8_t* frame, uint32_t caplen, const Packet* packet,
                           const Layer* layers, uint8_t* scope) noexcept nogil:
    """What tells networks apart that may use the same addresses, as at most MAX_SCOPE octets: the
    VLAN ids of the innermost link layer, two octets each, then the VNIs of all levels from the
    outside, four octets each, of which the first is 0x80 (a VID never has the top bit).  Nothing
    else of the outer levels is: keys, sessions, labels and endpoints may differ by direction."""
    cdef Cursor c = cursor_over(frame, packet.tags_offset, caplen)
    cdef uint32_t n = 0
    cdef uint16_t tag
    cdef int i, _
    for _ in range(packet.tags):
        tag = cursor_u16(&c)
        cursor_skip(&c, 2)
        scope[n] = (tag >> 8) & 0x0F
        scope[n + 1] = tag & 0xFF
        n += 2
    for i in range(packet.layers):
        if (layers[i].kind == VXLAN or layers[i].kind == GENEVE) and n + 4 <= MAX_SCOPE:
            scope[n] = 0x80
            scope[n + 1] = <uint8_t>(layers[i].id >> 16)
            scope[n + 2] = <uint8_t>(layers[i].id >> 8)
            scope[n + 3] = <uint8_t>layers[i].id
            n += 4
    return n


cdef extern from "mix.h" nogil:
    uint64_t fold_multiply(uint64_t a, uint64_t b)


cdef uint64_t flow_hash(const uint8_t* frame, const Packet* packet, uint64_t seed) noexcept nogil:
    """A hash of the 5-tuple that is the same in both directions.

    Each endpoint is hashed by itself, then both in the order of their hashes; adding or xoring the
    fields would put whole subnets on one worker.  The seed is secret, so that a stranger can't
    choose flows that all meet on one worker.

    Of mDNS and LLMNR it is a hash of the endpoint that asks: the question goes to a group, and the
    replies come from wherever, and all of them belong on one worker.  Where both ports are the
    protocol's, ports don't tell who asks; mDNS matches none of these, LLMNR's all go one way.
    """
    cdef uint64_t a, b, low
    cdef uint16_t port
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
    if packet.protocol != PROTOCOL_DNS:
        port = MDNS_PORT if packet.protocol == PROTOCOL_MDNS else LLMNR_PORT
        if packet.source_port != port:
            b = a
        elif packet.destination_port != port:
            a = b
        elif port == LLMNR_PORT:
            a = b = seed
    low = a if a < b else b
    return fold_multiply(low ^ 0xE7037ED1A0B428DBULL, (a ^ b ^ low) ^ seed ^ packet.transport)
