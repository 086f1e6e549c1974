"""gazer.observe.find, snapshot, stats and health, with sensors that run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest

from gazer import counters
from gazer.errors import ProcessError, SharedMemoryError, UsageError
from gazer.observe import find as finding
from gazer.observe import health, metrics, snapshot, stats
from gazer.observe.find import Sensor, find
from gazer.observe.snapshot import Observer, quantile, standing
from tests.conftest import CAPTURES, eventually
from tests.observed import account

RESOLVER = (CAPTURES / "resolver.pcap").read_bytes()


@pytest.fixture
def observer(standing):
    with find(standing.pid) as found:
        made = Observer(found.attach, found.pid)
        yield made
        made.close()


def run(gazer, *args, **options):
    return gazer(*args, command="gazer", **options)


# ----------------------------------------------------------------------------------------- find


def test_a_sensor_is_found_by_any_of_its_processes(standing):
    for pid in [standing.pid, *(part.pid for part in standing.parts().values())]:
        with find(pid) as found:
            assert found.pid == standing.pid
            assert found.has("ledger") and found.has("frames1") and found.has("events0")
            assert not found.has("frames2")
            with pytest.raises(SharedMemoryError, match="no segment frames2"):
                found.attach("frames2")


def test_a_sensor_is_found_among_all_processes(standing):
    found, _ = finding._all()
    assert standing.pid in [one.pid for one in found]


def test_of_several_one_has_to_be_named(gazer, standing, fifo, tmp_path):
    other = tmp_path / "other"
    os.mkfifo(other)
    fd = os.open(other, os.O_RDWR)
    second = gazer.start("-r", other, "-t", "-")
    os.write(fd, RESOLVER[:20_000])
    eventually(lambda: second.pid in [one.pid for one in finding._all()[0]])
    with pytest.raises(UsageError, match=r"several sensors run here, with the pids .*--pid"):
        find()
    done = run(gazer, "stats")
    assert done.code == 2 and str(second.pid) in done.stderr and len(done.said) == 1
    os.close(fd)


def test_memory_is_read_only(standing):
    with find(standing.pid) as found:
        memory = found.attach("ledger")
        assert memory.readonly
        with pytest.raises(TypeError):
            memory[0] = 0
        slot = counters.Slot(memory, 0)
        for write in (slot.publish, slot.ask_reload, slot.heartbeat_now, slot.ask,
                      lambda: slot.waits(True), lambda: slot.open(1)):
            with pytest.raises(SharedMemoryError, match="reading only"):
                write()
        slot.release()
        memory.release()


def test_nobody_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(finding, "PROC", tmp_path)
    with pytest.raises(ProcessError, match="no sensor runs on this machine"):
        find()
    with pytest.raises(ProcessError, match="no process has the pid 7"):
        find(7)


def test_a_process_that_is_no_sensor(gazer):
    with pytest.raises(ProcessError, match=f"process {os.getpid()} is not a sensor's"):
        find(os.getpid())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")
def test_without_permission_it_says_who_may(standing):
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:      # nothing may escape from here
        said = "nothing was raised"
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            said = str(find())
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        os.write(theirs, said.encode())
        os._exit(0)
    os.close(theirs)
    os.waitpid(child, 0)
    said = os.read(ours, 1000).decode()
    os.close(ours)
    assert re.fullmatch(r"ProcessError: a sensor runs \(pid \d+\) that you may not look into: "
                        r"do this as root", said)


def test_a_pid_file(gazer, fifo, tmp_path):
    path = tmp_path / "pid"
    live = gazer.start("-r", fifo.path, "-t", "-", "-p", path)
    fifo.write(RESOLVER[:20_000])

    def found() -> bool:
        """the sensor of the pid file"""
        try:
            return find(pid_file=str(path)).pid == live.pid
        except ProcessError:
            return False

    eventually(found)
    assert run(gazer, "stats", "--pid-file", path).stdout.startswith(b"sensor %d," % live.pid)


@pytest.mark.parametrize(("content", "message"), [
    (None, "No such file"), (b"", "does not hold a pid"), (b"x\n", "does not hold a pid"),
    (b"9" * 40, "does not hold a pid"), (b"4194305\n", "no process has the pid 4194305 any more"),
])  # fmt: skip
def test_a_pid_file_that_leads_nowhere(gazer, tmp_path, content, message):
    path = tmp_path / "pid"
    if content is not None:
        path.write_bytes(content)
    done = run(gazer, "health", "--pid-file", path)
    assert done.code == 1 and message in done.stdout.decode() and not done.stderr


def test_a_hundred_looks_leave_the_sensor_whole(gazer, standing, fifo):
    before = standing.segments()
    own = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        with find(standing.pid) as found:
            observer = Observer(found.attach, found.pid)
            assert observer.snapshot().account.workers["success"] == 109
            observer.close()
    assert len(os.listdir("/proc/self/fd")) == own
    maps = Path("/proc/self/maps").read_text()
    assert not any(name in maps for name in before)     # nothing of it stays mapped here
    assert standing.segments() == before
    fifo.write(RESOLVER[40_000:])
    fifo.close()
    done = standing.wait()
    assert done.code == 0, done.stderr
    assert "439 frames read" in done.stderr


def test_a_ledger_that_lies_is_refused():
    buffer = bytearray(counters.ledger_bytes(3))
    counters.ledger_create(buffer, captures=1, workers=600)
    with pytest.raises(SharedMemoryError, match="smaller than it says"):
        finding.topology_of(memoryview(buffer))
    counters.ledger_create(buffer, captures=1, workers=1 << 40)
    with pytest.raises(SharedMemoryError, match="can't be"):
        finding.topology_of(memoryview(buffer))


    counters.ledger_create(buffer, captures=1, workers=1, outputs=17)
    with pytest.raises(SharedMemoryError, match="outputs can't be"):
        finding.topology_of(memoryview(buffer))


@pytest.mark.timeout(20)
def test_a_fifo_that_has_a_segment_s_name_holds_up_nobody(tmp_path):
    """Anybody may make one in /dev/shm, and hold it open without ever writing."""
    os.mkfifo(tmp_path / "fifo")
    held = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with (Sensor(1, {"ledger": f"/proc/self/fd/{held}"}) as sensor,
          pytest.raises(SharedMemoryError, match="can't map")):
        sensor.attach("ledger")
    os.close(held)


def test_what_is_gone_meanwhile_is_told(tmp_path):
    sensor = Sensor(1, {"ledger": str(tmp_path / "gone")})
    with pytest.raises(ProcessError, match="has just ended"):
        sensor.attach("ledger")


# ------------------------------------------------------------------------------------- snapshot


def test_a_snapshot_has_everything(standing, observer):
    seen = observer.snapshot()
    parts = standing.parts()
    assert {p.label: p.pid for p in seen.processes} == {
        "supervisor": standing.pid, "capture 0": parts["gazer:capture"].pid,
        "worker 0": parts["gazer:worker0"].pid, "worker 1": parts["gazer:worker1"].pid,
        "sink": parts["gazer:sink"].pid,
    }
    for p in seen.processes:
        assert p.state == "running" and p.starts == 1 and 0 <= p.silent < 2
        assert p.resident > 1 << 20 and 0 <= p.shared <= p.resident and 0 < p.age < 60
    assert [(r.kind, r.worker) for r in seen.rings] == [
        ("frames", 0), ("frames", 1), ("events", 0), ("events", 1)]
    assert all(r.capacity == 8 << 20 and 0 <= r.share < 0.01 for r in seen.rings)
    for name in counters.WORKER:
        assert seen.account.workers[name] == sum(one[name] for one in seen.workers)
    found = seen.standing()
    assert found.broken == ()
    assert found.in_flight["queries waiting for replies"] == 9
    assert found.in_flight["frames on their way to workers"] == 0


def test_how_long_a_process_has_lived_is_not_told_by_the_time_of_day(observer, monkeypatch):
    """Else all that have ever been started again would have been so just now."""
    observer.snapshot()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    assert all(0 < p.age < 60 for p in observer.snapshot().processes)


def test_a_process_that_proc_hides_is_not_missing(standing, observer, monkeypatch):
    """As those of the sensor are from the one that serves metrics, where /proc has hidepid."""
    pids = {standing.pid, standing.part("gazer:sink").pid}
    monkeypatch.setattr(psutil, "Process", Mock(side_effect=psutil.NoSuchProcess(1)))
    seen = observer.snapshot()
    assert {p.pid for p in seen.processes} >= pids
    assert all(p.state == "running" and not p.name for p in seen.processes)
    again = replace(seen, processes=tuple(replace(p, starts=2) for p in seen.processes))
    assert [*health.complaints(seen, again, again.standing(), health.Limits())] == []
    names = {family.name: family.samples for family in metrics.families(seen)}
    assert [value for _, value in names["gazer_process_up"]] == [True] * len(seen.processes)
    assert names["gazer_process_cpu_seconds"] == []
    monkeypatch.undo()
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert observer._process("worker", 0, gone.pid, None).state == "missing"


def test_what_is_known_of_processes_that_are_gone_is_forgotten(observer):
    observer._seen[1] = psutil.Process(1)
    seen = observer.snapshot()
    assert set(observer._seen) == {p.pid for p in seen.processes}


def test_a_copy_of_a_slot_does_not_move():
    buffer = bytearray(counters.ledger_bytes(2))
    counters.ledger_create(buffer)
    slot = counters.Slot(buffer, 1)
    slot.open(77)
    for n in (1, 2, 3):         # one in each bank, and once more
        slot.add(counters.SINK["events"], 10)
        slot.publish()
        seen = slot.seen()
        slot.add(counters.SINK["events"], 1)
        slot.publish()
        assert seen.read(counters.SINK)["events"] == 11 * n - 1
        assert seen.seen().read(counters.SINK)["events"] == 11 * n - 1
        assert (seen.pid, seen.starts, seen.state) == (77, 1, "starting")
        with pytest.raises(SharedMemoryError):
            seen.publish()


def test_what_is_in_flight_is_named_and_breaks_nothing():
    assert standing(account()).broken == ()
    assert not any(standing(account()).in_flight.values())
    found = standing(account(capture__frames=107, capture__delivered=107, sink__events=45,
                             output__events=40, output__done=40))
    assert found.broken == ()
    assert {what: n for what, n in found.in_flight.items() if n} == {
        "frames on their way to workers": 7, "events on their way to the sink": 5,
        "events on their way to output 0": 5}


def test_what_is_in_flight_of_a_live_sensor():
    found = standing(replace(account(capture__frames=101, capture__kernel_received=150,
                                     capture__kernel_dropped=9), live=True))
    assert found.broken == ()
    assert {what: n for what, n in found.in_flight.items() if n} == {
        "frames in the kernel's buffers": 40, "frames in the hand of capture": 1}


@pytest.mark.parametrize("changes", [
    {"workers__frames": 101, "workers__datagrams": 101},    # more taken than given
    {"sink__events": 51}, {"output__events": 51}, {"output__dropped": 1},
    {"capture__frames": 102}, {"workers__queries": 51}, {"workers__success": 49},
    {"workers__transactions": 49}, {"capture__joined": 1}, {"workers__octets": 1},
])  # fmt: skip
def test_what_does_not_add_up_is_told(changes):
    assert standing(account(**changes)).broken


def test_a_sum_that_does_not_hold_is_looked_at_again(observer, monkeypatch):
    """A moment's disorder is none; what lasts is."""
    real = observer.snapshot
    answers = [account(sink__events=51), account(sink__events=51), account()]

    def next_one():
        return replace(real(), account=answers.pop(0) if len(answers) > 1 else answers[0])

    monkeypatch.setattr(observer, "snapshot", next_one)
    _, found = observer.settled()
    assert found.broken == ()
    answers[:] = [account(sink__events=51)]
    _, found = observer.settled()
    assert found.broken


def test_quantiles():
    inf = float("inf")
    assert quantile({}, 0.5) is None and quantile({1.0: 0, inf: 0}, 0.5) is None
    assert quantile({1.0: 10, 2.0: 0, inf: 0}, 0.5) == 0.5
    assert quantile({1.0: 50, 2.0: 50}, 0.5) == 1.0
    assert quantile({1.0: 50, 2.0: 50}, 0.75) == 1.5
    assert quantile({1.0: 1, 2.0: 1, inf: 8}, 0.99) == 2.0     # as far as one can tell


def test_growth_of_gauges_and_of_successors():
    old = {"pending": 7, "frames": 10, "queries": 5}
    assert snapshot.growth(old, {"pending": 3, "frames": 15, "queries": 4}) == {
        "pending": 3, "frames": 5, "queries": 0}


# ---------------------------------------------------------------------------------------- stats


def test_stats_shows_every_counter_within_80_columns(gazer, standing):
    done = run(gazer, "stats", "--pid", standing.pid)
    assert done.code == 0 and not done.stderr
    assert max(map(len, done.lines)) <= 80
    text = done.stdout.decode()
    assert done.lines[0].startswith(f"sensor {standing.pid}, reading files for ")
    assert "1 capture process, 2 workers, 1 output" in done.lines[0]
    of_file = ("events", "bytes", "dropped", "stats", "done")
    for name in [*counters.CAPTURE, *counters.WORKER, *counters.SINK, *of_file]:
        if "." not in name:
            assert re.search(rf"^ .*\b{name} +\d+( |$)", text, re.M), name
    assert "spooled" not in text        # of fluentd outputs only
    assert re.search(r"\bqueries +118\b", text) and re.search(r"\bsuccess +109\b", text)
    assert re.search(r"^ +9  queries waiting for replies$", text, re.M)
    assert done.lines[-2:] == ["account", "  it adds up"]


def test_stats_as_json(gazer, standing):
    tree = json.loads(run(gazer, "stats", "--json", "--pid", standing.pid).stdout)
    assert tree["pid"] == standing.pid and tree["balances"] == {
        "hold": True, "broken": [], "open": False}
    assert set(tree["account"]["workers"]) == set(counters.WORKER)
    assert len(tree["workers"]) == 2
    assert sum(w["queries"] for w in tree["workers"]) == 118
    assert [p["role"] for p in tree["processes"]] == [
        "supervisor", "capture", "worker", "worker", "sink"]
    assert tree["in_flight"]["queries waiting for replies"] == 9


def test_wide_figures_stay_within_the_columns():
    big = dict.fromkeys(counters.WORKER, 10**12)
    assert max(map(len, stats.pairs(big))) <= 78
    assert stats.size(0) == "0 B" and stats.size(1536) == "1.5 KiB"
    assert stats.size(123 << 20) == "123 MiB" and stats.size(5 << 40) == "5.0 TiB"
    assert stats.span(59.9) == "59 s" and stats.span(3661) == "1 h 1 min"
    assert stats.span(-3) == "0 s" and stats.span(90000) == "1 d 1 h"


# --------------------------------------------------------------------------------------- health


def test_a_sensor_that_is_well(gazer, standing):
    done = run(gazer, "health", "--pid", standing.pid, "--window", 0.1)
    assert (done.code, done.stdout) == (0, b"well: sensor %d\n" % standing.pid)


def test_a_process_that_hangs(gazer, standing, observer):
    worker = standing.part("gazer:worker1")
    worker.suspend()

    def silent() -> bool:
        """worker 1 has been silent for longer than a busy machine makes the others"""
        return any(p.label == "worker 1" and p.silent > 2.2 for p in observer.snapshot().processes)

    eventually(silent)
    done = run(gazer, "health", "--pid", standing.pid, "--window", 0, "--silent", 2)
    worker.resume()
    assert done.code == 1
    assert re.fullmatch(rb"not well: worker 1 has shown no sign of life for \d+ s\n", done.stdout)


def test_a_process_that_is_missing(gazer, standing, observer):
    """The supervisor is held, so that the run does not end."""
    psutil.Process(standing.pid).suspend()
    sink = standing.part("gazer:sink")
    sink.kill()
    eventually(lambda: sink.status() == psutil.STATUS_ZOMBIE)
    found = health.examine(observer, health.Limits(window=0))
    assert found == ["sink is missing"]
    psutil.Process(standing.pid).resume()
    assert standing.wait(10.0).code == 1


def test_every_complaint(observer):
    limits = health.Limits()
    now = replace(observer.snapshot(), account=account())
    good = standing(account())

    def told(first=now, last=now, found=good, limits=limits):
        return [*health.complaints(first, last, found, limits)]

    def with_process(role, **changes):
        return replace(now, processes=tuple(
            replace(p, **changes) if p.role == role else p for p in now.processes))

    assert told() == []
    waits = dict.fromkeys(counters.CAPTURE, 0) | {"absent": 1}
    assert told(last=replace(now, captures=(waits,))) == ["capture 0 waits for its interface"]
    assert told(last=with_process("sink", state="missing")) == ["sink is missing"]
    assert told(last=with_process("sink", state="running", silent=5.1)) == [
        "sink has shown no sign of life for 5 s"]
    # It beats while it waits.
    assert told(last=with_process("sink", state="waiting", silent=0.1, waited=29)) == []
    assert told(last=with_process("sink", state="waiting", silent=0.1, waited=31)) == [
        "sink has been blocked for 31 s"]
    stands = replace(now, names=("/x/y.log",), account=account(
        output__blocked_since=int((now.time - 31) * 1e9)))
    assert told(last=stands) == ["output /x/y.log has taken nothing for 31 s"]
    assert told(last=replace(stands, names=())) == ["output 0 has taken nothing for 31 s"]
    assert told(last=stands, limits=health.Limits(blocked=32)) == []
    assert told(last=replace(stands, account=account(output__blocked_since=1 << 63))) == []
    assert told(last=with_process("capture", starts=2, age=3)) == [
        "capture 0 was started again 3 s ago"]
    assert told(last=with_process("capture", starts=2, age=61)) == []
    for output, wrong in (
        ({"output__servers": 2, "output__servers_up": 2}, []),
        ({"output__servers": 3, "output__servers_up": 1},
         ["output 0: 2 of 3 servers not connected"]),
        ({"output__spool_limit": 1000, "output__spool_bytes": 800}, []),
        ({"output__spool_limit": 1000, "output__spool_bytes": 831},
         ["output 0: its spool is 83% full"]),
        ({"output__spool_failing": 1}, ["output 0: its spool can't be written or read"]),
    ):
        assert told(last=replace(now, account=account(**output))) == wrong
    lost = replace(now, time=now.time + 2, account=account(
        output__spool_dropped=2, output__spool_damaged=3))
    assert told(last=lost) == ["5 events dropped in 2.0 s (spools)"]
    broken = standing(account(sink__events=51))
    (said,) = told(found=broken)
    assert said.startswith("the account does not add up: events: 1 more were taken than given")
    assert told(found=replace(broken, waiting=True)) == []
    later = replace(now, time=now.time + 2, account=account(
        capture__frames=103, capture__ring_dropped=3, output__events=49, output__dropped=1))
    assert told(last=later) == [
        "3 frames dropped in 2.0 s (rings)", "1 events dropped in 2.0 s (outputs)"]
    assert told(last=later, limits=health.Limits(window=0)) == []


@pytest.mark.parametrize("argument", ["x", "-1", "nan", "inf", "1e9", ""])
def test_a_wrong_threshold_is_a_wrong_command_line(gazer, argument):
    done = run(gazer, "health", f"--silent={argument}")
    assert done.code == 2 and len(done.said) == 1 and "number of seconds" in done.stderr
