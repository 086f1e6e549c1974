"""The ring: set-up, publishing, sleeping and waking; see ring.pxd for layout and algorithm."""

from libc.errno cimport EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.unistd cimport read, write

from gazer.atomics cimport full_fence, load_acquire, load_relaxed, store_relaxed, store_release

from gazer.errors import SharedMemoryError

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* fds, unsigned long n, int timeout)
    enum:
        POLLIN

cdef uint64_t MAGIC = 0x474E4952525A4147      # "GAZRRING", as bytes in memory

assert sizeof(RingHeader) == RING_HEADER


def ring_bytes(capacity):
    """The bytes of shared memory that a ring of this capacity takes."""
    return RING_HEADER + capacity


cdef class Ring:
    """A ring in a buffer.  Call release() before the buffer's segment is closed."""

    def __init__(self, buffer, *, create=None):
        """Attach to the ring in `buffer`, or with create=CAPACITY make a new one there.

        Of a read-only buffer only `capacity` and `filled` can be asked.
        """
        if create is not None and memoryview(buffer).readonly:
            raise SharedMemoryError("a ring can't be made in a read-only buffer")
        self.view = buffer
        self.header = <RingHeader*>&self.view[0]
        if create is not None:
            self._create(create)
        if <size_t>self.view.shape[0] < RING_HEADER or self.header.magic != MAGIC:
            raise SharedMemoryError("not a ring of gazer's (wrong magic)")
        if self.header.version != RING_VERSION:
            raise SharedMemoryError(
                f"a ring of layout {self.header.version}, this program knows {RING_VERSION}")
        self._check_capacity(self.header.capacity)
        # Positions stay on multiples of 8, so that no entry's header reaches beyond the end.
        if (load_acquire(&self.header.head) | load_acquire(&self.header.tail)) & 7:
            raise SharedMemoryError("a damaged ring (a position between two entries)")

    def _check_capacity(self, capacity):
        if capacity < RING_SMALLEST or capacity & (capacity - 1):
            raise SharedMemoryError(
                f"a ring's capacity is a power of two from {RING_SMALLEST}, not {capacity}")
        if self.view.shape[0] < RING_HEADER + capacity:
            raise SharedMemoryError("a ring that is larger than its segment")

    def _create(self, capacity):
        self._check_capacity(capacity)
        memset(self.header, 0, RING_HEADER)
        self.header.version = RING_VERSION
        self.header.capacity = capacity
        store_release(&self.header.magic, MAGIC)

    cdef Producer producer(self, int bell):
        cdef Producer p
        p.ring = self.header
        p.data = <uint8_t*>self.header + RING_HEADER
        p.capacity = self.header.capacity
        p.tail = p.published = load_acquire(&self.header.tail)
        p.head = load_acquire(&self.header.head)
        p.rung = 0
        p.bell = bell
        return p

    cdef Consumer consumer(self, int bell):
        cdef Consumer c
        c.ring = self.header
        c.data = <uint8_t*>self.header + RING_HEADER
        c.capacity = self.header.capacity
        c.head = c.released = load_acquire(&self.header.head)
        c.tail = c.head
        c.corrupt = False
        c.bell = bell
        return c

    @property
    def capacity(self):
        return self.header.capacity

    @property
    def filled(self):
        """Bytes published and not yet released."""
        # The head first: both go on meanwhile, and the tail is never behind it.
        cdef uint64_t head = load_acquire(&self.header.head)
        return min(load_acquire(&self.header.tail) - head, self.header.capacity)

    def release(self):
        self.header = NULL
        self.view = None


cdef void bell_ring(int bell) noexcept nogil:
    """Wake the process that waits for this eventfd.  Its counter can't overflow: no wait."""
    cdef uint64_t one = 1
    if bell >= 0:
        while write(bell, &one, 8) < 0 and errno == EINTR:
            pass


cdef int bell_wait(int bell, int timeout_ms) noexcept nogil:
    """Wait until the bell is rung: 1; the time is over or a signal came: 0.  -1 waits for ever."""
    cdef pollfd p
    cdef uint64_t count
    p.fd = bell
    p.events = POLLIN
    p.revents = 0
    if poll(&p, 1, timeout_ms) <= 0:
        return 0
    return 1 if read(bell, &count, 8) == 8 else 0


cdef bint ring_publish(Producer* p) noexcept nogil:
    """Let the consumer see what is committed; wake it if it sleeps.  False if there was nothing."""
    if p.published == p.tail:
        return False
    p.published = p.tail
    store_release(&p.ring.tail, p.tail)
    ring_wake_consumer(p)
    return True


cdef void ring_wake_consumer(Producer* p) noexcept nogil:
    full_fence()
    if load_relaxed(&p.ring.consumer_waits):
        store_relaxed(&p.ring.consumer_waits, 0)
        p.rung += 1
        bell_ring(p.bell)


cdef void ring_mark(Producer* p, uint64_t clock, uint64_t sequence) noexcept nogil:
    """Store the watermark, behind a publish.  A consumer that sleeps is not woken for it."""
    store_release(&p.ring.mark_sequence, sequence)
    store_release(&p.ring.mark_clock, clock)


cdef void ring_lose(Producer* p, uint64_t clock) noexcept nogil:
    """Something that belongs into this ring was lost at this sensor clock: what its absence makes
    look like a missing query or reply is no evidence."""
    store_release(&p.ring.loss_clock, clock)


cdef void ring_release(Consumer* c) noexcept nogil:
    """The producer may write over all that was polled; wake it if it waits for room."""
    ring_release_to(c, c.head)


cdef void ring_release_to(Consumer* c, uint64_t position) noexcept nogil:
    """The same for what was polled ahead of this position."""
    if c.released == position:
        return
    c.released = position
    store_release(&c.ring.head, position)
    full_fence()
    if load_relaxed(&c.ring.producer_waits):
        store_relaxed(&c.ring.producer_waits, 0)
        bell_ring(c.bell)


cdef bint ring_producer_sleeps(Producer* p, uint32_t n) noexcept nogil:
    """Say that the producer waits for room for n bytes; True if it may wait for its bell now."""
    cdef uint64_t need = (<uint64_t>n + ENTRY_HEADER + 7) & ~<uint64_t>7
    cdef uint64_t to_end = p.capacity - (p.tail & (p.capacity - 1))
    if need > to_end:
        need += to_end
    store_relaxed(&p.ring.producer_waits, 1)
    full_fence()
    p.head = load_acquire(&p.ring.head)
    return p.tail + need - p.head > p.capacity


cdef bint ring_consumer_sleeps(Consumer* c) noexcept nogil:
    """Say that the consumer waits for entries; True if there is still none.

    The caller looks at the watermark as well, after this, if a new one would give it work.
    """
    store_relaxed(&c.ring.consumer_waits, 1)
    full_fence()
    return c.head == load_acquire(&c.ring.tail)
