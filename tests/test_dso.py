"""DNS Stateful Operations (RFC 8490): messages that hold TLVs, and what their text is."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gazer.workers import doors
from tests.oracle import build

READER = doors.Reader()
PLAIN = doors.Reader(edns=False)
QUERY, REPLY = 0x3000, 0xB000       # opcode 6
LIMIT = 1024

# RFC 8490, section 10.3, and RFC 8765, section 9.
NAMES = {1: "KEEPALIVE", 2: "RETRYDELAY", 3: "PADDING", 0x40: "SUBSCRIBE", 0x41: "PUSH",
         0x42: "UNSUBSCRIBE", 0x43: "RECONFIRM"}


def tlv(number: int, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("!2H", number, len(data) if length is None else length) + data


def dso(*tlvs: bytes, flags: int = QUERY, counts: tuple[int, ...] = (0, 0, 0, 0)) -> bytes:
    return build.header(7, flags, counts) + b"".join(tlvs)


def text(*tlvs: tuple[int, bytes]) -> str:
    """The text of these TLVs by the rule, written down a second time."""
    words = [f"{NAMES.get(n, f'TLV{n}')} {data.hex()}".rstrip() for n, data in tlvs]
    ends = itertools.accumulate(len(word) + 2 for word in words)
    kept = sum(end - 2 <= LIMIT for end in ends)
    return ", ".join(words[:kept] + ["..."] * (kept < len(words)))


KEEPALIVE = bytes.fromhex("00003a9800003a98")   # both timeouts 15 s (RFC 8490, section 7.1)


def test_a_keepalive_with_padding():
    found = READER.read(dso(tlv(1, KEEPALIVE), tlv(3, bytes(2))))
    assert found["dso"] == "KEEPALIVE 00003a9800003a98, PADDING 0000"
    assert found["anomaly"] == "ok" and found["readable"] and found["opcode"] == 6
    assert found["records"] == [] and found["room"] == 0


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 0x3F, 0x40, 0x41, 0x42, 0x43, 0x44, 255, 65535])
@pytest.mark.parametrize("flags", [QUERY, REPLY])
def test_every_name(number, flags):
    found = READER.read(dso(tlv(number, b"\x0f\xf0"), flags=flags))
    assert found["dso"] == f"{NAMES.get(number, f'TLV{number}')} 0ff0"
    assert READER.read(dso(tlv(number), flags=flags))["dso"] == NAMES.get(number, f"TLV{number}")


def test_no_tlv_at_all():
    """A reply that only says yes (RFC 8490, section 5.4) has none."""
    found = READER.read(dso(flags=REPLY))
    assert found["dso"] == "" and found["anomaly"] == "ok" and found["readable"]


def test_a_message_before_leaves_nothing_behind():
    READER.read(dso(tlv(1, KEEPALIVE)))
    assert READER.read(build.query("example.com."))["dso"] == ""
    READER.read(dso(tlv(1, KEEPALIVE)))
    assert READER.read(b"\0")["dso"] == ""


def test_where_a_tlv_breaks_off():
    whole = dso(tlv(1, KEEPALIVE), tlv(65, b"abc"))
    for size in range(12, len(whole) + 1):
        for reader in (READER, PLAIN):
            found = reader.read(whole[:size])
            sound = size in (12, 24, len(whole))
            assert found["anomaly"] == ("ok" if sound else "truncated")
            assert reader.read(whole[:size], True)["anomaly"] == "snapped"
            shown = [(1, KEEPALIVE), (65, b"abc")][:(size >= 24) + (size == len(whole))]
            assert found["dso"] == (text(*shown) if reader is READER else "")
    assert READER.read(dso(tlv(1, KEEPALIVE, length=65535)))["anomaly"] == "truncated"


def test_without_full_detail_it_is_walked_and_not_shown():
    found = PLAIN.read(dso(tlv(1, KEEPALIVE)))
    assert found["dso"] == "" and found["anomaly"] == "ok"


@pytest.mark.parametrize("counts", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)])
def test_with_a_count_it_is_an_ordinary_message(counts):
    record = build.question(b"\1a\0") if counts[0] else build.record(b"\1a\0", 1, bytes(4))
    found = READER.read(dso(record, counts=counts))
    assert found["anomaly"] == "ok" and found["dso"] == "" and len(found["records"]) == 1
    found = READER.read(dso(record, tlv(1, KEEPALIVE), counts=counts))
    assert found["anomaly"] == "trailing" and found["dso"] == ""


@pytest.mark.parametrize("opcode", [o for o in range(16) if o != 6])
def test_other_opcodes_have_no_tlvs(opcode):
    found = READER.read(dso(tlv(1, KEEPALIVE), flags=opcode << 11))
    assert found["anomaly"] == "trailing" and found["dso"] == ""


@pytest.mark.parametrize("size", range(2040, 2056))
def test_the_limit_of_the_text(size):
    """One TLV of about 4,096 octets of text: a whole one, or none of it."""
    found = READER.read(dso(tlv(3, bytes(size))))
    assert found["dso"] == text((3, bytes(size)))
    assert (found["dso"] == "...") == (len("PADDING ") + 2 * size > LIMIT)
    found = READER.read(dso(tlv(0x41, b"x"), tlv(3, bytes(size - 5)), tlv(1)))
    assert found["dso"] == text((0x41, b"x"), (3, bytes(size - 5)), (1, b""))


def test_hostile_sizes():
    """64 KiB in one TLV, or in 16,000 of them, with the last one broken off: the text is short."""
    for tlvs in ([(3, bytes(65000))], [(n % 70, b"") for n in range(16000)]):
        for budget in (16384, 262144):
            reader = doors.Reader(budget)
            wire = dso(*(tlv(*item) for item in tlvs))
            found = reader.read(wire)
            assert found["anomaly"] == "ok" and found["dso"] == text(*tlvs)
            assert found["dso"].endswith("...") and len(found["dso"]) <= LIMIT + 5
            assert reader.read(wire + b"\0")["anomaly"] == "truncated"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 2, 3, 0x40, 0x41, 0x42, 0x43, 9, 65535]),
                          st.binary(max_size=40) | st.binary(min_size=600, max_size=2100)),
                max_size=8), st.binary(max_size=3))
def test_any_tlvs(tlvs, rest):
    found = READER.read(dso(*(tlv(*item) for item in tlvs), rest))
    assert found["dso"] == text(*tlvs)
    assert found["anomaly"] == ("truncated" if rest else "ok")
