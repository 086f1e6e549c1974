"""The OPT pseudo-record (EDNS, RFC 6891) as one line of text; see rdata_opt.pyx."""

from libc.stdint cimport uint16_t, uint32_t
from gazer.cursor cimport Cursor
from gazer.text cimport Arena, Text
from gazer.workers.names cimport Names

cdef enum OptionCode:
    OPTION_NSID = 3
    OPTION_DAU = 5
    OPTION_DHU = 6
    OPTION_N3U = 7
    OPTION_ECS = 8
    OPTION_EXPIRE = 9
    OPTION_COOKIE = 10
    OPTION_KEEPALIVE = 11
    OPTION_PADDING = 12
    OPTION_KEYTAG = 14
    OPTION_EDE = 15

# The whole record: rdata at the cursor, and what an OPT record keeps in the fields of class (the
# UDP size) and TTL (extended rcode, version, flags).  Returns OK, BAD_RDATA or NO_ROOM, as
# rdata_render does; the cursor then stands at c.end.
cdef int opt_render(Names* names, Cursor* c, uint16_t udp_size, uint32_t ttl,
                    Arena* arena, Text* out) noexcept nogil

# The options alone, each with a space before it, appended to the arena.  Returns OK, BAD_RDATA
# (`whole` tells whether all of it was shown nevertheless), or NO_ROOM; adds to `escapes`.
cdef int options_render(Cursor* c, Arena* arena, uint32_t* escapes, bint* whole) noexcept nogil

# The value of a client subnet option, v.pos to v.end, as 192.0.2.0/24/0 (address, source and scope
# prefix length; RFC 7871, section 6): up to ECS_TEXT bytes.  NULL if it is not one.
cdef enum:
    ECS_TEXT = 53
cdef char* put_ecs(char* w, Cursor* v) noexcept nogil
