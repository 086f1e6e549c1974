"""Decode messages and encode their events, into memory of our own; see gazer.workers.warm.

Through the same functions as the engine's, but without its rings, tables and counters: what a
rehearsal does is not in the account, and leaves nothing behind.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from gazer.packet cimport PROTOCOLS
from gazer.workers.encode cimport Encoder
from gazer.workers.exchange cimport STATUSES, Exchange
from gazer.workers.message cimport Message, message_decode, message_free, message_setup

cdef enum:
    SECOND = 1000000000
    WHEN = 1444531212       # 2015-10-11T02:40:12Z


def rehearse(Encoder encoder, wires):
    """The transaction of each of these messages with itself, in each status and protocol, and the
    events of its records."""
    cdef Message m
    cdef int status, protocol
    message_setup(&m, encoder.budget, encoder.full)
    try:
        for wire in wires:
            for protocol in range(PROTOCOLS):
                m.protocol = <uint8_t>protocol
                octets = <bytes>wire
                message_decode(&m, <const uint8_t*><const char*>octets, len(octets), False)
                for status in range(<int>STATUSES):
                    events(encoder, &m, protocol, status)
    finally:
        message_free(&m)


cdef int events(Encoder encoder, const Message* m, int protocol, int status) except -1:
    cdef Exchange x
    cdef uint8_t[8] addresses
    cdef uint32_t i
    memset(&x, 0, sizeof(x))
    memset(addresses, 0, sizeof(addresses))
    x.addresses = addresses
    x.family = 4
    x.transport = 17
    x.protocol = <uint8_t>protocol
    x.client_port = x.server_port = 53
    x.status = status
    x.query = x.reply = m
    x.query_time = <long long>WHEN * SECOND
    x.reply_time = x.query_time + 1
    x.query_size = x.reply_size = m.length
    one(encoder, &x, encoder.plan_tx(&x), -1)
    for i in range(m.records_read):
        one(encoder, &x, encoder.plan_record(&x, i), i)
    return 0


cdef int one(Encoder encoder, const Exchange* x, uint32_t room, long long i) except -1:
    cdef uint8_t* to = <uint8_t*>malloc(room)
    if to == NULL:
        raise MemoryError
    if i < 0:
        encoder.tx(x, to, 0, 0)
    else:
        encoder.record(x, <uint32_t>i, to, 0, 0)
    free(to)
    return 0
