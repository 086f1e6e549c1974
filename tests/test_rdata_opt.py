"""The line of text for an OPT record."""

import struct

import dns.edns
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gazer.workers import probe
from tests.wire import generic


def option(code, value=b""):
    return struct.pack("!HH", code, len(value)) + value


def options(*pairs):
    return b"".join(option(code, value) for code, value in pairs)


def render(*pairs):
    """The options' part of the line."""
    text, anomaly = probe.render_opt(options(*pairs), 1232, 0)
    head = "VERSION=0 UDPSIZE=1232"
    assert text.startswith(head)
    return text[len(head) + 1:], anomaly


@pytest.mark.parametrize(("size", "ttl", "text"), [
    (1232, 0, "VERSION=0 UDPSIZE=1232"),
    (4096, 0x8000, "VERSION=0 FLAGS=DO UDPSIZE=4096"),
    (0, 0x4000, "VERSION=0 FLAGS=CO UDPSIZE=0"),
    (65535, 0xFFFFFFFF, "EXTRCODE=255 VERSION=255 FLAGS=DO,CO,0x3fff UDPSIZE=65535"),
    (512, 0x01000001, "EXTRCODE=1 VERSION=0 FLAGS=0x0001 UDPSIZE=512"),
])
def test_fields(size, ttl, text):
    assert probe.render_opt(b"", size, ttl) == (text, "ok")


@pytest.mark.parametrize(("code", "value", "text"), [
    (3, b"ns1", "NSID=6e7331"), (3, b"", "NSID"),
    (5, b"\x08\x0a\xff", "DAU=8,10,255"), (6, b"\2", "DHU=2"), (7, b"\1", "N3U=1"),
    (8, b"\0\1\x18\0\xc0\0\2", "ECS=192.0.2.0/24/0"),
    (8, b"\0\1\0\0", "ECS=0.0.0.0/0/0"),
    (8, b"\0\1\x20\x20\xff\xff\xff\xff", "ECS=255.255.255.255/32/32"),
    (8, b"\0\2\x38\x30\x20\1\x0d\xb8\0\1\x02", "ECS=2001:db8:1:200::/56/48"),
    (8, b"\0\1\x0d\0\xc0\x08", "ECS=192.8.0.0/13/0"),
    (9, b"\0\1\0\0", "EXPIRE=65536"), (9, b"", "EXPIRE"),
    (10, b"\0" * 8, "COOKIE=0000000000000000"), (10, b"\xab" * 40, "COOKIE=" + "ab" * 40),
    (11, b"", "KEEPALIVE"), (11, b"\0\x64", "KEEPALIVE=100"),
    (12, b"", "PADDING=0"), (12, b"\0" * 300, "PADDING=300"),
    (14, b"\x4f\x66\x97\x28", "KEYTAG=20326,38696"),
    (15, b"\0\x12", "EDE=18(Prohibited)"), (15, b"\0\3", "EDE=3(Stale_Answer)"),
    (15, b"\xff\xff", "EDE=65535"),
    (15, b'\0\0no "way"\xff', 'EDE=0(Other_Error):"no \\"way\\"\\255"'),
    (15, b"\0\x0fzero\0", 'EDE=15(Blocked):"zero"'), (15, b"\0\x0f\0", "EDE=15(Blocked)"),
    (12345, b"\xab\x12", "OPT12345=ab12"), (65535, b"", "OPT65535"), (0, b"", "OPT0"),
])
def test_option(code, value, text):
    assert render((code, value)) == (text, "ok")


@pytest.mark.parametrize(("code", "value"), [
    (5, b""), (6, b""), (7, b""), (14, b""), (14, b"abc"), (9, b"abc"), (9, b"abcde"),
    (10, b""), (10, b"a" * 7), (10, b"a" * 9), (10, b"a" * 15), (10, b"a" * 41),
    (11, b"a"), (11, b"abc"), (15, b""), (15, b"a"),
    (8, b""), (8, b"\0\1\x18"), (8, b"\0\1\x18\0\xc0\0"), (8, b"\0\1\x18\0\xc0\0\2\0"),
    (8, b"\0\3\x18\0\xc0\0\2"), (8, b"\0\0\0\0"), (8, b"\0\1\x21\0abcde"), (8, b"\0\1\0\x21"),
    (8, b"\0\2\x81\0" + b"a" * 17), (8, b"\0\1\x0d\0\xc0\x09"),
])
def test_bad_option(code, value):
    """Shown as it is, the others around it too, and counted."""
    blob = f"OPT{code}={value.hex()}".rstrip("=")
    assert render((3, b"a"), (code, value), (12, b"")) == (f"NSID=61 {blob} PADDING=0", "bad_rdata")


@given(st.lists(st.tuples(st.one_of(st.integers(0, 20), st.integers(0, 65535)),
                          st.binary(max_size=60)), max_size=10))
def test_any_options(pairs):
    rdata = options(*pairs)
    text, anomaly = probe.render_opt(rdata, 512, 0)
    assert anomaly in ("ok", "bad_rdata") and text.startswith("VERSION=0 UDPSIZE=512")
    quoted = sum(1 for code, value in pairs if code == 15 and len(value) > 2)
    if not quoted:
        assert len(text.split(" ")) == 2 + len(pairs)
    for n in range(len(rdata)):
        cut, what = probe.render_opt(rdata[:n], 512, 0)
        assert text.startswith(cut) or (cut, what) == (generic(rdata[:n]), "bad_rdata")


@given(st.integers(0, 128), st.integers(0, 128), st.binary(min_size=16, max_size=16))
def test_client_subnet_like_dnspython(source, scope, address):
    family = 1 if source <= 32 and scope <= 32 else 2
    value = struct.pack("!HBB", family, source, scope) + address[: (source + 7) // 8]
    try:
        theirs = dns.edns.option_from_wire(8, value, 0, len(value))
    except ValueError:
        theirs = None
    text, anomaly = render((8, value))
    if isinstance(theirs, dns.edns.ECSOption) and anomaly == "ok":
        word, prefix = text.split("=")
        ours = dns.edns.ECSOption.from_text(prefix)
        assert word == "ECS" and ours.to_wire() == value
    else:
        # Bits beyond the prefix (RFC 7871, section 6); older dnspython masks them.
        assert anomaly == "bad_rdata" and source % 8


def test_room():
    rdata = options((8, b"\0\1\x18\0\xc0\0\2"), (15, b'\0\x12"\\\0\xff'), (5, b"\xff" * 9),
                    (700, b"ab"))
    for bad in (rdata, rdata[:-1], rdata + option(9, b"x")):
        full = probe.render_opt(bad, 65535, 0xFFFFFFFF)
        for room in range(600):
            got = probe.render_opt(bad, 65535, 0xFFFFFFFF, room)
            assert got == full or got == (None, "no_room")
        assert got == full
