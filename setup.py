"""The compiled half of gazer: every .pyx under gazer/ becomes an extension of the same name."""

import os
from pathlib import Path

from Cython.Build import cythonize
from Cython.Compiler.Errors import CompileError
from setuptools import Extension, setup

ROOT = Path(__file__).parent
CORES = len(os.sched_getaffinity(0))
HEADERS = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("gazer/**/*.h"))

# -fno-strict-aliasing: ring entries are byte ranges that are read as structs.
# No -march: a wheel or a package built on one machine has to run on the next.
COMPILE = ["-O3", "-g1", "-fno-strict-aliasing", "-fstack-protector-strong", "-Wno-unused-function"]
# One event is one large function of many small ones; gcc's limits would leave some of them out.
INLINE = ["--param=inline-unit-growth=400", "--param=large-function-growth=4000"]
DIRECTIVES = {
    "language_level": "3",
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "embedsignature": True,
}


# A static libpcap, below this folder, in place of the system's: scripts/wheel.py has it so.
LIBPCAP = os.environ.get("GAZER_LIBPCAP")


def extension(pyx: Path) -> Extension:
    parts = pyx.relative_to(ROOT).with_suffix("").parts
    captures = parts[1] == "capture"
    return Extension(
        ".".join(parts),
        [str(pyx.relative_to(ROOT))],
        include_dirs=["gazer", *([f"{LIBPCAP}/include"] if captures and LIBPCAP else [])],
        libraries=["pcap"] if captures and not LIBPCAP else [],
        extra_objects=[f"{LIBPCAP}/lib/libpcap.a"] if captures and LIBPCAP else [],
        # What is linked in stays inside: another libpcap in the process is neither used nor hidden.
        extra_link_args=["-Wl,--exclude-libs,ALL"] if captures and LIBPCAP else [],
        depends=[*HEADERS, "setup.py"],
        extra_compile_args=COMPILE + (INLINE if parts[-1] == "encode" else []),
    )


def extensions() -> list[Extension]:
    """What to compile.  Cython follows .pyx and .pxd, setuptools the `depends`; neither looks at
    the directives above, so C code older than this file is made again."""
    if os.environ.get("GAZER_WITHOUT_EXTENSIONS") == "1":  # scripts/prepare.py builds them itself
        return []
    sources = sorted(ROOT.glob("gazer/**/*.pyx"))
    made = [c for c in (pyx.with_suffix(".c") for pyx in sources) if c.exists()]
    here = (ROOT / "setup.py").stat().st_mtime
    try:
        return cythonize(
            [extension(pyx) for pyx in sources],
            compiler_directives=DIRECTIVES,
            nthreads=CORES,
            force=any(c.stat().st_mtime < here for c in made) or None,  # None: the environment says
        )
    except CompileError as error:  # Cython has said all; our own traceback adds nothing
        raise SystemExit(f"does not compile: {error}") from None


if __name__ == "__main__":  # cythonize's helper processes may import this file
    setup(ext_modules=extensions(), options={"build_ext": {"parallel": CORES}})
