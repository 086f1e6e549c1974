"""The pcapng format (https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcapng/), because libpcap
refuses files whose interfaces differ in link type or snaplen.

    block:  | type 4 | total length 4 | body, padded to 4 | total length 4 |
    file:   section header, interface descriptions and packets in any order; then maybe another
            section, which may have the other byte order and starts without interfaces

Nothing in a file is believed.  Rules:

- A block is parsed through a Cursor over exactly its body, once it is wholly in the buffer.
- Blocks of a type not needed here are thrown away as they come, whatever their length; one that
  is parsed may have LARGEST_RECORD bytes.
- What breaks a file: a length that is below 12, no multiple of 4, or not repeated at the end of
  its block; a body too short for its fields; a packet longer than its block or of an interface that
  was not described; an option that runs out of its block, or a time option of the wrong size; more
  than MAX_INTERFACES.  After any of these the rest can't be trusted: SOURCE_BROKEN.
- Timestamps are a count of units of 10^-n or 2^-n seconds, n up to 127.  They are worked out in
  128 bits; what does not fit an int64 of ns is set to its nearest end and flagged FRAME_BAD_TIME.
- A Simple Packet Block has no time.  Its frame gets the time of the one before, flagged
  FRAME_NO_TIME.
- One call of next() looks at no more than BUDGET bytes of blocks without a packet; then it returns
  SOURCE_IDLE, so that a file full of nothing can't hold up heartbeats or a stop.
"""

from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from gazer.cursor cimport (
    Cursor, cursor_has, cursor_left, cursor_over, cursor_skip, cursor_take, cursor_u8, cursor_u16,
    cursor_u32,
)
from gazer.capture.source cimport (
    FRAME_BAD_TIME, FRAME_NO_TIME, LARGEST_RECORD, SOURCE_BROKEN, SOURCE_END, SOURCE_FRAME,
    SOURCE_IDLE, linktype_canonical,
)
from gazer.capture.stream cimport (
    STREAM_END, STREAM_READY, STREAM_WAIT, stream_at, stream_left, stream_need,
    stream_step,
)

cdef extern from *:
    ctypedef long long int128 "__int128"
    ctypedef unsigned long long uint128 "unsigned __int128"

cdef enum:
    BLOCK_INTERFACE = 1
    BLOCK_PACKET = 2            # obsolete; written before 2008
    BLOCK_SIMPLE = 3
    BLOCK_ENHANCED = 6
    BLOCK_SECTION = 0x0a0d0d0a  # the same in both byte orders
    BYTE_ORDER = 0x1a2b3c4d
    OPTION_END = 0
    OPTION_TSRESOL = 9
    OPTION_TSOFFSET = 14

cdef enum:
    MAX_INTERFACES = 65536      # what the obsolete block can name; tools write a handful
    BUDGET = 4 * 1024 * 1024    # about a millisecond's work

cdef enum Fault:
    CUT_OFF = 1
    NO_SECTION
    BAD_LENGTH
    TOO_LARGE
    OTHER_LENGTH
    NOT_BYTE_ORDER
    VERSION
    TOO_SHORT
    NO_INTERFACE
    TOO_MANY
    LONG_PACKET
    LONG_OPTION
    BAD_OPTION
    NO_MEMORY

FAULTS = {
    CUT_OFF: "of {b} bytes {a} are there",
    NO_SECTION: "it does not begin with a section header",
    BAD_LENGTH: "{a} is no length of a block",
    TOO_LARGE: "a block of {a} bytes; more than {b} can't be",
    OTHER_LENGTH: "the block's length is {a} at its begin and {b} at its end",
    NOT_BYTE_ORDER: "no byte order in the section header ({a:08x})",
    VERSION: "pcapng version {a}.{b} is not known",
    TOO_SHORT: "a block of {a} bytes is too short for its kind",
    NO_INTERFACE: "a packet of interface {a}, and the section describes {b}",
    TOO_MANY: "more than {b} interfaces in a section",
    LONG_PACKET: "a packet of {a} bytes where its block has {b}",
    LONG_OPTION: "an option of {a} bytes where its block has {b}",
    BAD_OPTION: "option {a} has {b} bytes",
    NO_MEMORY: "out of memory",
}
NAMES = {
    BLOCK_INTERFACE: "interface description",
    BLOCK_PACKET: "packet block",
    BLOCK_SIMPLE: "simple packet block",
    BLOCK_ENHANCED: "enhanced packet block",
    BLOCK_SECTION: "section header",
}


cdef inline void set_unit(Interface* f, uint8_t resolution) noexcept nogil:
    """if_tsresol: 10^-n, or with the top bit set 2^-n."""
    cdef int n = resolution & 127, power, _
    if resolution & 128:
        f.unit = UNIT_SHIFTED
        f.factor = n
        return
    f.unit = UNIT_TIMES if n <= 9 else UNIT_DIVIDED
    power = 9 - n if n <= 9 else n - 9
    f.factor = 1
    for _ in range(power if power <= 19 else 19):
        f.factor *= 10
    if power > 19:
        f.factor = 0        # 2^64 units are less than a nanosecond


cdef inline int64_t in_ns(const Interface* f, uint64_t units, uint32_t* flags) noexcept nogil:
    cdef int128 ns
    if f.unit == UNIT_TIMES:
        ns = <int128>(<uint128>units * f.factor)        # under 2^94
    elif f.unit == UNIT_DIVIDED:
        ns = <int128>(units // f.factor if f.factor != 0 else 0)
    else:
        ns = <int128>((<uint128>units * 1000000000) >> <int>f.factor)
    ns += <int128>f.offset * 1000000000                 # under 2^93
    if ns > <int128>INT64_MAX:
        flags[0] |= FRAME_BAD_TIME
        return INT64_MAX
    if ns < <int128>INT64_MIN:
        flags[0] |= FRAME_BAD_TIME
        return INT64_MIN
    return <int64_t>ns


cdef class PcapngSource(FileSource):
    """A pcapng file.

    fd: descriptor to read from, owned by the source from this call on, whatever comes of it.
    first: bytes that were already read from it.
    pump: the thread that writes to the other end of fd, with `.error` and `.join()`; or None.
    """

    def __cinit__(self, int fd, object name, uint32_t snaplen, bytes first=b"", object pump=None):
        self.attach(fd, name, snaplen, first, pump)

    def __dealloc__(self):
        free(self.interfaces)

    cdef inline uint16_t u16(self, Cursor* c) noexcept nogil:
        cdef uint16_t v = cursor_u16(c)
        return <uint16_t>((v >> 8) | (v << 8)) if self.little else v

    cdef inline uint32_t u32(self, Cursor* c) noexcept nogil:
        cdef uint32_t v = cursor_u32(c)
        if self.little:
            return (v >> 24) | ((v >> 8) & 0xff00) | ((v & 0xff00) << 8) | (v << 24)
        return v

    cdef int broken(self, int fault, uint64_t a, uint64_t b) noexcept nogil:
        self.fault = fault
        self.a = a
        self.b = b
        return self.finish(SOURCE_BROKEN)

    cdef int lacking(self, int r) noexcept nogil:
        """The stream has no more for now, or for good, in the middle of a block."""
        if r == STREAM_WAIT:
            return SOURCE_IDLE
        return self.finish(SOURCE_BROKEN)

    cdef int next(self, Frame* frame) noexcept nogil:
        cdef Cursor c
        cdef uint32_t length, type, trailer
        cdef uint64_t budget = BUDGET
        cdef int r
        if self.over != SOURCE_FRAME:
            return self.over
        while budget > 0:
            if self.skip > 0:
                r = self.skip_on(&budget)
                if r != SOURCE_FRAME:
                    return r
                continue
            # The header, with the byte order where it is a section's: 12 bytes, as any block has.
            self.where = self.stream.offset
            self.type = 0
            r = stream_need(&self.stream, 12)
            if r == STREAM_END:
                if stream_left(&self.stream) == 0:
                    return self.finish(SOURCE_END)
                return self.broken(CUT_OFF, stream_left(&self.stream), 12)
            if r != STREAM_READY:
                return self.lacking(r)
            c = cursor_over(stream_at(&self.stream), 0, 12)
            type = self.u32(&c)
            if type == BLOCK_SECTION:
                self.type = type
                cursor_skip(&c, 4)
                self.little = False
                length = cursor_u32(&c)
                if length == 0x4d3c2b1a:
                    self.little = True
                elif length != BYTE_ORDER:
                    return self.broken(NOT_BYTE_ORDER, length, 0)
                c = cursor_over(stream_at(&self.stream), 4, 12)
            elif not self.in_section:
                return self.broken(NO_SECTION, 0, 0)
            self.type = type
            length = self.u32(&c)
            if length < 12 or length & 3:
                return self.broken(BAD_LENGTH, length, 0)
            if not (type == BLOCK_ENHANCED or type == BLOCK_SIMPLE or type == BLOCK_PACKET or
                    type == BLOCK_INTERFACE or type == BLOCK_SECTION):
                stream_step(&self.stream, 8)
                self.skip = length - 8
                self.skipped_length = length
                continue
            if length > LARGEST_RECORD:
                return self.broken(TOO_LARGE, length, LARGEST_RECORD)
            r = stream_need(&self.stream, length)
            if r == STREAM_END:
                return self.broken(CUT_OFF, stream_left(&self.stream), length)
            if r != STREAM_READY:
                return self.lacking(r)
            c = cursor_over(stream_at(&self.stream), length - 4, length)
            trailer = self.u32(&c)
            if trailer != length:
                return self.broken(OTHER_LENGTH, length, trailer)
            c = cursor_over(stream_at(&self.stream), 8, length - 4)
            if type == BLOCK_INTERFACE:
                r = self.interface(&c)
            elif type == BLOCK_SECTION:
                r = self.section(&c)
            else:
                r = self.packet(&c, frame)
                if r == SOURCE_FRAME:
                    stream_step(&self.stream, length)   # the bytes stay until the next call
                    self.frames += 1
                return r
            if r != SOURCE_FRAME:
                return r
            stream_step(&self.stream, length)
            budget -= length if length < budget else budget
        return SOURCE_IDLE

    cdef int skip_on(self, uint64_t* budget) noexcept nogil:
        """Throw away what is left of a block, its last four bytes being its length again."""
        cdef Cursor c
        cdef uint64_t n
        cdef uint32_t trailer
        # Not fewer than five, so that the four at the end are seen in one piece.
        cdef int r = stream_need(&self.stream, 5 if self.skip > 4 else 4)
        if r == STREAM_END:
            return self.broken(CUT_OFF, self.skipped_length - self.skip + stream_left(&self.stream),
                               self.skipped_length)
        if r != STREAM_READY:
            return self.lacking(r)
        if self.skip > 4:
            n = stream_left(&self.stream)
            if n > self.skip - 4:
                n = self.skip - 4
            stream_step(&self.stream, n)
            self.skip -= n
            budget[0] -= n if n < budget[0] else budget[0]
        else:
            c = cursor_over(stream_at(&self.stream), 0, 4)
            trailer = self.u32(&c)
            if trailer != self.skipped_length:
                return self.broken(OTHER_LENGTH, self.skipped_length, trailer)
            stream_step(&self.stream, 4)
            self.skip = 0
            budget[0] -= 12 if 12 < budget[0] else budget[0]
        return SOURCE_FRAME

    cdef int section(self, Cursor* c) noexcept nogil:
        """Its length and options say nothing that is needed."""
        cdef uint16_t major, minor
        cursor_skip(c, 4)       # the byte order
        major = self.u16(c)
        minor = self.u16(c)
        cursor_skip(c, 8)       # the section's length
        if c.failed:
            return self.broken(TOO_SHORT, c.end + 4, 0)
        if major != 1:
            return self.broken(VERSION, major, minor)
        self.count = 0
        self.in_section = True
        return SOURCE_FRAME

    cdef int interface(self, Cursor* c) noexcept nogil:
        cdef Interface f
        cdef Interface* grown
        cdef Cursor value
        cdef uint32_t size, room
        cdef uint16_t code
        cdef uint64_t offset, low
        f.linktype = linktype_canonical(self.u16(c))
        cursor_skip(c, 2)
        f.snaplen = self.u32(c)
        f.offset = 0
        set_unit(&f, 6)         # microseconds, where nothing is said
        if c.failed:
            return self.broken(TOO_SHORT, c.end + 4, 0)
        while cursor_left(c) > 0:
            code = self.u16(c)
            size = self.u16(c)
            if code == OPTION_END:
                break
            value = cursor_over(c.base, c.pos, c.end)
            if not cursor_skip(c, (size + 3) & ~<uint32_t>3):
                return self.broken(LONG_OPTION, size, cursor_left(&value))
            if code == OPTION_TSRESOL:
                if size != 1:
                    return self.broken(BAD_OPTION, code, size)
                set_unit(&f, cursor_u8(&value))
            elif code == OPTION_TSOFFSET:
                if size != 8:
                    return self.broken(BAD_OPTION, code, size)
                offset = self.u32(&value)
                low = self.u32(&value)
                f.offset = <int64_t>((low << 32) | offset if self.little else (offset << 32) | low)
        if self.count == MAX_INTERFACES:
            return self.broken(TOO_MANY, 0, MAX_INTERFACES)
        if self.count == self.room:
            room = self.room * 2 if self.room > 0 else 8
            grown = <Interface*>realloc(self.interfaces, room * sizeof(Interface))
            if grown == NULL:
                return self.broken(NO_MEMORY, 0, 0)
            self.interfaces = grown
            self.room = room
        self.interfaces[self.count] = f
        self.count += 1
        return SOURCE_FRAME

    cdef int packet(self, Cursor* c, Frame* frame) noexcept nogil:
        """Any of the three blocks that hold a packet.  Options that follow are not read."""
        cdef const Interface* f
        cdef uint32_t id = 0, caplen, length, body = cursor_left(c)
        cdef uint64_t high = 0, low = 0
        frame.flags = 0
        if self.type == BLOCK_ENHANCED:
            id = self.u32(c)
        elif self.type == BLOCK_PACKET:
            id = self.u16(c)
            cursor_skip(c, 2)   # a count of drops
        if self.type != BLOCK_SIMPLE:
            high = self.u32(c)
            low = self.u32(c)
            caplen = self.u32(c)
            length = self.u32(c)
        else:
            caplen = length = self.u32(c)
        if c.failed:
            return self.broken(TOO_SHORT, body + 12, 0)
        if id >= self.count:
            return self.broken(NO_INTERFACE, id, self.count)
        f = &self.interfaces[id]
        if self.type == BLOCK_SIMPLE:
            if f.snaplen > 0 and caplen > f.snaplen:
                caplen = f.snaplen
            frame.time = self.last_time
            frame.flags = FRAME_NO_TIME
        else:
            frame.time = in_ns(f, (high << 32) | low, &frame.flags)
        if not cursor_has(c, caplen):
            return self.broken(LONG_PACKET, caplen, cursor_left(c))
        frame.data = cursor_take(c, caplen)
        frame.caplen = caplen if caplen < self.snaplen else self.snaplen
        frame.length = length
        frame.linktype = f.linktype
        self.last_time = frame.time
        return SOURCE_FRAME

    cdef object describe(self):
        text = self.read_error()
        if text is not None:
            return text
        if self.type in (BLOCK_ENHANCED, BLOCK_SIMPLE, BLOCK_PACKET):
            where = f"in frame {self.frames + 1}"
        else:
            where = f"after frame {self.frames}"
        kind = NAMES.get(self.type, f"block of type {self.type:#x}" if self.type else "block")
        why = FAULTS[self.fault].format(a=self.a, b=self.b)
        how = "cut off" if self.fault == CUT_OFF else "broken"
        return f"{self.name}: {how} {where} (byte offset {self.where}, {kind}): {why}"
