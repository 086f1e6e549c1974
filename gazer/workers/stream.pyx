"""TCP connections put together into DNS messages; see stream.pxd."""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from gazer.cursor cimport Cursor, cursor_over, cursor_take, cursor_u8, cursor_u16
from gazer.packet cimport TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN
from gazer.workers.connections cimport Connection, Connections, Direction, Segment
from gazer.workers.framing cimport LOOK_AHEAD, PLAUSIBLE, Verdict, framing_search
from gazer.workers.pieces cimport CHUNK_OCTETS, Chunk

cdef enum:          # of a direction
    UNSEEN = 0
    OPEN
    ENDED

cdef enum:          # its flags
    FIRST_KNOWN = 1
    FIN_PENDING = 2
    OUT_OF_STEP = 4     # where the next message begins has to be searched

cdef enum Stage:
    IDLE = 0
    FINISHING           # end of input: all connections leave
    EXPIRING            # idle ones do
    FINDING             # the segment's connection
    MAKING_ROOM
    BEGINNING           # SYN and RST
    RESET               # by a RST: both directions have ended
    PAYLOAD
    CLOSING             # FIN
    ACKNOWLEDGING
    SETTLING

cdef enum:
    RST_BELOW = 65535           # how far from `next` a RST may be
    RST_ABOVE = 1 << 20


cdef inline bint is_open(const Connection* c) noexcept nogil:
    return c.direction[0].state == OPEN or c.direction[1].state == OPEN


cdef class Streams(Connections):
    """All connections of one worker; for what it takes see Connections."""

    def __cinit__(self, **_):
        self.scratch = <uint8_t*>malloc(2 + MAX_STREAM_MESSAGE)
        if self.scratch == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.scratch)

    # --- in order: octets to messages ------------------------------------------------------------

    cdef int hand_on(self, StreamItem* item, const Connection* c, int d, int what) noexcept nogil:
        cdef uint32_t half = 4 if c.family == 4 else 16
        item.connection = <uint32_t>((<uint8_t*>c - self.cells) // sizeof(Connection))
        item.serial = c.serial
        item.direction = d
        item.family = c.family
        item.protocol = c.protocol
        item.scope_length = c.scope_length
        item.source_port = c.port[d]
        item.destination_port = c.port[1 - d]
        item.ends = <const uint8_t*>c.ends
        if d:
            memcpy(self.turned, c.ends + half, half)
            memcpy(self.turned + half, c.ends, half)
            memcpy(self.turned + 2 * half, c.ends + 2 * half, c.scope_length)
            item.ends = self.turned
        item.idle = self.segment == NULL or self.stage == EXPIRING
        item.own = not item.idle and item.connection == self.current and d == self.side
        if item.idle:
            item.clock = self.idle_at(c)
            item.number = c.number
            item.time = c.time
        else:
            item.clock = self.clock
            item.number = self.segment.number
            item.time = self.segment.time
        if what == STREAM_MESSAGE:
            self.counts.messages += 1
            self.counts.octets_framed += 2 + item.length
        else:
            item.wire = NULL
            item.length = 0
        return what

    cdef bint resync(self, Connection* c, Direction* r) noexcept nogil:
        """Search a message's beginning in what is unread; True if the direction is in step now."""
        cdef uint32_t held, more, offset
        cdef Verdict verdict
        if self.live_length == 0:
            return False            # nothing new since the last search
        if r.head:
            # Its first octet was undecided, so it has fewer than LOOK_AHEAD.
            held = self.pieces.copy(r.head, self.window, LOOK_AHEAD)
            more = min(self.live_length, <uint32_t>LOOK_AHEAD)
            memcpy(self.window + held, self.live, more)
            offset = framing_search(self.window, held + more, held, &verdict)
            if offset:
                self.pieces.drop(&r.head, offset, &c.chunks)
                self.counts.octets_buffered -= offset
                self.counts.octets_skipped += offset
            if offset < held:
                if verdict == PLAUSIBLE:
                    r.flags &= ~OUT_OF_STEP
                    self.counts.resyncs += 1
                return verdict == PLAUSIBLE
        offset = framing_search(self.live, self.live_length, self.live_length, &verdict)
        self.live += offset
        self.live_length -= offset
        self.counts.octets_skipped += offset
        if verdict != PLAUSIBLE:
            return False
        r.flags &= ~OUT_OF_STEP
        self.counts.resyncs += 1
        return True

    cdef uint32_t unread(self, const Direction* r) noexcept nogil:
        """How many octets in order are no whole message yet."""
        return self.live_length + (self.pieces.at(r.head).length if r.head else 0)

    cdef uint32_t framed_length(self, const Direction* r) noexcept nogil:
        """Of the message that begins with the unread octets, with its length; 0: not known yet."""
        cdef uint8_t[2] prefix
        cdef uint32_t n = self.pieces.copy(r.head, prefix, 2)
        cdef Cursor c = cursor_over(self.live, 0, self.live_length)
        while n < 2:
            prefix[n] = cursor_u8(&c)
            n += 1
        return 0 if c.failed else 2 + (<uint32_t>prefix[0] << 8 | prefix[1])

    cdef bint pull(self, StreamItem* item, Connection* c, Direction* r) noexcept nogil:
        """The next whole message of what is unread: of the head, then of the live octets."""
        cdef Cursor live
        cdef uint32_t length, n
        if r.skip and self.live_length:
            n = min(r.skip, self.live_length)
            r.skip -= n
            self.live += n
            self.live_length -= n
            self.counts.octets_skipped += n
        if r.flags & OUT_OF_STEP and not self.resync(c, r):
            return False
        live = cursor_over(self.live, 0, self.live_length)
        if r.head == 0:
            if self.live_length < 2:    # there may be no octets at all: `live` is NULL then
                return False
            item.length = cursor_u16(&live)
            item.wire = cursor_take(&live, item.length)
            if live.failed:
                return False
            self.live += live.pos
            self.live_length -= live.pos
            return True
        length = self.framed_length(r)
        if length == 0 or self.unread(r) < length:
            return False
        n = self.pieces.copy(r.head, self.scratch, length)
        self.pieces.drop(&r.head, n, &c.chunks)
        self.counts.octets_buffered -= n
        if n < length:
            memcpy(self.scratch + n, cursor_take(&live, length - n), length - n)
            self.live += length - n
            self.live_length -= length - n
        item.wire = self.scratch + 2
        item.length = length - 2
        return True

    cdef void load_chunk(self, Connection* c, uint32_t index) noexcept nogil:
        """The octets of this chunk are the live ones; none, if what is left of its run is behind a
        FIN."""
        cdef Chunk* k
        cdef uint32_t following
        if self.live_left == 0:
            while index:
                k = self.pieces.at(index)
                self.counts.octets_skipped += k.end - k.begin
                following = k.next
                self.pieces.give(index, &c.chunks)
                index = following
            self.live_chunk = 0
            return
        k = self.pieces.at(index)
        self.live_chunk = index
        self.live = k.octets + k.begin
        self.live_length = min(<uint32_t>(k.end - k.begin), self.live_left)
        self.live_left -= self.live_length
        self.counts.octets_skipped += k.end - k.begin - self.live_length

    cdef bint store(self, Connection* c, Direction* r) noexcept nogil:
        """Put the live octets that make no message yet behind the head; False if room ends."""
        cdef uint32_t index = self.live_chunk, n, following
        cdef Chunk* k
        if index == 0:
            if self.live_length == 0:
                return True
            n = self.pieces.append(&r.head, 0, self.live, self.live_length, &c.chunks)
            self.live += n
            self.live_length -= n
            self.counts.octets_buffered += n
            return self.live_length == 0
        k = self.pieces.at(index)
        following = k.next
        if self.live_length:
            k.begin = <uint16_t>(self.live - k.octets)
            k.end = <uint16_t>(k.begin + self.live_length)
            self.counts.octets_buffered += self.live_length
            self.live_length = 0
            self.pieces.adopt(&r.head, index, &c.chunks)
        else:
            self.pieces.give(index, &c.chunks)
        self.live_chunk = 0
        if following:
            self.load_chunk(c, following)
        return True

    cdef void lose_unread(self, Connection* c, Direction* r, uint32_t* left) noexcept nogil:
        """Skip what is unread; `left`: how much of its message is still to come, 0 if its length is
        not known."""
        cdef uint32_t n = self.unread(r), length
        left[0] = 0
        if n and not r.flags & OUT_OF_STEP:
            length = self.framed_length(r)
            if length:
                left[0] = length - n
            self.counts.broken_messages += 1
        self.counts.octets_skipped += n
        self.counts.octets_buffered -= n - self.live_length
        self.live_length = 0
        self.pieces.free_run(&r.head, &c.chunks)
        r.head = 0

    cdef void gap(self, Connection* c, Direction* r, uint32_t to) noexcept nogil:
        """Give up the hole from `next` to `to`, or to the FIN."""
        cdef uint32_t hole = to - r.next, left
        if r.flags & FIN_PENDING and r.fin - r.next < hole:
            hole = r.fin - r.next
        self.counts.gaps += 1
        self.lose_unread(c, r, &left)
        left += r.skip              # one of the two is 0
        r.next += hole
        if hole <= left:
            r.skip = left - hole
        else:
            r.skip = 0
            r.flags |= OUT_OF_STEP

    cdef void break_off(self, Connection* c, Direction* r) noexcept nogil:
        """No room for the message under way: what is left of it will be skipped."""
        self.lose_unread(c, r, &r.skip)
        if r.skip == 0:
            r.flags |= OUT_OF_STEP

    cdef void end_direction(self, Connection* c, Direction* r) noexcept nogil:
        cdef uint32_t n
        self.lose_unread(c, r, &n)
        while r.ahead:
            n = self.pieces.free_run(&r.ahead, &c.chunks)
            self.counts.octets_buffered -= n
            self.counts.octets_skipped += n
        r.runs = 0
        r.skip = 0
        r.state = ENDED
        r.flags &= FIRST_KNOWN

    cdef int advance(self, StreamItem* item, Connection* c, int d) noexcept nogil:
        """The next item of what is in order in this direction."""
        cdef Direction* r = &c.direction[d]
        cdef Chunk* k
        cdef uint32_t index
        while True:
            if self.pull(item, c, r):
                return self.hand_on(item, c, d, STREAM_MESSAGE)
            if not self.store(c, r):
                self.counts.crowded += 1
                if r.ahead and self.pieces.at(r.ahead).sequence != r.next:
                    self.gap(c, r, self.pieces.at(r.ahead).sequence)
                    return self.hand_on(item, c, d, STREAM_GAP)
                self.break_off(c, r)
            if self.live_chunk:
                continue
            if r.flags & FIN_PENDING and r.next == r.fin:
                self.end_direction(c, r)
                return self.hand_on(item, c, d, STREAM_END)
            index = r.ahead
            if index == 0 or self.pieces.at(index).sequence != r.next:
                return STREAM_NOTHING
            k = self.pieces.at(index)
            r.ahead = k.next_run
            r.runs -= 1
            self.counts.octets_buffered -= k.length
            self.live_left = k.length
            if r.flags & FIN_PENDING:
                self.live_left = min(k.length, r.fin - r.next)
            r.next += self.live_left
            self.load_chunk(c, index)

    # --- connections that end --------------------------------------------------------------------

    cdef void begin_end(self, uint32_t index, int first, int last, bint stays) noexcept nogil:
        self.ending = index
        self.ending_side = first
        self.ending_last = last
        self.ending_stays = stays

    cdef int drain(self, StreamItem* item) noexcept nogil:
        """The next item of the connection that is ending; when there is none, it has ended."""
        cdef Connection* c = self.at(self.ending)
        cdef Direction* r
        cdef int d, what
        while self.ending_side <= self.ending_last:
            d = self.ending_side
            r = &c.direction[d]
            if r.state == OPEN:
                what = self.advance(item, c, d)
                if what:
                    return what
                if r.ahead:
                    self.gap(c, r, self.pieces.at(r.ahead).sequence)
                    return self.hand_on(item, c, d, STREAM_GAP)
                self.end_direction(c, r)
                return self.hand_on(item, c, d, STREAM_END)
            self.ending_side += 1
        if not self.ending_stays:
            self.remove(self.ending)
        self.ending = 0
        return STREAM_NOTHING

    cdef bint make_room(self) noexcept nogil:
        """True if there is room for the segment's payload, or nobody else who could give it."""
        cdef const Direction* r = &self.at(self.current).direction[self.side]
        cdef uint32_t need = self.segment.length // CHUNK_OCTETS + 2 + r.runs
        cdef uint32_t index = self.held_oldest
        if self.pieces.has_room(need) or r.state == ENDED or self.segment.flags & TCP_RST:
            return True
        if index == self.current:
            index = self.at(index).held_newer
        if index == 0:
            return True
        self.begin_end(index, 0, 1, False)
        self.counts.evicted += is_open(self.at(index))
        return False

    # --- a segment -------------------------------------------------------------------------------

    cdef void feed(self, const Segment* s, uint64_t clock) noexcept nogil:
        """Take a segment.  `next` must be called until it says STREAM_NOTHING, then `s` may go."""
        self.segment = s
        self.clock = clock
        self.ending_all = False
        self.stage = EXPIRING

    cdef void expire(self, uint64_t clock, bint ending) noexcept nogil:
        """The oldest connection leaves if it is idle at this clock; call `next` as after `feed`.

        Only that one, since between it and the next one something else may be due at the same
        clock.  `ending`: the input is over, so it is not counted as timed out.
        """
        self.segment = NULL
        self.ending_all = ending
        self.clock = clock
        self.stage = EXPIRING

    cdef void finish(self) noexcept nogil:
        """End of input: all connections leave, in the order of their last segments."""
        self.segment = NULL
        self.stage = FINISHING

    cdef int take_syn(self) noexcept nogil:
        """SYN or RST of the segment; the stage that follows."""
        cdef const Segment* s = self.segment
        cdef Connection* c = self.at(self.current)
        cdef Direction* o
        cdef uint32_t where
        cdef Direction* r = &c.direction[self.side]
        if s.flags & TCP_RST:
            self.counts.octets += s.length
            self.counts.octets_skipped += s.length
            o = &c.direction[1 - self.side]
            if r.state != UNSEEN:
                where = s.sequence - r.next
            elif o.state == OPEN:       # what refuses a SYN acknowledges it
                where = s.acknowledgement - o.next if s.flags & TCP_ACK else RST_ABOVE + 1
            else:
                where = 0
            if where + RST_BELOW > RST_BELOW + RST_ABOVE:
                return SETTLING
            self.begin_end(self.current, 0, 1, True)
            return RESET
        if s.flags & TCP_SYN:
            if r.state != UNSEEN and not (r.flags & FIRST_KNOWN and r.first == s.sequence + 1):
                if s.flags & TCP_ACK:
                    if r.state == OPEN:
                        self.begin_end(self.current, self.side, self.side, True)
                        return BEGINNING
                    memset(r, 0, sizeof(Direction))
                else:
                    if is_open(c):
                        self.begin_end(self.current, 0, 1, True)
                        return BEGINNING
                    self.restart(c)
            if r.state == UNSEEN:
                r.state = OPEN
                r.flags = FIRST_KNOWN
                r.first = r.next = s.sequence + 1
        elif r.state == UNSEEN and (s.length or s.flags & TCP_FIN):
            r.state = OPEN
            r.flags = OUT_OF_STEP
            r.next = s.sequence
        self.rest = s.payload
        self.rest_length = s.length
        self.rest_sequence = s.sequence + (s.flags & TCP_SYN != 0)
        self.counts.octets += s.length
        return PAYLOAD

    cdef void rest_step(self, uint32_t n) noexcept nogil:
        self.rest += n
        self.rest_length -= n
        self.rest_sequence += n

    cdef int take_payload(self, StreamItem* item, Connection* c) noexcept nogil:
        """The next item of the segment's payload."""
        cdef Direction* r = &c.direction[self.side]
        cdef int what
        cdef uint32_t n, old
        while True:
            what = self.advance(item, c, self.side)
            if what or self.rest_length == 0:
                return what
            n = 0
            if r.state != OPEN:
                n = self.rest_length
            elif <int32_t>(self.rest_sequence - r.next) < 0:
                n = min(r.next - self.rest_sequence, self.rest_length)
            if n:
                self.counts.octets_old += n
                self.rest_step(n)
                continue
            if r.flags & FIN_PENDING:
                n = 0
                if <int32_t>(r.fin - self.rest_sequence) > 0:
                    n = r.fin - self.rest_sequence
                if n < self.rest_length:
                    self.counts.octets_skipped += self.rest_length - n
                    self.rest_length = n
                    continue
            old = 0
            if self.rest_sequence == r.next:
                n = self.rest_length
                if r.ahead:
                    n = min(n, self.pieces.at(r.ahead).sequence - r.next)
                self.live = self.rest
                self.live_length = n
                r.next += n
                self.rest_step(n)
                continue
            n = self.pieces.keep(&r.ahead, &r.runs, r.next, self.rest_sequence, self.rest,
                                 self.rest_length, &c.chunks, &old)
            self.counts.octets_old += old
            self.counts.octets_buffered += n - old
            self.rest_step(n)
            if self.rest_length:
                n = self.rest_sequence - r.next
                if r.ahead:
                    n = min(n, self.pieces.at(r.ahead).sequence - r.next)
                self.counts.crowded += 1
                self.gap(c, r, r.next + n)
                return self.hand_on(item, c, self.side, STREAM_GAP)

    cdef int next(self, StreamItem* item) noexcept nogil:
        """The next thing that follows from the segment, one of StreamResult."""
        cdef Connection* c
        cdef Direction* r
        cdef const Segment* s = self.segment
        cdef uint32_t fin
        cdef uint64_t number
        cdef int what
        while True:
            if self.ending:
                what = self.drain(item)
                if what:
                    return what
            if self.stage == EXPIRING:
                if self.oldest and self.clock >= self.due(&number):
                    if not self.ending_all:
                        self.counts.timed_out += is_open(self.at(self.oldest))
                    self.begin_end(self.oldest, 0, 1, False)
                    if s != NULL:
                        continue
                self.current = 0
                self.stage = SETTLING if s == NULL else FINDING
            elif self.stage == FINDING:
                self.current = self.find(s)
                if self.current == 0:
                    if s.length == 0 and not s.flags & (TCP_SYN | TCP_FIN | TCP_RST):
                        self.stage = SETTLING
                        continue
                    if self.counts.live >= self.max_streams:
                        self.counts.evicted += is_open(self.at(self.oldest))
                        self.begin_end(self.oldest, 0, 1, False)
                        continue
                    self.current = self.create(s)
                else:
                    self.unlink(self.current)
                    self.link_newest(self.current)
                    if self.at(self.current).holding:
                        self.unhold(self.current)
                        self.hold_newest(self.current)
                c = self.at(self.current)
                c.clock = self.clock
                c.number = s.number
                c.time = s.time
                self.stage = MAKING_ROOM if s.length else BEGINNING
            elif self.stage == MAKING_ROOM:
                if self.make_room():
                    self.stage = BEGINNING
            elif self.stage == BEGINNING:
                self.stage = self.take_syn()
            elif self.stage == RESET:
                c = self.at(self.current)
                c.direction[0].state = c.direction[1].state = ENDED
                self.stage = SETTLING
            elif self.stage == PAYLOAD:
                what = self.take_payload(item, self.at(self.current))
                if what:
                    return what
                self.stage = CLOSING
                r = &self.at(self.current).direction[self.side]
                fin = s.sequence + (s.flags & TCP_SYN != 0) + max(s.length, s.wire_length)
                if (s.flags & TCP_FIN and r.state == OPEN and not r.flags & FIN_PENDING
                        and <int32_t>(fin - r.next) >= 0):
                    r.flags |= FIN_PENDING
                    r.fin = fin
            elif self.stage == CLOSING:
                what = self.advance(item, self.at(self.current), self.side)
                if what:
                    return what
                self.stage = ACKNOWLEDGING
            elif self.stage == ACKNOWLEDGING:
                c = self.at(self.current)
                r = &c.direction[1 - self.side]
                if s.flags & TCP_ACK and r.state == OPEN:
                    what = self.advance(item, c, 1 - self.side)
                    if what:
                        return what
                    if r.ahead and <int32_t>(
                            s.acknowledgement - self.pieces.at(r.ahead).sequence) >= 0:
                        self.gap(c, r, self.pieces.at(r.ahead).sequence)
                        return self.hand_on(item, c, 1 - self.side, STREAM_GAP)
                self.stage = SETTLING
            elif self.stage == SETTLING:
                if self.current:
                    self.settle(self.current)
                    self.current = 0
                self.stage = IDLE
            elif self.stage == FINISHING and self.oldest:
                self.begin_end(self.oldest, 0, 1, False)
            else:
                self.stage = IDLE
                return STREAM_NOTHING
