"""kill -9 of the sink at random moments: every event is delivered at least once, or counted.

The sink is a process of its own over real rings, without a supervisor, so that a kill costs some
tens of milliseconds.  test_chaos_live.py does it to a few sinks of a whole sensor.
"""

from __future__ import annotations

import random
import time

import pytest

from gazer.sinks import fluentd
from tests.chaos.sinks import SECOND, World
from tests.forwarding import quick
from tests.receiver import ACK, CLOSE, LOSE, TWICE, WRONG, Receiver, late

pytest_plugins = ["tests.chaos.memory"]

KILLS = 50
EACH = 250          # events between two kills


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick(monkeypatch)
    monkeypatch.setattr(fluentd, "SLOW", 0.1)


def flapping(seed):
    dice = random.Random(seed)
    return lambda message: dice.choices(
        [ACK, LOSE, CLOSE, TWICE, WRONG, late(0.03)], [80, 3, 4, 3, 3, 7])[0]


@pytest.mark.parametrize("small", [False, True], ids=["large-ring", "small-ring"])
@pytest.mark.parametrize("well", [True, False], ids=["well", "flapping"])
@pytest.mark.parametrize("spool", [False, True], ids=["memory", "spool"])
def test_a_sink_that_is_killed_again_and_again(memory, spool, well, small):
    """With a file beside it, which has each event once.  Where a ring has little room, it gives up
    what waits for the output before it is settled, and what a killed sink then had of that is lost
    and counted."""
    chance = random.Random(f"{spool}{well}{small}")
    with Receiver() as receiver, World(
            memory, [receiver], spool=spool, beside=True,
            ring=1 << (14 if small else 22), ack_timeout_ns=SECOND // 4) as world:
        if not well:
            receiver.plan = flapping(3)
        away = False

        def enough():
            """On a busy machine many a sink is killed before it has begun."""
            return (world.put > 20 * KILLS and world.at_work > KILLS // 8
                    and (not well or any(world.repeats().values())))

        deadline = time.monotonic() + 100
        while world.kills < KILLS // 2 or not (enough() or time.monotonic() > deadline):
            if not well:
                if away:
                    receiver.listen()
                    away = False
                elif chance.random() < 0.3:
                    receiver.refuse()
                    away = True
            world.begin()
            world.feed_for(chance.uniform(0.002, 0.07), EACH)
            world.kill()
        if away:
            receiver.listen()
        receiver.plan = lambda _: ACK
        dropped = world.finish()
        times = world.repeats()
        assert {*receiver.numbers} == {*range(world.put)} or dropped
        assert max(times.values()) <= world.kills
        # What came again is what no commit knew of when its sink was killed, and no more.
        assert sum(times.values()) <= world.repeated <= world.kills * world.most_in_hand
        assert enough()
        assert small or not dropped
        assert small or not world.output(1)["dropped"]
