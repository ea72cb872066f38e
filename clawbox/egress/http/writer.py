"""Messages into bytes: heads written anew from what was decided, bodies framed by what was promised.

Nothing of a received head is copied as bytes. The fields that are written pass the grammar by which those of
others are refused, line by line, so that no value that was added (a credential, say) can end one.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from clawbox.egress.http.framing import CHUNKED, NO_BODY, UNTIL_CLOSE, BodyKind, Framing
from clawbox.egress.http.head import well_formed
from clawbox.egress.http.headers import EMPTY, NEVER_RETURNED, NEVER_SENT, Field, passable_trailers
from clawbox.egress.refusal import Denial, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from clawbox.egress.http.head import RequestHead, ResponseHead
    from clawbox.egress.http.headers import Headers
    from clawbox.egress.refusal import Refusal
    from clawbox.egress.target import Target

_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
_LINE: Final = b"%s: %s".__mod__
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
CONNECTED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"


def request_fields(head: RequestHead) -> list[Field]:
    """The client's header fields that go upstream, before credentials are attached (28, 70).

    Raises RefusedError where the client asks for another protocol (property 51).
    """
    if upgrade := head.upgrade:
        raise RefusedError(Denial.WEBSOCKET if b"websocket" in upgrade else Denial.UPGRADE)
    return head.headers.without(NEVER_SENT)


def write_request(method: str, target: Target, fields: Iterable[Field], framing: Framing) -> bytes:
    """A request's head: Host and framing from what was decided (property 27), then ``fields``."""
    return _head(
        [
            f"{method} {target.request_target} HTTP/1.1".encode("ascii"),
            b"Host: " + target.authority.encode("ascii"),
            *map(_LINE, fields),
            *_framing_line(framing),
        ]
    )


def response_fields(head: ResponseHead) -> list[Field]:
    """The upstream's header fields that go to the client (28, 57)."""
    return head.headers.without(NEVER_RETURNED)


def returned_framing(received: Framing, client_version: int) -> Framing:
    """How the body goes to a client of that minor version.

    A body that ends with the upstream's connection becomes chunked, so that the client can tell its end from
    a break (property 53). HTTP/1.0 has no chunks; there the connection must be reset on a break.
    """
    if received.kind in (BodyKind.NONE, BodyKind.LENGTH):
        return received
    return CHUNKED if client_version == 1 else UNTIL_CLOSE


def write_response(
    head: ResponseHead,
    fields: Iterable[Field],
    framing: Framing,
    *,
    keep_alive: bool,
    stated_length: bytes | None = None,
) -> bytes:
    """A response's head for the client.

    ``stated_length`` is the Content-Length that a bodiless answer (HEAD, 304) describes.
    """
    if head.interim or head.status == 204:
        framing = NO_BODY
    lines = [_status_line(head.status), *map(_LINE, fields), *_framing_line(framing)]
    if framing.kind is BodyKind.NONE and stated_length is not None:
        lines.append(b"Content-Length: " + stated_length)
    if not head.interim:
        reused = keep_alive and framing.kind is not BodyKind.CLOSE
        lines.append(b"Connection: keep-alive" if reused else b"Connection: close")
    return _head(lines)


def write_refusal(refusal: Refusal, *, with_body: bool = True, fields: Iterable[Field] = ()) -> bytes:
    """A whole response that says why (property 60) and ends the connection.

    Its ``X-Clawbox-Error`` is the sidecar's word: no upstream's passes (property 57). ``with_body``: false in
    answer to HEAD. ``fields`` are further header fields.
    """
    body = refusal.body()
    head = _head(
        [
            _status_line(refusal.status),
            *map(_LINE, fields),
            b"Content-Type: application/json",
            b"Content-Length: %d" % len(body),
            b"Cache-Control: no-store",
            b"X-Clawbox-Error: " + refusal.code.encode("ascii"),
            b"Connection: close",
        ]
    )
    return head + body if with_body else head


def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {_PHRASES.get(status, '')}".encode("ascii")


def _framing_line(framing: Framing) -> tuple[bytes, ...]:
    if framing.kind is BodyKind.LENGTH:
        return (b"Content-Length: %d" % framing.length,)
    return (b"Transfer-Encoding: chunked",) if framing.kind is BodyKind.CHUNKED else ()


def _head(lines: Sequence[bytes]) -> bytes:
    if b"\r" in lines[0] or b"\n" in lines[0]:
        raise ValueError("a start line that would not be accepted was about to be written")
    return lines[0] + b"\r\n" + _block(lines[1:])


def _block(fields: Sequence[bytes]) -> bytes:
    block = b"\r\n".join((*fields, b"", b""))
    # A line end inside a value would make a good block too, of one line more.
    if block.count(b"\n") != len(fields) + 1 or not well_formed(block):
        raise ValueError("header lines that would not be accepted were about to be written")
    return block


class BodyWriter:
    """One body on the wire. Raises ValueError rather than write another number of bytes than was promised."""

    def __init__(self, framing: Framing) -> None:
        self._kind = framing.kind
        self._left = framing.length

    def data(self, payload: bytes) -> bytes:
        """The bytes to send for a piece of payload."""
        if not payload:
            return b""
        if self._kind is BodyKind.CHUNKED:
            return b"%x\r\n%s\r\n" % (len(payload), payload)
        if self._kind is not BodyKind.CLOSE:
            self._left -= len(payload)
            if self._left < 0:
                raise ValueError("more bytes than the head promised")
        return payload

    def end(self, trailers: Headers | None = None) -> bytes:
        """The bytes that end the body. Without a call the other end sees a break (property 53)."""
        if self._kind is BodyKind.CHUNKED:
            return b"0\r\n" + _block([_LINE(field) for field in passable_trailers(trailers or EMPTY)])
        if self._kind is BodyKind.LENGTH and self._left:
            raise ValueError("fewer bytes than the head promised")
        return b""
