"""Processes, signals and deaths: what the operator sees, and what is left behind (nothing)."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import time
from functools import lru_cache
from pathlib import Path

import psutil
import pytest

from gazer.service.run import SAME
from tests.conftest import CAPTURES, COMMANDS, Fifo, Live, eventually, whole_lines
from tests.oracle import build, compare

RESOLVER = (CAPTURES / "resolver.pcap").read_bytes()
PARTS = {"gazer:sink", "gazer:worker0", "gazer:worker1", "gazer:capture"}


@lru_cache
def expected() -> list[str]:
    return compare.expected_lines(CAPTURES / "resolver.pcap")


def half_fed(gazer, fifo: Fifo, *args: object, **how: object) -> tuple[Live, Path]:
    """A run that has written events of the first half of a capture, and waits for the rest."""
    out = fifo.path.with_name("out")
    live = gazer.start("-r", fifo.path, "-t", out, "--workers", 2, *args, **how)
    fifo.write(RESOLVER[:40_000])

    def written() -> bool:
        """the first events are written"""
        return out.exists() and out.stat().st_size > 0

    eventually(written, 20.0)
    return live, out


def half_fed_with(
    gazer, fifo: Fifo, number: signal.Signals, handler: signal.Handlers
) -> tuple[Live, Path]:
    """The same, started by someone who has set that signal so."""
    before = signal.signal(number, handler)
    try:
        return half_fed(gazer, fifo)
    finally:
        signal.signal(number, before)


def gone(pids: list[int]) -> bool:
    """all processes have ended"""
    def alive(pid: int) -> bool:
        try:    # whoever inherits an orphan may take its time to reap it
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return not any(map(alive, pids))


# ---------------------------------------------------------------------------------------- deaths


@pytest.mark.parametrize("name", sorted(PARTS))
def test_a_child_that_is_killed_ends_the_run(gazer, fifo, name):
    live, out = half_fed(gazer, fifo)
    parts = live.parts()
    assert set(parts) == PARTS
    os.kill(parts[name].pid, signal.SIGKILL)
    done = live.wait(10.0)
    assert done.code == 1
    assert f"gazer: {name} was killed by SIGKILL; the run is over" in done.said
    assert any("not in this account" in line for line in done.said)
    assert gone([part.pid for part in parts.values()])
    data = out.read_bytes()
    if name != "gazer:sink":        # it may be killed in the middle of a line
        assert data.endswith(b"\n")
    whole = data[: data.rindex(b"\n")].decode().split("\n")
    assert compare.diff(expected()[: len(whole)], whole) == ""


def test_children_die_with_the_supervisor_and_nothing_stays(gazer, fifo):
    live, _ = half_fed(gazer, fifo)
    pids = [part.pid for part in live.parts().values()]
    segments = live.segments()
    assert len(segments) == 5
    assert not segments & set(os.listdir("/dev/shm"))
    live.signal(signal.SIGKILL)
    assert live.wait(5.0).code == -signal.SIGKILL
    eventually(lambda: gone(pids), 1.0)


def test_shared_memory_that_was_killed_in_the_making_is_swept(gazer):
    """It had its name still; the lock went with its maker."""
    left = Path("/dev/shm", f"gazer-{os.urandom(4).hex()}-frames0")
    left.touch()
    done = gazer("-r", CAPTURES / "captured.pcap", "-t", "-")
    assert done.code == 0
    assert not left.exists()


def test_two_runs_beside_one_another(gazer, fifo):
    live, out = half_fed(gazer, fifo)
    assert gazer("-r", CAPTURES / "captured.pcap", "-t", "-").code == 0
    fifo.write(RESOLVER[40_000:])
    fifo.close()
    done = live.wait()
    assert done.code == 0, done.stderr
    assert compare.diff(expected(), whole_lines(out.read_bytes())) == ""


def test_ps_shows_who_is_who(gazer, fifo):
    live, _ = half_fed(gazer, fifo)
    titles = {"gazer: sink", "gazer: worker 0", "gazer: worker 1", "gazer: capture"}
    family = [live.pid, *(part.pid for part in live.parts().values())]
    shown = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in family]
    assert shown[0] == b"gazer: supervisor\0"
    assert {line.decode().rstrip("\0") for line in shown[1:]} == titles
    assert not any(b"\0\0" in line for line in shown)      # ps would show blanks
    assert Path(f"/proc/{live.pid}/comm").read_text() == "gazer\n"


def test_usr1_writes_the_counters_and_all_goes_on(gazer, fifo):
    live, out = half_fed(gazer, fifo)
    live.signal(signal.SIGUSR1)
    live.says(f"events written to {out}")
    assert re.search(r"gazer: \d+ frames read: ", live.stderr)
    os.killpg(live.pid, signal.SIGUSR1)         # the children get it too
    eventually(lambda: live.stderr.count("frames read") == 2)
    fifo.write(RESOLVER[40_000:])
    fifo.close()
    done = live.wait()
    assert done.code == 0, done.stderr
    assert compare.diff(expected(), whole_lines(out.read_bytes())) == ""


# --------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_finishes_what_has_been_read(gazer, fifo, number):
    # Whoever runs the tests may have it ignored.
    live, out = half_fed_with(gazer, fifo, number, signal.SIG_DFL)
    pids = [part.pid for part in live.parts().values()]
    live.signal(number)
    done = live.wait(10.0)
    assert done.code == 1
    assert "stopping: what has been read is finished" in done.said[0]
    assert f"gazer: interrupted: {fifo.path} was not read to its end" in done.said
    assert gone(pids)

    # All that was read is there: what the whole frames of the first half make.
    cut = fifo.path.with_name("cut.pcap")
    cut.write_bytes(RESOLVER[:40_000])
    assert compare.diff(compare.expected_lines(cut), whole_lines(out.read_bytes())) == ""
    frames = int(re.search(r"(\d+) frames read", done.stderr)[1])
    assert 100 < frames < 439


def test_files_behind_an_interrupted_one_are_told(gazer, fifo):
    live, _ = half_fed(gazer, fifo, "-r", CAPTURES / "captured.pcap")
    live.signal(signal.SIGINT)
    done = live.wait(10.0)
    assert done.code == 1
    assert f"gazer: interrupted: {fifo.path} was not read to its end, nor 1 more" in done.said


def test_the_whole_group_gets_the_signal(gazer, fifo):
    """A terminal's Ctrl-C goes to the children too: they must live on."""
    live, out = half_fed(gazer, fifo)
    os.killpg(live.pid, signal.SIGINT)
    done = live.wait(10.0)
    assert done.code == 1
    assert "killed" not in done.stderr
    assert out.read_bytes().endswith(b"\n")


def test_a_signal_that_comes_twice_is_one(gazer, fifo):
    """timeout(1) signals its child, and then the group that both are in."""
    live, out = half_fed(gazer, fifo)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        live.signal(number)
    os.killpg(live.pid, signal.SIGTERM)
    done = live.wait(10.0)
    assert (done.code, done.stderr.count("stopping: ")) == (1, 1)
    assert "stopped at once" not in done.stderr
    assert f"gazer: interrupted: {fifo.path} was not read to its end" in done.said
    assert out.read_bytes().endswith(b"\n")


@pytest.mark.skipif(shutil.which("timeout") is None, reason="timeout is not there")
def test_under_a_timeout_it_stops_in_order(gazer, fifo):
    """The command itself; what it does when its time is over it does when it is stopped as well."""
    live, _ = half_fed(gazer, fifo, prefix=("timeout", "600"))
    live.signal(signal.SIGTERM)
    done = live.wait(10.0)
    assert (done.code, done.stderr.count("stopping: ")) == (1, 1)
    assert "stopped at once" not in done.stderr
    assert f"gazer: interrupted: {fifo.path} was not read to its end" in done.said


def test_a_second_signal_ends_it_at_once(gazer, fifo):
    """Even with an output that is stuck for good: a pipe that nobody reads."""
    read, write = os.pipe()
    live = gazer.start("-r", fifo.path, "-R", "-t", "-", stdout=write)
    fifo.write(RESOLVER)    # makes more lines than the pipe holds

    def full() -> bool:
        """the pipe is full"""
        return not select.select([], [write], [], 0)[1]

    eventually(full, 20.0)
    live.signal(signal.SIGINT)
    live.says("stopping")
    time.sleep(SAME / 1e9)      # what comes sooner is the same signal
    live.signal(signal.SIGINT)
    start = time.monotonic()
    done = live.wait(10.0)
    os.close(read)
    os.close(write)
    assert time.monotonic() - start < 5.0
    assert done.code == 1
    assert "stopped at once" in done.stderr


def test_a_signal_while_a_fifo_has_no_writer(gazer, tmp_path):
    os.mkfifo(tmp_path / "in")
    live = gazer.start("-r", tmp_path / "in", "-t", "-")
    live.part("gazer:capture")
    live.signal(signal.SIGTERM)
    done = live.wait(10.0)
    assert done.code == 1
    assert "was not read to its end" in done.stderr


def test_ignored_signals_stay_ignored(gazer, fifo):
    """nohup, and jobs in the background of a shell without job control."""
    live, _ = half_fed_with(gazer, fifo, signal.SIGHUP, signal.SIG_IGN)
    live.signal(signal.SIGHUP)
    fifo.write(RESOLVER[40_000:])
    fifo.close()
    done = live.wait()
    assert done.code == 0, done.stderr


# ------------------------------------------------------------------------------------------ idle


def test_an_idle_run_sleeps(gazer, fifo):
    live, _ = half_fed(gazer, fifo)
    family = [psutil.Process(live.pid), *live.parts().values()]

    def used() -> int:
        """CPU time in ns; the clock ticks of cpu_times() are as long as what is measured."""
        threads = (t for p in family for t in Path(f"/proc/{p.pid}/task").iterdir())
        return sum(int((t / "schedstat").read_text().split()[0]) for t in threads)

    seconds = 3
    before = used()
    time.sleep(seconds)
    assert used() - before <= 0.01 * seconds * 1e9


def test_an_event_is_written_though_nothing_follows(gazer, fifo):
    """Its frames are complete; the file, and even the pipe, goes on for ever."""
    out = fifo.path.with_name("out")
    gazer.start("-r", fifo.path, "-t", out, "--workers", 3)
    query = build.query("www.example.", "A", id=77)
    reply = build.reply(query, "www.example. 60 IN A 192.0.2.1")
    ends = "198.51.100.7", 4000, "192.0.2.53", 53
    frames = [(10**18, build.frame(build.udp(*ends, query))),
              (10**18 + 1000, build.frame(build.udp(*ends[2:], *ends[:2], reply)))]
    whole = build.pcap(frames, nanoseconds=True)
    fifo.write(whole[:-1])
    eventually(out.exists, 20.0)
    time.sleep(1.0)                 # without its last byte the reply is nothing yet
    assert out.read_bytes() == b""
    fifo.write(whole[-1:])
    start = time.monotonic()
    eventually(lambda: out.read_bytes().count(b'"status": "success"') == 1, 5.0)
    assert time.monotonic() - start < 1.0


# ------------------------------------------------------------------------- what a child is given


def test_a_child_holds_nothing_of_the_supervisors(gazer, fifo, tmp_path):
    pid_file = tmp_path / "pid"
    live, _ = half_fed(gazer, fifo, "-p", pid_file)
    everything = live.segments()
    token = {name.split("-")[0] for name in everything}
    assert len(token) == 1
    own = {
        "gazer:sink": {"ledger", "events0", "events1"},
        "gazer:worker0": {"ledger", "frames0", "events0"},
        "gazer:worker1": {"ledger", "frames1", "events1"},
        "gazer:capture": {"ledger", "frames0", "frames1"},
    }
    for name, part in live.parts().items():
        maps = Path(f"/proc/{part.pid}/maps").read_text()
        assert set(re.findall(r"/dev/shm/gazer-\w+-(\w+)", maps)) == own[name]
        held = [os.readlink(fd) for fd in Path(f"/proc/{part.pid}/fd").iterdir()]
        assert not any(str(pid_file) in path for path in held)
        # SharedMemory holds one for each, and mmap another.
        assert sum("/dev/shm/" in path for path in held) == 2 * len(own[name])
        assert sum("eventfd" in path for path in held) == 4
        status = Path(f"/proc/{part.pid}/status").read_text()
        assert "Threads:\t1\n" in status


def test_pid_file(gazer, fifo, tmp_path):
    pid_file = tmp_path / "gazer.pid"
    live, _ = half_fed(gazer, fifo, "-p", pid_file)
    assert pid_file.read_text() == f"{live.pid}\n"
    second = gazer("-r", CAPTURES / "captured.pcap", "-t", "-", "-p", pid_file)
    assert (second.code, second.stdout) == (1, b"")
    assert f"(pid {live.pid})" in second.stderr
    fifo.close()
    assert live.wait(10.0).code in (0, 1)
    assert not pid_file.exists()

    # One that a killed run left is taken over.
    pid_file.write_text("1\n")
    assert gazer("-r", CAPTURES / "captured.pcap", "-t", "-", "-p", pid_file).code == 0
    assert not pid_file.exists()


def test_a_closed_stderr_is_no_reason_to_stop(gazer):
    done = gazer("-c", 'exec "$@" 2>&-', "x", *COMMANDS["dns-gazer"],
                 "-r", CAPTURES / "resolver.pcap", "-t", "-", command="bash")
    assert done.code == 0
    assert compare.diff(expected(), done.lines) == ""
