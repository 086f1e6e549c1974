"""Frames of a network interface, through libpcap's memory-mapped ring (Linux, TPACKET_V3).

    kernel ──▶ filter ──▶ ring of blocks ──▶ batch ──▶ next()
               (kernel)   (shared memory)    (ours)

The kernel fills blocks of 256 KiB.  A block is ours when it is full, or BLOCK_MS after its first
frame; so a lone frame is seen within that time, and many frames cost one wake-up.  (libpcap's
"immediate mode" is another ring, with a slot of the largest possible size for each frame, 64 KiB
where the interface joins segments: 64 MiB are room for 1023 frames, and it wakes us for each.)

libpcap gives a block back to the kernel as soon as its last frame has been handed out, so frames
are copied: pcap_dispatch() with a callback that puts up to BATCH of them into a buffer of ours.
pcap_next_ex() makes a copy as well, of each frame by itself.  Neither makes a system call while
there are frames.

Opening.  A socket that receives without a filter, even for a moment, has frames in its ring that
nobody asked for; with several sockets in a fanout group, the same ones several times.  So

 1. libpcap makes the ring on a socket that is bound to a protocol that does not exist;
 2. it translates the filter (for Linux cooked frames offsets are others in the kernel), which is
    read back; libpcap itself gets a filter that everything passes, for it would apply a new one
    to frames that stand in the ring already, and those would be missing in the account;
 3. a filter that drops everything is put on the socket, then it is bound to all protocols;
 4. it joins its fanout group, if there is one;
 5. the real filter is put on it.  The first frame in the ring is one that passed it.

Draining.  drain() puts the filter that drops everything on the socket and waits until no frame is
on its way past the old one.  What the kernel has counted by then is all there will be; next() goes
on until as many have been read, and says SOURCE_END.

The account.  On Linux `received` counts all frames that passed the filter, `dropped` those of them
that found no room in the ring; so after a drain

    received = dropped + frames given by next()

and `interface_dropped`, what the network card could not take (rx_missed_errors, rx_fifo_errors of
the interface), stands beside it: those have passed no filter, so there may have been others' among
them.  libpcap looks it up in promiscuous mode only, and never for `any`.  libpcap's counters have
32 bits; they are widened here, which needs a look at them every 2**32 frames, and each stats() is
one.

When the interface goes.  The kernel says ENETDOWN once, and libpcap may take that and keep it to
itself: of an interface that is down it says nothing, it waits.  So whenever there is nothing to
read the socket is asked how its interface is, which takes a microsecond.  Then what stands in the
ring is handed out, then next() says SOURCE_BROKEN and `gone` is true.  A flap that is over before
anybody looks is no such case: the kernel goes on by itself.

The loopback interface shows each frame twice, once as sent and once as received.  libpcap leaves
out the former after the kernel has counted it; here a few instructions before the filter do so in
the kernel.

Link types: Ethernet frames are whole, with the VLAN tag that the kernel took out put back by
libpcap.  `any` gives Linux cooked frames (SLL).  Its second version (SLL2) would have the
interface's index, but libpcap puts no VLAN tags back into it, and tags tell networks apart.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from gazer.capture.libpcap cimport pcap_t
from gazer.capture.source cimport Frame, Source

cdef enum:
    BLOCK_MS = 25           # after its first frame, a block that is not full is ours
    BATCH = 64              # frames taken from the ring at once: 8 KiB of queries
    MAX_SNAPLEN = 262144    # libpcap's
    MIN_BUFFER = 524288     # two blocks: one is filled while the other is read
    # What is in the ring when a drain begins is ours within BLOCK_MS and the time it takes to read
    # it.  An account that does not add up after that time never will.
    DRAIN_MS = 2000


cdef struct Held:           # a frame in the batch
    size_t at               # in Batch.buffer
    uint32_t caplen
    uint32_t length
    int64_t time


cdef struct Batch:
    uint8_t* buffer         # room for BATCH frames of the largest size; touched as it is used
    size_t used
    uint32_t snaplen
    uint32_t scale          # ns in one unit of a timestamp's fraction
    int count
    Held[BATCH] held


cdef struct Tally:          # one of libpcap's counters
    uint32_t last
    uint64_t total


@cython.final
cdef class LiveSource(Source):
    cdef readonly int snaplen
    cdef readonly int buffer_bytes
    cdef readonly unsigned long long ring_bytes     # what the kernel gave: whole blocks
    cdef readonly bint promiscuous
    cdef readonly int wait_ms
    cdef readonly object warning    # what libpcap had to say when it was opened all the same
    cdef readonly bint gone         # the interface is not there, or not up, any more
    cdef object filter_of
    cdef object fanout
    cdef int wake
    cdef pcap_t* handle
    cdef int fd
    cdef int ifindex        # 0: all interfaces
    cdef int linktype_
    cdef Batch batch
    cdef int at             # next frame of the batch
    cdef unsigned long long told    # frames given when next() last said that there are no more
    cdef uint64_t taken     # frames taken from the ring
    cdef Tally received
    cdef Tally dropped
    cdef Tally missed
    cdef int ending         # SOURCE_FRAME, or what next() will say when the ring is empty
    cdef int64_t settled    # ms; from then on the kernel's counters have all that passed
    cdef int64_t deadline   # ms; the end comes by then, whatever they say
    cdef int failure        # an errno that the socket reported

    cdef int more(self, Frame* frame) noexcept nogil
    cdef inline int give(self, Frame* frame) noexcept nogil
    cdef int take(self) noexcept nogil
    cdef int await_frames(self, int timeout_ms) noexcept nogil
    cdef void look(self) noexcept nogil
    cdef void end(self, int result) noexcept nogil
    cdef bint balanced(self) noexcept nogil
    cdef int count(self) noexcept nogil
    cdef void shut(self)
    cdef object refuse(self, int status)
    cdef bytes program(self)
    cdef int begin(self, bytes program) except -1
    cdef int must(self, int error, object what) except -1


cdef inline void widen(Tally* tally, uint32_t now) noexcept nogil:
    """A counter that only grows, and wraps around."""
    tally.total += <uint32_t>(now - tally.last)
    tally.last = now


cdef inline void widen_drops(Tally* tally, uint32_t now) noexcept nogil:
    """An interface's: it begins again at 0 when the interface does, which seems to be a step back;
    what it had counted remains."""
    cdef uint32_t step = now - tally.last
    if step < <uint32_t>1 << 31:
        tally.total += step
    tally.last = now
