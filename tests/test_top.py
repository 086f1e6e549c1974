"""gazer.observe.top: what a screen shows, and that the terminal is left as it was."""

from __future__ import annotations

import os
import signal
from collections import namedtuple
from dataclasses import replace

import pytest

from gazer.errors import ProcessError
from gazer.observe import top
from gazer.observe.snapshot import Fill, Process, Snapshot
from gazer.observe.top import Asked, Sampler, duration, screen, short
from tests.conftest import CAPTURES
from tests.observed import account, snapshot

RESOLVER = (CAPTURES / "resolver.pcap").read_bytes()

Seen = namedtuple("Seen", "number clock name type client rcode status")


def processes(workers: int) -> tuple[Process, ...]:
    return (
        Process("supervisor", 0, 100, "", "running", cpu=1.0, resident=20 << 20, shared=8 << 20),
        Process("capture", 0, 101, "", "running", cpu=5.0, resident=20 << 20, shared=8 << 20),
        *(Process("worker", i, 200 + i, "", "running", cpu=float(i), resident=9 << 20)
          for i in range(workers)),
        Process("sink", 0, 102, "", "waiting", cpu=2.0, resident=20 << 20),
    )


def two(workers: int = 2) -> tuple[Snapshot, Snapshot]:
    """Two snapshots, two seconds apart."""
    run = {"captures": 1, "workers": workers, "outputs": 1, "live": 1, "started": 0,
           "max_pending": 1000}
    old = snapshot(
        time=10.0, wall=100.0, run=run, processes=processes(workers), account=account(),
        workers=({"latency.le.64": 0, "latency.le.1024": 5, "latency.le.inf": 0},) * workers,
        rings=(Fill("frames", 0, 2048, 4096), Fill("events", 0, 0, 4096),
               Fill("events", 1, 1024, 4096)))
    new = replace(
        old, time=12.0, wall=102.0,
        processes=tuple(replace(p, cpu=p.cpu + 1.0) for p in old.processes),
        account=account(capture__frames=25_110, capture__delivered=25_100, capture__ring_dropped=10,
                        workers__frames=25_100, workers__datagrams=25_100, workers__pending=250),
        workers=({"latency.le.64": 10, "latency.le.1024": 15, "latency.le.inf": 0},) * workers)
    return old, new


def asked(*samples: tuple[str, str, str, str]) -> Asked:
    made = Asked()
    for one in samples:
        made.add(*one)
    return made


def row(lines: list[str], begin: str) -> list[str]:
    return next(line for line in lines if line.startswith(begin)).split()


def test_a_fluentd_output_has_a_line():
    old, new = two()
    line = {"output__servers": 2, "output__servers_up": 1, "output__unacknowledged": 32}
    one = screen(100, old, replace(new, account=account(**line)), asked())
    assert row(one, "output 0") == [
        "output", "0", "1", "of", "2", "servers", "up,", "32", "chunks", "under", "way"]
    spool = account(**line, output__spool_limit=1 << 30, output__spool_bytes=12 << 20,
                    output__spool_events=4711)
    two_ = screen(100, old, replace(new, account=spool), asked())
    found, = [text for text in two_ if text.startswith("output 0")]
    assert found.endswith(", 32 chunks under way, spool 1%, 4711 events")
    assert max(map(len, one + two_)) <= 79 and len(two_) <= 23
    assert not [text for text in screen(100, old, new, asked()) if text.startswith("output 0")]


def test_an_output_that_takes_nothing_has_a_line():
    old, new = two()
    new = replace(new, names=("/var/log/" + "x" * 40,),
                  account=account(output__blocked_since=int(7.5e9), output__events=30))
    found, = [text for text in screen(100, old, new, asked()) if text.startswith("output 0")]
    assert found == f"output 0    TAKES NOTHING for 4 s: ~{'x' * 23}, 20 wait"
    both = replace(new, names=("fluentd at a:1",), account=account(
        output__blocked_since=int(7.5e9), output__servers=1))
    found = [text for text in screen(100, old, both, asked()) if text.startswith("output 0")]
    assert [text.split(maxsplit=2)[2][:13] for text in found] == ["TAKES NOTHING", "0 of 1 server"]


def test_a_screen():
    old, new = two()
    lines = screen(100, old, new, asked())
    assert len(lines) <= 23 and max(map(len, lines)) <= 79
    assert lines[0].startswith("gazer 100, live, up 1 min 42 s")
    assert lines[1].startswith("NOT WELL: the account does not add up")
    names, rates = row(lines, "         frames"), row(lines, "/s     ")
    assert dict(zip(names, rates[1:], strict=True)) == {
        "frames": "12.5k", "messages": "12.5k", "queries": "0", "replies": "0", "success": "0",
        "no_reply": "0", "no_query": "0", "written": "0"}
    assert row(lines, "latency") == [
        "latency", "p50", "64", "us", "p90", "832", "us", "p99", "1", "ms",
        "pending", "250", "of", "1000", "(25%)"]
    assert lines[8].split() == ["/s", "0", "0", "5", "0", "0"]
    assert row(lines, "in all")[2:] == ["0", "0", "10", "0", "0"]
    assert row(lines, "capture 0") == ["capture", "0", "101", "running", "50%", "12.0", "MiB"]
    assert row(lines, "worker 0")[-2:] == ["##########..........", "50%"]
    assert row(lines, "sink")[-2:] == ["#####...............", "25%"]   # the fullest


def test_a_sensor_that_is_well_says_so():
    old, _ = two()
    assert screen(1, old, replace(old, time=11.0), asked())[1] == "well; the account adds up"


def test_what_is_asked_most():
    old, new = two()
    lines = screen(1, old, new, asked(
        *[("www.example.", "192.0.2.1", "A", "NOERROR")] * 3,
        ("x" * 300 + ".", "2001:db8:1111:2222:3333:4444:5555:6666", "AAAA", ""),
        ("", "192.0.2.1", "", "FORMERR"),
        ("\x1b[2J.", "192.0.2.1", "A", "NOERROR")))
    assert len(lines) <= 23 and max(map(len, lines)) <= 79
    head = next(i for i, line in enumerate(lines) if line.startswith("names"))
    assert lines[head].split() == ["names", "clients", "types", "rcodes"]
    assert lines[head + 1].split() == [
        "50%", "www.example.", "83%", "192.0.2.1", "67%", "A", "67%", "NOERROR"]
    text = "\n".join(lines)
    assert "x~ " in text and "\x1b" not in text and "2001:db8:1111:~" in text


@pytest.mark.parametrize("rows", [24, 30, 50])
@pytest.mark.parametrize("workers", [1, 2, 8, 64])
def test_any_number_of_workers_fits(workers, rows):
    old, new = two(workers)
    samples = [(f"{i}.example.", "192.0.2.1", "A", "") for i in range(50)]
    lines = screen(1, old, new, asked(*samples), rows=rows)
    assert len(lines) <= rows - 1
    assert any(line.startswith("names") for line in lines)
    shown = [line for line in lines if line.startswith("worker ")]
    rest = [line for line in lines if line.startswith("and ")]
    assert any(line.startswith("sink") for line in lines)
    if rest:
        assert int(rest[0].split()[1]) + len(shown) == workers
        assert f"worker {workers - 1} " in shown[-1]    # the busiest stay
    else:
        assert len(shown) == workers


def test_one_worker_is_never_left_out_for_a_line_that_says_so():
    """Five processes and a fluentd output are one line too many for the smallest screen."""
    old, new = two(1)
    new = replace(
        new, account=account(output__servers=1),
        processes=(*new.processes, Process("metrics", 0, 103, "", "running", resident=9 << 20)))
    lines = screen(1, old, new, asked(*[(f"{i}.example.", "192.0.2.1", "A", "")
                                        for i in range(50)]))
    assert len(lines) <= 23 and not [line for line in lines if line.startswith("and ")]
    assert row(lines, "worker 0") and row(lines, "metrics")
    assert any(line.startswith("names") for line in lines)


def test_old_samples_are_forgotten(monkeypatch):
    monkeypatch.setattr(top, "WINDOW", 3)
    made = asked(*[("a.", "c", "A", "NOERROR")] * 5, *[("b.", "c", "A", "NOERROR")] * 2)
    assert made.total() == 3
    assert made.counts["names"] == {"a.": 1, "b.": 2}
    made = asked(*[("b.", "c", "A", "")] * 3)
    assert set(made.counts["names"]) == {"b."}


@pytest.mark.parametrize(("value", "text"), [
    (0, "0"), (0.4, "0"), (999, "999"), (1000, "1.0k"), (12_345, "12.3k"), (99_960, "100k"),
    (999_400, "999k"), (999_600, "1.0M"), (1.5e7, "15.0M"), (2e9, "2000M"),
])  # fmt: skip
def test_rates_for_reading(value, text):
    assert short(value) == text


@pytest.mark.parametrize(("value", "text"), [
    (None, "-"), (0.000064, "64 us"), (0.00123, "1.23 ms"), (0.25, "250 ms"), (2.5, "2.5 s"),
])  # fmt: skip
def test_latencies_for_reading(value, text):
    assert duration(value) == text


# ------------------------------------------------------------------------------ in a terminal


LEFT = b"\x1b[?1049l"       # xterm: back from the other screen


@pytest.mark.parametrize("key", [b"q", b"Q", b"\x03"])
def test_a_key_ends_it(terminal, standing, key):
    shown = terminal("top", "--pid", standing.pid, "--interval", 0.2)
    shown.shows(b"gazer %d, reading files" % standing.pid)
    shown.shows(b"q quits")
    shown.press(key)
    assert shown.end() == 0
    assert LEFT in shown.output


def test_it_follows_the_terminals_size(terminal, standing):
    shown = terminal("top", "--pid", standing.pid, "--interval", 0.2)
    end = shown.shows(b"q quits")
    shown.resize(40, 120)
    end = shown.shows(b"\x1b[40d", end)      # the row of what keys do
    shown.resize(5, 20)                         # too small for all: the upper left is shown
    end = shown.shows(b"gazer %d" % standing.pid, end)
    shown.resize(24, 80)
    shown.shows(b"sink", end)
    shown.press(b"q")
    assert shown.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_the_terminal_as_it_was(terminal, standing, number):
    shown = terminal("top", "--pid", standing.pid)
    shown.shows(b"q quits")
    shown.process.send_signal(number)
    assert shown.end() == 0
    assert LEFT in shown.output


def test_the_sensors_end_is_told_behind_the_screen(terminal, standing, fifo):
    shown = terminal("top", "--pid", standing.pid, "--interval", 0.2)
    shown.shows(b"q quits")
    fifo.write(RESOLVER[40_000:])
    fifo.close()
    assert standing.wait().code == 0
    assert shown.end() == 1
    behind = shown.output[shown.output.index(LEFT):]
    assert b"gazer: the sensor (pid %d) has ended\r\n" % standing.pid in behind
    assert b"Traceback" not in shown.output


def test_a_mistake_of_ours_leaves_the_terminal_as_it_was(terminal, standing, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import gazer.observe.top as t\ndef wrong(*a): raise RuntimeError('wrong')\n"
        "t._draw = wrong\n")
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    shown = terminal("top", "--pid", standing.pid, PYTHONPATH=path)
    assert shown.end() == 1
    assert LEFT in shown.output
    assert b"RuntimeError: wrong" in shown.output[shown.output.index(LEFT):]


def test_without_a_terminal_it_says_what_to_do(gazer, standing, terminal):
    done = gazer("top", "--pid", standing.pid, command="gazer")
    assert (done.code, done.said) == (2, [
        "gazer: gazer top needs a terminal; --once prints one screen as text"])
    shown = terminal("top", "--pid", standing.pid, TERM="no-such-terminal")
    assert shown.end() == 2
    assert b"TERM=no-such-terminal) can't be used" in shown.output


def test_once(gazer, standing):
    done = gazer("top", "--once", "--interval", 0.1, "--pid", standing.pid, command="gazer")
    assert done.code == 0 and not done.stderr
    assert len(done.lines) <= 24 and max(map(len, done.lines)) <= 80
    assert done.lines[0].startswith(f"gazer {standing.pid}, reading files, up ")
    assert done.lines[1] == "well; the account adds up"
    assert row(done.lines, "worker 1")[3] == "running"


def test_a_sensor_without_samples_has_no_lists(standing):
    from gazer.observe.find import find

    with find(standing.pid) as found:
        sampler = Sampler(found, 2)
        made = Asked()
        sampler.into(made)
        assert made.total() == 0
        sampler.close()


def test_the_end_is_seen(standing, fifo):
    from gazer.observe.find import find
    from gazer.observe.snapshot import Observer

    with find(standing.pid) as found:
        observer = Observer(found.attach, found.pid)
        feed = top.Feed(found, observer)
        feed.next()
        fifo.write(RESOLVER[40_000:])
        fifo.close()
        assert standing.wait().code == 0
        with pytest.raises(ProcessError, match="has ended"):
            feed.next()
        feed.close()
        observer.close()
