"""What happens to a service in its life, under a load of real DNS: logs are rotated, disks are
full, interfaces go down, it is stopped.  What dnsperf asked is what the logs must have."""

from __future__ import annotations

import gzip
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from gazer.units import Site, logrotate_file
from tests.netns import SENSOR
from tests.resolver import (
    JSON,
    Resolver,
    account,
    as_json,
    events,
    grows,
    of,
    program,
    stop,
    written,
)  # fmt: skip

pytest_plugins = ["tests.resolver"]

RATE = 3000


# --- rotation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["logrotate", "rename"])
def test_rotated_logs_have_it_all_in_order(sensor, resolver, how):
    """Three times under load.  Another output is not rotated, and is what they have to be together;
    the first is written until the service has been told, and goes on in the new file."""
    folder = Path(tempfile.mkdtemp(prefix="gazer-test-"))
    try:
        path, whole = folder / "dns.log", sensor.folder / "whole"
        live = sensor.configured(**JSON, outputs=as_json(path, whole))
        rotate = logrotate(folder, live.pid) if how == "logrotate" else rename(path, live.pid)
        load = resolver.load(RATE, 1.5)
        for _ in range(3):
            grows(path, 200_000)
            rotate()
            # The old one is no longer written to when the new one is.
            grows(path, 1)
        assert load.process.poll() is None, "it was not rotated under load"
        load.end()
        written(live, load.sent)
        said = stop(live)
        assert said.count("outputs are opened again") == 3
        parts = sorted(folder.glob("dns.log.*"), key=lambda p: -int(p.suffixes[1][1:]))
        assert len(parts) == 3
        data = [gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else p.read_bytes()
                for p in parts] + [path.read_bytes()]
        for each in data:
            assert each and events(each)      # whole lines
        assert b"".join(data) == whole.read_bytes()
        assert load.lost == 0
        assert sorted(of(load, events(whole.read_bytes()))) == sorted(load.completed)
    finally:
        shutil.rmtree(folder)


def logrotate(folder: Path, pid: int):
    """The real one, with the file that `gazer init` writes; systemctl is one that does what the
    unit says."""
    found = program("logrotate", "logrotate")
    if os.geteuid() != 0:
        pytest.skip("the file is for logrotate as root")
    programs = folder / "programs"
    programs.mkdir()
    stand_in = programs / "systemctl"
    stand_in.write_text(f'#!/bin/sh\n[ "$1" = reload ] && kill -HUP {pid}\nexit 0\n')
    stand_in.chmod(0o755)
    file = folder / "gazer.logrotate"
    file.write_text(logrotate_file(Site(log_dir=str(folder), user=pwd.getpwuid(0).pw_name)))
    file.chmod(0o644)

    def run() -> None:
        subprocess.run([found, "-f", "-s", folder / "state", file], check=True,
                       capture_output=True,
                       env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"})

    return run


def rename(path: Path, pid: int):
    numbers = iter((3, 2, 1))

    def run() -> None:
        path.rename(path.with_name(f"{path.name}.{next(numbers)}"))
        os.kill(pid, signal.SIGHUP)

    return run


# --- a stop --------------------------------------------------------------------------------------


def test_a_stop_under_load_loses_nothing_that_was_captured(sensor, resolver):
    """dnsperf asks in order: so what it asked up to some number is there, each once, and nothing
    above; the last may have had no time for their replies."""
    live = sensor.configured(**JSON, outputs=as_json(sensor.out),
                             service={"shutdown_timeout": "5s"})
    load = resolver.load(RATE, 10.0)
    grows(sensor.out, 1_000_000)
    assert load.process.poll() is None
    said = stop(live, 5.0)
    load.stop()
    assert "not finished" not in said and "NOT written" not in said
    found = of(load, events(sensor.out.read_bytes()))
    assert sorted(found) == list(range(len(found)))
    assert 1000 < len(found) < load.sent
    late = [n for n, event in found.items() if event["status"] != "success"]
    assert all(found[n]["status"] == "no_reply" and n > len(found) - 200 for n in late)


# --- a full disk ---------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    where = tmp_path / "disk"
    where.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", where],
                          capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def test_a_full_disk_is_told_and_counted_and_over_when_there_is_room(sensor, resolver, disk):
    path, whole = disk / "log", sensor.folder / "whole"
    # Rings for all that is asked: what is lost here is the full disk's, however busy the machine.
    live = sensor.configured(
        **JSON | {"events": {"detail": "full", "records": True}, "ring": {"size": "16MiB"}},
        outputs=as_json(path, whole))
    load = resolver.load(RATE, 15.0, "-e", kind="TXT")
    full = f"waiting for room to write to {path}: no space left on device"
    live.says(full)
    # It goes on without this output: more than may wait for it.
    live.says(f"{path} does not keep up")
    load.stop()
    first = account(live)
    assert first.outputs[0]["dropped"] > 0 == first.outputs[1]["dropped"]
    subprocess.run(["mount", "-o", "remount,size=256m", disk], check=True)
    live.says(f"there is room again: writing to {path}")
    live.says(f"{path} keeps up again")
    after = resolver.load(RATE, 0.5, "-e", kind="TXT").end()
    last = written(live, after.sent)
    said = stop(live)
    assert last.capture["ring_dropped"] == last.capture["kernel_dropped"] == 0
    assert said.count(full) == 1
    have, all_ = path.read_bytes(), whole.read_bytes()
    found, complete = events(have), events(all_)
    assert sorted(of(after, found)) == sorted(of(after, complete)) == sorted(after.completed)
    some, each = of(load, found), of(load, complete)
    assert set(load.completed) <= set(each)
    # Whole lines, in order, none twice; what is missing is what was counted.
    lines = iter(all_.splitlines())
    assert all(line in lines for line in have.splitlines())
    assert some.keys() < each.keys()
    missing = all_.count(b"\n") - have.count(b"\n")
    assert missing == last.outputs[0]["dropped"]


# --- an interface that goes down -----------------------------------------------------------------


def test_an_interface_goes_down_and_comes_back_under_load(sensor, tmp_path):
    sensor.lab.addresses()
    resolver = Resolver(sensor.lab, tmp_path, where=SENSOR)     # the far end's link stays
    live = sensor.configured(**JSON, outputs=as_json(sensor.out))
    load = resolver.load(RATE, 10.0)
    grows(sensor.out, 500_000)
    begun = time.monotonic()
    sensor.lab.down()
    live.says("waiting for")
    sensor.lab.up()
    live.says("is there: capturing")
    away = time.monotonic() - begun
    grows(sensor.out, 500_000)
    load.stop()
    # What comes from now on is all there.
    after = resolver.load(RATE, 0.5).end()
    written(live, after.sent)
    said = stop(live)
    assert said.count("waiting for") == said.count("is there: capturing") == 1
    assert said.count("died") == 0 and "1 lost their interface" in said
    found = events(sensor.out.read_bytes())
    assert set(after.completed) <= set(of(after, found))
    assert after.lost == 0
    # Of the load, what is missing was asked in one stretch, as long as the interface was away.
    have = of(load, found)
    missing = sorted(set(range(max(have))) - set(have))
    assert not missing or missing[-1] - missing[0] < RATE * (away + 0.5)
    assert min(have) == 0
    alone = [event for event in have.values() if event["status"] != "success"]
    assert all(event.get("lossy") for event in alone if event["status"] == "no_query")
