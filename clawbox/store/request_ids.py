"""Request ids: a call that is sent again, because its answer was lost, happens once.

An id belongs to a principal and a method. It is claimed on disk before the work begins, so that a disk that
takes nothing any more refuses the call before it has an effect, and not after. Only success is remembered;
failure and cancellation free the id.

A crash between the effect and :meth:`Slot.finish` leaves a claim without a result. The next start frees it:
whoever began the work also undoes what was half made when it finds it (the lifecycle of containers knows its
own), and the caller, who saw its call fail, sends it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog
from sqlalchemy import and_

from clawbox.errors import ClawboxError, invalid_field
from clawbox.store.tables import REQUEST_IDS
from clawbox.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection

    from clawbox.store.database import Database

RETENTION_S: Final = 24 * 3600
"""How long a success is remembered."""
MAX_RESULT_BYTES: Final = 1 << 20
_PURGE_EVERY_S: Final = 600

_log = structlog.stdlib.get_logger("clawbox.store")

_Key = tuple[str, str, str]


@dataclass(eq=False, slots=True)
class _Running:
    """A call that has the id now."""

    body_sha256: bytes
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Slot:
    """One call's hold on its id, for as long as :meth:`RequestIds.once` is entered."""

    def __init__(self, ids: RequestIds, key: _Key, body_sha256: bytes, result: bytes | None) -> None:
        self._ids = ids
        self._key = key
        self._body_sha256 = body_sha256
        self.result = result
        """What :meth:`finish` was given by an earlier call; None: this call is the one that does it."""
        self.finished = False
        """Whether it is remembered that the call succeeded, as is known once :meth:`finish` has ended."""

    async def finish(self, result: bytes) -> None:
        """Remember that the call succeeded, whatever happens to it from here on.

        Raises STATE_UNAVAILABLE: then nothing is remembered. Raises ValueError for a result of more than
        :data:`MAX_RESULT_BYTES`.
        """
        if len(result) > MAX_RESULT_BYTES:
            raise ValueError(f"a result of {len(result)} bytes cannot be remembered")
        # Together: whoever is cancelled while this waits is still to learn what became of it.
        await uninterrupted(self._remember(result))

    async def _remember(self, result: bytes) -> None:
        await self._ids.remember(self._key, self._body_sha256, result)
        self.finished = True


class RequestIds:
    """Ids by principal and method. ``clock`` counts seconds since 1970."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._running: dict[_Key, _Running] = {}
        self._purge_at = 0.0

    @contextlib.asynccontextmanager
    async def once(
        self, principal: str, method: str, request_id: str, body_sha256: bytes
    ) -> AsyncIterator[Slot]:
        """Enter with the earlier success of this id, or as the only call that has it.

        ``body_sha256``: of the request without the id, 32 bytes. While another call has the same id and body,
        this waits until that one ended, and has its result, or its turn. Raises INVALID_FIELD for
        ``request_id`` when it was used with another body, and STATE_UNAVAILABLE.
        """
        key = principal, method, request_id
        while (other := self._running.get(key)) is not None:
            if other.body_sha256 != body_sha256:
                raise _other_body()
            await other.ended.wait()
        self._running[key] = mine = _Running(body_sha256)
        slot: Slot | None = None
        try:
            slot = Slot(self, key, body_sha256, await self._claim(key, body_sha256))
            yield slot
        finally:
            try:
                if slot is None or (slot.result is None and not slot.finished):
                    await self._free(key)
            finally:
                del self._running[key]
                mine.ended.set()

    async def open(self) -> int:
        """Free what a crash interrupted; returns how many calls that were. Called once, before the first."""

        async def work(connection: AsyncConnection) -> int:
            await connection.execute(REQUEST_IDS.delete().where(self._expired()))
            cut = await connection.execute(REQUEST_IDS.delete().where(REQUEST_IDS.c.result.is_(None)))
            return cut.rowcount

        return await self._database.write(work)

    async def remember(self, key: _Key, body_sha256: bytes, result: bytes) -> None:
        """Write the success of a call; see :meth:`Slot.finish`."""

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(REQUEST_IDS.delete().where(_is(key)))
            await connection.execute(REQUEST_IDS.insert().values(self._row(key, body_sha256, result)))

        await self._database.write(work)

    async def _claim(self, key: _Key, body_sha256: bytes) -> bytes | None:
        """Have the id from now on, on disk; returns the result instead when there is one."""
        now = self._clock()

        async def work(connection: AsyncConnection) -> bytes | None:
            if now >= self._purge_at:
                await connection.execute(REQUEST_IDS.delete().where(self._expired()))
            found = (await connection.execute(REQUEST_IDS.select().where(_is(key)))).first()
            if found is not None:
                fresh = found.created_ms > (now - RETENTION_S) * 1000
                if fresh and found.result is not None:
                    if found.body_sha256 != body_sha256:
                        raise _other_body()
                    return bytes(found.result)
                await connection.execute(REQUEST_IDS.delete().where(_is(key)))
            await connection.execute(REQUEST_IDS.insert().values(self._row(key, body_sha256, None)))
            return None

        result = await self._database.write(work)
        if now >= self._purge_at:
            self._purge_at = now + _PURGE_EVERY_S
        return result

    async def _free(self, key: _Key) -> None:
        """Drop the claim. Where that fails it stays, and means nothing: the next claim or start drops it."""

        async def work(connection: AsyncConnection) -> None:
            unfinished = REQUEST_IDS.c.result.is_(None)
            await connection.execute(REQUEST_IDS.delete().where(and_(_is(key), unfinished)))

        try:
            await self._database.write(work)
        except ClawboxError as error:
            _log.warning("a request id could not be freed", method=key[1], problem=str(error))

    def _row(self, key: _Key, body_sha256: bytes, result: bytes | None) -> dict[str, object]:
        principal, method, request_id = key
        return {
            "principal": principal,
            "method": method,
            "request_id": request_id,
            "body_sha256": body_sha256,
            "result": result,
            "created_ms": int(self._clock() * 1000),
        }

    def _expired(self) -> ColumnElement[bool]:
        return REQUEST_IDS.c.created_ms <= int((self._clock() - RETENTION_S) * 1000)


def _is(key: _Key) -> ColumnElement[bool]:
    principal, method, request_id = key
    return and_(
        REQUEST_IDS.c.principal == principal,
        REQUEST_IDS.c.method == method,
        REQUEST_IDS.c.request_id == request_id,
    )


def _other_body() -> ClawboxError:
    return invalid_field("request_id", "was used for another request in the last 24 hours", "reused")
