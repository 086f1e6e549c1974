"""Doors for tests: what parses and matches, called from Python on bytes made by hand.

Nothing in gazer imports this.  Every input stands at the end of a mapping behind which no page is
readable, and every event is written between two rows of canaries: a read beyond the input ends the
process, a write beyond the room that was planned is an AssertionError.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_THREAD_CPUTIME_ID, clock_gettime, timespec

from gazer.entry cimport FORMATS, EventHeader, FrameEntry, frame_offset
from gazer.guarded cimport Guarded
from gazer.flow cimport flow_hash, packet_scope
from gazer.packet cimport (
    DNS, MAX_SCOPE, MAX_TUNNELS, Decoding, Fragment, Layer, Packet, packet_decode)
from gazer.ring cimport (
    MARK_END, Consumer, Producer, Ring, ring_claim, ring_commit, ring_lose, ring_mark, ring_poll,
    ring_publish, ring_release)
from gazer.text cimport Text
from gazer.workers.encode cimport Encoder
from gazer.workers.exchange cimport Exchange
from gazer.workers.message cimport (
    QUESTION, Message, message_append, message_decode, message_free, message_opcode, message_rcode,
    message_setup)
from gazer.workers.question cimport question_equal, question_hash
from gazer.workers.outer cimport Outer, outer_length
from gazer.workers.transaction cimport CELL, Key, Pending, Transactions

import ipaddress
import sys

from gazer.event import STATUSES
from gazer.packet import ENCAPSULATIONS, FATES, PROTOCOLS_OF_DNS
from gazer.workers.anomaly import NAMES
from gazer.workers.encode import entry_room

cdef enum:
    CANARY = 64
    SECTIONS = 4

SECTION_NAMES = ("question", "answer", "authority", "additional")


cdef Guarded PLACE = Guarded()


# --- packets -------------------------------------------------------------------------------------

cdef tuple vids(bytes frame, uint32_t offset, int count):
    return tuple((frame[offset + 4 * i] << 8 | frame[offset + 4 * i + 1]) & 0xFFF
                 for i in range(count))


cdef tuple ends(bytes frame, uint32_t offset, int family):
    """(source, destination)"""
    size = 4 if family == 4 else 16
    return tuple(str(ipaddress.ip_address(frame[at:at + size])) for at in (offset, offset + size))


def packet(bytes frame, int linktype=1, length=None, ports=(53,), **rules):
    """What packet_decode finds, as a dict; `length` is the frame's on the wire, `rules` are those
    of Decoding.  Only a packet has more than its fate, and a piece has `piece`."""
    cdef Packet p
    cdef Layer[MAX_TUNNELS] around
    cdef Fragment piece
    cdef uint8_t[MAX_SCOPE] scope
    cdef Decoding decoding = Decoding(ports, **rules)
    cdef const uint8_t* data = PLACE.put(frame)
    cdef uint32_t wire = len(frame) if length is None else length
    cdef int i
    fate = FATES[packet_decode(data, len(frame), wire, linktype, &decoding.rules, &p, around,
                               &piece)]
    if fate == "fragment":
        source, destination = ends(frame, piece.addresses_offset, piece.family)
        return {"fate": fate, "piece": {
            "src": source, "dst": destination, "protocol": piece.protocol, "id": piece.id,
            "offset": piece.offset, "more": bool(piece.more), "cut": bool(piece.cut),
            "head": piece.head_length,
            "payload": frame[piece.payload_offset:piece.payload_offset + piece.payload_length]}}
    if fate != "dns":
        return {"fate": fate}
    layers = []
    for i in range(p.layers):
        layer = {"type": ENCAPSULATIONS[around[i].kind],
                 "vlan": vids(frame, around[i].tags_offset, around[i].tags)}
        if around[i].has_id:
            layer["id"] = around[i].id
        if around[i].family:
            layer["src"], layer["dst"] = ends(frame, around[i].addresses_offset, around[i].family)
        layers.append(layer)
    source, destination = ends(frame, p.addresses_offset, p.family)
    n = packet_scope(data, len(frame), &p, around, scope)
    found = {
        "fate": fate,
        "protocol": PROTOCOLS_OF_DNS[p.protocol],
        "transport": p.transport,
        "vlan": vids(frame, p.tags_offset, p.tags),
        "layers": layers,
        "scope": (<const uint8_t*>scope)[:n],
        "cut": bool(p.cut),
        "src": source,
        "sport": p.source_port,
        "dst": destination,
        "dport": p.destination_port,
        "payload": frame[p.payload_offset:p.payload_offset + p.payload_length],
        "length": p.wire_payload,
    }
    if p.transport == 6:
        found["tcp"] = {"seq": p.tcp_sequence, "ack": p.tcp_acknowledgement, "flags": p.tcp_flags}
    return found


def flow(bytes frame, uint64_t seed=0, int linktype=1, ports=(53,), **rules):
    """The hash of the frame's flow; ValueError if it is no DNS packet."""
    cdef Packet p
    cdef Layer[MAX_TUNNELS] around
    cdef Fragment piece
    cdef Decoding decoding = Decoding(ports, **rules)
    cdef const uint8_t* data = PLACE.put(frame)
    if packet_decode(data, len(frame), len(frame), linktype, &decoding.rules, &p, around,
                     &piece) != DNS:
        raise ValueError("no DNS packet")
    return flow_hash(data, &p, seed)


# --- messages ------------------------------------------------------------------------------------

cdef class Reader:
    """A Message and the place of its bytes; `budget` is events.max_size."""

    cdef Message m
    cdef Guarded place

    def __cinit__(self, uint32_t budget=262144, bint edns=True):
        self.place = Guarded()
        message_setup(&self.m, budget, edns)

    def __dealloc__(self):
        message_free(&self.m)

    cdef int decode(self, bytes wire, bint cut) except -1:
        message_decode(&self.m, self.place.put(wire), len(wire), cut)
        m = &self.m
        assert m.arena.used <= m.arena.capacity and m.room <= m.budget
        assert m.records_read <= m.capacity
        return 0

    cdef str text(self, const Text* t):
        assert t.offset + t.length <= self.m.arena.capacity
        text = self.m.arena.base[t.offset:t.offset + t.length]
        assert all(0x20 <= b <= 0x7e for b in text), text
        assert t.escapes == text.count(b'"') + text.count(b"\\"), (text, t.escapes)
        return text.decode("ascii")

    def read(self, bytes wire, bint cut=False, *, uint8_t protocol=0, further=()):
        """The message as a dict; `further` are messages whose answers are appended to it."""
        cdef uint32_t i
        self.m.protocol = protocol
        self.decode(wire, cut)
        m = &self.m
        for other in further:
            message_append(m, self.place.put(other), len(other))
            assert m.arena.used <= m.arena.capacity and m.room <= m.budget
            assert m.records_read <= m.capacity
        records = []
        for i in range(m.records_read):
            r = &m.records[i]
            records.append((
                SECTION_NAMES[r.section], self.text(&r.name), r.type, r.klass,
                None if r.section == QUESTION else r.ttl,
                None if r.section == QUESTION else self.text(&r.data)))
        edns = None
        if m.edns.present:
            edns = {"version": m.edns.version, "extended_rcode": m.edns.extended_rcode,
                    "do": bool(m.edns.dnssec_ok), "udp_size": m.edns.udp_size}
            if m.want_edns:
                edns["client_subnet"] = self.text(&m.edns.subnet)
                edns["cookie"] = self.text(&m.edns.cookie)
                edns["nsid"] = self.text(&m.edns.nsid)
                edns["errors"] = [(m.edns.error_code[i], self.text(&m.edns.error_text[i]))
                                  for i in range(m.edns.errors)]
        return {
            "id": m.id, "flags": m.flags, "counts": tuple(m.counts[i] for i in range(SECTIONS)),
            "anomaly": NAMES[m.anomaly], "readable": bool(m.readable), "plain": bool(m.plain),
            "question_end": m.question_end, "records": records, "omitted": m.omitted,
            "tops": [m.records[i].top for i in range(m.records_read)], "dso": self.text(&m.dso),
            "room": m.room, "edns": edns, "rcode": message_rcode(m), "opcode": message_opcode(m),
        }

    def time(self, bytes wire, uint32_t times=1):
        """CPU nanoseconds of decoding it and hashing its question, the least of so many tries."""
        cdef const uint8_t* data = self.place.put(wire)
        cdef uint32_t length = len(wire), i
        cdef timespec a, b
        cdef int64_t least = -1, spent
        with nogil:
            for i in range(times):
                clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a)
                message_decode(&self.m, data, length, False)
                question_hash(data, length, self.m.question_end, self.m.counts[0], self.m.plain, i)
                clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b)
                spent = (b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec
                if least < 0 or spent < least:
                    least = spent
        return least

    def question_hash(self, bytes wire, uint64_t seed=0):
        """The hash of a readable message's question section."""
        self.decode(wire, False)
        m = &self.m
        assert m.readable
        return question_hash(m.wire, m.length, m.question_end, m.counts[0], m.plain, seed)

    def same_question(self, bytes wire, Reader other, bytes theirs):
        """True if both (readable) messages, with as many questions, ask the same."""
        self.decode(wire, False)
        other.decode(theirs, False)
        assert self.m.readable and other.m.readable and self.m.counts[0] == other.m.counts[0]
        return bool(question_equal(self.m.wire, self.m.length, other.m.wire, other.m.length,
                                   self.m.counts[0]))


# --- the table -----------------------------------------------------------------------------------

cdef bytes scope_bytes(vlan, vnis=()):
    """VLAN ids and VNIs as outer.pxd describes a scope."""
    return (b"".join(int(tag).to_bytes(2, "big") for tag in vlan)
            + b"".join((0x80000000 | vni).to_bytes(4, "big") for vni in vnis))


cdef bytes outer_bytes(vlan, tunnels):
    """An Outer of VLAN ids and levels: maps of type, id, source, destination."""
    levels = []
    for level in tunnels:
        ends = [ipaddress.ip_address(level[end]) for end in ("source", "destination")
                if end in level]
        levels.append(bytes([ENCAPSULATIONS.index(level["type"]), ends[0].version if ends else 0,
                             "id" in level])
                      + int(level.get("id", 0)).to_bytes(4, sys.byteorder)
                      + b"".join(end.packed for end in ends))
    return bytes([len(vlan)]) + scope_bytes(vlan) + bytes([len(levels)]) + b"".join(levels)


cdef Key make_key(Transactions table, parts):
    cdef Key key
    client, client_port, server, server_port, ident, vlan = parts
    a, b = ipaddress.ip_address(client), ipaddress.ip_address(server)
    tags = scope_bytes(vlan)
    packed = a.packed + b.packed + tags
    key.family = a.version
    key.transport = 17
    key.scope = len(tags)
    key.client_port = client_port
    key.server_port = server_port
    key.id = ident
    key.length = len(packed)
    memcpy(key.bytes, <const char*>packed, len(packed))
    table.key_hash(&key)
    return key


cdef class Table:
    """A table of transactions.  A key is (client, port, server, port, id, vlan)."""

    cdef Transactions table
    cdef Reader reader

    def __init__(self, *, max_pending, max_bytes, window=0, seed=1):
        self.table = Transactions(max_pending=max_pending, max_bytes=max_bytes, window=window,
                                  seed=seed)
        self.reader = Reader()

    cdef uint64_t hash(self):
        m = &self.reader.m
        return question_hash(m.wire, m.length, m.question_end, m.counts[0], m.plain,
                             self.table.seed)

    def has_room(self, length):
        return bool(self.table.has_room(length))

    def add(self, key, bytes wire, sequence, clock=0, time=0, size=None, tunnels=()):
        cdef Key k = make_key(self.table, key)
        cdef Outer outer
        cdef Pending* p
        outer.length = 0
        if tunnels:
            packed = outer_bytes(key[5], tunnels)
            outer.length = len(packed)
            memcpy(outer.bytes, <const char*>packed, len(packed))
        self.reader.decode(wire, False)
        assert self.table.has_room(len(wire) + outer.length)
        p = self.table.add(&k, <uint32_t>self.hash(), &outer if tunnels else NULL,
                           self.reader.m.wire, len(wire), clock, sequence, time)
        if size is not None:
            p.size = size

    def find(self, key, bytes wire):
        """The number (a place, not a sequence) of what waits for this message; 0: none."""
        cdef Key k = make_key(self.table, key)
        self.reader.decode(wire, False)
        return self.table.find(&k, <uint32_t>self.hash(), &self.reader.m)

    def remove(self, index):
        self.table.remove(index)

    def sequence(self, index):
        return self.table.at(index).sequence

    def query(self, index):
        return self.table.query(index)[:self.table.at(index).wire_length]

    def outer(self, index):
        """The outer identity that it came with, as bytes; None: no tunnel."""
        cdef const uint8_t* bytes_ = self.table.outer(index)
        return None if bytes_ == NULL else bytes_[:outer_length(bytes_)]

    def order(self):
        """The sequences that wait, from the oldest on; the chain is followed both ways."""
        there, back = [], []
        index = self.table.oldest
        while index:
            there.append(self.table.at(index).sequence)
            index = self.table.at(index).newer
        index = self.table.newest
        while index:
            back.append(self.table.at(index).sequence)
            index = self.table.at(index).older
        assert there == back[::-1]
        return there

    def oldest(self):
        return self.table.oldest

    def remember(self, key, question, clock):
        cdef Key k = make_key(self.table, key)
        self.table.remember(&k, question, clock)

    def remembered(self, key, question, clock):
        cdef Key k = make_key(self.table, key)
        return bool(self.table.remembered(&k, question, clock))

    @property
    def figures(self):
        """pending, cells in use, cells ever used, most cells, buckets, bytes of all tables."""
        t = self.table
        return {
            "pending": t.pending, "cells_used": t.cells_used, "touched": t.touched,
            "max_cells": t.max_cells, "buckets": t.bucket_mask + 1, "forgotten": t.forgotten,
            "answered_bytes": 16 * (t.answered_mask[0] + t.answered_mask[1] + 2),
            "bytes": t.touched * CELL + 4 * (t.bucket_mask + 1),
        }


# --- events --------------------------------------------------------------------------------------

cdef class Writer:
    """An Encoder between canaries.  `formats` as the Format numbers of entry.pxd."""

    cdef Encoder encoder
    cdef Reader query
    cdef Reader reply
    cdef list formats
    cdef uint32_t max_size

    def __init__(self, *, full, formats, uint32_t max_size=262144, sensor="sensor-1", run=None):
        self.encoder = Encoder(full=full, formats=formats, max_size=max_size, sensor=sensor,
                               run=run)
        self.query = Reader(self.encoder.budget, full)
        self.reply = Reader(self.encoder.budget, full)
        self.formats = sorted(formats)
        self.max_size = max_size

    def events(self, *, query=None, reply=None, client, client_port, server, server_port, ident,
               vlan=(), status="success", query_time=0, reply_time=0, repeats=0, records=False,
               clock=0, sequence=0, query_size=None, reply_size=None, transport=17,
               protocol="dns", vnis=(), tunnels=(), transfer=None, lossy=False, place=(1, 0, 0)):
        """The tx event, or with `records` those of the one message: for each event a dict of
        format number -> bytes.  Also returns what the encoder says was omitted.

        `tunnels`: levels as maps, and then `vlan` tells of all levels; `transfer`: (complete,
        messages, records, bytes); `place`: (frame's number, index, clock or 0), for the id."""
        cdef Exchange x
        cdef uint32_t i, planned
        memset(&x, 0, sizeof(x))
        a, b = ipaddress.ip_address(client), ipaddress.ip_address(server)
        ends = a.packed + b.packed
        scope = scope_bytes(vlan, vnis)
        outer = outer_bytes(vlan, tunnels)
        x.addresses = <const uint8_t*><const char*>ends
        x.scope = <const uint8_t*><const char*>scope
        x.scope_length = len(scope)
        x.outer = <const uint8_t*><const char*>outer if tunnels else NULL
        x.family = a.version
        x.transport = transport
        x.protocol = PROTOCOLS_OF_DNS.index(protocol)
        x.lossy = lossy
        if transfer is not None:
            x.transfer = True
            x.complete, x.messages, x.records, x.bytes = transfer
        x.client_port = client_port
        x.server_port = server_port
        x.id = ident
        x.status = STATUSES.index(status)
        x.query_time = query_time
        x.reply_time = reply_time
        x.repeats = repeats
        self.query.m.protocol = self.reply.m.protocol = x.protocol
        if query is not None:
            self.query.decode(query, False)
            x.query = &self.query.m
            x.query_size = len(query) if query_size is None else query_size
        if reply is not None:
            self.reply.decode(reply, False)
            x.reply = &self.reply.m
            x.reply_size = len(reply) if reply_size is None else reply_size
        self.encoder.identify(place[0], place[1], place[2])
        if not records:
            return [self.one(&x, self.encoder.plan_tx(&x), -1, clock, sequence)], \
                self.encoder.omitted
        events = []
        for i in range(x.reply.records_read if x.query == NULL else x.query.records_read):
            planned = self.encoder.plan_record(&x, i)
            events.append(self.one(&x, planned, i, clock, sequence))
        return events, 0

    cdef dict one(self, const Exchange* x, uint32_t planned, int64_t i, uint64_t clock,
                  uint64_t sequence):
        cdef char* memory
        cdef EventHeader* header
        cdef uint32_t used, at = sizeof(EventHeader)
        assert planned <= entry_room(self.max_size, len(self.formats)), "more than a ring's entry"
        memory = <char*>malloc(planned + 2 * CANARY)
        if memory == NULL:
            raise MemoryError
        try:
            memset(memory, 0xa5, planned + 2 * CANARY)
            to = <uint8_t*>memory + CANARY
            if i < 0:
                used = self.encoder.tx(x, to, clock, sequence)
            else:
                used = self.encoder.record(x, <uint32_t>i, to, clock, sequence)
            assert used <= planned, (used, planned)
            row = b"\xa5" * CANARY
            assert memory[:CANARY] == row, "written before the room"
            assert memory[CANARY + planned:2 * CANARY + planned] == row, "written beyond the room"
            header = <EventHeader*>to
            assert header.clock == clock and header.sequence == sequence
            out = {}
            for number in range(FORMATS):
                if number in self.formats:
                    out[number] = memory[CANARY + at:CANARY + at + header.lengths[number]]
                    at += header.lengths[number]
                else:
                    assert header.lengths[number] == 0
            assert at == used
            return out
        finally:
            free(memory)


# --- the engine's rings --------------------------------------------------------------------------

cdef class FrameRing:
    """Capture's end of a frame ring."""

    cdef Ring ring
    cdef Producer producer
    cdef Decoding decoding

    def __init__(self, Ring ring, ports=(53,), **rules):
        self.ring = ring
        self.producer = ring.producer(-1)
        self.decoding = Decoding(ports, **rules)

    def put(self, bytes frame, uint64_t sequence, uint64_t clock, int64_t time, length=None,
            int linktype=1):
        """Decode the frame and put it into the ring; its fate."""
        cdef Packet p
        cdef FrameEntry* entry
        cdef Layer[MAX_TUNNELS] around
        cdef Fragment piece
        cdef uint32_t wire = len(frame) if length is None else length
        cdef uint32_t size
        cdef const uint8_t* data = <const uint8_t*><const char*>frame
        fate = packet_decode(data, len(frame), wire, linktype, &self.decoding.rules, &p, around,
                             &piece)
        if fate == DNS:
            size = sizeof(FrameEntry) + p.layers * sizeof(Layer) + len(frame)
            entry = <FrameEntry*>ring_claim(&self.producer, size)
            if entry == NULL:
                raise BufferError("the ring is full")
            entry.sequence = sequence
            entry.clock = clock
            entry.time = time
            entry.caplen = len(frame)
            entry.linktype = linktype
            entry.packet = p
            memcpy(<uint8_t*>entry + sizeof(FrameEntry), around, p.layers * sizeof(Layer))
            memcpy(<uint8_t*>entry + frame_offset(entry), data, len(frame))
            ring_commit(&self.producer, size)
        return FATES[fate]

    def mark(self, clock=None, sequence=0):
        """Publish, and say that nothing earlier follows; without a clock: nothing at all."""
        ring_publish(&self.producer)
        ring_mark(&self.producer, MARK_END if clock is None else <uint64_t>clock, sequence)

    def lose(self, uint64_t clock):
        """Say that a frame was lost."""
        ring_lose(&self.producer, clock)


cdef class EventRing:
    """The sink's end of an event ring."""

    cdef Ring ring
    cdef Consumer consumer

    def __init__(self, Ring ring):
        self.ring = ring
        self.consumer = ring.consumer(-1)

    def take(self):
        """All events there: (clock, sequence, time, {format: bytes})."""
        cdef uint32_t n, at
        cdef uint8_t* entry
        cdef EventHeader* h
        events = []
        while True:
            entry = ring_poll(&self.consumer, &n)
            if entry == NULL:
                break
            h = <EventHeader*>entry
            at = sizeof(EventHeader)
            texts = {}
            for number in range(FORMATS):
                if h.lengths[number]:
                    texts[number] = (<char*>entry)[at:at + h.lengths[number]]
                    at += h.lengths[number]
            assert at == n
            events.append((h.clock, h.sequence, h.time, texts))
        assert not self.consumer.corrupt
        ring_release(&self.consumer)
        return events

    @property
    def mark(self):
        """The watermark: (clock, sequence); the clock None where nothing will follow."""
        h = self.consumer.ring
        return None if h.mark_clock == MARK_END else h.mark_clock, h.mark_sequence
