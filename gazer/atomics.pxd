"""Atomic loads and stores of words in shared memory, and the fences; see atomics.h."""

from libc.stdint cimport uint32_t, uint64_t

cdef extern from "atomics.h" nogil:
    uint64_t load_acquire(const uint64_t* p)
    uint64_t load_relaxed(const uint64_t* p)
    void store_release(uint64_t* p, uint64_t v)
    void store_relaxed(uint64_t* p, uint64_t v)
    uint32_t load_word(const uint32_t* p)       # once, whatever the compiler would rather do
    void full_fence()
    void acquire_fence()
    void release_fence()
    void prefetch(const void* p)
    void prefetch_read(const void* p)
