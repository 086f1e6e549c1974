"""Zone transfers in progress: one reply of many messages (RFC 5936, RFC 1995), over TCP.

`transfer_begin` and `transfer_feed` are the state machine: they say where a transfer ends.  They
walk a message's answer section once, stepping over names, and keep nothing of it.

`Transfers` is the table of those that are open.  Each has a slot, and for the bytes it keeps a
chain of cells in one block, which is reserved as address space at start and touched as it fills:

    cell   +----------+-----------------------------------------------------------------+
           | next (4) | query | first message, whole | length (4), further message, ... |
           +----------+-----------------------------------------------------------------+

How it is used, by the engine:

    index = transfers.find(serial, direction, id, question, asked)
    if index:                                   # a continuation
        while (out := transfers.crowded(index, length)): its event, incomplete; remove(out)
        result = transfers.go_on(index, wire, length, clock, sequence, time)
    else:
        while (out := transfers.full(serial, direction, id, length + query_length)): the same
        index = transfers.begin(...)            # then fill in what is the engine's in at(index)
        result = transfers.at(index).state.result
    if result != TRANSFER_MORE: message(index, &m), its event, remove(index)

Indexes count from 1; 0 means none.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from gazer.workers.message cimport Message
from gazer.workers.transaction cimport Key

cdef enum:                  # TransferResult
    TRANSFER_MORE = 0       # its end has not been seen
    TRANSFER_WHOLE          # its last message has been seen (see transfer_complete)
    TRANSFER_BROKEN         # a message with an rcode, or whose answers can't be walked: over

cdef enum:
    TYPE_IXFR = 251
    TYPE_AXFR = 252
    TRANSFER_OUTER = 512    # octets of the engine's that a transfer carries along
    TRANSFER_UNDER_ID = 4   # open under one id of one direction; told apart by their questions
    TRANSFER_CELL = 1024
    TRANSFER_FEWEST = 130   # cells: the largest query and the largest first message fit


cdef struct TransferState:
    uint8_t phase           # see transfer.pyx
    uint8_t result          # of the last message
    uint8_t rcode           # of the last message's header
    bint middle             # its beginning was not seen: never complete
    uint32_t serial         # of its first SOA
    uint64_t messages
    uint64_t records        # in their answer sections
    uint64_t octets         # of the messages
    uint32_t answers        # records in the last message's answer section, as far as it went
    uint32_t answers_end    # where in that message they end; its length if they break off


cdef inline bint transfer_complete(const TransferState* s) noexcept nogil:
    """From its first record to its closing SOA, all has been seen."""
    return s.result == TRANSFER_WHOLE and not s.middle


cdef int transfer_begin(TransferState* s, const uint8_t* wire, uint32_t length,
                        uint16_t qtype) noexcept nogil
cdef int transfer_feed(TransferState* s, const uint8_t* wire, uint32_t length) noexcept nogil


cdef struct Transfer:
    # Links: bucket of (serial, direction, id); bucket of (serial, direction), in the order of
    # beginning; all of them in the order of their last messages.
    uint32_t next
    uint32_t stream_before
    uint32_t stream_after
    uint32_t older
    uint32_t newer
    # Bytes kept.
    uint32_t cells          # first cell
    uint32_t last_cell
    uint32_t used           # octets in the chain
    uint32_t query_length   # of these, the query; 0: none is known
    uint32_t first_length   # ... and the first message
    uint32_t kept_messages
    uint32_t kept_records   # answer records in those
    bint full               # no message is kept any more
    uint64_t turn           # grows from message to message, whichever transfer it belongs to
    # What it is.
    uint64_t serial         # of the stream
    uint64_t question       # hash
    uint64_t first_clock    # sensor clock, ns
    uint64_t first_sequence
    int64_t first_time      # the frame's own, ns since 1970
    uint64_t last_clock
    uint64_t last_sequence
    int64_t last_time
    TransferState state
    uint16_t id
    uint8_t direction
    bint asked              # its first message had a question
    Key key
    # The engine's; begin() sets them to zero.
    bint matched            # a query waited for it
    bint query_cut          # the capture lacks the end of the query
    uint32_t query_size     # on the wire
    uint32_t repeats
    int64_t query_time
    uint32_t outer_length
    uint8_t[TRANSFER_OUTER] outer


cdef class Transfers:
    cdef Transfer* slots
    cdef uint8_t* block
    cdef size_t reserved
    cdef uint32_t* ids              # heads of buckets
    cdef uint32_t* stream_heads
    cdef uint32_t* stream_tails
    cdef uint32_t mask              # of the buckets
    cdef uint8_t* scratch           # the query; the first message; a further one
    cdef uint32_t free_slots
    cdef uint32_t touched_slots
    cdef uint32_t free_cells
    cdef uint32_t touched_cells
    cdef uint32_t cells_used
    cdef readonly uint32_t max_cells
    cdef readonly uint32_t max_transfers
    cdef readonly uint32_t budget
    cdef readonly uint32_t count    # open now
    cdef readonly uint64_t bytes    # in use for them, slots and cells
    cdef uint32_t oldest            # whose last message is the longest ago: the next one due
    cdef uint32_t newest
    cdef uint64_t seed
    cdef uint64_t turn

    cdef Transfer* at(self, uint32_t index) noexcept nogil
    cdef uint32_t find(self, uint64_t serial, int direction, uint16_t id, uint64_t question,
                       bint asked) noexcept nogil
    cdef uint32_t full(self, uint64_t serial, int direction, uint16_t id,
                       uint32_t length) noexcept nogil
    cdef uint32_t begin(self, uint64_t serial, int direction, const Key* key, uint64_t question,
                        bint asked, uint16_t qtype, const uint8_t* query, uint32_t query_length,
                        const uint8_t* wire, uint32_t length, uint64_t clock, uint64_t sequence,
                        int64_t time) noexcept nogil
    cdef uint32_t crowded(self, uint32_t index, uint32_t length) noexcept nogil
    cdef int go_on(self, uint32_t index, const uint8_t* wire, uint32_t length, uint64_t clock,
                   uint64_t sequence, int64_t time) noexcept nogil
    cdef uint32_t first_of(self, uint64_t serial, int direction) noexcept nogil
    cdef uint32_t next_of(self, uint32_t index) noexcept nogil
    cdef const uint8_t* query(self, uint32_t index) noexcept nogil
    cdef void message(self, uint32_t index, Message* m) noexcept nogil
    cdef void remove(self, uint32_t index) noexcept nogil
    cdef uint32_t id_bucket(self, uint64_t serial, int direction, uint16_t id) noexcept nogil
    cdef uint32_t stream_bucket(self, uint64_t serial, int direction) noexcept nogil
    cdef uint32_t cells_for(self, uint32_t used, uint32_t more) noexcept nogil
    cdef uint32_t take_cell(self) noexcept nogil
    cdef uint8_t* cell(self, uint32_t index) noexcept nogil
    cdef void take(self, uint32_t* cell, uint32_t* at, uint8_t* to, uint32_t length) noexcept nogil
    cdef bint may_keep(self, const Transfer* t, uint32_t length) noexcept nogil
    cdef void keep(self, Transfer* t, const uint8_t* bytes_, uint32_t length) noexcept nogil
    cdef void link_newest(self, uint32_t index) noexcept nogil
    cdef void unlink_age(self, uint32_t index) noexcept nogil
