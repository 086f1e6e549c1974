"""The capture process: capture files, or one interface, into the rings of the workers.

Live there may be several, also of one interface; what a line says of that is said by the first of
them.  An interface that is not there or not up is waited for, and so is one that goes: then this
process ends with EXIT_INTERFACE, since it has given up the right to open another socket, and a
fresh one waits.  While it waits the sensor clock goes on, since workers merge by it.
"""

from __future__ import annotations

import sys
import time
import zlib

from gazer.capture.bpf import kernel_filter
from gazer.capture.dispatch import Dispatcher
from gazer.capture.files import open_source
from gazer.capture.filter import Filter
from gazer.capture.fragments import Fragments
from gazer.child import EXIT_INTERFACE, FAULT, NOTICE, READY, Boot, Child, run
from gazer.config.kinds import printable
from gazer.counters import CAPTURE
from gazer.errors import InputError, InterfaceAbsent
from gazer.privileges import drop_all
from gazer.topology import Topology

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from gazer.capture.live import LiveSource

# Mirrors show a piece's copy within milliseconds; a host has to send 65,536 datagrams to use an id
# again.
COPIES = 1_000_000_000  # ns
NAP = 0.1               # s, while the interface is waited for: the clock's step
TRY_EVERY = 3           # naps
STATS_EVERY = 0.1       # s, between two looks at the kernel's counters


def main(boot: Boot) -> None:
    """What the supervisor starts."""
    ends: list[bool] = []
    run(boot, lambda child: ends.append(capture(child)))
    if not all(ends):
        sys.exit(EXIT_INTERFACE)


def capture(child: Child) -> bool:
    """Read all there is.  False if there would be more, but a fresh process has to get it."""
    boot = child.boot
    config = boot.config
    topology = Topology.of(config)
    index = boot.part.index
    live = bool(boot.part.interface)
    # A live capture has it in the kernel.
    filter = Filter(config.capture.filter) if config.capture.filter and not live else None
    dispatcher = Dispatcher(
        rings=[child.ring(topology.frames(index, i)) for i in range(topology.workers)],
        bells=[boot.bells[topology.worker(i)] for i in range(topology.workers)],
        bell=boot.bell,
        slot=child.slot,
        seed=boot.seed,
        live=live,
        capture=index,
        ports=config.capture.ports,
        mdns=config.capture.mdns,
        llmnr=config.capture.llmnr,
        decode=config.tunnels.decode,
        max_depth=config.tunnels.max_depth,
        vxlan_ports=config.tunnels.vxlan_ports,
        geneve_ports=config.tunnels.geneve_ports,
        filter=filter,
        fragments=Fragments(
            max_datagrams=config.fragments.max_datagrams,
            max_bytes=config.fragments.max_bytes,
            timeout=config.fragments.timeout_ns,
            seed=boot.seed,
            snaplen=config.capture.snaplen,
            copies=COPIES,
        ),
    )
    ended = watch(child, dispatcher) if live else read_files(child, dispatcher, filter)
    if ended:
        dispatcher.end()
    dispatcher.release()
    return ended


# --- files ---


def read_files(child: Child, dispatcher: Dispatcher, filter: Filter | None) -> bool:
    """Read all files, in the order given, as one stream of time.

    A file that can't be read, or breaks off, is reported; what came before is processed and the
    files behind it are read all the same.
    """
    child.report(READY)
    files = child.boot.config.capture.files
    unread = [printable(path) for path in files]
    while unread and not child.slot.draining:
        try:
            if not read_file(child, dispatcher, filter, files[-len(unread)]):
                break
        except InputError as error:
            if child.slot.draining:     # it may have had no time to begin
                break
            child.report(FAULT, str(error))
        del unread[0]
    if unread:
        more = f", nor {len(unread) - 1} more" if len(unread) > 1 else ""
        name = "standard input" if unread[0] == "-" else unread[0]
        child.report(FAULT, f"interrupted: {name} was not read to its end{more}")
    return True


def read_file(child: Child, dispatcher: Dispatcher, filter: Filter | None, path: str) -> bool:
    """Read one file.  True at its end, False if the supervisor wanted an end before."""
    source = open_source(
        path,
        snaplen=child.boot.config.capture.snaplen,
        stdin_fd=child.boot.stdin,
        stopped=lambda: child.slot.draining,
    )
    taken = 0
    try:
        while not child.slot.draining:
            state = dispatcher.run(source)
            before, taken = taken, source.taken     # of a compressed file it moves meanwhile
            child.slot.add(CAPTURE["input_bytes"], taken - before)
            for line in filter.complaints() if filter else ():
                child.report(NOTICE, line)
            if state == "end":
                return True
            if state == "broken":
                raise InputError(source.error)
        return False
    finally:
        source.close()


# --- an interface ---


def watch(child: Child, dispatcher: Dispatcher) -> bool:
    """Capture from the interface until the supervisor wants an end: True.  False: it has gone."""
    from gazer.capture.live import LiveSource  # here: runs over files need nothing of it

    boot = child.boot
    config = boot.config
    source = LiveSource(
        boot.part.interface,
        snaplen=config.capture.snaplen,
        buffer_bytes=config.capture.buffer,
        promiscuous=config.capture.promiscuous,
        filter_of=lambda linktype: kernel_filter(config.capture, config.tunnels, linktype),
        fanout=fanout(boot),
        wake=boot.bell,
    )
    try:
        if not await_interface(child, dispatcher, source):
            return True
        return follow(child, dispatcher, source)
    finally:
        source.close()


def leads(boot: Boot) -> bool:
    """Whether this process is the first of its interface's."""
    return boot.part.index % boot.config.capture.processes == 0


def fanout(boot: Boot) -> tuple[int, int] | None:
    """Which group the sockets of this interface form, and the secret of how they share frames.

    The group's id has 16 bits, must be the same for all processes of the interface and their
    successors, and not that of another interface.  Two sensors that watch one interface have the
    same one with a chance of 1 in 65,536; then each would miss what the other gets.
    """
    processes = boot.config.capture.processes
    if processes == 1:
        return None
    group = (zlib.crc32(boot.seed.to_bytes(8, "little")) + boot.part.index // processes) & 0xFFFF
    return group, boot.seed >> 32


def await_interface(child: Child, dispatcher: Dispatcher, source: LiveSource) -> bool:
    """Open it, as soon as it is there; from then on this process has no rights any more, whoever
    is told that it captures.  False if the supervisor wanted an end before."""
    name = printable(child.boot.part.interface)
    ready = False
    while not child.slot.draining:
        try:
            source.open()
        except InterfaceAbsent as error:
            if not dispatcher.absent:
                say_absent(child, dispatcher, str(error))
            if not ready:       # the service runs, whether or not there is something to see
                ready = True
                child.report(READY)
            for _ in range(TRY_EVERY):
                if not child.slot.draining:
                    time.sleep(NAP)
                    dispatcher.idle()
            continue
        drop_all()      # the handle is active: nothing that follows needs a privilege
        if leads(child.boot):
            if dispatcher.absent:
                child.report(NOTICE, f"{name} is there: capturing")
            if source.warning:
                child.report(NOTICE, source.warning)
        dispatcher.listening()
        if not ready:
            child.report(READY)
        return True
    return False


def say_absent(child: Child, dispatcher: Dispatcher, why: str) -> None:
    """Tell the operator once, whichever process it is that waits in the end."""
    if leads(child.boot):
        child.report(NOTICE, f"waiting for {why}")
    dispatcher.interface_gone()


def follow(child: Child, dispatcher: Dispatcher, source: LiveSource) -> bool:
    """Take frames until the supervisor wants an end, and then what is in the kernel's buffer: True.
    False: the interface has gone."""
    # The card's drops are the interface's, not a socket's: one process counts them.
    card = leads(child.boot)
    draining = False
    due = 0.0
    while True:
        if child.slot.draining and not draining:
            draining = True
            source.drain()
            dispatcher.wait_for_room()
        state = dispatcher.run(source)
        over = state in ("end", "broken")
        now = time.monotonic()
        if over or now >= due:
            due = now + STATS_EVERY
            received, dropped, missed = source.stats()
            dispatcher.kernel(received, dropped, missed if card else 0)
        if state == "end":
            return True
        if state == "broken":
            if not source.gone:
                dispatcher.idle()       # what was counted since is for the successor to know
                raise InputError(source.error)
            say_absent(child, dispatcher, str(source.error))
            return False
