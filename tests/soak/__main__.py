"""`python -m tests.soak [--minutes 3] [--seed S] [--rate N] [--captures N]`: see tests/soak.

Prints a line each ten seconds and a summary; the exit code is 1 if a rule was broken.  What the
sensor wrote and said is then kept, and its place is told.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable

from tests.conftest import Runner, ownerless
from tests.netns import Lab, sweep, unavailable
from tests.service import alive
from tests.soak.machine import Machine, folder_of
from tests.soak.plan import plan
from tests.soak.traffic import Load
from tests.soak.watch import Watch
from tests.test_fluentd_live import delivered

EACH = 10.0             # seconds between two lines
SAMPLE = 3.0            # ... between two looks at memory
MOST_SHOWN = 40         # breaches; the rest is only counted


class Breaches:
    def __init__(self, start: float) -> None:
        self._start = start
        self.count = 0

    def __call__(self, text: str) -> None:
        self.count += 1
        if self.count <= MOST_SHOWN:
            print(f"{time.monotonic() - self._start:6.0f} s  BREACH: {text}", flush=True)


def soak(seed: int, minutes: float, rate: int, captures: int, *, verbose: bool = False) -> int:
    start = time.monotonic()
    breach = Breaches(start)
    before = ownerless()
    folder = folder_of(seed)
    lab = Lab()
    runner = Runner(folder)
    try:
        lab.veth()
        lab.run(["ip", "link", "set", "lo", "up"])
        machine = Machine(folder, lab, runner, captures, breach, seed)
        load = machine.load = Load(lab, rate, seed)
        load.start()
        watch = Watch()
        happen(machine, watch, seed, 60 * minutes, start, verbose)
        finish(machine, load, breach)
        for text in watch.growth():
            breach(f"grown: {text}")
        print("processes, after the first seconds of each:")
        print(*watch.table(), sep="\n")
        if left := [pid for pid in machine.pids if alive(pid)]:
            breach(f"still there: {left}")
        if left := ownerless() - before:
            breach(f"left in /dev/shm: {sorted(left)}")
    finally:
        runner.end()
        lab.close()
    if breach.count:
        print(f"{breach.count} breaches (seed {seed}); see {folder}")
    else:
        print(f"no breach (seed {seed})")
        shutil.rmtree(folder)
    return int(breach.count > 0)


def happen(machine: Machine, watch: Watch, seed: int, length: float, start: float,
           verbose: bool) -> None:
    """Let the plan happen."""
    load = machine.load
    assert load is not None
    begun = time.monotonic()
    names = [name for name in machine.processes() if name != "gazer"]
    actions = plan(seed, length, sorted(names))
    action = next(actions, None)
    said = sampled = begun
    while (now := time.monotonic()) < begun + length and machine.alive():
        machine.turn()
        while action is not None and now - begun >= action.at:
            if verbose:
                print(f"{now - start:6.1f} s  {action}", flush=True)
            machine.do(action)
            action = next(actions, None)
        if now - sampled >= SAMPLE:
            sampled = now
            watch.sample(machine.processes())
        if now - said >= EACH:
            said = now
            processes = machine.processes()
            watch.sample(processes)
            memory, descriptors = watch.total(processes)
            print(f"{now - start:6.0f} s  {load.sent:,} frames sent, "
                  f"{machine.outputs['text'].events:,} events read; {len(processes)} processes, "
                  f"{memory >> 20} MiB, {descriptors} descriptors; "
                  f"{sum(machine.done.values())} actions", flush=True)
        time.sleep(0.05)
    if not machine.alive():
        machine.breach(f"it has ended: {machine.live.stderr[-1000:]}")


def finish(machine: Machine, load: Load, breach: Breaches) -> None:
    """Calm; something that has to arrive; TERM under load; and the account."""
    machine.wake()
    load.calm = True
    machine.well()
    machine.answered()
    load.pause = True
    time.sleep(1.0)
    first = load.number
    load.pause = False
    time.sleep(3.0)
    last = load.number          # and the load goes on
    code, said = machine.stop()
    load.end()
    if code:
        breach(f"exit code {code}: {said}")
    print(f"{sum(machine.done.values())} actions: "
          + ", ".join(f"{what} {n}" for what, n in sorted(machine.done.items())))
    account(machine, load, said, range(first, last), breach)


def account(machine: Machine, load: Load, said: str, calm: range,
            breach: Callable[[str], None]) -> None:
    """What was sent against what the sensor says against what is in the files."""
    found = re.search(r"(\d+) frames? received by the kernel: (\d+) read", said)
    if found is None:
        breach(f"no account at the end: {said}")
        return
    received, read = int(found[1]), int(found[2])
    for number, (kind, output) in enumerate(machine.outputs.items()):
        sums = output.intervals()
        told = re.search(rf"(\d+) events? written to {machine.folder / kind}"
                         rf"(?:, (\d+) NOT)?", said)
        if told is None or int(told[1]) != output.events:
            breach(f"{kind}: {output.events} lines, and {told and told[0]}")
        if sums["frames"] != read:
            breach(f"{kind}: stats events tell of {sums['frames']} frames, {read} were read")
        why = causes(sums, load.sent - received, int(told[2] or 0) if told else 0)
        missing = output.missing(range(load.number))
        if missing > sum(why.values()):
            breach(f"{kind}: {missing} names missing, more than {dict(why)} explain")
        if lost := output.missing(calm):
            breach(f"{kind}: {lost} of {len(calm)} exchanges of the calm end have no event")
        if not number:
            print(f"{load.sent:,} frames of {load.number:,} exchanges sent, {received:,} received, "
                  f"{read:,} read; {missing:,} exchanges without an event: "
                  + ", ".join(f"{n:,} {name}" for name, n in why.items() if n))
            print(f"{sums['restarts']} processes started again, {sums['lossy']:,} events lossy")
        if not number:
            arrived(machine, load, said, why, calm, breach)
        print(f"{kind}: {output.events:,} lines, {output.bytes >> 20} MiB, "
              f"{len(output.stats)} stats events, {output.twice} twice")


def arrived(machine: Machine, load: Load, said: str, why: Counter[str], calm: range,
            breach: Callable[[str], None]) -> None:
    """What the receiver has acknowledged, and what is in the spool."""
    receiver = machine.receiver
    try:
        told = delivered(said)
    except AssertionError:
        breach(f"no word of what was delivered: {said}")
        return
    gone = told["dropped"] + told["lost"] + told["left"]
    missing = receiver.missing(range(load.number))
    if missing > sum(why.values()) + gone:
        breach(f"fluentd: {missing} names missing, more than {dict(why)} and {told} explain")
    if (lost := receiver.missing(calm)) > gone:
        breach(f"fluentd: {lost} of {len(calm)} exchanges of the calm end did not arrive: {told}")
    if told["direct"] + told["delivered"] > receiver.events:
        breach(f"fluentd: {receiver.events} events were acknowledged, and {told}")
    print(f"fluentd: {receiver.events:,} events in {receiver.chunks:,} chunks acknowledged; "
          + ", ".join(f"{n:,} {name}" for name, n in told.items() if n))


def causes(sums: Counter[str], never: int, unwritten: int) -> Counter[str]:
    """What can leave an exchange without an event."""
    names = ("kernel_dropped", "kernel_lost", "ring_dropped", "lost_pending", "quarantined")
    return Counter({"frames that never came": never, "events not written": unwritten}
                   | {name: sums[name] for name in names})


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0, help="of what happens; 0: another each time")
    parser.add_argument("--rate", type=int, default=1000, help="exchanges a second (1000)")
    parser.add_argument("--captures", type=int, default=0, help="capture processes; 0: by the seed")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell each action")
    options = parser.parse_args()
    if why := unavailable():
        print(f"can't soak here: {why}", file=sys.stderr)
        return 2
    sweep()
    seed = options.seed or random.SystemRandom().randrange(1, 1 << 31)
    captures = options.captures or 1 + seed % 2
    print(f"seed {seed}, {options.minutes:g} minutes, {captures} capture processes", flush=True)
    return soak(seed, options.minutes, options.rate, captures, verbose=options.verbose)


if __name__ == "__main__":
    sys.exit(main())
