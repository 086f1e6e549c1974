"""What becomes of an output's closed files: compressed, and removed when they are too old or too
many.

There is no queue.  What is to be done stands in the folder: a file of this output's that nobody
holds a lock on, and that has no ending, is to be compressed.  So a file that a dead sink closed, or
half compressed, is found like any other, and being behind takes no memory; it is told (BEHIND).

Only names that are this output's own (gazer/config/patterns.py) are looked at, in its one folder,
and of these only plain files.  A file without ending is touched only under its lock, so never the
one that is written, not by another process either.  Where a file system has no locks such files
stay as they are, and that is told.

Age is the time of the last write, which compression keeps.  A clock that is set ahead by mistake
makes files old: `keep_age` believes the clock, `keep_bytes` asks for none but to order them.

All of it is one thread for each output that wants it, of the lowest priority (nice 19, which on
Linux is a thread's own).  A thread and not a process: beside one, a loop like the sink's kept its
rate (6,200 to 6,300 rounds a second alone and with it, the slowest in a thousand 0.4 and 0.3 ms; on
a machine with all cores busy 2,000 with a thread and 1,900 with a process; at the sink's own
priority it took half of the rate).  And it dies in the very moment in which the sink does.  The
price: while all cores are busy it hardly gets on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time

from gazer.config.patterns import Name, Names
from gazer.sinks.compress import UNLOCKABLE, Busy, Stopped, compress, taken

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable

    from gazer.config import Rotation

NICE = 19
EACH = 60.0         # seconds after which the files are looked at again, at the latest
REMIND = 30.0       # ... between two lines about the same trouble
BEHIND = 8          # closed files that wait to be compressed: beyond this it is told
END = 2.0           # seconds that the thread has to break off
QUIET = 2.0         # ... that a run over files takes for the rest without a word
TRIES = 1000        # of a free name


class _File:
    """One of our files, as the folder has it."""

    __slots__ = ("name", "parsed", "path", "size", "time")

    def __init__(self, path: str, name: str, parsed: Name, about: os.stat_result) -> None:
        self.path = path
        self.name = name
        self.parsed = parsed
        self.size = about.st_size
        self.time = about.st_mtime_ns


class Keeper:
    """Sees to the closed files of one output.  `label`: what the operator calls it."""

    def __init__(self, names: Names, rotation: Rotation, *, label: str,
                 notice: Callable[[str], None], clock: Callable[[], float] = time.time) -> None:
        self._names = names
        self._rotation = rotation
        self._label = label
        self._notice = notice
        self._clock = clock
        self._told: dict[str, float] = {}
        self._behind = False
        self._stop = False          # break off
        self._last = False          # end when all is done
        self._closed = False        # files have come since they were counted
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    @staticmethod
    def wanted(rotation: Rotation) -> bool:
        return rotation.compress != "none" or bool(rotation.keep_age_ns or rotation.keep_bytes)

    def start(self) -> None:
        """To be called when the file to write to is open: what is open is locked."""
        if self._thread is not None:
            return
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """A file was closed."""
        self._closed = True
        self._wake.set()

    def _broken_off(self) -> bool:
        """Asked between two pieces of a file, whose compression may take long: what is too much
        must not wait for it."""
        if self._closed:
            self._retain()
        return self._stop

    def end(self, *, finish: bool, giving_up: Callable[[], bool] = lambda: False) -> None:
        """No more files come.  `finish`: wait until all is done, or `giving_up` says so."""
        thread = self._thread
        if thread is None:
            return
        self._last = True
        self._stop = not finish
        self._wake.set()
        begun, told = time.monotonic(), False
        while thread.is_alive() and not self._stop:
            thread.join(0.05)
            self._stop = giving_up()
            if not told and time.monotonic() - begun > QUIET and thread.is_alive():
                told = True
                self._notice(f"all is written; the closed files of {self._label} are still being "
                             "compressed")
        thread.join(END)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while not self._stop:
            self._wake.clear()
            last = self._last
            try:
                self.tidy()
            except Stopped:
                return
            except OSError as error:
                self._tell("folder", f"can't look after the closed files of {self._label}: "
                                     f"{error.strerror}")
            except Exception as error:      # a mistake of ours must not go unseen
                self._tell("bug", f"can't look after the closed files of {self._label}: {error!r}")
            if last:
                return
            self._wake.wait(EACH)

    # --- one round -----------------------------------------------------------------------------

    def tidy(self) -> None:
        """All that there is to do now; Stopped if it is broken off."""
        self._retain()
        if self._rotation.compress == "none":
            return
        failed: set[str] = set()
        while not self._stop:
            waiting = [f for f in self._files() if not f.parsed.ending and f.size
                       and f.name not in failed]
            self._tell_behind(len(waiting))
            if not waiting:
                return
            file = waiting[0]
            failed.add(file.name)           # tried once in a round, whatever comes of it
            if self._compress(file):
                self._retain()

    def _files(self) -> list[_File]:
        """The files of this output, less parts, the oldest first.  Parts of what is no more go."""
        found = []
        there: set[str] = set()
        parts: list[tuple[str, Name]] = []
        with os.scandir(self._names.folder) as entries:
            for entry in entries:
                parsed = self._names.parse(entry.name)
                if parsed is None:
                    continue
                try:
                    about = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if not stat.S_ISREG(about.st_mode):
                    continue
                there.add(entry.name)
                if parsed.part:
                    parts.append((entry.path, parsed))
                else:
                    found.append(_File(entry.path, entry.name, parsed, about))
        for path, parsed in parts:
            if parsed.ending and parsed.plain not in there:
                with contextlib.suppress(OSError):
                    os.unlink(path)
        return sorted(found, key=lambda file: (file.time, file.name))

    def _compress(self, file: _File) -> bool:
        tried: set[int] = set()     # taken by what is no file of ours: a folder, a link

        def spare() -> str:
            files = self._files()
            used = {f.parsed.number for f in files if f.parsed.base == file.parsed.base}
            number = next((n for n in range(1, TRIES) if n not in used | tried), 0)
            if not number:
                raise OSError(errno.EEXIST, f"no free name after {file.parsed.base}")
            tried.add(number)
            return os.path.join(self._names.folder, f"{file.parsed.base}.{number}")

        try:
            compress(file.path, self._rotation.compress, spare, self._broken_off)
        except (Busy, FileNotFoundError):
            return False
        except OSError as error:
            again = f"; trying again each {EACH:g} s"
            if error.errno in UNLOCKABLE:
                again = " (files are locked for it)"
            self._tell("compress", f"can't compress {file.path}: {error.strerror}{again}")
            return False
        return True

    def _retain(self) -> None:
        """Remove what is too old, and the oldest of what is too much."""
        self._closed = False
        age, most = self._rotation.keep_age_ns, self._rotation.keep_bytes
        if not age and not most:
            return
        files = self._files()
        total = sum(file.size for file in files)
        if not self._names.timed:
            with contextlib.suppress(OSError):      # the one that is written
                total += os.lstat(self._names.path).st_size
        now = int(self._clock() * 1e9)
        for file in files:
            if self._stop:
                raise Stopped
            old = bool(age) and now - file.time > age
            if not old and not (most and total > most):
                continue
            if self._remove(file):
                total -= file.size

    def _remove(self, file: _File) -> bool:
        fd = -1
        try:
            if not file.parsed.ending:
                fd = taken(file.path)
            os.unlink(file.path)
        except FileNotFoundError:
            return True
        except Busy:
            return False
        except OSError as error:
            self._tell("remove", f"can't remove {file.path}: {error.strerror}")
            return False
        finally:
            if fd >= 0:
                os.close(fd)
        return True

    # --- what the operator is told -------------------------------------------------------------

    def _tell(self, what: str, text: str) -> None:
        now = time.monotonic()
        if now - self._told.get(what, -REMIND) >= REMIND:
            self._told[what] = now
            self._notice(text)

    def _tell_behind(self, waiting: int) -> None:
        if waiting > BEHIND:
            self._behind = True
            self._tell("behind", f"{waiting} closed files of {self._label} wait to be compressed: "
                                 "that is slower than new ones are begun")
        elif self._behind and waiting <= 1:
            self._behind = False
            self._told.pop("behind", None)
            self._notice(f"the closed files of {self._label} are compressed again as they come")
