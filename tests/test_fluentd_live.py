"""A live sensor that sends to fluentd: receivers that go and come, a spool, a sink that is killed.

Each exchange is one event with numbers of its own, so what was captured, what arrived and what the
ledger says can be held against one another.
"""

from __future__ import annotations

import json
import random
import re
import signal
import time
from collections import Counter

import pytest

from tests.conftest import eventually
from tests.receiver import ACK, LOSE, Receiver, late
from tests.sensor import frames
from tests.test_live_service import successor

pytest_plugins = ["tests.sensor"]

TX, STATS = "dns-gazer.dns.tx", "dns-gazer.stats"


def came(receiver, *, acked=True) -> Counter:
    """How often each exchange came, by its client's port; chunks that came twice count twice."""
    return Counter(
        record["client_port"] - 1024 for message in receiver.messages
        if message.tag == TX and (message.acked or not acked) for _, record in message.entries)


def stats(sensor, live):
    return json.loads(sensor.gazer("stats", "--json", "--pid", live.pid, command="gazer").stdout)


def all_came(receiver, count):
    def they() -> bool:
        """all events were acknowledged"""
        return len(came(receiver)) == count

    eventually(they, 40.0)


@pytest.fixture
def receiver(tmp_path):
    with Receiver(unix=str(tmp_path / "receiver")) as made:
        yield made


@pytest.fixture
def start(sensor, receiver, tmp_path):
    """A sensor with a fluentd output to the receiver; `spool`: with one."""

    def begin(*, spool=False, outputs=(), **keys):
        output = {"type": "fluentd", "servers": [receiver.address], "ack_timeout": "2s", **keys}
        if spool:
            output["spool"] = {"path": str(tmp_path / "spool"), "max_bytes": "64MiB"}
        return sensor.configured(ring={"size": "4MiB"}, outputs=[output, *outputs])

    return begin


def delivered(stderr: str) -> dict[str, int]:
    """What the summary says of the fluentd output."""
    found = re.search(
        r"(\d+) events? delivered to fluentd at [^,\n]*(?:, (\d+) spooled)?(?:, (\d+) NOT deliv)?",
        stderr)
    spool = re.search(
        r"its spool: (\d+) delivered(?: \((\d+) of an earlier run were there\))?"
        r"(?:, (\d+) LOST)?(?:, (\d+) events? wait)?", stderr)
    assert found, stderr
    names = ("direct", "spooled", "dropped", "delivered", "found", "lost", "left")
    values = [*found.groups(), *(spool.groups() if spool else [None] * 4)]
    return {name: int(value or 0) for name, value in zip(names, values, strict=True)}


def ended(live, seconds: float = 20.0) -> dict[str, int]:
    live.signal(signal.SIGTERM)
    done = live.wait(seconds)
    assert done.code == 0, done.stderr
    assert "add up" not in done.stderr, done.stderr
    return delivered(done.stderr)


def test_a_live_run_delivers_and_says_so_in_its_own_events(sensor, start, receiver):
    live = start()
    sensor.send(frames(*range(500)))
    all_came(receiver, 500)
    found = ended(live)
    assert came(receiver) == Counter(range(500))
    stats = [record for m in receiver.messages if m.tag == STATS for _, record in m.entries]
    assert stats[-1]["last"] is True and stats[-1]["output0_written"] == 500
    assert found == dict.fromkeys(found, 0) | {"direct": 500 + len(stats)}


def test_without_a_spool_a_receiver_that_comes_back_gets_what_waited(sensor, start, receiver):
    receiver.refuse()
    live = start(outputs=[{"type": "text", "path": str(sensor.out)}])
    sensor.send(frames(*range(500)))
    assert len(sensor.await_lines(500)) == 500      # the other output does not wait for it
    live.says("it is tried again")
    receiver.listen()
    all_came(receiver, 500)
    assert ended(live)["dropped"] == 0
    assert came(receiver) == Counter(range(500))


def test_without_a_spool_a_stop_says_what_was_lost(sensor, start, receiver):
    receiver.refuse()
    live = start(outputs=[{"type": "text", "path": str(sensor.out)}])
    sensor.send(frames(*range(100)))
    sensor.await_lines(100)
    live.signal(signal.SIGTERM)
    done = live.wait(30.0)
    assert done.code == 1, done.stderr
    assert "add up" not in done.stderr, done.stderr
    found = delivered(done.stderr)
    assert found["direct"] == 0 and found["dropped"] >= 100
    assert "interrupted while fluentd" in done.stderr


def test_a_spool_outlives_the_sensor_and_is_delivered_in_order(sensor, start, receiver):
    receiver.refuse()
    live = start(spool=True)
    sensor.send(frames(*range(400)))
    eventually(lambda: "fluentd" in live.stderr, 10.0)
    first = ended(live)
    assert first["spooled"] == first["left"] >= 400 and first["dropped"] == 0
    receiver.listen()
    live = start(spool=True)
    all_came(receiver, 400)
    sensor.send(frames(*range(400, 500)))
    all_came(receiver, 500)
    second = ended(live)
    assert second["found"] == first["left"] and second["left"] == second["lost"] == 0
    order = [record["client_port"] for m in receiver.messages if m.tag == TX
             for _, record in m.entries]
    assert order == [1024 + n for n in range(500)]


def test_what_happens_now_is_seen_while_a_backlog_comes(sensor, start, receiver):
    receiver.refuse()
    live = start(spool=True, chunk_size="16KiB", window=4)
    sensor.send(frames(*range(4000)))
    eventually(lambda: stats(sensor, live)["account"]["outputs"][0]["spooled"] >= 4000, 20.0)

    def slow(message):
        time.sleep(0.1)
        return ACK

    receiver.plan = slow
    receiver.listen()
    live.says("new events go straight to its servers again")
    sensor.send(frames(4000))
    eventually(lambda: 4000 in came(receiver), 20.0)
    assert len(came(receiver)) < 3000
    receiver.plan = lambda _: ACK
    all_came(receiver, 4001)
    found = ended(live)
    assert found["dropped"] == found["lost"] == found["left"] == 0
    assert came(receiver) == Counter(range(4001))
    order = [n - 1024 for m in receiver.messages if m.tag == TX
             for n in m.numbers if n - 1024 != 4000]
    assert order == [*range(4000)]


@pytest.mark.parametrize("spool", [False, True], ids=["memory", "spool"])
@pytest.mark.parametrize("away", [False, True], ids=["there", "away"])
def test_a_sink_that_is_killed_loses_nothing(sensor, start, receiver, spool, away):
    """Again and again; what was in hand comes twice at most."""
    live = start(spool=spool, chunk_size="16KiB", window=4)
    sensor.send(frames(*range(100)))
    if away:
        all_came(receiver, 100)
        receiver.refuse()
    for turn in range(1, 4):
        old = live.part("gazer:sink").pid
        sensor.send(frames(*range(100 * turn, 100 * turn + 100)))
        live.part("gazer:sink").kill()
        successor(live, "gazer:sink", old)
    if away:
        receiver.listen()
    all_came(receiver, 400)
    found = ended(live)
    assert found["dropped"] == found["lost"] == found["left"] == 0
    assert set(came(receiver)) == set(range(400))
    assert max(came(receiver).values()) <= 4        # once, and once more for each kill


def test_a_receiver_that_flaps_and_a_sink_that_dies_meanwhile(sensor, start, receiver):
    """At moments that nobody chose, four times, as five deaths within a minute end the service.
    What was captured is what was delivered; what came twice was in hand."""
    live = start(spool=True, chunk_size="16KiB", window=4, flush_interval="10ms")
    chance = random.Random(53)
    sent = 0
    for turn in range(12):
        if turn % 3 == 1:
            receiver.refuse()
        sensor.send(frames(*range(sent, sent + 100)))
        sent += 100
        time.sleep(chance.uniform(0, 0.2))
        if turn % 3 == 2:
            old = live.part("gazer:sink").pid
            live.part("gazer:sink").kill()
            successor(live, "gazer:sink", old)
            receiver.listen()
    all_came(receiver, sent)

    def settled():
        """the spool is empty, and everything adds up"""
        told = stats(sensor, live)
        assert told["balances"]["hold"], told["balances"]
        return not told["account"]["outputs"][0]["spool_events"]

    eventually(settled, 30.0)
    found = ended(live)
    assert found["dropped"] == found["lost"] == 0
    assert set(came(receiver)) == set(range(sent))
    assert max(came(receiver).values()) <= 1 + 2 * 4     # a kill, and a server that left


def test_a_receiver_that_freezes_is_spooled_for_and_live_events_do_not_wait(
        sensor, start, receiver):
    live = start(spool=True, outputs=[{"type": "text", "path": str(sensor.out)}])
    sensor.send(frames(*range(100)))
    all_came(receiver, 100)
    receiver.stalled.set()
    sensor.send(frames(*range(100, 110)))
    # It may have waited for these when it froze, and so take them still.
    eventually(lambda: stats(sensor, live)["account"]["sink"]["events"] >= 110, 10.0)
    eventually(lambda: stats(sensor, live)["account"]["outputs"][0]["unacknowledged"] or len(
        came(receiver)) == 110, 10.0)
    sensor.send(frames(*range(110, 600)))
    assert len(sensor.await_lines(600)) == 600

    def spooled():
        """what is not acknowledged is in the spool, and that adds up"""
        told = stats(sensor, live)
        output = told["account"]["outputs"][0]
        assert told["balances"]["hold"], told["balances"]
        return output["spool_events"] == output["spooled"] >= 490

    eventually(spooled, 10.0)
    receiver.stalled.clear()
    all_came(receiver, 600)
    found = ended(live)
    assert found["dropped"] == found["lost"] == found["left"] == 0
    assert found["spooled"] > 0


def test_a_receiver_that_freezes_is_told_at_once_and_in_the_ledger(sensor, start, receiver):
    """Connected, and acknowledges nothing: without a spool nothing else would say so before
    `ack_timeout`."""
    start_ = start(ack_timeout="60s", outputs=[{"type": "text", "path": str(sensor.out)}])
    eventually(lambda: receiver.connections)
    receiver.stalled.set()
    sensor.lab.send(frames(*range(10)))     # it may have been about to read
    sensor.await_lines(10)
    sensor.lab.send(frames(*range(10, 20)))
    sensor.await_lines(20)
    eventually(lambda: stats(sensor, start_)["account"]["outputs"][0]["blocked_seconds"] >= 2)
    name = f"fluentd at {receiver.address}"
    start_.says(f"{name} has taken nothing for 5 s: nothing is acknowledged")
    done = sensor.gazer("health", "--pid", start_.pid, "--blocked", 2, command="gazer")
    said = " ".join(done.lines + done.said)
    assert done.code == 1 and f"output {name} has taken nothing for" in said
    receiver.stalled.clear()
    all_came(receiver, 20)
    eventually(lambda: not stats(sensor, start_)["account"]["outputs"][0]["blocked_seconds"])
    ended(start_)


def test_health_says_that_a_server_is_away(sensor, start, receiver):
    receiver.refuse()
    live = start(spool=True)

    def health() -> str:
        return sensor.gazer("health", "--pid", live.pid, "--window", 0,
                            command="gazer").stdout.decode()

    eventually(lambda: "output 0: 1 of 1 servers not connected" in health(), 10.0)
    receiver.listen()
    eventually(lambda: "well" in health() and "not connected" not in health(), 40.0)
    ended(live)


@pytest.mark.parametrize("plan", [late(0.5), None], ids=["late", "lossy"])
def test_a_receiver_that_is_slow_or_forgets_gets_everything(sensor, start, receiver, plan):
    seen = set()

    def forgets(message):
        first = message.chunk not in seen
        seen.add(message.chunk)
        return LOSE if first and len(seen) % 3 == 0 else "ack"

    receiver.plan = forgets if plan is None else lambda _: plan
    live = start(spool=True, chunk_size="16KiB", flush_interval="20ms")
    for turn in range(6):
        sensor.send(frames(*range(100 * turn, 100 * turn + 100)))
    all_came(receiver, 600)
    found = ended(live)
    assert found["dropped"] == found["lost"] == 0


def test_after_a_hang_up_signal_it_connects_anew(sensor, start, receiver):
    live = start()
    sensor.send(frames(*range(10)))
    all_came(receiver, 10)
    before = receiver.connections
    live.signal(signal.SIGHUP)
    eventually(lambda: receiver.connections > before, 10.0)
    sensor.send(frames(*range(10, 20)))
    all_came(receiver, 20)
    ended(live)
    assert came(receiver) == Counter(range(20))
