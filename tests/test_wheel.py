"""The wheel that carries libpcap: built from the sdist, installed where there is no compiler, run.

Building takes about a minute the first time; scripts/wheel.py keeps what it built, so that later
runs only compile when a source of the wheel has changed.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path
from types import ModuleType

import pytest

from gazer import __version__
from tests.conftest import CAPTURES, Runner

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "wheel.py"
COMPILERS = ("cc", "gcc", "clang", "c++", "ld", "as")
UNREACHABLE = re.compile(
    r"Could not (?:resolve|connect)|Temporary failure (?:in name resolution|resolving)"
    r"|Network is unreachable|Connection (?:refused|timed out)|Failed to establish a new connection"
)

pytestmark = pytest.mark.timeout(900)  # the first one builds


def cannot(why: str) -> None:
    """Skip where a machine can't do that; continuous integration has to."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist that it was built from."""
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(out)],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode != 0:
        if "as root, run this" in done.stderr or "there is no apt-get" in done.stderr:
            cannot(f"libpcap can't be built here: {done.stderr.splitlines()[-1]}")
        if UNREACHABLE.search(done.stderr):
            cannot("libpcap's source package can't be fetched: no network")
        pytest.fail(done.stdout + done.stderr)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


class Venv:
    """A fresh environment, with nothing else in PATH."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        subprocess.check_call([sys.executable, "-m", "venv", str(folder)])
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "CC", "LD_"))}
        self.env = kept | {"PATH": str(self.bin)}

    def __call__(self, program: str, *args: object, **more: object) -> tuple[int, bytes, str]:
        done = subprocess.run(
            [str(self.bin / program), *map(str, args)], env=self.env, capture_output=True,
            check=False, stdin=subprocess.DEVNULL, **more,  # type: ignore[call-overload]
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr.decode(errors="replace")


@pytest.fixture(scope="module")
def venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Venv:
    """The wheel and what it depends on, installed as an operator would."""
    made = Venv(tmp_path_factory.mktemp("sensor") / "venv")
    for name in COMPILERS:
        assert shutil.which(name, path=made.env["PATH"]) is None
    code, _, said = made("python", "-m", "pip", "install", "--only-binary", ":all:", wheel)
    if code != 0 and UNREACHABLE.search(said):
        cannot("the packages that gazer depends on can't be fetched: no network")
    assert code == 0, said
    return made


# --- what is in it --------------------------------------------------------------------------------


def test_the_tag_says_which_machines_it_runs_on(wheel: Path) -> None:
    name = re.fullmatch(
        rf"gazer-{re.escape(__version__)}-(\w+)-\1-manylinux_2_(\d+)_(\w+)\.whl", wheel.name
    )
    assert name, wheel.name
    assert name[1] == f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert int(name[2]) <= int(os.confstr("CS_GNU_LIBC_VERSION").split(".")[1])  # type: ignore[union-attr]
    assert name[3] == os.uname().machine


def test_it_holds_what_the_tree_holds(wheel: Path) -> None:
    """Every module, compiled or not, and what others need to cimport them; no C code."""
    listed = zipfile.ZipFile(wheel).namelist()
    names = {n for n in listed if n.startswith("gazer/") and not n.endswith("/")}
    ours = [p for p in (ROOT / "gazer").rglob("*") if p.is_file()]
    kept = {".py", ".pyx", ".pxd", ".pyi", ".h", ".typed"}
    assert {n for n in names if not n.endswith(".so")} == {
        str(p.relative_to(ROOT)) for p in ours if p.suffix in kept
    }
    assert {n.split(".")[0] for n in names if n.endswith(".so")} == {
        str(p.relative_to(ROOT).with_suffix("")) for p in ours if p.suffix == ".pyx"
    }


def test_the_licenses_travel(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    folder = f"gazer-{__version__}.dist-info"
    said = Parser().parsestr(archive.read(f"{folder}/METADATA").decode())
    assert said["License-Expression"] == "BSD-2-Clause AND BSD-3-Clause"
    assert said.get_all("License-File") == ["LICENSE", "LICENSE.libpcap"]
    text = archive.read(f"{folder}/licenses/LICENSE.libpcap").decode()
    for words in ("Regents of the University of California", "names of the authors", "AS IS"):
        assert words in text
    assert archive.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_it_depends_on_nothing_that_is_for_building(wheel: Path) -> None:
    said = zipfile.ZipFile(wheel).read(f"gazer-{__version__}.dist-info/METADATA").decode()
    needed = [line for line in said.splitlines() if line.startswith("Requires-Dist")]
    always = " ".join(line for line in needed if "extra ==" not in line).lower()
    assert "dnslib" in always
    for name in ("libpcap", "cython", "setuptools"):
        assert name not in always


def test_nothing_of_the_machine_that_built_it_is_inside(wheel: Path) -> None:
    places = [str(ROOT), str(Path.home()) + "/", "/gazer-wheel-", "/gazer-libpcap-"]
    if not sys.base_prefix.startswith("/usr"):
        places.append(sys.base_prefix)
    archive = zipfile.ZipFile(wheel)
    for name in archive.namelist():
        content = archive.read(name)
        found = [place for place in places if place.encode() in content]
        assert not found, f"{name} holds {found}"


def test_libpcap_is_inside_and_hidden(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    modules = sorted((tmp_path / "gazer").rglob("*.so"))
    assert len(modules) > 20
    whole = b"".join(path.read_bytes() for path in modules)
    assert b"libpcap version" in whole or b"pcap_compile" in whole or b"BPF program" in whole
    for path in modules:
        asked = subprocess.run(
            ["ldd", str(path)], capture_output=True, text=True, check=False
        ).stdout.split()  # fmt: skip
        libraries = {Path(word).name for word in asked if ".so" in word}
        foreign = {n for n in libraries if not re.match(r"(linux-vdso|ld-linux|libc|libm)\b", n)}
        assert not foreign, f"{path.name} asks for {foreign}"
        if shutil.which("nm"):
            shown = subprocess.check_output(["nm", "-D", "--defined-only", str(path)], text=True)
            assert " pcap_" not in shown, f"{path.name} shows libpcap's symbols to others"


# --- installed, and run ---------------------------------------------------------------------------


def test_only_what_is_needed_is_installed(venv: Venv) -> None:
    code, out, _ = venv("python", "-m", "pip", "list", "--format", "freeze")
    names = {line.split("==")[0].lower() for line in out.decode().splitlines()}
    assert code == 0
    assert {"gazer", "dnslib", "msgpack", "psutil", "pyyaml"} <= names
    assert not names & {"python-libpcap", "cython", "auditwheel"}


@pytest.mark.parametrize("capture", ["captured.pcap", "lossy.pcap", "raw-ip.pcap"])
def test_it_writes_the_bytes_that_the_tree_writes(
    venv: Venv, gazer: Runner, tmp_path: Path, capture: str
) -> None:
    code, out, said = venv("dns-gazer", "-r", CAPTURES / capture, "-R", "-t", "-", cwd=tmp_path)
    ours = gazer("-r", CAPTURES / capture, "-R", "-t", "-")
    assert (code, ours.code) == (0, 0)
    assert out == ours.stdout != b""
    assert said.splitlines() == ours.said


def test_libpcap_of_the_system_is_not_touched(venv: Venv, tmp_path: Path) -> None:
    """libpcap compiles a filter, and no file of that name is mapped."""
    code = f"""
import gazer
from gazer.capture.filter import filter_problem
assert gazer.__file__.startswith({str(venv.bin.parent)!r}), gazer.__file__
assert filter_problem("udp port 53 and host 192.0.2.1") is None
assert "syntax error" in str(filter_problem("no such thing"))
maps = open("/proc/self/maps").read()
assert "gazer/capture/filter" in maps
print([line for line in maps.splitlines() if "libpcap" in line])
"""
    assert venv("python", "-c", code, cwd=tmp_path) == (0, b"[]\n", "")


def test_a_filter_works_in_a_run(venv: Venv, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("capture: {filter: udp port 53}\n")
    code, out, said = venv("gazer", "run", "-c", config, "-r", CAPTURES / "captured.pcap")
    assert (code, out.count(b"\n")) == (0, 1), said
    config.write_text("capture: {filter: tcp port 53}\n")
    code, out, said = venv("gazer", "run", "-c", config, "-r", CAPTURES / "captured.pcap")
    assert (code, out) == (0, b""), said
    assert "filtered 2" in said


# --- the sdist ------------------------------------------------------------------------------------


def test_the_sdist_has_all_that_is_under_version_control(built: Path) -> None:
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a clone")
    listed = subprocess.check_output(["git", "-C", str(ROOT), "ls-files", "-z"]).decode()
    ours = {n for n in listed.split("\0") if n and (ROOT / n).is_file()} - {".gitignore"}
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {member.name.partition("/")[2] for member in tar if member.isfile()}
    assert not ours - names


# --- scripts/wheel.py itself ----------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("wheel_script", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("prepare", None)


def archive_of(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"gazer-1/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def test_what_a_wheel_is_made_of_decides_whether_it_is_built_again(
    script: ModuleType, tmp_path: Path
) -> None:
    first = {"gazer/a.pyx": "1", "gazer/b/c.pxd": "2", "setup.py": "3", "tests/t.py": "4"}

    def key(files: dict[str, str]) -> str:
        return str(script.ingredients(archive_of(tmp_path / "a.tar.gz", files)))

    known = key(first)
    others = {"tests/t.py": "5", "docs/d.md": "", "gazer.egg-info/SOURCES.txt": ""}
    assert key(first | others) == known
    for changed in (
        {"gazer/a.pyx": "5"}, {"gazer/b/c.pxd": "1"}, {"setup.py": ""}, {"gazer/new.h": ""},
        {"scripts/wheel.py": ""}, {"pyproject.toml": ""},
    ):  # fmt: skip
        assert key(first | changed) != known
    assert key({"gazer/a.pyx": "1", "gazer/b/c.pxd": "2", "tests/t.py": "4"}) != known


def test_modules_are_compiled_again_when_what_they_are_made_of_has_changed(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "COMPILED", tmp_path / "kept")
    monkeypatch.setattr(script, "COMPILED_NOTE", tmp_path / "kept" / "of.json")
    first = {"gazer/a.pyx": "1", "gazer/b/c.pyx": "2", "gazer/c.h": "", "setup.py": "3",
             "gazer/d.py": "4"}  # fmt: skip
    made = ("gazer/a.c", "gazer/b/c.c", "build/lib.x/gazer/a.so", "build/lib.x/gazer/b/c.so")

    def tree(name: str, files: dict[str, str]) -> tuple[Path, dict[str, object]]:
        archive = archive_of(tmp_path / f"{name}.tar.gz", files)
        script.unpack(archive, tmp_path / name)
        sources = script.ingredients(archive, script.MAKES_A_MODULE)
        return tmp_path / name / "gazer-1", {"sources": sources, "python": "3"}

    def files(folder: Path) -> set[str]:
        return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}

    one, made_of = tree("one", first)
    assert not script.lay_compiled(one, made_of), "nothing is kept yet"
    for name in (*made, "build/lib.x/gazer/d.py", "build/temp.x/a.o"):
        (one / name).parent.mkdir(parents=True, exist_ok=True)
        (one / name).write_text(name)
    script.keep_compiled(one, made_of)
    assert files(script.COMPILED) == {*made, "of.json"}

    # Python code and documents are no reason; a source is, for what is made of it.
    others = {"gazer/d.py": "5", "README.md": "", "pyproject.toml": "", "tests/t.py": ""}
    for number, (changed, newer) in enumerate((
        ({}, set()), (others, set()), ({"gazer/a.pyx": "5"}, {"gazer/a.pyx"}),
        ({"gazer/c.h": "5"}, {"gazer/c.h"}), ({"gazer/new.pyx": ""}, {"gazer/new.pyx"}),
    )):  # fmt: skip
        again, made_of = tree(f"again{number}", first | changed)
        assert script.lay_compiled(again, made_of)
        assert files(again) == {*first, *changed, *made}
        times = {name: (again / name).stat().st_mtime_ns for name in files(again)}
        c_code, modules = ([times[name] for name in made if name.endswith(end)]
                           for end in (".c", ".so"))  # fmt: skip
        assert max(c_code) <= min(modules)
        assert {name for name in times if times[name] >= max(modules)} - {*made} == newer

    for name in ("setup.py", "setup.cfg", "scripts/wheel.py"):
        other, made_of = tree(Path(name).stem, first | {name: ""})
        assert not script.lay_compiled(other, made_of)
    gone, made_of = tree("gone", {name: first[name] for name in first if name != "gazer/c.h"})
    assert not script.lay_compiled(gone, made_of)
    other, made_of = tree("python", first)
    assert not script.lay_compiled(other, made_of | {"python": "4"})
    assert files(other) == {*first}


def stand_in(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_where_the_source_of_libpcap_is_had_from(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit):
        script.source_of_libpcap()
    assert "there is no apt-get" in capsys.readouterr().err
    stand_in(tmp_path, "apt-get", "")
    stand_in(
        tmp_path, "apt-cache",
        """echo 'libpcap-dev | 9.9-1+u1 | http://a.example/sec suite-security/main amd64 Packages'
        echo 'libpcap-dev |   9.9-1 | http://a.example/all suite/main amd64 Packages'""",
    )  # fmt: skip
    assert script.source_of_libpcap() == ("9.9-1+u1", "http://a.example/sec suite-security main")
    stand_in(tmp_path, "apt-cache", "echo 'libpcap-dev | 1 | /var/lib/dpkg/status'")
    with pytest.raises(SystemExit):
        script.source_of_libpcap()
    assert "apt-get knows no libpcap-dev" in capsys.readouterr().err


def test_a_libpcap_of_ones_own_must_be_whole(tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "pcap.h").touch()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--libpcap", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == f"gazer: {tmp_path}/lib/libpcap.a: no such file\n"
