"""Domain names, from the wire to presentation format.

A name is a run of labels that ends with the root label or with a pointer to an earlier place in
the message (RFC 1035, section 4.1.4).  Rules here:

- Each pointer must point to a lower position than where the run that it ends began, and so lower
  than every pointer before it: a loop is not possible, and neither is a pointer forward or to
  itself.  A pointer may point to another pointer, so that alone would still allow one name
  thousands of jumps in a large message; it gets JUMPS of them, enough for a pointer after each
  label.  That makes one name cost at most 255 octets of labels and 128 jumps.
- A name has at most 255 octets (section 3.1), counted as they would stand without compression.
- Octets from 0x21 to 0x7e stand for themselves, but `.` and `\\` get a backslash; all others are
  \\DDD (RFC 4343, section 2.1).  The final dot always stands.

`Names.memo` remembers, for each label of a name rendered, where its text stands in the arena.
Most replies name the same zone over and over by pointer; such a name is then one copy.  The text
must stay where it is: whoever takes text back from the arena (a record that had no room, rdata
that was bad) calls names_forget.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset
from gazer.cursor cimport Cursor, cursor_over, cursor_skip, cursor_take, cursor_u8
from gazer.text cimport Arena, Text, arena_commit, arena_end, arena_room, copy_plain, put_ddd, \
    put_piece
from gazer.workers.anomaly cimport BAD_LABEL, NAME_TOO_LONG, NO_ROOM, OK, POINTER_LOOP, TRUNCATED

cdef enum:
    NAME_OCTETS = 255   # RFC 1035, section 3.1
    JUMPS = 128         # pointers in one name; unbound allows 256, Go's resolver 10

# What a label octet becomes: itself; itself, but JSON escapes it; backslash and itself; \DDD.
cdef enum:
    PLAIN = 0
    QUOTE = 1
    BACKSLASH = 2
    DECIMAL = 3

cdef uint8_t OCTET[256]


cdef void fill_table():
    cdef int i
    for i in range(256):
        OCTET[i] = PLAIN if 0x21 <= i <= 0x7e else DECIMAL
    OCTET[34] = QUOTE
    OCTET[46] = BACKSLASH
    OCTET[92] = BACKSLASH


fill_table()


cdef void names_begin(Names* names, const uint8_t* wire, uint32_t length) noexcept nogil:
    """From here on names are read from this message.  `names` starts as zeroed memory."""
    names.wire = wire
    names.length = length
    names.slow = 0
    names_forget(names)


cdef void names_forget(Names* names) noexcept nogil:
    """Forget the text of names: what stands in the arena is going to be written over."""
    names.generation += 1
    if names.generation == 0:       # after 2^32 of these: drop slots that would look new
        memset(names.memo, 0, sizeof(names.memo))
        names.generation = 1


cdef inline void remember(Names* names, uint32_t position, uint32_t offset,
                          uint32_t length) noexcept nogil:
    cdef MemoSlot* slot = &names.memo[position & (MEMO - 1)]
    slot.position = position
    slot.generation = names.generation
    slot.offset = offset
    slot.length = length


cdef int name_render(Names* names, Cursor* c, Arena* arena, Text* out) noexcept nogil:
    """Append the name at the cursor to the arena and step over it.

    The cursor's base is the start of the message.  Returns an Anomaly or NO_ROOM; then neither
    `out` nor the cursor's position means anything.
    """
    cdef Cursor j = c[0]            # walks the labels, wherever the pointers lead
    cdef uint32_t lowest = c.pos    # where the present run of labels began
    cdef uint32_t octets = 1        # the root label's
    cdef uint32_t escapes = 0
    cdef uint32_t labels = 0, jumps = 0, i, position, target
    cdef uint32_t at[128]           # where each label stands in the message, and its text
    cdef uint32_t offset[128]
    cdef const uint8_t* label
    cdef MemoSlot* slot
    cdef char* start
    cdef char* w
    cdef uint8_t length, b, kind
    if not arena_room(arena, NAME_TEXT + 8):
        return NO_ROOM
    start = w = arena_end(arena)
    while True:
        position = j.pos
        length = cursor_u8(&j)
        if j.failed:
            return TRUNCATED
        if length == 0:
            break
        if length >= 64:
            if length < 192:
                return BAD_LABEL
            target = ((length & 63) << 8) | cursor_u8(&j)
            if j.failed:
                return TRUNCATED
            if target >= lowest or jumps == JUMPS:
                return POINTER_LOOP
            jumps += 1
            if jumps == 1:
                c.pos = j.pos
            slot = &names.memo[target & (MEMO - 1)]
            if slot.position == target and slot.generation == names.generation:
                # Only names without escapes are remembered: text and octets are of one length.
                octets += slot.length
                if octets > NAME_OCTETS:
                    return NAME_TOO_LONG
                w = put_piece(w, arena, slot.offset, slot.length)
                break
            lowest = target
            j = cursor_over(names.wire, target, names.length)
            continue
        octets += length + 1
        if octets > NAME_OCTETS:
            return NAME_TOO_LONG
        label = cursor_take(&j, length)
        if label == NULL:
            return TRUNCATED
        at[labels] = position
        offset[labels] = <uint32_t>(w - start)
        labels += 1
        if copy_plain(w, label, length):
            w += length
            w[0] = 46
            w += 1
            continue
        for i in range(length):
            b = label[i]
            kind = OCTET[b]
            if kind == PLAIN:
                w[0] = <char>b
                w += 1
            elif kind == DECIMAL:
                w = put_ddd(w, b)
                escapes += 1
            elif kind == QUOTE:
                w[0] = <char>b
                w += 1
                escapes += 1
            else:
                w[0] = 92
                w[1] = <char>b
                w += 2
                escapes += 1 + (b == 92)
        w[0] = 46
        w += 1
    if w == start:
        w[0] = 46
        w += 1
    if jumps == 0:
        c.pos = j.pos
    arena_commit(arena, w, escapes, out)
    if escapes == 0:
        for i in range(labels):
            remember(names, at[i], out.offset + offset[i], out.length - offset[i])
    return OK


cdef int name_skip(const Names* names, Cursor* c) noexcept nogil:
    """Step over the name at the cursor without following pointers.  Returns an Anomaly."""
    cdef uint8_t length
    while True:
        length = cursor_u8(c)
        if length == 0:
            return TRUNCATED if c.failed else OK
        if length >= 192:
            cursor_u8(c)
            return TRUNCATED if c.failed else OK
        if length >= 64:
            return BAD_LABEL
        if not cursor_skip(c, length):
            return TRUNCATED
