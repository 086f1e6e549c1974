LEAST_BYTES: int

class Fragments:
    def __init__(
        self, *, max_datagrams: int, max_bytes: int, timeout: int, seed: int, snaplen: int = ...,
        copies: int = ...,
    ) -> None: ...
