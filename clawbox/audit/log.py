"""The audit log while a server writes to it: rows, their chain, and what happens while none can be written.

A row is one ``write`` to the page cache, about 20 µs: it survives the death of the server at once, and that
of the machine once the kernel was asked to store it, which happens in the background every second.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Literal, Self

import structlog

from clawbox.audit.counting import CountedRows
from clawbox.audit.files import remove_old, store
from clawbox.audit.heads import KIND as SIGNED_HEAD
from clawbox.audit.rows import FIRST_PREV, AuditRow, encode, make_row
from clawbox.audit.watch import Watchers
from clawbox.audit.writer import LogWriter
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path
    from types import TracebackType

    from clawbox.audit.writer import End

_SYNC_EVERY_S = 1.0
_RETRY_EVERY_S = 0.25

_log = structlog.stdlib.get_logger("clawbox.audit")


class AuditLog:
    """Appends rows to ``folder``, which it has to itself from ``async with`` on.

    Entering raises AUDIT_UNAVAILABLE when another server writes there, when others than the owner may write
    there, or when the folder cannot be used. ``on_failure`` is called for each row that could not be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        on_error: Literal["refuse", "continue"] = "refuse",
        max_file_bytes: int = 10 << 20,
        keep_files: int = 100,
        on_failure: Callable[[], None] | None = None,
    ) -> None:
        self._folder = folder
        self._refuse = on_error == "refuse"
        self._max_file_bytes = max_file_bytes
        self._keep_files = keep_files
        self._on_failure = on_failure
        self._writer = LogWriter(folder)
        self.signed = ""
        """:attr:`head` as it was found, where a signature was the last thing that an earlier server wrote."""
        self._last = 0
        self._head = FIRST_PREV
        self._failure = ""
        self._only_reserve_lacks = False
        """Whether the failure is that the reserve is spent: what runs is recorded in the room it gave."""
        self._lost = 0
        self._next_try = 0.0
        self._counted = CountedRows(self.append)
        self._watchers = Watchers(folder, lambda: self._last)
        self._dirty = asyncio.Event()
        self._closing = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self.rotated = asyncio.Event()
        """Set whenever a file is full and the next one begins; whoever waits for it clears it."""

    async def __aenter__(self) -> Self:
        self._take_up(self._writer.open())
        self._keeper = asyncio.create_task(self._keep(), name="audit-keeper")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._counted.close()
        self._watchers.end()
        self._closing.set()
        self._dirty.set()
        if self._keeper is not None:
            await self._keeper
        self._writer.close()

    @property
    def head(self) -> str:
        """``SEQUENCE:HASH`` of the last row, for :func:`clawbox.audit.verify`; empty when there is none."""
        return f"{self._last}:{self._head}" if self._last else ""

    @property
    def failure(self) -> str:
        """Why rows cannot be written just now; empty when they can."""
        return self._failure

    @property
    def refuses(self) -> bool:
        """Whether :meth:`require` refuses what could not be recorded."""
        return self._refuse

    @property
    def reserve_problem(self) -> str:
        """Why rows have no room of their own on the disk (docs/security.md, 99); empty when they have."""
        return self._writer.room.problem

    @property
    def lost(self) -> int:
        """Rows that could not be written since writing failed."""
        return self._lost

    def append(
        self, kind: str, *, principal: str = "", request_id: str = "", decision: str = "", **fields: Any
    ) -> int:
        """Write a row now; returns its sequence, or 0 when it could not be written.

        ``fields`` are JSON values; each is cut at 1 KiB. Never raises: what a row tells of has happened. What
        must not happen unrecorded asks :meth:`require` first.
        """
        if self._failure and not self._recover() and not self._only_reserve_lacks:
            return self._lose()
        row = self._row(kind, principal, request_id, decision, fields)
        try:
            self._put(row)
        except OSError as error:
            self._fail(error)
            return self._lose()
        return row.sequence

    def append_counted(
        self, kind: str, *, principal: str = "", request_id: str = "", decision: str = "", **fields: Any
    ) -> None:
        """Write a row of something that strangers can cause as often as they like (docs/security.md, 75).

        Of each kind, the first ones of a minute have a row each; the rest of that minute become one row, with
        their ``count`` and ``window_s``.
        """
        self._counted.append(kind, principal=principal, request_id=request_id, decision=decision, **fields)

    def require(self) -> None:
        """Raise AUDIT_UNAVAILABLE when rows cannot be written and nothing may happen unrecorded."""
        if self._refuse and not self.available():
            raise ClawboxError(
                Reason.AUDIT_UNAVAILABLE,
                "the audit log cannot be written: {problem}",
                retry_after=1.0,
                problem=self._failure,
            )

    def available(self) -> bool:
        """Whether rows can be written, as far as can be told without writing one."""
        if not self._failure:
            try:
                self._writer.check_in_place()
            except OSError as error:
                self._fail(error)
        if not self._failure and not self._writer.has_reserve:
            try:
                self._writer.make_reserve()
            except OSError as error:
                self._fail(error)
                self._only_reserve_lacks = True
        return not self._failure or self._recover()

    async def watch(
        self,
        *,
        after_sequence: int | None = None,
        kinds: frozenset[str] = frozenset(),
        principal: str | None = None,
    ) -> AsyncGenerator[AuditRow]:
        """Rows as they are written, and before them those after ``after_sequence`` that are kept.

        ``kinds`` empty: all. ``principal`` None: everyone's. Ends when the log is closed. Raises SLOW_READER
        when the reader is 1,024 rows behind; it can go on after the last sequence that it saw.
        """

        def wanted(row: AuditRow) -> bool:
            return (not kinds or row.kind in kinds) and (principal is None or row.principal == principal)

        async with contextlib.aclosing(self._watchers.follow(after_sequence, wanted)) as rows:
            async for row in rows:
                yield row

    # Writing

    def _row(
        self, kind: str, principal: str, request_id: str, decision: str, fields: dict[str, Any]
    ) -> AuditRow:
        return make_row(
            self._last + 1,
            self._head,
            kind=kind,
            principal=principal,
            request_id=request_id,
            decision=decision,
            fields=fields,
        )

    def _put(self, row: AuditRow) -> None:
        """Write a row; raises OSError."""
        line, digest = encode(row)
        # From the reserve if need be: require() lets nothing new begin without one.
        self._writer.write(line, row.sequence)
        self._last, self._head = row.sequence, digest
        self._dirty.set()
        self._watchers.offer(row)
        if self._writer.size >= self._max_file_bytes:
            self._rotate()

    def _rotate(self) -> None:
        try:
            self._writer.rotate()
        except OSError as error:
            self._fail(error)  # the row is written; the next one has to find a file first
        else:
            self.rotated.set()

    def _fail(self, error: OSError) -> None:
        if not self._failure:
            _log.error("the audit log cannot be written", folder=str(self._folder), error=str(error))
        self._failure = error.strerror or str(error)
        self._only_reserve_lacks = False

    def _lose(self) -> int:
        self._lost += 1
        if self._on_failure is not None:
            self._on_failure()
        return 0

    def _recover(self) -> bool:
        """Try to write again, at most a few times a second; a row tells of those that were lost."""
        now = time.monotonic()
        if now < self._next_try:
            return False
        self._next_try = now + _RETRY_EVERY_S
        try:
            self._writer.reopen()
            self._writer.make_reserve()
            if self._lost:
                gap = {"cause": self._failure, "lost": self._lost}
                self._put(self._row("audit_gap", "", "", "recorded", gap))
        except OSError as error:
            self._failure = error.strerror or str(error)
            return False
        _log.warning("the audit log can be written again", lost=self._lost, cause=self._failure)
        self._failure, self._lost = "", 0
        self._only_reserve_lacks = False
        return True

    # From its beginning to its end

    def _take_up(self, end: End) -> None:
        """Go on where an earlier server left off."""
        if end.last is not None:
            row, self._head = end.last
            self._last = row.sequence
            self.signed = self.head if row.kind == SIGNED_HEAD else ""
        try:
            self._writer.make_reserve()
        except OSError as error:
            self._fail(error)
        if end.torn is not None:
            self.append("audit_gap", decision="recorded", **end.torn)

    async def _keep(self) -> None:
        """Have the kernel store what was written, and remove files that are both too many and old enough."""
        while True:
            try:
                remove_old(self._folder, self._keep_files)
            except OSError as error:
                _log.warning("an old audit file could not be removed", error=str(error))
            await self._dirty.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), _SYNC_EVERY_S)
            self._dirty.clear()
            try:
                await asyncio.to_thread(store, self._writer.unstored())
            except OSError as error:
                self._fail(error)
            if self._closing.is_set():
                return
