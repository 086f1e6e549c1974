"""How the whole suite is shared out over several processes, by pytest-xdist: `pytest -n auto`,
which is what `make test` runs.

Most of the tests wait for processes most of the time, so several at once end earlier on any
machine.  A file or two are sooner done by one process: `make test ARGS=tests/test_ring.py`.

**What belongs together**: the tests of a file, in their order, since they may share what was set up
for the module.  Files that take long begin first, so that the end is not one process at work on the
last of them.

**What a test may rely on**: itself, and its own processes, files and namespaces.  Others of the
same suite run beside it, start and kill sensors and fill the machine's cores; nothing may be asked
of all of the machine's processes, segments or ports.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

MOST = 4            # more don't help: the longest files are what is left then

# Seconds that a file takes, of those that take long; it need not be exact.
LONG: dict[str, int] = {}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """What `-n auto` is."""
    return min(len(os.sched_getaffinity(0)), MOST)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False      # by `LONG`, not by the number of tests
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: -LONG.get(Path(item.path).name, 0))


def pytest_collection_finish() -> None:
    """Some 300 MB of tests stay until the end: nobody need look through them for garbage."""
    gc.collect()
    gc.freeze()
