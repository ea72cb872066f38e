"""How many sandboxes there are and whose: runs of tools and containers count against one limit together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Sandboxes:
    """Counts the sandboxes of a server's principals, by asking each part that has some."""

    def __init__(self) -> None:
        self._counts: list[Callable[[str], int]] = []

    def count_also(self, of: Callable[[str], int]) -> None:
        """Have the sandboxes of one more part counted; ``of`` says how many a principal has there now."""
        self._counts.append(of)

    def of(self, principal: str) -> int:
        """How many sandboxes a principal has now, to be held against ``PrincipalLimits.max_sandboxes``."""
        return sum(of(principal) for of in self._counts)
