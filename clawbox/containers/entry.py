"""What control holds of one container from the moment it is asked for until it is forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from clawbox.containers.host.workspaces import Workspace
    from clawbox.containers.quarters import Quarters
    from clawbox.containers.record import Container
    from clawbox.errors import ClawboxError

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Holdings:
    """What is to be given back, last first. One that fails does not keep the others from it."""

    def __init__(self) -> None:
        self._stack = contextlib.AsyncExitStack()

    def add(self, what: str, give_back: Callable[[], Awaitable[object] | None]) -> None:
        """Have something given back in the end; ``what`` names it in the log should that fail."""
        self._stack.push_async_callback(functools.partial(_give_back, what, give_back))

    async def enter(self, what: str, manager: contextlib.AbstractAsyncContextManager[T]) -> T:
        """Enter a context that is left in the end."""
        entered = await manager.__aenter__()
        self.add(what, lambda: manager.__aexit__(None, None, None))
        return entered

    async def give_back(self) -> None:
        """Give everything back; nothing happens the second time."""
        stack, self._stack = self._stack, contextlib.AsyncExitStack()
        await stack.aclose()


async def _give_back(what: str, give_back: Callable[[], Awaitable[object] | None]) -> None:
    try:
        waiting = give_back()
        if waiting is not None:
            await waiting
    except Exception:  # noqa: BLE001 - whatever it is, the others are given back
        # The reaper finds what is left.
        _log.exception("%s was not given back", what)


@dataclass(eq=False, slots=True)
class Entry:
    """One container's."""

    container_id: str
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever changes what the container is."""
    workspace: Workspace | None = None
    quarters: Quarters | None = None
    local: Holdings = field(default_factory=Holdings)
    """Things of this process: the way out, descriptors. Given back also when containers are left running."""
    lasting: Holdings = field(default_factory=Holdings)
    """Things that are there without this process: the engine's container, folders, the uid."""
    timer: asyncio.TimerHandle | None = None
    """Ends it at its time limit, or forgets it after its retention."""
    delete_workspace: bool | None = None
    """What a Remove that is under way says of its workspace, whoever forgets it in the end."""
    unsettled: ClawboxError | None = None
    """Why that could not be done, once it is forgotten."""
    ending: asyncio.Task[None] | None = None
    ends_by: float = 0.0
    """When the grace of :attr:`ending` is over, on the loop's clock."""
    outcome: Container | None = None
    """How it ended, until that is kept and told."""
    looking: asyncio.Task[None] | None = None
    look_again: bool = False

    def cancel_timer(self) -> None:
        """No time limit any more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
