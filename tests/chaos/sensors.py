"""A whole sensor in a network namespace with a fluentd output, and its receiver."""

from __future__ import annotations

import json
import signal

import pytest

from tests.conftest import eventually
from tests.receiver import Receiver
from tests.sensor import figures
from tests.test_fluentd_live import delivered

pytest_plugins = ["tests.sensor"]

KEYS = {"chunk_size": "16KiB", "flush_interval": "20ms", "window": 4, "ack_timeout": "1s"}


@pytest.fixture
def receiver(tmp_path):
    with Receiver(unix=str(tmp_path / "receiver")) as made:
        yield made


@pytest.fixture
def start(sensor, receiver, tmp_path):
    """A sensor with a fluentd output to the receiver; `spool`: where its spool is."""

    def begin(spool=None, *, outputs=(), output=None, **sections):
        first = {"type": "fluentd", "servers": [receiver.address], **KEYS, **(output or {})}
        if spool:
            first["spool"] = {"path": str(spool), "max_bytes": "16MiB"}
        return sensor.configured(ring={"size": "4MiB"}, outputs=[first, *outputs], **sections)

    return begin


def quiet(sensor, live, count):
    """Until the sensor has an acknowledgement for each of so many events."""
    def it() -> bool:
        """nothing waits, as the sensor says"""
        tree = json.loads(sensor.gazer("stats", "--json", "--pid", live.pid,
                                       command="gazer").stdout)
        output = tree["account"]["outputs"][0]
        return not output["spool_events"] and not output["unacknowledged"] and (
            output["events"] + output["spooled"] + output["dropped"] >= count)

    eventually(it, 40.0)


def whole(found):
    """Nothing was lost; no more is left in the spool than the last events about the sensor."""
    assert found["dropped"] == found["lost"] == 0 and found["left"] <= 2, found


def stop(live, code=0):
    """TERM; what the summary says of the fluentd output, and it adds up."""
    live.signal(signal.SIGTERM)
    done = live.wait(30.0)
    assert done.code == code, done.stderr
    account = figures(done.stderr)
    assert account["received"] == account["read"] and not account["rings"]
    return delivered(done.stderr)
