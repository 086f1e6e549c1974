"""A door for tests and benchmarks: TCP streams, called from Python on segments made by hand.

Nothing in gazer imports this.  Every payload and every address stands right before a page that
can't be read, and what `next` hands on is copied at once.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from posix.time cimport CLOCK_THREAD_CPUTIME_ID, clock_gettime, timespec

from gazer.guarded cimport Guarded
from gazer.packet cimport PROTOCOL_DNS
from gazer.workers.framing cimport REFUSED, Verdict, framing_judge, framing_search
from gazer.workers.pieces cimport CHUNK, CHUNK_OCTETS, MAX_RUNS, Chunk
from gazer.workers.stream cimport (
    STREAM_MESSAGE, STREAM_NOTHING, Connection, Direction, Segment, StreamItem, Streams)


KINDS = (None, "message", "gap", "end")
VERDICTS = ("refused", "plausible", "undecided")
CHUNK_SIZE = CHUNK
CHUNK_ROOM = CHUNK_OCTETS
MOST_RUNS = MAX_RUNS


cdef Guarded PLACE = Guarded()


def judge(bytes octets):
    """What framing_judge says of octets at which a message may begin."""
    return VERDICTS[framing_judge(PLACE.put(octets), len(octets))]


def search(bytes octets, limit=None):
    """(offset, verdict) of the first offset that is not refused."""
    cdef Verdict verdict = REFUSED
    offset = framing_search(PLACE.put(octets), len(octets),
                            len(octets) if limit is None else limit, &verdict)
    return offset, VERDICTS[verdict]


cdef int fill(Segment* s, segment, const uint8_t* ends, const uint8_t* payload) except -1:
    source = segment.source
    s.ends = ends
    s.payload = payload
    s.family = 4 if len(source[0]) == 4 else 6
    s.scope_length = len(segment.scope)
    s.protocol = PROTOCOL_DNS
    s.flags = segment.flags
    s.source_port = source[1]
    s.destination_port = segment.destination[1]
    s.sequence = segment.sequence
    s.acknowledgement = segment.acknowledgement
    s.length = len(segment.payload)
    s.wire_length = s.length + segment.missing
    s.number = segment.number
    s.time = segment.time
    return 0


cdef bytes ends_of(segment):
    return segment.source[0] + segment.destination[0] + segment.scope


cdef class Connections:
    """Streams.  A segment is a tests.stream_model.Segment."""

    cdef Streams streams
    cdef Guarded ends
    cdef Guarded payload

    def __init__(self, *, max_streams=1000, max_bytes=1 << 24, max_bytes_each=1 << 20,
                 timeout=300, seed=1):
        self.streams = Streams(max_streams=max_streams, max_bytes=max_bytes,
                               max_bytes_each=max_bytes_each, timeout=timeout, seed=seed)
        self.ends = Guarded()
        self.payload = Guarded()

    cdef list items(self):
        cdef StreamItem item
        cdef int what
        found = []
        while True:
            what = self.streams.next(&item)
            if what == STREAM_NOTHING:
                return found
            half = 4 if item.family == 4 else 16
            ends = item.ends[:2 * half + item.scope_length]
            found.append({
                "what": KINDS[what], "serial": item.serial, "direction": item.direction,
                "source": (ends[:half], item.source_port),
                "destination": (ends[half:2 * half], item.destination_port),
                "scope": ends[2 * half:],
                "wire": item.wire[:item.length] if what == STREAM_MESSAGE else None,
                "idle": bool(item.idle), "clock": item.clock, "number": item.number,
                "time": item.time, "connection": item.connection, "own": bool(item.own),
            })
            if what != STREAM_MESSAGE:
                assert item.wire == NULL and item.length == 0

    def feed(self, segment, clock):
        """All items that follow from the segment."""
        cdef Segment s
        fill(&s, segment, self.ends.put(ends_of(segment)), self.payload.put(segment.payload))
        self.streams.feed(&s, clock)
        return self.items()

    def expire(self, clock):
        self.streams.expire(clock, False)
        return self.items()

    def finish(self):
        self.streams.finish()
        return self.items()

    @property
    def due(self):
        cdef uint64_t number
        return self.streams.due(&number)

    @property
    def counts(self):
        return self.streams.counts

    @property
    def figures(self):
        """Memory: bytes of chunks in use, ever used; of connections; of buckets."""
        s = self.streams
        return {
            "chunks": s.pieces.used * CHUNK, "chunks_touched": (s.pieces.touched - 1) * CHUNK,
            "cells_touched": (s.touched - 1) * sizeof(Connection),
            "buckets": 4 * (s.bucket_mask + 1), "connection": sizeof(Connection),
        }

    def check(self):
        """All links and sums of the tables."""
        cdef Connection* c
        cdef Direction* r
        cdef uint32_t index, run
        cdef uint64_t buffered = 0, chunks = 0, octets
        cdef int d
        s = self.streams
        held, there = [], []
        index = s.oldest
        previous, clock = 0, 0
        while index:
            c = s.at(index)
            assert c.older == previous and c.clock >= clock and c.serial
            there.append(index)
            mine = 0
            for d in range(2):
                r = &c.direction[d]
                runs = 0
                if r.head:
                    octets, used = self.run(r.head)
                    assert octets and s.pieces.at(r.head).next_run == 0
                    buffered += octets
                    mine += used
                end = 0
                run = r.ahead
                while run:
                    octets, used = self.run(run)
                    start = (s.pieces.at(run).sequence - r.next) & 0xFFFFFFFF
                    assert octets and start > end, "runs in order, with holes between them"
                    end = start + octets
                    buffered += octets
                    mine += used
                    runs += 1
                    run = s.pieces.at(run).next_run
                assert runs == r.runs <= MAX_RUNS
                assert r.state == 1 or not (r.head or r.ahead or r.skip)
            assert mine == c.chunks <= s.pieces.max_each
            assert bool(c.holding) == (mine > 0)
            if c.holding:
                held.append(index)
            chunks += mine
            previous, clock = index, c.clock
            index = c.newer
        assert previous == s.newest and <uint64_t>len(there) == s.counts.live <= s.max_streams
        index, previous, order = s.held_oldest, 0, []
        while index:
            assert s.at(index).held_older == previous
            order.append(index)
            previous, index = index, s.at(index).held_newer
        assert previous == s.held_newest and sorted(order) == sorted(held)
        assert chunks == s.pieces.used
        free_ones = 0
        index = s.pieces.free_chunks
        while index:
            free_ones += 1
            index = s.pieces.at(index).next
        assert free_ones + chunks == s.pieces.touched - 1
        assert buffered == s.counts.octets_buffered
        k = s.counts
        assert k.octets == k.octets_framed + k.octets_old + k.octets_skipped + k.octets_buffered
        assert chunks * CHUNK <= s.pieces.max_bytes
        found = []
        for index in range(s.bucket_mask + 1):
            run = s.buckets[index]
            while run:
                assert s.at(run).hash & s.bucket_mask == index
                found.append(run)
                run = s.at(run).next
        assert sorted(found) == sorted(there)

    cdef tuple run(self, uint32_t index):
        """(octets, chunks) of a run."""
        cdef Chunk* first = self.streams.pieces.at(index)
        cdef Chunk* k
        octets, chunks, last = 0, 0, 0
        while index:
            k = self.streams.pieces.at(index)
            assert k.begin < k.end <= CHUNK_OCTETS
            octets += k.end - k.begin
            chunks += 1
            last = index
            index = k.next
        assert octets == first.length and last == first.last
        return octets, chunks

    def time(self, segments, clock=0, step=0, uint32_t batch=100):
        """CPU nanoseconds for all of them, items handed on, the most that `batch` of them took."""
        cdef uint32_t n = len(segments), i
        cdef size_t total = 0
        cdef Segment* all_ = <Segment*>calloc(n, sizeof(Segment))
        cdef uint8_t* place
        cdef uint64_t now = clock, steps = step, items = 0
        cdef StreamItem item
        cdef timespec a, b
        cdef int64_t spent = 0, most = 0, one
        for segment in segments:
            total += len(ends_of(segment)) + len(segment.payload)
        place = <uint8_t*>malloc(total + 1)
        if all_ == NULL or place == NULL:
            raise MemoryError
        total = 0
        for i in range(n):
            ends = ends_of(segments[i])
            payload = segments[i].payload
            memcpy(place + total, <const char*>ends, len(ends))
            memcpy(place + total + len(ends), <const char*>payload, len(payload))
            fill(&all_[i], segments[i], place + total, place + total + len(ends))
            total += len(ends) + len(payload)
        with nogil:
            clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a)
            for i in range(n):
                self.streams.feed(&all_[i], now)
                while self.streams.next(&item) != STREAM_NOTHING:
                    items += 1
                now += steps
                if (i + 1) % batch == 0 or i + 1 == n:
                    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b)
                    one = (b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec
                    spent += one
                    most = max(most, one)
                    a = b
        free(all_)
        free(place)
        return spent, items, most
