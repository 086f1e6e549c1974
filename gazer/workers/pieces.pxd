"""Octets of TCP streams that have to wait, in chunks of one size.

A run is an unbroken row of octets, kept in one chunk or in several, one behind the other.  Its
first chunk speaks for it.  The runs of one direction that lie behind holes hang together in the
order of their sequence numbers, never touching one another:

    ahead --> chunk -----> chunk        run: 700 octets at sequence number 5000
                |next
             next_run
                v
              chunk                     run: 40 octets at 6200

One size of chunk means that nothing fragments, and that memory is exactly bounded: by `max_bytes`,
chunks and what was charged together, reserved as address space and touched as it fills.  Chunk 0 is
never used: index 0 means "none".
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    CHUNK = 512
    CHUNK_OCTETS = 488
    MAX_RUNS = 64           # of one direction; also what one segment can meet


cdef struct Chunk:
    uint32_t next           # of its run; in the list of free ones
    uint16_t begin          # of the octets in use
    uint16_t end
    # For a run, in its first chunk:
    uint32_t next_run
    uint32_t sequence       # of its first octet
    uint32_t length         # octets
    uint32_t last           # chunk
    uint8_t[CHUNK_OCTETS] octets


cdef class Pieces:
    cdef uint8_t* chunks
    cdef size_t reserved        # bytes of address space
    cdef uint32_t touched       # chunks ever used
    cdef uint32_t free_chunks   # head of the list
    cdef readonly uint32_t used
    cdef readonly uint32_t max_each     # chunks of one connection
    cdef readonly uint64_t max_bytes
    cdef readonly uint64_t charged      # octets that others keep

    cdef Chunk* at(self, uint32_t index) noexcept nogil
    cdef bint has_room(self, uint32_t chunks) noexcept nogil
    cdef uint32_t take(self, uint32_t* count) noexcept nogil
    cdef void give(self, uint32_t index, uint32_t* count) noexcept nogil
    cdef uint32_t append(self, uint32_t* run, uint32_t sequence, const uint8_t* octets, uint32_t n,
                         uint32_t* count) noexcept nogil
    cdef void adopt(self, uint32_t* run, uint32_t index, uint32_t* count) noexcept nogil
    cdef uint32_t copy(self, uint32_t run, uint8_t* to, uint32_t n) noexcept nogil
    cdef void drop(self, uint32_t* run, uint32_t n, uint32_t* count) noexcept nogil
    cdef uint32_t free_run(self, uint32_t* run, uint32_t* count) noexcept nogil
    cdef void join(self, uint32_t run, uint32_t* count) noexcept nogil
    cdef uint32_t keep(self, uint32_t* ahead, uint16_t* runs, uint32_t next, uint32_t sequence,
                       const uint8_t* octets, uint32_t n, uint32_t* count,
                       uint32_t* old) noexcept nogil
