"""What another user may write, as the kernel tells it to a process that is that user."""

from __future__ import annotations

import errno
import os
import secrets
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from gazer import privileges, system
from gazer.errors import ProcessError
from gazer.privileges import (
    FOLDER,
    PID_FILE,
    Identity,
    Place,
    as_user,
    check_paths,
    check_program,
    limit_supervisor,
    searched,
)
from tests.forked import forked
from tests.test_privileges import SOMEBODY, ordinary, root

# --- paths ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path_factory):
    """A folder that everybody can reach; pytest's own belong to root alone."""
    path = Path("/tmp") / f"gazer-test-{secrets.token_hex(4)}"
    path.mkdir()
    path.chmod(0o755)
    yield path
    subprocess.run(["rm", "-rf", str(path)], check=True)


def give(path, mode, identity=SOMEBODY):
    os.chown(path, identity.uid, identity.gid)
    os.chmod(path, mode)
    return path


@root
def test_paths_are_judged_as_the_user_s(folder):
    (folder / "own").mkdir()
    give(folder / "own", 0o700)
    (folder / "root").mkdir(mode=0o755)
    (folder / "closed").mkdir(mode=0o700)
    (folder / "closed" / "open").mkdir(mode=0o777)
    os.chmod(folder / "closed" / "open", 0o777)
    (folder / "root" / "log").touch()
    give(folder / "root" / "log", 0o600)
    (folder / "root" / "other").touch(mode=0o644)
    (folder / "own" / "group").touch()
    os.chown(folder / "own" / "group", 0, SOMEBODY.groups[1])
    os.chmod(folder / "own" / "group", 0o660)
    (folder / "own" / "link").symlink_to(folder / "root" / "new")
    (folder / "own" / "pidlink").symlink_to(folder / "own" / "x")
    os.mkfifo(folder / "own" / "fifo")
    before = sorted(str(p) for p in folder.rglob("*"))
    places = {
        "own/new": (None, "file"),
        "own/gone/new": ("there is no folder {}/own/gone", "file"),
        "root/new": ("may not be made in {}/root by user somebody", "file"),
        "root/log": (None, "file"),
        "root/other": ("may not be written by user somebody", "file"),
        "own/group": (None, "file"),                # by a supplementary group
        "own/link": ("may not be made in {}/root by user somebody", "file"),
        "closed/open/new": (
            "can't be reached by user somebody: no permission to search {}/closed", "file"),
        "own": ("is a folder, not a file", "file"),
        "root/log/new": ("Not a directory", "file"),
        "own/run.pid": (None, PID_FILE),
        "root/run.pid": ("may not be made in {}/root by user somebody", PID_FILE),
        "root/log ": ("may not be made in {}/root by user somebody", PID_FILE),
        "own/pidlink": ("is not a plain file", PID_FILE),
        "own/fifo": ("is not a plain file", PID_FILE),
        "own/spool": (None, FOLDER),
        "own/../own": (None, FOLDER),
        "root": ("files may not be made in it by user somebody", FOLDER),
        "root/log\0": (None, FOLDER),
        "root/other\n": ("may not be made in {}/root by user somebody", FOLDER),
    }
    del places["root/log\0"]        # no path: the configuration refuses it
    found = check_paths(SOMEBODY, [
        *(Place(f"p{i}", f"{folder}/{path}", kind) for i, (path, (_, kind)) in
          enumerate(places.items())), Place("dash", "-")])
    wanted = [f"p{i}: {folder}/{path.replace(chr(10), chr(92) + 'n')}: {why.format(folder)}"
              for i, (path, (why, _)) in enumerate(places.items()) if why]
    assert found == wanted
    assert sorted(str(p) for p in folder.rglob("*")) == before
    # Root itself, with all it has, would be told another story.
    assert os.access(folder / "root" / "other", os.W_OK)


@root
def test_root_without_its_capabilities_is_judged_so(folder):
    (folder / "theirs").touch()
    give(folder / "theirs", 0o600)
    assert check_paths(None, [Place("p", f"{folder}/theirs")]) == [
        f"p: {folder}/theirs: may not be written"]


@root
def test_access_lists_count(folder):
    """A POSIX access list, written as the kernel stores it: nothing but the kernel can judge it."""
    (folder / "log").touch(mode=0o600)

    def entry(tag, rights, who=0xFFFFFFFF):
        return tag.to_bytes(2, "little") + rights.to_bytes(2, "little") + who.to_bytes(4, "little")

    acl = (2).to_bytes(4, "little") + entry(1, 6) + entry(2, 6, SOMEBODY.uid) + entry(
        4, 0) + entry(16, 6) + entry(32, 0)
    try:
        os.setxattr(folder / "log", "system.posix_acl_access", acl)
    except OSError as error:
        assert error.errno in (errno.EOPNOTSUPP, errno.ENOTSUP)
        pytest.skip("no access lists on this file system")
    places = [Place("p", f"{folder}/log")]
    assert check_paths(SOMEBODY, places) == []
    assert check_paths(Identity(61237, 61237, (), "stranger"), places) == [
        f"p: {folder}/log: may not be written by user stranger"]


def test_another_user_s_paths_are_nothing_an_ordinary_user_can_judge():
    def work(say, fd):
        ordinary()
        say(check_paths(SOMEBODY, [Place("p", "/tmp/x")]))
        say(check_paths(None, [Place("p", "/nowhere/x"), Place("q", "/etc/x")]))
        us = Identity(os.getuid(), os.getgid(), (), "us")
        say(check_paths(us, [Place("p", "/nowhere/x"), Place("q", "/etc/x")]))

    assert forked(work).said == [
        ["service.user: only root, or somebody itself, can start as somebody"],
        ["p: /nowhere/x: there is no folder /nowhere", "q: /etc/x: may not be made in /etc"],
        ["p: /nowhere/x: there is no folder /nowhere",
         "q: /etc/x: may not be made in /etc by user us"],
    ]


@root
def test_a_program_in_a_folder_of_root_s_is_told_of(folder, monkeypatch):
    """Its modules are imported by children that are somebody else by then."""
    give(folder, 0o755)
    for name in ("ours.py", "os.py"):
        (folder / name).touch()
        (folder / name).chmod(0o644)
    places = privileges.program()
    assert {privileges.__file__, os.__file__, system.__file__} <= {*places}
    assert any(os.path.exists(f"{place}/yaml") for place in places)
    monkeypatch.setattr(privileges, "program", lambda: [f"{folder}/ours.py", f"{folder}/os.py"])
    assert check_program(SOMEBODY) == [] == check_program(None)
    folder.chmod(0o700)
    os.chown(folder, 0, 0)
    assert check_program(SOMEBODY) == [
        f"service.user: {folder}/ours.py, a part of the program, can't be reached by user "
        f"somebody: no permission to search {folder}"]
    folder.chmod(0o755)
    (folder / "os.py").chmod(0o600)
    assert check_program(SOMEBODY) == [
        f"service.user: {folder}/os.py, a part of the program, can't be read by user somebody"]


@root
def test_the_folder_that_is_closed_is_found_behind_links(folder):
    (folder / "closed" / "python").mkdir(parents=True)
    (folder / "closed" / "python" / "os.py").touch()
    (folder / "venv").symlink_to("closed/./python")
    (folder / "closed").chmod(0o700)
    assert check_paths(SOMEBODY, [Place("p", f"{folder}/venv/os.py")]) == [
        f"p: {folder}/venv/os.py: can't be reached by user somebody: no permission to search "
        f"{folder}/closed"]


def test_each_folder_on_a_way_is_searched(tmp_path):
    top = [*[str(p) for p in tmp_path.parents][::-1], str(tmp_path)]
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "up").symlink_to("a/b/..")
    (tmp_path / "far").symlink_to(tmp_path / "up")
    (tmp_path / "round").symlink_to("round")
    a = f"{tmp_path}/a"
    assert [*searched(f"{tmp_path}//a/./b")] == [*top, a]
    assert [*searched(f"{tmp_path}/up/x")] == [*top, str(tmp_path), a, a]
    assert [*searched(f"{tmp_path}/far/x")] == [*top, *top, str(tmp_path), a, a]
    assert [*searched(f"{tmp_path}/none/x/y")] == [*top, f"{tmp_path}/none", f"{tmp_path}/none/x"]
    assert len([*searched(f"{tmp_path}/round/x")]) < 100
    assert [*searched("/")] == []


# --- as that user --------------------------------------------------------------------------------


@root
def test_a_pid_file_in_the_user_s_folder_is_removed_as_the_user(folder):
    give(folder, 0o755)
    (folder / "run.pid").touch()

    def work(say, fd):
        limit_supervisor()
        path = folder / "run.pid"
        try:
            path.unlink()
        except PermissionError:
            say("no")
        say(as_user(SOMEBODY, lambda: path.unlink() or []))

    assert forked(work).said == ["no", []]
    assert not (folder / "run.pid").exists()


def test_what_goes_wrong_there_comes_back():
    def fails():
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(OSError, match="Read-only file system") as caught:
        as_user(None, fails)
    assert caught.value.errno == errno.EROFS
    for dies in (lambda: os._exit(0), lambda: os._exit(3), lambda: 1 // 0,
                 lambda: os.kill(os.getpid(), signal.SIGKILL)):
        with pytest.raises(ProcessError, match="the process that looks as user itself died"):
            as_user(None, dies)
    odd = ["a\nb", "\udcff", "x" * 200_000]
    assert as_user(None, lambda: odd) == odd


def test_no_child_and_no_descriptor_is_left():
    def held():     # others of this suite may have left a child
        return os.listdir("/proc/self/fd"), {c.pid for c in psutil.Process().children()}

    before = held()
    for _ in range(20):
        as_user(None, list)
    assert held() == before
