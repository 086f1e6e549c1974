"""Who a process is, and what it may do: users, capabilities, and paths as another user sees them.

    identity = resolve_user("gazer")        # ValueError, in one line, of what the operator wrote
    check_paths(identity, [Place(...)])     # what that user can't write, line by line
    check_program(identity)                 # ... and whether it can't read the program itself
    Segment.create(..., owner=identity)     # while CAP_CHOWN is there
    limit_supervisor()                      # the supervisor, before its first child
    become(identity, parent=pid)            # a child, in its first lines
    become(identity, keep=[CAP_NET_RAW], parent=pid)    # a capture process, which then opens its
    drop_all()                              # ... handles, and calls this when they are active

The theory: the supervisor parses nothing that strangers send, and holds four capabilities: what it
takes to start, stop and restart children that are another user, and to hand a capture process the
right to open its socket.  Everything else is that other user, without any capability, and
no_new_privs keeps it so: no exec, whatever file it may be of, gives back what was dropped.

Rules
- The order in `become` is the only one that works.  The bounding set and the securebits need
  CAP_SETPCAP, and groups CAP_SETGID; both are gone once the user has changed.  Capabilities outlast
  that change only with PR_SET_KEEPCAPS, as permitted ones, and are made effective again after it.
- The kernel clears PR_SET_PDEATHSIG when a process changes its user, so `become` asks for it anew
  (`parent`).  It also asks the dying parent's rights: only with CAP_KILL does the end of a
  supervisor that is root kill children that are not.  Reducing capabilities clears nothing.
- A capability belongs to a thread, a user to all of them (in glibc): call these while there is one
  thread.
- What `become` can't do as an ordinary user is not needed there: its capabilities (an ambient
  CAP_NET_RAW) are dropped or kept all the same, the user stays.  To another user: ProcessError.
- `become(None)` keeps the user, also root.  Root without capabilities still owns root's files, so
  that is no sandbox; and it can't write where only CAP_DAC_OVERRIDE let it.

Children are not dumpable (PR_SET_DUMPABLE): no core file with what strangers asked for, and no
other process of the same user may trace them, so that one that was taken over does not get the
others.  Their /proc/PID belongs to root then, of which what all may read (stat, status, cmdline)
stays readable, and what only the owner may (fd, io, maps) is not, even to the same user; a process
may always use its own /proc/self/fd.  Shared memory is not concerned: it is opened by name.

What the supervisor can't do after `limit_supervisor`, though it is root:
- open, make or remove what root does not own or may not reach by the files' modes: it has no
  CAP_DAC_OVERRIDE.  A configuration that HUP reads again must be readable to root as to anybody
  else; a pid file in a folder of that user's is removed by `as_user`.
- give a file away (CAP_CHOWN): segments get their owner when they are made, before.  It can still
  remove them, as /dev/shm is root's own folder.
- pin or renice children (CAP_SYS_NICE): they pin themselves.  Read their /proc/PID/fd, io or maps
  (CAP_SYS_PTRACE): CPU time and memory stand in stat and statm, which all may read.
"""

from __future__ import annotations

import codecs
import grp
import json
import os
import pwd
import signal
import stat
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from gazer import system
from gazer.config.kinds import printable
from gazer.errors import ProcessError

# capabilities(7); the numbers are the kernel's, for ever.
CAP_KILL = 5
CAP_SETGID = 6
CAP_SETUID = 7
CAP_SETPCAP = 8
CAP_NET_RAW = 13

# What the supervisor keeps: to stop its children, to make them another user, and to let one of them
# open a capture socket.
SUPERVISOR = (CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_NET_RAW)

UMASK = 0o077       # what the service makes is nobody else's business

# The highest number stands for "leave it as it is" in setresuid(2) and chown(2).
_HIGHEST = 0xFFFFFFFE
_LINKS = 40         # that the kernel follows in one path: path_resolution(7)


@dataclass(frozen=True, slots=True)
class Identity:
    """A user as a process is one; `name` is for the operator."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str

    def is_ours(self) -> bool:
        """Whether this process is that user already: nothing of another one is left to return to.

        Supplementary groups don't count: an ordinary user can't change them.
        """
        return os.getresuid() == (self.uid,) * 3 and os.getresgid() == (self.gid,) * 3


def resolve_user(text: str) -> Identity:
    """ "gazer", "gazer:adm", "1000:1000" -> Identity; ValueError says in one line what is wrong.

    Without a group it is the user's own from the password file.  Supplementary groups are those of
    the group file, if the user is known by name.
    """
    user, colon, group = text.partition(":")
    if not user or (colon and not group):
        raise ValueError('expected a user, or a user and a group: "gazer", "gazer:gazer"')
    entry = _user(user)
    if entry is None:
        uid = _number(user, "user")
        if not colon:
            raise ValueError(f"user {user} has no entry in the password file, which would tell its "
                             f'group: name one as well, "{user}:{user}"')
        name, gid = user, -1
    else:
        uid, gid, name = entry.pw_uid, entry.pw_gid, entry.pw_name
    if colon:
        gid = _group(group)
    if uid == 0:
        raise ValueError("root is the user to get away from: name an ordinary one")
    groups = os.getgrouplist(name, gid) if entry is not None else [gid]
    return Identity(uid, gid, tuple(sorted(set(groups))), name)


def _user(text: str) -> pwd.struct_passwd | None:
    """By name, and a number without such a name by number; None for a number without entry."""
    try:
        return pwd.getpwnam(text)
    except (KeyError, ValueError, UnicodeError):
        pass
    try:
        return pwd.getpwuid(_number(text, "user"))
    except KeyError:
        return None


def _group(text: str) -> int:
    try:
        return grp.getgrnam(text).gr_gid
    except (KeyError, ValueError, UnicodeError):
        return _number(text, "group")


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"there is no {what} {printable(text)}")
    if len(text) > 10 or int(text) > _HIGHEST:
        raise ValueError(f"{text} is no number of a {what}: at most {_HIGHEST}")
    return int(text)


# --- becoming less -------------------------------------------------------------------------------


def become(
    identity: Identity | None,
    *,
    keep: Iterable[int] = (),
    parent: int | None = None,
    umask: int = UMASK,
) -> None:
    """In a forked child, before it does anything: this user, with these capabilities and no more.

    `keep`: those it still needs, as far as it has them; drop_all() ends that.  `parent`: whose
    death it dies with (system.die_with_parent).  ProcessError: it may not become that user.
    """
    os.umask(umask)
    kept = _mask(keep)
    _limit_what_may_come(kept)
    kept &= system.capabilities()[1]
    if identity is not None:
        _switch(identity, bool(kept))
    system.set_capabilities(kept)
    system.no_new_privileges()
    system.set_dumpable(False)
    if parent is not None:
        system.die_with_parent(parent)


def drop_all() -> None:
    """No capability is left, for good.  A capture process, once its handles are active."""
    system.set_capabilities(0)


def limit_supervisor(keep: Iterable[int] = SUPERVISOR, *, umask: int = UMASK) -> None:
    """The supervisor keeps these capabilities, as far as it has them, and never gets another one.

    As an ordinary user with an ambient CAP_NET_RAW it keeps that, to hand it on: children are
    forked, so what is permitted is inherited.
    """
    os.umask(umask)
    kept = _mask(keep)
    _limit_what_may_come(kept)
    system.set_capabilities(kept & system.capabilities()[1])
    system.no_new_privileges()


def can_become(identity: Identity | None) -> bool:
    """Whether this process is that user, or may become it."""
    needed = _mask((CAP_SETGID, CAP_SETUID))
    return (identity is None or identity.is_ours()
            or system.capabilities()[0] & needed == needed)


def least_port() -> int:
    """The lowest port that a process without capabilities may listen on."""
    try:
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", encoding="ascii") as file:
            return int(file.read())     # of IPv6 too
    except (OSError, ValueError):
        return 1024


def _limit_what_may_come(kept: int) -> None:
    """Nothing but these from an exec.  Where the bounding set is out of reach, no_new_privs does
    the same for files, and ambient capabilities are all that a user without them inherits."""
    system.clear_ambient()
    if system.capabilities()[0] >> CAP_SETPCAP & 1:
        system.limit_bounding_set(kept)
        system.lock_securebits()


def _switch(identity: Identity, keep: bool) -> None:
    """Be that user, for real: no saved id leads back.  Permitted capabilities stay if `keep`."""
    if identity.is_ours() and not system.capabilities()[0] >> CAP_SETGID & 1:
        return
    system.keep_capabilities(keep)
    try:
        os.setgroups(identity.groups)
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
    except OSError as error:
        raise ProcessError(
            f"can't become user {printable(identity.name)}: {error.strerror}"
        ) from None
    finally:
        system.keep_capabilities(False)


def _mask(capabilities: Iterable[int]) -> int:
    return sum(1 << number for number in set(capabilities))


# --- as that user --------------------------------------------------------------------------------


def as_user(identity: Identity | None, work: Callable[[], list[str]]) -> list[str]:
    """What `work` says when that user does it, in a child that becomes it and ends.

    The kernel itself is asked so: access lists, a group's rights and a network's file server all
    count as they will.  OSError of `work` comes back as one; ProcessError: the child could not
    become that user, or died.  For a process without threads; what `work` says is text.
    """
    codecs.lookup("unicode_escape")     # of `printable`: Python's own files may be closed to them
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _child(identity, work, theirs)
    os.close(theirs)
    with os.fdopen(ours, "rb") as file:
        data = file.read()
    _, status = os.waitpid(pid, 0)
    if status != 0 or not data:
        raise ProcessError(f"the process that looks as user {_name(identity)} died")
    kind, *said = json.loads(data)      # text alone: it comes from a process with other rights
    if kind == "os":
        raise OSError(int(said[0]), str(said[1]))
    if kind == "process":
        raise ProcessError(str(said[0]))
    return [str(line) for line in said]


def _child(identity: Identity | None, work: Callable[[], list[str]], fd: int) -> None:
    """Never returns: what stands above on the stack is the parent's."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        try:
            become(identity)
            said = ["ok", *work()]
        except OSError as error:
            said = ["os", str(error.errno or 0), error.strerror or str(error)]
        except ProcessError as error:
            said = ["process", str(error)]
        data = json.dumps(said).encode()
        while data:
            data = data[os.write(fd, data):]
        code = 0
    finally:
        os._exit(code)


def _name(identity: Identity | None) -> str:
    return "itself" if identity is None else printable(identity.name)


# --- paths ---------------------------------------------------------------------------------------

FILE = "file"           # made, or appended to
PID_FILE = "pid file"   # the same, and never a link
FOLDER = "folder"       # files are made and removed in it; it is made itself if it is not there,
                        # with the ones above it
READ = "read"           # a file that is only read


@dataclass(frozen=True, slots=True)
class Place:
    """A path that the service writes to or reads: where the configuration names it, what it is."""

    label: str
    path: str
    kind: str = FILE


def check_paths(identity: Identity | None, places: Iterable[Place]) -> list[str]:
    """What keeps that user from writing there, line by line: `outputs[0].path: /x/y: why`.

    Nothing is opened, made or changed.  It is asked as a child will be, without capabilities; None:
    as whoever this process is.
    """
    wanted = [place for place in places if place.path != "-"]
    if not can_become(identity):
        who = _name(identity)
        return [f"service.user: only root, or {who} itself, can start as {who}"]
    return as_child(identity, lambda: _problems(identity, wanted))


def as_child(identity: Identity | None, work: Callable[[], list[str]]) -> list[str]:
    """What `work` says with the rights that a child will have."""
    if not system.capabilities()[0] and (identity is None or identity.is_ours()):
        return work()       # as we are is what a child will be
    return as_user(identity, work)


def check_program(identity: Identity | None) -> list[str]:
    """What keeps that user from importing gazer's own modules, and Python's: an installation in
    a folder that only root may enter.  A child imports what its part needs when it is that user."""
    if identity is None or not can_become(identity):
        return []

    who = printable(identity.name)
    parts = program()       # looked for as we are: they may not even be seen by that user

    def closed() -> list[str]:
        for path in parts:
            if not _may(path, os.R_OK):
                folder = _closed(path)
                why = f"be reached by user {who}: no permission to search {printable(folder)}" if (
                    folder) else f"be read by user {who}"
                return [f"service.user: {printable(path)}, a part of the program, can't {why}"]
        return []

    return as_user(identity, closed)


def program() -> list[str]:
    """A file or folder from each place that this program is imported from: our own modules, plain
    and compiled; Python's, plain and compiled; other people's."""
    python = f"{sys.platlibdir}/python{sys.version_info[0]}.{sys.version_info[1]}/lib-dynload"
    places = [__file__, system.__file__, os.__file__, os.path.join(sys.base_exec_prefix, python),
              sysconfig.get_path("platlib")]
    return [path for path in places if os.path.exists(path)]


def _problems(identity: Identity | None, places: list[Place]) -> list[str]:
    who = "" if identity is None else f" by user {printable(identity.name)}"
    found = ((place, _problem(place, who)) for place in places)
    return [f"{place.label}: {printable(place.path)}: {why}" for place, why in found if why]


def _problem(place: Place, who: str) -> str | None:
    """As this process, why it can't be written; None: it can."""
    path = os.path.abspath(place.path)
    try:
        mode = os.stat(path, follow_symlinks=place.kind != PID_FILE).st_mode
    except FileNotFoundError:
        # Where it would be made.  A link to nothing is followed, as open(2) does.
        folder = os.path.dirname(path if place.kind == PID_FILE else os.path.realpath(path))
        if place.kind == READ:
            return "there is no such file"
        while place.kind == FOLDER and not os.path.lexists(folder):
            folder = os.path.dirname(folder)
        if not os.path.isdir(folder):
            return f"there is no folder {printable(folder)}"
        return None if _may(folder, os.W_OK | os.X_OK) else (
            f"may not be made in {printable(folder)}{who}")
    except PermissionError:
        folder = _closed(path) or os.path.dirname(path)
        return f"can't be reached{who}: no permission to search {printable(folder)}"
    except OSError as error:
        return error.strerror
    if place.kind == FOLDER:
        if not stat.S_ISDIR(mode):
            return "is not a folder"
        return None if _may(path, os.R_OK | os.W_OK | os.X_OK) else (
            f"files may not be made in it{who}")
    if stat.S_ISDIR(mode):
        return "is a folder, not a file"
    if place.kind == READ:
        return None if _may(path, os.R_OK) else f"may not be read{who}"
    if place.kind == PID_FILE and not stat.S_ISREG(mode):
        return "is not a plain file"
    return None if _may(path, os.W_OK) else f"may not be written{who}"


def _closed(path: str) -> str | None:
    """The first folder on the way that may not be searched."""
    return next((folder for folder in searched(path)
                 if os.path.isdir(folder) and not _may(folder, os.X_OK)), None)


def searched(path: str) -> Iterator[str]:
    """Each folder that the kernel searches on the way to this absolute path, links followed."""
    folder, links = "/", 0
    names = path.split("/")[::-1]
    while names:
        name = names.pop()
        if name in ("", "."):
            continue
        if name == "..":
            folder = os.path.dirname(folder)
            continue
        yield folder
        here = os.path.join(folder, name)
        try:
            target = os.readlink(here)
        except OSError:         # no link, or not there, or not to be seen
            folder = here
            continue
        links += 1
        if links > _LINKS:
            return
        if target.startswith("/"):
            folder = "/"
        names += target.split("/")[::-1]


def _may(path: str, how: int) -> bool:
    return os.access(path, how, effective_ids=True)
