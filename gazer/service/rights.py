"""Whom the children of a service are, what that user has to be able to write, and what nobody else
should be able to read."""

from __future__ import annotations

import contextlib
import os
import stat

from gazer.config import Config, Output
from gazer.config.kinds import printable
from gazer.config.patterns import folder_and_file
from gazer.errors import GazerError, ProcessError
from gazer.privileges import (
    FOLDER,
    READ,
    Identity,
    Place,
    as_child,
    as_user,
    check_paths,
    check_program,
    resolve_user,
)

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def identity_of(config: Config) -> tuple[Identity | None, str]:
    """Whom service.user names (None: nobody in particular), and what is wrong with it, or ""."""
    if not config.service.user:
        return None, ""
    try:
        return resolve_user(config.service.user), ""
    except ValueError as error:
        return None, f"service.user: {error}"


def rights_problems(config: Config) -> list[str]:
    """What keeps that user from reading the program, or from writing what the service is to
    write, a line each; live only."""
    identity, problem = identity_of(config)
    if problem:
        return [problem]
    places = [place for i, o in enumerate(config.outputs) for place in _places(f"outputs[{i}]", o)]
    if config.service.quarantine:
        places.append(Place("service.quarantine", config.service.quarantine))
    try:
        found = [*check_program(identity), *check_paths(identity, places)]
        return found or tls_problems(config, lambda work: as_child(identity, work))
    except GazerError as error:
        return [f"service.user: {error}"]


def tls_problems(
    config: Config, ask: Callable[[Callable[[], list[str]]], list[str]] = lambda work: work(),
) -> list[str]:
    """What is wrong with the files that TLS reads, a line for each output.  They are read as a
    connection reads them, by whoever `ask` has do it."""
    outputs = [(i, o.forward.tls) for i, o in enumerate(config.outputs)
               if o.forward is not None and o.forward.tls.enable]
    if not outputs:
        return []
    from gazer.sinks.tls import TlsFileError, context  # here: it loads OpenSSL

    def read() -> list[str]:
        found = []
        for index, tls in outputs:
            try:
                context(tls)
            except TlsFileError as error:
                found.append(f"outputs[{index}].{error}")
        return found

    return ask(read)


def exposed_secrets(config: Config) -> Iterator[str]:
    """Files with a key or a password in them that everybody may read, a line each."""
    told = set()
    for index, output in enumerate(config.outputs):
        forward = output.forward
        if forward is None:
            continue
        files = [*forward.secrets]
        tls = forward.tls
        if tls.enable and tls.cert_file:
            name = "key_file" if tls.key_file else "cert_file"
            files.append((f"tls.{name}", getattr(tls, name)))
        for name, path in files:
            mode = _open_to_all(path)
            if mode and path not in told:
                told.add(path)
                yield (f"outputs[{index}].{name}: {printable(path)}: everybody may read it (mode "
                       f"{mode:04o})")


def _open_to_all(path: str) -> int:
    """The mode of a file that everybody may read; 0: it is not such a file."""
    path = os.path.realpath(path)
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) or not mode & stat.S_IROTH:
            return 0
        while (folder := os.path.dirname(path)) != path:
            path = folder
            if not os.stat(path).st_mode & stat.S_IXOTH:
                return 0
    except OSError:
        return 0
    return stat.S_IMODE(mode)


def _places(label: str, output: Output) -> list[Place]:
    """What an output needs of the file system: a file, and where others follow it their folder; or
    a spool, and what TLS reads."""
    forward = output.forward
    if forward is not None:
        spool, tls = forward.spool.path, forward.tls
        found = [Place(f"{label}.spool.path", spool, FOLDER)] if spool else []
        for name in ("ca_file", "cert_file", "key_file"):
            if path := getattr(tls, name):
                found.append(Place(f"{label}.tls.{name}", path, READ))
        return found
    folder, file = folder_and_file(output)
    label = f"{label}.path"
    if not folder or not os.path.isdir(folder):
        return [Place(label, file)]
    there = [Place(label, file)] if os.path.lexists(file) else []
    return [*there, Place(label, folder, FOLDER)]


def remover(identity: Identity | None) -> Callable[[str], None]:
    """Removes a pid file when the service ends: root is bound by the modes of folders by then, so
    one in a folder of the user's is removed as that user."""

    def remove(path: str) -> None:
        def removed() -> list[str]:
            os.unlink(path)
            return []

        try:
            os.unlink(path)
        except PermissionError:
            if identity is None:
                raise
            with contextlib.suppress(ProcessError):
                as_user(identity, removed)

    return remove
