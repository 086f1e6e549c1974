"""What the unit starts in the place of gazer, in tests: it does all that gazer does to the machine
once, and says what came of it, then waits for signals as gazer does.

python systemd_probe.py LOG_DIR [hang]
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from multiprocessing import shared_memory
from pathlib import Path

import psutil

SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC = 263, 1, 1
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME = 1, 4, 15
CLONE_NEWUSER = 0x10000000

libc = ctypes.CDLL(None, use_errno=True)


def called(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def packets() -> int:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as s:
        s.bind(("lo", 0))
        request = struct.pack("iHH8s", socket.if_nametoindex("lo"), PACKET_MR_PROMISC, 0, b"")
        s.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, request)
        return s.fileno()


def segment(log_dir: str) -> int:
    made = shared_memory.SharedMemory(create=True, size=1 << 20)
    fd = os.open(f"/dev/shm/{made.name}", os.O_RDWR)
    os.posix_fallocate(fd, 0, 1 << 20)
    fcntl.flock(fd, fcntl.LOCK_EX)
    made.close()
    made.unlink()
    os.close(fd)
    return 0


def seccomp(_: str) -> int:
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    allow = (ctypes.c_uint64 * 1)(0x7FFF_0000_0000_0006)  # RET ALLOW
    program = Program(1, ctypes.addressof(allow))
    prctl_seccomp, mode_filter = 22, 2
    return called(libc.prctl(prctl_seccomp, mode_filter, ctypes.byref(program), 0, 0))


def capabilities(_: str) -> int:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    called(libc.capget(header, data))
    return called(libc.capset(header, data))


def other_process(_: str) -> int:
    """Metrics tell of the sensor's others, which no one may trace."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        libc.prctl(PR_SET_DUMPABLE, 0)
        os.write(theirs, b".")
        signal.pause()
    os.read(ours, 1)
    try:
        return int(psutil.Process(child).memory_info().rss)
    except psutil.Error as error:
        raise OSError(errno.ESRCH, str(error)) from None
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# What must go well, and what must not.
ALLOWED: dict[str, Callable[[str], object]] = {
    "packet socket, promiscuous": lambda _: packets(),
    "netlink": lambda _: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).fileno(),
    "listening": lambda _: socket.create_server(("127.0.0.1", 0)).fileno(),
    "shared memory": segment,
    "eventfd": lambda _: os.eventfd(0),
    "logs": lambda log_dir: Path(log_dir, "dns.log").write_text(""),
    "run": lambda _: Path("/run/gazer/x").write_text(""),
    "cpu": lambda _: os.sched_setaffinity(0, os.sched_getaffinity(0)),
    "name": lambda _: called(libc.prctl(PR_SET_NAME, b"gazer:x")),
    "death signal": lambda _: called(libc.prctl(PR_SET_PDEATHSIG, 9)),
    "capabilities": capabilities,
    "seccomp": seccomp,
    "processes": lambda _: (psutil.Process().create_time(), psutil.cpu_percent()),
    "another process": other_process,
}
REFUSED: dict[str, Callable[[str], object]] = {
    "another family": lambda _: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM),
    "etc": lambda _: Path("/etc/gazer/x").write_text(""),
    "usr": lambda _: Path("/usr/x").write_text(""),
    "executable memory": lambda _: mmap.mmap(-1, 4096, prot=7),
    "mount": lambda _: called(libc.mount(b"x", b"/mnt", b"tmpfs", 0, None)),
    "namespace": lambda _: called(libc.unshare(CLONE_NEWUSER)),
    "kernel settings": lambda _: Path("/proc/sys/kernel/hostname").write_text("x"),
    "another user": lambda _: os.setuid(0),
    "signals to others": lambda _: os.kill(1, 0),
}


def outcome(log_dir: str) -> dict[str, object]:
    status = dict(
        line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines()
    )
    found: dict[str, object] = {
        name: status[name] for name in ("Uid", "Gid", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")
    }
    for name, act in (ALLOWED | REFUSED).items():
        try:
            act(log_dir)
            found[name] = "done"
        except OSError as error:
            found[name] = errno.errorcode.get(error.errno or 0, str(error))
    return found


def tell(*words: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.connect(os.environ["NOTIFY_SOCKET"])
        s.send(b"\n".join(words))


def main(log_dir: str, *how: str) -> None:
    Path(log_dir, "probe.json").write_text(json.dumps(outcome(log_dir)))
    child = os.fork()
    if child == 0:  # a worker: signals that come to the whole group would end it
        time.sleep(100)
        os._exit(0)
    got: list[str] = []
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda n, _: got.append(signal.Signals(n).name))
    tell(b"READY=1", b"STATUS=probing")
    if how:
        time.sleep(100)
    while "SIGTERM" not in got:
        tell(b"WATCHDOG=1")
        time.sleep(0.05)
        Path(log_dir, "signals").write_text(" ".join(got))
    tell(b"STOPPING=1")
    ended, _ = os.waitpid(child, os.WNOHANG)
    Path(log_dir, "signals").write_text(" ".join([*got, "alone" if ended == 0 else "all"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
