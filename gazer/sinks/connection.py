"""One connection to one server: TCP over IPv4 or IPv6, a unix socket, TLS over either.

The sender of fluent-logger waits for its connection and for every write, and listens to nothing.
`Connection` is that sender with the other half: its `host`, `port`, `timeout` and `socket` are
used, its `_close` too; `_reconnect` begins to connect, `_send_data` queues and writes as much as
the kernel takes, `_check_recv_side` reads acknowledgements.  Nothing in it waits:

    RESOLVING -> CONNECTING -> TLS -> HELO -> PONG -> READY      (HELO, PONG: with a key or a user)

`turn` takes the next steps when the socket is ready, and returns the chunks that were acknowledged.
What goes wrong is raised (OSError, which ssl's errors are, and forward.ProtocolError), and then the
caller closes it.  Acknowledgements that came ahead of that still count: where `turn` has such, it
returns them, and what went wrong stands in `failure`, and is raised by the next one.  At `deadline`
a connection that is not READY is to be told that it is `late`; one
that is READY says how far it is by `written` and `queued`, in octets since it was begun.

A name is resolved in a thread of its own, since the C library's resolver may take as long as
resolv.conf lets it (by default 10 s for each name server), and other servers' acknowledgements
would wait for it.  A connection has one such thread at most: while it has not come back, a further
attempt waits for the same one.  All addresses are tried in the resolver's order; each has an equal
share of what is left of `timeout`.

TLS is version 1.2 or newer, with verification of the certificate and the name unless that is
switched off.  Its files are read anew for each connection, so that renewed ones are used.

TCP keepalive finds out within about two minutes that a peer has gone while nothing is sent.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from contextlib import suppress
from itertools import islice

from fluent.sender import FluentSender  # type: ignore[import-untyped]

from gazer.config.kinds import host_and_port
from gazer.sinks.forward import (
    DeniedError,
    Handshake,
    Helo,
    ProtocolError,
    Replies,
    ack,
    stranger,
)
from gazer.sinks.tls import context

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from gazer.config.forward import Forward

CLOSED, RESOLVING, CONNECTING, TLS, HELO, PONG, READY = range(7)
MOST_READ = 32 * 1024   # octets of replies read at once; with half a reply before it still taken
MOST_BUFFERS = 64       # buffers of one sendmsg(2)
WAITS_FOR = {
    RESOLVING: " from the resolver", TLS: " in the TLS handshake",
    HELO: "; a HELO was expected, since a shared_key or a user is configured", PONG: " to our PING",
}  # fmt: skip
KEEPALIVE = (
    (socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4),
)  # fmt: skip


class _Lookup:
    """The addresses of a host, found in a thread; `waker` is rung when they are."""

    def __init__(self, host: str, port: int, waker: int) -> None:
        self._args = (host, port, os.dup(waker))    # ours: the output may end before we do
        self.found: list[Any] | OSError | None = None
        threading.Thread(target=self._run, daemon=True, name="gazer:lookup").start()

    def _run(self) -> None:
        host, port, waker = self._args
        try:
            self.found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            self.found = error if isinstance(error, OSError) else OSError(str(error))
        os.eventfd_write(waker, 1)
        os.close(waker)


def _literal(host: str, port: int) -> list[Any] | None:
    """The address where no name has to be resolved."""
    try:
        return socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return None


class Connection(FluentSender):  # type: ignore[misc]
    """`waker` is an eventfd that is rung when `turn` is to be called without the socket being
    ready."""

    def __init__(self, address: str, settings: Forward, *, waker: int) -> None:
        host, port = host_and_port(address)
        super().__init__(None, host=host, port=port, timeout=settings.connect_timeout_ns / 1e9)
        self.socket: Any = None
        self.state = CLOSED
        self.deadline = self._until = 0.0
        self.queued = self.written = 0
        self.keepalive = True           # more than one chunk may be sent
        self._settings = settings
        self._waker = waker
        self._lookup: _Lookup | None = None
        self._addresses: deque[Any] = deque()
        self._unsent: deque[bytes | bytearray | memoryview] = deque()
        self._blocked = 0               # what TLS waits for ahead of going on, as an event mask
        self._replies = Replies()
        self._handshake: Handshake | None = None
        self._understood = False        # it has said something that the protocol knows
        self._why = ""                  # what was wrong with the address tried last
        self.failure: Exception | None = None   # why it is over

    # --- for the loop --------------------------------------------------------------------------

    def begin(self) -> None:
        """Connect anew; the first `turn` may come at once."""
        self.close()
        self._closed = False
        self.deadline = self._until = time.monotonic() + self.timeout
        self.queued = self.written = 0
        self.keepalive = True
        self._replies = Replies()
        self._understood = False
        self._why = ""
        self._reconnect()

    def close(self) -> None:
        """At once; what was not written is forgotten."""
        self._closed = True
        self.state = CLOSED
        self.failure = None
        self._blocked = 0
        self._unsent.clear()
        self._addresses.clear()
        self._close()

    @property
    def resolved(self) -> bool:
        """It can go on, though it has no socket yet."""
        return (self.state == RESOLVING and self._lookup is not None
                and self._lookup.found is not None)

    @property
    def mask(self) -> int:
        """The events of poll(2) that this connection waits for; 0: none, or it has no socket."""
        if self.state in (CLOSED, RESOLVING):
            return 0
        if self._blocked:
            return self._blocked
        if self.state == CONNECTING:
            return select.POLLOUT
        return select.POLLIN | (select.POLLOUT if self._unsent else 0)

    def late(self) -> None:
        """It is not READY at `deadline`: try the next address, or fail."""
        if self.state == CONNECTING and self._addresses and time.monotonic() < self._until:
            self._why = "no answer"
            self._close()
            self._connect_on()
            return
        what = WAITS_FOR.get(self.state, "") + self._maybe_tls()
        raise TimeoutError(errno.ETIMEDOUT, f"no answer within {self.timeout:g} s{what}")

    def _maybe_tls(self) -> str:
        """A server that waits for our part of TLS keeps silent, as one without a key does."""
        plain = self.state == HELO and not self._settings.tls.enable
        return " (or does it speak TLS? tls.enable is false)" if plain else ""

    def turn(self) -> list[bytes]:
        """Go on as far as that is possible now; the chunks that were acknowledged."""
        if self.failure is not None:
            raise self.failure
        self._blocked = 0
        if self.state in (RESOLVING, CONNECTING):
            self._connect_on()
        if self.state == TLS:
            self._tls()
        acks: list[bytes] = []
        try:
            if self.state > TLS:
                self._check_recv_side(acks)
            if self._unsent and self.state > TLS:
                self._write()
        except (OSError, ProtocolError) as error:
            if not acks:
                raise
            self.failure = error
        return acks

    def last(self) -> list[bytes]:
        """The acknowledgements that came before a `write` found that it is over."""
        acks: list[bytes] = []
        with suppress(OSError, ProtocolError):
            if self.state == READY:
                self._check_recv_side(acks)
        return acks

    def queue(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """To be written with `write`, and as it can go on.  They must not change until `written`
        has come to what `queued` is then, or `own` was called."""
        for buffer in buffers:
            size = buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
            if size:
                self._unsent.append(buffer)
                self.queued += size

    def write(self) -> None:
        """Write what the kernel takes."""
        if self._unsent and not self._blocked:
            self._write()

    def send(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Both."""
        self._send_data(buffers)

    def own(self) -> None:
        """Copy what is not written yet: its owner wants to change it."""
        self._unsent = deque(bytes(buffer) for buffer in self._unsent)

    # --- fluent-logger's sender, without waiting -----------------------------------------------

    def _reconnect(self) -> None:
        if self.host.startswith("unix://"):
            path = self.host[len("unix://"):]
            self._addresses.append((socket.AF_UNIX, socket.SOCK_STREAM, 0, "", path))
        else:
            found = _literal(self.host, self.port)
            if found is None:
                if self._lookup is None:
                    self._lookup = _Lookup(self.host, self.port, self._waker)
                self.state = RESOLVING
                return
            self._addresses.extend(found)
        self.state = CONNECTING

    def _send_data(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        self.queue(buffers)
        self.write()

    def _check_recv_side(self, acks: list[bytes]) -> None:
        left = MOST_READ
        tls = isinstance(self.socket, ssl.SSLSocket)
        while left > 0:     # a record of TLS is smaller than MOST_READ, so none is left in half
            try:
                data = self.socket.recv(MOST_READ)
            except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
                break
            except ssl.SSLWantWriteError:
                self._blocked = select.POLLOUT
                break
            except ConnectionResetError as error:
                if self._understood or tls:
                    raise
                # Its alert is lost with what it has not read.
                raise ConnectionResetError(
                    errno.ECONNRESET, f"{error.strerror}, without a word; does it speak TLS, "
                    "or is it no fluentd?") from None
            if not data:
                raise ConnectionResetError(
                    errno.ECONNRESET, f"it has closed the connection{self._maybe_tls()}")
            left -= len(data)
            try:
                for reply in self._replies.feed(data):
                    if self.state == READY:
                        acks.append(ack(reply))
                    else:
                        self._shake(reply)
                    self._understood = True
            except ProtocolError:
                if self._understood or not (what := stranger(data)):
                    raise
                raise ProtocolError(what) from None
            if len(data) < MOST_READ and not tls:
                break       # that was all

    # --- steps ---------------------------------------------------------------------------------

    def _connect_on(self) -> None:
        if self.state == RESOLVING:
            lookup = self._lookup
            if lookup is None or lookup.found is None:
                return
            self._lookup = None
            if isinstance(lookup.found, OSError):
                why = lookup.found.strerror or lookup.found
                raise OSError(f"its name can't be resolved: {why}")
            self._addresses.extend(lookup.found)
            self.state = CONNECTING
        if self.socket is not None:
            failed = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failed:
                self._why = os.strerror(failed)
                self._close()
            else:
                try:
                    self.socket.getpeername()
                except OSError:
                    return          # still under way
                self._connected()
                return
        while self._addresses:
            left = self._until - time.monotonic()
            self.deadline = time.monotonic() + left / len(self._addresses)
            family, kind, protocol, _, address = self._addresses.popleft()
            try:
                self.socket = socket.socket(
                    family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
                self.socket.setblocking(False)
                if family != socket.AF_UNIX:
                    self._tune()
                failed = self.socket.connect_ex(address)
            except OSError as error:
                failed = error.errno or errno.EINVAL
            if failed == 0:
                self._connected()
                return
            if failed == errno.EINPROGRESS:
                return
            self._why = os.strerror(failed)
            self._close()
        raise OSError(self._why or "it has no address")

    def _tune(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            self.socket.setsockopt(socket.IPPROTO_TCP, option, value)

    def _connected(self) -> None:
        self.deadline = self._until
        if self._settings.tls.enable:
            plain = self.socket
            name = self._server_name()
            try:
                name.encode("idna")     # where ssl does so it would leave an open socket behind
                self.socket = context(self._settings.tls).wrap_socket(
                    plain, server_hostname=name, do_handshake_on_connect=False)
            except ValueError as error:     # UnicodeError is one
                raise OSError(f"TLS: {name!r} can't be a server_name: {error}") from None
            self.state = TLS
        else:
            self._greet()

    def _server_name(self) -> str:
        name = self._settings.tls.server_name
        return name or ("localhost" if self.host.startswith("unix://") else self.host)

    def _tls(self) -> None:
        try:
            self.socket.do_handshake()
        except ssl.SSLWantReadError:
            self._blocked = select.POLLIN
        except ssl.SSLWantWriteError:
            self._blocked = select.POLLOUT
        else:
            self._greet()

    def _greet(self) -> None:
        if not (self._settings.shared_key or self._settings.username):
            self.state = READY
            return
        self._handshake = Handshake(
            shared_key=self._settings.shared_key, username=self._settings.username,
            password=self._settings.password, hostname=socket.gethostname(),
        )
        self.state = HELO

    def _shake(self, reply: Any) -> None:
        assert self._handshake is not None
        if self.state == HELO:
            helo = Helo(reply)
            self.keepalive = helo.keepalive
            self.state = PONG
            self._send_data([self._handshake.ping(helo)])
        else:
            self._handshake.check(reply)
            self._handshake = None
            self.state = READY

    def _write(self) -> None:
        unsent = self._unsent
        write = self._write_tls if isinstance(self.socket, ssl.SSLSocket) else self._write_plain
        while unsent:
            try:
                n = write()
            except (BlockingIOError, InterruptedError):
                return
            except ssl.SSLWantReadError:
                self._blocked = select.POLLIN
                return
            except ssl.SSLWantWriteError:
                return
            self.written += n
            while n:
                first = unsent[0]
                size = first.nbytes if isinstance(first, memoryview) else len(first)
                if n < size:
                    unsent[0] = memoryview(first)[n:]
                    break
                unsent.popleft()
                n -= size

    def _write_plain(self) -> int:
        if len(self._unsent) <= MOST_BUFFERS:
            return int(self.socket.sendmsg(self._unsent))
        return int(self.socket.sendmsg([*islice(self._unsent, MOST_BUFFERS)]))

    def _write_tls(self) -> int:
        return int(self.socket.send(self._unsent[0]))


def reason(error: BaseException) -> str:
    """An error of a connection in words, in one line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        if error.reason == "WRONG_VERSION_NUMBER":
            return "what it says is no TLS, and tls.enable is true"
        return f"TLS: {error.reason or error}"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)


__all__ = [
    "CLOSED", "READY", "Connection", "DeniedError", "ProtocolError", "reason",
]  # fmt: skip
