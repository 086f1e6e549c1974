"""A door for tests: the functions of the workers that have no Python form, called on bytes.

Nothing in gazer imports this.  Input is copied to the end of a mapping behind which no page is
readable, and an arena stands between two rows of canaries: a read beyond the message ends the
process, a write beyond the arena is an AssertionError.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from gazer.cursor cimport Cursor, cursor_over
from gazer.guarded cimport Guarded
from gazer.text cimport (Arena, Text, put_ddd, put_digits, put_hex, put_ipv4, put_ipv6, put_u16,
                         put_u64)
from gazer.workers cimport encodings, rrtypes
from gazer.workers.anomaly cimport NO_ROOM, OK
from gazer.workers.names cimport Names, name_render, name_skip, names_begin
from gazer.workers.rdata cimport rdata_render
from gazer.workers.rdata_opt cimport opt_render

from gazer.workers.anomaly import NAMES

cdef enum:
    CANARY = 64
    ROOM = 1 << 20          # the arena's capacity unless told otherwise

cdef Guarded PLACE = Guarded()


cdef class Pen:
    """An arena between canaries."""

    cdef Arena arena
    cdef char* memory

    def __cinit__(self, uint32_t capacity=ROOM):
        self.memory = <char*>malloc(capacity + 2 * CANARY)
        if self.memory == NULL:
            raise MemoryError
        memset(self.memory, 0xa5, capacity + 2 * CANARY)
        self.arena.base = self.memory + CANARY
        self.arena.capacity = capacity
        self.arena.used = 0

    def __dealloc__(self):
        free(self.memory)

    cdef int check(self) except -1:
        row = b"\xa5" * CANARY
        assert self.memory[:CANARY] == row, "written before the arena"
        end = self.memory + CANARY + self.arena.capacity
        assert end[:CANARY] == row, "written beyond the arena"
        assert self.arena.used <= self.arena.capacity
        return 0

    cdef str text(self, const Text* t):
        assert t.offset + t.length <= self.arena.used
        text = self.arena.base[t.offset:t.offset + t.length]
        assert all(0x20 <= b <= 0x7e for b in text), text
        assert t.escapes == text.count(b'"') + text.count(b"\\"), (text, t.escapes)
        return text.decode("ascii")


def result_name(int result):
    return "no_room" if result == NO_ROOM else NAMES[result]


def read_beyond(bytes wire):
    """Reads the byte after the message, to show that this can't go unseen: the process dies."""
    return PLACE.put(wire)[len(wire)]


def render_name(bytes wire, uint32_t pos, end=None, uint32_t capacity=ROOM):
    """One name: (text or None, position after it, anomaly)."""
    return render_names(wire, [pos], end, capacity)[0]


def render_names(bytes wire, positions, end=None, uint32_t capacity=ROOM):
    """Names of one message, one after another into one arena: [(text, position after, anomaly)].

    Texts are read when all is done, so that a later name that spoils an earlier one is seen."""
    cdef Names names
    cdef Pen pen = Pen(capacity)
    cdef Text text
    cdef Cursor c
    cdef int result
    cdef const uint8_t* base = PLACE.put(wire)
    memset(&names, 0, sizeof(names))
    names_begin(&names, base, len(wire))
    done = []
    for pos in positions:
        c = cursor_over(base, pos, len(wire) if end is None else end)
        result = name_render(&names, &c, &pen.arena, &text)
        pen.check()
        done.append((text if result == OK else None, c.pos, result_name(result)))
    rendered = []
    for piece, after, name in done:
        if piece is not None:
            text = piece
            rendered.append((pen.text(&text), after, name))
        else:
            rendered.append((None, after, name))
    return rendered


def skip_name(bytes wire, uint32_t pos, end=None):
    """(position after the name, anomaly)"""
    cdef Names names
    cdef const uint8_t* base = PLACE.put(wire)
    cdef Cursor c = cursor_over(base, pos, len(wire) if end is None else end)
    memset(&names, 0, sizeof(names))
    names_begin(&names, base, len(wire))
    result = name_skip(&names, &c)
    return c.pos, result_name(result)


def render_rdata(bytes wire, uint32_t pos, uint32_t end, uint16_t type, uint16_t klass=1,
                 uint32_t capacity=ROOM):
    """One record's data: (text or None, anomaly)."""
    return render_records(wire, [(pos, end, type, klass)], capacity)[0]


def render_records(bytes wire, records, uint32_t capacity=ROOM):
    """The data of several records (pos, end, type, class) of one message, into one arena."""
    cdef Names names
    cdef Pen pen = Pen(capacity)
    cdef Text text
    cdef Cursor c
    cdef int result
    cdef uint32_t used
    cdef const uint8_t* base = PLACE.put(wire)
    memset(&names, 0, sizeof(names))
    names_begin(&names, base, len(wire))
    done = []
    for pos, end, type, klass in records:
        c = cursor_over(base, pos, end)
        used = pen.arena.used
        result = rdata_render(&names, &c, type, klass, &pen.arena, &text)
        pen.check()
        assert c.pos == end
        if result == NO_ROOM:
            assert pen.arena.used == used
        done.append((None if result == NO_ROOM else text, result_name(result)))
    rendered = []
    for piece, name in done:
        if piece is not None:
            text = piece
            rendered.append((pen.text(&text), name))
        else:
            rendered.append((None, name))
    return rendered


def render_opt(bytes rdata, uint16_t udp_size=512, uint32_t ttl=0, uint32_t capacity=ROOM):
    """An OPT record whole: (text or None, anomaly)."""
    cdef Names names
    cdef Pen pen = Pen(capacity)
    cdef Text text
    cdef const uint8_t* base = PLACE.put(rdata)
    cdef Cursor c = cursor_over(base, 0, len(rdata))
    cdef int result
    memset(&names, 0, sizeof(names))
    names_begin(&names, base, len(rdata))
    result = opt_render(&names, &c, udp_size, ttl, &pen.arena, &text)
    pen.check()
    assert c.pos == len(rdata)
    if result == NO_ROOM:
        assert pen.arena.used == 0
        return None, "no_room"
    return pen.text(&text), result_name(result)


def time_rdata(bytes wire, uint32_t pos, uint32_t end, uint16_t type, uint32_t times):
    """Nanoseconds that one rdata_render takes, on the average of so many."""
    cdef Names names
    cdef Pen pen = Pen()
    cdef Text text
    cdef Cursor c
    cdef timespec before, after
    cdef uint32_t _
    cdef const uint8_t* base = PLACE.put(wire)
    cdef uint32_t length = len(wire)
    memset(&names, 0, sizeof(names))
    with nogil:
        clock_gettime(CLOCK_MONOTONIC, &before)
        for _ in range(times):
            pen.arena.used = 0
            names_begin(&names, base, length)
            c = cursor_over(base, pos, end)
            rdata_render(&names, &c, type, 1, &pen.arena, &text)
        clock_gettime(CLOCK_MONOTONIC, &after)
    return ((after.tv_sec - before.tv_sec) * 1e9 + after.tv_nsec - before.tv_nsec) / times


cdef enum Writer:
    U64, U16, IPV4, IPV6, DDD, HEX, BASE64, BASE32HEX, QUOTED, LIST_ITEM, GENERIC, TIME, TYPE
    CLASS, RCODE, OPCODE, DIGITS

WRITERS = {
    "u64": U64, "u16": U16, "ipv4": IPV4, "ipv6": IPV6, "ddd": DDD, "hex": HEX, "base64": BASE64,
    "base32hex": BASE32HEX, "quoted": QUOTED, "list_item": LIST_ITEM, "generic": GENERIC,
    "time": TIME, "type": TYPE, "class": CLASS, "rcode": RCODE, "opcode": OPCODE,
    "digits": DIGITS,
}


def write(str writer, value, uint32_t room, int width=0):
    """What the writer put_<writer> makes of a number or of bytes, given the room that it states."""
    cdef Pen pen = Pen(room)
    cdef char* w = pen.arena.base
    cdef uint64_t number = 0
    cdef const uint8_t* p = NULL
    cdef uint32_t n = 0, escapes = 0
    cdef Text text
    cdef int kind = WRITERS[writer]
    if isinstance(value, bytes):
        p = PLACE.put(value)
        n = len(value)
    else:
        number = value
    if kind == U64:
        w = put_u64(w, number)
    elif kind == U16:
        w = put_u16(w, number)
    elif kind == DIGITS:
        w = put_digits(w, number, width)
    elif kind == IPV4:
        w = put_ipv4(w, p)
    elif kind == IPV6:
        w = put_ipv6(w, p)
    elif kind == DDD:
        w = put_ddd(w, number)
        escapes = 1
    elif kind == HEX:
        w = put_hex(w, p, n)
    elif kind == BASE64:
        w = encodings.put_base64(w, p, n)
    elif kind == BASE32HEX:
        w = encodings.put_base32hex(w, p, n)
    elif kind == QUOTED:
        w = encodings.put_quoted(w, p, n, &escapes)
    elif kind == LIST_ITEM:
        w = encodings.put_list_item(w, p, n, &escapes)
    elif kind == GENERIC:
        w = encodings.put_generic(w, p, n, &escapes)
    elif kind == TIME:
        w = encodings.put_time(w, number)
    elif kind == TYPE:
        w = rrtypes.put_type(w, number)
    elif kind == CLASS:
        w = rrtypes.put_class(w, number)
    elif kind == RCODE:
        w = rrtypes.put_rcode(w, number)
    else:
        w = rrtypes.put_opcode(w, number)
    text.offset = 0
    text.length = w - pen.arena.base
    text.escapes = escapes
    pen.arena.used = text.length
    pen.check()
    return pen.text(&text)


def number_name(str kind, uint16_t number):
    """type_name and its sisters: the name, or None."""
    cdef const char* name
    if kind == "type":
        name = rrtypes.type_name(number)
    elif kind == "class":
        name = rrtypes.class_name(number)
    elif kind == "rcode":
        name = rrtypes.rcode_name(number)
    elif kind == "opcode":
        name = rrtypes.opcode_name(number)
    else:
        name = rrtypes.ede_name(number)
    return None if name == NULL else name.decode("ascii")
