"""All that is lazy in a worker happens here, before its seccomp filter (gazer.seccomp).

    warm_up()       # then the filter, then the first frame

Python does much only when it is first asked for, and most of that opens files: an import, a codec,
the line of source that a traceback shows.  Under the filter any of it would kill the worker, at the
first rare record that a stranger sends.  So each such road is gone once before:

- the slow road's imports and classes, with data it can read and data it can't;
- every codec that anything here, or dnslib, may name;
- the C library's: time zone data, which the first conversion of a time reads; texts of errors;
- the decoders and encoders, with a record of each type, in each form of an event;
- an error that is raised, caught and put into a line, as gazer.child does it.

What an interpreter writes of an exception that nobody can catch (in a destructor, say) has the line
of source with it.  From here on that is one line through `report` instead.  And faulthandler, if
somebody has switched it on (-X dev), would write to standard error at a SIGSEGV and turn it into a
SIGSYS: it is switched off.

The proof is tests/test_warm.py: all record types, all corpora, and each road of errors, under the
filter.
"""

from __future__ import annotations

import codecs
import gc
import sys
from struct import pack

from gazer.errors import ProcessError
from gazer.workers import slow
from gazer.workers.encode import Encoder
from gazer.workers.rehearsal import rehearse
from gazer.workers.rrtypes import TYPES

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Callable

CODECS = ("ascii", "idna", "latin-1", "punycode", "unicode_escape", "utf-8")
HANDLERS = ("strict", "replace", "ignore", "backslashreplace", "surrogateescape")

FORMATS = range(4)                  # Format, of gazer/entry.pxd
SMALLEST_EVENT = 16384              # of gazer.workers.encode

_LOC = bytes([0, 0x12, 0x16, 0x13]) + pack("!III", 1 << 31, (1 << 31) - 3_600_000, 10_000_000)
_NAME = b"\4warm\7example\0"


def warm_up(report: Callable[[str], None] | None = None) -> None:
    """Go once through all that is lazy.  Takes some milliseconds, most of them dnslib's import.

    `report` gets a line of each exception that nobody can catch; without it there is none.
    """
    _codecs()
    _slow_road()
    for full in (True, False):
        rehearse(Encoder(full=full, formats=FORMATS, max_size=SMALLEST_EVENT, sensor="warm"),
                 [_message(flags) for flags in (0x0100, 0x8180)])
    _errors()
    sys.unraisablehook = _hook(report)
    if "faulthandler" in sys.modules:
        sys.modules["faulthandler"].disable()
    gc.collect()


def _codecs() -> None:
    for name in CODECS:
        codecs.lookup(name)
        "warm.example".encode(name).decode(name)
    for name in HANDLERS:
        codecs.lookup_error(name)
        b"\xff".decode(errors=name if name != "strict" else "replace").encode(errors="replace")


def _slow_road() -> None:
    """LOC with all it may have, at fault in all ways that it tells apart, and of no use at all."""
    for rdata in (_LOC, b"\1" + _LOC[1:], _LOC[:3] + b"\xff" + _LOC[4:], _LOC[:7], b"",
                  _LOC + b"\0", bytes(slow.MAX_RDATA + 1)):
        slow.render(slow.LOC, rdata)
    slow.render.cache_clear()       # what strangers send is not to find itself known


def _message(flags: int) -> bytes:
    """A message with a question, and with records of each type in two forms, one of them bad."""
    records = [
        pack("!HHHIH", 0xC00C, number, 1, 60, len(rdata)) + rdata
        for number in TYPES for rdata in ((_LOC if number == slow.LOC else bytes(4)), b"\xc0")
    ]
    opt = b"\0" + pack("!HHIH", 41, 1232, 0, 8) + pack("!HHHH", 15, 4, 18, 0x6F6B)
    head = pack("!HHHHHH", 0x77A4, flags, 1, len(records), 0, 1)
    return head + _NAME + pack("!HH", 1, 1) + b"".join(records) + opt


def _errors() -> None:
    """As gazer.child reports them, and the kinds that the interpreter itself raises."""
    for raised in (
        ProcessError("warm"), OSError(9, "warm"), MemoryError("warm"), BufferError("warm"),
        UnicodeDecodeError("ascii", b"\xff", 0, 1, "warm"), KeyError("warm"), AssertionError(),
    ):
        try:
            raise raised
        except Exception as error:
            trace = error.__traceback__
            where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
            f"{error!r} {error} at {where}".encode(errors="surrogateescape")


def _hook(report: Callable[[str], None] | None) -> Callable[[sys.UnraisableHookArgs], None]:
    def unraisable(what: sys.UnraisableHookArgs) -> None:
        if report is not None:
            report(f"{what.err_msg or 'an error that nobody could catch'}: {what.exc_value!r}")

    return unraisable
