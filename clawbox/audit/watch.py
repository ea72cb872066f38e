"""Following the audit log: the rows that are kept, then those that are written. Never holds up the writer."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

from clawbox.audit.files import HistoryReader
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from clawbox.audit.rows import AuditRow

MAX_BUFFERED_ROWS = 1024
"""Rows that a watcher may be behind before it is cut."""

_HISTORY_ROWS = 256


class Watchers:
    """Everyone who follows one log."""

    def __init__(self, folder: Path, last_sequence: Callable[[], int]) -> None:
        self._folder = folder
        self._last_sequence = last_sequence
        self._watchers: set[_Watcher] = set()

    def offer(self, row: AuditRow) -> None:
        """A row was written."""
        for watcher in self._watchers:
            watcher.offer(row)

    def end(self) -> None:
        """No more rows will be written."""
        for watcher in self._watchers:
            watcher.end()

    async def follow(
        self, after_sequence: int | None, wanted: Callable[[AuditRow], bool]
    ) -> AsyncGenerator[AuditRow]:
        """Kept rows after ``after_sequence`` (None: no kept ones), then new ones. Raises SLOW_READER."""
        watcher = _Watcher(wanted)
        try:
            if after_sequence is None:
                self._watchers.add(watcher)
            else:
                async with contextlib.aclosing(self._history(after_sequence, watcher)) as history:
                    async for row in history:
                        yield row
            while (new := await watcher.next()) is not None:
                yield new
        finally:
            self._watchers.discard(watcher)

    async def _history(self, after: int, watcher: _Watcher) -> AsyncGenerator[AuditRow]:
        """Kept rows up to the one after which ``watcher`` gets them; at the reader's own pace."""
        reader = HistoryReader(self._folder, after)
        final = -1
        try:
            while final < 0 or reader.position < final:
                rows = await asyncio.to_thread(reader.read, _HISTORY_ROWS)
                if final < 0 and len(rows) < _HISTORY_ROWS:
                    # Nearly there: what is written from here on is kept for the watcher.
                    self._watchers.add(watcher)
                    final = self._last_sequence()
                elif not rows:
                    return
                for row in rows:
                    if watcher.wanted(row) and not 0 <= final < row.sequence:
                        yield row
        finally:
            reader.close()


class _Watcher:
    """Rows that wait for one reader."""

    def __init__(self, wanted: Callable[[AuditRow], bool]) -> None:
        self.wanted = wanted
        self._rows: deque[AuditRow] = deque()
        self._news = asyncio.Event()
        self._ended = False
        self._behind = False

    def offer(self, row: AuditRow) -> None:
        if self._behind or not self.wanted(row):
            return
        if len(self._rows) >= MAX_BUFFERED_ROWS:
            self._behind = True
        else:
            self._rows.append(row)
        self._news.set()

    def end(self) -> None:
        self._ended = True
        self._news.set()

    async def next(self) -> AuditRow | None:
        """The next row; None at the end."""
        while not self._rows:
            if self._behind:
                raise ClawboxError(
                    Reason.SLOW_READER, "the reader is more than {rows} rows behind", rows=MAX_BUFFERED_ROWS
                )
            if self._ended:
                return None
            self._news.clear()
            await self._news.wait()
        return self._rows.popleft()
