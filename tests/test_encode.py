"""Events as bytes: both formats from any exchange, held to the list of fields in gazer.event."""

from __future__ import annotations

import ipaddress
import json
import time

import msgpack
import pytest
from fluent.sender import EventTime
from hypothesis import given, settings
from hypothesis import strategies as st

from gazer import event
from gazer.packet import ENCAPSULATIONS
from gazer.workers import doors
from tests.oracle import build

TEXT, JSON, PACK, PACK_TIME = range(4)
NS = 10**9

FIELDS = {f.name: f for f in event.TX}
NESTED = {f.name: f for f in event.RECORD_OF_TX}
FLAT = {f.name: f for f in event.RECORD}
EDNS = {f.name: f for f in event.EDNS}
TUNNELS = {f.name: f for f in event.TUNNELS}
TYPES = {"string": str, "integer": int, "float": float, "map": dict, "list": list, "boolean": bool}


def unpack(data: bytes) -> object:
    return msgpack.unpackb(data, strict_map_key=True)


def sorted_everywhere(text: str) -> dict:
    def pairs(found: list[tuple[str, object]]) -> dict:
        names = [name for name, _ in found]
        assert names == sorted(set(names)), names
        assert None not in [value for _, value in found]
        return dict(found)

    return json.loads(text, object_pairs_hook=pairs)


def fields_of(record: dict, fields: dict, full: bool, where: str = "") -> None:
    """Every field is in the list and of its type; those that always stand are there."""
    for name, value in record.items():
        assert name in fields, f"{where}{name} is in no list"
        assert full or fields[name].classic, f"{where}{name} is not classic"
        kind = TYPES[fields[name].type.split(",")[0].split(" ")[0]]
        assert type(value) is kind, (where + name, value)
    for name, one in fields.items():
        if not one.optional and (full or one.classic):
            assert name in record, f"{where}{name} is missing"


def check(out: dict[int, bytes], full: bool, records: bool) -> dict:
    """All four forms of one event tell the same; the record."""
    text = out[TEXT].decode("utf-8")
    assert text.endswith("\n") and text.count("\n") == 1
    stamp, tag, body = text[:-1].split("\t")
    record = sorted_everywhere(body)
    # The one layout: what json.dumps would write, but for the zeros that end a number.
    raw = json.loads(body, parse_float=lambda s: RawNumber(s))
    assert dump(raw) == body
    assert tag in [event.tag_of(p, "record" if records else "tx") for p in event.PROTOCOLS]
    whole = json.loads(out[JSON])
    assert whole.pop("tag") == tag
    exact = whole.pop("time")
    assert exact[:19] + "+00:00" == stamp and len(exact) == 27 and exact.endswith("Z")
    assert whole == record
    got_tag, seconds, packed = unpack(out[PACK])
    assert got_tag == tag and packed == record
    assert json.dumps(packed, sort_keys=True) == json.dumps(record, sort_keys=True)  # 1 is not 1.0
    assert time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(seconds)) == stamp
    again = unpack(out[PACK_TIME])
    assert again[0] == tag and again[2] == record
    assert again[1].code == 0 and int.from_bytes(again[1].data[:4], "big") == seconds
    fields_of(record, FLAT if records else FIELDS, full)
    for side in ("query", "reply"):
        for one in record.get(side, ()):
            fields_of(one, NESTED, full, f"{side}.")
        if side in record.get("edns", {}):
            fields_of(record["edns"][side], EDNS, full, "edns.")
    for one in record.get("tunnels", ()):
        fields_of(one, TUNNELS, full, "tunnels.")
    for name in ("malformed", "dso"):
        assert set(record.get(name, {})) <= {"query", "reply"}
    return record


class RawNumber(float):
    def __new__(cls, text: str) -> RawNumber:
        made = super().__new__(cls, text)
        made.text = text
        return made


def dump(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)}: {dump(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dump, value)) + "]"
    if isinstance(value, RawNumber):
        return value.text
    return json.dumps(value, ensure_ascii=False)


# --- any exchange --------------------------------------------------------------------------------

names = st.one_of(
    st.just(b"\xc0\x0c"), st.just(b"\0"),
    st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=5).map(
        lambda parts: build.labels(*parts)),
    st.just(build.labels(*[b"\xff" * 63] * 3, b'"' * 61)), st.just(build.labels(*["x"] * 127)))
rdata = st.one_of(
    st.tuples(st.just(1), st.binary(min_size=4, max_size=4)),
    st.tuples(st.just(28), st.binary(min_size=16, max_size=16)),
    st.tuples(st.just(16), st.binary(max_size=40).map(lambda b: bytes([len(b)]) + b)),
    st.tuples(st.just(41), st.lists(st.tuples(
        st.sampled_from([3, 8, 10, 15, 12]), st.one_of(
            st.binary(max_size=130), st.just(b"\0\x12" + b'"\\\xff' * 40),
            st.just(b"\0\2\x80\x80" + b"\xfe" * 16))), max_size=9).map(
        lambda options: b"".join(code.to_bytes(2, "big") + len(v).to_bytes(2, "big") + v
                                 for code, v in options))),
    st.tuples(st.integers(0, 65535), st.binary(max_size=30)))
numbers16, numbers32 = st.integers(0, 65535), st.integers(0, 2**32 - 1)
record = st.builds(lambda name, pair, klass, ttl: build.record(
    name, pair[0], pair[1], rdclass=klass, ttl=ttl), names, rdata,
    st.one_of(st.just(1), numbers16), numbers32)


@st.composite
def messages(draw, reply: bool) -> bytes:
    questions = draw(st.lists(st.builds(
        build.question, st.one_of(st.just(b"\7Example\3com\0"), names.filter(
            lambda n: n[0] != 0xC0)), numbers16, numbers16), max_size=2))
    sections = [draw(st.lists(record, max_size=4)) for _ in range(3)]
    counts = [len(questions), *map(len, sections)]
    counts[3] += draw(st.sampled_from([0, 0, 0, 1]))
    flags = draw(numbers16) & 0x7FFF | (0x8000 if reply else 0)
    if draw(st.integers(0, 9)) == 0:
        return dso(*draw(st.lists(st.tuples(numbers16, st.binary(max_size=300)), max_size=9)),
                   reply=reply)
    return (build.header(1, flags, counts) + b"".join(questions) + b"".join(
        r for section in sections for r in section) + draw(st.sampled_from([b"", b"", b"?"])))


addresses4 = st.integers(0, 2**32 - 1).map(lambda n: str(ipaddress.IPv4Address(n)))
addresses6 = st.integers(0, 2**128 - 1).map(lambda n: str(ipaddress.IPv6Address(n)))
# Times as int64 nanoseconds, from 1970 to 2106 and a little more.
times = st.integers(0, 2**32 * NS - 1)
sensors = st.one_of(st.just("sensor-1"), st.text(min_size=1, max_size=60).filter(
    lambda s: not any(0xD800 <= ord(c) < 0xE000 for c in s)))


@st.composite
def levels(draw) -> dict:
    """One level of encapsulation."""
    level = {"type": draw(st.sampled_from(ENCAPSULATIONS))}
    if draw(st.booleans()):
        level["id"] = draw(numbers32)
    if draw(st.booleans()):
        family = draw(st.sampled_from([addresses4, addresses6]))
        for end in ("source", "destination"):
            level[end] = draw(family)
    return level


def dso(*values: tuple[int, bytes], reply: bool = False, id: int = 7) -> bytes:
    """A DSO message (RFC 8490) of these TLVs."""
    return build.header(id, 0xB000 if reply else 0x3000, (0, 0, 0, 0)) + b"".join(
        kind.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data for kind, data in values)


@st.composite
def exchanges(draw) -> dict:
    status = draw(st.sampled_from(event.STATUSES))
    one_sided = {"no_reply": "query", "no_query": "reply", "further_reply": "reply",
                 "one_way": draw(st.sampled_from(["query", "reply"]))}.get(status)
    family = draw(st.sampled_from([addresses4, addresses6]))
    query_time = draw(times)
    transfer = draw(st.tuples(st.booleans(), *[st.integers(0, 2**64 - 1)] * 3))
    return {
        "query": None if one_sided == "reply" else draw(messages(False)),
        "reply": None if one_sided == "query" else draw(messages(True)),
        "client": draw(family), "client_port": draw(numbers16), "server": draw(family),
        "server_port": draw(numbers16), "ident": draw(numbers16), "status": status,
        "vlan": draw(st.lists(st.integers(0, 4095), max_size=16)), "query_time": query_time,
        "reply_time": draw(st.one_of(times.filter(lambda t: abs(t - query_time) < 2**53),
                                     st.integers(0, 60 * NS).map(
                                         lambda d: min(query_time + d, 2**32 * NS - 1)))),
        "repeats": draw(numbers16), "transport": draw(st.sampled_from([6, 17])),
        "protocol": draw(st.sampled_from(event.PROTOCOLS)),
        "tunnels": draw(st.one_of(st.just([]), st.lists(levels(), max_size=8))),
        "transfer": transfer if one_sided != "query" and draw(st.booleans()) else None,
    }


# When the run began, and where in it the event stands: frame's number, index, clock if it is late.
numbers64 = st.integers(0, 2**64 - 1)
places = st.tuples(numbers64, st.tuples(numbers64, numbers64, st.just(0) | numbers64))


def id_of(sensor: str, run: int, place: tuple[int, int, int]) -> str:
    number, index, late = place
    return (f"{sensor}:{run:x}:{number >> 56}:{number % 2**56}:{index}"
            + (f"@{late:016x}" if late else ""))


@settings(max_examples=120, deadline=None)
@given(exchanges(), st.booleans(), sensors, st.sampled_from([16384, 262144]),
       st.none() | places)
def test_every_form_of_any_exchange(x, full, sensor, max_size, placed):
    run, place = placed or (None, (1, 0, 0))
    writer = doors.Writer(full=full, formats=range(4), max_size=max_size, sensor=sensor, run=run)
    x["place"] = place
    (out,), omitted = writer.events(**x)
    assert all(len(data) <= max_size for data in out.values())
    found = check(out, full, False)
    name = placed and id_of(sensor, run, place)
    assert found.get("event_id") == name
    assert found["client_addr"] == text_of(x["client"])
    assert found["server_addr"] == text_of(x["server"])
    assert (found["client_port"], found["server_port"], found["tx_id"]) == (
        x["client_port"], x["server_port"], x["ident"])
    assert found["status"] == x["status"]
    for side in ("query", "reply"):
        assert (side in found) == (x[side] is not None) == (f"{side}_ts" in found)
        if side in found:
            want = x[f"{side}_time"]
            assert f'"{side}_ts": {want // NS}.{want % NS // 1000:06d}' in out[TEXT].decode()
            assert found[f"{side}_ts"] == want // 1000 / 10**6
    if full:
        assert found.get("omitted", 0) == omitted
        assert found["sensor"] == sensor
        assert found.get("vlan", []) == x["vlan"]
        assert found["proto"] == {6: "tcp", 17: "udp"}[x["transport"]]
        assert found.get("tunnels", []) == [
            {name: value if name in ("id", "type") else text_of(value)
             for name, value in level.items()} for level in x["tunnels"]]
        assert tuple(found[n] for n in ("complete", "messages", "records", "bytes")
                     if n in found) == (x["transfer"] or ())
        waited = x["query"] is not None and x["status"] != "one_way"
        assert found.get("retransmits") == (x["repeats"] if waited else None)
        both = x["query"] is not None and x["reply"] is not None
        assert ("latency" in found) == (both and x["reply_time"] >= x["query_time"])
    assert out[TEXT].split(b"\t")[1].decode() == event.tag_of(x["protocol"], "tx")
    # The time of the event is the reply's, without one the query's.
    moment = x["query_time"] if x["reply"] is None else x["reply_time"]
    assert unpack(out[PACK])[1] == moment // NS
    extension = unpack(out[PACK_TIME])[1]
    assert extension == EventTime.from_unix_nano(moment)
    for side in ("query", "reply"):
        if x[side] is not None:
            flat = {**x, "query": None, "reply": None, side: x[side]}
            events, _ = writer.events(**flat, records=True)
            for one in events:
                got = check(one, full, True)
                assert got["msg_type"] == side and got.get("event_id") == name
                assert not any(isinstance(v, list | dict) for v in got.values())
            if not omitted:
                assert len(events) == len(found[side])
            if full and events:
                assert got["ts_ns"] == x[f"{side}_time"]
                assert got.get("vlan_path") == (".".join(map(str, x["vlan"])) or None)
                assert got.get("tunnel_path") == (", ".join(map(path, x["tunnels"])) or None)


def path(level: dict) -> str:
    """A level as record events have it."""
    text = level["type"] + (f" {level['id']}" if "id" in level else "")
    if "source" in level:
        text += f" {text_of(level['source'])}>{text_of(level['destination'])}"
    return text


def text_of(address: str) -> str:
    """As inet_ntop writes it: RFC 5952, with IPv4-mapped addresses in the mixed form."""
    found = ipaddress.ip_address(address)
    if found.version == 6 and found.ipv4_mapped:
        return f"::ffff:{found.ipv4_mapped}"
    return str(found)


# --- by hand -------------------------------------------------------------------------------------

QUERY = build.query("example.com.", "A", id=7)
REPLY = build.reply(QUERY, "example.com. 60 IN A 192.0.2.1")
ENDS = {"client": "10.139.96.169", "client_port": 53684, "server": "210.196.3.183",
        "server_port": 53, "ident": 23904}


def test_the_fields_of_classic_are_exactly_the_originals():
    writer = doors.Writer(full=False, formats=[0])
    (out,), _ = writer.events(query=QUERY, reply=REPLY, **ENDS, vlan=(1,))
    found = json.loads(out[TEXT].split(b"\t")[2])
    assert list(found) == ["client_addr", "client_port", "query", "query_ts", "reply", "reply_ts",
                           "server_addr", "server_port", "status", "tx_id"]
    assert [list(r) for r in found["reply"]] == [["name", "section", "type"],
                                                 ["data", "name", "section", "type"]]
    events, _ = writer.events(reply=REPLY, **ENDS, vlan=(1,), records=True)
    assert [list(json.loads(one[TEXT].split(b"\t")[2])) for one in events] == [
        ["client_addr", "client_port", "msg_type", "name", "section", "server_addr", "server_port",
         "tx_id", "type"],
        ["client_addr", "client_port", "data", "msg_type", "name", "section", "server_addr",
         "server_port", "tx_id", "type"]]


def test_the_whole_line_of_the_readme():
    query = build.query("bf-pro-front.cloudapp.net.", "A", id=23904)
    reply = build.reply(query, "bf-pro-front.cloudapp.net. 60 IN A 23.100.102.231")
    (out,), _ = doors.Writer(full=False, formats=[0]).events(
        query=query, reply=reply, **ENDS, query_time=1444531212628222999,
        reply_time=1444531212643494000)
    assert out[TEXT].decode() == (
        "2015-10-11T02:40:12+00:00\tdns-gazer.dns.tx\t"
        '{"client_addr": "10.139.96.169", "client_port": 53684, "query": '
        '[{"name": "bf-pro-front.cloudapp.net.", "section": "question", "type": "A"}], '
        '"query_ts": 1444531212.628222, "reply": '
        '[{"name": "bf-pro-front.cloudapp.net.", "section": "question", "type": "A"}, '
        '{"data": "23.100.102.231", "name": "bf-pro-front.cloudapp.net.", "section": "answer", '
        '"type": "A"}], "reply_ts": 1444531212.643494, "server_addr": "210.196.3.183", '
        '"server_port": 53, "status": "success", "tx_id": 23904}\n')


def one(query=None, reply=None, *, full=True, records=False, **more):
    """The fields of one event, or of the first record's."""
    writer = doors.Writer(full=full, formats=range(4))
    events, _ = writer.events(query=query, reply=reply, **ENDS, records=records, **more)
    return check(events[0], full, records)


def test_an_update_has_sections_of_its_own():
    """RFC 2136, section 2: zone, prerequisite, update, additional; in either detail."""
    name = build.labels("www", "example")
    wire = (build.header(1, 0x2800, (1, 1, 1, 1)) + build.question(build.labels("example"), 6)
            + build.record(name, 255, b"", rdclass=255) + build.record(name, 1, bytes(4))
            + build.record(b"\0", 41, b"", rdclass=1232))
    for full in (False, True):
        found = one(wire, status="no_reply", full=full)
        assert [r["section"] for r in found["query"]] == [
            "zone", "prerequisite", "update", "additional"]
    assert one(wire, status="no_reply", records=True)["section"] == "zone"


MDNS = (build.header(0, 0x8400, (1, 1, 0, 0))
        + build.question(build.labels("a", "local"), 1, 0x8001)
        + build.record(b"\xc0\x0c", 1, b"\xc0\0\2\1", rdclass=0x8001))


def test_mdns_class_bits():
    """RFC 6762, sections 5.4 and 10.2: the class is shown without its top bit."""
    wire = MDNS
    found = one(reply=wire, status="one_way", protocol="mdns")
    question, answer = found["reply"]
    assert (question["class"], question["unicast"]) == ("IN", True) and "flush" not in question
    assert (answer["class"], answer["flush"], answer["data"]) == ("IN", True, "192.0.2.1")
    assert one(reply=wire, status="one_way", protocol="mdns", records=True)["unicast"] is True
    plain = one(reply=wire, status="no_query")
    assert [r["class"] for r in plain["reply"]] == ["CLASS32769"] * 2
    classic = one(reply=wire, status="one_way", protocol="mdns", full=False)
    assert set(classic["reply"][1]) == {"data", "name", "section", "type"}


def test_a_dso_message():
    found = one(dso((1, bytes.fromhex("00003a9800003a98")), (3, b"\0\0")),
                dso((1, bytes(8)), reply=True), transport=6)
    assert found["dso"] == {"query": "KEEPALIVE 00003a9800003a98, PADDING 0000",
                            "reply": "KEEPALIVE 0000000000000000"}
    assert found["opcode"] == "DSO" and "malformed" not in found
    assert "dso" not in one(dso((1, bytes(8))), status="no_reply", full=False)


def test_vlan_ids_where_only_the_scope_is_known():
    """Of a connection that came in VXLAN and is ended by another's segment: the VNI is no VLAN."""
    assert one(QUERY, status="no_reply", vlan=(5, 6), vnis=(42,))["vlan"] == [5, 6]
    assert "vlan" not in one(QUERY, status="no_reply", vnis=(42, 43))


@pytest.mark.parametrize("address", [
    "::", "::1", "fe80::1", "1111:2222:3333:4444:5555:6666:7777:8888", "2001:db8:0:1:1:1:1:1",
    "1:0:0:2:0:0:0:3", "::ffff:255.255.255.255", "1:2:3:4:5:6:7:8", "ffff:" * 7 + "0"])
def test_addresses_of_each_length_in_both_forms(address):
    writer = doors.Writer(full=True, formats=range(4))
    ends = {**ENDS, "client": address, "server": "1111:2222:3333:4444:5555:6666:7777:8"}
    (out,), _ = writer.events(query=QUERY, reply=REPLY, **ends)
    found = check(out, True, False)
    assert found["client_addr"] == text_of(address)


@pytest.mark.parametrize("ns, text", [
    (0, "0.000000"), (999, "0.000000"), (1000, "0.000001"), (NS - 1, "0.999999"),
    (1444531212628222999, "1444531212.628222"), (4294967295 * NS + 999999999, "4294967295.999999")])
def test_times_are_truncated_to_microseconds(ns, text):
    (out,), _ = doors.Writer(full=True, formats=range(4)).events(query=QUERY, status="no_reply",
                                                                 query_time=ns, **ENDS)
    assert f'"query_ts": {text}, '.encode() in out[TEXT]
    found = check(out, True, False)
    assert found["query_ts"] == float(text) and found["query_ts_ns"] == ns
    assert json.loads(out[JSON])["time"].endswith(f".{text.split('.')[1]}Z")


def test_sensor_ids():
    for sensor in ('a"b\\c', "Zürich 東京 🛰", "\x01\x7f\t\n", "x" * 255, '"' * 255, "\x01" * 255):
        writer = doors.Writer(full=True, formats=range(4), sensor=sensor)
        (out,), _ = writer.events(query=QUERY, reply=REPLY, **ENDS)
        assert check(out, True, False)["sensor"] == sensor


def test_every_subset_of_the_formats():
    forms = doors.Writer(full=True, formats=range(4)).events(query=QUERY, reply=REPLY, **ENDS)[0][0]
    for bits in range(1, 16):
        chosen = [number for number in range(4) if bits >> number & 1]
        writer = doors.Writer(full=True, formats=chosen)
        (out,), _ = writer.events(query=QUERY, reply=REPLY, **ENDS)
        assert out == {number: forms[number] for number in chosen}


@pytest.mark.parametrize("run", [None, 2**64 - 1])
def test_the_worst_of_everything_keeps_to_its_room(run):
    """All that is not a record, at its longest, in an event of the smallest size."""
    options = b"".join(code.to_bytes(2, "big") + b"\0\x80" + b'\0\x12' + b'"' * 126
                       for code in (3, 10, 15, 15, 15, 15))
    options += b"\0\x08\0\x14\0\2\x80\x80" + b"\xfe" * 16
    opt = build.record(b"\0", 41, options, rdclass=65535, ttl=0xFFFF8000)
    query = build.header(1, 0x7FF0, (0, 0, 0, 2)) + opt
    reply = build.header(1, 0xFFFF, (0, 0, 0, 2)) + opt
    writer = doors.Writer(full=True, formats=range(4), max_size=16384, sensor="\x01" * 255,
                          run=run)
    (out,), omitted = writer.events(
        place=[2**64 - 1] * 3, query=query, reply=reply,
        client="1111:2222:3333:4444:5555:6666:7777:8888",
        server="1111:2222:3333:4444:5555:6666:7777:8888", client_port=65535, server_port=65535,
        ident=65535, vlan=[4095] * 16, status="success", query_time=2**62, reply_time=2**62,
        repeats=65535, query_size=65535, reply_size=65535)
    assert all(len(data) <= 16384 for data in out.values())
    found = json.loads(out[TEXT].split(b"\t")[2])
    assert len(found["edns"]["reply"]["extended_errors"]) == 4 and found["vlan"] == [4095] * 16
    if run:
        assert found["event_id"] == id_of("\x01" * 255, run, (2**64 - 1,) * 3)
    assert found["rcode"] == "RCODE4095" and omitted == found.get("omitted", 0)


def heavy(count: int, *, reply: bool, octet: bytes = b"\xff") -> bytes:
    head = build.question(build.labels(*[octet * 63] * 3, octet * 61))
    return build.header(1, 0x8180 if reply else 0x100, (1, count, 0, 0)) + head + build.record(
        b"\xc0\x0c", 1, b"abcd") * count


@pytest.mark.parametrize("max_size", [16384, 50_000, 262144])
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("counts", [(4000, 4000), (10, 4000), (4000, 10), (0, 4000)])
@pytest.mark.parametrize("octet", [b"\xff", b'"', b"x"])
def test_an_event_is_never_larger_than_its_limit(max_size, full, counts, octet):
    query = heavy(counts[0], reply=False, octet=octet)
    reply = heavy(counts[1], reply=True, octet=octet)
    writer = doors.Writer(full=full, formats=range(4), max_size=max_size)
    (out,), omitted = writer.events(query=query, reply=reply, **ENDS)
    assert all(len(data) <= max_size for data in out.values())
    found = check(out, full, False)
    shown = len(found["query"]) + len(found["reply"])
    assert omitted > 0 and shown + omitted == sum(counts) + 2
    if full:
        assert found["omitted"] == omitted
    # No room is wasted: the longest form takes two thirds of what it may.
    assert max(map(len, out.values())) > max_size * (0.6 if octet != b"x" else 0.4)
    # Neither side is crowded out by the other.
    assert len(found["reply"]) > 1 and len(found["query"]) >= 1
    if counts == (4000, 10):
        assert len(found["reply"]) == 11 or max_size == 16384


def test_limits_that_the_fixed_fields_could_pass_are_refused():
    with pytest.raises(ValueError, match="16384 bytes, not 16383"):
        doors.Writer(full=True, formats=[0], max_size=16383)


def test_every_documented_field_occurs():
    """None in the list that no event has."""
    opt = build.record(b"\0", 41, b"\0\3\0\1x" + b"\0\x08\0\x07\0\1\x18\0\xc0\0\2" + b"\0\x0a\0\x08"
                       + bytes(8) + b"\0\x0f\0\4\0\x12hm", ttl=0x8000)
    query = build.header(1, 0x100, (1, 0, 0, 0)) + build.question(b"\1a\0") + b"?"
    reply = heavy(3000, reply=True)
    writer = doors.Writer(full=True, formats=range(4), max_size=16384, run=1)
    (out,), _ = writer.events(query=query, reply=reply, **ENDS, vlan=[7], reply_time=5,
                              transfer=(True, 1, 2, 3))
    (other,), _ = writer.events(
        query=build.header(1, 0x100, (0, 0, 0, 1)) + opt, status="no_reply", **ENDS)
    found, second = check(out, True, False), check(other, True, False)
    level = {"type": "vxlan", "id": 5, "source": "192.0.2.1", "destination": "192.0.2.2"}
    third = one(dso((1, bytes(8))), status="no_reply", tunnels=[level], lossy=True)
    assert third["lossy"] is True and "lossy" not in found
    assert third["tunnels"] == [level] and set(level) == set(TUNNELS)
    assert found.keys() | second.keys() | third.keys() == FIELDS.keys()
    fourth = one(reply=MDNS, status="one_way", protocol="mdns")
    assert {k for side in (found["query"], found["reply"], fourth["reply"])
            for entry in side for k in entry} == NESTED.keys()
    assert second["edns"]["query"].keys() == EDNS.keys()
    events, _ = writer.events(reply=reply, **ENDS, vlan=[7], records=True, tunnels=[level])
    events += writer.events(reply=MDNS, **ENDS, records=True, protocol="mdns")[0]
    assert {k for event in events for k in check(event, True, True)} == FLAT.keys()


def test_event_time_stands_still_behind_its_end():
    """Fluentd's EventTime has 32 bits of seconds; in 2106 it must not begin again at 1970."""
    for second, nanosecond, shown in (
        ((1 << 32) - 1, 5, (0xFFFFFFFF, 5)),
        (1 << 32, 5, (0xFFFFFFFF, 999_999_999)),
        ((1 << 32) + 1000, 0, (0xFFFFFFFF, 999_999_999)),
    ):
        (out,), _ = doors.Writer(full=True, formats=range(4)).events(
            query=QUERY, status="no_reply", query_time=second * NS + nanosecond, **ENDS)
        extension = unpack(out[PACK_TIME])[1]
        assert tuple(int.from_bytes(extension.data[i : i + 4]) for i in (0, 4)) == shown
        assert unpack(out[PACK_TIME])[2]["query_ts_ns"] == second * NS + nanosecond
        assert unpack(out[PACK])[1] == second


def test_a_record_event_keeps_to_the_limit():
    """One record that fills all the room there is: shown whole, or left out."""
    for octets in range(3500, 4200, 7):
        text = b"\xff" * octets
        rdata = b"".join(bytes([len(part)]) + part
                         for part in (text[i : i + 255] for i in range(0, octets, 255)))
        wire = (b"\0\1\x80\0\0\0\0\1\0\0\0\0" + b"\0\0\x10\0\1\0\0\0\0"
                + len(rdata).to_bytes(2) + rdata)
        for full in (False, True):
            writer = doors.Writer(full=full, formats=range(4), max_size=16384, sensor="s" * 255)
            events, _ = writer.events(reply=wire, records=True, reply_time=NS, **ENDS)
            assert all(len(form) <= 16384 for out in events for form in out.values())
