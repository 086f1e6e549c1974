"""The table of TCP connections; see connections.pxd."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from gazer.block cimport block_free, block_reserve
from gazer.cursor cimport Cursor, cursor_over, cursor_take
from gazer.workers.pieces cimport Pieces
from gazer.workers.question cimport hash_bytes

cdef enum:
    FEWEST_BUCKETS = 4096

cdef uint64_t NEVER = ~<uint64_t>0

assert sizeof(Connection) == 192


cdef class Connections:
    """The table of one worker; `timeout` in ns."""

    def __cinit__(self, *, max_streams, max_bytes, max_bytes_each, timeout, seed):
        self.pieces = Pieces(max_bytes=max_bytes, max_bytes_each=max_bytes_each)
        self.max_streams = max(1, max_streams)
        self.timeout = timeout
        self.seed = seed
        # Cell 0 is never used: index 0 means "none".
        self.reserved = (<size_t>self.max_streams + 1) * sizeof(Connection)
        self.cells = <uint8_t*>block_reserve(self.reserved, "TCP connections")
        self.touched = 1
        self.bucket_mask = FEWEST_BUCKETS - 1
        self.buckets = <uint32_t*>calloc(FEWEST_BUCKETS, sizeof(uint32_t))
        if self.buckets == NULL:
            raise MemoryError

    def __dealloc__(self):
        block_free(self.cells, self.reserved)
        free(self.buckets)

    cdef Connection* at(self, uint32_t index) noexcept nogil:
        return <Connection*>(self.cells + <size_t>index * sizeof(Connection))

    cdef void grow(self) noexcept nogil:
        """Twice the buckets.  With no memory for them the chains just become longer."""
        cdef uint32_t size = (self.bucket_mask + 1) * 2, index
        cdef uint32_t* buckets = <uint32_t*>calloc(size, sizeof(uint32_t))
        cdef Connection* c
        if buckets == NULL:
            return
        index = self.oldest
        while index:
            c = self.at(index)
            c.next = buckets[c.hash & (size - 1)]
            buckets[c.hash & (size - 1)] = index
            index = c.newer
        free(self.buckets)
        self.buckets = buckets
        self.bucket_mask = size - 1

    cdef uint32_t find(self, const Segment* s) noexcept nogil:
        """The segment's connection or 0; `side`, `ends` and `hash` are its own either way."""
        cdef uint32_t half = 4 if s.family == 4 else 16, index
        cdef uint32_t n = 2 * half + s.scope_length
        cdef uint16_t a = s.source_port, b = s.destination_port
        cdef uint64_t ports
        cdef Cursor given = cursor_over(s.ends, 0, n)
        cdef const uint8_t* source = cursor_take(&given, half)
        cdef const uint8_t* destination = cursor_take(&given, half)
        cdef const uint8_t* scope = cursor_take(&given, s.scope_length)
        cdef Connection* c
        self.side = a < b or (a == b and memcmp(source, destination, half) < 0)
        if self.side:
            a, b = b, a
            source, destination = destination, source
        memcpy(self.ends, source, half)
        memcpy(self.ends + half, destination, half)
        memcpy(self.ends + 2 * half, scope, s.scope_length)
        ports = <uint64_t>a | <uint64_t>b << 16 | <uint64_t>s.family << 32
        self.hash = <uint32_t>hash_bytes(self.ends, n, self.seed ^ ports * 0x9E3779B97F4A7C15ULL, 0)
        index = self.buckets[self.hash & self.bucket_mask]
        while index:
            c = self.at(index)
            if (c.hash == self.hash and c.port[0] == a and c.port[1] == b and c.family == s.family
                    and c.scope_length == s.scope_length and memcmp(c.ends, self.ends, n) == 0):
                return index
            index = c.next
        return 0

    cdef uint32_t create(self, const Segment* s) noexcept nogil:
        """What `find` did not find; there is a place for it."""
        cdef uint32_t index = self.free_cells
        cdef uint32_t bucket
        cdef Connection* c
        if self.counts.live > self.bucket_mask:
            self.grow()
        if index:
            self.free_cells = self.at(index).next
        else:
            index = self.touched
            self.touched += 1
        c = self.at(index)
        memset(c, 0, sizeof(Connection) - MAX_ENDS)
        c.hash = self.hash
        c.family = s.family
        c.protocol = s.protocol
        c.scope_length = s.scope_length
        c.port[self.side] = s.source_port
        c.port[1 - self.side] = s.destination_port
        memcpy(c.ends, self.ends, (8 if s.family == 4 else 32) + s.scope_length)
        bucket = c.hash & self.bucket_mask
        c.next = self.buckets[bucket]
        self.buckets[bucket] = index
        self.link_newest(index)
        self.counts.live += 1
        self.restart(c)
        return index

    cdef void restart(self, Connection* c) noexcept nogil:
        """A new connection in this place."""
        self.serial += 1
        c.serial = self.serial
        memset(c.direction, 0, sizeof(c.direction))
        self.counts.opened += 1

    cdef void remove(self, uint32_t index) noexcept nogil:
        cdef Connection* c = self.at(index)
        cdef uint32_t* link = &self.buckets[c.hash & self.bucket_mask]
        while link[0] != index:
            link = &self.at(link[0]).next
        link[0] = c.next
        self.unlink(index)
        if c.holding:
            self.unhold(index)
        c.serial = 0
        c.next = self.free_cells
        self.free_cells = index
        self.counts.live -= 1

    cdef void link_newest(self, uint32_t index) noexcept nogil:
        cdef Connection* c = self.at(index)
        c.older = self.newest
        c.newer = 0
        if self.newest:
            self.at(self.newest).newer = index
        else:
            self.oldest = index
        self.newest = index

    cdef void unlink(self, uint32_t index) noexcept nogil:
        cdef Connection* c = self.at(index)
        if c.older:
            self.at(c.older).newer = c.newer
        else:
            self.oldest = c.newer
        if c.newer:
            self.at(c.newer).older = c.older
        else:
            self.newest = c.older

    cdef void hold_newest(self, uint32_t index) noexcept nogil:
        cdef Connection* c = self.at(index)
        c.holding = True
        c.held_older = self.held_newest
        c.held_newer = 0
        if self.held_newest:
            self.at(self.held_newest).held_newer = index
        else:
            self.held_oldest = index
        self.held_newest = index

    cdef void unhold(self, uint32_t index) noexcept nogil:
        cdef Connection* c = self.at(index)
        c.holding = False
        if c.held_older:
            self.at(c.held_older).held_newer = c.held_newer
        else:
            self.held_oldest = c.held_newer
        if c.held_newer:
            self.at(c.held_newer).held_older = c.held_older
        else:
            self.held_newest = c.held_older

    cdef void settle(self, uint32_t index) noexcept nogil:
        """Put the connection on the list of those that hold something, or take it off."""
        cdef Connection* c = self.at(index)
        cdef bint holds = c.chunks > 0
        if holds and not c.holding:
            self.hold_newest(index)
        elif c.holding and not holds:
            self.unhold(index)

    cdef uint64_t idle_at(self, const Connection* c) noexcept nogil:
        """The clock at which it will have been idle for the timeout."""
        return c.clock + self.timeout if c.clock < NEVER - self.timeout else NEVER

    cdef uint64_t due(self, uint64_t* number) noexcept nogil:
        """The clock at which the next connection will be idle, and the number of the frame with its
        last segment; the largest clock if there is none."""
        number[0] = self.at(self.oldest).number
        return self.idle_at(self.at(self.oldest)) if self.oldest else NEVER
