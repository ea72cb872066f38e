"""Errors as gRPC statuses: ``google.rpc.Status`` with details, in ``grpc-status-details-bin``.

A status travels in trailing metadata, which clients limit (gRPC's default is 8 KiB for all of it), so a
status is made to fit: long texts are cut, and field violations that no longer fit are counted, not sent.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from clawbox.errors import DOMAIN, ClawboxError, Reason

DETAILS_KEY = "grpc-status-details-bin"
"""The metadata key of the serialised ``google.rpc.Status``, as every gRPC library knows it."""

MAX_MESSAGE_BYTES = 768
"""Bytes of a message, which is sent twice: in ``grpc-message`` (percent-encoded) and in the status."""
MAX_VALUE_BYTES = 512
"""Bytes of one metadata value or description."""
MAX_STATUS_BYTES = 4096
"""Bytes of the serialised status, which base64 makes a third larger."""

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_TYPE_PREFIX = "type.googleapis.com/"


_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
"""Where a word begins in names such as ``additionalProperties``; reasons are in UPPER_SNAKE_CASE."""


class WireStatus(NamedTuple):
    """What is sent for an error."""

    code: grpc.StatusCode
    message: str
    details: bytes
    """A serialised ``google.rpc.Status``."""


def wire_status(error: ClawboxError) -> WireStatus:
    """Make the status of ``error``: ErrorInfo always, the other details where the error has them."""
    message = cut(error.message, MAX_MESSAGE_BYTES)
    status = status_pb2.Status(code=error.code.value, message=message)

    info = error_details_pb2.ErrorInfo(reason=error.reason.name, domain=DOMAIN)
    for key, value in error.metadata.items():
        text = cut(value, MAX_VALUE_BYTES)
        if info.ByteSize() + len(key) + len(text.encode()) > MAX_STATUS_BYTES // 2:
            break
        info.metadata[key] = text
    _pack(status, info)

    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(math.ceil(error.retry_after * 1e9))
        _pack(status, error_details_pb2.RetryInfo(retry_delay=delay))
    if error.resource is not None:
        kind, name = error.resource
        _pack(
            status,
            error_details_pb2.ResourceInfo(
                resource_type=kind, resource_name=cut(name, MAX_VALUE_BYTES), description=error.reason.remedy
            ),
        )
    if error.precondition is not None:
        kind, subject = error.precondition
        violation = error_details_pb2.PreconditionFailure.Violation(
            type=kind, subject=cut(subject, MAX_VALUE_BYTES), description=error.reason.meaning
        )
        _pack(status, error_details_pb2.PreconditionFailure(violations=[violation]))
    if error.violations:
        room = MAX_STATUS_BYTES - status.ByteSize() - 128
        _pack(status, _bad_request(error, room))
    return WireStatus(_CODES[error.code.value], message, status.SerializeToString())


def internal_error(error_id: str) -> ClawboxError:
    """The error that stands for one that nobody foresaw; the log has the rest under ``error_id``."""
    return ClawboxError(
        Reason.INTERNAL, "something failed that should not; the server's log has it as {id}", id=error_id
    )


def cut(text: str, limit: int) -> str:
    """``text`` in at most ``limit`` bytes of UTF-8, ending in ``…`` when cut. Lone surrogates are escaped."""
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) <= limit:
        return encoded.decode()
    return encoded[: limit - len("…".encode())].decode("utf-8", "ignore") + "…"


def _bad_request(error: ClawboxError, room: int) -> error_details_pb2.BadRequest:
    """The field violations that fit into ``room`` bytes, and the number of those that do not."""
    request = error_details_pb2.BadRequest()
    for index, violation in enumerate(error.violations):
        field = error_details_pb2.BadRequest.FieldViolation(
            field=cut(violation.field, MAX_VALUE_BYTES),
            description=cut(violation.description, MAX_VALUE_BYTES),
            reason=cut(_WORD_START.sub("_", violation.rule).upper(), 64),
        )
        if request.ByteSize() + field.ByteSize() + 4 > room:
            left = len(error.violations) - index
            request.field_violations.add(description=f"and {left} more")
            break
        request.field_violations.append(field)
    return request


def _pack(status: status_pb2.Status, detail: error_details_pb2.ErrorInfo | object) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail, type_url_prefix=_TYPE_PREFIX)  # type: ignore[arg-type]
    status.details.append(packed)
