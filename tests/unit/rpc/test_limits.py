"""Places, streams and refused tokens, with no server."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawbox.errors import ClawboxError, Reason
from clawbox.rpc.limits import ExecutionLimit, RefusedTokens, StreamLimit


def _note(order: list[int], number: int, _task: asyncio.Task[int]) -> None:
    order.append(number)


async def _waiting(limit: ExecutionLimit) -> asyncio.Task[int]:
    before = limit.queued
    task = asyncio.ensure_future(limit.acquire())
    while limit.queued == before and not task.done():  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0)
    return task


async def test_places_are_given_in_order_of_arrival() -> None:
    limit = ExecutionLimit(1, 3)
    assert await limit.acquire() == 0
    order: list[int] = []
    tasks = []
    for number in range(3):
        task = await _waiting(limit)
        task.add_done_callback(partial(_note, order, number))
        tasks.append(task)
    for task in tasks:
        limit.release()
        await task
    assert order == [0, 1, 2]
    limit.release()
    assert (limit.running, limit.queued) == (0, 0)


async def test_a_newcomer_does_not_overtake_who_waits() -> None:
    limit = ExecutionLimit(1, 2)
    await limit.acquire()
    first = await _waiting(limit)
    limit.release()  # the place is the waiting one's already, though it has not run yet
    second = await _waiting(limit)
    assert await first >= 0
    assert not second.done()
    limit.release()
    await second


async def test_a_full_queue_refuses_at_once() -> None:
    limit = ExecutionLimit(1, 0)
    await limit.acquire()
    with pytest.raises(ClawboxError) as caught:
        await limit.acquire()
    assert caught.value.reason is Reason.EXECUTION_LIMIT
    assert caught.value.retry_after


async def test_whoever_is_cancelled_while_waiting_leaves_the_queue() -> None:
    limit = ExecutionLimit(1, 1)
    await limit.acquire()
    gone = await _waiting(limit)
    gone.cancel()
    await asyncio.wait([gone])
    assert limit.queued == 0
    limit.release()
    assert limit.running == 0


async def test_a_place_that_comes_in_the_moment_of_cancellation_is_passed_on() -> None:
    limit = ExecutionLimit(1, 2)
    await limit.acquire()
    gone = await _waiting(limit)
    next_one = await _waiting(limit)
    limit.release()
    gone.cancel()  # it has the place, and never runs
    await asyncio.wait([gone])
    assert gone.cancelled()
    await next_one
    limit.release()
    assert (limit.running, limit.queued) == (0, 0)


async def test_a_place_is_not_given_to_one_that_was_cancelled_before() -> None:
    limit = ExecutionLimit(1, 2)
    await limit.acquire()
    gone = await _waiting(limit)
    next_one = await _waiting(limit)
    gone.cancel()
    limit.release()  # before the cancelled one had a chance to run
    await asyncio.wait([gone, next_one])
    limit.release()
    assert (limit.running, limit.queued) == (0, 0)


@given(st.lists(st.sampled_from(["arrive", "leave", "cancel"]), max_size=60), st.integers(1, 3))
def test_no_place_is_lost_or_made_whatever_happens(steps: list[str], places: int) -> None:
    async def scenario() -> None:
        limit = ExecutionLimit(places, 3)
        holders = 0
        waiting: list[asyncio.Task[int]] = []

        async def settle() -> None:
            nonlocal holders
            for _ in range(5):
                await asyncio.sleep(0)
            for task in [task for task in waiting if task.done()]:
                waiting.remove(task)
                if not task.cancelled() and task.exception() is None:
                    holders += 1

        for step in steps:
            if step == "arrive":
                waiting.append(asyncio.ensure_future(limit.acquire()))
            elif step == "leave" and holders:
                holders -= 1
                limit.release()
            elif step == "cancel" and waiting:
                waiting[0].cancel()
            if step != "leave":
                await settle()
            assert limit.running <= places
        await settle()
        assert limit.running == holders
        assert limit.queued == len(waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(scenario())


def test_streams_are_counted_for_each_caller_and_for_all() -> None:
    streams = StreamLimit(3)
    streams.acquire("a", 2)
    streams.acquire("a", 2)
    with pytest.raises(ClawboxError, match="2 of 2"):
        streams.acquire("a", 2)
    streams.acquire("b", 2)
    with pytest.raises(ClawboxError, match="3 of 3"):
        streams.acquire("c", 2)
    streams.release("a")
    streams.acquire("c", 2)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_address_that_guesses_waits_and_others_do_not() -> None:
    clock = Clock()
    refused = RefusedTokens(burst=2, per_second=0.5, clock=clock)
    refused.refuse("a")
    refused.refuse("a")
    with pytest.raises(ClawboxError) as caught:
        refused.refuse("a")
    assert caught.value.reason is Reason.RATE_LIMIT
    assert caught.value.retry_after == pytest.approx(2.0)
    refused.refuse("b")
    clock.now += 2.0
    refused.refuse("a")


def test_asking_while_told_to_wait_does_not_lengthen_the_wait() -> None:
    clock = Clock()
    refused = RefusedTokens(burst=1, per_second=1.0, clock=clock)
    refused.refuse("a")
    for _ in range(5):
        with pytest.raises(ClawboxError):
            refused.refuse("a")
    clock.now += 1.0
    refused.refuse("a")


def test_the_table_of_addresses_is_bounded() -> None:
    refused = RefusedTokens(max_addresses=10)
    for number in range(1000):
        refused.refuse(str(number))
    assert len(refused) == 10
