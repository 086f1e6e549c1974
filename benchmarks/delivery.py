"""Events into a fluentd that acknowledges: what `make bench` shows of it.

The receiver (receiver.py) stands on the same machine and does as little as one can; a run counts
only if it got as many events as the generator's counts say.  Beside it:

- **The spool**: the same events, in chunks of the same size, appended and read again, in events a
  second; it must not be slower than sending.  A thread syncs it as a sensor's does, at its default
  interval, and the last sync counts.
- **fluent-logger's own sender**, with the same records one by one, as a Python program would use
  it: no chunks, no acknowledgement.

The sink's CPU is what it takes to start, merge, pack, send, and take acknowledgements; over files,
as in all of this benchmark.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]

from benchmarks import measure, report, stream, traffic
from benchmarks.jobs import Commands

RATE = 300_000  # transactions a second, plain, classic detail, 2 workers
SINK = 0.5  # us of the sink's CPU for each event, plain
SAMPLE = 50_000  # events for fluent-logger's sender
CHUNK = 1024 * 1024  # bytes of a chunk, the sensor's default
ROUNDS = 4  # of the file: the start of a process, 70 ms, is not to look like its work
WAIT = 30.0  # seconds for the receiver's last words
CHUNKS = 1000  # that are put into the spool
FSYNC = 0.5  # seconds between two syncs of it


@dataclasses.dataclass(frozen=True)
class Way:
    """How events are sent."""

    detail: str = "classic"
    compress: str = "none"
    tls: bool = False

    @property
    def name(self) -> str:
        how = "TLS" if self.tls else "plain" if self.compress == "none" else self.compress
        return f"{self.detail}, {how}"


WAYS = (Way(), Way("full"), Way(compress="gzip"), Way(tls=True))


@dataclasses.dataclass
class Delivery:
    """The figures."""

    events: int
    runs: dict[str, list[measure.Run]] = dataclasses.field(default_factory=dict)
    receiver: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # CPU seconds
    spool: dict[str, float] = dataclasses.field(default_factory=dict)  # events a second
    logger: float = 0.0  # events a second

    def rate(self, name: str) -> float:
        return self.events / statistics.median(run.wall for run in self.runs[name])

    def cpu(self, name: str, role: str = "") -> float:
        """us an event, of a process or of all."""
        return statistics.median(
            run.roles.get(role, 0.0) if role else run.cpu for run in self.runs[name]
        ) * 1e6 / self.events  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        return {
            "events": self.events,
            "ways": {
                name: {
                    "transactions_per_second": round(self.rate(name)),
                    "cpu_us_per_event": round(self.cpu(name), 4),
                    "cpu_us_per_event_sink": round(self.cpu(name, "gazer:sink"), 4),
                    "cpu_s_receiver": [round(value, 3) for value in self.receiver[name]],
                    "wall_s": [round(run.wall, 4) for run in self.runs[name]],
                }
                for name in self.runs
            },
            "spool_events_per_second": {k: round(v) for k, v in self.spool.items()},
            "fluent_logger_events_per_second": round(self.logger),
        }

    def requirements(self) -> list[tuple[str, str, str, bool]]:
        """What, the limit, the figure, whether it is met."""
        plain = WAYS[0].name
        rate, sink = self.rate(plain), self.cpu(plain, "gazer:sink")
        slower = min(self.spool.values())
        return [
            ("transactions a second, plain", f">= {RATE:,}", f"{rate:,.0f}", rate >= RATE),
            ("sink, CPU us an event, plain", f"<= {SINK}", f"{sink:.3f}", sink <= SINK),
            ("spool against sending", ">= 1.0", f"{slower / rate:.2f}", slower >= rate),
        ]


@contextlib.contextmanager
def receiving(*args: str) -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
    """A receiver's port, and how to end it and hear what it got."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.receiver", *args],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None

    def end() -> dict[str, Any]:
        said = process.communicate(timeout=WAIT)[0]
        found: dict[str, Any] = json.loads(said)
        if found["errors"]:
            raise measure.Failed(f"the receiver did not understand: {found['errors'][0]}")
        return found

    try:
        yield int(process.stdout.readline()), end
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def certificate(folder: Path) -> tuple[str, str] | None:
    """A certificate of our own for 127.0.0.1 and its key, if openssl is there."""
    if not shutil.which("openssl"):
        return None
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=receiver", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return str(cert), str(key)


def once(commands: Commands, file: Path, way: Way, expected: int, folder: Path,
         tls: tuple[str, str] | None) -> tuple[measure.Run, float]:  # fmt: skip
    """One run of the sensor; the receiver's CPU seconds."""
    with receiving(*(["--tls", *tls] if way.tls and tls else [])) as (port, end):
        output: dict[str, Any] = {
            "type": "fluentd", "servers": [f"127.0.0.1:{port}"], "compress": way.compress,
        }  # fmt: skip
        if way.tls and tls:
            output["tls"] = {"enable": True, "ca_file": tls[0]}
        config = folder / "delivery.yaml"
        config.write_text(json.dumps({
            "capture": {"files": [str(file)]}, "workers": 2, "events": {"detail": way.detail},
            "outputs": [output],
        }))  # fmt: skip
        run = measure.run([*commands.gazer, "run", "-c", str(config)])
        got = end()
    if got["events"] != expected:
        raise measure.Failed(f"{way.name}: {got['events']:,} of {expected:,} events arrived")
    return run, float(got["cpu"])


def entries(commands: Commands, file: Path, folder: Path) -> list[bytes]:
    """Some events as they stand in a chunk."""
    out = folder / "events.msgpack"
    measure.run([*commands.dns_gazer, "-r", str(file), "-o", str(out)])
    found = []
    with out.open("rb") as stream:
        for _, at, record in msgpack.Unpacker(stream):
            found.append(msgpack.packb([at, record]))
            if len(found) == SAMPLE:
                break
    out.unlink()
    return found


def spooling(found: Sequence[bytes], folder: Path) -> dict[str, float]:
    """Events a second into a spool, and out of it again."""
    from gazer.sinks.spool import Spool

    each = max(1, CHUNK // (sum(map(len, found)) // len(found)))
    payload = b"".join(found[:each])
    chunks = CHUNKS
    place = folder / "spool"
    spool = Spool(place, max_bytes=1 << 40, notice=lambda _: None)
    over = threading.Event()

    def sync() -> None:
        while not over.wait(FSYNC):
            spool.sync()

    syncing = threading.Thread(target=sync)
    syncing.start()
    began = time.perf_counter()
    for n in range(chunks):
        spool.append(payload, tag=b"dns-gazer.dns.tx", events=each, chunk=b"%016d" % n)
    over.set()
    syncing.join()
    spool.sync()
    appended = time.perf_counter() - began
    began = time.perf_counter()
    while (record := spool.next()) is not None:
        spool.ack(record)
    taken = time.perf_counter() - began
    spool.close()
    shutil.rmtree(place)
    return {"append": chunks * each / appended, "next": chunks * each / taken}


def logging(found: Sequence[bytes]) -> float:
    """Events a second by fluent-logger's own sender."""
    from fluent.sender import FluentSender  # type: ignore[import-untyped]

    records = [msgpack.unpackb(entry) for entry in found]
    with receiving("--raw") as (port, end):
        sender = FluentSender("dns-gazer", host="127.0.0.1", port=port)
        began = time.perf_counter()
        for at, record in records:
            if not sender.emit_with_time("dns.tx", at, record):
                raise measure.Failed(f"fluent-logger: {sender.last_error}")
        took = time.perf_counter() - began
        sender.close()
        end()
    return len(records) / took


def measure_all(commands: Commands, file: Path, counts: traffic.Counts, runs: int,
                say: Callable[[str], None]) -> Delivery:  # fmt: skip
    events = (counts.success + counts.no_reply) * ROUNDS
    delivery = Delivery(events)
    with tempfile.TemporaryDirectory(prefix="gazer-bench-", dir=traffic.OUT) as name:
        folder = Path(name)
        tls = certificate(folder)
        ways = [way for way in WAYS if tls or not way.tls]
        long = folder / "long.pcap"
        with long.open("wb") as out:
            out.writelines(stream.repeat(file, ROUNDS))
        for turn in range(runs):
            for way in ways:
                say(f"to fluentd, {way.name} ({turn + 1} of {runs})")
                run, cpu = once(commands, long, way, events, folder, tls)
                delivery.runs.setdefault(way.name, []).append(run)
                delivery.receiver.setdefault(way.name, []).append(cpu)
        say("the spool, and fluent-logger's sender")
        found = entries(commands, file, folder)
        delivery.spool = spooling(found, folder)
        delivery.logger = logging(found)
    return delivery


def render(delivery: Delivery) -> str:
    rows = [["to fluentd, with acknowledgements", "transactions/s", "CPU us/event", "capture",
             "workers", "sink", "rest", "receiver"]]  # fmt: skip
    for name in delivery.runs:
        roles = {role for run in delivery.runs[name] for role in run.roles}
        grouped = report.grouped({role: delivery.cpu(name, role) for role in roles})
        total = delivery.cpu(name)
        receiver = statistics.median(delivery.receiver[name]) * 1e6 / delivery.events
        rows.append([name, f"{delivery.rate(name):,.0f}", f"{total:.3f}",
                     *(f"{value:.3f}" for value in grouped[:3]),
                     f"{total - sum(grouped[:3]):.3f}", f"{receiver:.3f}"])  # fmt: skip
    for what, value in delivery.spool.items():
        rows.append([f"the spool alone, {what}", f"{value:,.0f}"])
    rows.append(["fluent-logger's sender, no acknowledgement", f"{delivery.logger:,.0f}"])
    limits = [["", "required", "measured", ""]]
    for what, limit, figure, met in delivery.requirements():
        limits.append([what, limit, figure, "met" if met else "NOT MET"])
    return f"{report.table(rows)}\n\n{report.table(limits)}"
