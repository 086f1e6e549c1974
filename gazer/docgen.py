"""Makes configs/sensor.yaml and docs/configuration.md from the keys in gazer.config,
docs/events.md from the fields in gazer.event, docs/metrics.md from gazer.observe.table, and the
service files in configs/ from gazer.units.

python -m gazer.docgen            write all of them, from the top of a checkout
python -m gazer.docgen --check    write nothing; exit 1 if one is not current
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path

from gazer.config import (
    MAX_OUTPUTS,
    OUTPUT_PATH,
    OUTPUT_ROTATE,
    OUTPUT_ROTATE_WHY,
    OUTPUT_TYPE,
    OUTPUT_TYPES,
    Config,
    Forward,
    Key,
    Rotation,
    Server,
    SpoolSettings,
    keys_of,
    sections,
)
from gazer.config.forward import FORWARD_SERVERS, MAX_SERVERS, SECRET_FILES, SERVER_ADDRESS
from gazer.config.keys import sections_of
from gazer.config.kinds import Listing, show_size
from gazer.event import (
    EDNS,
    RECORD,
    RECORD_OF_TX,
    SCHEMA_VERSION,
    STATS,
    TAG_RECORD,
    TAG_STATS,
    TAG_TX,
    TUNNELS,
    TX,
    Field,
)
from gazer.observe.table import HISTOGRAM, table
from gazer.units import FILES, Site

YAML_FILE = Path("configs/sensor.yaml")
PAGE_FILE = Path("docs/configuration.md")
EVENTS_FILE = Path("docs/events.md")
METRICS_FILE = Path("docs/metrics.md")

_WIDTH = 96
_MADE = "python -m gazer.docgen"


def sensor_yaml(config: Config | None = None) -> str:
    """Every key with its reason above it: configs/sensor.yaml has the defaults, `gazer init` a
    Config of its own."""
    return "\n".join(_yaml_lines(config)) + "\n"


def page() -> str:
    """docs/configuration.md: every key in a table."""
    return "\n".join(_page_lines()) + "\n"


def events_page() -> str:
    """docs/events.md: every field of every event in a table."""
    return "\n".join(_events_lines()) + "\n"


def metrics_page() -> str:
    """docs/metrics.md: every metric in a table."""
    return "\n".join(_metrics_lines()) + "\n"


def stale(root: Path) -> list[Path]:
    """Those of the files under `root` that are not what would be written."""
    return [path for path, text in _files().items() if _content(root / path) != text]


def main(argv: list[str]) -> int:
    if argv not in ([], ["--check"]):
        print("usage: python -m gazer.docgen [--check]", file=sys.stderr)
        return 2
    root = Path()
    late = stale(root)
    for path in late:
        if argv:
            print(f"{path}: not current; run {_MADE}", file=sys.stderr)
        else:
            (root / path).parent.mkdir(exist_ok=True)
            (root / path).write_text(_files()[path], encoding="utf-8")
            print(f"{path}: written")
    return 1 if argv and late else 0


def _files() -> dict[Path, str]:
    made = {
        YAML_FILE: sensor_yaml(), PAGE_FILE: page(), EVENTS_FILE: events_page(),
        METRICS_FILE: metrics_page(),
    }  # fmt: skip
    return made | {YAML_FILE.with_name(name): make(Site()) for name, make in FILES.items()}


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


# configs/sensor.yaml -----------------------------------------------------------------------


def _yaml_lines(own: Config | None) -> Iterator[str]:
    yield from _comment(
        "gazer's configuration: every key "
        + ("" if own else "at its default, so that each line may be left out. ")
        + ("that there is, as `gazer init` laid it; yours to change. " if own else "")
        + "Errors name the file, the line and the key; `gazer check -c FILE` shows what would run."
    )
    yield "#"
    yield from _comment(
        "Durations: 60s, 500ms, 2m, 1h; a bare number is seconds. "
        "Sizes: 64MiB, 256KiB, 16MB; a bare number is bytes."
    )
    if own is None:
        yield "#"
        yield from _comment(f"Made by `{_MADE}` from gazer/config: change it there.")
    default = Config()
    config = own or default
    known = sections()
    for item in fields(Config):
        yield ""
        if item.name in known:
            yield from _comment(item.metadata["why"])
            yield f"{item.name}:"
            for number, (name, (attribute, key)) in enumerate(keys_of(known[item.name]).items()):
                if number:
                    yield ""
                yield from _described(key, "  ")
                value = getattr(getattr(config, item.name), attribute)
                usual = getattr(getattr(default, item.name), attribute)
                if value != usual:
                    yield from _comment(f"Default: {key.kind.show(usual)}", "  ")
                yield f"  {name}: {key.kind.show(value)}"
        elif "key" in item.metadata:
            key = item.metadata["key"]
            yield from _described(key)
            yield f"{key.name}: {key.kind.show(getattr(config, item.name))}"
        else:
            yield from _outputs(config, item.metadata["why"])


def _outputs(config: Config, why: str) -> Iterator[str]:
    yield from _comment(why)
    yield "outputs:"
    for output in config.outputs:
        type_, own, word = _words(output.kind)
        for number, (key, shown) in enumerate(
            [(OUTPUT_TYPE, type_), (OUTPUT_PATH, OUTPUT_PATH.kind.show(output.path)), (own, word)]
        ):
            if number:
                yield ""
            yield from _described(key, "    ")
            yield f"{'    ' if number else '  - '}{key.name}: {shown}"
        yield from _rotate(output.rotation)
    yield ""
    yield from _comment("Another type, and the key that goes with it alone:", "  ")
    own, kinds = OUTPUT_TYPES["msgpack"]
    yield from _described(own, "  ")
    yield f'  # - {{type: msgpack, path: "dns.msgpack", {own.name}: {next(iter(kinds))}}}'
    yield ""
    yield from _comment(
        "And fluentd, with the most usual keys; docs/configuration.md has all of them, and what "
        "they are for.", "  ")
    spool = SpoolSettings()
    yield "  # - type: fluentd"
    yield "  #   servers:"
    yield '  #     - "fluentd-1.example.com:24224"'
    yield '  #     - {address: "fluentd-2.example.com", standby: true}'
    yield '  #   shared_key_file: "/etc/gazer/fluentd.key"'
    yield '  #   tls: {enable: true, ca_file: "/etc/gazer/fluentd-ca.pem"}'
    yield "  #   compress: gzip"
    yield (
        f'  #   spool: {{path: "/var/spool/gazer/fluentd", max_bytes: {show_size(spool.max_bytes)}'
        f", drop: {spool.drop}}}"
    )


def _rotate(own: Rotation | None) -> Iterator[str]:
    """The keys of files that follow one another; as comments where there are none."""
    out = "    # " if own is None else "    "
    yield ""
    yield from _comment(OUTPUT_ROTATE_WHY, "    ")
    yield f"{out}{OUTPUT_ROTATE}:"
    for name, (attribute, key) in keys_of(Rotation).items():
        yield from _described(key, f"{out}  ")
        yield f"{out}  {name}: {key.kind.show(getattr(own or Rotation(), attribute))}"


def _words(kind: object) -> tuple[str, Key, str]:
    """How an output's kind is written: its type, the key beside it and that key's word."""
    for type_, (own, kinds) in OUTPUT_TYPES.items():
        for word, made in kinds.items():
            if made is kind:
                return type_, own, word
    raise AssertionError(kind)


def _described(key: Key, indent: str = "") -> Iterator[str]:
    yield from _comment(key.why, indent)
    yield from _comment(f"[{key.kind.type}: {key.kind.bounds}]", indent)


def _comment(text: str, indent: str = "") -> Iterator[str]:
    lead = f"{indent}# "
    yield from textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=lead,
        subsequent_indent=lead,
        break_long_words=False,
        break_on_hyphens=False,
    )


# docs/configuration.md ---------------------------------------------------------------------


def _page_lines() -> Iterator[str]:
    yield "# The configuration"
    yield ""
    yield f"<!-- Made by `{_MADE}` from gazer/config: change it there. -->"
    yield ""
    yield (
        "`gazer run -c FILE` takes everything from one YAML file. Each key may be left out and "
        "then has its default; a key that gazer does not know, a key given twice or a value out "
        "of bounds ends it with exit code 2 and a line for each, with the file, the line and the "
        "key:"
    )
    yield ""
    yield "    sensor.yaml:12: transactions.timeot: no such key; did you mean transactions.timeout?"
    yield ""
    yield (
        "`gazer check -c FILE` shows what would run. "
        "[configs/sensor.yaml](../configs/sensor.yaml) has every key at its default."
    )
    yield ""
    yield (
        "A **duration** is a number with `ns`, `us`, `ms`, `s`, `m` or `h`; without a unit it is "
        "seconds. A **size** is a number with `KiB`, `MiB`, `GiB`, `TiB` (powers of 1024), `kB`, "
        "`MB`, `GB` or `TB` (powers of 1000); without a unit it is bytes."
    )
    config = Config()
    known = sections()
    for item in fields(Config):
        yield ""
        yield f"## {item.name}"
        yield ""
        if item.name in known:
            yield item.metadata["why"]
            yield ""
            rows = [
                (f"{item.name}.{name}", key, getattr(getattr(config, item.name), attribute))
                for name, (attribute, key) in keys_of(known[item.name]).items()
            ]
            yield from _table((name, key, f"`{key.kind.show(value)}`") for name, key, value in rows)
        elif "key" in item.metadata:
            key = item.metadata["key"]
            default = f"`{key.kind.show(getattr(config, item.name))}`"
            yield from _table([(key.name, key, default)])
        else:
            yield f"{item.metadata['why']} When left out: text on standard output."
            yield ""
            yield from _table(_output_rows())
            yield ""
            yield (
                f"`outputs` is a list of 1 to {MAX_OUTPUTS} of these. Events are encoded once "
                "for each form in use (`text`, `json`, `seconds`, `event_time`), however many "
                "outputs share it. `rotate` is a mapping of its own: [files that follow one "
                "another](operations.md#files-that-follow-one-another)."
            )
            yield from _fluentd_lines()


def _output_rows() -> Iterator[tuple[str, Key, str]]:
    for key in (OUTPUT_TYPE, OUTPUT_PATH):
        yield f"outputs[].{key.name}", key, "none"
    for type_, (own, kinds) in OUTPUT_TYPES.items():
        if type_ != "fluentd":
            yield f"outputs[].{own.name}", own, f"`{next(iter(kinds))}`"
    for name, (attribute, key) in keys_of(Rotation).items():
        yield f"outputs[].{OUTPUT_ROTATE}.{name}", key, (
            f"`{key.kind.show(getattr(Rotation(), attribute))}`")


def _fluentd_lines() -> Iterator[str]:
    """The keys of an output of type fluentd."""
    yield ""
    yield "### fluentd"
    yield ""
    yield (
        "With `type: fluentd` events go to servers that speak fluentd's Forward protocol (fluentd, "
        "fluent-bit, Vector and others), and stay here until they are acknowledged; see "
        "[operations.md](operations.md#fluentd)."
    )
    yield ""
    yield "    outputs:"
    yield "      - type: fluentd"
    yield '        servers: ["fluentd-1:24224", {address: "fluentd-2:24224", standby: true}]'
    yield '        spool: {path: "/var/spool/gazer/fluentd"}'
    yield ""
    servers = Key("servers", Listing(SERVER_ADDRESS.kind, 1, MAX_SERVERS, "servers"),
                  FORWARD_SERVERS)  # fmt: skip
    rows: list[tuple[str, Key, str]] = [("servers", servers, "none")]
    rows.append((f"servers[].{SERVER_ADDRESS.name}", SERVER_ADDRESS, "none"))
    rows += _defaults("servers[].", Server("a"))
    own, kinds = OUTPUT_TYPES["fluentd"]
    rows.append((own.name, own, f"`{next(iter(kinds))}`"))
    usual = Forward()
    for row in _defaults("", usual):
        rows.append(row)
        if f"{row[0]}_file" in SECRET_FILES:
            _, key = SECRET_FILES[f"{row[0]}_file"]
            rows.append((key.name, key, "none"))
    for name in sections_of(Forward):
        rows += _defaults(f"{name}.", getattr(usual, name))
    yield from _table(rows)


def _defaults(lead: str, usual: object) -> list[tuple[str, Key, str]]:
    return [
        (f"{lead}{name}", key, f"`{key.kind.show(getattr(usual, attribute))}`")
        for name, (attribute, key) in keys_of(type(usual)).items()
    ]


def _table(rows: Iterable[tuple[str, Key, str]]) -> Iterator[str]:
    yield "| key | type | default | bounds | what it is for |"
    yield "|---|---|---|---|---|"
    for name, key, default in rows:
        kind = key.kind
        yield f"| `{name}` | {kind.type} | {default} | {kind.bounds} | {key.why} |"


# docs/events.md ----------------------------------------------------------------------------

# What `gazer run` writes for the pair of packets in tests/captures/captured.pcap, with
# `format: json`; tests/test_docs.py runs it.
EVENTS_EXAMPLE = (
    '{"tag": "dns-gazer.dns.tx", "time": "2015-10-11T02:40:12.643494Z", '
    '"client_addr": "10.139.96.169", "client_port": 53684, "flags": "rd ra", '
    '"latency": 0.015272000, "opcode": "QUERY", "proto": "udp", '
    '"query": [{"class": "IN", "name": "bf-pro-front.cloudapp.net.", "section": "question", '
    '"type": "A"}], "query_size": 43, "query_ts": 1444531212.628222, '
    '"query_ts_ns": 1444531212628222000, "rcode": "NOERROR", '
    '"reply": [{"class": "IN", "name": "bf-pro-front.cloudapp.net.", "section": "question", '
    '"type": "A"}, {"class": "IN", "data": "23.100.102.231", '
    '"name": "bf-pro-front.cloudapp.net.", "section": "answer", "ttl": 60, "type": "A"}], '
    '"reply_size": 59, "reply_ts": 1444531212.643494, "reply_ts_ns": 1444531212643494000, '
    '"retransmits": 0, "sensor": "sensor-1", "server_addr": "210.196.3.183", '
    '"server_port": 53, "status": "success", "tx_id": 23904}'
)

_EVENTS_RULES = (
    "Keys stand in the order of their bytes. A key without a value is absent, never null.",
    "All text from packets is printable ASCII. What they hold beyond that is escaped as `\\DDD`, "
    "three decimal digits for one octet; `.` and `\\` within a label have a backslash before them. "
    "So every line is valid JSON, whatever a name holds (where an escape meets JSON, `\\` stands "
    "twice).",
    "Record data is in presentation format, as in a zone file: `10 mail.example.com.` for MX, "
    '`"v=spf1 -all"` with its quotes for TXT. Types that gazer does not know, and data that does '
    "not fit its type, are in the form of RFC 3597: `\\# 4 c0a80001`.",
    "Times come from the capture. `query_ts` and `reply_ts` have six decimals, cut off, not "
    "rounded (in msgpack a float64); `query_ts_ns` and `reply_ts_ns` are exact.",
    "The time of an event is that of the reply; without a reply, that of the query; of a record "
    "event, that of its message. Events stand in the order in which they became due: a "
    "`no_reply` stands where its waiting ended, later than its time says.",
    "An event has at most `events.max_size` bytes and is always whole. Records that do not fit "
    "are left out from the end and counted in `omitted`.",
)

_IDS_RULES = (
    "SENSOR is `sensor.id`. It may hold any printable text, colons too; the other parts hold none. "
    'Whoever takes an id apart splits it from the right, as with `rsplit(":", 4)`.',
    "RUN is when the run began, in nanoseconds since 1970, hexadecimal. A process that is started "
    "again within a run changes nothing. Another run has other ids, over the same file too: so "
    "with ids no two runs give the same bytes. Without, which is the default, they do.",
    "CAPTURE is the number of the capture process, from 0; over files it is 0.",
    "FRAME is the number of the frame, as that process counts them from 1, at which the event is "
    "due: of a reply, its last part; of a query that waited in vain, the query's own; of one that "
    "a limit pushed out, the frame that did.",
    "INDEX is 0, 1, ... of the events due there, in the order in which they stand. Of those that "
    "leave because time has passed (a timeout, an idle connection) `@` follows and the sensor "
    "clock, in nanoseconds, hexadecimal, at which they were due.",
    "An event that is written or sent again, by whichever process, has the id that it had: it was "
    "encoded with it. No two events have one id.",
    "The ids are the same for any number of workers, as far as the events are (a limit that is "
    "reached changes both). What a worker loses when it dies is missing from the events behind it; "
    "their INDEX may then differ from what it would have been, and is still used once.",
)


def _events_lines() -> Iterator[str]:
    yield "# The events"
    yield ""
    yield f"<!-- Made by `{_MADE}` from gazer/event.py: change it there. -->"
    yield ""
    yield (
        f"Schema version {SCHEMA_VERSION}. A field that is new does not change the version; a "
        "field that goes, or comes to mean something else, does."
    )
    yield ""
    yield "| tag | one event for | written |"
    yield "|---|---|---|"
    yield f"| `{TAG_TX}` | a transaction: a query with its reply, or with its absence | always |"
    yield (
        f"| `{TAG_RECORD}` | a record of a message (a question counts as one), flat: no lists and "
        "no maps in it | with `events.records: true` or `dns-gazer -R` |"
    )
    yield (
        "| `dns-gazer.mdns.tx`, `dns-gazer.mdns.record` | the same of multicast DNS (RFC 6762) | "
        "with `capture.mdns: true` |"
    )
    yield (
        "| `dns-gazer.llmnr.tx`, `dns-gazer.llmnr.record` | the same of LLMNR (RFC 4795) | with "
        "`capture.llmnr: true` |"
    )
    yield (
        f"| `{TAG_STATS}` | an interval of a live run: what was seen, and what was lost | every "
        "`service.stats_interval` and once at the end; never over files |"
    )
    yield ""
    yield (
        "With `detail: classic` (what `dns-gazer` does) an event has exactly the original's "
        "fields. With `detail: full` (what `gazer run` does) it has all fields of the tables "
        "below. `event_id` is in either, and only where it is switched on."
    )
    yield ""
    yield "## Forms"
    yield ""
    yield "| output | what is written |"
    yield "|---|---|"
    yield (
        "| `type: text` | `TIME<TAB>TAG<TAB>JSON`, one line for each event; TIME is UTC, whole "
        "seconds: `2015-10-11T02:40:12+00:00` |"
    )
    yield (
        "| `type: text`, `format: json` | one JSON object for each line: `tag`, `time` (UTC, "
        "microseconds), then the event's fields |"
    )
    yield (
        "| `type: msgpack` | a stream of `[tag, time, fields]`; time is an integer, seconds since "
        "1970-01-01 UTC |"
    )
    yield (
        "| `type: msgpack`, `time: event_time` | the same; time is Fluentd's EventTime (extension "
        "type 0: seconds and nanoseconds, 32 bits each, big-endian; it ends in 2106) |"
    )
    yield ""
    yield "An event in full detail, as `format: json` writes it, on one line:"
    yield ""
    yield f"    {EVENTS_EXAMPLE}"
    yield ""
    yield "## Rules"
    yield ""
    for rule in _EVENTS_RULES:
        yield f"- {rule}"
    yield ""
    yield from _ids_lines()
    yield f"## {TAG_TX}"
    yield ""
    yield from _fields(TX)
    yield ""
    yield "### Each entry of `query` and `reply`"
    yield ""
    yield from _fields(RECORD_OF_TX)
    yield ""
    yield "### Each entry of `edns`"
    yield ""
    yield (
        "Full detail only. Taken from the first OPT record among a message's additional records. "
        "The OPT record also stands in `query` or `reply` like any other, with all its options as "
        "text."
    )
    yield ""
    yield from _fields(EDNS, levels=False)
    yield ""
    yield "### Each entry of `tunnels`"
    yield ""
    yield "Full detail only."
    yield ""
    yield from _fields(TUNNELS, levels=False)
    yield ""
    yield "### The values of `malformed`"
    yield ""
    from gazer.workers.anomaly import NAMES

    # A message without a whole header makes no event.
    values = ", ".join(f"`{name}`" for name in NAMES if name not in ("ok", "short_header"))
    yield f"{values}. What each means stands in [operations.md](operations.md#messages)."
    yield ""
    yield f"## {TAG_RECORD}"
    yield ""
    yield from _fields(RECORD)
    yield ""
    yield f"## {TAG_STATS}"
    yield ""
    yield (
        "One flat map, in both levels of detail. Its time is `interval_end`. It stands behind all "
        "events that were written before it and says nothing of their order: what it counts may "
        "still be on its way. Where it shows that something was lost, the absence of a query or "
        "a reply in that interval is no evidence."
    )
    yield ""
    yield from _fields(STATS, levels=False)


def _ids_lines() -> Iterator[str]:
    yield "## Ids"
    yield ""
    yield (
        "With `events.event_id: true` each event of a transaction or a record has a field "
        "`event_id`, in both levels of detail and every form. By it a consumer knows an event that "
        "comes a second time, as after a connection that broke before the acknowledgement: keep "
        "the one, drop the other. It is compared as a whole, and made of five parts:"
    )
    yield ""
    yield "    SENSOR:RUN:CAPTURE:FRAME:INDEX"
    yield "    sensor-1:187abb4d2e6fcd15:0:12345:0"
    yield "    sensor-1:187abb4d2e6fcd15:0:12346:0@187abb5b26c1e7a0"
    yield ""
    for rule in _IDS_RULES:
        yield f"- {rule}"
    yield ""


def _fields(fields_: Iterable[Field], *, levels: bool = True) -> Iterator[str]:
    """A table of fields; `levels`: with the level of detail that each begins at."""
    level = " detail |" if levels else ""
    yield f"| field | type |{level} present | meaning | example |"
    yield "|---|---|" + ("---|" if levels else "") + "---|---|---|"
    for field in fields_:
        row = f"| `{field.name}` | {field.type} |"
        if levels:
            row += " classic, full |" if field.classic else " full |"
        present = "where there is one" if field.optional else "always"
        yield f"{row} {present} | {field.text} | `{field.example}` |"


# docs/metrics.md ---------------------------------------------------------------------------


def _metrics_lines() -> Iterator[str]:
    yield "# Metrics"
    yield ""
    yield f"<!-- Made by `{_MADE}` from gazer/observe/table.py: change it there. -->"
    yield ""
    yield (
        "What Prometheus finds at `/metrics` of `metrics.listen`. `gazer stats` shows the same "
        "counters under their names in the ledger: `gazer_worker_queries_total` is `queries` of "
        "the workers. [operations.md](operations.md#watching-it) says which of them to watch, and "
        "what to do when they grow."
    )
    yield ""
    yield (
        "Counters go on where a process that died stood, and begin at 0 when the sensor is started "
        "anew. `capture`, `worker`, `output` and `index` number the processes and outputs from 0, "
        "in the order of the configuration."
    )
    yield ""
    yield "| metric | type | labels | meaning |"
    yield "|---|---|---|---|"
    for family in table().values():
        labels = ", ".join(f"`{label}`" for label in family.labels)
        more = "; `le` in seconds" if family.type == HISTOGRAM else ""
        yield f"| `{family.shown}` | {family.type} | {labels} | {family.help}{more} |"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
