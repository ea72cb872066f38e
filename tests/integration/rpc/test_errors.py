"""Every error is a status with details, and nothing internal gets out."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
import structlog
from clawbox_client.v1 import containers_pb2, sandbox_pb2

from clawbox.errors import ClawboxError, FieldViolation, Reason
from tests.integration.rpc.conftest import HANGS_SECONDS, Serving, details, failure, metadata

REQUEST = sandbox_pb2.ExecuteRequest(tool="echo")


async def test_an_error_carries_its_reason_domain_and_metadata(running: Serving) -> None:
    async def missing(request):
        raise ClawboxError(
            Reason.TOOL_NOT_FOUND, "there is no tool {tool}", tool=request.tool, resource=("tool", "echo")
        )

    running.sandbox.execute = missing
    error = await failure((await running.sandbox_stub()).Execute(REQUEST, metadata=metadata()))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "there is no tool echo"
    found = details(error)
    assert (found.info.reason, found.info.domain) == ("TOOL_NOT_FOUND", "clawbox.dev")
    assert dict(found.info.metadata) == {"tool": "echo"}
    assert found.resource is not None
    assert found.resource.resource_name == "echo"
    assert found.status.code == grpc.StatusCode.NOT_FOUND.value[0]


@pytest.mark.parametrize("arity", ["unary", "server stream", "client stream", "bidi"])
async def test_an_unexpected_exception_is_internal_with_an_id_that_is_in_the_log(
    running: Serving, arity
) -> None:
    async def broken(_request):
        raise RuntimeError("the password is swordfish")

    async def broken_stream(_request):
        for _ in ():
            yield
        raise RuntimeError("the password is swordfish")

    running.sandbox.execute = running.sandbox.upload = broken
    running.sandbox.stream = running.containers.exec = broken_stream
    with structlog.testing.capture_logs() as logs:
        error = await failure(await _call(running, arity))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "swordfish" not in f"{error.details()} {error.trailing_metadata()} {error.debug_error_string()}"
    found = details(error)
    assert found.reason == "INTERNAL"
    (entry,) = [log for log in logs if log.get("id") == found.info.metadata["id"]]
    assert isinstance(entry["exc_info"], RuntimeError)


@pytest.mark.parametrize("arity", ["unary", "server stream", "client stream", "bidi"])
async def test_a_handler_that_raises_cancelled_error_by_itself_sends_a_status(
    running: Serving, arity
) -> None:
    async def cancelled(_request):
        raise asyncio.CancelledError

    async def cancelled_stream(_request):
        for _ in ():
            yield
        raise asyncio.CancelledError

    running.sandbox.execute = running.sandbox.upload = cancelled
    running.sandbox.stream = running.containers.exec = cancelled_stream
    error = await failure(await _call(running, arity))
    assert (error.code(), details(error).reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")


async def test_a_unary_call_without_a_message_is_invalid(running: Serving) -> None:
    channel = await running.channel()
    call = channel.stream_unary("/clawbox.v1.Sandbox/Execute")(iter([]), metadata=metadata())
    assert details(await failure(call)).reason == "INVALID_MESSAGE"


async def test_a_method_that_is_not_served_is_unimplemented_with_a_reason(running: Serving) -> None:
    channel = await running.channel()
    for path in ("/clawbox.v1.Agents/List", "/nobody.Knows/Me"):
        error = await failure(channel.unary_unary(path)(b"", metadata=metadata()))
        assert (error.code(), details(error).reason) == (grpc.StatusCode.UNIMPLEMENTED, "UNKNOWN_METHOD")


async def test_a_status_fits_into_the_metadata_that_clients_accept_by_default(running: Serving) -> None:
    async def verbose(_request):
        metadata: dict[str, Any] = {f"key{n}": "v" * 5_000 for n in range(200)}
        raise ClawboxError(
            Reason.INVALID_INPUT,
            "ж{text}",
            violations=[FieldViolation(f"params/{n}", "ж" * 900, "type") for n in range(500)],
            text="ж" * 50_000,
            **metadata,
        )

    running.sandbox.execute = verbose
    error = await failure((await running.sandbox_stub()).Execute(REQUEST, metadata=metadata()))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    found = details(error)
    assert found.reason == "INVALID_INPUT"
    assert found.bad_request is not None
    *some, last = found.bad_request.field_violations
    assert some
    assert last.description == f"and {500 - len(some)} more"


async def test_lone_surrogates_in_an_error_do_no_harm(running: Serving) -> None:
    async def odd(_request):
        raise ClawboxError(Reason.TOOL_NOT_FOUND, "no {tool}", tool="\ud800\n\x00")

    running.sandbox.execute = odd
    error = await failure((await running.sandbox_stub()).Execute(REQUEST, metadata=metadata()))
    assert details(error).info.metadata["tool"] == "\\ud800\n\x00"


@pytest.mark.parametrize("extra", [1, 5 << 20])
async def test_a_request_over_the_limit_is_resource_exhausted(running: Serving, extra) -> None:
    big = sandbox_pb2.ExecuteRequest(tool="echo", params_json="x" * (10 * 1024 * 1024 + extra))
    error = await failure((await running.sandbox_stub()).Execute(big, metadata=metadata()))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    if extra == 1:
        assert details(error).reason == "MESSAGE_TOO_LARGE"


async def test_a_request_at_the_limit_is_served(running: Serving) -> None:
    limit = 10 * 1024 * 1024
    request = sandbox_pb2.ExecuteRequest(tool="echo")
    request.params_json = "x" * (limit - request.ByteSize() - 5)
    assert request.ByteSize() == limit
    reply = await (await running.sandbox_stub()).Execute(request, metadata=metadata())
    assert reply.message == "echo"


async def test_a_reply_over_the_limit_is_an_error_with_a_reason(running: Serving) -> None:
    async def huge(_request):
        return sandbox_pb2.ExecuteResponse(output_json="x" * (11 << 20))

    running.sandbox.execute = huge
    stub = await running.sandbox_stub(("grpc.max_receive_message_length", -1))
    error = await failure(stub.Execute(REQUEST, metadata=metadata()))
    assert details(error).reason == "MESSAGE_TOO_LARGE"


async def test_a_reply_that_cannot_be_serialised_is_internal(running: Serving) -> None:
    async def wrong(_request):
        return "not a message"

    running.sandbox.execute = wrong
    error = await failure((await running.sandbox_stub()).Execute(REQUEST, metadata=metadata()))
    assert details(error).reason == "INTERNAL"


async def _call(running: Serving, arity: str):
    sandbox = await running.sandbox_stub()
    match arity:
        case "unary":
            return sandbox.Execute(REQUEST, metadata=metadata(), timeout=HANGS_SECONDS)
        case "server stream":
            request = sandbox_pb2.ExecuteStreamRequest(execute=REQUEST)
            return sandbox.ExecuteStream(request, metadata=metadata(), timeout=HANGS_SECONDS)
        case "client stream":
            return sandbox.UploadTool(iter([]), metadata=metadata(), timeout=HANGS_SECONDS)
        case _:
            stub = await running.containers_stub()
            return stub.Exec(iter([containers_pb2.ExecRequest()]), metadata=metadata(), timeout=HANGS_SECONDS)
