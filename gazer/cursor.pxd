"""The one way to read bytes that strangers sent: a position in a byte range, checked in one place.

Every read asks `cursor_has` first.  A read beyond the end returns zero (or NULL), leaves the
position where it was and sets `failed`; the caller may read a whole header and look at `failed`
once.  Functions are inline, so they stand in the .pxd: a call costs one compare.

    base ............... pos ............... end
    |<-- already read -->|<-- cursor_left -->|

Positions count from `base`; in a DNS message `base` is the first byte of the DNS header, so that
a position is also what a compression pointer means (RFC 1035, section 4.1.4).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t


cdef struct Cursor:
    const uint8_t* base
    uint32_t pos
    uint32_t end
    bint failed


cdef inline Cursor cursor_over(const uint8_t* base, uint32_t pos, uint32_t end) noexcept nogil:
    """A cursor over base[0:end] that stands at `pos`; failed at once if pos > end."""
    cdef Cursor c
    c.base = base
    c.end = end
    c.failed = pos > end
    c.pos = end if c.failed else pos
    return c


cdef inline uint32_t cursor_left(const Cursor* c) noexcept nogil:
    return c.end - c.pos


cdef inline bint cursor_has(Cursor* c, uint32_t n) noexcept nogil:
    """True if n more bytes are there; else the cursor has failed."""
    if n <= c.end - c.pos:
        return True
    c.failed = True
    return False


cdef inline uint8_t cursor_u8(Cursor* c) noexcept nogil:
    cdef const uint8_t* p
    if not cursor_has(c, 1):
        return 0
    p = c.base + c.pos
    c.pos += 1
    return p[0]


cdef inline uint16_t cursor_u16(Cursor* c) noexcept nogil:
    """Two bytes, network order."""
    cdef const uint8_t* p
    if not cursor_has(c, 2):
        return 0
    p = c.base + c.pos
    c.pos += 2
    return <uint16_t>((p[0] << 8) | p[1])


cdef inline uint32_t cursor_u32(Cursor* c) noexcept nogil:
    """Four bytes, network order."""
    cdef const uint8_t* p
    if not cursor_has(c, 4):
        return 0
    p = c.base + c.pos
    c.pos += 4
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef inline bint cursor_skip(Cursor* c, uint32_t n) noexcept nogil:
    """Step over n bytes; False (and failed) if they are not there."""
    if not cursor_has(c, n):
        return False
    c.pos += n
    return True


cdef inline const uint8_t* cursor_take(Cursor* c, uint32_t n) noexcept nogil:
    """The next n bytes, stepped over; NULL (and failed) if they are not there."""
    cdef const uint8_t* p
    if not cursor_has(c, n):
        return NULL
    p = c.base + c.pos
    c.pos += n
    return p
