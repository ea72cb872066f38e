"""Where a body ends: decided once from a good head, or refused (RFC 9112 section 6, properties 21 to 23).

What says two things about a body's length is refused in both directions, never repaired: the other end may
have repaired it differently.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING, Final

import msgspec

from clawbox.egress.refusal import Denial, RefusedError

if TYPE_CHECKING:
    from clawbox.egress.http.head import RequestHead, ResponseHead
    from clawbox.egress.http.headers import Headers

_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")


class BodyKind(enum.Enum):
    """How a body's end is known."""

    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"
    """It ends with the connection: responses alone."""


class Framing(msgspec.Struct, frozen=True):
    """How a body's end is known, and its bytes where they are stated."""

    kind: BodyKind
    length: int = 0


NO_BODY: Final = Framing(BodyKind.NONE)
CHUNKED: Final = Framing(BodyKind.CHUNKED)
UNTIL_CLOSE: Final = Framing(BodyKind.CLOSE)


def request_framing(head: RequestHead) -> Framing:
    """Where the request's body ends. Raises RefusedError."""
    framing = _stated(head.headers, head.version) or NO_BODY
    if head.method == "CONNECT" and (framing.kind is BodyKind.CHUNKED or framing.length):
        raise RefusedError(Denial.UNEXPECTED_BODY, "CONNECT has no body")
    return framing


def response_framing(head: ResponseHead, method: str) -> Framing:
    """Where the body of the response to ``method`` ends (RFC 9112 6.3). Raises RefusedError."""
    framing = _stated(head.headers, head.version)
    if head.status < 200 or head.status == 204:
        # Neither may have either header (RFC 9110 8.6, RFC 9112 6.1); an empty body is harmless and common.
        if framing is not None and (framing.kind is BodyKind.CHUNKED or framing.length):
            raise RefusedError(Denial.UNEXPECTED_BODY, f"status {head.status} has no body")
        return NO_BODY
    if method == "HEAD" or head.status == 304:
        return NO_BODY
    return framing or UNTIL_CLOSE


def _stated(headers: Headers, version: int) -> Framing | None:
    lengths = headers.values(b"content-length")
    codings = headers.values(b"transfer-encoding")
    if codings:
        if lengths:
            raise RefusedError(Denial.LENGTH_AND_CHUNKED)
        if version == 0 or codings != [b"chunked"]:
            raise RefusedError(Denial.BAD_TRANSFER_ENCODING)
        return CHUNKED
    if not lengths:
        return None
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise RefusedError(Denial.BAD_LENGTH)
    return Framing(BodyKind.LENGTH, int(lengths[0]))
