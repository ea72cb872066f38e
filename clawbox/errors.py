"""What can go wrong, as values that every part of clawbox raises and that only ``rpc/`` turns into gRPC.

The table :class:`Reason` is the whole list; ``docs/errors.md`` is made from it. An error's message is a
template over its metadata, so that a client finds every value the message mentions in
``google.rpc.ErrorInfo.metadata`` and never has to parse the text.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

DOMAIN = "clawbox.dev"
"""``google.rpc.ErrorInfo.domain`` of every error."""


class Code(enum.Enum):
    """The gRPC status codes that clawbox uses, by name, so that domain code needs no gRPC."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class _Spec(NamedTuple):
    code: Code
    meaning: str
    remedy: str


class Reason(enum.Enum):
    """Every reason with its status code, what it means, and what the caller can do."""

    TOKEN_MISSING = _Spec(
        Code.UNAUTHENTICATED,
        "The call carries no bearer token.",
        "Send `authorization: Bearer TOKEN` metadata.",
    )
    TOKEN_INVALID = _Spec(
        Code.UNAUTHENTICATED,
        "The token is not one that this server knows, or its form is wrong.",
        "Use the token in the file that `clawbox init` wrote, or one that `clawbox token add` printed.",
    )
    SCOPE_MISSING = _Spec(
        Code.PERMISSION_DENIED,
        "The token is good, but lacks a scope that the method needs.",
        "Ask the operator for a token with the scope named in the metadata.",
    )
    POLICY_DENIED = _Spec(
        Code.PERMISSION_DENIED,
        "The request asks for more than the manifest, the token or the server allows.",
        "Ask for less, or ask the operator to allow the entry named in the metadata.",
    )
    CREDENTIAL_NOT_ALLOWED = _Spec(
        Code.PERMISSION_DENIED,
        "The request names a credential that the manifest, the token or the server does not allow.",
        "Leave it out, or ask the operator to allow it.",
    )
    IMAGE_NOT_ALLOWED = _Spec(
        Code.PERMISSION_DENIED,
        "The image is not one that the operator allows.",
        "Use an allowed image or a template.",
    )
    IMAGE_REFUSED = _Spec(
        Code.FAILED_PRECONDITION,
        "The image asks for something that no sandbox may have.",
        "Use an image without it; the message says what it is.",
    )
    TOOL_NOT_FOUND = _Spec(
        Code.NOT_FOUND,
        "There is no tool of that name that the caller may see.",
        "List the tools; upload it or put it into the tool folder.",
    )
    CONTAINER_NOT_FOUND = _Spec(
        Code.NOT_FOUND, "There is no such container that the caller may see.", "List the containers."
    )
    AGENT_NOT_FOUND = _Spec(
        Code.NOT_FOUND, "There is no such agent that the caller may see.", "List the agents."
    )
    TEMPLATE_NOT_FOUND = _Spec(
        Code.NOT_FOUND, "The operator configured no template of that name.", "List the templates."
    )
    IMAGE_NOT_FOUND = _Spec(
        Code.NOT_FOUND,
        "The engine does not have the image, and could not or may not pull it.",
        "Name one that is there, or have the operator pull or build it; see `containers.pull_policy`.",
    )
    TOOL_EXISTS = _Spec(
        Code.ALREADY_EXISTS,
        "A tool of that name exists, or is being uploaded.",
        "Choose another name, or set `replace`.",
    )
    FILE_NOT_FOUND = _Spec(
        Code.NOT_FOUND,
        "There is no such file or folder in the sandbox.",
        "List the folder above it.",
    )
    FILE_EXISTS = _Spec(
        Code.ALREADY_EXISTS,
        "Something of that name is in the sandbox already.",
        "Choose another name, or allow that it is replaced.",
    )
    FILE_DENIED = _Spec(
        Code.PERMISSION_DENIED,
        "The sandbox's own user may not do this to the file or folder.",
        "Change owner or permissions inside the sandbox.",
    )
    FILE_LIMIT = _Spec(
        Code.RESOURCE_EXHAUSTED,
        "A file or folder has more bytes or entries than allowed, or the disk is full.",
        "See the message; do it in parts, or make room.",
    )
    AGENT_EXISTS = _Spec(Code.ALREADY_EXISTS, "An agent of that id exists.", "Choose another id.")
    EXEC_NOT_FOUND = _Spec(
        Code.NOT_FOUND,
        "There is no such process of the caller's inside a container, or it ended more than a minute ago.",
        "Start it again.",
    )
    EXEC_EXISTS = _Spec(
        Code.ALREADY_EXISTS,
        "A process with that `exec_id` was started otherwise.",
        "Choose another id, or attach to it.",
    )
    UNKNOWN_METHOD = _Spec(
        Code.UNIMPLEMENTED,
        "The server has no such method, or does not serve it.",
        "See System.GetStatus and the reflection service for what is served.",
    )
    SERVICE_NOT_FOUND = _Spec(
        Code.NOT_FOUND,
        "The health service knows no service of that name.",
        "Ask Health.List for the names, or use the empty name.",
    )
    INVALID_FIELD = _Spec(
        Code.INVALID_ARGUMENT,
        "A field of the request has a value that is not accepted.",
        "Correct the fields named in google.rpc.BadRequest.",
    )
    INVALID_MESSAGE = _Spec(
        Code.INVALID_ARGUMENT,
        "The bytes of the request are not the message that the method takes.",
        "Generate the client from this server's protos.",
    )
    INVALID_JSON = _Spec(
        Code.INVALID_ARGUMENT,
        "`params_json` is not JSON.",
        "Send one JSON value, in UTF-8, without NaN or Infinity.",
    )
    INVALID_INPUT = _Spec(
        Code.INVALID_ARGUMENT,
        "The parameters do not match the tool's input schema.",
        "Correct the paths named in google.rpc.BadRequest.",
    )
    INVALID_MANIFEST = _Spec(
        Code.INVALID_ARGUMENT,
        "The manifest has unknown keys, wrong types or values out of range.",
        "Correct the keys named in google.rpc.BadRequest.",
    )
    INVALID_MODULE = _Spec(
        Code.INVALID_ARGUMENT,
        "The bytes are not a WebAssembly module or component that can run here.",
        "See the message: what is missing, unknown or malformed.",
    )
    INVALID_UPLOAD = _Spec(
        Code.INVALID_ARGUMENT,
        "The messages of an upload are out of order, or do not match the stated size or digest.",
        "Send `start` once, then exactly `size_bytes` bytes.",
    )
    INVALID_PAGE_TOKEN = _Spec(
        Code.INVALID_ARGUMENT,
        "The page token is not one that this method returned.",
        "Start at the first page.",
    )
    WRONG_STATE = _Spec(
        Code.FAILED_PRECONDITION,
        "What the request names is in a state in which this cannot be done.",
        "See google.rpc.PreconditionFailure.",
    )
    TOOL_NOT_READY = _Spec(
        Code.FAILED_PRECONDITION,
        "The tool's file did not load, and no previous version is in service.",
        "Correct the file; the message says what is wrong with it.",
    )
    NOT_SERVED = _Spec(
        Code.FAILED_PRECONDITION,
        "The request uses a part of clawbox that this server does not serve.",
        "Leave the field out, or use a server that serves it.",
    )
    CREDENTIALS_UNREADABLE = _Spec(
        Code.FAILED_PRECONDITION,
        "The file of credentials, or the key that it is encrypted with, cannot be used.",
        "See the message: which file, and what is wrong with it.",
    )
    EXECUTION_LIMIT = _Spec(
        Code.RESOURCE_EXHAUSTED,
        "As many runs as the server allows are running and waiting.",
        "Try again after google.rpc.RetryInfo.retry_delay.",
    )
    CONTAINER_LIMIT = _Spec(
        Code.RESOURCE_EXHAUSTED,
        "As many containers as the server or the token allows are running.",
        "Try again after google.rpc.RetryInfo.retry_delay, or remove one.",
    )
    WORKSPACE_LIMIT = _Spec(
        Code.RESOURCE_EXHAUSTED,
        "The owner keeps as many workspaces as the server allows.",
        "Use one of them by its name, or delete one: Remove a container that has it with `delete_workspace`.",
    )
    EXEC_LIMIT = _Spec(
        Code.RESOURCE_EXHAUSTED,
        "As many processes of callers run inside a container, or on the server, as may.",
        "Try again after google.rpc.RetryInfo.retry_delay.",
    )
    STREAM_LIMIT = _Spec(
        Code.RESOURCE_EXHAUSTED,
        "As many streams as the server or the token allows are open.",
        "Close one, or try again after google.rpc.RetryInfo.retry_delay.",
    )
    RATE_LIMIT = _Spec(
        Code.RESOURCE_EXHAUSTED,
        "Too many refused tokens from this address.",
        "Wait for google.rpc.RetryInfo.retry_delay; a valid token is never delayed.",
    )
    SLOW_READER = _Spec(
        Code.RESOURCE_EXHAUSTED,
        "The reader of a stream fell too far behind and was cut.",
        "Open the stream again from the last revision that was read.",
    )
    MESSAGE_TOO_LARGE = _Spec(
        Code.RESOURCE_EXHAUSTED,
        "A message is larger than the server's limit.",
        "Send less, or raise `server.max_message_bytes`.",
    )
    TOOL_TOO_LARGE = _Spec(
        Code.RESOURCE_EXHAUSTED,
        "A module is larger than the server's limit.",
        "Make it smaller, or raise `sandbox.max_tool_bytes`.",
    )
    COMPILE_LIMIT = _Spec(
        Code.RESOURCE_EXHAUSTED,
        "Compiling a module took more time or memory than allowed.",
        "Make the module simpler, or raise `sandbox.compile_timeout_ms`.",
    )
    DOCKER_UNAVAILABLE = _Spec(
        Code.UNAVAILABLE, "The Docker engine does not answer.", "Try again; see System.GetStatus."
    )
    ENGINE_REFUSED = _Spec(
        Code.FAILED_PRECONDITION,
        "The engine refused what it was asked for, because of its own settings or its host.",
        "The operator finds the engine's words in the server's log.",
    )
    SHUTTING_DOWN = _Spec(
        Code.UNAVAILABLE, "The server is stopping and takes no new work.", "Try another server, or again."
    )
    AUDIT_UNAVAILABLE = _Spec(
        Code.UNAVAILABLE,
        "The audit log cannot be written, and the operator wants nothing done unrecorded.",
        "The operator makes room in the audit folder, or corrects who may write there; see `audit.on_error`.",
    )
    STATE_UNAVAILABLE = _Spec(
        Code.UNAVAILABLE,
        "What the server remembers of containers and requests cannot be read or written; nothing changed.",
        "Try again; the operator makes room on the disk of the state, or corrects what the message says.",
    )
    SANDBOX_UNAVAILABLE = _Spec(
        Code.UNAVAILABLE,
        "No sandbox process could be started.",
        "Try again; the log and System.GetStatus say why.",
    )
    REDACTION_UNAVAILABLE = _Spec(
        Code.UNAVAILABLE,
        "What knows the sandbox's secrets does not run, so its output cannot be cleaned of them.",
        "Try again; raw output is never sent.",
    )
    DEADLINE = _Spec(
        Code.DEADLINE_EXCEEDED, "The call's deadline passed before it ended.", "Allow more time."
    )
    CALL_CANCELLED = _Spec(
        Code.CANCELLED, "The call was cancelled.", "Nothing; everything it began was undone."
    )
    INTERNAL = _Spec(
        Code.INTERNAL,
        "Something failed that should not.",
        "Report the id in the metadata to the operator, who finds it in the log.",
    )

    @property
    def code(self) -> Code:
        """The gRPC status code."""
        return self.value.code

    @property
    def meaning(self) -> str:
        """One sentence: what it means."""
        return self.value.meaning

    @property
    def remedy(self) -> str:
        """One sentence: what the caller can do."""
        return self.value.remedy


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field: its path, what is wrong, and which rule says so (``required``, ``pattern`` …)."""

    field: str
    description: str
    rule: str = ""


class ClawboxError(Exception):
    """An error that a caller should see.

    ``message`` is a :meth:`str.format_map` template over ``metadata``: ``"there is no tool {tool}"``.
    ``retry_after`` is in seconds. ``resource`` is (type, name), for ``google.rpc.ResourceInfo``.
    ``precondition`` is (type, subject), for ``google.rpc.PreconditionFailure``.

    Never put a secret into ``metadata``: it goes to the client and to the log.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        violations: Sequence[FieldViolation] = (),
        retry_after: float | None = None,
        resource: tuple[str, str] | None = None,
        precondition: tuple[str, str] | None = None,
        **metadata: object,
    ) -> None:
        self.reason = reason
        self.metadata = {key: str(value) for key, value in metadata.items()}
        self.message = message.format_map(self.metadata)
        self.violations = tuple(violations)
        self.retry_after = retry_after
        self.resource = resource
        self.precondition = precondition
        super().__init__(self.message)

    @property
    def code(self) -> Code:
        """The gRPC status code of the reason."""
        return self.reason.code


def invalid_field(field: str, description: str, rule: str = "") -> ClawboxError:
    """The error for one bad field of a request: INVALID_ARGUMENT with one field violation."""
    return invalid_fields([FieldViolation(field, description, rule)])


def invalid_fields(violations: Sequence[FieldViolation]) -> ClawboxError:
    """The error for one or more bad fields of a request; its message is about the first."""
    return ClawboxError(
        Reason.INVALID_FIELD,
        "{field}: {description}",
        violations=violations,
        field=violations[0].field,
        description=violations[0].description,
    )
