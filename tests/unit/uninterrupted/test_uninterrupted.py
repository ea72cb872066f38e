"""What a cancelled call had begun is neither left half done nor left open."""

from __future__ import annotations

import asyncio
import threading

import pytest

from clawbox.uninterrupted import opened, together


class Door:
    """Something that a thread opens when the test lets it."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.closed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def open(self) -> Door:
        assert self.may.wait(10)
        return self

    def close(self) -> None:
        self._loop.call_soon(self.closed.set)


async def test_what_is_opened_is_the_callers():
    door = Door()
    door.may.set()
    assert await opened(door.open, Door.close) is door
    assert not door.closed.is_set()


async def test_what_is_opened_after_its_caller_left_is_closed():
    door = Door()
    task = asyncio.create_task(opened(door.open, Door.close))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not door.closed.is_set()
    door.may.set()
    await asyncio.wait_for(door.closed.wait(), 10)


async def test_what_is_opened_in_the_turn_in_which_its_caller_leaves_is_closed(monkeypatch):
    door = Door()
    answer = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(asyncio, "to_thread", lambda _: answer)
    task = asyncio.create_task(opened(door.open, Door.close))
    await asyncio.sleep(0)
    answer.set_result(door)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(door.closed.wait(), 10)


async def test_what_could_not_be_opened_is_said():
    def fails() -> Door:
        raise OSError("no such door")

    with pytest.raises(OSError, match="no such door"):
        await opened(fails, Door.close)


async def _fails() -> None:
    await asyncio.sleep(0)
    raise ValueError("it failed")


async def test_the_error_of_one_ends_the_others_and_is_raised():
    ended = []

    async def other() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with pytest.raises(ValueError, match="it failed"):
        await together(other(), _fails(), other())
    assert ended == [True, True]
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_what_all_give_comes_in_their_order():
    assert await together(asyncio.sleep(0.01, 1), asyncio.sleep(0, 2)) == [1, 2]
    assert await together() == []


async def test_a_cancellation_is_not_lost_to_an_error_of_the_same_instant():
    async def ends() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            failing.cancel()

    failing = asyncio.create_task(together(ends(), _fails()))
    with pytest.raises(asyncio.CancelledError):
        await failing
