"""Dispatch: numbers, the sensor clock, flows to workers, watermarks, and a fate for each frame."""

import os
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gazer.capture.dispatch import Dispatcher
from gazer.counters import CAPTURE, Slot, ledger_bytes, ledger_create
from gazer.packet import FATES
from gazer.ring import Ring, ring_bytes
from gazer.testing import MARK_END, FakeSource, Reader, frame_entry

from .oracle import build, wraps

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
NOW = 1_700_000_000 * SECOND
Y2106 = 0xFFFFFFFF * SECOND

CLIENT, SERVER = "198.51.100.7", "192.0.2.53"


def query(sport=4000, dport=53, *, source=CLIENT, to=SERVER, payload=b"q" * 12):
    return build.frame(build.udp(source, sport, to, dport, payload))


class Site:
    """A dispatcher over rings of this capacity, with their readers."""

    def __init__(self, workers=1, *, capacity=1 << 16, live=False, ports=(53,), bell=-1,
                 bells=None, seed=0x1234567890ABCDEF, **rules):
        self.buffers = [bytearray(ring_bytes(capacity)) for _ in range(workers)]
        for buffer in self.buffers:
            Ring(buffer, create=capacity).release()
        self.ledger = bytearray(ledger_bytes(1))
        ledger_create(self.ledger)
        self.slot = Slot(self.ledger, 0)
        self.readers = [Reader(Ring(buffer), bell) for buffer in self.buffers]
        self.dispatcher = Dispatcher(
            rings=[Ring(buffer) for buffer in self.buffers], bells=bells or [-1] * workers,
            bell=bell, slot=Slot(self.ledger, 0), ports=ports, seed=seed, live=live,
            **({"start": NOW} | rules if live else rules))

    def run(self, frames, result="end"):
        """Let it take all frames; returns what it said last."""
        source = FakeSource(frames, result)
        while (state := self.dispatcher.run(source)) == "turn":
            pass
        return state

    def entries(self, worker=0):
        return [frame_entry(entry) for entry in self.readers[worker].drain()]

    @property
    def counters(self):
        return {name: value for name, value in self.slot.read(CAPTURE).items() if value}


# --- entries -------------------------------------------------------------------------------------


def test_an_entry_holds_the_frame_its_number_and_its_times():
    site = Site()
    frames = [(query(4000 + i), NOW + i * 1000) for i in range(5)]
    assert site.run(frames) == "end"
    for i, entry in enumerate(site.entries()):
        data, when = frames[i]
        assert entry == {
            "sequence": i + 1, "clock": when, "time": when, "caplen": len(data), "linktype": 1,
            "source_port": 4000 + i, "destination_port": 53, "frame": data}
    assert i == 4
    assert site.counters == {"frames": 5, "bytes": sum(len(f) for f, _ in frames), "delivered": 5}


def test_frames_that_are_not_dns_take_a_number_too():
    """Else two captures of which one holds more would not be told apart by their numbers."""
    site = Site()
    frames = [query(), b"\0" * 60, query(dport=80), query()]
    site.run([(frame, NOW + i) for i, frame in enumerate(frames)])
    assert [e["sequence"] for e in site.entries()] == [1, 4]


def test_numbers_and_clock_go_on_from_source_to_source():
    site = Site()
    for i in range(3):
        assert site.run([(query(), NOW + i)]) == "end"
    assert [(e["sequence"], e["clock"]) for e in site.entries()] == [
        (i + 1, NOW + i) for i in range(3)]


@pytest.mark.parametrize("result", ["end", "idle", "broken"])
def test_what_the_source_says_is_passed_on_with_all_before_it_published(result):
    site = Site()
    assert site.run([(query(), NOW)], result) == result
    assert len(site.entries()) == 1
    assert site.readers[0].watermark == (NOW, 2)


def test_an_idle_turn_publishes_and_comes_back():
    site = Site()
    source = FakeSource([(query(), NOW), None, (query(), NOW + 1)])
    assert site.dispatcher.run(source) == "idle"
    assert len(site.entries()) == 1
    assert site.dispatcher.run(source) == "end"
    assert len(site.entries()) == 1


def test_turns_end_so_that_python_gets_its_say():
    site = Site(capacity=1 << 16)
    source = FakeSource([(b"", NOW)] * 40_000)
    turns = 0
    while site.dispatcher.run(source) == "turn":
        turns += 1
    assert turns == 40_000 // (64 * 256)
    assert site.counters["frames"] == 40_000


def test_flags_and_cut_frames_are_counted():
    site = Site()
    data = query()
    site.run([(data, NOW, 1, len(data) + 100), (data, NOW, 1, len(data), 1),
              (data, NOW, 1, len(data), 2)])
    counted = site.counters
    assert (counted["snapped"], counted["bad_time"]) == (1, 1)
    assert counted["bytes"] == 3 * len(data)


def test_release_lets_go_of_all_memory():
    buffer = bytearray(ring_bytes(4096))
    Ring(buffer, create=4096).release()
    ledger = bytearray(ledger_bytes(1))
    ledger_create(ledger)
    dispatcher = Dispatcher(rings=[Ring(buffer)], bells=[-1], bell=-1, slot=Slot(ledger, 0),
                            ports=[53], seed=1)
    dispatcher.release()
    buffer.extend(b"x")
    ledger.extend(b"x")


@pytest.mark.parametrize("count", [0, 65])
def test_a_number_of_workers_that_can_t_be_is_refused(count):
    with pytest.raises(ValueError, match="1 to 64"):
        Site(count, capacity=4096)


# --- the sensor clock ----------------------------------------------------------------------------


class Clock:
    """The rules of the sensor clock (ARCHITECTURE.md), once more, in unbounded integers."""

    def __init__(self):
        self.now = self.shift = None
        self.jumps = 0

    def see(self, when):
        if self.now is None:
            self.now = max(0, when)
        elif not -SECOND <= (step := when + self.shift - self.now) <= DAY or (
                self.now + step >= 1 << 63):
            self.jumps += 1
        else:
            self.now += max(0, step)
            return self.now
        self.shift = self.now - when
        return self.now


def clocks(*times):
    """(the clock at each frame, clock jumps counted)."""
    site = Site()
    site.run([(query(), when) for when in times])
    entries = site.entries()
    # A frame keeps its own time; one from before 1970, which no event can show, is counted.
    assert [e["time"] for e in entries] == [max(0, time) for time in times]
    assert site.counters.get("bad_time", 0) == sum(time < 0 for time in times)
    return [e["clock"] for e in entries], site.counters.get("clock_jumps", 0)


def test_the_clock_follows_the_frames():
    times = [NOW, NOW + 1, NOW + 1, NOW + SECOND, NOW + HOUR]
    assert clocks(*times) == (times, 0)


@pytest.mark.parametrize("back", [1, 1000, SECOND - 1, SECOND])
def test_a_step_back_of_up_to_a_second_leaves_it_standing(back):
    assert clocks(NOW, NOW - back, NOW - back + 5, NOW + 7) == (
        [NOW, NOW, max(NOW, NOW - back + 5), NOW + 7], 0)


def test_a_larger_step_back_re_bases_it():
    back = SECOND + 1
    assert clocks(NOW, NOW - back, NOW - back + 10, NOW - back + SECOND) == (
        [NOW, NOW, NOW + 10, NOW + SECOND], 1)


def test_a_capture_that_jumps_back_a_day_goes_on_at_its_pace():
    times = [NOW, NOW + 5, NOW - DAY, NOW - DAY + 7, NOW - DAY + HOUR]
    assert clocks(*times) == ([NOW, NOW + 5, NOW + 5, NOW + 12, NOW + 5 + HOUR], 1)


def test_a_leap_of_up_to_a_day_is_time_that_passed():
    assert clocks(NOW, NOW + DAY) == ([NOW, NOW + DAY], 0)


def test_a_larger_leap_re_bases_it():
    assert clocks(NOW, NOW + DAY + 1, NOW + DAY + 8) == ([NOW, NOW, NOW + 7], 1)


def test_to_2106_and_back():
    """One frame with a broken time between sound ones costs two jumps and no time."""
    assert clocks(NOW, Y2106, NOW + 50, NOW + 60) == ([NOW, NOW, NOW, NOW + 10], 2)
    assert clocks(Y2106, Y2106 + 5, 0, 3) == ([Y2106, Y2106 + 5, Y2106 + 5, Y2106 + 8], 1)


@pytest.mark.parametrize("first", [-1, -SECOND, -(1 << 63), -NOW])
def test_a_first_frame_from_before_1970_starts_it_at_zero(first):
    """-1 as a clock would be MARK_END: the workers would take it for the end of input."""
    assert clocks(first, first + 5, first + SECOND) == ([0, 5, SECOND], 0)


def test_the_clock_never_reaches_its_end_mark():
    """Pcapng can say 2262, or creep up to any time by a day with each frame."""
    last = (1 << 63) - 1
    assert clocks(last, last, last - 10, 0, 10) == ([last] * 5, 2)
    times = [last - DAY - 3, last - 3, last - 10 * DAY, last - 9 * DAY, last - 9 * DAY + 3]
    assert clocks(*times)[0] == [last - DAY - 3, last - 3, last - 3, last - 3, last]


def test_the_clock_counts_frames_that_are_not_dns():
    site = Site()
    site.run([(query(), NOW), (b"", NOW + 5 * SECOND), (query(), NOW + 4 * SECOND)])
    assert [e["clock"] for e in site.entries()] == [NOW, NOW + 5 * SECOND]


STEPS = st.one_of(
    st.integers(-3, 3), st.integers(-2 * SECOND, 2 * SECOND), st.integers(-2 * DAY, 2 * DAY),
    st.sampled_from([-SECOND - 1, -SECOND, SECOND, DAY, DAY + 1, -DAY, -NOW]),
)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, Y2106) | st.just(NOW), st.lists(STEPS, max_size=60))
def test_the_clock_against_the_rules_in_words(first, steps):
    times = [first]
    for step in steps:
        times.append(max(-NOW, min(2 * Y2106, times[-1] + step)))
    expected = Clock()
    found, jumps = clocks(*times)
    assert found == [expected.see(when) for when in times]
    assert jumps == expected.jumps
    assert found == sorted(found)


# --- the watermark -------------------------------------------------------------------------------


def test_the_watermark_is_the_number_that_comes_next_in_all_rings():
    site = Site(4)
    assert [r.watermark for r in site.readers] == [(0, 0)] * 4
    site.run([(query(), NOW), (b"", NOW + 9)])
    assert [r.watermark for r in site.readers] == [(NOW + 9, 3)] * 4
    site.run([])
    assert [r.watermark for r in site.readers] == [(NOW + 9, 3)] * 4
    site.dispatcher.end()
    assert [r.watermark for r in site.readers] == [(MARK_END, 3)] * 4


def test_the_end_wakes_every_worker():
    bells = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
    try:
        site = Site(3, bells=bells)
        assert all(r.says_it_sleeps() for r in site.readers)
        site.dispatcher.end()
        assert [os.eventfd_read(bell) for bell in bells] == [1, 1, 1]
    finally:
        for bell in bells:
            os.close(bell)


def port_of(site_of, worker):
    """A client port whose flow belongs to this worker."""
    for port in range(1024, 9000):
        site = site_of()
        site.run([(query(port), NOW)])
        if len(site.readers[worker].drain()):
            return port
    raise AssertionError("no flow for this worker")


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_while_it_waits_for_room_all_workers_learn_how_far_the_clock_is():
    """The sink may need the other worker's watermark to empty the very ring that is full."""
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    other_bell = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        def small():
            return Site(2, capacity=4096, bell=bell, bells=[-1, other_bell])

        port = port_of(small, 0)
        site = small()
        assert site.readers[1].says_it_sleeps()
        frames = [(query(port, payload=bytes([i]) * 100), NOW + i) for i in range(100)]
        thread = threading.Thread(target=site.run, args=(frames,), daemon=True)
        thread.start()
        until(lambda: site.slot.state == "waiting")
        # All that fits is published, though no batch is full; the frame in hand is not.
        entries = []
        first = site.readers[0].watermark
        assert site.readers[1].watermark == first
        assert os.eventfd_read(other_bell) == 1         # the idle worker has been told
        while (entry := site.readers[0].poll()) is not None:
            entries.append(frame_entry(entry))
        in_hand = len(entries) + 1
        assert 5 < in_hand < 40
        assert first == (NOW + in_hand - 1, in_hand)
        # Waiting is not hanging: its heart beats.
        beat = site.slot.heartbeat
        until(lambda: site.slot.heartbeat > beat)
        assert site.slot.state == "waiting"
        while len(entries) < 100:
            site.readers[0].release()
            while (entry := site.readers[0].poll()) is None:
                site.readers[0].release()
            entries.append(frame_entry(entry))
        site.readers[0].release()
        thread.join(20)
        assert not thread.is_alive()
        assert [e["frame"] for e in entries] == [f for f, _ in frames]
        assert [e["sequence"] for e in entries] == list(range(1, 101))
        assert [r.watermark for r in site.readers] == [(NOW + 99, 101)] * 2
        assert site.slot.state == "running"
        counted = site.counters
        assert counted["delivered"] == 100 and counted["waits"] >= 1
        assert "ring_dropped" not in counted
    finally:
        os.close(bell)
        os.close(other_bell)


def test_live_a_full_ring_drops_the_newest_and_counts():
    site = Site(capacity=4096, live=True)
    frames = [(query(payload=bytes([i]) * 100), NOW + i) for i in range(100)]
    assert site.run(frames) == "end"
    entries = site.entries()
    kept = len(entries)
    assert 5 < kept < 40
    assert [e["frame"] for e in entries] == [f for f, _ in frames[:kept]]
    assert site.counters == {
        "frames": 100, "bytes": sum(len(f) for f, _ in frames), "delivered": kept,
        "ring_dropped": 100 - kept, "kernel_received": 100}
    assert site.readers[0].loss == NOW + 99     # when the last one was dropped
    assert site.readers[0].watermark == (NOW + 99, 101)     # time goes on all the same
    site.run([(query(), NOW + 200)])
    assert [e["sequence"] for e in site.entries()] == [101]


# --- flows ---------------------------------------------------------------------------------------


def workers_of(frames, workers, **how):
    """The worker that each frame went to, by its place."""
    site = Site(workers, capacity=1 << 16 if len(frames) <= 200 else 1 << 20, **how)
    site.run([(frame, NOW) for frame in frames])
    where = {}
    for worker in range(workers):
        for entry in site.entries(worker):
            where[entry["sequence"] - 1] = worker
    assert len(where) == len(frames)
    return [where[i] for i in range(len(frames))]


ADDRESSES = st.one_of(
    st.tuples(*[st.ip_addresses(v=4).map(str)] * 2),
    st.tuples(*[st.ip_addresses(v=6).map(str)] * 2))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(ADDRESSES, st.integers(1, 65535)), min_size=1, max_size=20),
       st.integers(1, 16), st.integers(0, (1 << 64) - 1))
def test_a_flow_has_one_worker_in_both_directions(flows, workers, seed):
    there = [query(port, source=a, to=b) for (a, b), port in flows]
    back = [query(53, port, source=b, to=a) for (a, b), port in flows]
    # Other payloads, tags and lengths are no other flow.
    again = [build.frame(build.udp(a, port, b, 53, b"other" * 9), vlan=(5,))
             for (a, b), port in flows]
    first = workers_of(there, workers, seed=seed)
    assert workers_of(back, workers, seed=seed) == first
    assert workers_of(again, workers, seed=seed) == first


def chi_square(counts):
    expected = sum(counts) / len(counts)
    return sum((n - expected) ** 2 for n in counts) / expected


FLOWS = 4000
SPREADS = {
    "ports": lambda i: query(1024 + i),
    "even ports": lambda i: query(1024 + 2 * i),
    "clients": lambda i: query(source=f"10.0.{i >> 8}.{i & 255}"),
    "networks": lambda i: query(source=f"10.{i >> 8}.{i & 255}.1"),
    "servers": lambda i: query(to=f"10.0.{i >> 8}.{i & 255}"),
    "neighbours": lambda i: query(source=f"10.0.{i >> 8}.{i & 255}",
                                  to=f"10.0.{i >> 8}.{i & 255 ^ 1}"),
    "port and address rise together":
        lambda i: query(1024 + i, source=f"10.0.{i >> 8}.{i & 255}"),
    "port rises as address falls":
        lambda i: query(1024 + i, source=f"10.0.{(FLOWS - i) >> 8}.{(FLOWS - i) & 255}"),
    "IPv6 hosts": lambda i: query(source=f"2001:db8::{i:x}", to="2001:db8:53::1"),
    "IPv6 networks": lambda i: query(source=f"2001:db8:{i:x}::1", to="2001:db8:53::1"),
    "IPv6 ports": lambda i: query(1024 + i, source="2001:db8::1", to="2001:db8:53::1"),
}


@pytest.fixture(scope="module", params=SPREADS)
def spread(request):
    """Frames of flows that differ by what rises by one."""
    return [SPREADS[request.param](i) for i in range(FLOWS)]


@pytest.mark.parametrize("workers", [2, 3, 7, 16])
def test_neighbouring_flows_spread_over_all_workers(spread, workers):
    """Whatever rises by one.  For workers - 1 degrees of freedom chi-square has that mean and
    twice that variance; the bound is eight deviations off, and the seeds are fixed."""
    bound = (workers - 1) + 8 * (2 * (workers - 1)) ** 0.5
    for seed in (1, 0xFEDCBA9876543210, (1 << 64) - 1):
        where = workers_of(spread, workers, seed=seed)
        counts = [where.count(w) for w in range(workers)]
        assert chi_square(counts) < bound, (seed, counts)


def test_the_seed_decides_which_flows_meet():
    flows = [query(1024 + i) for i in range(200)]
    assert workers_of(flows, 8, seed=1) == workers_of(flows, 8, seed=1)
    other = workers_of(flows, 8, seed=2)
    same = sum(a == b for a, b in zip(workers_of(flows, 8, seed=1), other, strict=True))
    assert same < 60            # by chance 25


# --- fates ---------------------------------------------------------------------------------------

GOOD = build.udp(CLIENT, 4000, SERVER, 53, b"q" * 12)
ONE_OF_EACH = {
    "other_port": query(dport=5353),
    "other_transport": build.frame(build.ipv4(CLIENT, SERVER, 1, b"ping" * 4)),
    "icmp_error": build.frame(build.ipv4(CLIENT, SERVER, 1, b"\3\1" + bytes(6) + GOOD)),
    "tunnel_header": build.frame(build.ipv4(CLIENT, SERVER, 47, b"\0")),
    "tunnel_depth": build.frame(wraps.ip_in_ip(CLIENT, SERVER, wraps.ip_in_ip(
        CLIENT, SERVER, wraps.ip_in_ip(CLIENT, SERVER, wraps.ip_in_ip(
            CLIENT, SERVER, wraps.ip_in_ip(CLIENT, SERVER, GOOD)))))),
    "other_protocol": build.frame(b"\0" * 28, ethertype=0x0806),
    "tcp_header": build.frame(build.ipv4(CLIENT, SERVER, 6, GOOD[20:28])),
    "link_type": (GOOD, 147),
    "link_header": build.frame(GOOD)[:13],
    "too_many_tags": build.frame(GOOD, vlan=(1,) * 17),
    "ip_header": build.frame(GOOD[:19], ethertype=0x0800),
    "ip_length": build.frame(build.ipv4(CLIENT, SERVER, 17, GOOD[20:], total=1000)),
    "ip_extension": build.frame(build.ipv6("::1", "::2", 0, b"\x11\xff")),
    "transport_header": build.frame(build.ipv4(CLIENT, SERVER, 17, GOOD[20:26])),
    "udp_length": build.frame(build.udp(CLIENT, 4000, SERVER, 53, b"q" * 12, length=7)),
}


def test_there_is_one_frame_for_each_fate():
    """But for pieces, which have counters of their own, and what a filter leaves out."""
    assert set(ONE_OF_EACH) == set(FATES) - {"dns", "fragment", "filtered"}


@pytest.mark.parametrize("fate", ONE_OF_EACH)
def test_a_frame_is_counted_under_its_fate_once_and_goes_nowhere(fate):
    site = Site(2)
    frame = ONE_OF_EACH[fate]
    data, linktype = frame if isinstance(frame, tuple) else (frame, 1)
    site.run([(data, NOW, linktype)])
    assert site.counters == {"frames": 1, "bytes": len(data), f"fate.{fate}": 1}
    assert site.entries(0) == site.entries(1) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*ONE_OF_EACH, "dns"]) | st.binary(max_size=80), max_size=50),
       st.booleans())
def test_every_frame_is_counted_once(frames, live):
    """The balance: frames read = not DNS + undecoded by reason + ring-dropped + delivered."""
    site = Site(3, capacity=4096 if live else 1 << 16, live=live)
    made = []
    for frame in frames:
        if frame == "dns":
            made.append((query(payload=b"q" * 200), NOW))
        elif isinstance(frame, bytes):
            made.append((frame, NOW))
        else:
            known = ONE_OF_EACH[frame]
            made.append((known[0], NOW, known[1]) if isinstance(known, tuple) else (known, NOW))
    site.run(made)
    counted = site.slot.read(CAPTURE)
    delivered = sum(len(site.entries(w)) for w in range(3))
    assert counted["frames"] == len(frames)
    assert counted["delivered"] == delivered
    fates = sum(value for name, value in counted.items() if name.startswith("fate."))
    assert fates + counted["ring_dropped"] + delivered == len(frames)
    for fate in ONE_OF_EACH:
        assert counted[f"fate.{fate}"] >= frames.count(fate)


@pytest.mark.parametrize(
    ("ports", "sport", "dport", "taken"),
    [((53,), 53, 4000, True), ((53,), 4000, 53, True), ((53,), 4000, 5353, False),
     ((53, 5353), 5353, 5353, True), ((1, 65535), 65535, 9, True), ((1, 65535), 2, 65534, False)])
def test_ports(ports, sport, dport, taken):
    site = Site(ports=ports)
    site.run([(query(sport, dport), NOW)])
    assert len(site.entries()) == taken

