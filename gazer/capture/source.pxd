"""Where frames come from.  A Source gives one frame after the other; it holds no GIL and makes no
Python object for a frame."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef enum SourceResult:
    SOURCE_BROKEN = -1      # it breaks off here: Source.error says how
    SOURCE_END = 0          # all has been read
    SOURCE_FRAME = 1
    SOURCE_IDLE = 2         # live: nothing just now

cdef enum:
    FRAME_BAD_TIME = 1      # the timestamp's fraction was a second or more, or did not fit


cdef struct Frame:
    const uint8_t* data     # valid until the next call of next()
    uint32_t caplen         # bytes at `data`
    uint32_t length         # bytes on the wire
    int64_t time            # ns since 1970-01-01 UTC, as the frame has it
    int linktype            # LINKTYPE_ value, as in the file
    uint32_t flags          # FRAME_*


cdef class Source:
    cdef readonly object name       # for messages: the path, "-" or the interface
    cdef readonly object error      # one line, once next() has returned SOURCE_BROKEN
    cdef readonly unsigned long long frames     # given so far

    cdef int next(self, Frame* frame) noexcept nogil
