"""What a leak scan found, and what is done about it: values and the decision."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clawbox.egress.patterns import Kind, Match
from clawbox.network_rules import ShapeAction


class Place(enum.Enum):
    """Where in a message something was found."""

    URL = "url"
    HEADER_NAME = "header_name"
    HEADER_VALUE = "header_value"
    BODY = "body"
    TRAILER = "trailer"


class Action(enum.Enum):
    """What was done about it."""

    REFUSED = "refused"
    """The message does not go on."""
    REDACTED = "redacted"
    """It was replaced, or the header that it stood in left out."""
    REPORTED = "reported"
    """It went on as it was."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found where, and what was done; never the thing itself. Fit for audit rows and metrics."""

    name: str
    """Of the credential or of the shape."""
    kind: Kind
    """KNOWN or CREDENTIAL; in output any. A few KNOWN ones in requests suspend credentials (68)."""
    place: Place
    action: Action


class LeakError(Exception):
    """Something was found that must not go on: the message breaks off here (53)."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__(
            ", ".join(sorted({f"{found.name} in the {found.place.value}" for found in findings}))
        )


Judge = Callable[[Match, bytes], Action]
"""What is done about a match in a text."""


def outbound(on_shape: ShapeAction) -> Judge:
    """Known secrets are refused, shapes are treated as the rule says.

    What has a shape but not its checksum is reported only: a refusal must be explicable.
    """
    shape = {
        ShapeAction.BLOCK: Action.REFUSED,
        ShapeAction.REDACT: Action.REDACTED,
        ShapeAction.REPORT: Action.REPORTED,
    }[on_shape]

    def judge(match: Match, data: bytes) -> Action:
        if match.pattern.kind is Kind.KNOWN:
            return Action.REFUSED
        return shape if match.checksum_holds(data) else Action.REPORTED

    return judge


def inbound(_match: Match, _data: bytes) -> Action:
    """Everything found is replaced; to replace a look-alike harms nobody."""
    return Action.REDACTED


def output(match: Match, _data: bytes) -> Action:
    """What a program wrote for others to read: phrases that steer a model are told, all else is replaced."""
    return Action.REPORTED if match.pattern.kind is Kind.INJECTION else Action.REDACTED


def inbound_encoded(match: Match, _data: bytes) -> Action:
    """Where nothing can be replaced: a known secret ends the answer, what only looks like one is reported.

    Pages and packages are full of examples of credentials, and most of them come compressed.
    """
    return Action.REFUSED if match.pattern.kind is Kind.KNOWN else Action.REPORTED


def unaltered(judge: Judge) -> Judge:
    """The same where nothing can be replaced, since the bytes are encoded: they do not go on."""

    def strict(match: Match, data: bytes) -> Action:
        action = judge(match, data)
        return Action.REFUSED if action is Action.REDACTED else action

    return strict
