"""A process inside a container, for the blocking client."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Self

import grpc

from clawbox_client.errors import from_rpc_error
from clawbox_client.execs import ExecEvent, ExecExited, ExecProgress, Patience

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from clawbox_client.v1 import containers_pb2


class SyncExec:
    """A process inside a container: ``for event in process`` gives what it does, an ExecExited last.

    The other methods may be called from any thread, and from signal handlers. A connection that breaks is
    made again for ``reconnect`` seconds, and what was missed comes then. Leaving ``with process:`` ends the
    call, and so does :meth:`close`; the process is killed 30 seconds later unless it was started with
    ``keep_running``. Iterating raises ClawboxError.
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
        # Reentrant: a signal handler may interrupt its own thread while that holds it.
        self._changed = threading.Condition(threading.RLock())
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

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ExecEvent:
        while True:
            if self._over:
                raise StopIteration
            if self._call is None:
                self._connect()
            try:
                message = next(self._call)
            except StopIteration:
                self.close()
                raise
            except grpc.RpcError as error:
                if self._closed:
                    raise StopIteration from None
                self._lose(error)
                continue
            with self._changed:
                event = self._progress.received(message)
                if self._progress.started:
                    self._patience.connected()
                self._changed.notify_all()
            if isinstance(event, ExecExited):
                self.close()
            if event is not None:
                return event

    def _connect(self) -> None:
        with self._changed:
            self._connection += 1
            opening = self._progress.opening()
            requests = self._requests(self._connection, opening)
        call = self._method(requests, timeout=self._deadline)
        with self._changed:
            self._call = call
            closed = self._closed
        if closed:  # while it was made: whoever closed this had no call to end
            call.cancel()

    def _lose(self, error: grpc.RpcError) -> None:
        failure = from_rpc_error(error)
        pause = self._patience.pause(failure)
        with self._changed:
            self._connection += 1  # ends the generator of the connection that broke
            self._call = None
            self._progress.started = False
            self._changed.notify_all()
            if pause is not None:
                self._changed.wait_for(lambda: self._closed, pause)
        if pause is None:
            self.close()
            raise failure from error

    def _requests(
        self, connection: int, opening: containers_pb2.ExecRequest
    ) -> Iterator[containers_pb2.ExecRequest]:
        yield opening
        while True:
            with self._changed:
                while True:
                    if self._closed or connection != self._connection:
                        return
                    message = self._progress.next_message()
                    if message is not None:
                        break
                    self._changed.wait()
                self._changed.notify_all()
            yield message

    def write(self, data: bytes) -> None:
        """Writes to stdin; waits while the process does not read.

        Raises BrokenPipeError when the process has ended, and ValueError after :meth:`close_stdin`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._over or not self._progress.full)
            if self._over:
                raise BrokenPipeError("the process has ended")
            self._progress.write(data)
            self._changed.notify_all()

    @property
    def _over(self) -> bool:
        return self._closed or self._progress.exited is not None

    def close_stdin(self) -> None:
        """Closes stdin. May be called twice."""
        with self._changed:
            self._progress.close_stdin()
            self._changed.notify_all()

    def resize(self, rows: int, columns: int) -> None:
        """Says the terminal's size."""
        with self._changed:
            self._progress.resize(rows, columns)
            self._changed.notify_all()

    def signal(self, name: str) -> None:
        """Sends a signal to its process group, by its name without SIG."""
        with self._changed:
            self._progress.signal(name)
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the call. May be called twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            call = self._call
        if call is not None:
            call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
