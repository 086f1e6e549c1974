"""The OPT record's fields and options that events show (RFC 6891)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from gazer.text cimport Arena
from gazer.workers.message cimport EDNS_ERRORS, Edns

cdef void edns_decode(Edns* edns, const uint8_t* wire, uint32_t start, uint32_t end,
                      uint16_t klass, uint32_t ttl, bint options, Arena* arena) noexcept nogil
