"""When a process that ended by itself is started again: at once, later, or not any more."""

from __future__ import annotations

from collections import deque
from typing import Final

TOLERATED: Final = 5
"""A sidecar that ends by itself more often than this within a window is not started again
(docs/security.md, 64)."""
WINDOW_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 0.05
"""Before the second start in a row; twice as long before each further one."""


class Crashes:
    """The latest crashes of one sandbox's sidecar; times are of any clock that only goes forward."""

    def __init__(self, tolerated: int = TOLERATED) -> None:
        self._times: deque[float] = deque(maxlen=tolerated + 1)

    def add(self, now: float) -> None:
        """It ended by itself."""
        self._times.append(now)

    def hopeless(self, now: float) -> bool:
        """Whether it did so too often of late."""
        return len(self._times) == self._times.maxlen and now - self._times[0] <= WINDOW_SECONDS

    def pause(self, now: float) -> float:
        """Seconds until it may be started again: none the first time."""
        recent = sum(now - at <= WINDOW_SECONDS for at in self._times)
        return float(PAUSE_SECONDS * 2 ** (recent - 2)) if recent > 1 else 0.0

    def __str__(self) -> str:
        return f"its sidecar ended {len(self._times)} times within {WINDOW_SECONDS:.0f} s"
