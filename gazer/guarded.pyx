"""A place for input behind which nothing can be read: a read beyond it ends the process, so that no
test passes over one.  The sensor does not use it; see the doors."""

from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE, mmap, mprotect,
    munmap)

cdef enum:
    ROOM = 1 << 18              # more than any frame or message
    WALL = 65536


cdef class Guarded:
    """A place for bytes with unreadable pages right behind them."""

    def __cinit__(self):
        cdef void* where = mmap(NULL, ROOM + WALL, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if where == MAP_FAILED or mprotect(<char*>where + ROOM, WALL, PROT_NONE):
            raise MemoryError
        self.base = <uint8_t*>where

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, ROOM + WALL)

    cdef const uint8_t* put(self, bytes data) except NULL:
        """Where the bytes stand now, at the end of the place; the last call's are gone."""
        if len(data) > ROOM:
            raise ValueError("longer than any frame")
        memcpy(self.base + ROOM - len(data), <const char*>data, len(data))
        return self.base + ROOM - len(data)

    cdef void wipe(self) noexcept:
        """Overwrite what stands there."""
        memset(self.base, 0xa5, ROOM)
