"""The OPT record, taken apart for the `edns` field of full detail.

The record's class is the sender's UDP payload size, its TTL holds the upper rcode bits, the version
and the DO flag (RFC 6891, section 6.1.3).  Options shown: client subnet (RFC 7871), cookie
(RFC 7873), NSID (RFC 5001), extended errors (RFC 8914).  An option that does not fit its format is
not shown here; the record's own text shows all of them.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from gazer.cursor cimport Cursor, cursor_left, cursor_over, cursor_skip, cursor_take, cursor_u16
from gazer.text cimport Arena, Text, arena_commit, arena_end, arena_room, put_ddd, put_hex
from gazer.workers.rdata_opt cimport (
    OPTION_COOKIE, OPTION_ECS, OPTION_EDE, OPTION_NSID, put_ecs)

cdef enum:
    OPTION_BYTES = 128      # longest NSID, cookie or error text shown; keeps `edns` under 8 KiB


cdef void printable(const uint8_t* p, uint32_t n, Arena* arena, Text* out) noexcept nogil:
    """Text that a server chose: printable ASCII as it is, all else as \\DDD."""
    cdef char* w = arena_end(arena)
    cdef uint32_t i, escapes = 0
    for i in range(n):
        if 0x20 <= p[i] <= 0x7E and p[i] != 92:
            escapes += p[i] == 34
            w[0] = <char>p[i]
            w += 1
        else:
            escapes += 1
            w = put_ddd(w, p[i])
    arena_commit(arena, w, escapes, out)


cdef void edns_decode(Edns* edns, const uint8_t* wire, uint32_t start, uint32_t end,
                      uint16_t klass, uint32_t ttl, bint options, Arena* arena) noexcept nogil:
    """Fill `edns` from the OPT record whose rdata is wire[start:end].

    The rdata need not be sound: what stands before the place where its options break off is read.
    A second OPT in a message is a fault (RFC 6891, section 6.1.1); the first one counts.  The arena
    must have no room for records any more when it has none for an option: options are left out.
    """
    cdef Cursor c = cursor_over(wire, start, end)
    cdef Cursor option
    cdef uint16_t code, length
    cdef const uint8_t* p
    cdef char* w
    if edns.present:
        return
    edns.present = True
    edns.udp_size = klass
    edns.extended_rcode = <uint8_t>(ttl >> 24)
    edns.version = <uint8_t>(ttl >> 16)
    edns.dnssec_ok = (ttl >> 15) & 1
    memset(&edns.subnet, 0, sizeof(Text))
    memset(&edns.cookie, 0, sizeof(Text))
    memset(&edns.nsid, 0, sizeof(Text))
    edns.errors = 0
    if not options:
        return
    while cursor_left(&c):
        code = cursor_u16(&c)
        length = cursor_u16(&c)
        start = c.pos
        if c.failed or not cursor_skip(&c, length):
            return
        option = cursor_over(wire, start, start + length)
        if length > OPTION_BYTES or not arena_room(arena, 4 * OPTION_BYTES):
            continue
        if code == OPTION_ECS and edns.subnet.length == 0:
            w = put_ecs(arena_end(arena), &option)
            if w != NULL:
                arena_commit(arena, w, 0, &edns.subnet)
        elif code == OPTION_COOKIE and edns.cookie.length == 0:
            p = cursor_take(&option, length)
            w = put_hex(arena_end(arena), p, length)
            arena_commit(arena, w, 0, &edns.cookie)
        elif code == OPTION_NSID and edns.nsid.length == 0:
            p = cursor_take(&option, length)
            printable(p, length, arena, &edns.nsid)
        elif code == OPTION_EDE and edns.errors < EDNS_ERRORS and length >= 2:
            edns.error_code[edns.errors] = cursor_u16(&option)
            length -= 2
            p = cursor_take(&option, length)
            memset(&edns.error_text[edns.errors], 0, sizeof(Text))
            if length:
                printable(p, length, arena, &edns.error_text[edns.errors])
            edns.errors += 1
