"""Sockets, and servers that behave as dice say.

A `Wire` is what the sensor's Connection has for a socket.  A `Host` reads what comes from it and
holds it against the specification, as tests/receiver.py does; what it then does its `Mood` says.
"""

import base64
import errno
import itertools
import os
import socket
from dataclasses import dataclass, field

import msgpack

from tests.receiver import digest, read_message, split

KEY = "a key"
BASE = 24000            # port of the first host


@dataclass
class Mood:
    """How a host behaves.  actions: what becomes of a chunk of events, by weight; reach: up, refuse
    or hang; frozen: it accepts connections and reads nothing; full: it closes the connection over
    any events and acknowledges empty chunks, as a fluentd whose buffer is full; limit: messages
    beyond it get no acknowledgement; close_above: ... they end the connection; deny: it does not
    like our credentials; late: seconds at most; slow: octets that it takes at once at most."""

    actions: dict = field(default_factory=lambda: {"ack": 1})
    reach: str = "up"
    frozen: bool = False
    full: bool = False
    limit: int = 0
    close_above: int = 0
    deny: bool = False
    empties: bool = True
    late: float = 0.0
    slow: int = 0


class Wire:
    """One connection, both ways."""

    numbers = itertools.count(100_000)

    def __init__(self, net):
        self._net = net
        self._fd = next(self.numbers)
        self.host = None
        self.state = "new"          # connecting, open
        self.failed = 0             # SO_ERROR
        self.out = bytearray()      # given to the kernel, and not read by the host
        self.inn = bytearray()      # ... the other way
        self.ended = ""             # by the host: fin or rst
        self.closed = False         # by the sensor
        self.buffer = bytearray()   # of the host: half a message
        self.shakes = None          # ... the handshake that it waits for
        self.reading = False

    # --- what Connection uses ------------------------------------------------------------------

    def fileno(self):
        return self._fd

    def setblocking(self, _):
        pass

    def setsockopt(self, *_):
        pass

    def shutdown(self, _=None):
        pass

    def getsockopt(self, *_):
        failed, self.failed = self.failed, 0
        return failed

    def getpeername(self):
        if self.state != "open":
            raise OSError(errno.ENOTCONN, "not yet")

    def connect_ex(self, address):
        self._net.moves += 1
        self.host = self._net.hosts[address[1] - BASE]
        self.state = "connecting"
        if self.host.mood.reach == "refuse":
            if self._net.dice.random() < 0.5:
                return errno.ECONNREFUSED
            self._net.later(self._refuse)
        elif self.host.mood.reach == "up":
            if self._net.dice.random() < 0.3:
                self._open()
                return 0
            self._net.later(self._open)
        return errno.EINPROGRESS

    def sendmsg(self, buffers):
        if self.ended:
            self._net.moves += 1
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        room = self._net.room - len(self.out)
        if room <= 0:
            raise BlockingIOError
        data = b"".join(buffers)
        if self._net.dice.random() < 0.2:
            room = self._net.dice.randint(1, room)
        self.out += data[:room]
        self._net.moves += 1
        self.host.stir(self)
        return min(room, len(data))

    def recv(self, size):
        if self.inn:
            self._net.moves += 1
            if self._net.dice.random() < 0.1:
                size = self._net.dice.randint(1, 60)
            data = bytes(self.inn[:size])
            del self.inn[:size]
            return data
        if self.ended:
            self._net.moves += 1
            if self.ended == "rst":
                raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
            return b""
        raise BlockingIOError

    def close(self):
        self._net.moves += 1
        self.closed = True
        if self.host is not None:
            self.host.wires.discard(self)
            if self.state == "open" and self._net.dice.random() < 0.7:
                self.host.wires.add(self)   # what was sent arrives
                self.host.stir(self)

    # --- what poll(2) sees ---------------------------------------------------------------------

    def ready(self, mask, readable, writable):
        if self.state == "connecting":
            return bool(self.failed)
        return bool((mask & readable and (self.inn or self.ended))
                    or (mask & writable and (len(self.out) < self._net.room or self.ended))
                    or self.ended == "rst")

    # --- for the host --------------------------------------------------------------------------

    def _refuse(self):
        self.failed = errno.ECONNREFUSED

    def _open(self):
        if not self.closed and self.state == "connecting":
            self.state = "open"
            self.host.accept(self)

    def say(self, data):
        if not self.closed and not self.ended:
            self.inn += data


class Net:
    """Stands where connection.py has `socket`."""

    def __init__(self, clock, dice, count, *, key, keepalive, room):
        self.clock, self.dice, self.room = clock, dice, room
        self.key, self.keepalive = key, keepalive
        self.moves = 0
        self.acked = set()          # numbers of events
        self.straight = set()       # ids of chunks that were last sent without the spool
        self.hosts = [Host(self) for _ in range(count)]

    def __getattr__(self, name):
        return getattr(socket, name)

    def socket(self, *_):
        return Wire(self)

    def later(self, what, *args, most=0.02):
        self.clock.at(self.dice.uniform(0.0001, most), what, *args)


class Host:
    def __init__(self, net):
        self._net = net
        self.mood = Mood()
        self.wires = set()
        self.messages = []          # all that came, in order

    def set(self, mood):
        self.mood = mood
        if mood.reach != "up":
            for wire in sorted(self.wires, key=Wire.fileno):
                self.end(wire)
        for wire in sorted(self.wires, key=Wire.fileno):
            self.stir(wire)

    def accept(self, wire):
        self.wires.add(wire)
        if self._net.key:
            wire.shakes = os.urandom(16)
            self._net.later(wire.say, msgpack.packb(
                ["HELO", {"nonce": wire.shakes, "auth": b"", "keepalive": self._net.keepalive}]))

    def end(self, wire):
        wire.ended = wire.ended or self._net.dice.choice(["fin", "rst"])
        self.wires.discard(wire)

    def stir(self, wire):
        """It will read what is there."""
        if not wire.reading:
            wire.reading = True
            self._net.later(self._read, wire)

    def _read(self, wire):
        wire.reading = False
        if self.mood.frozen or wire not in self.wires or not wire.out:
            return
        size = self.mood.slow or len(wire.out)
        wire.buffer += wire.out[:size]
        del wire.out[:size]
        for raw in split(wire.buffer):
            if wire.shakes is not None:
                self._shake(wire, raw)
            elif raw != b"\xc0" and wire in self.wires:
                self._take(wire, raw)
        if wire.out:
            self.stir(wire)

    def _shake(self, wire, raw):
        _, hostname, salt, proof, _, _ = msgpack.unpackb(raw)
        assert proof == digest(salt.encode(), hostname.encode(), wire.shakes, KEY.encode())
        pong = ["PONG", True, "", "host", digest(
            salt.encode(), b"host", wire.shakes, KEY.encode())]
        wire.shakes = None
        if self.mood.deny:
            pong = ["PONG", False, "no", "", ""]
            self._net.later(self.end, wire, most=0.05)
        self._net.later(wire.say, msgpack.packb(pong))

    def _take(self, wire, raw):
        mood = self.mood
        message = read_message(raw)
        if mood.limit and len(raw) > mood.limit:
            return
        if (mood.close_above and len(raw) > mood.close_above) or (mood.full and message.entries):
            self.end(wire)
            return
        action = self._net.dice.choices([*mood.actions], [*mood.actions.values()])[0]
        if not message.entries:
            if not mood.empties:
                return
            action = action if action in ("close", "late") else "ack"
        message.straight = message.chunk.encode() in self._net.straight
        self.messages.append(message)
        ack = msgpack.packb({"ack": message.chunk})
        if action == "close":
            self.end(wire)
        elif action == "garbage":
            wire.say(b"\xc1\xc1 no MessagePack")
        elif action == "wrong":
            wire.say(msgpack.packb({"ack": base64.b64encode(os.urandom(16)).decode()}))
        elif action != "lose":
            self._net.acked.update(message.numbers)
            if action == "late":
                self._net.later(wire.say, ack, most=mood.late)
            else:
                wire.say(ack * (2 if action == "twice" else 1))
            if action == "ack and close":
                self.end(wire)
