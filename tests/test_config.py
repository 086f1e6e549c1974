"""gazer.config: what a file sets, the defaults, and the rules between keys."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from gazer.config import (
    Capture,
    Config,
    Detail,
    Events,
    Fragments,
    Metrics,
    Output,
    OutputKind,
    Ring,
    Service,
    Streams,
    Transactions,
    Tunnels,
    from_mapping,
    load,
)
from gazer.config.kinds import (
    KIB,
    MIB,
    SECOND,
    show_size,
)
from gazer.config.reader import parse
from gazer.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent


def test_every_key_is_read():
    config = parse(
        """
sensor: {id: edge 7}
capture:
  files: [a.pcap, "-", 2015.pcap]
  interfaces: []
  processes: 4
  buffer: 2MiB
  promiscuous: no
  ports: [53, 5300]
  filter: udp
  mdns: on
  llmnr: yes
  snaplen: 65535
tunnels: {decode: [gre, vxlan], max_depth: 2, vxlan_ports: [8472], geneve_ports: []}
fragments: {max_datagrams: 7, max_bytes: 1MiB, timeout: 5s}
streams: {max_streams: 777, max_bytes_each: 128KiB, max_bytes: 3MiB, max_transfers: 9, timeout: 1h}
ring: {size: 2MiB}
workers: 3
transactions:
  timeout: 500ms
  duplicate_window: 0
  max_pending: 4096
  max_pending_bytes: 64MB
events: {detail: classic, records: yes, event_id: on, max_size: 64KiB}
service:
  user: "gazer:dns"
  shutdown_timeout: 5s
  hang_timeout: 7s
  stats_interval: 10s
  quarantine: q.pcap
  capture_cpus: [0]
  worker_cpus: [1, 2]
  sink_cpus: [3]
metrics: {listen: "[::1]:9"}
outputs:
  - {type: text, path: t}
  - {type: text, path: j, format: json}
  - {type: msgpack, path: m}
  - {type: msgpack, path: e, time: event_time}
""",
        "c.yaml",
    )
    assert config.sensor.id == "edge 7"
    assert config.capture == Capture(
        ("a.pcap", "-", "2015.pcap"), (), 4, 2 * MIB, False, (53, 5300), "udp", True, True, 65535)
    assert config.tunnels == Tunnels(("gre", "vxlan"), 2, (8472,), ())
    assert config.fragments == Fragments(7, MIB, 5 * SECOND)
    assert config.streams == Streams(777, 128 * KIB, 3 * MIB, 9, 3600 * SECOND)
    assert config.ring == Ring(2 * MIB)
    assert config.workers == config.worker_count() == 3
    assert config.transactions == Transactions(SECOND // 2, 0, 4096, 64_000_000)
    assert config.events == Events(Detail.CLASSIC, True, True, 64 * KIB)
    assert config.service == Service(
        "gazer:dns", 5 * SECOND, 7 * SECOND, 10 * SECOND, "q.pcap", (0,), (1, 2), (3,))
    assert config.metrics == Metrics("[::1]:9")
    assert config.outputs == (
        Output(OutputKind.TEXT, "t"),
        Output(OutputKind.JSON, "j"),
        Output(OutputKind.MSGPACK, "m"),
        Output(OutputKind.MSGPACK_EVENT_TIME, "e"),
    )
    assert config.forms() == tuple(OutputKind)


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "{}", "capture:\nevents:\n", "---\n...\n", "\ufeffring: {}\n"]
)
def test_nothing_said_is_the_defaults(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    assert load(str(file)) == Config()


def test_the_defaults_are_sound_and_as_documented():
    config = Config()
    assert config.problems() == [] and config.checked() is config
    assert config.transactions.timeout_ns == 60 * SECOND
    assert config.transactions.duplicate_window_ns == 5 * SECOND
    assert config.transactions.max_pending == 1_000_000
    assert config.transactions.max_pending_bytes == 256 * MIB
    assert config.events == Events(Detail.FULL, False, False, 256 * KIB)
    assert config.capture == Capture(
        (), (), 1, 64 * MIB, True, (53,), "", False, False, 256 * KIB)


def test_a_config_goes_to_a_child_and_stays_as_it_is():
    config = from_mapping({"workers": 2, "events": {"detail": "classic"}})
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(FrozenInstanceError):
        config.workers = 3
    assert not hasattr(config, "__dict__") and not hasattr(config.events, "__dict__")


def test_the_text_decides_not_the_type_that_yaml_guesses():
    config = parse('sensor: {id: 2015-10-11}\nworkers: "4"\ncapture: {files: [1e3, yes]}', "c")
    assert config.sensor.id == "2015-10-11"
    assert config.workers == 4
    assert config.capture.files == ("1e3", "yes")


@pytest.mark.parametrize("cores, workers", [(1, 1), (2, 1), (3, 2), (64, 63), (65, 64), (256, 64)])
def test_auto_workers(monkeypatch, cores, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    assert Config().worker_count() == workers
    assert replace(Config(), workers=5).worker_count() == 5


def test_children_import_it_without_yaml_or_the_reader():
    code = (
        "import sys, gazer.config\n"
        "slow = {'yaml', 'typing', 'argparse', 'difflib', 'gazer.config.reader'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert out.stdout == "[]\n"


@pytest.mark.parametrize("snaplen", [64, 16127, 16128, 16129, 65535, 256 * KIB])
@pytest.mark.parametrize("max_size", [KIB, 15616, 15617, 256 * KIB, MIB])
@pytest.mark.parametrize("forms", [1, 2, 3, 4])
def test_a_quarter_of_a_ring_holds_the_largest_entry(snaplen, max_size, forms):
    outputs = tuple(Output(kind, f"o{kind}") for kind in list(OutputKind)[:forms])
    config = replace(
        Config(),
        capture=Capture(snaplen=snaplen),
        events=Events(max_size=max_size),
        outputs=outputs,
    )
    entry = max(snaplen + 256, forms * (max_size + 512) + 256)
    # The rule, said the other way round: walk up the powers of two.
    least = 64 * KIB
    while least < 4 * entry:
        least *= 2
    assert config.least_ring() == least
    assert replace(config, ring=Ring(least)).problems() == []
    if least > 64 * KIB:
        (problem,) = replace(config, ring=Ring(least // 2)).problems()
        assert problem[0] == "ring.size"
        assert problem[1].endswith(f"the smallest that does is {show_size(least)}")


def test_the_default_ring_holds_three_forms_of_the_largest_event():
    outputs = tuple(Output(kind, f"o{kind}") for kind in list(OutputKind)[:3])
    assert replace(Config(), outputs=outputs).problems() == []


def test_outputs_of_one_form_count_once():
    outputs = tuple(Output(OutputKind.JSON, f"o{i}") for i in range(5))
    assert replace(Config(), outputs=outputs).forms() == (OutputKind.JSON,)


def test_one_file_under_two_names_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").touch()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "hard").hardlink_to(tmp_path / "a")
    (tmp_path / "new").symlink_to("later")

    def problems(*paths: str, files: tuple[str, ...] = ()) -> list[tuple[str, str]]:
        outputs = tuple(Output(OutputKind.TEXT, path) for path in paths)
        return replace(Config(), outputs=outputs, capture=Capture(files)).problems()

    for other in ("./a", str(tmp_path / "a"), "link", "hard"):
        expected = f'"{other}" is the file of another output too'
        assert problems("a", other) == [("outputs[1].path", expected)]
        assert problems(other, files=("b", "a")) == [
            ("outputs[0].path", f'"{other}" is an input file too')
        ]
    assert problems("later", "new") and problems("-", "/dev/stdout")
    assert problems("a", "b", "-") == []
    assert problems("/dev/null", "/dev/null", files=("/dev/null",)) == []
    assert problems("-", files=("-",)) == []


def test_checked_tells_every_problem():
    config = replace(Config(), ring=Ring(64 * KIB), capture=Capture(("-", "-")), outputs=())
    with pytest.raises(ConfigError) as caught:
        config.checked()
    paths = [line.split(":")[0] for line in str(caught.value).splitlines()]
    assert paths == ["capture.files", "ring.size", "outputs"]
