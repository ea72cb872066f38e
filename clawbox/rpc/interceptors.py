"""What every call goes through, outermost first: request id and metrics, errors, access, limits, the handler.

gRPC asks an interceptor for the handler of a call. This one answers with a handler of its own, made once for
each method, which takes the call in as a *stream of raw bytes* whatever its arity. So nothing of a call is
read, let alone decoded, before the caller is known (a 10 MiB message without a token costs nothing), a
refused caller that never sends anything still gets its status at once, and clean-up after a call is ours:
grpc.aio closes no generator whose client has gone, and does not wait for handlers that it aborts.

Handlers are plain: a coroutine function that returns a message, or an async generator function that yields
messages; they raise :class:`~clawbox.errors.ClawboxError`; they read a request stream by iterating over it,
never with ``context.read``. What they may want to know is in :func:`clawbox.rpc.call.current`.
How their messages become bytes is in ``messages``, and how a call ends with an error in ``failures``.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

from clawbox.errors import ClawboxError, Reason
from clawbox.rpc.call import REQUEST_ID_KEY, Call, current, is_request_id, new_request_id, peer_address
from clawbox.rpc.failures import fail, shutting_down
from clawbox.rpc.limits import (
    MAX_PUBLIC_CHECKS_PER_ADDRESS,
    MAX_PUBLIC_STREAMS,
    MAX_PUBLIC_STREAMS_PER_ADDRESS,
    MAX_STREAMS,
    StreamLimit,
    UnreadReplies,
)
from clawbox.rpc.messages import Messages
from clawbox.rpc.methods import Access, Method
from clawbox.rpc.status import DETAILS_KEY, wire_status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from clawbox.rpc.access import AccessControl
    from clawbox.rpc.call import Context
    from clawbox.rpc.drain import Calls
    from clawbox.rpc.limits import ExecutionLimit
    from clawbox.rpc.messages import Handler
    from clawbox.telemetry import Metrics

_Reply = TypeVar("_Reply")

STALLED_READER_SECONDS = 60.0
"""How long the reader of a streamed execution may leave one message untaken: it holds a place meanwhile."""


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
        self._observe = edge.metrics.rpc_observer(name)
        self._request_streaming = handler.request_streaming
        self._response_streaming = handler.response_streaming
        self._is_public = method.access is Access.PUBLIC
        self._messages = Messages(name, handler, public=self._is_public, max_bytes=edge.max_message_bytes)
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
                request = await self._messages.request(context)
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
            await fail(call, context, error)
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

    # The handler

    async def _answer_whole(self, request: object, context: Context) -> bytes:
        raw = self._messages.encoded(await self._function(request, context))
        call = current()
        if call.known_principal is not None and call.task is not None:
            # gRPC sends it within the call's task.
            self._edge.unread.add(call.principal.name, len(raw), call.task)
        return raw

    async def _stream(self, request: object, context: Context) -> None:
        async with aclosing(self._function(request, context)) as responses:
            async for response in responses:
                raw = self._messages.encoded(response)
                try:
                    async with asyncio.timeout(self._write_seconds):
                        await context.write(raw)
                except TimeoutError:
                    raise ClawboxError(
                        Reason.SLOW_READER,
                        "a message waited {seconds} s to be read",
                        seconds=STALLED_READER_SECONDS,
                    ) from None


def _nothing() -> None:
    pass


def _unknown_method(metrics: Metrics) -> Handler:
    """The handler of every method that is not served."""
    observe = metrics.rpc_observer("unknown")
    error = ClawboxError(Reason.UNKNOWN_METHOD, "the server does not serve this method")

    async def refuse(_stream: object, context: Context) -> None:
        observe("UNIMPLEMENTED", 0.0)
        status = wire_status(error)
        await context.abort(status.code, status.message, ((DETAILS_KEY, status.details),))

    return grpc.stream_stream_rpc_method_handler(refuse)
