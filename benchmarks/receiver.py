"""`python -m benchmarks.receiver`: a receiver of fluentd's forward protocol that does as little as
one can, so that the sender is what is measured: it takes chunks, throws them away and acknowledges
them.  It opens no payload; that what comes is right is for the tests to say.

Prints the port that it listens on; at its end, when standard input is closed, one line of JSON with
what it got.  `--tls CERT KEY` speaks TLS; `--raw` reads and never answers, for senders that want no
acknowledgement.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import ssl
import sys
import threading
import time

BUFFER = 1 << 20


class Broken(Exception):
    """What came is not what a sender of chunks sends."""


class Taken:
    """What all connections brought."""

    def __init__(self) -> None:
        self.chunks = self.events = self.bytes = 0
        self.errors: list[str] = []


class Reader:
    """Bytes of one connection; what is skipped is not copied."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.buffer = bytearray(BUFFER)
        self.view = memoryview(self.buffer)
        self.begin = self.end = 0

    def _more(self) -> None:
        if self.begin == self.end:
            self.begin = self.end = 0
        elif self.end == BUFFER:
            self.buffer[: self.end - self.begin] = self.buffer[self.begin : self.end]
            self.end -= self.begin
            self.begin = 0
        got = self.connection.recv_into(self.view[self.end :])
        if got == 0:
            raise EOFError
        self.end += got

    def take(self, size: int) -> bytes:
        """The next few bytes."""
        while self.end - self.begin < size:
            self._more()
        self.begin += size
        return bytes(self.view[self.begin - size : self.begin])

    def skip(self, size: int) -> None:
        while size:
            if self.begin == self.end:
                self._more()
            there = min(size, self.end - self.begin)
            self.begin += there
            size -= there

    # --- the part of msgpack that is needed ---

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def length(self, first: int, fix: int, ones: tuple[int, ...]) -> int:
        """How long the string or binary is that begins with this byte."""
        if fix and first & 0xE0 == fix:
            return first & 0x1F
        if first in ones:
            return self.number(1 << ones.index(first))
        raise Broken(f"0x{first:02x} where a length is to be")

    def text(self) -> bytes:
        return self.take(self.length(self.number(1), 0xA0, (0xD9, 0xDA, 0xDB)))

    def option(self) -> int | bytes:
        first = self.number(1)
        if first < 0x80:
            return first
        if first in (0xCC, 0xCD, 0xCE, 0xCF):
            return self.number(1 << (first - 0xCC))
        return self.take(self.length(first, 0xA0, (0xD9, 0xDA, 0xDB)))

    def chunk(self) -> tuple[int, int, bytes]:
        """The next PackedForward message: bytes, events, id."""
        if self.number(1) != 0x93:
            raise Broken("no message of three parts")
        self.text()
        size = self.length(self.number(1), 0, (0xC4, 0xC5, 0xC6))
        self.skip(size)
        pairs = self.number(1)
        if pairs & 0xF0 != 0x80:
            raise Broken("no options")
        options = {}
        for _ in range(pairs & 0x0F):
            key = self.text()
            options[key] = self.option()
        events, name = options.get(b"size"), options.get(b"chunk")
        if not isinstance(events, int) or not isinstance(name, bytes):
            raise Broken("a chunk without size or id")
        return size, events, name


def serve(connection: socket.socket, context: ssl.SSLContext | None, raw: bool,
          taken: Taken) -> None:  # fmt: skip
    with contextlib.suppress(EOFError, ConnectionError), connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            stream = context.wrap_socket(connection, server_side=True) if context else connection
            reader = Reader(stream)
            if raw:
                while True:
                    reader._more()
                    taken.bytes += reader.end
                    reader.begin = reader.end
            while True:
                size, events, name = reader.chunk()
                taken.chunks += 1
                taken.events += events
                taken.bytes += size
                head = bytes((0xA0 | len(name),)) if len(name) < 32 else bytes((0xD9, len(name)))
                stream.sendall(b"\x81\xa3ack" + head + name)
        except (Broken, ssl.SSLError) as error:
            taken.errors.append(str(error))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.receiver")
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
    parser.add_argument("--raw", action="store_true")
    options = parser.parse_args()
    context = None
    if options.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*options.tls)
    listener = socket.create_server(("127.0.0.1", 0))
    taken = Taken()

    def accept() -> None:
        while True:
            connection = listener.accept()[0]
            threading.Thread(target=serve, args=(connection, context, options.raw, taken),
                             daemon=True).start()  # fmt: skip

    threading.Thread(target=accept, daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()
    print(json.dumps({**vars(taken), "cpu": time.process_time()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
