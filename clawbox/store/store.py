"""The store as a whole."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import structlog

from clawbox.store.containers import ContainerRows
from clawbox.store.database import Database
from clawbox.store.request_ids import RequestIds

if TYPE_CHECKING:
    from types import TracebackType

_log = structlog.stdlib.get_logger("clawbox.store")


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """How the store does, for System.GetStatus."""

    place: str
    """Where the state is, without who may use it."""
    failure: str
    """Why it cannot be read or written just now; empty: it can."""
    reserve_problem: str
    """Why no room is kept for it on its disk (docs/security.md, 99); empty: room is kept, or is not ours."""


class Store:
    """Remembers, from ``async with`` on, at the ``url`` of a database (:func:`clawbox.store.sqlite_url`).

    Entering brings the schema up to date. It raises STATE_UNAVAILABLE, and changes nothing, where the driver
    is not installed, the file is not private, damaged, held by another server or written by a newer clawbox.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self.containers = ContainerRows(self._database)
        self.request_ids = RequestIds(self._database)

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._database)
            if interrupted := await self.request_ids.open():
                _log.warning("calls were interrupted when the server ended last", calls=interrupted)
            stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._database.__aexit__(kind, error, trace)

    def status(self) -> StoreStatus:
        """How it does now."""
        database = self._database
        problem = database.reserve.problem if database.reserve is not None else ""
        return StoreStatus(database.place, database.failure, problem)
