"""What every call goes through, outermost first: request id and metrics, errors, access, limits, the handler.

gRPC asks an interceptor for the handler of a call. This one answers with a handler of its own, made once for
each method, which takes the call in as a *stream of raw bytes* whatever its arity. So nothing of a call is
read, let alone decoded, before the caller is known (a 10 MiB message without a token costs nothing), a
refused caller that never sends anything still gets its status at once, and clean-up after a call is ours:
grpc.aio closes no generator whose client has gone, and does not wait for handlers that it aborts.

Handlers are plain: a coroutine function that returns a message, or an async generator function that yields
messages; they raise :class:`~clawbox.errors.ClawboxError`; they read a request stream by iterating over it,
never with ``context.read``. What they may want to know is in :func:`clawbox.rpc.call.current`.
"""

from __future__ import annotations

import asyncio
import inspect
import time
import uuid
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import grpc
import grpc.aio
import structlog

from clawbox.errors import ClawboxError, Reason
from clawbox.rpc.call import REQUEST_ID_KEY, Call, current, is_request_id, new_request_id, peer_address
from clawbox.rpc.limits import (
    MAX_PUBLIC_CHECKS_PER_ADDRESS,
    MAX_PUBLIC_MESSAGE_BYTES,
    MAX_PUBLIC_STREAMS,
    MAX_PUBLIC_STREAMS_PER_ADDRESS,
    MAX_STREAMS,
    StreamLimit,
    UnreadReplies,
)
from clawbox.rpc.methods import Access, Method
from clawbox.rpc.parts import UNCOUNTED_BYTES, RequestShape
from clawbox.rpc.status import DETAILS_KEY, internal_error, wire_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from clawbox.rpc.access import AccessControl
    from clawbox.rpc.drain import Calls
    from clawbox.rpc.limits import ExecutionLimit
    from clawbox.telemetry import Metrics

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_Reply = TypeVar("_Reply")

PUBLIC_READ_SECONDS = 10.0
"""How long a caller without a token may be silent before its next message."""

STALLED_READER_SECONDS = 60.0
"""How long the reader of a streamed execution may leave one message untaken: it holds a place meanwhile."""

LAST_WORD_SECONDS = 1.0
"""How long a server that stops tries to tell a caller so."""

_log = structlog.stdlib.get_logger("clawbox.rpc")


@dataclass(frozen=True)
class Edge:
    """What the steps around a call work with; one for each server."""

    access: AccessControl
    executions: ExecutionLimit
    calls: Calls
    metrics: Metrics
    max_message_bytes: int
    streams: StreamLimit = field(default_factory=StreamLimit)
    """Open streams of principals, by their names."""
    unread: UnreadReplies = field(default_factory=UnreadReplies)
    """Replies to principals that wait to be read, by their names."""
    public_streams: StreamLimit = field(default_factory=lambda: StreamLimit(MAX_PUBLIC_STREAMS))
    """Open streams of callers without a token, by their addresses."""
    public_checks: StreamLimit = field(default_factory=StreamLimit)
    """Calls with one reply of callers without a token, by their addresses."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """The one interceptor of the server, which applies every step to every method."""

    def __init__(self, methods: Mapping[str, Method], edge: Edge) -> None:
        self._methods = methods
        self._edge = edge
        self._wrapped: dict[str, Handler] = {}
        self._unknown = _unknown_method(edge.metrics)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The handler of this method with every step around it."""
        name = handler_call_details.method
        wrapped = self._wrapped.get(name)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            method = self._methods.get(name)
            if handler is None or method is None:  # never serve what has no row in the table
                return self._unknown
            wrapped = self._wrapped[name] = _Steps(self._edge, name, method, handler).handler()
        return wrapped


def handler_function(handler: Handler) -> Callable[..., Any]:
    """The function behind a handler.

    Raises :class:`TypeError` unless it is a coroutine function (one reply) or an async generator function
    (streamed replies): grpc.aio would run anything else in a thread, or fail at the first call.
    """
    function = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    wanted = inspect.isasyncgenfunction if handler.response_streaming else inspect.iscoroutinefunction
    if not wanted(function):
        kind = "an async generator function" if handler.response_streaming else "a coroutine function"
        raise TypeError(f"{function!r} is not {kind}")
    assert function is not None
    return function


class _Steps:
    """The steps around one method."""

    def __init__(self, edge: Edge, name: str, method: Method, handler: Handler) -> None:
        self._edge = edge
        self._name = name
        self._method = method
        self._function = handler_function(handler)
        self._decode = handler.request_deserializer or _as_it_is
        self._shape = _request_shape(handler)
        self._encode = handler.response_serializer or _as_it_is
        self._observe = edge.metrics.rpc_observer(name)
        self._request_streaming = handler.request_streaming
        self._response_streaming = handler.response_streaming
        self._is_public = method.access is Access.PUBLIC
        self._read_seconds = PUBLIC_READ_SECONDS if self._is_public else None
        self._max_request_bytes = (
            min(MAX_PUBLIC_MESSAGE_BYTES, edge.max_message_bytes)
            if self._is_public
            else edge.max_message_bytes
        )
        self._write_seconds = STALLED_READER_SECONDS if method.execution else None

    def handler(self) -> Handler:
        """What gRPC calls: streams of bytes on the way in, bytes on the way out, whatever the arity."""
        if self._response_streaming:
            return grpc.stream_stream_rpc_method_handler(self._many_replies)
        return grpc.stream_unary_rpc_method_handler(self._one_reply)

    async def _one_reply(self, _stream: object, context: Context) -> bytes:
        # A caller that is gone has no reply; grpc.aio still wants something to not send.
        return await self._serve(context, self._answer_whole) or b""

    async def _many_replies(self, _stream: object, context: Context) -> None:
        await self._serve(context, self._stream)

    async def _serve(
        self, context: Context, handle: Callable[[Any, Context], Awaitable[_Reply]]
    ) -> _Reply | None:
        """Take one call through every step; None when it ended with another status than OK."""
        call, authorization = self._begin(context)
        try:
            release = self._admit(call, authorization)
            try:
                request = await self._request(context)
                if not self._method.execution:
                    return await handle(request, context)
                await self._place(call)
                try:
                    return await handle(request, context)
                finally:
                    self._edge.executions.release()
            finally:
                release()
        except BaseException as error:  # noqa: BLE001 - what may pass is decided there
            await _fail(call, context, error)
            return None
        finally:
            self._end(call)

    # Request id and metrics

    def _begin(self, context: Context) -> tuple[Call, list[str]]:
        request_id = ""
        authorization: list[str] = []
        for key, value in context.invocation_metadata() or ():
            if key == "authorization":
                authorization.append(value if isinstance(value, str) else "")
            elif key == REQUEST_ID_KEY and isinstance(value, str) and is_request_id(value):
                request_id = value
        call = Call(self._name, self._method, context.peer(), request_id or new_request_id())
        call.enter()
        self._edge.calls.add(call)
        context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
        return call, authorization

    def _end(self, call: Call) -> None:
        self._observe(call.code, time.perf_counter() - call.started)

    # Access, and limits on what one caller has open

    def _admit(self, call: Call, authorization: list[str]) -> Callable[[], None]:
        """Let the call in; returns what gives back the stream that it counts as."""
        if self._edge.calls.draining and not self._method.while_draining:
            raise shutting_down()
        self._edge.access.admit(call, authorization)
        if self._is_public:
            # Never counted with anybody else's calls: a check must get through when nothing else does.
            address = peer_address(call.peer)
            if self._response_streaming:
                open_here, limit = self._edge.public_streams, MAX_PUBLIC_STREAMS_PER_ADDRESS
            else:
                open_here, limit = self._edge.public_checks, MAX_PUBLIC_CHECKS_PER_ADDRESS
            open_here.acquire(address, limit)
            return partial(open_here.release, address)
        principal = call.principal
        if not (self._request_streaming or self._response_streaming):
            self._edge.unread.check(principal.name)
            return _nothing
        most = principal.limits.max_streams
        self._edge.streams.acquire(principal.name, MAX_STREAMS if most is None else most)
        return partial(self._edge.streams.release, principal.name)

    async def _place(self, call: Call) -> None:
        call.queued_us = await self._edge.executions.acquire()
        self._edge.metrics.execution_queued(call.queued_us / 1e6)

    # Messages

    async def _request(self, context: Context) -> Any:
        """What the handler is given: a message, or an iterator over messages."""
        return self._requests(context) if self._request_streaming else await self._read(context)

    async def _read(self, context: Context) -> Any:
        """The one message of a call without a request stream, decoded."""
        raw = await self._next(context)
        if raw is grpc.aio.EOF:
            raise ClawboxError(Reason.INVALID_MESSAGE, "the call ended without a message")
        return await self._decoded(raw)

    async def _requests(self, context: Context) -> AsyncIterator[Any]:
        """The messages of a request stream, decoded."""
        while (raw := await self._next(context)) is not grpc.aio.EOF:
            yield await self._decoded(raw)

    async def _next(self, context: Context) -> Any:
        if self._read_seconds is None:  # the timer's cost would be a tenth of all these steps
            return await context.read()
        try:
            async with asyncio.timeout(self._read_seconds):
                return await context.read()
        except TimeoutError:
            raise ClawboxError(
                Reason.DEADLINE, "no message came for {seconds} s", seconds=self._read_seconds
            ) from None

    async def _decoded(self, raw: bytes) -> Any:
        # Not in a thread: the protobuf runtime keeps the GIL while it parses, so that a thread would only
        # add its own cost (10 MiB of nulls: 145 ms of loop stall either way).
        if len(raw) > self._max_request_bytes:
            raise _too_large("request", len(raw), self._max_request_bytes)
        if len(raw) > UNCOUNTED_BYTES and self._shape is not None:
            await asyncio.to_thread(self._shape.check, raw)
        try:
            return self._decode(raw)
        except Exception as error:
            raise ClawboxError(
                Reason.INVALID_MESSAGE, "the bytes are not the request of {method}", method=self._name
            ) from error

    def _encoded(self, message: object) -> bytes:
        raw: bytes = self._encode(message)
        if len(raw) > self._edge.max_message_bytes:
            raise _too_large("reply", len(raw), self._edge.max_message_bytes)
        return raw

    # The handler

    async def _answer_whole(self, request: object, context: Context) -> bytes:
        raw = self._encoded(await self._function(request, context))
        call = current()
        if call.known_principal is not None and call.task is not None:
            # gRPC sends it within the call's task.
            self._edge.unread.add(call.principal.name, len(raw), call.task)
        return raw

    async def _stream(self, request: object, context: Context) -> None:
        async with aclosing(self._function(request, context)) as responses:
            async for response in responses:
                raw = self._encoded(response)
                try:
                    async with asyncio.timeout(self._write_seconds):
                        await context.write(raw)
                except TimeoutError:
                    raise ClawboxError(
                        Reason.SLOW_READER,
                        "a message waited {seconds} s to be read",
                        seconds=STALLED_READER_SECONDS,
                    ) from None


# Errors


async def _fail(call: Call, context: Context, error: BaseException) -> None:
    """End the call with the status of ``error``; returns when that is done, raises what is not an error."""
    match error:
        case ClawboxError():
            pass
        case asyncio.CancelledError() if call.stopping:
            # The server ends it: unlike a caller that left, this one is still there to be told.
            if call.task is not None:
                call.task.uncancel()
            error = shutting_down()
        case asyncio.CancelledError() if call.task is not None and call.task.cancelling():
            call.code = "DEADLINE_EXCEEDED" if context.time_remaining() == 0 else "CANCELLED"
            raise error
        case grpc.aio.AbortError():
            call.code = context.code().name
            raise error
        case grpc.aio.InternalError() | grpc.aio.UsageError():
            # A read or write failed, because the caller is gone.
            call.code = "CANCELLED"
            return
        case Exception() | asyncio.CancelledError():
            # A handler that raises CancelledError although nobody cancelled it would get no status at all.
            error_id = uuid.uuid4().hex
            _log.error("unexpected error", id=error_id, method=call.name, exc_info=error)
            error = internal_error(error_id)
        case _:
            raise error
    await _abort(call, context, error)


async def _abort(call: Call, context: Context, error: ClawboxError) -> None:
    if call.severed:  # gRPC has let go of it
        call.code = "CANCELLED"
        return
    status = wire_status(error)
    call.code = status.code.name
    principal = call.known_principal
    # Callers without a token must not be able to fill the log; wrong tokens pass here at a bounded rate.
    known = principal is not None or error.reason is Reason.TOKEN_INVALID
    (_log.info if known else _log.debug)(
        "call refused",
        method=call.name,
        code=call.code,
        reason=error.reason.name,
        message=_without_input(error, status.message),
        principal=principal.name if principal is not None else "",
        peer=call.peer,
    )
    trailing = ((REQUEST_ID_KEY, call.request_id), (DETAILS_KEY, status.details))
    try:
        # A status waits behind messages that the caller does not read; a server that stops does not.
        async with asyncio.timeout(LAST_WORD_SECONDS if call.stopping else None):
            await context.abort(status.code, status.message, trailing)
    except (grpc.aio.InternalError, grpc.aio.UsageError, TimeoutError):
        call.code = "CANCELLED"  # the caller is gone, or as good as gone


def _without_input(error: ClawboxError, message: str) -> str:
    """What the log says of an error: a schema's complaint repeats the parameters, which may be secret."""
    if error.reason is not Reason.INVALID_INPUT:
        return message
    return ", ".join(sorted({violation.rule for violation in error.violations}))


def shutting_down() -> ClawboxError:
    """The error of calls that come, or still go on, when the server stops."""
    return ClawboxError(Reason.SHUTTING_DOWN, "the server is stopping", retry_after=1.0)


def _too_large(what: str, size: int, limit: int) -> ClawboxError:
    return ClawboxError(
        Reason.MESSAGE_TOO_LARGE,
        "the {what} has {size} bytes, the limit is {limit}",
        what=what,
        size=size,
        limit=limit,
    )


def _request_shape(handler: Handler) -> RequestShape | None:
    """Of the requests that ``FromString`` of a message's class decodes; None: nothing is known of them."""
    descriptor = getattr(getattr(handler.request_deserializer, "__self__", None), "DESCRIPTOR", None)
    return None if descriptor is None else RequestShape(descriptor)


def _nothing() -> None:
    pass


def _as_it_is(message: Any) -> Any:
    return message


def _unknown_method(metrics: Metrics) -> Handler:
    """The handler of every method that is not served."""
    observe = metrics.rpc_observer("unknown")
    error = ClawboxError(Reason.UNKNOWN_METHOD, "the server does not serve this method")

    async def refuse(_stream: object, context: Context) -> None:
        observe("UNIMPLEMENTED", 0.0)
        status = wire_status(error)
        await context.abort(status.code, status.message, ((DETAILS_KEY, status.details),))

    return grpc.stream_stream_rpc_method_handler(refuse)
