"""Record data of every type against dnspython, then cut, stretched and spoilt."""

import json
import struct
import subprocess
import sys

import dns.rdata
import dns.rdatatype
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gazer.workers import probe, rrtypes
from tests.wire import (
    BASE,
    NUMBER,
    ZONE,
    dnspython,
    encode_name,
    encode_params,
    generic,
    labels,
    name_text,
    plain_labels,
    pointer,
    render,
)

# What the fields of the types' rdata look like on the wire.
u8 = st.integers(0, 255).map(lambda n: bytes([n]))
u16 = st.integers(0, 0xFFFF).map(lambda n: n.to_bytes(2, "big"))
u32 = st.integers(0, 0xFFFFFFFF).map(lambda n: n.to_bytes(4, "big"))
ttl = st.integers(0, 0x7FFFFFFF).map(lambda n: n.to_bytes(4, "big"))
string = st.binary(max_size=255).map(lambda s: bytes([len(s)]) + s)
blob = st.binary(min_size=1, max_size=80)
name = st.one_of(
    plain_labels.map(encode_name),
    plain_labels.map(lambda parts: encode_name(parts)[:-1] + pointer(ZONE)),
    plain_labels.map(lambda parts: encode_name(parts)[:-1] + pointer(12)),
)
# dnspython follows no pointer in types younger than RFC 3597 (section 4); we do, tested below.
YOUNG = {"DNAME", "KX", "LP", "RRSIG", "NSEC", "SVCB", "HTTPS"}
flat_name = plain_labels.map(encode_name)
tag = st.text("abcXYZ019", min_size=1, max_size=30).map(lambda s: bytes([len(s)]) + s.encode())
# Types that have the same name for dnspython as for us: it does not know all of IANA's.
same_type = st.one_of(st.sampled_from(sorted(rrtypes.TYPES)), st.integers(1, 0xFFFF)).filter(
    lambda n: dns.rdatatype.to_text(n) == rrtypes.TYPES.get(n, f"TYPE{n}")
)
covered = same_type.map(lambda n: n.to_bytes(2, "big"))
digest = st.one_of(st.just((1, 20)), st.just((2, 32)), st.just((4, 48)), st.just((200, 7)))


def encode_bitmap(types):
    windows = {}
    for number in types:
        window = windows.setdefault(number >> 8, bytearray(32))
        window[(number & 255) >> 3] |= 0x80 >> (number & 7)
    wire = b""
    for number, window in sorted(windows.items()):
        octets = bytes(window).rstrip(b"\0")
        wire += bytes([number, len(octets)]) + octets
    return wire


bitmap = st.lists(same_type, max_size=20).map(encode_bitmap)


def fields(*strategies):
    return st.tuples(*strategies).map(b"".join)


ds_like = st.tuples(u16, u8, digest, st.binary(min_size=48, max_size=48)).map(
    lambda t: t[0] + t[1] + bytes([t[2][0]]) + t[3][: t[2][1]]
)
tlsa_like = st.tuples(u8, u8, st.sampled_from([(0, 30), (1, 32), (2, 64), (9, 5)]),
                      st.binary(min_size=64, max_size=64)).map(
    lambda t: t[0] + t[1] + bytes([t[2][0]]) + t[3][: t[2][1]]
)


alpn = st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=4).map(
    lambda ids: b"".join(bytes([len(i)]) + i for i in ids)
)
ech = st.binary(min_size=4, max_size=60).map(lambda b: len(b).to_bytes(2, "big") + b)
global_ipv6 = st.integers(0x2000 << 112, (0x4000 << 112) - 1).map(lambda n: n.to_bytes(16, "big"))
# Keys 8 to 10 are left out: whether dnspython has a name for them depends on its version.
optional_params = st.fixed_dictionaries({}, optional={
    1: alpn,
    2: st.just(b""),
    3: u16,
    4: st.lists(st.binary(min_size=4, max_size=4), min_size=1, max_size=4).map(b"".join),
    5: ech,
    6: st.lists(global_ipv6, min_size=1, max_size=4).map(b"".join),
    7: st.binary(max_size=40),
    11: st.binary(max_size=40),
    65280: st.binary(max_size=40),
})


@st.composite
def some_params(draw):
    params = draw(optional_params)
    if 2 in params and 1 not in params:     # dnspython holds the rules between parameters
        params[1] = b"\2h2"
    if params and draw(st.booleans()):
        keys = draw(st.sets(st.sampled_from(sorted(params)), min_size=1))
        params[0] = b"".join(key.to_bytes(2, "big") for key in sorted(keys))
    return encode_params(params)


svcb = fields(st.integers(1, 0xFFFF).map(lambda n: n.to_bytes(2, "big")), flat_name,
              some_params())

SAMPLES = {
    "A": st.binary(min_size=4, max_size=4),
    "AAAA": global_ipv6,
    "NS": name, "CNAME": name, "PTR": name, "DNAME": flat_name, "MB": name, "MG": name, "MR": name,
    "SOA": fields(name, name, u32, ttl, ttl, ttl, ttl),
    "MINFO": fields(name, name), "RP": fields(name, name),
    "MX": fields(u16, name), "AFSDB": fields(u16, name), "RT": fields(u16, name),
    "KX": fields(u16, flat_name), "LP": fields(u16, flat_name), "PX": fields(u16, name, name),
    "TXT": st.lists(string, min_size=1, max_size=5).map(b"".join),
    "SPF": st.lists(string, min_size=1, max_size=5).map(b"".join),
    "AVC": st.lists(string, min_size=1, max_size=5).map(b"".join),
    "NINFO": st.lists(string, min_size=1, max_size=5).map(b"".join),
    "RESINFO": st.lists(string, min_size=1, max_size=5).map(b"".join),
    "WALLET": st.lists(string, min_size=1, max_size=5).map(b"".join),
    "HINFO": fields(string, string),
    "X25": string,
    "SRV": fields(u16, u16, u16, name),
    "NAPTR": fields(u16, u16, string, string, string, name),
    "CAA": fields(u8, tag, st.binary(max_size=60)),
    "URI": fields(u16, u16, st.text("abc:/.\"\\ ~", min_size=1).map(str.encode)),
    "DS": ds_like, "DLV": ds_like, "CDS": ds_like, "TA": ds_like,
    "DNSKEY": fields(u16, u8, u8, blob), "CDNSKEY": fields(u16, u8, u8, blob),
    "KEY": fields(u16, u8, u8, blob),
    "RRSIG": fields(covered, u8, u8, ttl, u32, u32, u16, flat_name, blob),
    "SIG": fields(covered, u8, u8, ttl, u32, u32, u16, name, blob),
    "NSEC": fields(flat_name, bitmap),
    "NSEC3": fields(u8, u8, u16, string, blob.map(lambda b: bytes([len(b)]) + b), bitmap),
    "NSEC3PARAM": fields(u8, u8, u16, string),
    "CSYNC": fields(u32, u16, bitmap),
    "TLSA": tlsa_like, "SMIMEA": tlsa_like,
    "SSHFP": fields(u8, st.sampled_from([(1, 20), (2, 32), (77, 9)]).flatmap(
        lambda t: st.binary(min_size=t[1], max_size=t[1]).map(lambda b: bytes([t[0]]) + b))),
    "ZONEMD": fields(u32, st.just(b"\1\1"), st.binary(min_size=48, max_size=48)),
    "OPENPGPKEY": blob, "DHCID": blob,
    "SVCB": svcb, "HTTPS": svcb,
}
NO_TWIN = {"MB", "MG", "MR", "MINFO", "TA"}      # dnspython shows these in the form of RFC 3597
LIKE = {"MB": "NS", "MG": "NS", "MR": "NS", "MINFO": "RP", "TA": "DLV"}
IN_ONLY = {"A", "AAAA", "SRV", "NAPTR", "KX", "PX", "DHCID", "SVCB", "HTTPS"}

# One record of each type, for the tests that go through all its lengths: the smallest of its kind
# that has something of everything.
RECORD = {
    "A": b"\xc0\0\2\1", "AAAA": bytes.fromhex("20010db8000000000000000000000001"),
    "NS": b"\2ns" + pointer(ZONE), "CNAME": pointer(12), "PTR": b"\0",
    "DNAME": b"\1d" + pointer(ZONE),
    "MB": pointer(ZONE), "MG": pointer(ZONE), "MR": pointer(ZONE),
    "SOA": b"\2ns" + pointer(ZONE) + b"\4root" + pointer(ZONE) + struct.pack("!5I", 1, 2, 3, 4, 5),
    "MINFO": pointer(ZONE) * 2, "RP": pointer(ZONE) * 2,
    "MX": b"\0\12\2mx" + pointer(ZONE), "AFSDB": b"\0\1" + pointer(ZONE),
    "RT": b"\0\1" + pointer(ZONE), "KX": b"\0\1" + pointer(ZONE), "LP": b"\0\1" + pointer(ZONE),
    "PX": b"\0\1" + pointer(ZONE) + b"\1x\0",
    "HINFO": b"\3cpu\2o\"", "X25": b"\00412\\4",
    "SRV": b"\0\1\0\2\0\x35" + pointer(ZONE),
    "NAPTR": b"\0\1\0\2\1S\0\3a\\b" + pointer(ZONE),
    "CAA": b"\x80\5issueletsencrypt.org", "URI": b"\0\1\0\2https://e/\"",
    "DS": b"\0\1\x08\7abc", "DLV": b"\0\1\x08\7abc",
    "CDS": b"\0\1\x08\7abc", "TA": b"\0\1\x08\7abc",
    "DNSKEY": b"\1\0\3\x08abcd", "CDNSKEY": b"\1\0\3\x08abcd", "KEY": b"\1\0\3\x08abcd",
    "RRSIG": b"\0\1\x08\2" + struct.pack("!IIIH", 3600, 1444531212, 1444531213, 7)
             + pointer(ZONE) + b"sig",
    "SIG": b"\0\0\x08\2" + struct.pack("!IIIH", 3600, 1444531212, 1444531213, 7) + b"\0sig",
    "NSEC": pointer(12) + encode_bitmap([1, 2, 46, 47, 257]),
    "NSEC3": b"\1\0\0\5\2ab\5abcde" + encode_bitmap([1, 2, 46, 257]),
    "NSEC3PARAM": b"\1\0\0\5\0", "CSYNC": b"\0\0\0\1\0\3" + encode_bitmap([1, 28]),
    "TLSA": b"\3\1\0ab", "SMIMEA": b"\3\1\0ab", "SSHFP": b"\1\7ab",
    "ZONEMD": b"\0\0\0\1\1\xf0abcdefghijkl", "OPENPGPKEY": b"abcd", "DHCID": b"abcd",
    "TXT": b"\3a\"b\0\2\\\xff", "SPF": b"\1a", "AVC": b"\1a", "NINFO": b"\1a", "RESINFO": b"\1a",
    "WALLET": b"\1a",
    "SVCB": b"\0\1" + pointer(ZONE) + encode_params({
        0: b"\0\1", 1: b"\2h2\3a,\\", 2: b"", 3: b"\1\xbb", 4: b"\1\2\3\4" * 2,
        5: b"\0\4abcd", 6: bytes(16), 7: b"/q{?dns}", 300: b"\"x", 301: b""}),
    "HTTPS": b"\0\0\1a" + pointer(ZONE),
    "LOC": bytes.fromhex("0012161389178e3f5f9b1d8a009a3d30"),
    "OPT": b"\0\x0a\0\x08abcdefgh\0\x0f\0\5\0\x12a\"c\xff\xf0\0\2zz",
}


def test_every_type_has_its_samples():
    assert set(SAMPLES) | {"LOC", "OPT"} == set(RECORD)


@pytest.mark.parametrize("rrtype", SAMPLES)
@settings(max_examples=40)      # of fifty types; `make differential` has two million
@given(st.data())
def test_like_dnspython(rrtype, data):
    rdata = data.draw(SAMPLES[rrtype])
    expected = dnspython(LIKE.get(rrtype, rrtype), rdata)
    assert expected is not None
    assert render(rrtype, rdata) == (expected, "ok")


@pytest.mark.parametrize("rrtype", sorted(YOUNG))
def test_compressed_names_in_young_types(rrtype):
    rdata = RECORD[rrtype]
    flat = rdata.replace(pointer(ZONE), BASE[ZONE:]).replace(pointer(12), BASE[12:])
    assert flat != rdata
    assert render(rrtype, rdata) == render(rrtype, flat)


@pytest.mark.parametrize("rrtype", [t for t in RECORD if t not in {"LOC", "OPT"} | NO_TWIN])
def test_the_record_of_each_type(rrtype):
    rdata = RECORD[rrtype]
    text, anomaly = render(rrtype, rdata)
    assert anomaly == "ok"
    expected = dnspython(rrtype, rdata)
    if expected is not None:
        assert text == expected


@pytest.mark.parametrize(
    ("rrtype", "text"),
    [
        ("A", "192.0.2.1"),
        ("AAAA", "2001:db8::1"),
        ("NS", "ns.example.com."),
        ("CNAME", "www.example.com."),
        ("PTR", "."),
        ("SOA", "ns.example.com. root.example.com. 1 2 3 4 5"),
        ("MX", "10 mx.example.com."),
        ("TXT", '"a\\"b" "" "\\\\\\255"'),
        ("CAA", '128 issue "letsencrypt.org"'),
        ("NAPTR", '1 2 "S" "" "a\\\\b" example.com.'),
        ("RRSIG", "A 8 2 3600 20151011024012 20151011024013 7 example.com. c2ln"),
        ("NSEC", "www.example.com. A NS RRSIG NSEC CAA"),
        ("NSEC3", "1 0 5 6162 c5h66p35 A NS RRSIG CAA"),
        ("NSEC3PARAM", "1 0 5 -"),
        ("DNSKEY", "256 3 8 YWJjZA=="),
        ("TA", "1 8 7 616263"),
        ("MINFO", "example.com. example.com."),
        ("HTTPS", "0 a.example.com."),
        ("SVCB", '1 example.com. mandatory="alpn" alpn="h2,a\\\\,\\\\\\\\" no-default-alpn '
                 'port="443" ipv4hint="1.2.3.4,1.2.3.4" ech="AARhYmNk" ipv6hint="::" '
                 'dohpath="/q{?dns}" key300="\\"x" key301'),
        ("OPT", 'COOKIE=6162636465666768 EDE=18(Prohibited):"a\\"c" OPT65520=7a7a'),
    ],
)
def test_by_hand(rrtype, text):
    assert render(rrtype, RECORD[rrtype]) == (text, "ok")


@given(labels)
def test_names_by_our_rule(parts):
    """Inside record data as everywhere: only `.` and backslash get a backslash."""
    wire = encode_name(parts)
    text = name_text(parts)
    assert render("CNAME", wire) == (text, "ok")
    assert render("MX", b"\0\5" + wire) == ("5 " + text, "ok")
    assert render("RP", b"\1a" + pointer(12) + wire) == ("a.www.example.com. " + text, "ok")
    assert render("NSEC", wire + b"\0\1\x40") == (text + " A", "ok")


# Where a type's rdata may end and still be whole: at the end of what may be left out.
def may_end(rrtype, rdata, n):
    blobs = {"DS": 4, "DLV": 4, "CDS": 4, "TA": 4, "DNSKEY": 4, "CDNSKEY": 4, "KEY": 3, "TLSA": 3,
             "SMIMEA": 3, "SSHFP": 2, "ZONEMD": 6, "OPENPGPKEY": 0, "DHCID": 0, "CAA": 6, "URI": 4,
             "RRSIG": 20, "SIG": 19}
    ends = {"TXT": {4, 5}, "NSEC": {2, 10}, "NSEC3": {13, 21}, "CSYNC": {6},
            "SVCB": {4, 10, 21, 25, 31, 43, 53, 73, 85, 91}}
    if rrtype in blobs:
        return n > blobs[rrtype]
    return n in ends.get(rrtype, ()) or (rrtype == "OPT" and n in {0, 12, 21})


@pytest.mark.parametrize("rrtype", RECORD)
def test_cut_at_every_length(rrtype):
    rdata = RECORD[rrtype]
    for n in range(len(rdata)):
        text, anomaly = render(rrtype, rdata[:n])
        if may_end(rrtype, rdata, n):
            assert anomaly == "ok" and (n == 0 or not text.startswith("\\#"))
        else:
            assert (text, anomaly) == (generic(rdata[:n]), "bad_rdata"), n


OPEN_ENDED = {"DS", "DLV", "CDS", "TA", "DNSKEY", "CDNSKEY", "KEY", "TLSA", "SMIMEA", "SSHFP",
              "ZONEMD", "OPENPGPKEY", "DHCID", "CAA", "URI", "RRSIG", "SIG"}


@pytest.mark.parametrize("rrtype", [t for t in RECORD if t not in OPEN_ENDED])
def test_bytes_left_over(rrtype):
    rdata = RECORD[rrtype] + b"\7"
    assert render(rrtype, rdata) == (generic(rdata), "bad_rdata")


@pytest.mark.parametrize("rrtype", RECORD)
def test_the_message_goes_on_behind(rrtype):
    """What stands behind the rdata is never read: the cursor's end is its end."""
    rdata = RECORD[rrtype]
    number = NUMBER[rrtype]
    wire = BASE + rdata + b"\3and\4more\0" * 3
    for n in range(len(rdata) + 1):
        end = len(BASE) + n
        assert probe.render_rdata(wire, len(BASE), end, number) == render(rrtype, rdata[:n])


@pytest.mark.parametrize("rrtype", RECORD)
def test_room(rrtype):
    """With any room at all there is either the whole text or none, and nothing is overwritten."""
    for rdata in (RECORD[rrtype], RECORD[rrtype][:-1], RECORD[rrtype] + b"\7"):
        full = render(rrtype, rdata)
        room = 0
        while True:
            got = render(rrtype, rdata, capacity=room)
            assert got == full or got == (None, "no_room")
            if got == full and room > 1100 + len(full[0]) + 600:
                break
            room += 1


@pytest.mark.parametrize("rrtype", RECORD)
@settings(max_examples=40)
@given(st.data())
def test_noise(rrtype, data):
    """Bytes changed, cut, or all made up: text that JSON can hold, in one form or the other."""
    rdata = data.draw(st.one_of(
        st.binary(max_size=80),
        st.tuples(SAMPLES.get(rrtype, st.just(RECORD[rrtype])), st.integers(0, 400),
                  st.binary(max_size=4), st.integers(0, 4)).map(
            lambda t: t[0][: t[1]] + t[2] + t[0][t[1] + t[3]:]),
    ))
    text, anomaly = render(rrtype, rdata)
    assert anomaly in ("ok", "bad_rdata")
    if anomaly == "bad_rdata" and rrtype != "OPT":
        assert text == generic(rdata)
    # The probe has held that the text is printable and `escapes` right; so this is its JSON.
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    assert json.loads(f'"{escaped}"') == text
    theirs = dnspython(LIKE.get(rrtype, rrtype), rdata) if rrtype not in {"OPT", "LOC"} else None
    if theirs is not None and anomaly == "ok" and not strange(rdata):
        assert text == theirs.rstrip()      # a field without octets is none here


def strange(rdata):
    """Octets that dnspython may escape otherwise in a name, or show otherwise in a URI; hints that
    are IPv4-compatible addresses."""
    return any(b in b'"().;\\@$' or b > 126 or b < 33 for b in rdata)


BEFORE_NAME = {"NS": b"", "MX": b"\0\1", "SOA": b"\1a\0", "SRV": bytes(6), "RRSIG": bytes(18),
               "NSEC": b"", "SVCB": b"\0\1", "RP": b"\1a\0", "NAPTR": bytes(7)}
AFTER_NAME = {"SOA": bytes(20), "RRSIG": b"sig"}
LABEL = b"\x3f" + b"x" * 63


@pytest.mark.parametrize("rrtype", BEFORE_NAME)
@pytest.mark.parametrize("bad", [
    "itself", pointer(len(BASE) + 100), pointer(0x3FFF), b"\x40a\0", b"\x80a\0",
    LABEL * 4 + b"\0", LABEL * 3 + b"\x2f" + b"x" * 47 + pointer(12),
])
def test_bad_names(rrtype, bad):
    head, tail = BEFORE_NAME[rrtype], AFTER_NAME.get(rrtype, b"")
    if bad == "itself":
        bad = pointer(len(BASE) + len(head))
    rdata = head + bad + tail
    assert render(rrtype, rdata) == (generic(rdata), "bad_rdata")
    assert render(rrtype, head + b"\1b\0" + tail)[1] == "ok"


def test_a_name_taken_back_is_forgotten():
    """A bad SOA's first name was rendered, then its place was overwritten by the generic form; a
    name that points to it must be read from the message again."""
    bad = b"\5first" + pointer(ZONE) + b"\3two" + pointer(ZONE) + bytes(19)
    wire = BASE + bad
    at = len(wire)
    wire += pointer(len(BASE)) + pointer(ZONE)
    soa, cname, ns = NUMBER["SOA"], NUMBER["CNAME"], NUMBER["NS"]
    records = [(len(BASE), at, soa, 1), (at, at + 2, cname, 1), (at + 2, at + 4, ns, 1)]
    assert probe.render_records(wire, records) == [
        (generic(bad), "bad_rdata"), ("first.example.com.", "ok"), ("example.com.", "ok")]


@pytest.mark.parametrize("bits", [
    b"\0", b"\0\0", b"\0\x21" + b"\1" * 33, b"\0\1\0", b"\0\2\x40\0",
    b"\1\1\1\0\1\1", b"\0\1\1\0\1\1", b"\0\2\1",
])
def test_bad_bitmaps(bits):
    for rdata, rrtype in ((b"\0" + bits, "NSEC"), (b"\0\0\0\1\0\3" + bits, "CSYNC")):
        assert render(rrtype, rdata) == (generic(rdata), "bad_rdata")


def test_whole_bitmap():
    bits = b"".join(bytes([w, 32]) + b"\xff" * 32 for w in range(256))
    text, anomaly = render("NSEC", b"\0" + bits)
    assert anomaly == "ok"
    assert text.split(" ") == [".", *(rrtypes.TYPES.get(n, f"TYPE{n}") for n in range(65536))]
    assert render("NSEC", b"\0" + bits, capacity=100_000) == (None, "no_room")


@pytest.mark.parametrize("octet", [b"-", b"_", b" ", b"\0", b"\xe4", b'"'])
def test_bad_caa_tag(octet):
    rdata = b"\0\3is" + octet + b"x"
    assert render("CAA", rdata) == (generic(rdata), "bad_rdata")
    assert render("CAA", b"\0\0x")[1] == "bad_rdata"


@pytest.mark.parametrize("rrtype", RECORD)
def test_classes(rrtype):
    rdata = RECORD[rrtype]
    chaos = render(rrtype, rdata, klass=3)
    if rrtype in IN_ONLY:
        assert chaos == (generic(rdata), "ok")
    else:
        assert chaos == render(rrtype, rdata)
    # A dynamic update's "delete these": no rdata, and nothing wrong with that.
    for klass in (254, 255):
        assert render(rrtype, b"", klass=klass) == ("\\# 0", "ok")


@given(st.integers(0, 0xFFFF), st.binary(max_size=100), st.sampled_from([1, 3, 4, 254, 255, 4711]))
@example(65280, bytes.fromhex("c0a80001"), 1)
@example(10, b"", 1)
def test_unknown_types(number, rdata, klass):
    assume(rrtypes.TYPES.get(number) not in RECORD)
    if number == NUMBER["MD"] or number == NUMBER["MF"]:
        return
    assert render(number, rdata, klass=klass) == (generic(rdata), "ok")


def test_obsolete_names():
    assert render("MD", pointer(ZONE)) == render("MF", pointer(ZONE)) == ("example.com.", "ok")


def test_key_without_key():
    assert render("KEY", b"\xc0\0\3\0") == ("49152 3 0", "ok")
    assert render("DNSKEY", b"\1\0\3\x08")[1] == "bad_rdata"


def test_the_largest_rdata():
    full = (b"\xff" + b"\0" * 255) * 255 + b"\xfe" + b"\0" * 254
    for rdata in (b"\xff" * 65535, b"\0" * 65535, full):
        text, anomaly = render("TXT", rdata)
        if anomaly == "ok":
            assert text == dnspython("TXT", rdata)
        else:
            assert text == generic(rdata)
        assert render(65280, rdata) == (generic(rdata), "ok")
        assert render("OPENPGPKEY", rdata)[0] == dnspython("OPENPGPKEY", rdata)


def test_the_probe_guards_the_message():
    """The tests above mean little if a read beyond the message went unseen."""
    code = "from gazer.workers import probe; probe.read_beyond(b'abc')"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -11


def test_name_list_of_dnspython_types():
    """Types that dnspython decodes and we leave in the form of RFC 3597: a list, so that it is
    known and not forgotten."""
    left = set()
    for rdtype in dns.rdatatype.RdataType:
        klass = dns.rdata.get_rdata_class(1, rdtype)
        if klass is not dns.rdata.GenericRdata and rdtype.name not in RECORD:
            left.add(rdtype.name)
    assert left <= {"AMTRELAY", "APL", "BRID", "CERT", "DSYNC", "EUI48", "EUI64", "GPOS", "HHIT",
                    "HIP", "IPSECKEY", "ISDN", "L32", "L64", "NID", "NSAP", "NSAP_PTR", "TKEY",
                    "TSIG", "WKS", "A6", "NXNAME"}

