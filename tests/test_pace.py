"""The longest time without an acknowledgement, of late."""

from gazer.sinks.pace import PERIOD, Pace


def test_nothing_yet():
    assert Pace().longest == 0.0


def test_the_longest_counts():
    pace = Pace()
    for seconds in 0.5, 4.0, 0.1:
        pace.took(seconds, 1000.0)
    assert pace.longest == 4.0


def test_it_counts_for_a_period_at_least_and_for_two_at_most():
    pace = Pace()
    pace.took(1.0, 1000.0)
    pace.took(4.0, 1000.0 + PERIOD - 1)
    pace.took(2.0, 1000.0 + PERIOD)
    pace.took(0.1, 1000.0 + 2 * PERIOD - 2)
    assert pace.longest == 4.0
    pace.took(0.1, 1000.0 + 2 * PERIOD)
    assert pace.longest == 2.0
    pace.took(0.2, 1000.0 + 3 * PERIOD)
    assert pace.longest == 0.2


def test_what_was_long_ago_does_not_count():
    pace = Pace()
    pace.took(4.0, 1000.0)
    pace.took(0.1, 1000.0 + 2 * PERIOD)
    assert pace.longest == 0.1
