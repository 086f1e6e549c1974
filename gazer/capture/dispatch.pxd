"""Capture's hot loop: frames from a source into the rings of the workers."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from gazer.capture.filter cimport Filter
from gazer.capture.fragments cimport FRAGMENT_COUNTS, Fragments
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


cdef enum:
    CAPTURE_SHIFT = 56      # a frame's number has the capture process above its own sequence

cdef enum Point:
    # Where a process can die between two states that a reader can see: for tests.
    POINT_COMMIT = 0        # about to commit
    POINT_TAIL              # committed; about to publish a ring's tail
    POINT_MARK              # about to store that ring's watermark
    POINT_WAKE              # about to wake that ring's consumer
    POINT_SHOWN             # all is published

ctypedef void (*Probe)(int point) noexcept nogil


cdef struct Clock:
    # The sensor clock: follows the frames' time, never goes back, takes no leaps.
    uint64_t now            # ns
    int64_t shift           # now = time of the frame + shift
    bint started
    bint live               # it goes on while there are no frames:
    uint64_t pace_clock     # it was this ...
    uint64_t pace_time      # ... when CLOCK_MONOTONIC was this (ns)


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
    cdef uint64_t sequence      # the last frame's number
    cdef int bell
    cdef int policy
    cdef Clock clock
    cdef uint64_t paced         # number of the frame that the clock's pace was last taken from
    cdef bint live
    cdef uint64_t[3] earlier    # received, dropped, by the interface: what earlier sockets counted
    cdef uint64_t received      # by the kernel, all sockets, when it was last asked
    cdef uint64_t[FRAGMENT_COUNTS] pieces   # counted by who had this slot before
    cdef readonly bint absent   # live: the interface is not there, and the operator knows
    cdef bint blind             # live: nobody has listened since another socket did
    cdef Probe probe            # for tests: called at each Point; NULL otherwise

    cdef uint8_t* room(self, int worker, uint32_t n) noexcept nogil
    cdef void take_over(self) noexcept nogil
    cdef void pass_time(self, uint64_t since) noexcept nogil
    cdef void lose(self) noexcept nogil
    cdef void lose_socket(self) noexcept nogil
    cdef void commit(self) noexcept nogil
    cdef inline void at(self, int point) noexcept nogil
    cdef void publish(self, uint64_t next, bint wake) noexcept nogil
    cdef int join(self, Frame* frame, Packet* packet, Layer* layers,
                  Fragment* piece) noexcept nogil
    cdef void count_pieces(self) noexcept nogil
    cdef int pump(self, Source source) noexcept nogil
