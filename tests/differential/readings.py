"""One message as each of the three reads it, in one form: its records, one after the other.

dnspython's own Message sorts records into sets, drops repeated ones and stops at the first fault.
Its parts do not: here its Parser reads names and numbers, and its rdata classes each record's data,
in the order of the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import dns.exception
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.wire
import dnslib

Labels = tuple[bytes, ...]

class Lenient(dns.wire.Parser):
    """dnspython's parser with three of its rules undone: where a sender must not compress, how many
    pointers a name may have, and that a pointer's target must end ahead of the name."""

    in_name = False
    after: int | None = None        # the first pointer of the name in hand

    def get_name(self, origin: Any = None, decompress: bool = True) -> dns.name.Name:
        limit = getattr(dns.name, CHAIN, None)
        setattr(dns.name, CHAIN, 128)
        self.in_name, self.after = True, None
        try:
            name = dns.name.from_wire_parser(self)
        finally:
            self.in_name = False
            setattr(dns.name, CHAIN, limit)
        if self.after is not None:
            self.current = self.furthest = self.after
        return name

    def seek(self, where: int) -> None:
        if self.in_name:
            if self.after is None:
                self.after = self.current
            self.end = len(self.wire)       # behind a pointer, a record's end is none
        super().seek(where)

    def restrict_end(self, end: int) -> None:
        pass


CHAIN = "MAX_COMPRESSION_POINTER_CHAIN"

# Types that dnspython does not know, and the one of the same form that it does.
ALIKE = {3: 2, 4: 2, 7: 2, 8: 2, 9: 2, 14: 17, 32768: 43}
NONE, ANY, IN = 254, 255, 1

# dnspython looks for a type's form in class ANY before IN; one that only IN has, if it first meets
# it in class ANY, is generic in all classes from then on.  So it meets all of them in IN.
for _type in (*range(1, 300), 32768, 32769, 65280):
    dns.rdata.get_rdata_class(dns.rdataclass.IN, dns.rdatatype.RdataType.make(_type))

# Rdata without names is the same wherever it stands: what dnspython makes of it is remembered.
ALONE = frozenset((1, 16, 28, 43, 48, 50, 51, 52, 44, 257, 61, 59, 60, 13, 29, 99, 256, 108, 109))


@dataclass(slots=True)
class Theirs:
    """One record as dnspython has it; `text` is None where it refuses the data."""

    section: int
    name: str
    type: int
    rdclass: int
    ttl: int | None
    text: str | None
    rdata: bytes
    refused: str
    alike: str | None       # ... as class IN where it is NONE or ANY, or as a type of the same form


@dataclass(slots=True)
class Reading:
    id: int
    flags: int
    counts: tuple[int, ...]
    records: list[Theirs]
    fault: str          # where it stopped: the exception's name
    trailing: int       # octets behind the last record


@lru_cache(maxsize=65536)
def name_text(labels: Labels) -> str:
    """RFC 1035 5.1, RFC 4343 2.1: a dot and a backslash within a label get a backslash, what is not
    printable is \\DDD, and a space counts as that."""
    out = []
    for label in labels:
        for octet in label:
            if octet in b".\\":
                out.append("\\" + chr(octet))
            elif 0x21 <= octet <= 0x7E:
                out.append(chr(octet))
            else:
                out.append(f"\\{octet:03d}")
        out.append(".")
    return "".join(out) or "."


@lru_cache(maxsize=65536)
def _alone(rdclass: int, rdtype: int, rdata: bytes) -> tuple[str | None, str]:
    return _rdata(rdclass, rdtype, dns.wire.Parser(rdata), len(rdata))


def _rdata(rdclass: int, rdtype: int, parser: dns.wire.Parser, n: int) -> tuple[str | None, str]:
    try:
        with parser.restrict_to(n):
            return dns.rdata.from_wire_parser(rdclass, rdtype, parser).to_text(), ""
    except Exception as refused:        # of any kind: ValueError, struct.error, ...
        return None, type(refused).__name__


def dnspython(wire: bytes, kind: type[dns.wire.Parser] = dns.wire.Parser) -> Reading:
    """A header's 12 octets must be there."""
    parser = kind(wire)
    ident, flags, *counts = parser.get_struct("!HHHHHH")
    records: list[Theirs] = []
    fault = ""
    try:
        for section, n in enumerate(counts):
            for _ in range(n):
                if kind is Lenient:
                    labels = parser.get_name().labels[:-1]
                else:
                    labels = dns.name.from_wire_parser(parser).labels[:-1]
                if section == 0:
                    rdtype, rdclass = parser.get_struct("!HH")
                    records.append(
                        Theirs(0, name_text(labels), rdtype, rdclass, None, None, b"", "", None))
                    continue
                rdtype, rdclass, ttl, size = parser.get_struct("!HHIH")
                start = parser.current
                rdata = wire[start:start + size]
                if len(rdata) < size:
                    raise dns.exception.FormError
                if rdtype in ALONE:
                    text, refused = _alone(rdclass, rdtype, rdata)
                else:
                    text, refused = _rdata(rdclass, rdtype, parser, size)
                alike = None
                if rdclass in (NONE, ANY) or rdtype in ALIKE:
                    parser.seek(start)
                    parser.furthest = start         # after a pointer it goes on from there
                    alike = _rdata(IN if rdclass in (NONE, ANY) else rdclass,
                                   ALIKE.get(rdtype, rdtype), parser, size)[0]
                parser.seek(start + size)
                records.append(Theirs(section, name_text(labels), rdtype, rdclass, ttl, text,
                                      rdata, refused, alike))
    except (dns.exception.DNSException, ValueError) as why:
        fault = type(why).__name__
    return Reading(ident, flags, tuple(counts), records, fault, parser.remaining())


# --- dnslib --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Dnslib:
    section: int
    labels: Labels
    type: int
    rdclass: int
    ttl: int | None
    data: Any           # labels and numbers of the types below; None for others


def _labels(name: Any) -> Labels:
    return tuple(name.label)


def _data(rr: Any) -> Any:
    """The data of the oldest types; dnslib's texts have rules of their own."""
    rd = rr.rdata
    if rr.rclass != 1:
        return None
    if rr.rtype == 1:
        return ".".join(map(str, rd.data))
    if rr.rtype == 28:
        return bytes(rd.data)
    if rr.rtype in (2, 5, 12):
        return (_labels(rd.label),)
    if rr.rtype == 15:
        return rd.preference, _labels(rd.label)
    if rr.rtype == 33:
        return rd.priority, rd.weight, rd.port, _labels(rd.target)
    if rr.rtype == 6:
        return _labels(rd.mname), _labels(rd.rname), *rd.times
    return None


def by_dnslib(wire: bytes) -> tuple[int, int, list[Dnslib]] | None:
    """Id, flags and records; None where dnslib refuses the message."""
    try:
        read = dnslib.DNSRecord.parse(wire)
        records = [Dnslib(0, _labels(q.qname), q.qtype, q.qclass, None, None)
                   for q in read.questions]
        for section, rrs in enumerate((read.rr, read.auth, read.ar), 1):
            for rr in rrs:
                edns = rr.rtype == 41   # its class and TTL are taken apart
                records.append(Dnslib(section, _labels(rr.rname), rr.rtype, rr.rclass,
                                      rr.ttl, None if edns else _data(rr)))
    except Exception:                   # its own errors, and what it never meant to raise
        return None
    return read.header.id, read.header.bitmap, records
