"""How a command ends: exit codes, and one line on stderr that says what is wrong and what to do next."""

from __future__ import annotations

import enum
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from clawbox.cli.output import escape

if TYPE_CHECKING:
    from collections.abc import Mapping

    import clawbox_client


class ExitCode(enum.IntEnum):
    """What a script can tell from a command's exit status. ``docs/cli.md`` has this table."""

    OK = 0
    FAILED = 1
    USAGE = 2
    AUTH = 3
    NOT_FOUND = 4
    UNAVAILABLE = 5
    DENIED = 6
    CONFLICT = 7
    INTERNAL = 70
    INTERRUPTED = 130
    BROKEN_PIPE = 141

    @property
    def meaning(self) -> str:
        """One sentence."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "It was done; a tool, snippet or command ended well.",
    ExitCode.FAILED: "The tool or snippet ran and failed, or a limit ended it; or what was checked is wrong.",
    ExitCode.USAGE: "The command line, a file that it names, the settings or the parameters are wrong.",
    ExitCode.AUTH: "There is no token, or the server does not know it.",
    ExitCode.NOT_FOUND: "What was named is not there, or may not be seen.",
    ExitCode.UNAVAILABLE: "The server cannot be reached, is not ready, or did not answer in time.",
    ExitCode.DENIED: "Policy, a scope or a limit of the server forbids it.",
    ExitCode.CONFLICT: "It exists already, or is in a state in which this cannot be done.",
    ExitCode.INTERNAL: "Something failed that should not.",
    ExitCode.INTERRUPTED: "Interrupted by Ctrl-C.",
    ExitCode.BROKEN_PIPE: "Whoever read the output stopped reading.",
}


class CliError(Exception):
    """A command cannot go on: ``message`` says why, ``hint`` what to do, both without a full stop."""

    def __init__(self, message: str, *, hint: str = "", code: ExitCode = ExitCode.USAGE) -> None:
        self.message = message
        self.hint = hint
        self.code = code
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Failure:
    """How an exception is shown."""

    code: ExitCode
    message: str
    hint: str = ""

    def __str__(self) -> str:
        """The line for stderr: control characters escaped, never more than one line."""
        sentences = (text.strip() for text in (self.message, self.hint))
        ended = (text if text.endswith((".", "?", "!")) else f"{text}." for text in sentences if text)
        return escape(f"clawbox: {' '.join(ended)}", keep="")


def describe(error: Exception) -> Failure:
    """What to say about an exception that ended a command; of a group, about the first in it."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, CliError):
        return Failure(error.code, error.message, error.hint)
    if isinstance(error, typer.Abort):
        return Failure(ExitCode.INTERRUPTED, "aborted")
    if _is_usage_error(error):
        return Failure(ExitCode.USAGE, str(error.format_message()).replace("?.", "?"), _help_hint(error))  # type: ignore[attr-defined]

    import clawbox_client  # noqa: PLC0415 - half of the time that --help takes

    from clawbox import errors  # noqa: PLC0415
    from clawbox.config import ConfigError  # noqa: PLC0415

    if isinstance(error, clawbox_client.ClawboxError):
        return _describe_call(error)
    if isinstance(error, ConfigError):
        first, *others = (str(problem) for problem in error.problems)
        more = "".join(f"; {other}" for other in others)
        return Failure(ExitCode.USAGE, f"{first}{more}", "`clawbox config check` tries again")
    if isinstance(error, errors.ClawboxError):
        hint = _HINTS.get(error.reason.name, error.reason.remedy)
        return Failure(_CODES.get(error.code.name, ExitCode.FAILED), str(error), hint)
    if isinstance(error, OSError) and error.filename:
        # Commands that take any path work with its bytes.
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        return Failure(ExitCode.USAGE, f"{name}: {error.strerror or error}")
    if isinstance(error, UnicodeError):
        return Failure(ExitCode.USAGE, "the command line, or a name in it, is not UTF-8")
    return Failure(
        ExitCode.INTERNAL,
        f"internal error: {type(error).__name__}: {error}",
        "CLAWBOX_DEBUG=1 shows where; please report it",
    )


def _is_usage_error(error: Exception) -> bool:
    # typer carries click inside, and publishes these classes under one name only.
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def _help_hint(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f"Try `{context.command_path} --help`" if context is not None else ""


_CODES = {
    "UNAUTHENTICATED": ExitCode.AUTH,
    "PERMISSION_DENIED": ExitCode.DENIED,
    "RESOURCE_EXHAUSTED": ExitCode.DENIED,
    "NOT_FOUND": ExitCode.NOT_FOUND,
    "INVALID_ARGUMENT": ExitCode.USAGE,
    "OUT_OF_RANGE": ExitCode.USAGE,
    "ALREADY_EXISTS": ExitCode.CONFLICT,
    "FAILED_PRECONDITION": ExitCode.CONFLICT,
    "ABORTED": ExitCode.CONFLICT,
    "UNIMPLEMENTED": ExitCode.CONFLICT,
    "UNAVAILABLE": ExitCode.UNAVAILABLE,
    "DEADLINE_EXCEEDED": ExitCode.UNAVAILABLE,
    "CANCELLED": ExitCode.UNAVAILABLE,
}

_HINTS = {
    "CONTAINER_LIMIT": "`clawbox ps` shows what runs, and `clawbox kill ID` ends one",
    "CONTAINER_NOT_FOUND": "`clawbox ps -a` shows what there is",
    "CREDENTIALS_UNREADABLE": "",
    "DOCKER_UNAVAILABLE": "`clawbox status` says why",
    "EXEC_NOT_FOUND": "What is executed ends when the server does, or when nobody is connected for 30 s",
    "INVALID_FIELD": "",
    "INVALID_INPUT": "`clawbox tools get TOOL` shows what it accepts",
    "INVALID_MANIFEST": "docs/tools.md has every key of a manifest",
    "INVALID_MODULE": "",
    "POLICY_DENIED": "Ask for less, or have the operator allow it",
    "SCOPE_MISSING": "Ask the operator for a token that has it",
    "TEMPLATE_NOT_FOUND": "`clawbox templates` shows what there is; an image is named by --image, "
    "and a command goes after --",
    "TOOL_NOT_FOUND": "`clawbox tools list` shows what there is",
    "TOOL_EXISTS": "Choose another with --name, or say --replace",
    "UNKNOWN_METHOD": "`clawbox status` says what this server does not serve, and why",
}
"""What to do at a command line, where the remedy for programs speaks of messages that nobody sees here."""

_VIOLATIONS_SHOWN = 5
_CAUSE = re.compile(r"^.*last error: (?:[A-Z_]+: )?")
"""What gRPC puts before the words of the system, when no address could be connected to."""


def _describe_call(error: clawbox_client.ClawboxError) -> Failure:
    code = _CODES.get(error.code.name, ExitCode.INTERNAL)
    message = error.message
    if code is ExitCode.UNAVAILABLE and not error.reason:
        message = f"no answer: {_CAUSE.sub('', message)}"
    shown = [f"{one.field or 'the whole'}: {one.description}" for one in error.violations[:_VIOLATIONS_SHOWN]]
    if len(error.violations) > len(shown):
        shown.append(f"and {len(error.violations) - len(shown)} more")
    if shown and error.violations[0].description in message:
        message = "; ".join(shown)  # which says all that the message does
    elif shown:
        message = f"{message} ({'; '.join(shown)})"
    if error.reason:
        message = f"{message} [{error.reason}]"
    return Failure(code, message, _call_hint(error))


def _call_hint(error: clawbox_client.ClawboxError) -> str:
    from clawbox.errors import Reason  # noqa: PLC0415 - see describe

    if error.code.name == "UNAUTHENTICATED":
        return (
            "Give one that `clawbox init` or `clawbox token add` made for this server, "
            "with --token-file FILE or in CLAWBOX_TOKEN"
        )
    if error.retry_after:
        again = f"Try again in {error.retry_after:g} s"
        return f"{_HINTS[error.reason]}. {again}" if error.reason in _HINTS else again
    if error.code.name == "INTERNAL" and error.request_id:
        return f"The server's log has the cause under request id {error.request_id}"
    if error.code.name == "UNAVAILABLE" and not error.reason:
        return (
            "Is it running (`clawbox serve`), is the address right (--address), does it want TLS (--tls-ca)?"
        )
    if error.code.name == "DEADLINE_EXCEEDED":
        return "Allow more time with --deadline SECONDS"
    if error.reason == "WRONG_STATE":
        return _state_hint(error.metadata)
    if error.reason in _HINTS:
        return _HINTS[error.reason]
    try:
        return Reason[error.reason].remedy
    except KeyError:
        return ""


def _state_hint(metadata: Mapping[str, str]) -> str:
    """What to do about a container in the wrong state; empty: nothing can be done."""
    if metadata.get("operation") == "remove it":
        return "--force kills it first"
    return "`clawbox resume` lets it go on" if metadata.get("state") == "PAUSED" else ""
