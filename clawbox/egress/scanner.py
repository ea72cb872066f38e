"""Searching a stream: bytes in, the bytes that may go on out, whatever the chunks (46, 48, 52, 54).

How much a stream holds back is :mod:`clawbox.egress.hold_back`'s to say, and depends on no secret.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from clawbox.egress.findings import Action, Finding, Judge, LeakError, Place
from clawbox.egress.hold_back import HoldBack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clawbox.egress.patterns import Match, Pattern, PatternSet

REDACTED: Final = b"[REDACTED]"
_CONTEXT: Final = 64  # of what went on, for `\b` and for what may not stand before a match


class StreamScanner:
    """Searches one body. Bodies without a finding go on byte for byte.

    The caller reads; when reading fails, it does not call :meth:`finish`, and what is held never goes on.
    """

    def __init__(self, patterns: Sequence[PatternSet], judge: Judge, *, keep_length: bool) -> None:
        """``keep_length``: a secret is replaced by as many bytes as it had.

        For when the head with a Content-Length has gone on already. Else its length is not shown.
        """
        self.found: Counter[Finding] = Counter()
        """What was found so far, and how often."""
        self._patterns = tuple(patterns)
        self._judge = judge
        self._keep_length = keep_length
        self._held = HoldBack(_CONTEXT)
        self._inside: Pattern | None = None  # within a secret longer than all that is held
        self._refused = False

    @property
    def rests(self) -> bool:
        """Whether nothing is held back, nor what comes next known to be part of what was found."""
        return self._inside is None and len(self._held) == self._held.given

    def feed(self, data: bytes) -> bytes:
        """What may go on now that ``data`` came.

        Raises LeakError for what must not go on, then and ever after.
        """
        if self._refused:
            raise LeakError(tuple(self.found))
        if not self._patterns:
            return data
        prefix = b""
        if self._inside is not None:
            swallowed = self._inside.rest.match(data)
            end = swallowed.end() if swallowed else 0
            prefix, data = b"*" * end if self._keep_length else b"", data[end:]
            if not data:
                return prefix
            self._inside = None
        return prefix + self._give(self._held.add(data))

    def finish(self) -> bytes:
        """What was held back, at the clean end of the body. Raises LeakError."""
        if self._refused:
            raise LeakError(tuple(self.found))
        return self._give(len(self._held))

    def flush(self) -> bytes:
        """What was held back, while the body goes on: for a terminal that has been quiet (67).

        Of a secret that comes in two parts with the quiet between them, the first goes on. To one that ends
        where the window does belongs what may follow right after.
        """
        if self._refused:
            raise LeakError(tuple(self.found))
        return self._give(len(self._held), goes_on=True)

    def whole(self, data: bytes) -> bytes:
        """What goes on of a body that is all here, in place of feed and finish. Raises LeakError."""
        for patterns in self._patterns:
            if patterns.found_in(data):
                return self.feed(data) + self.finish()
        return data

    def _give(self, cut: int, *, goes_on: bool = False) -> bytes:
        if cut <= self._held.given:
            return b""
        window = self._held.window()
        matches = [match for patterns in self._patterns for match in patterns.find(window)]
        to = cut
        given = window[self._held.given : cut]
        if matches:
            given, to = self._cleaned(window, cut, matches, goes_on=goes_on)
        self._held.go_on(max(to, cut))
        return given

    def _cleaned(self, window: bytes, cut: int, matches: list[Match], *, goes_on: bool) -> tuple[bytes, int]:
        """What goes on of the window up to ``cut``, and how far a secret that was replaced reaches beyond."""
        spans: list[tuple[int, int, Pattern]] = []
        for match in sorted(matches, key=lambda match: (match.start, -match.end)):
            if match.end <= self._held.given or match.start >= cut:
                continue
            action = self._judge(match, window)
            if match.start >= self._held.given or action is not Action.REPORTED:
                self.found[Finding(match.pattern.name, match.pattern.kind, Place.BODY, action)] += 1
            self._refused = self._refused or action is Action.REFUSED
            if action is Action.REDACTED:
                if spans and match.start <= spans[-1][1]:
                    start, end, pattern = spans.pop()
                    spans.append((start, max(end, match.end), match.pattern if match.end > end else pattern))
                else:
                    spans.append((match.start, match.end, match.pattern))
        if self._refused:
            self._held.clear()
            raise LeakError(tuple(self.found))
        parts: list[bytes] = []
        position = self._held.given
        for start, end, pattern in spans:
            begin = max(start, position)
            parts += (window[position:begin], self._mask(end - begin))
            position = end
            if end == len(window) and (end > cut or pattern.lines or goes_on):
                self._inside = pattern
        parts.append(window[position:cut])
        return b"".join(parts), position

    def _mask(self, size: int) -> bytes:
        return (REDACTED + b"*" * size)[:size] if self._keep_length else REDACTED
