"""The encodings that record data is written in.

- base64 (RFC 4648, section 4) and base32hex without padding, lower case (section 7; RFC 5155,
  section 3.3), never with spaces in them;
- the <character-string> in double quotes (RFC 1035, section 5.1): `"` and `\\` get a backslash,
  octets outside 0x20 to 0x7e become \\DDD;
- the items of a comma-separated list within such a string (RFC 9460, appendix A.1): first `,` and
  `\\` get a backslash, then the rule above applies to what that gave;
- unknown data (RFC 3597, section 5): `\\# 4 c0a80001`;
- a time as YYYYMMDDHHMMSS (RFC 4034, section 3.2).
"""

from libc.stdint cimport uint8_t, uint32_t
from gazer.text cimport put, put_ddd, put_digits, put_hex, put_u64

cdef const char* BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
cdef const char* BASE32HEX = "0123456789abcdefghijklmnopqrstuv"

# What an octet of a quoted string becomes: itself; backslash and itself; \DDD.
cdef enum:
    PLAIN = 0
    BACKSLASH = 1
    DECIMAL = 2

cdef uint8_t OCTET[256]

# The days of a year before each month, March being the first; 366 ends the list.
cdef uint32_t[13] MONTH_START
MONTH_START[:] = [0, 31, 61, 92, 122, 153, 184, 214, 245, 275, 306, 337, 366]


cdef void fill_table():
    cdef int i
    for i in range(256):
        OCTET[i] = PLAIN if 0x20 <= i <= 0x7e else DECIMAL
    OCTET[34] = BACKSLASH
    OCTET[92] = BACKSLASH


fill_table()


cdef char* put_base64(char* w, const uint8_t* p, uint32_t n) noexcept nogil:
    cdef const char* digits = BASE64    # or it is read anew after each byte written
    cdef uint32_t v
    while n >= 3:
        v = (<uint32_t>p[0] << 16) | (<uint32_t>p[1] << 8) | p[2]
        w[0] = digits[v >> 18]
        w[1] = digits[(v >> 12) & 63]
        w[2] = digits[(v >> 6) & 63]
        w[3] = digits[v & 63]
        w += 4
        p += 3
        n -= 3
    if n == 0:
        return w
    v = <uint32_t>p[0] << 16
    if n == 2:
        v |= <uint32_t>p[1] << 8
    w[0] = digits[v >> 18]
    w[1] = digits[(v >> 12) & 63]
    w[2] = digits[(v >> 6) & 63] if n == 2 else 61
    w[3] = 61
    return w + 4


cdef char* put_base32hex(char* w, const uint8_t* p, uint32_t n) noexcept nogil:
    cdef uint32_t bits = 0      # not yet written: the low `have` bits
    cdef int have = 0
    cdef uint32_t i
    for i in range(n):
        bits = ((bits & 31) << 8) | p[i]
        have += 8
        while have >= 5:
            have -= 5
            w[0] = BASE32HEX[(bits >> have) & 31]
            w += 1
    if have:
        w[0] = BASE32HEX[(bits << (5 - have)) & 31]
        w += 1
    return w


cdef char* put_quoted(char* w, const uint8_t* p, uint32_t n, uint32_t* escapes) noexcept nogil:
    cdef uint32_t i, count = 2
    cdef uint8_t kind
    w[0] = 34
    w += 1
    for i in range(n):
        kind = OCTET[p[i]]
        if kind == PLAIN:
            w[0] = <char>p[i]
            w += 1
        elif kind == DECIMAL:
            w = put_ddd(w, p[i])
            count += 1
        else:
            w[0] = 92
            w[1] = <char>p[i]
            w += 2
            count += 2
    w[0] = 34
    escapes[0] += count
    return w + 1


cdef char* put_list_item(char* w, const uint8_t* p, uint32_t n, uint32_t* escapes) noexcept nogil:
    cdef uint32_t i, count = 0
    cdef uint8_t b
    for i in range(n):
        b = p[i]
        if b == 44:
            w = put(w, b"\\\\,")
            count += 2
        elif b == 92:
            w = put(w, b"\\\\\\\\")
            count += 4
        elif b == 34:
            w = put(w, b"\\\"")
            count += 2
        elif OCTET[b] == DECIMAL:
            w = put_ddd(w, b)
            count += 1
        else:
            w[0] = <char>b
            w += 1
    escapes[0] += count
    return w


cdef char* put_generic(char* w, const uint8_t* p, uint32_t n, uint32_t* escapes) noexcept nogil:
    w = put_u64(put(w, b"\\# "), n)
    escapes[0] += 1
    if n:
        w[0] = 32
        w = put_hex(w + 1, p, n)
    return w


cdef char* put_time(char* w, uint32_t seconds) noexcept nogil:
    # 32 bits of seconds end in 2106.  Count days from 1 March 1968, in years that begin in March,
    # so that a leap day is the last day of four years; 2100 has none: step over it.
    cdef uint32_t day = seconds // 86400 + 671
    cdef uint32_t clock = seconds % 86400
    cdef uint32_t year, month = 0
    if day >= 48212:
        day += 1
    year = 1968 + day // 1461 * 4
    day %= 1461
    if day == 1460:
        year += 3
        day = 365
    else:
        year += day // 365
        day %= 365
    while day >= MONTH_START[month + 1]:
        month += 1
    day -= MONTH_START[month] - 1
    month += 3
    if month > 12:
        month -= 12
        year += 1
    w = put_digits(w, year, 4)
    w = put_digits(w, month, 2)
    w = put_digits(w, day, 2)
    w = put_digits(w, clock // 3600, 2)
    w = put_digits(w, clock // 60 % 60, 2)
    return put_digits(w, clock % 60, 2)
