"""Cases of hostile input, how they are run and what is asked of all of them; see __init__.

    CASES = [case("a pointer to itself", query(b"\\xc0\\x0c"), "unreadable pointer_loop")]

The words (one for each frame, in `Case.counted`):

    ok                  a message in which nothing is wrong
    malformed REASON    a message that makes an event, and what its `malformed` says
    malformed           the same, the reason being what the events say (see `says`)
    unreadable REASON   a message without an event
    segment             a TCP segment; the messages in it are named by `messages`
    fragment REASON     a piece of an IP datagram: joined, bad, overlapping, ...; the frame that
                        makes a datagram whole has the word of what the datagram is
    FATE                another frame that does not get as far as a worker
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import pytest
import yaml

from tests.conftest import Live, Runner, eventually
from tests.oracle import build

START = 1_767_225_600 * 10**9       # the first second of 2026
STEP = 10_000                       # ns between two frames, if a case says nothing else
SERVER = "192.0.2.53"
PORT = 4000
GOOD = 0x600D                       # the id of good pairs

TX = ".tx"                          # how the tags of transactions end
Event = dict[str, Any]
Frames = Iterable["bytes | tuple[int, bytes] | tuple[int, bytes, int]"]

# ------------------------------------------------------------------------------------- messages

WWW = build.labels("www", "example")        # 13 octets: what follows its question is at 29
AT_RECORDS = 29


def query(name: bytes = WWW, rest: bytes = b"", *, qtype: int = 1, ident: int = 7,
          counts: Sequence[int] = (1, 0, 0, 0), flags: int = 0x0100) -> bytes:
    return build.header(ident, flags, counts) + build.question(name, qtype) + rest


def reply(*records: bytes, question: bytes = WWW, ident: int = 7, qtype: int = 1,
          counts: Sequence[int] | None = None, flags: int = 0x8180) -> bytes:
    """A reply with these records as its answers, unless `counts` says something else."""
    return query(question, b"".join(records), qtype=qtype, ident=ident, flags=flags,
                 counts=counts or (1, len(records), 0, 0))


A = build.record(b"\xc0\x0c", 1, bytes((192, 0, 2, 80)))


# ---------------------------------------------------------------------------------------- cases


class Place:
    """Where a case happens: a client of its own, and what it sends."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.client = f"10.66.{number >> 8}.{number & 255}"
        self.good_name = f"good{number}.example."
        self.good_data = f"198.18.{number >> 8}.{number & 255}"

    def ask(self, wire: bytes, *, port: int = PORT, server: str = SERVER, to: int = 53) -> bytes:
        return build.frame(build.udp(self.client, port, server, to, wire))

    def answer(self, wire: bytes, *, port: int = PORT, server: str = SERVER,
               of: int = 53) -> bytes:
        return build.frame(build.udp(server, of, self.client, port, wire))

    def send(self, wire: bytes) -> bytes:
        """A message in the direction that its QR bit says."""
        return self.answer(wire) if wire[2:3] >= b"\x80" else self.ask(wire)

    def good(self) -> list[bytes]:
        asked = build.query(self.good_name, id=GOOD)
        answered = build.reply(asked, f"{self.good_name} 60 IN A {self.good_data}")
        return [self.ask(asked), self.answer(answered)]

    def stream(self, port: int = PORT, server: str = SERVER) -> Stream:
        return Stream(self.client, port, server)


class Stream:
    """A TCP connection from the outside: each call makes one segment and keeps the numbers."""

    def __init__(self, client: str, port: int, server: str, *, first: int = 1000,
                 answering: int = 5000) -> None:
        self.ends = (client, port, server, 53)
        self.next = [first, answering]      # sequence numbers of client and server

    def segment(self, server: bool, data: bytes = b"", *, flags: int = 0x18,
                seq: int | None = None, ack: int | None = None) -> bytes:
        a, b, c, d = self.ends
        src = (c, d, a, b) if server else self.ends
        at = self.next[server] if seq is None else seq
        if seq is None:
            self.next[server] = (at + len(data) + bool(flags & 3)) & 0xFFFFFFFF
        acknowledged = self.next[not server] if ack is None else ack
        return build.frame(build.tcp(*src, data, seq=at & 0xFFFFFFFF, flags=flags,
                                     ack=acknowledged if flags & 16 else 0))

    def open(self) -> list[bytes]:
        return [self.segment(False, flags=2), self.segment(True, flags=18),
                self.segment(False, flags=16)]

    def ask(self, *wires: bytes) -> bytes:
        return self.segment(False, b"".join(framed(wire) for wire in wires))

    def answer(self, *wires: bytes) -> bytes:
        return self.segment(True, b"".join(framed(wire) for wire in wires))

    def close(self) -> list[bytes]:
        return [self.segment(False, flags=17), self.segment(True, flags=17),
                self.segment(False, flags=16)]


def framed(wire: bytes) -> bytes:
    return struct.pack("!H", len(wire)) + wire


@dataclass(frozen=True)
class Case:
    name: str
    # Each is octets, or (ns since the one before, octets), or that and its length on the wire.
    frames: Callable[[Place], Frames]
    counted: Sequence[str]
    says: Callable[[list[Event]], None] | None = None
    messages: Sequence[str] = ()            # of segments: the word of each message put together
    tcp: bool = False                       # the good pair comes over TCP as well

    def __str__(self) -> str:
        return self.name


def case(name: str, wire: bytes, word: str,
         says: Callable[[list[Event]], None] | None = None) -> Case:
    """One message over UDP, in the direction that its QR bit says."""
    return Case(name, lambda place: [place.send(wire)], [word], says)


def shows(**fields: Any) -> Callable[[list[Event]], None]:
    """One transaction, with these fields."""
    def check(events: list[Event]) -> None:
        assert len(events) == 1, events
        assert {key: events[0].get(key) for key in fields} == fields

    return check


def names(*expected: str, of: str = "query") -> Callable[[list[Event]], None]:
    """One transaction, with these owner names in its query or reply."""
    def check(events: list[Event]) -> None:
        assert len(events) == 1, events
        assert [record["name"] for record in events[0][of]] == list(expected)

    return check


def statuses(*expected: str) -> Callable[[list[Event]], None]:
    """The statuses of the transactions, in order of their events."""
    def check(events: list[Event]) -> None:
        assert [event["status"] for event in events] == list(expected)

    return check


def then(*checks: Callable[[list[Event]], None]) -> Callable[[list[Event]], None]:
    """All of these."""
    def check(events: list[Event]) -> None:
        for one in checks:
            one(events)

    return check


# ----------------------------------------------------------------------------------------- runs

_GROUP = re.compile(r"([a-z ]*)\(((?:[a-z_]+ \d+(?:, )?)+)\)")
_PIECES = re.compile(r"fragments?: (\d+) joined \(\d+ datagrams? put together\)((?:, \d+ [a-z]+)*)")


def figures(stderr: str) -> Counter[str]:
    """The summary's figures, under the words that the cases use; and what they must add up to."""
    found: Counter[str] = Counter()
    for before, group in _GROUP.findall(stderr):
        kind = re.search(r"(unreadable|malformed) $", before)
        for reason in group.split(", "):
            name, number = reason.split()
            found[f"{kind[1]} {name}" if kind else name] += int(number)
    pieces = _PIECES.search(stderr)
    if pieces:
        found["fragment joined"] = int(pieces[1])
        for piece in pieces[2].split(", ")[1:]:
            number, name = piece.split()
            found[f"fragment {name}"] = int(number)
    for word, pattern in {"frames": r"(\d+) frames? read:", "DNS": r"read: (\d+) DNS",
                          "segment": r"(\d+) TCP segments?: \d+ message",
                          "messages": r"gazer: (\d+) messages?:"}.items():
        number = re.search(pattern, stderr)
        found[word] = int(number[1]) if number else 0
    return found


def counter_of(word: str) -> str:
    """Where the summary has a word: DNS is what workers got."""
    kind = word.split()[0]
    if kind in ("ok", "malformed", "unreadable", "segment"):
        return "DNS"
    return kind


@contextlib.contextmanager
def watched(pid: int) -> Iterator[dict[str, int]]:
    """The most private memory, in bytes, that each child of a process was seen with."""
    peaks: dict[str, int] = {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                for child in children:
                    with contextlib.suppress(OSError):
                        status = Path(f"/proc/{child}/status").read_text()
                        name = re.search(r"^Name:\s+(gazer:\S+)", status)
                        anonymous = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
                        if name and anonymous:
                            used = 1024 * int(anonymous[1])
                            peaks[name[1]] = max(used, peaks.get(name[1], 0))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join()


def same(one: Any, other: Any) -> bool:
    """Equal, but for the last digit of a time in centuries to come: JSON has six decimals, and
    msgpack what a double can hold of them."""
    if one == other:
        return True
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return isinstance(one, float) and one > 2**32 and abs(one - other) < 4e-6


def configured(folder: Path, config: dict[str, Any]) -> Path:
    """A configuration file: two workers, all detail, both formats; and these keys."""
    outputs = [{"type": "text", "format": "json", "path": str(folder / "out.json")},
               {"type": "msgpack", "path": str(folder / "out.msgpack")}]
    path = folder / "sensor.yaml"
    path.write_text(yaml.safe_dump({
        "workers": 2, "events": {"detail": "full", "records": True}, **config,
        "outputs": outputs}))
    return path


def seen(live: Live, peaks: dict[str, int]) -> None:
    """Let a run whose last input is standard input end once each process has been looked at: over
    small files they may have come and gone between two looks."""
    parts = {"gazer:capture", "gazer:worker0", "gazer:worker1", "gazer:sink"}
    eventually(lambda: peaks.keys() >= parts, 30.0)
    live.process.stdin.write(build.pcap([]))
    live.process.stdin.close()
    live.process.stdin = None


def at_rest(folder: Path, config: dict[str, Any]) -> dict[str, int]:
    """The private memory of the processes while nothing comes."""
    runner = Runner(folder)
    try:
        live = runner.start("run", "-c", configured(folder, config), "-r", "-", command="gazer",
                            stdin=subprocess.PIPE)
        with watched(live.pid) as peaks:
            seen(live, peaks)
            assert live.wait().code == 0
        return peaks
    finally:
        runner.end()


class Ran:
    """A capture with all cases of a file, and what came of it."""

    def __init__(self, folder: Path, cases: Sequence[Case], config: dict[str, Any],
                 seconds: float) -> None:
        assert len({one.name for one in cases}) == len(cases), "two cases of one name"
        self.cases = {one.name: (Place(i), one) for i, one in enumerate(cases)}
        self.counted: Counter[str] = Counter()
        self.frames = self.in_streams = 0     # frames; messages put together from segments
        entries: list[Any] = []
        now = START
        for place, one in self.cases.values():
            frames = list(one.frames(place))
            assert len(frames) == len(one.counted), f"{one.name}: a word for each frame"
            self.counted.update([*one.counted, *one.messages])
            self.in_streams += len(one.messages) + (2 if one.tcp else 0)
            stream = place.stream(5000)
            name = build.query(f"tcp-{place.good_name}", id=GOOD)
            data = build.reply(name, f"tcp-{place.good_name} 60 IN A {place.good_data}")
            over_tcp = [*stream.open(), stream.ask(name), stream.answer(data), *stream.close()]
            good = place.good() + (over_tcp if one.tcp else [])
            self.counted["ok"] += 4 if one.tcp else 2
            self.counted["segment"] += len(over_tcp) if one.tcp else 0
            for frame in [*frames, *good]:
                after, *rest = frame if isinstance(frame, tuple) else (STEP, frame)
                now += after
                entries.append((now, *rest))
        self.frames = len(entries)
        path = folder / "bombs.pcap"
        build.write_pcap(path, entries, nanoseconds=True)
        self.run([path], folder, config, seconds)

    def run(self, paths: Sequence[Path], folder: Path, config: dict[str, Any], seconds: float,
            code: int = 0) -> None:
        """The real program over these files; both outputs are read, and memory is watched."""
        settings = configured(folder, config)
        runner = Runner(folder)
        try:
            live = runner.start("run", "-c", settings, "-r", *paths, "-", command="gazer",
                                stdin=subprocess.PIPE)
            with watched(live.pid) as self.peaks:
                seen(live, self.peaks)
                done = live.wait(seconds)
        finally:
            runner.end()
        assert done.code == code, done.stderr
        self.stderr = done.stderr
        self.read(folder)

    def read(self, folder: Path) -> None:
        """Every event of both outputs, which must be the same ones."""
        self.events: list[Event] = []
        text = (folder / "out.json").read_bytes()
        assert text == b"" or text.endswith(b"\n")
        for line in text.decode("ascii").splitlines():
            event = json.loads(line)
            self.events.append(event)
        with (folder / "out.msgpack").open("rb") as file:
            packed = list(msgpack.Unpacker(file, raw=False, strict_map_key=True))
        assert len(packed) == len(self.events)
        for event, (tag, _, record) in zip(self.events, packed, strict=True):
            assert same(event, {"tag": tag, "time": event["time"], **record}), (event, record)

    def of(self, one: Case) -> list[Event]:
        """The transactions of a case, without its good pair's."""
        place, _ = self.cases[one.name]
        return [event for event in self.transactions(place.client)
                if event["tx_id"] != GOOD]

    def transactions(self, client: str) -> list[Event]:
        return [event for event in self.events
                if event["tag"].endswith(TX) and event["client_addr"] == client]

    def good_pair(self, one: Case) -> None:
        """What stands behind the bomb is paired, with its own name and answer, and only once."""
        place, _ = self.cases[one.name]
        for name in [place.good_name] + (["tcp-" + place.good_name] if one.tcp else []):
            found = [event for event in self.transactions(place.client)
                     if event["tx_id"] == GOOD
                     and [r["name"] for r in event.get("query", ())] == [name]]
            assert [event["status"] for event in found] == ["success"]
            assert [(r["name"], r.get("data")) for r in found[0]["reply"]] == [
                (name, None), (name, place.good_data)]
            assert "malformed" not in found[0]

    def check(self, one: Case) -> None:
        self.good_pair(one)
        events = self.of(one)
        if one.says:
            one.says(events)
        # The events say of themselves what their frames were counted under.
        said = Counter(f"malformed {why}" for event in events
                       for why in event.get("malformed", {}).values())
        words = Counter(word for word in [*one.counted, *one.messages]
                        if word.startswith("malformed"))
        if "malformed" in words:
            assert said.total() == words.total()
        else:
            assert said == words

    def account(self) -> None:
        """Each frame in one counter: the words are the totals."""
        expected = self.counted.copy()
        if expected.pop("malformed", 0):
            for word in [word for word in expected if word.startswith("malformed ")]:
                del expected[word]
            expected += Counter(
                f"malformed {why}" for event in self.events if event["tag"].endswith(TX)
                for why in event.get("malformed", {}).values())
        assert figures(self.stderr) == Counter({
            **{word: n for word, n in expected.items() if word not in ("ok", "segment")},
            "frames": self.frames,
            "segment": expected["segment"],
            "DNS": sum(n for word, n in expected.items() if counter_of(word) == "DNS")
                   - self.in_streams,
            "messages": sum(n for word, n in expected.items()
                            if counter_of(word) == "DNS" and word != "segment"),
        })


def ran(cases: Sequence[Case], config: dict[str, Any] | None = None,
        seconds: float = 30.0) -> Callable[..., Ran]:
    """A fixture that runs these cases once for the whole file."""
    @pytest.fixture(scope="module")
    def fixture(tmp_path_factory: pytest.TempPathFactory) -> Ran:
        return Ran(tmp_path_factory.mktemp("hostile"), cases, config or {}, seconds)

    return fixture
