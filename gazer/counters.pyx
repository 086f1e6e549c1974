"""The ledger in shared memory; see counters.pxd for its layout.

The balances that hold when a run is over are in ARCHITECTURE.md, "The ledger", and in code in
gazer.summary (Account.imbalances).
"""

from libc.stdint cimport uint64_t

from libc.string cimport memcpy

from gazer.atomics cimport (
    acquire_fence, load_acquire, load_relaxed, release_fence, store_relaxed, store_release)

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
    "kernel_received": C_KERNEL_RECEIVED, "kernel_dropped": C_KERNEL_DROPPED,
    "kernel_lost": C_KERNEL_LOST, "interface_dropped": C_INTERFACE_DROPPED,
    "lost_pieces": C_LOST_PIECES, "absent": C_ABSENT,
    "input_bytes": C_INPUT_BYTES,
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
    "lossy": W_LOSSY, "quarantined": W_QUARANTINED, "lost_pending": W_LOST_PENDING,
    "lost_transfers": W_LOST_TRANSFERS, "lost_octets": W_LOST_OCTETS,
    "torn_frames": W_TORN_FRAMES, "torn_events": W_TORN_EVENTS, "latency.sum_us": W_LATENCY_SUM,
} | {
    f"discarded.{name}": W_DISCARDED + i for i, name in enumerate(ANOMALY_NAMES) if i
} | {
    f"malformed.{name}": W_MALFORMED + i for i, name in enumerate(ANOMALY_NAMES) if i
} | {
    # Microseconds.  Each counts what is above the one before it: they are not cumulative.
    f"latency.le.{LATENCY_LEAST // 1000 << i if i < LATENCIES - 1 else 'inf'}": W_LATENCY + i
    for i in range(LATENCIES)
} | {
    f"rcode.{i if i < RCODES - 1 else 'other'}": W_RCODE + i for i in range(RCODES)
}

SINK = {"events": S_EVENTS, "writes": S_WRITES, "settled": S_SETTLED}
SUPERVISOR = {
    "restarts.capture": V_RESTARTS_CAPTURE, "restarts.worker": V_RESTARTS_WORKER,
    "restarts.sink": V_RESTARTS_SINK, "restarts.metrics": V_RESTARTS_METRICS,
    "hangs": V_HANGS, "interface_gone": V_INTERFACE_GONE, "reloads": V_RELOADS,
}
OUTPUT = {
    "events": O_EVENTS, "bytes": O_BYTES, "dropped": O_DROPPED, "stats": O_STATS, "done": O_DONE,
    "spooled": O_SPOOLED, "delivered": O_DELIVERED, "spool_dropped": O_SPOOL_DROPPED,
    "spool_damaged": O_SPOOL_DAMAGED, "spool_found": O_SPOOL_FOUND,
    "spool_events": O_SPOOL_EVENTS, "spool_bytes": O_SPOOL_BYTES, "spool_limit": O_SPOOL_LIMIT,
    "resent": O_RESENT, "rejected": O_REJECTED, "unacknowledged": O_UNACKNOWLEDGED,
    "servers": O_SERVERS, "servers_up": O_SERVERS_UP, "blocked_since": O_BLOCKED,
    "spool_failing": O_SPOOL_FAILING,
}
STATES = ("starting", "running", "waiting", "done")
MAX_OUTPUTS = MAX_SLOT_OUTPUTS
KEPT = MAX_KEPT

assert <int>W_END <= <int>MAX_COUNTERS and <int>C_END <= <int>MAX_COUNTERS
assert <int>S_END <= <int>MAX_COUNTERS and <int>P_END <= <int>MAX_POSITIONS
assert P_IDS - P_FILES == P_HANDS - P_IDS == P_END - P_HANDS == MAX_SLOT_OUTPUTS
assert HEAD_WORDS * 8 <= NAMES and NAMES + NAME * MAX_SLOT_OUTPUTS <= SLOT
assert WORDS * 8 <= SLOT_BANKS and sizeof(Bank) == BANK

RUN = {
    "captures": HEAD_CAPTURES, "workers": HEAD_WORKERS, "outputs": HEAD_OUTPUTS,
    "live": HEAD_LIVE, "started": HEAD_STARTED, "max_pending": HEAD_PENDING,
}


def ledger_bytes(processes):
    """The bytes of shared memory that a ledger for so many processes takes."""
    return SLOT * (processes + 1)


def ledger_create(buffer, names=(), **run):
    """Make the (zeroed) buffer a ledger: magic and version stand before the first slot.

    names: of the outputs; of a long one its end.  run: what the run is made of, by the names in
    RUN.
    """
    cdef unsigned char[::1] view = buffer
    cdef uint64_t* words = <uint64_t*>&view[0]
    cdef bytes raw
    if len(names) > MAX_SLOT_OUTPUTS:
        raise IndexError("too many outputs")
    for i, text in enumerate(names):
        raw = text.encode(errors="surrogateescape")
        if len(raw) > NAME:
            raw = b"..." + raw[3 - NAME:]
        memcpy(&view[NAMES + <int>i * NAME], <const unsigned char*>raw, len(raw))
    for name, value in run.items():
        words[<int>RUN[name]] = value
    words[HEAD_VERSION] = LEDGER_VERSION
    words[HEAD_MAGIC] = MAGIC


cdef uint64_t monotonic() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


cdef class Slot:
    """A process's slot in the ledger.  Call release() before the buffer's segment is closed.

    With a read-only buffer it only looks: what would write raises.
    """

    def __init__(self, buffer, int index):
        self.view = buffer
        self.looks = memoryview(buffer).readonly
        cdef uint64_t* head = <uint64_t*>&self.view[0]
        if (index < 0 or self.view.shape[0] < SLOT * (<ssize_t>index + 2)
                or head[HEAD_MAGIC] != MAGIC):
            raise SharedMemoryError("not a ledger of gazer's")
        if head[HEAD_VERSION] != LEDGER_VERSION:
            raise SharedMemoryError(
                f"a ledger of layout {head[HEAD_VERSION]}, this program knows {LEDGER_VERSION}")
        self.head = head
        self.words = <uint64_t*>(&self.view[0] + SLOT * (index + 1))
        self.banks = <Bank*>(<unsigned char*>self.words + SLOT_BANKS)
        self.counters = self.own.counters
        self.positions = self.own.positions
        self.load()

    cdef void load(self) noexcept nogil:
        """Take the last commit as what is counted from."""
        cdef uint64_t n
        cdef int _
        for _ in range(1000):   # a commit takes a millionth of a second
            n = load_acquire(&self.words[WORD_COMMITS])
            memcpy(&self.own, &self.banks[n & 1], sizeof(Bank))
            acquire_fence()     # all of that is read before ...
            if load_acquire(&self.words[WORD_COMMITS]) == n:
                return

    cdef void commit(self) noexcept nogil:
        """Let the world see, at once, all that was counted and how far it got."""
        cdef uint64_t n = self.words[WORD_COMMITS] + 1
        release_fence()     # whoever sees a word of this also sees that the commit before it holds
        memcpy(&self.banks[n & 1], &self.own, sizeof(Bank))
        store_release(&self.words[WORD_COMMITS], n)

    def writes(self):
        """Refuse what would write into a buffer that is there to be looked at."""
        if self.looks:
            raise SharedMemoryError("this ledger is open for reading only")

    cdef void beat(self) noexcept nogil:
        store_relaxed(&self.words[WORD_HEARTBEAT], monotonic())

    cdef void set_state(self, uint64_t state) noexcept nogil:
        store_relaxed(&self.words[WORD_STATE], state)
        if state != WAITING:
            store_relaxed(&self.words[WORD_WAITING], 0)
        elif not self.words[WORD_WAITING]:      # who says it again still waits
            store_relaxed(&self.words[WORD_WAITING], monotonic())

    @property
    def draining(self):
        """The supervisor wants capture to stop and the rest to be finished."""
        return load_relaxed(&self.head[HEAD_CONTROL]) >= CONTROL_DRAIN

    @property
    def quitting(self):
        """The supervisor wants an end now: what can't be written is given up."""
        return load_relaxed(&self.head[HEAD_CONTROL]) >= CONTROL_QUIT

    def ask(self, *, drain=False, quit=False):
        """Ask all processes of the run to stop.  Only the supervisor does."""
        self.writes()
        store_relaxed(&self.head[HEAD_CONTROL],
                      CONTROL_QUIT if quit else CONTROL_DRAIN if drain else 0)

    @property
    def reloads(self):
        """How often the supervisor has asked for outputs to be opened again."""
        return load_relaxed(&self.head[HEAD_RELOADS])

    def ask_reload(self):
        """Ask for outputs to be opened again.  Only the supervisor does."""
        self.writes()
        store_relaxed(&self.head[HEAD_RELOADS], self.head[HEAD_RELOADS] + 1)

    def run(self):
        """What the run is made of, by the names in RUN."""
        return {name: load_relaxed(&self.head[<int>index]) for name, index in RUN.items()}

    def output_names(self):
        """What the outputs of the run are called; "" for one that was given no name."""
        cdef const unsigned char* p = <const unsigned char*>self.head + NAMES
        return [bytes(p[i * NAME:(i + 1) * NAME]).partition(b"\0")[0].decode(errors="replace")
                for i in range(min(self.run()["outputs"], <int>MAX_SLOT_OUTPUTS))]

    def waits(self, waiting):
        """This process waits for something outside (it does not hang), or goes on."""
        self.writes()
        self.set_state(WAITING if waiting else RUNNING)
        self.beat()

    def heartbeat_now(self):
        """This process comes round its loop."""
        self.writes()
        self.beat()

    def add_output(self, int output, events, bytes_, dropped, stats=0, done=None, spooled=0):
        """Count what the sink's output number `output` has done with some events: `stats` of them
        came from no ring, and it is through with the first `done` of all others."""
        cdef uint64_t* o = self.output(output)
        o[O_SPOOLED] += <uint64_t>spooled
        o[O_EVENTS] += <uint64_t>events
        o[O_BYTES] += <uint64_t>bytes_
        o[O_DROPPED] += <uint64_t>dropped
        o[O_STATS] += <uint64_t>stats
        if done is not None:
            o[O_DONE] = <uint64_t>done
        if events or dropped or spooled:
            self.counters[S_WRITES] += 1

    def set_output(self, int output, values):
        """What an output counts by itself is now this much, by the names in OUTPUT."""
        cdef uint64_t* o = self.output(output)
        for name, value in values.items():
            o[<int>OUTPUT[name]] = <uint64_t>value

    cdef uint64_t* output(self, int number) except NULL:
        if not 0 <= number < MAX_SLOT_OUTPUTS:
            raise IndexError("no counters for this output")
        return &self.counters[S_OUTPUT + number * OUTPUT_COUNTERS]

    def resume_output(self, int output):
        """A successor of the sink begins: how many of the first events that it will merge this
        output has had already.

        What the dead one had counted as dropped out of turn has another chance; what it held and
        the rings do not have any more is lost, and counted as dropped.
        """
        cdef uint64_t* o = self.output(output)
        cdef uint64_t settled = self.counters[S_SETTLED]
        cdef uint64_t ahead = o[O_DONE] - settled if o[O_DONE] > settled else 0
        if o[O_DONE] < settled:
            o[O_DONE] = settled
        o[O_DROPPED] = o[O_DONE] + o[O_STATS] - o[O_EVENTS] - o[O_SPOOLED]
        return ahead

    def place_output(self, int output, file, end, hand=0):
        """Remember which file the output writes to (0: none), where its last block ends, and how
        many bytes are to be written behind that now."""
        self.output(output)
        self.positions[P_IDS + output] = <uint64_t>file
        self.positions[P_FILES + output] = <uint64_t>end
        self.positions[P_HANDS + output] = <uint64_t>hand

    def output_place(self, int output):
        """(file, end, hand) as place_output had them."""
        self.output(output)
        return (self.positions[P_IDS + output], self.positions[P_FILES + output],
                self.positions[P_HANDS + output])

    def keep(self, values):
        """Remember these numbers, at most KEPT, for a successor."""
        if len(values) > MAX_KEPT:
            raise IndexError("too many")
        for i, value in enumerate(values):
            self.counters[S_KEPT + <int>i] = <uint64_t>value

    def kept(self, int count):
        """The first `count` numbers that keep() was given; zeros before that."""
        if not 0 <= count <= MAX_KEPT:
            raise IndexError("too many")
        return [self.counters[S_KEPT + i] for i in range(count)]

    def add(self, int counter, n):
        """Count `n` in a counter of this process's own."""
        if not 0 <= counter < MAX_COUNTERS:
            raise IndexError("no such counter")
        self.counters[counter] += <uint64_t>n

    def publish(self):
        """Commit what was counted."""
        self.writes()
        self.commit()

    def open(self, pid):
        """The process `pid` has this slot now, and counts from the last commit."""
        self.writes()
        self.load()
        store_relaxed(&self.words[WORD_PID], pid)
        store_relaxed(&self.words[WORD_STARTS], self.words[WORD_STARTS] + 1)
        self.set_state(STARTING)
        self.beat()

    @property
    def pid(self):
        return load_relaxed(&self.words[WORD_PID])

    @property
    def starts(self):
        """How many processes have had this slot."""
        return load_relaxed(&self.words[WORD_STARTS])

    @property
    def heartbeat(self):
        """CLOCK_MONOTONIC in ns, when the process last came round its loop."""
        return load_relaxed(&self.words[WORD_HEARTBEAT])

    @property
    def waiting_since(self):
        """CLOCK_MONOTONIC in ns, since when the process waits; 0: it does not."""
        return load_relaxed(&self.words[WORD_WAITING])

    @property
    def in_hand(self):
        """The number of the frame that the worker works on, 0 for none."""
        return load_relaxed(&self.words[WORD_IN_HAND])

    @property
    def state(self):
        cdef uint64_t state = load_relaxed(&self.words[WORD_STATE])
        return STATES[state] if state <= DONE else "unknown"

    def seen(self):
        """A copy of this slot as it is now, all counters of one commit; nothing changes it."""
        cdef Slot copy = Slot.__new__(Slot)
        copy.looks = True
        copy.head = self.head
        copy.view = self.view
        copy.words = self.words
        copy.banks = self.banks
        copy.load()
        memcpy(copy.held, self.words, sizeof(copy.held))
        copy.held[WORD_COMMITS] = 0
        copy.words = copy.held
        copy.banks = <Bank*>&copy.own
        copy.counters = copy.own.counters
        copy.positions = copy.own.positions
        return copy

    def read(self, names):
        """The counters in `names` (one of the dicts above) as a dict, all of one commit."""
        cdef Slot seen = Slot.__new__(Slot)
        seen.words = self.words
        seen.banks = self.banks
        seen.load()
        return {name: seen.own.counters[<int>index] for name, index in names.items()}

    def own_output(self, int output):
        """The counters of the sink's output number `output` as the sink has them, committed or
        not."""
        cdef uint64_t* o = self.output(output)
        return {name: o[<int>i] for name, i in OUTPUT.items()}

    def read_output(self, int output):
        """The counters of the sink's output number `output`."""
        self.output(output)
        cdef int base = S_OUTPUT + output * OUTPUT_COUNTERS
        return self.read({name: base + i for name, i in OUTPUT.items()})

    def release(self):
        self.head = NULL
        self.words = NULL
        self.banks = NULL
        self.view = None
