"""Changes of the tool folder that must not stop half-way, even when whoever asked for them goes away."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


class Steps:
    """Steps of changes, owned here until they are done."""

    def __init__(self) -> None:
        self._steps: set[asyncio.Future[Any]] = set()

    async def to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Do ``work``, which goes on when its caller is cancelled; the caller then waits for it first."""
        task = asyncio.ensure_future(work)
        self._steps.add(task)
        task.add_done_callback(self._steps.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise

    async def all_done(self) -> None:
        """Wait for every step that is under way."""
        if self._steps:
            await asyncio.wait(tuple(self._steps))
