"""The plain traffic as a mirror port shows it: some over TCP, in fragments, tagged, tunnelled.

    python -m benchmarks.mixed --pairs 1000000 [--seed 1] [--out FILE]

The messages are those of `traffic`, in the same order of time; what carries them differs. Shares
are of messages:

    5 %   over TCP: SYN, SYN|ACK, ACK, queries, ACKs, replies, FINs. A connection in three carries
          two to four pairs, all asked before the first is answered (RFC 7766, section 6.2.1.1);
          half of the replies come in several segments, some cut within the two octets of length.
    1 %   large replies as two or three IP fragments (RFC 791, RFC 8200 section 4.5), one in eight
          with the last piece first
    10 %  behind an 802.1Q tag
    2 %   in VXLAN (RFC 7348)

How a pair travels follows from its number, so a query and its reply always travel alike.

Rules
- Nothing but the parameters and VERSION decides the file's bytes; see `traffic`.
- A query that is repeated over TCP is a segment sent again, and so no message more; a reply over
  TCP or in fragments is never duplicated. What the file holds is counted, not computed.
- A connection whose query is never answered ends with a RST after PATIENCE.
- All lengths and checksums are right, but for VXLAN's outer UDP checksum, which is zero as RFC 7348
  (section 5) has it.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import json
import random
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from benchmarks import traffic

VERSION = 1
TCP, FRAGMENTED = 0.05, 0.02  # of the pairs; of a fragmented pair only the reply is large
VLAN, VXLAN = 0.10, 0.02
PATIENCE = 5_000_000  # µs
JOINING = 1_000_000  # µs in which a connection takes further pairs
MTU = 1500
VXLAN_PORT = 4789

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16

Frame = tuple[int, int, bytes]


@dataclasses.dataclass(frozen=True)
class Parameters(traffic.Parameters):
    kind: ClassVar[str] = f"mixed-v{traffic.VERSION}.{VERSION}"


@dataclasses.dataclass
class Counts(traffic.Counts):
    """What the mixed file holds; all but the last four are messages."""

    tcp: int = 0
    fragmented: int = 0
    vlan: int = 0
    vxlan: int = 0
    connections: int = 0
    segments: int = 0  # frames
    pieces: int = 0  # frames
    resent: int = 0  # segments sent again with a query


def scramble(number: int) -> int:
    """64 well mixed bits of a number (the finalizer of splitmix64)."""
    number = (number * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    number = ((number ^ number >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    number = ((number ^ number >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return number ^ number >> 31


def ones(data: bytes) -> int:
    """The one's complement sum (RFC 1071) as one big number modulo 65535."""
    return (int.from_bytes(data, "big") << (8 * (len(data) & 1))) % 65535


def ip_packet(like: bytes, protocol: int, ident: int, body: bytes, *, offset: int = 0,
              more: bool = False, whole: bool = True) -> bytes:  # fmt: skip
    """Ethernet and an IP packet with the addresses of the frame `like`; a piece unless `whole`."""
    if like[12] == 8:
        words = 0x4000 if whole else (0x2000 if more else 0) | offset >> 3
        head = struct.pack(">HHHHBBH", 0x4500, 20 + len(body), ident & 65535, words, like[22],
                           protocol, 0) + like[26:34]  # fmt: skip
        check = 65535 - ones(head)
        return like[:14] + head[:10] + check.to_bytes(2, "big") + head[12:] + body
    if not whole:
        body = struct.pack(">BBHI", protocol, 0, offset | more, ident & 0xFFFFFFFF) + body
        protocol = 44
    return (like[:14] + struct.pack(">IHBB", 0x60000000, len(body), protocol, like[21])
            + like[22:54] + body)  # fmt: skip


def checked(like: bytes, protocol: int, body: bytes, at: int) -> bytes:
    """The UDP datagram or TCP segment with its checksum at octet `at`, where a zero stands."""
    addresses = like[26:34] if like[12] == 8 else like[22:54]
    total = 65535 - (ones(addresses) + protocol + len(body) + ones(body)) % 65535
    return body[:at] + total.to_bytes(2, "big") + body[at + 2 :]


def payload_of(frame: bytes) -> bytes:
    return frame[42:] if frame[12] == 8 else frame[62:]


def turned(frame: bytes) -> bytes:
    """The link and IP headers of the way back; only addresses and TTL of them are of use."""
    macs = frame[6:12] + frame[:6]
    if frame[12] == 8:
        return macs + frame[12:26] + frame[30:34] + frame[26:30]
    return macs + frame[12:22] + frame[38:54] + frame[22:38]


class Connection:
    """One TCP connection, from the client's SYN to its end; it makes the frames."""

    def __init__(self, pair: int, at: int, query: bytes) -> None:
        bits = scramble(~pair & 0xFFFFFFFF)
        self.pair = pair
        self.opened = at
        udp = 34 if query[12] == 8 else 54
        self.ports = query[udp : udp + 4]
        self.heads = (query, turned(query))
        self.wanted = 2 + bits % 3 if bits >> 8 & 255 < 85 else 1
        self.sequence = [bits >> 16 & 0xFFFFFFFF, bits >> 24 & 0xFFFFFFFF]
        self.clock = at
        self.ids: set[bytes] = set()
        self.sent: dict[int, bytes] = {}  # the segment of each pair's query, until its reply
        self.frames: list[tuple[int, bytes]] = []
        self._packets = bits >> 32
        self._segment(False, SYN, at=at)
        self._segment(True, SYN | ACK, at=at + 150)
        self._segment(False, ACK, at=at + 160)

    @property
    def key(self) -> bytes:
        head = self.heads[0]
        return self.ports + (head[26:34] if head[12] == 8 else head[22:54])

    def _segment(self, server: bool, flags: int, data: bytes = b"", at: int = 0) -> bytes:
        """Frames leave in order of time: a segment is never older than the one before."""
        self.clock = max(self.clock + 1, at)
        ports = self.ports[2:] + self.ports[:2] if server else self.ports
        acknowledged = self.sequence[not server] if flags & ACK else 0
        body = ports + struct.pack(">IIBBHHH", self.sequence[server], acknowledged, 0x50, flags,
                                   65535, 0, 0) + data  # fmt: skip
        used = len(data) + bool(flags & (SYN | FIN))
        self.sequence[server] = (self.sequence[server] + used) & 0xFFFFFFFF
        self._packets += 1
        head = self.heads[server]
        frame = ip_packet(head, 6, self._packets, checked(head, 6, body, 16))
        self.frames.append((self.clock, frame))
        return frame

    def ask(self, pair: int, at: int, dns: bytes) -> None:
        self.wanted -= 1
        self.ids.add(dns[:2])
        data = len(dns).to_bytes(2, "big") + dns
        self.sent[pair] = self._segment(False, PSH | ACK, data, at)
        self._segment(True, ACK, at=at + 60)

    def ask_again(self, pair: int, at: int) -> None:
        self.clock = max(self.clock + 1, at)
        self.frames.append((self.clock, self.sent[pair]))

    def answer(self, pair: int, at: int, dns: bytes) -> None:
        data = len(dns).to_bytes(2, "big") + dns
        bits = scramble(pair << 1)
        cuts = {bits >> 1 & 3, (bits >> 8) % len(data)} - {0} if bits & 1 else set()
        # Whatever else: no segment is larger than the path takes (40 octets of IPv6, 20 of TCP).
        places = sorted({*cuts, *range(MTU - 60, len(data), MTU - 60)})
        for start, end in zip([0, *places], [*places, len(data)], strict=True):
            self._segment(True, ACK if end < len(data) else PSH | ACK, data[start:end], at)
        self._segment(False, ACK, at=at + 30)
        del self.sent[pair]
        if not self.sent and self.wanted == 0:
            self.close(at + 100)

    def close(self, at: int) -> None:
        self.wanted = 0
        self._segment(False, FIN | ACK, at=at)
        self._segment(True, FIN | ACK, at=at + 40)
        self._segment(False, ACK, at=at + 80)

    def abandon(self, at: int) -> None:
        self.wanted = 0
        self.sent.clear()
        self._segment(False, RST | ACK, at=at)


class Mixer:
    """Frames of the plain traffic in, frames of the mixed traffic out."""

    def __init__(self, seed: int, counts: Counts) -> None:
        self.counts = counts
        self.fill = random.Random(f"mixed {seed}")
        self.ready: list[Frame] = []  # a heap, by time
        self.number = 0
        self.asked: dict[int, Connection] = {}  # by pair, until the reply
        self.open: dict[bytes, Connection] = {}  # in the order in which they were opened
        self.taking: dict[bool, Connection | None] = {False: None, True: None}

    def put(self, pair: int, at: int, frame: bytes, back: bool) -> None:
        """Store a frame under the tag or in the tunnel of its pair."""
        bits = scramble(pair)
        link, which = (bits & 0xFFFF) / 65536, bits >> 56
        if link < VLAN:
            tag = struct.pack(">HH", 0x8100, 100 + which % 10)
            frame = frame[:12] + tag + frame[12:]
        elif link < VLAN + VXLAN:
            frame = self._vxlan(frame, which, back)
        self.number += 1
        heapq.heappush(self.ready, (at, self.number, frame))

    def _vxlan(self, frame: bytes, which: int, back: bool) -> bytes:
        ends = [bytes((172, 16, 0, 1 + which % 4)), bytes((172, 16, 0, 101))]
        if back:
            ends.reverse()
        port = 0xC000 | scramble(int.from_bytes(frame[26:38], "big") & (1 << 64) - 1) & 0x3FFF
        vni = (5000 + which % 8) << 8
        body = struct.pack(">HHHHII", port, VXLAN_PORT, 16 + len(frame), 0, 0x08000000, vni) + frame
        like = (b"\x02\0\x5e\xff\xff\1\x02\0\x5e\xff\xff\2\x08\0" + bytes(8) + b"\x40" + bytes(3)
                + ends[0] + ends[1])  # fmt: skip
        return ip_packet(like, 17, self.number, body)

    def count_link(self, pair: int) -> None:
        """Of each message, what its frames are wrapped in."""
        link = (scramble(pair) & 0xFFFF) / 65536
        self.counts.vlan += link < VLAN
        self.counts.vxlan += VLAN <= link < VLAN + VXLAN

    def take(self, at: int, number: int, frame: bytes) -> None:
        """One frame of the plain traffic."""
        pair, role = number >> 2, number & 3
        draw = (scramble(pair) >> 16 & 0xFFFF) / 65536
        if role == 0 and draw < TCP:
            self._ask(pair, at, frame)
        elif role == 3 and draw < TCP + FRAGMENTED:
            self.counts.answers -= int.from_bytes(payload_of(frame)[6:8], "big")
        elif pair in self.asked:
            self._go_on(pair, role, at, payload_of(frame))
        else:
            self._count(pair, role)
            if role == 2 and TCP <= draw < TCP + FRAGMENTED:
                self._pieces(pair, at, number, frame)
            else:
                self.put(pair, at, frame, role > 1)

    def _count(self, pair: int, role: int) -> None:
        if role < 2:
            self.counts.queries += 1
            self.counts.repeated += role
        else:
            self.counts.replies += 1
            self.counts.duplicated += role & 1
        self.count_link(pair)

    def _ask(self, pair: int, at: int, frame: bytes) -> None:
        dns = payload_of(frame)
        ipv6 = frame[12] != 8
        found = self.taking[ipv6]
        if found and (not found.wanted or at - found.opened > JOINING or dns[:2] in found.ids):
            found = None
        if found is None:
            found = Connection(pair, at, frame)
            if found.key in self.open:  # its ports are in use: over UDP then
                self._count(pair, 0)
                self.put(pair, at, frame, False)
                return
            self.open[found.key] = found
            self.taking[ipv6] = found
            self.counts.connections += 1
        found.ask(pair, at, dns)
        self.asked[pair] = found
        self.counts.tcp += 1
        self._count(found.pair, 0)
        self._flush(found)

    def _go_on(self, pair: int, role: int, at: int, dns: bytes) -> None:
        found = self.asked[pair]
        if role == 1:
            found.ask_again(pair, at)
            self.counts.resent += 1
        else:
            found.answer(pair, at, dns)
            del self.asked[pair]
            self.counts.tcp += 1
            self._count(found.pair, 2)
            if not found.sent and not found.wanted:
                del self.open[found.key]
        self._flush(found)

    def _flush(self, found: Connection) -> None:
        for at, frame in found.frames:
            self.put(found.pair, at, frame, frame[:6] == found.heads[1][:6])
            self.counts.segments += 1
        found.frames.clear()

    def _pieces(self, pair: int, at: int, number: int, frame: bytes) -> None:
        """The reply made large, as a signed zone's or a long list of texts is, and cut up."""
        bits = scramble(pair ^ 0xF0F0)
        dns = bytearray(payload_of(frame))
        size = 1600 + bits % 2300
        records = 0
        while len(dns) < size:
            if records & 1:
                rtype, data = 16, bytes((200,)) + b"k=%0198x" % self.fill.getrandbits(792)
            else:  # an RRSIG over A, RSA with 2048 bits
                rtype = 46
                data = struct.pack(">HBBIIIHB", 1, 8, 2, 300, 1768435200, 1767139200, 4711, 0)
                data += self.fill.randbytes(256)
            dns += b"\xc0\x0c" + struct.pack(">HHIH", rtype, 1, 300, len(data)) + data
            records += 1
        dns[2] &= ~2 & 255  # no longer cut off
        dns[10:12] = (int.from_bytes(dns[10:12], "big") + records).to_bytes(2, "big")
        udp = 34 if frame[12] == 8 else 54
        body = frame[udp : udp + 4] + struct.pack(">HH", 8 + len(dns), 0) + bytes(dns)
        body = checked(frame, 17, body, 6)
        step = (MTU - udp + 14 - (0 if udp == 34 else 8)) & ~7
        pieces = [
            ip_packet(frame, 17, number, body[start : start + step], offset=start,
                      more=start + step < len(body), whole=False)
            for start in range(0, len(body), step)
        ]  # fmt: skip
        if bits >> 32 & 7 == 0:
            pieces.reverse()
        for after, piece in enumerate(pieces):
            self.put(pair, at + 3 * after, piece, True)
        self.counts.fragmented += 1
        self.counts.pieces += len(pieces)

    def expire(self, now: int) -> None:
        """End what has waited too long: connections whose replies are lost."""
        for found in list(self.open.values()):
            if found.opened > now - PATIENCE:
                break
            del self.open[found.key]
            for pair in list(found.sent):
                del self.asked[pair]
            if found.sent:
                found.abandon(now)
            else:
                found.close(now)
            self._flush(found)

    def until(self, now: int) -> list[Frame]:
        """All frames before this moment."""
        found = []
        while self.ready and self.ready[0][0] < now:
            found.append(heapq.heappop(self.ready))
        return found


def packets(parameters: Parameters, counts: Counts) -> Iterator[list[Frame]]:
    """The mixed traffic as blocks; see traffic.packets."""
    plain = traffic.Counts()
    mixer = Mixer(parameters.seed, counts)
    now = 0
    for block in traffic.packets(parameters, plain):
        for at, number, frame in block:
            mixer.take(at, number, frame)
        if block:
            now = block[-1][0]
            mixer.expire(now)
            yield mixer.until(now)
    mixer.expire(now + 2 * PATIENCE)
    yield mixer.until(now + 3 * PATIENCE)
    for name in ("pairs", "lost", "ipv6", "types", "rcodes"):
        setattr(counts, name, getattr(plain, name))
    counts.answers += plain.answers


def generate(parameters: Parameters, path: Path) -> Counts:
    counts = Counts()
    traffic.store(path, packets(parameters, counts), counts)
    return counts


def cached(parameters: Parameters, folder: Path = traffic.OUT) -> tuple[Path, Counts]:
    return traffic.cached(parameters, folder, generate, Counts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.mixed", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="the file to write (default: in bench-out/)")
    parser.add_argument("--pairs", type=int, default=Parameters.pairs)
    parser.add_argument("--seed", type=int, default=Parameters.seed)
    options = parser.parse_args()
    parameters = Parameters(pairs=options.pairs, seed=options.seed)
    counts = generate(parameters, options.out) if options.out else cached(parameters)[1]
    print(json.dumps(dataclasses.asdict(counts), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
