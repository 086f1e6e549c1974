"""What the tests of the spool share."""

import contextlib
import os
import struct

from gazer.sinks import position, segments, spool, survey
from gazer.sinks.spool import Spool

MODULES = (position, segments, spool, survey)
KINDS = ("found", "spooled", "delivered", "dropped", "damaged", "there")


class Open:
    """A spool with small segments, and the lines it told."""

    def __init__(self, folder, *, max_bytes=1 << 20, segment_bytes=400, drop="oldest"):
        self.told = []
        self.spool = Spool(str(folder), max_bytes=max_bytes, segment_bytes=segment_bytes,
                           drop=drop, notice=self.told.append)

    def __enter__(self):
        return self.spool

    def __exit__(self, *_):
        self.spool.close()


def payload_of(n, size=40):
    """The payload of the n-th chunk: no two are the same, and it says which it is."""
    return (struct.pack("<I", n) * (size // 4 + 4))[:size + n % 7 + 4]


def number_of(payload):
    n, = struct.unpack_from("<I", payload)
    assert bytes(payload) == payload_of(n, len(payload) - n % 7 - 4)
    return n


def events_of(n):
    return n % 5 + 1


def append(spool, n, size=40):
    return spool.append(payload_of(n, size), tag=b"dns.tx", events=events_of(n),
                        chunk=b"chunk-%d" % n, compressed="gzip" if n % 2 else "", run=7, upto=n)


def genuine(record):
    """The n of a record, which is as it was appended in every field."""
    n = number_of(record.payload)
    assert (record.tag, record.events, record.chunk, record.compressed) == (
        b"dns.tx", events_of(n), b"chunk-%d" % n, "gzip" if n % 2 else "")
    return n


def read_all(spool, *, ack=True):
    found = []
    while (record := spool.next()) is not None:
        found.append(genuine(record))
        if ack:
            assert spool.ack(record)
    assert found == sorted(set(found))
    return found


def account(spool):
    """The counts, which add up in records and in events."""
    counts = spool.counts()
    for unit in ("", "_records"):
        found, spooled, delivered, dropped, damaged, there = (counts[k + unit] for k in KINDS)
        assert found + spooled == delivered + dropped + damaged + there, counts
        assert min(found, spooled, delivered, dropped, damaged, there) >= 0, counts
    assert counts["there"] == spool.events
    assert counts["bytes"] == spool.bytes
    return counts


def disk(folder):
    return sum(entry.stat().st_size for entry in os.scandir(folder))


class Wrapped:
    """The os module of the spool, with some of its functions replaced."""

    def __init__(self, **functions):
        self.__dict__.update(functions)

    def __getattr__(self, name):
        return getattr(os, name)


@contextlib.contextmanager
def system(wrapped):
    before = MODULES[0].os
    for module in MODULES:
        module.os = wrapped
    try:
        yield wrapped
    finally:
        for module in MODULES:
            module.os = before


def without_syncs():
    """For tests that open thousands of spools, and no host goes down."""
    return system(Wrapped(fsync=lambda fd: None, fdatasync=lambda fd: None))
