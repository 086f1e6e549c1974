"""A fluentd output: its thread, from the sink's tasks to servers that have acknowledged them.

    give(task) ─▶ Work ─▶ chunks ─▶ servers ─▶ acks ─▶ Answer ─▶ take()      (straight)
                    │                                  ▲
                    └───▶ spool ───────────────────────┘                     (spooling)
                            └─────▶ chunks ─▶ servers ─▶ acks                (reading)

A task is answered, in order, when each of its chunks was acknowledged, stands in the spool, or was
dropped by a policy that is counted.  That a write succeeded proves nothing.  Everything happens in
one thread, in one loop around poll(2): connections, TLS, writes as far as they go, acks, time-outs
(delivery.py); an eventfd tells it of new tasks.  It sleeps until the next of these is due, which
for an output without work is a heartbeat each 15 s.

- **Spooling** begins when no server can be had, when nothing was acknowledged for SLOW seconds
  although chunks wait, or when many have waited behind the window for BRIEF seconds.  All that is
  unanswered goes into the spool in order, under the ids with which it was sent, and all new tasks
  behind it; chunks are read from there in order and sent.  What is under way at that moment is not
  sent again: when it is read it is found to be, or it is acknowledged already and not read.  So
  it is, too, when all tasks that may be in hand are and none was answered for SLOW seconds: one is
  not taken, and those behind it are kept waiting.
- **Spooling ends** when all has been read and sent and acknowledgements come; or, with a longer
  backlog, when they have come for AHEAD seconds.  New tasks go straight to the servers then, ahead
  of the backlog, which has the rest of the line (backlog.py): a receiver that was away for a day
  has what is new at once, and what is old in order beside it.  If there is too much for that, what
  is unanswered goes into the spool again, for twice as long as the last time, unless that was long
  ago.
- **A spool that can't be written** keeps its task here and tries again each second; what the output
  then has no room for is dropped by the sink (outputs.py), as without a spool.  Where servers
  acknowledge, new tasks go straight after BRIEF seconds; both take turns if that is too much.  One
  that can't be read (no descriptor, no right; damage is the spool's own matter) is tried again as
  well.  It is synced by a thread of its own: a slow disk holds up neither sending nor appending.
- **Rejected credentials**: in a live run told and tried again; in a run over files, when no server
  accepts us, the end: a fault tells so, and every task is answered with an OutputError of the
  same words, which are not said again (run.py).
- **The end** (`end`): what is unanswered when nothing has moved for `patience` goes into the spool,
  or is given up: its task is answered with GaveUpError, and its events were not delivered.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque

from gazer.config.kinds import printable
from gazer.errors import OutputError
from gazer.sinks import backlog, forward
from gazer.sinks.backlog import Backlog
from gazer.sinks.chunks import Chunk, Work
from gazer.sinks.delivery import Delivery
from gazer.sinks.files import GaveUpError
from gazer.sinks.servers import REMIND
from gazer.sinks.syncing import Syncing

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from gazer.config.forward import Forward
    from gazer.sinks.servers import Server
    from gazer.sinks.tasks import Answer

SLOW = 1.0      # seconds without an acknowledgement after which what waits is spooled, or twice
                # what servers have taken of late, but no more than PATIENCE times that
PATIENCE = 10
BRIEF = 0.1     # ... for which many may wait behind the window
AHEAD = 1.0     # ... of acknowledgements before new tasks go ahead of a backlog, and
AHEAD_MOST = 30.0   # ... when that was too much for the servers again and again
LAST = 1.0      # ... at the end, for acknowledgements of what stands in the spool anyway
BEHIND = 8      # tasks that may wait behind the window, at least, before they are spooled


class Forwarder:
    """One output of type fluentd.  `bell` is an eventfd that is rung when there is an Answer to
    take; `notice` takes a line for the operator, `fault` one that ends the run.  `run` is a number
    that tells this run of the sensor from others, for the spool.  The spool is used by this thread
    alone, and closed by it at the end.
    """

    def __init__(
        self, settings: Forward, *, spool: Any = None, bell: int, notice: Callable[[str], None],
        fault: Callable[[str], None], live: bool, name: str, run: int = 0,
    ) -> None:
        self.name = name
        self.wanted = False                 # connect anew; a task with `reopen` does so
        self.progress = time.monotonic()    # when anything last went forward
        self.ringing = True                 # there is somebody to hear the bell
        self.said = -REMIND                 # when it last told the operator something
        self.why = "nothing is acknowledged"    # what it waits for, when it waits
        self.finished = threading.Event()
        # A spool sees by what waits behind the window that servers are slow.
        behind = max(settings.window, 2 * BEHIND) if spool is not None else 0
        self.window = settings.window + behind
        self._behind = behind // 2
        self._behind_since = 0.0
        self._settings = settings
        self._spool = spool
        self._bell = bell
        self._tell = notice
        self._fault = fault
        self._live = live
        self._number = run
        self._waker = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._asleep = False                # or about to be: look at what was given once more
        self._given: deque[Any] = deque()
        self._answers: deque[Answer] = deque()
        self._works: deque[Work] = deque()      # tasks that are not answered, in order
        self._fatal: Exception | None = None    # why nothing more is sent
        self._ending: float | None = None       # the patience
        self._ending_since = 0.0
        self._delivery = Delivery(
            settings, self._waker, name=name, notice=self._notice, settled=self._settled,
            more=self._more, waiting=self._waiting, denied=self._denied,
        )
        self._reading = spool is not None and not spool.empty   # there may be records to be read
        self._spooling = self._reading          # new tasks go there, too
        self._since = time.monotonic()          # they do, or do not
        self._ahead = AHEAD                     # how long they are to, at least
        self._coming = 0.0                      # since when acknowledgements come again; or 0
        self._answered = self._since            # when a task last was, or when there was none
        self.handed_on = 0          # events of the run that servers or the spool have
        self._again = 0.0                       # when to write to the spool again
        self._failing_told = self._spooling_told = self._straight_told = -REMIND
        self._failing = self._spooling_told_of = False
        self._syncing = Syncing(spool, settings.spool.fsync_ns / 1e9, self._spool_failed)
        self._backlog = Backlog(spool, self._syncing, self._delivery, window=settings.window,
                                failed=self._spool_failed)
        # A thread that is stuck in a write to a disk must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, daemon=True, name="gazer:fluentd")
        self._thread.start()

    # --- for the sink's loop -------------------------------------------------------------------

    def give(self, *tasks: Any) -> None:
        """More tasks, of at most `window` that are not answered.  Their parts must stay as they
        are until then."""
        self._given.extend(tasks)
        if self._asleep:
            self._wake()

    def take(self) -> Answer | None:
        """The next answer, in the order of the tasks."""
        return self._answers.popleft() if self._answers else None

    def end(self, patience: float = 0.0) -> None:
        """No more tasks will come.  Returns at once.  Each that was given is still answered, at
        the latest when nothing has gone forward for `patience` seconds; then `finished` is set and
        the bell rung.  May be called again, with less patience."""
        self._ending_since = self._ending_since or time.monotonic()
        self._ending = patience
        self._wake()

    def join(self, timeout: float) -> bool:
        """Wait for the thread, after `end`; whether it is over."""
        self._thread.join(timeout)
        over = not self._thread.is_alive()
        if over and self._waker >= 0:
            os.close(self._waker)
            self._waker = -1
        return over

    def counts(self) -> dict[str, int]:
        """What the ledger shows of this output; any thread may ask.  From `servers` on they are as
        they are now, the others since the start."""
        delivery, spool = self._delivery, self._spool
        kept = dict.fromkeys(("spooled", "delivered", "dropped", "damaged", "found", "there"), 0)
        if spool is not None:
            told = spool.counts()
            kept = {name: int(told.get(name, 0)) for name in kept}
        return {
            **delivery.counts, **kept,
            "servers": len(delivery.servers.proper()),
            "servers_up": sum(server.up for server in delivery.servers.proper()),
            "unacknowledged": delivery.flying,
            "unacknowledged_bytes": delivery.flying_bytes,
            "spooling": int(self._spooling),
            "spool_bytes": 0 if spool is None else spool.bytes,
            "spool_failing": int(
                self._backlog.unreadable or self._syncing.failing or self._write_failing()),
        }

    def _write_failing(self) -> bool:
        """The spool could not be written when that was last wanted, and it still is."""
        tries = self._spooling or (
            self._reading and time.monotonic() - self._since < backlog.AGAIN)
        return self._failing and tries

    def _notice(self, text: str) -> None:
        self.said = time.monotonic()
        self._tell(text)

    def _wake(self) -> None:
        if self._waker >= 0:
            os.eventfd_write(self._waker, 1)

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._tell_backlog()
            self._loop()
        except Exception as error:      # a mistake of ours: tell the sink, which ends with it
            self._fatal = error
            self._give_up(error)
            while self._ending is None:
                self._poll(60.0)
                self._take_tasks()
                self._answer()
        finally:
            self._delivery.stop()
            self._syncing.close()
            self.finished.set()
            os.eventfd_write(self._bell, 1)

    def _tell_backlog(self) -> None:
        if self._reading and self._spool.events:
            self._spooling_told_of = True
            self._notice(f"{self.name}: {_events(self._spool.events)} in the spool from before: "
                         "they are sent first")

    def _loop(self) -> None:
        timeout = 0.0
        while True:
            for server in self._poll(timeout):
                self._delivery.serve(server)
            self._take_tasks()
            now = time.monotonic()
            self._delivery.look(now)
            if self._spool is not None:
                self._look_at_spool(now)
            self._backlog.hurry = False
            if self._reading and not self._spooling and self._ending is None:
                self._backlog.ahead()
            self._delivery.send(now)
            self._answer()
            if self._ending is not None and self._over(now):
                return
            timeout = self._due(now)

    def _poll(self, timeout: float) -> list[Server]:
        """Wait; the servers whose connections can go on."""
        poll = select.poll()
        poll.register(self._waker, select.POLLIN)
        servers = {}
        for server in self._delivery.servers.all:
            connection = server.connection
            mask = connection.mask
            if mask and connection.socket is not None:
                servers[connection.socket.fileno()] = server
                poll.register(connection.socket, mask)
        found = []
        self._asleep = True
        waits = timeout > 0 and not self._given
        ready = poll.poll(int(timeout * 1000) + 1 if waits else 0)
        self._asleep = False
        for fd, _ in ready:
            if fd == self._waker:
                os.eventfd_read(fd)
                found += [s for s in self._delivery.servers.all if s.connection.resolved]
            else:
                found.append(servers[fd])
        return found

    def _due(self, now: float) -> float:
        """Seconds until there is something to do without being woken."""
        if self._given or self._backlog.hurry:
            return 0.0
        delivery = self._delivery
        when = delivery.due(now)
        if self._spool is not None and not self._spooling and self._works:  # as _look_at_spool
            if delivery.waits_since:
                when = min(when, max(delivery.waits_since, delivery.acked_at) + self._slow())
            if self._behind_since:
                when = min(when, self._behind_since + BRIEF)
            if len(self._works) >= self.window:
                when = min(when, self._answered + SLOW)
        if self._again:
            when = min(when, self._again)
        if self._backlog.retry:
            when = min(when, self._backlog.retry)
        if self._ending is not None:
            when = min(when, self._deadline())
        return max(when - now, 0.0)

    # --- tasks ---------------------------------------------------------------------------------

    def _take_tasks(self) -> None:
        if self._given and not self._works:
            self._answered = time.monotonic()   # from here on it is waited for
        while self._given:
            work = Work(self._given.popleft())
            self._works.append(work)
            assert work.answer is not None
            task = work.answer.task
            if task.reopen:
                self.wanted = False
                self._delivery.reopen()
            elif self._fatal is not None:
                work.answer.failure = self._fatal
            else:
                self._cut(work, task.parts or ())
        if self._spooling and not self._again:
            self._spool_works()

    def _cut(self, work: Work, parts: Any) -> None:
        """Chunks of a task, one for each part."""
        how = self._settings.compress
        for tag, payload, events in parts:
            if not events:
                continue
            chunk = Chunk(work, tag, forward.compress(payload, how) if how else payload, events,
                          self._delivery.number(), compressed=how)
            work.chunks.append(chunk)
            if not self._spooling:
                self._delivery.add(chunk)

    def _answer(self) -> None:
        """Answer what is done, in order."""
        rung = False
        while self._works and not self._works[0].left:
            work = self._works.popleft()
            assert work.answer is not None
            self.handed_on += work.handed_on
            self._answers.append(work.answer)
            self._backlog.task_answered()
            rung = True
        if rung:
            self._answered = time.monotonic()
        if rung and self.ringing:
            os.eventfd_write(self._bell, 1)

    def _settled(self, chunk: Chunk, delivered: bool) -> None:
        """A chunk is over."""
        self.progress = time.monotonic()
        work = chunk.work
        if (work is None and chunk.place) or (work is not None and work.record is not None):
            self._backlog.settled(chunk, delivered=delivered)
        elif work is not None:
            work.left -= 1
            answer = work.answer
            assert answer is not None
            if delivered:
                answer.events += chunk.events
                answer.bytes += chunk.size
            else:
                answer.dropped += chunk.events

    def _waiting(self) -> str:
        events = sum(chunk.events for work in self._works for chunk in work.leaves())
        found = []
        if events:
            found.append(f"{_events(events)} wait{'s' * (events == 1)}")
        if self._spool is not None and self._spool.events:
            found.append(f"{_events(self._spool.events)} in the spool")
        return ", ".join(found)

    def _denied(self, text: str) -> bool:
        """No server accepts us.  True: so this is the end."""
        if self._live:
            return False
        self._fatal = OutputError(text)
        self._fault(text)
        self._give_up(self._fatal)
        return True

    # --- the spool -----------------------------------------------------------------------------

    def _look_at_spool(self, now: float) -> None:
        """Whether to begin or to end spooling, or to write to it or to read it again."""
        delivery = self._delivery
        records = self._backlog
        if now >= records.retry:
            records.retry = 0.0
        if self._reading and not self._spooling and records.all_read:
            self._end_reading()
        if not self._spooling:
            since = max(delivery.waits_since, delivery.acked_at)
            slow = delivery.waits_since and now - since >= self._slow()
            if len(delivery.ready) <= self._behind:
                self._behind_since = 0.0
            elif not self._behind_since:
                self._behind_since = now
            slow = slow or (self._behind_since and now - self._behind_since >= BRIEF)
            # What is behind one that a server does not take is acknowledged, but not answered; and
            # then there is room for nothing new, while the backlog is acknowledged all the time.
            slow = slow or (len(self._works) >= self.window and now - self._answered >= SLOW)
            if self._works and (slow or delivery.servers.hopeless()):
                self._begin_spooling(now)
            return
        if self._again and now >= self._again:
            self._again = 0.0
            self._spool_works()
        acks = delivery.acked_at > self._since and now - delivery.acked_at < SLOW
        if not delivery.servers.up():
            self._coming = 0.0
        elif acks:
            self._coming = self._coming or now
        if records.all_read and ((self._again and delivery.servers.up()) or (
                not self._works and not delivery.ready and not delivery.aside
                and (not delivery.flying or acks))):
            self._go_straight(now)
            self._end_reading()
        elif acks and now - self._coming >= (BRIEF if self._again else self._ahead):
            self._go_straight(now)      # soon, where nothing new can be put into the spool
        elif (records.unreadable and delivery.servers.up()
                and now - self._since >= self._ahead):
            self._go_straight(now)

    def _slow(self) -> float:
        """Seconds without an acknowledgement after which new tasks go into the spool."""
        return max(SLOW, min(2 * self._delivery.pace.longest, PATIENCE * SLOW))

    def _go_straight(self, now: float) -> None:
        """End spooling: new tasks go to the servers, and so does what the spool did not take."""
        self._spooling = False
        self._since = now
        self._again = 0.0
        self._backlog.begin_beside(now)
        for work in self._works:
            for chunk in work.leaves():
                if chunk.id not in self._delivery.known:
                    self._delivery.add(chunk)
        beside = not self._backlog.all_read
        if self._spooling_told_of and beside and now - self._straight_told >= REMIND:
            self._straight_told = now
            self._notice(f"{self.name}: new events go straight to its servers again; "
                         f"{_events(self._spool.events)} in the spool are sent beside them")

    def _end_reading(self) -> None:
        self._reading = False
        self._ahead = AHEAD
        if self._spooling_told_of:
            self._spooling_told_of = False
            self._notice(f"{self.name}: its spool is read to the end; events go straight to "
                         "its servers")

    def _begin_spooling(self, now: float) -> None:
        if now - self._since >= AHEAD_MOST:
            self._ahead = AHEAD         # it was not too much for long
        elif self._reading and not self._failing:
            self._ahead = min(2 * self._ahead, AHEAD_MOST)
        self._spooling = self._reading = True
        self._behind_since = self._coming = 0.0
        self._since = now
        self._delivery.withdraw()
        self._spool_works()
        if now - self._spooling_told >= REMIND:
            self._spooling_told, self._spooling_told_of = now, True
            why, until = (("its servers do not keep up", "they do") if self._delivery.servers.up()
                          else ("no server is connected", "one is"))
            self._notice(f"{self.name}: {why}; events go into the spool ({self._spool.events} so "
                         f"far) until {until}")

    def _spool_works(self) -> None:
        """Put all that is unanswered into the spool."""
        handed_on = self.handed_on
        for work in self._works:
            leaves = [*work.leaves()]
            for i, chunk in enumerate(leaves):
                if not self._append(work, chunk, handed_on, last=i == len(leaves) - 1):
                    return
            handed_on += work.handed_on
        self._answer()

    def _append(self, work: Work, chunk: Chunk, before: int, *, last: bool) -> bool:
        """Put a chunk into the spool; False: later.  With the last one of a task stands how far a
        successor of the sink need not go back, and how many events up to there were lost; `before`:
        those that were handed on with tasks before this one."""
        answer = work.answer
        assert answer is not None
        upto = answer.task.upto if last else 0
        place = self._spool.end
        try:
            kept = self._spool.append(
                chunk.payload, tag=chunk.tag.encode(), events=chunk.events, chunk=chunk.id,
                compressed=chunk.compressed, run=self._number,
                upto=upto, lost=max(0, upto - before - work.handed_on - chunk.events),
            )
        except OSError as error:
            self._syncing.mark()  # it may have made room for it
            self._again = time.monotonic() + backlog.AGAIN
            self._failing = True
            self._spool_failed(error)
            return False
        if self._failing:
            self._failing = False
            self._notice(f"{self.name}: its spool is written again")
        if kept:
            answer.spooled += chunk.events
            self._backlog.all_read = False
            self._syncing.mark()
            chunk.place = place
        else:
            answer.dropped += chunk.events
        chunk.work = None
        work.left -= 1
        flies = [server for server in self._delivery.servers.all if chunk.id in server.flying]
        for server in flies:
            if chunk.end > server.connection.written:
                server.connection.own()     # its task will be answered
        # One that is under way stays known: its acknowledgement is the record's.
        if not kept or not flies:
            self._delivery.forget(chunk)
        self.progress = time.monotonic()
        return True

    def _spool_failed(self, error: OSError) -> None:
        now = time.monotonic()
        if now - self._failing_told >= REMIND:
            self._failing_told = now
            self._notice(f"{self.name}: its spool {printable(self._spool.folder)}: "
                         f"{error.strerror or error}; it is tried again")

    def _more(self) -> Chunk | None:
        """The next chunk out of the spool."""
        if not self._reading or self._ending is not None:
            return None
        return self._backlog.next() if self._spooling else self._backlog.beside()

    # --- the end -------------------------------------------------------------------------------

    def _deadline(self) -> float:
        """When to wait no longer, at the end."""
        patience = self._ending or 0.0
        if self._works:
            return max(self.progress, self._ending_since) + patience
        return max(self._delivery.acked_at, self._ending_since) + min(patience, LAST)

    def _over(self, now: float) -> bool:
        """After `end`: whether this is it."""
        if self._given:
            return False
        if now < self._deadline() and (self._works or self._delivery.flying):
            return False
        if self._works and self._spool is not None:
            if self._spooling:
                self._spool_works()
            else:
                self._begin_spooling(now)
        if self._works:
            self._give_up(GaveUpError())
        return True

    def _give_up(self, failure: Exception) -> None:
        """Answer all that is unanswered: it was not delivered."""
        self._delivery.stop()       # the parts of tasks are no longer ours once they are answered
        for work in self._works:
            if work.left and work.answer is not None:
                work.left = 0
                work.answer.failure = failure
        self._answer()


def _events(n: int) -> str:
    return f"{n} event{'s' * (n != 1)}"
