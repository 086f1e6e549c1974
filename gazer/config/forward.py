"""What a fluentd output is told: its servers, how it speaks to them, and its spool.

Frozen and picklable, as all of the configuration.  Secrets stand in fields that no repr shows; they
are read from their files by whoever starts the sensor, so that its user need not be able to.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gazer.config.kinds import GIB, KIB, MIB, MS, SECOND


@dataclass(frozen=True, slots=True)
class Server:
    """address: `host`, `host:port`, `[::1]:24224` or `unix:///path`."""

    address: str
    weight: int = 60            # its share among those that are not on standby
    standby: bool = False       # has work only while none of the others is healthy


@dataclass(frozen=True, slots=True)
class Tls:
    enable: bool = False
    ca_file: str = ""           # empty: the system's authorities
    cert_file: str = ""         # of the client, with key_file
    key_file: str = ""
    verify: bool = True
    server_name: str = ""       # empty: the host in the address


@dataclass(frozen=True, slots=True)
class SpoolSettings:
    path: str = ""              # a folder; empty: no spool
    max_bytes: int = GIB
    drop: str = "oldest"        # or newest
    fsync_ns: int = 500 * MS


@dataclass(frozen=True, slots=True)
class Forward:
    servers: tuple[Server, ...] = ()
    event_time: bool = True
    compress: str = ""          # gzip, zstd, or empty
    shared_key: str = field(default="", repr=False)
    username: str = ""
    password: str = field(default="", repr=False)
    tls: Tls = field(default_factory=Tls)
    chunk_size: int = 256 * KIB
    flush_interval_ns: int = 200 * MS
    window: int = 32            # chunks
    ack_timeout_ns: int = 30 * SECOND
    connect_timeout_ns: int = 5 * SECOND
    expire_ns: int = 0          # 0: never
    queue: int = 16 * MIB
    spool: SpoolSettings = field(default_factory=SpoolSettings)
