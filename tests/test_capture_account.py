"""Live capture, what is lost and what is not: interfaces, buffers, rings, processes, stops."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter

from .conftest import eventually
from .sensor import NAME, Sensor, capabilities, ended, expected, frames, key

pytest_plugins = ["tests.sensor"]


# --- interfaces that come and go -----------------------------------------------------------------


def test_an_interface_that_is_not_there_yet_is_waited_for(lab, gazer, tmp_path):
    sensor = Sensor(lab, gazer, tmp_path)
    live = sensor.drop_in()
    live.says(f"waiting for {NAME}: no such interface")
    time.sleep(1.0)
    lab.veth()
    live.says(f"{NAME} is there: capturing")
    lab.send(frames(1))
    assert Counter(map(key, sensor.await_lines(1))) == expected(1)
    ended(live)
    assert live.stderr.count("waiting for") == live.stderr.count("is there: capturing") == 1
    sensor.close()


def test_it_ends_while_it_waits(lab, gazer, tmp_path):
    sensor = Sensor(lab, gazer, tmp_path)
    live = sensor.drop_in()
    assert ended(live) == {"received": 0, "read": 0, "dropped": 0, "lost": 0, "rings": 0}
    sensor.close()


def test_an_interface_that_goes_down_or_away_is_waited_for(sensor):
    """Numbers and account go on; each time one line says that it has gone and one that it is back.
    A frame that was sent before it went down is not lost."""
    live = sensor.drop_in()
    lab = sensor.lab
    lab.send(frames(1, 2))
    lab.down()
    eventually(lambda: live.stderr.count(f"waiting for {NAME}") == 1, 20)
    lab.up()
    eventually(lambda: live.stderr.count(f"{NAME} is there: capturing") == 1, 20)
    lab.send(frames(3))
    sensor.await_lines(3)
    lab.delete()
    eventually(lambda: live.stderr.count(f"waiting for {NAME}") == 2, 20)
    lab.veth()
    eventually(lambda: live.stderr.count(f"{NAME} is there: capturing") == 2, 20)
    lab.send(frames(4, 5))
    assert Counter(map(key, sensor.await_lines(5))) == expected(1, 2, 3, 4, 5)
    assert ended(live) == {"received": 10, "read": 10, "dropped": 0, "lost": 0, "rings": 0}
    assert live.stderr.count(f"waiting for {NAME}") == 2


def test_who_may_not_capture_is_told_what_to_do(sensor):
    done = sensor.gazer(
        "-i", NAME, "-t", "-",
        prefix=[*sensor.lab.argv([]), "setpriv", "--bounding-set=-net_raw",
                "--inh-caps=-net_raw"])
    assert done.code == 1
    (line,) = [line for line in done.said if NAME in line]
    assert "no permission to capture" in line and "CAP_NET_RAW" in line


def test_it_may_capture_only_until_it_does(sensor):
    """So a fresh process has to wait for an interface that has gone."""
    live = sensor.drop_in()
    capture = live.part("gazer:capture").pid
    assert capabilities(capture) == 0
    sensor.lab.down()
    fresh = eventually(lambda: (found := live.parts().get("gazer:capture"))
                       and found.pid != capture and found.pid, 20)
    live.says(f"waiting for {NAME}")
    assert capabilities(fresh) & 1 << 13        # CAP_NET_RAW
    sensor.lab.up()
    live.says("is there: capturing")
    assert capabilities(fresh) == 0
    ended(live)


# --- the account ---------------------------------------------------------------------------------


def test_what_overflows_the_kernel_s_buffer_is_counted_exactly(sensor):
    """Capture stands still while more comes than the buffer holds."""
    live = sensor.configured(capture={"interfaces": [NAME], "buffer": "1MiB"},
                             service={"hang_timeout": "5m"})
    capture = live.part("gazer:capture")
    sensor.lab.send(frames(*range(50)))
    sensor.await_lines(50)
    capture.suspend()
    flood = frames(*range(100, 4100))
    sensor.send(flood)
    capture.resume()
    seen = ended(live)
    assert seen["received"] == 100 + len(flood)
    assert seen["dropped"] > 0 and seen["lost"] == seen["rings"] == 0
    assert seen["read"] == seen["received"] - seen["dropped"]


def test_what_a_full_ring_drops_is_counted_apart(sensor):
    """A worker stands still."""
    live = sensor.configured(
        capture={"interfaces": [NAME], "snaplen": 2048}, ring={"size": "128KiB"},
        events={"detail": "classic", "max_size": "16KiB"}, service={"hang_timeout": "5m"})
    worker = live.part("gazer:worker0")
    worker.suspend()
    sensor.send(frames(*range(2000)))

    def dropped() -> bool:
        live.signal(signal.SIGUSR1)
        return bool(re.search(r"\d+ frames? read: .*, \d+ dropped$", live.stderr, re.MULTILINE))

    eventually(dropped, 30)
    worker.resume()
    seen = ended(live)
    assert seen["received"] == seen["read"] == 4000
    assert 0 < seen["rings"] < 4000 and seen["dropped"] == 0
    assert len(sensor.lines()) >= (4000 - seen["rings"]) // 2


def test_a_stop_under_load_loses_nothing(sensor):
    """What was sent before the signal is in the output, though capture had not read it yet."""
    live = sensor.drop_in()
    numbers = range(1, 12001)
    sent = frames(*numbers)
    sensor.send(sent)
    seen = ended(live)
    assert seen["received"] == len(sent)
    assert seen["dropped"] == seen["rings"] == 0
    assert Counter(map(key, sensor.lines())) == expected(*numbers)


def test_a_capture_process_that_is_killed_has_a_successor(sensor):
    """What it had read is not read again, what it had not is counted, the numbers go on."""
    live = sensor.drop_in()
    lab = sensor.lab
    sensor.send(frames(*range(500)))
    for round_ in range(3):
        old = live.part("gazer:capture").pid
        sensor.send(frames(*range(1000 * (round_ + 1), 1000 * (round_ + 1) + 500)))
        os.kill(old, signal.SIGKILL)
        eventually(lambda old=old: live.part("gazer:capture").pid != old, 10)

        def captures(n=round_ + 1) -> bool:
            lab.send(frames(50000 + n))
            return any(key(line)[2] == 50000 + n for line in sensor.lines())

        eventually(captures, 10)
    seen = ended(live)
    assert seen["received"] == seen["read"] + seen["lost"] + seen["dropped"]
    kinds = Counter(map(key, sensor.lines()))
    assert all(n == 1 for (_, _, id_, status), n in kinds.items()
               if id_ < 50000 and status == "success")
    assert set(expected(*range(500))) <= set(kinds)
