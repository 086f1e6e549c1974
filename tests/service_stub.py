"""A service whose processes do nothing but what a test tells them, under the real supervisor.

    python -m tests.service_stub FOLDER [-d] [-p FILE]

FOLDER/sensor.yaml is the configuration.  Each process comes round its loop every 10 ms and then
does what the files in FOLDER say, for each of them once if it takes the file away:

    hang-NAME   no more sign of life            wait-NAME   it waits, as in a write that blocks
    die-NAME    exit code: the file's content   fail-NAME   reports that it can't go on; exit code 1
    say-NAME    reports the content             slow-NAME   does not end when it is to
    late-NAME   is not ready yet                early-NAME  reports that it can't begin
    trespass-NAME   has a worker's seccomp filter, and opens the file that is named

NAME is as in the topology, without "gazer:".  While `keep` exists the files above are left where
they are, and so hold for every successor.  Each process appends a line to FOLDER/starts: its name,
its pid, the time of CLOCK_MONOTONIC in seconds, whether its predecessor was still a process, and
the first CPU that it may run on.
"""

import contextlib
import os
import sys
import time
from pathlib import Path

from gazer import supervisor
from gazer.child import ERROR, NOTICE, READY, run
from gazer.cli import guarded
from gazer.config import load
from gazer.seccomp import install
from gazer.service import rights


class Stub:
    def __init__(self, child, folder):
        self.child = child
        self.folder = folder
        self.name = child.boot.part.name.removeprefix("gazer:")

    def told(self, what):
        """What the test wants of this process now, or None."""
        path = self.folder / f"{what}-{self.name}"
        try:
            text = path.read_text()
        except FileNotFoundError:
            return None
        if not (self.folder / "keep").exists():
            path.unlink(missing_ok=True)
        return text

    def work(self):
        slot = self.child.slot
        while (self.folder / f"late-{self.name}").exists():
            slot.heartbeat_now()
            time.sleep(0.01)
        if (text := self.told("early")) is not None:
            self.child.report(ERROR, text)
            os._exit(1)
        self.child.report(READY)
        slot.waits(False)
        while not (slot.draining and self.may_end()) and not slot.quitting:
            slot.heartbeat_now()
            time.sleep(0.01)
            if (code := self.told("die")) is not None:
                os._exit(int(code))
            if (text := self.told("fail")) is not None:
                self.child.report(ERROR, text)
                os._exit(1)
            if (text := self.told("say")) is not None:
                os.write(self.child.boot.reports, f"{NOTICE} ".encode() + text.encode() + b"\n")
            if (path := self.told("trespass")) is not None:
                install(reads=[], writes=[self.child.boot.reports])
                os.open(path, os.O_RDONLY)
            if self.told("hang") is not None:
                time.sleep(3600)
            if (self.folder / f"wait-{self.name}").exists():
                slot.waits(True)
                while (self.folder / f"wait-{self.name}").exists():
                    time.sleep(0.01)
                slot.waits(False)
        (self.folder / f"done-{self.name}").touch()

    def may_end(self):
        if (self.folder / f"slow-{self.name}").exists():
            return False
        if self.child.boot.part.role == "worker":
            return (self.folder / "done-capture").exists()
        if self.child.boot.part.role == "sink":
            workers = range(self.child.boot.config.worker_count())
            return all((self.folder / f"done-worker{i}").exists() for i in workers)
        return True


def main_of(folder):
    def main(boot):
        def work(child):
            name = boot.part.name.removeprefix("gazer:")
            before = [line.split() for line in read(folder / "starts")]
            mine = [int(words[1]) for words in before if words[0] == name]
            alive = bool(mine) and Path(f"/proc/{mine[-1]}").exists()
            with open(folder / "starts", "a") as file:
                file.write(f"{name} {os.getpid()} {time.monotonic()} {int(alive)} "
                           f"{sorted(os.sched_getaffinity(0))[0]}\n")
            Stub(child, folder).work()

        run(boot, work)

    return lambda role: main


def read(path):
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().splitlines()
    return []


def command(argv):
    folder = Path(argv[0])
    path = str(folder / "sensor.yaml")
    supervisor._main_of = main_of(folder)
    # Stubs import nothing when they are another user; Python may lie in a folder of root's.
    rights.check_program = lambda identity: []
    return supervisor.run(
        load(path),
        pid_file=argv[argv.index("-p") + 1] if "-p" in argv else None,
        daemon="-d" in argv,
        read_again=None if "--no-file" in argv else lambda: load(path),
    )


if __name__ == "__main__":
    sys.exit(guarded("gazer", command, sys.argv[1:]))
