"""What a process of the pipeline asks of the operating system about itself."""

cdef extern from "sys/prctl.h" nogil:
    int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
    enum:
        PR_SET_PDEATHSIG
        PR_SET_NAME

import os
import signal


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
