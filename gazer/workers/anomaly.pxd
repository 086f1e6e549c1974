"""What can be wrong with a DNS message: a closed list.  The names (in the same order, lower case,
without the prefix) are `gazer.workers.anomaly.NAMES`; they are the values of `malformed`."""

cdef enum:      # Anomaly
    OK = 0
    SHORT_HEADER        # fewer than the 12 bytes of a header
    TRUNCATED           # the message ends within a record
    COUNTS              # it ends between records, but its counts promise more
    SNAPPED             # it ends early because the capture kept only a part of the frame (snaplen)
    POINTER_LOOP        # a compression pointer that does not point backward
    BAD_LABEL           # a label type that is reserved (RFC 1035 section 4.1.4, RFC 6891 section 5)
    NAME_TOO_LONG       # more than 255 octets (RFC 1035, section 2.3.4)
    RDLENGTH            # rdlength goes beyond the message
    BAD_RDATA           # rdata does not fit its type; shown in the form of RFC 3597
    TRAILING            # bytes after the last record
    ANOMALIES           # how many there are; not an anomaly

cdef enum:
    NO_ROOM = -1        # not an anomaly: the arena is full, the record left out (events.max_size)

cdef const char* anomaly_name(int anomaly) noexcept nogil
