"""A worker process: frames of its rings into events of its ring.

In a live run it may succeed one that died (ARCHITECTURE.md, "Succession").  If two have died of the
same frame, that frame is kept in `service.quarantine` before it is skipped.
"""

from __future__ import annotations

from gazer.child import NOTICE, READY, Boot, Child, run
from gazer.config import Detail
from gazer.errors import OutputError, ProcessError
from gazer.quarantine import keep
from gazer.topology import Topology
from gazer.workers.encode import Encoder
from gazer.workers.engine import Engine
from gazer.workers.sample import Samples
from gazer.workers.stream import Streams
from gazer.workers.transaction import Transactions
from gazer.workers.transfer import Transfers

TRANSFERS_SHARE = 4  # of streams.max_bytes, one part in so many is for zone transfers


def main(boot: Boot) -> None:
    """What the supervisor starts."""
    run(boot, work)


def work(child: Child) -> None:
    """Work until the frame rings are at their end."""
    engine = prepare(child)
    if (frame := engine.condemned_frame()) is not None:
        set_aside(child, frame)
    if child.boot.confined:
        confine(child)
    child.report(READY)
    # From here on no file is opened and nothing is imported: what is lazy comes before this line,
    # and so does what a worker gives up before it sees the first octet from a stranger.
    while (state := engine.run()) != "end":
        if state == "corrupt":
            raise ProcessError(f"{child.boot.part.name}: its frame ring is damaged")
    engine.release()


def confine(child: Child) -> None:
    """Leave this process no call of the kernel's but those that its work takes (gazer.seccomp)."""
    # Here: a run over files does without.
    from gazer.seccomp import install
    from gazer.workers.warm import warm_up

    boot = child.boot
    topology = Topology.of(boot.config)
    neighbours = [*range(topology.captures), topology.sink]
    warm_up(lambda line: child.report(NOTICE, line))
    warning = install(
        reads=[boot.bell], writes=[*(boot.bells[n] for n in neighbours), boot.reports])
    if warning and boot.part.index == 0:        # it is the same for all
        child.report(NOTICE, warning)


def set_aside(child: Child, frame: tuple[int, int, int, bytes]) -> None:
    """Say that this frame will be skipped, and keep it where the configuration says so."""
    path = child.boot.config.service.quarantine
    text = f"{child.boot.part.name} skips a frame that it has died of twice"
    if path:
        try:
            text += f"; it is kept in {keep(path, *frame)}"
        except OutputError as error:
            text += f"; {error}"
    child.report(NOTICE, text)


def prepare(child: Child) -> Engine:
    """The engine.  Limits of all workers are shared out evenly."""
    boot = child.boot
    config = boot.config
    limits = config.transactions
    streams = config.streams
    topology = Topology.of(config)
    workers = topology.workers
    index = boot.part.index
    stream_bytes = streams.max_bytes // workers
    captures = range(topology.captures)
    return Engine(
        frame_rings=[child.ring(topology.frames(c, index)) for c in captures],
        event_ring=child.ring(topology.events(index)),
        bell=boot.bell,
        capture_bells=[boot.bells[c] for c in captures],
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
            run=child.slot.run()["started"] if config.events.event_id else None,
        ),
        records=config.events.records,
        timeout=limits.timeout_ns,
        samples=Samples(child.attach(topology.samples(index))) if topology.interfaces else None,
    )
