"""What a service manager is told: sd_notify(3), in datagrams to the socket of NOTIFY_SOCKET.

systemd waits for READY=1 (`Type=notify`), shows STATUS=, and with `WatchdogSec=` kills a service
that is not heard of in time; half of that time is our pace.  A manager that is not there, or does
not listen, is never waited for.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    import socket

_DIGITS = 20


class Notifier:
    """Tells the service manager that this environment names, if any."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._socket: socket.socket | None = None
        self._pace: int | None = None       # ns between two signs of life
        self._next = 0
        self._status = ""
        address = environment.get("NOTIFY_SOCKET", "")
        if address[:1] not in ("/", "@") or len(address) < 2:
            return
        import socket  # here: it takes its time to import

        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        made.setblocking(False)
        try:
            # "@" stands for the NUL with which a name begins that no file system has.
            made.connect("\0" + address[1:] if address[0] == "@" else address)
        except (OSError, ValueError):
            made.close()
            return
        self._socket = made
        self._pace = _pace(environment)

    @property
    def pace(self) -> int | None:
        """`alive` is to be called at least so often, in ns; None: the manager does not watch us."""
        return None if self._pace is None else self._pace // 2

    def _tell(self, *lines: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send("\n".join(lines).encode(errors="replace"))

    def ready(self, status: str) -> None:
        """The service is up; also: a reload is over."""
        self._status = status
        self._tell("READY=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """What the service is about, in one line."""
        if text != self._status:
            self._status = text
            self._tell(f"STATUS={text}")

    def reloading(self) -> None:
        """The configuration is being read again; `ready` says when that is over."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str, within_ns: int) -> None:
        """The service ends, and asks for so much time to do it."""
        self._status = status
        self._tell("STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={within_ns // 1000}")

    def alive(self, now_ns: int) -> None:
        """A sign of life, if it is time for one (CLOCK_MONOTONIC)."""
        if self._pace is not None and now_ns >= self._next:
            self._next = now_ns + self._pace
            self._tell("WATCHDOG=1")

    def close(self) -> None:
        """Let go of the socket; also in a fork."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._pace = None


def _pace(environment: Mapping[str, str]) -> int | None:
    pid = environment.get("WATCHDOG_PID")
    usec = environment.get("WATCHDOG_USEC", "")
    if pid not in (None, str(os.getpid())):
        return None     # meant for somebody between the manager and us
    if not (usec.isascii() and usec.isdigit() and len(usec) <= _DIGITS and int(usec)):
        return None
    return int(usec) * 1000 // 2
