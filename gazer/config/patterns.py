"""Names of files that follow one another: what a file of events is called, and what belongs to it.

A path may have conversions of strftime(3) in its last part: `dns-%Y%m%d-%H.log` is another file
each hour, by UTC.  The files of one output, N being numbers from 1 on:

    the path has conversions    dns-20261123-13.log, dns-20261123-13.log.N
                                The one that is written has its final name from the start; a
                                further one of the same time (rotate.size) has a number.
    it has none                 dns.log                         is written, always
                                dns.log.20261123T130000Z[.N]    was closed at that time

and behind each closed one `.gz` or `.zst` if it is compressed, and `.part` while it is being made.
A closed file never changes its name again, unlike with `dns.log.1`, `.2`, ... that move up: so a
collector never takes one twice, and who compresses or removes one needs to know of no other.  By
name, then number, they stand in the order in which they were closed.

Only conversions that give digits, and always as many, are allowed: so a name can be told from
other files' names without a doubt (`Names.parse`), and whether two outputs could ever come to the
same name can be decided (`collide`).  `%%` is a percent sign.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from gazer.config import Output, Rotation

DAY = 86400
# Conversion -> (digits, seconds after which it may change; a day for all that is longer).
CONVERSIONS = {
    "Y": (4, DAY), "y": (2, DAY), "m": (2, DAY), "d": (2, DAY), "j": (3, DAY), "u": (1, DAY),
    "G": (4, DAY), "V": (2, DAY), "H": (2, 3600), "M": (2, 60), "S": (2, 1),
}  # fmt: skip
ENDINGS = {"gzip": ".gz", "zstd": ".zst"}
PART = ".part"
CLOSED_AT = "%Y%m%dT%H%M%SZ"
LATEST = 253402300799       # the last second of 9999: beyond it years have five digits

_DIGITS = frozenset("0123456789")
# A name as a sequence: sets of characters, each once, or (True) any number of times.
_Sequence = list[tuple[frozenset[str], bool]]


@dataclass(frozen=True, slots=True)
class Name:
    """A file's name, taken apart.  base: without all that follows; number: 0 if there is none;
    ending: of a compressed file; part: it is not complete."""

    base: str
    number: int
    ending: str
    part: bool

    @property
    def plain(self) -> str:
        """The name before compression."""
        return f"{self.base}.{self.number}" if self.number else self.base


class Names:
    """What the files of an output at `path` are called.  ValueError, in words: no such path."""

    def __init__(self, path: str) -> None:
        folder, name = os.path.split(path)
        self.folder = _literal(folder) or "."
        pieces = _pieces(name)
        self.timed = any(len(piece) == 2 and piece != "%%" for piece in pieces)
        self.unit = min((CONVERSIONS[p[1]][1] for p in pieces if len(p) == 2 and p != "%%"),
                        default=0)
        self._format = name
        self._base = _sequence(pieces)
        self.literal = "" if self.timed else "".join(piece[-1] for piece in pieces)
        pattern = "".join(
            "[0-9]" if chars is _DIGITS else re.escape(next(iter(chars)))
            for chars, _ in self._base + ([] if self.timed else _stamp()))
        self._pattern = re.compile(
            rf"(?P<base>{pattern})(?:\.(?P<number>[1-9][0-9]{{0,8}}))?"
            rf"(?P<ending>\.gz|\.zst)?(?P<part>\.part)?", re.DOTALL)

    @property
    def path(self) -> str:
        """Without conversions: the file that is written."""
        return os.path.join(self.folder, self.literal)

    def at(self, moment: float) -> str:
        """The name of a file that is begun then, or (without conversions) closed."""
        when = time.gmtime(min(max(moment, 0), LATEST))
        if self.timed:
            return time.strftime(self._format, when)
        return f"{self.literal}.{time.strftime(CLOSED_AT, when)}"

    def parse(self, name: str) -> Name | None:
        """A name of one of our files (closed ones only, where the path has no conversions)."""
        found = self._pattern.fullmatch(name)
        if found is None:
            return None
        return Name(found["base"], int(found["number"] or 0), found["ending"] or "",
                    found["part"] is not None)

    def _sequences(self, *, rotates: bool) -> Iterator[_Sequence]:
        """All names that there can be; without `rotates` it is one."""
        if not rotates:
            yield self._base
            return
        if not self.timed:
            yield self._base
        closed = self._base + ([] if self.timed else _stamp())
        for number in ([], [*_text("."), (_DIGITS, False), (_DIGITS, True)]):
            for ending in ("", *ENDINGS.values()):
                for part in ("", PART):
                    yield closed + number + _text(ending + part)


def collide(one: Output, other: Output) -> bool:
    """Whether two outputs, both in the same folder, can come to have a file of the same name."""
    first, second = (
        [*Names(o.path)._sequences(rotates=turning(o) is not None)] for o in (one, other))
    return any(_meet(a, b) for a in first for b in second)


def claims(output: Output, name: str) -> bool:
    """Whether the file `name`, in the output's own folder, would be taken for one of its files."""
    names = Names(output.path)
    return turning(output) is not None and names.parse(name) is not None


def folder_and_file(output: Output) -> tuple[str, str]:
    """Of an output that is a file: the folder in which new files are made ("": there are none), and
    the file that would be written now."""
    if output.path == "-":
        return "", "-"
    names = Names(output.path)
    now = os.path.join(names.folder, names.at(time.time())) if names.timed else names.path
    return (names.folder if turning(output) is not None else ""), now


def turning(output: Output) -> Rotation | None:
    """How the files of this output follow one another; None: there is one for good."""
    from gazer.config import Rotation

    rotation = output.rotation or Rotation()
    if output.path in ("-", "/dev/stdout", "/dev/fd/1"):
        return None
    return rotation if rotation.size or rotation.interval_ns or Names(output.path).timed else None


def _pieces(name: str) -> list[str]:
    """Characters, and conversions as two characters."""
    found = re.findall(r"%.|.", name, re.DOTALL)
    for piece in found:
        if piece[0] == "%" and piece != "%%" and piece[1:] not in CONVERSIONS:
            known = " ".join(f"%{letter}" for letter in CONVERSIONS)
            raise ValueError(f"{piece} is no conversion that a name can have; these are: {known}, "
                             "and %% for a percent sign")
    return found


def _literal(folder: str) -> str:
    if "%" in folder.replace("%%", ""):
        raise ValueError("a folder can't change with the time, only the name of a file can; "
                         "a percent sign is written %%")
    return folder.replace("%%", "%")


def _sequence(pieces: list[str]) -> _Sequence:
    found: _Sequence = []
    for piece in pieces:
        if len(piece) == 1 or piece == "%%":
            found += _text(piece[-1])
        else:
            found += [(_DIGITS, False)] * CONVERSIONS[piece[1]][0]
    return found


def _stamp() -> _Sequence:
    return _sequence([".", *_pieces(CLOSED_AT)])


def _text(text: str) -> _Sequence:
    return [(frozenset(c), False) for c in text]


def _meet(a: _Sequence, b: _Sequence) -> bool:
    """Whether some text is told by both: a walk through the pairs of places in them."""
    seen = {(0, 0)}
    open_ = [(0, 0)]
    while open_:
        i, j = open_.pop()
        if (i, j) == (len(a), len(b)):
            return True
        steps = []
        if i < len(a) and a[i][1]:
            steps.append((i + 1, j))
        if j < len(b) and b[j][1]:
            steps.append((i, j + 1))
        if i < len(a) and j < len(b) and a[i][0] & b[j][0]:
            steps.append((i if a[i][1] else i + 1, j if b[j][1] else j + 1))
        for step in steps:
            if step not in seen:
                seen.add(step)
                open_.append(step)
    return False
