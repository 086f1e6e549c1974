"""Captures that would be too long for a file, written to standard output for `-r -`.

    python -m benchmarks.stream repeat FILE TIMES    the file again and again, later each time
    python -m benchmarks.stream flood NUMBER         queries of which none is ever answered

Between two rounds of `repeat` lies more than the time a query waits for its reply (60 s): each
round begins with an empty table and so needs as much memory as the one before; a sensor whose
memory grows with the length of its input shows it. The flood is forged queries from random
addresses for random names, all within 20 s, so that none times out before the table is full.
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import traffic, wire
from benchmarks.names import Universe

GAP = 70  # seconds between two rounds
FLOOD_SECONDS = 20


def repeat(path: Path, times: int) -> Iterator[bytes]:
    """The capture file `times` times as one stream of time."""
    with open(path, "rb") as file:
        header = file.read(24)
        if header[:20] != traffic.FILE_HEADER[:20]:
            raise SystemExit(f"{path}: not a capture of benchmarks.traffic; generate it with that")
        yield header
        read, put = traffic.PACKET.unpack_from, struct.Struct("<I").pack_into
        shift = 0
        for _ in range(times):
            file.seek(24)
            rest, last = b"", 0
            while block := file.read(1 << 20):
                data = bytearray(rest + block)
                at, end = 0, len(data) - 16
                while at <= end:
                    last, _, size, _ = read(data, at)
                    if at + 16 + size > len(data):
                        break
                    put(data, at, last + shift)
                    at += 16 + size
                rest = bytes(data[at:])
                del data[at:]
                yield bytes(data)
            shift += last - traffic.START + GAP


def flood(number: int, seed: int = 1) -> Iterator[bytes]:
    """`number` distinct queries without replies."""
    rng = random.Random(f"flood {seed}")
    universe = Universe(seed)
    zones = [universe.zone(n).apex.wire() for n in range(50)]
    head = wire.query_head(True)
    tail = b"\0\x01\0\x01" + wire.opt(1232, False)
    routes = [traffic.Route(rng, client, client % 6, False) for client in range(60_000)]
    pack = traffic.PACKET.pack
    parts = [traffic.FILE_HEADER]
    for i in range(number):
        at = i * FLOOD_SECONDS * 1_000_000 // number
        label = f"{rng.getrandbits(60):015x}".encode()
        dns = head + b"\x0f" + label + zones[i % 50] + tail
        route = routes[int(rng.random() * 60_000)]
        port, ident = route.port_and_id()
        frame = route.frame(False, port, ident, i & 65535, dns)
        parts.append(pack(traffic.START + at // 1_000_000, at % 1_000_000, len(frame), len(frame)))
        parts.append(frame)
        if len(parts) > 8192:
            yield b"".join(parts)
            parts.clear()
    yield b"".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.stream", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    again = commands.add_parser("repeat")
    again.add_argument("file", type=Path)
    again.add_argument("times", type=int)
    forged = commands.add_parser("flood")
    forged.add_argument("number", type=int)
    options = parser.parse_args()
    if options.command == "repeat":
        blocks = repeat(options.file, options.times)
    else:
        blocks = flood(options.number)
    try:
        for block in blocks:
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # The reader has gone; the measurement says why.
        sys.stderr.close()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
