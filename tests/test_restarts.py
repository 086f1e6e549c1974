"""A service's processes die, hang and wait: what the supervisor does about it.

The processes are stubs (tests.service_stub), the supervisor is the real one.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import eventually
from tests.service import CHILDREN, Service, alive


@pytest.fixture
def service(gazer, tmp_path):
    return lambda *args, **keys: Service(gazer, tmp_path, *args, **keys)


# ------------------------------------------------------------------------------------------- deaths


@pytest.mark.parametrize("name", CHILDREN)
def test_who_is_killed_is_started_again_within_a_second(service, name):
    s = service()
    (old,) = s.pids(name)
    os.kill(old, signal.SIGKILL)
    killed = time.monotonic()
    new = s.successor(name)
    started = {pid: at for _, pid, at, *_ in s.starts()}
    assert started[new] - killed < 1.0
    # The old one was reaped before: the new one found no process of that number.
    assert not any(alive for *_, alive, _ in s.starts())
    assert [len(s.pids(other)) for other in CHILDREN if other != name] == [1] * 4
    code, said = s.stop()
    assert code == 0
    assert said.count(f"gazer: gazer:{name} (pid {old}) was killed by SIGKILL") == 1
    role = name.rstrip("01")
    assert f"gazer: processes started again: {role} 1; of these 0 hung, 0 lost their interface" in (
        said)


def test_an_exit_code_is_a_death_and_is_told(service):
    s = service()
    (old,) = s.pids("worker1")
    s.tell("die-worker1", 7)
    s.successor("worker1")
    assert s.stop()[0] == 0
    assert f"gazer:worker1 (pid {old}) died with exit code 7" in s.live.stderr


@pytest.mark.parametrize("name", CHILDREN)
def test_an_end_that_nobody_asked_for_is_a_death(service, name):
    """... also in good order: the others would wait for it for ever, or the service be over."""
    s = service()
    (old,) = s.pids(name)
    s.tell(f"die-{name}", 0)
    s.successor(name)
    assert s.stop()[0] == 0
    assert f"gazer:{name} (pid {old}) died with exit code 0" in s.live.stderr


def test_who_reports_an_error_later_on_is_started_again(service):
    s = service()
    s.tell("fail-sink", "can't write to out: Input/output error")
    s.successor("sink")
    code, said = s.stop()
    assert code == 0
    assert said[1] == "gazer: can't write to out: Input/output error"
    assert said[2].endswith("died with exit code 1")


def test_who_does_what_it_may_not_dies_and_the_rest_goes_on(service, tmp_path):
    s = service()
    (old,) = s.pids("worker0")
    (tmp_path / "precious").touch()
    s.tell("trespass-worker0", tmp_path / "precious")
    s.successor("worker0")
    assert s.stop()[0] == 0
    assert f"gazer:worker0 (pid {old}) was killed by SIGSYS" in s.live.stderr
    assert len(s.starts()) == 6


def test_five_deaths_within_a_minute_end_the_service(service):
    s = service()
    s.tell("keep")
    begun = time.monotonic()
    s.tell("die-worker0", 9)
    done = s.live.wait(20.0)
    assert done.code == 1
    assert time.monotonic() - begun < 10.0
    assert len(s.pids("worker0")) == 5
    assert sum("died with exit code 9" in line for line in done.said) == 5
    assert "gazer: gazer:worker0 died 5 times within a minute; the service ends" in done.said
    assert not any(psutil.pid_exists(pid) for _, pid, *_ in s.starts())


def test_who_can_not_be_started_just_now_is_tried_again(service):
    s = service()
    limits = resource.prlimit(s.live.pid, resource.RLIMIT_NOFILE)
    few = 15        # all in use, by shared memory and bells; no fewer than it waits on with poll(2)
    assert {*map(str, range(few))} <= {*os.listdir(f"/proc/{s.live.pid}/fd")}
    resource.prlimit(s.live.pid, resource.RLIMIT_NOFILE, (few, limits[1]))
    os.kill(s.pids("worker0")[0], signal.SIGKILL)
    s.live.says("can't start gazer:worker0: Too many open files")
    resource.prlimit(s.live.pid, resource.RLIMIT_NOFILE, limits)
    s.successor("worker0")
    assert s.stop()[0] == 0


def test_deaths_of_different_processes_are_not_added_up(service):
    s = service()
    for name in CHILDREN:
        os.kill(s.pids(name)[0], signal.SIGKILL)
        s.successor(name)
    assert s.stop()[0] == 0


def test_an_interface_that_goes_is_no_death(service):
    s = service()
    for number in range(2, 9):
        s.tell("die-capture", 3)
        s.successor("capture", number)
    code, said = s.stop()
    assert code == 0
    assert not any("died" in line for line in said)
    assert said[-1] == ("gazer: processes started again: capture 7; of these 0 hung, "
                        "7 lost their interface")


def test_an_interface_that_comes_and_goes_does_not_keep_the_machine_busy(service):
    s = service()
    s.tell("keep")
    s.tell("die-capture", 3)
    time.sleep(1.5)
    (s.folder / "die-capture").unlink()
    times = [at for name, _, at, *_ in s.starts() if name == "capture"]
    assert 3 <= len(times) <= 9
    assert s.stop()[0] == 0


def test_only_a_capture_process_loses_its_interface(service):
    s = service()
    s.tell("die-worker0", 3)
    s.successor("worker0")
    assert s.stop()[0] == 0
    assert "died with exit code 3" in s.live.stderr


# ---------------------------------------------------------------------------------- hangs and waits


@pytest.mark.parametrize("name", CHILDREN)
def test_who_is_stopped_is_killed_and_started_again(service, name):
    s = service()
    (old,) = s.pids(name)
    os.kill(old, signal.SIGSTOP)
    stopped = time.monotonic()
    new = s.successor(name)
    took = {pid: at for _, pid, at, *_ in s.starts()}[new] - stopped
    assert 0.9 < took < 3.0
    code, said = s.stop()
    assert code == 0
    assert f"gazer: gazer:{name} has shown no sign of life for 1s; it is killed" in said
    assert "of these 1 hung" in said[-1]


def test_who_comes_no_more_round_its_loop_is_killed(service):
    s = service()
    s.tell("hang-worker0")
    s.successor("worker0")
    assert s.stop()[0] == 0


def test_who_waits_in_a_blocking_write_is_left_alone_and_shown(service):
    s = service()
    s.tell("wait-sink")
    s.live.says("gazer:sink is blocked: an output has taken nothing for 1s")
    time.sleep(1.5)
    assert len(s.pids("sink")) == 1
    (s.folder / "wait-sink").unlink()
    s.live.says("gazer:sink goes on")
    assert s.stop()[0] == 0
    assert s.live.stderr.count("is blocked") == s.live.stderr.count("goes on") == 1
    assert "hung" not in s.live.stderr


def test_who_waits_and_is_stopped_is_killed(service):
    """What it waits for would not move it."""
    s = service()
    s.tell("wait-sink")
    s.live.says("is blocked")
    os.kill(s.pids("sink")[0], signal.SIGSTOP)
    (s.folder / "wait-sink").unlink()
    s.successor("sink")
    assert s.stop()[0] == 0


def test_a_supervisor_that_was_stopped_itself_kills_nobody(service):
    """All are stopped for longer than hang_timeout, as a machine that is suspended."""
    s = service()
    family = [s.live.pid, *(pid for _, pid, *_ in s.starts())]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(2.5)
    for pid in family:
        os.kill(pid, signal.SIGCONT)
    time.sleep(1.5)
    assert len(s.starts()) == len(CHILDREN)
    assert s.stop()[0] == 0
    assert "killed" not in s.live.stderr


def test_an_idle_supervisor_sleeps(service):
    s = service(hang_timeout="10s")
    time.sleep(0.5)

    def used() -> int:
        return int(Path(f"/proc/{s.live.pid}/schedstat").read_text().split()[0])

    before = used()
    time.sleep(3.0)
    assert used() - before < 0.003 * 3e9
    assert s.stop()[0] == 0


# ------------------------------------------------------------------------------------------ orphans


@pytest.mark.parametrize("name", ["supervisor", *CHILDREN])
def test_kill_9_of_anyone_leaves_no_orphan(service, name):
    s = service()
    segments = s.live.segments()
    assert len(segments) >= 5 and not segments & set(os.listdir("/dev/shm"))
    if name != "supervisor":
        os.kill(s.pids(name)[0], signal.SIGKILL)
        s.successor(name)
    os.kill(s.live.pid, signal.SIGKILL)
    s.live.process.wait()
    family = [pid for _, pid, *_ in s.starts()]

    def gone() -> bool:
        """all processes have ended"""
        return not any(map(alive, family))

    eventually(gone, 1.0)
