"""Samples of what is being asked, for `gazer top`: the last 1024 transactions of those that a
worker looks at, at most one each millisecond.

They stand in a shared segment of each worker's, a ring without a reader's end: the worker writes
over the oldest and waits for nobody, and whoever looks copies what holds still.  Each entry has a
lock for that, which is the sample's number twice; it is odd while the entry is written.  A reader
reads it, then the entry, then once more: if both say the same and it is even, so is the copy whole.
A worker that is killed while it writes leaves an odd one, which no reader takes; its successor
writes over it.

    offset
       0  magic, version, capacity, written
      64  entries, SAMPLE bytes each; number n stands at (n - 1) % capacity

Nothing here is complete, or meant to be: a sample is the first transaction of its millisecond.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from gazer.atomics cimport full_fence, load_acquire, store_release
from gazer.workers.exchange cimport Exchange
from gazer.workers.message cimport QUESTION, Message, message_rcode
from gazer.workers.rrtypes cimport put_rcode, put_type

from collections import namedtuple

from gazer.errors import SharedMemoryError
from gazer.event import STATUSES

cdef uint64_t MAGIC = 0x504D4153525A4147      # "GAZRSAMP", as bytes in memory

SAMPLES_BYTES = sizeof(SamplesHead) + SAMPLES * sizeof(Sample)

assert sizeof(SamplesHead) == 64 and sizeof(Sample) == 320


# A sample.  `number` counts a worker's; `clock` is the sensor's, ns; `name` and `type` are empty
# for a message without question, `rcode` is empty without a reply.
Seen = namedtuple("Seen", "number clock name type client rcode status")


cdef class Samples:
    """The worker's end.  The buffer is zeros, or what its predecessor left."""

    def __init__(self, buffer):
        self.view = buffer
        if <size_t>self.view.shape[0] < SAMPLES_BYTES:
            raise SharedMemoryError("no room for samples")
        self.head = <SamplesHead*>&self.view[0]
        self.entries = <Sample*>(&self.view[0] + sizeof(SamplesHead))
        self.head.version = SAMPLES_VERSION
        self.head.capacity = SAMPLES
        store_release(&self.head.magic, MAGIC)

    cdef void take(self, const Exchange* x, uint64_t clock) noexcept nogil:
        """Write a sample over the oldest one."""
        cdef uint64_t n = self.head.written + 1
        cdef Sample* s = &self.entries[(n - 1) % SAMPLES]
        cdef const Message* m = x.reply if x.query == NULL else x.query
        cdef size_t half = 4 if x.family == 4 else 16
        store_release(&s.lock, 2 * n - 1)
        full_fence()
        s.clock = clock
        s.type = 0
        s.length = 0
        if m.records_read and m.records[0].section == QUESTION:
            s.type = m.records[0].type
            s.length = m.records[0].name.length
            if s.length > SAMPLE_NAME:
                s.length = SAMPLE_NAME
            memcpy(s.name, m.arena.base + m.records[0].name.offset, s.length)
        s.rcode = NO_RCODE if x.reply == NULL else message_rcode(x.reply)
        s.status = <unsigned char>x.status
        s.family = x.family
        memset(s.address, 0, sizeof(s.address))
        memcpy(s.address, x.addresses, half)
        store_release(&s.lock, 2 * n)
        store_release(&self.head.written, n)

    def release(self):
        self.head = NULL
        self.entries = NULL
        self.view = None


def samples_written(const unsigned char[::1] buffer not None):
    """How many samples a worker has taken so far; 0 if it has not begun."""
    cdef const SamplesHead* head
    if <size_t>buffer.shape[0] < SAMPLES_BYTES:
        raise SharedMemoryError("too small for samples")
    head = <const SamplesHead*>&buffer[0]
    if load_acquire(&head.magic) != MAGIC:
        return 0
    if head.version != SAMPLES_VERSION or head.capacity != SAMPLES:
        raise SharedMemoryError(f"samples of layout {head.version}, not {SAMPLES_VERSION}")
    return load_acquire(&head.written)


def read_samples(const unsigned char[::1] buffer not None, uint64_t since=0):
    """The samples with a number above `since` that are still there, in their order: a list of Seen.

    `buffer` may be read-only.  Go on with the last one's number.
    """
    cdef uint64_t written = samples_written(buffer), n, lock
    cdef const Sample* entry
    cdef Sample s
    found = []
    if written > SAMPLES and since < written - SAMPLES:
        since = written - SAMPLES
    for n in range(since + 1, written + 1):
        entry = <const Sample*>(&buffer[0] + sizeof(SamplesHead)) + (n - 1) % SAMPLES
        lock = load_acquire(&entry.lock)
        memcpy(&s, entry, sizeof(Sample))
        full_fence()
        if lock != 2 * n or load_acquire(&entry.lock) != lock:
            continue    # written over in the meantime
        found.append(seen(n, &s))
    return found


cdef object seen(uint64_t n, const Sample* s):
    import ipaddress    # here: a worker never needs it

    cdef char[16] text
    cdef uint32_t length = s.length if s.length < SAMPLE_NAME else SAMPLE_NAME
    kind = rcode = ""
    if s.type or length:
        kind = text[:put_type(text, s.type) - text].decode("ascii")
    if s.rcode != NO_RCODE:
        rcode = text[:put_rcode(text, s.rcode) - text].decode("ascii")
    packed = bytes(s.address[:4] if s.family == 4 else s.address[:16])
    return Seen(
        n, s.clock, s.name[:length].decode("ascii", "replace"), kind,
        str(ipaddress.ip_address(packed)), rcode,
        STATUSES[s.status] if s.status < len(STATUSES) else "unknown")
