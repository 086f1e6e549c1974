"""What a run was told: the configuration, as far as it changes what a capture must give."""

from __future__ import annotations

from dataclasses import dataclass

TUNNELS = ("mpls", "pppoe", "gre", "erspan", "vxlan", "geneve", "ip")


@dataclass(frozen=True)
class Rules:
    """Times are seconds. `max_pending` None: no limit, and the other limits are not modelled."""

    ports: tuple[int, ...] = (53,)
    mdns: bool = False
    llmnr: bool = False
    timeout: float = 60.0
    duplicate_window: float = 5.0
    max_pending: int | None = None
    fragments_timeout: float = 30.0
    fragments_copies: float = 1.0
    streams_timeout: float = 300.0
    tunnels: tuple[str, ...] = TUNNELS
    max_depth: int = 4
    vxlan_ports: tuple[int, ...] = (4789,)
    geneve_ports: tuple[int, ...] = (6081,)
    records: bool = False
    detail: str = "classic"
    sensor: str = "sensor-1"

    def protocol(self, *ports: int) -> str | None:
        """Which of the DNS protocols these two ports are: dns, mdns, llmnr or none."""
        if set(ports) & set(self.ports):
            return "dns"
        if self.mdns and 5353 in ports:
            return "mdns"
        if self.llmnr and 5355 in ports:
            return "llmnr"
        return None
