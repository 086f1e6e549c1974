"""What looks at a sensor, with a live one: in a network namespace, over a cable."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gazer.errors import GazerError
from gazer.observe import health
from gazer.observe.find import find
from gazer.observe.snapshot import Observer
from tests.conftest import eventually
from tests.sensor import ended, frames

pytest_plugins = ["tests.sensor"]


def metrics(lab) -> dict[tuple[str, tuple[tuple[str, str], ...]], float] | None:
    """What Prometheus would read in the sensor's namespace."""
    program = ("import urllib.request as u; "
               "print(u.urlopen('http://127.0.0.1:9853/metrics', timeout=10).read().decode())")
    done = lab.run([sys.executable, "-c", program])
    if done.returncode:
        return None
    return {(s.name, tuple(sorted(s.labels.items()))): s.value
            for family in parse_text(done.stdout) for s in family.samples}


def total(found, name: str, **labels: str) -> float:
    return sum(value for (n, ls), value in found.items()
               if n == f"gazer_{name}" and labels.items() <= dict(ls).items())


def run(gazer, *args):
    return gazer(*args, command="gazer")


def test_a_live_sensor_shows_all_of_it(sensor, gazer):
    sensor.lab.run(["ip", "link", "set", "lo", "up"])
    live = sensor.configured(workers=2, metrics={"listen": "127.0.0.1:9853"})
    sensor.lab.send(frames(*range(200)))
    sensor.await_lines(200)

    def all_there():
        """the metrics of 200 transactions"""
        found = metrics(sensor.lab)
        return found if found and total(found, "worker_success_total") == 200 else None

    found = eventually(all_there)
    assert total(found, "reply_latency_seconds_count") == 200
    assert total(found, "worker_rcode_total", rcode="0") == 200
    assert total(found, "output_events_total", output="0") >= 200
    assert total(found, "capture_kernel_received_total") >= 400
    assert total(found, "process_up") == 6 and total(found, "account_broken_sums") == 0
    assert total(found, "capture_absent") == 0

    tree = json.loads(run(gazer, "stats", "--json", "--pid", live.pid).stdout)
    assert tree["run"]["live"] == 1 and tree["balances"]["hold"], tree["balances"]
    assert tree["account"]["workers"]["success"] == 200
    assert [p["role"] for p in tree["processes"]] == [
        "supervisor", "capture", "worker", "worker", "sink", "metrics"]
    done = run(gazer, "stats", "--pid", live.pid)
    assert max(map(len, done.lines)) <= 80 and done.lines[-1] == "  it adds up"
    assert run(gazer, "health", "--pid", live.pid).code == 0

    assert tree["account"]["outputs"][0]["name"] == str(sensor.out)
    assert tree["account"]["outputs"][0]["blocked_seconds"] == 0
    assert total(found, "output_blocked_seconds") == 0

    screen = run(gazer, "top", "--once", "--interval", 0.1, "--pid", live.pid).lines
    assert screen[1] == "well; the account adds up"
    (at,) = [n for n, line in enumerate(screen) if line.startswith("names")]
    assert ".example.com." in screen[at + 1] and "198.51.100.7" in screen[at + 1]
    assert "100% A " in screen[at + 1] and "100% NOERROR" in screen[at + 1]
    assert len(screen) <= 24 and max(map(len, screen)) <= 80
    assert ended(live)["read"] >= 400


def test_a_hundred_looks_under_load_never_find_it_wrong(sensor):
    live = sensor.configured(workers=2)
    with find(live.pid) as found:
        observer = Observer(found.attach, found.pid)
        for round_ in range(100):
            sensor.lab.send(frames(*range(40 * round_, 40 * round_ + 40)))
            _, standing = observer.settled()
            assert not standing.broken, (round_, standing)
            assert all(n >= 0 for n in standing.in_flight.values())
        observer.close()
    sensor.await_lines(4000)
    assert ended(live)["read"] >= 8000


def test_what_happens_is_told(sensor):
    """An interface that goes; a worker and a metrics process that die."""
    sensor.lab.run(["ip", "link", "set", "lo", "up"])
    live = sensor.configured(workers=2, metrics={"listen": "127.0.0.1:9853"})
    limits = health.Limits(window=0)
    with find(live.pid) as found:
        observer = Observer(found.attach, found.pid)
        eventually(lambda: health.examine(observer, limits) == [], 20)
        sensor.lab.down()
        eventually(lambda: "capture 0 waits for its interface" in health.examine(observer, limits))
        sensor.lab.up()
        calm = replace(limits, restart=0)
        eventually(lambda: health.examine(observer, calm) == [])

        for name, label in (("gazer:worker1", "worker 1"), ("gazer:metrics", "metrics")):
            before = live.part(name)
            before.kill()

            def started_again(label=label):
                """it is told that it was started again"""
                return any(line.startswith(f"{label} was started again")
                           for line in health.examine(observer, limits))

            eventually(started_again, 20)
            assert live.part(name).pid != before.pid
        seen = observer.snapshot()
        assert seen.supervisor["restarts.worker"] == seen.supervisor["restarts.metrics"] == 1
        assert eventually(lambda: metrics(sensor.lab), 20)
        observer.close()
    sensor.lab.send(frames(1))
    sensor.await_lines(1)
    ended(live)


def test_a_killed_sensor_is_not_found(sensor):
    live = sensor.configured()
    with find(live.pid) as found:
        assert found.pid == live.pid
    live.signal(signal.SIGKILL)
    live.wait()
    with pytest.raises(GazerError, match=f"no process has the pid {live.pid}"):
        find(live.pid)


def test_one_output_of_two_that_takes_nothing(sensor, gazer):
    """A FIFO that nobody reads: the file beside it goes on, and health says which it is."""
    fifo = sensor.folder / "fifo"
    os.mkfifo(fifo)
    sensor.lab.run(["ip", "link", "set", "lo", "up"])
    live = sensor.configured(metrics={"listen": "127.0.0.1:9853"}, outputs=[
        {"type": "text", "path": str(sensor.out)}, {"type": "text", "path": str(fifo)}])
    sensor.lab.send(frames(*range(20)))
    sensor.await_lines(20)

    def complains():
        """of the FIFO, and of nothing else"""
        done = run(gazer, "health", "--pid", live.pid, "--blocked", 2, "--window", 0)
        return done.code == 1 and done.lines + done.said

    said = eventually(complains)
    assert len(said) == 1 and f"output {fifo} has taken nothing for " in said[0]
    assert run(gazer, "health", "--pid", live.pid).code == 0        # not yet for 30 s
    found = metrics(sensor.lab)
    assert total(found, "output_blocked_seconds", output="1") > 1.9
    assert total(found, "output_blocked_seconds", output="0") == 0
    assert total(found, "process_waiting", role="sink") == 0
    tree = json.loads(run(gazer, "stats", "--json", "--pid", live.pid).stdout)
    assert [one["blocked_seconds"] >= 2 for one in tree["account"]["outputs"]] == [False, True]
    assert [one["name"] for one in tree["account"]["outputs"]] == [str(sensor.out), str(fifo)]
    screen = run(gazer, "top", "--once", "--interval", 0.1, "--pid", live.pid).lines
    assert [line for line in screen if line.startswith("output 1    TAKES NOTHING for ")]
    live.signal(signal.SIGTERM)
    done = live.wait(30.0)
    assert f"{fifo} had no room: the rest is not written to it" in done.stderr


def test_the_only_output_that_takes_nothing_is_a_sink_that_is_blocked(sensor, gazer):
    fifo = sensor.folder / "fifo"
    os.mkfifo(fifo)
    live = sensor.configured(outputs=[{"type": "text", "path": str(fifo)}])
    sensor.lab.send(frames(*range(20)))

    def complains():
        """of both, though the sink beats"""
        done = run(gazer, "health", "--pid", live.pid, "--blocked", 2, "--window", 0)
        said = " ".join(done.lines + done.said)
        return "sink has been blocked for " in said and f"output {fifo} has taken nothing" in said

    eventually(complains)
    live.signal(signal.SIGTERM)
    live.wait(30.0)
