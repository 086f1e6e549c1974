"""Decoding a message: each thing that can be wrong with one, as bytes that a reader can follow."""

from __future__ import annotations

import struct

import pytest

from gazer.workers import doors
from tests.oracle import build

READER = doors.Reader()
NAME = build.labels("www", "example")       # 13 octets, at 12; then 4 of type and class: 29
AT_NAME = b"\xc0\x0c"
ASKED = build.question(NAME)
ANSWER = build.record(AT_NAME, 1, bytes([192, 0, 2, 1]))        # 16 octets
SHOWN = ("answer", "www.example.", 1, 1, 60, "192.0.2.1")


def wire(*parts: bytes, counts: tuple[int, int, int, int], flags: int = 0x8180) -> bytes:
    return build.header(7, flags, counts) + b"".join(parts)


def broken(bad: bytes, *, cut: bool = False) -> tuple[str, list]:
    """A question, a good answer, then `bad` in place of a second one: anomaly and answers."""
    found = READER.read(wire(ASKED, ANSWER, bad, counts=(1, 2, 0, 0)), cut)
    assert found["readable"]
    assert found["records"][0] == ("question", "www.example.", 1, 1, None, None)
    return found["anomaly"], found["records"][1:]


def test_a_sound_message():
    found = READER.read(wire(ASKED, ANSWER, build.record(NAME, 2, AT_NAME, ttl=2**32 - 1),
                             build.record(b"\0", 41, b"", rdclass=1232, ttl=0x8000),
                             counts=(1, 1, 1, 1)))
    assert found["anomaly"] == "ok" and found["readable"] and found["plain"]
    assert (found["id"], found["flags"], found["counts"]) == (7, 0x8180, (1, 1, 1, 1))
    assert found["question_end"] == 29
    assert found["records"][1:3] == [
        SHOWN, ("authority", "www.example.", 2, 1, 2**32 - 1, "www.example.")]
    assert found["records"][3][:3] == ("additional", ".", 41)
    assert found["edns"]["udp_size"] == 1232 and found["edns"]["do"]
    assert (found["omitted"], found["rcode"], found["opcode"]) == (0, 0, 0)


@pytest.mark.parametrize("size", [0, 1, 11])
def test_shorter_than_a_header(size):
    for cut in (False, True):
        found = READER.read(bytes(size), cut)
        assert found["anomaly"] == "short_header" and not found["readable"]
        assert found["records"] == []


def test_a_header_and_no_more():
    found = READER.read(bytes(12))
    assert found["anomaly"] == "ok" and found["readable"] and not found["plain"]
    found = READER.read(wire(counts=(1, 0, 0, 0)))
    assert found["anomaly"] == "counts" and not found["readable"]
    found = READER.read(wire(counts=(0, 0, 0, 65535)))
    assert found["anomaly"] == "counts" and found["readable"]


POINTERS = {
    "to itself": (b"\xc0\x2d", "pointer_loop"),         # the bad record begins at 45 = 0x2d
    "to its own second octet": (b"\xc0\x2e", "pointer_loop"),
    "forward": (b"\xc0\x2f", "pointer_loop"),
    "past the end": (b"\xff\xff", "pointer_loop"),
    "to a label before it": (b"\1a\xc0\x2d", "pointer_loop"),   # a.a.a.a...
    "to a pointer to itself": (b"\xc0\x2c", "truncated"),       # into the address: label of 1...
}


@pytest.mark.parametrize("name", [n for n in POINTERS if n != "to a pointer to itself"])
def test_pointers_that_do_not_point_back(name):
    pointer, anomaly = POINTERS[name]
    bad = build.record(pointer, 1, bytes(4))
    assert broken(bad) == (anomaly, [SHOWN])
    assert broken(bad, cut=True) == (anomaly, [SHOWN])      # no snaplen makes a loop


def test_two_pointers_that_lead_to_each_other():
    # At 45: rdata of an unknown type that holds a pointer to what follows it; then that.
    first = build.record(AT_NAME, 65280, b"\xc0\x3b")       # its rdata stands at 57; 59 = 0x3b
    second = build.record(b"\xc0\x39", 1, bytes(4))         # at 59, to 57, which leads to 59
    found = READER.read(wire(ASKED, ANSWER, first, second, counts=(1, 3, 0, 0)))
    assert found["anomaly"] == "pointer_loop"
    assert [r[5] for r in found["records"][1:]] == ["192.0.2.1", "\\# 2 c03b"]


def test_a_pointer_into_the_header_is_followed():
    """It points back, so it is no loop; what it finds there is what the octets say."""
    bad = build.record(b"\xc0\x04", 1, bytes(4))            # counts 0001 0002: the root, at 4
    assert broken(bad) == ("ok", [SHOWN, ("answer", ".", 1, 1, 60, "0.0.0.0")])
    assert broken(build.record(b"\xc0\x05", 1, bytes(4)))[0] == "ok"    # label 1: "\0"; 02: ...
    assert broken(build.record(b"\xc0\x02", 1, bytes(4)))[0] == "bad_label"     # flags 0x81


def test_a_question_that_points_into_the_header():
    found = READER.read(b"\1a\0\0" + struct.pack("!4H", 1, 0, 0, 0) + build.question(b"\xc0\x00"))
    assert found["anomaly"] == "ok" and found["records"][0][1] == "a."
    assert not found["plain"]
    for pointer in (b"\xc0\x0c", b"\xc0\x0d", b"\xc0\xff"):
        found = READER.read(wire(build.question(pointer), counts=(1, 0, 0, 0)))
        assert found["anomaly"] == "pointer_loop" and not found["readable"]


@pytest.mark.parametrize("kind", [0x40, 0x41, 0x7F, 0x80, 0xBF])
def test_reserved_label_types(kind):
    assert broken(bytes([kind]) + bytes(200)) == ("bad_label", [SHOWN])
    assert broken(b"\1a" + bytes([kind]) + bytes(200)) == ("bad_label", [SHOWN])


def test_labels_of_63_octets_and_one_more():
    assert broken(build.record(b"\x3f" + b"x" * 63 + b"\0", 1, bytes(4)))[0] == "ok"
    assert broken(build.record(b"\x40" + b"x" * 64 + b"\0", 1, bytes(4)))[0] == "bad_label"


def test_names_of_255_octets_and_one_more():
    fits = build.labels(*[b"x" * 63] * 3, b"y" * 61)
    longer = build.labels(*[b"x" * 63] * 3, b"y" * 62)
    assert (len(fits), len(longer)) == (255, 256)
    assert broken(build.record(fits, 1, bytes(4)))[0] == "ok"
    assert broken(build.record(longer, 1, bytes(4))) == ("name_too_long", [SHOWN])
    most = build.labels(*[b"x"] * 127)
    assert len(most) == 255
    assert broken(build.record(most, 1, bytes(4)))[1][1][1] == "x." * 127
    # Over a pointer, remembered (www.example.: 13 octets) or not, the sum counts.
    for first in (242, 243):
        parts = [b"x" * 63] * 3 + [b"z" * (first - 3 * 64 - 1)]
        head = build.labels(*parts)[:-1]
        assert len(head) == first
        anomaly, _ = broken(build.record(head + AT_NAME, 1, bytes(4)))
        assert anomaly == ("ok" if first == 242 else "name_too_long")


def test_every_place_to_break_off():
    """Cut anywhere behind the questions, a message keeps the records before the cut."""
    whole = wire(ASKED, ANSWER, build.record(NAME, 16, b"\3abc"), counts=(1, 2, 0, 0))
    ends = [29, 45, len(whole)]
    for size in range(len(whole)):
        for cut in (False, True):
            found = READER.read(whole[:size], cut)
            kept = sum(size >= end for end in ends)
            assert len(found["records"]) == kept
            assert found["readable"] == (size >= 29)
            if size < 12:
                assert found["anomaly"] == "short_header"
            elif cut:
                assert found["anomaly"] == "snapped"
            elif size in (12, 29, 45):
                assert found["anomaly"] == "counts"
            else:
                assert found["anomaly"] in ("truncated", "rdlength")
    assert READER.read(whole, True)["anomaly"] == "snapped"      # what was cut off is not known
    assert READER.read(whole + b"\0")["anomaly"] == "trailing"


def test_rdlength_beyond_the_end():
    bad = build.record(AT_NAME, 1, bytes(4), rdlength=5)
    assert broken(bad) == ("rdlength", [SHOWN])
    assert broken(build.record(AT_NAME, 1, b"", rdlength=65535)) == ("rdlength", [SHOWN])
    assert broken(bad, cut=True) == ("snapped", [SHOWN])


def test_bytes_after_the_last_record():
    found = READER.read(wire(ASKED, ANSWER, b"\0", counts=(1, 1, 0, 0)))
    assert found["anomaly"] == "trailing" and found["records"][1:] == [SHOWN]


def test_rdata_that_does_not_fit_does_not_stop_the_rest():
    bad = build.record(AT_NAME, 1, b"\1\2\3")
    found = READER.read(wire(ASKED, bad, ANSWER, counts=(1, 2, 0, 0)))
    assert found["anomaly"] == "bad_rdata"
    assert found["records"][1:] == [("answer", "www.example.", 1, 1, 60, "\\# 3 010203"), SHOWN]


@pytest.mark.parametrize("then", [b"", b"\x41", b"\0\0\1", build.record(b"\0", 1, b"", rdlength=9),
                                  build.record(b"\xff\xff", 1, b"")])
def test_the_first_fault_is_the_one_that_is_told(then):
    bad = build.record(AT_NAME, 1, b"\1\2\3")
    for cut in (False, True):
        found = READER.read(wire(ASKED, bad, then, counts=(1, 2, 0, 0)), cut)
        assert found["anomaly"] == "bad_rdata" and len(found["records"]) == 2
    assert READER.read(wire(ASKED, bad, b"more", counts=(1, 1, 0, 0)))["anomaly"] == "bad_rdata"


def test_edns():
    option = (b"\0\3\0\2\x41\xff" + b"\0\x08\0\x07\0\1\x18\0\xc0\0\2" + b"\0\x0a\0\x08" + bytes(8)
              + b"\0\x0f\0\4\0\x12hm")
    opt = build.record(b"\0", 41, option, rdclass=4096, ttl=0x01028000)
    found = READER.read(wire(ASKED, opt, counts=(1, 0, 0, 1), flags=0x8183))
    assert found["anomaly"] == "ok"
    assert found["edns"] == {
        "version": 2, "extended_rcode": 1, "do": True, "udp_size": 4096, "nsid": "A\\255",
        "client_subnet": "192.0.2.0/24/0", "cookie": "00" * 8, "errors": [(18, "hm")]}
    assert found["rcode"] == 0x13
    elsewhere = READER.read(wire(ASKED, opt, counts=(1, 1, 0, 0)))
    assert elsewhere["edns"] is None        # RFC 6891, 6.1.1: in the additional section
    two = build.record(b"\0", 41, b"", rdclass=1, ttl=0x05000000)
    assert READER.read(wire(ASKED, opt, two, counts=(1, 0, 0, 2)))["edns"]["udp_size"] == 4096
    assert READER.read(wire(ASKED, counts=(1, 0, 0, 0)))["edns"] is None


@pytest.mark.parametrize("options", [b"\0", b"\0\3", b"\0\3\0", b"\0\3\0\5abcd", b"\0\x0a\0\1x",
                                     b"\0\x08\0\2\0\1", b"\0\x0f\0\1x"])
def test_the_rcode_is_read_even_where_the_options_are_bad(options):
    opt = build.record(b"\0", 41, options, ttl=0x01000000)
    found = READER.read(wire(ASKED, opt, ANSWER, counts=(1, 0, 0, 2)))
    assert found["anomaly"] == "bad_rdata" and found["rcode"] == 16
    assert found["records"][2][5] == "192.0.2.1"


def test_the_budget_is_kept_and_what_is_left_out_counted():
    """64 KB that name one 255-octet name thousands of times, and an OPT record at the end."""
    long = build.labels(*[b"x" * 63] * 3, b"y" * 61)
    records = [build.record(AT_NAME, 1, bytes(4))] * 4000
    opt = build.record(b"\0", 41, b"", rdclass=1232, ttl=0x01008000)
    message = wire(build.question(long), *records, opt, counts=(1, 4000, 0, 1))
    assert len(message) < 65536
    for budget in (16384, 65536, 262144):
        found = doors.Reader(budget).read(message)
        assert found["anomaly"] == "ok"
        assert found["omitted"] > 2000
        assert len(found["records"]) + found["omitted"] == 4002
        assert budget - 600 < found["room"] <= budget
        assert found["rcode"] == 16 and found["edns"]["do"]     # though there is no room to show it
    # A fault behind what was left out is still found.
    found = READER.read(wire(build.question(long), *records, b"\x41", counts=(1, 4001, 0, 0)))
    assert found["anomaly"] == "bad_label" and found["omitted"] > 2000


@pytest.mark.parametrize("rdata", [b"\xff" + b"\0" * 255, b"\1x"])
def test_one_record_too_large_for_the_budget(rdata):
    big = build.record(AT_NAME, 16, rdata * (60000 // len(rdata)))
    found = doors.Reader(16384).read(wire(ASKED, big, ANSWER, counts=(1, 2, 0, 0)))
    assert found["anomaly"] == "ok" and found["omitted"] == 2 and len(found["records"]) == 1


def test_a_reader_keeps_nothing_of_the_message_before():
    READER.read(wire(ASKED, build.record(b"\0", 41, b"", ttl=0xFF008000), counts=(1, 0, 0, 1)))
    found = READER.read(wire(build.question(b"\1b\0"), counts=(1, 0, 0, 0)))
    assert found["edns"] is None and found["rcode"] == 0
    assert found["records"] == [("question", "b.", 1, 1, None, None)]
    # The same place in the message, another name: the memo of names must not answer.
    other = READER.read(wire(build.question(b"\3xyz\7EXAMPLE\0"), ANSWER, counts=(1, 1, 0, 0)))
    assert other["records"][1][1] == "xyz.EXAMPLE."


# --- cost: linear in the message's size ----------------------------------------------------------


def staircase(size: int) -> bytes:
    """Pointers, each to the one before, as deep as they may go; every record starts at the top."""
    pointers, at = b"\0", 12
    while len(pointers) < size // 4:
        pointers += struct.pack("!H", 0xC000 | at)
        at = 12 + len(pointers) - 2
    head = build.record(b"\0", 65280, pointers[1:])
    base = 12 + 11                          # where the rdata begins
    steps = b"".join(struct.pack("!H", 0xC000 | (base + 2 * max(i - 1, 0)) if i else 0)
                     for i in range(min(len(pointers) // 2, 8000)))
    head = build.record(b"\0", 65280, steps)
    top = struct.pack("!H", 0xC000 | min(base + len(steps) - 2, 0x3FFF))
    count = (size - len(head) - 12) // 12
    return wire(head, build.record(top, 65280, b"") * count, counts=(0, 1 + count, 0, 0))


def many_questions(size: int) -> bytes:
    """One name of 255 octets, and questions that each are a pointer to it."""
    first = build.question(build.labels(*[b"x"] * 127))
    count = (size - 12 - len(first)) // 6
    return wire(first, build.question(AT_NAME) * count, counts=(1 + count, 0, 0, 0))


def many_long_names(size: int) -> bytes:
    first = build.question(build.labels(*[b"\xff"] * 127))
    count = (size - 12 - len(first)) // 16
    return wire(first, build.record(AT_NAME, 2, AT_NAME) * count, counts=(1, count, 0, 0))


def many_services(size: int) -> bytes:
    first = build.question(NAME)
    item = build.record(AT_NAME, 47, AT_NAME + b"\0\x20" + b"\xff" * 32)
    count = (size - 12 - len(first)) // len(item)
    return wire(first, item * count, counts=(1, count, 0, 0))


@pytest.mark.parametrize("make", [staircase, many_questions, many_long_names, many_services])
def test_twice_the_size_costs_no_more_than_about_twice(make):
    small, large = make(32000), make(64000)
    assert len(large) < 65536 and len(large) > 1.9 * len(small)
    a, b = READER.time(small, 60), READER.time(large, 60)
    assert b < 4 * a + 100_000, (a, b)
    # And little more than a plain message of that size does, whose every octet is shown.
    plain = READER.time(wire(ASKED, ANSWER * 2000, counts=(1, 2000, 0, 0)), 60)
    assert b < 12 * 2 * plain, (b, plain)


# --- opcodes and counts: what else is a message --------------------------------------------------


def test_an_update_with_all_its_sections():
    """RFC 2136: zone, prerequisites, updates, additional; classes ANY and NONE without data."""
    found = READER.read(wire(
        build.question(NAME, 6),
        build.record(AT_NAME, 255, b"", rdclass=255, ttl=0),    # the name is in use
        build.record(AT_NAME, 1, b"", rdclass=254, ttl=0),      # there is no A record
        build.record(AT_NAME, 1, b"", rdclass=255, ttl=0),      # delete all A records
        build.record(AT_NAME, 1, bytes([192, 0, 2, 9]), rdclass=254, ttl=0),
        build.record(AT_NAME, 1, bytes([192, 0, 2, 1])),
        build.record(b"\1k\0", 250, b"\0", rdclass=255, ttl=0),
        counts=(1, 2, 3, 1), flags=0x2800))
    assert found["opcode"] == 5 and [r[0] for r in found["records"]] == [
        "question", "answer", "answer", "authority", "authority", "authority", "additional"]
    assert [(r[2], r[3], r[5]) for r in found["records"][1:6]] == [
        (255, 255, "\\# 0"), (1, 254, "\\# 0"), (1, 255, "\\# 0"), (1, 254, "192.0.2.9"),
        (1, 1, "192.0.2.1")]


def test_a_notify_with_the_new_soa():
    """RFC 1996, section 3.7: it may stand in the answer section of the query."""
    data = AT_NAME * 2 + struct.pack("!5I", 2026, 2, 3, 4, 5)
    for flags, answers in ((0x2400, 1), (0x2400, 0), (0xA400, 0)):
        found = READER.read(wire(build.question(NAME, 6), build.record(AT_NAME, 6, data) * answers,
                                 counts=(1, answers, 0, 0), flags=flags))
        assert (found["opcode"], found["anomaly"], found["plain"]) == (4, "ok", True)
        assert [r[5] for r in found["records"][1:]] == [
            "www.example. www.example. 2026 2 3 4 5"] * answers


@pytest.mark.parametrize("opcode", range(16))
def test_every_opcode_is_read_alike(opcode):
    found = READER.read(wire(ASKED, ANSWER, counts=(1, 1, 0, 0), flags=0x8180 | opcode << 11))
    assert found["opcode"] == opcode and found["anomaly"] == "ok"
    assert found["records"][1:] == [SHOWN]


@pytest.mark.parametrize("questions", [0, 2, 5, 16, 17, 300])
def test_any_number_of_questions(questions):
    names = [build.labels(f"n{i}", "example") for i in range(questions)]
    found = READER.read(wire(*map(build.question, names), build.record(NAME, 1, bytes(4)),
                             counts=(questions, 1, 0, 0)))
    assert found["anomaly"] == "ok" and found["readable"] and not found["plain"]
    assert found["question_end"] == 12 + sum(len(n) + 4 for n in names)
    assert [r[1] for r in found["records"]] == [
        *(f"n{i}.example." for i in range(questions)), "www.example."]


# --- mDNS: the top bit of a class ----------------------------------------------------------------

MDNS = 1        # PROTOCOL_MDNS of packet.pxd; DNS is 0, LLMNR 2


def test_the_top_bit_of_a_class_in_mdns():
    """RFC 6762: 5.4 a unicast answer is wanted, 10.2 flush the cache; an OPT's class is a size."""
    parts = (build.question(NAME, 1, 0x8001), build.question(NAME, 28, 1),
             build.question(b"\0", 41, 0x8001),
             build.record(AT_NAME, 1, bytes([192, 0, 2, 1]), rdclass=0x8001),
             build.record(AT_NAME, 1, bytes([192, 0, 2, 1])),
             build.record(AT_NAME, 1, b"\1\2\3", rdclass=0x8001),
             build.record(AT_NAME, 1, bytes(4), rdclass=0xFFFF),
             build.record(b"\0", 41, b"", rdclass=0x8001))
    message = wire(*parts, counts=(3, 4, 0, 1))
    found = READER.read(message, protocol=MDNS)
    assert found["tops"] == [1, 0, 1, 1, 0, 1, 1, 0]
    assert [r[3] for r in found["records"]] == [1, 1, 1, 1, 1, 1, 0x7FFF, 0x8001]
    assert [r[5] for r in found["records"][3:6]] == [
        "192.0.2.1", "192.0.2.1", "\\# 3 010203"]       # read by the class without it
    assert found["anomaly"] == "bad_rdata" and found["edns"]["udp_size"] == 0x8001
    for protocol in (0, 2):
        other = READER.read(message, protocol=protocol)
        assert other["tops"] == [0] * 8
        assert [r[3] for r in other["records"]] == [
            0x8001, 1, 0x8001, 0x8001, 1, 0x8001, 0xFFFF, 0x8001]


def test_questions_are_compared_by_their_octets():
    other = doors.Reader()
    asks, asks_again = (wire(build.question(NAME, 1, c), counts=(1, 0, 0, 0)) for c in (1, 0x8001))
    assert not READER.same_question(asks, other, asks_again)
    assert READER.same_question(asks_again, other, asks_again)


# --- further messages: one reply of many ---------------------------------------------------------


def test_the_answers_of_further_messages():
    """Only answers, by the names of their own message, behind all records of the first."""
    first = wire(ASKED, ANSWER, build.record(b"\0", 41, b"", ttl=0x8000), counts=(1, 1, 0, 1))
    second = wire(build.question(build.labels("other")), build.record(AT_NAME, 5, AT_NAME),
                  build.record(AT_NAME, 2, AT_NAME), build.record(b"\0", 41, b"", ttl=1 << 24),
                  counts=(1, 1, 1, 1), flags=0x8185)
    third = wire(build.record(build.labels("third"), 5, AT_NAME), counts=(0, 1, 0, 0))
    found = READER.read(first, further=[second, third, wire(counts=(0, 0, 0, 0))])
    alone = READER.read(first)
    assert found["records"] == [
        *alone["records"], ("answer", "other.", 5, 1, 60, "other."),
        ("answer", "third.", 5, 1, 60, "third.")]
    for key in ("id", "flags", "counts", "anomaly", "plain", "question_end", "edns", "rcode"):
        assert found[key] == alone[key]
    assert found["room"] > alone["room"] and READER.read(first) == alone


FAULTS = {
    "short_header": bytes(11), "counts": wire(counts=(0, 1, 0, 0)),
    "bad_label": wire(b"\x41", counts=(1, 1, 0, 0)),
    "truncated": wire(b"\0\0\1", counts=(1, 0, 0, 0)),
    "rdlength": wire(build.record(b"\0", 1, b"", rdlength=4), counts=(0, 1, 0, 0)),
    "pointer_loop": wire(build.record(AT_NAME, 1, b""), counts=(0, 1, 0, 0)),
    "bad_rdata": wire(build.record(b"\0", 1, b""), counts=(0, 1, 0, 0)),
}


@pytest.mark.parametrize("anomaly", FAULTS)
def test_a_fault_in_a_further_message(anomaly):
    first = wire(ASKED, ANSWER, counts=(1, 1, 0, 0))
    good = wire(ASKED, ANSWER, counts=(1, 1, 0, 0))
    for others in FAULTS.values():
        found = READER.read(first, further=[good, FAULTS[anomaly], others, good])
        assert found["anomaly"] == anomaly
        assert [r for r in found["records"] if r == SHOWN] == [SHOWN] * 3
    assert READER.read(first + b"\0", further=[FAULTS[anomaly]])["anomaly"] == "trailing"


def test_the_budget_is_one_for_all_messages():
    name = build.labels(*[b"x" * 63] * 3, b"y" * 61)
    part = wire(build.record(name, 1, bytes(4)), build.record(AT_NAME, 1, bytes(4)) * 40,
                counts=(0, 41, 0, 0))
    for budget in (16384, 20000):
        reader = doors.Reader(budget)
        found = reader.read(part, further=[part] * 9)
        assert len(found["records"]) + found["omitted"] == 410 and found["anomaly"] == "ok"
        assert budget - 600 < found["room"] <= budget
        # What has no room is still walked, and its faults are found.
        assert reader.read(part, further=[part] * 9 + [FAULTS["bad_label"]])["anomaly"] \
            == "bad_label"


def test_the_slow_road_is_short_for_all_messages_together():
    """16 records a message go through Python, and a transfer is one message."""
    loc = bytes([0, 0x12, 0x16, 0x13]) + bytes.fromhex("8b0d2d6670be15f000988d20")
    part = wire(*[build.record(b"\0", 29, loc)] * 10, counts=(0, 10, 0, 0))
    found = READER.read(part, further=[part, part])
    assert found["anomaly"] == "ok" and len(found["records"]) == 30
    slow = [not r[5].startswith("\\# 16 ") for r in found["records"]]
    assert slow == [True] * 16 + [False] * 14
