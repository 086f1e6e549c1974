class Streams:
    def __init__(
        self, *, max_streams: int, max_bytes: int, max_bytes_each: int, timeout: int, seed: int
    ) -> None: ...
