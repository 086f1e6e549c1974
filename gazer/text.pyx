"""The writers of numbers and addresses; see text.pxd."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef char PAIRS[200]            # "00" "01" ... "99"
cdef char OCTETS[256][4]        # "0." "1." ... "255.": the text of an octet with a dot behind it
cdef uint8_t OCTET_LENGTH[256]  # without the dot
cdef const char* HEX = "0123456789abcdef"


cdef void fill_tables():
    cdef int i, j
    for i in range(100):
        PAIRS[2 * i] = 48 + i // 10
        PAIRS[2 * i + 1] = 48 + i % 10
    for i in range(256):
        text = b"%d." % i
        OCTET_LENGTH[i] = len(text) - 1
        for j in range(4):
            OCTETS[i][j] = text[j] if j < len(text) else 0


fill_tables()


cdef char* put_u64(char* w, uint64_t v) noexcept nogil:
    cdef char digits[20]
    cdef int i = 20
    cdef uint64_t q
    while v >= 100:
        q = v // 100
        i -= 2
        memcpy(&digits[i], &PAIRS[2 * (v - q * 100)], 2)
        v = q
    if v >= 10:
        i -= 2
        memcpy(&digits[i], &PAIRS[2 * v], 2)
    else:
        i -= 1
        digits[i] = <char>(48 + v)
    memcpy(w, &digits[i], 20 - i)
    return w + (20 - i)


cdef char* put_u16(char* w, uint16_t v) noexcept nogil:
    cdef unsigned int high, low
    if v < 10:
        w[0] = <char>(48 + v)
        return w + 1
    if v < 100:
        memcpy(w, &PAIRS[2 * v], 2)
        return w + 2
    high = v // 100
    low = v - high * 100
    if high < 10:
        w[0] = <char>(48 + high)
        memcpy(w + 1, &PAIRS[2 * low], 2)
        return w + 3
    if high < 100:
        memcpy(w, &PAIRS[2 * high], 2)
        memcpy(w + 2, &PAIRS[2 * low], 2)
        return w + 4
    w[0] = <char>(48 + high // 100)
    memcpy(w + 1, &PAIRS[2 * (high % 100)], 2)
    memcpy(w + 3, &PAIRS[2 * low], 2)
    return w + 5


cdef char* put_digits(char* w, uint32_t v, int width) noexcept nogil:
    cdef int i = width
    while i > 0:
        i -= 1
        w[i] = <char>(48 + v % 10)
        v //= 10
    return w + width


cdef char* put_ipv4(char* w, const uint8_t* a) noexcept nogil:
    # Each octet is copied as four bytes with its dot, and the next one starts over the excess; the
    # last one is copied by its length alone.  For 0.0.0.0 and its like the third one's copy still
    # goes one byte beyond the text, never beyond the 15 bytes that the caller made room for.
    memcpy(w, OCTETS[a[0]], 4)
    w += OCTET_LENGTH[a[0]] + 1
    memcpy(w, OCTETS[a[1]], 4)
    w += OCTET_LENGTH[a[1]] + 1
    memcpy(w, OCTETS[a[2]], 4)
    w += OCTET_LENGTH[a[2]] + 1
    memcpy(w, OCTETS[a[3]], OCTET_LENGTH[a[3]])
    return w + OCTET_LENGTH[a[3]]


cdef inline char* put_group(char* w, unsigned int v) noexcept nogil:
    """A 16-bit group of an IPv6 address: hexadecimal without leading zeros."""
    if v >= 0x1000:
        w[0] = HEX[v >> 12]
        w += 1
    if v >= 0x100:
        w[0] = HEX[(v >> 8) & 15]
        w += 1
    if v >= 0x10:
        w[0] = HEX[(v >> 4) & 15]
        w += 1
    w[0] = HEX[v & 15]
    return w + 1


cdef char* put_ipv6(char* w, const uint8_t* a) noexcept nogil:
    # RFC 5952: the longest run of two or more zero groups, the first among equals, becomes "::";
    # section 5: IPv4-mapped addresses (::ffff:0:0/96) show their last 32 bits in dotted form.
    cdef unsigned int groups[8]
    cdef int i, run = -1, run_length = 1, start = -1
    for i in range(8):
        groups[i] = (a[2 * i] << 8) | a[2 * i + 1]
        if groups[i]:
            start = -1
        else:
            if start < 0:
                start = i
            if i - start + 1 > run_length:
                run = start
                run_length = i - start + 1
    if run == 0 and run_length == 5 and groups[5] == 0xFFFF:
        memcpy(w, b"::ffff:", 7)
        return put_ipv4(w + 7, a + 12)
    i = 0
    while i < 8:
        if i == run:
            w[0] = 58
            w[1] = 58
            w += 2
            i += run_length
            continue
        if i and i != run + run_length:
            w[0] = 58
            w += 1
        w = put_group(w, groups[i])
        i += 1
    return w


cdef char* put_ddd(char* w, uint8_t b) noexcept nogil:
    w[0] = 92
    w[1] = <char>(48 + b // 100)
    memcpy(w + 2, &PAIRS[2 * (b % 100)], 2)
    return w + 4


cdef char* put_hex(char* w, const uint8_t* p, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        w[2 * i] = HEX[p[i] >> 4]
        w[2 * i + 1] = HEX[p[i] & 15]
    return w + 2 * n


cdef char* put_ip(char* w, const uint8_t* a, int family) noexcept nogil:
    return put_ipv4(w, a) if family == 4 else put_ipv6(w, a)
