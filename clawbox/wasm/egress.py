"""A worker's way out: the call's own connection to its sidecar, and ``POST /proxy`` on it.

The worker decides nothing: it makes no connection, knows no secret and no rule, and can only say what its
guest wants. Only ``read``, ``write`` and ``close`` are used, which is all that it may call. The sidecar reads
hostile answers for a living, so what it says is bounded and checked as anybody's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from clawbox.egress.call_errors import call_error_text
from clawbox.egress.call_messages import MAX_REQUEST_BYTES, BinaryReply, CallRequest, largest_reply
from clawbox.egress.http.head import ResponseHead
from clawbox.egress.http.reader import End, ResponseReader
from clawbox.egress.refusal import Denial, Refusal

_READ_BYTES: Final = 64 << 10
_MAX_ERROR_CHARS: Final = 20_000
"""Of the text of an error, which may repeat a URL."""
_NO_WAY_OUT: Final = "HTTP error: this server has no way out for tools; its System.GetStatus says why"
_BROKEN: Final = "HTTP error: the connection to the sidecar broke"
_MALFORMED: Final = "HTTP error: the sidecar's answer is malformed or too large"

_encoder: Final = msgspec.json.Encoder()
_replies: Final = msgspec.json.Decoder(BinaryReply)


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request that a guest wants sent."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """The whole answer to a request of a guest."""

    status: int
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    """In their order, names in lower case."""
    body: bytes = field(repr=False)


class EgressRefusedError(Exception):
    """A request was not sent, or not answered; the guest is told the text."""


class Egress(Protocol):
    """The way out of a worker."""

    def send(self, request: HttpRequest) -> HttpResponse:
        """Send one request and wait for the answer. Raises :class:`EgressRefusedError`."""


class NoEgress:
    """There is no way out: the run was granted no network, or the server has none to give."""

    def __init__(self, *, granted: bool = False) -> None:
        self._granted = granted

    def send(self, request: HttpRequest) -> HttpResponse:
        """Refuse, whatever the request is, without a grant as a sidecar with an empty one would."""
        if self._granted:
            raise EgressRefusedError(_NO_WAY_OUT)
        raise EgressRefusedError(call_error_text(Refusal(Denial.NO_RULES), request.url))


class _Error(msgspec.Struct, frozen=True):
    """What the sidecar says instead of an answer."""

    error: str


_errors: Final = msgspec.json.Decoder(_Error)


class SidecarEgress:
    """The way out of one run. Close it with the run: neither connection nor token outlives it (65)."""

    def __init__(self, descriptor: int, token: str, max_body_bytes: int) -> None:
        """``descriptor``, a connected stream socket in blocking mode, belongs to this object from now on.

        ``max_body_bytes`` is the largest body of an answer that is taken.
        """
        self._descriptor: int | None = descriptor
        self._token = token
        self._max_reply_bytes = largest_reply(max_body_bytes)
        self._reader = ResponseReader()

    def close(self) -> None:
        """Close the connection. Nothing can be sent any more."""
        descriptor, self._descriptor = self._descriptor, None
        self._token = ""
        if descriptor is not None:
            os.close(descriptor)

    def send(self, request: HttpRequest) -> HttpResponse:
        """Send one request and wait for the answer, however long: control ends a run that takes too long.

        Raises :class:`EgressRefusedError`, and for every request once the connection broke.
        """
        message = self._message(request)
        try:
            status, reply = self._exchange(message)
        except OSError as error:
            self.close()
            raise EgressRefusedError(_BROKEN) from error
        except BaseException:  # what is left in the connection must not answer the next request
            self.close()
            raise
        if not self._reader.reusable:
            self.close()
        if status != 200:
            raise EgressRefusedError(_error_text(reply))
        try:
            answer = _replies.decode(reply)
        except (ValueError, RecursionError) as error:
            raise EgressRefusedError(_MALFORMED) from error
        headers = tuple((name.lower(), value) for name, value in answer.header_list)
        return HttpResponse(answer.status, headers, answer.body_base64)

    def _message(self, request: HttpRequest) -> bytes:
        if self._descriptor is None:
            raise EgressRefusedError(_BROKEN)
        call = CallRequest(
            url=request.url,
            method=request.method,
            headers=list(request.headers),
            body_base64=request.body,
            binary=True,
        )
        try:
            body = _encoder.encode(call)
        except UnicodeEncodeError as error:
            raise EgressRefusedError("invalid URL: half of a surrogate pair in it, or in a header") from error
        if len(body) > MAX_REQUEST_BYTES:
            raise EgressRefusedError(
                f"HTTP error: the request has more than {MAX_REQUEST_BYTES} bytes as JSON"
            )
        head = (
            "POST /proxy HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {self._token}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode("ascii") + body

    def _exchange(self, message: bytes) -> tuple[int, bytes]:
        """Raises OSError, :class:`EgressRefusedError`."""
        descriptor = self._descriptor
        assert descriptor is not None
        view = memoryview(message)
        while view:
            view = view[os.write(descriptor, view) :]
        self._reader.expect("POST")
        status, body, ended = 0, bytearray(), False
        while not ended:
            data = os.read(descriptor, _READ_BYTES)
            for event in self._reader.feed(data) if data else self._reader.eof():
                if isinstance(event, ResponseHead):
                    status = event.status
                elif isinstance(event, bytes):
                    body += event
                else:
                    ended = isinstance(event, End)
                    if not ended:
                        raise EgressRefusedError(_MALFORMED)
            if len(body) > self._max_reply_bytes:
                raise EgressRefusedError(_MALFORMED)
        return status, bytes(body)


def _error_text(reply: bytes) -> str:
    try:
        return _errors.decode(reply).error[:_MAX_ERROR_CHARS]
    except (ValueError, RecursionError):
        return _MALFORMED
