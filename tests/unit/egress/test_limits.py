"""Rates, slots and budgets, by a clock that the tests turn."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawbox.egress.credentials import Budget, Credential, Secret
from clawbox.egress.limits import BudgetLedger, Rate, Slots
from clawbox.egress.refusal import Denial, RefusedError


def credential(budget: Budget | None, name: str = "key") -> Credential:
    return Credential(name, Secret("a secret of enough characters"), ("api.example.com",), budget=budget)


def test_a_burst_is_there_at_once_and_then_the_rate():
    rate = Rate(per_second=10, burst=3)
    assert [rate.take(5.0) for _ in range(3)] == [None] * 3
    assert rate.take(5.0) == pytest.approx(0.1)
    assert rate.take(5.05) == pytest.approx(0.05)
    assert rate.take(5.1) is None
    assert rate.take(5.1) == pytest.approx(0.1)


def test_unused_tokens_never_become_more_than_the_burst():
    rate = Rate(per_second=10, burst=3)
    assert rate.take(0.0) is None
    assert [rate.take(1000.0) for _ in range(4)] == [None, None, None, pytest.approx(0.1)]


def test_a_clock_that_stands_or_goes_back_gives_nothing():
    rate = Rate(per_second=1, burst=1)
    assert rate.take(10.0) is None
    assert rate.take(4.0) == pytest.approx(1.0)
    assert rate.take(10.0) == pytest.approx(1.0)
    assert rate.take(11.0) is None


@given(
    st.integers(1, 1000),
    st.integers(1, 50),
    st.lists(st.floats(0, 10, allow_nan=False), max_size=200),
    st.floats(0, 1e7),
)
def test_never_more_than_the_burst_and_the_rate_in_any_time(per_second, burst, steps, start):
    rate, now, taken = Rate(per_second, burst), start, []
    for step in steps:
        now += step
        if rate.take(now) is None:
            taken.append(now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + per_second * (taken[last] - taken[first]) + 1e-3


@given(st.floats(0.01, 1000), st.integers(1, 20), st.floats(0, 1e6))
def test_who_waits_as_long_as_was_said_gets_one(per_second, burst, start):
    rate, now = Rate(per_second, burst), start
    for _ in range(burst + 5):
        wait = rate.take(now)
        if wait is not None:
            assert 0 < wait <= 1 / per_second + 1e-6
            now += wait
            assert rate.take(now) is None


@pytest.mark.parametrize(
    ("per_second", "burst"), [(0, 1), (-1, 1), (1, 0), (float("nan"), 1), (1, float("nan"))]
)
def test_a_bucket_that_would_never_give_anything_is_a_mistake(per_second, burst):
    with pytest.raises(ValueError, match="positive"):
        Rate(per_second, burst)


def test_slots_run_out_and_come_back():
    slots = Slots(2)
    assert [slots.take(), slots.take(), slots.take()] == [True, True, False]
    slots.give_back()
    assert slots.take()
    assert slots.taken == 2


def test_a_slot_too_many_given_back_is_an_error_not_a_larger_limit():
    slots = Slots(1)
    with pytest.raises(RuntimeError, match="nobody"):
        slots.give_back()
    assert slots.take()
    assert not slots.take()


def test_a_held_slot_is_refused_by_the_reason_it_was_asked_for():
    slots = Slots(0)
    with pytest.raises(RefusedError) as caught, slots.hold(Denial.TOO_MANY_TUNNELS):
        raise AssertionError("ran without a slot")
    assert caught.value.refusal.denial is Denial.TOO_MANY_TUNNELS
    assert slots.taken == 0


@given(st.integers(0, 4), st.lists(st.sampled_from(["take", "back", "hold", "break"]), max_size=60))
def test_slots_always_come_back_and_never_multiply(limit, steps):
    slots, mine = Slots(limit), 0
    for step in steps:
        if step == "take":
            got = slots.take()
            assert got == (mine < limit)
            mine += got
        elif step == "back" and mine:
            slots.give_back()
            mine -= 1
        elif step in {"hold", "break"}:
            with suppress(ZeroDivisionError, RefusedError), slots.hold(Denial.TOO_MANY_REQUESTS):
                assert slots.taken == mine + 1 <= limit
                assert step == "hold" or 1 / 0
        assert slots.taken == mine


def test_a_credential_without_a_budget_is_never_spent():
    ledger = BudgetLedger()
    assert all(ledger.admit(credential(None), 0.0) is None for _ in range(1000))
    assert ledger.spend_bytes("key", 1 << 60, 0.0)


def test_requests_are_counted_and_come_back_all_at_once():
    ledger, key = BudgetLedger(), credential(Budget(requests=2, window_seconds=60))
    assert ledger.admit(key, 100.0) is None
    assert ledger.admit(key, 130.0) is None
    assert ledger.admit(key, 150.0) == pytest.approx(10.0)
    assert ledger.admit(key, 159.5) == pytest.approx(0.5)
    assert [ledger.admit(key, 160.0), ledger.admit(key, 160.0)] == [None, None]
    assert ledger.admit(key, 161.0) == pytest.approx(59.0)


def test_a_window_begins_with_a_request_not_with_the_clock():
    ledger, key = BudgetLedger(), credential(Budget(requests=1, window_seconds=60))
    assert ledger.admit(key, 0.0) is None
    assert ledger.admit(key, 1000.0) is None
    assert ledger.admit(key, 1059.0) == pytest.approx(1.0)


def test_bytes_end_the_request_that_overdraws_and_refuse_the_next():
    ledger, key = BudgetLedger(), credential(Budget(bytes=100, window_seconds=60))
    assert ledger.admit(key, 0.0) is None
    assert ledger.spend_bytes("key", 100, 1.0)
    assert not ledger.spend_bytes("key", 1, 2.0)
    assert ledger.admit(key, 3.0) == pytest.approx(57.0)
    assert ledger.admit(key, 60.0) is None
    assert ledger.spend_bytes("key", 100, 61.0)


def test_a_long_request_goes_on_in_the_next_window():
    ledger, key = BudgetLedger(), credential(Budget(bytes=100, window_seconds=60))
    assert ledger.admit(key, 0.0) is None
    assert ledger.spend_bytes("key", 90, 1.0)
    assert ledger.spend_bytes("key", 90, 60.0)
    assert not ledger.spend_bytes("key", 90, 61.0)


def test_credentials_do_not_share_a_budget():
    ledger = BudgetLedger()
    one, other = (credential(Budget(requests=1), name) for name in ("one", "other"))
    assert ledger.admit(one, 0.0) is None
    assert ledger.admit(one, 0.0) is not None
    assert ledger.admit(other, 0.0) is None


def test_a_changed_budget_counts_with_what_was_used():
    ledger = BudgetLedger()
    for _ in range(3):
        assert ledger.admit(credential(Budget(requests=3)), 0.0) is None
    assert ledger.admit(credential(Budget(requests=2)), 0.0) is not None
    assert ledger.admit(credential(Budget(requests=4)), 0.0) is None
    assert ledger.admit(credential(Budget(requests=4)), 0.0) is not None


@given(
    st.integers(1, 20),
    st.integers(1, 1000),
    st.lists(st.tuples(st.floats(0, 50), st.integers(0, 300)), max_size=100),
)
def test_no_window_sees_more_than_its_budget(requests, size, uses):
    ledger, key = BudgetLedger(), credential(Budget(requests, size, window_seconds=60))
    now, admitted = 0.0, []
    for step, count in uses:
        now += step
        wait = ledger.admit(key, now)
        if wait is None:
            admitted.append(now)
            ledger.spend_bytes("key", count, now)
        else:
            assert 0 < wait <= 60
    # Fixed windows: across two of them twice the budget, and never more.
    for start in admitted:
        assert sum(start <= at < start + 60 for at in admitted) <= 2 * requests
