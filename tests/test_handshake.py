"""Who the two ends of a connection are to one another: HELO, PING, PONG, with key, user or both."""

import socket

import pytest

from gazer.config.forward import Forward, Tls
from gazer.sinks import forward
from tests.receiver import Receiver
from tests.test_connection import (
    SECOND,
    answers,
    begin,
    certificates,
    connect,
    entries,
    exchange,
    fails,
    waker,
)

__all__ = ["certificates", "waker"]     # fixtures


def test_the_handshake(waker):
    with Receiver(shared_key="secret", users={"me": "mine"}) as receiver:
        link = connect(receiver.address, waker, shared_key="secret", username="me",
                       password="mine")
        begin(link, waker)
        exchange(link, waker, [(entries(0, 3), 3)])
        link.close()
    assert receiver.pings[0][1] == socket.gethostname()


@pytest.mark.parametrize(("ours", "theirs", "why"), [
    ({"shared_key": "wrong"}, {}, "shared_key mismatch"),
    ({"shared_key": "right", "username": "me", "password": "no"}, {"users": {"me": "mine"}},
     "username/password mismatch"),
    ({"shared_key": "right"}, {"users": {"me": "mine"}}, "no username is configured"),
    ({"shared_key": "right"}, {"proof": "0" * 128}, "does not know the shared_key"),
    ({}, {}, "none is configured"),
])  # fmt: skip
def test_credentials_that_are_rejected(ours, theirs, why, waker):
    with Receiver(shared_key="right", **theirs) as receiver:
        assert why in fails(connect(receiver.address, waker, **ours), waker, forward.DeniedError)
        assert not receiver.messages


def test_a_server_without_a_key_does_not_say_helo(waker):
    with Receiver() as receiver:
        link = connect(receiver.address, waker, shared_key="x", connect_timeout_ns=SECOND // 5)
        assert fails(link, waker, TimeoutError) == (
            "no answer within 0.2 s; a HELO was expected, since a shared_key or a user is "
            "configured (or does it speak TLS? tls.enable is false)")


def test_a_server_that_speaks_tls_while_we_wait_for_its_helo(waker, certificates):
    """It waits for us as we for it, or goes."""
    with Receiver(shared_key="x", tls=certificates.context()) as receiver:
        link = connect(receiver.address, waker, shared_key="x", connect_timeout_ns=SECOND // 5)
        assert "or does it speak TLS?" in fails(link, waker, TimeoutError)
    assert answers(waker, b"", shared_key="x") == (
        "it has closed the connection (or does it speak TLS? tls.enable is false)")
    assert answers(waker, b"") == "it has closed the connection"
    with Receiver(tls=certificates.context()) as receiver:      # TLS, but no key
        link = connect(receiver.address, waker, shared_key="x", connect_timeout_ns=SECOND // 5,
                       tls=Tls(enable=True, ca_file=certificates.ca_cert))
        why = fails(link, waker, TimeoutError)
        assert "HELO" in why and "TLS" not in why


def test_secrets_stand_in_no_repr():
    settings = Forward(shared_key="hush-hush", username="me", password="hush-hush")
    assert "hush" not in repr(settings)


def test_a_user_where_the_key_is_empty(waker):
    """Fluentd and Fluent Bit allow that: the digests are over a key without octets."""
    with Receiver(users={"me": "mine"}) as receiver:
        link = connect(receiver.address, waker, username="me", password="mine")
        begin(link, waker)
        exchange(link, waker, [(entries(0, 3), 3)])
        link.close()
        for wrong, why in (
            ({"username": "me", "password": "no"}, "username/password mismatch"),
            ({"username": "me", "password": "mine", "shared_key": "k"}, "shared_key mismatch"),
            ({}, "none is configured"),
        ):
            assert why in fails(connect(receiver.address, waker, **wrong), waker,
                                forward.DeniedError)
    assert receiver.numbers == [0, 1, 2]
