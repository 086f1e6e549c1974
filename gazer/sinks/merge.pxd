"""The sink's hot loop: events of all workers in one order, into a block for each output."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from gazer.counters cimport Slot
from gazer.ring cimport Consumer

cdef enum:
    MAX_RINGS = 64

cdef enum MergeResult:
    MERGE_END = 0           # all workers are done, all events merged
    MERGE_FULL              # a block is full: write it
    MERGE_IDLE              # nothing to merge just now
    MERGE_CORRUPT           # an event ring holds what can't be


cdef struct Lane:
    # One worker's event ring, as the merge sees it.
    Consumer consumer
    uint8_t* entry          # the next event, or NULL
    uint32_t length
    uint64_t clock          # of that event; without one, of the watermark
    uint64_t sequence


cdef struct Room:
    int format
    uint8_t* base
    uint32_t capacity
    uint32_t used
    uint32_t events


cdef class Block:
    # What one output writes next: whole events.
    cdef bytearray memory
    cdef Room room


cdef class Merge:
    cdef list rings
    cdef Lane[MAX_RINGS] lanes
    cdef int count
    cdef int least          # the lane that merge() looked at last
    cdef list blocks
    cdef Room** rooms
    cdef int block_count
    cdef int bell
    cdef Slot slot
    cdef uint64_t* counters

    cdef bint refresh(self, Lane* lane) noexcept nogil
    cdef bint append(self, const Lane* lane) noexcept nogil
    cdef bint any_used(self) noexcept nogil
    cdef int merge(self) noexcept nogil
    cdef bint sleep(self) noexcept nogil
    cdef void awake(self) noexcept nogil
