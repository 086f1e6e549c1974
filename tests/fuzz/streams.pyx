"""Target: a sequence of TCP segments through the table of connections, with tiny limits.

Each segment is five octets and its payload:

    octet 0     bit 0     direction
                bits 1-2  which of four connections
                bit 3     IPv6
                bit 4     a scope of two octets (a VLAN)
                bits 5-7  how long after the one before: see STEPS
    octet 1     bits 0-4  the TCP flags
                bit 5     the capture lacks octets at its end: three
                bit 6     the sequence number is far away: the next octet counts 2^24 each
                bit 7     the acknowledgement counts from its own direction's position: senseless
    octet 2     sequence number, signed, from the direction's position
    octet 3     acknowledgement, signed, from the other direction's position
    octet 4     payload, octets

A direction's position goes on behind whatever it sends, so that zeroes mean a stream in order;
direction 0 begins just below 2^32.  Checked after each segment: the account of octets, the limits
of memory and connections, the bounds of each message; and at the end that nothing is left.
"""

from libc.stdint cimport int8_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy, memset

from gazer.cursor cimport Cursor, cursor_left, cursor_over, cursor_take, cursor_u8
from gazer.workers.pieces cimport CHUNK
from gazer.workers.stream cimport (
    STREAM_MESSAGE, STREAM_NOTHING, Segment, StreamItem, Streams)
from outputs cimport forbid

cdef enum:
    CONNECTIONS = 16        # by octet 0
    PAYLOAD = 256
    MAX_STREAMS = 3
    MAX_BYTES = 6 * CHUNK
    MOST_ITEMS = 4096       # of one segment: far more than can be kept

cdef uint64_t TIMEOUT = 1000000
cdef uint64_t[8] STEPS = [0, 0, 1, 1000, TIMEOUT // 2, TIMEOUT - 1, TIMEOUT, 3 * TIMEOUT]
cdef Streams TABLE = Streams(max_streams=MAX_STREAMS, max_bytes=MAX_BYTES,
                             max_bytes_each=4 * CHUNK, timeout=TIMEOUT, seed=7)
cdef uint8_t* PLACE = <uint8_t*>malloc(2 * PAYLOAD)
cdef uint64_t clock = 1000
cdef uint64_t number = 0
cdef bint keeping = False
KEPT = []


cdef struct Play:
    uint32_t[2][CONNECTIONS] position
    uint64_t octets             # of payload that was fed


cdef const char* balance() noexcept nogil:
    c = &TABLE.counts
    if c.octets != c.octets_framed + c.octets_old + c.octets_skipped + c.octets_buffered:
        return b"the octets do not add up"
    if c.live > MAX_STREAMS:
        return b"more connections than max_streams"
    if TABLE.pieces.used * <uint64_t>CHUNK > MAX_BYTES:
        return b"more memory than max_bytes"
    return NULL


cdef const char* drain() noexcept nogil:
    """All that follows from a segment, or from the end."""
    cdef StreamItem item
    cdef int what, items = 0
    cdef uint32_t i
    cdef uint8_t all = 0
    while True:
        what = TABLE.next(&item)
        if what == STREAM_NOTHING:
            return NULL
        items += 1
        if items > MOST_ITEMS:
            return b"one segment has no end of consequences"
        if item.direction > 1 or (item.family != 4 and item.family != 6):
            return b"an item is of nowhere"
        for i in range((8 if item.family == 4 else 32) + item.scope_length):
            all ^= item.ends[i]
        if what == STREAM_MESSAGE:
            if item.length > 65535:
                return b"a message is longer than its length can say"
            for i in range(item.length):
                all ^= item.wire[i]
        if keeping:
            with gil:
                KEPT.append((what, item.serial, item.direction,
                             item.wire[:item.length] if what == STREAM_MESSAGE else b"", all))


cdef const char* play(Cursor* c, Play* p) noexcept nogil:
    global clock, number
    cdef Segment s
    cdef uint8_t[64] ends
    cdef uint8_t who, flags
    cdef uint32_t n, which, half
    cdef int8_t ahead, acknowledged
    cdef int d
    cdef const uint8_t* octets
    cdef const char* failed
    while cursor_left(c) >= 5:
        who = cursor_u8(c)
        flags = cursor_u8(c)
        ahead = <int8_t>cursor_u8(c)
        acknowledged = <int8_t>cursor_u8(c)
        n = cursor_u8(c)
        if n > cursor_left(c):
            n = cursor_left(c)
        octets = cursor_take(c, n)
        d = who & 1
        which = (who >> 1) & 15
        half = 16 if who & 8 else 4
        clock += STEPS[who >> 5]
        number += 1
        memset(ends, 0, sizeof(ends))
        ends[0] = 10 + d
        ends[half] = 11 - d
        ends[half - 1] = ends[2 * half - 1] = (who >> 1) & 3
        memset(&s, 0, sizeof(s))
        s.ends = ends
        s.family = 6 if who & 8 else 4
        s.scope_length = 2 if who & 16 else 0
        s.flags = flags & 31
        s.source_port = 53 if d else 4000
        s.destination_port = 4000 if d else 53
        s.sequence = p.position[d][which] + <uint32_t>(
            <int>ahead * 0x1000000 if flags & 64 and ahead != -128 else <int>ahead)
        s.acknowledgement = (p.position[d if flags & 128 else 1 - d][which]
                             + <uint32_t><int>acknowledged)
        memcpy(PLACE + PAYLOAD - n, octets, n)
        s.payload = PLACE + PAYLOAD - n
        s.length = n
        s.wire_length = n + (3 if flags & 32 else 0)
        s.number = number
        s.time = <long long>clock
        p.position[d][which] = s.sequence + s.wire_length + ((flags >> 1) & 1) + (flags & 1)
        p.octets += n
        TABLE.feed(&s, clock)
        failed = drain()
        if failed == NULL:
            failed = balance()
        if failed != NULL:
            return failed
    return NULL


cdef const char* one_input(const uint8_t* data, size_t size) noexcept nogil:
    global clock
    cdef Play p
    cdef Cursor c
    cdef uint32_t i
    cdef uint64_t octets = TABLE.counts.octets
    cdef const char* failed
    if size > 65536:
        return NULL
    memset(&p, 0, sizeof(p))
    for i in range(CONNECTIONS):
        p.position[0][i] = <uint32_t>0 - 40
        p.position[1][i] = 1000
    forbid(PLACE + PAYLOAD, PAYLOAD)
    c = cursor_over(data, 0, <uint32_t>size)
    failed = play(&c, &p)
    if failed != NULL:
        return failed
    TABLE.finish()
    failed = drain()
    if failed == NULL:
        failed = balance()
    if failed != NULL:
        return failed
    if TABLE.counts.octets - octets != p.octets:
        return b"octets were fed that are not accounted for"
    if TABLE.counts.live or TABLE.counts.octets_buffered or TABLE.pieces.used:
        return b"something is left behind the end"
    clock += 10 * TIMEOUT
    return NULL


def address():
    """The C function, for the driver."""
    return <size_t>&one_input


def run(bytes data):
    """One input, from Python: (None or which check failed, the items)."""
    global keeping
    KEPT.clear()
    keeping = True
    failed = one_input(data, len(data))
    keeping = False
    return (None if failed == NULL else failed.decode()), list(KEPT)
