"""The events: every field of both kinds, its type, unit and meaning, in one place.

docs/events.md is made from this, and the tests hold the encoders to it.  Keys stand in the events
in the order of their bytes; a key without a value is absent, never null.
"""

from __future__ import annotations

SCHEMA_VERSION = 1

TAG_TX = "dns-gazer.dns.tx"
TAG_RECORD = "dns-gazer.dns.record"


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
    Field("client_addr", "string", "Address of the host that asked.", "10.139.96.169", True),
    Field("client_port", "integer", "Its port.", "53684", True),
    Field("edns", "map", "EDNS (RFC 6891) of the query and of the reply, under `query` and `reply`;"
          " see below.", '{"query": {"do": true, "udp_size": 1232, "version": 0}}', optional=True),
    Field("flags", "string", "Header flags that are set, of the reply, or of the query where there"
          " is no reply: `aa`, `tc`, `rd`, `ra`, `ad`, `cd`, one space between.", "rd ra"),
    Field("latency", "float, seconds", "Reply's time less query's time; absent without both, and"
          " where it would be negative (the clock was set back).", "0.015272000", optional=True),
    Field("malformed", "map", "What was wrong with the query or the reply, under `query` and"
          " `reply`: the first fault met; see below.", '{"reply": "truncated"}', optional=True),
    Field("omitted", "integer", "Records left out, of query and reply, because the event would pass"
          " `events.max_size`.", "812", optional=True),
    Field("opcode", "string", "QUERY, IQUERY, STATUS, NOTIFY, UPDATE, DSO, or OPCODEn.", "QUERY"),
    Field("proto", "string", "Transport: `udp`.", "udp"),
    Field("query", "list of maps", "The query's records, in the order of the message.",
          '[{"name": "example.com.", "section": "question", "type": "A"}]', True, True),
    Field("query_size", "integer, bytes", "Size of the query's DNS message on the wire.", "44",
          optional=True),
    Field("query_ts", "float, seconds", "When the query was seen, since 1970-01-01 UTC, with"
          " microseconds.", "1444531212.628222", True, True),
    Field("query_ts_ns", "integer, nanoseconds", "The same, exact.", "1444531212628222000",
          optional=True),
    Field("rcode", "string", "The reply's response code with EDNS's upper bits: NOERROR, NXDOMAIN,"
          " ..., or RCODEn.", "NOERROR", optional=True),
    Field("reply", "list of maps", "The reply's records, in the order of the message.",
          '[{"data": "192.0.2.1", "name": "example.com.", "section": "answer", "type": "A"}]',
          True, True),
    Field("reply_size", "integer, bytes", "Size of the reply's DNS message on the wire.", "60",
          optional=True),
    Field("reply_ts", "float, seconds", "When the reply was seen.", "1444531212.643494", True,
          True),
    Field("reply_ts_ns", "integer, nanoseconds", "The same, exact.", "1444531212643494000",
          optional=True),
    Field("retransmits", "integer", "How often the query was seen again while it waited.", "0",
          optional=True),
    Field("sensor", "string", "`sensor.id` of the configuration.", "sensor-1"),
    Field("server_addr", "string", "Address of the host that was asked.", "210.196.3.183", True),
    Field("server_port", "integer", "Its port.", "53", True),
    Field("status", "string", "`success`: query and reply; `no_reply`: the query waited for"
          " `transactions.timeout`, or until the input ended, or until the table was full;"
          " `no_query`: a reply that nothing waited for.", "success", True),
    Field("tx_id", "integer", "The DNS message id.", "23904", True),
    Field("vlan", "list of integers", "VLAN ids of the frame's tags, the outer one first.",
          "[100, 200]", optional=True),
)

RECORD_OF_TX = (
    Field("class", "string", "IN, CH, HS, NONE, ANY, or CLASSn; not for OPT.", "IN",
          optional=True),
    Field("data", "string", "Record data in presentation format; not for questions.",
          "23.100.102.231", True, True),
    Field("name", "string", "Owner name with its final dot, in the case in which it was sent (which"
          " resolvers mix: compare without case); octets beyond printable ASCII as"
          " \\DDD, `.` and `\\` within a label with a backslash (RFC 4343).", "example.com.", True),
    Field("section", "string", "`question`, `answer`, `authority` or `additional`.", "answer",
          True),
    Field("ttl", "integer, seconds", "Time to live; not for questions and OPT.", "300",
          optional=True),
    Field("type", "string", "A, AAAA, ..., or TYPEn (RFC 3597).", "A", True),
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
    Field("flags", "string", "The message's header flags that are set.", "rd ra"),
    Field("msg_type", "string", "`query` or `reply`.", "reply", True),
    Field("name", "string", "Owner name, as in `tx`.", "example.com.", True),
    Field("opcode", "string", "As in `tx`.", "QUERY"),
    Field("proto", "string", "Transport: `udp`.", "udp"),
    Field("rcode", "string", "The message's response code; of replies only.", "NOERROR",
          optional=True),
    Field("section", "string", "`question`, `answer`, `authority` or `additional`.", "answer",
          True),
    Field("sensor", "string", "`sensor.id` of the configuration.", "sensor-1"),
    Field("server_addr", "string", "Address of the host that was asked.", "210.196.3.183", True),
    Field("server_port", "integer", "Its port.", "53", True),
    Field("ts", "float, seconds", "When the message was seen, since 1970-01-01 UTC, with"
          " microseconds.", "1444531212.643494"),
    Field("ts_ns", "integer, nanoseconds", "The same, exact.", "1444531212643494000"),
    Field("ttl", "integer, seconds", "Time to live; not for questions and OPT.", "300",
          optional=True),
    Field("tx_id", "integer", "The DNS message id.", "23904", True),
    Field("type", "string", "As in `tx`.", "A", True),
    Field("vlan_path", "string", "VLAN ids of the frame's tags, the outer one first, a dot between"
          " (record events hold no lists).", "100.200", optional=True),
)
