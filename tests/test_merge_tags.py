"""Blocks with a part for each tag: what the merge makes of events for fluentd."""

from __future__ import annotations

import struct

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gazer.event import PROTOCOLS, TAGS, tag_of
from gazer.ring import Ring
from gazer.sinks.merge import Block, Merge
from tests.test_merge import MSGPACK, MSGPACK_TIME, TEXT, Site, line


class Tagged(Site):
    """One lane; the first block has parts, the others are as they were."""

    def __init__(self, *, formats=(MSGPACK,), capacity=1 << 16, limit=0, ring=1 << 16):
        self.limit = limit
        super().__init__(formats=formats, capacity=capacity, ring=ring)

    def begin(self):
        super().begin()
        tagged = Block(format=self.formats[0], capacity=self.capacity, limit=self.limit,
                       tagged=True)
        self.blocks[0] = tagged
        self.merge = Merge(rings=[Ring(self.buffers[0])], bells=self.bells, bell=self.bell,
                           slot=self.slot, blocks=self.blocks)

    def event(self, number, tag, record, when=5):
        """One with this tag, in the forms text, none, and both msgpacks."""
        event_time = msgpack.ExtType(0, struct.pack(">II", when, 7))
        packed = [msgpack.packb([TAGS[tag], w, record]) for w in (when, event_time)]
        assert self.put(0, 1, number, line(number), b"", *packed, tag=tag)

    def parts(self):
        found = {tag: (list(unpacked(data)), n) for tag, data, n in self.blocks[0].parts()}
        self.blocks[0].clear()
        return found


def unpacked(data):
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    yield from unpacker
    assert unpacker.tell() == len(data)


def test_the_tags_are_numbered_as_events_are_made():
    """By protocol, then by kind: what gazer/workers/encode.pyx puts into an event's header."""
    assert tuple(tag_of(p, kind) for p in PROTOCOLS for kind in ("tx", "record")) == TAGS


@pytest.mark.parametrize("form", [MSGPACK, MSGPACK_TIME])
def test_each_tag_has_its_part_with_whole_entries_in_order(form):
    site = Tagged(formats=(form, TEXT))
    wanted: dict[str, list] = {}
    for number in range(12):
        tag = number * 5 % 6
        site.event(number, tag, {"n": number})
        when = 5 if form == MSGPACK else msgpack.ExtType(0, struct.pack(">II", 5, 7))
        wanted.setdefault(TAGS[tag], []).append([when, {"n": number}])
    site.publish(0)
    assert site.merge.run() == "idle"
    assert site.blocks[0].events == 12
    assert list(site.parts()) == list(TAGS)     # in the order of the tags, not of their coming
    site.merge.swap(0, site.blocks[0])
    assert site.blocks[0].parts() == [] and site.blocks[0].used == 0
    assert site.take(1) == b"".join(line(i) for i in range(12))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60)), max_size=40),
       st.integers(100, 400))
def test_nothing_is_lost_twice_or_beyond_the_limit(events, limit):
    """However full it gets, and whatever the mixture."""
    site = Tagged(capacity=500, limit=limit)
    for number, (tag, size) in enumerate(events):
        site.event(number, tag, {"n": number, "x": "y" * size})
    site.end()
    came: list[tuple[str, int]] = []
    while True:
        state = site.merge.run()
        block = site.blocks[0]
        total = sum(len(data) for _, data, _ in block.parts())
        assert block.events == 1 or total <= limit
        for tag, (entries, count) in site.parts().items():
            assert count == len(entries)
            came += [(tag, record["n"]) for _, record in entries]
        if state == "end":
            break
        assert state == "full"
    wanted = [(TAGS[tag], number) for number, (tag, _) in enumerate(events)]
    assert sorted(came) == sorted(wanted)
    for tag in TAGS:        # in order within a tag
        assert [c for c in came if c[0] == tag] == [w for w in wanted if w[0] == tag]


def test_one_event_may_be_larger_than_the_limit_but_not_than_the_block():
    site = Tagged(capacity=500, limit=64)
    site.event(0, 0, {"x": "y" * 300})
    site.event(1, 0, {"n": 1})
    site.publish(0)
    assert site.merge.run() == "full"
    assert [n for _, n in site.parts().values()] == [1]
    assert site.merge.run() == "idle"
    site.parts()
    site.event(2, 0, {"x": "y" * 600})
    site.publish(0)
    assert site.merge.run() == "corrupt"


def test_what_an_output_has_had_is_skipped_in_parts_too():
    site = Tagged()
    site.merge.skip(0, 2)
    for number in range(4):
        site.event(number, number % 2, {"n": number})
    site.publish(0)
    assert site.merge.run() == "idle"
    assert {tag: [r["n"] for _, r in entries] for tag, (entries, _) in site.parts().items()} == {
        TAGS[0]: [2], TAGS[1]: [3]}


@pytest.mark.parametrize("tag", [6, 7, 0xFFFFFFFF])
def test_a_tag_that_can_not_be_is_damage(tag):
    site = Site()
    site.put(0, 1, 1, b"x\n", tag=tag)
    site.publish(0)
    assert site.merge.run() == "corrupt"
    assert site.take() == b""


@pytest.mark.parametrize("length", [0, 1, 2, 17, 18])
def test_an_event_that_ends_within_its_tag_is_damage(length):
    """dns-gazer.dns.tx has 16 octets, with two before it: there is nothing behind these 18."""
    site = Tagged()
    data = (b"\x93\xb0dns-gazer.dns.tx")[:length]
    assert site.put(0, 1, 1, b"", b"", data, tag=0)
    site.publish(0)
    assert site.merge.run() == "corrupt"
    assert site.blocks[0].parts() == []


def test_memory_of_tags_that_no_event_has_is_not_touched():
    """A block has room for each tag; only what is used takes memory."""
    import psutil

    process = psutil.Process()
    before = process.memory_info().rss
    blocks = [Block(format=MSGPACK, capacity=8 << 20, tagged=True) for _ in range(20)]
    assert process.memory_info().rss - before < 16 << 20        # of 960 MiB
    assert all(block.parts() == [] for block in blocks)
