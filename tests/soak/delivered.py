"""What came to the soak's receiver of a fluentd output: which names, each any number of times."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.receiver import ACK, CLOSE, GARBAGE, LOSE, TWICE, WRONG, Receiver, late
from tests.soak.traffic import NAME, TCP, kind


class Nothing(list[Any]):
    """What came is looked at and not kept."""

    def append(self, message: object) -> None:
        pass


class Delivered(Receiver):  # type: ignore[misc]
    """Holds each octet against the protocol, and keeps a bit for each name that it has
    acknowledged.  `odd`: it spoils acknowledgements, by dice."""

    def __init__(self, folder: Path, seed: int, breach: Callable[[str], None]) -> None:
        self.events = self.chunks = 0
        self.odd = False
        self._seen = bytearray()
        self._dice = random.Random(seed)
        self._breach = breach
        self.spool = folder / "spool"
        super().__init__(unix=str(folder / "receiver"), plan=self._choose)
        self.messages = Nothing()

    def _choose(self, message: object) -> object:
        if not self.odd:
            return ACK
        return self._dice.choices(
            [ACK, LOSE, TWICE, WRONG, CLOSE, GARBAGE, late(0.5)], [70, 5, 5, 5, 4, 1, 10])[0]

    def _ack(self, sock: Any, lock: Any, message: Any, ack: bytes) -> None:  # type: ignore[override]
        """Runs in the thread of a connection, or of a late acknowledgement."""
        with lock:
            self.chunks += 1
            self.events += len(message.entries)
            for found in NAME.finditer(message.plain):
                n = int(found[1])
                at = n >> 3
                if at >= len(self._seen):
                    self._seen.extend(bytes(at + 1 - len(self._seen) + 65536))
                self._seen[at] |= 1 << (n & 7)
        super()._ack(sock, lock, message, ack)

    def missing(self, sent: range) -> int:
        """As of Written."""
        seen = self._seen
        return sum(
            1 for n in sent
            if kind(n) != TCP and (n >> 3 >= len(seen) or not seen[n >> 3] & 1 << (n & 7)))

    def end(self) -> None:
        try:
            self.close()
        except AssertionError as error:
            self._breach(f"what the receiver got is not the protocol: {error}")
