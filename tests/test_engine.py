"""The engine on frames made by hand: the rules of matching, one by one, in one process.

Each test gives the engine a few frames and looks at all it says: events in their order, the
watermark, the ledger.  What it says is also compared, line by line, with the oracle's reading of
the same frames.
"""

from __future__ import annotations

import json
import random

import pytest

from gazer import counters
from gazer.ring import Ring, ring_bytes
from gazer.summary import Account
from gazer.workers import doors
from gazer.workers.encode import Encoder
from gazer.workers.engine import Engine
from gazer.workers.stream import Streams
from gazer.workers.transaction import Transactions
from gazer.workers.transfer import Transfers
from tests.oracle import build, compare
from tests.oracle.events import Rules, expected

NS = 10**9
START = 1444531212 * NS
CLIENT, SERVER = "192.0.2.1", "198.51.100.53"


def engine_of(rings, slot, rules: Rules, **limits) -> Engine:
    """An engine between two rings; `limits` of its tables."""
    of = {"max_pending": rules.max_pending or 1000, "max_bytes": 1 << 20, "max_streams": 1000,
          "stream_bytes": 1 << 22, "max_transfers": 100, **limits}
    return Engine(
        frame_rings=[rings[0]], event_ring=rings[1], bell=-1, capture_bells=[-1], sink_bell=-1, slot=slot,
        table=Transactions(max_pending=of["max_pending"], max_bytes=of["max_bytes"],
                           window=round(rules.duplicate_window * NS), seed=0x5EED),
        transfers=Transfers(max_transfers=of["max_transfers"], max_bytes=of["stream_bytes"],
                            budget=262144, seed=0x5EED),
        streams=Streams(max_streams=of["max_streams"], max_bytes=of["stream_bytes"],
                        max_bytes_each=262144, timeout=300 * NS, seed=0x5EED),
        encoder=Encoder(full=rules.detail == "full", formats=[0], max_size=262144,
                        sensor=rules.sensor),
        records=rules.records, timeout=round(rules.timeout * NS))


class Run:
    """One engine over frames, given as (seconds, frame[, length])."""

    def __init__(self, frames, *, end=True, **changes) -> None:
        rules = Rules(**changes)
        size = 1 << 22
        self.rings = [Ring(bytearray(ring_bytes(size)), create=size) for _ in range(2)]
        ledger = bytearray(counters.ledger_bytes(3))
        counters.ledger_create(ledger)
        self.slot = counters.Slot(ledger, 1)
        self.feed = doors.FrameRing(self.rings[0], mdns=rules.mdns, llmnr=rules.llmnr)
        self.sink = doors.EventRing(self.rings[1])
        self.clock, self.sequence, self.taken, self.fates = 0, 0, 0, []
        self.engine = engine_of(self.rings, self.slot, rules)
        for frame in frames:
            self.put(*frame)
        if end:
            self.finish()

    def put(self, seconds: float, frame: bytes, length: int | None = None) -> None:
        time = START + round(seconds * NS)
        self.clock = max(self.clock, time)
        self.sequence += 1
        self.fates.append(self.feed.put(frame, self.sequence, self.clock, time, length))

    def turn(self, clock: int | None) -> None:
        """Up to a watermark."""
        self.feed.mark(clock, self.sequence + 1)
        assert self.engine.run() == ("end" if clock is None else "turn")

    def take(self) -> list:
        """What has come since the last look."""
        events = self.sink.take()
        self.taken += len(events)
        return events

    def finish(self) -> None:
        self.turn(None)
        self.events = self.take()
        self.lines = [texts[0].decode().rstrip("\n") for _, _, _, texts in self.events]
        self.seen = [json.loads(line.split("\t")[2]) for line in self.lines]
        self.counts = self.slot.read(counters.WORKER)
        keys = [(clock, sequence) for clock, sequence, _, _ in self.events]
        assert keys == sorted(keys), "events come in the order of their keys"
        self.balance()

    def balance(self) -> None:
        """The balances of the ledger, as the summary checks them."""
        capture = dict.fromkeys(counters.CAPTURE, 0)
        capture["frames"] = self.sequence
        for fate in self.fates:
            capture["delivered" if fate == "dns" else f"fate.{fate}"] += 1
        sink = {**dict.fromkeys(counters.SINK, 0), "events": self.taken}
        account = Account(capture, self.counts, sink, ())
        assert list(account.imbalances()) == []
        assert self.counts["pending"] == 0

    @property
    def statuses(self) -> list[str]:
        return [one["status"] for one in self.seen if "status" in one]


def run(tmp_path, frames, **changes) -> Run:
    """The engine's reading, held against the oracle's."""
    frames = list(frames)
    done = Run(frames, **changes)
    path = tmp_path / "engine.pcap"
    build.write_pcap(path, [(START + round(f[0] * NS), *f[1:]) for f in frames], nanoseconds=True)
    want = [compare.line(event) for event in expected(path, Rules(**changes)).events]
    assert compare.diff(want, done.lines, leave_out=("edns", "malformed")) == ""
    return done


def ask(name: str = "example.com.", rdtype: str = "A", *, id: int = 1, port: int = 4000, vlan=(),
        client: str = CLIENT, server: str = SERVER) -> bytes:
    return build.frame(build.udp(client, port, server, 53, build.query(name, rdtype, id=id)),
                       vlan=vlan)


def tell(name: str = "example.com.", rdtype: str = "A", *, id: int = 1, port: int = 4000, vlan=(),
         client: str = CLIENT, server: str = SERVER, answers=()) -> bytes:
    reply = build.reply(build.query(name, rdtype, id=id), *answers)
    return build.frame(build.udp(server, 53, client, port, reply), vlan=vlan)


def bare(reply: bool, *, id: int = 1, port: int = 4000) -> bytes:
    """A message without question."""
    wire = build.header(id, 0x8105 if reply else 0x0100, (0, 0, 0, 0))
    ends = (SERVER, 53, CLIENT, port) if reply else (CLIENT, port, SERVER, 53)
    return build.frame(build.udp(*ends, wire))


# --- one rule each -------------------------------------------------------------------------------


def test_a_query_and_its_reply(tmp_path):
    done = run(tmp_path, [(0, ask()), (0.5, tell(answers=["example.com. 60 IN A 192.0.2.9"]))],
               detail="full")
    assert done.statuses == ["success"]
    assert done.seen[0]["latency"] == 0.5 and done.seen[0]["retransmits"] == 0
    assert done.counts["queries"] == done.counts["replies"] == done.counts["success"] == 1


def test_a_repeated_query_is_counted_on_the_one_that_waits(tmp_path):
    done = run(tmp_path, [(0, ask()), (1, ask()), (2, ask()), (3, tell())], detail="full")
    assert done.statuses == ["success"] and done.seen[0]["retransmits"] == 2
    assert done.seen[0]["latency"] == 3.0           # from the first
    assert (done.counts["opened"], done.counts["repeated"]) == (1, 2)


def test_a_repeat_does_not_make_it_wait_longer(tmp_path):
    done = run(tmp_path, [(0, ask()), (59, ask()), (60, tell())])
    assert done.statuses == ["no_reply", "no_query"]


def test_a_second_reply_within_the_window_is_a_duplicate(tmp_path):
    done = run(tmp_path, [(0, ask()), (1, tell()), (1, tell()), (5.999999999, tell())])
    assert done.statuses == ["success"] and done.counts["duplicates"] == 2
    done = run(tmp_path, [(0, ask()), (1, tell()), (6, tell())])
    assert done.statuses == ["success", "no_query"]
    done = run(tmp_path, [(0, ask()), (1, tell()), (2, tell())], duplicate_window=0)
    assert done.statuses == ["success", "no_query"]


def test_everything_seen_twice(tmp_path):
    frames = [(t, f) for t, f in [(0, ask()), (1, tell()), (2, ask(id=2)), (3, tell(id=2))]
              for _ in range(2)]
    done = run(tmp_path, frames, detail="full")
    assert done.statuses == ["success", "success"]
    assert [one["retransmits"] for one in done.seen] == [1, 1]


@pytest.mark.parametrize("forged", [("evil.example.", "A"), ("example.com.", "AAAA"),
                                    ("example.com", "TYPE33")])
def test_a_forged_reply_does_not_take_the_transaction(tmp_path, forged):
    """Right id and ports, another question: it is an event of its own, and the real one matches."""
    done = run(tmp_path, [(0, ask()), (1, tell(*forged)), (2, tell())])
    assert done.statuses == ["no_query", "success"]


def test_a_reply_with_another_type_is_no_duplicate(tmp_path):
    """A is 1 and SRV 33: one bit apart, the one that tells the cases of a letter apart."""
    done = run(tmp_path, [(0, ask()), (1, tell()), (2, tell("example.com.", "SRV"))])
    assert done.statuses == ["success", "no_query"]
    done = run(tmp_path, [(0, ask(rdtype="TYPE65")), (1, tell(rdtype="TYPE65")),
                          (2, tell(rdtype="TYPE97"))])
    assert done.statuses == ["success", "no_query"]


def test_several_wait_under_one_key(tmp_path):
    names = ["a.example.", "b.example.", "c.example."]
    frames = [(i, ask(name)) for i, name in enumerate(names)]
    done = run(tmp_path, [*frames, (3, tell(names[1])), (4, tell(names[2])), (5, tell(names[0]))])
    assert [one["query"][0]["name"] for one in done.seen] == [names[1], names[2], names[0]]
    assert done.statuses == ["success"] * 3


def test_a_reply_without_question_answers_the_oldest(tmp_path):
    names = ["a.example.", "b.example."]
    done = run(tmp_path, [(0, ask(names[0])), (1, ask(names[1])), (2, bare(True)), (3, bare(True)),
                          (4, bare(True)), (4, tell(names[0])), (9, bare(True))])
    assert done.statuses == ["success", "success", "no_query"]
    assert [one["query"][0]["name"] for one in done.seen[:2]] == names
    assert done.counts["duplicates"] == 2           # bare again, and the real one, late
    assert run(tmp_path, [(0, bare(True))]).statuses == ["no_query"]


def test_a_query_without_question(tmp_path):
    done = run(tmp_path, [(0, bare(False)), (1, bare(False)), (2, bare(True))], detail="full")
    assert done.statuses == ["success"] and done.seen[0]["retransmits"] == 1
    done = run(tmp_path, [(0, bare(False)), (1, ask()), (2, tell()), (3, bare(True))])
    assert done.statuses == ["success", "success"]
    assert done.seen[1]["query"] == [] and done.seen[1]["query_ts"] == START // NS


def test_an_id_may_be_used_again_after_the_answer(tmp_path):
    done = run(tmp_path, [(0, ask()), (1, tell()), (2, ask()), (3, tell()), (4, ask())])
    assert done.statuses == ["success", "success", "no_reply"]
    assert done.counts["repeated"] == done.counts["duplicates"] == 0


def test_case_in_the_question_does_not_matter(tmp_path):
    """0x20: some resolvers ask in mixed case, and some servers answer in another."""
    done = run(tmp_path, [(0, ask("eXaMpLe.CoM.")), (1, tell("example.com.")),
                          (2, tell("EXAMPLE.COM."))])
    assert done.statuses == ["success"] and done.counts["duplicates"] == 1
    assert done.seen[0]["query"][0]["name"] == "eXaMpLe.CoM."
    assert done.seen[0]["reply"][0]["name"] == "example.com."


@pytest.mark.parametrize("change", [
    {"vlan": [100]}, {"vlan": [100, 7]}, {"id": 2}, {"port": 4001}, {"client": "192.0.2.2"},
    {"server": "198.51.100.54"}])
def test_what_is_another_key(tmp_path, change):
    assert run(tmp_path, [(0, ask()), (1, tell(**change))]).statuses == ["no_query", "no_reply"]
    assert run(tmp_path, [(0, ask(**change)), (1, tell(**change))]).statuses == ["success"]


def test_priority_bits_do_not_part_query_and_reply(tmp_path):
    done = run(tmp_path, [(0, ask(vlan=[0x6064])), (1, tell(vlan=[0x0064]))], detail="full")
    assert done.statuses == ["success"] and done.seen[0]["vlan"] == [100]


def test_sixteen_tags_and_ipv6(tmp_path):
    tags = list(range(100, 116))
    ends = {"client": "2001:db8::1", "server": "2001:db8::53", "vlan": tags}
    done = run(tmp_path, [(0, ask(**ends)), (1, tell(**ends)), (2, ask(id=2, **ends))],
               detail="full", records=True)
    assert [one["vlan"] for one in done.seen if "status" in one] == [tags, tags]
    assert done.statuses == ["success", "no_reply"]


def test_the_qr_bit_alone_says_who_is_client(tmp_path):
    """Both on port 53, and a query from port 53 to another."""
    query = build.query("example.com.", id=9)
    there = build.frame(build.udp(CLIENT, 53, SERVER, 4000, query))
    back = build.frame(build.udp(SERVER, 4000, CLIENT, 53, build.reply(query)))
    done = run(tmp_path, [(0, there), (1, back)])
    assert done.statuses == ["success"]
    assert (done.seen[0]["client_addr"], done.seen[0]["client_port"]) == (CLIENT, 53)


def test_a_reply_before_its_query(tmp_path):
    done = run(tmp_path, [(0, tell()), (1, ask())])
    assert done.statuses == ["no_query", "no_reply"]
    # The right order, but the reply's own time is the earlier one: no latency, and counted.
    done = run(tmp_path, [(1, ask()), (0.5, tell())], detail="full")
    assert done.statuses == ["success"] and "latency" not in done.seen[0]
    assert done.counts["negative_latency"] == 1


@pytest.mark.parametrize("wait, status", [(59.999999999, ["success"]),
                                          (60, ["no_reply", "no_query"])])
def test_the_timeout_is_exact(tmp_path, wait, status):
    assert run(tmp_path, [(0, ask()), (wait, tell())]).statuses == status


def test_a_timeout_is_due_at_its_time_and_needs_no_frame():
    done = Run([(0, ask()), (1, ask(id=2))], end=False)
    done.turn(START + 60 * NS - 1)
    assert done.take() == []
    assert done.sink.mark == (START + 60 * NS - 1, 3)
    done.turn(START + 60 * NS)
    (clock, sequence, time, _), = done.take()
    assert (clock, sequence, time) == (START + 60 * NS, 1, START)
    assert done.slot.read(counters.WORKER)["pending"] == 1
    done.finish()
    (clock, sequence, time, _), = done.events
    assert (clock, sequence, time) == (START + 61 * NS, 2, START + NS)
    assert done.sink.mark[0] is None


def test_the_watermark_does_not_pass_what_is_still_to_come():
    """After each frame the mark stands below every event that follows."""
    dice = random.Random(3)
    done = Run([], end=False, timeout=3)
    last = (0, 0)
    now = 0.0
    for step in range(300):
        now += dice.choice((0, 0.1, 1, 2.5))
        done.put(now, dice.choice((ask, tell))(id=dice.randrange(5)))
        if step % 20 == 19:
            done.turn(done.clock)
            for clock, sequence, _, _ in done.take():
                assert (clock, sequence) >= last
            last = done.sink.mark
            assert last == (done.clock, done.sequence + 1)


def test_what_waits_at_the_end_leaves_in_the_order_of_the_queries(tmp_path):
    frames = [(i, ask(id=i, port=5000 - i)) for i in range(20)]
    done = run(tmp_path, [*frames, (20, tell(id=7, port=4993))])
    assert done.statuses == ["success"] + ["no_reply"] * 19
    assert [one["tx_id"] for one in done.seen[1:]] == [i for i in range(20) if i != 7]


def test_at_the_limit_the_oldest_leaves(tmp_path):
    frames = [(i, ask(id=i)) for i in range(5)]
    done = run(tmp_path, [*frames, (5, tell(id=0)), (6, tell(id=3))], max_pending=3, records=True)
    order = [(one.get("status", "record"), one["tx_id"]) for one in done.seen]
    assert order == [
        ("record", 0), ("record", 1), ("record", 2), ("no_reply", 0), ("record", 3),
        ("no_reply", 1), ("record", 4), ("no_query", 0), ("record", 0), ("success", 3),
        ("record", 3), ("no_reply", 2), ("no_reply", 4)]
    assert done.counts["evicted"] == 2 and done.counts["no_reply"] == 2


def test_at_most_64_wait_under_one_key(tmp_path):
    """Ever new questions from one port under one id: the oldest of the key leaves, no other's."""
    frames = [(0, ask("other.example.", id=2))]
    frames += [(1 + i / 100, ask(f"n{i}.example.")) for i in range(80)]
    done = run(tmp_path, [*frames, (3, tell("n15.example.")), (3, tell("n16.example.")),
                          (3, bare(True))])
    assert done.counts["evicted"] == 16
    assert [one["query"][0]["name"] for one in done.seen[:16]] == [
        f"n{i}.example." for i in range(16)]
    assert done.statuses[16:19] == ["no_query", "success", "success"]
    assert done.seen[18]["query"][0]["name"] == "n17.example."
    assert done.seen[19]["query"][0]["name"] == "other.example."


def test_a_query_larger_than_the_table():
    """A datagram of 65507 octets where limits are least: it waits, and hardly any with it."""
    query = build.query("big.example.") + bytes(65507 - 29)
    frames = [(0, ask(id=number)) for number in range(2, 8)]
    frames += [(1, build.frame(build.udp(CLIENT, 4000, SERVER, 53, query))),
               (2, tell("big.example."))]
    done = Run(frames, end=False)
    done.engine = engine_of(done.rings, done.slot, Rules(), max_pending=10, max_bytes=0)
    done.finish()
    assert done.statuses == [*["no_reply"] * 3, "success", *["no_reply"] * 3]
    assert done.counts["evicted"] == 3 and done.counts["malformed.trailing"] == 1


def test_the_order_around_one_message(tmp_path):
    """Queries' records as they are seen; at the reply the transaction, then the reply's records."""
    answers = ["example.com. 60 IN A 192.0.2.9", "example.com. 60 IN A 192.0.2.10"]
    frames = [(0, ask()), (1, ask()), (2, tell(answers=answers)), (3, tell(answers=answers)),
              (4, tell(id=9))]
    done = run(tmp_path, frames, records=True)
    kinds = [one.get("status") or f"{one['msg_type']} {one['section']}" for one in done.seen]
    assert kinds == [
        "query question", "query question", "success", "reply question", "reply answer",
        "reply answer", "reply question", "reply answer", "reply answer",   # the duplicate's too
        "no_query", "reply question"]
    assert done.counts["records"] == 9 and done.counts["transactions"] == 2
    assert run(tmp_path, frames, records=True, detail="full").statuses == ["success", "no_query"]


def test_malformed_messages_are_counted_and_shown(tmp_path):
    query = build.query("example.com.")
    name = b"\xc0\x0c"
    reply = build.header(1, 0x8180, (1, 3, 0, 0)) + query[12:] + build.record(name, 1, bytes(4))

    def back(wire: bytes) -> bytes:
        return build.frame(build.udp(SERVER, 53, CLIENT, 4000, wire))

    bad = {
        "counts": reply, "truncated": reply + b"\1", "bad_label": reply + b"\x80" * 20,
        "pointer_loop": reply + b"\xff\xff" * 9,
        "rdlength": reply + name + b"\0\1\0\1" + b"\xff" * 6,
    }
    for reason, wire in bad.items():
        done = run(tmp_path, [(0, ask()), (1, back(wire))], detail="full")
        assert done.statuses == ["success"]
        assert done.seen[0]["malformed"] == {"reply": reason}
        assert len(done.seen[0]["reply"]) == 2
        assert done.counts[f"malformed.{reason}"] == 1
    for reason, wire in {"short_header": b"\0" * 11, "counts": build.header(),
                         "bad_label": build.header() + b"\x40"}.items():
        done = run(tmp_path, [(0, back(wire))])
        assert done.seen == [] and done.counts[f"discarded.{reason}"] == 1
        assert done.counts["frames"] == 1
    assert run(tmp_path, [(0, back(b""))]).counts["discarded.short_header"] == 1


def test_a_query_that_the_snaplen_cut(tmp_path):
    frame = ask()
    long = build.frame(build.udp(CLIENT, 4000, SERVER, 53, build.query("example.com.", edns=1232)))
    done = run(tmp_path, [(0, long[:-6], len(long)), (1, tell())], detail="full")
    assert done.statuses == ["success"] and done.seen[0]["malformed"] == {"query": "snapped"}
    assert done.seen[0]["query_size"] == len(build.query("example.com.", edns=1232))
    done = run(tmp_path, [(0, frame[:-1], len(frame))])
    assert done.seen == [] and done.counts["discarded.snapped"] == 1


def test_what_records_leave_out_is_counted():
    """The record logs of a duplicate: no transaction tells of them."""
    name = build.labels(*[b"\xff" * 63] * 3, b"\xff" * 61)
    query = build.header() + build.question(name)
    reply = (build.header(1, 0x8180, (1, 3000, 0, 0)) + build.question(name)
             + build.record(b"\xc0\x0c", 1, bytes(4)) * 3000)
    there = build.frame(build.udp(CLIENT, 4000, SERVER, 53, query))
    back = build.frame(build.udp(SERVER, 53, CLIENT, 4000, reply))
    done = Run([(0, there), (1, back), (1, back)], records=True)
    shown = sum("msg_type" in one and one["msg_type"] == "reply" for one in done.seen)
    assert shown % 2 == 0 and shown < 6002
    left_out = 3001 - shown // 2
    # Of the reply's event, and of both copies' record logs; the query's own takes a little room.
    assert done.counts["omitted"] >= 3 * left_out > 0


def test_a_damaged_ring_is_said_to_be():
    done = Run([(0, ask())], end=False)
    memory = bytearray(ring_bytes(1 << 22))
    ring = Ring(memory, create=1 << 22)
    feed = doors.FrameRing(ring)
    feed.put(ask(), 1, START, START)
    feed.mark(START, 2)
    memory[1024 + 8 + 24:1024 + 8 + 28] = b"\xff\xff\xff\x7f"       # FrameEntry.caplen
    engine = engine_of([ring, done.rings[1]], done.slot, Rules())
    assert engine.run() == "corrupt"


def test_an_entry_shorter_than_its_levels_is_corrupt():
    """What stands behind FrameEntry may claim more than the entry holds."""
    done = Run([(0, ask())], end=False)
    memory = bytearray(ring_bytes(1 << 22))
    ring = Ring(memory, create=1 << 22)
    feed = doors.FrameRing(ring)
    assert len(ask()) < 8 * 12      # octets of eight levels
    feed.put(ask(), 1, START, START)
    feed.mark(START, 2)
    memory[1024 + 8 + 36] = 8       # FrameEntry.packet.layers
    engine = engine_of([ring, done.rings[1]], done.slot, Rules())
    assert engine.run() == "corrupt"


def test_a_level_of_no_known_kind_is_not_looked_up():
    """Such a message is discarded, and nothing is read beyond the table of names."""
    memory = bytearray(ring_bytes(1 << 22))
    ring = Ring(memory, create=1 << 22)
    done = Run([], end=False, detail="full")
    inner = build.udp(CLIENT, 4000, SERVER, 53, build.query("example.com."))
    feed = doors.FrameRing(ring)
    assert feed.put(build.frame(build.ipv4("192.0.2.9", "192.0.2.10", 4, inner)), 1, START,
                    START) == "dns"
    assert memory[1024 + 8 + 64] == 6       # Layer.kind, behind FrameEntry: ip
    memory[1024 + 8 + 64] = 255
    feed.mark(None, 2)
    engine = engine_of([ring, done.rings[1]], done.slot, Rules(detail="full"))
    assert engine.run() == "end"
    assert done.take() == []
    assert done.slot.read(counters.WORKER)["discarded.short_header"] == 1


# --- random traffic ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_any_traffic_is_matched_as_the_oracle_does(tmp_path, seed):
    """Few keys, few names, so that all rules meet; every line as the oracle has it."""
    dice = random.Random(seed)
    frames, now = [], 0.0
    names = ["a.example.", "A.example.", "b.example."]
    for _ in range(400):
        now += dice.choice((0, 0.001, 0.2, 1, 4, 5))
        what = dice.randrange(10)
        key = {"id": dice.randrange(2), "port": 4000 + dice.randrange(2)}
        if what == 0:
            frame = bare(dice.random() < 0.5, **key)
        else:
            make = ask if what < 5 else tell
            vlan = dice.choice(((), (), (5,)))
            frame = make(dice.choice(names), dice.choice(("A", "SRV")), vlan=vlan, **key)
        frames.append((now + dice.choice((0, 0, -0.3)), frame))
    settings = {"timeout": dice.choice((3, 10, 60)), "duplicate_window": dice.choice((0, 2, 5)),
                "records": dice.random() < 0.3, "detail": dice.choice(("classic", "full"))}
    if dice.random() < 0.4:
        settings["max_pending"] = dice.choice((1, 2, 5))
    done = run(tmp_path, [(max(0, t), f) for t, f in frames], **settings)
    if done.counts["answered_forgotten"]:
        pytest.fail("the answered ones had room")
