from collections.abc import Iterable, Sequence

from gazer.capture.source import Source
from gazer.counters import Slot
from gazer.ring import Ring

class Dispatcher:
    def __init__(
        self,
        *,
        rings: Sequence[Ring],
        bells: Sequence[int],
        bell: int,
        slot: Slot,
        ports: Iterable[int],
        seed: int,
        live: bool = ...,
    ) -> None: ...
    def run(self, source: Source) -> str: ...
    def end(self) -> None: ...
    def release(self) -> None: ...
