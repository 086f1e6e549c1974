"""A DNS message, decoded: header, records as text, EDNS (RFC 1035 section 4, RFC 6891)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from gazer.text cimport Arena, Text
from gazer.workers.names cimport Names

cdef enum Section:
    QUESTION = 0
    ANSWER
    AUTHORITY
    ADDITIONAL

cdef enum Flag:             # in `flags`, as on the wire (RFC 1035 section 4.1.1, RFC 4035)
    FLAG_QR = 0x8000
    FLAG_AA = 0x0400
    FLAG_TC = 0x0200
    FLAG_RD = 0x0100
    FLAG_RA = 0x0080
    FLAG_AD = 0x0020
    FLAG_CD = 0x0010

cdef enum:
    HEADER = 12
    TYPE_OPT = 41
    OPCODE_UPDATE = 5       # RFC 2136
    OPCODE_DSO = 6          # RFC 8490
    EDNS_ERRORS = 4         # extended errors kept of a message; real ones have one or two
    RECORD_ROOM = 144       # what a record takes in an event besides its texts, at most


cdef struct Record:
    Text name
    Text data               # empty for a question
    uint32_t ttl            # seconds
    uint16_t type
    uint16_t klass
    uint8_t section
    # mDNS: the class's top bit was set (RFC 6762: cache-flush of a record, section 10.2; of a
    # question unicast-response, 5.4); klass is without it.
    uint8_t top


cdef struct Edns:
    bint present
    uint8_t version
    uint8_t extended_rcode  # the upper eight bits of the rcode
    bint dnssec_ok
    uint16_t udp_size
    Text subnet             # length 0: not there; and so below
    Text cookie
    Text nsid
    uint32_t errors
    uint16_t error_code[EDNS_ERRORS]
    Text error_text[EDNS_ERRORS]


cdef struct Message:
    const uint8_t* wire
    uint32_t length         # bytes at `wire`
    uint16_t id
    uint16_t flags
    uint16_t counts[4]
    int anomaly             # the first one met, or OK
    bint readable           # header and all questions could be read: it makes an event
    bint plain              # one question, without compression
    uint32_t question_end
    uint32_t records_read   # in `records`
    uint32_t omitted        # well-formed, but beyond the room
    uint32_t room           # bytes that the records take in an event, at most
    Edns edns
    Text dso                # what a stateful operation says (RFC 8490); length 0: nothing
    # Set by the caller before a message is decoded; PROTOCOL_DNS to begin with.
    uint8_t protocol        # Protocol, of packet.pxd
    # Set up once:
    bint want_edns          # fill `edns` and `dso`
    uint32_t budget         # limit of `room`
    uint32_t capacity       # of `records`
    Record* records
    Arena arena
    Names names


cdef inline uint8_t message_opcode(const Message* m) noexcept nogil:
    return (m.flags >> 11) & 15

cdef inline uint16_t message_rcode(const Message* m) noexcept nogil:
    """With the upper bits of EDNS (RFC 6891, section 6.1.3)."""
    return (m.flags & 15) | (<uint16_t>m.edns.extended_rcode << 4)

cdef int message_setup(Message* m, uint32_t budget, bint want_edns) except -1
cdef void message_free(Message* m) noexcept nogil
cdef void message_decode(Message* m, const uint8_t* wire, uint32_t length, bint cut) noexcept nogil
cdef void message_append(Message* m, const uint8_t* wire, uint32_t length) noexcept nogil
