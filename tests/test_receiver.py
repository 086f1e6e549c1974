"""The receiver as a program: what somebody without a fluentd has."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest

from tests.receiver import Certificates

CAPTURE = Path(__file__).with_name("captures") / "raw-ip.pcap"


@pytest.fixture
def program():
    """program(*arguments) -> the process, and its address."""
    running = []

    def run(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.receiver", *arguments], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)
        running.append(process)
        return process, process.stdout.readline().strip()

    yield run
    for process in running:
        process.kill()
        process.communicate()


def deliver(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "gazer", *arguments, "-r", str(CAPTURE)], capture_output=True,
        text=True, timeout=60, check=False)


def configured(folder, text):
    path = folder / "sensor.yaml"
    path.write_text("outputs:\n" + text)
    return str(path)


@pytest.mark.parametrize("time", ["event_time", "seconds"])
def test_it_shows_what_was_delivered(program, tmp_path, time):
    """The same events as in a file."""
    file = tmp_path / "dns.json"
    process, address = program("--show")
    done = deliver("run", "-c", configured(
        tmp_path, f"- {{type: fluentd, servers: ['{address}'], time: {time}}}\n"
        f"- {{type: text, format: json, path: '{file}'}}\n"))
    assert done.returncode == 0, done.stderr
    process.send_signal(signal.SIGINT)      # Ctrl-C
    shown, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (0, "")
    lines = [line.split("\t") for line in shown.splitlines()]
    assert {tag for tag, _, _ in lines} == {"dns-gazer.dns.tx"}
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == len(written) == 5
    for (_, seconds, text), event in zip(lines, written, strict=True):
        record = json.loads(text)
        assert record["query"] == event["query"] and record["tx_id"] == event["tx_id"]
        assert ("." in seconds) is (time == "event_time")
        assert int(float(seconds)) == 1795404222


def test_it_has_tls_a_key_and_a_user(program, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with")
    made = Certificates(tmp_path)
    process, address = program(
        "--show", "--tls", made.server_cert, made.server_key, "--shared-key", "k",
        "--user", "u:p:q")
    done = deliver("run", "-c", configured(
        tmp_path, f"- {{type: fluentd, servers: ['{address}'], shared_key: k, username: u, "
        f"password: 'p:q', tls: {{enable: true, ca_file: '{made.ca_cert}'}}}}\n"))
    assert done.returncode == 0, done.stderr
    process.terminate()
    assert process.communicate(timeout=20)[0].count("dns-gazer.dns.tx") == 5
    assert process.returncode == 0


def test_what_is_against_the_protocol_is_told_in_a_line(program):
    process, address = program()
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(msgpack.packb(["tag", "text", {}]))
        assert sock.recv(1) == b""
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert said.startswith("not as the protocol says: ") and said.count("\n") == 1


@pytest.mark.parametrize("arguments", [
    ["--user", "u", "--shared-key", "k"], ["--tls", "/no/cert", "/no/key"],
    ["--log", "/no/folder/log"], ["--port", "70000"],
])  # fmt: skip
def test_a_wrong_command_line(program, arguments):
    process, _ = program(*arguments)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 2 and "python -m tests.receiver: error: " in said


def test_a_port_that_is_taken(program):
    _, address = program()
    process, _ = program("--port", address.split(":")[1])
    assert "Address already in use" in process.communicate(timeout=20)[1]
    assert process.returncode == 2
