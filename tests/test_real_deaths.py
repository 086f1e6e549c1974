"""Processes of a service that are killed and stopped under a load of real DNS.

What may be missing then is counted, and nothing is there twice: each name is asked once.
"""

from __future__ import annotations

import os
import signal
import time

import psutil

from tests.conftest import eventually
from tests.resolver import JSON, account, as_json, events, grows, of, stop, written
from tests.service import alive

pytest_plugins = ["tests.resolver"]

RATE = 3000
CONFIG = JSON | {"ring": {"size": "8MiB"}, "metrics": {"listen": "127.0.0.1:9853"},
                 "service": {"hang_timeout": "1s"}}


def replaced(live, name: str, number: signal.Signals) -> float:
    """Send it the signal; how long until there is a successor."""
    old = live.part(name).pid
    os.kill(old, number)
    begun = time.monotonic()

    def there() -> bool:
        part = live.parts().get(name)
        return part is not None and part.pid != old and part.name() == name

    there.__doc__ = f"a successor of {name}"
    eventually(there)
    return time.monotonic() - begun


def test_who_is_behind_capture_dies_and_nothing_is_lost_uncounted(sensor, resolver):
    """Workers, sink and metrics, and a worker that is stopped, in one run and under one load."""
    live = sensor.configured(**CONFIG, outputs=as_json(sensor.out))
    load = resolver.load(RATE, 20.0)
    grows(sensor.out, 100_000)
    for name in ("gazer:worker0", "gazer:sink", "gazer:metrics", "gazer:worker1", "gazer:sink"):
        assert replaced(live, name, signal.SIGKILL) < 1.0, name
        grows(sensor.out, 100_000)
        account(live)
    assert 0.5 < replaced(live, "gazer:worker0", signal.SIGSTOP) < 4.0
    grows(sensor.out, 100_000)
    assert load.process.poll() is None
    load.stop()
    last = written(live)
    said = stop(live)
    assert "processes started again: worker 3, sink 2, metrics 1; of these 1 hung" in said
    assert last.capture["kernel_dropped"] == last.capture["ring_dropped"] == 0
    assert last.workers["quarantined"] == 0 and last.outputs[0]["dropped"] == 0
    found = of(load, events(sensor.out.read_bytes()))
    missing = set(range(load.sent)) - set(found)
    assert len(missing) <= last.workers["lost_pending"]
    alone = [event for event in found.values() if event["status"] != "success"]
    assert all(event["lossy"] for event in alone if event["status"] == "no_query")
    # A reply whose query went with its worker.
    assert len(missing) + len(alone) <= last.workers["lost_pending"]


def test_capture_dies_and_what_it_did_not_see_is_one_stretch(sensor, resolver):
    live = sensor.configured(**CONFIG, outputs=as_json(sensor.out))
    load = resolver.load(RATE, 20.0)
    grows(sensor.out, 300_000)
    assert replaced(live, "gazer:capture", signal.SIGKILL) < 1.0
    grows(sensor.out, 300_000)
    load.stop()
    # It is whole again.
    after = resolver.load(RATE, 0.5).end()
    assert written(live, after.sent).workers["lost_pending"] == 0
    stop(live)
    found = events(sensor.out.read_bytes())
    assert sorted(of(after, found)) == sorted(after.completed) and after.lost == 0
    have = of(load, found)
    missing = sorted(set(range(max(have))) - set(have))
    assert missing, "it was killed and missed nothing: was there no load?"
    assert missing[-1] - missing[0] < RATE * 1.5
    alone = [event for event in have.values() if event["status"] != "success"]
    assert all(event["lossy"] for event in alone)


def test_the_supervisor_dies_and_another_one_goes_on_with_the_log(sensor, resolver):
    live = sensor.configured(**CONFIG, outputs=as_json(sensor.out))
    load = resolver.load(RATE, 20.0)
    grows(sensor.out, 300_000)
    family = [part.pid for part in live.parts().values()]
    assert len(family) == 5
    live.signal(signal.SIGKILL)
    live.process.wait()

    def gone() -> bool:
        """all processes have ended"""
        return not any(map(alive, family))

    eventually(gone, 1.0)
    had = sensor.out.stat().st_size
    live = sensor.configured(**CONFIG, outputs=as_json(sensor.out))
    grows(sensor.out, 300_000)
    load.stop()
    after = resolver.load(RATE, 0.5).end()
    written(live, after.sent)
    stop(live)
    data = sensor.out.read_bytes()
    # Killed within a write, the first may have left a part of a line; the second begins its own.
    first, second = data[:had], data[had:]
    first, newline, torn = first.rpartition(b"\n")
    if torn:
        assert second.startswith(b"\n")
        second = second[1:]
    found = events(first + newline) + events(second)
    assert sorted(of(after, found)) == sorted(after.completed) and after.lost == 0
    have = of(load, found)
    assert 0 in have and load.sent - max(have) < 1000


def test_a_worker_that_dies_five_times_ends_the_service(sensor, resolver):
    """What does not get well by itself is for whoever watches the service."""
    live = sensor.configured(**CONFIG, outputs=as_json(sensor.out))
    load = resolver.load(RATE, 20.0)
    grows(sensor.out, 100_000)
    family = {part.pid for part in live.parts().values()}
    for _ in range(4):
        replaced(live, "gazer:worker0", signal.SIGKILL)
        family |= {part.pid for part in live.parts().values()}
        grows(sensor.out, 20_000)
    os.kill(live.part("gazer:worker0").pid, signal.SIGKILL)
    done = live.wait(10.0)
    load.stop()
    assert done.code == 1
    assert "gazer:worker0 died 5 times within a minute; the service ends" in done.stderr
    assert done.stderr.count("was killed by SIGKILL") == 5
    assert not any(psutil.pid_exists(pid) for pid in family)
    found = of(load, events(sensor.out.read_bytes()))
    assert len(found) > 100
