"""IP datagrams that came in pieces, waiting to be whole (RFC 791; RFC 8200, section 4.5).

Capture hands in each piece that packet_decode finds (a Fragment), and with the last one missing
gets the whole datagram as one frame, `joined`: the headers of the piece with offset 0, so that all
offsets into them stay what they were, and then the whole payload.

    frame of the piece with offset 0    | link, tunnels, IP header | (v6 fragment header) | piece |
                                        '-- head_length ----------'
    joined.frame                        | link, tunnels, IP header | whole payload ............. |
                                        '-- joined.packet, .layers and .head_length speak of it

Nothing in the head is changed: its lengths, its fragment fields and its next header are those of
the piece.  So it is not decoded again; decoding goes on at head_length with joined.protocol, and
with what was known of the piece (joined.packet, joined.layers).

Memory is one block of cells of one size, so nothing fragments, and memory is bounded exactly.  A
datagram has one cell for itself, a page for each KiB of payload of which an octet is there, and
more cells for a head that does not fit in its own:

    Datagram     | lists, numbers, key | Packet, layers | pages: 64 indexes | head ............. |
    Page         | one bit for each 8 octets: there or not (128 bits) | 1024 octets of payload   |
    more head    | next | octets ............................................................... |

A mirror may show each piece twice, and so show one more of a datagram that is whole already.
For a while (`copies`) such a piece is a duplicate: it would begin a datagram that is never whole,
and that the next one with this id would be mixed with.  Where that happens all the same, its
checksum tells.

A piece's offset counts in units of 8 octets, so the bits say all that there is to know: whether a
piece fills a hole, lies where others are, or does both; at the same cost in any order of pieces.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from gazer.packet cimport MAX_SCOPE, MAX_TUNNELS, Fragment, Layer, Packet

cdef enum:
    FRAGMENT_HELD = 0       # kept, or discarded: nothing to do now
    FRAGMENT_WHOLE = 1      # `joined` is a whole datagram

cdef enum:          # FragmentCount: frames, but for the first; counters.pxd has the same order
    F_DATAGRAMS = 0         # datagrams put together
    F_JOINED                # pieces of them, but for the one that made it whole
    F_FOREIGN
    F_DUPLICATE
    F_OVERLAPPING
    F_BAD
    F_EXPIRED
    F_EVICTED
    F_WAITING               # a gauge
    FRAGMENT_COUNTS

cdef enum:
    PAGE = 1024             # octets of payload
    PAGES = 64              # 65,535 octets
    CELL = PAGE + 16
    FIRST_HEAD = 384        # octets of head in a datagram's own cell, behind Datagram
    MORE_HEAD = CELL - 8    # octets of head in a further cell
    MAX_HEAD = 65535

cdef enum:          # Held: how much of a range is there
    NOTHING = 0
    A_PART
    ALL

cdef enum:          # State of a datagram
    ASSEMBLING = 0
    FOREIGN                 # not ours, by its ports
    OVERLAPPING             # its pieces contradict one another


cdef struct Joined:
    # A whole datagram as one frame.
    const uint8_t* frame
    uint32_t caplen         # octets of it
    uint32_t length         # ... before it was cut to snaplen
    uint32_t head_length    # where its payload begins
    uint8_t protocol        # of the payload
    uint32_t pieces         # it was made of, but for the last to come
    Packet packet           # what add() was given with the piece of offset 0
    Layer[MAX_TUNNELS] layers


cdef struct FragmentKey:
    # Which datagram a piece belongs to.  Without padding, and zero behind what is used: compared
    # and hashed as octets.
    uint32_t id
    uint8_t family
    uint8_t protocol        # IPv4 only
    uint8_t levels          # of encapsulation around it
    uint8_t length          # octets used of `octets`
    uint8_t[32 + MAX_SCOPE] octets      # source, destination, scope


cdef struct Datagram:
    uint64_t since          # sensor clock at its first piece
    uint32_t next           # in the bucket
    uint32_t hash
    uint32_t earlier        # in the order of first pieces
    uint32_t later
    uint32_t colder         # in the order of last use
    uint32_t warmer
    uint32_t pieces         # kept
    uint32_t received       # octets
    uint32_t highest        # end of the farthest piece
    uint32_t total          # octets in all; 0: the last piece is not there
    uint32_t more_head      # next cell; 0: none
    uint16_t head_length
    uint8_t state
    uint8_t protocol        # of the piece with offset 0
    FragmentKey key
    Packet packet
    Layer[MAX_TUNNELS] layers
    uint32_t[PAGES] pages   # 0: nothing of it is there


cdef struct Recent:
    uint64_t print          # of a datagram joined a short while ago; 0: none
    uint64_t clock          # when


cdef struct Page:
    uint64_t[2] there
    uint8_t[PAGE] octets


cdef bint joined_soundly(const Joined* j) noexcept nogil


cdef class Fragments:
    cdef uint8_t* cells
    cdef size_t reserved            # octets of address space
    cdef uint32_t* buckets
    cdef uint32_t bucket_mask
    cdef uint8_t* buffer            # of the joined frame
    cdef uint32_t buffer_size
    cdef uint32_t touched           # cells ever used
    cdef uint32_t free_cells        # head of the list
    cdef readonly uint32_t cells_used
    cdef readonly uint32_t max_cells
    cdef readonly uint32_t known    # datagrams
    cdef readonly uint32_t max_datagrams
    cdef uint32_t earliest
    cdef uint32_t latest
    cdef uint32_t coldest
    cdef uint32_t warmest
    cdef uint64_t timeout
    cdef uint64_t seed
    cdef Recent* recent             # by hash; a newer one takes an older one's place
    cdef uint32_t last_hash         # of the datagram joined last
    cdef uint64_t copies            # ns for which copies of a joined datagram's pieces are known
    cdef uint64_t[FRAGMENT_COUNTS] counts
    cdef Joined joined

    # One piece.  `packet` and `layers` (packet.layers of them) are what is known of the frame up to
    # here: kept if the piece has offset 0, and given back with the whole.  `foreign`: the piece
    # has offset 0 and its ports are not ours.  `clock` never goes back.
    # After FRAGMENT_WHOLE, `joined` is valid until the next call; the frame, the packet and the
    # layers given to that next call may be those of `joined`.
    cdef bint is_copy(self, const FragmentKey* key, uint32_t hash, uint64_t clock) noexcept nogil
    cdef void take_back(self, bint last) noexcept nogil
    cdef int add(self, const uint8_t* frame, uint32_t caplen, const Fragment* f,
                 const Packet* packet, const Layer* layers, const uint8_t* scope,
                 uint32_t scope_length, bint foreign, uint64_t clock) noexcept nogil
    # Let go of what is too old.  add() does it too; called by itself it keeps the counts current.
    cdef void expire(self, uint64_t clock) noexcept nogil

    cdef Datagram* at(self, uint32_t index) noexcept nogil
    cdef Page* page(self, uint32_t index) noexcept nogil
    cdef uint32_t take_cell(self) noexcept nogil
    cdef void give_cell(self, uint32_t index) noexcept nogil
    cdef uint32_t hash(self, const FragmentKey* key) noexcept nogil
    cdef uint32_t find(self, const FragmentKey* key, uint32_t hash) noexcept nogil
    cdef uint32_t open(self, const FragmentKey* key, uint32_t hash, uint64_t clock) noexcept nogil
    cdef void use(self, uint32_t index) noexcept nogil
    cdef void link(self, uint32_t index) noexcept nogil
    cdef void unlink(self, uint32_t index) noexcept nogil
    cdef void empty(self, Datagram* d) noexcept nogil
    cdef void remove(self, uint32_t index) noexcept nogil
    cdef void make_room(self, uint32_t cells, uint32_t spare) noexcept nogil
    cdef uint32_t cells_for(self, const Datagram* d, uint32_t start, uint32_t end,
                            uint32_t head) noexcept nogil
    cdef int held(self, const Datagram* d, uint32_t start, uint32_t end) noexcept nogil
    cdef bint same(self, const Datagram* d, uint32_t start, const uint8_t* octets,
                   uint32_t length) noexcept nogil
    cdef void give_up(self, Datagram* d, int state, int count) noexcept nogil
    cdef void keep_head(self, Datagram* d, const uint8_t* head, uint32_t length) noexcept nogil
    cdef void keep(self, Datagram* d, uint32_t start, const uint8_t* octets,
                   uint32_t length) noexcept nogil
    cdef int hand_on(self, uint32_t index, uint64_t clock) noexcept nogil
    cdef void join(self, Datagram* d) noexcept nogil
