"""Patterns, and finding them: RE2 over bytes, linear in the length of the text, whatever the text is.

Every expression is ASCII only, so that a match never begins or ends inside a UTF-8 sequence. RE2 has no
look-around; what a pattern needs besides (a checksum, what may not stand before it) is looked at in a second
step on what was found.
"""

from __future__ import annotations

import enum
import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import re2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_MEM = 64 << 20
"""Bytes that RE2 may use for the automaton of one pattern. With less, a text made for it throws the cache of
states away again and again and slows the search two-hundredfold."""


class Kind(enum.Enum):
    """What a pattern finds."""

    CREDENTIAL = "credential"
    """Something in an issuer's own format: looked for everywhere."""
    KNOWN = "known"
    """A secret that is known: looked for everywhere, in every encoding."""
    GENERIC = "generic"
    """``password=…`` and the like: for tool output only, since ordinary logins look the same."""
    INJECTION = "injection"
    """A phrase that tells a model to do something else: for tool output only."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """One thing to look for."""

    name: str
    """``github_personal_token`` for one; it is in reports, so it never changes."""
    expression: bytes
    """RE2, ASCII, without groups that capture."""
    kind: Kind
    source: str
    """Where the format is from."""
    check: Callable[[bytes], bool] | None = None
    """Whether the checksum in what was found is right; None: the format has none that is published."""
    not_after: tuple[bytes, ...] = ()
    """What may not stand right before it."""
    lines: bool = False
    """Whether it goes on over line ends."""

    @property
    def rest(self) -> re.Pattern[bytes]:
        """What still belongs to it, when it ends where a stream's window ends."""
        return _LINES if self.lines else _TOKEN


_TOKEN = re.compile(rb"[\w\-.~+/=]*", re.ASCII)
_LINES = re.compile(rb"(?:[a-zA-Z0-9+/=\s]|\\[nr])*", re.ASCII)


class Match(NamedTuple):
    """Where a pattern was found: ``data[start:end]``."""

    start: int
    end: int
    pattern: Pattern

    def checksum_holds(self, data: bytes) -> bool:
        """Whether what was found in ``data`` has the checksum of its format, or the format has none."""
        return self.pattern.check is None or self.pattern.check(data[self.start : self.end])


class PatternSet:
    """Patterns compiled once, to be searched for together. Safe to share between threads."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        """Compile; an expression that RE2 does not take raises ``re2.error``."""
        self.patterns = tuple(patterns)
        self._any = _compile(b"|".join(b"(?:%s)" % pattern.expression for pattern in self.patterns))

    # Two thirds of the time to compile, for what only something found needs.
    @functools.cached_property
    def _each(self) -> tuple[Any, ...]:
        return tuple(_compile(pattern.expression) for pattern in self.patterns)

    @functools.cached_property
    def _which(self) -> Any:
        which = re2.Set.SearchSet(_options())  # type: ignore[no-untyped-call]
        for pattern in self.patterns:
            which.Add(pattern.expression)
        which.Compile()
        return which

    def found_in(self, data: bytes) -> bool:
        """Whether any of the patterns occurs: the quick question, about 1 µs for a short text."""
        # As search() does, without the calls around it.
        return next(self._any.finditer(data), None) is not None

    def find(self, data: bytes) -> list[Match]:
        """Every occurrence of every pattern, by position. Occurrences of different patterns may overlap."""
        if not self.found_in(data):
            return []
        found = [
            Match(hit.start(), hit.end(), self.patterns[index])
            for index in self._which.Match(data)
            for hit in self._each[index].finditer(data)
            if not _preceded(data, hit.start(), self.patterns[index].not_after)
        ]
        found.sort(key=lambda match: (match.start, match.end))
        return found


def _preceded(data: bytes, position: int, texts: tuple[bytes, ...]) -> bool:
    return any(data.endswith(text, 0, position) for text in texts)


def _options() -> re2.Options:
    options = re2.Options()
    options.max_mem = MAX_MEM
    # Bytes that are not UTF-8 are searched like any other.
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    options.never_capture = True
    return options


def _compile(expression: bytes) -> Any:  # re2 has no types
    return re2.compile(expression, _options())  # type: ignore[no-untyped-call]
