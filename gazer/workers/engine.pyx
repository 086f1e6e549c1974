"""The worker's hot loop: frames in, events out; see ARCHITECTURE.md, "Order" and "Matching".

For each frame: what is due by its clock leaves first.  A UDP packet's payload is a message; a TCP
segment goes to its connection, which hands on the messages that it made whole.  Each message is
decoded and matched, and what follows from it encoded straight into the event ring (matcher.pyx,
emitter.pyx).  A frame's events are published together.  The watermark of the frame ring is read
before its tail; once that tail is consumed, the watermark holds for the events as well and is
passed on.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from gazer.atomics cimport load_acquire
from gazer.counters cimport (
    W_ANSWERED_FORGOTTEN, W_BROKEN_MESSAGES, W_CROWDED, W_DATAGRAMS, W_DISCARDED, W_FRAMES, W_GAPS,
    W_OCTETS, W_OCTETS_BUFFERED, W_OCTETS_FRAMED, W_OCTETS_OLD, W_OCTETS_SKIPPED, W_PENDING,
    W_RESYNCS, W_SEGMENTS, W_STREAMS, W_STREAMS_EVICTED, W_STREAMS_OPENED, W_STREAMS_TIMED_OUT,
    W_STREAM_MESSAGES, W_TRANSFERRING, Slot)
from gazer.cursor cimport Cursor, cursor_over, cursor_take
from gazer.entry cimport FrameEntry, frame_offset
from gazer.flow cimport packet_scope
from gazer.packet cimport MAX_SCOPE, MAX_TAGS, MAX_TUNNELS, PROTOCOLS, TCP, Layer, Packet
from gazer.ring cimport (
    MARK_END, Consumer, Ring, bell_wait, ring_consumer_awake, ring_consumer_sleeps, ring_poll,
    ring_release, ring_wake_consumer)
from gazer.workers.anomaly cimport SHORT_HEADER
from gazer.workers.emitter cimport Emitter
from gazer.workers.encode cimport Encoder
from gazer.workers.matcher cimport Due, Matcher, Origin
from gazer.workers.outer cimport Outer, outer_of
from gazer.workers.connections cimport Segment, StreamCounts
from gazer.workers.stream cimport STREAM_MESSAGE, STREAM_NOTHING, StreamItem, Streams
from gazer.workers.transaction cimport Transactions
from gazer.workers.transfer cimport Transfers

cdef enum:
    BATCH = 128             # frames between two publications
    NAP = 100               # ms; the longest sleep: a safety net, and the pace of heartbeats


cdef class Engine:
    """One worker's rings, tables and counters.

    `frame_ring`, `event_ring`: Ring; `capture_bell`, `sink_bell`: eventfds to wake those two;
    `bell`: our own; `slot`: our part of the ledger; `timeout` of transactions in ns.
    """

    def __init__(self, *, Ring frame_ring, Ring event_ring, int bell, int capture_bell,
                 int sink_bell, Slot slot, Transactions table, Transfers transfers,
                 Streams streams, Encoder encoder, bint records, uint64_t timeout):
        self.frame_ring = frame_ring
        self.frames = frame_ring.consumer(capture_bell)
        self.bell = bell
        self.slot = slot
        self.counters = slot.counters
        self.streams = streams
        self.emitter = Emitter(
            ring=event_ring, bell=bell, sink_bell=sink_bell, slot=slot, encoder=encoder)
        self.matcher = Matcher(
            table=table, transfers=transfers, emitter=self.emitter, records=records,
            timeout=timeout)

    def run(self):
        """Work for a while.  Returns "end", "turn" (call again) or "corrupt"."""
        cdef int result
        with nogil:
            result = self.turn()
        return ("end", "turn", "corrupt")[result]

    def release(self):
        """Let go of the shared memory."""
        self.counters = self.matcher.counters = self.emitter.counters = NULL
        self.frame_ring.release()
        self.emitter.ring.release()
        self.slot.release()

    cdef int turn(self) noexcept nogil:
        cdef Consumer* c = &self.frames
        cdef uint64_t clock, sequence, upto
        cdef uint32_t n
        cdef uint8_t* entry
        cdef FrameEntry* f
        cdef int _, _i
        cdef bint worked
        for _ in range(256):
            self.slot.beat()
            clock = load_acquire(&c.ring.mark_clock)
            sequence = load_acquire(&c.ring.mark_sequence)
            upto = load_acquire(&c.ring.tail)
            worked = False
            while c.head != upto:
                f = NULL
                for _i in range(BATCH):
                    entry = ring_poll(c, &n)
                    if entry == NULL:
                        break
                    f = <FrameEntry*>entry
                    if (n < sizeof(FrameEntry)
                            or f.packet.layers > MAX_TUNNELS or n < frame_offset(f)
                            or n - frame_offset(f) < f.caplen or f.packet.tags > MAX_TAGS
                            or f.packet.protocol >= PROTOCOLS):
                        return ENGINE_CORRUPT
                    self.handle(f, entry + frame_offset(f))
                    if c.head == upto:
                        break
                if c.corrupt:
                    return ENGINE_CORRUPT
                if f == NULL:
                    break
                worked = True
                self.publish(f.clock, f.sequence + 1)
                ring_release(c)
            self.expire(clock)
            if clock != self.mark_clock or sequence != self.mark_sequence:
                worked = True
                self.mark_clock = clock
                self.mark_sequence = sequence
            self.publish(clock, sequence)
            ring_wake_consumer(&self.emitter.events)
            ring_release(c)
            if clock == MARK_END:
                return ENGINE_END
            if worked:
                continue
            # Nothing to do.  A new watermark alone is a reason to go on, so look at that as well.
            if ring_consumer_sleeps(c) and load_acquire(
                    &c.ring.mark_clock) == clock and load_acquire(
                    &c.ring.mark_sequence) == sequence:
                bell_wait(self.bell, NAP)
                ring_consumer_awake(c)
                return ENGINE_TURN
            ring_consumer_awake(c)
        return ENGINE_TURN

    cdef void publish(self, uint64_t clock, uint64_t sequence) noexcept nogil:
        """Let the sink see what was encoded, and that nothing below this key will follow."""
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
        self.emitter.publish(clock, sequence)

    # --- one frame -------------------------------------------------------------------------------

    cdef void handle(self, const FrameEntry* f, const uint8_t* frame) noexcept nogil:
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
        self.counters[W_FRAMES] += 1
        self.expire(f.clock)
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

    cdef void expire(self, uint64_t clock) noexcept nogil:
        """What has waited long enough by this clock leaves, in the order in which it became due:
        transactions and zone transfers, and connections without a segment."""
        cdef Due due
        cdef Origin o
        cdef uint64_t idle, number
        cdef bint waits
        if self.streams.oldest == 0 and self.matcher.nothing_due(clock):
            return      # nearly always
        while True:
            waits = self.matcher.due(&due)
            idle = self.streams.due(&number)
            if number and idle <= clock and (
                    not waits or idle < due.clock
                    or (idle == due.clock and number < due.sequence)):
                o.outer = NULL
                self.streams.expire(idle, clock == MARK_END)
                self.hand_on(&o)
                continue
            if not waits or due.clock > clock:
                return
            self.matcher.expire(&due)
