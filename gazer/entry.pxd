"""What stands in the rings: frames on their way to the workers, events on their way to the sink."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from gazer.packet cimport Layer, Packet

cdef struct FrameEntry:
    # packet.layers times a Layer follow, then the frame's bytes: `caplen` of them.
    uint64_t sequence       # number of the frame in this run, from 1
    uint64_t clock          # sensor clock, ns
    int64_t time            # the frame's own time, ns since 1970
    uint32_t caplen
    uint32_t linktype
    Packet packet           # what capture found in it


cdef inline uint32_t frame_offset(const FrameEntry* f) noexcept nogil:
    """Where in the entry the frame's bytes begin."""
    return <uint32_t>(sizeof(FrameEntry) + f.packet.layers * sizeof(Layer))


cdef enum:      # Format
    FORMAT_TEXT = 0         # time, tag and JSON with tabs between, one line
    FORMAT_JSON             # one JSON object a line, with `tag` and `time`
    FORMAT_MSGPACK          # [tag, seconds, record]
    FORMAT_MSGPACK_TIME     # [tag, EventTime, record]
    FORMATS

cdef enum:      # EventKind
    EVENT_TX = 0
    EVENT_RECORD
    EVENT_KINDS

cdef enum:
    EVENT_TAGS = 6          # gazer.event.TAGS: a protocol's number times EVENT_KINDS and the kind

cdef struct EventHeader:
    # The event follows in each format in use, one behind the other.
    uint64_t clock          # the order key: sensor clock when due, ns
    uint64_t sequence       # ... and frame
    int64_t time            # the event's own time, ns since 1970
    uint32_t tag            # which of gazer.event.TAGS
    uint32_t lengths[FORMATS]   # bytes in each format; 0: not in use
