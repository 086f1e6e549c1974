"""Hostile input, class by class: what a stranger may send, and what must come of it.

One file for each group. A class is a list of named cases; a case is frames that a reader can see,
and one word for each of them: the counter that it must be found in. All cases of a file stand in
one capture, each followed by a good pair in the bomb's own flow, and the capture goes through the
real program; `bombs.Ran` holds what is asked of every case alike:

- the run ends in time with the expected exit code, nothing crashes, the summary adds up
- each frame is in one counter: the totals of the summary are the sums of the cases' words
- all output is valid JSON and valid msgpack, and both say the same
- the good pair behind the bomb is paired, under its own name and with its own answer

Random changes to real messages are in test_hostile_mutations.py.
"""

import pytest

pytest.register_assert_rewrite("tests.hostile.bombs")
