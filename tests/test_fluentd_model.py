"""The Forwarder and its spool in worlds of dice (tests/simulation): whatever servers and disk do,
in the end every event is with a server or counted as lost, and there is an end.

`python -m tests.simulation` runs more worlds than these.
"""

import pytest

from tests.simulation.world import World

pytest_plugins = ["tests.chaos.memory"]

BLOCKS, EACH = 10, 10


@pytest.mark.parametrize("block", range(BLOCKS))
def test_nothing_is_lost_without_being_counted(memory, block):
    for seed in range(block * EACH, (block + 1) * EACH):
        World(seed, memory).run()
