"""Logs that follow a container of which this server keeps no output yet."""

import asyncio
from dataclasses import replace

import grpc
import pytest
from clawbox_client.v1 import containers_pb2

from clawbox.containers.states import State
from tests.integration.rpc.conftest import details


@pytest.fixture
async def following(service):
    """A container that nobody follows yet, and a call that waits for its output."""
    made = await service.spawned()
    creating = service.manager.registry.get(made.container_id)
    status = replace(creating.status, state=State.CREATING)
    await service.manager.registry.put(replace(creating, status=status))
    service.output.follows.clear()
    request = containers_pb2.ContainersLogsRequest(container_id=made.container_id, follow=True)
    call = service.containers.Logs(request, **service.as_("ann"))
    reading = asyncio.create_task(call.read())
    async with asyncio.timeout(20):
        await service.output.waited_for.wait()
    assert service.output.asked is None
    yield made.container_id, reading
    call.cancel()


async def test_it_is_told_what_comes_once_it_is_kept(service, following):
    _, reading = following
    service.output.follows.set()
    assert (await reading).gap.length == 5
    assert service.output.asked[2] is True


async def test_it_is_told_what_there_is_when_it_finishes_before(service, following):
    container_id, reading = following
    await service.manager.finish(container_id, State.FAILED)
    assert (await reading).gap.length == 5


async def test_it_is_told_that_the_container_is_forgotten(service, following):
    container_id, reading = following
    await service.manager.registry.forget(container_id)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await reading
    assert error.value.code() is grpc.StatusCode.NOT_FOUND
    assert details(error.value).reason == "CONTAINER_NOT_FOUND"
