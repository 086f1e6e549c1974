"""The worker's hot loop: frames in, events out; see ARCHITECTURE.md, "Order" and "Matching".

For each frame: what is due by its clock leaves first, then its message is decoded, matched, and
what follows from it encoded straight into the event ring.  A frame's events are published together.
The watermark of the frame ring is read before its tail; once that tail is consumed, the watermark
holds for the events as well and is passed on.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from gazer.atomics cimport load_acquire
from gazer.counters cimport (
    RUNNING, WAITING, W_ANSWERED_FORGOTTEN, W_DISCARDED, W_DUPLICATES, W_EVICTED, W_FRAMES,
    W_MALFORMED, W_NEGATIVE_LATENCY, W_NO_QUERY, W_NO_REPLY, W_OMITTED, W_OPENED, W_PENDING,
    W_QUERIES, W_RECORDS, W_REPEATED, W_REPLIES, W_SUCCESS, W_TRANSACTIONS, W_WAITS, Slot)
from gazer.cursor cimport Cursor, cursor_over, cursor_take, cursor_u16
from gazer.entry cimport FrameEntry
from gazer.packet cimport MAX_TAGS, Packet
from gazer.ring cimport (
    MARK_END, Consumer, Ring, bell_wait, ring_claim, ring_commit, ring_consumer_awake,
    ring_consumer_sleeps, ring_mark, ring_poll, ring_producer_awake, ring_producer_sleeps,
    ring_publish, ring_release, ring_wake_consumer)
from gazer.workers.anomaly cimport OK, SHORT_HEADER, SNAPPED
from gazer.workers.encode cimport NO_QUERY, NO_REPLY, SUCCESS, Encoder, Exchange
from gazer.workers.message cimport (
    Message, message_decode, message_free, message_setup)
from gazer.workers.question cimport question_hash
from gazer.workers.transaction cimport MAX_UNDER_KEY, PENDING_CUT, Key, Pending, Transactions

cdef enum:
    BATCH = 128             # frames between two publications
    NAP = 100               # ms; the longest sleep: a safety net, and the pace of heartbeats


cdef class Engine:
    """One worker's rings, tables and counters.

    `frame_ring`, `event_ring`: Ring; `capture_bell`, `sink_bell`: eventfds to wake those two;
    `bell`: our own; `slot`: our part of the ledger; `timeout` in ns.
    """

    def __init__(self, *, Ring frame_ring, Ring event_ring, int bell, int capture_bell,
                 int sink_bell, Slot slot, Transactions table, Encoder encoder, bint records,
                 uint64_t timeout):
        self.frame_ring = frame_ring
        self.event_ring = event_ring
        self.frames = frame_ring.consumer(capture_bell)
        self.events = event_ring.producer(sink_bell)
        self.bell = bell
        self.slot = slot
        self.counters = slot.counters
        self.table = table
        self.encoder = encoder
        self.records = records
        self.timeout = timeout
        message_setup(&self.query, encoder.budget, encoder.full)
        message_setup(&self.reply, encoder.budget, encoder.full)

    def __dealloc__(self):
        message_free(&self.query)
        message_free(&self.reply)

    def run(self):
        """Work for a while.  Returns "end", "turn" (call again) or "corrupt"."""
        cdef int result
        with nogil:
            result = self.turn()
        return ("end", "turn", "corrupt")[result]

    def release(self):
        """Let go of the shared memory."""
        self.counters = NULL
        self.frame_ring.release()
        self.event_ring.release()
        self.slot.release()

    cdef int turn(self) noexcept nogil:
        cdef Consumer* c = &self.frames
        cdef uint64_t clock, sequence, upto
        cdef uint32_t n
        cdef uint8_t* entry
        cdef FrameEntry* f
        cdef int _, _i
        cdef bint worked
        for _ in range(256):
            self.slot.beat()
            clock = load_acquire(&c.ring.mark_clock)
            sequence = load_acquire(&c.ring.mark_sequence)
            upto = load_acquire(&c.ring.tail)
            worked = False
            while c.head != upto:
                f = NULL
                for _i in range(BATCH):
                    entry = ring_poll(c, &n)
                    if entry == NULL:
                        break
                    f = <FrameEntry*>entry
                    if (n < sizeof(FrameEntry) or n - sizeof(FrameEntry) < f.caplen
                            or f.packet.tags > MAX_TAGS):
                        return ENGINE_CORRUPT
                    self.handle(f, entry + sizeof(FrameEntry))
                    if c.head == upto:
                        break
                if c.corrupt:
                    return ENGINE_CORRUPT
                if f == NULL:
                    break
                worked = True
                self.publish(f.clock, f.sequence + 1)
                ring_release(c)
            self.expire(clock)
            if clock != self.mark_clock or sequence != self.mark_sequence:
                worked = True
                self.mark_clock = clock
                self.mark_sequence = sequence
            self.publish(clock, sequence)
            ring_wake_consumer(&self.events)
            ring_release(c)
            if clock == MARK_END:
                return ENGINE_END
            if worked:
                continue
            # Nothing to do.  A new watermark alone is a reason to go on, so look at that as well.
            if ring_consumer_sleeps(c) and load_acquire(
                    &c.ring.mark_clock) == clock and load_acquire(
                    &c.ring.mark_sequence) == sequence:
                bell_wait(self.bell, NAP)
                ring_consumer_awake(c)
                return ENGINE_TURN
            ring_consumer_awake(c)
        return ENGINE_TURN

    cdef void publish(self, uint64_t clock, uint64_t sequence) noexcept nogil:
        """Let the sink see what was encoded, and that nothing below this key will follow."""
        cdef uint64_t* marks = &self.events.ring.mark_clock
        self.counters[W_PENDING] = self.table.pending
        self.counters[W_ANSWERED_FORGOTTEN] = self.table.forgotten
        ring_publish(&self.events)
        if clock > marks[0] or (clock == marks[0] and sequence > self.events.ring.mark_sequence):
            ring_mark(&self.events, clock, sequence)

    cdef uint8_t* room(self, uint32_t n) noexcept nogil:
        """Room for an event of up to n bytes; waits for the sink as long as it takes."""
        cdef uint8_t* to = ring_claim(&self.events, n)
        if to != NULL:
            return to
        self.counters[W_WAITS] += 1
        self.slot.set_state(WAITING)
        ring_publish(&self.events)
        while True:
            to = ring_claim(&self.events, n)
            if to != NULL:
                break
            if ring_producer_sleeps(&self.events, n):
                bell_wait(self.bell, NAP)
            ring_producer_awake(&self.events)
            self.slot.beat()
        self.slot.set_state(RUNNING)
        return to

    # --- one frame -------------------------------------------------------------------------------

    cdef void handle(self, const FrameEntry* f, const uint8_t* frame) noexcept nogil:
        cdef const Packet* p = &f.packet
        cdef Cursor c
        cdef Exchange x
        cdef Key key
        cdef Message* m
        cdef const uint8_t* wire
        cdef const uint8_t* addresses
        cdef uint64_t question
        cdef uint32_t half = 4 if p.family == 4 else 16, i
        cdef uint16_t tag
        cdef bint reply
        self.counters[W_FRAMES] += 1
        self.expire(f.clock)
        c = cursor_over(frame, p.payload_offset, f.caplen)
        wire = cursor_take(&c, p.payload_length)
        c = cursor_over(frame, p.addresses_offset, f.caplen)
        addresses = cursor_take(&c, 2 * half)
        if wire == NULL or addresses == NULL or p.payload_length < 12:
            self.counters[W_DISCARDED + (SNAPPED if p.cut else SHORT_HEADER)] += 1
            return
        # The QR bit alone says who is the client: ports do not, where both are 53.
        reply = (wire[2] & 0x80) != 0
        m = &self.reply if reply else &self.query
        key.family = p.family
        key.transport = p.transport
        key.tags = p.tags
        key.length = <uint8_t>(2 * half + 2 * p.tags)
        if reply:
            key.client_port = p.destination_port
            key.server_port = p.source_port
            memcpy(key.bytes, addresses + half, half)
            memcpy(key.bytes + half, addresses, half)
        else:
            key.client_port = p.source_port
            key.server_port = p.destination_port
            memcpy(key.bytes, addresses, 2 * half)
        c = cursor_over(frame, p.tags_offset, f.caplen)
        for i in range(p.tags):
            tag = cursor_u16(&c) & 0xFFF
            cursor_u16(&c)
            key.bytes[2 * half + 2 * i] = <uint8_t>(tag >> 8)
            key.bytes[2 * half + 2 * i + 1] = <uint8_t>tag
        key.id = (<uint16_t>wire[0] << 8) | wire[1]
        self.table.key_hash(&key)
        self.table.prefetch_key(&key, reply)
        message_decode(m, wire, p.payload_length, p.cut)
        if not m.readable:
            self.counters[W_DISCARDED + m.anomaly] += 1
            return
        if m.anomaly != OK:
            self.counters[W_MALFORMED + m.anomaly] += 1
        question = question_hash(wire, m.length, m.question_end, m.counts[0], m.plain,
                                 self.table.seed)
        x.addresses = key.bytes
        x.tags = key.bytes + 2 * half
        x.family = key.family
        x.transport = key.transport
        x.tag_count = key.tags
        x.client_port = key.client_port
        x.server_port = key.server_port
        x.id = key.id
        x.query = x.reply = NULL
        x.query_time = x.reply_time = f.time
        x.query_size = x.reply_size = p.wire_payload
        x.repeats = 0
        if reply:
            self.handle_reply(f, &x, &key, question)
        else:
            self.handle_query(f, &x, &key, question, p.cut)

    cdef void handle_query(self, const FrameEntry* f, Exchange* x, Key* key, uint64_t question,
                           bint cut) noexcept nogil:
        cdef Message* m = &self.query
        cdef uint32_t index
        cdef Pending* p
        self.counters[W_QUERIES] += 1
        index = self.table.find(key, <uint32_t>question, m)
        if index:
            self.counters[W_REPEATED] += 1
            p = self.table.at(index)
            if p.repeats < 0xFFFF:
                p.repeats += 1
        else:
            if self.table.under_key >= MAX_UNDER_KEY:
                self.counters[W_EVICTED] += 1
                self.give_up(self.table.oldest_under_key, f.clock, f.sequence)
            while not self.table.has_room(m.length) and self.table.pending:
                self.counters[W_EVICTED] += 1
                self.give_up(self.table.oldest, f.clock, f.sequence)
            self.counters[W_OPENED] += 1
            self.table.add(key, <uint32_t>question, m.wire, m.length, x.query_size,
                           PENDING_CUT if cut else 0, f.clock, f.sequence, f.time)
        if self.records:
            x.query = m
            self.emit_records(x, m, f.clock, f.sequence)

    cdef void handle_reply(self, const FrameEntry* f, Exchange* x, Key* key,
                           uint64_t question) noexcept nogil:
        cdef Message* m = &self.reply
        cdef uint32_t index
        cdef Pending* p
        cdef uint64_t asked
        self.counters[W_REPLIES] += 1
        x.reply = m
        index = self.table.find(key, <uint32_t>question, m)
        if index:
            p = self.table.at(index)
            message_decode(&self.query, self.table.query(index), p.wire_length,
                           p.flags & PENDING_CUT)
            x.status = SUCCESS
            x.query = &self.query
            x.query_time = p.time
            x.query_size = p.size
            x.repeats = p.repeats
            if f.time < p.time:
                self.counters[W_NEGATIVE_LATENCY] += 1
            self.counters[W_SUCCESS] += 1
            if m.counts[0] == 0:
                self.table.remember(key, 0, f.clock)
                asked = question_hash(self.query.wire, self.query.length, self.query.question_end,
                                      self.query.counts[0], self.query.plain, self.table.seed)
                self.table.remember(key, asked, f.clock)
            else:
                self.table.remember(key, question, f.clock)
            self.emit_tx(x, f.clock, f.sequence)
            self.table.remove(index)
        elif self.table.remembered(key, question if m.counts[0] else 0, f.clock):
            self.counters[W_DUPLICATES] += 1
        else:
            self.counters[W_NO_QUERY] += 1
            x.status = NO_QUERY
            self.emit_tx(x, f.clock, f.sequence)
        if self.records:
            x.query = NULL
            self.emit_records(x, m, f.clock, f.sequence)

    # --- events ----------------------------------------------------------------------------------

    cdef void emit_tx(self, const Exchange* x, uint64_t clock, uint64_t sequence) noexcept nogil:
        cdef uint8_t* to = self.room(self.encoder.plan_tx(x))
        ring_commit(&self.events, self.encoder.tx(x, to, clock, sequence))
        self.counters[W_TRANSACTIONS] += 1
        self.counters[W_OMITTED] += self.encoder.omitted

    cdef void emit_records(self, const Exchange* x, const Message* m, uint64_t clock,
                           uint64_t sequence) noexcept nogil:
        cdef uint32_t i
        cdef uint8_t* to
        for i in range(m.records_read):
            to = self.room(self.encoder.plan_record(x, i))
            ring_commit(&self.events, self.encoder.record(x, i, to, clock, sequence))
        self.counters[W_RECORDS] += m.records_read
        self.counters[W_OMITTED] += m.omitted

    cdef void give_up(self, uint32_t index, uint64_t clock, uint64_t sequence) noexcept nogil:
        """The transaction ends without a reply: its event, due at this key.

        Its query is decoded into self.reply, since self.query may hold the one in hand.
        """
        cdef Pending* p = self.table.at(index)
        cdef uint8_t* bytes_ = <uint8_t*>p + sizeof(Pending)
        cdef Exchange x
        memset(&x, 0, sizeof(x))
        message_decode(&self.reply, self.table.query(index), p.wire_length, p.flags & PENDING_CUT)
        x.addresses = bytes_
        x.tags = bytes_ + (8 if p.family == 4 else 32)
        x.family = p.family
        x.transport = p.transport
        x.tag_count = p.tags
        x.client_port = p.client_port
        x.server_port = p.server_port
        x.id = p.id
        x.status = NO_REPLY
        x.query = &self.reply
        x.query_time = p.time
        x.query_size = p.size
        x.repeats = p.repeats
        self.emit_tx(&x, clock, sequence)
        self.table.remove(index)

    cdef void expire(self, uint64_t clock) noexcept nogil:
        """What has waited for the timeout by this clock leaves, in the order of the queries."""
        cdef Pending* p
        cdef uint64_t due
        while self.table.oldest:
            p = self.table.at(self.table.oldest)
            due = p.clock + self.timeout
            if due > clock:
                return
            self.counters[W_NO_REPLY] += 1
            self.give_up(self.table.oldest, due, p.sequence)
