"""`-d`: a process in the background, whose starter waits until it is ready.

The starter forks once for a session of its own (setsid) and once more, so that the daemon leads no
session and never gets a terminal; between them stands a pipe.  What the daemon has to say until it
is ready goes to the starter's standard error; then `ready` (exit code 0 for the starter), or its
own exit code if it ends before.  An end of the pipe without a word is a death.

The folder stays the one that it was started in, since paths may be relative to it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from gazer.errors import ProcessError
from gazer.service import log


class Launch:
    """The daemon's end of the pipe to who started it."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def ready(self, *, keep_stdout: bool) -> None:
        """The service is up: the starter may go, and so does the terminal."""
        log.leave_terminal(keep_stdout=keep_stdout)
        self.ended(0)

    def ended(self, code: int) -> None:
        """This is the exit code; nothing if the starter has heard of us already."""
        if self._pipe >= 0:
            with contextlib.suppress(OSError):      # it may have been killed meanwhile
                os.write(self._pipe, b"%d\n" % code)
            self.forget()

    def forget(self) -> None:
        """Let go of the pipe, here or in a fork."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


def launch() -> Launch:
    """Become a daemon.  Returns in the daemon alone; the starter exits when it knows enough."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        middle = os.fork()
    except OSError as error:
        raise ProcessError(f"can't start a daemon: {error.strerror}") from None
    if middle:
        os.close(theirs)
        os._exit(_starter(ours, middle))
    os.close(ours)
    os.setsid()
    try:
        daemon = os.fork()
    except OSError as error:
        raise ProcessError(f"can't start a daemon: {error.strerror}") from None
    if daemon:
        os._exit(0)
    os.write(theirs, b"%d\n" % os.getpid())
    return Launch(theirs)


def _starter(pipe: int, middle: int) -> int:
    """Wait for what the daemon says; the exit code."""
    heard = b""
    try:
        while heard.count(b"\n") < 2 and (data := os.read(pipe, 100)):
            heard += data
        os.waitpid(middle, 0)
    except KeyboardInterrupt:
        if b"\n" in heard:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(heard.split(b"\n")[0]), signal.SIGTERM)
        return 128 + signal.SIGINT
    words = heard.split()
    if len(words) == 2:
        return int(words[1])
    log.say("the daemon died before it was ready")
    return 1
