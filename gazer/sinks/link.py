"""A fluentd output as the sink's loop sees it: its Forwarder, its spool's account, its sizes.

The Forwarder has a thread that talks to the servers; here is what the ledger says of it.  Events
that went into the spool are counted with the tasks they belong to (outputs.py).  What becomes of
them then the Forwarder counts, from 0 on with each sink; the ledger goes on from where the sink
before stood.  So

    found + spooled = delivered + dropped + damaged + still in the spool

holds over all sinks of a run, and the spool is the judge of it: a sink that was killed may have put
events there, or had them acknowledged, without a commit that says so.  What its successor finds
beyond what the ledger knows was put there (or was delivered, and not yet forgotten on disk: it is
delivered again) counts as found; what it does not find was delivered, but for what it has dropped
or lost: of that the spool keeps count itself, over all sinks of a run (Account.before).  What was
lost ahead of the spool (refused by a server or by a full spool, too old, or dropped from a full
queue) stands with the records behind it (Spool.lost).
"""

from __future__ import annotations

import time

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Mapping

    from gazer.counters import Slot
    from gazer.sinks.fluentd import Forwarder
    from gazer.sinks.spool import Spool

LOOK = 0.1      # seconds between two looks at what the Forwarder counts

# Counted from 0 by each Forwarder, and how things are now: names in the ledger and in its counts.
GROWING = {
    "delivered": "delivered", "spool_dropped": "dropped", "spool_damaged": "damaged",
    "resent": "resent", "rejected": "rejected",
}  # fmt: skip
NOW = {
    "spool_events": "there", "spool_bytes": "spool_bytes", "unacknowledged": "unacknowledged",
    "servers": "servers", "servers_up": "servers_up", "spool_failing": "spool_failing",
}  # fmt: skip


class Link:
    """capacity: of a block; limit: what it takes, unless that is one event.  queue: bytes of
    blocks that may wait.  flush_after: seconds that an event may stay in a block.  most: what the
    spool may take on disk.  run: what tells this run from others in the spool."""

    def __init__(self, forwarder: Forwarder, *, spool: Spool | None, capacity: int, limit: int,
                 queue: int, flush_after: float, most: int = 0, run: int = 0) -> None:
        self.forwarder = forwarder
        self.capacity = capacity
        self.limit = limit
        self.queue = queue
        self.flush_after = flush_after
        self._spool = spool
        self._run = run
        self._most = most
        self._base: dict[str, int] = {}
        self._looked = -LOOK

    def begin(self, slot: Slot, number: int) -> None:
        """Ahead of Slot.resume_output: what the spool has already need not come again."""
        if self._spool is not None:
            last, lost = self._spool.last(self._run), self._spool.lost(self._run)
            known = slot.own_output(number)
            if last > known["done"]:
                # Of what has been handed on since the last commit the spool has most, and the
                # servers have the rest: it is missing below, and so delivered.
                kept = known["events"] + known["spooled"] - known["stats"]
                slot.add_output(number, 0, 0, 0, done=last, spooled=max(0, last - lost - kept))
        known = slot.own_output(number)
        # What stands in no queue and was not handed on is lost (Slot.resume_output).
        self.forwarder.handed_on = known["events"] + known["spooled"] - known["stats"]
        if self._spool is not None:
            dropped, damaged = self._spool.account.before
            known["spool_dropped"] = max(known["spool_dropped"], dropped)
            known["spool_damaged"] = max(known["spool_damaged"], damaged)
        there = (known["spool_found"] + known["spooled"] - known["delivered"]
                 - known["spool_dropped"] - known["spool_damaged"])
        found = self.forwarder.counts()["found"]
        if found > there:
            known["spool_found"] += found - there
        else:
            known["delivered"] += there - found
        self._base = {name: known[name] for name in GROWING}
        slot.set_output(number, {
            "spool_found": known["spool_found"], "delivered": known["delivered"],
            "spool_dropped": known["spool_dropped"], "spool_damaged": known["spool_damaged"],
            "spool_limit": self._most,
        })  # fmt: skip
        self.account(slot, number, now=True)

    def account(self, slot: Slot, number: int, *, now: bool = False) -> bool:
        """Bring the ledger up to date, some times a second; True if it was."""
        moment = time.monotonic()
        if not now and moment - self._looked < LOOK:
            return False
        self._looked = moment
        counts: Mapping[str, int] = self.forwarder.counts()
        slot.set_output(number, {
            **{name: self._base[name] + max(0, counts[key]) for name, key in GROWING.items()},
            **{name: counts[key] for name, key in NOW.items()},
        })  # fmt: skip
        return True
