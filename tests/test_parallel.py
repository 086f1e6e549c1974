"""How tests are shared out over processes (tests/parallel.py)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from tests import parallel

HERE = Path(__file__).parent
WORKER = SimpleNamespace(workerinput={})


def ordered(config, *names):
    items = [SimpleNamespace(path=HERE / name, nodeid=f"{name}{i}")
             for name in names for i in range(2)]
    parallel.pytest_collection_modifyitems(config, items)
    return [item.nodeid for item in items]


def test_what_takes_long_begins_first_and_a_file_keeps_its_order():
    long, longer = sorted(parallel.LONG, key=parallel.LONG.__getitem__)[::len(parallel.LONG) - 1]
    assert ordered(WORKER, "a.py", long, "b.py", longer) == [
        f"{name}{i}" for name in (longer, long, "a.py", "b.py") for i in range(2)]


def test_by_hand_everything_stays_where_it_is():
    names = ["a.py", *parallel.LONG]
    assert ordered(SimpleNamespace(), *names) == [f"{n}{i}" for n in names for i in range(2)]


def test_all_that_takes_long_is_there():
    assert [name for name in parallel.LONG if not (HERE / name).is_file()] == []


def test_no_more_processes_than_help(monkeypatch):
    for cores, wanted in ((1, 1), (2, 2), (64, parallel.MOST)):
        monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda _, n=cores: range(n))
        assert parallel.pytest_xdist_auto_num_workers(None) == wanted
