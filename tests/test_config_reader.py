"""gazer.config.reader: every error with its place, and hostile files."""

from __future__ import annotations

import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gazer.config import (
    OutputKind,
    load,
    sections,
)
from gazer.config.reader import MAX_DEPTH, MAX_ERRORS, MAX_FILE, MAX_NODES, parse
from gazer.errors import ConfigError


def errors(text: str) -> list[str]:
    """The error lines of a configuration named c.yaml with this text."""
    with pytest.raises(ConfigError) as caught:
        parse(text, "c.yaml")
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


WHERE = [
    # Names
    (
        "sensor: {id: a}\ntransactions:\n  timeot: 5s",
        "c.yaml:3: transactions.timeot: no such key; did you mean transactions.timeout?",
    ),
    ("worker: 3", "c.yaml:1: worker: no such key; did you mean workers?"),
    ("duplicate_window: 3",
     "c.yaml:1: duplicate_window: no such key; did you mean transactions.duplicate_window?"),
    ("ring:\n  max_sise: 1", "c.yaml:2: ring.max_sise: no such key; did you mean events.max_size?"),
    ("events: {outputs: []}", "c.yaml:1: events.outputs: no such key; did you mean outputs?"),
    ("zzz: 3", "c.yaml:1: zzz: no such key"),
    ("workers: 1\n\nworkers: 2", "c.yaml:3: workers: given twice, first on line 1"),
    (
        "ring: {size: 4MiB}\nring: {size: 4MiB}",
        "c.yaml:2: ring: given twice, first on line 1",
    ),
    ("? [a]\n: b", "c.yaml:1: expected the name of a key, got a list"),
    ("<<: {workers: 3}", "c.yaml:1: <<: no such key"),
    # Values
    (
        "\nworkers: many",
        'c.yaml:2: workers: expected "auto" or a whole number from 1 to 64, got "many"',
    ),
    ("workers: 0", 'c.yaml:1: workers: expected "auto" or a whole number from 1 to 64, got "0"'),
    ("workers: 65", 'c.yaml:1: workers: expected "auto" or a whole number from 1 to 64, got "65"'),
    ("workers: 03", 'c.yaml:1: workers: expected "auto" or a whole number from 1 to 64, got "03"'),
    ("workers:", 'c.yaml:1: workers: expected "auto" or a whole number from 1 to 64, got nothing'),
    (
        "transactions: {timeout: 5 parsecs}",
        "c.yaml:1: transactions.timeout: expected a duration from 1ms to 1h, such as 60s or "
        '500ms, got "5 parsecs"',
    ),
    (
        "transactions: {timeout: 0}",
        "c.yaml:1: transactions.timeout: expected a duration from 1ms to 1h, such as 60s or "
        '500ms, got "0"',
    ),
    (
        "transactions: {max_pending: -1}",
        "c.yaml:1: transactions.max_pending: expected a whole number from 1 to 100000000, "
        'got "-1"',
    ),
    (
        "transactions: {max_pending_bytes: 1Kb}",
        "c.yaml:1: transactions.max_pending_bytes: expected a size from 64KiB to 1TiB, such as "
        '256MiB, got "1Kb"',
    ),
    (
        "ring: {size: 5MiB}",
        "c.yaml:1: ring.size: expected a power of two from 64KiB to 1GiB, such as 8MiB, "
        'got "5MiB"',
    ),
    (
        "capture: {snaplen: 63}",
        'c.yaml:1: capture.snaplen: expected a size from 64 to 256KiB, such as 256KiB, got "63"',
    ),
    (
        "capture: {snaplen: 262145}",
        "c.yaml:1: capture.snaplen: expected a size from 64 to 256KiB, such as 256KiB, "
        'got "262145"',
    ),
    (
        "events:\n  detail: all",
        'c.yaml:2: events.detail: expected "classic" or "full", got "all"',
    ),
    ("events: {records: maybe}", 'c.yaml:1: events.records: expected true or false, got "maybe"'),
    ("events: {records: [a]}", "c.yaml:1: events.records: expected true or false, got a list"),
    (
        'sensor: {id: ""}',
        'c.yaml:1: sensor.id: expected text of 1 to 255 octets, printable, got ""',
    ),
    (
        r'sensor: {id: "a\tb\0"}',
        r'c.yaml:1: sensor.id: expected text of 1 to 255 octets, printable, got "a\tb\x00"',
    ),
    (
        r'sensor: {id: "\ud800"}',
        r'c.yaml:1: sensor.id: expected text of 1 to 255 octets, printable, got "\ud800"',
    ),
    # Shapes
    ("- a\n- b", "c.yaml:1: expected a mapping of keys, got a list"),
    ("just text", 'c.yaml:1: expected a mapping of keys, got "just text"'),
    ("ring: 4MiB", 'c.yaml:1: ring: expected a mapping of keys, got "4MiB"'),
    (
        "capture: {ports: 53}",
        'c.yaml:1: capture.ports: expected a list of port numbers, got "53"',
    ),
    (
        "capture: {ports: []}",
        "c.yaml:1: capture.ports: expected a list of port numbers, 1 to 64 of them, got 0",
    ),
    (
        f"capture: {{ports: {list(range(1, 66))}}}",
        "c.yaml:1: capture.ports: expected a list of port numbers, 1 to 64 of them, got 65",
    ),
    (
        "capture:\n  ports:\n    - 53\n    - 65536",
        'c.yaml:4: capture.ports[1]: expected a whole number from 1 to 65535, got "65536"',
    ),
    ("capture: {files:}", "c.yaml:1: capture.files: expected a list of paths, got nothing"),
    (
        "capture: {files: [a, [b]]}",
        'c.yaml:1: capture.files[1]: expected the path of a file or "-" for standard input, '
        "got a list",
    ),
    # Outputs
    ("outputs: []", "c.yaml:1: outputs: expected a list of 1 to 16 outputs, got 0"),
    (
        "outputs: {type: text}",
        "c.yaml:1: outputs: expected a list of 1 to 16 outputs, got a mapping",
    ),
    ("outputs:", "c.yaml:1: outputs: expected a list of 1 to 16 outputs, got nothing"),
    ("outputs: [text]", 'c.yaml:1: outputs[0]: expected a mapping of keys, got "text"'),
    (
        "outputs:\n- {path: a}",
        'c.yaml:2: outputs[0].type: missing: expected "text", "msgpack" or "fluentd"',
    ),
    (
        "outputs:\n- {type: text}",
        "c.yaml:2: outputs[0].path: missing: expected the path of a file or "
        '"-" for standard output',
    ),
    (
        "outputs:\n- {type: text, path: a}\n- type: fluentd\n  path: b",
        "c.yaml:3: outputs[1].servers: missing: expected a list of 1 to 16 servers\n"
        "c.yaml:4: outputs[1].path: goes with type text or msgpack only",
    ),
    (
        "outputs: [{type: csv, path: a}]",
        'c.yaml:1: outputs[0].type: expected "text", "msgpack" or "fluentd", got "csv"',
    ),
    (
        "outputs: [{type: text, path: a, time: seconds}]",
        "c.yaml:1: outputs[0].time: goes with type msgpack or fluentd only",
    ),
    (
        "outputs: [{type: msgpack, path: a, format: json}]",
        "c.yaml:1: outputs[0].format: goes with type text only",
    ),
    (
        "outputs: [{type: text, path: a, format: xml}]",
        'c.yaml:1: outputs[0].format: expected "text" or "json", got "xml"',
    ),
    (
        "outputs: [{type: text, pth: a}]",
        "c.yaml:1: outputs[0].pth: no such key; did you mean outputs[0].path?\n"
        "c.yaml:1: outputs[0].path: missing: expected the path of a file or "
        '"-" for standard output',
    ),
    # Between keys
    (
        "capture:\n  interfaces: [eth0]\n  files: [a]",
        "c.yaml:2: capture.interfaces: files and interfaces can't be read in one run; empty one "
        "of the two lists",
    ),
    (
        "capture:\n  interfaces: [eth0, eth1,\n    eth0]",
        "c.yaml:3: capture.interfaces[2]: eth0 is given twice",
    ),
    (
        "capture:\n  interfaces: [a, b, c]\n  processes: 6",
        "c.yaml:3: capture.processes: 18 capture processes in all; at most 16 are possible",
    ),
    (
        "capture:\n  ports: [53, 54,\n    53]",
        "c.yaml:3: capture.ports[2]: 53 is given twice",
    ),
    (
        "tunnels:\n  vxlan_ports: [4789, 4789]",
        "c.yaml:2: tunnels.vxlan_ports[1]: 4789 is given twice",
    ),
    (
        "tunnels:\n  vxlan_ports: [8472, 6081]",
        "c.yaml:1: tunnels.geneve_ports[0]: 6081 is a port of vxlan too: which of the two is it "
        "to be?",
    ),
    (
        "capture: {mdns: true}\ntunnels: {geneve_ports: [6081, 53, 5353]}",
        "c.yaml:2: tunnels.geneve_ports[1]: 53 is a port of DNS too: which of the two is it to "
        "be?\n"
        "c.yaml:2: tunnels.geneve_ports[2]: 5353 is a port of DNS too: which of the two is it to "
        "be?",
    ),
    (
        "capture: {files: ['-', a, '-']}",
        "c.yaml:1: capture.files: standard input can be read only once",
    ),
    (
        "outputs:\n- {type: text, path: '-'}\n- {type: msgpack, path: '-'}",
        "c.yaml:3: outputs[1].path: standard output is the file of another output too",
    ),
    (
        "workers: 8\ntransactions: {max_pending: 7}",
        "c.yaml:2: transactions.max_pending: 7 is less than one for each of 8 workers",
    ),
    (
        "workers: 8\nstreams: {max_transfers: 7}",
        "c.yaml:2: streams.max_transfers: 7 is less than one for each of 8 workers",
    ),
    (
        "workers: 8\ntransactions: {max_pending_bytes: 64KiB}",
        "c.yaml:2: transactions.max_pending_bytes: 64KiB is too small: each of 8 workers needs "
        "room for the largest message, so at least 512KiB",
    ),
    (
        "ring:\n  size: 1MiB",
        "c.yaml:2: ring.size: 1MiB is too small: a quarter of it must hold the largest frame "
        "(capture.snaplen is 256KiB) and the largest event (events.max_size is 256KiB, in 1 "
        "form); the smallest that does is 2MiB",
    ),
]  # fmt: skip


@pytest.mark.parametrize("text, expected", WHERE, ids=[case[1][7:60] for case in WHERE])
def test_an_error_names_its_place(text, expected):
    assert errors(text) == expected.split("\n")


def test_ports_of_a_tunnel_that_is_not_opened_stand_in_nobodys_way():
    config = parse("tunnels: {decode: [geneve], vxlan_ports: [6081, 53, 53]}", "c.yaml")
    assert config.tunnels.vxlan_ports == (6081, 53, 53)


def test_all_errors_are_told_in_the_order_of_the_file():
    text = "outputs: [{type: x, path: a}]\nworkers: x\nring: {size: x}\nsensor: {ad: 1}\n"
    assert [line.split(" ")[:2] for line in errors(text)] == [
        ["c.yaml:1:", "outputs[0].type:"],
        ["c.yaml:2:", "workers:"],
        ["c.yaml:3:", "ring.size:"],
        ["c.yaml:4:", "sensor.ad:"],
    ]


def test_the_order_is_the_files_not_that_of_the_checks():
    # The path of an output is looked at before its time, capture's rules before the ring's.
    lines = errors("outputs:\n- time: seconds\n  path: []\n  type: text\n")
    assert [line.split(" ")[0] for line in lines] == ["c.yaml:2:", "c.yaml:3:"]
    lines = errors("ring: {size: 64KiB}\ncapture: {interfaces: [eth0, eth0]}\n")
    assert [line.split(" ")[0] for line in lines] == ["c.yaml:1:", "c.yaml:2:"]


def test_the_number_and_length_of_error_lines_is_bounded():
    lines = errors("".join(f"{'k' * 900}{i}: {'v' * 5000}\n" for i in range(20)) + "x: 1\ny: 2\n")
    assert len(lines) == MAX_ERRORS + 1
    assert lines[-1] == "c.yaml: and 2 more errors"
    assert max(map(len, lines)) < 200


@pytest.mark.parametrize("text", ["a: 'b", "a: b: c", "\t", "a: *b", "{a: b", "a: &x &y b", "%FOO"])
def test_a_yaml_error_names_its_line(text):
    (line,) = errors("# first\n" + text)
    assert line.startswith(("c.yaml:2: not valid YAML: ", "c.yaml:3: not valid YAML: "))


def test_two_documents_are_an_error():
    assert errors("workers: 1\n---\nworkers: 2\n") == [
        "c.yaml:2: not valid YAML: expected a single document in the stream, but found another "
        "document"
    ]


def test_files_that_cannot_be_read(tmp_path):
    def text_of(path: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load(path)
        return str(caught.value)

    missing = tmp_path / "no\nne"
    assert text_of(str(missing)) == f"{tmp_path}/no\\nne: cannot be read: No such file or directory"
    assert text_of(str(tmp_path)) == f"{tmp_path}: cannot be read: Is a directory"
    assert text_of("a\0b") == "a\\x00b: cannot be read: not a path"


# Hostile files -----------------------------------------------------------------------------

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)
HOSTILE = {
    "nested lists": "[" * 100_000,
    "nested mappings": "{a: " * 50_000,
    "nested blocks": "".join(" " * i + "a:\n" for i in range(600)),
    "nested sequences": "- " * 100_000,
    "alias bomb": BOMB,
    "alias bomb in a list": BOMB + "capture: {files: *a29}\n",
    "alias bomb in outputs": BOMB + "outputs: *a29\n",
    "alias to itself": "capture: &c\n  files: *c\n",
    "list in itself": "outputs: &o [*o, *o]\n",
    "many nodes": "a: [" + "1," * 100_000 + "]",
    "many keys": "".join(f"k{i}: 1\n" for i in range(20_000)),
    "large": "# comment\n" * 100_000,
    "large scalar": "a: " + "x" * 200_000,
    "large number": "workers: " + "9" * 200_000,
    "large size": "ring: {size: " + "9" * 100_000 + "KiB}",
    "large fraction": "transactions: {timeout: 0." + "0" * 100_000 + "1s}",
    "object": "workers: !!python/object/apply:os.system ['echo hacked >&2']",
    "object at the top": "!!python/object/apply:os.abort []",
    "name": "sensor: {id: !!python/name:os.system }",
    "section object": "ring: !!python/object:gazer.config.Ring {size: 4MiB}",
    "binary tag": "sensor: {id: !!binary aGVsbG8=}",
    "set": "capture: !!set {files}",
    "own tag": "workers: !cores 3",
    "tag of a list": "capture: {ports: !!omap [53]}",
    "tag of outputs": "outputs: !x [{type: text, path: a}]",
    "escape beyond unicode": 'sensor: {id: "\\UFFFFFFFF"}',
    "directive": "%YAML 9.9\n---\nworkers: 3",
    "NUL": "workers: 3\n\0",
    "control": "workers: 3 # \x1b[2J",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_fail_soon_and_in_short(tmp_path, capfd, name):
    file = tmp_path / "c.yaml"
    file.write_text(HOSTILE[name], encoding="utf-8")
    start = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load(str(file))
    # The bounds allow a second or two; without them most of these would not end at all.
    assert time.process_time() - start < 20
    lines = str(caught.value).splitlines()
    assert 1 <= len(lines) <= MAX_ERRORS + 1
    assert all(line.startswith(f"{file}:") and line.isprintable() for line in lines)
    assert max(map(len, lines)) < 400 + len(str(file))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "data, where",
    [
        (b"\x7fELF\x02\x01\x01\0\0\0", ":1: not text: it contains U+007F"),
        (b"workers: 3\nsensor: {id: \xff}", ":2: not UTF-8 text"),
        ("workers: 3".encode("utf-16"), ":1: not UTF-8 text"),
        (b"\xd4\xc3\xb2\xa1\x02\0\x04\0", ":1: not UTF-8 text"),
        (b"a: b\n\n\0", ":3: not text: it contains U+0000"),
    ],
)
def test_what_is_no_text_is_told_with_its_line(tmp_path, data, where):
    file = tmp_path / "c.yaml"
    file.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load(str(file))
    assert str(caught.value) == f"{file}{where}"


def test_the_bounds_name_themselves():
    assert errors("a:\n  [[[" + "[" * MAX_DEPTH) == [
        f"c.yaml:2: nested more than {MAX_DEPTH} levels deep"
    ]
    (line,) = errors("a:\n" + "- 1\n" * MAX_NODES)
    assert line == f"c.yaml:{MAX_NODES - 1}: more than {MAX_NODES} values"


def test_an_endless_file_is_not_read_to_its_end():
    with pytest.raises(ConfigError, match=f"larger than {MAX_FILE // 1024} KiB"):
        load("/dev/zero")


def test_aliases_work_where_they_make_sense():
    config = parse("capture: {ports: &p [53, 54]}\nsensor: {id: &i abc}\n", "c")
    assert config.capture.ports == (53, 54)
    two = parse("outputs: [{type: &t text, path: a}, {type: *t, path: b}]", "c")
    assert [output.kind for output in two.outputs] == [OutputKind.TEXT] * 2


@settings(deadline=None)
@given(st.text(alphabet="abc:-[]{}&*!|>'\"#%@`,? \n\t0123456789\\\0\x85\u2028\ufffe", max_size=60))
def test_any_text_is_a_config_or_a_config_error(text):
    try:
        parse(text, "c.yaml")
    except ConfigError as error:
        lines = str(error).splitlines()
        assert lines and all(line.startswith("c.yaml") for line in lines)


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [*sections(), "workers", "outputs", "size", "files", "ports", "type"]
                ),
                inner,
                max_size=3,
            )
        ),
        max_leaves=10,
    )
)
def test_any_tree_is_a_config_or_a_config_error(tree):
    try:
        config = parse(yaml.safe_dump(tree), "c.yaml")
    except ConfigError as error:
        assert all(line.startswith("c.yaml") for line in str(error).split("\n"))
    else:
        assert config.problems() == []
