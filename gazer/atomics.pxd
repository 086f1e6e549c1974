"""Atomic loads and stores of words in shared memory, and the full fence; see atomics.h."""

from libc.stdint cimport uint64_t

cdef extern from "atomics.h" nogil:
    uint64_t load_acquire(const uint64_t* p)
    uint64_t load_relaxed(const uint64_t* p)
    void store_release(uint64_t* p, uint64_t v)
    void store_relaxed(uint64_t* p, uint64_t v)
    void full_fence()
    void prefetch(const void* p)
