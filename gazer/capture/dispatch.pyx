"""Capture's hot loop; see dispatch.pxd and ARCHITECTURE.md, "From frame to worker" and "Order".

Each frame gets its number and the sensor clock, is decoded as far as its innermost ports, and goes
to the ring of the worker that this flow belongs to.  Entries are published in batches, and the
watermark with them, to all rings: "nothing before this clock and number will follow".

A frame that the operator's filter leaves out has its number and moves the clock like any other.

A frame that is a piece of an IP datagram waits with the others (fragments.pyx).  The frame that
makes the datagram whole stands for all of them: it goes on with its own number and time, and the
datagram's bytes.  What comes of that is its fate; the others have the fate `fragment`.  A datagram
may hold a tunnel with a piece of another datagram in it, and so on; that ends, since each level
counts against max_depth, and so does each IPv6 fragment header against MAX_EXTENSIONS.

Live, this process may be one of several, and the successor of one that died:

- A frame's number has the capture process in its upper bits, so that numbers of different processes
  never meet.
- Without frames the clock goes on with CLOCK_MONOTONIC, up to the moment at which the source was
  last asked and had nothing; what is behind that moment may still have frames.  A frame that is a
  little older than the clock leaves it standing.  A frame far ahead of both is a clock that was
  set: a jump.
- A commit has the counters and the tails that are published behind it.  A successor publishes the
  committed tails once more, and goes on with the committed number and clock.  What the dead one
  had read and not committed was in no ring yet: it is lost with the kernel's buffer, and counted
  there (C_KERNEL_LOST) as far as the kernel had told of it.
- The kernel's counters are a socket's.  What is committed as received is never less than what was
  dropped and read, although the kernel is asked only now and then.
"""

from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

from gazer.capture.filter cimport Filter
from gazer.capture.fragments cimport (
    FRAGMENT_COUNTS, FRAGMENT_WHOLE, Fragments, Joined, joined_soundly)
from gazer.capture.source cimport (
    FRAME_BAD_TIME, SOURCE_BROKEN, SOURCE_END, SOURCE_FRAME, SOURCE_IDLE, Frame, Source)
from gazer.counters cimport (
    C_ABSENT, C_BAD_TIME, C_BYTES, C_CLOCK_JUMPS, C_DATAGRAMS, C_DELIVERED, C_END, C_FATE, C_FRAMES,
    C_INTERFACE_DROPPED, C_KERNEL_DROPPED, C_KERNEL_LOST, C_KERNEL_RECEIVED, C_LOST_PIECES,
    C_RING_DROPPED, C_SNAPPED, C_TUNNELLED, C_WAITING_PIECES, C_WAITS, P_CLOCK,
    P_PACE_CLOCK, P_PACE_TIME, P_SEQUENCE, P_SHIFT, P_TAILS, RUNNING, WAITING, WORD_COMMITS, Slot)
from gazer.cursor cimport Cursor, cursor_over
from gazer.entry cimport FrameEntry
from gazer.flow cimport flow_hash, packet_scope
from gazer.packet cimport (
    DNS, FILTERED, FRAGMENT, MAX_SCOPE, MAX_TUNNELS, TCP, Decoding, Fragment, Layer, Packet, Rules,
    packet_decode, packet_resume, protocol_of, tunnel_of)
from gazer.ring cimport (
    MARK_END, Ring, bell_wait, ring_claim, ring_commit, ring_lose, ring_mark, ring_producer_awake,
    ring_producer_sleeps, ring_publish, ring_wake_consumer)
from gazer.tunnel cimport Ports, ports_behind

cdef enum:
    BATCH = 256             # frames between two publications
    ROUNDS = 64             # batches between two looks at what Python wants
    NAP = 100               # ms; the longest sleep

cdef enum Stop:
    PUMP_TURN = 10          # ROUNDS are over

cdef int64_t SECOND = 1000000000
cdef int64_t STEP_BACK = SECOND             # smaller ones leave the clock standing
cdef int64_t LEAP = 24 * 3600 * SECOND      # larger ones are no passing of time
# The clock goes no further: MARK_END, beyond it, is not a time, and time-outs are added to it.
cdef uint64_t LATEST = <uint64_t>INT64_MAX


cdef uint64_t clock_read(int which) noexcept nogil:
    cdef timespec t
    clock_gettime(which, &t)
    return <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec


cdef inline uint64_t clock_paced(const Clock* clock, uint64_t time) noexcept nogil:
    """Where the clock would be at this CLOCK_MONOTONIC, if time had just passed."""
    if time <= clock.pace_time or clock.pace_clock + (time - clock.pace_time) > LATEST:
        return clock.pace_clock
    return clock.pace_clock + (time - clock.pace_time)


cdef bint clock_jumped(Clock* clock, int64_t time, int64_t ahead) noexcept nogil:
    """Live, a frame whose time is more than a second off the clock: has somebody set a clock, or
    has just nothing come for a while?  Where one was set, the clock goes on as time passes."""
    cdef uint64_t paced = clock_paced(clock, clock_read(CLOCK_MONOTONIC))
    if 0 <= ahead <= LEAP and clock.now + <uint64_t>ahead <= paced + <uint64_t>SECOND:
        return False
    if paced > clock.now:
        clock.now = paced
    clock.shift = <int64_t>(clock.now - <uint64_t>time)
    return True


cdef inline bint clock_advance(Clock* clock, int64_t time) noexcept nogil:
    """Let the clock follow a frame's time.  True if the frames' time has jumped.

    A step back of at most a second leaves the clock standing; a larger one, and a leap ahead of
    more than a day, re-bases it: it stays where it is and goes on at the new frames' pace.
    A first frame from before 1970 (pcapng can say so) starts it at 0.
    """
    # Unsigned, since a file may hold any time: what wraps around is a jump as well.
    cdef int64_t ahead = <int64_t>(<uint64_t>time + <uint64_t>clock.shift - clock.now)
    if not clock.started:
        clock.started = True
        clock.now = <uint64_t>time if time > 0 else 0
        clock.shift = <int64_t>(clock.now - <uint64_t>time)
        return False
    if clock.live and not -STEP_BACK <= ahead <= SECOND and clock_jumped(clock, time, ahead):
        return True
    if ahead >= 0:
        if ahead <= LEAP and clock.now + <uint64_t>ahead <= LATEST:
            clock.now += <uint64_t>ahead
            return False
    elif ahead >= -STEP_BACK:
        return False
    clock.shift = <int64_t>(clock.now - <uint64_t>time)
    return True


cdef bint is_foreign(const uint8_t* frame, const Rules* rules, const Packet* packet,
                     const Fragment* piece) noexcept nogil:
    """Does the first piece of a datagram show ports that are neither ours nor a tunnel's?  What is
    too short to tell is not foreign yet."""
    cdef Cursor c = cursor_over(
        frame, piece.payload_offset, piece.payload_offset + piece.payload_length)
    cdef Ports ports
    cdef int transport = ports_behind(&c, packet.family == 6, piece.protocol, &ports)
    if transport < 0 or protocol_of(rules, ports.source, ports.destination) >= 0:
        return False
    return transport == TCP or tunnel_of(rules, ports.destination) < 0


assert C_WAITING_PIECES - C_DATAGRAMS + 1 == FRAGMENT_COUNTS


cdef class Dispatcher:
    """Shares out the frames of one run.

    `rings` and `bells`: the frame ring and the bell of each worker; `bell`: our own; `ports`:
    ports that carry DNS; `seed`: secret of the flow hash; `filter`: what frames must pass;
    `fragments`: the table of datagrams in pieces (default: one with the configuration's defaults);
    `tunnels`: the other rules of Decoding.

    `live`: a frame without room is dropped, the clock goes on without frames, and this process may
    be the successor of another one; `capture`: its index; `start`: where the sensor clock begins,
    in ns (default: now).
    """

    def __init__(self, *, rings, bells, int bell, Slot slot, ports, seed, bint live=False,
                 int capture=0, start=None, Filter filter=None, Fragments fragments=None,
                 **tunnels):
        cdef Ring ring
        if not 0 < len(rings) <= MAX_WORKERS or len(rings) != len(bells):
            raise ValueError("one ring and one bell for each of 1 to 64 workers")
        self.decoding = Decoding(ports, **tunnels)
        if fragments is None:
            fragments = Fragments(max_datagrams=4096, max_bytes=1 << 24, timeout=30 * SECOND,
                                  seed=seed)
        self.fragments = fragments
        self.filter = filter
        self.filtering = filter is not None
        self.rings = list(rings)
        self.workers = len(rings)
        for i, (ring, worker_bell) in enumerate(zip(rings, bells, strict=True)):
            self.producers[i] = ring.producer(worker_bell)
        self.bell = bell
        self.slot = slot
        self.counters = slot.counters
        self.seed = seed
        self.policy = DROP if live else WAIT
        self.live = live
        self.sequence = self.paced = <uint64_t>capture << CAPTURE_SHIFT
        if live:
            self.clock.live = self.clock.started = True
            self.clock.pace_time = clock_read(CLOCK_MONOTONIC)
            self.clock.now = clock_read(CLOCK_REALTIME) if start is None else <uint64_t>start
            self.clock.pace_clock = self.clock.now
            self.take_over()
            self.publish(self.sequence + 1, True)

    cdef void take_over(self) noexcept nogil:
        """Go on from what another process has committed in this slot, if there was one."""
        cdef uint64_t* positions = self.slot.positions
        cdef uint64_t* c = self.counters
        cdef uint64_t accounted = c[C_DELIVERED] + c[C_RING_DROPPED]
        cdef int i
        if self.slot.words[WORD_COMMITS] == 0:
            return
        self.sequence = self.paced = positions[P_SEQUENCE]
        self.clock.now = positions[P_CLOCK]
        self.clock.shift = <int64_t>positions[P_SHIFT]
        self.clock.pace_clock = positions[P_PACE_CLOCK]
        self.clock.pace_time = positions[P_PACE_TIME]
        self.absent = c[C_ABSENT] != 0
        self.blind = True
        for i in range(self.workers):
            self.producers[i].tail = positions[P_TAILS + i]
        # A frame that was in hand, waiting for room, when the other one died.
        for i in range(C_FATE + DNS + 1, C_END):
            accounted += c[i]
        c[C_RING_DROPPED] += c[C_FRAMES] - accounted
        c[C_LOST_PIECES] += c[C_WAITING_PIECES]
        c[C_WAITING_PIECES] = 0
        for i in range(FRAGMENT_COUNTS):
            self.pieces[i] = c[C_DATAGRAMS + i]
        self.received = c[C_KERNEL_RECEIVED]
        self.lose_socket()
        self.earlier[0] = c[C_KERNEL_RECEIVED]
        self.earlier[1] = c[C_KERNEL_DROPPED]
        self.earlier[2] = c[C_INTERFACE_DROPPED]
        self.lose()

    def run(self, Source source):
        """Take frames from the source for a while.

        Returns "end" or "broken" when the source is at its end, "turn" to be called again, "idle"
        if the source has nothing just now.
        """
        cdef int result
        with nogil:
            result = self.pump(source)
        if result == SOURCE_END:
            return "end"
        if result == SOURCE_BROKEN:
            return "broken"
        return "idle" if result == SOURCE_IDLE else "turn"

    def idle(self):
        """There is nothing to read from just now: time goes on."""
        self.slot.beat()
        self.pass_time(clock_read(CLOCK_MONOTONIC))
        self.publish(self.sequence + 1, True)

    def kernel(self, uint64_t received, uint64_t dropped, uint64_t missed):
        """What the kernel and the interface have counted on this process's socket, so far."""
        cdef uint64_t* c = self.counters
        dropped += self.earlier[1]
        missed += self.earlier[2]
        if dropped != c[C_KERNEL_DROPPED] or missed != c[C_INTERFACE_DROPPED]:
            self.lose()
        self.received = received + self.earlier[0]
        c[C_KERNEL_DROPPED] = dropped
        c[C_INTERFACE_DROPPED] = missed

    def wait_for_room(self):
        """From here on a frame waits for room in its ring: nothing more comes in."""
        self.policy = WAIT

    def interface_gone(self):
        """The socket is of no more use, and the operator knows; a successor will have another."""
        self.absent = self.blind = True
        self.lose_socket()
        self.idle()

    def listening(self):
        """The interface is there (again), and from now on its frames are received.

        What came since another socket was the last to listen is lost: the mark has to stand at the
        end of that time, since replies to its queries are still to come.
        """
        if self.blind:
            self.pass_time(clock_read(CLOCK_MONOTONIC))
            self.lose()
        self.absent = self.blind = False

    cdef void lose_socket(self) noexcept nogil:
        """Nobody will read what a socket still holds."""
        cdef uint64_t* c = self.counters
        cdef uint64_t known = c[C_KERNEL_DROPPED] + c[C_KERNEL_LOST] + c[C_FRAMES]
        if self.received > known:
            c[C_KERNEL_LOST] += self.received - known

    cdef void lose(self) noexcept nogil:
        """Frames of unknown flows are lost: all workers have to know."""
        cdef int i
        for i in range(self.workers):
            ring_lose(&self.producers[i], self.clock.now)

    cdef void pass_time(self, uint64_t since) noexcept nogil:
        """Live: let the clock go on.  Whoever asks the source after `since` (CLOCK_MONOTONIC) and
        gets nothing knows that no frame from before is to come."""
        cdef uint64_t paced
        if self.paced != self.sequence:     # frames came: it is where they are
            self.paced = self.sequence
            self.clock.pace_clock = self.clock.now
            self.clock.pace_time = clock_read(CLOCK_MONOTONIC)
            return
        paced = clock_paced(&self.clock, since)
        if paced > self.clock.now:
            self.clock.now = paced

    def end(self):
        """No frame will follow."""
        cdef int i
        self.commit()
        for i in range(self.workers):
            ring_publish(&self.producers[i])
            ring_mark(&self.producers[i], MARK_END, self.sequence + 1)
            ring_wake_consumer(&self.producers[i])

    def release(self):
        """Let go of the shared memory."""
        self.counters = NULL
        for ring in self.rings:
            ring.release()
        self.slot.release()

    cdef int pump(self, Source source) noexcept nogil:
        cdef Frame frame
        cdef FrameEntry* entry
        cdef Packet packet
        cdef Layer[MAX_TUNNELS] layers
        cdef Fragment piece
        cdef const Rules* rules = &self.decoding.rules
        cdef uint8_t* to
        cdef uint32_t size, head
        cdef uint64_t since = 0
        cdef int result = PUMP_TURN, fate, worker, rounds, _
        for rounds in range(ROUNDS):
            self.slot.beat()
            if self.live:
                since = clock_read(CLOCK_MONOTONIC)
            for _ in range(BATCH):
                result = source.next(&frame)
                if result != SOURCE_FRAME:
                    if self.live and result == SOURCE_IDLE:
                        self.pass_time(since)
                    self.publish(self.sequence + 1, True)
                    return result
                self.sequence += 1
                self.counters[C_FRAMES] += 1
                self.counters[C_BYTES] += frame.caplen
                if frame.caplen < frame.length:
                    self.counters[C_SNAPPED] += 1
                if clock_advance(&self.clock, frame.time):
                    self.counters[C_CLOCK_JUMPS] += 1
                if frame.time < 0:      # before 1970; pcapng can say so, events can't
                    frame.time = 0
                    frame.flags |= FRAME_BAD_TIME
                if frame.flags & FRAME_BAD_TIME:
                    self.counters[C_BAD_TIME] += 1
                if self.filtering and not self.filter.passes(&frame):
                    self.counters[C_FATE + FILTERED] += 1
                    continue
                fate = packet_decode(frame.data, frame.caplen, frame.length, frame.linktype, rules,
                                     &packet, layers, &piece)
                if fate == FRAGMENT:
                    fate = self.join(&frame, &packet, layers, &piece)
                if fate != DNS:
                    self.counters[C_FATE + fate] += 1
                    continue
                worker = 0
                if self.workers > 1:
                    worker = <int>(((flow_hash(frame.data, &packet, self.seed) >> 32)
                                    * <uint64_t>self.workers) >> 32)
                head = sizeof(FrameEntry)
                if packet.layers:
                    head += packet.layers * <uint32_t>sizeof(Layer)
                size = head + frame.caplen
                to = self.room(worker, size)
                if to == NULL:
                    self.counters[C_RING_DROPPED] += 1
                    ring_lose(&self.producers[worker], self.clock.now)
                    continue
                entry = <FrameEntry*>to
                entry.sequence = self.sequence
                entry.clock = self.clock.now
                entry.time = frame.time
                entry.caplen = frame.caplen
                entry.linktype = <uint32_t>frame.linktype
                entry.packet = packet
                if packet.layers:
                    memcpy(to + sizeof(FrameEntry), layers, packet.layers * sizeof(Layer))
                    self.counters[C_TUNNELLED] += 1
                memcpy(to + head, frame.data, frame.caplen)
                ring_commit(&self.producers[worker], size)
                self.counters[C_DELIVERED] += 1
            # A worker without work is not woken for each watermark, only now and then.
            self.publish(self.sequence + 1, rounds == ROUNDS - 1)
        return PUMP_TURN

    cdef int join(self, Frame* frame, Packet* packet, Layer* layers,
                  Fragment* piece) noexcept nogil:
        """A frame that is a piece: keep it, or go on with the datagram that it made whole, whose
        bytes take the place of the frame's.  Returns the frame's fate."""
        cdef uint8_t[MAX_SCOPE] scope
        cdef Joined* joined = &self.fragments.joined
        cdef const Rules* rules = &self.decoding.rules
        cdef bint cut = frame.caplen < frame.length, foreign, nested
        cdef uint32_t n
        cdef int fate = FRAGMENT
        while fate == FRAGMENT:
            n = packet_scope(frame.data, frame.caplen, packet, layers, scope)
            foreign = piece.offset == 0 and is_foreign(frame.data, rules, packet, piece)
            if self.fragments.add(frame.data, frame.caplen, piece, packet, layers, scope, n,
                                  foreign, self.clock.now) != FRAGMENT_WHOLE:
                break
            if not joined_soundly(joined):
                # What came last may well belong to what is still to come.
                nested = frame.data == joined.frame
                self.fragments.take_back(nested)
                if not nested:
                    self.fragments.add(frame.data, frame.caplen, piece, packet, layers, scope, n,
                                       foreign, self.clock.now)
                break
            frame.data = joined.frame
            frame.caplen = joined.caplen
            frame.length = joined.length
            packet[0] = joined.packet
            memcpy(layers, joined.layers, packet.layers * sizeof(Layer))
            fate = packet_resume(joined.frame, joined.head_length, joined.caplen, joined.length,
                                 joined.protocol, rules, packet, layers, piece)
        if frame.caplen < frame.length and not cut:
            self.counters[C_SNAPPED] += 1
        self.count_pieces()
        return fate

    cdef void count_pieces(self) noexcept nogil:
        """Bring the ledger up to date with the fragments' own account."""
        cdef int i
        self.fragments.expire(self.clock.now)
        for i in range(FRAGMENT_COUNTS):
            self.counters[C_DATAGRAMS + i] = self.pieces[i] + self.fragments.counts[i]

    cdef void commit(self) noexcept nogil:
        """Commit the counters and the tails that are about to be published."""
        cdef uint64_t* positions = self.slot.positions
        cdef uint64_t* c = self.counters
        cdef int i
        self.count_pieces()
        if self.live:
            c[C_KERNEL_RECEIVED] = c[C_KERNEL_DROPPED] + c[C_KERNEL_LOST] + c[C_FRAMES]
            if self.received > c[C_KERNEL_RECEIVED]:
                c[C_KERNEL_RECEIVED] = self.received
            c[C_ABSENT] = self.absent
        positions[P_SEQUENCE] = self.sequence
        positions[P_CLOCK] = self.clock.now
        positions[P_SHIFT] = <uint64_t>self.clock.shift
        positions[P_PACE_CLOCK] = self.clock.pace_clock
        positions[P_PACE_TIME] = self.clock.pace_time
        for i in range(self.workers):
            positions[P_TAILS + i] = self.producers[i].tail
        self.slot.commit()

    cdef inline void at(self, int point) noexcept nogil:
        if self.probe != NULL:
            self.probe(point)

    cdef void publish(self, uint64_t next, bint wake) noexcept nogil:
        """Commit, and publish to all rings, and the watermark: what follows is not below `next`."""
        cdef int i
        self.at(POINT_COMMIT)
        self.commit()
        for i in range(self.workers):
            self.at(POINT_TAIL)
            ring_publish(&self.producers[i])
            self.at(POINT_MARK)
            ring_mark(&self.producers[i], self.clock.now, next)
            self.at(POINT_WAKE)
            if wake:
                ring_wake_consumer(&self.producers[i])
        self.at(POINT_SHOWN)

    cdef uint8_t* room(self, int worker, uint32_t n) noexcept nogil:
        """Room for a frame in the worker's ring; NULL if it is to be dropped.

        While one ring is full, the others' workers must learn how far the clock is: the sink may
        be waiting for their watermark to drain the very worker that we wait for.
        """
        cdef Producer* p = &self.producers[worker]
        cdef uint8_t* to = ring_claim(p, n)
        if to != NULL:
            return to
        if self.policy == DROP:
            if p.published == p.tail:
                return NULL
            # A small ring: its worker may not even know what there is to make room of.
            self.publish(self.sequence, True)
            return ring_claim(p, n)
        self.counters[C_WAITS] += 1
        # The frame in hand has this clock and number and is not published yet.
        self.publish(self.sequence, True)
        self.slot.set_state(WAITING)
        while True:
            to = ring_claim(p, n)
            if to != NULL:
                break
            if ring_producer_sleeps(p, n):
                bell_wait(self.bell, NAP)
            ring_producer_awake(p)
            self.slot.beat()
        self.slot.set_state(RUNNING)
        return to
