"""The keys of fluentd outputs: what they make, what is refused, and that secrets stay secret."""

from __future__ import annotations

import os
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from gazer import check, docgen
from gazer.config import (
    Config,
    Forward,
    Output,
    OutputKind,
    Server,
    SpoolSettings,
    Tls,
    from_mapping,
    keys_of,
)
from gazer.config.kinds import GIB, MIB, MS, SECOND
from gazer.config.reader import parse
from gazer.errors import ConfigError

SECRET, WORD = "s3cret-key", "p4ss-word"


def made(**keys):
    """The one output of a configuration with these keys."""
    output, = from_mapping(
        {"outputs": [{"type": "fluentd", "servers": ["a"], **keys}]}).outputs
    return output


def errors(text):
    with pytest.raises(ConfigError) as caught:
        parse(text, "c.yaml")
    assert SECRET not in str(caught.value) and WORD not in str(caught.value)
    return str(caught.value).splitlines()


def test_servers_are_all_that_is_needed():
    assert made() == Output(OutputKind.MSGPACK_EVENT_TIME, "", Forward((Server("a"),)))
    assert made().name == "fluentd at a"
    assert made(servers=["a:1", "b", "[::1]:2"]).name == "fluentd at a:1 and 2 more"


def test_every_key_has_its_effect(tmp_path):
    folder = str(tmp_path)
    output = made(
        servers=["a:24224", {"address": "[::1]:5", "weight": 0, "standby": True},
                 "unix:///run/x.sock"],
        time="seconds", compress="gzip", shared_key=SECRET, username="u", password=WORD,
        tls={"enable": False}, chunk_size="1MiB", flush_interval="1s", window=7,
        ack_timeout="2s", connect_timeout="3s", expire="1h", queue="32MiB",
        spool={"path": folder, "max_bytes": "2GiB", "drop": "newest", "fsync": "1s"})
    assert output.kind is OutputKind.MSGPACK
    assert output.forward == Forward(
        servers=(Server("a:24224"), Server("[::1]:5", 0, True), Server("unix:///run/x.sock")),
        event_time=False, compress="gzip", shared_key=SECRET, username="u", password=WORD,
        chunk_size=MIB, flush_interval_ns=SECOND, window=7, ack_timeout_ns=2 * SECOND,
        connect_timeout_ns=3 * SECOND, expire_ns=3600 * SECOND, queue=32 * MIB,
        spool=SpoolSettings(folder, 2 * GIB, "newest", SECOND))
    tls = made(tls={"enable": True, "ca_file": "/c", "cert_file": "/d", "key_file": "/e",
                    "server_name": "n"}).forward.tls
    assert tls == Tls(True, "/c", "/d", "/e", True, "n")


def test_the_defaults():
    forward = made().forward
    assert (forward.chunk_size, forward.window, forward.queue) == (MIB, 16, 16 * MIB)
    assert (forward.flush_interval_ns, forward.spool.fsync_ns) == (200 * MS, 500 * MS)
    assert forward.compress == "" and made(compress="none").forward.compress == ""


def test_secrets_come_from_files_and_stand_in_no_text(tmp_path):
    key, word = tmp_path / "key", tmp_path / "word"
    key.write_text(f"{SECRET}\n# what else\n")
    word.write_bytes(WORD.encode() + b"\r\n")
    config = from_mapping({"outputs": [
        {"type": "fluentd", "servers": ["a"], "shared_key_file": str(key), "username": "u",
         "password_file": str(word)}]})
    forward = config.outputs[0].forward
    assert (forward.shared_key, forward.password) == (SECRET, WORD)
    assert pickle.loads(pickle.dumps(config)) == config
    for text in (repr(config), str(forward), "\n".join(check.outline(config))):
        assert SECRET not in text and WORD not in text
    assert "shared key, user u" in "\n".join(check.outline(config))


def test_a_user_goes_with_a_key_that_is_said_to_be_empty():
    config = from_mapping({"outputs": [{"type": "fluentd", "servers": ["a"], "shared_key": "",
                                        "username": "u", "password": WORD}]})
    forward = config.outputs[0].forward
    assert (forward.shared_key, forward.username) == ("", "u")
    assert "EMPTY shared key, user u" in "\n".join(check.outline(config))


@pytest.mark.parametrize(("content", "why"), [
    (b"", "its first line is empty"),
    (b"\nsecond", "its first line is empty"),
    (b"\xff\xfe", "expected a line of printable text, at most 1024 octets"),
    (b"p4ss-word\x07", "expected a line of printable text, at most 1024 octets"),
    (b"x" * 1025, "expected a line of printable text, at most 1024 octets"),
    (None, "cannot be read: No such file or directory"),
])
def test_a_file_that_holds_no_secret_is_told_and_not_shown(tmp_path, content, why):
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    assert errors(f"outputs:\n- type: fluentd\n  servers: [a]\n  shared_key_file: {path}") == [
        f"c.yaml:4: outputs[0].shared_key_file: {path}: {why}"]


def test_a_device_without_end_is_read_to_its_bound_only():
    assert "at most 1024 octets" in errors(
        "outputs: [{type: fluentd, servers: [a], shared_key_file: /dev/zero}]")[0]


ONE = "outputs:\n- type: fluentd\n  "
REFUSED = [
    ("servers: []", "3: outputs[0].servers: expected a list of 1 to 16 servers, got 0"),
    ("servers: a", '3: outputs[0].servers: expected a list of 1 to 16 servers, got "a"'),
    (f"servers: [{', '.join('a' * 17)}]",
     "3: outputs[0].servers: expected a list of 1 to 16 servers, got 17"),
    ("servers: [a, b, a]", '3: outputs[0].servers[2]: "a" is given twice'),
    ("servers: ['a:24224', 'a:1', a]", '3: outputs[0].servers[2]: "a" is given twice'),
    ("servers: ['[::1]', '[::1]:24224']",
     '3: outputs[0].servers[1]: "[::1]:24224" is given twice'),
    ("servers:\n  - {weight: 3}", "4: outputs[0].servers[0].address: missing: expected an address "
     "as host, host:port, [::1]:24224 or unix:///path, its port from 1 to 65535"),
    ("servers:\n  - {address: a, wait: 3}", "4: outputs[0].servers[0].wait: no such key; did you "
     "mean outputs[0].servers[0].weight?"),
    ("servers:\n  - {host: a, address: a}", "4: outputs[0].servers[0].host: no such key; did you "
     "mean outputs[0].servers[0].address, with host:port?"),
    ("servers:\n  - {address: a, port: 5}", "4: outputs[0].servers[0].port: no such key; did you "
     "mean outputs[0].servers[0].address, with host:port?"),
    ("servers:\n  - [a]", "4: outputs[0].servers[0]: expected an address as host, host:port, "
     "[::1]:24224 or unix:///path, its port from 1 to 65535, got a list"),
    ("servers: ['a:99999']", '3: outputs[0].servers[0]: expected an address as host, host:port, '
     '[::1]:24224 or unix:///path, its port from 1 to 65535, got "a:99999"'),
    ("servers: [a]\n  chunk_size: 1",
     "4: outputs[0].chunk_size: expected a size from 16KiB to 8MiB, such as 1MiB, got \"1\""),
    ("servers: [a]\n  spool: {path: /x, max_bytes: 1}",
     "4: outputs[0].spool.max_bytes: expected a size from 16MiB to 1TiB, such as 1GiB, got \"1\""),
    ("servers: [a]\n  shared_key: s3cret-key\n  shared_key_file: /x",
     "5: outputs[0].shared_key_file: shared_key is given too: which of the two is it?"),
    (f"servers: [a]\n  shared_key: \"s3cret-key{'x' * 1025}\"",
     "4: outputs[0].shared_key: expected text of 0 to 1024 octets, printable, got something else"),
    ("servers: [a]\n  password: p4ss-word",
     "4: outputs[0].password: username and password go together"),
    ("servers: [a]\n  username: u\n  password: p4ss-word",
     "4: outputs[0].username: a server asks for a user only along with its shared_key: give that, "
     'or shared_key: "" where it is empty'),
    ("servers: [a]\n  tls: {ca_file: /x}",
     "4: outputs[0].tls.ca_file: does nothing while tls.enable is false"),
    ("servers: [a]\n  tls: {enable: true, verify: false, ca_file: /x}",
     "4: outputs[0].tls.ca_file: does nothing while tls.verify is false"),
    ("servers: [a]\n  tls: {enable: true, key_file: /x}",
     "4: outputs[0].tls.key_file: a key needs its certificate: cert_file"),
    ("servers: ['unix:///x']\n  tls: {enable: true}",
     "4: outputs[0].tls.enable: TLS is not spoken over a unix socket"),
    ("servers: [a]\n  tls: {enabled: true}", "4: outputs[0].tls.enabled: no such key; did you mean "
     "outputs[0].tls.enable?"),
    ("servers: [a]\n  spool: /x",
     '4: outputs[0].spool: expected a mapping of keys, got "/x"'),
    ("servers: [a]\n  spool: {max_bytes: 1GiB}",
     "4: outputs[0].spool.path: missing: without it there is no spool"),
    ("servers: [a]\n  format: json", "4: outputs[0].format: goes with type text only"),
    ("servers: [a]\n  compress: lz4",
     '4: outputs[0].compress: expected "none", "gzip" or "zstd", got "lz4"'),
    ("servers: [a]\n  spool: {path: /x}\n- type: fluentd\n  servers: [b]\n  spool: {path: /y/../x}",
     '7: outputs[1].spool.path: "/y/../x" is the spool of another output too'),
]


@pytest.mark.parametrize(("keys", "error"), REFUSED, ids=[error for _, error in REFUSED])
def test_an_error_names_its_place(keys, error):
    assert errors(ONE + keys) == [f"c.yaml:{error}"]


@pytest.mark.parametrize("key", ["servers: [a]", "window: 3", "spool: {path: /x}", "tls: {}"])
def test_its_keys_go_with_no_other_type(key):
    name = key.partition(":")[0]
    assert errors(f"outputs:\n- type: text\n  path: x\n  {key}") == [
        f"c.yaml:4: outputs[0].{name}: goes with type fluentd only"]


@pytest.mark.parametrize("text", [
    "h", "h:1", "h:65535", "a.b-c_d.example:24224", "192.0.2.1", "192.0.2.1:24224", "[::1]",
    "[2001:db8::1]:24224", "unix:///run/fluentd.sock"])
def test_addresses(text):
    assert made(servers=[text]).forward.servers == (Server(text),)


@pytest.mark.parametrize("text", [
    "", "h:", ":1", "h:0", "h:65536", "h:+1", "h:01", "h:1:2", "::1", "2001:db8::1", "[::1",
    "[::1]x", "[::1]:", "[192.0.2.1]:1", "[h]", "h h", "h/p", "tcp://h", "unix://", "unix:///",
    "unix:relative", "unix:///" + "x" * 107, "h" * 254, "é", "h\n"])
def test_what_is_no_address(text):
    with pytest.raises(ConfigError, match="expected an address"):
        made(servers=[text])


@pytest.mark.parametrize("text", ["{}", "", "{path: ''}", "{path: '', max_bytes: 2GiB}"])
def test_no_spool_is_wanted(text):
    forward = parse(f"{ONE}servers: [a]\n  spool: {text}\n", "c.yaml").outputs[0].forward
    assert forward.spool.path == ""


def test_a_file_that_multiplies_itself_costs_nothing():
    lines = ["a0: &a0 [a]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 15))]
    found = errors("\n".join(lines) + "\noutputs: [{type: fluentd, servers: *a14}]")
    assert any("outputs[0].servers" in line for line in found)


# --- documents, and check ------------------------------------------------------------------------


def test_the_page_has_every_key_with_its_default():
    page = docgen.page().split("### fluentd")[1].split("\n#")[0]
    usual = Forward()
    for lead, cls, values in (("", Forward, usual), ("tls.", Tls, usual.tls),
                              ("spool.", SpoolSettings, usual.spool)):
        for name, (attribute, key) in keys_of(cls).items():
            shown = key.kind.show(getattr(values, attribute))
            assert f"| `{lead}{name}` | {key.kind.type} | `{shown}` |" in page
    for name in ("servers", "servers[].address", "servers[].weight", "servers[].standby", "time",
                 "shared_key_file", "password_file"):
        assert f"| `{name}` |" in page


def test_the_example_in_the_file_is_a_configuration(tmp_path):
    """Its comment marks taken away, and the secret put where it can be read."""
    key = tmp_path / "key"
    key.write_text(SECRET)
    text = docgen.sensor_yaml().split("  # - type: fluentd\n")[1]
    example = "- type: fluentd\n" + "".join(
        line.replace("  #   ", "  ", 1) + "\n" for line in text.splitlines()
        if line.startswith("  #   "))
    made_, = yaml.safe_load(example)
    made_["shared_key_file"] = str(key)
    forward = from_mapping({"outputs": [made_]}).outputs[0].forward
    assert len(forward.servers) == 2 and forward.spool == SpoolSettings(
        "/var/spool/gazer/fluentd")


def test_the_outline_says_what_would_run(tmp_path):
    config = replace(Config(), outputs=(Output(OutputKind.MSGPACK, "", Forward(
        (Server("a:1"), Server("b", standby=True)), event_time=False, compress="zstd",
        tls=Tls(True, verify=False), expire_ns=60 * SECOND,
        spool=SpoolSettings("/s/p", 2 * GIB))),))
    line, = [text for text in check.outline(config) if text.startswith("output")]
    assert line == (
        "output        fluentd at a:1, b (standby): whole seconds, zstd, TLS, NOT VERIFIED, given "
        "up after 60s; at most 16MiB waits in memory, live 2GiB in /s/p, where the oldest is "
        "dropped")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_check_looks_at_spool_and_certificates_as_the_user():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        looks_at_spool_and_certificates(Path(folder))


def looks_at_spool_and_certificates(folder):
    pem = folder / "key.pem"
    pem.write_text("x")
    pem.chmod(0o600)
    config = from_mapping({
        "capture": {"interfaces": ["lo"]}, "service": {"user": "65534:65534"},
        "outputs": [{"type": "fluentd", "servers": ["a"],
                     "tls": {"enable": True, "ca_file": str(folder / "no"),
                             "cert_file": str(pem), "key_file": str(pem)},
                     "spool": {"path": str(folder / "deep" / "spool")}}]})
    found = [line for line in check.obstacles(config) if line.startswith("outputs")]
    who = "by user 65534"
    assert [line.replace("nobody", "65534") for line in found] == [
        f"outputs[0].spool.path: {folder}/deep/spool: may not be made in {folder} {who}",
        f"outputs[0].tls.ca_file: {folder}/no: there is no such file",
        f"outputs[0].tls.cert_file: {pem}: may not be read {who}",
        f"outputs[0].tls.key_file: {pem}: may not be read {who}"]
