"""Events into the ring; see emitter.pxd.  The one place of a worker that waits for the sink.

An event is encoded into the ring, committed (with the counters and how far frames were taken), and
then shown to the sink: so what the sink has is what a successor of this process knows to be done.
See ARCHITECTURE.md, "Succession".

**Ids** (`events.event_id`) name an event's key and its index under it: 0, 1, ... in the order in
which the events of one key leave.  The frame's number and its clock are the key of what a frame
leads to; what is due later (a timeout, an idle connection) names the clock as well.

No two events of a run have the same id.  Those of one worker: the index goes back to 0 only at a
key greater than all before it, and so at one that no event had.  Those of different workers: each
frame has one worker, and an event the number of a frame that its worker took.  Those of a worker
and its successor: what was taken is committed together with the events that it led to (the engine
says that a frame is taken before its first event, so a torn one counts too).  So a frame that comes
again has no events that anybody has seen; and one that does not leads to none in the successor,
whose tables are empty.  There the same event has the same id as if nobody had died, unless what is
missing from the tables changes how many events stand ahead of it under its key.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from gazer.atomics cimport load_acquire, store_release
from gazer.counters cimport (
    MAX_COUNTERS, P_EVENTS, P_PASSED, RUNNING, WAITING, WORD_COMMITS, WORD_IN_HAND, W_FRAMES,
    W_OMITTED, W_RECORDS, W_TORN_EVENTS, W_TORN_FRAMES, W_TRANSACTIONS, W_WAITS, Slot)
from gazer.ring cimport (
    MARK_END, Ring, bell_wait, ring_claim, ring_commit, ring_mark, ring_producer_awake,
    ring_producer_sleeps, ring_publish, ring_wake_consumer)
from gazer.workers.encode cimport Encoder
from gazer.workers.exchange cimport Exchange
from gazer.workers.message cimport Message
from gazer.workers.sample cimport SAMPLE_PACE, Samples

from gazer.errors import SharedMemoryError

cdef enum:
    NAP = 100               # ms; the longest sleep: a safety net, and the pace of heartbeats


cdef class Emitter:
    """The producing end of one worker's event ring.

    `ring`: Ring; `sink_bell`: eventfd to wake the sink; `bell`: our own; `slot`: our part of the
    ledger; `samples`: where `gazer top` reads what is being asked, or None.
    """

    def __init__(self, *, Ring ring, int bell, int sink_bell, Slot slot, Encoder encoder,
                 Samples samples=None):
        self.ring = ring
        self.events = ring.producer(sink_bell)
        self.bell = bell
        self.slot = slot
        self.counters = slot.counters
        self.encoder = encoder
        self.samples = samples
        self.sample_due = MARK_END if samples is None else 0

    def restore(self):
        """Go on where the last commit stood: what was committed is shown, the rest written over."""
        cdef uint64_t tail = self.slot.positions[P_EVENTS]
        if (tail & 7 or tail < self.events.tail
                or tail - load_acquire(&self.ring.header.head) > self.events.capacity):
            raise SharedMemoryError("an event ring that does not agree with the ledger")
        self.events.tail = self.events.published = tail
        store_release(&self.ring.header.tail, tail)
        ring_wake_consumer(&self.events)

    cdef void commit(self) noexcept nogil:
        """Commit the counters and the tail that is about to be published."""
        self.slot.positions[P_EVENTS] = self.events.tail
        self.slot.commit()

    cdef void show(self) noexcept nogil:
        """Let the sink see what was committed."""
        ring_publish(&self.events)

    cdef void mark(self, uint64_t clock, uint64_t sequence) noexcept nogil:
        """Let the sink know that nothing below this key will follow."""
        cdef uint64_t* marks = &self.events.ring.mark_clock
        if clock > marks[0] or (clock == marks[0] and sequence > self.events.ring.mark_sequence):
            ring_mark(&self.events, clock, sequence)

    cdef uint8_t* room(self, uint32_t n) noexcept nogil:
        """Room for an event of up to n bytes; waits for the sink as long as it takes."""
        cdef uint8_t* to = ring_claim(&self.events, n)
        if to != NULL:
            return to
        self.counters[W_WAITS] += 1
        self.slot.set_state(WAITING)
        while True:
            to = ring_claim(&self.events, n)
            if to != NULL:
                break
            if self.events.head == self.events.published:
                self.tear()         # nothing is left that the sink could make room of
            self.rest(n)
        self.slot.set_state(RUNNING)
        return to

    cdef void rest(self, uint32_t n) noexcept nogil:
        """Wait a while for the sink."""
        if ring_producer_sleeps(&self.events, n):
            bell_wait(self.bell, NAP)
        ring_producer_awake(&self.events)
        self.slot.beat()

    cdef void tear(self) noexcept nogil:
        """Commit and show what there is in the middle of a frame, whose events alone do not fit
        into the ring.

        The counters stand between two states that agree with themselves, and there is none between.
        So those of the last commit are committed again; the frames begun since then count as torn,
        and so do their events.  The next whole commit takes that back.  If there is none, what the
        sink has had of these frames is what there will ever be.
        """
        cdef uint64_t[MAX_COUNTERS] own
        cdef uint64_t* c = self.counters
        cdef const uint64_t* last = self.slot.banks[self.slot.words[WORD_COMMITS] & 1].counters
        cdef uint64_t frames = c[W_FRAMES] - last[W_FRAMES]
        cdef uint64_t events = (c[W_TRANSACTIONS] - last[W_TRANSACTIONS]
                                + c[W_RECORDS] - last[W_RECORDS])
        memcpy(own, c, sizeof(own))
        memcpy(c, last, sizeof(own))
        c[W_TORN_FRAMES] = own[W_TORN_FRAMES] + frames
        c[W_TORN_EVENTS] = own[W_TORN_EVENTS] + events
        self.commit()
        memcpy(c, own, sizeof(own))
        self.show()

    cdef void identify(self, uint64_t clock, uint64_t sequence) noexcept nogil:
        """The next event has this key, and its id names its place under it."""
        cdef bint own
        if clock > self.last_clock or (clock == self.last_clock
                                       and sequence > self.last_sequence):
            self.last_clock = clock
            self.last_sequence = sequence
            self.index = 0
        else:
            self.index += 1
        # The key of the frame in hand; ahead of it leaves what is due at the keys of earlier ones.
        own = (sequence == self.slot.words[WORD_IN_HAND]
               and clock == self.slot.positions[P_PASSED])
        self.encoder.identify(sequence, self.index, 0 if own else clock)

    cdef void tx(self, const Exchange* x, uint64_t clock, uint64_t sequence) noexcept nogil:
        """The transaction's event, due at this key."""
        cdef uint8_t* to = self.room(self.encoder.plan_tx(x))
        if self.encoder.ids:
            self.identify(clock, sequence)
        ring_commit(&self.events, self.encoder.tx(x, to, clock, sequence))
        self.counters[W_TRANSACTIONS] += 1
        self.counters[W_OMITTED] += self.encoder.omitted
        if clock >= self.sample_due:
            self.sample_due = clock + SAMPLE_PACE
            self.samples.take(x, clock)

    cdef void records(self, const Exchange* x, const Message* m, uint64_t clock,
                      uint64_t sequence) noexcept nogil:
        """An event for each record of the exchange's one message."""
        cdef uint32_t i
        cdef uint8_t* to
        for i in range(m.records_read):
            to = self.room(self.encoder.plan_record(x, i))
            if self.encoder.ids:
                self.identify(clock, sequence)
            ring_commit(&self.events, self.encoder.record(x, i, to, clock, sequence))
            self.counters[W_RECORDS] += 1
        self.counters[W_OMITTED] += m.omitted
