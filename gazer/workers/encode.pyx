"""Events as bytes; see encode.pxd.  The fields are listed and explained in gazer/event.py.

Each event is described once, in the functions tx_fields and record_fields; `Out` makes a JSON and a
msgpack version of them at compile time.  Keys are written in the order of their bytes.

Room: `plan_tx` and `plan_record` return how much an event may take in its ring at most; the
encoders write without further checks.  A record takes at most its texts and RECORD_ROOM
(message.pxd) in either format; all the rest of an event is bounded by FIXED_ROOM, TUNNEL_ROOM and
side_room.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, strlen

from gazer.entry cimport (
    EVENT_KINDS, EVENT_RECORD, EVENT_TAGS, EVENT_TX, FORMATS, FORMAT_JSON, FORMAT_MSGPACK,
    FORMAT_TEXT, EventHeader)
from gazer.packet cimport MAX_TAGS, PROTOCOLS
from gazer.text cimport put, put_bytes, put_digits, put_hex, put_u16, put_u64
from gazer.workers.anomaly cimport OK, anomaly_name
from gazer.workers.exchange cimport ONE_WAY, STATUSES, SUCCESS, Exchange
from gazer.workers.intake cimport CAPTURE_SHIFT
from gazer.workers.message cimport (
    OPCODE_UPDATE, QUESTION, RECORD_ROOM, TYPE_OPT, Message, Record, message_opcode)
from gazer.workers.parts cimport (
    TUNNEL_ROOM, put_class_name, put_edns, put_flags, put_opcode_name, put_rcode_name, put_records,
    put_section, put_transport, put_tunnel_path, put_tunnels, put_type_name, side_room, tag_count,
    tag_id)
from gazer.workers.values cimport (
    Json, Out, Pack, as_big32, as_big64, list_begin, list_end, list_item, map_begin, map_end,
    next_key, pack_length, pack_uint, put_address, put_bool, put_duration, put_key, put_literal,
    put_port, put_string, put_text, put_time, put_uint)

import gazer.event

cdef extern from "time.h" nogil:
    struct tm:
        int tm_sec
        int tm_min
        int tm_hour
        int tm_mday
        int tm_mon
        int tm_year
    tm* gmtime_r(const long* t, tm* result)

cdef enum:
    FIXED_ROOM = 1024 + 8 * MAX_TAGS    # of an event, beside its records, sensor id and EDNS
    SMALLEST_EVENT = 16384              # all but the records fits, whatever a stranger sends
    ID_ROOM = 32 + PLACE_ROOM           # of the event's id, beside what its run begins with
    SECOND = 1000000000


# The texts that C strings below point into.
_TEXTS = [[gazer.event.tag_of(protocol, kind).encode() for kind in ("tx", "record")]
          for protocol in gazer.event.PROTOCOLS]
_STATUSES = [name.encode() for name in gazer.event.STATUSES]
assert len(_STATUSES) == STATUSES and len(_TEXTS) == PROTOCOLS
assert PROTOCOLS * EVENT_KINDS == EVENT_TAGS

cdef const char* TAGS[PROTOCOLS][2]
cdef const char* STATUS[STATUSES]


cdef void fill_tables():
    cdef int i
    for i in range(PROTOCOLS):
        TAGS[i][EVENT_TX] = _TEXTS[i][0]
        TAGS[i][EVENT_RECORD] = _TEXTS[i][1]
    for i in range(<int>STATUSES):        # an enum's numbers are unsigned in C
        STATUS[i] = _STATUSES[i]


fill_tables()


cdef inline void put_id(Out* o, Encoder e) noexcept nogil:
    next_key(o, b", \"event_id\": ")
    if Out is Json:
        o.p[0] = 34
        o.p = put_bytes(o.p + 1, e.run, e.run_length)
    else:
        o.p = pack_length(o.p, e.run_raw_length + e.place_length)
        o.p = put_bytes(o.p, e.run_raw, e.run_raw_length)
    o.p = put_bytes(o.p, e.place, e.place_length)
    if Out is Json:
        o.p[0] = 34
        o.p += 1


# --- the two kinds of event ----------------------------------------------------------------------

cdef void tx_fields(Out* o, const Exchange* x, Encoder e) noexcept nogil:
    cdef const Message* q = x.query
    cdef const Message* r = x.reply
    cdef const Message* one = r if r != NULL else q
    cdef bint full = e.full
    cdef bint q_edns = q != NULL and q.edns.present
    cdef bint r_edns = r != NULL and r.edns.present
    cdef bint q_bad = q != NULL and q.anomaly != OK
    cdef bint r_bad = r != NULL and r.anomaly != OK
    cdef bint q_dso = q != NULL and q.dso.length > 0
    cdef bint r_dso = r != NULL and r.dso.length > 0
    cdef bint latency = q != NULL and r != NULL and x.reply_time >= x.query_time
    cdef uint32_t tags = tag_count(x) if full else 0, i
    cdef bint waited = q != NULL and x.status != ONE_WAY
    cdef int n = 6 + 2 * (q != NULL) + 2 * (r != NULL) + e.ids
    if full:
        n += (4 + 2 * (q != NULL) + waited + 3 * (r != NULL) + (q_edns or r_edns) + (q_bad or r_bad)
              + (e.omitted > 0) + latency + (tags > 0) + 4 * x.transfer + (q_dso or r_dso)
              + (x.outer != NULL) + x.lossy)
    map_begin(o, n)
    if full and x.transfer:
        put_key(o, b"bytes")
        put_uint(o, x.bytes)
        next_key(o, b", \"client_addr\": ")
    else:
        put_key(o, b"client_addr")
    put_address(o, x.addresses, x.family)
    next_key(o, b", \"client_port\": ")
    put_port(o, x.client_port)
    if full:
        if x.transfer:
            next_key(o, b", \"complete\": ")
            put_bool(o, x.complete)
        if q_dso or r_dso:
            next_key(o, b", \"dso\": ")
            map_begin(o, q_dso + r_dso)
            if q_dso:
                put_key(o, b"query")
                put_text(o, &q.arena, &q.dso)
            if r_dso:
                put_key(o, b"reply")
                put_text(o, &r.arena, &r.dso)
            map_end(o)
        if q_edns or r_edns:
            next_key(o, b", \"edns\": ")
            map_begin(o, q_edns + r_edns)
            if q_edns:
                put_key(o, b"query")
                put_edns(o, q)
            if r_edns:
                put_key(o, b"reply")
                put_edns(o, r)
            map_end(o)
    if e.ids:
        put_id(o, e)
    if full:
        next_key(o, b", \"flags\": ")
        put_flags(o, one.flags)
        if latency:
            next_key(o, b", \"latency\": ")
            put_duration(o, x.reply_time - x.query_time)
        if x.lossy:
            next_key(o, b", \"lossy\": ")
            put_bool(o, True)
        if q_bad or r_bad:
            next_key(o, b", \"malformed\": ")
            map_begin(o, q_bad + r_bad)
            if q_bad:
                put_key(o, b"query")
                put_literal(o, anomaly_name(q.anomaly))
            if r_bad:
                put_key(o, b"reply")
                put_literal(o, anomaly_name(r.anomaly))
            map_end(o)
        if x.transfer:
            next_key(o, b", \"messages\": ")
            put_uint(o, x.messages)
        if e.omitted:
            next_key(o, b", \"omitted\": ")
            put_uint(o, e.omitted)
        next_key(o, b", \"opcode\": ")
        put_opcode_name(o, one)
        next_key(o, b", \"proto\": ")
        put_transport(o, x)
    if q != NULL:
        next_key(o, b", \"query\": ")
        put_records(o, q, e.shown_query, full)
        if full:
            next_key(o, b", \"query_size\": ")
            put_uint(o, x.query_size)
        next_key(o, b", \"query_ts\": ")
        put_time(o, x.query_time)
        if full:
            next_key(o, b", \"query_ts_ns\": ")
            put_uint(o, <uint64_t>x.query_time)
    if r != NULL:
        if full:
            next_key(o, b", \"rcode\": ")
            put_rcode_name(o, r)
            if x.transfer:
                next_key(o, b", \"records\": ")
                put_uint(o, x.records)
        next_key(o, b", \"reply\": ")
        put_records(o, r, e.shown_reply, full)
        if full:
            next_key(o, b", \"reply_size\": ")
            put_uint(o, x.reply_size)
        next_key(o, b", \"reply_ts\": ")
        put_time(o, x.reply_time)
        if full:
            next_key(o, b", \"reply_ts_ns\": ")
            put_uint(o, <uint64_t>x.reply_time)
    if full:
        if waited:
            next_key(o, b", \"retransmits\": ")
            put_uint(o, x.repeats)
        next_key(o, b", \"sensor\": ")
        if Out is Json:
            put_string(o, e.sensor, e.sensor_length)
        else:
            put_string(o, e.sensor_raw, e.sensor_raw_length)
    next_key(o, b", \"server_addr\": ")
    put_address(o, x.addresses + (4 if x.family == 4 else 16), x.family)
    next_key(o, b", \"server_port\": ")
    put_port(o, x.server_port)
    next_key(o, b", \"status\": ")
    if x.status == SUCCESS:
        put_literal(o, b"success")
    else:
        put_string(o, STATUS[x.status], <uint32_t>strlen(STATUS[x.status]))
    if full and x.outer != NULL:
        next_key(o, b", \"tunnels\": ")
        put_tunnels(o, x)
    next_key(o, b", \"tx_id\": ")
    put_port(o, x.id)
    if tags:
        next_key(o, b", \"vlan\": ")
        list_begin(o, tags)
        for i in range(tags):
            list_item(o, i)
            put_port(o, tag_id(x, i))
        list_end(o)
    map_end(o)


cdef void record_fields(Out* o, const Exchange* x, const Message* m, const Record* r,
                        Encoder e) noexcept nogil:
    cdef bint full = e.full
    cdef bint question = r.section == QUESTION
    cdef bint opt = r.type == TYPE_OPT and not question
    cdef bint reply = x.reply != NULL
    cdef int64_t time = x.reply_time if reply else x.query_time
    cdef bint top = full and r.top
    cdef uint32_t tags = tag_count(x) if full else 0, i
    cdef char[6 * MAX_TAGS] path
    cdef char* w
    map_begin(o, 9 + (not question) + e.ids + full * (
        6 + reply + (not opt) + (not opt and not question) + (tags > 0) + (x.outer != NULL)) + top)
    if full and not opt:
        put_key(o, b"class")
        put_class_name(o, r.klass)
    put_key(o, b"client_addr")
    put_address(o, x.addresses, x.family)
    next_key(o, b", \"client_port\": ")
    put_port(o, x.client_port)
    if not question:
        next_key(o, b", \"data\": ")
        put_text(o, &m.arena, &r.data)
    if e.ids:
        put_id(o, e)
    if full:
        next_key(o, b", \"flags\": ")
        put_flags(o, m.flags)
    if top and not question:
        next_key(o, b", \"flush\": ")
        put_bool(o, True)
    next_key(o, b", \"msg_type\": ")
    if reply:
        put_literal(o, b"reply")
    else:
        put_literal(o, b"query")
    next_key(o, b", \"name\": ")
    put_text(o, &m.arena, &r.name)
    if full:
        next_key(o, b", \"opcode\": ")
        put_opcode_name(o, m)
        next_key(o, b", \"proto\": ")
        put_transport(o, x)
        if reply:
            next_key(o, b", \"rcode\": ")
            put_rcode_name(o, m)
    next_key(o, b", \"section\": ")
    put_section(o, r.section, message_opcode(m) == OPCODE_UPDATE)
    if full:
        next_key(o, b", \"sensor\": ")
        if Out is Json:
            put_string(o, e.sensor, e.sensor_length)
        else:
            put_string(o, e.sensor_raw, e.sensor_raw_length)
    next_key(o, b", \"server_addr\": ")
    put_address(o, x.addresses + (4 if x.family == 4 else 16), x.family)
    next_key(o, b", \"server_port\": ")
    put_port(o, x.server_port)
    if full:
        next_key(o, b", \"ts\": ")
        put_time(o, time)
        next_key(o, b", \"ts_ns\": ")
        put_uint(o, <uint64_t>time)
        if not opt and not question:
            next_key(o, b", \"ttl\": ")
            put_uint(o, r.ttl)
        if x.outer != NULL:
            next_key(o, b", \"tunnel_path\": ")
            put_tunnel_path(o, x)
    next_key(o, b", \"tx_id\": ")
    put_port(o, x.id)
    next_key(o, b", \"type\": ")
    put_type_name(o, r.type)
    if top and question:
        next_key(o, b", \"unicast\": ")
        put_bool(o, True)
    if tags:
        next_key(o, b", \"vlan_path\": ")
        w = path
        for i in range(tags):
            if i:
                w[0] = 46
                w += 1
            w = put_u16(w, tag_id(x, i))
        put_string(o, path, <uint32_t>(w - path))
    map_end(o)


cdef class Encoder:
    """Encodes the events of one worker.

    `formats` is a set of Format numbers, `max_size` the most bytes that an event may take in any of
    them (at least 16 KiB, so that all but the records always fits).  `run`: when the run began, in
    ns since 1970: each event has its id (gazer/event.py); None: it has none.
    """

    def __init__(self, *, full, formats, max_size, sensor, run=None):
        if max_size < SMALLEST_EVENT:
            raise ValueError(f"an event must be allowed {SMALLEST_EVENT} bytes, not {max_size}")
        self.full = full
        for number in formats:
            self.use[<int>number] = True
        self.formats = len(formats)
        self.max_size = max_size
        quoted = f'"{sensor}"'
        if not sensor.isprintable() or '"' in sensor or "\\" in sensor:
            import json     # here, as few sensors have such a name

            quoted = json.dumps(sensor, ensure_ascii=False)
        self.sensor_kept = quoted[1:len(quoted) - 1].encode()
        self.sensor = self.sensor_kept
        self.sensor_length = len(self.sensor_kept)
        self.sensor_raw_kept = sensor.encode()
        self.sensor_raw = self.sensor_raw_kept
        self.sensor_raw_length = len(self.sensor_raw_kept)
        self.fixed = FIXED_ROOM + self.sensor_length
        if run is not None:
            self.ids = True
            self.run_kept = self.sensor_kept + b":%x" % run
            self.run = self.run_kept
            self.run_length = len(self.run_kept)
            self.run_raw_kept = self.sensor_raw_kept + b":%x" % run
            self.run_raw = self.run_raw_kept
            self.run_raw_length = len(self.run_raw_kept)
            self.fixed += self.run_length + ID_ROOM
        self.budget = self.max_size - self.fixed
        self.second = -1

    cdef void identify(self, uint64_t sequence, uint64_t index, uint64_t late) noexcept nogil:
        """The next event is the one of this index under the frame's number, and `late` if that
        is not 0: then it is due at this clock, not at the frame's."""
        cdef char* w = self.place
        w[0] = 58
        w = put_u64(w + 1, sequence >> CAPTURE_SHIFT)
        w[0] = 58
        w = put_u64(w + 1, sequence & ((<uint64_t>1 << CAPTURE_SHIFT) - 1))
        w[0] = 58
        w = put_u64(w + 1, index)
        if late:
            w[0] = 64
            late = as_big64(late)
            w = put_hex(w + 1, <const uint8_t*>&late, sizeof(late))
        self.place_length = <uint32_t>(w - self.place)

    cdef void set_date(self, int64_t second) noexcept nogil:
        """`date` is 2015-10-11T02:40:12 (UTC), 19 bytes."""
        cdef tm t
        cdef long s = second
        cdef char* w = self.date
        self.second = second
        gmtime_r(&s, &t)
        w = put_digits(w, t.tm_year + 1900, 4)
        w[0] = 45
        w = put_digits(w + 1, t.tm_mon + 1, 2)
        w[0] = 45
        w = put_digits(w + 1, t.tm_mday, 2)
        w[0] = 84
        w = put_digits(w + 1, t.tm_hour, 2)
        w[0] = 58
        w = put_digits(w + 1, t.tm_min, 2)
        w[0] = 58
        w = put_digits(w + 1, t.tm_sec, 2)

    cdef uint32_t fit(self, const Message* m, uint32_t room) noexcept nogil:
        """How many of the message's records fit into so much room."""
        cdef uint32_t i, size
        if m == NULL:
            return 0
        if m.room <= room:
            return m.records_read
        for i in range(m.records_read):
            size = (m.records[i].name.length + m.records[i].name.escapes
                    + m.records[i].data.length + m.records[i].data.escapes + RECORD_ROOM)
            if size > room:
                return i
            room -= size
        return m.records_read

    cdef uint32_t plan_tx(self, const Exchange* x) noexcept nogil:
        """Decide which records are shown; return the most that the entry may take.

        Records are left out from the end.  The query gives way to the reply, but keeps at least
        half of the room; a stranger's long query can't crowd out the reply.
        """
        cdef uint32_t fixed = (self.fixed + side_room(x.query) + side_room(x.reply)
                               + (TUNNEL_ROOM if x.outer != NULL else 0))
        cdef uint32_t room = self.max_size - fixed
        cdef uint32_t query = 0 if x.query == NULL else x.query.room
        cdef uint32_t reply = 0 if x.reply == NULL else x.reply.room
        self.omitted = 0
        if x.query != NULL:
            if query + reply > room:
                query = room - reply if reply < room // 2 else room // 2
            self.shown_query = self.fit(x.query, query)
            self.omitted += x.query.omitted + x.query.records_read - self.shown_query
            query = query if query < x.query.room else x.query.room
        if x.reply != NULL:
            self.shown_reply = self.fit(x.reply, room - query)
            self.omitted += x.reply.omitted + x.reply.records_read - self.shown_reply
            reply = reply if reply < room - query else room - query
        return sizeof(EventHeader) + self.formats * (fixed + query + reply)

    cdef char* frame_begin(self, int format, char* w, const char* tag,
                           int64_t time) noexcept nogil:
        """What stands before the record's map, in this format."""
        cdef int64_t second = time // SECOND
        cdef uint32_t n
        if format == FORMAT_TEXT or format == FORMAT_JSON:
            if second != self.second:
                self.set_date(second)
            if format == FORMAT_TEXT:
                memcpy(w, self.date, 19)
                w = put(w + 19, b"+00:00\t")
                w = put_bytes(w, tag, strlen(tag))
                w[0] = 9
                return w + 1
            w = put(w, b"{\"tag\": \"")
            w = put_bytes(w, tag, strlen(tag))
            w = put(w, b"\", \"time\": \"")
            memcpy(w, self.date, 19)
            w[19] = 46
            w = put_digits(w + 20, <uint32_t>((time - second * SECOND) // 1000), 6)
            return put(w, b"Z\", ")
        w[0] = <char>0x93
        n = <uint32_t>strlen(tag)
        w = put_bytes(pack_length(w + 1, n), tag, n)
        if format == FORMAT_MSGPACK:
            return pack_uint(w, <uint64_t>second)
        # Fluentd's EventTime: extension type 0, seconds and nanoseconds in 32 bits each.  It ends
        # in 2106 and stands still from there on; query_ts and reply_ts go on.
        if second > 0xFFFFFFFFLL:
            second = 0xFFFFFFFFLL
            time = second * SECOND + SECOND - 1
        w[0] = <char>0xD7
        w[1] = 0
        n = as_big32(<uint32_t>second)
        memcpy(w + 2, &n, 4)
        n = as_big32(<uint32_t>(time - second * SECOND))
        memcpy(w + 6, &n, 4)
        return w + 10

    cdef uint32_t finish(self, uint8_t* to, uint64_t clock, uint64_t sequence, int64_t time,
                         int kind, const Exchange* x, const Message* m,
                         const Record* r) noexcept nogil:
        """Write the entry: header, then each format.  Returns its length."""
        cdef EventHeader* header = <EventHeader*>to
        cdef char* w = <char*>to + sizeof(EventHeader)
        cdef char* start
        cdef char* json_start = NULL
        cdef uint32_t json_length = 0
        cdef Json j
        cdef Pack p
        cdef int format
        header.clock = clock
        header.sequence = sequence
        header.time = time
        header.tag = <uint32_t>x.protocol * EVENT_KINDS + <uint32_t>kind
        for format in range(FORMATS):
            if not self.use[format]:
                header.lengths[format] = 0
                continue
            start = w
            w = self.frame_begin(format, w, TAGS[x.protocol][kind], time)
            if format == FORMAT_TEXT or format == FORMAT_JSON:
                if format == FORMAT_JSON:
                    w -= 1              # the map's brace falls on the blank; see below
                j.p = w
                if json_start != NULL:
                    j.p = put_bytes(j.p, json_start, json_length)
                elif kind == EVENT_TX:
                    tx_fields(&j, x, self)
                else:
                    record_fields(&j, x, m, r, self)
                if format == FORMAT_TEXT:
                    json_start = w
                    json_length = <uint32_t>(j.p - w)
                else:
                    w[0] = 32           # one object: tag and time lead, the fields follow
                w = put(j.p, b"\n")
            else:
                p.p = w
                if kind == EVENT_TX:
                    tx_fields(&p, x, self)
                else:
                    record_fields(&p, x, m, r, self)
                w = p.p
            header.lengths[format] = <uint32_t>(w - start)
        return <uint32_t>(w - <char*>to)

    cdef uint32_t tx(self, const Exchange* x, uint8_t* to, uint64_t clock,
                     uint64_t sequence) noexcept nogil:
        """Encode the transaction into plan_tx's room.  Returns the entry's length.

        Its time is the reply's, without one the query's.
        """
        return self.finish(to, clock, sequence,
                           x.query_time if x.reply == NULL else x.reply_time,
                           EVENT_TX, x, NULL, NULL)

    cdef uint32_t plan_record(self, const Exchange* x, uint32_t i) noexcept nogil:
        """The most that the entry for record i of the exchange's one message may take."""
        cdef const Message* m = x.query if x.reply == NULL else x.reply
        return sizeof(EventHeader) + self.formats * (
            self.fixed + (TUNNEL_ROOM if x.outer != NULL else 0)
            + m.records[i].name.length + m.records[i].name.escapes
            + m.records[i].data.length + m.records[i].data.escapes + RECORD_ROOM)

    cdef uint32_t record(self, const Exchange* x, uint32_t i, uint8_t* to, uint64_t clock,
                         uint64_t sequence) noexcept nogil:
        """Encode record i of the exchange's one message.  Returns the entry's length."""
        cdef const Message* m = x.query if x.reply == NULL else x.reply
        return self.finish(to, clock, sequence,
                           x.query_time if x.reply == NULL else x.reply_time,
                           EVENT_RECORD, x, m, &m.records[i])


def entry_room(max_size, formats):
    """The largest payload of an event ring's entry, in bytes."""
    return sizeof(EventHeader) + formats * max_size
