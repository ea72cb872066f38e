"""The messages of one method as bytes: read, bounded and decoded on the way in, encoded on the way out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import grpc.aio

from clawbox.errors import ClawboxError, Reason
from clawbox.rpc.limits import MAX_PUBLIC_MESSAGE_BYTES
from clawbox.rpc.parts import UNCOUNTED_BYTES, RequestShape

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from clawbox.rpc.call import Context

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

PUBLIC_READ_SECONDS = 10.0
"""How long a caller without a token may be silent before its next message."""


class Messages:
    """Reads, decodes and encodes the messages of one method, as its handler says."""

    def __init__(self, name: str, handler: Handler, *, public: bool, max_bytes: int) -> None:
        """``name`` is for people; ``public``: for callers without a token, who may send less, and sooner.

        ``max_bytes`` is the size of the largest message, either way.
        """
        self._name = name
        self._many_requests = handler.request_streaming
        self._decode = handler.request_deserializer or _as_it_is
        self._encode = handler.response_serializer or _as_it_is
        self._shape = _request_shape(handler)
        self._read_seconds = PUBLIC_READ_SECONDS if public else None
        self._max_request_bytes = min(MAX_PUBLIC_MESSAGE_BYTES, max_bytes) if public else max_bytes
        self._max_reply_bytes = max_bytes

    async def request(self, context: Context) -> Any:
        """What the handler is given: a message, or an iterator over messages.

        Either raises INVALID_MESSAGE, MESSAGE_TOO_LARGE, and DEADLINE where a caller without a token is
        silent for too long.
        """
        return self._requests(context) if self._many_requests else await self._read(context)

    def encoded(self, message: object) -> bytes:
        """A reply. Raises MESSAGE_TOO_LARGE."""
        raw: bytes = self._encode(message)
        if len(raw) > self._max_reply_bytes:
            raise _too_large("reply", len(raw), self._max_reply_bytes)
        return raw

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
        if self._read_seconds is None:  # the timer's cost would be a tenth of all that is done around a call
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


def _request_shape(handler: Handler) -> RequestShape | None:
    """Of the requests that ``FromString`` of a message's class decodes; None: nothing is known of them."""
    descriptor = getattr(getattr(handler.request_deserializer, "__self__", None), "DESCRIPTOR", None)
    return None if descriptor is None else RequestShape(descriptor)


def _as_it_is(message: Any) -> Any:
    return message


def _too_large(what: str, size: int, limit: int) -> ClawboxError:
    return ClawboxError(
        Reason.MESSAGE_TOO_LARGE,
        "the {what} has {size} bytes, the limit is {limit}",
        what=what,
        size=size,
        limit=limit,
    )
