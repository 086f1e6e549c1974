"""Events into the ring; see emitter.pxd.  The one place of a worker that waits for the sink."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from gazer.counters cimport (
    P_EVENTS, RUNNING, WAITING, W_OMITTED, W_RECORDS, W_TRANSACTIONS, W_WAITS, Slot)
from gazer.ring cimport (
    Ring, bell_wait, ring_claim, ring_commit, ring_mark, ring_producer_awake, ring_producer_sleeps,
    ring_publish)
from gazer.workers.encode cimport Encoder
from gazer.workers.exchange cimport Exchange
from gazer.workers.message cimport Message

cdef enum:
    NAP = 100               # ms; the longest sleep: a safety net, and the pace of heartbeats


cdef class Emitter:
    """The producing end of one worker's event ring.

    `ring`: Ring; `sink_bell`: eventfd to wake the sink; `bell`: our own; `slot`: our part of the
    ledger.
    """

    def __init__(self, *, Ring ring, int bell, int sink_bell, Slot slot, Encoder encoder):
        self.ring = ring
        self.events = ring.producer(sink_bell)
        self.bell = bell
        self.slot = slot
        self.counters = slot.counters
        self.encoder = encoder

    cdef void commit(self) noexcept nogil:
        """Commit the counters and the tail that is about to be published."""
        self.slot.positions[P_EVENTS] = self.events.tail
        self.slot.commit()

    cdef void publish(self, uint64_t clock, uint64_t sequence) noexcept nogil:
        """Let the sink see what was encoded, and that nothing below this key will follow."""
        cdef uint64_t* marks = &self.events.ring.mark_clock
        self.commit()
        ring_publish(&self.events)
        if clock > marks[0] or (clock == marks[0] and sequence > self.events.ring.mark_sequence):
            ring_mark(&self.events, clock, sequence)

    cdef uint8_t* room(self, uint32_t n) noexcept nogil:
        """Room for an event of up to n bytes; waits for the sink as long as it takes."""
        cdef uint8_t* to = ring_claim(&self.events, n)
        if to != NULL:
            return to
        self.counters[W_WAITS] += 1
        self.slot.set_state(WAITING)
        self.commit()
        ring_publish(&self.events)
        while True:
            to = ring_claim(&self.events, n)
            if to != NULL:
                break
            if ring_producer_sleeps(&self.events, n):
                bell_wait(self.bell, NAP)
            ring_producer_awake(&self.events)
            self.slot.beat()
        self.slot.set_state(RUNNING)
        return to

    cdef void tx(self, const Exchange* x, uint64_t clock, uint64_t sequence) noexcept nogil:
        """The transaction's event, due at this key."""
        cdef uint8_t* to = self.room(self.encoder.plan_tx(x))
        ring_commit(&self.events, self.encoder.tx(x, to, clock, sequence))
        self.counters[W_TRANSACTIONS] += 1
        self.counters[W_OMITTED] += self.encoder.omitted

    cdef void records(self, const Exchange* x, const Message* m, uint64_t clock,
                      uint64_t sequence) noexcept nogil:
        """An event for each record of the exchange's one message."""
        cdef uint32_t i
        cdef uint8_t* to
        for i in range(m.records_read):
            to = self.room(self.encoder.plan_record(x, i))
            ring_commit(&self.events, self.encoder.record(x, i, to, clock, sequence))
        self.counters[W_RECORDS] += m.records_read
        self.counters[W_OMITTED] += m.omitted
