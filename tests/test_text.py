"""The writers of gazer.text and gazer.workers.encodings against the standard library."""

import base64
import ipaddress
import time

import dns.rdata
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gazer.workers import probe
from tests.wire import generic

u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
u64 = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 19).map(lambda n: 10**n))


@given(u64)
@example(2**64 - 1)
def test_u64(n):
    assert probe.write("u64", n, 20) == str(n)


def test_u16():
    for n in range(0x10000):
        assert probe.write("u16", n, 5) == str(n)


@given(u32, st.integers(1, 10))
def test_digits(n, width):
    assert probe.write("digits", n, width, width) == f"{n:010d}"[-width:]


@given(st.binary(min_size=4, max_size=4))
@example(bytes(4))
@example(b"\xff" * 4)
@example(b"\0\0\0\xff")
def test_ipv4(octets):
    assert probe.write("ipv4", octets, 15) == str(ipaddress.IPv4Address(octets))


def ipv6_text(octets):
    """RFC 5952: hexadecimal throughout, but IPv4-mapped addresses (section 5) end in dotted form.

    inet_ntop also writes ::a.b.c.d in dotted form, and ipaddress only learned the mapped form in
    Python 3.13; so the two rules are put together here from ipaddress's numbers."""
    address = ipaddress.IPv6Address(octets)
    if address.ipv4_mapped:
        return f"::ffff:{address.ipv4_mapped}"
    return str(address)


# Groups that are often zero, so that runs of every length and place come about.
groups = st.lists(st.one_of(st.just(0), st.just(0), st.sampled_from([1, 0xFFFF]), u16),
                  min_size=8, max_size=8)


@given(groups)
@example([0] * 8)
@example([0] * 7 + [1])
@example([0, 0, 0, 0, 0, 0xFFFF, 0x0102, 0x0304])
@example([0, 0, 0, 0, 0, 0xFFFF, 0, 0])
@example([0, 0, 0, 0, 0, 0, 0x0102, 0x0304])
@example([0x2001, 0xDB8, 0, 0, 1, 0, 0, 1])
@example([1, 0, 1, 0, 1, 0, 1, 0])
@example([0, 1, 1, 1, 1, 1, 1, 1])
@example([1, 1, 1, 1, 1, 1, 0, 0])
@example([0xFFFF] * 8)
def test_ipv6(numbers):
    octets = b"".join(n.to_bytes(2, "big") for n in numbers)
    assert probe.write("ipv6", octets, 45) == ipv6_text(octets)


def test_ipv6_by_hand():
    for text in ("::", "::1", "1::", "2001:db8::1:0:0:1", "::ffff:1.2.3.4", "::102:304",
                 "1:0:1:0:1:0:1:0", "0:1:1:1:1:1:1:1", "1:1:1:1:1:1::", "::ffff:0.0.0.0"):
        assert probe.write("ipv6", ipaddress.IPv6Address(text).packed, 45) == text


def test_ddd():
    for n in range(256):
        assert probe.write("ddd", n, 4) == f"\\{n:03d}"


@given(st.binary(max_size=300))
def test_blobs(octets):
    n = len(octets)
    assert probe.write("hex", octets, 2 * n) == octets.hex()
    assert probe.write("base64", octets, (n + 2) // 3 * 4) == base64.b64encode(octets).decode()
    base32 = base64.b32hexencode(octets).decode().rstrip("=").lower()
    assert probe.write("base32hex", octets, (8 * n + 4) // 5) == base32
    assert probe.write("generic", octets, 2 * n + 14) == generic(octets)


@given(st.binary(max_size=255))
@example(b'"\\,\0\x1f\x20\x7e\x7f\xff')
def test_quoted(octets):
    expected = f'"{dns.rdata._escapify(octets)}"'
    assert probe.write("quoted", octets, 4 * len(octets) + 2) == expected


@given(st.binary(max_size=255))
@example(b'"\\,\0\x1f\x20\x7e\x7f\xff')
def test_list_item(octets):
    item = b"".join(b"\\" + bytes([b]) if b in b",\\" else bytes([b]) for b in octets)
    expected = dns.rdata._escapify(item)
    assert probe.write("list_item", octets, 4 * len(octets)) == expected


@given(u32)
@example(0)
@example(2**32 - 1)
@example(951782399)         # the second before 29 February 2000
@example(951868800)         # 1 March 2000
@example(4107542399)        # 28 February 2100, 23:59:59
@example(4107542400)        # 1 March 2100: that year has no leap day
def test_time(seconds):
    expected = time.strftime("%Y%m%d%H%M%S", time.gmtime(seconds))
    assert probe.write("time", seconds, 14) == expected


def test_time_every_day():
    for day in range(2**32 // 86400 + 1):
        seconds = min(day * 86400 + 86399, 2**32 - 1)
        expected = time.strftime("%Y%m%d%H%M%S", time.gmtime(seconds))
        assert probe.write("time", seconds, 14) == expected


def test_probe_sees_a_write_beyond_the_arena():
    with pytest.raises(AssertionError, match="beyond the arena"):
        probe.write("u16", 65535, 4)
