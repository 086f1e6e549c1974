"""Receivers in a bad way: slow ones, ones that close in the middle of a chunk, one that is a
process and can be frozen while the kernel still takes what comes."""

from __future__ import annotations

import random
import signal
import socket
import time

from tests.receiver import Receiver
from tests.test_fluentd import Process


class Slow(Receiver):
    """Reads `pace` octets a second, out of a small buffer, until it is told to be quick."""

    def __init__(self, *, pace, **how):
        self.pace = pace
        super().__init__(**how)

    def listen(self):
        super().listen()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)    # inherited

    def _receive(self, sock, number):
        if not self.pace:
            return super()._receive(sock, number)
        data = sock.recv(1024)
        time.sleep(len(data) / self.pace)
        return data


class Cutting(Receiver):
    """Closes each connection after so many octets, wherever in a chunk that is, until it is told to
    be well."""

    def __init__(self, *, least, most, seed=1, **how):
        self.well = False
        self._dice = random.Random(seed)
        self._range = least, most
        self._left = {}
        self.cut = 0
        super().__init__(**how)

    def _receive(self, sock, number):
        left = self._left.setdefault(number, self._dice.randint(*self._range))
        data = sock.recv(1 << 18 if self.well else min(left, 700))
        if not self.well:
            self._left[number] = left - len(data)
            if self._left[number] <= 0:
                self.cut += 1
                return b""
        return data


class Apart(Process):
    """A receiver that is a process; what it has read stands in its log, ahead of the ack."""

    messages = ()
    open = 0

    @property
    def acked(self):
        return self.numbers

    def freeze(self):
        self.kill(signal.SIGSTOP)

    def thaw(self):
        self.kill(signal.SIGCONT)
