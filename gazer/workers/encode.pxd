"""Events as bytes: JSON text and msgpack, from one description of each event."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from gazer.entry cimport FORMATS
from gazer.workers.exchange cimport Exchange
from gazer.workers.message cimport Message, Record

cdef enum:
    PLACE_ROOM = 64         # :capture:frame:index@clock, 2 + 17 + 20 + 16 digits at most

cdef class Encoder:
    cdef bint full
    cdef bint use[FORMATS]
    cdef readonly uint32_t formats      # how many are in use
    cdef uint32_t max_size
    cdef readonly uint32_t budget       # room for records, whatever else an event holds
    cdef bytes sensor_kept
    cdef uint32_t fixed                 # room of an event beside its records, sides and tunnels
    cdef char* sensor                   # sensor id as a JSON string without quotes
    cdef uint32_t sensor_length
    cdef bytes sensor_raw_kept
    cdef char* sensor_raw
    cdef uint32_t sensor_raw_length
    cdef readonly bint ids              # each event has its id:
    cdef bytes run_kept
    cdef char* run                      # ... which begins so in JSON: sensor id and run
    cdef uint32_t run_length
    cdef bytes run_raw_kept
    cdef char* run_raw
    cdef uint32_t run_raw_length
    cdef char place[PLACE_ROOM]         # ... and ends so, of the event in hand
    cdef uint32_t place_length
    cdef int64_t second                 # whose text is in `date`
    cdef char date[32]
    cdef uint32_t shown_query           # records of the event in hand
    cdef uint32_t shown_reply
    cdef readonly uint32_t omitted

    cdef void identify(self, uint64_t sequence, uint64_t index, uint64_t late) noexcept nogil
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
