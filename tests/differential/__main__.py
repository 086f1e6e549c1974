"""The long run: `python -m tests.differential [--messages N] [--processes 2] [--seed S]`.

Prints what was compared, each class with how often it was met, its reason and an example, and what
no class explains; the exit code is 1 if there is any of that.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from gazer.workers.doors import Reader
from tests.differential import classes, mutate, readings

BLOCK = 5000            # messages of one seed
DNSLIB_EVERY = 4        # dnslib takes as long as all the rest, and reads less
MOST_SHOWN = 20         # of what is not explained


@dataclass
class Tally:
    messages: int = 0
    records: int = 0
    by_dnslib: int = 0
    refused_by_dnslib: int = 0
    met: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    unexplained: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.messages += other.messages
        self.records += other.records
        self.by_dnslib += other.by_dnslib
        self.refused_by_dnslib += other.refused_by_dnslib
        self.met += other.met
        self.examples = {**other.examples, **self.examples}
        self.unexplained += other.unexplained

    def note(self, found: Iterator[tuple[str | None, str]], wire: bytes) -> None:
        for name, what in found:
            if name is None:
                self.unexplained.append(f"{what}\n    {wire.hex()}")
            else:
                self.met[name] += 1
                self.examples.setdefault(name, what)


def block(seed: int, messages: int = BLOCK) -> Tally:
    """Compare so many messages, all of them from this seed."""
    tally = Tally()
    reader = Reader(1 << 24)        # nothing is left out
    every = mutate.mutated(mutate.messages(), seed)
    for number, wire in enumerate(islice(every, messages)):
        tally.messages += 1
        read = reader.read(wire)
        if len(wire) < 12:
            if read["anomaly"] != "short_header" or read["records"]:
                tally.unexplained.append(f"less than a header: {read}")
            continue
        tally.records += len(read["records"])
        tally.note(classes.against_dnspython(wire, read), wire)
        if number % DNSLIB_EVERY == 0:
            theirs = readings.by_dnslib(wire)
            if theirs is None:
                tally.refused_by_dnslib += 1
            else:
                tally.by_dnslib += 1
                tally.note(classes.against_dnslib(read, theirs), wire)
    return tally


def report(tally: Tally, seconds: float) -> None:
    print(f"{tally.messages:,} messages with {tally.records:,} records against dnspython, "
          f"{tally.by_dnslib:,} against dnslib, which refused {tally.refused_by_dnslib:,} more; "
          f"{seconds:.0f} s")
    for one in classes.ALL:
        print(f"{tally.met[one.name]:12,}  {one.name}: {one.reason}")
        if one.name in tally.examples:
            print(f"{'':14}{tally.examples[one.name][:300]}")
    print(f"{len(tally.unexplained):12,}  not explained")
    for what in tally.unexplained[:MOST_SHOWN]:
        print(f"    {what}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.differential")
    parser.add_argument("--messages", type=int, default=2_000_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="0: another each time")
    options = parser.parse_args()
    first = options.seed or random.SystemRandom().randrange(1, 1 << 40)
    print(f"seed {first}", flush=True)
    blocks = -(-options.messages // BLOCK)
    start = time.monotonic()
    tally = Tally()
    with ProcessPoolExecutor(options.processes) as pool:
        for one in pool.map(block, range(first, first + blocks)):
            for what in one.unexplained:
                print(f"not explained: {what}", flush=True)
            tally.add(one)
    report(tally, time.monotonic() - start)
    return int(bool(tally.unexplained))


if __name__ == "__main__":
    sys.exit(main())
