"""A door for tests and benchmarks: sources seen from Python, one frame after the other."""

from libc.string cimport memset

from gazer.capture.live cimport Tally, widen, widen_drops
from gazer.capture.source cimport (
    Frame, SOURCE_BROKEN, SOURCE_END, SOURCE_FRAME, SOURCE_IDLE, Source,
)

RESULTS = {
    SOURCE_BROKEN: "broken", SOURCE_END: "end", SOURCE_FRAME: "frame", SOURCE_IDLE: "idle",
}


def read_one(Source source not None):
    """(result, frame): one call of next(); the frame as in read_all, or None."""
    cdef Frame f
    cdef int r
    with nogil:
        r = source.next(&f)
    if r != SOURCE_FRAME:
        return RESULTS[r], None
    return RESULTS[r], (
        (<const unsigned char*>f.data)[:f.caplen], f.caplen, f.length, f.time, f.linktype, f.flags)


def read_all(Source source not None):
    """(frames, result, error); a frame is (data, caplen, length, time_ns, linktype, flags).
    Idle is waited out; signals are let in meanwhile."""
    frames = []
    while True:
        result, frame = read_one(source)
        if result == "frame":
            frames.append(frame)
        elif result != "idle":
            return frames, result, source.error


def count_all(Source source not None):
    """(frames, bytes, result) without an object for a frame, as capture reads."""
    cdef Frame f
    cdef int r = SOURCE_FRAME
    cdef unsigned long long n = 0, total = 0
    with nogil:
        while r == SOURCE_FRAME or r == SOURCE_IDLE:
            r = source.next(&f)
            if r == SOURCE_FRAME:
                n += 1
                total += f.caplen
    return n, total, RESULTS[r]


def widened(readings, bint drops=False):
    """What a live source makes of these readings of a 32-bit counter that stood at 0; drops: of
    the interface's own."""
    cdef Tally tally
    memset(&tally, 0, sizeof(tally))
    for now in readings:
        if drops:
            widen_drops(&tally, now)
        else:
            widen(&tally, now)
    return tally.total
