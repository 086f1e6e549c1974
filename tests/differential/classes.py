"""What gazer and the others disagree on: a closed list, each class with its reason.

A class has a function that is asked only where two readings differ, and says whether its reason is
all of the difference.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.differential.readings import (
    ALIKE,
    Dnslib,
    Lenient,
    Reading,
    Theirs,
    dnspython,
    name_text,
)

SECTIONS = ("question", "answer", "authority", "additional")
OPT = 41
NAPTR = 35

Record = tuple[str, str, int, int, int | None, str | None]     # as doors.Reader.read gives it


@dataclass(frozen=True)
class Class:
    name: str
    reason: str
    explains: Callable[..., bool]


DATA: list[Class] = []          # explains(ours: Record, theirs: Theirs)
DNSLIB: list[Class] = []        # explains(number of the record, our reading)


def a_class(where: list[Class], name: str, reason: str) -> Callable[..., Any]:
    def put(function: Callable[..., bool]) -> Callable[..., bool]:
        where.append(Class(name, " ".join(reason.split()), function))
        return function
    return put


def a_cause(name: str, reason: str) -> Class:
    return Class(name, " ".join(reason.split()), lambda: True)


def generic(rdata: bytes) -> str:
    return f"\\# {len(rdata)} {rdata.hex()}".rstrip()


def unescaped(text: str) -> str:
    return re.sub(r'\\(["();@$])', r"\1", text)


def same_data(ours: Record, theirs: str | None, rdtype: int, rdata: bytes) -> bool:
    """The same but for what `chunks` and `escapes` name."""
    if theirs is None:
        return ours[5] == generic(rdata)
    if theirs == ours[5]:
        return True
    if theirs.startswith("\\# "):
        return ours[5] == generic(rdata)
    if rdtype in NAMED:
        theirs = unescaped(theirs)
    elif rdtype == NAPTR:           # behind strings, which have escapes of their own
        strings, _, name = theirs.rpartition('" ')
        theirs = f'{strings}" {unescaped(name)}'
    fixed = FIXED_FIELDS.get(rdtype)
    if fixed is not None:
        parts = theirs.split(" ")
        theirs = " ".join([*parts[:fixed], "".join(parts[fixed:])]).strip()
    return theirs == ours[5]


# --- record data, against dnspython --------------------------------------------------------------

# Types with names in them, as text begins or ends with one.
NAMED = frozenset((2, 3, 4, 5, 6, 7, 8, 9, 12, 14, 15, 17, 18, 21, 24, 26, 33, 36, 39, 46, 47, 64,
                   65, 107))
# Fields before the base64 or hex at the end.
FIXED_FIELDS = {
    24: 8, 25: 3, 43: 3, 44: 2, 46: 8, 48: 3, 49: 0, 52: 3, 53: 3, 59: 3, 60: 3, 61: 0, 63: 3,
    32768: 3, 32769: 3}
# What gazer shows by RFC 3597, whatever it holds: experimental, withdrawn, never seen, or, as TSIG
# and TKEY, of no use in a log.
GENERIC = frozenset((
    11, 19, 20, 22, 23, 27, 31, 32, 34, 37, 38, 40, 42, 45, 55, 66, 67, 68, 104, 105, 106, 108,
    109, 249, 250, 258, 260, 261, 262))
# Forms that dnspython judges by more than whether they can be read.
JUDGED = frozenset((24, 29, 43, 44, 48, 50, 51, 52, 53, 59, 60, 61, 63, 64, 65, 256,
                    257, 32769, 25))
# Forms that gazer holds to what their RFC says, and dnspython does not.
STRICT = frozenset((13, 16, 24, 25, 29, 43, 44, 46, 47, 48, 49, 50, 51, 52, 53, 59, 60, 61, 62, 63,
                    64, 65, 99, 257, 32769))


@a_class(DATA, "chunks", """
    dnspython parts base64 and hex by blanks, as on the lines of a zone file; an event has them
    in one piece""")
def chunks(ours: Record, theirs: Theirs) -> bool:
    return (theirs.text is not None and ours[5] is not None
            and theirs.text.replace(" ", "") == ours[5].replace(" ", "")
            and same_data(ours, theirs.text, theirs.type, theirs.rdata))


@a_class(DATA, "zone file escapes", """in names dnspython escapes what has a meaning in a zone file,
         `"();@$`; an event is no zone file (RFC 4343 2.1)""")
def escapes(ours: Record, theirs: Theirs) -> bool:
    return theirs.text is not None and theirs.type in (NAPTR, *NAMED) and same_data(
        ours, theirs.text, theirs.type, theirs.rdata)


@a_class(DATA, "class NONE or ANY", """
    dnspython shows types of class IN generically in these classes; updates (RFC 2136) use them
    for IN's data, so gazer reads them as IN""")
def update_classes(ours: Record, theirs: Theirs) -> bool:
    if theirs.rdclass not in (254, 255):
        return False
    again = Theirs(theirs.section, theirs.name, theirs.type, 1, theirs.ttl, theirs.alike,
                   theirs.rdata, "", None)
    return same_data(ours, theirs.alike, theirs.type, theirs.rdata) or any(
        c.explains(ours, again) for c in DATA if c.name != "class NONE or ANY")


@a_class(DATA, "types dnspython does not know", """
    MB, MD, MF, MG, MR, MINFO and TA: it shows them generically; read as the type of the same
    form (NS, RP, DS) they are the same""")
def unknown(ours: Record, theirs: Theirs) -> bool:
    if theirs.type not in ALIKE:
        return False
    alike = ALIKE[theirs.type]
    return same_data(ours, theirs.alike, alike, theirs.rdata) or (
        theirs.alike is None and alike in JUDGED)


@a_class(DATA, "types gazer shows generically", """
    WKS, ISDN, CERT, HIP, EUI48, TSIG and the like, in the form of RFC 3597 whatever they hold""")
def not_decoded(ours: Record, theirs: Theirs) -> bool:
    return theirs.type in GENERIC and ours[5] == generic(theirs.rdata)


@a_class(DATA, "class CH A", """
    dnspython reads the data of class CH's own A (RFC 1035); gazer shows it by RFC 3597""")
def chaos(ours: Record, theirs: Theirs) -> bool:
    return theirs.type == 1 and theirs.rdclass == 3 and ours[5] == generic(theirs.rdata)


# RFC 1002, RFC 1348 and the ATM Forum's, which dnspython writes as TYPE31 and so on.
MNEMONICS = {"TYPE31": "EID", "TYPE32": "NIMLOC", "TYPE34": "ATMA", "TYPE40": "SINK",
             "TYPE100": "UINFO", "TYPE101": "UID", "TYPE102": "GID", "TYPE57": "RKEY",
             "TYPE58": "TALINK", "TYPE10": "NULL", "TYPE128": "NXNAME", "TYPE259": "DOA",
             "TYPE261": "RESINFO", "TYPE262": "WALLET", "TYPE263": "CLA", "TYPE264": "IPN"}


@a_class(DATA, "mnemonics", """
    types in bitmaps and in RRSIG by their IANA mnemonics, of which dnspython lacks some old
    ones""")
def mnemonics(ours: Record, theirs: Theirs) -> bool:
    if theirs.type not in (46, 47, 50, 62, 24) or theirs.text is None:
        return False
    text = " ".join(MNEMONICS.get(word, word) for word in theirs.text.split(" "))
    return same_data(ours, text, theirs.type, theirs.rdata)


@a_class(DATA, "mixed addresses", """
    dnspython, as inet_ntop, writes the last 32 bits of IPv4-compatible addresses (::/96,
    deprecated by RFC 4291) in dots; gazer only IPv4-mapped ones (RFC 5952 5)""")
def mixed(ours: Record, theirs: Theirs) -> bool:
    return (theirs.type in (28, 64, 65) and theirs.text is not None and ours[5] is not None
            and _plain_addresses(ours[5]) == _plain_addresses(theirs.text))


def _plain_addresses(text: str) -> str:
    """Each IPv6 address in the text as its octets."""
    def octets(match: re.Match[str]) -> str:
        try:
            return socket.inet_pton(socket.AF_INET6, match[0]).hex()
        except OSError:
            return match[0]
    return re.sub(r"[0-9a-f:.]*::?[0-9a-f:.]+", octets, text)


@a_class(DATA, "LOC's defaults", """
    dnspython leaves size and precisions out when all three are at their defaults, gazer each
    that nothing but defaults follow""")
def location(ours: Record, theirs: Theirs) -> bool:
    if theirs.type != 29 or theirs.text is None or ours[5] is None:
        return False
    mine, his = ours[5].split(), theirs.text.split()
    return his[:len(mine)] == mine and his[len(mine):] == [
        "1.00m", "10000.00m", "10.00m"][len(mine) - len(his):]


@a_class(DATA, "senseless to dnspython", """
    it refuses data that can be read and is merely senseless, and more of it with each version:
    a digest of the wrong length, a place beyond the poles, SVCB parameters that contradict one
    another; gazer shows what is there""")
def refused(ours: Record, theirs: Theirs) -> bool:
    return theirs.text is None and theirs.type in JUDGED


@a_class(DATA, "not well-formed to gazer", """
    dnspython shows data that its type's RFC rules out: an empty key, hash or digest, a CAA tag
    of other octets, a bitmap with a zero at its end or in disorder; gazer shows its octets and
    says `bad_rdata`""")
def lenient(ours: Record, theirs: Theirs) -> bool:
    return theirs.text is not None and theirs.type in STRICT and ours[5] == generic(theirs.rdata)


# --- names and structure, against dnspython ------------------------------------------------------

CAUSES = {
    "DecompressionForbidden": a_cause(
        "compression where none should be", """newer versions of dnspython refuse pointers in types
        whose senders must not use them (RFC 3597 4); gazer follows them"""),
    "PointerChainTooLong": a_cause(
        "long chains of pointers", """newer versions of dnspython follow few pointers in one name;
        gazer 128, one after each possible label"""),
    "": a_cause(
        "targets that overlap", """to dnspython the labels that a pointer leads to must end ahead of
        the part of the name that the pointer ends; to gazer it is enough that each pointer leads to
        before that part"""),
}


# --- dnslib --------------------------------------------------------------------------------------


@a_class(DNSLIB, "data beyond its length", """
    dnslib reads a record's data by its type alone, and so beyond its length, or not to its end;
    to gazer it does not fit its type, or ends the message""")
def beyond(number: int, read: dict[str, Any]) -> bool:
    """This record, or one before it, after which dnslib reads from elsewhere."""
    return read["anomaly"] == "rdlength" or any(
        record[5] is not None and record[5].startswith("\\# ")
        for record in read["records"][:number + 1])


@a_class(DNSLIB, "names that are none", """
    dnslib takes the reserved label types 01 and 10 for lengths, reads names of more than 255
    octets, and follows some pointers that do not lead back""")
def odd_names(number: int, read: dict[str, Any]) -> bool:
    return read["anomaly"] in ("bad_label", "name_too_long", "pointer_loop")


# --- all of it -----------------------------------------------------------------------------------


def _explain(classes: list[Class], *what: Any) -> str | None:
    return next((c.name for c in classes if c.explains(*what)), None)


def _compare(ours: dict[str, Any], theirs: Reading) -> Iterator[tuple[str | None, str, str]]:
    """(class or None, what differs, what dnspython refused of it), for each disagreement."""
    if (ours["id"], ours["flags"], ours["counts"]) != (theirs.id, theirs.flags, theirs.counts):
        yield None, "header", ""
    for mine, his in zip(ours["records"], theirs.records, strict=False):
        if mine[:5] != (SECTIONS[his.section], his.name, his.type, his.rdclass, his.ttl):
            yield None, f"{mine} / {his}", ""
        elif his.section and his.type != OPT and mine[5] != his.text and not (
                his.text is None and mine[5] == generic(his.rdata)):
            yield _explain(DATA, mine, his), f"{mine} / {his}", his.refused
    if len(ours["records"]) + ours["omitted"] != len(theirs.records):
        yield None, (f"{len(ours['records'])} records and {ours['anomaly']} / "
                     f"{len(theirs.records)} and {theirs.fault}"), theirs.fault
    elif not theirs.fault and ours["anomaly"] != "bad_rdata" and (
            (ours["anomaly"] == "trailing") != (theirs.trailing > 0)):
        yield None, f"{ours['anomaly']} / {theirs.trailing} octets behind it", ""


def against_dnspython(wire: bytes, ours: dict[str, Any]) -> Iterator[tuple[str | None, str]]:
    """(class or None, what differs), for each disagreement."""
    found = list(_compare(ours, dnspython(wire)))
    if any(name is None for name, _, _ in found):
        # Again, without dnspython's rules on names: what is gone then was due to them.
        again = list(_compare(ours, dnspython(wire, Lenient)))
        if all(name is not None for name, _, _ in again):
            for name, what, cause in found:
                yield name or CAUSES.get(cause, CAUSES[""]).name, what
            return
    for name, what, _ in found:
        yield name, what


def against_dnslib(ours: dict[str, Any],
                   theirs: tuple[int, int, list[Dnslib]]) -> Iterator[tuple[str | None, str]]:
    """The first disagreement: what comes behind it may be read from elsewhere."""
    ident, flags, records = theirs
    if (ours["id"], ours["flags"]) != (ident, flags):
        yield None, "header"
        return
    for number, (mine, his) in enumerate(zip(ours["records"], records, strict=False)):
        want = (SECTIONS[his.section], name_text(his.labels), his.type, his.rdclass, his.ttl)
        if mine[:5] != want or (his.data is not None and mine[5] != data_text(his)):
            yield _explain(DNSLIB, number, ours), f"{mine} / {his}"
            return
    if len(ours["records"]) + ours["omitted"] != len(records):
        yield _explain(DNSLIB, len(records), ours), (
            f"{len(ours['records'])} records and {ours['anomaly']} / {len(records)}")


def data_text(his: Dnslib) -> str:
    data = his.data
    if his.type == 28:
        return socket.inet_ntop(socket.AF_INET6, data)
    if isinstance(data, str):
        return data
    return " ".join(name_text(part) if isinstance(part, tuple) else str(part) for part in data)


ALL = [*DATA, *CAUSES.values(), *DNSLIB]
