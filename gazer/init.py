"""`gazer init`: lays a first configuration and the files to run it as a service into a folder.

    sensor.yaml               every key at its default, less where logs go, the interfaces, the user
    gazer.service             for systemd
    gazer.supervisord.conf    for supervisord
    gazer.logrotate           for logrotate

Nothing else is touched: no user is made, nothing is started.  What is still to do on this very
machine is printed, as commands.

No file is ever overwritten without --force: all names are looked at before the first is written,
and each is written beside its name and linked there, which fails where something stands by then.
So no file is ever there in part, not on a full disk either.
"""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import re
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from gazer.config import Config, Output
from gazer.config.kinds import printable
from gazer.errors import OutputError, UsageError
from gazer.privileges import Identity, program, resolve_user, searched
from gazer.units import FILES, Site

CONFIG_NAME = "sensor.yaml"
NAMES = (CONFIG_NAME, *FILES)

# As the kernel has them: at most 15 octets, no blank, no slash; a colon would be an alias.
_INTERFACE = re.compile(r"(?!\.\.?$)[!-9;-~]{1,15}", re.ASCII)

_LONGEST_LINE = 256     # of a script's first line: BINPRM_BUF_SIZE of linux/binfmts.h


def site_for(folder: str, *, prefix: str | None, log_dir: str, user: str) -> Site:
    """Where things will be; UsageError with a line for each that can't stand in the files."""
    command, log_dir = _command(prefix), os.path.normpath(log_dir)
    config = os.path.join(os.path.abspath(folder), CONFIG_NAME)
    site = Site(command, config, log_dir, user, ways=_ways(command, config, log_dir))
    beside = replace(site, error_dir=os.path.realpath(os.path.dirname(log_dir)))
    if _is_roots(beside.error_dir) and not [*beside.problems()]:
        site = beside
    found = list(site.problems())
    if found:
        raise UsageError("\n".join(found))
    return site


def first_config(site: Site, interfaces: Sequence[str]) -> Config:
    """The configuration to begin with."""
    for name in interfaces:
        if not _INTERFACE.fullmatch(name) or "/" in name:
            raise UsageError(
                f"--interface: {name!a} is not the name of an interface: those are of 1 to 15 "
                "characters of ASCII without blank, colon or slash"
            )
    default = Config()
    return replace(
        default,
        capture=replace(default.capture, interfaces=tuple(interfaces)),
        service=replace(
            default.service,
            user=site.user,
            quarantine=os.path.join(site.log_dir, "quarantine.pcap"),
        ),
        outputs=(Output(default.outputs[0].kind, os.path.join(site.log_dir, "dns.log")),),
    ).checked()


def lay(folder: str, site: Site, config: Config, *, force: bool) -> None:
    """Write the files; UsageError, and nothing written, where one of them is there already."""
    from gazer.docgen import sensor_yaml

    there = [name for name in NAMES if os.path.lexists(os.path.join(folder, name))]
    if there and not force:
        raise UsageError(
            f"{printable(folder)}: {', '.join(there)} {'is' if len(there) == 1 else 'are'} there "
            "already, and nothing has been written; --force overwrites"
        )
    texts = {CONFIG_NAME: sensor_yaml(config)} | {n: make(site) for n, make in FILES.items()}
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't make {printable(folder)}: {error.strerror}") from None
    for name, text in texts.items():
        path = os.path.join(folder, name)
        try:
            _write(path, text, force=force)
        except FileExistsError:
            raise UsageError(f"{printable(path)}: there already, and left alone") from None
        except OSError as error:
            raise OutputError(f"can't write {printable(path)}: {error.strerror}") from None


def _write(path: str, text: str, *, force: bool) -> None:
    """A new file of mode 0644, there as a whole or not at all."""
    fresh = f"{path}.{os.getpid()}.new"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            os.fchmod(fd, 0o644)    # whatever the umask: the service's user has to read it
            file.write(text)
            file.flush()
            os.fsync(fd)
        if force:
            os.replace(fresh, path)
        else:
            os.link(fresh, path)  # unlike a rename, it never takes the place of another
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)


def report(folder: str, site: Site, config: Config) -> Iterator[str]:
    """What was laid, what to look at, and the commands that come next."""
    folder = os.path.abspath(folder)
    yield f"{folder}: {', '.join(NAMES)}"
    if config.capture.interfaces == ("any",):
        yield (
            "note: it watches all interfaces (any); for a mirror port name that one, here with "
            f"--interface or in {CONFIG_NAME}; this machine has "
            f"{', '.join(_interfaces()) or 'none yet'}"
        )
    if not os.access(site.command, os.X_OK):
        yield f"note: there is no command {site.command} on this machine (--prefix says where)"
    yield from _closed_folders(site)
    for place in dict.fromkeys((folder, os.path.dirname(os.path.realpath(site.command)))):
        if os.path.isdir(place) and not _is_roots(os.path.realpath(place)):
            yield (
                f"note: not only root can change what stands in {place}, and a service manager of "
                "root's obeys it"
            )
    yield ""
    yield "next, as root:"
    try:
        pwd.getpwnam(site.user)
    except KeyError:
        yield f"    useradd --system --user-group --shell /usr/sbin/nologin {site.user}"
    if not os.path.isdir(site.log_dir):
        yield f"    install -d -o {site.user} -g {site.user} -m 0750 {site.log_dir}"
    yield f"    {site.command} check -c {site.config}"
    yield f"    systemctl enable --now {folder}/gazer.service"
    yield "or, under supervisord, in place of the last:"
    yield f"    ln -s {folder}/gazer.supervisord.conf /etc/supervisor/conf.d/"
    yield "    supervisorctl update"
    yield "and to rotate the logs:"
    yield f"    install -m 0644 {folder}/gazer.logrotate /etc/logrotate.d/gazer"


def _command(prefix: str | None) -> str:
    """The `gazer` of this installation, or of the one below `prefix`."""
    if prefix is not None:
        return os.path.join(os.path.abspath(prefix), "bin", "gazer")
    beside = os.path.join(os.path.dirname(os.path.abspath(sys.executable)), "gazer")
    return beside if os.access(beside, os.X_OK) else shutil.which("gazer") or beside


def _program(command: str) -> list[str]:
    """What that command is run with: its interpreter, and what this one imports from."""
    folder = os.path.dirname(os.path.realpath(command))
    if folder == os.path.realpath(os.path.dirname(os.path.abspath(sys.executable))):
        return [sys.executable, *program()]
    found = [path for name in ("python3", "python") if
             os.path.lexists(path := os.path.join(folder, name))][:1]
    if (named := _interpreter(command)) is not None:
        found.append(named)
    for path in [*found]:
        base = os.path.dirname(os.path.dirname(os.path.realpath(path)))
        found.append(os.path.join(base, "lib"))
    prefix = glob.escape(os.path.dirname(folder))
    return [*found, *glob.glob(f"{prefix}/lib*/python3*/site-packages")]


def _interpreter(command: str) -> str | None:
    """That a script names in its first line."""
    try:
        with open(command, "rb") as file:
            line = file.readline(_LONGEST_LINE)
    except OSError:
        return None
    words = os.fsdecode(line[2:]).split() if line.startswith(b"#!") else []
    return words[0] if words and words[0].startswith("/") else None


def _ways(command: str, config: str, log_dir: str) -> tuple[str, ...]:
    """Every folder that is passed on the way to these and to what the command is run with."""
    paths = (command, config, log_dir, *_program(command))
    return (*dict.fromkeys(folder for path in paths for folder in (
        *searched(path), os.path.realpath(path))),)


def _closed_folders(site: Site) -> Iterator[str]:
    """A line for each folder that the service's user may not pass, though it has to."""
    try:
        identity = resolve_user(site.user)
    except ValueError:          # not there yet: what everybody may is what it will
        identity = None
    told = set()
    for path in (site.command, site.config, *_program(site.command)):
        folder = next((f for f in searched(path) if not _may_pass(f, identity)), None)
        if folder is not None and folder not in told:
            told.add(folder)
            part = "" if path in (site.command, site.config) else ", a part of the program"
            yield f"note: the user {site.user} may not pass {folder}, so can't reach {path}{part}"


def _may_pass(folder: str, identity: Identity | None) -> bool:
    """By the folder's mode; `gazer check` asks the kernel as that user."""
    try:
        status = os.stat(folder)
    except OSError:
        return True     # not there: said already, or about to be made
    allowed = stat.S_IXOTH
    if identity is not None and status.st_uid == identity.uid:
        allowed = stat.S_IXUSR
    elif identity is not None and status.st_gid in (identity.gid, *identity.groups):
        allowed = stat.S_IXGRP
    return bool(status.st_mode & allowed)


def _is_roots(folder: str) -> bool:
    """Whether root alone decides what stands there; of a path without links.

    Each folder on the way is root's.  Others may write to none of them, or, above the last one, to
    one like /tmp, where they can't take away what is root's.
    """
    for place in (*searched(folder), folder):
        try:
            status = os.stat(place, follow_symlinks=False)
        except OSError:
            return False
        shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        kept = status.st_mode & stat.S_ISVTX and place != folder
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or (shared and not kept):
            return False
    return True


def _interfaces() -> list[str]:
    """This machine's, less the loopback."""
    try:
        return sorted(name for name in os.listdir("/sys/class/net") if name != "lo")
    except OSError:
        return []
