"""On which CPUs a process may run: service.capture_cpus, worker_cpus and sink_cpus."""

from __future__ import annotations

import os
from collections.abc import Iterator

from gazer.config import Config
from gazer.topology import Part


def cpus_of(config: Config, part: Part) -> tuple[int, ...]:
    """The CPUs of this process; empty: the kernel decides."""
    service = config.service
    if part.role == "sink":
        return service.sink_cpus
    one_each = {"capture": service.capture_cpus, "worker": service.worker_cpus}.get(part.role, ())
    return one_each[min(part.index, len(one_each) - 1) :][:1]


def cpu_problems(config: Config) -> Iterator[str]:
    """CPUs that are configured and that we may not run on, a line each."""
    ours = os.sched_getaffinity(0)
    for key in ("capture_cpus", "worker_cpus", "sink_cpus"):
        for index, cpu in enumerate(getattr(config.service, key)):
            if cpu not in ours:
                yield (
                    f"service.{key}[{index}]: there is no CPU {cpu} for gazer here; "
                    f"it may use {_ranges(sorted(ours))}"
                )


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    found: list[tuple[int, int]] = []
    for n in numbers:
        if found and found[-1][1] == n - 1:
            found[-1] = (found[-1][0], n)
        else:
            found.append((n, n))
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)
