"""What ``POST /proxy`` takes and answers, as whole JSON documents, and what ``http_request`` of a tool does.

The members are those of the Rust clawbox 0.1, whose bodies are text and whose headers are an object. What
that cannot say is added: a request may carry ``headers`` as a list of pairs and its body as ``body_base64``,
and asks with ``"binary": true`` for an answer of which nothing is lost: ``header_list`` and ``body_base64``
in place of ``headers`` and ``body``. Unknown members are ignored, as they were there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from clawbox.egress.refusal import Denial, RefusedError, shown

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_REQUEST_BYTES: Final = 10 << 20
"""Of the JSON of one request."""
_MAX_REPLY_HEAD_BYTES: Final = 1 << 20  # an upstream's head at its largest, every byte of it escaped


Status = Annotated[int, msgspec.Meta(ge=100, le=999)]


class CallRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request that a sandbox wants sent."""

    url: str
    method: str
    headers: dict[str, str] | list[tuple[str, str]] | None = None
    """A list keeps the order, and names that occur more than once."""
    body: str | None = None
    body_base64: bytes | None = None
    """For bytes that are not UTF-8; base64 (RFC 4648 section 4) in the JSON, bytes here."""
    binary: bool = False
    """Answer with a :class:`BinaryReply`."""

    def __repr__(self) -> str:
        """Nothing that may be a secret."""
        return f"CallRequest({self.method[:16]!r})"

    @property
    def header_list(self) -> list[tuple[str, str]]:
        """The headers in their order."""
        headers = self.headers or []
        return list(headers.items()) if isinstance(headers, dict) else headers

    @property
    def content(self) -> bytes | None:
        """The body's bytes; None: none is sent."""
        return self.body_base64 if self.body is None else self.body.encode()


class TextReply(msgspec.Struct, frozen=True):
    """An answer as the Rust clawbox gives it."""

    status: Status
    headers: dict[str, str]
    """Names in lower case; the values of one that occurs more than once are joined with ``, ``."""
    body: str
    """What is not UTF-8 is replaced by U+FFFD."""

    def __repr__(self) -> str:
        """Nothing that may be a secret."""
        return f"TextReply({self.status})"


class BinaryReply(msgspec.Struct, frozen=True):
    """An answer of which nothing is lost."""

    status: Status
    header_list: list[tuple[str, str]]
    """In their order, names in lower case."""
    body_base64: bytes

    def __repr__(self) -> str:
        """Nothing that may be a secret."""
        return f"BinaryReply({self.status})"


_requests: Final = msgspec.json.Decoder(CallRequest)


def read_request(data: bytes) -> CallRequest:
    """The request in the body of ``POST /proxy``. Raises RefusedError(MALFORMED_CALL)."""
    try:
        request = _requests.decode(data)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors, and name no values
        raise RefusedError(Denial.MALFORMED_CALL, shown(str(error))) from None
    if request.body is not None and request.body_base64 is not None:
        raise RefusedError(Denial.MALFORMED_CALL, "both body and body_base64")
    return request


def reply_to(
    request: CallRequest, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes
) -> TextReply | BinaryReply:
    """The answer in the form that the request asks for. Header values that are not UTF-8 read as Latin-1."""
    pairs = [(name.decode("ascii").lower(), _text(value)) for name, value in headers]
    if request.binary:
        return BinaryReply(status, pairs, body)
    return TextReply(status, joined(pairs), body.decode("utf-8", "replace"))


def joined(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The headers as an object: the values of a name that occurs more than once become one (RFC 9110 5.3)."""
    found: dict[str, str] = {}
    for name, value in headers:
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def largest_reply(max_body_bytes: int) -> int:
    """The most bytes of JSON that a :class:`BinaryReply` with such a body can have."""
    return _MAX_REPLY_HEAD_BYTES + 4 * -(-max_body_bytes // 3)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
