"""DNS messages as templates: a question and its whole reply, ready but for what differs each time.

A template is made once for each (name, type, DO bit) and used for every query of it. What differs
(DNS id, OPT record of that client) stands before and after the template's bytes:

    query   id | flags, counts | question                      | OPT
    reply   id | flags, counts | question, answer, authority,  | OPT
               |               | additional                    |

Names are compressed against every earlier name of the message (RFC 1035, section 4.1.4), as BIND,
unbound and knot do; not in SRV's, RRSIG's, NAPTR's and SVCB's data, where it is forbidden
(RFC 2782, RFC 4034 section 3.1.7, RFC 3597 section 4, RFC 9460 section 2.2).
"""

from __future__ import annotations

import bisect
import itertools
import random
import struct
from typing import NamedTuple

from benchmarks.names import Name, Universe, Zone, pick

A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, NAPTR = 1, 2, 5, 6, 12, 15, 16, 28, 33, 35
DS, SSHFP, RRSIG, DNSKEY, NSEC3, TLSA, SVCB, HTTPS, CAA = 43, 44, 46, 48, 50, 52, 64, 65, 257

QR, AA, TC, RD, RA, AD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020
SERVFAIL, NXDOMAIN, REFUSED = 2, 3, 5

_RR = struct.Struct(">HHIH")
_HEADER = struct.Struct(">HHHHH")
_SOA_TIMES = struct.pack(">IIII", 7200, 3600, 1209600, 300)
_TTLS = (20, 30, 60, 60, 120, 300, 300, 300, 600, 900, 1800, 3600, 3600, 14400, 21600, 86400)
_LINKS = (1,) * 11 + (2,) * 6 + (3,) * 2 + (4,)  # of a CNAME chain
_ADDRESSES = (1,) * 28 + (2,) * 10 + (3,) * 3 + (4,) * 5 + (6,) * 2 + (8,)
_TXT = (
    "v=spf1 include:_spf.{z} include:mail.{z} ip4:192.0.2.0/24 ~all",
    "google-site-verification={t}", "MS=ms{n}", "v=DMARC1; p=reject; rua=mailto:dmarc@{z}",
    "apple-domain-verification={n}", "atlassian-domain-verification={t}{t}",
    "v=spf1 ip4:198.51.100.{b} ip4:203.0.113.{b} -all",
)  # fmt: skip
_BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_BASE32HEX = b"0123456789abcdefghijklmnopqrstuv"

# (kind of name, share of the names, [(query type, share within the kind)])
KINDS: list[tuple[str, float, list[tuple[int, float]]]] = [
    ("host", 0.85, [(A, 0.60), (AAAA, 0.25), (HTTPS, 0.15)]),
    ("reverse", 0.06, [(PTR, 1.0)]),
    ("domain", 0.05, [(MX, 0.35), (TXT, 0.30), (NS, 0.12), (SOA, 0.06), (DS, 0.08),
                      (DNSKEY, 0.04), (CAA, 0.05)]),
    ("service", 0.02, [(SRV, 1.0)]),
    ("policy", 0.015, [(TXT, 1.0)]),
    ("rare", 0.005, [(NAPTR, 0.2), (SSHFP, 0.2), (TLSA, 0.3), (SVCB, 0.3)]),
]  # fmt: skip
_KIND_BOUNDS = list(itertools.accumulate(share for _, share, _ in KINDS))[:-1]


class Template(NamedTuple):
    """One question and its reply. `plain` and `edns` are the reply's flags and counts."""

    question: bytes
    plain: bytes
    edns: bytes
    rest: bytes
    answers: int


def query_head(edns: bool, flags: int = RD) -> bytes:
    """Flags and counts of a query."""
    return _HEADER.pack(flags, 1, 0, 0, 1 if edns else 0)


def opt(size: int, do: bool, options: bytes = b"") -> bytes:
    """An OPT record (RFC 6891, section 6.1.2)."""
    return b"\0\0\x29" + struct.pack(">HIH", size, 0x8000 if do else 0, len(options)) + options


def option(code: int, data: bytes) -> bytes:
    return struct.pack(">HH", code, len(data)) + data


class Message:
    """A message in the making; `body` begins with the header's 12 octets, so offsets are right."""

    __slots__ = ("body", "counts", "seen")

    def __init__(self) -> None:
        self.body = bytearray(12)
        self.seen: dict[Name, int] = {}
        self.counts = [0, 0, 0]

    def put_name(self, name: Name | None) -> None:
        body, seen = self.body, self.seen
        while name is not None:
            at = seen.get(name)
            if at is not None:
                body += (0xC000 | at).to_bytes(2, "big")
                return
            if len(body) < 0x4000:
                seen[name] = len(body)
            body += name.label
            name = name.parent
        body.append(0)

    def record(self, section: int, owner: Name, rtype: int, ttl: int, data: bytes) -> None:
        self.put_name(owner)
        self.body += _RR.pack(rtype, 1, ttl, len(data))
        self.body += data
        self.counts[section] += 1

    def record_name(
        self, section: int, owner: Name, rtype: int, ttl: int, target: Name, front: bytes = b""
    ) -> None:
        """A record whose data is one name that may be compressed, after `front`."""
        self.put_name(owner)
        body = self.body
        body += _RR.pack(rtype, 1, ttl, 0)
        start = len(body)
        body += front
        self.put_name(target)
        struct.pack_into(">H", body, start - 2, len(body) - start)
        self.counts[section] += 1

    def soa(self, section: int, zone: Zone, owner: Name, ttl: int) -> None:
        self.put_name(owner)
        body = self.body
        body += _RR.pack(SOA, 1, ttl, 0)
        start = len(body)
        self.put_name(zone.mname)
        self.put_name(zone.rname)
        body += zone.serial.to_bytes(4, "big") + _SOA_TIMES
        struct.pack_into(">H", body, start - 2, len(body) - start)
        self.counts[section] += 1

    def rrsig(self, section: int, owner: Name, zone: Zone, covered: int, ttl: int,
              rng: random.Random) -> None:  # fmt: skip
        tag = zone.serial & 65535
        front = struct.pack(
            ">HBBIIIH", covered, 13, owner.labels(), ttl, 1768435200, 1767139200, tag
        )
        data = front + zone.apex.wire() + rng.randbytes(64)
        self.record(section, owner, RRSIG, ttl, data)

    def template(self, question_end: int, flags: int) -> Template:
        answer, authority, additional = self.counts
        return Template(
            bytes(self.body[12:question_end]),
            _HEADER.pack(QR | flags, 1, answer, authority, additional),
            _HEADER.pack(QR | flags, 1, answer, authority, additional + 1),
            bytes(self.body[12:]),
            answer,
        )


class Names:
    """The names that are asked for, by rank, and the templates of their queries."""

    def __init__(self, seed: int) -> None:
        self.universe = Universe(seed)
        self._entries: dict[int, tuple[str, Name, Zone, list[int], list[float]]] = {}
        self._templates: dict[int, Template] = {}

    def template(self, rank: int, draw: float, do: bool) -> Template:
        """The template for a query of the name with this rank; `draw` (0 to 1) chooses its type."""
        entry = self._entries.get(rank)
        if entry is None:
            entry = self._entries[rank] = self._entry(rank)
        types, bounds = entry[3], entry[4]
        at = 0
        while draw >= bounds[at]:
            at += 1
        key = (rank << 17) | (types[at] << 1) | do
        template = self._templates.get(key)
        if template is None:
            template = self._templates[key] = self._make(rank, entry, types[at], do)
        return template

    def _entry(self, rank: int) -> tuple[str, Name, Zone, list[int], list[float]]:
        universe = self.universe
        rng = universe.rng(4, rank)
        zone = universe.zone_of(rng)
        # The few names at the very top carry whole per cents of the traffic: they are hosts.
        draw = rng.random()
        number = 0 if rank < 20 else bisect.bisect(_KIND_BOUNDS, draw)
        kind, _, mix = KINDS[number]
        if kind == "host":
            name = universe.host(rng, zone.apex)
        elif kind == "reverse":
            name = universe.reverse(rng)
        elif kind == "domain":
            name = zone.apex
        elif kind == "service":
            under = Name(pick(rng, (b"_tcp", b"_udp", b"_tls")), zone.apex)
            name = Name(pick(rng, (b"_ldap", b"_sip", b"_xmpp-client", b"_kerberos")), under)
        elif kind == "policy":
            if rng.random() < 0.5:
                name = Name(pick(rng, (b"_dmarc", b"_acme-challenge", b"_mta-sts")), zone.apex)
            else:
                name = Name(b"selector1", Name(b"_domainkey", zone.apex))
        else:
            under = Name(pick(rng, (b"_tcp", b"_udp")), zone.apex)
            name = Name(pick(rng, (b"_dns", b"_443", b"_25")), under)
        if rng.random() < 0.04:
            name = universe.mixed_case(rng, name)
        bounds, total = [], 0.0
        for _, share in mix:
            total += share
            bounds.append(total)
        bounds[-1] = 2.0
        return kind, name, zone, [rtype for rtype, _ in mix], bounds

    def _make(self, rank: int, entry: tuple[str, Name, Zone, list[int], list[float]],
              qtype: int, do: bool) -> Template:  # fmt: skip
        kind, name, zone, _, _ = entry
        # What is true of the name (does it exist, its chain) must not depend on the type asked.
        rng = self.universe.rng(5, rank)
        fate = rng.random()
        message = Message()
        message.put_name(name)
        message.body += struct.pack(">HH", qtype, 1)
        end = len(message.body)
        sign = do and zone.signed
        flags = RD | RA | (AD if sign else 0)
        if rank >= 20:
            missing = 0.4 if kind == "reverse" else 0.12
            if fate < missing:
                self._negative(message, zone, name, kind, sign, True, rng)
                return message.template(end, flags | NXDOMAIN)
            if fate > 0.992:
                return message.template(end, RD | RA | (SERVFAIL if fate < 0.998 else REFUSED))
        if kind == "host":
            self._host(message, zone, name, qtype, sign, rng)
        else:
            self._other(message, zone, name, qtype, sign, rng)
        if kind != "reverse" and message.counts[0] and rng.random() < 0.06:
            # A server that is authoritative and says all it knows: name servers and their glue.
            flags = (flags | AA) & ~(RA | AD)
            for server in zone.ns:
                message.record_name(1, zone.apex, NS, 86400, server)
            for server in zone.ns:
                message.record(2, server, A, 86400, rng.randbytes(4))
                message.record(2, server, AAAA, 86400, b"\x20\x01\x0d\xb8" + rng.randbytes(12))
        if len(message.body) > 1200:
            # More than fits: cut, with the TC bit (RFC 2181, section 9).
            del message.body[end:]
            message.counts[:] = [0, 0, 0]
            flags |= TC
        return message.template(end, flags)

    @staticmethod
    def _negative(message: Message, zone: Zone, name: Name, kind: str, sign: bool, denied: bool,
                  rng: random.Random) -> None:  # fmt: skip
        """NXDOMAIN or NODATA: the SOA in the authority section (RFC 2308, section 2)."""
        apex = zone.apex
        if kind == "reverse":
            apex = name
            for _ in range(2):
                assert apex.parent is not None
                apex = apex.parent
            sign = False
        message.soa(1, zone, apex, pick(rng, (60, 300, 900, 3600)))
        if sign:
            message.rrsig(1, apex, zone, SOA, 300, rng)
            for _ in range(3 if denied else 1):
                label = bytes(_BASE32HEX[b & 31] for b in rng.randbytes(32))
                owner = Name(label, apex)
                data = b"\x01\0\0\0\0\x14" + rng.randbytes(20) + b"\0\x06\x40\0\0\0\0\x02"
                message.record(1, owner, NSEC3, 300, data)
                message.rrsig(1, owner, zone, NSEC3, 300, rng)

    def _host(self, message: Message, zone: Zone, name: Name, qtype: int, sign: bool,
              rng: random.Random) -> None:  # fmt: skip
        ttl = pick(rng, _TTLS)
        owner = name
        if name is not zone.apex and rng.random() < 0.38:
            links = pick(rng, _LINKS)
            for _ in range(links):
                under = pick(rng, self.universe.cdns) if rng.random() < 0.7 else zone.apex
                target = self.universe.host(rng, under)
                if target is under or target is owner:
                    target = Name(f"e{rng.randrange(100000)}".encode(), under)
                message.record_name(0, owner, CNAME, pick(rng, _TTLS), target)
                if sign and owner is name:
                    message.rrsig(0, owner, zone, CNAME, ttl, rng)
                owner = target
        has6, has_https = rng.random() < 0.6, rng.random() < 0.35
        number = pick(rng, _ADDRESSES)
        if qtype == A:
            for _ in range(number):
                message.record(0, owner, A, ttl, rng.randbytes(4))
        elif qtype == AAAA and has6:
            for _ in range(number):
                address = b"\x2a" + rng.randbytes(7) + b"\0\0\0\0" + rng.randbytes(4)
                message.record(0, owner, AAAA, ttl, address)
        elif qtype == HTTPS and has_https:
            data = b"\0\x01\0" + b"\0\x01\0\x06\x02h3\x02h2"
            data += struct.pack(">HH", 4, 8) + rng.randbytes(8)
            if rng.random() < 0.3:
                # An ECHConfigList with one configuration: lengths 69 and 65, version 0xfe0d.
                data += struct.pack(">HHHHH", 5, 71, 69, 0xFE0D, 65) + rng.randbytes(65)
            data += struct.pack(">HH", 6, 32) + rng.randbytes(32)
            message.record(0, owner, HTTPS, ttl, data)
        else:
            self._negative(message, zone, name, "host", sign, False, rng)
            return
        if sign and owner is name:
            message.rrsig(0, owner, zone, qtype, ttl, rng)

    def _other(self, message: Message, zone: Zone, name: Name, qtype: int, sign: bool,
               rng: random.Random) -> None:  # fmt: skip
        ttl = pick(rng, _TTLS)
        if qtype == PTR:
            label = f"host-{rng.randrange(256)}-{rng.randrange(256)}-{rng.randrange(256)}"
            message.record_name(0, name, PTR, ttl, Name(label.encode(), zone.apex))
            return
        if rng.random() < (0.5 if qtype in (DS, CAA, SRV, TLSA, SVCB) else 0.05):
            self._negative(message, zone, name, "other", sign, False, rng)
            return
        if qtype == MX:
            for i in range(pick(rng, (1, 1, 2, 2, 5))):
                target = Name(f"mx{i + 1}".encode(), zone.apex if i % 2 else zone.hosted)
                message.record_name(0, name, MX, ttl, target, struct.pack(">H", 10 * (i + 1)))
        elif qtype == TXT:
            self._texts(message, zone, name, ttl, rng)
        elif qtype == NS:
            for server in zone.ns:
                message.record_name(0, name, NS, ttl, server)
        elif qtype == SOA:
            message.soa(0, zone, name, ttl)
        elif qtype == SRV:
            for i in range(pick(rng, (1, 2, 4))):
                target = Name(f"srv{i + 1}".encode(), zone.apex)
                front = struct.pack(">HHH", 10 * i, 60, pick(rng, (389, 5060, 5222, 88)))
                message.record(0, name, SRV, ttl, front + target.wire())
        else:
            several = range(pick(rng, (1, 2)))
            # A set of records holds none twice (RFC 2181, section 5); nor does a dict.
            for data in dict.fromkeys(self._rare(qtype, zone, rng) for _ in several):
                message.record(0, name, qtype, ttl, data)
        if sign:
            message.rrsig(0, name, zone, qtype, ttl, rng)

    @staticmethod
    def _texts(message: Message, zone: Zone, name: Name, ttl: int, rng: random.Random) -> None:
        if name.label == b"\x09selector1":
            key = "".join(rng.choices(_BASE64, k=390))
            text = f"v=DKIM1; k=rsa; p={key}".encode()
            data = b"\xff" + text[:255] + bytes((len(text) - 255,)) + text[255:]
            message.record(0, name, TXT, ttl, data)
            return
        labels, node = [], zone.apex
        while node is not None:
            labels.append(node.label[1:].decode())
            node = node.parent
        several = pick(rng, (1, 1, 2, 3, 6)) if name is zone.apex else 1
        texts = {}
        for _ in range(several):
            text = pick(rng, _TXT).format(
                z=".".join(labels), t="".join(rng.choices(_BASE64, k=43)),
                n=rng.randrange(10**8), b=rng.randrange(256),
            )  # fmt: skip
            texts[bytes((len(text),)) + text.encode()] = None
        for data in texts:
            message.record(0, name, TXT, ttl, data)

    @staticmethod
    def _rare(qtype: int, zone: Zone, rng: random.Random) -> bytes:
        if qtype == DS:
            return struct.pack(">HBB", rng.randrange(65536), 13, 2) + rng.randbytes(32)
        if qtype == DNSKEY:
            return struct.pack(">HBB", pick(rng, (256, 257)), 3, 13) + rng.randbytes(64)
        if qtype == CAA:
            return b"\0\x05issue" + pick(rng, (b"letsencrypt.org", b"digicert.com", b"pki.goog"))
        if qtype == SSHFP:
            return b"\x04\x02" + rng.randbytes(32)
        if qtype == TLSA:
            return b"\x03\x01\x01" + rng.randbytes(32)
        if qtype == SVCB:
            return b"\0\x01" + zone.ns[0].wire() + b"\0\x01\0\x04\x03dot\0\x03\0\x02\x03\x55"
        # NAPTR, as ENUM and SIP use it (RFC 3403, section 4.1)
        return b"\0\x0a\0\x64\x01S\x07SIP+D2U\0" + Name(b"_sip", zone.apex).wire()
