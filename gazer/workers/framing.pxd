"""Where in a TCP stream a DNS message begins, when its count of octets is lost (RFC 1035 4.2.2).

A capture that starts in the middle of a connection, or that lost a length field with a segment,
does not know where the next message begins.  It looks for the first offset at which a plausible one
does:

    length | id | flags   | QDCOUNT | ANCOUNT | ... | name, type, class
    >= 12         Z clear    1                        question: class IN, CH, HS, NONE or ANY
                             0        >= 1            record: the same, and its data within length
                  opcode QUERY, STATUS, NOTIFY, UPDATE or DSO; without question: a QUERY's reply

all of it within the length.  The name has no pointer: in a question there is nothing to point to,
and neither in the first record of a message without question.  Text, random octets and the middle
of most messages are refused within a few octets.  An offset is decided by LOOK_AHEAD octets at
most, so the search is linear: each offset costs at most a walk along one name.
"""

from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    LOOK_AHEAD = 2 + 12 + 255 + 10  # length, header, name; type, class, TTL and length of a record

cdef enum Verdict:
    REFUSED = 0
    PLAUSIBLE
    UNDECIDED           # more octets are needed


cdef Verdict framing_judge(const uint8_t* octets, uint32_t n) noexcept nogil
cdef uint32_t framing_search(const uint8_t* octets, uint32_t n, uint32_t limit,
                             Verdict* verdict) noexcept nogil
