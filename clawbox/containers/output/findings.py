"""What was found in the output of a container: how often which pattern, never the thing itself.

The counts come from a sidecar, which may have been taken over: names that no pattern has become ``other``.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from clawbox.egress.findings import Action
from clawbox.egress.patterns import Kind
from clawbox.egress.shapes import OUTPUT_PATTERNS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from clawbox.containers.backend import Stream
    from clawbox.egress.messages import Found

KNOWN_SECRET: Final = "known_secret"  # noqa: S105 - a pattern's name
"""The pattern of a secret that the sidecar knows. Which credential it was, the sidecar's own record says."""

_NAMES: Final = frozenset(pattern.name for pattern in OUTPUT_PATTERNS)
_OTHER: Final = "other"
_MOST: Final = (1 << 32) - 1


class FindingAction(enum.Enum):
    """What was done about a finding; the values are kept. See ``FindingAction`` in sandbox.proto."""

    REDACTED = "redacted"
    MARKED = "marked"


Counts = Counter[tuple[str, FindingAction]]
"""How often a pattern was found in one stream, and what was done."""


@dataclass(frozen=True, slots=True)
class OutputFinding:
    """How often a pattern was found in a stream."""

    pattern: str
    action: FindingAction
    stream: Stream
    count: int
    """At most 2^32 - 1."""


def counted(found: Iterable[Found]) -> Counts:
    """What a sidecar says that it found."""
    counts: Counts = Counter()
    for one in found:
        name = KNOWN_SECRET if one.kind is Kind.KNOWN else one.name if one.name in _NAMES else _OTHER
        action = FindingAction.MARKED if one.action is Action.REPORTED else FindingAction.REDACTED
        counts[name, action] += max(one.count, 1)
    return counts


def findings(streams: Mapping[Stream, Counts]) -> tuple[OutputFinding, ...]:
    """Everything that was found, stream by stream."""
    return tuple(
        OutputFinding(pattern, action, stream, min(count, _MOST))
        for stream, counts in streams.items()
        for (pattern, action), count in sorted(counts.items(), key=lambda item: item[0][0])
    )


def actions_taken(found: Iterable[OutputFinding]) -> tuple[str, ...]:
    """What was done, once for each pattern, in the words of ``Sanitization.actions_taken``."""
    patterns = {one.pattern: one.action for one in found}
    return tuple(
        "injection_pattern_detected" if action is FindingAction.MARKED else "credential_pattern_detected"
        for action in patterns.values()
    )
