"""The corpora of the fuzz targets, run once each with the sensor's own modules; and, where clang is
there, that the fuzzer sees what it should see.

`make fuzz` runs the same targets with coverage and sanitizers (docs/testing.md).
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgpack
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "fuzz"))

import compiling  # noqa: E402
import corpora  # noqa: E402
import seeds  # noqa: E402

MOST = 300_000          # octets of one target's corpus


@pytest.fixture(scope="module")
def target():
    """The target's module, compiled for the sensor's own ones."""
    path = str(compiling.plain())
    sys.path.insert(0, path)
    yield importlib.import_module
    sys.path.remove(path)


def failures(name: str, run) -> list[str]:
    """Of the corpus and of the seeds."""
    found = []
    inputs = corpora.inputs(name)
    inputs += [(f"seed {n}", seed) for n, seed in enumerate(seeds.SEEDS[name]())]
    for label, data in inputs:
        failed = run(data)
        if failed:
            found.append(f"{label}: {failed}")
    assert len(inputs) > 10
    return found


def test_each_target_has_a_corpus_that_is_small():
    assert corpora.targets() == compiling.TARGETS
    assert sorted(seeds.SEEDS) == compiling.TARGETS
    for name in compiling.TARGETS:
        assert 0 < sum(len(octets) for _, octets in corpora.inputs(name)) <= MOST


def test_a_corpus_comes_out_as_it_was_put_in(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "FOLDER", tmp_path)
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"")
    corpora.pack("x", [tmp_path / "b", tmp_path / "a"])
    (tmp_path / "x-crash-1").write_bytes(b"two")
    assert corpora.inputs("x") == [("a", b"one"), ("b", b""), ("x-crash-1", b"two")]
    corpora.unpack("x", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a", "b", "x-crash-1"]
    first = (tmp_path / "x.zip").read_bytes()
    corpora.pack("x", [tmp_path / "a", tmp_path / "b"])
    assert (tmp_path / "x.zip").read_bytes() == first


def check_event(texts: dict[int, bytes]) -> None:
    """All four formats are valid, and say the same."""
    line, one_object, packed, with_time = (texts[number] for number in range(4))
    _, tag, record = line.decode("ascii").rstrip("\n").split("\t")
    record = json.loads(record)
    again = json.loads(one_object)
    assert again.pop("tag") == tag
    again.pop("time")
    assert again == record
    their_tag, _, their_record = msgpack.unpackb(packed, strict_map_key=False)
    assert (their_tag, their_record) == (tag, record)
    assert msgpack.unpackb(with_time)[::2] == [tag, record]


def test_messages(target):
    module, outputs = target("message"), target("outputs")
    events = 0

    def run(data: bytes) -> str | None:
        nonlocal events
        outputs.keep(True)
        failed = module.run(data)
        for _, _, _, texts in outputs.kept():
            check_event(texts)
            events += 1
        return failed

    assert failures("message", run) == []
    outputs.keep(False)
    assert events > 5000


def test_frames_through_the_engine(target):
    module, outputs, tags, ids = target("engine"), target("outputs"), set(), Counter()

    def run(data: bytes) -> str | None:
        outputs.keep(True)
        failed = module.run(data)
        events = outputs.kept()
        keys = [(clock, sequence) for clock, sequence, _, _ in events]
        if keys != sorted(keys):
            failed = failed or "events are out of order"
        for _, _, _, texts in events:
            check_event(texts)
            tags.add(texts[0].split(b"\t")[1].decode())
        own = [json.loads(texts[1]).get("event_id") for _, _, _, texts in events]
        if any(own) if data[0] & 4 else not all(own) or len(set(own)) < len(own):
            failed = failed or "ids are not as they should be"
        ids["with" if own and not data[0] & 4 else "without"] += 1
        return failed

    assert failures("engine", run) == []
    outputs.keep(False)
    assert min(ids["with"], ids["without"]) > 20
    assert tags == {f"dns-gazer.{protocol}.{kind}" for protocol in ("dns", "mdns", "llmnr")
                    for kind in ("tx", "record")}


def test_ids_that_are_not_there_and_ids_that_come_again_are_found(target):
    """What the engine's events are held to."""
    outputs = target("outputs")

    def line(name: str) -> bytes:
        return b'time\ttag\t{"a": 1%s}\n' % name.encode()

    def told(*names: str) -> list[str | None]:
        return outputs.ids([line(f', "event_id": "{name}"') if name else line("")
                            for name in names])

    assert told("s:1:0", "s:1:1", "s:2:0") == [None] * 3
    assert told("s:1:0", "", "s:1:1", "s:1:0") == [
        None, "an event without an id", None, "two events have the same id"]
    assert told(*(f"s:{n}" for n in range(30_000))) == [None] * 30_000


def test_capture_files(target):
    module, frames = target("captures"), 0

    def run(data: bytes) -> str | None:
        nonlocal frames
        failed, read = module.run(data)
        frames += len(read)
        return failed

    assert failures("captures", run) == []
    assert frames > 200


def test_packets(target):
    module, fates = target("packet"), set()

    def run(data: bytes) -> str | None:
        failed, fate = module.run(data)
        fates.add(fate)
        return failed

    assert failures("packet", run) == []
    assert {"dns", "fragment", "icmp_error", "tunnel_header", "ip_header", "ip_length"} <= fates


def test_fragments(target):
    module, joined = target("fragments"), 0

    def run(data: bytes) -> str | None:
        nonlocal joined
        failed, whole = module.run(data)
        joined += len(whole)
        return failed

    assert failures("fragments", run) == []
    assert joined > 5


def test_streams(target):
    module, kinds, messages = target("streams"), set(), 0

    def run(data: bytes) -> str | None:
        nonlocal messages
        failed, items = module.run(data)
        kinds.update(item[0] for item in items)
        messages += sum(1 for item in items if item[3])
        return failed

    assert failures("streams", run) == []
    assert kinds == {1, 2, 3}       # messages, gaps and ends
    assert messages > 20


# --- what the fuzzer sees ------------------------------------------------------------------------

@pytest.fixture(scope="module")
def planted():
    compiler = compiling.clang()
    if compiler is None:
        pytest.skip("no clang with libFuzzer")
    return compiling.sanitized(["planted"], compiler)


def drive(planted, *arguments: str, leaks: bool = True) -> subprocess.CompletedProcess[str]:
    driver, lib = planted
    return subprocess.run(
        [str(driver), *arguments], env=compiling.environment(lib, "planted", leaks),
        cwd=compiling.BUILD, capture_output=True, text=True, errors="replace", timeout=100)


@pytest.mark.parametrize("which, said", [
    (1, "heap-buffer-overflow"), (2, "heap-use-after-free"), (3, "signed integer overflow"),
    (4, "shift exponent"), (6, "CHECK FAILED: planted")])
def test_each_kind_of_fault_ends_the_run(planted, tmp_path, which, said):
    (tmp_path / "input").write_bytes(bytes([which, 0x5A, 0xA5, 0x33, 1]))
    done = drive(planted, str(tmp_path / "input"))
    assert done.returncode
    assert said in done.stderr


def test_a_harmless_input_passes(planted, tmp_path):
    (tmp_path / "input").write_bytes(bytes([0, 0x5A, 0xA5, 0x33, 1]))
    assert drive(planted, str(tmp_path / "input")).returncode == 0


def test_coverage_leads_to_a_planted_fault(planted, tmp_path):
    """Three octets guard it: by chance one input in 16 million would pass."""
    done = drive(planted, "-seed=1", "-max_len=8", "-runs=2000000",
                 f"-artifact_prefix={tmp_path}/")
    assert done.returncode, done.stderr[-2000:]
    found = list(tmp_path.glob("*-*"))
    assert len(found) == 1
    assert found[0].read_bytes()[1:4] == b"\x5a\xa5\x33"
