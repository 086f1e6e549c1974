"""Where in a TCP stream a DNS message begins; see framing.pxd."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from gazer.cursor cimport (
    Cursor, cursor_has, cursor_over, cursor_skip, cursor_u8, cursor_u16)

cdef enum:
    HEADER = 12
    MAX_NAME = 255
    FLAG_QR = 0x8000
    FLAG_Z = 0x0040
    OPCODE = 0x7800
    OPCODES = 1 << 0 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6    # QUERY STATUS NOTIFY UPDATE DSO


cdef inline bint known_class(uint16_t klass) noexcept nogil:
    return klass == 1 or klass == 3 or klass == 4 or klass == 254 or klass == 255


cdef inline Verdict has(Cursor* c, uint32_t n, uint32_t end) noexcept nogil:
    """PLAUSIBLE if n more octets are here; REFUSED if the message ends (at `end`) before them."""
    if c.pos + n > end:
        return REFUSED
    return PLAUSIBLE if cursor_has(c, n) else UNDECIDED


cdef Verdict framing_judge(const uint8_t* octets, uint32_t n) noexcept nogil:
    """Whether a message begins at octets[0], of which n are here."""
    cdef Cursor c = cursor_over(octets, 0, n)
    cdef uint32_t end, name
    cdef uint16_t flags, questions, klass
    cdef uint8_t label
    cdef Verdict v
    if n < 2:
        return UNDECIDED
    end = 2 + cursor_u16(&c)
    if end < 2 + HEADER:
        return REFUSED
    v = has(&c, 4, end)
    if v != PLAUSIBLE:
        return v
    cursor_skip(&c, 2)
    flags = cursor_u16(&c)
    if flags & FLAG_Z or not (OPCODES >> ((flags >> 11) & 15)) & 1:
        return REFUSED
    v = has(&c, 2, end)
    if v != PLAUSIBLE:
        return v
    questions = cursor_u16(&c)
    if questions > 1 or (questions == 0 and (flags & FLAG_QR == 0 or flags & OPCODE)):
        return REFUSED
    v = has(&c, 6, end)
    if v != PLAUSIBLE:
        return v
    if cursor_u16(&c) == 0 and questions == 0:
        return REFUSED
    cursor_skip(&c, 4)
    name = 0
    while True:
        v = has(&c, 1, end)
        if v != PLAUSIBLE:
            return v
        label = cursor_u8(&c)
        name += 1 + label
        if label > 63 or name > MAX_NAME:
            return REFUSED
        if label == 0:
            break
        v = has(&c, label, end)
        if v != PLAUSIBLE:
            return v
        cursor_skip(&c, label)
    v = has(&c, 4, end)
    if v != PLAUSIBLE:
        return v
    cursor_skip(&c, 2)
    klass = cursor_u16(&c)
    if not known_class(klass):
        return REFUSED
    if questions == 0:
        v = has(&c, 6, end)
        if v != PLAUSIBLE:
            return v
        cursor_skip(&c, 4)
        if cursor_u16(&c) > end - c.pos:
            return REFUSED
    return PLAUSIBLE


cdef uint32_t framing_search(const uint8_t* octets, uint32_t n, uint32_t limit,
                             Verdict* verdict) noexcept nogil:
    """The first offset below `limit` that is not refused, with its verdict; else `limit`."""
    cdef uint32_t offset
    for offset in range(limit):
        verdict[0] = framing_judge(octets + offset, n - offset)
        if verdict[0] != REFUSED:
            return offset
    verdict[0] = REFUSED
    return limit
