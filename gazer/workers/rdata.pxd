"""Record data, from the wire to presentation format."""

from libc.stdint cimport uint16_t, uint32_t
from gazer.cursor cimport Cursor
from gazer.text cimport Arena, Text
from gazer.workers.names cimport Names

# Renders names.wire[c.pos:c.end] (the rdata) as text; returns an Anomaly, or NO_ROOM.  In every
# case the cursor then stands at c.end.  Where the rdata does not fit its type the result is
# BAD_RDATA and the text is the form of RFC 3597; only NO_ROOM leaves no text, and then the arena
# is as it was.
cdef int rdata_render(Names* names, Cursor* c, uint16_t type, uint16_t klass,
                      Arena* arena, Text* out) noexcept nogil
