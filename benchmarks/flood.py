"""A flood of forged queries with real pairs inside, in a capture file.

    python -m benchmarks.flood --forged 1000000 [--pairs 10000] [--seed 1] [--out FILE]

Each forged query has a random source, port, id and name, and nobody answers it. Real pairs, made
as in `traffic` and none of them lost, stand among them: one message in fifty. Both are spread
over the same time, RATE forged queries a second; a reply comes within a second of its query, so
before a table of MAX_PENDING waiting queries could push the query out.

What a sensor has to make of it: `pairs` transactions with a reply, `forged` without.

Rules
- Nothing but the parameters and VERSION decides the file's bytes; see `traffic`.
- All lengths and checksums are right.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import json
import random
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from benchmarks import traffic, wire
from benchmarks.names import Universe

VERSION = 1
RATE = 50_000  # forged queries a second
MAX_PENDING = 200_000  # what a sensor is run with: reached after four seconds
_IPV4 = struct.Struct(">HHHHBBHIIHHHHH")


@dataclasses.dataclass(frozen=True)
class Parameters:
    forged: int = 1_000_000
    pairs: int = 10_000
    seed: int = 1

    kind: ClassVar[str] = f"flood-v{traffic.VERSION}.{VERSION}"

    def file_name(self) -> str:
        return f"{self.kind}-{self.forged}-{self.pairs}-{self.seed}.pcap"


@dataclasses.dataclass
class Counts(traffic.Counts):
    """What the file holds; `pairs`, `lost` and what follows from them are of the real pairs."""

    forged: int = 0  # messages

    @property
    def messages(self) -> int:
        return self.queries + self.replies + self.forged

    @property
    def no_reply(self) -> int:
        return self.forged


def forged(parameters: Parameters) -> Iterator[tuple[int, int, bytes]]:
    """Queries from anywhere for anything, in order of time."""
    rng = random.Random(f"forged {parameters.seed}")
    universe = Universe(parameters.seed)
    tails = [universe.zone(n).apex.wire() + b"\0\x01\0\x01" + wire.opt(1232, False)
             for n in range(200)]  # fmt: skip
    head = wire.query_head(True)
    ethernet = b"\x02\0\x53\0\0\1\x02\0\x5e\0\0\1\x08\0"
    bits = rng.getrandbits
    for i in range(parameters.forged):
        draw = bits(128)
        source = 0x0B000000 + (draw & 0xFFFFFFFF) % 0xD0000000  # 11.0.0.0 to 218.255.255.255
        server = 0x0A000035 + (draw >> 32 & 0xFFFF) % 6
        port = 1024 + (draw >> 48 & 0xFFFF) % 64512
        dns = head + b"\x0c%012x" % (draw >> 80) + tails[i % 200]
        ident = draw >> 64 & 0xFFFF
        length = 10 + len(dns)
        total = length + 20
        ends = source + server  # 2^16 is 1 modulo 65535, so halves need not be told apart
        ip_check = 65535 - (0x4500 + total + (i & 65535) + (50 << 8 | 17) + ends) % 65535
        data = int.from_bytes(dns, "big") << (8 * (len(dns) & 1))
        check = 65535 - (ends + 17 + 2 * length + port + 53 + ident + data) % 65535
        yield (
            i * 1_000_000 // RATE,
            2 * i,
            ethernet + _IPV4.pack(0x4500, total, i & 65535, 0, 50, 17, ip_check, source, server,
                                  port, 53, length, check, ident) + dns,
        )  # fmt: skip


def packets(parameters: Parameters, counts: Counts) -> Iterator[list[tuple[int, int, bytes]]]:
    rate = max(1, parameters.pairs * RATE // max(1, parameters.forged))
    real = traffic.Parameters(
        pairs=parameters.pairs, seed=parameters.seed, rate=rate, lost=0, repeated=0, duplicated=0
    )
    plain = traffic.Counts()

    def pairs() -> Iterator[tuple[int, int, bytes]]:
        for block in traffic.packets(real, plain):
            for at, number, frame in block:
                yield at, 2 * number + 1, frame

    merged = heapq.merge(forged(parameters), pairs(), key=lambda frame: frame[0])
    block = []
    for frame in merged:
        block.append(frame)
        if len(block) == 8192:
            yield block
            block = []
    yield block
    for name in ("pairs", "queries", "replies", "ipv6", "answers", "types", "rcodes"):
        setattr(counts, name, getattr(plain, name))
    counts.forged = parameters.forged


def generate(parameters: Parameters, path: Path) -> Counts:
    counts = Counts()
    traffic.store(path, packets(parameters, counts), counts)
    return counts


def cached(parameters: Parameters, folder: Path = traffic.OUT) -> tuple[Path, Counts]:
    return traffic.cached(parameters, folder, generate, Counts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.flood", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="the file to write (default: in bench-out/)")
    for field in dataclasses.fields(Parameters):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    options = vars(parser.parse_args())
    out = options.pop("out")
    parameters = Parameters(**options)
    counts = generate(parameters, out) if out else cached(parameters)[1]
    print(json.dumps(dataclasses.asdict(counts), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
