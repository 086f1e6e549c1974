"""The files that TLS reads: each way to get them wrong has its words, and the words name the file;
`gazer check`, the start of a run and a connection are of one opinion."""

import shutil
import ssl
import subprocess
import sys

import pytest

from gazer.capture.interfaces import may_capture
from gazer.config.forward import Tls
from gazer.sinks.tls import TlsFileError, context
from tests.receiver import Certificates

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="no openssl to make certificates with")
GAZER = [sys.executable, "-m", "gazer"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    Certificates(folder)
    (folder / "text").write_text("no certificate\n")
    (folder / "empty").touch()
    (folder / "both").write_text(
        (folder / "client.pem").read_text() + (folder / "client.key").read_text())
    for command in (
        ["x509", "-in", "client.pem", "-outform", "der", "-out", "der"],
        ["pkcs8", "-topk8", "-in", "client.key", "-passout", "pass:secret", "-out", "encrypted"],
    ):
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("keys", [
    {}, {"ca_file": "ca.pem"}, {"cert_file": "both"},
    {"cert_file": "client.pem", "key_file": "client.key"},
])  # fmt: skip
def test_what_can_be_used(folder, keys):
    made = context(Tls(enable=True, **{key: str(folder / name) for key, name in keys.items()}))
    assert made.verify_mode == ssl.CERT_REQUIRED and made.check_hostname
    assert made.minimum_version == ssl.TLSVersion.TLSv1_2
    if "ca_file" in keys:
        assert [dict(*c["subject"])["commonName"] for c in made.get_ca_certs()] == ["an authority"]


def test_whom_we_trust_is_asked_unless_that_is_switched_off():
    made = context(Tls(enable=True, verify=False))
    assert made.verify_mode == ssl.CERT_NONE and not made.check_hostname


CLIENT = {"cert_file": "client.pem"}
NONE = "has no certificate in PEM form"
NO_KEY = "has no key in PEM form that can be used"
WRONG = [
    ({"ca_file": "gone"}, "ca_file", "No such file or directory"),
    ({"ca_file": "."}, "ca_file", "Is a directory"),
    ({"ca_file": "text"}, "ca_file", NONE),
    ({"ca_file": "empty"}, "ca_file", NONE),
    ({"ca_file": "der"}, "ca_file", NONE),
    ({"ca_file": "ca.key"}, "ca_file", NONE),
    ({"cert_file": "gone"}, "cert_file", "No such file or directory"),
    ({"cert_file": "der", "key_file": "client.key"}, "cert_file", NONE),
    (CLIENT, "cert_file", "has no key beside the certificate: give key_file"),
    ({**CLIENT, "key_file": "gone"}, "key_file", "No such file or directory"),
    ({**CLIENT, "key_file": "text"}, "key_file", NO_KEY),
    ({**CLIENT, "key_file": "client.pem"}, "key_file", NO_KEY),
    ({**CLIENT, "key_file": "server.key"}, "key_file", "is not the key of the certificate"),
    ({**CLIENT, "key_file": "encrypted"}, "key_file",
     "the key is encrypted, and nobody is there who could be asked for its password"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "key", "why"), WRONG)
def test_what_cannot_be_used_is_named(folder, keys, key, why):
    paths = {key: str(folder / name) for key, name in keys.items()}
    with pytest.raises(TlsFileError) as caught:
        context(Tls(enable=True, **paths))
    assert str(caught.value) == f"tls.{key}: {paths[key]}: {why}"


def configured(folder, address, keys):
    path = folder / "sensor.yaml"
    tls = ", ".join(f"{key}: '{folder / name}'" for key, name in keys.items())
    path.write_text("outputs:\n- {type: text, path: /dev/null}\n"
                    f"- {{type: fluentd, servers: ['{address}'], tls: {{enable: true, {tls}}}}}\n")
    return str(path)


@pytest.mark.parametrize("how", [["-r", "tests/captures/captured.pcap"], ["-i", "lo"]])
@pytest.mark.parametrize("keys", [{"ca_file": "text"}, {**CLIENT, "key_file": "encrypted"}])
def test_a_run_does_not_begin_with_them_and_check_says_the_same(folder, how, keys):
    """A run over files would wait for ever, and a live one spool for ever."""
    if how[0] == "-i" and not may_capture():
        pytest.skip("this user may not capture")
    path = configured(folder, "127.0.0.1:1", keys)
    said = []
    for command in ("check", "run"):
        done = subprocess.run([*GAZER, command, "-c", path, *how], capture_output=True, text=True,
                              timeout=60, stdin=subprocess.DEVNULL, check=False)
        assert done.returncode == 2
        said.append(done.stderr)
    key = [*keys][-1]
    assert said[0] == said[1]
    assert said[0].startswith(f"gazer: outputs[1].tls.{key}: {folder / keys[key]}: ")
    assert said[0].count("\n") == 1

