"""The compiled half of gazer: every .pyx under gazer/ becomes an extension of the same name."""

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).parent
HEADERS = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("gazer/**/*.h"))

# -fno-strict-aliasing: ring entries are byte ranges that are read as structs.
COMPILE = ["-O3", "-g1", "-fno-strict-aliasing", "-fstack-protector-strong", "-Wno-unused-function"]
DIRECTIVES = {
    "language_level": "3",
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "embedsignature": True,
}


def extension(pyx: Path) -> Extension:
    parts = pyx.relative_to(ROOT).with_suffix("").parts
    return Extension(
        ".".join(parts),
        [str(pyx.relative_to(ROOT))],
        include_dirs=["gazer"],
        libraries=["pcap"] if parts[1] == "capture" else [],
        depends=HEADERS,
        extra_compile_args=COMPILE,
    )


setup(
    ext_modules=cythonize(
        [extension(p) for p in sorted(ROOT.glob("gazer/**/*.pyx"))],
        compiler_directives=DIRECTIVES,
    ),
)
