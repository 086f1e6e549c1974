"""The events: every field of each kind, its type, unit and meaning, in one place.

docs/events.md is made from this, and the tests hold the encoders to it.  Keys stand in the events
in the order of their bytes; a key without a value is absent, never null.

`event_id` is SENSOR:RUN:CAPTURE:FRAME:INDEX, one text, since what it is for is to be compared as a
whole, and any store can do that with one string.

- The colon: only the sensor id can hold one, so the id comes apart in one way, from the right, and
  two sensors never make the same.  No character would be free in all sensor ids, and an escape
  would be undone by nobody.  The sensor stands first, so that ids of one sensor and run sort
  together.
- RUN is in nanoseconds, hexadecimal: two runs of one sensor over two files may well begin within
  one millisecond.
- FRAME and INDEX, and the clock behind an `@` where the event is due later than its frame, are the
  event's key (ARCHITECTURE.md, "Order") and its place under it: what is known to the worker alone,
  needs no memory, and is the same for any number of workers.  That no two events have one id is
  shown in gazer/workers/emitter.pyx.
"""

from __future__ import annotations

SCHEMA_VERSION = 2

# Multicast DNS and LLMNR have tags of their own: multicast has no one client and server.
PROTOCOLS = ("dns", "mdns", "llmnr")

STATUSES = ("success", "no_reply", "no_query", "one_way", "further_reply")


def tag_of(protocol: str, kind: str) -> str:
    """The tag of an event: `kind` is tx or record."""
    return f"dns-gazer.{protocol}.{kind}"


TAG_TX = tag_of("dns", "tx")
TAG_RECORD = tag_of("dns", "record")
TAG_STATS = "dns-gazer.stats"

# What comes from the rings; an event's header says which of them it has (gazer/entry.pxd).
TAGS = tuple(tag_of(protocol, kind) for protocol in PROTOCOLS for kind in ("tx", "record"))


class Field:
    """One field of an event.  `classic` fields stand in both levels of detail.

    (No dataclass: each worker would pay 2 ms for what it never uses.)
    """

    __slots__ = ("classic", "example", "name", "optional", "text", "type")

    def __init__(
        self,
        name: str,
        type: str,
        text: str,
        example: str,
        classic: bool = False,
        optional: bool = False,
    ) -> None:
        self.name = name
        self.type = type
        self.text = text
        self.example = example
        self.classic = classic
        self.optional = optional


TX = (
    Field("bytes", "integer", "Of a zone transfer over TCP (AXFR, IXFR), which is one event: octets"
          " of all its DNS messages.", "412870", optional=True),
    Field("client_addr", "string", "Address of the host that asked; of an mDNS reply between hosts,"
          " the group that it was sent to.", "10.139.96.169", True),
    Field("client_port", "integer", "Its port.", "53684", True),
    Field("complete", "boolean", "Of a zone transfer: whether it was seen to its closing SOA."
          " False: the connection ended before, a part of it is not in the capture, the server"
          " broke off, or nothing more came for `transactions.timeout`.", "true", optional=True),
    Field("dso", "map", "The parts (TLVs) of a DNS Stateful Operations message (RFC 8490) of the"
          " query or the reply, under `query` and `reply`: name or TLVn and hexadecimal data, a"
          " comma between.", '{"query": "KEEPALIVE 00003a9800003a98"}', optional=True),
    Field("edns", "map", "EDNS (RFC 6891) of the query and of the reply, under `query` and `reply`;"
          " see below.", '{"query": {"do": true, "udp_size": 1232, "version": 0}}', optional=True),
    Field("event_id", "string", "Of this event and no other, also when it comes twice; with"
          " `events.event_id`; see above.", "sensor-1:187abb4d2e6fcd15:0:12345:0", True,
          optional=True),
    Field("flags", "string", "Header flags that are set, of the reply, or of the query where there"
          " is no reply: `aa`, `tc`, `rd`, `ra`, `ad`, `cd`, one space between.", "rd ra"),
    Field("latency", "float, seconds", "Reply's time less query's time; absent without both, and"
          " where it would be negative (the clock was set back).", "0.015272000", optional=True),
    Field("lossy", "boolean", "Of a `no_reply` or `no_query`: true where gazer lost frames, or one"
          " of its processes was started again, at a time when what is missing may have come. It is"
          " no evidence then. Live capture only.", "true", optional=True),
    Field("malformed", "map", "What was wrong with the query or the reply, under `query` and"
          " `reply`: the first fault met; see below.", '{"reply": "truncated"}', optional=True),
    Field("messages", "integer", "Of a zone transfer: how many DNS messages it took.", "27",
          optional=True),
    Field("omitted", "integer", "Records left out, of query and reply, because the event could pass"
          " `events.max_size`; the most that a record may take counts.", "812", optional=True),
    Field("opcode", "string", "QUERY, IQUERY, STATUS, NOTIFY, UPDATE, DSO, or OPCODEn.", "QUERY"),
    Field("proto", "string", "Transport: `udp` or `tcp`.", "udp"),
    Field("query", "list of maps", "The query's records, in the order of the message.",
          '[{"name": "example.com.", "section": "question", "type": "A"}]', True, True),
    Field("query_size", "integer, bytes", "Size of the query's DNS message on the wire.", "44",
          optional=True),
    Field("query_ts", "float, seconds", "When the query was seen, since 1970-01-01 UTC, with"
          " microseconds.", "1444531212.628222", True, True),
    Field("query_ts_ns", "integer, nanoseconds", "The same, exact.", "1444531212628222000",
          optional=True),
    Field("rcode", "string", "The reply's response code with EDNS's upper bits: NOERROR, NXDOMAIN,"
          " ..., or RCODEn. Of a zone transfer: its last message's.", "NOERROR", optional=True),
    Field("records", "integer", "Of a zone transfer: how many answer records it had.", "10231",
          optional=True),
    Field("reply", "list of maps", "The reply's records, in the order of the message. Of a zone"
          " transfer: all of its first message, then the answers of the others, as far as"
          " `events.max_size` goes.",
          '[{"data": "192.0.2.1", "name": "example.com.", "section": "answer", "type": "A"}]',
          True, True),
    Field("reply_size", "integer, bytes", "Size of the reply's DNS message on the wire; of all of"
          " them in a zone transfer.", "60", optional=True),
    Field("reply_ts", "float, seconds", "When the reply was seen; a message over TCP or in"
          " fragments: its last part; a zone transfer: its last message.", "1444531212.643494",
          True, True),
    Field("reply_ts_ns", "integer, nanoseconds", "The same, exact.", "1444531212643494000",
          optional=True),
    Field("retransmits", "integer", "How often the query was seen again while it waited.", "0",
          optional=True),
    Field("sensor", "string", "`sensor.id` of the configuration.", "sensor-1"),
    Field("server_addr", "string", "Address of the host that was asked.", "210.196.3.183", True),
    Field("server_port", "integer", "Its port.", "53", True),
    Field("status", "string", "`success`: query and reply; `no_reply`: the query waited for"
          " `transactions.timeout`, or until the input ended, or until the table was full;"
          " `no_query`: a reply that nothing waited for; `one_way`: a message that no reply belongs"
          " to (mDNS between hosts, a DSO message without id); `further_reply`: a reply to a"
          " multicast query that another host has answered already.", "success", True),
    Field("tunnels", "list of maps", "The encapsulation that the query (without one, the reply)"
          " came in, the outermost level first; see below. Not of a message over TCP that waited"
          " for a segment which was lost: what it came in is not known any more.",
          '[{"destination": "192.0.2.2", "id": 42, "source": "192.0.2.1", "type": "vxlan"}]',
          optional=True),
    Field("tx_id", "integer", "The DNS message id.", "23904", True),
    Field("vlan", "list of integers", "VLAN ids of the frame's tags, of all levels, the outermost"
          " first.", "[100, 200]", optional=True),
)

SECTIONS = ("`question`, `answer`, `authority` or `additional`; of an UPDATE (RFC 2136) `zone`,"
            " `prerequisite`, `update` or `additional`.")
_FLUSH = ("Of an mDNS record that is to take the place of what was known (RFC 6762, section 10.2):"
          " true.")

RECORD_OF_TX = (
    Field("class", "string", "IN, CH, HS, NONE, ANY, or CLASSn; not for OPT.", "IN",
          optional=True),
    Field("data", "string", "Record data in presentation format; not for questions.",
          "23.100.102.231", True, True),
    Field("flush", "boolean", _FLUSH, "true", optional=True),
    Field("name", "string", "Owner name with its final dot, in the case in which it was sent (which"
          " resolvers mix: compare without case); octets beyond printable ASCII as"
          " \\DDD, `.` and `\\` within a label with a backslash (RFC 4343).", "example.com.", True),
    Field("section", "string", SECTIONS, "answer", True),
    Field("ttl", "integer, seconds", "Time to live; not for questions and OPT.", "300",
          optional=True),
    Field("type", "string", "A, AAAA, ..., or TYPEn (RFC 3597).", "A", True),
    Field("unicast", "boolean", "Of an mDNS question that asks for a unicast reply (RFC 6762,"
          " section 5.4): true.", "true", optional=True),
)

TUNNELS = (
    Field("destination", "string", "Where its packet went; not of `mpls` and `pppoe`.",
          "192.0.2.2", optional=True),
    Field("id", "integer", "VNI (VXLAN, Geneve), key (GRE), session (ERSPAN, PPPoE) or bottom"
          " label (MPLS), where it has one.", "42", optional=True),
    Field("source", "string", "Where its packet came from.", "192.0.2.1", optional=True),
    Field("type", "string", "`mpls`, `pppoe`, `gre`, `erspan`, `vxlan`, `geneve`, or `ip` (IP in"
          " IP, 6in4, 4in6).", "vxlan"),
)

EDNS = (
    Field("client_subnet", "string", "Client subnet (RFC 7871): ADDRESS/SOURCE/SCOPE.",
          "192.0.2.0/24/0", optional=True),
    Field("cookie", "string", "DNS cookie (RFC 7873), hexadecimal.", "d1c2b3a495867768",
          optional=True),
    Field("do", "boolean", "DNSSEC OK (RFC 3225).", "true"),
    Field("extended_errors", "list of maps", "Extended DNS errors (RFC 8914): `code`, `name` where"
          " it is registered, `text` where the server sent one.",
          '[{"code": 18, "name": "Prohibited"}]', optional=True),
    Field("extended_rcode", "integer", "Upper eight bits of the response code.", "0"),
    Field("nsid", "string", "Name server identifier (RFC 5001), printable ASCII, all else as"
          " \\DDD.", "fra1", optional=True),
    Field("udp_size", "integer, bytes", "UDP payload size that the sender can take.", "1232"),
    Field("version", "integer", "EDNS version.", "0"),
)

RECORD = (
    Field("class", "string", "As in `tx`; not for OPT.", "IN", optional=True),
    Field("client_addr", "string", "Address of the host that asked.", "10.139.96.169", True),
    Field("client_port", "integer", "Its port.", "53684", True),
    Field("data", "string", "Record data in presentation format; not for questions.",
          "23.100.102.231", True, True),
    Field("event_id", "string", "As in `tx`.", "sensor-1:187abb4d2e6fcd15:0:12345:0", True,
          optional=True),
    Field("flags", "string", "The message's header flags that are set.", "rd ra"),
    Field("flush", "boolean", _FLUSH, "true", optional=True),
    Field("msg_type", "string", "`query` or `reply`.", "reply", True),
    Field("name", "string", "Owner name, as in `tx`.", "example.com.", True),
    Field("opcode", "string", "As in `tx`.", "QUERY"),
    Field("proto", "string", "Transport: `udp` or `tcp`.", "udp"),
    Field("rcode", "string", "The message's response code; of replies only.", "NOERROR",
          optional=True),
    Field("section", "string", SECTIONS, "answer", True),
    Field("sensor", "string", "`sensor.id` of the configuration.", "sensor-1"),
    Field("server_addr", "string", "Address of the host that was asked.", "210.196.3.183", True),
    Field("server_port", "integer", "Its port.", "53", True),
    Field("ts", "float, seconds", "When the message was seen, since 1970-01-01 UTC, with"
          " microseconds.", "1444531212.643494"),
    Field("ts_ns", "integer, nanoseconds", "The same, exact.", "1444531212643494000"),
    Field("ttl", "integer, seconds", "Time to live; not for questions and OPT.", "300",
          optional=True),
    Field("tunnel_path", "string", "The encapsulation that the message came in: type, id, source"
          " and destination of each level, the outermost first.", "vxlan 42 192.0.2.1>192.0.2.2",
          optional=True),
    Field("tx_id", "integer", "The DNS message id.", "23904", True),
    Field("type", "string", "As in `tx`.", "A", True),
    Field("unicast", "boolean", "As in `tx`.", "true", optional=True),
    Field("vlan_path", "string", "VLAN ids of the frame's tags, of all levels, the outermost"
          " first, a dot between (record events hold no lists).", "100.200", optional=True),
)

# What a live run says of itself; numbers are of the interval unless the text says otherwise.
STATS = (
    Field("balanced", "boolean", "Whether the ledger adds up: every frame, message and event that"
          " was ever counted is accounted for, or just on its way. False is a mistake in gazer.",
          "true"),
    Field("discarded", "integer", "Messages of which no event could be made.", "0"),
    Field("evicted", "integer", "Queries of `no_reply` that left early because a limit was"
          " reached.", "0"),
    Field("frames", "integer", "Frames that were captured and read.", "190482"),
    Field("further_reply", "integer", "Transactions of this status.", "0"),
    Field("interface_dropped", "integer", "Frames that the interface or its driver dropped.", "0"),
    Field("interval_end", "float, seconds", "When the interval ended, by the system's clock, since"
          " 1970-01-01 UTC.", "1444531272.643494"),
    Field("interval_start", "float, seconds", "When it began: the end of the one before. If it is"
          " less, the sink was started again, and this event tells of what the one before told of"
          " as well.", "1444531212.643494"),
    Field("kernel_dropped", "integer", "Frames that the kernel dropped, because capture did not"
          " keep up.", "0"),
    Field("kernel_lost", "integer", "Frames that were in the kernel's buffer when a capture process"
          " died.", "0"),
    Field("last", "boolean", "True in the event that ends a run.", "true", optional=True),
    Field("lossy", "integer", "`no_reply` and `no_query` that are no evidence, since something was"
          " lost meanwhile.", "0"),
    Field("lost_pending", "integer", "Queries that waited in a worker that died.", "0"),
    Field("messages", "integer", "DNS messages.", "190112"),
    Field("no_query", "integer", "Transactions of this status.", "7"),
    Field("no_reply", "integer", "Transactions of this status, the evicted ones included.", "214"),
    Field("one_way", "integer", "Transactions of this status.", "0"),
    Field("outputN_delivered", "integer", "Of a fluentd output: events from its spool that a server"
          " has acknowledged.", "0"),
    Field("outputN_dropped", "integer", "Events that output N (from 0, in the order of the"
          " configuration) has not got: it failed, or did not keep up.", "0"),
    Field("outputN_spool_dropped", "integer", "Of a fluentd output: events that its spool has lost:"
          " no room, damaged, too old, or no server takes them.", "0"),
    Field("outputN_spooled", "integer", "Of a fluentd output: events that went into its spool.",
          "0"),
    Field("outputN_written", "integer", "Events written to output N; of a fluentd output those that"
          " a server has acknowledged at once.", "94829"),
    Field("pending", "integer", "Queries that wait for their reply now.", "352"),
    Field("quarantined", "integer", "Frames left out because each has killed a worker twice.", "0"),
    Field("queries", "integer", "Messages that are queries.", "95234"),
    Field("replies", "integer", "Messages that are replies.", "94878"),
    Field("restarts", "integer", "Processes that died, or hung, and were started again.", "0"),
    Field("ring_dropped", "integer", "Frames that had no room on their way to a worker.", "0"),
    Field("sensor", "string", "`sensor.id` of the configuration.", "sensor-1"),
    Field("success", "integer", "Transactions of this status.", "94608"),
)
