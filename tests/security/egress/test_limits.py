"""Property 56, its pure part: limits hold, and slots come back."""

from __future__ import annotations

import asyncio

import pytest

from clawbox.egress.credentials import Budget, Credential, Secret
from clawbox.egress.limits import BudgetLedger, Rate, Slots
from clawbox.egress.refusal import Denial, RefusedError


async def test_rule_56_slots_come_back_however_a_request_ends():
    slots, started, never = Slots(3), asyncio.Event(), asyncio.Event()

    async def ends(how: str) -> None:
        with slots.hold(Denial.TOO_MANY_REQUESTS):
            if how == "error":
                raise OSError("the upstream broke")
            if how == "cancelled":
                started.set()
                await never.wait()

    await ends("well")
    with pytest.raises(OSError, match="broke"):
        await ends("error")
    task = asyncio.create_task(ends("cancelled"))
    await started.wait()
    assert slots.taken == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slots.taken == 0
    assert [slots.take() for _ in range(4)] == [True, True, True, False]


async def test_rule_56_as_many_at_once_as_the_limit_says_and_no_more():
    slots, go, most = Slots(4), asyncio.Event(), 0
    statuses: list[int] = []

    async def request() -> None:
        nonlocal most
        try:
            with slots.hold(Denial.TOO_MANY_REQUESTS):
                most = max(most, slots.taken)
                await go.wait()
        except RefusedError as error:
            statuses.append(error.refusal.status)

    tasks = [asyncio.create_task(request()) for _ in range(20)]
    await asyncio.sleep(0)
    assert (most, statuses, slots.taken) == (4, [429] * 16, 4)
    go.set()
    await asyncio.gather(*tasks)
    assert slots.taken == 0


def test_rule_56_a_flood_gets_its_burst_and_then_its_rate():
    rate = Rate(per_second=100, burst=200)
    # A hundred thousand requests in ten seconds.
    assert sum(rate.take(index / 10_000) is None for index in range(100_000)) == pytest.approx(1200, abs=1)


def test_rule_56_a_spent_budget_stays_spent_until_its_window_ends():
    ledger = BudgetLedger()
    key = Credential(
        "key", Secret("a secret of enough characters"), ("a.example.com",), budget=Budget(2, None, 60)
    )
    assert [ledger.admit(key, 0.0), ledger.admit(key, 0.0)] == [None, None]
    assert all(ledger.admit(key, now) is not None for now in range(1, 60))
    assert ledger.admit(key, 60.0) is None
