"""The table of TCP connections of one worker: who is known, and who leaves first.

A connection stands in a cell of one block, reserved as address space at start and touched as it
fills; in a hash bucket; in the list of all by their last segment, whose oldest is the next one idle
and the first to leave at max_streams; and, while something is kept for it, in a second such list,
whose oldest is the first to leave when room ends.  What is kept stands in pieces.pxd.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from gazer.packet cimport MAX_SCOPE
from gazer.workers.pieces cimport Pieces

cdef enum:
    MAX_ENDS = 32 + MAX_SCOPE


cdef struct Segment:
    const uint8_t* ends         # source address, destination address, scope
    uint8_t family              # 4 or 6
    uint8_t scope_length        # octets, at most MAX_SCOPE
    uint8_t protocol            # Protocol
    uint8_t flags               # TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK; others don't matter
    uint16_t source_port
    uint16_t destination_port
    uint32_t sequence
    uint32_t acknowledgement
    const uint8_t* payload      # with `ends`, must stay until `next` has said STREAM_NOTHING
    uint32_t length             # of it, as captured
    uint32_t wire_length        # of it, on the wire
    uint64_t number             # of the frame; grows
    int64_t time                # of the frame


cdef struct StreamCounts:
    uint64_t opened
    uint64_t evicted            # left because a limit was reached, before both directions ended
    uint64_t timed_out          # idle for the timeout, before both directions ended
    uint64_t live               # connections now known, ended ones included
    uint64_t gaps
    uint64_t broken_messages
    uint64_t crowded            # times a hole or a message was given up for want of room
    uint64_t resyncs
    uint64_t messages
    uint64_t octets             # = framed + old + skipped + buffered
    uint64_t octets_framed
    uint64_t octets_old
    uint64_t octets_skipped
    uint64_t octets_buffered


cdef struct Direction:
    uint32_t next               # sequence number of the next octet in order
    uint32_t first              # of the first octet, if a SYN told (FIRST_KNOWN)
    uint32_t fin                # where the FIN stands (FIN_PENDING)
    uint32_t head               # run of the octets in order that are no whole message yet; 0: none
    uint32_t ahead              # first run behind a hole; 0: none
    uint32_t skip               # octets up to the end of a message that is lost
    uint16_t runs               # behind holes
    uint8_t state               # see stream.pyx
    uint8_t flags


cdef struct Connection:
    uint64_t clock              # of its last segment, with the next two
    uint64_t number
    int64_t time
    uint64_t serial
    uint32_t next               # in the bucket; in the list of free places
    uint32_t hash
    uint32_t older              # by last segment
    uint32_t newer
    uint32_t held_older         # the same, of those that hold something
    uint32_t held_newer
    uint32_t chunks
    uint16_t port[2]            # the sender's of direction 0, and of direction 1
    uint8_t family
    uint8_t scope_length
    uint8_t protocol
    uint8_t holding             # is in the second list
    Direction direction[2]
    uint8_t[MAX_ENDS] ends      # address of direction 0's sender, of 1's, scope


cdef class Connections:
    cdef StreamCounts counts
    cdef Pieces pieces
    cdef uint8_t* cells
    cdef size_t reserved            # bytes of address space
    cdef uint32_t* buckets
    cdef uint32_t bucket_mask
    cdef uint32_t touched           # cells ever used
    cdef uint32_t free_cells        # head of the list
    cdef readonly uint32_t max_streams
    cdef uint32_t oldest
    cdef uint32_t newest
    cdef uint32_t held_oldest
    cdef uint32_t held_newest
    cdef uint64_t timeout
    cdef uint64_t seed
    cdef uint64_t serial            # the last one given
    # Of the segment last looked for:
    cdef int side                   # its direction
    cdef uint32_t hash              # of its connection
    cdef uint8_t[MAX_ENDS] ends     # ... as in Connection

    cdef uint64_t due(self, uint64_t* number) noexcept nogil

    cdef Connection* at(self, uint32_t index) noexcept nogil
    cdef void grow(self) noexcept nogil
    cdef uint32_t find(self, const Segment* s) noexcept nogil
    cdef uint32_t create(self, const Segment* s) noexcept nogil
    cdef void restart(self, Connection* c) noexcept nogil
    cdef void remove(self, uint32_t index) noexcept nogil
    cdef void link_newest(self, uint32_t index) noexcept nogil
    cdef void unlink(self, uint32_t index) noexcept nogil
    cdef void hold_newest(self, uint32_t index) noexcept nogil
    cdef void unhold(self, uint32_t index) noexcept nogil
    cdef void settle(self, uint32_t index) noexcept nogil
    cdef uint64_t idle_at(self, const Connection* c) noexcept nogil
