"""The question section as what tells apart the transactions of one key: hashed and compared without
regard to case (RFC 1035 section 2.3.3, RFC 4343) and to compression.

Of a message with more than QUESTIONS_COMPARED questions only these and their number count: a
message has one (RFC 9619), and 64 KB can hold ten thousand that each expand to 255 octets.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    QUESTION_AT = 12        # where the question section starts: behind the header
    QUESTIONS_COMPARED = 16

cdef bint question_plain(const uint8_t* wire, uint32_t end) noexcept nogil
cdef uint64_t question_hash(const uint8_t* wire, uint32_t length, uint32_t end, uint16_t count,
                            bint plain, uint64_t seed) noexcept nogil
cdef bint question_equal(const uint8_t* a, uint32_t a_length, const uint8_t* b, uint32_t b_length,
                         uint16_t count) noexcept nogil
cdef uint64_t hash_bytes(const uint8_t* p, uint32_t n, uint64_t seed, uint64_t fold) noexcept nogil
