"""The workers' filter: each instruction by an interpreter of our own, and by the kernel itself."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import re
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import pytest

from gazer import seccomp, system
from tests.forked import forked

ALLOW, KILL = 0x7FFF0000, 0x80000000
X86_64, AARCH64, I386 = 0xC000003E, 0xC00000B7, 0x40000003
AUDIT = {"x86_64": X86_64, "aarch64": AARCH64}
READS, WRITES, PID = [5], [3, 6, 7], 4242

HEADERS = {
    "x86_64": [Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
               Path("/usr/include/asm/unistd_64.h")],
    "aarch64": [Path("/usr/include/asm-generic/unistd.h")],
}

# What a filter without arguments would let through: the whole list, once more and by name alone.
PLAIN = {"brk", "munmap", "mremap", "madvise", "poll", "ppoll", "restart_syscall", "sched_yield",
         "clock_gettime", "gettimeofday", "time", "rt_sigreturn", "rt_sigprocmask", "getpid",
         "gettid", "close", "exit", "exit_group"}
CHECKED = {"read", "write", "futex", "mmap", "mprotect", "tgkill"}

filtered = pytest.mark.skipif(
    platform.machine() not in AUDIT or not system.seccomp_knows(KILL),
    reason="this machine, or its kernel, has no such filter")


# --- the program, by an interpreter --------------------------------------------------------------


def verdict(code, number, arguments=(), arch=X86_64):
    """What linux/filter.h and seccomp(2) say that the program returns; every jump is checked."""
    data = struct.pack("<IIQ6Q", number, arch, 0x7F0000000000,
                       *[*arguments, *[0] * (6 - len(arguments))])
    accumulator, at = 0, 0
    for _ in range(len(code)):          # jumps go forward only, so no more steps than that
        op, true, false, k = code[at]
        at += 1
        if op == 0x20:                  # ld [k]
            assert k % 4 == 0 and k + 4 <= len(data)
            accumulator, = struct.unpack_from("<I", data, k)
        elif op == 0x54:                # and #k
            accumulator &= k
        elif op == 0x05:                # ja k
            at += k
        elif op in (0x15, 0x35, 0x45):  # jeq, jge, jset
            met = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[op]
            at += true if met else false
        else:
            assert op == 0x06, f"no instruction of classic BPF that we use: {op:#x}"
            return k
    raise AssertionError("the program does not end")


def program(machine="x86_64", **changes):
    return seccomp.program(machine, **{"reads": READS, "writes": WRITES, "pid": PID, **changes})


def numbers_of(machine):
    """name -> number, from the kernel's own header."""
    for path in HEADERS[machine]:
        if path.exists():
            pairs = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text())
            names = {name: int(number) for name, number in pairs}
            assert len(names) > 300
            return names
    pytest.skip("needs the kernel's headers (linux-libc-dev)")


@pytest.mark.parametrize("machine", AUDIT)
def test_every_number_of_a_call_has_the_verdict_of_its_name(machine):
    """All there are, and more, with arguments that no check lets through and that all do."""
    numbers = numbers_of(machine)
    code = program(machine)
    names = {number: name for name, number in numbers.items()}
    good = {"read": [5], "write": [3], "futex": [0, 0x80], "mmap": [0, 4096, 3, 0x22, 2**64 - 1],
            "mprotect": [0, 4096, 3], "tgkill": [PID]}
    bad = [0xFFFFFFFF] * 6
    allowed = set()
    for number in range(2000):
        name = names.get(number)
        plain = ALLOW if name in PLAIN else KILL
        assert verdict(code, number, bad, AUDIT[machine]) == plain, (number, name)
        arguments = good.get(name, bad)
        wanted = ALLOW if name in PLAIN | CHECKED else KILL
        assert verdict(code, number, arguments, AUDIT[machine]) == wanted, (number, name)
        allowed |= {name} if wanted == ALLOW else set()
    missing = {"poll", "time"} if machine == "aarch64" else set()
    assert allowed == (PLAIN | CHECKED) - missing


@pytest.mark.parametrize("machine", AUDIT)
def test_numbers_of_another_architecture_are_killed(machine):
    code = program(machine)
    for number in range(512):
        for arch in (I386, AUDIT["aarch64" if machine == "x86_64" else "x86_64"], 0, 0xFFFFFFFF):
            assert verdict(code, number, [5], arch) == KILL


def test_numbers_of_the_x32_form_are_killed():
    code = program()
    for number in range(512):
        for bits in (0x40000000, 0x80000000, 0xC0000000):
            assert verdict(code, number | bits, [5]) == KILL
    assert (seccomp.IF_AT_LEAST, 0, 1, 0x40000000) in code      # said, not only left out
    assert verdict(code, 0xFFFFFFFF) == KILL


@pytest.mark.parametrize(("name", "sets"), [("read", READS), ("write", WRITES)])
def test_descriptors_are_those_given(name, sets):
    """`int fd`: the kernel looks at the lower half only, so a filter must do just that."""
    code = program()
    number = seccomp.CHECKED[name][0]
    for fd in range(70000):
        assert (verdict(code, number, [fd]) == ALLOW) == (fd in sets)
        if fd < 100:
            assert (verdict(code, number, [fd | 0xDEAD << 32]) == ALLOW) == (fd in sets)
    assert verdict(program(reads=[], writes=[]), number, [5]) == KILL


def test_any_number_of_descriptors_has_room():
    """A block of more than 255 instructions: every call behind it is still found."""
    many = list(range(100, 1000))
    for machine in AUDIT:
        code = program(machine, reads=many, writes=many)
        assert len(code) <= 4096        # BPF_MAXINSNS
        column = list(AUDIT).index(machine)
        for numbers in [*seccomp.PLAIN.values(), *seccomp.CHECKED.values()]:
            if numbers[column] is not None:
                found = verdict(code, numbers[column], [999, 0, 0, 0x20], AUDIT[machine])
                assert (found == ALLOW) == (numbers != seccomp.CHECKED["tgkill"])
        assert verdict(code, seccomp.CHECKED["write"][column], [1000], AUDIT[machine]) == KILL


def test_nothing_becomes_executable_and_no_file_is_mapped():
    code = program()
    mprotect, map_ = seccomp.CHECKED["mprotect"][0], seccomp.CHECKED["mmap"][0]
    for prot in range(16):
        assert (verdict(code, mprotect, [0, 4096, prot]) == ALLOW) == (not prot & 4)
        for flags in (0x01, 0x02, 0x10, 0x4000, 0x22, 0x21, 0x4022, 0x20022):
            fine = not prot & 4 and flags & 0x20
            assert (verdict(code, map_, [0, 4096, prot, flags, 5]) == ALLOW) == bool(fine)


def test_the_plain_forms_of_futex_alone():
    code = program()
    number = seccomp.CHECKED["futex"][0]
    for command in range(512):
        plain = command & 127 in (0, 1, 9, 10)
        assert (verdict(code, number, [0, command]) == ALLOW) == plain


def test_only_this_process_may_be_signalled():
    code = program()
    number = seccomp.CHECKED["tgkill"][0]
    assert verdict(code, number, [PID, 1, 6]) == ALLOW
    for other in (PID + 1, 1, 0, 0xFFFFFFFF):
        assert verdict(code, number, [other, PID, 6]) == KILL


def test_encoding_is_the_kernel_s():
    assert seccomp.encode([(0x20, 0, 0, 4), (0x15, 1, 2, 0xC000003E)]) == (
        struct.pack("=HBBIHBBI", 0x20, 0, 0, 4, 0x15, 1, 2, 0xC000003E))


@pytest.mark.parametrize(("machine", "maxsize"), [("riscv64", 2**63 - 1), ("x86_64", 2**31 - 1)])
def test_elsewhere_there_is_one_line_and_no_filter(monkeypatch, machine, maxsize):
    real = os.uname()
    monkeypatch.setattr(seccomp.os, "uname", lambda: type(real)((*real[:4], machine)))
    monkeypatch.setattr(seccomp.sys, "maxsize", maxsize)
    monkeypatch.setattr(system, "seccomp_filter", lambda code: pytest.fail("filtered"))
    line = seccomp.install(reads=[], writes=[])
    assert line.startswith("workers run without a seccomp filter: ") and machine in line
    assert "\n" not in line


@filtered
def test_a_kernel_without_it_is_one_line(monkeypatch):
    monkeypatch.setattr(system, "seccomp_knows", lambda action: False)
    assert "this kernel has none" in seccomp.install(reads=[], writes=[])


def test_actions_that_a_kernel_does_not_know():
    assert not system.seccomp_knows(0x12340000)


# --- the filter, by the kernel -------------------------------------------------------------------

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = LIBC.mremap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                      ctypes.c_long]
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
LIBC.syscall.restype = ctypes.c_long


def place():
    return LIBC.mmap(None, 4096, 3, 0x22, -1, 0)


def file_mapping():
    with open(sys.executable, "rb") as file:
        return os.dup(file.fileno())


FILE = file_mapping()
PLACE, PARENT = place(), os.getpid()
TGKILL, BPF = {"x86_64": (234, 321), "aarch64": (131, 280)}.get(platform.machine(), (0, 0))
DENIED = {
    "open": lambda: os.open("/dev/null", os.O_RDONLY),
    "stat": lambda: os.stat("/"),
    "socket": lambda: socket.socket(),
    "socketpair": lambda: socket.socketpair(),
    "execve": lambda: os.execv("/bin/true", ["true"]),
    "fork": lambda: os.fork(),
    "vfork": lambda: LIBC.vfork(),
    "clone, a thread": lambda: threading.Thread(target=print).start(),
    "clone3": lambda: LIBC.syscall(435, 0, 0),
    "pipe": lambda: os.pipe(),
    "dup": lambda: os.dup(1),
    "dup2": lambda: os.dup2(1, 2),
    "fcntl": lambda: fcntl.fcntl(1, fcntl.F_GETFL),
    "memfd_create": lambda: os.memfd_create("x"),
    "eventfd": lambda: os.eventfd(0),
    "mmap, executable": lambda: LIBC.mmap(None, 4096, 5, 0x22, -1, 0),
    "mmap of a file": lambda: LIBC.mmap(None, 4096, 1, 2, FILE, 0),
    "mprotect, executable": lambda: LIBC.mprotect(PLACE, 4096, 5),
    "ptrace": lambda: LIBC.ptrace(0, 0, 0, 0),
    "kill of another": lambda: os.kill(os.getppid(), 0),
    "kill of itself": lambda: os.kill(os.getpid(), 0),
    "tgkill of another": lambda: LIBC.syscall(TGKILL, PARENT, PARENT, 0),
    "prctl": lambda: LIBC.prctl(15, b"x", 0, 0, 0),
    "setuid": lambda: os.setresuid(0, 0, 0),
    "unlink": lambda: os.unlink("/nowhere"),
    "chdir": lambda: os.chdir("/"),
    "ioctl": lambda: os.isatty(1),
    "personality": lambda: LIBC.personality(0xFFFFFFFF),
    "process_vm_readv": lambda: LIBC.process_vm_readv(1, None, 0, None, 0, 0),
    "io_uring_setup": lambda: LIBC.syscall(425, 1, None),
    "bpf": lambda: LIBC.syscall(BPF, 0, 0, 0),
    "read of a file": lambda: os.read(FILE, 1),
    "write to standard error": lambda: os.write(2, b""),
    "sigaction": lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
    "setrlimit": lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
}


@filtered
@pytest.mark.parametrize("what", DENIED)
def test_a_forbidden_call_ends_the_process(what):
    call = DENIED[what]

    def work(say, fd):
        system.set_dumpable(False)      # no core files of tests
        assert seccomp.install(reads=[], writes=[fd]) is None
        say("before")
        call()
        say("after")

    ended = forked(work)
    assert ended.said == ["before"]
    assert ended.signal == signal.SIGSYS


@filtered
def test_what_is_allowed_works():
    def work(say, fd):
        bell = os.eventfd(1, os.EFD_NONBLOCK)
        out, into = os.pipe()
        lock = threading.Lock()
        assert seccomp.install(reads=[bell], writes=[fd, into, bell]) is None
        assert os.read(bell, 8) == (1).to_bytes(8, "little")
        assert os.write(into, b"x") == 1 and os.write(bell, bytes(8)) == 8
        at = place()
        assert LIBC.mprotect(at, 4096, 1) == 0
        assert LIBC.mremap(ctypes.c_void_p(at), 4096, 65536, 1) is not None
        with mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory[0] = 1
            memory.madvise(mmap.MADV_DONTNEED)
            assert memory[0] == 0
        assert lock.acquire() and not lock.acquire(timeout=0.01)    # waits in a futex
        assert time.time() > 0 and time.monotonic() > 0
        assert os.getpid() > 1 and threading.get_native_id() == os.getpid()
        os.close(out)
        kept = [bytearray(n) for n in range(1, 3 << 20, 100_003)]   # brk, mmap, mremap
        kept[0].extend(bytes(1 << 24))
        del kept
        say("all of it")

    ended = forked(work)
    assert (ended.said, ended.signal, ended.code) == (["all of it"], 0, 0)


@filtered
def test_the_filter_is_before_all_threads():
    """One that was there before the filter was, and did not ask for it."""
    def work(say, fd):
        system.set_dumpable(False)
        go = threading.Event()

        def other():
            go.wait()
            os.getppid()        # not on the list

        thread = threading.Thread(target=other)
        thread.start()
        assert seccomp.install(reads=[], writes=[fd]) is None
        say("before")
        go.set()
        thread.join()
        say("after")

    ended = forked(work)
    assert (ended.said, ended.signal) == (["before"], signal.SIGSYS)


@filtered
def test_it_can_be_had_without_any_right_and_stays():
    def work(say, fd):
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        status = Path("/proc/self/status").read_text()
        assert re.search(r"^Seccomp:\t0$", status, re.M)
        file = os.open("/proc/self/status", os.O_RDONLY)
        assert seccomp.install(reads=[file], writes=[fd]) is None
        status = os.read(file, 65536).decode()
        say([re.search(rf"^{name}:\t(\d)$", status, re.M)[1] for name in ("Seccomp", "NoNewPrivs")])

    assert forked(work).said == [["2", "1"]]


@filtered
def test_abort_is_seen_as_what_it_is():
    """Else a failed check of the C library's would look like a break-in."""
    def work(say, fd):
        system.set_dumpable(False)
        assert seccomp.install(reads=[], writes=[fd]) is None
        LIBC.abort()

    assert forked(work).signal == signal.SIGABRT


@filtered
def test_a_fault_of_memory_is_seen_as_what_it_is():
    def work(say, fd):
        system.set_dumpable(False)
        assert seccomp.install(reads=[], writes=[fd]) is None
        ctypes.memset(8, 0, 1)

    assert forked(work).signal == signal.SIGSEGV


@filtered
def test_memory_that_runs_out_is_an_error_and_no_death():
    """The C library tries other ways to get some when brk gives none."""
    def work(say, fd):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
        assert seccomp.install(reads=[], writes=[fd]) is None
        kept = []
        for size in (1 << 20, 1 << 12, 100, 10):
            try:
                while True:
                    kept.append(bytearray(size))
            except MemoryError:
                say(size)
        del kept

    ended = forked(work)
    assert (ended.said, ended.signal) == ([1 << 20, 1 << 12, 100, 10], 0)


@filtered
def test_a_wait_goes_on_after_a_stop():
    """restart_syscall: the kernel goes on with poll's wait by a call that nobody wrote."""
    pids, started = os.pipe()

    def work(say, fd):
        poll = select.poll()
        poll.register(fd, 0)
        assert seccomp.install(reads=[], writes=[fd, started]) is None
        os.write(started, os.getpid().to_bytes(4, "little"))
        say(poll.poll(700))

    def stop():
        pid = int.from_bytes(os.read(pids, 4), "little")
        for _ in range(10):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.02)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.02)

    thread = threading.Thread(target=stop)
    thread.start()
    ended = forked(work)
    thread.join()
    assert (ended.said, ended.signal) == ([[]], 0)


@filtered
def test_readable_memory_is_not_executable_though_somebody_asked_for_it():
    """READ_IMPLIES_EXEC (personality(2)): every readable mapping is executable, unasked."""
    def rights(maps, at):
        text = b""
        while data := os.read(maps, 1 << 16):
            text += data
        return re.search(rf"^{at:x}-\S+ (\S+)", text.decode(), re.M)[1]

    def work(say, fd):
        maps = [os.open("/proc/self/maps", os.O_RDONLY) for _ in range(2)]
        assert LIBC.personality(0x0400000) == 0
        at = LIBC.mmap(None, 12288, 3, 0x22, -1, 0)
        say(rights(maps[0], at))
        assert LIBC.munmap(ctypes.c_void_p(at), 12288) == 0
        assert seccomp.install(reads=maps, writes=[fd]) is None
        say(rights(maps[1], LIBC.mmap(None, 12288, 3, 0x22, -1, 0)))

    assert forked(work).said == ["rwxp", "rw-p"]


@filtered
def test_an_error_of_the_kernel_s_is_one():
    def work(say, fd):
        try:
            system.seccomp_filter(seccomp.encode([(0x06, 0, 0, ALLOW), (0x05, 0, 0, 9)]))
        except OSError as error:
            say(error.errno)

    assert forked(work).said == [errno.EINVAL]
