"""A whole sensor whose spool is cut and flipped between two runs, or has no room on its disk."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter

import pytest

from tests.chaos.sensors import quiet, stop, whole
from tests.conftest import eventually, small_disk
from tests.sensor import frames
from tests.test_fluentd_live import all_came, came

pytest_plugins = ["tests.chaos.sensors"]

# --- a damaged spool -----------------------------------------------------------------------------


def cut(folder, segment):
    os.truncate(segment, segment.stat().st_size * 2 // 3)


def flip(folder, segment):
    data = bytearray(segment.read_bytes())
    for at in (len(data) // 3, len(data) // 2):
        data[at] ^= 0x10
    segment.write_bytes(data)


def behead(folder, segment):
    with segment.open("r+b") as file:
        file.write(bytes(64))


def garble(folder, segment):
    (folder / "position").write_bytes(os.urandom(2000))
    with segment.open("ab") as file:
        file.write(os.urandom(5000))


def remove(folder, segment):
    segment.unlink()


@pytest.mark.parametrize("damage", [cut, flip, behead, garble, remove])
def test_a_spool_that_is_damaged_between_two_runs(sensor, start, receiver, tmp_path, damage):
    """The next run starts, delivers the rest, counts what was hit, and goes on with live events."""
    folder = tmp_path / "spool"
    receiver.refuse()
    live = start(folder)
    for turn in range(8):
        sensor.send(frames(*range(50 * turn, 50 * turn + 50)))
        time.sleep(0.04)
    live.says("go into the spool")
    first = stop(live)
    assert first["spooled"] == first["left"] >= 400
    segment, = folder.glob("*.seg*")
    damage(folder, segment)
    receiver.listen()
    live = start(folder)
    sink = live.part("gazer:sink").pid
    sensor.send(frames(*range(400, 500)))

    def through():
        """all that is left has come, and what is new"""
        tree = json.loads(sensor.gazer("stats", "--json", "--pid", live.pid,
                                       command="gazer").stdout)
        output = tree["account"]["outputs"][0]
        return not output["spool_events"] and {*range(400, 500)} <= {*came(receiver)}

    eventually(through, 30.0)
    assert live.part("gazer:sink").pid == sink      # nobody died over it
    second = stop(live)
    assert second["left"] <= 2 and second["dropped"] == 0
    assert second["found"] + second["spooled"] == (
        second["delivered"] + second["lost"] + second["left"])
    missing = {*range(500)} - {*came(receiver)}
    assert max(came(receiver).values()) == 1
    least, most = {cut: (1, 399), flip: (1, 399), behead: (0, 399), garble: (0, 0),
                   remove: (400, 400)}[damage]
    assert least <= len(missing) <= most
    assert 0 <= second["lost"] - len(missing) <= 2      # events about the sensor


# --- a full disk ---------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    """A file system with room for 128 KiB."""
    with small_disk(tmp_path, 128) as where:
        yield where


@pytest.mark.parametrize("first", ["room", "receiver"])
def test_a_disk_that_is_full_while_the_receiver_is_away(sensor, start, receiver, disk, first):
    """What has no room in the spool waits in memory; room comes first, or the receiver."""
    receiver.refuse()
    live = start(disk / "spool", outputs=[{"type": "text", "path": str(sensor.out)}])
    sent = 0
    while "No space left" not in live.stderr:
        sensor.send(frames(*range(sent, sent + 100)))
        sent += 100
        assert sent < 5000
    sensor.send(frames(*range(sent, sent + 300)))
    sent += 300
    sensor.await_lines(sent, 5.0)
    if first == "room":
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
        live.says("its spool is written again")
        sensor.send(frames(*range(sent, sent + 100)))
        sent += 100
    receiver.listen()
    all_came(receiver, sent)
    quiet(sensor, live, sent)
    found = stop(live)
    whole(found)
    assert found["spooled"] > 100
    assert found["spooled"] + found["direct"] >= sent
    assert came(receiver) == Counter(range(sent))
