"""Whether workers can be started: what failed in a row, for how long nothing is started, and who is told."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import Callable

FAILURES_TOLERATED: Final = 3
LONGEST_PAUSE_SECONDS: Final = 10.0

_log = logging.getLogger(__name__)


class Starts:
    """What became of the latest starts of workers.

    ``usable`` says whether there is a worker that takes calls; ``resume`` is called when a pause is over.
    """

    def __init__(self, usable: Callable[[], bool], resume: Callable[[], None]) -> None:
        self._usable = usable
        self._resume = resume
        self._failures = 0
        self._resume_at = 0.0
        self._resuming: asyncio.TimerHandle | None = None
        self._failing = False
        self._available = True
        self._watchers: list[Callable[[bool], None]] = []

    def watch(self, tell: Callable[[bool], None]) -> None:
        """Tell whether calls can be served, now and whenever :meth:`reconsider` finds it changed."""
        self._watchers.append(tell)
        tell(self._available)

    def paused_for(self, now: float) -> float:
        """Seconds until something is started again; 0 or less: at once. ``now`` is the loop's time."""
        return self._resume_at - now

    def succeeded(self) -> None:
        """A worker is ready."""
        if self._failing:
            self._failing = False
            _log.warning("workers can be started again")

    def served(self) -> None:
        """A worker ran a call: failures before that are no row with those to come."""
        self._failures = 0

    def failed(self) -> float | None:
        """A worker ended before it ran anything; the seconds to pause, if too many in a row did."""
        self._failures += 1
        excess = self._failures - FAILURES_TOLERATED
        return float(min(0.1 * 2**excess, LONGEST_PAUSE_SECONDS)) if excess >= 0 else None

    def pause(self, why: str, seconds: float) -> ClawboxError:
        """Start nothing for a while; returns what who waits is told (SANDBOX_UNAVAILABLE)."""
        if not self._failing:
            self._failing = True
            _log.error("no worker can be started; it is tried again and again: %s", why)
        if self._resuming is not None:
            self._resuming.cancel()
        loop = asyncio.get_running_loop()
        self._resume_at = loop.time() + seconds
        self._resuming = loop.call_later(seconds, self._end_pause)
        return unavailable(why, seconds)

    def reconsider(self) -> None:
        """Look whether calls can be served: they cannot while nothing is usable and starts fail."""
        available = not self._failing or self._usable()
        if available is not self._available:
            self._available = available
            for tell in self._watchers:
                tell(available)

    def _end_pause(self) -> None:
        # The timer decides, not the clock: a timer may fire a little before the time that it was set for.
        self._resume_at = 0.0
        self._resume()


def unavailable(why: str, retry_after: float) -> ClawboxError:
    """No sandbox can be started now; in ``retry_after`` seconds it is tried again."""
    return ClawboxError(
        Reason.SANDBOX_UNAVAILABLE, "no sandbox can be started: {why}", retry_after=retry_after, why=why
    )
