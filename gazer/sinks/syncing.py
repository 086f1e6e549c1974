"""The thread that brings a spool to the disk, so that a slow disk holds up neither sending nor
appending.

It waits until something has changed (`mark`), lets more of that gather for `spool.fsync`, and syncs
it all at once.  A sync that failed is tried again after as long; the spool knows what it is about.
"""

from __future__ import annotations

import threading

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable

    from gazer.sinks.spool import Spool


class Syncing:
    """seconds: between a change and its sync.  `failed` is told, in the thread, why one could not
    be; `failing`: the last one could not.  Without a spool it does nothing."""

    def __init__(self, spool: Spool | None, seconds: float,
                 failed: Callable[[OSError], None]) -> None:
        self.failing = False
        self._spool = spool
        self._seconds = seconds
        self._failed = failed
        self._dirty = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="gazer:fsync")
        if spool is not None:
            self._dirty.set()       # what it did at its start
            self._thread.start()

    def mark(self) -> None:
        """There is something to sync."""
        self._dirty.set()

    @property
    def marked(self) -> bool:
        return self._dirty.is_set()

    def close(self) -> None:
        """No more of it; and the spool is closed, which syncs it."""
        if self._spool is None:
            return
        self._closing.set()
        self._dirty.set()
        self._thread.join()
        self._spool.close()

    def turn(self) -> None:
        """Sync what there is."""
        assert self._spool is not None
        self._dirty.clear()
        try:
            self._spool.sync()
            self.failing = False
        except OSError as error:
            self.failing = True
            self._dirty.set()
            self._failed(error)

    def _run(self) -> None:
        while True:
            self._dirty.wait()
            if self._closing.wait(self._seconds):
                return
            self.turn()
