"""gazer's decoder against dnspython and dnslib on mutated messages: a small share of what
`make differential` runs, always the same one; and that the comparison would see a difference."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import dns.name
import pytest

from gazer.workers.doors import Reader
from tests.differential import classes, mutate, readings
from tests.differential.__main__ import block

MESSAGES = 5000         # of each of four seeds


@pytest.mark.parametrize("seed", range(4))
def test_disagreements_are_all_of_known_classes(seed):
    tally = block(seed, MESSAGES)
    assert tally.unexplained == []
    assert tally.messages == MESSAGES
    assert tally.records > 2 * MESSAGES
    assert tally.by_dnslib > MESSAGES // 20


def test_nearly_all_real_messages_are_read_by_all_three():
    """So the comparison is of something."""
    reader = Reader(1 << 24)
    whole = [wire for wire in mutate.messages() if reader.read(wire)["anomaly"] == "ok"]
    assert len(whole) > 1000
    assert sum(not readings.dnspython(wire).fault for wire in whole) == len(whole)
    assert sum(readings.by_dnslib(wire) is not None for wire in whole) > 0.8 * len(whole)


def altered(read: dict, rng: random.Random) -> tuple[str, dict]:
    """A reading with one thing in it changed as a bug might."""
    records = [list(record) for record in read["records"]]
    what = rng.choice(["id", "name", "type", "ttl", "data", "lost", "more"])
    at = rng.randrange(len(records))
    if what == "id":
        return what, {**read, "id": read["id"] ^ 1}
    if what == "lost":
        records.pop()
    elif what == "more":
        records.append(records[-1])
    elif what == "name":
        records[at][1] = "x" + records[at][1]
    elif what == "type":
        records[at][2] ^= 0x100
    elif records[at][4] is None or records[at][2] == classes.OPT:
        return altered(read, rng)
    elif what == "ttl":
        records[at][4] += 1
    else:
        records[at][5] += "x"
    return what, {**read, "records": [tuple(record) for record in records]}


def test_a_difference_is_seen():
    """Each reading that is changed in one place is a disagreement that no class explains."""
    reader, rng, seen = Reader(1 << 24), random.Random(7), set()
    for wire in mutate.messages():
        read = reader.read(wire)
        if read["anomaly"] != "ok" or len(read["records"]) < 2:
            continue
        if any(record[2] in classes.JUDGED for record in read["records"]):
            continue
        what, wrong = altered(read, rng)
        assert None in [name for name, _ in classes.against_dnspython(wire, wrong)], what
        seen.add(what)
    assert seen == {"id", "name", "type", "ttl", "data", "lost", "more"}


def test_each_class_has_a_reason_and_a_name_of_its_own():
    names = [one.name for one in classes.ALL]
    assert len(set(names)) == len(names)
    assert all(len(one.reason) > 40 for one in classes.ALL)


def test_the_page_lists_each_class():
    page = (Path(__file__).parent.parent / "docs" / "testing.md").read_text()
    for one in classes.ALL:
        assert f"| {one.name} | {one.reason} |" in page, one.name


def test_long_chains_of_pointers():
    """No mutation makes one; dnspython refuses it since it has a limit."""
    chain = b"".join((0xC000 | to).to_bytes(2, "big") for to in [12, *range(31, 31 + 2 * 99, 2)])
    head = struct.pack("!6H", 1, 0x8180, 1, 2, 0, 0) + b"\1a\0\0\1\0\1"
    wire = head + struct.pack("!HHHIH", 0xC00C, 65280, 1, 0, len(chain)) + chain
    wire += struct.pack("!HHHIH", 0xC000 | (31 + 2 * 99), 1, 1, 0, 4) + bytes(4)
    read = Reader(1 << 24).read(wire)
    assert read["anomaly"] == "ok"
    assert read["records"][2][1] == "a."
    found = {name for name, _ in classes.against_dnspython(wire, read)}
    limited = hasattr(dns.name, readings.CHAIN)
    assert found - {"chunks"} == ({"long chains of pointers"} if limited else set())
