"""Exchanges with unique names, sent from the far end of the cable, at a rate that can be changed.

Exchange n has the name `nNNNNNNNNN.soak.example` and can make one event at the most, whatever of it
gets lost: no reply comes twice.  Its kind follows from n alone.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import struct
import threading
import time

from tests.netns import ENDS, FAR, Lab
from tests.oracle import build

NAME = re.compile(rb"n(\d{9})\.soak\.example")
SERVER = "192.0.2.53"
TICK = 0.02                     # seconds
MOST = 400                      # exchanges at once; the kernel's queue behind the cable has an end
ANSWER = build.record(b"\xc0\x0c", 16, b"\xff" + b"t" * 255, ttl=300)

TCP, FRAGMENTS, UNANSWERED, UNASKED, REPEATED, PLAIN = range(6)


def kind(n: int) -> int:
    """What exchange n is; one in fifty of each kind that is not PLAIN."""
    return min(n % 50, PLAIN)


def _message(reply: bool) -> bytes:
    return build.header(0, 0x8180 if reply else 0x0100, (1, int(reply), 0, 0)) + build.question(
        build.labels("n" + "0" * 9, "soak", "example"), 16) + (ANSWER if reply else b"")


QUERY, REPLY = _message(False), _message(True)
DIGITS = slice(14, 23)          # of the name, in a message


def _template(reply: bool) -> bytes:
    ends = ("10.0.0.0", 0, SERVER, 53)
    src, sport, dst, dport = ends if not reply else ends[2:] + ends[:2]
    frame = bytearray(build.frame(build.udp(src, sport, dst, dport, REPLY if reply else QUERY)))
    frame[40:42] = b"\0\0"      # without a checksum
    return bytes(frame)


ASKED, ANSWERED = _template(False), _template(True)


def message(n: int, *, reply: bool) -> bytes:
    wire = bytearray(REPLY if reply else QUERY)
    wire[:2] = struct.pack("!H", n & 0xFFFF)
    wire[DIGITS] = b"%09d" % n
    return bytes(wire)


def endpoint(n: int) -> tuple[str, int]:
    return f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}", 1024 + n % 60000


def _udp(n: int, *, reply: bool) -> bytes:
    frame = bytearray(ANSWERED if reply else ASKED)
    at = 30 if reply else 26    # the client's address
    frame[at : at + 4] = struct.pack("!I", 10 << 24 | n & 0xFFFFFF)
    at = 36 if reply else 34
    frame[at : at + 2] = struct.pack("!H", 1024 + n % 60000)
    frame[42:44] = struct.pack("!H", n & 0xFFFF)
    frame[56:65] = b"%09d" % n
    return bytes(frame)


def _tcp(n: int) -> list[bytes]:
    client, port = endpoint(n)
    there, back = (client, port, SERVER, 53), (SERVER, 53, client, port)
    query, reply = (struct.pack("!H", len(m)) + m
                    for m in (message(n, reply=False), message(n, reply=True)))
    a, b = 1 + len(query), 1 + len(reply)
    return [build.frame(p) for p in (
        build.tcp(*there, seq=0, flags=0x02), build.tcp(*back, seq=0, ack=1, flags=0x12),
        build.tcp(*there, query, seq=1, ack=1), build.tcp(*back, reply, seq=1, ack=a),
        build.tcp(*there, seq=a, ack=b, flags=0x11), build.tcp(*back, seq=b, ack=a + 1, flags=0x11),
    )]


def _fragments(n: int) -> list[bytes]:
    client, port = endpoint(n)
    whole = build.datagram(SERVER, 53, client, port, message(n, reply=True))
    return [_udp(n, reply=False), *(
        build.frame(build.ipv4(SERVER, client, 17, whole[at : at + 160], ident=n & 0xFFFF,
                               offset=at, more=at + 160 < len(whole)))
        for at in range(0, len(whole), 160))]


def exchange(n: int) -> list[bytes]:
    """Its frames."""
    what = kind(n)
    if what == TCP:
        return _tcp(n)
    if what == FRAGMENTS:
        return _fragments(n)
    query, reply = _udp(n, reply=False), _udp(n, reply=True)
    return {UNANSWERED: [query], UNASKED: [reply], REPEATED: [query, query, reply],
            PLAIN: [query, reply]}[what]


class Load(threading.Thread):
    """Sends until it is told to end.  `rate`: exchanges a second; each few seconds it is drawn anew
    between nothing and three times that.  `sent`: frames; `number`: the next exchange's."""

    def __init__(self, lab: Lab, rate: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.sent = 0
        self.number = 0
        self.calm = False           # at a steady low rate
        self.pause = False
        self._rate = rate
        self._random = random.Random(seed)
        self._lab = lab
        self._more = 0
        self._over = threading.Event()
        self._socket: socket.socket | None = None

    def burst(self, exchanges: int) -> None:
        """Send so many as fast as it goes."""
        self._more += exchanges

    def end(self) -> None:
        self._over.set()
        self.join()
        self._close()

    def run(self) -> None:
        drawn, until, owed, last = 0.0, 0.0, 0.0, time.monotonic()
        while not self._over.wait(TICK):
            now = time.monotonic()
            if now >= until:
                drawn = self._rate * self._random.choice((0, 0.02, 0.3, 1, 1, 3))
                until = now + self._random.uniform(3, 12)
            rate = 0.0 if self.pause else min(200, self._rate) if self.calm else drawn
            owed = min(owed + rate * (now - last), MOST)    # who was held up does not catch up
            last = now
            more = min(self._more, MOST)
            self._more -= more
            count, owed = int(owed) + more, owed % 1
            for _ in range(count):
                self._send(exchange(self.number))

    def _send(self, frames: list[bytes]) -> None:
        """If there is no cable, they are lost, and were not sent."""
        try:
            if self._socket is None:
                self._socket = self._lab.inside(self._opened, FAR)
            self.number += 1        # a name is never sent again, whatever comes of it
            for frame in frames:
                self._socket.send(frame)
                self.sent += 1
        except BlockingIOError:
            pass
        except OSError:
            self._close()

    @staticmethod
    def _opened() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)      # gets no copies
        made.bind((ENDS[FAR], 0))
        return made

    def _close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None
