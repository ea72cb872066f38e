"""What a call can fail with, as exceptions that say what happened without anybody reading text.

A server sends ``google.rpc.Status`` with every error (trailing metadata ``grpc-status-details-bin``): an
ErrorInfo with a reason and the values that the message mentions, and where apt field violations and a time to
wait. :func:`from_rpc_error` reads it. An error that never reached a server (no connection, a deadline that
passed here) has the same type and an empty ``reason``.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DOMAIN = "clawbox.dev"
"""``google.rpc.ErrorInfo.domain`` of what clawbox itself says; a proxy in between has another one."""

_DETAILS = "grpc-status-details-bin"
_REQUEST_ID = "x-request-id"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that is wrong.

    ``field`` is its path (``capabilities.network.rules[1]``, or a JSON pointer into the parameters),
    ``rule`` the name of the rule that it breaks (``required``, ``pattern``), where the server names one.
    """

    field: str
    description: str
    rule: str = ""


class ClawboxError(Exception):
    """A call failed. Subclasses tell the kinds apart; ``reason`` tells one cause from another."""

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_after: float | None = None,
        request_id: str = "",
    ) -> None:
        self.message = message
        """What happened, for people."""
        self.code = code
        """The gRPC status code."""
        self.reason = reason
        """UPPER_SNAKE, from the server's list of reasons; empty when no clawbox server said this."""
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata or {}))
        """Every value that the message mentions."""
        self.violations = tuple(violations)
        """Each field of the request that is wrong."""
        self.retry_after = retry_after
        """Seconds to wait before trying again, where the server names a time."""
        self.request_id = request_id
        """The id under which the server's log knows the call; empty when the call never reached a server."""
        super().__init__(message)

    def __str__(self) -> str:
        """The message, with the reason in front."""
        return f"{self.reason}: {self.message}" if self.reason else self.message


class Unauthenticated(ClawboxError):  # noqa: N818 - named like the status code, as in the other languages
    """There is no token, or it is not one that the server knows."""


class PermissionDenied(ClawboxError):  # noqa: N818
    """The token is good; policy or its scopes forbid this. ``metadata`` names the entry or the scope."""


class NotFound(ClawboxError):  # noqa: N818
    """What the request names is not there, or the caller may not see it."""


class InvalidArgument(ClawboxError):  # noqa: N818
    """The request is wrong; ``violations`` says where."""


class AlreadyExists(ClawboxError):  # noqa: N818
    """Something of that name is there already."""


class FailedPrecondition(ClawboxError):  # noqa: N818
    """What the request names is in a state in which this cannot be done."""


class ResourceExhausted(ClawboxError):  # noqa: N818
    """A limit is reached; ``retry_after`` says when to try again, where waiting helps."""


class Unavailable(ClawboxError):  # noqa: N818
    """The server cannot be reached, is stopping, or lacks something it needs."""


class DeadlineExceeded(ClawboxError):  # noqa: N818
    """The call's deadline passed. A tool that overstays its own time limit is an outcome, not this."""


class Cancelled(ClawboxError):  # noqa: N818
    """The server or something in between cancelled the call, or ``cancel()`` was called on its stream."""


class Internal(ClawboxError):  # noqa: N818
    """The server failed in a way that it should not; its log has ``request_id``."""


_TYPES: Mapping[grpc.StatusCode, type[ClawboxError]] = {
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.INTERNAL: Internal,
}


class _FailedCall(Protocol):
    """What blocking and asyncio errors of grpc have in common."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...


def from_rpc_error(error: grpc.RpcError) -> ClawboxError:
    """The typed error for a failed call, for those who use the stubs themselves.

    Details that cannot be decoded are left out: the status code alone still decides the type.
    """
    call: _FailedCall = error
    code = call.code()
    trailers = _trailing_metadata(error)
    status = _decode(status_pb2.Status(), trailers.get(_DETAILS))
    info = error_details_pb2.ErrorInfo()
    violations: list[FieldViolation] = []
    retry_after: float | None = None
    request_id = _text(trailers.get(_REQUEST_ID))
    for detail in status.details:
        match detail.TypeName():
            case "google.rpc.ErrorInfo":
                _decode(info, detail.value)
            case "google.rpc.BadRequest":
                violations += [
                    FieldViolation(one.field, one.description, one.reason)
                    for one in _decode(error_details_pb2.BadRequest(), detail.value).field_violations
                ]
            case "google.rpc.RetryInfo":
                delay = _decode(error_details_pb2.RetryInfo(), detail.value).retry_delay
                retry_after = delay.seconds + delay.nanos / 1e9
            case "google.rpc.RequestInfo":
                request_id = _decode(error_details_pb2.RequestInfo(), detail.value).request_id
            case _:
                pass
    ours = info.domain == DOMAIN
    return _TYPES.get(code, ClawboxError)(
        call.details() or code.name,
        code=code,
        reason=info.reason if ours else "",
        metadata=dict(info.metadata) if ours else {},
        violations=violations,
        retry_after=retry_after,
        request_id=request_id or (info.metadata.get("request_id", "") if ours else ""),
    )


def no_file() -> Unavailable:
    """A stream that ended well and told of no file: no clawbox server does that."""
    return Unavailable("the server ended the stream without a file", code=grpc.StatusCode.UNAVAILABLE)


def _trailing_metadata(error: grpc.RpcError) -> dict[str, str | bytes]:
    # The stubs promise a tuple; grpc.aio gives its own Metadata, and both give None when there was no server.
    pairs: Any = error.trailing_metadata() or ()
    return {str(key): value for key, value in pairs}


_M = TypeVar("_M", bound=Message)


def _decode(message: _M, data: str | bytes | None) -> _M:
    if isinstance(data, bytes):
        try:
            message.ParseFromString(data)
        except DecodeError:
            message.Clear()
    return message


def _text(value: str | bytes | None) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value or ""
