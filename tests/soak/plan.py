"""What happens, and when: drawn from the seed alone.

Nobody is to die five times within a minute, since that ends the service: a process has at most MOST
planned deaths within WINDOW.  In each third of the run some processes are *spared*: nothing ends
them, so that there are long lives whose memory can be looked at.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

HANG = 3.0          # seconds; hang_timeout of the sensor
MOST, WINDOW = 3, 70.0
CALM = 20.0         # seconds at the end without deaths

# How often each is drawn.  `kill` and `hang` are deaths, `several` and `cable` of more than one.
WEIGHTS = {
    "kill": 12, "several": 4, "hang": 4, "nap": 6, "freeze": 2, "boss_nap": 2,
    "rotate": 10, "rotate_twice": 2, "rotate_and_kill": 3, "hup": 3, "bad_config": 2,
    "move_metrics": 2, "usr1": 4, "cable_down": 3, "cable_gone": 2, "burst": 4, "silence": 2,
    "away": 3, "stalled": 3, "odd": 4,
    "stats": 6, "health": 3, "top": 2, "scrape": 8, "look": 12,
}  # fmt: skip
DEADLY = ("kill", "hang", "several", "rotate_and_kill")
OTHERWISE = ("rotate", "usr1", "stats", "scrape", "look", "hup")   # where a death can't be


@dataclass(frozen=True)
class Action:
    """at: seconds from the start.  who: processes.  seconds: how long it lasts."""

    at: float
    what: str
    who: tuple[str, ...] = ()
    seconds: float = 0.0
    spared: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        lasts = f" {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.what} {' '.join(self.who)}".rstrip() + lasts


def spared(rng: random.Random, names: list[str], thirds: int = 3) -> list[tuple[str, ...]]:
    """Who is spared in each third: everyone at some time."""
    order = rng.sample(names, len(names))
    return [tuple(sorted(order[i::thirds])) for i in range(thirds)]


def plan(seed: int, length: float, names: list[str]) -> Iterator[Action]:
    """The actions of a run of `length` seconds with these processes, in their order."""
    rng = random.Random(seed)
    thirds = spared(rng, names)
    deaths: dict[str, list[float]] = {name: [] for name in names}
    kinds, weights = [*WEIGHTS], [*WEIGHTS.values()]
    at = 5.0
    while at < length:
        safe = thirds[min(2, int(3 * at / length))]
        what = rng.choices(kinds, weights)[0]
        may = [name for name in names if name not in safe and sum(
            at - then < WINDOW for then in deaths[name]) < MOST]
        who: tuple[str, ...] = ()
        seconds = 0.0
        if what in DEADLY:
            wanted = ["gazer:sink"] if what == "rotate_and_kill" else may
            wanted = [name for name in wanted if name in may]
            count = rng.randint(2, 5) if what == "several" else 1
            who = tuple(sorted(rng.sample(wanted, min(count, len(wanted)))))
            if not who or at > length - CALM:
                what, who = rng.choice(OTHERWISE), ()
            for name in who:
                deaths[name].append(at)
        elif what == "nap":
            who = (rng.choice(names),)
            seconds = rng.uniform(0.05, HANG * 0.5)
        elif what in ("freeze", "boss_nap"):
            seconds = rng.uniform(0.5, HANG * 1.5)
        elif what in ("cable_down", "cable_gone"):
            seconds = rng.uniform(0.1, 3.0)
            # Not when capture's life is to be long; and each is the end of one.
            if any("capture" in name for name in safe) or at > length - CALM:
                what, seconds = rng.choice(OTHERWISE), 0.0
        elif what in ("away", "stalled", "odd"):
            seconds = rng.uniform(0.3, 6.0)
            if at > length - CALM:
                what, seconds = rng.choice(OTHERWISE), 0.0
        elif what == "silence":
            seconds = rng.uniform(1, 4)
        yield Action(at, what, who, seconds, safe)
        at += rng.uniform(0.05, 0.5) if rng.random() < 0.15 else rng.uniform(0.7, 3.5)
