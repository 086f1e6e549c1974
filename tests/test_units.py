"""The service files, by those who read them: systemd's tools, supervisord, logrotate."""

from __future__ import annotations

import ctypes
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gazer.config import Config
from gazer.units import FILES, STOP_SECONDS, Site, logrotate_file, supervisord_section, systemd_unit
from tests.conftest import CAPTURES, Fifo, Runner, eventually

ROOT = Path(__file__).resolve().parent.parent
ME = pwd.getpwuid(os.geteuid()).pw_name
SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
SYSTEMD_ANALYZE = shutil.which("systemd-analyze")
LOGROTATE = shutil.which("logrotate", path=SBIN)
PR_SET_MDWE, MDWE_REFUSE_EXEC_GAIN = 65, 1

by_systemd = pytest.mark.skipif(SYSTEMD_ANALYZE is None, reason="systemd-analyze is not there")


def settings(unit: str) -> dict[str, list[str]]:
    """Key -> the values that it is given, in their order."""
    found: dict[str, list[str]] = {}
    for line in unit.splitlines():
        if line and line[0] not in "#[":
            key, equals, value = line.partition("=")
            assert equals, line
            found.setdefault(key, []).append(value)
    return found


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """A `gazer` that is this tree's."""
    path = tmp_path / "bin" / "gazer"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m gazer "$@"\n')
    path.chmod(0o755)
    return path


# --- all three ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_every_place_is_filled_in(name: str) -> None:
    site = Site("/a/gazer", "/b/c.yaml", "/d/logs", "somebody", error_dir="/e")
    text = FILES[name](site)
    assert "$" not in text.replace("$MAINPID", "")
    assert all(len(line) <= 100 for line in text.splitlines())
    usual = Site()
    for word in (usual.command, usual.config, usual.log_dir, usual.error_dir):
        assert word not in text
    if name != "gazer.logrotate":
        assert "/a/gazer run -c /b/c.yaml\n" in text


@pytest.mark.parametrize("name", FILES)
def test_whoever_stops_it_waits_longer_than_it_drains(name: str) -> None:
    if name == "gazer.logrotate":
        return
    assert Config().service.shutdown_timeout_ns < (STOP_SECONDS - 10) * 1_000_000_000
    assert re.search(rf"^(TimeoutStopSec|stopwaitsecs)={STOP_SECONDS}$", FILES[name](Site()), re.M)


# --- systemd --------------------------------------------------------------------------------------


def test_the_unit_starts_and_stops_it_as_it_is_built_to_be() -> None:
    known = settings(systemd_unit(Site()))
    for key, value in {
        "Type": "notify", "NotifyAccess": "main", "KillMode": "mixed", "User": "gazer",
        "ExecReload": "/bin/kill -HUP $MAINPID", "Restart": "on-failure",
        "RestartPreventExitStatus": "2", "AmbientCapabilities": "CAP_NET_RAW",
        "CapabilityBoundingSet": "CAP_NET_RAW", "NoNewPrivileges": "yes",
    }.items():  # fmt: skip
        assert known[key] == [value]
    assert "KillSignal" not in known, "TERM, which is the default, drains"


@pytest.mark.parametrize(
    ("site", "logs", "home", "tmp"),
    [
        (Site(), ("LogsDirectory", "gazer"), "yes", "yes"),
        (Site(log_dir="/var/log/a/b"), ("ReadWritePaths", "/var/log/a/b"), "yes", "yes"),
        (Site(log_dir="/var/log"), ("ReadWritePaths", "/var/log"), "yes", "yes"),
        (Site(command="/home/x/v/bin/gazer"), ("LogsDirectory", "gazer"), "read-only", "yes"),
        (Site(config="/root/sensor.yaml"), ("LogsDirectory", "gazer"), "read-only", "yes"),
        (Site(command="/homes/x/bin/gazer"), ("LogsDirectory", "gazer"), "yes", "yes"),
        (Site(log_dir="/tmp/logs"), ("ReadWritePaths", "/tmp/logs"), "yes", "no"),
        (Site(ways=("/opt", "/root/.pyenv/bin")), ("LogsDirectory", "gazer"), "read-only", "yes"),
        (Site(ways=("/root",)), ("LogsDirectory", "gazer"), "read-only", "yes"),
    ],
)  # fmt: skip
def test_what_it_needs_stays_in_sight(
    site: Site, logs: tuple[str, str], home: str, tmp: str
) -> None:
    known = settings(systemd_unit(site))
    assert known[logs[0]] == [logs[1]]
    assert ("LogsDirectory" in known) != ("ReadWritePaths" in known)
    assert (known["ProtectHome"], known["PrivateTmp"]) == ([home], [tmp])


@by_systemd
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path, command: Path) -> None:
    unit = tmp_path / "gazer.service"
    unit.write_text(systemd_unit(Site(command=str(command))))
    done = subprocess.run(
        [str(SYSTEMD_ANALYZE), "verify", str(unit)], capture_output=True, text=True, check=False
    )
    about_it = [line for line in done.stderr.splitlines() if "gazer" in line]
    assert (done.returncode, about_it) == (0, [])
    # That it would have, if there was something.
    unit.write_text(unit.read_text().replace("ProtectSystem=", "Protect="))
    done = subprocess.run(
        [str(SYSTEMD_ANALYZE), "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert "Protect" in done.stderr


@by_systemd
def test_systemd_holds_the_unit_to_be_closed_enough(tmp_path: Path) -> None:
    unit = tmp_path / "gazer.service"
    unit.write_text(systemd_unit(Site()))
    line = [str(SYSTEMD_ANALYZE), "security", "--offline=true", "--no-pager"]
    done = subprocess.run([*line, str(unit)], capture_output=True, text=True, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze can't look at a file")
    exposure = re.search(r"Overall exposure level for gazer.service: ([\d.]+)", done.stdout)
    assert exposure, done.stderr
    assert float(exposure[1]) <= 2.5


def allowed_calls() -> set[str]:
    """The system calls that the unit's filter lets through, by systemd's own lists."""
    line = [str(SYSTEMD_ANALYZE), "syscall-filter", "--no-pager"]
    told = subprocess.check_output(line, text=True)
    sets: dict[str, list[str]] = {}
    members: list[str] = []
    for line in told.splitlines():
        if line.startswith("@"):
            members = sets.setdefault(line.strip(), [])
        elif line.startswith("    ") and not line.strip().startswith("#"):
            members.append(line.strip())

    def expanded(word: str) -> set[str]:
        if not word.startswith("@"):
            return {word}
        return {call for member in sets[word] for call in expanded(member)}

    found: set[str] = set()
    for value in settings(systemd_unit(Site()))["SystemCallFilter"]:
        out = value.startswith("~")
        words = {call for word in value.lstrip("~").split() for call in expanded(word)}
        found = found - words if out else found | words
    return found


@by_systemd
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not there")
def test_the_filter_of_system_calls_lets_a_run_through(
    tmp_path: Path, command: Path, gazer: Runner
) -> None:
    allowed = allowed_calls()
    assert {"read", "execve", "prctl", "capset", "seccomp", "socket"} <= allowed
    assert not {"mount", "ptrace", "init_module", "add_key", "reboot"} & allowed
    trace = tmp_path / "trace"
    done = gazer(
        "-c", f"exec strace -f -qq -o {trace} {command} run -c {ROOT}/configs/sensor.yaml"
        f" -r {CAPTURES}/captured.pcap", command="bash",
    )  # fmt: skip
    if "ptrace" in done.stderr and done.code != 0:
        pytest.skip("strace may not trace here")
    assert done.code == 0
    used = set(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.M))
    assert {"execve", "mmap", "eventfd2"} <= used
    assert not used - allowed


def test_it_runs_where_no_memory_becomes_executable(gazer: Runner) -> None:
    """MemoryDenyWriteExecute, by the kernel's own switch for it."""
    libc = ctypes.CDLL(None, use_errno=True)

    def refuse() -> None:
        if libc.prctl(PR_SET_MDWE, MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) != 0:
            os._exit(99)

    done = gazer("-r", CAPTURES / "lossy.pcap", "-t", "-", preexec_fn=refuse)
    if done.code == 99:
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert done.code == 0
    assert done.stdout == gazer("-r", CAPTURES / "lossy.pcap", "-t", "-").stdout


# --- supervisord ----------------------------------------------------------------------------------


@pytest.mark.parametrize("error_dir", ["/var/log", "/srv", "/"])
def test_what_supervisord_opens_as_root_is_not_the_user_s(error_dir: str) -> None:
    """Who can lay a link in that folder can have root make, and append to, any file."""
    text = supervisord_section(Site(error_dir=error_dir))
    files = re.findall(r"^\w+_logfile=(.*)$", text, re.M)
    assert files == ["NONE", f"{error_dir.rstrip('/')}/gazer.err"]


class Supervisord:
    """A supervisord that includes our section, and its supervisorctl."""

    def __init__(self, folder: Path, site: Site) -> None:
        self._config = folder / "supervisord.conf"
        (folder / "gazer.supervisord.conf").write_text(supervisord_section(site))
        self._config.write_text(
            f"[unix_http_server]\nfile={folder}/s\n"
            f"[supervisord]\nlogfile={folder}/supervisord.log\npidfile={folder}/supervisord.pid\n"
            "[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
            f"[supervisorctl]\nserverurl=unix://{folder}/s\n"
            f"[include]\nfiles={folder}/gazer.supervisord.conf\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(self._config)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def ctl(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(self._config), *words],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout + done.stderr


@pytest.fixture
def supervisord(
    tmp_path: Path, command: Path, fifo: Fifo, gazer: Runner
) -> Iterator[Supervisord]:
    """supervisord with a gazer that reads a FIFO, which stands for a source without an end."""
    pytest.importorskip("supervisor")
    logs = tmp_path / "logs"
    logs.mkdir()
    config = tmp_path / "sensor.yaml"
    config.write_text(
        f"capture: {{files: [{fifo.path}]}}\nworkers: 1\n"
        f"outputs: [{{type: text, path: {logs}/dns.log}}]\n"
    )
    made = Supervisord(tmp_path, Site(str(command), str(config), str(logs), ME, str(tmp_path)))
    try:
        yield made
    finally:
        made.process.send_signal(signal.SIGTERM)
        try:
            made.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(made.process.pid, signal.SIGKILL)
            made.process.wait()
            raise


def test_supervisord_starts_watches_and_stops_it(
    tmp_path: Path, supervisord: Supervisord, fifo: Fifo
) -> None:
    def state() -> str:
        return (supervisord.ctl("status", "gazer").split() or ["", ""])[1]

    def ours() -> list[psutil.Process]:
        return psutil.Process(supervisord.process.pid).children(recursive=True)

    fifo.write((CAPTURES / "captured.pcap").read_bytes())
    eventually(lambda: state() == "RUNNING", 30.0)
    log = tmp_path / "logs" / "dns.log"
    eventually(lambda: log.exists() and log.read_text().count("\n") == 1, 20.0)
    first = {process.pid for process in ours()}
    assert len(first) >= 4

    # Killed: the rest end with it, and it is started again.
    (main,) = psutil.Process(supervisord.process.pid).children()
    main.kill()
    eventually(lambda: state() == "RUNNING" and ours(), 30.0)
    eventually(lambda: not any(psutil.pid_exists(pid) for pid in first), 10.0)

    assert "gazer: stopped" in supervisord.ctl("stop", "gazer")
    assert ours() == []
    assert "gazer:" in (tmp_path / "gazer.err").read_text()


# --- logrotate ------------------------------------------------------------------------------------


@pytest.fixture
def rotate(tmp_path: Path) -> Iterator[object]:
    """Rotates tmp_path/logs; what systemctl or supervisorctl were told to do."""
    if LOGROTATE is None:
        pytest.skip("logrotate is not there")
    if os.geteuid() != 0:
        pytest.skip("the file is for logrotate as root")
    logs = tmp_path / "logs"
    logs.mkdir()
    file = tmp_path / "gazer.logrotate"
    file.write_text(logrotate_file(Site(log_dir=str(logs), user=ME)))
    file.chmod(0o644)
    programs = tmp_path / "programs"
    programs.mkdir()
    told = tmp_path / "told"

    def run(**exits: str) -> str:
        for name, exit_code in exits.items():
            stand_in = programs / name
            stand_in.write_text(f'#!/bin/sh\necho "{name} $*" >>{told}\n{exit_code}\n')
            stand_in.chmod(0o755)
        for tool in ("sh", "gzip"):
            if not (programs / tool).exists():
                (programs / tool).symlink_to(str(shutil.which(tool)))
        told.write_text("")
        subprocess.run(
            [LOGROTATE, "-f", "-s", str(tmp_path / "state"), str(file)],
            env={"PATH": str(programs)}, check=True, capture_output=True,
        )  # fmt: skip
        return told.read_text()

    yield run


def test_logrotate_renames_and_tells_the_service(tmp_path: Path, rotate) -> None:
    log = tmp_path / "logs" / "dns.log"
    log.write_text("one\n")
    assert rotate(systemctl="exit 0") == (
        "systemctl --quiet is-active gazer.service\nsystemctl reload gazer.service\n"
    )
    renamed = tmp_path / "logs" / "dns.log.1"
    assert renamed.read_text() == "one\n"
    assert not log.exists(), "gazer makes the new file itself"

    # A day later: the older one is compressed, the one that gazer may still write to isn't.
    log.write_text("two\n")
    rotate()
    assert renamed.read_text() == "two\n"
    assert (tmp_path / "logs" / "dns.log.2.gz").exists()


def test_logrotate_tells_supervisord_where_systemd_does_not_run_it(tmp_path: Path, rotate) -> None:
    (tmp_path / "logs" / "dns.log").write_text("one\n")
    assert rotate(systemctl="exit 3", supervisorctl="exit 0") == (
        "systemctl --quiet is-active gazer.service\nsupervisorctl signal HUP gazer\n"
    )


def test_logrotate_works_where_neither_is(tmp_path: Path, rotate) -> None:
    (tmp_path / "logs" / "dns.log").write_text("one\n")
    assert rotate() == ""
    assert (tmp_path / "logs" / "dns.log.1").exists()


def test_logrotate_leaves_the_rest_of_the_folder_alone(tmp_path: Path, rotate) -> None:
    for name in ("quarantine.pcap", "gazer.err", "dns.log"):
        (tmp_path / "logs" / name).write_text("x")
    rotate()
    assert sorted(p.name for p in (tmp_path / "logs").iterdir()) == [
        "dns.log.1", "gazer.err", "quarantine.pcap",
    ]  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for the files of another user")
@pytest.mark.skipif(LOGROTATE is None, reason="logrotate is not there")
def test_logrotate_does_not_follow_the_user_s_links_as_root() -> None:
    user = pwd.getpwnam("daemon")
    folder = Path(tempfile.mkdtemp(prefix="gazer-test-"))
    try:
        folder.chmod(0o755)
        root_s = folder / "root"
        root_s.write_text("root's\n")
        logs = folder / "logs"
        logs.mkdir()
        for name in ("dns.log", "plain.log"):
            (logs / name).write_text("event\n")
            os.chown(logs / name, user.pw_uid, user.pw_gid)
        os.chown(logs, user.pw_uid, user.pw_gid)
        (logs / "link.log").symlink_to(root_s)
        (logs / "dns.log.2.gz").symlink_to(root_s)      # ... which compressing would write to
        (logs / "dns.log.1").write_text("older\n")
        os.chown(logs / "dns.log.1", user.pw_uid, user.pw_gid)
        file = folder / "gazer.logrotate"
        file.write_text(logrotate_file(Site(log_dir=str(logs), user="daemon")))
        file.chmod(0o644)
        subprocess.run(
            [LOGROTATE, "-f", "-s", str(folder / "state"), str(file)],
            env={"PATH": "/nonexistent"}, check=False, capture_output=True,
        )  # fmt: skip
        assert (logs / "plain.log.1").read_text() == "event\n"     # it has done its work
        assert root_s.read_text() == "root's\n"
        assert {path.lstat().st_uid for path in logs.iterdir() if not path.is_symlink()} == {
            user.pw_uid}
    finally:
        shutil.rmtree(folder)
