"""From messages to transactions: who waits, who is answered, and what event comes of it."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from gazer.workers.emitter cimport Emitter
from gazer.workers.exchange cimport Exchange
from gazer.workers.message cimport Message
from gazer.workers.outer cimport Outer
from gazer.workers.transaction cimport Key, Transactions
from gazer.workers.transfer cimport Transfers


cdef struct Origin:
    # Where a message came from: the packet that it came in, or that made it whole.
    const uint8_t* source       # addresses, 4 or 16 octets each
    const uint8_t* destination
    const uint8_t* scope        # see outer.pxd
    const Outer* outer          # NULL: it came in no tunnel
    uint64_t clock              # sensor clock, ns: when what follows from it is due
    uint64_t sequence           # ... and number of the frame
    int64_t time                # the frame's own, ns since 1970
    uint64_t stream             # TCP: serial number of the connection
    uint32_t size               # of the message on the wire
    uint16_t source_port
    uint16_t destination_port
    uint8_t direction           # TCP: of the connection
    uint8_t scope_length
    uint8_t family
    uint8_t transport
    uint8_t protocol            # Protocol
    bint cut                    # the capture lacks the end of the message


cdef struct Due:
    # When the next thing that waits has waited long enough.
    uint64_t clock
    uint64_t sequence
    uint32_t transaction        # its index, or 0
    uint32_t transfer           # its index, or 0


cdef class Matcher:
    cdef Transactions table
    cdef Transfers transfers
    cdef Emitter emitter
    cdef uint64_t* counters
    cdef Message query          # the query in hand, or of the reply in hand
    cdef Message reply          # the reply in hand; what is given up, where there is none
    cdef Message whole          # a zone transfer's messages
    cdef bint records
    cdef uint64_t timeout
    cdef uint64_t loss          # sensor clock when something of ours was last lost; 0: never

    cdef void message(self, const Origin* o, const uint8_t* wire, uint32_t length) noexcept nogil
    cdef void judge(self, Exchange* x, uint64_t clock) noexcept nogil
    cdef void measure(self, const Exchange* x) noexcept nogil
    cdef bint nothing_due(self, uint64_t clock) noexcept nogil
    cdef bint due(self, Due* due) noexcept nogil
    cdef void expire(self, const Due* due) noexcept nogil
    cdef void stream_over(self, uint64_t stream, int direction, uint64_t clock,
                          uint64_t sequence) noexcept nogil
    cdef void handle_query(self, const Origin* o, Exchange* x, Key* key,
                           uint64_t question) noexcept nogil
    cdef void handle_reply(self, const Origin* o, Exchange* x, Key* key,
                           uint64_t question) noexcept nogil
    cdef void answer(self, const Origin* o, Exchange* x, Key* key, uint64_t question,
                     uint32_t index) noexcept nogil
    cdef uint32_t find_group(self, Key* key, const Origin* o, uint64_t question,
                             bint* answered) noexcept nogil
    cdef bint continues(self, const Origin* o, Key* key, uint64_t question) noexcept nogil
    cdef bint begins_transfer(self, const Origin* o, Exchange* x, Key* key, uint64_t question,
                              uint16_t qtype, bint query_cut) noexcept nogil
    cdef void end_transfer(self, uint32_t index, uint64_t clock, uint64_t sequence) noexcept nogil
    cdef void remember(self, const Key* key, uint64_t question, bint asked, const Message* query,
                       uint64_t clock) noexcept nogil
    cdef void give_up(self, uint32_t index, uint64_t clock, uint64_t sequence) noexcept nogil
