"""What is built, from what, and when again.  The rebuilding is tried on a tree of two tiny modules
with the real setup.py (but for -O3) and scripts, so that it takes seconds."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

import gazer

ROOT = Path(__file__).parent.parent
OUR_SOURCES = {".pyx", ".pxd", ".h", ".pyi"}

TINY = {
    "__init__.py": '__version__ = "0"\n',
    "leaf.pxd": "cdef inline int leaf() noexcept:\n    return 1\n",
    "middle.pxd": "from gazer.leaf cimport leaf\n"
    "cdef inline int middle() noexcept:\n    return 10 * leaf()\n",
    "inner.h": "#define NUMBER -7\n",
    "number.h": '#include "inner.h"\n',
    "top.pyx": 'cdef extern from "number.h":\n    int NUMBER\n'
    "from gazer.middle cimport middle\n"
    "def value(int b=2): return 100 * middle() + NUMBER // b\n",
    "alone.pyx": "def value(): return 1\n",
}


def load_prepare(tree: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare", tree / "scripts" / "prepare.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Tree:
    """A checkout in small."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.gazer = root / "gazer"
        shutil.copytree(ROOT / "scripts", root / "scripts")
        for name in ("setup.py", "pyproject.toml", "LICENSE"):
            shutil.copy(ROOT / name, root)
        (root / "README.md").touch()
        self.gazer.mkdir()
        for name, text in TINY.items():
            (self.gazer / name).write_text(text)
        self.edit("setup.py", '"-O3", "-g1"', '"-O0", "-g0"')

    def build(self) -> None:
        """What `python setup.py build_ext --inplace` does by itself."""
        run = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(run, cwd=self.root, capture_output=True, check=True)

    def value(self, module: str) -> int:
        code = f"import gazer.{module} as m; print(m.value())"
        answer = subprocess.check_output([sys.executable, "-c", code], cwd=self.root, text=True)
        return int(answer)

    def made(self) -> dict[str, int]:
        """Each compiled module and when it was made."""
        return {p.name.split(".")[0]: p.stat().st_mtime_ns for p in self.gazer.glob("*.so")}

    def edit(self, name: str, old: str, new: str) -> Path:
        path = self.root / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        return path


def test_rebuilds_what_changed_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One story on one tree, since each compilation costs a second or more."""
    for name in ("CC", "CFLAGS", "CPPFLAGS", "LDFLAGS", "LDSHARED"):
        monkeypatch.delenv(name, raising=False)
    tree = Tree(tmp_path)
    prepare = load_prepare(tree.root)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")

    def is_built() -> bool:
        note = prepare.read_note(prepare.BUILD_NOTE)
        return bool(prepare.is_built(note, prepare.sources(), suffix))

    def build() -> str:
        prepare.build(sys.executable, prepare.sources())
        assert is_built()
        return capfd.readouterr().out

    # From nothing, and loud enough to show the compiler's command line.
    quiet_run = prepare.run
    monkeypatch.setattr(
        prepare, "run", lambda line, **env: quiet_run([w for w in line if w != "-q"], **env)
    )
    assert not is_built()
    compile_lines = [line for line in build().splitlines() if " -c gazer/" in line]
    assert len(compile_lines) == 2
    for line in compile_lines:
        assert "-fno-strict-aliasing" in line
        assert "-march" not in line, "what is built here has to run on another machine"
        assert "=native" not in line
    assert (tree.value("top"), tree.value("alone")) == (1000 - 3, 1)
    first = tree.made()

    # A .pxd that only another .pxd cimports: what depends on it, and that alone.
    tree.edit("gazer/leaf.pxd", "return 1", "return 2")
    tree.build()
    assert tree.value("top") == 2000 - 3
    second = tree.made()
    assert {name for name in first if first[name] != second[name]} == {"top"}

    # An older file put back: file times say that there is nothing to do, the content says more.
    leaf = tree.edit("gazer/leaf.pxd", "return 2", "return 3")
    os.utime(leaf, (1_000_000_000, 1_000_000_000))
    assert not is_built()
    assert "gazer/leaf.pxd has changed" in build()
    assert tree.value("top") == 3000 - 3
    leaf.touch()
    assert is_built(), "a new time without a change is nothing to do"

    # An error in a source ends it; what is known of the rest still stands.
    tree.edit("gazer/alone.pyx", "return", "return +")
    tree.edit("gazer/alone.pyx", "+ 1", "+ ")
    with pytest.raises(SystemExit):
        build()
    assert prepare.must_force(prepare.read_note(prepare.BUILD_NOTE), prepare.sources()) is None

    # A module that is gone must not be imported from what was built of it; one whose compiled
    # half is gone comes back.
    (tree.gazer / "alone.pyx").unlink()
    next(tree.gazer.glob("top.*.so")).unlink()
    assert not is_built()
    build()
    assert tree.made().keys() == {"top"}

    # A header that only a header includes: Cython does not know of it.
    tree.edit("gazer/inner.h", "-7", "-9")
    tree.build()
    assert tree.value("top") == 3000 - 4

    # What setup.py says goes into the C code of all.
    tree.edit("setup.py", '"cdivision": True', '"cdivision": False')
    tree.build()
    assert tree.value("top") == 3000 - 5


def test_venv_is_made_anew_where_it_is_not_sound(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    prepare = load_prepare(tree.root)
    venv = tree.root / ".venv"
    assert prepare.venv_trouble({}) == "there is none"

    subprocess.check_call([sys.executable, "-m", "venv", "--without-pip", str(venv)])
    site = next(venv.glob("lib/python*/site-packages"))
    for package in ("pip", "dnslib"):
        (site / package).mkdir()
        (site / package / "__init__.py").touch()
    assert prepare.venv_trouble({}) == "it was not finished"

    note = {
        "checkout": str(tree.root),
        "version": list(sys.version_info[:2]),
        "base": prepare.base_python(),
        "names": prepare.inventory(),
    }
    assert prepare.venv_trouble(note) is None
    assert prepare.venv_trouble(note | {"checkout": "/elsewhere"}) == "it was made for /elsewhere"

    shutil.rmtree(site / "dnslib")
    assert prepare.venv_trouble(note) == "it has lost dnslib"
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to("/no/such/python")
    assert prepare.venv_trouble(note) == "its Python does not run"


def test_headers_are_tried_for_real() -> None:
    prepare = load_prepare(ROOT)
    cc = prepare.compiler()
    assert cc
    assert prepare.compiles(cc, "stdlib.h")
    assert not prepare.compiles(cc, "gazer/no-such-header.h")
    assert not prepare.compiles(cc, "stdlib.h", "-lno-such-library-of-gazer")
    assert prepare.missing() == {}


def test_where_it_may_not_install_it_prints_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare = load_prepare(ROOT)
    monkeypatch.setattr(prepare, "missing", lambda: {"libpcap's headers": ["libpcap-dev"]})
    monkeypatch.setattr(prepare, "root_command", lambda: None)
    monkeypatch.setattr(prepare.os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit) as end:
        prepare.check_system([])
    assert end.value.code == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == (
        "sudo apt-get update && sudo apt-get install -y --no-install-recommends libpcap-dev"
    )


def test_what_was_installed_and_is_still_missing_ends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare = load_prepare(ROOT)
    monkeypatch.setattr(prepare, "missing", lambda: {"libpcap's headers": ["libpcap-dev"]})
    with pytest.raises(SystemExit):
        prepare.check_system(["libpcap-dev"])
    assert "still without libpcap's headers" in capsys.readouterr().err


def test_an_old_python_gets_one_line() -> None:
    done = subprocess.run(
        ["sh", str(ROOT / "scripts" / "setup.sh"), "build"],
        env=os.environ | {"PYTHON": "/bin/false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r"gazer: needs Python 3\.11 or later, found none .*\n", done.stderr)


def test_prepare_needs_only_the_standard_library() -> None:
    code = ast.parse((ROOT / "scripts" / "prepare.py").read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(code)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= sys.stdlib_module_names


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The source distribution: path -> content."""
    work = tmp_path_factory.mktemp("sdist")
    leave = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__")
    shutil.copytree(ROOT, work / "gazer", ignore=leave)
    subprocess.run(
        [sys.executable, "-c", "import setuptools.build_meta as b; b.build_sdist('..')"],
        cwd=work / "gazer",
        env=os.environ | {"GAZER_WITHOUT_EXTENSIONS": "1"},  # the C code isn't shipped: don't wait
        check=True,
        capture_output=True,
    )
    with tarfile.open(next(work.glob("*.tar.gz"))) as tar:
        return {
            m.name.partition("/")[2]: tar.extractfile(m).read()  # type: ignore[union-attr]
            for m in tar.getmembers()
            if m.isfile()
        }


def test_sdist_holds_every_source_and_nothing_built(sdist: dict[str, bytes]) -> None:
    ours = {
        str(p.relative_to(ROOT))
        for p in (ROOT / "gazer").rglob("*")
        if p.suffix in OUR_SOURCES | {".py"}
    }
    assert len(ours) > 10
    assert ours <= sdist.keys()
    assert {"setup.py", "Makefile", "LICENSE", "tests/test_build.py"} <= sdist.keys()
    assert not [name for name in sdist if name.endswith((".so", ".pyc"))]
    assert not [name for name in sdist if name.startswith("gazer/") and name.endswith(".c")]
    assert "tests/fuzz/driver.c" in sdist


def test_metadata(sdist: dict[str, bytes]) -> None:
    said = Parser().parsestr(sdist["PKG-INFO"].decode())
    assert said["Version"] == gazer.__version__
    assert said["License-Expression"] == "BSD-2-Clause"
    assert said["License-File"] == "LICENSE"


def test_what_is_installed_is_this_version() -> None:
    try:
        installed = metadata.version("gazer")
    except metadata.PackageNotFoundError:
        pytest.skip("gazer is not installed in this environment")
    assert installed == gazer.__version__
