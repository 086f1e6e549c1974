#!/usr/bin/env python3
"""Drop the options of a pcapng section header: they name the machine and programs that wrote it.

Usage: anonymous_pcapng.py FILE (one section, little endian, as mergecap writes it; in place)
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

SECTION_HEADER, BYTE_ORDER_MAGIC = 0x0A0D0D0A, 0x1A2B3C4D
FIXED = 28  # type, length, magic, version, section length, length: a header without options


def main(argv: list[str]) -> int:
    path = Path(argv[1])
    data = path.read_bytes()
    kind, length, magic = struct.unpack_from("<3I", data)
    if (kind, magic) != (SECTION_HEADER, BYTE_ORDER_MAGIC):
        print(f"{path}: not a little-endian pcapng file", file=sys.stderr)
        return 1
    head = struct.pack("<2I", kind, FIXED) + data[8:24] + struct.pack("<I", FIXED)
    path.write_bytes(head + data[length:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
