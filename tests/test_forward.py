"""The forward protocol as bytes: against msgpack, the specification's own example, and noise."""

import base64
import gzip
import hashlib
import os
import time

import msgpack
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gazer.sinks import forward
from gazer.sinks.connection import MOST_READ
from gazer.sinks.forward import DeniedError, Handshake, Helo, ProtocolError, Replies
from tests.receiver import read_message

ID = base64.b64encode(bytes(range(16)))


def entry(n, size=0):
    return msgpack.packb([msgpack.ExtType(0, (1_700_000_000 + n).to_bytes(4, "big") + bytes(4)),
                          {"n": n, "pad": "x" * size}])


def joined(buffers):
    return b"".join(bytes(b) for b in buffers)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65535, 65536, 300_000])
def test_a_message_is_what_msgpack_makes_of_it(size):
    payload = os.urandom(size)
    for compressed in ("", "gzip"):
        option = {"size": 7, "chunk": ID.decode()}
        if compressed:
            option["compressed"] = compressed
        assert joined(forward.message(
            "dns-gazer.dns.tx", payload, events=7, chunk=ID, compressed=compressed,
        )) == msgpack.packb(["dns-gazer.dns.tx", payload, option], use_bin_type=True)


def test_the_payload_is_not_copied():
    payload = memoryview(bytearray(b"".join(entry(n) for n in range(3))))
    assert forward.message("t", payload, events=3, chunk=ID)[1] is payload


@given(st.lists(st.integers(0, 300), max_size=20), st.sampled_from(["", "gzip", "zstd"]))
def test_a_strict_reader_takes_it(sizes, how):
    plain = b"".join(entry(n, size) for n, size in enumerate(sizes))
    payload = forward.compress(plain, how) if how else plain
    read = read_message(joined(forward.message(
        "a.tag", payload, events=len(sizes), chunk=forward.chunk_id(), compressed=how)))
    assert read.numbers == [*range(len(sizes))]
    assert forward.decompress(payload, how) == plain


def test_compression_is_what_others_read_and_repeats_itself():
    plain = b"".join(entry(n) for n in range(100))
    assert gzip.decompress(forward.compress(memoryview(plain), "gzip")) == plain
    assert zstandard.ZstdDecompressor().decompress(forward.compress(plain, "zstd")) == plain
    assert forward.compress(plain, "gzip") == forward.compress(plain, "gzip")
    with pytest.raises(ValueError, match="lzma"):
        forward.compress(plain, "lzma")


def test_ids_are_unique_and_know_their_time():
    ids = {forward.chunk_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(base64.b64decode(i, validate=True)) == 16 for i in ids)
    assert all(abs(forward.born(i) - time.time()) < 5 for i in ids)
    assert forward.born(b"not ours") == 0.0
    assert forward.born(b"\xff\xfe") == 0.0


def test_cut_finds_every_entry():
    entries = [entry(n, n * 50) for n in range(9)]
    plain = b"".join(entries)
    for n in range(9):
        assert plain[forward.cut(memoryview(plain), n):].startswith(entries[n])
    assert forward.cut(plain, 9) == len(plain)
    with pytest.raises(ValueError, match="10"):
        forward.cut(plain, 10)
    with pytest.raises(ValueError):
        forward.cut(b"\xc1\xc1", 1)


# --- what a server says --------------------------------------------------------------------------


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=8), st.integers(1, 9))
def test_acks_come_in_any_pieces(chunks, step):
    data = b"".join(msgpack.packb({"ack": chunk.hex()}) for chunk in chunks)
    replies = Replies()
    found = []
    for i in range(0, len(data), step):
        found += [forward.ack(reply) for reply in replies.feed(data[i:i + step])]
    assert found == [chunk.hex().encode() for chunk in chunks]


def test_thousands_of_acks_at_once():
    """Read as large pieces as a connection reads, with half a reply at each end."""
    ids = [forward.chunk_id() for _ in range(5000)]
    data = b"".join(msgpack.packb({"ack": i.decode()}) for i in ids)
    replies = Replies()
    assert [forward.ack(reply) for i in range(0, len(data), MOST_READ)
            for reply in replies.feed(data[i:i + MOST_READ])] == ids


@pytest.mark.parametrize("reply", [
    None, 1, "ack", [], {}, {"ack": 1}, {"ack": None}, ["ack", "x"], {"nack": "x"}, ["PONG"],
])  # fmt: skip
def test_what_is_no_ack_is_an_error(reply):
    [got] = Replies().feed(msgpack.packb(reply))
    with pytest.raises(ProtocolError):
        forward.ack(got)


def test_a_helo_that_nobody_expects_names_the_key():
    [got] = Replies().feed(msgpack.packb(["HELO", {"nonce": b"x"}]))
    with pytest.raises(DeniedError, match="shared_key"):
        forward.ack(got)


@pytest.mark.parametrize("data", [
    b"\xc1",                                    # never used
    msgpack.packb({"ack": "x" * 5000}),
    msgpack.packb([0] * 17),
    msgpack.packb({str(i): i for i in range(17)}),
    msgpack.packb({(1, 2): 3}),
    b"\x91" * 100_000,                          # deep
    b"\xdd\xff\xff\xff\xff",                    # four billion items
    b"\xc6\xff\xff\xff\xff" + b"x" * 70_000,
    msgpack.packb(msgpack.ExtType(5, b"x" * 100)),
    b"\x81\xa3ack\xda\x0f\xff" + b"x" * 70_000,
], ids=range(10))  # fmt: skip
def test_hostile_replies_end_in_an_error_at_once(data):
    replies = Replies()
    with pytest.raises(ProtocolError):
        for i in range(0, len(data), 65536):
            for got in replies.feed(data[i:i + 65536]):
                forward.ack(got)


@given(st.binary(max_size=300))
def test_noise_is_an_error_or_nothing(data):
    try:
        for got in Replies().feed(data):
            forward.ack(got)
    except ProtocolError as error:
        assert str(error).isprintable() and len(str(error)) < 400


# --- handshake -----------------------------------------------------------------------------------


def sha(*parts):
    return hashlib.sha512(b"".join(parts)).hexdigest()


def replied(what):
    [got] = Replies().feed(msgpack.packb(what))
    return got


def shaken(**more):
    return Handshake(**{"shared_key": "kéy", "username": "", "password": "", "hostname": "me",
                        **more})


def test_ping_and_pong_prove_the_key():
    handshake = shaken()
    ping = msgpack.unpackb(handshake.ping(Helo(replied(["HELO", {"nonce": b"\x80n", "auth": ""}]))))
    word, hostname, salt, proof, user, secret = ping
    assert (word, hostname, user, secret) == ("PING", "me", "", "")
    assert proof == sha(salt.encode(), b"me", b"\x80n", "kéy".encode())
    good = sha(salt.encode(), b"them", b"\x80n", "kéy".encode())
    handshake.check(replied(["PONG", True, "", "them", good]))
    for bad in (sha(b""), good[:-1] + "x", "é", ""):
        with pytest.raises(DeniedError, match="does not know the shared_key"):
            handshake.check(replied(["PONG", True, "", "them", bad]))


def test_a_user_is_proved_with_the_servers_salt():
    ping = msgpack.unpackb(shaken(username="üser", password="pass").ping(
        Helo(replied(["HELO", {"nonce": "n", "auth": b"\xffsalt"}]))))
    assert ping[4:] == ["üser", sha(b"\xffsalt", "üser".encode(), b"pass")]
    # None is sent where none is asked for.
    ping = msgpack.unpackb(shaken(username="user", password="pass").ping(
        Helo(replied(["HELO", {"nonce": "n"}]))))
    assert ping[4:] == ["", ""]
    with pytest.raises(DeniedError, match="username"):
        shaken().ping(Helo(replied(["HELO", {"nonce": "n", "auth": "salt"}])))


def test_each_handshake_has_a_salt_of_its_own():
    helo = Helo(replied(["HELO", {"nonce": "n"}]))
    assert shaken().ping(helo) != shaken().ping(helo)


def test_a_rejection_says_why_without_control_characters():
    with pytest.raises(DeniedError, match=r"credentials: no\?\[31m user") as caught:
        shaken().check(replied(["PONG", False, "no\x1b[31m user\n" + "x" * 3000, "", ""]))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


@pytest.mark.parametrize("reply", [
    None, [], ["HELO"], ["HELO", 1], ["HELO", {"nonce": 1}], ["HELO", {"nonce": "", "auth": 5}],
    ["HELO", {}, {}], {"HELO": {}},
])  # fmt: skip
def test_what_is_no_helo(reply):
    with pytest.raises(ProtocolError):
        Helo(replied(reply))


def test_helo_says_whether_the_connection_may_be_kept():
    assert Helo(replied(["HELO", {"nonce": ""}])).keepalive
    assert Helo(replied(["HELO", None])).keepalive
    assert not Helo(replied(["HELO", {"keepalive": False}])).keepalive


@pytest.mark.parametrize("reply", [
    None, [], ["PONG"], ["PONG", True, "", "", 1], ["PONG", True, "", 1, ""], {"ack": "x"},
    ["PONG", True, "", "", "", ""],
])  # fmt: skip
def test_what_is_no_pong(reply):
    with pytest.raises(ProtocolError):
        shaken().check(replied(reply))
