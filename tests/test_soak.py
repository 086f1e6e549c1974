"""The soak's own parts: what it draws, what it sends, and that it would see what it looks for.  And
a few seconds of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest

from tests.netns import unavailable
from tests.oracle import build
from tests.soak import plan, traffic
from tests.soak.ledger import Written
from tests.soak.plan import DEADLY, MOST, WINDOW
from tests.soak.watch import ALLOWED, LIFE, WARM, Life, Watch

NAMES = ["gazer:capture", "gazer:metrics", "gazer:sink", "gazer:worker0", "gazer:worker1"]


# ------------------------------------------------------------------------------------- the plan


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_seed_draws_the_same_and_nobody_dies_too_often(seed):
    length = 1800
    actions = [*plan.plan(seed, length, NAMES)]
    assert actions == [*plan.plan(seed, length, NAMES)]
    assert actions != [*plan.plan(seed + 1, length, NAMES)]
    assert {a.what for a in actions} == set(plan.WEIGHTS)
    deaths = [(a.at, name) for a in actions if a.what in DEADLY for name in a.who]
    assert {name for _, name in deaths} == set(NAMES)
    for at, name in deaths:
        assert sum(name == n and 0 <= at - then < WINDOW for then, n in deaths) <= MOST
    for a in actions:
        assert a.what not in DEADLY or (a.who and not set(a.who) & set(a.spared))
        assert a.what not in DEADLY or a.at <= length - plan.CALM
    assert {name for a in actions for name in a.spared} == set(NAMES)


def test_what_a_soak_can_do_is_what_is_drawn():
    from tests.soak.machine import Machine

    able = {name.removeprefix("_do_") for name in dir(Machine) if name.startswith("_do_")}
    assert able == set(plan.WEIGHTS)


# ---------------------------------------------------------------------------------- the traffic


def test_each_exchange_makes_one_event_of_its_kind(gazer, tmp_path):
    """So that another one with the same name is one too many."""
    count = 200
    frames = [frame for n in range(count) for frame in traffic.exchange(n)]
    build.write_pcap(tmp_path / "in.pcap", [(i * 1_000_000, f) for i, f in enumerate(frames)])
    done = gazer("-r", tmp_path / "in.pcap", "-t", "-")
    found = {int(traffic.NAME.search(line.encode())[1]): json.loads(line.split("\t")[2])["status"]
             for line in done.lines}
    assert len(done.lines) == len(found) == count
    other = {traffic.UNANSWERED: "no_reply", traffic.UNASKED: "no_query"}
    assert found == {n: other.get(traffic.kind(n), "success") for n in range(count)}
    assert len(Counter(traffic.kind(n) for n in range(count))) == 6
    assert "5 repeated" not in done.stderr and "4 datagrams put together" in done.stderr


# ----------------------------------------------------------------------------------- the ledger


def line(n, **fields):
    return f"2026\ttx\t{json.dumps({'name': f'n{n:09d}.soak.example', **fields})}\n"


def stats(start, end, frames=1, **fields):
    event = {"balanced": True, "interval_start": start, "interval_end": end, "frames": frames}
    return f"2026\tdns-gazer.stats\t{json.dumps(event | fields)}\n"


WHOLE = [line(6), stats(0.0, 5.0), line(8), stats(5.0, 9.0, 2), stats(5.0, 11.0, 3), line(7),
         stats(11.0, 12.0, 4, last=True)]


@pytest.mark.parametrize(("lines", "said"), [
    (WHOLE, None),
    ([*WHOLE, line(6)], "twice"),
    ([*WHOLE, line(9)[:-1]], "half a line"),
    ([*WHOLE, "2026\ttx\t{}\n"], "without a name"),
    ([*WHOLE[:3], *WHOLE[4:]], None),           # one that the next tells of, too
    ([WHOLE[0], *WHOLE[2:]], None),             # none can be said to lack ahead of the first
    ([*WHOLE[:3], WHOLE[-1]], "no stats event from 5.0 to 11.0"),
    (WHOLE[:-1], "no last stats event"),
    ([stats(0.0, 5.0, balanced=False), stats(5.0, 6.0, last=True)], "does not add up"),
])
def test_what_is_wrong_in_the_files_is_found(tmp_path, lines, said):
    found = []
    written = Written("text", found.append)
    half = len(lines) // 2
    for part, some in enumerate((lines[:half], lines[half:])):      # in two files
        path = tmp_path / f"text.{part}"
        path.write_text("".join(some))
        written.read(path)
    sums = written.intervals()
    assert len(found) == (said is not None) and all(said in text for text in found), found
    if lines is WHOLE:
        assert sums["frames"] == 8 and written.events == 7
        assert written.missing(range(6, 12)) == 3       # 9, 10 and 11
        assert written.missing(range(50, 51)) == 0      # over TCP


# ---------------------------------------------------------------------------------- the watching


def life(memory, descriptors, pid=1, seconds=300):
    made = Life("gazer:sink", pid, 1000.0)
    made.samples = [(1000.0 + at, int(memory(at)), int(descriptors(at)))
                    for at in range(0, seconds, 3)]
    return made


@pytest.mark.parametrize(("memory", "descriptors", "said"), [
    (lambda at: 20 << 20, lambda at: 30, None),
    (lambda at: (20 << 20) + min(at, WARM) * (1 << 20), lambda at: 30, None),   # warming up
    (lambda at: (20 << 20) + at % 2 * (8 << 20), lambda at: 30 + at % 4, None),    # noise
    (lambda at: (20 << 20) + (at > 120) * (10 << 20), lambda at: 30, None),     # a burst
    (lambda at: (20 << 20) + (at > 210) * (10 << 20), lambda at: 30, None),
    (lambda at: (20 << 20) + at * ALLOWED / 80, lambda at: 30, "memory"),
    (lambda at: (20 << 20) + at // 60 * 3 * ALLOWED, lambda at: 30, "memory"),
    (lambda at: 20 << 20, lambda at: 30 - (50 < at < 80), None),    # its receiver was away
    (lambda at: 20 << 20, lambda at: 30 + (at > 180), "descriptors"),
])
def test_what_grows_is_found_and_what_is_noise_is_not(memory, descriptors, said):
    watch = Watch()
    watch.lives[1] = life(memory, descriptors)
    found = [*watch.growth()]
    assert len(found) == (said is not None) and all(said in text for text in found), found


def test_descriptors_that_successors_inherit_are_found():
    watch = Watch()
    watch.lives = {pid: life(lambda at: 1 << 20, lambda at, pid=pid: 30 + pid, pid, int(LIFE) - 3)
                   for pid in range(5)}
    assert ["successor" in text for text in watch.growth()] == [True]


# -------------------------------------------------------------------------------------- a soak


def test_a_few_seconds_of_it(tmp_path):
    if why := unavailable():
        pytest.skip(why)
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--minutes", "0.1", "--seed", "4", "-v"],
        capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0 and "no breach (seed 4)" in done.stdout, done.stdout + done.stderr


def test_actions_come_at_their_times():
    ats = [a.at for a in islice(plan.plan(5, 600, NAMES), 100)]
    assert ats == sorted(ats) and ats[0] == 5.0
