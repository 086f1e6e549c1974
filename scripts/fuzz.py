"""Fuzzing with coverage and sanitizers: what `make fuzz` runs.

    python scripts/fuzz.py                      every target, a minute each
    python scripts/fuzz.py -s 600 message       ten minutes of one
    python scripts/fuzz.py --replay FILE message
    python scripts/fuzz.py --keep               what is new goes into tests/corpora, minimised

Everything is compiled anew by clang into build/fuzz (tests/fuzz/compiling.py); the modules that the
sensor runs on are not touched.  A target begins with its corpus in tests/corpora, with what it has
found before (build/fuzz/work) and with seeds from tests/captures.  What makes it fail is kept in
build/fuzz/findings, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "fuzz"))

import compiling  # noqa: E402
import corpora  # noqa: E402
import seeds  # noqa: E402

WORK = compiling.BUILD / "work"
FINDINGS = compiling.BUILD / "findings"
PACKAGES = "clang libclang-rt-14-dev llvm"      # Debian 12's names

LONGEST = {"captures": 8192, "engine": 4096, "fragments": 512, "message": 2048, "packet": 512,
           "streams": 2048}
LARGEST_KEPT = 4096         # octets; a longer input is not worth its place in the repository
MOST_KEPT = 280_000         # octets of a target's corpus


@dataclass
class Result:
    executions: int = 0
    seconds: float = 0.0
    coverage: int = 0
    features: int = 0
    found: tuple[Path, ...] = ()
    tail: str = ""


def install() -> str:
    """clang with libFuzzer, installed if need be."""
    found = compiling.clang()
    if found:
        return found
    sys.path.insert(0, str(ROOT / "scripts"))
    import prepare

    prepare.apt_install(PACKAGES.split())
    found = compiling.clang()
    if not found:
        raise SystemExit(f"gazer: fuzzing needs clang with libFuzzer: apt-get install {PACKAGES}")
    return found


def drive(driver: Path, lib: Path, target: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(driver), *arguments], env=compiling.environment(lib, target), cwd=ROOT,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", check=False)


def folders(target: str) -> list[str]:
    """Where its inputs are; the first is where libFuzzer puts new ones."""
    work, kept, made = (
        compiling.BUILD / name / target for name in ("work", "corpora", "seeds"))
    work.mkdir(parents=True, exist_ok=True)
    corpora.unpack(target, kept)
    seeds.make(target, made)
    return [str(path) for path in (work, kept, made)]


def fuzz(driver: Path, lib: Path, target: str, seconds: int, seed: int) -> Result:
    before = set(FINDINGS.glob(f"{target}-*"))
    start = time.monotonic()
    done = drive(
        driver, lib, target, f"-max_total_time={seconds}", f"-max_len={LONGEST[target]}",
        "-timeout=10", "-rss_limit_mb=2048", "-detect_leaks=0", "-print_final_stats=1", "-reload=0",
        f"-seed={seed}", f"-artifact_prefix={FINDINGS}/{target}-", *folders(target))
    result = Result(seconds=time.monotonic() - start)
    for number in re.findall(r"^#(\d+)\s", done.stdout, re.M):
        result.executions = max(result.executions, int(number))
    for number in re.findall(r"number_of_executed_units: (\d+)", done.stdout):
        result.executions = int(number)
    for coverage, features in re.findall(r"cov: (\d+) ft: (\d+)", done.stdout):
        result.coverage, result.features = int(coverage), int(features)
    result.found = tuple(sorted(set(FINDINGS.glob(f"{target}-*")) - before))
    if done.returncode:
        lines = done.stdout.splitlines()
        at = next((i for i, line in enumerate(lines) if re.search(
            r"ERROR: |runtime error: |fuzz: ", line)), max(0, len(lines) - 30))
        result.tail = "\n".join(lines[at:at + 30])
    return result


def keep(driver: Path, lib: Path, target: str) -> tuple[int, int]:
    """The least set of inputs that reaches all that is reached; (files, octets)."""
    fresh = WORK / f"{target}.kept"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    done = drive(driver, lib, target, "-merge=1", f"-max_len={LARGEST_KEPT}", "-timeout=10",
                 str(fresh), *folders(target))
    if done.returncode:
        raise SystemExit(f"{target}: can't be merged\n{done.stdout[-3000:]}")
    octets = 0
    kept = []
    for path in sorted(fresh.iterdir(), key=lambda path: (path.stat().st_size, path.name)):
        if octets + path.stat().st_size > MOST_KEPT:
            break
        octets += path.stat().st_size
        kept.append(path)
    corpora.pack(target, kept)
    shutil.rmtree(fresh)
    return len(kept), octets


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", nargs="*", help=f"of {', '.join(compiling.TARGETS)}; default all")
    parser.add_argument("-s", "--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations; 0: any")
    parser.add_argument("--replay", metavar="FILE", help="run one input and show what happens")
    parser.add_argument("--keep", action="store_true", help="put what is new into tests/corpora")
    options = parser.parse_args()
    names = options.target or compiling.TARGETS
    unknown = [name for name in names if name not in compiling.TARGETS]
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(compiling.TARGETS)}")
    driver, lib = compiling.sanitized(compiler=install())
    FINDINGS.mkdir(parents=True, exist_ok=True)
    if options.replay:
        done = drive(driver, lib, names[0], str(Path(options.replay).resolve()))
        print(done.stdout)
        return int(done.returncode != 0)
    failed = False
    for name in names:
        result = fuzz(driver, lib, name, options.seconds, options.seed)
        rate = result.executions / max(result.seconds, 0.001)
        print(f"{name}: {result.executions:,} executions in {result.seconds:.0f} s "
              f"({rate:,.0f}/s), {result.coverage:,} edges covered, "
              f"{len(result.found)} findings", flush=True)
        if result.found or result.tail:
            failed = True
            print(result.tail)
            for path in result.found:
                print(f"  make fuzz ARGS='--replay {path.relative_to(ROOT)} {name}'")
        if options.keep:
            print("  kept {:,} inputs, {:,} octets".format(*keep(driver, lib, name)), flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
