"""A universe of domain names that looks like what resolvers see.

A name is a chain of nodes, its first label first; the chains of one zone share their tail, so that
a message can compress names by the identity of a node (wire.put_name).

Rules
- Everything follows from (seed, number): a name or zone is made when it is first asked for, and
  comes out the same whatever was made before it.
- Labels have 1 to 63 octets, names at most 255 (RFC 1035, section 2.3.4).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar


class Name:
    """One label and what stands to its right; None is the root."""

    __slots__ = ("label", "parent")

    def __init__(self, label: bytes, parent: Name | None) -> None:
        self.label = bytes((len(label),)) + label
        self.parent = parent

    def wire(self) -> bytes:
        """The whole name, uncompressed, with the root's zero."""
        parts = []
        node: Name | None = self
        while node is not None:
            parts.append(node.label)
            node = node.parent
        return b"".join(parts) + b"\0"

    def labels(self) -> int:
        count, node = 0, self.parent
        while node is not None:
            count, node = count + 1, node.parent
        return count + 1


_T = TypeVar("_T")


def pick(rng: random.Random, choices: Sequence[_T]) -> _T:
    """One of the choices; three times as fast as `Random.choice`, and fair enough here."""
    return choices[int(rng.random() * len(choices))]


def _words(text: str) -> list[str]:
    return text.split()


# Share of queries by top-level domain, roughly as public resolvers report it.
_TLDS = [
    ("com", 48), ("net", 16), ("org", 6), ("io", 3), ("de", 3), ("co.uk", 2), ("jp", 2),
    ("cn", 2), ("ru", 2), ("nl", 2), ("fr", 2), ("br", 1), ("com.br", 1), ("co.jp", 1),
    ("app", 1), ("dev", 1), ("me", 1), ("tv", 1), ("cloud", 1), ("info", 1), ("eu", 1),
    ("ac.uk", 1), ("edu", 1), ("gov", 1), ("xn--p1ai", 1),
]  # fmt: skip
_ONSETS = _words("b br c ch cl d dr f fl g gr h j k l m n p pl qu r s sh sk st t tr v w y z")
_VOWELS = _words("a e i o u ai ea oo ou")
_CODAS = ["", "", "", "n", "r", "s", "t", "l", "x", "ck", "nd", "st"]
_SYLLABLES = [onset + vowel + coda for onset in _ONSETS for vowel in _VOWELS for coda in _CODAS]
_WORDS = _words(
    "cloud data shop media play live news bank mail soft tech net web game travel home food auto "
    "health green blue red fast smart open first city star sun line point hub lab box link"
)
_HOSTS = _words(
    "www www www www api api cdn static img images assets mail smtp imap login auth accounts app "
    "m mobile ads track metrics telemetry events beacon update download files media video edge "
    "push ws gateway portal vpn remote docs support status blog shop dev staging ns1 time "
    "connect config settings analytics collector logs sync"
)
_REGIONS = _words(
    "us-east-1 us-west-2 eu-west-1 eu-central-1 ap-northeast-1 sa-east-1 fra lhr nrt iad"
)


def _syllables(rng: random.Random, least: int, most: int) -> str:
    draw, text = rng.random, ""
    for _ in range(least + int(draw() * (most - least + 1))):
        text += _SYLLABLES[int(draw() * len(_SYLLABLES))]
    return text


def _hex(rng: random.Random, digits: int) -> str:
    return f"{rng.getrandbits(4 * digits):0{digits}x}"


class Zone:
    """A registered domain with what its servers say about it."""

    __slots__ = ("apex", "hosted", "mname", "ns", "rname", "serial", "signed")

    def __init__(self, apex: Name, hosted: Name, rng: random.Random) -> None:
        self.apex = apex
        self.hosted = hosted
        # A third runs its own name servers, the others use a hoster's.
        under = apex if rng.random() < 0.33 else hosted
        prefix = pick(rng, ("ns", "ns", "dns", "pdns", "ns-cloud-"))
        self.ns = [Name(f"{prefix}{i + 1}".encode(), under) for i in range(pick(rng, (2, 2, 3, 4)))]
        self.mname = self.ns[0]
        self.rname = Name(pick(rng, (b"hostmaster", b"dns-admin", b"root", b"noc")), under)
        self.serial = 2026010100 + rng.randrange(100)
        self.signed = rng.random() < 0.10


class Universe:
    """All names of a run: `host(rank)` and its kin, each made at its first use."""

    def __init__(self, seed: int, zones: int = 60_000) -> None:
        self.seed = seed
        self.zones = zones
        self._zones: dict[int, Zone] = {}
        self._tlds: list[Name] = []
        shared: dict[str, Name] = {}
        for text, weight in _TLDS:
            node: Name | None = None
            labels = text.split(".")
            for at in range(len(labels) - 1, -1, -1):
                suffix = ".".join(labels[at:])
                if suffix not in shared:
                    shared[suffix] = Name(labels[at].encode(), node)
                node = shared[suffix]
            assert node is not None
            self._tlds += [node] * weight
        arpa = Name(b"arpa", None)
        self.reverse4 = Name(b"in-addr", arpa)
        self.reverse6 = Name(b"ip6", arpa)
        self._rng = random.Random()
        self._hosters = [self._apex(self._seeded(1, n)) for n in range(40)]
        self.cdns = [self._apex(self._seeded(2, n)) for n in range(25)]

    def _seeded(self, room: int, number: int) -> random.Random:
        """A generator of its own for one thing, so that the order of making does not matter."""
        return random.Random((self.seed << 64) | (room << 48) | number)

    def rng(self, room: int, number: int) -> random.Random:
        """Like `_seeded`, but one shared object: use it up before the next call."""
        self._rng.seed((self.seed << 64) | (room << 48) | number)
        return self._rng

    def _apex(self, rng: random.Random) -> Name:
        draw = rng.random()
        if draw < 0.55:
            text = _syllables(rng, 2, 4)
        elif draw < 0.85:
            text = pick(rng, _WORDS) + _syllables(rng, 1, 2)
        elif draw < 0.95:
            text = f"{pick(rng, _WORDS)}-{pick(rng, _WORDS)}-{_syllables(rng, 1, 2)}"
        else:
            text = _syllables(rng, 1, 1) + str(rng.randrange(1000))
        return Name(text.encode(), pick(rng, self._tlds))

    def zone(self, number: int) -> Zone:
        zone = self._zones.get(number)
        if zone is None:
            rng = self._seeded(3, number)
            zone = self._zones[number] = Zone(self._apex(rng), pick(rng, self._hosters), rng)
        return zone

    def zone_of(self, rng: random.Random) -> Zone:
        """A zone for one name: a few zones hold very many names (the square favours them)."""
        return self.zone(int(self.zones * rng.random() ** 3))

    @staticmethod
    def host(rng: random.Random, apex: Name) -> Name:
        """A host's name, of the shapes seen: www, service + number, region, hash, tenant."""
        draw = rng.random()
        if draw < 0.08:
            return apex
        if draw < 0.45:
            return Name(pick(rng, _HOSTS).encode(), apex)
        if draw < 0.60:
            return Name(f"{pick(rng, _HOSTS)}{rng.randrange(1, 40)}".encode(), apex)
        if draw < 0.72:
            return Name(f"{pick(rng, _HOSTS)}-{_syllables(rng, 1, 2)}".encode(), apex)
        if draw < 0.82:
            region = Name(pick(rng, _REGIONS).encode(), apex)
            return Name(f"{pick(rng, _HOSTS)}-{rng.randrange(1000):03d}".encode(), region)
        if draw < 0.92:
            middle = Name(pick(rng, (b"edge", b"prod", b"svc", b"cdn", b"srv")), apex)
            return Name(_hex(rng, pick(rng, (8, 12, 16, 32))).encode(), middle)
        if draw < 0.98:
            return Name(_syllables(rng, 2, 3).encode(), Name(pick(rng, _HOSTS).encode(), apex))
        # What virus scanners and block lists ask: a digest in two labels.
        return Name(_hex(rng, 40).encode(), Name(_hex(rng, 16).encode(), apex))

    def reverse(self, rng: random.Random) -> Name:
        if rng.random() < 0.85:
            node = self.reverse4
            for _ in range(4):
                node = Name(str(rng.randrange(1, 255)).encode(), node)
            return node
        node = self.reverse6
        for digit in "20010db8" + _hex(rng, 24):
            node = Name(digit.encode(), node)
        return node

    @staticmethod
    def mixed_case(rng: random.Random, name: Name) -> Name:
        """The name as a resolver sends it that mixes case against forgery ("0x20")."""
        labels = []
        node: Name | None = name
        while node is not None:
            labels.append(node.label[1:])
            node = node.parent
        mixed: Name | None = None
        for label in reversed(labels):
            bits = rng.getrandbits(64)
            text = bytes(c ^ 32 if 97 <= c <= 122 and bits >> (i & 63) & 1 else c
                         for i, c in enumerate(label))  # fmt: skip
            mixed = Name(text, mixed)
        assert mixed is not None
        return mixed
