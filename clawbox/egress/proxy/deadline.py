"""When a connection is too late: at a time that moves with its bytes (``watch``), or does not (``limit``).

Each sets one timer at most, however many bytes come: it is looked at again when the timer fires.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clawbox.egress.refusal import Denial, Refusal

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Deadline:
    """The one deadline of a connection; none at first."""

    __slots__ = ("_denial", "_loop", "_timer", "at", "fail", "idle", "on_late", "partner")

    def __init__(self, loop: asyncio.AbstractEventLoop, fail: Callable[[Refusal], None]) -> None:
        self._loop = loop
        self._denial = Denial.IDLE_TIMEOUT
        self._timer: asyncio.TimerHandle | None = None
        self.fail = fail
        """Has whoever waits for the connection raise what it is given."""
        self.at: float | None = None
        """When it is too late, by the loop's clock; None: never."""
        self.idle: float | None = None
        """Seconds by which a byte that comes or goes puts it off (see :meth:`moved`); None: it does not."""
        self.partner: Deadline | None = None
        """That of the connection whose bytes count as life of this one, too (see :meth:`pair`)."""
        self.on_late: Callable[[], None] | None = None
        """Called when it is too late, instead of having anybody raise."""

    def limit(self, seconds: float, denial: Denial) -> None:
        """From now there are ``seconds``, whatever comes."""
        self.idle = None
        self._set(seconds, denial)

    def watch(self, seconds: float) -> None:
        """From now there are ``seconds`` without a byte, on this connection or its partner."""
        self.idle = seconds
        self._set(seconds, Denial.IDLE_TIMEOUT)

    def moved(self) -> None:
        """A byte came or went."""
        if self.idle is not None:
            self.at = self._loop.time() + self.idle

    def lift(self) -> None:
        """There is none any more."""
        self.idle = self.at = None

    def pair(self, partner: Deadline) -> None:
        """While both are watched, bytes on either connection are life of both, and both end together."""
        self.partner, partner.partner = partner, self

    def part(self) -> None:
        """Each is on its own again."""
        if self.partner is not None:
            self.partner.partner = None
            self.partner = None

    def cancel(self) -> None:
        """There is none any more, and no timer for one."""
        self.lift()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end(self) -> None:
        """The connection is gone: nobody is told any more, whatever is set."""
        self.cancel()
        self.fail = _nobody
        self.on_late = None

    def _set(self, seconds: float, denial: Denial) -> None:
        self.at = self._loop.time() + seconds
        self._denial = denial
        if self._timer is not None and self._timer.when() > self.at:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(self.at, self._expire)

    def _expire(self) -> None:
        self._timer = None
        if self.at is None:
            return
        at, partner = self.at, None if self.idle is None else self.partner
        if partner is not None and partner.at is not None:
            at = max(at, partner.at)
        # A timer may fire a little early.
        if at > self._loop.time() + 0.001:
            self._timer = self._loop.call_at(at, self._expire)
        elif self.on_late is not None:
            self.on_late()
        else:
            refusal = Refusal(self._denial)
            self.fail(refusal)
            if partner is not None:
                partner.fail(refusal)


def _nobody(_: Refusal) -> None:
    pass
