"""``POST /proxy``: a request as JSON, its whole answer as JSON, as in the Rust clawbox 0.1 and with more.

In: ``{"url", "method", "headers": {name: value} or [[name, value], …], "body": text or null}``, or
``"body_base64"`` for bytes; ``"binary": true`` asks for ``header_list`` (pairs, repeats and order kept) and
``body_base64`` in the answer. Out: ``{"status", "headers", "body"}``, or ``{"error", "reason"}``.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from clawbox.egress.call_errors import call_error_body, call_error_status
from clawbox.egress.call_messages import MAX_REQUEST_BYTES, BinaryReply, joined
from clawbox.egress.http.framing import NO_BODY, BodyKind, Framing
from clawbox.egress.http.head import HeadLimits, RequestHead, ResponseHead
from clawbox.egress.http.headers import EMPTY, Headers
from clawbox.egress.http.reader import End
from clawbox.egress.proxy.exchange import exchange, terms_of
from clawbox.egress.proxy.streams import Request
from clawbox.egress.refusal import Denial, Refusal, RefusedError, Side
from clawbox.egress.target import parse_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clawbox.egress.proxy.identity import Identity
    from clawbox.egress.proxy.record import Record
    from clawbox.egress.proxy.state import SandboxState
    from clawbox.egress.proxy.streams import ClientSink, RequestStream
    from clawbox.egress.proxy.wire import Wire

CALL_PATH: Final = "/proxy"
_HEAD: Final = HeadLimits()
"""Of the headers in it, as of any other request's."""
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")
_VALUE: Final = re.compile(r"[\t -~\x80-\U0010ffff]*")
_METHOD: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}")
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})


class Call(msgspec.Struct, frozen=True):
    """What is asked for."""

    url: str
    method: str
    headers: (
        Annotated[dict[str, str], msgspec.Meta(max_length=_HEAD.fields)]
        | Annotated[list[tuple[str, str]], msgspec.Meta(max_length=_HEAD.fields)]
    ) = {}
    body: str | None = None
    body_base64: bytes | None = None
    binary: bool = False


_decoder = msgspec.json.Decoder(Call)


async def serve_call(
    stream: RequestStream,
    sink: ClientSink,
    record: Record,
    identity: Identity,
    *,
    state: SandboxState,
    wire: Wire,
) -> None:
    """Answer one; the connection serves on whatever comes of it. Raises RefusedError for its own framing."""
    limits = state.grant.limits
    url = ""
    answer = _WholeAnswer(limits.call_max_response_bytes)
    try:
        call = _parse(await _whole_body(stream))
        url, record.method = call.url, call.method[:32]
        request, body = _request(call, identity)
        record.target = request.target
        terms = terms_of(request, state, record)
        async with asyncio.timeout(limits.call_timeout_ms / 1000):
            await exchange(request, terms, _Bytes(body), answer, wire)
        status, reply = 200, answer.json(binary=call.binary)
    except (RefusedError, TimeoutError) as error:
        if not stream.complete:
            raise
        refusal = error.refusal if isinstance(error, RefusedError) else Refusal(Denial.CALL_TIMEOUT)
        record.refusal = refusal
        status, reply = call_error_status(refusal), call_error_body(refusal, url)
    sink.answer(status, reply)
    await sink.flush()


async def _whole_body(stream: RequestStream) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while not isinstance(piece := await stream.piece(), End):
        size += len(piece)
        if size > MAX_REQUEST_BYTES:
            raise RefusedError(Denial.BODY_TOO_LARGE, f"more than {MAX_REQUEST_BYTES} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def _parse(data: bytes) -> Call:
    try:
        call = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RefusedError(Denial.MALFORMED_CALL) from None
    if call.body is not None and call.body_base64 is not None:
        raise RefusedError(Denial.MALFORMED_CALL, "it has both body and body_base64")
    if not _METHOD.fullmatch(call.method):
        raise RefusedError(Denial.MALFORMED_CALL, "the method is not one")
    return call


def _request(call: Call, identity: Identity) -> tuple[Request, bytes]:
    """The request that a call means. Headers that no request can have are left out, as in 0.1."""
    target = parse_url(call.url)
    pairs = call.headers.items() if isinstance(call.headers, dict) else call.headers
    headers = Headers(
        (name.encode("ascii"), value.encode("utf-8").strip(b" \t"))
        for name, value in pairs
        if _NAME.fullmatch(name) and _VALUE.fullmatch(value)
    )
    if sum(len(name) + len(value) for name, value in headers) > _HEAD.bytes:
        raise RefusedError(Denial.HEAD_TOO_LARGE, f"more than {_HEAD.bytes} bytes")
    body = call.body_base64
    if body is None and call.body is not None:
        body = call.body.encode("utf-8", "surrogatepass")
    framing = NO_BODY
    if body is not None or call.method in _WITH_BODY:
        framing = Framing(BodyKind.LENGTH, len(body or b""))
    head = RequestHead(call.method, call.url, 1, headers)
    return Request(call.method, target, head, framing, identity.token, identity.call), body or b""


class _Bytes:
    """A body that is all here."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def whole(self) -> bytes:
        """All of it."""
        return self._data

    async def piece(self) -> bytes | End:
        """All of it, then its end."""
        data, self._data = self._data, b""
        return data or End(EMPTY)


class _WholeAnswer:
    """Collects an answer, up to a size."""

    resizes = True

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._status = 0
        self._fields: Sequence[tuple[bytes, bytes]] = ()
        self._body = bytearray()
        self.begun = False

    def interim(self, head: ResponseHead, fields: Sequence[tuple[bytes, bytes]]) -> None:
        """Nobody waits for a 1xx."""

    def head(
        self,
        head: ResponseHead,
        fields: Sequence[tuple[bytes, bytes]],
        framing: Framing,
        stated_length: bytes | None,
    ) -> None:
        """Keep the head."""
        del framing, stated_length
        self.begun = True
        self._status, self._fields = head.status, fields

    def data(self, payload: bytes) -> None:
        """Keep bytes of the body. Raises RefusedError: an answer is never cut."""
        if len(self._body) + len(payload) > self._max_bytes:
            raise RefusedError(Denial.BODY_TOO_LARGE, f"more than {self._max_bytes} bytes", Side.UPSTREAM)
        self._body += payload

    def end(self, trailers: Headers) -> None:
        """Trailers have no place in the JSON."""

    async def flush(self) -> None:
        """Nothing is waited for."""

    def json(self, *, binary: bool) -> bytes:
        """As the caller wants it."""
        headers = [(name.decode("ascii").lower(), _text(value)) for name, value in self._fields]
        if binary:
            return msgspec.json.encode(BinaryReply(self._status, headers, bytes(self._body)))
        return msgspec.json.encode(
            {
                "status": self._status,
                "headers": joined(headers),
                "body": self._body.decode("utf-8", "replace"),
            }
        )


def _text(value: bytes) -> str:
    """A header's value: what is not UTF-8 is taken for ISO 8859-1, as which HTTP began (RFC 9110 5.5)."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")
