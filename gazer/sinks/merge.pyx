"""The sink's hot loop; see merge.pxd and ARCHITECTURE.md, "Order".

Every event carries its key: sensor clock when due, number of the frame.  Each ring's events come in
the order of their keys, so the next event overall is the least of the rings' first ones, once it is
known that no ring without one will still bring a lesser: that is what its watermark says.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from gazer.atomics cimport load_acquire
from gazer.counters cimport S_EVENTS, Slot
from gazer.entry cimport FORMATS, EventHeader
from gazer.ring cimport (
    MARK_END, Ring, bell_wait, ring_consumer_awake, ring_consumer_sleeps, ring_poll,
    ring_release)

cdef enum:
    NAP = 100               # ms; the longest sleep


cdef class Block:
    """A block of whole events for one output: appended to by Merge, written and emptied by the
    output.  `capacity` must hold the largest event."""

    def __init__(self, *, int format, uint32_t capacity):
        cdef uint8_t[::1] view
        self.memory = bytearray(capacity)
        view = self.memory
        self.room.format = format
        self.room.base = &view[0]
        self.room.capacity = capacity

    @property
    def used(self):
        """Bytes in the block."""
        return self.room.used

    @property
    def events(self):
        return self.room.events

    def data(self):
        """What stands in the block, without a copy; good until clear()."""
        return memoryview(self.memory)[:self.room.used]

    def clear(self):
        self.room.used = 0
        self.room.events = 0


cdef inline bint before(uint64_t clock, uint64_t sequence, uint64_t other_clock,
                        uint64_t other_sequence) noexcept nogil:
    return clock < other_clock or (clock == other_clock and sequence < other_sequence)


cdef class Merge:
    """Merges the event rings into the blocks.

    `rings` and `bells`: the event ring and the bell of each worker; `bell`: our own.
    """

    def __init__(self, *, rings, bells, int bell, Slot slot, blocks):
        cdef Ring ring
        if not 0 < len(rings) <= MAX_RINGS or len(rings) != len(bells):
            raise ValueError("one ring and one bell for each of 1 to 64 workers")
        self.rings = list(rings)
        self.count = len(rings)
        for i, (ring, worker_bell) in enumerate(zip(rings, bells, strict=True)):
            self.lanes[i].consumer = ring.consumer(worker_bell)
        self.bell = bell
        self.slot = slot
        self.counters = slot.counters
        self.blocks = list(blocks)
        self.block_count = len(blocks)
        self.rooms = <Room**>calloc(max(1, self.block_count), sizeof(Room*))
        if self.rooms == NULL:
            raise MemoryError
        for i in range(self.block_count):
            self.rooms[i] = &(<Block>self.blocks[i]).room

    def __dealloc__(self):
        free(self.rooms)

    def run(self):
        """Merge for a while.  Returns "end", "full" (write the blocks), "idle" or "corrupt"."""
        cdef int result
        with nogil:
            self.slot.beat()
            result = self.merge()
            self.slot.commit()
        return ("end", "full", "idle", "corrupt")[result]

    def wait(self, int milliseconds):
        """Sleep until what run() waits for may be there, at most so long (and at most 100 ms; -1:
        as long as it takes)."""
        with nogil:
            if self.sleep():
                bell_wait(self.bell, milliseconds if milliseconds < NAP else NAP)
            self.awake()

    def release(self):
        """Let go of the shared memory."""
        self.counters = NULL
        for ring in self.rings:
            ring.release()
        self.slot.release()

    cdef bint refresh(self, Lane* lane) noexcept nogil:
        """Look at the lane anew: its next event, or its watermark.  True if that has changed.

        The watermark is read first, then the tail: what the watermark speaks of is then visible.
        """
        cdef uint64_t clock = load_acquire(&lane.consumer.ring.mark_clock)
        cdef uint64_t sequence = load_acquire(&lane.consumer.ring.mark_sequence)
        cdef EventHeader* header
        lane.entry = NULL
        if not lane.consumer.corrupt:
            lane.entry = ring_poll(&lane.consumer, &lane.length)
        if lane.entry != NULL and lane.length < sizeof(EventHeader):
            lane.consumer.corrupt = True
            lane.entry = NULL
        if lane.consumer.corrupt:
            # Its watermark is not believed either: the lane stays where it is, and is found there.
            return False
        if lane.entry != NULL:
            header = <EventHeader*>lane.entry
            lane.clock = header.clock
            lane.sequence = header.sequence
            return True
        if before(lane.clock, lane.sequence, clock, sequence):
            lane.clock = clock
            lane.sequence = sequence
            return True
        return False

    cdef bint append(self, const Lane* lane) noexcept nogil:
        """Copy the lane's event to each block; False (and nothing copied) if one has no room."""
        cdef const EventHeader* header = <const EventHeader*>lane.entry
        cdef const uint8_t* parts[FORMATS]
        cdef const uint8_t* p = lane.entry + sizeof(EventHeader)
        cdef Room* room
        cdef uint32_t n
        cdef int i
        for i in range(FORMATS):
            parts[i] = p
            p += header.lengths[i]
        for i in range(self.block_count):
            room = self.rooms[i]
            if room.capacity - room.used < header.lengths[room.format]:
                return False
        for i in range(self.block_count):
            room = self.rooms[i]
            n = header.lengths[room.format]
            memcpy(room.base + room.used, parts[room.format], n)
            room.used += n
            room.events += 1
        return True

    cdef bint any_used(self) noexcept nogil:
        cdef int i
        for i in range(self.block_count):
            if self.rooms[i].used:
                return True
        return False

    cdef int merge(self) noexcept nogil:
        cdef Lane* lane
        cdef uint64_t clock, sequence
        cdef int least, i
        while True:
            # The lane with the least key, and the least key of the others.
            least = 0
            clock = sequence = MARK_END
            for i in range(1, self.count):
                if before(self.lanes[i].clock, self.lanes[i].sequence,
                          self.lanes[least].clock, self.lanes[least].sequence):
                    clock = self.lanes[least].clock
                    sequence = self.lanes[least].sequence
                    least = i
                elif before(self.lanes[i].clock, self.lanes[i].sequence, clock, sequence):
                    clock = self.lanes[i].clock
                    sequence = self.lanes[i].sequence
            self.least = least
            lane = &self.lanes[least]
            if lane.entry == NULL:
                ring_release(&lane.consumer)
                if lane.clock == MARK_END:
                    return MERGE_END        # the least key there is: all are at their end
                if not self.refresh(lane):
                    return MERGE_CORRUPT if lane.consumer.corrupt else MERGE_IDLE
                continue
            while True:
                if not sound(lane):
                    return MERGE_CORRUPT
                if not self.append(lane):
                    # An event larger than an empty block will never have room.
                    return MERGE_FULL if self.any_used() else MERGE_CORRUPT
                self.counters[S_EVENTS] += 1
                if lane.consumer.head - lane.consumer.released > lane.consumer.capacity >> 3:
                    # All but the entry just copied, too: it is in the blocks.
                    ring_release(&lane.consumer)
                lane.entry = NULL
                if not self.refresh(lane):
                    break
                if lane.entry == NULL or not before(lane.clock, lane.sequence, clock, sequence):
                    break

    cdef bint sleep(self) noexcept nogil:
        """Say that the sink sleeps; True if the lane that it waits for has nothing new.

        That is one lane, the least: whatever the others bring can't go on before it does, and
        entries that wait in them are no reason to stay awake.
        """
        cdef Lane* lane = &self.lanes[self.least]
        return (lane.entry == NULL and lane.clock != MARK_END
                and ring_consumer_sleeps(&lane.consumer)
                and not before(lane.clock, lane.sequence,
                               load_acquire(&lane.consumer.ring.mark_clock),
                               load_acquire(&lane.consumer.ring.mark_sequence)))

    cdef void awake(self) noexcept nogil:
        ring_consumer_awake(&self.lanes[self.least].consumer)


cdef inline bint sound(const Lane* lane) noexcept nogil:
    """The event's parts lie within its entry: a worker gone wrong can't make the sink read on."""
    cdef const EventHeader* header = <const EventHeader*>lane.entry
    cdef uint64_t n = sizeof(EventHeader)
    cdef int i
    if header.clock == MARK_END:
        return False        # would be taken for the lane's end
    for i in range(FORMATS):
        n += header.lengths[i]
    return n <= lane.length
