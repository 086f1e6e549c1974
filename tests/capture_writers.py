"""Writers of pcap and pcapng for tests: struct and nothing else, so that a test can also write what
no tool would."""

import struct

NANO = 1_000_000_000


def pcap(
    records, order="<", nano=False, linktype=1, snaplen=65535, version=(2, 4), patched=False
):
    """records: (seconds, fraction, data) or (seconds, fraction, data, length)."""
    magic = 0xA1B2CD34 if patched else 0xA1B23C4D if nano else 0xA1B2C3D4
    out = [struct.pack(order + "IHHiIII", magic, *version, 0, 0, snaplen, linktype)]
    for seconds, fraction, data, *length in records:
        out.append(
            struct.pack(
                order + "IIII", seconds, fraction, len(data), length[0] if length else len(data)
            )
        )
        if patched:
            out.append(bytes(8))
        out.append(data)
    return b"".join(out)


def pad(data):
    return data + bytes(-len(data) % 4)


def option(order, code, value):
    return struct.pack(order + "HH", code, len(value)) + pad(value)


def block(order, kind, body, length=None, trailer=None):
    total = len(body) + 12 if length is None else length
    return (
        struct.pack(order + "II", kind, total)
        + body
        + struct.pack(order + "I", total if trailer is None else trailer)
    )


def section(order="<", version=(1, 0), options=b"", byte_order=0x1A2B3C4D):
    return block(
        order, 0x0A0D0D0A, struct.pack(order + "IHHq", byte_order, *version, -1) + options
    )


def interface(order="<", linktype=1, snaplen=0, tsresol=None, tsoffset=None, options=b""):
    if tsresol is not None:
        options += option(order, 9, bytes([tsresol]))
    if tsoffset is not None:
        options += option(order, 14, struct.pack(order + "q", tsoffset))
    if options:
        options += option(order, 0, b"")
    return block(order, 1, struct.pack(order + "HHI", linktype, 0, snaplen) + options)


def enhanced(data, units=0, order="<", id=0, length=None, caplen=None, options=b""):
    fields = struct.pack(
        order + "IIIII",
        id,
        units >> 32,
        units & 0xFFFFFFFF,
        len(data) if caplen is None else caplen,
        len(data) if length is None else length,
    )
    return block(order, 6, fields + pad(data) + options)


def simple(data, length=None, order="<"):
    length = len(data) if length is None else length
    return block(order, 3, struct.pack(order + "I", length) + pad(data))


def obsolete(data, units=0, order="<", id=0, length=None):
    fields = struct.pack(
        order + "HHIIII",
        id,
        7,
        units >> 32,
        units & 0xFFFFFFFF,
        len(data),
        len(data) if length is None else length,
    )
    return block(order, 2, fields + pad(data))
