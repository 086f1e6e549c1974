"""The process that serves the sensor's metrics to Prometheus, over HTTP.

    GET /metrics    the metrics, in the text form or as OpenMetrics, whichever is asked for
    GET /health     200 "well", or 503 and what is wrong, one line each (see health.py); drops are
                    told that came since the request before

Strangers may connect: the process is alone and unprivileged, has nothing to write and reads nothing
but the ledger. What they can take from it is bounded, each bound with its reason:

    CONNECTIONS     at once; a further one is closed at once. Prometheus needs one.
    DEADLINE        seconds for a connection as a whole, request and answer: drip-feeding a request
                    or not reading the answer holds a place for no longer
    HEAD            bytes of a request's head; a body is not read, the connection ends
    FRESH           seconds for which an answer serves all who ask: a flood of requests renders
                    once a second

One connection serves one request. One thread serves all, so that nothing needs a lock; rendering
takes milliseconds.

An address that can't be listened on (in use, not there yet) is told in one line, and tried again
every RETRY seconds; the run goes on without.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable

from gazer.child import NOTICE, Boot, Child, run
from gazer.config.kinds import address_and_port
from gazer.observe import health
from gazer.observe.metrics import collect
from gazer.observe.snapshot import Observer, Snapshot
from gazer.privileges import least_port

CONNECTIONS = 32
DEADLINE = 5.0
HEAD = 8 * 1024
FRESH = 1.0
RETRY = 30.0
NAP = 0.1           # seconds between two looks at what the supervisor wants

TEXT = "text/plain; charset=utf-8"
_REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
    431: "Request Header Fields Too Large", 503: "Service Unavailable",
}  # fmt: skip


def main(boot: Boot) -> None:
    """What the supervisor starts."""
    run(boot, observe)


def observe(child: Child) -> None:
    """Serve until the run is over."""
    observer = Observer(child.attach, child.boot.supervisor)
    try:
        asyncio.run(_serve(child, observer))
    finally:
        observer.close()


async def _serve(child: Child, observer: Observer) -> None:
    """Serve until the supervisor wants an end; give a sign of life meanwhile."""
    # What asyncio has to say it would write to stderr, which is the supervisor's: a connection that
    # fails is the stranger's business.
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    where = child.boot.config.metrics.listen
    address, port = address_and_port(where)
    service = Service(observer)
    server: asyncio.Server | None = None
    next_try, told = 0.0, ""
    while not child.slot.draining:
        child.slot.waits(False)     # as a sign of life, and that it is running
        if server is None and time.monotonic() >= next_try:
            try:
                server = await service.listen(address, port)
                if told:
                    child.report(NOTICE, f"metrics are served on {where} now")
            except OSError as error:
                why = _why(error, port)
                if why != told:
                    child.report(NOTICE, f"can't serve metrics on {where}: {why}; trying "
                                         f"again every {RETRY:g} s")
                told, next_try = why, time.monotonic() + RETRY
        await asyncio.sleep(NAP)
    if server is not None:
        server.close()
    service.close()


def _why(error: OSError, port: int) -> str:
    """Why it can't listen there; asyncio puts words of its own around the reason."""
    why = (os.strerror(error.errno) if error.errno else str(error)).lower()
    if error.errno == errno.EACCES and port < (least := least_port()):
        why += (f" (ports below {least} take a right that this process does not have: "
                "net.ipv4.ip_unprivileged_port_start)")
    return why


class Service:
    """The HTTP side: who asks gets an answer, within the bounds above."""

    def __init__(self, observer: Observer, *, now: Callable[[], float] = time.monotonic) -> None:
        self._observer = observer
        self._now = now
        self._tasks: set[asyncio.Task[None]] = set()
        self._taken: float | None = None
        self._snapshot: Snapshot | None = None
        self._earlier: Snapshot | None = None       # the one before it
        self._rendered: dict[str, tuple[bytes, str]] = {}   # by form
        self._wrong: list[str] | None = None                # what is, of this snapshot

    async def listen(self, address: str, port: int) -> asyncio.Server:
        """Begin to accept connections."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return await asyncio.start_server(
            self._connected, address, port, family=family, limit=HEAD, backlog=CONNECTIONS)

    def close(self) -> None:
        """End all connections."""
        for task in self._tasks:
            task.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._tasks) >= CONNECTIONS:
            writer.transport.abort()
            return
        self._tasks.add(task)
        try:
            async with asyncio.timeout(DEADLINE):
                await self._serve_one(reader, writer)
        except (TimeoutError, OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()    # whatever it still holds

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            answer = 431, b"the request is too large\n", TEXT
            await self._answer(reader, writer, answer)
            return
        except asyncio.IncompleteReadError:
            return
        await self._answer(reader, writer, self.respond(head), only_head=head.startswith(b"HEAD "))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
                      answer: tuple[int, bytes, str], *, only_head: bool = False) -> None:
        code, body, kind = answer
        head = (
            f"HTTP/1.1 {code} {_REASONS[code]}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + (b"" if only_head else body))
        # Until all is sent and the other side has closed: what of its request was not read would
        # make an earlier close a reset, which throws the answer away.
        await writer.drain()
        writer.write_eof()
        while await reader.read(HEAD):
            pass

    def respond(self, head: bytes) -> tuple[int, bytes, str]:
        """The answer to a request with this head: code, body and its type."""
        line, *rest = head.decode("latin-1").split("\r\n")
        words = line.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return 400, b"not a request that can be understood\n", TEXT
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            return 405, b"only GET and HEAD\n", TEXT
        path = target.partition("?")[0]
        if path == "/metrics":
            return 200, *self._metrics(_field(rest, "accept"))
        if path == "/health":
            wrong = self._complaints()
            return (503 if wrong else 200), ("\n".join(wrong or ["well"]) + "\n").encode(), TEXT
        return 404, b"there is /metrics and /health\n", TEXT

    def _look(self) -> Snapshot:
        """A snapshot that is not older than FRESH."""
        now = self._now()
        if self._snapshot is None or self._taken is None or now - self._taken >= FRESH:
            self._earlier, self._snapshot = self._snapshot, self._observer.snapshot()
            self._taken = now
            self._rendered.clear()
            self._wrong = None
        return self._snapshot

    def _metrics(self, accept: str) -> tuple[bytes, str]:
        # Here: it takes a tenth of a second, and who is never asked never needs it.
        from prometheus_client.exposition import choose_encoder

        snapshot = self._look()
        encoder, kind = choose_encoder(accept)
        if kind not in self._rendered:
            self._rendered[kind] = (encoder(_Collected(snapshot)), kind)
        return self._rendered[kind]

    def _complaints(self) -> list[str]:
        snapshot = self._look()
        if self._wrong is None:
            standing = snapshot.standing()
            if standing.broken and not standing.waiting:
                snapshot, standing = self._observer.settled()   # this takes a while
            self._wrong = [*health.complaints(
                self._earlier or snapshot, snapshot, standing, health.Limits())]
        return self._wrong


class _Collected:
    """What prometheus_client's encoders take for a collector."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self):  # type: ignore[no-untyped-def]
        return collect(self._snapshot)


def _field(lines: list[str], name: str) -> str:
    """The value of a header field, "" if it is not there."""
    for line in lines:
        key, _, value = line.partition(":")
        if key.lower() == name:
            return value.strip()
    return ""

