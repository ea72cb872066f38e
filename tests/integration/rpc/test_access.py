"""Who may call: decided before anything of the call is read."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import grpc
import pytest
from clawbox_client.v1 import containers_pb2, sandbox_pb2, system_pb2

from clawbox.errors import Reason
from clawbox.rpc import call as rpc_call
from clawbox.rpc.access import Refusal
from tests.integration.rpc.conftest import (
    HANGS_SECONDS,
    NARROW,
    READER,
    Serving,
    details,
    failure,
    metadata,
    serving,
)

REQUEST = sandbox_pb2.ExecuteRequest(tool="echo")


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ((), "TOKEN_MISSING"),
        ((("authorization", "Bearer wrong-token"),), "TOKEN_INVALID"),
        ((("authorization", "Basic YTpi"),), "TOKEN_INVALID"),
        (metadata() + metadata(), "TOKEN_INVALID"),
    ],
)
async def test_a_call_needs_exactly_one_valid_token(running: Serving, sent, reason) -> None:
    error = await failure((await running.sandbox_stub()).Execute(REQUEST, metadata=sent))
    assert (error.code(), details(error).reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)
    assert running.sample("clawbox_refused_tokens_total", reason=reason) == 1


async def test_a_token_without_the_scope_is_refused_and_told_which(running: Serving) -> None:
    stub = await running.sandbox_stub()
    error = await failure(stub.Execute(REQUEST, metadata=metadata(READER)))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    found = details(error)
    assert found.reason == "SCOPE_MISSING"
    assert found.info.metadata["scope"] == "sandbox:execute"
    assert (await stub.ListTools(sandbox_pb2.ListToolsRequest(), metadata=metadata(READER))).next_page_token


async def test_who_watches_refusals_is_told_of_each(running: Serving) -> None:
    stub = await running.sandbox_stub()
    await failure(stub.Execute(REQUEST, metadata=(("x-request-id", "r-1"),)))
    await failure(stub.Execute(REQUEST, metadata=metadata(READER, ("x-request-id", "r-2"))))
    execute = "/clawbox.v1.Sandbox/Execute"
    assert running.refusals == [
        Refusal(Reason.TOKEN_MISSING, execute, "127.0.0.1", "r-1", ""),
        Refusal(Reason.SCOPE_MISSING, execute, "127.0.0.1", "r-2", "reader"),
    ]


async def test_one_of_the_scopes_suffices(running: Serving) -> None:
    stub = await running.sandbox_stub()
    await stub.ListTools(sandbox_pb2.ListToolsRequest(), metadata=metadata(NARROW))


@pytest.mark.parametrize("path", ["/clawbox.v1.Sandbox/UploadTool", "/clawbox.v1.Containers/Exec"])
async def test_a_refused_stream_gets_its_status_before_it_sends(running: Serving, path) -> None:
    channel = await running.channel()
    call = channel.stream_stream(path)()
    async with asyncio.timeout(HANGS_SECONDS):
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_stream_is_refused_while_its_client_sends_without_end(running: Serving) -> None:
    # With the blocking client: in some runs the asyncio one reports its failed write, not the status.
    def send_without_end() -> grpc.StatusCode:
        with grpc.insecure_channel(running.address) as channel:
            endless: Any = itertools.repeat(b"x" * 65536)
            upload: Any = channel.stream_unary("/clawbox.v1.Sandbox/UploadTool")
            try:
                upload(endless, timeout=HANGS_SECONDS)
            except grpc.RpcError as error:
                return error.code()
        raise AssertionError

    assert await asyncio.to_thread(send_without_end) is grpc.StatusCode.UNAUTHENTICATED


async def test_too_many_wrong_tokens_from_an_address_are_told_to_wait(running: Serving) -> None:
    stub = await running.sandbox_stub()
    wrong = metadata("wrong-token")
    began = time.monotonic()
    refused = 0
    while details(error := await failure(stub.Execute(REQUEST, metadata=wrong))).reason == "TOKEN_INVALID":
        refused += 1
    # One more each second.
    assert 20 <= refused <= 20 + (time.monotonic() - began)
    found = details(error)
    assert (error.code(), found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMIT")
    assert found.retry is not None
    assert found.retry.retry_delay.ToNanoseconds() > 0
    assert running.sample("clawbox_refused_tokens_total", reason="RATE_LIMIT") == 1
    # From the same address, at the same time:
    assert (await stub.Execute(REQUEST, metadata=metadata())).message == "echo"
    assert details(await failure(stub.Execute(REQUEST))).reason == "TOKEN_MISSING"


async def test_the_handler_sees_who_calls_and_the_request_id(running: Serving) -> None:
    seen = []

    async def look(_request):
        call = rpc_call.current()
        seen.append((call.principal.name, call.request_id, call.name))
        return sandbox_pb2.ExecuteResponse()

    running.sandbox.execute = look
    stub = await running.sandbox_stub()
    await stub.Execute(REQUEST, metadata=metadata(NARROW, ("x-request-id", "mine-1")))
    assert seen == [("narrow", "mine-1", "/clawbox.v1.Sandbox/Execute")]


async def test_the_request_id_comes_back_in_success_and_in_failure(running: Serving) -> None:
    stub = await running.sandbox_stub()
    good = stub.Execute(REQUEST, metadata=metadata(NARROW, ("x-request-id", "mine-1")))
    await good
    assert dict(await good.trailing_metadata())["x-request-id"] == "mine-1"
    bad = await failure(stub.Execute(REQUEST, metadata=(("x-request-id", "mine-2"),)))
    assert dict(bad.trailing_metadata())["x-request-id"] == "mine-2"


@pytest.mark.parametrize("bad", ["x" * 129, "with space", ""])
async def test_a_request_id_that_is_not_acceptable_is_replaced(running: Serving, bad) -> None:
    stub = await running.sandbox_stub()
    call = stub.Execute(REQUEST, metadata=metadata(NARROW, ("x-request-id", bad)))
    await call
    made = dict(await call.trailing_metadata())["x-request-id"]
    assert made != bad
    assert len(made) == 32


async def test_streams_of_a_principal_are_bounded(running: Serving) -> None:
    stub = await running.sandbox_stub()
    request = sandbox_pb2.ExecuteStreamRequest(execute=REQUEST)
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def hold(_request):
        entered.set()
        await go_on.wait()
        yield sandbox_pb2.ExecuteStreamResponse()

    running.sandbox.stream = hold
    first = stub.ExecuteStream(request, metadata=metadata(NARROW))
    reading = asyncio.ensure_future(first.read())
    await entered.wait()
    error = await failure(stub.ExecuteStream(request, metadata=metadata(NARROW)))
    assert (error.code(), details(error).reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STREAM_LIMIT")
    # Its unary calls, and others' streams, do not count.
    await stub.Execute(REQUEST, metadata=metadata(NARROW))
    go_on.set()
    await reading
    assert await first.code() is grpc.StatusCode.OK
    second = stub.ExecuteStream(request, metadata=metadata(NARROW))
    assert [message async for message in second]


async def test_reflection_with_a_token_only() -> None:
    async with serving(reflection="token") as running:
        channel = await running.channel()
        path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        refused = channel.stream_stream(path)()
        assert await refused.code() is grpc.StatusCode.UNAUTHENTICATED
        allowed = channel.stream_stream(path)(metadata=metadata(READER))
        await allowed.done_writing()
        assert await allowed.code() is grpc.StatusCode.OK


async def test_every_method_of_the_contract_that_is_served_asks_for_a_token(running: Serving) -> None:
    stub = await running.system_stub()
    assert details(await failure(stub.GetStatus(system_pb2.GetStatusRequest()))).reason == "TOKEN_MISSING"
    watch = stub.WatchAudit(system_pb2.WatchAuditRequest())
    assert details(await failure(watch)).reason == "TOKEN_MISSING"
    exec_ = (await running.containers_stub()).Exec(iter([containers_pb2.ExecRequest()]))
    assert details(await failure(exec_)).reason == "TOKEN_MISSING"
