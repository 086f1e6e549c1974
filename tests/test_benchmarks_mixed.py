"""The benchmark's other traffic: what carries the messages of the mixed file, and the flood; read
by a reader that knows nothing of how they were made, and by tshark where it is installed."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import dns.flags
import dns.message
import pytest

from benchmarks import against, flood, jobs, measure, mixed, report, traffic
from tests.test_benchmarks import ROOT, SMALL, decode, ones_sum, packets

PLAIN = (1, "ca5e26e9dd4be62ffceb75800846db438f8f384b08bf75ac4eba19270203829a")
MIXED = mixed.Parameters(pairs=4_000, names=5_000, clients=300)


class Reader:
    """Frames to messages: tags, VXLAN, fragments and TCP, every length and checksum tested."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.messages: list[tuple[bytes, bytes, int, int, bytes]] = []
        self.pieces: dict[tuple[bytes, ...], dict[int, tuple[bytes, bool]]] = {}
        self.streams: dict[tuple[bytes, bytes, int, int], dict[str, object]] = {}

    def frame(self, frame: bytes) -> None:
        link = "plain"
        if frame[12:14] == b"\x81\0":
            link = "vlan"
            assert 100 <= struct.unpack_from(">H", frame, 14)[0] < 110
            frame = frame[:12] + frame[16:]
        self.ip(frame[12:14], frame[14:], link)

    def ip(self, kind: bytes, packet: bytes, link: str) -> None:
        whole, ident, more, offset = True, b"", False, 0
        if kind == b"\x08\0":
            assert packet[0] == 0x45
            assert struct.unpack_from(">H", packet, 2)[0] == len(packet)
            assert ones_sum(packet[:20]) == 0xFFFF
            source, target, protocol, body = packet[12:16], packet[16:20], packet[9], packet[20:]
            words = struct.unpack_from(">H", packet, 6)[0]
            more, offset, ident = bool(words & 0x2000), (words & 0x1FFF) * 8, packet[4:6]
        else:
            assert kind == b"\x86\xdd"
            assert struct.unpack_from(">H", packet, 4)[0] == len(packet) - 40
            source, target, protocol, body = packet[8:24], packet[24:40], packet[6], packet[40:]
            if protocol == 44:
                words = struct.unpack_from(">H", body, 2)[0]
                more, offset, ident = bool(words & 1), words & 0xFFF8, body[4:8]
                protocol, body = body[0], body[8:]
        if more or offset:
            assert len(packet) <= 1500
            assert not more or len(body) % 8 == 0
            self.seen["pieces"] += 1
            held = self.pieces.setdefault((source, target, ident), {})
            held[offset] = (body, more)
            data = b""
            while (piece := held.get(len(data))) is not None:
                data += piece[0]
                whole = not piece[1]
                if whole:
                    break
            if not whole or len(data) != sum(len(piece[0]) for piece in held.values()):
                return
            if max(held) != offset:
                self.seen["last piece first"] += 1
            del self.pieces[source, target, ident]
            self.seen[f"of {len(held)} pieces"] += 1
            self.seen["fragmented"] += 1
            body = data
        if protocol == 17:
            self.udp(source, target, body, link)
        else:
            assert protocol == 6
            self.tcp(source, target, body, link)

    def udp(self, source: bytes, target: bytes, body: bytes, link: str) -> None:
        ports = struct.unpack_from(">HHHH", body)
        assert ports[2] == len(body)
        if ports[1] == 4789:
            assert ports[3] == 0
            assert body[8:12] == b"\x08\0\0\0"
            inner = body[16:]
            self.ip(inner[12:14], inner[14:], "vxlan")
            return
        pseudo = source + target + struct.pack(">HH", 17, len(body))
        assert ones_sum(pseudo + body) == 0xFFFF
        self.message(source, target, *ports[:2], body[8:], link, "udp")

    def tcp(self, source: bytes, target: bytes, body: bytes, link: str) -> None:
        """Segments come in order; what is sent again stands before what is expected."""
        assert ones_sum(source + target + struct.pack(">HH", 6, len(body)) + body) == 0xFFFF
        sport, dport, seq, ack, size, flags = struct.unpack_from(">HHIIBB", body)
        assert size == 0x50
        self.seen["segments"] += 1
        data = body[20:]
        key = (source, target, sport, dport)
        back = self.streams.get((target, source, dport, sport))
        if flags & 2:
            assert not data
            self.seen["connections"] += not flags & 16
            self.streams[key] = {"next": seq + 1 & 0xFFFFFFFF, "data": b"", "link": link}
        stream = self.streams[key]
        if not flags & 2 and seq != stream["next"]:
            self.seen["resent"] += 1
            return
        if flags & 16:
            assert back is not None
            assert ack == back["next"]
        if flags & 2:
            return
        stream["next"] = seq + len(data) + bool(flags & 1) & 0xFFFFFFFF
        stream["data"] += data
        self.seen["resets"] += bool(flags & 4)
        if len(data) == 1 or (data and len(stream["data"]) == 1):
            self.seen["cut in the length"] += 1
        found = 0
        while len(stream["data"]) >= 2:
            end = 2 + int.from_bytes(stream["data"][:2], "big")
            if len(stream["data"]) < end:
                break
            found += 1
            self.message(source, target, sport, dport, stream["data"][2:end], link, "tcp")
            stream["data"] = stream["data"][end:]
        self.seen["segment within a message"] += bool(data) and not found

    def message(self, source, target, sport, dport, wire, link, transport) -> None:
        self.seen[link] += 1
        self.seen[transport] += 1
        self.messages.append((source, target, sport, dport, wire))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, mixed.Counts]:
    path = tmp_path_factory.mktemp("mixed") / "mixed.pcap"
    return path, mixed.generate(MIXED, path)


@pytest.fixture(scope="module")
def read(mixture: tuple[Path, mixed.Counts]) -> Reader:
    reader = Reader()
    last = 0
    for at, frame in packets(mixture[0].read_bytes()):
        assert at >= last
        last = at
        reader.frame(frame)
    assert not reader.pieces
    assert not any(stream["data"] for stream in reader.streams.values())
    return reader


def test_the_plain_file_is_what_it_always_was(tmp_path: Path) -> None:
    """Figures of different days are compared: whoever changes these bytes changes VERSION."""
    traffic.generate(SMALL, tmp_path / "x")
    assert (traffic.VERSION, hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()) == PLAIN


def test_mixed_and_flood_are_the_same_each_time(
    mixture: tuple[Path, mixed.Counts], tmp_path: Path
) -> None:
    assert mixed.cached(MIXED, tmp_path) == (tmp_path / MIXED.file_name(), mixture[1])
    made = (tmp_path / MIXED.file_name()).read_bytes()
    assert made == mixture[0].read_bytes()
    again = mixed.cached(MIXED, tmp_path)[1]  # now from the file
    assert isinstance(again, mixed.Counts)
    assert again == mixture[1]
    few = flood.Parameters(forged=300, pairs=10)
    for name in ("a", "b"):
        flood.generate(few, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_mixed_file_holds_what_its_counts_say(
    mixture: tuple[Path, mixed.Counts], read: Reader
) -> None:
    counts, seen = mixture[1], read.seen
    for name in ("tcp", "fragmented", "vlan", "vxlan", "connections", "segments", "pieces",
                 "resent"):  # fmt: skip
        assert seen[name] == getattr(counts, name), name
    assert len(read.messages) == counts.messages == counts.queries + counts.replies
    waiting: set[tuple[object, ...]] = set()
    answered: set[tuple[object, ...]] = set()
    found: Counter[str] = Counter()
    for source, target, sport, dport, wire in read.messages:
        message = dns.message.from_wire(wire)
        asked = (message.id, message.question[0].name, message.question[0].rdtype)
        if not message.flags & dns.flags.QR:
            key = (source, sport, target, dport, *asked)
            found["repeated" if key in waiting else "queries"] += 1
            waiting.add(key)
            continue
        found["answers"] += sum(len(rrset) for rrset in message.answer)
        key = (target, dport, source, sport, *asked)
        if key in answered:
            found["duplicated"] += 1
            continue
        waiting.remove(key)
        answered.add(key)
    assert (found["queries"], found["repeated"]) == (counts.pairs, counts.repeated)
    assert (len(answered), len(waiting)) == (counts.success, counts.lost)
    assert found["duplicated"] == counts.duplicated
    assert found["answers"] == counts.answers


def test_mixed_file_is_the_mixture_that_was_asked_for(
    mixture: tuple[Path, mixed.Counts], read: Reader
) -> None:
    counts, seen = mixture[1], read.seen
    for name, share in (("tcp", 0.05), ("fragmented", 0.01), ("vlan", 0.10), ("vxlan", 0.02)):
        assert 0.7 * share < seen[name] / counts.messages < 1.4 * share, name
    assert seen["of 2 pieces"] > 5
    assert seen["of 3 pieces"] > 5
    assert seen["last piece first"] > 0
    assert seen["resets"] > 0
    assert seen["cut in the length"] > 5
    assert seen["segment within a message"] > 20
    assert seen["tcp"] / counts.connections > 2.5  # several pairs on some


@pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")
def test_tshark_reads_every_message_of_the_mixed_file(mixture: tuple[Path, mixed.Counts]) -> None:
    path, counts = mixture
    command = ["tshark", "-r", path, *(f"-o{layer}.check_checksum:TRUE"
                                       for layer in ("ip", "udp", "tcp"))]  # fmt: skip

    def fields(shown: str, *names: str) -> list[str]:
        named = [word for name in names for word in ("-e", name)]
        done = subprocess.run([*command, "-Y", shown, "-T", "fields", *named], check=True,
                              capture_output=True, text=True)  # fmt: skip
        return done.stdout.split("\n")[:-1]

    kinds = Counter(
        "1" if value in ("1", "True") else "0"
        for row in fields("dns", "dns.flags.response") for value in re.split("[,\t]", row)
    )  # fmt: skip
    assert kinds == {"0": counts.queries, "1": counts.replies}
    bad = "_ws.malformed || " + " || ".join(
        f"{layer}.checksum.status == 0" for layer in ("ip", "udp", "tcp"))
    assert fields(f"{bad} || ip.fragment.error || tcp.analysis.lost_segment", "frame.number") == []
    assert len(fields("tcp.analysis.retransmission", "frame.number")) == counts.resent


def test_a_flood_is_random_queries_with_real_pairs_inside(tmp_path: Path) -> None:
    parameters = flood.Parameters(forged=10_000, pairs=100)
    counts = flood.generate(parameters, tmp_path / "flood.pcap")
    forged, real, times = set(), {}, []
    for at, frame in packets((tmp_path / "flood.pcap").read_bytes()):
        source, target, sport, dport, wire = decode(frame)
        message = dns.message.from_wire(wire)
        times.append(at)
        if message.flags & dns.flags.QR:
            assert at - real.pop((target, dport, source, message.id)) < 1_000_000
        elif source[0] == 10 or len(source) == 16:
            real[source, sport, target, message.id] = at
        else:
            forged.add((source, sport, target, dport, message.id, message.question[0].name))
    assert times == sorted(times)
    assert not real
    assert len(forged) == parameters.forged
    assert len({key[0] for key in forged}) > 0.99 * len(forged)
    assert counts.messages == len(times) == 10_200
    assert (counts.success, counts.no_reply) == (100, 10_000)
    # A reply comes before the table of a sensor with two workers has been filled since its query.
    assert flood.RATE < flood.MAX_PENDING / 2


def test_the_flood_is_run_with_a_table_that_it_fills(tmp_path: Path) -> None:
    assert flood.Parameters().forged > flood.MAX_PENDING
    commands = jobs.Commands("dns-gazer", f"{sys.executable} -m gazer", tmp_path)
    line = commands.of(jobs.FLOOD_JOBS[0], "x", "/dev/null", pending=flood.MAX_PENDING)
    config = Path(line[line.index("-c") + 1])
    assert f"max_pending: {flood.MAX_PENDING}" in config.read_text()
    done = subprocess.run([sys.executable, "-m", "gazer", "check", "-c", config, "-r", __file__],
                          cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert commands.of(jobs.FLOOD_JOBS[0], "x", "-", pending=7) != commands.of(
        jobs.FLOOD_JOBS[0], "x", "-", pending=8)  # fmt: skip


# What a tree needs to be compared: a `gazer.compat`, `benchmarks.loops`, something built.
TREE = {
    "gazer/__init__.py": "",
    "gazer/ring.cpython-311.so": "",
    "gazer/compat.py": "def main():\n    x = sum(range({work}))\n    return 0\n",
    "benchmarks/__init__.py": "",
    "benchmarks/loops.py": "print('9 messages; CPU us a message: dispatch {us}, engine 0.500, "
                           "merge 0.100')\n",
}


def tree(path: Path, **values: object) -> Path:
    for name, text in TREE.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.format(**values))
    return path


def test_two_trees_are_compared_each_with_its_own_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(against, "HERE", tree(tmp_path / "here", work=4_000_000, us="1.000"))
    monkeypatch.setattr(against, "LOOP_PAIRS", 50)
    other = tree(tmp_path / "there", work=10, us="0.200")
    path, counts = traffic.cached(dataclasses.replace(SMALL, pairs=50), tmp_path)
    found = against.Against(other, path, counts.messages, lambda text: None)
    found.turn()
    found.turn()
    rows = dict(found.rows())
    assert len(rows) == 4
    assert rows["loops, classic"].turns == [(pytest.approx(1.6), pytest.approx(0.8))] * 2
    assert rows["loops, full"].ratio == pytest.approx(2.0)
    assert all(here > 1.5 * there for here, there in rows["pipeline, classic text, 1 worker"].turns)
    assert found.as_json()["loops, full"]["ratio"] == pytest.approx(2.0)
    with pytest.raises(measure.Failed, match="make build"):
        against.Against(tmp_path, path, 1, lambda text: None)


def test_ratios_are_of_messages_not_of_files() -> None:
    plain = jobs.Series(1000, [measure.Run(cpu=1.0), measure.Run(cpu=2.0)])
    other = jobs.Series(500, [measure.Run(cpu=0.6), measure.Run(cpu=1.2)])
    assert jobs.Bench.per_message(other, plain) == pytest.approx(1.2)


def test_the_report_names_the_mixture() -> None:
    counts = mixed.Counts(queries=600, replies=400, tcp=50, vlan=100, frames=1500)
    said = report._mixture("x.pcap", counts)
    assert "1,000 messages in 1,500 frames" in said
    assert "5.0 % over TCP" in said
    assert "10.0 % tagged" in said
