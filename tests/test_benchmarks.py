"""The benchmark's own parts: what it generates, how it counts, how it measures."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import dns.flags
import dns.message
import dns.rdatatype
import msgpack
import pytest

from benchmarks import baseline, delivery, jobs, loops, measure, report, stream, traffic

ROOT = Path(__file__).parent.parent
SMALL = traffic.Parameters(pairs=2_500, names=5_000, clients=300)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, traffic.Counts]:
    path = tmp_path_factory.mktemp("traffic") / "small.pcap"
    return path, traffic.generate(SMALL, path)


def packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """An independent reading of a capture: (microseconds, frame)."""
    assert data[:4] == b"\xd4\xc3\xb2\xa1"
    assert struct.unpack_from("<I", data, 20)[0] == 1  # Ethernet
    at = 24
    while at < len(data):
        seconds, micros, size, original = struct.unpack_from("<IIII", data, at)
        assert micros < 1_000_000
        assert size == original
        yield seconds * 1_000_000 + micros, data[at + 16 : at + 16 + size]
        at += 16 + size
    assert at == len(data)


def ones_sum(data: bytes) -> int:
    """RFC 1071, word by word as the RFC has it."""
    total = 0
    for (word,) in struct.iter_unpack(">H", data + b"\0" * (len(data) & 1)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


def decode(frame: bytes) -> tuple[bytes, bytes, int, int, bytes]:
    """Addresses, ports and payload; every length and checksum on the way must be right."""
    if frame[12:14] == b"\x08\0":
        assert frame[14] == 0x45
        assert struct.unpack_from(">H", frame, 16)[0] == len(frame) - 14
        assert ones_sum(frame[14:34]) == 0xFFFF
        assert frame[23] == 17
        source, target, udp = frame[26:30], frame[30:34], frame[34:]
    else:
        assert frame[12:14] == b"\x86\xdd"
        assert struct.unpack_from(">H", frame, 18)[0] == len(frame) - 54
        assert frame[20] == 17
        source, target, udp = frame[22:38], frame[38:54], frame[54:]
    source_port, target_port, length, check = struct.unpack_from(">HHHH", udp)
    assert length == len(udp)
    assert check
    assert ones_sum(source + target + struct.pack(">HH", 17, length) + udp) == 0xFFFF
    return source, target, source_port, target_port, udp[8:]


def test_same_parameters_give_the_same_file_in_any_process(
    small: tuple[Path, traffic.Counts], tmp_path: Path
) -> None:
    digests = {hashlib.sha256(small[0].read_bytes()).hexdigest()}
    for hash_seed in ("0", "4711"):  # the order in sets and dicts of bytes must not matter
        out = tmp_path / hash_seed
        arguments = [f"--{key}={getattr(SMALL, key)}" for key in ("pairs", "names", "clients")]
        subprocess.run(
            [sys.executable, "-m", "benchmarks.traffic", "--out", out, *arguments],
            check=True, cwd=ROOT, stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        )  # fmt: skip
        digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(digests) == 1
    other = tmp_path / "other"
    traffic.generate(dataclasses.replace(SMALL, seed=2), other)
    assert hashlib.sha256(other.read_bytes()).hexdigest() not in digests


def test_every_message_parses_and_the_counts_agree(small: tuple[Path, traffic.Counts]) -> None:
    path, counts = small
    seen: Counter[str] = Counter()
    types: Counter[str] = Counter()
    rcodes: Counter[str] = Counter()
    chains: Counter[int] = Counter()
    waiting: dict[tuple[object, ...], int] = {}
    answered: set[tuple[object, ...]] = set()
    last = 0
    for at, frame in packets(path.read_bytes()):
        assert at >= last
        last = at
        seen["frames"] += 1
        seen["bytes"] += len(frame)
        source, target, source_port, target_port, payload = decode(frame)
        message = dns.message.from_wire(payload)
        question = message.question[0]
        asked = (question.name, question.rdtype)
        if not message.flags & dns.flags.QR:
            assert target_port == 53
            key = (source, source_port, target, message.id, asked)
            if key in waiting:
                seen["repeated"] += 1
                continue
            assert key not in answered  # a key never comes twice
            waiting[key] = at
            seen["pairs"] += 1
            seen["edns"] += message.edns == 0
            seen["ipv6"] += len(source) == 16
            types[dns.rdatatype.to_text(question.rdtype)] += 1
            continue
        assert source_port == 53
        key = (target, target_port, source, message.id, asked)
        seen["replies"] += 1
        seen["answers"] += sum(len(rrset) for rrset in message.answer)
        if key in answered:
            seen["duplicated"] += 1
            continue
        assert at > waiting.pop(key)
        answered.add(key)
        rcode = message.rcode().to_text(message.rcode())
        rcodes[rcode] += 1
        chains[sum(rrset.rdtype == dns.rdatatype.CNAME for rrset in message.answer)] += 1
        negative = rcode == "NXDOMAIN" or (rcode == "NOERROR" and not message.answer)
        if negative and not message.flags & dns.flags.TC:
            assert any(rrset.rdtype == dns.rdatatype.SOA for rrset in message.authority)
            seen["nodata"] += rcode == "NOERROR"
    assert seen["pairs"] == counts.pairs == SMALL.pairs
    assert seen["pairs"] + seen["repeated"] == counts.queries
    for name in ("frames", "replies", "repeated", "duplicated", "ipv6", "answers"):
        assert seen[name] == getattr(counts, name), name
    assert seen["bytes"] == counts.frame_bytes
    assert len(waiting) == counts.lost == counts.no_reply
    assert len(answered) == counts.success
    assert dict(types) == counts.types
    assert dict(rcodes) == counts.rcodes
    # And it is the mixture that was asked for.
    assert 0.03 < seen["ipv6"] / seen["pairs"] < 0.07
    assert 0.005 < counts.lost / seen["pairs"] < 0.02
    assert 0.005 < seen["repeated"] / seen["pairs"] < 0.02
    assert counts.duplicated
    assert seen["edns"] / seen["pairs"] > 0.5
    assert seen["nodata"] / seen["pairs"] > 0.05
    assert rcodes["NXDOMAIN"] / seen["pairs"] > 0.04
    assert set(chains) == {0, 1, 2, 3, 4}
    assert {"A", "AAAA", "HTTPS", "PTR", "MX", "TXT", "SRV", "NS", "SOA"} <= set(types)


def test_replies_interleave_with_other_queries(small: tuple[Path, traffic.Counts]) -> None:
    waiting = most = 0
    for _, frame in packets(small[0].read_bytes()):
        waiting += -1 if decode(frame)[4][2] & 0x80 else 1
        most = max(most, waiting)
    assert most > 100


def test_a_file_is_generated_once(tmp_path: Path) -> None:
    parameters = dataclasses.replace(SMALL, pairs=200)
    path, counts = traffic.cached(parameters, tmp_path)
    made = path.stat().st_mtime_ns
    assert traffic.cached(parameters, tmp_path) == (path, counts)
    assert path.stat().st_mtime_ns == made
    # Half a file is not taken for a whole one, and nothing else is left lying about.
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert traffic.cached(parameters, tmp_path) == (path, counts)
    assert path.read_bytes() == whole
    assert {entry.suffix for entry in tmp_path.iterdir()} == {".pcap", ".json"}
    assert traffic.cached(dataclasses.replace(parameters, seed=9), tmp_path)[0] != path


def test_repeat_is_the_file_again_and_later(small: tuple[Path, traffic.Counts]) -> None:
    path, counts = small
    once = list(packets(path.read_bytes()))
    thrice = list(packets(b"".join(stream.repeat(path, 3))))
    assert len(thrice) == 3 * counts.frames
    assert [frame for _, frame in thrice] == [frame for _, frame in once] * 3
    shifts = {late[0] - early[0] for late, early in zip(thrice, once * 3, strict=True)}
    assert len(shifts) == 3
    assert min(shifts) == 0
    # Nothing of one round can still wait when the next begins.
    assert thrice[counts.frames][0] - thrice[counts.frames - 1][0] > 60_000_000


def test_flood_is_distinct_queries_within_the_time_out() -> None:
    seen = set()
    times = []
    for at, frame in packets(b"".join(stream.flood(5_000))):
        source, target, source_port, target_port, payload = decode(frame)
        message = dns.message.from_wire(payload)
        assert not message.flags & dns.flags.QR
        seen.add((source, source_port, target, target_port, message.id, message.question[0].name))
        times.append(at)
    assert len(seen) == len(times) == 5_000
    assert times == sorted(times)
    assert times[-1] - times[0] < 60_000_000


def test_baseline_finds_every_transaction(small: tuple[Path, traffic.Counts]) -> None:
    path, counts = small
    out = io.StringIO()
    found = baseline.run(path, 0, out)
    assert found == {
        "messages": counts.messages,
        "success": counts.success,
        "no_reply": counts.no_reply,
        "no_query": 0,
        "repeated": counts.repeated,
        "duplicated": counts.duplicated,
        "bad": 0,
    }
    output = measure.Output()
    output.read(io.BytesIO(out.getvalue().encode()))
    assert (output.lines, output.success, output.no_reply, output.no_query) == (
        counts.pairs, counts.success, counts.no_reply, 0,
    )  # fmt: skip
    assert baseline.run(path, 100, io.StringIO())["messages"] == 100


class Slices(io.BytesIO):
    """Gives a few octets at a time, so that every mark is cut in two somewhere."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(7)


def test_output_is_counted_in_every_format_however_it_is_cut() -> None:
    text = b'x\t{"status": "success"}\nx\t{"status":"no_reply"}\n\x83\xa6status\xa8no_query\n'
    output = measure.Output()
    output.read(Slices(text * 50))
    assert (output.success, output.no_reply, output.no_query) == (50, 50, 50)
    assert output.lines == 150
    assert output.digest == hashlib.sha256(text * 50).hexdigest()


FAMILY = """
import ctypes, subprocess, sys, time
ctypes.CDLL(None).prctl(15, sys.argv[1].encode(), 0, 0, 0)
child = None
if sys.argv[1] == "parent":
    child = subprocess.Popen([sys.executable, "-c", open(sys.argv[2]).read(), "gazer:worker0"])
block = bytearray(b"x" * 30_000_000) if not child else b""
until = time.process_time() + (0.4 if not child else 0.1)
while time.process_time() < until:
    pass
if child:
    child.wait()
"""


def test_a_run_is_measured_process_by_process(tmp_path: Path) -> None:
    script = tmp_path / "family.py"
    script.write_text(FAMILY)
    command = [sys.executable, "-c", FAMILY, "parent", str(script)]
    run = measure.run(command, memory=True)
    assert 0.39 < run.roles["gazer:worker0"] < run.cpu
    assert 0.49 < run.cpu < 5
    # Samples may miss the last milliseconds of a process, they invent nothing.
    assert sum(run.roles.values()) <= run.cpu + 0.02
    assert run.wall >= 0.39
    assert 30e6 < run.peak_roles["gazer:worker0"] <= run.peak < 200e6
    assert run.left_behind == 0


SEGMENT = """
import os, time
from multiprocessing import shared_memory
segment = shared_memory.SharedMemory(create=True, size=20_000_000)
descriptor = os.open("/dev/shm/" + segment.name, os.O_RDWR)
os.posix_fallocate(descriptor, 0, 20_000_000)
until = time.process_time() + 0.3
while time.process_time() < until:
    pass
segment.close()
segment.unlink()
"""


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="there is no /dev/shm")
def test_shared_memory_counts_before_anyone_touches_it() -> None:
    run = measure.run([sys.executable, "-c", SEGMENT], memory=True)
    assert run.peak_shared >= 20_000_000
    assert run.peak > run.peak_shared


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["/nonexistent/program"], "cannot be started"),
        (["sh", "-c", "echo first >&2; echo the reason >&2; exit 3"], "exit code 3: the reason"),
        (["sh", "-c", "kill -9 $$"], "killed by signal 9"),
    ],
)
def test_a_command_that_fails_is_one_clear_line(command: list[str], said: str) -> None:
    with pytest.raises(measure.Failed, match=said) as failure:
        measure.run(command)
    assert "\n" not in str(failure.value)


def test_a_command_that_leaves_its_input_unread_is_a_failure(
    small: tuple[Path, traffic.Counts],
) -> None:
    feed = [sys.executable, "-m", "benchmarks.stream", "repeat", str(small[0]), "20"]
    with pytest.raises(measure.Failed, match="input to the end"):
        measure.run(["true"], feed=feed)


@pytest.mark.parametrize("job", jobs.JOBS, ids=lambda job: job.name)
def test_every_job_is_a_configuration_that_the_sensor_accepts(
    job: jobs.Job, small: tuple[Path, traffic.Counts], tmp_path: Path
) -> None:
    commands = jobs.Commands("dns-gazer", f"{sys.executable} -m gazer", tmp_path)
    line = commands.of(job, str(small[0]), "/dev/null")
    if line[0] == "dns-gazer":
        assert line[1:3] == ["-r", str(small[0])]
        assert line[3] in ("-t", "-o")
        assert line[4:] == ["/dev/null", "--workers", str(job.workers)]
        return
    at = line.index("run")
    checked = [*line[:at], "check", *line[at + 1 : at + 3], "-r", str(small[0])]
    done = subprocess.run(checked, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{job.detail} detail" in done.stdout
    assert ("JSON lines" in done.stdout) == (job.format == "json")


def test_table_lines_up_and_fills_short_rows() -> None:
    text = report.table([["", "rate", "CPU"], ["a long name", "1,000"], ["b", "7", "1.25"]])
    assert text.splitlines() == [
        "              rate   CPU",
        "-----------  -----  ----",
        "a long name  1,000",
        "b                7  1.25",
    ]


def run_of(wall: float, cpu: float, **roles: float) -> measure.Run:
    named = {role.replace("_", ":"): value for role, value in roles.items()}
    return measure.Run(wall=wall, cpu=cpu, roles=named, peak=100e6)


def test_series_are_medians_and_processes_add_up_to_the_whole() -> None:
    runs = [
        run_of(wall, 2.0, gazer_capture=0.5, gazer_worker0=0.7, gazer_worker1=0.6, gazer_sink=0.1)
        for wall in (1.0, 4.0, 2.0)
    ]
    series = jobs.Series(1_000_000, runs)
    assert series.rate == 500_000
    assert series.cpu_us == 2.0
    capture, workers, sink, rest = report.grouped(series.roles_us())
    assert (capture, sink) == (0.5, 0.1)
    assert workers == pytest.approx(1.3)
    assert capture + workers + sink + rest == pytest.approx(series.cpu_us)


@pytest.mark.skipif(not shutil.which("tcpdump"), reason="tcpdump is not installed")
def test_whole_benchmark_with_a_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it but the sensor, whose place the baseline takes: results that are right are met,
    results that are not are named."""
    standin = tmp_path / "standin.py"
    standin.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from benchmarks import baseline\n"
        "import yaml\n"
        "args = sys.argv[1:]\n"
        "if '-c' in args:\n"
        "    config = yaml.safe_load(open(args[args.index('-c') + 1]))\n"
        "    target = config['outputs'][0]['path']\n"
        "    workers, format_ = config['workers'], config['outputs'][0].get('format')\n"
        "else:\n"
        "    format_ = 'text' if '-t' in args else 'msgpack'\n"
        "    target = args[args.index('-t' if '-t' in args else '-o') + 1]\n"
        "    workers = int(args[args.index('--workers') + 1])\n"
        "out = sys.stdout if target == '-' else open(target, 'w')\n"
        "wrong = format_ == 'json' and workers == 2\n"
        "limit = 50 if wrong else 0\n"
        "baseline.run(Path(args[args.index('-r') + 1]), limit, out)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path, counts = traffic.cached(dataclasses.replace(SMALL, pairs=100), tmp_path)
    said: list[str] = []
    command = f"{sys.executable} {standin}"
    (tmp_path / "bench-out").mkdir()
    commands = jobs.Commands(command, command, tmp_path)
    bench = jobs.Bench(path, counts, commands, "true {file} {workers}", said.append)
    some = {("classic", "text"), ("classic", "json"), ("full", "text")}
    monkeypatch.setattr(jobs, "JOBS", [j for j in jobs.JOBS if (j.detail, j.format) in some])
    bench.series = {job: series for job, series in bench.series.items() if job in jobs.JOBS}
    jobs.measure_all(bench, 1, False, True)
    wrong = jobs.wrong(bench.requirements())
    assert [line.split(":")[1].strip() for line in wrong] == [
        "classic json, 2 workers",
        "classic json, 1 and 2 workers",
    ]
    text = report.render(bench)
    for job in bench.series:
        assert job.name in text
    assert "NOT MET" in text
    figures = bench.as_json()
    assert figures["counts"]["pairs"] == 100
    assert figures["jobs"]["classic text, 2 workers"]["peak_pss_bytes"] > 1e6
    assert figures["beside"]["cpu_ratio"].keys() == {"1", "2"}


def test_the_loops_alone_see_every_message(small: tuple[Path, traffic.Counts]) -> None:
    path, counts = small
    messages, seconds = loops.run(str(path))
    assert messages == counts.messages
    assert len(seconds) == 3
    assert all(cpu >= 0 for cpu in seconds)


def chunk(events: int, name: str, payload: bytes = b"x" * 70_000) -> bytes:
    packed: bytes = msgpack.packb(["t", payload, {"size": events, "chunk": name}])
    return packed


def acks(connection: socket.socket, count: int) -> list[str]:
    """What the receiver answers, so many times."""
    unpacker = msgpack.Unpacker()
    found: list[str] = []
    connection.settimeout(10)
    while len(found) < count:
        data = connection.recv(4096)
        assert data, "it has closed the connection"
        unpacker.feed(data)
        for reply in unpacker:
            assert list(reply) == ["ack"]
            found.append(reply["ack"])
    return found


def test_the_receiver_counts_and_acknowledges_chunk_by_chunk() -> None:
    names = ["a", "b" * 31, "c" * 32, "d" * 200]
    sizes = [0, 255, 65_535, 3_000_000]  # the last one is larger than its buffer
    with delivery.receiving() as (port, end):
        data = b"".join(
            chunk(events, name, b"y" * size)
            for events, name, size in zip((1, 200, 60_000, 70_000), names, sizes, strict=True)
        )
        with socket.create_connection(("127.0.0.1", port)) as one:
            one.sendall(data)
            assert acks(one, 4) == names
            with socket.create_connection(("127.0.0.1", port)) as other:
                other.sendall(chunk(5, "e", b"")[:-1])
                one.sendall(chunk(7, "f"))
                assert acks(one, 1) == ["f"]  # half a chunk on one holds nobody else up
        got = end()
    assert (got["chunks"], got["events"]) == (5, 130_208)  # that half counts for nothing
    assert got["bytes"] == sum(sizes) + 70_000
    assert got["cpu"] > 0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x92" + chunk(1, "a")[1:], "three parts"),
        (msgpack.packb(["t", [[1, {}]], {"size": 1, "chunk": "a"}]), "a length"),
        (msgpack.packb(["t", b"x", None]), "no options"),
        (msgpack.packb(["t", b"x", {"size": 1}]), "size or id"),
        (msgpack.packb(["t", b"x", {"chunk": "a"}]), "size or id"),
        (chunk(1, "a")[:-5] + b"\xc1" * 20, "0xc1"),
    ],
)
def test_a_receiver_that_is_given_wrong_bytes_complains(data: bytes, said: str) -> None:
    with (
        pytest.raises(measure.Failed, match=f"did not understand: .*{said}"),
        delivery.receiving() as (port, end),
    ):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(chunk(3, "good") + data)
            assert acks(connection, 1) == ["good"]
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(100):
                    pass  # it hangs up
        end()


def test_a_raw_receiver_reads_and_is_silent() -> None:
    with delivery.receiving("--raw") as (port, end):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"z" * 1_500_000)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100) == b""
        assert end()["bytes"] == 1_500_000


def test_the_receiver_speaks_tls(tmp_path: Path) -> None:
    tls = delivery.certificate(tmp_path)
    if tls is None:
        pytest.skip("there is no openssl")
    context = ssl.create_default_context(cafile=tls[0])
    with delivery.receiving("--tls", *tls) as (port, end):
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
        ):
            connection.sendall(chunk(9, "a"))
            assert acks(connection, 1) == ["a"]
        assert end()["events"] == 9


SENDER = """
import socket, sys, msgpack, yaml
args = sys.argv[1:]
if "-o" in args:
    with open(args[args.index("-o") + 1], "wb") as out:
        for n in range(150):
            out.write(msgpack.packb(["dns-gazer.dns.tx", 1.5, {"n": n, "name": "x" * 500}]))
    sys.exit()
output, = yaml.safe_load(open(args[args.index("-c") + 1]))["outputs"]
host, port = output["servers"][0].split(":")
sender = socket.create_connection((host, int(port)))
if output.get("tls"):
    import ssl
    context = ssl.create_default_context(cafile=output["tls"]["ca_file"])
    sender = context.wrap_socket(sender, server_hostname=host)
sender.sendall(msgpack.packb(["t", b"x" * 1000, {"size": SENT, "chunk": "a"}]))
sender.recv(100)
sender.close()
"""


@pytest.fixture
def sender(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[jobs.Commands, Path, traffic.Counts]:
    """A stand-in for the sensor that delivers a hundred events, and what it is to be given."""
    script = tmp_path / "sender.py"
    script.write_text(SENDER.replace("SENT", "100"))
    monkeypatch.setattr(delivery, "CHUNKS", 20)
    monkeypatch.setattr(delivery, "ROUNDS", 2)
    monkeypatch.setattr(traffic, "OUT", tmp_path)
    command = f"{sys.executable} {script}"
    counts = traffic.Counts(pairs=50, lost=5)   # twice that is delivered
    file = tmp_path / "any.pcap"
    file.write_bytes(traffic.FILE_HEADER + traffic.PACKET.pack(traffic.START, 0, 4, 4) + b"DNS.")
    return jobs.Commands(command, command, tmp_path), file, counts


def test_delivery_is_measured_each_way_and_beside_the_spool_and_fluent_logger(
    sender: tuple[jobs.Commands, Path, traffic.Counts]
) -> None:
    said: list[str] = []
    found = delivery.measure_all(*sender, 2, said.append)
    ways = [way.name for way in delivery.WAYS if shutil.which("openssl") or not way.tls]
    assert list(found.runs) == ways and all(len(runs) == 2 for runs in found.runs.values())
    assert len(said) == 2 * len(ways) + 1
    assert found.rate(ways[0]) == pytest.approx(100 / found.as_json()["ways"][ways[0]]["wall_s"][0],
                                                rel=3)
    assert found.spool.keys() == {"append", "next"} and min(found.spool.values()) > 0
    assert found.logger > 0
    text = delivery.render(found)
    assert all(way in text for way in ways)
    assert text.count("NOT MET") >= 1  # no interpreter starts in time for a hundred events


def test_a_run_that_delivers_another_number_is_no_figure(
    sender: tuple[jobs.Commands, Path, traffic.Counts], tmp_path: Path
) -> None:
    commands, file, _ = sender
    with pytest.raises(measure.Failed, match="100 of 101 events arrived"):
        delivery.once(commands, file, delivery.WAYS[0], 101, tmp_path, None)


def test_delivery_is_by_event_and_the_spool_is_judged_by_its_slower_half() -> None:
    found = delivery.Delivery(1_000_000)
    found.runs = {"classic, plain": [run_of(2.0, 3.0, **{"gazer:sink": 0.4}),
                                     run_of(3.0, 4.0, **{"gazer:sink": 0.6}),
                                     run_of(9.0, 5.0, **{"gazer:sink": 0.5})]}  # fmt: skip
    found.receiver = {"classic, plain": [0.1]}
    found.spool = {"append": 300_000.0, "next": 900_000.0}
    assert found.rate("classic, plain") == pytest.approx(1_000_000 / 3)
    assert found.cpu("classic, plain") == pytest.approx(4.0)
    assert found.cpu("classic, plain", "gazer:sink") == pytest.approx(0.5)
    assert [met for *_, met in found.requirements()] == [True, True, False]
