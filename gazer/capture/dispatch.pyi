from collections.abc import Iterable, Sequence

from gazer.capture.filter import Filter
from gazer.capture.fragments import Fragments
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
        capture: int = ...,
        start: int | None = ...,
        filter: Filter | None = ...,
        fragments: Fragments | None = ...,
        mdns: bool = ...,
        llmnr: bool = ...,
        decode: Iterable[str] = ...,
        max_depth: int = ...,
        vxlan_ports: Iterable[int] = ...,
        geneve_ports: Iterable[int] = ...,
    ) -> None: ...
    @property
    def absent(self) -> bool: ...
    def run(self, source: Source) -> str: ...
    def idle(self) -> None: ...
    def kernel(self, received: int, dropped: int, missed: int) -> None: ...
    def wait_for_room(self) -> None: ...
    def interface_gone(self) -> None: ...
    def listening(self) -> None: ...
    def end(self) -> None: ...
    def release(self) -> None: ...
