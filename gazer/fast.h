/* Short copies and tests on eight bytes at a time, for text that is mostly shorter than 32 bytes,
 * where a call of memcpy costs more than the copy. */
#ifndef GAZER_FAST_H
#define GAZER_FAST_H
#include <stdint.h>
#include <string.h>

#define EACH(byte) (0x0101010101010101ULL * (byte))

/* Bytes that copy_short may touch behind the n that count, at both ends. */
#define COPY_SLACK 32

/* Copy n bytes; may read and write up to COPY_SLACK bytes more, so both places need that room. */
static inline char *copy_short(char *to, const char *from, size_t n)
{
    char *w = to;
    char *end = to + n;
    uint64_t v[4];
    do {    /* by way of v: what is touched beyond the n may lie in both places */
        memcpy(v, from, 32);
        memcpy(w, v, 32);
        w += 32;
        from += 32;
    } while (w < end);
    return end;
}

static inline uint64_t has_zero(uint64_t v) { return (v - EACH(0x01)) & ~v & EACH(0x80); }

/* Nonzero if a byte of v is not a printable character that stands for itself in a name and in JSON:
 * outside 0x21..0x7e, or one of  " . \  */
static inline uint64_t not_plain(uint64_t v)
{
    return (v & EACH(0x80)) | ((v - EACH(0x21)) & ~v & EACH(0x80)) | has_zero(v ^ EACH(0x7f))
        | has_zero(v ^ EACH('"')) | has_zero(v ^ EACH('.')) | has_zero(v ^ EACH('\\'));
}

/* Copy a label of 1 to 63 bytes and say whether all of them are plain.  Reads exactly n bytes; may
 * write up to 8. */
static inline int copy_plain(char *to, const uint8_t *from, unsigned n)
{
    uint64_t v, bad = 0;
    unsigned i;
    if (n >= 8) {
        for (i = 0; i + 8 <= n; i += 8) {
            memcpy(&v, from + i, 8);
            memcpy(to + i, &v, 8);
            bad |= not_plain(v);
        }
        memcpy(&v, from + n - 8, 8);
        memcpy(to + n - 8, &v, 8);
        return !(bad | not_plain(v));
    }
    if (n >= 4) {
        uint32_t a, b;
        memcpy(&a, from, 4);
        memcpy(&b, from + n - 4, 4);
        memcpy(to, &a, 4);
        memcpy(to + n - 4, &b, 4);
        return !not_plain((uint64_t)b << 32 | a);
    }
    v = EACH('a');
    for (i = 0; i < n; i++) {
        to[i] = (char)from[i];
        v = v << 8 | from[i];
    }
    return !not_plain(v);
}

#endif
