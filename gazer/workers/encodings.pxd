"""The encodings that record data is written in; see encodings.pyx.

Like the writers of gazer.text: each takes the place to write to, returns the place after what it
wrote, and states what room it may need.  Those that write bytes which JSON escapes add their
number to `escapes`.
"""

from libc.stdint cimport uint8_t, uint32_t

# 4 * ceil(n / 3) bytes, and ceil(8 * n / 5)
cdef char* put_base64(char* w, const uint8_t* p, uint32_t n) noexcept nogil
cdef char* put_base32hex(char* w, const uint8_t* p, uint32_t n) noexcept nogil
# up to 4n + 2 bytes, 4n, and 2n + 14
cdef char* put_quoted(char* w, const uint8_t* p, uint32_t n, uint32_t* escapes) noexcept nogil
cdef char* put_list_item(char* w, const uint8_t* p, uint32_t n, uint32_t* escapes) noexcept nogil
cdef char* put_generic(char* w, const uint8_t* p, uint32_t n, uint32_t* escapes) noexcept nogil
# exactly 14 bytes
cdef char* put_time(char* w, uint32_t seconds) noexcept nogil
