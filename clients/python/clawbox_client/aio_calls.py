"""Calls of the asyncio client: one answer, a stream of them, and uploads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import grpc
import grpc.aio

from clawbox_client.errors import from_rpc_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from types import TracebackType

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_T = TypeVar("_T")


class Stream(Generic[_T]):
    """What a server sends, as it comes: ``async for event in stream``.

    Leaving the loop early does not end the call at once; leaving ``async with stream:`` does, and so does
    :meth:`aclose`. Iterating raises ClawboxError.
    """

    def __init__(self, call: grpc.aio.UnaryStreamCall[Any, Any], read: Callable[[Any], _T | None]) -> None:
        self._call = call
        self._read = read
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _T:
        while True:
            message = grpc.aio.EOF if self._closed else await self._next_message()
            if message is grpc.aio.EOF:
                raise StopAsyncIteration
            event = self._read(message)
            if event is not None:
                return event

    async def _next_message(self) -> Any:
        try:
            return await self._call.read()
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        except asyncio.CancelledError:
            # grpc.aio answers the end of a call that was cancelled here in the same words in which a task is
            # cancelled. Only the latter may travel on.
            task = asyncio.current_task()
            if self._closed and not (task and task.cancelling()):
                return grpc.aio.EOF
            raise

    async def aclose(self) -> None:
        """Ends the call; the server stops what it does for it. May be called twice."""
        self._closed = True
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def unary(
    method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Response],
    request: _Request,
    deadline: float | None,
    *,
    wait: bool = False,
) -> _Response:
    """One answer. Raises ClawboxError."""
    try:
        return await method(request, timeout=deadline, wait_for_ready=wait)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


def in_thread(pieces: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> Iterator[bytes]:
    """The pieces for a reader in another thread, made in the loop."""

    async def pull() -> bytes | None:
        return await anext(pieces, None)

    while (piece := asyncio.run_coroutine_threadsafe(pull(), loop).result()) is not None:
        yield piece


def in_loop(function: Callable[..., object], loop: asyncio.AbstractEventLoop) -> Callable[..., None]:
    """The function, called in the loop by whoever calls what this returns."""

    def call(*arguments: object) -> None:
        loop.call_soon_threadsafe(function, *arguments)

    return call
