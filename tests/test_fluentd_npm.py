"""Against a receiver that others wrote: FluentServer of npm's @fluent-org/logger."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import msgpack
import pytest

from gazer.config.forward import Tls
from tests.forwarding import TX, Sink, Task, quick
from tests.receiver import Certificates

PACKAGE = "@fluent-org/logger@1.0.10"
SCRIPT = Path(__file__).with_name("fluent_server.js")


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """A folder with the package, by npm."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}")
    folder = tmp_path_factory.mktemp("npm")
    done = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder),
         PACKAGE], capture_output=True, text=True, timeout=90, check=False)
    if done.returncode:
        pytest.skip(f"npm has no {PACKAGE}: {done.stderr.strip()[-200:]}")
    return folder / "node_modules"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with")
    return Certificates(tmp_path_factory.mktemp("certificates"))


class Server:
    def __init__(self, modules, **options):
        self._process = subprocess.Popen(
            ["node", str(SCRIPT), json.dumps(options)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env={**os.environ, "NODE_PATH": str(modules)}, text=True)
        self.address = f"127.0.0.1:{int(self._process.stdout.readline())}"

    def entries(self, count):
        """The next so many that came."""
        return [json.loads(self._process.stdout.readline()) for _ in range(count)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.communicate(timeout=20)


def task(first, count):
    times = [msgpack.ExtType(0, (1_700_000_000 + n).to_bytes(4, "big") + n.to_bytes(4, "big"))
             for n in range(first, first + count)]
    return Task([(TX, b"".join(msgpack.packb([when, {"n": first + i, "é": "ü"}])
                               for i, when in enumerate(times)), count)], upto=first + count)


def expected(count):
    return [[TX, 1_700_000_000 + n, n, {"n": n, "é": "ü"}] for n in range(count)]


def deliver(server, **settings):
    with Sink(server, **settings) as sink:
        for i in range(50):
            sink.wait(lambda: sink.given - len(sink.answers) < 32)
            sink.put(task(i * 20, 20))
        sink.settle(20)
        assert sink.total("events") == 1000
        counts = sink.counts()
        assert (counts["connects"], counts["resent"], counts["wrong_acks"]) == (1, 0, 0)
    assert server.entries(1000) == expected(1000)


@pytest.mark.parametrize("how", ["", "gzip"])
def test_acks(how, modules):
    with Server(modules) as server:
        deliver(server, compress=how)


def test_a_shared_key_and_a_user(modules):
    security = {"serverHostname": "them", "sharedKey": "a secret", "authorize": True,
                "userDict": {"me": "mine"}}
    with Server(modules, security=security) as server:
        deliver(server, shared_key="a secret", username="me", password="mine")


@pytest.mark.parametrize("wrong", [
    {"shared_key": "another"}, {"shared_key": "a secret", "username": "me", "password": "no"},
])  # fmt: skip
def test_wrong_credentials(wrong, modules):
    security = {"serverHostname": "them", "sharedKey": "a secret", "authorize": True,
                "userDict": {"me": "mine"}}
    wrong = {"username": "me", "password": "mine", **wrong}
    with Server(modules, security=security) as server, Sink(server, live=False, **wrong) as sink:
        sink.put(task(0, 1))
        sink.settle()
        assert "does not accept our credentials" in sink.faults[0]


def test_tls_with_client_certificates(modules, certificates):
    files = {"key": certificates.server_key, "cert": certificates.server_cert,
             "ca": certificates.ca_cert}
    security = {"serverHostname": "them", "sharedKey": "a secret"}
    with Server(modules, tls=files, security=security) as server:
        deliver(server, shared_key="a secret", compress="gzip", tls=Tls(
            enable=True, ca_file=certificates.ca_cert, cert_file=certificates.client_cert,
            key_file=certificates.client_key))


def test_a_receiver_that_dies_of_heartbeats_is_spared_them(modules, monkeypatch):
    """This one takes nil for a mistake, and closes."""
    from gazer.sinks import delivery

    quick(monkeypatch)
    monkeypatch.setattr(delivery, "HEARTBEAT", 0.1)
    with Server(modules) as server, Sink(server) as sink:
        sink.wait(lambda: sink.counts()["connects"] == 3)
        sink.put(task(0, 5))
        sink.settle()
        assert sink.counts()["connects"] == 3
        assert server.entries(5) == expected(5)
        assert not sink.notices
