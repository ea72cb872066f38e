"""What a run did, as values. Nothing here does a call."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from clawbox_client.v1 import sandbox_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from google.protobuf.descriptor import EnumDescriptor

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""A value of JSON. Integers of any size are exact."""


class Outcome(enum.Enum):
    """How the run of untrusted code ended; docs of each are in sandbox.proto."""

    UNKNOWN = 0
    """This client is older than the server and does not know the word."""
    OK = 1
    TOOL_ERROR = 2
    TIMEOUT = 3
    FUEL_EXHAUSTED = 4
    MEMORY_EXCEEDED = 5
    OUTPUT_EXCEEDED = 6
    HOST_CALLS_EXCEEDED = 7
    INVALID_OUTPUT = 8
    BLOCKED = 9
    SANDBOX_LOST = 10
    CANCELLED = 11

    @classmethod
    def _missing_(cls, value: object) -> Outcome:  # noqa: ARG003 - the signature is enum's
        return cls.UNKNOWN


class OutcomeError(Exception):
    """A run ended otherwise than OK, and :meth:`ExecutionResult.raise_for_outcome` was called.

    ``result`` is what it was called on.
    """

    def __init__(self, result: ExecutionResult | CodeResult, text: str) -> None:
        self.result = result
        self.outcome = result.outcome
        super().__init__(text)


class OutputError(ValueError):
    """A tool's output is no JSON that Python can hold: too deep, or with a number of thousands of digits.

    The text is in ``output_json``.
    """


@dataclass(frozen=True, slots=True)
class LogEntry:
    """What a tool logged: ``level`` is debug, info, warn, error or unknown; the offset is since the start."""

    level: str
    message: str
    offset_us: int


@dataclass(frozen=True, slots=True)
class Finding:
    """What the output scan found: pattern, what was done (redacted, marked, blocked), where, how often."""

    pattern: str
    action: str
    location: str
    count: int


@dataclass(frozen=True, slots=True)
class ExecutionMetadata:
    """What a run used and reached; the meaning of each field is in sandbox.proto."""

    duration_us: int = 0
    queued_us: int = 0
    fuel_consumed: int = 0
    peak_memory_bytes: int = 0
    egress_calls: int = 0
    host_calls: int = 0
    tool_digest: str = ""
    exit_code: int | None = None
    truncated: Mapping[str, int] = field(default_factory=dict)
    """Which streams (stdout, stderr, log) were cut to a limit, and how many bytes were kept."""
    findings: tuple[Finding, ...] = ()
    issues_found: int = 0
    actions_taken: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExecutionResult:
    """How a run ended and what it returned."""

    request_id: str
    outcome: Outcome
    message: str = ""
    """One sentence about an outcome other than OK."""
    output_json: str | None = None
    """What the tool returned, as JSON text; None when it returned nothing, or bytes that are not UTF-8."""
    output_bytes: bytes | None = None
    """What the tool returned, when that is not UTF-8."""
    stdout_bytes: bytes = field(default=b"", repr=False)
    stderr_bytes: bytes = field(default=b"", repr=False)
    logs: tuple[LogEntry, ...] = ()
    metadata: ExecutionMetadata = field(default_factory=ExecutionMetadata)

    @property
    def ok(self) -> bool:
        """Whether the tool ended by itself and said that all is well."""
        return self.outcome is Outcome.OK

    @cached_property
    def output(self) -> Json | bytes:
        """What the tool returned: parsed JSON, or bytes that are not UTF-8, or None when it returned nothing.

        Raises OutputError.
        """
        if self.output_json is None:
            return self.output_bytes
        return parse_json(self.output_json)

    @property
    def stdout(self) -> str:
        """What the tool wrote to stdout, when that is not its output. Empty for a streamed run."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """What the tool wrote to stderr. Empty for a streamed run."""
        return self.stderr_bytes.decode("utf-8", "replace")

    def raise_for_outcome(self) -> ExecutionResult:
        """Returns itself when the outcome is OK. Raises OutcomeError otherwise."""
        if not self.ok:
            raise OutcomeError(
                self, f"{self.outcome.name}: {self.message}" if self.message else self.outcome.name
            )
        return self


@dataclass(frozen=True, slots=True)
class CodeError:
    """The exception that ended a snippet: its type, message, and traceback with the snippet's own lines."""

    type: str
    message: str
    traceback: str
    line: int | None = None
    """The line of the snippet that raised, counted from 1, where one did."""


@dataclass(frozen=True, slots=True)
class CodeResult:
    """How a snippet of Python or JavaScript ended."""

    outcome: Outcome
    message: str
    """One sentence about an outcome other than OK."""
    stdout: str
    stderr: str
    result: Json
    """What the snippet assigned to ``result``."""
    error: CodeError | None
    """The exception that ended it. None when it ended well, and when a limit or a crash ended it."""
    note: str
    """Says so when the result was no JSON and something stands in for it; empty otherwise."""
    execution: ExecutionResult = field(repr=False)
    """The run that this was read from."""

    @property
    def ok(self) -> bool:
        """Whether the snippet ended by itself without an exception."""
        return self.outcome is Outcome.OK

    def raise_for_outcome(self) -> CodeResult:
        """Returns itself when the outcome is OK. Raises OutcomeError, with the traceback, otherwise."""
        if not self.ok:
            why = self.error.traceback if self.error else self.message
            raise OutcomeError(self, f"{self.outcome.name}: {why}" if why else self.outcome.name)
        return self


@dataclass(frozen=True, slots=True)
class Started:
    """A streamed run began."""

    request_id: str
    tool_digest: str


@dataclass(frozen=True, slots=True)
class Stdout:
    """Bytes that a run wrote to stdout; ``offset`` is how many came before. A character may be cut in two."""

    data: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class Stderr:
    """Bytes that a run wrote to stderr; ``offset`` is how many came before. A character may be cut in two."""

    data: bytes
    offset: int


ExecutionEvent: TypeAlias = Started | Stdout | Stderr | LogEntry | ExecutionResult
"""What a streamed run does; an ExecutionResult is the last."""


def parse_json(text: str) -> Json:
    """JSON with exact integers. Raises OutputError."""
    try:
        value: Json = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise OutputError(f"the output cannot be parsed: {error}") from None
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def execution_result(response: sandbox_pb2.ExecuteResponse) -> ExecutionResult:
    """Reads the reply of Execute, or the last message of ExecuteStream."""
    said = response.metadata
    which = response.WhichOneof("result")
    return ExecutionResult(
        request_id=response.request_id,
        outcome=Outcome(response.outcome),
        message=response.message,
        output_json=response.output_json if which == "output_json" else None,
        output_bytes=response.output_bytes if which == "output_bytes" else None,
        stdout_bytes=said.stdout,
        stderr_bytes=said.stderr,
        logs=tuple(_log_entry(entry) for entry in said.logs),
        metadata=ExecutionMetadata(
            duration_us=said.duration_us,
            queued_us=said.queued_us,
            fuel_consumed=said.fuel_consumed,
            peak_memory_bytes=said.peak_memory_bytes,
            egress_calls=said.egress_calls,
            host_calls=said.host_calls,
            tool_digest=said.tool_digest,
            exit_code=said.exit_code if said.HasField("exit_code") else None,
            truncated=truncated(said.truncations),
            findings=findings(said.sanitization),
            issues_found=said.sanitization.issues_found,
            actions_taken=tuple(said.sanitization.actions_taken),
        ),
    )


def truncated(cuts: Iterable[sandbox_pb2.Truncation]) -> dict[str, int]:
    """Which streams were cut, and how many bytes were kept of each."""
    return {word(sandbox_pb2.Stream.DESCRIPTOR, cut.stream): cut.kept_bytes for cut in cuts}


def findings(sanitization: sandbox_pb2.Sanitization) -> tuple[Finding, ...]:
    """What the output scan found."""
    return tuple(
        Finding(one.pattern, word(sandbox_pb2.FindingAction.DESCRIPTOR, one.action), one.location, one.count)
        for one in sanitization.findings
    )


def execution_event(response: sandbox_pb2.ExecuteStreamResponse) -> ExecutionEvent | None:
    """Reads one message of ExecuteStream; None for a kind of event that this client does not know."""
    match response.WhichOneof("event"):
        case "started":
            return Started(response.started.request_id, response.started.tool_digest)
        case "stdout":
            return Stdout(response.stdout.data, response.stdout.offset)
        case "stderr":
            return Stderr(response.stderr.data, response.stderr.offset)
        case "log":
            return _log_entry(response.log)
        case "result":
            return execution_result(response.result)
        case _:
            return None


def code_result(result: ExecutionResult) -> CodeResult:
    """Reads what an interpreter returned: an object with ``stdout``, ``stderr``, ``result`` and ``error``.

    Where a limit or a crash ended the run there is no such object, and what it had written counts.
    """
    try:
        answer = result.output
    except OutputError:
        answer = None
    fields: dict[str, Json] = answer if isinstance(answer, dict) else {}
    return CodeResult(
        outcome=result.outcome,
        message=result.message,
        stdout=_text(fields.get("stdout")) or result.stdout,
        stderr=_text(fields.get("stderr")) or result.stderr,
        result=fields.get("result"),
        error=_code_error(fields.get("error")),
        note=_text(fields.get("note")),
        execution=result,
    )


def _code_error(value: Json) -> CodeError | None:
    if isinstance(value, dict):
        line = value.get("line")
        return CodeError(
            _text(value.get("type")),
            _text(value.get("message")),
            _text(value.get("traceback")),
            line if isinstance(line, int) else None,
        )
    return None


def _text(value: Json) -> str:
    return value if isinstance(value, str) else ""


def _log_entry(entry: sandbox_pb2.LogEntry) -> LogEntry:
    return LogEntry(word(sandbox_pb2.LogLevel.DESCRIPTOR, entry.level), entry.message, entry.offset_us)


def word(enum_type: EnumDescriptor, number: int) -> str:
    """The word for an enum value without its prefix: STREAM_STDOUT is `stdout`, 0 is `unknown`."""
    value = enum_type.values_by_number.get(number)
    if value is None or number == 0:
        return "unknown"
    prefix = enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return value.name.removeprefix(prefix).lower()


def whole_numbers(value: Json) -> Json:
    """The value with whole doubles as integers: ``google.protobuf.Struct`` holds only doubles."""
    match value:
        case dict():
            return {key: whole_numbers(one) for key, one in value.items()}
        case list():
            return [whole_numbers(one) for one in value]
        case float() if value.is_integer():
            return int(value)
        case _:
            return value
