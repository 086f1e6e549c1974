"""Shared segments of another user."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

import pytest

from gazer.errors import SharedMemoryError
from gazer.privileges import Identity, become
from gazer.segment import Segment, sweep
from tests.forked import forked
from tests.test_privileges import SOMEBODY, ordinary, root


@pytest.fixture
def name():
    name = f"gazer-{secrets.token_hex(4)}-ledger"
    yield name
    Path("/dev/shm", name).unlink(missing_ok=True)


@root
def test_a_segment_belongs_to_the_user_it_is_made_for(name):
    made = Segment.create(name, 10_000, owner=SOMEBODY)
    there = os.stat(made.fileno())
    assert (there.st_uid, there.st_gid) == (SOMEBODY.uid, SOMEBODY.gid)
    assert stat.S_IMODE(there.st_mode) == 0o600

    def work(say, fd, identity):
        become(identity)
        made.buf[9_999] = 8         # inherited: nobody opens anything
        say("written")

    assert forked(work, SOMEBODY).said == ["written"]
    assert made.buf[9_999] == 8
    made.close()


@root
def test_a_sweep_removes_the_user_s_and_nobody_else_s(name):
    """Its maker was killed when the file was the user's, and had its name still."""
    path = Path("/dev/shm", name)
    path.touch(0o600)
    os.chown(path, SOMEBODY.uid, SOMEBODY.gid)
    stranger = Identity(61237, 61237, (), "stranger")
    assert name not in sweep() and name not in sweep(stranger)
    assert path.exists()
    assert name in sweep(SOMEBODY)
    assert not path.exists()


def test_a_segment_that_can_t_be_given_away_is_one_line_and_gone(name):
    def work(say, fd):
        ordinary()
        us = Identity(os.getuid(), os.getgid(), (), "us")
        Segment.create(name, 4096, owner=us).close()
        before = len(os.listdir("/proc/self/fd"))
        try:
            Segment.create(name, 4096, owner=SOMEBODY)
        except SharedMemoryError as error:
            say(str(error))
        say([os.path.exists(f"/dev/shm/{name}"), len(os.listdir("/proc/self/fd")) - before])

    said = forked(work).said
    assert said == ["can't give shared memory to user somebody: Operation not permitted",
                    [False, 0]]
