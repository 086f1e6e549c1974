"""Users and capabilities as the kernel shows them, each in a forked child."""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import re
import secrets
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from gazer import privileges, system
from gazer.errors import ProcessError
from gazer.privileges import (
    CAP_KILL,
    CAP_NET_RAW,
    CAP_SETGID,
    CAP_SETPCAP,
    CAP_SETUID,
    FOLDER,
    PID_FILE,
    SUPERVISOR,
    Identity,
    Place,
    as_user,
    become,
    can_become,
    check_paths,
    drop_all,
    limit_supervisor,
    resolve_user,
)
from gazer.segment import Segment
from tests.forked import forked

CAP_CHOWN, CAP_DAC_OVERRIDE = 0, 1
SOMEBODY = Identity(61234, 61235, (61235, 61236), "somebody")     # nobody has these numbers
LIBC = ctypes.CDLL(None, use_errno=True)

NEEDED = sum(1 << n for n in (*SUPERVISOR, CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_SETPCAP))
root = pytest.mark.skipif(
    os.geteuid() != 0 or system.capabilities()[0] & NEEDED != NEEDED,
    reason="needs root, with the capabilities to change users")


def mask(*numbers):
    return sum(1 << number for number in numbers)


def status():
    """What /proc/self/status says of this process's rights."""
    text = Path("/proc/self/status").read_text()
    found = dict(re.findall(r"^(\w+):[ \t]*(.*)$", text, re.M))
    return {
        "uid": [int(n) for n in found["Uid"].split()],
        "gid": [int(n) for n in found["Gid"].split()],
        "groups": sorted(int(n) for n in found["Groups"].split()),
        "caps": [int(found[f"Cap{name}"], 16) for name in ("Prm", "Eff", "Inh", "Amb")],
        "bounding": int(found["CapBnd"], 16),
        "no_new_privs": found["NoNewPrivs"],
        "dumpable": LIBC.prctl(3, 0, 0, 0, 0),
        "umask": found["Umask"],
    }


# --- names of users ------------------------------------------------------------------------------


def test_a_user_by_name_and_by_number():
    entry = pwd.getpwnam("nobody")
    by_name = resolve_user("nobody")
    assert (by_name.uid, by_name.gid, by_name.name) == (entry.pw_uid, entry.pw_gid, "nobody")
    assert by_name.gid in by_name.groups
    assert resolve_user(str(entry.pw_uid)) == by_name


def test_a_group_beside_the_user():
    daemon = resolve_user("nobody:daemon")
    assert (daemon.uid, daemon.gid) == (resolve_user("nobody").uid, 1)
    assert resolve_user("nobody:1") == daemon
    assert resolve_user("61234:61235") == Identity(61234, 61235, (61235,), "61234")


def test_supplementary_groups_are_the_user_s(monkeypatch):
    asked = []
    monkeypatch.setattr(privileges.os, "getgrouplist",
                        lambda name, gid: asked.append((name, gid)) or [7, gid, 5, 7])
    assert resolve_user("nobody:daemon").groups == (1, 5, 7)
    assert asked == [("nobody", 1)]


@pytest.mark.parametrize(("text", "says"), [
    ("", "expected a user"), (":", "expected a user"), ("nobody:", "expected a user"),
    (":daemon", "expected a user"), ("no-such-user", "there is no user no-such-user"),
    ("nobody:no-such-group", "there is no group no-such-group"),
    ("61234", 'name one as well, "61234:61234"'), ("root", "root is the user to get away from"),
    ("0", "root is the user"), ("0:0", "root is the user"), ("root:daemon", "root is the user"),
    ("-1", "there is no user"), ("-1:-1", "there is no user"), ("1 000:1", "there is no user"),
    ("٣:1", "there is no user"), ("a\0b", "there is no user"), ("a\nb", "there is no user"),
    ("4294967295:1", "at most 4294967294"), ("1:4294967295", "at most 4294967294"),
    ("4294967296:1", "at most"), ("9" * 5000 + ":1", "at most"), ("\udcff", "there is no user"),
    ("a:b:c", "there is no user a"), ("nobody:a:b", "there is no group a:b"),
])
def test_what_is_no_user_is_one_line(text, says):
    """4294967295 most of all: to setresuid(2) it means "leave it as it is"."""
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        resolve_user(text)
    assert str(caught.value).isprintable()


# --- becoming another user -----------------------------------------------------------------------


@root
def test_nothing_is_left_of_root():
    def work(say, fd):
        os.umask(0o022)
        become(SOMEBODY)
        say(status())
        for take_back in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]),
                          lambda: system.set_capabilities(1),
                          lambda: open("/etc/shadow").close(),
                          lambda: os.kill(os.getppid(), 0),
                          lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)):
            try:
                take_back()
                say("did it")
            except PermissionError:
                say("no")

    ended = forked(work)
    found = ended.said[0]
    assert found["uid"] == [SOMEBODY.uid] * 4 and found["gid"] == [SOMEBODY.gid] * 4
    assert found["groups"] == list(SOMEBODY.groups)
    assert found["caps"] == [0] * 4 and found["bounding"] == 0
    assert (found["no_new_privs"], found["dumpable"], found["umask"]) == ("1", 0, "0077")
    assert ended.said[1:] == ["no"] * 7


@root
def test_a_capture_process_keeps_what_it_needs_until_it_drops_it():
    def work(say, fd):
        become(SOMEBODY, keep=[CAP_NET_RAW])
        say(status())
        held = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        drop_all()
        say(status())
        held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)     # what is open stays so
        try:
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            say("did it")
        except PermissionError:
            say("no")

    keeps, dropped, tried = forked(work).said
    net_raw = mask(CAP_NET_RAW)
    assert keeps["caps"] == [net_raw, net_raw, 0, 0] and keeps["bounding"] == net_raw
    assert keeps["uid"] == dropped["uid"] == [SOMEBODY.uid] * 4
    assert dropped["caps"] == [0] * 4
    assert tried == "no"
    assert keeps["dumpable"] == dropped["dumpable"] == 0


@root
def test_what_is_kept_is_at_most_what_was_there():
    def work(say, fd):
        system.set_capabilities(mask(CAP_SETUID, CAP_SETGID))
        become(SOMEBODY, keep=[CAP_NET_RAW, CAP_KILL])
        say(status())

    assert forked(work).said[0]["caps"] == [0] * 4


@root
@pytest.mark.parametrize("keep", [[], [CAP_NET_RAW]])
def test_exec_gives_nothing_back(keep):
    """Neither a set-user-id program nor a file with capabilities; nor root's own exec."""
    for change, uid in ((lambda: become(SOMEBODY, keep=keep), SOMEBODY.uid),
                        (limit_supervisor, 0)):
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                change()
                os.dup2(theirs, 1)
                os.execv("/bin/grep", ["grep", "-E", "^(Uid|Cap(Prm|Eff|Inh|Amb))",
                                       "/proc/self/status"])
            finally:
                os._exit(99)
        os.close(theirs)
        with os.fdopen(ours) as file:
            text = file.read()
        assert os.waitpid(pid, 0)[1] == 0
        assert re.search(r"^Uid:\s+(\d+)", text)[1] == str(uid)
        assert re.findall(r"^Cap\w+:\s+(\w+)", text, re.M) == ["0" * 16] * 4


@root
def test_a_child_of_the_limited_supervisor_becomes_the_user():
    """The supervisor has no CAP_SETPCAP any more: what it takes must do without."""
    def work(say, fd):
        limit_supervisor()
        say(status())
        pid = os.fork()
        if pid == 0:
            try:
                become(SOMEBODY, keep=[CAP_NET_RAW])
                say(status())
                drop_all()
                say(status())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

    supervisor, capture, dropped = forked(work).said
    kept = mask(CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_NET_RAW)
    assert supervisor["caps"] == [kept, kept, 0, 0] and supervisor["bounding"] == kept
    assert supervisor["uid"] == [0] * 4
    assert (supervisor["no_new_privs"], supervisor["umask"]) == ("1", "0077")
    assert capture["caps"] == [mask(CAP_NET_RAW)] * 2 + [0, 0]
    assert capture["uid"] == [SOMEBODY.uid] * 4 and capture["groups"] == list(SOMEBODY.groups)
    assert dropped["caps"] == [0] * 4
    assert capture["no_new_privs"] == "1" and capture["dumpable"] == 0


@root
def test_the_limited_supervisor_can_do_its_work_and_no_more(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.write_text("x")
    os.chown(theirs, SOMEBODY.uid, SOMEBODY.gid)
    theirs.chmod(0o600)
    name = f"gazer-{secrets.token_hex(4)}-ledger"

    def work(say, fd):
        segment = Segment.create(name, 4096, owner=SOMEBODY)
        ours, into = os.pipe()
        limit_supervisor()
        pid = os.fork()
        if pid == 0:
            try:
                become(SOMEBODY, parent=os.getppid())
                segment.buf[0] = 7
                os.write(into, b"x")
                signal.pause()
            finally:
                os._exit(1)
        os.read(ours, 1)
        os.kill(pid, signal.SIGKILL)                # CAP_KILL
        say(os.waitpid(pid, 0)[1])
        say(segment.buf[0])
        segment.close()
        say(os.path.exists(f"/dev/shm/{name}"))
        for forbidden in (lambda: theirs.read_text(), lambda: os.chown(tmp_path, 1, 1),
                          lambda: os.sched_setaffinity(os.getppid(), {0}) or os.nice(-1)):
            try:
                forbidden()
                say("did it")
            except PermissionError:
                say("no")
        say(as_user(SOMEBODY, lambda: [str(os.geteuid())]))

    os.chmod(tmp_path, 0o755)
    assert forked(work).said == [signal.SIGKILL, 7, False, "no", "no", "no", [str(SOMEBODY.uid)]]


@root
def test_a_child_dies_with_its_supervisor_though_it_is_another_user():
    """The kernel forgets PR_SET_PDEATHSIG at a change of users, and asks the dead one's rights."""
    def work(say, fd):
        ours, into = os.pipe()
        supervisor = os.fork()
        if supervisor == 0:
            limit_supervisor()
            me = os.getpid()
            if os.fork() == 0:
                system.die_with_parent(me)
                become(SOMEBODY, keep=[CAP_NET_RAW], parent=me)
                drop_all()
                os.write(into, os.getpid().to_bytes(4, "little"))
            signal.pause()
        os.close(into)
        child = int.from_bytes(os.read(ours, 4), "little")
        os.kill(supervisor, signal.SIGKILL)
        # The child holds the other end of the pipe; its end is the pipe's.
        say(os.read(ours, 1).decode())
        os.waitpid(supervisor, 0)
        say(child > 1)

    assert forked(work, seconds=20).said == ["", True]


@root
def test_a_child_whose_supervisor_is_dead_already_dies():
    def work(say, fd):
        system.set_dumpable(False)
        become(SOMEBODY, parent=os.getppid() + 1)
        say("alive")

    ended = forked(work)
    assert (ended.signal, ended.said) == (signal.SIGKILL, [])


# --- as an ordinary user -------------------------------------------------------------------------


def ordinary():
    """In a child: an ordinary user, as far as we can be one."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(61300, 61300, 61300)
        os.setresuid(61300, 61300, 61300)


def test_an_ordinary_user_stays_who_he_is():
    def work(say, fd):
        ordinary()
        us = Identity(os.getuid(), os.getgid(), (os.getgid(), 4), "us")
        say([can_become(us), can_become(None), can_become(SOMEBODY)])
        for identity in (None, us):
            become(identity, keep=[CAP_NET_RAW], parent=os.getppid())
        limit_supervisor()
        drop_all()
        say(status())
        say(us.uid)

    may, found, uid = forked(work).said
    assert may == [True, True, False]
    assert found["uid"] == [uid] * 4
    assert found["caps"] == [0] * 4 and found["no_new_privs"] == "1" and found["dumpable"] == 0


def test_an_ordinary_user_can_t_become_another():
    def work(say, fd):
        ordinary()
        try:
            become(SOMEBODY)
        except ProcessError as error:
            say(str(error))
        say(os.getuid() != SOMEBODY.uid)

    assert forked(work).said == ["can't become user somebody: Operation not permitted", True]


def ambient(capability):
    """Permitted, effective, inheritable and ambient: as an exec by systemd leaves it."""
    words = (ctypes.c_uint32 * 6)(*[1 << capability] * 3)
    number = {"x86_64": 126, "aarch64": 91}[os.uname().machine]
    assert LIBC.syscall(number, (ctypes.c_uint32 * 2)(0x20080522, 0), words) == 0
    assert LIBC.prctl(47, 2, capability, 0, 0) == 0         # PR_CAP_AMBIENT_RAISE


@root
@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="number of capset")
def test_an_ordinary_user_with_ambient_net_raw():
    """As systemd starts it with User= and AmbientCapabilities=CAP_NET_RAW."""
    def work(say, fd):
        system.keep_capabilities(True)
        ordinary()
        ambient(CAP_NET_RAW)
        say(status())
        limit_supervisor()
        say(status())
        pid = os.fork()
        if pid == 0:
            try:
                become(None, keep=[CAP_NET_RAW], parent=os.getppid())
                socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
                say(status())
                drop_all()
                say(status())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        become(None)            # a worker
        say(status())

    said = forked(work).said
    net_raw = mask(CAP_NET_RAW)
    assert [found["caps"] for found in said] == [
        [net_raw] * 4, [net_raw, net_raw, 0, 0], [net_raw, net_raw, 0, 0], [0] * 4, [0] * 4]
    assert {found["uid"][0] for found in said} == {61300}
    assert [found["no_new_privs"] for found in said] == ["0", "1", "1", "1", "1"]


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
        ["user: only root, or somebody itself, can start as somebody"],
        ["p: /nowhere/x: there is no folder /nowhere", "q: /etc/x: may not be made in /etc"],
        ["p: /nowhere/x: there is no folder /nowhere",
         "q: /etc/x: may not be made in /etc by user us"],
    ]


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
    before = os.listdir("/proc/self/fd")
    for _ in range(20):
        as_user(None, list)
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
