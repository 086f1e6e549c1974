"""A door for tests: both ends of a ring, frames and events by hand.  The sensor does not use it.

`Writer` and `Reader` show gazer.ring's functions one by one, so that a test can stop between any
two steps; `produce` and `consume` are the same functions in compiled loops, for two processes.
Every random choice comes from a seed, and the consumer knows from an entry's number what it must
hold, byte by byte.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.signal cimport kill
from posix.unistd cimport getpid

from gazer.atomics cimport load_acquire
from gazer.capture.dispatch cimport (
    POINT_COMMIT, POINT_MARK, POINT_SHOWN, POINT_TAIL, POINT_WAKE, Dispatcher)
from gazer.capture.source cimport (
    SOURCE_BROKEN, SOURCE_END, SOURCE_FRAME, SOURCE_IDLE, Frame, Source)
from gazer.entry cimport FORMATS, EventHeader, FrameEntry, frame_offset
from gazer.ring cimport (
    ENTRY_DATA, ENTRY_PADDING, RING_HEADER, Consumer, Producer, Ring, RingHeader,
    bell_wait, ring_claim, ring_commit, ring_consumer_awake, ring_consumer_sleeps, ring_mark,
    ring_poll, ring_producer_awake, ring_producer_sleeps, ring_publish, ring_release,
    ring_wake_consumer)
from gazer.ring cimport MARK_END as ring_mark_end

cdef extern from "signal.h" nogil:
    enum:
        SIGKILL

MARK_END = ring_mark_end
HEADER = RING_HEADER
DATA = ENTRY_DATA
PADDING = ENTRY_PADDING

cdef RingHeader* nowhere = NULL

# Where the words of a ring's header stand, for tests that write them by hand.
OFFSETS = {
    "magic": <size_t>&nowhere.magic,
    "version": <size_t>&nowhere.version,
    "capacity": <size_t>&nowhere.capacity,
    "tail": <size_t>&nowhere.tail,
    "mark_sequence": <size_t>&nowhere.mark_sequence,
    "mark_clock": <size_t>&nowhere.mark_clock,
    "head": <size_t>&nowhere.head,
    "consumer_waits": <size_t>&nowhere.consumer_waits,
    "producer_waits": <size_t>&nowhere.producer_waits,
}


cdef class Writer:
    """A ring's producing end; `bell` is the consumer's eventfd."""
    cdef Ring ring
    cdef Producer p
    cdef uint8_t* room
    cdef uint32_t claimed

    def __init__(self, Ring ring not None, int bell=-1):
        self.ring = ring
        self.p = ring.producer(bell)

    def claim(self, uint32_t n):
        """True if there is room, which fill() and commit() then use."""
        self.room = ring_claim(&self.p, n)
        self.claimed = n
        return self.room != NULL

    def fill(self, bytes data not None):
        if self.room == NULL or <size_t>len(data) > self.claimed:
            raise ValueError("not claimed")
        memcpy(self.room, <const char*>data, len(data))

    def commit(self, uint32_t n):
        if self.room == NULL or n > self.claimed:
            raise ValueError("not claimed")
        ring_commit(&self.p, n)
        self.room = NULL

    def write(self, bytes data not None):
        """Claim, fill and commit; False if there is no room."""
        if not self.claim(len(data)):
            return False
        self.fill(data)
        self.commit(len(data))
        return True

    def publish(self):
        return ring_publish(&self.p)

    def mark(self, uint64_t clock, uint64_t sequence):
        ring_mark(&self.p, clock, sequence)

    def wake(self):
        ring_wake_consumer(&self.p)

    def says_it_sleeps(self, uint32_t n):
        """The first half of sleeping: True if it may wait for its bell now."""
        return ring_producer_sleeps(&self.p, n)

    def awake(self):
        ring_producer_awake(&self.p)

    def sleep(self, uint32_t n, int bell, int milliseconds):
        """Sleep until there is room, or the time is over (-1: never).  True if it was rung."""
        cdef bint rung = False
        with nogil:
            if ring_producer_sleeps(&self.p, n):
                rung = bell_wait(bell, milliseconds)
            ring_producer_awake(&self.p)
        return rung

    @property
    def tail(self):
        return self.p.tail

    @property
    def rung(self):
        return self.p.rung

    def release_ring(self):
        self.ring.release()


cdef class Reader:
    """A ring's consuming end; `bell` is the producer's eventfd."""
    cdef Ring ring
    cdef Consumer c

    def __init__(self, Ring ring not None, int bell=-1):
        self.ring = ring
        self.c = ring.consumer(bell)

    def poll(self):
        """The next entry's payload, copied; None if there is none."""
        cdef uint32_t n = 0
        cdef uint8_t* p = ring_poll(&self.c, &n)
        return None if p == NULL else <bytes>p[:n]

    def poll_where(self):
        """(offset of the payload in the ring's data, length) of the next entry, or None."""
        cdef uint32_t n = 0
        cdef uint8_t* p = ring_poll(&self.c, &n)
        return None if p == NULL else (p - self.c.data, n)

    def drain(self):
        """All entries that are there now, released."""
        entries = []
        while (entry := self.poll()) is not None:
            entries.append(entry)
        self.release()
        return entries

    def release(self):
        ring_release(&self.c)

    def says_it_sleeps(self):
        """The first half of sleeping: True if it may wait for its bell now."""
        return ring_consumer_sleeps(&self.c)

    def awake(self):
        ring_consumer_awake(&self.c)

    def sleep(self, int bell, int milliseconds):
        """Sleep until there are entries, or the time is over (-1: never).  True if it was rung."""
        cdef bint rung = False
        with nogil:
            if ring_consumer_sleeps(&self.c):
                rung = bell_wait(bell, milliseconds)
            ring_consumer_awake(&self.c)
        return rung

    @property
    def corrupt(self):
        return bool(self.c.corrupt)

    @property
    def head(self):
        return self.c.head

    @property
    def watermark(self):
        """(clock, sequence), read in the order in which a consumer must."""
        cdef uint64_t clock = load_acquire(&self.c.ring.mark_clock)
        return clock, load_acquire(&self.c.ring.mark_sequence)

    @property
    def loss(self):
        """The sensor clock at which something was lost that belongs here, 0 for never."""
        return load_acquire(&self.c.ring.loss_clock)

    def release_ring(self):
        self.ring.release()


# --- two processes -------------------------------------------------------------------------------

cdef inline uint64_t step(uint64_t* state) noexcept nogil:
    """xorshift64*: its state is never 0."""
    state[0] ^= state[0] >> 12
    state[0] ^= state[0] << 25
    state[0] ^= state[0] >> 27
    return state[0] * 0x2545F4914F6CDD1DULL


cdef inline uint64_t start(uint64_t seed) noexcept nogil:
    seed = (seed + 0x9E3779B97F4A7C15ULL) * 0xBF58476D1CE4E5B9ULL
    return (seed ^ (seed >> 31)) | 1


cdef inline void pause(uint64_t* state, uint32_t most) noexcept nogil:
    """Do nothing for a random while: mostly a few steps, now and then up to `most`."""
    cdef uint64_t r = step(state)
    cdef uint64_t n
    cdef uint64_t waste = r
    if most == 0:
        return
    n = (r >> 8) % 16 if r & 0x3F else (r >> 8) % most
    while n:
        step(&waste)
        n -= 1
    if waste == 0:          # never: xorshift has no way to 0; keeps the loop from going away
        state[0] = 1


cdef inline uint32_t entry_size(uint64_t number, uint64_t seed, uint32_t largest) noexcept nogil:
    """Payload bytes of entry `number`: 8 to `largest`; small ones more often."""
    cdef uint64_t state = start(number ^ seed)
    cdef uint64_t r = step(&state)
    return 8 + <uint32_t>((r >> 8) % ((largest - 8 if r & 7 == 0 else (largest - 8) // 8) + 1))


cdef inline void entry_fill(uint8_t* to, uint32_t n, uint64_t number, uint64_t seed) noexcept nogil:
    cdef uint64_t state = start(number * 3 ^ seed)
    cdef uint64_t word
    cdef uint32_t at = 8
    memcpy(to, &number, 8)
    while at < n:
        word = step(&state)
        memcpy(to + at, &word, 8 if n - at >= 8 else n - at)
        at += 8


cdef inline bint entry_right(const uint8_t* p, uint32_t n, uint64_t number, uint64_t seed,
                             uint32_t largest) noexcept nogil:
    """The entry is the one with this number, and whole."""
    cdef uint64_t state = start(number * 3 ^ seed)
    cdef uint64_t word, found = 0
    cdef uint32_t at = 8, size
    if n != entry_size(number, seed, largest):
        return False
    memcpy(&found, p, 8)
    if found != number:
        return False
    while at < n:
        word = step(&state)
        found = 0
        size = 8 if n - at >= 8 else n - at
        memcpy(&found, p + at, size)
        if size < 8:
            word &= (<uint64_t>1 << (8 * size)) - 1
        if found != word:
            return False
        at += 8
    return True


def produce(Writer writer not None, *, uint64_t first=0, uint64_t count, uint64_t seed,
            uint32_t largest, int bell, int timeout=-1, uint32_t batch=16, uint32_t pauses=0):
    """Write the entries first <= number < first + count, publishing up to `batch` at once.

    Returns the times it slept for want of room, and the times it woke without its bell.
    """
    cdef Producer* p = &writer.p
    cdef uint64_t number, state = start(seed ^ 0x5052), slept = 0, unrung = 0
    cdef uint32_t n, left = 1
    cdef uint8_t* to
    with nogil:
        for number in range(first, first + count):
            n = entry_size(number, seed, largest)
            to = ring_claim(p, n)
            while to == NULL:
                ring_publish(p)
                if ring_producer_sleeps(p, n):
                    slept += 1
                    if not bell_wait(bell, timeout):
                        unrung += 1
                ring_producer_awake(p)
                to = ring_claim(p, n)
            entry_fill(to, n, number, seed)
            ring_commit(p, n)
            left -= 1
            if left == 0:
                ring_publish(p)
                left = 1 + <uint32_t>((step(&state) >> 8) % batch)
                pause(&state, pauses)
        ring_publish(p)
    return {"slept": slept, "unrung": unrung}


def consume(Reader reader not None, *, uint64_t first=0, uint64_t count, uint64_t seed,
            uint32_t largest, int bell, int timeout=-1, uint32_t batch=16, uint32_t pauses=0,
            bint wait=True):
    """Read `count` entries, from number `first` on; without `wait`, until there is none.

    Returns how many came right, what ended it ("all", "empty", "wrong", "corrupt"), the times it
    slept for want of entries, and the times it woke without its bell.
    """
    cdef Consumer* c = &reader.c
    cdef uint64_t number = first, state = start(seed ^ 0x434F), slept = 0, unrung = 0
    cdef uint32_t n = 0, left = 1
    cdef uint8_t* p
    cdef int result = 0
    with nogil:
        while number < first + count:
            p = ring_poll(c, &n)
            if p == NULL:
                ring_release(c)
                if c.corrupt:
                    result = 3
                    break
                if not wait:
                    result = 1
                    break
                if ring_consumer_sleeps(c):
                    slept += 1
                    if not bell_wait(bell, timeout):
                        unrung += 1
                ring_consumer_awake(c)
                continue
            if not entry_right(p, n, number, seed, largest):
                result = 2
                break
            number += 1
            left -= 1
            if left == 0:
                ring_release(c)
                left = 1 + <uint32_t>((step(&state) >> 8) % batch)
                pause(&state, pauses)
        ring_release(c)
    return {"right": number - first, "end": ("all", "empty", "wrong", "corrupt")[result],
            "slept": slept, "unrung": unrung}


cdef inline bint send(Producer* p, uint64_t value, uint64_t* state, uint32_t pauses) noexcept nogil:
    cdef uint8_t* entry = ring_claim(p, 8)
    if entry == NULL:
        return False
    memcpy(entry, &value, 8)
    ring_commit(p, 8)
    pause(state, pauses)
    ring_publish(p)
    return True


cdef inline bint receive(Consumer* c, uint64_t value, int bell, bint spin, uint64_t* slept,
                         uint64_t* unrung) noexcept nogil:
    cdef uint32_t n = 0
    cdef uint64_t found = 0
    cdef uint8_t* entry = ring_poll(c, &n)
    while entry == NULL:
        if c.corrupt:
            return False
        if not spin:
            if ring_consumer_sleeps(c):
                slept[0] += 1
                if not bell_wait(bell, -1):
                    unrung[0] += 1
            ring_consumer_awake(c)
        entry = ring_poll(c, &n)
    memcpy(&found, entry, 8)
    ring_release(c)
    return n == 8 and found == value


def volley(Writer there not None, Reader back not None, *, uint64_t rounds, uint64_t seed,
           int bell, bint serve, bint spin, uint32_t pauses):
    """Send an entry, wait for one, by turns; who serves sends first.

    No later entry makes up for a wake-up that was lost: the game stands still.  One side may `spin`
    instead of sleeping: with a random pause before it sends, it does so at just the moment at which
    the other is about to sleep.
    """
    cdef Producer* p = &there.p
    cdef Consumer* c = &back.c
    cdef uint64_t state = start(seed), i, right = 0, slept = 0, unrung = 0
    with nogil:
        for i in range(rounds):
            if serve and not send(p, i, &state, pauses):
                break
            if not receive(c, i, bell, spin, &slept, &unrung):
                break
            if not serve and not send(p, i, &state, pauses):
                break
            right += 1
    return {"right": right, "slept": slept, "unrung": unrung}


def release_in_step(Reader reader not None, *, uint64_t count, uint64_t seed, uint32_t pauses):
    """Release one entry for each publication seen, so that a producer of entries of 16 bytes soon
    waits for room each time; again, nothing makes up for a wake-up that was lost.  Spins.
    """
    cdef Consumer* c = &reader.c
    cdef uint64_t state = start(seed), seen = 0, tail, entries = 0
    cdef uint32_t n = 0
    with nogil:
        while entries < count:
            tail = load_acquire(&c.ring.tail)
            if tail == seen and tail != 16 * count:
                continue
            seen = tail
            pause(&state, pauses)
            if ring_poll(c, &n) == NULL:
                break
            entries += 1
            ring_release(c)
    return {"entries": entries}


def mark_produce(Writer writer not None, *, uint64_t count, uint64_t seed, int bell):
    """Write `count` entries that hold their key, (clock, sequence), and keep marking.

    The clock often stands while the sequence goes on, and the mark is stored at any time: behind a
    publication, or while the next entry is in hand.  Ends with MARK_END.
    """
    cdef Producer* p = &writer.p
    cdef uint64_t state = start(seed), r, clock = 1, sequence = 0
    cdef uint64_t[2] key
    cdef uint8_t* to
    with nogil:
        while sequence < count:
            r = step(&state) >> 8
            sequence += 1
            clock += r & 1
            key[0] = clock
            key[1] = sequence
            to = ring_claim(p, sizeof(key))
            while to == NULL:
                ring_publish(p)
                ring_mark(p, clock, sequence)       # the entry in hand has this key
                if ring_producer_sleeps(p, sizeof(key)):
                    bell_wait(bell, -1)
                ring_producer_awake(p)
                to = ring_claim(p, sizeof(key))
            memcpy(to, key, sizeof(key))
            ring_commit(p, sizeof(key))
            if r & 6 == 0:
                ring_publish(p)
                ring_mark(p, clock, sequence + 1)
        ring_publish(p)
        ring_mark(p, ring_mark_end, sequence + 1)
    return sequence


def mark_consume(Reader reader not None, *, bint tail_first=False):
    """Read until MARK_END: clock, then sequence, then tail, and all entries up to that tail.

    Whatever comes beyond that tail must not be below that watermark.  Returns the entries read,
    those that were below it, the marks that went back, and the different marks seen.  `tail_first`
    reads in the wrong order, to show that this would be noticed.
    """
    cdef Consumer* c = &reader.c
    cdef uint64_t clock, sequence, upto = 0, entries = 0, below = 0, back = 0, marks = 0
    cdef uint64_t[2] bound
    cdef uint64_t[2] key
    cdef uint32_t n = 0
    cdef uint8_t* p
    bound[0] = bound[1] = 0
    with nogil:
        while True:
            if tail_first:
                upto = load_acquire(&c.ring.tail)
            clock = load_acquire(&c.ring.mark_clock)
            sequence = load_acquire(&c.ring.mark_sequence)
            if not tail_first:
                upto = load_acquire(&c.ring.tail)
            while c.head != upto:
                p = ring_poll(c, &n)
                if p == NULL:
                    break
                memcpy(key, p, sizeof(key))
                entries += 1
                if key[0] < bound[0] or (key[0] == bound[0] and key[1] < bound[1]):
                    below += 1
            ring_release(c)
            if clock < bound[0] or (clock == bound[0] and sequence < bound[1]):
                back += 1
            if clock != bound[0] or sequence != bound[1]:
                marks += 1
            bound[0] = clock
            bound[1] = sequence
            if clock == ring_mark_end or c.corrupt:
                break
    return {"entries": entries, "below": below, "back": back, "marks": marks}


# --- what stands in the rings --------------------------------------------------------------------

def frame_entry(bytes payload not None):
    """A frame ring's entry: a dict of sequence, clock, time, caplen, linktype, source and
    destination port, and the frame's bytes."""
    cdef FrameEntry entry
    if <size_t>len(payload) < sizeof(FrameEntry):
        raise ValueError("too short for a FrameEntry")
    memcpy(&entry, <const char*>payload, sizeof(FrameEntry))
    return {
        "sequence": entry.sequence, "clock": entry.clock, "time": entry.time,
        "caplen": entry.caplen, "linktype": entry.linktype,
        "source_port": entry.packet.source_port,
        "destination_port": entry.packet.destination_port,
        "frame": payload[frame_offset(&entry):],
    }


def event_entry(uint64_t clock, uint64_t sequence, parts, *, int64_t time=0, uint32_t tag=0,
                lengths=None):
    """An event ring's entry; `parts` are its forms by format, `lengths` lies about them."""
    cdef EventHeader header
    cdef int i
    header.clock = clock
    header.sequence = sequence
    header.time = time
    header.tag = tag
    for i in range(FORMATS):
        header.lengths[i] = len(parts[i]) if i < len(parts) else 0
        if lengths is not None:
            header.lengths[i] = lengths[i]
    return (<const uint8_t*>&header)[:sizeof(EventHeader)] + b"".join(parts)


cdef class FakeSource(Source):
    """A source that gives `frames`, then `result` ("end", "idle" or "broken").

    A frame is (bytes, time in ns[, link type, length on the wire, flags]); None is an idle turn.
    """
    cdef list kept
    cdef Frame* all
    cdef size_t count, at
    cdef int result

    def __init__(self, frames, result="end"):
        cdef size_t i = 0
        self.kept = [frame and bytes(frame[0]) for frame in frames]
        self.count = len(self.kept)
        self.all = <Frame*>calloc(self.count + 1, sizeof(Frame))
        if self.all == NULL:
            raise MemoryError
        self.result = {"end": SOURCE_END, "idle": SOURCE_IDLE, "broken": SOURCE_BROKEN}[result]
        for i, frame in enumerate(frames):
            if frame is None:
                continue
            self.all[i].data = <const uint8_t*><const char*><bytes>self.kept[i]
            self.all[i].caplen = len(frame[0])
            self.all[i].time = frame[1]
            self.all[i].linktype = frame[2] if len(frame) > 2 else 1
            self.all[i].length = frame[3] if len(frame) > 3 else len(frame[0])
            self.all[i].flags = frame[4] if len(frame) > 4 else 0

    def __dealloc__(self):
        free(self.all)

    cdef int next(self, Frame* frame) noexcept nogil:
        if self.at == self.count:
            return self.result
        self.at += 1
        if self.all[self.at - 1].data == NULL:
            return SOURCE_IDLE
        frame[0] = self.all[self.at - 1]
        return SOURCE_FRAME


# --- a capture process that dies --------------------------------------------------------------

POINTS = {"commit": POINT_COMMIT, "tail": POINT_TAIL, "mark": POINT_MARK, "wake": POINT_WAKE,
          "shown": POINT_SHOWN}

cdef int deadly = -1        # the point at which this process is to die
cdef int before = 0         # ... when it has passed it so often


cdef void die_there(int point) noexcept nogil:
    global before
    if point != deadly:
        return
    if before == 0:
        kill(getpid(), SIGKILL)
    before -= 1


def die_at(Dispatcher dispatcher not None, str point, int passes):
    """This process is killed when the dispatcher comes to this point, having passed it so often."""
    global deadly, before
    deadly = POINTS[point]
    before = passes
    dispatcher.probe = die_there
