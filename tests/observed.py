"""What the tests of gazer.observe share: sensors that are made up, and a terminal."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace

from gazer import counters
from gazer.observe.snapshot import Fill, Process, Snapshot
from gazer.summary import Account

LATENCY = {"latency.le.64": 3, "latency.le.128": 0, "latency.le.256": 5, "latency.le.inf": 2,
           "latency.sum_us": 4_000_123}


def account(**changes) -> Account:
    """An account that adds up, with these counters changed: where__name=value."""
    capture = dict.fromkeys(counters.CAPTURE, 0) | {"frames": 100, "delivered": 100}
    workers = dict.fromkeys(counters.WORKER, 0) | {
        "frames": 100, "datagrams": 100, "queries": 50, "replies": 50, "opened": 50, "success": 50,
        "transactions": 50, "rcode.0": 50, "latency.le.1024": 50,
    }
    sink = {"events": 50, "writes": 1}
    output = dict.fromkeys(counters.OUTPUT, 0) | {"events": 50, "bytes": 5000, "done": 50}
    trees = {"capture": capture, "workers": workers, "sink": sink, "output": output}
    for key, value in changes.items():
        where, _, name = key.partition("__")
        trees[where][name] = value
    return Account(capture, workers, sink, (output,))


def snapshot(**changes) -> Snapshot:
    """One that a sensor could have made, with different figures everywhere."""
    base = account(capture__waiting_pieces=0)
    each = base.workers | {n: 0 for n in base.workers if n.startswith("latency.")} | LATENCY
    return replace(Snapshot(
        time=time.monotonic(), wall=time.time(),
        run={"captures": 1, "workers": 2, "outputs": 1, "live": 1, "started": 5 * 10**9,
             "max_pending": 1000},
        account=base,
        captures=(base.capture,),
        workers=(each, dict.fromkeys(each, 7)),
        supervisor=dict.fromkeys(counters.SUPERVISOR, 0) | {"restarts.worker": 4},
        processes=(
            Process("supervisor", 0, 10, "python", "running", 0, 1, 50, 1.5, 1000, 400),
            Process("worker", 1, 11, "gazer:worker1", "waiting", 2.5, 3, 400, 9.25, 2000, 600),
            Process("sink", 0, 12, "", "missing", 7.0, 2),
        ),
        rings=(Fill("frames", 1, 100, 4096, 0), Fill("events", 1, 200, 8192)),
    ), **changes)


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, *args: object, rows: int = 24, columns: int = 80, **env: str) -> None:
        self.master, slave = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(slave)
        self._slave = slave
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gazer", *map(str, args)], stdin=slave, stdout=slave,
            stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env=os.environ | {"TERM": "xterm", "LINES": "", "COLUMNS": ""} | env)
        self.output = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def read(self, seconds: float = 0.1) -> bytes:
        if select.select([self.master], [], [], seconds)[0]:
            try:
                self.output += os.read(self.master, 65536)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
        return self.output

    def shows(self, text: bytes, after: int = 0, seconds: float = 15) -> int:
        """Wait for the text; where it ends."""
        deadline = time.monotonic() + seconds
        while text not in self.read()[after:]:
            assert time.monotonic() < deadline, (text, self.output)
            assert self.process.poll() is None or text in self.output[after:], self.output
        return self.output.index(text, after) + len(text)

    def press(self, key: bytes) -> None:
        os.write(self.master, key)

    def end(self) -> int:
        """Its exit code; the terminal must be as it was."""
        deadline = time.monotonic() + 15
        while self.process.poll() is None:
            self.read(0.05)
            assert time.monotonic() < deadline, self.output
        while len(self.output) < len(self.read(0.1)):
            pass
        self.read(0.1)
        assert termios.tcgetattr(self._slave) == self.before
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self._slave)
