"""The engine over TCP: messages out of segments, zone transfers, and what ends them.

Each test's frames also go through the oracle, which reads them on its own.
"""

from __future__ import annotations

import json

from gazer import counters
from gazer.workers import doors  # noqa: F401  (compiled with the engine)
from tests.oracle import build
from tests.oracle.events import Rules
from tests.test_engine import CLIENT, NS, SERVER, START, Run, ask, engine_of, run, tell

FIN, SYN, RST, ACK = 1, 2, 4, 16


class Connection:
    """Both ends of a TCP connection; each method gives a frame."""

    def __init__(self, *, port: int = 40000, isn: int = 1000, vlan=(), server: str = SERVER,
                 syn: bool = True) -> None:
        self.port, self.vlan, self.server = port, vlan, server
        self.next = [isn, isn + 5000]
        self.frames: list[bytes] = []
        if syn:
            self.segment(0, flags=SYN)
            self.segment(1, flags=SYN | ACK)
            self.segment(0, flags=ACK)

    def segment(self, side: int, payload: bytes = b"", *, flags: int = ACK, seq: int | None = None,
                keep: bool = True) -> bytes:
        """What side 0 (the client) or 1 sends next; with `keep` it is added to `frames`."""
        ends = (CLIENT, self.port, self.server, 53) if side == 0 else (
            self.server, 53, CLIENT, self.port)
        at = self.next[side] if seq is None else seq
        frame = build.frame(build.tcp(*ends, payload, seq=at % 2**32, flags=flags,
                                      ack=self.next[1 - side] % 2**32 if flags & ACK else 0),
                            vlan=self.vlan)
        if seq is None:
            self.next[side] += len(payload) + bool(flags & (SYN | FIN))
        if keep:
            self.frames.append(frame)
        return frame

    def query(self, wire: bytes) -> bytes:
        return self.segment(0, framed(wire))

    def reply(self, *wires: bytes) -> bytes:
        return self.segment(1, b"".join(map(framed, wires)))


def framed(wire: bytes) -> bytes:
    return len(wire).to_bytes(2, "big") + wire


def timed(frames, step: float = 0.01) -> list[tuple]:
    return [(i * step, frame) for i, frame in enumerate(frames)]


def soa(serial: int) -> str:
    return f"example.com. 60 IN SOA ns.example.com. h.example.com. {serial} 1 2 3 4"


def hosts(*numbers: int) -> list[str]:
    return [f"h{n}.example.com. 60 IN A 192.0.2.{n}" for n in numbers]


AXFR = build.query("example.com.", "AXFR", id=7)


def test_one_exchange(tmp_path):
    c = Connection()
    query = build.query("example.com.", "A", id=5)
    c.query(query)
    c.reply(build.reply(query, *hosts(1)))
    c.segment(0, flags=FIN | ACK)
    c.segment(1, flags=FIN | ACK)
    done = run(tmp_path, timed(c.frames), detail="full")
    (one,) = done.seen
    assert (one["proto"], one["status"], one["tx_id"]) == ("tcp", "success", 5)
    assert (one["query_size"], one["latency"]) == (len(query), 0.01)
    assert one["query_ts_ns"] == START + 3 * NS // 100
    assert (done.counts["segments"], done.counts["stream_messages"]) == (7, 2)
    assert done.counts["datagrams"] == 0 and done.counts["streams_opened"] == 1


def test_udp_and_tcp_are_two_things(tmp_path):
    """The same ends and id by both: a reply answers the query that came its own way."""
    c = Connection(port=4000)
    query = build.query("example.com.", "A", id=1)
    c.query(query)
    frames = [*c.frames, ask(), tell()]
    done = run(tmp_path, timed(frames), detail="full")
    assert [(one["proto"], one["status"]) for one in done.seen] == [
        ("udp", "success"), ("tcp", "no_reply")]


def test_the_oldest_of_one_segment_is_the_first_in_it(tmp_path):
    """Queries that share their frame, and so its number: a reply without question still takes the
    one that was sent first."""
    c = Connection()
    names = ["a.example.", "b.example.", "c.example."]
    c.segment(0, b"".join(framed(build.query(name, id=5)) for name in names))
    for _ in names:
        c.reply(build.header(5, 0x8101, (0, 0, 0, 0)))
    done = run(tmp_path, timed(c.frames))
    assert done.statuses == ["success"] * 3
    assert [one["query"][0]["name"] for one in done.seen] == names


def test_connections_idle_at_once_and_a_query_between_them(tmp_path):
    """All due at the same clock, and in the order of their frames, whatever kind they are."""
    wire = build.reply(build.query("example.com.", "A", id=5))

    def kept(port: int) -> list[tuple]:
        c = Connection(port=port)
        c.segment(1, b"lost", keep=False)
        c.reply(wire)           # behind a hole: it comes when the connection ends
        return [(0, frame) for frame in c.frames]

    done = run(tmp_path, [*kept(40001), (0, ask()), *kept(40002)], timeout=300)
    assert done.statuses == ["no_query", "no_reply", "no_query"]
    assert [key[:2] for key in done.events] == [
        (START + 300 * NS, number) for number in (4, 5, 9)]


def test_what_the_other_side_acknowledged_did_not_come_in_its_tunnel():
    """A segment that acknowledges hands on what the other direction sent, in another tunnel."""
    def through(frame: bytes, source: str, destination: str) -> bytes:
        return build.frame(build.udp(source, 50000, destination, 4789,
                                     bytes.fromhex("0800000000002a00") + frame))

    c = Connection()
    c.segment(0, b"lost", keep=False)
    there, back = ("203.0.113.1", "203.0.113.2"), ("203.0.113.2", "203.0.113.1")
    c.query(build.query("example.com.", "A", id=5))
    c.query(build.query("example.org.", "A", id=6))
    ways = [there, back, there, there, there]
    frames = [through(frame, *way) for frame, way in zip(c.frames, ways, strict=True)]
    last = through(c.segment(1, keep=False), *back)
    done = Run(timed([*frames, last]), detail="full")
    assert done.statuses == ["no_reply", "no_reply"] and done.counts["gaps"] == 1
    assert all("tunnels" not in one for one in done.seen)
    c.query(build.query("example.net.", "A", id=7))
    own = through(c.frames[-1], *there)
    done = Run(timed([*frames, last, own]), detail="full")
    assert [one.get("tunnels") for one in done.seen] == [None, None, [
        {"destination": there[1], "id": 42, "source": there[0], "type": "vxlan"}]]


def test_many_queries_in_flight_and_answers_out_of_order(tmp_path):
    """Two hundred in one go; ids from the client, so no limit of sixty-four under one key."""
    c = Connection()
    queries = [build.query(f"h{n}.example.com.", "A", id=n) for n in range(200)]
    c.segment(0, b"".join(map(framed, queries)))
    for wire in reversed(queries):
        c.reply(build.reply(wire))
    done = run(tmp_path, timed(c.frames), detail="full")
    assert done.statuses == ["success"] * 200 and done.counts["evicted"] == 0
    assert [one["tx_id"] for one in done.seen] == list(range(199, -1, -1))


def test_octet_by_octet(tmp_path):
    c = Connection(isn=2**32 - 20)      # the sequence numbers wrap around on the way
    query = build.query("example.com.", "A", id=5)
    for octet in framed(query):
        c.segment(0, bytes([octet]))
    for octet in framed(build.reply(query, *hosts(1))):
        c.segment(1, bytes([octet]))
    done = run(tmp_path, timed(c.frames, 0.001), detail="full")
    assert done.statuses == ["success"]
    # A message's time is that of the frame that made it whole.
    assert done.seen[0]["query_ts_ns"] == START + (3 + len(query) + 1) * NS // 1000


def test_what_a_connection_carries_tells_its_vlan(tmp_path):
    """The same 4-tuple in two VLANs is two connections."""
    query = build.query("example.com.", "A", id=5)
    one, two = Connection(vlan=(10,)), Connection(vlan=(20,))
    half = len(query) // 2
    for c in (one, two):
        c.segment(0, framed(query)[:half])
    for c in (one, two):
        c.segment(0, framed(query)[half:])
    c.reply(build.reply(query))
    frames = [f for pair in zip(one.frames, two.frames, strict=False) for f in pair]
    done = run(tmp_path, timed([*frames, two.frames[-1]]), detail="full")
    assert sorted((tuple(e["vlan"]), e["status"]) for e in done.seen) == [
        ((10,), "no_reply"), ((20,), "success")]


def test_a_hole_loses_what_it_cuts_and_no_more(tmp_path):
    c = Connection()
    queries = [build.query(f"h{n}.example.com.", "A", id=n) for n in range(4)]
    stream = b"".join(map(framed, queries))
    size = len(framed(queries[0]))
    c.segment(0, stream[:size + 5])
    c.segment(0, stream[size + 5:size + 9], keep=False)     # lost in capturing
    c.segment(0, stream[size + 9:])
    c.segment(1)                                            # the server has acknowledged it all
    c.reply(*map(build.reply, queries))
    done = run(tmp_path, timed(c.frames), detail="full")
    assert sorted((e["tx_id"], e["status"]) for e in done.seen) == [
        (0, "success"), (1, "no_query"), (2, "success"), (3, "success")]
    assert (done.counts["gaps"], done.counts["broken_messages"]) == (1, 1)


def test_a_capture_that_begins_in_the_middle(tmp_path):
    c = Connection(syn=False)
    queries = [build.query(f"h{n}.example.com.", "A", id=n) for n in range(2)]
    c.segment(0, framed(queries[0])[9:] + framed(queries[1]))
    c.reply(build.reply(queries[1]))
    done = run(tmp_path, timed(c.frames), detail="full")
    assert [(e["tx_id"], e["status"]) for e in done.seen] == [(1, "success")]
    assert done.counts["octets_skipped"] == len(queries[0]) - 7 and done.counts["resyncs"] == 2


def test_a_reset_that_a_stranger_sends_blindly(tmp_path):
    """Before the server has been heard, and after; a refusal that is one ends the connection."""
    c = Connection(syn=False)
    query = build.query("example.com.", "A", id=5)
    c.segment(0, flags=SYN)
    c.segment(1, flags=RST, seq=12345)
    c.segment(1, flags=SYN | ACK)
    c.query(query)
    c.segment(1, flags=RST, seq=0x40000000)
    c.reply(build.reply(query))
    assert run(tmp_path, timed(c.frames), detail="full").statuses == ["success"]
    refused = Connection(syn=False)
    refused.segment(0, flags=SYN)
    refused.segment(1, flags=RST | ACK, seq=0)
    refused.query(query)
    done = run(tmp_path, timed(refused.frames), detail="full")
    assert done.seen == [] and done.counts["octets_old"] == len(framed(query))


def test_garbage_on_port_53(tmp_path):
    """TLS where DNS is expected: no event, all octets counted."""
    c = Connection()
    c.segment(0, bytes.fromhex("160301020001000001fc0303") + b"\xa5" * 500)
    c.segment(1, bytes.fromhex("160303007a020000760303") + b"\x5a" * 300)
    done = run(tmp_path, timed(c.frames), detail="full")
    assert done.seen == [] and done.counts["octets"] == 812 - 12 + 12 + 11


# --- zone transfers ------------------------------------------------------------------------------


def transfer(*, messages: int = 5, close: bool = True, **more) -> Connection:
    """An AXFR of one host a message; `close`: with the SOA that ends it."""
    c = Connection(**more)
    c.query(AXFR)
    c.reply(build.reply(AXFR, soa(1)))
    for n in range(messages):
        c.reply(build.reply(AXFR, *hosts(n)))
    if close:
        c.reply(build.reply(AXFR, soa(1)))
    return c


def test_a_zone_transfer_is_one_event(tmp_path):
    c = transfer()
    done = run(tmp_path, timed(c.frames), detail="full")
    (one,) = done.seen
    assert (one["status"], one["complete"], one["messages"], one["records"]) == (
        "success", True, 7, 7)
    assert one["bytes"] == one["reply_size"] == c.next[1] - 6001 - 2 * 7
    assert [r["type"] for r in one["reply"] if r["section"] == "answer"] == [
        "SOA", *["A"] * 5, "SOA"]
    assert one["reply_ts_ns"] == START + (len(c.frames) - 1) * NS // 100
    assert done.counts["continuations"] == 6 and done.counts["transfers"] == 1
    classic = run(tmp_path, timed(c.frames))
    assert set(classic.seen[0]) == {
        "client_addr", "client_port", "query", "query_ts", "reply", "reply_ts", "server_addr",
        "server_port", "status", "tx_id"}


def test_records_are_logged_message_by_message(tmp_path):
    done = run(tmp_path, timed(transfer(messages=2).frames), records=True)
    kinds = [e.get("status") or f"{e['msg_type']} {e['type']}" for e in done.seen]
    assert kinds == [
        "query AXFR", "reply AXFR", "reply SOA", "reply AXFR", "reply A", "reply AXFR", "reply A",
        "success", "reply AXFR", "reply SOA"]


def test_what_breaks_a_transfer_off(tmp_path):
    """FIN, RST, a new SYN, a hole, an error, time, the end of the input: complete is false."""
    endings = {}
    for name in ("fin", "rst", "syn", "hole", "rcode", "time", "input"):
        c = transfer(close=False)
        wait = 0.01
        if name == "fin":
            c.segment(1, flags=FIN | ACK)
        elif name == "rst":
            c.segment(0, flags=RST)
        elif name == "syn":
            c.segment(0, flags=SYN, seq=77777)
        elif name == "hole":
            c.segment(1, b"?" * 100, keep=False)
            c.reply(build.reply(AXFR, *hosts(9)))
            c.segment(0)
        elif name == "rcode":
            c.reply(build.header(7, 0x8182, (1, 0, 0, 0)) + AXFR[12:])
        elif name == "time":
            c.frames.append(ask(id=99))
            wait = 60
        frames = timed(c.frames)
        frames[-1] = (frames[-2][0] + wait, frames[-1][1])
        endings[name] = run(tmp_path, frames, detail="full")
    for name, done in endings.items():
        one = done.seen[0]
        assert (one["complete"], one["status"]) == (False, "success"), name
        assert done.counts["incomplete"] == 1, name
        assert one["records"] == 6, name
        assert one["messages"] == (7 if name == "rcode" else 6), name
    assert endings["rcode"].seen[0]["rcode"] == "SERVFAIL"
    # Due `timeout` after its last message; its own time is that message's.
    event = endings["time"].events[0]
    assert event[0] == START + 9 * NS // 100 + 60 * NS and event[2] == START + 9 * NS // 100


def test_a_transfer_that_was_refused_is_a_reply_like_any_other(tmp_path):
    c = Connection()
    c.query(AXFR)
    c.reply(build.header(7, 0x8185, (1, 0, 0, 0)) + AXFR[12:])
    (one,) = run(tmp_path, timed(c.frames), detail="full").seen
    assert one["rcode"] == "REFUSED" and "complete" not in one


def test_a_transfer_picked_up_in_the_middle(tmp_path):
    """One event without query, though its messages may not even repeat the question."""
    c = Connection(syn=False)
    for n in range(4):
        bare = build.header(7, 0x8400, (0, 2, 0, 0)) + build.record(
            build.labels(f"h{n}", "example", "com"), 1, bytes([192, 0, 2, n])) * 2
        c.reply(bare if n % 2 else build.reply(AXFR, *hosts(n, n + 1)))
    c.reply(build.reply(AXFR, soa(1)))
    done = run(tmp_path, timed(c.frames), detail="full")
    assert done.statuses == ["no_query"] and done.seen[0]["complete"] is False
    assert done.counts["no_query"] == 1 and done.counts["continuations"] == 4


def test_a_transfer_of_which_nobody_knows_what_was_asked(tmp_path):
    """Its second record tells; the SOA of an IXFR's first deletions is not the end of a zone."""
    def part(*kinds: int | str) -> bytes:
        records = [build.record(build.labels("example", "com"), 6,
                                b"\1n\0\1h\0" + kind.to_bytes(4, "big") + bytes(16))
                   if isinstance(kind, int) else build.record(build.labels(kind), 1, bytes(4))
                   for kind in kinds]
        return build.header(7, 0x8400, (0, len(records), 0, 0)) + b"".join(records)

    for parts, want in (
        ([part(9, 3, "a", 5, "b"), part("c", 9)], [(True, 7)]),
        ([part(9, "a"), part("b"), part("c", 9)], [(True, 5)]),
        ([part(9)], [(False, 1)]),
        ([part("a"), part("b", 9)], [(False, 3)]),
    ):
        c = Connection()
        for wire in parts:
            c.reply(wire)
        done = run(tmp_path, timed(c.frames), detail="full")
        assert [(one["complete"], one["records"]) for one in done.seen] == want
        assert done.statuses == ["no_query"]


def test_transfers_and_questions_on_one_connection(tmp_path):
    c = Connection()
    other = build.query("www.example.com.", "A", id=8)
    c.segment(0, framed(AXFR) + framed(other))
    c.reply(build.reply(AXFR, soa(1)))
    c.reply(build.reply(other, *hosts(1)), build.reply(AXFR, *hosts(1)))
    c.reply(build.reply(AXFR, soa(1)))
    c.reply(build.reply(AXFR, soa(1)))      # once more: it has been answered
    done = run(tmp_path, timed(c.frames), detail="full")
    assert [(e["tx_id"], e["status"]) for e in done.seen] == [(8, "success"), (7, "success")]
    assert done.counts["duplicates"] == 1 and done.counts["evicted"] == 0


def test_limits_of_connections_and_transfers():
    """At a limit the least recently used leaves, and says so; what leaves is not lost silently."""
    frames = []
    for port in range(3):
        frames += transfer(close=False, messages=1, port=40000 + port).frames
    done = Run([], end=False, detail="full")
    done.engine = engine_of(done.rings, done.slot, Rules(detail="full"), max_transfers=2)
    for i, frame in enumerate(frames):
        done.put(i / 100, frame)
    done.finish()
    assert [(e["client_port"], e["complete"]) for e in done.seen] == [
        (40000, False), (40001, False), (40002, False)]
    done = Run([], end=False, detail="full")
    done.engine = engine_of(done.rings, done.slot, Rules(detail="full"), max_streams=1)
    one, two = Connection(port=50001), Connection(port=50002)
    wire = build.query("example.com.", "A", id=5)
    half = len(framed(wire)) // 2
    one.segment(0, framed(wire)[:half])
    for i, frame in enumerate([*one.frames, *two.frames]):
        done.put(i / 100, frame)
    done.finish()
    assert done.seen == [] and done.counts["streams_evicted"] == 1
    assert done.counts["octets_skipped"] == half and done.counts["broken_messages"] == 1


def test_the_ledger_at_every_moment():
    """Octets, messages and transfers add up between any two frames."""
    done = Run([], end=False, records=True)
    c = transfer()
    for i, frame in enumerate(c.frames):
        done.put(i / 100, frame)
        done.turn(done.clock)
        w = done.slot.read(counters.WORKER)
        assert w["octets"] == (w["octets_framed"] + w["octets_old"] + w["octets_skipped"]
                               + w["octets_buffered"])
        assert w["queries"] + w["replies"] == w["stream_messages"]
        assert w["transactions"] + w["transferring"] == w["success"] + w["no_query"]
        assert w["transferring"] == (4 <= i < len(c.frames) - 1)
        done.take()
    done.finish()


def test_lines_are_valid_json_whatever_a_stream_holds():
    c = Connection()
    for n in range(50):
        c.segment(n % 2, bytes((n * 37 + k * 11) % 256 for k in range(n)))
    for line in Run(timed(c.frames), detail="full", records=True).lines:
        json.loads(line.split("\t")[2])


def test_each_limit_that_is_reached_is_counted():
    """More transfers than there may be; more behind a hole than may be kept."""
    done = Run([], end=False)
    done.engine = engine_of(done.rings, done.slot, Rules(), max_transfers=1)
    for i, port in enumerate((40000, 40001, 40002)):
        for frame in transfer(close=False, messages=1, port=port).frames:
            done.put(i, frame)
    done.finish()
    assert done.counts["transfers_evicted"] == 2 and done.counts["incomplete"] == 3
    c = Connection()
    c.segment(0, b"\0\0", keep=False)
    for _ in range(300):
        c.segment(0, bytes(1000))
    done = Run(timed(c.frames))
    assert done.counts["crowded"] >= 1 and done.counts["gaps"] == 1
