"""The worker's hot loop: frames in, messages out of them, events out."""

from libc.stdint cimport uint8_t, uint64_t

from gazer.counters cimport Slot
from gazer.entry cimport FrameEntry
from gazer.workers.emitter cimport Emitter
from gazer.workers.intake cimport Intake, Lane
from gazer.workers.matcher cimport Matcher, Origin
from gazer.workers.stream cimport Streams

cdef enum EngineResult:
    ENGINE_END = 0          # all is done
    ENGINE_TURN             # some time has passed; call again
    ENGINE_CORRUPT          # the frame ring holds what can't be


cdef class Engine:
    cdef Intake intake
    cdef Slot slot
    cdef uint64_t* counters
    cdef uint64_t* in_hand          # word of the slot: the frame that is being worked on
    cdef Emitter emitter
    cdef Matcher matcher
    cdef Streams streams
    cdef int bell
    cdef int batch                  # frames between two commits
    cdef uint64_t marked            # number of the frame that a predecessor died of; 0: none
    cdef bint condemned             # ... twice: it is to be skipped

    cdef void account(self) noexcept nogil
    cdef void settle(self) noexcept nogil
    cdef void publish(self, uint64_t clock, uint64_t sequence) noexcept nogil
    cdef bint reached(self, const FrameEntry* f) noexcept nogil
    cdef void skip(self, const FrameEntry* f, int lane) noexcept nogil
    cdef void handle(self, const FrameEntry* f, const uint8_t* frame, int lane) noexcept nogil
    cdef void segment(self, const FrameEntry* f, const uint8_t* payload,
                      Origin* o) noexcept nogil
    cdef void hand_on(self, Origin* o) noexcept nogil
    cdef void expire(self, uint64_t clock, uint64_t sequence) noexcept nogil
    cdef int turn(self) noexcept nogil
