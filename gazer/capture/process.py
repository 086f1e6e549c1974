"""The capture process: capture files, one after the other, into the rings of the workers."""

from __future__ import annotations

from gazer.capture.dispatch import Dispatcher
from gazer.capture.files import open_source
from gazer.capture.filter import Filter
from gazer.capture.fragments import Fragments
from gazer.child import FAULT, NOTICE, Boot, Child, run
from gazer.config.kinds import printable
from gazer.errors import InputError
from gazer.topology import Topology

# Mirrors show a piece's copy within milliseconds; a host has to send 65,536 datagrams to use an id
# again.
COPIES = 1_000_000_000  # ns


def main(boot: Boot) -> None:
    """What the supervisor starts."""
    run(boot, capture)


def capture(child: Child) -> None:
    """Read all files, in the order given, as one stream of time.

    A file that can't be read, or breaks off, is reported; what came before is processed and the
    files behind it are read all the same.
    """
    boot = child.boot
    config = boot.config
    topology = Topology.of(config)
    index = boot.part.index
    filter = Filter(config.capture.filter) if config.capture.filter else None
    dispatcher = Dispatcher(
        rings=[child.ring(topology.frames(index, i)) for i in range(topology.workers)],
        bells=[boot.bells[topology.worker(i)] for i in range(topology.workers)],
        bell=boot.bell,
        slot=child.slot,
        seed=boot.seed,
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
    unread = [printable(path) for path in boot.config.capture.files]
    while unread and not child.slot.draining:
        try:
            if not read_file(child, dispatcher, filter, config.capture.files[-len(unread)]):
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
    dispatcher.end()
    dispatcher.release()


def read_file(child: Child, dispatcher: Dispatcher, filter: Filter | None, path: str) -> bool:
    """Read one file.  True at its end, False if the supervisor wanted an end before."""
    source = open_source(
        path,
        snaplen=child.boot.config.capture.snaplen,
        stdin_fd=child.boot.stdin,
        stopped=lambda: child.slot.draining,
    )
    try:
        while not child.slot.draining:
            state = dispatcher.run(source)
            for line in filter.complaints() if filter else ():
                child.report(NOTICE, line)
            if state == "end":
                return True
            if state == "broken":
                raise InputError(source.error)
        return False
    finally:
        source.close()
