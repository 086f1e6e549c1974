"""What reading a frame gives: a packet with the levels around it, a piece of one, or a reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class Undecoded(Exception):
    """Carries the reason, in words, and the name of the fate that it is."""

    def __init__(self, words: str, fate: str) -> None:
        super().__init__(words)
        self.fate = fate


@dataclass(frozen=True)
class Level:
    """One level of encapsulation; `vlan` are the tags read since the level before."""

    kind: str
    id: int | None = None
    ends: tuple[str, str] | None = None
    vlan: tuple[int, ...] = ()


@dataclass(frozen=True)
class Segment:
    """What TCP's header adds to a packet."""

    sequence: int
    acknowledgement: int
    flags: int

    fin = property(lambda self: bool(self.flags & 1))
    syn = property(lambda self: bool(self.flags & 2))
    rst = property(lambda self: bool(self.flags & 4))
    ack = property(lambda self: bool(self.flags & 16))


@dataclass(frozen=True)
class Packet:
    """A UDP datagram or TCP segment with a port of ours. `length` is the payload's on the wire,
    `vlan` the tags of the innermost link layer, `levels` what is around it, outermost first."""

    src: str
    sport: int
    dst: str
    dport: int
    vlan: tuple[int, ...]
    payload: bytes
    length: int
    levels: tuple[Level, ...] = ()
    protocol: str = "dns"
    tcp: Segment | None = None

    @property
    def cut(self) -> bool:
        return len(self.payload) < self.length

    @property
    def transport(self) -> str:
        return "udp" if self.tcp is None else "tcp"

    @property
    def scope(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return scope_of(self.levels, self.vlan)

    @property
    def vlans(self) -> list[int]:
        """The VLAN ids of all levels, the outermost first."""
        return [vid for level in self.levels for vid in level.vlan] + list(self.vlan)


def scope_of(levels: tuple[Level, ...],
           vlan: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What tells networks apart: the innermost tags, and all VNIs."""
    return vlan, tuple(lv.id or 0 for lv in levels if lv.kind in ("vxlan", "geneve"))


@dataclass(frozen=True)
class Window:
    """What there is to read: the captured octets, and how many there are on the wire."""

    data: bytes
    length: int

    @property
    def cut(self) -> bool:
        return len(self.data) < self.length

    def take(self, size: int, what: str, fate: str) -> tuple[bytes, Window]:
        if len(self.data) < size:
            raise Undecoded(f"too short: {what}", fate)
        return self.data[:size], Window(self.data[size:], self.length - size)

    def until(self, size: int) -> Window:
        """The first `size` octets; beyond the captured ones only where they were cut."""
        if size > len(self.data) and not self.cut:
            size = len(self.data)
        return Window(self.data[:size], size)


@dataclass(eq=False)
class Piece(Undecoded):
    """A piece of a datagram. `key` tells datagrams apart; `resume` reads on behind this piece's
    headers with the whole payload; `foreign` if it shows that the datagram is not ours."""

    key: tuple[object, ...]
    offset: int
    more: bool
    payload: bytes
    cut: bool
    limit: int  # what its end may be at most
    foreign: bool
    resume: Callable[[bytes], Packet]
    checks: Callable[[bytes], bool]  # the whole payload's checksum is right, or says nothing

    def __post_init__(self) -> None:
        super().__init__("fragment", "fragment")
