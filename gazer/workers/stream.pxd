"""TCP connections of one worker, put together into DNS messages (RFC 9293, RFC 7766).

A connection is family, both addresses, both ports and the scope (VLAN ids and VNIs).  Each of its
two directions has its own state; direction 0 is what the end with the higher port sends (of equal
ports, the end with the higher address): nearly always the client, whose queries so come before the
replies to them when both are handed on at once.

    feed(segment)          next() until STREAM_NOTHING
        |                       |
        v                       v
    idle connections leave, then those that must make room      items of other connections
    SYN: the old connection, or direction, ends                 what was kept, GAP, END
    payload, then FIN, in its direction                         messages, GAP where room ends, END
    ACK: holes of the other direction are given up              GAP, messages, END
    (RST instead of all these: both directions end              what was kept, GAP, END)

All work is done within `next`, one item after the other, so a segment that holds thousands of
messages needs no queue.  A message that lies whole in a segment in order is handed on in place; one
in several parts is put together in a scratch place; nothing is allocated for either.

What the RFCs leave open to who only listens, and how it is settled here:

- A sequence number is ahead of another, or the same, if their difference modulo 2**32 is below
  2**31.  There is no window: what a host would accept is not known here.
- The first SYN of a direction that has not been seen yet just begins it.  In a direction whose
  first number is known the same SYN is a retransmission; any other ends what was.
- An ended direction ignores payload, whatever its numbers (`old`), until a SYN restarts it.
- A FIN below `next` is ignored: octets behind it have been seen.  Of two, the first counts.  What
  is kept behind a FIN is skipped.  A hole ends at a FIN at the latest.
- The payload of a RST is text for people (RFC 9293 3.5.3): skipped.  A RST that is out of its
  window changes nothing, nor does its acknowledgement.
- A RST in a direction not seen yet must acknowledge where the other one is, within the same window:
  what refuses a SYN does, what a stranger sends blindly does not.
- FIN and RST of an unknown connection make it known (as ended), so that what comes late is old.
- A direction ends with END only if it had begun.

Limits: a connection costs 192 octets, and there are `max_streams` at most.  Kept octets stand in
chunks of CHUNK octets, CHUNK_OCTETS of them payload (pieces.pxd).  A connection may hold so many
chunks as `max_bytes_each` has room for, all together `max_bytes`; and a
direction MAX_RUNS separate runs of octets: one octet at every other number would else take a chunk
each, and each segment a walk along thousands of them.  When a segment finds the worker's room too
small, connections that hold something leave first, the least recently used before others.  When
its own connection's room ends, or its runs do, the first hole of its direction is given up; if
there is none, the message under way is broken off: what is left of it will be skipped.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from gazer.workers.connections cimport (
    MAX_ENDS, Connection, Connections, Direction, Segment, StreamCounts)
from gazer.workers.framing cimport LOOK_AHEAD

cdef enum:
    MAX_STREAM_MESSAGE = 65535

cdef enum StreamResult:
    STREAM_NOTHING = 0      # all that followed from the segment has been handed on
    STREAM_MESSAGE          # item.wire, item.length
    STREAM_GAP              # a hole in this direction was given up; what follows lies behind it
    STREAM_END              # this direction has ended


cdef struct StreamItem:
    # What `next` hands on.  Pointers are valid until the next call of `next`.
    const uint8_t* wire         # STREAM_MESSAGE: without its length
    uint32_t length
    uint32_t connection         # its place, which another may take after its end
    uint64_t serial             # of the connection; never reused
    uint8_t direction           # 0 or 1
    uint8_t family
    uint8_t scope_length
    uint8_t protocol            # as its segments have it
    uint8_t own                 # of the segment that was fed: its connection, its direction
    uint8_t idle                # it comes of idle timeout or end of input, not of the segment
    uint16_t source_port        # of this direction
    uint16_t destination_port
    const uint8_t* ends         # of this direction: source address, destination address, scope
    # The frame it counts as: the segment's own; if `idle`, the connection's last segment, and
    # `clock` is when it became due, timeout after it.
    uint64_t clock
    uint64_t number
    int64_t time


cdef class Streams(Connections):
    # For the engine.
    cdef void feed(self, const Segment* s, uint64_t clock) noexcept nogil
    cdef int next(self, StreamItem* item) noexcept nogil
    cdef void expire(self, uint64_t clock, bint ending) noexcept nogil
    cdef void finish(self) noexcept nogil

    # What `next` is at.
    cdef const Segment* segment
    cdef uint64_t clock
    cdef int stage
    cdef uint32_t current           # the segment's connection
    cdef const uint8_t* rest        # of its payload, not looked at yet
    cdef uint32_t rest_length
    cdef uint32_t rest_sequence
    cdef uint32_t ending            # the connection that is ending; 0: none
    cdef int ending_side            # ... the direction
    cdef int ending_last            # ... the last direction that ends
    cdef bint ending_all            # the input is over
    cdef bint ending_stays          # ... stays in the table
    # Octets in order that are being read: of the segment, or of a run that is in order now.
    cdef const uint8_t* live
    cdef uint32_t live_length
    cdef uint32_t live_chunk        # where they stand; 0: in the segment
    cdef uint32_t live_left         # of the run, behind this chunk
    cdef uint8_t[MAX_ENDS] turned   # for the item
    cdef uint8_t[LOOK_AHEAD * 2] window
    cdef uint8_t* scratch

    cdef int hand_on(self, StreamItem* item, const Connection* c, int d, int what) noexcept nogil
    cdef bint resync(self, Connection* c, Direction* r) noexcept nogil
    cdef uint32_t unread(self, const Direction* r) noexcept nogil
    cdef uint32_t framed_length(self, const Direction* r) noexcept nogil
    cdef bint pull(self, StreamItem* item, Connection* c, Direction* r) noexcept nogil
    cdef bint store(self, Connection* c, Direction* r) noexcept nogil
    cdef void load_chunk(self, Connection* c, uint32_t index) noexcept nogil
    cdef void lose_unread(self, Connection* c, Direction* r, uint32_t* left) noexcept nogil
    cdef void gap(self, Connection* c, Direction* r, uint32_t to) noexcept nogil
    cdef void break_off(self, Connection* c, Direction* r) noexcept nogil
    cdef void end_direction(self, Connection* c, Direction* r) noexcept nogil
    cdef int advance(self, StreamItem* item, Connection* c, int d) noexcept nogil
    cdef int drain(self, StreamItem* item) noexcept nogil
    cdef void begin_end(self, uint32_t index, int first, int last, bint stays) noexcept nogil
    cdef bint make_room(self) noexcept nogil
    cdef int take_syn(self) noexcept nogil
    cdef void rest_step(self, uint32_t n) noexcept nogil
    cdef int take_payload(self, StreamItem* item, Connection* c) noexcept nogil
