"""The frames of all capture processes, in one order; see ARCHITECTURE.md, "Order".

A worker has a lane, which is a frame ring, from each capture process.  Each brings its frames in
the order of their keys (sensor clock, number), and a number begins with the capture process's, so
keys of different lanes are never equal.  The next frame of all is the least of the lanes' first
ones, once no lane without one will bring a lesser: that is what its watermark says.  (The sink
merges event rings by the same rule; the two rooms share no code.)

With one lane, which is the rule, there is nothing to compare: the engine takes frames from it by
`lane_next`.

How far frames were taken stands in `heads`, which are positions of the worker's slot: a commit
takes them along, and only what was committed is released.
"""

from libc.stdint cimport uint64_t

from gazer.atomics cimport load_acquire, load_relaxed
from gazer.counters cimport P_HEADS, WORD_COMMITS, Slot
from gazer.entry cimport FrameEntry
from gazer.ring cimport (
    Ring, ring_consumer_awake, ring_consumer_sleeps, ring_release)

from gazer.errors import SharedMemoryError


cdef inline bint before(const Lane* a, const Lane* b) noexcept nogil:
    return a.clock < b.clock or (a.clock == b.clock and a.sequence < b.sequence)


cdef class Intake:
    """`rings` and `bells`: the frame ring and the bell of each capture process, by its number."""

    def __init__(self, *, rings, bells, Slot slot):
        cdef Ring ring
        cdef Lane* lane
        if not 0 < len(rings) <= MAX_LANES or len(rings) != len(bells):
            raise ValueError("one ring and one bell for each of 1 to 16 capture processes")
        self.rings = list(rings)
        self.count = len(rings)
        self.heads = &slot.positions[P_HEADS]
        for i, (ring, bell) in enumerate(zip(rings, bells, strict=True)):
            lane = &self.lanes[i]
            lane.consumer = ring.consumer(bell)
            lane.upto = lane.consumer.head
            if load_relaxed(&slot.words[WORD_COMMITS]) == 0:
                self.heads[i] = lane.consumer.head

    def restore(self):
        """Go on where the last commit stood: what was taken then is released, the rest comes
        again."""
        cdef Lane* lane
        cdef Ring ring
        cdef uint64_t head
        for i, ring in enumerate(self.rings):
            lane = &self.lanes[i]
            head = self.heads[i]
            if (head & 7 or head < lane.consumer.head
                    or head > load_acquire(&ring.header.tail)):
                raise SharedMemoryError("a frame ring that does not agree with the ledger")
            lane.consumer.head = lane.consumer.tail = lane.upto = head
        self.release()

    def close(self):
        """Let go of the shared memory."""
        self.heads = NULL
        for ring in self.rings:
            ring.release()

    cdef bint look(self) noexcept nogil:
        """See what has come.  True if there is a frame or a new watermark.

        In each lane the watermark is read first, then the tail: what the watermark speaks of is
        then visible.  The loss is read last: one that came before a frame is known with it.
        """
        cdef Lane* lane
        cdef uint64_t clock, sequence, loss
        cdef bint new = False
        cdef int i
        for i in range(self.count):
            lane = &self.lanes[i]
            clock = load_acquire(&lane.consumer.ring.mark_clock)
            sequence = load_acquire(&lane.consumer.ring.mark_sequence)
            lane.upto = load_acquire(&lane.consumer.ring.tail)
            loss = load_relaxed(&lane.consumer.ring.loss_clock)
            if loss > self.loss:
                self.loss = loss
            if (clock != lane.mark_clock or sequence != lane.mark_sequence
                    or lane.consumer.head != lane.upto):
                new = True
            lane.mark_clock = clock
            lane.mark_sequence = sequence
        self.mark_clock = self.lanes[0].mark_clock      # with several, next_of_all decides
        self.mark_sequence = self.lanes[0].mark_sequence
        return new

    cdef FrameEntry* next_of_all(self) noexcept nogil:
        """The next frame of several lanes, taken from the lane `least`; or NULL, and `least` is the
        lane that has to bring something first."""
        cdef Lane* lane
        cdef Lane* least = NULL
        cdef FrameEntry* f
        cdef int i
        for i in range(self.count):
            lane = &self.lanes[i]
            if lane.frame == NULL:
                lane.frame = lane_next(lane)
                if lane.frame == NULL:
                    lane.clock = lane.mark_clock
                    lane.sequence = lane.mark_sequence
                else:
                    lane.clock = lane.frame.clock
                    lane.sequence = lane.frame.sequence
            if least == NULL or before(lane, least):
                least = lane
                self.least = i
        f = least.frame
        least.frame = NULL
        if f == NULL:
            self.mark_clock = least.clock
            self.mark_sequence = least.sequence
        return f

    cdef bint corrupt(self) noexcept nogil:
        """A lane holds what can't be."""
        cdef int i
        for i in range(self.count):
            if self.lanes[i].consumer.corrupt:
                return True
        return False

    cdef void release(self) noexcept nogil:
        """The capture processes may write over all that was taken (and committed)."""
        cdef Lane* lane
        cdef uint64_t polled
        cdef int i
        for i in range(self.count):
            lane = &self.lanes[i]
            polled = lane.consumer.head
            lane.consumer.head = self.heads[i]
            ring_release(&lane.consumer)
            lane.consumer.head = polled

    cdef bint sleep(self) noexcept nogil:
        """Say that the worker sleeps; True if the lane that it waits for has nothing new.

        That is one lane, the least: what the others bring can't go on before it does.  A new
        watermark alone is a reason to go on.
        """
        cdef Lane* lane = &self.lanes[self.least]
        return (lane.frame == NULL and ring_consumer_sleeps(&lane.consumer)
                and load_acquire(&lane.consumer.ring.mark_clock) == lane.mark_clock
                and load_acquire(&lane.consumer.ring.mark_sequence) == lane.mark_sequence)

    cdef void awake(self) noexcept nogil:
        ring_consumer_awake(&self.lanes[self.least].consumer)

    cdef const FrameEntry* find(self, uint64_t number) noexcept nogil:
        """The frame of this number, if it has come and was not taken; NULL if not."""
        cdef uint64_t i = number >> CAPTURE_SHIFT
        cdef Lane lane
        cdef const FrameEntry* f
        if i >= <uint64_t>self.count:
            return NULL
        lane = self.lanes[i]
        lane.upto = load_acquire(&lane.consumer.ring.tail)
        while True:
            f = lane_next(&lane)
            if f == NULL or f.sequence == number:
                return f
