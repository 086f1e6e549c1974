"""Capture's hot loop: frames from a source into the rings of the workers."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from gazer.capture.filter cimport Filter
from gazer.capture.fragments cimport Fragments
from gazer.capture.source cimport Frame, Source
from gazer.counters cimport Slot
from gazer.packet cimport Decoding, Fragment, Layer, Packet
from gazer.ring cimport Producer

cdef enum:
    MAX_WORKERS = 64

cdef enum Policy:
    # What happens to a frame whose ring is full.
    WAIT = 0        # capture waits: nothing is ever lost from a file
    DROP = 1        # the frame is dropped and counted: live traffic does not wait


cdef struct Clock:
    # The sensor clock: follows the frames' time, never goes back, takes no leaps.
    uint64_t now            # ns
    int64_t shift           # now = time of the frame + shift
    bint started


cdef class Dispatcher:
    cdef list rings
    cdef Producer[MAX_WORKERS] producers
    cdef int workers
    cdef Slot slot
    cdef uint64_t* counters
    cdef Decoding decoding
    cdef Fragments fragments
    cdef Filter filter
    cdef bint filtering
    cdef uint64_t seed
    cdef uint64_t sequence
    cdef int bell
    cdef int policy
    cdef Clock clock

    cdef uint8_t* room(self, int worker, uint32_t n) noexcept nogil
    cdef void commit(self) noexcept nogil
    cdef void publish(self, bint wake) noexcept nogil
    cdef int join(self, Frame* frame, Packet* packet, Layer* layers,
                  Fragment* piece) noexcept nogil
    cdef void count_pieces(self) noexcept nogil
    cdef int pump(self, Source source) noexcept nogil
