"""The id of an event: what it is by its key, that no two events share one, and that an event which
comes again has the one that it had.

What is expected is made here from the frames that were fed and from the keys in the ring; the
worker is killed at each step that it takes, the sink at each point of its protocol.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import signal
from collections import Counter, defaultdict

import msgpack
import pytest

from gazer import event
from tests import test_succession_sink as sink
from tests.conftest import CAPTURES, eventually
from tests.oracle import build
from tests.sensor import ended, exchange
from tests.succession import NS, START, Limits, Step, World
from tests.test_encode import id_of
from tests.test_engine import SERVER, ask, tell
from tests.test_engine_streams import AXFR, Connection, framed, hosts, soa
from tests.test_succession_worker import carried, chat, killed_at_random, torn_script

pytest_plugins = ["tests.sensor"]

RUN = 1_764_000_000_123_456_789
SHAPE = re.compile(r"(.+):([0-9a-f]{16}):(\d+):(\d+):(\d+)(?:@([0-9a-f]{16}))?", re.S)


def named(line: dict) -> str:
    return line["event_id"]


def apart(name: str) -> tuple[int, int, int]:
    """The frame's number with its capture process, the index, and the clock or 0."""
    found = SHAPE.fullmatch(name)
    assert found and found[1] == "s" and int(found[2], 16) == RUN, name
    return (int(found[3]) << 56 | int(found[4]), int(found[5]),
            int(found[6], 16) if found[6] else 0)


def fed(script: list[Step]) -> dict[int, int]:
    """Number of each frame of the script -> its clock."""
    clocks: dict[int, int] = {}
    counts: Counter[int] = Counter()
    for step in script:
        if step.frame is not None:
            counts[step.lane] += 1
            clocks[step.lane << 56 | counts[step.lane]] = START + round(step.clock * NS)
    return clocks


def meant(world: World) -> list[str]:
    """The ids that events of these keys have, in this order, if nobody has died."""
    clocks, seen, names = fed(world.script), Counter(), []
    for clock, number, _ in world.events:
        late = 0 if clocks[number] == clock else clock
        names.append(id_of("s", RUN, (number, seen[clock, number], late)))
        seen[clock, number] += 1
    return names


# --- the scripts ---------------------------------------------------------------------------------


def waits() -> list[Step]:
    """All that leaves later than its frame, several at once where that can be: queries of one
    segment, what an idle connection hands on and what waits because of that, a transfer."""
    a, b, c = (Connection(port=41000 + n) for n in range(3))
    a.segment(0, b"".join(framed(build.query(f"a{i}.example.", id=i)) for i in range(3)))
    # A hole: what is behind it is handed on when the connection has been idle for long enough.
    b.query(build.query("b.example.", id=9))
    b.next[0] += 40
    b.segment(0, b"".join(framed(build.query(f"b{i}.example.", id=20 + i)) for i in range(3)))
    c.query(AXFR)
    c.query(build.query("c.example.", id=8))
    c.reply(build.reply(AXFR, soa(1), *hosts(1, 2)))
    frames = [frame for each in itertools.zip_longest(a.frames, b.frames, c.frames)
              for frame in each if frame]
    script = [Step(0, i / 10, frame) for i, frame in enumerate(frames)]
    return [*script, Step(0, 5), Step(0, 30), Step(0, 400, ask(id=5)), Step(0, 500), Step(0, None)]


def one_clock() -> list[Step]:
    """Three lanes, and whole seconds only: what is due stands at the clocks of frames."""
    return [Step(s.lane, s.clock and round(s.clock), s.frame)
            for s in chat(36, seed=9, lanes=3, every=6)]


WORLDS = {
    "one lane": (chat(50, seed=1), Limits(run=RUN, records=True)),
    "three lanes": (chat(50, seed=3, lanes=3), Limits(run=RUN, lanes=3)),
    "three lanes at one clock": (one_clock(), Limits(run=RUN, lanes=3, timeout=4)),
    "a full table": (chat(50, seed=4), Limits(run=RUN, max_pending=4, timeout=1000, records=True)),
    "connections": (carried(), Limits(run=RUN, records=True)),
    "what waits": (waits(), Limits(run=RUN, records=True)),
    "few connections": (waits(), Limits(run=RUN, records=True, max_streams=2)),
    "torn frames": (torn_script(), Limits(run=RUN, records=True, events=1 << 16)),
}


@functools.cache
def undisturbed(name: str) -> World:
    script, limits = WORLDS[name]
    world = World(script, limits, name == "torn frames", stride=2).run(watched=True)
    assert len(world.events) > 5
    return world


# --- the worker ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORLDS)
def test_an_id_is_the_key_and_the_place_under_it(name):
    world = undisturbed(name)
    keys = [(clock, number) for clock, number, _ in world.events]
    assert keys == sorted(keys)
    names = [named(line) for line in world.lines()]
    assert names == meant(world) and len(set(names)) == len(names)


def test_the_scripts_have_every_kind():
    kinds = set()
    for name in WORLDS:
        world = undisturbed(name)
        for line in world.lines():
            _, index, late = apart(named(line))
            kinds.add((line.get("status", "record"), late > 0, index > 0))
    assert kinds >= {
        ("record", False, False), ("record", False, True), ("record", True, True),
        ("success", False, False), ("success", False, True),
        ("no_reply", True, False), ("no_reply", True, True), ("no_reply", False, False),
        ("success", True, False)}


@pytest.mark.parametrize("name", WORLDS)
def test_a_kill_at_each_step_gives_no_id_twice(name):
    """... and what the successor makes again has the id that it would have had."""
    whole = undisturbed(name)
    clocks = fed(whole.script)
    ids: dict[tuple, list[str]] = defaultdict(list)
    for (clock, number, _), line in zip(whole.events, whole.lines(), strict=True):
        ids[clock, number, content(line)].append(named(line))
    steps = defaultdict(list)
    for moment in whole.moments:
        steps[moment.step].append(moment)
    assert steps.keys() >= {"before frame", "before message", "before event", "after event",
                            "before commit", "within commit", "after commit", "before show",
                            "after show", "after mark", "after release"}
    again = 0
    for moment in [one for of in steps.values() for one in of[:: max(1, len(of) // 6)]]:
        broken = World.at(whole, moment, slow_sink=False).run()
        lines = broken.lines()
        names = [named(line) for line in lines]
        assert len(set(names)) == len(names), moment.step
        # What was shown ahead of the death stays what it was.
        before = len(moment.events)
        assert broken.events[:before] == moment.events
        for (clock, number, _), line in list(zip(broken.events, lines, strict=True))[before:]:
            place = apart(named(line))
            assert place[0] == number
            assert place[2] == (0 if clocks[number] == clock else clock)
            known = ids.get((clock, number, content(line)))
            if known is not None and name not in ("a full table", "few connections"):
                assert named(line) in known, (moment.step, line)
                again += 1
    assert again or name in ("a full table", "few connections")


def content(line: dict) -> str:
    return json.dumps({k: v for k, v in line.items() if k != "event_id"}, sort_keys=True)


def test_dying_again_and_again_gives_no_id_twice():
    world = undisturbed("three lanes at one clock")
    deaths = 0
    while world.moments and deaths < 12:
        moment = world.moments[len(world.moments) // 3]
        world = World.at(world, moment, stride=19).run(watched=True)
        names = [named(line) for line in world.lines()]
        assert len(set(names)) == len(names)
        deaths += 1
    assert deaths > 5


def test_workers_killed_at_random_give_no_id_twice():
    script = [step for step in chat(1500, seed=12) if step.frame] + [Step(0, None)]
    limits = Limits(frames=1 << 15, events=1 << 16, run=RUN, records=True)
    for _ in range(5):      # on a busy machine all may die before they have begun
        world = killed_at_random(World(script, limits), 10)
        if world.counts()["lost_pending"]:
            break
    assert world.counts()["lost_pending"] and len(world.events) > 1500
    names = [named(line) for line in world.lines()]
    assert len(set(names)) == len(names)
    for (_, number, _), name in zip(world.events, names, strict=True):
        assert apart(name)[0] == number


def test_what_is_due_at_the_clock_of_another_lane_s_frame_leaves_by_its_number():
    """One clock, two lanes: the key decides, not who was looked at first."""
    script = [Step(1, 0, ask(id=1)), Step(0, 0), Step(1, 10),
              Step(0, 10, tell(id=2)), Step(0, 10, tell(id=3, port=4001)),
              Step(0, None), Step(1, None)]
    world = World(script, Limits(lanes=2, run=RUN)).run()
    assert [event[:2] for event in world.events] == [
        (START + 10 * NS, 1), (START + 10 * NS, 2), (START + 10 * NS, 1 << 56 | 1)]
    assert [named(line) for line in world.lines()] == meant(world)


def test_off_there_is_none():
    world = World(chat(20, seed=1), Limits(records=True)).run()
    assert not any("event_id" in line for line in world.lines())


# --- the sink ------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", sink.POINTS)
def test_what_a_killed_sink_repeats_is_known_by_its_id(tmp_path, monkeypatch, point):
    """Into a pipe, which nothing can be taken back from."""
    monkeypatch.setattr(sink, "BLOCK", 1 << 13)
    whole = undisturbed("what waits")
    path = tmp_path / "fifo"
    os.mkfifo(path)
    drain = sink.Drain(path)
    sinks = sink.Sinks([str(path)], lanes=1, ring=1 << 18)
    for clock, number, text in whole.events:
        assert sinks.writers[0].write(sink.event_entry(clock, number, [text]))
    sinks.put = len(whole.events)
    sinks.fill(0)
    assert not sinks.run(sink.Kill(point, 0))
    assert sinks.run()
    lines = []
    for text in drain.end().split(b"\n"):
        if text.endswith(b"}"):     # not what was torn
            lines.append(text + b"\n")
    told = {named(json.loads(text.split(b"\t")[2])): text for text in lines}
    assert list(told.values()) == [text for _, _, text in whole.events]
    if point == "written, not committed":
        assert len(lines) > len(told)
    assert sinks.balance() == [0]


# --- the whole pipeline --------------------------------------------------------------------------


def config(path: str, out: dict[str, str], **changes) -> dict:
    kinds = {"text": {"type": "text"}, "json": {"type": "text", "format": "json"},
             "pack": {"type": "msgpack"}, "time": {"type": "msgpack", "time": "event_time"}}
    return {"sensor": {"id": 'a:b "c"'}, "capture": {"files": [path]},
            "outputs": [kinds[name] | {"path": path} for name, path in out.items()], **changes}


def spread(gazer, tmp_path, workers: int, detail: str) -> dict[str, list[dict]]:
    """What each form says, without its tag and time."""
    out = {name: str(tmp_path / f"{name}{workers}{detail}") for name in
           ("text", "json", "pack", "time")}
    done = gazer.configured(config(
        str(CAPTURES / "transfers.pcap"), out, workers=workers,
        events={"detail": detail, "records": True, "event_id": True}))
    assert done.code == 0, done.stderr
    data = {}
    for name, path in out.items():
        with open(path, "rb") as file:
            data[name] = file.read()
    return {
        "text": [json.loads(line.split(b"\t")[2]) for line in data["text"].splitlines()],
        "json": [{k: v for k, v in json.loads(line).items() if k not in ("tag", "time")}
                 for line in data["json"].splitlines()],
    } | {name: [one[2] for one in unpacked(data[name])] for name in ("pack", "time")}


def unpacked(data: bytes) -> msgpack.Unpacker:
    unpacker = msgpack.Unpacker(timestamp=0)
    unpacker.feed(data)
    return unpacker


@pytest.mark.parametrize("detail", ["full", "classic"])
def test_any_number_of_workers_gives_the_same_ids(gazer, tmp_path, detail):
    """In all forms; but for the run, which is another one each time."""
    ways, runs = [], set()
    for workers in (1, 2, 16):
        found = spread(gazer, tmp_path, workers, detail)
        first = found["text"]
        assert len(first) > 50
        assert found["json"] == found["pack"] == found["time"] == first
        names = [named(one) for one in first]
        assert len(set(names)) == len(names)
        # The sensor's id holds whatever it likes: the other parts are split off from the right.
        parts = [name.rsplit(":", 4) for name in names]
        assert {part[0] for part in parts} == {'a:b "c"'}
        (run,) = {part[1] for part in parts}
        runs.add(int(run, 16))
        ways.append([part[2:] for part in parts])
    assert ways[0] == ways[1] == ways[2]
    assert len(runs) == 3 and all(abs(run - RUN) < 10**10 * NS for run in runs)
    if detail == "classic":
        classic = {f.name for f in event.TX + event.RECORD if f.classic} | {"event_id"}
        assert {name for one in first for name in one} <= classic


def test_a_live_sensor_whose_processes_are_killed_gives_no_id_twice(sensor):
    live = sensor.configured(
        workers=2, ring={"size": "2MiB"}, capture={"processes": 2}, sensor={"id": "s"},
        events={"records": True, "event_id": True})
    numbers = itertools.count()

    def goes_on() -> None:
        before = len(sensor.lines())

        def come() -> bool:
            """events come, more than stood in a buffer"""
            sensor.send([       # whose addresses decide on the capture process
                build.frame(packet) for n in itertools.islice(numbers, 10)
                for packet in exchange(n, f"198.51.100.{n % 200}")])
            return len(sensor.lines()) > before + 200

        eventually(come, 20.0)

    goes_on()
    for name in ("gazer:worker0", "gazer:capture0", "gazer:worker1", "gazer:sink", "gazer:capture1",
                 "gazer:worker0"):
        old = live.part(name).pid
        os.kill(old, signal.SIGKILL)
        live.says(f"{name} (pid {old}) was killed by SIGKILL")
        goes_on()
    ended(live)
    names = [named(json.loads(line.split("\t")[2])) for line in sensor.lines()]
    assert len(set(names)) == len(names) > 1400
    parts = [SHAPE.fullmatch(name) for name in names]
    assert len({part[2] for part in parts}) == 1        # one run
    assert {part[3] for part in parts} == {"0", "1"}    # of two capture processes


def test_a_server_is_no_part_of_it():
    """Two sensors and two runs differ in what they begin with, and in nothing else."""
    script, _ = WORLDS["one lane"]
    first, second = (World(script, Limits(run=run)).run() for run in (RUN, RUN + 1))
    pairs = list(zip(first.lines(), second.lines(), strict=True))
    assert len(pairs) > 5
    for one, other in pairs:
        assert content(one) == content(other) and SERVER not in named(one)
        assert named(other) == named(one).replace(f"{RUN:x}", f"{RUN + 1:x}") != named(one)
