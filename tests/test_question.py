"""The question as what tells transactions apart: hashed and compared on bytes made by hand."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gazer.workers import doors
from tests.oracle import build

ONE, OTHER = doors.Reader(), doors.Reader()


def message(*questions: bytes, extra: bytes = b"") -> bytes:
    return build.header(1, 0x100, (len(questions), 0, 0, 0)) + b"".join(questions) + extra


def same(a: bytes, b: bytes) -> bool:
    """Equal by comparison; if so, then also by hash, under each of two seeds."""
    equal = ONE.same_question(a, OTHER, b)
    assert equal == OTHER.same_question(b, ONE, a)
    if equal:
        for seed in (0, 0xFEEDFACE12345678):
            assert ONE.question_hash(a, seed) == ONE.question_hash(b, seed)
    return equal


def told_apart(a: bytes, b: bytes) -> bool:
    """Different by comparison and by hash."""
    return not same(a, b) and ONE.question_hash(a, 1) != ONE.question_hash(b, 1)


labels = st.lists(st.binary(min_size=1, max_size=63), max_size=8).filter(
    lambda parts: sum(map(len, parts)) + len(parts) < 255)
swapped = bytes.maketrans(bytes(range(65, 91)) + bytes(range(97, 123)),
                          bytes(range(97, 123)) + bytes(range(65, 91)))


@given(labels, st.integers(0, 65535), st.integers(0, 65535))
def test_case_does_not_matter(parts, rdtype, rdclass):
    a = message(build.question(build.labels(*parts), rdtype, rdclass))
    b = message(build.question(build.labels(*[p.translate(swapped) for p in parts]), rdtype,
                               rdclass))
    assert same(a, b)


@given(labels, labels)
def test_another_name_is_another_question(a, b):
    one, other = (message(build.question(build.labels(*parts))) for parts in (a, b))
    equal = [p.lower() for p in a] == [p.lower() for p in b]
    assert same(one, other) == equal


@pytest.mark.parametrize("a, b", [(65, 97), (1, 33), (0x4100, 0x6100), (28, 60), (16, 48)])
def test_types_and_classes_are_numbers_and_have_no_case(a, b):
    name = build.labels("example", "com")
    assert told_apart(message(build.question(name, a)), message(build.question(name, b)))
    assert told_apart(message(build.question(name, 1, a)), message(build.question(name, 1, b)))


@pytest.mark.parametrize("a, b", [(b"@", b"`"), (b"[", b"{"), (b"\xc1", b"\xe1"), (b"-", b"\r"),
                                  (b"Z", b"["), (b"A", b"@")])
def test_only_ascii_letters_have_a_case(a, b):
    assert not same(message(build.question(build.labels(a))),
                    message(build.question(build.labels(b))))


def test_label_lengths_are_not_letters():
    # 65 octets can't be a label, but a length of 0x21 and a label of 0x01 must not look alike.
    a = message(build.question(build.labels(b"x" * 0x21, b"y")))
    b = message(build.question(build.labels(b"x" * 0x20, b"xy")))
    assert not same(a, b)
    assert not same(message(build.question(build.labels(b"a", b"b"))),
                    message(build.question(build.labels(b"a\1b"))))


def test_compression_does_not_matter():
    """The second question's name by pointer, whole or in part, and from behind the first."""
    name = build.labels("www", "example", "com")
    plain = message(build.question(name, 1), build.question(name, 28))
    pointer = message(build.question(name, 1), build.question(b"\xc0\x0c", 28))
    tail = message(build.question(name, 1), build.question(b"\3WWW\xc0\x10", 28))
    assert same(plain, pointer) and same(plain, tail) and same(pointer, tail)
    assert told_apart(plain, message(build.question(name, 1), build.question(b"\xc0\x10", 28)))
    # A lone question can point into the header, which is a name too if its octets are.
    ident = struct.pack("!6H", 0x0161, 0x0000, 1, 0, 0, 0)     # octet 0: 1, "a", 0
    assert same(ident + build.question(b"\xc0\x00", 1), message(build.question(b"\1a\0", 1)))


def test_what_follows_the_question_does_not_count():
    question = build.question(build.labels("a"))
    bare = message(question)
    answer = build.record(b"\xc0\x0c", 1, b"abcd")
    loaded = build.header(9, 0x8180, (1, 1, 0, 0)) + question + answer
    assert same(bare, loaded)


def test_no_question_and_several():
    assert same(message(), build.header(5, 0x8005, (0, 0, 0, 0)))
    a, b = build.question(build.labels("a")), build.question(build.labels("b"))
    assert same(message(a, b), message(a, b))
    assert told_apart(message(a, b), message(b, a))
    assert told_apart(message(a, a), message(a, b))
    assert ONE.question_hash(message(a)) != ONE.question_hash(message(a, a))
    assert ONE.question_hash(message()) != ONE.question_hash(message(a))


def test_the_first_sixteen_questions_and_their_number_count():
    many = [build.question(build.labels(f"n{i}")) for i in range(40)]
    changed = [*many[:16], *many[17:], many[16]]
    assert same(message(*many), message(*changed))
    changed = [*many[:15], many[16], many[15], *many[17:]]
    assert told_apart(message(*many), message(*changed))
    assert ONE.question_hash(message(*many)) != ONE.question_hash(message(*many[:39]))


def test_the_longest_names():
    longest = build.labels(b"a" * 63, b"b" * 63, b"c" * 63, b"d" * 61)
    many = build.labels(*[b"x"] * 127)
    assert len(longest) == len(many) == 255
    assert same(message(build.question(longest)), message(build.question(longest.upper())))
    assert told_apart(message(build.question(longest)), message(build.question(many)))
    for name in (longest, many):
        pointed = message(build.question(name, 1), build.question(b"\xc0\x0c", 2))
        assert same(pointed, message(build.question(name, 1), build.question(name, 2)))


@given(st.binary(max_size=20))
def test_any_length_of_name_hashes_by_all_its_octets(octets):
    """Each octet of the name changes the hash: none is skipped at any length."""
    if not octets:
        return
    base = message(build.question(build.labels(octets)))
    for at in range(len(octets)):
        other = bytearray(octets)
        other[at] ^= 0x01
        if other.lower() == octets.lower():
            continue
        assert ONE.question_hash(base, 7) != ONE.question_hash(
            message(build.question(build.labels(bytes(other)))), 7)
