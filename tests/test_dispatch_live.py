"""Dispatch of a live capture: the clock without frames, losses, numbers of several processes."""

from __future__ import annotations

import os
import threading
import time

import pytest

from gazer.testing import FakeSource

from .test_dispatch import HOUR, NOW, SECOND, Site, query

MS = 1_000_000


def live(workers=1, **how):
    return Site(workers, live=True, **how)


def clock(site):
    """The sensor clock as the first worker knows it."""
    return site.readers[0].watermark[0]


def idle(site):
    """One turn in which the source has nothing."""
    assert site.dispatcher.run(FakeSource([], "idle")) == "idle"


def see(site, *times):
    """The clock at frames of these times, which come together."""
    site.run([(query(), when) for when in times], "idle")
    return [entry["clock"] for entry in site.entries()]


# --- the clock -----------------------------------------------------------------------------------


def test_it_begins_with_the_machine_s_clock():
    before = time.time_ns()
    site = live(start=None)
    assert before <= clock(site) <= time.time_ns()


def test_workers_know_it_before_anything_came():
    site = live(2)
    assert [reader.watermark for reader in site.readers] == [(NOW, 1)] * 2


@pytest.mark.parametrize("turn", [idle, lambda site: site.dispatcher.idle()],
                         ids=["source", "no source"])
def test_it_goes_on_with_the_time_that_passes(turn):
    site = live()
    turn(site)
    since, began = clock(site), time.monotonic_ns()
    for _ in range(5):
        time.sleep(0.02)
        turn(site)
    passed = clock(site) - since
    # A turn's clock is that of its beginning; so of the first one it may lack what that took.
    assert 100 * MS <= passed <= time.monotonic_ns() - began + 50 * MS
    assert site.readers[0].watermark[1] == 1
    assert site.counters == {}


def test_it_goes_on_from_the_last_frame():
    """Which may have come a while ago, and have been stamped by another clock."""
    site = live()
    began = time.monotonic_ns()
    see(site, NOW + 700 * MS)
    time.sleep(0.03)
    idle(site)
    assert 0 <= clock(site) - (NOW + 700 * MS) <= time.monotonic_ns() - began
    time.sleep(0.03)
    idle(site)
    assert clock(site) - (NOW + 700 * MS) >= 30 * MS


def test_a_frame_that_is_a_little_older_leaves_it_standing():
    site = live()
    see(site, NOW)
    time.sleep(0.05)
    idle(site)
    idle(site)
    now = clock(site)
    assert now >= NOW + 50 * MS
    assert see(site, NOW + 1, NOW + 2, now + 5) == [now, now, now + 5]
    assert "clock_jumps" not in site.counters


def test_frames_that_waited_in_the_buffer_are_no_jump():
    """The process did not run for a while; their times are seconds apart, and come all at once."""
    site = live()
    see(site, NOW)
    time.sleep(1.2)
    times = [NOW + 200 * MS, NOW + 2100 * MS]
    assert see(site, *times) == times
    assert "clock_jumps" not in site.counters


@pytest.mark.parametrize("ahead", [SECOND + 50 * MS + 1, 5 * SECOND, HOUR, 400 * 24 * HOUR])
def test_a_clock_that_was_set_ahead_is_a_jump(ahead):
    """Nothing may time out because the machine's clock was wrong until now."""
    site = live()
    began = time.monotonic_ns()
    (at,) = see(site, NOW)
    first, second = see(site, NOW + ahead, NOW + ahead + 10)
    assert 0 <= first - at <= time.monotonic_ns() - began + MS
    assert second == first + 10
    assert site.counters["clock_jumps"] == 1


def test_a_clock_that_was_set_back_is_a_jump():
    site = live()
    (at,) = see(site, NOW)
    first, second = see(site, NOW - HOUR, NOW - HOUR + 10)
    assert at <= first <= at + 5 * SECOND and second == first + 10
    assert site.counters["clock_jumps"] == 1


def test_two_clocks_that_alternate_do_not_stop_the_time():
    """Each frame is a jump then; the clock goes on with the time that passes all the same."""
    site = live()
    see(site, NOW)
    idle(site)
    began = time.monotonic_ns()
    while time.monotonic_ns() < began + 50 * MS:
        see(site, NOW, NOW + 10 * SECOND)
        time.sleep(0.005)
    clocks = see(site, NOW, NOW + 10 * SECOND)
    assert clocks[-1] >= NOW + 45 * MS
    assert clocks[-1] <= NOW + 5 * SECOND


def test_frames_older_than_the_clock_keep_their_own_time():
    site = live()
    site.run([(query(), NOW - 5)])
    assert [(e["time"], e["clock"]) for e in site.entries()] == [(NOW - 5, NOW)]


# --- numbers -------------------------------------------------------------------------------------


def test_a_number_has_its_capture_process():
    """Keys (clock, number) of several processes never meet, and compare by process at one clock."""
    sites = [live(capture=i) for i in (0, 1, 15)]
    for site, index in zip(sites, (0, 1, 15), strict=True):
        site.run([(query(), NOW), (b"", NOW), (query(), NOW)])
        assert [e["sequence"] for e in site.entries()] == [(index << 56) + 1, (index << 56) + 3]
        assert site.readers[0].watermark == (NOW, (index << 56) + 4)


def test_the_same_flow_has_the_same_worker_for_all_of_them():
    for n in range(20):
        where = []
        for index in range(3):
            site = live(4, capture=index)
            site.run([(query(4000 + n), NOW)])
            where.append([len(site.entries(w)) for w in range(4)])
        assert where[0] == where[1] == where[2]


# --- losses --------------------------------------------------------------------------------------


def test_drops_of_the_kernel_concern_all_workers():
    site = live(3)
    site.dispatcher.kernel(10, 0, 0)
    assert [reader.loss for reader in site.readers] == [0, 0, 0]
    site.dispatcher.kernel(20, 1, 0)
    assert [reader.loss for reader in site.readers] == [NOW] * 3
    see(site, NOW + 300)
    site.dispatcher.kernel(30, 1, 0)            # no new ones
    assert [reader.loss for reader in site.readers] == [NOW] * 3
    site.dispatcher.kernel(30, 1, 1)            # the interface's
    assert [reader.loss for reader in site.readers] == [NOW + 300] * 3
    site.dispatcher.idle()
    assert {n: v for n, v in site.counters.items() if n.startswith(("kernel", "inter"))} == {
        "kernel_received": 30, "kernel_dropped": 1, "interface_dropped": 1}


def test_a_drop_at_a_ring_concerns_its_worker_alone():
    site = Site(2, capacity=4096, live=True)
    flows = [(query(4000 + i, payload=bytes(100)), NOW) for i in range(50)]
    probe = Site(2, capacity=1 << 16)
    probe.run(flows)
    ours = [flows[e["sequence"] - 1] for e in probe.entries(0)]
    site.run(ours * 5)
    assert site.counters["ring_dropped"] > 0
    assert [reader.loss for reader in site.readers] == [NOW, 0]


def test_what_the_kernel_received_is_never_less_than_what_is_known_of_it():
    """It is asked now and then only, and the account is to hold at any commit."""
    site = live()
    see(site, *[NOW] * 50)
    assert site.counters["kernel_received"] == 50
    site.dispatcher.kernel(70, 15, 0)
    see(site, *[NOW] * 3)
    assert site.counters["kernel_received"] == 70       # two more are in the buffer
    see(site, *[NOW] * 4)
    assert site.counters["kernel_received"] == 50 + 15 + 7


def test_whoever_drains_waits_for_room():
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        site = Site(1, capacity=4096, live=True, bell=bell)
        site.dispatcher.wait_for_room()
        taken = []
        frames = [(query(payload=bytes([i]) * 200), NOW) for i in range(60)]

        def reader():
            deadline = time.monotonic() + 20
            while len(taken) < 60 and time.monotonic() < deadline:
                taken.extend(site.entries())

        thread = threading.Thread(target=reader)
        thread.start()
        site.run(frames)
        thread.join()
        assert [e["frame"] for e in taken] == [f for f, _ in frames]
        assert "ring_dropped" not in site.counters
    finally:
        os.close(bell)
