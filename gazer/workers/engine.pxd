"""The worker's hot loop: frames in, events out."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from gazer.counters cimport Slot
from gazer.entry cimport FrameEntry
from gazer.ring cimport Consumer, Producer, Ring
from gazer.workers.encode cimport Encoder, Exchange
from gazer.workers.message cimport Message
from gazer.workers.transaction cimport Key, Transactions

cdef enum EngineResult:
    ENGINE_END = 0          # all is done
    ENGINE_TURN             # some time has passed; call again
    ENGINE_CORRUPT          # the frame ring holds what can't be


cdef class Engine:
    cdef Ring frame_ring
    cdef Ring event_ring
    cdef Consumer frames
    cdef Producer events
    cdef Slot slot
    cdef uint64_t* counters
    cdef Transactions table
    cdef Encoder encoder
    cdef Message query
    cdef Message reply
    cdef int bell
    cdef bint records
    cdef uint64_t timeout
    cdef uint64_t mark_clock        # the watermark last passed on
    cdef uint64_t mark_sequence

    cdef uint8_t* room(self, uint32_t n) noexcept nogil
    cdef void publish(self, uint64_t clock, uint64_t sequence) noexcept nogil
    cdef void handle(self, const FrameEntry* f, const uint8_t* frame) noexcept nogil
    cdef void handle_query(self, const FrameEntry* f, Exchange* x, Key* key, uint64_t question,
                           bint cut) noexcept nogil
    cdef void handle_reply(self, const FrameEntry* f, Exchange* x, Key* key,
                           uint64_t question) noexcept nogil
    cdef void emit_tx(self, const Exchange* x, uint64_t clock, uint64_t sequence) noexcept nogil
    cdef void emit_records(self, const Exchange* x, const Message* m, uint64_t clock,
                           uint64_t sequence) noexcept nogil
    cdef void give_up(self, uint32_t index, uint64_t clock, uint64_t sequence) noexcept nogil
    cdef void expire(self, uint64_t clock) noexcept nogil
    cdef int turn(self) noexcept nogil
