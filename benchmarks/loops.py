"""The three hot loops one after the other in one process, without sleeping, waking and sharing.

    python -m benchmarks.loops FILE.pcap [classic|full]

prints the CPU time of each loop a message.  One process is also what a profiler likes best:

    valgrind --tool=callgrind .venv/bin/python -m benchmarks.loops FILE.pcap

and the instructions below `pump`, `turn` and `merge` are the same in every run, whatever else the
machine does.  The rings hold the whole file at once, so give it some 100,000 messages at most.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path

from gazer.capture.dispatch import Dispatcher
from gazer.capture.files import open_source
from gazer.capture.fragments import Fragments
from gazer.counters import WORKER, Slot, ledger_bytes, ledger_create
from gazer.ring import Ring, ring_bytes
from gazer.sinks.merge import Block, Merge
from gazer.workers.encode import Encoder
from gazer.workers.engine import Engine
from gazer.workers.stream import Streams
from gazer.workers.transaction import Transactions
from gazer.workers.transfer import Transfers

SECOND = 10**9
MAX_EVENT = 256 * 1024
CAPTURE, SINK, WORKER_0 = range(3)      # numbers of slots and bells


def room_for(path: str) -> int:
    """A ring that holds all frames, or all events, of the file: a power of two."""
    return 1 << max(20, (8 * Path(path).stat().st_size).bit_length())


def run(path: str, *, full: bool = False) -> tuple[int, list[float]]:
    """Messages in the file, and the CPU seconds of dispatch, engine and merge over it."""
    capacity = room_for(path)
    ledger = bytearray(ledger_bytes(3))
    ledger_create(ledger)
    frames, events = (bytearray(ring_bytes(capacity)) for _ in range(2))
    bells = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
    marks = [time.process_time()]

    source = open_source(path, snaplen=MAX_EVENT)
    dispatcher = Dispatcher(
        rings=[Ring(frames, create=capacity)], bells=[bells[WORKER_0]], bell=bells[CAPTURE],
        slot=Slot(ledger, CAPTURE), ports=[53], seed=1, max_depth=4, vxlan_ports=[4789],
        geneve_ports=[6081], decode=["mpls", "pppoe", "gre", "erspan", "vxlan", "geneve", "ip"],
        fragments=Fragments(max_datagrams=4096, max_bytes=1 << 24, timeout=30 * SECOND, seed=1,
                            snaplen=MAX_EVENT),
    )
    while dispatcher.run(source) not in ("end", "broken"):
        pass
    dispatcher.end()
    source.close()
    marks.append(time.process_time())

    engine = Engine(
        frame_rings=[Ring(frames)], event_ring=Ring(events, create=capacity), bell=bells[WORKER_0],
        capture_bells=[bells[CAPTURE]], sink_bell=bells[SINK], slot=Slot(ledger, WORKER_0),
        table=Transactions(max_pending=10**6, max_bytes=1 << 28, window=5 * SECOND, seed=1),
        transfers=Transfers(max_transfers=1024, max_bytes=1 << 25, budget=MAX_EVENT, seed=1),
        streams=Streams(max_streams=1 << 16, max_bytes=3 << 25, max_bytes_each=1 << 18,
                        timeout=300 * SECOND, seed=1),
        encoder=Encoder(full=full, formats=[0], max_size=MAX_EVENT, sensor="sensor-1"),
        records=False, timeout=60 * SECOND,
    )
    while engine.run() != "end":
        pass
    marks.append(time.process_time())

    block = Block(format=0, capacity=MAX_EVENT + 1024)
    merge = Merge(rings=[Ring(events)], bells=[bells[WORKER_0]], bell=bells[SINK],
                  slot=Slot(ledger, SINK), blocks=[block])
    while merge.run() != "end":
        block.clear()
        merge.settle_all()
    marks.append(time.process_time())
    for bell in bells:
        os.close(bell)
    counted = Slot(ledger, WORKER_0).read(WORKER)
    messages = counted["datagrams"] + counted["stream_messages"]
    return messages, [after - before for before, after in itertools.pairwise(marks)]


def main(argv: list[str]) -> int:
    if not 1 <= len(argv) <= 2 or argv[1:] not in ([], ["classic"], ["full"]):
        print("usage: python -m benchmarks.loops FILE.pcap [classic|full]", file=sys.stderr)
        return 2
    messages, seconds = run(argv[0], full=argv[1:] == ["full"])
    each = ", ".join(
        f"{name} {cpu * 1e6 / max(messages, 1):.3f}"
        for name, cpu in zip(("dispatch", "engine", "merge"), seconds, strict=True)
    )
    print(f"{messages} messages; CPU µs a message: {each}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
