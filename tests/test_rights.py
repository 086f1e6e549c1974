"""Whom the processes of a service are, as the kernel shows them; the processes are stubs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from gazer import privileges, system
from gazer.config import Config, Service, from_mapping
from gazer.privileges import CAP_NET_RAW, SUPERVISOR
from gazer.service.rights import rights_problems
from tests.conftest import GID, UID, eventually
from tests.service import CHILDREN, alive
from tests.service import Service as Stubs
from tests.test_privileges import NEEDED

root = pytest.mark.skipif(
    os.geteuid() != 0 or system.capabilities()[0] & NEEDED != NEEDED,
    reason="needs root, with the capabilities to change users")


@pytest.fixture
def folder():
    """One that anybody can reach and write to, as pytest's own is not."""
    made = Path(tempfile.mkdtemp(prefix="gazer-test-"))
    made.chmod(0o777)
    yield made
    shutil.rmtree(made)


def rights(pid):
    text = Path(f"/proc/{pid}/status").read_text()
    found = dict(re.findall(r"^(\w+):[ \t]*(.*)$", text, re.M))
    return {
        "ids": {*found["Uid"].split(), *found["Gid"].split()},
        "groups": found["Groups"].split(),
        "held": int(found["CapPrm"], 16) | int(found["CapEff"], 16) | int(found["CapInh"], 16)
        | int(found["CapAmb"], 16),
        "bounding": int(found["CapBnd"], 16),
        "no_new_privs": found["NoNewPrivs"],
        "filtered": found["Seccomp"],
    }


def mask(*numbers):
    return sum(1 << n for n in numbers)


@root
def test_children_are_the_user_and_the_supervisor_keeps_what_it_needs(gazer, folder):
    s = Stubs(gazer, folder, user=f"{UID}:{GID}")
    ours = rights(s.live.pid)
    assert ours["ids"] == {"0"} and ours["no_new_privs"] == "1"
    assert ours["held"] == ours["bounding"] == mask(*SUPERVISOR)

    def confined(name, pid):
        theirs = rights(pid)
        assert theirs["ids"] == {str(UID), str(GID)} and theirs["groups"] == [str(GID)]
        kept = mask(CAP_NET_RAW) if name == "capture" else 0    # until its handle is active
        assert theirs["held"] == kept
        # What an exec could give is bounded as the supervisor's is, and no_new_privs gives nothing.
        assert theirs["bounding"] == mask(*SUPERVISOR)
        assert theirs["no_new_privs"] == "1"

    for name, pid, *_ in s.starts():
        confined(name, pid)
    # It can still kill who hangs, start again who died, and end them all.
    os.kill(s.pids("worker0")[0], signal.SIGSTOP)
    confined("worker0", s.successor("worker0"))
    os.kill(s.pids("capture")[0], signal.SIGKILL)
    confined("capture", s.successor("capture"))
    code, _ = s.stop()
    assert code == 0


def test_nothing_is_left_to_be_imported_when_rights_are_gone(gazer, folder):
    s = Stubs(gazer, folder)
    assert "/psutil/" in Path(f"/proc/{s.live.pid}/maps").read_text()
    assert s.stop()[0] == 0


@root
@pytest.mark.parametrize("name", ["supervisor", *CHILDREN])
def test_kill_9_of_anyone_leaves_no_orphan(gazer, folder, name):
    """The kernel forgets whose death is theirs when a process changes its user."""
    s = Stubs(gazer, folder, user=f"{UID}:{GID}")
    if name != "supervisor":
        os.kill(s.pids(name)[0], signal.SIGKILL)
        s.successor(name)
    os.kill(s.live.pid, signal.SIGKILL)
    s.live.process.wait()

    def gone() -> bool:
        """all processes have ended"""
        return not any(alive(pid) for _, pid, *_ in s.starts())

    eventually(gone, 1.0)


@root
def test_a_pid_file_in_a_folder_of_the_user_s_is_removed(gazer, folder):
    """Root, which it is in by then, may no longer do that itself."""
    theirs = folder / "run"
    theirs.mkdir()
    os.chown(theirs, UID, GID)
    theirs.chmod(0o755)
    s = Stubs(gazer, folder, "-p", theirs / "pid", user=f"{UID}:{GID}")
    assert (theirs / "pid").read_text() == f"{s.live.pid}\n"
    assert s.stop()[0] == 0
    assert not (theirs / "pid").exists()


@root
def test_what_the_user_can_not_write_is_told_at_start(gazer, folder):
    (folder / "out").touch(0o600)
    s = Stubs(gazer, folder, user=f"{UID}:{GID}", quarantine="/root/q.pcap", wait=False)
    done = s.live.wait(20.0)
    assert done.code == 2
    first, second = done.said
    assert first == (f"gazer: outputs[0].path: {folder}/out: may not be written by user {UID}")
    assert second.startswith("gazer: service.quarantine: /root/q.pcap: ")
    assert s.starts() == []


@root
def test_a_program_that_the_user_can_not_read_is_told_at_start(folder, monkeypatch):
    """As one in a folder of root's; else each child would die of an import."""
    closed = folder / "closed"
    closed.mkdir(0o700)
    (closed / "ours.py").touch()
    monkeypatch.setattr(privileges, "__file__", str(closed / "ours.py"))
    assert rights_problems(Config(service=Service(user=f"{UID}:{GID}"))) == [
        f"service.user: {closed}/ours.py, a part of the program, can't be reached by user {UID}: "
        f"no permission to search {closed}"]


def test_a_user_that_is_not_there_is_one_line(gazer, tmp_path):
    done = Stubs(gazer, tmp_path, user="nobody-of-ours", wait=False).live.wait(20.0)
    assert (done.code, done.said) == (
        2, ["gazer: service.user: there is no user nobody-of-ours"])


def test_an_ordinary_user_can_not_become_another(gazer, folder, ordinary):
    s = Stubs(gazer, folder, user="61237:61237", wait=False, options=ordinary)
    done = s.live.wait(20.0)
    assert done.code == 2
    assert re.fullmatch(r"gazer: service\.user: only root, or 61237 itself, can .*", done.said[0])


def test_all_of_it_as_an_ordinary_user(gazer, folder, ordinary):
    """... which has no rights, and no right to give up rights either."""
    s = Stubs(gazer, folder, options=ordinary)
    for pid in (s.live.pid, *(pid for _, pid, *_ in s.starts())):
        found = rights(pid)
        assert found["ids"] == {str(UID), str(GID)}
        assert (found["held"], found["no_new_privs"]) == (0, "1")
    os.kill(s.pids("sink")[0], signal.SIGKILL)
    s.successor("sink")
    assert s.stop()[0] == 0


def test_rights_are_looked_at_in_one_place(tmp_path):
    missing = tmp_path / "missing" / "out"
    config = from_mapping({"outputs": [{"type": "text", "path": str(missing)}]})
    assert rights_problems(config) == [
        f"outputs[0].path: {missing}: there is no folder {missing.parent}"]
    assert rights_problems(Config(service=Service(user="0"))) == [
        "service.user: root is the user to get away from: name an ordinary one"]
    assert rights_problems(Config()) == []      # standard output
