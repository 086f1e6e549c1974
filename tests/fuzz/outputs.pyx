"""Events, checked in C as they leave: each format whole and well-formed, and nothing beyond it.

JSON and msgpack are read by small recursive readers of their grammars; both know only what gazer
writes.  That the *values* are right is for Python, on the corpora (tests/test_fuzz.py): keep()
makes each event that is checked a Python object, too.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

from gazer.entry cimport EVENT_KINDS, FORMATS, FORMAT_JSON, FORMAT_TEXT, EventHeader

cdef enum:
    DEEPEST = 8             # maps and lists within one another
    IDS = 1 << 14           # of ids that are looked at, twice as many as there may be

cdef uint64_t[IDS] seen     # a print of each id; 0: free
cdef uint32_t kept_ids = 0

cdef bint keeping = False
KEPT = []


def keep(bint wanted):
    """From now on keep events, or don't; forgets those kept so far."""
    global keeping
    keeping = wanted
    KEPT.clear()


def kept():
    """[(clock, sequence, kind, {format: bytes})], in order; forgotten here."""
    events = list(KEPT)
    KEPT.clear()
    return events


cdef void event_keep(const uint8_t* entry, uint32_t n) noexcept nogil:
    if not keeping:
        return
    with gil:
        h = <const EventHeader*>entry
        at = sizeof(EventHeader)
        texts = {}
        for number in range(FORMATS):
            if h.lengths[number]:
                texts[number] = (<const char*>entry)[at:at + h.lengths[number]]
                at += h.lengths[number]
        KEPT.append((h.clock, h.sequence, h.tag % EVENT_KINDS, texts))


# --- JSON ----------------------------------------------------------------------------------------

cdef const uint8_t* json_string(const uint8_t* p, const uint8_t* end) noexcept nogil:
    if p == end or p[0] != 34:
        return NULL
    p += 1
    while p < end and p[0] != 34:
        if p[0] < 0x20 or p[0] > 0x7e:
            return NULL
        if p[0] == 92:
            p += 1
            if p == end or (p[0] != 34 and p[0] != 92):
                return NULL
        p += 1
    return p + 1 if p < end else NULL


cdef const uint8_t* json_number(const uint8_t* p, const uint8_t* end) noexcept nogil:
    cdef const uint8_t* start = p
    if p < end and p[0] == 48:          # no digit may follow a leading zero
        p += 1
    else:
        while p < end and 48 <= p[0] <= 57:
            p += 1
    if p == start:
        return NULL
    if p < end and p[0] == 46:
        p += 1
        start = p
        while p < end and 48 <= p[0] <= 57:
            p += 1
        if p == start:
            return NULL
    return p


cdef const uint8_t* json_value(const uint8_t* p, const uint8_t* end, int depth) noexcept nogil:
    """The end of the value that begins at p, or NULL."""
    cdef uint8_t closing
    if p == end or depth == DEEPEST:
        return NULL
    if p[0] == 34:
        return json_string(p, end)
    if p[0] == 116:
        return p + 4 if end - p >= 4 and memcmp(p, b"true", 4) == 0 else NULL
    if p[0] == 102:
        return p + 5 if end - p >= 5 and memcmp(p, b"false", 5) == 0 else NULL
    if p[0] != 123 and p[0] != 91:
        return json_number(p, end)
    closing = p[0] + 2                  # } or ]
    p += 1
    if p < end and p[0] == closing:
        return p + 1
    while True:
        while p < end and p[0] == 32:
            p += 1
        if closing == 125:
            p = json_string(p, end)
            if p == NULL or p == end or p[0] != 58:
                return NULL
            p += 1
            if p < end and p[0] == 32:
                p += 1
        p = json_value(p, end, depth + 1)
        if p == NULL or p == end:
            return NULL
        if p[0] == closing:
            return p + 1
        if p[0] != 44:
            return NULL
        p += 1


# --- msgpack -------------------------------------------------------------------------------------

cdef inline uint32_t big(const uint8_t* p, int n) noexcept nogil:
    cdef uint32_t v = 0
    cdef int i
    for i in range(n):
        v = (v << 8) | p[i]
    return v


cdef const uint8_t* pack_string(const uint8_t* p, const uint8_t* end) noexcept nogil:
    cdef uint32_t n, i
    cdef int head
    if p == end:
        return NULL
    if p[0] >> 5 == 5:
        n = p[0] & 31
        p += 1
    elif 0xD9 <= p[0] <= 0xDB:
        head = 1 << (p[0] - 0xD9)
        if end - p < 1 + head:
            return NULL
        n = big(p + 1, head)
        p += 1 + head
    else:
        return NULL
    if <size_t>(end - p) < n:
        return NULL
    for i in range(n):
        if p[i] < 0x20 or p[i] > 0x7e:
            return NULL
    return p + n


cdef const uint8_t* pack_value(const uint8_t* p, const uint8_t* end, int depth) noexcept nogil:
    cdef uint32_t n = 0, _
    cdef int size
    cdef bint pairs = False
    if p == end or depth == DEEPEST:
        return NULL
    if p[0] < 0x80 or p[0] == 0xC2 or p[0] == 0xC3:
        return p + 1
    if p[0] >> 5 == 5 or 0xD9 <= p[0] <= 0xDB:
        return pack_string(p, end)
    size = 0
    if p[0] == 0xCB:
        size = 9
    elif 0xCC <= p[0] <= 0xCF:
        size = 1 + (1 << (p[0] - 0xCC))
    elif p[0] == 0xD7:
        size = 10
    if size:
        return p + size if end - p >= size else NULL
    if p[0] >> 4 == 8 or p[0] >> 4 == 9:
        pairs = p[0] >> 4 == 8
        n = p[0] & 15
        p += 1
    elif 0xDC <= p[0] <= 0xDF:
        pairs = p[0] >= 0xDE
        size = 4 if p[0] & 1 else 2
        if end - p < 1 + size:
            return NULL
        n = big(p + 1, size)
        p += 1 + size
    else:
        return NULL
    for _ in range(n):
        if pairs:
            p = pack_string(p, end)
            if p == NULL:
                return NULL
        p = pack_value(p, end, depth + 1)
        if p == NULL:
            return NULL
    return p


# --- events --------------------------------------------------------------------------------------

cdef const char* text_check(const uint8_t* p, const uint8_t* end, bint tabs) noexcept nogil:
    cdef int _
    if p == end or (end - 1)[0] != 10:
        return b"a line does not end in a newline"
    end -= 1
    if tabs:                            # time and tag lead
        for _ in range(2):
            while p < end and 0x20 <= p[0] <= 0x7e:
                p += 1
            if p == end or p[0] != 9:
                return b"a line of text is not: time, tag, JSON"
            p += 1
    if p == end or p[0] != 123 or json_value(p, end, 0) != end:
        return b"a line is not JSON"
    return NULL


cdef const char* event_check(const uint8_t* entry, uint32_t n) noexcept nogil:
    """NULL if the event, which has n bytes, is well-formed in each of its formats."""
    cdef const EventHeader* h = <const EventHeader*>entry
    cdef const uint8_t* p = entry + sizeof(EventHeader)
    cdef const uint8_t* end = entry + n
    cdef const uint8_t* stop
    cdef const char* failed
    cdef int format
    if n < sizeof(EventHeader):
        return b"an event without its header"
    event_keep(entry, n)
    for format in range(FORMATS):
        if h.lengths[format] == 0:
            continue
        if <size_t>(end - p) < h.lengths[format]:
            return b"a format's length is beyond its event"
        stop = p + h.lengths[format]
        if format == FORMAT_TEXT or format == FORMAT_JSON:
            failed = text_check(p, stop, format == FORMAT_TEXT)
            if failed != NULL:
                return failed
        elif p[0] != 0x93 or pack_value(p, stop, 0) != stop:
            return b"an event is not msgpack"
        p = stop
    if p != end:
        return b"more in an event than its formats"
    return NULL


cdef void ids_forget() noexcept nogil:
    """What comes from now on is another run's."""
    global kept_ids
    kept_ids = 0
    memset(seen, 0, sizeof(seen))


cdef const char* id_check(const uint8_t* entry) noexcept nogil:
    """NULL if the event, which is well-formed, has an id that none before it had.

    Its line of text is looked at.  The key can't stand in a value there: a quote would be escaped.
    """
    global kept_ids
    cdef const EventHeader* h = <const EventHeader*>entry
    cdef const char* key = b', "event_id": "'
    cdef const uint8_t* p = entry + sizeof(EventHeader)
    cdef const uint8_t* end = p + h.lengths[FORMAT_TEXT]
    cdef uint64_t print_of = <uint64_t>0xcbf29ce484222325     # FNV-1a
    cdef uint32_t place
    while end - p > 15 and memcmp(p, key, 15) != 0:
        p += 1
    if end - p <= 15 or p[15] == 34:
        return b"an event without an id"
    p += 15
    while p[0] != 34:
        print_of = (print_of ^ p[0]) * <uint64_t>0x100000001b3
        p += 1
    print_of |= 1
    place = print_of >> 50
    while seen[place] != 0:
        if seen[place] == print_of:
            return b"two events have the same id"
        place = (place + 1) % IDS
    if kept_ids < IDS // 2:
        seen[place] = print_of
        kept_ids += 1
    return NULL


def ids(list lines):
    """What id_check says of events whose lines of text are these, one after the other."""
    cdef bytes entry
    cdef EventHeader h
    cdef const char* failed
    told = []
    ids_forget()
    memset(&h, 0, sizeof(h))
    for line in lines:
        h.lengths[FORMAT_TEXT] = <uint32_t>len(line)
        entry = (<const char*>&h)[:sizeof(h)] + line
        failed = id_check(<const uint8_t*><const char*>entry)
        told.append(None if failed == NULL else failed.decode())
    return told
