"""Where a zone transfer ends: judged by dnspython's Inbound, which applies what it reads to a zone,
by a second reading of the rules in plain Python, and over real transfers.  The table that keeps
open transfers is tests/test_transfer_table.py's."""

from __future__ import annotations

import itertools
import shutil
import struct
import subprocess
from collections import defaultdict
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.tsig
import dns.xfr
import dns.zone
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gazer.workers.transfer_door import Machine
from tests.oracle import build

AXFR, IXFR, ANY = 252, 251, 0
ORIGIN = dns.name.from_text("example.")
CAPTURES = Path(__file__).parent / "captures"


def soa(serial: int) -> str:
    return f"example. 60 IN SOA ns.example. root.example. {serial} 3600 600 86400 60"


def host(i: int) -> str:
    return f"h{i}.example. 60 IN A 192.0.2.{i}"


def zone(*hosts: int) -> list[str]:
    return ["example. 60 IN NS ns.example.", *(host(i) for i in hosts)]


def message(records: list[str], qtype: int | None, *, rcode: int = 0) -> bytes:
    """One message of a transfer, each record by itself; `qtype` None: without a question."""
    made = dns.message.Message(id=7)
    made.flags = dns.flags.QR | dns.flags.AA
    made.set_rcode(rcode)
    if qtype is not None:
        made.question.append(dns.rrset.RRset(ORIGIN, dns.rdataclass.IN,
                                             dns.rdatatype.RdataType(qtype)))
    for line in records:
        name, ttl, rdclass, rdtype, data = line.split(None, 4)
        made.answer.append(dns.rrset.from_text(name, int(ttl), rdclass, rdtype, data))
    return made.to_wire(max_size=65535)


def split(records: list[str], cuts: tuple[int, ...]) -> list[list[str]]:
    ends = [0, *cuts, len(records)]
    return [records[a:b] for a, b in itertools.pairwise(ends)]


def all_splits(records: list[str], first: int = 1) -> list[list[list[str]]]:
    """Every way to cut the records into messages, the first of at least so many."""
    places = range(first, len(records))
    return [split(records, cuts) for n in range(len(places) + 1)
            for cuts in itertools.combinations(places, n)]


def judged(wires: list[bytes], qtype: int, base: list[str], serial: int) -> list[bool]:
    """For each message: does dnspython say that the transfer is done?  It must be at the last."""
    text = "\n".join([soa(serial), *base])
    old = dns.zone.from_text(text, ORIGIN, relativize=False, check_origin=False)
    done = []
    with dns.xfr.Inbound(old, dns.rdatatype.RdataType(qtype),
                         serial if qtype == IXFR else None) as inbound:
        for wire in wires:
            done.append(inbound.process_message(dns.message.from_wire(
                wire, xfr=True, one_rr_per_rrset=True, keyring=False)))
    return done


def told(wires: list[bytes], qtype: int) -> list[str]:
    machine = Machine(qtype)
    return [machine.feed(wire) for wire in wires]


def check(records: list[str], messages: list[list[str]], qtype: int, base: list[str],
          serial: int, *, ask_again: bool = False) -> None:
    wires = [message(part, qtype if i == 0 or ask_again else None)
             for i, part in enumerate(messages)]
    machine = Machine(qtype)
    found = [machine.feed(wire) == "whole" for wire in wires]
    assert found == judged(wires, qtype, base, serial) == [False] * (len(wires) - 1) + [True]
    assert machine.figures == {
        "result": "whole", "complete": True, "rcode": 0, "messages": len(wires),
        "records": len(records), "bytes": sum(map(len, wires))}


# --- closing: against dnspython ------------------------------------------------------------------


@pytest.mark.parametrize("ask_again", [False, True])
def test_axfr_in_every_split(ask_again):
    """Also a message that holds nothing but the closing SOA, and one of the opening one alone."""
    records = [soa(5), *zone(1, 2, 3, 4), soa(5)]
    splits = all_splits(records)
    assert len(splits) == 64 and any(len(s[-1]) == 1 and len(s[0]) == 1 for s in splits)
    for messages in splits:
        check(records, messages, AXFR, [], 1, ask_again=ask_again)


# From the old serial over each next one: hosts that go, hosts that come.
DELTAS = {
    "one": (1, [(2, [1], [3])]),
    "several": (1, [(2, [1], [3]), (5, [], [4]), (9, [2, 3], [])]),
    "nothing changes": (1, [(2, [], [])]),
    "the serial wraps": (2**32 - 2, [(2**32 - 1, [], [3]), (0, [1], []), (3, [2], [1])]),
}


def incremental(start: int, deltas: list) -> list[str]:
    final = deltas[-1][0]
    records = [soa(final)]
    for serial, gone, new in deltas:
        records += [soa(start), *map(host, gone), soa(serial), *map(host, new)]
        start = serial
    return [*records, soa(final)]


@pytest.mark.parametrize("name", DELTAS)
def test_ixfr_in_every_split(name):
    start, deltas = DELTAS[name]
    records = incremental(start, deltas)
    splits = all_splits(records, first=2)
    step = max(1, len(splits) // 120)
    for messages in splits[::step]:
        check(records, messages, IXFR, zone(1, 2), start)


def test_ixfr_that_answers_with_the_whole_zone():
    records = [soa(9), *zone(1, 5, 6), soa(9)]
    for messages in all_splits(records, first=2):
        check(records, messages, IXFR, zone(1, 2), 3)


def test_ixfr_of_a_client_that_is_up_to_date():
    check([soa(9)], [[soa(9)]], IXFR, zone(1, 2), 9)
    # A newer serial all alone: RFC 1995 has no further message for it, and nor do we wait.
    assert told([message([soa(10)], IXFR)], IXFR) == ["whole"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_zones_and_deltas(data):
    """Each delta is of hosts that are there, so that dnspython can apply it."""
    hosts = data.draw(st.sets(st.integers(1, 30), max_size=10))
    base = zone(*sorted(hosts))
    start = serial = data.draw(st.sampled_from([1, 7, 2**31, 2**32 - 3]))
    deltas = []
    for _ in range(data.draw(st.integers(1, 4))):
        gone = sorted(data.draw(st.sets(st.sampled_from(sorted(hosts)))) if hosts else set())
        new = sorted(data.draw(st.sets(st.integers(31, 60), max_size=5)) - hosts)
        serial = (serial + data.draw(st.integers(1, 1000))) % 2**32
        deltas.append((serial, gone, new))
        hosts = hosts - set(gone) | set(new)
    whole = [soa(serial), *zone(*sorted(hosts)), soa(serial)]
    for qtype, records in ((AXFR, whole), (IXFR, whole), (IXFR, incremental(start, deltas))):
        cuts = data.draw(st.sets(st.integers(2, len(records) - 1), max_size=6))
        check(records, split(records, tuple(sorted(cuts))), qtype, base, start)


# --- closing: against a second reading of the rules ----------------------------------------------

Kind = int | None       # of a record: a SOA's serial, or None for another one


def ends(messages: list[list[Kind]], qtype: int) -> tuple[int | None, bool]:
    """The message that a transfer ends with, and whether it is complete.  All at once, over the
    list of records, where the state machine sees one after the other."""
    flat = [(kind, number) for number, part in enumerate(messages) for kind in part]
    if not flat:
        return None, False
    first, at = flat[0]
    if first is None:
        closing = [n for n, part in enumerate(messages) if part and part[-1] is not None]
        return (closing[0] if closing else None), False
    if qtype != AXFR and len(messages[at]) == 1:
        return at, qtype == IXFR
    soas = [(i, kind, number) for i, (kind, number) in enumerate(flat) if kind is not None]
    if qtype != AXFR and len(flat) > 1 and flat[1][0] is not None:
        soas = [s for s in soas[1::2] if s[1] == first]     # where deletions would begin
        return (soas[0][2], True) if soas else (None, False)
    return (soas[1][2], True) if len(soas) > 1 else (None, False)


RAW = {None: build.record(b"\1a\0", 1, bytes(4))} | {
    s: build.record(b"\1a\0", 6, b"\0\0" + struct.pack("!5I", s, 1, 1, 1, 1)) for s in range(3)}


def raw(kinds: list[Kind], *, flags: int = 0x8400, question: bytes = b"") -> bytes:
    counts = (int(bool(question)), len(kinds), 0, 0)
    return build.header(7, flags, counts) + question + b"".join(RAW[kind] for kind in kinds)


@settings(max_examples=600, deadline=None)
@given(st.lists(st.lists(st.sampled_from([None, 0, 1, 2]), max_size=6), min_size=1, max_size=6),
       st.sampled_from([AXFR, IXFR, ANY]))
def test_any_sequence_of_records(messages, qtype):
    machine = Machine(qtype)
    expected, complete = ends(messages, qtype)
    for number, part in enumerate(messages):
        result = machine.feed(raw(part))
        figures = machine.figures
        assert figures["records"] == sum(map(len, messages[:number + 1]))
        if number == expected:
            assert result == "whole" and figures["complete"] == complete
            break
        assert result == "more" and not figures["complete"]
    else:
        assert expected is None


def test_picked_up_in_the_middle():
    """The rest of an AXFR ends at its SOA; in the middle of an IXFR a SOA is no end."""
    for qtype in (AXFR, IXFR, ANY):
        machine = Machine(qtype)
        assert machine.feed(raw([None] * 3)) == "more"
        assert machine.feed(raw([None, 1, None])) == "more"
        assert machine.feed(raw([])) == "more"
        assert machine.feed(raw([None, 1])) == "whole"
        assert not machine.figures["complete"]
    assert told([raw([None, 1])], ANY) == ["whole"]


def test_a_lone_soa_that_nobody_is_known_to_have_asked_for():
    """It is an IXFR's whole answer or an AXFR's last message; so it ends, and is not complete."""
    machine = Machine(ANY)
    assert machine.feed(raw([1])) == "whole" and not machine.figures["complete"]
    machine = Machine(ANY)
    assert machine.feed(raw([1, None, 1])) == "whole" and machine.figures["complete"]


def test_a_closing_soa_ends_it_though_more_follows():
    machine = Machine(AXFR)
    assert machine.feed(raw([1, None, 1, None, None, 2])) == "whole"
    assert machine.figures["complete"] and machine.figures["records"] == 6
    assert machine.feed(raw([None, None])) == "whole"


# --- what breaks it ------------------------------------------------------------------------------


@pytest.mark.parametrize("rcode", [1, 2, 5, 9, 15])
def test_an_rcode_breaks_it(rcode):
    for kinds in ([], [1]):
        machine = Machine(AXFR)
        assert machine.feed(raw([1, None])) == "more"
        assert machine.feed(raw(kinds, flags=0x8400 | rcode)) == "broken"
        figures = machine.figures
        assert (figures["complete"], figures["rcode"], figures["messages"]) == (False, rcode, 2)
        assert figures["records"] == 2 + len(kinds)


def test_every_place_to_break_off():
    """A message cut within its answers breaks the transfer; what could be walked is counted."""
    asked = build.question(b"\1z\0", AXFR)
    whole = raw([1, None, 1], question=asked)
    places = [12 + len(asked)]
    for kind in (1, None, 1):
        places.append(places[-1] + len(RAW[kind]))
    assert places[-1] == len(whole)
    for size in range(len(whole)):
        machine = Machine(AXFR)
        assert machine.feed(whole[:size]) == "broken"
        assert not machine.figures["complete"] and machine.figures["bytes"] == size
        assert machine.figures["records"] == sum(size >= end for end in places[1:])
        machine = Machine(AXFR)
        assert machine.feed(raw([1, None])) == "more" and machine.feed(whole[:size]) == "broken"


BAD = {
    "a reserved label": b"\x40" + bytes(30),
    "a name that does not end": b"\x3f" + b"x" * 20,
    "half a pointer": b"\xc0",
    "rdlength beyond the end": build.record(b"\0", 1, bytes(4), rdlength=5),
    "a SOA without data": build.record(b"\0", 6, b""),
    "a SOA with one name": build.record(b"\0", 6, b"\0"),
    "a SOA with three octets of a serial": build.record(b"\0", 6, b"\0\0\0\0\1"),
    "a SOA whose names are reserved labels": build.record(b"\0", 6, b"\x80" * 22),
    "a SOA whose name goes beyond its data": build.record(b"\0", 6, b"\x20" + b"x" * 21),
}


@pytest.mark.parametrize("name", BAD)
def test_answers_that_can_not_be_walked(name):
    good = RAW[1] + RAW[None]
    machine = Machine(AXFR)
    wire = build.header(7, 0x8400, (0, 3, 0, 0)) + good + BAD[name]
    assert machine.feed(wire) == "broken"
    records = 3 if "SOA" in name else 2     # the octets of a SOA without a serial can be walked
    assert machine.figures["records"] == records and not machine.figures["complete"]
    assert machine.answers == (records, len(wire))
    # Behind the answers nobody looks.
    wire = build.header(7, 0x8400, (0, 2, 0, 9)) + good + BAD[name]
    assert Machine(AXFR).feed(wire) == "more"


@pytest.mark.parametrize("pointer", [b"\xc0\x0c", b"\xff\xff", b"\xc0\x00", b"\xc0\x18"])
def test_pointers_are_stepped_over(pointer):
    """To itself, into nowhere, into the header: they say nothing about where records end."""
    data = pointer * 2 + struct.pack("!5I", 1, 1, 1, 1, 1)
    wire = build.header(7, 0x8400, (0, 3, 0, 0)) + build.record(pointer, 6, data) \
        + build.record(b"\1a" + pointer, 1, bytes(4)) + build.record(pointer, 6, data)
    machine = Machine(AXFR)
    assert machine.feed(wire) == "whole" and machine.figures["records"] == 3


def test_counts_beyond_the_message():
    for counts in ((65535, 0, 0, 0), (0, 65535, 0, 0), (1, 1, 0, 0)):
        assert told([build.header(7, 0x8400, counts)], AXFR) == ["broken"]
    for size in range(12):
        assert told([bytes(size)], ANY) == ["broken"]


def test_a_flood_of_soas():
    """1,900 SOAs: of one serial they end at the second one; of ever new ones an IXFR goes on."""
    records = [build.record(b"\0", 6, b"\0\0" + struct.pack("!5I", n, 1, 1, 1, 1))
               for n in range(1900)]
    ever_new = build.header(7, 0x8400, (0, 1900, 0, 0)) + b"".join(records)
    same = build.header(7, 0x8400, (0, 1900, 0, 0)) + records[0] * 1900
    assert len(ever_new) < 65536
    assert told([ever_new], AXFR) == told([same], AXFR) == told([same], IXFR) == ["whole"]
    machine = Machine(IXFR)
    for _ in range(50):
        assert machine.feed(ever_new[:12] + ever_new[12 + len(records[0]):]
                            + records[1899]) == "more"
    assert machine.figures["records"] == 95_000


def test_time_is_linear_in_the_message():
    """Names are stepped over: pointers to a name of 255 octets cost what other pointers cost."""
    def wire(size: int, name: bytes) -> bytes:
        question = build.question(build.labels(*[b"x"] * 127), AXFR)
        item = build.record(name, 6, name + name + struct.pack("!5I", 1, 1, 1, 1, 1))
        count = (size - 12 - len(question)) // len(item)
        return build.header(7, 0x8400, (1, count, 0, 0)) + question + item * count

    half = Machine(AXFR).time(wire(32000, b"\xc0\x0c"), 80)
    full = Machine(AXFR).time(wire(64000, b"\xc0\x0c"), 80)
    assert full < 4 * half + 50_000, (half, full)
    roots = Machine(AXFR).time(wire(64000, b"\xc0\x00"), 80)
    assert full < 3 * roots + 50_000, (full, roots)


# --- TSIG and OPT; real transfers ----------------------------------------------------------------


def test_only_the_answer_section_counts():
    """A TSIG and an OPT record stand behind the answers; a SOA in the authority section is none."""
    for records, result in (([soa(1), host(1)], "more"), ([host(2), soa(1)], "whole")):
        made = dns.message.from_wire(message(records, AXFR), xfr=True, one_rr_per_rrset=True)
        made.use_edns(0, payload=1232)
        made.authority.append(dns.rrset.from_text("example.", 60, "IN", "SOA",
                                                  soa(1).split(None, 4)[4]))
        made.use_tsig(dns.tsig.Key("k.", "c2VjcmV0", "hmac-sha256"))
        wire = made.to_wire()
        assert len(dns.message.from_wire(wire, keyring=False, xfr=True).additional) == 0
        machine = Machine(AXFR)
        assert machine.feed(wire) == result
        assert machine.figures["records"] == 2
        count, end = machine.answers
        assert count == 2 and end < len(wire) - 60


def conversations(path: Path) -> list[tuple[bytes, list[bytes]]]:
    """Over TCP, by tshark: each transfer's query, and all messages of its reply."""
    command = ["tshark", "-n", "-r", str(path), "-Y", "tcp.len > 0 && tcp.port == 53",
               "-T", "fields", "-e", "tcp.stream", "-e", "tcp.srcport", "-e", "tcp.seq",
               "-e", "tcp.payload"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60, text=True)
    streams: dict[tuple[str, bool], dict[int, bytes]] = defaultdict(dict)
    for line in done.stdout.splitlines():
        stream, port, sequence, payload = line.split("\t")
        streams[stream, port == "53"][int(sequence)] = bytes.fromhex(payload)
    split_up: dict[tuple[str, bool], list[bytes]] = defaultdict(list)
    for key, pieces in streams.items():
        data = b"".join(pieces[s] for s in sorted(pieces))
        while data:
            size = int.from_bytes(data[:2], "big")
            split_up[key].append(data[2:2 + size])
            data = data[2 + size:]
    found = []
    for (stream, from_server), queries in list(split_up.items()):
        for query in queries if not from_server else []:
            asked = dns.message.from_wire(query, keyring=False).question
            if asked and asked[0].rdtype in (AXFR, IXFR):
                found.append((query, [m for m in split_up[stream, True] if m[:2] == query[:2]]))
    return found


@pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark")
@pytest.mark.parametrize(("name", "least"), [("transfers.pcap", 6), ("tcp.pcap", 2)])
def test_real_transfers(name, least):
    """By knotd and named: signed zones over many messages, IXFR of each form, TSIG.  Each ends with
    the last message of its reply and with none before; dnspython applies it and agrees."""
    transfers = conversations(CAPTURES / name)
    assert len(transfers) >= least
    zones: dict[dns.name.Name, dns.zone.Zone] = {}
    forms = set()
    for query, replies in transfers:
        asked = dns.message.from_wire(query, keyring=False)
        qtype, origin = asked.question[0].rdtype, asked.question[0].name
        parsed = [dns.message.from_wire(r, keyring=False, xfr=True, one_rr_per_rrset=True)
                  for r in replies]
        if parsed[0].rcode():
            assert told(replies, qtype)[0] == "broken"
            continue
        machine = Machine(qtype)
        assert [machine.feed(r) for r in replies] == ["more"] * (len(replies) - 1) + ["whole"]
        assert machine.figures == {
            "result": "whole", "complete": True, "rcode": 0, "messages": len(replies),
            "records": sum(len(m.answer) for m in parsed), "bytes": sum(map(len, replies))}
        serial = asked.authority[0][0].serial if qtype == IXFR else None
        target = zones.setdefault(origin, dns.zone.Zone(origin, relativize=False))
        types = [r.rdtype for m in parsed for r in m.answer]
        form = (int(qtype), len(replies) > 1, types[1:2] == [dns.rdatatype.SOA])
        forms.add(form)
        if form[2] and target.get_soa().serial != serial:
            target = dns.zone.Zone(origin, relativize=False)    # its base is not in the capture
            continue
        with dns.xfr.Inbound(target, qtype, serial) as inbound:
            assert [inbound.process_message(m) for m in parsed][-1]
    if name == "transfers.pcap":
        assert {(252, False, False), (252, True, False), (251, False, False),
                (251, False, True)} <= forms
