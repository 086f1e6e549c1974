"""A network of our own for tests of live capture: two namespaces and a cable between them.

    sensor namespace                        far namespace
      gz0  192.0.2.1/24  2001:db8::1/64  ────  gz1  192.0.2.2/24  2001:db8::2/64

Nothing in here touches the machine's own network; everything ends with the test.  What the kernel
would say of its own accord (IPv6 and ARP chatter) is off until `addresses()` is called, so that a
test that injects a thousand frames can expect exactly a thousand.

In a test module:

    pytest_plugins = ["tests.netns"]

    def test_it(lab):                       # skipped, with the reason, where this can't be done
        lab.veth()                          # the cable, both ends up
        source = lab.inside(lambda: LiveSource(...))    # within the sensor's namespace
        lab.send([frame, frame])            # from the far end: gz0 receives them
        lab.down(); lab.up(); lab.delete()  # what happens to gz0
        lab.run(["tcpdump", "-D"])          # a command inside, to its end
        server = lab.start(["unbound", ...], where="far")
        subprocess.Popen(lab.argv(["gazer", "run", ...]))   # any command, with the prefix it needs

A socket belongs to the namespace of the thread that opened it; `inside` is a thread that has gone
there, so what it opens can be used by every thread, in here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

CLONE_NEWNET = 0x40000000
SENSOR, FAR = "sensor", "far"
ENDS = {SENSOR: "gz0", FAR: "gz1"}
V4 = {SENSOR: "192.0.2.1", FAR: "192.0.2.2"}
V6 = {SENSOR: "2001:db8::1", FAR: "2001:db8::2"}

T = TypeVar("T")
_numbers = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


def _ip(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *args], capture_output=True, text=True, timeout=30, check=False)


def unavailable() -> str | None:
    """Why there can be no namespaces here, or None."""
    if shutil.which("ip") is None:
        return "needs ip(8), of iproute2"
    name = f"gzprobe{os.getpid()}"
    try:
        done = _ip("netns", "add", name)
        if done.returncode == 0:
            done = _ip("-n", name, "link", "add", "gz0", "type", "veth", "peer", "name", "gz1")
    finally:
        _ip("netns", "del", name)
    if done.returncode != 0:
        return f"needs root and network namespaces with veth: {done.stderr.strip()}"
    return None


class Lab:
    """Two namespaces.  `name` and `far` are their names for ip(8)."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self._running: list[subprocess.Popen[Any]] = []
        self._socket: socket.socket | None = None
        self._socket_at = FAR
        unique = f"{os.getpid()}-{next(_numbers)}"
        try:
            for where in (SENSOR, FAR):
                name = f"gz-{unique}-{where}"
                self._must("netns", "add", name)
                self.names[where] = name
                for of in ("all", "default"):
                    self.write(f"/proc/sys/net/ipv6/conf/{of}/disable_ipv6", "1", where)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _must(*args: str) -> str:
        done = _ip(*args)
        assert done.returncode == 0, f"ip {' '.join(args)}: {done.stderr.strip()}"
        return done.stdout

    # --- being there ---

    def inside(self, call: Callable[[], T], where: str = SENSOR) -> T:
        """What `call` returns (or raises), called by a thread that is in the namespace."""
        result: list[T] = []
        raised: list[BaseException] = []

        def there() -> None:
            try:
                fd = os.open(f"/run/netns/{self.names[where]}", os.O_RDONLY)
                try:
                    if _libc.setns(fd, CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                finally:
                    os.close(fd)
                result.append(call())
            except BaseException as error:      # handed on to who asked
                raised.append(error)

        thread = threading.Thread(target=there)
        thread.start()
        thread.join()
        if raised:
            raise raised[0]
        return result[0]

    def argv(self, argv: Sequence[object], where: str = SENSOR) -> list[str]:
        """The command that runs `argv` inside; the process that it starts becomes that command."""
        return ["ip", "netns", "exec", self.names[where], *map(str, argv)]

    def run(self, argv: Sequence[object], where: str = SENSOR, seconds: float = 30.0,
            **options: Any) -> subprocess.CompletedProcess[str]:
        """Run it to its end, with text as output and whatever exit code."""
        options = {"capture_output": True, "text": True, "timeout": seconds, **options}
        return subprocess.run(self.argv(argv, where), check=False, **options)

    def start(self, argv: Sequence[object], where: str = SENSOR,
              **options: Any) -> subprocess.Popen[Any]:
        """Start it; killed with the lab, if it has not ended by then."""
        options.setdefault("stdin", subprocess.DEVNULL)
        process = subprocess.Popen(self.argv(argv, where), **options)
        self._running.append(process)
        return process

    def write(self, path: str, text: str, where: str = SENSOR) -> None:
        """Write to a file of /proc/sys/net, which each namespace has its own of."""
        self.inside(lambda: Path(path).write_text(text), where)

    # --- the cable ---

    def veth(self, *, up: bool = True) -> str:
        """Lay it; the name of the sensor's end.  Both ends are up and see one another when this
        returns, unless told else."""
        self._must("-n", self.names[SENSOR], "link", "add", ENDS[SENSOR], "type", "veth",
                   "peer", "name", ENDS[FAR], "netns", self.names[FAR])
        if up:
            for where, end in ENDS.items():
                self._must("-n", self.names[where], "link", "set", end, "up")
            self._await_carrier()
        return ENDS[SENSOR]

    def addresses(self, *, ipv6: bool = True) -> None:
        """Give both ends their addresses; from here on the kernels speak for themselves."""
        for where, end in ENDS.items():
            ns = self.names[where]
            self._must("-n", ns, "link", "set", "lo", "up")
            self._must("-n", ns, "address", "add", f"{V4[where]}/24", "dev", end)
            if ipv6:
                for of in ("all", end, "lo"):
                    self.write(f"/proc/sys/net/ipv6/conf/{of}/disable_ipv6", "0", where)
                self._must("-n", ns, "address", "add", f"{V6[where]}/64", "dev", end, "nodad")

    def down(self, where: str = SENSOR) -> None:
        self._must("-n", self.names[where], "link", "set", ENDS[where], "down")

    def up(self, where: str = SENSOR) -> None:
        self._must("-n", self.names[where], "link", "set", ENDS[where], "up")
        self._await_carrier()

    def delete(self) -> None:
        """Both ends vanish; veth() lays a new cable."""
        self._drop_socket()
        self._must("-n", self.names[SENSOR], "link", "del", ENDS[SENSOR])

    def _await_carrier(self) -> None:
        """Until both ends are up, if both have been set so: frames sent before get lost."""
        deadline = time.monotonic() + 10
        while True:
            flags = [self._flags(where) for where in ENDS]
            if all("LOWER_UP" in f for f in flags) or not all("UP" in f for f in flags):
                return
            assert time.monotonic() < deadline, f"the link does not come up: {flags}"
            time.sleep(0.005)

    def _flags(self, where: str) -> list[str]:
        text = self._must("-n", self.names[where], "-o", "link", "show", "dev", ENDS[where])
        return text.partition("<")[2].partition(">")[0].split(",")

    def counter(self, name: str, where: str = SENSOR) -> int:
        """A counter of this end as the kernel has it: rx_packets, tx_packets, rx_dropped, ..."""
        text = self._must("-n", self.names[where], "-s", "-j", "link", "show", "dev", ENDS[where])
        direction, _, what = name.partition("_")
        return int(json.loads(text)[0]["stats64"][direction][what])

    def send(self, frames: Iterable[bytes], where: str = FAR) -> int:
        """Inject frames from this end, in order, as fast as it goes; how many."""
        if self._socket is None or self._socket_at != where:
            self._drop_socket()
            end = ENDS[where]

            def opened() -> socket.socket:
                # Protocol 0: it sends only, so it gets no copies.
                made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                made.bind((end, 0))
                return made

            self._socket = self.inside(opened, where)
            self._socket_at = where
        send = self._socket.send
        count = 0
        for frame in frames:
            while True:
                try:
                    send(frame)
                    break
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
            count += 1
        return count

    def _drop_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # --- the end ---

    def close(self) -> None:
        """End whatever runs inside, and the namespaces with all that is in them."""
        self._drop_socket()
        for process in self._running:
            process.kill()
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    pipe.close()
        for name in self.names.values():
            for pid in _ip("netns", "pids", name).stdout.split():
                if int(pid) != os.getpid():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
            _ip("netns", "del", name)
        self.names = {}


def sweep() -> None:
    """Remove the namespaces of test runs that were killed."""
    for path in Path("/run/netns").glob("gz-*-*-*"):
        pid = path.name.split("-")[1]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            _ip("netns", "del", path.name)


@pytest.fixture(scope="session")
def _namespaces() -> str | None:
    why = unavailable()
    if why is None:
        sweep()
    return why


@pytest.fixture
def lab(_namespaces: str | None) -> Iterator[Lab]:
    """An empty Lab; lay its cable with veth()."""
    if _namespaces:
        pytest.skip(_namespaces)
    made = Lab()
    try:
        yield made
    finally:
        made.close()
