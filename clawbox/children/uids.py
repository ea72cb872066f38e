"""The range of user ids from which each living child has its own (docs/security.md, 64)."""

from __future__ import annotations

from collections import deque


class UidsExhaustedError(Exception):
    """As many children live as the configured range has ids."""


class UidRange:
    """Hands out each id to one living child at a time; it comes back last in line when the child is dead."""

    def __init__(self, first: int, count: int) -> None:
        self._free = deque(range(first, first + count))
        self._taken: set[int] = set()

    def take(self) -> int:
        """An id that no living child has. Raises :class:`UidsExhaustedError`."""
        if not self._free:
            raise UidsExhaustedError
        uid = self._free.popleft()
        self._taken.add(uid)
        return uid

    def give_back(self, uid: int) -> None:
        """The process that had ``uid`` is dead."""
        self._taken.remove(uid)
        self._free.append(uid)
