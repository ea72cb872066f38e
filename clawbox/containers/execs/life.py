"""From a process's start to its end: who or what ends it, and how that is told."""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from typing import TYPE_CHECKING, Final

from clawbox.containers.execs.events import Exited
from clawbox.containers.execs.inside import KILL_SECONDS
from clawbox.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from clawbox.containers.execs.inside import InsideProcess
    from clawbox.containers.execs.output import ProcessOutput

_log = logging.getLogger(__name__)
NOTICE_SECONDS: Final = 0.005
"""How long the engine is given to notice the end of a process. What that started may hold its output open."""
_SIGKILL_CODE: Final = 128 + 9


class Why(enum.Enum):
    """Why clawbox ends a process; the value is told to callers."""

    TIMEOUT = "its time limit was reached"
    NOBODY = "nobody was attached to it any more"
    CANCELLED = "the call was cancelled"
    SHUTDOWN = "the server was stopped"
    ENGINE = "the container engine went away"
    UNCLEAN = "its output could not be cleaned of secrets"


_LOST: Final = frozenset({Why.SHUTDOWN, Why.ENGINE})


class Life:
    """One running process. :meth:`run` is awaited once, by whoever owns it."""

    def __init__(self, inside: InsideProcess, output: ProcessOutput) -> None:
        self.inside = inside
        self.output = output
        self.left = False
        """Whether something that it started goes on in its cgroup."""
        self.over = asyncio.Event()
        """Set when nothing is left to be done about it."""
        self._why: Why | None = None
        self._killed = asyncio.Event()

    def kill(self, why: Why) -> None:
        """End it with everything that it started. The first reason is the one that is told."""
        if self._why is None and not self.inside.gone.done():
            self._why = why
            self._killed.set()

    async def run(self, seconds: float | None) -> Exited:
        """Stay until it has ended and all its output was given on; ``seconds`` is the most it may take.

        Cancelled, it kills everything that it started. When it ends by itself, what it started and did not
        wait for goes on, as with ``docker exec``, until its container ends.
        """
        loop = asyncio.get_running_loop()
        timer = None if seconds is None else loop.call_later(seconds, self.kill, Why.TIMEOUT)
        reading = asyncio.create_task(self.output.run())
        by_itself = False
        try:
            lost = await self._until_gone(reading)
            duration = time.monotonic() - self.inside.started
            if not reading.done() and not lost:
                # The engine ends the output when it has noticed the end: asked before, it does not know yet.
                await asyncio.wait({reading}, timeout=NOTICE_SECONDS)
            code = await self.inside.exit_code() if self.inside.gone.done() and not lost else None
            if not reading.done():
                alone = not lost and await asyncio.to_thread(self.inside.left_nothing)
                self.output.process_ended(alone=alone)
            await reading
            by_itself = self._why is None
            return self._ended(code, lost=lost, duration=duration)
        finally:
            if timer is not None:
                timer.cancel()
            await uninterrupted(self._close(reading, kill=not by_itself))

    async def _until_gone(self, reading: asyncio.Task[None]) -> bool:
        """Return once it has ended or cannot be waited for; whether it was lost with the engine."""
        gone, killed = self.inside.gone, asyncio.create_task(self._asked())
        try:
            await asyncio.wait({gone, killed, reading}, return_when=asyncio.FIRST_COMPLETED)
            if not gone.done() and not killed.done():
                # It closed its output, or that cannot be shown, or the engine is no more.
                await self._look_after_output()
                await asyncio.wait({gone, killed}, return_when=asyncio.FIRST_COMPLETED)
            if not gone.done():
                await self.inside.kill()
                await asyncio.wait({gone}, timeout=KILL_SECONDS)
        finally:
            killed.cancel()
            await asyncio.wait({killed})
        return self._why is Why.ENGINE

    async def _asked(self) -> None:
        await self._killed.wait()

    async def _look_after_output(self) -> None:
        if self.output.failure is not None:
            self.kill(Why.UNCLEAN)
        else:
            facts = await self.inside.facts()
            if facts is None and not self.inside.gone.done():
                self.kill(Why.ENGINE)

    def _ended(self, code: int | None, *, lost: bool, duration: float) -> Exited:
        reason = "" if self._why is None else self._why.value
        lost = lost or self._why in _LOST
        if self._why is None:
            # Its own end is told as its own, also when its container ended a moment later.
            if code in {None, _SIGKILL_CODE} and self.inside.container_ends():
                lost, reason = True, "its container ended"
            elif code is None:
                lost, reason = True, "the container engine does not say how it ended"
        elif not self.inside.gone.done():
            reason += "; it is frozen with its container, and dies when that goes on"
        return Exited(
            exit_code=code,
            timed_out=self._why is Why.TIMEOUT,
            lost=lost,
            reason=reason,
            duration_ms=round(duration * 1000),
            findings=self.output.findings,
        )

    async def _close(self, reading: asyncio.Task[None], *, kill: bool) -> None:
        reading.cancel()
        await asyncio.wait({reading})
        if not reading.cancelled() and (error := reading.exception()) is not None:
            _log.error("the output of a process broke off", exc_info=error)
        self.left = not await self.inside.close(kill=kill)
        self.over.set()
