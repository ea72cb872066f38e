"""Which scanner a body goes through, and what the head must lose when something was replaced in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from clawbox.egress.content_coding import CodingError, EncodedScanner, codings_of
from clawbox.egress.http.framing import BodyKind
from clawbox.egress.leaks import is_text
from clawbox.egress.refusal import Denial, RefusedError, Side

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from clawbox.egress.findings import Finding
    from clawbox.egress.http.framing import Framing
    from clawbox.egress.http.headers import Field, Headers
    from clawbox.egress.leaks import LeakDetector
    from clawbox.egress.scanner import StreamScanner
    from clawbox.network_rules import ShapeAction

OF_THE_BYTES: Final = frozenset({b"etag", b"digest", b"content-digest", b"repr-digest", b"content-md5"})
"""What is said of a body's exact bytes, and untrue once one was replaced."""
NOT_WITH_CREDENTIALS: Final = frozenset({b"range", b"if-range", b"accept-encoding"})
"""A range could split a secret past the scanner (50); an encoding could hide one (47)."""
IDENTITY: Final = (b"Accept-Encoding", b"identity")


class Scanner(Protocol):
    """Bytes in, the bytes that may go on out. Raises LeakError and CodingError."""

    def feed(self, data: bytes) -> bytes:
        """What may go on now."""

    def finish(self) -> bytes:
        """What was held back."""

    def whole(self, data: bytes) -> bytes:
        """The same for a body that is all here: in place of the other two."""


class Unread:
    """For what is not looked into: everything goes on."""

    def feed(self, data: bytes) -> bytes:
        """All of it."""
        return data

    def finish(self) -> bytes:
        """Nothing was held back."""
        return b""

    def whole(self, data: bytes) -> bytes:
        """All of it."""
        return data


def request_scanner(
    detector: LeakDetector, headers: Headers, framing: Framing, on_shape: ShapeAction, *, credentialed: bool
) -> tuple[Scanner, Counter[Finding] | None]:
    """For a request's body. Raises RefusedError for an encoding that hides it from the scanner."""
    keep_length = framing.kind is BodyKind.LENGTH
    try:
        codings = codings_of(headers.values(b"content-encoding"))
    except CodingError as error:
        if credentialed:
            raise RefusedError(Denial.UNREADABLE_CODING, str(error)) from None
        # The sandbox can say anything anyway; what it calls encoded is searched as it is.
        codings = ()
    if codings:
        inner = detector.outbound_body(on_shape, encoded=True)
        return EncodedScanner(codings, inner, _outer(detector, inner)), inner.found
    scanner = detector.outbound_body(on_shape, keep_length=keep_length)
    return scanner, scanner.found


def response_scanner(
    detector: LeakDetector, headers: Headers, *, keep_length: bool, credentialed: bool
) -> tuple[Scanner, Counter[Finding] | None]:
    """For a response's body. Raises RefusedError where what cannot be looked into could hold secrets (47)."""
    text = is_text(b",".join(headers.values(b"content-type")))
    try:
        codings = codings_of(headers.values(b"content-encoding"))
    except CodingError as error:
        if credentialed:
            raise RefusedError(Denial.UNREADABLE_CODING, str(error), Side.UPSTREAM) from None
        return Unread(), None
    if codings:
        inner = detector.inbound_body(text=text, encoded=True)
        # Such an answer comes from a host that was asked for none; others' events are not held back for it.
        outer = _outer(detector, inner) if credentialed else None
        return EncodedScanner(codings, inner, outer), inner.found
    scanner = detector.inbound_body(text=text, keep_length=keep_length)
    return scanner, scanner.found


def _outer(detector: LeakDetector, inner: StreamScanner) -> StreamScanner:
    """For known secrets in what no decoder shows."""
    outer = detector.inbound_body(text=False, encoded=True)
    outer.found = inner.found
    return outer


def without(fields: Sequence[Field], names: frozenset[bytes]) -> list[Field]:
    """The fields of other names than these."""
    return [(name, value) for name, value in fields if name.lower() not in names]
