"""The spool against a model of it: whatever is asked, in any order, with settings that change."""

import os
import tempfile

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.spools import Open, account, append, disk, events_of, genuine, without_syncs


class Machine(RuleBasedStateMachine):
    """A list of what was appended and neither acknowledged nor dropped."""

    @initialize(max_bytes=st.sampled_from([15_000, 18_000, 1 << 20]),
                drop=st.sampled_from(["oldest", "newest"]),
                segment_bytes=st.sampled_from([100, 400, 4000]))
    def start(self, max_bytes, drop, segment_bytes):
        self.folder = tempfile.TemporaryDirectory(prefix="spool-", dir=spool_dir())
        self.settings = {"max_bytes": max_bytes, "drop": drop, "segment_bytes": segment_bytes}
        self.quiet = without_syncs()
        self.quiet.__enter__()
        self.n = 0
        self.there = {}             # n -> events, in order
        self.out = {}               # n -> record
        self.places = {}            # n -> where it was appended by this one
        self.read = -1              # all up to here were read
        self.opened = None
        self.open()

    def open(self):
        self.opened = Open(self.folder.name, **self.settings)
        self.spool = self.opened.spool
        self.dropped = 0
        self.forget_dropped()

    def forget_dropped(self):
        """The spool says how many it dropped; they must be the first ones."""
        counts = self.spool.counts()
        new = counts["dropped_records"] - self.dropped
        self.dropped += new
        for n in list(self.there)[:new]:
            del self.there[n]
            self.out.pop(n, None)

    @rule(size=st.sampled_from([0, 30, 30, 200, 3000]))
    def append(self, size):
        before = self.spool.counts()
        place = self.spool.end
        taken = append(self.spool, self.n, size)
        after = self.spool.counts()
        assert taken == (after["refused_records"] == before["refused_records"])
        if taken:
            self.there[self.n] = events_of(self.n)
            self.places[self.n] = place
        else:
            assert after["refused"] - before["refused"] == events_of(self.n)
            assert self.settings["drop"] == "newest" or size > self.settings["max_bytes"] - 12_600
        self.n += 1
        self.forget_dropped()

    @rule()
    def next(self):
        record = self.spool.next()
        expected = next((n for n in self.there if n > self.read), None)
        if expected is None:
            assert record is None
        else:
            assert genuine(record) == expected
            self.read = expected
            self.out[expected] = record

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def ack(self, data):
        n = data.draw(st.sampled_from(sorted(self.out)))
        record = self.out.pop(n)
        assert self.spool.ack(record)
        assert not self.spool.ack(record)
        del self.there[n]

    @precondition(lambda self: self.places)
    @rule(data=st.data())
    def ack_unread(self, data):
        n = data.draw(st.sampled_from(sorted(self.places)))
        place = self.places.pop(n)
        assert self.spool.ack_unread(place, events_of(n)) == (n in self.there)
        assert not self.spool.ack_unread(place, events_of(n))
        self.there.pop(n, None)
        if n in self.out:
            assert not self.spool.ack(self.out.pop(n))

    @rule()
    def rewind(self):
        self.spool.rewind()
        self.read = -1

    @rule()
    def sync(self):
        self.spool.sync()

    @rule(max_bytes=st.sampled_from([15_000, 18_000, 1 << 20]),
          drop=st.sampled_from(["oldest", "newest"]))
    def restart(self, max_bytes, drop):
        last = self.spool.last(7)
        self.spool.close()
        self.settings |= {"max_bytes": max_bytes, "drop": drop}
        self.out, self.places, self.read = {}, {}, -1
        found = len(self.there)
        self.open()
        counts = self.spool.counts()
        assert counts["found_records"] == found and self.spool.last(7) == last
        assert counts["damaged_records"] == counts["torn"] == 0

    @invariant()
    def adds_up(self):
        if getattr(self, "opened", None) is None:
            return
        counts = account(self.spool)
        assert counts["there_records"] == len(self.there)
        assert counts["there"] == sum(self.there.values())
        assert self.spool.empty == (not self.there)
        assert disk(self.folder.name) == self.spool.bytes
        assert self.spool.bytes <= self.settings["max_bytes"] or self.settings["drop"] == "newest"
        assert not [line for line in self.opened.told if "dropped" not in line]

    def teardown(self):
        if getattr(self, "opened", None) is not None:
            self.opened.spool.close()
            self.quiet.__exit__(None, None, None)
            self.folder.cleanup()


def spool_dir():
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


Machine.TestCase.settings = settings(
    max_examples=50, stateful_step_count=60, deadline=None,
    suppress_health_check=[HealthCheck.too_slow])
TestMachine = Machine.TestCase
