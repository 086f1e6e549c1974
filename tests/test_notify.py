"""What a service manager hears: a socket of the test's own in its place."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from gazer.service.notify import Notifier
from tests.conftest import eventually
from tests.service import Service


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """The address as NOTIFY_SOCKET has it, and the socket that listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listens:
        if request.param == "path":
            address = str(tmp_path / "notify")
            listens.bind(address)
        else:
            address = f"@gazer-test-{os.urandom(8).hex()}"
            listens.bind("\0" + address[1:])
        listens.settimeout(20.0)
        yield address, listens


def heard(listens: socket.socket) -> list[str]:
    return listens.recv(4096).decode().split("\n")


def test_messages_are_what_the_protocol_says(manager):
    address, listens = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready("well")
    assert heard(listens) == ["READY=1", "STATUS=well"]
    notifier.status("well")         # no news
    notifier.status("better")
    assert heard(listens) == ["STATUS=better"]
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    first, second = heard(listens)
    assert first == "RELOADING=1"
    name, _, value = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.stopping("going", 2_500_000_000)
    assert heard(listens) == ["STOPPING=1", "STATUS=going", "EXTEND_TIMEOUT_USEC=2500000"]
    notifier.close()
    notifier.status("closed")       # nobody hears it, and nobody minds


@pytest.mark.parametrize("environment, pace", [
    ({}, None),
    ({"WATCHDOG_USEC": "3000000"}, 750_000_000),
    ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 750_000_000),
    ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
    ({"WATCHDOG_USEC": "0"}, None),
    ({"WATCHDOG_USEC": "-3"}, None),
    ({"WATCHDOG_USEC": "9" * 30}, None),
    ({"WATCHDOG_USEC": "soon"}, None),
])
def test_whether_and_how_often_the_manager_wants_a_sign_of_life(tmp_path, environment, pace):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listens:
        listens.bind(str(tmp_path / "n"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "n"), **environment})
        assert notifier.pace == pace
        notifier.close()


def test_signs_of_life_come_at_half_of_the_watchdogs_time(manager):
    address, listens = manager
    listens.settimeout(0.0)
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000000"})
    came = []
    for now in range(0, 10_000_000_000, 250_000_000):
        notifier.alive(now)
        try:
            assert heard(listens) == ["WATCHDOG=1"]
            came.append(now / 1e9)
        except BlockingIOError:
            pass
    assert came == [float(n) for n in range(10)]
    notifier.close()


@pytest.mark.parametrize("address", [
    "", "@", "relative", "vsock:2:1", "/no/such/socket", "/" + "x" * 200, "/a\0b"])
def test_a_manager_that_is_not_there_is_no_reason_to_fail(address):
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000000"})
    assert notifier.pace is None
    notifier.ready("well")
    notifier.alive(1)
    notifier.close()


def test_a_manager_that_does_not_read_is_not_waited_for(manager):
    address, _ = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    start = time.monotonic()
    for n in range(10_000):
        notifier.status(str(n))
    assert time.monotonic() - start < 5.0
    notifier.close()


def test_a_service_tells_its_life(manager, gazer, tmp_path, monkeypatch):
    address, listens = manager
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    service = Service(gazer, tmp_path, wait=False)
    service.tell("late-worker1")
    seen: list[list[str]] = []

    def until(*what: str, most: float = 20.0) -> None:
        deadline = time.monotonic() + most
        while not seen or seen[-1][:len(what)] != [*what]:
            assert time.monotonic() < deadline, seen
            seen.append(heard(listens))

    eventually(lambda: len(service.starts()) == 5, 20.0)
    until("WATCHDOG=1")                 # it runs, and is not ready
    assert not any("READY=1" in message for message in seen)
    (tmp_path / "late-worker1").unlink()
    until("READY=1", "STATUS=capturing on stub0")
    service.tell("wait-sink")
    until("STATUS=blocked: gazer:sink")
    (tmp_path / "wait-sink").unlink()
    until("STATUS=capturing on stub0")
    service.live.signal(signal.SIGHUP)
    until("RELOADING=1")
    until("READY=1")
    service.live.signal(signal.SIGTERM)
    until("STOPPING=1", "STATUS=stopping", "EXTEND_TIMEOUT_USEC=30000000")
    assert service.live.wait().code == 0


def test_the_end_of_a_reload_is_no_end_of_the_start(manager, gazer, tmp_path, monkeypatch):
    address, listens = manager
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    service = Service(gazer, tmp_path, wait=False)
    service.tell("late-worker1")
    eventually(lambda: len(service.starts()) == 5, 20.0)
    service.live.signal(signal.SIGHUP)
    service.live.says("has not changed")
    (tmp_path / "sensor.yaml").write_text("rings: 3")
    service.live.signal(signal.SIGHUP)          # what the first one had to tell is told by now
    service.live.says("stays as it was")
    listens.settimeout(0.0)
    with pytest.raises(BlockingIOError):
        pytest.fail(f"not yet: {heard(listens)}")
    listens.settimeout(20.0)
    (tmp_path / "late-worker1").unlink()
    assert heard(listens)[0] == "READY=1"
    assert service.stop()[0] == 0


def test_no_child_holds_the_managers_socket(manager, gazer, tmp_path, monkeypatch):
    """Else whatever a child said would be the service's word."""
    monkeypatch.setenv("NOTIFY_SOCKET", manager[0])
    service = Service(gazer, tmp_path)
    for _, pid, *_ in service.starts():
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert not [link for link in links if link.startswith("socket:")]
    assert service.stop()[0] == 0
