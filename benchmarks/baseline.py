"""The same job as a Python programmer would write it: dnslib, a dict and json, in one process.

    python -m benchmarks.baseline FILE [--messages 40000] [--out /dev/null]

Reads the capture with struct, parses each message with dnslib, matches replies with queries in a
dict and writes one line of JSON for each transaction. It is what the sensor's figures stand
beside, so it is written plainly and well, not slowly: no work is done twice.
"""

from __future__ import annotations

import argparse
import datetime
import json
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from dnslib import QTYPE, DNSRecord
from dnslib.dns import DNSError


def frames(path: Path) -> Iterator[tuple[float, bytes]]:
    """The frames of a classic capture file with microseconds, either byte order."""
    with open(path, "rb") as file:
        magic = file.read(24)[:4]
        order = {b"\xd4\xc3\xb2\xa1": "<", b"\xa1\xb2\xc3\xd4": ">"}.get(magic)
        if order is None:
            raise SystemExit(f"{path}: not a classic capture file with microseconds")
        head = struct.Struct(order + "IIII")
        while len(packet := file.read(16)) == 16:
            seconds, micros, size, _ = head.unpack(packet)
            yield seconds + micros / 1e6, file.read(size)


def datagram(frame: bytes) -> tuple[str, str, int, int, bytes] | None:
    """Source, target, their ports and the payload of a UDP datagram over Ethernet."""
    kind = frame[12:14]
    if kind == b"\x08\0" and frame[23] == 17:
        at = 14 + (frame[14] & 15) * 4
        source, target = socket.inet_ntoa(frame[26:30]), socket.inet_ntoa(frame[30:34])
    elif kind == b"\x86\xdd" and frame[20] == 17:
        at = 54
        source = socket.inet_ntop(socket.AF_INET6, frame[22:38])
        target = socket.inet_ntop(socket.AF_INET6, frame[38:54])
    else:
        return None
    source_port, target_port = struct.unpack_from(">HH", frame, at)
    return source, target, source_port, target_port, frame[at + 8 :]


def entries(message: DNSRecord) -> list[dict[str, str]]:
    """Every question and record of the message."""
    found = [
        {"name": str(question.qname), "section": "question", "type": QTYPE.get(question.qtype)}
        for question in message.questions
    ]
    sections = (("answer", message.rr), ("authority", message.auth), ("additional", message.ar))
    for section, records in sections:
        for record in records:
            found.append(
                {
                    "data": "" if record.rtype == QTYPE.OPT else str(record.rdata),
                    "name": str(record.rname),
                    "section": section,
                    "type": QTYPE.get(record.rtype),
                }
            )
    return found


def line(event: dict[str, Any], at: float) -> str:
    moment = datetime.datetime.fromtimestamp(int(at), datetime.UTC)
    return f"{moment.isoformat()}\tdns-gazer.dns.tx\t{json.dumps(event, sort_keys=True)}\n"


def run(path: Path, limit: int, out: TextIO) -> dict[str, int]:
    """Process at most `limit` messages (0: all); what was found."""
    waiting: dict[tuple[Any, ...], dict[str, Any]] = {}
    counts = {"messages": 0, "success": 0, "no_reply": 0, "no_query": 0, "repeated": 0, "bad": 0}
    # The second of two equal replies: the key of what was answered, until it is asked again.
    answered: set[tuple[Any, ...]] = set()
    counts["duplicated"] = 0
    for at, frame in frames(path):
        if limit and counts["messages"] >= limit:
            break
        packet = datagram(frame)
        if packet is None:
            continue
        source, target, source_port, target_port, payload = packet
        counts["messages"] += 1
        try:
            message = DNSRecord.parse(payload)
        except (DNSError, ValueError, struct.error, IndexError):
            counts["bad"] += 1
            continue
        question = message.questions[0] if message.questions else None
        asked = (str(question.qname).lower(), question.qtype) if question else None
        ident = message.header.id
        if not message.header.qr:
            key = (source, source_port, target, target_port, ident, asked)
            if key in waiting:
                counts["repeated"] += 1
                continue
            answered.discard(key)
            waiting[key] = {
                "client_addr": source,
                "client_port": source_port,
                "query": entries(message),
                "query_ts": at,
                "server_addr": target,
                "server_port": target_port,
                "tx_id": ident,
            }
            continue
        key = (target, target_port, source, source_port, ident, asked)
        event = waiting.pop(key, None)
        if event is None:
            counts["duplicated" if key in answered else "no_query"] += 1
            continue
        answered.add(key)
        event |= {"reply": entries(message), "reply_ts": at, "status": "success"}
        counts["success"] += 1
        out.write(line(event, at))
    for event in waiting.values():
        event["status"] = "no_reply"
        counts["no_reply"] += 1
        out.write(line(event, event["query_ts"]))
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.baseline", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--messages", type=int, default=40_000, help="stop after so many; 0: all")
    parser.add_argument("--out", default="/dev/null")
    options = parser.parse_args()
    with open(options.out, "w") as out:
        wall, cpu = time.perf_counter(), time.process_time()
        counts = run(options.file, options.messages, out)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    # Without the interpreter's start and imports: a slice would charge them to few messages.
    print(json.dumps(counts | {"wall": wall, "cpu": cpu}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
