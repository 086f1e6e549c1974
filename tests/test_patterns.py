"""Names of files that follow one another: whose a file is, and whether two outputs could meet."""

from __future__ import annotations

import calendar
import os
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gazer.config import Capture, Config, Output, OutputKind, Rotation, Service
from gazer.config.patterns import CONVERSIONS, Names, claims, collide, folder_and_file, turning
from gazer.config.reader import parse
from gazer.errors import ConfigError

NOON = calendar.timegm((2026, 11, 23, 12, 0, 0))


def output(path: str, **keys) -> Output:
    return Output(OutputKind.TEXT, path, rotation=Rotation(**keys) if keys else None)


def problems(*outputs: Output, **sections) -> list[tuple[str, str]]:
    return replace(Config(), outputs=outputs, **sections).problems()


# ------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(("path", "moment", "name"), [
    ("/x/dns-%Y%m%d-%H.log", NOON, "dns-20261123-12.log"),
    ("%y%j.%u", NOON, "26327.1"),
    ("%G-W%V", calendar.timegm((2027, 1, 1, 0, 0, 0)), "2026-W53"),      # ISO 8601: not yet 2027
    ("a%%%S", 59, "a%59"),
    ("dns.log", NOON, "dns.log.20261123T120000Z"),
    ("%Y", -5, "1970"), ("%Y", 1e18, "9999"),
])  # fmt: skip
def test_a_name_is_that_of_its_time_by_utc(path, moment, name, monkeypatch):
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    assert Names(path).at(moment) == name


@pytest.mark.parametrize(("path", "why"), [
    ("a%Q", "%Q is no conversion"), ("a%", "% is no conversion"), ("a%b", "%b is no conversion"),
    ("a%\n", "is no conversion"), ("%Y/a", "a folder can't change"), ("x%/a", "a folder can't"),
])  # fmt: skip
def test_what_is_no_name(path, why):
    with pytest.raises(ValueError, match=re.escape(why)):
        Names(path)


def test_each_conversion_gives_so_many_digits_and_changes_when_it_says():
    for letter, (digits, unit) in CONVERSIONS.items():
        names = Names(f"%{letter}")
        for moment in range(NOON, NOON + 3 * 86400 * 366, 86400 * 5 + 3601):
            assert re.fullmatch(rf"[0-9]{{{digits}}}", names.at(moment))
            begin = moment // unit * unit
            assert names.at(begin) == names.at(moment) == names.at(begin + unit - 1)


@pytest.mark.parametrize("path", ["dns-%Y%m%d-%H.log", "dns.log", "a.b.1", "%S", "x.gz", "(a|b)*"])
@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("number", [0, 1, 10, 4711])
def test_our_own_names_are_taken_apart(path, ending, number):
    names = Names(path)
    base = names.at(NOON)
    plain = f"{base}.{number}" if number else base
    for part in ("", ".part"):
        found = names.parse(plain + ending + part)
        assert (found.base, found.number, found.ending, found.part) == (
            base, number, ending, bool(part))
        assert found.plain == plain


@pytest.mark.parametrize(("path", "name"), [
    ("dns.log", "dns.log"), ("dns.log", "dns.log.1"), ("dns.log", "dns.log.gz"),
    ("dns.log", "dns.log.20261123T120000Z.bz2"), ("dns.log", "dnsxlog.20261123T120000Z"),
    ("dns.log", "dns.log.20261123T120000Z.0"), ("dns.log", "dns.log.20261123T120000Z.01"),
    ("dns.log", "dns.log.20261123T120000Z\n"), ("dns.log", "xdns.log.20261123T120000Z"),
    ("dns-%H", "dns-1"), ("dns-%H", "dns-111"), ("dns-%H", "dns-11.old"), ("dns-%H", "dns-11.gz.1"),
    ("dns-%H", "dns-\u0661\u0661"), ("dns-%H", "dns-11.gz.gz"), ("dns-%H", "dns-11.1.2"),
])  # fmt: skip
def test_what_is_somebody_else_s(path, name):
    assert Names(path).parse(name) is None
    assert not claims(output(path, size=1 << 20), name)


def test_an_output_without_any_such_key_has_one_file_for_good():
    assert turning(output("a")) is turning(output("-")) is turning(output("a%%")) is None
    assert turning(output("a", mode=0o600)) is None
    assert turning(output("-", size=1 << 20)) is None
    assert turning(output("a%H")) == Rotation()
    assert turning(output("a", interval_ns=10**9)) == Rotation(interval_ns=10**9)
    assert folder_and_file(output("/x/a%%")) == ("", "/x/a%")
    assert folder_and_file(output("a", size=1 << 20)) == (".", "./a")
    assert folder_and_file(output("-")) == ("", "-")


# ------------------------------------------------------------------------------------- two outputs


PIECES = st.lists(st.sampled_from(
    ["a", "1", "12", ".", ".1", ".gz", "%H", "%Y", "%d", ".20261123T120000Z"]),
    min_size=1, max_size=4).map("".join)


def all_names(one: Output) -> set[str]:
    """Many of the names that an output's files can have: the oracle's, by writing them down."""
    names = Names(one.path)
    if turning(one) is None:
        return {names.literal}
    stems = {re.sub(r"%(.)", lambda m, fill=fill: fill * CONVERSIONS[m[1]][0], one.path)
             for fill in "12"}
    for text in ("20261123T120000Z", "12", "2026", "1", "11", "2611"):
        width = sum(CONVERSIONS[c][0] for c in re.findall(r"%(.)", one.path))
        digits = iter((re.sub(r"\D", "", text) * 99)[:width])
        stems.add(re.sub(r"%(.)", lambda m, d=digits: "".join(
            next(d) for _ in range(CONVERSIONS[m[1]][0])), one.path))
    found = set() if names.timed else {one.path}
    if not names.timed:
        stems = {f"{one.path}.{stamp}" for stamp in ("20261123T120000Z", "11111111T111111Z")}
    for stem in stems:
        for number in ("", ".1", ".11", ".12", ".2026", ".1111"):
            for ending in ("", ".gz", ".zst"):
                found |= {f"{stem}{number}{ending}", f"{stem}{number}{ending}.part"}
    return found


@settings(max_examples=400, deadline=None)
@given(PIECES, PIECES, st.booleans(), st.booleans())
def test_two_outputs_that_can_meet_are_found(first, second, size, other_size):
    one = output(first, size=(1 << 20) * size)
    other = output(second, size=(1 << 20) * other_size)
    if all_names(one) & all_names(other):
        assert collide(one, other)
    assert collide(one, other) == collide(other, one)
    assert collide(one, one)


@pytest.mark.parametrize(("first", "second", "meet"), [
    ("a%H", "a%M", True), ("a%H", "a%Y", False), ("a%H", "b%H", False), ("a%H", "a%H.1", True),
    ("a", "a%H", False), ("a.%Y%m%dT%H%M%SZ", "a", True), ("a%H", "a12", True),
    ("a%H", "a12.gz", True), ("a%H", "a1", False), ("a%y%d", "a%Y", True),
])  # fmt: skip
def test_which_of_them_meet(first, second, meet):
    one, other = output(first, size=1 << 20), output(second, size=1 << 20)
    assert collide(one, other) is meet
    told = [path for path, text in problems(one, other) if "can have the same names" in text]
    assert told == ["outputs[1].path"] * meet
    assert not problems(one, replace(other, path=f"/etc/{second}"))     # in another folder
    if meet:
        assert problems(one, replace(other, path=f"./{second}"))


def test_one_that_stays_beside_one_that_is_followed():
    assert not collide(output("a12"), output("a13"))
    assert [path for path, _ in problems(output("a12"), output("a%H"))] == ["outputs[1].path"]


def test_a_file_that_is_read_or_kept_is_not_taken_for_one_that_was_closed():
    mine = output("x/a%H")
    for section, label in (({"capture": Capture(("b", "./x/a11.gz"))}, "capture.files[1]"),
                           ({"service": Service(quarantine="x/a11")}, "service.quarantine")):
        ((path, text),) = problems(mine, **section)
        assert path == label and "would be taken for a closed file of outputs[0]" in text
    assert not problems(mine, capture=Capture(("a11.gz", "x/a1", "-")))


# -------------------------------------------------------------------------------------------- keys


def read(text: str) -> Output:
    return parse(f"outputs: [{{type: text, path: dns.log, {text}}}]", "c").outputs[0]


def test_every_key_is_read():
    made = read("rotate: {size: 100MiB, interval: 1h, compress: gzip, keep_age: 720h, "
                "keep_bytes: 10GiB, mode: 0644}")
    assert made.rotation == Rotation(100 << 20, 3600 * 10**9, "gzip", 720 * 3600 * 10**9, 10 << 30,
                                     0o644)
    assert read("rotate:").rotation == Rotation()
    assert read("format: json").rotation is None


@pytest.mark.parametrize(("text", "error"), [
    ("rotate: 1h", 'outputs[0].rotate: expected a mapping of keys, got "1h"'),
    ("rotate: {siz: 1}", "outputs[0].rotate.siz: no such key; did you mean outputs[0].rotate.size"),
    ("rotate: {size: 1KiB}", "outputs[0].rotate.size: 1KiB is less than what is written at once"),
    ("rotate: {interval: 1.5s}", "outputs[0].rotate.interval: 1500ms is no whole second"),
    ("rotate: {compress: gzip}", "outputs[0].rotate.compress: no file of this output is ever"),
    ("rotate: {keep_age: 1h}", "outputs[0].rotate.keep_age: no file of this output is ever"),
    ("rotate: {keep_bytes: 1}", "outputs[0].rotate.keep_bytes: no file of this output is ever"),
    ("rotate: {size: 2MiB, keep_bytes: 1MiB}",
     "outputs[0].rotate.keep_bytes: 1MiB is less than one file"),
    ("rotate: {mode: 0140}", "outputs[0].rotate.mode: expected a file mode in octal, 0600 to 0777"),
    ("rotate: {mode: 4755}", "outputs[0].rotate.mode: expected"),
    ("rotate: {mode: 0o640}", "outputs[0].rotate.mode: expected"),
    ("rotate: {mode: 8}", "outputs[0].rotate.mode: expected"),
    ("rotate: {compress: xz}", 'expected "none", "gzip" or "zstd", got "xz"'),
])  # fmt: skip
def test_what_is_wrong_with_a_key_is_told(text, error):
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert error in str(caught.value)


@pytest.mark.parametrize("path", ["-", "/dev/stdout", "/dev/null", "x/"])
def test_what_is_no_file_can_t_be_followed_by_another(path):
    assert ("outputs[0].rotate", "that is no file which could be begun anew") in problems(
        output(path, size=1 << 20))


@pytest.mark.parametrize("kind", ["fifo", "link", "folder", "plain", "nothing"])
def test_what_is_there_and_no_plain_file_is_told(tmp_path, kind):
    path = tmp_path / "a"
    {"fifo": lambda: os.mkfifo(path), "link": lambda: path.symlink_to("b"), "folder": path.mkdir,
     "plain": path.touch, "nothing": lambda: None}[kind]()
    told = [] if kind in ("plain", "nothing") else [
        ("outputs[0].path", "only plain files can follow one another, and that is something else")]
    assert problems(output(str(path), size=1 << 20)) == told
    assert not problems(output(str(path)))


def test_a_name_must_leave_room_for_what_is_added():
    assert not problems(output("a" * 193, size=1 << 20))
    assert "no room for what is added" in problems(output("a" * 194, size=1 << 20))[0][1]
    assert not problems(output("a" * 194))


def test_a_path_that_is_no_name_is_told_and_nothing_else():
    ((path, text),) = problems(output("a%Q", size=1 << 20), output("b"))
    assert path == "outputs[0].path" and text.startswith("%Q is no conversion")


def test_zstd_has_to_be_there(monkeypatch):
    zstd = output("a%H", compress="zstd")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert not problems(zstd)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ((path, text),) = problems(zstd)
    assert path == "outputs[0].rotate.compress" and "zstandard" in text
