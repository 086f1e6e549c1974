"""What the tests of the service share: one whose processes are stubs (tests.service_stub)."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import psutil
import yaml

from tests.conftest import Live, Runner, eventually

CHILDREN = ["capture", "metrics", "sink", "worker0", "worker1"]


class Service:
    """A service of stubs, and what became of it."""

    def __init__(self, gazer: Runner, folder: Path, *args: object, wait: bool = True,
                 options: dict[str, object] | None = None, outputs: Sequence[str] = ("out",),
                 **service: object) -> None:
        self.folder = folder
        self.config: dict[str, object] = {
            "capture": {"interfaces": ["stub0"]}, "workers": 2, "ring": {"size": "2MiB"},
            "outputs": [
                {"type": "text", "path": path if path == "-" else str(folder / path)}
                for path in outputs
            ],
            "service": {"hang_timeout": "1s", **service},
        }
        self.write()
        self.live: Live = gazer.start(folder, *args, command="stub", **(options or {}))
        if wait:
            self.live.says(f"started: {1 + len(CHILDREN)} processes are up")
            eventually(self.is_up, 20.0)

    def write(self) -> None:
        (self.folder / "sensor.yaml").write_text(yaml.safe_dump(self.config))

    def is_up(self) -> bool:
        """all processes have started"""
        return sorted(name for name, *_ in self.starts()) == CHILDREN

    def tell(self, what: str, text: object = "") -> None:
        new = self.folder / ".new"
        new.write_text(str(text))
        new.rename(self.folder / what)

    def starts(self) -> list[tuple[str, int, float, bool, int]]:
        try:
            lines = (self.folder / "starts").read_text().splitlines()
        except FileNotFoundError:
            return []
        words = [line.split() for line in lines]
        return [(w[0], int(w[1]), float(w[2]), w[3] == "1", int(w[4])) for w in words]

    def pids(self, name: str) -> list[int]:
        return [pid for n, pid, *_ in self.starts() if n == name]

    def successor(self, name: str, number: int = 2, seconds: float = 5.0) -> int:
        """Wait for the process number `number` of this name."""
        def there() -> bool:
            return len(self.pids(name)) >= number

        there.__doc__ = f"process number {number} of {name}"
        eventually(there, seconds)
        return self.pids(name)[number - 1]

    def stop(self) -> tuple[int, list[str]]:
        self.live.signal(signal.SIGTERM)
        done = self.live.wait(20.0)
        return done.code, done.said


def alive(pid: int) -> bool:
    try:    # whoever inherits an orphan may take its time to reap it
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
