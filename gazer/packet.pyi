from collections.abc import Iterable

FATES: tuple[str, ...]
ENCAPSULATIONS: tuple[str, ...]
PROTOCOLS_OF_DNS: tuple[str, ...]

class Decoding:
    def __init__(
        self,
        ports: Iterable[int] = ...,
        *,
        mdns: bool = ...,
        llmnr: bool = ...,
        decode: Iterable[str] = ...,
        max_depth: int = ...,
        vxlan_ports: Iterable[int] = ...,
        geneve_ports: Iterable[int] = ...,
    ) -> None: ...
