"""What an event tells of, as the matcher hands it to the encoder."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from gazer.workers.message cimport Message

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
    bint lossy                  # what is missing may have been lost here (matcher.pyx, judge)
    bint transfer               # `reply` is a zone transfer's; the rest tells of all its messages
    bint complete
    uint64_t messages
    uint64_t records
    uint64_t bytes
