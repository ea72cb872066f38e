"""What a watcher of health is told, message by message, with no server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from grpc_health.v1 import health_pb2

from clawbox.rpc.health import HealthServicer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SANDBOX = "clawbox.v1.Sandbox"


def watch(health: HealthServicer) -> AsyncIterator[health_pb2.HealthCheckResponse]:
    return health.Watch(health_pb2.HealthCheckRequest(service=SANDBOX), None)


async def test_an_end_that_comes_while_a_state_is_sent_is_told_before_the_watch_ends() -> None:
    health = HealthServicer()
    health.set(SANDBOX, serving=True)
    watching = watch(health)
    assert (await anext(watching)).status == SERVING
    health.end()  # before the watch is asked for what comes next: it is still sending
    assert (await anext(watching)).status == NOT_SERVING
    with pytest.raises(StopAsyncIteration):
        await anext(watching)


async def test_a_change_that_comes_while_a_state_is_sent_is_told() -> None:
    health = HealthServicer()
    health.set(SANDBOX, serving=True)
    watching = watch(health)
    assert (await anext(watching)).status == SERVING
    health.set(SANDBOX, serving=False)
    assert (await anext(watching)).status == NOT_SERVING


async def test_a_watch_that_begins_after_the_end_is_told_it_and_ends() -> None:
    health = HealthServicer()
    health.set(SANDBOX, serving=True)
    health.end()
    assert [message.status async for message in watch(health)] == [NOT_SERVING]
