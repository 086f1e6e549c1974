"""`gazer init`: what it lays, what it refuses, what is next; and that it overwrites nothing."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from gazer import cli, init
from gazer.config import Config, OutputKind, load
from gazer.privileges import Identity
from gazer.units import FILES, Site, systemd_unit

ME = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """Where a command `gazer` is."""
    command = tmp_path / "opt" / "bin" / "gazer"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    return tmp_path / "opt"


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


# --- what it lays ---------------------------------------------------------------------------------


@pytest.fixture(params=[0o022, 0o077], ids=["", "umask 077"])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_it_lays_four_files(tmp_path: Path, prefix: Path) -> None:
    """Which others may read, whatever the umask: the service is another user."""
    folder = tmp_path / "etc" / "gazer"  # both are made
    assert cli.main(["init", str(folder), "--prefix", str(prefix)]) == 0
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["sensor.yaml", "gazer.service", "gazer.supervisord.conf", "gazer.logrotate"]
    )
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert path.stat().st_nlink == 1
    site = Site(f"{prefix}/bin/gazer", f"{folder}/sensor.yaml", ways=(str(tmp_path), "/tmp"))
    for name, make in FILES.items():
        assert (folder / name).read_text() == make(site)


def test_the_configuration_is_the_defaults_but_for_what_was_filled_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-i", "mirror0", "--interface", "mirror1", "--log-dir", "/srv/dns", "--user", "x"]
    assert cli.main(["init", str(tmp_path), *arguments]) == 0
    made, default = load(str(tmp_path / "sensor.yaml")), Config()
    assert made.capture.interfaces == ("mirror0", "mirror1")
    assert made.service.user == "x"
    assert made.service.quarantine == "/srv/dns/quarantine.pcap"
    (output,) = made.outputs
    assert (output.kind, output.path) == (OutputKind.TEXT, "/srv/dns/dns.log")
    for name in ("sensor", "tunnels", "fragments", "streams", "ring", "transactions", "events"):
        assert getattr(made, name) == getattr(default, name)
    text = (tmp_path / "sensor.yaml").read_text()
    assert '  # Default: []\n  interfaces: ["mirror0", "mirror1"]\n' in text
    assert text.count("# Default: ") == 3
    assert "docgen" not in text
    assert "any" not in capsys.readouterr().out


def test_without_an_interface_it_watches_all_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["init", str(tmp_path)]) == 0
    assert load(str(tmp_path / "sensor.yaml")).capture.interfaces == ("any",)
    assert "note: it watches all interfaces (any)" in capsys.readouterr().out


def test_a_folder_is_made_absolute(
    tmp_path: Path, prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "here/../there", "--prefix", "opt", "--log-dir", "/var/log//x/"]) == 0
    unit = (tmp_path / "there" / "gazer.service").read_text()
    assert f"ExecStart={prefix}/bin/gazer run -c {tmp_path}/there/sensor.yaml\n" in unit
    assert "LogsDirectory=x\n" in unit


# --- what is there stays there --------------------------------------------------------------------


@pytest.mark.parametrize("name", init.NAMES)
def test_it_never_overwrites(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / name).write_text("mine")
    assert cli.main(["init", str(tmp_path)]) == 2
    assert capsys.readouterr() == (
        "",
        f"gazer: {tmp_path}: {name} is there already, and nothing has been written; "
        "--force overwrites\n",
    )
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"
    assert cli.main(["init", str(tmp_path), "--force"]) == 0
    assert (tmp_path / name).read_text() != "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(init.NAMES)


def test_a_link_that_leads_nowhere_is_there_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "elsewhere"
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "sensor.yaml").symlink_to(target)
    (folder / "gazer.service").touch()
    assert cli.main(["init", str(folder)]) == 2
    assert "sensor.yaml, gazer.service are there already" in capsys.readouterr().err
    assert cli.main(["init", str(folder), "--force"]) == 0
    assert not target.exists(), "what was replaced is the link, not what it names"
    assert not (folder / "sensor.yaml").is_symlink()


def test_what_comes_to_be_there_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gazer.service").write_text("mine")
    monkeypatch.setattr(init.os.path, "lexists", lambda _: False)
    assert cli.main(["init", str(tmp_path)]) == 2
    assert "gazer.service: there already, and left alone" in capsys.readouterr().err
    assert (tmp_path / "gazer.service").read_text() == "mine"
    assert not list(tmp_path.glob("*.new"))


def test_a_full_disk_leaves_no_file_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(init.os, "fsync", full)
    assert cli.main(["init", str(tmp_path)]) == 1
    assert capsys.readouterr() == (
        "", f"gazer: can't write {tmp_path}/sensor.yaml: No space left on device\n"
    )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["init", str(tmp_path / "file" / "below")]) == 1
    assert capsys.readouterr().err == f"gazer: can't make {tmp_path}/file/below: Not a directory\n"


# --- what it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--prefix", "/opt/my gazer"],
        ["--prefix", "/opt/100%"],
        ["--prefix", "/opt/$HOME"],
        ["--prefix", "/opt/a;b"],
        ["--prefix", "/opt/a\nUser=root"],
        ["--prefix", "/opt/ä"],
        ["--log-dir", "relative"],
        ["--log-dir", '/var/log/"'],
        ["--user", "0"],
        ["--user", "a b"],
        ["--user", ""],
        ["--user", "x" * 33],
        ["-i", "a b"],
        ["-i", "a/b"],
        ["-i", ".."],
        ["-i", ""],
        ["-i", "x" * 16],
        ["-i", "eth0:1"],
        ["-i", "eth0", "-i", "eth0"],
        ["--folder"],
    ],
)
def test_what_cannot_stand_in_the_files_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    folder = tmp_path / "etc"
    assert cli.main(["init", str(folder), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gazer: ") and err.count("\n") == 1
    assert not folder.exists()


def test_a_folder_that_cannot_stand_in_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["init", str(tmp_path / "my sensor")]) == 2
    assert "can't stand in service files" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- what is next ---------------------------------------------------------------------------------


def test_it_says_what_is_still_to_do_on_this_machine(
    tmp_path: Path, prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--user", "gazer-x", "--log-dir", "/var/log/gazer-x", "--prefix", str(prefix)]
    assert cli.main(["init", str(tmp_path), *arguments]) == 0
    said = lines(capsys.readouterr().out)
    first = said.index("next, as root:")
    assert said[first + 1 : first + 5] == [
        "useradd --system --user-group --shell /usr/sbin/nologin gazer-x",
        "install -d -o gazer-x -g gazer-x -m 0750 /var/log/gazer-x",
        f"{prefix}/bin/gazer check -c {tmp_path}/sensor.yaml",
        f"systemctl enable --now {tmp_path}/gazer.service",
    ]
    assert not [line for line in said if "no command" in line]


def test_it_leaves_out_what_is_done(
    tmp_path: Path, prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    arguments = ["--user", ME, "--log-dir", str(logs), "--prefix", str(prefix)]
    assert cli.main(["init", str(tmp_path), *arguments]) == 0
    said = capsys.readouterr().out
    assert "useradd" not in said
    assert "install -d" not in said


def test_it_warns_of_what_will_not_work(
    tmp_path: Path, prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    arguments = ["--prefix", str(tmp_path / "nothing")]
    assert cli.main(["init", str(closed / "etc"), *arguments]) == 0
    said = capsys.readouterr().out
    assert f"note: there is no command {tmp_path}/nothing/bin/gazer on this machine" in said
    first = next(p for p in [*[*closed.parents][::-1], closed] if not p.stat().st_mode & 0o001)
    assert (
        f"note: the user gazer may not pass {first}, so can't reach {tmp_path}/nothing/bin/gazer\n"
        if first != closed else
        f"note: the user gazer may not pass {closed}, so can't reach {closed}/etc/sensor.yaml\n"
    ) in said


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody can reach; pytest's own belong to root alone."""
    path = Path(tempfile.mkdtemp(prefix="gazer-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def venv(folder: Path, interpreter: Path | str) -> Path:
    """What an environment looks like whose Python is elsewhere."""
    (folder / "venv" / "bin").mkdir(parents=True)
    (folder / "venv" / "bin" / "python").symlink_to(interpreter)
    (folder / "venv" / "bin" / "python3").symlink_to("python")
    command = folder / "venv" / "bin" / "gazer"
    command.write_text(f"#!{folder}/venv/bin/python3\n")
    command.chmod(0o755)
    return folder / "venv"


def test_an_interpreter_that_the_user_cannot_reach_is_told(
    open_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The environment is open to all, and its Python is a link to a home of root's."""
    home = open_folder / "home"
    (home / "versions" / "bin").mkdir(parents=True)
    (home / "versions" / "bin" / "python3.11").touch(mode=0o755)
    made = venv(open_folder, home / "versions" / "bin" / "python3.11")
    arguments = ["init", str(open_folder / "etc"), "--prefix", str(made)]
    assert cli.main(arguments) == 0
    assert "may not pass" not in capsys.readouterr().out
    home.chmod(0o700)
    assert cli.main([*arguments, "--force"]) == 0
    assert (
        f"note: the user gazer may not pass {home}, so can't reach {made}/bin/python3, a part of "
        "the program\n"
    ) in capsys.readouterr().out
    # One who owns it passes.
    assert init._may_pass(str(home), Identity(os.geteuid(), 1, (1,), "owner"))
    assert not init._may_pass(str(home), Identity(4711, 4711, (4711,), "other"))


@pytest.mark.parametrize(
    ("interpreter", "home"),
    [
        ("/root/.pyenv/versions/3.11.7/bin/python3", "read-only"),
        ("/home/x/bin/python3", "read-only"),
        ("/usr/bin/python3", "yes"),
    ],
)
def test_the_unit_lets_it_reach_its_interpreter(
    tmp_path: Path, interpreter: str, home: str
) -> None:
    """Also through links, and whether or not there is anything yet."""
    made = venv(tmp_path, interpreter)
    ways = init._ways(f"{made}/bin/gazer", "/etc/gazer/sensor.yaml", "/var/log/gazer")
    own = (*map(str, tmp_path.parents), str(tmp_path))      # which may be in a home as well
    others = tuple(way for way in ways if way not in own and not way.startswith(f"{tmp_path}/"))
    assert f"ProtectHome={home}\n" in systemd_unit(Site(ways=others))


def test_of_this_program_each_place_is_known() -> None:
    command = os.path.join(os.path.dirname(os.path.abspath(sys.executable)), "gazer")
    ways = init._ways(command, "/etc/gazer/sensor.yaml", "/var/log/gazer")
    packages = os.path.dirname(yaml.__file__)
    for path in (os.__file__, init.__file__, os.path.realpath(sys.executable), packages):
        assert os.path.dirname(os.path.realpath(path)) in ways


# --- what root opens ------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose folders these are")
def test_what_supervisord_writes_as_root_is_where_root_alone_writes(open_folder: Path) -> None:
    def file(log_dir: Path) -> str:
        assert cli.main(["init", str(open_folder / "etc"), "--force", "--log-dir", str(log_dir)]
                        ) == 0
        text = (open_folder / "etc" / "gazer.supervisord.conf").read_text()
        (found,) = re.findall(r"^stderr_logfile=(.*)$", text, re.M)
        return str(found)

    place = open_folder / "place"
    (place / "logs").mkdir(parents=True)
    os.chown(place / "logs", 4711, 4711)
    assert file(place / "logs") == f"{place}/gazer.err"
    for mode in (0o775, 0o757, 0o1777):
        place.chmod(mode)
        assert file(place / "logs") == "/var/log/gazer.err"
    place.chmod(0o755)
    os.chown(place, 4711, 0)        # theirs
    assert file(place / "logs") == "/var/log/gazer.err"
    os.chown(place, 0, 0)
    assert file(place / "logs" / "below") == "/var/log/gazer.err"
    assert file(place / "logs" / "none" / "below") == "/var/log/gazer.err"
    # A link in somebody's folder is followed now, and not once more by supervisord.
    (place / "logs" / "link").symlink_to(place)
    assert file(place / "logs" / "link" / "logs") == f"{place}/gazer.err"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose folders these are")
def test_files_that_others_can_change_are_told(
    open_folder: Path, prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["init", str(open_folder), "--prefix", str(prefix), "--force"]
    assert cli.main(arguments) == 0
    assert "not only root" not in capsys.readouterr().out
    os.chown(open_folder, 4711, 4711)
    assert cli.main(arguments) == 0
    assert f"note: not only root can change what stands in {open_folder}, " in (
        capsys.readouterr().out)
