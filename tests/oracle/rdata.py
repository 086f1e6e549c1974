r"""Names and record data in presentation format, in one normal form, and why it is so:

- Names: RFC 1035 5.1 and RFC 4343 2.1. Octets 0x21-0x7e stand as they are but for `.` and `\`,
  which get a backslash; all others are `\DDD`; always the final dot. dnspython escapes `"();@$`
  too, which matters in a zone file only.
- Character-strings (TXT, NAPTR, CAA's value): in double quotes, `"` and `\` with a backslash,
  0x20-0x7e as they are, the rest `\DDD`. One string of a TXT is parted from the next by one space.
- Base64 and hex in one piece: the chunks that dnspython and zone files write are for lines on
  paper, and a reader of events would have to join them. Hex and base32hex in lower case, as
  dnspython has them. An empty NSEC3 salt is `-` (RFC 5155 3.3); a KEY may be without a key.
- Addresses as inet_ntop writes them (RFC 5952; `::ffff:192.0.2.1` in the mixed form).
- RRSIG times as YYYYMMDDHHMMSS, unsigned 32 bits; algorithms as numbers.
- Types by IANA mnemonic, most as dnspython has it, else `TYPE65280`; also in RRSIG and in bitmaps.
- SVCB and HTTPS: RFC 9460 2.1 with every value in double quotes, as dnspython writes it
  (`port="443"`); a key without a value is bare. Keys above 8 are `key9`, since libraries differ in
  what they know.
- LOC in full but for sizes and precisions at their defaults; a version or a size that RFC 1876 does
  not know is a fault. Every other type is RFC 3597 (`\# 4 c0a80001`).
- Rdata is read by type alone, whatever the class (CH TXT), but types that only class IN has are RFC
  3597 in others. NONE and ANY are read as IN, and no rdata in them is what updates are made of (RFC
  2136 2.4, 2.5) and is `\# 0`.
- OPT: `FLAGS=DO UDPSIZE=1232`, here without the options; compare.py looks at these two only.

Faults: the message ends, a name is over 255 octets, a label type that is not 00 or 11 (RFC 1035
4.1.4), a pointer that does not point before the part of the name it ends; in rdata: it is shorter
or longer than its fields, an empty TXT, NSEC3 hash, digest or key, a CAA tag that is not letters
and digits (RFC 8659 4.1), bitmap windows out of order, not of 1-32 octets or with a zero at the end
(RFC 4034 4.1.2), SVCB keys out of order or a value of the wrong form (RFC 9460 2.2). No fault is
what can be shown and is merely senseless: a digest of the wrong length, parameters in AliasMode,
`mandatory` without its keys. Pointers are followed in any rdata name, also where senders must not
use them.
"""

from __future__ import annotations

import base64
import socket
import time
from collections.abc import Callable
from itertools import pairwise

import dns.rdatatype


class Fault(Exception):
    """The message can't be read on from here."""


class Reader:
    """A window on the message; names may follow pointers out of it."""

    def __init__(self, wire: bytes, at: int, end: int) -> None:
        self.wire, self.at, self.end = wire, at, end

    def left(self) -> int:
        return self.end - self.at

    def octets(self, size: int) -> bytes:
        if size > self.left():
            raise Fault("cut off")
        self.at += size
        return self.wire[self.at - size : self.at]

    def rest(self) -> bytes:
        return self.octets(self.left())

    def u8(self) -> int:
        return self.octets(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.octets(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.octets(4), "big")

    def string(self) -> bytes:
        return self.octets(self.u8())

    def name(self) -> tuple[bytes, ...]:
        """The labels, without the root's."""
        labels: list[bytes] = []
        start, part, total = self.at, self, 1
        while True:
            size = part.u8()
            if size == 0:
                return tuple(labels)
            if size < 0x40:
                labels.append(part.octets(size))
                total += size + 1
                if total > 255:
                    raise Fault("name too long")
            elif size >= 0xC0:
                target = (size & 0x3F) << 8 | part.u8()
                if target >= start:
                    raise Fault("pointer not backwards")
                start, part = target, Reader(self.wire, target, len(self.wire))
            else:
                raise Fault("label type")


# ------------------------------------------------------------------------------- presentation


def name_text(labels: tuple[bytes, ...]) -> str:
    return "".join(_escape(label, special=b".\\", first=0x21) + "." for label in labels) or "."


# Of IANA's registry, what dnspython lacks.
_MNEMONICS = {31: "EID", 32: "NIMLOC", 34: "ATMA", 40: "SINK", 57: "RKEY", 58: "TALINK",
              100: "UINFO", 101: "UID", 102: "GID", 259: "DOA", 263: "CLA", 264: "IPN"}


def type_text(rdtype: int) -> str:
    return _MNEMONICS.get(rdtype) or dns.rdatatype.to_text(dns.rdatatype.RdataType.make(rdtype))


_SPECIAL = b'"\\'


def _escape(octets: bytes, special: bytes, first: int) -> str:
    """`special` with a backslash, from `first` to 0x7e as they are, the rest as \\DDD."""
    out = []
    for octet in octets:
        if octet in special:
            out.append("\\" + chr(octet))
        elif first <= octet <= 0x7E:
            out.append(chr(octet))
        else:
            out.append(f"\\{octet:03d}")
    return "".join(out)


def _quoted(octets: bytes) -> str:
    return '"' + _escape(octets, special=_SPECIAL, first=0x20) + '"'


def _base64(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


# -------------------------------------------------------------------------------------- rdata


def opt(r: Reader, rdclass: int, ttl: int) -> str:
    while r.left():
        r.u16()
        r.octets(r.u16())
    return f"FLAGS={'DO' if ttl & 0x8000 else ''} UDPSIZE={rdclass}"


def rdata_text(r: Reader, rdtype: int, rdclass: int) -> str:
    if not r.left() and rdclass in (254, 255):
        return "\\# 0"
    if rdtype in ONLY_IN and rdclass not in (1, 254, 255):
        return generic(r)
    if rdtype in _FIELDS:
        return " ".join(_FIELD[field](r) for field in _FIELDS[rdtype])
    if rdtype in _OTHERS:
        return _OTHERS[rdtype](r)
    return generic(r)


def generic(r: Reader) -> str:
    """RFC 3597 5."""
    octets = r.rest()
    return f"\\# {len(octets)} {octets.hex()}".rstrip()


_FIELD: dict[str, Callable[[Reader], str]] = {
    "name": lambda r: name_text(r.name()),
    "8": lambda r: str(r.u8()),
    "16": lambda r: str(r.u16()),
    "32": lambda r: str(r.u32()),
    "a4": lambda r: socket.inet_ntop(socket.AF_INET, r.octets(4)),
    "a6": lambda r: socket.inet_ntop(socket.AF_INET6, r.octets(16)),
    "type": lambda r: type_text(r.u16()),
    "time": lambda r: time.strftime("%Y%m%d%H%M%S", time.gmtime(r.u32())),
    "string": lambda r: _quoted(r.string()),
    "strings": lambda r: _txt(r),
    "quoted": lambda r: _quoted(_some(r.rest())),
    "salt": lambda r: r.string().hex() or "-",
    "hex": lambda r: _some(r.rest()).hex(),
    "base64": lambda r: _base64(_some(r.rest())),
}


def _some(octets: bytes) -> bytes:
    if not octets:
        raise Fault("an empty field")
    return octets


_FIELDS: dict[int, tuple[str, ...]] = {
    1: ("a4",),  # A
    **dict.fromkeys((2, 3, 4, 5, 7, 8, 9), ("name",)),  # NS MD MF CNAME MB MG MR
    6: ("name", "name", "32", "32", "32", "32", "32"),  # SOA
    12: ("name",),  # PTR
    13: ("string", "string"),  # HINFO
    14: ("name", "name"),  # MINFO
    15: ("16", "name"),  # MX
    16: ("strings",),  # TXT
    17: ("name", "name"),  # RP
    18: ("16", "name"),  # AFSDB
    19: ("string",),  # X25, RFC 1183
    21: ("16", "name"),  # RT
    24: ("type", "8", "8", "32", "time", "time", "16", "name", "base64"),  # SIG
    26: ("16", "name", "name"),  # PX, RFC 2163
    28: ("a6",),  # AAAA
    33: ("16", "16", "16", "name"),  # SRV, RFC 2782
    35: ("16", "16", "string", "string", "string", "name"),  # NAPTR, RFC 3403
    36: ("16", "name"),  # KX, RFC 2230
    39: ("name",),  # DNAME
    **dict.fromkeys((43, 59, 32768, 32769), ("16", "8", "8", "hex")),  # DS CDS TA DLV
    44: ("8", "8", "hex"),  # SSHFP, RFC 4255
    46: ("type", "8", "8", "32", "time", "time", "16", "name", "base64"),  # RRSIG
    48: ("16", "8", "8", "base64"),  # DNSKEY
    49: ("base64",),  # DHCID, RFC 4701
    51: ("8", "8", "16", "salt"),  # NSEC3PARAM
    52: ("8", "8", "8", "hex"),  # TLSA, RFC 6698
    53: ("8", "8", "8", "hex"),  # SMIMEA, RFC 8162
    60: ("16", "8", "8", "base64"),  # CDNSKEY
    61: ("base64",),  # OPENPGPKEY, RFC 7929
    63: ("32", "8", "8", "hex"),  # ZONEMD, RFC 8976
    107: ("16", "name"),  # LP, RFC 6742
    **dict.fromkeys((56, 99, 258, 261, 262), ("strings",)),  # NINFO SPF AVC RESINFO WALLET
    256: ("16", "16", "quoted"),  # URI, RFC 7553
}

ONLY_IN = {1, 26, 28, 33, 35, 36, 49, 64, 65}


def _txt(r: Reader) -> str:
    if not r.left():
        raise Fault("empty txt")
    strings = []
    while r.left():
        strings.append(_quoted(r.string()))
    return " ".join(strings)


def _caa(r: Reader) -> str:
    """RFC 8659 4.1."""
    flags, tag = r.u8(), r.string()
    if not tag.isalnum():
        raise Fault("caa tag")
    return f"{flags} {tag.decode()} {_quoted(r.rest())}"


def _key_record(r: Reader) -> str:
    """KEY, RFC 2535 3: a flag says that there is no key."""
    out = f"{r.u16()} {r.u8()} {r.u8()}"
    return out + (f" {_base64(r.rest())}" if r.left() else "")


def _csync(r: Reader) -> str:
    """RFC 7477 2.1."""
    return f"{r.u32()} {r.u16()}{_bitmap(r)}"


def _bitmap(r: Reader) -> str:
    """The types, each with a space before it."""
    out, last = "", -1
    while r.left():
        window, size = r.u8(), r.u8()
        if window <= last or not 1 <= size <= 32:
            raise Fault("type bitmap")
        last = window
        octets = r.octets(size)
        if octets[-1] == 0:
            raise Fault("type bitmap")
        for at, octet in enumerate(octets):
            for bit in range(8):
                if octet & 0x80 >> bit:
                    out += " " + type_text(window * 256 + at * 8 + bit)
    return out


def _nsec(r: Reader) -> str:
    return name_text(r.name()) + _bitmap(r)


def _nsec3(r: Reader) -> str:
    algorithm, flags, iterations, salt, hashed = r.u8(), r.u8(), r.u16(), r.string(), r.string()
    if not hashed:
        raise Fault("empty nsec3 hash")
    owner = base64.b32hexencode(hashed).decode().rstrip("=").lower()
    return f"{algorithm} {flags} {iterations} {salt.hex() or '-'} {owner}{_bitmap(r)}"


_KEYS = ("mandatory", "alpn", "no-default-alpn", "port", "ipv4hint", "ech", "ipv6hint", "dohpath",
         "ohttp")


def _key(number: int) -> str:
    return _KEYS[number] if number < len(_KEYS) else f"key{number}"


def _svcb(r: Reader) -> str:
    """RFC 9460 2.2 on the wire, 2.1 and Appendix A in text."""
    out, last = f"{r.u16()} {name_text(r.name())}", -1
    while r.left():
        key, size = r.u16(), r.u16()
        if key <= last or size > r.left():
            raise Fault("svcb keys")
        last = key
        value = Reader(r.wire, r.at, r.at + size)
        text = _svcb_value(key, value)
        if value.left():
            raise Fault("svcb value")
        r.at += size
        out += f" {_key(key)}" + ("" if text is None else f"={text}")
    return out


def _svcb_value(key: int, r: Reader) -> str | None:
    if key in (2, 8):  # these take no value
        return None
    if key in (0, 1, 4, 5, 6) and not r.left():
        raise Fault("svcb value missing")
    if key == 0:
        keys = []
        while r.left():
            keys.append(r.u16())
        if keys[0] == 0 or any(b <= a for a, b in pairwise(keys)):
            raise Fault("svcb mandatory")
        return '"' + ",".join(_key(k) for k in keys) + '"'
    if key == 1:
        ids = []
        while r.left():
            ids.append(r.string())
            if not ids[-1]:
                raise Fault("svcb empty alpn id")
        escaped = [i.replace(b"\\", b"\\\\").replace(b",", b"\\,") for i in ids]
        return _quoted(b",".join(escaped))
    if key == 3:
        return f'"{r.u16()}"'
    if key in (4, 6):
        hints = []
        while r.left():
            hints.append(_FIELD["a4" if key == 4 else "a6"](r))
        return '"' + ",".join(hints) + '"'
    if key == 5:
        return f'"{_base64(r.rest())}"'
    octets = r.rest()
    return _quoted(octets) if octets else None


def _loc(r: Reader) -> str:
    """RFC 1876 2 and 3; size and precisions where they, or one that follows, differ from 3's."""
    if r.u8():
        raise Fault("loc version")
    sizes = [r.u8() for _ in range(3)]
    latitude, longitude, altitude = r.u32(), r.u32(), r.u32() - 10_000_000
    out = f"{_degrees(latitude, 'NS')} {_degrees(longitude, 'EW')} {_metres(altitude)}"
    while sizes and sizes[-1] == (0x12, 0x16, 0x13)[len(sizes) - 1]:
        sizes.pop()
    for size in sizes:
        digit, power = size >> 4, size & 15
        if digit > 9 or power > 9 or (power and not digit):
            raise Fault("loc size")
        out += f" {_metres(digit * 10**power)}"
    return out


def _metres(centimetres: int) -> str:
    whole, rest = divmod(abs(centimetres), 100)
    return f"{'-' if centimetres < 0 else ''}{whole}.{rest:02d}m"


def _degrees(value: int, sides: str) -> str:
    value -= 1 << 31
    seconds, thousandths = divmod(abs(value), 1000)
    return (f"{seconds // 3600} {seconds // 60 % 60} {seconds % 60}.{thousandths:03d} "
            f"{sides[value < 0]}")


_OTHERS: dict[int, Callable[[Reader], str]] = {
    25: _key_record,
    29: _loc,
    47: _nsec,
    50: _nsec3,
    62: _csync,
    64: _svcb,
    65: _svcb,
    257: _caa,
}
