"""One large block of memory for a table: address space at start, pages only as they are touched."""

cdef void* block_reserve(size_t size, str what) except NULL
cdef void block_free(void* block, size_t size) noexcept
