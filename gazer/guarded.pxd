"""For the doors: a place for input behind which nothing can be read."""

from libc.stdint cimport uint8_t


cdef class Guarded:
    cdef uint8_t* base
    cdef const uint8_t* put(self, bytes data) except NULL
    cdef void wipe(self) noexcept
