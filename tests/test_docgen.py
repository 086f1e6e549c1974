"""gazer.docgen: the example and the page are current and leave nothing out."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import yaml

from gazer import docgen, event
from gazer.config import (
    MAX_OUTPUTS,
    OUTPUT_TYPES,
    Config,
    OutputKind,
    keys_of,
    load,
    sections,
)
from gazer.config.reader import parse

ROOT = Path(__file__).resolve().parent.parent


def test_the_example_is_the_defaults():
    assert load(str(ROOT / "configs/sensor.yaml")) == Config()


def test_the_example_has_every_key():
    tree = yaml.safe_load((ROOT / "configs/sensor.yaml").read_text(encoding="utf-8"))
    assert list(tree) == [item.name for item in fields(Config)]
    for name, cls in sections().items():
        assert list(tree[name]) == list(keys_of(cls))
        # No attribute of a section is without its key.
        assert len(keys_of(cls)) == len(fields(cls))
    (output,) = tree["outputs"]
    assert list(output) == ["type", "path", OUTPUT_TYPES[output["type"]][0].name]


def test_the_example_holds_when_its_other_output_is_taken_in(tmp_path):
    text = (ROOT / "configs/sensor.yaml").read_text(encoding="utf-8")
    changed = text.replace("  # - {type: msgpack", "  - {type: msgpack")
    assert changed != text
    config = parse(changed, "c")
    assert [output.kind for output in config.outputs] == [OutputKind.TEXT, OutputKind.MSGPACK]


def test_the_documents_are_current():
    assert docgen.stale(ROOT) == []


def test_the_page_has_every_key_with_its_reason():
    page = docgen.page()
    for name, cls in sections().items():
        for leaf, (_, key) in keys_of(cls).items():
            (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}.{leaf}` |")]
            assert key.why in row and key.kind.bounds in row and key.kind.type in row
            assert row.count("|") == 6
    assert f"1 to {MAX_OUTPUTS}" in page


def _tables(text: str) -> dict[str, list[list[str]]]:
    """The rows of the page's tables of fields, by the heading above each."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("#").strip()
        elif line.startswith("| `") and heading:
            found.setdefault(heading, []).append([c.strip() for c in line.split(" | ")])
    return found


def test_the_events_page_has_every_field_with_its_meaning():
    tables = _tables(docgen.events_page())
    for heading, fields_ in (
        (event.TAG_TX, event.TX),
        ("Each entry of `query` and `reply`", event.RECORD_OF_TX),
        (event.TAG_RECORD, event.RECORD),
    ):
        rows = tables[heading]
        assert [row[0] for row in rows] == [f"| `{field.name}`" for field in fields_]
        for row, field in zip(rows, fields_, strict=True):
            _, type_, detail, present, meaning, example = row
            assert (type_, meaning) == (field.type, field.text)
            assert detail == ("classic, full" if field.classic else "full")
            assert present == ("where there is one" if field.optional else "always")
            assert example == f"`{field.example}` |"
    edns = tables["Each entry of `edns`"]
    assert [row[0] for row in edns] == [f"| `{field.name}`" for field in event.EDNS]
    assert all(len(row) == 5 for row in edns)


def test_the_events_page_names_every_value_of_malformed():
    from gazer.workers.anomaly import NAMES

    text = docgen.events_page()
    shown = text.split("### The values of `malformed`")[1].split("##")[0]
    assert [n for n in NAMES if f"`{n}`" in shown] == list(NAMES[2:])


def test_the_generator_writes_what_is_missing_and_sees_what_is_stale(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert docgen.main(["--check"]) == 1
    assert not any(tmp_path.iterdir())
    assert docgen.main([]) == 0
    assert docgen.main(["--check"]) == 0
    (tmp_path / docgen.YAML_FILE).write_text("workers: 3\n")
    assert docgen.stale(Path()) == [docgen.YAML_FILE]
    (tmp_path / docgen.EVENTS_FILE).unlink()
    assert docgen.stale(Path()) == [docgen.YAML_FILE, docgen.EVENTS_FILE]
    assert docgen.main(["--wrong"]) == 2
    capsys.readouterr()
