"""One connection to the database, one transaction at a time, and errors that say what is wrong with it."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import structlog
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, InvalidRequestError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from clawbox.errors import ClawboxError, Reason
from clawbox.store import location
from clawbox.store.reserve import Reserve
from clawbox.store.schema import upgrade
from clawbox.store.state_file import hold, unusable
from clawbox.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from sqlalchemy.engine import URL, Connection

BUSY_MS: Final = 5000
"""How long a write waits for another program that has the file locked."""

_PRAGMAS: Final = (
    f"busy_timeout = {BUSY_MS}",
    # Before the first access: then there is no shared memory, whose pages a full disk would turn to SIGBUS.
    "locking_mode = EXCLUSIVE",
    "trusted_schema = OFF",
    "cell_size_check = ON",
    "foreign_keys = ON",
    "temp_store = MEMORY",
)
_WAL: Final = (
    "journal_mode = WAL",
    "synchronous = FULL",
    "wal_autocheckpoint = 256",  # pages: the log stays below what is set aside for it
    "journal_size_limit = -1",
)
_log = structlog.stdlib.get_logger("clawbox.store")
_T = TypeVar("_T")


class Database:
    """An open database with this program's schema. Entering raises STATE_UNAVAILABLE, and deletes nothing."""

    def __init__(self, url: str) -> None:
        self._url = location.parse_url(url)
        self._path = location.sqlite_path(self._url)
        self.place = location.shown(self._url)
        """Where it is, without who may use it."""
        self.failure = ""
        """Why a transaction failed; empty again once one that writes did not."""
        self.reserve = Reserve(self._path) if self._path is not None else None
        """Room on the disk; None where that is another server's business."""
        self._stack = contextlib.AsyncExitStack()
        self._engine: AsyncEngine | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        async with self._stack as stack:
            if self._path is not None:
                stack.enter_context(hold(self._path))
            engine = _engine(self._url)
            stack.push_async_callback(engine.dispose)
            await self._open(engine)
            self._engine = engine
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def write(self, work: Callable[[AsyncConnection], Awaitable[_T]]) -> _T:
        """Do ``work`` in a transaction, which is stored when this returns.

        Cancelled or not, it ends only when the database has answered. Raises STATE_UNAVAILABLE: then nothing
        was changed; and what ``work`` raises.
        """
        return await uninterrupted(self._transaction(work, writes=True))

    async def read(self, work: Callable[[AsyncConnection], Awaitable[_T]]) -> _T:
        """As :meth:`write`, for work that writes nothing."""
        return await uninterrupted(self._transaction(work, writes=False))

    async def _transaction(self, work: Callable[[AsyncConnection], Awaitable[_T]], *, writes: bool) -> _T:
        assert self._engine is not None
        async with self._turn:
            try:
                async with self._engine.begin() as connection:
                    result = await work(connection)
                    reserve = self.reserve if writes else None
                    short = reserve is not None and await reserve.is_short(connection)
            except (SQLAlchemyError, sqlite3.Error, OSError) as error:
                self._failed(error)
                raise ClawboxError(
                    Reason.STATE_UNAVAILABLE,
                    "the state cannot be read or written: {problem}",
                    retry_after=1.0,
                    problem=self.failure,
                ) from error
            if not writes:
                return result
            if self.failure:
                _log.warning("the state can be written again", place=self.place)
                self.failure = ""
            if reserve is not None and short:
                await reserve.keep(self._engine)
            return result

    def _failed(self, error: Exception) -> None:
        problem = _problem(error)
        if problem != self.failure:
            _log.error("the state cannot be used", place=self.place, problem=problem)
        self.failure = problem

    async def _open(self, engine: AsyncEngine) -> None:
        place = self.place
        try:
            async with engine.begin() as connection:
                if self._path is not None:
                    await _check(connection, place)
                await connection.run_sync(upgrade, place)
            if self.reserve is not None:
                await self.reserve.keep(engine)
        except (SQLAlchemyError, sqlite3.Error, OSError) as error:
            problem = _problem(error)
            if _is_damage(error):
                raise _damaged(place, problem) from error
            raise unusable(place, problem) from error


def _engine(url: URL) -> AsyncEngine:
    backend = url.get_backend_name()
    try:
        # One connection: a transaction is some hundred microseconds, and SQLite has one writer anyway.
        engine = create_async_engine(url, pool_size=1, max_overflow=0, hide_parameters=True)
    except ModuleNotFoundError as error:
        raise unusable(
            f"a database of {backend}",
            f"the Python package {error.name} is not installed, which state.url needs",
        ) from None
    except (NoSuchModuleError, InvalidRequestError):
        raise unusable(
            f"a database of {backend}", f"{url.drivername} is no asynchronous driver that SQLAlchemy knows"
        ) from None
    if backend == "sqlite":
        event.listen(engine.sync_engine, "connect", _set_up)
        event.listen(engine.sync_engine, "begin", _begin)
    return engine


def _set_up(connection: Any, _: object) -> None:
    # Else Python's module decides where transactions begin, and lets DDL have none.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        for pragma in _PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        # Reads the first page: what is no database is refused before anything is written to it.
        cursor.execute("PRAGMA schema_version")
        for pragma in _WAL:
            cursor.execute(f"PRAGMA {pragma}")
    finally:
        cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


async def _check(connection: AsyncConnection, place: str) -> None:
    """Raise STATE_UNAVAILABLE unless SQLite finds every page of the file in order."""
    found = (await connection.exec_driver_sql("PRAGMA quick_check(1)")).scalar_one()
    if found != "ok":
        raise _damaged(place, str(found))


def _damaged(place: str, problem: str) -> ClawboxError:
    return ClawboxError(
        Reason.STATE_UNAVAILABLE,
        "the state in {place} is damaged ({problem}): put back a copy, or move it away to begin with none; "
        "nothing was deleted",
        place=place,
        problem=problem,
    )


def _is_damage(error: Exception) -> bool:
    cause = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    return code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _problem(error: Exception) -> str:
    """What went wrong, in the database's words; never the statement or its values."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return " ".join(str(cause).split())[:500] or type(cause).__name__
