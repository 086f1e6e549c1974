"""The oracle's rules, one tiny capture each, and the comparison.

It is what the pipeline is held against, so it is itself held against what we did not write: here
the line that the README promises, in test_oracle_reading.py dnspython and tshark.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.oracle import build, compare, events, message

NS = 1_000_000_000
T0 = 1_700_000_000 * NS
CLIENT, SERVER = "198.51.100.7", "192.0.2.53"
CAPTURES = Path(__file__).parent / "captures"
README_LINE = (
    '2015-10-11T02:40:12+00:00\tdns-gazer.dns.tx\t{"client_addr": "10.139.96.169", "client_port": '
    '53684, "query": [{"name": "bf-pro-front.cloudapp.net.", "section": "question", "type": "A"}], '
    '"query_ts": 1444531212.628222, "reply": [{"name": "bf-pro-front.cloudapp.net.", "section": '
    '"question", "type": "A"}, {"data": "23.100.102.231", "name": "bf-pro-front.cloudapp.net.", '
    '"section": "answer", "type": "A"}], "reply_ts": 1444531212.643494, "server_addr": '
    '"210.196.3.183", "server_port": 53, "status": "success", "tx_id": 23904}'
)
README_RECORD = (
    '2015-10-11T02:40:12+00:00\tdns-gazer.dns.record\t{"client_addr": "10.139.96.169", '
    '"client_port": 53684, "data": "23.100.102.231", "msg_type": "reply", "name": '
    '"bf-pro-front.cloudapp.net.", "section": "answer", "server_addr": "210.196.3.183", '
    '"server_port": 53, "tx_id": 23904, "type": "A"}'
)


def ask(wire: bytes, **options) -> bytes:
    """The frame of a query; `port` is the client's."""
    port = options.pop("port", 4000)
    return build.frame(build.udp(CLIENT, port, SERVER, 53, wire), **options)


def tell(wire: bytes, **options) -> bytes:
    """The frame of a reply."""
    port = options.pop("port", 4000)
    return build.frame(build.udp(SERVER, 53, CLIENT, port, wire), **options)


def run(tmp_path: Path, packets: list[tuple[float, bytes]], **rules) -> events.Reading:
    """`packets` are (seconds after T0, frame)."""
    path = tmp_path / "c.pcap"
    build.write_pcap(path, [(T0 + round(at * NS), data) for at, data in packets], nanoseconds=True)
    return events.expected(path, **rules)


def outcome(reading: events.Reading) -> list[tuple[str, str]]:
    """(status, first name asked or told) of each transaction, in order."""
    out = []
    for event in reading.events:
        if event.tag == events.TX:
            entries = event.record.get("query") or event.record.get("reply") or [{"name": "-"}]
            out.append((event.record["status"], entries[0]["name"]))
    return out


A = build.query("a.example.", id=1)
B = build.query("b.example.", id=1)
RA, RB = build.reply(A, "a.example. 60 IN A 192.0.2.1"), build.reply(B)


# ------------------------------------------------------------------------------------ the lines


def test_the_readme_line_from_packets_made_by_hand(tmp_path):
    query = build.query("bf-pro-front.cloudapp.net.", id=23904)
    reply = build.reply(query, "bf-pro-front.cloudapp.net. 10 IN A 23.100.102.231")
    client, server = ("10.139.96.169", 53684), ("210.196.3.183", 53)
    build.write_pcap(tmp_path / "c.pcap", [
        (1444531212_628222000, build.frame(build.udp(*client, *server, query))),
        (1444531212_643494000, build.frame(build.udp(*server, *client, reply)))])
    assert compare.expected_lines(tmp_path / "c.pcap") == [README_LINE]
    lines = compare.expected_lines(tmp_path / "c.pcap", records=True)
    assert len(lines) == 4
    assert lines[1] == README_LINE
    assert lines[3] == README_RECORD
    assert '"msg_type": "query"' in lines[0]
    assert '"msg_type": "reply"' in lines[2]
    assert '"data"' not in lines[2]


@pytest.mark.skipif(not (CAPTURES / "captured.pcap").exists(), reason="no captured.pcap here")
def test_the_readme_line_from_the_capture_that_ships():
    assert compare.expected_lines(CAPTURES / "captured.pcap") == [README_LINE]
    assert README_RECORD in compare.expected_lines(CAPTURES / "captured.pcap", records=True)


def test_times_are_truncated_and_printed_in_full(tmp_path):
    reading = run(tmp_path, [(0.999999999, ask(A)), (1.5, tell(RA))], detail="full")
    text = compare.line(reading.events[0])
    assert '"query_ts": 1700000000.999999, ' in text
    assert '"reply_ts": 1700000001.500000, ' in text
    assert '"latency": 0.500000001, ' in text
    assert text.startswith("2023-11-14T22:13:21+00:00\t")


def test_full_detail(tmp_path):
    query = build.query("a.example.", id=9, edns=1232, do=True)
    reply = build.reply(query, "a.example. 77 IN A 192.0.2.1", rcode="BADCOOKIE",
                        flags="QR AA RD AD")
    reading = run(tmp_path, [(0, ask(query, vlan=(0x2064, 7))), (1, ask(query, vlan=(100, 7))),
                             (2, tell(reply, vlan=(100, 7)))], detail="full")
    record = reading.events[0].record
    assert record["rcode"] == "BADCOOKIE"
    assert record["flags"] == "aa rd ad"
    assert record["opcode"] == "QUERY"
    assert record["vlan"] == [100, 7]
    assert record["retransmits"] == 1
    assert (record["query_size"], record["reply_size"]) == (len(query), len(reply))
    assert record["query_ts_ns"] == T0
    assert compare.to_json(record["latency"]) == "2.000000000"
    assert record["reply"][1] == {"class": "IN", "data": "192.0.2.1", "name": "a.example.",
                                  "section": "answer", "ttl": 77, "type": "A"}
    assert record["query"][1] == {"data": "FLAGS=DO UDPSIZE=1232", "name": ".",
                                  "section": "additional", "type": "OPT"}


def test_a_reply_before_its_query_by_its_own_time_has_no_latency(tmp_path):
    reading = run(tmp_path, [(0.5, ask(A)), (0.2, tell(RA))], detail="full")
    assert outcome(reading) == [("success", "a.example.")]
    assert "latency" not in reading.events[0].record


# ------------------------------------------------------------------------------------- matching


def test_a_repeated_query_is_no_new_transaction(tmp_path):
    reading = run(tmp_path, [(0, ask(A)), (1, ask(A)), (2, tell(RA))])
    assert outcome(reading) == [("success", "a.example.")]
    assert reading.events[0].record["query_ts"].ns == T0
    assert reading.counts["repeated"] == 1


def test_the_timeout_runs_from_the_first_query(tmp_path):
    reading = run(tmp_path, [(0, ask(A)), (50, ask(A)), (61, tell(RA))])
    assert outcome(reading) == [("no_reply", "a.example."), ("no_query", "a.example.")]


@pytest.mark.parametrize("at, status", [(59.999999999, "success"), (60, "no_reply")])
def test_a_query_waits_less_than_the_timeout(tmp_path, at, status):
    assert outcome(run(tmp_path, [(0, ask(A)), (at, tell(RA))]))[0] == (status, "a.example.")


def test_everything_seen_twice(tmp_path):
    reading = run(tmp_path, [(0, ask(A)), (0, ask(A)), (1, tell(RA)), (1, tell(RA))], records=True)
    assert outcome(reading) == [("success", "a.example.")]
    assert reading.counts["duplicates"] == 1
    assert [e.tag == events.TX for e in reading.events] == [False, False, True] + [False] * 4


@pytest.mark.parametrize("after, statuses", [(4.999999999, ["success"]),
                                             (5, ["success", "no_query"])])
def test_a_duplicate_is_one_within_the_window(tmp_path, after, statuses):
    reading = run(tmp_path, [(0, ask(A)), (1, tell(RA)), (1 + after, tell(RA))])
    assert [status for status, _ in outcome(reading)] == statuses


def test_a_new_query_after_the_answer_is_a_new_transaction(tmp_path):
    reading = run(tmp_path, [(0, ask(A)), (1, tell(RA)), (2, ask(A)), (3, tell(RA))])
    assert outcome(reading) == [("success", "a.example.")] * 2


def test_a_no_query_twice_is_two(tmp_path):
    reading = run(tmp_path, [(0, tell(RA)), (1, tell(RA))])
    assert outcome(reading) == [("no_query", "a.example.")] * 2


def test_queries_under_one_key_are_told_apart_by_their_question(tmp_path):
    reading = run(tmp_path, [(0, ask(A)), (1, ask(B)), (2, tell(RB)), (3, tell(RA))])
    assert outcome(reading) == [("success", "b.example."), ("success", "a.example.")]


@pytest.mark.parametrize("other", [
    build.query("a.example.", "AAAA", id=1), build.query("a.example.", "A", rdclass="CH", id=1),
    build.query("a\\.example.", "A", id=1)])
def test_name_type_and_class_are_the_question(tmp_path, other):
    reading = run(tmp_path, [(0, ask(A)), (1, tell(build.reply(other)))])
    assert [status for status, _ in outcome(reading)] == ["no_query", "no_reply"]


def test_case_does_not_matter_in_a_question(tmp_path):
    mixed = build.query("A.eXample.", id=1)
    reading = run(tmp_path, [(0, ask(mixed)), (0, ask(A)), (1, tell(RA))])
    assert outcome(reading) == [("success", "A.eXample.")]
    assert reading.counts["repeated"] == 1


def test_a_reply_without_question_answers_the_oldest(tmp_path):
    refused = build.header(1, 0x8005, (0, 0, 0, 0))
    reading = run(tmp_path, [(0, ask(A)), (1, ask(B)), (2, tell(refused)), (3, tell(RB)),
                             (4, tell(refused)), (9, tell(refused))])
    assert outcome(reading) == [("success", "a.example."), ("success", "b.example."),
                                ("no_query", "-")]
    assert reading.events[0].record["reply"] == []
    assert reading.counts["duplicates"] == 1


@pytest.mark.parametrize("frame", [
    tell(RA, vlan=(101,)), tell(RA), tell(RA, vlan=(100, 100)), tell(RA, vlan=(100,), port=4001)])
def test_other_tags_or_ports_are_other_keys(tmp_path, frame):
    reading = run(tmp_path, [(0, ask(A, vlan=(100,))), (1, frame)])
    assert [status for status, _ in outcome(reading)] == ["no_query", "no_reply"]


def test_priority_bits_do_not_part_two_sides(tmp_path):
    reading = run(tmp_path, [(0, ask(A, vlan=(0xE064,))), (1, tell(RA, vlan=(100,)))])
    assert outcome(reading) == [("success", "a.example.")]


def test_qr_alone_says_who_is_client(tmp_path):
    query = build.frame(build.udp(SERVER, 53, CLIENT, 4000, A))
    reply = build.frame(build.udp(CLIENT, 4000, SERVER, 53, RA))
    reading = run(tmp_path, [(0, query), (1, reply)])
    assert outcome(reading) == [("success", "a.example.")]
    assert reading.events[0].record["client_port"] == 53


def test_at_the_limit_the_oldest_leaves(tmp_path):
    third = build.query("c.example.", id=3)
    reading = run(tmp_path, [(0, ask(A)), (1, ask(B)), (2, ask(third)), (3, tell(RA)),
                             (4, tell(RB))], max_pending=2)
    assert outcome(reading) == [("no_reply", "a.example."), ("no_query", "a.example."),
                                ("success", "b.example."), ("no_reply", "c.example.")]
    assert reading.counts["evicted"] == 1


# ---------------------------------------------------------------------------------------- order


def test_timeouts_stand_where_they_became_due(tmp_path):
    late = build.query("late.example.", id=5)
    reading = run(tmp_path, [(0, ask(A)), (1, ask(B)), (60.5, ask(late)), (60.6, tell(
        build.reply(late))), (61, tell(build.reply(late, rcode="REFUSED"), port=5))])
    assert outcome(reading) == [
        ("no_reply", "a.example."), ("success", "late.example."), ("no_reply", "b.example."),
        ("no_query", "late.example.")]
    assert [e.due for e in reading.events] == sorted(e.due for e in reading.events)
    assert reading.events[0].time_s == T0 // NS
    assert reading.events[0].due[:2] == (T0 + 60 * NS, 1)


def test_frames_that_are_not_dns_move_the_clock(tmp_path):
    web = build.frame(build.udp(CLIENT, 9, SERVER, 80, b""))
    reading = run(tmp_path, [(0, ask(A)), (70, web), (70, tell(RA))])
    assert [status for status, _ in outcome(reading)] == ["no_reply", "no_query"]
    assert reading.counts["frame: other ports"] == 1


def test_what_waits_at_the_end_leaves_in_order_of_query(tmp_path):
    # The second query is half a second older by its own time, yet it came later.
    reading = run(tmp_path, [(1, ask(A)), (0.5, ask(B))])
    assert outcome(reading) == [("no_reply", "a.example."), ("no_reply", "b.example.")]


def test_a_clock_that_jumps_back_a_day(tmp_path):
    reading = run(tmp_path, [(0, ask(A)), (10, ask(B)), (-86400, tell(RA)), (-86350.5, tell(RB)),
                             (-86350, tell(RB))])
    assert outcome(reading) == [("success", "a.example."), ("success", "b.example.")]
    assert reading.clock_jumps == 1
    assert [e.due[0] - T0 for e in reading.events] == [10 * NS, 59_500_000_000]
    assert reading.events[0].time_s == T0 // NS - 86400  # events show the frames' own time


def test_a_leap_to_2106(tmp_path):
    at = 2**32 - 2 - T0 // NS
    reading = run(tmp_path, [(0, ask(A)), (at, tell(RA)), (at + 1, ask(B)), (2, tell(RB))])
    assert [s for s, _ in outcome(reading)] == ["success", "success"]
    assert reading.clock_jumps == 2
    assert compare.line(reading.events[0]).startswith("2106-02-07T06:28:14+00:00\t")


@pytest.mark.parametrize("steps, nows, jumps", [
    ([0, -1.0, -0.5, 0.1], [0, 0, 0, 0.1], 0),  # back by at most a second: stands still
    ([0, -1.000000001, -0.5], [0, 0, 0.500000001], 1),
    ([0, 86400, 86401], [0, 86400, 86401], 0),  # a day ahead is still time passing
    ([0, 86400.000000001, 86401], [0, 0, 0.999999999], 1),
    ([0, -0.6, -1.2, -1.1], [0, 0, 0, 0.1], 1),  # small steps back add up
])
def test_the_sensor_clock(steps, nows, jumps):
    clock = events.Clock()
    assert [clock.advance(T0 + round(s * NS)) - T0 for s in steps] == [round(n * NS) for n in nows]
    assert clock.jumps == jumps


# ------------------------------------------------------------------------------------ malformed


def test_what_was_read_before_a_fault_stands(tmp_path):
    name = build.labels("x", "example")
    good = build.record(b"\xc0\x0c", 1, bytes([192, 0, 2, 1]))
    head = build.header(1, 0x8180, (1, 3, 0, 0)) + build.question(name)
    for bad in (b"", build.record(b"\xc0\xff", 1, bytes(4)),
                build.record(b"\xc0\x0c", 16, b"", rdlength=9), b"\x41" + bytes(20)):
        reading = run(tmp_path, [(0, tell(head + good + bad))])
        assert [entry.get("data") for entry in reading.events[0].record["reply"]] == [
            None, "192.0.2.1"]
        assert sum(n for what, n in reading.counts.items() if what.startswith("malformed")) == 1


def test_rdata_that_does_not_fit_is_shown_and_reading_goes_on(tmp_path):
    name = build.labels("x", "example")
    wire = (build.header(1, 0x8180, (1, 2, 0, 0)) + build.question(name)
            + build.record(b"\xc0\x0c", 1, b"\1\2\3")
            + build.record(b"\xc0\x0c", 1, bytes([192, 0, 2, 1])))
    reading = run(tmp_path, [(0, tell(wire))])
    assert [entry.get("data") for entry in reading.events[0].record["reply"]] == [
        None, "\\# 3 010203", "192.0.2.1"]
    assert reading.counts["malformed: rdata: cut off"] == 1


@pytest.mark.parametrize("wire", [
    b"", b"\0" * 11, build.header(1, 0x100, (2, 0, 0, 0)) + build.question(b"\0"),
    build.header(1, 0x100, (1, 0, 0, 0)) + b"\xc0\x0c\0\1\0\1",
    build.header(1, 0x100, (1, 0, 0, 0)) + build.question(b"\x3fx" * 5)])
def test_without_all_its_questions_a_message_gives_nothing(tmp_path, wire):
    reading = run(tmp_path, [(0, ask(wire))], records=True)
    assert reading.events == []
    assert reading.counts["malformed: no event"] == 1


def test_names_of_255_octets_and_one_more():
    def reading(last: int) -> message.Message | None:
        name = build.labels(*[b"x" * 63] * 3, b"x" * last)
        return message.read(build.header() + build.question(name))

    fits = reading(61)
    assert fits is not None
    assert len(fits.records[0].name) == 254
    assert reading(62) is None


def test_the_escapes_of_names():
    wire = build.header() + build.question(build.labels(b'a.\\ "\x00\x7f\xff();@$~', b"b"))
    read = message.read(wire)
    assert read is not None
    assert read.records[0].name == 'a\\.\\\\\\032"\\000\\127\\255();@$~.b.'
    assert message.name_text(()) == "."


# ----------------------------------------------------------------------------------- comparison


def test_diff_finds_what_differs_and_only_that(tmp_path):
    query = build.query("a.example.", id=1, edns=1232, do=True)
    reading = run(tmp_path, [(0, ask(A)), (1, tell(RA)), (2, ask(query, port=1))])
    lines = [compare.line(event) for event in reading.events]
    assert compare.diff(lines, lines) == ""
    richer = [lines[0], lines[1].replace("UDPSIZE=1232", "UDPSIZE=1232 COOKIE=ab")]
    assert richer != lines
    assert compare.diff(lines, richer) == ""
    for old, new, told in [
        ("UDPSIZE=1232", "UDPSIZE=4096", ".query[1].data"),
        ("FLAGS=DO", "FLAGS=", ".query[1].data"), ('"a.example."', '"b.example."', "name"),
        ("1700000001.000000", "1700000001.0", ".reply_ts"),
        ('"tx_id": 1', '"tx_id": "1"', ".tx_id"), ('"success"', '"no_reply"', ".status"),
        (', "tx_id": 1', "", ".tx_id: expected 1, absent"), ('": ', '":', "layout"),
        ("+00:00", "Z", "line[0]"), ("dns.tx", "dns.record", "line[1]"), ("{", "", "not a line"),
        ('"status": "no_reply", "tx_id": 1', '"tx_id": 1, "status": "no_reply"', "layout"),
    ]:
        changed = [line.replace(old, new, 1) for line in lines]
        assert changed != lines, old
        assert told in compare.diff(lines, changed), old
    assert "2 lines expected, are 1" in compare.diff(lines, lines[:1])
    assert "surplus" in compare.diff(lines, [*lines, lines[0]])
    more = [line.replace(', "query": ', ', "edns": {"x": 1}, "query": ') for line in lines]
    assert "edns: not expected" in compare.diff(lines, more)
    assert compare.diff(lines, more, leave_out=["edns"]) == ""


def test_msgpack_readers_get_floats(tmp_path):
    run(tmp_path, [(0, ask(A)), (1.25, tell(RA))])
    ((at, tag, record),) = compare.expected_msgpack(tmp_path / "c.pcap")
    assert (at, tag) == (T0 // NS + 1, "dns-gazer.dns.tx")
    assert record["reply_ts"] == 1700000001.25
    assert type(record["query_ts"]) is float
