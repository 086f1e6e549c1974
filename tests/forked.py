"""A function in a forked child, for what can't be undone: another user, no rights, a filter."""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import traceback
from collections.abc import Callable


class Ended:
    """How the child ended, and what it said: whatever `work` passed to `say`, in order."""

    def __init__(self, status: int, said: list[object]) -> None:
        self.signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        self.code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
        self.said = said

    def __repr__(self) -> str:
        return f"signal {self.signal}, code {self.code}, said {self.said}"


def forked(work: Callable[..., None], *args: object, seconds: int = 60) -> Ended:
    """Run `work(say, fd, *args)` in a child; `fd` is what `say` writes to.

    An exception is said, and ends it with code 1.  No coverage, no pytest, no finalizers.
    """
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        gc.freeze()                     # pytest's garbage is pytest's to finalize
        code = 1
        try:
            os.close(ours)
            faulthandler.disable()      # pytest's: it writes to standard error
            signal.alarm(seconds)

            def say(what: object) -> None:
                os.write(theirs, json.dumps(what).encode() + b"\n")

            try:
                work(say, theirs, *args)
                code = 0
            except BaseException as error:
                frames = traceback.StackSummary.extract(
                    traceback.walk_tb(error.__traceback__), lookup_lines=False)
                say([repr(error), *(f"{f.filename}:{f.lineno}" for f in frames)])
        finally:
            os._exit(code)
    os.close(theirs)
    with os.fdopen(ours, "rb") as file:
        said = [json.loads(line) for line in file]
    return Ended(os.waitpid(pid, 0)[1], said)
