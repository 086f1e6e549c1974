"""The service's log: lines for the operator, on standard error or, of a daemon, to syslog.

Only the supervisor writes it.  Some of a line may be what a child reported, and a child may have
been taken over by whoever sent it frames: so what does not print stands as its escape (a line can't
steer a terminal, or pass for two), and a line has an end.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys

from gazer.config.kinds import printable

LONGEST = 2000      # characters of a line

_to_syslog = False


def say(text: str) -> None:
    """One line for the operator.  A log that is gone is no reason to stop."""
    text = printable(text[:LONGEST]) + ("..." if len(text) > LONGEST else "")
    if _to_syslog:
        import syslog

        syslog.syslog(syslog.LOG_NOTICE, text)
    elif sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(f"gazer: {text}", file=sys.stderr, flush=True)


def is_kept(fd: int) -> bool:
    """Whether a daemon keeps this descriptor: it leads to a file, so nobody waits for its end."""
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        return False


def leave_terminal(*, keep_stdout: bool) -> None:
    """As a daemon: let go of the standard descriptors that are no files, and log to syslog then.

    A terminal would go on showing lines, and whoever reads a pipe wait for its end.  Standard
    output is kept where events go there: that is what was asked for.
    """
    global _to_syslog
    if not is_kept(2):
        import syslog

        syslog.openlog("gazer", syslog.LOG_PID, syslog.LOG_DAEMON)
        _to_syslog = True
    close_standard(*((0, 2) if keep_stdout else (0, 1, 2)))


def close_standard(*descriptors: int) -> None:
    """Let these lead nowhere, where they are no files (which nobody waits for)."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in descriptors:
        if not is_kept(fd):
            os.dup2(null, fd)
    os.close(null)
