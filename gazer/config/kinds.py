"""The kinds of value that a configuration key can have, and how each is read and written.

A kind turns the text of one scalar into a value (`parse`, ValueError for anything else) and a
value back into text that `parse` reads as the same value (`show`). It also says in words what it
expects; error lines, configs/sensor.yaml and docs/configuration.md all use these words.

Rules
- The text decides, not YAML's guess at its type: `053` is no octal, `1:30` no base-60 number, and
  a quoted "60s" is as good as a bare one.
- Numbers are exact. Durations are whole nanoseconds, sizes whole bytes; a fraction that does not
  come out even is refused, and no float is involved.
- Text is bounded before it becomes a number: int() of a long string takes quadratic time.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    import enum
    from typing import Any

NS = 1
US = 1_000
MS = 1_000_000
SECOND = 1_000_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

# Largest unit first: `show` takes the first that divides.
_TIME_UNITS = {"h": HOUR, "m": MINUTE, "s": SECOND, "ms": MS, "us": US, "ns": NS}
_BINARY_UNITS = {"TiB": TIB, "GiB": GIB, "MiB": MIB, "KiB": KIB}
_SIZE_UNITS = _BINARY_UNITS | {
    "TB": 10**12, "GB": 10**9, "MB": 10**6, "kB": 1000, "KB": 1000, "B": 1
}  # fmt: skip

FORWARD_PORT = 24224    # fluentd's

# PATH_MAX is 4096 on Linux with the final NUL.
MAX_PATH = 4095

# 2**64 has 20 digits: no quantity here needs more.
_DIGITS = 20
_DIGIT = frozenset("0123456789")
_HOST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")


def printable(text: str) -> str:
    """`text` on one line: what does not print stands as its escape."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def shown(text: str, limit: int = 60) -> str:
    """`text` in quotes for an error line, printable and of bounded length."""
    cut = printable(text[:limit])
    return f'"{cut}..."' if len(text) > limit else f'"{cut}"'


def _is_number(text: str) -> bool:
    return 0 < len(text) <= _DIGITS and _DIGIT.issuperset(text)


def parse_whole(text: str) -> int:
    """A whole number in decimal digits, without sign, separator or leading zero."""
    if not _is_number(text) or (text[0] == "0" and text != "0"):
        raise ValueError(text)
    return int(text)


def _parse_quantity(text: str, units: dict[str, int], bare: int) -> int:
    end = 0
    while end < len(text) and (text[end] in _DIGIT or text[end] == "."):
        end += 1
    unit = text[end:].lstrip(" ")
    scale = units.get(unit, 0) if unit else bare
    whole, point, fraction = text[:end].partition(".")
    if not scale or not _is_number(whole) or (point and not _is_number(fraction)):
        raise ValueError(text)
    shift: int = 10 ** len(fraction)
    value = int(whole + fraction) * scale
    if value % shift:
        raise ValueError(text)
    return value // shift


def parse_duration(text: str) -> int:
    """Nanoseconds of "60s", "500ms", "2m", "1h", "1.5s"; a bare number is seconds."""
    return _parse_quantity(text, _TIME_UNITS, SECOND)


def show_duration(ns: int) -> str:
    """The shortest exact way to write `ns`: 90 s is 90s, 120 s is 2m."""
    for unit, scale in _TIME_UNITS.items():
        if ns % scale == 0 and (ns or unit == "s"):
            # 60s reads better than 1m, and is what people write in resolvers' configurations.
            if unit == "m" and ns == scale:
                continue
            return f"{ns // scale}{unit}"
    raise AssertionError(ns)


def parse_size(text: str) -> int:
    """Bytes of "64MiB", "16MB", "256KiB", "65535"; a bare number is bytes."""
    return _parse_quantity(text, _SIZE_UNITS, 1)


def show_size(size: int) -> str:
    """The shortest exact way to write `size` in binary units; bytes have no unit."""
    for unit, scale in _BINARY_UNITS.items():
        if size and size % scale == 0:
            return f"{size // scale}{unit}"
    return str(size)


class Kind:
    """One kind of value: `type` and `bounds` for the documents, `expected` for error lines."""

    __slots__ = ("bounds", "expected", "type")

    def __init__(self, type_: str, bounds: str, expected: str) -> None:
        self.type = type_
        self.bounds = bounds
        self.expected = expected

    def parse(self, text: str) -> Any:
        raise NotImplementedError

    def usual(self, value: Any) -> None:
        """A key has this by default: a good example, where there is need of one."""

    def show(self, value: Any) -> str:
        return str(value)


class Text(Kind):
    """Printable text, `limit` octets of UTF-8 at most; `empty` if it may be none at all."""

    __slots__ = ("empty", "limit")

    def __init__(
        self, limit: int, type_: str = "text", bounds: str = "", *, empty: bool = False
    ) -> None:
        bounds = bounds or f"{0 if empty else 1} to {limit} octets, printable"
        super().__init__(type_, bounds, f"{type_} of {bounds}")
        self.limit = limit
        self.empty = empty

    def parse(self, text: str) -> str:
        # isprintable() is also false for lone surrogates, so encode() cannot fail.
        if not (text or self.empty) or not text.isprintable() or len(text.encode()) > self.limit:
            raise ValueError(text)
        return text

    def show(self, value: str) -> str:
        return _quote(value)  # always: a bare null or ~ would read as nothing


class Path(Text):
    """The path of a file, or "-"."""

    __slots__ = ()

    def __init__(self, dash: str) -> None:
        super().__init__(MAX_PATH, "path", f'"-" is {dash}')
        self.expected = f'the path of a file or "-" for {dash}'


class Secret(Text):
    """Text that no error line and no document shows."""

    __slots__ = ()

    def __init__(self, limit: int) -> None:
        super().__init__(limit, empty=True)


class Address(Text):
    """Where a server is: host, host:port, [IPv6], [IPv6]:port or unix:///path."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(MAX_PATH, "address", "host, host:port, [::1]:port or unix:///path")
        self.expected = ("an address as host, host:port, [::1]:24224 or unix:///path, its port "
                         "from 1 to 65535")

    def parse(self, text: str) -> str:
        super().parse(text)
        if text.startswith("unix://"):
            # sun_path of unix(7), with the final NUL
            if not text.startswith("unix:///") or not 8 < len(text.encode()) <= 7 + 107:
                raise ValueError(text)
            return text
        host, colon, port = text.rpartition(":")
        if text.endswith("]") or not colon:
            host = text
        elif not 0 < parse_whole(port) < 65536:
            raise ValueError(text)
        if host.startswith("["):
            import ipaddress  # here, as few processes need it

            if not host.endswith("]"):
                raise ValueError(text)
            ipaddress.IPv6Address(host[1:-1])
        elif not 0 < len(host) <= 253 or not _HOST.issuperset(host):
            raise ValueError(text)      # also an IPv6 address without brackets
        return text


class Whole(Kind):
    """A whole number from `low` to `high`."""

    __slots__ = ("high", "low")

    def __init__(self, low: int, high: int) -> None:
        super().__init__("whole number", f"{low} to {high}", f"a whole number from {low} to {high}")
        self.low = low
        self.high = high

    def parse(self, text: str) -> int:
        return _within(parse_whole(text), self.low, self.high)


class Mode(Kind):
    """The mode of a file, in octal; its owner can always read and write it."""

    __slots__ = ()

    def __init__(self) -> None:
        bounds = "0600 to 0777, of which the owner's read and write are always set"
        super().__init__("file mode", bounds, f"a file mode in octal, {bounds}, such as 0640")

    def parse(self, text: str) -> int:
        if len(text) not in (3, 4) or not set(text) <= set("01234567"):
            raise ValueError(text)
        mode = int(text, 8)
        if mode & 0o600 != 0o600:
            raise ValueError(text)
        return _within(mode, 0o600, 0o777)

    def show(self, value: int) -> str:
        return f"{value:04o}"


class WholeOrAuto(Whole):
    """A whole number, or "auto", which is 0 as a value."""

    __slots__ = ()

    def __init__(self, low: int, high: int) -> None:
        super().__init__(low, high)
        self.type = '"auto" or whole number'
        self.expected = f'"auto" or {self.expected}'

    def parse(self, text: str) -> int:
        return 0 if text == "auto" else super().parse(text)

    def show(self, value: int) -> str:
        return str(value) if value else "auto"


class Flag(Kind):
    """true or false; yes, no, on and off are understood as YAML 1.1 has them."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("flag", "true, false", "true or false")

    def parse(self, text: str) -> bool:
        word = text.lower() if len(text) <= 5 else ""
        if word in ("true", "yes", "on"):
            return True
        if word in ("false", "no", "off"):
            return False
        raise ValueError(text)

    def show(self, value: bool) -> str:
        return "true" if value else "false"


class Choice(Kind):
    """One of some words; `none` is the one that is "" as a value."""

    __slots__ = ("none", "words")

    def __init__(self, *words: str, none: str = "") -> None:
        quoted = [f'"{word}"' for word in words]
        either = " or ".join([", ".join(quoted[:-1]), quoted[-1]]) if quoted[1:] else quoted[0]
        super().__init__("word", ", ".join(words), either)
        self.words = words
        self.none = none

    def parse(self, text: str) -> Any:
        if text not in self.words:
            raise ValueError(text)
        return "" if text == self.none else text

    def show(self, value: Any) -> str:
        return value or self.none


class Member(Choice):
    """A member of an enumeration, written as its name in small letters."""

    __slots__ = ("members",)

    def __init__(self, members: type[enum.Enum]) -> None:
        super().__init__(*(member.name.lower() for member in members))
        self.members = {member.name.lower(): member for member in members}

    def parse(self, text: str) -> enum.Enum:
        return self.members[super().parse(text)]

    def show(self, value: enum.Enum) -> str:
        return value.name.lower()


class Duration(Kind):
    """A span of time, kept in nanoseconds."""

    __slots__ = ("high", "low")

    def __init__(self, low: int, high: int) -> None:
        bounds = f"{show_duration(low)} to {show_duration(high)}"
        super().__init__("duration", bounds, f"a duration from {bounds}, such as 60s or 500ms")
        self.low = low
        self.high = high

    def parse(self, text: str) -> int:
        return _within(parse_duration(text), self.low, self.high)

    def show(self, value: int) -> str:
        return show_duration(value)


class Size(Kind):
    """A number of bytes; a power of two where `power` says so."""

    __slots__ = ("high", "low", "power")

    def __init__(self, low: int, high: int, power: bool = False, example: int = 0) -> None:
        bounds = f"{show_size(low)} to {show_size(high)}"
        what = "a power of two" if power else "a size"
        super().__init__("size", bounds, f"{what} from {bounds}")
        if example:
            self.usual(example)
        if power:
            self.bounds += ", a power of two"
        self.low = low
        self.high = high
        self.power = power

    def usual(self, value: int) -> None:
        if value and ", such as " not in self.expected:     # 0 means none, mostly
            self.expected += f", such as {show_size(value)}"

    def parse(self, text: str) -> int:
        size = _within(parse_size(text), self.low, self.high)
        if self.power and size & (size - 1):
            raise ValueError(text)
        return size

    def show(self, value: int) -> str:
        return show_size(value)


class Listing(Kind):
    """A list of values of one kind, kept as a tuple."""

    __slots__ = ("high", "item", "low")

    def __init__(self, item: Kind, low: int, high: int, plural: str) -> None:
        count = f"{low} to {high}" if low else f"at most {high}"
        each = "; " if isinstance(item, Path) else ", each "
        super().__init__(f"list of {plural}", f"{count}{each}{item.bounds}", f"a list of {plural}")
        self.item = item
        self.low = low
        self.high = high

    def parse(self, text: str) -> Any:
        raise ValueError(text)  # a list is never one scalar

    def show(self, value: tuple[Any, ...]) -> str:
        return "[" + ", ".join(self.item.show(item) for item in value) + "]"


def _within(value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise ValueError(value)
    return value


def _quote(text: str) -> str:
    """A double-quoted YAML scalar (YAML 1.1, 5.7: only these two need an escape here)."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def host_and_port(address: str) -> tuple[str, int]:
    """What an Address says, with fluentd's port where it says none; unix:///path has port 0."""
    if address.startswith("unix://"):
        return address, 0
    host, port = address, str(FORWARD_PORT)
    if address.startswith("["):
        host, _, rest = address[1:].partition("]")
        port = rest[1:] if rest.startswith(":") else port
    elif address.count(":") == 1:
        host, _, port = address.partition(":")
    return host, int(port)


def address_and_port(text: str) -> tuple[str, int]:
    """"127.0.0.1:9853" or "[::1]:9853" as address and port; ValueError: what is wrong with it, as
    what is said of the text.

    Addresses only: a name would have to be looked up, by a program that watches lookups.
    """
    import ipaddress  # here, as few processes need it

    address, colon, last = text.rpartition(":")
    if text.startswith("["):
        address, bracket, last = text[1:].partition("]")
        if not bracket:
            raise ValueError("has a bracket that is not closed")
        colon, last = last[:1], last[1:]
        if colon not in ("", ":"):
            raise ValueError("has no colon between the bracket and the port")
    elif ":" in address:
        raise ValueError("has an IPv6 address without brackets")
    elif not colon and _DIGIT.issuperset(last):
        raise ValueError("has no address")
    if not colon or not last:
        raise ValueError("has no port")
    if not address:
        raise ValueError("has no address")
    if not _DIGIT.issuperset(last):
        raise ValueError("has a port that is not a number")
    if not _is_number(last) or not 0 < int(last) < 65536:
        raise ValueError("has a port that is not from 1 to 65535")
    if last[0] == "0":
        raise ValueError("has a port that begins with 0")
    port = int(last)
    if text.startswith("["):
        try:
            return str(ipaddress.IPv6Address(address)), port
        except ValueError:
            raise ValueError("has no IPv6 address in its brackets") from None
    try:
        return str(ipaddress.IPv4Address(address)), port
    except ValueError:
        if _DIGIT.issuperset(address.replace(".", "")):
            raise ValueError("has no IPv4 address") from None
        raise ValueError("has a name in place of an address, and no name is looked up") from None
