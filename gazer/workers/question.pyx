"""The question section, hashed and compared; see question.pxd.

Only messages whose questions have been decoded once come here, so every name is known to be good;
the walks below are bounds-checked all the same.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from gazer.cursor cimport Cursor, cursor_over, cursor_skip, cursor_take, cursor_u8

cdef extern from "mix.h" nogil:
    uint64_t fold_multiply(uint64_t a, uint64_t b)

cdef enum:
    CANONICAL = 260         # a name of 255 octets, type and class

cdef uint64_t FOLD_CASE = 0x2020202020202020ULL

cdef uint8_t LOWER[256]


cdef void fill_table():
    cdef int i
    for i in range(256):
        LOWER[i] = i + 32 if 65 <= i <= 90 else i


fill_table()


cdef bint question_plain(const uint8_t* wire, uint32_t end) noexcept nogil:
    """True if the one question in wire[12:end] has no compression pointer: its bytes are it."""
    cdef Cursor c = cursor_over(wire, QUESTION_AT, end)
    cdef uint8_t length
    while True:
        length = cursor_u8(&c)
        if length == 0:
            return not c.failed and c.pos + 4 == end
        if length >= 64 or not cursor_skip(&c, length):
            return False


cdef uint32_t canonical(const uint8_t* wire, uint32_t length, Cursor* c,
                        uint8_t* out) noexcept nogil:
    """The question at the cursor in lower case and uncompressed, as bytes; 0 if it is none."""
    cdef Cursor j = c[0]
    cdef uint32_t n = 0, lowest = c.pos, target, i
    cdef uint8_t size
    cdef const uint8_t* p
    cdef bint jumped = False
    while True:
        size = cursor_u8(&j)
        if j.failed:
            return 0
        if size >= 64:
            target = ((size & 63) << 8) | cursor_u8(&j)
            if size < 192 or j.failed or target >= lowest:
                return 0
            if not jumped:
                c.pos = j.pos
                jumped = True
            lowest = target
            j = cursor_over(wire, target, length)
            continue
        p = cursor_take(&j, size)
        if p == NULL or n + size + 1 > 255:
            return 0
        out[n] = size
        for i in range(size):
            out[n + 1 + i] = LOWER[p[i]]
        n += size + 1
        if size == 0:
            break
    if not jumped:
        c.pos = j.pos
    p = cursor_take(c, 4)
    if p == NULL:
        return 0
    memcpy(out + n, p, 4)
    return n + 4


cdef uint64_t hash_bytes(const uint8_t* p, uint32_t n, uint64_t seed, uint64_t fold) noexcept nogil:
    """A hash of n bytes (any number) that nobody can steer without the seed.

    `fold` is or-ed to each eight bytes: FOLD_CASE makes letters of both cases equal (and a few
    other bytes, which costs a comparison now and then), 0 takes them as they are.
    """
    cdef uint64_t h = seed ^ n
    cdef uint64_t a, b
    while n > 16:
        memcpy(&a, p, 8)
        memcpy(&b, p + 8, 8)
        h = fold_multiply((a | fold) ^ h, (b | fold) ^ 0xA0761D6478BD642FULL)
        p += 16
        n -= 16
    a = b = 0
    if n >= 8:
        memcpy(&a, p, 8)
        memcpy(&b, p + n - 8, 8)
    elif n >= 4:
        memcpy(&a, p, 4)
        memcpy(&b, p + n - 4, 4)
    elif n:
        a = p[0] | <uint64_t>p[n >> 1] << 8 | <uint64_t>p[n - 1] << 16
    h = fold_multiply((a | fold) ^ h, (b | fold) ^ 0xE7037ED1A0B428DBULL)
    return fold_multiply(h ^ seed, 0x8EBC6AF09C88C6E3ULL)


cdef inline uint64_t hash_question(const uint8_t* p, uint32_t n, uint64_t seed) noexcept nogil:
    """One uncompressed question.  Type and class are taken as they are: folded, A (1) and SRV (33)
    would be one."""
    cdef uint32_t last = 0
    if n >= 4:
        n -= 4
        memcpy(&last, p + n, 4)
    return hash_bytes(p, n, seed ^ last * 0x9E3779B97F4A7C15ULL, FOLD_CASE)


cdef uint64_t question_hash(const uint8_t* wire, uint32_t length, uint32_t end, uint16_t count,
                            bint plain, uint64_t seed) noexcept nogil:
    """A hash of the question section that is equal for equal questions.

    `end` is where the section ends; `plain` is question_plain's answer where count is 1.
    """
    cdef uint8_t[CANONICAL] lower
    cdef Cursor c = cursor_over(wire, QUESTION_AT, length)
    cdef uint64_t h = seed
    cdef uint32_t n, _
    cdef const uint8_t* p
    if count == 1 and plain:
        n = end - QUESTION_AT
        p = cursor_take(&c, n)
        return hash_question(p, n, seed) if p != NULL else 0
    h ^= <uint64_t>count << 32
    for _ in range(min(count, <uint16_t>QUESTIONS_COMPARED)):
        n = canonical(wire, length, &c, lower)
        h = hash_question(lower, n, seed if count == 1 else h)
    return h


cdef bint question_equal(const uint8_t* a, uint32_t a_length, const uint8_t* b, uint32_t b_length,
                         uint16_t count) noexcept nogil:
    """True if both messages ask the same `count` questions, in the same order."""
    cdef uint8_t[CANONICAL] left
    cdef uint8_t[CANONICAL] right
    cdef Cursor x = cursor_over(a, QUESTION_AT, a_length)
    cdef Cursor y = cursor_over(b, QUESTION_AT, b_length)
    cdef uint32_t n, _
    for _ in range(min(count, <uint16_t>QUESTIONS_COMPARED)):
        n = canonical(a, a_length, &x, left)
        if n == 0 or canonical(b, b_length, &y, right) != n or memcmp(left, right, n) != 0:
            return False
    return True
