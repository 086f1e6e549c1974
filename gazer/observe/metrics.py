"""A snapshot as Prometheus metrics; table.py says what there is.

Counters of capture processes and workers have one sample for each process; restarts do not set them
back, since a successor counts on.

`families` gives plain values and needs no prometheus_client; `collect` wraps them for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from gazer import __version__
from gazer.observe.snapshot import Snapshot
from gazer.observe.table import (
    COUNTER,
    ELSEWHERE,
    GAUGE,
    HISTOGRAM,
    LATENCY,
    LATENCY_LE,
    LATENCY_SUM,
    ROLES,
    Family,
    table,
)

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from typing import Any

    from prometheus_client.core import Metric

def families(snapshot: Snapshot | None = None) -> list[Family]:
    """All metrics, in the order of their table; with the snapshot's values, if there is one."""
    made = table()
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
                if name.startswith(LATENCY) or name in ELSEWHERE:
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
        put("output_blocked_seconds", snapshot.blocked(number), str(number))
    put("account_broken_sums", 0 if standing.waiting else len(standing.broken))
    for r in snapshot.rings:
        labels = (r.kind, str(r.capture) if r.kind == "frames" else "", str(r.worker))
        put("ring_filled_bytes", r.filled, *labels)
        put("ring_capacity_bytes", r.capacity, *labels)
    for p in snapshot.processes:
        whose = (p.role, str(p.index))
        put("process_up", p.state != "missing", *whose)
        put("process_waiting", p.state == "waiting", *whose)
        put("process_silent_seconds", p.silent, *whose)
        put("process_starts", p.starts, *whose)
        if p.name:
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
