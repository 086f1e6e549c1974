"""What a fluentd output has in hand: tasks or spool records, and the chunks that they became.

A `Work` is what has to be done: a task of the sink, or a record of the spool.  It is *done* when
none of its chunks is left.  A `Chunk` is what is sent and acknowledged as a whole; one that a
server does not take is divided into two chunks of the same work.  An acknowledgement of the chunk
that was divided, which was only late, still counts: it settles whatever has become of it.
"""

from __future__ import annotations

import time

from gazer.sinks import forward
from gazer.sinks.tasks import Answer

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from gazer.sinks.forward import Buffer


class Work:
    """A task with its answer, or a record.  left: chunks that are not settled; lost: events of a
    record that no server has; chunks: of a task, as they were made."""

    __slots__ = ("answer", "chunks", "left", "lost", "record")

    def __init__(self, task: Any = None, record: Any = None) -> None:
        self.answer = None if task is None else Answer(task)
        self.record = record
        self.chunks: list[Chunk] = []
        self.left = self.lost = 0

    @property
    def handed_on(self) -> int:
        """Events of a task that a server or the spool has, but for those that come from no ring."""
        answer = self.answer
        return 0 if answer is None else answer.events + answer.spooled - answer.task.stats

    def leaves(self) -> Iterator[Chunk]:
        """Its chunks that are not settled, in order, those that were divided by their parts.  What
        stands in the spool already is no longer its own."""
        stack = self.chunks[::-1]
        while stack:
            chunk = stack.pop()
            if chunk.parts:
                stack.extend(reversed(chunk.parts))
            elif not chunk.settled and chunk.work is self:
                yield chunk


class Chunk:
    """number: what comes first is sent first.  work: None when the chunk is nobody's any more, as
    it stands in the spool too.  size: octets as sent.  queued: when it was given to a connection;
    server: and of which server.  end: what `written` of that comes to when all of it is written.
    sent: when that was.  place: the Spool.end at which it was appended; () when it was not.

    overtaken: when one behind it was acknowledged.  refused: how often it was not acknowledged
    though its server is well; doubted: since when.  deaths, waits: how often the connection ended,
    or an acknowledgement was given up, while this was the first chunk without one.  aside: it is to
    be tried alone.  tested: it is, on a connection that lives.
    """

    __slots__ = (
        "aside", "born", "compressed", "deaths", "doubted", "end", "events", "id", "number",
        "overtaken", "parent", "parts", "payload", "place", "queued", "refused", "sent", "server",
        "settled", "size", "tag", "tested", "tries", "waits", "work",
    )  # fmt: skip

    def __init__(
        self, work: Work | None, tag: str, payload: Buffer, events: int, number: Any, *,
        id_: bytes = b"", compressed: str = "", parent: Chunk | None = None,
    ) -> None:
        self.work = work
        self.tag = tag
        self.payload = payload
        self.size = payload.nbytes if isinstance(payload, memoryview) else len(payload)
        self.events = events
        self.number = number
        self.id = id_ or forward.chunk_id()
        self.born = forward.born(id_) if id_ else time.time()
        self.compressed = compressed
        self.parent = parent
        self.parts: list[Chunk] = []
        self.place: Any = ()
        self.server: Any = None
        self.settled = self.aside = self.tested = False
        self.end = self.tries = self.refused = self.deaths = self.waits = 0
        self.queued = self.sent = self.overtaken = self.doubted = 0.0
        if work is not None:
            work.left += 1

    @property
    def wanted(self) -> bool:
        """It is still to be sent: it is not settled, not divided, and somebody's."""
        return not (self.settled or self.parts) and self.work is not None

    def divide(self, at: int) -> list[Chunk]:
        """Become two: the first `at` events, and the others.  ValueError where that can't be."""
        if not 0 < at < self.events:
            raise ValueError("one event can't be divided")
        plain = memoryview(forward.decompress(self.payload, self.compressed))
        place = forward.cut(plain, at)
        parts = []
        for i, (piece, events) in enumerate(
            ((plain[:place], at), (plain[place:], self.events - at))
        ):
            payload = forward.compress(piece, self.compressed) if self.compressed else bytes(piece)
            parts.append(Chunk(self.work, self.tag, payload, events, (*self.number, i),
                               compressed=self.compressed, parent=self))
        if self.work is not None:
            self.work.left -= 1
        for part in parts:
            part.born, part.aside = self.born, self.aside
            part.queued, part.server = self.queued, self.server
        self.parts = parts
        return parts
