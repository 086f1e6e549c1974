"""Fluentd's forward protocol, version 1, as bytes: what a client says, and what it is told.

Nothing here reads or writes; connection.py does.  The specification is the page "Forward Protocol
Specification v1" of fluentd's wiki, and what fluentd's in_forward does where that is silent.

- **Events** go as PackedForward, `[tag, bin, option]`: all of a chunk's entries, encoded by the
  workers already, as one string of octets, plain or compressed as a whole.  `message` puts a few
  octets before and behind them and copies nothing.
- **Acknowledgement**: the option `chunk` asks the server for `{"ack": chunk}` when it has the
  chunk in its own buffer.  An id is 16 octets in base64, as out_forward's; the first six are the
  time in milliseconds, so that a chunk that is found in a spool still knows how old it is; the
  others are random, so that nobody can acknowledge what he has not had.
- **Handshake**: a server with a shared key says HELO first, is sent PING and answers PONG.  Both
  prove that they know the key, by SHA-512 over the other's salt.  A server without one says nothing
  and takes events at once.
- **Heartbeat**: nil, which the specification allows a client to send at any time.

What a server says may be hostile.  `Replies` takes 64 KiB of one reply at most, strings of 4 KiB,
and maps of 16 keys; whatever is beyond that, or is no MessagePack, is a ProtocolError, and ends the
connection.  The limits are far above what any server sends: the largest is PONG with some 200
octets and a reason in words.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
import zlib
from base64 import b64decode, b64encode
from binascii import Error as BadBase64

import msgpack  # type: ignore[import-untyped]

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Buffer = bytes | bytearray | memoryview

HEARTBEAT = b"\xc0"         # nil
LEVEL = {"gzip": 1, "zstd": 1}  # events compress well, and the thread has other work
MOST_REPLY = 64 * 1024
MOST_STRING = 4096
MOST_ITEMS = 16
MOST_REASON = 200           # characters of a server's reason that are shown


class ProtocolError(Exception):
    """The server said what the protocol does not allow."""


class DeniedError(ProtocolError):
    """One of the two does not accept the other's credentials."""


# --- chunks --------------------------------------------------------------------------------------


def chunk_id() -> bytes:
    """A new one, as it stands on the wire."""
    return b64encode((time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10))


def born(chunk: bytes) -> float:
    """When this id was made, in seconds since the epoch; 0.0 for one that is not ours."""
    try:
        raw = b64decode(chunk, validate=True)
    except (BadBase64, ValueError):
        return 0.0
    return int.from_bytes(raw[:6], "big") / 1000 if len(raw) == 16 else 0.0


def message(
    tag: str, payload: Buffer, *, events: int, chunk: bytes, compressed: str = ""
) -> list[Buffer]:
    """A chunk as the buffers of one sendmsg(2); the payload is one of them as it is."""
    size = payload.nbytes if isinstance(payload, memoryview) else len(payload)
    option = b"%c\xa4size%b\xa5chunk%b" % (
        0x83 if compressed else 0x82, _number(events), _string(chunk))
    if compressed:
        option += b"\xaacompressed" + _string(compressed.encode())
    return [b"\x93" + _string(tag.encode()) + _bin_header(size), payload, option]


def _number(n: int) -> bytes:
    if n < 1 << 7:
        return b"%c" % n
    if n < 1 << 8:
        return b"\xcc%c" % n
    return b"\xcd" + n.to_bytes(2, "big") if n < 1 << 16 else b"\xce" + n.to_bytes(4, "big")


def _string(octets: bytes) -> bytes:
    """By hand, as all of a message: a Packer takes a quarter of a megabyte for a few octets."""
    size = len(octets)
    if size < 32:
        return b"%c%b" % (0xA0 | size, octets)
    if size < 1 << 8:
        return b"\xd9%c%b" % (size, octets)
    return b"\xda%b%b" % (size.to_bytes(2, "big"), octets)


def _bin_header(size: int) -> bytes:
    if size < 1 << 8:
        return b"\xc4" + size.to_bytes(1, "big")
    if size < 1 << 16:
        return b"\xc5" + size.to_bytes(2, "big")
    return b"\xc6" + size.to_bytes(4, "big")


def compress(payload: Buffer, how: str) -> bytes:
    """The entries, compressed as the option of this name says.  The GIL is released meanwhile."""
    if how == "gzip":
        squeeze = zlib.compressobj(LEVEL[how], zlib.DEFLATED, 31)   # 31: as gzip, without time
        return squeeze.compress(payload) + squeeze.flush()
    if how == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(level=LEVEL[how]).compress(payload)
    raise ValueError(how)


def decompress(payload: Buffer, how: str) -> bytes:
    """What `compress` was given."""
    if how == "gzip":
        return zlib.decompress(payload, 31)
    if how == "zstd":
        import zstandard

        return zstandard.ZstdDecompressor().decompress(payload)
    return bytes(payload)


def cut(payload: Buffer, entries: int) -> int:
    """Where the entry of this number begins, the first having 0; ValueError where there is none."""
    view = memoryview(payload)
    unpacker = msgpack.Unpacker(max_buffer_size=max(view.nbytes, 1))
    unpacker.feed(view)
    try:
        for _ in range(entries):
            unpacker.skip()
    except (msgpack.OutOfData, msgpack.UnpackException) as error:
        raise ValueError(f"no {entries} entries: {error}") from None
    return int(unpacker.tell())


# --- what a server says --------------------------------------------------------------------------


class Replies:
    """The stream of what a server says, as objects; strings are bytes."""

    def __init__(self) -> None:
        self._unpacker = msgpack.Unpacker(
            raw=True, strict_map_key=True, max_buffer_size=MOST_REPLY, max_str_len=MOST_STRING,
            max_bin_len=MOST_STRING, max_array_len=MOST_ITEMS, max_map_len=MOST_ITEMS,
            max_ext_len=16,
        )

    def feed(self, data: Buffer) -> Iterator[Any]:
        """All that is whole now.  Never more than MOST_REPLY octets at once."""
        try:
            self._unpacker.feed(data)
            yield from self._unpacker
        except (msgpack.UnpackException, ValueError, TypeError, RecursionError) as error:
            # FormatError and StackError are ValueErrors; BufferFull is an UnpackException.
            raise ProtocolError(f"what it says is no MessagePack: {type(error).__name__}") from None


def ack(reply: Any) -> bytes:
    """The chunk that this reply acknowledges."""
    if isinstance(reply, dict):
        chunk = reply.get(b"ack")
        if isinstance(chunk, bytes):
            return chunk
    if isinstance(reply, list) and reply[:1] == [b"HELO"]:
        raise DeniedError("it asks for a shared_key, and none is configured")
    raise ProtocolError(f"not an acknowledgement: {_shown(reply)}")


def stranger(data: bytes) -> str:
    """Words for the first octets of a server that speaks another protocol; "": nothing is known of
    it.  Texts begin so, those of HTTP, SSH and mail for example; an alert of TLS (RFC 8446, 5.1, 6)
    has type 21 and version 3."""
    if data[:2] == b"\x15\x03":
        return "it speaks TLS, and tls.enable is false"
    line = data[:MOST_REASON].partition(b"\n")[0].rstrip(b"\r")
    if len(line) >= 4 and all(32 <= octet < 127 or octet == 9 for octet in line):
        return f'that is no server of the Forward protocol: it says "{_shown(line)}"'
    return ""


# --- handshake -----------------------------------------------------------------------------------


class Helo:
    """nonce, auth: the server's salts for key and password; auth is empty where it asks for no
    user.  keepalive: the connection may be used for more than one chunk."""

    __slots__ = ("auth", "keepalive", "nonce")

    def __init__(self, reply: Any) -> None:
        if not (isinstance(reply, list) and len(reply) == 2 and reply[0] == b"HELO"
                and isinstance(reply[1] or {}, dict)):
            raise ProtocolError(f"not a HELO: {_shown(reply)}")
        options = reply[1] or {}
        self.nonce = options.get(b"nonce", b"")
        self.auth = options.get(b"auth", b"") or b""
        self.keepalive = options.get(b"keepalive", True) is not False
        if not isinstance(self.nonce, bytes) or not isinstance(self.auth, bytes):
            raise ProtocolError(f"not a HELO: {_shown(reply)}")


class Handshake:
    """The client's side: HELO in, PING out, PONG in."""

    def __init__(self, *, shared_key: str, username: str, password: str, hostname: str) -> None:
        self._key = shared_key.encode()
        self._username = username.encode()
        self._password = password.encode()
        self._hostname = hostname
        self._salt = os.urandom(16).hex().encode()
        self._nonce = b""

    def ping(self, helo: Helo) -> bytes:
        if helo.auth and not self._username:
            raise DeniedError("it asks for a user, and no username is configured")
        self._nonce = helo.nonce
        user, proof = "", ""
        if helo.auth:
            user = self._username.decode()
            proof = _digest(helo.auth, self._username, self._password)
        packed: bytes = msgpack.packb([
            "PING", self._hostname, self._salt.decode(),
            _digest(self._salt, self._hostname.encode(), helo.nonce, self._key), user, proof,
        ])
        return packed

    def check(self, reply: Any) -> None:
        """The server's PONG: it has accepted us, and knows the key itself."""
        if not (isinstance(reply, list) and len(reply) == 5 and reply[0] == b"PONG"):
            raise ProtocolError(f"not a PONG: {_shown(reply)}")
        _, accepted, reason, hostname, proof = reply
        if accepted is not True:
            raise DeniedError(f"it does not accept our credentials: {_shown(reason)}")
        if not isinstance(hostname, bytes) or not isinstance(proof, bytes):
            raise ProtocolError(f"not a PONG: {_shown(reply)}")
        expected = _digest(self._salt, hostname, self._nonce, self._key).encode()
        if not hmac.compare_digest(expected, proof):
            raise DeniedError("it does not know the shared_key")


def _digest(*parts: bytes) -> str:
    return hashlib.sha512(b"".join(parts)).hexdigest()


def _shown(value: Any) -> str:
    """Something that a stranger said, short and without control characters."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else ascii(value)
    return "".join(c if c.isprintable() else "?" for c in text[:MOST_REASON])
