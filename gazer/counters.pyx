"""The ledger in shared memory; see counters.pxd for its layout.

The balances (all hold when a run is over):

    frames read           = not DNS + undecoded, by reason + ring-dropped + delivered
    frames of the workers = queries + replies + discarded messages, by reason
    queries               = opened + repeated
    opened                = success + no_reply + evicted + pending
    replies               = success + duplicates + no_query
    events of the workers = events merged;  for each output: = written + dropped
"""

from libc.stdint cimport uint64_t

from gazer.atomics cimport load_relaxed, store_relaxed

from gazer.errors import SharedMemoryError
from gazer.packet import FATES
from gazer.workers.anomaly import NAMES as ANOMALY_NAMES

cdef extern from "time.h" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec* t)
    enum:
        CLOCK_MONOTONIC

cdef uint64_t MAGIC = 0x52454744454C5A47      # "GZLEDGER", as bytes in memory

CAPTURE = {
    "frames": C_FRAMES, "bytes": C_BYTES, "delivered": C_DELIVERED,
    "ring_dropped": C_RING_DROPPED, "clock_jumps": C_CLOCK_JUMPS, "bad_time": C_BAD_TIME,
    "snapped": C_SNAPPED, "waits": C_WAITS, "tunnelled": C_TUNNELLED,
    "datagrams": C_DATAGRAMS, "joined": C_JOINED, "foreign": C_FOREIGN,
    "duplicate_pieces": C_DUPLICATE_PIECES, "overlapping": C_OVERLAPPING,
    "bad_pieces": C_BAD_PIECES, "expired_pieces": C_EXPIRED_PIECES,
    "evicted_pieces": C_EVICTED_PIECES, "waiting_pieces": C_WAITING_PIECES,
} | {f"fate.{name}": C_FATE + i for i, name in enumerate(FATES) if i}

WORKER = {
    "frames": W_FRAMES, "datagrams": W_DATAGRAMS, "segments": W_SEGMENTS,
    "stream_messages": W_STREAM_MESSAGES, "streams": W_STREAMS,
    "streams_opened": W_STREAMS_OPENED, "streams_evicted": W_STREAMS_EVICTED,
    "streams_timed_out": W_STREAMS_TIMED_OUT, "gaps": W_GAPS,
    "broken_messages": W_BROKEN_MESSAGES, "crowded": W_CROWDED, "resyncs": W_RESYNCS,
    "octets": W_OCTETS,
    "octets_framed": W_OCTETS_FRAMED, "octets_old": W_OCTETS_OLD,
    "octets_skipped": W_OCTETS_SKIPPED, "octets_buffered": W_OCTETS_BUFFERED,
    "one_way_queries": W_ONE_WAY_QUERIES, "one_way_replies": W_ONE_WAY_REPLIES,
    "further": W_FURTHER, "continuations": W_CONTINUATIONS, "transfers": W_TRANSFERS,
    "transferring": W_TRANSFERRING, "incomplete": W_INCOMPLETE,
    "transfers_evicted": W_TRANSFERS_EVICTED,
    "queries": W_QUERIES, "replies": W_REPLIES, "opened": W_OPENED,
    "repeated": W_REPEATED, "success": W_SUCCESS, "no_reply": W_NO_REPLY, "evicted": W_EVICTED,
    "pending": W_PENDING, "no_query": W_NO_QUERY, "duplicates": W_DUPLICATES,
    "answered_forgotten": W_ANSWERED_FORGOTTEN, "negative_latency": W_NEGATIVE_LATENCY,
    "transactions": W_TRANSACTIONS, "records": W_RECORDS, "omitted": W_OMITTED, "waits": W_WAITS,
} | {
    f"discarded.{name}": W_DISCARDED + i for i, name in enumerate(ANOMALY_NAMES) if i
} | {
    f"malformed.{name}": W_MALFORMED + i for i, name in enumerate(ANOMALY_NAMES) if i
}

SINK = {"events": S_EVENTS, "writes": S_WRITES}
OUTPUT = {"events": O_EVENTS, "bytes": O_BYTES, "dropped": O_DROPPED}
STATES = ("starting", "running", "waiting", "done")
MAX_OUTPUTS = (MAX_COUNTERS - S_OUTPUT) // OUTPUT_COUNTERS

assert <int>W_END <= <int>MAX_COUNTERS and <int>C_END <= <int>MAX_COUNTERS
assert SLOT_COUNTERS + MAX_COUNTERS * 8 <= SLOT


def ledger_bytes(processes):
    """The bytes of shared memory that a ledger for so many processes takes."""
    return SLOT * (processes + 1)


def ledger_create(buffer):
    """Make the (zeroed) buffer a ledger: magic and version stand before the first slot."""
    cdef unsigned char[::1] view = buffer
    cdef uint64_t* words = <uint64_t*>&view[0]
    words[1] = LEDGER_VERSION
    words[0] = MAGIC


cdef class Slot:
    """A process's slot in the ledger.  Call release() before the buffer's segment is closed."""

    def __init__(self, buffer, int index):
        self.view = buffer
        cdef uint64_t* words = <uint64_t*>&self.view[0]
        if (index < 0 or self.view.shape[0] < SLOT * (<ssize_t>index + 2)
                or words[0] != MAGIC):
            raise SharedMemoryError("not a ledger of gazer's")
        if words[1] != LEDGER_VERSION:
            raise SharedMemoryError(
                f"a ledger of layout {words[1]}, this program knows {LEDGER_VERSION}")
        self.control = words + 2
        self.words = <uint64_t*>(&self.view[0] + SLOT * (index + 1))
        self.counters = <uint64_t*>(<unsigned char*>self.words + SLOT_COUNTERS)

    cdef void beat(self) noexcept nogil:
        cdef timespec now
        clock_gettime(CLOCK_MONOTONIC, &now)
        store_relaxed(&self.words[1], <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec)

    cdef void set_state(self, uint64_t state) noexcept nogil:
        store_relaxed(&self.words[2], state)

    @property
    def draining(self):
        """The supervisor wants capture to stop and the rest to be finished."""
        return load_relaxed(self.control) >= CONTROL_DRAIN

    @property
    def quitting(self):
        """The supervisor wants an end now: what can't be written is given up."""
        return load_relaxed(self.control) >= CONTROL_QUIT

    def ask(self, *, drain=False, quit=False):
        """Ask all processes of the run to stop.  Only the supervisor does."""
        store_relaxed(self.control, CONTROL_QUIT if quit else CONTROL_DRAIN if drain else 0)

    def waits(self, waiting):
        """This process waits for something outside (it does not hang), or goes on."""
        self.set_state(WAITING if waiting else RUNNING)
        self.beat()

    def add_output(self, int output, events, bytes_, dropped):
        """Count what the sink's output number `output` has done with some events."""
        if not 0 <= output < MAX_OUTPUTS:
            raise IndexError("no counters for this output")
        cdef uint64_t* o = &self.counters[S_OUTPUT + output * OUTPUT_COUNTERS]
        o[O_EVENTS] += <uint64_t>events
        o[O_BYTES] += <uint64_t>bytes_
        o[O_DROPPED] += <uint64_t>dropped
        self.counters[S_WRITES] += 1

    def open(self, pid):
        """The process `pid` has this slot now."""
        self.words[0] = pid
        self.beat()

    @property
    def pid(self):
        return load_relaxed(&self.words[0])

    @property
    def heartbeat(self):
        """CLOCK_MONOTONIC in ns, when the process last came round its loop."""
        return load_relaxed(&self.words[1])

    @property
    def state(self):
        cdef uint64_t state = load_relaxed(&self.words[2])
        return STATES[state] if state <= DONE else "unknown"

    def read(self, names):
        """The counters in `names` (one of the dicts above) as a dict."""
        return {name: load_relaxed(&self.counters[index]) for name, index in names.items()}

    def read_output(self, int output):
        """The counters of the sink's output number `output`."""
        if not 0 <= output < MAX_OUTPUTS:
            raise IndexError("no counters for this output")
        cdef int base = S_OUTPUT + output * OUTPUT_COUNTERS
        return {name: load_relaxed(&self.counters[base + i]) for name, i in OUTPUT.items()}

    def release(self):
        self.control = NULL
        self.words = NULL
        self.counters = NULL
        self.view = None
