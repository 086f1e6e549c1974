"""A whole sensor whose sink is killed, that is stopped in mid-flush, and whose fluentd outputs are
dead while the others go on.

Each exchange has a number, which is its client's port, so what was sent, what arrived and what the
ledger says can be held against one another.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict

import pytest

from tests.chaos.receivers import Apart
from tests.chaos.sensors import quiet, stop, whole
from tests.conftest import eventually
from tests.receiver import ACK, CLOSE, LOSE, TWICE, late
from tests.sensor import figures, frames
from tests.test_fluentd_live import TX, all_came, came, delivered
from tests.test_live_service import successor

pytest_plugins = ["tests.chaos.sensors"]

# --- kill -9 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("spool", [False, True], ids=["memory", "spool"])
def test_sinks_of_a_sensor_that_are_killed_under_load(sensor, start, receiver, tmp_path, spool):
    """While the receiver flaps: what comes twice is known by its event_id, and is no more than the
    window for each kill."""
    dice = random.Random(2)
    receiver.plan = lambda _: dice.choices(
        [ACK, LOSE, CLOSE, TWICE, late(0.05)], [85, 3, 4, 3, 5])[0]
    live = start(tmp_path / "spool" if spool else None, events={"event_id": True})
    sent, over = 0, threading.Event()

    def load():
        nonlocal sent
        while not over.wait(0.05):
            sensor.send(frames(*range(sent, sent + 50)))
            sent += 50

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for _ in range(4):          # five within a minute would end the service
            old = live.part("gazer:sink").pid
            time.sleep(dice.uniform(0.1, 0.6))
            os.kill(old, signal.SIGKILL)
            successor(live, "gazer:sink", old)
    finally:
        over.set()
        thread.join()
    receiver.plan = lambda _: ACK
    all_came(receiver, sent)
    quiet(sensor, live, sent)
    whole(stop(live))
    assert {*came(receiver)} == {*range(sent)}
    chunks, ports = defaultdict(set), {}
    for message in receiver.messages:
        for _, record in message.entries if message.tag == TX else ():
            chunks[record["event_id"]].add(message.chunk)
            assert ports.setdefault(record["event_id"], record["client_port"]) == (
                record["client_port"])
    assert sorted(port - 1024 for port in ports.values()) == [*range(sent)]
    again = Counter(len(ids) - 1 for ids in chunks.values())
    assert max(again) <= 4
    # An event takes some 200 octets at least.
    in_hand = 4 + (16 if spool else 0)
    assert sum(times * n for times, n in again.items()) <= 4 * in_hand * 16384 // 200


# --- TERM in mid-flush ---------------------------------------------------------------------------


@pytest.mark.parametrize("spool", [False, True], ids=["memory", "spool"])
def test_a_stop_in_mid_flush(sensor, start, receiver, tmp_path, spool):
    """The receiver has a part, and takes no more; the kernel has a part; the rest waits."""
    folder = tmp_path / "spool" if spool else None
    live = start(folder, output={"ack_timeout": "30s"}, service={"shutdown_timeout": "6s"})
    sensor.send(frames(*range(200)))
    all_came(receiver, 200)
    receiver.stalled.set()
    sensor.send(frames(*range(200, 1200)))
    live.signal(signal.SIGTERM)
    done = live.wait(40.0)
    found = delivered(done.stderr)
    acked = {*came(receiver)}
    if not spool:
        assert done.code == 1 and "interrupted while fluentd" in done.stderr
        assert found["direct"] + found["dropped"] >= 1200
        assert 0 <= found["direct"] - len(acked) <= 3       # events about the sensor
        assert found["dropped"] >= 1200 - len(acked) > 500
        receiver.stalled.clear()
        return
    assert done.code == 0, done.stderr
    assert found["dropped"] == found["lost"] == 0
    assert found["direct"] + found["spooled"] >= 1200
    assert found["left"] >= 1200 - len(acked) > 500
    receiver.refuse()               # what it had not read is gone with its connection
    receiver.stalled.clear()
    receiver.listen()
    live = start(folder)
    all_came(receiver, 1200)
    quiet(sensor, live, 0)
    second = stop(live)
    assert second["found"] == found["left"]
    whole(second)


# --- one output and the others -------------------------------------------------------------------


def test_dead_and_frozen_servers_hold_up_neither_a_file_nor_capture(sensor, tmp_path):
    frozen = Apart(tmp_path / "log", unix=str(tmp_path / "frozen"))
    live = sensor.configured(ring={"size": "4MiB"}, service={"shutdown_timeout": "6s"}, outputs=[
        {"type": "fluentd", "servers": [frozen.address], "queue": "1MiB", "chunk_size": "16KiB",
         "window": 2},
        {"type": "fluentd", "servers": [f"unix://{tmp_path}/nobody"], "queue": "1MiB",
         "chunk_size": "16KiB"},
        {"type": "text", "path": str(sensor.out)},
    ])
    sensor.send(frames(*range(100)))
    eventually(lambda: {1024 + n for n in range(100)} <= frozen.numbers, 10.0)
    frozen.freeze()
    sent, took = 100, []
    for _ in range(16):
        begun = time.monotonic()
        sensor.send(frames(*range(sent, sent + 1000)))      # each 250 ms
        sent += 1000
        arrived = time.monotonic()
        sensor.await_lines(sent, 5.0)
        took.append(time.monotonic() - arrived)
        time.sleep(max(0.0, begun + 0.25 - time.monotonic()))
    assert sorted(took)[len(took) // 2] < 1.0       # the machine may be busy now and then
    frozen.thaw()
    live.signal(signal.SIGTERM)
    done = live.wait(40.0)
    account = figures(done.stderr)
    assert account["read"] == account["received"] == 2 * sent
    assert not account["dropped"] and not account["rings"] and not account["lost"]
    assert "does not keep up" in done.stderr and "add up" not in done.stderr
    assert done.code == 1               # what was for nobody is not delivered
    assert len(sensor.lines()) == sent
    frozen.end()
