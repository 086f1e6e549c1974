"""A worker that dies, at each step that it takes, and the one that goes on for it.

Whatever the step: no event twice, none torn, their order holds, the account closes; and what is
missing is what the dead one's tables held, and counted.
"""

from __future__ import annotations

import functools
import random
from collections import Counter

import pytest

from tests.oracle import build
from tests.succession import Limits, Moment, Step, World
from tests.test_engine import ask, bare, tell
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
            script.append(Step(lane, clock, tell(**one, answers=[f"{one['name']} 60 IN A 192.0.2.9"])))
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

    assert replies(broken) == replies(whole)
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
