"""The sink's hot loop; see merge.pxd and ARCHITECTURE.md, "Order".

Every event carries its key: sensor clock when due, number of the frame.  Each ring's events come in
the order of their keys, so the next event overall is the least of the rings' first ones, once it is
known that no ring without one will still bring a lesser: that is what its watermark says.

An event that was copied into a block stays in its ring until it is *settled*, that is, until no
output needs it there any more.  So what a sink that is killed had in its blocks is still there for
its successor:

    mark()          ahead of writing: here end the events that are in blocks by now
    settle(n)       the outputs are through with the first n events: the positions of the newest
                    mark up to there go into the slot; Slot.publish() commits them
    give_back()     what is committed as settled is released to the workers

Between two marks the lanes may take an eighth of their rings, then run() asks for a flush as it
does when a block is full. `pressed` says that what is marked and not settled takes more than three
eighths of a ring, and make_room() settles the oldest of it. A worker needs at most half of it free
(an entry takes up to a quarter, and so may the padding ahead of it), so it never waits for more
than a flush while nothing is pressed. One that does all the same has a frame in hand whose events
fill what is free: it is *starved*, and gets all that there is.

A block with `tags` is for an output that wants events of one tag together and without it, as
fluentd's Forward protocol does.  It has a part for each tag; an event goes there as `[time,
record]`, made of its msgpack form `[tag, time, record]` by leaving out the tag, so that workers
encode nothing more.  Such a block is full when its parts are, all together; so what it takes is
bounded by `capacity` like any other's, whatever the mixture.
"""

import mmap

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove

from gazer.atomics cimport load_acquire, load_relaxed, prefetch_read
from gazer.counters cimport P_LANES, S_EVENTS, S_SETTLED, Slot
from gazer.entry cimport EVENT_TAGS, FORMATS, EventHeader
from gazer.ring cimport (
    MARK_END, Consumer, Ring, bell_wait, ring_consumer_awake, ring_consumer_sleeps, ring_poll,
    ring_release_to)

from gazer.errors import SharedMemoryError
from gazer.event import TAGS

# What stands before the time in the msgpack form of an event with this tag: the array's octet, the
# string's and the tag itself.
cdef uint32_t CUTS[EVENT_TAGS]

assert len(TAGS) == EVENT_TAGS and max(map(len, TAGS)) < 32
for _i, _tag in enumerate(TAGS):
    CUTS[<int>_i] = <uint32_t>(2 + len(_tag))

cdef enum:
    NAP = 100               # ms; the longest sleep
    DOZE = 8                # ms at most that rings which have just been emptied are left alone
    BUSY = 64               # ... of at least so many events
    AHEAD = 768             # bytes behind an event that are asked for while it is copied


cdef class Block:
    """A block of whole events for one output: appended to by Merge, written and emptied by the
    output.  `capacity` must hold the largest event; several events take `limit` at most (0: what
    there is).  `tagged`: it has a part for each tag, and `format` is one of the two msgpack forms.
    """

    def __init__(self, *, int format, uint32_t capacity, uint32_t limit=0, bint tagged=False):
        cdef uint8_t[::1] view
        if tagged:      # pages that no event came to cost nothing
            self.memory = mmap.mmap(-1, EVENT_TAGS * capacity,
                                    flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            self.memory = bytearray(capacity)
        view = self.memory
        self.room.format = format
        self.room.tagged = tagged
        self.room.base = &view[0]
        self.room.capacity = capacity
        self.room.limit = min(limit, capacity) if limit else capacity

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

    def parts(self):
        """What stands in a block with tags: (tag, data, events) of each that has any; data without
        a copy, good until clear()."""
        cdef int i
        view = memoryview(self.memory)
        found = []
        for i in range(EVENT_TAGS):
            if self.room.counts[i]:
                start = <size_t>i * self.room.capacity
                found.append((TAGS[i], view[start:start + self.room.lengths[i]],
                              self.room.counts[i]))
        return found

    @property
    def touched(self):
        """The memory that it takes by now: more than `capacity` if the mixture of tags changes."""
        cdef int i
        cdef size_t found = 0
        for i in range(EVENT_TAGS):
            found += self.reached[i]
        return found if self.room.tagged else self.room.capacity

    def clear(self):
        cdef int i
        self.room.used = 0
        self.room.events = 0
        for i in range(EVENT_TAGS):
            self.reached[i] = max(self.reached[i], self.room.lengths[i])
            self.room.lengths[i] = self.room.counts[i] = 0


cdef inline bint before(uint64_t clock, uint64_t sequence, uint64_t other_clock,
                        uint64_t other_sequence) noexcept nogil:
    return clock < other_clock or (clock == other_clock and sequence < other_sequence)


cdef class Merge:
    """Merges the event rings into the blocks.

    `rings` and `bells`: the event ring and the bell of each worker; `bell`: our own.  A successor
    begins where the slot says that its predecessor's events were settled.
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
        self.marks = <Mark*>calloc(MARKS, sizeof(Mark))
        if self.marks == NULL:
            raise MemoryError
        self.counters[S_EVENTS] = self.waited = self.counters[S_SETTLED]
        self.doze = DOZE
        for i in range(self.count):
            self.begin(&self.lanes[i], slot.positions[P_LANES + i])
            # No worker writes as much as a megabyte in one millisecond.
            self.doze = min(self.doze, <int>(self.lanes[i].consumer.capacity >> 20))

    cdef int begin(self, Lane* lane, uint64_t settled) except -1:
        """Start at the committed position, which the ring's own may be behind."""
        cdef Consumer* c = &lane.consumer
        cdef uint64_t tail = load_acquire(&c.ring.tail)
        if settled:
            if settled & 7 or settled > tail or tail - settled > c.capacity:
                raise SharedMemoryError("the sink's committed position is not in its ring")
            c.head = c.tail = settled
            ring_release_to(c, settled)
        lane.taken = lane.marked = lane.settled = c.head
        return 0

    def __dealloc__(self):
        free(self.rooms)
        free(self.marks)

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
        as long as it takes).

        Under load a ring of the bell costs both sides more than the few events that it is for. So
        who has just had many looks again after `doze`, in which a worker fills a part of its ring.
        """
        with nogil:
            if self.doze and self.counters[S_EVENTS] - self.waited >= BUSY:
                bell_wait(self.bell, min(self.doze, milliseconds) if milliseconds >= 0
                          else self.doze)
            else:
                if self.sleep():
                    bell_wait(self.bell, min(NAP, milliseconds))
                self.awake()
            self.waited = self.counters[S_EVENTS]

    def nap(self, int milliseconds):
        """Sleep until the bell is rung, for whatever; at most so long, and at most 100 ms."""
        with nogil:
            self.slot.beat()
            bell_wait(self.bell, min(NAP, milliseconds))

    @property
    def merged(self):
        """The events merged so far, by this sink and those before it."""
        return self.counters[S_EVENTS]

    @property
    def unwritten(self):
        """There is something in a block."""
        cdef int i
        for i in range(self.block_count):
            if self.rooms[i].events:
                return True
        return False

    def skip(self, int output, uint64_t events):
        """The output has had the next so many events already."""
        self.rooms[output].skip = events

    def swap(self, int output, Block block):
        """Append to this empty block from here on."""
        block.room.skip = self.rooms[output].skip
        self.blocks[output] = block
        self.rooms[output] = &block.room

    def mark(self):
        """Ahead of a flush: remember how far the rings are taken.  Returns `merged`.

        If there are too many marks that are not settled, every second one is forgotten.
        """
        cdef Mark* mark
        if self.mark_count and self.marks[self.mark_count - 1].merged == self.counters[S_EVENTS]:
            return self.counters[S_EVENTS]
        if self.mark_count == MARKS:
            self.mark_count = MARKS // 2
            for i in range(MARKS // 2):
                self.marks[i] = self.marks[2 * i + 1]
        mark = &self.marks[self.mark_count]
        mark.merged = self.counters[S_EVENTS]
        for i in range(self.count):
            mark.taken[i] = self.lanes[i].marked = self.lanes[i].taken
        self.mark_count += 1
        return mark.merged

    def settle(self, uint64_t done):
        """Put the newest mark that has no more than `done` events into the slot, to be committed.
        False if there is none."""
        cdef int n = 0
        cdef Mark* mark
        while n < self.mark_count and self.marks[n].merged <= done:
            n += 1
        if n == 0:
            return False
        mark = &self.marks[n - 1]
        self.counters[S_SETTLED] = mark.merged
        for i in range(self.count):
            self.lanes[i].settled = self.slot.positions[P_LANES + i] = mark.taken[i]
        self.mark_count -= n
        memmove(self.marks, self.marks + n, self.mark_count * sizeof(Mark))
        return True

    def settle_all(self):
        """All outputs are through with all that was merged: mark, settle, commit and give back."""
        cdef int i
        self.counters[S_SETTLED] = self.counters[S_EVENTS]
        self.mark_count = 0
        for i in range(self.count):
            self.lanes[i].marked = self.lanes[i].settled = self.lanes[i].taken
            self.slot.positions[P_LANES + i] = self.lanes[i].taken
        self.slot.commit()
        for i in range(self.count):
            ring_release_to(&self.lanes[i].consumer, self.lanes[i].taken)

    def give_back(self):
        """Release to the workers what is settled; its commit stands."""
        for i in range(self.count):
            ring_release_to(&self.lanes[i].consumer, self.lanes[i].settled)

    @property
    def pressed(self):
        """What is marked and not settled takes too much of a ring."""
        return self.presses(NULL)

    @property
    def crowded(self):
        """A ring is so full, with what is not merged yet, that its worker may soon have to wait, or
        it waits."""
        cdef Consumer* c
        for i in range(self.count):
            c = &self.lanes[i].consumer
            if load_acquire(&c.ring.tail) - self.lanes[i].settled > c.capacity >> 1:
                return True
        return self.starved

    @property
    def starved(self):
        """A worker waits for room, and all that it gave is merged: what is not settled is all that
        there is to make room of."""
        for i in range(self.count):
            if self.starves(&self.lanes[i]):
                return True
        return False

    def make_room(self):
        """Settle the oldest marks, whoever needs them, until it is not pressed any more."""
        cdef int n = 0
        while n < self.mark_count - 1 and self.presses(&self.marks[n]):
            n += 1
        return n < self.mark_count and self.settle(self.marks[n].merged)

    cdef bint starves(self, const Lane* lane) noexcept nogil:
        return (load_relaxed(&lane.consumer.ring.producer_waits) and lane.taken != lane.settled
                and load_acquire(&lane.consumer.ring.tail) == lane.taken)

    cdef bint presses(self, const Mark* mark) noexcept nogil:
        """What is marked behind this mark (NULL: behind what is settled) takes too much."""
        cdef Lane* lane
        cdef uint64_t since
        for i in range(self.count):
            lane = &self.lanes[i]
            since = lane.settled if mark == NULL else mark.taken[i]
            if lane.marked - since > (
                    0 if self.starves(lane) else 3 * (lane.consumer.capacity >> 3)):
                return True
        return False

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
            memcpy(&lane.header, lane.entry, sizeof(EventHeader))
            lane.clock = lane.header.clock
            lane.sequence = lane.header.sequence
            return True
        if before(lane.clock, lane.sequence, clock, sequence):
            lane.clock = clock
            lane.sequence = sequence
            return True
        return False

    cdef bint append(self, const Lane* lane) noexcept nogil:
        """Copy the lane's event to each block; False (and nothing copied) if one has no room, or
        would never take such an event."""
        cdef const EventHeader* header = &lane.header
        cdef const uint8_t* parts[FORMATS]
        cdef const uint8_t* p = lane.entry + sizeof(EventHeader)
        cdef Room* room
        cdef uint8_t* to
        cdef uint32_t n, cut
        cdef int i
        for i in range(FORMATS):
            parts[i] = p
            p += header.lengths[i]
        for i in range(self.block_count):
            room = self.rooms[i]
            n = header.lengths[room.format]
            if room.used + n > room.limit or room.tagged:
                # Rare, or more to look at: one event may be larger than the limit.
                if not room.skip and (
                        room.used + n > (room.limit if room.used else room.capacity)
                        or (room.tagged and n <= CUTS[header.tag])):
                    return False
        for i in range(self.block_count):
            room = self.rooms[i]
            if room.skip:
                room.skip -= 1
                continue
            n = header.lengths[room.format]
            if room.tagged:
                cut = CUTS[header.tag]
                n -= cut
                to = (room.base + <size_t>header.tag * room.capacity
                      + room.lengths[header.tag])
                to[0] = 0x92        # an array of two: time and record
                memcpy(to + 1, parts[room.format] + cut, n)
                n += 1
                room.lengths[header.tag] += n
                room.counts[header.tag] += 1
            else:
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
                if lane.clock == MARK_END:
                    return MERGE_END        # the least key there is: all are at their end
                if not self.refresh(lane):
                    return MERGE_CORRUPT if lane.consumer.corrupt else MERGE_IDLE
                continue
            while True:
                if not sound(lane):
                    return MERGE_CORRUPT
                # Another core has just written what comes next. (Beyond the ring it does no harm.)
                for i in range(0, AHEAD, 64):
                    prefetch_read(lane.entry + lane.length + i)
                if not self.append(lane):
                    # An event larger than an empty block will never have room.
                    return MERGE_FULL if self.any_used() else MERGE_CORRUPT
                self.counters[S_EVENTS] += 1
                lane.taken = lane.consumer.head
                lane.entry = NULL
                if lane.taken - lane.marked > lane.consumer.capacity >> 3:
                    return MERGE_FULL
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
    cdef const EventHeader* header = &lane.header
    cdef uint64_t n = sizeof(EventHeader)
    cdef int i
    if header.clock == MARK_END or header.tag >= EVENT_TAGS:
        return False        # the first would be taken for the lane's end
    for i in range(FORMATS):
        n += header.lengths[i]
    return n <= lane.length
