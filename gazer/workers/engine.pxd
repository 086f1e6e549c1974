"""The worker's hot loop: frames in, messages out of them, events out."""

from libc.stdint cimport uint8_t, uint64_t

from gazer.counters cimport Slot
from gazer.entry cimport FrameEntry
from gazer.ring cimport Consumer, Ring
from gazer.workers.emitter cimport Emitter
from gazer.workers.matcher cimport Matcher, Origin
from gazer.workers.stream cimport Streams

cdef enum EngineResult:
    ENGINE_END = 0          # all is done
    ENGINE_TURN             # some time has passed; call again
    ENGINE_CORRUPT          # the frame ring holds what can't be


cdef class Engine:
    cdef Ring frame_ring
    cdef Consumer frames
    cdef Slot slot
    cdef uint64_t* counters
    cdef Emitter emitter
    cdef Matcher matcher
    cdef Streams streams
    cdef int bell
    cdef uint64_t mark_clock        # the watermark last passed on
    cdef uint64_t mark_sequence

    cdef void publish(self, uint64_t clock, uint64_t sequence) noexcept nogil
    cdef void handle(self, const FrameEntry* f, const uint8_t* frame) noexcept nogil
    cdef void segment(self, const FrameEntry* f, const uint8_t* payload,
                      Origin* o) noexcept nogil
    cdef void hand_on(self, Origin* o) noexcept nogil
    cdef void expire(self, uint64_t clock) noexcept nogil
    cdef int turn(self) noexcept nogil
