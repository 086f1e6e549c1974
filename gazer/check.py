"""`gazer check`: what would run, and whether what it needs from the machine is there.

Looks and touches nothing: no file is made or emptied, none opened but a pid file (for its lock), no
interface listened to. So it can say what would fail now, but not promise that nothing fails later.
(libpcap looks up host names that capture.filter has.)
"""

from __future__ import annotations

import os
import stat
import textwrap
from collections.abc import Iterator

from gazer.capture.bpf import COOKED, ETHERNET, kernel_filter
from gazer.capture.interfaces import ANY, interface_state, may_capture
from gazer.config import LLMNR_PORT, MDNS_PORT, Capture, Config, Output, OutputKind, Tunnels
from gazer.config.kinds import address_and_port, printable, show_duration, show_size
from gazer.config.patterns import folder_and_file, turning
from gazer.pidfile import PidFile
from gazer.privileges import least_port
from gazer.service.cpus import cpu_problems
from gazer.service.rights import exposed_secrets, rights_problems, tls_problems

SHARED_MEMORY = "/dev/shm"
WIDTH = 100         # columns of a filter, which has hundreds of words


def outline(config: Config) -> Iterator[str]:
    """What would run, line by line."""
    workers = config.worker_count()
    how = "" if config.workers else " (auto)"
    limits = config.transactions
    events = config.events
    capture = config.capture
    ports = ", ".join(map(str, capture.ports))
    ports += f"; mDNS on {MDNS_PORT}" if capture.mdns else ""
    ports += f"; LLMNR on {LLMNR_PORT}" if capture.llmnr else ""
    fragments = config.fragments
    streams = config.streams
    files = [_named(path, "standard input") for path in capture.files]
    watched = [f"{name}: {interface_state(name)}" for name in capture.interfaces]
    captures = max(1, len(capture.interfaces) * capture.processes)

    yield f"sensor        {config.sensor.id}"
    for label, line in _column("interface" if watched else "input", watched or files or [
        "none: give interfaces with -i or capture files with -r"
    ]):  # fmt: skip
        yield f"{label:<13} {line}"
    if watched:
        yield f"capture       {_capture(capture)}"
    if capture.filter:
        yield from _wrapped("filter", capture.filter)
    yield f"dns           ports {ports}; frames up to {show_size(capture.snaplen)}"
    yield f"tunnels       {_tunnels(config.tunnels)}"
    yield (
        f"fragments     at most {_count(fragments.max_datagrams, 'datagram')} waiting in "
        f"{show_size(fragments.max_bytes)}, for {show_duration(fragments.timeout_ns)}"
    )
    yield (
        f"streams       at most {streams.max_streams} connections, "
        f"{show_size(streams.max_bytes_each)} kept of each and {show_size(streams.max_bytes)} "
        f"of all; forgotten after {show_duration(streams.timeout_ns)}"
    )
    yield f"transfers     at most {_count(streams.max_transfers, 'zone transfer')} at once"
    metrics = ", metrics" if watched and config.metrics.listen else ""
    yield (
        f"processes     {captures + workers + 2 + bool(metrics)}: supervisor, "
        f"{'capture' if captures == 1 else f'{captures} capture'}, "
        f"{_count(workers, 'worker')}{how}, sink{metrics}"
    )
    yield (
        f"rings         {_count(captures * workers, 'frame ring')} and "
        f"{_count(workers, 'event ring')} of {show_size(config.ring.size)} each"
    )
    yield f"shared memory {_human(ring_bytes(config))}, and a few pages for headers and counters"
    yield (
        f"matching      timeout {show_duration(limits.timeout_ns)}, "
        f"duplicates within {show_duration(limits.duplicate_window_ns)}, at most "
        f"{limits.max_pending} queries waiting in {show_size(limits.max_pending_bytes)}"
    )
    yield (
        f"events        {events.detail.name.lower()} detail, "
        f"{'transactions and records' if events.records else 'transactions'}, "
        f"up to {show_size(events.max_size)} each"
    )
    outputs = [_output(output) for output in config.outputs]
    for label, line in _column("output", outputs):
        yield f"{label:<13} {line}"
    if metrics:
        yield f"metrics       {_metrics(config.metrics.listen)}"
    for line in exposed_secrets(config):
        yield f"warning       {line}"
    if not files:       # last, as it has more lines than all else
        linktype = COOKED[0] if capture.interfaces == (ANY,) else ETHERNET
        yield from _wrapped("kernel filter", kernel_filter(capture, config.tunnels, linktype))


def ring_bytes(config: Config) -> int:
    """The shared memory of all rings together, without their headers."""
    return (1 + max(1, len(config.capture.interfaces) * config.capture.processes)) * (
        config.worker_count() * config.ring.size
    )


def obstacles(config: Config, pid_file: str | None = None) -> Iterator[str]:
    """What would keep it from running here and now, line by line."""
    if pid_file is not None:        # made by whoever starts it
        if why := _unwritable(pid_file):
            yield f"pid file {printable(pid_file)}: {why}"
        elif why := PidFile(pid_file).refusal():
            yield why
    if config.capture.filter:
        from gazer.capture.filter import filter_problem  # here: it loads libpcap

        problem = filter_problem(config.capture.filter)
        if problem:
            yield problem
    if config.capture.interfaces and not may_capture():
        yield (
            "capture.interfaces: whoever runs this may not capture: run it as root, or with "
            "CAP_NET_RAW (in a systemd unit: AmbientCapabilities=CAP_NET_RAW)"
        )
    for index, path in enumerate(config.capture.files):
        why = None if path == "-" else _unreadable(path)
        if why:
            yield f"capture.files[{index}]: {printable(path)}: {why}"
    if config.capture.interfaces:
        yield from rights_problems(config)      # as the user that the sink will be
    else:
        yield from tls_problems(config)
    for index, output in enumerate(() if config.capture.interfaces else config.outputs):
        if output.forward is not None:
            continue
        folder, file = folder_and_file(output)
        why = None if file == "-" else _unwritable(file)
        if why is None and folder and not os.access(folder, os.R_OK | os.W_OK | os.X_OK,
                                                    effective_ids=True):
            file, why = folder, "files may not be made in it"
        if why:
            yield f"outputs[{index}].path: {printable(file)}: {why}"
    yield from cpu_problems(config)
    free = _free_shared_memory()
    if free is not None and free < ring_bytes(config):
        yield (
            f"ring.size: the rings need {_human(ring_bytes(config))} of shared memory and "
            f"{SHARED_MEMORY} has {_human(free)} left: make it larger, or take fewer workers or "
            "smaller rings"
        )


_FORMS = {
    OutputKind.TEXT: "text",
    OutputKind.JSON: "text as JSON lines",
    OutputKind.MSGPACK: "msgpack",
    OutputKind.MSGPACK_EVENT_TIME: "msgpack with EventTime",
}


def _output(output: Output) -> str:
    forward = output.forward
    if forward is None:
        return f"{_FORMS[output.kind]} to {printable(output.name)}{_rotation(output)}"
    servers = [
        server.address + (" (standby)" if server.standby else "") for server in forward.servers
    ]
    how = [
        "EventTime" if forward.event_time else "whole seconds",
        *([forward.compress] if forward.compress else []),
        *(["TLS" if forward.tls.verify else "TLS, NOT VERIFIED"] if forward.tls.enable else []),
        *(["shared key"] if forward.shared_key else ["EMPTY shared key"] if forward.username
          else []),
        *([f"user {forward.username}"] if forward.username else []),
        *([f"given up after {show_duration(forward.expire_ns)}"] if forward.expire_ns else []),
    ]
    waits = f"at most {show_size(forward.queue)} waits in memory"
    if forward.spool.path:
        waits += (
            f", live {show_size(forward.spool.max_bytes)} in {printable(forward.spool.path)}, "
            f"where the {forward.spool.drop} is dropped"
        )
    return f"fluentd at {', '.join(servers)}: {', '.join(how)}; {waits}"


def _capture(capture: Capture) -> str:
    """How interfaces are watched."""
    text = f"kernel buffer {show_size(capture.buffer)}"
    if capture.processes > 1:
        text += (
            f" for each of {capture.processes} processes on each interface, which share the "
            "frames by their outer addresses (fanout)"
        )
    mode = "promiscuous" if capture.promiscuous else "not promiscuous"
    return f"{text}; {mode}" + (" (any never is)" if ANY in capture.interfaces else "")


def _metrics(listen: str) -> str:
    """Where they are served."""
    _, port = address_and_port(listen)
    least = least_port()
    if port >= least:
        return listen
    return (
        f"not on {listen}: ports below {least} take a right that its process does not have "
        "(net.ipv4.ip_unprivileged_port_start); the run goes on without"
    )


def _tunnels(tunnels: Tunnels) -> str:
    """Which encapsulations are opened."""
    if not tunnels.decode:
        return "none is opened; VLAN tags are read"
    ports = {"vxlan": tunnels.vxlan_ports, "geneve": tunnels.geneve_ports}
    names = [
        f"{name} (UDP {', '.join(map(str, ports[name])) or 'no port'})" if name in ports else name
        for name in tunnels.decode
    ]
    return f"{', '.join(names)}; {_count(tunnels.max_depth, 'level')} at most"


def _rotation(output: Output) -> str:
    """How its files follow one another."""
    rotation = turning(output)
    if rotation is None:
        return ""
    when = []
    if rotation.interval_ns:
        when.append(f"each {show_duration(rotation.interval_ns)} (UTC)")
    elif "%" in output.path:
        when.append("with each new name (UTC)")
    if rotation.size:
        when.append(f"at {show_size(rotation.size)}")
    kept = []
    if rotation.keep_age_ns:
        kept.append(f"for {show_duration(rotation.keep_age_ns)}")
    if rotation.keep_bytes:
        kept.append(f"within {show_size(rotation.keep_bytes)}")
    how = f", {rotation.compress} when closed" if rotation.compress != "none" else ""
    return f": a new file {' or '.join(when)}{how}, kept {' and '.join(kept) or 'for ever'}"


def _unreadable(path: str) -> str | None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return error.strerror
    if stat.S_ISDIR(mode):
        return "is a folder, not a capture file"
    return None if os.access(path, os.R_OK, effective_ids=True) else "may not be read"


def _unwritable(path: str) -> str | None:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        folder = os.path.dirname(os.path.realpath(path))
        if not os.path.isdir(folder):
            return f"there is no folder {printable(folder)}"
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            return f"may not be made in {printable(folder)}"
        return None
    except OSError as error:
        return error.strerror
    if stat.S_ISDIR(mode):
        return "is a folder, not a file"
    return None if os.access(path, os.W_OK, effective_ids=True) else "may not be written"


def _free_shared_memory() -> int | None:
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def _human(size: int) -> str:
    """A size for reading: to a tenth of the largest unit that it fills."""
    value = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.1f}".removesuffix(".0") + f" {unit}"
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + " TiB"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _named(path: str, dash: str) -> str:
    return dash if path == "-" else printable(path)


def _wrapped(label: str, text: str) -> Iterator[str]:
    """Within WIDTH columns, as far as words go."""
    lines = textwrap.wrap(text, WIDTH - 14, break_long_words=False, break_on_hyphens=False)
    for index, line in enumerate(lines):
        yield f"{'' if index else label:<13} {line}"


def _column(label: str, lines: list[str]) -> Iterator[tuple[str, str]]:
    """Each line with the label before the first, and how many more there are after ten."""
    for index, line in enumerate(lines[:10]):
        yield (label if index == 0 else "", line)
    if len(lines) > 10:
        yield ("", f"and {len(lines) - 10} more")
