"""Calls of the blocking client: one answer, and a stream of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import grpc

from clawbox_client.errors import from_rpc_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_T = TypeVar("_T")


class SyncStream(Generic[_T]):
    """What a server sends, as it comes: ``for event in stream``.

    Leaving ``with stream:`` ends the call, and so does :meth:`close`, from any thread.
    Iterating raises ClawboxError.
    """

    def __init__(self, call: Any, read: Callable[[Any], _T | None]) -> None:
        self._call = call
        self._read = read
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> _T:
        while True:
            try:
                message = next(self._call)
            except grpc.RpcError as error:
                if self._closed:
                    raise StopIteration from None
                raise from_rpc_error(error) from error
            event = self._read(message)
            if event is not None:
                return event

    def close(self) -> None:
        """Ends the call; the server stops what it does for it. May be called twice."""
        self._closed = True
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def unary(
    method: grpc.UnaryUnaryMultiCallable[_Request, _Response],
    request: _Request,
    deadline: float | None,
    *,
    wait: bool = False,
) -> _Response:
    """One answer. Raises ClawboxError."""
    try:
        return method(request, timeout=deadline, wait_for_ready=wait)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
