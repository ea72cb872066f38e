"""What credentials with a budget were used for, over all lives of each sandbox's sidecars (56).

A sidecar counts, and tells control, which remembers what was told last. So a sandbox that has its sidecar
crash, or waits until it ended idle, begins no new window.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from clawbox.egress.messages import Spent

SANDBOXES_KNOWN: Final = 65_536


class Spending:
    """Of all sandboxes, the latest ones."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[str, dict[str, tuple[Spent, float]]] = {}  # the latest last; when each window ends

    def note(self, sandbox: str, spent: Spent) -> None:
        """So much was used of one credential, which is of the sandbox's grant."""
        told = self._told.pop(sandbox, {})
        told[spent.credential] = (spent, self._clock() + spent.left_ms / 1000)
        self._told[sandbox] = told
        if len(self._told) > SANDBOXES_KNOWN:
            del self._told[next(iter(self._told))]

    def of(self, sandbox: str) -> tuple[Spent, ...]:
        """What the sandbox used in windows that have not ended."""
        now = self._clock()
        return tuple(
            msgspec.structs.replace(spent, left_ms=int((end - now) * 1000))
            for spent, end in self._told.get(sandbox, {}).values()
            if end > now
        )
