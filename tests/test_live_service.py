"""The service as it is run: over a cable in a network namespace, its processes killed and stopped,
under the real supervisord."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.conftest import COMMANDS, GID, UID, eventually
from tests.sensor import NAME, Sensor, frames, key
from tests.service import alive
from tests.test_rights import rights, root

pytest_plugins = ["tests.sensor"]

PARTS = ["gazer:capture", "gazer:sink", "gazer:worker0", "gazer:worker1"]


def ports(lines: list[str]) -> set[int]:
    return {key(line)[1] for line in lines}


def works(sensor: Sensor, numbers: range) -> None:
    """These exchanges are sent, and all become events within two seconds."""
    sensor.send(frames(*numbers))
    expected = {1024 + n for n in numbers}

    def written() -> bool:
        """the events are written"""
        return expected <= ports(sensor.lines())

    eventually(written, 2.0)


def successor(live, name: str, old: int, seconds: float = 10.0) -> psutil.Process:
    def there() -> psutil.Process | None:
        """a successor"""
        part = live.parts().get(name)
        return part if part and part.pid != old else None

    found = eventually(there, seconds)
    assert isinstance(found, psutil.Process)
    return found


@pytest.mark.parametrize("name", PARTS)
def test_after_the_death_of_anyone_it_goes_on(sensor, name):
    live = sensor.configured(workers=2, ring={"size": "2MiB"})
    works(sensor, range(100))
    old = live.part(name).pid
    os.kill(old, signal.SIGKILL)
    begun = time.monotonic()
    successor(live, name, old)
    assert time.monotonic() - begun < 1.0
    live.says(f"{name} (pid {old}) was killed by SIGKILL")
    time.sleep(0.5)                 # a capture process opens its socket
    works(sensor, range(100, 200))
    live.signal(signal.SIGTERM)
    done = live.wait(20.0)
    assert done.code == 0, done.stderr
    # Nothing twice; what was lost, if anything, is what was on its way at the death.
    found = [key(line)[1] for line in sensor.lines()]
    assert len(found) == len(set(found)) == 200


def test_who_is_stopped_is_replaced_under_load(sensor):
    live = sensor.configured(workers=2, ring={"size": "2MiB"}, service={"hang_timeout": "1s"})
    works(sensor, range(50))
    old = live.part("gazer:worker0").pid
    os.kill(old, signal.SIGSTOP)
    sensor.send(frames(*range(50, 100)))        # some of them for the one that is stopped
    successor(live, "gazer:worker0", old)
    live.says("no sign of life")

    def written() -> bool:
        """all events are written: those that stood in its ring, too"""
        return len(ports(sensor.lines())) == 100

    eventually(written, 5.0)
    live.signal(signal.SIGTERM)
    assert live.wait(20.0).code == 0


def test_kill_9_of_the_supervisor_leaves_nothing(sensor):
    live = sensor.configured(workers=2, ring={"size": "2MiB"})
    works(sensor, range(10))
    family = [part.pid for part in live.parts().values()]
    assert len(family) == 4
    assert live.segments() and not live.segments() & set(os.listdir("/dev/shm"))
    live.signal(signal.SIGKILL)
    live.process.wait()

    def gone() -> bool:
        """all processes have ended"""
        return not any(map(alive, family))

    eventually(gone, 1.0)


def test_ps_shows_which_interface(sensor):
    live = sensor.configured(workers=1, ring={"size": "2MiB"}, capture={"processes": 2})
    shown = {Path(f"/proc/{part.pid}/cmdline").read_bytes().rstrip(b"\0").decode()
             for part in live.parts().values()}
    assert shown == {f"gazer: capture {NAME} 0", f"gazer: capture {NAME} 1", "gazer: worker 0",
                     "gazer: sink"}
    live.signal(signal.SIGTERM)
    assert live.wait(20.0).code == 0


@root
def test_all_give_up_their_rights_and_it_works(sensor, ordinary):
    folder = Path(tempfile.mkdtemp(prefix="gazer-test-"))
    try:
        os.chown(folder, UID, GID)
        sensor.out = folder / "out"
        live = sensor.configured(workers=1, ring={"size": "2MiB"},
                                 service={"user": f"{UID}:{GID}"})
        works(sensor, range(50))
        assert sensor.out.stat().st_uid == UID and sensor.out.stat().st_mode & 0o777 == 0o640

        def without_rights() -> None:
            for name, part in live.parts().items():
                found = rights(part.pid)
                assert (found["filtered"] == "2") == ("worker" in name)
                assert found["held"] == 0 and found["ids"] == {str(UID), str(GID)}

        without_rights()
        # The supervisor can still give a capture process the right to open its socket.
        old = live.part("gazer:capture").pid
        os.kill(old, signal.SIGKILL)
        successor(live, "gazer:capture", old)
        time.sleep(0.5)
        works(sensor, range(50, 100))
        without_rights()
        live.signal(signal.SIGTERM)
        assert live.wait(20.0).code == 0, live.stderr
    finally:
        shutil.rmtree(folder)


# --- supervisord ---------------------------------------------------------------------------------


class Supervisord:
    """The real one, with one program, in the sensor's namespace."""

    def __init__(self, sensor: Sensor, config: dict[str, object]) -> None:
        self.folder = folder = Path(tempfile.mkdtemp(prefix="gazer-supervisord-"))  # a short path
        (folder / "sensor.yaml").write_text(yaml.safe_dump(config))
        self.log = folder / "gazer.log"
        (folder / "supervisord.conf").write_text(f"""
[unix_http_server]
file={folder}/sock
[supervisord]
logfile={folder}/supervisord.log
pidfile={folder}/supervisord.pid
nodaemon=true
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{folder}/sock
[program:gazer]
command={' '.join(COMMANDS['gazer'])} run -c {folder}/sensor.yaml
directory={Path(__file__).parents[1]}
startsecs=1
stopwaitsecs=40
stopsignal=TERM
redirect_stderr=true
stdout_logfile={self.log}
""")
        self.process = subprocess.Popen(
            sensor.lab.argv([sys.executable, "-m", "supervisor.supervisord", "-c",
                             folder / "supervisord.conf"]),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    def ctl(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisorctl", "-c",
             self.folder / "supervisord.conf", *words],
            capture_output=True, text=True, timeout=60, check=False)
        return done.stdout

    def runs(self) -> int:
        """Wait until it runs; its pid."""
        def running() -> bool:
            """RUNNING"""
            return "RUNNING" in self.ctl("status", "gazer")

        eventually(running, 20.0)
        return int(self.ctl("pid", "gazer"))

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder)


@pytest.fixture
def supervisord(sensor):
    pytest.importorskip("supervisor", reason="needs supervisord: pip install supervisor")
    made = Supervisord(sensor, {
        "capture": {"interfaces": [NAME]}, "workers": 1, "ring": {"size": "2MiB"},
        "metrics": {"listen": ""}, "events": {"detail": "classic"},
        "outputs": [{"type": "text", "path": str(sensor.out)}]})
    yield made
    made.end()


def test_under_supervisord(sensor, supervisord):
    first = supervisord.runs()

    def captures() -> bool:
        """it is up"""
        return "processes are up" in supervisord.log.read_text()

    eventually(captures, 20.0)
    works(sensor, range(20))
    # Its own children are not supervisord's business, and it is not told of them.
    (worker,) = [c for c in psutil.Process(first).children() if "worker" in c.name()]
    worker.kill()
    eventually(lambda: "(pid" in supervisord.log.read_text())
    assert supervisord.runs() == first
    # Killed itself, it is started again, and nothing of the dead one is in its way.
    os.kill(first, signal.SIGKILL)
    eventually(lambda: supervisord.ctl("pid", "gazer").strip() not in ("0", str(first)), 20.0)
    second = supervisord.runs()
    eventually(lambda: supervisord.log.read_text().count("processes are up") == 2, 20.0)
    works(sensor, range(20, 40))
    assert "gazer: started" in supervisord.ctl("restart", "gazer")
    third = supervisord.runs()
    assert third not in (first, second)
    eventually(lambda: supervisord.log.read_text().count("processes are up") == 3, 20.0)
    works(sensor, range(40, 60))
    sensor.send(frames(*range(60, 80)))
    # A stop drains: all that was sent is there, and the account adds up.
    assert "gazer: stopped" in supervisord.ctl("stop", "gazer")
    assert len(ports(sensor.lines())) == 80
    log = supervisord.log.read_text()
    assert "add up" not in log and "not finished" not in log
    assert "stopped: gazer (exit status 0)" in (supervisord.folder / "supervisord.log").read_text()
