"""The files that TLS reads: each way to get them wrong has its words, and the words name the file;
`gazer check`, the start of a run and a connection are of one opinion."""

import os
import shutil
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gazer.capture.interfaces import may_capture
from gazer.config import load
from gazer.config.forward import Tls
from gazer.service.rights import exposed_secrets
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


@pytest.fixture
def open_folder():
    """One that everybody can reach, as pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="gazer-test-") as made:
        os.chmod(made, 0o755)
        yield made


def test_files_with_secrets_that_everybody_may_read_are_told(folder, open_folder):
    def told(modes, of_folder=0o755):
        for name, mode in zip(paths, modes, strict=True):
            os.chmod(paths[name], mode)
        os.chmod(open_folder, of_folder)
        return [*exposed_secrets(load(paths["config"]))]

    paths = {name: f"{open_folder}/{name}" for name in ("config", "key", "word", "tls")}
    for name, text in (("key", "k\n"), ("word", "w\n"), ("config", (
        "outputs:\n- {type: text, path: /dev/null}\n"
        f"- {{type: fluentd, servers: [a], shared_key_file: '{paths['key']}', username: u, "
        f"password_file: '{paths['word']}'}}\n"
        f"- {{type: fluentd, servers: [a], shared_key: k, username: u, password: w, tls: {{"
        f"enable: true, cert_file: '{folder / 'client.pem'}', key_file: '{paths['tls']}'}}}}\n"
    ))):
        Path(paths[name]).write_text(text)
    shutil.copy(folder / "client.key", paths["tls"])
    all_ = [
        f"outputs[1].shared_key_file: {paths['key']}: everybody may read it (mode 0644)",
        f"outputs[1].password_file: {paths['word']}: everybody may read it (mode 0604)",
        f"outputs[2].shared_key: {paths['config']}: everybody may read it (mode 0664)",
        f"outputs[2].tls.key_file: {paths['tls']}: everybody may read it (mode 0666)",
    ]
    modes = (0o664, 0o644, 0o604, 0o666)
    assert told(modes) == all_
    assert told((0o640, 0o644, 0o640, 0o600)) == all_[:1]
    assert told((0o640,) * 4) == []
    assert told(modes, of_folder=0o750) == []      # nobody comes so far

    told(modes)
    arguments = ["-c", paths["config"], "-r", "/nowhere.pcap"]
    check, run = (
        subprocess.run([*GAZER, command, *arguments], capture_output=True, text=True, timeout=60,
                       stdin=subprocess.DEVNULL, check=False)
        for command in ("check", "run"))
    assert [f"warning       {line}" for line in all_] == [
        line for line in check.stdout.splitlines() if line.startswith("warning ")]
    assert run.stderr.splitlines()[:4] == [f"gazer: {line}" for line in all_]


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

