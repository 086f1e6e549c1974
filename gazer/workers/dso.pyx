"""DNS Stateful Operations (RFC 8490, section 5.4): a message of opcode 6 whose four counts are zero
holds TLVs behind its header.

Their text is a form of ours: for each TLV its type's name (RFC 8490, RFC 8765; TLVn where we know
none), then a space and its data in hexadecimal, if there is any; between TLVs a comma and a space.

    KEEPALIVE 00003a9800003a98, PADDING 0000

The data is a stranger's choice of up to 64 KiB and no use to most readers, so the text has at most
DSO_TEXT octets of whole TLVs; then `, ...` says that there is more (`...` where not even the first
one fits).  What is not shown is walked all the same: a TLV that breaks off is a fault wherever it
stands.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from gazer.cursor cimport Cursor, cursor_left, cursor_take, cursor_u16
from gazer.text cimport Arena, Text, arena_commit, arena_end, put, put_hex, put_u16
from gazer.workers.anomaly cimport OK, TRUNCATED

# Beside its data a TLV takes up to 14 octets: comma, space, `UNSUBSCRIBE`, space.
assert DSO_ROOM >= DSO_TEXT + 14

NAMES = {
    1: "KEEPALIVE",         # RFC 8490, section 7
    2: "RETRYDELAY",
    3: "PADDING",
    0x40: "SUBSCRIBE",      # RFC 8765, section 6
    0x41: "PUSH",
    0x42: "UNSUBSCRIBE",
    0x43: "RECONFIRM",
}

cdef enum:
    KNOWN = 0x44

cdef const char* C_NAMES[KNOWN]
_kept = {number: name.encode() for number, name in NAMES.items()}   # what C_NAMES points into
cdef int _i
for _i in range(KNOWN):
    C_NAMES[_i] = NULL
    if _i in _kept:
        C_NAMES[_i] = _kept[_i]


cdef int dso_render(Cursor* c, bint show, Arena* arena, Text* out) noexcept nogil:
    cdef char* start = arena_end(arena)
    cdef char* w = start
    cdef char* before
    cdef const uint8_t* data
    cdef uint16_t type, length
    cdef int result = OK
    while cursor_left(c):
        type = cursor_u16(c)
        length = cursor_u16(c)
        data = cursor_take(c, length)
        if c.failed:
            result = TRUNCATED
            break
        if not show:
            continue
        before = w
        if 2 * <uint32_t>length <= DSO_TEXT - <uint32_t>(w - start):
            if w != start:
                w = put(w, b", ")
            if type < KNOWN and C_NAMES[type] != NULL:
                w = put(w, C_NAMES[type])
            else:
                w = put_u16(put(w, b"TLV"), type)
            if length:
                w[0] = 32
                w = put_hex(w + 1, data, length)
        if w == before or w - start > DSO_TEXT:
            w = put(before, b"...") if before == start else put(before, b", ...")
            show = False
    arena_commit(arena, w, 0, out)
    return result
