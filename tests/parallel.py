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
LONG = {
    "test_wheel.py": 100,       # where it has to be built; there is no way to begin it too early
    "test_pipeline.py": 50, "test_succession_rotation.py": 50, "test_fuzz.py": 40,
    "test_restarts.py": 40, "test_spool_damage.py": 35, "test_succession_worker.py": 30,
    "test_warm.py": 35, "test_fluentd_live.py": 30,
    "test_succession_fluentd.py": 35, "test_fluentd_ahead.py": 20,
    "test_chaos_kill.py": 30, "test_chaos_live.py": 30, "test_chaos_spool.py": 30,
    "test_pipeline_carriers.py": 25, "test_succession_sink.py": 25, "test_build.py": 25,
    "test_succession_capture.py": 25, "test_ring_processes.py": 25, "test_live_service.py": 25,
    "test_capture_account.py": 20, "test_capture_live.py": 20, "test_chaos_acks.py": 20,
    "test_fluentd_run.py": 20, "test_outputs.py": 20, "test_rdata.py": 20,
    "test_service.py": 20, "test_spool_crash.py": 20, "test_supervisor.py": 20,
}


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
