"""What a process of the pipeline asks of the operating system about itself."""

cdef extern from "sys/prctl.h" nogil:
    int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
    enum:
        PR_SET_PDEATHSIG
        PR_SET_NAME
        PR_SET_DUMPABLE
        PR_SET_KEEPCAPS
        PR_SET_NO_NEW_PRIVS
        PR_SET_SECUREBITS
        PR_CAPBSET_READ
        PR_CAPBSET_DROP
        PR_CAP_AMBIENT
        PR_CAP_AMBIENT_CLEAR_ALL

cdef extern from "sys/personality.h" nogil:
    int personality(unsigned long persona)
    enum:
        READ_IMPLIES_EXEC

cdef extern from "sys/syscall.h" nogil:
    enum:
        SYS_capget
        SYS_capset
        SYS_renameat2
        SYS_seccomp

cdef extern from "fcntl.h" nogil:
    enum:
        AT_FDCWD

cdef extern from "unistd.h" nogil:
    long syscall(long number, ...)

cdef extern from "linux/capability.h" nogil:
    enum:
        _LINUX_CAPABILITY_VERSION_3
    struct __user_cap_header_struct:
        unsigned int version
        int pid
    struct __user_cap_data_struct:
        unsigned int effective
        unsigned int permitted
        unsigned int inheritable

cdef extern from "linux/securebits.h" nogil:
    enum:
        SECBIT_NOROOT
        SECBIT_NOROOT_LOCKED
        SECBIT_NO_CAP_AMBIENT_RAISE
        SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED

cdef extern from "linux/filter.h" nogil:
    struct sock_filter:
        pass
    struct sock_fprog:
        unsigned short len
        sock_filter* filter

cdef extern from "linux/seccomp.h" nogil:
    enum:
        SECCOMP_SET_MODE_FILTER
        SECCOMP_GET_ACTION_AVAIL
        SECCOMP_FILTER_FLAG_TSYNC
        SECCOMP_FILTER_FLAG_SPEC_ALLOW

from libc.errno cimport EEXIST, EINVAL, ENOSYS, errno

import os
import signal
from libc.string cimport memcmp, memcpy, memset

cdef enum:
    NOREPLACE = 1               # RENAME_NOREPLACE of linux/fs.h, which clashes with other headers

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


# --- rights; what they mean stands in gazer.privileges and gazer.seccomp ---

cdef int failed(str what) except -1:
    """An OSError from errno."""
    cdef int number = errno
    raise OSError(number, f"{what}: {os.strerror(number)}")


cdef int control(int option, unsigned long value, str what) except -1:
    """prctl with one argument."""
    if prctl(option, value, 0, 0, 0) < 0:
        failed(what)
    return 0


def capabilities():
    """This thread's (effective, permitted, inheritable) capabilities, a bit for each."""
    cdef __user_cap_header_struct header
    cdef __user_cap_data_struct[2] data
    header.version = _LINUX_CAPABILITY_VERSION_3
    header.pid = 0
    if syscall(SYS_capget, &header, data) != 0:
        failed("capget")
    return (data[0].effective | <unsigned long long>data[1].effective << 32,
            data[0].permitted | <unsigned long long>data[1].permitted << 32,
            data[0].inheritable | <unsigned long long>data[1].inheritable << 32)


def set_capabilities(unsigned long long held):
    """Exactly these, permitted and effective; none inheritable."""
    cdef __user_cap_header_struct header
    cdef __user_cap_data_struct[2] data
    cdef int i
    header.version = _LINUX_CAPABILITY_VERSION_3
    header.pid = 0
    memset(data, 0, sizeof(data))
    for i in range(2):
        data[i].effective = data[i].permitted = <unsigned int>(held >> 32 * i)
    if syscall(SYS_capset, &header, data) != 0:
        failed("capset")


def limit_bounding_set(unsigned long long kept):
    """Take all but these out of the bounding set.  Needs CAP_SETPCAP."""
    cdef int number
    for number in range(64):
        if prctl(PR_CAPBSET_READ, number, 0, 0, 0) == 1 and not kept >> number & 1:
            control(PR_CAPBSET_DROP, number, "prctl(PR_CAPBSET_DROP)")


def lock_securebits():
    """An exec as root gives no capabilities, and none becomes ambient.  Needs CAP_SETPCAP."""
    control(PR_SET_SECUREBITS,
            SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE
            | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED, "prctl(PR_SET_SECUREBITS)")


def clear_ambient():
    """No capability is ambient."""
    control(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, "prctl(PR_CAP_AMBIENT)")


def keep_capabilities(bint keep):
    """Whether permitted capabilities outlast the change from root to another user."""
    control(PR_SET_KEEPCAPS, keep, "prctl(PR_SET_KEEPCAPS)")


def no_new_privileges():
    """No exec gives this process more than it has, ever."""
    control(PR_SET_NO_NEW_PRIVS, 1, "prctl(PR_SET_NO_NEW_PRIVS)")


def set_dumpable(bint dumpable):
    """Whether there are core dumps, and whether others of the same user may trace us."""
    control(PR_SET_DUMPABLE, dumpable, "prctl(PR_SET_DUMPABLE)")


def readable_is_not_executable():
    """Where whoever started us asked that all readable memory be executable, take that back."""
    cdef int persona = personality(0xFFFFFFFF)
    if persona >= 0 and persona & READ_IMPLIES_EXEC:
        personality(<unsigned long>persona & ~<unsigned long>READ_IMPLIES_EXEC)


def seccomp_knows(unsigned int action):
    """Whether the kernel has seccomp filters, and this action (seccomp(2))."""
    return syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) == 0


def seccomp_filter(bytes program):
    """Put the filter before all threads of this process, for ever; struct sock_filter[].

    SPEC_ALLOW: up to Linux 5.15 a filter else turns on a defence against a process's own
    speculation (for programs that run a stranger's code, as browsers do) that slows all of it down.
    """
    cdef sock_fprog filter
    cdef long result
    cdef const unsigned char[::1] octets = program
    filter.len = <unsigned short>(len(program) // sizeof(sock_filter))
    filter.filter = <sock_filter*>&octets[0]
    result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                     SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_SPEC_ALLOW, &filter)
    if result < 0 and errno == EINVAL:      # before Linux 4.17
        result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter)
    if result < 0:
        failed("seccomp")
    if result > 0:
        raise OSError(f"seccomp: thread {result} has a filter of its own")


def rename_new(old: str, new: str) -> None:
    """Rename a file to a name that is not there yet; FileExistsError if it is.

    rename(2) would overwrite it.  A file system that can't do it in one step (EINVAL) is looked at
    first.
    """
    cdef bytes source = os.fsencode(old)
    cdef bytes target = os.fsencode(new)
    cdef const char* a = source
    cdef const char* b = target
    cdef int why = 0
    with nogil:
        if syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, NOREPLACE) != 0:
            why = errno
    if why == 0:
        return
    if why not in (EINVAL, ENOSYS):
        raise OSError(why, os.strerror(why), old, None, new)
    if os.path.lexists(new):
        raise FileExistsError(EEXIST, os.strerror(EEXIST), new)
    os.rename(old, new)
