"""Wire formats that the tests of names and record data share, written with nothing of gazer's,
and the two readers that they compare."""

from __future__ import annotations

import struct

import dns.exception
import dns.rdata
from hypothesis import strategies as st

from gazer.workers import probe, rrtypes

HEADER = bytes(12)      # of a DNS message: positions below 12 are never a name's
OWNER = b"\3www\7example\3com\0"
BASE = HEADER + OWNER   # what rdata is put behind, so that there is something to point to
ZONE = 12 + 4           # where example.com. stands in it

# Labels up to 63 octets, names up to 255: mostly short, often odd, sometimes at the limit.
label = st.one_of(
    st.sampled_from([b"a", b"ns1", b"example", b"_dmarc", b"xn--bcher-kva", b"x" * 63]),
    st.binary(min_size=1, max_size=12),
    st.binary(min_size=1, max_size=63),
)
labels = st.lists(label, max_size=8).filter(lambda ls: sum(len(x) + 1 for x in ls) <= 254)

# Names that dnspython writes as we do: it escapes `"().;\@$` where we escape `.` and `\`.
plain_label = st.text("abcxyzABCXYZ0189-_*/+=:~!#%&'<>?[]^`{|}", min_size=1, max_size=20).map(
    lambda s: s.encode("ascii")
)
plain_labels = st.lists(plain_label, max_size=6)


def encode_name(parts: list[bytes]) -> bytes:
    return b"".join(bytes([len(p)]) + p for p in parts) + b"\0"


def name_text(parts: list[bytes]) -> str:
    """The presentation form by our rule, written a second time and differently."""
    if not parts:
        return "."
    text = ""
    for part in parts:
        for octet in part:
            character = chr(octet)
            if character in ".\\":
                text += "\\" + character
            elif character.isascii() and character.isprintable() and character != " ":
                text += character
            else:
                text += f"\\{octet:03d}"
        text += "."
    return text


def pointer(position: int) -> bytes:
    return (0xC000 | position).to_bytes(2, "big")


def generic(rdata: bytes) -> str:
    """RFC 3597, section 5."""
    return f"\\# {len(rdata)} {rdata.hex()}".rstrip()


def encode_params(params):
    return b"".join(struct.pack("!HH", key, len(value)) + value
                    for key, value in sorted(params.items()))


NUMBER = {name: number for number, name in rrtypes.TYPES.items()}


def render(rrtype, rdata, klass=1, base=BASE, **more):
    """(text, anomaly) of rdata that stands at the end of a message."""
    wire = base + rdata
    return probe.render_rdata(wire, len(base), len(wire), NUMBER.get(rrtype, rrtype), klass, **more)


def dnspython(rrtype, rdata, base=BASE, klass=1):
    """dnspython's text in our normal form, without spaces in base64 and hex; None if it refuses."""
    wire = base + rdata
    try:
        parsed = dns.rdata.from_wire(klass, NUMBER[rrtype], wire, len(base), len(rdata))
        return parsed.to_text(chunksize=0)
    except (dns.exception.DNSException, ValueError):
        return None
