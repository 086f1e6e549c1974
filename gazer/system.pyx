"""What a process of the pipeline asks of the operating system about itself."""

cdef extern from "sys/prctl.h" nogil:
    int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
    enum:
        PR_SET_PDEATHSIG
        PR_SET_NAME

import os
import signal
from libc.string cimport memcmp, memcpy, memset

cdef char* title = NULL         # where the kernel finds this process's command line
cdef size_t title_room = 0


def die_with_parent(parent):
    """From here on this process is killed when its parent dies; at once if it is dead already."""
    if prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError("prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def set_name(name):
    """What `ps -o comm` and `top` show of this process: up to 15 bytes."""
    cdef bytes text = name.encode()[:15]
    cdef const char* p = text
    prctl(PR_SET_NAME, <unsigned long>p, 0, 0, 0)


def find_title():
    """Find out where the command line stands, so that this process and its forks can `set_title`.

    It is the strings that execve(2) put there.  False where that can't be found out.
    """
    global title, title_room
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        with open("/proc/self/cmdline", "rb") as file:
            there = file.read()
        start, end = int(fields[45]), int(fields[46])   # arg_start, arg_end: proc_pid_stat(5)
    except (OSError, ValueError, IndexError):
        return False
    cdef const char* known = there
    cdef char* place = <char*><size_t>start
    # Another copy than the kernel's own of the very same bytes: then it is the place.
    if end - start != len(there) or not len(there) or memcmp(place, known, len(there)) != 0:
        return False
    title, title_room = place, len(there)
    return True


def set_title(text):
    """What `ps` shows as this process's command line, as far as there is room for it.

    The room is what the command line took.  Where its last byte is no NUL the kernel shows what
    stands before the first one (the way of setproctitle(3)); so no blanks follow a short title.
    """
    cdef bytes given = text.encode(errors="replace")
    if title_room < 3:
        return
    given = given[: title_room - 2]
    cdef const char* p = given
    memset(title, 0, title_room)
    memcpy(title, p, len(given))
    title[title_room - 1] = 1
