"""Blocks of memory for tables; see block.pxd.

Every table of what strangers send stands in one, so that its limit is a number and no allocator's
mood: nothing fragments, and what has not been used costs nothing.
"""

from libc.errno cimport errno
from libc.string cimport strerror
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap)


cdef void* block_reserve(size_t size, str what) except NULL:
    """So many zeroed bytes; MemoryError names `what` they are for."""
    cdef void* block = mmap(NULL, size, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if block == MAP_FAILED:
        raise MemoryError(f"can't reserve {size} bytes for {what}: {strerror(errno).decode()}")
    return block


cdef void block_free(void* block, size_t size) noexcept:
    """Give it back; NULL is no block."""
    if block != NULL:
        munmap(block, size)
