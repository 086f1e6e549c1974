"""The sink process: the workers' events, in order, to all outputs.  It is the only writer."""

from __future__ import annotations

import time

from gazer.child import CLOSED, ERROR, NOTICE, READY, Boot, Child, run
from gazer.errors import OutputError, ProcessError
from gazer.sinks.files import ClosedError, FileOutput, GaveUpError
from gazer.sinks.merge import Block, Merge
from gazer.topology import FIRST_WORKER, Topology

BLOCK = 256 * 1024      # bytes written at once; fits a core's cache
FLUSH_AFTER = 0.2       # seconds that an event stays in a block while there is nothing to do
NAP_MS = 100


def main(boot: Boot) -> None:
    """What the supervisor starts."""
    run(boot, sink)


class Outputs:
    """All outputs with their blocks and counters."""

    def __init__(self, child: Child) -> None:
        self._child = child
        config = child.boot.config
        slot = child.slot
        self.files = [
            FileOutput(
                output.path,
                notice=lambda text: child.report(NOTICE, text),
                quitting=lambda: slot.quitting,
                waits=slot.waits,
            )
            for output in config.outputs
        ]
        self.blocks = [
            Block(format=int(output.kind), capacity=max(BLOCK, config.events.max_size + 1024))
            for output in config.outputs
        ]

    def empty(self) -> bool:
        return not any(block.used for block in self.blocks)

    def flush(self) -> None:
        """Write all blocks."""
        for number, (file, block) in enumerate(zip(self.files, self.blocks, strict=True)):
            if block.used:
                try:
                    file.write(block.data())
                except BaseException:
                    self._child.slot.add_output(number, 0, 0, block.events)
                    block.clear()
                    raise
                self._child.slot.add_output(number, block.events, block.used, 0)
                block.clear()

    def give_up(self) -> None:
        """What still stands in the blocks will not be written."""
        for number, block in enumerate(self.blocks):
            self._child.slot.add_output(number, 0, 0, block.events)
            block.clear()

    def close(self) -> None:
        for file in self.files:
            file.close()


def sink(child: Child) -> None:
    """Merge and write until all workers are done."""
    workers = Topology.of(child.boot.config).workers
    outputs = Outputs(child)
    child.report(READY)
    merge = Merge(
        rings=[child.ring(f"events{i}") for i in range(workers)],
        bells=[child.boot.bells[FIRST_WORKER + i] for i in range(workers)],
        bell=child.boot.bell,
        slot=child.slot,
        blocks=outputs.blocks,
    )
    try:
        pump(merge, outputs)
        outputs.close()
    except ClosedError:
        child.report(CLOSED)
    except GaveUpError:
        outputs.give_up()
        child.report(ERROR, "interrupted while an output had no room")
        raise SystemExit(1) from None
    except OutputError:
        outputs.give_up()
        raise
    merge.release()


def pump(merge: Merge, outputs: Outputs) -> None:
    """Merge, and write a block when it is full or has waited."""
    since = 0.0
    while True:
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
