"""The frames of all capture processes, in one order; see intake.pyx."""

from libc.stdint cimport uint32_t, uint64_t

from gazer.entry cimport FrameEntry, frame_offset
from gazer.packet cimport MAX_TAGS, MAX_TUNNELS, PROTOCOLS
from gazer.ring cimport Consumer, ring_poll

cdef enum:
    MAX_LANES = 16          # capture processes
    CAPTURE_SHIFT = 56      # a frame's number: capture process << this | its own count


cdef struct Lane:
    # One capture process's frame ring, as the worker sees it.
    Consumer consumer
    uint64_t mark_clock     # its watermark, as last read
    uint64_t mark_sequence
    uint64_t upto           # its tail, read behind that
    FrameEntry* frame       # of several lanes: the first frame, polled but not taken yet; or NULL
    uint64_t clock          # ... its key; without one, the watermark
    uint64_t sequence


cdef class Intake:
    cdef list rings
    cdef Lane[MAX_LANES] lanes
    cdef int count
    cdef int least          # the lane that next_of_all took from, or whose watermark holds it up
    cdef uint64_t* heads    # of each lane, how far frames were taken: among the slot's positions
    cdef uint64_t mark_clock        # nothing below this key will come, once all is taken
    cdef uint64_t mark_sequence
    cdef uint64_t loss      # sensor clock when a frame of ours was last lost; 0: never

    cdef bint look(self) noexcept nogil
    cdef FrameEntry* next_of_all(self) noexcept nogil
    cdef bint corrupt(self) noexcept nogil
    cdef void release(self) noexcept nogil
    cdef bint sleep(self) noexcept nogil
    cdef void awake(self) noexcept nogil
    cdef const FrameEntry* find(self, uint64_t number) noexcept nogil


cdef inline FrameEntry* lane_next(Lane* lane) noexcept nogil:
    """The lane's next frame that was there at the last look, or NULL.

    A frame that can't be makes the lane corrupt: the capture process is not trusted to be whole.
    """
    cdef uint32_t n = 0
    cdef FrameEntry* f
    if lane.consumer.head == lane.upto:
        return NULL
    f = <FrameEntry*>ring_poll(&lane.consumer, &n)
    if f == NULL:
        return NULL
    if (n < sizeof(FrameEntry) or f.packet.layers > MAX_TUNNELS or n < frame_offset(f)
            or n - frame_offset(f) < f.caplen or f.packet.tags > MAX_TAGS
            or f.packet.protocol >= PROTOCOLS):
        lane.consumer.corrupt = True
        return NULL
    return f
