"""The live source, on a real kernel: what it gives is compared with what was injected."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from gazer.capture.bpf import kernel_filter
from gazer.capture.doors import passes
from gazer.capture.files import open_source
from gazer.capture.filter import Filter
from gazer.capture.live import LiveSource
from gazer.capture.testing import count_all, read_all, read_one, widened
from gazer.config import Capture, Tunnels
from gazer.errors import ConfigError, InputError, InterfaceAbsent
from tests.oracle import build

pytest_plugins = ["tests.netns"]

ROOT = Path(__file__).parents[1]
CAPTURES = ROOT / "tests" / "captures"
WIRE = build.query("example.com.", "A", id=7)
PACKET = build.udp("192.0.2.2", 4000, "192.0.2.1", 53, WIRE)
QUERY = build.frame(PACKET)
OTHER = build.frame(build.udp("192.0.2.2", 4000, "192.0.2.1", 54, WIRE))
SMALL = 1 << 20     # a ring of four blocks


def port_53(linktype):
    return "udp port 53"


def source_on(lab, interface="gz0", **options):
    """Opened, inside."""
    source = LiveSource(interface, **{
        "snaplen": 262144, "buffer_bytes": SMALL, "promiscuous": True, "filter_of": port_53,
        **options})
    lab.inside(source.open)
    return source


def get(source, count, seconds=10.0):
    """The next frames; fails if they don't come."""
    frames, deadline = [], time.monotonic() + seconds
    while len(frames) < count:
        result, frame = read_one(source)
        if result == "frame":
            frames.append(frame)
        else:
            assert result == "idle", source.error
            assert time.monotonic() < deadline, f"{len(frames)} of {count} frames"
    return frames


def rest(source):
    """Drained: what it gives to its end."""
    source.drain()
    frames, result, error = read_all(source)
    assert result == "end" and error is None
    return frames


@contextmanager
def flood(lab, frame):
    """Frames without end, meanwhile; yields the list whose first item counts them at the end."""
    stop, sent = threading.Event(), [0]

    def run():
        while not stop.is_set():
            sent[0] += lab.send([frame] * 100)

    lab.send([])        # the socket
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield sent
    finally:
        stop.set()
        thread.join()


# --- frames --------------------------------------------------------------------------------------


def test_frames_come_as_they_were_sent(lab):
    lab.veth()
    source = source_on(lab)
    assert source.linktype == 1 and source.warning is None
    frames = [
        build.frame(build.udp("192.0.2.2", 1000 + i, "192.0.2.1", 53, WIRE)) for i in range(300)]
    before = time.time_ns()
    lab.send(frames)
    got = get(source, 300)
    after = time.time_ns()
    assert [f[0] for f in got] == frames
    assert all(f[1] == f[2] == len(QUERY) and f[4:] == (1, 0) for f in got)
    times = [f[3] for f in got]
    assert before <= times[0] and times == sorted(times) and times[-1] <= after
    assert any(t % 1000 for t in times), "nanoseconds"
    assert source.frames == 300
    assert source.stats() == (300, 0, 0)
    source.close()


def test_a_lone_frame_is_read_at_once(lab):
    """Within a block's time, not when a block is full."""
    lab.veth()
    source = source_on(lab)
    taken = []
    for _ in range(10):
        begun = time.monotonic()
        lab.send([QUERY])
        get(source, 1)
        taken.append(time.monotonic() - begun)
    assert sorted(taken)[5] < 0.1, taken
    source.close()


def test_snaplen(lab):
    lab.veth()
    source = source_on(lab, snaplen=60)
    lab.send([QUERY])
    (frame,) = get(source, 1)
    assert frame[:3] == (QUERY[:60], 60, len(QUERY))
    source.close()


@pytest.mark.parametrize("tpids", [
    [0x8100], [0x88A8], [0x9100], [0x8100, 0x8100], [0x88A8, 0x8100], [0x8100, 0x9100],
    [0x9100, 0x8100], [0x8100] * 3, [0x88A8, 0x8100, 0x8100],
], ids=lambda tpids: "-".join(f"{t:x}" for t in tpids))
def test_vlan_tags_are_where_they_were(lab, tpids):
    """The kernel takes the outermost one out; with the filter that the sensor has."""
    lab.veth()
    source = source_on(lab, filter_of=lambda t: kernel_filter(Capture(), Tunnels(), t))
    tags = {"vlan": [0x2005, 6, 7][: len(tpids)], "tpids": tpids}
    wanted, other = build.frame(PACKET, **tags), build.frame(OTHER[14:], **tags)
    lab.send([wanted, OTHER, other, QUERY])
    # Behind three tags the filter does not look.
    expected = [wanted, QUERY] if len(tpids) < 3 else [wanted, other, QUERY]
    got = rest(source)
    assert [f[0] for f in got] == expected
    assert all(f[1] == f[2] == len(f[0]) for f in got)
    assert source.stats() == (len(expected), 0, 0)
    source.close()


def test_real_traffic_passes_as_it_would_from_a_file(lab):
    """All captures with Ethernet frames, through the sensor's filter: libpcap's own interpreter
    says which of them come."""
    lab.veth()
    for where, end in (("sensor", "gz0"), ("far", "gz1")):
        assert lab.run(["ip", "link", "set", end, "mtu", "65535"], where).returncode == 0
    text = kernel_filter(Capture(), Tunnels())
    filter = Filter(text)
    files = 0
    for path in sorted(CAPTURES.glob("*.pcap*")):
        capture = open_source(str(path), snaplen=262144)
        sent = [f[0] for f in read_all(capture)[0] if f[4] == 1 and len(f[0]) >= 14]
        capture.close()
        if not sent:
            continue
        files += 1
        source = source_on(lab, buffer_bytes=64 << 20, filter_of=lambda t: text)
        lab.send(sent)
        got = [f[0] for f in rest(source)]
        expected = [f for f in sent if passes(filter, f)]
        assert got == expected, path.name
        assert source.stats() == (len(expected), 0, 0)
        source.close()
    assert files > 3


def test_large_frames(lab):
    """64 of them are more than the batch usually holds; and they fill blocks."""
    lab.veth()
    for where, end in (("sensor", "gz0"), ("far", "gz1")):
        assert lab.run(["ip", "link", "set", end, "mtu", "65535"], where).returncode == 0
    source = source_on(lab, buffer_bytes=32 << 20)
    frames = [build.frame(build.udp("192.0.2.2", 1, "192.0.2.1", 53, bytes([i]) * 60000))
              for i in range(200)]
    lab.send(frames)
    assert [f[0] for f in get(source, 200)] == frames
    source.close()


def test_any_interface(lab):
    """Linux cooked frames; what is sent and received on the loopback interface counts once."""
    lab.veth()
    lab.addresses(ipv6=False)
    source = source_on(lab, "any", filter_of=lambda t: kernel_filter(Capture(), Tunnels(), t))
    assert source.linktype == 113 and source.warning is None
    lab.send([QUERY, OTHER, build.frame(PACKET, vlan=[9])])

    def loop():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.sendto(b"here", ("127.0.0.1", 53))

    lab.inside(loop)
    got = [f[0] for f in get(source, 3)] + [
        f[0] for f in rest(source) if b"\0\x35" not in f[0][-60:]]
    assert got[0][14:] == b"\x08\x00" + PACKET
    assert got[1][14:] == b"\x81\x00\x00\x09\x08\x00" + PACKET
    assert got[2].endswith(b"here")
    # (The port unreachable that quotes it is no frame of ours.)
    assert len(got) == 3 and source.stats() == (3, 0, 0)
    source.close()


def test_the_loopback_interface(lab):
    lab.inside(lambda: subprocess.run(["ip", "link", "set", "lo", "up"], check=True))
    source = source_on(lab, "lo")

    def loop():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            for i in range(50):
                s.sendto(bytes([i]), ("127.0.0.1", 53))

    lab.inside(loop)
    assert [f[0][-1] for f in get(source, 50)] == list(range(50))
    assert rest(source) == [] and source.stats() == (50, 0, 0)
    source.close()


# --- waiting -------------------------------------------------------------------------------------


def test_idle_costs_nothing(lab):
    lab.veth()
    source = source_on(lab)
    begun, cpu = time.monotonic(), time.thread_time()
    for _ in range(10):
        assert read_one(source) == ("idle", None)
    took, cpu = time.monotonic() - begun, time.thread_time() - cpu
    assert 0.9 < took < 5
    assert cpu < took / 100
    source.close()


def test_not_open_yet_waits_too():
    source = LiveSource("gz0", snaplen=100, buffer_bytes=SMALL, promiscuous=True,
                        filter_of=port_53, wait_ms=30)
    begun = time.monotonic()
    assert read_one(source) == ("idle", None)
    assert time.monotonic() - begun >= 0.029
    assert source.stats() == (0, 0, 0)
    source.drain()
    source.close()
    assert read_one(source) == ("end", None)
    with pytest.raises(ValueError):
        source.open()


def test_the_wake_descriptor_ends_a_wait_and_is_emptied(lab):
    lab.veth()
    wake = os.eventfd(0, os.EFD_NONBLOCK)
    source = source_on(lab, wake=wake, wait_ms=20_000)
    timer = threading.Timer(0.05, lambda: os.eventfd_write(wake, 1))
    timer.start()
    begun = time.monotonic()
    assert read_one(source) == ("idle", None)
    assert 0.04 < time.monotonic() - begun < 10
    with pytest.raises(BlockingIOError):
        os.eventfd_read(wake)
    # And frames that are there come first.
    os.eventfd_write(wake, 1)
    lab.send([QUERY])
    get(source, 1)
    source.close()
    os.close(wake)
    timer.join()


def test_a_signal_ends_a_wait(lab):
    lab.veth()
    source = source_on(lab, wait_ms=20_000)
    came = []
    old = signal.signal(signal.SIGALRM, lambda *_: came.append(time.monotonic()))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        begun = time.monotonic()
        assert read_one(source) == ("idle", None)
        assert came and time.monotonic() - begun < 10
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    source.close()


# --- the filter, and the account -----------------------------------------------------------------


def test_no_frame_of_before_the_filter(lab):
    """Under a flood of others, not one of them is ever in the ring."""
    lab.veth()
    with flood(lab, OTHER):
        for _ in range(5):
            before = lab.counter("rx_packets")
            source = source_on(lab)
            while lab.counter("rx_packets") < before + 2000:
                pass
            assert rest(source) == []
            assert source.stats() == (0, 0, 0)
            source.close()
        source = source_on(lab)
    lab.send([QUERY])
    assert [f[0] for f in rest(source)] == [QUERY]
    source.close()


def test_an_overflow_is_counted_to_the_frame(lab):
    lab.veth()
    source = source_on(lab)
    injected = lab.send([QUERY, OTHER] * 20_000) // 2
    source.drain()
    lab.send([QUERY] * 100)     # too late
    frames, octets, result = count_all(source)
    received, dropped, missed = source.stats()
    assert result == "end" and octets == frames * len(QUERY)
    assert dropped > 1000 and frames > 1000
    assert received == injected == dropped + frames
    assert source.frames == frames and missed == 0
    source.close()
    assert source.stats() == (received, dropped, missed)
    assert read_one(source) == ("end", None)


def test_a_drain_in_the_middle_of_a_flood(lab):
    """What is on its way past the filter when it is closed is counted and read."""
    lab.veth()
    after = 0
    with flood(lab, QUERY):
        for _ in range(20):
            source = source_on(lab)
            get(source, 500)
            source.drain()
            frames, _, result = count_all(source)
            received, dropped, _ = source.stats()
            assert result == "end"
            assert received == dropped + source.frames
            after += frames
            source.close()
    assert after > 1000


def test_nothing_comes_after_a_drain(lab):
    lab.veth()
    source = source_on(lab)
    lab.send([QUERY] * 3)
    source.drain()
    source.drain()
    lab.send([QUERY] * 3)
    assert len(read_all(source)[0]) == 3
    lab.send([QUERY] * 3)
    assert [read_one(source)[0] for _ in range(3)] == ["end"] * 3
    assert source.stats() == (3, 0, 0)
    source.close()
    source.close()


@pytest.mark.parametrize("readings, drops, total", [
    ([5, 5, 9], False, 9),
    ([1 << 31, 0, 7], False, (1 << 32) + 7),
    ([0xFFFFFFFF, 0, 0xFFFFFFFF], False, (1 << 33) - 1),
    ([5, 9], True, 9),
    ([0x7FFFFFFF, 0xFFFFFFFE, 3], True, (1 << 32) + 3),
    # It has gone, its file with it, and it came back and counts from 0.
    ([1000, 0, 20], True, 1020),
    ([0xFFFFFF00, 0xFFFFFF04], True, 4),    # the same in libpcap's sum, that began at 0
])
def test_counters_are_widened(readings, drops, total):
    assert widened(readings, drops) == total


# --- interfaces that are not there ---------------------------------------------------------------


def test_waiting_for_an_interface(lab):
    source = LiveSource("gz0", snaplen=1000, buffer_bytes=SMALL, promiscuous=True,
                        filter_of=port_53)
    with pytest.raises(InterfaceAbsent, match="gz0: no such interface"):
        lab.inside(source.open)
    lab.veth(up=False)
    with pytest.raises(InterfaceAbsent, match="gz0: the interface is not up"):
        lab.inside(source.open)
    lab.up("far")
    lab.up()
    lab.inside(source.open)
    lab.send([QUERY])
    get(source, 1)
    with pytest.raises(ValueError):
        source.open()
    source.close()


@pytest.mark.parametrize("how", ["down", "delete", "replace", "far end's namespace"])
def test_an_interface_that_goes(lab, how):
    """What was in the ring comes first, to the last frame."""
    lab.veth()
    source = source_on(lab)
    lab.send([QUERY] * 100)
    if how == "down":
        lab.down()
    elif how == "delete":
        lab.delete()
    elif how == "replace":      # another one of that name is no substitute
        lab.delete()
        lab.veth()
    else:
        lab._drop_socket()
        lab._must("netns", "del", lab.names["far"])
    begun = time.monotonic()
    frames, result, error = read_all(source)
    assert time.monotonic() - begun < 5
    assert (len(frames), result, error) == (
        100, "broken", "gz0: the interface is down, or has gone")
    assert source.gone
    assert source.stats()[:2] == (100, 0)
    assert source.stats()[2] == 0, "libpcap's own count goes below 0 here"
    assert read_one(source) == ("broken", None)
    source.close()
    assert source.error == error and read_one(source) == ("broken", None)


def test_it_goes_while_it_is_waited_for(lab):
    lab.veth()
    source = source_on(lab)
    timer = threading.Timer(0.1, lab.down)
    timer.start()
    begun = time.monotonic()
    assert read_all(source)[1] == "broken" and source.gone
    assert 0.05 < time.monotonic() - begun < 5
    timer.join()
    lab.up()
    source.close()
    fresh = source_on(lab)
    lab.send([QUERY])
    get(fresh, 1)
    fresh.close()


def test_a_flap_goes_on(lab):
    lab.veth()
    source = source_on(lab)
    lab.send([QUERY])
    lab.down()
    lab.up()
    lab.send([QUERY])
    get(source, 2)
    assert read_one(source)[0] == "idle" and not source.gone
    source.close()


def test_a_drain_ends_whatever_the_interface_does(lab):
    lab.veth()
    source = source_on(lab)
    lab.send([QUERY] * 5)
    source.drain()
    lab.delete()
    frames, result, _ = read_all(source)
    assert (len(frames), result) == (5, "end")
    source.close()


def test_an_interface_going_down_leaves_any_alone(lab):
    lab.veth()
    source = source_on(lab, "any")
    lab.down()
    assert [read_one(source)[0] for _ in range(2)] == ["idle"] * 2
    lab.up()
    lab.send([QUERY])
    get(source, 1)
    assert not source.gone
    source.close()


# --- refusals ------------------------------------------------------------------------------------


def test_no_permission(lab):
    lab.veth()
    code = (
        "from gazer.capture.live import LiveSource\n"
        "from gazer.errors import CaptureDenied\n"
        "s = LiveSource('gz0', snaplen=99, buffer_bytes=1 << 20, promiscuous=True,\n"
        "               filter_of=lambda t: '')\n"
        "try:\n    s.open()\nexcept CaptureDenied as error:\n    print(error)\n")
    done = lab.run(["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw",
                    sys.executable, "-c", code], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gz0: no permission to capture: run it as root, or with CAP_NET")
    assert done.stdout.count("\n") == 1


def test_a_filter_that_does_not_fit(lab):
    lab.veth()
    with pytest.raises(ConfigError, match="gz0: the filter does not fit link type 1: "):
        source_on(lab, filter_of=lambda t: "port nonsense nonsense")
    with pytest.raises(ConfigError, match="NUL"):
        source_on(lab, filter_of=lambda t: "port 53\0")


def test_a_filter_that_the_kernel_does_not_take(lab, capfd):
    """Without one in the kernel libpcap would filter by itself, uncounted."""
    lab.veth()
    text = " or ".join(f"ether[{i}] * ether[{i + 1}] + ether[{i + 2}] = {i}" for i in range(700))
    with pytest.raises(InputError, match="the kernel does not take the filter"):
        source_on(lab, filter_of=lambda t: text)
    assert "Kernel filter failed" in capfd.readouterr().err     # libpcap's own word


def test_a_refusal_leaves_nothing_open(lab):
    lab.veth()
    before = sorted(os.listdir("/proc/self/fd"))
    source = LiveSource("gz0", snaplen=99, buffer_bytes=SMALL, promiscuous=True,
                        filter_of=lambda t: "nonsense nonsense")
    for _ in range(3):
        with pytest.raises(ConfigError):
            lab.inside(source.open)
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("wrong", [
    {"snaplen": 0}, {"snaplen": 262145}, {"buffer_bytes": 1000}])
def test_sizes_out_of_range(wrong):
    with pytest.raises(ValueError):
        LiveSource("gz0", **{"snaplen": 100, "buffer_bytes": SMALL, "promiscuous": True,
                             "filter_of": port_53, **wrong})


@pytest.mark.parametrize("name", ["", ".", "..", "a\0b", "x" * 16, "../gz0", "a b", "a:1", "a\n"])
def test_names_that_no_interface_can_have(name):
    """They are not waited for."""
    source = LiveSource(name, snaplen=99, buffer_bytes=SMALL, promiscuous=True, filter_of=port_53)
    with pytest.raises(InputError, match="can't be the name of an interface") as caught:
        source.open()
    assert not isinstance(caught.value, InterfaceAbsent)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["nflog", "usbmon0", "dbus-system", "bluetooth0"])
def test_what_libpcap_knows_beside_interfaces(lab, name):
    with pytest.raises(InputError):
        source_on(lab, name)


@pytest.mark.parametrize("size", [SMALL, SMALL + 1, 3 << 20])
def test_the_buffer_has_the_size_that_was_asked_for(lab, size):
    lab.veth()
    source = source_on(lab, buffer_bytes=size)
    assert source.ring_bytes == -(-size // 262144) * 262144
    assert source.warning is None
    source.close()


def test_promiscuous_or_not(lab):
    lab.veth()

    def promiscuity():
        text = lab.run(["ip", "-d", "link", "show", "gz0"]).stdout
        return text.partition("promiscuity ")[2].split()[0]

    for wanted, is_ in ((False, "0"), (True, "1")):
        source = source_on(lab, promiscuous=wanted)
        assert promiscuity() == is_ and source.promiscuous is wanted
        source.close()
        assert promiscuity() == "0"


def test_frames_that_this_machine_sends(lab):
    lab.veth()
    source = source_on(lab)
    lab.send([QUERY] * 3, where="sensor")
    assert [f[0] for f in get(source, 3)] == [QUERY] * 3
    source.close()
