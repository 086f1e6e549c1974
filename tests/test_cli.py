"""The gazer command: exit codes, one-line errors, what it hands to the supervisor."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from gazer import __version__, check, cli
from gazer.capture.bpf import kernel_filter
from gazer.config import Config, from_mapping, load
from gazer.errors import InputError, ProcessError
from gazer.pidfile import PidFile

ROOT = Path(__file__).resolve().parent.parent


# Unbuffered output would hide what the interpreter's last flush has to say.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def gazer(*args: str | bytes, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gazer", *args],
        cwd=ROOT, env=BUFFERED, text=True, timeout=60, stdin=subprocess.DEVNULL,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more),
    )  # fmt: skip


@pytest.fixture
def config(tmp_path):
    """Writes a configuration and gives its path."""

    def write(text: str = "{}") -> str:
        file = tmp_path / "c.yaml"
        file.write_text(text, encoding="utf-8")
        return str(file)

    return write


@pytest.fixture
def ran(monkeypatch):
    """Stands in for the supervisor: what it was given, and what it answers."""
    supervisor = types.ModuleType("gazer.supervisor")
    calls: list[Config] = []
    hows: list[dict[str, object]] = []
    answer: list[object] = [0]

    def run(config: Config, **how: object) -> int:
        calls.append(config)
        hows.append(how)
        if isinstance(answer[0], BaseException):
            raise answer[0]
        return answer[0]

    supervisor.run = run
    monkeypatch.setitem(sys.modules, "gazer.supervisor", supervisor)
    return types.SimpleNamespace(calls=calls, hows=hows, answer=answer)


# run ---------------------------------------------------------------------------------------


def test_run_takes_everything_from_the_file(config, ran):
    path = config("capture: {files: [a, b]}\nworkers: 2\n")
    assert cli.main(["run", "-c", path]) == 0
    assert ran.calls == [load(path)]


@pytest.mark.parametrize(
    "args, files",
    [
        (["-r", "x"], ("x",)),
        (["-r", "x", "y", "-r", "z"], ("x", "y", "z")),
        (["-r", "-"], ("-",)),
        (["-rx"], ("x",)),
        (["--read", "x"], ("x",)),
    ],
)
def test_r_takes_the_place_of_the_files(config, ran, args, files):
    path = config("capture: {files: [a], ports: [5353]}\n")
    assert cli.main(["run", *args, "-c", path]) == 0
    (given,) = ran.calls
    assert given.capture.files == files
    assert given.capture.ports == (5353,)


def test_how_it_is_to_run(config, ran):
    path = config("{capture: {files: [a]}, workers: 2}")
    assert cli.main(["run", "-c", path]) == 0
    assert cli.main(["run", "-c", path, "-d", "-p", "/run/x.pid", "-r", "b"]) == 0
    first, second = ran.hows
    assert (first["pid_file"], first["daemon"]) == (None, False)
    assert (second["pid_file"], second["daemon"]) == ("/run/x.pid", True)
    # What SIGHUP reads: the file as it is then, and the command line as it was.
    config("{capture: {files: [a]}, workers: 5}")
    again = second["read_again"]()
    assert (again.workers, again.capture.files) == (5, ("b",))


def test_the_supervisors_answer_is_the_exit_code(config, ran, capsys):
    path = config("capture: {files: [a]}\n")
    ran.answer[0] = 3
    assert cli.main(["run", "-c", path]) == 3
    ran.answer[0] = InputError("a: no such file")
    assert cli.main(["run", "-c", path]) == 1
    assert capsys.readouterr() == ("", "gazer: a: no such file\n")
    ran.answer[0] = KeyboardInterrupt()
    assert cli.main(["run", "-c", path]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_broken_pipe_in_the_run_is_not_taken_for_a_good_end(config, ran):
    ran.answer[0] = BrokenPipeError()
    with pytest.raises(BrokenPipeError):
        cli.main(["run", "-c", config("capture: {files: [a]}\n")])


@pytest.mark.parametrize(
    "text, args, line",
    [
        (
            "{}",
            [],
            "gazer: nothing to read: give interfaces with -i or capture files with -r, or "
            "name them under capture.interfaces or capture.files in {path}",
        ),
        ("wrokers: 3", ["-r", "x"], "gazer: {path}:1: wrokers: no such key; did you mean workers?"),
        (
            "{}",
            ["-r", "x", "-i", "eth0"],
            "gazer: -i and -r: interfaces and files can't be read in one run",
        ),
        ("{}", ["-i", "eth0", "-i", "eth0"], "gazer: capture.interfaces[1]: eth0 is given twice"),
        (
            "{}",
            ["-i", "an-interface-name"],
            'gazer: capture.interfaces[0]: "an-interface-name" can\'t be an interface\'s name: it '
            "has 17 octets, and at most 15 are possible",
        ),
        ("{}", ["-r", "-", "-"], "gazer: capture.files: standard input can be read only once"),
        (
            "outputs: [{type: text, path: x}]",
            ["-r", "./x"],
            'gazer: outputs[0].path: "x" is an input file too',
        ),
    ],
)
def test_run_refuses_what_cannot_run(config, ran, capsys, text, args, line):
    path = config(text)
    assert cli.main(["run", "-c", path, *args]) == 2
    assert capsys.readouterr() == ("", line.format(path=path) + "\n")
    assert ran.calls == []


# The command line --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args, line, usage",
    [
        ([], "the following arguments are required: COMMAND", "gazer"),
        (["run"], "the following arguments are required: -c/--config", "gazer run"),
        (
            ["walk"],
            "argument COMMAND: invalid choice: 'walk' (choose from run, check, init, stats, top, "
            "health)",
            "gazer",
        ),
        (["check", "-c"], "argument -c/--config: expected one argument", "gazer check"),
        (
            ["run", "-c", "x", "-r"],
            "argument -r/--read: expected at least one argument",
            "gazer run",
        ),
        (["run", "-c", "x", "--rea", "y"], "unrecognized arguments: --rea y", "gazer"),
        (["run", "-c", "x", "a\nb"], "unrecognized arguments: a\\nb", "gazer"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_2(args, line, usage):
    done = gazer(*args)
    # Python 3.11 has quotes around the choices, later ones have not.
    said = re.sub(r"'(\w+)'(?=[,)])", r"\1", done.stderr)
    assert said == f"gazer: {line}; {usage} -h shows the usage\n"
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("name, shown", [("no\nne", "no\\nne"), (b"no\xff", "no\\udcff")])
def test_a_configuration_that_is_not_there(name, shown):
    for command in ("run", "check"):
        done = gazer(command, "-c", name)
        assert done.stderr == f"gazer: {shown}: cannot be read: No such file or directory\n"
        assert (done.returncode, done.stdout) == (2, "")


def test_help_and_version():
    done = gazer("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"gazer {__version__}\n", "")
    for args in (["-h"], ["run", "-h"], ["check", "--help"]):
        done = gazer(*args)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: gazer ")


def test_a_full_stdout_is_one_line(config):
    for args in (["-h"], ["check", "-c", config()]):
        with open("/dev/full", "w") as full:
            done = gazer(*args, stdout=full)
        assert done.returncode == 1
        assert done.stderr == "gazer: standard output: No space left on device\n"


def test_a_reader_that_has_gone_is_no_error(config):
    for args, code in (
        (["--version"], 0),
        (["check", "-c", config(), "-r", "-"], 0),
        (["check", "-c", config(), "-r", "/nonexistent"], 2),
    ):
        read, write = os.pipe()
        os.close(read)
        done = gazer(*args, stdout=write)
        os.close(write)
        assert done.returncode == code
        assert len(done.stderr.splitlines()) == (1 if code else 0)


def test_the_main_module_costs_a_child_nothing():
    for module in ("gazer.__main__", "gazer.compat"):
        code = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); before = set(sys.modules)\n"
            f"import {module}; print(sorted(set(sys.modules) - before))"
        )
        done = subprocess.run(
            [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
        )
        # site may have imported __future__ already
        assert {*eval(done.stdout)} - {"__future__"} == {"gazer", module}


# check -------------------------------------------------------------------------------------


def test_check_looks_at_the_pid_file(tmp_path):
    config = from_mapping({"outputs": [{"type": "text", "path": "/dev/null"}]})
    assert not list(check.obstacles(config, str(tmp_path / "pid")))
    assert list(check.obstacles(config, str(tmp_path / "no" / "pid"))) == [
        f"pid file {tmp_path}/no/pid: there is no folder {tmp_path}/no"]
    assert list(check.obstacles(config, str(tmp_path))) == [
        f"pid file {tmp_path}: is a folder, not a file"]


def test_check_says_of_a_held_pid_file_what_run_would(tmp_path):
    config = from_mapping({"capture": {"files": ["-"]}})
    path = tmp_path / "pid"
    with PidFile(str(path)):
        with pytest.raises(ProcessError) as refused, PidFile(str(path)):
            pass
        assert list(check.obstacles(config, str(path))) == [str(refused.value)]
        assert path.read_text() == f"{os.getpid()}\n"
    assert not list(check.obstacles(config, str(path)))


def test_check_of_the_example():
    """As shipped it has no input, so it would not run; with one it would."""
    done = gazer("check", "-c", "configs/sensor.yaml")
    assert (done.returncode, done.stderr) == (
        2,
        "gazer: nothing to read: give interfaces with -i or capture files with -r, or name them "
        "under capture.interfaces or capture.files in configs/sensor.yaml\n",
    )
    assert done.stderr == gazer("run", "-c", "configs/sensor.yaml").stderr
    assert "none: give interfaces with -i or capture files with -r" in done.stdout
    assert "valid" not in done.stdout
    done = gazer("check", "-c", "configs/sensor.yaml", "-r", "tests/captures/vlan.pcap")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\nconfigs/sensor.yaml is valid\n")


def wrapped(text: str) -> str:
    """As it stands behind its label."""
    lines = [""]
    for word in text.split(" "):
        if len(lines[-1]) + 1 + len(word) > 100 - 14:
            lines.append(word)
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return ("\n" + 14 * " ").join(lines)


def test_check_shows_what_would_run(config, tmp_path):
    capture = tmp_path / "a.pcap"
    capture.touch()
    path = config(
        "sensor: {id: é}\nworkers: 3\nring: {size: 2MiB}\ncapture: {ports: [53, 5353]}\n"
        "events: {records: true, detail: classic, max_size: 64KiB}\n"
        f"outputs: [{{type: text, path: '-'}}, {{type: msgpack, path: {tmp_path}/m}}]\n"
    )
    done = gazer("check", "-c", path, "-r", str(capture), "-")
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout
        == f"""\
sensor        é
input         {capture}
              standard input
dns           ports 53, 5353; frames up to 256KiB
tunnels       mpls, pppoe, gre, erspan, vxlan (UDP 4789), geneve (UDP 6081), ip; 4 levels at most
fragments     at most 4096 datagrams waiting in 16MiB, for 30s
streams       at most 65536 connections, 256KiB kept of each and 128MiB of all; forgotten after 5m
transfers     at most 1024 zone transfers at once
processes     6: supervisor, capture, 3 workers, sink
rings         3 frame rings and 3 event rings of 2MiB each
shared memory 12 MiB, and a few pages for headers and counters
matching      timeout 60s, duplicates within 5s, at most 1000000 queries waiting in 256MiB
events        classic detail, transactions and records, up to 64KiB each
output        text to standard output
              msgpack to {tmp_path}/m
{path} is valid
"""
    )
    # It only looked.
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pcap", "c.yaml"]


def test_check_shows_filters_and_what_is_opened():
    config = from_mapping(
        {
            "capture": {"filter": "net 10.0.0.0/8", "mdns": True, "llmnr": True},
            "tunnels": {
                "decode": ["gre", "vxlan", "geneve"], "max_depth": 1,
                "vxlan_ports": [4789, 8472], "geneve_ports": [],
            },
            "fragments": {"max_datagrams": 1, "max_bytes": "1MiB", "timeout": "90s"},
        }
    )  # fmt: skip
    lines = dict(line.split("  ", 1) for line in check.outline(config) if "  " in line)
    assert lines["filter"].strip() == "net 10.0.0.0/8"
    assert lines["dns"].strip() == (
        "ports 53; mDNS on 5353; LLMNR on 5355; frames up to 256KiB"
    )
    assert lines["tunnels"].strip() == (
        "gre, vxlan (UDP 4789, 8472), geneve (UDP no port); 1 level at most"
    )
    assert lines["fragments"].strip() == "at most 1 datagram waiting in 1MiB, for 90s"
    told = [*check.outline(config)]
    first = next(i for i, line in enumerate(told) if line.startswith("kernel filter "))
    assert max(len(line) for line in told[first:]) <= 100
    kernel = " ".join(line[14:] for line in told[first:])       # it is the last of all
    assert kernel == kernel_filter(config.capture, config.tunnels)
    assert kernel.startswith("(net 10.0.0.0/8) and (")
    assert "port 53 or port 4789 or port 5353 or port 5355 or port 8472" in kernel
    config = from_mapping({"tunnels": {"decode": []}})
    assert "tunnels       none is opened; VLAN tags are read" in check.outline(config)


def test_check_of_a_live_run():
    """`lo` is there and up wherever tests run."""
    config = from_mapping({
        "capture": {"interfaces": ["lo", "gz-absent"], "processes": 2, "buffer": "32MiB"},
        "workers": 3, "ring": {"size": "2MiB"},
    })  # fmt: skip
    lines = list(check.outline(config))
    for line in (
        "interface     lo: up",
        "              gz-absent: there is no such interface now; it will be waited for",
        "capture       kernel buffer 32MiB for each of 2 processes on each interface, which share "
        "the frames by their outer addresses (fanout); promiscuous",
        "processes     10: supervisor, 4 capture, 3 workers, sink, metrics",
        "rings         12 frame rings and 3 event rings of 2MiB each",
        "shared memory 30 MiB, and a few pages for headers and counters",
    ):
        assert line in lines
    one = from_mapping({
        "capture": {"interfaces": ["any"], "promiscuous": False}, "metrics": {"listen": ""},
        "workers": 1,
    })  # fmt: skip
    lines = list(check.outline(one))
    assert "interface     any: all interfaces" in lines
    assert "capture       kernel buffer 64MiB; not promiscuous (any never is)" in lines
    assert "processes     4: supervisor, capture, 1 worker, sink" in lines
    assert "\n".join(lines).endswith(
        f"\nkernel filter {wrapped(kernel_filter(one.capture, one.tunnels, 113))}")
    assert not [line for line in lines if line.startswith("metrics ")]


@pytest.mark.parametrize("listen", ["127.0.0.1:80", "[::1]:1023"])
def test_check_says_which_ports_cannot_be_served(monkeypatch, listen):
    """Also to root: who serves them has given up what it takes."""
    config = from_mapping({"capture": {"interfaces": ["lo"]}, "metrics": {"listen": listen}})
    monkeypatch.setattr(check, "least_port", lambda: 1024)
    (line,) = (line for line in check.outline(config) if line.startswith("metrics "))
    assert line == (
        f"metrics       not on {listen}: ports below 1024 take a right that its process does not "
        "have (net.ipv4.ip_unprivileged_port_start); the run goes on without"
    )
    monkeypatch.setattr(check, "least_port", lambda: 80)
    assert f"metrics       {listen}" in check.outline(config)


def test_check_asks_whether_it_may_capture(monkeypatch):
    live = from_mapping({"capture": {"interfaces": ["lo"]}})
    monkeypatch.setattr(check, "may_capture", lambda: False)
    (line,) = check.obstacles(live)
    assert line.startswith("capture.interfaces: ") and "CAP_NET_RAW" in line
    assert not list(check.obstacles(from_mapping({})))
    monkeypatch.setattr(check, "may_capture", lambda: True)
    assert not list(check.obstacles(live))


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_filter_that_is_none_is_told_before_anything_starts(config, tmp_path, command):
    output = tmp_path / "out"
    path = config(
        f"capture: {{filter: prot 53}}\noutputs: [{{type: text, path: {output}}}]\n"
    )
    done = gazer(command, "-c", path, "-r", "tests/captures/vlan.pcap")
    assert done.returncode == 2
    assert done.stderr == (
        "gazer: capture.filter: can't parse filter expression: syntax error\n"
    )
    assert "valid" not in done.stdout and not output.exists()


def test_check_tells_each_obstacle(config, tmp_path):
    path = config(
        f"outputs:\n- {{type: text, path: {tmp_path}/none/x}}\n"
        f"- {{type: text, path: {tmp_path}/folder}}\n"
        f"- {{type: text, path: {tmp_path}/c.yaml/x}}\n"
    )
    (tmp_path / "folder").mkdir()
    done = gazer("check", "-c", path, "-r", f"{tmp_path}/gone", str(tmp_path))
    assert done.returncode == 2
    assert (
        done.stderr
        == f"""\
gazer: capture.files[0]: {tmp_path}/gone: No such file or directory
gazer: capture.files[1]: {tmp_path}: is a folder, not a capture file
gazer: outputs[0].path: {tmp_path}/none/x: there is no folder {tmp_path}/none
gazer: outputs[1].path: {tmp_path}/folder: is a folder, not a file
gazer: outputs[2].path: {tmp_path}/c.yaml/x: Not a directory
"""
    )
    assert "valid" not in done.stdout
    assert done.stdout.startswith("sensor ")


@pytest.mark.parametrize("allowed", [True, False])
def test_check_asks_for_permission(tmp_path, monkeypatch, allowed):
    # By a stand-in for access(2): root, who may run the tests, may do everything.
    asked = []

    def access(path, mode, *, effective_ids=False):
        asked.append((os.fspath(path), mode, effective_ids))
        return allowed

    monkeypatch.setattr(os, "access", access)
    there = tmp_path / "there"
    there.touch()
    config = from_mapping(
        {
            "capture": {"files": [f"{tmp_path}/c.pcap"]},
            "outputs": [
                {"type": "text", "path": str(there)},
                {"type": "text", "path": f"{tmp_path}/new"},
            ],
        }
    )
    (tmp_path / "c.pcap").touch()
    found = list(check.obstacles(config))
    assert asked == [
        (f"{tmp_path}/c.pcap", os.R_OK, True),
        (str(there), os.W_OK, True),
        (str(tmp_path), os.W_OK | os.X_OK, True),
    ]
    refused = [
        f"capture.files[0]: {tmp_path}/c.pcap: may not be read",
        f"outputs[0].path: {there}: may not be written",
        f"outputs[1].path: {tmp_path}/new: may not be made in {tmp_path}",
    ]
    assert found == ([] if allowed else refused)


def test_check_follows_a_link_to_what_is_not_there_yet(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "good").symlink_to("folder/later")
    (tmp_path / "bad").symlink_to("nowhere/later")
    config = from_mapping(
        {"outputs": [{"type": "text", "path": f"{tmp_path}/{name}"} for name in ("good", "bad")]}
    )
    assert list(check.obstacles(config)) == [
        f"outputs[1].path: {tmp_path}/bad: there is no folder {tmp_path}/nowhere"
    ]


def test_check_sees_too_little_shared_memory(monkeypatch):
    config = from_mapping({"workers": 4, "ring": {"size": "4MiB"}})
    monkeypatch.setattr(check, "_free_shared_memory", lambda: 32 << 20)
    assert list(check.obstacles(config)) == []
    monkeypatch.setattr(check, "_free_shared_memory", lambda: (32 << 20) - 1)
    (line,) = check.obstacles(config)
    assert line.startswith("ring.size: the rings need 32 MiB of shared memory and /dev/shm has ")
    monkeypatch.setattr(check, "SHARED_MEMORY", "/nonexistent")
    monkeypatch.undo()
    assert check._free_shared_memory() is not None


def test_check_cuts_a_long_list_short():
    config = from_mapping({"capture": {"files": [f"f{i}" for i in range(13)]}})
    lines = [line for line in check.outline(config) if line.startswith((" ", "input"))]
    assert [line.split()[-1] for line in lines[:10]] == [f"f{i}" for i in range(10)]
    assert lines[10].strip() == "and 3 more"
