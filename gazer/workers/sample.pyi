from typing import NamedTuple

SAMPLES_BYTES: int

class Seen(NamedTuple):
    number: int
    clock: int
    name: str
    type: str
    client: str
    rcode: str
    status: str

class Samples:
    def __init__(self, buffer: memoryview | bytearray) -> None: ...
    def release(self) -> None: ...

def samples_written(buffer: memoryview | bytearray | bytes) -> int: ...
def read_samples(buffer: memoryview | bytearray | bytes, since: int = ...) -> list[Seen]: ...
