"""Real DNS for a live sensor: unbound at the far end of the cable, and dnsperf as a load that says
what became of each of its queries.

    pytest_plugins = ["tests.resolver"]

    def test_it(sensor, resolver):          # skipped where a program is not there
        live = sensor.configured()
        load = resolver.load(3000, 2.0)     # dnsperf: 3000 queries a second for 2 s; it runs
        load.end()
        assert load.completed == ...        # the names, in the order of their replies

Every name of every load is asked once: `n17.l2.load.test.` is the query 17 of the third load.  So a
name in the log tells which query it was, a second one that something was logged twice, and since
dnsperf asks in the order of its file, a name that is missing below another which is not tells that
a query was lost.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from gazer.observe.find import find
from gazer.observe.snapshot import Observer
from gazer.summary import Account
from tests.conftest import Live, Runner, eventually
from tests.netns import FAR, SENSOR, V4, V6, Lab

pytest_plugins = ["tests.sensor"]

LONG = " ".join(f'"{"x" * 200}{n}"' for n in range(5))      # about 1 KiB: one datagram
HUGE = " ".join(f'"{"y" * 250}{n:02}"' for n in range(12))  # about 3 KiB: several pieces, or TCP

CONFIG = """
server:
  chroot: ""
  username: ""
  directory: "{folder}"
  pidfile: ""
  use-syslog: no
  do-daemonize: no
  num-threads: 1
  interface: {v4}
  interface: {v6}
  access-control: 0.0.0.0/0 allow
  access-control: ::0/0 allow
  module-config: "iterator"
  max-udp-size: 4096
  edns-buffer-size: 4096
  minimal-responses: no
  incoming-num-tcp: 100
  version: "1 (a test)"
  local-zone: "load.test." redirect
  local-data: "load.test. 60 A 192.0.2.99"
  local-data: 'load.test. 60 TXT {long}'
  local-zone: "zone.test." static
  local-data: "zone.test. 900 SOA ns.zone.test. admin\\.of.zone.test. 7 3600 600 86400 300"
  local-data: "zone.test. 900 NS ns.zone.test."
  local-data: "www.zone.test. 300 A 192.0.2.80"
  local-data: "www.zone.test. 300 A 192.0.2.81"
  local-data: "www.zone.test. 300 AAAA 2001:db8::80"
  local-data: "zone.test. 300 MX 10 mail.zone.test."
  local-data: "_dns._udp.zone.test. 300 SRV 1 2 53 ns.zone.test."
  local-data: "zone.test. 300 CAA 0 issue \\"ca.example; policy=x\\""
  local-data: 'text.zone.test. 300 TXT "a b;c" "\\\\\\\\ and \\195\\164" ""'
  local-data: 'huge.zone.test. 300 TXT {huge}'
  local-data: "alias.zone.test. 300 CNAME www.zone.test."
  local-data: "80.2.0.192.in-addr.zone.test. 300 PTR www.zone.test."
  local-data: "n.zone.test. 300 NAPTR 1 2 \\"u\\" \\"E2U+sip\\" \\"!^.*$!sip:x@zone.test!\\" ."
  local-data: "s.zone.test. 300 HTTPS 1 . alpn=h2,h3 ipv4hint=192.0.2.80"
  local-zone: "refused.test." refuse
  local-zone: "silent.test." deny
remote-control:
  control-enable: no
"""


def program(name: str, package: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not there (Debian: {package})")
    return found


class Load:
    """A dnsperf that runs, and what it says of its queries."""

    def __init__(self, lab: Lab, server: str, folder: Path, number: int, where: str, *,
                 rate: int, seconds: float, kind: str, options: Iterable[object]) -> None:
        self.zone = f"l{number}.load.test"
        self.output = folder / f"load{number}"
        names = folder / f"names{number}"
        names.write_text("".join(f"n{i}.{self.zone} {kind}\n"
                                 for i in range(int(rate * seconds * 1.5) + 100)))
        self._file = self.output.open("wb")
        self.process = lab.start(
            [program("dnsperf", "dnsperf"), "-s", server, "-d", names, "-n", 1, "-l", seconds,
             "-Q", rate, "-c", 8, "-t", 1, "-v", *options],
            where=where, stdout=self._file, stderr=subprocess.STDOUT)
        self.completed: list[int] = []
        self.rcodes: list[str] = []
        self.sent = self.lost = 0

    def stop(self) -> Load:
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def end(self) -> Load:
        """Wait for its end, and read what it found."""
        self.process.wait(30)
        self._file.close()
        text = self.output.read_text()
        found = re.findall(rf"^> (\S+) n(\d+)\.{re.escape(self.zone)} \S+ [\d.]+$", text, re.M)
        self.completed = [int(number) for rcode, number in found if rcode != "T"]
        self.rcodes = [rcode for rcode, _ in found if rcode != "T"]
        self.sent, completed, self.lost = (
            int(re.findall(rf"Queries {what}: +(\d+)", text)[0])
            for what in ("sent", "completed", "lost"))
        assert len(self.completed) == completed and completed > 0, text[-2000:]
        return self


class Resolver:
    """unbound, and who asks it from the other end."""

    def __init__(self, lab: Lab, folder: Path, where: str = FAR) -> None:
        self.lab = lab
        self.folder = folder
        self.where = where
        self.asker = SENSOR if where == FAR else FAR
        self.v4, self.v6 = V4[where], V6[where]
        self._loads = 0
        config = folder / "unbound.conf"
        config.write_text(CONFIG.format(folder=folder, v4=self.v4, v6=self.v6, long=LONG,
                                        huge=HUGE))
        self.log = folder / "unbound.log"
        with self.log.open("wb") as log:
            self.process = lab.start([program("unbound", "unbound"), "-d", "-c", config],
                                     where=where, stdout=log, stderr=subprocess.STDOUT)

        def up() -> bool:
            """unbound answers"""
            assert self.process.poll() is None, self.log.read_text()
            return self._connects(self.v4) and self._connects(self.v6)

        eventually(up, 20.0)

    def _connects(self, address: str) -> bool:
        """Within its own namespace: not over the cable."""
        def tried() -> bool:
            try:
                socket.create_connection((address, 53), 1.0).close()
            except OSError:
                return False
            return True

        return self.lab.inside(tried, self.where)

    def load(self, rate: int, seconds: float, *options: object, kind: str = "A",
             server: str | None = None) -> Load:
        """Start asking; `kind` A, or TXT for long answers."""
        self._loads += 1
        return Load(self.lab, server or self.v4, self.folder, self._loads - 1, self.asker,
                    rate=rate, seconds=seconds, kind=kind, options=options)


@pytest.fixture
def resolver(sensor, tmp_path: Path) -> Iterator[Resolver]:
    """At the far end; the sensor's machine is the one that asks."""
    sensor.lab.addresses()
    yield Resolver(sensor.lab, tmp_path)


# --- what the sensor made of it -------------------------------------------------------------------


JSON = {"events": {"detail": "full"}, "workers": 2, "ring": {"size": "2MiB"}}


def as_json(*paths: Path) -> list[dict[str, object]]:
    return [{"type": "text", "format": "json", "path": str(path)} for path in paths]


def events(data: bytes) -> list[dict]:
    """The transactions of a log, which is whole lines."""
    assert data == b"" or data.endswith(b"\n"), data[-100:]
    found = [json.loads(line) for line in data.splitlines()]
    return [event for event in found if event["tag"] == "dns-gazer.dns.tx"]


def asked(event: dict) -> tuple[str, int]:
    """Which query of which load: ("l0.load.test", 17)."""
    number, _, zone = (event.get("query") or event["reply"])[0]["name"].rstrip(".").partition(".")
    return zone, int(number[1:])


def of(load: Load, found: list[dict]) -> dict[int, dict]:
    """The events of a load, by number; none is there twice."""
    by_number: dict[int, dict] = {}
    for event in found:
        zone, number = asked(event)
        if zone == load.zone:
            assert number not in by_number, (by_number[number], event)
            by_number[number] = event
    return by_number


def account(live: Live) -> Account:
    """Of the sensor as it runs; it adds up.  (A worker that waits for the sink may have half a
    message in hand.)"""
    with find(live.pid) as found:
        observer = Observer(found.attach, found.pid)
        snapshot, standing = observer.settled()
        observer.close()
    assert not standing.broken or standing.waiting, standing
    assert all(n >= 0 for n in standing.in_flight.values()), standing
    return snapshot.account


def stats(gazer: Runner, live: Live) -> dict:
    """The same by `gazer stats`."""
    tree = json.loads(gazer("stats", "--json", "--pid", live.pid, command="gazer").stdout)
    assert tree["balances"]["hold"], tree["balances"]
    return tree["account"]


def written(live: Live, success: int = 0) -> Account:
    """Wait until so many transactions have succeeded and all outputs are through with all events;
    the account then."""
    def through() -> Account | None:
        """all is written"""
        found = account(live)
        done = all(o["events"] + o["dropped"] >= found.sink["events"] for o in found.outputs)
        events = found.workers["transactions"] + found.workers["records"]
        whole = done and found.sink["events"] >= events and found.workers["success"] >= success
        return found if whole else None

    result = eventually(through, 20.0)
    assert isinstance(result, Account)
    return result


def grows(path: Path, octets: int) -> None:
    """Wait until a log has so many octets more."""
    def grown() -> bool:
        return path.exists() and path.stat().st_size >= size + octets

    size = path.stat().st_size if path.exists() else 0
    grown.__doc__ = f"{path.name} has grown by {octets} octets"
    eventually(grown)


def stop(live: Live, seconds: float = 30.0) -> str:
    """TERM; it ends well, in time, and its account adds up (Done looks).  What it said."""
    live.signal(signal.SIGTERM)
    begun = time.monotonic()
    done = live.wait(seconds + 5)
    assert done.code == 0, done.stderr
    assert time.monotonic() - begun < seconds
    return done.stderr
