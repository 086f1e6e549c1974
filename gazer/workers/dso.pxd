"""DNS Stateful Operations (RFC 8490): the TLVs behind the header, as one line of text."""

from libc.stdint cimport uint32_t

from gazer.cursor cimport Cursor
from gazer.text cimport Arena, Text

cdef enum:
    DSO_TEXT = 1024         # octets of text for whole TLVs; `, ...` may follow
    DSO_ROOM = DSO_TEXT + 32    # what it may write to meanwhile


# Reads all that is left of the cursor; returns OK or TRUNCATED.  Where `show` is set, `out` is what
# could be read, and the arena has DSO_ROOM octets of room.
cdef int dso_render(Cursor* c, bint show, Arena* arena, Text* out) noexcept nogil
