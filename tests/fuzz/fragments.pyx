"""Target: a sequence of pieces of IP datagrams through the table of fragments, with tiny limits.

Each piece is four octets:

    octet 0     bits 0-2  which of eight datagrams
                bit 3     IPv6
                bit 4     not the last piece
                bit 5     its octets are others than those of the datagram: they contradict
                bit 6     a long head, of several cells
                bit 7     the capture lacks a part of it
    octet 1     offset, in units of 8 octets (times 32 with bit 6 of octet 3)
    octet 2     length, in units of 8 octets
    octet 3     bits 0-2  octets more than that
                bits 3-4  how long after the one before: see STEPS
                bit 5     its ports are not ours
                bit 6     see octet 1
                bit 7     a scope of two octets (a VLAN)

The octets are made from datagram and place, so that the input holds none.  Checked: each piece has
one count; the limits; what is joined has the right head and, unless a piece contradicted, the right
octets; and at the end, past the time-out, nothing is left.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memcmp, memcpy, memset

from gazer.capture.fragments cimport F_WAITING, FRAGMENT_COUNTS, FRAGMENT_WHOLE, Fragments
from gazer.cursor cimport Cursor, cursor_left, cursor_over, cursor_u8
from gazer.packet cimport MAX_TUNNELS, Fragment, Layer, Packet
from outputs cimport forbid

from gazer.capture.fragments import LEAST_BYTES

cdef enum:
    ROOM = 8192
    SHORT_HEAD = 34
    LONG_HEAD = 1500
    MAX_DATAGRAMS = 3
    SNAPLEN = 60000

cdef uint64_t TIMEOUT = 1000000
cdef uint64_t[4] STEPS = [0, 1, TIMEOUT // 2, TIMEOUT]
cdef Fragments TABLE = Fragments(max_datagrams=MAX_DATAGRAMS, max_bytes=LEAST_BYTES,
                                 timeout=TIMEOUT, seed=7, snaplen=SNAPLEN)
cdef uint8_t* PLACE = <uint8_t*>malloc(2 * ROOM)
cdef uint64_t clock = 1000
cdef bint keeping = False
KEPT = []


# What datagrams hold: datagram `id` what stands from SHIFT * id on, contradictions the inverse.
cdef enum:
    SHIFT = 977
    OCTETS = 40 * SHIFT + 70000

cdef bytes _PATTERN = bytes([(n * 37 + (n >> 8) * 11) & 255 for n in range(OCTETS)])
cdef bytes _INVERSE = bytes([255 - octet for octet in _PATTERN])
cdef const uint8_t* PATTERN = _PATTERN
cdef const uint8_t* INVERSE = _INVERSE


cdef const char* joined(bint trusted, uint32_t id) noexcept nogil:
    """What came together is what was sent."""
    j = &TABLE.joined
    cdef uint32_t i
    cdef const uint8_t* payload
    cdef const uint8_t* right
    if j.caplen > SNAPLEN or j.caplen > j.length:
        return b"a joined frame is too long"
    if j.head_length > j.caplen or j.length - j.head_length > 65535:
        return b"a joined frame has an impossible head or payload"
    if j.head_length == 0 or j.frame[0] != id or memcmp(
            j.frame + 1, PATTERN + SHIFT * id + 1, j.head_length - 1):
        return b"the head of a joined frame is another's"
    payload = j.frame + j.head_length
    right = PATTERN + SHIFT * id
    if memcmp(payload, right, j.caplen - j.head_length):
        for i in range(j.caplen - j.head_length):
            if payload[i] != right[i] and (trusted or payload[i] != 255 - right[i]):
                return b"an octet of a joined frame was never sent"
    if j.packet.layers != 1 or j.layers[0].id != id:
        return b"what was known of the first piece is lost"
    if keeping:
        with gil:
            KEPT.append((id, j.frame[:j.caplen], j.length))
    return NULL


cdef const char* play(Cursor* c, uint64_t* fed, uint32_t* wrong) noexcept nogil:
    global clock
    cdef Fragment f
    cdef Packet packet
    cdef Layer[MAX_TUNNELS] layers
    cdef uint8_t who, place, units, more
    cdef uint32_t id, head, n, start
    cdef uint8_t[2] scope
    cdef uint8_t* frame
    cdef int result
    cdef const char* failed
    while cursor_left(c) >= 4:
        who = cursor_u8(c)
        place = cursor_u8(c)
        units = cursor_u8(c)
        more = cursor_u8(c)
        clock += STEPS[(more >> 3) & 3]
        head = LONG_HEAD if who & 64 else SHORT_HEAD
        start = place * 8 * (32 if more & 64 else 1)
        n = units * 8 + (more & 7)
        frame = PLACE + ROOM - head - n
        id = (who & 15) + (more >> 7) * 16
        memcpy(frame, PATTERN + SHIFT * id, head)
        memcpy(frame + head, (INVERSE if who & 32 else PATTERN) + SHIFT * id + start, n)
        if who & 32:
            wrong[0] |= <uint32_t>1 << id
        memset(&f, 0, sizeof(f))
        memset(&packet, 0, sizeof(packet))
        memset(layers, 0, sizeof(layers))
        # The addresses stand within the head, and differ by nothing but the datagram.
        frame[0] = <uint8_t>id
        f.family = 6 if who & 8 else 4
        f.protocol = 17
        f.more = who & 16
        f.cut = who & 128
        f.id = who & 7
        f.offset = start
        f.addresses_offset = 0
        f.head_length = <unsigned short>head
        f.payload_offset = head
        f.payload_length = n
        packet.layers = 1
        layers[0].id = id
        scope[0] = 0
        scope[1] = 7
        result = TABLE.add(frame, head + n, &f, &packet, layers, scope, 2 if more & 128 else 0,
                           more & 32, clock)
        fed[0] += 1
        if result == FRAGMENT_WHOLE:
            failed = joined(not wrong[0] >> id & 1, id)
            if failed != NULL:
                return failed
        if TABLE.known > MAX_DATAGRAMS or TABLE.cells_used > TABLE.max_cells:
            return b"more is held than the limits allow"
    return NULL


cdef uint64_t counted() noexcept nogil:
    """Pieces that have a count: each whole datagram's last one, and all others."""
    cdef uint64_t n = 0
    cdef int i
    for i in range(FRAGMENT_COUNTS):
        n += TABLE.counts[i]
    return n


cdef const char* one_input(const uint8_t* data, size_t size) noexcept nogil:
    global clock
    cdef Cursor c
    cdef uint64_t fed = 0, before = counted()
    cdef uint32_t wrong = 0
    cdef const char* failed
    if size > 65536:
        return NULL
    forbid(PLACE + ROOM, ROOM)
    c = cursor_over(data, 0, <uint32_t>size)
    failed = play(&c, &fed, &wrong)
    if failed != NULL:
        return failed
    if counted() - before != fed:
        return b"a piece has no count, or two"
    clock += TIMEOUT
    TABLE.expire(clock)
    if counted() - before != fed:
        return b"a piece changes its count to none, or to two"
    if TABLE.counts[F_WAITING] or TABLE.known or TABLE.cells_used:
        return b"something is left past the time-out"
    return NULL


def address():
    """The C function, for the driver."""
    return <size_t>&one_input


def run(bytes data):
    """One input, from Python: (None or which check failed, what was joined)."""
    global keeping
    KEPT.clear()
    keeping = True
    failed = one_input(data, len(data))
    keeping = False
    return (None if failed == NULL else failed.decode()), list(KEPT)
