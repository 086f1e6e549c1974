"""The parameters of SVCB and HTTPS records (RFC 9460); see rdata_svcb.pyx."""

from libc.stdint cimport uint32_t
from gazer.cursor cimport Cursor
from gazer.text cimport Arena

# Appends a space and `key="value"` for each parameter up to c.end.  Returns OK, BAD_RDATA or
# NO_ROOM; adds to `escapes`.
cdef int svcb_params(Cursor* c, Arena* arena, uint32_t* escapes) noexcept nogil
