"""A receiver of fluentd's forward protocol that believes nothing, and can misbehave.

Every octet a client sends is compared with what the specification says it is to be: a message is
unpacked with msgpack and packed again, and both must be the same.  What does not fit stands in
`problems`, and `close` raises it.  What came stands in `messages`, a chunk as often as it
came, with its entries; `numbers` are the `n` of all records.

`plan` says what becomes of a chunk: it is called with the Message, and gives one of the actions
below.  Run as a program (`python -m tests.receiver -h`), it prints its address, and stands in for a
fluentd that is not at hand: `--show` prints what came, ahead of the acknowledgement.
"""

import argparse
import base64
import contextlib
import gzip
import hashlib
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import msgpack
import zstandard

ACK = "ack"
LOSE = "lose"           # no acknowledgement
TWICE = "twice"
WRONG = "wrong"         # an acknowledgement of another chunk
CLOSE = "close"         # close the connection instead
GARBAGE = "garbage"     # what is no MessagePack, instead


def late(seconds):
    """Acknowledge, but so many seconds later; what comes behind it is not held up."""
    return ("late", seconds)


class Message:
    """One chunk as it came."""

    def __init__(self, tag, entries, option, size, plain, connection):
        self.tag, self.entries, self.option = tag, entries, option
        self.chunk = option.get("chunk")
        self.size = size                # octets of the whole message
        self.plain = plain              # the entries as one string of octets
        self.connection = connection    # number of the connection
        self.acked = False
        self.time = time.monotonic()

    @property
    def numbers(self):
        """Of a sensor's own events: its clients' ports."""
        return [record["n"] if "n" in record else record.get("client_port", 0)
                for _, record in self.entries]

    @property
    def first(self):
        """None: it is empty."""
        return self.numbers[0] if self.entries else None


class Receiver:
    def __init__(
        self, *, unix="", port=0, host="127.0.0.1", shared_key="", users=None, keepalive=True,
        tls=None, plan=None, limit=0, close_above=0, hostname="receiver", proof=None, log=None,
    ):
        self.plan = plan or (lambda message: ACK)
        self.limit = limit                  # larger messages are dropped, as fluentd does
        self.close_above = close_above      # ... end their connection, as fluent-bit does
        self.shared_key, self.users, self.keepalive = shared_key, users, keepalive
        self.hostname = hostname
        self.proof = proof                  # the digest in PONG, instead of the right one
        self.tls = tls
        self.problems = []
        self.messages = []
        self.dropped = []                   # messages beyond a limit
        self.heartbeats = self.connections = 0
        self.pings = []
        self.stalled = threading.Event()    # set: nothing is read
        self._log = log
        self._address = unix or (host, port)
        self._host = host
        self._open = {}
        self._listener = None
        self._lock = threading.Lock()
        self._threads = []
        self._timers = []
        self.listen()

    # --- for tests -----------------------------------------------------------------------------

    @property
    def address(self):
        if isinstance(self._address, str):
            return f"unix://{self._address}"
        return f"[{self._host}]:{self.port}" if ":" in self._host else f"{self._host}:{self.port}"

    @property
    def open(self):
        """How many connections there are, those included that wait to be accepted."""
        with self._lock:
            return len(self._open) + self._waiting()

    def _waiting(self):
        listener = self._listener
        if listener is None or listener.family == socket.AF_UNIX:
            return 0
        # tcp(7), TCP_INFO: of a socket that listens, tcpi_unacked is the length of its queue.
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
        return int.from_bytes(info[24:28], sys.byteorder)

    @property
    def numbers(self):
        return [n for message in self.messages for n in message.numbers]

    @property
    def acked(self):
        return {n for message in self.messages if message.acked for n in message.numbers}

    def listen(self):
        """Take connections (again)."""
        if isinstance(self._address, str):
            self._listener = socket.socket(socket.AF_UNIX)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._address)
        else:
            self._listener = socket.socket(
                socket.AF_INET6 if ":" in self._host else socket.AF_INET)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(self._address)
        self._listener.listen(64)
        self._listener.setblocking(False)
        if not isinstance(self._address, str):
            self.port = self._listener.getsockname()[1]
            self._address = (self._host, self.port)
        thread = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        thread.start()
        self._threads.append(thread)

    def refuse(self):
        """Take no more connections, and end those there are."""
        with self._lock:        # who is accepted by then is among those that are hung up on
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.hang_up()

    def hang_up(self):
        for sock in [*self._open.values()]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.stalled.clear()
        self.refuse()
        for timer in self._timers:
            timer.cancel()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        if self.problems:
            raise AssertionError(self.problems[:5])

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(AssertionError):
                self.close()

    # --- connections ---------------------------------------------------------------------------

    def _accept(self, listener):
        ready = select.poll()
        ready.register(listener, select.POLLIN)
        while True:
            ready.poll(100)     # which would not end for a listener that was closed meanwhile
            with self._lock:
                if self._listener is not listener:
                    return
                try:
                    sock, _ = listener.accept()
                except BlockingIOError:
                    continue
                except OSError:
                    return
                sock.setblocking(True)
                self.connections += 1
                self._open[self.connections] = sock
            thread = threading.Thread(
                target=self._serve, args=(sock, self.connections), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self, sock, number):
        try:
            if self.tls is not None:
                sock.settimeout(10)
                sock = self._open[number] = self.tls.wrap_socket(sock, server_side=True)
            sock.settimeout(None)
            self._talk(sock, number)
        except OSError:
            pass
        except AssertionError as error:
            self.problems.append(str(error))
        except Exception as error:
            self.problems.append(repr(error))
        finally:
            del self._open[number]
            sock.close()

    def _talk(self, sock, number):
        lock = threading.Lock()
        buffer = bytearray()
        nonce, salt = os.urandom(16), os.urandom(16) if self.users else b""
        waiting = bool(self.shared_key or self.users)
        if waiting:
            sock.sendall(msgpack.packb(
                ["HELO", {"nonce": nonce, "auth": salt, "keepalive": self.keepalive}]))
        while True:
            self._stand_still()
            data = self._receive(sock, number)
            self._stand_still()     # what came just when it stalled is not acknowledged either
            if not data:
                return
            buffer += data
            for raw in split(buffer):
                if waiting:
                    waiting = False
                    if not self._shake(sock, raw, nonce, salt):
                        return
                elif raw == b"\xc0":
                    self.heartbeats += 1
                elif not self._chunk(sock, lock, raw, number):
                    return

    def _stand_still(self):
        while self.stalled.is_set():
            time.sleep(0.01)

    @staticmethod
    def _receive(sock, number):
        return sock.recv(1 << 18)

    def _shake(self, sock, raw, nonce, salt):
        """[PING, hostname, salt, digest, user, digest]"""
        ping = msgpack.unpackb(raw)
        assert msgpack.packb(ping) == raw and len(ping) == 6 and ping[0] == "PING", ping
        assert all(isinstance(item, str) for item in ping), ping
        self.pings.append(ping)
        _, hostname, client_salt, proof, user, secret = ping
        key = self.shared_key.encode()
        why = ""
        if proof != digest(client_salt.encode(), hostname.encode(), nonce, key):
            why = "shared_key mismatch"
        elif self.users and (user not in self.users or secret != digest(
                salt, user.encode(), self.users[user].encode())):
            why = "username/password mismatch"
        if not self.users:
            assert user == secret == ""
        sock.sendall(msgpack.packb(
            ["PONG", False, why, "", ""] if why else
            ["PONG", True, "", self.hostname, self.proof or digest(
                client_salt.encode(), self.hostname.encode(), nonce, key)]))
        return not why

    def _chunk(self, sock, lock, raw, number):
        message = read_message(raw, number)
        if self.close_above and len(raw) > self.close_above:
            self.dropped.append(message)
            return False
        if self.limit and len(raw) > self.limit:
            self.dropped.append(message)
            return True
        self.messages.append(message)
        if self._log is not None:
            os.write(self._log, b"".join(b"%d\n" % n for n in message.numbers))
        action = self.plan(message)
        ack = msgpack.packb({"ack": message.chunk})
        if action == CLOSE:
            return False
        if action == GARBAGE:
            with lock:
                sock.sendall(b"\xc1\xc1\xc1 not MessagePack")
        elif action == WRONG:
            with lock:
                sock.sendall(msgpack.packb({"ack": base64.b64encode(os.urandom(16)).decode()}))
        elif isinstance(action, tuple):
            timer = threading.Timer(action[1], self._ack, (sock, lock, message, ack))
            timer.daemon = True
            timer.start()
            self._timers.append(timer)
        elif action != LOSE:
            self._ack(sock, lock, message, ack * (2 if action == TWICE else 1))
        return True

    @staticmethod
    def _ack(sock, lock, message, ack):
        message.acked = True
        with lock, contextlib.suppress(OSError):
            sock.sendall(ack)


def split(buffer):
    """Take whole messages from the front of the buffer, as octets."""
    unpacker = msgpack.Unpacker(max_buffer_size=1 << 30, max_bin_len=1 << 30)
    unpacker.feed(buffer)
    found, start = [], 0
    while True:
        try:
            unpacker.skip()
        except msgpack.OutOfData:
            break
        found.append(bytes(buffer[start:unpacker.tell()]))
        start = unpacker.tell()
    del buffer[:start]
    return found


def read_message(raw, number=0):
    """One message, held against the specification."""
    tag, packed, option = msgpack.unpackb(raw)
    assert isinstance(tag, str) and isinstance(packed, bytes), raw[:60]
    assert set(option) - {"compressed"} == {"size", "chunk"}, option
    # Each number in its shortest form, entries as bin, nothing behind.
    order = {k: option[k] for k in ("size", "chunk", "compressed") if k in option}
    assert msgpack.packb([tag, packed, order], use_bin_type=True) == raw, raw[:60]
    assert len(base64.b64decode(option["chunk"], validate=True)) == 16, option
    how = option.get("compressed")
    assert how in (None, "gzip", "zstd"), option
    plain = packed
    if how == "gzip":
        assert packed[4:8] == b"\0\0\0\0"       # no time: the same events are the same octets
        plain = gzip.decompress(packed)
    elif how == "zstd":
        plain = zstandard.ZstdDecompressor().decompress(packed)
    unpacker = msgpack.Unpacker()
    unpacker.feed(plain)
    entries = [*unpacker]
    assert unpacker.tell() == len(plain), "half an entry"
    assert option["size"] == len(entries), option
    for entry in entries:
        assert isinstance(entry, list) and len(entry) == 2, entry
        when, record = entry
        assert isinstance(record, dict), entry
        if isinstance(when, msgpack.ExtType):
            assert when.code == 0 and len(when.data) == 8, entry
            assert int.from_bytes(when.data[4:], "big") < 10**9, entry
        else:
            assert isinstance(when, int), entry
    return Message(tag, entries, option, len(raw), plain, number)


def digest(*parts):
    return hashlib.sha512(b"".join(parts)).hexdigest()


# --- certificates --------------------------------------------------------------------------------


class Certificates:
    """An authority, a server (localhost, 127.0.0.1, ::1) and a client, made by openssl."""

    def __init__(self, folder):
        self.folder = folder
        self._make("ca", "/CN=an authority", ca=True)
        self._make("server", "/CN=localhost",
                   "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1")
        self._make("client", "/CN=a sensor", "extendedKeyUsage=clientAuth")
        self._make("other", "/CN=another authority", ca=True)

    def __getattr__(self, name):
        """ca_cert, server_key and the like: paths."""
        who, _, what = name.rpartition("_")
        return str(self.folder / f"{who}.{ {'cert': 'pem', 'key': 'key'}[what]}")

    def _make(self, who, subject, extension="", *, ca=False):
        command = [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-days", "2", "-subj", subject, "-keyout", str(self.folder / f"{who}.key"),
            "-out", str(self.folder / f"{who}.pem"),
        ]
        if not ca:
            command += ["-CA", str(self.folder / "ca.pem"), "-CAkey", str(self.folder / "ca.key"),
                        "-addext", extension, "-addext", "basicConstraints=CA:FALSE"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def context(self, *, clients=False):
        """What a server of these has; `clients`: who connects must show a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server_cert, self.server_key)
        if clients:
            context.load_verify_locations(self.ca_cert)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


# --- as a program --------------------------------------------------------------------------------


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m tests.receiver",
        description="Take what is sent by fluentd's Forward protocol, check it octet by octet and "
        "acknowledge it, until Ctrl-C or SIGTERM. The address is the first line on standard "
        "output. What was against the protocol is told at the end, with exit code 1.")
    add = parser.add_argument
    add("--port", type=int, default=0, help="of 127.0.0.1; without it one that is free")
    add("--unix", metavar="PATH", default="", help="a unix socket instead")
    add("--show", action="store_true",
        help="print each event as a line: tag, seconds and record as JSON, with tabs between them")
    add("--log", metavar="FILE", default="",
        help="append the number of each record to FILE: its `n`, or else its client_port")
    add("--shared-key", metavar="KEY", default="")
    add("--user", metavar="NAME:PASSWORD", help="whom to let in; the key may be empty")
    add("--tls", nargs=2, metavar=("CERT", "KEY"), help="speak TLS with these files")
    add("--limit", type=int, metavar="OCTETS", default=0,
        help="drop larger messages without a word, as fluentd's chunk_size_limit does")
    add("--late", type=float, metavar="SECONDS", default=0.0,
        help="acknowledge each message so much later")
    args = parser.parse_args(arguments)
    if args.user and ":" not in args.user:
        parser.error("--user is NAME:PASSWORD")
    ended = os.eventfd(0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.eventfd_write(ended, 1))

    def plan(message):
        if args.show:
            show(message)
        return late(args.late) if args.late else ACK

    tls = None
    try:
        log = (os.open(args.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640) if args.log
               else None)
        if args.tls:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(*args.tls)
        receiver = Receiver(
            port=args.port, unix=args.unix, shared_key=args.shared_key, limit=args.limit, log=log,
            users=dict([args.user.split(":", 1)]) if args.user else None, tls=tls, plan=plan,
        )
    except (OSError, OverflowError) as error:
        parser.error(str(error))
    print(receiver.address, flush=True)
    select.select([ended], [], [])
    try:
        receiver.close()
    except AssertionError:
        for problem in receiver.problems:
            print(f"not as the protocol says: {problem}", file=sys.stderr)
        return 1
    return 0


def show(message):
    """In one write, since each connection has a thread."""
    lines = []
    for when, record in message.entries:
        seconds = (f"{int.from_bytes(when.data[:4], 'big')}."
                   f"{int.from_bytes(when.data[4:], 'big'):09}"
                   if isinstance(when, msgpack.ExtType) else when)
        lines.append(f"{message.tag}\t{seconds}\t{json.dumps(record, default=repr)}\n")
    sys.stdout.write("".join(lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
