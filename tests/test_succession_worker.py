"""A worker that dies, at each step that it takes, and the one that goes on for it.

Whatever the step: no event twice, none torn, their order holds, the account closes; and what is
missing is what the dead one's tables held, and counted.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import signal
import struct
import time
from collections import Counter

import pytest

from gazer.errors import SharedMemoryError
from gazer.workers import mortal
from tests.oracle import build
from tests.succession import Limits, Step, World
from tests.test_engine import NS, START, ask, bare, tell
from tests.test_engine_streams import AXFR, Connection, hosts, soa

END = Step(0, None)


def chat(n: int, *, seed: int, lanes: int = 1, every: int = 7) -> list[Step]:
    """Queries with their replies, or without; a watermark now and then."""
    rng = random.Random(seed)
    script: list[Step] = []
    waiting: list[dict] = []
    clock = 0.0
    for i in range(n):
        clock += rng.choice([0, 0.01, 0.5, 3])
        lane = rng.randrange(lanes)
        if waiting and rng.random() < 0.45:
            one = waiting.pop(rng.randrange(len(waiting)))
            answer = f"{one['name']} 60 IN A 192.0.2.9"
            script.append(Step(lane, clock, tell(**one, answers=[answer])))
        else:
            one = {"name": f"n{i}.example.", "id": i + 1, "port": 4000 + i}
            script.append(Step(lane, clock, ask(**one)))
            waiting.append(one)
            if rng.random() < 0.2:
                script.append(Step(lane, clock, ask(**one)))     # asked again
        if i % every == 0:
            script += [Step(lane, clock) for lane in range(lanes)]
    return script + [Step(lane, None) for lane in range(lanes)]


def carried(clock: float = 0.0) -> list[Step]:
    """TCP with several messages in a segment, a hole, and a zone transfer; an unanswered query."""
    frames = []
    c = Connection()
    queries = [build.query(f"t{i}.example.", "A", id=i) for i in range(4)]
    for wire in queries[:2]:
        c.query(wire)
    c.reply(*(build.reply(wire, *hosts(1)) for wire in queries[:2]))
    for wire in queries[2:]:
        c.query(wire)
    late = c.segment(1, b"\0\x63" + bytes(40), keep=False)
    c.reply(build.reply(queries[3], *hosts(2)))
    frames += c.frames
    z = Connection(port=40001)
    z.query(AXFR)
    z.reply(build.reply(AXFR, soa(1), *hosts(1, 2)))
    z.reply(build.reply(AXFR, *hosts(3)), build.reply(AXFR, soa(1)))
    frames += z.frames
    frames.append(late)
    frames.append(bare(False))
    script = []
    for i, frame in enumerate(frames):
        script.append(Step(0, clock + i / 10, frame))
        if i % 2:
            script.append(Step(0, clock + i / 10))
    return [*script, END]


def torn_script() -> list[Step]:
    """A segment whose record events do not fit into the ring together, between small frames."""
    c = Connection(port=40002)
    queries = [build.query("big.example.", "A", id=i) for i in range(5)]
    for wire in queries:
        c.query(wire)
    c.reply(*(build.reply(wire, *(f"big.example. 60 IN A 192.0.2.{i}" for i in range(70)))
              for wire in queries))
    frames = [ask(), *c.frames, ask(id=3), tell(id=3), tell(), ask(id=4)]
    return [Step(0, i / 10, frame) for i, frame in enumerate(frames)] + [END]


WORLDS = {
    "one lane": (chat(60, seed=1), Limits(), False),
    "a slow sink": (chat(70, seed=2, every=1000), Limits(), True),
    "three lanes": (chat(60, seed=3, lanes=3), Limits(lanes=3), False),
    "a full table": (chat(60, seed=4), Limits(max_pending=4, timeout=1000), False),
    "connections": (carried(), Limits(), False),
    "few connections": (carried(), Limits(max_streams=1), False),
    "torn frames": (torn_script(), Limits(records=True, events=1 << 16), True),
}


@functools.cache
def undisturbed(name: str) -> World:
    script, limits, slow = WORLDS[name]
    world = World(script, limits, slow).run(watched=True)
    assert world.imbalances() == [] and len(world.events) > 5
    counts = world.counts()
    assert not any(counts[k] for k in counts if k.startswith(("lost", "torn"))), "nobody has died"
    return world


def ordered(world: World) -> bool:
    keys = [(clock, sequence) for clock, sequence, _ in world.events]
    return keys == sorted(keys)


def asked(world: World) -> int:
    """Events that have a query."""
    return sum("query" in one and "status" in one for one in world.lines())


def check(whole: World, broken: World, *, plain: bool) -> None:
    """`plain`: nothing but UDP, where what is lost can be counted exactly."""
    assert broken.imbalances() == []
    assert ordered(broken)
    there = Counter(broken.events)
    meant = Counter(whole.events)
    twice = [event for event, n in there.items() if n > max(meant[event], 1)]
    assert not twice
    # What is there and would not have been: a half of what was torn apart, and it says so.
    strange = there - meant
    lines = dict(zip(broken.events, broken.lines(), strict=True))
    for event in strange:
        line = lines[event]
        if "status" not in line:
            continue
        if line["status"] == "no_query":
            assert line["lossy"] is True
        elif line["status"] == "success" and plain:
            assert line["retransmits"] == 0         # its first query was lost, not this one
    counts, all_counts = broken.counts(), whole.counts()
    assert counts["lossy"] == sum(line.get("lossy", False) for line in broken.lines()) or (
        counts["torn_events"])
    if not plain or counts["torn_frames"]:
        return

    # Each reply is there, with its query or without.
    def replies(world: World) -> Counter:
        return Counter((a["reply_ts_ns"], a["tx_id"]) for a in world.lines() if "reply" in a)

    missing = replies(whole) - replies(broken)
    assert not replies(broken) - replies(whole)
    assert missing.total() <= counts["quarantined"]     # two may die over one frame by chance
    if counts["quarantined"]:
        return
    # And so is each query but those that waited when the worker died.
    assert asked(whole) - asked(broken) == counts["lost_pending"] - (
        counts["opened"] - all_counts["opened"])


PLAIN = {"one lane", "a slow sink", "three lanes", "a full table"}


@pytest.mark.parametrize("name", WORLDS)
def test_a_kill_at_each_step(name):
    whole = undisturbed(name)
    steps = Counter(moment.step for moment in whole.moments)
    for step in ("before frame", "before message", "before event", "before commit",
                 "within commit", "after commit", "after show", "after mark", "before release",
                 "after release"):
        assert steps[step], step
    if name == "a slow sink" or name == "torn frames":
        assert steps["waiting"]
    lost: Counter[str] = Counter()
    moments = whole.moments
    for moment in moments[:: max(1, len(moments) // 150)]:
        broken = World.at(whole, moment, slow_sink=False).run()
        check(whole, broken, plain=name in PLAIN)
        lost.update({k: n for k, n in broken.counts().items() if k.startswith(("lost", "torn"))})
    if name == "torn frames":
        assert steps["before tear"] and lost["torn_frames"] and lost["torn_events"]
    elif name == "connections":
        assert lost["lost_octets"] and lost["lost_transfers"]
    else:
        assert lost["lost_pending"]


def test_dying_again_and_again():
    """The successor dies as well, and its successor: what was lost is counted once each time."""
    rng = random.Random(5)
    for name in ("one lane", "three lanes"):
        whole = undisturbed(name)
        for _ in range(6):
            world, deaths = whole, 0
            while world.moments and deaths < 5:
                at = rng.randrange(len(world.moments) * (deaths + 1) // 8 + 1)
                before, moment = world, world.moments[min(at, len(world.moments) - 1)]
                world = World.at(before, moment, stride=19).run(watched=True)
                deaths += 1
            check(whole, world, plain=True)


def test_a_death_while_taking_over_changes_nothing():
    """What the dead one's tables held is lost once, wherever its successor dies in its first
    steps."""
    whole = undisturbed("one lane")
    late = [m for m in whole.moments if m.step == "before frame"][-3]
    counts = World.at(whole, late).run().counts()
    assert counts["lost_pending"] > 1
    first = World.at(whole, late)
    mortal.listen(first.tell)
    try:
        first.engine(mortal.MortalEngine)
    finally:
        mortal.listen(None)
    assert {"within commit", "before release"} <= {m.step for m in first.moments}
    for moment in first.moments:
        again = World.at(first, moment).run()
        check(whole, again, plain=True)
        assert again.counts() == counts


def test_rings_that_do_not_agree_with_the_ledger_are_refused():
    whole = undisturbed("one lane")
    moment = whole.moments[-1]
    for ring in (0, 1):
        world = World.at(whole, moment)
        fresh = World(whole.script, whole.limits)
        world.memory[ring] = fresh.memory[ring]     # a new one: nothing was ever in it
        with pytest.raises(SharedMemoryError, match="does not agree with the ledger"):
            world.engine()


# --- several lanes -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_lanes_are_one_order(seed):
    """Frames of three capture processes come out as they would from one, by clock, capture process
    and number, however they were fed."""
    script = chat(40, seed=seed, lanes=3, every=3)
    several = World(script, Limits(lanes=3)).run()
    frames = sorted(((s.clock, s.lane, i), s.frame) for i, s in enumerate(script) if s.frame)
    one = World([*(Step(0, key[0], frame) for key, frame in frames), END]).run()
    assert several.imbalances() == one.imbalances() == []
    assert [text for _, _, text in several.events] == [text for _, _, text in one.events]
    assert ordered(several)


def test_a_lane_that_is_silent_holds_the_others_up():
    script = [Step(0, 1, ask()), Step(0, 2, tell()), Step(0, 2), Step(1, 1.5), Step(1, 2.5),
              Step(0, None), Step(1, None)]
    world = World(script, Limits(lanes=2))
    engine = world.engine()
    seen = []
    for _ in range(4):
        world.feed()
        assert engine.run() == "turn"
        world.take()
        seen.append(len(world.events))
    # The reply of second 2 goes on when lane 1 is beyond it, not before.
    assert seen == [0, 0, 1, 1]


# --- frames that kill ----------------------------------------------------------------------------


def lives(world: World, poison: set[int]) -> int:
    """Workers over shared memory, each in a process of its own, until one ends; each is killed
    when it takes a frame of these numbers.  Returns how many died."""
    world.share()
    while world.feed():
        pass
    deaths = 0
    while True:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                engine = world.engine(mortal.MortalEngine)
                slot = world.slot()

                def tell(step: str, slot=slot) -> None:
                    if step == "before message" and slot.in_hand in poison:
                        os.kill(os.getpid(), signal.SIGKILL)

                mortal.listen(tell)
                frame = engine.condemned_frame()
                if frame is not None:
                    os.write(world.pipe, b"%d %d " % (frame[0], len(frame[3])))
                while engine.run() == "turn":
                    pass
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        world.take()
        if status == 0:
            return deaths
        assert os.WIFSIGNALED(status), status
        deaths += 1
        assert deaths < 50, "it never ends"


@pytest.mark.parametrize("poison", [{1}, {20}, {5, 6}, {3, 9, 27, 40}, {40, 41, 42, 43}])
def test_a_frame_that_kills_twice_is_skipped(poison):
    """Each kills two workers, is shown to the third, and takes nothing with it but itself and what
    waited then."""
    whole = undisturbed("one lane")
    world = World(whole.script, Limits(events=1 << 17))
    read, world.pipe = os.pipe()
    assert lives(world, poison) == 2 * len(poison)
    os.close(world.pipe)
    with open(read, "rb") as pipe:
        shown = pipe.read().split()
    frames = [step for step in whole.script if step.frame]
    dead = [frames[n - 1] for n in sorted(poison)]
    times = [START + round(step.clock * NS) for step in dead]
    assert [int(one) for one in shown] == [
        n for time_, step in zip(times, dead, strict=True) for n in (time_, len(step.frame))]
    counts = world.counts()
    assert counts["quarantined"] == len(poison) and counts["frames"] == len(frames) - len(poison)
    assert world.imbalances() == [] and ordered(world)


def test_who_is_killed_at_two_frames_is_not_condemned():
    whole = undisturbed("one lane")
    world = World(whole.script, Limits(events=1 << 17))
    while world.feed():
        pass
    slot = world.slot()
    for number, suspect, condemned in (
            (4, 0, False), (5, 4, False), (5, 5, True), (999, 999, False), (0, 0, False)):
        world.blame(number, suspect)
        assert (world.engine().condemned_frame() is not None) is condemned
        if number == 999:       # it does not come again: there is nothing to be careful of
            assert slot.in_hand == 0


def skipping(*script: Step) -> tuple[World, list[tuple[int, tuple[int, int]]]]:
    """A worker over these steps, the second frame of which has killed two; and its watermarks, each
    with the number of events ahead of it."""
    world = World([*script, END], Limits())
    while world.feed():
        pass
    world.blame(2, 2)
    marks = []

    def tell(step: str) -> None:
        if step == "after mark":
            world.take()
            sequence, clock = struct.unpack_from("<2Q", world.memory[1], 256)
            marks.append((len(world.events), (clock, sequence)))

    mortal.listen(tell)
    try:
        engine = world.engine(mortal.MortalEngine)
        while engine.run() == "turn":
            pass
    finally:
        mortal.listen(None)
    world.take()
    assert world.counts()["quarantined"] == 1 and world.imbalances() == []
    return world, marks


def test_what_is_due_ahead_of_a_frame_that_is_skipped_leaves_first():
    """No event comes behind a watermark above it: the sink would merge it in another place."""
    world, marks = skipping(
        Step(0, 0, ask(id=1)), Step(0, 20, ask(id=2)), Step(0, 21, ask(id=3)))
    assert len(world.events) == 2 and len(marks) > 2
    for taken, mark in marks:
        assert all(event[:2] >= mark for event in world.events[taken:])


def test_a_reply_that_is_skipped_leaves_a_lossy_query():
    world, _ = skipping(Step(0, 0, ask()), Step(0, 3, tell()), Step(0, 30, ask(id=3)))
    assert [line.get("lossy", False) for line in world.lines()] == [True, False]
    assert world.counts()["lossy"] == 1


# --- hanging -------------------------------------------------------------------------------------


def test_each_commit_shows_that_the_worker_lives():
    """A full ring of expensive frames is worked on for longer than a worker may be silent."""
    world = World(chat(600, seed=6, every=10**6), Limits(frames=1 << 18, events=1 << 20))
    while world.feed():
        pass
    slot, beats = world.slot(), []

    def tell(step: str) -> None:
        if step == "after commit":
            beats.append(slot.heartbeat)

    mortal.listen(tell)
    try:
        assert world.engine(mortal.MortalEngine).run() == "end"
    finally:
        mortal.listen(None)
    assert len(beats) > 4 and all(a < b for a, b in itertools.pairwise(beats))


# --- anywhere ------------------------------------------------------------------------------------


def killed_at_random(world: World, kills: int) -> World:
    """Workers over this world's frames, each in a process of its own, killed at random moments;
    nothing is told to them, and they run at their own pace."""
    world.share()
    rng = random.Random(3)
    deaths, over, status = 0, False, None
    pid = 0
    deadline = time.monotonic() + 60
    while status != 0:
        assert time.monotonic() < deadline
        if pid == 0:
            begun, begins = os.pipe()
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    engine = world.engine()
                    os.close(begins)
                    while engine.run() == "turn":
                        pass
                    code = 0
                finally:
                    os._exit(code)
            os.close(begins)
            os.read(begun, 1)       # on a busy machine all might die before they have begun
            os.close(begun)
        for _ in range(rng.randrange(1, 40)):
            over = not world.feed_one() or over
            world.take()
        if deaths < kills:
            os.kill(pid, signal.SIGKILL)
            deaths += 1
        found, how = os.waitpid(pid, 0 if deaths < kills else os.WNOHANG)
        if found:
            pid, status = 0, how
            assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
    world.take()
    assert deaths == kills
    return world


def test_kills_at_random():
    """Frames stream through small rings."""
    script = [s for s in chat(6000, seed=11) if s.frame] + [END]
    whole = World(script, Limits(frames=1 << 23, events=1 << 23)).run()
    world = killed_at_random(World(script, Limits(frames=1 << 15, events=1 << 16, timeout=10)), 25)
    assert world.counts()["lost_pending"]
    check(whole, world, plain=True)
