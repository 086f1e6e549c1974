"""Events as bytes: JSON text and msgpack, from one description of each event."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from gazer.entry cimport FORMATS
from gazer.workers.message cimport Message, Record

cdef enum Status:
    SUCCESS = 0
    NO_REPLY
    NO_QUERY
    ONE_WAY                     # a message that no reply belongs to
    FURTHER_REPLY               # another host's reply to a multicast query
    STATUSES

cdef struct Exchange:
    # What an event tells of: a query with its reply, or one of them, or one message's records.
    const uint8_t* addresses    # client's, then server's
    const uint8_t* outer        # outer identity (outer.pxd); NULL: it came in no tunnel
    const uint8_t* scope        # ... which is then all VLAN ids, two octets each
    uint8_t scope_length        # octets
    uint8_t family
    uint8_t transport
    uint8_t protocol            # Protocol
    uint16_t client_port
    uint16_t server_port
    uint16_t id
    int status
    const Message* query        # NULL: none
    const Message* reply        # NULL: none
    int64_t query_time
    int64_t reply_time
    uint32_t query_size
    uint64_t reply_size
    uint32_t repeats
    bint transfer               # `reply` is a zone transfer's; the rest tells of all its messages
    bint complete
    uint64_t messages
    uint64_t records
    uint64_t bytes


cdef class Encoder:
    cdef bint full
    cdef bint use[FORMATS]
    cdef readonly uint32_t formats      # how many are in use
    cdef uint32_t max_size
    cdef readonly uint32_t budget       # room for records, whatever else an event holds
    cdef bytes sensor_kept
    cdef char* sensor                   # sensor id as a JSON string without quotes
    cdef uint32_t sensor_length
    cdef bytes sensor_raw_kept
    cdef char* sensor_raw
    cdef uint32_t sensor_raw_length
    cdef int64_t second                 # whose text is in `date`
    cdef char date[32]
    cdef uint32_t shown_query           # records of the event in hand
    cdef uint32_t shown_reply
    cdef readonly uint32_t omitted

    cdef void set_date(self, int64_t second) noexcept nogil
    cdef uint32_t fit(self, const Message* m, uint32_t room) noexcept nogil
    cdef char* frame_begin(self, int format, char* w, const char* tag,
                           int64_t time) noexcept nogil
    cdef uint32_t finish(self, uint8_t* to, uint64_t clock, uint64_t sequence, int64_t time,
                         int kind, const Exchange* x, const Message* m,
                         const Record* r) noexcept nogil
    cdef uint32_t plan_tx(self, const Exchange* x) noexcept nogil
    cdef uint32_t tx(self, const Exchange* x, uint8_t* to, uint64_t clock,
                     uint64_t sequence) noexcept nogil
    cdef uint32_t plan_record(self, const Exchange* x, uint32_t i) noexcept nogil
    cdef uint32_t record(self, const Exchange* x, uint32_t i, uint8_t* to, uint64_t clock,
                         uint64_t sequence) noexcept nogil
