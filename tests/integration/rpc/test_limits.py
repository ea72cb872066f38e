"""Two limits for executions, and clean-up at every point where a call can end."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import grpc.aio
import pytest
from clawbox_client.v1 import containers_pb2, sandbox_pb2, system_pb2
from grpc_health.v1 import health_pb2

from clawbox.rpc import call as rpc_call
from tests.integration.rpc.conftest import (
    HANGS_SECONDS,
    NARROW,
    Serving,
    details,
    failure,
    metadata,
    serving,
)

REQUEST = sandbox_pb2.ExecuteRequest(tool="echo")


class Gate:
    """Handlers that wait to be let on, and say what became of them."""

    def __init__(self) -> None:
        self.entered = asyncio.Semaphore(0)
        self.go_on = asyncio.Event()
        self.cleaned = asyncio.Semaphore(0)

    async def execute(self, _request):
        self.entered.release()
        try:
            await self.go_on.wait()
        finally:
            await asyncio.sleep(0)  # clean-up that itself awaits
            self.cleaned.release()
        return sandbox_pb2.ExecuteResponse(message=str(rpc_call.current().queued_us))

    async def stream(self, _request):
        self.entered.release()
        try:
            while True:
                yield sandbox_pb2.ExecuteStreamResponse()
                await self.go_on.wait()
        finally:
            await asyncio.sleep(0)
            self.cleaned.release()


async def until(condition, seconds: float = HANGS_SECONDS) -> None:
    """Let others run until ``condition`` holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


async def test_executions_run_wait_and_are_refused_in_that_order() -> None:
    async with serving(max_concurrent_executions=1, max_queued_executions=1) as running:
        gate = Gate()
        running.sandbox.execute = gate.execute
        stub = await running.sandbox_stub()
        first = asyncio.ensure_future(stub.Execute(REQUEST, metadata=metadata()))
        await gate.entered.acquire()
        second = asyncio.ensure_future(stub.Execute(REQUEST, metadata=metadata()))
        await until(lambda: running.server.executions.queued == 1)
        assert running.sample("clawbox_executions_running") == 1
        assert running.sample("clawbox_executions_queued") == 1

        error = await failure(stub.Execute(REQUEST, metadata=metadata()))
        found = details(error)
        assert (error.code(), found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "EXECUTION_LIMIT")
        assert found.retry is not None
        assert found.retry.retry_delay.seconds == 1
        # Nothing but executions is bounded by this.
        await stub.ListTools(sandbox_pb2.ListToolsRequest(), metadata=metadata())
        health = await running.health_stub()
        assert (await health.Check(health_pb2.HealthCheckRequest())).status

        gate.go_on.set()
        assert (await first).message == "0"
        assert int((await second).message) > 0
        await until(lambda: running.server.executions.running == 0)


async def test_a_deadline_is_honoured_in_the_queue() -> None:
    async with serving(max_concurrent_executions=1) as running:
        gate = Gate()
        running.sandbox.execute = gate.execute
        stub = await running.sandbox_stub()
        first = asyncio.ensure_future(stub.Execute(REQUEST, metadata=metadata()))
        await gate.entered.acquire()
        error = await failure(stub.Execute(REQUEST, metadata=metadata(), timeout=0.05))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: running.server.executions.queued == 0)
        gate.go_on.set()
        await first
        assert gate.entered.locked()  # the second never began


@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_cancelling_a_call_reaches_the_handler_and_frees_its_place(how) -> None:
    for deadline in (0.1, 1, 10):
        async with serving() as running:
            if await _reaches_the_handler(running, how, deadline):
                return
    raise AssertionError("no call arrived before its deadline")


async def _reaches_the_handler(running: Serving, how: str, deadline: float) -> bool:
    """Whether the call did; the deadline may pass before it comes so far."""
    gate = Gate()
    running.sandbox.execute = gate.execute
    stub = await running.sandbox_stub()
    call = stub.Execute(REQUEST, metadata=metadata(), timeout=deadline if how == "deadline" else None)
    running_call = asyncio.ensure_future(_settled(call))
    if how == "cancel":
        await gate.entered.acquire()
        call.cancel()
    await running_call
    if how == "deadline" and gate.entered.locked():
        return False
    async with asyncio.timeout(HANGS_SECONDS):
        await gate.cleaned.acquire()
    await until(lambda: running.server.executions.running == 0 and len(running.server.calls) == 0)
    expected = "DEADLINE_EXCEEDED" if how == "deadline" else "CANCELLED"
    await until(
        lambda: running.sample("clawbox_rpcs_total", method="/clawbox.v1.Sandbox/Execute", code=expected) == 1
    )
    return True


async def test_a_deadline_of_a_millisecond_leaves_nothing(running: Serving) -> None:
    stub = await running.sandbox_stub()
    gate = Gate()
    running.sandbox.execute = gate.execute
    for _ in range(20):
        error = await failure(stub.Execute(REQUEST, metadata=metadata(), timeout=0.001))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: running.server.executions.running == 0 and len(running.server.calls) == 0)


async def test_a_caller_that_leaves_before_its_message_leaves_nothing(running: Serving) -> None:
    channel = await running.channel()
    call = channel.stream_stream("/clawbox.v1.Sandbox/Execute")(metadata=metadata())
    await until(lambda: len(running.server.calls) == 1)
    assert running.server.executions.running == 0  # a place is for whoever has something to run
    call.cancel()
    await until(lambda: len(running.server.calls) == 0)


async def _settled(call) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        await call


async def test_a_stream_whose_reader_left_is_closed_and_frees_its_place(running: Serving) -> None:
    gate = Gate()
    running.sandbox.stream = gate.stream
    stub = await running.sandbox_stub()
    call = stub.ExecuteStream(sandbox_pb2.ExecuteStreamRequest(), metadata=metadata(NARROW))
    await call.read()
    call.cancel()
    async with asyncio.timeout(HANGS_SECONDS):
        await gate.cleaned.acquire()
    await until(lambda: running.server.executions.running == 0 and len(running.server.calls) == 0)
    # Its stream was given back, too: this principal may have one.
    again = stub.ExecuteStream(sandbox_pb2.ExecuteStreamRequest(), metadata=metadata(NARROW))
    await again.read()
    again.cancel()


async def test_a_stream_that_writes_to_a_client_that_is_gone_is_closed(running: Serving) -> None:
    closed = asyncio.Event()

    async def flood(_request):
        try:
            while True:
                yield sandbox_pb2.ExecuteStreamResponse(stdout=sandbox_pb2.OutputChunk(data=b"x" * 65536))
        finally:
            closed.set()

    running.sandbox.stream = flood
    channel = await running.channel()
    call = channel.unary_stream("/clawbox.v1.Sandbox/ExecuteStream")(b"", metadata=metadata())
    await call.read()
    await channel.close()
    async with asyncio.timeout(HANGS_SECONDS):
        await closed.wait()
    await until(lambda: len(running.server.calls) == 0)


async def test_a_reader_that_stalls_gives_up_its_place(monkeypatch) -> None:
    monkeypatch.setattr("clawbox.rpc.interceptors.STALLED_READER_SECONDS", 0.1)
    async with serving() as running:
        closed = asyncio.Event()

        async def flood(_request):
            try:
                while True:
                    yield sandbox_pb2.ExecuteStreamResponse(stdout=sandbox_pb2.OutputChunk(data=b"x" * 65536))
            finally:
                closed.set()

        running.sandbox.stream = flood
        stub = await running.sandbox_stub()
        call = stub.ExecuteStream(sandbox_pb2.ExecuteStreamRequest(), metadata=metadata())
        await call.read()  # and never again
        async with asyncio.timeout(HANGS_SECONDS):
            await closed.wait()
        await until(lambda: running.server.executions.running == 0)
        call.cancel()
        await until(lambda: len(running.server.calls) == 0)


async def test_a_stream_that_fails_midway_is_closed_and_gets_its_status(running: Serving) -> None:
    closed = asyncio.Event()

    async def fails(_request):
        try:
            yield sandbox_pb2.ExecuteStreamResponse()
            raise RuntimeError
        finally:
            closed.set()

    running.sandbox.stream = fails
    stub = await running.sandbox_stub()
    call = stub.ExecuteStream(sandbox_pb2.ExecuteStreamRequest(), metadata=metadata())
    await call.read()
    error = await failure(call.read())
    assert details(error).reason == "INTERNAL"
    assert closed.is_set()


async def test_a_client_that_uploads_and_leaves_ends_the_handler(running: Serving) -> None:
    gate = asyncio.Event()
    ended = asyncio.Event()

    async def upload(requests):
        try:
            async for _ in requests:
                gate.set()
            return sandbox_pb2.Tool()
        finally:
            ended.set()

    running.sandbox.upload = upload
    stub = await running.sandbox_stub()
    call = stub.UploadTool(metadata=metadata())
    await call.write(sandbox_pb2.UploadToolRequest(chunk=b"x"))
    await gate.wait()
    call.cancel()
    async with asyncio.timeout(HANGS_SECONDS):
        await ended.wait()
    await until(lambda: len(running.server.calls) == 0)


async def test_requests_and_replies_of_a_bidirectional_stream_interleave(running: Serving) -> None:
    stub = await running.containers_stub()
    call = stub.Exec(metadata=metadata())
    for _ in range(3):
        await call.write(containers_pb2.ExecRequest())
        assert await call.read() is not grpc.aio.EOF
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_rpcs_are_counted_by_method_and_code_and_timed(running: Serving) -> None:
    stub = await running.system_stub()
    await stub.GetStatus(system_pb2.GetStatusRequest(), metadata=metadata())
    await failure(stub.GetStatus(system_pb2.GetStatusRequest()))
    method = "/clawbox.v1.System/GetStatus"
    # A call is counted when its status was sent: who gets it may be sooner.
    await until(lambda: running.sample("clawbox_rpc_duration_seconds_count", method=method) == 2)
    assert running.sample("clawbox_rpcs_total", method=method, code="OK") == 1
    assert running.sample("clawbox_rpcs_total", method=method, code="UNAUTHENTICATED") == 1
