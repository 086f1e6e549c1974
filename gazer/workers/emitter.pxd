"""Events on their way out: encoded straight into the worker's event ring."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from gazer.counters cimport Slot
from gazer.ring cimport Producer, Ring
from gazer.workers.encode cimport Encoder
from gazer.workers.exchange cimport Exchange
from gazer.workers.message cimport Message


cdef class Emitter:
    cdef Ring ring
    cdef Producer events
    cdef Slot slot
    cdef uint64_t* counters
    cdef Encoder encoder
    cdef int bell

    cdef uint8_t* room(self, uint32_t n) noexcept nogil
    cdef void tx(self, const Exchange* x, uint64_t clock, uint64_t sequence) noexcept nogil
    cdef void records(self, const Exchange* x, const Message* m, uint64_t clock,
                      uint64_t sequence) noexcept nogil
    cdef void commit(self) noexcept nogil
    cdef void publish(self, uint64_t clock, uint64_t sequence) noexcept nogil
