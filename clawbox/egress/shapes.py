"""Strings that look like credentials, and phrases that try to steer a model: what they are, and finding them.

Shapes need no secrets, so anything may look for them. Every pattern is RE2 (linear in the length of the
text, whatever the text is) over bytes, ASCII only, so that a match never begins or ends inside a UTF-8
sequence. The first ones are those of the Rust clawbox 0.1; each names where its format is from.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import re2

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_MEM = 64 << 20
"""Bytes that RE2 may use for the automaton of one pattern. With less, a text made for it throws the cache of
states away again and again and slows the search two-hundredfold."""


class Kind(enum.Enum):
    """What a pattern finds."""

    CREDENTIAL = "credential"
    """Something in an issuer's own format: looked for everywhere."""
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


_RUST = "Rust clawbox 0.1"

CREDENTIAL_SHAPES = (
    Pattern(
        "sk_api_key",
        rb"sk-[a-zA-Z0-9]{20,}",
        Kind.CREDENTIAL,
        f"{_RUST}; OpenAI secret keys",
    ),
    Pattern(
        "github_personal_token",
        rb"ghp_[a-zA-Z0-9]{36}",
        Kind.CREDENTIAL,
        f"{_RUST}; GitHub docs, “GitHub's token formats”",
    ),
    Pattern(
        "github_server_token",
        rb"ghs_[a-zA-Z0-9]{36}",
        Kind.CREDENTIAL,
        f"{_RUST}; GitHub docs, “GitHub's token formats”",
    ),
    Pattern(
        "slack_token",
        rb"xox[bprs]-[a-zA-Z0-9\-]+",
        Kind.CREDENTIAL,
        f"{_RUST}; Slack docs, “Token types”",
    ),
    Pattern(
        "bearer_token",
        rb"(?i)bearer\s+[a-zA-Z0-9\-_.]{20,}",
        Kind.CREDENTIAL,
        f"{_RUST}; RFC 6750 section 2.1",
    ),
)

GENERIC_SHAPES = (
    Pattern(
        "api_key_assignment",
        rb"""(?i)(?:api[_\-]?key|apikey)\s*[:=]\s*['"]?[\w\-]{20,}""",
        Kind.GENERIC,
        _RUST,
    ),
    Pattern(
        "secret_assignment",
        rb"""(?i)(?:secret|token|password|passwd)\s*[:=]\s*['"]?[\w\-]{16,}""",
        Kind.GENERIC,
        _RUST,
    ),
)

INJECTION_PATTERNS = tuple(
    Pattern(name, expression, Kind.INJECTION, _RUST)
    for name, expression in (
        ("ignore_instructions", rb"(?i)ignore\s+(?:all\s+)?previous\s+instructions"),
        ("new_identity", rb"(?i)you\s+are\s+now\s+(?:a|an)\s+"),
        ("system_you_are", rb"(?i)system\s*:\s*you\s+are"),
        ("forget_instructions", rb"(?i)forget\s+(?:everything|all|your)\s+(?:you|instructions)"),
        ("inst_open", rb"\[INST\]"),
        ("inst_close", rb"\[/INST\]"),
        ("system_marker", rb"<\|system\|>"),
        ("im_start", rb"<\|im_start\|>"),
        ("im_end", rb"<\|im_end\|>"),
        ("sys_open", rb"<<SYS>>"),
        ("end_of_text", rb"<\|endoftext\|>"),
        (
            "role_override",
            rb"(?i)(?:^|\n)\s*(?:system|user|human|assistant)\s*:\s*(?:ignore|forget|disregard|override)",
        ),
    )
)

OUTPUT_PATTERNS = (*CREDENTIAL_SHAPES, *GENERIC_SHAPES, *INJECTION_PATTERNS)
"""What the output of a tool is searched for."""


class Match(NamedTuple):
    """Where a pattern was found: ``data[start:end]``."""

    start: int
    end: int
    pattern: Pattern


class PatternSet:
    """Patterns compiled once, to be searched for together. Safe to share between threads."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        """Compile; an expression that RE2 does not take raises ``re2.error``."""
        options = re2.Options()
        options.max_mem = MAX_MEM
        # Bytes that are not UTF-8 are searched like any other.
        options.encoding = re2.Options.Encoding.LATIN1
        options.log_errors = False
        options.never_capture = True
        self.patterns = tuple(patterns)
        self._each = tuple(_compile(pattern.expression, options) for pattern in self.patterns)
        self._any = _compile(b"|".join(b"(?:%s)" % pattern.expression for pattern in self.patterns), options)
        self._which = re2.Set.SearchSet(options)  # type: ignore[no-untyped-call]
        for pattern in self.patterns:
            self._which.Add(pattern.expression)
        self._which.Compile()

    def found_in(self, data: bytes) -> bool:
        """Whether any of the patterns occurs: the quick question, about 1 µs for a short text."""
        return self._any.search(data) is not None

    def find(self, data: bytes) -> list[Match]:
        """Every occurrence of every pattern, by position. Occurrences of different patterns may overlap."""
        if not self.found_in(data):
            return []
        found = [
            Match(hit.start(), hit.end(), self.patterns[index])
            for index in self._which.Match(data)
            for hit in self._each[index].finditer(data)
        ]
        found.sort(key=lambda match: (match.start, match.end))
        return found


def _compile(expression: bytes, options: re2.Options) -> Any:  # re2 has no types
    return re2.compile(expression, options)  # type: ignore[no-untyped-call]
