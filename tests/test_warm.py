"""Everything a worker does, under its filter: no road that a stranger can choose kills it.

Each test forks, warms up, puts the filter before itself and works; what comes out is held against
what comes out without a filter.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import mmap
import multiprocessing
import os
import platform
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import flood
from gazer import child, counters, seccomp, system
from gazer.config import Config
from gazer.errors import ProcessError, SharedMemoryError
from gazer.ring import Ring, ring_bytes
from gazer.segment import PREFIX, Segment, new_token
from gazer.topology import Topology
from gazer.workers import doors, probe, rrtypes, slow
from gazer.workers.warm import warm_up
from tests.forked import forked
from tests.hostile import bombs
from tests.hostile.test_hostile_records import GOOD
from tests.oracle import build
from tests.oracle.events import Rules
from tests.test_engine import START, engine_of
from tests.wire import NUMBER

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "fuzz"))

import corpora  # noqa: E402
import seeds  # noqa: E402

pytestmark = pytest.mark.skipif(
    platform.machine() not in seccomp.ARCHITECTURES
    or not system.seccomp_knows(seccomp.KILL_PROCESS),
    reason="this machine, or its kernel, has no such filter")

ENDS = {"client": "192.0.2.1", "client_port": 4000, "server": "192.0.2.53", "server_port": 53,
        "ident": 7}
LOC = GOOD["LOC"]


def lock(fd):
    """As a worker does before its first frame."""
    system.set_dumpable(False)      # no core files of tests
    warm_up()
    assert seccomp.install(reads=[], writes=[fd]) is None


def same_under_the_filter(work, *args):
    """`work(*args)` says the same with and without it, and no module comes in afterwards."""
    def free(say, fd):
        say(work(*args))

    def locked(say, fd):
        lock(fd)
        modules = set(sys.modules)
        say(work(*args))
        assert set(sys.modules) == modules

    wanted, found = forked(free), forked(locked)
    assert (wanted.signal, wanted.code) == (0, 0), wanted
    assert found.signal != signal.SIGSYS, "a call that is not on the list"
    assert (found.signal, found.code, found.said) == (0, 0, wanted.said)
    return found.said[0]


def digest(chunks):
    """What was made, as one word."""
    found, count = hashlib.sha256(), 0
    for chunk in chunks:
        found.update(chunk)
        count += 1
    return [count, found.hexdigest()]


# --- messages ------------------------------------------------------------------------------------


def events_of(wires, writers):
    """All events, in all forms, of messages as queries and as replies."""
    for wire in wires:
        for writer in writers:
            for role in ({"query": wire, "status": "no_reply"},
                         {"reply": wire, "status": "no_query"}):
                for records in (False, True):
                    for texts in writer.events(**role, **ENDS, records=records)[0]:
                        yield from texts.values()


def writers_of():
    return [doors.Writer(full=full, formats=range(4), max_size=size, sensor='a "sensor"\u00e9')
            for full, size in ((True, 16384), (False, 262144))]


def types():
    """Each type there is a name for, and one without, in good, short, long and odd rdata."""
    for number, name in [*rrtypes.TYPES.items(), (65280, "none")]:
        good = GOOD.get(name, b"any octets")
        for rdata in (good, good[:-1], good + b"\0", b"", b"\xff" * 40, b"\xc0\0", bytes(700)):
            owner = b"\0" if number == NUMBER["OPT"] else b"\xc0\x0c"
            for rdclass in (1, 3, 254) if rdata == good else (1,):
                yield bombs.reply(build.record(owner, number, rdata, rdclass=rdclass), bombs.A)


def test_every_record_type():
    writers = writers_of()
    count, _ = same_under_the_filter(lambda: digest(events_of(types(), writers)))
    assert count > 15_000


def test_every_message_of_the_corpus():
    """What the fuzzer found worth keeping: every branch of decoding and encoding."""
    wires = [data[1:] for _, data in corpora.inputs("message")]
    wires += [data for name in ("streams", "packet", "engine") for _, data in corpora.inputs(name)]
    wires += {seed[1:] for seed in seeds.messages() if seed[0] == 8}
    writers = writers_of()
    count, _ = same_under_the_filter(lambda: digest(events_of(wires, writers)))
    assert count > 20_000


def test_every_kind_of_stateful_operation_and_edns():
    wires = [data[1:] for _, data in corpora.inputs("message")]
    writer = doors.Writer(full=True, formats=[0, 2])

    def work():
        texts = []
        for wire in wires:
            for protocol in ("dns", "mdns", "llmnr"):
                for records in (False, True):
                    for one in writer.events(query=wire, reply=wire, status="success", **ENDS,
                                             protocol=protocol, records=False, vlan=(5, 6),
                                             transfer=(records, 9, 2, 70_000))[0]:
                        texts.extend(one.values())
        return digest(texts)

    assert same_under_the_filter(work)[0] > 1000


def test_without_the_warm_up_a_rare_record_would_kill():
    """So these tests can fail."""
    def work(say, fd):
        system.set_dumpable(False)
        assert "dnslib" not in sys.modules
        assert seccomp.install(reads=[], writes=[fd]) is None
        say("before")
        probe.render_rdata(bytes(12) + LOC, 12, 12 + len(LOC), NUMBER["LOC"])
        say("after")

    for name in [name for name in sys.modules if name.split(".")[0] == "dnslib"]:
        del sys.modules[name]
    slow._classes.cache_clear()
    slow.render.cache_clear()
    ended = forked(work)
    assert (ended.said, ended.signal) == (["before"], signal.SIGSYS)


def test_the_cache_of_the_slow_road_fills_and_turns_over():
    def work():
        texts = []
        for number in range(5000):
            rdata = LOC[:4] + number.to_bytes(4, "big") + LOC[8:]
            texts.append(slow.render(29, rdata) or b"")
            texts.append(slow.render(29, rdata[:number % 17]) or b"")
        return digest(texts)

    same_under_the_filter(work)


# --- the engine ----------------------------------------------------------------------------------


RULES = Rules(detail="full", records=True, mdns=True, llmnr=True)
EVENT_RING = 1 << 26        # nobody takes events while the engine has a turn


def engine(frames, limits=None, collect=False):
    """What the engine makes of frames (in ns, octets, length on the wire), and its counters."""
    rings = [Ring(mmap.mmap(-1, ring_bytes(size)), create=size) for size in (1 << 22, EVENT_RING)]
    ledger = bytearray(counters.ledger_bytes(3))
    counters.ledger_create(ledger)
    slot = counters.Slot(ledger, 1)
    feed = doors.FrameRing(rings[0], mdns=True, llmnr=True)
    sink = doors.EventRing(rings[1])
    worker = engine_of(rings, slot, RULES, **limits or {})
    gc.freeze()     # so that what is collected below is the engine's
    lines, clock, number, waiting = [], START, 0, 0
    for number, (time, octets, length) in enumerate(frames, 1):
        clock = max(clock, START + time)
        feed.put(octets, number, clock, START + time, length)
        waiting += len(octets) + 300
        if waiting > 400_000:       # seldom: at the end of each turn the engine waits for its bell
            waiting = 0
            feed.mark(clock, number + 1)
            assert worker.run() == "turn"
            lines += sink.take()
            if collect:
                gc.collect()
    feed.mark(None, number + 1)
    while worker.run() == "turn":
        pass
    lines += sink.take()
    return (digest(text for *_, texts in lines for text in texts.values()),
            dict(slot.read(counters.WORKER)))


def timed(frames):
    clock = 0
    for frame in frames:
        step, octets, *length = (0, frame) if isinstance(frame, bytes) else frame
        clock += step or bombs.STEP
        yield clock, octets, length[0] if length else None


HOSTILE = ("names", "records", "streams", "transport", "tunnels", "multicast", "floods")


LARGEST = 400_000       # of one case; larger ones are more of the same, and take their time


def size(frames):
    return sum(len(frame if isinstance(frame, bytes) else frame[1]) for frame in frames)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_strangers_may_send(name):
    cases = importlib.import_module(f"tests.hostile.test_hostile_{name}").CASES
    each = [list(case.frames(bombs.Place(number))) for number, case in enumerate(cases)]
    small = [frames for frames in each if size(frames) < LARGEST]
    frames = list(timed(frame for frames in small for frame in frames))
    (count, _), counts = same_under_the_filter(engine, frames)
    assert count > 10 and counts["frames"] > 10


def test_every_capture():
    frames = [(0, data, length) for path in seeds.pcaps()
              for linktype, _, length, data in seeds.frames(path) if linktype == seeds.ETHERNET]
    frames = [(1000 * n, *frame[1:]) for n, frame in enumerate(frames)]
    (_, counts) = same_under_the_filter(engine, frames, None, True)
    assert counts["frames"] > 1000 and counts["transfers"] > 2


def test_tables_grow_as_far_as_they_may():
    """30,000 queries wait, then all leave at once; connections and what they keep fill as well."""
    queries = [(time, frame, None) for time, _, frame in
               flood.forged(flood.Parameters(forged=30_000))]
    streams = []
    for number in range(1000):
        place = bombs.Place(number)
        stream = place.stream()
        streams += [*stream.open(), stream.segment(False, bytes(2) + b"x" * 1000, seq=3000)]
    frames = [(20_000 * n, frame, None) for n, (_, frame, _) in enumerate(queries)]
    frames += [(frames[-1][0] + 1000 * n, frame, None) for n, frame in enumerate(streams)]
    limits = {"max_pending": 1_000_000, "max_bytes": 256 << 20, "max_streams": 65536,
              "stream_bytes": 128 << 20}
    _, counts = same_under_the_filter(engine, frames, limits)
    assert counts["no_reply"] == 30_000 and counts["streams_opened"] == 1000


# --- errors --------------------------------------------------------------------------------------


@pytest.fixture
def boot():
    """A Boot with a ledger, and the pipe that its reports come from."""
    config = Config(workers=1)
    topology = Topology.of(config)
    (part,) = [part for part in topology.parts() if part.role == "worker"]
    size = counters.ledger_bytes(topology.processes)
    segment = Segment.create(f"{PREFIX}{new_token()}-ledger", size)
    counters.ledger_create(segment.buf)
    ours, theirs = os.pipe()
    made = child.Boot(part=part, config=config, segments={"ledger": segment},
                      bells=(-1,) * topology.processes,
                      stdin=-1, seed=1, supervisor=os.getpid(), reports=theirs)
    yield made, ours
    segment.close()
    os.close(ours)
    os.close(theirs)


def ended(boot, work):
    """How a process with this work ends, started as the supervisor does: (code, reports)."""
    made, ours = boot

    def main():
        signal.alarm(30)

        def locked(child_):
            lock(made.reports)
            work(child_)

        child.run(made, locked)

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    process.join()
    os.set_blocking(ours, False)
    try:
        said = os.read(ours, 1 << 16).decode(errors="surrogateescape").splitlines()
    except BlockingIOError:
        said = []
    return process.exitcode, said


def raising(error):
    def work(child_):
        raise error

    return work


def test_an_end_in_order(boot):
    """With all that multiprocessing and the interpreter do at the end of a process."""
    assert ended(boot, lambda child_: child_.report(child.NOTICE, "so far")) == (
        0, ["notice so far"])


@pytest.mark.parametrize("error", [
    ProcessError("gazer:worker0: its frame ring is damaged"), SharedMemoryError("odd: \udcff"),
])
def test_an_error_on_purpose_is_reported(boot, error):
    code, said = ended(boot, raising(error))
    assert code == 1
    assert said == [f"error {error}"]


UNICODE = UnicodeDecodeError("idna", b"\xff", 0, 1, "odd")


@pytest.mark.parametrize("error", [
    ValueError("odd"), KeyError("odd"), MemoryError(), OSError(28, "No space left on device"),
    AssertionError(), UNICODE, ExceptionGroup("odd", [ValueError("odd"), OSError(1, "odd")]),
    RecursionError("odd"), StopIteration(), ValueError("a\nb"), ImportError("odd", name="x"),
], ids=lambda error: type(error).__name__)
def test_a_mistake_of_ours_is_reported(boot, error):
    code, said = ended(boot, raising(error))
    assert code == 1
    (line,) = said
    assert line.startswith("error gazer:worker0: internal error, please report it: ")
    assert type(error).__name__ in line and "test_warm.py:" in line


def test_what_compiled_code_raises_is_reported(boot):
    """Cython adds lines to a traceback in ways of its own."""
    def damaged(child_):
        Ring(bytearray(1 << 16))

    assert ended(boot, damaged) == (1, ["error not a ring of gazer's (wrong magic)"])
    for work, what in ((lambda _: doors.Reader(1 << 20).read(3), "TypeError"),
                       (lambda _: Ring(3), "TypeError"),
                       (lambda _: doors.Writer(full=True, formats=[0], max_size=1), "ValueError")):
        code, (line,) = ended(boot, work)
        assert code == 1 and what in line and "internal error" in line


def test_recursion_without_end_is_reported(boot):
    def deeper(n):
        return deeper(n + 1) + 1

    code, (line,) = ended(boot, lambda _: deeper(0))
    assert code == 1 and "RecursionError" in line


def test_no_memory_is_reported(boot):
    """All of the address space that is left, in a worker's own tables."""
    def work(_):
        kept = []
        while True:
            kept.append(bytearray(1 << 20))

    limit = (int(Path("/proc/self/statm").read_text().split()[0]) * 4096 + (256 << 20),) * 2
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit[0], before[1]))
    try:
        code, (line,) = ended(boot, work)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert code == 1 and "MemoryError" in line


def test_an_error_that_nobody_can_catch_is_one_line():
    class Odd:
        def __del__(self):
            raise ValueError("odd")

    def work(say, fd):
        system.set_dumpable(False)
        lines = []
        warm_up(lines.append)
        assert seccomp.install(reads=[], writes=[fd]) is None
        Odd()
        circle = [Odd()]
        circle.append(circle)
        del circle
        gc.collect()
        say(lines)

    lines = forked(work).said[0]
    assert len(lines) == 2
    assert all("Odd.__del__" in line or "nobody could catch" in line for line in lines)
    assert all("ValueError('odd')" in line and "\n" not in line for line in lines)


# --- the warm-up itself --------------------------------------------------------------------------


def test_nothing_that_it_decoded_is_remembered():
    def work(say, fd):
        warm_up()
        say(slow.render.cache_info().currsize)

    assert forked(work).said == [0]


def test_it_may_be_called_again_and_leaves_what_is_ours_alone():
    def work(say, fd):
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            warm_up()
        say(len(os.listdir("/proc/self/fd")) - before)

    assert forked(work).said == [0]


def test_faulthandler_does_not_turn_a_fault_into_a_breach():
    """It would write to standard error, which the filter does not allow."""
    code = """
import ctypes, faulthandler
from gazer import seccomp, system
from gazer.workers.warm import warm_up
assert faulthandler.is_enabled()
system.set_dumpable(False)
warm_up()
seccomp.install(reads=[], writes=[])
ctypes.memset(8, 0, 1)
"""
    done = subprocess.run([sys.executable, "-X", "faulthandler", "-c", code], cwd=ROOT,
                          capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGSEGV, "")


def test_nothing_is_written_where_it_is_not_asked():
    done = subprocess.run(
        [sys.executable, "-c", "from gazer.workers.warm import warm_up; warm_up()"], cwd=ROOT,
        capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
