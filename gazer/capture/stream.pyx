"""See stream.pxd."""

from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove
from posix.stat cimport S_ISREG, fstat, struct_stat
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close, read

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    enum:
        POLLIN
    int poll(pollfd* fds, unsigned long count, int timeout)

cdef enum:
    # One read(2) of this size costs 1/1000 of what its frames cost; four times as much is not
    # measurably faster, and falls out of a small L2 cache.
    BUFFER = 256 * 1024


cdef int64_t milliseconds() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000 + t.tv_nsec // 1000000


cdef int stream_open(Stream* s, int fd, const uint8_t* first, size_t n) noexcept nogil:
    """Begin to read `fd`, which the stream owns from here on, with the n bytes at `first` (already
    taken from it) in front.  Returns 0, or an errno."""
    cdef struct_stat st
    s.fd = fd
    s.waits = s.ended = s.fresh = False
    s.error = 0
    s.begin = s.end = s.capacity = 0
    s.offset = 0
    s.buffer = NULL
    if fstat(fd, &st) != 0:
        return errno
    s.waits = not S_ISREG(st.st_mode)
    s.capacity = BUFFER if BUFFER > n else n
    s.buffer = <uint8_t*>malloc(s.capacity)
    if s.buffer == NULL:
        s.capacity = 0
        return ENOMEM
    if n > 0:
        memcpy(s.buffer, first, n)
    s.end = n
    return 0


cdef void stream_close(Stream* s) noexcept nogil:
    """Close the descriptor and give the buffer back; pointers into it are void.  May be called
    again, and on zeroed memory whose fd was set to -1."""
    if s.fd >= 0:
        close(s.fd)
    s.fd = -1
    s.ended = True
    free(s.buffer)
    s.buffer = NULL
    s.begin = s.end = s.capacity = 0


cdef int stream_failed(Stream* s, int error) noexcept nogil:
    s.error = error
    return STREAM_ERROR


cdef int stream_fill(Stream* s, size_t n) noexcept nogil:
    """stream_need() where the bytes are not there yet."""
    cdef pollfd p
    cdef int64_t since = 0, waited = 0
    cdef int ready
    cdef ssize_t got
    cdef uint8_t* grown
    if s.error != 0:
        return STREAM_ERROR
    if s.begin > 0:     # less than one frame is left: this moves little
        memmove(s.buffer, s.buffer + s.begin, s.end - s.begin)
        s.end -= s.begin
        s.begin = 0
    if n > s.capacity:
        if s.fd < 0:
            return STREAM_END
        grown = <uint8_t*>realloc(s.buffer, n)
        if grown == NULL:
            return stream_failed(s, ENOMEM)
        s.buffer = grown
        s.capacity = n
    while s.end < n:
        if s.ended:
            return STREAM_END
        if s.waits:
            if since == 0:
                since = milliseconds()
            else:       # bytes that drip must not keep us here either
                waited = milliseconds() - since
                if waited >= WAIT_MS:
                    s.fresh = False
                    return STREAM_WAIT
            p.fd = s.fd
            p.events = POLLIN
            p.revents = 0
            ready = poll(&p, 1, 0 if s.fresh else <int>(WAIT_MS - waited))
            if ready == 0:
                s.fresh = False
                return STREAM_WAIT
            if ready < 0:
                return STREAM_WAIT if errno == EINTR else stream_failed(s, errno)
        got = read(s.fd, s.buffer + s.end, s.capacity - s.end)
        if got < 0:
            if errno == EINTR or errno == EAGAIN:
                return STREAM_WAIT
            return stream_failed(s, errno)
        if got == 0:
            s.ended = True
        s.fresh = True
        s.end += got
    return STREAM_READY
