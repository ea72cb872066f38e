"""A process inside a container, for the asyncio client."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc.aio

from clawbox_client.errors import from_rpc_error
from clawbox_client.execs import ExecEvent, ExecExited, ExecProgress, Patience

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from clawbox_client.v1 import containers_pb2


class Exec:
    """A process inside a container: ``async for event in process`` gives what it does, an ExecExited last.

    A connection that breaks is made again for ``reconnect`` seconds, and what was missed comes then. Leaving
    ``async with process:`` ends the call, and so does :meth:`aclose`; the process is killed 30 seconds later
    unless it was started with ``keep_running``. Iterating raises ClawboxError.
    """

    def __init__(
        self,
        method: Any,
        first: containers_pb2.ExecStart | containers_pb2.ExecAttach,
        *,
        reconnect: float,
        deadline: float | None,
    ) -> None:
        self._method = method
        self._deadline = deadline
        self._progress = ExecProgress(first)
        self._patience = Patience(reconnect)
        self._changed = asyncio.Event()
        """Set at each change, and replaced: whoever waits has the one that was there when it looked."""
        self._call: Any = None
        self._connection = 0
        self._closed = False

    @property
    def exec_id(self) -> str:
        """Its id, with which another client of the same principal can attach to it."""
        return self._progress.exec_id

    @property
    def offsets(self) -> tuple[int, int]:
        """Bytes of stdout and of stderr that have come."""
        return self._progress.stdout_offset, self._progress.stderr_offset

    @property
    def exited(self) -> ExecExited | None:
        """How it ended; None while it is not known."""
        return self._progress.exited

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ExecEvent:
        while True:
            if self._over:
                raise StopAsyncIteration
            if self._call is None:
                self._connect()
            try:
                message = await self._call.read()
            except grpc.RpcError as error:
                if self._closed:
                    raise StopAsyncIteration from None
                await self._lose(error)
                continue
            except asyncio.CancelledError:
                # See Stream: grpc.aio ends a call that was cancelled here in the words of a cancelled task.
                task = asyncio.current_task()
                if self._closed and not (task and task.cancelling()):
                    raise StopAsyncIteration from None
                raise
            if message is grpc.aio.EOF:
                await self.aclose()
                raise StopAsyncIteration
            event = self._progress.received(message)
            if self._progress.started:
                self._patience.connected()
            self._notify()
            if isinstance(event, ExecExited):
                await self.aclose()
            if event is not None:
                return event

    def _connect(self) -> None:
        self._connection += 1
        requests = self._requests(self._connection, self._progress.opening())
        self._call = self._method(requests, timeout=self._deadline)

    async def _lose(self, error: grpc.RpcError) -> None:
        failure = from_rpc_error(error)
        pause = self._patience.pause(failure)
        self._connection += 1  # ends the generator of the connection that broke
        self._call.cancel()
        self._call = None
        self._progress.started = False
        self._notify()
        if pause is None:
            await self.aclose()
            raise failure from error
        await asyncio.sleep(pause)

    async def _requests(
        self, connection: int, opening: containers_pb2.ExecRequest
    ) -> AsyncIterator[containers_pb2.ExecRequest]:
        yield opening
        while not self._closed and connection == self._connection:
            message = self._progress.next_message()
            if message is None:
                await self._changed.wait()
                continue
            self._notify()
            yield message

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def write(self, data: bytes) -> None:
        """Writes to stdin; waits while the process does not read.

        Raises BrokenPipeError when the process has ended, and ValueError after :meth:`close_stdin`.
        """
        while self._progress.full and not self._over:
            await self._changed.wait()
        if self._over:
            raise BrokenPipeError("the process has ended")
        self._progress.write(data)
        self._notify()

    @property
    def _over(self) -> bool:
        return self._closed or self._progress.exited is not None

    async def close_stdin(self) -> None:
        """Closes stdin. May be called twice."""
        self._progress.close_stdin()
        self._notify()

    async def resize(self, rows: int, columns: int) -> None:
        """Says the terminal's size."""
        self._progress.resize(rows, columns)
        self._notify()

    async def signal(self, name: str) -> None:
        """Sends a signal to its process group, by its name without SIG."""
        self._progress.signal(name)
        self._notify()

    async def aclose(self) -> None:
        """Ends the call. May be called twice."""
        self._closed = True
        self._notify()
        if self._call is not None:
            self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
