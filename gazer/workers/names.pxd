"""Domain names, from the wire to presentation format (RFC 1035 sections 3.1, 4.1.4 and 5.1)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from gazer.cursor cimport Cursor
from gazer.text cimport Arena, Text

cdef enum:
    MEMO = 64           # slots; a power of two
    NAME_TEXT = 1016    # longest presentation form: 254 octets of labels, at most 4 bytes each


cdef struct MemoSlot:
    uint32_t position   # where in the message a label starts
    uint32_t generation
    uint32_t offset     # where in the arena the text from that label on starts
    uint32_t length     # of that text, final dot included


cdef struct Names:
    # The message that names are read from, and the tails of names already rendered from it, so
    # that a compression pointer to one of them is a copy and not another walk.
    const uint8_t* wire
    uint32_t length
    uint32_t generation
    uint32_t slow           # records of this message that were decoded by way of Python
    MemoSlot memo[MEMO]


cdef void names_begin(Names* names, const uint8_t* wire, uint32_t length) noexcept nogil
cdef void names_forget(Names* names) noexcept nogil
cdef int name_render(Names* names, Cursor* c, Arena* arena, Text* out) noexcept nogil
cdef int name_skip(const Names* names, Cursor* c) noexcept nogil
