"""The names of the numbers in DNS messages: types, classes, response codes, operation codes and
extended errors.  See rrtypes.pyx."""

from libc.stdint cimport uint16_t

# The types that the code itself speaks of.
cdef enum RRType:
    TYPE_A = 1
    TYPE_NS = 2
    TYPE_CNAME = 5
    TYPE_SOA = 6
    TYPE_PTR = 12
    TYPE_MX = 15
    TYPE_TXT = 16
    TYPE_AAAA = 28
    TYPE_LOC = 29
    TYPE_DNAME = 39
    TYPE_OPT = 41

cdef enum RRClass:
    CLASS_IN = 1
    CLASS_NONE = 254
    CLASS_ANY = 255

# NULL where the number has no name.
cdef const char* type_name(uint16_t type) noexcept nogil
cdef const char* class_name(uint16_t klass) noexcept nogil
cdef const char* rcode_name(uint16_t rcode) noexcept nogil
cdef const char* opcode_name(uint16_t opcode) noexcept nogil
cdef const char* ede_name(uint16_t code) noexcept nogil

# Each writes up to 10 bytes, nothing that JSON escapes.
cdef char* put_type(char* w, uint16_t type) noexcept nogil
cdef char* put_class(char* w, uint16_t klass) noexcept nogil
cdef char* put_rcode(char* w, uint16_t rcode) noexcept nogil
cdef char* put_opcode(char* w, uint16_t opcode) noexcept nogil
