"""Where frames come from.  A Source gives one frame after the other; it holds no GIL and makes no
Python object for a frame.

    Source                  what capture reads from; a live interface derives from this
    └── FileSource          over a Stream: a file, a pipe, standard input, a decompressor's pipe
        ├── PcapSource      classic pcap, through libpcap
        └── PcapngSource    pcapng, by our own reader (see pcapng.pyx)

`next` returns a SourceResult.  SOURCE_IDLE means: nothing just now, and next() has already waited
as long as it will (at most 100 ms; a signal ends it at once), so look at the stop flag, do what is
due, and call again.  After SOURCE_END or SOURCE_BROKEN every further call returns the same.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport FILE
from gazer.capture.libpcap cimport pcap_t
from gazer.capture.stream cimport Stream

cdef enum SourceResult:
    SOURCE_BROKEN = -1      # it breaks off here: Source.error says how
    SOURCE_END = 0          # all has been read
    SOURCE_FRAME = 1
    SOURCE_IDLE = 2         # nothing just now; call again

cdef enum:
    FRAME_BAD_TIME = 1      # the timestamp's fraction was a second or more, or did not fit
    FRAME_NO_TIME = 2       # the file has no time for it: it has that of the frame before

cdef enum:
    # The largest record or block that a file may hold.  libpcap's own limit is 256 KiB for all
    # link types that carry IP; this leaves room for others and bounds what a lie can cost.
    LARGEST_RECORD = 16 * 1024 * 1024
    FILE_BUFFER = 32 * 1024     # about a hundred frames at a time


cdef struct Frame:
    const uint8_t* data     # valid until the next call of next()
    uint32_t caplen         # bytes at `data`
    uint32_t length         # bytes on the wire
    int64_t time            # ns since 1970-01-01 UTC, as the frame has it
    int linktype            # LINKTYPE_ value, as in the file; raw IP is always 101
    uint32_t flags          # FRAME_*


cdef class Source:
    cdef readonly object name       # for messages: the path, "-" or the interface
    cdef readonly unsigned long long frames     # given so far
    cdef int over           # SOURCE_FRAME while it goes on, then what next() keeps returning
    cdef object text        # what describe() said

    cdef int next(self, Frame* frame) noexcept nogil
    cdef object describe(self)      # what broke, one line; asked for after SOURCE_BROKEN only
    cpdef void close(self)


cdef class FileSource(Source):
    cdef Stream stream
    cdef uint32_t snaplen   # frames are cut to this
    cdef object pump        # the decompressor that feeds the stream, or None
    cdef object pump_error  # what it died of

    cdef void attach(self, int fd, object name, uint32_t snaplen, bytes first, object pump)
    cdef int finish(self, int result) noexcept nogil
    cdef object read_error(self)


cdef struct Feed:           # what libpcap's FILE reads from
    Stream* stream
    size_t limit            # of what stands in the stream, it may have this much
    char buffer[FILE_BUFFER]    # the FILE's own (glibc's setvbuf only takes one that is given)


cdef class PcapSource(FileSource):
    cdef pcap_t* handle
    cdef FILE* file
    cdef Feed feed
    cdef bint swapped       # the file's byte order is not the network's
    cdef uint32_t header    # bytes of a record's header
    cdef uint32_t scale     # ns in one unit of a timestamp's fraction
    cdef int linktype
    cdef uint32_t whole     # records of at most this length are handed over as they stand
    cdef uint32_t ahead     # records that libpcap's FILE holds already
    cdef uint64_t where     # offset of the next record; at last of the one that broke
    cdef uint32_t claimed   # a record's length, where it is beyond LARGEST_RECORD

    cdef inline uint32_t record_length(self, uint32_t at) noexcept nogil
    cdef int await_record(self) noexcept nogil
    cdef void shut(self)


cdef inline int linktype_canonical(int linktype) noexcept nogil:
    """The LINKTYPE_ value of a link type as a file or libpcap has it.

    libpcap turns LINKTYPE_ into the platform's DLT_ values.  All that carry IP are the same in
    both but raw IP: LINKTYPE_RAW is 101, DLT_RAW is 12, and 14 on OpenBSD; files have all three.
    """
    return 101 if linktype == 12 or linktype == 14 else linktype
