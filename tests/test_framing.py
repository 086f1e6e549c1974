"""Where a message plausibly begins in the middle of a TCP stream."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gazer.workers import stream_door
from tests import stream_model
from tests.oracle import build


def wire(*, flags=0x0100, counts=(1, 0, 0, 0), name=None, rest=b"\0\1\0\1", length=None) -> bytes:
    octets = build.header(7, flags, counts) + (
        build.labels("www", "example") if name is None else name) + rest
    return (len(octets) if length is None else length).to_bytes(2, "big") + octets


RECORD = b"\0\1\0\1\0\0\0\x3c\0\4abcd"
LONGEST = build.labels("a" * 63, "b" * 63, "c" * 63, "d" * 61)
assert len(LONGEST) == 255


def model(octets: bytes) -> str:
    try:
        stream_model.judge(octets)
    except stream_model.Refused:
        return "refused"
    except stream_model.Undecided:
        return "undecided"
    return "plausible"


@pytest.mark.parametrize("octets, verdict", [
    (wire(), "plausible"),
    (wire(flags=0x8180, counts=(1, 9, 9, 9)), "plausible"),
    (wire(flags=0x8180 | 2 << 11), "plausible"),                # STATUS
    (wire(flags=4 << 11), "plausible"),                         # NOTIFY
    (wire(flags=5 << 11), "plausible"),                         # UPDATE
    (wire(flags=6 << 11), "plausible"),                         # DSO, with a question
    (wire(flags=1 << 11), "refused"),                           # IQUERY
    (wire(flags=3 << 11), "refused"),
    (wire(flags=7 << 11), "refused"),
    (wire(flags=0x0140), "refused"),                            # Z
    (wire(counts=(2, 0, 0, 0)), "refused"),
    (wire(rest=b"\0\1\0\3"), "plausible"),                      # CH
    (wire(rest=b"\0\1\0\4"), "plausible"),                      # HS
    (wire(rest=b"\0\1\0\xfe"), "plausible"),                    # NONE
    (wire(rest=b"\0\1\0\xff"), "plausible"),                    # ANY
    (wire(rest=b"\0\1\0\2"), "refused"),
    (wire(rest=b"\0\1\x80\1"), "refused"),                      # unicast-response: not over TCP
    (wire(name=b"\0"), "plausible"),                            # the root
    (wire(name=b"\xc0\x0c"), "refused"),
    (wire(name=b"\x40" + bytes(64)), "refused"),
    (wire(name=LONGEST), "plausible"),
    (wire(name=build.labels("a" * 63, "b" * 63, "c" * 63, "d" * 62)), "refused"),
    (wire(name=b"\1a" * 127 + b"\0"), "plausible"),
    (wire(length=11), "refused"),
    (wire(length=12), "refused"),                               # the name is outside
    (wire(length=28), "refused"),                               # its class is
    (wire(length=29), "plausible"),
    (wire(length=65535), "plausible"),                          # the rest comes later
    (wire(flags=0x8400, counts=(0, 1, 0, 0), rest=RECORD), "plausible"),
    (wire(flags=0x0400, counts=(0, 1, 0, 0), rest=RECORD), "refused"),
    (wire(flags=0xA400, counts=(0, 1, 0, 0), rest=RECORD), "refused"),
    (wire(flags=0x8400, counts=(0, 0, 1, 0), rest=RECORD), "refused"),
    (wire(flags=0x8400, counts=(0, 1, 0, 0), rest=RECORD[:9] + b"\5abcd"), "refused"),
    (wire(flags=0x8400, counts=(0, 1, 0, 0), rest=RECORD[:9] + b"\0"), "plausible"),
    (wire(flags=0x8400, counts=(0, 1, 0, 0), rest=b"\0\1\0\7" + RECORD[4:]), "refused"),
    (b"", "undecided"), (b"\0", "undecided"), (b"\0\x0c", "undecided"), (b"\0\x0b", "refused"),
])
def test_verdicts(octets, verdict):
    assert stream_door.judge(octets) == model(octets) == verdict


@pytest.mark.parametrize("octets", [
    wire(), wire(name=LONGEST), wire(flags=0x8400, counts=(0, 1, 0, 0), name=LONGEST, rest=RECORD)])
def test_the_beginning_of_a_message_is_never_refused(octets):
    """... nor left undecided once 279 octets are here."""
    for n in range(len(octets)):
        assert stream_door.judge(octets[:n]) in ("undecided", "plausible")
    assert stream_door.judge(octets[:279]) == "plausible"


# Octets that get far: messages with a few of their octets changed, cut and moved.
changes = st.lists(st.tuples(st.integers(0, 60), st.sampled_from([0, 1, 2, 12, 63, 64, 255])),
                   max_size=3)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([wire(), wire(name=b"\1a" * 20 + b"\0"),
                        wire(flags=0x8400, counts=(0, 1, 0, 0), rest=RECORD)]),
       changes, st.integers(0, 70), st.binary(max_size=4))
def test_verdicts_as_the_model_gives_them(octets, changed, cut, before):
    octets = bytearray(octets)
    for at, value in changed:
        octets[at % len(octets)] = value
    octets = before + bytes(octets[:cut or None])
    verdict = stream_door.judge(octets)
    assert verdict == model(octets)
    want = next((i for i in range(len(octets)) if model(octets[i:]) != "refused"), len(octets))
    assert stream_door.search(octets)[0] == want
    for n in range(0, len(octets), 5):      # more octets never change a decision
        assert stream_door.judge(octets[:n]) in ("undecided", verdict)


def test_random_octets_are_refused():
    """One offset in some hundred thousand is taken for a message by mistake."""
    octets = random.Random(5).randbytes(200_000)
    found, at = 0, 0
    while at < len(octets) - 300:
        offset, verdict = stream_door.search(octets[at:at + 4096], 3800)
        found += verdict != "refused"
        at += offset + (verdict != "refused")
    assert found <= 4
