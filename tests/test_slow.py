"""LOC by way of dnslib, against dnspython."""

import struct
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.wire import dnspython, generic, render

size = st.tuples(st.integers(1, 9), st.integers(0, 9)).map(lambda t: t[0] << 4 | t[1])


def loc(*numbers):
    return struct.pack("!BBBBIII", 0, *numbers)


@given(size, size, size, st.integers(-324_000_000, 324_000_000),
       st.integers(-648_000_000, 648_000_000), st.integers(0, 2**32 - 1))
@example(0x12, 0x16, 0x13, 0, 0, 0)
@example(0x12, 0x16, 0x13, 500, -500, 10_000_000)       # half a second, nothing else
@example(0x12, 0x16, 0x13, 60_000, -3_600_000, 10_000_000)
def test_loc(s, h, v, latitude, longitude, altitude):
    """dnslib leaves out what stands at its default at the end, dnspython all three or none."""
    rdata = loc(s, h, v, 2**31 + latitude, 2**31 + longitude, altitude)
    text, anomaly = render("LOC", rdata)
    assert anomaly == "ok"
    defaults = ["1.00m", "10000.00m", "10.00m"]
    theirs = dnspython("LOC", rdata).split(" ")
    if len(theirs) == 9:
        theirs += defaults
    ours = text.split(" ")
    assert ours + defaults[len(ours) - 9:] == theirs


@pytest.mark.parametrize("rdata", [
    b"\1" + loc(0x12, 0x16, 0x13, 2**31, 2**31, 0)[1:],         # version 1
    loc(0xA0, 0x16, 0x13, 2**31, 2**31, 0),                     # a digit beyond 9
    loc(0x12, 0x1A, 0x14, 2**31, 2**31, 0),
])
def test_bad_loc(rdata):
    assert render("LOC", rdata) == (generic(rdata), "bad_rdata")


def test_dnslib_is_imported_late():
    code = ("import sys; from gazer.workers import probe; a = 'dnslib' in sys.modules; "
            "probe.render_rdata(bytes(16), 0, 16, 29); print(a, 'dnslib' in sys.modules)")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "True"]


def test_one_message_may_take_the_slow_road_so_often_and_no_more():
    """The rest are shown in the form of RFC 3597; a bad record between does not start it anew."""
    from gazer.workers.doors import Reader

    loc = bytes([0, 0x12, 0x16, 0x13]) + bytes.fromhex("8b0d2d6670be15f000988d20")
    one = b"\0" + (29).to_bytes(2) + b"\0\1\0\0\0\0\0\x10" + loc
    bad = b"\0\0\x0f\0\1\0\0\0\0\0\1\0"      # MX with one octet of rdata
    wire = b"\0\1\x80\0\0\0" + (80).to_bytes(2) + bytes(4) + (one + bad) * 40
    records = Reader().read(wire)["records"]
    texts = [record[5] for record in records if record[2] == 29]
    assert len(texts) == 40
    assert sum(not text.startswith("\\# 16 ") for text in texts) == 16
