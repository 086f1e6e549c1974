"""Messages, and what is done to them: everything from a seed."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator

import dns.flags
import dns.message
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from tests.fuzz import seeds

ZONE = [
    "A 192.0.2.1", "AAAA 2001:db8::1", "AAAA ::ffff:192.0.2.1", "NS ns.example.",
    "CNAME a.b.example.", "PTR host.example.", "DNAME other.example.", "MX 10 mx.example.",
    "SOA ns.example. admin.example. 1 7200 900 604800 300", r'TXT "a b" "c\"d\\" "\255;"',
    "SRV 1 2 53 srv.example.", r'NAPTR 1 2 "U" "E2U+sip" "!^.*$!sip:a@b.example!" .',
    'CAA 0 issue "ca.example"', "DS 12345 13 2 " + "ab" * 32, "DNSKEY 257 3 13 " + "AwEAAc3d" * 8,
    "RRSIG A 13 2 300 20300101000000 20200101000000 12345 example. " + "AwEAAc3d" * 8,
    "NSEC b.example. A NS SOA TYPE65280", "NSEC3 1 0 10 ABCD 2T7B4G4VSA5SMI47K61MV5BV1A22BOJR A",
    "NSEC3PARAM 1 0 10 -", "TLSA 3 1 1 " + "cd" * 32, "SSHFP 4 2 " + "ef" * 32,
    "SVCB 1 svc.example. alpn=h2,h3 port=443 ipv4hint=192.0.2.1", "HTTPS 0 alias.example.",
    "HTTPS 1 . mandatory=alpn alpn=h2 ipv6hint=2001:db8::1 no-default-alpn",
    "LOC 52 22 23.000 N 4 53 32.000 E -2.00m 1.00m 10000m 10m", "HINFO \"a\" \"b\"",
    "RP a.example. b.example.", "AFSDB 1 a.example.", "URI 1 2 \"https://example/\"",
    "CDS 0 0 0 00", "CDNSKEY 0 3 0 AA==", "OPENPGPKEY AwEAAc3d", "TYPE65280 \\# 4 00010203",
    "EUI48 00-00-5e-00-53-2a", "CSYNC 66 3 A NS AAAA", "KX 1 kx.example.", "SPF \"v=spf1 -all\"",
]
NAMES = ["example.", "a.example.", "www.Example.", r"a\.b\ \"\(c\;\@\$\000\255.example.",
         "_dns.resolver.arpa.", ".", ".".join(["a" * 63] * 3 + ["b" * 61]) + ".",
         ".".join("abcdefghijklmnopqrstuvwxyz" * 4) + "."]


def made_up() -> Iterator[bytes]:
    """Each type and each name once, in messages that compress; updates; EDNS."""
    for number, line in enumerate(ZONE):
        rdtype, data = line.split(None, 1)
        name = NAMES[number % len(NAMES)]
        query = dns.message.make_query(name, rdtype, use_edns=0 if number % 2 else -1, payload=1232)
        query.id = number
        reply = dns.message.make_response(query)
        for owner in (name, "second.example.", name):
            reply.answer.append(dns.rrset.from_text(owner, 300, "IN", rdtype, data))
        reply.additional.append(dns.rrset.from_text("ns.example.", 60, "IN", "A", "192.0.2.9"))
        yield query.to_wire()
        yield reply.to_wire()
        rdata = dns.rdata.from_text("IN", rdtype, data).to_wire()
        for rdclass in (3, 254, 255):
            head = struct.pack("!6H", number, 0x2800, 1, 1, 1, 0) + b"\1a\0\0\6\0\1"
            yield head + 2 * (b"\xc0\x0c" + struct.pack(
                "!HHIH", dns.rdatatype.from_text(rdtype), rdclass, 0, len(rdata)) + rdata)


def messages() -> list[bytes]:
    """What is mutated: each message once, those of the captures and those made up."""
    found = dict.fromkeys(seed[1:] for seed in seeds.messages() if seed[0] == 0)
    found.update(dict.fromkeys(made_up()))
    return [wire for wire in found if len(wire) <= 1500]


# --- mutations -----------------------------------------------------------------------------------

EDGES = (0, 1, 2, 4, 11, 12, 13, 15, 16, 17, 31, 32, 41, 62, 63, 64, 65, 127, 128, 191, 192, 193,
         254, 255)
TYPES = (0, 1, 2, 5, 6, 12, 15, 16, 28, 29, 33, 35, 39, 41, 43, 46, 47, 48, 50, 51, 52, 64, 65, 99,
         249, 250, 252, 255, 256, 257, 32769, 65280, 65535)


def flip(r: random.Random, w: bytearray) -> None:
    for _ in range(r.randint(1, 4)):
        w[r.randrange(len(w))] ^= 1 << r.randrange(8)


def edge(r: random.Random, w: bytearray) -> None:
    w[r.randrange(len(w))] = r.choice(EDGES)


def behind_header(r: random.Random, w: bytearray, n: int) -> int:
    return r.randrange(min(12, len(w) - n), len(w) - n + 1)


def word(r: random.Random, w: bytearray) -> None:
    """A type, a class or a length becomes another."""
    if len(w) >= 2:
        at = behind_header(r, w, 2)
        w[at:at + 2] = r.choice(TYPES).to_bytes(2, "big")


def count(r: random.Random, w: bytearray) -> None:
    if len(w) >= 12:
        at = r.choice((4, 6, 8, 10))
        w[at:at + 2] = r.choice((0, 0, 1, 1, 2, 3, 9, 255, 65535)).to_bytes(2, "big")


def pointer(r: random.Random, w: bytearray) -> None:
    if len(w) >= 2:
        at = behind_header(r, w, 2)
        to = r.choice((12, at, at + 1, at - 1, at + 2, 0, r.randrange(len(w)), r.randrange(16384)))
        w[at:at + 2] = (0xC000 | (to & 0x3FFF)).to_bytes(2, "big")


def length(r: random.Random, w: bytearray) -> None:
    """A little more or less in one place: often a length of a label, a string or rdata."""
    at = r.randrange(len(w))
    w[at] = (w[at] + r.choice((-2, -1, 1, 2))) & 255


def cut(r: random.Random, w: bytearray) -> None:
    del w[r.randrange(len(w)):]


def append(r: random.Random, w: bytearray) -> None:
    w += r.randbytes(r.randint(1, 20))


def remove(r: random.Random, w: bytearray) -> None:
    at = r.randrange(len(w))
    del w[at:at + r.randint(1, 8)]


def repeat(r: random.Random, w: bytearray) -> None:
    at = r.randrange(len(w))
    w[at:at] = w[at:at + r.randint(1, 40)]


ONE = (flip, flip, edge, edge, word, word, count, pointer, pointer, length, length, cut, append,
       remove, repeat)
Mutation = Callable[[random.Random, bytearray], None]


def mutated(all_: list[bytes], seed: int) -> Iterator[bytes]:
    """Messages without end; a tenth as they are, a tenth spliced from two."""
    r = random.Random(seed)
    while True:
        wire = bytearray(r.choice(all_))
        how = r.random()
        if how < 0.1:
            yield bytes(wire)
            continue
        if how < 0.2:
            other = r.choice(all_)
            wire = wire[:r.randrange(len(wire) + 1)] + other[r.randrange(len(other)):]
        for _ in range(r.choice((1, 1, 1, 2, 2, 3))):
            if wire:
                r.choice(ONE)(r, wire)
        yield bytes(wire)
