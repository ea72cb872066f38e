"""How much one sandbox may do outside (56): rates, slots, and what a credential may be used for. Pure.

Whoever asks says what time it is: ``now`` is seconds of one clock that does not go backwards. Nothing here
waits, and nothing has a background task: what is counted is bounded by the grant.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from clawbox.egress.refusal import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clawbox.egress.credentials import Budget, Credential
    from clawbox.egress.refusal import Denial

_ROUNDING: Final = 1e-6
"""Of one token: who waits for as long as was said gets one, whatever floating point made of it."""


class Rate:
    """A token bucket: ``burst`` at once, and ``per_second`` more each second, never more than ``burst``.

    In any t seconds at most ``burst + per_second * t`` are taken. Raises ValueError for a rate that is not
    positive, or a burst under one: such a bucket would never give anything.
    """

    __slots__ = ("_at", "_burst", "_per_second", "_tokens")

    def __init__(self, per_second: float, burst: float) -> None:
        if not per_second > 0 or not burst >= 1:
            raise ValueError("a rate is positive, and its burst at least one")
        self._per_second = per_second
        self._burst = burst
        self._tokens = float(burst)
        self._at: float | None = None

    def take(self, now: float) -> float | None:
        """Takes one and returns None, or takes none and returns the seconds until one is there."""
        if self._at is None:
            self._at = now
        elif now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second)
            self._at = now
        if self._tokens < 1 - _ROUNDING:
            return (1 - self._tokens) / self._per_second
        self._tokens -= 1  # what rounding gave is owed, so that it never adds up
        return None


class Slots:
    """Room for ``limit`` things at the same time. With a limit of 0 there is never any."""

    __slots__ = ("_limit", "_taken")

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise ValueError("a limit is at least zero")
        self._limit = limit
        self._taken = 0

    @property
    def taken(self) -> int:
        """How many are in use."""
        return self._taken

    def take(self) -> bool:
        """Takes one, which must be given back once; False: there is none."""
        if self._taken >= self._limit:
            return False
        self._taken += 1
        return True

    def give_back(self) -> None:
        """Gives one back. Raises RuntimeError when none is taken: the limit would grow."""
        if not self._taken:
            raise RuntimeError("a slot was given back that nobody had taken")
        self._taken -= 1

    @contextmanager
    def hold(self, denial: Denial) -> Iterator[None]:
        """Holds one while the block runs, however it ends. Raises RefusedError when there is none."""
        if not self.take():
            raise RefusedError(denial)
        try:
            yield
        finally:
            self.give_back()


@dataclass(slots=True)
class _Window:
    budget: Budget
    start: float
    requests: int = 0
    bytes: int = 0

    @property
    def end(self) -> float:
        return self.start + self.budget.window_seconds

    def turn(self, now: float) -> None:
        if now >= self.end:
            self.start, self.requests, self.bytes = now, 0, 0

    def spent(self) -> bool:
        budget = self.budget
        return (budget.requests is not None and self.requests >= budget.requests) or (
            budget.bytes is not None and self.bytes >= budget.bytes
        )


class BudgetLedger:
    """What each credential with a budget was used for, in this sidecar.

    Windows are fixed, not sliding: one begins with the first request, lasts ``window_seconds``, and the next
    begins with the first request (or byte) after it. So everything comes back at one known moment, which is
    what Retry-After says, and a window across two of them may see twice the budget. Each sandbox has a ledger
    of its own; what one sidecar has used, the next begins with (:class:`clawbox.egress.spending.Spending`).
    """

    __slots__ = ("_restored", "_windows")

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}
        self._restored: dict[str, tuple[int, int, float]] = {}

    def admit(self, credential: Credential, now: float) -> float | None:
        """Counts one request and returns None, or the seconds until the budget is there again.

        A budget that was changed meanwhile counts with what was used already.
        """
        budget = credential.budget
        if budget is None:
            self._windows.pop(credential.name, None)
            return None
        window = self._windows.get(credential.name)
        if window is None:
            window = self._windows[credential.name] = _Window(budget, now)
            requests, count, end = self._restored.pop(credential.name, (0, 0, now))
            if end > now:
                window.start, window.requests, window.bytes = end - budget.window_seconds, requests, count
        window.budget = budget
        window.turn(now)
        if window.spent():
            return max(0.0, budget.window_seconds - (now - window.start))
        window.requests += 1
        return None

    def spent(self, name: str, now: float) -> tuple[int, int, float] | None:
        """Requests and bytes of a credential with a budget, and the seconds until its window ends."""
        window = self._windows.get(name)
        if window is None:
            return None
        window.turn(now)
        return window.requests, window.bytes, window.end - now

    def restore(self, name: str, requests: int, count: int, end: float) -> None:
        """So much was used already, in a window that ends then."""
        self._restored[name] = (requests, count, end)

    def spend_bytes(self, name: str, count: int, now: float) -> bool:
        """Counts bytes of an admitted request, either way; False: more than there were, it must end.

        What was counted stays counted: the request that overdrew is the last of its window.
        """
        window = self._windows.get(name)
        if window is None:
            return True
        window.turn(now)
        window.bytes += count
        return window.budget.bytes is None or window.bytes <= window.budget.bytes
