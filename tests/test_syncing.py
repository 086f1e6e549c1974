"""The thread that syncs a spool."""

import threading
import time

import pytest

from gazer.sinks.syncing import Syncing
from tests.conftest import eventually

PAUSE = 0.05


class Spool:
    """Which counts."""

    def __init__(self):
        self.syncs = []
        self.fails = False
        self.stuck = threading.Event()
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.closed = 0

    def sync(self):
        self.stuck.set()
        assert self.goes_on.wait(10)
        self.stuck.clear()
        self.syncs.append(time.monotonic())
        if self.fails:
            raise OSError(5, "Input/output error")

    def close(self):
        self.closed += 1


@pytest.fixture
def spool():
    return Spool()


@pytest.fixture
def begin(spool):
    begun = []

    def start(pause=PAUSE):
        errors = []
        begun.append(Syncing(spool, pause, errors.append))
        return begun[0], errors

    yield start
    spool.goes_on.set()
    for syncing in begun:
        syncing.close()
    assert spool.closed == 1


def test_what_a_start_has_changed_is_synced_and_then_nothing_until_there_is_more(spool, begin):
    syncing, errors = begin()
    eventually(lambda: len(spool.syncs) == 1)
    assert not syncing.marked and not errors
    time.sleep(3 * PAUSE)
    assert len(spool.syncs) == 1
    marked = time.monotonic()
    syncing.mark()
    eventually(lambda: len(spool.syncs) == 2)
    assert spool.syncs[1] - marked >= PAUSE


def test_changes_gather(spool, begin):
    syncing, _ = begin(1.0)
    for _ in range(20):
        syncing.mark()
        time.sleep(0.001)
    eventually(lambda: spool.syncs and not syncing.marked)
    assert len(spool.syncs) == 1


def test_what_comes_while_it_syncs_is_not_forgotten(spool, begin):
    spool.goes_on.clear()
    syncing, _ = begin()
    assert spool.stuck.wait(10)
    syncing.mark()              # returns, however slow the disk is
    spool.goes_on.set()
    eventually(lambda: len(spool.syncs) == 2)


def test_one_that_failed_is_told_and_tried_again(spool, begin):
    spool.fails = True
    syncing, errors = begin()
    eventually(lambda: len(errors) >= 3)
    assert syncing.failing and errors[0].errno == 5
    spool.fails = False
    eventually(lambda: not syncing.failing)
    told = len(errors)
    time.sleep(3 * PAUSE)
    assert len(errors) == told and not syncing.marked


def test_an_end_does_not_wait_for_the_next_sync(spool, begin):
    syncing, _ = begin(60.0)
    before = time.monotonic()
    syncing.close()
    assert time.monotonic() - before < 10
    assert spool.closed == 1
    spool.closed = 0            # the fixture closes it once more


def test_without_a_spool_there_is_no_thread():
    threads = threading.active_count()
    syncing = Syncing(None, PAUSE, [].append)
    syncing.mark()
    assert threading.active_count() == threads
    syncing.close()
