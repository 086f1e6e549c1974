"""A service at its start, under signals, and when its configuration is read again.

The processes are stubs (tests.service_stub), the supervisor is the real one.
"""

from __future__ import annotations

import os
import re
import signal
import time

import psutil
import pytest

from gazer.service.run import SAME
from tests.conftest import eventually
from tests.service import Service


@pytest.fixture
def service(gazer, tmp_path):
    return lambda *args, **keys: Service(gazer, tmp_path, *args, **keys)


# ----------------------------------------------------------------------------------------- at start


def test_an_error_at_start_ends_the_run(service):
    s = service(wait=False)
    s.tell("early-worker1", "no such thing")    # before it can have read it
    done = s.live.wait(20.0)
    assert (done.code, done.said) == (1, ["gazer: no such thing"])


def test_a_process_that_is_killed_at_start_is_started_again(service):
    (s := service(wait=False)).tell("late-worker0")
    eventually(lambda: s.pids("worker0"), 20.0)
    os.kill(s.pids("worker0")[0], signal.SIGKILL)
    s.successor("worker0")
    (s.folder / "late-worker0").unlink()
    eventually(lambda: len(s.starts()) == 6, 20.0)
    assert s.stop()[0] == 0


def test_a_stop_before_all_are_up(service):
    (s := service(wait=False)).tell("late-sink")
    eventually(lambda: s.pids("sink"), 20.0)
    s.live.signal(signal.SIGTERM)
    s.live.says("stopping")
    (s.folder / "late-sink").unlink()
    assert s.live.wait(20.0).code == 0


# ------------------------------------------------------------------------------------------ signals


def test_a_second_signal_ends_it_at_once(service):
    (s := service()).tell("slow-worker0")
    s.live.signal(signal.SIGTERM)
    s.live.says("stopping")
    time.sleep(SAME / 1e9)      # what comes sooner is the same signal
    s.live.signal(signal.SIGINT)
    done = s.live.wait(5.0)
    assert done.code == 1
    assert "stopped at once" in done.stderr


def test_a_signal_that_comes_twice_is_one(service):
    (s := service()).tell("slow-worker0")
    s.live.signal(signal.SIGTERM)
    s.live.signal(signal.SIGINT)
    os.killpg(s.live.pid, signal.SIGTERM)
    s.live.says("stopping")
    (s.folder / "slow-worker0").unlink()
    done = s.live.wait(20.0)
    assert (done.code, done.stderr.count("stopping: ")) == (0, 1)


def test_a_stop_that_takes_too_long_is_given_up(service):
    (s := service(shutdown_timeout="1s")).tell("slow-worker0")
    begun = time.monotonic()
    code, said = s.stop()
    assert code == 1
    assert 0.9 < time.monotonic() - begun < 4.0
    late = next(line for line in said if "not finished" in line)
    assert late == ("gazer: not finished within 1s (service.shutdown_timeout): "
                    "gazer:sink, gazer:worker0 given up")
    assert any(line.startswith("gazer: lost: 0 frames that no worker had looked at") for line in (
        said))


@pytest.mark.parametrize("name", ["capture", "worker0", "worker1", "sink"])
def test_who_dies_during_a_stop_has_a_successor_that_finishes(service, name):
    (s := service()).tell(f"slow-{name}")
    s.live.signal(signal.SIGTERM)
    s.live.says("stopping")
    os.kill(s.pids(name)[0], signal.SIGKILL)
    s.successor(name)
    (s.folder / f"slow-{name}").unlink()
    assert s.live.wait(10.0).code == 0


def test_usr1_writes_the_counters(service):
    s = service()
    os.kill(s.pids("sink")[0], signal.SIGKILL)
    s.successor("sink")
    os.killpg(s.live.pid, signal.SIGUSR1)       # the children must not die of it
    s.live.says("processes started again: sink 1")
    assert "gazer: 0 frames read" in s.live.stderr
    time.sleep(0.3)
    assert len(s.starts()) == 6
    assert s.stop()[0] == 0


# ------------------------------------------------------------------------------------------- reload


def test_hup_takes_what_can_change_in_place_and_names_the_rest(service):
    s = service(hang_timeout="10s")
    s.config["service"] = {"hang_timeout": "1s", "stats_interval": "5s"}
    s.config["workers"] = 3
    s.write()
    os.killpg(s.live.pid, signal.SIGHUP)
    s.live.says("changed: service.hang_timeout\n")
    s.live.says("needs a restart: workers, service.stats_interval\n")
    s.tell("hang-worker0")                      # ... and it has truly changed
    s.successor("worker0", seconds=4.0)
    assert s.stop()[0] == 0


def test_hup_with_a_bad_file_keeps_the_old_configuration_and_says_why(service):
    s = service()
    (s.folder / "sensor.yaml").write_text("workers: none\nrings: 3\n")
    s.live.signal(signal.SIGHUP)
    s.live.says("the configuration stays as it was: ")
    s.live.says(f"the configuration stays as it was: {s.folder}/sensor.yaml:2: rings: no such key")
    (s.folder / "sensor.yaml").unlink()
    s.live.signal(signal.SIGHUP)
    s.live.says("No such file")
    s.write()
    s.live.signal(signal.SIGHUP)
    s.live.says("has not changed")
    assert s.stop()[0] == 0


def test_hup_starts_who_serves_metrics_anew(service):
    s = service()
    s.config["metrics"] = {"listen": "127.0.0.1:9999"}
    s.write()
    for _ in range(6):          # that is no death, however often
        number = len(s.pids("metrics"))
        s.config["metrics"] = {"listen": f"127.0.0.1:{9000 + number}"}
        s.write()
        s.live.signal(signal.SIGHUP)
        s.successor("metrics", number + 1)
    assert "(pid" not in s.live.stderr
    s.config["metrics"] = {"listen": ""}
    s.write()
    s.live.signal(signal.SIGHUP)
    s.live.says("needs a restart: metrics.listen")
    assert s.stop()[0] == 0


def test_hup_without_a_file_opens_outputs_again(service):
    s = service("--no-file")
    s.live.signal(signal.SIGHUP)
    s.live.says("outputs are opened again; there is no configuration file to read again\n")
    assert s.stop()[0] == 0


@pytest.mark.parametrize("paths, said", [
    (["-"], "standard output stays as it is"),
    (["-", "out"], "outputs are opened again, but for standard output"),
])  # fmt: skip
def test_hup_does_not_say_that_standard_output_is_opened_again(service, paths, said):
    s = service("--no-file", outputs=paths)
    s.live.signal(signal.SIGHUP)
    s.live.says(f"gazer: {said}; there is no configuration file to read again\n")
    assert s.stop()[0] == 0


# ----------------------------------------------------------------------------------------- the rest


def test_cpus(service):
    cpus = sorted(os.sched_getaffinity(0))
    last = cpus[-1]
    s = service(worker_cpus=[cpus[0], last], sink_cpus=[last])
    where = {name: cpu for name, *_, cpu in s.starts()}
    assert (where["worker0"], where["worker1"], where["sink"]) == (cpus[0], last, last)
    os.kill(s.pids("worker1")[0], signal.SIGKILL)
    s.successor("worker1")
    assert [cpu for name, *_, cpu in s.starts() if name == "worker1"] == [last, last]
    assert s.stop()[0] == 0


def test_a_cpu_that_is_not_there_is_one_line(service):
    s = service(wait=False, capture_cpus=[1023])
    done = s.live.wait(20.0)
    assert done.code == 2
    assert re.fullmatch(r"gazer: service\.capture_cpus\[0\]: there is no CPU 1023 for gazer here; "
                        r"it may use [\d, -]+", done.said[0])


def test_what_a_child_says_can_not_steer_a_terminal_or_fill_the_log(service):
    s = service()
    s.tell("say-worker0", "\x1b[2Jgazer: all is well\x07" + "x" * 100_000)
    s.live.says("\\x1b[2Jgazer: all is well\\x07xxx")
    assert len(s.live.stderr) < 3000
    assert s.stop()[0] == 0


def test_a_child_that_says_too_much_does_not_fill_the_log(service):
    s = service()
    s.tell("say-worker0", "x\n" * 50_000 + "notice the last of it")
    s.live.says("gazer:worker0 says too much")
    s.tell("say-worker1", "all is well")        # the others are still heard
    s.live.says("all is well")
    code, said = s.stop()
    assert code == 0
    assert 50 < len(said) < 300
    assert sum("too much" in line for line in said) == 1


def test_nothing_grows_with_restarts(service):
    s = service()
    process = psutil.Process(s.live.pid)
    time.sleep(0.3)
    held = process.num_fds()
    for number in range(2, 12):
        s.tell("die-capture", 3)
        s.successor("capture", number)

        def as_before() -> bool:
            """it holds as many descriptors as before"""
            return process.num_fds() == held

        eventually(as_before)
    assert s.stop()[0] == 0
