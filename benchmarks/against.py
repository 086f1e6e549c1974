"""Another checkout beside this one: what a message costs there and here, in the same run.

Both are built trees (`make build`) and run by this interpreter, which imports `gazer` from the one
or the other; so what was installed where doesn't matter. Two things are compared on the plain
file: the whole pipeline (CPU of all processes, as the other figures), and the loops alone
(benchmarks.loops, each tree's own), which know neither processes nor waiting and so vary less.

Rules
- The two run in turns, and who begins alternates (A B, B A, A B): a drift of the machine's speed
  within a turn then counts for the one as often as for the other. A ratio is the median of the
  turns' ratios.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import measure, traffic

HERE = Path(__file__).resolve().parent.parent
LIMIT = 1.05  # of the CPU a message that there was before
LOOP_PAIRS = 50_000  # the loops' rings hold the whole file
_LOOPS = re.compile(rb"(\w+) (\d+\.\d+)(?:,|$)", re.MULTILINE)

_START = """\
import sys
sys.path.insert(0, {tree!r})
sys.argv[1:] = {arguments!r}
{run}
"""
_PIPELINE = "from gazer.compat import main; sys.exit(main())"
_LOOP = "import runpy; runpy.run_module('benchmarks.loops', run_name='__main__')"


def _command(tree: Path, run: str, *arguments: str) -> list[str]:
    script = _START.format(tree=str(tree), arguments=list(arguments), run=run)
    # -P: what stands in the present folder is neither of the two.
    return [sys.executable, "-P", "-c", script]


@dataclasses.dataclass
class Pair:
    """One thing that is compared: CPU of each turn, (here, there)."""

    turns: list[tuple[float, float]] = dataclasses.field(default_factory=list)

    @property
    def ratio(self) -> float:
        return statistics.median(here / there for here, there in self.turns)

    def medians(self) -> tuple[float, float]:
        here, there = zip(*self.turns, strict=True)
        return statistics.median(here), statistics.median(there)


class Against:
    """This tree and another one; each `turn` runs everything once on either."""

    def __init__(self, other: Path, file: Path, messages: int, say: Callable[[str], None]) -> None:
        self.trees = (HERE, other.resolve())
        for tree in self.trees:
            if not list(tree.glob("gazer/ring.*.so")):
                raise measure.Failed(f"{tree}: no built tree of gazer; `make build` there first")
        self.file, self.messages, self.say = file.resolve(), messages, say
        self.small = traffic.cached(traffic.Parameters(pairs=LOOP_PAIRS))[0].resolve()
        self.pipeline = {workers: Pair() for workers in (1, 2)}
        self.loops = {detail: Pair() for detail in ("classic", "full")}
        self.number = 0

    def turn(self) -> None:
        self.number += 1
        for workers, pair in self.pipeline.items():
            self.say(f"against, turn {self.number}: pipeline, {workers}")
            pair.turns.append(self._both(lambda tree, n=workers: self._pipeline(tree, n)))
        for detail, pair in self.loops.items():
            self.say(f"against, turn {self.number}: loops, {detail}")
            pair.turns.append(self._both(lambda tree, d=detail: self._loops(tree, d)))

    def _both(self, cost: Callable[[Path], float]) -> tuple[float, float]:
        order = self.trees if self.number & 1 else self.trees[::-1]
        found = {tree: cost(tree) for tree in order}
        return found[self.trees[0]], found[self.trees[1]]

    def _pipeline(self, tree: Path, workers: int) -> float:
        command = _command(tree, _PIPELINE, "-r", str(self.file), "-t", "/dev/null", "--workers",
                           str(workers))  # fmt: skip
        return measure.run(command).cpu * 1e6 / self.messages

    def _loops(self, tree: Path, detail: str) -> float:
        command = _command(tree, _LOOP, str(self.small), detail)
        found = _LOOPS.findall(measure.run(command, keep_stdout=True).stdout)
        if not found:
            raise measure.Failed(f"{tree}: its benchmarks.loops said nothing to be read")
        return sum(float(value) for _, value in found)

    def rows(self) -> list[tuple[str, Pair]]:
        named = [
            (f"pipeline, classic text, {workers} worker{'s' * (workers > 1)}", pair)
            for workers, pair in self.pipeline.items()
        ]
        return named + [(f"loops, {detail}", pair) for detail, pair in self.loops.items()]

    def as_json(self) -> dict[str, Any]:
        return {"tree": str(self.trees[1])} | {
            name: {
                "cpu_us_here": [round(here, 4) for here, _ in pair.turns],
                "cpu_us_there": [round(there, 4) for _, there in pair.turns],
                "ratio": round(pair.ratio, 4),
            }
            for name, pair in self.rows()
        }
