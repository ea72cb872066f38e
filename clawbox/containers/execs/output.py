"""A process's output on its way from the engine to whoever wants it, cleaned of secrets."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from clawbox.containers.backend import EngineError, Stream
from clawbox.containers.output.cleaning import QUIET_SECONDS, CleanedStream
from clawbox.containers.output.findings import findings
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from clawbox.containers.backend import ExecStream
    from clawbox.containers.output.findings import OutputFinding
    from clawbox.egress.sandbox_door import SandboxDoor

    Taker = Callable[[Stream, bytes], Awaitable[None]]

REST_SECONDS: Final = 1.0
"""How long, once the process has ended, the rest of its output is waited for: whatever it left running may
hold its streams open for ever."""
LAST_SECONDS: Final = 10.0
"""The same where it left nothing running. The engine ends the streams when it has given on all that was
written, which takes it long on a busy machine; that would be lost, and nobody be told."""
REST_BYTES: Final = 4 << 20
"""Most of such a rest: more than pipes and the engine hold back, less than what it left could write."""


class ProcessOutput:
    """Both streams of one process, until they end."""

    def __init__(
        self, stream: ExecStream, door: SandboxDoor | None, *, shapes: bool, tty: bool, take: Taker
    ) -> None:
        self._stream = stream
        self._tty = tty
        self._take = take
        self._cleaned = {name: CleanedStream(door, shapes) for name in Stream}
        self._fed: set[Stream] = set()
        """Those of which something may be held back."""
        self._ended = asyncio.Event()
        self._rest_seconds = REST_SECONDS
        self._rest_bytes = REST_BYTES
        self.failure: ClawboxError | None = None
        """Why it could not be cleaned; nothing was given on after that."""

    @property
    def findings(self) -> tuple[OutputFinding, ...]:
        """What was found in it so far."""
        return findings({name: cleaned.findings for name, cleaned in self._cleaned.items()})

    def process_ended(self, *, alone: bool) -> None:
        """Only what was written until now is still to come; ``alone``: it left nothing running."""
        self._rest_seconds = LAST_SECONDS if alone else REST_SECONDS
        self._ended.set()

    async def run(self) -> None:
        """Give on everything to its end; a connection that broke is one, too."""
        reading: asyncio.Task[tuple[Stream, bytes] | None] | None = None
        ended = asyncio.create_task(self._ended.wait())
        try:
            while True:
                reading = reading or asyncio.create_task(self._stream.read())
                if not await self._arrived(reading, ended):
                    if self._ended.is_set() and self._rest_seconds <= 0:
                        break
                    continue
                try:
                    piece = reading.result()
                except (EngineError, ClawboxError):
                    break
                reading = None
                if piece is None or not await self._give(*piece):
                    break
            await self._finish()
        except ClawboxError as error:
            if error.reason is not Reason.REDACTION_UNAVAILABLE:
                raise
            self.failure = error
        finally:
            for task in (reading, ended):
                if task is not None:
                    task.cancel()
                    await asyncio.wait([task])
                    if not task.cancelled():
                        task.exception()
            for cleaned in self._cleaned.values():
                cleaned.close()

    async def _arrived(self, reading: asyncio.Task[object], ended: asyncio.Task[bool]) -> bool:
        """Whether something was read; else a terminal was quiet, the process ended, or time was up."""
        if reading.done():
            return True
        over = ended.done()
        # A prompt has no line feed, and what follows waits for what it asks.
        quiet = QUIET_SECONDS if self._tty and self._fed else None
        if over:
            quiet = self._rest_seconds if quiet is None else min(quiet, self._rest_seconds)
        began = time.monotonic()
        await asyncio.wait(
            {reading} if over else {reading, ended}, timeout=quiet, return_when=asyncio.FIRST_COMPLETED
        )
        if over:
            self._rest_seconds -= time.monotonic() - began
        if not reading.done() and ended.done() == over and self._tty:
            for name in sorted(self._fed, key=lambda one: one.value):
                await self._show(name, await self._cleaned[name].flush())
            self._fed.clear()
        return reading.done()

    async def _give(self, name: Stream, data: bytes) -> bool:
        """Clean and give on one piece; False: no more are wanted."""
        if self._ended.is_set():
            self._rest_bytes -= len(data)
        self._fed.add(name)
        await self._show(name, await self._cleaned[name].feed(data))
        return self._rest_bytes > 0

    async def _finish(self) -> None:
        for name in Stream:
            if name in self._fed:
                await self._show(name, await self._cleaned[name].end())

    async def _show(self, name: Stream, data: bytes) -> None:
        if data:
            await self._take(name, data)
