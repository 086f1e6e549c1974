"""dns-gazer: the original's flags, the Config they make, and its one-line errors."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

from gazer import __version__, compat
from gazer.config import Config, Detail, Events, Forward, Output, OutputKind, Server
from gazer.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent


def made(*args: str) -> tuple[Config, str | None, bool]:
    found = compat.parse(args)
    assert not isinstance(found, str)
    return found


def dns_gazer(*args: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from gazer.compat import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=ROOT, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_the_drop_in_command():
    config, pid_file, daemon = made("-r", "captured.pcap", "-t", "-")
    assert config.capture.files == ("captured.pcap",)
    assert config.outputs == (Output(OutputKind.TEXT, "-"),)
    assert config.events == Events(Detail.CLASSIC, False)
    assert (pid_file, daemon) == (None, False)
    # All else is as in a configuration that says nothing.
    assert config.transactions == Config().transactions
    assert (config.workers, config.ring, config.capture.ports) == (0, Config().ring, (53,))


def test_any_number_of_files_and_outputs_in_their_order():
    config, pid_file, daemon = made(
        "-t", "a", "-o", "b", "-r", "x", "-t-", "-oc", "-r-", "-r", "y", "-p", "pid", "-R", "-d"
    )  # fmt: skip
    assert config.capture.files == ("x", "-", "y")
    assert config.outputs == (
        Output(OutputKind.TEXT, "a"),
        Output(OutputKind.MSGPACK, "b"),
        Output(OutputKind.TEXT, "-"),
        Output(OutputKind.MSGPACK, "c"),
    )
    assert config.events.records
    assert (pid_file, daemon) == ("pid", True)


@pytest.mark.parametrize(("value", "address"), [
    ("localhost", "localhost:24224"), ("localhost:24225", "localhost:24225"),
    ("192.0.2.1", "192.0.2.1:24224"), ("[::1]", "[::1]:24224"), ("[::1]:5", "[::1]:5"),
    ("unix:///run/x", "unix:///run/x"),
])
def test_fluentd(value, address):
    """Also live, beside files, and as often as one likes."""
    first = Output(OutputKind.MSGPACK_EVENT_TIME, "", Forward((Server(address),)))
    assert made("-i", "eth0", "-f", value)[0].outputs == (first,)
    assert made("-r", "x", f"-f{value}", "-t-", "-f", "other")[0].outputs == (
        first, Output(OutputKind.TEXT, "-"),
        Output(OutputKind.MSGPACK_EVENT_TIME, "", Forward((Server("other:24224"),))))


def test_interfaces():
    config = made("-i", "eth0", "-iany", "-t-")[0]
    assert config.capture.interfaces == ("eth0", "any")
    assert config.capture.files == ()
    assert config.metrics.listen == ""      # there is no flag for it


def test_flags_may_be_joined():
    assert made("-Rdr", "x", "-t-") == made("-d", "-R", "-r", "x", "-t", "-")
    assert made("-Rrx", "-t-") == made("-R", "-r", "x", "-t", "-")


def test_a_value_may_look_like_a_flag():
    assert made("-r", "-x", "-t", "-R")[0].capture.files == ("-x",)
    assert not made("-r", "-x", "-t", "-R")[0].events.records


def test_a_path_may_hold_bytes_that_are_no_text():
    assert made("-r", "a\udcff", "-t", "-")[0].capture.files == ("a\udcff",)


@pytest.mark.parametrize("name", ["\udcff.txt", "\udcff-%Y.txt"])
def test_so_may_that_of_an_output(name):
    assert made("-r", "a", "-t", f"/tmp/{name}")[0].outputs[0].path == f"/tmp/{name}"


def test_the_extra_options():
    config, _, _ = made("-r", "x", "-t", "-", "--detail", "full", "--workers", "7")
    assert (config.events.detail, config.workers) == (Detail.FULL, 7)
    config, _, _ = made("-r", "x", "-t", "-", "--detail=classic", "--workers=auto")
    assert (config.events.detail, config.workers) == (Detail.CLASSIC, 0)


USAGE = "; dns-gazer -h shows the usage"
WRONG = [
    (
        ["-i", "eth0", "-r", "x", "-t-"],
        "-i and -r: interfaces and files can't be read in one run",
    ),
    (["-i", "a", "-i", "a", "-t-"], "-i a: a is given twice"),
    (["-i", "a-name-too-long!", "-t-"],
     '-i a-name-too-long!: "a-name-too-long!" can\'t be an interface\'s name: it has 16 octets, '
     "and at most 15 are possible"),
    (["-i", "\n", "-t-"],
     '-i \\n: "\\n" can\'t be an interface\'s name: it has what does not print in it'),
    *((["-r", "x", "-f", text],
       f'-f: expected HOST, HOST:PORT, [ADDRESS]:PORT or unix:///PATH, got "{text}"')
      for text in ("a:0", "a:65536", "a:b", "::1", "[::1", "[a]", "unix://a", "unix:///", "a b")),
    (["-r", "x", "-f", ""], "-f: its value is empty" + USAGE),
    (["-t", "-"], "nothing to read: give an interface with -i or a capture file with -r"),
    ([], "nothing to read: give an interface with -i or a capture file with -r"),
    (
        ["-r", "x"],
        'no output: give -t FILE for text, -o FILE for msgpack ("-" is stdout) or -f HOST for'
        " fluentd",
    ),
    (["-x"], "option -x not recognized" + USAGE),
    (["-r"], "option -r requires argument" + USAGE),
    (["--details", "full"], "option --details not recognized" + USAGE),
    (["-r", "x", "-t", ""], "-t: its value is empty" + USAGE),
    (["-r", "", "-t", "x"], "-r: its value is empty" + USAGE),
    (["-r", "x", "-t-", "y\n"], "y\\n belongs to no flag; capture files are given with -r"),
    (["-r", "x", "-t-", "-o-"], "-o -: standard output is the file of another output too"),
    (["-r", "x", "-ta", "-o", "./a"], '-o ./a: "./a" is the file of another output too'),
    (["-r", "x", "-ox"], '-o x: "x" is an input file too'),
    (["-r-", "-r-", "-ox"], "-r: standard input can be read only once"),
    (
        ["-r", "x", "-t-", "--workers", "0"],
        '--workers: expected "auto" or a whole number from 1 to 64, got "0"',
    ),
    (
        ["-r", "x", "-t-", "--detail", "some"],
        '--detail: expected "classic" or "full", got "some"',
    ),
]


@pytest.mark.parametrize("args, line", WRONG, ids=[" ".join(args) for args, _ in WRONG])
def test_what_is_wrong_is_told_in_one_line(args, line):
    with pytest.raises(UsageError) as caught:
        compat.parse(args)
    assert str(caught.value) == line


def test_exit_codes_of_the_real_command():
    done = dns_gazer("-v")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"dns-gazer (gazer) {__version__}\n"
    done = dns_gazer("-h")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == compat.USAGE
    done = dns_gazer("-r", "x")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = (line for args, line in WRONG if args == ["-r", "x"])
    assert done.stderr == f"dns-gazer: {line}\n"


def test_help_names_every_flag():
    for flag in "rtoRpvhifd":
        assert f"-{flag} " in compat.USAGE or f"-{flag}]" in compat.USAGE


def test_the_supervisor_gets_the_config_the_pid_file_and_the_daemon(monkeypatch):
    supervisor = types.ModuleType("gazer.supervisor")
    calls = []

    def run(config: Config, *, pid_file: str | None = None, daemon: bool = False) -> int:
        calls.append((config, pid_file, daemon))
        return 1

    supervisor.run = run
    monkeypatch.setitem(sys.modules, "gazer.supervisor", supervisor)
    args = ["-r", "missing.pcap", "-t", "-", "-p", "gazer.pid", "-d"]
    assert compat.main(args) == 1
    assert calls == [made(*args)]
