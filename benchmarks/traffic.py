"""Generated DNS traffic in a capture file: deterministic, realistic, with its exact counts.

    python -m benchmarks.traffic --pairs 1000000 [--seed 1] [--out FILE]

What it is like: clients behind a mirror port ask a handful of resolvers, 50,000 queries a second in
the capture's own time. Names follow Zipf's law over some hundred thousand names, replies come
back after 0.1 ms (cached) to a second and so interleave with other queries. Per path (client and
server) the pair of port and DNS id never repeats, so that what a query's fate is can be counted
exactly here and compared with what a sensor reports:

    queries in the file      pairs + repeated
    replies in the file      pairs - lost + duplicated
    transactions             pairs: `pairs - lost` with a reply, `lost` without

Rules
- Nothing but the parameters and VERSION decides the file's bytes. Change VERSION with any change to
  them, here, in `names` or in `wire`: files are kept and found again by name.
- A repeated query stands before its reply; a duplicated reply less than a second after the first.
- All lengths and checksums are right. A classic capture file: microseconds, Ethernet.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import json
import math
import os
import random
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from benchmarks import wire

VERSION = 1
OUT = Path("bench-out")
START = 1_767_225_600  # the first second of 2026, UTC

FILE_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
PACKET = struct.Struct("<IIII")
_IPV4 = struct.Struct(">16sHHHBBH8sHHHHH")  # Ethernet and the first two octets, ..., DNS id
_IPV6 = struct.Struct(">14sIHBB32sHHHHH")


@dataclasses.dataclass(frozen=True)
class Parameters:
    pairs: int = 1_000_000
    seed: int = 1
    names: int = 300_000
    zipf: float = 0.9
    clients: int = 4_000
    servers: int = 6
    rate: int = 50_000  # queries a second
    ipv6: float = 0.05
    lost: float = 0.01
    repeated: float = 0.01
    duplicated: float = 0.003

    kind: ClassVar[str] = f"traffic-v{VERSION}"

    def file_name(self) -> str:
        """Parameters that are not the default are part of the name."""
        parts = [self.kind, str(self.pairs)]
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default:
                parts.append(f"{field.name}={value}")
        return "-".join(parts) + ".pcap"


@dataclasses.dataclass
class Counts:
    """What the file holds."""

    pairs: int = 0
    queries: int = 0  # messages
    replies: int = 0  # messages
    lost: int = 0
    repeated: int = 0
    duplicated: int = 0
    ipv6: int = 0  # queries over IPv6, each pair counted once
    answers: int = 0  # answer records in all replies
    frames: int = 0
    frame_bytes: int = 0  # without the packet headers of the capture file
    seconds: float = 0.0  # of the capture's own time
    types: dict[str, int] = dataclasses.field(default_factory=dict)
    rcodes: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def messages(self) -> int:
        return self.queries + self.replies

    @property
    def success(self) -> int:
        return self.pairs - self.lost

    @property
    def no_reply(self) -> int:
        return self.lost


class Route:
    """One client asking one server: the parts of its frames that stay the same."""

    __slots__ = ("count", "do", "edns", "head", "ipv6", "query", "reply", "sum", "ttls", "weight")

    def __init__(self, rng: random.Random, client: int, server: int, ipv6: bool) -> None:
        self.ipv6 = ipv6
        client_mac = b"\x02\0\x5e" + client.to_bytes(3, "big")
        server_mac = b"\x02\0\x53\0\0" + bytes((server,))
        if ipv6:
            client_ip = b"\x20\x01\x0d\xb8\0\x10" + (client >> 6).to_bytes(2, "big")
            client_ip += rng.randbytes(8)
            server_ip = b"\x20\x01\x0d\xb8" + bytes(11) + bytes((server + 53,))
        else:
            client_ip = bytes((10, 20)) + (client + 256).to_bytes(2, "big")
            server_ip = bytes((10, 0, 0, server + 53))
        kind = b"\x86\xdd" if ipv6 else b"\x08\0\x45\0"
        #       Ethernet                        addresses
        self.query = (server_mac + client_mac + kind, client_ip + server_ip)
        self.reply = (client_mac + server_mac + kind, server_ip + client_ip)
        self.sum = int.from_bytes(client_ip + server_ip, "big") % 65535
        self.ttls = (rng.choice((63, 64, 128)), rng.choice((57, 64, 64)))
        self.count = rng.getrandbits(31)
        self._edns(rng)

    def _edns(self, rng: random.Random) -> None:
        """How this client speaks EDNS: one in four does not, the others as their software does."""
        draw = rng.random()
        self.edns, self.do, flags = True, False, wire.RD
        query = reply = b""
        if draw < 0.25:
            self.edns = False
        elif draw < 0.62:
            query, reply = wire.opt(1232, False), wire.opt(1232, False)
        elif draw < 0.74:
            query, reply = wire.opt(4096, False), wire.opt(1232, False)
        elif draw < 0.87:
            self.do = True
            query, reply = wire.opt(1232, True), wire.opt(1232, True)
        elif draw < 0.95:
            flags |= wire.AD
            ours, theirs = rng.randbytes(8), b"\1\0\0\0" + rng.randbytes(12)
            query = wire.opt(1232, False, wire.option(10, ours))  # RFC 7873: cookies
            reply = wire.opt(1232, False, wire.option(10, ours + theirs))
        else:
            subnet = b"\0\x01\x18\0" + rng.randbytes(3)  # RFC 7871: an IPv4 /24
            query = wire.opt(1400, False, wire.option(8, subnet))
            reply = wire.opt(1232, False, wire.option(8, subnet[:3] + b"\x18" + subnet[4:]))
        self.head = (wire.query_head(self.edns, flags), query, reply)

    def port_and_id(self) -> tuple[int, int]:
        """The next pair of the client's port and DNS id: a permutation of 31 bits, so that none
        comes twice."""
        n = self.count
        self.count = (n + 1) & 0x7FFFFFFF
        n = (n * 0x2545F491 + 0x3C6EF372) & 0x7FFFFFFF
        n ^= n >> 15
        n = (n * 0x1B873593) & 0x7FFFFFFF
        n ^= n >> 14
        return 32768 | n >> 16, n & 65535

    def frame(self, reply: bool, port: int, ident: int, ip_id: int, dns: bytes) -> bytes:
        """A frame around `dns`, which is the message without its id."""
        ethernet, addresses = self.reply if reply else self.query
        source, target = (53, port) if reply else (port, 53)
        length = len(dns) + 10
        # One's complement sums (RFC 1071) as one big number modulo 65535.
        data = int.from_bytes(dns, "big")
        if length & 1:
            data <<= 8
        check = 65535 - (self.sum + 17 + 2 * length + port + 53 + ident + data) % 65535
        ttl = self.ttls[reply]
        if self.ipv6:
            head = _IPV6.pack(ethernet, 0x60000000, length, 17, ttl, addresses,
                              source, target, length, check, ident)  # fmt: skip
            return head + dns
        fragment = 0 if reply else 0x4000
        total = length + 20
        ip_check = 65535 - (0x4500 + total + ip_id + fragment + (ttl << 8 | 17) + self.sum) % 65535
        head = _IPV4.pack(ethernet, total, ip_id, fragment, ttl, 17, ip_check, addresses,
                          source, target, length, check, ident)  # fmt: skip
        return head + dns


def _paths(parameters: Parameters, rng: random.Random) -> tuple[list[Route], list[float]]:
    """Every client with its first server and, for a seventh of its queries, its second; and the
    cumulated weights. A few clients ask much (gateways, mail servers), most ask little."""
    clients = max(parameters.clients, 2)
    v6 = max(1, round(clients * 0.08)) if parameters.ipv6 else 0
    paths: list[Route] = []
    weights: list[float] = []
    v6_share = parameters.ipv6
    for ipv6, number, share in ((False, clients - v6, 1 - v6_share), (True, v6, v6_share)):
        each = [(i + 3) ** -0.5 for i in range(number)]
        scale = share / sum(each) if each else 0
        for client, weight in enumerate(each):
            first = rng.randrange(parameters.servers)
            others = [(first + 1) % parameters.servers] if parameters.servers > 1 else []
            for server, part in zip([first, *others], (0.85, 0.15), strict=False):
                paths.append(Route(rng, client, server, ipv6))
                weights.append(weight * scale * part)
    return paths, list(itertools.accumulate(weights))


def _latency(draw: float, rng: random.Random) -> int:
    """Microseconds until the reply: two of three from the cache, the others after recursion."""
    if draw < 0.65:
        return int(80 + 400 * rng.random() ** 2)
    if draw < 0.97:
        return int(3000 * math.exp(2.5 * rng.random() + 0.5 * rng.random()))
    return int(60_000 + 700_000 * rng.random() ** 2)


_TYPE_NAMES = {
    wire.A: "A", wire.AAAA: "AAAA", wire.HTTPS: "HTTPS", wire.PTR: "PTR", wire.MX: "MX",
    wire.TXT: "TXT", wire.NS: "NS", wire.SOA: "SOA", wire.SRV: "SRV", wire.DS: "DS",
    wire.DNSKEY: "DNSKEY", wire.CAA: "CAA", wire.NAPTR: "NAPTR", wire.SSHFP: "SSHFP",
    wire.TLSA: "TLSA", wire.SVCB: "SVCB",
}  # fmt: skip


def packets(parameters: Parameters, counts: Counts) -> Iterator[list[tuple[int, int, bytes]]]:
    """The traffic as blocks of (microseconds from START, number, frame), in order of time; fills
    `counts` on the way."""
    rng = random.Random(f"traffic {parameters.seed}")
    names = wire.Names(parameters.seed)
    zipf = list(
        itertools.accumulate(rank ** -parameters.zipf for rank in range(1, parameters.names + 1))
    )
    ranks = range(parameters.names)
    paths, weights = _paths(parameters, rng)
    gap = -1e6 / parameters.rate
    slow_repeat = parameters.lost + max(0.0, parameters.repeated - 0.3 * parameters.lost)
    again_in_lost = 0.3 if parameters.repeated else 0.0
    types: dict[int, int] = {}
    rcodes: dict[int, int] = {}
    random_, log, template_of = rng.random, math.log, names.template
    now, serial = 0.0, 0
    waiting: list[tuple[int, int, bytes]] = []
    left = parameters.pairs
    while left:
        block = min(left, 5_000)
        left -= block
        some_ranks = rng.choices(ranks, cum_weights=zipf, k=block)
        some_paths = rng.choices(paths, cum_weights=weights, k=block)
        for rank, path in zip(some_ranks, some_paths, strict=True):
            now += gap * log(1.0 - random_())
            at = int(now)
            template = template_of(rank, random_(), path.do)
            port, ident = path.port_and_id()
            head, query_opt, reply_opt = path.head
            question = template.question
            serial += 4
            query = path.frame(
                False, port, ident, serial * 40503 & 65535, head + question + query_opt
            )
            waiting.append((at, serial, query))
            counts.ipv6 += path.ipv6
            qtype = question[-3] | question[-4] << 8
            types[qtype] = types.get(qtype, 0) + 1
            fate = random_()
            again = 0
            if fate < slow_repeat:
                if fate >= parameters.lost or random_() < again_in_lost:
                    again = 400_000 + int(800_000 * random_())
                    counts.repeated += 1
                    waiting.append((at + again, serial + 1, query))
                if fate < parameters.lost:
                    counts.lost += 1
                    continue
            flags = template.edns if path.edns else template.plain
            due = at + again + _latency(random_(), rng)
            reply = path.frame(True, port, ident, serial * 30011 & 65535,
                               flags + template.rest + reply_opt)  # fmt: skip
            waiting.append((due, serial + 2, reply))
            counts.answers += template.answers
            rcode = flags[1] & 15
            rcodes[rcode] = rcodes.get(rcode, 0) + 1
            if fate > 1.0 - parameters.duplicated:
                # Half as a mirror port shows everything twice, half as a server asked twice.
                late = 1 + int(20 * random_()) if random_() < 0.5 else 10_000 + int(8e5 * random_())
                waiting.append((due + late, serial + 3, reply))
                counts.duplicated += 1
                counts.answers += template.answers
        waiting.sort()
        # What comes before the next query is complete; without a next query, all is.
        ready = len(waiting)
        if left:
            here = int(now)
            while ready and waiting[ready - 1][0] > here:
                ready -= 1
        yield waiting[:ready]
        del waiting[:ready]
    counts.pairs = parameters.pairs
    counts.queries = parameters.pairs + counts.repeated
    counts.replies = parameters.pairs - counts.lost + counts.duplicated
    by_share = sorted(types.items(), key=lambda item: -item[1])
    counts.types = {_TYPE_NAMES[qtype]: number for qtype, number in by_share}
    rcode_names = {0: "NOERROR", 2: "SERVFAIL", 3: "NXDOMAIN", 5: "REFUSED"}
    counts.rcodes = {rcode_names[rcode]: number for rcode, number in sorted(rcodes.items())}


def generate(parameters: Parameters, path: Path) -> Counts:
    """Write the capture file; the time this takes is about 20 µs a pair."""
    counts = Counts()
    store(path, packets(parameters, counts), counts)
    return counts


def store(path: Path, blocks: Iterable[list[tuple[int, int, bytes]]], counts: Counts) -> None:
    """Write blocks of frames, in order of time, as a capture file; counts what it writes."""
    pack = PACKET.pack
    last = 0
    collecting = gc.isenabled()
    gc.disable()  # millions of objects that live on and form no cycles
    try:
        with open(path, "wb", buffering=0) as file:
            parts = [FILE_HEADER]
            for block in blocks:
                for at, _, frame in block:
                    size = len(frame)
                    parts.append(pack(START + at // 1_000_000, at % 1_000_000, size, size))
                    parts.append(frame)
                    counts.frame_bytes += size
                counts.frames += len(block)
                if block:
                    last = block[-1][0]
                file.write(b"".join(parts))
                parts.clear()
    finally:
        if collecting:
            gc.enable()
    counts.seconds = last / 1e6


def cached(
    parameters: Any,
    folder: Path = OUT,
    generate: Callable[[Any, Path], Counts] = generate,
    kind: type[Counts] = Counts,
) -> tuple[Path, Any]:
    """The capture file with these parameters and its counts (of type `kind`, which `generate`
    makes); made where it is not there yet."""
    path = folder / parameters.file_name()
    notes = path.with_suffix(".json")
    try:
        counts = kind(**json.loads(notes.read_text()))
        if path.stat().st_size == len(FILE_HEADER) + 16 * counts.frames + counts.frame_bytes:
            return path, counts
    except (OSError, ValueError, TypeError):
        pass
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    print(f"generating {path}", file=sys.stderr, flush=True)
    # Under other names until complete: an interrupted run must not leave half a file behind.
    half = path.with_suffix(f".{os.getpid()}.part")
    try:
        counts = generate(parameters, half)
        half.replace(path)
        half.write_text(json.dumps(dataclasses.asdict(counts), indent=1) + "\n")
        half.replace(notes)
    finally:
        half.unlink(missing_ok=True)
    print(f"  {counts.frames:,} frames in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return path, counts


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.traffic", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="the file to write (default: in bench-out/)")
    for field in dataclasses.fields(Parameters):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    options = vars(parser.parse_args())
    out = options.pop("out")
    parameters = Parameters(**options)
    counts = generate(parameters, out) if out else cached(parameters)[1]
    print(json.dumps(dataclasses.asdict(counts), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
