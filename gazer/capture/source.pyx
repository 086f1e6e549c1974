"""Sources over files; see source.pxd.

PcapSource is libpcap over a FILE* of our own making (fopencookie) whose read function takes from
our Stream.  libpcap cannot come back to a record that it has half read, and a FILE* cannot say "not
yet"; so next() first waits until the whole record stands in the Stream, and only then lets libpcap
have it.  libpcap then never waits, a signal finds us in poll(2), and the offset for messages is
exact.  At the end of the input libpcap is let at what is left, and says what is wrong with it.

The format: https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcap/.  Its timestamps have 32
unsigned bits of seconds (1970 to 2106), which libpcap reads as signed where the file has the
machine's byte order.  They are taken in the file's own unit and scaled here.
"""

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdio cimport FILE, fclose, setvbuf, _IOFBF
from libc.string cimport memcpy, strerror
from gazer.cursor cimport Cursor, cursor_over, cursor_u32
from gazer.capture.libpcap cimport (
    PCAP_ERRBUF_SIZE, PCAP_TSTAMP_PRECISION_MICRO, PCAP_TSTAMP_PRECISION_NANO, pcap_close,
    pcap_datalink, pcap_fopen_offline_with_tstamp_precision, pcap_geterr, pcap_next_ex,
    pcap_pkthdr, pcap_snapshot, u_char,
)
from gazer.capture.stream cimport (
    STREAM_END, STREAM_ERROR, STREAM_READY, STREAM_WAIT, stream_at, stream_close, stream_left,
    stream_need, stream_open, stream_step,
)

from gazer.errors import InputError

cdef extern from "stdio.h" nogil:
    ctypedef struct cookie_io_functions_t:
        ssize_t (*read)(void* cookie, char* buffer, size_t size) noexcept nogil
        void* write
        void* seek
        void* close
    FILE* fopencookie(void* cookie, const char* mode, cookie_io_functions_t functions)

cdef extern from "stdio_ext.h" nogil:
    enum:
        FSETLOCKING_BYCALLER
    int __fsetlocking(FILE* file, int kind)


cdef class Source:
    """A source of frames.  `next` is for Cython only; `name`, `frames`, `error` and `close()` are
    for everyone."""

    def __cinit__(self):
        self.over = SOURCE_FRAME

    cdef int next(self, Frame* frame) noexcept nogil:
        return SOURCE_END

    cdef object describe(self):
        return None

    @property
    def error(self):
        """One line for the operator that says what broke and where; None unless next() has
        returned SOURCE_BROKEN.  Made only when asked for."""
        if self.over == SOURCE_BROKEN and self.text is None:
            self.text = self.describe()
        return self.text

    cpdef void close(self):
        """Let go of descriptors and threads.  May be called twice; next() then says SOURCE_END, or
        goes on saying SOURCE_BROKEN, and `error` stays."""
        self.error      # while all it is made of is still there
        if self.over != SOURCE_BROKEN:
            self.over = SOURCE_END


cdef class FileSource(Source):
    """What the two kinds of file have in common."""

    def __cinit__(self):
        self.stream.fd = -1

    def __dealloc__(self):
        stream_close(&self.stream)

    cdef void attach(self, int fd, object name, uint32_t snaplen, bytes first, object pump):
        cdef const uint8_t* p = first
        cdef int failed
        self.name = name
        self.snaplen = snaplen
        self.pump = pump
        failed = stream_open(&self.stream, fd, p, len(first))
        if failed != 0:
            self.stream.error = failed      # the first next() says so

    @property
    def taken(self):
        """Bytes of the file as it is on disk (compressed, if it is) that were used so far."""
        return self.stream.offset if self.pump is None else self.pump.taken

    cdef int finish(self, int result) noexcept nogil:
        """The source is over.  A decompressor that died closed its pipe too: that is no end."""
        with gil:
            if self.pump is not None:
                self.pump_error = self.pump.error
                if self.pump_error is not None:
                    result = SOURCE_BROKEN
        self.over = result
        return result

    cdef object read_error(self):
        """What both kinds of file may break of: the decompressor, or read(2); else None."""
        if self.pump_error is not None:
            return f"{self.name}: {self.pump_error} (after frame {self.frames})"
        if self.stream.error != 0:
            why = strerror(self.stream.error).decode(errors="replace")
            return (f"{self.name}: can't be read after frame {self.frames} "
                    f"(byte offset {self.stream.offset + stream_left(&self.stream)}): {why}")
        return None

    cpdef void close(self):
        Source.close(self)
        stream_close(&self.stream)      # this ends the pump: its pipe has no reader now
        if self.pump is not None:
            self.pump.join()
            self.pump = None


cdef ssize_t take(void* cookie, char* buffer, size_t size) noexcept nogil:
    """read() for libpcap's FILE.  A FILE reads ahead, so it is told of no more than whole records
    that libpcap is about to read.  Nothing left means the end of the input: await_record() has made
    sure of all else."""
    cdef Feed* feed = <Feed*>cookie
    cdef size_t n = size if size < feed.limit else feed.limit
    memcpy(buffer, stream_at(feed.stream), n)
    stream_step(feed.stream, n)
    feed.limit -= n
    return <ssize_t>n


cdef enum:
    FILE_HEADER = 24
    RECORD_HEADER = 16
    PATCHED_HEADER = 24     # Alexey Kuznetsov's patched libpcap, around 2000: 8 bytes more

# Magic numbers as they stand in a big-endian file.
cdef enum:
    MAGIC_MICRO = 0xa1b2c3d4
    MAGIC_NANO = 0xa1b23c4d
    MAGIC_PATCHED = 0xa1b2cd34


cdef inline uint32_t swap32(uint32_t v) noexcept nogil:
    return (v >> 24) | ((v >> 8) & 0xff00) | ((v & 0xff00) << 8) | (v << 24)


cdef class PcapSource(FileSource):
    """A classic pcap file.

    fd: descriptor to read from, owned by the source from this call on, whatever comes of it.
    first: bytes that were already read from it; at least the file's header (24), if it has that.
    pump: the thread that writes to the other end of fd, with `.error` and `.join()`; or None.
    Raises InputError if libpcap does not accept the header.
    """

    def __cinit__(self, int fd, object name, uint32_t snaplen, bytes first=b"", object pump=None):
        cdef char error[PCAP_ERRBUF_SIZE]
        cdef cookie_io_functions_t functions
        cdef Cursor c
        cdef uint32_t magic
        cdef unsigned int precision
        self.attach(fd, name, snaplen, first, pump)
        c = cursor_over(stream_at(&self.stream), 0, <uint32_t>stream_left(&self.stream))
        magic = cursor_u32(&c)
        self.swapped = magic not in (MAGIC_MICRO, MAGIC_NANO, MAGIC_PATCHED)
        if self.swapped:
            magic = swap32(magic)
        self.header = PATCHED_HEADER if magic == MAGIC_PATCHED else RECORD_HEADER
        self.scale = 1 if magic == MAGIC_NANO else 1000
        # The file's own unit: libpcap scales nothing, so nothing overflows.
        precision = (PCAP_TSTAMP_PRECISION_NANO if magic == MAGIC_NANO
                     else PCAP_TSTAMP_PRECISION_MICRO)
        functions.read = take
        functions.write = functions.seek = functions.close = NULL
        self.feed.stream = &self.stream
        self.feed.limit = min(<size_t>FILE_HEADER, stream_left(&self.stream))
        self.file = fopencookie(&self.feed, "r", functions)
        if self.file == NULL:
            raise InputError(f"{name}: {strerror(errno).decode(errors='replace')}")
        # Only one thread is ever in here.
        setvbuf(self.file, self.feed.buffer, _IOFBF, FILE_BUFFER)
        __fsetlocking(self.file, FSETLOCKING_BYCALLER)
        error[0] = 0
        self.handle = pcap_fopen_offline_with_tstamp_precision(self.file, precision, error)
        if self.handle == NULL:
            raise InputError(f"{name}: {(<bytes>error).decode(errors='replace')}")
        self.linktype = linktype_canonical(pcap_datalink(self.handle))
        self.whole = min(<uint32_t>FILE_BUFFER, <uint32_t>pcap_snapshot(self.handle))

    def __dealloc__(self):
        self.shut()

    cdef void shut(self):
        if self.handle != NULL:
            pcap_close(self.handle)     # closes the FILE too
        elif self.file != NULL:
            fclose(self.file)
        self.handle = NULL
        self.file = NULL

    cdef inline uint32_t record_length(self, uint32_t at) noexcept nogil:
        """The bytes that the record `at` bytes into the stream says it has; its header is there."""
        cdef Cursor c = cursor_over(stream_at(&self.stream), at + 8, at + 12)
        cdef uint32_t caplen = cursor_u32(&c)
        return swap32(caplen) if self.swapped else caplen

    cdef int await_record(self) noexcept nogil:
        """Wait for the next record.  STREAM_READY if libpcap may go on: it is all there, or the
        input has ended and no more of it will come.

        Those after it that are all there too go along, as many as the FILE's buffer holds; one by
        one costs 0.03 us more a frame.  Only such as libpcap can't object to, so that only the
        first of a batch can break."""
        cdef uint32_t caplen, next_end, end, there
        cdef int r
        self.where = self.stream.offset
        r = stream_need(&self.stream, self.header)
        if r == STREAM_READY:
            caplen = self.record_length(0)
            if caplen > LARGEST_RECORD:
                self.claimed = caplen
                return STREAM_ERROR
            end = self.header + caplen
            r = stream_need(&self.stream, end)
            if r == STREAM_READY:
                there = <uint32_t>min(stream_left(&self.stream), <size_t>FILE_BUFFER)
                while caplen <= self.whole and end + self.header <= there:
                    caplen = self.record_length(end)
                    next_end = end + self.header + caplen
                    if caplen > self.whole or next_end > there:
                        break
                    end = next_end
                    self.ahead += 1
                self.feed.limit = end
        if r == STREAM_END:
            self.feed.limit = stream_left(&self.stream)
            r = STREAM_READY
        return r

    cdef int next(self, Frame* frame) noexcept nogil:
        cdef pcap_pkthdr* header
        cdef const u_char* data
        cdef uint32_t seconds, fraction
        cdef int r
        if self.over != SOURCE_FRAME:
            return self.over
        if self.ahead > 0:
            self.ahead -= 1
        else:
            r = self.await_record()
            if r == STREAM_WAIT:
                return SOURCE_IDLE
            if r == STREAM_ERROR:
                return self.finish(SOURCE_BROKEN)
        r = pcap_next_ex(self.handle, &header, &data)
        if r != 1:
            return self.finish(SOURCE_END if r == -2 else SOURCE_BROKEN)
        seconds = header.ts.tv_sec      # see libpcap.pxd
        fraction = header.ts.tv_usec
        frame.data = data
        frame.caplen = header.caplen if header.caplen < self.snaplen else self.snaplen
        frame.length = header.len
        frame.time = <int64_t>seconds * 1000000000 + <int64_t>fraction * self.scale
        frame.linktype = self.linktype
        frame.flags = 0
        if fraction >= 1000000000 // self.scale:
            frame.flags = FRAME_BAD_TIME
        self.where += self.header + header.caplen
        self.frames += 1
        return SOURCE_FRAME

    cdef object describe(self):
        where = f"frame {self.frames + 1} (byte offset {self.where})"
        text = self.read_error()
        if text is not None:
            return text
        if self.claimed != 0:
            return (f"{self.name}: broken in {where}: it claims {self.claimed} bytes; "
                    f"more than {LARGEST_RECORD} can't be")
        why = pcap_geterr(self.handle).decode(errors="replace")
        how = "cut off" if self.stream.ended and stream_left(&self.stream) == 0 else "broken"
        return f"{self.name}: {how} in {where}: {why}"

    cpdef void close(self):
        FileSource.close(self)
        self.shut()
