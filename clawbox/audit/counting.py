"""Rows of what strangers can cause as often as they like: the first ones, then a count (property 75)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

BURST: Final = 20
"""Rows of one kind in one window that are written one by one."""
WINDOW_S: Final = 60.0


class _Window:
    """What was counted of one kind in one window."""

    def __init__(self, kind: str, decision: str) -> None:
        self.kind = kind
        self.decision = decision
        self.rows = 0
        self.count = 0
        self.timer: asyncio.TimerHandle | None = None


class CountedRows:
    """Gives ``append`` the first rows of each kind in a window, and one for the rest of them when it ends.

    That one has their number as ``count``, and ``window_s``.
    """

    def __init__(self, append: Callable[..., object]) -> None:
        """``append`` takes what :meth:`clawbox.audit.AuditLog.append` does."""
        self._append = append
        self._windows: dict[str, _Window] = {}

    def append(
        self, kind: str, *, principal: str = "", request_id: str = "", decision: str = "", **fields: Any
    ) -> None:
        """Write a row, or count it."""
        window = self._windows.get(kind)
        if window is None:
            window = self._windows[kind] = _Window(kind, decision)
            loop = asyncio.get_running_loop()
            window.timer = loop.call_later(WINDOW_S, self._close_window, window)
        if window.rows < BURST:
            window.rows += 1
            self._append(kind, principal=principal, request_id=request_id, decision=decision, **fields)
        else:
            window.count += 1

    def close(self) -> None:
        """Write what was counted."""
        for window in list(self._windows.values()):
            self._close_window(window)

    def _close_window(self, window: _Window) -> None:
        if window.timer is not None:
            window.timer.cancel()
        if self._windows.get(window.kind) is window:
            del self._windows[window.kind]
        if window.count:
            self._append(window.kind, decision=window.decision, count=window.count, window_s=WINDOW_S)
