"""When a sidecar is started again."""

from clawbox.egress.crashes import PAUSE_SECONDS, TOLERATED, WINDOW_SECONDS, Crashes


def crashed(*times):
    crashes = Crashes()
    for at in times:
        crashes.add(at)
    return crashes


def test_the_first_one_costs_nothing_and_each_further_one_twice_as_long():
    assert crashed(0).pause(0) == 0
    assert crashed(0, 1).pause(1) == PAUSE_SECONDS
    assert crashed(0, 1, 2).pause(2) == 2 * PAUSE_SECONDS
    assert crashed(0, 1, 2, 3).pause(3) == 4 * PAUSE_SECONDS


def test_what_was_long_ago_does_not_count():
    later = WINDOW_SECONDS + 1
    assert crashed(0, later).pause(later) == 0
    assert not crashed(*range(TOLERATED), later).hopeless(later)


def test_too_many_within_the_window_are_hopeless():
    assert not crashed(*range(TOLERATED)).hopeless(TOLERATED)
    assert crashed(*range(TOLERATED + 1)).hopeless(TOLERATED)
    assert crashed(*range(3 * TOLERATED)).hopeless(3 * TOLERATED)
