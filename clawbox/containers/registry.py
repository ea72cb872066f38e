"""All containers of this server, as values; what is kept of them, and who watches.

Every change is written before it is told, but one that cannot wait for that. A watch gets a snapshot and then
each change with a revision, from which it can be resumed for as long as the changes since are remembered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from clawbox.containers.calls import Changed, Forgotten, Snapshot
from clawbox.containers.persistence import to_row
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from clawbox.containers.calls import WatchEvent
    from clawbox.containers.record import Container
    from clawbox.store import ContainerRow

REMEMBERED: Final = 4096
"""Changes from which a watch can be resumed."""
SNAPSHOT_PART: Final = 100
"""Containers in one part of a snapshot."""
MAX_BEHIND: Final = 1024
"""Changes that a watch may be behind before it is cut."""

_log = logging.getLogger(__name__)


class Rows(Protocol):
    """Where rows are kept: :class:`clawbox.store.ContainerRows`."""

    async def save(self, row: ContainerRow) -> None:
        """Keep a row, in place of an earlier one of that container. Raises STATE_UNAVAILABLE."""

    async def delete(self, container_id: str) -> None:
        """Keep nothing of that container. Raises STATE_UNAVAILABLE."""

    async def all(self) -> list[ContainerRow]:
        """Every row. Raises STATE_UNAVAILABLE."""


class Registry:
    """What there is. Changes of one container are the caller's to order."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._containers: dict[str, Container] = {}
        self._epoch = secrets.token_hex(4)
        self._revision = 0
        self._changes: deque[tuple[int, Container | str, Container | None]] = deque(maxlen=REMEMBERED)
        self._watchers: set[_Watcher] = set()

    def __len__(self) -> int:
        return len(self._containers)

    def __iter__(self) -> Iterator[Container]:
        return iter(list(self._containers.values()))

    def get(self, container_id: str) -> Container | None:
        """The container of that id."""
        return self._containers.get(container_id)

    def finished(self, owner: str) -> list[Container]:
        """An owner's finished containers, in the order in which they ended."""
        found = [one for one in self._containers.values() if not one.active and one.owner == owner]
        return sorted(found, key=lambda one: one.finished_ms or one.identity.created_ms)

    def having(self, owner: str, workspace_id: str) -> list[Container]:
        """The containers of an owner that have, or had, that workspace."""
        return [
            one
            for one in self._containers.values()
            if (one.owner, one.identity.workspace_id) == (owner, workspace_id)
        ]

    def restore(self, container: Container) -> None:
        """Take one that was kept, before anybody watches."""
        self._containers[container.container_id] = container

    async def put(self, container: Container, *, keep: bool = True) -> None:
        """Keep a new value of a container, then tell it. ``keep`` False: it is told and not kept.

        Raises STATE_UNAVAILABLE, and then nothing has changed.
        """
        before = self._containers.get(container.container_id)
        if before == container:
            return
        if keep:
            await self._rows.save(to_row(container))
        self._containers[container.container_id] = container
        self._tell(container, before)

    async def put_or_tell(self, container: Container) -> None:
        """As :meth:`put`; where it cannot be kept that is logged, and it is told all the same."""
        try:
            await self.put(container)
        except ClawboxError as error:
            _log.warning("how container %s is now is not kept: %s", container.container_id, error)
            await self.put(container, keep=False)

    async def keep(self, container: Container) -> None:
        """Keep a value that is told later. Raises STATE_UNAVAILABLE."""
        await self._rows.save(to_row(container))

    def place(self, container: Container) -> None:
        """Take a new container at once, so that it counts; :meth:`put` keeps it."""
        self._containers[container.container_id] = container
        self._tell(container, None)

    async def forget(self, container_id: str) -> None:
        """Keep nothing of a container, then tell it. Raises STATE_UNAVAILABLE."""
        if container_id in self._containers:
            await self._rows.delete(container_id)
            self.drop(container_id)

    async def forget_or_drop(self, container_id: str) -> None:
        """As :meth:`forget`, for one that was not made: where its row stays, the next start removes it."""
        try:
            await self.forget(container_id)
        except ClawboxError:
            self.drop(container_id)

    def drop(self, container_id: str) -> None:
        """As :meth:`forget`, for one that was never kept."""
        before = self._containers.pop(container_id, None)
        if before is not None:
            self._tell(container_id, before)

    async def watch(
        self, wanted: Callable[[Container], bool], after_revision: str = ""
    ) -> AsyncGenerator[WatchEvent]:
        """What is there, then what changes; from ``after_revision`` on where that is still remembered.

        One that is no longer wanted is told once more, as it is then. Raises SLOW_READER.
        """
        watcher = _Watcher()
        resumed = self._resumed(after_revision)
        snapshot = None if resumed is not None else [one for one in self if wanted(one)]
        revision = self._name(self._revision)
        self._watchers.add(watcher)
        try:
            if snapshot is not None:
                for start in range(0, max(len(snapshot), 1), SNAPSHOT_PART):
                    part = tuple(snapshot[start : start + SNAPSHOT_PART])
                    complete = start + SNAPSHOT_PART >= len(snapshot)
                    yield Snapshot(part, complete, revision if complete else "")
            for change in resumed or ():
                if (event := self._event(change, wanted)) is not None:
                    yield event
            while True:
                change = await watcher.next()
                if (event := self._event(change, wanted)) is not None:
                    yield event
        finally:
            self._watchers.discard(watcher)

    async def until(self, container_id: str, reached: Callable[[Container], bool]) -> Container:
        """The container once it is so. Raises CONTAINER_NOT_FOUND when it is forgotten before."""
        events = self.watch(lambda one: one.container_id == container_id)
        async with contextlib.aclosing(events):
            async for event in events:
                match event:
                    case Snapshot(containers):
                        found = next(iter(containers), None)
                        if found is None:
                            raise not_found(container_id)
                    case Changed(found):
                        pass
                    case Forgotten():
                        raise not_found(container_id)
                if reached(found):
                    return found
        raise not_found(container_id)

    def _tell(self, what: Container | str, before: Container | None) -> None:
        self._revision += 1
        change = (self._revision, what, before)
        self._changes.append(change)
        for watcher in self._watchers:
            watcher.put(change)

    def _event(
        self, change: tuple[int, Container | str, Container | None], wanted: Callable[[Container], bool]
    ) -> WatchEvent | None:
        revision, what, before = change
        known = before is not None and wanted(before)
        if isinstance(what, str):
            return Forgotten(what, self._name(revision)) if known else None
        return Changed(what, self._name(revision)) if known or wanted(what) else None

    def _name(self, revision: int) -> str:
        return f"{self._epoch}-{revision}"

    def _resumed(self, after: str) -> list[tuple[int, Container | str, Container | None]] | None:
        epoch, _, number = after.partition("-")
        if epoch != self._epoch or not number.isdecimal() or len(number) > len(str(self._revision)):
            return None
        revision = int(number)
        oldest = self._changes[0][0] if self._changes else self._revision + 1
        if not oldest - 1 <= revision <= self._revision:
            return None
        return [change for change in self._changes if change[0] > revision]


class _Watcher:
    """The changes that one watch has not told yet."""

    def __init__(self) -> None:
        self._changes: deque[tuple[int, Container | str, Container | None]] = deque()
        self._news = asyncio.Event()
        self._overrun = False

    def put(self, change: tuple[int, Container | str, Container | None]) -> None:
        if len(self._changes) >= MAX_BEHIND:
            self._overrun = True
            self._changes.clear()
        if not self._overrun:
            self._changes.append(change)
        self._news.set()

    async def next(self) -> tuple[int, Container | str, Container | None]:
        while not self._changes:
            if self._overrun:
                raise ClawboxError(
                    Reason.SLOW_READER,
                    "more than {changes} changes waited to be read",
                    changes=MAX_BEHIND,
                )
            self._news.clear()
            await self._news.wait()
        return self._changes.popleft()


def not_found(container_id: str) -> ClawboxError:
    """The error for a container that is not there, or not the caller's."""
    shown = container_id if len(container_id) <= 64 else f"{container_id[:61]}..."
    return ClawboxError(
        Reason.CONTAINER_NOT_FOUND,
        "there is no container {container_id}",
        resource=("container", shown),
        container_id=shown,
    )
