from collections.abc import Collection

class Encoder:
    def __init__(
        self,
        *,
        full: bool,
        formats: Collection[int],
        max_size: int,
        sensor: str,
        run: int | None = None,
    ) -> None: ...

def entry_room(max_size: int, formats: int) -> int: ...
