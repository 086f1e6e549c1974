from collections.abc import Iterable

FATES: tuple[str, ...]

class Ports:
    def __init__(self, ports: Iterable[int]) -> None: ...
ENCAPSULATIONS: tuple[str, ...]
PROTOCOLS_OF_DNS: tuple[str, ...]
