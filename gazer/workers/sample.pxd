"""Samples of what is being asked, for `gazer top`; see sample.pyx."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from gazer.workers.exchange cimport Exchange

cdef enum:
    SAMPLES_VERSION = 1
    SAMPLES = 1024              # kept
    SAMPLE_PACE = 1000000       # ns of the sensor clock between two of them, at least
    SAMPLE_NAME = 272           # bytes of a name's text; a longer one is cut
    NO_RCODE = 0xFFFF           # there was no reply


cdef struct SamplesHead:
    uint64_t magic
    uint32_t version
    uint32_t capacity
    uint64_t written            # samples so far; the next one is number `written` + 1
    uint64_t pad[5]


cdef struct Sample:
    uint64_t lock               # 2n: sample number n stands here; odd: it is being written
    uint64_t clock
    uint16_t type
    uint16_t rcode
    uint8_t family
    uint8_t status              # exchange.pxd, Status
    uint8_t pad[2]
    uint32_t length
    uint8_t address[16]         # the client's
    char name[SAMPLE_NAME]
    uint8_t pad1[4]


cdef class Samples:
    cdef unsigned char[::1] view
    cdef SamplesHead* head
    cdef Sample* entries
    cdef void take(self, const Exchange* x, uint64_t clock) noexcept nogil
