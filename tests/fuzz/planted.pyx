"""A target with planted bugs, each behind a condition: what shows that the fuzzer sees coverage in
Cython code, and that each sanitizer and each kind of check fires.  tests/test_fuzz.py looks for
all of them; `make fuzz` does not run it."""

from libc.stdint cimport int32_t, uint8_t
from libc.stdlib cimport free, malloc


cdef const char* one_input(const uint8_t* data, size_t size) noexcept nogil:
    cdef uint8_t* heap
    cdef int32_t large = 0x7fffffff
    cdef uint8_t found
    if size < 5 or data[1] != 0x5a or data[2] != 0xa5 or data[3] != 0x33:
        return NULL
    heap = <uint8_t*>malloc(16)
    if heap == NULL:
        return NULL
    heap[0] = heap[15] = 1
    if data[0] == 1:            # address: a read behind the end
        found = heap[16 + (data[4] & 1)]
        free(heap)
        if found == data[4]:
            return b"read what is not there"
        return NULL
    if data[0] == 2:            # address: a read of what was freed
        free(heap)
        if heap[data[4] & 7] == 255:
            return b"read what is gone"
        return NULL
    if data[0] == 3:            # undefined: a signed number overflows
        large += data[4] | 1
        heap[1] = <uint8_t>large
    elif data[0] == 4:          # undefined: a shift by more than the bits there are
        heap[1] = <uint8_t>(large << (32 + (data[4] & 1)))
    elif data[0] == 5:          # leaked
        heap = NULL
        return NULL
    found = heap[1]
    free(heap)
    if data[0] == 6:            # a check of the target's own
        return b"planted"
    if data[0] == 7 and found == data[4]:
        return b"planted, too"
    return NULL


def address():
    """The C function, for the driver."""
    return <size_t>&one_input
