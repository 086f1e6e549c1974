"""What a fluentd output is told: its servers, how it speaks to them, and its spool.

Frozen and picklable, as all of the configuration.  Secrets stand in fields that no repr shows; they
are read from their files by whoever starts the sensor, so that its user need not be able to.
"""

# ruff: noqa: RUF009  (key() and section() are dataclasses.field under names of our own)

from __future__ import annotations

from dataclasses import dataclass, field

from gazer.config.keys import Key, key, section
from gazer.config.kinds import (
    GIB,
    HOUR,
    KIB,
    MAX_PATH,
    MIB,
    MINUTE,
    MS,
    SECOND,
    TIB,
    Address,
    Choice,
    Duration,
    Flag,
    Secret,
    Size,
    Text,
    Whole,
)

MAX_SERVERS = 16
MAX_SECRET = 1024       # octets


@dataclass(frozen=True, slots=True)
class Server:
    """address: `host`, `host:port`, `[::1]:24224` or `unix:///path`."""

    address: str
    weight: int = key(
        "weight", 60, Whole(0, 1000),
        "Its share among the servers that are not on standby.",
    )  # fmt: skip
    standby: bool = key(
        "standby", False, Flag(),
        "Whether it has work only while none of the others can take any.",
    )  # fmt: skip


SERVER_ADDRESS = Key(
    "address", Address(),
    "Where it is: `host:port`, `[::1]:24224`, `unix:///path`; without a port it is 24224. "
    "Required. An item of `servers` may be this address alone.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tls:
    enable: bool = key("enable", False, Flag(), "Whether TLS is spoken with the servers.")
    ca_file: str = key(
        "ca_file", "", Text(MAX_PATH, "path", "empty: the system's", empty=True),
        "Certificates of the authorities that the servers' are to be signed by.",
    )  # fmt: skip
    cert_file: str = key(
        "cert_file", "", Text(MAX_PATH, "path", "empty: none", empty=True),
        "This sensor's own certificate, for servers that ask for one.",
    )  # fmt: skip
    key_file: str = key(
        "key_file", "", Text(MAX_PATH, "path", "empty: none", empty=True), "... and its key."
    )
    verify: bool = key(
        "verify", True, Flag(),
        "Whether a server must prove who it is. Without it, whoever stands in between can read "
        "everything.",
    )  # fmt: skip
    server_name: str = key(
        "server_name", "", Text(253, empty=True),
        "The name in the servers' certificates; empty: the host of each address.",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class SpoolSettings:
    path: str = key(
        "path", "", Text(MAX_PATH, "path", "empty: no spool", empty=True),
        "Live: the folder where events wait on disk while no server takes them; made if it is not "
        "there. It belongs to one output of one sensor. Without it they wait in memory (`queue`), "
        "and what is beyond is dropped and counted.",
    )  # fmt: skip
    max_bytes: int = key(
        "max_bytes", GIB, Size(16 * MIB, TIB), "What the spool may take on disk, all in all."
    )
    drop: str = key(
        "drop", "oldest", Choice("oldest", "newest"),
        "What is given up, and counted, when it is full.",
    )  # fmt: skip
    fsync_ns: int = key(
        "fsync", 500 * MS, Duration(10 * MS, MINUTE),
        "How often what was written is forced to the disk: a machine that loses power loses what "
        "is newer. A process that dies loses nothing.",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Forward:
    """secrets: (key, file) of each secret that the configuration gave, so that a file that is open
    to everybody can be told."""

    servers: tuple[Server, ...] = ()
    event_time: bool = True
    secrets: tuple[tuple[str, str], ...] = field(default=(), compare=False, repr=False)
    compress: str = key(
        "compress", "", Choice("none", "gzip", "zstd", none="none"),
        "Whether chunks are compressed on their way, and in the spool. zstd needs a fluentd that "
        "knows it.",
    )  # fmt: skip
    shared_key: str = key(
        "shared_key", "", Secret(MAX_SECRET),
        "The servers' `shared_key`; empty: they ask for none, or with a `username` for an empty "
        "one.", secret=True,
    )  # fmt: skip
    username: str = key(
        "username", "", Text(255, empty=True),
        "The user that the servers know, with its password.",
    )  # fmt: skip
    password: str = key("password", "", Secret(MAX_SECRET), "... this one.", secret=True)
    tls: Tls = section(Tls, "TLS.")
    chunk_size: int = key(
        "chunk_size", MIB, Size(16 * KIB, 8 * MIB),
        "How much is sent at once and acknowledged as one: at most this, or one event if that is "
        "larger. fluentd drops chunks above its `chunk_size_limit`.",
    )  # fmt: skip
    flush_interval_ns: int = key(
        "flush_interval", 200 * MS, Duration(MS, MINUTE),
        "How long an event waits for others before it is sent.",
    )  # fmt: skip
    window: int = key(
        "window", 16, Whole(1, 1024),
        "How many chunks may be under way and not acknowledged; a sink that is killed sends at "
        "most these again. A distant server needs as many as fit into one round trip.",
    )  # fmt: skip
    ack_timeout_ns: int = key(
        "ack_timeout", 30 * SECOND, Duration(SECOND, HOUR),
        "How long a server may take to acknowledge a chunk; then the chunk goes to another one, "
        "or again to this one.",
    )  # fmt: skip
    connect_timeout_ns: int = key(
        "connect_timeout", 5 * SECOND, Duration(100 * MS, MINUTE),
        "How long a server may take to accept a connection and to agree on who we are.",
    )  # fmt: skip
    expire_ns: int = key(
        "expire", 0, Duration(0, 24 * 365 * HOUR),
        "The age at which an event that could not be delivered is given up, and counted; 0: never.",
    )  # fmt: skip
    queue: int = key(
        "queue", 16 * MIB, Size(MIB, GIB),
        "How much may wait in memory for this output, beside what is under way. Live, what is "
        "beyond is dropped for this output alone, and counted; a run over files waits.",
    )  # fmt: skip
    spool: SpoolSettings = section(SpoolSettings, "Where events wait on disk.")


FORWARD_SERVERS = (
    f"Where to: 1 to {MAX_SERVERS} servers that speak fluentd's Forward protocol, each an address "
    "or a mapping. Required."
)
# The secrets may stand in files of their own: key in the file -> (attribute, key).
SECRET_FILES: dict[str, tuple[str, Key]] = {
    f"{name}_file": (name, Key(
        f"{name}_file", Text(MAX_PATH, "path"),
        f"The file whose first line is `{name}`, read by whoever starts the sensor.",
    ))
    for name in ("shared_key", "password")
}  # fmt: skip
