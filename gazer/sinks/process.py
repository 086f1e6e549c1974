"""The sink process: the workers' events, in order, to all outputs.  It is the only writer."""

from __future__ import annotations

import time

from gazer import counters
from gazer.child import CLOSED, FAULT, NOTICE, READY, Boot, Child, run
from gazer.config import OutputKind
from gazer.counters import Slot
from gazer.errors import ProcessError
from gazer.sinks.files import ClosedError, FileOutput
from gazer.sinks.link import Link
from gazer.sinks.merge import Merge
from gazer.sinks.outputs import BLOCK, NAP_MS, Outputs
from gazer.topology import Topology

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from gazer.config import Forward, Output
    from gazer.sinks.stats import Interval
    from gazer.summary import Account

PATIENCE = 5.0          # seconds without progress after which a stop gives an output up; at most
PATIENCE_SHARE = 1 / 3  # ... this share of service.shutdown_timeout


def main(boot: Boot) -> None:
    """What the supervisor starts."""
    run(boot, sink)


def sink(child: Child) -> None:
    """Merge and write until all workers are done."""
    config = child.boot.config
    topology = Topology.of(config)
    patience = min(PATIENCE, config.service.shutdown_timeout_ns / 1e9 * PATIENCE_SHARE)
    outputs = open_outputs(child, live=bool(topology.interfaces), patience=patience)
    merge = Merge(
        rings=[child.ring(topology.events(i)) for i in range(topology.workers)],
        bells=[child.boot.bells[topology.worker(i)] for i in range(topology.workers)],
        bell=child.boot.bell,
        slot=child.slot,
        blocks=outputs.blocks,
    )
    outputs.attach(merge)
    stats = Stats(child, topology, outputs) if topology.interfaces else None
    child.report(READY)
    try:
        pump(child, merge, outputs, stats, patience)
        outputs.close()
    except ClosedError:
        child.report(CLOSED)
    if stats is not None:
        stats.release()
    merge.release()


def open_outputs(child: Child, *, live: bool, patience: float) -> Outputs:
    """Open all outputs; each of a live run, and each that goes to fluentd, has a thread of its
    own."""
    config = child.boot.config
    slot = child.slot
    hand: Callable[..., object] | None = None
    if live:
        from functools import partial

        from gazer.sinks.threads import Hand  # here: files of a run over files have no threads

        hand = partial(Hand, bell=child.boot.bell)
    lines = [output.kind in (OutputKind.TEXT, OutputKind.JSON) for output in config.outputs]
    files: dict[int, FileOutput] = {}
    links: dict[int, Link] = {}

    def giving_up(number: int) -> bool:
        """Whether to wait no longer; while a live run stops, only for who does not move."""
        if not live:
            return slot.draining
        stands = number in files and time.monotonic() - files[number].progress > patience
        return slot.quitting or (slot.draining and stands)

    for number, output in enumerate(config.outputs):
        if output.forward is not None:
            links[number] = open_link(child, output.name, output.forward, live=live)
            continue
        files[number] = file_output(
            output,
            lines=lines[number],
            notice=lambda text: child.report(NOTICE, text),
            giving_up=lambda number=number: giving_up(number),
            waits=(lambda _: None) if live else slot.waits,
            lasting=live,
            place=slot.output_place(number),
        )
    return Outputs(
        files=[files[i] if i in files else links[i] for i in range(len(config.outputs))],
        forms=[int(output.kind) for output in config.outputs],
        lines=lines,
        slot=slot,
        capacity=max(BLOCK, config.events.max_size + 1024),
        notice=lambda text: child.report(NOTICE, text),
        fault=lambda text: child.report(FAULT, text),
        hand=hand,      # type: ignore[arg-type]
    )


def open_link(child: Child, name: str, settings: Forward, *, live: bool) -> Link:
    """A fluentd output, with its spool if the run is live and there is one."""
    from gazer.sinks.fluentd import Forwarder  # here, as most have none

    def notice(text: str) -> None:
        child.report(NOTICE, text)

    run = child.slot.run()["started"]
    spool = None
    if live and settings.spool.path:
        from gazer.sinks.spool import Spool

        kept = settings.spool
        spool = Spool(kept.path, max_bytes=kept.max_bytes, drop=kept.drop, notice=notice,
                      run=run)
    forwarder = Forwarder(
        settings, spool=spool, bell=child.boot.bell, notice=notice,
        fault=lambda text: child.report(FAULT, text), live=live, name=name, run=run,
    )  # fmt: skip
    return Link(
        forwarder,
        spool=spool,
        capacity=max(settings.chunk_size, child.boot.config.events.max_size + 1024),
        limit=settings.chunk_size,
        queue=settings.queue,
        flush_after=settings.flush_interval_ns / 1e9,
        most=settings.spool.max_bytes if spool is not None else 0,
        run=run,
    )


def file_output(output: Output, **rest: Any) -> FileOutput:
    """The file of an output, which may be one after the other."""
    plain = output.path
    if output.rotation is not None or "%" in output.path:
        from gazer.config.patterns import Names, turning

        rotation = turning(output)
        if rotation is not None:
            from gazer.sinks.rotation import RotatingOutput

            return RotatingOutput(output.path, rotation=rotation, **rest)
        plain = Names(output.path).path
    mode = output.rotation.mode if output.rotation is not None else None
    return FileOutput(plain, mode=mode, **rest)


def pump(
    child: Child, merge: Merge, outputs: Outputs, stats: Stats | None, patience: float
) -> None:
    """Merge, and write a block when it is full or has waited.  In the end all is written, or given
    up."""
    slot = child.slot
    reloads = slot.reloads
    live = outputs.live
    threaded = outputs.threaded
    nap = outputs.nap
    while not slot.quitting:
        if live:        # whatever comes next: under load the sink may never be idle
            if slot.reloads != reloads:
                reloads = slot.reloads
                outputs.reopen()
            if stats is not None and stats.due():
                stats.write()
            if outputs.held():
                outputs.flush(all_=False)
                merge.nap(NAP_MS)
                continue
        state = merge.run()
        if state == "full":
            outputs.flush()
        elif state == "end":
            outputs.flush()
            if stats is not None:
                outputs.drain(patience)     # the last event tells of all that was written
                stats.write(last=True)
            break
        elif state == "corrupt":
            raise ProcessError("gazer:sink: an event ring is damaged")
        else:
            # Thousands of times a second at some rates: a run over files takes the short way.
            if live and merge.starved:
                outputs.flush()     # ready or not: what is in the blocks still fills a ring
            if merge.unwritten and outputs.due(time.monotonic()):
                outputs.flush(all_=False)
            if threaded:
                outputs.turn()
            if outputs.rotate and not live:
                outputs.turn_files()
            merge.wait(nap)
    outputs.flush()
    outputs.drain(patience)


class Stats:
    """Writes the stats events of a live run: reads the whole ledger, as anyone may."""

    def __init__(self, child: Child, topology: Topology, outputs: Outputs) -> None:
        from gazer.sinks.stats import Interval
        from gazer.summary import Account

        config = child.boot.config
        self._read = Account.read
        self._slot = child.slot
        self._topology = topology
        self._outputs = outputs
        self._forms = [int(output.kind) for output in config.outputs]
        ledger = child.attach("ledger")
        self._slots = {number: Slot(ledger, number) for number in range(topology.processes)}
        count = len(self._forms)
        self._interval: Interval = Interval(
            config.sensor.id, count, child.slot.run()["started"],
            child.slot.kept(Interval.words_of(count)),
        )
        self._length = config.service.stats_interval_ns / 1e9
        self._next = time.monotonic() + self._length

    def due(self) -> bool:
        return time.monotonic() >= self._next

    def write(self, *, last: bool = False) -> None:
        """The event of the interval that ends now, behind all events merged so far."""
        from gazer.sinks.stats import encoded

        self._next = max(self._next + self._length, time.monotonic())
        outputs = self._outputs
        outputs.flush()
        self._slot.publish()
        account = self._read(self._slots, self._topology, len(self._forms))
        now = time.time_ns()
        event = self._interval.end(
            now, counted(account, self._slots[self._topology.supervisor]),
            balanced=not any(account.imbalances(running=not last)), last=last,
        )
        after = self._interval.words()
        forms = {form: encoded(event, now, form) for form in set(self._forms)}
        outputs.put([forms[form] for form in self._forms], lambda: self._slot.keep(after))

    def release(self) -> None:
        for slot in self._slots.values():
            slot.release()


def counted(account: Account, supervisor: Slot) -> dict[str, int]:
    """What a stats event counts, from the ledger, since the run began; and `pending` as it is."""
    c, w = account.capture, account.workers
    watched = supervisor.read(counters.SUPERVISOR)
    restarts = sum(n for name, n in watched.items() if name.startswith("restarts."))
    return {
        "discarded": sum(account.anomalies("discarded").values()),
        "evicted": w["evicted"],
        "frames": c["frames"],
        "further_reply": w["further"],
        "interface_dropped": c["interface_dropped"],
        "kernel_dropped": c["kernel_dropped"],
        "kernel_lost": c["kernel_lost"],
        "lossy": w["lossy"],
        "lost_pending": w["lost_pending"],
        "messages": account.messages(),
        "no_query": w["no_query"],
        "no_reply": w["no_reply"] + w["evicted"],
        "one_way": account.one_way(),
        "pending": w["pending"],
        "quarantined": w["quarantined"],
        "queries": w["queries"],
        "replies": w["replies"],
        "restarts": restarts - watched["interface_gone"],
        "ring_dropped": c["ring_dropped"],
        "success": w["success"],
        **{
            f"output{number}_{name}": output[key]
            for number, output in enumerate(account.outputs)
            for name, key in (
                ("delivered", "delivered"), ("dropped", "dropped"), ("spooled", "spooled"),
                ("written", "events"),
            )
        },
        **{
            f"output{number}_spool_dropped": output["spool_dropped"] + output["spool_damaged"]
            for number, output in enumerate(account.outputs)
        },
    }
