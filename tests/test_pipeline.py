"""Whole outputs of the whole pipeline against the oracle's independent reading of the captures."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import time
from functools import cache
from pathlib import Path

import msgpack
import pytest

from tests.conftest import (
    CAPTURE_FILES,
    CAPTURES,
    COMMANDS,
    bound_by_permissions,
    eventually,
    whole_lines,
)
from tests.oracle import build, compare, events
from tests.test_oracle import README_LINE, README_RECORD

NS = 1_000_000_000
DAY = 86400 * NS
T0 = 1_700_000_000 * NS
CLIENT, SERVER = "198.51.100.7", "192.0.2.53"

# What the oracle does not read: EDNS as fields, and which fault made a message malformed.
OVERLOOK = ("edns", "malformed", "omitted")


@cache
def reading(*names: str, **rules) -> events.Reading:
    return events.expected([CAPTURES / name for name in names], **rules)


def lines(found: events.Reading) -> list[str]:
    return [compare.line(event) for event in found.events]


def unpacked(path: Path) -> list:
    return list(msgpack.Unpacker(path.open("rb"), timestamp=0))


def figure(stderr: str, pattern: str) -> int:
    """The number in the summary that the pattern's group finds."""
    found = re.search(pattern, stderr)
    assert found, f"{pattern!r} is not in: {stderr}"
    return int(found[1] or 0)


def reasons(text: str | None) -> dict[str, int]:
    """`name 3, other 1` as the summary has it behind a figure."""
    return {name: int(n) for name, n in re.findall(r"(\w+) (\d+)", text or "")}


def assert_accounted(stderr: str, want: events.Reading, frames: int | None = None) -> None:
    """Every frame has the fate, every piece and every octet of a stream the place that the oracle
    gives it; `frames` is how many there are in all."""
    counts = re.search(r"(\d+) frames? read: (\d+) DNS, \d+ not DNS(?: \(([^)]*)\))?"
                       r", \d+ not decoded(?: \(([^)]*)\))?", stderr)
    assert counts, stderr
    fates = {"dns": int(counts[2])} | reasons(counts[3]) | reasons(counts[4])
    found = re.search(r"(\d+) fragments?: (\d+) joined \((\d+) datagrams? put together\)(.*)",
                      stderr)
    if found:
        fates["fragment"] = int(found[1])
        pieces = {name: int(n) for n, name in re.findall(r"(\d+) (\w+)", found[4])}
        assert pieces | {"joined": int(found[2])} == {"joined": 0} | +want.pieces
        assert int(found[3]) == want.counts["joined datagrams"]
    assert {fate: n for fate, n in fates.items() if n} == +want.fates
    assert int(counts[1]) == sum(fates.values()) == (frames or want.counts["frames"])
    if want.counts["segments"]:
        streams = want.streams
        assert [figure(stderr, pattern) for pattern in (
            r"(\d+) TCP segments?:", r"TCP segments?: (\d+) message", r"on (\d+) connection",
            r"(\d+) octets of messages", r"octets of messages(?:, (\d+) sent again)?",
            r"octets of messages(?:, \d+ sent again)?(?:, (\d+) skipped)?",
        )] == [streams["segments"], want.counts["stream messages"], streams["opened"],
               streams["framed"], streams["old"], streams["skipped"]]


def frames_in(name: str) -> int:
    """What tshark counted, as the table beside the captures has it."""
    name = name.removesuffix(".gz").removesuffix(".zst")
    table = (CAPTURES / "README.md").read_text()
    row = re.search(rf"^\| `{re.escape(name)}` \| (\d+) \|", table, re.MULTILINE)
    assert row, name
    return int(row[1])


def entry(at: float, wire: bytes, *, reply: bool = False, port: int = 4000, base: int = T0):
    """A capture's frame with a query from CLIENT, or a reply to it."""
    ends = (SERVER, 53, CLIENT, port) if reply else (CLIENT, port, SERVER, 53)
    return (base + round(at * NS), build.frame(build.udp(*ends, wire)))


# ------------------------------------------------------------------------- against the oracle


@pytest.mark.parametrize("name", CAPTURE_FILES)
def test_classic_text_and_msgpack_with_records(gazer, tmp_path, name):
    want = reading(name, records=True)
    out = tmp_path / "out.mp"
    done = gazer("-r", CAPTURES / name, "-R", "-t", "-", "-o", out)
    assert done.code == 0, done.stderr
    assert compare.diff(lines(want), done.lines) == ""
    got = unpacked(out)
    for one, event, line in zip(got, want.events, done.lines, strict=True):
        assert one == [event.tag, event.time_s, json.loads(line.split("\t")[2])]
    assert_accounted(done.stderr, want, frames_in(name))


def test_all_captures_are_one_stream_in_the_order_given(gazer, tmp_path):
    """Without records.  Time goes on across files, and jumps between some of them."""
    names = ["resolver.pcap", *(n for n in CAPTURE_FILES if n != "resolver.pcap")]
    want = reading(*names)
    assert want.clock_jumps > 2
    out = tmp_path / "out.mp"
    flags = [part for name in names for part in ("-r", CAPTURES / name)]
    done = gazer(*flags, "-t", "-", "-o", out, "--workers", 3)
    assert done.code == 0, done.stderr
    assert compare.diff(lines(want), done.lines) == ""
    assert [one[1] for one in unpacked(out)] == [event.time_s for event in want.events]
    assert figure(done.stderr, r"time jumped (\d+) times") == want.clock_jumps
    assert_accounted(done.stderr, want, sum(map(frames_in, names)))


@pytest.mark.parametrize("name", CAPTURE_FILES)
def test_full_detail_in_all_formats_at_once(gazer, tmp_path, name):
    want = reading(name, records=True, detail="full", sensor="north-1")
    paths = [tmp_path / n for n in ("text", "json", "seconds", "event_time")]
    config = {
        "sensor": {"id": "north-1"},
        "ring": {"size": "8MiB"},       # a quarter of one holds an event in four formats
        "workers": 2,
        "events": {"detail": "full", "records": True},
        "outputs": [
            {"type": "text", "path": str(paths[0])},
            {"type": "text", "format": "json", "path": str(paths[1])},
            {"type": "msgpack", "path": str(paths[2])},
            {"type": "msgpack", "time": "event_time", "path": str(paths[3])},
        ],
    }
    done = gazer.configured(config, "-r", CAPTURES / name)
    assert done.code == 0, done.stderr
    assert done.stdout == b""
    text, as_json = (whole_lines(p.read_bytes()) for p in paths[:2])
    assert compare.diff(lines(want), text, leave_out=OVERLOOK) == ""

    # The other formats say the same as the text, which was compared.
    records = [json.loads(line.split("\t")[2]) for line in text]
    for event, record, line, plain, exact in zip(
        want.events, records, as_json, unpacked(paths[2]), unpacked(paths[3]), strict=True
    ):
        seconds, rest = divmod(event.ts_ns, NS)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        assert json.loads(line) == record | {
            "tag": event.tag, "time": f"{stamp}.{rest // 1000:06d}Z",
        }
        assert plain == [event.tag, event.time_s, record]
        nanoseconds = msgpack.ExtType(0, struct.pack("!II", seconds, rest))
        assert exact == [event.tag, nanoseconds, record]


@pytest.mark.parametrize("name", ["resolver.pcap", "transfers.pcap", "lossy.pcap",
                                  "mixed.pcapng"])
def test_any_number_of_workers_writes_the_same_bytes(gazer, tmp_path, name):
    outputs = set()
    for workers in (1, 2, 3, 8):
        out = tmp_path / f"out{workers}"
        done = gazer("-r", CAPTURES / name, "-R", "--detail", "full", "-t", out,
                     "--workers", workers)
        assert done.code == 0, done.stderr
        outputs.add(out.read_bytes())
    assert len(outputs) == 1
    assert len(outputs.pop()) > 1000


@pytest.mark.parametrize("name", ["resolver.pcap", "mixed.pcapng", "vlan.pcap.gz",
                                  "vlan.pcap.zst"])
@pytest.mark.parametrize("path", ["-", "/dev/stdin"])
def test_standard_input(gazer, name, path):
    with (CAPTURES / name).open("rb") as file:
        source = subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE)
        done = gazer("-r", path, "-t", "-", stdin=source.stdout)
        source.stdout.close()
        source.wait()
    assert done.code == 0, done.stderr
    assert compare.diff(lines(reading(name)), done.lines) == ""


def test_descriptors_of_the_shell_can_be_read_and_written(gazer, tmp_path):
    """-r <(zcat FILE) and -t >(cat) name descriptors that only the command itself was given."""
    if not shutil.which("bash"):
        pytest.skip("needs bash")
    out = tmp_path / "out"
    out.touch()
    done = gazer(
        "-c", 'exec "$@" -r <(zcat "$0") -t >(cat > "$OUT")', CAPTURES / "vlan.pcap.gz",
        *COMMANDS["dns-gazer"], command="bash", env=os.environ | {"OUT": str(out)},
    )
    assert done.code == 0, done.stderr
    want = lines(reading("vlan.pcap.gz"))
    eventually(lambda: len(out.read_bytes().splitlines()) == len(want))
    assert compare.diff(want, whole_lines(out.read_bytes())) == ""


def test_the_readme_speaks_the_truth(gazer):
    assert gazer("-r", CAPTURES / "captured.pcap", "-t", "-").lines == [README_LINE]
    with_records = gazer("-r", CAPTURES / "captured.pcap", "-R", "-t", "-").lines
    assert len(with_records) == 4
    assert README_LINE in with_records and README_RECORD in with_records


# -------------------------------------------------------------------------------- built captures


def jumps(path: Path) -> None:
    """A clock that goes back a day and stays there, and one that visits 2106."""
    packets = []
    at = T0
    for i, base in enumerate([T0, T0 + 5 * NS, T0 - DAY, T0 - DAY + 3 * NS, 0xFFFFFFF0 * NS,
                              0xFFFFFFF1 * NS, T0 + 20 * NS, T0 + 100 * NS, T0 + 99 * NS]):
        for flow in range(40):
            query = build.query(f"n{i}-{flow}.example.", id=flow + 1)
            at = base + flow * 1000
            port = 5000 + flow * 7
            packets.append(entry(0, query, port=port, base=at))
            if flow % 3:
                reply = build.reply(query, f"n{i}-{flow}.example. 60 IN A 192.0.2.{flow}")
                packets.append(entry(0.0001, reply, reply=True, port=port, base=at))
    build.write_pcap(path, packets, nanoseconds=True)


def test_a_clock_that_jumps(gazer, tmp_path):
    path = tmp_path / "jumps.pcap"
    jumps(path)
    want = events.expected(path, records=True)
    outputs = set()
    for workers in (1, 2, 8):
        done = gazer("-r", path, "-R", "-t", "-", "--workers", workers)
        assert done.code == 0, done.stderr
        assert figure(done.stderr, r"time jumped (\d+) times") == want.clock_jumps == 4
        assert compare.diff(lines(want), done.lines) == ""
        outputs.add(done.stdout)
    assert len(outputs) == 1


def test_one_flow_has_nearly_all_frames(gazer, tmp_path):
    """A merge that waits for a quiet ring, while capture waits for a full one, never ends."""
    path = tmp_path / "skewed.pcap"
    packets = []
    for i in range(30_000):
        port = 4000 if i % 100 else 5000 + i // 100 * 11
        query = HEAD % (i & 0xFFFF, 0x01, 0x00) + QUESTION
        reply = HEAD % (i & 0xFFFF, 0x81, 0x80) + QUESTION
        packets.append(entry(i / 10_000, query, port=port))
        if i % 1000:
            packets.append(entry(i / 10_000 + 0.00002, reply, reply=True, port=port))
    build.write_pcap(path, packets, nanoseconds=True)
    config = {
        "capture": {"snaplen": 512},
        "ring": {"size": "128KiB"},
        "workers": 8,
        "events": {"detail": "classic", "max_size": "16KiB", "records": True},
        "outputs": [{"type": "text", "path": "-"}],
    }
    done = gazer.configured(config, "-r", path)
    assert done.code == 0, done.stderr
    assert figure(done.stderr, r"(\d+) frames read") == len(packets)
    assert figure(done.stderr, r"(\d+) success") == 30_000 - 30
    assert figure(done.stderr, r"(\d+) no_reply") == 30
    assert len(done.lines) == 30_000 + len(packets)
    del config["workers"], config["ring"]
    config["workers"] = 1
    assert gazer.configured(config, "-r", path).stdout == done.stdout


QUESTION = build.question(build.labels("www", "example", "com"))


class _Head:
    def __mod__(self, of: tuple[int, int, int]) -> bytes:
        number, high, low = of
        return build.header(number, high << 8 | low)


HEAD = _Head()


def test_limits_are_kept_and_told(gazer, tmp_path):
    path = tmp_path / "flood.pcap"
    build.write_pcap(path, [
        entry(i / 1000, build.query(f"n{i}.example.", id=i)) for i in range(500)
    ], nanoseconds=True)
    config = {
        "workers": 1,
        "transactions": {"max_pending": 10},
        "events": {"detail": "classic"},
        "outputs": [{"type": "text", "path": "-"}],
    }
    done = gazer.configured(config, "-r", path)
    assert done.code == 0, done.stderr
    assert compare.diff(compare.expected_lines(path, max_pending=10), done.lines) == ""
    assert figure(done.stderr, r"limit reached: (\d+) queries left early") == 490
    assert figure(done.stderr, r"(\d+) no_reply") == 500


def test_every_limit_at_its_least(gazer):
    """What the configuration allows, all parts can live with."""
    config = {
        "capture": {"snaplen": "100B"},      # of 64 no question would be left
        "ring": {"size": "128KiB"},
        "workers": 1,
        "transactions": {"timeout": "1ms", "duplicate_window": "0s", "max_pending": 1,
                         "max_pending_bytes": "64KiB"},
        "events": {"max_size": "16KiB", "records": True},
        "outputs": [{"type": "text", "path": "-"}],
    }
    done = gazer.configured(config, "-r", CAPTURES / "resolver.pcap")
    assert done.code == 0, done.stderr
    assert figure(done.stderr, r"(\d+) frames read") == frames_in("resolver.pcap")
    assert len(done.lines) > 100


def test_an_event_has_its_limit(gazer, tmp_path):
    path = tmp_path / "large.pcap"
    query = build.query("many.example.", "TXT", id=3)
    reply = build.reply(query, *(f'many.example. 60 IN TXT "{i:03d}{"x" * 250}"'
                                 for i in range(100)))
    build.write_pcap(path, [entry(0, query), entry(0.01, reply, reply=True)])
    config = {
        "events": {"detail": "full", "max_size": "16KiB"},
        "outputs": [{"type": "text", "path": "-"}],
    }
    done = gazer.configured(config, "-r", path)
    assert done.code == 0, done.stderr
    (line,) = done.lines
    record = json.loads(line.split("\t")[2])
    assert len(line) <= 16 * 1024
    assert record["omitted"] > 20
    assert len(record["reply"]) + len(record["query"]) + record["omitted"] == 102
    assert figure(done.stderr, r"limit reached: (\d+) records left out") == record["omitted"]


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("content, text", [
    (None, "no such file"),
    (b"", "empty"),
    (b"x", "not a"),
    (b"#!/bin/sh\n" * 100, "not a pcap or pcapng file"),
    (build.pcap([])[:10], "cut"),
], ids=["missing", "empty", "one byte", "script", "half a header"])
def test_no_capture(gazer, tmp_path, content, text):
    path = tmp_path / "input"
    if content is not None:
        path.write_bytes(content)
    done = gazer("-r", path, "-t", "-")
    assert done.code == 1
    assert done.stdout == b""
    told = [line for line in done.said if str(path) in line]
    assert len(told) == 1, done.stderr
    assert text in told[0] or "truncated" in told[0]


def test_a_folder_and_an_unreadable_file(gazer, tmp_path):
    done = gazer("-r", tmp_path, "-t", "-")
    assert done.code == 1
    assert "a directory" in done.stderr
    path = tmp_path / "input"
    shutil.copy(CAPTURES / "captured.pcap", path)
    path.chmod(0)
    done = gazer("-r", path, "-t", "-", **bound_by_permissions())
    assert (done.code, done.stdout) == (1, b"")
    assert f"gazer: {path}: no permission to read it" in done.said


@pytest.mark.parametrize("name", ["resolver.pcap", "mixed.pcapng"])
def test_a_capture_cut_off_in_mid_packet(gazer, tmp_path, name):
    """What came before is processed, and the files behind it are read."""
    path = tmp_path / name
    path.write_bytes((CAPTURES / name).read_bytes()[:30_001])
    want = events.expected([path])
    assert len(want.events) > 10
    assert want.broken
    done = gazer("-r", path, "-t", "-")
    assert done.code == 1
    assert compare.diff(lines(want), done.lines) == ""
    told = [line for line in done.said if str(path) in line]
    assert len(told) == 1
    assert re.search(r"frame \d+", told[0]) and "cut off" in told[0]
    more = gazer("-r", path, "-r", CAPTURES / "captured.pcap", "-t", "-")
    assert more.code == 1
    assert README_LINE in more.lines


def test_wrong_usage(gazer, tmp_path):
    done = gazer("-r", CAPTURES / "captured.pcap", "-t", "-", "--workers", "0")
    assert (done.code, done.stdout, len(done.said)) == (2, b"", 1)
    assert "--workers" in done.stderr
    done = gazer.configured({"worker": 2}, "-r", CAPTURES / "captured.pcap")
    assert (done.code, done.stdout, len(done.said)) == (2, b"", 1)
    assert "worker" in done.stderr and "workers" in done.stderr
