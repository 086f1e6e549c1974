"""The table of queries that wait for their reply, and the memory of those just answered.

A transaction's key is client address and port, server address and port, transport, scope (VLAN ids
and VNIs: what tells networks apart) and DNS id; under one key several may wait, told apart by their
question.  The table is one block of
cells of 128 bytes, reserved as address space at start and touched as it fills:

    first cell   +---------------------------+------------------------------------------+
                 | Pending: links, times,    | addresses | scope | query, as on the     |
                 | ports, id, hashes (64)    | (8 or 32) |       | wire ... (64 in all) |
                 +---------------------------+------------------------------------------+
    further      | more (4) | query, continued (124)                                    |
                 +----------------------------------------------------------------------+

A query that came in a tunnel has its outer identity (workers/outer.pxd) between scope and query.

One size of cell means that nothing fragments and that memory is exactly bounded, whatever comes.
Transactions wait in the order of their queries (`older`, `newer`): the timeout is the same for all,
so the oldest is always the next one due, and also the one that leaves when the table is full.

All that wait under one key stand in one bucket, since a reply without question must find the oldest
of them.  So that a stranger who asks ever new questions under one key can't make that chain long,
at most MAX_UNDER_KEY wait under it; then the oldest of these leaves.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from gazer.packet cimport MAX_SCOPE
from gazer.workers.message cimport Message
from gazer.workers.outer cimport Outer

cdef enum:
    CELL = 128
    FIRST_BYTES = 64        # of a first cell, behind Pending
    MORE_BYTES = 124        # of a further cell
    MAX_QUERY = 65535
    MOST_BYTES = 65945      # of one transaction: 32 + MAX_SCOPE + MAX_OUTER + MAX_QUERY
    FEWEST_CELLS = 533      # ... and the cells for it: 1 + ceil(MOST_BYTES / MORE_BYTES)
    MAX_UNDER_KEY = 64      # clients ask one to three questions under a key


cdef struct Key:
    # Who talks to whom, of one message; the client first.
    uint64_t hash
    uint16_t client_port
    uint16_t server_port
    uint16_t id
    uint8_t family          # 4 or 6
    uint8_t transport
    uint8_t scope           # octets of scope
    uint8_t length          # bytes used of `bytes`
    uint8_t[32 + MAX_SCOPE] bytes       # client address, server address, scope


cdef struct Pending:
    uint32_t more           # next cell of this query; 0: none
    uint32_t next           # in the bucket; in the list of free cells
    uint32_t older
    uint32_t newer
    uint64_t clock          # sensor clock at the query, ns
    uint64_t sequence       # of its frame
    int64_t time            # the frame's own, ns since 1970
    uint32_t hash
    uint32_t question       # hash
    uint16_t client_port
    uint16_t server_port
    uint16_t id
    uint16_t wire_length    # bytes of query kept
    uint16_t size           # bytes of query on the wire
    uint16_t repeats
    uint8_t family
    uint8_t transport
    uint8_t scope           # octets
    uint8_t flags           # PENDING_*

cdef enum:
    PENDING_CUT = 1         # the capture lacks the end of the query
    PENDING_OUTER = 2       # the outer identity stands before the query
    PENDING_PROTOCOL = 4    # from this bit on: Protocol


cdef struct Answered:
    uint64_t print          # of key and question; 0: free
    uint64_t clock          # when it was answered


cdef class Transactions:
    cdef uint8_t* cells
    cdef size_t reserved            # bytes of address space
    cdef uint32_t* buckets
    cdef uint32_t bucket_mask
    cdef uint32_t touched           # cells ever used
    cdef uint32_t free_cells        # head of the list
    cdef uint32_t cells_used
    cdef readonly uint32_t max_cells
    cdef readonly uint32_t max_pending
    cdef readonly uint32_t pending
    cdef uint32_t oldest
    cdef uint32_t newest
    cdef uint32_t under_key         # how many the last `find` without success met under its key
    cdef uint32_t oldest_under_key  # ... and the oldest of them; 0: none
    cdef uint64_t seed
    cdef uint8_t* scratch
    # Answered transactions, in two generations of one window each.
    cdef Answered* answered[2]
    cdef uint32_t answered_mask[2]
    cdef uint32_t answered_count[2]
    cdef uint32_t max_answered
    cdef uint64_t answered_since    # clock at which generation 0 began
    cdef readonly uint64_t window
    cdef readonly uint64_t forgotten

    cdef Pending* at(self, uint32_t index) noexcept nogil
    cdef void key_hash(self, Key* key) noexcept nogil
    cdef bint has_room(self, uint32_t length) noexcept nogil
    cdef Pending* add(self, const Key* key, uint32_t question, const Outer* outer,
                      const uint8_t* wire, uint32_t length, uint64_t clock, uint64_t sequence,
                      int64_t time) noexcept nogil
    cdef uint32_t find(self, const Key* key, uint32_t question, const Message* m) noexcept nogil
    cdef void remove(self, uint32_t index) noexcept nogil
    cdef const uint8_t* query(self, uint32_t index) noexcept nogil
    cdef const uint8_t* outer(self, uint32_t index) noexcept nogil
    cdef const uint8_t* stored(self, uint32_t index) noexcept nogil
    cdef void remember(self, const Key* key, uint64_t question, uint64_t clock) noexcept nogil
    cdef bint remembered(self, const Key* key, uint64_t question, uint64_t clock) noexcept nogil
    cdef uint32_t take_cell(self) noexcept nogil
    cdef void give_cell(self, uint32_t index) noexcept nogil
    cdef void grow(self) noexcept nogil
    cdef uint64_t answered_print(self, const Key* key, uint64_t question) noexcept nogil
    cdef void answered_turn(self, uint64_t clock) noexcept nogil
    cdef bint answered_put(self, Answered* table, uint32_t mask, uint64_t print_,
                           uint64_t clock) noexcept nogil
    cdef bint answered_grow(self) noexcept nogil
    cdef void prefetch_key(self, const Key* key, bint reply) noexcept nogil
