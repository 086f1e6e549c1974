"""The ledger: its layout, its names, who may look and who is refused."""

import itertools
import struct
import time

import pytest

from gazer import counters
from gazer.config import MAX_OUTPUTS
from gazer.counters import CAPTURE, OUTPUT, SINK, WORKER, Slot, ledger_bytes, ledger_create
from gazer.errors import SharedMemoryError
from gazer.packet import FATES
from gazer.workers.anomaly import NAMES as ANOMALIES

MAX_COUNTERS = 440
FIRST_COUNTER = 256
BANK = 8 * (MAX_COUNTERS + 112)
SLOT = FIRST_COUNTER + 2 * BANK
STATE = 16


def ledger(processes=3):
    buffer = bytearray(ledger_bytes(processes))
    ledger_create(buffer)
    return buffer


def put(buffer, index, counter, value):
    """Into the bank that holds while nothing was committed."""
    struct.pack_into("<Q", buffer, SLOT * (index + 1) + FIRST_COUNTER + 8 * counter, value)


def words(buffer, index, count=4):
    return struct.unpack_from(f"<{count}Q", buffer, SLOT * (index + 1))


def test_layout():
    assert ledger_bytes(5) == 6 * SLOT
    buffer = ledger()
    assert buffer[:8] == b"GZLEDGER"
    assert struct.unpack_from("<2Q", buffer, 8) == (5, 0)      # version, control
    assert not any(buffer[SLOT:])


def test_the_names_of_the_outputs():
    buffer = bytearray(ledger_bytes(1))
    names = ["a", "/var/log/" + "x" * 300, "\u00e9" * 128, "\udc80b", ""] + ["z"] * 11
    ledger_create(buffer, names, outputs=len(names))
    found = Slot(buffer, 0).output_names()
    assert found[0] == "a" and found[2] == names[2]
    assert found[1] == "..." + "x" * 253
    assert found[3] == "\ufffdb" and found[4:] == names[4:]
    assert not any(buffer[SLOT:])
    with pytest.raises(IndexError):
        ledger_create(buffer, ["a"] * 17)
    struct.pack_into("<Q", buffer, 40, 1 << 40)     # HEAD_OUTPUTS, by someone who was taken over
    assert len(Slot(buffer, 0).output_names()) == counters.MAX_OUTPUTS


def test_since_when_a_process_waits():
    buffer = ledger()
    slot = Slot(buffer, 1)
    slot.open(1)
    assert slot.waiting_since == 0
    before = time.monotonic_ns()
    slot.waits(True)
    since = slot.waiting_since
    assert before <= since <= time.monotonic_ns()
    heartbeat = slot.heartbeat
    slot.waits(True)
    assert (slot.waiting_since, slot.state) == (since, "waiting") and slot.heartbeat > heartbeat
    assert slot.seen().waiting_since == since
    slot.waits(False)
    assert (slot.waiting_since, slot.state) == (0, "running")
    slot.waits(True)
    assert slot.waiting_since > since
    slot.open(2)                                    # a successor has not waited yet
    assert slot.waiting_since == 0


def test_a_slot_is_where_the_layout_says():
    buffer = ledger()
    slot = Slot(buffer, 1)
    before = time.monotonic_ns()
    slot.open(4711)
    pid, heartbeat, state, in_hand = words(buffer, 1)
    assert (pid, state, in_hand) == (4711, 0, 0)
    assert before <= heartbeat <= time.monotonic_ns()
    assert (slot.pid, slot.heartbeat, slot.state) == (4711, heartbeat, "starting")
    put(buffer, 1, 0, 12)
    assert slot.read({"first": 0, "second": 1}) == {"first": 12, "second": 0}
    assert Slot(buffer, 0).pid == Slot(buffer, 2).pid == 0
    assert not any(buffer[SLOT : 2 * SLOT]) and not any(buffer[3 * SLOT :])


@pytest.mark.parametrize("index", [-1, -2, 3, 1 << 20])
def test_a_slot_that_is_not_there_is_refused(index):
    with pytest.raises(SharedMemoryError):
        Slot(ledger(3), index)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [(0, 0, "not a ledger"), (0, int.from_bytes(b"GAZRRING", "little"), "not a ledger"),
     (8, 0, "layout 0, this program knows 5"), (8, 4, "layout 4, this program knows 5")])
def test_anything_else_is_refused(offset, value, message):
    buffer = ledger()
    struct.pack_into("<Q", buffer, offset, value)
    with pytest.raises(SharedMemoryError, match=message):
        Slot(buffer, 0)


@pytest.mark.parametrize("size", [1, 16, SLOT, 2 * SLOT - 1])
def test_a_segment_that_is_too_small_is_refused(size):
    with pytest.raises(SharedMemoryError, match="not a ledger"):
        Slot(ledger()[:size], 0)


def test_states_and_heartbeat():
    slot = Slot(ledger(), 0)
    slot.waits(True)
    first = slot.heartbeat
    assert slot.state == "waiting" and first > 0
    time.sleep(0.001)
    slot.waits(False)
    assert slot.state == "running" and slot.heartbeat > first


def test_a_state_that_a_later_version_may_have_is_no_crash():
    buffer = ledger()
    struct.pack_into("<Q", buffer, SLOT + 16, 99)
    assert Slot(buffer, 0).state == "unknown"


def test_what_the_supervisor_asks_all_slots_see():
    buffer = ledger()
    slots = [Slot(buffer, i) for i in range(3)]
    assert not any(s.draining or s.quitting for s in slots)
    slots[1].ask(drain=True)
    assert all(s.draining and not s.quitting for s in slots)
    slots[0].ask(quit=True)
    assert all(s.draining and s.quitting for s in slots)


@pytest.mark.parametrize("names", [CAPTURE, WORKER, SINK, OUTPUT])
def test_each_counter_has_one_name_and_one_word(names):
    assert len(set(names.values())) == len(names)
    assert all(0 <= index < MAX_COUNTERS for index in names.values())
    assert all(name == name.lower() and " " not in name for name in names)


def test_capture_s_counters_name_every_fate_but_dns():
    fates = {name.removeprefix("fate."): at for name, at in CAPTURE.items() if "fate." in name}
    assert list(fates) == list(FATES[1:])
    first = fates[FATES[1]]
    assert list(fates.values()) == list(range(first, first + len(FATES) - 1))
    assert first > max(at for name, at in CAPTURE.items() if "fate." not in name)


@pytest.mark.parametrize("kind", ["discarded", "malformed"])
def test_workers_counters_name_every_anomaly(kind):
    found = {name: at for name, at in WORKER.items() if name.startswith(f"{kind}.")}
    assert list(found) == [f"{kind}.{name}" for name in ANOMALIES[1:]]
    assert list(found.values()) == list(range(min(found.values()), max(found.values()) + 1))


def test_a_slot_holds_the_counters_of_as_many_outputs_as_may_be_configured():
    assert MAX_OUTPUTS <= counters.MAX_OUTPUTS


def test_add_output_and_read_output():
    buffer = ledger()
    slot = Slot(buffer, 1)
    outputs = {0, 1, MAX_OUTPUTS - 2, counters.MAX_OUTPUTS - 1}
    for number in outputs:
        slot.add_output(number, 10 + number, 1000, 1)
        slot.add_output(number, 5, (1 << 40) + number, 0)
    assert not any(slot.read(SINK).values())     # nothing is committed yet
    slot.publish()
    for number in range(counters.MAX_OUTPUTS):
        expected = dict.fromkeys(OUTPUT, 0) | {
            "events": 15 + number, "bytes": (1 << 40) + 1000 + number, "dropped": 1}
        assert slot.read_output(number) == (
            expected if number in outputs else dict.fromkeys(OUTPUT, 0))
    assert slot.read(SINK) == {"events": 0, "writes": 2 * len(outputs), "settled": 0}
    assert not any(buffer[SLOT : 2 * SLOT]) and not any(buffer[3 * SLOT :])


def test_a_successor_s_output_goes_on_with_what_it_had():
    """(written, dropped, stats, done, settled, spooled) -> (ahead of the rings, dropped)"""
    settled = SINK["settled"]
    for given, expected in [
        ((0, 0, 0, 0, 0, 0), (0, 0)),
        ((10, 0, 0, 10, 10, 0), (0, 0)),
        ((10, 0, 0, 10, 7, 0), (3, 0)),     # it is ahead: the rings still have three of its events
        ((10, 0, 0, 10, 15, 0), (0, 5)),    # it was left behind, and five are lost
        ((10, 4, 0, 10, 7, 0), (3, 0)),     # dropped out of turn: they have another chance
        ((9, 3, 1, 11, 8, 0), (3, 3)),      # one of what it wrote came from no ring
        ((9, 5, 2, 11, 14, 0), (0, 7)),
        ((4, 0, 0, 10, 7, 6), (3, 0)),      # what the spool has it has had too
        ((4, 1, 1, 10, 12, 5), (0, 4)),
    ]:
        buffer = ledger()
        slot = Slot(buffer, 0)
        written, dropped, stats, done, slot_settled, spooled = given
        slot.add(settled, slot_settled)
        slot.add_output(2, written, 0, dropped, stats, done, spooled)
        slot.publish()
        heir = Slot(buffer, 0)
        assert (heir.resume_output(2), given) == (expected[0], given)
        heir.publish()
        assert slot.read_output(2)["dropped"] == expected[1]
        assert slot.read_output(2)["done"] == max(done, slot_settled)


def test_what_an_output_counts_by_itself_is_set_and_not_added_up():
    buffer = ledger()
    slot = Slot(buffer, 1)
    slot.add_output(3, 1, 2, 3, 4, 5, 6)
    for turn in (7, 8):
        slot.set_output(3, {"delivered": turn, "spool_bytes": 1 << 40})
        assert slot.own_output(3)["delivered"] == turn
    assert slot.read_output(3)["delivered"] == 0        # not committed
    slot.publish()
    assert slot.read_output(3) == slot.own_output(3) == dict.fromkeys(OUTPUT, 0) | {
        "events": 1, "bytes": 2, "dropped": 3, "stats": 4, "done": 5, "spooled": 6,
        "delivered": 8, "spool_bytes": 1 << 40}
    for wrong in ({"nothing": 1}, {"delivered": -1}):
        with pytest.raises((KeyError, OverflowError)):
            slot.set_output(3, wrong)


def test_places_and_numbers_are_kept_for_a_successor():
    buffer = ledger()
    slot = Slot(buffer, 0)
    last = counters.MAX_OUTPUTS - 1
    slot.place_output(0, (1 << 64) - 1, 12)
    slot.place_output(last, 7, 1 << 63, 99)
    slot.keep([1, 2, (1 << 64) - 1])
    slot.keep(range(100, 100 + counters.KEPT))
    assert Slot(buffer, 0).output_place(last) == (0, 0, 0)     # nothing is committed yet
    slot.publish()
    heir = Slot(buffer, 0)
    assert [heir.output_place(i) for i in (0, 1, last)] == [
        ((1 << 64) - 1, 12, 0), (0, 0, 0), (7, 1 << 63, 99)]
    assert heir.kept(counters.KEPT) == list(range(100, 100 + counters.KEPT))
    with pytest.raises(IndexError):
        slot.keep([0] * (counters.KEPT + 1))
    with pytest.raises(IndexError):
        slot.kept(counters.KEPT + 1)
    for call in (slot.output_place, slot.resume_output):
        with pytest.raises(IndexError):
            call(last + 1)


@pytest.mark.parametrize("number", [-1, counters.MAX_OUTPUTS, 1 << 20])
def test_an_output_beyond_the_slot_is_refused(number):
    slot = Slot(ledger(), 0)
    with pytest.raises(IndexError):
        slot.add_output(number, 1, 1, 1)
    with pytest.raises(IndexError):
        slot.read_output(number)


def test_counters_are_64_bits_wide():
    buffer = ledger()
    put(buffer, 0, CAPTURE["frames"], (1 << 64) - 1)
    assert Slot(buffer, 0).read(CAPTURE)["frames"] == (1 << 64) - 1


def test_no_two_slots_share_a_word():
    buffer = ledger()
    for index, counter in itertools.product(range(3), (0, MAX_COUNTERS - 1)):
        put(buffer, index, counter, index * 1000 + counter + 1)
    for index in range(3):
        assert Slot(buffer, index).read({"a": 0, "b": MAX_COUNTERS - 1}) == {
            "a": index * 1000 + 1, "b": index * 1000 + MAX_COUNTERS}


def test_release_lets_go_of_the_memory():
    buffer = ledger()
    slot = Slot(buffer, 0)
    with pytest.raises(BufferError):
        buffer.extend(b"x")
    slot.release()
    buffer.extend(b"x")


def test_a_commit_is_all_or_nothing():
    """A process that dies before its commit has counted nothing; its successor goes on from the
    last one, and the one after that from the successor's."""
    buffer = ledger()
    dead = Slot(buffer, 0)
    dead.open(1)
    dead.add(0, 5)
    dead.add(MAX_COUNTERS - 1, 7)
    dead.publish()
    dead.add(0, 100)
    names = {"first": 0, "last": MAX_COUNTERS - 1}
    assert Slot(buffer, 0).read(names) == {"first": 5, "last": 7}
    heir = Slot(buffer, 0)
    heir.open(2)
    assert heir.starts == 2
    heir.add(0, 1)
    heir.publish()
    assert Slot(buffer, 0).read(names) == {"first": 6, "last": 7}


@pytest.mark.parametrize("commits", [1, 2, 3])
def test_a_bank_half_written_is_never_read(commits):
    """Killed within a commit: what stands in the other bank is garbage, and nobody looks there."""
    buffer = ledger()
    slot = Slot(buffer, 0)
    for _ in range(commits):
        slot.add(0, 1)
        slot.publish()
    other = SLOT + FIRST_COUNTER + BANK * ((commits + 1) % 2)
    buffer[other : other + BANK] = b"\xee" * BANK
    assert slot.read({"first": 0}) == {"first": commits}
    heir = Slot(buffer, 0)
    heir.add(0, 1)
    heir.publish()
    assert slot.read({"first": 0}) == {"first": commits + 1}


def test_what_the_run_is_made_of():
    buffer = bytearray(ledger_bytes(2))
    ledger_create(buffer, captures=2, workers=3, live=1, started=10**18)
    assert Slot(buffer, 1).run() == {
        "captures": 2, "workers": 3, "outputs": 0, "live": 1, "started": 10**18, "max_pending": 0}


def test_outputs_are_asked_to_open_again():
    buffer = ledger()
    assert Slot(buffer, 0).reloads == 0
    Slot(buffer, 2).ask_reload()
    assert Slot(buffer, 0).reloads == 1
