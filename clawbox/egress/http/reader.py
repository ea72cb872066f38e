"""Connections as sequences of messages: bytes in, events out, one message at a time.

``feed`` never raises: what is wrong is the last event, a Refusal, after all that was good before it, and
nothing comes after it. How the bytes were cut into reads changes how payload is cut, and nothing else. At
most one head, one unfinished line and what follows a message in the same read are kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

import msgspec

from clawbox.egress.http.body import BodyReader, body_reader
from clawbox.egress.http.framing import NO_BODY, BodyKind, Framing, request_framing, response_framing
from clawbox.egress.http.head import (
    HeadLimits,
    HeadReader,
    RequestHead,
    ResponseHead,
    request_reader,
    response_reader,
)
from clawbox.egress.refusal import Denial, Refusal, RefusedError, Side

if TYPE_CHECKING:
    from collections.abc import Callable

    from clawbox.egress.http.headers import Headers

Head = TypeVar("Head", RequestHead, ResponseHead)

MAX_INTERIM: Final = 16
"""1xx responses to one request."""
MAX_SURPLUS: Final = 512 << 10
"""Bytes of next requests that are kept while one is answered: two of the largest reads."""


class End(msgspec.Struct, frozen=True):
    """A message is complete."""

    trailers: Headers


RequestEvent: TypeAlias = RequestHead | bytes | End | Refusal
ResponseEvent: TypeAlias = ResponseHead | bytes | End | Refusal


class _MessageReader(ABC, Generic[Head]):
    """What both directions share: the body, the end, what follows, and the first error."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._body: BodyReader | None = None
        self._refused = False
        self._surplus = b""
        self.framing: Framing = NO_BODY
        """Of the message whose head came last."""

    def feed(self, data: bytes) -> list[Head | bytes | End | Refusal]:
        """What ``data`` completes. Of a response, 1xx heads come before its own."""
        events: list[Head | bytes | End | Refusal] = []
        if self._refused or not data:
            return events
        try:
            self._feed(data, events)
        except RefusedError as error:
            events.append(self._refuse(error.refusal))
        return events

    @abstractmethod
    def _feed(self, data: bytes, events: list[Head | bytes | End | Refusal]) -> None:
        """Append what ``data`` completes to ``events``. Raises RefusedError."""

    def _refuse(self, refusal: Refusal) -> Refusal:
        self._refused = True
        self._surplus = b""
        return replace(refusal, side=self._side)

    def _begin_body(self, framing: Framing) -> None:
        self.framing = framing
        self._body = body_reader(framing)

    def _feed_body(self, data: bytes, emit: Callable[[bytes | End], None]) -> bool:
        """Whether the message is complete; then what follows it is in ``_surplus``."""
        assert self._body is not None
        payload: list[bytes] = []
        try:
            end = self._body.feed(data, payload)
        finally:
            if payload:
                emit(payload[0] if len(payload) == 1 else b"".join(payload))
        if end is None:
            return False
        self._finish(emit)
        self._surplus = data[end:]
        return True

    def _finish(self, emit: Callable[[bytes | End], None]) -> None:
        assert self._body is not None
        trailers = self._body.trailers
        self._body = None
        emit(End(trailers))


class RequestReader(_MessageReader[RequestHead]):
    """The requests that a client sends on one connection.

    After an End the next request, which may already be here, begins with :meth:`next`, so that a client that
    sends many requests at once has each answered before the next is looked at. After CONNECT nothing may
    come before the reply (property 29); then :meth:`take_over` ends this reader.
    """

    def __init__(self, limits: HeadLimits | None = None) -> None:
        super().__init__(Side.CLIENT)
        self._heads: HeadReader[RequestHead] = request_reader(limits or HeadLimits())
        self._waiting = False
        """Whether a request is complete and ``next`` was not called."""
        self._tunnel = False

    @property
    def idle(self) -> bool:
        """Whether nothing of a request has come: the connection may be closed without loss."""
        return self._body is None and not self._waiting and not self._heads.begun

    @property
    def in_head(self) -> bool:
        """Whether a head has begun and is not complete: what the time for heads counts (property 32)."""
        return self._heads.begun

    @property
    def surplus(self) -> int:
        """Bytes of the next request that are here. While there are some, nothing more should be read."""
        return len(self._surplus)

    def next(self) -> list[RequestEvent]:
        """Begin the next request, with what is here of it."""
        self._waiting = False
        data, self._surplus = self._surplus, b""
        return self.feed(data)

    def take_over(self) -> None:
        """The reply to CONNECT is being sent: bytes from now on are not this reader's."""
        self._refused = True

    def eof(self) -> Refusal | None:
        """The client sends no more: a refusal where that is in the middle of a request."""
        if self._refused or self.idle or self._waiting:
            return None
        return self._refuse(Refusal(Denial.TRUNCATED))

    def _feed(self, data: bytes, events: list[RequestEvent]) -> None:
        if self._waiting:
            self._wait(data)
            return
        if self._body is None:
            found = self._heads.feed(data)
            if found is None:
                return
            head, data = found
            framing = _check_request(head)
            self._tunnel = head.method == "CONNECT"
            events.append(head)
            self._begin_body(framing)
        if self._feed_body(data, events.append):
            self._waiting = True
            surplus, self._surplus = self._surplus, b""
            self._wait(surplus)

    def _wait(self, data: bytes) -> None:
        if data and self._tunnel:
            raise RefusedError(Denial.UNEXPECTED_BYTES, "before the reply to CONNECT")
        if len(self._surplus) + len(data) > MAX_SURPLUS:
            raise RefusedError(Denial.UNEXPECTED_BYTES, "too many while a request is answered")
        self._surplus += data


class ResponseReader(_MessageReader[ResponseHead]):
    """The responses that an upstream sends on one connection, each to a request that :meth:`expect` told."""

    def __init__(self, limits: HeadLimits | None = None) -> None:
        super().__init__(Side.UPSTREAM)
        self._heads: HeadReader[ResponseHead] = response_reader(limits or HeadLimits())
        self._method: str | None = None
        self._interim = 0
        self._reusable = True

    @property
    def reusable(self) -> bool:
        """Whether the connection may serve another request (property 71): all was framed, read and asked for.

        The caller must also have sent the whole request.
        """
        return self._reusable and not self._refused and self._method is None and not self._heads.begun

    def expect(self, method: str) -> None:
        """A request was sent: one response, to ``method``, may come."""
        assert self._method is None
        self._method = method
        self._interim = 0

    def eof(self, *, clean: bool = True) -> list[ResponseEvent]:
        """The upstream sends no more. ``clean``: not reset, and TLS was closed with its closing message.

        An End where the connection's end is the body's; a refusal in the middle of anything (property 53).
        """
        self._reusable = False
        if self._refused or (self._method is None and not self._heads.begun):
            return []
        if clean and self._body is not None and self._body.ends_with_connection():
            events: list[ResponseEvent] = []
            self._finish(events.append)
            self._method = None
            return events
        return [self._refuse(Refusal(Denial.TRUNCATED))]

    def _feed(self, data: bytes, events: list[ResponseEvent]) -> None:
        while data:
            if self._method is None:
                raise RefusedError(Denial.UNEXPECTED_BYTES, "no response was due")
            if self._body is None:
                found = self._heads.feed(data)
                if found is None:
                    return
                head, data = found
                framing = self._check_response(head)
                events.append(head)
                if head.interim:
                    continue
                self._begin_body(framing)
            if not self._feed_body(data, events.append):
                return
            self._method = None
            data, self._surplus = self._surplus, b""

    def _check_response(self, head: ResponseHead) -> Framing:
        assert self._method is not None
        if head.status == 101:
            raise RefusedError(Denial.UPGRADE, "nothing was asked to be changed")
        framing = response_framing(head, self._method)
        if head.interim:
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise RefusedError(Denial.TOO_MANY_INTERIM)
        elif not head.keep_alive or framing.kind is BodyKind.CLOSE:
            self._reusable = False
        return framing


def _check_request(head: RequestHead) -> Framing:
    framing = request_framing(head)
    headers = head.headers
    if b"http2-settings" in headers or (b"upgrade" in headers and any(map(_is_h2c, head.upgrade))):
        raise RefusedError(Denial.HTTP2)
    if b"expect" in headers and [value.lower() for value in headers.values(b"expect")] != [b"100-continue"]:
        raise RefusedError(Denial.EXPECTATION)
    return framing


def _is_h2c(protocol: bytes) -> bool:
    return protocol.partition(b"/")[0] in {b"h2c", b"h2"}
