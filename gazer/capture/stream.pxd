"""Bytes of a capture file, from a descriptor, through a buffer of our own.

What a reader does: ask for the next n bytes to be there (`stream_need`), look at them where they
stand (`stream_at`), step over them (`stream_step`).  Nothing is consumed before it is complete, so
a reader may leave in the middle of anything and come back.

    buffer ....... begin ................. end ........ capacity
                   |<-- stream_left ------>|

Rules:

- No call waits longer than WAIT_MS.  A pipe, socket or terminal is polled before it is read; a
  signal (EINTR) or a descriptor with nothing to give ends the wait with STREAM_WAIT.  Whoever gets
  that looks at its stop flag and asks again.  Regular files don't wait.
- Where there is nothing to read, and something was read since the last STREAM_WAIT, that is said
  at once: who gathers frames into batches hands on what there is before the wait, not behind it.
- The buffer grows to the largest n that was ever asked for; the reader bounds n.
- `offset` counts from the first byte of the (decompressed) file, for messages.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef enum StreamResult:
    STREAM_ERROR = -1   # `error` holds the errno
    STREAM_END = 0      # fewer than n bytes are left, and no more will come
    STREAM_READY = 1
    STREAM_WAIT = 2     # not yet: ask again

cdef enum:
    WAIT_MS = 100       # well under any heartbeat; also how late a stop flag may be seen


cdef struct Stream:
    int fd              # owned; -1 once closed
    bint waits          # may have nothing to give: poll first
    bint ended          # read() said so
    bint fresh          # something was read since the last STREAM_WAIT
    int error
    uint8_t* buffer
    size_t capacity
    size_t begin
    size_t end
    uint64_t offset     # of `begin`, in the file


cdef int64_t milliseconds() noexcept nogil     # on the monotonic clock
cdef int stream_open(Stream* s, int fd, const uint8_t* first, size_t n) noexcept nogil
cdef void stream_close(Stream* s) noexcept nogil
cdef int stream_fill(Stream* s, size_t n) noexcept nogil


cdef inline size_t stream_left(const Stream* s) noexcept nogil:
    """Bytes that are there now."""
    return s.end - s.begin


cdef inline int stream_need(Stream* s, size_t n) noexcept nogil:
    """Make the next n bytes stand at stream_at().  Returns a StreamResult; earlier pointers into
    the stream are void."""
    if n <= s.end - s.begin:
        return STREAM_READY
    return stream_fill(s, n)


cdef inline const uint8_t* stream_at(const Stream* s) noexcept nogil:
    return s.buffer + s.begin


cdef inline void stream_step(Stream* s, size_t n) noexcept nogil:
    """Step over n bytes that are there; what they were stays in place until the next
    stream_need()."""
    s.begin += n
    s.offset += n
