"""The figures as text."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import jobs, measure, mixed

_COLUMNS = ["", "messages/s", "wall s", "CPU µs/msg", "capture", "workers", "sink", "rest",
            "peak MB"]  # fmt: skip


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns, the first row above a line; the first column to the left, numbers to the
    right. A row shorter than the first is filled up with nothing."""
    width = max(len(row) for row in rows)
    full = [[*row, *[""] * (width - len(row))] for row in rows]
    sizes = [max(len(row[i]) for row in full) for i in range(width)]
    lines = []
    for row in full:
        cells = [row[0].ljust(sizes[0])]
        cells += [cell.rjust(size) for cell, size in zip(row[1:], sizes[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * size for size in sizes))
    return "\n".join(lines)


def grouped(roles: dict[str, float]) -> tuple[float, float, float, float]:
    """Capture, workers, sink, and all others (supervisor, start-up, what no sample saw)."""
    capture = roles.get("gazer:capture", 0.0)
    workers = sum(value for role, value in roles.items() if role.startswith("gazer:worker"))
    sink = roles.get("gazer:sink", 0.0)
    return capture, workers, sink, sum(roles.values()) - capture - workers - sink


def _series(name: str, series: jobs.Series, pipeline: bool) -> list[str]:
    row = [name, f"{series.rate:,.0f}", f"{series.median(lambda run: run.wall):.2f}",
           f"{series.cpu_us:.3f}"]  # fmt: skip
    if pipeline:
        row += [f"{value:.3f}" for value in grouped(series.roles_us())]
        if series.memory:
            row.append(f"{series.memory.peak / measure.MB:.1f}")
    return row


def _mixture(name: str, counts: mixed.Counts) -> str:
    def share(messages: int) -> str:
        return f"{100 * messages / counts.messages:.1f} %"

    return (
        f"{name}: {counts.messages:,} messages in {counts.frames:,} frames; {share(counts.tcp)}"
        f" over TCP ({counts.connections:,} connections, {counts.segments:,} segments),"
        f" {share(counts.fragmented)} in {counts.pieces:,} fragments, {share(counts.vlan)} tagged,"
        f" {share(counts.vxlan)} in VXLAN"
    )


def render(bench: jobs.Bench) -> str:
    counts = bench.counts
    machine = measure.machine()
    parts = [
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, "
        f"Python {machine['python']}, load {machine['load']}",
        f"{bench.file.name}: {counts.messages:,} messages ({counts.pairs:,} queries, "
        f"{counts.lost:,} lost, {counts.repeated:,} repeated, {counts.duplicated:,} duplicated "
        f"replies); {counts.frame_bytes / counts.frames:.0f} octets a frame, "
        f"{counts.answers / counts.replies:.2f} answers a reply",
        f"medians of {len(bench.floor.runs)}; whole commands, start included",
    ]
    if bench.mixture:
        parts.append(_mixture(bench.mixture[0].name, bench.mixture[1]))
    if bench.flooding:
        name, flooded = bench.flooding[0].name, bench.flooding[1]
        parts.append(f"{name}: {flooded.forged:,} forged queries, {flooded.pairs:,} real pairs")
    parts.append("")
    rows = [_COLUMNS, _series("tcpdump -w /dev/null", bench.floor, False)]
    wall, cpu = bench.baseline_median("wall"), bench.baseline_median("cpu")
    rows.append(["Python: dnslib + json (a slice)", f"{1 / wall:,.0f}", "", f"{cpu * 1e6:.1f}"])
    for workers, series in bench.beside.items():
        rows.append(_series(f"beside, {workers}", series, False))
    for job, series in bench.series.items():
        rows.append(_series(job.name, series, True))
    for over, found in (("mixed", bench.mixed), ("flood", bench.flood)):
        rows += [_series(f"{over}: {job.name}", series, True) for job, series in found.items()]
    parts += [table(rows), ""]
    for workers, series in bench.start.items():
        wall, cpu = series.median(lambda run: run.wall), series.median(lambda run: run.cpu)
        text = bench.series[jobs.Job("classic", "text", workers)]
        net = (text.median(lambda run: run.cpu) - cpu) * 1e6 / counts.messages
        parts.append(
            f"start and stop with {workers} worker{'s' * (workers > 1)}: {wall:.2f} s, "
            f"{cpu:.2f} s of CPU; classic text without it: {net:.3f} µs of CPU a message"
        )
    for workers, series in bench.beside.items():
        ours = bench.series[jobs.Job("classic", "text", workers)]
        parts.append(f"CPU over that beside, {workers}: {bench.ratio(ours, series):.2f}")
    for name, pair in bench.against.rows() if bench.against else []:
        here, there = pair.medians()
        parts.append(
            f"CPU µs a message here and in the other tree, {name}: {here:.3f} and {there:.3f},"
            f" ratio {pair.ratio:.3f} (median of {len(pair.turns)} turns)"
        )
    if "peak_long" in bench.memory:
        once, long, flood = (
            f"{bench.memory[key] / measure.MB:.1f} MB"
            for key in ("peak_once", "peak_long", "peak_flood")
        )
        parts.append(
            f"peak of {jobs.TIMES} times the file: {long}, of the file through the same pipe: "
            f"{once}; of a flood that fills the table: {flood}"
        )
    rows = [["", "required", "measured", ""]]
    for what, required, measured, met in bench.requirements():
        rows.append([what, required, measured, "met" if met else "NOT MET"])
    return "\n".join([*parts, "", table(rows)])
