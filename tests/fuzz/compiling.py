"""Compiles the fuzz targets, in two ways, into build/fuzz; never over the modules of the sensor.

plain       the targets alone, with the compiler that the sensor was built with, beside its own
            modules: what tests/test_fuzz.py runs the corpora with
sanitized   all of gazer's modules (but its doors) and the targets, by clang, with coverage, the
            address sanitizer and the one for undefined behaviour, and the driver: `make fuzz`

Each step is done only where something has changed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "fuzz"
SUPPORT = ["outputs"]
TARGETS = sorted(
    path.stem for path in HERE.glob("*.pyx") if path.stem not in ("outputs", "planted"))
DOORS = ("testing", "doors", "probe")
CORES = len(os.sched_getaffinity(0))

PLAIN = ["-O0", "-g0", "-fno-strict-aliasing"]
# Signed numbers must not overflow here, whatever -fwrapv makes of it in the sensor.
SANITIZED = [
    "-O1", "-g1", "-fno-strict-aliasing", "-fno-wrapv", "-fno-omit-frame-pointer",
    "-fsanitize=fuzzer-no-link,address,undefined", "-fno-sanitize-recover=all",
    f"-fsanitize-ignorelist={HERE / 'ignore.txt'}", "-Wno-unused-function",
]
DRIVER = [*SANITIZED[:5], "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]

Source = tuple[str, Path, list[str]]    # module, .pyx, further arguments
# What checks is not what is tested: its branches are no coverage, and it is to be fast.
UNSANITIZED = ["-O2", "-fno-sanitize=all"]


def clang() -> str | None:
    """The newest clang that has libFuzzer; None where there is none."""
    names = ["clang", *(f"clang-{version}" for version in range(25, 12, -1))]
    for name in names:
        path = shutil.which(name)
        if path and _has_fuzzer(path):
            return path
    return None


def _has_fuzzer(path: str) -> bool:
    """Whether it can link with libFuzzer, tried for real."""
    BUILD.mkdir(parents=True, exist_ok=True)
    code = b"int LLVMFuzzerTestOneInput(const char *p, unsigned long n) {return !(n || p || 1);}"
    done = subprocess.run(
        [path, "-xc", "-", "-o", str(BUILD / "try"), "-fsanitize=fuzzer,address,undefined"],
        input=code, capture_output=True, check=False)
    return done.returncode == 0


def _setup() -> object:
    """setup.py as a module: its directives are the sensor's."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("gazer_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def translate(sources: list[Source], to: Path) -> dict[str, Path]:
    """.pyx to .c, by Cython, which looks itself at what each depends on."""
    from Cython.Build import cythonize
    from setuptools import Extension

    setup = _setup()
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        made = cythonize(
            [Extension(name, [str(pyx.relative_to(ROOT))]) for name, pyx, _ in sources],
            compiler_directives=setup.DIRECTIVES,       # type: ignore[attr-defined]
            include_path=[str(ROOT), str(HERE)], build_dir=str(to / "c"),
            nthreads=CORES, quiet=True)
    finally:
        os.chdir(before)
    return {extension.name: ROOT / extension.sources[0] for extension in made}


def _newer(product: Path, *inputs: Path) -> bool:
    if not product.exists():
        return False
    made = product.stat().st_mtime_ns
    return all(path.stat().st_mtime_ns <= made for path in inputs)


def compile_all(sources: list[Source], to: Path, compiler: list[str], flags: list[str]) -> None:
    """Into to/lib, each beside its package."""
    made = translate(sources, to)
    note = to / "flags.json"
    command = [*compiler, *flags]
    same = note.exists() and json.loads(note.read_text()) == command
    headers = sorted(ROOT.glob("gazer/**/*.h")) + sorted(HERE.glob("*.h"))
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    include = [f"-I{sysconfig.get_path('include')}", f"-I{ROOT / 'gazer'}", f"-I{HERE}"]
    jobs = []
    for name, _, more in sources:
        product = (to / "lib").joinpath(*name.split(".")).with_suffix(suffix)
        if same and _newer(product, made[name], *headers):
            continue
        product.parent.mkdir(parents=True, exist_ok=True)
        jobs.append([*command, "-shared", "-fPIC", *include, str(made[name]), "-o", str(product),
                     *more])
    note.unlink(missing_ok=True)
    with ThreadPoolExecutor(CORES) as pool:
        for job, done in zip(jobs, pool.map(_run, jobs), strict=True):
            if done.returncode:
                raise SystemExit(f"{' '.join(job)}\n{done.stderr.decode(errors='replace')}")
    note.write_text(json.dumps(command))


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, capture_output=True, check=False)


def targets(names: list[str], support: list[str]) -> list[Source]:
    return [(name, HERE / f"{name}.pyx", support if name in SUPPORT else []) for name in names]


def plain(names: list[str] | None = None) -> Path:
    """The folder of the targets for the sensor's own modules."""
    to = BUILD / "plain"
    compiler = [(sysconfig.get_config_var("CC") or "cc").split()[0]]
    if not shutil.which(compiler[0]):
        compiler = ["cc"]
    compile_all(targets([*SUPPORT, *TARGETS] if names is None else names, []), to, compiler, PLAIN)
    return to / "lib"


def sanitized(names: list[str] | None = None, compiler: str | None = None) -> tuple[Path, Path]:
    """(the driver, the folder of all modules); `names` without gazer's: for tests of the driver."""
    compiler = compiler or clang()
    assert compiler, "no clang"
    to = BUILD / ("sanitized" if names is None else "-".join(names))
    sources: list[Source] = []
    if names is None:
        for pyx in sorted(ROOT.glob("gazer/**/*.pyx")):
            parts = pyx.relative_to(ROOT).with_suffix("").parts
            if parts[-1] not in DOORS and not parts[-1].endswith("_door"):
                sources.append((".".join(parts), pyx, ["-lpcap"] if "capture" in parts else []))
    sources += targets([*SUPPORT, *TARGETS] if names is None else names, UNSANITIZED)
    compile_all(sources, to, [compiler], SANITIZED)
    if names is None:
        _mirror(to / "lib")
    return _driver(compiler), to / "lib"


def _mirror(lib: Path) -> None:
    """The Python half of the package, as links, beside the compiled one."""
    wanted = {path.relative_to(ROOT) for path in ROOT.glob("gazer/**/*.py")}
    for path in lib.glob("gazer/**/*.py"):
        if path.relative_to(lib) not in wanted:
            path.unlink()
    for path in wanted:
        link = lib / path
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(ROOT / path)


def _driver(compiler: str) -> Path:
    product = BUILD / "driver"
    note = BUILD / "driver.json"
    where = sysconfig.get_config_var("LIBDIR")
    version = sysconfig.get_config_var("LDVERSION")
    command = [compiler, *DRIVER, f"-I{sysconfig.get_path('include')}", str(HERE / "driver.c"),
               "-o", str(product), f"-L{where}", f"-Wl,-rpath,{where}", f"-lpython{version}",
               "-ldl", "-lm"]
    if (note.exists() and json.loads(note.read_text()) == command
            and _newer(product, HERE / "driver.c")):
        return product
    done = _run(command)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr.decode(errors='replace')}")
    note.write_text(json.dumps(command))
    return product


def environment(lib: Path, target: str, leaks: bool = True) -> dict[str, str]:
    """What the driver needs to know, and what the sanitizers are told."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    env.update(
        GAZER_FUZZ_PYTHON=sys.executable, GAZER_FUZZ_PATH=str(lib), GAZER_FUZZ_TARGET=target,
        ASAN_OPTIONS=f"detect_leaks={int(leaks)}:abort_on_error=0:allocator_may_return_null=1"
                     ":quarantine_size_mb=32",
        UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1")
    symbolizer = next((path for name in ["llvm-symbolizer", *(
        f"llvm-symbolizer-{version}" for version in range(25, 12, -1))]
        if (path := shutil.which(name))), None)
    if symbolizer:
        env["ASAN_SYMBOLIZER_PATH"] = symbolizer
    return env
