"""A disk under a spool that goes and comes back: nothing is given up that can be read then."""

import errno
import os

import pytest

from tests.spools import Open, Wrapped, account, append, read_all, system


@pytest.mark.parametrize("how", ["open", "pread", "sync only"])
def test_a_disk_that_has_gone_and_comes_back_costs_nothing(tmp_path, how):
    """A place that can't be read is given up while the disk takes other things, and not before."""
    gone = []

    def failing(name):
        def call(first, *more):
            path = first if isinstance(first, str) else os.readlink(f"/proc/self/fd/{first}")
            if gone and ((name in gone[0] and ".seg" in path) or "sync" in name):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return getattr(os, name)(first, *more)
        return call

    names = ("open", "pread", "fsync", "fdatasync")
    with system(Wrapped(**{name: failing(name) for name in names})), Open(tmp_path) as spool:
        for n in range(30):
            append(spool, n)
        spool.sync()
        assert [spool.ack(spool.next()) for _ in range(3)]
        gone.append(how)
        if how != "sync only":
            for _ in range(5):
                with pytest.raises(OSError, match="Input/output"):
                    while spool.next() is not None:
                        pass
            assert account(spool)["damaged"] == 0
        gone.clear()
        spool.rewind()
        assert read_all(spool) == [*range(3, 30)]
        assert account(spool)["damaged"] == 0
