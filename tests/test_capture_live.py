"""Live capture, the whole pipeline: commands in a network namespace, frames over a cable."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from .conftest import eventually
from .oracle import build, wraps
from .sensor import CLIENT, NAME, SERVER, capabilities, ended, exchange, expected, frames, key

pytest_plugins = ["tests.sensor"]


# --- at low rates --------------------------------------------------------------------------------


def test_an_event_is_written_within_a_second_of_the_reply(sensor):
    """Also when frames trickle in, too few to fill anything, too many for it ever to be idle."""
    live = sensor.drop_in()
    late = []
    for n in range(30):
        sensor.lab.send(frames(n))
        sent = time.monotonic()
        if n in (0, 10, 20, 29):
            sensor.await_lines(n + 1, 10)
            late.append(time.monotonic() - sent)
        time.sleep(0.03)
    assert max(late) < 1.0, late
    assert Counter(map(key, sensor.lines())) == expected(*range(30))
    assert ended(live) == {"received": 60, "read": 60, "dropped": 0, "lost": 0, "rings": 0}


def test_an_idle_sensor_uses_next_to_no_cpu(sensor):
    live = sensor.drop_in()
    sensor.lab.send(frames(1))
    sensor.await_lines(1)

    def used() -> int:      # ns of CPU, all processes
        all_ = [psutil.Process(live.pid), *psutil.Process(live.pid).children(recursive=True)]
        return sum(int(Path(f"/proc/{p.pid}/schedstat").read_text().split()[0]) for p in all_)

    began, before = time.monotonic_ns(), used()
    time.sleep(3)
    assert (used() - before) / (time.monotonic_ns() - began) < 0.01
    ended(live)


# --- what passes the kernel's filter -------------------------------------------------------------


def test_what_is_no_dns_stays_in_the_kernel(sensor):
    live = sensor.drop_in()
    noise = [build.frame(build.udp(CLIENT, 4000, SERVER, 80, b"x" * 40)),
             build.frame(build.tcp(CLIENT, 4000, SERVER, 443, b"x" * 40)),
             b"\xff" * 12 + b"\x08\x06" + bytes(46)]
    sensor.lab.send(noise * 20 + frames(1) + noise * 20 + frames(2))
    assert Counter(map(key, sensor.await_lines(2))) == expected(1, 2)
    assert ended(live)["received"] == 4


def test_fragments_tunnels_and_tags_come_through(sensor):
    live = sensor.drop_in()
    sent = []
    for n, (query, reply) in enumerate(map(exchange, range(6))):
        inner = [build.frame(query), build.frame(reply)]
        if n == 0:
            sent += [build.frame(p) for packet in (query, reply)
                     for p in reversed(wraps.pieces(packet, 24, ident=n + 7))]
        elif n == 1:
            sent += [build.frame(build.udp("10.0.0.1", 5555, "10.0.0.2", 4789,
                                           wraps.vxlan(frame, 77))) for frame in inner]
        elif n == 2:
            sent += [build.frame(wraps.ip("10.0.0.1", "10.0.0.2", 47, wraps.gre(p, 0x0800)))
                     for p in (query, reply)]
        elif n == 3:
            sent += [build.frame(p, vlan=[100]) for p in (query, reply)]
        elif n == 4:
            sent += [build.frame(p, vlan=[100, 200]) for p in (query, reply)]
        else:
            sent += inner
    sensor.lab.send(sent)
    assert Counter(map(key, sensor.await_lines(6))) == expected(*range(6))
    assert ended(live)["received"] == len(sent)


def test_the_user_s_filter_is_joined_with_ours(sensor):
    live = sensor.configured(capture={"interfaces": [NAME], "filter": f"not host {CLIENT}"})
    theirs = [build.frame(p) for p in exchange(5, "198.51.100.8")]
    sensor.lab.send(frames(1, 2) + theirs + [build.frame(
        build.udp("198.51.100.8", 4000, SERVER, 80, b"x"))])
    (line,) = sensor.await_lines(1)
    assert key(line)[0] == "198.51.100.8"
    assert ended(live)["received"] == 2


def test_any_is_all_interfaces(sensor):
    live = sensor.start("-i", "any", "-t", sensor.out, "--workers", "1")
    sensor.lab.send(frames(1, 2, 3))
    assert Counter(map(key, sensor.await_lines(3))) == expected(1, 2, 3)
    ended(live)


# --- several capture processes -------------------------------------------------------------------


def talkers(count: int) -> list[bytes]:
    """Exchanges of many clients, so that more than one socket gets some."""
    return [build.frame(packet) for n in range(count)
            for packet in exchange(n, f"198.51.{n % 100}.{n % 250}")]


@pytest.mark.parametrize("workers", [1, 2])
def test_two_capture_processes_see_what_one_sees(sensor, workers):
    live = sensor.configured(capture={"interfaces": [NAME], "processes": 2}, workers=workers)
    assert {"gazer:capture0", "gazer:capture1"} <= set(live.parts())
    sent = talkers(500)
    # A datagram in pieces is put together by one of them.
    sent += [build.frame(p) for packet in exchange(777) for p in wraps.pieces(packet, 24)]
    sensor.send(sent)
    want = Counter((f"198.51.{n % 100}.{n % 250}", 1024 + n, n, "success") for n in range(500))
    assert Counter(map(key, sensor.await_lines(501))) == want + expected(777)
    # A lone reply is written within a second, though the other process has nothing.
    sensor.lab.send(frames(900))
    since = time.monotonic()
    sensor.await_lines(502)
    assert time.monotonic() - since < 1.0
    assert ended(live)["received"] == len(sent) + 2
    times = [json.loads(line.split("\t")[2])["reply_ts"] for line in sensor.lines()]
    assert len(times) == 502


def test_two_interfaces(sensor):
    """The far end's loopback does not reach us, so one of them stays silent; nothing waits for it
    for ever."""
    sensor.lab.run(["ip", "link", "set", "lo", "up"])
    live = sensor.start("-i", NAME, "-i", "lo", "-t", sensor.out, "--workers", "2")
    sensor.lab.send(frames(*range(20)))
    since = time.monotonic()
    assert Counter(map(key, sensor.await_lines(20))) == expected(*range(20))
    assert time.monotonic() - since < 1.0
    ended(live)


def test_one_of_two_capture_processes_dies(sensor):
    """Its successor joins the others' sockets again; no frame is seen by both."""
    live = sensor.configured(capture={"interfaces": [NAME], "processes": 2})
    sensor.send(talkers(100))
    sensor.await_lines(100)
    for name in ("gazer:capture0", "gazer:capture1"):
        old = live.part(name)
        old.kill()
        eventually(lambda name=name, old=old: live.part(name).pid != old.pid)
    # Until a process has no capabilities left it does not capture.
    for name in ("gazer:capture0", "gazer:capture1"):
        eventually(lambda name=name: capabilities(live.part(name).pid) == 0)
    sensor.send(talkers(300))
    lines = sensor.await_lines(400)
    assert set(Counter(map(key, lines)).values()) <= {1, 2}
    assert len(lines) == 400
    assert ended(live)["received"] == 800
