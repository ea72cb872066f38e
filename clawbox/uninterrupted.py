"""Waiting for what must not be left half done."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

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


@contextmanager
def ungrouped() -> Iterator[None]:
    """Around a task group: its first error is raised by itself, and a cancellation is never lost to it.

    Where this task is cancelled in the instant in which something in the group fails, CPython 3.11 and 3.12
    tell of the failure alone (gh-116720), and whoever cancelled would wait for ever.
    """
    try:
        yield
    except BaseExceptionGroup as errors:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError from None
        raise errors.exceptions[0] from None
