"""A door for tests: zone transfers, called from Python on bytes made by hand.

Nothing in gazer imports this.  Every message stands at the end of a mapping behind which no page is
readable while it is walked, and is gone (overwritten) when the table is asked for what it kept.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_THREAD_CPUTIME_ID, clock_gettime, timespec

from gazer.guarded cimport Guarded
from gazer.text cimport Text
from gazer.workers.message cimport (
    QUESTION, Message, message_free, message_rcode, message_setup)
from gazer.workers.transaction cimport Key
from gazer.workers.transfer cimport (
    TRANSFER_CELL, Transfer, TransferState, Transfers, transfer_begin, transfer_complete,
    transfer_feed)

from gazer.workers.anomaly import NAMES

RESULTS = ("more", "whole", "broken")
SECTION_NAMES = ("question", "answer", "authority", "additional")
SLOT_BYTES = sizeof(Transfer)
CELL_BYTES = TRANSFER_CELL


cdef dict figures(const TransferState* s):
    return {
        "result": RESULTS[s.result], "complete": bool(transfer_complete(s)), "rcode": s.rcode,
        "messages": s.messages, "records": s.records, "bytes": s.octets,
    }


# --- the state machine ---------------------------------------------------------------------------

cdef class Machine:
    """The state machine alone.  `qtype`: 252, 251, or 0 where nobody knows."""

    cdef TransferState state
    cdef Guarded place
    cdef uint16_t qtype
    cdef bint begun

    def __init__(self, uint16_t qtype):
        self.place = Guarded()
        self.qtype = qtype

    def feed(self, bytes wire):
        """The next message (the first one: the first): "more", "whole" or "broken"."""
        cdef const uint8_t* data = self.place.put(wire)
        if self.begun:
            return RESULTS[transfer_feed(&self.state, data, len(wire))]
        self.begun = True
        return RESULTS[transfer_begin(&self.state, data, len(wire), self.qtype)]

    def time(self, bytes wire, uint32_t times):
        """CPU nanoseconds of walking it, the least of so many tries."""
        cdef const uint8_t* data = self.place.put(wire)
        cdef timespec a, b
        cdef int64_t least = -1, spent
        cdef uint32_t _, length = len(wire)
        with nogil:
            for _ in range(times):
                clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a)
                transfer_begin(&self.state, data, length, 252)
                clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b)
                spent = (b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec
                if least < 0 or spent < least:
                    least = spent
        return least

    @property
    def figures(self):
        return figures(&self.state)

    @property
    def answers(self):
        """Of the last message: how many, and where they end."""
        return self.state.answers, self.state.answers_end


# --- the table -----------------------------------------------------------------------------------

cdef class Table:
    """A table of transfers; messages are shown as with `budget`."""

    cdef Transfers table
    cdef Message m
    cdef Guarded place
    cdef Guarded second

    def __cinit__(self, *, max_transfers=8, max_bytes=1 << 20, budget=65536, seed=1):
        self.table = Transfers(max_transfers=max_transfers, max_bytes=max_bytes, budget=budget,
                               seed=seed)
        self.place = Guarded()
        self.second = Guarded()
        message_setup(&self.m, budget, True)

    def __dealloc__(self):
        message_free(&self.m)

    def find(self, serial, direction, ident, question=None):
        return self.table.find(serial, direction, ident, 0 if question is None else question,
                               question is not None)

    def full(self, serial, direction, ident, length):
        return self.table.full(serial, direction, ident, length)

    def begin(self, serial, direction, ident, bytes wire, *, question=None, qtype=252,
              bytes query=b"", clock=0, sequence=0, time=0, key=b"", outer=b""):
        """Its index."""
        cdef Key k
        cdef Transfer* t
        memset(&k, 0, sizeof(k))
        k.id = ident
        k.length = len(key)
        memcpy(k.bytes, <const char*>key, len(key))
        index = self.table.begin(
            serial, direction, &k, 0 if question is None else question, question is not None,
            qtype, self.second.put(query), len(query), self.place.put(wire), len(wire), clock,
            sequence, time)
        t = self.table.at(index)
        assert not t.matched and t.outer_length == 0 and t.query_size == 0 and t.repeats == 0
        t.outer_length = len(outer)
        memcpy(t.outer, <const char*>outer, len(outer))
        self.place.wipe()
        self.second.wipe()
        return index

    def crowded(self, index, length):
        return self.table.crowded(index, length)

    def go_on(self, index, bytes wire, *, clock=0, sequence=0, time=0):
        result = self.table.go_on(index, self.place.put(wire), len(wire), clock, sequence, time)
        self.place.wipe()
        assert result == self.table.at(index).state.result
        return RESULTS[result]

    def remove(self, index):
        self.table.remove(index)

    def query(self, index):
        return self.table.query(index)[:self.table.at(index).query_length]

    def transfer(self, index):
        """What the slot says."""
        t = self.table.at(index)
        return figures(&t.state) | {
            "serial": t.serial, "direction": t.direction, "id": t.id, "kept": t.kept_messages,
            "used": t.used, "first": (t.first_clock, t.first_sequence, t.first_time),
            "last": (t.last_clock, t.last_sequence, t.last_time),
            "key": bytes((<uint8_t*>t.key.bytes)[:t.key.length]),
            "outer": bytes((<uint8_t*>t.outer)[:t.outer_length]),
        }

    cdef str text(self, const Text* t):
        assert t.offset + t.length <= self.m.arena.capacity
        return self.m.arena.base[t.offset:t.offset + t.length].decode("ascii")

    def message(self, index):
        """The one message made of it: (section, name, type, data) of its records, and the rest."""
        cdef uint32_t i
        self.m.protocol = 1         # whatever was decoded into it before
        self.table.message(index, &self.m)
        m = &self.m
        assert m.arena.used <= m.arena.capacity and m.room <= m.budget
        assert m.records_read <= m.capacity
        records = []
        for i in range(m.records_read):
            r = &m.records[i]
            records.append((SECTION_NAMES[r.section], self.text(&r.name), r.type,
                            None if r.section == QUESTION else self.text(&r.data)))
        return {"records": records, "omitted": m.omitted, "anomaly": NAMES[m.anomaly],
                "flags": m.flags, "id": m.id, "rcode": message_rcode(m)}

    def of(self, serial, direction):
        """The indexes of those open on one direction, in the order of their beginning."""
        found = []
        index = self.table.first_of(serial, direction)
        while index:
            found.append(index)
            index = self.table.next_of(index)
        return found

    def order(self):
        """All indexes, the one continued the longest ago first; the chain is followed both ways."""
        there, back = [], []
        index = self.table.oldest
        while index:
            there.append(index)
            index = self.table.at(index).newer
        index = self.table.newest
        while index:
            back.append(index)
            index = self.table.at(index).older
        assert there == back[::-1] and len(there) == self.table.count
        return there

    @property
    def figures(self):
        t = self.table
        cells = t.cells_used
        assert t.bytes == <uint64_t>t.count * sizeof(Transfer) + <uint64_t>cells * TRANSFER_CELL
        return {"count": t.count, "cells": cells, "max_cells": t.max_cells, "bytes": t.bytes,
                "touched_cells": t.touched_cells - 1, "touched_slots": t.touched_slots - 1}
