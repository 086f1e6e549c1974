"""The sink's hot loop: events of all workers in one order, into a block for each output."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from gazer.counters cimport Slot
from gazer.entry cimport EVENT_TAGS, EventHeader
from gazer.ring cimport Consumer

cdef enum:
    MAX_RINGS = 64
    MARKS = 128             # flushes that outputs may be behind by and still be told apart

cdef enum MergeResult:
    MERGE_END = 0           # all workers are done, all events merged
    MERGE_FULL              # a block is full, or a lane wants room: write the blocks
    MERGE_IDLE              # nothing to merge just now
    MERGE_CORRUPT           # an event ring holds what can't be


cdef struct Lane:
    # One worker's event ring, as the merge sees it.
    Consumer consumer
    uint8_t* entry          # the next event, or NULL
    uint32_t length
    EventHeader header      # ... of it, read once: its worker may change it under our hands
    uint64_t clock          # of that event; without one, of the watermark
    uint64_t sequence
    uint64_t taken          # the ring's position behind the last event copied
    uint64_t marked         # ... at the last mark()
    uint64_t settled        # ... that give_back() may give back


cdef struct Mark:
    # How far the lanes were when so many events had been merged.
    uint64_t merged
    uint64_t taken[MAX_RINGS]


cdef struct Room:
    int format
    bint tagged             # a part for each tag, `capacity` apart, instead of one for all
    uint8_t* base
    uint32_t capacity       # of all parts together
    uint32_t limit          # ... with more than one event in them
    uint32_t used           # ... and taken
    uint32_t events
    uint64_t skip           # events still to come that the output has had already
    uint32_t lengths[EVENT_TAGS]    # of each part, if `tagged`
    uint32_t counts[EVENT_TAGS]     # ... and its events


cdef class Block:
    # What one output writes next: whole events.
    cdef object memory
    cdef Room room
    cdef uint32_t reached[EVENT_TAGS]   # the most that each part has held


cdef class Merge:
    cdef list rings
    cdef Lane[MAX_RINGS] lanes
    cdef int count
    cdef int least          # the lane that merge() looked at last
    cdef list blocks
    cdef Room** rooms
    cdef int block_count
    cdef int bell
    cdef int doze           # ms; see wait()
    cdef uint64_t waited    # events merged when wait() was last called
    cdef Slot slot
    cdef uint64_t* counters
    cdef Mark* marks        # the oldest first
    cdef int mark_count

    cdef int begin(self, Lane* lane, uint64_t settled) except -1
    cdef bint starves(self, const Lane* lane) noexcept nogil
    cdef bint presses(self, const Mark* mark) noexcept nogil
    cdef bint refresh(self, Lane* lane) noexcept nogil
    cdef bint append(self, const Lane* lane) noexcept nogil
    cdef bint any_used(self) noexcept nogil
    cdef int merge(self) noexcept nogil
    cdef bint sleep(self) noexcept nogil
    cdef void awake(self) noexcept nogil
