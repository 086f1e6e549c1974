"""The slow road for record data: types that are too rare to decode in Cython go through dnslib.

Which: those that dnslib knows (`dnslib.RDMAP`) and gazer.workers.rdata does not, today LOC alone.
A type comes onto this road by name, not by whatever dnslib happens to know, for two reasons: the
output must not change with dnslib's version, and dnslib escapes names by rules of its own (a dot
or a space within a label stands unescaped, and a name that is not ASCII depends on its IDNA
codec), so that a type with a name in it (RP) has to be decoded in Cython.  Since no name is left,
the rdata is all there is to read, never the message around it.

Each call costs the GIL and some ten microseconds.  That is bounded by MAX_RDATA and by a small
cache, as whoever sends one rare record tends to send it again.
"""

from __future__ import annotations

from functools import lru_cache

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from typing import Any

MAX_RDATA = 4096     # the longest of these types has 16 octets; beyond this nothing is tried
MAX_TEXT = 4096

LOC = 29


def _coordinate(value: int, hemisphere: str) -> str:
    """RFC 1876, section 3, in full: dnslib drops the fraction of a second that stands alone, and
    puts the equator in the south and Greenwich in the west, where all other tools have N and E."""
    if value == 1 << 31:
        hemisphere = {"S": "N", "W": "E"}.get(hemisphere, hemisphere)
    milliseconds = abs((1 << 31) - value)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    degrees, minutes = divmod(minutes, 60)
    seconds = f"{milliseconds // 1000}.{milliseconds % 1000:03d}"
    return f"{degrees} {minutes} {seconds} {hemisphere}"


@lru_cache(maxsize=1)
def _classes() -> dict[int, Any]:
    """dnslib is imported here, at the first record that needs it: every worker would pay for it."""
    import dnslib  # type: ignore[import-untyped]

    class Location(dnslib.LOC):  # type: ignore[misc]
        _reprcoord = staticmethod(_coordinate)

    return {LOC: Location}


@lru_cache(maxsize=1024)
def render(rrtype: int, rdata: bytes) -> bytes | None:
    """The presentation form of the rdata; None if dnslib can't read it, or not all of it."""
    if len(rdata) > MAX_RDATA or (rrtype == LOC and rdata[:1] != b"\0"):
        return None     # RFC 1876, section 2: only version 0 has a known form
    try:
        from dnslib.dns import DNSBuffer  # type: ignore[import-untyped]

        buffer = DNSBuffer(rdata)
        text = _classes()[rrtype].parse(buffer, len(rdata)).toZone()
        if buffer.offset != len(rdata) or len(text) > MAX_TEXT:
            return None
        encoded: bytes = text.encode("ascii")
    except Exception:
        # Whatever a stranger's bytes do to dnslib, they are one thing here: bad rdata.
        return None
    return encoded if all(0x20 <= b <= 0x7E for b in encoded) else None
