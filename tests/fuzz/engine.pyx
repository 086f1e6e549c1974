"""Target: a sequence of frames, from the source through dispatcher and engine to its events, with
tiny limits everywhere.

Each frame is six octets and its content:

    octet 0     bits 0-2  what it is: 0 a datagram to port 53, 1 one from it, 2 a TCP segment to
                          port 53, 3 one from it, 4 the content is an Ethernet frame itself, 5 mDNS
                          between two ports 5353, 6 LLMNR to its port, 7 an IPv4 fragment of UDP
                bit 3     IPv6 (but for fragments)
                bit 4     a VLAN tag
                bits 5-7  how long after the one before: see STEPS
    octet 1     TCP: flags; fragment: offset in units of 8, with bit 7: more follow; else the
                client's port and address: 4000 and 10.0.0.1, each plus this modulo 4
    octet 2     TCP: sequence number, signed, from the direction's position
    octet 3     TCP: acknowledgement, signed, from the other direction's position
    octets 4-5  length of the content, at most LONGEST

After each frame the engine takes its turn and the events are read.  Checked: events are
well-formed and in order, and no two have the same id; at the end the ledger adds up.  The first
octet of all says what is made: bit 0 full detail, bit 1 record events, bit 2 events without ids.

Everything but the rings' memory is made anew for each input, so this target makes Python objects.
"""

from libc.stdint cimport int8_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from gazer.capture.dispatch cimport Dispatcher
from gazer.capture.source cimport SOURCE_END, SOURCE_FRAME, SOURCE_IDLE, Frame, Source
from gazer.cursor cimport Cursor, cursor_left, cursor_over, cursor_take, cursor_u8
from gazer.entry cimport FORMATS, EventHeader
from gazer.ring cimport Consumer, Ring, ring_poll, ring_release
from gazer.workers.engine cimport ENGINE_CORRUPT, ENGINE_END, ENGINE_TURN, Engine
from outputs cimport event_check, id_check, ids_forget

import os

from gazer import counters
from gazer.capture.fragments import LEAST_BYTES, Fragments
from gazer.ring import ring_bytes
from gazer.summary import Account
from gazer.workers.encode import Encoder
from gazer.workers.stream import Streams
from gazer.workers.transaction import Transactions
from gazer.workers.transfer import Transfers

cdef enum:
    HEAD = 1
    LONGEST = 1500
    ETHERNET = 1
    MAX_SIZE = 16384        # events.max_size at its least
    FRAME_RING = 1 << 16
    EVENT_RING = 1 << 23    # all that one frame can bring about fits
    MOST_FRAMES = 64

cdef int64_t SECOND = 1000000000
RUN = 1_764_000_000_123_456_789     # when the run began, in ids
cdef int64_t[8] STEPS = [0, 1000, SECOND // 2, SECOND, 5 * SECOND, 31 * SECOND, 400 * SECOND,
                         -2 * SECOND]

MEMORY = [bytearray(ring_bytes(size)) for size in (FRAME_RING, EVENT_RING)]
LEDGER = bytearray(counters.ledger_bytes(3))
# An eventfd that never runs empty: nobody waits in here.
BELL = os.eventfd(0x7fffffff, os.EFD_SEMAPHORE | os.EFD_NONBLOCK)


cdef class Script(Source):
    """Frames as the input tells them; idle after each."""
    cdef Cursor c
    cdef int64_t time
    cdef uint32_t[2][4] position
    cdef uint8_t[LONGEST + 128] frame
    cdef bint idle

    cdef void begin(self, const uint8_t* data, uint32_t size) noexcept nogil:
        cdef int i
        self.c = cursor_over(data, HEAD, size)
        self.time = 1700000000 * SECOND
        for i in range(4):
            self.position[0][i] = <uint32_t>0 - 60
            self.position[1][i] = 1000

    cdef uint8_t* put16(self, uint8_t* w, uint32_t v) noexcept nogil:
        w[0] = <uint8_t>(v >> 8)
        w[1] = <uint8_t>v
        return w + 2

    cdef uint8_t* put32(self, uint8_t* w, uint32_t v) noexcept nogil:
        return self.put16(self.put16(w, v >> 16), v & 0xffff)

    cdef int next(self, Frame* f) noexcept nogil:
        cdef uint8_t what, more
        cdef int8_t ahead, acknowledged
        cdef uint32_t n, size
        cdef const uint8_t* content
        if self.idle:
            self.idle = False
            return SOURCE_IDLE
        if cursor_left(&self.c) < 6 or self.frames == MOST_FRAMES:
            return SOURCE_END
        what = cursor_u8(&self.c)
        more = cursor_u8(&self.c)
        ahead = <int8_t>cursor_u8(&self.c)
        acknowledged = <int8_t>cursor_u8(&self.c)
        n = cursor_u8(&self.c)
        n = (n << 8 | cursor_u8(&self.c)) % (LONGEST + 1)
        if n > cursor_left(&self.c):
            n = cursor_left(&self.c)
        content = cursor_take(&self.c, n)
        self.time += STEPS[what >> 5]
        if what & 7 == 4:
            memcpy(self.frame, content, n)
            size = n
        else:
            size = self.build(what, more, ahead, acknowledged, content, n)
        f.data = self.frame
        f.caplen = f.length = size
        f.time = self.time
        f.linktype = ETHERNET
        f.flags = 0
        self.frames += 1
        self.idle = True
        return SOURCE_FRAME

    cdef uint32_t build(self, uint8_t what, uint8_t more, int8_t ahead, int8_t acknowledged,
                        const uint8_t* content, uint32_t n) noexcept nogil:
        """The frame around a payload; its length."""
        cdef uint8_t* w = self.frame
        cdef int shape = what & 7, d = 1 if shape == 1 or shape == 3 else 0, i
        cdef bint tcp = shape == 2 or shape == 3, six = what & 8 and shape != 7
        cdef uint32_t which = 0 if tcp else more & 3
        cdef uint32_t transport = 20 if tcp else 0 if shape == 7 else 8, sequence
        cdef uint16_t[2] port
        cdef uint8_t[2] last
        memset(w, 0, 128)
        w = self.put16(w + 12, 0x8100 if what & 16 else 0x86dd if six else 0x0800)
        if what & 16:
            w = self.put16(self.put16(w, 7), 0x86dd if six else 0x0800)
        last[d] = <uint8_t>(1 + which)
        last[1 - d] = 53
        if six:
            w[0] = 0x60
            self.put16(w + 4, transport + n)
            w[6] = 6 if tcp else 17
            w[7] = 64
            for i in range(2):
                w[8 + 16 * i] = 0x20
                w[9 + 16 * i] = 1
                w[23 + 16 * i] = last[i]
            if shape == 5 or shape == 6:
                self.put16(w + 24, 0xff02)
                w[39] = 0xfb
            w += 40
        else:
            w[0] = 0x45
            self.put16(w + 2, 20 + transport + n)
            if shape == 7:
                self.put16(w + 4, 9)
                self.put16(w + 6, (more & 127) | (0x2000 if more & 128 else 0))
            w[8] = 64
            w[9] = 6 if tcp else 17
            for i in range(2):
                w[12 + 4 * i] = 10
                w[15 + 4 * i] = last[i]
            if shape == 5 or shape == 6:
                self.put32(w + 16, 0xe00000fb if shape == 5 else 0xe00000fc)
            w += 20
        port[d] = <uint16_t>(4000 + which)
        port[1 - d] = 53
        if shape == 5:
            port[0] = port[1] = 5353
        elif shape == 6:
            port[1] = 5355
        if transport:
            self.put16(self.put16(w, port[0]), port[1])
        if tcp:
            which = (what >> 3) & 3
            sequence = self.position[d][which] + <uint32_t><int>ahead
            self.put32(w + 4, sequence)
            self.put32(w + 8, self.position[1 - d][which] + <uint32_t><int>acknowledged)
            w[12] = 0x50
            w[13] = more & 31
            self.position[d][which] = sequence + n + (more & 1) + ((more >> 1) & 1)
        elif transport:
            self.put16(w + 4, 8 + n)
        memcpy(w + transport, content, n)
        return <uint32_t>(w + transport - self.frame) + n


cdef const char* drain(Consumer* c, uint64_t* last, uint64_t* events, bint ids) noexcept nogil:
    """Read all events that are there; `ids`: they have some."""
    cdef uint32_t n = 0
    cdef uint8_t* entry
    cdef EventHeader* h
    cdef const char* failed
    while True:
        entry = ring_poll(c, &n)
        if entry == NULL:
            break
        failed = event_check(entry, n)
        if failed == NULL and ids:
            failed = id_check(entry)
        if failed != NULL:
            return failed
        h = <EventHeader*>entry
        if h.clock < last[0] or (h.clock == last[0] and h.sequence < last[1]):
            return b"an event comes before one that was due earlier"
        last[0] = h.clock
        last[1] = h.sequence
        events[0] += 1
    ring_release(c)
    if c.corrupt:
        return b"the event ring is corrupt"
    return NULL


cdef const char* play(const uint8_t* data, uint32_t size) noexcept with gil:
    cdef Ring frames = Ring(MEMORY[0], create=FRAME_RING)
    cdef Ring events = Ring(MEMORY[1], create=EVENT_RING)
    cdef Script script = Script()
    cdef Dispatcher dispatcher
    cdef Engine engine
    cdef Consumer consumer = events.consumer(-1)
    cdef uint64_t[2] last = [0, 0]
    cdef uint64_t taken = 0
    cdef bint ids = not data[0] & 4
    cdef const char* failed = NULL
    cdef int result, _
    LEDGER[:] = bytes(len(LEDGER))
    counters.ledger_create(LEDGER)
    capture, worker = counters.Slot(LEDGER, 0), counters.Slot(LEDGER, 1)
    dispatcher = Dispatcher(
        rings=[frames], bells=[-1], bell=BELL, slot=capture, ports=[53], seed=7, mdns=True,
        llmnr=True, fragments=Fragments(max_datagrams=3, max_bytes=LEAST_BYTES,
                                        timeout=30 * SECOND, seed=7))
    encoder = Encoder(full=bool(data[0] & 1), formats=range(FORMATS), max_size=MAX_SIZE, sensor="s",
                      run=RUN if ids else None)
    engine = Engine(
        frame_rings=[frames], event_ring=events, bell=BELL, capture_bells=[-1], sink_bell=-1,
        slot=worker, encoder=encoder, records=bool(data[0] & 2), timeout=5 * SECOND,
        table=Transactions(max_pending=4, max_bytes=8192, window=SECOND, seed=7),
        transfers=Transfers(max_transfers=2, max_bytes=1 << 18, budget=MAX_SIZE, seed=7),
        streams=Streams(max_streams=3, max_bytes=1 << 17, max_bytes_each=2048,
                        timeout=300 * SECOND, seed=7))
    script.begin(data, size)
    ids_forget()
    with nogil:
        result = SOURCE_IDLE
        while result != SOURCE_END and failed == NULL:
            result = dispatcher.pump(script)
            if engine.turn() == ENGINE_CORRUPT:
                failed = b"the frame ring is corrupt"
            else:
                failed = drain(&consumer, last, &taken, ids)
    if failed == NULL:
        dispatcher.end()
        with nogil:
            for _ in range(1000):
                result = engine.turn()
                failed = drain(&consumer, last, &taken, ids)
                if result != ENGINE_TURN or failed != NULL:
                    break
        if failed == NULL and result != ENGINE_END:
            failed = b"the engine does not end"
    if failed == NULL:
        seen = worker.read(counters.WORKER)
        account = Account(capture.read(counters.CAPTURE), seen,
                          {**dict.fromkeys(counters.SINK, 0), "events": taken}, ())
        wrong = list(account.imbalances())
        if wrong:
            print(wrong, flush=True)
            failed = b"the ledger does not add up"
        elif seen["pending"] or seen["transferring"] or seen["octets_buffered"]:
            failed = b"something is left at the end"
    dispatcher.release()
    engine.release()
    return failed


cdef const char* one_input(const uint8_t* data, size_t size) noexcept nogil:
    if size < HEAD or size > 65536:
        return NULL
    return play(data, <uint32_t>size)


def address():
    """The C function, for the driver."""
    return <size_t>&one_input


def run(bytes data):
    """One input, from Python: None, or which check failed."""
    cdef const char* failed = one_input(data, len(data))
    return None if failed == NULL else failed.decode()
