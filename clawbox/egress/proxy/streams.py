"""A request and its answer, apart from how they come and go.

An exchange reads a request's body from a Source and writes the answer to a Sink; what stands behind them is a
connection, or the JSON of ``POST /proxy``.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

import msgspec

from clawbox.egress.http.framing import BodyKind, Framing
from clawbox.egress.http.head import RequestHead, ResponseHead
from clawbox.egress.http.headers import EMPTY, Field, Headers
from clawbox.egress.http.reader import End, RequestEvent, RequestReader
from clawbox.egress.http.writer import BodyWriter, write_refusal, write_response
from clawbox.egress.refusal import Denial, Refusal, RefusedError, Side

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clawbox.egress.proxy.wire import Wire
    from clawbox.egress.target import Target


class Request(msgspec.Struct, frozen=True):
    """One request that was parsed, and whose sender is known."""

    method: str
    target: Target
    head: RequestHead
    framing: Framing
    token: bytes = b""
    """Digest of the token that it came with; empty where none was needed."""
    call: str = ""


class Source(Protocol):
    """Where a request's body comes from."""

    async def piece(self) -> bytes | End:
        """The next bytes of it, or its end. Raises RefusedError."""

    def whole(self) -> bytes:
        """All of it, if all of it has come; it is still to be read."""


class Sink(Protocol):
    """Where the answer goes."""

    begun: bool
    """Whether the head of the answer proper has gone."""
    resizes: bool
    """Whether the body may still have another length than the head says."""

    def interim(self, head: ResponseHead, fields: Sequence[Field]) -> None:
        """A 1xx."""

    def head(
        self, head: ResponseHead, fields: Sequence[Field], framing: Framing, stated_length: bytes | None
    ) -> None:
        """The head of the answer."""

    def data(self, payload: bytes) -> None:
        """Bytes of its body. Raises RefusedError when there are more than it takes."""

    def end(self, trailers: Headers) -> None:
        """The answer is complete."""

    async def flush(self) -> None:
        """Wait until enough has been taken. Raises RefusedError."""


class RequestStream:
    """The requests that come over one connection, and their bodies."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._reader = RequestReader()
        self._events: deque[RequestEvent] = deque()
        self._first = True
        self.complete = True
        """Whether the last request was read whole."""

    @property
    def framing(self) -> Framing:
        """Of the request whose head came last."""
        return self._reader.framing

    @property
    def arrived(self) -> bool:
        """Whether all of the last request has come, read or not."""
        return self.complete or any(isinstance(event, End) for event in self._events)

    @property
    def in_head(self) -> bool:
        """Whether a head has begun and is not all there."""
        return self._reader.in_head

    async def head(self, idle: float, limit: float) -> RequestHead | None:
        """The next request; None when there is none any more. Raises RefusedError.

        ``idle`` are the seconds until its first byte, ``limit`` those for the rest of the head (32).
        """
        wire = self._wire
        if self._first:
            self._first = False
        else:
            self._events.extend(self._reader.next())
        timing = False
        while not self._events:
            if not timing:
                timing = self._reader.in_head
                wire.deadline.limit(limit if timing else idle, Denial.HEAD_TIMEOUT)
            data = await wire.read()
            if not data:
                refusal = self._reader.eof()
                if refusal is None or not wire.clean_end:
                    return None
                raise RefusedError.of(refusal)
            self._events.extend(self._reader.feed(data))
        event = self._events.popleft()
        if isinstance(event, Refusal):
            raise RefusedError.of(event)
        assert isinstance(event, RequestHead)
        self.complete = False
        return event

    async def piece(self) -> bytes | End:
        """The next bytes of the body, or its end. Raises RefusedError."""
        while not self._events:
            data = await self._wire.read()
            if data:
                self._events.extend(self._reader.feed(data))
            else:
                refusal = self._reader.eof()
                assert refusal is not None
                raise RefusedError.of(refusal)
        event = self._events.popleft()
        if isinstance(event, Refusal):
            raise RefusedError.of(event)
        assert not isinstance(event, RequestHead)
        if isinstance(event, End):
            self.complete = True
        return event

    def whole(self) -> bytes:
        """The body, if all of it has come; it is still to be read."""
        if not self.arrived:
            return b""
        return b"".join([event for event in self._events if isinstance(event, bytes)])

    def take_over(self) -> bool:
        """Bytes from now on are not requests. Whether some have come already, which may not be (29)."""
        self._reader.take_over()
        return bool(self._events)


class ClientSink:
    """Answers over a connection."""

    resizes = False

    def __init__(self, wire: Wire, *, version: int, keep_alive: bool, head_only: bool) -> None:
        self._wire = wire
        self._version = version
        self._head_only = head_only
        self._out: list[bytes] = []
        self._body: BodyWriter | None = None
        self.keep_alive = keep_alive
        """Whether the connection serves another request after this."""
        self.begun = False

    @property
    def knows_interim(self) -> bool:
        """Whether the client reads on after a 1xx, which HTTP/1.0 does not have."""
        return self._version == 1

    def interim(self, head: ResponseHead, fields: Sequence[Field]) -> None:
        """A 1xx, for a client that knows them."""
        if self.knows_interim:
            self._out.append(write_response(head, fields, Framing(BodyKind.NONE), keep_alive=True))

    def head(
        self, head: ResponseHead, fields: Sequence[Field], framing: Framing, stated_length: bytes | None
    ) -> None:
        """The head of the answer. Raises RefusedError where no client could tell its end from a break."""
        if framing.kind is BodyKind.CLOSE and not self._wire.can_break:
            raise RefusedError(
                Denial.HTTP_VERSION, "a body of unknown length needs HTTP/1.1 here", Side.UPSTREAM
            )
        self.keep_alive = self.keep_alive and framing.kind is not BodyKind.CLOSE
        self._out.append(
            write_response(head, fields, framing, keep_alive=self.keep_alive, stated_length=stated_length)
        )
        self._body = BodyWriter(framing)

    def data(self, payload: bytes) -> None:
        """Bytes of its body."""
        assert self._body is not None
        self._out.append(self._body.data(payload))

    def end(self, trailers: Headers = EMPTY) -> None:
        """The answer is complete."""
        assert self._body is not None
        self._out.append(self._body.end(trailers))

    async def flush(self) -> None:
        """Send what is here, and wait until the client has taken enough."""
        if self._out:
            self.begun = self._body is not None
            self._wire.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
            self._out.clear()
            await self._wire.drain()

    def answer(self, status: int, body: bytes) -> None:
        """The sidecar's own, as JSON."""
        fields = [(b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store")]
        self.head(ResponseHead(status, 1, EMPTY), fields, Framing(BodyKind.LENGTH, len(body)), None)
        self.data(body)
        self.end()

    def refuse_call(self, status: int, body: bytes) -> None:
        """As :meth:`refuse`, for ``POST /proxy``, which has its own way of saying why not."""
        self.keep_alive = False
        self._out.clear()
        self.answer(status, body)
        self.begun = True
        self._wire.write(b"".join(self._out))

    def refuse(self, refusal: Refusal, fields: Sequence[Field] = ()) -> None:
        """Say why not, and that this is the connection's last answer."""
        self.keep_alive = False
        self.begun = True
        self._out.clear()
        self._wire.write(write_refusal(refusal, with_body=not self._head_only, fields=fields))
