"""The parameters of SVCB and HTTPS records (RFC 9460).

On the wire each is a key (u16), a length (u16) and a value; here ` key` or ` key="value"`.  Keys
must be in strictly increasing order (section 2.2).  What each value is:

    mandatory        0   keys, u16 each, at least one, strictly increasing, never key 0 (section 8)
    alpn             1   strings with a length octet, at least one, none empty (section 7.1)
    no-default-alpn  2   nothing
    port             3   u16 (section 7.2)
    ipv4hint         4   addresses, at least one (section 7.3)
    ech              5   an ECHConfigList, shown as base64
    ipv6hint         6   addresses, at least one (section 7.3)
    dohpath          7   a URI template (RFC 9461), shown as a string
    ohttp            8   nothing (RFC 9540)
    keyNNN               anything, shown as a string; without a value when that is empty

A value that breaks its rule makes the record BAD_RDATA.  Rules between parameters (what is
mandatory must be present, no-default-alpn needs alpn) are a client's business: a record that
breaks them still has one clear text, so it is shown.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from gazer.cursor cimport (Cursor, cursor_has, cursor_left, cursor_over, cursor_take, cursor_u16,
                           cursor_u8)
from gazer.text cimport Arena, arena_end, arena_room, put, put_ipv4, put_ipv6, put_u16
from gazer.workers.anomaly cimport BAD_RDATA, NO_ROOM, OK
from gazer.workers.encodings cimport put_base64, put_list_item, put_quoted

cdef enum:
    MANDATORY = 0
    ALPN = 1
    NO_DEFAULT_ALPN = 2
    PORT = 3
    IPV4HINT = 4
    ECH = 5
    IPV6HINT = 6
    OHTTP = 8
    NAMED_KEYS = 9
    KEY_TEXT = 15           # the longest key's text: no-default-alpn

cdef const char* KEY[NAMED_KEYS]
KEY[:] = [b"mandatory", b"alpn", b"no-default-alpn", b"port", b"ipv4hint", b"ech", b"ipv6hint",
          b"dohpath", b"ohttp"]


cdef inline char* put_key(char* w, uint16_t key) noexcept nogil:
    """Up to KEY_TEXT bytes."""
    if key < NAMED_KEYS:
        return put(w, KEY[key])
    return put_u16(put(w, b"key"), key)


cdef int svcb_params(Cursor* c, Arena* arena, uint32_t* escapes) noexcept nogil:
    cdef Cursor value
    cdef int after = -1     # the key before
    cdef int result
    cdef uint16_t key, length
    cdef char* w
    while cursor_left(c):
        key = cursor_u16(c)
        length = cursor_u16(c)
        if c.failed or not cursor_has(c, length) or <int>key <= after:
            return BAD_RDATA
        after = key
        value = cursor_over(c.base, c.pos, c.pos + length)
        c.pos += length
        if not arena_room(arena, 1 + KEY_TEXT):
            return NO_ROOM
        w = arena_end(arena)
        w[0] = 32
        w = put_key(w + 1, key)
        arena.used = <uint32_t>(w - arena.base)
        result = param_value(&value, key, arena, escapes)
        if result != OK:
            return result
    return OK


cdef int param_value(Cursor* v, uint16_t key, Arena* arena, uint32_t* escapes) noexcept nogil:
    """Append `="value"`, or nothing where there is no value."""
    cdef uint32_t n = cursor_left(v)
    cdef char* w
    # With their commas, the two octets of a mandatory key become at most KEY_TEXT + 1 bytes, the
    # two of a port 5, the four of an IPv4 address 16, the 16 of an IPv6 address 46, the one of a
    # string 4.  The 8 are for `=` and the quotes.
    cdef uint32_t most = n * 8 if key == MANDATORY else n * 4
    if n == 0:
        if key == NO_DEFAULT_ALPN or key == OHTTP or key >= 7:
            return OK
        return BAD_RDATA
    if key == NO_DEFAULT_ALPN or key == OHTTP:
        return BAD_RDATA
    if not arena_room(arena, most + 8):
        return NO_ROOM
    w = arena_end(arena)
    w[0] = 61
    w += 1
    if key == ECH:
        w[0] = 34
        w = put_base64(w + 1, cursor_take(v, n), n)
        w[0] = 34
        w += 1
        escapes[0] += 2
    elif key > ECH and key != IPV6HINT:
        w = put_quoted(w, cursor_take(v, n), n, escapes)
    else:
        w[0] = 34
        w = put_list(w + 1, v, key, escapes)
        if w == NULL:
            return BAD_RDATA
        w[0] = 34
        w += 1
        escapes[0] += 2
    arena.used = <uint32_t>(w - arena.base)
    return OK


cdef char* put_list(char* w, Cursor* v, uint16_t key, uint32_t* escapes) noexcept nogil:
    """The items of the value with commas between; NULL if they break their rule."""
    cdef int after = MANDATORY
    cdef bint first = True
    cdef uint8_t length
    cdef uint16_t item
    cdef const uint8_t* p
    while cursor_left(v):
        if not first:
            w[0] = 44
            w += 1
        first = False
        if key == MANDATORY:
            item = cursor_u16(v)
            if v.failed or <int>item <= after:
                return NULL
            after = item
            w = put_key(w, item)
        elif key == ALPN:
            length = cursor_u8(v)
            p = cursor_take(v, length)
            if p == NULL or length == 0:
                return NULL
            w = put_list_item(w, p, length, escapes)
        elif key == PORT:
            w = put_u16(w, cursor_u16(v))
            if v.failed or cursor_left(v):
                return NULL
        elif key == IPV4HINT:
            p = cursor_take(v, 4)
            if p == NULL:
                return NULL
            w = put_ipv4(w, p)
        else:
            p = cursor_take(v, 16)
            if p == NULL:
                return NULL
            w = put_ipv6(w, p)
    return w
