"""Recorded TCP conversations, put together by gazer and by tshark."""

from __future__ import annotations

import ipaddress
import random
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from gazer.workers import stream_door
from tests.stream_model import Segment

CAPTURES = Path(__file__).parent / "captures"
FILES = ("tcp", "transfers", "lossy", "vlan")
FIELDS = ("frame.number", "tcp.stream", "ip.src", "ip.dst", "ipv6.src", "ipv6.dst", "tcp.srcport",
          "tcp.dstport", "tcp.seq_raw", "tcp.ack_raw", "tcp.flags", "tcp.payload", "vlan.id")

pytestmark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")


def tshark(name: str, *arguments: str) -> str:
    return subprocess.run(["tshark", "-n", "-r", str(CAPTURES / f"{name}.pcap"), *arguments],
                          capture_output=True, check=True, timeout=60, text=True).stdout


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


@cache
def segments(name: str) -> list[tuple[int, Segment]]:
    """(tshark's number of the conversation, segment) of each TCP frame."""
    table = tshark(name, "-Y", "tcp && !icmp && !icmpv6", "-T", "fields",
                   *(a for f in FIELDS for a in ("-e", f)))
    found = []
    for line in table.splitlines():
        row = dict(zip(FIELDS, line.split("\t"), strict=True))
        scope = b"".join(int(v).to_bytes(2, "big") for v in row["vlan.id"].split(",") if v)
        found.append((int(row["tcp.stream"]), Segment(
            (packed(row["ip.src"] or row["ipv6.src"]), int(row["tcp.srcport"])),
            (packed(row["ip.dst"] or row["ipv6.dst"]), int(row["tcp.dstport"])),
            int(row["tcp.seq_raw"]), bytes.fromhex(row["tcp.payload"]), int(row["tcp.flags"], 16),
            int(row["tcp.ack_raw"] or 0), 0, scope, int(row["frame.number"]))))
    return found


@cache
def conversations(name: str) -> dict[int, tuple[list[bytes], list[bytes]]]:
    """For each conversation what its two ends sent, cut into messages: tshark's reassembly."""
    numbers = sorted({n for n, _ in segments(name)})
    text = tshark(name, "-q", *(a for n in numbers for a in ("-z", f"follow,tcp,raw,{n}")))
    found = {}
    for part in text.split("Follow: tcp,raw")[1:]:
        octets = (bytearray(), bytearray())
        number = None
        for line in part.splitlines():
            if line.startswith("Filter:"):
                number = int(line.split()[-1])
            elif line.strip() and all(c in "0123456789abcdef" for c in line.strip()):
                octets[line.startswith("\t")].extend(bytes.fromhex(line.strip()))
        found[number] = tuple(cut(bytes(o)) for o in octets)
    return found


def cut(octets: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(octets):
        n = int.from_bytes(octets[at:at + 2], "big")
        found.append(octets[at + 2:at + 2 + n])
        at += 2 + n
    assert at == len(octets)
    return found


def ports(name: str) -> dict[tuple, int]:
    """The conversation of two ends, for those whose ends occur once."""
    return {frozenset((s.source, s.destination)): n for n, s in segments(name)}


@pytest.mark.parametrize("name, at_least", [
    ("tcp", 60), ("transfers", 12), ("lossy", 0), ("vlan", 4)])
def test_the_same_messages_as_tshark(name, at_least):
    door = stream_door.Connections()
    theirs = conversations(name)
    known = ports(name)
    ours = {number: ([], []) for number in theirs}
    for clock, (number, s) in enumerate(segments(name)):
        first = next(x for n, x in segments(name) if n == number)
        for item in door.feed(s, clock):
            if item["what"] == "message":
                assert known[frozenset((item["source"], item["destination"]))] == number
                ours[number][item["source"] != first.source].append(item["wire"])
    door.finish()
    assert ours == {n: tuple(map(list, both)) for n, both in theirs.items()}
    assert sum(len(a) + len(b) for a, b in ours.values()) >= at_least
    counts = door.counts
    assert counts["opened"] == len(theirs) and counts["gaps"] == counts["resyncs"] == 0
    assert counts["octets_skipped"] == counts["broken_messages"] == 0


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", ["tcp", "transfers"])
def test_torn_captures_bring_nothing_false(name, seed):
    """Segments lost, swapped and repeated; capture that starts anywhere."""
    dice = random.Random(seed)
    true = {m for both in conversations(name).values() for one in both for m in one}
    kept = [s for _, s in segments(name)][dice.choice([0, 0, 0, 9, 40]):]
    kept = [s for s in kept if dice.random() > dice.choice([0, 0.05, 0.3])]
    for _ in range(len(kept) // 5):
        i = dice.randrange(len(kept))
        j = max(0, min(len(kept) - 1, i + dice.randrange(-3, 4)))
        kept[i], kept[j] = kept[j], kept[i]
        if dice.random() < 0.2:
            kept.insert(j, kept[i])
    door = stream_door.Connections()
    messages = []
    for clock, s in enumerate(kept):
        messages += [i["wire"] for i in door.feed(s, clock) if i["what"] == "message"]
        door.check()
    messages += [i["wire"] for i in door.finish() if i["what"] == "message"]
    assert len(messages) > len(true) // 10
    assert set(messages) <= true
