"""Decode a DNS message; see message.pxd.

Rules:
- Nothing raises.  The first thing that is wrong is the message's `anomaly`; decoding goes on behind
  rdata that does not fit its type, and stops at everything else, with the records read so far.
- An OPT record's own fields tell the rcode (RFC 6891, section 6.1.3), so they are read even where
  its options are bad, or where there is no room left to show it.
- A message of opcode 6 without records holds TLVs instead (RFC 8490): `dso`.
- In mDNS a class has 15 bits, and the top one is a flag (RFC 6762, sections 5.4 and 10.2); an OPT
  record's class is a size and stays whole.
- The cost is linear in the message's size.  A name costs at most 255 octets and 128 jumps, and
  once the room (events.max_size) is used up, names are stepped over and no longer expanded: a
  staircase of compression pointers under thousands of records does not multiply.
- Every message is decoded into the same Message, whose arena and records were made at start.
- message_append adds a further message's answers behind what is there: a zone transfer is one reply
  of many messages (RFC 5936).  Room, `omitted`, the first anomaly, and the number of records that
  may go the slow road are those of all of them together.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from gazer.cursor cimport Cursor, cursor_has, cursor_left, cursor_over, cursor_skip, cursor_u16, \
    cursor_u32
from gazer.packet cimport PROTOCOL_MDNS
from gazer.text cimport COPY_SLACK
from gazer.workers.anomaly cimport (
    BAD_RDATA, COUNTS, NO_ROOM, OK, RDLENGTH, SHORT_HEADER, SNAPPED, TRAILING, TRUNCATED)
from gazer.workers.dso cimport DSO_ROOM, dso_render
from gazer.workers.edns cimport edns_decode
from gazer.workers.names cimport NAME_TEXT, name_render, name_skip, names_begin
from gazer.workers.question cimport question_plain
from gazer.workers.rdata cimport rdata_render
from gazer.workers.rdata_opt cimport opt_render


cdef int message_setup(Message* m, uint32_t budget, bint want_edns) except -1:
    """Make the parts that every message is decoded into.  `budget`: bytes of text, at most."""
    memset(m, 0, sizeof(Message))
    m.want_edns = want_edns
    m.budget = budget
    m.capacity = budget // 40 + 16      # no record takes less than 40 bytes of an event
    m.records = <Record*>calloc(m.capacity, sizeof(Record))
    m.arena.capacity = budget + 2 * NAME_TEXT + 4096
    m.arena.base = <char*>malloc(m.arena.capacity + COPY_SLACK)
    if m.records == NULL or m.arena.base == NULL:
        raise MemoryError
    assert m.arena.capacity >= DSO_ROOM
    return 0


cdef void message_free(Message* m) noexcept nogil:
    free(m.records)
    free(m.arena.base)
    m.records = NULL
    m.arena.base = NULL


cdef inline int record_decode(Message* m, Cursor* c, Record* record,
                              uint8_t section) noexcept nogil:
    """Decode one record.  Returns OK, BAD_RDATA, NO_ROOM (stepped over), or another anomaly (the
    cursor is then nowhere)."""
    cdef Cursor rdata
    cdef uint32_t start = c.pos, before = m.arena.used, length = 0
    cdef int result
    result = name_render(&m.names, c, &m.arena, &record.name)
    if result != OK:
        if result == NO_ROOM:
            c.pos = start
            return record_skip(m, c, section)
        return result
    record.section = section
    record.type = cursor_u16(c)
    record.klass = cursor_u16(c)
    record.top = 0
    if m.protocol == PROTOCOL_MDNS and (section == QUESTION or record.type != TYPE_OPT):
        record.top = <uint8_t>(record.klass >> 15)
        record.klass &= 0x7fff
    record.data.length = record.data.escapes = 0
    if section == QUESTION:
        if c.failed:
            return TRUNCATED
        record.ttl = 0
    else:
        record.ttl = cursor_u32(c)
        length = cursor_u16(c)
        if c.failed:
            return TRUNCATED
        if not cursor_has(c, length):
            return RDLENGTH
        rdata = cursor_over(c.base, c.pos, c.pos + length)
        if record.type == TYPE_OPT:
            result = opt_render(&m.names, &rdata, record.klass, record.ttl, &m.arena, &record.data)
        else:
            result = rdata_render(&m.names, &rdata, record.type, record.klass, &m.arena,
                                  &record.data)
        if record.type == TYPE_OPT and section == ADDITIONAL:
            edns_decode(&m.edns, c.base, c.pos, c.pos + length, record.klass, record.ttl,
                        m.want_edns, &m.arena)
        cursor_skip(c, length)
    if result == NO_ROOM:
        m.arena.used = before
        return NO_ROOM
    length = (record.name.length + record.name.escapes + record.data.length + record.data.escapes
              + RECORD_ROOM)
    if m.room + length > m.budget:
        m.arena.used = before
        return NO_ROOM
    m.room += length
    return result


cdef int record_skip(Message* m, Cursor* c, uint8_t section) noexcept nogil:
    """Step over a record without rendering it.  Returns NO_ROOM, or an anomaly."""
    cdef uint16_t type, klass
    cdef uint32_t ttl, length
    cdef int result = name_skip(&m.names, c)
    if result != OK:
        return result
    type = cursor_u16(c)
    klass = cursor_u16(c)
    if section != QUESTION:
        ttl = cursor_u32(c)
        length = cursor_u16(c)
        if not c.failed and not cursor_skip(c, length):
            return RDLENGTH
        if type == TYPE_OPT and section == ADDITIONAL and not c.failed:
            edns_decode(&m.edns, c.base, c.pos, c.pos, klass, ttl, False, &m.arena)
    return TRUNCATED if c.failed else NO_ROOM


cdef bint sections_decode(Message* m, Cursor* c, const uint16_t* counts, int section,
                          bint cut) noexcept nogil:
    """Decode so many records of each section, from this one on; False where decoding ends early.

    The only place that calls record_decode, which is so compiled into it.
    """
    cdef int result
    cdef uint32_t _i
    for section in range(section, ADDITIONAL + 1):
        for _i in range(counts[section]):
            if cursor_left(c) == 0:
                if m.anomaly == OK:
                    m.anomaly = SNAPPED if cut else COUNTS
                return False
            if m.omitted or m.records_read == m.capacity:
                result = record_skip(m, c, <uint8_t>section)
            else:
                result = record_decode(m, c, &m.records[m.records_read], <uint8_t>section)
            if result == NO_ROOM:
                m.omitted += 1
                continue
            if result != OK:
                if m.anomaly == OK:
                    m.anomaly = SNAPPED if cut and (
                        result == TRUNCATED or result == RDLENGTH) else result
                if result != BAD_RDATA:
                    return False
            m.records_read += 1
        if section == QUESTION:
            m.question_end = c.pos
            m.readable = True
            m.plain = counts[0] == 1 and question_plain(c.base, c.pos)
    return True


cdef int behind_records(Message* m, Cursor* c, bint cut) noexcept nogil:
    """What stands behind the last record: the TLVs of a stateful operation, or what shouldn't.
    Returns an Anomaly."""
    cdef int result
    if message_opcode(m) != OPCODE_DSO or (
            m.counts[0] | m.counts[1] | m.counts[2] | m.counts[3]):
        return TRAILING if cursor_left(c) else SNAPPED
    # Without records all of the arena is free.
    result = dso_render(c, m.want_edns, &m.arena, &m.dso)
    return SNAPPED if cut else result


cdef void message_decode(Message* m, const uint8_t* wire, uint32_t length, bint cut) noexcept nogil:
    """Decode wire[0:length]; `cut` says that the capture lacks the rest of it."""
    cdef Cursor c = cursor_over(wire, 0, length)
    cdef int section
    m.wire = wire
    m.length = length
    m.anomaly = OK
    m.readable = m.plain = False
    m.records_read = m.omitted = m.room = 0
    m.question_end = HEADER
    m.arena.used = 0
    m.edns.present = False
    m.edns.extended_rcode = 0
    m.dso.length = 0
    m.id = cursor_u16(&c)
    m.flags = cursor_u16(&c)
    for section in range(4):
        m.counts[section] = cursor_u16(&c)
    if c.failed:
        m.anomaly = SHORT_HEADER
        return
    names_begin(&m.names, wire, length)
    if (sections_decode(m, &c, m.counts, QUESTION, cut) and m.anomaly == OK
            and (cut or cursor_left(&c))):
        m.anomaly = behind_records(m, &c, cut)


cdef void message_append(Message* m, const uint8_t* wire, uint32_t length) noexcept nogil:
    """Decode the answers of another message behind the records that `m` has.

    All else of `m` stays that of the message that was decoded: `wire`, `counts` and the flags.
    The other message's bytes are not needed any more afterwards.
    """
    cdef Cursor c = cursor_over(wire, 0, length)
    cdef uint16_t questions, _
    cdef uint16_t[4] counts
    cdef uint32_t slow = m.names.slow
    cdef int result = OK
    cursor_skip(&c, 4)
    questions = cursor_u16(&c)
    counts[<int>ANSWER] = cursor_u16(&c)
    counts[<int>AUTHORITY] = counts[<int>ADDITIONAL] = 0
    cursor_skip(&c, 4)
    if c.failed:
        result = SHORT_HEADER
    names_begin(&m.names, wire, length)
    m.names.slow = slow
    for _ in range(questions):
        if result != OK:
            break
        result = COUNTS if cursor_left(&c) == 0 else name_skip(&m.names, &c)
        if result == OK and not cursor_skip(&c, 4):
            result = TRUNCATED
    if result == OK:
        sections_decode(m, &c, counts, ANSWER, False)
    elif m.anomaly == OK:
        m.anomaly = result
