"""A machine with systemd as its process 1, for tests: in namespaces of its own, on a copy of this
machine's files that is written to nowhere else.

It sees the file system through an overlay, so whatever is changed in it, is gone with it; it has
its own processes, network, IPC, /run, /dev and cgroups.  Of units it has only what a test puts
there: none of this machine's services is started.

    with Machine.boot() as machine:         # or Unavailable, with the reason
        machine.run("systemctl", "start", "x.service")
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

SYSTEMD = Path("/lib/systemd/systemd")
TOOLS = ("unshare", "nsenter", "mount", "pivot_root", "systemctl", "ip")
TARGETS = ("idle", "sysinit", "basic", "network", "multi-user", "shutdown", "umount")

# In the new namespaces, as root: lay the overlay, mount what a machine has, become systemd.
SETUP = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$WORK"
mkdir "$WORK/upper" "$WORK/work" "$WORK/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$WORK/upper,workdir=$WORK/work" "$WORK/root"
cd "$WORK/root"
for path in $PLACES; do        # other file systems, which an overlay does not show
    mkdir -p ".$path"
    mount --bind "$path" ".$path"
done
mount -t proc proc proc
mount -o bind,ro proc/sys proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=0755 tmpfs run
mount -t tmpfs -o mode=0755 tmpfs dev
for device in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
    set -- $(echo "$device" | tr : ' ')
    mknod -m 0666 "dev/$1" c "$2" "$3"
done
ln -s /proc/self/fd dev/fd
ln -s pts/ptmx dev/ptmx
mkdir dev/shm dev/pts
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
chmod 1777 dev/shm
for folder in etc/systemd/system lib/systemd/system lib/systemd/system-generators \
        etc/systemd/system-generators usr/local/lib/systemd; do
    mkdir -p "$folder"
    mount -t tmpfs -o mode=0755 tmpfs "$folder"
done
for target in $TARGETS; do
    printf '[Unit]\nDefaultDependencies=no\n' >"etc/systemd/system/$target.target"
done
mkdir -p before
pivot_root . before
cd /
umount -l before
exec env -i container=gazer-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=idle.target --log-target=console --log-level=err
"""


class Unavailable(Exception):
    """It can't be had here; the text says why."""


def _cgroup() -> Path:
    """A new group in the unified hierarchy, to be the machine's root."""
    mounts = Path("/proc/self/mountinfo").read_text()
    found = re.search(r"^\S+ \S+ \S+ \S+ (\S+) .* - cgroup2 ", mounts, re.M)
    if not found:
        raise Unavailable("no cgroup2 is mounted")
    path = Path(found[1]) / f"gazer-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        raise Unavailable(f"no cgroup can be made: {error.strerror}") from None
    return path


class Machine:
    """One that runs."""

    def __init__(self, process: subprocess.Popen[bytes], init: int) -> None:
        self._process = process
        self.init = init

    @classmethod
    @contextlib.contextmanager
    def boot(cls, *places: Path) -> Iterator[Machine]:
        """Boot it; `places` are shown in it even where they lie on other file systems."""
        if os.geteuid() != 0:
            raise Unavailable("systemd in namespaces needs root")
        lacks = [name for name in TOOLS if not shutil.which(name)]
        if lacks or not SYSTEMD.exists():
            raise Unavailable(f"no {', '.join(lacks) or 'systemd'} on this machine")
        cgroup = _cgroup()
        work = tempfile.mkdtemp(prefix="gazer-machine-")
        said = Path(work + ".log")
        try:
            with said.open("wb") as log:
                process = subprocess.Popen(
                    ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup",
                     "--fork", "--kill-child", "sh", "-c", SETUP],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    env=os.environ | {
                        "WORK": work,
                        "PLACES": " ".join(shlex.quote(str(p)) for p in places),
                        "TARGETS": " ".join(TARGETS),
                    },
                    preexec_fn=lambda: (cgroup / "cgroup.procs").write_text(str(os.getpid())),
                )  # fmt: skip
            try:
                yield cls(process, cls._booted(process, said))
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()  # and its child, process 1, with all there are in it
                process.wait()
        finally:
            for _ in range(100):  # the last of them leave their groups in their own time
                with contextlib.suppress(OSError):
                    for path in sorted(cgroup.rglob("*/"), reverse=True):
                        path.rmdir()
                    cgroup.rmdir()
                    break
                time.sleep(0.1)
            shutil.rmtree(work, ignore_errors=True)
            said.unlink()

    @staticmethod
    def _booted(process: subprocess.Popen[bytes], said: Path) -> int:
        """The number, outside, of its process 1, once that answers."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                init = psutil.Process(process.pid).children()[0].pid
                if Path(f"/proc/{init}/comm").read_text() == "systemd\n":
                    answer = _inside(init, ["systemctl", "is-active", "idle.target"])
                    if answer.stdout == "active\n":
                        return init
            time.sleep(0.05)
        text = said.read_text(errors="replace").strip().splitlines()
        last = text[-1] if text else "it says nothing"
        raise Unavailable(f"systemd does not boot in namespaces: {last}")

    def run(self, *command: object) -> tuple[int, str]:
        """Run it in the machine, as root; its exit code and what it said."""
        done = _inside(self.init, [str(word) for word in command])
        return done.returncode, done.stdout

    def sh(self, script: str) -> str:
        """Run a script that must go well; what it said."""
        code, said = self.run("sh", "-euc", script)
        assert code == 0, said
        return said

    def show(self, unit: str) -> dict[str, str]:
        """The properties of a unit."""
        told = self.run("systemctl", "show", unit)[1]
        return dict(line.split("=", 1) for line in told.splitlines() if "=" in line)

    def kill(self, pid: int, number: signal.Signals) -> None:
        """`pid` as it is inside."""
        self.sh(f"kill -{int(number)} {pid}")


def _inside(init: int, command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["nsenter", "--target", str(init), "--all", *command],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", check=False, timeout=90,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_PAGER": ""},
    )  # fmt: skip


def python_places() -> list[Path]:
    """What this Python needs to run, outside of /usr."""
    return sorted({Path(p) for p in (sys.prefix, sys.base_prefix) if not p.startswith("/usr")})
