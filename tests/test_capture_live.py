"""Live capture, the whole pipeline: commands in a network namespace, frames over a cable."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import yaml

from .conftest import eventually
from .oracle import build, wraps

pytest_plugins = ["tests.netns"]

CLIENT, SERVER = "198.51.100.7", "192.0.2.53"
NAME = "gz0"


def message(id_: int, *, reply: bool = False) -> bytes:
    return build.header(id_, 0x8180 if reply else 0x0100) + build.question(
        build.labels(f"n{id_}", "example", "com"))


def exchange(n: int, client: str = CLIENT) -> tuple[bytes, bytes]:
    """A query and its reply, as IP packets."""
    port = 1024 + n % 60000
    return (build.udp(client, port, SERVER, 53, message(n & 0xFFFF)),
            build.udp(SERVER, 53, client, port, message(n & 0xFFFF, reply=True)))


def frames(*numbers: int) -> list[bytes]:
    return [build.frame(packet) for n in numbers for packet in exchange(n)]


def key(line: str) -> tuple:
    event = json.loads(line.split("\t")[2])
    return event["client_addr"], event["client_port"], event["tx_id"], event["status"]


def expected(*numbers: int) -> Counter:
    return Counter((CLIENT, 1024 + n % 60000, n & 0xFFFF, "success") for n in numbers)


class Sensor:
    """Commands in the sensor's namespace, with a place to hear when they are ready."""

    def __init__(self, lab, gazer, folder: Path) -> None:
        self.lab = lab
        self.gazer = gazer
        self.folder = folder
        self.out = folder / "out"
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.bind(str(folder / "notify"))
        self.notified.settimeout(30)

    def start(self, *args, command="dns-gazer"):
        """Start it, and return when it captures (or waits for its interface)."""
        live = self.gazer.start(
            *args, command=command, prefix=self.lab.argv([]),
            env=os.environ | {"NOTIFY_SOCKET": str(self.folder / "notify")})
        while b"READY=1" not in self.notified.recv(4096):
            pass
        return live

    def drop_in(self, *args):
        return self.start("-i", NAME, "-t", self.out, "--workers", "1", *args)

    def configured(self, **sections):
        """`gazer run` with these sections; classic text to a file."""
        config = {
            "capture": {"interfaces": [NAME]}, "workers": 1, "metrics": {"listen": ""},
            "events": {"detail": "classic"}, "outputs": [{"type": "text", "path": str(self.out)}]}
        for name, section in sections.items():
            config[name] = {**config.get(name, {}), **section} if isinstance(
                section, dict) else section
        path = self.folder / "sensor.yaml"
        path.write_text(yaml.safe_dump(config))
        return self.start("run", "-c", path, command="gazer")

    def lines(self) -> list[str]:
        text = self.out.read_text() if self.out.exists() else ""
        return text.split("\n")[:-1]

    def await_lines(self, count: int, seconds: float = 20.0) -> list[str]:
        eventually(lambda: len(self.lines()) >= count, seconds)
        return self.lines()

    def close(self) -> None:
        self.notified.close()


@pytest.fixture
def sensor(lab, gazer, tmp_path):
    lab.veth()
    made = Sensor(lab, gazer, tmp_path)
    yield made
    made.close()


def ended(live, code: int = 0) -> dict[str, int]:
    """Stop it in order; the figures of its account, which has to add up."""
    live.signal(signal.SIGTERM)
    done = live.wait()
    assert done.code == code, done.stderr
    assert "add up" not in done.stderr
    return figures(done.stderr)


def figures(stderr: str) -> dict[str, int]:
    found = re.search(r"(\d+) frames? received by the kernel: (\d+) read, (\d+) dropped"
                      r"[^,;\n]*(?:, (\d+) lost)?", stderr)
    assert found, stderr
    rings = re.search(r"\d+ frames? read: .*?(?:, (\d+) dropped)?$", stderr, re.MULTILINE)
    return {"received": int(found[1]), "read": int(found[2]), "dropped": int(found[3]),
            "lost": int(found[4] or 0), "rings": int(rings[1] or 0)}


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


# --- the account ---------------------------------------------------------------------------------


def test_what_overflows_the_kernel_s_buffer_is_counted_exactly(sensor):
    """Capture stands still while more comes than the buffer holds."""
    live = sensor.configured(capture={"interfaces": [NAME], "buffer": "1MiB"})
    capture = live.part("gazer:capture")
    sensor.lab.send(frames(*range(50)))
    sensor.await_lines(50)
    capture.suspend()
    flood = frames(*range(100, 4100))
    sensor.lab.send(flood)
    capture.resume()
    seen = ended(live)
    assert seen["received"] == 100 + len(flood)
    assert seen["dropped"] > 0 and seen["lost"] == seen["rings"] == 0
    assert seen["read"] == seen["received"] - seen["dropped"]


def test_what_a_full_ring_drops_is_counted_apart(sensor):
    """A worker stands still."""
    live = sensor.configured(
        capture={"interfaces": [NAME], "snaplen": 2048}, ring={"size": "128KiB"},
        events={"detail": "classic", "max_size": "16KiB"})
    worker = live.part("gazer:worker0")
    worker.suspend()
    sensor.lab.send(frames(*range(2000)))

    def dropped() -> bool:
        live.signal(signal.SIGUSR1)
        return bool(re.search(r"\d+ frames? read: .*, \d+ dropped$", live.stderr, re.MULTILINE))

    eventually(dropped, 8)
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
    sensor.lab.send(sent)
    seen = ended(live)
    assert seen["received"] == len(sent)
    assert seen["dropped"] == seen["rings"] == 0
    assert Counter(map(key, sensor.lines())) == expected(*numbers)


def test_a_capture_process_that_is_killed_has_a_successor(sensor):
    """What it had read is not read again, what it had not is counted, the numbers go on."""
    live = sensor.drop_in()
    lab = sensor.lab
    lab.send(frames(*range(500)))
    for round_ in range(3):
        old = live.part("gazer:capture").pid
        lab.send(frames(*range(1000 * (round_ + 1), 1000 * (round_ + 1) + 500)))
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
