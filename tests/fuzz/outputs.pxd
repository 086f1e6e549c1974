"""What the targets' events are held to; see outputs.pyx."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t

cdef extern from "sanitize.h" nogil:
    void forbid(const void* p, size_t n)
    void allow(const void* p, size_t n)

cdef const char* event_check(const uint8_t* entry, uint32_t n) noexcept nogil
cdef void event_keep(const uint8_t* entry, uint32_t n) noexcept nogil
cdef const char* id_check(const uint8_t* entry) noexcept nogil
cdef void ids_forget() noexcept nogil
