"""Values as JSON and as msgpack, in one set of functions: `Out` makes both versions of whatever is
written by them at compile time, so that the two forms of an event can't differ.

All are inline, so they stand in the .pxd.  They write without checks: whoever calls them has made
sure of the room.  JSON has ", " and ": " as separators; what goes into a string is printable ASCII,
so that only `"` and `\\` need an escape (text.pxd).  msgpack takes the shortest form of each number
and length.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, strlen

from gazer.text cimport (
    Arena, Text, put, put_bytes, put_digits, put_ipv4, put_ipv6, put_piece, put_u16, put_u64)

cdef extern from *:
    """
    #include <string.h>
    static inline unsigned int as_big32(unsigned int v) { return __builtin_bswap32(v); }
    static inline unsigned long long as_big64(unsigned long long v) { return __builtin_bswap64(v); }
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "msgpack's byte order is written for little-endian machines"
    #endif
    """
    uint32_t as_big32(uint32_t v) nogil
    uint64_t as_big64(uint64_t v) nogil

cdef enum:
    NS = 1000000000         # in a second


cdef struct Json:
    char* p


cdef struct Pack:
    char* p


ctypedef fused Out:
    Json
    Pack


# --- values --------------------------------------------------------------------------------------

cdef inline char* pack_uint(char* w, uint64_t v) noexcept nogil:
    cdef uint32_t v32
    if v < 128:
        w[0] = <char>v
        return w + 1
    if v < 256:
        w[0] = <char>0xCC
        w[1] = <char>v
        return w + 2
    if v < 65536:
        w[0] = <char>0xCD
        w[1] = <char>(v >> 8)
        w[2] = <char>v
        return w + 3
    if v < 0x100000000ULL:
        w[0] = <char>0xCE
        v32 = as_big32(<uint32_t>v)
        memcpy(w + 1, &v32, 4)
        return w + 5
    w[0] = <char>0xCF
    v = as_big64(v)
    memcpy(w + 1, &v, 8)
    return w + 9


cdef inline char* pack_float(char* w, double v) noexcept nogil:
    cdef uint64_t bits
    memcpy(&bits, &v, 8)
    bits = as_big64(bits)
    w[0] = <char>0xCB
    memcpy(w + 1, &bits, 8)
    return w + 9


cdef inline char* pack_length(char* w, uint32_t n) noexcept nogil:
    """The head of a string of n bytes."""
    if n < 32:
        w[0] = <char>(0xA0 | n)
        return w + 1
    if n < 256:
        w[0] = <char>0xD9
        w[1] = <char>n
        return w + 2
    if n < 65536:
        w[0] = <char>0xDA
        w[1] = <char>(n >> 8)
        w[2] = <char>n
        return w + 3
    n = as_big32(n)
    w[0] = <char>0xDB
    memcpy(w + 1, &n, 4)
    return w + 5


cdef inline char* put_escaped(char* w, const char* s, uint32_t n) noexcept nogil:
    """Printable ASCII as the inside of a JSON string."""
    cdef uint32_t i
    for i in range(n):
        if s[i] == 34 or s[i] == 92:
            w[0] = 92
            w += 1
        w[0] = s[i]
        w += 1
    return w


cdef inline void put_text(Out* o, const Arena* arena, const Text* t) noexcept nogil:
    if Out is Json:
        o.p[0] = 34
        if t.escapes == 0:
            o.p = put_piece(o.p + 1, arena, t.offset, t.length)
        else:
            o.p = put_escaped(o.p + 1, arena.base + t.offset, t.length)
        o.p[0] = 34
        o.p += 1
    else:
        o.p = put_piece(pack_length(o.p, t.length), arena, t.offset, t.length)


cdef inline void put_string(Out* o, const char* s, uint32_t n) noexcept nogil:
    """A string that needs no escape."""
    if Out is Json:
        o.p[0] = 34
        o.p = put_bytes(o.p + 1, s, n)
        o.p[0] = 34
        o.p += 1
    else:
        o.p = put_bytes(pack_length(o.p, n), s, n)


cdef inline void put_literal(Out* o, const char* s) noexcept nogil:
    put_string(o, s, <uint32_t>strlen(s))


cdef inline void put_uint(Out* o, uint64_t v) noexcept nogil:
    if Out is Json:
        o.p = put_u64(o.p, v)
    else:
        o.p = pack_uint(o.p, v)


cdef inline void put_port(Out* o, uint16_t v) noexcept nogil:
    if Out is Json:
        o.p = put_u16(o.p, v)
    else:
        o.p = pack_uint(o.p, v)


cdef inline void put_bool(Out* o, bint v) noexcept nogil:
    if Out is Json:
        o.p = put(o.p, b"true") if v else put(o.p, b"false")
    else:
        o.p[0] = <char>(0xC3 if v else 0xC2)
        o.p += 1


cdef inline void put_time(Out* o, int64_t time) noexcept nogil:
    """Seconds with six decimals, truncated.  The float is the one nearest to that decimal number:
    microseconds since 1970 are exact in a double, and the division rounds once."""
    cdef int64_t seconds = time // NS
    if Out is Json:
        o.p = put_u64(o.p, <uint64_t>seconds)
        o.p[0] = 46
        o.p = put_digits(o.p + 1, <uint32_t>((time - seconds * NS) // 1000), 6)
    else:
        o.p = pack_float(o.p, <double>(time // 1000) / 1e6)


cdef inline void put_duration(Out* o, int64_t ns) noexcept nogil:
    """Seconds with nine decimals."""
    cdef int64_t seconds = ns // NS
    if Out is Json:
        o.p = put_u64(o.p, <uint64_t>seconds)
        o.p[0] = 46
        o.p = put_digits(o.p + 1, <uint32_t>(ns - seconds * NS), 9)
    else:
        o.p = pack_float(o.p, <double>ns / 1e9)


cdef inline void put_address(Out* o, const uint8_t* address, uint8_t family) noexcept nogil:
    cdef char* start = o.p
    cdef char* end
    # One byte stands before the text: a quote, or a length below 32; a longer text moves on.
    end = put_ipv4(start + 1, address) if family == 4 else put_ipv6(start + 1, address)
    if Out is Json:
        start[0] = 34
        end[0] = 34
        o.p = end + 1
    else:
        if end - start - 1 < 32:
            start[0] = <char>(0xA0 | (end - start - 1))
            o.p = end
        else:
            o.p = put_ipv6(pack_length(start, <uint32_t>(end - start - 1)), address)


# --- maps and lists ------------------------------------------------------------------------------

cdef inline char* map_begin(Out* o, int n) noexcept nogil:
    """A map of n pairs.  Returns the place of the head, for map_end."""
    cdef char* head = o.p
    if Out is Json:
        o.p[0] = 123
        o.p += 1
    else:
        if n < 16:
            o.p[0] = <char>(0x80 | n)
            o.p += 1
        else:
            o.p[0] = <char>0xDE
            o.p[1] = <char>(n >> 8)
            o.p[2] = <char>n
            o.p += 3
    return head


cdef inline void map_end(Out* o) noexcept nogil:
    if Out is Json:
        o.p[0] = 125
        o.p += 1


cdef inline void put_key(Out* o, const char* name) noexcept nogil:
    cdef size_t n = strlen(name)
    if Out is Json:
        if (o.p - 1)[0] != 123:
            o.p = put(o.p, b", ")
        o.p[0] = 34
        memcpy(o.p + 1, name, n)
        o.p = put(o.p + 1 + n, b"\": ")
    else:
        o.p[0] = <char>(0xA0 | n)
        memcpy(o.p + 1, name, n)
        o.p += 1 + n


cdef inline void next_key(Out* o, const char* key) noexcept nogil:
    """A key that is not a map's first, written as it stands in JSON: `, "name": `.  So it is one
    copy of constant length there; msgpack takes the name out of it."""
    cdef size_t n
    if Out is Json:
        o.p = put(o.p, key)
    else:
        n = strlen(key) - 6
        o.p[0] = <char>(0xA0 | n)
        memcpy(o.p + 1, key + 3, n)
        o.p += 1 + n


cdef inline void list_begin(Out* o, uint32_t n) noexcept nogil:
    if Out is Json:
        o.p[0] = 91
        o.p += 1
    else:
        if n < 16:
            o.p[0] = <char>(0x90 | n)
            o.p += 1
        elif n < 65536:
            o.p[0] = <char>0xDC
            o.p[1] = <char>(n >> 8)
            o.p[2] = <char>n
            o.p += 3
        else:
            o.p[0] = <char>0xDD
            n = as_big32(n)
            memcpy(o.p + 1, &n, 4)
            o.p += 5


cdef inline void list_item(Out* o, uint32_t i) noexcept nogil:
    """Before item number i."""
    if Out is Json:
        if i:
            o.p = put(o.p, b", ")


cdef inline void list_end(Out* o) noexcept nogil:
    if Out is Json:
        o.p[0] = 93
        o.p += 1
