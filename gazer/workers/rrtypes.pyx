"""The names of the numbers in DNS messages.

The dictionaries below follow IANA's "Domain Name System (DNS) Parameters"; at import they are
copied into C tables, so that the hot path looks a name up without the GIL.  A number without a
name is written as RFC 3597 (section 5) writes it, TYPE65280 and CLASS42, and RCODE24 and OPCODE7
in the same manner.

One name differs from IANA's: type 255 is `*` there, and ANY here, as every tool calls it.
"""

from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy
from gazer.text cimport put, put_bytes, put_u16

TYPES = {
    1: "A", 2: "NS", 3: "MD", 4: "MF", 5: "CNAME", 6: "SOA", 7: "MB", 8: "MG", 9: "MR", 10: "NULL",
    11: "WKS", 12: "PTR", 13: "HINFO", 14: "MINFO", 15: "MX", 16: "TXT", 17: "RP", 18: "AFSDB",
    19: "X25", 20: "ISDN", 21: "RT", 22: "NSAP", 23: "NSAP-PTR", 24: "SIG", 25: "KEY", 26: "PX",
    27: "GPOS", 28: "AAAA", 29: "LOC", 30: "NXT", 31: "EID", 32: "NIMLOC", 33: "SRV", 34: "ATMA",
    35: "NAPTR", 36: "KX", 37: "CERT", 38: "A6", 39: "DNAME", 40: "SINK", 41: "OPT", 42: "APL",
    43: "DS", 44: "SSHFP", 45: "IPSECKEY", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 49: "DHCID",
    50: "NSEC3", 51: "NSEC3PARAM", 52: "TLSA", 53: "SMIMEA", 55: "HIP", 56: "NINFO", 57: "RKEY",
    58: "TALINK", 59: "CDS", 60: "CDNSKEY", 61: "OPENPGPKEY", 62: "CSYNC", 63: "ZONEMD",
    64: "SVCB", 65: "HTTPS", 66: "DSYNC", 67: "HHIT", 68: "BRID", 99: "SPF", 100: "UINFO",
    101: "UID", 102: "GID", 103: "UNSPEC", 104: "NID", 105: "L32", 106: "L64", 107: "LP",
    108: "EUI48", 109: "EUI64", 128: "NXNAME", 249: "TKEY", 250: "TSIG", 251: "IXFR",
    252: "AXFR", 253: "MAILB", 254: "MAILA", 255: "ANY", 256: "URI", 257: "CAA", 258: "AVC",
    259: "DOA", 260: "AMTRELAY", 261: "RESINFO", 262: "WALLET", 263: "CLA", 264: "IPN",
    32768: "TA", 32769: "DLV",
}

CLASSES = {1: "IN", 3: "CH", 4: "HS", 254: "NONE", 255: "ANY"}

# The twelve bits of header and OPT together (RFC 6891, section 6.1.3).  16 is BADVERS here: its
# other name, BADSIG, stands in TSIG's own error field (RFC 8945, section 3), never in a header.
RCODES = {
    0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED",
    6: "YXDOMAIN", 7: "YXRRSET", 8: "NXRRSET", 9: "NOTAUTH", 10: "NOTZONE", 11: "DSOTYPENI",
    16: "BADVERS", 17: "BADKEY", 18: "BADTIME", 19: "BADMODE", 20: "BADNAME", 21: "BADALG",
    22: "BADTRUNC", 23: "BADCOOKIE",
}

OPCODES = {0: "QUERY", 1: "IQUERY", 2: "STATUS", 4: "NOTIFY", 5: "UPDATE", 6: "DSO"}

# RFC 8914, section 5.2, and the registry it founded.
EDE = {
    0: "Other Error",
    1: "Unsupported DNSKEY Algorithm",
    2: "Unsupported DS Digest Type",
    3: "Stale Answer",
    4: "Forged Answer",
    5: "DNSSEC Indeterminate",
    6: "DNSSEC Bogus",
    7: "Signature Expired",
    8: "Signature Not Yet Valid",
    9: "DNSKEY Missing",
    10: "RRSIGs Missing",
    11: "No Zone Key Bit Set",
    12: "NSEC Missing",
    13: "Cached Error",
    14: "Not Ready",
    15: "Blocked",
    16: "Censored",
    17: "Filtered",
    18: "Prohibited",
    19: "Stale NXDOMAIN Answer",
    20: "Not Authoritative",
    21: "Not Supported",
    22: "No Reachable Authority",
    23: "Network Error",
    24: "Invalid Data",
    25: "Signature Expired before Valid",
    26: "Too Early",
    27: "Unsupported NSEC3 Iterations Value",
    28: "Unable to conform to policy",
    29: "Synthesized",
    30: "Invalid Query Type",
    31: "Rate Limited",
    32: "Over Quota",
}

cdef enum:
    LOW_TYPES = 265     # 0 to 264 stand in a table; what is above is named one by one


cdef struct Mnemonic:
    uint8_t length      # 0: no name
    char text[39]       # ends with a zero byte


cdef Mnemonic LOW_TYPE[LOW_TYPES]
cdef Mnemonic TYPE_TA
cdef Mnemonic TYPE_DLV
cdef Mnemonic CLASS[256]
cdef Mnemonic RCODE[24]
cdef Mnemonic OPCODE[16]
cdef Mnemonic ERROR[33]


cdef int set_name(Mnemonic* m, str name) except -1:
    text = name.encode("ascii")
    if <size_t>len(text) >= sizeof(m.text):
        raise ValueError(f"{name} is too long for the table")
    memcpy(m.text, <const char*>text, len(text))
    m.length = len(text)
    return 0


cdef int fill_table(Mnemonic* table, int size, dict names) except -1:
    for number, name in names.items():
        if not 0 <= number < size:
            raise ValueError(f"{name} ({number}) does not fit the table")
        set_name(&table[<int>number], name)
    return 0


fill_table(LOW_TYPE, LOW_TYPES, {n: name for n, name in TYPES.items() if n < 32768})
set_name(&TYPE_TA, TYPES[32768])
set_name(&TYPE_DLV, TYPES[32769])
fill_table(CLASS, 256, CLASSES)
fill_table(RCODE, 24, RCODES)
fill_table(OPCODE, 16, OPCODES)
fill_table(ERROR, 33, EDE)


cdef inline const Mnemonic* find(const Mnemonic* table, unsigned int size,
                                 unsigned int number) noexcept nogil:
    if number >= size or table[number].length == 0:
        return NULL
    return &table[number]


cdef inline const Mnemonic* find_type(uint16_t type) noexcept nogil:
    if type == 32768:
        return &TYPE_TA
    if type == 32769:
        return &TYPE_DLV
    return find(LOW_TYPE, LOW_TYPES, type)


cdef inline const char* text_of(const Mnemonic* m) noexcept nogil:
    if m == NULL:
        return NULL
    return &m.text[0]


cdef const char* type_name(uint16_t type) noexcept nogil:
    return text_of(find_type(type))


cdef const char* class_name(uint16_t klass) noexcept nogil:
    return text_of(find(CLASS, 256, klass))


cdef const char* rcode_name(uint16_t rcode) noexcept nogil:
    return text_of(find(RCODE, 24, rcode))


cdef const char* opcode_name(uint16_t opcode) noexcept nogil:
    return text_of(find(OPCODE, 16, opcode))


cdef const char* ede_name(uint16_t code) noexcept nogil:
    return text_of(find(ERROR, 33, code))


cdef char* put_type(char* w, uint16_t type) noexcept nogil:
    cdef const Mnemonic* m = find_type(type)
    if m != NULL:
        return put_bytes(w, m.text, m.length)
    return put_u16(put(w, b"TYPE"), type)


cdef char* put_class(char* w, uint16_t klass) noexcept nogil:
    cdef const Mnemonic* m = find(CLASS, 256, klass)
    if m != NULL:
        return put_bytes(w, m.text, m.length)
    return put_u16(put(w, b"CLASS"), klass)


cdef char* put_rcode(char* w, uint16_t rcode) noexcept nogil:
    cdef const Mnemonic* m = find(RCODE, 24, rcode)
    if m != NULL:
        return put_bytes(w, m.text, m.length)
    return put_u16(put(w, b"RCODE"), rcode)


cdef char* put_opcode(char* w, uint16_t opcode) noexcept nogil:
    cdef const Mnemonic* m = find(OPCODE, 16, opcode)
    if m != NULL:
        return put_bytes(w, m.text, m.length)
    return put_u16(put(w, b"OPCODE"), opcode)
