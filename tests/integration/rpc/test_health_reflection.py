"""Health and reflection, as grpcurl, ghz and Kubernetes use them."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from clawbox.rpc.methods import REFLECTION_SERVICES
from tests.integration.rpc.conftest import Serving, details, failure, serving

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def test_check_needs_no_token_and_the_empty_name_follows_sandbox(running: Serving) -> None:
    stub = await running.health_stub()
    for name in ("", "clawbox.v1.Sandbox", "clawbox.v1.System"):
        assert (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status == SERVING
    running.server.health.set("clawbox.v1.System", serving=False)
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING
    running.server.health.set("clawbox.v1.Sandbox", serving=False)
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING


async def test_check_of_an_unknown_service_is_not_found(running: Serving) -> None:
    error = await failure(
        (await running.health_stub()).Check(health_pb2.HealthCheckRequest(service="nobody"))
    )
    assert (error.code(), details(error).reason) == (grpc.StatusCode.NOT_FOUND, "SERVICE_NOT_FOUND")


async def test_list_names_every_service(running: Serving) -> None:
    reply = await (await running.health_stub()).List(health_pb2.HealthListRequest())  # type: ignore[attr-defined]
    assert {name: state.status for name, state in reply.statuses.items()} == {
        "": SERVING,
        "clawbox.v1.Sandbox": SERVING,
        "clawbox.v1.System": SERVING,
        "clawbox.v1.Containers": NOT_SERVING,
    }


async def test_watch_tells_the_state_and_its_changes(running: Serving) -> None:
    call = (await running.health_stub()).Watch(health_pb2.HealthCheckRequest(service="clawbox.v1.Later"))
    assert (await call.read()).status == SERVICE_UNKNOWN
    running.server.health.set("clawbox.v1.Later", serving=False)
    assert (await call.read()).status == NOT_SERVING
    running.server.health.set("clawbox.v1.Later", serving=True)
    assert (await call.read()).status == SERVING
    call.cancel()


async def ask(running: Serving, service: str, **question):
    """One question to reflection, in the bytes that both versions share."""
    channel = await running.channel()
    call = channel.stream_stream(
        f"/{service}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )(iter([reflection_pb2.ServerReflectionRequest(**question)]))
    (answer,) = [message async for message in call]
    return answer


@pytest.mark.parametrize("service", REFLECTION_SERVICES)
async def test_reflection_lists_the_services(running: Serving, service) -> None:
    answer = await ask(running, service, list_services="")
    assert {entry.name for entry in answer.list_services_response.service} == {
        "clawbox.v1.Containers",
        "clawbox.v1.Sandbox",
        "clawbox.v1.System",
        "grpc.health.v1.Health",
        *REFLECTION_SERVICES,
    }


@pytest.mark.parametrize("service", REFLECTION_SERVICES)
@pytest.mark.parametrize(
    "symbol",
    [
        "clawbox.v1.Sandbox",
        "clawbox.v1.Sandbox.Execute",  # what ghz asks for
        "clawbox.v1.ExecuteRequest",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1.ServerReflection.ServerReflectionInfo",
        "grpc.reflection.v1alpha.ServerReflection",
        "grpc.health.v1.Health",
    ],
)
async def test_reflection_finds_every_symbol_with_all_that_it_depends_on(
    running: Serving, service, symbol
) -> None:
    answer = await ask(running, service, file_containing_symbol=symbol)
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(raw)
        for raw in answer.file_descriptor_response.file_descriptor_proto
    ]
    pool = descriptor_pool.DescriptorPool()
    while files:  # dependencies first
        ready = [file for file in files if all(_known(pool, name) for name in file.dependency)]
        assert ready
        for file in ready:
            pool.Add(file)
            files.remove(file)
    service_name = symbol.removesuffix(".Execute").removesuffix(".ServerReflectionInfo")
    assert pool.FindFileContainingSymbol(service_name).name


async def test_reflection_finds_files_and_says_what_it_does_not_know(running: Serving) -> None:
    service = REFLECTION_SERVICES[0]
    answer = await ask(running, service, file_by_filename="grpc/reflection/v1/reflection.proto")
    assert answer.file_descriptor_response.file_descriptor_proto
    answer = await ask(running, service, file_containing_symbol="no.such.Thing")
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_reflection_that_is_off_is_not_served() -> None:
    async with serving(reflection="off") as running:
        for service in REFLECTION_SERVICES:
            call = (await running.channel()).stream_stream(f"/{service}/ServerReflectionInfo")()
            assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


def _known(pool: descriptor_pool.DescriptorPool, name: str) -> bool:
    try:
        pool.FindFileByName(name)
    except KeyError:
        return False
    return True
