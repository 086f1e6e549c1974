"""`python -m benchmarks`: what `make bench` runs. Prints a table; the same figures go to JSON."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from benchmarks import delivery, flood, jobs, measure, mixed, report, traffic


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("a number of at least 1")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true",
        help="100,000 pairs, one round, without the long memory runs")  # fmt: skip
    add("--pairs", type=_positive, help="query/reply pairs in the file (1,000,000)")
    add("--runs", type=_positive, help="rounds; the figures are their medians (3)")
    add("--seed", type=int, default=1, help="of the generated traffic")
    add("--memory", action=argparse.BooleanOptionalAction, default=None,
        help="ten times the file, and a flood that fills the table")  # fmt: skip
    add("--check", action=argparse.BooleanOptionalAction, default=True,
        help="compare what comes out with what the generator put in")  # fmt: skip
    add("--beside", metavar="COMMAND",
        help="also run this on the same file, in turns: 'program {file} {workers}'")  # fmt: skip
    add("--against", type=Path, metavar="PATH",
        help="compare CPU a message with another built checkout, in turns")  # fmt: skip
    add("--mixed", action=argparse.BooleanOptionalAction, default=True,
        help="also over a file with TCP, fragments, tags and VXLAN")  # fmt: skip
    add("--flood", action=argparse.BooleanOptionalAction, default=True,
        help="also over a flood of forged queries with real pairs inside")  # fmt: skip
    add("--delivery", action=argparse.BooleanOptionalAction, default=True,
        help="also into a fluentd that acknowledges, and into a spool")  # fmt: skip
    add("--json", type=Path, default=traffic.OUT / "result.json", metavar="FILE")
    add("--dns-gazer", metavar="COMMAND", help="instead of the one beside this interpreter")
    add("--gazer", metavar="COMMAND", help="instead of the one beside this interpreter")
    return parser


def main() -> int:
    options = _parser().parse_args()
    if not shutil.which("tcpdump"):
        print("benchmark: tcpdump is not there; install it: apt-get install tcpdump",
              file=sys.stderr)  # fmt: skip
        return 1
    pairs = options.pairs or (100_000 if options.quick else 1_000_000)
    runs = options.runs or (1 if options.quick else 3)
    memory = not options.quick if options.memory is None else options.memory
    traffic.OUT.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    try:
        file, counts = traffic.cached(traffic.Parameters(pairs=pairs, seed=options.seed))
        commands = jobs.Commands(options.dns_gazer, options.gazer, traffic.OUT)
        mixture = flooding = None
        if options.mixed:
            mixture = mixed.cached(mixed.Parameters(pairs=pairs, seed=options.seed))
        if options.flood:
            # More than the table takes, even in a quick run.
            forged = max(pairs, 2 * flood.MAX_PENDING)
            flooding = flood.cached(flood.Parameters(forged, forged // 100, options.seed))
        bench = jobs.Bench(file, counts, commands, options.beside, say, mixture=mixture,
                           flooding=flooding, against=options.against)  # fmt: skip
        jobs.measure_all(bench, runs, memory, options.check)
        delivered = None
        if options.delivery:
            delivered = delivery.measure_all(commands, file, counts, runs, say)
    except measure.Failed as error:
        print(f"\nbenchmark: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"\nbenchmark: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbenchmark: interrupted", file=sys.stderr)
        return 130
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    print(report.render(bench))
    found = bench.as_json()
    if delivered:
        print("\n" + delivery.render(delivered))
        found["delivery"] = delivered.as_json()
    options.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(f"\nall figures: {options.json}")
    wrong = jobs.wrong(bench.requirements())
    for line in wrong:
        print(f"benchmark: wrong output: {line}", file=sys.stderr)
    # A figure that is not reached is for a reader to judge; a wrong result is a failure.
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
