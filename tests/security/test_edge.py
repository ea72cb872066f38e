"""The gRPC edge: what strangers can send costs little, and what callers send is bounded.

The numbers are those of docs/security.md.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest
from clawbox_client.v1 import sandbox_pb2, system_pb2, system_pb2_grpc
from google.protobuf import struct_pb2
from grpc_health.v1 import health_pb2

from clawbox.config import ServerSettings
from clawbox.errors import ClawboxError, Reason
from clawbox.rpc import convert, server
from clawbox.rpc.json_values import MAX_DEPTH, set_struct, struct_to_json
from clawbox.rpc.limits import MAX_PUBLIC_STREAMS, MAX_PUBLIC_STREAMS_PER_ADDRESS
from clawbox.rpc.methods import REFLECTION_SERVICES
from clawbox.wasm.output import OutputForm
from tests.integration.rpc.conftest import ADMIN, Serving, details, failure, metadata, serving
from tests.integration.rpc.test_limits import until
from tests.unit.convert.test_json_values import nested, params

SERVING = health_pb2.HealthCheckResponse.SERVING
STATUS = system_pb2.GetStatusRequest()


# 94


async def test_rule_94_a_refused_unary_call_is_not_read(running: Serving) -> None:
    """A caller that announces a message and never sends it is told at once all the same."""
    channel = await running.channel()
    never = asyncio.Event()

    async def silent():
        await never.wait()
        yield b""

    for path in ("/clawbox.v1.Sandbox/Execute", "/clawbox.v1.System/GetStatus"):
        error = await failure(channel.stream_unary(path)(silent()))
        assert details(error).reason == "TOKEN_MISSING"


async def test_rule_94_a_refused_message_is_never_decoded(running: Serving) -> None:
    channel = await running.channel()
    error = await failure(channel.unary_unary("/clawbox.v1.Sandbox/Execute")(b"\xff\xff"))
    assert details(error).reason == "TOKEN_MISSING"


@pytest.mark.parametrize("arity", ["unary", "server stream", "client stream", "bidi"])
async def test_rule_94_bytes_that_are_not_the_message_are_invalid(running: Serving, arity) -> None:
    channel = await running.channel()
    kinds: dict[str, tuple[str, Any]] = {
        "unary": ("/clawbox.v1.Sandbox/Execute", channel.unary_unary),
        "server stream": ("/clawbox.v1.Sandbox/ExecuteStream", channel.unary_stream),
        "client stream": ("/clawbox.v1.Sandbox/UploadTool", channel.stream_unary),
        "bidi": ("/clawbox.v1.Containers/Exec", channel.stream_stream),
    }
    path, make = kinds[arity]
    garbage = b"\xff\xff\xff"
    request = iter([garbage]) if arity in ("client stream", "bidi") else garbage
    error = await failure(make(path)(request, metadata=metadata()))
    assert (error.code(), details(error).reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_MESSAGE",
    )


# 95


def test_rule_95_params_within_the_limits_pass_the_wire_and_beyond_them_are_refused():
    request = sandbox_pb2.ExecuteStreamRequest()
    set_struct(request.execute.params, nested(MAX_DEPTH))
    again = sandbox_pb2.ExecuteStreamRequest.FromString(request.SerializeToString())
    assert json.loads(struct_to_json(again.execute.params)) == nested(MAX_DEPTH)
    struct = struct_pb2.Struct()
    set_struct(struct, nested(MAX_DEPTH + 1))
    with pytest.raises(ClawboxError, match="more than 32 levels"):
        struct_to_json(struct)
    set_struct(struct, {"a": [None] * 100_000})
    with pytest.raises(ClawboxError, match="more than 100,000 values"):
        struct_to_json(struct)


async def test_rule_95_params_json_beyond_the_limits_is_refused_and_the_limit_named():
    with pytest.raises(ClawboxError, match="more than 64 levels"):
        await params(params_json="[" * 5000)
    with pytest.raises(ClawboxError, match="more than 100,000 values") as caught:
        await params(params_json="[" + "null," * 400_000 + "null]")
    assert caught.value.reason is Reason.INVALID_FIELD


async def turns_of_the_loop_during(work) -> int:
    """How often others could run while ``work`` went on; once, when it never let go of the event loop."""
    task = asyncio.ensure_future(work)
    turns = 0
    while not task.done():
        turns += 1
        await asyncio.sleep(0)
    await task
    return turns


async def test_rule_95_large_params_and_outputs_are_converted_off_the_loop() -> None:
    many = [None] * 50_000
    struct = struct_pb2.Struct()
    set_struct(struct, {"a": many})
    text = json.dumps(many)
    response = sandbox_pb2.ExecuteResponse()
    for work in (
        params(params=struct),
        params(params_json=text),
        convert.set_output(response, text.encode(), OutputForm.JSON, as_text=False),
    ):
        assert await turns_of_the_loop_during(work) > 1
    assert await turns_of_the_loop_during(params(params_json="[]")) == 1


# 96


async def test_rule_96_metadata_over_16_kib_is_refused_and_under_it_is_not() -> None:
    async with serving() as running:
        stub = await running.system_stub()
        await stub.GetStatus(STATUS, metadata=metadata(ADMIN, ("x-long", "v" * 14_000)))
        error = await failure(stub.GetStatus(STATUS, metadata=metadata(ADMIN, ("x-long", "v" * 17_000))))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_rule_96_a_silent_connection_is_closed_after_the_handshake_time(monkeypatch) -> None:
    monkeypatch.setattr("clawbox.rpc.server.HANDSHAKE_MS", 200)
    async with serving() as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.server.port)
        async with asyncio.timeout(10):
            while await reader.read(65536):  # the server's own settings, then the end
                pass
        writer.close()
        await writer.wait_closed()


async def test_rule_96_a_connection_without_calls_is_asked_to_go(monkeypatch) -> None:
    monkeypatch.setattr("clawbox.rpc.server.IDLE_CONNECTION_MS", 200)
    async with serving() as running:
        channel = await running.channel()
        await system_pb2_grpc.SystemStub(channel).GetStatus(STATUS, metadata=metadata())
        async with asyncio.timeout(10):
            await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)


def test_rule_96_the_limits_are_those_that_are_documented() -> None:
    options = dict(server.channel_options(ServerSettings()))
    assert options["grpc.max_allowed_incoming_connections"] <= 1024
    assert options["grpc.max_concurrent_streams"] == 256
    assert options["grpc.server_handshake_timeout_ms"] == 10_000
    assert options["grpc.max_connection_idle_ms"] == 600_000
    assert options["grpc.max_metadata_size"] == options["grpc.absolute_max_metadata_size"] == 16_384
    assert (MAX_PUBLIC_STREAMS_PER_ADDRESS, MAX_PUBLIC_STREAMS) == (32, 512)


async def test_rule_96_connections_are_bounded(monkeypatch) -> None:
    monkeypatch.setattr("clawbox.rpc.server.max_connections", lambda: 2)
    async with serving() as running:
        for _ in range(2):
            stub = await running.system_stub()
            await stub.GetStatus(STATUS, metadata=metadata())
        third = await running.system_stub()
        error = await failure(third.GetStatus(STATUS, metadata=metadata(), timeout=2))
        assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@pytest.mark.parametrize(("soft", "connections"), [(1024, 384), (256, 16), (1 << 20, 1024), (-1, 1024)])
def test_rule_96_connections_leave_descriptors_for_children(monkeypatch, soft, connections) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _which: (soft, soft))
    assert server.max_connections() == connections


async def test_rule_96_streams_on_one_connection_are_bounded(monkeypatch) -> None:
    monkeypatch.setattr("clawbox.rpc.server.MAX_STREAMS_PER_CONNECTION", 2)
    async with serving() as running:
        channel = await running.channel()
        stub = system_pb2_grpc.SystemStub(channel)
        held = [stub.WatchAudit(system_pb2.WatchAuditRequest(), metadata=metadata()) for _ in range(2)]
        for call in held:
            await call.read()
        waiting = stub.GetStatus(STATUS, metadata=metadata(), timeout=0.2)
        assert (await failure(waiting)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        held[0].cancel()
        await stub.GetStatus(STATUS, metadata=metadata(), timeout=30)
        held[1].cancel()


async def test_rule_96_watches_without_a_token_are_bounded_for_each_address_and_checks_are_not(
    running: Serving,
) -> None:
    stub = await running.health_stub()
    held = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(32)]
    for call in held:
        await call.read()
    error = await failure(stub.Watch(health_pb2.HealthCheckRequest()))
    assert (error.code(), details(error).reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STREAM_LIMIT")
    reflection = (await running.channel()).stream_stream(f"/{REFLECTION_SERVICES[0]}/ServerReflectionInfo")()
    assert await reflection.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING
    await (await running.sandbox_stub()).Execute(sandbox_pb2.ExecuteRequest(tool="echo"), metadata=metadata())
    for call in held:
        call.cancel()


async def test_rule_96_checks_that_never_send_their_message_are_bounded(running: Serving) -> None:
    channel = await running.channel()
    check = channel.stream_stream("/grpc.health.v1.Health/Check")
    held = [check() for _ in range(16)]
    await until(lambda: len(running.server.calls) == 16)
    error = await failure(check())
    assert details(error).reason == "STREAM_LIMIT"
    for call in held:
        call.cancel()
    await until(lambda: len(running.server.calls) == 0)
    stub = await running.health_stub()
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING


async def test_rule_96_what_comes_without_a_token_is_short(running: Serving) -> None:
    stub = await running.health_stub()
    error = await failure(stub.Check(health_pb2.HealthCheckRequest(service="x" * 20_000)))
    assert details(error).reason == "MESSAGE_TOO_LARGE"
    error = await failure(stub.Watch(health_pb2.HealthCheckRequest(service="x" * 20_000)))
    assert details(error).reason == "MESSAGE_TOO_LARGE"


async def test_rule_96_a_silent_caller_without_a_token_is_let_go(monkeypatch) -> None:
    monkeypatch.setattr("clawbox.rpc.messages.PUBLIC_READ_SECONDS", 0.05)
    async with serving() as running:
        channel = await running.channel()
        for path in ("/grpc.health.v1.Health/Check", f"/{REFLECTION_SERVICES[0]}/ServerReflectionInfo"):
            call = channel.stream_stream(path)()
            assert details(await failure(call)).reason == "DEADLINE"
