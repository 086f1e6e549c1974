"""Doors for tests: the parts of capture, called from Python on bytes made by hand.

Nothing in gazer imports this.  Every frame stands at the end of a mapping behind which no page is
readable: a read beyond it ends the process.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.time cimport CLOCK_THREAD_CPUTIME_ID, clock_gettime, timespec

from gazer.guarded cimport Guarded
from gazer.capture.filter cimport Filter
from gazer.capture.fragments cimport (
    CELL, FIRST_HEAD, FRAGMENT_COUNTS, FRAGMENT_WHOLE, MORE_HEAD, PAGE, Fragments)
from gazer.capture.source cimport Frame
from gazer.packet cimport MAX_TUNNELS, Fragment, Layer, Packet

from gazer.capture.fragments import LEAST_BYTES

FRAGMENT_NAMES = ("datagrams", "joined", "foreign", "duplicate", "overlapping", "bad", "expired",
                  "evicted", "waiting")
assert len(FRAGMENT_NAMES) == FRAGMENT_COUNTS


# What the table's arithmetic of memory rests on.
SIZES = {"cell": CELL, "page": PAGE, "first_head": FIRST_HEAD, "more_head": MORE_HEAD,
         "least": LEAST_BYTES}


cdef Guarded PLACE = Guarded()


cdef class Table:
    """Fragments, one piece at a time.  A piece is a frame and what packet_decode says of it."""

    cdef Fragments table
    cdef Packet packet
    cdef Layer[MAX_TUNNELS] layers
    cdef readonly uint64_t nanoseconds      # CPU time of the last piece

    def __init__(self, *, max_datagrams=64, max_bytes=LEAST_BYTES, timeout=30 * 10**9, seed=1,
                 snaplen=262144):
        self.table = Fragments(max_datagrams=max_datagrams, max_bytes=max_bytes, timeout=timeout,
                               seed=seed, snaplen=snaplen)

    cdef Fragment fill(self, dict piece) except *:
        cdef Fragment f
        memset(&f, 0, sizeof(f))
        f.family = piece["family"]
        f.protocol = piece["protocol"]
        f.more = piece["more"]
        f.cut = piece.get("cut", False)
        f.id = piece["id"]
        f.offset = piece["offset"]
        f.addresses_offset = piece["addresses_offset"]
        f.head_length = piece["head_length"]
        f.payload_offset = piece["payload_offset"]
        f.payload_length = piece["payload_length"]
        return f

    def add(self, bytes frame, dict piece, uint64_t clock=0, bytes scope=b"", levels=0,
            bint foreign=False, mark=0):
        """None, or the joined frame as a dict.  `mark` stands for what else is known of the frame:
        it comes back with the whole if this piece has offset 0."""
        cdef Fragment f = self.fill(piece)
        cdef const uint8_t* data = PLACE.put(frame)
        cdef const uint8_t* networks = <const uint8_t*><const char*>scope
        cdef uint32_t caplen = len(frame), length = len(scope)
        cdef timespec before, after
        cdef int result
        memset(&self.packet, 0, sizeof(Packet))
        memset(self.layers, 0, sizeof(self.layers))
        self.packet.layers = levels
        self.packet.tags_offset = mark
        for i in range(levels if levels <= MAX_TUNNELS else 0):
            self.layers[i].id = mark + i
        with nogil:
            clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before)
            result = self.table.add(data, caplen, &f, &self.packet, self.layers, networks, length,
                                    foreign, clock)
            clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after)
        self.nanoseconds = (after.tv_sec - before.tv_sec) * 1000000000 + (
            after.tv_nsec - before.tv_nsec)
        return self.whole() if result == FRAGMENT_WHOLE else None

    def again(self, dict piece, uint64_t clock=0):
        """Hand in the joined frame itself: it holds a piece."""
        cdef Fragment f = self.fill(piece)
        cdef int result = self.table.add(
            self.table.joined.frame, self.table.joined.caplen, &f, &self.table.joined.packet,
            self.table.joined.layers, b"", 0, False, clock)
        return self.whole() if result == FRAGMENT_WHOLE else None

    cdef dict whole(self):
        j = self.table.joined
        return {
            "frame": (<const char*>j.frame)[:j.caplen],
            "length": j.length,
            "head_length": j.head_length,
            "protocol": j.protocol,
            "levels": j.packet.layers,
            "mark": j.packet.tags_offset,
            "layers": [j.layers[i].id - i for i in range(j.packet.layers)],
        }

    def expire(self, uint64_t clock):
        self.table.expire(clock)

    @property
    def counts(self):
        return {name: self.table.counts[i] for i, name in enumerate(FRAGMENT_NAMES)}

    @property
    def known(self):
        return self.table.known

    @property
    def cells(self):
        return self.table.cells_used

    @property
    def max_cells(self):
        return self.table.max_cells

    @property
    def bytes(self):
        """All the memory in use now."""
        return self.fixed + self.table.cells_used * CELL

    @property
    def fixed(self):
        """... that is in use with no datagram there: buckets, the joined frame, cell 0."""
        return self.table.buffer_size + 4 * (self.table.bucket_mask + 1) + CELL

    @property
    def largest_bucket(self):
        """The most datagrams that stand in one bucket."""
        cdef uint32_t bucket, index, n, most = 0
        for bucket in range(self.table.bucket_mask + 1):
            n = 0
            index = self.table.buckets[bucket]
            while index:
                n += 1
                index = self.table.at(index).next
            most = max(most, n)
        return most


# --- filters -------------------------------------------------------------------------------------

def passes(Filter filter not None, bytes frame, int linktype=1, length=None):
    """Whether the filter lets the frame pass; `length` is the frame's on the wire."""
    cdef Frame f
    memset(&f, 0, sizeof(f))
    f.data = PLACE.put(frame)
    f.caplen = len(frame)
    f.length = len(frame) if length is None else length
    f.linktype = linktype
    cdef bint yes
    with nogil:
        yes = filter.passes(&f)
    return yes


def program_length(Filter filter not None, int linktype=1):
    """How many instructions the filter has for a link type it has met; 0: it does not fit."""
    for i in range(filter.count):
        if filter.known[i].linktype == linktype and filter.known[i].works:
            return filter.known[i].program.bf_len
    return 0
