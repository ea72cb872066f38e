"""Waiting for what must not be left half done."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

T = TypeVar("T")


async def done(task: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Wait until a task is done, however often this is cancelled meanwhile; the last cancellation.

    How the task ended is for who wants to know: it raises nothing, and complains of nothing later.
    """
    cancelled = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if not task.cancelled():
        task.exception()
    return cancelled


async def uninterrupted(work: Coroutine[object, object, T]) -> T:
    """Do ``work`` to its end, though this is cancelled meanwhile; the cancellation is raised after it.

    For requests that an engine or a database may carry out whether or not somebody waits for the answer: only
    when it has answered can what it did be undone.
    """
    task = asyncio.ensure_future(work)
    cancelled = await done(task)
    if cancelled is not None:
        raise cancelled
    return task.result()


async def opened(opening: Callable[[], T], close: Callable[[T], object]) -> T:
    """What ``opening`` opens, in a thread; closed when nobody waits for it any more."""
    task = asyncio.ensure_future(asyncio.to_thread(opening))

    def nobody(task: asyncio.Future[T]) -> None:
        if not task.cancelled() and task.exception() is None:
            close(task.result())

    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(nobody)
        raise


@asynccontextmanager
async def meanwhile(work: Coroutine[object, object, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Do ``work`` beside the block, which awaits the task it is given for the result.

    Left before that, by an error or cancelled, the block ends when the work has ended, cancelled too.
    """
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        cancelled = await done(task)
        if cancelled is not None:
            raise cancelled


async def together(*works: Coroutine[object, object, Any]) -> list[Any]:
    """What all of them give, done at once. The first that fails ends the others, and its error is raised.

    Cancelled, it ends all of them. It returns, or raises, when all have ended. (A TaskGroup loses a
    cancellation that comes with an error, CPython gh-116720, and wraps the error.)
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    cancelled = None
    if tasks:
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        except asyncio.CancelledError as error:
            cancelled = error
    for task in tasks:
        task.cancel()
    for task in tasks:
        cancelled = await done(task) or cancelled
    if cancelled is not None:
        raise cancelled
    for task in tasks:
        if not task.cancelled() and (failure := task.exception()) is not None:
            raise failure
    return [task.result() for task in tasks]
