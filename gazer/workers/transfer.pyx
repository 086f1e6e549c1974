"""Zone transfers in progress; see transfer.pxd.

Where a transfer ends (only answer sections count, and it is told a message at a time):

- AXFR (RFC 5936, section 2.2): at the second SOA, the first record being the first one.
- IXFR (RFC 1995, section 4), S being the serial of the first record, a SOA:
    - nothing else in its message: the client is up to date, that is all;
    - a second record that is no SOA: as AXFR;
    - a second record that is a SOA: deletions under a SOA with the old serial, additions under one
      with the new one, over and over; it ends at a SOA with serial S where deletions would begin.
- If nobody knows what was asked: as IXFR, but for a SOA all alone, which is as well an AXFR's last
  message: it ends there and is not complete.
- If the first record is no SOA, the beginning was not seen.  It ends with the first message whose
  last answer is a SOA, since in the middle of an IXFR a SOA is no end; it is not complete.
- It breaks at a message with an rcode (the four bits of the header), and at one whose answers can't
  be walked: a name or rdata that goes beyond the message, a SOA without a serial.  No complete one
  has such a message.

A SOA is told by its type alone.  Its owner is the zone's name in every zone there is; to compare
names would let compression make a message cost more than its size.

What is kept, and why it is bounded:

- A transfer has a slot of fixed size, and keeps its query, its first message, and of the following
  ones header, question and answers, as long as these might be shown: at most `budget` octets, and
  no message more once the answers kept fill `budget` with just what each record takes at least.
  A message without answers is counted, not kept, but for the one that breaks the transfer, since
  it may have an anomaly to tell.  What is not kept stays counted (`omitted`).
- `max_transfers` are open at most, and their cells take at most `max_bytes`, but there is always
  room for one transfer with any query and any first message.  Beyond that the one leaves whose last
  message is the longest ago: `full` and `crowded` name it, since its event has to be made first.
- A server that answers under one id with ever new questions gets TRANSFER_UNDER_ID transfers at a
  time, so a look-up is short whatever comes; streams and ids are hashed with a secret seed.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from gazer.block cimport block_free, block_reserve
from gazer.cursor cimport (
    Cursor, cursor_has, cursor_left, cursor_over, cursor_skip, cursor_u16, cursor_u32)
from gazer.packet cimport PROTOCOL_DNS
from gazer.workers.anomaly cimport OK
from gazer.workers.message cimport RECORD_ROOM, Message, message_append, message_decode
from gazer.workers.names cimport name_skip
from gazer.workers.rrtypes cimport TYPE_SOA
from gazer.workers.transaction cimport Key

cdef extern from "mix.h" nogil:
    uint64_t fold_multiply(uint64_t a, uint64_t b)

cdef enum:          # TransferState.phase: what the next answer is met with
    AXFR_FIRST = 0      # nothing yet
    IXFR_FIRST
    ANY_FIRST           # ... and nobody knows what was asked
    ZONE                # a zone's records, up to a SOA
    IXFR_SECOND         # the second record, which tells the form
    ANY_SECOND
    DELETIONS           # up to the SOA of the additions
    ADDITIONS           # up to the SOA of the next deletions, or the closing one
    MIDDLE              # the first record was no SOA
    CLOSED

cdef enum:
    MAX_MESSAGE = 65535
    CELL_BYTES = TRANSFER_CELL - 4
    LENGTH = 4              # octets before a further message
    LEAST_ROOM = RECORD_ROOM + 1    # what a record takes of a budget: its name has a dot at least

assert TRANSFER_FEWEST * CELL_BYTES >= 2 * MAX_MESSAGE


# --- the state machine ---------------------------------------------------------------------------

cdef inline void step(TransferState* s, bint soa, uint32_t serial) noexcept nogil:
    """The next answer."""
    cdef uint8_t phase = s.phase
    if not soa and phase >= ZONE:
        if phase == IXFR_SECOND or phase == ANY_SECOND:
            s.phase = ZONE
    elif phase <= ANY_FIRST:
        s.serial = serial
        if not soa:
            s.middle = True
            s.phase = MIDDLE
        elif phase == AXFR_FIRST:
            s.phase = ZONE
        else:
            s.phase = IXFR_SECOND if phase == IXFR_FIRST else ANY_SECOND
    elif phase == ZONE:
        s.phase = CLOSED
    elif phase == DELETIONS:
        s.phase = ADDITIONS
    elif phase != MIDDLE and phase != CLOSED:   # here deletions begin, or it is the end
        s.phase = CLOSED if serial == s.serial else DELETIONS


cdef bint walk(TransferState* s, Cursor* c, uint32_t count, bint* soa) noexcept nogil:
    """Step over the answers; `soa` is whether the last one is a SOA.  False if they break off, or
    if there is a SOA without a serial; the records behind that are counted all the same."""
    cdef Cursor rdata
    cdef uint32_t serial = 0, _
    cdef uint16_t type, length
    cdef bint sound = True
    for _ in range(count):
        # name_skip looks at nothing but the cursor: pointers are stepped over.
        if cursor_left(c) == 0 or name_skip(NULL, c) != OK:
            return False
        type = cursor_u16(c)
        cursor_skip(c, 6)           # class, TTL
        length = cursor_u16(c)
        if c.failed or not cursor_has(c, length):
            return False
        soa[0] = type == TYPE_SOA
        if soa[0]:
            rdata = cursor_over(c.base, c.pos, c.pos + length)
            if name_skip(NULL, &rdata) == OK and name_skip(NULL, &rdata) == OK:
                serial = cursor_u32(&rdata)
            else:
                rdata.failed = True
            if rdata.failed:
                sound = False
        cursor_skip(c, length)
        s.answers += 1
        s.answers_end = c.pos
        step(s, soa[0], serial)
    return sound


cdef int transfer_begin(TransferState* s, const uint8_t* wire, uint32_t length,
                        uint16_t qtype) noexcept nogil:
    """The first message, with the type that was asked for (0: not known).  A TransferResult."""
    memset(s, 0, sizeof(TransferState))
    s.phase = (AXFR_FIRST if qtype == TYPE_AXFR else
               IXFR_FIRST if qtype == TYPE_IXFR else ANY_FIRST)
    return transfer_feed(s, wire, length)


cdef int transfer_feed(TransferState* s, const uint8_t* wire, uint32_t length) noexcept nogil:
    """The next message.  A TransferResult."""
    cdef Cursor c = cursor_over(wire, 2, length)
    cdef uint16_t questions, answers, _
    cdef bint soa = False, sound
    s.messages += 1
    s.octets += length
    s.answers = 0
    s.rcode = cursor_u16(&c) & 15
    questions = cursor_u16(&c)
    answers = cursor_u16(&c)
    sound = cursor_skip(&c, 4)
    s.answers_end = c.pos
    for _ in range(questions):
        if not sound:
            break
        sound = name_skip(NULL, &c) == OK and cursor_skip(&c, 4)
        s.answers_end = c.pos
    sound = sound and walk(s, &c, answers, &soa)
    s.records += s.answers
    if not sound:
        s.answers_end = length
    if s.rcode or not sound:
        s.result = TRANSFER_BROKEN
    elif (s.phase == CLOSED or s.phase == IXFR_SECOND or s.phase == ANY_SECOND
            or (s.phase == MIDDLE and soa)):
        if s.phase == ANY_SECOND:
            s.middle = True
        s.phase = CLOSED
        s.result = TRANSFER_WHOLE
    else:
        s.result = TRANSFER_MORE
    return s.result


# --- the table -----------------------------------------------------------------------------------

cdef class Transfers:
    """The open transfers of one worker.  `max_bytes` bounds the bytes that they keep together, and
    `budget` (events.max_size) those of each beyond its query and first message."""

    def __cinit__(self, *, max_transfers, max_bytes, budget, seed):
        self.max_transfers = max(1, max_transfers)
        self.max_cells = max(TRANSFER_FEWEST, min(max_bytes // TRANSFER_CELL, (1 << 31) - 1))
        self.budget = budget
        self.seed = seed
        # Slot 0 and cell 0 are never used: index 0 means "none".
        self.reserved = <size_t>(self.max_cells + 1) * TRANSFER_CELL
        self.block = <uint8_t*>block_reserve(self.reserved, "zone transfers")
        self.touched_slots = self.touched_cells = 1
        self.mask = (1 << int(2 * self.max_transfers).bit_length()) - 1
        self.slots = <Transfer*>calloc(<size_t>self.max_transfers + 1, sizeof(Transfer))
        self.ids = <uint32_t*>calloc(<size_t>self.mask + 1, sizeof(uint32_t))
        self.stream_heads = <uint32_t*>calloc(<size_t>self.mask + 1, sizeof(uint32_t))
        self.stream_tails = <uint32_t*>calloc(<size_t>self.mask + 1, sizeof(uint32_t))
        self.scratch = <uint8_t*>malloc(3 * MAX_MESSAGE)
        if not (self.slots and self.ids and self.stream_heads and self.stream_tails
                and self.scratch):
            raise MemoryError

    def __dealloc__(self):
        block_free(self.block, self.reserved)
        free(self.slots)
        free(self.ids)
        free(self.stream_heads)
        free(self.stream_tails)
        free(self.scratch)

    cdef Transfer* at(self, uint32_t index) noexcept nogil:
        return &self.slots[index]

    cdef uint32_t id_bucket(self, uint64_t serial, int direction, uint16_t id) noexcept nogil:
        return <uint32_t>fold_multiply(
            serial ^ self.seed, (<uint64_t>id << 1 | (direction & 1)) ^ 0x9E3779B97F4A7C15ULL
        ) & self.mask

    cdef uint32_t stream_bucket(self, uint64_t serial, int direction) noexcept nogil:
        return <uint32_t>fold_multiply(
            serial ^ self.seed, (direction & 1) ^ 0xE7037ED1A0B428DBULL) & self.mask

    cdef uint32_t find(self, uint64_t serial, int direction, uint16_t id, uint64_t question,
                       bint asked) noexcept nogil:
        """The open transfer that such a message continues, or 0.

        A message with a question (`asked`) continues the one of that question, a message without
        one that of its id which was continued last.
        """
        cdef uint32_t index = self.ids[self.id_bucket(serial, direction, id)], best = 0
        cdef Transfer* t
        while index:
            t = &self.slots[index]
            if t.serial == serial and t.direction == direction and t.id == id and (
                    not asked or (t.asked and t.question == question)):
                if best == 0 or t.turn > self.slots[best].turn:
                    best = index
            index = t.next
        return best

    # --- cells -----------------------------------------------------------------------------------

    cdef uint8_t* cell(self, uint32_t index) noexcept nogil:
        return self.block + <size_t>index * TRANSFER_CELL

    cdef uint32_t cells_for(self, uint32_t used, uint32_t more) noexcept nogil:
        """How many cells more octets need behind those in use."""
        return (used + more + CELL_BYTES - 1) // CELL_BYTES - (used + CELL_BYTES - 1) // CELL_BYTES

    cdef uint32_t take_cell(self) noexcept nogil:
        cdef uint32_t index = self.free_cells
        if index:
            self.free_cells = (<uint32_t*>self.cell(index))[0]
        else:
            index = self.touched_cells
            self.touched_cells += 1
        (<uint32_t*>self.cell(index))[0] = 0
        self.cells_used += 1
        self.bytes += TRANSFER_CELL
        return index

    cdef void keep(self, Transfer* t, const uint8_t* bytes_, uint32_t length) noexcept nogil:
        """Append to the transfer's chain; there is room."""
        cdef uint32_t at, n, new
        while length:
            at = t.used % CELL_BYTES
            if at == 0:
                new = self.take_cell()
                if t.cells:
                    (<uint32_t*>self.cell(t.last_cell))[0] = new
                else:
                    t.cells = new
                t.last_cell = new
            n = min(length, CELL_BYTES - at)
            memcpy(self.cell(t.last_cell) + 4 + at, bytes_, n)
            t.used += n
            bytes_ += n
            length -= n

    # --- age -------------------------------------------------------------------------------------

    cdef void link_newest(self, uint32_t index) noexcept nogil:
        cdef Transfer* t = &self.slots[index]
        self.turn += 1
        t.turn = self.turn
        t.older = self.newest
        t.newer = 0
        if self.newest:
            self.slots[self.newest].newer = index
        else:
            self.oldest = index
        self.newest = index

    cdef void unlink_age(self, uint32_t index) noexcept nogil:
        cdef Transfer* t = &self.slots[index]
        if t.older:
            self.slots[t.older].newer = t.newer
        else:
            self.oldest = t.newer
        if t.newer:
            self.slots[t.newer].older = t.older
        else:
            self.newest = t.older

    # --- a transfer's life -----------------------------------------------------------------------

    cdef uint32_t full(self, uint64_t serial, int direction, uint16_t id,
                       uint32_t length) noexcept nogil:
        """Which transfer has to leave before one may begin that keeps so many octets (its query
        and its first message); 0: there is room."""
        cdef uint32_t index = self.ids[self.id_bucket(serial, direction, id)]
        cdef uint32_t met = 0, stalest = 0
        cdef Transfer* t
        while index:
            t = &self.slots[index]
            if t.serial == serial and t.direction == direction and t.id == id:
                met += 1
                if stalest == 0 or t.turn < self.slots[stalest].turn:
                    stalest = index
            index = t.next
        if met >= TRANSFER_UNDER_ID:
            return stalest
        if (self.count >= self.max_transfers
                or self.cells_used + self.cells_for(0, length) > self.max_cells):
            return self.oldest
        return 0

    cdef uint32_t begin(self, uint64_t serial, int direction, const Key* key, uint64_t question,
                        bint asked, uint16_t qtype, const uint8_t* query, uint32_t query_length,
                        const uint8_t* wire, uint32_t length, uint64_t clock, uint64_t sequence,
                        int64_t time) noexcept nogil:
        """A transfer begins with this message, and, if one is known, this query; full() gave 0.

        `asked`: the message has a question, whose hash is `question`.  `qtype`: what was asked for;
        0 if nobody knows.
        """
        cdef uint32_t index = self.free_slots, bucket
        cdef Transfer* t
        if index:
            self.free_slots = self.slots[index].next
        else:
            index = self.touched_slots
            self.touched_slots += 1
        t = &self.slots[index]
        memset(t, 0, <size_t>(<uint8_t*>&t.outer - <uint8_t*>t))
        t.serial = serial
        t.direction = <uint8_t>(direction & 1)
        t.id = key.id
        t.question = question
        t.asked = asked
        t.key = key[0]
        t.first_clock = t.last_clock = clock
        t.first_sequence = t.last_sequence = sequence
        t.first_time = t.last_time = time
        transfer_begin(&t.state, wire, length, qtype)
        t.query_length = query_length
        t.first_length = length
        t.kept_messages = 1
        t.kept_records = t.state.answers
        self.keep(t, query, query_length)
        self.keep(t, wire, length)
        bucket = self.id_bucket(serial, direction, key.id)
        t.next = self.ids[bucket]
        self.ids[bucket] = index
        bucket = self.stream_bucket(serial, direction)
        t.stream_before = self.stream_tails[bucket]
        if t.stream_before:
            self.slots[t.stream_before].stream_after = index
        else:
            self.stream_heads[bucket] = index
        self.stream_tails[bucket] = index
        self.link_newest(index)
        self.count += 1
        self.bytes += sizeof(Transfer)
        return index

    cdef uint32_t crowded(self, uint32_t index, uint32_t length) noexcept nogil:
        """Which other transfer has to leave so that this one can keep a message of this size; 0:
        none, whether because there is room or because it keeps no more."""
        cdef Transfer* t = &self.slots[index]
        if (not self.may_keep(t, length)
                or self.cells_used + self.cells_for(t.used, LENGTH + length) <= self.max_cells):
            return 0
        return self.oldest if self.oldest != index else t.newer

    cdef bint may_keep(self, const Transfer* t, uint32_t length) noexcept nogil:
        """True if a further message of so many octets may get to be shown."""
        return (not t.full
                and t.used - t.query_length + LENGTH + <uint64_t>length <= self.budget
                and <uint64_t>t.kept_records * LEAST_ROOM < self.budget)

    cdef int go_on(self, uint32_t index, const uint8_t* wire, uint32_t length, uint64_t clock,
                   uint64_t sequence, int64_t time) noexcept nogil:
        """The transfer's next message.  A TransferResult."""
        cdef Transfer* t = &self.slots[index]
        cdef uint32_t size
        t.last_clock = clock
        t.last_sequence = sequence
        t.last_time = time
        self.unlink_age(index)
        self.link_newest(index)
        transfer_feed(&t.state, wire, length)
        # What stands behind the answers is not shown, and no name in them can point there.
        size = t.state.answers_end
        if t.full or (t.state.answers == 0 and t.state.result != TRANSFER_BROKEN):
            return t.state.result
        if not self.may_keep(t, size) or (
                self.cells_used + self.cells_for(t.used, LENGTH + size) > self.max_cells):
            t.full = True
            return t.state.result
        self.keep(t, <uint8_t*>&size, LENGTH)
        self.keep(t, wire, size)
        t.kept_messages += 1
        t.kept_records += t.state.answers
        return t.state.result

    cdef uint32_t first_of(self, uint64_t serial, int direction) noexcept nogil:
        """The first begun of those open on one direction of a stream; 0: none."""
        cdef uint32_t index = self.stream_heads[self.stream_bucket(serial, direction)]
        while index and (self.slots[index].serial != serial
                         or self.slots[index].direction != direction):
            index = self.slots[index].stream_after
        return index

    cdef uint32_t next_of(self, uint32_t index) noexcept nogil:
        """The next one begun on the same direction; 0: none."""
        cdef Transfer* t = &self.slots[index]
        index = t.stream_after
        while index and (self.slots[index].serial != t.serial
                         or self.slots[index].direction != t.direction):
            index = self.slots[index].stream_after
        return index

    cdef void remove(self, uint32_t index) noexcept nogil:
        cdef Transfer* t = &self.slots[index]
        cdef uint32_t* link = &self.ids[self.id_bucket(t.serial, t.direction, t.id)]
        cdef uint32_t bucket = self.stream_bucket(t.serial, t.direction), cells
        while link[0] != index:
            link = &self.slots[link[0]].next
        link[0] = t.next
        if t.stream_before:
            self.slots[t.stream_before].stream_after = t.stream_after
        else:
            self.stream_heads[bucket] = t.stream_after
        if t.stream_after:
            self.slots[t.stream_after].stream_before = t.stream_before
        else:
            self.stream_tails[bucket] = t.stream_before
        self.unlink_age(index)
        if t.cells:
            cells = self.cells_for(0, t.used)
            (<uint32_t*>self.cell(t.last_cell))[0] = self.free_cells
            self.free_cells = t.cells
            self.cells_used -= cells
            self.bytes -= <uint64_t>cells * TRANSFER_CELL
        t.next = self.free_slots
        self.free_slots = index
        self.count -= 1
        self.bytes -= sizeof(Transfer)

    # --- what it was -----------------------------------------------------------------------------

    cdef const uint8_t* query(self, uint32_t index) noexcept nogil:
        """The query's bytes (query_length of them), valid until this or `message` is called for
        another transfer."""
        cdef Transfer* t = &self.slots[index]
        cdef uint32_t cell = t.cells, at = 0
        self.take(&cell, &at, self.scratch, t.query_length)
        return self.scratch

    cdef void take(self, uint32_t* cell, uint32_t* at, uint8_t* to, uint32_t length) noexcept nogil:
        """Copy the next octets of a chain, from `at` in `cell` on; both move along."""
        cdef uint32_t n
        while length:
            if at[0] == CELL_BYTES:
                cell[0] = (<uint32_t*>self.cell(cell[0]))[0]
                at[0] = 0
            n = min(length, CELL_BYTES - at[0])
            memcpy(to, self.cell(cell[0]) + 4 + at[0], n)
            at[0] += n
            to += n
            length -= n

    cdef void message(self, uint32_t index, Message* m) noexcept nogil:
        """Make one message of the transfer: all records of its first message, then the answers of
        the following ones, as far as `m.budget` goes; `m.omitted` counts all the rest.

        `m.wire` is valid until the next call of this.
        """
        cdef Transfer* t = &self.slots[index]
        cdef uint8_t* first = self.scratch + MAX_MESSAGE
        cdef uint8_t* further = self.scratch + 2 * MAX_MESSAGE
        cdef uint32_t cell = t.cells, at = 0, size, _
        cdef uint64_t rest
        self.take(&cell, &at, self.scratch, t.query_length)
        self.take(&cell, &at, first, t.first_length)
        m.protocol = PROTOCOL_DNS
        message_decode(m, first, t.first_length, False)
        for _ in range(t.kept_messages - 1):
            self.take(&cell, &at, <uint8_t*>&size, LENGTH)
            self.take(&cell, &at, further, size)
            message_append(m, further, size)
        rest = t.state.records - t.kept_records
        m.omitted = <uint32_t>min(m.omitted + rest, <uint64_t>0xFFFFFFFF)
