"""A worker process: frames of its ring into events of its ring."""

from __future__ import annotations

from gazer.child import Boot, Child, run
from gazer.config import Detail
from gazer.errors import ProcessError
from gazer.topology import Topology
from gazer.workers.encode import Encoder
from gazer.workers.engine import Engine
from gazer.workers.stream import Streams
from gazer.workers.transaction import Transactions
from gazer.workers.transfer import Transfers

TRANSFERS_SHARE = 4  # of streams.max_bytes, one part in so many is for zone transfers


def main(boot: Boot) -> None:
    """What the supervisor starts."""
    run(boot, work)


def work(child: Child) -> None:
    """Work until the frame ring is at its end.  Limits of all workers are shared out evenly."""
    boot = child.boot
    config = boot.config
    limits = config.transactions
    streams = config.streams
    topology = Topology.of(config)
    workers = topology.workers
    index = boot.part.index
    stream_bytes = streams.max_bytes // workers
    engine = Engine(
        frame_ring=child.ring(topology.frames(0, index)),
        event_ring=child.ring(topology.events(index)),
        bell=boot.bell,
        capture_bell=boot.bells[0],
        sink_bell=boot.bells[topology.sink],
        slot=child.slot,
        table=Transactions(
            max_pending=max(1, limits.max_pending // workers),
            max_bytes=limits.max_pending_bytes // workers,
            window=limits.duplicate_window_ns,
            seed=boot.seed,
        ),
        transfers=Transfers(
            max_transfers=max(1, streams.max_transfers // workers),
            max_bytes=stream_bytes // TRANSFERS_SHARE,
            budget=config.events.max_size,
            seed=boot.seed,
        ),
        streams=Streams(
            max_streams=max(1, streams.max_streams // workers),
            max_bytes=stream_bytes - stream_bytes // TRANSFERS_SHARE,
            max_bytes_each=streams.max_bytes_each,
            timeout=streams.timeout_ns,
            seed=boot.seed,
        ),
        encoder=Encoder(
            full=config.events.detail is Detail.FULL,
            formats=[int(kind) for kind in config.forms()],
            max_size=config.events.max_size,
            sensor=config.sensor.id,
        ),
        records=config.events.records,
        timeout=limits.timeout_ns,
    )
    while (state := engine.run()) != "end":
        if state == "corrupt":
            raise ProcessError(f"{boot.part.name}: its frame ring is damaged")
    engine.release()
