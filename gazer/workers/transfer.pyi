class Transfers:
    def __init__(
        self, *, max_transfers: int, max_bytes: int, budget: int, seed: int
    ) -> None: ...
