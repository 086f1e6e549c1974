"""The table of metrics: names, types, labels and meanings.  docs/metrics.md is made of it.

Names begin with gazer_, then the role of the process that counts, then the counter's name in the
ledger; what only grows ends with _total.  A family of counters ("fate.dns", "fate.snapped") is one
metric with the label `reason` (or what FAMILIES says).  Latency buckets make one histogram, in
seconds; processes and rings are measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gazer import counters
from gazer.observe import meaning

# Counters that show what is there now; all others only grow.
GAUGES = frozenset({
    "waiting_pieces", "streams", "octets_buffered", "transferring", "pending", "absent",
    "spool_events", "spool_bytes", "spool_limit", "unacknowledged", "servers", "servers_up",
    "blocked_since", "spool_failing",
})  # fmt: skip

# Shown as what they mean: see _measured.
ELSEWHERE = frozenset({"blocked_since"})

Value = float | tuple[float, dict[float, int]]

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

# Families of counters and the label that tells their members apart.
FAMILIES = {
    "fate": "reason", "discarded": "reason", "malformed": "reason", "rcode": "rcode",
    "restarts": "role",
}  # fmt: skip
LATENCY = "latency."                # buckets and the sum, in microseconds
LATENCY_LE, LATENCY_SUM = "latency.le.", "latency.sum_us"

ROLES: dict[str, tuple[Mapping[str, int], Mapping[str, str], tuple[str, ...]]] = {
    "capture": (counters.CAPTURE, meaning.CAPTURE, ("capture",)),
    "worker": (counters.WORKER, meaning.WORKER, ("worker",)),
    "sink": (counters.SINK, meaning.SINK, ()),
    "output": (counters.OUTPUT, meaning.OUTPUT, ("output",)),
    "supervisor": (counters.SUPERVISOR, meaning.SUPERVISOR, ()),
}


@dataclass(slots=True)
class Family:
    """One metric: its samples are pairs of label values and a value.

    Of a histogram the value is (sum, {upper bound: how many were at most that}).
    """

    name: str
    type: str
    help: str
    labels: tuple[str, ...] = ()
    samples: list[tuple[tuple[str, ...], Value]] = field(default_factory=list)

    @property
    def shown(self) -> str:
        """The name as Prometheus shows it."""
        return f"{self.name}_total" if self.type == COUNTER else self.name


def _measured() -> dict[str, Family]:
    """The metrics that are no counter of the ledger's."""
    role = ("role", "index")
    ring = ("ring", "capture", "worker")
    made = (
        Family("gazer_build_info", GAUGE, "1; the labels say what runs", ("version",)),
        Family("gazer_start_time_seconds", GAUGE, "when the run began, in Unix time"),
        Family("gazer_pending_limit", GAUGE, "queries that may wait, of all workers together"),
        Family("gazer_reply_latency_seconds", HISTOGRAM,
               "time between a query and its reply, by the frames' timestamps", ("worker",)),
        Family("gazer_ring_filled_bytes", GAUGE, "bytes that stand in a ring now", ring),
        Family("gazer_ring_capacity_bytes", GAUGE, "bytes that a ring has room for", ring),
        Family("gazer_sink_lag_events", GAUGE, "events made and not yet merged by the sink"),
        Family("gazer_output_lag_events", GAUGE, "events merged and not yet written", ("output",)),
        Family("gazer_output_blocked_seconds", GAUGE,
               "time for which the output has had work and taken nothing; 0 while it moves",
               ("output",)),
        Family("gazer_account_broken_sums", GAUGE,
               "sums of the account that do not hold; 0 when all adds up"),
        Family("gazer_process_up", GAUGE, "whether the process runs", role),
        Family("gazer_process_waiting", GAUGE,
               "whether it waits for room downstream or for an output", role),
        Family("gazer_process_silent_seconds", GAUGE, "time since its last sign of life", role),
        Family("gazer_process_starts", COUNTER, "processes that have had this place", role),
        Family("gazer_process_cpu_seconds", COUNTER,
               "CPU time of the process that runs now; starts anew with its successor", role),
        Family("gazer_process_resident_memory_bytes", GAUGE,
               "resident memory, shared memory included", role),
        Family("gazer_process_shared_memory_bytes", GAUGE, "... of this, shared memory", role),
    )
    return {family.name: family for family in made}


def _of_ledger() -> dict[str, Family]:
    """The metrics that counters of the ledger make."""
    made: dict[str, Family] = {}
    for role, (names, texts, labels) in ROLES.items():
        for name in names:
            if name.startswith(LATENCY) or name in ELSEWHERE:
                continue
            base, _, member = name.partition(".")
            metric = f"gazer_{role}_{base}"
            kind = GAUGE if name in GAUGES else COUNTER
            more = (FAMILIES.get(base, "reason"),) if member else ()
            made.setdefault(metric, Family(metric, kind, meaning.text(texts, name), labels + more))
    return made


def table() -> dict[str, Family]:
    """All metrics by their names, without samples."""
    return _measured() | _of_ledger()
