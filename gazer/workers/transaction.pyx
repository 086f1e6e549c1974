"""Matching queries with replies: the tables; see transaction.pxd."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from gazer.atomics cimport prefetch
from gazer.block cimport block_free, block_reserve
from gazer.packet cimport MAX_SCOPE
from gazer.workers.message cimport FLAG_QR, Message
from gazer.workers.outer cimport MAX_OUTER, Outer, outer_length
from gazer.workers.question cimport hash_bytes, question_equal

cdef extern from "mix.h" nogil:
    uint64_t fold_multiply(uint64_t a, uint64_t b)

cdef enum:
    FEWEST_BUCKETS = 4096
    NO_QUESTION = 0x51      # what a reply without question is remembered under

assert sizeof(Pending) + FIRST_BYTES == CELL
assert MOST_BYTES == 32 + MAX_SCOPE + MAX_OUTER + MAX_QUERY
assert FEWEST_CELLS == 1 + (MOST_BYTES + MORE_BYTES - 1) // MORE_BYTES
assert 32 + MAX_SCOPE <= FIRST_BYTES


cdef inline uint32_t answered_slot(const Answered* table, uint32_t mask,
                                   uint64_t print_) noexcept nogil:
    """The slot that holds the print, or the free one where it belongs.

    The first four places come from the key, so that they can be fetched early; what finds them
    taken goes where key and question lead.  Else a stranger who has ever new questions answered
    under one key would make one long row, and every look at it a walk.
    """
    cdef uint32_t i = <uint32_t>(print_ >> 20) & mask & ~<uint32_t>3
    cdef uint32_t k
    for k in range(i, i + 4):
        if table[k].print == print_ or table[k].print == 0:
            return k
    i = <uint32_t>((print_ * 0x9E3779B97F4A7C15ULL) >> 32) & mask
    while table[i].print and table[i].print != print_:
        i = (i + 1) & mask
    return i


cdef class Transactions:
    """The two tables of one worker.  `max_bytes` bounds the cells, but there is always room for one
    query of any size; `window` is in ns."""

    def __cinit__(self, *, max_pending, max_bytes, window, seed):
        self.max_pending = max_pending
        self.max_cells = max(FEWEST_CELLS, min(max_bytes // CELL, (1 << 31) - 1))
        self.max_answered = max(16, max_pending)
        self.window = window
        self.seed = seed
        # Cell 0 is never used: index 0 means "none".
        self.reserved = <size_t>(self.max_cells + 1) * CELL
        self.cells = <uint8_t*>block_reserve(self.reserved, "waiting transactions")
        self.touched = 1
        self.bucket_mask = FEWEST_BUCKETS - 1
        self.buckets = <uint32_t*>calloc(FEWEST_BUCKETS, sizeof(uint32_t))
        self.scratch = <uint8_t*>malloc(MOST_BYTES + MORE_BYTES)
        cdef int i
        for i in range(2):
            self.answered_mask[i] = FEWEST_BUCKETS - 1
            self.answered[i] = <Answered*>calloc(FEWEST_BUCKETS, sizeof(Answered))
        if not (self.buckets and self.scratch and self.answered[0] and self.answered[1]):
            raise MemoryError

    def __dealloc__(self):
        block_free(self.cells, self.reserved)
        free(self.buckets)
        free(self.scratch)
        free(self.answered[0])
        free(self.answered[1])

    cdef Pending* at(self, uint32_t index) noexcept nogil:
        return <Pending*>(self.cells + <size_t>index * CELL)

    cdef void key_hash(self, Key* key) noexcept nogil:
        cdef uint64_t ports = (<uint64_t>key.client_port | <uint64_t>key.server_port << 16
                               | <uint64_t>key.id << 32 | <uint64_t>key.transport << 48
                               | <uint64_t>key.scope << 56)
        cdef uint64_t addresses
        if key.length == 8:
            memcpy(&addresses, key.bytes, 8)
            key.hash = fold_multiply(addresses ^ self.seed, ports ^ 0x9E3779B97F4A7C15ULL)
            key.hash = fold_multiply(key.hash ^ self.seed, 0xE7037ED1A0B428DBULL)
        else:
            key.hash = hash_bytes(key.bytes, key.length, self.seed ^ ports, 0)

    cdef void prefetch_key(self, const Key* key, bint reply) noexcept nogil:
        """Fetch the places of the tables that this key will need, while its message is decoded."""
        prefetch(&self.buckets[key.hash & self.bucket_mask])
        if reply:
            prefetch(&self.answered[0][(key.hash >> 20) & self.answered_mask[0]])

    cdef bint has_room(self, uint32_t length) noexcept nogil:
        """True if a query of so many bytes, outer identity included, can be added without another
        one leaving."""
        cdef uint32_t cells = 1 + (length + MAX_SCOPE + 32 + MORE_BYTES - 1) // MORE_BYTES
        return self.pending < self.max_pending and self.cells_used + cells <= self.max_cells

    cdef uint32_t take_cell(self) noexcept nogil:
        cdef uint32_t index = self.free_cells
        if index:
            self.free_cells = self.at(index).next
        else:
            index = self.touched
            self.touched += 1
        self.cells_used += 1
        return index

    cdef void give_cell(self, uint32_t index) noexcept nogil:
        self.at(index).next = self.free_cells
        self.free_cells = index
        self.cells_used -= 1

    cdef void grow(self) noexcept nogil:
        """Twice the buckets.  With no memory for them the chains just become longer."""
        cdef uint32_t size = (self.bucket_mask + 1) * 2
        cdef uint32_t* buckets = <uint32_t*>calloc(size, sizeof(uint32_t))
        cdef uint32_t index
        cdef Pending* p
        if buckets == NULL:
            return
        index = self.oldest
        while index:
            p = self.at(index)
            p.next = buckets[p.hash & (size - 1)]
            buckets[p.hash & (size - 1)] = index
            index = p.newer
        free(self.buckets)
        self.buckets = buckets
        self.bucket_mask = size - 1

    cdef Pending* add(self, const Key* key, uint32_t question, const Outer* outer,
                      const uint8_t* wire, uint32_t length, uint64_t clock, uint64_t sequence,
                      int64_t time) noexcept nogil:
        """A query begins to wait; has_room() was true.  `outer` may be NULL: it came in no tunnel.

        The caller may change `size` (it is `length`) and add to `flags` of what is returned.
        """
        cdef uint32_t index, cell, n, size, bucket
        cdef Pending* p
        cdef uint8_t* to
        if self.pending > self.bucket_mask:
            self.grow()
        index = self.take_cell()
        p = self.at(index)
        p.clock = clock
        p.sequence = sequence
        p.time = time
        p.hash = <uint32_t>key.hash
        p.question = question
        p.client_port = key.client_port
        p.server_port = key.server_port
        p.id = key.id
        p.wire_length = p.size = <uint16_t>length
        p.repeats = 0
        p.family = key.family
        p.transport = key.transport
        p.scope = key.scope
        p.flags = 0
        p.more = 0
        to = <uint8_t*>p + sizeof(Pending)
        memcpy(to, key.bytes, key.length)
        if outer != NULL:
            p.flags = PENDING_OUTER
            memcpy(self.scratch, outer.bytes, outer.length)
            memcpy(self.scratch + outer.length, wire, length)
            wire = self.scratch
            length += outer.length
        n = FIRST_BYTES - key.length
        if n > length:
            n = length
        memcpy(to + key.length, wire, n)
        cell = index
        while n < length:
            self.at(cell).more = self.take_cell()
            cell = self.at(cell).more
            self.at(cell).more = 0
            size = length - n if length - n < MORE_BYTES else MORE_BYTES
            memcpy(<uint8_t*>self.at(cell) + 4, wire + n, size)
            n += size
        bucket = p.hash & self.bucket_mask
        p.next = self.buckets[bucket]
        self.buckets[bucket] = index
        p.older = self.newest
        p.newer = 0
        if self.newest:
            self.at(self.newest).newer = index
        else:
            self.oldest = index
        self.newest = index
        self.pending += 1
        return p

    cdef uint32_t find(self, const Key* key, uint32_t question, const Message* m) noexcept nogil:
        """The transaction that waits under the key with this message's question, or 0.

        A reply without question finds the oldest one under the key.
        """
        cdef uint32_t index = self.buckets[key.hash & self.bucket_mask]
        cdef uint32_t oldest = 0, met = 0
        cdef bint any_question = m.counts[0] == 0 and m.flags & FLAG_QR
        cdef Pending* p
        cdef const uint8_t* wire
        cdef uint32_t n
        while index:
            p = self.at(index)
            if (p.hash == <uint32_t>key.hash and p.id == key.id
                    and p.client_port == key.client_port and p.server_port == key.server_port
                    and p.family == key.family and p.transport == key.transport
                    and p.scope == key.scope
                    and memcmp(<uint8_t*>p + sizeof(Pending), key.bytes, key.length) == 0):
                met += 1
                # A bucket has the latest first; one segment's queries share their number.
                if oldest == 0 or p.sequence <= self.at(oldest).sequence:
                    oldest = index
                if p.question == question and not any_question:
                    wire = self.query(index)
                    n = m.question_end
                    # The same bytes, and the same number of questions: the same question.
                    if m.plain and p.wire_length >= n and memcmp(
                            wire + 4, m.wire + 4, 2) == 0 and memcmp(
                            wire + 12, m.wire + 12, n - 12) == 0:
                        return index
                    if (wire[4] << 8 | wire[5]) == m.counts[0] and question_equal(
                            wire, p.wire_length, m.wire, m.length, m.counts[0]):
                        return index
            index = p.next
        self.under_key = met
        self.oldest_under_key = oldest
        return oldest if any_question else 0

    cdef void remove(self, uint32_t index) noexcept nogil:
        """The transaction waits no longer; its cells are free."""
        cdef Pending* p = self.at(index)
        cdef uint32_t* link = &self.buckets[p.hash & self.bucket_mask]
        cdef uint32_t cell
        while link[0] != index:
            link = &self.at(link[0]).next
        link[0] = p.next
        if p.older:
            self.at(p.older).newer = p.newer
        else:
            self.oldest = p.newer
        if p.newer:
            self.at(p.newer).older = p.older
        else:
            self.newest = p.older
        cell = p.more
        self.give_cell(index)
        while cell:
            index = cell
            cell = self.at(cell).more
            self.give_cell(index)
        self.pending -= 1

    cdef const uint8_t* stored(self, uint32_t index) noexcept nogil:
        """What stands behind the key, in one piece: valid until the next call of this or `add`."""
        cdef Pending* p = self.at(index)
        cdef uint32_t key_length = (8 if p.family == 4 else 32) + p.scope
        cdef uint32_t n = FIRST_BYTES - key_length
        cdef uint32_t cell = p.more
        if cell == 0:
            return <uint8_t*>p + sizeof(Pending) + key_length
        memcpy(self.scratch, <uint8_t*>p + sizeof(Pending) + key_length, n)
        while cell:
            memcpy(self.scratch + n, <uint8_t*>self.at(cell) + 4, MORE_BYTES)
            n += MORE_BYTES
            cell = self.at(cell).more
        return self.scratch

    cdef const uint8_t* query(self, uint32_t index) noexcept nogil:
        """The query's bytes (wire_length of them), valid until the next call of this or `add`."""
        cdef const uint8_t* bytes_ = self.stored(index)
        if self.at(index).flags & PENDING_OUTER:
            return bytes_ + outer_length(bytes_)
        return bytes_

    cdef const uint8_t* outer(self, uint32_t index) noexcept nogil:
        """The outer identity it came with, or NULL; valid as long as `query`'s answer."""
        return self.stored(index) if self.at(index).flags & PENDING_OUTER else NULL

    # --- answered transactions -------------------------------------------------------------------
    #
    # Mirror ports and the `any` device show packets twice, so a reply's second copy must not look
    # like one that nobody asked for.  What is remembered is a 64-bit print of key and question:
    # sixteen bytes, where the transaction itself took a hundred or more.

    cdef uint64_t answered_print(self, const Key* key, uint64_t question) noexcept nogil:
        """The place in the table comes from the key alone (bits 20 to 51, so that it can be fetched
        early), all other bits from key and question."""
        cdef uint64_t place = 0x000FFFFFFFF00000ULL
        cdef uint64_t h = fold_multiply(key.hash ^ 0xA0761D6478BD642FULL, question ^ self.seed)
        h = (h & ~place) | (key.hash & place)
        return h | (h == 0)

    cdef void answered_turn(self, uint64_t clock) noexcept nogil:
        """Begin a new generation; the one before the last is forgotten.

        Its table is cleared and used again, if it was used well.  One that a burst has left large
        is exchanged for a small one: clearing costs time in proportion to what was put in.
        """
        cdef Answered* table = self.answered[1]
        cdef uint32_t mask = self.answered_mask[1]
        cdef Answered* small = NULL
        if mask >= FEWEST_BUCKETS and self.answered_count[1] < mask // 16:
            small = <Answered*>calloc(FEWEST_BUCKETS, sizeof(Answered))
        if small != NULL:
            free(table)
            table = small
            mask = FEWEST_BUCKETS - 1
        elif self.answered_count[1]:
            memset(table, 0, (<size_t>mask + 1) * sizeof(Answered))
        self.answered[1] = self.answered[0]
        self.answered_mask[1] = self.answered_mask[0]
        self.answered_count[1] = self.answered_count[0]
        self.answered[0] = table
        self.answered_mask[0] = mask
        self.answered_count[0] = 0
        self.answered_since = clock

    cdef bint answered_put(self, Answered* table, uint32_t mask, uint64_t print_,
                           uint64_t clock) noexcept nogil:
        """True if that took a free place."""
        cdef uint32_t i = answered_slot(table, mask, print_)
        cdef bint free_place = table[i].print == 0
        table[i].print = print_
        table[i].clock = clock
        return free_place

    cdef bint answered_grow(self) noexcept nogil:
        cdef uint32_t mask = self.answered_mask[0] * 2 + 1, i
        cdef Answered* table = <Answered*>calloc(<size_t>mask + 1, sizeof(Answered))
        if table == NULL:
            return False
        for i in range(self.answered_mask[0] + 1):
            if self.answered[0][i].print:
                self.answered_put(table, mask, self.answered[0][i].print, self.answered[0][i].clock)
        free(self.answered[0])
        self.answered[0] = table
        self.answered_mask[0] = mask
        return True

    cdef void remember(self, const Key* key, uint64_t question, uint64_t clock) noexcept nogil:
        """This transaction is answered now.  Question 0 stands for a reply without question."""
        if self.window == 0:
            return
        if clock - self.answered_since > self.window:
            self.answered_turn(clock)
        elif self.answered_count[0] >= self.max_answered:
            self.forgotten += self.answered_count[1]
            self.answered_turn(clock)
        if self.answered_count[0] * 2 > self.answered_mask[0] and not self.answered_grow():
            self.forgotten += self.answered_count[1]
            self.answered_turn(clock)
        self.answered_count[0] += self.answered_put(
            self.answered[0], self.answered_mask[0], self.answered_print(key, question), clock)

    cdef bint remembered(self, const Key* key, uint64_t question, uint64_t clock) noexcept nogil:
        """True if the transaction was answered less than `window` ago."""
        cdef uint64_t print_ = self.answered_print(key, question)
        cdef Answered* slot
        cdef int generation
        for generation in range(2):
            slot = &self.answered[generation][
                answered_slot(self.answered[generation], self.answered_mask[generation], print_)]
            if slot.print and clock - slot.clock < self.window:
                return True
        return False
