"""Text as it is built for an event: an arena that pieces of text are appended to, and the
writers of numbers and addresses.

A `Text` is a piece of an arena.  All text in an arena is printable ASCII (0x20 to 0x7e): what a
packet holds beyond that has been escaped on the way in (RFC 1035, section 5.1; RFC 4343,
section 2.1).  So only `"` and `\\` need an escape in JSON, and `escapes` counts them: the JSON form
is exactly `length + escapes` bytes, and where `escapes` is 0 it is a plain copy.

Writers take the place to write to and return the place after what they wrote; the caller has made
sure of the room (each states what it may need).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, strlen


cdef struct Text:
    uint32_t offset      # in the arena
    uint32_t length      # bytes
    uint32_t escapes     # of these, the bytes that JSON must escape


cdef struct Arena:
    char* base           # COPY_SLACK bytes beyond `capacity` may be read
    uint32_t used
    uint32_t capacity


cdef inline bint arena_room(const Arena* a, uint32_t n) noexcept nogil:
    """True if n more bytes fit."""
    return n <= a.capacity - a.used


cdef inline char* arena_end(Arena* a) noexcept nogil:
    """Where the next byte goes; make sure of room first."""
    return a.base + a.used


cdef inline void arena_commit(Arena* a, const char* end, uint32_t escapes,
                              Text* out) noexcept nogil:
    """What was written from arena_end(a) up to `end` is now a Text."""
    out.offset = a.used
    out.length = <uint32_t>(end - (a.base + a.used))
    out.escapes = escapes
    a.used += out.length


cdef inline char* put(char* w, const char* literal) noexcept nogil:
    """A literal: its length is a constant once this is inlined."""
    cdef size_t n = strlen(literal)
    memcpy(w, literal, n)
    return w + n


cdef inline char* put_bytes(char* w, const char* s, size_t n) noexcept nogil:
    memcpy(w, s, n)
    return w + n


cdef extern from "fast.h" nogil:
    enum:
        COPY_SLACK
    char* copy_short(char* to, const char* source, size_t n)
    bint copy_plain(char* to, const uint8_t* source, unsigned int n)


cdef inline char* put_piece(char* w, const Arena* a, uint32_t offset, uint32_t n) noexcept nogil:
    """A piece of the arena; needs COPY_SLACK bytes of room more, behind it and behind the arena."""
    if n <= 128:
        return copy_short(w, a.base + offset, n)
    return put_bytes(w, a.base + offset, n)


cdef char* put_u64(char* w, uint64_t v) noexcept nogil      # up to 20 bytes
cdef char* put_u16(char* w, uint16_t v) noexcept nogil      # up to 5 bytes; faster
cdef char* put_digits(char* w, uint32_t v, int width) noexcept nogil   # exactly `width`
cdef char* put_ipv4(char* w, const uint8_t* a) noexcept nogil   # 4 bytes in, up to 15 out
cdef char* put_ip(char* w, const uint8_t* a, int family) noexcept nogil     # of either family
cdef char* put_ipv6(char* w, const uint8_t* a) noexcept nogil   # 16 bytes in, up to 45 out
cdef char* put_ddd(char* w, uint8_t b) noexcept nogil       # \DDD: exactly 4 bytes
cdef char* put_hex(char* w, const uint8_t* p, uint32_t n) noexcept nogil   # 2n bytes, lower case
