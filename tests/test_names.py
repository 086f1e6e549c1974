"""Domain names: their text by a second writing of the rule, and what pointers may do."""

import dns.exception
import dns.name
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gazer.workers import probe
from tests.wire import BASE, HEADER, OWNER, ZONE, encode_name, labels, name_text, pointer

ANOMALIES = {"ok", "truncated", "pointer_loop", "bad_label", "name_too_long", "no_room"}


@given(labels)
def test_text(parts):
    wire = HEADER + encode_name(parts) + b"rest"
    text, after, anomaly = probe.render_name(wire, 12)
    assert (text, anomaly) == (name_text(parts), "ok")
    assert after == len(wire) - 4 and probe.skip_name(wire, 12) == (after, "ok")


@given(labels)
def test_text_can_be_read_again(parts):
    """dnspython escapes more, but reads what we write."""
    text, _, _ = probe.render_name(HEADER + encode_name(parts), 12)
    assert dns.name.from_text(text).labels == (*parts, b"")


@given(labels, st.integers(0, 8), st.data())
def test_pointer(parts, cut, data):
    """head + pointer to tail is the same name as head + tail."""
    assume(cut <= len(parts))
    head, tail = parts[:cut], parts[cut:]
    filler = data.draw(st.binary(max_size=40))
    wire = HEADER + encode_name(tail) + filler
    at = len(wire)
    wire += encode_name(head)[:-1] + pointer(12) + b"rest"
    text, after, anomaly = probe.render_name(wire, at)
    assert (text, anomaly, after) == (name_text(parts), "ok", len(wire) - 4)
    assert probe.skip_name(wire, at) == (after, "ok")


@given(st.lists(st.tuples(st.lists(st.sampled_from([b"a", b"b", b"c\0", b'"', b"d" * 60]),
                                   max_size=3), st.integers(0, 10)), min_size=1, max_size=60))
def test_memo(plan):
    """Many names that point into one another: each as it would be if it stood alone."""
    wire, at, full = HEADER, [], []
    for head, to in plan:
        at.append(len(wire))
        if to and len(at) > 1:
            target = (to - 1) % (len(at) - 1)
            wire += encode_name(head)[:-1] + pointer(at[target])
            full.append(head + full[target])
        else:
            wire += encode_name(head)
            full.append(head)
    rendered = probe.render_names(wire, at)
    for parts, (text, _, anomaly), position in zip(full, rendered, at, strict=True):
        if sum(len(p) + 1 for p in parts) + 1 > 255:
            assert anomaly == "name_too_long"
        else:
            assert (text, anomaly) == (name_text(parts), "ok")
        assert probe.render_name(wire, position)[0] == text


@given(st.binary(max_size=300), st.integers(0, 311))
def test_any_bytes(noise, position):
    """Whatever comes: an anomaly of the list, or a name that another reader agrees with."""
    wire = HEADER + noise
    assume(position <= len(wire))
    text, after, anomaly = probe.render_name(wire, position)
    assert anomaly in ANOMALIES
    if anomaly == "ok":
        name, used = dns.name.from_wire(wire, position)
        assert text == name_text(list(name.labels[:-1]))
        assert after == position + used


noise_of_pointers = st.lists(
    st.one_of(st.sampled_from([b"\xc0\x0c", b"\xc0\x0e", b"\xc0\x10", b"\xc0\x11", b"\1a", b"\0"]),
              st.binary(min_size=1, max_size=4)), max_size=40).map(b"".join)


@given(noise_of_pointers, st.data())
def test_any_pointers(noise, data):
    wire = HEADER + noise
    at = data.draw(st.lists(st.integers(12, len(wire)), min_size=1, max_size=10))
    for position, (text, after, anomaly) in zip(at, probe.render_names(wire, at), strict=True):
        assert anomaly in ANOMALIES
        alone = probe.render_name(wire, position)
        if anomaly == "ok":
            assert (text, after, anomaly) == alone
            try:
                name, _ = dns.name.from_wire(wire, position)
            except dns.exception.FormError as error:
                # It takes no pointer to what goes on into the name itself. RFC 1035 has nothing
                # against that, and it comes to an end.
                assert type(error) is dns.exception.FormError and b"\xc0" in wire[position:]
                continue
            assert text == name_text(list(name.labels[:-1]))
        else:
            assert alone[2] == anomaly


@pytest.mark.parametrize(
    ("wire", "at", "anomaly"),
    [
        (HEADER + b"\xc0\x0c", 12, "pointer_loop"),             # to itself
        (HEADER + b"\1a\xc0\x0c", 12, "pointer_loop"),          # to its own start
        (HEADER + b"\xc0\x0e\0", 12, "pointer_loop"),           # forward
        (HEADER + b"\1a\xc0\x10\1b\xc0\x0c", 16, "pointer_loop"),   # two that chase one another
        (HEADER + b"\xc0", 12, "truncated"),
        (HEADER, 12, "truncated"),
        (HEADER + b"\3ab", 12, "truncated"),
        (HEADER + b"\1a", 12, "truncated"),                     # no root label
        (HEADER + b"\x40\0", 12, "bad_label"),
        (HEADER + b"\x80\0", 12, "bad_label"),
    ],
)
def test_bad_name(wire, at, anomaly):
    assert probe.render_name(wire, at)[2] == anomaly


def test_longest_name():
    """255 octets are a name, 256 are not; the text of the longest fits the room that is asked."""
    parts = [b"\xff" * 63, b"\xff" * 63, b"\xff" * 63, b"\xff" * 61]
    wire = HEADER + encode_name(parts)
    assert len(wire) - 12 == 255
    text, _, anomaly = probe.render_name(wire, 12, capacity=1024)
    assert (text, anomaly) == (name_text(parts), "ok")
    parts[3] += b"x"
    assert probe.render_name(HEADER + encode_name(parts), 12)[2] == "name_too_long"


def test_too_long_by_a_memo():
    parts = [b"x" * 63] * 3
    wire = HEADER + encode_name(parts)
    at = len(wire)
    wire += b"\x3e" + b"y" * 62 + pointer(12)       # 63 + 193 = 256 octets
    assert [r[2] for r in probe.render_names(wire, [12, at])] == ["ok", "name_too_long"]


def test_pointers_to_pointers_are_bounded():
    """128 jumps are allowed, and not one more: else one name could cost thousands."""
    wire = HEADER + b"\1a\0" + b"".join(pointer(12 if i == 0 else 15 + 2 * (i - 1))
                                        for i in range(200))
    assert probe.render_name(wire, 15 + 2 * 127)[2] == "ok"         # the 128th
    assert probe.render_name(wire, 15 + 2 * 128)[2] == "pointer_loop"


def test_stays_within_its_end():
    """In place a name does not go beyond the cursor's end; a pointer may lead anywhere before."""
    wire = BASE + b"\3abc" + pointer(ZONE)
    assert probe.render_name(wire, len(BASE))[0] == "abc.example.com."
    for end in range(len(BASE), len(wire)):
        assert probe.render_name(wire, len(BASE), end)[2] == "truncated"


def test_no_room():
    wire = HEADER + OWNER
    for capacity in range(1100):
        text, _, anomaly = probe.render_name(wire, 12, capacity=capacity)
        assert (text, anomaly) in (("www.example.com.", "ok"), (None, "no_room"))
    assert anomaly == "ok"
