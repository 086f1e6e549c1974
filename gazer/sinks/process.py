"""The sink process: the workers' events, in order, to all outputs.  It is the only writer."""

from __future__ import annotations

import time

from gazer.child import CLOSED, FAULT, NOTICE, READY, Boot, Child, run
from gazer.config import OutputKind
from gazer.errors import OutputError, ProcessError
from gazer.sinks.files import ClosedError, FileOutput, GaveUpError
from gazer.sinks.merge import Block, Merge
from gazer.topology import Topology

BLOCK = 256 * 1024      # bytes written at once; fits a core's cache
FLUSH_AFTER = 0.2       # seconds that an event stays in a block while there is nothing to do
NAP_MS = 100


def main(boot: Boot) -> None:
    """What the supervisor starts."""
    run(boot, sink)


class Outputs:
    """All outputs with their blocks and counters.

    An output that has ended (its reader has gone, or it gave up waiting for room) takes no more;
    what would have gone there is counted.  The others go on.
    """

    def __init__(self, child: Child) -> None:
        self._child = child
        config = child.boot.config
        slot = child.slot
        self._lines = [o.kind in (OutputKind.TEXT, OutputKind.JSON) for o in config.outputs]
        self.files = [
            FileOutput(
                output.path,
                lines=lines,
                notice=lambda text: child.report(NOTICE, text),
                giving_up=lambda: slot.draining,
                waits=slot.waits,
            )
            for output, lines in zip(config.outputs, self._lines, strict=True)
        ]
        self.blocks = [
            Block(format=int(output.kind), capacity=max(BLOCK, config.events.max_size + 1024))
            for output in config.outputs
        ]
        self._ended = [False] * len(self.files)
        self._closed = False        # a reader of standard output has gone

    def empty(self) -> bool:
        return not any(block.used for block in self.blocks)

    def flush(self) -> None:
        """Write all blocks.  Raises ClosedError if nobody reads any output any more, OutputError
        when all that could be written is."""
        failure = None
        for number, block in enumerate(self.blocks):
            if not block.used:
                continue
            events = taken = 0
            if not self._ended[number]:
                try:
                    self.files[number].write(block.data())
                    events, taken = block.events, block.used
                except ClosedError as why:
                    self._ended[number] = self._closed = True
                    taken = why.taken
                    if self._lines[number]:     # an event is a line
                        events = bytes(block.data()[:taken]).count(b"\n")
                    if not all(self._ended):
                        self._child.report(NOTICE, f"nobody reads {self.files[number].name} any "
                                                   "more; the other outputs go on")
                except GaveUpError:
                    self._ended[number] = True
                    self._child.report(FAULT, f"interrupted while {self.files[number].name} had no "
                                              "room: the rest is not written to it")
                except OutputError as error:
                    self._ended[number] = True
                    failure = failure or error
            self._child.slot.add_output(number, events, taken, block.events - events)
            block.clear()
        self._child.slot.publish()
        if failure is not None:
            raise failure
        if self._closed and all(self._ended):
            raise ClosedError

    def close(self) -> None:
        for file in self.files:
            file.close()


def sink(child: Child) -> None:
    """Merge and write until all workers are done."""
    topology = Topology.of(child.boot.config)
    outputs = Outputs(child)
    child.report(READY)
    merge = Merge(
        rings=[child.ring(topology.events(i)) for i in range(topology.workers)],
        bells=[child.boot.bells[topology.worker(i)] for i in range(topology.workers)],
        bell=child.boot.bell,
        slot=child.slot,
        blocks=outputs.blocks,
    )
    try:
        pump(child, merge, outputs)
        outputs.close()
    except ClosedError:
        child.report(CLOSED)
    merge.release()


def pump(child: Child, merge: Merge, outputs: Outputs) -> None:
    """Merge, and write a block when it is full or has waited."""
    since = 0.0
    while not child.slot.quitting:
        state = merge.run()
        if state == "full":
            outputs.flush()
            since = 0.0
        elif state == "end":
            outputs.flush()
            return
        elif state == "corrupt":
            raise ProcessError("gazer:sink: an event ring is damaged")
        else:
            if not outputs.empty():
                now = time.monotonic()
                since = since or now
                if now - since >= FLUSH_AFTER:
                    outputs.flush()
                    since = 0.0
            merge.wait(NAP_MS)
    outputs.flush()
