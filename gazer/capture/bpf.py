"""The filter text that a live capture gives to the kernel (pcap-filter(7)), so that frames that
can't hold DNS are dropped before they cost a copy.

It may let through more than we read, never less. What passes:

- UDP and TCP with one of our ports, or of VXLAN's or Geneve's, over IPv4 and IPv6;
- every piece of an IPv4 datagram of UDP, TCP or a tunnel, and every packet with an IPv6 fragment
  header: only the first piece shows ports, and which datagram a later one belongs to can't be seen;
- IPv6 packets whose first extension header is one that we step over: a filter can't walk a chain
  of headers, and few packets have one (AH, RFC 4302, is the exception; who runs it gets all of it);
- every other encapsulation that is opened, whole: a filter can't see what is inside;
- all of that behind one and two VLAN tags; with three or more tags a frame passes whatever it is.

ICMP errors that quote DNS do not pass, so a live capture does not count them.

`vlan` in a filter moves all offsets of what follows it in the text, in and out of brackets: so
each further tag stands within the brackets of the one before, behind everything that is said of
frames without it. Link types that have no `vlan` (Linux cooked) let tagged frames through whole;
those that carry IP and nothing else have no tags.

A user's own filter comes first: "(user) and (ours)", and so tells of the outer headers. If it has
a word that moves offsets itself (`vlan`, `mpls`, ...), ours would look in the wrong place behind
it; then the user's stands alone.

A program may have 4096 instructions (BPF_MAXINSNS). As many ports as a configuration can name, no
two of them neighbours, take less than half of that; a test holds it.
"""

from __future__ import annotations

import re

from gazer.config import LLMNR_PORT, MDNS_PORT

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Iterable

    from gazer.config import Capture, Tunnels

ETHERNET = 1
COOKED = (113, 276)

# Of IPv6: hop-by-hop, routing, fragment, AH, destination, mobility, HIP, shim6.
EXTENSIONS = (0, 43, 44, 51, 60, 135, 139, 140)
# The IP protocols that an encapsulation rides on.
PROTOCOLS = {"ip": (4, 41), "gre": (47,), "erspan": (47,)}
ETHERTYPES = {"mpls": (0x8847, 0x8848), "pppoe": (0x8864,)}
TAGS = (0x8100, 0x88A8, 0x9100)

# Words after which libpcap looks elsewhere for everything.
MOVES = re.compile(r"\b(?:vlan|mpls|pppoes|geneve|vxlan)\b", re.IGNORECASE)


def kernel_filter(capture: Capture, tunnels: Tunnels, linktype: int = ETHERNET) -> str:
    """The text for an interface of this link type."""
    ours = _ours(capture, tunnels, linktype)
    user = capture.filter.strip()
    if not user:
        return ours
    return user if MOVES.search(user) else f"({user}) and ({ours})"


def _ours(capture: Capture, tunnels: Tunnels, linktype: int) -> str:
    level = _packets(capture, tunnels)
    if linktype != ETHERNET and linktype not in COOKED:
        return level
    opened = _ether(t for name, types in ETHERTYPES.items() if name in tunnels.decode
                    for t in types)  # fmt: skip
    level = " or ".join([*opened, level])
    more = " or ".join(_ether(TAGS))
    if linktype in COOKED:
        return f"{more} or {level}"
    return f"({level}) or (vlan and (({level}) or (vlan and ({more} or ({level})))))"


def _packets(capture: Capture, tunnels: Tunnels) -> str:
    """What may hold DNS, for packets that begin where libpcap looks just now.

    The ports stand last, and all in one list: so libpcap's optimizer makes half as much of it.
    """
    tunnelled = sorted({p for name in tunnels.decode for p in PROTOCOLS.get(name, ())})
    ports = {*capture.ports}
    ports |= {MDNS_PORT} if capture.mdns else set()
    ports |= {LLMNR_PORT} if capture.llmnr else set()
    ports |= {*tunnels.vxlan_ports} if "vxlan" in tunnels.decode else set()
    ports |= {*tunnels.geneve_ports} if "geneve" in tunnels.decode else set()
    return " or ".join([
        *_each("ip[9]", tunnelled),
        f"(ip[6:2] & 0x3fff != 0 and ({' or '.join(_each('ip[9]', [6, 17, *tunnelled]))}))",
        *_each("ip6[6]", [*tunnelled, *EXTENSIONS]),
        f"((tcp or udp) and ({' or '.join(_ports(ports))}))",
    ])  # fmt: skip


def _each(field: str, values: Iterable[int]) -> list[str]:
    return [f"{field} = {value}" for value in values]


def _ether(types: Iterable[int]) -> list[str]:
    return [f"ether proto {type_:#x}" for type_ in types]


def _ports(ports: Iterable[int]) -> list[str]:
    """Neighbours as a range: one test for all of them."""
    runs: list[list[int]] = []
    for port in sorted(ports):
        if runs and port == runs[-1][1] + 1:
            runs[-1][1] = port
        else:
            runs.append([port, port])
    return [f"port {a}" if a == b else f"portrange {a}-{b}" for a, b in runs]
