"""The rules between keys: what one allows can still be wrong beside what another says."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from gazer.config import (
    LLMNR_PORT,
    MAX_CAPTURES,
    MAX_MESSAGE,
    MDNS_PORT,
    Config,
    Forward,
    Output,
    Rotation,
    keys_of,
)
from gazer.config.kinds import (
    KIB,
    MAX_PATH,
    MIB,
    SECOND,
    address_and_port,
    host_and_port,
    show_duration,
    show_size,
    shown,
)

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from gazer.config.patterns import Names

LEAST_FILE = 256 * KIB      # rotate.size: a block, which is not divided
MAX_ROTATED = 210           # octets: NAME_MAX is 255, and there may come .TIME.NUMBER.zst.part
MAX_NAME = 15       # octets of an interface's name: IFNAMSIZ of linux/if.h, less the NUL


def problems(config: Config) -> Iterator[tuple[str, str]]:
    """What is wrong, as (path of the key, what)."""
    yield from _capture_problems(config)
    yield from _limit_problems(config)
    yield from _metrics_problems(config)
    yield from _output_problems(config)
    yield from _forward_problems(config)
    yield from _rotation_problems(config)


def _capture_problems(config: Config) -> list[tuple[str, str]]:
    capture = config.capture
    found = []
    if capture.files.count("-") > 1:
        found.append(("capture.files", "standard input can be read only once"))
    if capture.interfaces and capture.files:
        found.append((
            "capture.interfaces",
            "files and interfaces can't be read in one run; empty one of the two lists",
        ))  # fmt: skip
    for index, name in enumerate(capture.interfaces):
        path = f"capture.interfaces[{index}]"
        # What a command line gives has been through no kind of value.
        octets = len(name.encode(errors="surrogateescape"))
        if octets > MAX_NAME:
            found.append((path, f"{shown(name)} can't be an interface's name: it has {octets} "
                                f"octets, and at most {MAX_NAME} are possible"))
        elif not name or not name.isprintable():
            why = "what does not print" if name else "nothing"
            found.append((path, f"{shown(name)} can't be an interface's name: it has {why} in it"))
        elif name in capture.interfaces[:index]:
            found.append((path, f"{name} is given twice"))
    captures = len(capture.interfaces) * capture.processes
    if captures > MAX_CAPTURES:
        found.append((
            "capture.processes",
            f"{captures} capture processes in all; at most {MAX_CAPTURES} are possible",
        ))  # fmt: skip
    seen: set[int] = set()
    for index, port in enumerate(capture.ports):
        if port in seen:
            found.append((f"capture.ports[{index}]", f"{port} is given twice"))
        seen.add(port)
    for name, on, port in (("mdns", capture.mdns, MDNS_PORT), ("llmnr", capture.llmnr, LLMNR_PORT)):
        if on and port in seen:
            found.append((
                "capture.ports",
                f"{port} is in the list and capture.{name} is on: which of the two is it to be?",
            ))  # fmt: skip
    for index, name in enumerate(config.tunnels.decode):
        if name in config.tunnels.decode[:index]:
            found.append((f"tunnels.decode[{index}]", f"{name} is given twice"))
    return found + _tunnel_port_problems(config)


def _tunnel_port_problems(config: Config) -> list[tuple[str, str]]:
    """Ports of tunnels that are taken for something else first: the key would do nothing."""
    capture, tunnels = config.capture, config.tunnels
    dns = {*capture.ports}
    dns |= {MDNS_PORT} if capture.mdns else set()
    dns |= {LLMNR_PORT} if capture.llmnr else set()
    taken = dict.fromkeys(dns, "DNS")
    found = []
    for kind, ports in (("vxlan", tunnels.vxlan_ports), ("geneve", tunnels.geneve_ports)):
        if kind not in tunnels.decode:
            continue
        for index, port in enumerate(ports):
            other = taken.setdefault(port, kind)
            if port in ports[:index]:
                found.append((f"tunnels.{kind}_ports[{index}]", f"{port} is given twice"))
            elif other != kind:
                found.append((
                    f"tunnels.{kind}_ports[{index}]",
                    f"{port} is a port of {other} too: which of the two is it to be?",
                ))  # fmt: skip
    return found


def _limit_problems(config: Config) -> list[tuple[str, str]]:
    found = []
    least = config.least_ring()
    if config.ring.size < least:
        forms = len(config.forms())
        found.append((
            "ring.size",
            f"{show_size(config.ring.size)} is too small: a quarter of it must hold the largest "
            f"frame (capture.snaplen is {show_size(config.capture.snaplen)}) and the largest "
            f"event (events.max_size is {show_size(config.events.max_size)}, in {forms} "
            f"{'form' if forms == 1 else 'forms'}); the smallest that does is {show_size(least)}",
        ))  # fmt: skip
    workers = config.worker_count()
    limits = config.transactions
    if limits.max_pending < workers:
        found.append((
            "transactions.max_pending",
            f"{limits.max_pending} is less than one for each of {workers} workers",
        ))  # fmt: skip
    if limits.max_pending_bytes < workers * MAX_MESSAGE:
        found.append((
            "transactions.max_pending_bytes",
            f"{show_size(limits.max_pending_bytes)} is too small: each of {workers} workers "
            f"needs room for the largest message, so at least {show_size(workers * MAX_MESSAGE)}",
        ))  # fmt: skip
    streams = config.streams
    if streams.max_streams < workers:
        found.append((
            "streams.max_streams",
            f"{streams.max_streams} is less than one for each of {workers} workers",
        ))  # fmt: skip
    if streams.max_transfers < workers:
        found.append((
            "streams.max_transfers",
            f"{streams.max_transfers} is less than one for each of {workers} workers",
        ))  # fmt: skip
    least = workers * max(2 * streams.max_bytes_each, MIB)
    if streams.max_bytes < least:
        found.append((
            "streams.max_bytes",
            f"{show_size(streams.max_bytes)} is too small: each of {workers} workers needs room "
            f"for one connection (streams.max_bytes_each is {show_size(streams.max_bytes_each)}) "
            f"and one zone transfer, so at least {show_size(least)}",
        ))  # fmt: skip
    if streams.timeout_ns < limits.timeout_ns:
        found.append((
            "streams.timeout",
            f"{show_duration(streams.timeout_ns)} is less than transactions.timeout "
            f"({show_duration(limits.timeout_ns)}): a zone transfer that pauses would be forgotten "
            "while it is still waited for",
        ))  # fmt: skip
    return found


def _metrics_problems(config: Config) -> Iterator[tuple[str, str]]:
    listen = config.metrics.listen
    if not listen:
        return
    try:
        address_and_port(listen)
    except ValueError as error:
        yield (
            "metrics.listen",
            f"{shown(listen, 64)} {error}; expected an address with a port, as 127.0.0.1:9853, "
            "[::1]:9853, or 0.0.0.0:9853 for all of this machine's",
        )


def _output_problems(config: Config) -> list[tuple[str, str]]:
    found = []
    if not config.outputs:
        found.append(("outputs", "at least one output is needed"))
    inputs = {_identity(path, "stdin") for path in config.capture.files if path != "-"}
    seen: dict[object, int] = {}
    for index, output in enumerate(config.outputs):
        path = f"outputs[{index}].path"
        if output.forward is not None:
            continue
        file = _identity(output.path, "stdout")
        if file is None:
            continue
        if file in seen:
            what = "standard output" if output.path == "-" else shown(output.path, MAX_PATH)
            found.append((path, f"{what} is the file of another output too"))
        elif file in inputs:
            found.append((path, f"{shown(output.path, MAX_PATH)} is an input file too"))
        seen.setdefault(file, index)
    return found


def _forward_problems(config: Config) -> Iterator[tuple[str, str]]:
    """Of fluentd outputs: keys that do nothing, or not what they seem to."""
    spools: dict[object, int] = {}
    for index, output in enumerate(config.outputs):
        forward = output.forward
        if forward is None:
            continue
        path = f"outputs[{index}]"
        addresses = [host_and_port(server.address) for server in forward.servers]
        for number, address in enumerate(addresses):
            if address in addresses[:number]:
                given = forward.servers[number].address
                yield f"{path}.servers[{number}]", f"{shown(given)} is given twice"
        if bool(forward.username) != bool(forward.password):
            given = "username" if forward.username else "password"
            yield f"{path}.{given}", "username and password go together"
        yield from _tls_problems(forward, f"{path}.tls")
        if forward.spool.path:
            folder = _identity(forward.spool.path, "")
            if folder in spools:
                yield f"{path}.spool.path", (
                    f"{shown(forward.spool.path, MAX_PATH)} is the spool of another output too")
            spools.setdefault(folder, index)


def _tls_problems(forward: Forward, path: str) -> Iterator[tuple[str, str]]:
    tls = forward.tls
    given = [name for name in ("ca_file", "cert_file", "key_file", "server_name")
             if getattr(tls, name)]  # fmt: skip
    if not tls.enable:
        for name in given:
            yield f"{path}.{name}", "does nothing while tls.enable is false"
        return
    if tls.key_file and not tls.cert_file:
        yield f"{path}.key_file", "a key needs its certificate: cert_file"
    if not tls.verify and tls.ca_file:
        yield f"{path}.ca_file", "does nothing while tls.verify is false"
    if any(server.address.startswith("unix:") for server in forward.servers):
        yield f"{path}.enable", "TLS is not spoken over a unix socket"


def _rotation_problems(config: Config) -> Iterator[tuple[str, str]]:
    """Of files that follow one another: what can't be, and who would take another's file."""
    from gazer.config.patterns import Names, claims, collide, turning

    apart: list[tuple[int, Output, object]] = []     # with the folder that each is in
    for index, output in enumerate(config.outputs):
        path = f"outputs[{index}].path"
        if output.forward is not None:
            continue
        if _identity(output.path, "stdout") in ("stdout", None) or output.path.endswith("/"):
            if output.rotation is not None:
                yield f"outputs[{index}].rotate", "that is no file which could be begun anew"
            continue
        try:
            names = Names(output.path)
        except ValueError as error:
            yield path, str(error)
            continue
        if len(os.fsencode(names.at(0))) > MAX_ROTATED and turning(output) is not None:
            yield path, f"the name has no room for what is added: at most {MAX_ROTATED} octets"
            continue
        if turning(output) is not None and not _is_plain(names):
            yield path, "only plain files can follow one another, and that is something else"
        yield from _rotate_key_problems(f"outputs[{index}].rotate", output)
        apart.append((index, output, _identity(names.folder, "")))
    for index, output, folder in apart:
        for before, other, its in apart:
            if before >= index or its != folder or None in (its, folder):
                continue
            if (turning(output) or turning(other)) and collide(other, output):
                yield (f"outputs[{index}].path",
                       f"files of {shown(other.path, MAX_PATH)} can have the same names")
    if not any(turning(output) for _, output, _ in apart):
        return
    others = {f"capture.files[{i}]": path for i, path in enumerate(config.capture.files)}
    others["service.quarantine"] = config.service.quarantine
    for label, path in others.items():
        place, name = os.path.split(path)
        for index, output, folder in apart:
            if name and path != "-" and claims(output, name) and (
                    _identity(place or ".", "") == folder):
                yield label, (f"{shown(path, MAX_PATH)} would be taken for a closed file of "
                              f"outputs[{index}]")


def _rotate_key_problems(path: str, output: Output) -> Iterator[tuple[str, str]]:
    from gazer.config.patterns import turning

    rotation = output.rotation
    if rotation is None:
        return
    if 0 < rotation.size < LEAST_FILE:
        yield f"{path}.size", f"{show_size(rotation.size)} is less than what is written at once; " \
            f"at least {show_size(LEAST_FILE)}"
    if rotation.interval_ns % SECOND:
        yield f"{path}.interval", f"{show_duration(rotation.interval_ns)} is no whole second"
    if 0 < rotation.keep_bytes < rotation.size:
        yield f"{path}.keep_bytes", (
            f"{show_size(rotation.keep_bytes)} is less than one file ({path}.size is "
            f"{show_size(rotation.size)}): none would be kept")
    if rotation.compress == "zstd" and not _has_zstd():
        yield f"{path}.compress", "zstd needs the Python package zstandard, which is not there"
    if turning(output) is None:
        for name in ("compress", "keep_age", "keep_bytes"):
            attribute, _ = keys_of(Rotation)[name]
            if getattr(rotation, attribute) != getattr(Rotation(), attribute):
                yield f"{path}.{name}", (
                    "no file of this output is ever closed: it goes with size, interval or "
                    "conversions in the path")


def _is_plain(names: Names) -> bool:
    """What has the path's own name now, if anything has."""
    try:
        return names.timed or stat.S_ISREG(os.lstat(names.path).st_mode)
    except OSError:
        return True


def _has_zstd() -> bool:
    from importlib.util import find_spec

    return find_spec("zstandard") is not None


def _identity(path: str, dash: str) -> object:
    """Equal for two paths of the same file, links included; None for a sink without a bottom."""
    if path == "-" or path in (f"/dev/{dash}", "/dev/fd/1" if dash == "stdout" else "/dev/fd/0"):
        return dash
    real = os.path.realpath(path)
    if real == "/dev/null":
        return None
    try:
        status = os.stat(real)
    except OSError:
        return real
    return (status.st_dev, status.st_ino)
