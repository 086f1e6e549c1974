"""From messages to transactions; see matcher.pxd, and ARCHITECTURE.md, "Matching".

The tables know nothing of events, the emitter nothing of matching; here they meet.  What a message
leads to is due at the frame that it came in, or that made it whole; what ends because of time is
due when that time is over, not when somebody notices.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from gazer.counters cimport (
    LATENCIES, LATENCY_LEAST, RCODES, W_CONTINUATIONS, W_DISCARDED, W_DUPLICATES, W_EVICTED,
    W_FURTHER, W_INCOMPLETE, W_LATENCY, W_LATENCY_SUM, W_LOSSY, W_MALFORMED, W_NEGATIVE_LATENCY,
    W_NO_QUERY, W_NO_REPLY, W_ONE_WAY_QUERIES, W_ONE_WAY_REPLIES, W_OPENED, W_QUERIES, W_RCODE,
    W_REPEATED, W_REPLIES, W_SUCCESS, W_TRANSFERS, W_TRANSFERS_EVICTED)
from gazer.cursor cimport Cursor, cursor_over, cursor_take
from gazer.packet cimport MDNS_PORT, PROTOCOL_DNS, PROTOCOL_MDNS, TCP
from gazer.workers.anomaly cimport OK, SHORT_HEADER, SNAPPED
from gazer.workers.emitter cimport Emitter
from gazer.workers.encode cimport Encoder
from gazer.workers.exchange cimport (
    FURTHER_REPLY, NO_QUERY, NO_REPLY, ONE_WAY, SUCCESS, Exchange)
from gazer.workers.message cimport (
    ANSWER, HEADER, OPCODE_DSO, QUESTION, Message, message_decode, message_free, message_opcode,
    message_rcode, message_setup)
from gazer.workers.outer cimport outer_length
from gazer.workers.question cimport question_hash
from gazer.workers.transaction cimport (
    MAX_UNDER_KEY, PENDING_CUT, PENDING_PROTOCOL, Key, Pending, Transactions)
from gazer.workers.transfer cimport (
    TRANSFER_MORE, TYPE_AXFR, TYPE_IXFR, Transfer, Transfers, transfer_complete)

cdef extern from * nogil:
    int __builtin_clzll(unsigned long long x)

# The groups that multicast queries go to: 224.0.0.251 and ff02::fb (RFC 6762, section 3),
# 224.0.0.252 and ff02::1:3 (RFC 4795, section 2).
cdef uint8_t[2][4] GROUP4 = [[224, 0, 0, 251], [224, 0, 0, 252]]
cdef uint8_t[2][16] GROUP6 = [
    [0xFF, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFB],
    [0xFF, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 3]]


cdef inline const uint8_t* outer_bytes(const Origin* o) noexcept nogil:
    """The outer identity of what the message came in, or NULL."""
    if o.outer == NULL:
        return NULL
    return o.outer.bytes


cdef inline uint16_t first_question(const Message* m) noexcept nogil:
    """The type that a message asks for; 0 if it asks nothing."""
    if m.records_read == 0 or m.records[0].section != QUESTION:
        return 0
    return m.records[0].type


cdef inline bint expects_no_reply(const Origin* o, const Message* m) noexcept nogil:
    """A message that no reply belongs to, or that is no reply to anything.

    mDNS between its own ports asks and tells everybody (RFC 6762, section 6: answers repeat neither
    id nor question); a DSO message with id 0 is unidirectional (RFC 8490, section 5.4).
    """
    if o.protocol == PROTOCOL_MDNS:
        return o.source_port == MDNS_PORT and o.destination_port == MDNS_PORT
    return m.id == 0 and message_opcode(m) == OPCODE_DSO and not m.flags & 0x8000


cdef class Matcher:
    """One worker's transactions and zone transfers in progress.

    `timeout` in ns; `records`: each record of each message makes an event too.
    """

    def __init__(self, *, Transactions table, Transfers transfers, Emitter emitter, bint records,
                 uint64_t timeout):
        cdef Encoder encoder = emitter.encoder
        self.table = table
        self.transfers = transfers
        self.emitter = emitter
        self.counters = emitter.counters
        self.records = records
        self.timeout = timeout
        message_setup(&self.query, encoder.budget, encoder.full)
        message_setup(&self.reply, encoder.budget, encoder.full)
        message_setup(&self.whole, encoder.budget, encoder.full)

    def __dealloc__(self):
        message_free(&self.query)
        message_free(&self.reply)
        message_free(&self.whole)

    # --- one message -----------------------------------------------------------------------------

    cdef void message(self, const Origin* o, const uint8_t* wire, uint32_t length) noexcept nogil:
        cdef Cursor c = cursor_over(wire, 0, length)
        cdef const uint8_t* header = cursor_take(&c, HEADER)
        cdef Exchange x
        cdef Key key
        cdef Message* m
        cdef uint64_t question
        cdef uint32_t half = 4 if o.family == 4 else 16
        cdef bint reply
        if header == NULL:
            self.counters[W_DISCARDED + (SNAPPED if o.cut else SHORT_HEADER)] += 1
            return
        # The QR bit alone says who is the client: ports do not, where both are 53.
        reply = (header[2] & 0x80) != 0
        m = &self.reply if reply else &self.query
        m.protocol = o.protocol
        key.family = o.family
        key.transport = o.transport
        key.scope = o.scope_length
        key.length = <uint8_t>(2 * half + o.scope_length)
        if reply:
            key.client_port = o.destination_port
            key.server_port = o.source_port
            memcpy(key.bytes, o.destination, half)
            memcpy(key.bytes + half, o.source, half)
        else:
            key.client_port = o.source_port
            key.server_port = o.destination_port
            memcpy(key.bytes, o.source, half)
            memcpy(key.bytes + half, o.destination, half)
        if o.scope_length:
            memcpy(key.bytes + 2 * half, o.scope, o.scope_length)
        key.id = (<uint16_t>header[0] << 8) | header[1]
        self.table.key_hash(&key)
        self.table.prefetch_key(&key, reply)
        message_decode(m, wire, length, o.cut)
        if not m.readable:
            self.counters[W_DISCARDED + m.anomaly] += 1
            return
        if m.anomaly != OK:
            self.counters[W_MALFORMED + m.anomaly] += 1
        question = question_hash(wire, m.length, m.question_end, m.counts[0], m.plain,
                                 self.table.seed)
        x.addresses = key.bytes
        x.scope = key.bytes + 2 * half
        x.scope_length = o.scope_length
        x.outer = outer_bytes(o)
        x.family = o.family
        x.transport = o.transport
        x.protocol = o.protocol
        x.client_port = key.client_port
        x.server_port = key.server_port
        x.id = key.id
        x.query = x.reply = NULL
        x.query_time = x.reply_time = o.time
        x.query_size = x.reply_size = o.size
        x.repeats = 0
        x.transfer = False
        x.lossy = False
        if expects_no_reply(o, m):
            self.counters[W_REPLIES if reply else W_QUERIES] += 1
            self.counters[W_ONE_WAY_REPLIES if reply else W_ONE_WAY_QUERIES] += 1
            x.status = ONE_WAY
            if reply:
                x.reply = m
            else:
                x.query = m
            self.emitter.tx(&x, o.clock, o.sequence)
        elif reply:
            self.handle_reply(o, &x, &key, question)
        else:
            self.handle_query(o, &x, &key, question)
        if self.records:
            x.query = NULL if reply else m
            x.reply = m if reply else NULL
            # A reply's records came in what the reply came in, not in what its query did.
            x.outer = outer_bytes(o)
            self.emitter.records(&x, m, o.clock, o.sequence)

    cdef void handle_query(self, const Origin* o, Exchange* x, Key* key,
                           uint64_t question) noexcept nogil:
        cdef Message* m = &self.query
        cdef uint32_t index
        cdef uint32_t length = m.length + (0 if o.outer == NULL else o.outer.length)
        cdef Pending* p
        self.counters[W_QUERIES] += 1
        index = self.table.find(key, <uint32_t>question, m)
        if index:
            self.counters[W_REPEATED] += 1
            p = self.table.at(index)
            if p.repeats < 0xFFFF:
                p.repeats += 1
            return
        if self.table.under_key >= MAX_UNDER_KEY:
            self.counters[W_EVICTED] += 1
            self.give_up(self.table.oldest_under_key, o.clock, o.sequence)
        while not self.table.has_room(length) and self.table.pending:
            self.counters[W_EVICTED] += 1
            self.give_up(self.table.oldest, o.clock, o.sequence)
        self.counters[W_OPENED] += 1
        p = self.table.add(key, <uint32_t>question, o.outer, m.wire, m.length, o.clock, o.sequence,
                           o.time)
        p.size = <uint16_t>o.size
        p.flags |= (PENDING_CUT if o.cut else 0) | (o.protocol * PENDING_PROTOCOL)

    cdef void handle_reply(self, const Origin* o, Exchange* x, Key* key,
                           uint64_t question) noexcept nogil:
        cdef Message* m = &self.reply
        cdef uint32_t index
        cdef bint answered = False
        self.counters[W_REPLIES] += 1
        x.reply = m
        if self.transfers.count and o.transport == TCP and self.continues(o, key, question):
            self.counters[W_CONTINUATIONS] += 1
            return
        index = self.table.find(key, <uint32_t>question, m)
        if index == 0 and o.protocol != PROTOCOL_DNS:
            index = self.find_group(key, o, question, &answered)
        if index:
            self.answer(o, x, key, question, index)
        elif self.table.remembered(key, question if m.counts[0] else 0, o.clock):
            self.counters[W_DUPLICATES] += 1
        elif answered:
            self.counters[W_FURTHER] += 1
            x.status = FURTHER_REPLY
            self.table.remember(key, question if m.counts[0] else 0, o.clock)
            self.emitter.tx(x, o.clock, o.sequence)
        else:
            self.counters[W_NO_QUERY] += 1
            x.status = NO_QUERY
            if not self.begins_transfer(o, x, key, question, first_question(m), False):
                self.judge(x, o.clock)
                self.emitter.tx(x, o.clock, o.sequence)

    cdef void answer(self, const Origin* o, Exchange* x, Key* key, uint64_t question,
                     uint32_t index) noexcept nogil:
        """The reply in hand answers the transaction at `index`."""
        cdef Message* m = &self.reply
        cdef Pending* p = self.table.at(index)
        self.query.protocol = o.protocol
        message_decode(&self.query, self.table.query(index), p.wire_length, p.flags & PENDING_CUT)
        x.status = SUCCESS
        x.query = &self.query
        x.query_time = p.time
        x.query_size = p.size
        x.repeats = p.repeats
        x.outer = self.table.outer(index)
        self.measure(x)
        self.counters[W_SUCCESS] += 1
        if not self.begins_transfer(o, x, key, question, first_question(&self.query),
                                    p.flags & PENDING_CUT):
            self.remember(key, question, m.counts[0] != 0, &self.query, o.clock)
            self.emitter.tx(x, o.clock, o.sequence)
        self.table.remove(index)

    cdef void measure(self, const Exchange* x) noexcept nogil:
        """Count the reply by its latency and its response code."""
        cdef uint64_t latency = <uint64_t>(x.reply_time - x.query_time)
        cdef uint32_t rcode = message_rcode(x.reply)
        cdef int bucket = 0
        self.counters[W_RCODE + (rcode if rcode < RCODES - 1 else RCODES - 1)] += 1
        if x.reply_time < x.query_time:
            self.counters[W_NEGATIVE_LATENCY] += 1
            return
        self.counters[W_LATENCY_SUM] += latency // 1000
        if latency > LATENCY_LEAST:
            bucket = 64 - __builtin_clzll((latency - 1) // LATENCY_LEAST)
        self.counters[W_LATENCY + (bucket if bucket < LATENCIES - 1 else LATENCIES - 1)] += 1

    cdef void judge(self, Exchange* x, uint64_t clock) noexcept nogil:
        """Say whether what is missing may be missing here only: it was due while frames were being
        lost, or its other half might have come while they were."""
        x.lossy = self.loss != 0 and self.loss + self.timeout >= clock
        self.counters[W_LOSSY] += x.lossy

    cdef void remember(self, const Key* key, uint64_t question, bint asked, const Message* query,
                       uint64_t clock) noexcept nogil:
        """The transaction is answered: by a reply that repeated the question, or (not `asked`) by
        one without, and then it is known by both."""
        if asked:
            self.table.remember(key, question, clock)
            return
        self.table.remember(key, 0, clock)
        question = question_hash(query.wire, query.length, query.question_end, query.counts[0],
                                 query.plain, self.table.seed)
        self.table.remember(key, question, clock)

    cdef uint32_t find_group(self, Key* key, const Origin* o, uint64_t question,
                             bint* answered) noexcept nogil:
        """Look for a query to the protocol's multicast group that this reply answers.

        Returns its index, or 0; `answered` says that one was answered a short while ago.  Where
        either is so, the group is remembered as answered, so that other hosts' replies are known
        for what they are.
        """
        cdef Key group = key[0]
        cdef uint32_t half = 4 if key.family == 4 else 16, index
        cdef uint64_t print_ = question if self.reply.counts[0] else 0
        if key.family == 4:
            memcpy(group.bytes + half, GROUP4[o.protocol - 1], half)
        else:
            memcpy(group.bytes + half, GROUP6[o.protocol - 1], half)
        self.table.key_hash(&group)
        index = self.table.find(&group, <uint32_t>question, &self.reply)
        if index:
            self.table.remember(&group, print_, o.clock)
        else:
            answered[0] = self.table.remembered(&group, print_, o.clock)
        return index

    # --- zone transfers --------------------------------------------------------------------------

    cdef bint continues(self, const Origin* o, Key* key, uint64_t question) noexcept nogil:
        """True if the reply in hand belongs to a transfer in progress; it has been added there."""
        cdef Message* m = &self.reply
        cdef bint asked = m.counts[0] != 0
        cdef uint32_t index, out
        index = self.transfers.find(o.stream, o.direction, key.id, question, asked)
        if index == 0:
            return False
        while True:
            out = self.transfers.crowded(index, m.length)
            if out == 0:
                break
            self.counters[W_TRANSFERS_EVICTED] += 1
            self.end_transfer(out, o.clock, o.sequence)
        if self.transfers.go_on(index, m.wire, m.length, o.clock, o.sequence,
                                o.time) != TRANSFER_MORE:
            self.end_transfer(index, o.clock, o.sequence)
        return True

    cdef bint begins_transfer(self, const Origin* o, Exchange* x, Key* key, uint64_t question,
                              uint16_t qtype, bint query_cut) noexcept nogil:
        """True if the reply in hand is the first of a zone transfer; its event then comes when the
        transfer ends.  `qtype`: what was asked, 0 if that is not known."""
        cdef Message* m = &self.reply
        cdef bint matched = x.query != NULL
        cdef const uint8_t* query = NULL
        cdef uint32_t index, out, query_length = 0
        cdef Transfer* t
        if (o.transport != TCP or o.protocol != PROTOCOL_DNS or m.flags & 0x780F
                or m.counts[<int>ANSWER] == 0):
            return False
        if qtype != TYPE_AXFR and qtype != TYPE_IXFR and (matched or m.counts[<int>QUESTION]):
            return False
        if matched:
            query = self.query.wire
            query_length = self.query.length
        while True:     # those that end here are decoded into self.query
            out = self.transfers.full(o.stream, o.direction, key.id, m.length + query_length)
            if out == 0:
                break
            self.counters[W_TRANSFERS_EVICTED] += 1
            self.end_transfer(out, o.clock, o.sequence)
        index = self.transfers.begin(
            o.stream, o.direction, key, question, m.counts[<int>QUESTION] != 0, qtype, query,
            query_length, m.wire, m.length, o.clock, o.sequence, o.time)
        self.counters[W_TRANSFERS] += 1
        t = self.transfers.at(index)
        t.matched = matched
        t.query_cut = query_cut
        t.query_size = x.query_size
        t.query_time = x.query_time
        t.repeats = x.repeats
        if x.outer != NULL:
            t.outer_length = outer_length(x.outer)
            memcpy(t.outer, x.outer, t.outer_length)
        if t.state.result != TRANSFER_MORE:
            self.end_transfer(index, o.clock, o.sequence)
        return True

    cdef void end_transfer(self, uint32_t index, uint64_t clock, uint64_t sequence) noexcept nogil:
        """The transfer is over, whole or not: its event, due at this key."""
        cdef Transfer* t = self.transfers.at(index)
        cdef Message* m = &self.whole
        cdef uint32_t half = 4 if t.key.family == 4 else 16
        cdef Exchange x
        memset(&x, 0, sizeof(x))
        self.transfers.message(index, m)
        m.flags = (m.flags & 0xFFF0) | t.state.rcode
        x.addresses = t.key.bytes
        x.scope = t.key.bytes + 2 * half
        x.scope_length = t.key.scope
        x.outer = t.outer if t.outer_length else NULL
        x.family = t.key.family
        x.transport = t.key.transport
        x.protocol = PROTOCOL_DNS
        x.client_port = t.key.client_port
        x.server_port = t.key.server_port
        x.id = t.id
        x.status = NO_QUERY
        x.reply = m
        x.reply_time = t.last_time
        x.reply_size = t.state.octets
        x.transfer = True
        x.complete = transfer_complete(&t.state)
        x.messages = t.state.messages
        x.records = t.state.records
        x.bytes = t.state.octets
        if not x.complete:
            self.counters[W_INCOMPLETE] += 1
        if t.matched:
            self.query.protocol = PROTOCOL_DNS
            message_decode(&self.query, self.transfers.query(index), t.query_length, t.query_cut)
            x.status = SUCCESS
            x.query = &self.query
            x.query_time = t.query_time
            x.query_size = t.query_size
            x.repeats = t.repeats
            self.remember(&t.key, t.question, t.asked, &self.query, clock)
        else:
            self.judge(&x, clock)
        self.emitter.tx(&x, clock, sequence)
        self.transfers.remove(index)

    cdef void stream_over(self, uint64_t stream, int direction, uint64_t clock,
                          uint64_t sequence) noexcept nogil:
        """This direction of a connection has ended, or has a hole: so have its transfers."""
        cdef uint32_t index
        while self.transfers.count:
            index = self.transfers.first_of(stream, direction)
            if index == 0:
                return
            self.end_transfer(index, clock, sequence)

    # --- what time ends --------------------------------------------------------------------------

    cdef inline bint nothing_due(self, uint64_t clock) noexcept nogil:
        """The quick look: no transfer is under way, and no transaction has waited long enough."""
        return self.transfers.oldest == 0 and (
            self.table.oldest == 0
            or self.table.at(self.table.oldest).clock + self.timeout > clock)

    cdef bint due(self, Due* due) noexcept nogil:
        """When the next transaction or transfer has waited for the timeout; False if none waits."""
        cdef const Pending* p
        cdef const Transfer* t
        due.transaction = self.table.oldest
        due.transfer = 0
        if due.transaction:
            p = self.table.at(due.transaction)
            due.clock = p.clock + self.timeout
            due.sequence = p.sequence
        if self.transfers.oldest:
            t = self.transfers.at(self.transfers.oldest)
            if (due.transaction == 0 or t.last_clock + self.timeout < due.clock
                    or (t.last_clock + self.timeout == due.clock
                        and t.last_sequence < due.sequence)):
                due.transaction = 0
                due.transfer = self.transfers.oldest
                due.clock = t.last_clock + self.timeout
                due.sequence = t.last_sequence
        return due.transaction != 0 or due.transfer != 0

    cdef void expire(self, const Due* due) noexcept nogil:
        """What `due` told of leaves."""
        if due.transfer:
            self.end_transfer(due.transfer, due.clock, due.sequence)
        else:
            self.counters[W_NO_REPLY] += 1
            self.give_up(due.transaction, due.clock, due.sequence)

    cdef void give_up(self, uint32_t index, uint64_t clock, uint64_t sequence) noexcept nogil:
        """The transaction ends without a reply: its event, due at this key.

        Its query is decoded into self.reply, since self.query may hold the one in hand.
        """
        cdef Pending* p = self.table.at(index)
        cdef uint8_t* bytes_ = <uint8_t*>p + sizeof(Pending)
        cdef Exchange x
        memset(&x, 0, sizeof(x))
        x.protocol = p.flags // PENDING_PROTOCOL
        self.reply.protocol = x.protocol
        message_decode(&self.reply, self.table.query(index), p.wire_length, p.flags & PENDING_CUT)
        x.addresses = bytes_
        x.scope = bytes_ + (8 if p.family == 4 else 32)
        x.scope_length = p.scope
        x.outer = self.table.outer(index)
        x.family = p.family
        x.transport = p.transport
        x.client_port = p.client_port
        x.server_port = p.server_port
        x.id = p.id
        x.status = NO_REPLY
        x.query = &self.reply
        x.query_time = p.time
        x.query_size = p.size
        x.repeats = p.repeats
        self.judge(&x, clock)
        self.emitter.tx(&x, clock, sequence)
        self.table.remove(index)
