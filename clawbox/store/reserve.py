"""Room for the state on a disk that something else fills (docs/security.md, 99).

Room that were given back when it is needed could be taken by whoever fills the disk. So none is given back:
it is inside SQLite's own files, where SQLite takes it without asking the disk.

* In the state file: pages without content. Bytes that cannot be compressed are written to the table
  ``reserve`` and deleted; SQLite takes the pages for new rows, and never gives one back (auto_vacuum is off).
* In the write-ahead log: the file is as large from the beginning as it may get. What is behind the last
  frame has no valid checksum, which is the end of the log to SQLite (https://sqlite.org/walformat.html).

File systems that write in place keep this promise. One that copies on write (btrfs, ZFS) asks the disk for
every page; there the room is counted as kept, and a full disk is an error of the write, as anywhere. The
log goes when a server ends in order, and its room with it: not when it is killed.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from clawbox.store.tables import RESERVE

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

RESERVE_BYTES: Final = 4 << 20
"""In each of both files. The state file is given more when less than half is left."""
_RETRY_EVERY_S: Final = 1.0

_log = structlog.stdlib.get_logger("clawbox.store")


class Reserve:
    """Keeps the room of one state file, whose connection is open and in no transaction."""

    def __init__(self, path: Path) -> None:
        self._wal = path.with_name(f"{path.name}-wal")
        self._next_try = 0.0
        self._page_bytes = 0
        self.problem = "nothing is written yet"
        """Why there is less room than there should be; empty: there is all of it."""

    async def is_short(self, connection: AsyncConnection) -> bool:
        """Whether :meth:`keep` has something to do, as a transaction sees it that is about to end."""
        if self.problem:
            return time.monotonic() >= self._next_try
        return await self._free(connection) < RESERVE_BYTES // 2

    async def keep(self, engine: AsyncEngine) -> None:
        """Have the room that is missing set aside; never raises.

        Both ways it is a transaction of its own: what was written before is not touched.
        """
        self._next_try = time.monotonic() + _RETRY_EVERY_S
        before, self.problem = self.problem, ""
        try:
            async with engine.begin() as connection:
                short = await self._free(connection) < RESERVE_BYTES // 2
            if short:
                async with engine.begin() as connection:
                    await connection.exec_driver_sql(
                        f"INSERT INTO {RESERVE.name} VALUES (randomblob({RESERVE_BYTES}))"  # noqa: S608
                    )
                # Apart: pages that are written and dropped in one transaction would not reach the disk.
                async with engine.begin() as connection:
                    await connection.execute(RESERVE.delete())
            if before:
                _allocate(self._wal)
        except SQLAlchemyError as error:
            self.problem = str(getattr(error, "orig", error))
        except OSError as error:
            self.problem = error.strerror or str(error)
        if self.problem and self.problem != before:
            _log.warning("no room is kept for the state on its disk", problem=self.problem)

    async def _free(self, connection: AsyncConnection) -> int:
        """Bytes of the file that are set aside and hold nothing."""
        if not self._page_bytes:
            self._page_bytes = (await connection.exec_driver_sql("PRAGMA page_size")).scalar_one()
        free = (await connection.exec_driver_sql("PRAGMA freelist_count")).scalar_one()
        return int(free) * self._page_bytes


def _allocate(path: Path) -> None:
    """Blocks for a couple of milliseconds at most: file systems note the extent and write nothing."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
    finally:
        os.close(descriptor)
