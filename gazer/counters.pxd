"""The ledger: every count of a run, in one shared segment.

First the ledger's own head: magic, version, control, and what the run is made of.  Then one slot of
SLOT bytes for each process, numbered as the topology says.  A slot has one writer, its process.

    offset in a slot
       0  words: see the enum Word; each is read and written by itself
     256  bank 0: MAX_COUNTERS counters, MAX_POSITIONS positions
    4672  bank 1: the same

The head has the names of the outputs as well, at NAMES, in NAME bytes each: whoever looks from
outside knows no configuration.

A process counts in memory of its own.  `commit` writes all of that into the bank that is not in
use and then stores the number of commits, whose last bit says which bank holds: one store, so a
process that is killed at any point leaves either all of a commit or nothing of it.  Readers take
the bank that holds, and once more if a commit came between.

Positions stand beside the counters since they must agree with them: how far a process has read and
written when the counts were these.  Its successor loads the last commit and goes on from there;
see ARCHITECTURE.md, "Succession".
"""

from libc.stdint cimport uint64_t
from gazer.packet cimport FATES_COUNT
from gazer.workers.anomaly cimport ANOMALIES

cdef enum:
    LEDGER_VERSION = 5
    SLOT_BANKS = 256
    MAX_COUNTERS = 440
    MAX_POSITIONS = 112
    BANK = 8 * (MAX_COUNTERS + MAX_POSITIONS)
    SLOT = SLOT_BANKS + 2 * BANK
    MAX_SLOT_OUTPUTS = 16
    MAX_KEPT = 112
    NAMES = 256             # in the head: the outputs' names, ended by a zero where there is room
    NAME = 256

cdef enum:      # Head, in words
    HEAD_MAGIC
    HEAD_VERSION
    HEAD_CONTROL            # one of Control
    HEAD_CAPTURES           # processes of each kind
    HEAD_WORKERS
    HEAD_OUTPUTS
    HEAD_LIVE               # 1: over interfaces
    HEAD_STARTED            # ns since 1970
    HEAD_STATS              # times the supervisor was asked for the counters
    HEAD_RELOADS            # times outputs are to be opened again
    HEAD_PENDING            # transactions.max_pending, of all workers
    HEAD_WORDS

cdef enum:      # Word: of a slot
    WORD_PID
    WORD_HEARTBEAT          # CLOCK_MONOTONIC, ns
    WORD_STATE              # one of State
    WORD_IN_HAND            # worker: number of the frame that is being worked on; 0: none
    WORD_SUSPECT            # worker: the frame that was in hand when it died last
    WORD_COMMITS
    WORD_STARTS             # times a process has taken this slot
    WORD_WAITING            # CLOCK_MONOTONIC, ns: since when it waits; 0: it does not
    WORDS

cdef enum:      # Position: of a capture process
    P_SEQUENCE = 0          # number of its last frame
    P_CLOCK                 # sensor clock
    P_SHIFT                 # ... less the frames' time
    P_PACE_CLOCK            # live: the sensor clock was this ...
    P_PACE_TIME             # ... when CLOCK_MONOTONIC was this
    P_TAILS = 8             # of its frame rings, from here, by worker

cdef enum:      # ... of a worker
    P_EVENTS = 0            # tail of its event ring
    P_PASSED                # clock of the last frame that it has taken
    P_HEADS = 8             # heads of its frame rings, from here, by capture process

cdef enum:      # ... of the sink
    P_LANES = 0             # heads of the event rings, from here, by worker
    P_FILES = 64            # where each output's file ends, from here; of a pipe: in a block
    P_IDS = 80              # which file that is, 0: none; from here
    P_HANDS = 96            # bytes that may stand behind that end: of a block in hand; from here
    P_END = 112

cdef enum:      # Control: what the supervisor asks of all processes
    CONTROL_RUN = 0
    CONTROL_DRAIN = 1   # capture stops; what has been read is finished
    CONTROL_QUIT = 2    # an output that waits for room gives up as well

cdef enum:      # State
    STARTING = 0
    RUNNING
    WAITING         # for room downstream, or for an output: not hanging
    DONE


cdef enum:      # CaptureCounter
    C_FRAMES = 0                # frames read
    C_BYTES                     # of them, as captured
    C_DELIVERED                 # to a worker's ring
    C_RING_DROPPED              # live only: the worker's ring was full
    C_CLOCK_JUMPS               # times the sensor clock was re-based
    C_BAD_TIME                  # timestamps whose fraction was a second or more
    C_SNAPPED                   # frames of which the capture holds only a part
    C_WAITS                     # times the capture waited for room in a ring
    C_DATAGRAMS                 # IP datagrams put together from their pieces
    C_JOINED                    # pieces of them, but for the one that made it whole (frames)
    C_FOREIGN                   # pieces of datagrams that are not ours
    C_DUPLICATE_PIECES          # pieces that were held already
    C_OVERLAPPING               # pieces of datagrams whose pieces contradict one another
    C_BAD_PIECES                # pieces whose place or length can't be, or that snaplen cut
    C_EXPIRED_PIECES            # pieces of datagrams that were not whole in time
    C_EVICTED_PIECES            # ... that left because a limit was reached
    C_WAITING_PIECES            # now waiting
    C_TUNNELLED                 # frames delivered whose packet came in a tunnel
    C_KERNEL_RECEIVED           # live: frames that passed the kernel's filter; of these ...
    C_KERNEL_DROPPED            # ... had no room in the kernel's buffer
    C_KERNEL_LOST               # ... stood in it when the process that should read them ended
    C_INTERFACE_DROPPED         # live: frames that the network card could not take
    C_LOST_PIECES               # pieces that waited in a process that ended
    C_ABSENT                    # now 1: the interface is waited for, and the operator knows
    C_INPUT_BYTES               # of the capture files, as they are on disk, read so far
    C_FATE                      # one for each Fate but DNS, from here
    C_END = C_FATE + FATES_COUNT

cdef enum:
    LATENCIES = 21              # up to 64 us, 128 us, ... 33.5 s, and more
    LATENCY_LEAST = 64000       # ns: the first bucket's bound
    RCODES = 17

cdef enum:      # WorkerCounter
    W_FRAMES = 0
    W_DATAGRAMS                 # frames with a message in UDP
    W_SEGMENTS                  # frames with a TCP segment
    W_STREAM_MESSAGES           # messages put together from segments
    W_STREAMS                   # TCP connections now known
    W_STREAMS_OPENED
    W_STREAMS_EVICTED           # left because a limit was reached
    W_STREAMS_TIMED_OUT         # without a segment for streams.timeout
    W_GAPS                      # holes in a stream that were given up
    W_BROKEN_MESSAGES           # messages in streams of which a part never came
    W_CROWDED                   # times something in a stream was given up for want of room
    W_RESYNCS                   # times a message's beginning had to be searched and was found
    W_OCTETS                    # captured payload of segments; these make it up:
    W_OCTETS_FRAMED             # ... of messages put together, with their lengths
    W_OCTETS_OLD                # ... sent again
    W_OCTETS_SKIPPED            # ... of no message that became whole
    W_OCTETS_BUFFERED           # ... now waiting for what comes before them
    W_ONE_WAY_QUERIES           # messages that no reply belongs to
    W_ONE_WAY_REPLIES
    W_FURTHER                   # replies of further hosts to a multicast query
    W_CONTINUATIONS             # replies that continue a zone transfer
    W_TRANSFERS                 # zone transfers begun
    W_TRANSFERRING              # ... and not ended yet
    W_INCOMPLETE                # ... ended without their closing record
    W_TRANSFERS_EVICTED         # ... of these, because a limit was reached
    W_QUERIES
    W_REPLIES
    W_OPENED                    # transactions that began with a query
    W_REPEATED                  # queries that repeated one that waits
    W_SUCCESS                   # transactions that ended with their reply
    W_NO_REPLY                  # ... with their timeout or the end of input
    W_EVICTED                   # ... because the table was full (also status no_reply)
    W_PENDING                   # now waiting
    W_NO_QUERY                  # replies that nothing waited for
    W_DUPLICATES                # replies to a transaction answered within duplicate_window
    W_ANSWERED_FORGOTTEN        # answered transactions forgotten early, their table being full
    W_NEGATIVE_LATENCY          # replies with a timestamp before their query's
    W_TRANSACTIONS              # tx events made
    W_RECORDS                   # record events made
    W_OMITTED                   # records left out of events by events.max_size
    W_WAITS                     # times the worker waited for room in its event ring
    W_LOSSY                     # no_reply and no_query while frames were being lost
    W_QUARANTINED               # frames skipped, having killed the worker twice
    W_LOST_PENDING              # queries that waited in workers that died
    W_LOST_TRANSFERS            # zone transfers that were under way in them
    W_LOST_OCTETS               # octets of streams that they kept
    W_TORN_FRAMES               # frames of which a worker that died had published a part
    W_TORN_EVENTS               # ... and the events of that part
    W_LATENCY_SUM               # of replies, in microseconds
    W_DISCARDED                 # messages without event, one for each Anomaly, from here
    W_MALFORMED = W_DISCARDED + ANOMALIES       # messages with an event, but malformed
    W_LATENCY = W_MALFORMED + ANOMALIES         # replies by latency, LATENCIES buckets from here
    W_RCODE = W_LATENCY + LATENCIES             # replies by response code; beyond 15 the last one
    W_END = W_RCODE + RCODES

cdef enum:      # OutputCounter
    O_EVENTS = 0                # written
    O_BYTES
    O_DROPPED                   # not written: the output has failed or does not keep up
    O_STATS                     # of both: events about the sensor, which come from no ring
    O_DONE                      # of the merged events, in order: those that it is through with
    O_SPOOLED                   # into its spool; of a fluentd output, as all that follows
    O_DELIVERED                 # from the spool: acknowledged
    O_SPOOL_DROPPED             # ... given up for want of room, or because they were too old
    O_SPOOL_DAMAGED             # ... that could not be read any more
    O_SPOOL_FOUND               # ... that stood there before, or that nobody knew to be there
    O_SPOOL_EVENTS              # now in the spool
    O_SPOOL_BYTES               # ... and what it takes on disk
    O_SPOOL_LIMIT               # ... and may take
    O_RESENT                    # chunks that were sent more than once
    O_REJECTED                  # events that no server would take, split as far as can be
    O_UNACKNOWLEDGED            # chunks now sent and not acknowledged
    O_SERVERS                   # that are not on standby
    O_SERVERS_UP                # ... and connected now
    O_BLOCKED                   # CLOCK_MONOTONIC, ns: since when it takes nothing; 0: it moves
    O_SPOOL_FAILING             # 1: its spool can't be written, read or synced just now
    OUTPUT_COUNTERS

cdef enum:      # SinkCounter
    S_EVENTS = 0                # merged
    S_WRITES                    # blocks done with
    S_SETTLED                   # of the merged: those that no output needs the rings for any more
    S_OUTPUT                    # for each output: OUTPUT_COUNTERS words, from here
    S_KEPT = S_OUTPUT + MAX_SLOT_OUTPUTS * OUTPUT_COUNTERS      # words of the stats events' own
    S_END = S_KEPT + MAX_KEPT

cdef enum:      # SupervisorCounter
    V_RESTARTS_CAPTURE = 0      # processes started again, whatever ended them, by role
    V_RESTARTS_WORKER
    V_RESTARTS_SINK
    V_RESTARTS_METRICS
    V_HANGS                     # of them: killed, since they showed no sign of life
    V_INTERFACE_GONE            # of them: capture processes whose interface went
    V_RELOADS                   # times outputs were asked to be opened again


cdef struct Bank:
    uint64_t counters[MAX_COUNTERS]
    uint64_t positions[MAX_POSITIONS]


cdef class Slot:
    # One process's own slot.
    cdef const unsigned char[::1] view
    cdef bint looks             # only: the buffer is read-only
    cdef uint64_t* head         # of the whole ledger
    cdef uint64_t* words
    cdef Bank* banks
    cdef Bank own               # what is not committed yet
    cdef uint64_t held[WORDS]   # of a copy: its words
    cdef uint64_t* counters     # ... of these, what the process counts in
    cdef uint64_t* positions
    cdef void load(self) noexcept nogil
    cdef void commit(self) noexcept nogil
    cdef void beat(self) noexcept nogil
    cdef void set_state(self, uint64_t state) noexcept nogil
    cdef uint64_t* output(self, int number) except NULL
