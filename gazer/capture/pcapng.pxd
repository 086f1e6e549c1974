"""A pcapng file as a Source; see pcapng.pyx."""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from gazer.cursor cimport Cursor
from gazer.capture.source cimport FileSource, Frame


cdef enum Unit:
    UNIT_TIMES = 0      # ns = units * factor
    UNIT_DIVIDED = 1    # ns = units / factor
    UNIT_SHIFTED = 2    # ns = units * 10^9 >> factor


cdef struct Interface:
    int linktype
    uint32_t snaplen    # 0: no limit
    int unit
    uint64_t factor
    int64_t offset      # seconds, added to every timestamp


cdef class PcapngSource(FileSource):
    cdef Interface* interfaces      # of this section
    cdef uint32_t count
    cdef uint32_t room
    cdef bint little                # this section's byte order
    cdef bint in_section            # a section header was read
    cdef uint64_t skip              # bytes of an unknown block still to throw away
    cdef uint32_t skipped_length    # its length, to compare with the one at its end
    cdef int64_t last_time
    # What broke, for describe(): the fault, the block's place and type, and two numbers.
    cdef int fault
    cdef uint64_t where
    cdef uint32_t type
    cdef uint64_t a, b

    cdef uint16_t u16(self, Cursor* c) noexcept nogil
    cdef uint32_t u32(self, Cursor* c) noexcept nogil
    cdef int broken(self, int fault, uint64_t a, uint64_t b) noexcept nogil
    cdef int lacking(self, int r) noexcept nogil
    cdef int skip_on(self, uint64_t* budget) noexcept nogil
    cdef int section(self, Cursor* c) noexcept nogil
    cdef int interface(self, Cursor* c) noexcept nogil
    cdef int packet(self, Cursor* c, Frame* frame) noexcept nogil
