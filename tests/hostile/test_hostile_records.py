"""Records: counts that promise more, and rdata of every type that the decoder knows with a length
that lies.

GOOD has one good rdata for each type that is decoded. Which types those are is asked of the
decoder itself, so that a new type without its line here fails a test. What a type makes of too few
or too many octets (a digest may have any length, an address may not) the oracle says.
"""

from __future__ import annotations

import pytest

from gazer.workers import probe, rrtypes
from tests.hostile.bombs import A, Case, Ran, case, names, query, ran, reply, shows
from tests.oracle import build, message
from tests.wire import NUMBER

WWW = build.labels("www", "example")
UP = b"\xc0\x0c"        # a pointer to it
OPT = NUMBER["OPT"]

# A rdata of each type: octets as they stand, `+` where a field ends.
GOOD = {
    "A": b"\xc0\0\2\1",
    "NS": WWW, "MD": WWW, "MF": WWW, "CNAME": WWW, "MB": WWW, "MG": WWW, "MR": WWW, "PTR": WWW,
    "DNAME": WWW,
    "SOA": WWW + UP + bytes(range(20)),
    "HINFO": b"\3CPU" + b"\2OS",
    "MINFO": WWW + UP,
    "MX": b"\0\x0a" + WWW,
    "TXT": b"\5hello" + b"\0" + b"\2\"\\",
    "RP": WWW + UP,
    "AFSDB": b"\0\1" + WWW,
    "X25": b"\6" + b"311061",
    "RT": b"\0\1" + WWW,
    "SIG": b"\0\1\5\2" + bytes(12) + b"\x12\x67" + WWW + b"signature",
    "KEY": b"\1\0\3\5" + b"key",
    "PX": b"\0\1" + WWW + UP,
    "AAAA": bytes.fromhex("20010db8000000000000000000000001"),
    "LOC": bytes.fromhex("00121613" "8b9a3d68" "8d3a5c00" "00989c18"),
    "SRV": b"\0\1\0\2\0\x35" + WWW,
    "NAPTR": b"\0\1\0\2" + b"\1S" + b"\3SIP" + b"\4!a!b" + WWW,
    "KX": b"\0\1" + WWW,
    "OPT": b"\0\x0a\0\x08cookies!",
    "DS": b"\x12\x34\x0d\2" + b"digest" * 5,
    "SSHFP": b"\4\2" + b"fingerprint",
    "RRSIG": b"\0\1\x0d\2" + bytes(12) + b"\x12\x67" + WWW + b"signature",
    "NSEC": WWW + b"\0\2\x40\1",
    "DNSKEY": b"\1\1\3\x0d" + b"public key",
    "DHCID": b"identifier",
    "NSEC3": b"\1\0\0\5" + b"\2sa" + b"\4hash" + b"\0\1\x40",
    "NSEC3PARAM": b"\1\0\0\5" + b"\4salt",
    "TLSA": b"\3\1\1" + b"hash of a certificate",
    "SMIMEA": b"\3\1\1" + b"hash of a certificate",
    "NINFO": b"\4text",
    "CDS": b"\x12\x34\x0d\2" + b"digest" * 5,
    "CDNSKEY": b"\1\1\3\x0d" + b"public key",
    "OPENPGPKEY": b"public key",
    "CSYNC": b"\0\0\0\7\0\3" + b"\0\1\x40",
    "ZONEMD": b"\0\0\0\7\1\1" + b"digest" * 8,
    "SVCB": b"\0\1" + WWW + b"\0\1\0\3\2h2" + b"\0\3\0\2\1\xbb",
    "HTTPS": b"\0\1" + WWW + b"\0\4\0\4\xc0\0\2\1",
    "SPF": b"\7v=spf1 ",
    "LP": b"\0\1" + WWW,
    "URI": b"\0\1\0\2" + b"https://example/",
    "CAA": b"\0\5issue" + b"ca.example",
    "AVC": b"\4text",
    "RESINFO": b"\x08qnamemin", "WALLET": b"\4text",
    "TA": b"\x12\x34\x0d\2" + b"digest" * 5,
    "DLV": b"\x12\x34\x0d\2" + b"digest" * 5,
}


def decoded() -> set[str]:
    """The types that have a form of their own: to them empty rdata is bad, or (OPT) an option's
    first octets are."""
    found = set()
    for number, name in rrtypes.TYPES.items():
        if any(probe.render_rdata(bytes(12) + rdata, 12, 12 + len(rdata), number)[1] != "ok"
               for rdata in (b"", b"\0\x0a\0")):
            found.add(name)
    return found


def test_every_type_that_is_decoded_has_its_cases():
    assert decoded() == set(GOOD)


def word(wire: bytes) -> str:
    """What the oracle says of a message: malformed (in one way or another), or not."""
    read = message.read(wire)
    assert read is not None
    return "malformed" if read.fault else "ok"


SAME = {"cut off": {"truncated", "counts", "trailing"}, "name too long": {"name_too_long"},
        "pointer not backwards": {"pointer_loop"}, "label type": {"bad_label"},
        "rdata beyond the end": {"rdlength"}}


def as_the_oracle(wire: bytes):
    """The event has the oracle's records, and its fault."""
    read = message.read(wire)

    def check(events):
        assert len(events) == 1
        rows = events[0]["reply"]
        assert len(rows) == len(read.records)
        for row, record in zip(rows, read.records, strict=True):
            assert (row["section"], row["name"]) == (record.section, record.name)
            if record.rdtype != OPT and record.section != "question":
                assert row["data"] == record.data
        found = events[0].get("malformed", {}).get("reply")
        if read.fault is None:
            assert found is None
        elif read.fault.startswith("rdata: "):
            assert found == "bad_rdata"
        else:
            assert found in SAME[read.fault]

    return check


def lying(name: str, rdata: bytes, how: str) -> Case:
    """A reply with this record and, where its end is sound, a good A record behind it."""
    number = NUMBER[name]
    owner = b"\0" if name == "OPT" else UP
    short, long = rdata[:-1], rdata + b"\0"
    records = {
        "past the end": [build.record(owner, number, rdata, rdlength=len(rdata) + 1)],
        "huge": [build.record(owner, number, rdata, rdlength=65535), A],
        "one short": [build.record(owner, number, short), A],
        "one long": [build.record(owner, number, long), A],
        "none at all": [build.record(owner, number, b""), A],
        "twice": [build.record(owner, number, rdata * 2), A],
        # The length lies, the octets are all there: the next record begins one octet early, late.
        "one less than there is": [build.record(owner, number, rdata, rdlength=len(short)), A],
        "one more than there is": [build.record(owner, number, rdata, rdlength=len(long)), A],
    }[how]
    wire = reply(*records)
    if how in ("past the end", "huge"):
        return case(f"{name}: {how}", wire, "malformed rdlength",
                    names("www.example.", of="reply"))
    # OPT is the one type whose options the oracle doesn't read.
    if name == "OPT":
        bad = how in ("one short", "one long")
        if how in ("none at all", "twice"):
            return case(f"{name}: {how}", wire, "ok",
                        names("www.example.", ".", "www.example.", of="reply"))
        if bad:
            return case(f"{name}: {how}", wire, "malformed bad_rdata",
                        names("www.example.", ".", "www.example.", of="reply"))
        return Case(f"{name}: {how}", lambda place: [place.send(wire)], ["malformed"])
    return case(f"{name}: {how}", wire, word(wire), as_the_oracle(wire))


HOW = ("past the end", "huge", "one short", "one long", "none at all", "twice",
       "one less than there is", "one more than there is")
LENGTHS = [lying(name, rdata, how) for name, rdata in GOOD.items() for how in HOW]

# A type that has no form is shown as it is, whatever its length; only the message's end matters.
UNKNOWN = [
    case("TYPE65280: none at all", reply(build.record(UP, 65280, b""), A), "ok"),
    case("TYPE65280: 60,000 octets", reply(build.record(UP, 65280, b"x" * 60_000), A), "ok"),
    case("TYPE65280: past the end", reply(build.record(UP, 65280, b"x", rdlength=2)),
         "malformed rdlength"),
]

HEAD = query()[12:]
COUNTS = [
    case("a header and no more, counts of nothing", query()[:4] + bytes(8), "ok"),
    case("a question that isn't there", build.header(7),
         "unreadable counts"),
    case("65,535 questions, one there", query(counts=(65535, 0, 0, 0)), "unreadable counts"),
    case("two questions, one there", query(counts=(2, 0, 0, 0)), "unreadable counts"),
    case("two questions, both there", query(WWW, HEAD, counts=(2, 0, 0, 0)), "ok",
         names("www.example.", "www.example.")),
    case("300 questions", query(WWW, HEAD * 299, counts=(300, 0, 0, 0)), "ok"),
    case("one answer, none there", reply(counts=(1, 1, 0, 0)), "malformed counts",
         shows(status="no_query", malformed={"reply": "counts"})),
    case("65,535 answers, one there", reply(A, counts=(1, 65535, 0, 0)), "malformed counts",
         names("www.example.", "www.example.", of="reply")),
    case("65,535 everywhere", reply(A, A, counts=(1, 1, 65535, 65535)), "malformed counts"),
    case("an answer that breaks off in its header", reply(A)[:-6], "malformed truncated",
         names("www.example.", of="reply")),
    case("an answer that breaks off behind its name", reply(A[:2], counts=(1, 1, 0, 0)),
         "malformed truncated"),
    case("a question that breaks off behind its name", query()[:-1], "unreadable truncated"),
    case("an octet behind the last record", reply(A) + b"\0", "malformed trailing",
         shows(malformed={"reply": "trailing"})),
    case("a whole message behind the last record", query() + reply(A), "malformed trailing"),
    case("60,000 octets behind the last record", query() + b"x" * 60_000, "malformed trailing"),
    case("all bits set", b"\xff" * 512, "unreadable pointer_loop"),
    case("all bits clear", bytes(512), "malformed trailing"),
    case("5,900 empty records", query(
        b"\0", build.record(b"\0", 65280, b"") * 5_900, counts=(1, 0, 0, 5_900)), "ok",
        lambda events: few_or_told(events, 5_901)),
    case("2,300 records on the slow road", query(
        b"\0", build.record(b"\0", NUMBER["LOC"], GOOD["LOC"]) * 2_300, counts=(1, 2_300, 0, 0)),
        "ok", lambda events: few_or_told(events, 2_301)),
    case("300 OPT records", query(
        b"\0", build.record(b"\0", NUMBER["OPT"], GOOD["OPT"]) * 300, counts=(1, 0, 0, 300)),
        "ok", lambda events: few_or_told(events, 301)),
    case("an OPT record of 15,000 empty options", query(
        b"\0", build.record(b"\0", NUMBER["OPT"], b"\0\x0b\0\0" * 15_000), counts=(1, 0, 0, 1)),
        "ok"),
    case("a bitmap of all types", reply(build.record(UP, NUMBER["NSEC"], WWW + b"".join(
        bytes([window, 32]) + b"\xff" * 32 for window in range(256)))), "ok"),
    case("windows of a bitmap out of order", reply(build.record(
        UP, NUMBER["NSEC"], WWW + b"\1\1\x40" + b"\0\1\x40")), "malformed bad_rdata"),
    case("a TXT of 60,000 empty strings", reply(build.record(UP, NUMBER["TXT"], bytes(60_000))),
         "ok"),
    case("a TXT of octets that each take four", reply(build.record(
        UP, NUMBER["TXT"], (b"\xff" + bytes(255)) * 200)), "ok"),
    case("a TXT whose last string breaks off", reply(build.record(
        UP, NUMBER["TXT"], b"\2ab" + b"\7abc")), "malformed bad_rdata"),
]


def few_or_told(events, records: int) -> None:
    """All records are there, or the event says how many are not."""
    assert len(events) == 1
    assert len(events[0]["query"]) + events[0].get("omitted", 0) == records


CASES = [*LENGTHS, *UNKNOWN, *COUNTS]
run = ran(CASES)


@pytest.mark.parametrize("one", CASES, ids=str)
def test_records(run: Ran, one: Case) -> None:
    run.check(one)


def test_every_frame_is_in_one_counter(run: Ran) -> None:
    run.account()


def test_the_good_rdata_is_good():
    for name, rdata in GOOD.items():
        wire = bytes(12) + WWW + rdata
        start = 12 + len(WWW)
        text, anomaly = probe.render_rdata(wire, start, len(wire), NUMBER[name])
        assert anomaly == "ok", name
        assert not text.startswith("\\#"), name
