"""`dns-gazer -r FILE -f HOST`: a run over files is over when the last event is acknowledged."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from functools import lru_cache

import msgpack
import pytest
import yaml

from tests.conftest import CAPTURES, COMMANDS, eventually, whole_lines
from tests.oracle import build, compare
from tests.receiver import CLOSE, GARBAGE, LOSE, TWICE, WRONG, Receiver, late

RESOLVER = CAPTURES / "resolver.pcap"


@lru_cache
def expected(records=False):
    """(time, record) of each event by its tag, in order: as `-o` writes them, which
    test_pipeline.py holds against an independent reading."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/out"
        subprocess.run([*COMMANDS["dns-gazer"], "-r", RESOLVER, "-o", path,
                        *(["-R"] if records else [])], check=True, capture_output=True)
        found: dict[str, list] = {}
        with open(path, "rb") as file:
            for tag, when, record in msgpack.Unpacker(file):
                found.setdefault(tag, []).append((when, record))
        return found


def second(when):
    return int.from_bytes(when.data[:4], "big") if hasattr(when, "data") else when


def received(receiver):
    """The same, of what was acknowledged, chunks that came twice once."""
    found: dict[str, list] = {}
    seen = set()
    for message in receiver.messages:
        if message.acked and message.chunk not in seen:
            seen.add(message.chunk)
            found.setdefault(message.tag, []).extend(
                (second(when), record) for when, record in message.entries)
    return found


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
def config(tmp_path):
    """A configuration with this fluentd output, for `gazer run`."""
    def make(**keys):
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({
            "capture": {"files": [str(RESOLVER)]}, "events": {"detail": "classic", "records": True},
            "outputs": [{"type": "fluentd", **keys}]}))
        return path

    return make


# --- all is well ---------------------------------------------------------------------------------


@pytest.mark.parametrize("records", [False, True])
def test_every_event_arrives_under_its_tag_and_in_order(gazer, records):
    with Receiver() as receiver:
        done = gazer("-r", RESOLVER, "-f", receiver.address, *(["-R"] if records else []))
        assert done.code == 0, done.stderr
        want = expected(records=records)
        assert received(receiver) == want
        total = sum(map(len, want.values()))
        assert f"{total} events delivered to fluentd at {receiver.address}\n" in done.stderr
        assert "add up" not in done.stderr


def test_entries_are_those_of_the_msgpack_output_octet_for_octet(gazer, tmp_path, config):
    """Its array of three without the tag is the array of two."""
    path = tmp_path / "packed"
    with Receiver() as receiver:
        text = config(servers=[receiver.address], time="seconds").read_text()
        (tmp_path / "run.yaml").write_text(f"{text}- {{type: msgpack, path: {path}}}\n")
        done = gazer("run", "-c", tmp_path / "run.yaml", command="gazer")
        assert done.code == 0, done.stderr
        data = path.read_bytes()
        unpacker = msgpack.Unpacker()
        unpacker.feed(data)
        start, whole = 0, {}
        for tag, *_ in unpacker:
            event, start = data[start:unpacker.tell()], unpacker.tell()
            cut = 2 + len(tag)
            whole[tag] = whole.get(tag, b"") + b"\x92" + event[cut:]
        came = {}
        for message in receiver.messages:
            came[message.tag] = came.get(message.tag, b"") + message.plain
        assert came == whole and set(came) == {"dns-gazer.dns.tx", "dns-gazer.dns.record"}


@pytest.mark.parametrize("keys", [
    {"compress": "gzip"}, {"compress": "zstd"}, {"chunk_size": "16KiB", "window": 1},
    {"shared_key": "a secret"},
], ids=str)
def test_with_other_keys_the_same_arrives(gazer, config, keys):
    with Receiver(shared_key=keys.get("shared_key", "")) as receiver:
        done = gazer("run", "-c", config(servers=[receiver.address], **keys), command="gazer")
        assert done.code == 0, done.stderr
        assert received(receiver) == expected(records=True)


def test_a_file_and_two_servers_beside_one_another(gazer, tmp_path):
    with Receiver() as one, Receiver() as two:
        done = gazer("-r", RESOLVER, "-t", tmp_path / "text", "-f", one.address,
                     "-f", two.address)
        assert done.code == 0, done.stderr
        assert received(one) == received(two) == expected()
        assert compare.diff(compare.expected_lines(RESOLVER),
                            whole_lines((tmp_path / "text").read_bytes())) == ""


def test_a_run_with_files_alone_has_no_threads(gazer, tmp_path, fifo):
    live = gazer.start("-r", fifo.path, "-t", tmp_path / "out")
    sink = eventually(lambda: live.parts().get("gazer:sink"), 10.0)
    assert sink.num_threads() == 1
    fifo.write(RESOLVER.read_bytes())
    fifo.close()
    assert live.wait().code == 0


# --- receivers that are not well -----------------------------------------------------------------


@pytest.mark.parametrize("action", [LOSE, TWICE, WRONG, CLOSE, GARBAGE, late(0.3)], ids=str)
def test_a_receiver_that_misbehaves_at_first_gets_all_in_the_end(gazer, config, action):
    """Each of the first three chunks is treated so, once."""
    seen = set()

    def plan(message):
        if message.chunk in seen or len(seen) == 3:
            return "ack"
        seen.add(message.chunk)
        return action

    with Receiver(plan=plan) as receiver:
        done = gazer("run", "-c", config(servers=[receiver.address], chunk_size="16KiB",
                                         ack_timeout="1s"), command="gazer")
        assert done.code == 0, done.stderr
        want, came = expected(records=True), received(receiver)
        assert {tag: sorted(map(repr, events)) for tag, events in came.items()} == {
            tag: sorted(map(repr, events)) for tag, events in want.items()}


def test_it_waits_for_a_receiver_that_comes_late_with_one_line_at_once(gazer):
    port = free_port()
    live = gazer.start("-r", RESOLVER, "-f", f"127.0.0.1:{port}")
    live.says(f"fluentd at 127.0.0.1:{port}")
    time.sleep(1.5)
    assert live.process.poll() is None
    assert live.stderr.count("\n") == 1, live.stderr
    # One server: its name once.
    assert re.match(r"gazer: fluentd at ([^ ]+): (?!\1)[^;]+; it is tried again(; [1-9]|\n)",
                    live.stderr)
    with Receiver(port=port) as receiver:
        done = live.wait(45.0)
        assert done.code == 0, done.stderr
        assert received(receiver) == expected()


def test_an_interruption_says_what_was_not_delivered(gazer, tmp_path):
    port = free_port()
    out = tmp_path / "out"
    live = gazer.start("-r", RESOLVER, "-f", f"127.0.0.1:{port}", "-t", out)
    live.says("fluentd at")
    eventually(lambda: out.exists() and out.read_bytes().count(b"\n") == len(
        compare.expected_lines(RESOLVER)), 20.0)        # all was read
    live.signal(signal.SIGINT)
    began = time.monotonic()
    done = live.wait(10.0)
    assert time.monotonic() - began < 5.0
    assert done.code == 1
    total = len(compare.expected_lines(RESOLVER))
    assert (f"0 events delivered to fluentd at 127.0.0.1:{port}, {total} NOT delivered\n"
            in done.stderr)
    assert "interrupted while fluentd" in done.stderr and "add up" not in done.stderr


def test_an_interruption_counts_what_was_acknowledged_before(gazer, config):
    """Two chunks are, and then nothing more."""
    many = iter(["ack", "ack"])
    with Receiver(plan=lambda _: next(many, LOSE)) as receiver:
        live = gazer.start("run", "-c", config(servers=[receiver.address], chunk_size="16KiB"),
                           command="gazer")
        eventually(lambda: len(receiver.messages) > 4, 20.0)
        live.signal(signal.SIGTERM)
        done = live.wait(10.0)
        assert done.code == 1
        found = re.search(r"(\d+) events delivered to .*, (\d+) NOT delivered", done.stderr)
        acked = sum(len(events) for events in received(receiver).values())
        total = sum(map(len, expected(records=True).values()))
        assert (int(found[1]), int(found[2])) == (acked, total - acked)
        assert 0 < acked < total


def test_rejected_credentials_end_the_run(gazer, config):
    with Receiver(shared_key="right") as receiver:
        done = gazer("run", "-c", config(servers=[receiver.address], shared_key="wrong"),
                     command="gazer")
        assert done.code == 1
        assert not receiver.messages
        # One line, and the summary.
        assert done.stderr.count("credentials") == done.stderr.count("shared_key mismatch") == 1
        assert "tried again" not in done.stderr
        assert receiver.address in done.stderr
        assert "wrong" not in done.stderr and "right" not in done.stderr


def test_more_than_the_queue_holds_waits_in_the_rings(gazer, tmp_path, config):
    """The queue is a MiB, the events are three; while nobody listens capture can't be through."""
    path = tmp_path / "long.pcap"
    build.write_pcap(path, [
        (10**18 + i * 10**6, build.frame(build.udp(
            "198.51.100.7", 4000 + i % 50000, "192.0.2.53", 53,
            build.header(i & 0xFFFF) + build.question(build.labels("www", "example", "com")))))
        for i in range(20_000)
    ], nanoseconds=True)
    port = free_port()
    made = config(servers=[f"127.0.0.1:{port}"], queue="1MiB", chunk_size="16KiB", window=2)
    made.write_text(made.read_text().replace(str(RESOLVER), str(path))
                    + "ring: {size: 2MiB}\nworkers: 1\n")
    live = gazer.start("run", "-c", made, command="gazer")
    live.says("fluentd at")
    time.sleep(1.0)
    assert live.process.poll() is None
    with Receiver(port=port) as receiver:
        done = live.wait(60.0)
        assert done.code == 0, done.stderr
        assert {t: len(e) for t, e in received(receiver).items()} == {
            "dns-gazer.dns.tx": 20_000, "dns-gazer.dns.record": 20_000}


def test_a_receiver_that_stalls_in_the_middle_holds_the_run_up_and_nothing_is_lost(gazer, config):
    with Receiver() as receiver:
        receiver.stalled.set()
        timer = threading.Timer(2.0, receiver.stalled.clear)
        timer.start()
        done = gazer("run", "-c", config(servers=[receiver.address], chunk_size="16KiB"),
                     command="gazer")
        assert done.code == 0, done.stderr
        assert received(receiver) == expected(records=True)
