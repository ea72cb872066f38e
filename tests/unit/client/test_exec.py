"""A process that the blocking client follows, when things happen in the same instant."""

from __future__ import annotations

from typing import Any, Self

import grpc
from clawbox_client.blocking_exec import SyncExec
from clawbox_client.v1 import containers_pb2


class Cancelled(grpc.RpcError):
    """How a call ends that its own client ends."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.CANCELLED

    def details(self) -> str:
        return "Locally cancelled by application!"

    def trailing_metadata(self) -> tuple[()]:
        return ()


class Call:
    """A call whose server says nothing."""

    def __init__(self) -> None:
        self.cancelled = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        assert self.cancelled, "it would wait for ever"
        raise Cancelled

    def cancel(self) -> None:
        self.cancelled = True


def test_a_close_while_the_call_is_made_ends_that_call() -> None:
    calls: list[Call] = []

    def method(_requests: object, timeout: float | None) -> Call:
        process.close()  # by another thread, or a signal's handler
        calls.append(Call())
        return calls[-1]

    first = containers_pb2.ExecStart(container_id="c", command=["sleep", "100"])
    process = SyncExec(method, first, reconnect=30, deadline=None)
    assert list(process) == []
    assert [call.cancelled for call in calls] == [True]
