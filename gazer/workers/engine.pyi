from gazer.counters import Slot
from gazer.ring import Ring
from gazer.workers.encode import Encoder
from gazer.workers.sample import Samples
from gazer.workers.stream import Streams
from gazer.workers.transaction import Transactions
from gazer.workers.transfer import Transfers

class Engine:
    def __init__(
        self,
        *,
        frame_rings: list[Ring],
        event_ring: Ring,
        bell: int,
        capture_bells: list[int],
        sink_bell: int,
        slot: Slot,
        table: Transactions,
        transfers: Transfers,
        streams: Streams,
        encoder: Encoder,
        records: bool,
        timeout: int,
        samples: Samples | None = ...,
    ) -> None: ...
    def condemned_frame(self) -> tuple[int, int, int, bytes] | None: ...
    def run(self) -> str: ...
    def release(self) -> None: ...
