"""Record data, from the wire to presentation format.

A type's rdata is a row of fields, so most types are one line in `form_of`: a string with a letter
for each field, which `fields_render` follows.

    1 2 4   an unsigned number of so many octets
    n       a domain name
    t       a type, as its mnemonic
    d       a time, as YYYYMMDDHHMMSS (RFC 4034, section 3.2)
    s       a <character-string>, in quotes
    S       one or more of them, up to the end
    c       a tag of letters and digits with a length octet before it (RFC 8659, section 4.1)
    q  Q    the rest as one quoted string; it may be empty, it may not
    h       the rest in hexadecimal, not empty
    b  B    the rest in base64; not empty, it may be empty (then the field is left out)
    x       octets with a length octet before them, in hexadecimal; `-` if none (RFC 5155, 3.3)
    z       octets with a length octet before them, in base32hex (RFC 5155, section 3.3)
    m       a bitmap of types, up to the end (RFC 4034, section 4.1.2)
    p       the parameters of SVCB and HTTPS (gazer.workers.rdata_svcb)
    !       first of all: this is the form in class IN alone

Which way a type goes:

- A, AAAA and those that are one name (NS, CNAME, PTR, DNAME, MB, MG, MR, MD, MF): here, directly.
- SOA, MX, TXT, SRV, NAPTR, CAA, DNSSEC's types and the others in `form_of`: by their form.
- OPT: gazer.workers.rdata_opt.  Its class and TTL are fields of its own, which a caller that has
  them gives to opt_render; rdata_render shows the options alone.
- LOC: through dnslib (gazer.workers.slow), which needs the GIL.  Of what dnslib knows beyond the
  above only RP is left, and that is done here: dnslib escapes names by other rules than ours.
- All others, and types of class IN in another class: the form of RFC 3597, section 5, and nothing
  is wrong with them.  Nor is with empty rdata in the classes ANY and NONE, as a dynamic update
  has it (RFC 2136, sections 2.4 and 2.5).

A name in rdata may be compressed whatever its type: only RFC 1035's own types should have that
(RFC 3597, section 4), but some senders do it, multicast DNS as a rule, and there is no doubt about
what it says.

Rdata that is too short, too long or otherwise not what its type says is BAD_RDATA, and the text
is that of RFC 3597.  What is merely unwise (a digest of the wrong length, a mandatory parameter
that is not there) is shown as it is: a sensor tells what was said.

Text is written piece by piece at the arena's end, so it lies in one piece in the end.  Room is made
sure of before each piece, by its longest form.  When text that held a name is taken back, so are
the names remembered (names_forget): the memo points into it.  Rdata is taken to be at most 65535
octets, as rdlength has it.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from gazer.cursor cimport (Cursor, cursor_left, cursor_take, cursor_u16, cursor_u32, cursor_u8)
from gazer.text cimport (Arena, Text, arena_commit, arena_end, arena_room, put_bytes, put_hex,
                         put_ipv4, put_ipv6, put_u16, put_u64)
from gazer.workers.anomaly cimport BAD_RDATA, NO_ROOM, OK
from gazer.workers.encodings cimport (put_base32hex, put_base64, put_generic, put_quoted,
                                      put_time)
from gazer.workers.names cimport Names, name_render, names_forget
from gazer.workers.rdata_opt cimport options_render
from gazer.workers.rdata_svcb cimport svcb_params
from gazer.workers.rrtypes cimport (CLASS_ANY, CLASS_IN, CLASS_NONE, TYPE_A, TYPE_AAAA, TYPE_LOC,
                                    TYPE_OPT, put_type)

from gazer.workers import slow

cdef enum:
    SMALL = 16          # room for a space and any field of fixed size; the longest is a time, 14
    TYPE_TEXT = 11      # a space and a type


cdef inline const char* form_of(uint16_t type) noexcept nogil:
    """The fields of a type's rdata; NULL for the types that have no form here."""
    if type in (2, 3, 4, 5, 7, 8, 9, 12, 39):   # NS MD MF CNAME MB MG MR PTR DNAME
        return b"n"
    elif type == 6:                             # SOA
        return b"nn44444"
    elif type in (14, 17):                      # MINFO RP
        return b"nn"
    elif type in (15, 18, 21, 107):             # MX AFSDB RT LP
        return b"2n"
    elif type in (16, 56, 99, 258, 261, 262):   # TXT NINFO SPF AVC RESINFO WALLET
        return b"S"
    elif type == 13:                            # HINFO
        return b"ss"
    elif type == 19:                            # X25
        return b"s"
    elif type in (24, 46):                      # SIG RRSIG
        return b"t114dd2nb"
    elif type == 25:                            # KEY
        return b"211B"
    elif type == 26:                            # PX
        return b"!2nn"
    elif type == 33:                            # SRV
        return b"!222n"
    elif type == 35:                            # NAPTR
        return b"!22sssn"
    elif type == 36:                            # KX
        return b"!2n"
    elif type in (43, 59, 32768, 32769):        # DS CDS TA DLV
        return b"211h"
    elif type == 44:                            # SSHFP
        return b"11h"
    elif type == 47:                            # NSEC
        return b"nm"
    elif type in (48, 60):                      # DNSKEY CDNSKEY
        return b"211b"
    elif type == 49:                            # DHCID
        return b"!b"
    elif type == 50:                            # NSEC3
        return b"112xzm"
    elif type == 51:                            # NSEC3PARAM
        return b"112x"
    elif type in (52, 53):                      # TLSA SMIMEA
        return b"111h"
    elif type == 61:                            # OPENPGPKEY
        return b"b"
    elif type == 62:                            # CSYNC
        return b"42m"
    elif type == 63:                            # ZONEMD
        return b"411h"
    elif type in (64, 65):                      # SVCB HTTPS
        return b"!2np"
    elif type == 256:                           # URI
        return b"22Q"
    elif type == 257:                           # CAA
        return b"1cq"
    return NULL


cdef enum:
    # Of one message: a record on the slow road costs as much as a hundred others, and 64 KB hold
    # two thousand.  The rest are shown in the form of RFC 3597, which is no less true.
    SLOW_RECORDS = 16


cdef inline bint like_in(uint16_t klass) noexcept nogil:
    """Internet rdata; in dynamic updates NONE and ANY stand for the zone's class (RFC 2136)."""
    return klass == CLASS_IN or klass == CLASS_NONE or klass == CLASS_ANY


cdef int rdata_render(Names* names, Cursor* c, uint16_t type, uint16_t klass,
                      Arena* arena, Text* out) noexcept nogil:
    cdef uint32_t start = c.pos, used = arena.used, length = cursor_left(c), escapes = 0
    cdef const char* form
    cdef int result
    cdef char* w
    if type == TYPE_A or type == TYPE_AAAA:
        if length != <uint32_t>(4 if type == TYPE_A else 16) or not like_in(klass):
            return generic_render(c, arena, out, type, klass)
        if not arena_room(arena, 45):
            c.pos = c.end
            return NO_ROOM
        w = arena_end(arena)
        w = put_ipv4(w, c.base + start) if type == TYPE_A else put_ipv6(w, c.base + start)
        c.pos = c.end
        arena_commit(arena, w, 0, out)
        return OK
    if length == 0 and (klass == CLASS_ANY or klass == CLASS_NONE):
        return generic_render(c, arena, out, type, klass)
    form = form_of(type)
    if form == NULL:
        if type == TYPE_OPT and length:
            return options_alone(c, arena, out)
        if type == TYPE_LOC:
            if names.slow == SLOW_RECORDS:
                return OK if generic_render(c, arena, out, type, klass) != NO_ROOM else NO_ROOM
            names.slow += 1
            result = slow_render(type, c.base + start, length, arena, out)
            if result != BAD_RDATA:
                c.pos = c.end
                return result
        return generic_render(c, arena, out, type, klass)
    if form[0] == 33:
        if not like_in(klass):
            return generic_render(c, arena, out, type, klass)
        form += 1
    result = fields_render(form, names, c, arena, &escapes)
    if result == OK and not c.failed and c.pos == c.end:
        w = arena_end(arena)
        arena.used = used
        arena_commit(arena, w, escapes, out)
        return OK
    arena.used = used
    names_forget(names)
    c.pos = c.end
    if result == NO_ROOM:
        return NO_ROOM
    c.pos = start
    return generic_render(c, arena, out, type, klass)


cdef int generic_render(Cursor* c, Arena* arena, Text* out, uint16_t type,
                        uint16_t klass) noexcept nogil:
    """The rdata in the form of RFC 3597.  The result says whether its type has a better one."""
    cdef uint32_t start = c.pos, length = cursor_left(c), escapes = 0
    cdef const char* form = form_of(type)
    cdef char* w
    c.pos = c.end
    c.failed = False
    if not arena_room(arena, 2 * length + 14):
        return NO_ROOM
    w = put_generic(arena_end(arena), c.base + start, length, &escapes)
    arena_commit(arena, w, escapes, out)
    if length == 0 and (klass == CLASS_ANY or klass == CLASS_NONE or type == TYPE_OPT):
        return OK
    if type == TYPE_A or type == TYPE_AAAA or (form != NULL and form[0] == 33):
        return BAD_RDATA if like_in(klass) else OK
    return BAD_RDATA if form != NULL or type == TYPE_OPT or type == TYPE_LOC else OK


cdef int options_alone(Cursor* c, Arena* arena, Text* out) noexcept nogil:
    """The options of an OPT record, without the fields of its class and TTL."""
    cdef uint32_t used = arena.used, escapes = 0, start = c.pos
    cdef bint whole = False
    cdef int result = options_render(c, arena, &escapes, &whole)
    cdef char* w = arena_end(arena)
    arena.used = used
    if result != NO_ROOM and not whole:
        c.pos = start
        return generic_render(c, arena, out, TYPE_OPT, CLASS_IN)
    c.pos = c.end
    if result == NO_ROOM:
        return NO_ROOM
    arena_commit(arena, w, escapes, out)
    out.offset += 1             # the space before the first option
    out.length -= 1
    return result


cdef int fields_render(const char* form, Names* names, Cursor* c, Arena* arena,
                       uint32_t* escapes) noexcept nogil:
    """Append the fields with a space between them.  Returns OK, an Anomaly or NO_ROOM.

    Where a read goes beyond the end the cursor has failed, and a zero stands in the text: the
    caller looks at the cursor.  What a bad field leaves in the arena is the caller's to take back.
    """
    cdef bint first = True
    cdef char kind
    cdef char* w
    cdef const uint8_t* p
    cdef uint32_t n
    cdef int result
    cdef Text name
    while form[0]:
        kind = form[0]
        form += 1
        if kind == c'm':
            return bitmap_render(c, arena)
        if kind == c'p':
            return svcb_params(c, arena, escapes)
        n = cursor_left(c)
        if kind == c'B' and n == 0:
            return OK
        if not arena_room(arena, SMALL):
            return NO_ROOM
        w = arena_end(arena)
        if not first:
            w[0] = 32
            w += 1
            arena.used += 1
        first = False
        if kind == c'n':
            result = name_render(names, c, arena, &name)
            if result != OK:
                return result
            escapes[0] += name.escapes
            continue
        if kind == c'1':
            w = put_u16(w, cursor_u8(c))
        elif kind == c'2':
            w = put_u16(w, cursor_u16(c))
        elif kind == c'4':
            w = put_u64(w, cursor_u32(c))
        elif kind == c't':
            w = put_type(w, cursor_u16(c))
        elif kind == c'd':
            w = put_time(w, cursor_u32(c))
        else:
            # At most four bytes of text for an octet, and two quotes.
            if kind == c's' or kind == c'c' or kind == c'x' or kind == c'z':
                n = cursor_u8(c)
                p = cursor_take(c, n)
            elif kind == c'S':
                if not arena_room(arena, 4 * n + 2):
                    return NO_ROOM
                w = put_strings(w, c, escapes)
                if w == NULL:
                    return BAD_RDATA
                arena.used = <uint32_t>(w - arena.base)
                continue
            else:
                p = cursor_take(c, n)
            if p == NULL:
                return BAD_RDATA
            if not arena_room(arena, 4 * n + 4):
                return NO_ROOM
            w = put_octets(w, kind, p, n, escapes)
            if w == NULL:
                return BAD_RDATA
        if c.failed:
            return BAD_RDATA
        arena.used = <uint32_t>(w - arena.base)
    return OK


cdef char* put_octets(char* w, char kind, const uint8_t* p, uint32_t n,
                      uint32_t* escapes) noexcept nogil:
    """A field of n octets, up to 4n+4 bytes; NULL if they break the rule of their kind."""
    cdef uint32_t i
    if kind == c's' or kind == c'q':
        return put_quoted(w, p, n, escapes)
    if kind == c'x':
        if n:
            return put_hex(w, p, n)
        w[0] = 45
        return w + 1
    if n == 0:
        return NULL
    if kind == c'h':
        return put_hex(w, p, n)
    if kind == c'z':
        return put_base32hex(w, p, n)
    if kind == c'Q':
        return put_quoted(w, p, n, escapes)
    if kind == c'c':
        for i in range(n):
            if not (48 <= p[i] <= 57 or 65 <= p[i] <= 90 or 97 <= p[i] <= 122):
                return NULL
        return put_bytes(w, <const char*>p, n)
    return put_base64(w, p, n)      # b B


cdef char* put_strings(char* w, Cursor* c, uint32_t* escapes) noexcept nogil:
    """All <character-string>s up to the end, up to 4n bytes for n octets; NULL if they do not fit,
    or if there is none.  A string of n octets has n + 1 on the wire, and 4n + 3 bytes at most."""
    cdef uint32_t n
    cdef const uint8_t* p
    if cursor_left(c) == 0:
        return NULL
    while True:
        n = cursor_u8(c)
        p = cursor_take(c, n)
        if p == NULL:
            return NULL
        w = put_quoted(w, p, n, escapes)
        if cursor_left(c) == 0:
            return w
        w[0] = 32
        w += 1


cdef int bitmap_render(Cursor* c, Arena* arena) noexcept nogil:
    """A space and a mnemonic for each type in the bitmap.

    Windows come in rising order, each with 1 to 32 octets of which the last is not zero (RFC 4034,
    section 4.1.2)."""
    cdef int after = -1
    cdef uint8_t window, n, i, bit
    cdef const uint8_t* p
    cdef char* w
    while cursor_left(c):
        window = cursor_u8(c)
        n = cursor_u8(c)
        p = cursor_take(c, n)
        if c.failed or n == 0 or n > 32 or window <= after or p[n - 1] == 0:
            return BAD_RDATA
        after = window
        for i in range(n):
            if p[i] == 0:
                continue
            if not arena_room(arena, 8 * TYPE_TEXT):
                return NO_ROOM
            w = arena_end(arena)
            for bit in range(8):
                if p[i] & (0x80 >> bit):
                    w[0] = 32
                    w = put_type(w + 1, <uint16_t>((window << 8) | (i << 3) | bit))
            arena.used = <uint32_t>(w - arena.base)
    return OK


cdef int slow_render(uint16_t type, const uint8_t* p, uint32_t n, Arena* arena,
                     Text* out) noexcept with gil:
    """Text by way of Python; BAD_RDATA, and nothing written, if there is none."""
    cdef uint32_t escapes
    cdef bytes text
    cdef const char* octets
    cdef uint32_t length
    if n > slow.MAX_RDATA:
        return BAD_RDATA
    try:
        text = slow.render(type, <bytes>p[:n])
        if text is None:
            return BAD_RDATA
    except Exception:           # no memory: the record is shown in the other form
        return BAD_RDATA
    length = len(text)
    octets = text
    if not arena_room(arena, length):
        return NO_ROOM
    escapes = text.count(b'"') + text.count(b"\\")
    arena_commit(arena, put_bytes(arena_end(arena), octets, length), escapes, out)
    return OK
