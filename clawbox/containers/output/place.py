"""Where in the engine's log of a container something stands, and how the place is found again.

The engine gives no numbers, only the time at which it received a line or a piece of a long one. So a place is
a time and how many entries of a stream with that time came before. What the engine threw away before it was
read is noticed only where a log is read again and a place is not in it any more. While a log is followed the
engine does not say that it skipped entries (it follows by file: two rotations while one file is read lose
what was between), and a clock that is set back can hide or repeat some.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

SLACK_NS: Final = 1_000_000_000
"""How much earlier than the latest entry a log is read again: the entries of two streams are written by two
threads of the engine, each after it took the time, so that the file is not quite in order."""


class LogPlace(msgspec.Struct, frozen=True):
    """Behind an entry of one stream; the default is before all."""

    time_ns: int = 0
    """When the engine received it, since 1970."""
    count: int = 0
    """How many entries of that time there were, up to this one."""

    def after(self, time_ns: int) -> LogPlace:
        """Behind the next entry."""
        return LogPlace(time_ns, self.count + 1 if time_ns == self.time_ns else 1)


class Verdict(enum.Enum):
    """What becomes of an entry of a log that is read again."""

    SKIP = "skip"
    """It was taken before."""
    TAKE = "take"
    TAKE_BEHIND_GAP = "take behind gap"
    """It is new, and what was before it is not there any more."""


def since(*places: LogPlace) -> int:
    """From which time on a log is read again so that nothing behind ``places`` is missing."""
    latest = max(place.time_ns for place in places) - SLACK_NS
    return max(min(max(place.time_ns, latest) for place in places), 0)


class Finder:
    """Finds a place of one stream in a log that is read again."""

    def __init__(self, place: LogPlace, since_ns: int) -> None:
        self._time_ns = place.time_ns
        self._left = place.count if place.time_ns >= since_ns else 0
        self._passed = False

    def see(self, time_ns: int) -> Verdict:
        """What becomes of the next entry, received at ``time_ns``."""
        if self._passed:
            return Verdict.TAKE
        if time_ns < self._time_ns:
            return Verdict.SKIP
        if time_ns == self._time_ns and self._left:
            self._left -= 1
            return Verdict.SKIP
        self._passed = True
        return Verdict.TAKE_BEHIND_GAP if self._left else Verdict.TAKE
