"""Events on their way out: encoded straight into the worker's event ring."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from gazer.counters cimport Slot
from gazer.ring cimport Producer, Ring
from gazer.workers.encode cimport Encoder
from gazer.workers.exchange cimport Exchange
from gazer.workers.message cimport Message
from gazer.workers.sample cimport Samples


cdef class Emitter:
    cdef Ring ring
    cdef Producer events
    cdef Slot slot
    cdef uint64_t* counters
    cdef Encoder encoder
    cdef int bell
    cdef Samples samples
    cdef uint64_t sample_due    # sensor clock from which the next transaction is a sample
    cdef uint64_t last_clock    # the greatest key of an event so far
    cdef uint64_t last_sequence
    cdef uint64_t index         # ... and how many came behind the first that had it

    cdef inline bint crowded(self) noexcept nogil:
        # So much is encoded and not committed that it is time: see `tear`.
        return self.events.tail - self.events.published > self.events.capacity >> 3

    cdef void rest(self, uint32_t n) noexcept nogil
    cdef void tear(self) noexcept nogil
    cdef void identify(self, uint64_t clock, uint64_t sequence) noexcept nogil
    cdef uint8_t* room(self, uint32_t n) noexcept nogil
    cdef void tx(self, const Exchange* x, uint64_t clock, uint64_t sequence) noexcept nogil
    cdef void records(self, const Exchange* x, const Message* m, uint64_t clock,
                      uint64_t sequence) noexcept nogil
    cdef void commit(self) noexcept nogil
    cdef void show(self) noexcept nogil
    cdef void mark(self, uint64_t clock, uint64_t sequence) noexcept nogil
