"""gazer.observe.metrics and process: what Prometheus reads, and what strangers can't do."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gazer import docgen
from gazer.config import Config, Metrics
from gazer.config.kinds import address_and_port
from gazer.config.reader import parse
from gazer.errors import ConfigError
from gazer.observe import meaning, metrics, process, table
from gazer.observe.process import Service
from gazer.observe.snapshot import Snapshot
from tests.conftest import CAPTURES, eventually
from tests.observed import account, snapshot

PROMTOOL = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian's package prometheus) is not there")
OPERATIONS = (Path(__file__).parents[1] / "docs/operations.md").read_text(encoding="utf-8")
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class StandIn:
    """An observer whose sensor is made up."""

    def __init__(self) -> None:
        self.taken = self.settled_ = 0
        self.answer = snapshot()

    def snapshot(self) -> Snapshot:
        self.taken += 1
        return self.answer

    def settled(self):
        self.settled_ += 1
        return self.answer, self.answer.standing()


class Served:
    """A Service with its loop in a thread."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.observer = StandIn()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.service = Service(self.observer)
        self.server = self.wait(self.service.listen(address, 0))
        self.address = self.server.sockets[0].getsockname()[:2]

    def wait(self, what):
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(10)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)

    def ask(self, request: bytes) -> bytes:
        with self.connect() as s:
            s.sendall(request)
            return everything(s)

    def get(self, path: str = "/metrics", **fields: str) -> tuple[str, bytes]:
        """The answer's type and body."""
        host = f"[{self.address[0]}]" if ":" in self.address[0] else self.address[0]
        request = urllib.request.Request(f"http://{host}:{self.address[1]}{path}", headers=fields)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.headers["Content-Type"], answer.read()

    def close(self) -> None:
        async def end() -> None:
            self.server.close()
            self.service.close()
            await asyncio.sleep(0.01)

        self.wait(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


def everything(s: socket.socket) -> bytes:
    data = b""
    while piece := s.recv(65536):
        data += piece
    return data


@pytest.fixture
def served():
    made = Served()
    yield made
    made.close()


def samples(text: str, parse=parse_text) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in parse(text) for s in family.samples
    }  # fmt: skip


# -------------------------------------------------------------------------------------- the table


def test_every_counter_has_its_meaning():
    """A new counter gets its line in gazer/observe/meaning.py."""
    for names, texts, _ in table.ROLES.values():
        for name in names:
            if not name.startswith(table.LATENCY):
                assert texts.get(name) or texts.get(name.partition(".")[0]), name


def test_names_are_what_prometheus_wants():
    for family in metrics.families():
        assert family.name.startswith("gazer_") and family.name == family.name.lower()
        assert not family.name.endswith("_total")
        assert family.help and "\n" not in family.help
        assert len(set(family.labels)) == len(family.labels)
    names = [family.name for family in metrics.families()]
    assert len(set(names)) == len(names)


def test_every_counter_is_served_with_its_value(served):
    every = {}
    for role, slots, label in (
        ("capture", served.observer.answer.captures, "capture"),
        ("worker", served.observer.answer.workers, "worker"),
        ("output", served.observer.answer.account.outputs, "output"),
        ("sink", [served.observer.answer.account.sink], ""),
        ("supervisor", [served.observer.answer.supervisor], ""),
    ):
        for number, values in enumerate(slots):
            for name, value in values.items():
                if name.startswith("latency.") or name == "blocked_since":
                    continue
                base, _, member = name.partition(".")
                labels = {label: str(number)} if label else {}
                if member:
                    labels[table.FAMILIES[base]] = member
                end = "" if name in (
                    "pending", "streams", "waiting_pieces", "octets_buffered", "transferring",
                    "absent", "spool_events", "spool_bytes", "spool_limit", "unacknowledged",
                    "servers", "servers_up", "spool_failing") else "_total"
                every[f"gazer_{role}_{base}{end}", tuple(sorted(labels.items()))] = value
    every["gazer_output_blocked_seconds", (("output", "0"),)] = 0
    found = samples(served.get()[1].decode())
    assert len(every) > 150
    assert {key: found.get(key) for key in every} == every


def test_what_is_measured(served):
    found = samples(served.get()[1].decode())

    def value(name, **labels):
        return found["gazer_" + name, tuple(sorted(labels.items()))]

    assert value("start_time_seconds") == 5 and value("pending_limit") == 1000
    assert value("ring_filled_bytes", ring="frames", capture="0", worker="1") == 100
    assert value("ring_capacity_bytes", ring="events", capture="", worker="1") == 8192
    assert value("process_cpu_seconds_total", role="worker", index="1") == 9.25
    assert value("process_resident_memory_bytes", role="worker", index="1") == 2000
    assert value("process_waiting", role="worker", index="1") == 1
    assert value("process_starts_total", role="worker", index="1") == 3
    assert value("process_silent_seconds", role="sink", index="0") == 7
    assert value("process_up", role="sink", index="0") == 0
    assert value("process_up", role="supervisor", index="0") == 1
    assert ("gazer_process_cpu_seconds_total",
            (("index", "0"), ("role", "sink"))) not in found
    assert value("account_broken_sums") == 0 and value("sink_lag_events") == 0
    assert value("supervisor_restarts_total", role="worker") == 4


def test_the_latency_histogram(served):
    found = samples(served.get()[1].decode())
    buckets = {dict(labels)["le"]: v for (name, labels), v in found.items()
               if name == "gazer_reply_latency_seconds_bucket" and dict(labels)["worker"] == "0"}
    assert buckets == {"6.4e-05": 3, "0.000128": 3, "+Inf": 10} | {
        bound: 8 for bound in buckets if "0.0002" < bound < "9" and bound != "6.4e-05"}
    assert "0.000256" in buckets and "33.554432" in buckets and len(buckets) == 21
    assert found["gazer_reply_latency_seconds_count", (("worker", "0"),)] == 10
    assert found["gazer_reply_latency_seconds_sum", (("worker", "0"),)] == 4.000123


def test_an_account_that_does_not_add_up_is_told(served):
    broken = account(sink__events=51)
    served.observer.answer = snapshot(account=broken, processes=())
    found = samples(served.get()[1].decode())
    assert found["gazer_account_broken_sums", ()] == 1


def test_both_forms_say_the_same(served):
    kind, text = served.get()
    assert kind.startswith("text/plain")
    kind, open_text = served.get(Accept=OPENMETRICS)
    assert kind.startswith("application/openmetrics-text")
    assert open_text.endswith(b"# EOF\n")
    assert samples(text.decode()) == samples(open_text.decode(), parse_openmetrics)


@PROMTOOL
def test_promtool_finds_nothing_to_say(served):
    done = subprocess.run(["promtool", "check", "metrics"], input=served.get()[1],
                          capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# -------------------------------------------------------------------------------------- the server


def test_a_flood_of_requests_looks_once_a_second(served):
    clock = [100.0]
    served.service._now = lambda: clock[0]
    for _ in range(20):
        served.get()
    assert served.observer.taken == 1
    clock[0] += process.FRESH
    served.get()
    assert served.observer.taken == 2


def test_a_flood_of_questions_for_health_looks_closely_once_a_second(served):
    """To look closely takes a while, in which nobody else is served."""
    clock = [100.0]
    served.service._now = lambda: clock[0]
    served.observer.answer = snapshot(account=account(sink__events=51), processes=())
    for n in range(2):
        for _ in range(20):
            assert b"does not add up" in served.ask(b"GET /health HTTP/1.1\r\n\r\n")
        assert served.observer.settled_ == n + 1
        clock[0] += process.FRESH


@pytest.mark.parametrize(("request_", "code"), [
    (b"GET /metrics HTTP/1.1\r\n\r\n", 200), (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", 200),
    (b"GET / HTTP/1.1\r\n\r\n", 404), (b"GET /metrics/ HTTP/1.1\r\n\r\n", 404),
    (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 405),
    (b"GET /metrics\r\n\r\n", 400), (b"\r\n\r\n", 400), (b"\xff\xfe \x00 HTTP/1.1\r\n\r\n", 405),
    (b"GET http://x/metrics SMTP\r\n\r\n", 400),
    (b"GET /metrics HTTP/1.1\r\nAccept: \xff;q=,,;;=\r\n\r\n", 200),
    (b"GET /metrics HTTP/1.1\r\nAccept\r\n: x\r\n\r\n", 200),
    (b"GET /" + b"x" * process.HEAD + b" HTTP/1.1\r\n\r\n", 431),
    (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 100_000 + b"\r\n", 431),
])  # fmt: skip
def test_requests(served, request_, code):
    answer = served.ask(request_)
    assert answer.startswith(f"HTTP/1.1 {code} ".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head and body.endswith(b"\n")


def test_head_has_no_body(served):
    head, _, body = served.ask(b"HEAD /metrics HTTP/1.1\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ") and body == b""


def test_health(served):
    served.observer.answer = snapshot(processes=())
    assert served.get("/health") == (process.TEXT, b"well\n")
    served.service._snapshot = None
    served.observer.answer = snapshot()
    with pytest.raises(urllib.error.HTTPError) as caught:
        served.get("/health")
    assert caught.value.code == 503
    assert caught.value.read() == b"sink is missing\n"


def test_a_slow_client_is_given_up_and_holds_up_nobody(served, monkeypatch):
    monkeypatch.setattr(process, "DEADLINE", 0.5)
    with served.connect() as slow:
        since = time.monotonic()
        slow.sendall(b"GET /metrics HT")
        served.get()
        assert time.monotonic() - since < 0.4
        with pytest.raises(ConnectionResetError):   # an abort, or an end
            while slow.recv(100):
                pass
            raise ConnectionResetError
        assert 0.4 < time.monotonic() - since < 3


def test_a_client_that_drips_gets_no_more_time(served, monkeypatch):
    monkeypatch.setattr(process, "DEADLINE", 0.5)
    since = time.monotonic()
    with served.connect() as slow, pytest.raises(OSError):
        while time.monotonic() - since < 5:
            slow.sendall(b"x")
            time.sleep(0.02)
    assert time.monotonic() - since < 3


def test_a_client_that_does_not_read_is_given_up(served, monkeypatch):
    monkeypatch.setattr(process, "DEADLINE", 0.5)
    monkeypatch.setattr(Service, "respond", lambda *_: (200, bytes(50_000_000), process.TEXT))
    with served.connect() as s:
        s.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        eventually(lambda: len(served.service._tasks) == 1, 5)
        eventually(lambda: not served.service._tasks, 5)


def test_too_many_connections_are_closed_and_room_comes_back(served, monkeypatch):
    monkeypatch.setattr(process, "CONNECTIONS", 3)
    held = [served.connect() for _ in range(3)]
    eventually(lambda: len(served.service._tasks) == 3)
    with contextlib.suppress(ConnectionResetError):
        assert served.ask(b"") == b""       # an end without an answer
    for s in held:
        s.close()
    eventually(lambda: not served.service._tasks)
    assert served.get()[0].startswith("text/plain")


def test_noise(served):
    random_ = random.Random(9)
    for _ in range(200):
        noise = random_.randbytes(random_.randrange(200)) + b"\r\n\r\n"
        assert served.ask(noise)[:13] in (b"HTTP/1.1 400 ", b"HTTP/1.1 405 ")
    assert served.get()[1].startswith(b"# HELP")


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as s:
            s.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 loopback on this machine")
    made = Served("::1")
    assert made.get()[0].startswith("text/plain")
    made.close()


class Stand:
    """A child of the supervisor's, as far as the process looks at it."""

    def __init__(self, listen: str) -> None:
        self.reports: list[tuple[str, str]] = []
        self.beats = 0
        self.draining = False
        self.slot = self
        self.boot = SimpleNamespace(config=Config(metrics=Metrics(listen=listen)))

    def waits(self, waiting: bool) -> None:
        assert not waiting
        self.beats += 1

    def report(self, kind: str, text: str = "") -> None:
        self.reports.append((kind, text))


def test_an_address_in_use_is_told_once_and_tried_again(monkeypatch):
    monkeypatch.setattr(process, "RETRY", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        child = Stand(f"127.0.0.1:{port}")
        thread = threading.Thread(
            target=lambda: asyncio.run(process._serve(child, StandIn())))  # type: ignore[arg-type]
        thread.start()
        eventually(lambda: child.beats > 8)     # several tries by now
        assert child.reports == [("notice", f"can't serve metrics on 127.0.0.1:{port}: address "
                                            "already in use; trying again every 0.2 s")]
    eventually(lambda: len(child.reports) == 2)
    assert child.reports[1] == ("notice", f"metrics are served on 127.0.0.1:{port} now")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert answer.status == 200
    child.draining = True
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize("port, why", [
    (1023, "permission denied (ports below 1024 take a right that this process does not have: "
           "net.ipv4.ip_unprivileged_port_start)"),
    (1024, "permission denied"),
])  # fmt: skip
def test_a_port_that_takes_a_right_is_told_as_one(monkeypatch, port, why):
    monkeypatch.setattr(process, "RETRY", 60.0)
    monkeypatch.setattr(process, "least_port", lambda: 1024)

    async def refused(*args: object, **more: object) -> None:
        raise OSError(errno.EACCES, "error while attempting to bind on address ...")

    monkeypatch.setattr(asyncio, "start_server", refused)
    child = Stand(f"127.0.0.1:{port}")
    thread = threading.Thread(
        target=lambda: asyncio.run(process._serve(child, StandIn())))  # type: ignore[arg-type]
    thread.start()
    eventually(lambda: child.reports)
    child.draining = True
    thread.join(5)
    assert child.reports == [("notice", f"can't serve metrics on 127.0.0.1:{port}: {why}; "
                                        "trying again every 60 s")]


def test_the_process_serves_a_run_and_ends_with_it(gazer, fifo, tmp_path):
    """With everything around it real; but that the run is over a file, which has none of its own
    accord."""
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    (tmp_path / "sitecustomize.py").write_text(
        "from dataclasses import replace\nfrom gazer.topology import Topology\n"
        "of = Topology.of\nTopology.of = staticmethod(lambda c: replace(of(c), metrics=True))\n")
    config = tmp_path / "sensor.yaml"
    config.write_text(yaml.safe_dump({
        "workers": 2, "metrics": {"listen": f"127.0.0.1:{port}"},
        "outputs": [{"type": "text", "path": str(tmp_path / "out")}]}))
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    live = gazer.start("run", "-c", config, "-r", fifo.path, command="gazer",
                       env=os.environ | {"PYTHONPATH": path})
    resolver = (CAPTURES / "resolver.pcap").read_bytes()
    fifo.write(resolver[:40_000])

    def served() -> dict | None:
        """the metrics of all that was fed"""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                found = samples(answer.read().decode())
        except OSError:
            return None
        written = found["gazer_output_events_total", (("output", "0"),)]
        return found if written == 109 else None

    found = eventually(served, 20.0)
    assert isinstance(found, dict)
    assert sum(value for (name, _), value in found.items()
               if name == "gazer_worker_success_total") == 109
    assert found["gazer_account_broken_sums", ()] == 0
    ups = {dict(labels)["role"]: value for (name, labels), value in found.items()
           if name == "gazer_process_up"}
    assert ups == dict.fromkeys(("supervisor", "capture", "worker", "sink", "metrics"), 1)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
        assert answer.read() == b"well\n"
    live.signal(signal.SIGTERM)     # how a live run ends
    done = live.wait(10.0)
    assert "interrupted" in done.stderr and "killed" not in done.stderr
    assert all(line.startswith("gazer: ") for line in done.said)


# --------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(("text", "expected"), [
    ("127.0.0.1:9853", ("127.0.0.1", 9853)), ("0.0.0.0:1", ("0.0.0.0", 1)),
    ("[::1]:65535", ("::1", 65535)), ("[::]:80", ("::", 80)),
])  # fmt: skip
def test_addresses(text, expected):
    assert address_and_port(text) == expected


@pytest.mark.parametrize("text, why", [
    ("9853", "no address"), (":9853", "no address"), (":", "no port"),
    ("localhost:9853", "a name in place of an address"), ("a b:1", "a name in place"),
    ("127.0.0.1", "no port"), ("127.0.0.1:", "no port"), ("[::1]", "no port"),
    ("[::1]:", "no port"), ("localhost", "no port"), ("[]:80", "no address"),
    ("127.0.0.1:0", "not from 1 to 65535"), ("127.0.0.1:65536", "not from 1 to 65535"),
    ("127.0.0.1:" + "9" * 200, "not from 1 to 65535"), ("[::1]:65536", "not from 1 to 65535"),
    ("127.0.0.1:x", "not a number"), ("127.0.0.1:٣", "not a number"), ("[::1]:-1", "not a number"),
    ("127.0.0.1:-1", "not a number"), ("127.0.0.1:080", "begins with 0"),
    ("::1:9853", "without brackets"), ("::1", "without brackets"),
    ("[127.0.0.1]:80", "no IPv6 address"), ("1.2.3:80", "no IPv4 address"),
    ("256.0.0.1:80", "no IPv4 address"), ("[::1]80", "no colon"), ("[::1:80", "not closed"),
])  # fmt: skip
def test_wrong_addresses_are_one_line(text, why):
    with pytest.raises(ValueError, match=why):
        address_and_port(text)
    with pytest.raises(ConfigError) as caught:
        parse(f'metrics: {{listen: "{text}"}}\n', "sensor.yaml")
    (line,) = str(caught.value).splitlines()
    assert "metrics.listen: " in line and f"{why}" in line
    assert "; expected an address with a port, as 127.0.0.1:9853, " in line


def test_no_address_means_no_metrics():
    assert parse('metrics: {listen: ""}\n', "x").metrics.listen == ""


def test_meanings_are_short():
    for _, texts, _ in table.ROLES.values():
        assert max(map(len, texts.values())) <= 80
    assert meaning.text({}, "new_counter") == "new counter"


# ------------------------------------------------------------------------------------- documents


def alerts() -> list[str]:
    """The expressions of the alerts in docs/operations.md."""
    text = OPERATIONS.split("Alerts worth having:")[1].split("\n\n")[1]
    return re.findall(r"^\| `(.+?)` \|", text, re.M)


def test_metrics_in_the_documents_exist():
    known = {family.shown for family in table.table().values()}
    named = re.findall(r"\bgazer_\w+", OPERATIONS)
    assert len(alerts()) >= 12 and named
    assert set(named) <= known


def test_the_page_has_every_metric():
    page = docgen.metrics_page()
    for family in table.table().values():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{family.shown}` |")]
        assert family.help in row and f"| {family.type} |" in row and row.count("|") == 5
        assert all(f"`{label}`" in row for label in family.labels)


@PROMTOOL
def test_promtool_understands_the_alerts(tmp_path):
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "gazer", "rules": [
        {"alert": f"Gazer{n}", "expr": expression} for n, expression in enumerate(alerts())]}]}))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(alerts())} rules found" in done.stdout.decode()
