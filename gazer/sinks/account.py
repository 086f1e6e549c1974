"""The account of a spool, in records and in events, and the line that tells of what was lost."""

from __future__ import annotations

import time

from gazer.config.kinds import printable

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable

REMIND = 30.0           # seconds between two lines about damage


class Tally:
    """So many records with so many events."""

    __slots__ = ("events", "records")

    def __init__(self, records: int = 0, events: int = 0) -> None:
        self.records = records
        self.events = events

    def add(self, records: int, events: int) -> None:
        self.records += records
        self.events += events


class Account:
    """Of one process that has opened a spool:

        found + spooled = delivered + dropped + damaged + there

    `refused` and `torn`, which counts places, are beside it.
    """

    KINDS = ("found", "spooled", "delivered", "dropped", "damaged", "refused", "there")

    def __init__(self, folder: str, notice: Callable[[str], None]) -> None:
        self.folder = folder
        self.notice = notice
        self.found, self.spooled, self.delivered = Tally(), Tally(), Tally()
        self.dropped, self.damaged, self.refused = Tally(), Tally(), Tally()
        self.there = Tally()
        self.torn = 0
        self.before = 0, 0      # dropped, damaged: by processes of the same run before this one
        self._untold, self._told = Tally(), -REMIND

    def find(self, what: Tally) -> None:
        self.found.add(what.records, what.events)
        self.there.add(what.records, what.events)

    def append(self, events: int) -> None:
        self.spooled.add(1, events)
        self.there.add(1, events)

    def deliver(self, events: int, lost: int = 0) -> None:
        """A record that is done with; `lost` of its events no server has, by a policy."""
        self.delivered.add(1, events - lost)
        self.dropped.add(0, lost)
        self.there.add(-1, -events)

    def drop(self, what: Tally) -> None:
        self.dropped.add(what.records, what.events)
        self.there.add(-what.records, -what.events)

    def lose(self, what: Tally) -> None:
        self.damaged.add(what.records, what.events)
        self._untold.add(what.records, what.events)
        self.there.add(-what.records, -what.events)

    @property
    def gone(self) -> tuple[int, int]:
        """Events dropped and damaged in this run.  It stands in the position, where a kill can't
        undo it; what a killed process had counted may be in no ledger."""
        dropped, damaged = self.before
        return max(0, dropped + self.dropped.events), max(0, damaged + self.damaged.events)

    def say(self, text: str) -> None:
        self.notice(f"spool {printable(self.folder)}: {text}")

    def tell(self, *, last: bool = False) -> None:
        """Of what was lost, if it has not been told: at once, then every 30 s, and at the end."""
        records, events = self._untold.records, self._untold.events
        if records and (last or time.monotonic() - self._told >= REMIND):
            self._told = time.monotonic()
            self._untold = Tally()
            self.say(f"{records} record{'s' * (records != 1)} with {events} "
                     f"event{'s' * (events != 1)} can't be read and are lost; what is left of them "
                     "is in damaged-* there, as far as there is room")

    def counts(self) -> dict[str, int]:
        counts = {"torn": self.torn}
        for kind in self.KINDS:
            tally = getattr(self, kind)
            counts[kind] = tally.events
            counts[f"{kind}_records"] = tally.records
        return counts
