"""A sensor that runs in a network namespace, with what to send it and what to read of it.

    pytest_plugins = ["tests.sensor"]

    def test_it(sensor):                # its cable is laid; skipped where that can't be done
        live = sensor.drop_in()         # dns-gazer -i gz0, ready
        sensor.send(frames(1, 2))
        assert Counter(map(key, sensor.await_lines(2))) == expected(1, 2)
        assert ended(live)["received"] == 4
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections import Counter
from pathlib import Path

import pytest
import yaml

from .conftest import eventually
from .oracle import build

pytest_plugins = ["tests.netns"]

CLIENT, SERVER = "198.51.100.7", "192.0.2.53"
NAME = "gz0"
STRETCH = 400       # frames
BACKLOG = 11        # the column of softnet_stat that tells how many frames wait, since Linux 5.10


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

    def send(self, frames: list[bytes]) -> None:
        """Send many: no faster than the cable takes them.  What finds the kernel's own queue behind
        it full (net.core.netdev_max_backlog) has never arrived anywhere."""
        for at in range(0, len(frames), STRETCH):
            part = frames[at : at + STRETCH]
            arrived = self.lab.counter("rx_packets") + len(part)
            self.lab.send(part)
            eventually(lambda arrived=arrived: self.lab.counter("rx_packets") >= arrived)
            eventually(_no_backlog)     # the cable has it, and so has the socket behind it

    def lines(self) -> list[str]:
        """What the output has, without the events about the sensor itself."""
        text = self.out.read_text() if self.out.exists() else ""
        return [line for line in text.split("\n")[:-1] if "\tdns-gazer.stats\t" not in line]

    def await_lines(self, count: int, seconds: float = 20.0) -> list[str]:
        eventually(lambda: len(self.lines()) >= count, seconds)
        return self.lines()

    def close(self) -> None:
        self.notified.close()


def _no_backlog() -> bool:
    """No frame waits on any CPU between a cable and those who watch it."""
    rows = Path("/proc/net/softnet_stat").read_text().splitlines()
    return not any(int(n, 16) for row in rows for n in row.split()[BACKLOG : BACKLOG + 1])


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
    """Of the last summary: SIGUSR1 has had others written before."""
    *_, found = [None, *re.finditer(
        r"(\d+) frames? received by the kernel: (\d+) read, (\d+) dropped"
        r"[^,;\n]*(?:, (\d+) lost)?", stderr)]
    assert found, stderr
    *_, rings = re.finditer(r"\d+ frames? read: .*?(?:, (\d+) dropped)?$", stderr, re.MULTILINE)
    return {"received": int(found[1]), "read": int(found[2]), "dropped": int(found[3]),
            "lost": int(found[4] or 0), "rings": int(rings[1] or 0)}


def capabilities(pid: int) -> int:
    """Those it has or could make use of."""
    text = Path(f"/proc/{pid}/status").read_text()
    effective, permitted = (
        int(re.findall(rf"^{name}:\t(\w+)$", text, re.MULTILINE)[0], 16)
        for name in ("CapEff", "CapPrm"))
    return effective | permitted
