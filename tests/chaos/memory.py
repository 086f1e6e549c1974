"""A folder whose fsyncs cost nothing: what is not synced survives a kill anyway."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
    else:
        with tempfile.TemporaryDirectory(prefix="chaos-", dir="/dev/shm") as folder:
            yield Path(folder)
