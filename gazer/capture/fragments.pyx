"""IP datagrams that came in pieces, waiting to be whole; see fragments.pxd for how they are kept.

Which datagram a piece belongs to: family, source, destination, id, for IPv4 the protocol (RFC 791;
RFC 8200, section 4.5), the scope (networks behind different VLANs or VNIs may have the same
addresses) and the number of levels of encapsulation around it.

What becomes of a piece, in this order:

bad             empty; not the last one and no multiple of 8 octets; its end beyond 65,535 octets
                (IPv4: header included; the "ping of death"); or a part of it is not in the capture.
                It alone is discarded.
foreign,        its datagram is known to be so, and is until its timeout.
overlapping
overlapping     octets beyond the last piece's end, or a last piece that says another end; a part of
                its range is there already, or all of it with other octets.  The whole datagram is
                given up (RFC 5722; for IPv4 likewise, as Linux does): whoever can put in one octet
                could otherwise choose the reply.
duplicate       all of its range is there already, with the same octets: as mirror ports show them.
                If it is the first to say where the end is, that is believed.
foreign         it has offset 0, and ports that are not ours.  Nothing of its datagram is kept.
waiting         kept, until the datagram is whole (joined), is `timeout` old (expired), or has to
                make room (evicted).

Each piece is in exactly one of these counts, but for the one that made a datagram whole; `waiting`
goes down by what leaves.

Time for a piece is bounded by its own length, and by what has to make room for it: at most as many
cells as a datagram of the largest size takes.  Two lists have the datagrams in the order of their
first pieces, in which they expire, and in the order of their last use, in which they make room.
Any piece but a bad one is a use of its datagram.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from gazer.block cimport block_free, block_reserve
from gazer.cursor cimport Cursor, cursor_over, cursor_skip, cursor_take, cursor_u8, cursor_u16
from gazer.packet cimport MAX_SCOPE, MAX_TUNNELS, UDP, Fragment, Layer, Packet

cdef extern from "mix.h" nogil:
    uint64_t fold_multiply(uint64_t a, uint64_t b)

cdef enum:
    LARGEST = 65535                             # an IP datagram (RFC 791, section 3.1)
    KEY_WORDS = (8 + 32 + MAX_SCOPE) // 8
    # What one datagram of the largest size takes, with a head that one cell would hold.
    MOST_CELLS = 1 + PAGES + (MAX_HEAD + MORE_HEAD - 1) // MORE_HEAD
    FEWEST_BUCKETS = 64
    RECENT = 4096           # joined datagrams whose copies are known

assert sizeof(Page) == CELL and sizeof(Datagram) + FIRST_HEAD <= CELL
assert sizeof(FragmentKey) == 8 * KEY_WORDS

# The smallest max_bytes with which a datagram of any size has room.
LEAST_BYTES = 2 * LARGEST + 4 * FEWEST_BUCKETS + (MOST_CELLS + 1) * CELL


cdef bint joined_soundly(const Joined* j) noexcept nogil:
    """False if a joined UDP datagram's checksum says that its pieces do not belong together.

    An id is used again soon (RFC 6864), and a mirror that shows pieces twice leaves the copy of a
    last piece behind: with the next datagram's first piece it would make a whole one, of two
    replies.  A checksum of zero says nothing (RFC 768; RFC 6935); neither does that of a datagram
    that was cut.  TCP does not let its segments be fragmented, so its checksum is not looked at.
    """
    cdef Cursor c = cursor_over(j.frame, j.head_length, j.caplen)
    cdef uint32_t length, _
    cdef uint64_t total = UDP
    if j.protocol != UDP or j.caplen < j.length:
        return True
    cursor_skip(&c, 4)
    length = cursor_u16(&c)
    if cursor_u16(&c) == 0 or c.failed or length < 8 or length > j.caplen - j.head_length:
        return True         # nothing to go by, or a length that will be found wrong
    total += length
    c = cursor_over(j.frame, j.packet.addresses_offset, j.head_length)
    for _ in range(4 if j.packet.family == 4 else 16):
        total += cursor_u16(&c)
    c = cursor_over(j.frame, j.head_length, j.head_length + length)
    for _ in range(length // 2):
        total += cursor_u16(&c)
    if length & 1:
        total += <uint32_t>cursor_u8(&c) << 8
    return total % 0xFFFF == 0


cdef inline uint64_t blocks(uint32_t word, uint32_t first, uint32_t last) noexcept nogil:
    """The bits of one word for the blocks `first` to `last` (counted from 0 over all words)."""
    cdef uint64_t mask = ~<uint64_t>0
    if first > word * 64:
        mask &= ~<uint64_t>0 << (first - word * 64)
    if last < word * 64 + 63:
        mask &= ~<uint64_t>0 >> (63 - (last - word * 64))
    return mask


cdef class Fragments:
    """The table.  `max_bytes` is all the memory that it takes (at least LEAST_BYTES), `timeout` is
    in ns, joined frames are cut to `snaplen`; for `copies` ns further pieces of a joined datagram
    count as duplicates (0: they begin another)."""

    def __cinit__(self, *, max_datagrams, max_bytes, timeout, seed, snaplen=262144, copies=0):
        if max_datagrams < 1:
            raise ValueError("max_datagrams: at least 1")
        if max_bytes < LEAST_BYTES:
            raise ValueError(f"max_bytes: at least {LEAST_BYTES}")
        cdef uint32_t buckets = FEWEST_BUCKETS
        # Each bucket has a cell at the end; no more of them than there can be datagrams.
        while buckets < max_datagrams and (buckets * 2) * CELL <= max_bytes // 2:
            buckets *= 2
        self.bucket_mask = buckets - 1
        self.max_datagrams = max_datagrams
        self.timeout = timeout
        self.seed = seed
        self.buffer_size = min(snaplen, MAX_HEAD + LARGEST)
        # Cell 0 is never used: index 0 means "none".
        self.copies = copies
        remembered = RECENT * sizeof(Recent) if copies else 0
        self.max_cells = min(
            (max_bytes - self.buffer_size - 4 * buckets - remembered) // CELL - 1, (1 << 31) - 1)
        self.reserved = (<size_t>self.max_cells + 1) * CELL
        self.cells = <uint8_t*>block_reserve(self.reserved, "fragments")
        self.touched = 1
        self.buckets = <uint32_t*>calloc(buckets, sizeof(uint32_t))
        self.buffer = <uint8_t*>malloc(self.buffer_size)
        if copies:
            self.recent = <Recent*>calloc(RECENT, sizeof(Recent))
        if self.buckets == NULL or self.buffer == NULL or (copies and self.recent == NULL):
            raise MemoryError

    def __dealloc__(self):
        block_free(self.cells, self.reserved)
        free(self.buckets)
        free(self.buffer)
        free(self.recent)

    # --- cells -----------------------------------------------------------------------------------

    cdef Datagram* at(self, uint32_t index) noexcept nogil:
        return <Datagram*>(self.cells + <size_t>index * CELL)

    cdef Page* page(self, uint32_t index) noexcept nogil:
        return <Page*>(self.cells + <size_t>index * CELL)

    cdef uint32_t take_cell(self) noexcept nogil:
        cdef uint32_t index = self.free_cells
        if index:
            self.free_cells = (<uint32_t*>self.at(index))[0]
        else:
            index = self.touched
            self.touched += 1
        self.cells_used += 1
        return index

    cdef void give_cell(self, uint32_t index) noexcept nogil:
        (<uint32_t*>self.at(index))[0] = self.free_cells
        self.free_cells = index
        self.cells_used -= 1

    cdef uint32_t cells_for(self, const Datagram* d, uint32_t start, uint32_t end,
                            uint32_t head) noexcept nogil:
        """How many cells octets start to end of the payload would take, and a head so long."""
        cdef uint32_t i, n = 0
        for i in range(start // PAGE, (end - 1) // PAGE + 1):
            n += d == NULL or d.pages[i] == 0
        if head > FIRST_HEAD:
            n += (head - FIRST_HEAD + MORE_HEAD - 1) // MORE_HEAD
        return n

    cdef void make_room(self, uint32_t cells, uint32_t spare) noexcept nogil:
        """So many cells are free then; whoever has to leave for it does, but for `spare`.

        `spare` is the warmest, if it is one at all, and takes no more than MOST_CELLS with what is
        asked for; so there is always room in the end.
        """
        while self.cells_used + cells > self.max_cells and self.coldest != spare:
            self.counts[F_EVICTED] += self.at(self.coldest).pieces
            self.remove(self.coldest)

    # --- datagrams -------------------------------------------------------------------------------

    cdef uint32_t hash(self, const FragmentKey* key) noexcept nogil:
        cdef uint64_t[KEY_WORDS] words
        cdef uint64_t h = self.seed
        cdef int i
        memcpy(words, key, sizeof(FragmentKey))
        for i in range((8 + key.length + 7) // 8):
            h = fold_multiply(h ^ words[i], self.seed ^ 0x9E3779B97F4A7C15ULL)
        return <uint32_t>fold_multiply(h ^ self.seed, 0xE7037ED1A0B428DBULL)

    cdef uint32_t find(self, const FragmentKey* key, uint32_t hash) noexcept nogil:
        """The datagram with this key, or 0."""
        cdef uint32_t index = self.buckets[hash & self.bucket_mask]
        cdef Datagram* d
        while index:
            d = self.at(index)
            if d.hash == hash and memcmp(&d.key, key, sizeof(FragmentKey)) == 0:
                break
            index = d.next
        return index

    cdef uint32_t open(self, const FragmentKey* key, uint32_t hash, uint64_t clock) noexcept nogil:
        """A new datagram; there is a cell for it."""
        cdef uint32_t index = self.take_cell()
        cdef Datagram* d = self.at(index)
        memset(d, 0, sizeof(Datagram))
        d.since = clock
        d.hash = hash
        d.key = key[0]
        d.next = self.buckets[hash & self.bucket_mask]
        self.buckets[hash & self.bucket_mask] = index
        d.earlier = self.latest
        if self.latest:
            self.at(self.latest).later = index
        else:
            self.earliest = index
        self.latest = index
        self.link(index)
        self.known += 1
        return index

    cdef void link(self, uint32_t index) noexcept nogil:
        """It is the warmest now."""
        cdef Datagram* d = self.at(index)
        d.warmer = 0
        d.colder = self.warmest
        if self.warmest:
            self.at(self.warmest).warmer = index
        else:
            self.coldest = index
        self.warmest = index

    cdef void unlink(self, uint32_t index) noexcept nogil:
        """Take it out of the order of use."""
        cdef Datagram* d = self.at(index)
        if d.colder:
            self.at(d.colder).warmer = d.warmer
        else:
            self.coldest = d.warmer
        if d.warmer:
            self.at(d.warmer).colder = d.colder
        else:
            self.warmest = d.colder

    cdef void use(self, uint32_t index) noexcept nogil:
        if index != self.warmest:
            self.unlink(index)
            self.link(index)

    cdef void empty(self, Datagram* d) noexcept nogil:
        """Let go of its octets, and of the waiting of its pieces."""
        cdef uint32_t i, index
        for i in range((d.highest + PAGE - 1) // PAGE):
            if d.pages[i]:
                self.give_cell(d.pages[i])
                d.pages[i] = 0
        while d.more_head:
            index = d.more_head
            d.more_head = (<uint32_t*>self.at(index))[0]
            self.give_cell(index)
        self.counts[F_WAITING] -= d.pieces
        d.pieces = 0
        d.highest = 0

    cdef void remove(self, uint32_t index) noexcept nogil:
        cdef Datagram* d = self.at(index)
        cdef uint32_t* link = &self.buckets[d.hash & self.bucket_mask]
        self.empty(d)
        while link[0] != index:
            link = &self.at(link[0]).next
        link[0] = d.next
        if d.earlier:
            self.at(d.earlier).later = d.later
        else:
            self.earliest = d.later
        if d.later:
            self.at(d.later).earlier = d.earlier
        else:
            self.latest = d.earlier
        self.unlink(index)
        self.give_cell(index)
        self.known -= 1

    cdef void give_up(self, Datagram* d, int state, int count) noexcept nogil:
        """The piece in hand, those that are kept and those that will come are all `count`."""
        self.counts[count] += d.pieces + 1
        self.empty(d)
        d.state = <uint8_t>state

    cdef void expire(self, uint64_t clock) noexcept nogil:
        cdef Datagram* d
        while self.earliest:
            d = self.at(self.earliest)
            if clock - d.since < self.timeout:
                return
            self.counts[F_EXPIRED] += d.pieces
            self.remove(self.earliest)

    # --- octets ----------------------------------------------------------------------------------

    cdef int held(self, const Datagram* d, uint32_t start, uint32_t end) noexcept nogil:
        """Whether nothing, a part or all of this range is there, in blocks of 8 octets."""
        cdef uint32_t first = start // 8, last = (end - 1) // 8, word, index
        cdef uint64_t mask, there
        cdef bint some = False, every = True
        for word in range(first // 64, last // 64 + 1):
            mask = blocks(word, first, last)
            index = d.pages[word // 2]
            there = self.page(index).there[word & 1] & mask if index else 0
            some |= there != 0
            every &= there == mask
        return ALL if every else A_PART if some else NOTHING

    cdef bint same(self, const Datagram* d, uint32_t start, const uint8_t* octets,
                   uint32_t length) noexcept nogil:
        """True if these octets are there; all of their blocks are, and they end with the payload
        or before."""
        cdef uint32_t done = 0, n
        while done < length:
            n = PAGE - (start + done) % PAGE
            if n > length - done:
                n = length - done
            if memcmp(&self.page(d.pages[(start + done) // PAGE]).octets[(start + done) % PAGE],
                      octets + done, n):
                return False
            done += n
        return True

    cdef void keep(self, Datagram* d, uint32_t start, const uint8_t* octets,
                   uint32_t length) noexcept nogil:
        """Keep octets of which none is there; there is room for them."""
        cdef uint32_t first = start // 8, last = (start + length - 1) // 8
        cdef uint32_t done = 0, n, number, word
        cdef Page* page
        while done < length:
            number = (start + done) // PAGE
            if d.pages[number] == 0:
                d.pages[number] = self.take_cell()
                page = self.page(d.pages[number])
                page.there[0] = 0
                page.there[1] = 0
            n = PAGE - (start + done) % PAGE
            if n > length - done:
                n = length - done
            memcpy(&self.page(d.pages[number]).octets[(start + done) % PAGE], octets + done, n)
            done += n
        for word in range(first // 64, last // 64 + 1):
            self.page(d.pages[word // 2]).there[word & 1] |= blocks(word, first, last)
        d.received += length
        d.pieces += 1
        if start + length > d.highest:
            d.highest = start + length

    cdef void keep_head(self, Datagram* d, const uint8_t* head, uint32_t length) noexcept nogil:
        """Keep the headers before a datagram's payload; there is room for them."""
        cdef uint32_t done = length if length < FIRST_HEAD else FIRST_HEAD, n, index
        cdef uint32_t* last = &d.more_head
        memcpy(<uint8_t*>d + sizeof(Datagram), head, done)
        while done < length:
            n = length - done if length - done < MORE_HEAD else MORE_HEAD
            index = self.take_cell()
            last[0] = index
            last = <uint32_t*>self.at(index)
            last[0] = 0
            memcpy(<uint8_t*>self.at(index) + CELL - MORE_HEAD, head + done, n)
            done += n
        d.head_length = <uint16_t>length

    cdef void join(self, Datagram* d) noexcept nogil:
        """Make `joined` of a datagram that is whole."""
        cdef Joined* j = &self.joined
        cdef uint32_t done, n, end, index = d.more_head
        j.frame = self.buffer
        j.length = d.head_length + d.total
        j.caplen = j.length if j.length < self.buffer_size else self.buffer_size
        j.head_length = d.head_length
        j.protocol = d.protocol
        j.pieces = d.pieces
        j.packet = d.packet
        memcpy(j.layers, d.layers, sizeof(d.layers))
        end = d.head_length if d.head_length < j.caplen else j.caplen
        done = end if end < FIRST_HEAD else FIRST_HEAD
        memcpy(self.buffer, <uint8_t*>d + sizeof(Datagram), done)
        while done < end:
            n = end - done if end - done < MORE_HEAD else MORE_HEAD
            memcpy(self.buffer + done, <uint8_t*>self.at(index) + CELL - MORE_HEAD, n)
            index = (<uint32_t*>self.at(index))[0]
            done += n
        while done < j.caplen:
            n = j.caplen - done if j.caplen - done < PAGE else PAGE
            memcpy(self.buffer + done, self.page(d.pages[(done - end) // PAGE]).octets, n)
            done += n

    cdef int hand_on(self, uint32_t index, uint64_t clock) noexcept nogil:
        """The datagram is whole, by a piece that is not among those it keeps."""
        cdef Datagram* d = self.at(index)
        self.join(d)
        self.counts[F_DATAGRAMS] += 1
        self.counts[F_JOINED] += d.pieces
        if self.copies:
            self.recent[d.hash % RECENT].print = <uint64_t>d.key.id << 32 | d.hash
            self.recent[d.hash % RECENT].clock = clock
            self.last_hash = d.hash
        self.remove(index)
        return FRAGMENT_WHOLE

    cdef bint is_copy(self, const FragmentKey* key, uint32_t hash, uint64_t clock) noexcept nogil:
        """True if a datagram with this key has been joined a short while ago."""
        cdef const Recent* r = &self.recent[hash % RECENT]
        return r.print == (<uint64_t>key.id << 32 | hash) and clock - r.clock < self.copies

    cdef void take_back(self, bint last) noexcept nogil:
        """What has just been joined does not belong together: its pieces contradict one another
        after all; with `last`, the one that came last as well."""
        self.counts[F_DATAGRAMS] -= 1
        self.counts[F_JOINED] -= self.joined.pieces
        self.counts[F_OVERLAPPING] += self.joined.pieces + last
        if self.copies:
            self.recent[self.last_hash % RECENT].print = 0

    # --- a piece ---------------------------------------------------------------------------------

    cdef int add(self, const uint8_t* frame, uint32_t caplen, const Fragment* f,
                 const Packet* packet, const Layer* layers, const uint8_t* scope,
                 uint32_t scope_length, bint foreign, uint64_t clock) noexcept nogil:
        cdef uint32_t addresses = 8 if f.family == 4 else 32
        cdef Cursor c = cursor_over(frame, f.payload_offset, caplen)
        cdef const uint8_t* octets = cursor_take(&c, f.payload_length)
        cdef const uint8_t* head
        cdef const uint8_t* ends
        cdef uint32_t end = f.offset + f.payload_length, longest = LARGEST, index, hash, cells
        cdef FragmentKey key
        cdef Datagram* d
        cdef int held
        self.expire(clock)
        c = cursor_over(frame, 0, caplen)
        head = cursor_take(&c, f.head_length)
        c = cursor_over(frame, f.addresses_offset, caplen)
        ends = cursor_take(&c, addresses)
        if f.family == 4:
            # The header begins 12 octets before the addresses.
            longest += f.addresses_offset
            longest -= 12 + f.head_length
        if (octets == NULL or head == NULL or ends == NULL or f.cut or f.payload_length == 0
                or (f.more and f.payload_length % 8) or f.offset % 8 or f.offset > LARGEST
                or f.payload_length > LARGEST or end > longest or longest > LARGEST
                or scope_length > MAX_SCOPE or packet.layers > MAX_TUNNELS):
            self.counts[F_BAD] += 1
            return FRAGMENT_HELD
        memset(&key, 0, sizeof(key))
        key.id = f.id
        key.family = f.family
        key.protocol = f.protocol if f.family == 4 else 0
        key.levels = packet.layers
        key.length = <uint8_t>(addresses + scope_length)
        memcpy(key.octets, ends, addresses)
        memcpy(key.octets + addresses, scope, scope_length)
        hash = self.hash(&key)
        index = self.find(&key, hash)
        if index:
            self.use(index)
            d = self.at(index)
            if d.state != ASSEMBLING:
                self.counts[F_FOREIGN if d.state == FOREIGN else F_OVERLAPPING] += 1
                return FRAGMENT_HELD
            if ((d.total and (end > d.total or (not f.more and end != d.total)))
                    or (not f.more and end < d.highest)):
                self.give_up(d, OVERLAPPING, F_OVERLAPPING)
                return FRAGMENT_HELD
            held = self.held(d, f.offset, end)
            if held != NOTHING:
                if held == A_PART or not self.same(d, f.offset, octets, f.payload_length):
                    self.give_up(d, OVERLAPPING, F_OVERLAPPING)
                    return FRAGMENT_HELD
                if not f.more:
                    d.total = end
                if d.received == d.total:
                    return self.hand_on(index, clock)      # the octets were there, the end was not
                self.counts[F_DUPLICATE] += 1
                return FRAGMENT_HELD
        elif self.copies and self.is_copy(&key, hash, clock):
            self.counts[F_DUPLICATE] += 1
            return FRAGMENT_HELD
        else:
            while self.known >= self.max_datagrams:
                self.counts[F_EVICTED] += self.at(self.coldest).pieces
                self.remove(self.coldest)
            self.make_room(1, 0)
            index = self.open(&key, hash, clock)
            d = self.at(index)
        foreign = foreign and f.offset == 0
        if foreign:
            self.give_up(d, FOREIGN, F_FOREIGN)
            return FRAGMENT_HELD
        cells = self.cells_for(d, f.offset, end, f.head_length if f.offset == 0 else 0)
        self.make_room(cells, index)
        self.keep(d, f.offset, octets, f.payload_length)
        self.counts[F_WAITING] += 1
        if not f.more:
            d.total = end
        if f.offset == 0:
            self.keep_head(d, head, f.head_length)
            d.protocol = f.protocol
            d.packet = packet[0]
            memcpy(d.layers, layers, packet.layers * sizeof(Layer))
        if d.total == 0 or d.received != d.total:
            return FRAGMENT_HELD
        # This piece is the one that made it whole: it is not counted among the others.
        self.counts[F_WAITING] -= 1
        d.pieces -= 1
        return self.hand_on(index, clock)
