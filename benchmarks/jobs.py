"""What is measured, in which order, and what the figures are held against.

Rules
- Programs that are compared run in turns within one round (A B A B), and ratios are taken within
  a round, then their median: a machine's mood changes from minute to minute.
- A figure is of the whole command, the start of its interpreters included; what starting costs is
  measured with a capture of some ten messages and shown apart.
- A run counts only if the command ended with code 0; that what it wrote is right is checked once
  for each format against the counts that the generator gives.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import flood, measure, mixed, traffic
from benchmarks.against import LIMIT, Against

BASELINE_MESSAGES = 20_000
FLOOD = 1_200_000  # queries; more than the table's limit
FLOOD_SMALL = 1_000
MAX_PENDING = 1_000_000  # the sensor's default, transactions.max_pending
TIMES = 10  # the long run, in lengths of the file

# What the project asks of itself on a machine with two cores.
RATE_CLASSIC, RATE_FULL = 1_000_000, 700_000  # messages a second, two workers, text
CPU_PER_MESSAGE = 2.0  # µs, all processes, two workers, classic text
CPU_TWO_WORKERS = 1.15  # times the CPU of one worker
PEAK_MB = 250
FLAT = 1.05  # the long run's peak over the short one's: what PSS varies by itself from run to run
PENDING_BYTES = 272  # two cells and a bucket: any query of up to 180 bytes
MIXED = 1.3  # times the CPU of plain UDP, a message
FLOODED = 0.5  # of the rate of plain UDP
TURNS = 3  # against another checkout, in each round


@dataclasses.dataclass(frozen=True)
class Job:
    """One way to run the sensor."""

    detail: str
    format: str
    workers: int

    @property
    def name(self) -> str:
        return f"{self.detail} {self.format}, {self.workers} worker{'s' * (self.workers > 1)}"


JOBS = [
    Job(detail, format_, workers)
    for detail in ("classic", "full")
    for format_ in ("text", "json", "msgpack")
    for workers in (1, 2)
]
MIXED_JOBS = [Job(detail, "text", workers) for detail in ("classic", "full") for workers in (1, 2)]
FLOOD_JOBS = [Job("classic", "text", workers) for workers in (1, 2)]


@dataclasses.dataclass
class Series:
    """The runs of one job."""

    messages: int
    runs: list[measure.Run] = dataclasses.field(default_factory=list)
    memory: measure.Run | None = None

    def median(self, value: Callable[[measure.Run], float]) -> float:
        return statistics.median(value(run) for run in self.runs)

    @property
    def rate(self) -> float:
        return self.messages / self.median(lambda run: run.wall)

    @property
    def cpu_us(self) -> float:
        return self.median(lambda run: run.cpu) * 1e6 / self.messages

    def roles_us(self) -> dict[str, float]:
        """CPU µs per message of each process, medians; `rest` is what no sample saw."""
        roles = dict.fromkeys(role for run in self.runs for role in run.roles)
        scale = 1e6 / self.messages
        found = {}
        for role in roles:
            found[role] = statistics.median(run.roles.get(role, 0.0) for run in self.runs) * scale
        found["rest"] = self.median(lambda run: run.cpu - sum(run.roles.values())) * scale
        return found

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "messages": self.messages,
            "messages_per_second": round(self.rate),
            "wall_s": [round(run.wall, 4) for run in self.runs],
            "cpu_s": [round(run.cpu, 4) for run in self.runs],
            "cpu_us_per_message": round(self.cpu_us, 4),
            "cpu_us_per_message_by_process": {
                role: round(value, 4) for role, value in self.roles_us().items()
            },
        }
        if self.memory:
            found["peak_pss_bytes"] = round(self.memory.peak)
            found["peak_pss_bytes_by_process"] = {
                role: round(value) for role, value in self.memory.peak_roles.items()
            } | {"shared memory": round(self.memory.peak_shared)}
        return found


class Commands:
    """How the sensor is started: the commands beside this interpreter, or what was given."""

    def __init__(self, dns_gazer: str | None, gazer: str | None, folder: Path) -> None:
        here = Path(sys.executable).parent
        self.folder = folder
        self.dns_gazer = self._find(here / "dns-gazer", dns_gazer, "gazer.compat")
        self.gazer = self._find(here / "gazer", gazer, "gazer.__main__")

    @staticmethod
    def _find(installed: Path, given: str | None, module: str) -> list[str]:
        if given:
            return shlex.split(given)
        if installed.exists():
            return [str(installed)]
        return [sys.executable, "-c", f"import sys; from {module} import main; sys.exit(main())"]

    def of(self, job: Job, source: str, target: str, *, pending: int | None = None) -> list[str]:
        """The command line; `source` and `target` may be `-`. What the original's flags can say
        goes through `dns-gazer`, the rest through a configuration file. `pending`:
        transactions.max_pending, where it is not the default."""
        flag = {"text": "-t", "msgpack": "-o"}.get(job.format)
        if job.detail == "classic" and flag and pending is None:
            workers = ["--workers", str(job.workers)]
            return [*self.dns_gazer, "-r", source, flag, target, *workers]
        kind = "{type: text, format: json" if job.format == "json" else f"{{type: {job.format}"
        name = f"{job.detail}-{job.format}-{job.workers}"
        name += f"-{pending}" if pending else ""
        config = self.folder / (name + (".stdout.yaml" if target == "-" else ".yaml"))
        limit = f"transactions: {{max_pending: {pending}}}\n" if pending else ""
        config.write_text(
            f"workers: {job.workers}\n"
            f"events: {{detail: {job.detail}, records: false}}\n{limit}"
            f'outputs:\n  - {kind}, path: "{target}"}}\n'
        )
        return [*self.gazer, "run", "-c", str(config), "-r", source]


class Bench:
    """One whole benchmark: its runs and what follows from them."""

    def __init__(self, file: Path, counts: traffic.Counts, commands: Commands,
                 beside: str | None, say: Callable[[str], None], *,
                 mixture: tuple[Path, mixed.Counts] | None = None,
                 flooding: tuple[Path, flood.Counts] | None = None,
                 against: Path | None = None) -> None:  # fmt: skip
        self.file, self.counts, self.commands, self.say = file, counts, commands, say
        self.beside_command = beside
        self.series = {job: Series(counts.messages) for job in JOBS}
        self.floor = Series(counts.messages)
        self.baseline: list[dict[str, float]] = []
        self.beside = {workers: Series(counts.messages) for workers in (1, 2)} if beside else {}
        self.start = {workers: Series(1) for workers in (1, 2)}
        self.tiny = traffic.cached(traffic.Parameters(pairs=5))[0]
        self.checks: list[tuple[str, bool, str]] = []
        self.memory: dict[str, Any] = {}
        # Other files than the plain one, and the runs over them.
        self.mixture, self.flooding = mixture, flooding
        self.mixed = {job: Series(mixture[1].messages) for job in MIXED_JOBS} if mixture else {}
        self.flood = {job: Series(flooding[1].messages) for job in FLOOD_JOBS} if flooding else {}
        self.against = Against(against, file, counts.messages, say) if against else None

    def round(self, number: int) -> None:
        """Every program once."""
        file = str(self.file)
        self.say(f"round {number}: tcpdump, dnslib")
        # As root it would become another user, and give /dev/null to that.
        stay = ["-Z", "root"] if os.geteuid() == 0 else []
        self.floor.runs.append(measure.run(["tcpdump", *stay, "-r", file, "-w", "/dev/null"]))
        baseline = [sys.executable, "-m", "benchmarks.baseline", file]
        messages = min(BASELINE_MESSAGES, self.counts.messages)
        run = measure.run([*baseline, "--messages", str(messages)], keep_stdout=True)
        self.baseline.append(json.loads(run.stdout))
        for workers, series in self.start.items():
            command = self.commands.of(Job("classic", "text", workers), str(self.tiny), "/dev/null")
            series.runs.append(measure.run(command))
        for job, series in self.series.items():
            self.say(f"round {number}: {job.name}")
            series.runs.append(measure.run(self.commands.of(job, file, "/dev/null")))
            if self.beside_command and job.detail == "classic" and job.format == "text":
                self.say(f"round {number}: beside, {job.workers}")
                other = self.beside_command.format(file=shlex.quote(file), workers=job.workers)
                self.beside[job.workers].runs.append(measure.run(shlex.split(other)))
            # The same job over other traffic stands beside it in time, too.
            if job in self.mixed:
                self.say(f"round {number}: mixed, {job.name}")
                self.mixed[job].runs.append(measure.run(self._over_mixed(job, "/dev/null")))
            if job in self.flood:
                self.say(f"round {number}: flood, {job.name}")
                self.flood[job].runs.append(measure.run(self._over_flood(job, "/dev/null")))
        if self.against:
            for _ in range(TURNS):
                self.against.turn()

    def _over_mixed(self, job: Job, target: str) -> list[str]:
        assert self.mixture
        return self.commands.of(job, str(self.mixture[0]), target)

    def _over_flood(self, job: Job, target: str) -> list[str]:
        assert self.flooding
        return self.commands.of(job, str(self.flooding[0]), target, pending=flood.MAX_PENDING)

    def peaks(self) -> None:
        """Peak memory of every job, in runs of their own."""
        for job, series in self.series.items():
            self.say(f"memory: {job.name}")
            command = self.commands.of(job, str(self.file), "/dev/null")
            series.memory = measure.run(command, memory=True)
        for job, series in self.flood.items():
            self.say(f"memory: flood, {job.name}")
            series.memory = measure.run(self._over_flood(job, "/dev/null"), memory=True)
        if self.flood:
            # The same with a table that takes a thousand: what is not the table's.
            job = FLOOD_JOBS[-1]
            assert self.flooding
            command = self.commands.of(job, str(self.flooding[0]), "/dev/null", pending=FLOOD_SMALL)
            self.memory["flood_small"] = measure.run(command, memory=True).peak

    def check(self) -> None:
        """Is what comes out right? It is counted as it passes; one worker and two must write the
        same bytes."""
        for detail, format_ in dict.fromkeys((job.detail, job.format) for job in JOBS):
            self._check("", [Job(detail, format_, workers) for workers in (1, 2)], self.counts,
                        lambda job: self.commands.of(job, str(self.file), "-"))  # fmt: skip
        if self.mixture:
            for detail in ("classic", "full"):
                self._check("mixed, ", [job for job in MIXED_JOBS if job.detail == detail],
                            self.mixture[1], lambda job: self._over_mixed(job, "-"))  # fmt: skip
        if self.flooding:
            # A limit is reached, so that the order may depend on the number of workers.
            self._check("flood, ", FLOOD_JOBS, self.flooding[1],
                        lambda job: self._over_flood(job, "-"), same=False)  # fmt: skip

    def _check(self, over: str, jobs: Sequence[Job], counts: traffic.Counts,
               command: Callable[[Job], list[str]], same: bool = True) -> None:  # fmt: skip
        expected = (counts.success, counts.no_reply, 0)
        digests = set()
        for job in jobs:
            self.say(f"check: {over}{job.name}")
            output = measure.run(command(job), count_output=True).output
            assert output is not None
            digests.add(output.digest)
            found = (output.success, output.no_reply, output.no_query)
            said = f"{found[0]:,} success, {found[1]:,} no_reply, {found[2]:,} no_query"
            if found != expected:
                said += f"; expected {expected[0]:,}, {expected[1]:,}, {expected[2]:,}"
            right = found == expected
            if job.format != "msgpack" and output.lines != sum(expected):
                right = False
                said += f"; {output.lines:,} lines"
            self.checks.append((over + job.name, right, said))
        if same:
            one = len(digests) == 1
            self.checks.append((f"{over}{job.detail} {job.format}, 1 and 2 workers", one,
                                "the same bytes" if one else "different bytes"))  # fmt: skip

    def long(self) -> None:
        """Ten times the file must need no more memory than the file; a flood what is stated."""
        command = self.commands.of(Job("classic", "text", 2), "-", "/dev/null")
        feeder = [sys.executable, "-m", "benchmarks.stream"]
        peaks = []
        for times in (1, TIMES):
            self.say(f"memory: {times} times the file through a pipe")
            feed = [*feeder, "repeat", str(self.file), str(times)]
            peaks.append(measure.run(command, feed=feed, memory=True).peak)
        self.memory["peak_once"], self.memory["peak_long"] = peaks
        peaks = []
        for number in (FLOOD_SMALL, FLOOD):
            self.say(f"memory: {number:,} queries without replies")
            feed = [*feeder, "flood", str(number)]
            peaks.append(measure.run(command, feed=feed, memory=True).peak)
        self.memory["peak_flood"] = peaks[1]
        self.memory["bytes_per_pending"] = (peaks[1] - peaks[0]) / MAX_PENDING

    def baseline_median(self, key: str) -> float:
        return statistics.median(run[key] / run["messages"] for run in self.baseline)

    def ratio(self, ours: Series, theirs: Series) -> float:
        """CPU of ours over theirs: the median of the rounds' ratios."""
        pairs = zip(ours.runs, theirs.runs, strict=True)
        return statistics.median(a.cpu / b.cpu for a, b in pairs)

    @staticmethod
    def per_message(ours: Series, theirs: Series) -> float:
        """CPU a message over another: of two files, so that `ratio` will not do."""
        return statistics.median(
            (a.cpu / ours.messages) / (b.cpu / theirs.messages)
            for a, b in zip(ours.runs, theirs.runs, strict=True)
        )

    def requirements(self) -> list[tuple[str, str, str, bool]]:
        """(what, required, measured, met)"""
        one, two = (self.series[Job("classic", "text", workers)] for workers in (1, 2))
        full = self.series[Job("full", "text", 2)]
        ratio = self.ratio(two, one)
        found: list[tuple[str, str, str, bool]] = [
            ("messages a second, classic text, 2 workers", f">= {RATE_CLASSIC:,}",
             f"{two.rate:,.0f}", two.rate >= RATE_CLASSIC),
            ("messages a second, full text, 2 workers", f">= {RATE_FULL:,}",
             f"{full.rate:,.0f}", full.rate >= RATE_FULL),
            ("CPU µs a message, classic text, 2 workers", f"<= {CPU_PER_MESSAGE:.2f}",
             f"{two.cpu_us:.2f}", two.cpu_us <= CPU_PER_MESSAGE),
            ("CPU of 2 workers over 1, classic text", f"<= {CPU_TWO_WORKERS:.2f}",
             f"{ratio:.3f}", ratio <= CPU_TWO_WORKERS),
        ]  # fmt: skip
        for job, series in self.mixed.items():
            ratio = self.per_message(series, self.series[job])
            found.append((f"CPU a message, mixed over plain, {job.name}", f"<= {MIXED:.2f}",
                          f"{ratio:.3f}", ratio <= MIXED))  # fmt: skip
        for job, series in self.flood.items():
            ratio = statistics.median(
                (series.messages / a.wall) / (self.series[job].messages / b.wall)
                for a, b in zip(series.runs, self.series[job].runs, strict=True)
            )
            found.append((f"rate, flood over plain, {job.name}", f">= {FLOODED:.2f}",
                          f"{ratio:.3f}", ratio >= FLOODED))  # fmt: skip
        if "flood_small" in self.memory and self.flooding:
            pending = min(flood.MAX_PENDING, self.flooding[1].forged)
            memory = self.flood[FLOOD_JOBS[-1]].memory
            assert memory
            each = (memory.peak - self.memory["flood_small"]) / pending
            found.append(("bytes for each waiting query at max_pending, flood",
                          f"<= {PENDING_BYTES}", f"{each:.0f}", each <= PENDING_BYTES))  # fmt: skip
        for name, pair in self.against.rows() if self.against else []:
            found.append((f"CPU a message over the other tree's, {name}", f"<= {LIMIT:.2f}",
                          f"{pair.ratio:.3f}", pair.ratio <= LIMIT))  # fmt: skip
        worst = max((series.memory.peak for series in self.series.values() if series.memory),
                    default=0.0) / measure.MB  # fmt: skip
        if worst:
            found.append(("peak memory, largest of all jobs, MB", f"< {PEAK_MB}",
                          f"{worst:.1f}", worst < PEAK_MB))  # fmt: skip
        if "peak_long" in self.memory:
            grown = self.memory["peak_long"] / self.memory["peak_once"]
            each = self.memory["bytes_per_pending"]
            found += [
                (f"peak of {TIMES} times the file over the file's", f"<= {FLAT:.2f}",
                 f"{grown:.3f}", grown <= FLAT),
                ("bytes for each waiting transaction, in a flood", f"<= {PENDING_BYTES}",
                 f"{each:.0f}", each <= PENDING_BYTES),
            ]  # fmt: skip
        found += [(f"right: {name}", "exact", said, right) for name, right, said in self.checks]
        return found

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "machine": measure.machine(),
            "file": self.file.name,
            "counts": dataclasses.asdict(self.counts),
            "jobs": {job.name: series.as_json() for job, series in self.series.items()},
            "tcpdump": self.floor.as_json(),
            "start": {str(n): series.as_json() for n, series in self.start.items()},
            "python_dnslib": {
                "messages_per_second": round(1 / self.baseline_median("wall")),
                "cpu_us_per_message": round(self.baseline_median("cpu") * 1e6, 2),
            },
            "memory": {key: round(value, 1) for key, value in self.memory.items()},
            "requirements": [
                dict(zip(("what", "required", "measured", "met"), row, strict=True))
                for row in self.requirements()
            ],
        }
        for name, file, series in (("mixed", self.mixture, self.mixed),
                                   ("flood", self.flooding, self.flood)):  # fmt: skip
            if file:
                found[name] = {
                    "file": file[0].name,
                    "counts": dataclasses.asdict(file[1]),
                    "jobs": {job.name: one.as_json() for job, one in series.items()},
                }
        if self.against:
            found["against"] = self.against.as_json()
        if self.beside:
            found["beside"] = {
                "command": self.beside_command,
                "workers": {str(n): series.as_json() for n, series in self.beside.items()},
                "cpu_ratio": {
                    str(n): round(self.ratio(self.series[Job("classic", "text", n)], series), 3)
                    for n, series in self.beside.items()
                },
            }
        return found


def measure_all(bench: Bench, runs: int, memory: bool, checks: bool) -> None:
    if checks:
        bench.check()
    for number in range(1, runs + 1):
        bench.round(number)
    bench.peaks()
    if memory:
        bench.long()


def wrong(rows: Sequence[tuple[str, str, str, bool]]) -> list[str]:
    """Results that are not right, as opposed to figures that are not reached."""
    return [f"{what}: {measured}" for what, required, measured, met in rows
            if required == "exact" and not met]  # fmt: skip
