"""One connection: addresses, TLS, handshake, partial writes, and peers that do none of it."""

import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time

import msgpack
import pytest

from gazer.config.forward import Forward, Tls
from gazer.config.kinds import host_and_port
from gazer.sinks import connection as module
from gazer.sinks import forward
from gazer.sinks.connection import CLOSED, READY, Connection, reason
from tests.conftest import eventually
from tests.receiver import CLOSE, GARBAGE, Certificates, Receiver

SECOND = 10**9


@pytest.fixture
def waker():
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with")
    return Certificates(tmp_path_factory.mktemp("certificates"))


def connect(address, waker, **settings):
    settings.setdefault("connect_timeout_ns", 5 * SECOND)
    return Connection(address, Forward(**settings), waker=waker)


def drive(link, waker, until, seconds=10):
    """Turn it as the loop does, until there is so much; the acks that came."""
    acks = []
    end = time.monotonic() + seconds
    while not until(acks):
        assert time.monotonic() < end, "it does not get there"
        if link.state not in (READY, CLOSED) and time.monotonic() >= link.deadline:
            link.late()
        poll = select.poll()
        poll.register(waker, select.POLLIN)
        if link.mask and link.socket is not None:
            poll.register(link.socket, link.mask)
        ready = poll.poll(20)
        if (waker, select.POLLIN) in ready:
            os.eventfd_read(waker)
        if ready:
            acks += link.turn()
    return acks


def begin(link, waker):
    link.begin()
    link.turn()
    drive(link, waker, lambda _: link.state == READY)


def entries(first, count, size=10):
    return b"".join(msgpack.packb([i, {"n": i, "pad": "x" * size}])
                    for i in range(first, first + count))


def exchange(link, waker, payloads):
    """Send these and wait for all acks."""
    ids = []
    for payload, events in payloads:
        ids.append(forward.chunk_id())
        link.send(forward.message("t", payload, events=events, chunk=ids[-1]))
    assert drive(link, waker, lambda acks: len(acks) >= len(ids)) == ids
    assert link.written == link.queued


def fails(link, waker, kind=Exception, seconds=10):
    """What it fails with."""
    with pytest.raises(kind) as caught:
        link.begin()
        link.turn()
        drive(link, waker, lambda _: False, seconds)
    link.close()
    return reason(caught.value)


# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("address", "host", "port"), [
    ("localhost", "localhost", 24224),
    ("localhost:1", "localhost", 1),
    ("10.1.2.3:65535", "10.1.2.3", 65535),
    ("[::1]:5", "::1", 5),
    ("[fe80::1]", "fe80::1", 24224),
    ("::1", "::1", 24224),
    ("unix:///run/a:b.sock", "unix:///run/a:b.sock", 0),
])  # fmt: skip
def test_an_address_is_host_and_port(address, host, port):
    assert host_and_port(address) == (host, port)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_numeric_address_needs_no_thread(host, waker, monkeypatch):
    monkeypatch.setattr(module, "_Lookup", None)
    with Receiver(host=host) as receiver:
        link = connect(receiver.address, waker)
        begin(link, waker)
        exchange(link, waker, [(entries(0, 5), 5), (entries(5, 1), 1)])
        link.close()
    assert receiver.numbers == [0, 1, 2, 3, 4, 5]


def test_a_unix_socket(tmp_path, waker):
    with Receiver(unix=str(tmp_path / "s")) as receiver:
        link = connect(receiver.address, waker)
        begin(link, waker)
        exchange(link, waker, [(entries(0, 5), 5)])
        link.close()
    assert receiver.numbers == [0, 1, 2, 3, 4]


def test_a_name_is_resolved_and_all_its_addresses_are_tried(waker, monkeypatch):
    """The first refuses, the second takes nothing, the third is it."""
    refusing = socket.create_server(("127.0.0.1", 0))
    nobody = refusing.getsockname()
    refusing.close()
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    crowd = []
    for _ in range(3):      # its queue is full: a further SYN is not answered
        crowd.append(socket.socket())
        crowd[-1].setblocking(False)
        crowd[-1].connect_ex(full.getsockname())
    with Receiver() as receiver:
        real = socket.getaddrinfo
        places = [nobody, full.getsockname(), ("127.0.0.1", receiver.port)]

        def getaddrinfo(host, port, *args, **more):
            if host != "servers.test":
                return real(host, port, *args, **more)
            if more.get("flags"):
                raise socket.gaierror(socket.EAI_NONAME, "not numeric")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        link = connect("servers.test:1", waker, connect_timeout_ns=2 * SECOND)
        begin(link, waker)
        exchange(link, waker, [(entries(0, 1), 1)])
        link.close()
    for sock in (*crowd, full):
        sock.close()


def test_a_resolver_that_hangs_holds_up_nothing_and_gets_one_thread(waker, monkeypatch):
    hanging, started = threading.Event(), []

    def getaddrinfo(host, port, *_, **more):
        if more.get("flags"):
            raise socket.gaierror(socket.EAI_NONAME, "not numeric")
        started.append(threading.current_thread())
        assert hanging.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "try again later")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    link = connect("slow.test", waker, connect_timeout_ns=SECOND // 20)
    for _ in range(5):
        before = time.monotonic()
        why = fails(link, waker, TimeoutError)
        assert time.monotonic() - before < 2
    assert "resolver" in why
    assert len(started) == 1
    hanging.set()
    started[0].join(5)
    assert "try again later" in fails(link, waker, OSError)


def test_a_name_that_does_not_exist(waker, monkeypatch):
    def getaddrinfo(*_, **more):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert "Name or service not known" in fails(connect("no.test", waker), waker, OSError)


def test_who_refuses(waker, tmp_path):
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    sock.close()
    assert fails(connect(f"127.0.0.1:{port}", waker), waker, OSError) == "Connection refused"
    assert fails(connect(f"unix://{tmp_path}/none", waker), waker, OSError) \
        == "No such file or directory"


# --- data ----------------------------------------------------------------------------------------


def test_writes_go_as_far_as_the_kernel_takes_them(waker):
    """8 MiB to a receiver that does not read: nothing waits, and every octet comes in the end."""
    with Receiver() as receiver:
        link = connect(receiver.address, waker)
        begin(link, waker)
        receiver.stalled.set()
        before = time.monotonic()
        ids = []
        for i in range(32):
            payload = entries(i * 10, 10, size=26_000)
            ids.append(forward.chunk_id())
            link.send(forward.message("t", payload, events=10, chunk=ids[-1]))
        assert time.monotonic() - before < 2
        assert 0 < link.written < link.queued
        assert link.mask & select.POLLOUT
        receiver.stalled.clear()
        assert drive(link, waker, lambda acks: len(acks) == 32) == ids
        assert link.written == link.queued and not link.mask & select.POLLOUT
        link.close()
    assert receiver.numbers == [*range(320)]


@pytest.mark.parametrize("owned", [True, False])
def test_what_is_owned_may_change(owned, waker):
    """`own` is what keeps a block that is used again out of a message."""
    with Receiver() as receiver:
        link = connect(receiver.address, waker)
        begin(link, waker)
        receiver.stalled.set()
        payload = bytearray(entries(0, 400, size=26_000))
        link.send(forward.message("t", memoryview(payload), events=400, chunk=forward.chunk_id()))
        assert link.written < link.queued
        if owned:
            link.own()
        payload[-1000:] = b"y" * 1000
        receiver.stalled.clear()
        drive(link, waker, lambda acks: len(acks) == 1)
        link.close()
    assert ("y" in receiver.messages[0].entries[-1][1]["pad"]) is not owned


def test_a_peer_that_closes(waker):
    with Receiver(plan=lambda _: CLOSE) as receiver:
        link = connect(receiver.address, waker)
        begin(link, waker)
        link.send(forward.message("t", entries(0, 1), events=1, chunk=forward.chunk_id()))
        with pytest.raises(ConnectionResetError):
            drive(link, waker, lambda _: False)
        link.close()
        assert link.state == CLOSED and link.mask == 0
        receiver.plan = lambda _: "ack"
        begin(link, waker)      # and again
        exchange(link, waker, [(entries(1, 1), 1)])
        link.close()


def test_a_peer_that_says_what_it_likes(waker):
    with Receiver(plan=lambda _: GARBAGE) as receiver:
        link = connect(receiver.address, waker)
        begin(link, waker)
        link.send(forward.message("t", entries(0, 1), events=1, chunk=forward.chunk_id()))
        with pytest.raises(forward.ProtocolError):
            drive(link, waker, lambda _: False)
        link.close()


@pytest.mark.parametrize("end", ["close", "garbage"])
@pytest.mark.parametrize("secure", [False, True])
def test_an_ack_counts_that_came_just_before_the_end(secure, end, certificates, waker):
    """Else a server that acknowledges a chunk and lets go would be sent it again for ever."""
    tls = certificates.context() if secure else None
    with Receiver(tls=tls, plan=lambda _: "lose") as receiver:
        link = connect(receiver.address, waker,
                       tls=Tls(enable=secure, ca_file=certificates.ca_cert if secure else ""))
        begin(link, waker)
        chunk = forward.chunk_id()
        link.send(forward.message("t", entries(0, 1), events=1, chunk=chunk))
        drive(link, waker, lambda _: len(receiver.messages) == 1)
        peer = receiver._open[1]
        peer.sendall(msgpack.packb({"ack": chunk}) + (b"\xc1\xc1" if end == "garbage" else b""))
        if end == "close":
            receiver.hang_up()
            eventually(lambda: not receiver.open)
        time.sleep(0.05)
        assert link.turn() == [chunk]
        with pytest.raises((ConnectionResetError, forward.ProtocolError)):
            link.turn()
        link.close()
        assert link.failure is None


def test_an_ack_counts_that_came_before_a_write_found_the_end(waker):
    with Receiver(plan=lambda _: "lose") as receiver:
        link = connect(receiver.address, waker)
        begin(link, waker)
        chunk = forward.chunk_id()
        link.send(forward.message("t", entries(0, 1), events=1, chunk=chunk))
        drive(link, waker, lambda _: len(receiver.messages) == 1)
        receiver._open[1].sendall(msgpack.packb({"ack": chunk}))
        receiver.hang_up()
        eventually(lambda: not receiver.open)

        def write():
            link.queue([b"\xc0"])
            link.write()

        with pytest.raises(OSError, match=r"[Bb]roken pipe|reset"):
            for _ in range(100):
                write()
                time.sleep(0.01)
        assert link.last() == [chunk]
        link.close()
        assert link.last() == []


def test_sockets_are_tuned(waker):
    with Receiver() as receiver:
        link = connect(receiver.address, waker)
        begin(link, waker)
        assert link.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert link.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not link.socket.get_inheritable()
        link.close()


# --- TLS -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["127.0.0.1", "::1", "localhost"])
def test_tls_with_a_large_transfer(name, certificates, waker):
    with Receiver(tls=certificates.context(), host="::1" if name == "::1" else "127.0.0.1",
                  shared_key="k") as receiver:
        address = f"[::1]:{receiver.port}" if name == "::1" else f"{name}:{receiver.port}"
        link = connect(address, waker, shared_key="k",
                       tls=Tls(enable=True, ca_file=certificates.ca_cert))
        begin(link, waker)
        assert link.socket.version() in ("TLSv1.2", "TLSv1.3")
        receiver.stalled.set()
        ids = []
        for i in range(16):
            ids.append(forward.chunk_id())
            link.send(forward.message("t", entries(i * 10, 10, size=26_000), events=10,
                                      chunk=ids[-1]))
        receiver.stalled.clear()
        assert drive(link, waker, lambda acks: len(acks) == 16) == ids
        link.close()
    assert receiver.numbers == [*range(160)]


def test_a_client_certificate(certificates, waker):
    with Receiver(tls=certificates.context(clients=True)) as receiver:
        good = Tls(enable=True, ca_file=certificates.ca_cert, cert_file=certificates.client_cert,
                   key_file=certificates.client_key)
        link = connect(receiver.address, waker, tls=good)
        begin(link, waker)
        exchange(link, waker, [(entries(0, 1), 1)])
        link.close()
        bare = Tls(enable=True, ca_file=certificates.ca_cert)
        assert "CERTIFICATE" in fails(connect(receiver.address, waker, tls=bare), waker, OSError)


@pytest.mark.parametrize(("more", "why"), [
    ({"ca_file": "other_cert"}, "certificate is not accepted"),
    ({"ca_file": "ca_cert", "server_name": "elsewhere.test"}, "elsewhere.test"),
    ({}, "certificate is not accepted"),
])  # fmt: skip
def test_a_certificate_that_is_not_theirs(more, why, certificates, waker):
    more = {key: getattr(certificates, value) if key == "ca_file" else value
            for key, value in more.items()}
    with Receiver(tls=certificates.context()) as receiver:
        link = connect(receiver.address, waker, tls=Tls(enable=True, **more))
        assert why in fails(link, waker, OSError)
        link = connect(receiver.address, waker, tls=Tls(enable=True, verify=False, **more))
        begin(link, waker)
        exchange(link, waker, [(entries(0, 1), 1)])
        link.close()


def test_another_name_for_the_server(certificates, waker, tmp_path):
    tls = Tls(enable=True, ca_file=certificates.ca_cert, server_name="localhost")
    with Receiver(tls=certificates.context(), unix=str(tmp_path / "s")) as receiver:
        link = connect(receiver.address, waker, tls=tls)
        begin(link, waker)
        exchange(link, waker, [(entries(0, 1), 1)])
        link.close()


def test_tls_files_that_are_not_there(certificates, waker):
    with Receiver(tls=certificates.context()) as receiver:
        link = connect(receiver.address, waker, tls=Tls(enable=True, ca_file="/nowhere.pem"))
        assert fails(link, waker, OSError) == "tls.ca_file: /nowhere.pem: No such file or directory"


@pytest.mark.parametrize("says", [
    b"\x93\xa1t\xc4 nothing of the kind\r\n",
    msgpack.packb(["HELO", {"nonce": b"n" * 16, "auth": b"", "keepalive": True}]),
])
def test_a_server_that_speaks_no_tls(says, waker):
    def silence(listener):
        sock, _ = listener.accept()
        sock.recv(10_000)
        sock.sendall(says)
        sock.close()

    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=silence, args=(listener,), daemon=True)
    thread.start()
    link = connect(f"127.0.0.1:{listener.getsockname()[1]}", waker, tls=Tls(enable=True))
    assert fails(link, waker, OSError) == "what it says is no TLS, and tls.enable is true"
    thread.join(5)
    listener.close()


def answers(waker, data, **settings):
    """Why we leave a server that says this; or goes, if that is nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            sock, _ = listener.accept()
            with sock:
                sock.sendall(data)
                if data:
                    sock.recv(10_000)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        why = fails(connect(f"127.0.0.1:{listener.getsockname()[1]}", waker, **settings), waker)
        thread.join(5)
    return why


NO_SERVER = 'that is no server of the Forward protocol: it says "'


@pytest.mark.parametrize("settings", [{}, {"shared_key": "k"}])
@pytest.mark.parametrize(("data", "why"), [
    (b"SSH-2.0-OpenSSH_9.2\r\n", f'{NO_SERVER}SSH-2.0-OpenSSH_9.2"'),
    (b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n", f'{NO_SERVER}HTTP/1.1 400 Bad Request"'),
    (b"<!DOCTYPE HTML>\n<html>", f'{NO_SERVER}<!DOCTYPE HTML>"'),
    (b"220 mail.example ESMTP\r\n", f'{NO_SERVER}220 mail.example ESMTP"'),
    (b"y" * 1000, f'{NO_SERVER}{"y" * 200}"'),
    (b"\x15\x03\x01\x00\x02\x02\x46", "it speaks TLS, and tls.enable is false"),
])
def test_a_server_of_another_protocol_is_told_by_its_first_words(data, why, settings, waker):
    assert answers(waker, data, **settings) == why


def test_what_is_no_text_and_no_tls_is_as_before(waker):
    assert answers(waker, b"\x16\x03") == "not an acknowledgement: 22"
    assert answers(waker, b"SSH") == "not an acknowledgement: 83"      # too little to tell
    assert answers(waker, b"<\x1b[31m red\r\n") == "not an acknowledgement: 60"
    assert "shared_key, and none" in answers(waker, msgpack.packb(["HELO", {}]))


def test_a_server_that_has_made_sense_is_no_stranger(waker):
    """What is odd then is the fault of one reply."""
    helo = msgpack.packb(["HELO", {"nonce": b"n", "auth": b""}])
    assert answers(waker, helo + b"SSH-2.0", shared_key="k") == "not a PONG: 83"


def resets(waker, said):
    """Why we leave a server that resets the connection once it has said this."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = connect(f"127.0.0.1:{listener.getsockname()[1]}", waker)
        link.begin()
        link.turn()
        listener.settimeout(10)
        sock, _ = listener.accept()
        drive(link, waker, lambda _: link.state == READY)
        if said:
            sock.sendall(said)
            drive(link, waker, lambda acks: acks)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        with pytest.raises(ConnectionResetError) as caught:
            drive(link, waker, lambda _: False)
        link.close()
    return reason(caught.value)


def test_a_reset_out_of_the_blue_may_be_tls(waker):
    """Its alert does not come through where it has not read all that was sent."""
    assert resets(waker, b"") == (
        "Connection reset by peer, without a word; does it speak TLS, or is it no fluentd?")
    assert resets(waker, msgpack.packb({"ack": "chunk"})) == "Connection reset by peer"


def test_a_tls_server_that_says_nothing(waker):
    listener = socket.create_server(("127.0.0.1", 0))
    link = connect(f"127.0.0.1:{listener.getsockname()[1]}", waker, tls=Tls(enable=True),
                   connect_timeout_ns=SECOND // 5)
    assert "TLS handshake" in fails(link, waker, TimeoutError)
    listener.close()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_old_versions_of_tls_are_not_spoken(certificates, waker):
    context = certificates.context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = module.ssl.TLSVersion.TLSv1
    context.maximum_version = module.ssl.TLSVersion.TLSv1_1
    with Receiver(tls=context) as receiver:
        tls = Tls(enable=True, ca_file=certificates.ca_cert)
        assert "TLS" in fails(connect(receiver.address, waker, tls=tls), waker, OSError)


@pytest.mark.parametrize("name", [".example", f"{'x' * 70}.example", "a..b"])
def test_a_server_name_that_is_none(name, certificates, waker):
    """An error of the connection, like any other; not the end of the sink."""
    with Receiver(tls=certificates.context()) as receiver:
        link = connect(receiver.address, waker, tls=Tls(enable=True, server_name=name))
        assert "server_name" in fails(link, waker, OSError)


def test_a_key_with_a_pass_phrase_is_an_error_and_asks_nobody(certificates, tmp_path):
    """OpenSSL would ask on the terminal, and the output would wait for an answer for ever."""
    locked = tmp_path / "locked.key"
    subprocess.run(["openssl", "pkey", "-in", certificates.client_key, "-aes256", "-passout",
                    "pass:secret", "-out", str(locked)], check=True, timeout=60)
    code = textwrap.dedent(f"""\
        from gazer.config.forward import Tls
        from gazer.sinks.connection import reason
        from gazer.sinks.tls import context
        tls = Tls(enable=True, cert_file={certificates.client_cert!r}, key_file={str(locked)!r})
        try:
            context(tls)
        except OSError as error:
            print("FAILED:", reason(error))
    """)
    pid, terminal = os.forkpty()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", code])
    said, end = b"", time.monotonic() + 20
    try:
        while b"FAILED:" not in said:
            assert b"PEM pass phrase" not in said, said
            assert time.monotonic() < end, said
            if select.select([terminal], [], [], 0.1)[0]:
                said += os.read(terminal, 4096)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)
