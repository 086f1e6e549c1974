"""The worker's hot loop: frames in, events out; see ARCHITECTURE.md, "Order" and "Matching".

For each frame: what is due by its clock leaves first.  A UDP packet's payload is a message; a TCP
segment goes to its connection, which hands on the messages that it made whole.  Each message is
decoded and matched, and what follows from it encoded straight into the event ring (matcher.pyx,
emitter.pyx).  The watermark of a frame ring is read before its tail; once that tail is consumed,
the watermark holds for the events as well and is passed on.

After some frames comes a commit, in an order that a kill may break off anywhere (ARCHITECTURE.md,
"Succession"): counters and positions, the events' tail, the watermark, the frames' heads.  A commit
stands between two frames, or between two things that expire ahead of a frame.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from gazer.atomics cimport load_acquire, store_relaxed
from gazer.counters cimport (
    P_PASSED, WORD_COMMITS, WORD_IN_HAND, WORD_SUSPECT, W_ANSWERED_FORGOTTEN, W_BROKEN_MESSAGES,
    W_CROWDED, W_DATAGRAMS, W_DISCARDED, W_FRAMES, W_GAPS, W_LOST_OCTETS, W_LOST_PENDING,
    W_LOST_TRANSFERS, W_OCTETS, W_OCTETS_BUFFERED, W_OCTETS_FRAMED, W_OCTETS_OLD, W_OCTETS_SKIPPED,
    W_PENDING, W_QUARANTINED, W_RESYNCS, W_SEGMENTS, W_STREAMS, W_STREAMS_EVICTED, W_STREAMS_OPENED,
    W_STREAMS_TIMED_OUT, W_STREAM_MESSAGES, W_TRANSFERRING, Slot)
from gazer.cursor cimport Cursor, cursor_over, cursor_take
from gazer.entry cimport FrameEntry, frame_offset
from gazer.flow cimport packet_scope
from gazer.packet cimport MAX_SCOPE, TCP, Layer, Packet
from gazer.ring cimport MARK_END, Ring, bell_wait, ring_wake_consumer
from gazer.workers.anomaly cimport SHORT_HEADER
from gazer.workers.emitter cimport Emitter
from gazer.workers.encode cimport Encoder
from gazer.workers.intake cimport CAPTURE_SHIFT, Intake, Lane, lane_next
from gazer.workers.matcher cimport Due, Matcher, Origin
from gazer.workers.outer cimport Outer, outer_of
from gazer.workers.connections cimport Segment, StreamCounts
from gazer.workers.sample cimport Samples
from gazer.workers.stream cimport STREAM_MESSAGE, STREAM_NOTHING, StreamItem, Streams
from gazer.workers.transaction cimport Transactions
from gazer.workers.transfer cimport Transfers

cdef enum:
    BATCH = 128             # frames between two commits, at most
    NAP = 100               # ms; the longest sleep: a safety net, and the pace of heartbeats


cdef inline bint below(uint64_t clock, uint64_t sequence, uint64_t than_clock,
                       uint64_t than_sequence) noexcept nogil:
    return clock < than_clock or (clock == than_clock and sequence < than_sequence)


cdef class Engine:
    """One worker's rings, tables and counters.

    `frame_rings`, `capture_bells`: the frame ring from each capture process, and the eventfd that
    wakes it; `event_ring`, `sink_bell`: the same of the sink; `bell`: our own; `slot`: our part of
    the ledger, which says whether we succeed a process that died; `timeout` of transactions in ns;
    `samples`: see sample.pyx, or None.
    """

    def __init__(self, *, frame_rings, Ring event_ring, int bell, capture_bells, int sink_bell,
                 Slot slot, Transactions table, Transfers transfers, Streams streams,
                 Encoder encoder, bint records, uint64_t timeout, Samples samples=None):
        self.intake = self.make_intake(rings=frame_rings, bells=capture_bells, slot=slot)
        self.bell = bell
        self.slot = slot
        self.counters = slot.counters
        self.in_hand = &slot.words[WORD_IN_HAND]
        self.streams = streams
        self.emitter = self.make_emitter(
            ring=event_ring, bell=bell, sink_bell=sink_bell, slot=slot, encoder=encoder,
            samples=samples)
        self.matcher = self.make_matcher(
            table=table, transfers=transfers, emitter=self.emitter, records=records,
            timeout=timeout)
        self.batch = BATCH
        if load_acquire(&slot.words[WORD_COMMITS]):
            self._succeed()
        self._look_for_suspect()

    # A test's engine has parts that can be stopped between any two steps (mortal.pyx).
    make_intake = staticmethod(Intake)
    make_emitter = staticmethod(Emitter)
    make_matcher = staticmethod(Matcher)

    def _succeed(self):
        """Go on from our predecessor's last commit, with empty tables."""
        cdef uint64_t* c = self.counters
        cdef StreamCounts* s = &self.streams.counts
        self.emitter.restore()
        self.intake.restore()
        c[W_LOST_PENDING] += c[W_PENDING]
        c[W_LOST_TRANSFERS] += c[W_TRANSFERRING]
        c[W_LOST_OCTETS] += c[W_OCTETS_BUFFERED]
        s.opened = c[W_STREAMS_OPENED]
        s.evicted = c[W_STREAMS_EVICTED]
        s.timed_out = c[W_STREAMS_TIMED_OUT]
        s.gaps = c[W_GAPS]
        s.broken_messages = c[W_BROKEN_MESSAGES]
        s.crowded = c[W_CROWDED]
        s.resyncs = c[W_RESYNCS]
        s.messages = c[W_STREAM_MESSAGES]
        s.octets = c[W_OCTETS]
        s.octets_framed = c[W_OCTETS_FRAMED]
        s.octets_old = c[W_OCTETS_OLD]
        s.octets_skipped = c[W_OCTETS_SKIPPED]
        self.matcher.table.forgotten = c[W_ANSWERED_FORGOTTEN]
        self.intake.loss = self.slot.positions[P_PASSED]
        # So that what was lost is counted once, whenever we die.
        self.account()
        self.emitter.commit()

    def _look_for_suspect(self):
        """If our predecessor died over a frame that comes again, that one is suspect; if the one
        before it died of the same, it is skipped."""
        cdef uint64_t number = self.in_hand[0]
        cdef uint64_t* suspect = &self.slot.words[WORD_SUSPECT]
        if number == 0 or self.intake.find(number) == NULL:
            store_relaxed(self.in_hand, 0)
            return
        self.marked = number
        self.condemned = suspect[0] == number
        self.batch = 1      # up to there, so that it is found alone if it kills again
        if not self.condemned:
            # In this order: who is killed between the two loses the trace, and blames nobody.
            store_relaxed(self.in_hand, 0)
            store_relaxed(suspect, number)

    def condemned_frame(self):
        """The frame that will be skipped since it killed two workers, as (time in ns, link type,
        length on the wire, bytes); None if there is none."""
        cdef const FrameEntry* f
        cdef const uint8_t* data
        if not self.condemned:
            return None
        f = self.intake.find(self.marked)
        data = <const uint8_t*>f + frame_offset(f)
        length = f.caplen
        if f.packet.wire_payload > f.packet.payload_length:
            length += f.packet.wire_payload - f.packet.payload_length
        return f.time, f.linktype, length, <bytes>data[:f.caplen]

    def run(self):
        """Work for a while.  Returns "end", "turn" (call again) or "corrupt"."""
        cdef int result
        with nogil:
            result = self.turn()
        return ("end", "turn", "corrupt")[result]

    def release(self):
        """Let go of the shared memory."""
        self.counters = self.matcher.counters = self.emitter.counters = NULL
        self.in_hand = NULL
        self.intake.close()
        self.emitter.ring.release()
        if self.emitter.samples is not None:
            self.emitter.samples.release()
        self.slot.release()

    cdef int turn(self) noexcept nogil:
        cdef Lane* lanes = self.intake.lanes
        cdef bint one = self.intake.count == 1, worked
        cdef FrameEntry* f
        cdef uint64_t clock, sequence
        cdef int _, n, lane = 0
        for _ in range(256):
            self.slot.beat()
            worked = self.intake.look()
            self.matcher.loss = self.intake.loss
            f = NULL
            while True:
                n = 0
                while n < self.batch:
                    if one:
                        f = lane_next(lanes)
                    else:
                        f = self.intake.next_of_all()
                        lane = self.intake.least
                    if f == NULL:
                        break
                    n += 1
                    clock = f.clock
                    sequence = f.sequence
                    if self.marked and self.reached(f):
                        self.skip(f, lane)
                        continue
                    self.handle(f, <const uint8_t*>f + frame_offset(f), lane)
                    if self.emitter.crowded():
                        break
                if self.intake.corrupt():
                    return ENGINE_CORRUPT
                if n:
                    worked = True
                    self.publish(clock, sequence + 1)
                    self.intake.release()
                    if self.marked == 0:
                        self.batch = BATCH
                if f == NULL:
                    break
            clock = self.intake.mark_clock
            sequence = self.intake.mark_sequence
            # At the end no lane's number is a bound.
            self.expire(clock, MARK_END if clock == MARK_END else sequence)
            self.publish(clock, sequence)
            ring_wake_consumer(&self.emitter.events)
            self.intake.release()
            if clock == MARK_END:
                return ENGINE_END
            if worked:
                continue
            # Nothing to do.
            store_relaxed(self.in_hand, 0)
            if self.intake.sleep():
                bell_wait(self.bell, NAP)
                self.intake.awake()
                return ENGINE_TURN
            self.intake.awake()
        return ENGINE_TURN

    cdef bint reached(self, const FrameEntry* f) noexcept nogil:
        """There is a frame that our predecessor died of.  True if this is the one, and is to be
        skipped; what is after it needs no care."""
        if (f.sequence >> CAPTURE_SHIFT != self.marked >> CAPTURE_SHIFT
                or f.sequence < self.marked):
            return False
        if not self.condemned or f.sequence != self.marked:
            self.marked = 0
            return False
        self.marked = 0
        self.condemned = False
        return True

    cdef void skip(self, const FrameEntry* f, int lane) noexcept nogil:
        """Leave this frame out.  It is lost, so what its absence makes look like a missing query or
        reply is no evidence; and what is due ahead of it leaves first, as ahead of any other."""
        store_relaxed(self.in_hand, f.sequence)     # who is killed before the commit skips it too
        self.expire(f.clock, f.sequence)
        self.intake.heads[lane] = self.intake.lanes[lane].consumer.head
        self.slot.positions[P_PASSED] = f.clock
        if f.clock > self.intake.loss:
            self.intake.loss = f.clock
        self.matcher.loss = self.intake.loss
        self.counters[W_QUARANTINED] += 1

    cdef void account(self) noexcept nogil:
        """Bring the ledger up to date with the tables' own accounts."""
        cdef uint64_t* c = self.counters
        cdef const StreamCounts* s = &self.streams.counts
        c[W_PENDING] = self.matcher.table.pending
        c[W_ANSWERED_FORGOTTEN] = self.matcher.table.forgotten
        c[W_TRANSFERRING] = self.matcher.transfers.count
        c[W_STREAMS] = s.live
        c[W_STREAMS_OPENED] = s.opened
        c[W_STREAMS_EVICTED] = s.evicted
        c[W_STREAMS_TIMED_OUT] = s.timed_out
        c[W_GAPS] = s.gaps
        c[W_BROKEN_MESSAGES] = s.broken_messages
        c[W_CROWDED] = s.crowded
        c[W_RESYNCS] = s.resyncs
        c[W_STREAM_MESSAGES] = s.messages
        c[W_OCTETS] = s.octets
        c[W_OCTETS_FRAMED] = s.octets_framed
        c[W_OCTETS_OLD] = s.octets_old
        c[W_OCTETS_SKIPPED] = s.octets_skipped
        c[W_OCTETS_BUFFERED] = s.octets_buffered

    cdef void settle(self) noexcept nogil:
        """Commit what was done, between two frames or two things that expired, and let the sink see
        it.

        This is also what shows that we are alive: a full ring of frames that a stranger has made
        as expensive as can be, or a full table that is due, takes longer than hang_timeout.
        """
        self.slot.beat()
        self.account()
        self.emitter.commit()
        self.emitter.show()

    cdef void publish(self, uint64_t clock, uint64_t sequence) noexcept nogil:
        """The same, and nothing below this key will follow."""
        self.settle()
        self.emitter.mark(clock, sequence)

    # --- one frame -------------------------------------------------------------------------------

    cdef void handle(self, const FrameEntry* f, const uint8_t* frame, int lane) noexcept nogil:
        cdef const Packet* p = &f.packet
        cdef const Layer* layers = <const Layer*>(f + 1)
        cdef uint32_t half = 4 if p.family == 4 else 16
        cdef uint8_t[MAX_SCOPE] scope
        cdef Outer outer
        cdef Origin o
        cdef Cursor c
        cdef const uint8_t* payload
        cdef uint32_t n = 0
        cdef bint sound
        store_relaxed(self.in_hand, f.sequence)
        self.expire(f.clock, f.sequence)
        # From here on the frame is taken: a commit within it does not bring it again.
        self.intake.heads[lane] = self.intake.lanes[lane].consumer.head
        self.slot.positions[P_PASSED] = f.clock
        self.counters[W_FRAMES] += 1
        c = cursor_over(frame, p.payload_offset, f.caplen)
        payload = cursor_take(&c, p.payload_length)
        c = cursor_over(frame, p.addresses_offset, f.caplen)
        o.source = cursor_take(&c, half)
        o.destination = cursor_take(&c, half)
        sound = payload != NULL and o.source != NULL and o.destination != NULL
        o.outer = NULL
        if p.tags or p.layers:
            n = packet_scope(frame, f.caplen, p, layers, scope)
            if p.layers:
                sound = sound and outer_of(frame, f.caplen, p, layers, &outer)
                o.outer = &outer
        if not sound:       # no packet_decode says so; but what a stranger sent ends no worker
            self.counters[W_DATAGRAMS] += 1
            self.counters[W_DISCARDED + SHORT_HEADER] += 1
            return
        o.scope = scope
        o.scope_length = <uint8_t>n
        o.family = p.family
        o.transport = p.transport
        o.protocol = p.protocol
        o.source_port = p.source_port
        o.destination_port = p.destination_port
        o.clock = f.clock
        o.sequence = f.sequence
        o.time = f.time
        if p.transport == TCP:
            self.counters[W_SEGMENTS] += 1
            self.segment(f, payload, &o)
            return
        self.counters[W_DATAGRAMS] += 1
        o.stream = 0
        o.direction = 0
        o.size = p.wire_payload
        o.cut = p.cut
        self.matcher.message(&o, payload, p.payload_length)

    cdef void segment(self, const FrameEntry* f, const uint8_t* payload,
                      Origin* o) noexcept nogil:
        """Add a segment to its connection, and take what that makes whole."""
        cdef const Packet* p = &f.packet
        cdef uint32_t half = 4 if p.family == 4 else 16
        cdef uint8_t[32 + MAX_SCOPE] ends
        cdef Segment s
        memcpy(ends, o.source, half)
        memcpy(ends + half, o.destination, half)
        memcpy(ends + 2 * half, o.scope, o.scope_length)
        s.ends = ends
        s.family = p.family
        s.scope_length = o.scope_length
        s.flags = p.tcp_flags
        s.source_port = p.source_port
        s.destination_port = p.destination_port
        s.sequence = p.tcp_sequence
        s.acknowledgement = p.tcp_acknowledgement
        s.payload = payload
        s.length = p.payload_length
        s.wire_length = p.wire_payload
        s.protocol = p.protocol
        s.number = f.sequence
        s.time = f.time
        self.streams.feed(&s, f.clock)
        self.hand_on(o)

    cdef void hand_on(self, Origin* o) noexcept nogil:
        """Take messages, holes and ends from the streams.  `o` is the segment's own origin; it is
        changed."""
        cdef const Outer* outer = o.outer
        cdef StreamItem item
        cdef uint32_t half
        cdef int kind
        while True:
            kind = self.streams.next(&item)
            if kind == STREAM_NOTHING:
                return
            if kind != STREAM_MESSAGE:
                self.matcher.stream_over(item.serial, item.direction, item.clock, item.number)
                continue
            half = 4 if item.family == 4 else 16
            # What another connection, or this one's other direction, had kept came in a tunnel that
            # is not known any more.
            o.outer = outer if item.own else NULL
            o.source = item.ends
            o.destination = item.ends + half
            o.scope = item.ends + 2 * half
            o.scope_length = item.scope_length
            o.family = item.family
            o.transport = TCP
            o.protocol = item.protocol
            o.source_port = item.source_port
            o.destination_port = item.destination_port
            o.clock = item.clock
            o.sequence = item.number
            o.time = item.time
            o.stream = item.serial
            o.direction = item.direction
            o.size = item.length
            o.cut = False
            self.matcher.message(o, item.wire, item.length)

    cdef void expire(self, uint64_t clock, uint64_t sequence) noexcept nogil:
        """What is due below this key leaves, in the order in which it became due: transactions and
        zone transfers, and connections without a segment.

        By key and not by clock alone: at one clock a frame of one lane may come ahead of what a
        frame of another lane, with a greater number, makes due.
        """
        cdef Due due
        cdef Origin o
        cdef uint64_t idle, number
        cdef bint waits
        if self.streams.oldest == 0 and self.matcher.nothing_due(clock):
            return      # nearly always
        while True:
            if self.emitter.crowded():
                self.settle()
            waits = self.matcher.due(&due)
            idle = self.streams.due(&number)
            if number and below(idle, number, clock, sequence) and (
                    not waits or below(idle, number, due.clock, due.sequence)):
                o.outer = NULL
                self.streams.expire(idle, clock == MARK_END)
                self.hand_on(&o)
                continue
            if not waits or not below(due.clock, due.sequence, clock, sequence):
                return
            self.matcher.expire(&due)
