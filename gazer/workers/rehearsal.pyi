from collections.abc import Iterable

from gazer.workers.encode import Encoder

def rehearse(encoder: Encoder, wires: Iterable[bytes]) -> None: ...
