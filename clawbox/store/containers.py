"""The table of containers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from clawbox.store.tables import CONTAINERS

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from clawbox.store.database import Database


@dataclass(frozen=True, slots=True)
class ContainerRow:
    """What is remembered of one container."""

    container_id: str
    owner: str
    state: str
    created_ms: int
    """When it was made, in milliseconds since 1970."""
    document: bytes
    """Everything else, as the lifecycle wrote it."""


class ContainerRows:
    """Rows by container id. What returned is on disk; what raised STATE_UNAVAILABLE changed nothing.

    A cancelled call ends when the database has answered: a row is never half known.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save(self, row: ContainerRow) -> None:
        """Write the row, in place of an earlier one of the same id."""
        values = asdict(row)

        async def work(connection: AsyncConnection) -> None:
            key = CONTAINERS.c.container_id == row.container_id
            changed = await connection.execute(CONTAINERS.update().where(key).values(values))
            if not changed.rowcount:
                await connection.execute(CONTAINERS.insert().values(values))

        await self._database.write(work)

    async def delete(self, container_id: str) -> None:
        """Forget the container; nothing happens when it is not known."""

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(CONTAINERS.delete().where(CONTAINERS.c.container_id == container_id))

        await self._database.write(work)

    async def all(self) -> list[ContainerRow]:
        """Every row, oldest container first."""

        async def work(connection: AsyncConnection) -> list[ContainerRow]:
            order = CONTAINERS.c.created_ms, CONTAINERS.c.container_id
            rows = await connection.execute(CONTAINERS.select().order_by(*order))
            return [ContainerRow(**row) for row in rows.mappings()]

        return await self._database.read(work)
