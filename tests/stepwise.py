"""Kills a process at each of its steps: a module's calls of the operating system, one by one.

    with stepwise(module, ..., at=n, after=False): work()       # in a forked process

`at`: the number of the call at which SIGKILL comes, before it is made or (`after`) behind it.
"""

from __future__ import annotations

import contextlib
import os
import signal

CALLS = {"open", "close", "write", "unlink", "fsync", "fchmod", "utime", "ftruncate", "rename_new",
         "flock", "opened"}


class Steps:
    """Counts calls, and ends the process at one of them."""

    def __init__(self, at: int | None, after: bool) -> None:
        self.at = at
        self.after = after
        self.done = 0

    def made(self, call, *args, **kwargs):
        number, self.done = self.done, self.done + 1
        if number == self.at and not self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return call(*args, **kwargs)
        finally:
            if number == self.at:
                os.kill(os.getpid(), signal.SIGKILL)


class _Watched:
    """A module, or a function, whose calls are steps."""

    def __init__(self, module, steps):
        self._module, self._steps = module, steps

    def __getattr__(self, name):
        found = getattr(self._module, name)
        if name in CALLS:
            return lambda *args, **kwargs: self._steps.made(found, *args, **kwargs)
        return found


@contextlib.contextmanager
def stepwise(*modules, at=None, after=False):
    """All that these modules ask of the system is counted."""
    steps = Steps(at, after)
    before = []
    for module in modules:
        for name in ("os", "fcntl", *CALLS):
            if hasattr(module, name):
                real = getattr(module, name)
                before.append((module, name, real))
                setattr(module, name, _Watched(real, steps) if name in ("os", "fcntl") else (
                    lambda *args, _real=real, **kwargs: steps.made(_real, *args, **kwargs)))
    try:
        yield steps
    finally:
        for module, name, real in before:
            setattr(module, name, real)


def killed(work, *modules, at, after=False) -> bool:
    """Whether `work` was killed in a process of its own; False: it had come to its end before."""
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            with stepwise(*modules, at=at, after=after):
                work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL), f"it failed: {status}"
    return status != 0
