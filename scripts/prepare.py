"""Makes a checkout ready to run: what `make` does before everything else.

Three steps, each done only where something is missing or has changed:

    system   a compiler, the headers of this very Python and of libpcap, ensurepip.  Each is tried
             for real, not looked up in a list of packages, so a Python from elsewhere that brings
             its own headers needs nothing.  What is missing comes from apt-get.
    .venv    a virtual environment with the packages that pyproject.toml names, and the commands.
    build    the Cython modules, compiled in place.

What was done is noted in .venv/ready.json and build/ready.json; with nothing to do this takes a
few hundredths of a second.  Sources are compared by content: setup.py goes by file times, which
a restored or unpacked older file defeats, so such a change compiles everything anew.  A step that
was cut off leaves no note and is done again from its start.

Only the standard library is used here: nothing else is there yet.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_NOTE = VENV / "ready.json"
BUILD_NOTE = ROOT / "build" / "ready.json"
HELPERS = ROOT / "scripts" / "test-helpers.txt"

SOURCES = (".pyx", ".pxd", ".pxi", ".h")
BUILD_FLAGS = ("CC", "CFLAGS", "CPPFLAGS", "LDFLAGS", "LDSHARED", "GAZER_LIBPCAP")
PIP_ELSEWHERE = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_REQUIREMENT", "PIP_EDITABLE")

Note = dict[str, Any]


def say(text: str) -> None:
    print(f"gazer: {text}", flush=True)


def fail(text: str) -> NoReturn:
    print(f"gazer: {text}", file=sys.stderr, flush=True)
    raise SystemExit(1)


def environment(**more: str) -> dict[str, str]:
    """Ours, less what would send Python or pip elsewhere."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    for name in PIP_ELSEWHERE:
        env.pop(name, None)
    env.update(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1", PIP_USER="0", **more)
    return env


def run(command: list[str], **more: str) -> int:
    return subprocess.run(
        command, cwd=ROOT, env=environment(**more), stdin=subprocess.DEVNULL, check=False
    ).returncode


def works(command: list[str]) -> bool:
    """True if it ends with 0; what it has to say doesn't matter."""
    void = subprocess.DEVNULL
    return not subprocess.call(
        command, cwd=ROOT, env=environment(), stdin=void, stdout=void, stderr=void
    )


def read_note(path: Path) -> Note:
    try:
        note = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def write_note(path: Path, note: Note) -> None:
    path.parent.mkdir(exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(note, indent=1))
    fresh.replace(path)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One set-up of a checkout at a time: the second waits for the first, then finds it done."""
    fd = os.open(ROOT, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another make is setting up this checkout: waiting for it")
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


# --- system ---------------------------------------------------------------------------------------


def compiler() -> list[str] | None:
    """The command that setuptools will compile with, or None where there is none."""
    named = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    for command in (shlex.split(named), ["cc"]):
        if command and shutil.which(command[0]):
            return command
    return None


def compiles(cc: list[str], header: str, *flags: str) -> bool:
    """True if a program that includes `header` compiles and links."""
    with tempfile.TemporaryDirectory() as work:
        source = Path(work, "try.c")
        source.write_text(f"#include <{header}>\nint main(void) {{ return 0; }}\n")
        return works([*cc, str(source), "-o", str(Path(work, "try")), *flags])


def has_ensurepip() -> bool:
    """Debian leaves ensurepip, and the pip inside it, out of python3; `python -m venv` needs it."""
    try:
        importlib.import_module("venv")
        return bool(importlib.import_module("ensurepip").version())
    except Exception:  # a broken one fails in ways of its own; all that counts is that it does
        return False


def missing() -> dict[str, list[str]]:
    """What the system lacks -> the Debian packages that bring it."""
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    include = {sysconfig.get_path("include"), sysconfig.get_path("platinclude")}
    lacks: dict[str, list[str]] = {}
    if not has_ensurepip():
        lacks["ensurepip"] = [f"{python}-venv"]
    cc = compiler()
    if cc is None or not compiles(cc, "stdlib.h"):
        lacks["a C compiler"] = ["gcc", "libc6-dev"]
        # Without one the headers can only be looked for; the next round tries them for real.
        python_h = any(Path(d, "Python.h").exists() for d in include)
        pcap_h = Path("/usr/include/pcap/pcap.h").exists()
    else:
        python_h = compiles(cc, "Python.h", *(f"-I{d}" for d in include))
        pcap_h = compiles(cc, "pcap/pcap.h", "-lpcap")
    if not python_h:
        lacks["Python.h"] = [f"{python}-dev"]
    if not pcap_h:
        lacks["libpcap's headers"] = ["libpcap-dev"]
    return lacks


def root_command() -> list[str] | None:
    """What to put before a command that needs root; None where we may not."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") and works(["sudo", "-n", "true"]):
        return ["sudo", "-n"]
    return None


def apt_install(packages: list[str]) -> bool:
    """Install Debian packages without a question; False if we may not or it does not work."""
    become = root_command() if shutil.which("apt-get") else None
    if become is None:
        return False
    apt = [
        *become,
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "NEEDRESTART_SUSPEND=1",  # Ubuntu: leave the machine's services alone
        "apt-get",
        "-q",
        "-o=DPkg::Lock::Timeout=300",  # a new machine may be upgrading itself just now
    ]
    # One source that can't be reached need not matter, so it is the second that decides.
    told = [
        subprocess.run(
            [*apt, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        for command in (["update"], ["install", "-y", "--no-install-recommends", *packages])
    ]
    if told[-1].returncode != 0:
        for done in told:
            print(done.stdout.decode(errors="replace"), end="", file=sys.stderr)
    return told[-1].returncode == 0


def apt_line(packages: list[str]) -> str:
    sudo = "" if os.geteuid() == 0 else "sudo "
    names = " ".join(packages)
    return f"{sudo}apt-get update && {sudo}apt-get install -y --no-install-recommends {names}"


def check_system(tried: list[str]) -> None:
    """Have what a build needs, or end.  `tried`: the packages that were installed just before."""
    lacks = missing()
    if not lacks:
        return
    packages = [name for names in lacks.values() for name in names]
    what = ", ".join(lacks)
    ours = Path(sys.base_prefix) == Path("/usr")
    if not ours and {"ensurepip", "Python.h"} & set(lacks):
        fail(
            f"{sys.executable} has no {what}, and it isn't the system's: install the rest of it, "
            "or use the system's with: make PYTHON=/usr/bin/python3"
        )
    if set(packages) <= set(tried):
        fail(f"still without {what} after installing {' '.join(packages)}: see what failed above")
    say(f"this machine lacks {what}")
    if root_command() is None or not shutil.which("apt-get"):
        fail(f"as root, run this, then make again:\n{apt_line(packages)}")
    say(f"installing with apt-get: {' '.join(packages)}")
    if not apt_install(packages):
        fail(f"apt-get failed, see above; once it works, run this:\n{apt_line(packages)}")
    # Look again in a fresh process: this one has cached what isn't there.
    os.execv(
        sys.executable,
        [sys.executable, "-I", __file__, *sys.argv[1:], "--tried", *tried, *packages],
    )


def install_helpers() -> None:
    """The programs in test-helpers.txt, where they can be had; tests skip without them."""
    lines = [line.split("#")[0].split() for line in HELPERS.read_text().splitlines()]
    lacks = {line[0]: line[1] for line in lines if line and not shutil.which(line[0])}
    if lacks:
        say(f"installing programs that tests use: {' '.join(lacks)}")
        if not apt_install(sorted(set(lacks.values()))):
            say(f"not installed: {' '.join(lacks)}; the tests that use them will be skipped")


# --- .venv ----------------------------------------------------------------------------------------


def project() -> dict[str, Any]:
    import tomllib  # not at the top: an older Python gets its one line from setup.sh

    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements(extras: list[str]) -> list[str]:
    """What goes into .venv; pyproject.toml is where it is written."""
    spec = project()
    wanted: list[str] = spec["build-system"]["requires"] + spec["project"]["dependencies"]
    for extra in extras:
        wanted += spec["project"]["optional-dependencies"][extra]
    return wanted


def names_in(folder: Path) -> list[str]:
    """The names in a folder of .venv, but for those that carry a version or come and go."""
    skip = ("-info", "__pycache__", ".new")
    try:
        return sorted(p.name for p in folder.iterdir() if not p.name.endswith(skip))
    except OSError:
        return []


def inventory() -> dict[str, list[str]]:
    folders = [VENV / "bin", *VENV.glob("lib/python*/site-packages")]
    return {str(f.relative_to(VENV)): names_in(f) for f in folders}


def venv_trouble(note: Note) -> str | None:
    """Why .venv has to be made anew; None if it is sound."""
    if not VENV.exists():
        return "there is none"
    if not note:
        return "it was not finished"
    if note["checkout"] != str(ROOT):
        return f"it was made for {note['checkout']}"
    if os.environ.get("PYTHON") and note["base"] != base_python():
        return "another Python was asked for"
    if not Path(sys.prefix).exists() or not os.path.samefile(sys.prefix, VENV):
        # Run from elsewhere: setup.sh found .venv's Python dead or too old, or was told not to try.
        python = VENV / "bin" / "python"
        sound = "import pip, sys; sys.exit(sys.prefix == sys.base_prefix)"
        if not os.access(python, os.X_OK) or not works([str(python), "-I", "-c", sound]):
            return "its Python does not run"
    else:
        if note["version"] != list(sys.version_info[:2]):
            return "its Python is another version now"
    there = inventory()
    gone = [n for f, names in note["names"].items() for n in names if n not in there.get(f, [])]
    return f"it has lost {', '.join(gone[:3])}" if gone else None


def base_python() -> str:
    """The Python to make .venv with: this one, or where this is .venv's own, the one behind it."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def metadata() -> str:
    """Stands for all that the installed metadata and commands are made from."""
    text = (ROOT / "pyproject.toml").read_bytes() + (ROOT / "gazer" / "__init__.py").read_bytes()
    return hashlib.sha256(text).hexdigest()


def make_venv() -> None:
    if VENV.is_symlink() or VENV.is_file():
        VENV.unlink()
    elif VENV.exists():
        shutil.rmtree(VENV)
    if run([base_python(), "-m", "venv", str(VENV)]) != 0:
        fail(f"{base_python()} -m venv {VENV} failed: see above")


def pip(*arguments: str, **more: str) -> None:
    if run([str(VENV / "bin" / "python"), "-m", "pip", "install", "-q", *arguments], **more) != 0:
        fail("pip could not install that: see above")


def fill_venv(note: Note, extras: list[str]) -> Note:
    """Install what pyproject.toml names, link the checkout; return the new note."""
    python = str(VENV / "bin" / "python")
    wanted = requirements(extras)
    VENV_NOTE.unlink(missing_ok=True)
    try:
        if note.get("requirements") != wanted:
            say("installing into .venv what pyproject.toml names")
            pip(*wanted)
        pip("--no-deps", "--no-build-isolation", "-e", str(ROOT), GAZER_WITHOUT_EXTENSIONS="1")
    except SystemExit:
        if note:
            write_note(VENV_NOTE, note)  # what was there before still stands
        raise
    facts = "import json, sys, sysconfig as s; "
    facts += "print(json.dumps([sys.version_info[:2], s.get_config_var('EXT_SUFFIX')]))"
    answer = subprocess.check_output([python, "-I", "-c", facts], text=True)
    version, suffix = json.loads(answer)
    note = {
        "checkout": str(ROOT),
        "base": os.path.realpath(python),
        "version": version,
        "suffix": suffix,
        "extras": extras,
        "requirements": wanted,
        "metadata": metadata(),
        "names": inventory(),
    }
    write_note(VENV_NOTE, note)
    return note


# --- build ----------------------------------------------------------------------------------------


def sources() -> dict[str, str]:
    """All that the compiled modules are made from -> a hash of the content."""
    files = [p for p in (ROOT / "gazer").rglob("*") if p.suffix in SOURCES]
    files += [ROOT / "setup.py", ROOT / "pyproject.toml"]
    return {
        str(p.relative_to(ROOT)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(files)
    }


def products() -> dict[str, list[int]]:
    found = sorted((ROOT / "gazer").rglob("*.so"))
    return {str(p.relative_to(ROOT)): [p.stat().st_size, p.stat().st_mtime_ns] for p in found}


def build_flags() -> dict[str, str]:
    return {name: os.environ[name] for name in BUILD_FLAGS if os.environ.get(name)}


def must_force(note: Note, now: dict[str, str]) -> str | None:
    """Why file times can't be trusted to say what to compile; None if they can."""
    if not note:
        return "nothing is known of an earlier build"
    if note["flags"] != build_flags():
        return "the compiler's flags in the environment have changed"
    before: dict[str, str] = note["sources"]
    for name in sorted(before.keys() - now.keys()):
        if not name.endswith(".pyx"):  # its module goes with it; others may have used the rest
            return f"{name} is gone"
    for name in (n for n in now if now[n] != before.get(n)):
        if name == "setup.py" or (ROOT / name).stat().st_mtime <= note["time"]:
            return f"{name} has changed"
    return None


def is_built(note: Note, now: dict[str, str], suffix: str) -> bool:
    made = products()
    wanted = [name.removesuffix(".pyx") + suffix for name in now if name.endswith(".pyx")]
    return bool(
        note
        and note["sources"] == now
        and note["flags"] == build_flags()
        and note["products"] == made
        and all(name in made for name in wanted)
    )


def drop_orphans() -> None:
    """A module whose source is gone or is Python now would still be imported, ahead of that."""
    for so in (ROOT / "gazer").rglob("*.so"):
        if not so.with_name(so.name.split(".")[0] + ".pyx").exists():
            say(f"removing {so.relative_to(ROOT)}: its source is gone")
            so.unlink()


def build(python: str, now: dict[str, str]) -> None:
    note = read_note(BUILD_NOTE)
    reason = must_force(note, now)
    command = [python, "setup.py", "-q", "build_ext", "--inplace"]
    more = {}
    if reason:
        command.append("--force")
        more["CYTHON_FORCE_REGEN"] = "1"
    say(f"compiling ({reason or 'what has changed'})")
    cc = compiler()
    if cc == ["cc"] and "CC" not in os.environ:
        more["CC"] = "cc"  # the compiler that Python itself was built with isn't here
    started = time.time()
    BUILD_NOTE.unlink(missing_ok=True)
    code = run(command, **more)
    if code > 0 and note:
        write_note(BUILD_NOTE, note)  # an error in a source: what was built before still stands
    if code != 0:
        fail("the build failed: see above")
    drop_orphans()
    write_note(
        BUILD_NOTE,
        {"sources": now, "products": products(), "flags": build_flags(), "time": started},
    )


# --- all of it ------------------------------------------------------------------------------------


def give_back() -> None:
    """After `sudo make` in somebody's checkout: what was made is theirs, not root's."""
    owner = ROOT.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    made = [VENV, ROOT / "build", *ROOT.glob("*.egg-info")]
    made += [p for p in (ROOT / "gazer").rglob("*") if p.suffix in (".so", ".c")]
    for top in made:
        for path in [top, *(top.rglob("*") if top.is_dir() else ())]:
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def prepare(step: str, extras: list[str], tried: list[str]) -> None:
    note = read_note(VENV_NOTE)
    trouble = venv_trouble(note)
    if trouble:
        note = {}
    extras = sorted({"test", *extras, *note.get("extras", [])})
    wanted = requirements(extras)
    now = sources()
    install = note.get("requirements") != wanted
    link = note.get("metadata") != metadata()
    compile_it = step == "build" and (
        install or link or not is_built(read_note(BUILD_NOTE), now, note["suffix"])
    )
    if not (install or link or compile_it):
        return

    for place in (ROOT, VENV, ROOT / "build"):
        if place.exists() and not os.access(place, os.W_OK):
            fail(f"can't write to {place}, another user's: remove it, or run make with sudo")
    check_system(tried)
    python = str(VENV / "bin" / "python")
    if trouble:
        say(f"making .venv ({trouble})")
        make_venv()
    if install or link:
        note = fill_venv(note, extras)
    if step == "build" and not is_built(read_note(BUILD_NOTE), now, note["suffix"]):
        build(python, now)
    give_back()


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes a checkout ready to run.")
    parser.add_argument("step", choices=["setup", "build", "helpers"])
    parser.add_argument("--extra", action="append", default=[], help="a group in pyproject.toml")
    parser.add_argument("--tried", nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step == "helpers":
        install_helpers()
        return
    with alone():
        prepare(options.step, options.extra, options.tried)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        fail("interrupted")
    except OSError as error:
        fail(str(error))
