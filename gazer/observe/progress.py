"""One line on a terminal that says how far a long read has come, and that is gone again.

     41 % [########............] 1.2 M frames, 312 k/s, 4 s left

Whoever writes to the same terminal calls `clear` first. Nothing is drawn

- before PATIENCE seconds are over: most reads are done by then;
- where the terminal is not ours to write to just now: a job in the background would be stopped for
  it (SIGTTOU), or write into another's screen;
- on a terminal that can't go back to the beginning of a line (TERM=dumb).

Total and position are bytes of the files as they are on disk, compressed or not. A total of 0 says
that there is none (a pipe): then there are only frames and their rate. The rate is that of the last
seconds, so that "left" follows what the machine does now.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable

PATIENCE = 1.0      # seconds before the first line
SPAN = 10.0         # seconds over which the rate is taken
PACE = 0.25         # seconds between two lines, at least
BAR = 20
_ERASE = "\r\x1b[K"     # to the beginning of the line, and erase it


class Progress:
    """The line.  stream: the terminal's descriptor; total: bytes to read, 0 if nobody knows."""

    def __init__(self, stream: int, total: int, *, now: Callable[[], float] = time.monotonic,
                 ) -> None:
        self._stream = stream
        self._total = total
        self._now = now
        self._begun = now()
        self._past: deque[tuple[float, int, int]] = deque([(self._begun, 0, 0)])
        self._shown = False

    def update(self, position: int, frames: int) -> None:
        """So many bytes of the files have been read, and so many frames."""
        now = self._now()
        if now - self._past[-1][0] < PACE:
            return
        self._past.append((now, position, frames))
        while now - self._past[0][0] > SPAN and len(self._past) > 2:
            self._past.popleft()
        if now - self._begun >= PATIENCE and _is_ours(self._stream):
            line = self._line(now, position, frames)
            self._write(_ERASE + line[: max(1, _columns(self._stream) - 1)])
            self._shown = True

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            self._shown = False
            self._write(_ERASE)

    def _line(self, now: float, position: int, frames: int) -> str:
        since, first, before = self._past[0]
        elapsed = max(now - since, 0.001)
        text = f"{_amount(frames)} frames, {_amount((frames - before) / elapsed)}/s"
        if not self._total:
            return text
        done = min(position / self._total, 1.0)
        rate = (position - first) / elapsed
        left = max(0, self._total - position)
        if rate > 0:
            text += f", {_left(left / rate)} left"
        return f"{int(100 * done):>3} % [{'#' * int(BAR * done):.<{BAR}}] {text}"

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):      # a terminal that is gone is no reason to stop
            os.write(self._stream, text.encode())


def progress_for(stream: int, files: Iterable[str], outputs: Iterable[str]) -> Progress | None:
    """A Progress for a read of these files; None where there is none to be shown: the stream is no
    terminal, or events go to a terminal too, and would be torn up."""
    try:
        if not os.isatty(stream) or os.environ.get("TERM", "dumb") in ("", "dumb"):
            return None
    except OSError:
        return None
    if any(_may_be_terminal(path) for path in outputs):
        return None
    return Progress(stream, _total(files))


def _total(files: Iterable[str]) -> int:
    """Bytes of all files; 0 if one of them is not a file whose size says how much it holds."""
    total = 0
    for path in files:
        try:
            status = os.stat(path)
        except OSError:
            if path == "-":
                return 0
            continue        # it will be told, and skipped
        if not stat.S_ISREG(status.st_mode):
            return 0
        total += status.st_size
    return total


def _may_be_terminal(path: str) -> bool:
    try:
        if path == "-":
            return os.isatty(1)
        status = os.stat(path)
        return stat.S_ISCHR(status.st_mode) and os.path.realpath(path) != os.devnull
    except OSError:
        return False


def _is_ours(stream: int) -> bool:
    """Whether we are in the foreground of this terminal, or it is nobody's."""
    try:
        return os.tcgetpgrp(stream) == os.getpgrp()
    except OSError:         # it is not our controlling terminal
        return True


def _columns(stream: int) -> int:
    try:
        return os.get_terminal_size(stream).columns or 80
    except OSError:
        return 80


def _amount(n: float) -> str:
    for unit in ("", " k", " M"):
        if n < 1000 or unit == " M":
            break
        n /= 1000
    return f"{n:.0f}{unit}" if not unit or n >= 100 else f"{n:.1f}{unit}"


def _left(seconds: float) -> str:
    whole = int(seconds) + 1
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{min(whole // 3600, 9999)} h {whole % 3600 // 60} min"
