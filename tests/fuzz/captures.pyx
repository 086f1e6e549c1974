"""Target: a capture file, pcap or pcapng, read by its source.

    octet 0     bit 0   pcapng, else classic pcap
                bit 1   capture.snaplen is 96, else 256 KiB
    then        the file

It is read twice: once with all of it in the stream's buffer, of which the octets behind the file
are forbidden; once from a descriptor, behind the first 24 octets.  Checked: both give the same
frames with the same octets and the same end; an end stays what it is, and a broken file says why.

Frames' octets are all touched.  Sources are Python objects that are made anew for each file, so
this target makes some (ten or so) at each execution.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from posix.unistd cimport dup, ftruncate, lseek, SEEK_SET

from gazer.capture.pcapng cimport PcapngSource
from gazer.capture.source cimport (
    SOURCE_BROKEN, SOURCE_FRAME, SOURCE_IDLE, FileSource, Frame, PcapSource)
from gazer.capture.stream cimport Stream
from outputs cimport allow, forbid

import os

from gazer.errors import InputError

cdef extern from "unistd.h" nogil:
    ssize_t pwrite(int fd, const void* p, size_t n, long offset)

cdef enum:
    PCAPNG = 1
    SHORT = 2
    FIRST = 24              # octets that are read before a source is made
    MOST_IDLE = 64          # turns without a frame, of a file that can't make one wait

cdef int MEMORY = os.memfd_create("fuzz", os.MFD_CLOEXEC)
FRAMES = []
cdef bint keeping = False


cdef struct Reading:
    uint64_t frames
    uint64_t octets
    uint64_t print_
    int end
    const char* failed


cdef void mix(Reading* r, uint64_t v) noexcept nogil:
    r.print_ = (r.print_ ^ v) * 0x9E3779B97F4A7C15ULL
    r.print_ ^= r.print_ >> 29


cdef void read_through(FileSource source, uint32_t snaplen, uint32_t size,
                       Reading* r) noexcept nogil:
    cdef Frame f
    cdef int result, idle = 0
    cdef uint32_t i
    cdef uint64_t all
    r.failed = NULL
    r.frames = r.octets = r.print_ = 0
    while True:
        result = source.next(&f)
        if result == SOURCE_IDLE:
            idle += 1
            if idle > MOST_IDLE:
                r.failed = b"a file keeps its reader waiting"
                return
            continue
        if result != SOURCE_FRAME:
            break
        idle = 0
        if f.caplen > snaplen or f.caplen > size:
            r.failed = b"a frame is longer than snaplen or its file"
            return
        all = 0
        for i in range(f.caplen):
            all = all * 31 + f.data[i]
        r.frames += 1
        r.octets += f.caplen
        mix(r, all)
        mix(r, <uint64_t>f.time)
        mix(r, (<uint64_t>f.length << 32) | f.flags)
        mix(r, <uint64_t>f.linktype)
        if keeping:
            with gil:
                FRAMES.append((f.data[:f.caplen], f.length, f.time, f.linktype, f.flags))
    r.end = result
    if source.next(&f) != result or source.next(&f) != result:
        r.failed = b"an end does not stay what it is"


cdef const char* compare(const uint8_t* data, uint32_t size) noexcept with gil:
    cdef FileSource source
    cdef Stream* stream
    cdef Reading whole, parts
    cdef uint32_t snaplen = 96 if data[0] & SHORT else 262144
    cdef uint8_t* behind
    cdef size_t room
    cdef uint32_t length = size - 1
    cdef bytes file = data[1:size]
    kind = PcapngSource if data[0] & PCAPNG else PcapSource
    ftruncate(MEMORY, 0)
    lseek(MEMORY, 0, SEEK_SET)
    try:
        source = kind(dup(MEMORY), "f", snaplen, file)
    except InputError:
        return NULL
    stream = &source.stream
    behind = stream.buffer + stream.end
    room = stream.capacity - stream.end
    forbid(behind, room)
    with nogil:
        read_through(source, snaplen, size, &whole)
    allow(behind, room)
    if whole.failed != NULL:
        return whole.failed
    if (source.error is None) != (whole.end != SOURCE_BROKEN):
        return b"a broken file says nothing, or a whole one does"
    source.close()
    if length <= FIRST:
        return NULL
    pwrite(MEMORY, data + 1 + FIRST, length - FIRST, 0)
    lseek(MEMORY, 0, SEEK_SET)
    FRAMES.clear()
    try:
        source = kind(dup(MEMORY), "f", snaplen, file[:FIRST])
    except InputError:
        return b"a file is refused only in parts"
    with nogil:
        read_through(source, snaplen, size, &parts)
    if parts.failed != NULL:
        return parts.failed
    error = source.error
    source.close()
    if (whole.frames != parts.frames or whole.octets != parts.octets or whole.end != parts.end
            or whole.print_ != parts.print_ or (error is None) != (parts.end != SOURCE_BROKEN)):
        return b"a file reads otherwise in parts"
    return NULL


cdef const char* one_input(const uint8_t* data, size_t size) noexcept nogil:
    if size < 1 or size > 262144:
        return NULL
    return compare(data, <uint32_t>size)


def address():
    """The C function, for the driver."""
    return <size_t>&one_input


def run(bytes data):
    """One input, from Python: (None or which check failed, the frames of its last reading)."""
    global keeping
    FRAMES.clear()
    keeping = True
    failed = one_input(data, len(data))
    keeping = False
    return (None if failed == NULL else failed.decode()), list(FRAMES)
