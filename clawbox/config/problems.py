"""What is wrong with the settings, all of it at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. None of the fields ever holds the value of a secret."""

    source: str
    """The file's path, ``environment CLAWBOX_PORT``, ``command line``, or ``defaults``."""
    key: str
    """``server.port``, ``auth.tokens[0].sha256``; empty when the whole source is meant."""
    found: str
    accepted: str

    def __str__(self) -> str:
        where = f"{self.source}: {self.key}" if self.key else self.source
        return f"{where}: found {self.found}; accepted: {self.accepted}"


class ConfigError(Exception):
    """The settings cannot be used. ``problems`` has every reason, the message has one line for each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
