"""One DNS message → its questions and records.

The structure is walked here, octet by octet, and not by dnspython: dnspython refuses, and more of
it with each version, what a sensor must show (a DS digest of the wrong length, a name with
seventeen pointers). Where dnspython accepts a record both must agree; the tests
of the oracle hold that. How names and data are shown is rdata.py's.

- Rdata that does not fit its type is shown by RFC 3597; that is a fault, but its record's ends are
  sound, so reading goes on. At a fault outside of rdata reading stops; what came before stands.
- An UPDATE's sections are zone, prerequisite, update and additional (RFC 2136 2).
- In mDNS the top bit of a record's class says that caches are to be flushed (RFC 6762 10.2), that
  of a question's class that a unicast response will do (5.4). Neither is part of the class, also
  where questions are compared; an OPT's class is its UDP size and keeps all its bits.
- A DSO message (RFC 8490 5.4) of which all counts are zero holds TLVs; one that breaks off is a
  fault. With other counts it is read as any message.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .rdata import ONLY_IN as _ONLY_IN
from .rdata import Fault, Reader, generic, name_text, opt, rdata_text, type_text

__all__ = ["_ONLY_IN", "Message", "Reader", "Record", "name_text", "read", "type_text"]

SECTIONS = ("question", "answer", "authority", "additional")
UPDATE_SECTIONS = ("zone", "prerequisite", "update", "additional")
UPDATE, DSO = 5, 6
OPT = 41
DSO_TYPES = {1: "KEEPALIVE", 2: "RETRYDELAY", 3: "PADDING", 0x40: "SUBSCRIBE", 0x41: "PUSH",
             0x42: "UNSUBSCRIBE", 0x43: "RECONFIRM"}  # RFC 8490, RFC 8765
CLASSES = {1: "IN", 3: "CH", 4: "HS", 254: "NONE", 255: "ANY"}
OPCODES = {0: "QUERY", 1: "IQUERY", 2: "STATUS", 4: "NOTIFY", 5: "UPDATE", 6: "DSO"}
RCODES = {
    0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED",
    6: "YXDOMAIN", 7: "YXRRSET", 8: "NXRRSET", 9: "NOTAUTH", 10: "NOTZONE", 11: "DSOTYPENI",
    16: "BADVERS", 17: "BADKEY", 18: "BADTIME", 19: "BADMODE", 20: "BADNAME", 21: "BADALG",
    22: "BADTRUNC", 23: "BADCOOKIE",
}
FLAGS = (("aa", 0x0400), ("tc", 0x0200), ("rd", 0x0100), ("ra", 0x0080), ("ad", 0x0020),
         ("cd", 0x0010))


@dataclass(frozen=True)
class Record:
    """`data` and `ttl` are None in a question; in an OPT, `ttl` and `rdclass` are its own.
    `place` is the number of its section, whatever the name; `top` the top bit of an mDNS class."""

    place: int
    section: str
    labels: tuple[bytes, ...]
    rdtype: int
    rdclass: int
    ttl: int | None = None
    data: str | None = None
    top: bool = False

    @property
    def name(self) -> str:
        return name_text(self.labels)

    @property
    def type(self) -> str:
        return type_text(self.rdtype)

    @property
    def class_text(self) -> str:
        return CLASSES.get(self.rdclass, f"CLASS{self.rdclass}")


@dataclass(frozen=True)
class Message:
    """What could be read; `fault` is the first thing that was wrong, None when nothing was."""

    id: int
    flags: int
    records: tuple[Record, ...]
    fault: str | None
    dso: str | None = None

    @property
    def is_reply(self) -> bool:
        return bool(self.flags & 0x8000)

    @property
    def question(self) -> tuple[tuple[tuple[bytes, ...], int, int], ...]:
        """The question section in the form in which two of them are compared: of more than 16
        questions the first 16, and how many there are."""
        asked = [r for r in self.records if r.place == 0]
        compared = tuple((tuple(label.lower() for label in r.labels), r.rdtype, r.rdclass)
                         for r in asked[:16])
        return compared if len(asked) <= 16 else (*compared, ((), len(asked), 0))

    @property
    def answers(self) -> list[Record]:
        return [r for r in self.records if r.place == 1]

    @property
    def opcode(self) -> str:
        code = self.flags >> 11 & 15
        return OPCODES.get(code, f"OPCODE{code}")

    @property
    def rcode(self) -> str:
        code = self.flags & 15
        for record in self.records:
            if record.rdtype == OPT and record.place == 3:
                assert record.ttl is not None
                code |= record.ttl >> 24 << 4
                break
        return RCODES.get(code, f"RCODE{code}")

    @property
    def flag_text(self) -> str:
        return " ".join(name for name, bit in FLAGS if self.flags & bit)


def read(wire: bytes, protocol: str = "dns") -> Message | None:
    """The message, or None where not even its header and all its questions can be read."""
    if len(wire) < 12:
        return None
    ident, flags, *counts = struct.unpack_from("!6H", wire)
    opcode, mdns = flags >> 11 & 15, protocol == "mdns"
    sections = UPDATE_SECTIONS if opcode == UPDATE else SECTIONS
    records: list[Record] = []
    reader = Reader(wire, 12, len(wire))
    faults: list[str] = []
    if opcode == DSO and not any(counts):
        tlvs = _tlvs(reader, faults)
        return Message(ident, flags, (), faults[0] if faults else None, tlvs)
    try:
        for place, count in enumerate(counts):
            for _ in range(count):
                records.append(_record(reader, place, sections[place], mdns, faults))
    except Fault as why:
        if place == 0:
            return None
        faults.append(str(why))
    return Message(ident, flags, tuple(records), faults[0] if faults else None)


def _record(reader: Reader, place: int, section: str, mdns: bool, faults: list[str]) -> Record:
    labels = reader.name()
    rdtype, rdclass = reader.u16(), reader.u16()
    top = mdns and rdclass >= 0x8000 and (rdtype != OPT or place == 0)
    if top:
        rdclass &= 0x7FFF
    if place == 0:
        return Record(place, section, labels, rdtype, rdclass, top=top)
    ttl, size = reader.u32(), reader.u16()
    if size > reader.left():
        raise Fault("rdata beyond the end")
    rdata = Reader(reader.wire, reader.at, reader.at + size)
    try:
        data = opt(rdata, rdclass, ttl) if rdtype == OPT else rdata_text(rdata, rdtype, rdclass)
        if rdata.left():
            raise Fault("rdata longer than its fields")
    except Fault as why:
        faults.append(f"rdata: {why}")
        data = generic(Reader(reader.wire, reader.at, reader.at + size))
    reader.at += size
    return Record(place, section, labels, rdtype, rdclass, ttl, data, top)


def _tlvs(reader: Reader, faults: list[str]) -> str:
    shown = []
    try:
        while reader.left():
            kind, size = reader.u16(), reader.u16()
            name = DSO_TYPES.get(kind, f"TLV{kind}")
            shown.append(f"{name} {reader.octets(size).hex()}".rstrip())
    except Fault as why:
        faults.append(f"dso: {why}")
    return ", ".join(shown)
