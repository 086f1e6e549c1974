"""Target: one DNS message, or a query with its reply, decoded, compared and encoded.

    octet 0     bit 0   the capture cut it
                bit 1   events.max_size is at its smallest, so that records are left out
                bit 2   a query and its reply: two octets, the query's length, come first
                bit 3   full detail, else brief
                bit 5   over TCP
                bits 6-7  the Protocol
    then        the message, or both

All four formats of the transaction's event and of each record's are made, in exactly the room that
was planned for them.  Checked: that they are well-formed; that a second
decoding gives the same; that a message asks the same as itself.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memset

from gazer.entry cimport FORMATS
from gazer.packet cimport PROTOCOLS, PROTOCOL_DNS
from gazer.workers.encode cimport Encoder
from gazer.workers.exchange cimport NO_QUERY, NO_REPLY, SUCCESS, Exchange
from gazer.workers.message cimport FLAG_QR, Message, message_decode, message_setup
from gazer.workers.question cimport question_equal, question_hash
from outputs cimport allow, event_check, forbid

cdef enum:
    CUT = 1
    SMALL = 2
    PAIR = 4
    FULL_DETAIL = 8
    STREAM = 32
    SMALLEST = 16384
    LARGEST = 262144
    BEYOND = 4096           # octets behind the room of an event that nobody may touch
    ROOM = FORMATS * (LARGEST + 65536)


cdef class Set:
    """An encoder with the messages that go with its budget."""
    cdef Encoder encoder
    cdef Message query
    cdef Message reply

    def __init__(self, bint full, uint32_t max_size):
        self.encoder = Encoder(full=full, formats=list(range(FORMATS)), max_size=max_size,
                               sensor='a "sensor"')
        message_setup(&self.query, self.encoder.budget, full)
        message_setup(&self.reply, self.encoder.budget, full)


cdef Set BRIEF = Set(False, LARGEST)
cdef Set FULL = Set(True, LARGEST)
cdef Set BRIEF_SMALL = Set(False, SMALLEST)
cdef Set FULL_SMALL = Set(True, SMALLEST)
cdef uint8_t* PLACE = <uint8_t*>malloc(ROOM + BEYOND)
cdef uint8_t[8] ENDS = [192, 0, 2, 1, 192, 0, 2, 53]
cdef uint8_t[4] TAGS = [0, 7, 0, 8]


cdef const char* same_again(Message* m, bint cut, uint64_t seed) noexcept nogil:
    """Decode it once more; hash and compare its question."""
    cdef uint32_t records = m.records_read, used = m.arena.used, omitted = m.omitted
    cdef uint32_t room = m.room, end = m.question_end
    cdef int anomaly = m.anomaly
    cdef uint64_t hash
    message_decode(m, m.wire, m.length, cut)
    if (records != m.records_read or used != m.arena.used or omitted != m.omitted
            or room != m.room or anomaly != m.anomaly or end != m.question_end):
        return b"a second decoding differs from the first"
    if m.arena.used > m.arena.capacity or m.room > m.budget or m.records_read > m.capacity:
        return b"more was decoded than there is room for"
    if m.readable:
        hash = question_hash(m.wire, m.length, m.question_end, m.counts[0], m.plain, seed)
        if hash != question_hash(m.wire, m.length, m.question_end, m.counts[0], False, seed):
            return b"the hash of a plain question differs by the way it is read"
        if not question_equal(m.wire, m.length, m.wire, m.length, m.counts[0]):
            return b"a message does not ask what it asks"
    return NULL


cdef const char* encode(Encoder e, const Exchange* x) noexcept nogil:
    cdef const Message* m = x.query if x.reply == NULL else x.reply
    cdef uint32_t planned, n, i
    cdef const char* failed
    planned = e.plan_tx(x)
    if planned > ROOM:
        return b"an event is planned that fits no ring"
    forbid(PLACE + planned, BEYOND)
    n = e.tx(x, PLACE, 1, 2)
    allow(PLACE + planned, BEYOND)
    if n > planned:
        return b"an event is larger than planned"
    failed = event_check(PLACE, n)
    if failed != NULL or (x.query != NULL and x.reply != NULL):
        return failed
    for i in range(m.records_read):
        planned = e.plan_record(x, i)
        if planned > ROOM:
            return b"a record is planned that fits no ring"
        forbid(PLACE + planned, BEYOND)
        n = e.record(x, i, PLACE, 1, 2)
        allow(PLACE + planned, BEYOND)
        if n > planned:
            return b"a record is larger than planned"
        failed = event_check(PLACE, n)
        if failed != NULL:
            return failed
    return NULL


cdef const char* handle(Set s, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef Exchange x
    cdef Message* first = &s.query
    cdef Message* second = NULL
    cdef uint32_t n = 1, length = size - 1
    cdef bint cut = data[0] & CUT
    cdef const char* failed
    memset(&x, 0, sizeof(x))
    x.addresses = ENDS
    x.scope = TAGS
    x.scope_length = 4
    x.family = 4
    x.transport = 6 if data[0] & STREAM else 17
    x.protocol = data[0] >> 6 if data[0] >> 6 < PROTOCOLS else PROTOCOL_DNS
    x.client_port = 4000
    x.server_port = 53
    x.query_time = 1700000000123456789
    x.reply_time = x.query_time + 1000000
    first.protocol = s.reply.protocol = x.protocol
    if data[0] & PAIR:
        if size < 3 or (<uint32_t>data[1] << 8 | data[2]) > size - 3:
            return NULL
        n = 3
        length = <uint32_t>data[1] << 8 | data[2]
        second = &s.reply
        message_decode(second, data + 3 + length, size - 3 - length, cut)
        failed = same_again(second, cut, 2)
        if failed != NULL:
            return failed
    message_decode(first, data + n, length, cut)
    failed = same_again(first, cut, 1)
    if failed != NULL:
        return failed
    if not first.readable or (second != NULL and not second.readable):
        return NULL
    x.id = first.id
    x.repeats = data[0] >> 4 & 1
    x.query_size = length
    if second != NULL:
        x.status = SUCCESS
        x.query = first
        x.reply = second
        x.reply_size = second.length
        if first.counts[0] == second.counts[0]:
            question_equal(first.wire, first.length, second.wire, second.length, first.counts[0])
    elif first.flags & FLAG_QR:
        x.status = NO_QUERY
        x.reply = first
        x.reply_size = length
    else:
        x.status = NO_REPLY
        x.query = first
    return encode(s.encoder, &x)


cdef const char* one_input(const uint8_t* data, size_t size) noexcept nogil:
    if size < 1 or size > 65536:
        return NULL
    if data[0] & SMALL:
        if data[0] & FULL_DETAIL:
            return handle(FULL_SMALL, data, <uint32_t>size)
        return handle(BRIEF_SMALL, data, <uint32_t>size)
    if data[0] & FULL_DETAIL:
        return handle(FULL, data, <uint32_t>size)
    return handle(BRIEF, data, <uint32_t>size)


def address():
    """The C function, for the driver."""
    return <size_t>&one_input


def run(bytes data):
    """One input, from Python: None, or which check failed."""
    cdef const char* failed = one_input(data, len(data))
    return None if failed == NULL else failed.decode()
