"""The whole configuration: every key with its kind, default, bounds and reason, in one place.

`load` reads a file into a `Config`, a tree of frozen dataclasses that the supervisor sends
to its children. configs/sensor.yaml and docs/configuration.md are made from the same fields
(`python -m gazer.docgen`); a test holds that they are current.

Six modules: this one has the structures, `forward` those of fluentd, `keys` what a key is, `rules`
what must hold between keys, `kinds` what one value can be, `reader` YAML. Every child process
imports this module, so it imports neither YAML nor anything else that takes time; `reader` is
imported by `load` alone.

Rules
- A key exists only where something obeys it.
- A value that one key allows can still be wrong beside another key's: `rules` knows these rules
  and nothing else does. Whoever changes a Config (a command line does) calls `checked`.
- All errors are ConfigError. Its text is one line for each error.
"""

# ruff: noqa: RUF009  (key() and section() are dataclasses.field under names of our own)

from __future__ import annotations

import enum
import os
from dataclasses import dataclass, field

from gazer.config.forward import Forward as Forward
from gazer.config.forward import Server as Server
from gazer.config.forward import SpoolSettings as SpoolSettings
from gazer.config.forward import Tls as Tls
from gazer.config.keys import Key as Key
from gazer.config.keys import key, section, sections_of
from gazer.config.keys import keys_of as keys_of
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
    Choice,
    Duration,
    Flag,
    Listing,
    Member,
    Mode,
    Path,
    Size,
    Text,
    Whole,
    WholeOrAuto,
)
from gazer.errors import ConfigError

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MAX_WORKERS = 64
MAX_CAPTURES = 16     # capture processes, all interfaces together

# The same names in the same order as gazer.packet's; written out, since a child that knows the
# configuration need not know packets.
ENCAPSULATIONS = ("mpls", "pppoe", "gre", "erspan", "vxlan", "geneve", "ip")
MDNS_PORT = 5353
LLMNR_PORT = 5355

# What a ring needs beside the payload of its largest entry: room for the entry's header and its
# alignment. The ring's own code accounts for each byte; these are the round figures above it.
FRAME_OVERHEAD = 256
EVENT_OVERHEAD = 256
# The same for each of the encoded forms that one event entry holds: tag, time and lengths.
FORM_OVERHEAD = 512

# The length field of DNS over TCP has 16 bits (RFC 1035, 4.2.2): no message is larger.
MAX_MESSAGE = 64 * KIB


class Detail(enum.IntEnum):
    """How much an event tells."""

    CLASSIC = 0  # the original dns-gazer's fields, no more
    FULL = 1  # all that is known


class OutputKind(enum.IntEnum):
    """The forms in which an event can be encoded; workers encode once for each form in use."""

    TEXT = 0  # time TAB tag TAB {JSON}
    JSON = 1  # one JSON object a line
    MSGPACK = 2  # [tag, seconds, record]
    MSGPACK_EVENT_TIME = 3  # [tag, EventTime, record]


@dataclass(frozen=True, slots=True)
class Sensor:
    id: str = key(
        "id", "sensor-1", Text(255),
        "The name of this sensor: the field `sensor` of each event in full detail.",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Capture:
    files: tuple[str, ...] = key(
        "files", (), Listing(Path("standard input"), 0, 4096, "paths"),
        "Capture files, read in this order as one stream of time; `-r` takes their place.",
    )  # fmt: skip
    interfaces: tuple[str, ...] = key(
        "interfaces", (), Listing(Text(15), 0, MAX_CAPTURES, "names"),
        "Network interfaces to watch, or `any` for all; `-i` takes their place. One that is not "
        "there or down is waited for. Files and interfaces can't be read in one run.",
    )  # fmt: skip
    processes: int = key(
        "processes", 1, Whole(1, MAX_CAPTURES),
        "Live: capture processes for each interface. The kernel shares out the packets among them "
        "by their outer addresses. One is enough until it takes a whole core; each further one "
        "costs a ring for every worker.",
    )  # fmt: skip
    buffer: int = key(
        "buffer", 64 * MIB, Size(MIB, GIB),
        "Live: the kernel's buffer of each capture process. It bridges the time in which capture "
        "does not run; what does not fit is dropped and counted.",
    )  # fmt: skip
    promiscuous: bool = key(
        "promiscuous", True, Flag(),
        "Live: whether the interface is to hand over packets for other hosts too, as it must on a "
        "mirror port.",
    )  # fmt: skip
    ports: tuple[int, ...] = key(
        "ports", (53,), Listing(Whole(1, 65535), 1, 64, "port numbers"),
        "A frame is taken for DNS when one of its ports is one of these.",
    )  # fmt: skip
    filter: str = key(
        "filter", "", Text(4096, empty=True),
        "A filter expression of libpcap (pcap-filter(7)) that a frame must pass to be looked at; "
        "empty: all pass. It sees a frame as it is on the wire, so it tells of the outermost "
        "addresses and ports; and only the first piece of an IP datagram in fragments has ports, "
        "so a filter of ports leaves the other pieces out.",
    )  # fmt: skip
    mdns: bool = key(
        "mdns", False, Flag(),
        "Whether multicast DNS (RFC 6762, port 5353) is read too; its events have the tags "
        "dns-gazer.mdns.tx and dns-gazer.mdns.record.",
    )  # fmt: skip
    llmnr: bool = key(
        "llmnr", False, Flag(),
        "Whether LLMNR (RFC 4795, port 5355) is read too; its events have the tags "
        "dns-gazer.llmnr.tx and dns-gazer.llmnr.record.",
    )  # fmt: skip
    snaplen: int = key(
        "snaplen", 256 * KIB, Size(64, 256 * KIB),
        "The longest frame that is kept whole; a longer one is cut to this length and counted. "
        "The upper bound is libpcap's own.",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tunnels:
    decode: tuple[str, ...] = key(
        "decode", ENCAPSULATIONS, Listing(Choice(*ENCAPSULATIONS), 0, 7, "encapsulations"),
        "Which encapsulations are opened. What stands inside is read as if it had been on the "
        "wire: its addresses are the transaction's. VLAN tags are always read.",
    )  # fmt: skip
    max_depth: int = key(
        "max_depth", 4, Whole(1, 8),
        "How many levels of encapsulation are opened, one in the other; a frame with more is "
        "counted and not read. Real networks have one or two.",
    )  # fmt: skip
    vxlan_ports: tuple[int, ...] = key(
        "vxlan_ports", (4789,), Listing(Whole(1, 65535), 0, 16, "port numbers"),
        "UDP ports to which VXLAN is sent; older Linux hosts use 8472.",
    )  # fmt: skip
    geneve_ports: tuple[int, ...] = key(
        "geneve_ports", (6081,), Listing(Whole(1, 65535), 0, 16, "port numbers"),
        "UDP ports to which Geneve is sent.",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fragments:
    max_datagrams: int = key(
        "max_datagrams", 4096, Whole(1, 1_000_000),
        "How many IP datagrams may wait for the rest of their pieces; at the limit the one longest "
        "without a new piece leaves and is counted.",
    )  # fmt: skip
    max_bytes: int = key(
        "max_bytes", 16 * MIB, Size(512 * KIB, GIB),
        "How much memory they may take, one that is put together included; the same happens at "
        "this limit. The least holds one datagram of any size.",
    )  # fmt: skip
    timeout_ns: int = key(
        "timeout", 30 * SECOND, Duration(MS, HOUR),
        "How long a datagram waits for the rest of its pieces, on the sensor clock. Hosts wait 30 "
        "to 60 s.",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Streams:
    max_streams: int = key(
        "max_streams", 65536, Whole(64, 10_000_000),
        "How many TCP connections are followed at once, all workers together; at the limit the one "
        "longest without a segment leaves and is counted.",
    )  # fmt: skip
    max_bytes_each: int = key(
        "max_bytes_each", 256 * KIB, Size(128 * KIB, 16 * MIB),
        "How much may be kept of one connection: an unfinished message takes up to 64 KiB, the "
        "rest is for segments that came before one that is missing. At the limit the missing one "
        "is given up.",
    )  # fmt: skip
    max_bytes: int = key(
        "max_bytes", 128 * MIB, Size(MIB, TIB),
        "How much may be kept of all connections, all workers together, a quarter of it for zone "
        "transfers; at the limit the connection longest without a segment leaves, or the transfer "
        "longest without a message ends.",
    )  # fmt: skip
    max_transfers: int = key(
        "max_transfers", 1024, Whole(1, 100_000),
        "How many zone transfers may be under way at once, all workers together; at the limit the "
        "one longest without a message ends, with `complete: false`.",
    )  # fmt: skip
    timeout_ns: int = key(
        "timeout", 5 * MINUTE, Duration(MS, 24 * HOUR),
        "How long a connection without a segment is remembered, on the sensor clock; not below "
        "transactions.timeout.",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ring:
    size: int = key(
        "size", 8 * MIB, Size(64 * KIB, GIB, power=True),
        "Shared memory of each ring; every worker has two, one for frames and one for events. "
        "A quarter of a ring must hold the largest frame, and the largest event once in each form "
        "in use (text, JSON, msgpack, msgpack with event_time); the default does for all four.",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Transactions:
    timeout_ns: int = key(
        "timeout", 60 * SECOND, Duration(MS, HOUR),
        "How long a query waits for its reply, on the sensor clock, before it is `no_reply`.",
    )  # fmt: skip
    duplicate_window_ns: int = key(
        "duplicate_window", 5 * SECOND, Duration(0, HOUR),
        "For this long a second reply to an answered query counts as a duplicate (mirror ports "
        "show frames twice); later it is `no_query`.",
    )  # fmt: skip
    max_pending: int = key(
        "max_pending", 1_000_000, Whole(1, 100_000_000),
        "How many queries may wait at once, all workers together; at the limit the oldest "
        "leaves as `no_reply` and is counted.",
    )  # fmt: skip
    max_pending_bytes: int = key(
        "max_pending_bytes", 256 * MIB, Size(64 * KIB, TIB),
        "How much memory the waiting queries may take, all workers together; the same happens "
        "at this limit.",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Events:
    detail: Detail = key(
        "detail", Detail.FULL, Member(Detail),
        "`full` tells all that is known, `classic` has exactly the original dns-gazer's fields.",
    )  # fmt: skip
    records: bool = key(
        "records", False, Flag(),
        "Whether each record of each message becomes an event too (dns-gazer.dns.record).",
    )  # fmt: skip
    event_id: bool = key(
        "event_id", False, Flag(),
        "Whether each event has a field `event_id`, by which an output that gets it twice can tell "
        "so. It names the run, so that no two runs over a file give the same bytes.",
    )  # fmt: skip
    max_size: int = key(
        "max_size", 256 * KIB, Size(16 * KIB, MIB),
        "The largest event, encoded; records beyond it are left out and counted. 64 KiB of DNS "
        "over TCP can name one long name thousands of times.",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Service:
    user: str = key(
        "user", "", Text(255, empty=True),
        "Live: the user, `name`, `name:group` or `uid:gid`, that all processes but the supervisor "
        "run as when gazer is started by root; empty: nobody changes.",
    )  # fmt: skip
    shutdown_timeout_ns: int = key(
        "shutdown_timeout", 30 * SECOND, Duration(SECOND, HOUR),
        "Live: how long a stop may take to finish what was read; then the rest is given up, and "
        "told.",
    )  # fmt: skip
    hang_timeout_ns: int = key(
        "hang_timeout", 10 * SECOND, Duration(SECOND, HOUR),
        "Live: a process that shows no sign of life for so long is killed and started again.",
    )  # fmt: skip
    stats_interval_ns: int = key(
        "stats_interval", 60 * SECOND, Duration(SECOND, HOUR),
        "Live: how often an event dns-gazer.stats says what was seen and what was lost.",
    )  # fmt: skip
    quarantine: str = key(
        "quarantine", "", Text(MAX_PATH, "path", "empty: not kept", empty=True),
        "Live: the capture file to which a frame is added that has killed a worker twice.",
    )  # fmt: skip
    capture_cpus: tuple[int, ...] = key(
        "capture_cpus", (), Listing(Whole(0, 1023), 0, MAX_CAPTURES, "CPU numbers"),
        "Live: the CPU of each capture process, in their order; the last serves for further ones. "
        "Empty: the kernel decides.",
    )  # fmt: skip
    worker_cpus: tuple[int, ...] = key(
        "worker_cpus", (), Listing(Whole(0, 1023), 0, MAX_WORKERS, "CPU numbers"),
        "Live: the same for the workers.",
    )  # fmt: skip
    sink_cpus: tuple[int, ...] = key(
        "sink_cpus", (), Listing(Whole(0, 1023), 0, 64, "CPU numbers"),
        "Live: the CPUs on which the sink may run.",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Metrics:
    listen: str = key(
        "listen", "127.0.0.1:9853", Text(255, empty=True),
        "Live: the address and port on which the counters are served for Prometheus, at /metrics: "
        "127.0.0.1:9853, [::1]:9853, or 0.0.0.0:9853 for all of this machine's. The port is at "
        "least 1024 (net.ipv4.ip_unprivileged_port_start), as who serves them has no rights. "
        "Empty: they are not.",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rotation:
    """How the files of an output follow one another: the key `rotate` of an output."""

    size: int = key(
        "size", 0, Size(0, TIB, example=256 * MIB),
        "A new file is begun ahead of the events with which this one would be larger; 0: never. "
        "At least 256KiB, which is what is written at once.",
    )  # fmt: skip
    interval_ns: int = key(
        "interval", 0, Duration(0, 366 * 24 * HOUR),
        "A new file is begun at each multiple of this since 1970 by UTC (1h: at each full hour, "
        "24h: at midnight), whole seconds; 0: not because of the time, or with conversions in "
        "`path` whenever these give another name. A file that has nothing in it stays.",
    )  # fmt: skip
    compress: str = key(
        "compress", "none", Choice("none", "gzip", "zstd"),
        "What is done to a file when it is closed, in the background; its name then ends in .gz "
        "or .zst.",
    )  # fmt: skip
    keep_age_ns: int = key(
        "keep_age", 0, Duration(0, 100 * 366 * 24 * HOUR),
        "Closed files of this output are removed when they were last written so long ago; 0: "
        "never.",
    )  # fmt: skip
    keep_bytes: int = key(
        "keep_bytes", 0, Size(0, 1024 * TIB, example=64 * GIB),
        "The oldest closed files of this output are removed while all its files together take more "
        "than this; 0: never.",
    )  # fmt: skip
    mode: int = key(
        "mode", 0o640, Mode(),
        "The mode of new files, whatever the umask. (Without `rotate`: 0640, less what the umask "
        "takes.)",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Output:
    """One destination: in the file, `type` and `format` or `time` together make its kind.

    forward: of a fluentd output, which has no path.
    """

    kind: OutputKind
    path: str
    forward: Forward | None = None
    rotation: Rotation | None = None

    @property
    def name(self) -> str:
        """As the operator knows it."""
        if self.forward is not None:
            first, *more = [server.address for server in self.forward.servers]
            return f"fluentd at {first}" + (f" and {len(more)} more" if more else "")
        return "standard output" if self.path == "-" else self.path


OUTPUT_TYPE = Key("type", Choice("text", "msgpack", "fluentd"), "What is written. Required.")
OUTPUT_PATH = Key(
    "path", Path("standard output"),
    "With type text or msgpack: where to. Required; two outputs cannot share one file. The name of "
    "the file may have conversions of strftime(3), by UTC, as in dns-%Y%m%d-%H.log: then a new "
    "file is begun whenever they give another name. %Y %y %m %d %j %u %G %V %H %M %S are known, "
    "%% is a percent sign.",
)  # fmt: skip
OUTPUT_FORMAT = Key(
    "format", Choice("text", "json"),
    "With type text only: `text` is time, tag and JSON with tabs between them, `json` is one "
    "JSON object a line.",
)  # fmt: skip
OUTPUT_TIME = Key(
    "time", Choice("seconds", "event_time"),
    "With type msgpack only: whole seconds, or Fluentd's EventTime with its nanoseconds.",
)  # fmt: skip
FORWARD_TIME = Key(
    "time", Choice("event_time", "seconds"),
    "EventTime with its nanoseconds, or whole seconds for receivers of the protocol's version 0.",
)  # fmt: skip
# type -> the key that goes with it, and what each of its words makes; the first is the default.
OUTPUT_TYPES: dict[str, tuple[Key, dict[str, OutputKind]]] = {
    "text": (OUTPUT_FORMAT, {"text": OutputKind.TEXT, "json": OutputKind.JSON}),
    "msgpack": (
        OUTPUT_TIME,
        {"seconds": OutputKind.MSGPACK, "event_time": OutputKind.MSGPACK_EVENT_TIME},
    ),
    "fluentd": (
        FORWARD_TIME,
        {"event_time": OutputKind.MSGPACK_EVENT_TIME, "seconds": OutputKind.MSGPACK},
    ),
}
# Files that follow one another: a mapping of the keys of Rotation.
OUTPUT_ROTATE = "rotate"
OUTPUT_ROTATE_WHY = (
    "A new file by size or time; what becomes of closed ones. Without it, and without conversions "
    "in the path, there is one file, for logrotate say."
)
MAX_OUTPUTS = 16


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration; Config() has every default."""

    sensor: Sensor = section(Sensor, "Who is watching.")
    capture: Capture = section(Capture, "Where frames come from and which of them are DNS.")
    tunnels: Tunnels = section(Tunnels, "What is opened to find DNS inside.")
    fragments: Fragments = section(Fragments, "How IP datagrams are put together.")
    streams: Streams = section(Streams, "How TCP connections are followed.")
    ring: Ring = section(Ring, "The shared memory between capture, workers and sink.")
    workers: int = key(
        "workers", 0, WholeOrAuto(1, MAX_WORKERS),
        "Processes that parse and match. `auto`: the cores available to gazer less one, at least "
        "1. The output is the same for any number.",
    )  # fmt: skip
    transactions: Transactions = section(Transactions, "How queries and replies are matched.")
    events: Events = section(Events, "What an event tells.")
    service: Service = section(Service, "How the processes of a live run are run and watched.")
    metrics: Metrics = section(Metrics, "What other programs can read of a live run.")
    outputs: tuple[Output, ...] = field(
        default=(Output(OutputKind.TEXT, "-"),),
        metadata={"outputs": True, "why": f"Where events go: 1 to {MAX_OUTPUTS} of them at once."},
    )

    def worker_count(self) -> int:
        """The number of workers on this machine, `auto` resolved."""
        if self.workers:
            return self.workers
        return min(max(len(os.sched_getaffinity(0)) - 1, 1), MAX_WORKERS)

    def forms(self) -> tuple[OutputKind, ...]:
        """The encoded forms in use, each once, in the order of the enumeration."""
        return tuple(sorted({output.kind for output in self.outputs}))

    def least_ring(self) -> int:
        """The smallest legal ring.size: a quarter of a ring holds the largest entry."""
        frame = self.capture.snaplen + FRAME_OVERHEAD
        forms = max(len(self.forms()), 1)
        event = forms * (self.events.max_size + FORM_OVERHEAD) + EVENT_OVERHEAD
        need = max(4 * frame, 4 * event, 64 * KIB)
        return 1 << (need - 1).bit_length()

    def problems(self) -> list[tuple[str, str]]:
        """What is wrong between keys, as (path of the key, what): empty for a sound Config."""
        from gazer.config.rules import problems

        return [*problems(self)]

    def checked(self) -> Config:
        """This Config; ConfigError with a line for each problem where it has any."""
        found = self.problems()
        if found:
            raise ConfigError("\n".join(f"{path}: {text}" for path, text in found))
        return self


def load(path: str) -> Config:
    """The configuration in the YAML file `path`; ConfigError says file, line and key."""
    from gazer.config.reader import read

    return read(path)


def from_mapping(mapping: Mapping[str, Any], source: str = "configuration") -> Config:
    """The configuration that a file with this content would give."""
    import yaml

    from gazer.config.reader import parse

    return parse(yaml.safe_dump(dict(mapping), sort_keys=False), source)


def sections() -> dict[str, type]:
    """The sections of the file, in its order: name -> class."""
    return sections_of(Config)
