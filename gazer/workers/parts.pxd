"""Parts of events that both kinds share, in both formats: records, EDNS, tunnels; see values.pxd.

Functions with a fused type have to stand where they are compiled for each user of them.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport strlen

from gazer.packet cimport MAX_TUNNELS, PROTOCOL_MDNS, TCP
from gazer.text cimport Arena, put, put_bytes, put_ip, put_u64
from gazer.workers.exchange cimport Exchange
from gazer.workers.message cimport (
    ANSWER, AUTHORITY, FLAG_AA, FLAG_AD, FLAG_CD, FLAG_RA, FLAG_RD, FLAG_TC, OPCODE_UPDATE,
    QUESTION, TYPE_OPT, Edns, Message, Record, message_opcode, message_rcode)
from gazer.workers.outer cimport (
    Level, level_name, outer_level, outer_levels, outer_tag, outer_tags)
from gazer.workers.rrtypes cimport ede_name, put_class, put_opcode, put_rcode, put_type
from gazer.workers.values cimport (
    Json, Out, list_begin, list_end, list_item, map_begin, map_end, next_key, put_address, put_bool,
    put_key, put_literal, put_port, put_string, put_text, put_uint)

cdef enum:
    TUNNEL_ROOM = MAX_TUNNELS * 192     # of all levels of a tunnel, in the longer form


cdef inline void put_section(Out* o, int section, bint update) noexcept nogil:
    """The section's name; an UPDATE has names of its own (RFC 2136, section 2)."""
    if update:
        if section == QUESTION:
            put_literal(o, b"zone")
        elif section == ANSWER:
            put_literal(o, b"prerequisite")
        elif section == AUTHORITY:
            put_literal(o, b"update")
        else:
            put_literal(o, b"additional")
    elif section == ANSWER:
        put_literal(o, b"answer")
    elif section == QUESTION:
        put_literal(o, b"question")
    elif section == AUTHORITY:
        put_literal(o, b"authority")
    else:
        put_literal(o, b"additional")


cdef inline void put_type_name(Out* o, uint16_t type) noexcept nogil:
    cdef char[16] name
    if Out is Json:
        o.p[0] = 34
        o.p = put_type(o.p + 1, type)
        o.p[0] = 34
        o.p += 1
    else:
        put_string(o, name, <uint32_t>(put_type(name, type) - name))


cdef inline void put_class_name(Out* o, uint16_t klass) noexcept nogil:
    cdef char[16] name
    if klass == 1:
        put_literal(o, b"IN")
    else:
        put_string(o, name, <uint32_t>(put_class(name, klass) - name))


cdef inline void put_rcode_name(Out* o, const Message* m) noexcept nogil:
    cdef char[16] name
    put_string(o, name, <uint32_t>(put_rcode(name, message_rcode(m)) - name))


cdef inline void put_opcode_name(Out* o, const Message* m) noexcept nogil:
    cdef char[16] name
    if message_opcode(m) == 0:
        put_literal(o, b"QUERY")
    else:
        put_string(o, name, <uint32_t>(put_opcode(name, message_opcode(m)) - name))


cdef inline void put_flags(Out* o, uint16_t flags) noexcept nogil:
    cdef char[24] text
    cdef char* w = text
    if flags & FLAG_AA:
        w = put(w, b"aa ")
    if flags & FLAG_TC:
        w = put(w, b"tc ")
    if flags & FLAG_RD:
        w = put(w, b"rd ")
    if flags & FLAG_RA:
        w = put(w, b"ra ")
    if flags & FLAG_AD:
        w = put(w, b"ad ")
    if flags & FLAG_CD:
        w = put(w, b"cd ")
    put_string(o, text, <uint32_t>(w - text) - (w != text))


cdef inline void put_record(Out* o, const Arena* arena, const Record* r, bint full, bint update,
                            bint mdns) noexcept nogil:
    cdef bint question = r.section == QUESTION
    cdef bint opt = r.type == TYPE_OPT and not question
    cdef bint top = mdns and full and r.top
    map_begin(o, 3 + (not question) + (full and not opt) + (full and not opt and not question)
              + top)
    if full and not opt:
        put_key(o, b"class")
        put_class_name(o, r.klass)
    if not question:
        put_key(o, b"data")
        put_text(o, arena, &r.data)
        if top:
            next_key(o, b", \"flush\": ")
            put_bool(o, True)
        next_key(o, b", \"name\": ")
    else:
        put_key(o, b"name")
    put_text(o, arena, &r.name)
    next_key(o, b", \"section\": ")
    put_section(o, r.section, update)
    if full and not opt and not question:
        next_key(o, b", \"ttl\": ")
        put_uint(o, r.ttl)
    next_key(o, b", \"type\": ")
    put_type_name(o, r.type)
    if top and question:
        next_key(o, b", \"unicast\": ")
        put_bool(o, True)
    map_end(o)


cdef inline void put_records(Out* o, const Message* m, uint32_t n, bint full) noexcept nogil:
    cdef uint32_t i
    cdef bint update = message_opcode(m) == OPCODE_UPDATE, mdns = m.protocol == PROTOCOL_MDNS
    list_begin(o, n)
    if update or mdns:
        for i in range(n):
            list_item(o, i)
            put_record(o, &m.arena, &m.records[i], full, update, mdns)
    else:       # nearly always, so the compiler may know it
        for i in range(n):
            list_item(o, i)
            put_record(o, &m.arena, &m.records[i], full, False, False)
    list_end(o)


cdef inline void put_edns(Out* o, const Message* m) noexcept nogil:
    cdef const Edns* e = &m.edns
    cdef uint32_t i
    cdef const char* name
    map_begin(o, 4 + (e.subnet.length > 0) + (e.cookie.length > 0) + (e.nsid.length > 0)
              + (e.errors > 0))
    if e.subnet.length:
        put_key(o, b"client_subnet")
        put_text(o, &m.arena, &e.subnet)
    if e.cookie.length:
        put_key(o, b"cookie")
        put_text(o, &m.arena, &e.cookie)
    put_key(o, b"do")
    put_bool(o, e.dnssec_ok)
    if e.errors:
        put_key(o, b"extended_errors")
        list_begin(o, e.errors)
        for i in range(e.errors):
            list_item(o, i)
            name = ede_name(e.error_code[i])
            map_begin(o, 1 + (name != NULL) + (e.error_text[i].length > 0))
            put_key(o, b"code")
            put_uint(o, e.error_code[i])
            if name != NULL:
                put_key(o, b"name")
                put_string(o, name, <uint32_t>strlen(name))
            if e.error_text[i].length:
                put_key(o, b"text")
                put_text(o, &m.arena, &e.error_text[i])
            map_end(o)
        list_end(o)
    put_key(o, b"extended_rcode")
    put_uint(o, e.extended_rcode)
    if e.nsid.length:
        put_key(o, b"nsid")
        put_text(o, &m.arena, &e.nsid)
    put_key(o, b"udp_size")
    put_port(o, e.udp_size)
    put_key(o, b"version")
    put_uint(o, e.version)
    map_end(o)


cdef inline uint32_t side_room(const Message* m) noexcept nogil:
    """What the query's or the reply's part of `edns` and `dso` takes at most."""
    cdef uint32_t i, n = 0
    if m == NULL:
        return 0
    if m.dso.length:
        n += 32 + m.dso.length
    if not m.edns.present:
        return n
    n += 320 + m.edns.subnet.length + m.edns.cookie.length
    n += m.edns.nsid.length + m.edns.nsid.escapes
    for i in range(m.edns.errors):
        n += 112 + m.edns.error_text[i].length + m.edns.error_text[i].escapes
    return n


cdef inline uint32_t tag_count(const Exchange* x) noexcept nogil:
    """How many VLAN ids there are, those of all levels if the outer identity is known."""
    cdef uint32_t n = 0
    if x.outer != NULL:
        return outer_tags(x.outer)
    while 2 * n < x.scope_length and x.scope[2 * n] < 0x80:     # VNIs stand behind them
        n += 1
    return n


cdef inline uint16_t tag_id(const Exchange* x, uint32_t i) noexcept nogil:
    if x.outer != NULL:
        return outer_tag(x.outer, i)
    return (<uint16_t>x.scope[2 * i] << 8) | x.scope[2 * i + 1]


cdef inline void put_transport(Out* o, const Exchange* x) noexcept nogil:
    if x.transport == TCP:
        put_literal(o, b"tcp")
    else:
        put_literal(o, b"udp")


cdef inline void put_tunnels(Out* o, const Exchange* x) noexcept nogil:
    """The levels of encapsulation as maps, the outermost first."""
    cdef uint32_t at, i, n = outer_levels(x.outer, &at)
    cdef Level level
    list_begin(o, n)
    for i in range(n):
        list_item(o, i)
        outer_level(x.outer, &at, &level)
        map_begin(o, 1 + level.has_id + 2 * (level.family != 0))
        if level.family:
            put_key(o, b"destination")
            put_address(o, level.addresses + (4 if level.family == 4 else 16), level.family)
        if level.has_id:
            put_key(o, b"id")
            put_uint(o, level.id)
        if level.family:
            put_key(o, b"source")
            put_address(o, level.addresses, level.family)
        put_key(o, b"type")
        put_string(o, level_name(level.kind), <uint32_t>strlen(level_name(level.kind)))
        map_end(o)
    list_end(o)


cdef inline void put_tunnel_path(Out* o, const Exchange* x) noexcept nogil:
    """The same as one text: "vxlan 42 192.0.2.1>192.0.2.2, ip 10.0.0.1>10.0.0.2"."""
    cdef char[TUNNEL_ROOM] path
    cdef char* w = path
    cdef uint32_t at, i
    cdef Level level
    for i in range(outer_levels(x.outer, &at)):
        outer_level(x.outer, &at, &level)
        if i:
            w = put(w, b", ")
        w = put_bytes(w, level_name(level.kind), <uint32_t>strlen(level_name(level.kind)))
        if level.has_id:
            w[0] = 32
            w = put_u64(w + 1, level.id)
        if level.family:
            w[0] = 32
            w = put_ip(w + 1, level.addresses, level.family)
            w[0] = 62
            w = put_ip(w + 1, level.addresses + (4 if level.family == 4 else 16), level.family)
    put_string(o, path, <uint32_t>(w - path))
