"""Which flow and which network a packet belongs to."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from gazer.packet cimport Layer, Packet


cdef uint32_t packet_scope(const uint8_t* frame, uint32_t caplen, const Packet* packet,
                           const Layer* layers, uint8_t* scope) noexcept nogil
cdef uint64_t flow_hash(const uint8_t* frame, const Packet* packet, uint64_t seed) noexcept nogil
