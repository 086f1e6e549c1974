"""`-d`: in the background, and the starter knows what became of it."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import CAPTURES, eventually
from tests.oracle import compare
from tests.service import Service, alive


class Daemon:
    def __init__(self, gazer, folder, *args, wait=True, **options):
        self.pid_file = folder / "pid"
        self.service = Service(gazer, folder, "-d", "-p", self.pid_file, wait=False)
        self.starter = self.service.live
        if wait:
            assert self.starter.wait(20.0).code == 0
            self.pid = int(self.pid_file.read_text())

    def end(self):
        with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
            os.kill(int(self.pid_file.read_text()), signal.SIGKILL)


@pytest.fixture
def daemon(gazer, tmp_path):
    made = []

    def start(*args, **options):
        made.append(Daemon(gazer, tmp_path, *args, **options))
        return made[-1]

    yield start
    for one in made:
        one.end()


def test_the_starter_goes_when_the_service_is_up(daemon):
    d = daemon()
    eventually(d.service.is_up)     # metrics may be late: nobody waits for them
    process = psutil.Process(d.pid)
    assert process.ppid() != os.getpid()
    assert os.getsid(d.pid) not in (d.pid, os.getsid(0))    # no session's leader, so no terminal
    assert Path(f"/proc/{d.pid}/stat").read_text().rpartition(")")[2].split()[4] == "0"    # tty
    assert process.cwd() == os.getcwd()     # paths may be relative to it
    os.kill(d.pid, signal.SIGTERM)
    eventually(lambda: not alive(d.pid))
    assert not d.pid_file.exists()


def test_the_starter_waits_until_all_are_ready(daemon, tmp_path):
    (tmp_path / "late-worker1").touch()
    d = daemon(wait=False)
    eventually(lambda: len(d.service.starts()) == 5, 20.0)
    time.sleep(0.5)
    assert d.starter.process.poll() is None
    (tmp_path / "late-worker1").unlink()
    assert d.starter.wait(20.0).code == 0


def test_an_error_at_start_is_the_starters(daemon, tmp_path):
    (tmp_path / "early-worker1").write_text("no such thing")
    done = daemon(wait=False).starter.wait(20.0)
    assert (done.code, done.said) == (1, ["gazer: no such thing"])


def test_two_daemons_with_one_pid_file(daemon):
    d = daemon()
    second = daemon(wait=False).starter.wait(20.0)
    assert second.code == 1
    assert f"another instance is running (pid {d.pid})" in second.stderr
    assert int(d.pid_file.read_text()) == d.pid


def test_a_daemon_that_dies_before_it_is_up(daemon, tmp_path):
    (tmp_path / "late-worker1").touch()
    d = daemon(wait=False)
    eventually(lambda: len(d.service.starts()) == 5, 20.0)
    os.kill(int(d.pid_file.read_text()), signal.SIGKILL)
    done = d.starter.wait(20.0)
    assert (done.code, done.said) == (1, ["gazer: the daemon died before it was ready"])


def test_a_starter_that_is_interrupted_takes_the_daemon_with_it(daemon, tmp_path):
    (tmp_path / "late-sink").touch()
    d = daemon(wait=False)
    eventually(lambda: d.service.starts(), 20.0)
    pid = int(d.pid_file.read_text())
    d.starter.signal(signal.SIGINT)
    assert d.starter.process.wait(5.0) == 130
    (tmp_path / "late-sink").unlink()
    eventually(lambda: not alive(pid))


def test_nobody_waits_for_a_daemons_streams(daemon, tmp_path):
    """`ssh host gazer run -d` returns: the pipes it was started with have an end."""
    service = daemon(wait=False).service
    assert service.live.wait(20.0).code == 0
    other = tmp_path / "other"
    other.mkdir()
    (other / "sensor.yaml").write_text((tmp_path / "sensor.yaml").read_text())
    done = subprocess.run(          # to the end of both pipes
        [sys.executable, "-m", "tests.service_stub", other, "-d", "-p", other / "pid"],
        capture_output=True, text=True, timeout=20, stdin=subprocess.PIPE, check=False)
    assert done.returncode == 0
    os.kill(int((other / "pid").read_text()), signal.SIGTERM)


def test_lines_go_to_a_file_that_standard_error_leads_to(daemon):
    d = daemon()
    os.kill(d.service.pids("sink")[0], signal.SIGKILL)
    d.service.live.says("gazer:sink (pid ")


def test_lines_go_to_syslog_where_standard_error_was_a_terminal(daemon, tmp_path):
    """... whose lines come no more, and which it has no hold of."""
    if os.path.lexists("/dev/log"):
        pytest.skip("there is a syslog here")
    if os.geteuid() != 0:
        pytest.skip("needs root, for /dev/log")
    service = daemon(wait=False).service        # for its configuration only
    service.live.wait(20.0)
    other = tmp_path / "other"
    other.mkdir()
    (other / "sensor.yaml").write_text((tmp_path / "sensor.yaml").read_text())
    ours, theirs = pty.openpty()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind("/dev/log")
        try:
            syslog.settimeout(10.0)
            starter = subprocess.Popen(
                [sys.executable, "-m", "tests.service_stub", other, "-d", "-p", other / "pid"],
                stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
            os.close(theirs)
            assert starter.wait(20.0) == 0
            pid = int((other / "pid").read_text())
            shown = b""
            while select.select([ours], [], [], 5.0)[0]:
                try:
                    shown += os.read(ours, 4096)
                except OSError:         # nobody holds the other end
                    break
            else:
                pytest.fail("somebody holds the terminal")
            assert b"processes are up" in shown
            os.kill(pid, signal.SIGTERM)
            line = syslog.recv(4096).decode()
            assert line.startswith("<29>")      # daemon.notice
            assert f"gazer[{pid}]: stopping: " in line
        finally:
            os.unlink("/dev/log")
            os.close(ours)


def test_dns_gazer_as_a_daemon(gazer, tmp_path):
    """Over a capture file: the starter goes when reading begins."""
    out, pid = tmp_path / "out", tmp_path / "pid"
    done = gazer("-d", "-p", pid, "-r", CAPTURES / "resolver.pcap", "-t", out)
    assert done.code == 0
    expected = compare.expected_lines(CAPTURES / "resolver.pcap")
    eventually(lambda: out.exists() and out.read_text().count("\n") == len(expected))
    eventually(lambda: not pid.exists())
    assert compare.diff(expected, out.read_text().splitlines()) == ""


def test_a_daemon_that_writes_to_standard_output_keeps_it(gazer):
    done = gazer("-d", "-r", CAPTURES / "resolver.pcap", "-t", "-")
    assert done.code == 0
    assert compare.diff(compare.expected_lines(CAPTURES / "resolver.pcap"), done.lines) == ""


def test_what_can_not_start_is_told_and_has_its_exit_code(gazer, tmp_path):
    done = gazer("-d", "-r", CAPTURES / "resolver.pcap", "-t", tmp_path)
    assert done.code == 1
    assert f"can't open {tmp_path}" in done.stderr
