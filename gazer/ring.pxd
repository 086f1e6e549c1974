"""A byte ring for entries of variable length, one producer and one consumer, in shared memory.

Vocabulary and shape are those of Aeron's ring buffers.  `head` and `tail` are positions: they only
grow, and `position & (capacity - 1)` is the offset.  The producer claims room, fills it, commits
it, and publishes what it committed with one release store of `tail`; the consumer polls entries in
place and releases them with one release store of `head`.  Each side keeps the other's position and
reads the shared one only when what it knows does not suffice.

    offset
       0  magic, version, capacity                                   written once, by create
     128  tail                                                       producer
     256  mark_sequence, mark_clock  (the watermark, see below)      producer
          loss_clock: when something was lost that belongs here
     384  head                                                       consumer
     512  consumer_waits                                             set by the consumer that sleeps
     640  producer_waits                                             set by the producer that sleeps
    1024  entries: capacity bytes, a power of two

    An entry, on a multiple of 8:

    +--------------------+--------------------+---------------------------+
    | length (4 bytes)   | kind (4)           | payload (length - 8)      |
    +--------------------+--------------------+---------------------------+

An entry stands whole: where it does not fit before the end, the rest of the ring is one entry of
kind PADDING.  An entry takes at most a quarter of the capacity, so that a claim always succeeds
once the ring is empty enough.

The watermark says "no entry with a key below (clock, sequence) will follow" (ARCHITECTURE.md,
order).  The producer publishes its entries, then the sequence, then the clock; the consumer reads
the clock, then the sequence, then the tail.  Each pair that it can see so is true, though the two
words are not written at once: a newer sequence beside an older clock still bounds only entries that
were published before that sequence was.

Sleeping, both ways: say so in shared memory, full fence, look again, then wait for the bell (an
eventfd, one for each process).  Publishing: store, full fence, look whether the other side sleeps.
One of the two sees the other; without the fences a wake-up can be lost even on x86.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from gazer.atomics cimport load_acquire, load_word, store_release

cdef enum:
    RING_VERSION = 1
    RING_HEADER = 1024          # bytes before the entries
    ENTRY_HEADER = 8
    ENTRY_DATA = 1
    ENTRY_PADDING = 2
    RING_SMALLEST = 4096        # capacity in bytes; tests use it, a sensor's are larger

cdef extern from *:
    """
    #define GAZER_MARK_END UINT64_MAX
    """
    # As the watermark's clock: nothing will follow at all.  (An enum's value would be an int.)
    const uint64_t MARK_END "GAZER_MARK_END"


cdef struct RingHeader:
    uint64_t magic
    uint32_t version
    uint32_t reserved
    uint64_t capacity
    uint64_t pad0[13]
    uint64_t tail
    uint64_t pad1[15]
    uint64_t mark_sequence
    uint64_t mark_clock
    uint64_t loss_clock
    uint64_t pad2[13]
    uint64_t head
    uint64_t pad3[15]
    uint64_t consumer_waits
    uint64_t pad4[15]
    uint64_t producer_waits
    uint64_t pad5[47]


cdef struct Entry:
    uint32_t length
    uint32_t kind


cdef struct Producer:
    RingHeader* ring
    uint8_t* data
    uint64_t capacity
    uint64_t tail           # up to here entries are committed
    uint64_t published      # up to here the consumer may see them
    uint64_t head           # the consumer's position, as last seen
    uint64_t rung           # times the bell was rung
    int bell                # the consumer's eventfd


cdef struct Consumer:
    RingHeader* ring
    uint8_t* data
    uint64_t capacity
    uint64_t head           # up to here entries were polled
    uint64_t released       # up to here the producer may write over them
    uint64_t tail           # the producer's position, as last seen
    bint corrupt            # an entry that can't be: the other side is broken
    int bell                # the producer's eventfd


cdef void bell_ring(int bell) noexcept nogil
cdef int bell_wait(int bell, int timeout_ms) noexcept nogil


cdef inline uint8_t* ring_claim(Producer* p, uint32_t n) noexcept nogil:
    """Room for an entry with a payload of up to n bytes, or NULL while the ring is too full.

    The caller keeps n + ENTRY_HEADER within a quarter of the capacity.
    """
    cdef uint64_t need = (<uint64_t>n + ENTRY_HEADER + 7) & ~<uint64_t>7
    cdef uint64_t offset = p.tail & (p.capacity - 1)
    cdef uint64_t to_end = p.capacity - offset
    cdef uint64_t total = need if need <= to_end else to_end + need
    cdef Entry* padding
    if p.tail + total - p.head > p.capacity:
        p.head = load_acquire(&p.ring.head)
        if p.tail + total - p.head > p.capacity:
            return NULL
    if need > to_end:
        padding = <Entry*>(p.data + offset)
        padding.length = <uint32_t>to_end
        padding.kind = ENTRY_PADDING
        p.tail += to_end
        offset = 0
    return p.data + offset + ENTRY_HEADER


cdef inline void ring_commit(Producer* p, uint32_t n) noexcept nogil:
    """The payload just claimed is complete, with n bytes (not more than were claimed)."""
    cdef Entry* entry = <Entry*>(p.data + (p.tail & (p.capacity - 1)))
    entry.length = n + ENTRY_HEADER
    entry.kind = ENTRY_DATA
    p.tail += (<uint64_t>n + ENTRY_HEADER + 7) & ~<uint64_t>7


cdef inline uint8_t* ring_poll(Consumer* c, uint32_t* n) noexcept nogil:
    """The next entry's payload and its length, in place; NULL when there is none just now.

    What was polled stays readable until ring_release.
    """
    cdef Entry* entry
    cdef uint64_t offset
    cdef uint32_t length
    while True:
        if c.head == c.tail:
            c.tail = load_acquire(&c.ring.tail)
            if c.head == c.tail:
                return NULL
            if c.tail & 7 or c.tail - c.head > c.capacity:
                c.tail = c.head
                c.corrupt = True
                return NULL
        offset = c.head & (c.capacity - 1)
        entry = <Entry*>(c.data + offset)
        # The other process is not trusted to be whole: what it wrote must lie within the ring.  And
        # it is read once: it may be changed as soon as it was found to be right.
        length = load_word(&entry.length)
        if (length < ENTRY_HEADER or length > c.capacity - offset
                or length > c.tail - c.head):
            c.corrupt = True
            return NULL
        c.head += (<uint64_t>length + 7) & ~<uint64_t>7
        if entry.kind == ENTRY_DATA:
            n[0] = length - ENTRY_HEADER
            return <uint8_t*>entry + ENTRY_HEADER


cdef bint ring_publish(Producer* p) noexcept nogil
cdef void ring_mark(Producer* p, uint64_t clock, uint64_t sequence) noexcept nogil
cdef void ring_lose(Producer* p, uint64_t clock) noexcept nogil
cdef void ring_wake_consumer(Producer* p) noexcept nogil
cdef void ring_release(Consumer* c) noexcept nogil
cdef void ring_release_to(Consumer* c, uint64_t position) noexcept nogil
cdef bint ring_producer_sleeps(Producer* p, uint32_t n) noexcept nogil
cdef bint ring_consumer_sleeps(Consumer* c) noexcept nogil

cdef inline void ring_consumer_awake(Consumer* c) noexcept nogil:
    store_release(&c.ring.consumer_waits, 0)

cdef inline void ring_producer_awake(Producer* p) noexcept nogil:
    store_release(&p.ring.producer_waits, 0)


cdef class Ring:
    # One end's view of a ring: keeps the memory alive and makes the structs above.
    cdef const uint8_t[::1] view    # const: who only looks may have a read-only buffer
    cdef RingHeader* header
    cdef Producer producer(self, int bell)
    cdef Consumer consumer(self, int bell)
