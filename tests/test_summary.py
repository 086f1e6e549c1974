"""The account of a run: each balance notices what does not add up, and each line says what it must.

The figures of whole runs are in test_pipeline.py; here the ledger is written by hand.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from gazer import counters
from gazer.config import Config, Events, Forward, Output, OutputKind, Server
from gazer.summary import Account, summary

CONFIG = replace(Config(), outputs=(Output(OutputKind.TEXT, "/x/out"),
                                    Output(OutputKind.MSGPACK, "-"),
                                    Output(OutputKind.MSGPACK, "", Forward((
                                        Server("a:1"), Server("b"))))))


def account(**changes: int) -> Account:
    """A run in which everything happened, and which adds up; `changes` by "kind__counter"."""
    capture = dict.fromkeys(counters.CAPTURE, 0) | {
        "frames": 120, "delivered": 100, "fate.other_port": 7, "fate.other_protocol": 3,
        "fate.tcp_header": 3, "fate.fragment": 5, "ring_dropped": 2, "bytes": 9999,
        "datagrams": 1, "joined": 2, "foreign": 1, "expired_pieces": 2,
    }
    workers = dict.fromkeys(counters.WORKER, 0) | {
        "frames": 100, "datagrams": 80, "segments": 20, "stream_messages": 27,
        "octets": 1000, "octets_framed": 900, "octets_old": 60, "octets_skipped": 40,
        "queries": 57, "replies": 46, "discarded.short_header": 4, "streams_opened": 3,
        "opened": 50, "repeated": 5, "success": 38, "no_reply": 9, "evicted": 3,
        "one_way_queries": 2, "one_way_replies": 1, "further": 1, "continuations": 3,
        "duplicates": 1, "no_query": 2, "transactions": 56, "records": 196,
        "latency.le.64": 20, "latency.le.inf": 18, "rcode.0": 30, "rcode.other": 8,
    }
    sink = {"events": 252, "writes": 3, "settled": 252}
    none = dict.fromkeys(counters.OUTPUT, 0)
    outputs = [none | {"events": 252, "bytes": 50_000, "done": 252},
               none | {"events": 251, "bytes": 40_000, "dropped": 2, "stats": 1, "done": 252},
               none | {"events": 100, "bytes": 20_000, "dropped": 2, "done": 252, "spooled": 150,
                       "spool_found": 30, "delivered": 90, "spool_dropped": 20,
                       "spool_damaged": 10, "spool_events": 60}]
    parts = {"capture": capture, "workers": workers, "sink": sink,
             "out0": outputs[0], "out1": outputs[1], "out2": outputs[2]}
    for path, value in changes.items():
        kind, name = path.split("__")
        name = name.replace("_of_", ".")
        assert name in parts[kind], name
        parts[kind][name] = value
    return Account(capture=capture, workers=workers, sink=sink, outputs=tuple(outputs))


def told(config: Config = CONFIG, *, broken: bool = False, **changes: int) -> str:
    return "\n".join(summary(account(**changes), config, broken=broken))


def test_it_adds_up():
    assert list(account().imbalances()) == []
    assert "add up" not in told()


@pytest.mark.parametrize("change", [
    {"capture__frames": 121}, {"capture__delivered": 99}, {"capture__fate_of_other_port": 6},
    {"capture__fate_of_tcp_header": 9}, {"capture__fate_of_fragment": 4},
    {"capture__joined": 3}, {"capture__foreign": 0}, {"capture__waiting_pieces": 1},
    {"capture__ring_dropped": 0}, {"workers__frames": 101}, {"workers__datagrams": 79},
    {"workers__segments": 21}, {"workers__stream_messages": 28}, {"workers__octets": 999},
    {"workers__octets_buffered": 1}, {"workers__one_way_queries": 1}, {"workers__further": 0},
    {"workers__continuations": 4}, {"workers__transferring": 1}, {"workers__queries": 54},
    {"workers__replies": 42}, {"workers__discarded_of_short_header": 5},
    {"workers__opened": 49}, {"workers__repeated": 4}, {"workers__success": 37},
    {"workers__no_reply": 10}, {"workers__evicted": 2}, {"workers__pending": 1},
    {"workers__duplicates": 0}, {"workers__no_query": 3}, {"workers__transactions": 51},
    {"workers__records": 199}, {"sink__events": 251}, {"out0__events": 251},
    {"out1__stats": 0}, {"out0__done": 253},
    {"out1__dropped": 1}, {"out2__spooled": 149}, {"out2__spool_found": 31},
    {"out2__delivered": 91}, {"out2__spool_dropped": 0}, {"out2__spool_damaged": 11},
    {"out2__spool_events": 59}, {"workers__quarantined": 1}, {"workers__lost_pending": 1},
    {"workers__lost_transfers": 1}, {"workers__lost_octets": 1}, {"workers__torn_frames": 1},
    {"workers__torn_events": 1}, {"workers__rcode_of_3": 1}, {"workers__latency_of_le.128": 1},
], ids=lambda change: next(iter(change)))
def test_any_counter_that_is_off_by_one_is_found(change):
    assert list(account(**change).imbalances())
    assert "the account does not add up: " in told(**change)


def test_every_fate_and_anomaly_is_in_the_balance():
    """A reason that someone adds later must not be forgotten here."""
    for name in counters.CAPTURE:
        if name.startswith("fate."):
            one = account()
            one.capture[name] += 1
            assert list(one.imbalances()), name
            one.capture["frames"] += 1
            one.capture["joined"] += name == "fate.fragment"
            assert not list(one.imbalances()), name
    for name in counters.WORKER:
        if name.startswith("discarded."):
            one = account()
            one.workers[name] += 1
            assert list(one.imbalances()), name


def test_a_spool_is_judged_when_the_run_is_over():
    """While it goes on, what is on its way into the spool stands in no counter yet."""
    one = live()
    one.outputs[2]["spool_events"] += 7
    assert list(one.imbalances()) and not list(one.imbalances(running=True))


def test_a_fluentd_output_without_a_spool_has_no_line_about_one():
    text = told(out2__events=250, out2__spooled=0, out2__spool_found=0, out2__delivered=0,
                out2__spool_dropped=0, out2__spool_damaged=0, out2__spool_events=0)
    assert "250 events delivered to fluentd at a:1 and 1 more, 2 NOT delivered\n" in text
    assert "spool" not in text and "add up" not in text


def test_a_run_that_broke_off_does_not_pretend():
    text = told(broken=True, sink__events=10)
    assert "add up" not in text
    assert "not in this account" in text


def test_the_lines():
    text = told(replace(CONFIG, events=Events(records=True)))
    assert "120 frames read: 100 DNS, 10 not DNS (" in text
    assert ", 3 not decoded (tcp_header 3), 5 fragments, 2 dropped\n" in text
    assert ("5 fragments: 2 joined (1 datagram put together), 1 foreign, 2 expired\n") in text
    assert ("20 TCP segments: 27 messages on 3 connections; 900 octets of messages, 60 sent again, "
            "40 skipped\n") in text
    assert ("107 messages: 57 queries (5 repeated), 46 replies (1 duplicate, 3 continuing a zone "
            "transfer), 4 unreadable") in text
    assert "4 unreadable (short_header 4)" in text
    assert ("56 transactions: 38 success, 12 no_reply, 2 no_query, 3 one_way, 1 further_reply; "
            "196 records") in text
    assert "252 events written to /x/out\n" in text
    assert ("251 events written to standard output, 2 NOT written; of these 1 about the sensor\n"
            in text)
    more = told(out2__events=102, out2__stats=2)
    assert ("100 events delivered to fluentd at a:1 and 1 more, 150 spooled, 2 NOT delivered\n"
            in text)
    assert "150 spooled, 2 NOT delivered; of these 2 about the sensor\n" in more
    assert "add up" not in more
    assert ("100 events delivered to fluentd at a:1 and 1 more, 150 spooled, 2 NOT delivered\n"
            "its spool: 90 delivered (30 of an earlier run were there), 30 LOST, 60 events wait "
            "there for the next start") in text
    assert "records" not in told()


@pytest.mark.parametrize("change, line", [
    ({"capture__clock_jumps": 1}, "time jumped once"),
    ({"capture__clock_jumps": 3}, "time jumped 3 times"),
    ({"workers__incomplete": 1}, "1 zone transfer was not seen to the end"),
    ({"workers__gaps": 2, "workers__broken_messages": 1},
     "2 holes in TCP streams; 1 message known to be lost or broken off"),
    ({"workers__streams_evicted": 9}, "limit reached: 9 TCP connections were forgotten early"),
    ({"workers__crowded": 2}, "limit reached: no room in TCP streams 2 times"),
    ({"workers__transfers_evicted": 1}, "limit reached: 1 zone transfer was ended early"),
    ({"capture__evicted_pieces": 1}, "limit reached: 1 fragment was thrown away unjoined"),
    ({"capture__bad_time": 4}, "4 frames have an impossible timestamp"),
    ({"capture__snapped": 5}, "5 frames were cut"),
    ({"workers__gaps": 1}, "1 hole in TCP streams; 0 messages known to be lost or broken off"),
    ({"workers__broken_messages": 1}, "1 message in TCP streams was broken off"),
    ({"workers__broken_messages": 2}, "2 messages in TCP streams were broken off"),
    ({"workers__negative_latency": 1}, "1 reply is older than its query: no latency there"),
    ({"workers__negative_latency": 6}, "6 replies are older than their query"),
    ({"workers__answered_forgotten": 7}, "limit reached: 7 answered transactions"),
    ({"workers__lossy": 1}, "1 no_reply or no_query has no weight: frames were being lost"),
    ({"workers__lossy": 4}, "4 no_reply and no_query have no weight"),
    ({"workers__quarantined": 2}, "2 frames were skipped, having killed a worker twice"),
    ({"workers__lost_pending": 1, "workers__lost_octets": 7},
     "lost with workers that died: 1 waiting query, 7 octets of streams"),
    ({"workers__lost_transfers": 2}, "lost with workers that died: 2 zone transfers"),
    ({"workers__torn_frames": 1, "workers__torn_events": 3},
     "a worker died in the middle of 1 frame, of which there are 3 events"),
    ({"workers__omitted": 8}, "limit reached: 8 records left out"),
])
def test_remarks(change, line):
    assert line in told(**change)
    assert line not in told()


def test_evicted_queries_are_a_limit():
    assert "limit reached: 3 queries left early as no_reply" in told()


# --- live runs -----------------------------------------------------------------------------------


def live(**changes: int) -> Account:
    """The same, over an interface."""
    of_kernel = {"kernel_received": 150, "kernel_dropped": 23, "kernel_lost": 7,
                 "interface_dropped": 4}
    return replace(account(**{f"capture__{n}": v for n, v in of_kernel.items()} | changes),
                   live=True)


def test_a_live_run_begins_with_what_the_kernel_received():
    assert list(live().imbalances()) == []
    text = "\n".join(summary(live(), CONFIG))
    assert ("150 frames received by the kernel: 120 read, 23 dropped for want of room in its "
            "buffer, 7 lost with the process that was to read them; 4 more dropped by the "
            "interface\n") in text
    few = "\n".join(summary(live(capture__kernel_lost=0, capture__kernel_received=143,
                                 capture__interface_dropped=0), CONFIG))
    assert ("143 frames received by the kernel: 120 read, 23 dropped for want of room in its "
            "buffer\n") in few
    assert "kernel" not in told()


@pytest.mark.parametrize("name", ["kernel_received", "kernel_dropped", "kernel_lost"])
@pytest.mark.parametrize("step", [-1, 1])
def test_the_kernel_s_account_is_exact_at_the_end(name, step):
    off = live()
    off.capture[name] += step
    assert list(off.imbalances())
    assert not list(replace(off, live=False).imbalances())


def test_what_is_in_flight_is_part_of_a_running_account():
    running = live()
    running.capture["kernel_received"] += 5     # in the kernel's buffer
    running.capture["frames"] += 1              # in hand
    running.capture["kernel_received"] += 1
    running.workers["frames"] -= 3              # in the frame rings
    running.workers["datagrams"] -= 3
    running.workers["stream_messages"] += 3
    running.workers["records"] += 11            # in the event rings
    assert running.in_flight() == {
        "kernel": 5, "capture": 1, "frames": 3, "events": 11, "output 0": 0, "output 1": 0,
        "output 2": 0}
    assert list(running.imbalances(running=True)) == []
    assert len(list(running.imbalances())) == 4
    assert set(live().in_flight().values()) == {0}


@pytest.mark.parametrize("change, where", [
    ({"capture__kernel_received": 149}, "kernel"), ({"capture__frames": 119}, "capture"),
    ({"workers__frames": 101}, "frames"), ({"sink__events": 253}, "events")])
def test_nobody_can_take_more_than_there_is(change, where):
    found = list(live(**change).imbalances(running=True))
    assert f"{where}: 1 more were taken than given" in found
