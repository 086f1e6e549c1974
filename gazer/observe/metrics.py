"""A snapshot as Prometheus metrics, and the table of them that docs/metrics.md is made from.

Names begin with gazer_, then the role of the process that counts, then the counter's name in the
ledger; what only grows ends with _total. A family of counters ("fate.dns", "fate.snapped") is one
metric with the label `reason` (or what FAMILIES says). Counters of capture processes and workers
have one sample for each process; restarts do not set them back, since a successor counts on.

Three things are not the ledger's one to one: latency buckets make a histogram in seconds, and
processes and rings are measured.

This module imports no prometheus_client: `families` gives plain values, which `collect` wraps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from gazer import __version__, counters
from gazer.observe import meaning
from gazer.observe.snapshot import GAUGES, Snapshot

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from typing import Any

    from prometheus_client.core import Metric

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
            if name.startswith(LATENCY):
                continue
            base, _, member = name.partition(".")
            metric = f"gazer_{role}_{base}"
            kind = GAUGE if name in GAUGES else COUNTER
            more = (FAMILIES.get(base, "reason"),) if member else ()
            made.setdefault(metric, Family(metric, kind, meaning.text(texts, name), labels + more))
    return made


def families(snapshot: Snapshot | None = None) -> list[Family]:
    """All metrics, in the order of their table; with the snapshot's values, if there is one."""
    made = _measured() | _of_ledger()
    if snapshot is not None:
        _fill_ledger(made, snapshot)
        _fill_latency(made["gazer_reply_latency_seconds"], snapshot)
        _fill_measured(made, snapshot)
    return list(made.values())


def _fill_ledger(made: Mapping[str, Family], snapshot: Snapshot) -> None:
    account = snapshot.account
    sources: Iterable[tuple[str, Iterable[Mapping[str, int]]]] = (
        ("capture", snapshot.captures), ("worker", snapshot.workers), ("sink", [account.sink]),
        ("output", account.outputs), ("supervisor", [snapshot.supervisor]),
    )  # fmt: skip
    for role, slots in sources:
        labels = ROLES[role][2]
        for number, values in enumerate(slots):
            whose = (str(number),) if labels else ()
            for name, value in values.items():
                if name.startswith(LATENCY):
                    continue
                base, _, member = name.partition(".")
                samples = made[f"gazer_{role}_{base}"].samples
                samples.append(((*whose, member) if member else whose, value))


def _fill_latency(family: Family, snapshot: Snapshot) -> None:
    for number, values in enumerate(snapshot.workers):
        total, upto = 0, {}
        for bound, n in sorted(latencies(values).items()):
            total += n
            upto[bound] = total
        if upto:
            upto[float("inf")] = total
            family.samples.append(((str(number),), (values.get(LATENCY_SUM, 0) / 1e6, upto)))


def latencies(values: Mapping[str, int]) -> dict[float, int]:
    """The latency histogram in a worker's counters: upper bound in seconds -> how many, each
    bucket by itself."""
    return {
        float(name.removeprefix(LATENCY_LE)) / 1e6: n
        for name, n in values.items() if name.startswith(LATENCY_LE)
    }  # fmt: skip


def _fill_measured(made: Mapping[str, Family], snapshot: Snapshot) -> None:
    def put(name: str, value: float, *labels: str) -> None:
        made[f"gazer_{name}"].samples.append((labels, value))

    standing = snapshot.standing()
    account = snapshot.account
    put("build_info", 1, __version__)
    put("start_time_seconds", snapshot.run["started"] / 1e9)
    put("pending_limit", snapshot.run["max_pending"])
    put("sink_lag_events", standing.in_flight["events on their way to the sink"])
    for number in range(len(account.outputs)):
        put("output_lag_events",
            standing.in_flight[f"events on their way to output {number}"], str(number))
    put("account_broken_sums", 0 if standing.waiting else len(standing.broken))
    for r in snapshot.rings:
        labels = (r.kind, str(r.capture) if r.kind == "frames" else "", str(r.worker))
        put("ring_filled_bytes", r.filled, *labels)
        put("ring_capacity_bytes", r.capacity, *labels)
    for p in snapshot.processes:
        whose = (p.role, str(p.index))
        there = p.state != "missing"
        put("process_up", there, *whose)
        put("process_waiting", p.state == "waiting", *whose)
        put("process_silent_seconds", p.silent, *whose)
        put("process_starts", p.starts, *whose)
        if there:
            put("process_cpu_seconds", p.cpu, *whose)
            put("process_resident_memory_bytes", p.resident, *whose)
            put("process_shared_memory_bytes", p.shared, *whose)


def collect(snapshot: Snapshot) -> Iterator[Metric]:
    """The same for prometheus_client, which renders them."""
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    kinds: dict[str, Any] = {
        COUNTER: CounterMetricFamily, GAUGE: GaugeMetricFamily, HISTOGRAM: HistogramMetricFamily,
    }  # fmt: skip
    for family in families(snapshot):
        made = kinds[family.type](family.name, family.help, labels=family.labels)
        for labels, value in family.samples:
            if isinstance(value, tuple):
                total, upto = value
                made.add_metric(labels, [(_bound(b), n) for b, n in upto.items()], total)
            else:
                made.add_metric(labels, value)
        yield made


def _bound(value: float) -> str:
    """A bucket's upper bound, as Prometheus writes it."""
    return "+Inf" if value == float("inf") else repr(value)
