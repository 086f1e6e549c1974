"""What a worker may still ask of the kernel: a seccomp filter, made here, without libseccomp.

    warning = install(reads=[bell], writes=[*other bells, reports])     # None, or one line

A worker parses what strangers send.  Should one of them ever take it over, then what it can reach
is its own memory, the rings it shares, and these calls (seccomp(2)): no file, no socket, no
process, no exec, no new executable memory.  Whatever is not on the list ends the whole process with
SIGSYS.

The list is what a worker was seen to use, and what its C library and interpreter may come to use on
any of its roads:

- memory: brk, mmap, munmap, mremap, mprotect, madvise.  What is mapped anew must be anonymous, and
  nothing becomes executable: the only code is what was there.
- waiting and waking: poll or ppoll; read of its own bell; write to the others' and to the pipe of
  its reports; futex (the interpreter's lock) in its four plain forms; restart_syscall, by which the
  kernel goes on with a wait that SIGSTOP and SIGCONT interrupted; sched_yield; clock_nanosleep.
- the time, where the vDSO has to ask the kernel for it: clock_gettime, gettimeofday, time.
- signals: rt_sigreturn; rt_sigprocmask, getpid, gettid, and tgkill of itself, which is what abort()
  takes: a check of the C library that fails shows as SIGABRT, as it should.
- close, exit, exit_group.

Rules
- Descriptors are told apart by their numbers, and that is sound since no call on the list makes a
  descriptor.  Only the lower half of the argument counts, as for the kernel.
- The architecture is checked first: numbers of one mean something else on another (a 64-bit process
  can call as a 32-bit one).  On x86-64 numbers of the x32 form are refused as well.
- The filter is put before all threads, and stays for ever; without no_new_privs it can't be had,
  so `install` sets that.
- Neither the worker nor its parent has ever had a thread.  glibc keeps a heap for each, also of one
  that has ended, takes it when there is no memory, and reads /proc/sys/vm/overcommit_memory before
  it first shrinks it: a MemoryError would be followed by a SIGSYS.
- Whatever is lazy has to have happened before: an import, a codec, the text of a traceback all open
  files.  gazer.workers.warm sees to that.

Limits
- It is no defence against what a worker may do with its calls: write nonsense into its rings (the
  sink checks what it finds there), fill its memory, or send the supervisor lines.  All processes
  share the whole ledger, so it can also spoil the others' counts, and the positions from which a
  successor of theirs would go on: that of a regular output is where it is cut back to.
- x86-64 and aarch64, little-endian, 64-bit: what sensors are.  Elsewhere, and on kernels before
  4.14 or without seccomp, nothing is filtered and the warning says so.
- An interpreter that compiles at run time (CPython's experimental JIT) needs executable memory and
  so can't run under it.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterable, Sequence

from gazer import system

Instruction = tuple[int, int, int, int]     # code, jump if true, jump if false, operand

# linux/bpf_common.h: a classic BPF machine with one accumulator.
LOAD = 0x20         # BPF_LD | BPF_W | BPF_ABS: the accumulator becomes the word at this offset
AND = 0x54          # BPF_ALU | BPF_AND | BPF_K
JUMP = 0x05         # BPF_JMP | BPF_JA
IF_EQUAL = 0x15     # BPF_JMP | BPF_JEQ | BPF_K
IF_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
IF_ANY_BIT = 0x45   # BPF_JMP | BPF_JSET | BPF_K
RETURN = 0x06       # BPF_RET | BPF_K

# linux/seccomp.h
KILL_PROCESS = 0x80000000
ALLOW = 0x7FFF0000

# struct seccomp_data: u32 nr, u32 arch, u64 instruction_pointer, u64 args[6]
NUMBER = 0
ARCHITECTURE = 4
ARGUMENTS = 16

X32 = 0x40000000    # the bit in the number of a call of the x32 form

PROT_EXEC = 4
MAP_ANONYMOUS = 0x20
# Without FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME: WAIT, WAKE, WAIT_BITSET, WAKE_BITSET.  The
# others (requeue, priority inheritance) nobody here uses, and kernels have had holes in them.
FUTEX_COMMAND = 0xFFFFFFFF & ~(128 | 256)
FUTEX_COMMANDS = (0, 1, 9, 10)

_ALLOW: Instruction = (RETURN, 0, 0, ALLOW)
_KILL: Instruction = (RETURN, 0, 0, KILL_PROCESS)

# By machine, as uname(2) says it: AUDIT_ARCH_* of linux/audit.h.
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Calls and their numbers on (x86_64, aarch64); None: that one has no such call.
# Whatever their arguments are:
PLAIN: dict[str, tuple[int | None, int | None]] = {
    "brk": (12, 214),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "poll": (7, None),
    "ppoll": (271, 73),
    "restart_syscall": (219, 128),
    "sched_yield": (24, 124),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "rt_sigreturn": (15, 139),
    "rt_sigprocmask": (14, 135),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "close": (3, 57),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
# With a look at their arguments:
CHECKED: dict[str, tuple[int, int]] = {
    "read": (0, 63),
    "write": (1, 64),
    "futex": (202, 98),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "tgkill": (234, 131),
}


def install(*, reads: Iterable[int], writes: Iterable[int]) -> str | None:
    """Filter the calls of this process, with all its threads, from here on.

    `reads`, `writes`: the descriptors that it may still read and write.  Returns one line if there
    is no filter here; OSError if the kernel refuses one that it should take.
    """
    machine = os.uname().machine
    if machine not in ARCHITECTURES or sys.maxsize <= 1 << 32 or sys.byteorder != "little":
        return (f"workers run without a seccomp filter: there is none for {machine} "
                "(there is for 64-bit x86_64 and aarch64)")
    if not system.seccomp_knows(KILL_PROCESS):
        return ("workers run without a seccomp filter: this kernel has none, or one without "
                "KILL_PROCESS (before Linux 4.14)")
    code = program(machine, reads=sorted(set(reads)), writes=sorted(set(writes)), pid=os.getpid())
    system.readable_is_not_executable()
    system.no_new_privileges()
    system.seccomp_filter(encode(code))
    return None


def encode(code: Sequence[Instruction]) -> bytes:
    """As struct sock_filter[] of linux/filter.h, in this machine's byte order."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def program(
    machine: str, *, reads: Sequence[int], writes: Sequence[int], pid: int
) -> list[Instruction]:
    """The filter for a machine of ARCHITECTURES.

    The architecture, then one block for each call: "if it is not this number, go behind the block";
    a block ends with its verdict.  What no block is for is killed.
    """
    column = list(ARCHITECTURES).index(machine)
    code: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (IF_EQUAL, 1, 0, ARCHITECTURES[machine]),
        _KILL,
        (LOAD, 0, 0, NUMBER),
    ]
    if machine == "x86_64":
        code += [(IF_AT_LEAST, 0, 1, X32), _KILL]
    blocks = {
        "futex": [*_argument(1), (AND, 0, 0, FUTEX_COMMAND), *_one_of(FUTEX_COMMANDS)],
        "read": [*_argument(0), *_one_of(reads)],
        "write": [*_argument(0), *_one_of(writes)],
        "mmap": [*_argument(2), (IF_ANY_BIT, 0, 1, PROT_EXEC), _KILL,
                 *_argument(3), (IF_ANY_BIT, 1, 0, MAP_ANONYMOUS), _KILL, _ALLOW],
        "mprotect": [*_argument(2), (IF_ANY_BIT, 0, 1, PROT_EXEC), _KILL, _ALLOW],
        "tgkill": [*_argument(0), *_one_of([pid])],
    }
    for name, numbers in {**CHECKED, **PLAIN}.items():
        number = numbers[column]
        if number is not None:
            block = blocks.get(name, [_ALLOW])
            # A conditional jump reaches 255 instructions, this one any number.
            code += [(IF_EQUAL, 1, 0, number), (JUMP, 0, 0, len(block)), *block]
    return [*code, _KILL]


def _argument(index: int) -> list[Instruction]:
    """The lower half of an argument: all of an `int`, and where the flags are that we look for."""
    return [(LOAD, 0, 0, ARGUMENTS + 8 * index)]


def _one_of(values: Iterable[int]) -> list[Instruction]:
    """The verdict on the accumulator: one of these, or not."""
    code: list[Instruction] = []
    for value in values:
        code += [(IF_EQUAL, 0, 1, value), _ALLOW]
    return [*code, _KILL]
