"""The OPT pseudo-record (EDNS, RFC 6891) as one line of text.

No standard says how to write an OPT record, so this is a form of ours: words with spaces between,
each `KEY` or `KEY=value`, first the record's own fields, then the options in their order.

    VERSION=0 FLAGS=DO UDPSIZE=1232 COOKIE=0011223344556677 EDE=18(Prohibited):"not for you"

    EXTRCODE=n       the upper eight bits of the rcode; only when set
    VERSION=n        always
    FLAGS=a,b        only when set: DO (RFC 3225), CO (RFC 9824), others together as 0x0000
    UDPSIZE=n        always
    NSID=hex         RFC 5001; a query's is empty and stands as NSID
    DAU DHU N3U=n,n  RFC 6975
    ECS=a/n/n        RFC 7871: address, source and scope prefix length
    EXPIRE=n         RFC 7314, seconds; a query's is empty
    COOKIE=hex       RFC 7873: 8 octets, or 16 to 40
    KEEPALIVE=n      RFC 7828, in units of 100 ms; a query's is empty
    PADDING=n        RFC 7830: how many octets
    KEYTAG=n,n       RFC 8145
    EDE=n(Name)      RFC 8914; `_` for the spaces of the name, then, if there is a text, :"text"
    OPTn=hex         any other; OPTn when empty

An option whose value breaks its own rule is shown as OPTn=hex and the record is BAD_RDATA.  Where
the options do not fit into the rdata at all, the text is that of RFC 3597.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset
from gazer.cursor cimport (Cursor, cursor_has, cursor_left, cursor_over, cursor_take, cursor_u16,
                           cursor_u32, cursor_u8)
from gazer.text cimport (Arena, Text, arena_commit, arena_end, arena_room, put, put_hex, put_ipv4,
                         put_ipv6, put_u16, put_u64)
from gazer.workers.anomaly cimport BAD_RDATA, NO_ROOM, OK
from gazer.workers.encodings cimport put_generic, put_quoted
from gazer.workers.names cimport Names
from gazer.workers.rrtypes cimport ede_name

cdef enum:
    FLAG_DO = 0x8000
    FLAG_CO = 0x4000
    HEADER_TEXT = 96        # room for the words before the options; they take up to 68
    NAME_TEXT = 48          # room for the name of an extended error in parentheses


cdef int opt_render(Names* names, Cursor* c, uint16_t udp_size, uint32_t ttl,
                    Arena* arena, Text* out) noexcept nogil:
    cdef uint32_t start = c.pos, used = arena.used, length = cursor_left(c), escapes = 0
    cdef int result
    cdef bint whole = False
    cdef char* w
    if not arena_room(arena, HEADER_TEXT):
        c.pos = c.end
        return NO_ROOM
    w = put_header(arena_end(arena), udp_size, ttl)
    arena.used = <uint32_t>(w - arena.base)
    result = options_render(c, arena, &escapes, &whole)
    c.pos = c.end
    w = arena_end(arena)
    arena.used = used
    if result == BAD_RDATA and not whole:
        if not arena_room(arena, 2 * length + 14):
            return NO_ROOM
        escapes = 0
        w = put_generic(arena_end(arena), c.base + start, length, &escapes)
    elif result == NO_ROOM:
        return NO_ROOM
    arena_commit(arena, w, escapes, out)
    return result


cdef char* put_header(char* w, uint16_t udp_size, uint32_t ttl) noexcept nogil:
    cdef uint16_t flags = ttl & 0xffff
    cdef uint8_t low[2]
    if ttl >> 24:
        w = put_u16(put(w, b"EXTRCODE="), <uint16_t>(ttl >> 24))
        w[0] = 32
        w += 1
    w = put_u16(put(w, b"VERSION="), (ttl >> 16) & 0xff)
    if flags:
        w = put(w, b" FLAGS=")
        if flags & FLAG_DO:
            w = put(w, b"DO,")
        if flags & FLAG_CO:
            w = put(w, b"CO,")
        flags &= ~(FLAG_DO | FLAG_CO)
        if flags:
            low[0] = flags >> 8
            low[1] = flags & 0xff
            w = put(put_hex(put(w, b"0x"), low, 2), b",")
        w -= 1                  # the last comma
    return put_u16(put(w, b" UDPSIZE="), udp_size)


cdef int options_render(Cursor* c, Arena* arena, uint32_t* escapes, bint* whole) noexcept nogil:
    cdef Cursor value
    cdef uint16_t code, length
    cdef uint32_t before
    cdef int result = OK
    cdef char* w
    whole[0] = False
    while cursor_left(c):
        code = cursor_u16(c)
        length = cursor_u16(c)
        if c.failed or not cursor_has(c, length):
            return BAD_RDATA
        value = cursor_over(c.base, c.pos, c.pos + length)
        c.pos += length
        # A name, `=` and the value: a list of numbers takes up to 4 bytes for each octet, a quoted
        # text 4, all else less.
        if not arena_room(arena, 4 * <uint32_t>length + 16 + NAME_TEXT + ECS_TEXT):
            return NO_ROOM
        w = arena_end(arena)
        w[0] = 32
        before = escapes[0]
        w = put_option(w + 1, code, &value, escapes)
        if w == NULL:
            result = BAD_RDATA
            escapes[0] = before
            w = arena_end(arena)
            w[0] = 32
            value = cursor_over(c.base, c.pos - length, c.pos)
            w = put_unknown(w + 1, code, &value)
        arena.used = <uint32_t>(w - arena.base)
    whole[0] = True
    return result


cdef char* put_option(char* w, uint16_t code, Cursor* v, uint32_t* escapes) noexcept nogil:
    """One option; NULL if its value breaks its rule."""
    cdef uint32_t n = cursor_left(v)
    if code == OPTION_NSID:
        return put_blob(put(w, b"NSID"), v)
    if code == OPTION_DAU:
        return put_numbers(put(w, b"DAU="), v, 1)
    if code == OPTION_DHU:
        return put_numbers(put(w, b"DHU="), v, 1)
    if code == OPTION_N3U:
        return put_numbers(put(w, b"N3U="), v, 1)
    if code == OPTION_ECS:
        return put_ecs(put(w, b"ECS="), v)
    if code == OPTION_EXPIRE:
        if n == 0:
            return put(w, b"EXPIRE")
        return put_u64(put(w, b"EXPIRE="), cursor_u32(v)) if n == 4 else NULL
    if code == OPTION_COOKIE:
        if n != 8 and not 16 <= n <= 40:
            return NULL
        return put_blob(put(w, b"COOKIE"), v)
    if code == OPTION_KEEPALIVE:
        if n == 0:
            return put(w, b"KEEPALIVE")
        return put_u16(put(w, b"KEEPALIVE="), cursor_u16(v)) if n == 2 else NULL
    if code == OPTION_PADDING:
        return put_u16(put(w, b"PADDING="), <uint16_t>n)
    if code == OPTION_KEYTAG:
        return put_numbers(put(w, b"KEYTAG="), v, 2)
    if code == OPTION_EDE:
        return put_error(put(w, b"EDE="), v, escapes)
    return put_unknown(w, code, v)


cdef char* put_unknown(char* w, uint16_t code, Cursor* v) noexcept nogil:
    return put_blob(put_u16(put(w, b"OPT"), code), v)


cdef char* put_blob(char* w, Cursor* v) noexcept nogil:
    """`=` and hexadecimal digits; nothing if there is nothing."""
    cdef uint32_t n = cursor_left(v)
    if n == 0:
        return w
    w[0] = 61
    return put_hex(w + 1, cursor_take(v, n), n)


cdef char* put_numbers(char* w, Cursor* v, int size) noexcept nogil:
    """Numbers of one or two octets, at least one of them."""
    if cursor_left(v) == 0 or cursor_left(v) % size:
        return NULL
    while True:
        w = put_u16(w, cursor_u8(v) if size == 1 else cursor_u16(v))
        if cursor_left(v) == 0:
            return w
        w[0] = 44
        w += 1


cdef char* put_ecs(char* w, Cursor* v) noexcept nogil:
    cdef uint8_t address[16]
    cdef uint16_t family = cursor_u16(v)
    cdef uint8_t source = cursor_u8(v)
    cdef uint8_t scope = cursor_u8(v)
    cdef uint32_t n = cursor_left(v)
    cdef uint8_t bits = 32 if family == 1 else 128
    # As many octets as the prefix needs, and zeros beyond the prefix (section 6).
    if v.failed or (family != 1 and family != 2) or source > bits or scope > bits:
        return NULL
    if n != (<uint32_t>source + 7) // 8:
        return NULL
    memset(address, 0, 16)
    memcpy(address, cursor_take(v, n), n)
    if source % 8 and address[n - 1] & (0xff >> (source % 8)):
        return NULL
    w = put_ipv4(w, address) if family == 1 else put_ipv6(w, address)
    w[0] = 47
    w = put_u16(w + 1, source)
    w[0] = 47
    return put_u16(w + 1, scope)


cdef char* put_error(char* w, Cursor* v, uint32_t* escapes) noexcept nogil:
    """An extended error: its number, its name, its text."""
    cdef uint16_t code = cursor_u16(v)
    cdef uint32_t n = cursor_left(v)
    cdef const uint8_t* text
    cdef const char* name
    if v.failed:
        return NULL
    w = put_u16(w, code)
    name = ede_name(code)
    if name != NULL:
        w[0] = 40
        w += 1
        while name[0]:
            w[0] = 95 if name[0] == 32 else name[0]
            w += 1
            name += 1
        w[0] = 41
        w += 1
    text = cursor_take(v, n)
    if n and text[n - 1] == 0:      # it may end with a zero octet (RFC 8914, section 2)
        n -= 1
    if n:
        w[0] = 58
        w = put_quoted(w + 1, text, n, escapes)
    return w
