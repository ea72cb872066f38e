"""Calls that wait for a worker: in order of arrival for each principal, and the principals in turn."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clawbox.wasm.call import Call


class WaitingCalls:
    """A queue for each principal, so that nobody's many calls keep anybody else's one call waiting."""

    def __init__(self) -> None:
        self._by_owner: OrderedDict[str, deque[Call]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._by_owner.values()))

    def __bool__(self) -> bool:
        return bool(self._by_owner)

    def __iter__(self) -> Iterator[Call]:
        for calls in self._by_owner.values():
            yield from calls

    def add(self, call: Call) -> None:
        """Put a call at the end of its principal's queue."""
        self._by_owner.setdefault(call.run.owner, deque()).append(call)

    def put_back(self, call: Call) -> None:
        """Give a call that was served its turn again, before all others."""
        self._by_owner.setdefault(call.run.owner, deque()).appendleft(call)
        self._by_owner.move_to_end(call.run.owner, last=False)

    def firsts(self) -> list[Call]:
        """The first call of each principal, whose turn is first."""
        return [calls[0] for calls in self._by_owner.values()]

    def served(self, call: Call) -> None:
        """The first call of its principal has a worker; now it is the others' turn."""
        calls = self._by_owner.pop(call.run.owner)
        calls.popleft()
        if calls:
            self._by_owner[call.run.owner] = calls

    def discard(self, call: Call) -> None:
        """Take a call out, if it waits."""
        calls = self._by_owner.get(call.run.owner)
        if calls is not None and call in calls:
            calls.remove(call)
            if not calls:
                del self._by_owner[call.run.owner]

    def take(self, digest: str | None = None) -> list[Call]:
        """Take out every call, or every call of one tool."""
        taken = [call for call in self if digest is None or call.digest == digest]
        for call in taken:
            self.discard(call)
        return taken
