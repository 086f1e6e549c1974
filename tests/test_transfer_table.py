"""The table of open zone transfers: what it keeps of them, finds, and lets go of.

Where a transfer ends is test_transfer.py's.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gazer.workers import doors
from gazer.workers.transfer_door import CELL_BYTES, SLOT_BYTES, Table
from tests.oracle import build

CELL_DATA = CELL_BYTES - 4
UNDER_ID = 4
NAME = build.labels("example")
ASKED = build.question(NAME, 252)
AT_NAME = b"\xc0\x0c"
SOA = build.record(AT_NAME, 6, AT_NAME * 2 + struct.pack("!5I", 1, 2, 3, 4, 5))
TSIG = build.record(b"\1k\0", 250, bytes(40), rdclass=255, ttl=0)
READER = doors.Reader(1 << 20)       # room for all records of any message


def host(i: int, name: bytes = AT_NAME) -> bytes:
    return build.record(b"\1" + bytes([97 + i % 26]) + name, 1, struct.pack("!I", i))


def message(*answers: bytes, asked: bytes = b"", additional: tuple[bytes, ...] = (),
            flags: int = 0x8400, id: int = 7) -> bytes:
    """A pointer to 12 needs something to point to: the question, or the first answer's name."""
    counts = (int(bool(asked)), len(answers), 0, len(additional))
    return build.header(id, flags, counts) + asked + b"".join(answers) + b"".join(additional)


FIRST = message(SOA, host(0), asked=ASKED, additional=(TSIG,))
QUERY = build.header(7, 0, (1, 0, 0, 0)) + ASKED


def further(n: int, start: int = 1) -> bytes:
    """A message without question: its first answer has a whole name, at 12, for the others."""
    return message(host(start, NAME), *(host(start + i) for i in range(1, n)), additional=(TSIG,))


def read(wire: bytes) -> list[tuple]:
    return [(s, name, rrtype, data) for s, name, rrtype, _, _, data in READER.read(wire)["records"]]


def answers(wire: bytes) -> list[tuple]:
    return [r for r in read(wire) if r[0] == "answer"]


# --- what it keeps -------------------------------------------------------------------------------


def test_one_message_is_made_of_all():
    table = Table()
    index = table.begin(5, 1, 7, FIRST, question=99, query=QUERY, clock=10, sequence=2, time=100,
                        key=b"addresses", outer=b"tunnel" * 80)
    wires = [further(3), further(30, 4), message(), further(1), message(SOA, asked=ASKED)]
    for n, wire in enumerate(wires):
        result = table.go_on(index, wire, clock=20 + n, sequence=3 + n, time=200 + n)
        assert result == ("whole" if n == 4 else "more")
    made = table.message(index)
    assert made["records"] == read(FIRST) + [r for wire in wires for r in answers(wire)]
    assert (made["omitted"], made["anomaly"], made["flags"], made["id"]) == (0, "ok", 0x8400, 7)
    assert table.query(index) == QUERY
    assert table.message(index) == made         # asked again, it is the same
    found = table.transfer(index)
    assert found["complete"] and (found["messages"], found["records"]) == (6, 37)
    assert found["bytes"] == len(FIRST) + sum(map(len, wires))
    assert found["kept"] == 5                   # what has no answers is counted, not kept
    assert (found["first"], found["last"]) == ((10, 2, 100), (24, 7, 204))
    assert (found["serial"], found["direction"], found["id"]) == (5, 1, 7)
    assert found["key"] == b"addresses" and found["outer"] == b"tunnel" * 80
    # Nothing behind the answers is kept of further messages: no TSIG.
    lengths = [len(wires[0]), len(wires[1]), len(wires[3]), len(wires[4]) + len(TSIG)]
    assert found["used"] == len(QUERY) + len(FIRST) + sum(n + 4 - len(TSIG) for n in lengths)


def test_names_of_one_message_are_not_those_of_another():
    """The same place, another name: pointers lead into their own message."""
    table = Table()
    index = table.begin(1, 0, 7, FIRST)
    table.go_on(index, message(host(1, b"\5other\0"), host(2), asked=b""))
    table.go_on(index, message(host(3, b"\5third\0"), build.record(b"\xc0\x0e", 5, b"\xc0\x0e")))
    assert [r[1] for r in table.message(index)["records"]] == [
        "example.", "example.", "a.example.", "k.", "b.other.", "c.b.other.", "d.third.", "third."]
    assert table.message(index)["records"][-1][3] == "third."


@pytest.mark.parametrize("query", [0, 1, CELL_DATA - 1, CELL_DATA, CELL_DATA + 1])
@pytest.mark.parametrize("first", [-1, 0, 1, CELL_DATA - 100])
def test_cells_end_anywhere(query, first):
    """Query, messages and the lengths between them meet the ends of cells in every way."""
    asked = QUERY.ljust(query, b"q")[:query]
    size = CELL_DATA + first - 2 * 12       # two records' fixed part and header
    opening = message(build.record(b"\0", 65280, b"\xaa" * (size - 11)), asked=b"")
    for extra in range(6):
        table = Table()
        index = table.begin(1, 0, 7, opening, query=asked)
        wires = [message(build.record(b"\0", 65280, bytes([n + 1]) * (CELL_DATA - 23 - 4 + extra)))
                 for n in range(3)]
        for wire in wires:
            table.go_on(index, wire)
        assert table.query(index) == asked
        assert table.message(index)["records"] == [r for w in (opening, *wires) for r in read(w)]
        used = table.transfer(index)["used"]
        assert used == len(asked) + len(opening) + sum(len(w) + 4 for w in wires)
        assert table.figures["cells"] == -(-used // CELL_DATA)
        table.remove(index)
        assert table.figures["cells"] == table.figures["bytes"] == table.figures["count"] == 0


def test_the_largest_query_and_the_largest_first_message_always_fit():
    table = Table(max_bytes=0, budget=16384)
    query = QUERY.ljust(65535, b"q")
    first = message(*[build.record(b"\0", 65280, bytes(5000))] * 13)
    first = message(*[build.record(b"\0", 65280, bytes(5000))] * 13, b"x" * (65535 - len(first)))
    assert len(first) == 65535
    assert table.full(1, 0, 7, len(query) + len(first)) == 0
    index = table.begin(1, 0, 7, first, query=query)
    assert table.query(index) == query
    # Of its 13 records (the last one is none) not two fit into an event; all are counted.
    assert table.transfer(index)["records"] == 13 and table.transfer(index)["result"] == "broken"
    made = table.message(index)
    assert len(made["records"]) == 1 and made["omitted"] == 12
    assert table.figures["cells"] <= table.figures["max_cells"]


@pytest.mark.parametrize("budget", [16384, 20000, 65536])
def test_what_does_not_fit_is_counted(budget):
    """Long transfers: no more octets are kept than can be shown, and none is lost from count."""
    for size in (1, 7, 100, 2000):
        table = Table(budget=budget)
        index = table.begin(1, 0, 7, FIRST)
        used = []
        for n in range(6000 // size + 3):
            assert table.go_on(index, further(size, n)) == "more"
            used.append(table.transfer(index)["used"])
        records = table.transfer(index)["records"]
        assert records == 2 + size * (6000 // size + 3)
        made = table.message(index)
        shown = sum(r[0] == "answer" for r in made["records"])
        assert shown + made["omitted"] == records and made["omitted"] > 5000
        assert shown >= min(budget // 180, 2 + size * (budget // len(further(size))))
        assert used[-1] <= len(FIRST) + budget and used[-1] == used[-2]
        assert made["anomaly"] == "ok"


def test_what_is_kept_follows_without_a_gap():
    """A message that does not fit ends it, though a smaller one would fit behind."""
    table = Table(budget=16384)
    index = table.begin(1, 0, 7, FIRST)
    table.go_on(index, further(3))
    table.go_on(index, message(*[build.record(b"\0", 65280, bytes(5000))] * 4))
    table.go_on(index, further(2))
    made = table.message(index)
    assert made["records"] == read(FIRST) + answers(further(3)) and made["omitted"] == 6


def test_thousands_of_empty_messages_cost_no_memory():
    table = Table()
    index = table.begin(1, 0, 7, FIRST)
    before = table.figures
    for wire in (message(), message(asked=ASKED), message(additional=(TSIG,) * 300)):
        for n in range(3000):
            assert table.go_on(index, wire, clock=n, sequence=n) == "more"
            assert table.crowded(index, len(wire)) == 0
    assert table.figures == before
    found = table.transfer(index)
    assert (found["messages"], found["records"], found["kept"]) == (9001, 2, 1)
    assert table.message(index)["omitted"] == 0


def test_broken_messages_and_anomalies():
    """The first fault of any message is told; the records before it are shown."""
    table = Table()
    loop = build.record(b"\xc0\x0c", 1, bytes(4))       # at 12: to itself
    for bad, anomaly, result, shown in (
            (message(loop), "pointer_loop", "more", 0),
            (message(host(1, NAME), loop)[:-1], "rdlength", "broken", 1),
            (message(host(1, NAME), host(2))[:-10], "truncated", "broken", 1),
            (message(build.record(b"\0", 1, b"\1")), "bad_rdata", "more", 1)):
        index = table.begin(1, 0, 7, FIRST)
        assert table.go_on(index, bad) == result
        if result == "more":
            table.go_on(index, message(build.record(b"\0", 28, b"")))   # bad_rdata comes second
        made = table.message(index)
        assert made["anomaly"] == anomaly
        assert len(made["records"]) == len(read(FIRST)) + shown + (result == "more")
        table.remove(index)
    # A message that breaks before its first answer has no more than that to tell.
    for bad, anomaly in ((b"\0\7\x84", "short_header"), (message(asked=b"\x41"), "bad_label"),
                         (message(asked=NAME + b"\0"), "truncated"),
                         (build.header(7, 0x8400, (1, 0, 0, 0)), "counts")):
        index = table.begin(1, 0, 7, FIRST)
        assert table.go_on(index, bad) == "broken"
        made = table.message(index)
        assert made["anomaly"] == anomaly and made["records"] == read(FIRST)
        assert table.transfer(index)["bytes"] == len(FIRST) + len(bad)
        table.remove(index)


# --- what it finds -------------------------------------------------------------------------------


def test_find():
    table = Table()
    a = table.begin(1, 0, 7, FIRST, question=99)
    b = table.begin(1, 1, 7, FIRST, question=99)
    c = table.begin(2, 0, 7, FIRST, question=99)
    d = table.begin(1, 0, 8, FIRST)
    assert [table.find(1, 0, 7, 99), table.find(1, 1, 7, 99), table.find(2, 0, 7, 99)] == [a, b, c]
    assert [table.find(1, 0, 7), table.find(1, 1, 7), table.find(2, 0, 7)] == [a, b, c]
    assert table.find(1, 0, 7, 98) == 0         # the same id, another question
    assert table.find(1, 0, 8) == d
    assert table.find(1, 0, 8, 99) == 0         # it was begun without one
    assert [table.find(*k) for k in ((3, 0, 7), (1, 0, 9), (2, 1, 7))] == [0, 0, 0]
    table.remove(a)
    assert table.find(1, 0, 7) == 0 and table.find(1, 1, 7) == b


def test_a_message_without_question_continues_the_one_continued_last():
    table = Table()
    a = table.begin(1, 0, 7, FIRST, question=1, sequence=1)
    b = table.begin(1, 0, 7, FIRST, question=2, sequence=2)
    assert (table.find(1, 0, 7, 1), table.find(1, 0, 7, 2), table.find(1, 0, 7)) == (a, b, b)
    table.go_on(a, further(1), sequence=3)
    assert table.find(1, 0, 7) == a
    table.go_on(b, further(1), sequence=3)      # one segment may hold messages of both
    assert table.find(1, 0, 7) == b
    table.go_on(a, further(1), sequence=3)
    assert table.find(1, 0, 7) == a


def test_all_of_a_direction_in_the_order_they_began():
    table = Table(max_transfers=64)
    begun = [table.begin(n % 3, n % 2, n, FIRST, sequence=n) for n in range(36)]
    for serial in range(3):
        for direction in range(2):
            expected = [i for n, i in enumerate(begun) if n % 3 == serial and n % 2 == direction]
            assert table.of(serial, direction) == expected
    assert table.of(3, 0) == []
    table.remove(begun[6])
    assert table.of(0, 0) == [begun[n] for n in (0, 12, 18, 24, 30)]


# --- limits --------------------------------------------------------------------------------------


def test_the_one_continued_the_longest_ago_leaves():
    table = Table(max_transfers=3)
    a, b, c = (table.begin(n, 0, 7, FIRST, sequence=n) for n in range(3))
    assert table.order() == [a, b, c]
    assert table.full(9, 0, 7, 100) == a
    table.go_on(a, further(1), sequence=9)
    assert table.order() == [b, c, a] and table.full(9, 0, 7, 100) == b
    table.remove(b)
    assert table.full(9, 0, 7, 100) == 0
    assert table.begin(9, 0, 7, FIRST, sequence=10) == b        # the slot is used again
    assert table.order() == [c, a, b] and table.figures["touched_slots"] == 3


def test_few_are_open_under_one_id():
    """A server that answers under one id with ever new questions can't make a look-up long."""
    table = Table(max_transfers=1000)
    begun = [table.begin(1, 0, 7, FIRST, question=n, sequence=n) for n in range(UNDER_ID)]
    table.begin(1, 0, 8, FIRST, question=0, sequence=50)
    table.go_on(begun[0], further(1), sequence=60)
    assert table.full(1, 0, 7, 100) == begun[1]
    assert table.full(1, 1, 7, 100) == table.full(2, 0, 7, 100) == table.full(1, 0, 8, 100) == 0
    table.remove(begun[1])
    assert table.full(1, 0, 7, 100) == 0


def test_bytes_are_bounded():
    table = Table(max_transfers=100, max_bytes=200 * CELL_BYTES, budget=262144)
    large = message(*[build.record(b"\0", 65280, bytes(1000))] * 60)       # 60 cells
    a = table.begin(1, 0, 7, FIRST, sequence=1)
    b = table.begin(2, 0, 7, large, sequence=2)
    c = table.begin(3, 0, 7, large, sequence=3)
    assert table.figures["cells"] == 1 + 60 + 60 and table.figures["max_cells"] == 200
    # To begin: the oldest one leaves.
    assert table.full(4, 0, 7, 79 * CELL_DATA) == 0
    assert table.full(4, 0, 7, 79 * CELL_DATA + 1) == a
    # To go on: the oldest of the others leaves; never the one that goes on.
    assert table.crowded(a, len(large)) == table.crowded(c, len(large)) == 0
    assert table.go_on(c, large, sequence=4) == "more" and table.figures["cells"] == 180
    assert table.crowded(c, len(large)) == a and table.crowded(a, len(large)) == b
    table.remove(a)
    assert table.crowded(c, len(large)) == b
    table.remove(b)
    assert table.crowded(c, len(large)) == 0
    assert table.go_on(c, large, sequence=5) == "more" and table.figures["cells"] == 179
    # Alone and without room: no more is kept, all is counted.
    assert table.crowded(c, len(large)) == 0
    table.go_on(c, large, sequence=6)
    table.go_on(c, further(1), sequence=7)
    found = table.transfer(c)
    assert (found["messages"], found["records"], found["kept"]) == (5, 241, 3)
    made = table.message(c)
    assert len(made["records"]) + made["omitted"] == 241
    assert table.figures["touched_cells"] <= 200


def test_one_that_keeps_no_more_pushes_nobody_out():
    table = Table(max_bytes=0, budget=16384)
    a = table.begin(1, 0, 7, FIRST)
    b = table.begin(2, 0, 7, message(*[build.record(b"\0", 65280, bytes(1000))] * 62))
    c = table.begin(3, 0, 7, message(*[build.record(b"\0", 65280, bytes(1000))] * 62))
    assert table.figures["max_cells"] - table.figures["cells"] < 8
    assert table.crowded(a, 12000) == b         # its own 100 octets leave it room in its budget
    assert table.crowded(b, 12000) == table.crowded(c, 12000) == 0
    assert table.crowded(a, 17000) == 0
    for n in range(120):
        assert table.crowded(a, 20) == 0
        table.go_on(a, further(1), sequence=n)
    assert table.figures["cells"] <= table.figures["max_cells"]


@settings(max_examples=25, deadline=None, phases=[Phase.generate])      # to shrink takes minutes
@given(st.data())
def test_against_a_model(data):
    """Begin, go on, remove in any order; the model is a list in the order of last messages."""
    table = Table(max_transfers=5, max_bytes=140 * CELL_BYTES, budget=16384)
    model: list[dict] = []
    for frame in range(1, data.draw(st.integers(2, 60))):
        serial, direction, ident = (data.draw(st.integers(0, 2)), data.draw(st.integers(0, 1)),
                                    data.draw(st.integers(1, 2)))
        question = data.draw(st.sampled_from([None, 1, 2]))
        size = data.draw(st.sampled_from([1, 5, 60, 400, 1500]))
        here = [t for t in model if t["key"] == (serial, direction, ident)]
        match = [t for t in here if question is None or t["question"] == question]
        index = table.find(serial, direction, ident, question)
        assert index == (match[-1]["index"] if match else 0)
        wire = further(size, frame)
        leaves = []
        if index and data.draw(st.integers(0, 9)) == 0:
            table.remove(index)
            model.remove(match[-1])
        elif index:
            mine = match[-1]
            while out := table.crowded(index, len(wire)):
                leaves.append(out)
                table.remove(out)
            others = [t for t in model if t is not mine]
            assert leaves == [t["index"] for t in others[:len(leaves)]]
            table.go_on(index, wire, sequence=frame)
            mine["wires"].append(wire)
            model = [*others[len(leaves):], mine]
        else:
            while out := table.full(serial, direction, ident, len(wire)):
                leaves.append(out)
                table.remove(out)
            if len(here) >= UNDER_ID:
                assert leaves[:1] == [here[0]["index"]]
            model = [t for t in model if t["index"] not in leaves]
            index = table.begin(serial, direction, ident, wire, question=question, sequence=frame)
            model.append({"index": index, "key": (serial, direction, ident),
                          "question": question, "wires": [wire], "began": frame})
        assert table.order() == [t["index"] for t in model]
        for where in ((s, d) for s in range(3) for d in range(2)):
            mine = sorted((t for t in model if t["key"][:2] == where), key=lambda t: t["began"])
            assert table.of(*where) == [t["index"] for t in mine]
        figures = table.figures
        used = [table.transfer(t["index"])["used"] for t in model]
        assert figures["cells"] == sum(-(-u // CELL_DATA) for u in used) <= 140
        assert figures["bytes"] == len(model) * SLOT_BYTES + figures["cells"] * CELL_BYTES
    for transfer in model:
        made = table.message(transfer["index"])
        everything = read(transfer["wires"][0]) + [
            r for wire in transfer["wires"][1:] for r in answers(wire)]
        shown = len(made["records"])
        assert made["records"] == everything[:shown]
        assert shown + made["omitted"] == len(everything)
