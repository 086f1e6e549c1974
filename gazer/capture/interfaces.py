"""What `gazer check` says of network interfaces, without touching one.  Linux only.

ioctl(2) and not /sys: that shows the network namespace it was mounted in, which need not be ours.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct

ANY = "any"
SIOCGIFFLAGS = 0x8913       # linux/sockios.h
IFF_UP = 1                  # linux/if.h
IFREQ = struct.Struct("16sH22x")


def interface_state(name: str) -> str:
    """In a few words: is it there, and up?"""
    if name == ANY:
        return "all interfaces"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            answer = fcntl.ioctl(asking, SIOCGIFFLAGS, IFREQ.pack(name.encode(), 0))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return "there is no such interface now; it will be waited for"
            return f"its state is not known: {error.strerror}"
    _, flags = IFREQ.unpack(answer)
    return "up" if flags & IFF_UP else "down now; it will be waited for"


def may_capture() -> bool:
    """Whether this process may open a socket that captures (CAP_NET_RAW)."""
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()   # protocol 0: gets nothing
    except PermissionError:
        return False
    except OSError:
        pass        # told when the run opens its own
    return True
